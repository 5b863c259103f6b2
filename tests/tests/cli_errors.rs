//! What goes wrong before anything is served: each case has its own message and exit code, leaves
//! nothing open, and, where an argument is at fault, is said before polkit is asked.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    net::{TcpListener, UdpSocket},
    time::Duration,
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs,
    host::{SOON, Site},
    need_host,
    nixos::Flavour,
    process::{Process, wait_until},
    scene::{HTTP, Scene},
};

/// A scene in which polkit would ask for a password: whatever is refused by another reason was
/// refused before the question.
fn unasked() -> Scene {
    Scene::start(Some(Flavour::Nftables), Site::Asks).unwrap()
}

fn scene() -> Scene {
    Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap()
}

/// `portcullis boot` with these words ends with this code, says all these things on standard error,
/// and leaves the host as it was.
fn refused(scene: &Scene, words: &[&str], code: i32, says: &[&str]) {
    let mut arguments = vec!["boot"];
    arguments.extend(words);
    arguments.push("--no-ask-password");
    let mut client = scene.host.client("alice", &arguments).unwrap();
    let status = client.end().unwrap();
    let said = client.stderr();
    println!("{words:?}: exit code {:?}\n{said}", status.code());
    assert_eq!(status.code(), Some(code), "{said}{}", scene.host.log());
    for text in says {
        assert!(said.contains(text), "{text:?} is not said:\n{said}");
    }
    scene.assert_restored(Duration::from_secs(10)).unwrap();
}

/// Runs a script on the host as root.
fn as_root(scene: &Scene, script: &str) -> String {
    let mut command = scene.host.command(None, "sh");
    command.args(["-c", script]);
    scene.host.netns().finish(command).unwrap()
}

/// Somebody else's program that listens on the port of the boot images.
fn squatter(scene: &mut Scene, address: &str) -> Process {
    let mut command = scene.host.command(Some("mallory"), "busybox");
    command.args(["httpd", "-f", "-p", &format!("{address}:{HTTP}")]);
    let process = scene.host.netns().spawn(command).unwrap();
    let listens = || scene.host.sockets().unwrap().contains(&HTTP.to_string());
    assert!(wait_until(SOON, listens), "the squatter does not listen");
    scene.sockets = scene.host.sockets().unwrap();
    process
}

#[test]
fn udp_69_taken_names_port_protocol_and_holder() {
    need_host!();
    let mut scene = scene();
    let _holder = scene.host.netns().run(|| UdpSocket::bind("0.0.0.0:69").unwrap()).unwrap();
    scene.sockets = scene.host.sockets().unwrap();
    refused(&scene, &["/mnt", "-i", "eth0"], 14, &["port 69 ", "uid 0"]);
}

#[test]
fn http_port_squatted_on_every_address_names_the_squatter() {
    need_host!(Needs::Tool("busybox"));
    let mut scene = scene();
    let mallory = as_root(&scene, "id -u mallory");
    let uid = format!("uid {}", mallory.trim());
    let _squatter = squatter(&mut scene, "0.0.0.0");
    refused(&scene, &["/mnt", "-i", "eth0"], 14, &["port 64172 ", &uid]);
}

#[test]
fn http_port_squatted_on_the_loopback_address_does_no_harm() {
    need_host!(Needs::Tool("busybox"));
    let mut scene = scene();
    let _squatter = squatter(&mut scene, "127.0.0.1");
    let mut client = scene.serve(&[]).unwrap();
    client.signal(Signal::SIGINT).unwrap();
    assert_eq!(client.end().unwrap().code(), Some(0), "{}", client.stderr());
    scene.assert_restored(Duration::from_secs(10)).unwrap();
}

#[test]
fn a_port_beside_ours_that_is_taken_does_no_harm() {
    need_host!();
    let mut scene = scene();
    let _others = scene
        .host
        .netns()
        .run(|| {
            (UdpSocket::bind("0.0.0.0:68").unwrap(), TcpListener::bind("0.0.0.0:64171").unwrap())
        })
        .unwrap();
    scene.sockets = scene.host.sockets().unwrap();
    let mut client = scene.serve(&[]).unwrap();
    client.signal(Signal::SIGINT).unwrap();
    assert_eq!(client.end().unwrap().code(), Some(0), "{}", client.stderr());
    scene.assert_restored(Duration::from_secs(10)).unwrap();
}

