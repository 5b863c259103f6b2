//! What the helper does between two questions to the bus: admit, grant, end, and hold every lease
//! against the world. Synchronous, and the only place where the kernel and the firewall are changed.
//!
//! Guarantees: sockets first, then the firewall in one transaction, then the record; a failure
//! undoes in reverse and leaves nothing. A lease that is over is closed in the firewall; if the
//! kernel refuses that for too long, the helper ends, and its table with it. Trusts that its caller
//! has asked polkit.

use std::{collections::HashMap, io, net::IpAddr, time::Duration};

use portcullis_dbus::{
    DHCP_PORT, Error,
    keys::{backend, fact, reason},
};
use zbus::{
    OwnedFd,
    names::{OwnedUniqueName, UniqueName},
};

use crate::{
    caller::{Caller, Uid},
    config::Config,
    facts::{self, Facts},
    firewall::{Dhcp, Firewall, FirewallError, Opening},
    interface::Site,
    kernel::Kernel,
    lease::{Lease, Leases},
    limits,
    log::{self, About, Decision},
    rate::Rates,
    request::{self, Request},
    sockdiag::{Found, Protocol},
    sockets::{BindError, Bound},
    upkeep,
};

/// The owned state of the helper.
pub struct State {
    /// What the site allows.
    pub config: Config,
    /// Who has what.
    pub leases: Leases,
    /// How often each user has had polkit asked without a dialog.
    pub rates: Rates,
    kernel: Box<dyn Kernel>,
    firewall: Box<dyn Firewall + Send>,
    /// Since when something of ended leases may be left in the firewall: our table, as long as a
    /// process outlives its lease and holds the sockets.
    untidy_since: Option<Duration>,
    /// Since when the kernel has been refusing to close an opening.
    unclosed_since: Option<Duration>,
    last_used: Duration,
    stopping: bool,
}

/// What a granted request gives: the id of the lease, its sockets, for the client alone, and facts.
pub type Granted = (u64, HashMap<&'static str, OwnedFd>, Facts);

/// A lease that is over, for the signal to its owner.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its id.
    pub lease: u64,
    /// The connection it belonged to.
    pub owner: OwnedUniqueName,
    /// One of [`portcullis_dbus::keys::reason`].
    pub reason: &'static str,
}

/// An opening could not be removed in time: the helper has to end, since the kernel then removes
/// its table with everything in it.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refuses to close an opening; leaving, so that it removes the whole table")]
pub struct CannotClose;

impl State {
    /// A state without leases.
    #[must_use]
    pub fn new(
        config: Config,
        kernel: Box<dyn Kernel>,
        firewall: Box<dyn Firewall + Send>,
    ) -> Self {
        let last_used = kernel.boottime();
        Self {
            leases: Leases::default(),
            config,
            rates: Rates::default(),
            kernel,
            firewall,
            untidy_since: None,
            unclosed_since: None,
            last_used,
            stopping: false,
        }
    }

