//! Level 4: the installed package in a whole Debian. systemd starts and confines the helper, logind
//! makes the sessions, polkitd decides, a person on a terminal types the password, and a machine
//! boots from an ordinary user.
//!
//! Every test ends with the same look from outside: refused, the ruleset as before, no socket.

#![cfg(test)]

use std::{
    ops::Deref,
    time::{Duration, Instant},
};

use portcullis_lab::{
    need_debian, need_root,
    nixos::Flavour,
    nspawn::{ADMIN_PASSWORD, ALICE, BOB, BOB_REMOTE, Bus, Login, Session},
    probe::Answer,
    process::wait_until,
    snapshot::{Snapshot, assert_same},
    stage::{READY, SERVE, Stage},
};
use serde_json::Value;

/// Longest time that anything short of a boot, a dialog or an idle helper may take.
const SOON: Duration = Duration::from_secs(20);
/// Everything is closed again within this time, however busy the machine is; P2's one second is held
/// by `kill.rs`.
const CLOSED: Duration = Duration::from_secs(15);
/// Exit codes, as README lists them.
const DONE: i32 = 0;
const NO_SUCH_LEASE: i32 = 21;
const FORBIDDEN: i32 = 17;
const NO_HELPER: i32 = 22;
const NOT_AUTHORIZED: i32 = 10;
const DISMISSED: i32 = 11;
const NO_AGENT: i32 = 12;
const IN_USE: i32 = 14;
const ENDED: i32 = 23;

/// The stage with the package installed, behind a NixOS firewall.
struct Installed {
    stage: Stage,
    before: Snapshot,
}

impl Deref for Installed {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

/// Sets the stage, plays, and looks whether everything is as it was.
#[track_caller]
fn on_stage(flavour: Flavour, play: impl FnOnce(&Installed)) {
    on_stage_with(Bus::Daemon, flavour, play);
}

/// The same with another bus.
#[track_caller]
fn on_stage_with(bus: Bus, flavour: Flavour, play: impl FnOnce(&Installed)) {
    need_debian!("nft", "iptables", "cpio");
    let stage = Stage::with_bus(Some(flavour), bus).unwrap();
    stage.debian.install().unwrap();
    let before = Snapshot::take(stage.debian.netns()).unwrap();
    let stage = Installed { stage, before };
    stage.assert_closed();
    play(&stage);
    stage.assert_closed();
}

impl Installed {
    /// The user's program without a terminal, once it serves.
    #[track_caller]
    fn serving(&self, login: Login) -> Session<'_> {
        let session = self.serve(login, SOON).unwrap();
        assert_eq!(self.http().unwrap(), Answer::Open);
        session
    }

    /// Refused from outside, the ruleset as before, no socket: soon from now.
    #[track_caller]
    fn assert_closed(&self) {
        let ruleset = || Snapshot::take(self.debian.netns()).unwrap();
        let sockets = || self.sockets().unwrap();
        wait_until(CLOSED, || sockets().is_empty() && ruleset() == self.before);
        assert_eq!(sockets(), "", "{}", self.journal());
        assert_same(&self.before, &ruleset());
        self.refuses().unwrap();
    }

    /// The program is refused with this exit code, in words that contain each of `words`.
    #[track_caller]
    fn assert_refused(&self, login: Login, code: i32, words: &[&str]) {
        let (ended, said) = self.debian.run(login, &SERVE, SOON).unwrap();
        assert_eq!(ended, code, "{said}\n{}", self.journal());
        for word in words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
        self.assert_closed();
    }

    /// Nobody but the helper's own user can be the helper.
    #[track_caller]
    fn assert_name_is_kept(&self) {
        let claim = "busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus \
            RequestName su org.portcullis.Netboot1 4";
        let (code, said) = self.debian.run(ALICE, &["sh", "-c", claim], SOON).unwrap();
        assert_ne!(code, 0);
        assert!(said.contains("Access denied"), "{said}");
    }

