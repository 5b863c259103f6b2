//! The interface on the bus. `Open` tells the whole story of a lease, one step per line.
//!
//! Guarantees: every method identifies its caller first; the state's lock is never held while
//! anybody is asked; nothing is bound before polkit's yes. Trusts the bus and polkit.
//!
//! | method | polkit action |
//! |---|---|
//! | Open, Extend | open; open-dhcp where addresses may be handed out |
//! | Close | none for a lease of the same user, manage for another's |
//! | List | none for leases of the same user, manage (never with a dialog) for the others' |
//! | Check | none: says what polkit would answer |

use std::{
    collections::HashMap,
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::StreamExt;
use portcullis_dbus::{
    Error, INTERFACE, OBJECT_PATH, action,
    keys::{authorization, fact, reason},
};
use zbus::{
    Connection, OwnedFd, OwnedVariant, interface,
    message::{Flags, Header},
    object_server::SignalEmitter,
};

use crate::{
    authority::{Answer, Authority, Dialog},
    caller::{Caller, Departure},
    facts::{self, Facts},
    lease::{Lease, Relation, no_such_lease},
    limits,
    log::{self, About, Decision},
    request::{self, Details, Request},
    state::{Ended, State},
};

/// The object at [`OBJECT_PATH`].
#[derive(Clone)]
pub struct Netboot {
    authority: Authority,
    state: Arc<Mutex<State>>,
}

/// Asks for the netboot ports of one interface, and keeps account of what was given.
///
/// A lease belongs to the connection that asked for it, and ends when that connection leaves the
/// bus. Its user sees and ends it from any other connection, too.
#[interface(name = "org.portcullis.Netboot1")]
impl Netboot {
    /// Opens the ports of a request and returns the lease, its sockets and facts about it.
    ///
    /// Request: `interface` (s, required), `dhcp` (s: `bind`, `share` or `none`, default `bind`),
    /// `full-dhcp` (b, default false), `boot-server` (b, default true), `tftp` (b, default true),
    /// `http-port` (q, default 64172, 0 for none), `max-seconds` (u, default 43200, or the
    /// site's longest). Unknown keys are refused. Sockets: `dhcp`,
    /// `boot-server`, `tftp`, `http`. Facts: `backend` (s), `interface` (s), `interface-index`
    /// (u), `address` (s), `udp-ports` (aq), `tcp-ports` (aq), `dhcp-mode` (s), `opened` and `ends`
    /// (t, CLOCK_BOOTTIME in microseconds).
    #[zbus(out_args("lease", "sockets", "facts"))]
    async fn open(
        &self,
        request: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(u64, HashMap<String, OwnedFd>, Facts), Error> {
        let caller = self.caller(&header).await?;
        let request = self
            .state()
            .parse(&request)
            .inspect_err(|error| refused("Open", error, &caller, About::Nothing))?;
        let outcome = self.open_for(&caller, &request, &header).await;
        outcome.inspect_err(|error| refused("Open", error, &caller, About::Request(&request)))
    }

    /// Asks again, by the same rules as `Open`, and moves the end of a lease of this connection to
    /// so many seconds from now.
    async fn extend(
        &self,
        lease: u64,
        seconds: u32,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        let caller = self.caller(&header).await?;
        let outcome = self.extend_for(&caller, lease, seconds, &header).await;
        outcome.inspect_err(|error| refused("Extend", error, &caller, About::Number(lease)))
    }

    /// Ends a lease. One of the caller's user is ended without a question, and ending it again
    /// succeeds; any other needs the action `org.portcullis.netboot1.manage`.
    async fn close(
        &self,
        lease: u64,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        let caller = self.caller(&header).await?;
        let outcome = self.close_for(&caller, lease, &header).await;
        let ended =
            outcome.inspect_err(|error| refused("Close", error, &caller, About::Number(lease)))?;
        tell(connection, ended).await;
        Ok(())
    }

    /// Says what `Open` would do with this request. Opens nothing and never shows a dialog.
    ///
    /// Facts: `backend`, `interface`, `interface-index`, `address`, `udp-ports`, `tcp-ports`,
    /// `dhcp-mode` as for `Open`; `authorization` (s: `yes`, `challenge`, `no`, `unavailable`); `ports-taken` (a(squ):
    /// protocol, port, uid of the holder); `problems` (as: sentences, empty when `Open` would
    /// succeed); `other-drops` (as: chains that drop by policy and that `Open` would not open).
    #[zbus(out_args("facts"))]
    async fn check(
        &self,
        request: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<Facts, Error> {
        let caller = self.caller(&header).await?;
        self.take_from_rate(&caller)?;
        let request = self.state().parse(&request)?;
        let details = request.details();
        let answer = self
            .authority
            .ask(&header, details.action, Some(&details), Dialog::Never, future::pending())
            .await;
        let mut facts = self.state().facts(&request, caller.uid);
        facts::put(&mut facts, fact::AUTHORIZATION, word_for(answer).into());
        Ok(facts)
    }

    /// The leases of the caller's user; all leases for those who may manage them without a password.
    ///
    /// Each with its facts as returned by `Open`, and `uid` (u), the user it belongs to.
    #[zbus(out_args("leases"))]
    async fn list(&self, #[zbus(header)] header: Header<'_>) -> Result<Vec<(u64, Facts)>, Error> {
        let caller = self.caller(&header).await?;
        let others = {
            let state = self.state();
            state.leases.iter().any(|(_, lease)| lease.owner.uid != caller.uid)
        };
        let all = others && {
            self.take_from_rate(&caller)?;
            let question =
                self.authority.ask(&header, action::MANAGE, None, Dialog::Never, future::pending());
            question.await == Answer::Yes
        };
        let state = self.state();
        let shown = state.leases.iter().filter(|(_, lease)| all || lease.owner.uid == caller.uid);
        Ok(shown.map(|(id, lease)| (id, facts::entry(lease))).collect())
    }

    /// A lease of this connection has ended. Sent to no other.
    ///
    /// Reason: `closed`, `owner-left`, `expired`, `manager`, `helper-stopping`,
    /// `interface-changed`, `address-changed`, `revoked`, `firewall-gone`, `socket-moved`.
    #[zbus(signal, name = "Closed")]
    async fn closed(emitter: &SignalEmitter<'_>, lease: u64, reason: &str) -> zbus::Result<()>;
}

impl Netboot {
    /// The object for the callers that this authority decides about.
    #[must_use]
    pub fn new(authority: Authority, state: State) -> Self {
        Self { authority, state: Arc::new(Mutex::new(state)) }
    }

    /// The state. Never held across an await: the guard cannot be sent between threads, so the
    /// compiler refuses that in a method of the interface.
    pub fn state(&self) -> MutexGuard<'_, State> {
        // A panic ends the process, so nobody ever sees a poisoned lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks polkit again, whenever its rules change, about every lease, and ends those that are
    /// refused now. A password that would be asked for is no refusal: it may have been given. Never
    /// completes.
    pub async fn heed_polkit(&self, connection: &Connection) {
        if let Some(mut changes) = self.authority.changes().await {
            while changes.next().await.is_some() {
                self.ask_again(connection).await;
            }
        }
        future::pending().await
    }

    async fn ask_again(&self, connection: &Connection) {
        let question = |(id, lease): (u64, &Lease)| {
            let whole = lease.ends.saturating_sub(lease.opened).as_secs();
            let seconds = u32::try_from(whole).unwrap_or(limits::MAX_SECONDS_CEILING);
            (id, lease.owner.name.clone(), Details::of_lease(&lease.opening, seconds))
        };
        let leases: Vec<_> = self.state().leases.iter().map(question).collect();
        for (id, owner, details) in leases {
            if self.authority.ask_again(&owner, &details).await == Answer::No {
                let ended = self.state().end(id, reason::REVOKED);
                tell(connection, ended).await;
            }
        }
    }

    /// Who calls. Notes the call first, so that the helper does not leave with it half done.
    async fn caller(&self, header: &Header<'_>) -> Result<Caller, Error> {
        self.state().touch();
        self.authority.caller(header).await
    }

    /// The checklist.
    async fn open_for(
        &self,
        caller: &Caller,
        request: &Request,
        header: &Header<'_>,
    ) -> Result<(u64, HashMap<String, OwnedFd>, Facts), Error> {
        let _question = self.begin_question(caller)?;
        let mut departure = self.authority.departure(caller).await?;
        let site = self.state().admit(request, caller.uid)?;
        self.authorize(header, &request.details(), &mut departure).await?;
        departure.still_here().await?;
        let granted = self.state().grant(request, &site, caller)?;
        self.end_when_left(granted.lease, departure);
        let sockets = granted.sockets.into_iter();
        let sockets = sockets.map(|(key, socket)| (key.to_owned(), socket.into())).collect();
        Ok((granted.lease, sockets, granted.facts))
    }

    async fn extend_for(
        &self,
        caller: &Caller,
        lease: u64,
        seconds: u32,
        header: &Header<'_>,
    ) -> Result<(), Error> {
        let seconds = request::parse_seconds(seconds)?;
        let details = {
            let mut state = self.state();
            state.config.permit_seconds(seconds)?;
            let lease = state.leases.own(lease, &caller.name)?;
            Details::of_lease(&lease.opening, seconds)
        };
        let _question = self.begin_question(caller)?;
        let mut departure = self.authority.departure(caller).await?;
        self.authorize(header, &details, &mut departure).await?;
        departure.still_here().await?;
        let mut state = self.state();
        let ends = state.now().saturating_add(std::time::Duration::from_secs(seconds.into()));
        let own = state.leases.own(lease, &caller.name)?;
        own.ends = ends;
        log::decision(&Decision::Extended { seconds }, caller, About::Lease(lease, own));
        Ok(())
    }

    async fn close_for(
        &self,
        caller: &Caller,
        lease: u64,
        header: &Header<'_>,
    ) -> Result<Option<Ended>, Error> {
        let relation = self.state().leases.relation(lease, caller.uid);
        let reason = match relation {
            Relation::Own => reason::CLOSED,
            Relation::OwnEnded => return Ok(None),
            Relation::Unknown | Relation::Foreign => {
                let _question = self.begin_question(caller)?;
                let mut departure = self.authority.departure(caller).await?;
                // About an id that nobody has polkit is asked, too, so that the time which the
                // answer takes tells nothing; but nobody is made to type a password for it.
                let known = relation == Relation::Foreign;
                let dialog = if known { dialog(header) } else { Dialog::Never };
                let question =
                    self.authority.ask(header, action::MANAGE, None, dialog, departure.left());
                if question.await != Answer::Yes || !known {
                    return Err(no_such_lease());
                }
                log::decision(&Decision::Managed, caller, About::Number(lease));
                reason::MANAGER
            }
        };
        Ok(self.state().end(lease, reason))
    }

    async fn authorize(
        &self,
        header: &Header<'_>,
        details: &Details,
        departure: &mut Departure,
    ) -> Result<(), Error> {
        let dialog = dialog(header);
        self.authority
            .ask(header, details.action, Some(details), dialog, departure.left())
            .await
            .granted(dialog)
    }

    fn begin_question(&self, caller: &Caller) -> Result<Question, Error> {
        let mut state = self.state();
        let State { leases, config, .. } = &mut *state;
        leases.begin_question(caller, config)?;
        Ok(Question { netboot: self.clone(), caller: caller.clone() })
    }

    /// Questions without a dialog are many at once, so their number is what is limited.
    fn take_from_rate(&self, caller: &Caller) -> Result<(), Error> {
        let mut state = self.state();
        let now = state.now();
        if state.rates.take(caller.uid, now) {
            return Ok(());
        }
        Err(Error::LimitsExceeded("too many questions to polkit: wait a second".to_owned()))
    }

    /// Ends the lease in the moment in which its owner leaves. The watch ends with the lease.
    fn end_when_left(&self, lease: u64, mut departure: Departure) {
        let netboot = self.clone();
        let watch = tokio::spawn(async move {
            departure.left().await;
            // Nobody is left to be told.
            netboot.state().end(lease, reason::OWNER_LEFT);
        });
        self.state().leases.watched_by(lease, watch.abort_handle());
    }
}

/// Tells owners that their leases are over.
pub async fn tell(connection: &Connection, ended: impl IntoIterator<Item = Ended>) {
    for Ended { lease, owner, reason } in ended {
        let (owner, told) = (Some(owner.as_ref()), (lease, reason));
        // An owner that has left in the meantime has nobody to be told.
        let _ = connection.emit_signal(owner, OBJECT_PATH, INTERFACE, "Closed", &told).await;
    }
}

/// A pending question; it is over when this is dropped, however the method ends.
struct Question {
    netboot: Netboot,
    caller: Caller,
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut state = self.netboot.state();
        state.touch();
        state.leases.end_question(&self.caller);
    }
}

/// A dialog appears only if the caller's message says that somebody is there to answer it.
fn dialog(header: &Header<'_>) -> Dialog {
    let allowed = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    if allowed { Dialog::Allowed } else { Dialog::Never }
}

fn word_for(answer: Answer) -> &'static str {
    match answer {
        Answer::Yes => authorization::YES,
        Answer::Challenge => authorization::CHALLENGE,
        Answer::No | Answer::Dismissed => authorization::NO,
        Answer::Unavailable | Answer::CallerLeft | Answer::TimedOut => authorization::UNAVAILABLE,
    }
}

fn refused(method: &'static str, error: &Error, caller: &Caller, about: About<'_>) {
    log::decision(&Decision::Refused { method, error }, caller, about);
}
