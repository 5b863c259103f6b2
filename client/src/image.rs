//! What is served: files that were opened once and belong together.
//!
//! Guarantees: a [`Generation`] holds open descriptors, so that a build that is replaced or
//! collected meanwhile does not mix with it; every length was read from the descriptor itself. What
//! lies on a web server is opened when it is passed on; a [`Remote`] knows what its server said of it
//! at the start, so that a file that changed there is not passed on.

use std::{borrow::Cow, path::PathBuf, sync::Arc};

use http::Uri;

use crate::{fetch::Facts, read::Content, sign::Signer, source::cache::Cache, template::Template};

/// One open file, or several that read as one.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Last part of the path, for people.
    pub name: String,
    /// The octets. Read with positioned reads only: many machines share them.
    pub content: Content,
    /// Octets.
    pub length: u64,
    /// Strong entity tag with its quotes (RFC 9110 section 8.8.3), made from device, inode, length
    /// and modification time.
    pub etag: String,
    /// Modification time in the form of `Last-Modified` (RFC 9110 section 8.8.2).
    pub last_modified: String,
}

/// One file on a web server, passed on to machines.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Last part of the address, for people.
    pub name: String,
    /// http or https.
    pub address: Uri,
    /// What its server said of it when it was chosen; nothing, if it was not asked.
    pub facts: Facts,
    /// Machines fetch it from there themselves (`--direct`).
    pub direct: bool,
    /// Asks for it, and has its copy.
    pub cache: Cache,
}

/// What is served under one name.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Opened here.
    Local(Blob),
    /// Passed on.
    Remote(Box<Remote>),
}

impl Payload {
    /// For people.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Local(blob) => &blob.name,
            Self::Remote(remote) => &remote.name,
        }
    }

    /// Octets, if that is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Local(blob) => Some(blob.length),
            Self::Remote(remote) => remote.facts.length,
        }
    }
}

impl Payload {
    /// The address on another server that machines fetch it from themselves.
    #[must_use]
    pub fn elsewhere(&self) -> Option<String> {
        match self {
            Self::Remote(remote) if remote.direct => Some(remote.address.to_string()),
            _ => None,
        }
    }
}

impl From<Remote> for Payload {
    fn from(remote: Remote) -> Self {
        Self::Remote(Box::new(remote))
    }
}

impl From<Blob> for Payload {
    fn from(blob: Blob) -> Self {
        Self::Local(blob)
    }
}

/// Kernel, initrds and command line that belong together.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Unguessable path element of this run's URLs: 32 hexadecimal digits.
    pub token: String,
    /// The kernel; without one, `script` says what is booted.
    pub kernel: Option<Payload>,
    /// The initrds, in the order in which the kernel gets them.
    pub initrds: Vec<Payload>,
    /// The kernel's command line, without `initrd=`: that part belongs to the boot loader.
    pub cmdline: Template,
    /// Extra files that command line or script name.
    pub others: Vec<Payload>,
    /// Folders on other web servers that have kernel and initrds under their own names, and that
    /// machines try first: addresses without a slash at the end.
    pub mirrors: Vec<String>,
    /// Shown on the machine's screen before it fetches the kernel.
    pub message: Option<String>,
    /// An iPXE script that is run instead of one made from the above.
    pub script: Option<Script>,
    /// The files of this computer that it was made of, with the entity tags that they had.
    pub files: Vec<(PathBuf, String)>,
    /// Machine type in the PE/COFF header of the kernel, if it has one.
    pub machine: Option<u16>,
    /// What UEFI machines can load without iPXE.
    pub efi: Result<EfiImage, NoEfiImage>,
    /// What the person at the machine chooses from; nothing else is booted then.
    pub menu: Vec<MenuItem>,
    /// For machines that would need iPXE to run the script, by DHCP option 93: files or addresses of
    /// programs that do the same by themselves.
    pub instead: Vec<(u16, PathBuf)>,
}

/// One of several sources.
#[derive(Clone, Debug)]
pub struct MenuItem {
    /// For people.
    pub name: String,
    /// What is booted. Its files lie below a path of their own in the machine's folder.
    pub generation: Arc<Generation>,
}

impl Default for Generation {
    /// Nothing but what a script could name.
    fn default() -> Self {
        Self {
            token: String::new(),
            kernel: None,
            initrds: Vec::new(),
            cmdline: Template::default(),
            others: Vec::new(),
            mirrors: Vec::new(),
            message: None,
            script: None,
            files: Vec::new(),
            machine: None,
            efi: Err(NoEfiImage::Script),
            menu: Vec::new(),
            instead: Vec::new(),
        }
    }
}

/// Until the first item of a menu is taken, whoever shows it: seconds without a key.
pub const MENU_SECONDS: u8 = 30;

/// Where the files of a menu's item lie in the machine's folder.
#[must_use]
pub fn menu_folder(number: usize) -> String {
    format!("menu{number}")
}

