//! A directory with something to boot in it -> kernel, initrds and command line, by rules.
//!
//! Guarantees: what is taken is the only thing in the directory that the rules know; if there are
//! several, nothing is guessed and the error lists them as command lines. Reads names, and the text
//! of a netboot.ipxe; never looks deeper than the places named here.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{netboot_ipxe, open_blob, read_head};
use crate::exit::{Code, Failure};

/// A netboot.ipxe is a few lines; more than this is something else.
const SCRIPT_LIMIT: u64 = 64 * 1024;
/// More candidates than these are not listed.
const LISTED: usize = 8;

/// Folders that are looked into: the directory itself; Ubuntu's and Debian's live systems; images of
/// Debian's and Fedora's installers; a `/boot` beside a system.
const PLACES: [&str; 7] =
    ["", "casper", "live", "install", "install.amd", "images/pxeboot", "boot"];
/// Debian's netboot archive has a folder for each architecture in here.
const DEBIAN: &str = "debian-installer";

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub kernel: PathBuf,
    pub initrds: Vec<PathBuf>,
    /// A template.
    pub cmdline: String,
}

/// Finds what there is to boot in `directory`; `extra` is added to the command line.
///
/// # Errors
/// Nothing, more than one thing, or something that needs a command line of its own.
pub(super) fn find(directory: &Path, extra: Option<&str>) -> Result<Found, Failure> {
    let mut places: Vec<PathBuf> = PLACES.iter().map(|place| directory.join(place)).collect();
    places.extend(names(&directory.join(DEBIAN)).into_iter().map(|(_, path)| path));
    let mut found: Vec<(PathBuf, Vec<PathBuf>)> =
        places.iter().flat_map(|place| pairs(place)).collect();
    if found.len() > 1 {
        return Err(several(directory, &found));
    }
    let Some((kernel, initrds)) = found.pop() else {
        return Err(Failure::new(
            Code::Source,
            format!(
                "{} is a directory without a kernel (bzImage, Image, linux or vmlinuz) in it",
                directory.display()
            ),
        )
        .advise(
            "give the directory of a NixOS netboot build, or the kernel file and its initrds",
        ));
    };
    let extra = extra.map(str::trim).filter(|text| !text.is_empty());
    let own = own_cmdline(&kernel, extra.is_some())?;
    let cmdline = own.as_deref().into_iter().chain(extra).collect::<Vec<_>>().join(" ");
    Ok(Found { kernel, initrds, cmdline })
}

/// The entries of a folder by name; none if there is no such folder.
fn names(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect();
    names.sort();
    names
}

/// The kernels of a folder, each with the initrd that belongs to it.
fn pairs(folder: &Path) -> Vec<(PathBuf, Vec<PathBuf>)> {
    let names = names(folder);
    let files = |wanted: fn(&str) -> bool| -> Vec<&(String, PathBuf)> {
        let mut real = Vec::new();
        // `vmlinuz` is often a link to the one beside it.
        names
            .iter()
            .filter(|(name, path)| wanted(name) && path.is_file())
            .filter(|(_, path)| {
                let target = path.canonicalize().ok();
                let new = !real.contains(&target);
                real.push(target);
                new
            })
            .collect()
    };
    let (kernels, initrds) = (files(is_kernel_name), files(is_initrd_name));
    let version = |name: &str| name.split_once('-').map(|(_, version)| version.to_owned());
    let belongs = |kernel: &str, initrd: &str| match version(kernel) {
        Some(version) => initrd.contains(&format!("-{version}")),
        None => version(initrd).is_none(),
    };
    kernels
        .iter()
        .filter_map(|(name, kernel)| {
            let chosen = match initrds.as_slice() {
                // A NixOS build always has one: its absence is an error of its own.
                [] if is_nixos_name(name) => vec![folder.join("initrd")],
                [] => Vec::new(),
                [(_, only)] => vec![only.clone()],
                several => {
                    let mut own = several.iter().filter(|(initrd, _)| belongs(name, initrd));
                    let (_, first) = own.next()?;
                    own.next().is_none().then(|| vec![first.clone()])?
                }
            };
            Some((kernel.clone(), chosen))
        })
        .collect()
}

