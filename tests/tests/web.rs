//! The web page as a person has it: the installed program serves, machines ask by packets, and a real
//! browser looks.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs,
    boot_client::{ask, message},
    browser::Browser,
    download,
    host::{Client, SOON, Site},
    need_host,
    nixos::Flavour,
    probe,
    process::wait_until,
    scene::{HOST, HTTP, Scene},
};

/// alice's own directory, as logind makes it.
const RUNTIME: &str = "/run/alice";

fn scene() -> Scene {
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let mut command = scene.host.command(None, "install");
    command.args(["-d", "-m", "700", "-o", "alice", RUNTIME]);
    scene.host.netns().finish(command).unwrap();
    scene
}

/// `portcullis boot --web` by alice, in her session.
fn serve(scene: &Scene, more: &[&str]) -> Client {
    let session = format!("XDG_RUNTIME_DIR={RUNTIME}");
    let words = [&session, "portcullis", "boot", "/mnt", "--interface", "eth0", "--web"];
    let client = scene.host.program("alice", "env", &[&words, more].concat());
    client.unwrap()
}

/// The page's address, once it serves.
fn address(client: &mut Client) -> String {
    client.ready().unwrap();
    let said = client.events().into_iter().find(|event| event["event"] == "page").unwrap();
    assert_eq!(said["public"], false);
    said["url"].as_str().unwrap().to_owned()
}

fn http() -> SocketAddr {
    SocketAddr::from((HOST, HTTP))
}

/// Asks by PXE as a UEFI machine does, with more options; the answer does not matter here.
fn discover(scene: &Scene, mac: [u8; 6], more: &[(u8, &[u8])]) {
    let class = b"PXEClient:Arch:00007:UNDI:003016".as_slice();
    let own: &[(u8, &[u8])] = &[(53, &[1]), (93, &[0, 7])];
    let class = if more.iter().any(|(code, _)| *code == 60) { vec![] } else { vec![(60, class)] };
    let bytes = message(mac, &[own, &class, more].concat());
    let everybody = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    ask(&scene.outsider, "eth0", 68, &bytes, &everybody, (2, Duration::from_secs(1))).unwrap();
}

fn interrupt(mut client: Client) {
    client.signal(Signal::SIGINT).unwrap();
    assert_eq!(client.end().unwrap().code(), Some(0), "{}", client.stderr());
}

