//! A whole Debian, booted: systemd, logind, dbus, polkitd, and users who log in.
//!
//! Guarantees: it lives in the network namespace that it is given and in namespaces of its own, on
//! an overlay whose upper half is memory, so the cached root is never changed; its sessions are
//! logind's, made by PAM as at a login. When the value is dropped, its first process is killed and
//! with that everything in it, its cgroups are removed, and the mounts are gone with their
//! namespace; when the test itself is killed, the same happens. Trusts: systemd-nspawn, and the
//! root made by `tests/scripts/debian-root`. Needs no systemd outside, and asks none.

use std::{
    cell::Cell,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    LabError, Result,
    netns::Netns,
    process::{Process, finish, mortal, send, wait_until},
    pty::Pty,
    repository::{script, workspace},
};

/// The password of carol, who as a member of the group sudo is whom Debian's polkit asks for.
pub const ADMIN_PASSWORD: &str = "correct horse";

/// Where Debian's programs are.
const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/// How long the system may take until it is up; about 2 s on an idle machine.
const BOOT: Duration = Duration::from_secs(60);

/// How long it may take to vanish.
const END: Duration = Duration::from_secs(10);

/// Mounts and starts the container, and takes its cgroup away again. Arguments: cached root,
/// scratch directory, network namespace, unit of the bus.
///
/// The mount namespace has a cgroup2 of its own, so that nspawn finds one hierarchy whatever the
/// host has, and its own /run, since nspawn leaves directories there. It ends with the container,
/// or by SIGTERM, which comes when the test was killed: then the scratch directory is its to remove.
const SUPERVISOR: &str = r#"
set -eu
root=$1 scratch=$2 netns=$3 bus=$4 orphaned=
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$scratch/mount"
cd "$scratch/mount"
mkdir upper work root
mount -t overlay -o "lowerdir=$root,upperdir=$PWD/upper,workdir=$PWD/work" overlay root
# As dbus-broker's package does it.
[ "$bus" = dbus.service ] || ln -s "/lib/systemd/system/$bus" root/etc/systemd/system/dbus.service
mount -t tmpfs -o mode=0755 tmpfs /run
umount --recursive --lazy /sys/fs/cgroup 2>/dev/null || :
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cgroup=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/portcullis-$$
mkdir "$cgroup"
# Once: each thread of the test sends one more as it dies.
trap 'trap "" TERM; orphaned=1; echo 1 >"$cgroup/cgroup.kill"' TERM
sh -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' sh "$cgroup" \
    systemd-nspawn --quiet --register=no --keep-unit --settings=no --link-journal=no \
    --resolv-conf=off --timezone=off --console=pipe --machine="portcullis-$$" \
    --network-namespace-path="$netns" --capability=CAP_NET_ADMIN --directory="$PWD/root" --boot &
container=$!
while kill -0 "$container" 2>/dev/null; do wait "$container" || :; done
echo 1 >"$cgroup/cgroup.kill"
while [ -d "$cgroup" ]; do
    find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || sleep 0.01
done
cd /
umount --lazy "$scratch/mount"
[ -z "$orphaned" ] || rm -rf --one-file-system "$scratch"
"#;

/// A booted Debian.
#[derive(Debug)]
pub struct Debian {
    // Dropped in this order: what runs, then where it runs.
    supervisor: Process,
    leader: u32,
    scratch: TempDir,
    logins: Cell<u32>,
    netns: Arc<Netns>,
}

/// The program that is the system's bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// dbus-daemon, as Debian installs it.
    Daemon,
    /// dbus-broker, as an administrator may choose, and other distributions do.
    Broker,
}

impl Bus {
    /// Its unit.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Daemon => "dbus.service",
            Self::Broker => "dbus-broker.service",
        }
    }
}

/// Who logs in, and where.
#[derive(Clone, Copy, Debug)]
pub struct Login {
    /// Name of the user.
    pub user: &'static str,
    /// At the machine itself (its seat), so that polkit finds the session active and local; or
    /// without a seat, as by ssh or from a timer.
    pub seated: bool,
}