    /// Time since boot, suspend included.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.kernel.boottime()
    }

    /// Notes that somebody uses the helper.
    pub fn touch(&mut self) {
        self.last_used = self.now();
    }

    /// Whether this request of this user could be granted now, polkit aside; and where. Asked
    /// before the dialog, so that nobody types a password in vain, and again after it.
    ///
    /// # Errors
    /// The configuration, the quota, the interface, or the port that is in the way.
    pub fn admit(&mut self, request: &Request, uid: Uid) -> Result<Site, Error> {
        self.config.permit(request)?;
        self.leases.check_quota(uid, &self.config)?;
        let site = self.site(request)?;
        match request.ports().find_map(|port| self.leased(port, &site)) {
            Some((_, sentence)) => Err(Error::AddressInUse(sentence)),
            None => Ok(site),
        }
    }

    /// The interface of a request, if it can be served on.
    ///
    /// # Errors
    /// `NoSuchInterface`.
    pub fn site(&mut self, request: &Request) -> Result<Site, Error> {
        let name = &request.interface;
        let link = self.kernel.link(name).map_err(|error| {
            Error::NoSuchInterface(format!("the kernel did not say what {name} is: {error}"))
        })?;
        Site::judge(name, link.as_ref())
    }

    /// Carries out a request that polkit has allowed.
    ///
    /// # Errors
    /// Whatever is in the way; nothing is left of the attempt.
    pub fn grant(
        &mut self,
        request: &Request,
        site: &Site,
        caller: &Caller,
    ) -> Result<Granted, Error> {
        if !self.leases.is_asking(caller) {
            return Err(Error::NotAuthorized("the caller has left the bus".to_owned()));
        }
        if self.stopping {
            return Err(Error::Busy("the helper is stopping: ask again".to_owned()));
        }
        if self.unclosed_since.is_some() {
            return Err(Error::FirewallFailed(
                "the kernel has not closed an earlier lease yet: ask again in a moment".to_owned(),
            ));
        }
        // The world may have changed while the dialog stood open.
        if self.admit(request, caller.uid)? != *site {
            return Err(Error::NoSuchInterface(format!(
                "{} changed while the question was open: ask again",
                site.name
            )));
        }
        let living = self.kernel.tagged();
        let living = living.map_err(|error| Error::FirewallFailed(not_listed(&error)))?;
        refuse_leftovers(&living, request, site)?;
        let asked = Opening {
            mark: self.leases.next_mark(self.config.marks, &living)?,
            interface: site.name.clone(),
            index: site.index,
            dhcp: request.dhcp,
            boot_server: request.boot_server,
            tftp: request.tftp,
            http: request.http,
        };
        let (opening, bound) = self.bind(asked, site)?;
        let opened = self.now();
        let backend = self.firewall.open(&opening).map_err(|error| {
            // It may have been the kernel's answer that was lost, and not the transaction.
            self.untidy_since = Some(opened);
            firewall_error(error)
        })?;
        let lease = Lease {
            owner: caller.clone(),
            request: request.clone(),
            opening,
            address: site.address,
            backend,
            opened,
            ends: opened.saturating_add(Duration::from_secs(request.max_seconds.into())),
            chain_gone_since: None,
            placeholders: bound.placeholders,
            ear: bound.ear,
        };
        let facts = facts::of_lease(&lease);
        let (id, lease) = self.leases.insert(lease);
        log::decision(&Decision::Granted, caller, About::Lease(id, lease));
        let sockets = bound.handed.into_iter().map(|(key, socket)| (key, socket.into()));
        Ok((id, sockets.collect(), facts))
    }

    /// Ends a lease: closes its opening and forgets it. `None` when it is not open.
    pub fn end(&mut self, id: u64, reason: &'static str) -> Option<Ended> {
        let lease = self.leases.remove(id)?;
        self.touch();
        self.close(&lease.opening);
        let seconds = self.now().saturating_sub(lease.opened).as_secs();
        log::decision(&Decision::Ended(reason, seconds), &lease.owner, About::Lease(id, &lease));
        Some(Ended { lease: id, owner: lease.owner.name, reason })
    }

    /// Ends every lease, as the helper stops. A request that is answered after that is refused.
    pub fn end_all(&mut self) -> Vec<Ended> {
        self.stopping = true;
        self.end_where(|_| true, reason::HELPER_STOPPING)
    }

    /// Ends what belongs to a connection that has left the bus: its leases and its question. Nobody is
    /// left to be told.
    pub fn left(&mut self, name: &UniqueName<'_>) {
        self.leases.end_question(name);
        self.end_where(|lease| lease.owner.name == *name, reason::OWNER_LEFT);
    }

    fn end_where(&mut self, over: impl Fn(&Lease) -> bool, reason: &'static str) -> Vec<Ended> {
        let ids = self.leases.open.iter().filter(|(_, lease)| over(lease)).map(|(id, _)| *id);
        let ids: Vec<u64> = ids.collect();
        ids.into_iter().filter_map(|id| self.end(id, reason)).collect()
    }

    /// Holds every lease against the world and ends those that no longer fit into it.
    ///
    /// # Errors
    /// [`CannotClose`], when the helper has to leave.
    pub fn tick(&mut self) -> Result<Vec<Ended>, CannotClose> {
        self.tidy()?;
        if self.leases.open.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.now();
        let living =
            self.kernel.tagged().inspect_err(|error| log::kernel("list sockets", error)).ok();
        let mut over = Vec::new();
        for (id, lease) in &mut self.leases.open {
            let link = self.kernel.link(&lease.opening.interface);
            let reason = upkeep::expired(lease, now)
                .or_else(|| upkeep::interface_changed(lease, &link))
                .or_else(|| upkeep::sockets_changed(lease, living.as_deref()))
                .or_else(|| upkeep::firewall_changed(lease, now, self.firewall.as_mut()));
            over.extend(reason.map(|reason| (*id, reason)));
        }
        Ok(over.into_iter().filter_map(|(id, reason)| self.end(id, reason)).collect())
    }

    /// How soon to tick again.
    #[must_use]
    pub fn next_tick(&self) -> Duration {
        let now = self.now();
        let recent = |since: Duration| now.saturating_sub(since) < limits::FIREWALL_PATIENCE;
        let reloading = self.leases.open.values().any(|lease| lease.chain_gone_since.is_some());
        if reloading || self.untidy_since.is_some_and(recent) { limits::SOON } else { limits::TICK }
    }

    /// Whether the helper may leave: nothing open, asked or left over for [`limits::IDLE`], and no
    /// socket of an earlier lease alive, whose slot a new helper would not know.
    pub fn may_leave(&mut self) -> bool {
        let unused = self.now().saturating_sub(self.last_used) >= limits::IDLE;
        unused
            && self.leases.is_idle()
            && self.untidy_since.is_none()
            && self.kernel.tagged().is_ok_and(|living| living.is_empty())
    }

    /// What `Check` says about a request, apart from polkit's part. Changes nothing.
    pub fn facts(&mut self, request: &Request, uid: Uid) -> Facts {
        let mut problems = Vec::new();
        let mut facts = facts::of_ports(request.ports(), request.dhcp);
        facts.insert(fact::INTERFACE, request.interface.to_string().into());
        match self.site(request) {
            Ok(site) => {
                let taken = self.ports_taken(request, &site, &mut problems);
                facts.extend([
                    (fact::INTERFACE_INDEX, site.index.into()),
                    (fact::ADDRESS, site.address.to_string().into()),
                    (fact::PORTS_TAKEN, taken.into()),
                ]);
            }
            Err(error) => problems.push(error.message()),
        }
        for allowed in [self.config.permit(request), self.leases.check_quota(uid, &self.config)] {
            problems.extend(allowed.err().map(|error| error.message()));
        }
        let backend = match self.firewall.backend() {
            Ok(found) => facts::backend(found),
            Err(error) => {
                problems.push(firewall_error(error).message());
                backend::UNSUPPORTED
            }
        };
        // That the firewall cannot be read is among the problems by now.
        let drops = self.firewall.other_drops().unwrap_or_default();
        facts.extend([
            (fact::BACKEND, backend.into()),
            (fact::OTHER_DROPS, drops.into()),
            (fact::PROBLEMS, problems.into()),
        ]);
        facts
    }

    fn ports_taken(
        &mut self,
        request: &Request,
        site: &Site,
        problems: &mut Vec<String>,
    ) -> Vec<(String, u16, u32)> {
        let mut taken = Vec::new();
        for port in request.ports() {
            // Whether the other server's socket can be shared shows when it is tried.
            let shared = request.dhcp == Dhcp::Shared && port.1 == DHCP_PORT;
            let found = if shared { Ok(self.leased(port, site)) } else { self.taken(port, site) };
            match found {
                Ok(Some((uid, sentence))) => {
                    problems.push(sentence);
                    taken.push((request::word(port.0).to_owned(), port.1, uid));
                }
                Ok(None) => {}
                Err(error) => problems.push(not_listed(&error)),
            }
        }
        taken
    }

    /// The user who has a port leased on an interface, and a sentence about that.
    fn leased(&self, port: (Protocol, u16), site: &Site) -> Option<(u32, String)> {
        let mut open = self.leases.open.values().filter(|lease| lease.opening.index == site.index);
        let uid = open.find(|lease| lease.opening.ports().any(|own| own == port))?.owner.uid;
        let (protocol, port) = (request::word(port.0), port.1);
        let what = format!("is leased to uid {uid} (`portcullis status`)");
        Some((uid.get(), format!("{protocol} port {port} of this interface {what}")))
    }

    /// Who keeps us from binding a port, and a sentence about that: a lease, or a socket that is bound to
    /// the wildcard or to our address, and to no other interface. One on 127.0.0.1 is not in the way.
    fn taken(&mut self, port: (Protocol, u16), site: &Site) -> io::Result<Option<(u32, String)>> {
        let leased = self.leased(port, site);
        if leased.is_some() {
            return Ok(leased);
        }
        let ours = |address: IpAddr| match address.to_canonical() {
            // Ours is on the wildcard address, so any other is in the way.
            _ if port.1 == DHCP_PORT => true,
            address => address.is_unspecified() || address == site.address,
        };
        let mut holders = self.kernel.holders(port.0, port.1)?.into_iter();
        let holder = holders.find(|holder| {
            ours(holder.address) && (holder.ifindex == 0 || holder.ifindex == site.index)
        });
        Ok(holder.map(|holder| match self.config.marks.of_socket(holder.mark) {
            Some(_) => (holder.uid, outlived(&holder)),
            None => (holder.uid, in_use(port, &format!("a program of uid {}", holder.uid))),
        }))
    }

    /// Makes the sockets; where UDP 67 is to be shared and is not, the raw one, if the site allows it.
    fn bind(&mut self, mut opening: Opening, site: &Site) -> Result<(Opening, Bound), Error> {
        let mut bound = self.kernel.bind(&opening, site.address);
        let taken = |error: &BindError| error.port == DHCP_PORT && is_taken(error);
        let shared = opening.dhcp == Dhcp::Shared && bound.as_ref().is_err_and(taken);
        // It is the boot server's socket that answers.
        if shared && opening.boot_server && self.config.raw_dhcp {
            opening.dhcp = Dhcp::Raw;
            bound = self.kernel.bind(&opening, site.address);
        }
        match bound {
            Ok(bound) => Ok((opening, bound)),
            Err(error) => Err(self.bind_error(error, &opening, site)),
        }
    }

    fn bind_error(&mut self, error: BindError, opening: &Opening, site: &Site) -> Error {
        let advice = match opening.dhcp {
            Dhcp::Shared if error.port == DHCP_PORT => NOT_SHARED,
            Dhcp::Raw if error.source.kind() == io::ErrorKind::PermissionDenied => NOT_PRIVILEGED,
            _ => "",
        };
        if is_taken(&error) || advice == NOT_PRIVILEGED {
            let port = (error.protocol, error.port);
            let taken = self.taken(port, site).ok().flatten();
            let sentence =
                taken.map_or_else(|| in_use(port, "another program"), |(_, sentence)| sentence);
            return Error::AddressInUse(sentence + advice);
        }
        Error::FirewallFailed(format!("the kernel refused to open {error}"))
    }

    fn close(&mut self, opening: &Opening) {
        let now = self.now();
        self.untidy_since = Some(now);
        if let Err(error) = self.firewall.close(opening) {
            log::firewall("close", &error);
            self.unclosed_since.get_or_insert(now);
        }
    }

    /// Takes away what ended leases have left: a rule that could not be removed at once, and our
    /// table when the last process that holds a socket of ours is gone.
    fn tidy(&mut self) -> Result<(), CannotClose> {
        if self.untidy_since.is_none() {
            return Ok(());
        }
        if let Err(error) = self.firewall.sweep() {
            log::firewall("tidy up", &error);
            let since = |since| self.now().saturating_sub(since);
            let tried = self.unclosed_since.map_or(Duration::ZERO, since);
            return if tried < limits::FIREWALL_PATIENCE { Ok(()) } else { Err(CannotClose) };
        }
        self.unclosed_since = None;
        // Our table stands anyway while a lease is open; the end of that one tidies up. If the kernel does
        // not say whether a socket of ours is held, one is.
        let is_free = |living: Vec<Found>| living.iter().all(|socket| !socket.held);
        if !self.leases.open.is_empty() || self.kernel.tagged().is_ok_and(is_free) {
            self.untidy_since = None;
        }
        Ok(())
    }
}