#[test]
fn a_machine_appears_progresses_and_finishes_while_the_page_is_open() {
    need_host!(Needs::Tool("chromium"));
    let scene = scene();
    let mut client = serve(&scene, &["--json", "--no-ask-password"]);
    let address = address(&mut client);
    let mut browser = Browser::start(scene.host.netns()).unwrap();
    browser.open(&address).unwrap();
    browser.wait("document.body.className === 'live'").unwrap();
    assert_eq!(browser.eval("document.querySelectorAll('#list > li').length").unwrap(), 0);
    assert_eq!(browser.eval("document.getElementById('empty').hidden").unwrap(), false);
    let open = browser.text("document.getElementById('open').innerText").unwrap();
    assert!(open.contains("Ready on eth0 (192.0.2.2)") && open.contains("UDP 67"), "{open}");

    // It appears.
    let kernel = download::kernel_path(&scene.outsider, "eth0", &client).unwrap();
    browser.wait("document.querySelector('#list > li.ipxe')").unwrap();
    let row = browser.text("document.querySelector('.row').innerText").unwrap();
    assert!(row.contains(download::MAC) && row.contains("iPXE"), "{row}");
    assert_eq!(browser.eval("document.getElementById('empty').hidden").unwrap(), true);

    // Its details are reached by keys alone.
    browser.press("j").unwrap();
    browser.press("Enter").unwrap();
    browser.wait("document.querySelector('.row[aria-expanded=true]')").unwrap();
    browser.wait("document.querySelector('.log').innerText.includes('asks what to boot')").unwrap();

    // It progresses: several values of its bar are seen, each larger than the one before.
    browser
        .eval(
            "window.seen = []; window.look = setInterval(() => { \
               const bar = document.querySelector('progress'); \
               if (bar && bar.value !== window.seen.at(-1)) window.seen.push(bar.value); }, 20); 0",
        )
        .unwrap();
    let fetch = |file: &str, rest| {
        let path = kernel.replace("/kernel", file);
        download::http(&scene.outsider, http(), &path, rest).unwrap()
    };
    fetch("/boot.ipxe", Duration::ZERO);
    fetch("/kernel", Duration::from_millis(25));
    browser.wait("document.querySelector('#list > li.kernel')").unwrap();
    fetch("/initrd0", Duration::from_millis(5));

    // It finishes.
    browser.wait("document.querySelector('#list > li.handed-over')").unwrap();
    let seen = browser.eval("clearInterval(window.look); window.seen").unwrap();
    let seen: Vec<f64> = serde_json::from_value(seen).unwrap();
    let rises = seen.windows(2).filter(|pair| pair[1] > pair[0]).count();
    assert!(rises >= 3, "the bar moves: {seen:?}");
    browser.wait("document.getElementById('most').innerText.includes('/s')").unwrap();
    assert_eq!(
        browser.text("document.getElementById('counts').innerText").unwrap(),
        "1: 1 starting"
    );
    // What is said aloud to those who do not see.
    let aloud = browser.text("document.getElementById('said').textContent").unwrap();
    assert_eq!(aloud, format!("{}: starting", download::MAC));
    let what = "document.querySelector('#list').innerText.includes('What happened')";
    assert_eq!(browser.eval(what).unwrap(), true);
    browser.press("Escape").unwrap();
    browser.wait("document.querySelector('.row[aria-expanded=false]')").unwrap();
    assert_eq!(browser.eval(what).unwrap(), false, "folded up");
    assert_eq!(browser.complaints(), [""; 0], "the page obeys its own policy");

    // Totals, for whoever is on this computer.
    let totals = browser.text("fetch('/metrics').then((answer) => answer.text())").unwrap();
    for line in [
        "portcullis_machines{step=\"handed-over\"} 1\n",
        "portcullis_boot_requests_total{firmware=\"ipxe\"} 1\n",
        "portcullis_downloads_total{protocol=\"http\",file=\"kernel\",result=\"done\"} 1\n",
        "portcullis_handed_over_total 1\n",
    ] {
        assert!(totals.contains(line), "{line}{totals}");
    }
    assert!(!totals.contains(download::MAC), "{totals}");
    interrupt(client);
    scene.assert_restored(SOON).unwrap();
}

#[test]
fn a_page_that_is_open_says_that_portcullis_is_gone_and_finds_its_next_run() {
    need_host!(Needs::Tool("chromium"));
    let scene = scene();
    let mut client = serve(&scene, &["--json", "--no-ask-password"]);
    let first = address(&mut client);
    let mut browser = Browser::start(scene.host.netns()).unwrap();
    browser.open(&first).unwrap();
    discover(&scene, [2, 0, 0, 0, 0, 1], &[]);
    browser.wait("document.querySelectorAll('#list > li').length === 1").unwrap();

    interrupt(client);
    browser.wait("document.body.className === 'lost'").unwrap();
    browser.wait("!document.getElementById('lost').hidden").unwrap();
    assert_eq!(browser.eval("document.querySelectorAll('#list > li').length").unwrap(), 1);

    let mut client = serve(&scene, &["--json", "--no-ask-password"]);
    assert_eq!(address(&mut client), first, "the address is that of alice's session");
    browser.wait("document.body.className === 'live'").unwrap();
    assert_eq!(browser.eval("document.getElementById('lost').hidden").unwrap(), true);
    // What the new run does not know is not shown.
    assert_eq!(browser.eval("document.querySelectorAll('#list > li').length").unwrap(), 0);
    discover(&scene, [2, 0, 0, 0, 0, 2], &[]);
    browser
        .wait("document.querySelector('.row')?.innerText.includes('02:00:00:00:00:02')")
        .unwrap();

    // Killed, it cannot say anything.
    client.signal(Signal::SIGKILL).unwrap();
    browser.wait("document.body.className === 'lost'").unwrap();
}

