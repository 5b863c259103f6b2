//! What the boot ROM of a Raspberry Pi fetches by TFTP: a folder of files, under names of its own.
//!
//! Guarantees: every file was opened once, at the start, so that nothing of a request's name reaches
//! the file system; at most 600 of them. Trusts the folder to be what the user wants such
//! machines to run.

use std::{collections::BTreeMap, fs, io, net::Ipv4Addr, path::Path};

use crate::{
    exit::{Code, Failure},
    image::Blob,
    mac::MacAddr,
    source::open_blob,
};

/// Files in a folder. Raspberry Pi OS has some 400, and a process may have 1,024 descriptors open.
const FILES: usize = 600;
/// Folders in folders: `overlays` is one.
const DEPTH: usize = 4;
/// Of these the ROM, or what it has loaded, asks for the first one that it knows; none of them, and
/// it is no such folder.
const FIRST: [&str; 4] = ["bootcode.bin", "start.elf", "start4.elf", "config.txt"];

/// The files by their names below the folder, in lower case, with slashes.
#[derive(Clone, Debug, Default)]
pub struct Folder(BTreeMap<String, Blob>);

impl Folder {
    /// Opens every file below `directory`. Empty ones are left out: they are marks for the system
    /// that is installed there, and no ROM asks for them.
    ///
    /// # Errors
    /// [`Code::Source`]: it cannot be read, is too large, or is no such folder.
    pub fn open(directory: &Path) -> Result<Self, Failure> {
        let mut folder = Self::default();
        folder.add(directory, "", DEPTH)?;
        let names = folder.0.keys().filter_map(|name| name.rsplit('/').next());
        if names.into_iter().any(|name| FIRST.contains(&name)) {
            return Ok(folder);
        }
        let text = format!(
            "{} has no boot files of a Raspberry Pi (none of {})",
            directory.display(),
            FIRST.join(", ")
        );
        Err(Failure::new(Code::Source, text)
            .advise("--rpi takes the folder that such a system has at /boot/firmware"))
    }

    fn add(&mut self, directory: &Path, prefix: &str, depth: usize) -> Result<(), Failure> {
        let failed = |error: io::Error| {
            let text = format!("the folder {} cannot be read: {error}", directory.display());
            Failure::new(Code::Source, text)
        };
        for entry in fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let name = format!("{prefix}{}", name.to_ascii_lowercase());
            let facts = fs::metadata(&path).map_err(failed)?;
            if facts.is_dir() && depth > 0 {
                self.add(&path, &format!("{name}/"), depth - 1)?;
            } else if facts.is_file() && facts.len() > 0 {
                if self.0.len() >= FILES {
                    let text = format!("{} has more than {FILES} files", directory.display());
                    return Err(Failure::new(Code::Source, text));
                }
                let blob = open_blob(&path).map_err(|error| error.failure("boot file"))?;
                self.0.insert(name, blob);
            }
        }
        Ok(())
    }

    /// Whether there is nothing, so that such machines are left alone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The file that a request names. The ROM puts a folder of its own in front, named by the
    /// machine's serial number or address, and does without it after a refusal (Raspberry Pi
    /// documentation, "Network boot flow"): such a folder if there is one, or the same files for all.
    #[must_use]
    pub fn find(&self, raw: &[u8]) -> Option<&Blob> {
        let name = std::str::from_utf8(raw).ok()?.to_ascii_lowercase();
        let parts: Vec<&str> = name.split(['/', '\\']).filter(|part| !part.is_empty()).collect();
        let of_machine = |part: &str| {
            let serial = part.len() == 8 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            serial || part.parse::<MacAddr>().is_ok()
        };
        self.0.get(&parts.join("/")).or_else(|| match parts.as_slice() {
            [first, rest @ ..] if of_machine(first) => self.0.get(&rest.join("/")),
            _ => None,
        })
    }
}

/// The hardware address of a neighbour on an interface, if the kernel knows it (proc_net(5)): names
/// of this ROM do not tell it, and the machine has just asked for ours by ARP.
#[must_use]
pub fn neighbour(address: Ipv4Addr, interface: &str) -> Option<MacAddr> {
    let table = fs::read_to_string("/proc/net/arp").ok()?;
    table.lines().find_map(|line| entry(line, address, interface))
}

