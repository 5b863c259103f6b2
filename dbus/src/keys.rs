//! Keys of the dictionaries on the bus. D-Bus signatures stand in brackets.

/// Keys of the request given to `Open` and `Check`. Unknown keys are refused.
pub mod request {
    /// `[s]`, required: the interface to serve on.
    pub const INTERFACE: &str = "interface";
    /// `[s]`: what is done on UDP 67, one of [`super::dhcp`]. Default `bind`.
    pub const DHCP: &str = "dhcp";
    /// `[b]`: whether addresses may be handed out, too; only with `dhcp` = `bind`. A site has to
    /// allow it, and it has a polkit action of its own. Default false.
    pub const FULL_DHCP: &str = "full-dhcp";
    /// `[b]`: whether UDP 4011 is opened. Default true.
    pub const BOOT_SERVER: &str = "boot-server";
    /// `[b]`: whether UDP 69 is opened. Default true.
    pub const TFTP: &str = "tftp";
    /// `[q]`: TCP port for boot images; 0 opens none. Default 64172.
    pub const HTTP_PORT: &str = "http-port";
    /// `[u]`: seconds until the lease ends by itself, counted through suspend. Default 12 hours.
    pub const MAX_SECONDS: &str = "max-seconds";
}

/// Values of `request::DHCP`.
pub mod dhcp {
    /// Bind UDP 67 for proxy DHCP answers.
    pub const BIND: &str = "bind";
    /// Proxy DHCP beside another DHCP server of this host, on the same port and interface.
    pub const SHARE: &str = "share";
    /// Leave UDP 67 alone.
    pub const NONE: &str = "none";
}

/// Keys of the sockets that `Open` returns.
pub mod socket {
    /// UDP 67, wildcard address.
    pub const DHCP: &str = "dhcp";
    /// In its place with `dhcp_mode::SHARED_RAW`: a raw socket that gives whole IPv4 packets, broadcasts
    /// to UDP 67 alone, and cannot send. Answers that are sent to 255.255.255.255:68 by the socket of
    /// [`BOOT_SERVER`] leave from port 67.
    pub const DHCP_RAW: &str = "dhcp-raw";
    /// UDP 4011 on the interface's address.
    pub const BOOT_SERVER: &str = "boot-server";
    /// UDP 69 on the interface's address.
    pub const TFTP: &str = "tftp";
    /// A listening TCP socket on the interface's address.
    pub const HTTP: &str = "http";
}

/// Keys of the facts that `Open` and `Check` return, and of the entries of `List`.
pub mod fact {
    /// `[s]`: firewall back end, one of [`super::backend`].
    pub const BACKEND: &str = "backend";
    /// `[s]`: the interface.
    pub const INTERFACE: &str = "interface";
    /// `[u]`: index of the interface.
    pub const INTERFACE_INDEX: &str = "interface-index";
    /// `[s]`: IPv4 address of the interface that 69, 4011 and TCP are bound to.
    pub const ADDRESS: &str = "address";
    /// `[aq]`: UDP ports that are (or would be) open.
    pub const UDP_PORTS: &str = "udp-ports";
    /// `[aq]`: TCP ports that are (or would be) open.
    pub const TCP_PORTS: &str = "tcp-ports";
    /// `[s]`: what is (or would be) done on UDP 67, one of [`super::dhcp_mode`].
    pub const DHCP_MODE: &str = "dhcp-mode";
    /// `[t]`: when the lease was opened, CLOCK_BOOTTIME in microseconds.
    pub const OPENED: &str = "opened";
    /// `[t]`: when the lease ends by itself, CLOCK_BOOTTIME in microseconds.
    pub const ENDS: &str = "ends";
    /// `[u]`: uid of the owner (`List` only).
    pub const UID: &str = "uid";
    /// `[s]`: what polkit would answer, one of [`super::authorization`] (`Check` only).
    pub const AUTHORIZATION: &str = "authorization";
    /// `[a(squ)]`: ports that are taken: protocol (`udp` or `tcp`), port, uid of the holder
    /// (`Check` only).
    pub const PORTS_TAKEN: &str = "ports-taken";
    /// `[as]`: sentences that say why `Open` would refuse, empty when it would not (`Check` only).
    pub const PROBLEMS: &str = "problems";
    /// `[as]`: base chains of the firewall, at most 16, that drop by policy what they do not name, and
    /// that `Open` would not open (`Check` only). What passes there is not known.
    pub const OTHER_DROPS: &str = "other-drops";
}

/// Values of `fact::DHCP_MODE`.
pub mod dhcp_mode {
    /// UDP 67 is left alone.
    pub const NONE: &str = "none";
    /// Bound for proxy DHCP: what leaves is boot information without an address.
    pub const BIND: &str = "bind";
    /// The same beside another DHCP server of this host: the socket hears broadcasts alone.
    pub const SHARED: &str = "shared";
    /// The same where that server keeps the port to itself: broadcasts are heard by a raw socket.
    pub const SHARED_RAW: &str = "shared-raw";
    /// Bound for full DHCP: addresses may be handed out and refused.
    pub const FULL: &str = "full";
}

/// Values of `fact::BACKEND`.
pub mod backend {
    /// NixOS, `table inet nixos-fw`, chain `input-allow`.
    pub const NIXOS_NFTABLES: &str = "nixos-nftables";
    /// NixOS, `table ip filter`, chain `nixos-fw`, made by iptables in its nf_tables variant.
    pub const NIXOS_IPTABLES: &str = "nixos-iptables";
    /// The chain that the site's configuration names.
    pub const NAMED_CHAIN: &str = "named-chain";
    /// firewalld: the zone of the interface has the ports open, for every program and interface in it;
    /// should the helper die, for a minute more.
    pub const FIREWALLD: &str = "firewalld";
    /// No input chain drops anything: the ports are bound and nothing needs opening.
    pub const NONE: &str = "none";
    /// A firewall that the helper does not know how to open (`Check` only).
    pub const UNSUPPORTED: &str = "unsupported";
}

/// Values of `fact::AUTHORIZATION`.
pub mod authorization {
    /// Granted without a question.
    pub const YES: &str = "yes";
    /// A password would be asked for.
    pub const CHALLENGE: &str = "challenge";
    /// Refused.
    pub const NO: &str = "no";
    /// polkit does not answer: refused.
    pub const UNAVAILABLE: &str = "unavailable";
}

/// Values of the reason in the signal `Closed`.
pub mod reason {
    /// Its user closed it, from whichever connection, or let go of its sockets.
    pub const CLOSED: &str = "closed";
    /// Its owner left the bus.
    pub const OWNER_LEFT: &str = "owner-left";
    /// Its time was over.
    pub const EXPIRED: &str = "expired";
    /// Somebody with the manage action ended it.
    pub const MANAGER: &str = "manager";
    /// The helper is stopping.
    pub const HELPER_STOPPING: &str = "helper-stopping";
    /// The interface was removed, renamed or made again.
    pub const INTERFACE_CHANGED: &str = "interface-changed";
    /// The interface's address changed.
    pub const ADDRESS_CHANGED: &str = "address-changed";
    /// An administrator removed the rule that opens the ports, or polkit allows it no more.
    pub const REVOKED: &str = "revoked";
    /// The firewall was taken down and did not come back.
    pub const FIREWALL_GONE: &str = "firewall-gone";
    /// A socket of the lease was moved to another interface.
    pub const SOCKET_MOVED: &str = "socket-moved";
}