#[test]
fn a_machine_whose_names_hold_markup_is_shown_as_it_is_in_page_and_terminal() {
    need_host!(Needs::Tool("chromium"));
    let scene = scene();
    // As a person at a terminal has it, with every detail.
    let client = serve(&scene, &["--debug", "--no-ask-password"]);
    let find = || {
        client.stdout().lines().find_map(|line| Some(line.strip_prefix("Web page: ")?.to_owned()))
    };
    assert!(wait_until(SOON, || client.stdout().contains("Now let")), "{}", client.stderr());
    let mut browser = Browser::start(scene.host.netns()).unwrap();
    browser.open(&find().unwrap()).unwrap();

    let markup = b"<img src=x onerror=document.title='owned'><script>document.title='owned'</script>\x1b[2J\x07\x9b31m";
    let class = [b"PXEClient:Arch:00007:UNDI:003016", markup.as_slice()].concat();
    let mac = [2, 0, 0, 0, 0, 9];
    discover(&scene, mac, &[(12, markup), (60, &class), (77, markup), (97, markup)]);
    let name = [b"02-00-00-00-00-09/", markup.as_slice()].concat();
    let request = [b"\0\x01".as_slice(), &name, b"\0octet\0"].concat();
    probe::udp(&scene.outsider, SocketAddr::from((HOST, 69)), &request).unwrap();

    browser.wait("document.querySelector('.row')").unwrap();
    browser.eval("document.querySelector('.row').click()").unwrap();
    browser
        .wait("document.querySelector('.log').innerText.includes('<img src=x onerror=')")
        .unwrap();
    assert_eq!(browser.text("document.title").unwrap(), "Portcullis");
    assert_eq!(browser.eval("document.querySelectorAll('img').length").unwrap(), 0);
    assert_eq!(browser.eval("document.querySelectorAll('script').length").unwrap(), 1);
    let shown = browser.text("document.body.textContent").unwrap();
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    assert_eq!(browser.complaints(), [""; 0]);

    let terminal = client.stdout() + &client.stderr();
    assert!(terminal.contains("<img src=x onerror="), "{terminal}");
    assert!(!terminal.chars().any(|c| c.is_control() && c != '\n'), "{terminal:?}");
    interrupt(client);
}

/// What a page of another server on this computer, or of any site, can do with the whole address.
#[test]
fn another_sites_page_reads_nothing_even_if_it_knows_the_address() {
    need_host!(Needs::Tool("chromium"));
    let scene = scene();
    let mut client = serve(&scene, &["--json", "--no-ask-password"]);
    let address = address(&mut client);
    let site =
        scene.host.netns().run(|| std::net::TcpListener::bind("127.0.0.1:8099")).unwrap().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for stream in site.incoming() {
            let mut stream = stream.unwrap();
            let _question = stream.read(&mut [0; 4096]).unwrap();
            let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\n<p>x";
            stream.write_all(page.as_bytes()).unwrap();
        }
    });
    let mut browser = Browser::start(scene.host.netns()).unwrap();
    // Its own origin, and one whose name leads here.
    browser.open("http://127.0.0.1:8099/").unwrap();
    for target in [
        format!("{address}events"),
        address.replace("127.0.0.1", "localhost"),
        "http://127.0.0.1:64173/metrics".to_owned(),
    ] {
        let fetch =
            format!("fetch('{target}').then((answer) => 'read ' + answer.status, () => 'refused')");
        assert_eq!(browser.text(&fetch).unwrap(), "refused", "{target}");
        let blind = format!(
            "fetch('{target}', {{ mode: 'no-cors' }}).then((answer) => answer.type, () => 'refused')"
        );
        assert_ne!(browser.text(&blind).unwrap(), "basic", "{target}");
    }
    let listen = format!(
        "new Promise((done) => {{ const source = new EventSource('{address}events'); \
         source.onerror = () => done('refused'); source.addEventListener('snapshot', () => done('read')); }})"
    );
    assert_eq!(browser.text(&listen).unwrap(), "refused");
    let frame = format!(
        "new Promise((done) => {{ const frame = document.createElement('iframe'); frame.src = '{address}'; \
         frame.onload = () => {{ try {{ done(frame.contentDocument ? 'empty' : 'barred'); }} catch {{ done('barred'); }} }}; \
         document.body.append(frame); }})"
    );
    browser.text(&frame).unwrap();
    assert!(
        browser.complaints().iter().any(|text| text.contains("frame-ancestors")),
        "the page does not let itself be framed: {:?}",
        browser.complaints()
    );
    interrupt(client);
}
