//! Text with the addresses of files in it, `{{ ID "path" }}` and `{{ URL "address" }}`, and with what
//! is known of the machine that it is made for, such as `{{ MAC }}`.
//!
//! Guarantees: pure; what a machine says of itself is reduced to letters, digits and `.`, `-`, `_`,
//! `:` ([`Said`]), so that it can be no more than a part of one word, for iPXE, for the kernel and in
//! an address. The language is what Pixiecore's command lines use of Go's text/template: one function
//! with one string, or a string alone, with `{{-` and `-}}` taking the blanks beside them away; and
//! our own names. Anything else between the braces is an error, never passed on.

use crate::mac::MacAddr;

/// Longest text that is taken from a machine, octets.
const SAID: usize = 64;

/// What a machine said of itself, made harmless: what is not a letter, a digit, or one of `.-_:` is
/// written as `_`, and what goes beyond 64 octets is cut off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(String);

impl Said {
    /// Takes any octets.
    #[must_use]
    pub fn new(octets: &[u8]) -> Self {
        let harmless = |octet: &u8| match octet {
            b'.' | b'-' | b'_' | b':' => char::from(*octet),
            octet if octet.is_ascii_alphanumeric() => char::from(*octet),
            _ => '_',
        };
        Self(octets.iter().take(SAID).map(harmless).collect())
    }

    /// As long as it can become.
    #[must_use]
    pub fn longest() -> Self {
        Self("x".repeat(SAID))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a machine says of itself; empty where it has said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// As SMBIOS has it, in its usual form (DHCP option 97).
    pub uuid: Said,
    /// `bios`, or the processor of a UEFI machine as iPXE names it (DHCP option 93).
    pub arch: Said,
    /// SMBIOS' serial number of the system: known of machines that run iPXE.
    pub serial: Said,
    /// The name that the network's DHCP server gave it: known of machines that run iPXE.
    pub hostname: Said,
}

/// The machine that a text is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What its files' addresses begin with: `http://ADDRESS:PORT/...`, without a slash at the end.
    pub url: String,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// What it says of itself.
    pub identity: Identity,
}

impl Machine {
    /// Nobody in particular.
    #[must_use]
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned(), mac: MacAddr([0; 6]), identity: Identity::default() }
    }

    fn value(&self, variable: Variable) -> String {
        match variable {
            Variable::Server => {
                let host = self.url.split('/').nth(2).unwrap_or_default();
                host.split(':').next().unwrap_or_default().to_owned()
            }
            Variable::Mac => self.mac.to_string(),
            Variable::Uuid => self.identity.uuid.0.clone(),
            Variable::Arch => self.identity.arch.0.clone(),
            Variable::Serial => self.identity.serial.0.clone(),
            Variable::Hostname => self.identity.hostname.0.clone(),
        }
    }
}

/// Text, and numbers of files and names of values between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The number of an extra file of the generation, and how its name ends: some systems look at
    /// the end of an address to know what they get.
    File(usize, String),
    Value(Variable),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Server,
    Mac,
    Uuid,
    Arch,
    Serial,
    Hostname,
}

/// The names of values, as they are written between the braces.
const VARIABLES: [(&str, Variable); 6] = [
    ("SERVER", Variable::Server),
    ("MAC", Variable::Mac),
    ("UUID", Variable::Uuid),
    ("ARCH", Variable::Arch),
    ("SERIAL", Variable::Serial),
    ("HOSTNAME", Variable::Hostname),
];

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// No `}}`.
    #[error("\"{{{{\" without \"}}}}\" after it")]
    Open,
    /// Not the function that there is, with one string, nor the name of a value.
    #[error(
        "{{{{{found}}}}} is not known here: write {{{{ {function} \"...\" }}}}, or one of SERVER, MAC, \
         UUID, ARCH, SERIAL and HOSTNAME between the braces"
    )]
    Unknown {
        /// What stands between the braces.
        found: String,
        /// The function that there is.
        function: &'static str,
    },
}

