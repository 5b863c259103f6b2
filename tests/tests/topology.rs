//! Networks that are more than one cable: a relay and its option 82, a VLAN, a bridge, two addresses
//! on one interface. The real helper opens, the real client serves, and what a machine at the far
//! end hears is compared with what it should hear.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs,
    boot_client::{Answer, ask, message, option},
    host::{Client, SOON, Site},
    lan::{Lan, dissect},
    need_host,
    netns::Netns,
    nixos::Flavour,
    process::wait_until,
    require::skip,
    scene::{HOST, Scene},
    snapshot::Snapshot,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x55];
const FILE: &str = "02-00-00-00-00-55/undionly.kpxe";
const PATIENCE: Duration = Duration::from_millis(1500);

/// The DISCOVER of a BIOS machine's PXE ROM.
fn discover() -> Vec<u8> {
    message(MAC, &[(53, &[1]), (60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])])
}

/// Broadcasts it, and collects the answers that come from boot servers.
fn offers(machine: &Netns, interface: &str) -> Vec<Answer> {
    let to = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    let mut answers = ask(machine, interface, 68, &discover(), &to, (2, PATIENCE)).unwrap();
    answers.retain(|(_, bytes)| option(bytes, 60).as_deref() == Some(b"PXEClient"));
    answers
}

/// Asserts the one offer: it names `server` everywhere, and gives no address.
#[track_caller]
fn assert_offer(offers: &[Answer], server: [u8; 4]) {
    let [(_, offer)] = offers else { panic!("{} offers", offers.len()) };
    assert_eq!(offer[16..20], [0; 4], "no address");
    assert_eq!(offer[20..24], server, "siaddr");
    assert_eq!(option(offer, 54), Some(server.to_vec()));
    assert_eq!(option(offer, 67), Some(format!("{FILE}\0").into_bytes()));
}

/// Fetches the boot file by TFTP, as the offer says.
fn fetch(machine: &Netns, server: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let mut command = Command::new("curl");
    command.args(["-s", "-m", "10", &format!("tftp://{server}//{FILE}"), "-o"]).arg(&file);
    machine.finish(command).unwrap();
    std::fs::read(file).unwrap()
}

fn loader() -> Vec<u8> {
    std::fs::read("/usr/lib/ipxe/undionly.kpxe").unwrap()
}

/// `portcullis boot` on any interface, until it serves.
fn serve(scene: &Scene, interface: &str) -> Client {
    let arguments = ["boot", "/mnt", "--interface", interface, "--json", "--no-ask-password"];
    let mut client = scene.host.client("alice", &arguments).unwrap();
    client.ready().unwrap();
    client
}

/// A network 198.51.100.0/24 with one machine, behind a relay that is 192.0.2.5 on the LAN.
struct Relayed {
    relay: Netns,
    machine: Netns,
}

impl Relayed {
    fn new(scene: &Scene) -> Self {
        let [relay, machine] = ["relay", "machine"].map(|name| Netns::new(name).unwrap());
        scene.lan.attach(&relay, "eth0", Some("192.0.2.5/24")).unwrap();
        relay.cable("eth1", &machine, "eth0").unwrap();
        relay.address("eth1", "198.51.100.1/24").unwrap();
        relay.sysctl("net/ipv4/ip_forward", "1").unwrap();
        machine.address("eth0", "198.51.100.2/24").unwrap();
        machine.ip("route add default via 198.51.100.1").unwrap();
        scene.host.netns().ip("route add 198.51.100.0/24 via 192.0.2.5").unwrap();
        Self { relay, machine }
    }

