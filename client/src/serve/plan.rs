//! What is served where, checked before anybody is asked: files, loaders, requests.

use std::{net::Ipv4Addr, sync::Arc, time::Instant};

use crate::{
    chain::{self, Chain},
    cli::Serving,
    dhcp::Count,
    exit::{Code, Failure},
    grub,
    image::{EfiImage, Generation, Loader, Loaders, Payload},
    loaders,
    report::Report,
    rpi::Folder,
    session::Request,
    source::{self, Same, Source, api::Api, fresh::Fresh},
    template::Machine,
    uki,
};

/// What is served where, checked, before anybody is asked.
pub(super) struct Plan<'a> {
    pub(super) boot: &'a Serving,
    pub(super) content: Content<'a>,
    pub(super) loaders: Arc<Loaders>,
    pub(super) chain: Option<Arc<Chain>>,
    /// For Raspberry Pis.
    pub(super) folder: Arc<Folder>,
    pub(super) count: Option<Arc<Count>>,
    /// One for each interface, at least one.
    pub(super) requests: Vec<Request>,
    /// What times are counted from, on all of them.
    pub(super) begun: Instant,
}

impl Plan<'_> {
    /// What firmware can be given by TFTP.
    pub(super) fn loaders(&self) -> impl Iterator<Item = Loader> {
        // An API's is known when a machine asks.
        let api = matches!(self.content, Content::Api(..));
        let image = (api || self.content.programs().next().is_some()).then_some(Loader::Image);
        let folder = (!self.folder.is_empty()).then_some(Loader::Folder);
        self.loaders.0.keys().copied().chain(image).chain(folder)
    }
}

/// What is served.
pub(super) enum Content<'a> {
    /// The same for every machine.
    Same(Arc<Generation>),
    /// Files that are opened anew when they change, and what they are at first.
    Fresh(Arc<Fresh>, Arc<Generation>),
    /// What the API at this address says.
    Api(Arc<Api>, &'a str),
}

impl Content<'_> {
    pub(super) fn source(&self) -> Arc<dyn Source> {
        match self {
            Self::Same(generation) => Arc::new(Same(Arc::clone(generation))),
            Self::Fresh(fresh, _) => Arc::clone(fresh) as Arc<dyn Source>,
            Self::Api(api, _) => Arc::clone(api) as Arc<dyn Source>,
        }
    }

    pub(super) fn generation(&self) -> Option<&Generation> {
        match self {
            Self::Same(generation) | Self::Fresh(_, generation) => Some(generation),
            Self::Api(..) => None,
        }
    }

    /// It, or those of a menu.
    pub(super) fn programs(&self) -> impl Iterator<Item = &EfiImage> {
        self.generation().into_iter().flat_map(Generation::programs)
    }

    /// The EFI program that is the same for every machine but for its command line.
    pub(super) fn efi(&self) -> Option<&EfiImage> {
        self.generation().and_then(|generation| generation.efi.as_ref().ok())
    }
}

/// What is asked of the helper for an interface.
pub(crate) fn request(boot: &Serving, interface: String) -> Request {
    Request {
        interface,
        http_port: boot.port,
        share_dhcp: boot.dhcp_no_bind,
        max_seconds: boot.duration.and_then(|time| u32::try_from(time.as_secs()).ok()),
        full_dhcp: boot.dhcp_server,
    }
}

/// The signed boot loaders that the user wants, if what is served can be loaded by them.
pub(super) fn find_chain(
    boot: &Serving,
    content: &Content<'_>,
    report: &mut Report,
) -> Result<Option<Arc<Chain>>, Failure> {
    let Some(directory) = &boot.chain else {
        return Ok(None);
    };
    if let Some(machine) = directory.as_deref().and_then(chain::ipxe_machine) {
        return Chain::find(directory.as_deref(), machine).map(|chain| Some(Arc::new(chain)));
    }
    let refusal = |text: String| Failure::new(Code::Usage, format!("--chain: {text}"));
    let kernel = content
        .generation()
        .filter(|one| one.initrds.iter().all(|file| matches!(file, Payload::Local(_))))
        .and_then(|one| match one.kernel.as_ref()? {
            Payload::Local(kernel) => Some((one, kernel)),
            Payload::Remote(_) => None,
        });
    let Some((generation, kernel)) = kernel else {
        let text = "GRUB is given a kernel and initrds that lie on this computer, the same for every \
                    machine";
        return Err(refusal(text.to_owned()).advise("download them, and name the files"));
    };
    if content.efi().is_some_and(EfiImage::is_named) {
        return Err(refusal(format!("{} is an EFI program and not a Linux kernel", kernel.name)));
    }
    let head = source::read_head(kernel, source::HEAD)
        .map_err(|error| refusal(format!("{}: {error}", kernel.name)))?;
    let chain = Chain::find(directory.as_deref(), source::pe_machine(&head).unwrap_or_default())?;
    let nobody = Machine::at("http://ADDRESS");
    let cmdline = generation.cmdline.text(&nobody);
    grub::config(Ipv4Addr::UNSPECIFIED, nobody.mac, 0, &cmdline)
        .map_err(|error| refusal(error.to_string()))?;
    if uki::unhashed(&head).is_ok_and(|unhashed| !unhashed.signed) {
        report.note(&format!(
            "{} carries no signature: where Secure Boot is on, GRUB refuses it.",
            kernel.name
        ));
    }
    Ok(Some(Arc::new(chain)))
}

/// iPXE, for machines that load nothing else.
///
/// # Errors
/// As [`loaders::find`].
pub(crate) async fn find_loaders(
    boot: &Serving,
    generation: Option<&Generation>,
    chain: bool,
) -> Result<(Loaders, Vec<String>), Failure> {
    let efi = generation.and_then(|generation| generation.efi.as_ref().ok());
    if efi.is_some_and(EfiImage::is_named) {
        return Ok(Default::default());
    }
    let instead = generation.map_or(&[][..], |generation| &generation.instead);
    let program = generation.is_some_and(|generation| generation.programs().next().is_some());
    let mut wishes = loaders::Wishes {
        directory: boot.ipxe_dir.clone(),
        bios: boot.ipxe_bios.clone(),
        ipxe: boot.ipxe_ipxe.clone(),
        efi64: boot.ipxe_efi64.clone(),
        efi32: boot.ipxe_efi32.clone(),
        given: boot.loader.clone(),
        optional: program || chain || !instead.is_empty(),
    };
    let mut loaders = loaders::find(&wishes)?;
    let missing = loaders::add_instead(&mut loaders, instead).await;
    if loaders.0.is_empty() && !instead.is_empty() && !chain {
        wishes.optional = false;
        let failure = loaders::find(&wishes).err();
        let failure = failure.unwrap_or_else(|| Failure::new(Code::NoLoader, "no boot loader"));
        return Err(missing.into_iter().fold(failure, Failure::advise));
    }
    Ok((loaders, missing))
}
