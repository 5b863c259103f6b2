//! Level 4: the Debian package. Installed by dpkg, an ordinary user boots a machine with it; it goes
//! on serving while it is installed again, and purged it leaves files, accounts, processes and rules as they
//! were.

#![cfg(test)]

use std::{fs, path::Path, process::Command, time::Duration};

use portcullis_lab::{
    host, need_debian, nixos::Flavour, nspawn::BOB, probe::Answer, process::finish,
    repository::workspace, stage::Stage, trace::Trace,
};

const SOON: Duration = Duration::from_secs(30);
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
    let mut command = Command::new(workspace().join("packaging/deb"));
    command.arg(&build).arg(directory).env_remove("MAKEFLAGS");
    // Packed as it is, since it is unpacked at once.
    command.env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    finish(command).unwrap().trim().to_owned()
}

#[test]
fn p4_purged_the_package_leaves_nothing() {
    need_debian!(
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
    let stage = Stage::start(Some(Flavour::Nftables)).unwrap();
    let debian = &stage.debian;
    debian.copy(Path::new(&package), "/srv/portcullis.deb").unwrap();
    // Each login's own processes would stay for a while after it: now they stay for good.
    debian.sh("systemctl start polkit; loginctl enable-linger bob").unwrap();
    debian.run(BOB, &["true"], SOON).unwrap();
    let before = Trace::take(debian, &APART).unwrap();

    let install = "dpkg --install /srv/portcullis.deb 2>&1";
    debian.sh(install).unwrap();
    debian.sh("usermod --append --groups portcullis bob").unwrap();
    let mut session = stage.serve(BOB, SOON).unwrap();
    let mac = "52:54:00:00:00:09";
    stage.boot(mac).unwrap_or_else(|error| panic!("{error}\n{:?}", session.said()));
    assert!(session.said().unwrap().contains(mac), "{:?}", session.said());
    let http = || stage.http().unwrap();
    assert_eq!(http(), Answer::Open);

    // An upgrade takes nothing from who is served.
    debian.sh(install).unwrap();
    assert_eq!(http(), Answer::Open);
    session.kill("TERM").unwrap();
    assert_eq!(session.exit(SOON), Ok(0), "{:?}", session.said());

    // Purged while it serves: closed, and said so.
    let mut session = stage.serve(BOB, SOON).unwrap();
    debian.sh("dpkg --purge portcullis 2>&1").unwrap();
    assert_ne!(session.exit(SOON), Ok(0), "{:?}", session.said());
    assert!(session.said().unwrap().contains("helper-stopping"), "{:?}", session.said());
    assert_ne!(http(), Answer::Open);
    if let Err(error) = before.restored(debian, &APART) {
        panic!("{error}");
    }
    assert!(debian.sh("dpkg --status portcullis").is_err());
}
