//! Reading the site's configuration: one file and its drop-ins, each in turn over the one before.
//!
//! Guarantees: paths are fixed, sizes bounded; a file that is not there says nothing, and anything
//! else that is wrong (unreadable, unknown key, value out of range) is an error that names file,
//! line and reason (the line is that of the key, where a value goes over several). Never reads half a configuration.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::Table;

use super::Config;
use crate::limits;

/// The configuration. Drop-ins: files with the ending `.toml` in the directory of this name with
/// `.d`, in the order of their names.
pub const FILE: &str = "/etc/portcullis/helper.toml";

/// What is wrong with the configuration: file, line and reason.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// The configuration of this host: [`FILE`] and its drop-ins; the defaults where there is none.
///
/// # Errors
/// The first thing that is wrong.
pub fn load() -> Result<Config, ConfigError> {
    load_from(Path::new(FILE))
}

/// The configuration that this one file makes.
///
/// # Errors
/// As [`load`], and when the file is not there.
pub fn check(file: &Path) -> Result<Config, ConfigError> {
    check_text(file, &read(file).map_err(unreadable(file))?)
}

/// The configuration that this text of a file makes.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_text(file: &Path, text: &str) -> Result<Config, ConfigError> {
    parse(file, text)
}

fn load_from(file: &Path) -> Result<Config, ConfigError> {
    let mut directory = file.as_os_str().to_owned();
    directory.push(".d");
    let mut whole = Table::new();
    for path in std::iter::once(file.to_owned()).chain(drop_ins(Path::new(&directory))?) {
        match read(&path) {
            Ok(text) => {
                check_text(&path, &text)?;
                whole.extend(parse::<Table>(&path, &text)?);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(&path)(error)),
        }
    }
    // Each of its values was checked, with its line.
    whole.try_into().map_err(|error: toml::de::Error| ConfigError(error.to_string()))
}

fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable(directory))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable(directory))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
        let most = limits::CONFIG_DROP_INS;
        if found.len() > most {
            return Err(unreadable(directory)(io::Error::other(format!(
                "more than {most} drop-ins"
            ))));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let most = limits::CONFIG_BYTES;
    let read = File::open(path)?.take(most.saturating_add(1)).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read <= most) {
        return Ok(text);
    }
    Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {most} bytes")))
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> ConfigError {
    move |error| ConfigError(format!("{}: cannot be read: {error}", path.display()))
}

fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| format!("{}:", line_of(text, span.start)));
        let (line, reason) = (line.unwrap_or_default(), error.message().replace('\n', ", "));
        ConfigError(format!("{}:{line} {reason}", file.display()))
    })
}

