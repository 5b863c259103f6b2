//! The helper beside a small model: any order of requests by several users, deaths, closes,
//! extensions, reloads, faults, time and permissions. After each step both have the same leases, the
//! same openings and gave the same answer. What differs is cut down to the shortest order that shows it.

use std::{cell::Cell, collections::BTreeMap, time::Duration};

use portcullis_dbus::{BUS_NAME, Error, OBJECT_PATH};
use portcullis_helper::{
    authority::Authority,
    config::{self, Config},
    firewall::Standing,
    limits,
    service::Netboot,
    sockdiag::{Found, Protocol},
    state::State,
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config as Cases, TestRunner},
};
use tokio::task::JoinHandle;
use zbus::{
    Connection, OwnedFd, Variant,
    fdo::{DBusProxy, RequestNameFlags},
};

use crate::lab::{Bus, Client, Fake, Mood, Polkit, Shared, World, until};

/// Orders that are tried.
const CASES: u32 = 128;
/// Steps of the longest one.
const STEPS: usize = 40;
/// Two connections of each of three users; one user, where there is no root to become others.
const CLIENTS: usize = 6;
const USERS: std::ops::Range<u32> = 60_000..60_003;
const INTERFACES: u8 = 4;

/// So small that every limit is met.
fn site() -> Config {
    let text = "interfaces = [\"eth?\"]\nhttp-ports = [64172, \"8000-8001\"]\nmax-seconds = 1000\n\
                leases = 5\nleases-per-user = 3";
    config::check_text(std::path::Path::new("helper.toml"), text).unwrap()
}

/// What is asked for.
#[derive(Clone, Debug)]
struct Wish {
    interface: String,
    dhcp: bool,
    tftp: bool,
    boot_server: bool,
    http: u16,
    seconds: u32,
}

impl Wish {
    fn request(&self) -> std::collections::HashMap<&'static str, Variant<'_>> {
        [
            ("interface", Variant::from(self.interface.as_str())),
            ("dhcp", Variant::from(if self.dhcp { "bind" } else { "none" })),
            ("tftp", Variant::from(self.tftp)),
            ("boot-server", Variant::from(self.boot_server)),
            ("http-port", Variant::from(self.http)),
            ("max-seconds", Variant::from(self.seconds)),
        ]
        .into()
    }

