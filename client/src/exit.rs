//! How the program ends: every failure has one exit code, and says what happened, to what, and
//! what can be done.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; for `boot`: ended with Ctrl-C or SIGTERM, and closed |
//! | 1 | a fault of this program or of the system below it |
//! | 2 | the command line is wrong, or asks for what this version cannot do, or `explain` for an unknown code |
//! | 10 to 21 | the helper refused: one code per error of the contract (`portcullis_dbus::Error`) |
//! | 22 | the helper, or the system bus, cannot be reached |
//! | 23 | what was open has been closed by somebody else: time over, administrator, helper gone |
//! | 30 | what is to be served is missing, unreadable, empty or not what it should be |
//! | 31 | no boot loader (iPXE) on this system |
//! | 32 | no network interface will do, or several would |
//! | 33 | `--dhcp-server`: another DHCP server is there |
//! | 34 | `doctor` has found something |
//! | 35 | `nixos`: nix is missing, or could not build a system that boots from the network |

use std::path::Path;

use portcullis_dbus::Error;

/// What kind of failure, for the exit code. Errors of the contract have codes of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A fault of this program or of the system below it.
    Internal = 1,
    /// The command line.
    Usage = 2,
    /// Closed by somebody else.
    Ended = 23,
    /// The source.
    Source = 30,
    /// No boot loader.
    NoLoader = 31,
    /// The interface.
    Interface = 32,
    /// Another DHCP server.
    OtherDhcpServer = 33,
    /// `doctor` has found something.
    Found = 34,
    /// nix.
    Nix = 35,
}

/// A failure, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Exit code of the program.
    pub code: u8,
    /// What happened, to what.
    pub message: String,
    /// What the user can do, one step each.
    pub advice: Vec<String>,
}

impl Failure {
    /// A failure without advice.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code as u8, message: message.into(), advice: Vec::new() }
    }

    /// Adds one thing that the user can do.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice.push(advice.into());
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = error.exit_code();
        let failure = |message: String| Self { code, message, advice: Vec::new() };
        match &error {
            Error::ZBus(cause) => unreachable_helper(cause, failure),
            Error::NoAgent(_) => failure(error.message())
                .advise(
                    "a terminal (without --no-ask-password) and a desktop session can ask for it; \
                     elsewhere start an authentication agent (pkttyagent)",
                )
                .advise("members of the group portcullis are not asked (but for full DHCP)"),
            Error::NotAuthorized(_) => failure(error.message()).advise(
                "an administrator can add you to the group portcullis (its members at an active local \
                 session are allowed without a question, but for full DHCP), or write a polkit rule",
            ),
            Error::NoSuchInterface(_) => {
                failure(error.message()).advise("see `portcullis interfaces`")
            }
            _ => failure(error.message()),
        }
    }
}

/// The helper could not be asked at all: is it not installed, broken, or is there no bus?
fn unreachable_helper(cause: &zbus::Error, failure: impl Fn(String) -> Failure) -> Failure {
    let text = cause.to_string();
    match cause {
        zbus::Error::FDO(error)
            if matches!(
                **error,
                zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_)
            ) =>
        {
            not_installed(failure, Path::new("/etc/NIXOS").exists())
        }
        zbus::Error::Connection(..)
        | zbus::Error::InputOutput(_)
        | zbus::Error::Address(_)
        | zbus::Error::Handshake(_) => failure(format!("the system bus cannot be reached: {text}"))
            .advise("is dbus running on this system? (systemctl status dbus)"),
        _ => failure(format!("the helper (portcullis-helper) did not answer: {text}")).advise(
            "systemctl status portcullis-helper.service, and journalctl -u portcullis-helper",
        ),
    }
}

