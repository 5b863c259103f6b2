//! What a machine's screen says when a network boot stops, and what it means here: codes of PXE ROMs
//! and UEFI firmware, numbers of iPXE, words. All texts are data, in `data/codes.json`; the advice for
//! a machine that has stopped (`machines::advice`) is taken from there as well, so that both say the
//! same. Pure. What is looked up comes from the command line and is shown nowhere by this file.

use std::{cmp::Reverse, collections::BTreeMap, sync::LazyLock};

use serde::{Deserialize, Serialize};

/// Matches by words that are still shown whole; of more, one has to be chosen.
const FEW: usize = 3;
/// How many are named where none fits.
const NEAREST: usize = 5;
/// Characters of what is looked up that count.
const LONGEST: usize = 200;

/// Who shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Speaker {
    /// The network card's boot ROM in a BIOS machine.
    Bios,
    /// UEFI firmware that boots by PXE.
    Uefi,
    /// UEFI firmware that boots by HTTP.
    Http,
    /// UEFI firmware, of any program that it starts.
    Status,
    /// Whatever loads by TFTP.
    Tftp,
    /// iPXE.
    Ipxe,
}

impl Speaker {
    /// All, in the order in which they are listed.
    pub const ALL: [Self; 6] =
        [Self::Bios, Self::Uefi, Self::Http, Self::Status, Self::Tftp, Self::Ipxe];

    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bios => "the network card's ROM (BIOS)",
            Self::Uefi => "UEFI firmware, PXE",
            Self::Http => "UEFI firmware, HTTP boot",
            Self::Status => "UEFI firmware, or shim",
            Self::Tftp => "a program that loads by TFTP",
            Self::Ipxe => "iPXE",
        }
    }
}

/// Something that a screen shows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name: `PXE-E53`; `ipxe-4c0a6` for the numbers of iPXE that begin so; the words themselves,
    /// `access-denied`.
    pub code: String,
    /// Who shows it.
    pub by: Vec<Speaker>,
    /// The words beside the code, in the source's spelling.
    pub text: String,
    /// What has happened.
    pub meaning: String,
    /// Keys of [`Data::reasons`], most likely first.
    reasons: Vec<String>,
    /// Keys of [`Data::sources`].
    sources: Vec<String>,
}

impl Entry {
    /// Likely reasons, most likely first.
    pub fn reasons(&self) -> impl Iterator<Item = &'static Reason> {
        self.reasons.iter().filter_map(|key| data().reasons.get(key))
    }

    /// Documents and source files that it is described in.
    pub fn sources(&self) -> impl Iterator<Item = &'static str> {
        self.sources.iter().filter_map(|key| data().sources.get(key)).map(String::as_str)
    }

    /// As a screen shows it: a code as it is, words in quotation marks.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.code.starts_with("PXE-") {
            true => self.code.clone(),
            false => format!("\"{}\"", self.text),
        }
    }
}

/// A reason, and what to do about it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// The reason.
    pub reason: String,
    /// What to try.
    #[serde(rename = "try")]
    pub remedy: String,
}

impl Reason {
    /// Both, as one text.
    #[must_use]
    pub fn advice(&self) -> String {
        format!("{} {}", self.reason, self.remedy)
    }
}

/// A step at which a machine stopped.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The step, in words.
    pub step: String,
    /// Keys of [`Data::reasons`], most likely first.
    pub reasons: Vec<String>,
    /// Codes of the entries that the screen shows most likely, by who asked last.
    #[serde(default)]
    pub screen: BTreeMap<Speaker, Vec<String>>,
    /// Why it shows none.
    #[serde(default, rename = "silent")]
    _silent: String,
}

/// The steps at which machines stop. A data file without one of them is refused as a whole.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "each says in `step` what it is")]
pub struct Stops {
    pub address_not_taken: Stop,
    pub no_dhcp_server: Stop,
    pub script_not_fetched: Stop,
    pub boot_server_not_asked: Stop,
    pub efi_not_fetched: Stop,
    pub folder_not_fetched: Stop,
    pub loader_not_fetched_uefi: Stop,
    pub loader_not_fetched_bios: Stop,
    pub boot_server_no_tftp: Stop,
    pub loader_stopped: Stop,
    pub loaded_by_ipxe: Stop,
    pub loaded_chain: Stop,
    pub loaded_uefi: Stop,
    pub loaded_bios: Stop,
    pub script_stopped: Stop,
    pub no_kernel: Stop,
    pub no_initrd: Stop,
    pub efi_stopped: Stop,
    pub kernel_stopped: Stop,
    pub returned_unsigned: Stop,
    pub returned_signed: Stop,
    pub returned_system: Stop,
    pub unheard_unsigned: Stop,
    pub unheard_signed: Stop,
}

