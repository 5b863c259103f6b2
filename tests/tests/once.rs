//! Level 4: a user of a Debian on which nothing of ours is installed. sudo or pkexec start the helper
//! for one run, with a real password on a real terminal, behind NixOS' firewall; a machine boots from it;
//! and whatever ends the run, and however, files, users, processes and rules are what they were.

#![cfg(test)]

use std::{ops::Deref, time::Duration};

use portcullis_lab::{
    host, need_debian, need_root,
    nixos::Flavour,
    nspawn::{ADMIN_PASSWORD, ALICE, Login, Session},
    probe::Answer,
    process::wait_until,
    stage::{READY, Stage},
    trace::Trace,
};

/// Longest time that anything short of a dialog may take.
const SOON: Duration = Duration::from_secs(30);
/// Whom sudo and polkit take for an administrator, with a password.
const CAROL: Login = Login { user: "carol", seated: true };
const PROGRAM: &str = "/home/carol/portcullis/portcullis";
/// Exit codes, as README lists them.
const DONE: i32 = 0;
const NOT_AUTHORIZED: i32 = 10;
const DISMISSED: i32 = 11;
const NO_AGENT: i32 = 12;
const NO_HELPER: i32 = 22;
const ENDED: i32 = 23;

/// What sudo writes of itself.
const APART: [&str; 3] = ["/var/lib/sudo", "/run/sudo", "/home/carol/.sudo_as_admin_successful"];

/// The stage with the two programs in a user's own folder, behind a NixOS firewall.
struct Bare {
    stage: Stage,
    before: Trace,
}

impl Deref for Bare {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

#[track_caller]
fn on_stage(flavour: Flavour, play: impl FnOnce(&Bare)) {
    need_debian!("nft", "iptables", "cpio");
    let stage = Stage::start(Some(flavour)).unwrap();
    let debian = &stage.debian;
    // As somebody has them who has built the two programs.
    debian.sh("mkdir /home/carol/portcullis; mv /srv/image /home/carol/image").unwrap();
    let built = host::built().unwrap();
    for program in ["portcullis", "portcullis-helper"] {
        debian.copy(&built.join(program), &format!("/home/carol/portcullis/{program}")).unwrap();
    }
    debian.sh("chown -R carol:carol /home/carol; systemctl start polkit").unwrap();
    // Each login's own processes would stay for a while after it: now they stay for good.
    debian.sh("loginctl enable-linger carol alice").unwrap();
    debian.run(CAROL, &["true"], SOON).unwrap();
    let before = Trace::take(debian, &APART).unwrap();
    let stage = Bare { stage, before };
    stage.assert_untouched();
    play(&stage);
    stage.assert_untouched();
}

/// The words for it.
fn words<'w>(more: &[&'w str]) -> Vec<&'w str> {
    [&[PROGRAM, "boot", "image", "-i", "eth0"], more].concat()
}

impl Bare {
    #[track_caller]
    fn assert_untouched(&self) {
        if let Err(error) = self.before.restored(&self.debian, &APART) {
            panic!("{error}\n{}", self.journal());
        }
        assert_eq!(self.sockets().unwrap(), "");
        self.refuses().unwrap();
    }

