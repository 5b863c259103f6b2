//! The session on the system bus: the request, the sockets that come back, and the end.
//!
//! Guarantees: the signal `Closed` and the helper's name are watched before anything is asked for,
//! so that no end can be missed; when a [`Session`] is dropped the connection closes, and the helper
//! ends the lease. The sockets come bound; nothing here or above could bind them.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _};
use portcullis_dbus::{
    BOOT_SERVER_PORT, BUS_NAME, ClosedStream, DHCP_PORT, Error, Netboot1Proxy, TFTP_PORT,
    keys::{dhcp, fact, reason, request, socket},
};
use zbus::{Connection, OwnedVariant, Variant, connection, proxy};

use crate::{
    exit::{Code, Failure},
    start::Start,
};

/// Longer than any dialog: the helper gives up first and says why.
const CALL: Duration = Duration::from_secs(130);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The interface.
    pub interface: String,
    /// TCP port for boot images.
    pub http_port: u16,
    /// Whether UDP 67 is shared with another DHCP server of this host.
    pub share_dhcp: bool,
    /// Seconds until the lease ends by itself; `None` leaves it to the helper.
    pub max_seconds: Option<u32>,
    /// Whether addresses are handed out, too: asked of the site and of polkit separately.
    pub full_dhcp: bool,
}

impl Request {
    /// UDP ports that it asks for.
    pub const UDP: [u16; 3] = [DHCP_PORT, TFTP_PORT, BOOT_SERVER_PORT];

    fn keys(&self) -> HashMap<&'static str, Variant<'_>> {
        let mut keys = HashMap::from([
            (request::INTERFACE, Variant::from(self.interface.as_str())),
            (request::HTTP_PORT, Variant::from(self.http_port)),
        ]);
        if self.share_dhcp {
            keys.insert(request::DHCP, Variant::from(dhcp::SHARE));
        }
        if let Some(seconds) = self.max_seconds {
            keys.insert(request::MAX_SECONDS, Variant::from(seconds));
        }
        if self.full_dhcp {
            keys.insert(request::FULL_DHCP, Variant::from(true));
        }
        keys
    }
}

/// Seconds for which a lease that only listens stands at most.
const LISTENING: u32 = 60;

/// A request for UDP 67 alone.
fn listening(interface: &str) -> HashMap<&'static str, Variant<'_>> {
    HashMap::from([
        (request::INTERFACE, Variant::from(interface)),
        (request::BOOT_SERVER, Variant::from(false)),
        (request::TFTP, Variant::from(false)),
        (request::HTTP_PORT, Variant::from(0_u16)),
        (request::MAX_SECONDS, Variant::from(LISTENING)),
    ])
}

/// The sockets of a lease.
#[derive(Debug)]
pub struct Sockets {
    /// UDP 67.
    pub dhcp: UdpSocket,
    /// That is a raw socket, which gives whole IPv4 packets; what is sent to 255.255.255.255:68 by
    /// [`Self::boot_server`] leaves from port 67.
    pub raw: bool,
    /// UDP 4011.
    pub boot_server: UdpSocket,
    /// UDP 69.
    pub tftp: UdpSocket,
    /// TCP.
    pub http: TcpListener,
}

/// Facts about a lease, as `Open` and `List` tell them. What the helper left out is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Firewall back end, one of [`portcullis_dbus::keys::backend`].
    pub backend: String,
    /// Interface.
    pub interface: String,
    /// Its index.
    pub interface_index: u32,
    /// Address that is served on.
    pub address: Option<Ipv4Addr>,
    /// What is done on UDP 67, one of [`portcullis_dbus::keys::dhcp_mode`].
    pub dhcp: String,
    /// Open UDP ports.
    pub udp_ports: Vec<u16>,
    /// Open TCP ports.
    pub tcp_ports: Vec<u16>,
    /// When it was opened, CLOCK_BOOTTIME in microseconds.
    pub opened: u64,
    /// When it ends by itself, CLOCK_BOOTTIME in microseconds.
    pub ends: u64,
    /// Owner (`List` only).
    pub uid: Option<u32>,
}

impl Facts {
    fn new(mut facts: HashMap<String, OwnedVariant>) -> Self {
        Self {
            backend: take(&mut facts, fact::BACKEND).unwrap_or_default(),
            interface: take(&mut facts, fact::INTERFACE).unwrap_or_default(),
            interface_index: take(&mut facts, fact::INTERFACE_INDEX).unwrap_or_default(),
            address: take::<String>(&mut facts, fact::ADDRESS).and_then(|text| text.parse().ok()),
            dhcp: take(&mut facts, fact::DHCP_MODE).unwrap_or_default(),
            udp_ports: take(&mut facts, fact::UDP_PORTS).unwrap_or_default(),
            tcp_ports: take(&mut facts, fact::TCP_PORTS).unwrap_or_default(),
            opened: take(&mut facts, fact::OPENED).unwrap_or_default(),
            ends: take(&mut facts, fact::ENDS).unwrap_or_default(),
            uid: take(&mut facts, fact::UID),
        }
    }
}

