//! A word on the desktop when a machine is up, or has stopped (`--notify`).
//!
//! Guarantees: never fails the run and never waits for the desktop; says our own words and hardware
//! addresses, nothing that a machine sent. Method and arguments: Desktop Notifications Specification
//! 1.2, section 9.1.

use std::{collections::HashMap, time::Duration};

use tokio::time::timeout;
use zbus::{Connection, Variant};

use crate::event::{Event, Fact, Statement, What};

/// A desktop that takes longer is done without.
const PATIENCE: Duration = Duration::from_secs(2);

/// The desktop.
#[derive(Clone, Debug)]
pub struct Desktop(Connection);

impl Desktop {
    /// The desktop of this session; `None` where there is no session bus.
    pub async fn of_session() -> Option<Self> {
        timeout(PATIENCE, Connection::session()).await.ok()?.ok().map(Self)
    }

    /// The one at the other end of this connection.
    #[must_use]
    pub fn over(connection: Connection) -> Self {
        Self(connection)
    }

    /// Shows an event, if it is one that somebody waits for; returns at once.
    pub fn tell(&self, event: &Event) {
        let Some((summary, body)) = words(event) else { return };
        let bus = self.0.clone();
        tokio::spawn(async move {
            let hints: HashMap<&str, Variant<'_>> = HashMap::new();
            let actions: &[&str] = &[];
            // -1: for as long as the desktop likes.
            let notice = ("portcullis", 0_u32, "", summary, body, actions, hints, -1_i32);
            let (name, path) = ("org.freedesktop.Notifications", "/org/freedesktop/Notifications");
            let call = bus.call_method(Some(name), path, Some(name), "Notify", &notice);
            // A desktop without notifications shows none.
            let _ = timeout(PATIENCE, call).await;
        });
    }
}

fn words(event: &Event) -> Option<(String, String)> {
    let mac = event.mac;
    match &event.what {
        What::Fact(Fact::Up { .. }) => {
            Some((format!("{mac} is up"), "It runs what this computer served.".to_owned()))
        }
        // A body may be read as markup, and ours has none.
        What::Statement(Statement::Stalled { step, .. }) => Some((
            format!("{mac} has stopped"),
            format!(
                "Its last step: {}. What to try is in the terminal.",
                step.replace(['<', '&'], "")
            ),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, sync::mpsc};

    use zbus::{Guid, OwnedVariant, connection::Builder, interface};

    use super::*;
    use crate::{
        event::{Firmware, Sign},
        mac::MacAddr,
    };

    struct Screen(mpsc::Sender<(String, String)>);

    #[interface(name = "org.freedesktop.Notifications")]
    impl Screen {
        #[expect(clippy::too_many_arguments, reason = "as specified")]
        fn notify(
            &self,
            app_name: &str,
            replaces_id: u32,
            _app_icon: &str,
            summary: String,
            body: String,
            actions: Vec<String>,
            _hints: HashMap<String, OwnedVariant>,
            expire_timeout: i32,
        ) -> u32 {
            assert_eq!(
                (app_name, replaces_id, actions.len(), expire_timeout),
                ("portcullis", 0, 0, -1)
            );
            self.0.send((summary, body)).unwrap();
            1
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_desktop_is_told_what_somebody_waits_for_and_nothing_else() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (shown, screen) = mpsc::channel();
        let desktop = async {
            let guid = Guid::generate();
            let builder = Builder::unix_stream(theirs).server(guid).p2p();
            let path = "/org/freedesktop/Notifications";
            builder.serve_at(path, Screen(shown)).build().await.unwrap()
        };
        let client = async { Builder::unix_stream(ours).p2p().build().await.unwrap() };
        let (_desktop, client) = tokio::join!(desktop, client);
        let event = |what| Event { at: 0, mac: MacAddr([2, 0, 0, 0, 0, 1]), what };
        let to = Desktop::over(client);
        to.tell(&event(What::Fact(Fact::Seen { arch: 7, firmware: Firmware::Pxe })));
        to.tell(&event(What::Fact(Fact::Up { sign: Sign::Dhcp })));
        let next = || screen.recv_timeout(Duration::from_secs(10)).unwrap();
        let first = tokio::task::block_in_place(next);
        assert_eq!(first.0, "02:00:00:00:00:01 is up");
        let stalled = Statement::Stalled {
            step: "loading <b>".to_owned(),
            screen: Vec::new(),
            advice: Vec::new(),
        };
        to.tell(&event(What::Statement(stalled)));
        let second = tokio::task::block_in_place(next);
        assert_eq!(second.0, "02:00:00:00:00:01 has stopped");
        assert!(second.1.contains("loading b>"), "{}", second.1);
        assert!(screen.try_recv().is_err());
    }
}