impl Template {
    /// Reads a template. `file` is called with each argument of `function` (`ID` or `URL`), and
    /// says which number the file has. Blanks at both ends are dropped.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn parse(
        text: &str,
        function: &'static str,
        mut file: impl FnMut(String) -> usize,
    ) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text.trim();
        while let Some((before, after)) = rest.split_once("{{") {
            let trimmed = after.strip_prefix("- ");
            let inside = trimmed.unwrap_or(after).trim_start();
            let unknown = || TemplateError::Unknown {
                found: after.split("}}").next().unwrap_or_default().to_owned(),
                function,
            };
            let Some((what, tail)) = action(inside, function) else {
                return Err(if after.contains("}}") { unknown() } else { TemplateError::Open });
            };
            let tail_bare = tail.trim_start();
            let (after, trim_after) = match tail_bare.strip_prefix("}}") {
                Some(after) => (after, false),
                None => match tail_bare.strip_prefix("-}}") {
                    Some(after) if tail.starts_with(char::is_whitespace) => (after, true),
                    _ if tail.contains("}}") => return Err(unknown()),
                    _ => return Err(TemplateError::Open),
                },
            };
            let before = if trimmed.is_some() { before.trim_end() } else { before };
            parts.push(Part::Text(before.to_owned()));
            parts.push(match what {
                Action::File(name) => {
                    let end = extension(&name);
                    Part::File(file(name), end)
                }
                Action::Text(text) => Part::Text(text),
                Action::Value(variable) => Part::Value(variable),
            });
            rest = if trim_after { after.trim_start() } else { after };
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        Ok(Self(parts))
    }

    /// The text for one machine.
    #[must_use]
    pub fn text(&self, machine: &Machine) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::File(number, end) => format!("{}/other{number}{end}", machine.url),
                Part::Value(variable) => machine.value(*variable),
            })
            .collect()
    }

    /// Names files that machines fetch from somewhere else by the address that `elsewhere` gives for
    /// their number.
    pub fn name_elsewhere(&mut self, elsewhere: impl Fn(usize) -> Option<String>) {
        for part in &mut self.0 {
            if let Part::File(number, _) = part
                && let Some(address) = elsewhere(*number)
            {
                *part = Part::Text(address);
            }
        }
    }

    /// Whether it says something that only iPXE on the machine knows: serial number or host name.
    #[must_use]
    pub fn asks_ipxe(&self) -> bool {
        let asked =
            |part: &Part| matches!(part, Part::Value(Variable::Serial | Variable::Hostname));
        self.0.iter().any(asked)
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What stands between braces.
enum Action {
    File(String),
    Text(String),
    Value(Variable),
}

/// Reads it, and gives back what follows it.
fn action<'a>(inside: &'a str, function: &str) -> Option<(Action, &'a str)> {
    let end = inside.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(inside.len());
    let (word, tail) = inside.split_at(end);
    if word.is_empty() {
        return string(inside).map(|(text, tail)| (Action::Text(text), tail));
    }
    if word == function {
        return string(tail.trim_start()).map(|(name, tail)| (Action::File(name), tail));
    }
    let (_, variable) = VARIABLES.iter().find(|(name, _)| *name == word)?;
    Some((Action::Value(*variable), tail))
}

/// The end of a file's name or address with its dot, if it has a usual one.
fn extension(name: &str) -> String {
    let path = name.split(['?', '#']).next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    match last.rsplit_once('.') {
        Some((stem, end))
            if !stem.is_empty()
                && (1..=10).contains(&end.len())
                && end.bytes().all(|octet| octet.is_ascii_alphanumeric()) =>
        {
            format!(".{end}")
        }
        _ => String::new(),
    }
}

/// A text without anything between braces.
impl<T: Into<String>> From<T> for Template {
    fn from(text: T) -> Self {
        let text = text.into();
        if text.is_empty() { Self::default() } else { Self(vec![Part::Text(text)]) }
    }
}

