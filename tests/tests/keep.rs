//! A lease in a changing world: firewalls switched and stopped, interfaces that come and go, polkit
//! restarted or of another mind, several users, callers with little room; and a client that wants to
//! keep what it was given (P8, P9).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    process::Stdio,
    time::Duration,
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    download::{self, MAC},
    host::{Client, SOON, Site},
    lan::Lan,
    machine, need_host,
    netns::Netns,
    nixos::{self, Flavour, Settings},
    probe::{self, Answer},
    process::{send, wait_until},
    scene::{CLOSED, HOST, HTTP, Scene},
    snapshot::Snapshot,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::Socket;

/// Longest time until everything is as it was, however busy the machine that runs the test.
const RESTORED: Duration = Duration::from_secs(15);

/// Descriptors that a caller may have: not enough to reach the bus, not enough for the sockets, just
/// enough, plenty.
const LIMITS: [u32; 10] = [4, 5, 6, 7, 8, 9, 10, 11, 12, 64];

/// Exit codes, as README lists them.
const NOT_AUTHORIZED: i32 = 10;
const ADDRESS_IN_USE: i32 = 14;
const NO_INTERFACE: i32 = 16;
const FAILED: i32 = 19;
const NO_ANSWER: i32 = 22;
const NO_SUCH_LEASE: i32 = 21;
const ENDED: i32 = 23;

fn scene(flavour: Flavour) -> Scene {
    Scene::start(Some(flavour), Site::AllowsAlice).unwrap()
}

/// Runs a script on the host as root.
fn as_root(scene: &Scene, script: &str) -> String {
    let mut command = scene.host.command(None, "sh");
    command.args(["-c", script]);
    scene.host.netns().finish(command).unwrap()
}

/// Whether the outsider is served boot images.
fn served(scene: &Scene) -> bool {
    probe::tcp(&scene.outsider, (HOST, HTTP).into()).unwrap() == Answer::Open
}

/// The client ends by itself and says this reason.
#[track_caller]
fn ended(scene: &Scene, mut client: Client, reason: &str) {
    let status = client.end().unwrap();
    let (said, told) = (client.stdout(), client.stderr());
    assert_eq!(status.code(), Some(ENDED), "{said}{told}{}", scene.host.log());
    assert!(said.contains(&format!("\"reason\":\"{reason}\"")), "{said}");
    assert!(told.contains("not serving any more"), "{told}");
}

/// The client, told to end, ends well.
#[track_caller]
fn ends_well(mut client: Client) {
    client.signal(Signal::SIGTERM).unwrap();
    let status = client.end().unwrap();
    assert_eq!(status.code(), Some(0), "{}{}", client.stdout(), client.stderr());
}

/// What `portcullis` with these words says on standard output, and its exit code.
fn told(scene: &Scene, user: &str, words: &[&str]) -> (i32, Vec<serde_json::Value>, String) {
    let mut client = scene.host.client(user, words).unwrap();
    let code = client.end().unwrap().code().unwrap();
    (code, client.events(), client.stderr())
}

/// Writes the site's rule for polkit; it is in force soon.
fn rule(scene: &Scene, body: &str) {
    let rule = format!(
        "polkit.addRule(function (action, subject) {{ if (action.id == \
         'org.portcullis.netboot1.open') {{ {body} }} }});"
    );
    as_root(scene, &format!("echo \"{rule}\" >/etc/polkit-1/rules.d/00-site.rules"));
}

/// Nothing of ours is left in the host's firewall, whatever that is now.
#[track_caller]
fn nothing_of_ours(scene: &Scene) {
    let text = || Snapshot::take(scene.host.netns()).unwrap().text().to_owned();
    wait_until(RESTORED, || !text().contains("portcullis"));
    assert!(!text().contains("portcullis"), "{}", text());
    assert_eq!(scene.host.sockets().unwrap(), scene.sockets);
}

