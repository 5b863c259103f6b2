//! The file name of a read request: which machine, which loader.
//!
//! Guarantees: any octets give one of three answers; nothing of a name ever reaches a file system,
//! so that there is no way out of the served set.

use crate::{
    download::printable,
    image::{Loader, Loaders, menu_number},
    mac::MacAddr,
};

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// `<mac>/<loader>`.
    Loader(MacAddr, Loader),
    /// `<mac>/menu<N>/boot.efi`: the program of this source of a menu.
    Item(MacAddr, usize),
    /// `<mac>/autoexec.ipxe`, which an iPXE looks for beside its own binary; or in any other folder,
    /// where it looks next, and goes on at once when it is refused.
    Autoexec(Option<MacAddr>),
    /// Anything else.
    Unknown {
        /// If the name begins with one.
        mac: Option<MacAddr>,
        /// For people: printable ASCII, shortened.
        file: String,
    },
}

impl Name {
    /// Trailing 0xFF and blanks are stripped (ROMs read past DHCP option 67 without a NUL),
    /// backslashes are slashes, leading and doubled slashes and the case do not matter.
    pub fn parse(raw: &[u8], loaders: &Loaders) -> Self {
        let end = raw
            .iter()
            .rposition(|&octet| octet != 0xFF && octet != b' ')
            .map_or(0, |last| last + 1);
        let name = raw.get(..end).unwrap_or(raw).to_ascii_lowercase();
        let parts: Vec<&[u8]> = name
            .split(|octet| matches!(octet, b'/' | b'\\'))
            .filter(|part| !part.is_empty())
            .collect();
        let mac = parts
            .first()
            .and_then(|part| std::str::from_utf8(part).ok())
            .and_then(|part| part.parse().ok());
        let climbs = parts.contains(&&b".."[..]);
        match (mac, parts.as_slice()) {
            (mac, [_, b"autoexec.ipxe"]) if !climbs => return Self::Autoexec(mac),
            (_, [.., b"autoexec.ipxe"]) if !climbs => return Self::Autoexec(None),
            (Some(mac), [_, file]) => {
                let found = loaders
                    .0
                    .keys()
                    .chain([&Loader::Image])
                    .find(|loader| file.eq_ignore_ascii_case(loader.file_name().as_bytes()));
                if let Some(loader) = found {
                    return Self::Loader(mac, *loader);
                }
            }
            (Some(mac), [_, folder, file]) if *file == Loader::Image.file_name().as_bytes() => {
                if let Some(number) = std::str::from_utf8(folder).ok().and_then(menu_number) {
                    return Self::Item(mac, number);
                }
            }
            _ => {}
        }
        Self::Unknown { mac, file: printable(raw) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{image::Blob, read::Content};

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xfe]);

    fn loaders() -> Loaders {
        let blob = Blob {
            name: "undionly.kpxe".into(),
            content: Content::new(Vec::new()),
            length: 0,
            etag: String::new(),
            last_modified: String::new(),
        };
        Loaders([(Loader::Undionly, blob)].into())
    }

    #[test]
    fn wire_54_names_as_machines_write_them() {
        let loaders = loaders();
        for name in [
            &b"52-54-00-12-34-fe/undionly.kpxe"[..],
            b"52:54:00:12:34:FE/undionly.kpxe",
            b"/52-54-00-12-34-fe/undionly.kpxe",
            b"//52-54-00-12-34-fe//undionly.kpxe",
            b"\\52-54-00-12-34-fe\\undionly.kpxe",
            b"52-54-00-12-34-FE/UNDIONLY.KPXE",
            b"52-54-00-12-34-fe/undionly.kpxe\xff",
            b"52-54-00-12-34-fe/undionly.kpxe \xff\xff  ",
        ] {
            assert_eq!(
                Name::parse(name, &loaders),
                Name::Loader(MAC, Loader::Undionly),
                "{name:?}"
            );
        }
    }

    #[test]
    fn wire_54_everything_else_is_not_there() {
        let loaders = loaders();
        for (name, mac) in [
            (&b""[..], None),
            (b"undionly.kpxe", None),
            (b"../undionly.kpxe", None),
            (b"/etc/passwd", None),
            (b"\xff\xff", None),
            (b"52-54-00-12-34-fe", Some(MAC)),
            (b"52-54-00-12-34-fe/../undionly.kpxe", Some(MAC)),
            (b"52-54-00-12-34-fe/../autoexec.ipxe", Some(MAC)),
            (b"52-54-00-12-34-fe/ipxe.efi", Some(MAC)),
            (b"52-54-00-12-34-fe/sub/undionly.kpxe", Some(MAC)),
            (b"52-54-00-12-34-fe/menu01/boot.efi", Some(MAC)),
            (b"52-54-00-12-34-fe/menu1/undionly.kpxe", Some(MAC)),
            (b"52-54-00-12-34-fe/menu1/../boot.efi", Some(MAC)),
        ] {
            let Name::Unknown { mac: found, .. } = Name::parse(name, &loaders) else {
                panic!("{name:?} was found");
            };
            assert_eq!(found, mac, "{name:?}");
        }
        let odd = Name::parse(b"\x1b[2J/x", &loaders);
        let file = "?[2J/x".into();
        assert_eq!(odd, Name::Unknown { mac: None, file });
    }

    #[test]
    fn the_programs_of_a_menu_have_a_folder_each() {
        for (name, number) in [
            (&b"52-54-00-12-34-fe/menu0/boot.efi"[..], 0),
            (b"\\52-54-00-12-34-FE\\MENU17\\BOOT.EFI\xff", 17),
        ] {
            assert_eq!(Name::parse(name, &loaders()), Name::Item(MAC, number), "{name:?}");
        }
    }

    #[test]
    fn wire_39_autoexec_in_any_folder() {
        for (name, mac) in [
            (&b"autoexec.ipxe"[..], None),
            (b"/autoexec.ipxe", None),
            (b"52-54-00-12-34-fe/AUTOEXEC.ipxe", Some(MAC)),
            (b"some\\autoexec.ipxe", None),
            (b"52-54-00-12-34-fe/sub/autoexec.ipxe", None),
        ] {
            assert_eq!(Name::parse(name, &loaders()), Name::Autoexec(mac), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_read_without_panic(name in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Name::parse(&name, &Loaders::default());
        }
    }
}
