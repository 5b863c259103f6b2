//! The site's configuration: what the administrator allows on this host, whoever asks.
//!
//! Guarantees: a [`Config`] is whole and valid, and never changes while the helper runs. It only ever
//! narrows what polkit may grant. Trusts whoever may write to /etc/portcullis. Reading it: `file.rs`.

mod file;

use std::{fmt, ops::RangeInclusive};

use portcullis_dbus::Error;
use serde::{Deserialize, Deserializer, de::Error as _};

pub use file::{ConfigError, FILE, check, check_text, load};

use crate::{firewall::Dhcp, interface::InterfaceName, limits, mark::Marks, request::Request};

/// What a site allows, and how the helper fits into its firewall. The keys are documented for
/// administrators in systemd/helper.toml.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Interfaces that may be served on.
    pub interfaces: Vec<Glob>,
    /// TCP ports that may be opened for boot images.
    pub http_ports: Vec<Ports>,
    /// The longest lease, seconds.
    #[serde(deserialize_with = "seconds")]
    pub max_seconds: u32,
    /// Whether full DHCP may be asked for at all.
    pub full_dhcp: bool,
    /// Whether a raw socket may be used beside a DHCP server that keeps UDP 67 to itself.
    pub raw_dhcp: bool,
    /// Leases of all users together.
    #[serde(deserialize_with = "count::<_, { limits::LEASES_CEILING }>")]
    pub leases: usize,
    /// Leases of one user.
    #[serde(deserialize_with = "count::<_, { limits::LEASES_CEILING }>")]
    pub leases_per_user: usize,
    /// Questions of one user that wait for an answer, each from another connection.
    #[serde(deserialize_with = "count::<_, { limits::QUESTIONS_CEILING }>")]
    pub questions_per_user: usize,
    /// Tag and mask of our marks.
    #[serde(rename = "mark", deserialize_with = "marks")]
    pub marks: Marks,
    /// The chain that openings go into, where the administrator names one.
    #[serde(rename = "firewall")]
    pub chain: Option<NamedChain>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interfaces: vec![Glob("*".to_owned())],
            http_ports: vec![Ports(limits::HTTP_PORT_FLOOR..=u16::MAX)],
            max_seconds: limits::MAX_SECONDS_CEILING,
            full_dhcp: false,
            raw_dhcp: false,
            leases: limits::LEASES,
            leases_per_user: limits::LEASES_PER_USER,
            questions_per_user: limits::QUESTIONS_PER_USER,
            marks: Marks::default(),
            chain: None,
        }
    }
}

impl Config {
    /// Whether this request may be granted on this host.
    ///
    /// # Errors
    /// `ForbiddenByPolicy`, with what is allowed instead.
    pub fn permit(&self, request: &Request) -> Result<(), Error> {
        let interface = &request.interface;
        if !self.interfaces.iter().any(|glob| glob.matches(interface)) {
            let allowed: Vec<_> = self.interfaces.iter().map(|glob| &glob.0).collect();
            return forbidden(format!("serving on {interface}; interfaces = {allowed:?}"));
        }
        if let Some(port) = request.http
            && !self.http_ports.iter().any(|ports| ports.0.contains(&port))
        {
            let allowed: Vec<_> = self.http_ports.iter().map(ToString::to_string).collect();
            let allowed = allowed.join(", ");
            return forbidden(format!("TCP port {port}; http-ports = [{allowed}]"));
        }
        if request.dhcp == Dhcp::Full && !self.full_dhcp {
            return forbidden("handing out addresses; full-dhcp = false".to_owned());
        }
        let (seconds, most) = (request.max_seconds, self.max_seconds);
        if seconds > most {
            return forbidden(format!("{seconds} seconds; max-seconds = {most}"));
        }
        Ok(())
    }
}

fn forbidden(what: String) -> Result<(), Error> {
    Err(Error::ForbiddenByPolicy(format!(
        "the configuration of this host does not allow {what} (in {FILE}, or a drop-in beside it)"
    )))
}

fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let (least, most) = (limits::MAX_SECONDS_FLOOR, limits::MAX_SECONDS_CEILING);
    let seconds = u32::deserialize(from)?;
    let fits = (least..=most).contains(&seconds).then_some(seconds);
    fits.ok_or_else(|| D::Error::custom(format!("a time is {least} to {most} seconds")))
}

fn count<'de, D: Deserializer<'de>, const MOST: usize>(from: D) -> Result<usize, D::Error> {
    let count = usize::deserialize(from)?;
    let fits = (1..=MOST).contains(&count).then_some(count);
    fits.ok_or_else(|| D::Error::custom(format!("this number is 1 to {MOST}")))
}

fn marks<'de, D: Deserializer<'de>>(from: D) -> Result<Marks, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct TagAndMask {
        tag: u32,
        mask: u32,
    }
    let TagAndMask { tag, mask } = TagAndMask::deserialize(from)?;
    Marks::new(tag, mask).map_err(D::Error::custom)
}

/// A pattern for names of interfaces: `*` stands for any characters, `?` for one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Glob(String);

impl TryFrom<String> for Glob {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let plain = text.replace(['*', '?'], "x");
        if InterfaceName::parse(&plain).is_none() {
            return Err(format!(
                "{text:?}: an interface is named by 1 to 15 of the characters A-Z a-z 0-9 _ . : @ -, \
                 with * for any characters and ? for one"
            ));
        }
        Ok(Self(text))
    }
}

impl Glob {
    /// Whether it stands for this name.
    #[must_use]
    pub fn matches(&self, name: &InterfaceName) -> bool {
        matches(self.0.as_bytes(), name.as_str().as_bytes())
    }
}

/// Both are at most 15 octets, which bounds the search.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, first) => first.is_none(),
        (Some((b'*', more)), first) => {
            matches(more, name) || first.is_some_and(|(_, rest)| matches(pattern, rest))
        }
        (Some((one, more)), Some((other, rest))) => {
            (*one == b'?' || one == other) && matches(more, rest)
        }
        (Some(_), None) => false,
    }
}

/// TCP ports: one, or a range such as `"8000-8099"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Words")]
pub struct Ports(RangeInclusive<u16>);

/// The two ways of writing them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a port is a number, a range of ports is text like \"8000-8099\"")]
enum Words {
    One(u16),
    Range(String),
}

impl TryFrom<Words> for Ports {
    type Error = String;

    fn try_from(words: Words) -> Result<Self, Self::Error> {
        let (range, text) = match words {
            Words::One(port) => (Some(port..=port), port.to_string()),
            Words::Range(text) => {
                let ends = text.split_once('-');
                let range = ends.and_then(|(first, last)| {
                    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
                });
                (range, format!("{text:?}"))
            }
        };
        let allowed = |range: &RangeInclusive<u16>| {
            *range.start() >= limits::HTTP_PORT_FLOOR && !range.is_empty()
        };
        range.filter(allowed).map(Self).ok_or_else(|| {
            format!("{text}: a port is 1024 to 65535, a range of them is text like \"8000-8099\"")
        })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last {
            return write!(formatter, "{first}");
        }
        write!(formatter, "\"{first}-{last}\"")
    }
}

/// A chain of the host's firewall, as the administrator names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedChain {
    /// Family of its table.
    pub family: Family,
    /// Its table.
    pub table: Name,
    /// Its name.
    pub chain: Name,
}

/// The families whose input chains see IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 alone, and what iptables makes.
    Ip,
    /// IPv4 and IPv6.
    Inet,
}

/// Name of a table or chain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let plain =
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte));
        if !plain || text.is_empty() || text.len() > limits::CHAIN_NAME {
            return Err(
                "a table or chain is named by 1 to 64 of the characters A-Z a-z 0-9 _ . - /",
            );
        }
        Ok(Self(text))
    }
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
