//! The host: a computer of its own in everything that matters to Portcullis.
//!
//! Network, mount and PID namespace; the system bus with Debian's configuration and activation; the
//! real polkitd; the package as `make install` installs it; accounts made by systemd-sysusers; NixOS'
//! firewall if wanted. Without systemd: the bus itself starts helper and polkitd.
//! Guarantees: the PID namespace ends with this process, and everything on the host with it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    LabError, Result, machine,
    netns::Netns,
    process::{Process, finish, mortal, send, wait_until},
    repository::{scripts, workspace},
};

/// Who may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// alice may open the ports without being asked, as a member of the group at her desk may.
    /// (There are no sessions here; the group's own rule is tested where logind runs.)
    AllowsAlice,
    /// alice may also hand out addresses there: the site's configuration and a rule of polkit say so.
    GivesAlice,
    /// alice may, also by a raw socket, and the helper was not given CAP_NET_RAW for that.
    AllowsRaw,
    /// The same, and it was.
    GrantsRaw,
    /// No rule: polkit wants an administrator's password.
    Asks,
    /// A rule says no.
    Refuses,
}

impl Site {
    /// The rule, as an administrator writes it.
    fn rule(self) -> &'static str {
        match self {
            Self::AllowsAlice | Self::AllowsRaw | Self::GrantsRaw => {
                "polkit.addRule(function (action, subject) {
    if (action.id == 'org.portcullis.netboot1.open' && subject.user == 'alice') {
        return polkit.Result.YES;
    }
});
"
            }
            Self::GivesAlice => {
                "polkit.addRule(function (action, subject) {
    if (action.id.indexOf('org.portcullis.netboot1.open') == 0 && subject.user == 'alice') {
        return polkit.Result.YES;
    }
});
"
            }
            Self::Asks => "// Nothing is said here.\n",
            Self::Refuses => {
                "polkit.addRule(function (action, subject) {
    if (action.id.indexOf('org.portcullis.netboot1.') == 0) {
        return polkit.Result.NO;
    }
});
"
            }
        }
    }

    /// The helper's configuration.
    fn configuration(self) -> &'static str {
        match self {
            Self::GivesAlice => "full-dhcp = true\n",
            Self::AllowsRaw | Self::GrantsRaw => "raw-dhcp = true\n",
            Self::AllowsAlice | Self::Asks | Self::Refuses => "",
        }
    }
}

/// Longest time that anything short of a boot may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(15);

/// A running host.
#[derive(Debug)]
pub struct Host {
    // Dropped in this order: what runs, then where it runs.
    system: Process,
    leader: u32,
    directory: TempDir,
    netns: Netns,
}

