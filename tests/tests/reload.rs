//! P6: the firewall is reloaded under running downloads, with NixOS' whole command order, again and
//! again: no reload is disturbed, the service comes back, no download notices. `ROUNDS` (10; `make
//! soak`: 100).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Result,
    download::{self, MAC},
    host::Site,
    machine, need_host,
    nixos::{self, Flavour, Settings},
    probe::{self, Answer},
    process::wait_until,
    scene::{HOST, HTTP, Scene},
    snapshot::{Snapshot, assert_same},
    times::Times,
};

/// What promise P6 says; how it is held: [`Times`].
const PROMISE: Duration = Duration::from_secs(1);

/// The service is back within this time, however busy the machine that runs the test.
const BACK: Duration = Duration::from_secs(10);

/// Between two reloads. One after the other, the firewall itself would be closed most of the time,
/// and a TFTP server rightly gives up.
const PAUSE: Duration = Duration::from_millis(700);

fn rounds() -> usize {
    std::env::var("ROUNDS").map_or(10, |text| text.parse().expect("ROUNDS is a number"))
}

/// Whether the outsider is answered on UDP 69 and on the port for boot images.
fn served(scene: &Scene) -> bool {
    let read = b"\0\x01no-such-file\0octet\0";
    let udp = probe::udp(&scene.outsider, (HOST, 69).into(), read).unwrap();
    udp == Answer::Open && probe::tcp(&scene.outsider, (HOST, HTTP).into()).unwrap() == Answer::Open
}

/// Downloads again and again until all is over; returns how often.
fn again_and_again(over: &AtomicBool, good: &[u8], get: impl Fn() -> Result<Vec<u8>>) -> usize {
    let mut times = 0;
    while times == 0 || !over.load(Ordering::Relaxed) {
        assert!(get().unwrap() == good, "download {times} is not what was served");
        times += 1;
    }
    times
}

fn reloaded_under_downloads(flavour: Flavour) {
    let scene = Scene::start(Some(flavour), Site::AllowsAlice).unwrap();
    let reload = || nixos::reload(scene.host.netns(), flavour, &Settings::default());
    // The first reload puts the chains into the order that they keep from then on.
    reload().unwrap();
    let before = Snapshot::take(scene.host.netns()).unwrap().without_handles();

    let mut client = scene.serve(&[]).unwrap();
    let http = SocketAddr::from((HOST, HTTP));
    let tftp = SocketAddr::from((HOST, 69));
    let path = download::kernel_path(&scene.outsider, "eth0", &client).unwrap();
    let kernel = std::fs::read(machine::image().unwrap().join("bzImage")).unwrap();
    let name = client.ready().unwrap()["loaders"][0].as_str().unwrap().to_owned();
    let name = format!("{MAC}/{name}");
    let loader = download::tftp(&scene.outsider, tftp, &name, Duration::ZERO).unwrap();
    assert!(loader.len() > 10_000, "{}", loader.len());

    let over = AtomicBool::new(false);
    let mut times = Times::default();
    let (kernels, loaders) = std::thread::scope(|scope| {
        // Each takes a few seconds, so that every reload meets both.
        let kernels = scope.spawn(|| {
            let get = || download::http(&scene.outsider, http, &path, Duration::from_millis(15));
            again_and_again(&over, &kernel, get)
        });
        let loaders = scope.spawn(|| {
            let get = || download::tftp(&scene.outsider, tftp, &name, Duration::from_millis(10));
            again_and_again(&over, &loader, get)
        });
        let outcome: Result<()> = (0..rounds()).try_for_each(|_| {
            reload()?;
            let done = Instant::now();
            assert!(wait_until(BACK, || served(&scene)), "{}", scene.host.log());
            times.add(done.elapsed());
            std::thread::sleep(PAUSE);
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        outcome.unwrap();
        (kernels.join().unwrap(), loaders.join().unwrap())
    });
    println!("{flavour:?}: {kernels} kernels and {loaders} loaders came whole");
    times.hold(&format!("{flavour:?} reloaded: service back"), PROMISE);

    client.signal(Signal::SIGTERM).unwrap();
    let status = client.end().unwrap();
    assert_eq!(status.code(), Some(0), "{}", client.stderr());
    let after = || Snapshot::take(scene.host.netns()).unwrap().without_handles();
    wait_until(BACK, || after() == before);
    assert_same(&before, &after());
}

#[test]
fn p6_reloaded_under_downloads_iptables() {
    need_host!();
    reloaded_under_downloads(Flavour::Iptables);
}

#[test]
fn p6_reloaded_under_downloads_nftables() {
    need_host!();
    reloaded_under_downloads(Flavour::Nftables);
}