/// What `Check` says of a request. What the helper left out is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Firewall back end, one of [`portcullis_dbus::keys::backend`].
    pub backend: String,
    /// Address that would be served on; none if the interface will not do.
    pub address: Option<Ipv4Addr>,
    /// UDP ports that would be opened.
    pub udp_ports: Vec<u16>,
    /// TCP ports that would be opened.
    pub tcp_ports: Vec<u16>,
    /// What polkit would answer, one of [`portcullis_dbus::keys::authorization`].
    pub authorization: String,
    /// Ports that are taken: `udp` or `tcp`, number, uid of the holder.
    pub taken: Vec<(String, u16, u32)>,
    /// Why `Open` would refuse, one sentence each, what concerns the interface first.
    pub problems: Vec<String>,
    /// Chains of the firewall that drop by policy and would not be opened.
    pub other_drops: Vec<String>,
}

impl Checked {
    fn new(mut facts: HashMap<String, OwnedVariant>) -> Self {
        Self {
            backend: take(&mut facts, fact::BACKEND).unwrap_or_default(),
            address: take::<String>(&mut facts, fact::ADDRESS).and_then(|text| text.parse().ok()),
            udp_ports: take(&mut facts, fact::UDP_PORTS).unwrap_or_default(),
            tcp_ports: take(&mut facts, fact::TCP_PORTS).unwrap_or_default(),
            authorization: take(&mut facts, fact::AUTHORIZATION).unwrap_or_default(),
            taken: take(&mut facts, fact::PORTS_TAKEN).unwrap_or_default(),
            problems: take(&mut facts, fact::PROBLEMS).unwrap_or_default(),
            other_drops: take(&mut facts, fact::OTHER_DROPS).unwrap_or_default(),
        }
    }
}

fn take<T: TryFrom<OwnedVariant>>(
    facts: &mut HashMap<String, OwnedVariant>,
    key: &str,
) -> Option<T> {
    T::try_from(facts.remove(key)?).ok()
}

/// One of the sockets that the helper opened.
fn handed(fds: &mut HashMap<String, zbus::OwnedFd>, key: &str) -> Result<OwnedFd, Failure> {
    fds.remove(key).map(OwnedFd::from).ok_or_else(|| {
        Failure::new(Code::Internal, format!("the helper opened no socket \"{key}\""))
            .advise("portcullis and portcullis-helper may be of different versions")
    })
}

/// A connection to the helper.
pub struct Session {
    proxy: Netboot1Proxy<'static>,
    start: Start,
    closed: ClosedStream,
    owner: proxy::OwnerChangedStream<'static>,
    bus: Option<Connection>,
    /// Something was opened, so that the helper's name may not change any more.
    holds: bool,
}

/// A granted request.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Its number.
    pub number: u64,
    /// Facts.
    pub facts: Facts,
}

impl Session {
    /// Connects to the system bus and watches the helper. Does not start the helper.
    ///
    /// # Errors
    /// The bus cannot be reached (exit code 22).
    pub async fn connect() -> Result<Self, Failure> {
        let connect = async {
            let connection = connection::Builder::system().method_timeout(CALL).build().await?;
            Self::watch(&connection, Some(connection.clone())).await
        };
        connect.await.map_err(|error| Failure::from(Error::ZBus(error)))
    }

    /// Speaks with a helper at the other end of a socket, without a bus between. `bus`: the system's,
    /// for others.
    ///
    /// # Errors
    /// There is no helper (any more).
    pub async fn over(socket: UnixStream, bus: Option<Connection>) -> zbus::Result<Self> {
        let connection = connection::Builder::unix_stream(socket).p2p().method_timeout(CALL);
        Self::watch(&connection.build().await?, bus).await
    }

    /// The failure to tell if there is no helper on the bus, and the bus could start none.
    pub async fn missing(&self) -> Option<Failure> {
        let unknown = async {
            let bus = zbus::fdo::DBusProxy::new(self.bus.as_ref()?).await.ok()?;
            let owned = bus.name_has_owner(BUS_NAME.try_into().ok()?).await.ok()?;
            let known = bus.list_activatable_names().await.ok()?;
            let known = owned || known.iter().any(|name| name.as_str() == BUS_NAME);
            (!known).then(|| zbus::fdo::Error::ServiceUnknown(BUS_NAME.to_owned()))
        };
        Some(Error::ZBus(zbus::Error::FDO(Box::new(unknown.await?))).into())
    }

