//! From paths and addresses to a [`Generation`]: what is served is opened here, once, and checked;
//! and from a machine to its generation ([`Source`]).
//!
//! Guarantees: when [`open`] returns, every file was readable, not empty, and what it should be, and
//! every address answered; nothing has been asked of the helper. Trusts the user's own files; never
//! writes.

pub mod api;
pub mod cache;
mod directory;
mod efi;
mod file;
pub mod fresh;
pub mod kernel;
pub mod mirror;
pub mod netboot_ipxe;
pub mod quick;
pub mod url;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _};
use http::Uri;

use cache::Cache;
pub use efi::{add_efi_image, efi_program};
use file::is_same;
pub use file::{OpenError, open_blob, read_head, text_blob};
pub use kernel::{HEAD, pe_machine};
use quick::Scripted;

use crate::{
    event::Firmware,
    exit::{Code, Failure},
    fetch::Fetcher,
    image::{Blob, Generation, MenuItem, NoEfiImage, Payload, Remote, Script},
    ipxe,
    mac::MacAddr,
    read::{Content, Piece},
    sign::Signer,
    template::{Identity, Machine, Said, Template},
};

/// Longest command line that the kernel takes (`COMMAND_LINE_SIZE` of x86 and arm64, with its NUL).
const CMDLINE_LIMIT: usize = 2048;
/// Longest beginning of an extra file's address: `http://ADDRESS:PORT/TOKEN/MAC`.
const LONGEST_URL: usize = 7 + 15 + 6 + 1 + 32 + 1 + 17;
/// For a small file of another server to arrive.
const WHOLE: Duration = Duration::from_secs(60);
/// A script of the user's; more than this is something else.
const SCRIPT_LIMIT: u64 = 256 * 1024;

/// Decides what each machine boots.
pub trait Source: Send + Sync {
    /// First path element of every machine's URLs.
    fn token(&self) -> &str;

    /// What `mac` says of itself, before [`Self::generation`] is asked about its DISCOVER.
    fn meet(&self, mac: MacAddr, traits: Traits) {
        let _ = (mac, traits);
    }

    /// What `mac` boots, now that it takes this step. May take as long as a network's answer does.
    fn generation(
        &self,
        mac: MacAddr,
        step: Step,
    ) -> BoxFuture<'_, Result<Arc<Generation>, Refusal>>;

    /// What `mac` boots, where that is known without asking anybody.
    fn known(&self, mac: MacAddr) -> Option<Arc<Generation>>;
}

/// What a machine says of itself when it asks for network boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traits {
    /// DHCP option 93.
    pub arch: u16,
    /// What asks.
    pub firmware: Firmware,
    /// DHCP option 97 in the usual form, as SMBIOS has it.
    pub uuid: Option<String>,
}

/// How far a machine is that [`Source::generation`] is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It asks for network boot.
    Discover,
    /// It fetches its script, or the EFI program that needs none.
    Script,
    /// It fetches a file that the script named.
    File,
}

/// Why there is nothing for a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// The same for every machine.
#[derive(Clone, Debug)]
pub struct Same(pub Arc<Generation>);

impl Source for Same {
    fn token(&self) -> &str {
        &self.0.token
    }