/// Of which item [`menu_folder`] gives this name.
#[must_use]
pub fn menu_number(folder: &str) -> Option<usize> {
    let number = folder.strip_prefix("menu")?.parse().ok()?;
    // A number can be written in several ways.
    (menu_folder(number) == folder).then_some(number)
}

/// An iPXE script that was not made here.
#[derive(Clone, Debug)]
pub enum Script {
    /// Run as it stands.
    AsItIs(Template),
    /// A file of the user's: run behind a head of ours, which sets what it may use. Without its
    /// first line.
    Named(Template),
}

impl Generation {
    /// The files on web servers that are passed on, those of a menu's sources, too.
    pub fn passed_on(&self) -> impl Iterator<Item = &Remote> {
        let menu = self.menu.iter().map(|item| &*item.generation);
        let files = std::iter::once(self)
            .chain(menu)
            .flat_map(|one| one.kernel.iter().chain(&one.initrds).chain(&one.others));
        files.filter_map(|payload| match payload {
            Payload::Remote(remote) if !remote.direct => Some(&**remote),
            _ => None,
        })
    }

    /// Whether machines fetch all that is needed from here, so that it is known when they have it.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        let mut images = self.kernel.iter().chain(&self.initrds);
        self.script.is_none()
            && self.menu.is_empty()
            && self.mirrors.is_empty()
            && images.all(|image| image.elsewhere().is_none())
    }

    /// The EFI programs that are the same for every machine but for their command lines: its own, and
    /// those of the menu.
    pub fn programs(&self) -> impl Iterator<Item = &EfiImage> {
        let items = self.menu.iter().filter_map(|item| item.generation.efi.as_ref().ok());
        self.efi.as_ref().ok().into_iter().chain(items)
    }

    /// Whether machines fetch anything from another server themselves.
    #[must_use]
    pub fn is_fetched_elsewhere(&self) -> bool {
        let mut files = self.kernel.iter().chain(&self.initrds).chain(&self.others);
        files.any(|file| file.elsewhere().is_some())
            || self.menu.iter().any(|item| item.generation.is_fetched_elsewhere())
    }

    /// The part that a path in the machine's folder leads to, and the rest of that path: below
    /// [`menu_folder`] an item of the menu, else this itself.
    #[must_use]
    pub fn at<'a>(self: &Arc<Self>, path: &'a str) -> (Arc<Self>, &'a str) {
        let item = path.split_once('/').and_then(|(folder, rest)| {
            let item = self.menu.get(menu_number(folder)?)?;
            Some((Arc::clone(&item.generation), rest))
        });
        item.unwrap_or_else(|| (Arc::clone(self), path))
    }

    /// Whether the script says something that only iPXE on the machine knows.
    #[must_use]
    pub fn asks_ipxe(&self) -> bool {
        match &self.script {
            Some(Script::AsItIs(script)) => script.asks_ipxe(),
            Some(Script::Named(script)) => script.asks_ipxe() || self.cmdline.asks_ipxe(),
            None => self.cmdline.asks_ipxe(),
        }
    }
}

/// Of what an EFI program is made that brings everything along: what UEFI HTTP boot loads. The
/// program itself is each machine's own ([`crate::source::efi_program`]), since the command line may
/// name the machine's addresses.
#[derive(Clone, Debug)]
pub struct EfiImage {
    /// Machine type of its PE/COFF header.
    pub machine: u16,
    /// systemd's boot stub, in memory: kernel, initrds and command line are added to it. Without
    /// one the kernel is such a program itself.
    pub stub: Option<Blob>,
    /// What firmware with Secure Boot finds in it.
    pub signature: Signature,
}

/// Whose signature an EFI program carries.
#[derive(Clone, Debug)]
pub enum Signature {
    /// Nobody's.
    Missing,
    /// Whoever made the file that the user named.
    InFile,
    /// The user's: it is made when the program is.
    By(Arc<Signer>),
}

impl EfiImage {
    /// It is what the user named, so that machines that cannot run it get nothing.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.stub.is_none()
    }

    /// Firmware with Secure Boot may take it.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        !matches!(self.signature, Signature::Missing)
    }
}

/// Why there is no [`EfiImage`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEfiImage {
    /// There is none for this kernel's machine type on the system.
    #[error(
        "systemd's boot stub {0} was not found (Debian, Ubuntu: apt install systemd-boot-efi; \
         NixOS has it beside its systemd; else --stub FILE)"
    )]
    NoStub(&'static str),
    /// The one that was found will not do.
    #[error("{0}")]
    BadStub(String),
    /// Not a PE/COFF image of a known machine type.
    #[error("the kernel is not an EFI program (it needs CONFIG_EFI_STUB)")]
    Kernel,
    /// A PE/COFF image counts its octets with 32 bits.
    #[error("kernel and initrds together are larger than the 4 GiB of an EFI program")]
    TooLarge,
    /// It is put together from open files only.
    #[error(
        "kernel or initrd lies on another web server, and such a program is made of files of this \
         computer: download them, and name the files"
    )]
    Remote,
    /// It was to be signed.
    #[error("{0}")]
    Unsigned(String),
    /// There is no kernel to make it of.
    #[error("an iPXE script is served, and only iPXE runs it")]
    Script,
    /// There are several, to choose from.
    #[error("a menu is served, and HTTP boot shows none")]
    Menu,
}