#[test]
fn p6_a_lease_follows_the_host_to_its_other_firewall() {
    need_host!();
    let scene = scene(Flavour::Iptables);
    let client = scene.serve(&[]).unwrap();
    let settings = Settings::default();
    let (host, mut from) = (scene.host.netns(), Flavour::Iptables);
    for (to, backend) in
        [(Flavour::Nftables, "nixos-nftables"), (Flavour::Iptables, "nixos-iptables")]
    {
        nixos::stop(host, from, &settings).unwrap();
        nixos::start(host, to, &settings).unwrap();
        let announced = || {
            let (_, leases, _) = told(&scene, "alice", &["status", "--json"]);
            leases.first().is_some_and(|lease| lease["backend"] == backend)
        };
        assert!(wait_until(SOON, announced), "{backend}:\n{}", scene.host.log());
        assert!(served(&scene), "{backend}");
        from = to;
    }
    ends_well(client);
    nothing_of_ours(&scene);
}

#[test]
fn a_firewall_that_is_stopped_ends_the_lease() {
    need_host!();
    for flavour in Flavour::BOTH {
        let scene = scene(flavour);
        let client = scene.serve(&[]).unwrap();
        nixos::stop(scene.host.netns(), flavour, &Settings::default()).unwrap();
        ended(&scene, client, "firewall-gone");
        nothing_of_ours(&scene);
    }
}

#[test]
fn p7_a_lease_does_not_outlive_its_interface_or_address() {
    need_host!();
    let scene = scene(Flavour::Nftables);
    let host = scene.host.netns();
    let ip = |words: &[&str]| words.iter().for_each(|one| drop(host.ip(one).unwrap()));

    let client = scene.serve(&[]).unwrap();
    ip(&["address add 192.0.2.77/24 dev eth0", "address del 192.0.2.2/24 dev eth0"]);
    ended(&scene, client, "address-changed");
    ip(&["address flush dev eth0", "address add 192.0.2.2/24 dev eth0"]);
    scene.assert_restored(RESTORED).unwrap();

    let rename = |from: &str, to: &str| {
        ip(&[
            &format!("link set {from} down"),
            &format!("link set {from} name {to}"),
            &format!("link set {to} up"),
        ]);
    };
    let client = scene.serve(&[]).unwrap();
    rename("eth0", "lan0");
    ended(&scene, client, "interface-changed");
    assert_eq!(scene.try_ports().unwrap(), CLOSED);
    rename("lan0", "eth0");
    scene.assert_restored(RESTORED).unwrap();

    // Made again under the same name and address: another interface all the same.
    let client = scene.serve(&[]).unwrap();
    ip(&["link del eth0"]);
    scene.lan.attach(host, "eth0", Some("192.0.2.2/24")).unwrap();
    // Its hardware address is another one, too.
    scene.outsider.ip("neigh flush dev eth0").unwrap();
    ended(&scene, client, "interface-changed");
    assert_eq!(scene.try_ports().unwrap(), CLOSED);
    scene.assert_restored(RESTORED).unwrap();

    let client = scene.serve(&[]).unwrap();
    assert!(served(&scene));
    ends_well(client);
    scene.assert_restored(RESTORED).unwrap();
}

#[test]
fn p1_polkit_may_restart_but_not_change_its_mind() {
    need_host!();
    let scene = scene(Flavour::Iptables);
    let client = scene.serve(&[]).unwrap();
    let polkitd = scene.host.netns().processes().unwrap().into_iter().find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "polkitd\n")
    });
    send(polkitd.expect("polkitd runs"), Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(served(&scene), "{}", scene.host.log());
    ends_well(client);

    // It is back, and a rule that still says yes changes nothing.
    let client = scene.serve(&[]).unwrap();
    rule(&scene, "return subject.user == 'alice' ? polkit.Result.YES : polkit.Result.NO;");
    std::thread::sleep(Duration::from_secs(2));
    assert!(served(&scene), "{}", scene.host.log());
    rule(&scene, "return polkit.Result.NO;");
    ended(&scene, client, "revoked");
    scene.assert_restored(RESTORED).unwrap();
    let words = ["boot", "/mnt", "--interface", "eth0", "--no-ask-password"];
    let (code, _, said) = told(&scene, "alice", &words);
    assert_eq!(code, NOT_AUTHORIZED, "{said}");
}