/// As nixpkgs names the kernel of a netboot build (nixos/release.nix, job `netboot`).
fn is_nixos_name(name: &str) -> bool {
    matches!(name, "bzImage" | "Image")
}

fn is_kernel_name(name: &str) -> bool {
    is_nixos_name(name)
        || matches!(name, "linux" | "vmlinuz" | "vmlinuz.efi")
        || name.starts_with("vmlinuz-")
}

fn is_initrd_name(name: &str) -> bool {
    (name.starts_with("initrd") || name.starts_with("initramfs")) && !name.ends_with(".sig")
}

fn several(directory: &Path, found: &[(PathBuf, Vec<PathBuf>)]) -> Failure {
    let text = format!("{} holds more than one thing to boot: name one", directory.display());
    found.iter().take(LISTED).fold(
        Failure::new(Code::Source, text),
        |failure, (kernel, initrds)| {
            let words: Vec<_> = [kernel]
                .into_iter()
                .chain(initrds)
                .map(|path| path.display().to_string())
                .collect();
            failure.advise(format!("portcullis boot {}", words.join(" ")))
        },
    )
}

/// What the layout says of the command line.
fn own_cmdline(kernel: &Path, has_more: bool) -> Result<Option<String>, Failure> {
    let folder = kernel.parent().unwrap_or(Path::new("."));
    let script = folder.join("netboot.ipxe");
    if script.exists() {
        return read_script(&script).map(Some);
    }
    let lacks = |what: String, advice: String| {
        if has_more { Ok(None) } else { Err(Failure::new(Code::Source, what).advise(advice)) }
    };
    let place = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = kernel.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let here = folder.display();
    match (place, name) {
        ("live", _) => {
            let image = folder.join("filesystem.squashfs");
            if image.exists() {
                let image = image.display().to_string();
                return Ok(Some(format!("boot=live components fetch={{{{ ID {image:?} }}}}")));
            }
            lacks(
                format!("{here} is a live system without filesystem.squashfs"),
                "give its command line with --cmdline".to_owned(),
            )
        }
        ("casper", _) => lacks(
            format!("{here} is an Ubuntu live system, which fetches the whole ISO image once more"),
            "name it: --cmdline 'ip=dhcp url={{ ID \"/path/to/ubuntu.iso\" }}'".to_owned(),
        ),
        ("pxeboot", _) => lacks(
            format!("{here} is an installer that has to be told where its packages are"),
            "tell it: --cmdline 'inst.repo=https://...'".to_owned(),
        ),
        // As a NixOS build names them, where init= stands in the script.
        (_, name) if is_nixos_name(name) => match lacks(
            format!(
                "{} does not exist, so the kernel's command line is not known",
                script.display()
            ),
            "build netboot.ipxe too (config.system.build.netbootIpxeScript)".to_owned(),
        ) {
            Err(failure) => Err(failure.advise(
                "or give the command line: --cmdline \"init=/nix/store/...-nixos-system/init\"",
            )),
            known => known,
        },
        _ => Ok(None),
    }
}

