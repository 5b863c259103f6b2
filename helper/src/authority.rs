//! Who calls, and the one question to polkit.
//!
//! Guarantees: the subject is the bus name that the message being handled came from, never a
//! process id; every failure (absent, slow, not understood) is a refusal; a question whose caller
//! left, or whose time is over, is withdrawn. Trusts polkit's answer. Never remembers one.
//!
//! A helper that was started for one run is on no bus and asks nobody: the tool that started it did,
//! before there was a helper. It hears one caller alone.

use std::{collections::HashMap, future::Future, time::Duration};

use portcullis_dbus::{Error, OBJECT_PATH, action};
use zbus::{Connection, Message, message::Header, proxy::CacheProperties};
use zbus_polkit::policykit1::{
    AuthorityProxy, AuthorizationResult, ChangedStream, CheckAuthorizationFlags, Subject,
};

use crate::{caller::Caller, limits, request::Request};

/// What polkit said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Authorised.
    Yes,
    /// Refused.
    No,
    /// A password is needed, and nobody was asked (or there was nobody to ask).
    Challenge,
    /// The dialog was closed, or the password was wrong.
    Dismissed,
    /// No answer, or none that could be understood; or nobody is left whom it is about.
    Unavailable,
    /// The dialog stood open for too long and was withdrawn.
    TimedOut,
}

/// Who decides, and about whom.
#[derive(Clone, Debug)]
pub enum Authority {
    /// polkit, about whoever calls over this bus.
    Polkit(Connection),
    /// sudo, pkexec or run0, which has decided about this caller by starting the helper.
    Launcher(Caller),
}

impl Authority {
    /// Who calls.
    ///
    /// # Errors
    /// As [`Caller::identify`].
    pub async fn caller(&self, header: &Header<'_>) -> Result<Caller, Error> {
        match self {
            Self::Polkit(bus) => Caller::identify(bus, header).await,
            Self::Launcher(caller) => Ok(caller.clone()),
        }
    }

    /// Whether the caller is still there. Where there is no bus, the helper ends with its caller.
    pub async fn knows(&self, caller: &Caller) -> bool {
        match self {
            Self::Polkit(bus) => caller.is_on(bus).await,
            Self::Launcher(_) => true,
        }
    }

    /// Asks whether a caller may have a request or, without one, manage the leases of others;
    /// with a `dialog` where it takes a password. The question is withdrawn when `left` completes, or when its time is over.
    pub async fn ask(
        &self,
        caller: &Caller,
        request: Option<&Request>,
        dialog: bool,
        left: impl Future<Output = ()>,
    ) -> Answer {
        let mut left = std::pin::pin!(left);
        let answer = self.ask_once(caller, request, dialog, left.as_mut()).await;
        if answer != Answer::No || !dialog {
            return answer;
        }
        // polkit answers a wrong password as it answers a plain refusal. They differ in what it
        // says when nobody is asked: a password is still needed.
        match self.ask_once(caller, request, false, left).await {
            Answer::Challenge => Answer::Dismissed,
            _ => Answer::No,
        }
    }

    /// Hears whenever polkit's rules, or what they look at, may have changed. `None`: nobody is asked
    /// who could.
    pub async fn changes(&self) -> Option<ChangedStream> {
        match self {
            Self::Polkit(bus) => polkit(bus).await.ok()?.receive_changed().await.ok(),
            Self::Launcher(_) => None,
        }
    }