    /// The program on a terminal, when its tool asks for the password; nothing is open yet.
    #[track_caller]
    fn asked(&self, via: &str) -> Session<'_> {
        let mut session =
            self.debian.on_terminal(CAROL, &words(&["--json", "--via", via])).unwrap();
        self.prompted(via, &mut session);
        session
    }

    #[track_caller]
    fn prompted(&self, via: &str, session: &mut Session<'_>) {
        let prompts = match via {
            "sudo" => &["[sudo] password for carol: "][..],
            _ => &["AUTHENTICATING FOR org.freedesktop.policykit.exec", "Password: "],
        };
        for prompt in prompts {
            self.expect(session, prompt, SOON).unwrap();
        }
        session.terminal().unwrap().expect_hidden(SOON).unwrap();
        assert_ne!(self.http().unwrap(), Answer::Open);
    }

    /// The same, once it serves.
    #[track_caller]
    fn serving(&self, via: &str) -> Session<'_> {
        let mut session = self.asked(via);
        self.allowed(&mut session, READY);
        session
    }

    #[track_caller]
    fn allowed(&self, session: &mut Session<'_>, ready: &str) {
        session.terminal().unwrap().type_line(ADMIN_PASSWORD).unwrap();
        self.expect(session, ready, SOON).unwrap();
        assert_eq!(self.http().unwrap(), Answer::Open);
        // The terminal is the user's again.
        assert!(wait_until(SOON, || session.terminal().unwrap().echo().unwrap()));
    }

    /// Processes of this name, the eldest first.
    fn processes(&self, name: &str) -> Vec<String> {
        let found = self.debian.sh(&format!("pgrep -x '{name}' || :")).unwrap();
        found.lines().map(str::to_owned).collect()
    }

    /// The two halves of the helper: the guard, and what serves.
    fn halves(&self) -> [String; 2] {
        // The kernel keeps 15 bytes of a name.
        let found = self.processes("portcullis-help");
        found.try_into().unwrap_or_else(|found| panic!("not two: {found:?}"))
    }

    fn kill(&self, pid: &str) {
        self.debian.sh(&format!("kill -KILL {pid}")).unwrap();
    }
}

#[test]
fn p4_a_run_through_sudo_leaves_nothing_whatever_ends_it() {
    need_root!("dnsmasq", "qemu-system-x86_64");
    on_stage(Flavour::Iptables, |stage| {
        // Chosen at the terminal, in words; and ended there.
        let mut session = stage.debian.on_terminal(CAROL, &words(&[])).unwrap();
        session.expect("Which one? [sudo/pkexec, Enter: none] ", SOON).unwrap();
        session.terminal().unwrap().type_line("sudo").unwrap();
        session.expect("keeps two capabilities", SOON).unwrap();
        stage.prompted("sudo", &mut session);
        stage.allowed(&mut session, "Ctrl-C ends and closes");
        for pid in stage.halves() {
            let status = stage.debian.sh(&format!("cat /proc/{pid}/status")).unwrap();
            for line in ["CapPrm:\t0000000000001400", "CapBnd:\t0000000000001400", "NoNewPrivs:\t1"]
            {
                assert!(status.contains(line), "no {line:?} in {status}");
            }
            assert!(!status.contains("Uid:\t0"), "{status}");
        }
        // It serves: a machine boots, with an address of somebody else's.
        let mac = "52:54:00:00:00:04";
        stage.boot(mac).unwrap_or_else(|error| panic!("{error}\n{:?}", session.said()));
        session.terminal().unwrap().interrupt().unwrap();
        assert_eq!(session.exit(SOON), Ok(DONE), "{:?}", session.said());
        let said = session.said().unwrap();
        assert!(!said.contains(ADMIN_PASSWORD) && !said.contains("<6>"), "{said}");
        stage.assert_untouched();

        // The client killed, while it serves and while sudo asks.
        let mut session = stage.serving("sudo");
        session.kill("KILL").unwrap();
        assert_ne!(session.exit(SOON), Ok(DONE));
        stage.assert_untouched();
        let mut session = stage.asked("sudo");
        session.kill("KILL").unwrap();
        assert_ne!(session.exit(SOON), Ok(DONE));
        stage.assert_untouched();

        // The helper killed: either half, then both.
        let mut session = stage.serving("sudo");
        let [_, helper] = stage.halves();
        stage.kill(&helper);
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
        stage.assert_untouched();
        let mut session = stage.serving("sudo");
        let [guard, _] = stage.halves();
        stage.kill(&guard);
        session.terminal().unwrap().interrupt().unwrap();
        session.exit(SOON).unwrap();
        stage.assert_untouched();

        // sudo itself killed, with everything of it.
        let mut session = stage.serving("sudo");
        for pid in stage.processes("sudo") {
            stage.debian.sh(&format!("kill -KILL {pid} || :")).unwrap();
        }
        session.terminal().unwrap().interrupt().unwrap();
        session.exit(SOON).unwrap();
        stage.assert_untouched();

        // Not allowed to: alice is no administrator. Nobody to ask; nobody wants it.
        let copied = "cp -r /home/carol/portcullis /home/carol/image /home/alice
            chown -R alice:alice /home/alice";
        stage.debian.sh(copied).unwrap();
        let program = PROGRAM.replace("carol", "alice");
        for (via, code, says) in [
            (Some("sudo"), NOT_AUTHORIZED, "sudo did not start the helper"),
            (Some("never"), NO_HELPER, "not installed"),
            (None, NO_HELPER, "--via sudo"),
        ] {
            let mut words = vec![&*program, "boot", "image", "-i", "eth0", "--no-ask-password"];
            words.extend(via.iter().flat_map(|via| ["--via", via]));
            let (ended, said) = stage.debian.run(ALICE, &words, SOON).unwrap();
            assert_eq!(ended, code, "{said}");
            assert!(said.contains(says), "{said}");
        }
        // Others may change it.
        stage.debian.sh("chmod o+w /home/alice/portcullis").unwrap();
        let words = [&*program, "boot", "image", "-i", "eth0", "--via", "sudo"];
        let (_, said) = stage.debian.run(ALICE, &words, SOON).unwrap();
        assert!(said.contains("others can change /home/alice/portcullis"), "{said}");
        stage.debian.sh("rm -r /home/alice/portcullis /home/alice/image").unwrap();
    });
}