/// An ordinary user, in no group, at the machine.
pub const ALICE: Login = Login { user: "alice", seated: true };
/// A member of the group `portcullis`, once the package is installed, at the machine.
pub const BOB: Login = Login { user: "bob", seated: true };
/// The same member from afar.
pub const BOB_REMOTE: Login = Login { user: "bob", seated: false };

/// A program in a login session of its own.
#[derive(Debug)]
pub struct Session<'a> {
    debian: &'a Debian,
    unit: String,
    waiter: Process,
    screen: Screen,
}

/// What a session's program writes to.
#[derive(Debug)]
enum Screen {
    Terminal(Pty),
    File(PathBuf),
}

impl Debian {
    /// Boots it in `netns` and waits until it is up, with the users alice, bob and carol.
    pub fn boot(netns: Arc<Netns>) -> Result<Self> {
        Self::boot_with(netns, Bus::Daemon)
    }

    /// The same with another bus.
    pub fn boot_with(netns: Arc<Netns>, bus: Bus) -> Result<Self> {
        let root = cached_root()?;
        let scratch =
            TempDir::new().map_err(|error| LabError::of("a temporary directory", error))?;
        let failed = |error| LabError::of(scratch.path().display(), error);
        std::fs::create_dir(scratch.path().join("mount")).map_err(failed)?;
        let console = scratch.path().join("console");
        let output = File::create(&console).map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        // TERM, not KILL, so that the supervisor still takes the cgroup away.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--", "unshare", "--mount", "--"])
            .args(["sh", "-c", SUPERVISOR, "sh"])
            .arg(root)
            .arg(scratch.path())
            .arg(netns.path())
            .arg(bus.unit())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let supervisor = netns.spawn(command)?;
        let mut debian = Self { supervisor, leader: 0, scratch, logins: Cell::new(0), netns };
        debian
            .wait_until_up()
            .map_err(|error| LabError(format!("{error}\nits console:\n{}", read(&console))))?;
        debian.sh(&format!(
            "useradd --create-home --shell /bin/bash alice
             useradd --create-home --shell /bin/bash bob
             useradd --create-home --shell /bin/bash --groups sudo carol
             echo 'carol:{ADMIN_PASSWORD}' | chpasswd"
        ))?;
        Ok(debian)
    }

    /// Waits for the first process and then until systemd has nothing more to start.
    fn wait_until_up(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.supervisor.wait(Duration::ZERO)? {
                return Err(LabError(format!("Debian did not boot: {status}")));
            }
            if self.leader == 0 {
                self.leader = first_process(&self.netns)?.unwrap_or(0);
            }
            if self.leader != 0 {
                let mut asked = self.inside("systemctl");
                asked.arg("is-system-running").stderr(Stdio::null());
                let state = asked.output().map_err(|error| LabError::of("systemctl", error))?;
                match String::from_utf8_lossy(&state.stdout).trim() {
                    "running" => return Ok(()),
                    "degraded" => {
                        let failed = self.sh("systemctl --failed --no-pager")?;
                        return Err(LabError(format!("Debian is up, but: {failed}")));
                    }
                    _ => {}
                }
            }
            if start.elapsed() >= BOOT {
                return Err(LabError(format!("Debian was not up within {BOOT:?}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The network namespace that it lives in.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its root directory, seen from outside.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.leader))
    }

    /// A command that runs inside as root, outside any session.
    #[must_use]
    pub fn inside(&self, program: &str) -> Command {
        let mut command = mortal("nsenter");
        command
            .args([&format!("--target={}", self.leader), "--all"])
            .arg(format!("--wd={}", self.root().display()))
            // Nothing of the host's environment is true in there.
            .args(["/usr/bin/env", "-i", "LANG=C.UTF-8", PATH, program]);
        command
    }

    /// A shell script inside, as root; its first failure ends it. Returns its standard output.
    pub fn sh(&self, script: &str) -> Result<String> {
        let mut command = self.inside("sh");
        command.args(["-euc", script]);
        finish(command)
    }

    /// Writes a file inside, with its directories.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let outside = self.root().join(path.trim_start_matches('/'));
        outside
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&outside, text))
            .map_err(|error| LabError::of(path, error))
    }

    /// Copies a directory of the host into it.
    pub fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let mut command = Command::new("cp");
        command
            .args(["--recursive", "--dereference", "--no-target-directory"])
            .arg(from)
            .arg(self.root().join(to.trim_start_matches('/')));
        finish(command).map(|_| ())
    }