fn not_installed(failure: impl Fn(String) -> Failure, nixos: bool) -> Failure {
    let failure =
        failure("the helper that opens the ports (portcullis-helper) is not installed".to_owned());
    if nixos {
        return failure
            .advise("in the system's configuration: programs.portcullis.enable = true;")
            .advise(
                "nix run, nix shell and nix profile bring the programs, but neither polkit nor the \
                 bus sees anything of ours by that",
            );
    }
    failure
        .advise("install the package portcullis system-wide")
        .advise("if it was installed just now: systemctl reload dbus.service")
}

/// The helper ends before it answers; `said` is what it says of it, if anything.
#[must_use]
pub fn helper_cannot_start(said: &str) -> Failure {
    let cause = if said.is_empty() { String::new() } else { format!(": {}", said.escape_debug()) };
    Failure {
        code: Error::ZBus(zbus::Error::InvalidReply).exit_code(),
        message: format!("the helper (portcullis-helper) cannot start{cause}"),
        advice: vec![
            "systemctl status portcullis-helper.service, and journalctl -u portcullis-helper".to_owned(),
            "what is wrong in /etc/portcullis, if anything: /usr/libexec/portcullis-helper --check-config".to_owned(),
            "if that is mended: systemctl start portcullis-helper (by itself the bus tries again half a minute after the failure)".to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_kinds_of_failure_share_a_code() {
        let mut codes: Vec<u8> = [
            Error::NotAuthorized(String::new()),
            Error::AuthenticationDismissed(String::new()),
            Error::NoAgent(String::new()),
            Error::Busy(String::new()),
            Error::AddressInUse(String::new()),
            Error::InvalidRequest(String::new()),
            Error::NoSuchInterface(String::new()),
            Error::ForbiddenByPolicy(String::new()),
            Error::FirewallUnsupported(String::new()),
            Error::FirewallFailed(String::new()),
            Error::LimitsExceeded(String::new()),
            Error::NoSuchLease(String::new()),
            Error::ZBus(zbus::Error::InvalidReply),
        ]
        .map(|error| Failure::from(error).code)
        .to_vec();
        for code in [
            Code::Internal,
            Code::Usage,
            Code::Ended,
            Code::Source,
            Code::NoLoader,
            Code::Interface,
            Code::OtherDhcpServer,
            Code::Found,
            Code::Nix,
        ] {
            codes.push(Failure::new(code, "").code);
        }
        assert_eq!(
            codes,
            [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 1, 2, 23, 30, 31, 32, 33, 34, 35]
        );
    }

    /// The helper says what polkit answered; what can be done about it is said here.
    #[test]
    fn a_refusal_of_polkit_says_who_could_do_what() {
        let advice = |error: Error| Failure::from(error).advice.join("; ");
        let refused = advice(Error::NotAuthorized("polkit refused this".to_owned()));
        for part in ["group portcullis", "without a question", "but for full DHCP", "polkit rule"] {
            assert!(refused.contains(part), "{refused}");
        }
        let nobody = advice(Error::NoAgent("a password is needed".to_owned()));
        for part in ["pkttyagent", "--no-ask-password", "group portcullis"] {
            assert!(nobody.contains(part), "{nobody}");
        }
    }

    #[test]
    fn a_missing_helper_is_told_from_a_missing_bus() {
        let missing = zbus::fdo::Error::ServiceUnknown("no such name".to_owned());
        let failure = Failure::from(Error::ZBus(zbus::Error::FDO(Box::new(missing))));
        assert_eq!(failure.code, 22);
        assert!(failure.message.contains("not installed"), "{failure}");
        let nixos = not_installed(|text| Failure { message: text, ..failure.clone() }, true);
        assert_eq!(nixos.code, 22);
        assert!(
            nixos.advice.iter().any(|text| text.contains("programs.portcullis.enable = true;"))
        );
        let bus = std::io::Error::from_raw_os_error(2);
        let failure = Failure::from(Error::ZBus(zbus::Error::InputOutput(bus.into())));
        assert_eq!(failure.code, 22);
        assert!(failure.message.contains("system bus"), "{failure}");
    }
}