/// A process that outlived its lease shares no port with a new one: SO_REUSEPORT would let the
/// kernel give it half of the packets.
fn refuse_leftovers(living: &[Found], request: &Request, site: &Site) -> Result<(), Error> {
    let leftover = living.iter().find(|socket| {
        socket.protocol == Protocol::Udp
            && (socket.ifindex == site.index || socket.ifindex == 0)
            && request.ports().any(|wanted| wanted == (socket.protocol, socket.port))
    });
    leftover.map_or(Ok(()), |socket| Err(Error::AddressInUse(outlived(socket))))
}

/// What can be done about a server whose socket is on the wildcard address, without SO_REUSEADDR.
const NOT_SHARED: &str = "; or, if it is the DHCP server to serve beside, let it share its port \
                          (dnsmasq: bind-dynamic or bind-interfaces in its configuration), or have \
                          the site allow a raw socket (raw-dhcp in /etc/portcullis/helper.toml)";

/// The site allows a raw socket, and systemd has not given the helper the capability.
const NOT_PRIVILEGED: &str = "; a raw socket beside it is allowed, and needs CAP_NET_RAW: install the \
                              drop-in raw-dhcp.conf that comes with the helper for its unit";

fn is_taken(error: &BindError) -> bool {
    error.source.kind() == io::ErrorKind::AddrInUse
}