    /// Removes a file inside.
    pub fn remove(&self, path: &str) -> Result<()> {
        std::fs::remove_file(self.root().join(path.trim_start_matches('/')))
            .map_err(|error| LabError::of(path, error))
    }

    /// Installs the package from the repository with `make install`, as a packager would, and does
    /// what a package's scripts do: users, reloads. bob becomes a member of the group.
    pub fn install(&self) -> Result<()> {
        crate::host::install(&self.root(), "/usr")?;
        self.sh("systemd-sysusers
             systemctl daemon-reload
             busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig
             usermod --append --groups portcullis bob")?;
        Ok(())
    }

    /// Starts a program in a session of its own, on a terminal.
    pub fn on_terminal(&self, login: Login, words: &[&str]) -> Result<Session<'_>> {
        let pty = Pty::open(&self.root())?;
        let name = pty.name().display().to_string();
        let (unit, mut command) = self.log_in(login);
        for property in ["StandardInput=tty", "StandardOutput=tty", "StandardError=tty"] {
            command.args(["-p", property]);
        }
        command
            .args(["-p", &format!("TTYPath={name}"), "-p", "Environment=TERM=linux", "--"])
            .args(words.iter().map(|word| word.replace('$', "$$")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Session {
            debian: self,
            unit,
            waiter: Process::start(command)?,
            screen: Screen::Terminal(pty),
        })
    }

    /// Starts a program in a session of its own, without any terminal.
    pub fn without_terminal(&self, login: Login, words: &[&str]) -> Result<Session<'_>> {
        let (unit, mut command) = self.log_in(login);
        let path = self.scratch.path().join(&unit);
        let output = File::create(&path).map_err(|error| LabError::of(path.display(), error))?;
        let errors = output.try_clone().map_err(|error| LabError::of(path.display(), error))?;
        command
            .args(["--pipe", "--"])
            .args(words.iter().map(|word| word.replace('$', "$$")))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        Ok(Session {
            debian: self,
            unit,
            waiter: Process::start(command)?,
            screen: Screen::File(path),
        })
    }

    /// Runs a program in a session of its own, without any terminal, to its end: its exit code and
    /// all that it said.
    pub fn run(&self, login: Login, words: &[&str], limit: Duration) -> Result<(i32, String)> {
        let mut session = self.without_terminal(login, words)?;
        let code = session.exit(limit)?;
        Ok((code, session.said()?))
    }

    /// The name of a new unit, and the command that runs it with a session made by PAM's service
    /// `login`, and ends with its program's exit code.
    fn log_in(&self, login: Login) -> (String, Command) {
        let number = self.logins.get() + 1;
        self.logins.set(number);
        let unit = format!("login-{number}");
        let mut command = self.inside("systemd-run");
        command.args(["--quiet", "--collect", "--wait"]);
        command.arg(format!("--unit={unit}"));
        command.args(["-p", "PAMName=login"]);
        command.args(["-p", &format!("User={}", login.user)]);
        command.args(["-p", &format!("WorkingDirectory=/home/{}", login.user)]);
        // There are no virtual consoles here, so a seat needs no console number.
        let seat = if login.seated { " XDG_SEAT=seat0" } else { "" };
        command.args([
            "-p",
            &format!("Environment=XDG_SESSION_TYPE=tty XDG_SESSION_CLASS=user{seat}"),
        ]);
        (unit, command)
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let asked = if self.leader == 0 {
            self.supervisor.signal(Signal::SIGTERM)
        } else {
            send(self.leader, Signal::SIGKILL)
        };
        // The supervisor ends by itself, once it has tidied up; else it is killed, as any process.
        let _tidied = asked.and_then(|()| self.supervisor.wait(END));
    }
}

