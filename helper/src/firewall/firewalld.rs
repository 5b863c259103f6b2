//! firewalld, asked over its own D-Bus interface to let a lease's packets in.
//!
//! Guarantees: one rich rule per port, for IPv4 alone, each with a time-out that firewalld keeps by
//! itself: what a helper that died has left goes without it. Renewed without a gap: the rules of the
//! next turn stand before those of the last go. No conversation lasts longer than
//! [`limits::FIREWALLD`]. Trusts firewalld. Weaker than a chain of the host's: such a rule lets in
//! whoever has the port, on every interface of the zone.
//! Methods: firewalld.dbus(5); rules: firewalld.richlanguage(5).

use std::time::Instant;

use zbus::{Connection, zvariant::DynamicType};

use super::{FirewallError, Opening};
use crate::{limits, request, sockdiag::Protocol};

const NAME: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const ZONES: &str = "org.fedoraproject.FirewallD1.zone";

/// The rules of one lease.
#[derive(Debug)]
pub struct Admission {
    zone: String,
    rules: Vec<String>,
    second_turn: bool,
    since: Instant,
}

impl Admission {
    /// Has the ports of an opening let in, in the zone that its interface is in now; `last` are the
    /// rules that these take the place of, and stay until they are withdrawn. After an error none of the
    /// new ones is left.
    ///
    /// # Errors
    /// `Firewalld`.
    pub fn ask(opening: &Opening, last: Option<&Self>) -> Result<Self, FirewallError> {
        let second_turn = last.is_some_and(|last| !last.second_turn);
        let rules = opening.ports().map(|port| rule(opening, second_turn, port)).collect();
        let mut new = Self { zone: String::new(), rules, second_turn, since: Instant::now() };
        let asked = converse("open the ports", async |bus| {
            // Empty is the default zone, whose name the answers tell.
            new.zone = call(bus, "getZoneOfInterface", &opening.interface.as_str()).await?;
            for rule in &new.rules {
                let timed = (new.zone.as_str(), rule.as_str(), limits::FIREWALLD_RULE_SECONDS);
                new.zone = match call(bus, "addRichRule", &timed).await {
                    // A helper that died has left it, and its time would be over too soon.
                    Err(zbus::Error::MethodError(..)) => {
                        remove(bus, &new.zone, rule).await?;
                        call(bus, "addRichRule", &timed).await?
                    }
                    added => added?,
                };
            }
            Ok(())
        });
        if let Err(error) = asked {
            let _ = new.withdraw();
            return Err(error);
        }
        Ok(new)
    }

    /// Whether it is time to ask again.
    pub fn is_due(&self) -> bool {
        self.since.elapsed() >= limits::FIREWALLD_RENEWAL
    }

    /// Whether firewalld still has every one of the rules.
    ///
    /// # Errors
    /// `Firewalld`.
    pub fn stands(&self) -> Result<bool, FirewallError> {
        converse("say which rules it has", async |bus| {
            for rule in &self.rules {
                if !call(bus, "queryRichRule", &(&self.zone, rule)).await? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Has the rules removed, as far as they are there.
    ///
    /// # Errors
    /// `Firewalld`, when it does not answer; their time ends them then.
    pub fn withdraw(self) -> Result<(), FirewallError> {
        converse("close the ports", async |bus| {
            for rule in &self.rules {
                remove(bus, &self.zone, rule).await?;
            }
            Ok(())
        })
    }
}

/// The priority tells the lease and the turn: no two rules are the same one. A priority above 0
/// counts after what the zone denies.
fn rule(opening: &Opening, second_turn: bool, (protocol, port): (Protocol, u16)) -> String {
    let slot = u16::from(opening.mark.slot.get());
    let priority = slot.saturating_mul(2).saturating_add(second_turn.into());
    let protocol = request::word(protocol);
    format!(
        "rule priority=\"{priority}\" family=\"ipv4\" port port=\"{port}\" protocol=\"{protocol}\" accept"
    )
}

/// What is not there counts as removed.
async fn remove(bus: &Connection, zone: &str, rule: &str) -> zbus::Result<()> {
    match call::<String>(bus, "removeRichRule", &(zone, rule)).await {
        Ok(_) | Err(zbus::Error::MethodError(..)) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn call<T>(
    bus: &Connection,
    method: &str,
    body: &(impl serde::Serialize + DynamicType),
) -> zbus::Result<T>
where
    T: for<'d> serde::Deserialize<'d> + zbus::zvariant::Type,
{
    let answer = bus.call_method(Some(NAME), PATH, Some(ZONES), method, body).await?;
    answer.body().deserialize()
}

/// On a thread of its own, since the opening is a step that nothing else of the helper comes between.
fn converse<T: Send>(
    step: &'static str,
    talk: impl AsyncFnOnce(&Connection) -> zbus::Result<T> + Send,
) -> Result<T, FirewallError> {
    let talk = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime
            .block_on(async {
                let talk = async { talk(&Connection::system().await?).await };
                tokio::time::timeout(limits::FIREWALLD, talk).await
            })
            .ok()?
            .ok()
    };
    let answer = std::thread::scope(|scope| scope.spawn(talk).join());
    answer.ok().flatten().ok_or(FirewallError::Firewalld(step))
}