#[test]
fn p4_a_run_through_pkexec_and_its_text_agent_leaves_nothing_whatever_ends_it() {
    on_stage(Flavour::Nftables, |stage| {
        let mut session = stage.serving("pkexec");
        session.terminal().unwrap().interrupt().unwrap();
        assert_eq!(session.exit(SOON), Ok(DONE), "{:?}", session.said());
        stage.assert_untouched();

        // Nobody to ask: no desktop, and no terminal.
        let (code, said) = stage.debian.run(CAROL, &words(&["--via", "pkexec"]), SOON).unwrap();
        assert_eq!(code, NO_AGENT, "{said}");

        // Wrong, and dismissed.
        let mut session = stage.asked("pkexec");
        session.terminal().unwrap().type_line("wrong").unwrap();
        assert_eq!(session.exit(SOON), Ok(NOT_AUTHORIZED), "{:?}", session.said());
        stage.assert_untouched();
        let mut session = stage.asked("pkexec");
        session.terminal().unwrap().interrupt().unwrap();
        assert_eq!(session.exit(SOON), Ok(DISMISSED), "{:?}", session.said());
        stage.assert_untouched();

        let mut session = stage.serving("pkexec");
        session.kill("KILL").unwrap();
        assert_ne!(session.exit(SOON), Ok(DONE));
        stage.assert_untouched();

        let mut session = stage.serving("pkexec");
        let [_, helper] = stage.halves();
        stage.kill(&helper);
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
        stage.assert_untouched();

        // The site's configuration holds here, too.
        stage.debian.write("/etc/portcullis/helper.toml", "interfaces = [\"enp*\"]\n").unwrap();
        let mut session = stage.asked("pkexec");
        session.terminal().unwrap().type_line(ADMIN_PASSWORD).unwrap();
        session.expect("does not allow serving on eth0", SOON).unwrap();
        session.exit(SOON).unwrap();
        stage.debian.write("/etc/portcullis/helper.toml", "colour = 1\n").unwrap();
        let mut session = stage.asked("pkexec");
        session.terminal().unwrap().type_line(ADMIN_PASSWORD).unwrap();
        session.expect("helper.toml:1: unknown field", SOON).unwrap();
        assert_eq!(session.exit(SOON), Ok(NO_HELPER), "{:?}", session.said());
        stage.debian.sh("rm -r /etc/portcullis").unwrap();
    });
}