#[test]
fn p9_two_users_serve_two_networks_and_neither_touches_the_other() {
    need_host!();
    let scene = scene(Flavour::Nftables);
    rule(&scene, "return polkit.Result.YES;");
    let second = Lan::new().unwrap();
    let neighbour = Netns::new("neighbour").unwrap();
    second.attach(&neighbour, "eth0", Some("198.51.100.2/24")).unwrap();
    second.attach(scene.host.netns(), "eth1", Some("198.51.100.1/24")).unwrap();
    let words = ["boot", "/mnt", "--interface", "eth1", "--json", "--no-ask-password"];
    let mut hers = scene.serve(&[]).unwrap();
    let mut his = None;
    // Until then polkit's old rule may be the one that answers.
    wait_until(SOON, || {
        let mut client = scene.host.client("mallory", &words).unwrap();
        his = client.ready().ok().map(|ready| (client, ready));
        his.is_some()
    });
    let (his, ready) = his.expect("mallory may serve");
    let leases = [hers.ready().unwrap(), ready].map(|ready| ready["lease"].as_u64().unwrap());

    let kernel = std::fs::read(machine::image().unwrap().join("bzImage")).unwrap();
    let loader = hers.ready().unwrap()["loaders"][0].as_str().unwrap().to_owned();
    let whole = |from: &Netns, address: [u8; 4], client: &Client| {
        let path = download::kernel_path(from, "eth0", client).unwrap();
        let rest = Duration::ZERO;
        let got = download::http(from, (address, HTTP).into(), &path, rest).unwrap();
        assert!(got == kernel, "{address:?}");
        let file = format!("{MAC}/{loader}");
        download::tftp(from, (address, 69).into(), &file, rest).unwrap()
    };
    let loaders = std::thread::scope(|scope| {
        let other = scope.spawn(|| whole(&neighbour, [198, 51, 100, 1], &his));
        [whole(&scene.outsider, HOST, &hers), other.join().unwrap()]
    });
    assert!(loaders[0] == loaders[1] && loaders[0].len() > 10_000);

    for (user, own, other) in [("alice", leases[0], leases[1]), ("mallory", leases[1], leases[0])] {
        let (_, listed, _) = told(&scene, user, &["status", "--json"]);
        let ids: Vec<_> = listed.iter().map(|lease| lease["lease"].as_u64().unwrap()).collect();
        assert_eq!(ids, [own], "{user}");
        let (code, _, said) = told(&scene, user, &["close", &other.to_string()]);
        assert_eq!(code, NO_SUCH_LEASE, "{user}: {said}");
    }
    let (_, listed, _) = told(&scene, "root", &["status", "--json"]);
    assert_eq!(listed.len(), 2, "{listed:?}");

    ends_well(his);
    assert!(served(&scene));
    let gone = probe::tcp(&neighbour, ([198, 51, 100, 1], HTTP).into()).unwrap();
    assert_eq!(gone, Answer::Silent);
    ends_well(hers);
    nothing_of_ours(&scene);
}

#[test]
fn a_caller_without_room_for_the_sockets_leaves_nothing_open() {
    need_host!(portcullis_lab::Needs::Tool("busctl"));
    let scene = scene(Flavour::Nftables);
    let mut granted = 0;
    for limit in LIMITS {
        let mut command = scene.host.command(Some("alice"), "prlimit");
        let name = "org.portcullis.Netboot1";
        command.arg(format!("--nofile={limit}")).args(["busctl", "--system", "call", name]);
        command.args(["/org/portcullis/Netboot1", name, "Open", "a{sv}", "1"]);
        command.args(["interface", "s", "eth0"]);
        let said = scene.host.netns().finish(command);
        granted += usize::from(said.is_ok_and(|said| said.starts_with("ta{sh}a{sv}")));
        scene.assert_restored(RESTORED).unwrap();
    }
    assert!((1..LIMITS.len()).contains(&granted), "{granted}");
    // Reached it was, by those that had no room for the answer, too.
    let grants = scene.host.log().matches("decision=granted").count();
    assert!(grants > granted, "{grants} grants, {granted} of them received");
}