/// A kind of processor, as far as UEFI programs go, with the machine type of its PE/COFF images
/// (PE/COFF specification, "Machine types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cpu {
    /// 32-bit x86.
    Ia32,
    /// 64-bit x86.
    X64,
    /// 32-bit arm.
    Arm32,
    /// 64-bit arm.
    Arm64,
    /// 32-bit RISC-V.
    Riscv32,
    /// 64-bit RISC-V.
    Riscv64,
    /// 64-bit LoongArch.
    Loong64,
}

impl Cpu {
    /// Every kind that iPXE is built for.
    pub const ALL: [Self; 7] = [
        Self::Ia32,
        Self::X64,
        Self::Arm32,
        Self::Arm64,
        Self::Riscv32,
        Self::Riscv64,
        Self::Loong64,
    ];

    /// Machine type of its UEFI programs.
    #[must_use]
    pub fn pe_machine(self) -> u16 {
        match self {
            Self::Ia32 => 0x014c,
            Self::X64 => 0x8664,
            // ARMTHUMB_MIXED: UEFI specification section 2.1.1.
            Self::Arm32 => 0x01c2,
            Self::Arm64 => 0xaa64,
            Self::Riscv32 => 0x5032,
            Self::Riscv64 => 0x5064,
            Self::Loong64 => 0x6264,
        }
    }

    /// As iPXE's build names it: `bin-<name>-efi`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ia32 => "i386",
            Self::X64 => "x86_64",
            Self::Arm32 => "arm32",
            Self::Arm64 => "arm64",
            Self::Riscv32 => "riscv32",
            Self::Riscv64 => "riscv64",
            Self::Loong64 => "loong64",
        }
    }

    /// Its machines, for people.
    #[must_use]
    pub fn machines(self) -> &'static str {
        match self {
            Self::Ia32 => "32-bit UEFI PCs",
            Self::X64 => "64-bit UEFI PCs",
            Self::Arm32 => "arm32 UEFI machines",
            Self::Arm64 => "arm64 UEFI machines",
            Self::Riscv32 => "RISC-V 32 UEFI machines",
            Self::Riscv64 => "RISC-V 64 UEFI machines",
            Self::Loong64 => "LoongArch 64 UEFI machines",
        }
    }
}

/// A program that firmware fetches by TFTP and starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Loader {
    /// x86 BIOS, iPXE over the card's own UNDI driver.
    Undionly,
    /// x86 BIOS, iPXE with its own drivers: for machines whose ROM is an iPXE that lacks features.
    IpxePxe,
    /// UEFI, iPXE over the firmware's network driver.
    Snponly(Cpu),
    /// UEFI, iPXE with its own drivers.
    Ipxe(Cpu),
    /// What the user named for an architecture (DHCP option 93), whatever it is.
    Given(u16),
    /// For machines of this architecture without iPXE: a program that needs nothing further from here
    /// ([`Generation::instead`]).
    Whole(u16),
    /// No loader but the whole image: the program made of the generation's [`EfiImage`].
    Image,
    /// No loader but a folder of files under names of the machine's own ([`crate::rpi`]).
    Folder,
}

impl Loader {
    /// Name in TFTP requests.
    #[must_use]
    pub fn file_name(self) -> Cow<'static, str> {
        let plain = |name: &'static str| Cow::Borrowed(name);
        match self {
            Self::Undionly => plain("undionly.kpxe"),
            Self::IpxePxe => plain("ipxe.pxe"),
            Self::Snponly(Cpu::X64) => plain("snponly.efi"),
            Self::Ipxe(Cpu::X64) => plain("ipxe.efi"),
            Self::Snponly(cpu) => format!("snponly-{}.efi", cpu.name()).into(),
            Self::Ipxe(cpu) => format!("ipxe-{}.efi", cpu.name()).into(),
            Self::Given(arch) => format!("loader-{arch}").into(),
            Self::Whole(arch) => format!("program-{arch}").into(),
            Self::Image => plain("boot.efi"),
            // For people: no machine asks for it by this name.
            Self::Folder => plain("Raspberry Pi boot files"),
        }
    }
}

/// The loaders that were found on this system.
#[derive(Clone, Debug, Default)]
pub struct Loaders(pub std::collections::BTreeMap<Loader, Blob>);