impl Host {
    /// Starts a host in an otherwise empty network namespace.
    pub fn start(label: &str, site: Site) -> Result<Self> {
        let netns = Netns::new(label)?;
        let directory = tempfile::Builder::new()
            .prefix("portcullis-host-")
            // polkitd and alice, who are not root, find their way through it.
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .map_err(|error| LabError::of("a directory for the host", error))?;
        let path = directory.path();
        let failed = |error| LabError::of(path.display(), error);
        std::fs::create_dir(path.join("scratch")).map_err(failed)?;
        std::fs::write(path.join("rules"), site.rule()).map_err(failed)?;
        std::fs::write(path.join("helper.toml"), site.configuration()).map_err(failed)?;
        std::os::unix::fs::symlink(machine::image()?, path.join("image")).map_err(failed)?;
        install(&path.join("stage"), "/usr")?;
        if site == Site::GrantsRaw {
            grant_raw(&path.join("stage")).map_err(failed)?;
        }

        let log = File::create(path.join("log")).map_err(failed)?;
        let mut command = mortal("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"])
            .arg(scripts().join("host"))
            .arg(path)
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log);
        let system = netns.spawn(command)?;
        let leader = child_of(system.pid())?;
        let host = Self { system, leader, directory, netns };
        let mut answers = || {
            let mut command = host.command(None, "dbus-send");
            command.args([
                "--system",
                "--print-reply",
                "--dest=org.freedesktop.PolicyKit1",
                "/org/freedesktop/PolicyKit1/Authority",
                "org.freedesktop.DBus.Peer.Ping",
            ]);
            host.netns.finish(command).is_ok()
        };
        if wait_until(SOON, &mut answers) {
            Ok(host)
        } else {
            Err(LabError(format!("bus and polkit do not answer:\n{}", host.log())))
        }
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What the bus and what it started have said, the helper included.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// A command on the host, by root or by a user without any privilege. Start it with
    /// [`Netns::spawn`] or [`Netns::finish`] of [`Self::netns`], which puts it into the right network.
    #[must_use]
    pub fn command(&self, user: Option<&str>, program: &str) -> Command {
        let mut command = mortal("nsenter");
        command
            .args(["--target", &self.leader.to_string(), "--mount", "--pid", "--"])
            .arg("setpriv");
        if let Some(user) = user {
            command.args(["--reuid", user, "--regid", user, "--init-groups"]).args([
                "--inh-caps=-all",
                "--ambient-caps=-all",
                "--no-new-privs",
            ]);
        }
        command
            .args(["--pdeathsig", "KILL", "--", program])
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/tmp")
            .env("XDG_CACHE_HOME", format!("/run/cache/{}", user.unwrap_or("root")))
            .env("LC_ALL", "C.UTF-8")
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Runs `portcullis` as a user until it ends or is dropped.
    pub fn client(&self, user: &str, arguments: &[&str]) -> Result<Client> {
        self.program(user, "portcullis", arguments)
    }

    /// The same under another name of it, or by a program that runs it within itself.
    pub fn program(&self, user: &str, program: &str, arguments: &[&str]) -> Result<Client> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-client-")
            .tempdir()
            .map_err(|error| LabError::of("a directory for the client", error))?;
        let file = |name| {
            File::create(directory.path().join(name))
                .map_err(|error| LabError::of("a file for the client", error))
        };
        let mut command = self.command(Some(user), program);
        command.args(arguments).stdout(file("stdout")?).stderr(file("stderr")?);
        let outer = self.netns.spawn(command)?;
        Ok(Client { outer, directory })
    }

    /// Ids of the helpers that run here; never more than one.
    pub fn helpers(&self) -> Result<Vec<u32>> {
        let mut found = self.netns.processes()?;
        found.retain(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                // The kernel keeps 15 bytes of a name.
                .is_ok_and(|name| name.trim() == "portcullis-help")
        });
        Ok(found)
    }

    /// Sweeps, as ExecStopPost does.
    pub fn sweep(&self) -> Result<()> {
        let mut command = self.command(None, "/usr/libexec/portcullis-helper");
        command.arg("--sweep");
        self.netns.finish(command).map(|_| ())
    }

    /// The UDP sockets and TCP listeners of the host, one per line.
    pub fn sockets(&self) -> Result<String> {
        let mut command = Command::new("ss");
        command.args(["-Hlntu"]);
        self.netns.finish(command)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The first process of the PID namespace, and so all others.
        let _already_gone = send(self.leader, Signal::SIGKILL);
        // It is reaped only after all others have ended.
        let _best_effort = self.system.wait(SOON);
    }
}

/// A running `portcullis`.
#[derive(Debug)]
pub struct Client {
    outer: Process,
    directory: TempDir,
}

impl Client {
    /// Its own process id.
    pub fn pid(&self) -> Result<u32> {
        child_of(self.outer.pid())
    }

    /// Sends a signal to it alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid()?, signal)
    }

    /// Its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stdout")).unwrap_or_default()
    }

    /// Its standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default()
    }

    /// Its objects on standard output (`--json`).
    #[must_use]
    pub fn events(&self) -> Vec<serde_json::Value> {
        self.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until it serves (`--json`): the object `ready`.
    pub fn ready(&mut self) -> Result<serde_json::Value> {
        self.ready_within(SOON)
    }

    /// The same for one that is slow to start.
    pub fn ready_within(&mut self, limit: Duration) -> Result<serde_json::Value> {
        let mut found = None;
        let mut ended = None;
        wait_until(limit, || {
            ended = self.outer.wait(Duration::ZERO).ok().flatten();
            found = self.events().into_iter().find(|event| event["event"] == "ready");
            found.is_some() || ended.is_some()
        });
        found.ok_or_else(|| {
            LabError(format!(
                "the client does not serve ({ended:?}):\n{}{}",
                self.stdout(),
                self.stderr()
            ))
        })
    }

    /// Waits for its end.
    pub fn end(&mut self) -> Result<ExitStatus> {
        self.outer.wait(SOON)?.ok_or_else(|| {
            LabError(format!("the client does not end:\n{}{}", self.stdout(), self.stderr()))
        })
    }
}