#[test]
fn interface_that_is_not_there() {
    need_host!();
    refused(&unasked(), &["/mnt", "-i", "eth7"], 16, &["eth7"]);
}

#[test]
fn interface_that_is_down() {
    need_host!();
    let scene = unasked();
    scene.host.netns().ip("link set eth0 down").unwrap();
    refused(&scene, &["/mnt", "-i", "eth0"], 16, &["eth0", "down"]);
}

#[test]
fn interface_without_an_address() {
    need_host!();
    let scene = unasked();
    scene.host.netns().ip("address flush dev eth0").unwrap();
    refused(&scene, &["/mnt", "-i", "eth0"], 16, &["eth0", "address"]);
}

#[test]
fn interface_that_is_a_port_of_a_bridge_names_the_bridge() {
    need_host!();
    let scene = unasked();
    scene.host.netns().bridge("br7").unwrap();
    scene.host.netns().plug("eth0", "br7").unwrap();
    refused(&scene, &["/mnt", "-i", "eth0"], 16, &["eth0", "br7"]);
}

#[test]
fn loopback_interface() {
    need_host!();
    refused(&unasked(), &["/mnt", "-i", "lo"], 16, &["lo"]);
}

/// Neither iPXE nor the stub of which a program for UEFI is made.
#[test]
fn no_boot_loader_on_the_system() {
    need_host!();
    let scene = unasked();
    as_root(
        &scene,
        "for d in /usr/lib/ipxe /usr/share/ipxe /usr/lib/systemd/boot/efi; do
            [ ! -d $d ] || mount -t tmpfs tmpfs $d
        done",
    );
    refused(&scene, &["/mnt", "-i", "eth0"], 31, &["iPXE", "--ipxe-dir"]);
}

#[test]
fn kernel_that_is_not_a_kernel() {
    need_host!();
    let scene = unasked();
    // A file that alice may read and that is no kernel.
    refused(&scene, &["/etc/passwd", "-i", "eth0"], 30, &["/etc/passwd", "kernel"]);
}

#[test]
fn kernel_that_is_not_there_and_directory_without_one() {
    need_host!();
    let scene = unasked();
    refused(&scene, &["/no/such/file", "-i", "eth0"], 30, &["/no/such/file"]);
    refused(&scene, &["/etc/dbus-1", "-i", "eth0"], 30, &["/etc/dbus-1"]);
}

#[test]
fn initrd_that_cannot_be_read_is_empty_or_is_a_directory() {
    need_host!();
    let scene = unasked();
    as_root(
        &scene,
        "cp /mnt/initrd /run/secret && chmod 600 /run/secret && : >/run/empty && chmod 644 /run/empty",
    );
    for (initrd, says) in [("/run/secret", "ermi"), ("/run/empty", "empty"), ("/etc", "directory")]
    {
        let words = ["/mnt/bzImage", initrd, "-i", "eth0"];
        refused(&scene, &words, 30, &[initrd, says]);
    }
}

#[test]
fn what_the_sites_configuration_does_not_allow_is_refused_before_the_question() {
    need_host!();
    let scene = unasked();
    as_root(
        &scene,
        "mkdir -p /etc/portcullis/helper.toml.d
         echo 'http-ports = [\"8000-8099\"]' >/etc/portcullis/helper.toml
         echo 'interfaces = [\"eth0\"]' >/etc/portcullis/helper.toml.d/interfaces.toml",
    );
    let says = ["TCP port 64172", "http-ports = [\"8000-8099\"]", "/etc/portcullis/helper.toml"];
    refused(&scene, &["/mnt", "-i", "eth0"], 17, &says);
    // The twin: what it allows comes as far as the question.
    refused(&scene, &["/mnt", "-i", "eth0", "--port", "8000"], 12, &["password"]);
}

#[test]
fn a_password_that_nobody_can_be_asked_for() {
    need_host!();
    // The twin of the scenes above: with nothing else wrong, polkit's question is what stops it.
    refused(&unasked(), &["/mnt", "-i", "eth0"], 12, &["password"]);
}
