//! A host with firewalld, in a whole Debian with systemd and polkitd: the helper asks it, by the rule of
//! polkit that comes with the helper, to open the ports, and to close them again. What firewalld cannot
//! promise is shown, too: after the helper's death its time-out is what closes.

#![cfg(test)]

use std::{
    ops::Deref,
    time::{Duration, Instant},
};

use portcullis_dbus::TFTP_PORT;
use portcullis_lab::{
    need_debian,
    nspawn::{BOB, Session},
    probe::{self, Answer},
    process::wait_until,
    snapshot::{Snapshot, assert_same},
    stage::{HOST, SERVE, Stage},
};

/// Longest time that anything short of firewalld's own time-out may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);
/// firewalld's time-out is 60 s.
const BY_ITSELF: Duration = Duration::from_secs(120);
/// Exit codes, as README lists them.
const DONE: i32 = 0;
const FAILED: i32 = 19;
const ENDED: i32 = 23;

/// The stage with firewalld and the package.
struct Firewalld {
    stage: Stage,
    before: Snapshot,
}

impl Deref for Firewalld {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

#[track_caller]
fn on_stage(play: impl FnOnce(&Firewalld)) {
    need_debian!("nft", "cpio");
    let stage = Stage::start(None).unwrap();
    stage.debian.install().unwrap();
    stage.debian.sh("systemctl start firewalld && firewall-cmd --state").unwrap();
    let before = Snapshot::take(stage.debian.netns()).unwrap();
    assert!(before.text().contains("table inet firewalld"), "{}", before.text());
    let stage = Firewalld { stage, before };
    stage.assert_closed(SOON);
    play(&stage);
}

impl Firewalld {
    #[track_caller]
    fn serving(&self) -> Session<'_> {
        let mut session = self.serve(BOB, SOON).unwrap();
        assert!(session.said().unwrap().contains("\"backend\":\"firewalld\""));
        self.assert_served();
        session
    }

    /// Whether somebody outside is answered on UDP 69 and on the port for boot images.
    fn served(&self) -> bool {
        let read = b"\0\x01no-such-file\0octet\0";
        let tftp = probe::udp(&self.outside, (HOST, TFTP_PORT).into(), read).unwrap();
        (tftp, self.http().unwrap()) == (Answer::Open, Answer::Open)
    }

    #[track_caller]
    fn assert_served(&self) {
        assert!(wait_until(SOON, || self.served()), "{}", self.journal());
    }

    /// What firewalld was told for the time being.
    fn rich_rules(&self) -> String {
        self.debian.sh("firewall-cmd --zone=public --list-rich-rules").unwrap()
    }

    /// Nothing of ours with firewalld, nothing in nf_tables, and nobody listens.
    #[track_caller]
    fn assert_closed(&self, limit: Duration) {
        assert!(wait_until(limit, || self.rich_rules().trim().is_empty()), "{}", self.rich_rules());
        let ruleset = || Snapshot::take(self.debian.netns()).unwrap();
        wait_until(SOON, || ruleset() == self.before);
        assert_same(&self.before, &ruleset());
        assert_ne!(self.http().unwrap(), Answer::Open);
    }
}

#[test]
fn firewalld_is_asked_to_open_and_to_close() {
    on_stage(|stage| {
        let mut session = stage.serving();
        let rules = stage.rich_rules();
        for port in ["67", "69", "4011", "64172"] {
            let rule = format!("family=\"ipv4\" port port=\"{port}\"");
            assert!(rules.contains(&rule), "{rules}");
        }
        assert_eq!(rules.trim().lines().count(), 4, "{rules}");

        // Renewed before its time is over, without a moment in which it is closed.
        let begun = Instant::now();
        let renewed = wait_until(SOON, || {
            assert!(stage.served(), "closed after {:?}\n{}", begun.elapsed(), stage.journal());
            let now = stage.rich_rules();
            now != rules && now.trim().lines().count() == 4
        });
        assert!(renewed, "{}", stage.rich_rules());

        // What was only for the time being goes with a reload; it comes back.
        stage.debian.sh("firewall-cmd --reload").unwrap();
        stage.assert_served();

        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
        let left = stage.rich_rules();
        assert!(wait_until(SOON, || stage.rich_rules().trim().is_empty()), "{left}");

        // Killed, client or helper: nobody listens, and what is left with firewalld goes with its time.
        let mut session = stage.serving();
        session.kill("KILL").unwrap();
        assert!(wait_until(SOON, || stage.rich_rules().trim().is_empty()), "{}", stage.journal());
        let _ = session.exit(SOON);
        let mut session = stage.serving();
        stage.debian.sh("systemctl kill -s KILL portcullis-helper").unwrap();
        assert_eq!(session.exit(SOON), Ok(ENDED), "{:?}", session.said());
        assert!(!stage.served());
        assert!(wait_until(BY_ITSELF, || stage.rich_rules().trim().is_empty()));
    });
}

#[test]
fn firewalld_may_refuse_and_an_administrator_revoke() {
    on_stage(|stage| {
        let mut session = stage.serving();
        stage
            .debian
            .sh("firewall-cmd --zone=public --list-rich-rules | grep '\"69\"' | while read -r rule; do
                     firewall-cmd --zone=public --remove-rich-rule=\"$rule\"
                 done")
            .unwrap();
        assert_eq!(session.exit(2 * SOON), Ok(ENDED), "{}", stage.journal());
        assert!(session.said().unwrap().contains("\"reason\":\"revoked\""));
        stage.assert_closed(SOON);

        // Without the rule of polkit: firewalld says no, and the user hears what is missing.
        stage
            .debian
            .sh("sed -i s/FirewallD1.config/FirewallD1.nothing/ /usr/share/polkit-1/rules.d/50-portcullis-firewalld.rules
                 systemctl restart polkit")
            .unwrap();
        let (code, said) = stage.debian.run(BOB, &SERVE, SOON).unwrap();
        assert_eq!(code, FAILED, "{said}\n{}", stage.journal());
        assert!(said.contains("firewalld") && said.contains("polkit"), "{said}");
        stage.assert_closed(SOON);

        // A firewalld that is stopped while it decides about a lease: the lease ends.
        stage
            .debian
            .sh("sed -i s/FirewallD1.nothing/FirewallD1.config/ /usr/share/polkit-1/rules.d/50-portcullis-firewalld.rules
                 systemctl restart polkit")
            .unwrap();
        let mut session = stage.serving();
        stage.debian.sh("systemctl stop firewalld").unwrap();
        assert_eq!(session.exit(SOON), Ok(ENDED), "{}", stage.journal());
        let text = || Snapshot::take(stage.debian.netns()).unwrap().text().to_owned();
        assert!(wait_until(SOON, || !text().contains("portcullis")), "{}", text());
    });
}
