//! P11: a caller that calls everything with anything: every method, property and interface that there
//! is or might be, arguments of random types and sizes, descriptors, other paths. (dfuzzer does the
//! same, and is in no Debian.) The helper answers each call, opens nothing, and is afterwards as it
//! was.

use std::{fs::File, time::Duration};

use portcullis_dbus::{BUS_NAME, INTERFACE, OBJECT_PATH};
use zbus::{
    Array, Connection, Dict, Fd, ObjectPath, Signature, Structure, Variant, wire::StructureBuilder,
};

use crate::{
    lab::{Bus, Client, Lab, Mood, PATIENCE, Polkit, appears, until},
    netns::sh,
    process::{Process, UID, machine_with_user},
    real::NIXOS,
};

/// Calls of one run.
const CALLS: usize = 300;
/// Octets of the longest text.
const LARGE: usize = 1 << 20;

/// Numbers that look random and are the same in every run (Marsaglia, "Xorshift RNGs").
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u32) -> usize {
        usize::try_from(self.next() % u64::from(limit)).unwrap()
    }

    fn one_of<T: Clone>(&mut self, choice: &[T]) -> T {
        choice[self.below(u32::try_from(choice.len()).unwrap())].clone()
    }

    fn text(&mut self) -> String {
        let word = ["interface", "eth0", "bind", "http-port", "\u{1b}[2J", "é\u{202e}", "", "a\nb"];
        let word = self.one_of(&word);
        if self.below(20) == 0 { word.repeat(LARGE / 16) } else { word.to_owned() }
    }

    /// Any value, with others in it as deep as this.
    fn value(&mut self, depth: usize) -> Variant<'static> {
        match self.below(if depth == 0 { 11 } else { 16 }) {
            0 => Variant::from(self.next().to_le_bytes()[0]),
            1 => Variant::from(self.below(2) == 1),
            2 => Variant::from(-1_i16),
            3 => Variant::from(u16::try_from(self.below(1 << 16)).unwrap()),
            4 => Variant::from(i32::MIN),
            5 => Variant::from(u32::try_from(self.next() >> 32).unwrap()),
            6 => Variant::from(u64::MAX),
            7 => Variant::from(f64::NAN),
            8 => Variant::from(ObjectPath::try_from("/x").unwrap()),
            9 => Variant::from(Signature::try_from("a{sv}").unwrap()),
            10 => Variant::from(self.text()),
            11 => {
                Variant::Fd(Fd::from(std::os::fd::OwnedFd::from(File::open("/dev/null").unwrap())))
            }
            12 => Variant::from(vec![7_u8; self.one_of(&[0, 1, 1000, LARGE / 64])]),
            13 => {
                let mut array = Array::new(&Signature::Variant);
                for _ in 0..self.below(5) {
                    array.append(Variant::Variant(Box::new(self.value(depth - 1)))).unwrap();
                }
                Variant::Array(array)
            }
            14 => self.dictionary(depth - 1),
            _ => Variant::Variant(Box::new(self.value(depth - 1))),
        }
    }

    /// An `a{sv}`, now and then the one that is asked for.
    fn dictionary(&mut self, depth: usize) -> Variant<'static> {
        let mut dictionary = Dict::new(&Signature::Str, &Signature::Variant);
        let keys = [
            "interface",
            "dhcp",
            "boot-server",
            "tftp",
            "http-port",
            "max-seconds",
            "full-dhcp",
            "x",
        ];
        for _ in 0..self.one_of(&[0, 1, 2, 7, 9, 1000]) {
            let key = match self.below(4) {
                0 => self.text(),
                _ => self.one_of(&keys).to_owned(),
            };
            let value = match (key.as_str(), self.below(3)) {
                ("interface", 1..) => Variant::from("eth0"),
                ("http-port", 1..) => Variant::from(64172_u16),
                ("dhcp", 1..) => Variant::from("bind"),
                _ => self.value(depth.min(2)),
            };
            let value = Variant::Variant(Box::new(value));
            // A key that is there twice is refused here already.
            let _ = dictionary.append(Variant::from(key), value);
        }
        Variant::Dict(dictionary)
    }

    fn arguments(&mut self) -> Option<Structure<'static>> {
        let mut arguments = StructureBuilder::new();
        let count = self.below(4);
        for _ in 0..count {
            let argument = if self.below(2) == 0 { self.dictionary(3) } else { self.value(3) };
            arguments.push_value(argument);
        }
        arguments.build().ok()
    }

    fn call(&mut self) -> Call {
        let interfaces = [
            Some(INTERFACE),
            Some(INTERFACE),
            Some("org.freedesktop.DBus.Properties"),
            Some("org.freedesktop.DBus.Introspectable"),
            Some("org.freedesktop.DBus.Peer"),
            Some("org.freedesktop.DBus.ObjectManager"),
            Some("org.portcullis.Netboot2"),
            None,
        ];
        let paths = [OBJECT_PATH, OBJECT_PATH, OBJECT_PATH, "/", "/org/portcullis", "/a/b"];
        let members = [
            "Open",
            "Open",
            "Extend",
            "Close",
            "Check",
            "List",
            "Get",
            "Set",
            "GetAll",
            "Introspect",
            "Ping",
            "GetMachineId",
            "GetManagedObjects",
            "Closed",
            "open",
            "Nothing",
        ];
        Call {
            path: self.one_of(&paths),
            interface: self.one_of(&interfaces),
            member: self.one_of(&members),
            arguments: self.arguments(),
        }
    }
}

