//! iPXE's own reading of a script's `boot` line (ipxe: src/core/exec.c, src/core/settings.c), for the
//! tests and for fuzzing, which includes this file.

use std::collections::HashMap;

/// What follows `boot`: words up to a terminator, settings of the script replaced, joined by blanks.
pub fn as_ipxe_reads(script: &str) -> String {
    let mut settings = HashMap::new();
    for line in script.lines().filter_map(|line| line.strip_prefix("set ")) {
        let (name, hex) = line.split_once(":hex ").unwrap();
        let octet = u8::from_str_radix(hex, 16).unwrap();
        settings.insert(format!("{name}:string"), char::from(octet).to_string());
    }
    let boot = script.lines().find_map(|line| line.strip_prefix("boot ")).unwrap();
    let words = boot.split([' ', '\t', '\r', '\x0b', '\x0c']).filter(|word| !word.is_empty());
    words
        .take_while(|word| !matches!(*word, "||" | "&&" | ";") && !word.starts_with('#'))
        .map(|word| expand(word, &settings))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last `${` before the first `}` that follows one, replaced until there is none.
pub fn expand(word: &str, settings: &HashMap<String, String>) -> String {
    let mut word = word.to_owned();
    while let Some(first) = word.find("${") {
        let Some(end) = word[first..].find('}').map(|end| first + end) else {
            break;
        };
        let start = word[..end].rfind("${").unwrap();
        let value = settings.get(&word[start + 2..end]).cloned().unwrap_or_default();
        word.replace_range(start..=end, &value);
    }
    word
}
