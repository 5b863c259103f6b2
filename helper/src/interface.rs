//! Network interfaces: names, and what the kernel says about them.

use std::fmt;

use crate::limits;

/// The name of a network interface that is safe to show, to log and to match on.
///
/// 1 to 15 bytes of `A-Z a-z 0-9 _ . : @ -`, not `.` or `..`: no wildcard (`+`, `*`), no quote, no
/// control character, nothing that nft or iptables would print in a way that reads as another name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Parses a name; `None` when it breaks the rule above.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=limits::INTERFACE_NAME).contains(&text.len());
        let plain = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.:@-".contains(&byte));
        (fits && plain && text != "." && text != "..").then(|| Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