    /// The lines of /proc/PID/status of a process inside.
    fn status(&self, pid: u32) -> Vec<String> {
        let path = self.debian.root().join(format!("proc/{pid}/status"));
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The process that is the helper, 0 when none runs.
    fn helper(&self) -> u32 {
        self.debian
            .sh("systemctl show --value -p MainPID portcullis-helper.service")
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// Whether a program of this name runs inside.
    fn runs(&self, name: &str) -> bool {
        let found = self.debian.sh(&format!("pgrep -x {name} || :")).unwrap();
        !found.is_empty()
    }

    /// The user's program on a terminal, when it asks for carol's password; nothing is bound yet.
    #[track_caller]
    fn asked(&self, login: Login) -> Session<'_> {
        let mut session = self.debian.on_terminal(login, &SERVE).unwrap();
        for words in ["Authenticating as: carol", "Password: "] {
            self.expect(&mut session, words, SOON).unwrap();
        }
        session.terminal().unwrap().expect_hidden(SOON).unwrap();
        self.assert_closed();
        session
    }
}

#[test]
fn p1_what_polkit_does_not_grant_is_not_opened() {
    on_stage(Flavour::Nftables, |stage| {
        let debian = &stage.debian;
        // Nobody to ask: alice is in no group, bob's membership counts only at the machine.
        stage.assert_refused(ALICE, NO_AGENT, &["password"]);
        stage.assert_refused(BOB_REMOTE, NO_AGENT, &["password"]);

        // The site says no, even to a member at the machine; and only about what it names.
        let rule = "/etc/polkit-1/rules.d/10-site.rules";
        let no = "polkit.addRule(function (action, subject) {
    if (action.id == 'org.portcullis.netboot1.open' && action.lookup('interface') == 'eth0')
        return polkit.Result.NO;
});";
        debian.write(rule, no).unwrap();
        debian.sh("systemctl restart polkit").unwrap();
        stage.assert_refused(BOB, NOT_AUTHORIZED, &[]);
        debian.write(rule, &no.replace("eth0", "eth1")).unwrap();
        debian.sh("systemctl restart polkit").unwrap();
        let mut session = stage.serving(BOB);
        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
        stage.assert_closed();

        // Masked: the bus tries to start it and cannot.
        debian.sh("systemctl mask --now polkit").unwrap();
        stage.assert_refused(BOB, NOT_AUTHORIZED, &["polkit"]);
        // Absent: the bus has never heard of it.
        debian
            .remove("/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service")
            .unwrap();
        debian.sh("systemctl unmask polkit; systemctl reload dbus").unwrap();
        stage.assert_refused(BOB, NOT_AUTHORIZED, &["polkit"]);
    });
}

#[test]
fn p1_the_password_is_asked_for_on_the_terminal() {
    on_stage(Flavour::Iptables, |stage| {
        // Right.
        let mut session = stage.asked(ALICE);
        session.terminal().unwrap().type_line(ADMIN_PASSWORD).unwrap();
        stage.expect(&mut session, READY, SOON).unwrap();
        assert_eq!(stage.http().unwrap(), Answer::Open);
        assert!(session.terminal().unwrap().echo().unwrap());
        assert!(!stage.runs("pkttyagent"), "{}", session.said().unwrap());
        session.terminal().unwrap().interrupt().unwrap();
        assert_eq!(session.exit(SOON), Ok(DONE), "{:?}", session.said());
        stage.assert_closed();
        let said = session.said().unwrap();
        assert!(!said.contains(ADMIN_PASSWORD), "{said}");

        // Wrong.
        let mut session = stage.asked(ALICE);
        session.terminal().unwrap().type_line("wrong").unwrap();
        assert_eq!(session.exit(SOON), Ok(DISMISSED), "{:?}", session.said());
        stage.assert_closed();

        // Dismissed: a member is asked too when she is not at the machine.
        let mut session = stage.asked(BOB_REMOTE);
        session.terminal().unwrap().interrupt().unwrap();
        assert_eq!(session.exit(SOON), Ok(DISMISSED), "{:?}", session.said());
        assert!(session.terminal().unwrap().echo().unwrap());
        assert!(!stage.runs("pkttyagent"));
        stage.assert_closed();

        // polkit dies while it asks.
        let mut session = stage.asked(ALICE);
        stage.debian.sh("systemctl kill --signal=KILL polkit").unwrap();
        assert_eq!(session.exit(SOON), Ok(NOT_AUTHORIZED), "{:?}", session.said());
        assert!(session.terminal().unwrap().echo().unwrap());
        stage.assert_closed();

        // Killed: what is typed afterwards opens nothing, and nobody is left who asks.
        let mut session = stage.asked(ALICE);
        session.kill("KILL").unwrap();
        assert_ne!(session.exit(SOON), Ok(DONE));
        session.terminal().unwrap().type_line(ADMIN_PASSWORD).unwrap();
        assert!(wait_until(SOON, || !stage.runs("pkttyagent")));
        stage.assert_closed();
        let journal = stage.journal();
        assert!(stage.helper() != 0, "the helper was alive to decide:\n{journal}");
    });
}

