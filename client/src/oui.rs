//! Who made a network card, by the first three octets of its address.
//!
//! The names are IEEE's list (MA-L), as the system's packages have it: Debian's `ieee-data`, `hwdata`
//! elsewhere. Guarantees: it is read once, when the first machine asks, and kept in some 2 MiB at most;
//! where there is no list, nobody has a name. Trusts the list to be one; a line that is not of its
//! form is passed over.

use std::{
    fs::File,
    io::{BufRead, BufReader},
};

use crate::mac::MacAddr;

/// The file that the package fixed when it was built (NixOS: that of pkgs.hwdata).
const BUILT_IN: Option<&str> = option_env!("PORTCULLIS_OUI");
/// Debian, Ubuntu; Fedora, Arch; NixOS' system profile.
const SYSTEM: [&str; 3] = [
    "/usr/share/ieee-data/oui.txt",
    "/usr/share/hwdata/oui.txt",
    "/run/current-system/sw/share/hwdata/oui.txt",
];
/// Assignments that are kept: twice as many as there are (2026: 39,000).
const ASSIGNMENTS: usize = 80_000;
/// Octets of a name that are kept, and of a line that are looked at.
const NAME: usize = 48;
const LINE: usize = 256;
/// The bit of the first octet that says that nobody assigned the address (IEEE 802, section 8.4).
const LOCAL: u8 = 0x02;
/// Holders who are nobody's maker: blocks that are divided further, and those who want no name.
const NOBODY: [&str; 2] = ["IEEE Registration Authority", "Private"];

/// The list, read when it is first needed.
#[derive(Debug, Default)]
pub struct Vendors {
    places: Vec<String>,
    list: Option<List>,
}

/// Names one after the other in one text, and where each assignment's begins and ends, by prefix.
#[derive(Debug, Default)]
struct List {
    names: String,
    assignments: Vec<(u32, usize, usize)>,
}

impl Vendors {
    /// The system's list. Reads nothing yet.
    #[must_use]
    pub fn system() -> Self {
        let places = BUILT_IN.into_iter().chain(SYSTEM).map(str::to_owned).collect();
        Self { places, list: None }
    }

    /// The maker's name. None for an address that was made up, such as a virtual machine's.
    pub fn name(&mut self, mac: MacAddr) -> Option<&str> {
        let [first, second, third, ..] = mac.0;
        if first & LOCAL != 0 {
            return None;
        }
        let places = &self.places;
        let list = self.list.get_or_insert_with(|| {
            let open = places.iter().find_map(|path| File::open(path).ok());
            open.map(|file| List::read(BufReader::new(file))).unwrap_or_default()
        });
        list.name(u32::from_be_bytes([0, first, second, third]))
    }
}

impl List {
    /// Reads lines such as `00-22-72   (hex)\t\tAmerican Micro-Fuel Device Corp.`, until one cannot be read.
    fn read(mut text: impl BufRead) -> Self {
        let mut list = Self::default();
        let mut line = Vec::new();
        while list.assignments.len() < ASSIGNMENTS {
            line.clear();
            match text.read_until(b'\n', &mut line) {
                Ok(count) if count > 0 => {}
                _ => break,
            }
            if let Some((prefix, name)) = line.get(..line.len().min(LINE)).and_then(assignment) {
                let start = list.names.len();
                list.names.extend(name.chars().take(NAME));
                list.assignments.push((prefix, start, list.names.len()));
            }
        }
        list.assignments.sort_unstable();
        list
    }

    fn name(&self, prefix: u32) -> Option<&str> {
        let found = self.assignments.binary_search_by_key(&prefix, |(prefix, ..)| *prefix).ok()?;
        let (_, start, end) = self.assignments.get(found)?;
        self.names.get(*start..*end)
    }
}

/// The prefix and the name in a line of the list, if it is one that says both.
fn assignment(line: &[u8]) -> Option<(u32, &str)> {
    let (prefix, name) = str::from_utf8(line).ok()?.split_once("(hex)")?;
    let digits = prefix.trim().replace('-', "");
    let prefix = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 6)?;
    let name = name.trim();
    let is_maker = !name.is_empty() && !NOBODY.contains(&name) && !name.contains(char::is_control);
    is_maker.then_some((prefix, name))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const TEXT: &str = "OUI/MA-L                Organization\r\n\r\n\
        D0-50-99   (hex)\t\tASRock Incorporation\r\nD05099     (base 16)\t\tASRock Incorporation\r\n\
        \t\t\t\t2F., No. 37, Sec. 2\r\n\r\n\
        00-22-72   (hex)\t\tAmerican Micro-Fuel Device Corp.\r\n\
        00-1B-C5   (hex)\t\tIEEE Registration Authority\r\n\
        00-1B-C6   (hex)\t\tbell\u{7}ringer\r\n\
        00-1B-C7-00   (hex)\t\ttoo long\r\n\
        zz-1B-C7   (hex)\t\tno number\r\n";

    #[test]
    fn a_card_has_its_makers_name() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(TEXT.as_bytes()).expect("written");
        let places = vec!["/nowhere".to_owned(), file.path().display().to_string()];
        let mut vendors = Vendors { places, list: None };
        let mut name = |octets: [u8; 6]| vendors.name(MacAddr(octets)).map(str::to_owned);
        assert_eq!(name([0xd0, 0x50, 0x99, 1, 2, 3]).as_deref(), Some("ASRock Incorporation"));
        assert_eq!(
            name([0, 0x22, 0x72, 0xff, 0, 0]).as_deref(),
            Some("American Micro-Fuel Device Corp.")
        );
        for unknown in [
            [0xd0, 0x50, 0x98, 1, 2, 3],
            [0, 0x1b, 0xc5, 0, 0, 0],
            [0, 0x1b, 0xc6, 0, 0, 0],
            [0, 0x1b, 0xc7, 0, 0, 0],
            // Made up, whatever the list says.
            [0xd2, 0x50, 0x99, 1, 2, 3],
        ] {
            assert_eq!(name(unknown), None, "{unknown:x?}");
        }
    }

    #[test]
    fn without_a_list_nobody_has_a_name() {
        let mut vendors = Vendors { places: vec!["/nowhere".to_owned()], list: None };
        assert_eq!(vendors.name(MacAddr([0xd0, 0x50, 0x99, 1, 2, 3])), None);
        assert_eq!(Vendors::default().name(MacAddr([0; 6])), None);
    }

    #[test]
    fn names_are_cut_and_lists_end() {
        let long = format!("D0-50-99   (hex)\t\t{}\n", "\u{e9}".repeat(100));
        let list = List::read(long.as_bytes());
        assert_eq!(list.name(0xd0_50_99).map(|name| name.chars().count()), Some(NAME));
        let endless: String = (0..ASSIGNMENTS + 5)
            .map(|number| {
                let [_, a, b, c] = u32::try_from(number).unwrap_or_default().to_be_bytes();
                format!("{a:02X}-{b:02X}-{c:02X}   (hex)\t\tx\n")
            })
            .collect();
        assert_eq!(List::read(endless.as_bytes()).assignments.len(), ASSIGNMENTS);
    }
}