    fn ports(&self) -> Vec<(Protocol, u16)> {
        let udp = [(self.dhcp, 67), (self.tftp, 69), (self.boot_server, 4011)];
        let udp =
            udp.into_iter().filter(|(wanted, _)| *wanted).map(|(_, port)| (Protocol::Udp, port));
        udp.chain((self.http != 0).then_some((Protocol::Tcp, self.http))).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// With the effect that fails, if any.
    Open(usize, Wish, Mood, Option<usize>),
    /// A dialog is shown, and stays.
    Think(usize, Wish),
    /// It is answered with yes.
    Answer,
    /// The lease is one of those that ever were, or none.
    Extend(usize, usize, u32, Mood),
    Close(usize, usize, Mood),
    List(usize),
    /// The connection ends; a process may keep the sockets.
    Die(usize, bool),
    DropSockets(usize),
    Pass(u64),
    Renumber(u8),
    Unplug(u8),
    Readdress(u8),
    Reload,
    FirewallStops,
    RulesDeleted,
    Withdraw,
    Squat(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    let lease = 0_usize..8;
    let mood = prop_oneof![8 => Just(Mood::Yes), 1 => Just(Mood::No), 1 => Just(Mood::Garbage)];
    let interface = prop_oneof![
        12 => (0..INTERFACES).prop_map(|number| format!("eth{number}")),
        1 => select(vec!["eth9".to_owned(), "wlan0".to_owned(), "eth 0".to_owned()]),
    ];
    let flag = || prop::bool::weighted(0.7);
    let wish = (
        interface,
        flag(),
        flag(),
        flag(),
        select(vec![64172, 64172, 64172, 8000, 0, 80, 9000]),
        select(vec![600, 600, 60, 1000, 1001, 9]),
    )
        .prop_map(|(interface, dhcp, tftp, boot_server, http, seconds)| Wish {
            interface,
            dhcp,
            tftp,
            boot_server,
            http,
            seconds,
        });
    let fault = prop_oneof![6 => Just(None), 1 => (1_usize..12).prop_map(Some)];
    prop_oneof![
        10 => (client.clone(), wish.clone(), mood.clone(), fault)
            .prop_map(|(client, wish, mood, fault)| Step::Open(client, wish, mood, fault)),
        2 => (client.clone(), wish).prop_map(|(client, wish)| Step::Think(client, wish)),
        2 => Just(Step::Answer),
        3 => (client.clone(), lease.clone(), select(vec![600, 60, 1001, 9]), mood.clone())
            .prop_map(|(client, lease, seconds, mood)| Step::Extend(client, lease, seconds, mood)),
        4 => (client.clone(), lease.clone(), prop_oneof![4 => Just(Mood::No), 1 => Just(Mood::Yes)])
            .prop_map(|(client, lease, mood)| Step::Close(client, lease, mood)),
        2 => client.clone().prop_map(Step::List),
        2 => (client, any::<bool>()).prop_map(|(client, kept)| Step::Die(client, kept)),
        2 => lease.prop_map(Step::DropSockets),
        2 => select(vec![1, 30, 61, 700]).prop_map(Step::Pass),
        1 => (0..INTERFACES).prop_map(Step::Renumber),
        1 => (0..INTERFACES).prop_map(Step::Unplug),
        1 => (0..INTERFACES).prop_map(Step::Readdress),
        2 => Just(Step::Reload),
        1 => Just(Step::FirewallStops),
        1 => Just(Step::RulesDeleted),
        1 => Just(Step::Withdraw),
        1 => select(vec![67, 69, 4011]).prop_map(Step::Squat),
    ]
}

/// What should be.
#[derive(Default)]
struct Model {
    now: u64,
    leases: BTreeMap<u64, Expected>,
    /// Whose it was.
    ended: BTreeMap<u64, u32>,
    /// Index and address of each interface that there is.
    links: BTreeMap<String, (u32, u8)>,
    /// UDP sockets that some process holds, by lease: interface, ports.
    held: BTreeMap<u64, (u32, Vec<(Protocol, u16)>)>,
    squatter: Option<u16>,
    /// A dialog is open: which client, for what, and where it was admitted.
    thinking: Option<(usize, Wish, (u32, u8))>,
    /// Questions without a dialog that each user has left, and since when.
    rates: BTreeMap<u32, (u32, u64)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Expected {
    client: usize,
    uid: u32,
    index: u32,
    address: u8,
    interface: String,
    ports: Vec<(Protocol, u16)>,
    ends: u64,
}

/// An error, by its exit code.
type Refused = u8;

impl Model {
    fn parse(wish: &Wish) -> Result<(), Refused> {
        let fine = !wish.interface.contains(' ')
            && wish.seconds >= 10
            && (wish.http == 0 || wish.http >= 1024)
            && !wish.ports().is_empty();
        if fine { Ok(()) } else { Err(15) }
    }

    fn busy(&self, uid: u32, uids: &[u32]) -> Result<(), Refused> {
        let same = self.thinking.as_ref().is_some_and(|(client, ..)| uids[*client] == uid);
        if same { Err(13) } else { Ok(()) }
    }

    fn admit(&self, uid: u32, wish: &Wish) -> Result<(u32, u8), Refused> {
        let http = [0, 64172, 8000, 8001].contains(&wish.http);
        if !wish.interface.starts_with("eth") || !http || wish.seconds > 1000 {
            return Err(17);
        }
        let of_user = self.leases.values().filter(|lease| lease.uid == uid).count();
        if of_user >= 3 || self.leases.len() >= 5 {
            return Err(20);
        }
        let link = *self.links.get(&wish.interface).ok_or(16_u8)?;
        let overlaps = |lease: &Expected| {
            lease.index == link.0 && lease.ports.iter().any(|port| wish.ports().contains(port))
        };
        if self.leases.values().any(overlaps) { Err(14) } else { Ok(link) }
    }

    fn grant(&self, uid: u32, wish: &Wish, asked: (u32, u8)) -> Result<(), Refused> {
        if self.admit(uid, wish)? != asked {
            return Err(16);
        }
        let left = |(index, ports): &(u32, Vec<(Protocol, u16)>)| {
            *index == asked.0 && ports.iter().any(|port| wish.ports().contains(port))
        };
        let squatted = |port| wish.ports().contains(&(Protocol::Udp, port));
        if self.held.values().any(left) || self.squatter.is_some_and(squatted) {
            return Err(14);
        }
        Ok(())
    }

    fn end(&mut self, over: impl Fn(&Expected) -> bool) {
        let ids: Vec<u64> =
            self.leases.iter().filter(|(_, lease)| over(lease)).map(|(id, _)| *id).collect();
        for id in ids {
            let lease = self.leases.remove(&id).unwrap();
            self.ended.insert(id, lease.uid);
        }
    }

    /// What ends by time, by the interface, or with its last socket.
    fn tick(&mut self) {
        let (now, links, held) = (self.now, self.links.clone(), self.held.clone());
        let ids: Vec<u64> = self.leases.keys().copied().collect();
        let dropped: Vec<u64> = ids.into_iter().filter(|id| !held.contains_key(id)).collect();
        for id in dropped {
            let lease = self.leases.remove(&id).unwrap();
            self.ended.insert(id, lease.uid);
        }
        self.end(|lease| {
            lease.ends <= now || links.get(&lease.interface) != Some(&(lease.index, lease.address))
        });
    }

    fn take_from_rate(&mut self, uid: u32) -> bool {
        let burst = u32::try_from(limits::CHECK_BURST.as_secs()).unwrap();
        let (left, filled) = self.rates.entry(uid).or_insert((burst, self.now));
        let earned = u32::try_from(self.now - *filled).unwrap();
        (*left, *filled) = ((*left + earned).min(burst), self.now);
        let granted = *left > 0;
        *left = left.saturating_sub(1);
        granted
    }
}

/// A lease and its sockets.
type Granted = (u64, Vec<OwnedFd>);

/// Both, side by side.
struct Pair<'a> {
    bus: &'a Bus,
    polkit: &'a Polkit,
    netboot: Netboot,
    heeding: JoinHandle<()>,
    world: Shared,
    clients: Vec<Client>,
    uids: Vec<u32>,
    sockets: BTreeMap<u64, Vec<OwnedFd>>,
    thinker: Option<JoinHandle<Result<Granted, Error>>>,
    model: Model,
}

impl<'a> Pair<'a> {
    /// `before`: the connection of the helper of the order before, whose name is taken over.
    /// And the connection of the helper.
    async fn start(
        bus: &'a Bus,
        polkit: &'a Polkit,
        before: Option<Connection>,
    ) -> (Self, Connection) {
        if let Some(before) = before {
            before.close().await.unwrap();
        }
        polkit.answers(Mood::Yes);
        polkit.manager(Mood::No);
        let world = World::new();
        world.lock().unwrap().links.retain(|_, link| link.index < 2 + u32::from(INTERFACES));
        let (kernel, firewall) = (Fake(world.clone()), Fake(world.clone()));
        let state = State::new(site(), Box::new(kernel), Box::new(firewall));
        let serving = bus.connect().await;
        // As `run` does, but for its clock: here a tick comes when a step says so.
        let netboot = Netboot::new(Authority::Polkit(serving.clone()), state);
        serving.object_server().at(OBJECT_PATH, netboot.clone()).await.unwrap();
        let flags = RequestNameFlags::DO_NOT_QUEUE;
        while serving.request_name_with_flags(BUS_NAME, flags).await.is_err() {
            // The bus has not noticed yet that the one before is gone.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let bus_itself = DBusProxy::new(&serving).await.unwrap();
        let departures = bus_itself.receive_name_owner_changed().await.unwrap();
        let heeding = (netboot.clone(), serving.clone());
        let heeding = tokio::spawn(async move {
            let (netboot, serving) = heeding;
            tokio::join!(
                netboot.heed_polkit(&serving),
                netboot.heed_departures(&serving, departures)
            );
        });
        let mut clients = Vec::new();
        let mut uids = Vec::new();
        for number in 0..CLIENTS {
            let uid = user(number);
            clients.push(connect(bus, uid).await);
            uids.push(uid);
        }
        let links = (0..INTERFACES).map(|n| (format!("eth{n}"), (u32::from(n) + 2, n + 1)));
        let model = Model { now: 1000, links: links.collect(), ..Model::default() };
        let sockets = BTreeMap::new();
        let thinker = None;
        let pair =
            Self { bus, polkit, netboot, heeding, world, clients, uids, sockets, thinker, model };
        (pair, serving)
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The n-th lease that ever was, or one that never was.
    fn lease(&self, number: usize) -> u64 {
        let mut ever: Vec<u64> =
            self.model.leases.keys().chain(self.model.ended.keys()).copied().collect();
        ever.sort_unstable_by(|a, b| b.cmp(a));
        ever.get(number).copied().unwrap_or(999)
    }

    fn tick(&mut self) {
        self.netboot.state().tick().unwrap();
        self.model.tick();
    }

    fn granted(&mut self, client: usize, wish: &Wish, lease: u64, sockets: Vec<OwnedFd>) {
        let (index, address) = self.model.links[&wish.interface];
        let (uid, ports) = (self.uids[client], wish.ports());
        assert_eq!(sockets.len(), ports.len());
        let udp =
            ports.iter().copied().filter(|(protocol, _)| *protocol == Protocol::Udp).collect();
        self.model.held.insert(lease, (index, udp));
        self.sockets.insert(lease, sockets);
        let ends = self.model.now + u64::from(wish.seconds);
        let interface = wish.interface.clone();
        let lease_of = Expected { client, uid, index, address, interface, ports, ends };
        assert!(!self.model.ended.contains_key(&lease), "an id is given once");
        assert_eq!(self.model.leases.insert(lease, lease_of), None);
    }

    async fn carry_out(&mut self, step: &Step) {
        match step.clone() {
            Step::Open(client, wish, mood, fault) => {
                let uid = self.uids[client];
                let expected = Model::parse(&wish)
                    .and_then(|()| self.model.busy(uid, &self.uids))
                    .and_then(|()| self.model.admit(uid, &wish))
                    .and_then(|site| match mood {
                        Mood::Yes => self.model.grant(uid, &wish, site),
                        _ => Err(10),
                    });
                self.polkit.answers(mood);
                if let Some(fault) = fault {
                    let mut world = self.world();
                    world.fails_at = Some(world.effects + fault);
                }
                let outcome = self.clients[client].proxy.open(wish.request()).await;
                self.polkit.answers(Mood::Yes);
                let failed = {
                    let mut world = self.world();
                    let at = world.fails_at.take();
                    at.is_some_and(|at| world.effects >= at)
                };
                match outcome {
                    Ok((lease, sockets, _)) => {
                        assert_eq!((expected, failed), (Ok(()), false));
                        self.granted(client, &wish, lease, sockets.into_values().collect());
                    }
                    // Any error will do then; that nothing is left is looked at below.
                    Err(_) if failed => {}
                    Err(error) => assert_eq!(Err(error.exit_code()), expected, "{error}"),
                }
            }
            Step::Think(client, wish) => {
                let uid = self.uids[client];
                let admitted = Model::parse(&wish)
                    .and_then(|()| self.model.busy(uid, &self.uids))
                    .and_then(|()| self.model.admit(uid, &wish));
                let (Ok(site), None) = (admitted, &self.model.thinking) else {
                    return;
                };
                self.polkit.answers(Mood::Silent);
                let asked = self.polkit.log().asked.len();
                let (proxy, own) = (self.clients[client].proxy.clone(), wish.clone());
                self.thinker = Some(tokio::spawn(async move {
                    let (lease, sockets, _) = proxy.open(own.request()).await?;
                    Ok((lease, sockets.into_values().collect()))
                }));
                self.polkit.asked(asked + 1).await;
                self.polkit.answers(Mood::Yes);
                self.model.thinking = Some((client, wish, site));
            }
            Step::Answer => self.answer().await,
            Step::Extend(client, lease, seconds, mood) => {
                let (lease, uid) = (self.lease(lease), self.uids[client]);
                let own = self.model.leases.get(&lease).is_some_and(|one| one.client == client);
                let expected = match (seconds, own, mood) {
                    (_, false, _) => Err(21),
                    (..10, ..) => Err(15),
                    (1001.., ..) => Err(17),
                    (_, true, mood) => self.model.busy(uid, &self.uids).and(match mood {
                        Mood::Yes => Ok(()),
                        _ => Err(10),
                    }),
                };
                self.polkit.answers(mood);
                let outcome = self.clients[client].proxy.extend(lease, seconds).await;
                self.polkit.answers(Mood::Yes);
                assert_eq!(outcome.map_err(|error| error.exit_code()), expected);
                if expected.is_ok() {
                    let ends = self.model.now + u64::from(seconds);
                    self.model.leases.get_mut(&lease).unwrap().ends = ends;
                }
            }
            Step::Close(client, lease, mood) => {
                let (lease, uid) = (self.lease(lease), self.uids[client]);
                let expected = match (self.model.leases.get(&lease), self.model.ended.get(&lease)) {
                    (Some(one), _) if one.uid == uid => Ok(()),
                    (Some(_), _) => self.model.busy(uid, &self.uids).and(match mood {
                        Mood::Yes => Ok(()),
                        _ => Err(21),
                    }),
                    (None, Some(owner)) if *owner == uid => Ok(()),
                    // As for a lease of somebody else, so that nobody can tell.
                    (None, _) => self.model.busy(uid, &self.uids).and(Err(21)),
                };
                self.polkit.manager(mood);
                let outcome = self.clients[client].proxy.close(lease).await;
                self.polkit.manager(Mood::No);
                assert_eq!(outcome.map_err(|error| error.exit_code()), expected);
                if expected.is_ok()
                    && let Some(one) = self.model.leases.remove(&lease)
                {
                    self.model.ended.insert(lease, one.uid);
                }
            }
            Step::List(client) => {
                let uid = self.uids[client];
                let others = self.model.leases.values().any(|lease| lease.uid != uid);
                let expected = match others && !self.model.take_from_rate(uid) {
                    true => Err(20),
                    false => {
                        let own = self.model.leases.iter().filter(|(_, lease)| lease.uid == uid);
                        Ok(own.map(|(id, _)| *id).collect::<Vec<u64>>())
                    }
                };
                let listed = self.clients[client].proxy.list().await;
                let listed = listed.map(|all| all.into_iter().map(|(id, _)| id).collect());
                assert_eq!(listed.map_err(|error| error.exit_code()), expected);
            }
            Step::Die(client, kept) => {
                if self.model.thinking.as_ref().is_some_and(|(thinker, ..)| *thinker == client) {
                    return;
                }
                let fresh = connect(self.bus, self.uids[client]).await;
                std::mem::replace(&mut self.clients[client], fresh).leave().await;
                let theirs = |lease: &Expected| lease.client == client;
                if !kept {
                    let leases = &self.model.leases;
                    let theirs: Vec<u64> =
                        leases.iter().filter(|(_, one)| theirs(one)).map(|(id, _)| *id).collect();
                    for lease in theirs {
                        self.sockets.remove(&lease);
                        self.model.held.remove(&lease);
                    }
                }
                self.model.end(theirs);
                let left = self.model.leases.len();
                until("its leases end", || self.world().open.len() == left).await;
            }
            Step::DropSockets(lease) => {
                let lease = self.lease(lease);
                self.sockets.remove(&lease);
                self.model.held.remove(&lease);
                self.tick();
            }
            Step::Pass(seconds) => {
                self.world().now += Duration::from_secs(seconds);
                self.model.now += seconds;
                self.tick();
            }
            Step::Renumber(number) => {
                let name = format!("eth{number}");
                let known = &mut self.model.links;
                let index = known.get(&name).map_or(100, |link| link.0 + 100);
                known.insert(name.clone(), (index, number + 1));
                let mut world = self.world();
                world.add_link(number);
                world.link(&name).index = index;
                drop(world);
                self.tick();
            }
            Step::Unplug(number) => {
                let name = format!("eth{number}");
                self.model.links.remove(&name);
                self.world().links.remove(&name);
                self.tick();
            }
            Step::Readdress(number) => {
                let name = format!("eth{number}");
                if let Some((_, address)) = self.model.links.get_mut(&name) {
                    *address = address.wrapping_add(10);
                    let octets = [192, 0, 2, *address];
                    self.world().link(&name).addresses = vec![octets.into()];
                }
                self.tick();
            }
            Step::Reload => {
                if !self.model.leases.is_empty() {
                    let mut world = self.world();
                    (world.standing, world.restorable) = (Standing::ChainGone, true);
                }
                self.tick();
                let mut world = self.world();
                // Only what survived the tick has put it back.
                (world.standing, world.restorable) = (Standing::Whole, false);
            }
            Step::FirewallStops => {
                self.world().standing = Standing::ChainGone;
                self.tick();
                self.world().now += Duration::from_secs(6);
                self.model.now += 6;
                self.tick();
                self.model.end(|_| true);
                self.world().standing = Standing::Whole;
            }
            Step::RulesDeleted => {
                self.world().standing = Standing::Revoked;
                self.tick();
                self.model.end(|_| true);
                self.world().standing = Standing::Whole;
            }
            Step::Withdraw => {
                self.polkit.answers(Mood::No);
                // The helper may just be about to listen.
                for _ in 0..100 {
                    self.polkit.changes().await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if self.world().open.is_empty() {
                        break;
                    }
                }
                until("its leases end", || self.world().open.is_empty()).await;
                self.polkit.answers(Mood::Yes);
                self.model.end(|_| true);
            }
            Step::Squat(port) => {
                let taken = (self.model.squatter != Some(port)).then_some(port);
                self.model.squatter = taken;
                self.world().holders = taken
                    .map(|port| Found {
                        protocol: Protocol::Udp,
                        port,
                        address: [0, 0, 0, 0].into(),
                        ifindex: 0,
                        uid: 7,
                        held: true,
                        mark: 0,
                    })
                    .into_iter()
                    .collect();
            }
        }
        self.compare();
    }

    /// The dialog is answered; the world may be another one by now.
    async fn answer(&mut self) {
        let Some((client, wish, site)) = self.model.thinking.take() else {
            return;
        };
        let expected = self.model.grant(self.uids[client], &wish, site);
        self.polkit.say_yes_now().await;
        match self.thinker.take().unwrap().await.unwrap() {
            Ok((lease, sockets)) => {
                assert_eq!(expected, Ok(()));
                self.granted(client, &wish, lease, sockets);
            }
            Err(error) => assert_eq!(Err(error.exit_code()), expected, "{error}"),
        }
    }

    /// Who has what, what is open, what is bound.
    fn compare(&self) {
        let state = self.netboot.state();
        let leases: BTreeMap<u64, _> = state
            .leases
            .open
            .iter()
            .map(|(id, lease)| {
                let ports: Vec<_> = lease.opening.ports().collect();
                let interface = lease.opening.interface.to_string();
                (
                    *id,
                    (
                        lease.owner.uid.get(),
                        lease.opening.index,
                        interface,
                        ports,
                        lease.ends.as_secs(),
                    ),
                )
            })
            .collect();
        let expected: BTreeMap<u64, _> = self
            .model
            .leases
            .iter()
            .map(|(id, one)| {
                (*id, (one.uid, one.index, one.interface.clone(), one.ports.clone(), one.ends))
            })
            .collect();
        assert_eq!(leases, expected, "leases");
        assert!(leases.len() <= 5);
        let mut openings: Vec<_> = state.leases.open.values().map(|one| one.opening.mark).collect();
        drop(state);
        let world = self.world();
        let mut open: Vec<_> = world.open.iter().map(|opening| opening.mark).collect();
        open.sort_unstable();
        openings.sort_unstable();
        assert_eq!(open, openings, "openings");
        assert!(open.windows(2).all(|two| two[0] != two[1]), "a mark of its own for each");
        let held: usize = self.sockets.values().map(Vec::len).sum();
        assert_eq!(world.living().len(), held, "sockets that nobody asked for");
        let placeholders = |one: &Expected| {
            one.ports.iter().filter(|port| matches!(port, (Protocol::Udp, 69 | 4011))).count()
        };
        let expected: usize = self.model.leases.values().map(placeholders).sum();
        assert_eq!(world.living_placeholders(), expected, "placeholders live with their leases");
    }

    /// Everybody leaves: nothing is left.
    async fn finish(mut self) {
        self.answer().await;
        self.sockets.clear();
        for client in self.clients.drain(..) {
            client.leave().await;
        }
        until("nothing is left", || self.world().is_clean()).await;
        self.heeding.abort();
    }
}

fn user(number: usize) -> u32 {
    if nix::unistd::geteuid().is_root() {
        USERS.start + u32::try_from(number / 2).unwrap()
    } else {
        nix::unistd::getuid().as_raw()
    }
}

async fn connect(bus: &Bus, uid: u32) -> Client {
    if nix::unistd::geteuid().is_root() {
        Client::over(bus.connect_as(uid).await).await
    } else {
        Client::new(bus).await
    }
}

/// P9, P5: 128 random orders of up to 40 steps.
#[test]
fn p9_whatever_the_order_everybody_has_what_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (bus, polkit) = runtime.block_on(async {
        let root = nix::unistd::geteuid().is_root();
        let bus = if root { Bus::start_with_accounts(USERS) } else { Bus::start() };
        let polkit = Polkit::start(&bus).await;
        (bus, polkit)
    });
    let before = Cell::new(None);
    let cases = Cases { cases: CASES, failure_persistence: None, ..Cases::default() };
    let outcome = TestRunner::new(cases).run(&vec(step(), 1..STEPS), |steps| {
        runtime.block_on(async {
            let (mut pair, serving) = Pair::start(&bus, &polkit, before.take()).await;
            before.set(Some(serving));
            for step in &steps {
                pair.carry_out(step).await;
            }
            pair.finish().await;
        });
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