    async fn ask_once(
        &self,
        caller: &Caller,
        request: Option<&Request>,
        dialog: bool,
        left: impl Future<Output = ()>,
    ) -> Answer {
        let Self::Polkit(bus) = self else {
            return Answer::Yes;
        };
        let (flags, patience, late) = if dialog {
            let flags = CheckAuthorizationFlags::ALLOW_USER_INTERACTION;
            (flags, limits::DIALOG, Answer::TimedOut)
        } else {
            (CheckAuthorizationFlags::empty(), limits::POLKIT, Answer::Unavailable)
        };
        // A subject is made from the header of a message alone. This one is never sent; its number is
        // no other's, so that it names the question, too.
        let from = Message::method_call(OBJECT_PATH, "Open").sender(&caller.name).build(&());
        let (Ok(from), Ok(polkit)) = (from, polkit(bus).await) else {
            return Answer::Unavailable;
        };
        let cancellation = from.primary_header().serial_num().to_string();
        let Ok(subject) = Subject::new_for_message_header(&from.header()) else {
            return Answer::Unavailable;
        };
        let action_id = request.map_or(action::MANAGE, Request::action);
        let details = request.map(Request::details);
        let details = details.iter().flatten().map(String::as_str);
        let details: HashMap<_, _> = action::DETAILS.into_iter().zip(details).collect();
        let question =
            polkit.check_authorization(&subject, action_id, &details, flags, &cancellation);
        let answer = tokio::select! {
            biased;
            () = left => Answer::Unavailable,
            answer = question => {
                return answer.map_or(Answer::Unavailable, |result| answer_of(&result));
            }
            () = tokio::time::sleep(patience) => late,
        };
        // Best effort: a polkit that does not take the withdrawal still cannot grant anything, since
        // its answer is no longer waited for.
        let withdrawal = polkit.cancel_check_authorization(&cancellation);
        let _ = tokio::time::timeout(Duration::from_secs(1), withdrawal).await;
        answer
    }
}

async fn polkit(bus: &Connection) -> zbus::Result<AuthorityProxy<'static>> {
    AuthorityProxy::builder(bus).cache_properties(CacheProperties::No).build().await
}

/// Both flags at once is no answer that polkit gives; it is read as the refusal.
fn answer_of(result: &AuthorizationResult) -> Answer {
    let dismissed = result.details.get("polkit.dismissed").is_some_and(|text| !text.is_empty());
    match (result.is_authorized, result.is_challenge) {
        (true, false) => Answer::Yes,
        (true, true) => Answer::No,
        (false, _) if dismissed => Answer::Dismissed,
        (false, true) => Answer::Challenge,
        (false, false) => Answer::No,
    }
}

impl Answer {
    /// Whether the answer is yes.
    ///
    /// # Errors
    /// For every other answer, the error that the caller gets.
    pub fn granted(self) -> Result<(), Error> {
        let (error, sentence): (fn(String) -> Error, _) = match self {
            Self::Yes => return Ok(()),
            Self::No => (Error::NotAuthorized, "polkit refused this"),
            Self::Challenge => {
                (Error::NoAgent, "a password is needed, and there is nobody to ask for it")
            }
            Self::Dismissed => (
                Error::AuthenticationDismissed,
                "the password dialog was dismissed, or the password was wrong",
            ),
            Self::TimedOut => (
                Error::AuthenticationDismissed,
                "nobody answered the password dialog in time; it was withdrawn",
            ),
            Self::Unavailable => (
                Error::NotAuthorized,
                "polkit does not answer, so nothing is allowed: check that polkit is installed and \
                 running",
            ),
        };
        Err(error(sentence.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(authorized: bool, challenge: bool, details: &[(&str, &str)]) -> AuthorizationResult {
        AuthorizationResult {
            is_authorized: authorized,
            is_challenge: challenge,
            details: details
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn p1_only_a_plain_yes_is_a_yes() {
        let cases = [
            (result(true, false, &[]), Answer::Yes),
            (result(true, true, &[]), Answer::No),
            (result(false, false, &[]), Answer::No),
            (result(false, true, &[]), Answer::Challenge),
            (result(false, true, &[("polkit.dismissed", "true")]), Answer::Dismissed),
            (result(false, false, &[("polkit.dismissed", "true")]), Answer::Dismissed),
            (result(false, true, &[("polkit.dismissed", "")]), Answer::Challenge),
        ];
        for (given, expected) in cases {
            assert_eq!(answer_of(&given), expected, "{given:?}");
            assert_eq!(expected.granted().is_ok(), expected == Answer::Yes);
        }
    }
}