struct Call {
    path: &'static str,
    interface: Option<&'static str>,
    member: &'static str,
    arguments: Option<Structure<'static>>,
}

/// Every call is answered, by whatever answer.
async fn calls_everything(caller: &Connection) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..CALLS {
        let Call { path, interface, member, arguments } = dice.call();
        let answer = async {
            match &arguments {
                Some(arguments) => {
                    caller.call_method(Some(BUS_NAME), path, interface, member, arguments).await
                }
                None => caller.call_method(Some(BUS_NAME), path, interface, member, &()).await,
            }
        };
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(_) | Err(zbus::Error::MethodError(..) | zbus::Error::FDO(_))) => {}
            other => panic!("{member} {arguments:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn p11_whatever_is_called_with_whatever_the_helper_lives_and_opens_nothing() {
    let lab = Lab::start().await;
    lab.polkit.answers(Mood::No);
    let caller = lab.client().await;
    calls_everything(&caller.connection).await;
    assert!(!lab.helper.task.is_finished());
    assert!(lab.helper.world().is_clean());
    assert_eq!(caller.proxy.list().await.unwrap(), []);
    // It works as ever.
    lab.polkit.answers(Mood::Yes);
    let (_, sockets, _) = lab.client().await.open("eth0").await.unwrap();
    assert_eq!(sockets.len(), 4);
}

#[tokio::test]
async fn p11_whatever_is_called_with_whatever_the_process_keeps_neither_memory_nor_descriptors() {
    let Some(_machine) = machine_with_user() else {
        return;
    };
    sh(NIXOS);
    let before = sh("nft -s -a list ruleset");
    let bus = Bus::start_for(UID);
    let polkit = Polkit::start(&bus).await;
    polkit.answers(Mood::No);
    let process = Process::start(&bus.address, &[]);
    appears(&bus).await;
    let client = Client::new(&bus).await;
    // Somebody else uses it all the time, or it would leave when the calls are slow: it counts as
    // unused by what is no call of a method.
    let other = Client::new(&bus).await;
    let used = tokio::spawn(async move {
        loop {
            other.proxy.list().await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let kibibytes = || process.status("VmRSS").split(' ').next().unwrap().parse::<usize>().unwrap();
    calls_everything(&client.connection).await;
    let (warm, descriptors) = (kibibytes(), process.descriptors());
    calls_everything(&client.connection).await;
    // Much more than that went through it.
    let grown = kibibytes().saturating_sub(warm);
    assert!(grown < 16 * 1024, "{warm} KiB, and {grown} KiB more");
    let same = || process.descriptors() <= descriptors;
    until("descriptors that were sent are closed", same).await;
    assert_eq!(sh("nft -s -a list ruleset"), before);
    assert!(!used.is_finished());
    used.abort();
}