fn in_use((protocol, port): (Protocol, u16), holder: &str) -> String {
    let protocol = request::word(protocol);
    format!("{protocol} port {port} is in use by {holder}: stop it (`ss -lnp` as root names it)")
}

fn outlived(socket: &Found) -> String {
    let protocol = request::word(socket.protocol);
    let Found { port, uid, .. } = socket;
    format!(
        "{protocol} port {port} is still held by a process of uid {uid} whose lease has ended: end \
         that process (`ss -lnp` as root names it)"
    )
}

/// The kernel says NotFound when it lacks the module that answers, and may not load it by itself.
fn not_listed(error: &io::Error) -> String {
    let modules = match error.kind() {
        io::ErrorKind::NotFound => ": load the modules inet_diag, tcp_diag and udp_diag",
        _ => "",
    };
    format!("the kernel did not list its sockets: {error}{modules}")
}

fn firewall_error(error: FirewallError) -> Error {
    match error {
        FirewallError::Unsupported(sentence) => Error::FirewallUnsupported(sentence),
        error => Error::FirewallFailed(format!("the firewall was not changed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_list_sockets_is_told_from_one_that_will_not() {
        let said = |errno| not_listed(&io::Error::from_raw_os_error(errno));
        assert!(said(libc::ENOENT).ends_with("load the modules inet_diag, tcp_diag and udp_diag"));
        assert!(!said(libc::EPERM).contains("modules"));
    }
}