/// Everything.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Where the entries are described.
    sources: BTreeMap<String, String>,
    /// All reasons.
    pub reasons: BTreeMap<String, Reason>,
    /// Where machines stop.
    pub stops: Stops,
    /// What screens show, in the order in which it is listed.
    pub codes: Vec<Entry>,
}

/// The data. A test reads it, too: it is never empty in a program whose tests have passed.
pub fn data() -> &'static Data {
    static DATA: LazyLock<Data> = LazyLock::new(|| parse().unwrap_or_default());
    &DATA
}

fn parse() -> serde_json::Result<Data> {
    serde_json::from_str(include_str!("../data/codes.json"))
}

/// The entry of this name.
pub fn entry(code: &str) -> Option<&'static Entry> {
    data().codes.iter().find(|entry| entry.code == code)
}

/// What fits `asked`: a code in any spelling (`pxe-e53`, `E53`), a number of iPXE or the address that it
/// shows, or words of the screen. Several if a code has several meanings; none if nothing fits, or too
/// much.
#[must_use]
pub fn find(asked: &str) -> Vec<&'static Entry> {
    let codes = &data().codes;
    if let Some(number) = ipxe_number(asked) {
        let begins = |entry: &&Entry| {
            entry.code.strip_prefix("ipxe-").is_some_and(|digits| number.starts_with(digits))
        };
        return codes
            .iter()
            .filter(begins)
            .max_by_key(|entry| entry.code.len())
            .into_iter()
            .collect();
    }
    let words = words(asked);
    let all = |fits: &dyn Fn(&Entry) -> bool| -> Vec<_> {
        codes.iter().filter(|entry| fits(entry)).collect()
    };
    let is_code = |entry: &Entry| {
        let code = self::words(&entry.code);
        let short = code.strip_prefix("pxe-").unwrap_or(&code);
        let rest = words.strip_prefix("pxe-").unwrap_or(&words).strip_prefix(short);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let is_text = |entry: &Entry| self::words(&entry.text) == words;
    let by_words = |entry: &Entry| {
        let text = self::words(&entry.text);
        let within =
            |outer: &str, inner: &str| format!("-{outer}-").contains(&format!("-{inner}-"));
        words.len() >= 4 && within(&text, &words) || text.len() >= 6 && within(&words, &text)
    };
    let found = [all(&is_code), all(&is_text)].into_iter().find(|found| !found.is_empty());
    found.unwrap_or_else(|| {
        let found = all(&by_words);
        if found.len() <= FEW { found } else { Vec::new() }
    })
}

/// The entries that are most like `asked`, best first.
#[must_use]
pub fn nearest(asked: &str) -> Vec<&'static Entry> {
    let asked = match ipxe_number(asked) {
        Some(number) => format!("ipxe-{number}"),
        None => words(asked),
    };
    let likeness = |name: &str| {
        let name = words(name);
        let begin =
            |name: &str| name.chars().zip(asked.chars()).take_while(|(a, b)| a == b).count();
        let short = begin(name.strip_prefix("pxe-").unwrap_or(&name));
        (Reverse(begin(&name).max(short)), distance(&name, &asked))
    };
    let mut all: Vec<_> = data().codes.iter().collect();
    all.sort_by_cached_key(|entry| likeness(&entry.code).min(likeness(&entry.text)));
    all.truncate(NEAREST);
    all
}

/// The number in an address of ipxe.org, or one of six to eight hexadecimal digits. Lower case, without
/// `0x`.
#[must_use]
pub fn ipxe_number(asked: &str) -> Option<String> {
    let asked: String = asked.trim().chars().take(LONGEST).collect::<String>().to_ascii_lowercase();
    let number = match asked.split_once("ipxe.org/") {
        Some((_, path)) => path
            .strip_prefix("err/")
            .unwrap_or(path)
            .split(|character: char| !character.is_ascii_hexdigit())
            .next()?,
        None => asked.strip_prefix("0x").unwrap_or(&asked),
    };
    let hexadecimal = number.chars().all(|character| character.is_ascii_hexdigit());
    ((6..=8).contains(&number.len()) && hexadecimal).then(|| number.to_owned())
}

/// Lower case, with one hyphen in place of all that is neither letter nor digit.
fn words(text: &str) -> String {
    let words: Vec<_> = text
        .split(|character: char| !character.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    words.join("-").to_lowercase().chars().take(LONGEST).collect()
}

/// Characters to insert, remove or replace to get from one to the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (line, a) in one.chars().enumerate() {
        let mut before = line;
        let mut left = line + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(other.chars()) {
            let above = *cell;
            let best = (before + usize::from(a != b)).min(above + 1).min(left + 1);
            (before, left) = (above, best);
            *cell = best;
        }
        row[0] = line + 1;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
