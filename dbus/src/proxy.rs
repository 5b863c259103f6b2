//! Typed client side of the contract.

use std::collections::HashMap;

use zbus::{OwnedFd, OwnedVariant, Variant, proxy};

use crate::Error;

/// The helper, seen from a client. Method documentation: `dbus/org.portcullis.Netboot1.xml`.
#[proxy(
    interface = "org.portcullis.Netboot1",
    default_service = "org.portcullis.Netboot1",
    default_path = "/org/portcullis/Netboot1"
)]
pub trait Netboot1 {
    /// Asks for ports to be opened. Returns the lease, its sockets and facts about it.
    #[zbus(allow_interactive_auth)]
    fn open(
        &self,
        request: HashMap<&str, Variant<'_>>,
    ) -> Result<(u64, HashMap<String, OwnedFd>, HashMap<String, OwnedVariant>), Error>;

    /// Asks again by the same rules and moves the end of the lease to `seconds` from now.
    #[zbus(allow_interactive_auth)]
    fn extend(&self, lease: u64, seconds: u32) -> Result<(), Error>;

    /// Ends a lease. Closing twice succeeds.
    #[zbus(allow_interactive_auth)]
    fn close(&self, lease: u64) -> Result<(), Error>;

    /// What `open` would do with this request; opens nothing and never shows a dialog.
    fn check(
        &self,
        request: HashMap<&str, Variant<'_>>,
    ) -> Result<HashMap<String, OwnedVariant>, Error>;

    /// The caller's leases; everybody's for those whom polkit lets manage.
    fn list(&self) -> Result<Vec<(u64, HashMap<String, OwnedVariant>)>, Error>;

    /// Sent to the owner alone when a lease has ended. `reason` is one of [`crate::keys::reason`].
    #[zbus(signal, name = "Closed")]
    fn lease_ended(&self, lease: u64, reason: String) -> zbus::Result<()>;
}