/// One line: address, type, flags, hardware address, mask, device.
fn entry(line: &str, address: Ipv4Addr, interface: &str) -> Option<MacAddr> {
    let mut columns = line.split_ascii_whitespace();
    let (at, mac, device) = (columns.next()?, columns.nth(2)?, columns.nth(1)?);
    let mac: MacAddr = mac.parse().ok()?;
    let known = mac != MacAddr([0; 6]);
    (at.parse() == Ok(address) && device == interface && known).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> (tempfile::TempDir, Result<Folder, Failure>) {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        let folder = Folder::open(directory.path());
        (directory, folder)
    }

    #[test]
    fn wire_21_files_are_found_below_the_serial_number_and_without_it() {
        let (directory, folder) =
            folder(&["start4.elf", "overlays/README", "0badcafe/config.txt", "config.txt"]);
        let folder = folder.unwrap();
        // What was opened stays.
        fs::remove_dir_all(directory.path()).unwrap();
        let found = |name: &str| {
            let blob = folder.find(name.as_bytes())?;
            Some((blob.name.clone(), blob.length))
        };
        for (name, file, length) in [
            ("start4.elf", "start4.elf", 10),
            ("d83add12/start4.elf", "start4.elf", 10),
            ("/D83ADD12//START4.elf", "start4.elf", 10),
            ("dc-a6-32-01-02-03/start4.elf", "start4.elf", 10),
            ("d83add12/overlays/readme", "README", 15),
            ("0badcafe/config.txt", "config.txt", 19),
            ("d83add12/config.txt", "config.txt", 10),
            ("0badcafe/start4.elf", "start4.elf", 10),
        ] {
            assert_eq!(found(name), Some((file.to_owned(), length)), "{name}");
        }
        for name in [
            "",
            "/",
            "d83add12",
            "d83add12/",
            "bootsig.bin",
            "../start4.elf",
            "d83add12/../start4.elf",
            "other/start4.elf",
            "d83add12/d83add12/start4.elf",
            "overlays",
        ] {
            assert_eq!(found(name), None, "{name}");
        }
        assert!(folder.find(b"\xffstart4.elf").is_none());
        assert!(!folder.is_empty() && Folder::default().is_empty());
    }

    #[test]
    fn a_folder_that_is_none_is_refused_and_empty_files_are_left_out() {
        let (_directory, none) = folder(&["vmlinuz", "initrd"]);
        let failure = none.unwrap_err();
        assert_eq!(failure.code, 30);
        assert!(failure.message.contains("bootcode.bin"), "{failure}");
        assert_eq!(Folder::open(Path::new("/nonexistent")).unwrap_err().code, 30);
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.txt"), "arm_64bit=1").unwrap();
        fs::write(directory.path().join("ssh"), "").unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        assert!(folder.find(b"config.txt").is_some() && folder.find(b"ssh").is_none());
        for number in 0..FILES {
            fs::write(directory.path().join(format!("{number}.dtbo")), "x").unwrap();
        }
        let failure = Folder::open(directory.path()).unwrap_err();
        assert!(failure.message.contains("600 files"), "{failure}");
    }

    #[test]
    fn a_neighbour_is_one_that_the_kernel_knows_on_this_interface() {
        let address = Ipv4Addr::new(192, 0, 2, 9);
        for (line, known) in [
            ("192.0.2.9   0x1  0x2  dc:a6:32:c2:1f:fe  *  eth0", true),
            ("192.0.2.9   0x1  0x2  dc:a6:32:c2:1f:fe  *  eth1", false),
            ("192.0.2.99  0x1  0x2  dc:a6:32:c2:1f:fe  *  eth0", false),
            ("192.0.2.9   0x1  0x0  00:00:00:00:00:00  *  eth0", false),
            ("IP address  HW type  Flags  HW address  Mask  Device", false),
            ("192.0.2.9", false),
        ] {
            let found = entry(line, address, "eth0");
            let mac = MacAddr([0xdc, 0xa6, 0x32, 0xc2, 0x1f, 0xfe]);
            assert_eq!(found, known.then_some(mac), "{line}");
        }
    }
}
