//! What a caller asks for, parsed once into a value that never changes.
//!
//! Guarantees: a [`Request`] exists only if every key was known, of its type and within its limits;
//! the value that polkit is asked about is the value that is carried out. Trusts nothing. Never
//! repeats a caller's text in an error.

use std::collections::HashMap;

use portcullis_dbus::{
    BOOT_SERVER_PORT, DEFAULT_HTTP_PORT, DEFAULT_MAX_SECONDS, DHCP_PORT, Error, TFTP_PORT, action,
    keys::{dhcp, dhcp_mode, request as key},
};
use zbus::{OwnedVariant, Variant};

use crate::{
    firewall::{Dhcp, Opening},
    interface::InterfaceName,
    limits,
    sockdiag::Protocol,
};

/// A request that is well-formed. Says nothing about whether it is allowed or can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    interface: InterfaceName,
    dhcp: Dhcp,
    boot_server: bool,
    tftp: bool,
    http: Option<u16>,
    max_seconds: u32,
}

impl Request {
    /// Parses the dictionary given to `Open` and `Check`. A request that says nothing about its time
    /// gets the default, or `longest`, the site's longest time in seconds, where that is shorter.
    ///
    /// # Errors
    /// `InvalidRequest`, with the key at fault and what it may be.
    pub fn parse(options: &HashMap<String, OwnedVariant>, longest: u32) -> Result<Self, Error> {
        if options.len() > limits::REQUEST_KEYS {
            return invalid("the request has more keys than there are");
        }
        let mut interface = None;
        let mut request_dhcp = Dhcp::Proxy;
        let mut full_dhcp = false;
        let mut boot_server = true;
        let mut tftp = true;
        let mut http_port = DEFAULT_HTTP_PORT;
        let mut max_seconds = DEFAULT_MAX_SECONDS.min(longest);
        for (name, value) in options {
            match (name.as_str(), &**value) {
                (key::INTERFACE, Variant::Str(text)) => interface = Some(parse_interface(text)?),
                (key::DHCP, Variant::Str(text)) => request_dhcp = parse_dhcp(text)?,
                (key::FULL_DHCP, Variant::Bool(wanted)) => full_dhcp = *wanted,
                (key::BOOT_SERVER, Variant::Bool(wanted)) => boot_server = *wanted,
                (key::TFTP, Variant::Bool(wanted)) => tftp = *wanted,
                (key::HTTP_PORT, Variant::U16(port)) => http_port = *port,
                (key::MAX_SECONDS, Variant::U32(seconds)) => max_seconds = *seconds,
                (key::INTERFACE, _) => return invalid("interface must be a string (s)"),
                (key::DHCP, _) => return invalid("dhcp must be a string (s)"),
                (key::FULL_DHCP, _) => return invalid("full-dhcp must be a boolean (b)"),
                (key::BOOT_SERVER, _) => return invalid("boot-server must be a boolean (b)"),
                (key::TFTP, _) => return invalid("tftp must be a boolean (b)"),
                (key::HTTP_PORT, _) => {
                    return invalid("http-port must be an unsigned 16-bit integer (q)");
                }
                (key::MAX_SECONDS, _) => {
                    return invalid("max-seconds must be an unsigned 32-bit integer (u)");
                }
                _ => {
                    return invalid(
                        "the request has a key that this version does not know; it knows \
                         interface, dhcp, full-dhcp, boot-server, tftp, http-port and max-seconds",
                    );
                }
            }
        }
        let Some(interface) = interface else {
            return invalid("the request names no interface: the key interface (s) is required");
        };
        if full_dhcp && request_dhcp != Dhcp::Proxy {
            return invalid("full-dhcp needs dhcp = bind: addresses are handed out from UDP 67");
        }
        let request = Self {
            interface,
            dhcp: if full_dhcp { Dhcp::Full } else { request_dhcp },
            boot_server,
            tftp,
            http: parse_http_port(http_port)?,
            max_seconds: parse_seconds(max_seconds)?,
        };
        if request.ports().next().is_none() {
            return invalid("the request asks for no port at all");
        }
        Ok(request)
    }

    /// The interface to serve on.
    #[must_use]
    pub fn interface(&self) -> &InterfaceName {
        &self.interface
    }

    /// What is asked for on UDP 67.
    #[must_use]
    pub fn dhcp(&self) -> Dhcp {
        self.dhcp
    }

    /// Whether UDP 4011 is asked for.
    #[must_use]
    pub fn boot_server(&self) -> bool {
        self.boot_server
    }

    /// Whether UDP 69 is asked for.
    #[must_use]
    pub fn tftp(&self) -> bool {
        self.tftp
    }

    /// The TCP port asked for, if any.
    #[must_use]
    pub fn http(&self) -> Option<u16> {
        self.http
    }

    /// Seconds until the lease ends by itself.
    #[must_use]
    pub fn max_seconds(&self) -> u32 {
        self.max_seconds
    }

