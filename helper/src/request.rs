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
use zbus::OwnedVariant;

use crate::{firewall::Dhcp, interface::InterfaceName, limits, sockdiag::Protocol};

/// A request that is well-formed. Says nothing about whether it is allowed or can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// The interface to serve on.
    pub interface: InterfaceName,
    /// What is asked for on UDP 67.
    pub dhcp: Dhcp,
    /// Whether UDP 4011 is asked for.
    pub boot_server: bool,
    /// Whether UDP 69 is asked for.
    pub tftp: bool,
    /// The TCP port asked for, if any.
    pub http: Option<u16>,
    /// Seconds until the lease ends by itself.
    pub max_seconds: u32,
}

impl Request {
    /// Parses the dictionary given to `Open` and `Check`. A request that says nothing about its time
    /// gets the default, or `longest`, the site's longest time in seconds, where that is shorter.
    ///
    /// # Errors
    /// `InvalidRequest`, with the key at fault and what it may be.
    pub fn parse(options: &HashMap<String, OwnedVariant>, longest: u32) -> Result<Self, Error> {
        if !options.keys().all(|name| KEYS.contains(&name.as_str())) {
            let known = KEYS.join(", ");
            return Err(Error::InvalidRequest(format!(
                "the request has a key that this version does not know; it knows {known}"
            )));
        }
        let flag = |name, default| {
            Ok::<bool, Error>(read(options, name, "a boolean (b)")?.unwrap_or(default))
        };
        let dhcp = match (
            read(options, key::DHCP, "a string (s)")?.unwrap_or(dhcp::BIND),
            flag(key::FULL_DHCP, false)?,
        ) {
            (dhcp::BIND, false) => Dhcp::Proxy,
            (dhcp::BIND, true) => Dhcp::Full,
            (dhcp::NONE, false) => Dhcp::None,
            (dhcp::SHARE, false) => Dhcp::Shared,
            (dhcp::NONE | dhcp::SHARE, true) => {
                return invalid(
                    "full-dhcp needs dhcp = bind: addresses are handed out from UDP 67",
                );
            }
            _ => return invalid("dhcp must be bind, share or none"),
        };
        let port = read(options, key::HTTP_PORT, "an unsigned 16-bit integer (q)")?;
        let http = match port.unwrap_or(DEFAULT_HTTP_PORT) {
            0 => None,
            1..limits::HTTP_PORT_FLOOR => {
                return invalid("http-port must be 1024 to 65535, or 0 for none");
            }
            port => Some(port),
        };
        let max_seconds = read(options, key::MAX_SECONDS, "an unsigned 32-bit integer (u)")?
            .unwrap_or(DEFAULT_MAX_SECONDS.min(longest));
        let Some(name) = read(options, key::INTERFACE, "a string (s)")? else {
            return invalid("the request names no interface: the key interface (s) is required");
        };
        let Some(interface) = InterfaceName::parse(name) else {
            return invalid("interface must be 1 to 15 of the characters A-Z a-z 0-9 _ . : @ -");
        };
        let request = Self {
            interface,
            dhcp,
            boot_server: flag(key::BOOT_SERVER, true)?,
            tftp: flag(key::TFTP, true)?,
            http,
            max_seconds,
        };
        if request.ports().next().is_none() {
            return invalid("the request asks for no port at all");
        }
        request.lasting(max_seconds)
    }

    /// The same for so many seconds.
    ///
    /// # Errors
    /// `InvalidRequest` when out of range.
    pub fn lasting(self, max_seconds: u32) -> Result<Self, Error> {
        if (limits::MAX_SECONDS_FLOOR..=limits::MAX_SECONDS_CEILING).contains(&max_seconds) {
            return Ok(Self { max_seconds, ..self });
        }
        Err(Error::InvalidRequest(format!(
            "the time must be {} to {} seconds",
            limits::MAX_SECONDS_FLOOR,
            limits::MAX_SECONDS_CEILING
        )))
    }

    /// The ports asked for.
    pub fn ports(&self) -> impl Iterator<Item = (Protocol, u16)> + use<> {
        ports(self.dhcp != Dhcp::None, self.boot_server, self.tftp, self.http)
    }

    /// The action that it takes polkit's yes to.
    #[must_use]
    pub fn action(&self) -> &'static str {
        if self.dhcp == Dhcp::Full { action::OPEN_DHCP } else { action::OPEN }
    }

    /// What polkit, a site's rules and the journal are told, in the order of [`action::DETAILS`].
    #[must_use]
    pub fn details(&self) -> [String; action::DETAILS.len()] {
        let dhcp = match self.dhcp {
            Dhcp::None => dhcp::NONE,
            Dhcp::Proxy => dhcp::BIND,
            Dhcp::Shared | Dhcp::Raw => dhcp::SHARE,
            Dhcp::Full => dhcp_mode::FULL,
        };
        let (http, seconds) = (self.http.unwrap_or(0), self.max_seconds);
        [self.interface.to_string(), http.to_string(), dhcp.to_owned(), seconds.to_string()]
    }
}

/// Every key that there is.
const KEYS: [&str; limits::REQUEST_KEYS] = [
    key::INTERFACE,
    key::DHCP,
    key::FULL_DHCP,
    key::BOOT_SERVER,
    key::TFTP,
    key::HTTP_PORT,
    key::MAX_SECONDS,
];

/// The value of a key, if it is there and of its type.
fn read<'v, T: TryFrom<&'v OwnedVariant>>(
    options: &'v HashMap<String, OwnedVariant>,
    name: &str,
    kind: &str,
) -> Result<Option<T>, Error> {
    let value = options.get(name).map(T::try_from).transpose();
    value.map_err(|_| Error::InvalidRequest(format!("{name} must be {kind}")))
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

fn invalid<T>(sentence: &str) -> Result<T, Error> {
    Err(Error::InvalidRequest(sentence.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::hash_map, prelude::*};
    use zbus::Variant;

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
        assert_eq!(request.max_seconds, 43_200);
        assert_eq!(request.details(), ["eth0", "64172", "bind", "43200"]);
    }

    #[test]
    fn handing_out_addresses_is_another_question() {
        let plain = parse(&[("interface", "eth0".into()), ("full-dhcp", false.into())]).unwrap();
        assert_eq!((plain.dhcp, plain.action()), (Dhcp::Proxy, action::OPEN));
        let full = parse(&[("interface", "eth0".into()), ("full-dhcp", true.into())]).unwrap();
        assert_eq!((full.action(), full.details()[2].as_str()), (action::OPEN_DHCP, "full"));
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
        assert_eq!(request.dhcp, Dhcp::Shared);
        assert_eq!((request.action(), request.details()[2].as_str()), (action::OPEN, "share"));
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
                    prop_assert!(InterfaceName::parse(request.interface.as_str()).is_some());
                    prop_assert!(request.http.is_none_or(|port| port >= 1024));
                    prop_assert!((10..=604_800).contains(&request.max_seconds));
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
