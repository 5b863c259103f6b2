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
    convert::Infallible,
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use portcullis_dbus::{
    BUS_NAME, Error, INTERFACE, OBJECT_PATH,
    keys::{authorization, fact, reason},
};
use tokio::sync::oneshot;
use zbus::{
    Connection, OwnedFd, OwnedVariant,
    fdo::NameOwnerChangedStream,
    interface,
    message::{Flags, Header},
    names::BusName,
    object_server::SignalEmitter,
};

use crate::{
    authority::{Answer, Authority},
    caller::Caller,
    facts::{self, Facts},
    lease::{Lease, no_such_lease},
    log::{self, About, Decision},
    request::Request,
    state::{Ended, Granted, State},
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
    ) -> Result<(u64, HashMap<&'static str, OwnedFd>, Facts), Error> {
        let (caller, dialog) = self.caller(&header).await?;
        let request = Request::parse(&request, self.state().config.max_seconds)
            .inspect_err(|error| refused("Open", error, &caller, About::Nothing))?;
        let outcome = self.open_for(&caller, &request, dialog).await;
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
        let (caller, dialog) = self.caller(&header).await?;
        let outcome = self.extend_for(&caller, lease, seconds, dialog).await;
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
        let (caller, dialog) = self.caller(&header).await?;
        let outcome = self.close_for(&caller, lease, dialog).await;
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
        let (caller, _) = self.caller(&header).await?;
        let request = Request::parse(&request, self.state().config.max_seconds)?;
        let answer = self.ask_quietly(&caller, Some(&request)).await?;
        let mut facts = self.state().facts(&request, caller.uid);
        facts.insert(fact::AUTHORIZATION, word_for(answer).into());
        Ok(facts)
    }

    /// The leases of the caller's user; all leases for those who may manage them without a password.
    ///
    /// Each with its facts as returned by `Open`, and `uid` (u), the user it belongs to.
    #[zbus(out_args("leases"))]
    async fn list(&self, #[zbus(header)] header: Header<'_>) -> Result<Vec<(u64, Facts)>, Error> {
        let (caller, _) = self.caller(&header).await?;
        let own = |lease: &Lease| lease.owner.uid == caller.uid;
        let hidden = !self.state().leases.open.values().all(own);
        let all = hidden && self.ask_quietly(&caller, None).await? == Answer::Yes;
        let state = self.state();
        let shown = state.leases.open.iter().filter(|(_, lease)| all || own(lease));
        let entry = |(id, lease): (&u64, &Lease)| {
            let mut facts = facts::of_lease(lease);
            facts.insert(fact::UID, lease.owner.uid.get().into());
            (*id, facts)
        };
        Ok(shown.map(entry).collect())
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
    pub async fn heed_polkit(&self, connection: &Connection) -> Infallible {
        let Some(mut changes) = self.authority.changes().await else {
            return future::pending().await;
        };
        while changes.next().await.is_some() {
            let question =
                |(id, lease): (&u64, &Lease)| (*id, lease.owner.clone(), lease.request.clone());
            let leases: Vec<_> = self.state().leases.open.iter().map(question).collect();
            for (id, owner, request) in leases {
                let answer = self.authority.ask(&owner, Some(&request), false, future::pending());
                if answer.await == Answer::No {
                    let ended = self.state().end(id, reason::REVOKED);
                    tell(connection, ended).await;
                }
            }
        }
        future::pending().await
    }

    /// Ends what belongs to a connection in the moment in which that leaves the bus. Completes when the
    /// bus itself is gone, or has given the helper's name to another.
    pub async fn heed_departures(
        &self,
        connection: &Connection,
        mut changes: NameOwnerChangedStream,
    ) {
        let own = connection.unique_name().map(|name| name.as_str());
        while let Some(change) = changes.next().await {
            let Ok(change) = change.args() else {
                continue;
            };
            match (&change.name, change.new_owner.as_deref()) {
                (BusName::Unique(name), None) => self.state().left(name),
                (name, Some(owner)) if *name == BUS_NAME && own != Some(owner) => return,
                _ => {}
            }
        }
    }

    /// Who calls, and whether somebody is there to answer a dialog, as the message says. Notes the call
    /// first, so that the helper does not leave with it half done.
    async fn caller(&self, header: &Header<'_>) -> Result<(Caller, bool), Error> {
        self.state().touch();
        let dialog = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        Ok((self.authority.caller(header).await?, dialog))
    }

    /// The checklist.
    async fn open_for(
        &self,
        caller: &Caller,
        request: &Request,
        dialog: bool,
    ) -> Result<Granted, Error> {
        let mut question = self.begin_question(caller)?;
        let site = self.state().admit(request, caller.uid)?;
        question.ask(Some(request), dialog).await.granted()?;
        self.state().grant(request, &site, caller)
    }

    async fn extend_for(
        &self,
        caller: &Caller,
        lease: u64,
        seconds: u32,
        dialog: bool,
    ) -> Result<(), Error> {
        let request = self.state().leases.own(lease, &caller.name)?.request.clone();
        let request = request.lasting(seconds)?;
        self.state().config.permit(&request)?;
        let mut question = self.begin_question(caller)?;
        question.ask(Some(&request), dialog).await.granted()?;
        let mut state = self.state();
        let ends = state.now().saturating_add(Duration::from_secs(seconds.into()));
        let own = state.leases.own(lease, &caller.name)?;
        (own.request, own.ends) = (request, ends);
        log::decision(&Decision::Extended, caller, About::Lease(lease, own));
        Ok(())
    }

    async fn close_for(
        &self,
        caller: &Caller,
        lease: u64,
        dialog: bool,
    ) -> Result<Option<Ended>, Error> {
        if self.state().leases.is_of(lease, caller.uid) {
            return Ok(self.state().end(lease, reason::CLOSED));
        }
        let mut question = self.begin_question(caller)?;
        // About an id that nobody has polkit is asked, too, so that the time which the answer takes
        // tells nothing; but nobody is made to type a password for it.
        let known = self.state().leases.open.contains_key(&lease);
        if question.ask(None, dialog && known).await != Answer::Yes || !known {
            return Err(no_such_lease());
        }
        log::decision(&Decision::Managed, caller, About::Number(lease));
        Ok(self.state().end(lease, reason::MANAGER))
    }

    fn begin_question(&self, caller: &Caller) -> Result<Question, Error> {
        let mut state = self.state();
        let State { leases, config, .. } = &mut *state;
        let over = leases.begin_question(caller, config)?;
        Ok(Question { netboot: self.clone(), caller: caller.clone(), over })
    }

    /// Asks polkit without a dialog. Such questions may be many at once, so their number is what is
    /// limited.
    async fn ask_quietly(
        &self,
        caller: &Caller,
        request: Option<&Request>,
    ) -> Result<Answer, Error> {
        let now = self.state().now();
        if !self.state().rates.take(caller.uid, now) {
            let sentence = "too many questions to polkit: wait a second";
            return Err(Error::LimitsExceeded(sentence.to_owned()));
        }
        Ok(self.authority.ask(caller, request, false, future::pending()).await)
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

/// A pending question; it is over when this is dropped, however the method ends, and when its caller
/// leaves.
struct Question {
    netboot: Netboot,
    caller: Caller,
    over: oneshot::Receiver<()>,
}

impl Question {
    /// Asks polkit, and the bus before and after it whether the caller is still there: since this
    /// question was noted, a departure is seen.
    async fn ask(&mut self, request: Option<&Request>, dialog: bool) -> Answer {
        let authority = &self.netboot.authority;
        if !authority.knows(&self.caller).await {
            return Answer::Unavailable;
        }
        let left = async { drop((&mut self.over).await) };
        let answer = authority.ask(&self.caller, request, dialog, left).await;
        if !authority.knows(&self.caller).await {
            return Answer::Unavailable;
        }
        answer
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut state = self.netboot.state();
        state.touch();
        state.leases.end_question(&self.caller.name);
    }
}

fn word_for(answer: Answer) -> &'static str {
    match answer {
        Answer::Yes => authorization::YES,
        Answer::Challenge => authorization::CHALLENGE,
        Answer::No | Answer::Dismissed => authorization::NO,
        Answer::Unavailable | Answer::TimedOut => authorization::UNAVAILABLE,
    }
}

fn refused(method: &'static str, error: &Error, caller: &Caller, about: About<'_>) {
    log::decision(&Decision::Refused(method, error), caller, about);
}