#[test]
fn p10_neither_client_nor_helper_has_more_than_it_needs() {
    on_stage(Flavour::Nftables, |stage| {
        let mut session = stage.serving(BOB);
        let client = stage.status(session.pid().unwrap());
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let line = format!("{set}:\t0000000000000000");
            assert!(client.contains(&line), "no {line:?} in {client:#?}");
        }
        let bob = stage.debian.sh("id -u bob").unwrap();
        let uid = bob.trim();
        let line = format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}");
        assert!(client.contains(&line), "no {line:?} in {client:#?}");

        let helper = stage.status(stage.helper());
        let uid = stage.debian.sh("id -u portcullis").unwrap();
        let uid = uid.trim();
        assert_ne!(uid, "0");
        // CAP_NET_BIND_SERVICE is bit 10, CAP_NET_ADMIN is bit 12 (capability.h).
        for line in [
            &format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
            "CapPrm:\t0000000000001400",
            "CapEff:\t0000000000001400",
            "CapBnd:\t0000000000001400",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            assert!(helper.iter().any(|present| present == line), "no {line:?} in {helper:#?}");
        }
        // Whether legacy iptables filters here is root's to see: systemd tells the helper that, and
        // nothing else (a kernel without it: "none").
        let given = "cat /run/credentials/portcullis-helper.service/*";
        let known = "cat /proc/net/ip_tables_names 2>/dev/null || printf none";
        assert_eq!(stage.debian.sh(given).unwrap(), stage.debian.sh(known).unwrap());
        // Fails above 2.0.
        stage
            .debian
            .sh("systemd-analyze security --no-pager --threshold=20 portcullis-helper.service")
            .unwrap();
        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
    });
}