    fn wait_for_the_relay(&self) {
        let listens = || !self.relay.sh("ss -Hlun 'sport = :67'").unwrap_or_default().is_empty();
        assert!(wait_until(Duration::from_secs(10), listens), "the relay does not listen");
        // dhcrelay reads packets past its socket, a moment after it has one.
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn wire_24_a_machine_behind_dnsmasqs_relay_is_offered_and_fetches_its_loader() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/undionly.kpxe"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let far = Relayed::new(&scene);
    let _client = scene.serve(&[]).unwrap();
    let _relay = far
        .relay
        .daemon(
            "dnsmasq",
            &[
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--port=0",
                "--user=root",
                "--group=root",
                "--pid-file=",
                "--interface=eth1",
                "--interface=eth0",
                "--dhcp-relay=198.51.100.1,192.0.2.2",
            ],
        )
        .unwrap();
    far.wait_for_the_relay();
    let offers = offers(&far.machine, "eth0");
    assert_offer(&offers, HOST);
    assert_eq!(offers[0].1[24..28], [198, 51, 100, 1], "giaddr");
    assert_eq!(fetch(&far.machine, "192.0.2.2"), loader());
}

/// The DHCP messages between relay and host as "source,type,giaddr,circuit".
fn relayed_messages(capture: &Path) -> Vec<String> {
    let fields = [
        "ip.src",
        "dhcp.option.dhcp",
        "dhcp.ip.relay",
        "dhcp.option.agent_information_option.agent_circuit_id",
    ];
    dissect(capture, "udp.port == 67 && ip.addr == 192.0.2.2", &fields).unwrap()
}

#[test]
fn wire_23_dhcrelays_option_82_comes_back_unchanged() {
    need_host!(Needs::Tool("dhcrelay"), Needs::Tool("tshark"));
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let far = Relayed::new(&scene);
    let _client = scene.serve(&[]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("capture");
    let capture = scene.lan.capture(&file, "udp").unwrap();
    let _relay = far
        .relay
        .daemon(
            "dhcrelay",
            &["-4", "-d", "--no-pid", "-a", "-i", "eth1", "-i", "eth0", "192.0.2.2"],
        )
        .unwrap();
    far.wait_for_the_relay();
    assert_offer(&offers(&far.machine, "eth0"), HOST);
    capture.end().unwrap();
    let messages = relayed_messages(&file);
    let circuit = |kind: &str, source: &str| {
        messages
            .iter()
            .find_map(|line| line.strip_prefix(&format!("{source},{kind},198.51.100.1,")))
            .unwrap_or_else(|| panic!("{kind} from {source}: {messages:?}"))
            .to_owned()
    };
    let asked = messages
        .iter()
        .find_map(|line| line.split_once(",1,198.51.100.1,").map(|(_, circuit)| circuit.to_owned()))
        .unwrap_or_else(|| panic!("{messages:?}"));
    // "eth1" as the relay names the circuit.
    assert_eq!(asked.replace(':', ""), "65746831", "{messages:?}");
    assert_eq!(circuit("2", "192.0.2.2"), asked);
}

#[test]
fn wire_25_a_vlan_is_served_and_the_untagged_network_is_not() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/undionly.kpxe"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let machine = scene.lan.machine("192.0.2.60/24").unwrap();
    for (netns, address) in [(scene.host.netns(), "203.0.113.1/24"), (&machine, "203.0.113.2/24")] {
        match netns.ip("link add link eth0 name eth0.7 type vlan id 7") {
            // Compiled out: no package and no setting brings it.
            Err(error) if error.0.contains("Unknown device type") => {
                let module = "find /lib/modules/$(uname -r) -name '8021q.ko*' 2>/dev/null || true";
                assert_eq!(netns.sh(module).unwrap(), "", "it is there and was not loaded");
                let _whether_allowed = skip("wire_25_a_vlan", "a kernel with CONFIG_VLAN_8021Q");
                return;
            }
            made => made.unwrap(),
        };
        netns.address("eth0.7", address).unwrap();
        netns.ip("link set eth0.7 up").unwrap();
    }
    let _client = serve(&scene, "eth0.7");
    assert_offer(&offers(&machine, "eth0.7"), [203, 0, 113, 1]);
    assert_eq!(fetch(&machine, "203.0.113.1"), loader());
    assert_eq!(offers(&machine, "eth0"), []);
}

/// As a VLAN interface, an interface on top of another; the network below is the same one.
#[test]
fn wire_25_an_interface_on_top_of_another_is_served_and_the_lower_one_is_not() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/undionly.kpxe"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let host = scene.host.netns();
    host.ip("link add link eth0 name eth0.7 type macvlan mode bridge").unwrap();
    // Or the lower interface answers for the upper one's address, and what then comes in by it is
    // not for the lease.
    host.sysctl("net/ipv4/conf/all/arp_ignore", "1").unwrap();
    host.address("eth0.7", "203.0.113.1/24").unwrap();
    host.ip("link set eth0.7 up").unwrap();
    let machine = scene.lan.machine("203.0.113.2/24").unwrap();
    machine.address("eth0", "192.0.2.60/24").unwrap();
    let _client = serve(&scene, "eth0.7");
    assert_offer(&offers(&machine, "eth0"), [203, 0, 113, 1]);
    assert_eq!(fetch(&machine, "203.0.113.1"), loader());
    // The address of the lower interface serves nothing.
    let to = [SocketAddrV4::new(HOST.into(), 67)];
    assert_eq!(ask(&machine, "eth0", 68, &discover(), &to, (1, PATIENCE)).unwrap(), []);
}