fn read_script(path: &Path) -> Result<String, Failure> {
    let fault = |what: String| Failure::new(Code::Source, format!("{}: {what}", path.display()));
    let blob = open_blob(path).map_err(|error| error.failure("script"))?;
    if blob.length > SCRIPT_LIMIT {
        return Err(fault(format!("larger than {SCRIPT_LIMIT} octets: that is no netboot.ipxe")));
    }
    let text = read_head(&blob, SCRIPT_LIMIT).map_err(|error| fault(error.to_string()))?;
    let text = String::from_utf8(text).map_err(|_| fault("not a text".to_owned()))?;
    netboot_ipxe::cmdline(&text).map_err(|error| {
        fault(error.to_string()).advise("or name the kernel, the initrd and --cmdline yourself")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        directory
    }

    /// Kernel, initrds and command line, with paths as they are below the directory.
    fn found(files: &[&str], extra: Option<&str>) -> Result<String, Failure> {
        let directory = tree(files);
        let found = find(directory.path(), extra)?;
        let words: Vec<_> = [&found.kernel]
            .into_iter()
            .chain(&found.initrds)
            .map(|path| path.strip_prefix(directory.path()).unwrap().display().to_string())
            .collect();
        let below = format!("{}/", directory.path().display());
        Ok(format!("{} | {}", words.join(" "), found.cmdline.replace(&below, "")))
    }

    #[test]
    fn each_known_layout_is_found_by_its_names() {
        for (files, extra, right) in [
            (&["bzImage", "initrd", "more"][..], Some(" init=/i "), "bzImage initrd | init=/i"),
            (&["linux", "initrd.gz", "pxelinux.0"], None, "linux initrd.gz | "),
            (
                &[
                    "debian-installer/amd64/linux",
                    "debian-installer/amd64/initrd.gz",
                    "version.info",
                ],
                Some("priority=low"),
                "debian-installer/amd64/linux debian-installer/amd64/initrd.gz | priority=low",
            ),
            (
                &["vmlinuz-6.1", "initrd.img-6.1", "System.map-6.1"],
                None,
                "vmlinuz-6.1 initrd.img-6.1 | ",
            ),
            (
                &["live/vmlinuz", "live/initrd.img", "live/filesystem.squashfs"],
                Some("quiet"),
                "live/vmlinuz live/initrd.img | boot=live components \
                 fetch={{ ID \"live/filesystem.squashfs\" }} quiet",
            ),
            (
                &["casper/vmlinuz", "casper/initrd"],
                Some("url=u"),
                "casper/vmlinuz casper/initrd | url=u",
            ),
            (&["vmlinuz"], None, "vmlinuz | "),
        ] {
            assert_eq!(found(files, extra).unwrap(), right);
        }
    }

    #[test]
    fn several_are_listed_and_none_is_guessed() {
        let files = [
            "debian-installer/amd64/linux",
            "debian-installer/amd64/initrd.gz",
            "debian-installer/arm64/linux",
            "debian-installer/arm64/initrd.gz",
        ];
        let failure = found(&files, None).unwrap_err();
        assert_eq!((failure.code, failure.advice.len()), (30, 2), "{failure}");
        assert!(failure.advice[1].ends_with("arm64/initrd.gz"), "{:?}", failure.advice);
        let failure = found(&["vmlinuz-1", "vmlinuz-2", "initrd-1", "initrd-2"], None).unwrap_err();
        let [one, two] = failure.advice.as_slice() else { panic!("{:?}", failure.advice) };
        assert!(one.ends_with("/initrd-1") && two.ends_with("/initrd-2"), "{:?}", failure.advice);
        // Which initrd belongs to it is not known.
        let failure = found(&["vmlinuz", "initrd-1", "initrd-2"], None).unwrap_err();
        assert!(failure.message.contains("without a kernel"), "{failure}");
    }

    #[test]
    fn a_link_to_the_kernel_beside_it_is_the_same_kernel() {
        let directory = tree(&["vmlinuz-6.1", "initrd.img-6.1"]);
        for (link, target) in [("vmlinuz", "vmlinuz-6.1"), ("initrd.img", "initrd.img-6.1")] {
            std::os::unix::fs::symlink(target, directory.path().join(link)).unwrap();
        }
        assert_eq!(find(directory.path(), None).unwrap().initrds.len(), 1);
    }

    #[test]
    fn what_cannot_boot_without_more_says_what_it_needs() {
        for (files, word) in [
            (&["casper/vmlinuz", "casper/initrd"][..], "url="),
            (&["images/pxeboot/vmlinuz", "images/pxeboot/initrd.img"], "inst.repo="),
            (&["live/vmlinuz", "live/initrd.img"], "--cmdline"),
            (&["Image", "initrd"], "netboot.ipxe"),
        ] {
            let failure = found(files, None).unwrap_err();
            assert!(failure.advice.join(" ").contains(word), "{failure}");
        }
    }
}