    /// A helper at the other end of a socket gives no names: what is asked of a bus here is answered
    /// with an error, and what a bus would tell is never told; that the socket ends is.
    async fn watch(connection: &Connection, bus: Option<Connection>) -> zbus::Result<Self> {
        let proxy = Netboot1Proxy::builder(connection)
            .cache_properties(proxy::CacheProperties::No)
            .build()
            .await?;
        let closed = proxy.receive_lease_ended().await?;
        let owner = proxy.inner().receive_owner_changed().await?;
        let start = Start::new(connection).await?;
        Ok(Self { proxy, start, closed, owner, bus, holds: false })
    }

    /// Asks for the ports. May show a dialog, and then takes as long as the person there.
    ///
    /// # Errors
    /// Those of the contract.
    pub async fn open(&mut self, request: &Request) -> Result<(Lease, Sockets), Failure> {
        let (number, mut fds, facts) = self.start.or_fails(self.proxy.open(request.keys())).await?;
        // The bus keeps messages in order: what it has said of the helper's name so far was before
        // the answer, such as an idle helper that left and the one that was started for us.
        while !self.holds && matches!(self.owner.next().now_or_never(), Some(Some(_))) {}
        self.holds = true;
        let raw = fds.contains_key(socket::DHCP_RAW);
        let mut take = |key| handed(&mut fds, key);
        let sockets = Sockets {
            dhcp: take(if raw { socket::DHCP_RAW } else { socket::DHCP })?.into(),
            raw,
            boot_server: take(socket::BOOT_SERVER)?.into(),
            tftp: take(socket::TFTP)?.into(),
            http: take(socket::HTTP)?.into(),
        };
        Ok((Lease { number, facts: Facts::new(facts) }, sockets))
    }

    /// Says what [`Self::open`] would do. Opens nothing and never shows a dialog.
    ///
    /// # Errors
    /// Those of the contract.
    pub async fn check(&self, request: &Request) -> Result<Checked, Failure> {
        self.start.or_fails(self.proxy.check(request.keys())).await.map(Checked::new)
    }

    /// Asks for UDP 67 alone, for a minute at most, to listen there. May show a dialog.
    ///
    /// # Errors
    /// Those of the contract.
    pub async fn listen(&self, interface: &str) -> Result<(Lease, UdpSocket), Failure> {
        let (number, mut fds, facts) =
            self.start.or_fails(self.proxy.open(listening(interface))).await?;
        let socket = handed(&mut fds, socket::DHCP)?;
        Ok((Lease { number, facts: Facts::new(facts) }, socket.into()))
    }

    /// The connection to the system bus, if there is one.
    pub fn bus(&self) -> Option<&Connection> {
        self.bus.as_ref()
    }

    /// Ends a lease. Another's needs the manage action, and may show a dialog.
    ///
    /// # Errors
    /// Those of the contract.
    pub async fn close(&self, lease: u64) -> Result<(), Failure> {
        self.start.or_fails(self.proxy.close(lease)).await
    }

    /// The leases that the caller may see.
    ///
    /// # Errors
    /// Those of the contract.
    pub async fn list(&self) -> Result<Vec<Lease>, Failure> {
        let leases = self.start.or_fails(self.proxy.list()).await?;
        Ok(leases
            .into_iter()
            .map(|(number, facts)| Lease { number, facts: Facts::new(facts) })
            .collect())
    }

    /// Waits until a lease is ended by somebody else, and says which and why. `None`: each of them.
    pub async fn ended(&mut self) -> (Option<u64>, End) {
        loop {
            tokio::select! {
                // In this order: a helper that stops says so before its name goes.
                biased;
                signal = self.closed.next() => match signal {
                    Some(signal) => {
                        if let Ok(end) = signal.args() {
                            return (Some(end.lease), End::Reason(end.reason.clone()));
                        }
                    }
                    None => return (None, End::HelperGone),
                },
                owner = self.owner.next() => if !matches!(owner, Some(Some(_))) {
                    return (None, End::HelperGone);
                },
            }
        }
    }
}

/// How a lease ended without our doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The helper said why: one of [`reason`].
    Reason(String),
    /// The helper, or the bus, is gone.
    HelperGone,
}

