//! The start of the helper, as systemd sees it.
//!
//! The bus starts the helper for the first call and gives it 25 seconds to appear, also when it has
//! long failed: then it says that nobody answered, and not why. systemd knows at once, and knows what
//! the helper said of it (`STATUS=`, sd_notify(3)). Guarantees: without systemd, or when the helper
//! runs already, a call takes as long as it takes. Trusts what systemd says; changes nothing.

use std::time::Duration;

use portcullis_dbus::Error;
use zbus::{Connection, OwnedVariant, Proxy, proxy::CacheProperties, proxy::MethodFlags};

use crate::exit::{self, Failure};

/// The helper's unit, in the form of a path (systemd's rules for escaping: `org.freedesktop.systemd1(5)`).
const UNIT: &str = "/org/freedesktop/systemd1/unit/portcullis_2dhelper_2eservice";

/// How often systemd is asked while the helper starts.
const AGAIN: Duration = Duration::from_millis(200);

/// How long a helper that failed before may seem to be about to start. After a failure the bus waits
/// for it to the end of those 25 seconds, and tells systemd of no further call.
const STALE: Duration = Duration::from_secs(5);

/// The helper's unit on the bus.
pub struct Start(Proxy<'static>);

/// What is read of the unit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unit {
    state: String,
    /// When it became inactive or failed, the last time (CLOCK_MONOTONIC, microseconds).
    left: u64,
}

impl Start {
    /// Asks nobody yet.
    pub async fn new(connection: &Connection) -> zbus::Result<Self> {
        let proxy = zbus::proxy::Builder::new(connection)
            .destination("org.freedesktop.systemd1")
            .path(UNIT)
            .interface("org.freedesktop.DBus.Properties")
            .cache_properties(CacheProperties::No)
            .build();
        Ok(Self(proxy.await?))
    }

    /// Waits for the helper's answer, but not for a helper that cannot start.
    pub async fn or_fails<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            // In this order: systemd is asked how it was before the bus tells it to start the helper.
            biased;
            failure = self.fails() => Err(failure),
            answer = call => Ok(answer?),
        }
    }

    /// Completes when a start of the helper has failed since the first look, or had, and there is no
    /// other.
    async fn fails(&self) -> Failure {
        let before = self.unit().await.unwrap_or_default();
        // Unknown, or no systemd; or it runs, and what it does then it says itself.
        if !["inactive", "failed", "activating"].contains(&before.state.as_str()) {
            return std::future::pending().await;
        }
        let mut unchanged = Duration::ZERO;
        loop {
            tokio::time::sleep(AGAIN).await;
            let now = self.unit().await.unwrap_or_default();
            unchanged = if now == before { unchanged + AGAIN } else { Duration::ZERO };
            if now.state == "failed" && (now.left != before.left || unchanged >= STALE) {
                break;
            }
        }
        let said: String = self.property("Service", "StatusText").await.unwrap_or_default();
        exit::helper_cannot_start(&said)
    }

    async fn unit(&self) -> Option<Unit> {
        Some(Unit {
            state: self.property("Unit", "ActiveState").await?,
            left: self.property("Unit", "InactiveEnterTimestampMonotonic").await?,
        })
    }

    async fn property<T: TryFrom<OwnedVariant>>(&self, interface: &str, name: &str) -> Option<T> {
        let interface = format!("org.freedesktop.systemd1.{interface}");
        let flags = MethodFlags::NO_AUTO_START;
        let got = self.0.call_with_flags("Get", flags, &(interface, name)).await;
        let got: Option<OwnedVariant> = got.ok()?;
        T::try_from(got?).ok()
    }
}