/// The host's cable becomes a port of `br0`, which takes its address.
fn behind_a_bridge(scene: &Scene) {
    let host = scene.host.netns();
    host.bridge("br0").unwrap();
    host.ip("address del 192.0.2.2/24 dev eth0").unwrap();
    host.plug("eth0", "br0").unwrap();
    host.address("br0", "192.0.2.2/24").unwrap();
}

#[test]
fn wire_25_a_bridge_is_served_and_its_port_is_refused() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/undionly.kpxe"));
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    behind_a_bridge(&scene);
    let machine = scene.lan.machine("192.0.2.60/24").unwrap();
    let arguments = ["boot", "/mnt", "--interface", "eth0", "--no-ask-password"];
    let mut refused = scene.host.client("alice", &arguments).unwrap();
    assert_eq!(refused.end().unwrap().code(), Some(16), "{}", refused.stderr());
    assert!(refused.stderr().contains("br0"), "{}", refused.stderr());

    let _client = serve(&scene, "br0");
    assert_offer(&offers(&machine, "eth0"), HOST);
    assert_eq!(fetch(&machine, "192.0.2.2"), loader());
}

/// With br_netfilter the host's IPv4 rules also see what the bridge forwards, and what it delivers
/// twice: at the bridge and above it.
#[test]
fn wire_25_a_bridge_is_served_when_br_netfilter_filters_it() {
    need_host!(
        Needs::Tool("curl"),
        Needs::File("/usr/lib/ipxe/undionly.kpxe"),
        Needs::File("/proc/sys/net/bridge/bridge-nf-call-iptables"),
    );
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    behind_a_bridge(&scene);
    scene.host.netns().sysctl("net/bridge/bridge-nf-call-iptables", "1").unwrap();
    let machine = scene.lan.machine("192.0.2.60/24").unwrap();
    let _client = serve(&scene, "br0");
    assert_offer(&offers(&machine, "eth0"), HOST);
    assert_eq!(fetch(&machine, "192.0.2.2"), loader());
}