impl End {
    /// The reason as a word, for `--json`.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            Self::Reason(word) => word,
            Self::HelperGone => "helper-gone",
        }
    }

    /// The failure that the program ends with.
    #[must_use]
    pub fn failure(&self, interface: &str) -> Failure {
        let (text, advice) = match self.word() {
            reason::EXPIRED => (
                "the time is over".to_owned(),
                Some("run it again, or with --for and a longer time"),
            ),
            reason::MANAGER | reason::CLOSED => (
                "it was closed from elsewhere (portcullis close, or an administrator)".to_owned(),
                None,
            ),
            reason::HELPER_STOPPING => (
                "the helper that holds the ports is being stopped (an update, or a shutdown)"
                    .to_owned(),
                Some("run it again"),
            ),
            reason::INTERFACE_CHANGED => (
                format!("the interface {interface} was removed or renamed"),
                Some("connect it again and run it again"),
            ),
            reason::ADDRESS_CHANGED => {
                (format!("the address of {interface} changed"), Some("run it again"))
            }
            reason::REVOKED => (
                "an administrator took the permission back: a rule of polkit says no now, or the \
                 rule that lets machines in was removed from the firewall"
                    .to_owned(),
                None,
            ),
            reason::FIREWALL_GONE => (
                "the firewall was taken down and did not come back".to_owned(),
                Some("start the firewall and run it again"),
            ),
            reason::SOCKET_MOVED => (
                "one of its sockets was moved to another interface".to_owned(),
                Some("this is no fault of yours unless you did it: please report it"),
            ),
            "helper-gone" => (
                "the helper that holds the ports has gone".to_owned(),
                Some("journalctl -u portcullis-helper says why; then run it again"),
            ),
            other => (format!("the helper says \"{}\"", other.escape_default()), None),
        };
        let failure = Failure::new(Code::Ended, format!("not serving any more: {text}"));
        advice.into_iter().fold(failure, Failure::advise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_sentence() {
        let ends = [
            reason::EXPIRED,
            reason::MANAGER,
            reason::HELPER_STOPPING,
            reason::INTERFACE_CHANGED,
            reason::ADDRESS_CHANGED,
            reason::REVOKED,
            reason::FIREWALL_GONE,
            reason::SOCKET_MOVED,
            reason::OWNER_LEFT,
        ]
        .map(|word| End::Reason(word.to_owned()))
        .into_iter()
        .chain([End::HelperGone]);
        let sentences: std::collections::BTreeSet<_> = ends
            .map(|end| {
                let failure = end.failure("eth0");
                assert_eq!(failure.code, 23);
                failure.message
            })
            .collect();
        assert_eq!(sentences.len(), 10);
    }

    #[test]
    fn a_request_names_only_what_was_asked_for() {
        let mut request = Request {
            interface: "eth0".to_owned(),
            http_port: 64172,
            share_dhcp: false,
            max_seconds: None,
            full_dhcp: false,
        };
        let mut keys: Vec<_> = request.keys().into_keys().collect();
        keys.sort_unstable();
        assert_eq!(keys, ["http-port", "interface"]);
        request.max_seconds = Some(60);
        request.share_dhcp = true;
        assert_eq!(request.keys().get("dhcp"), Some(&Variant::from("share")));
        assert_eq!(request.keys().get("max-seconds"), Some(&Variant::from(60u32)));
        request.full_dhcp = true;
        assert_eq!(request.keys().get("full-dhcp"), Some(&Variant::from(true)));
    }

    #[test]
    fn to_listen_one_port_is_asked_for() {
        let keys = listening("eth0");
        assert_eq!(keys.len(), 5);
        for closed in ["boot-server", "tftp"] {
            assert_eq!(keys.get(closed), Some(&Variant::from(false)));
        }
        assert_eq!(keys.get("http-port"), Some(&Variant::from(0_u16)));
        assert_eq!(keys.get("max-seconds"), Some(&Variant::from(60_u32)));
    }

    #[test]
    fn facts_of_wrong_types_count_as_absent() {
        let facts = HashMap::from([
            ("backend".to_owned(), OwnedVariant::try_from(Variant::from("none")).unwrap()),
            ("address".to_owned(), OwnedVariant::try_from(Variant::from("10.0.0.1")).unwrap()),
            (
                "udp-ports".to_owned(),
                OwnedVariant::try_from(Variant::from(vec![67u16, 69])).unwrap(),
            ),
            ("ends".to_owned(), OwnedVariant::try_from(Variant::from("soon")).unwrap()),
        ]);
        let facts = Facts::new(facts);
        assert_eq!(facts.backend, "none");
        assert_eq!(facts.address, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(facts.udp_ports, [67, 69]);
        assert_eq!(facts.ends, 0);
    }
}
