//! Level 4: the Debian package. Installed by dpkg, an ordinary user boots a machine with it; it goes
//! on serving while it is installed again, and purged it leaves files, accounts, processes and rules as they
//! were.

#![cfg(test)]

use std::{fs, net::Ipv4Addr, path::Path, process::Command, time::Duration};

use portcullis_dbus::DEFAULT_HTTP_PORT;
use portcullis_lab::{
    host,
    lan::Lan,
    machine::{self, Firmware, Machine, marker},
    need_root,
    netns::Netns,
    nixos::{self, Flavour, Settings},
    nspawn::{BOB, Debian},
    probe::{self, Answer},
    process::finish,
    rival::Rival,
    trace::Trace,
};

const SOON: Duration = Duration::from_secs(30);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// dpkg's own record; the lock on accounts, which stays; what find(1) may not see change.
const APART: [&str; 4] = ["/var/lib/dpkg", "/var/cache", "/etc/.pwd.lock", "/etc/subuid-"];

/// The package of the programs that these tests are built with, with one page of a manual and one
/// completion.
fn package(directory: &Path) -> String {
    let build = directory.join("build");
    fs::create_dir_all(build.join("generated")).unwrap();
    for program in ["portcullis", "portcullis-helper"] {
        fs::copy(host::built().unwrap().join(program), build.join(program)).unwrap();
    }
    for text in
        ["portcullis.1", "portcullis-boot.1", "portcullis.bash", "_portcullis", "portcullis.fish"]
    {
        fs::write(build.join("generated").join(text), "a text\n").unwrap();
    }
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/deb"));
    command.arg(&build).arg(directory).env_remove("MAKEFLAGS");
    // Packed as it is, since it is unpacked at once.
    command.env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    finish(command).unwrap().trim().to_owned()
}

#[test]
fn p4_purged_the_package_leaves_nothing() {
    need_root!(
        "systemd-nspawn",
        "debootstrap",
        "nsenter",
        "unshare",
        "setpriv",
        "ip",
        "nft",
        "iptables",
        "cpio",
        "dpkg-shlibdeps",
        "strip",
        "dnsmasq",
        "qemu-system-x86_64"
    );
    let directory = tempfile::tempdir().unwrap();
    let package = package(directory.path());
    let lan = Lan::new().unwrap();
    let (netns, outside) = (Netns::new("debian").unwrap(), Netns::new("outside").unwrap());
    lan.attach(&netns, "eth0", Some("192.0.2.1/24")).unwrap();
    lan.attach(&outside, "eth0", Some("192.0.2.2/24")).unwrap();
    nixos::start(&netns, Flavour::Nftables, &Settings::default()).unwrap();
    let debian = Debian::boot(&netns).unwrap();
    debian.copy(Path::new(&package), "/srv/portcullis.deb").unwrap();
    let image = machine::image().unwrap();
    debian.copy(&image, "/srv/image").unwrap();
    // Each login's own processes would stay for a while after it: now they stay for good.
    debian.sh("systemctl start polkit; loginctl enable-linger bob").unwrap();
    debian.run(BOB, &["true"], SOON).unwrap();
    let before = Trace::take(&debian, &APART).unwrap();

    let install = "dpkg --install /srv/portcullis.deb 2>&1";
    debian.sh(install).unwrap();
    debian.sh("usermod --append --groups portcullis bob").unwrap();
    let words = ["portcullis", "boot", "/srv/image", "-i", "eth0", "--json"];
    let mut session = debian.without_terminal(BOB, &words).unwrap();
    let journal = || debian.sh("journalctl --no-pager --lines=40").unwrap();
    if let Err(error) = session.expect("\"event\":\"ready\"", SOON) {
        panic!("{error}\n{}", journal());
    }
    // Who gives out addresses is somebody else; the machine boots from bob.
    let router = Netns::new("router").unwrap();
    lan.attach(&router, "eth0", Some("192.0.2.254/24")).unwrap();
    let _rival = Rival::start(&router, "eth0", &[]).unwrap();
    let mac = "52:54:00:00:00:09";
    let mut machine = Machine::start(&lan, Firmware::Bios, mac).unwrap();
    let (cmdline, _) = machine.up().unwrap_or_else(|error| panic!("{error}\n{:?}", session.said()));
    assert!(cmdline.contains("init=/nix/store/"), "{cmdline}");
    assert_eq!(machine.initrd().unwrap(), marker(&image).unwrap());
    drop(machine);
    assert!(session.said().unwrap().contains(mac), "{:?}", session.said());
    let http = || probe::tcp(&outside, (HOST, DEFAULT_HTTP_PORT).into()).unwrap();
    assert_eq!(http(), Answer::Open);

    // An upgrade takes nothing from who is served.
    debian.sh(install).unwrap();
    assert_eq!(http(), Answer::Open);
    session.kill("TERM").unwrap();
    assert_eq!(session.exit(SOON), Ok(0), "{:?}", session.said());

    // Purged while it serves: closed, and said so.
    let mut session = debian.without_terminal(BOB, &words).unwrap();
    session.expect("\"event\":\"ready\"", SOON).unwrap();
    debian.sh("dpkg --purge portcullis 2>&1").unwrap();
    assert_ne!(session.exit(SOON), Ok(0), "{:?}", session.said());
    assert!(session.said().unwrap().contains("helper-stopping"), "{:?}", session.said());
    assert_ne!(http(), Answer::Open);
    if let Err(error) = before.restored(&debian, &APART) {
        panic!("{error}");
    }
    assert!(debian.sh("dpkg --status portcullis").is_err());
}
