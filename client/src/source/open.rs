//! From what the user named to a [`Generation`]: opened here, once, and checked.
//!
//! Guarantees: when [`open`] returns, every file was readable, not empty, and what it should be, and
//! every address answered; nothing has been asked of the helper. Trusts the user's own files; never
//! writes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    add_efi_image,
    cache::Cache,
    directory, efi_program, mirror, open_blob,
    opener::{Opener, own_script},
    quick::Scripted,
};
use crate::{
    exit::{Code, Failure},
    image::{Generation, MenuItem, NoEfiImage, Script},
    ipxe,
    sign::Signer,
    template::{Identity, Machine, Said, Template},
};

/// Longest command line that the kernel takes (`COMMAND_LINE_SIZE` of x86 and arm64, with its NUL).
pub(super) const CMDLINE_LIMIT: usize = 2048;
/// Longest beginning of an extra file's address: `http://ADDRESS:PORT/TOKEN/MAC`.
const LONGEST_URL: usize = 7 + 15 + 6 + 1 + 32 + 1 + 17;

/// Whether a script can be made of it, whoever it is for.
///
/// # Errors
/// The command line cannot be passed on.
pub fn check_script(generation: &Generation) -> Result<(), Failure> {
    ipxe::script(generation, &Machine::at("http://0.0.0.0")).map(drop).map_err(|error| {
        Failure::new(Code::Source, format!("the command line cannot be passed on: {error}"))
    })
}

/// The whole generation: with the EFI program, if there can be one. What is to be signed is signed now,
/// while the user waits, and not when a machine does: it reads everything. With a command line that is
/// each machine's own, that at least shows that it can be done.
///
/// # Errors
/// It cannot be served to anybody, as it is or as the user wants it.
pub async fn complete(
    mut generation: Generation,
    stub: Option<&Path>,
    signer: Option<&Arc<Signer>>,
) -> Result<Generation, Failure> {
    for item in &mut generation.menu {
        let whole = complete_one((*item.generation).clone(), stub, signer).await;
        let whole = whole.map_err(|failure| Failure {
            message: format!("{}: {}", item.name, failure.message),
            ..failure
        })?;
        item.generation = Arc::new(whole);
    }
    if generation.menu.is_empty() {
        return complete_one(generation, stub, signer).await;
    }
    Ok(generation)
}

async fn complete_one(
    mut generation: Generation,
    stub: Option<&Path>,
    signer: Option<&Arc<Signer>>,
) -> Result<Generation, Failure> {
    add_efi_image(&mut generation, stub, signer)?;
    if let (Some(_), Err(NoEfiImage::BadStub(text))) = (stub, &generation.efi) {
        return Err(Failure::new(Code::Source, text.clone()));
    }
    if signer.is_some() {
        let program = efi_program(&generation, &Machine::at("http://0.0.0.0")).await;
        program.map_err(|reason| {
            Failure::new(Code::Source, format!("there is nothing to sign: {reason}"))
        })?;
    }
    check_script(&generation)?;
    Ok(generation)
}

/// What the user named.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// A kernel, an EFI program, an iPXE script, or a directory; or an address.
    pub kernel: PathBuf,
    /// Files or addresses.
    pub initrds: Vec<PathBuf>,
    /// A template with `ID`.
    pub cmdline: Option<String>,
    /// Shown on the machine's screen.
    pub message: Option<String>,
    /// Machines fetch what lies on other servers from there themselves.
    pub direct: bool,
    /// Further sources and their names: each machine's person chooses.
    pub menu: Vec<(String, PathBuf)>,
    /// Folders on web servers that have the same files: machines try them first.
    pub mirrors: Vec<String>,
    /// Copies of what lies on web servers.
    pub cache: Cache,
}

/// Opens what is to be served: paths, or http and https addresses. [`add_efi_image`] completes it.
/// With a menu the source itself is its first item, by the name of its file, and iPXE shows it.
///
/// # Errors
/// A [`Failure`] with [`Code::Source`] that names the file.
pub async fn open(order: &Order) -> Result<Generation, Failure> {
    let first = open_one(order).await?;
    if order.menu.is_empty() {
        return Ok(first);
    }
    let path = std::path::absolute(&order.kernel).unwrap_or_default();
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut opened = vec![(name, first)];
    for (name, kernel) in &order.menu {
        let (kernel, cache) = (kernel.clone(), order.cache.clone());
        let order = Order { kernel, direct: order.direct, cache, ..Order::default() };
        opened.push((name.clone(), open_one(&order).await?));
    }
    let efi = Err(NoEfiImage::Menu);
    let mut whole = Opener::default().finish(Generation { efi, ..Generation::default() })?;
    for (name, generation) in opened {
        check_script(&generation)?;
        whole.files.extend(generation.files.iter().cloned());
        whole.menu.push(MenuItem { name, generation: Arc::new(generation) });
    }
    ipxe::script(&whole, &Machine::at("http://0.0.0.0")).map_err(|_| {
        let text = "a menu shows no control characters and no ${...}: name the sources otherwise";
        Failure::new(Code::Usage, text)
    })?;
    Ok(whole)
}