    /// The ports asked for.
    pub fn ports(&self) -> impl Iterator<Item = (Protocol, u16)> {
        ports(self.dhcp != Dhcp::None, self.boot_server, self.tftp, self.http)
    }

    /// What polkit and a site's rules are told.
    #[must_use]
    pub fn details(&self) -> Details {
        Details::new(&self.interface, self.http, self.dhcp, self.max_seconds)
    }
}

/// A question to polkit: the action and its details, as text ([`portcullis_dbus::action::DETAILS`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// The action.
    pub action: &'static str,
    /// Interface name.
    pub interface: String,
    /// TCP port in decimal, 0 for none.
    pub http_port: String,
    /// `bind`, `full`, `share` or `none`.
    pub dhcp: &'static str,
    /// Seconds in decimal.
    pub max_seconds: String,
}

impl Details {
    fn new(interface: &InterfaceName, http: Option<u16>, asked: Dhcp, max_seconds: u32) -> Self {
        let (action, dhcp) = match asked {
            Dhcp::None => (action::OPEN, dhcp::NONE),
            Dhcp::Proxy => (action::OPEN, dhcp::BIND),
            Dhcp::Shared | Dhcp::Raw => (action::OPEN, dhcp::SHARE),
            Dhcp::Full => (action::OPEN_DHCP, dhcp_mode::FULL),
        };
        Self {
            action,
            interface: interface.to_string(),
            http_port: http.unwrap_or(0).to_string(),
            dhcp,
            max_seconds: max_seconds.to_string(),
        }
    }

    /// For an opening that stands and is to last so many seconds from now.
    #[must_use]
    pub fn of_lease(opening: &Opening, max_seconds: u32) -> Self {
        Self::new(&opening.interface, opening.http, opening.dhcp, max_seconds)
    }
}

/// The ports of a request or lease, with their protocols.
pub fn ports(
    dhcp: bool,
    boot_server: bool,
    tftp: bool,
    http: Option<u16>,
) -> impl Iterator<Item = (Protocol, u16)> + use<> {
    [
        dhcp.then_some((Protocol::Udp, DHCP_PORT)),
        tftp.then_some((Protocol::Udp, TFTP_PORT)),
        boot_server.then_some((Protocol::Udp, BOOT_SERVER_PORT)),
        http.map(|port| (Protocol::Tcp, port)),
    ]
    .into_iter()
    .flatten()
}

/// `udp` or `tcp`, as on the bus and in sentences.
#[must_use]
pub fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Udp => "udp",
        Protocol::Tcp => "tcp",
    }
}

/// Seconds of a lease, for `Open` and `Extend` alike.
///
/// # Errors
/// `InvalidRequest` when out of range.
pub fn parse_seconds(seconds: u32) -> Result<u32, Error> {
    if (limits::MAX_SECONDS_FLOOR..=limits::MAX_SECONDS_CEILING).contains(&seconds) {
        return Ok(seconds);
    }
    Err(Error::InvalidRequest(format!(
        "the time must be {} to {} seconds",
        limits::MAX_SECONDS_FLOOR,
        limits::MAX_SECONDS_CEILING
    )))
}

fn parse_interface(text: &str) -> Result<InterfaceName, Error> {
    InterfaceName::parse(text).map_or_else(
        || invalid("interface must be 1 to 15 of the characters A-Z a-z 0-9 _ . : @ -"),
        Ok,
    )
}

fn parse_dhcp(text: &str) -> Result<Dhcp, Error> {
    match text {
        dhcp::BIND => Ok(Dhcp::Proxy),
        dhcp::NONE => Ok(Dhcp::None),
        dhcp::SHARE => Ok(Dhcp::Shared),
        _ => invalid("dhcp must be bind, share or none"),
    }
}

fn parse_http_port(port: u16) -> Result<Option<u16>, Error> {
    match port {
        0 => Ok(None),
        1..limits::HTTP_PORT_FLOOR => invalid("http-port must be 1024 to 65535, or 0 for none"),
        _ => Ok(Some(port)),
    }
}

