//! One file or address after the other is opened, and asked what it is: a kernel, an initrd, an extra file,
//! a script.
//!
//! Guarantees: what is opened is readable and not empty; a kernel or script is one. Asks an address for its
//! beginning alone.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;

use super::{
    cache::Cache,
    kernel::{self, HEAD, pe_machine},
    open_blob, read_head, text_blob, token, url,
};
use crate::{
    exit::{Code, Failure},
    fetch::Fetcher,
    image::{Blob, Generation, Payload, Remote, Script},
    read::{Content, Piece},
};

/// For a small file of another server to arrive.
const WHOLE: Duration = Duration::from_secs(60);
/// A script of the user's; more than this is something else.
const SCRIPT_LIMIT: u64 = 256 * 1024;

/// Opens files and asks for addresses, with one client for all.
#[derive(Default)]
pub struct Opener {
    cache: Cache,
    direct: bool,
    /// Files of this computer, and the entity tags that they have.
    pub files: Vec<(PathBuf, String)>,
}

impl Opener {
    pub fn new(direct: bool, cache: &Cache) -> Self {
        Self { cache: cache.clone(), direct, files: Vec::new() }
    }

    /// The kernel, and the machine type of its PE/COFF header.
    pub async fn kernel(&mut self, path: &Path) -> Result<(Payload, Option<u16>), Failure> {
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

    pub async fn payload(&mut self, path: &Path, role: &str) -> Result<Payload, Failure> {
        let Some(address) = address(path)? else {
            let blob = open_blob(path).map_err(|error| error.failure(role))?;
            self.files.push((path.to_owned(), blob.etag.clone()));
            return Ok(blob.into());
        };
        Ok(self.remote(address, role, 1).await?.0.into())
    }

    pub async fn others(&mut self, names: Vec<String>) -> Result<Vec<Payload>, Failure> {
        let mut others = Vec::with_capacity(names.len());
        for name in names {
            others.push(self.payload(Path::new(&name), "extra file").await?);
        }
        Ok(others)
    }

    /// What was opened, under a path of its own.
    pub fn finish(self, mut generation: Generation) -> Result<Generation, Failure> {
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
pub fn name_elsewhere(generation: &mut Generation) {
    let others = &generation.others;
    let elsewhere = |number: usize| others.get(number).and_then(Payload::elsewhere);
    generation.cmdline.name_elsewhere(elsewhere);
    if let Some(Script::AsItIs(script) | Script::Named(script)) = &mut generation.script {
        script.name_elsewhere(elsewhere);
    }
}

/// A file on a web server, of which nothing is known yet.
pub fn remote(address: Uri, cache: &Cache) -> Remote {
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
pub struct OwnScript {
    pub text: String,
    pub file: (PathBuf, String),
}

pub fn own_script(path: &Path) -> Result<Option<OwnScript>, Failure> {
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