/// A Raspberry Pi as its boot ROM behaves (docs/architectures.md): it takes the menu's item, and asks
/// for files below its serial number, by names that say nothing of its address.
#[test]
fn wire_21_a_raspberry_pi_fetches_its_files_below_its_serial_number() {
    need_host!(Needs::Tool("curl"));
    let files = tempfile::tempdir().unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(files.path(), readable).unwrap();
    std::fs::create_dir(files.path().join("overlays")).unwrap();
    let start: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
    std::fs::write(files.path().join("start4.elf"), &start).unwrap();
    std::fs::write(files.path().join("overlays/a.dtbo"), "overlay").unwrap();

    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let [pi, stranger] = ["pi", "stranger"].map(|name| Netns::new(name).unwrap());
    let mac = "dc:a6:32:c2:1f:fe";
    scene.lan.attach(&pi, "eth0", Some("192.0.2.60/24")).unwrap();
    pi.ip(&format!("link set eth0 address {mac}")).unwrap();
    scene.lan.attach(&stranger, "eth0", Some("192.0.2.61/24")).unwrap();
    let folder = files.path().display().to_string();
    let client = scene.serve(&["--rpi", &folder, "--for-mac", mac]).unwrap();

    let mut discover = discover();
    discover[28..34].copy_from_slice(&[0xdc, 0xa6, 0x32, 0xc2, 0x1f, 0xfe]);
    let to = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    let patience = (2, Duration::from_secs(10));
    let mut offers = ask(&pi, "eth0", 68, &discover, &to, patience).unwrap();
    offers.retain(|(_, bytes)| option(bytes, 60).as_deref() == Some(b"PXEClient"));
    let [(_, offer)] = offers.as_slice() else { panic!("{} offers", offers.len()) };
    assert_eq!(offer[20..24], HOST, "siaddr");
    let menu = option(offer, 43).unwrap();
    assert!(menu.ends_with(b"\0\0\x11Raspberry Pi Boot\xff"), "{menu:?}");
    assert_eq!(option(offer, 67), None);

    let get = |from: &Netns, name: &str| {
        let result = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("curl");
        command.args(["-s", "-m", "10", &format!("tftp://192.0.2.2//{name}"), "-o"]);
        command.arg(result.path());
        from.finish(command).ok().map(|_| std::fs::read(result.path()).unwrap())
    };
    assert_eq!(get(&pi, "d83add12/start4.elf").as_ref(), Some(&start));
    assert_eq!(get(&pi, "start4.elf").as_ref(), Some(&start));
    assert_eq!(get(&pi, "d83add12/overlays/a.dtbo").as_deref(), Some(&b"overlay"[..]));
    assert_eq!(get(&pi, "d83add12/recovery.elf"), None);
    assert_eq!(get(&pi, "d83add12/../etc/passwd"), None);
    // Whose address it is, the kernel says, not the name: another machine is not served.
    assert_eq!(get(&stranger, "d83add12/start4.elf"), None);
    let of_pi = |event: &serde_json::Value| event["mac"] == mac && event["role"] == "firmware";
    let told = || client.events().iter().filter(|event| of_pi(event)).count() == 3;
    assert!(wait_until(SOON, told), "{}", client.stdout());
}

/// A machine's facts as "interface fact".
fn told(client: &Client) -> Vec<String> {
    let events = client.events();
    let facts = events.iter().filter(|event| event["event"] == "machine");
    facts
        .map(|event| format!("{} {}", event["interface"], event["fact"]).replace('"', ""))
        .collect()
}