/// UDP 67 is another's, who does not share it: with the site's word and the unit's drop-in it is heard by
/// a raw socket, with one of them alone it is not.
#[test]
fn raw_dhcp_takes_the_sites_word_and_the_drop_in() {
    on_stage(Flavour::Nftables, |stage| {
        let debian = &stage.debian;
        let _server =
            debian.netns().run(|| std::net::UdpSocket::bind("0.0.0.0:67").unwrap()).unwrap();
        let words = [&SERVE[..], &["--dhcp-no-bind"]].concat();
        let restart =
            || debian.sh("systemctl daemon-reload; systemctl stop portcullis-helper").unwrap();
        let refused = |expected, part: &str| {
            let (code, said) = debian.run(BOB, &words, SOON).unwrap();
            assert!(code == expected && said.contains(part), "{code}: {said}\n{}", stage.journal());
        };
        refused(IN_USE, "raw-dhcp");
        debian.write("/etc/portcullis/helper.toml", "raw-dhcp = true\n").unwrap();
        restart();
        refused(IN_USE, "CAP_NET_RAW");
        debian
            .sh("mkdir -p /etc/systemd/system/portcullis-helper.service.d
                 cp /usr/share/doc/portcullis/raw-dhcp.conf /etc/systemd/system/portcullis-helper.service.d/")
            .unwrap();
        restart();
        let mut session = debian.without_terminal(BOB, &words).unwrap();
        stage.expect(&mut session, READY, SOON).unwrap();
        let said = session.said().unwrap();
        assert!(said.contains("\"dhcp\":\"shared-raw\""), "{said}");
        // Bit 13 is CAP_NET_RAW.
        let helper = stage.status(stage.helper());
        assert!(helper.iter().any(|line| line == "CapPrm:\t0000000000003400"), "{helper:#?}");
        // Also so the unit's exposure is one that is accepted.
        debian
            .sh("systemd-analyze security --no-pager --threshold=20 portcullis-helper.service")
            .unwrap();
        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
        debian.remove("/etc/portcullis/helper.toml").unwrap();
        restart();
        refused(NO_HELPER, "raw-dhcp = true");
        debian
            .sh("rm /etc/systemd/system/portcullis-helper.service.d/raw-dhcp.conf
                 systemctl daemon-reload; systemctl reset-failed portcullis-helper")
            .unwrap();
    });
}

#[test]
fn p12_every_decision_is_in_the_journal() {
    on_stage(Flavour::Nftables, |stage| {
        let mut session = stage.serving(BOB);
        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
        stage.assert_refused(ALICE, NO_AGENT, &[]);
        let debian = &stage.debian;
        let [alice, bob, helper] = ["alice", "bob", "portcullis"]
            .map(|user| debian.sh(&format!("id -u {user}")).unwrap().trim().to_owned());
        let journal = debian.sh("journalctl -t portcullis-helper -o json --no-pager").unwrap();
        let asked = [
            ("PORTCULLIS_INTERFACE", "eth0"),
            ("PORTCULLIS_DHCP", "bind"),
            ("PORTCULLIS_HTTP_PORT", "64172"),
            ("PORTCULLIS_PORTS", "udp/67,udp/69,udp/4011,tcp/64172"),
            // The journal's own words, which nobody can send: who wrote this.
            ("_UID", &helper),
            ("_SYSTEMD_UNIT", "portcullis-helper.service"),
            ("_TRANSPORT", "journal"),
            ("PRIORITY", "5"),
        ];
        for (kind, id, fields) in [
            (
                "granted",
                "150783d880d24208a7a0727e1e2059db",
                &[
                    ("PORTCULLIS_UID", bob.as_str()),
                    ("PORTCULLIS_LEASE", "1"),
                    ("PORTCULLIS_BACKEND", "nixos-nftables"),
                    ("PORTCULLIS_SECONDS", "43200"),
                ][..],
            ),
            (
                "ended",
                "e3995dcf1c554863a80cba7b874ef6ff",
                &[
                    ("PORTCULLIS_UID", &bob),
                    ("PORTCULLIS_LEASE", "1"),
                    ("PORTCULLIS_BACKEND", "nixos-nftables"),
                    ("PORTCULLIS_REASON", "closed"),
                ],
            ),
            (
                "refused",
                "506650eaaac842b595f7f99b47b9d6f5",
                &[
                    ("PORTCULLIS_UID", &alice),
                    ("PORTCULLIS_METHOD", "Open"),
                    ("PORTCULLIS_RESULT", "NoAgent"),
                    ("PORTCULLIS_SECONDS", "43200"),
                ],
            ),
        ] {
            let entries: Vec<Value> = journal
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .filter(|entry: &Value| entry["MESSAGE_ID"] == id)
                .collect();
            let [entry] = entries.as_slice() else {
                panic!("not one entry for {kind}: {entries:#?}\n{}", stage.journal());
            };
            let kind = [("PORTCULLIS_DECISION", kind)];
            for (name, value) in kind.iter().chain(fields).chain(&asked) {
                assert_eq!(entry[name], *value, "{name} of {entry:#}");
            }
            assert!(entry["PORTCULLIS_SENDER"].as_str().unwrap().starts_with(':'), "{entry:#}");
            assert!(entry["PORTCULLIS_SECONDS"].as_str().unwrap().parse::<u32>().is_ok());
        }
        // The same for people.
        debian.sh("journalctl --update-catalog").unwrap();
        let told = debian.sh("journalctl -x PORTCULLIS_DECISION=granted --no-pager").unwrap();
        let subject = format!("Subject: Uid {bob} may serve boot images on eth0");
        assert!(told.contains(&subject), "{told}");
    });
}

#[test]
fn the_sites_configuration_holds_and_a_bad_one_stops_the_helper() {
    on_stage(Flavour::Nftables, |stage| {
        let debian = &stage.debian;
        let example = "/usr/share/doc/portcullis/helper.toml.example";
        let check = "/usr/libexec/portcullis-helper --check-config";
        debian.sh(&format!("{check} {example} && {check}")).unwrap();
        let configure = |text: &str| {
            debian.sh("mkdir -p /etc/portcullis && systemctl stop portcullis-helper").unwrap();
            debian.write("/etc/portcullis/helper.toml", text).unwrap();
        };
        configure("interfaces = [\"enp*\"]\n");
        stage.assert_refused(BOB, FORBIDDEN, &["serving on eth0"]);

        configure("leases = 3\ninterface = [\"eth0\"]\n");
        // The bus gives a service 25 seconds to appear and then says only that it did not; what systemd
        // knows is said, and is said again when the unit was in that state before.
        let place = "/etc/portcullis/helper.toml:2: unknown field `interface`";
        for _ in 0..2 {
            let (code, said) = debian.run(BOB, &SERVE, 3 * SOON).unwrap();
            assert_eq!(code, NO_HELPER, "{said}{}", stage.journal());
            assert!(said.contains(place), "{said}{}", stage.journal());
        }
        assert!(stage.journal().contains(place), "{}", stage.journal());
        assert!(debian.sh(check).is_err());

        configure("interfaces = [\"eth?\"]\nmax-seconds = 60\n");
        // The bus itself would try again half a minute after the failure.
        debian.sh("systemctl start portcullis-helper").unwrap();
        let mut session = stage.serving(BOB);
        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
    });
}

#[test]
fn p9_a_lease_is_its_users_and_the_managers() {
    on_stage(Flavour::Iptables, |stage| {
        let debian = &stage.debian;
        let mut session = stage.serving(BOB);
        // Another user cannot tell that it is there, and cannot end it.
        let (code, said) = debian.run(ALICE, &["portcullis", "status"], SOON).unwrap();
        assert_eq!(code, DONE, "{said}");
        assert!(!said.contains("eth0"), "{said}");
        let (code, said) = debian.run(ALICE, &["portcullis", "close", "1"], SOON).unwrap();
        assert_eq!(code, NO_SUCH_LEASE, "{said}");
        stage.assert_name_is_kept();
        assert_eq!(stage.http().unwrap(), Answer::Open);

        // The same user from elsewhere sees it, and ends it without a question.
        let status = ["portcullis", "status"];
        let (code, said) = debian.run(BOB_REMOTE, &status, SOON).unwrap();
        assert_eq!(code, DONE, "{said}");
        assert!(said.contains("eth0"), "{said}");
        let close = ["portcullis", "close", "1"];
        let (code, said) = debian.run(BOB_REMOTE, &close, SOON).unwrap();
        assert_eq!(code, DONE, "{said}\n{}", stage.journal());
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
        let said = session.said().unwrap();
        assert!(said.contains("\"reason\":\"closed\""), "{said}");
        stage.assert_closed();

        // root, who may manage, sees and ends it.
        let mut session = stage.serving(BOB);
        assert!(debian.sh("portcullis status").unwrap().contains("eth0"));
        // Even a program that has stopped listening to anybody loses its ports at once. The helper
        // stays, however idle, while somebody holds the sockets.
        session.kill("STOP").unwrap();
        debian.sh("portcullis close").unwrap();
        assert_ne!(stage.http().unwrap(), Answer::Open);
        std::thread::sleep(Duration::from_secs(13));
        assert_ne!(stage.helper(), 0, "{}", stage.journal());
        assert_ne!(stage.http().unwrap(), Answer::Open);
        session.kill("CONT").unwrap();
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
        let said = session.said().unwrap();
        assert!(said.contains("\"reason\":\"manager\""), "{said}");
        stage.assert_closed();
    });
}

#[test]
fn p2_a_lease_ends_with_its_program_its_session_and_the_bus() {
    on_stage(Flavour::Iptables, |stage| {
        // A member at the machine is not asked.
        let mut session = stage.serving(BOB);
        let awake = || stage.debian.sh("systemd-inhibit --list").unwrap().contains("portcullis");
        assert!(wait_until(Duration::from_secs(10), awake), "the computer may fall asleep");
        let id = session.id().unwrap();
        stage.debian.sh(&format!("loginctl terminate-session {id}")).unwrap();
        session.exit(SOON).unwrap();
        stage.assert_closed();
        assert!(!awake(), "the computer is kept awake for nothing");

        let mut session = stage.serving(BOB);
        session.kill("KILL").unwrap();
        stage.assert_closed();
        assert_ne!(session.exit(SOON), Ok(DONE));

        // A new bus knows none of us any more. (Last, since polkit and logind go with the old one.)
        let mut session = stage.serving(BOB);
        stage.debian.sh("systemctl restart dbus").unwrap();
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
    });
}

/// What the bus does for us, by dbus-broker instead of dbus-daemon: it has systemd start the helper, keeps
/// its name, says who calls and who has left, and carries polkit's questions.
#[test]
fn another_bus_does_the_same() {
    on_stage_with(Bus::Broker, Flavour::Nftables, |stage| {
        let debian = &stage.debian;
        assert!(stage.runs("dbus-broker") && !stage.runs("dbus-daemon"));
        assert_eq!(stage.helper(), 0, "installed is not started");
        stage.assert_name_is_kept();
        stage.assert_refused(ALICE, NO_AGENT, &["password"]);
        let mut session = stage.asked(ALICE);
        session.terminal().unwrap().type_line(ADMIN_PASSWORD).unwrap();
        stage.expect(&mut session, READY, SOON).unwrap();
        session.terminal().unwrap().interrupt().unwrap();
        assert_eq!(session.exit(SOON), Ok(DONE), "{:?}", session.said());
        stage.assert_closed();

        // Gone without a word.
        let mut session = stage.serving(BOB);
        session.kill("KILL").unwrap();
        stage.assert_closed();
        assert_ne!(session.exit(SOON), Ok(DONE));

        // What only its owner is told, and nobody else.
        let mut session = stage.serving(BOB);
        let (code, said) = debian.run(ALICE, &["portcullis", "close", "3"], SOON).unwrap();
        assert_eq!(code, NO_SUCH_LEASE, "{said}");
        let (code, said) = debian.run(BOB_REMOTE, &["portcullis", "close"], SOON).unwrap();
        assert_eq!(code, DONE, "{said}\n{}", stage.journal());
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
        stage.assert_closed();

        // A new bus knows none of us any more.
        let mut session = stage.serving(BOB);
        debian.sh("systemctl restart dbus").unwrap();
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
    });
}

#[test]
fn p3_the_helper_comes_when_called_and_leaves_nothing_when_it_goes() {
    on_stage(Flavour::Nftables, |stage| {
        let debian = &stage.debian;
        assert_eq!(stage.helper(), 0, "installed is not started");

        // Killed: refused at once, and systemd sweeps what is left.
        let mut session = stage.serving(BOB);
        // A signal is sent in an instant; on a busy machine dying takes a processor's time.
        let helper = stage.helper();
        debian
            .sh(&format!(
                "kill -KILL {helper}; while grep -qs '^State:.[^XZ]' /proc/{helper}/status; do :; done"
            ))
            .unwrap();
        assert_ne!(stage.http().unwrap(), Answer::Open);
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
        stage.assert_closed();

        // Stopped by an administrator.
        let mut session = stage.serving(BOB);
        debian.sh("systemctl stop portcullis-helper").unwrap();
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
        let said = session.said().unwrap();
        assert!(said.contains("helper-stopping"), "{said}");
        stage.assert_closed();

        // Upgraded while it serves: the old program ends its leases, the next is served by the new.
        let mut session = stage.serving(BOB);
        let old = stage.helper();
        debian
            .sh("cd /usr/libexec
                 cp portcullis-helper new
                 mv new portcullis-helper
                 systemctl daemon-reload
                 systemctl restart portcullis-helper")
            .unwrap();
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
        let said = session.said().unwrap();
        assert!(said.contains("helper-stopping"), "{said}");
        stage.assert_closed();
        let mut session = stage.serving(BOB);
        let new = stage.helper();
        assert_ne!(new, old);
        let program = debian.sh(&format!("readlink /proc/{new}/exe")).unwrap();
        assert_eq!(program.trim(), "/usr/libexec/portcullis-helper");
        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
        stage.assert_closed();

        // Idle: it stays a while and then goes by itself.
        let mut session = stage.serving(BOB);
        let last_used = Instant::now();
        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
        std::thread::sleep(Duration::from_secs(8));
        let stays = stage.helper() != 0;
        // On a busy machine its time may be over by now.
        let early = last_used.elapsed() < Duration::from_secs(10);
        assert!(stays || !early, "it left before its time:\n{}", stage.journal());
        assert!(wait_until(2 * SOON, || stage.helper() == 0), "it stays:\n{}", stage.journal());
        let state = debian.sh("systemctl show --value -p Result portcullis-helper").unwrap();
        assert_eq!(state.trim(), "success");
    });
}

#[test]
fn p3_a_hung_helper_is_ended_by_its_watchdog() {
    on_stage(Flavour::Iptables, |stage| {
        let mut session = stage.serving(BOB);
        stage.debian.sh(&format!("kill -STOP {}", stage.helper())).unwrap();
        // The sockets are the user's: it goes on serving until the watchdog has seen enough.
        assert_eq!(stage.http().unwrap(), Answer::Open);
        assert_eq!(session.exit(3 * SOON), Ok(ENDED), "{:?}", session.said());
        stage.assert_closed();
        // The next one is served as if nothing had been.
        let mut session = stage.serving(BOB);
        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
    });
}

#[test]
fn a_machine_boots_from_an_ordinary_user() {
    need_root!("dnsmasq", "qemu-system-x86_64");
    on_stage(Flavour::Nftables, |stage| {
        let mut session = stage.serving(BOB);
        stage
            .boot("52:54:00:00:00:05")
            .unwrap_or_else(|error| panic!("{error}\n{:?}", session.said()));
        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
        let said = session.said().unwrap();
        assert!(said.contains("52:54:00:00:00:05"), "{said}");
    });
}