impl Session<'_> {
    /// The id, inside, of the program itself.
    pub fn pid(&self) -> Result<u32> {
        let mut pid = 0;
        let unit = &self.unit;
        let found = wait_until(Duration::from_secs(5), || {
            pid = self
                .debian
                .sh(&format!("systemctl show --value -p MainPID {unit}"))
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0);
            pid != 0
        });
        found.then_some(pid).ok_or_else(|| LabError(format!("the program of {unit} did not start")))
    }

    /// The session's id for `loginctl`.
    pub fn id(&self) -> Result<String> {
        let pid = self.pid()?;
        let text = self.debian.sh(&format!("ps --no-headers -o lsession {pid} | tr -d ' '"))?;
        Ok(text.trim().to_owned())
    }

    /// Waits until the program says `text`, after what earlier waits have found on a terminal, at
    /// most `limit`.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<()> {
        match &mut self.screen {
            Screen::Terminal(pty) => pty.expect(text, limit).map(|_| ()),
            Screen::File(path) => {
                let mut said = String::new();
                let found = wait_until(limit, || {
                    said = read(path);
                    said.contains(text)
                });
                found
                    .then_some(())
                    .ok_or_else(|| LabError(format!("no {text:?} within {limit:?}, but:\n{said}")))
            }
        }
    }

    /// The terminal.
    pub fn terminal(&mut self) -> Result<&mut Pty> {
        match &mut self.screen {
            Screen::Terminal(pty) => Ok(pty),
            Screen::File(_) => Err(LabError(format!("{} has no terminal", self.unit))),
        }
    }

    /// Everything that was said so far, standard output and errors together.
    pub fn said(&mut self) -> Result<String> {
        match &mut self.screen {
            Screen::Terminal(pty) => pty.settle(Duration::from_millis(50)),
            Screen::File(path) => Ok(read(path)),
        }
    }

    /// Sends a signal to the program alone.
    pub fn kill(&self, signal: &str) -> Result<()> {
        let pid = self.pid()?;
        self.debian.sh(&format!("kill -{signal} {pid}")).map(|_| ())
    }

    /// The exit code of the program, which must end within `limit`. systemd tells no code of one
    /// that a signal ended: SIGTERM, SIGINT and SIGHUP read as 0, all others as not 0.
    pub fn exit(&mut self, limit: Duration) -> Result<i32> {
        let status = self.waiter.wait(limit)?;
        match status.and_then(|status| status.code()) {
            Some(code) => Ok(code),
            None => Err(LabError(format!(
                "the program had not ended after {limit:?}; it said:\n{}",
                self.said()?
            ))),
        }
    }
}

/// The cached root, made now if this is the first time.
fn cached_root() -> Result<PathBuf> {
    let mut command = script("debian-root");
    command.arg(workspace().join(".cache"));
    finish(command).map(|path| PathBuf::from(path.trim()))
}

/// Process 1 of the pid namespace whose processes are in `netns`.
fn first_process(netns: &Netns) -> Result<Option<u32>> {
    Ok(netns.processes()?.into_iter().find(|pid| {
        let status = read(Path::new(&format!("/proc/{pid}/status")));
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        ids.is_some_and(|ids| {
            let inner: Vec<&str> = ids.split_whitespace().skip(1).collect();
            inner.last() == Some(&"1")
        })
    }))
}