/// Leaves the test, saying so aloud, when the host cannot be made here: not root, a tool or daemon
/// missing, or the two programs not built. More [`Needs`](crate::Needs) may be named.
#[macro_export]
macro_rules! need_host {
    ($($need:expr),* $(,)?) => {
        $crate::need!(
            $crate::Needs::Root,
            $crate::Needs::Tool("nft"),
            $crate::Needs::Tool("iptables"),
            $crate::Needs::Tool("dnsmasq"),
            $crate::Needs::Tool("dbus-daemon"),
            $crate::Needs::Tool("systemd-sysusers"),
            $crate::Needs::File("/usr/lib/polkit-1/polkitd"),
            $crate::Needs::Built("portcullis"),
            $crate::Needs::Built("portcullis-helper"),
            $($need),*
        )
    };
}

/// PATH on the host.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where cargo put the programs of the profile that this test was built with.
pub fn built() -> Result<PathBuf> {
    std::env::current_exe()
        .ok()
        // <target>/<profile>/deps/<test>, or examples/<program>.
        .and_then(|test| test.ancestors().nth(2).map(Path::to_path_buf))
        .ok_or_else(|| LabError("where this test was built is not known".to_owned()))
}

/// Installs the package below `stage`, for a system that will have it in `prefix`.
pub fn install(stage: &Path, prefix: &str) -> Result<()> {
    let mut command = Command::new("make");
    command
        .arg("--silent")
        .arg("--directory")
        .arg(workspace())
        .arg("install")
        .arg("PIXIECORE=yes")
        .arg(format!("PREFIX={prefix}"))
        .arg(format!("DESTDIR={}", stage.display()))
        .arg(format!("BUILD={}", built()?.display()))
        // A `make test` above us has its own idea of jobs.
        .env_remove("MAKEFLAGS");
    finish(command).map(|_| ())
}

/// Has the bus start the installed helper as systemd does with the drop-in: as its user, with a third
/// capability. (That unit and drop-in do so: `raw_dhcp_*` in tests/tests/system.rs.)
fn grant_raw(stage: &Path) -> std::io::Result<()> {
    let file = stage.join("usr/share/dbus-1/system-services/org.portcullis.Netboot1.service");
    let capabilities = "-all,+net_admin,+net_bind_service,+net_raw";
    let as_its_user = format!(
        "Exec=/usr/bin/setpriv --reuid=portcullis --regid=portcullis --clear-groups \
         --inh-caps={capabilities} --ambient-caps={capabilities} --bounding-set={capabilities} "
    );
    let service = std::fs::read_to_string(&file)?.replace("\nExec=", &format!("\n{as_its_user}"));
    std::fs::write(file, service)
}

/// The only child of a process, once there is one.
fn child_of(parent: u32) -> Result<u32> {
    let wanted = format!("PPid:\t{parent}");
    let mut found = None;
    wait_until(SOON, || {
        found = std::fs::read_dir("/proc").ok().and_then(|entries| {
            entries
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
                .find(|pid| {
                    std::fs::read_to_string(format!("/proc/{pid}/status"))
                        .is_ok_and(|status| status.lines().any(|line| line == wanted))
                })
        });
        found.is_some()
    });
    found.ok_or_else(|| LabError(format!("process {parent} has started nothing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_its_own_bus_polkit_accounts_and_network_and_leaves_nothing() {
        need_host!();
        let host = Host::start("host", Site::AllowsAlice).unwrap();
        let say = |user, script: &str| {
            let mut command = host.command(user, "sh");
            command.args(["-c", script]);
            host.netns().finish(command).unwrap()
        };
        assert_eq!(say(Some("alice"), "id -un").trim(), "alice");
        let status = say(Some("alice"), "cat /proc/self/status");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
        }
        assert_eq!(say(None, "ls /sys/class/net").trim(), "lo");
        assert!(say(None, "ls /mnt").contains("bzImage"));
        say(None, "getent passwd portcullis");
        say(None, "test -x /usr/bin/portcullis -a -x /usr/libexec/portcullis-helper");
        let outside = Command::new("getent").args(["passwd", "alice"]).status().unwrap();
        assert!(!outside.success(), "alice is an account of the host alone");

        let mut command = host.command(Some("alice"), "sleep");
        command.arg("1000");
        let sleeper = host.netns().spawn(command).unwrap();
        let inner = child_of(sleeper.pid()).unwrap();
        drop(host);
        assert!(!Path::new(&format!("/proc/{inner}")).exists());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains("portcullis-host-"), "{mounts}");
    }
}
