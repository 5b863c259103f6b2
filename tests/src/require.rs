//! What a test needs beyond the compiler, and how it says that it cannot run.

use std::path::Path;

/// What a test needs.
#[derive(Clone, Copy, Debug)]
pub enum Needs<'a> {
    /// uid 0.
    Root,
    /// A program in PATH.
    Tool(&'a str),
    /// A file, for example a firmware image.
    File(&'a str),
    /// A program of this workspace, built with the same profile as the test.
    Built(&'a str),
}

/// The first thing that is not there, in words; `None` when all is there.
#[must_use]
pub fn missing(needs: &[Needs<'_>]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Needs::Root => (!rustix::process::geteuid().is_root()).then(|| "root".to_owned()),
        Needs::Tool(name) => (!in_path(name)).then(|| format!("the program {name}")),
        Needs::File(path) => (!Path::new(path).exists()).then(|| format!("the file {path}")),
        Needs::Built(name) => (!built(name)).then(|| format!("{name}: cargo build -p {name}")),
    })
}

/// Whether cargo has built this program.
fn built(name: &str) -> bool {
    crate::host::built().is_ok_and(|directory| directory.join(name).is_file())
}

/// Whether a program of this name is in PATH.
fn in_path(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
    })
}

/// Says aloud that a test is skipped; true when skipping is allowed.
/// `PORTCULLIS_NO_SKIP=1` forbids it, so that a complete run cannot pass by leaving tests out.
#[must_use]
pub fn skip(test: &str, what: &str) -> bool {
    use std::io::Write;
    // Past the test runner's capture: a skipped test that nobody sees looks like one that passed.
    let line = format!("SKIPPED: {test}: needs {what}\n");
    if std::io::stderr().write_all(line.as_bytes()).is_err() {
        return false;
    }
    std::env::var_os("PORTCULLIS_NO_SKIP").is_none_or(|value| value != "1")
}

/// Leaves the test, saying so aloud, when this process is not root or one of the named tools is
/// missing. With `PORTCULLIS_NO_SKIP=1` the test fails instead.
///
/// `need_root!()`, `need_root!("dnsmasq", "tcpdump")`
#[macro_export]
macro_rules! need_root {
    ($($tool:expr),* $(,)?) => {
        $crate::need!($crate::Needs::Root $(, $crate::Needs::Tool($tool))*)
    };
}

/// As [`need_root!`], for any list of [`Needs`].
#[macro_export]
macro_rules! need {
    ($($need:expr),+ $(,)?) => {
        if let Some(what) = $crate::missing(&[$($need),+]) {
            let test = std::thread::current().name().unwrap_or("test").to_owned();
            assert!(
                $crate::require::skip(&test, &what),
                "{test} needs {what}, and PORTCULLIS_NO_SKIP=1 forbids skipping"
            );
            return;
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(
            missing(&[Needs::Tool("sh"), Needs::Tool("no-such-program")]).as_deref(),
            Some("the program no-such-program")
        );
        assert_eq!(
            missing(&[Needs::File("/proc/self/no-such-file")]).as_deref(),
            Some("the file /proc/self/no-such-file")
        );
        assert_eq!(missing(&[Needs::Tool("sh"), Needs::File("/proc/self")]), None);
    }
}