#[test]
fn a_helper_without_descriptors_refuses_and_leaves_nothing() {
    need_host!();
    let scene = scene(Flavour::Iptables);
    let words = ["boot", "/mnt", "--interface", "eth0", "--json", "--no-ask-password"];
    let (mut refused, mut served) = (0, 0);
    for limit in 8..64 {
        // Before the bus starts one of its own.
        let mut command = scene.host.command(None, "prlimit");
        command.arg(format!("--nofile={limit}")).arg("/usr/libexec/portcullis-helper");
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut helper = scene.host.netns().spawn(command).unwrap();
        let mut said = BufReader::new(helper.child().stderr.take().unwrap()).lines();
        if !said.by_ref().map_while(Result::ok).any(|line| line.ends_with("ready")) {
            continue;
        }
        let ignored = std::thread::spawn(move || said.for_each(drop));
        let mut client = scene.host.client("alice", &words).unwrap();
        if client.ready().is_ok() {
            served += 1;
            ends_well(client);
        } else {
            let code = client.end().unwrap().code();
            // The last is the bus' word: granted, and no descriptor left to answer with.
            let expected = [NO_INTERFACE, FAILED, NO_ANSWER].map(Some).contains(&code);
            assert!(expected, "{limit}: {code:?}: {}", client.stderr());
            assert!(client.stderr().contains("open files"), "{limit}: {}", client.stderr());
            refused += 1;
        }
        scene.assert_restored(RESTORED).unwrap();
        for pid in scene.host.helpers().unwrap() {
            send(pid, Signal::SIGTERM).unwrap();
        }
        helper.wait(SOON).unwrap().expect("it ends");
        ignored.join().unwrap();
        if served > 1 {
            break;
        }
    }
    assert!(refused > 2 && served > 1, "{refused} refused, {served} served");
}

#[test]
fn too_few_descriptors_are_said_before_anything_is_asked() {
    need_host!();
    let scene = scene(Flavour::Nftables);
    for (limit, served) in [("5:5", false), ("63:63", false), ("20:64", true)] {
        let mut command = scene.host.command(Some("alice"), "prlimit");
        command.arg(format!("--nofile={limit}")).args(["portcullis", "status"]);
        let said = scene.host.netns().finish(command);
        assert_eq!(said.is_ok(), served, "{limit}: {said:?}");
        let told =
            said.is_err_and(|error| error.0.contains("files and sockets at once, and needs 64"));
        assert_eq!(told, !served, "{limit}");
        assert_eq!(scene.host.helpers().unwrap().is_empty(), !served, "{limit}");
    }
}

#[test]
fn p8_a_running_tftp_transfer_ends_with_its_lease() {
    need_host!();
    let scene = scene(Flavour::Iptables);
    let mut client = scene.serve(&[]).unwrap();
    let ready = client.ready().unwrap();
    let file = format!("{MAC}/{}", ready["loaders"][0].as_str().unwrap());
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| {
            let rest = Duration::from_millis(100);
            download::tftp(&scene.outsider, (HOST, 69).into(), &file, rest)
        });
        let begun = || client.stdout().contains("\"protocol\":\"tftp\"");
        assert!(wait_until(SOON, begun), "{}", client.stdout());
        let (code, _, said) = told(&scene, "alice", &["close", &ready["lease"].to_string()]);
        assert_eq!(code, 0, "{said}");
        ended(&scene, client, "closed");
        // The machine gives up after its own time-out.
        let end = transfer.join().unwrap();
        assert!(end.is_err_and(|error| error.0.contains("no answer")));
    });
    scene.assert_restored(RESTORED).unwrap();
}