/// One program, two networks: each hears its own server, the same machine is another one on each,
/// and the end of one lease leaves the other one alone.
#[test]
fn wire_25_two_interfaces_at_once_each_with_its_own_lease() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/undionly.kpxe"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let host = scene.host.netns();
    let far = Lan::new().unwrap();
    far.attach(host, "eth1", Some("203.0.113.1/24")).unwrap();
    let before = Snapshot::take(host).unwrap();
    let [near_machine, far_machine] = ["machine", "machine"].map(|name| Netns::new(name).unwrap());
    scene.lan.attach(&near_machine, "eth0", Some("192.0.2.60/24")).unwrap();
    far.attach(&far_machine, "eth0", Some("203.0.113.60/24")).unwrap();

    let mut client = scene.serve(&["--interface", "eth1"]).unwrap();
    let ready = || -> Vec<_> {
        client.events().into_iter().filter(|event| event["event"] == "ready").collect()
    };
    assert!(wait_until(SOON, || ready().len() == 2), "{}", client.stdout());
    let lease = ready()[1]["lease"].as_u64().unwrap();
    for (machine, server, interface) in
        [(&near_machine, HOST, "eth0"), (&far_machine, [203, 0, 113, 1], "eth1")]
    {
        assert_offer(&offers(machine, "eth0"), server);
        assert_eq!(fetch(machine, &Ipv4Addr::from(server).to_string()), loader());
        let fetched = format!("{interface} transfer-done");
        assert!(wait_until(SOON, || told(&client).contains(&fetched)), "{:?}", told(&client));
        let seen = told(&client).into_iter().filter(|fact| *fact == format!("{interface} seen"));
        assert_eq!(seen.count(), 1);
    }
    // The host answers for an address of its other network; the port there is not the lease's.
    near_machine.ip("route add 203.0.113.1/32 via 192.0.2.2").unwrap();
    let to = [SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), 4011)];
    assert_eq!(ask(&near_machine, "eth0", 68, &discover(), &to, (1, PATIENCE)).unwrap(), []);

    let mut close = scene.host.client("alice", &["close", &lease.to_string()]).unwrap();
    assert_eq!(close.end().unwrap().code(), Some(0), "{}", close.stderr());
    let said = |what: &str| client.events().iter().any(|event| event["event"] == what);
    assert!(wait_until(SOON, || said("closed") && said("note")), "{}", client.stdout());
    let events = client.events();
    let closed = events.iter().find(|event| event["event"] == "closed").unwrap();
    assert_eq!(closed["interface"], "eth1");
    assert_eq!(offers(&far_machine, "eth0"), []);
    assert_offer(&offers(&near_machine, "eth0"), HOST);

    client.signal(Signal::SIGINT).unwrap();
    assert_eq!(client.end().unwrap().code(), Some(0), "{}", client.stderr());
    assert_eq!(offers(&near_machine, "eth0"), []);
    let restored = || Snapshot::take(host).is_ok_and(|now| before.changes(&now).is_empty());
    assert!(wait_until(SOON, restored), "{}", before.changes(&Snapshot::take(host).unwrap()));
}

#[test]
fn wire_25_of_two_addresses_one_is_named_everywhere_and_answers() {
    need_host!(Needs::Tool("curl"), Needs::File("/usr/lib/ipxe/undionly.kpxe"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let host = scene.host.netns();
    host.address("eth0", "198.51.100.7/24").unwrap();
    // It has an address in the second network only, so that the host would answer it from there.
    let machine = scene.lan.machine("198.51.100.60/24").unwrap();
    machine.ip("route add 192.0.2.0/24 dev eth0").unwrap();
    let _client = scene.serve(&[]).unwrap();
    let offers = offers(&machine, "eth0");
    assert_offer(&offers, HOST);
    assert_eq!(offers[0].0, SocketAddrV4::new(HOST.into(), 67));
    assert_eq!(fetch(&machine, "192.0.2.2"), loader());
}

/// Something between drops what comes from any port but 69: a transfer from a port of its own dies
/// there, one from port 69 arrives, past the guard and the firewall.
#[test]
fn wire_53_where_nothing_but_port_69_passes_files_come_from_there() {
    need_host!(
        Needs::Tool("curl"),
        Needs::Tool("nft"),
        Needs::Tool("atftp"),
        Needs::File("/usr/lib/ipxe/undionly.kpxe")
    );
    for flavour in [Flavour::Nftables, Flavour::Iptables] {
        let scene = Scene::start(Some(flavour), Site::AllowsAlice).unwrap();
        scene
            .outsider
            .sh("nft 'table ip box { chain in { type filter hook input priority 0; \
                 meta l4proto udp udp sport != 69 drop; }; }'")
            .unwrap();
        let client = scene.serve(&["--tftp-single-port"]).unwrap();
        assert_eq!(fetch(&scene.outsider, "192.0.2.2"), loader());
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        let mut windows = Command::new("atftp");
        windows.args(["--option", "blksize 1468", "--option", "windowsize 16", "-g", "-r", FILE]);
        windows.arg("-l").arg(&file).arg("192.0.2.2");
        scene.outsider.finish(windows).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), loader());
        drop(client);
        scene.assert_restored(Duration::from_secs(10)).unwrap();

        let _client = scene.serve(&[]).unwrap();
        let mut command = Command::new("curl");
        command.args(["-s", "-m", "3", &format!("tftp://192.0.2.2//{FILE}"), "-o", "/dev/null"]);
        assert!(scene.outsider.finish(command).is_err(), "the box lets other ports pass");
    }
}