/// The line, counted from 1, that the octet at this offset is in.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count().saturating_add(1)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::{Family, Ports},
        interface::InterfaceName,
        mark::Marks,
    };

    fn read_text(text: &str) -> Result<Config, String> {
        check_text(Path::new("helper.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_is_read() {
        let config = read_text(
            r#"
            interfaces = ["enp*", "lan?"]
            http-ports = [64172, "8000-8099"]
            max-seconds = 3600
            full-dhcp = true
            leases = 10
            leases-per-user = 2
            questions-per-user = 3
            [mark]
            tag = 0x12300000
            mask = 0xfff00000
            [firewall]
            family = "ip"
            table = "filter"
            chain = "ufw-user-input"
            "#,
        )
        .unwrap();
        let name = |text| InterfaceName::parse(text).unwrap();
        for (interface, allowed) in
            [("enp3s0", true), ("enp", true), ("lan0", true), ("lan", false), ("wenp0", false)]
        {
            let matched = config.interfaces.iter().any(|glob| glob.matches(&name(interface)));
            assert_eq!(matched, allowed, "{interface}");
        }
        assert_eq!(config.http_ports, [Ports(64172..=64172), Ports(8000..=8099)]);
        assert_eq!(config.max_seconds, 3600);
        assert!(config.full_dhcp);
        assert_eq!((config.leases, config.leases_per_user, config.questions_per_user), (10, 2, 3));
        assert_eq!(config.marks, Marks::new(0x1230_0000, 0xfff0_0000).unwrap());
        let chain = config.chain.unwrap();
        assert_eq!(chain.family, Family::Ip);
        assert_eq!((chain.table.as_str(), chain.chain.as_str()), ("filter", "ufw-user-input"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("colour = 1", ":1: unknown field `colour`"),
            ("\n# 2\ninterface = [\"eth0\"]", ":3: unknown field `interface`"),
            ("interfaces = [\n \"eth0\",\n \"eth 1\"]", ":1: \"eth 1\": an interface is named by"),
            (
                "interfaces = [\"0123456789abcdef\"]",
                ":1: \"0123456789abcdef\": an interface is named by",
            ),
            ("interfaces = [\"\"]", ":1: \"\": an interface is named by"),
            ("interfaces = \"eth0\"", ":1: invalid type: string \"eth0\", expected a sequence"),
            ("\nhttp-ports = [8000,\n80]", ":2: 80: a port is 1024 to 65535"),
            ("http-ports = [\"9000-8000\"]", ":1: \"9000-8000\": a port is 1024 to 65535"),
            ("http-ports = [\"8000\"]", ":1: \"8000\": a port is 1024 to 65535"),
            ("http-ports = [\"80-9000\"]", ":1: \"80-9000\": a port is 1024 to 65535"),
            ("http-ports = [65536]", ":1: a port is a number"),
            ("max-seconds = 9", ":1: a time is 10 to 604800 seconds"),
            ("max-seconds = 604801", ":1: a time is 10 to 604800 seconds"),
            ("max-seconds = -1", ":1: invalid value: integer `-1`"),
            ("max-seconds = 99999999999", ":1: invalid value: integer `99999999999`"),
            ("full-dhcp = 1", ":1: invalid type: integer `1`, expected a boolean"),
            ("leases = 0", ":1: this number is 1 to 128"),
            ("leases-per-user = 129", ":1: this number is 1 to 128"),
            ("\nquestions-per-user = 9", ":2: this number is 1 to 8"),
            ("leases = 1\nleases = 2", ":2: duplicate key"),
            ("[mark]\ntag = 0x5a000000", ":1: missing field `mask`"),
            ("[mark]\ntag = 1\nmask = 0xff000000", ":1: tag must not be 0"),
            ("\n[mark]\ntag = 1\nmask = 0xff00ff00", ":2: mask must be 4 to 24 bits"),
            ("[mark]\ntag = 1\nmask = 2\nmore = 3", ":4: unknown field `more`"),
            ("[firewall]\nfamily = \"ip6\"", ":2: unknown variant `ip6`"),
            ("[firewall]\nfamily = \"ip\"\ntable = \"a b\"", ":3: a table or chain is named by"),
            ("[firewall]\nfamily = \"ip\"\ntable = \"\"", ":3: a table or chain is named by"),
            ("[firewall]\nfamily = \"ip\"\ntable = \"t\"", ":1: missing field `chain`"),
            ("leases 3", ":1: "),
        ] {
            let error = read_text(text).unwrap_err();
            let (file, rest) = error.split_at("helper.toml".len());
            assert_eq!(file, "helper.toml");
            assert!(rest.starts_with(expected), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_example_is_the_defaults_and_every_line_of_it_can_be_uncommented() {
        let example = include_str!("../../../systemd/helper.toml");
        assert_eq!(read_text(example).unwrap(), Config::default());
        let uncommented: Vec<&str> = example
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if !key.starts_with(' ') => key,
                _ => line,
            })
            .collect();
        let mut config = read_text(&uncommented.join("\n")).unwrap();
        // Every key is there: those that are known stand in what is said of one that is not.
        let shown = parse::<Table>(Path::new(""), &uncommented.join("\n")).unwrap();
        let known = read_text("colour = 1").unwrap_err();
        let known: BTreeSet<&str> = known.split('`').skip(3).step_by(2).collect();
        assert!(known.len() == 10 && known.contains("leases-per-user"), "{known:?}");
        assert_eq!(shown.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
        // And what it shows is the default, but for the chain, which has none.
        assert!(config.chain.take().is_some());
        assert_eq!(config, Config::default());
    }

    #[test]
    fn drop_ins_come_after_the_file_in_the_order_of_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("helper.toml");
        assert_eq!(load_from(&file).unwrap(), Config::default());
        assert!(check(&file).is_err());
        let drop_ins = directory.path().join("helper.toml.d");
        fs::create_dir(&drop_ins).unwrap();
        assert_eq!(load_from(&file).unwrap(), Config::default());

        fs::write(drop_ins.join("20-b.toml"), "leases = 3").unwrap();
        fs::write(drop_ins.join("10-a.toml"), "leases = 2\nleases-per-user = 2").unwrap();
        fs::write(drop_ins.join("30-c.toml.bak"), "leases = 4").unwrap();
        fs::write(&file, "leases = 1\nleases-per-user = 1\nquestions-per-user = 2").unwrap();
        let config = load_from(&file).unwrap();
        assert_eq!((config.leases, config.leases_per_user, config.questions_per_user), (3, 2, 2));
        assert_eq!(check(&file).unwrap().leases, 1);

        fs::write(drop_ins.join("40-d.toml"), "\nlease = 4").unwrap();
        let error = load_from(&file).unwrap_err().to_string();
        assert!(error.contains("helper.toml.d/40-d.toml:2: unknown field `lease`"), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_the_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("helper.toml");
        let refused = |expected: &str| {
            let error = load_from(&file).unwrap_err().to_string();
            assert!(error.contains("helper.toml") && error.contains(expected), "{error}");
        };
        fs::write(&file, b"# \xff").unwrap();
        refused("UTF-8");
        fs::write(&file, "#".repeat(64 * 1024)).unwrap();
        assert!(load_from(&file).is_ok());
        fs::write(&file, "#".repeat(64 * 1024 + 1)).unwrap();
        refused("longer than 65536 bytes");
        fs::remove_file(&file).unwrap();
        let drop_ins = directory.path().join("helper.toml.d");
        fs::write(&drop_ins, "").unwrap();
        refused("helper.toml.d: cannot be read");
        fs::remove_file(&drop_ins).unwrap();
        fs::create_dir(&drop_ins).unwrap();
        for number in 0..65 {
            fs::write(drop_ins.join(format!("{number}.toml")), "").unwrap();
        }
        refused("more than 64 drop-ins");
        fs::remove_dir_all(&drop_ins).unwrap();
        fs::create_dir(&file).unwrap();
        refused("cannot be read");
    }

    proptest! {
        /// P11: whatever a file says is a configuration within its limits, or an error with a line.
        #[test]
        fn p11_any_file_is_within_limits_or_wrong(
            lines in proptest::collection::vec(prop_oneof![
                ("[a-z-]{1,12}", "[ -~]{0,20}").prop_map(|(key, value)| format!("{key} = {value}")),
                (prop_oneof![Just("leases"), Just("max-seconds"), Just("questions-per-user")],
                    any::<i64>()).prop_map(|(key, value)| format!("{key} = {value}")),
                (0_u32..1_000_000).prop_map(|seconds| format!("max-seconds = {seconds}")),
                "[*?a-z0-9]{0,17}".prop_map(|glob| format!("interfaces = [\"{glob}\"]")),
                any::<u16>().prop_map(|port| format!("http-ports = [{port}]")),
                (any::<u32>(), any::<u32>())
                    .prop_map(|(tag, mask)| format!("mark = {{ tag = {tag}, mask = {mask} }}")),
                "\\PC{0,30}",
            ], 0..4)
        ) {
            match read_text(&lines.join("\n")) {
                Ok(config) => {
                    prop_assert!((10..=604_800).contains(&config.max_seconds));
                    prop_assert!((1..=128).contains(&config.leases));
                    prop_assert!((1..=8).contains(&config.questions_per_user));
                    prop_assert!(config.http_ports.iter().all(|ports| *ports.0.start() >= 1024));
                    prop_assert_ne!(config.marks.tag() & config.marks.mask(), 0);
                    prop_assert_eq!(config.marks.mask() & 0xff, 0);
                }
                Err(error) => {
                    let line = error.split(':').nth(1).and_then(|line| line.parse::<usize>().ok());
                    prop_assert!(line.is_some_and(|line| (1..=4).contains(&line)), "{}", error);
                }
            }
        }
    }
}