async fn open_one(order: &Order) -> Result<Generation, Failure> {
    let mut generation = open_files(order).await?;
    generation.mirrors = mirror::check(&generation, &order.mirrors).await?;
    Ok(generation)
}

async fn open_files(order: &Order) -> Result<Generation, Failure> {
    let mut opener = Opener::new(order.direct, &order.cache);
    let cmdline = order.cmdline.as_deref();
    if order.kernel.is_dir() {
        if !order.initrds.is_empty() {
            return Err(Failure::new(
                Code::Source,
                format!(
                    "{} is a directory, and initrds were named beside it",
                    order.kernel.display()
                ),
            )
            .advise("name the directory alone, or the kernel file and its initrds"));
        }
        let found = directory::find(&order.kernel, cmdline)?;
        let script = found.kernel.with_file_name("netboot.ipxe");
        if let Ok(blob) = open_blob(&script) {
            opener.files.push((script, blob.etag));
        }
        return linux(opener, &found.kernel, &found.initrds, &found.cmdline, order).await;
    }
    if let Some(script) = own_script(&order.kernel)? {
        if !order.initrds.is_empty() {
            let text = format!(
                "{} is an iPXE script, and initrds were named beside it",
                order.kernel.display()
            );
            return Err(Failure::new(Code::Source, text)
                .advise("let the script name them: initrd {{ ID \"path/of/initrd\" }}"));
        }
        let mut names = Vec::new();
        let body = numbered(&script.text, &mut names, "the script")?;
        let cmdline = numbered(cmdline.unwrap_or_default(), &mut names, "--cmdline")?;
        let others = opener.others(names).await?;
        opener.files.push(script.file);
        let script = Some(Script::Named(body));
        return opener.finish(Generation { cmdline, others, script, ..Generation::default() });
    }
    linux(opener, &order.kernel, &order.initrds, cmdline.unwrap_or_default(), order).await
}

/// A kernel with its initrds.
async fn linux(
    mut opener: Opener,
    kernel: &Path,
    initrds: &[PathBuf],
    cmdline: &str,
    order: &Order,
) -> Result<Generation, Failure> {
    let mut names = Vec::new();
    let cmdline = numbered(cmdline, &mut names, "--cmdline")?;
    let (kernel, machine) = opener.kernel(kernel).await?;
    let mut opened = Vec::with_capacity(initrds.len());
    for initrd in initrds {
        opened.push(opener.payload(initrd, "initrd").await?);
    }
    let others = opener.others(names).await?;
    check_length(&cmdline).map_err(|what| Failure::new(Code::Source, what))?;
    opener.finish(Generation {
        kernel: Some(kernel),
        machine,
        initrds: opened,
        cmdline,
        others,
        message: order.message.clone(),
        ..Generation::default()
    })
}

/// Opens the files that an iPXE script names with `{{ ID "..." }}`.
///
/// # Errors
/// As [`open`].
pub async fn open_script(
    scripted: &Scripted,
    direct: bool,
    cache: &Cache,
) -> Result<Generation, Failure> {
    let mut opener = Opener::new(direct, cache);
    let mut names = Vec::new();
    let template = numbered(&scripted.script, &mut names, "the script")?;
    let others = opener.others(names).await?;
    let script = Some(Script::AsItIs(template));
    let instead = scripted.programs.clone();
    opener.finish(Generation { others, script, instead, ..Generation::default() })
}

/// Reads a template whose files get the numbers that `names` has them under; `role` is the word for it.
fn numbered(text: &str, names: &mut Vec<String>, role: &str) -> Result<Template, Failure> {
    let number = |name| {
        names.iter().position(|known| *known == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        })
    };
    Template::parse(text, "ID", number)
        .map_err(|error| Failure::new(Code::Usage, format!("{role}: {error}")))
}

/// Whether the kernel takes all of it, with addresses as long as they can become.
pub(super) fn check_length(cmdline: &Template) -> Result<(), String> {
    let length = cmdline.text(&longest()).len();
    if length < CMDLINE_LIMIT {
        return Ok(());
    }
    Err(format!(
        "the command line is {length} characters long, and Linux takes at most {}",
        CMDLINE_LIMIT - 1
    ))
}

/// A machine that makes every text as long as it can become.
pub(super) fn longest() -> Machine {
    let said = Said::longest;
    let identity = Identity { uuid: said(), arch: said(), serial: said(), hostname: said() };
    Machine { identity, ..Machine::at(&"u".repeat(LONGEST_URL)) }
}