/// Copies of a process's sockets on the lease's ports, accepted connections too: the same open
/// sockets, as another process has them that was sent them over SCM_RIGHTS.
fn copies(pid: u32) -> Vec<(u16, Socket)> {
    let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
    let numbers = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let copy = |number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok();
    numbers
        .filter_map(copy)
        .filter_map(|copy: OwnedFd| {
            let socket = Socket::from(copy);
            let port = socket.local_addr().ok()?.as_socket_ipv4()?.port();
            [67, 69, 4011, HTTP].contains(&port).then_some((port, socket))
        })
        .collect()
}

/// A client that ignores everything, and another process that holds the sockets as well.
fn revoked_from_a_hostile_client(flavour: Flavour) {
    let scene = scene(flavour);
    let mut client = scene.serve(&[]).unwrap();
    let lease = client.ready().unwrap()["lease"].to_string();
    let path = download::kernel_path(&scene.outsider, "eth0", &client).unwrap();
    let at = |port: u16| SocketAddr::from((HOST, port));
    let mut download = scene.outsider.run(|| download::connect(at(HTTP))).unwrap().unwrap();
    write!(download, "GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n").unwrap();
    let mut step = vec![0; 4096];
    download.read_exact(&mut step).unwrap();

    let held = copies(client.pid().unwrap());
    assert!(held.iter().filter(|(port, _)| *port == HTTP).count() >= 2, "listener and connection");
    client.signal(Signal::SIGSTOP).unwrap();
    let udp: Vec<(u16, UdpSocket)> = held
        .iter()
        .filter(|(port, _)| *port != HTTP)
        .map(|(port, socket)| {
            let socket = UdpSocket::from(socket.try_clone().unwrap());
            socket.set_nonblocking(false).unwrap();
            (*port, socket)
        })
        .collect();
    assert_eq!(udp.len(), 3);
    let arrives = || -> Vec<bool> {
        udp.iter()
            .map(|(port, holder)| probe::udp_arrives(&scene.outsider, at(*port), holder).unwrap())
            .collect()
    };
    assert_eq!(arrives(), [true; 3], "while the lease is open");

    let (code, _, said) = told(&scene, "alice", &["close", &lease]);
    assert_eq!(code, 0, "{said}");
    let heard = scene.try_ports().unwrap();
    let silent = Answer::Silent;
    assert_eq!(heard, [silent, silent, silent, Answer::Refused], "67, 69, 4011, TCP");
    assert_eq!(arrives(), [false; 3]);
    // What the machine says next ends its connection, if its acknowledgements have not done so;
    // what was on its way may come before that.
    let mut cut = download.write_all(b"GET").err();
    while cut.is_none() {
        match download.read(&mut step) {
            Ok(0) => panic!("ended as if it were whole"),
            Ok(_) => {}
            Err(error) => cut = Some(error),
        }
    }
    assert_eq!(cut.map(|error| error.kind()), Some(ErrorKind::ConnectionReset));

    // The ports are not shared with it: who wants them next is told who has them, also when only
    // the second process is left.
    let refused = || {
        let again = ["boot", "/mnt", "--interface", "eth0", "--no-ask-password"];
        let (code, _, said) = told(&scene, "alice", &again);
        assert_eq!(code, ADDRESS_IN_USE, "{said}");
        assert!(said.contains("held by a process of uid "), "{said}");
        assert!(said.contains("whose lease has ended"), "{said}");
    };
    refused();
    client.signal(Signal::SIGKILL).unwrap();
    drop(client);
    refused();
    drop((held, udp));
    scene.assert_restored(RESTORED).unwrap();
    ends_well(scene.serve(&[]).unwrap());
    scene.assert_restored(RESTORED).unwrap();
}

#[test]
fn p8_revoked_from_a_hostile_client_iptables() {
    need_host!();
    revoked_from_a_hostile_client(Flavour::Iptables);
}

#[test]
fn p8_revoked_from_a_hostile_client_nftables() {
    need_host!();
    revoked_from_a_hostile_client(Flavour::Nftables);
}
