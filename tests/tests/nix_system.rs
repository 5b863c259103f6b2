//! Level 4: what NixOS' module makes of its standard configuration (nix/generated/standard.json), in a whole
//! Debian: the package at its place in the store; bus, polkit, systemd and the helper's own file pointed
//! there in the way that NixOS does it. What is NixOS' own in between (its scripts, its polkit, its bus'
//! configuration) is not here.

#![cfg(test)]

use std::{path::Path, time::Duration};

use portcullis_lab::{
    host, need_debian,
    nixos::Flavour,
    nspawn::{ALICE, BOB, BOB_REMOTE, Debian, Login},
    probe::Answer,
    process::wait_until,
    repository::read,
    snapshot::{Snapshot, assert_same},
    stage::{READY, SERVE, Stage},
};
use serde_json::Value;

/// Longest time that anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);
/// What the system profile is called.
const PROFILE: &str = "/run/current-system/sw";
/// Exit codes, as README lists them.
const DONE: i32 = 0;
const NOT_AUTHORIZED: i32 = 10;
const NO_AGENT: i32 = 12;
const FORBIDDEN: i32 = 17;

/// Lays everything out as NixOS' activation would.
fn activate(debian: &Debian, standard: &Value) {
    let package = standard["packages"]["bus"][0].as_str().unwrap();
    host::install(&debian.root(), package).unwrap();
    // environment.systemPackages, and what polkit finds by it.
    debian
        .sh(&format!(
            "mkdir -p /run/current-system && ln -s {package} {PROFILE}
             cd /usr/share/polkit-1
             ln -s {PROFILE}/share/polkit-1/actions/* actions/
             ln -s {PROFILE}/share/polkit-1/rules.d/* rules.d/"
        ))
        .unwrap();
    let rules = standard["polkit"]["extraConfig"].as_str().unwrap();
    debian.write("/etc/polkit-1/rules.d/10-nixos.rules", rules).unwrap();
    // services.dbus.packages
    let bus = format!(
        "<busconfig><includedir>{package}/share/dbus-1/system.d</includedir>\
         <servicedir>{package}/share/dbus-1/system-services</servicedir></busconfig>"
    );
    debian.write("/etc/dbus-1/system-local.conf", &bus).unwrap();
    // systemd.packages, and systemd.services as drop-ins of the units that are there.
    debian.sh(&format!("ln -s {package}/lib/systemd/system/* /etc/systemd/system/")).unwrap();
    for (unit, text) in standard["units"].as_object().unwrap() {
        let path = format!("/etc/systemd/system/{unit}.service.d/overrides.conf");
        debian.write(&path, text.as_str().unwrap()).unwrap();
    }
    // environment.etc
    for (path, file) in standard["etc"].as_object().unwrap() {
        let script = file["script"].as_str().unwrap();
        let stored = script.split_whitespace().find(|word| word.ends_with("-helper.toml")).unwrap();
        debian.write(stored, &toml(&file["value"])).unwrap();
        let folder = Path::new(path).parent().unwrap().display();
        debian
            .sh(&format!(
                "mkdir -p /etc/{folder} /etc/static/{folder}
                 ln -s {stored} /etc/static/{path} && ln -s /etc/static/{path} /etc/{path}"
            ))
            .unwrap();
        // What is done with it when the system is built.
        debian.sh(&format!("out=/tmp/out\n{script}\ncmp /tmp/out /etc/{path}")).unwrap();
    }
    // users.users, users.groups
    for group in standard["groups"].as_object().unwrap().keys() {
        debian.sh(&format!("groupadd --system {group}")).unwrap();
    }
    for (user, facts) in standard["users"].as_object().unwrap() {
        let (group, comment) = (facts["group"].as_str().unwrap(), facts["description"].as_str());
        debian
            .sh(&format!(
                "useradd --system --no-create-home --home-dir /var/empty --shell /usr/sbin/nologin \
                 --gid {group} --comment '{}' {user}",
                comment.unwrap()
            ))
            .unwrap();
    }
    for (group, facts) in standard["groups"].as_object().unwrap() {
        for member in facts["members"].as_array().unwrap() {
            debian.sh(&format!("usermod --append --groups {group} {member}")).unwrap();
        }
    }
    debian
        .sh("systemctl daemon-reload
             busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig")
        .unwrap();
}

/// The flat settings of the standard configuration as TOML.
fn toml(value: &Value) -> String {
    let keys = value.as_object().unwrap().iter();
    keys.map(|(key, value)| format!("{key} = {value}\n")).collect()
}

#[test]
fn as_nixos_installs_it_its_users_and_groups_serve_and_its_rules_and_settings_hold() {
    need_debian!("nft", "cpio");
    let stage = Stage::start(Some(Flavour::Nftables)).unwrap();
    let (debian, host) = (&stage.debian, stage.debian.netns());
    let standard: Value = serde_json::from_str(&read("nix/generated/standard.json")).unwrap();
    activate(debian, &standard);
    let before = Snapshot::take(host).unwrap();

    let http = || stage.http().unwrap();
    let portcullis = format!("{PROFILE}/bin/portcullis");
    let mut command = SERVE;
    command[0] = &portcullis;
    let refused = |login: Login, words: &[&str], code: i32| {
        let (ended, said) = debian.run(login, words, SOON).unwrap();
        assert_eq!(ended, code, "{said}\n{}", stage.journal());
        assert_ne!(http(), Answer::Open);
        said
    };
    // At the machine itself: bob, whom the module makes a member of the package's group; alice by a group of
    // the site's own.
    debian.sh("groupadd netboot && usermod --append --groups netboot alice").unwrap();
    for login in [BOB, ALICE] {
        assert_ne!(http(), Answer::Open, "enabled opens nothing");
        let mut session = debian.without_terminal(login, &command).unwrap();
        stage.expect(&mut session, READY, SOON).unwrap();
        assert_eq!(http(), Answer::Open);
        let program = debian
            .sh("readlink /proc/$(systemctl show --value -p MainPID portcullis-helper)/exe")
            .unwrap();
        assert!(program.starts_with("/nix/store/"), "{program}");
        session.kill("TERM").unwrap();
        assert_eq!(session.exit(SOON).unwrap(), DONE);
        assert_ne!(http(), Answer::Open);
    }
    // From afar; by a rule of the site's; on an interface that the settings do not have.
    refused(BOB_REMOTE, &command, NO_AGENT);
    let other_port = [command.as_slice(), &["--port", "8080"]].concat();
    refused(BOB, &other_port, NOT_AUTHORIZED);
    host.cable("lan0", &stage.outside, "lan0").unwrap();
    host.address("lan0", "198.51.100.1/24").unwrap();
    let said = refused(BOB, &[portcullis.as_str(), "boot", "/srv/image", "-i", "lan0"], FORBIDDEN);
    assert!(said.contains("eth*"), "{said}");

    // A rebuild stops and starts what has changed, but not this.
    let unit = debian.sh("systemctl cat portcullis-helper").unwrap();
    assert!(unit.contains("\nX-RestartIfChanged=false\n"), "{unit}");
    let same = || Snapshot::take(host).unwrap() == before;
    wait_until(SOON, same);
    assert_same(&before, &Snapshot::take(host).unwrap());
}
