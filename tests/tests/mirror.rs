//! Machines fetch kernel and initrd from other web servers (`--mirror`), or what lies there alone is fetched
//! for them: nginx with the files, the real program on a real host, and machines on the LAN.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::LazyLock,
    time::Duration,
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs, download,
    host::{Client, SOON, Site},
    machine::{self, Firmware, Machine},
    need_host,
    netns::Netns,
    nixos::Flavour,
    process::{Process, finish, mortal, wait_until},
    repository::script,
    scene::{HOST, HTTP, Scene},
};
use tempfile::TempDir;

/// The image's kernel and initrd, and how the mirrors' folder names them.
const FILES: [&str; 2] = ["bzImage", "initrd"];
const MAC: &str = "02:00:00:00:00:01";

/// nginx, unpacked and not installed.
fn program() -> &'static str {
    static NGINX: LazyLock<String> =
        LazyLock::new(|| format!("{}/nginx", finish(script("rivals")).unwrap().trim()));
    &NGINX
}

/// nginx with a folder, on a computer of its own.
struct Mirror {
    netns: Netns,
    folder: TempDir,
    address: Ipv4Addr,
    nginx: Option<Process>,
}

impl Mirror {
    /// Has the image, and sends at most `rate` (nginx, `limit_rate`; 0: as fast as it can).
    fn start(scene: &Scene, last: u8, rate: &str) -> Self {
        let netns = Netns::new("mirror").unwrap();
        scene.lan.attach(&netns, "eth0", Some(&format!("192.0.2.{last}/24"))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let files = folder.path().join("files");
        std::fs::create_dir(&files).unwrap();
        for name in FILES {
            std::fs::copy(machine::image().unwrap().join(name), files.join(name)).unwrap();
        }
        let path = folder.path().display();
        let configuration = format!(
            "daemon off; master_process off; user root; pid {path}/pid; error_log {path}/errors;\n\
             events {{}}\n\
             http {{ access_log {path}/log; client_body_temp_path {path}/t1; proxy_temp_path {path}/t2;\n\
             fastcgi_temp_path {path}/t3; uwsgi_temp_path {path}/t4; scgi_temp_path {path}/t5;\n\
             server {{ listen 80; root {path}; limit_rate {rate}; }} }}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), configuration).unwrap();
        let mut mirror =
            Self { netns, folder, address: Ipv4Addr::new(192, 0, 2, last), nginx: None };
        mirror.serve();
        mirror
    }

    fn serve(&mut self) {
        let mut command = mortal(program());
        command.arg("-e").arg(self.at("errors")).arg("-c").arg(self.at("nginx.conf"));
        self.nginx = Some(self.netns.spawn(command).unwrap());
        let listens = || !self.netns.sh("ss -Hltn 'sport = :80'").unwrap_or_default().is_empty();
        assert!(wait_until(SOON, listens), "nginx does not listen");
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self) -> String {
        format!("http://{}/files", self.address)
    }

    /// The downloads of whole files by `from`: path, status and octets of each.
    fn downloads(&self, from: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.at("log")).unwrap_or_default();
        log.lines()
            .filter(|line| line.starts_with(&format!("{from} ")) && line.contains("\"GET "))
            .filter_map(|line| {
                let mut words = line.split_whitespace().skip(6);
                Some(format!("{} {} {}", words.next()?, words.nth(1)?, words.next()?))
            })
            .collect()
    }
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// The first address of a file that a machine's script names, and the last.
fn named(script: &str, command: &str) -> (String, String) {
    let line = script.lines().find(|line| line.starts_with(command)).unwrap();
    let address = |part: &str| part.rsplit(' ').next().unwrap().to_owned();
    let tries: Vec<String> = line.split(" || ").map(address).collect();
    (tries[0].clone(), tries[tries.len() - 2].clone())
}

#[test]
fn a_machine_boots_from_a_mirror_and_the_host_sends_no_image() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("dpkg-deb"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let mirror = Mirror::start(&scene, 4, "0");
    let client = scene.serve(&["--mirror", &mirror.url()]).unwrap();
    let mut machine = Machine::start(&scene.lan, Firmware::Bios, MAC).unwrap();
    machine.up().unwrap_or_else(|error| panic!("{error:?}\n{}", client.stdout()));
    let image = machine::image().unwrap();
    assert_eq!(machine.initrd().unwrap(), machine::marker(&image).unwrap());
    let log = std::fs::read_to_string(mirror.at("log")).unwrap();
    for name in FILES {
        let whole = format!("GET /files/{name} HTTP/1.1\" 200 {} ", length(&image.join(name)));
        assert_eq!(log.matches(&whole).count(), 1, "{log}");
    }
    let events = client.events();
    let role = |role: &str| events.iter().any(|event| event["role"] == role);
    let initrd = events.iter().any(|event| !event["role"]["initrd"].is_null());
    assert!(role("script") && !role("kernel") && !initrd, "{events:#?}");
    assert!(events.iter().any(|event| event["statement"] == "handed-over"), "{events:#?}");
}

/// One mirror dies while it sends the initrd, the other is gone before: iPXE goes on, and at last to us.
#[test]
fn a_machine_whose_mirrors_die_boots_from_the_host() {
    need_host!(Needs::Tool("qemu-system-x86_64"), Needs::Tool("dpkg-deb"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    // So slow that the machine is in the middle of a file when they die.
    let mut mirrors = [4, 5].map(|last| Mirror::start(&scene, last, "64k"));
    let urls = [mirrors[0].url(), mirrors[1].url()];
    let client = scene.serve(&["--mirror", &urls[0], "--mirror", &urls[1]]).unwrap();
    let mut machine = Machine::start(&scene.lan, Firmware::Bios, MAC).unwrap();
    let established = |mirror: &Mirror| {
        let sockets = mirror.netns.sh("ss -Htn state established 'sport = :80'").unwrap();
        sockets.lines().any(|line| !line.contains("192.0.2.2:"))
    };
    let mut busy = None;
    assert!(
        wait_until(machine::BOOT, || {
            busy = mirrors.iter().position(established);
            busy.is_some()
        }),
        "{}",
        client.stdout()
    );
    let busy = busy.unwrap();
    mirrors[1 - busy].nginx = None;
    mirrors[busy].nginx.take().unwrap().signal(Signal::SIGKILL).unwrap();
    machine.up().unwrap_or_else(|error| panic!("{error:?}\n{}", client.stdout()));
    assert_eq!(machine.initrd().unwrap(), machine::marker(&machine::image().unwrap()).unwrap());
    let events = client.events();
    for (what, initrd) in [("kernel", false), ("initrd", true)] {
        let sent = events.iter().any(|started| {
            let wanted = match initrd {
                true => started["role"]["initrd"] == 0,
                false => started["role"] == "kernel",
            };
            let done = |event: &serde_json::Value| {
                event["fact"] == "transfer-done"
                    && event["transfer"] == started["transfer"]
                    && event["sent"] == started["size"]
            };
            wanted && started["fact"] == "transfer-started" && events.iter().any(done)
        });
        assert!(sent, "no {what} from the host: {events:#?}");
    }
}

/// The addresses in the script are those that bring the files, to any machine.
#[test]
fn the_script_names_mirrors_that_have_the_files_and_ourselves_last() {
    need_host!(Needs::Tool("dpkg-deb"));
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let mirrors = [4, 5].map(|last| Mirror::start(&scene, last, "0"));
    let urls = [mirrors[0].url(), mirrors[1].url()];
    let client = scene.serve(&["--mirror", &urls[0], "--mirror", &urls[1]]).unwrap();
    let host = SocketAddr::from((HOST, HTTP));
    let kernel = download::kernel_path(&scene.outsider, "eth0", &client).unwrap();
    let fetch = |to, path: &str| download::http(&scene.outsider, to, path, Duration::ZERO).unwrap();
    let path = kernel.replace("kernel", "boot.ipxe");
    let mut first = std::collections::BTreeSet::new();
    for last in 0..32 {
        let path = path.replace("00-07/", &format!("00-{last:02x}/"));
        let script = String::from_utf8(fetch(host, &path)).unwrap();
        let (mirror, ours) = named(&script, "kernel");
        assert!(ours.starts_with("http://192.0.2.2:64172/"), "{script}");
        first.insert(mirror);
    }
    assert_eq!(first.len(), 2, "both mirrors have work: {first:?}");
    let script = String::from_utf8(fetch(host, &path)).unwrap();
    for (command, name) in [("kernel", FILES[0]), ("initrd", FILES[1])] {
        let (mirror, ours) = named(&script, command);
        let wanted = std::fs::read(machine::image().unwrap().join(name)).unwrap();
        let of_mirror = mirrors.iter().find(|one| mirror.starts_with(&one.url())).unwrap();
        let there = fetch((of_mirror.address, 80).into(), &format!("/files/{name}"));
        assert!(there == wanted, "{name} from the mirror");
        let path = ours.strip_prefix("http://192.0.2.2:64172").unwrap();
        assert!(fetch(host, path) == wanted, "{name} from us");
        let line = format!("/files/{name} 200 {}", wanted.len());
        assert!(
            wait_until(SOON, || of_mirror.downloads("192.0.2.3").contains(&line)),
            "{:?}",
            of_mirror.downloads("192.0.2.3")
        );
    }
}

#[test]
fn a_mirror_that_has_something_else_is_refused_before_anything_is_opened() {
    need_host!(Needs::Tool("dpkg-deb"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let mut mirror = Mirror::start(&scene, 4, "0");
    let refused = |url: &str, words: &[&str], code: i32| {
        let arguments =
            ["boot", "/mnt", "-i", "eth0", "--json", "--no-ask-password", "--mirror", url];
        let mut client = scene.host.client("alice", &arguments).unwrap();
        assert_eq!(client.end().unwrap().code(), Some(code), "{}", client.stdout());
        let said = client.stdout() + &client.stderr();
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    let initrd = mirror.at("files").join("initrd");
    let image = std::fs::read(&initrd).unwrap();
    // Of the same length, and another only at its end.
    let mut other = image.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    std::fs::write(&initrd, &other).unwrap();
    refused(&mirror.url(), &["is another file than initrd here", "192.0.2.4/files/initrd"], 30);
    std::fs::write(&initrd, &image[..last]).unwrap();
    refused(&mirror.url(), &[&format!("has {last} octets")], 30);
    std::fs::remove_file(&initrd).unwrap();
    refused(&mirror.url(), &["404", "leave this mirror out"], 30);
    refused("http://192.0.2.4/files?key=1", &["has a query"], 2);
    mirror.nginx = None;
    refused(&mirror.url(), &["refused", "bzImage"], 30);
    scene.assert_restored(SOON).unwrap();
}

/// Full-length downloads of the kernel by the host, and answers that it is unchanged.
fn asked(mirror: &Mirror) -> (usize, usize) {
    let log = std::fs::read_to_string(mirror.at("log")).unwrap();
    let whole = format!("bzImage HTTP/1.1\" 200 {} ", length(&mirror.at("files/bzImage")));
    (log.matches(&whole).count(), log.matches("bzImage HTTP/1.1\" 304 ").count())
}

#[test]
fn what_lies_on_a_web_server_is_fetched_once_for_all_machines_and_kept() {
    need_host!(Needs::Tool("curl"), Needs::Tool("dpkg-deb"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let mirror = Mirror::start(&scene, 4, "3m");
    let [kernel, initrd] = FILES.map(|name| format!("{}/{name}", mirror.url()));
    let lab = Netns::new("lab").unwrap();
    scene.lan.attach(&lab, "eth0", Some("192.0.2.80/24")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let get = |path: &str, name: &str| {
        let mut command = mortal("curl");
        let url = format!("http://192.0.2.2:{HTTP}{path}");
        command.args(["-s", "-S", "-f", "-m", "120", "-o"]).arg(folder.path().join(name)).arg(url);
        lab.spawn(command).unwrap()
    };
    let cache = |action: &str| {
        let mut command = scene.host.command(Some("alice"), "portcullis");
        command.args(["cache", action, "--json"]);
        scene.host.netns().finish(command).unwrap()
    };
    let serve = || scene.serve_by(&["boot", &kernel, &initrd], &[]).unwrap();
    let came = |client: &Client, fact: &str| {
        let is_it = |event: &serde_json::Value| {
            event["fact"] == fact && event["file"].as_str() == Some(&kernel)
        };
        wait_until(4 * SOON, || client.events().iter().any(is_it))
    };

    let end = |client: &mut Client, signal| {
        client.signal(signal).unwrap();
        client.end().unwrap();
        scene.assert_restored(SOON).unwrap();
    };

    // Killed in the middle: nothing of it is used later.
    let mut client = serve();
    let path = download::kernel_path(&lab, "eth0", &client).unwrap();
    let mut machine = get(&path, "killed");
    let begun = || length(&folder.path().join("killed")) > 0;
    assert!(wait_until(SOON, || folder.path().join("killed").exists() && begun()));
    end(&mut client, Signal::SIGKILL);
    machine.wait(SOON).unwrap();
    assert!(cache("list").contains("No copies"), "{}", cache("list"));

    // A lab at once is one download, and each machine has all of it.
    let mut client = serve();
    let path = download::kernel_path(&lab, "eth0", &client).unwrap();
    let mut machines: Vec<_> = (0..8)
        .map(|last| get(&path.replace("00-07/", &format!("00-{last:02x}/")), &last.to_string()))
        .collect();
    let image = std::fs::read(mirror.at("files/bzImage")).unwrap();
    for (number, machine) in machines.iter_mut().enumerate() {
        let status = machine.wait(8 * SOON).unwrap();
        assert!(status.is_some_and(|status| status.success()), "{}", client.stdout());
        let got = std::fs::read(folder.path().join(number.to_string())).unwrap();
        assert!(got == image, "machine {number} has other octets");
    }
    assert!(came(&client, "fetched"), "{}", client.stdout());
    assert_eq!(asked(&mirror), (1, 0));
    end(&mut client, Signal::SIGINT);
    assert!(cache("list").contains(&kernel), "{}", cache("list"));

    // The next run asks whether it is the same.
    let mut client = serve();
    let path = download::kernel_path(&lab, "eth0", &client).unwrap();
    let status = get(&path, "kept").wait(8 * SOON).unwrap();
    assert!(status.is_some_and(|status| status.success()), "{}", client.stdout());
    assert!(std::fs::read(folder.path().join("kept")).unwrap() == image, "the copy differs");
    assert!(came(&client, "reused"), "{}", client.stdout());
    assert_eq!(asked(&mirror), (1, 1));
    end(&mut client, Signal::SIGINT);
    cache("clear");
    assert!(cache("list").contains("No copies"), "{}", cache("list"));
}