/// A string of Go's at the beginning of `text`, and what follows it: `"..."` with `\"`, `\\`, `\t`
/// and `\n`, or `` `...` `` as it stands.
fn string(text: &str) -> Option<(String, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        return raw.split_once('`').map(|(value, rest)| (value.to_owned(), rest));
    }
    let mut value = String::new();
    let mut characters = text.strip_prefix('"')?.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(match characters.next()? {
                't' => '\t',
                'n' => '\n',
                same @ ('"' | '\\') => same,
                _ => return None,
            }),
            '\n' => return None,
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(String, Vec<String>), TemplateError> {
        let mut files = Vec::new();
        let template = Template::parse(text, "ID", |file| {
            files.push(file);
            files.len() - 1
        })?;
        Ok((template.text(&Machine::at("http://h/t")), files))
    }

    #[test]
    fn section_1_4_id_becomes_an_address_and_the_rest_stays() {
        let (text, files) = read(" a={{ ID \"x y\" }} b={{ID `c\\d`}},c \n").unwrap();
        assert_eq!(text, "a=http://h/t/other0 b=http://h/t/other1,c");
        assert_eq!(files, ["x y", "c\\d"]);
        assert_eq!(read("no braces { } here").unwrap().0, "no braces { } here");
        assert_eq!(read("").unwrap().0, "");
    }

    #[test]
    fn escapes_trim_marks_and_literal_braces_are_those_of_go() {
        assert_eq!(read(r#"{{ ID "a\"b\\" }}"#).unwrap().1, [r#"a"b\"#]);
        assert_eq!(read("a  {{- ID `f` -}}  b").unwrap().0, "ahttp://h/t/other0b");
        assert_eq!(read(r#"x={{"{{"}}y}}"#).unwrap().0, "x={{y}}");
    }

    #[test]
    fn what_is_known_of_the_machine_stands_in_its_place() {
        let text =
            "s={{ SERVER }} m={{MAC}} u={{ UUID }} a={{ ARCH }} {{- SERIAL -}} .{{ HOSTNAME }}";
        let template = Template::parse(text, "ID", |_| 0).unwrap();
        assert!(template.asks_ipxe());
        let machine = Machine {
            url: "http://192.0.2.2:64172/t/m".into(),
            mac: MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xfe]),
            identity: Identity {
                uuid: Said::new(b"U-1"),
                arch: Said::new(b"x86_64"),
                serial: Said::new(b"S 1/\"2\""),
                hostname: Said::new("nö${x}".as_bytes()),
            },
        };
        assert_eq!(
            template.text(&machine),
            "s=192.0.2.2 m=52:54:00:12:34:fe u=U-1 a=x86_64S_1__2_.n____x_"
        );
        assert!(!Template::parse("{{ MAC }}{{ UUID }}", "ID", |_| 0).unwrap().asks_ipxe());
        assert_eq!(Said::new(&[b'a'; 100]), Said::new(&[b'a'; 64]));
    }

    #[test]
    fn an_address_ends_as_the_files_name_does() {
        for (name, address) in [
            ("a/live.squashfs", "/other0.squashfs"),
            ("http://h/x.tar.gz?y=1.2", "/other0.gz"),
            ("/.hidden", "/other0"),
            ("/a.b/c", "/other0"),
            ("x.averyveryverylongend", "/other0"),
            ("x.a b", "/other0"),
        ] {
            assert_eq!(
                read(&format!("{{{{ ID `{name}` }}}}")).unwrap().0,
                format!("http://h/t{address}")
            );
        }
        let mut template =
            Template::parse("{{ ID `a` }} {{ ID `b` }}", "ID", |name| usize::from(name == "b"))
                .unwrap();
        template.name_elsewhere(|number| (number == 1).then(|| "https://o/b".to_owned()));
        assert_eq!(template.text(&Machine::at("u")), "u/other0 https://o/b");
    }

    #[test]
    fn what_is_not_known_is_an_error_that_says_what_is() {
        for wrong in ["{{ URL \"x\" }}", "{{ ID }}", "{{ ID x }}", "{{ ID \"x\" \"y\" }}", "{{}}"] {
            let error = read(wrong).unwrap_err();
            assert!(matches!(error, TemplateError::Unknown { .. }), "{wrong}: {error}");
            assert!(error.to_string().contains("{{ ID \"...\" }}"), "{error}");
        }
        for wrong in ["{{", "a {{ ID \"x\"", "{{ ID \"x }"] {
            assert_eq!(read(wrong).unwrap_err(), TemplateError::Open, "{wrong}");
        }
    }
}
