//! The command line of Pixiecore's first version: flags with one dash and no command. Pure.
//!
//! Guarantees: only what that version took is read, and as Go's flag package reads it (`-flag value`,
//! `-flag=value`, one dash or two); what comes out is the same wish in today's words. Ports that
//! cannot be chosen here are taken with their usual numbers only.

use std::ffi::OsString;

/// Flags that take a value.
const VALUES: [&str; 10] = [
    "kernel",
    "initrd",
    "cmdline",
    "api",
    "api-timeout",
    "listen-addr",
    "port-dhcp",
    "port-pxe",
    "port-tftp",
    "port-http",
];

/// The arguments (with the program's name) in today's words, if they are those of the first version:
/// no command, and `-kernel` or `-api` among the flags.
#[must_use]
pub fn translate(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let (program, rest) = arguments.split_first()?;
    let mut words = rest.iter().map(|word| word.to_str());
    let mut flags = Vec::new();
    let mut debug = false;
    while let Some(word) = words.next() {
        let flag = word?.strip_prefix('-')?;
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        match (name, value) {
            ("debug", None | Some("true")) => debug = true,
            ("debug", Some("false")) => debug = false,
            _ if VALUES.contains(&name) => {
                let value = match value {
                    Some(value) => value,
                    None => words.next()??,
                };
                flags.push((name, value));
            }
            _ => return None,
        }
    }
    // The last one counts.
    let flag = |wanted| {
        let values = flags.iter().rev().filter(|(name, _)| *name == wanted);
        values.map(|(_, value)| *value).find(|value| !value.is_empty())
    };
    let usual = |name, port| flag(name).is_none_or(|value| value == port);
    if !(usual("port-dhcp", "67") && usual("port-pxe", "4011") && usual("port-tftp", "69")) {
        return None;
    }
    let mut line = Vec::new();
    match (flag("api"), flag("kernel")) {
        (Some(api), _) => {
            line.extend(["api", api]);
            line.extend(
                flag("api-timeout").into_iter().flat_map(|time| ["--api-request-timeout", time]),
            );
        }
        (None, Some(kernel)) => {
            line.extend(["boot", kernel]);
            line.extend(flag("initrd").into_iter().flat_map(|list| list.split(',')));
            line.extend(flag("cmdline").into_iter().flat_map(|text| ["--cmdline", text]));
        }
        (None, None) => return None,
    }
    line.extend(flag("listen-addr").into_iter().flat_map(|address| ["--listen-addr", address]));
    line.extend(flag("port-http").into_iter().flat_map(|port| ["--port", port]));
    line.extend(debug.then_some("--debug"));
    Some([program.clone()].into_iter().chain(line.into_iter().map(OsString::from)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> Option<String> {
        let words: Vec<OsString> =
            ["pixiecore"].into_iter().chain(line.split_whitespace()).map(OsString::from).collect();
        let words = translate(&words)?;
        Some(words[1..].iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn section_1_5_each_flag_of_the_first_version_has_its_meaning() {
        for (line, now) in [
            ("-kernel k", "boot k"),
            ("-kernel=k --initrd i1,i2 -cmdline=a=b", "boot k i1 i2 --cmdline a=b"),
            ("-kernel k -kernel k2 -debug", "boot k2 --debug"),
            ("-api http://h -api-timeout 3s", "api http://h --api-request-timeout 3s"),
            ("-api http://h -kernel k -debug=false", "api http://h"),
            (
                "-kernel k -listen-addr 10.0.0.1 -port-http 8080 -port-dhcp 67 -port-pxe=4011 -port-tftp 69",
                "boot k --listen-addr 10.0.0.1 --port 8080",
            ),
            ("-kernel k -listen-addr= -initrd=", "boot k"),
        ] {
            assert_eq!(said(line).as_deref(), Some(now), "{line}");
        }
    }

    #[test]
    fn section_1_5_anything_else_is_left_as_it_is() {
        for line in [
            "",
            "boot k",
            "boot -d k",
            "-debug",
            "--version",
            "-kernel",
            "-kernel k i",
            "-kernel k -port-dhcp 1067",
            "-kernel k -unknown x",
        ] {
            assert_eq!(said(line), None, "{line}");
        }
    }
}