fn invalid<T>(sentence: &str) -> Result<T, Error> {
    Err(Error::InvalidRequest(sentence.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::hash_map, prelude::*};

    use super::*;

    fn owned(value: Variant<'_>) -> OwnedVariant {
        value.try_to_owned().unwrap()
    }

    fn parse(entries: &[(&str, Variant<'_>)]) -> Result<Request, Error> {
        let options = entries
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.try_to_owned().unwrap()))
            .collect();
        Request::parse(&options, limits::MAX_SECONDS_CEILING)
    }

    #[test]
    fn an_interface_alone_asks_for_the_defaults() {
        let request = parse(&[("interface", "eth0".into())]).unwrap();
        let ports: Vec<_> = request.ports().collect();
        assert_eq!(
            ports,
            [
                (Protocol::Udp, 67),
                (Protocol::Udp, 69),
                (Protocol::Udp, 4011),
                (Protocol::Tcp, 64172)
            ]
        );
        assert_eq!(request.max_seconds(), 43_200);
        let details = request.details();
        assert_eq!(
            (details.interface, details.http_port, details.dhcp, details.max_seconds),
            ("eth0".into(), "64172".into(), "bind", "43200".into())
        );
    }

    #[test]
    fn handing_out_addresses_is_another_question() {
        let plain = parse(&[("interface", "eth0".into()), ("full-dhcp", false.into())]).unwrap();
        assert_eq!((plain.dhcp(), plain.details().action), (Dhcp::Proxy, action::OPEN));
        let full = parse(&[("interface", "eth0".into()), ("full-dhcp", true.into())]).unwrap();
        let details = full.details();
        assert_eq!((details.action, details.dhcp), (action::OPEN_DHCP, "full"));
        assert!(full.ports().eq(plain.ports()));
    }

    #[test]
    fn what_is_refused() {
        let eth0 = ("interface", Variant::from("eth0"));
        let refused: [&[(&str, Variant<'_>)]; 18] = [
            &[],
            &[("interface", "".into())],
            &[("interface", "eth0+".into())],
            &[("interface", "0123456789abcdef".into())],
            &[("interface", 7_u32.into())],
            &[("interface", "eth0".into()), ("colour", "red".into())],
            &[("interface", "eth0".into()), ("http-port", 80_u16.into())],
            &[("interface", "eth0".into()), ("http-port", 64172_u32.into())],
            &[("interface", "eth0".into()), ("tftp", "yes".into())],
            &[("interface", "eth0".into()), ("boot-server", 1_u8.into())],
            &[("interface", "eth0".into()), ("dhcp", "share".into()), ("full-dhcp", true.into())],
            &[("interface", "eth0".into()), ("dhcp", "BIND".into())],
            &[("interface", "eth0".into()), ("dhcp", true.into())],
            &[("interface", "eth0".into()), ("full-dhcp", "yes".into())],
            &[("interface", "eth0".into()), ("full-dhcp", true.into()), ("dhcp", "none".into())],
            &[("interface", "eth0".into()), ("max-seconds", 9_u32.into())],
            &[("interface", "eth0".into()), ("max-seconds", 604_801_u32.into())],
            &[
                ("interface", "eth0".into()),
                ("dhcp", "none".into()),
                ("boot-server", false.into()),
                ("tftp", false.into()),
                ("http-port", 0_u16.into()),
            ],
        ];
        assert!(parse(&[eth0]).is_ok());
        for entries in refused {
            assert!(matches!(parse(entries), Err(Error::InvalidRequest(_))), "{entries:?}");
        }
    }

    #[test]
    fn sharing_is_the_same_question_with_its_own_word() {
        let request = parse(&[("interface", "eth0".into()), ("dhcp", "share".into())]).unwrap();
        assert_eq!(request.dhcp(), Dhcp::Shared);
        let details = request.details();
        assert_eq!((details.action, details.dhcp), (action::OPEN, "share"));
    }

    fn value() -> impl Strategy<Value = OwnedVariant> {
        prop_oneof![
            ".{0,20}".prop_map(|text| owned(Variant::from(text))),
            prop_oneof![Just("eth0"), Just("bind"), Just("none"), Just("share")]
                .prop_map(|text| owned(Variant::from(text))),
            any::<bool>().prop_map(|flag| owned(Variant::from(flag))),
            any::<u16>().prop_map(|number| owned(Variant::from(number))),
            any::<u32>().prop_map(|number| owned(Variant::from(number))),
            any::<u64>().prop_map(|number| owned(Variant::from(number))),
            any::<i16>().prop_map(|number| owned(Variant::from(number))),
            proptest::collection::vec(any::<u8>(), 0..8)
                .prop_map(|bytes| owned(Variant::from(bytes))),
        ]
    }

    proptest! {
        /// P11: whatever comes over the bus is a request within its limits, or InvalidRequest.
        #[test]
        fn p11_any_dictionary_is_a_request_within_limits_or_invalid(
            options in hash_map(
                prop_oneof![
                    Just("interface".to_owned()), Just("dhcp".to_owned()),
                    Just("full-dhcp".to_owned()),
                    Just("boot-server".to_owned()), Just("tftp".to_owned()),
                    Just("http-port".to_owned()), Just("max-seconds".to_owned()), ".{0,12}",
                ],
                value(),
                0..9,
            )
        ) {
            match Request::parse(&options, limits::MAX_SECONDS_CEILING) {
                Ok(request) => {
                    prop_assert!(InterfaceName::parse(request.interface().as_str()).is_some());
                    prop_assert!(request.http().is_none_or(|port| port >= 1024));
                    prop_assert!((10..=604_800).contains(&request.max_seconds()));
                    prop_assert!((1..=4).contains(&request.ports().count()));
                    prop_assert!(options.keys().all(|name| matches!(
                        name.as_str(),
                        "interface" | "dhcp" | "full-dhcp" | "boot-server" | "tftp" | "http-port" | "max-seconds"
                    )));
                }
                Err(error) => prop_assert!(matches!(error, Error::InvalidRequest(_))),
            }
        }
    }
}
