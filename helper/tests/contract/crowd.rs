//! P9: many at once, and one that is rude: everybody gets what is theirs, and nobody waits for others.

use std::{
    io::{ErrorKind, Write},
    ops::Range,
    os::unix::net::UnixStream,
    time::Duration,
};

use futures_util::future::join_all;
use portcullis_dbus::{BUS_NAME, Error, INTERFACE, OBJECT_PATH};
use portcullis_helper::limits;
use zbus::Message;

use crate::{
    lab::{Bus, Client, Helper, Lab, Mood, PATIENCE, Polkit, request, until},
    netns::skipped,
};

/// Users that ask in the same instant.
const CROWD: usize = 50;
/// Those, and some that come after them: more than there is room for.
const USERS: Range<u32> = 60_000..60_070;

#[tokio::test]
async fn p9_fifty_users_at_once_get_their_own_and_nobody_elses() {
    if !nix::unistd::geteuid().is_root() {
        skipped("needs root, to become other users");
        return;
    }
    let bus = Bus::start_with_accounts(USERS);
    let polkit = Polkit::start(&bus).await;
    let lab = Lab { helper: Helper::start(&bus).await, polkit, bus };
    let mut clients = Vec::new();
    for (user, link) in USERS.zip(0_u8..) {
        lab.helper.world().add_link(link);
        clients.push(Client::over(lab.bus.connect_as(user).await).await);
    }
    // Somebody thinks about a dialog, and keeps nobody waiting.
    lab.polkit.answers(Mood::Silent);
    let thinker = lab.client().await;
    let proxy = thinker.proxy.clone();
    let thinking = tokio::spawn(async move { proxy.open(request("eth0")).await.map(|_| ()) });
    lab.polkit.asked(1).await;
    lab.polkit.answers(Mood::Yes);

    let open = |(number, client): (usize, &Client)| {
        let proxy = client.proxy.clone();
        async move { proxy.open(request(&format!("eth{number}"))).await }
    };
    let all = join_all(clients.iter().enumerate().take(CROWD).map(open));
    let all = tokio::time::timeout(PATIENCE, all).await.expect("nobody starves");
    let mut granted: Vec<_> = all.into_iter().map(Result::unwrap).collect();

    // Room for so many more: the rest is refused, whoever they are.
    let more = join_all(clients.iter().enumerate().skip(CROWD).map(open)).await;
    let (given, refused): (Vec<_>, Vec<_>) = more.into_iter().partition(Result::is_ok);
    assert_eq!(given.len(), limits::LEASES - CROWD);
    assert!(refused.iter().all(|one| matches!(one, Err(Error::LimitsExceeded(_)))));
    granted.extend(given.into_iter().map(Result::unwrap));

    let each = join_all(clients.iter().zip(&granted).take(CROWD).map(
        |(client, (lease, ..))| async move {
            let listed: Vec<u64> =
                client.proxy.list().await.unwrap().into_iter().map(|(id, _)| id).collect();
            (listed == [*lease], client.proxy.close(lease % 50 + 1).await)
        },
    ));
    for (number, (only_its_own, closed)) in each.await.into_iter().enumerate() {
        assert!(only_its_own, "user {number} sees others");
        assert!(matches!(closed, Err(Error::NoSuchLease(_))), "user {number} ends another's");
    }
    assert_eq!(lab.helper.world().open.len(), limits::LEASES);

    // A manager sees all and ends them; and the first is still thinking.
    lab.polkit.manager(Mood::Yes);
    assert!(!thinking.is_finished());
    let manager = lab.client().await;
    let listed = manager.proxy.list().await.unwrap();
    assert_eq!(listed.len(), limits::LEASES);
    thinker.leave().await;
    for (lease, _) in listed {
        // The question of the one who left may be known a moment longer: it is the same user's.
        while let Err(error) = manager.proxy.close(lease).await {
            assert!(matches!(error, Error::Busy(_)), "{error:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    drop(granted);
    lab.helper.clean().await;
}

#[tokio::test]
async fn p9_a_caller_that_never_reads_is_in_nobodys_way() {
    let lab = Lab::start().await;
    let mut rude = UnixStream::connect(lab.bus.socket()).unwrap();
    rude.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    // SASL EXTERNAL (D-Bus specification, "Authentication Protocol"): the uid in hexadecimal digits.
    let uid: String =
        nix::unistd::getuid().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
    write!(rude, "\0AUTH EXTERNAL {uid}\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n").unwrap();
    let bus = "org.freedesktop.DBus";
    let hello = Message::method_call("/org/freedesktop/DBus", "Hello").destination(bus);
    rude.write_all(hello.interface(bus).build(&()).unwrap().data()).unwrap();
    let call = |method| {
        Message::method_call(OBJECT_PATH, method).destination(BUS_NAME).interface(INTERFACE)
    };
    let open = call("Open").build(&request("eth0")).unwrap();
    rude.write_all(open.data()).unwrap();
    until("it has its lease", || lab.helper.world().open.len() == 1).await;
    let rest = std::thread::spawn(move || {
        for _ in 0..5000 {
            match rude.write_all(call("List").build(&()).unwrap().data()) {
                Ok(()) => {}
                // The bus reads no more from it, or has closed the connection.
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return None,
                Err(error) => panic!("{error}"),
            }
        }
        Some(rude)
    });
    // Everybody else is served meanwhile.
    let other = lab.client().await;
    let served = tokio::time::timeout(PATIENCE, other.open("eth1")).await;
    let (lease, sockets, _) = served.expect("served").unwrap();
    other.proxy.close(lease).await.unwrap();
    drop(sockets);
    // It ends for good with its connection, unread answers, sockets and all.
    let rude = tokio::task::spawn_blocking(|| rest.join().unwrap()).await.unwrap();
    drop(rude);
    lab.helper.clean().await;
}