/// A file as text, as far as it can be read.
fn read(path: &Path) -> String {
    std::fs::read(path)
        .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    const ACTION: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE policyconfig PUBLIC "-//freedesktop//DTD PolicyKit Policy Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/PolicyKit/1/policyconfig.dtd">
<policyconfig><action id="org.example.try">
<description>Try</description><message>Authentication is required to try</message>
<defaults><allow_any>auth_admin</allow_any><allow_inactive>auth_admin</allow_inactive>
<allow_active>auth_admin</allow_active></defaults></action></policyconfig>"#;

    const RULE: &str = r#"polkit.addRule(function(action, subject) {
    if (action.id == "org.example.try" && subject.user == "bob" && subject.active && subject.local)
        return polkit.Result.YES;
});"#;

    /// Asks polkit, with a dialog by an agent on the terminal that there is.
    const ASK: &str = "trap 'exit 130' INT; mkfifo /tmp/agent-$$;
        pkttyagent --process $$ --notify-fd 3 3>/tmp/agent-$$ & cat /tmp/agent-$$;
        pkcheck --action-id org.example.try --process $$ --allow-user-interaction";

    #[test]
    fn sessions_seats_and_dialogs_are_real() {
        crate::need_debian!();
        let netns = Arc::new(Netns::new("debian").unwrap());
        let debian = Debian::boot(netns).unwrap();
        debian.write("/usr/share/polkit-1/actions/org.example.try.policy", ACTION).unwrap();
        debian.write("/etc/polkit-1/rules.d/10-try.rules", RULE).unwrap();

        // The seat is what makes a session local to polkit.
        let ask = ["sh", "-c", "pkcheck --action-id org.example.try --process $$"];
        assert_eq!(debian.run(BOB, &ask, SOON).unwrap().0, 0);
        for asked in [BOB_REMOTE, ALICE] {
            let (code, said) = debian.run(asked, &ask, SOON).unwrap();
            assert_eq!(code, 2, "{asked:?}: {said}");
        }

        // logind knows it, and killing it is logind's to do.
        let mut session = debian.without_terminal(ALICE, &["sleep", "1000"]).unwrap();
        let id = session.id().unwrap();
        let facts = debian.sh(&format!("loginctl show-session {id}")).unwrap();
        for fact in ["Name=alice", "Seat=seat0", "Remote=no", "Active=yes", "Class=user"] {
            assert!(facts.lines().any(|line| line == fact), "no {fact} in\n{facts}");
        }
        debian.sh(&format!("loginctl terminate-session {id}")).unwrap();
        session.exit(SOON).unwrap();

        // A dialog on a terminal: right, wrong, dismissed.
        for (password, code) in [(Some(ADMIN_PASSWORD), 0), (Some("wrong"), 1), (None, 130)] {
            let mut session = debian.on_terminal(ALICE, &["bash", "-c", ASK]).unwrap();
            session.expect("Authenticating as: carol", SOON).unwrap();
            session.expect("Password: ", SOON).unwrap();
            session.terminal().unwrap().expect_hidden(SOON).unwrap();
            match password {
                Some(password) => session.terminal().unwrap().type_line(password).unwrap(),
                None => session.terminal().unwrap().interrupt().unwrap(),
            }
            let ended = session.exit(SOON);
            assert_eq!(ended, Ok(code), "{password:?}: {:?}", session.said());
        }
        assert_eq!(debian.run(ALICE, &["sh", "-c", "exit 7"], SOON).unwrap().0, 7);
    }

    #[test]
    fn nothing_is_left_and_nothing_is_kept() {
        crate::need_debian!();
        let netns = Arc::new(Netns::new("debian").unwrap());
        let debian = Debian::boot(Arc::clone(&netns)).unwrap();
        debian.sh("echo changed >/etc/issue").unwrap();
        let scratch = debian.scratch.path().to_owned();
        let supervisor = debian.supervisor.pid();
        drop(debian);
        assert_eq!(netns.processes().unwrap(), Vec::<u32>::new());
        assert!(!scratch.exists());
        let mounts = read(Path::new("/proc/self/mountinfo"));
        assert!(!mounts.contains(&scratch.display().to_string()), "{mounts}");
        let issue = cached_root().unwrap().join("etc/issue");
        assert!(!read(&issue).contains("changed"));
        // Every cgroup2 of the host is a view of the same tree.
        for mount in mounts.lines().filter(|line| line.contains(" - cgroup2 ")) {
            let place = mount.split(' ').nth(4).unwrap();
            let cgroup = Path::new(place).join(format!("portcullis-{supervisor}"));
            assert!(!cgroup.exists(), "{}", cgroup.display());
        }
    }
}