    fn generation(&self, _: MacAddr, _: Step) -> BoxFuture<'_, Result<Arc<Generation>, Refusal>> {
        std::future::ready(Ok(Arc::clone(&self.0))).boxed()
    }

    fn known(&self, _: MacAddr) -> Option<Arc<Generation>> {
        Some(Arc::clone(&self.0))
    }
}

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
fn check_length(cmdline: &Template) -> Result<(), String> {
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
fn longest() -> Machine {
    let said = Said::longest;
    let identity = Identity { uuid: said(), arch: said(), serial: said(), hostname: said() };
    Machine { identity, ..Machine::at(&"u".repeat(LONGEST_URL)) }
}

/// Opens files and asks for addresses, with one client for all.
#[derive(Default)]
struct Opener {
    cache: Cache,
    direct: bool,
    /// Files of this computer, and the entity tags that they have.
    files: Vec<(PathBuf, String)>,
}

impl Opener {
    fn new(direct: bool, cache: &Cache) -> Self {
        Self { cache: cache.clone(), direct, files: Vec::new() }
    }

    /// The kernel, and the machine type of its PE/COFF header.
    async fn kernel(&mut self, path: &Path) -> Result<(Payload, Option<u16>), Failure> {
        let Some(address) = address(path)? else {
            let (blob, machine) = open_kernel(path)?;
            self.files.push((path.to_owned(), blob.etag.clone()));
            return Ok((blob.into(), machine));
        };
        let (remote, head) = self.remote(address, "kernel", HEAD).await?;
        if kernel::is_kernel(&head) {
            Ok((remote.into(), pe_machine(&head)))
        } else {
            Err(Failure::new(
                Code::Source,
                format!("{} is not a kernel that a machine could boot", path.display()),
            )
            .advise(
                "a web server's page that says so is no kernel either: look at it with a browser",
            ))
        }
    }

    async fn payload(&mut self, path: &Path, role: &str) -> Result<Payload, Failure> {
        let Some(address) = address(path)? else {
            let blob = open_blob(path).map_err(|error| error.failure(role))?;
            self.files.push((path.to_owned(), blob.etag.clone()));
            return Ok(blob.into());
        };
        Ok(self.remote(address, role, 1).await?.0.into())
    }

    async fn others(&mut self, names: Vec<String>) -> Result<Vec<Payload>, Failure> {
        let mut others = Vec::with_capacity(names.len());
        for name in names {
            others.push(self.payload(Path::new(&name), "extra file").await?);
        }
        Ok(others)
    }

    /// What was opened, under a path of its own.
    fn finish(self, mut generation: Generation) -> Result<Generation, Failure> {
        name_elsewhere(&mut generation);
        Ok(Generation { token: token()?, files: self.files, ..generation })
    }

    async fn remote(
        &mut self,
        address: Uri,
        role: &str,
        head: u64,
    ) -> Result<(Remote, Vec<u8>), Failure> {
        let fetcher = self.cache.fetcher();
        let head = usize::try_from(head).unwrap_or(usize::MAX);
        let (head, facts) = fetcher.head(&address, head).await.map_err(|error| {
            Failure::new(Code::Source, format!("the {role} {address} cannot be fetched: {error}"))
        })?;
        if head.is_empty() {
            return Err(Failure::new(Code::Source, format!("the {role} {address} is empty")));
        }
        let mut remote = remote(address, &self.cache);
        remote.facts = facts;
        remote.direct = self.direct;
        Ok((remote, head))
    }
}

/// In texts, what machines fetch from other servers has its address there.
fn name_elsewhere(generation: &mut Generation) {
    let others = &generation.others;
    let elsewhere = |number: usize| others.get(number).and_then(Payload::elsewhere);
    generation.cmdline.name_elsewhere(elsewhere);
    if let Some(Script::AsItIs(script) | Script::Named(script)) = &mut generation.script {
        script.name_elsewhere(elsewhere);
    }
}

/// A file on a web server, of which nothing is known yet.
fn remote(address: Uri, cache: &Cache) -> Remote {
    let last = address.path().rsplit('/').find(|part| !part.is_empty());
    let name = last.unwrap_or_else(|| address.host().unwrap_or_default()).to_owned();
    let cache = cache.clone();
    Remote { name, address, facts: Default::default(), direct: false, cache }
}

/// A file of this computer, or one of another server in memory, of at most `limit` octets.
///
/// # Errors
/// It is not there, or larger.
pub async fn small_blob(place: &Path, limit: usize) -> Result<Blob, String> {
    let Some(address) = address(place).map_err(|failure| failure.message)? else {
        return open_blob(place).map_err(|error| error.failure("boot loader").message);
    };
    let fetched = Fetcher::new().whole(&address, limit, WHOLE).await;
    let octets = fetched.map_err(|error| format!("{address} cannot be fetched: {error}"))?;
    let content = Content::new(vec![Piece::Memory(octets)]);
    let name = address.path().rsplit('/').next().unwrap_or_default();
    Ok(Blob { length: content.length(), content, ..text_blob(name, String::new()) })
}

/// The address that stands in the place of a path.
fn address(path: &Path) -> Result<Option<Uri>, Failure> {
    match path.to_str().filter(|text| url::is_http(text)) {
        Some(text) => url::parse(text).map(Some).map_err(|error| Failure::new(Code::Source, error)),
        None => Ok(None),
    }
}

/// An iPXE script without its first line, if the file is one.
struct OwnScript {
    text: String,
    file: (PathBuf, String),
}

fn own_script(path: &Path) -> Result<Option<OwnScript>, Failure> {
    const FIRST: &[u8] = b"#!ipxe";
    let fault = |what: String| Failure::new(Code::Source, format!("{}: {what}", path.display()));
    if address(path)?.is_some() {
        return Ok(None);
    }
    let blob = open_blob(path).map_err(|error| error.failure("kernel"))?;
    let head = read_head(&blob, SCRIPT_LIMIT + 1).map_err(|error| fault(error.to_string()))?;
    if !head.starts_with(FIRST) {
        return Ok(None);
    }
    if blob.length > SCRIPT_LIMIT {
        return Err(fault(format!("an iPXE script of more than {SCRIPT_LIMIT} octets")));
    }
    let text =
        String::from_utf8(head).map_err(|_| fault("an iPXE script that is no text".to_owned()))?;
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
    Ok(Some(OwnScript { text: rest.to_owned(), file: (path.to_owned(), blob.etag) }))
}

fn open_kernel(path: &Path) -> Result<(Blob, Option<u16>), Failure> {
    let blob = open_blob(path).map_err(|error| error.failure("kernel"))?;
    let head = read_head(&blob, HEAD)
        .map_err(|error| Failure::new(Code::Source, format!("{}: {error}", path.display())))?;
    if kernel::is_kernel(&head) {
        Ok((blob, pe_machine(&head)))
    } else {
        Err(Failure::new(
            Code::Source,
            format!("{} is not a kernel that a machine could boot", path.display()),
        )
        .advise("a Linux kernel for this is a file named bzImage, Image or vmlinuz-..., not vmlinux, an ISO or an initrd")
        .advise("kernel first, then the initrds: portcullis boot KERNEL INITRD"))
    }
}

/// 128 random bits as 32 hexadecimal digits.
pub(crate) fn token() -> Result<String, Failure> {
    let mut octets = [0; 16];
    let got = rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty());
    // Up to 256 octets come whole once the pool is seeded (getrandom(2)).
    if got != Ok(octets.len()) {
        return Err(Failure::new(Code::Internal, "the kernel gave no random numbers"));
    }
    Ok(octets.iter().fold(String::with_capacity(32), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(
        kernel: &Path,
        initrds: &[PathBuf],
        cmdline: Option<&str>,
    ) -> Result<Generation, Failure> {
        let order = Order {
            kernel: kernel.to_owned(),
            initrds: initrds.to_vec(),
            cmdline: cmdline.map(str::to_owned),
            ..Order::default()
        };
        super::open(&order).now_or_never().unwrap_or_else(|| panic!("waits for nothing"))
    }

    fn local(payload: &Payload) -> &Blob {
        let Payload::Local(blob) = payload else { panic!("{payload:?}") };
        blob
    }

    /// The first sector and setup header of a bzImage, as far as it is looked at.
    pub fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image
    }

    fn build(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    const SCRIPT: &[u8] =
        b"#!ipxe\nkernel bzImage init=/nix/store/x/init initrd=initrd loglevel=4 ${cmdline}\ninitrd initrd\nboot\n";

    #[test]
    fn a_nixos_build_directory_is_one_generation() {
        let build =
            build(&[("bzImage", &bzimage()), ("initrd", b"cpio"), ("netboot.ipxe", SCRIPT)]);
        let link = build.path().join("result");
        std::os::unix::fs::symlink(build.path(), &link).unwrap();
        let generation = open(&link, &[], Some(" console=ttyS0 ")).unwrap();
        assert_eq!(
            generation.cmdline.text(&Machine::at("")),
            "init=/nix/store/x/init loglevel=4 console=ttyS0"
        );
        let kernel = generation.kernel.as_ref().unwrap();
        assert_eq!((kernel.name(), kernel.length()), ("bzImage", Some(1024)));
        assert_eq!(generation.initrds.len(), 1);
        assert_eq!(generation.token.len(), 32);
        assert!(generation.token.bytes().all(|digit| digit.is_ascii_hexdigit()));
        assert_ne!(generation.token, open(&link, &[], None).unwrap().token);
    }

    #[test]
    fn what_was_opened_stays_when_the_build_is_replaced() {
        let build = build(&[("k", &bzimage()), ("i", b"old")]);
        let initrd = build.path().join("i");
        let generation =
            open(&build.path().join("k"), std::slice::from_ref(&initrd), Some("a=b")).unwrap();
        std::fs::remove_file(&initrd).unwrap();
        std::fs::write(&initrd, b"new one").unwrap();
        assert_eq!(read_head(local(&generation.initrds[0]), 16).unwrap(), b"old");
    }

    #[test]
    fn each_fault_of_a_source_names_the_file_and_what_is_wrong() {
        let build =
            build(&[("k", &bzimage()), ("empty", b""), ("text", b"#!/bin/sh\n"), ("i", b"cpio")]);
        let at = |name: &str| build.path().join(name);
        let bare = tempfile::tempdir().unwrap();
        for (kernel, initrds, word) in [
            (at("missing"), vec![], "does not exist"),
            (at("empty"), vec![], "is empty"),
            (at("text"), vec![], "not a kernel"),
            (at("k"), vec![at("missing")], "does not exist"),
            (at("k"), vec![at("empty")], "is empty"),
            (at("k"), vec![bare.path().to_owned()], "is a directory"),
            (bare.path().to_owned(), vec![], "without a kernel"),
            (bare.path().to_owned(), vec![at("i")], "initrds were named"),
            (PathBuf::from("/dev/null"), vec![], "not a regular file"),
        ] {
            let failure = open(&kernel, &initrds, None).unwrap_err();
            assert_eq!(failure.code, 30, "{failure}");
            assert!(failure.message.contains(word), "{word}: {failure}");
        }
        let long = "x".repeat(CMDLINE_LIMIT);
        assert!(open(&at("k"), &[], Some(&long)).unwrap_err().message.contains("2047"));
        assert!(open(&at("k"), &[], Some(&long[1..])).is_ok());
    }

    #[test]
    fn section_1_4_id_opens_extra_files_once() {
        let build = build(&[("k", &bzimage()), ("seed", b"x"), ("key", b"y")]);
        let at = |name: &str| build.path().join(name).display().to_string();
        let text = format!(
            "a={{{{ ID \"{}\" }}}} b={{{{ID `{}`}}}} c={{{{ID `{0}`}}}}",
            at("seed"),
            at("key")
        );
        let generation = open(&build.path().join("k"), &[], Some(&text)).unwrap();
        let names: Vec<_> = generation.others.iter().map(Payload::name).collect();
        assert_eq!(names, ["seed", "key"]);
        assert_eq!(generation.cmdline.text(&Machine::at("u")), "a=u/other0 b=u/other1 c=u/other0");
        let missing =
            open(&build.path().join("k"), &[], Some("{{ ID \"/missing\" }}")).unwrap_err();
        assert!(missing.message.contains("the extra file /missing does not exist"), "{missing}");
        let wrong = open(&build.path().join("k"), &[], Some("{{ X }}")).unwrap_err();
        assert_eq!(wrong.code, 2, "{wrong}");
    }

    #[test]
    fn a_directory_without_script_needs_a_command_line() {
        let build = build(&[("Image", &bzimage()), ("initrd", b"cpio")]);
        assert!(open(build.path(), &[], None).unwrap_err().message.contains("netboot.ipxe"));
        assert_eq!(open(build.path(), &[], Some("init=/i")).unwrap().cmdline, "init=/i".into());
    }

    #[test]
    fn an_ipxe_script_is_a_source_with_files_and_a_command_line() {
        let build = build(&[
            ("k", &bzimage()),
            ("i", b"cpio"),
            ("own.ipxe", b"#!ipxe  \nkernel {{ ID \"FOLDER/k\" }} ${cmdline}\nboot\n"),
        ]);
        let at = |name: &str| build.path().join(name);
        let text = std::fs::read_to_string(at("own.ipxe")).unwrap();
        let text = text.replace("FOLDER", &build.path().display().to_string());
        std::fs::write(at("own.ipxe"), text).unwrap();
        let generation = open(&at("own.ipxe"), &[], Some("quiet")).unwrap();
        let Some(Script::Named(script)) = &generation.script else { panic!("{generation:?}") };
        assert_eq!(script.text(&Machine::at("u")), "kernel u/other0 ${cmdline}\nboot");
        assert_eq!(generation.cmdline, "quiet".into());
        assert_eq!(generation.files.len(), 2);
        assert!(!generation.is_followed());
        let beside = open(&at("own.ipxe"), &[at("i")], None).unwrap_err();
        assert!(beside.message.contains("initrds were named beside"), "{beside}");
        std::fs::write(at("bad.ipxe"), "#!ipxe\n{{ X }}").unwrap();
        assert_eq!(open(&at("bad.ipxe"), &[], None).unwrap_err().code, 2);
    }

    #[test]
    fn several_sources_are_a_menu_of_generations() {
        let build =
            build(&[("k", &bzimage()), ("own.ipxe", b"#!ipxe\nchain {{ ID \"FOLDER/k\" }}\n")]);
        let at = |name: &str| build.path().join(name);
        let text = std::fs::read_to_string(at("own.ipxe")).unwrap();
        let text = text.replace("FOLDER", &build.path().display().to_string());
        std::fs::write(at("own.ipxe"), text).unwrap();
        let open = |name: &str| {
            let order = Order {
                kernel: at("k"),
                cmdline: Some("quiet".to_owned()),
                menu: vec![(name.to_owned(), at("own.ipxe"))],
                ..Order::default()
            };
            super::open(&order).now_or_never().unwrap()
        };
        let whole = open("Another").unwrap();
        let names: Vec<_> = whole.menu.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["k", "Another"]);
        assert_eq!(whole.menu[0].generation.cmdline, "quiet".into());
        assert_eq!(whole.menu[1].generation.others.len(), 1);
        // A change of any of them is noticed.
        assert_eq!(whole.files.len(), 3);
        assert!(!whole.is_followed() && whole.kernel.is_none());
        assert_eq!(open("${net0/mac}").unwrap_err().code, 2);
    }

    #[test]
    fn each_source_of_a_menu_is_completed_and_its_fault_names_it() {
        let build = build(&[("k", &bzimage()), ("own.ipxe", b"#!ipxe\nshell\n")]);
        let at = |name: &str| build.path().join(name);
        let order = Order {
            kernel: at("k"),
            menu: vec![("Another".to_owned(), at("own.ipxe"))],
            ..Order::default()
        };
        let whole = super::open(&order).now_or_never().unwrap().unwrap();
        let completed = complete(whole.clone(), None, None).now_or_never().unwrap().unwrap();
        assert_eq!(completed.efi.as_ref().err(), Some(&NoEfiImage::Menu));
        let why = |number: usize| completed.menu[number].generation.efi.as_ref().err().cloned();
        assert_eq!((why(0), why(1)), (Some(NoEfiImage::Kernel), Some(NoEfiImage::Script)));
        assert_eq!(completed.programs().count(), 0);
    }

    #[test]
    fn what_is_known_of_a_machine_counts_as_long_as_it_can_become() {
        let build = build(&[("k", &bzimage())]);
        let cmdline = |length: usize| "x".repeat(length) + "{{ SERIAL }}";
        assert!(open(&build.path().join("k"), &[], Some(&cmdline(CMDLINE_LIMIT - 65))).is_ok());
        let failure = open(&build.path().join("k"), &[], Some(&cmdline(CMDLINE_LIMIT - 64)));
        assert!(failure.unwrap_err().message.contains("2047"));
    }
}
