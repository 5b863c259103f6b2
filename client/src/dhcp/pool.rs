//! The addresses of one interface's subnet, and who has which.
//!
//! Guarantees: pure; no address is given to two machines at a time, none outside the subnet, and
//! never the subnet's own two, ours, or one that is kept free; at most [`MOST`] records. A machine
//! is known by its hardware address and gets the same address each time as long as there is room:
//! also after a restart, since the search begins at a place that the hardware address decides.
//! Trusts nobody: who claims to be another machine gets that machine's address and no more.
//!
//! The hardware address alone, not the client identifier that RFC 2131 section 4.2 prefers: one
//! machine's ROM, iPXE and system each send another identifier, and copied systems send the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::Ipv4Addr,
};

use crate::wire::dhcp::{CHADDR, Header};

/// Records kept: as many as machines are remembered.
pub const MOST: usize = 4096;
/// How long an offered address is kept for the machine, in milliseconds: EDK2 and ROMs collect
/// offers for up to 32 s.
pub const OFFERED: u64 = 60_000;
/// How long an address is not given that a machine has found to be in use.
pub const DECLINED: u64 = 3_600_000;

/// An interface's IPv4 network with our address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    address: Ipv4Addr,
    mask: u32,
}

/// Why a network has no addresses to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAddresses {
    /// 169.254.0.0/16 (RFC 3927 section 1.6).
    #[error("{0} is a link-local address, and those are not handed out by a DHCP server")]
    LinkLocal(Ipv4Addr),
    /// A mask with holes, or one that leaves no room.
    #[error("the network of {0} has no room for another machine: it must be a /30 or larger")]
    NoRoom(Ipv4Addr),
}

impl Subnet {
    /// # Errors
    /// The network is no place for a DHCP server.
    pub fn new(address: Ipv4Addr, mask: Ipv4Addr) -> Result<Self, NoAddresses> {
        let bits = mask.to_bits();
        if address.is_link_local() {
            return Err(NoAddresses::LinkLocal(address));
        }
        if bits.leading_ones() + bits.trailing_zeros() != u32::BITS || bits.leading_ones() > 30 {
            return Err(NoAddresses::NoRoom(address));
        }
        Ok(Self { address, mask: bits })
    }

    /// Ours.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Option 1.
    #[must_use]
    pub fn mask(&self) -> Ipv4Addr {
        self.mask.into()
    }

    /// Option 28.
    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        (self.network() | !self.mask).into()
    }

    /// Whether it is an address of this network that a machine can have.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let host = address.to_bits() & !self.mask;
        address.to_bits() & self.mask == self.network() && host != 0 && host != !self.mask
    }

    fn network(&self) -> u32 {
        self.address.to_bits() & self.mask
    }

    /// How many addresses machines can have; the first is `network + 1`.
    fn hosts(&self) -> u32 {
        (!self.mask).saturating_sub(1)
    }
}

/// By what a machine is known: type and octets of its hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HardwareAddress {
    /// `htype`.
    pub kind: u8,
    /// `hlen`.
    pub length: u8,
    /// `chaddr`, zero beyond `length`.
    pub octets: [u8; CHADDR],
}

impl HardwareAddress {
    /// Who asks.
    #[must_use]
    pub fn of(header: &Header) -> Self {
        let mut octets = [0; CHADDR];
        for (to, from) in octets.iter_mut().zip(header.hardware_address()) {
            *to = *from;
        }
        Self { kind: header.htype, length: header.hlen, octets }
    }
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// Nobody's: a machine found that another one uses it.
    machine: Option<HardwareAddress>,
    /// Milliseconds of the run. A record that is over still says whose the address was.
    until: u64,
}

/// The address is not this machine's to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken;

/// The addresses.
#[derive(Clone, Debug)]
pub struct Pool {
    subnet: Subnet,
    kept_free: BTreeSet<Ipv4Addr>,
    records: BTreeMap<Ipv4Addr, Record>,
    machines: BTreeMap<HardwareAddress, Ipv4Addr>,
}

impl Pool {
    /// All addresses of the subnet but ours and those of `kept_free`.
    #[must_use]
    pub fn new(subnet: Subnet, kept_free: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        let mut kept_free: BTreeSet<_> =
            kept_free.into_iter().filter(|one| subnet.contains(*one)).collect();
        kept_free.insert(subnet.address);
        Self { subnet, kept_free, records: BTreeMap::new(), machines: BTreeMap::new() }
    }

    /// The subnet.
    #[must_use]
    pub fn subnet(&self) -> &Subnet {
        &self.subnet
    }

    /// How many machines can have an address at a time.
    #[must_use]
    pub fn size(&self) -> usize {
        let hosts = usize::try_from(self.subnet.hosts()).unwrap_or(MOST);
        hosts.saturating_sub(self.kept_free.len()).min(MOST)
    }

    /// The address on record for a machine, whether its time is over or not.
    #[must_use]
    pub fn of(&self, machine: &HardwareAddress) -> Option<Ipv4Addr> {
        self.machines.get(machine).copied()
    }

    /// An address for a machine that asks, kept for it for a while: the one on record, the one that
    /// it wishes, one that nobody had, or the one that has been free for longest. `None`: all taken.
    pub fn offer(
        &mut self,
        now: u64,
        machine: HardwareAddress,
        wish: Option<Ipv4Addr>,
    ) -> Option<Ipv4Addr> {
        let address = self
            .of(&machine)
            .or_else(|| wish.filter(|wish| self.is_free(now, *wish) && self.has_room(*wish)))
            .or_else(|| self.unused(&machine))
            .or_else(|| self.longest_free(now))?;
        let until = self.records.get(&address).filter(|old| old.machine == Some(machine));
        let until = until.map_or(0, |old| old.until).max(now.saturating_add(OFFERED));
        self.put(machine, address, until);
        Some(address)
    }

    /// Gives a machine this address for so many milliseconds, if it is its own or nobody's.
    ///
    /// # Errors
    /// It is another's, or none that is given.
    pub fn take(
        &mut self,
        now: u64,
        machine: HardwareAddress,
        address: Ipv4Addr,
        time: u64,
    ) -> Result<(), Taken> {
        let own = self.of(&machine) == Some(address);
        let free = self.is_free(now, address) && self.has_room(address);
        if !(own || free) {
            return Err(Taken);
        }
        self.put(machine, address, now.saturating_add(time));
        Ok(())
    }

    /// The machine does not need it any more. Still on record as its own.
    pub fn release(&mut self, now: u64, machine: &HardwareAddress, address: Ipv4Addr) {
        if self.of(machine) == Some(address)
            && let Some(record) = self.records.get_mut(&address)
        {
            record.until = record.until.min(now);
        }
    }

    /// The machine found that another one uses its address.
    pub fn decline(&mut self, now: u64, machine: &HardwareAddress, address: Ipv4Addr) {
        if self.of(machine) == Some(address) {
            self.machines.remove(machine);
            let until = now.saturating_add(DECLINED);
            self.records.insert(address, Record { machine: None, until });
        }
    }

    /// Whether nobody has it now.
    fn is_free(&self, now: u64, address: Ipv4Addr) -> bool {
        self.subnet.contains(address)
            && !self.kept_free.contains(&address)
            && self.records.get(&address).is_none_or(|record| record.until <= now)
    }

    /// Whether a record of this address fits in.
    fn has_room(&self, address: Ipv4Addr) -> bool {
        self.records.len() < MOST || self.records.contains_key(&address)
    }

    /// The first address without a record, from the machine's own place on.
    fn unused(&self, machine: &HardwareAddress) -> Option<Ipv4Addr> {
        let hosts = self.subnet.hosts();
        if self.records.len() >= MOST || hosts == 0 {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        machine.hash(&mut hasher);
        let begin = u32::try_from(hasher.finish() % u64::from(hosts)).unwrap_or_default();
        // One step more than what is in the way finds one, if there is one.
        let steps = self.records.len() + self.kept_free.len() + 1;
        let steps = u32::try_from(steps).unwrap_or(u32::MAX).min(hosts);
        (0..steps)
            .map(|step| (u64::from(begin) + u64::from(step)) % u64::from(hosts))
            .filter_map(|place| u32::try_from(place).ok())
            .map(|place| Ipv4Addr::from(self.subnet.network() + 1 + place))
            .find(|address| {
                !self.records.contains_key(address) && !self.kept_free.contains(address)
            })
    }

    fn longest_free(&self, now: u64) -> Option<Ipv4Addr> {
        let over = self.records.iter().filter(|(_, record)| record.until <= now);
        over.min_by_key(|(_, record)| record.until).map(|(address, _)| *address)
    }

    fn put(&mut self, machine: HardwareAddress, address: Ipv4Addr, until: u64) {
        // The machine's former address, and the address's former machine.
        if let Some(former) = self.machines.insert(machine, address)
            && former != address
        {
            self.records.remove(&former);
        }
        let record = Record { machine: Some(machine), until };
        if let Some(Record { machine: Some(former), .. }) = self.records.insert(address, record)
            && former != machine
        {
            self.machines.remove(&former);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    fn subnet(prefix: u32) -> Subnet {
        Subnet::new(OURS, Ipv4Addr::from(u32::MAX << (32 - prefix))).unwrap()
    }

    fn machine(number: u8) -> HardwareAddress {
        let mut octets = [0; CHADDR];
        octets[..6].copy_from_slice(&[2, 0, 0, 0, 0, number]);
        HardwareAddress { kind: 1, length: 6, octets }
    }

    #[test]
    fn networks_without_room_and_link_local_ones_are_refused() {
        let new = |address: &str, mask: &str| {
            Subnet::new(address.parse().unwrap(), mask.parse().unwrap()).map(drop)
        };
        assert_eq!(new("10.77.0.1", "255.255.255.252"), Ok(()));
        for mask in ["255.255.255.254", "255.255.255.255", "255.0.255.0", "0.0.0.255"] {
            assert_eq!(new("10.77.0.1", mask), Err(NoAddresses::NoRoom(OURS)), "{mask}");
        }
        let local = Ipv4Addr::new(169, 254, 3, 4);
        assert_eq!(new("169.254.3.4", "255.255.0.0"), Err(NoAddresses::LinkLocal(local)));
        assert_eq!(subnet(24).broadcast(), Ipv4Addr::new(10, 77, 0, 255));
        assert_eq!(subnet(24).mask(), Ipv4Addr::new(255, 255, 255, 0));
        for (address, inside) in [
            ([10, 77, 0, 0], false),
            ([10, 77, 0, 2], true),
            ([10, 77, 0, 255], false),
            ([10, 77, 1, 2], false),
        ] {
            assert_eq!(subnet(24).contains(address.into()), inside);
        }
    }

    #[test]
    fn a_machine_gets_the_same_address_again_also_from_a_new_pool() {
        let mut pool = Pool::new(subnet(24), []);
        let first = pool.offer(0, machine(1), None).unwrap();
        assert_eq!(pool.take(0, machine(1), first, 1_000), Ok(()));
        for number in 2..100 {
            pool.offer(0, machine(number), None).unwrap();
        }
        assert_eq!(pool.offer(500_000, machine(1), None), Some(first));
        assert_eq!(Pool::new(subnet(24), []).offer(0, machine(1), None), Some(first));
    }

    #[test]
    fn a_cable_of_two_addresses_serves_one_machine_at_a_time() {
        let mut pool = Pool::new(subnet(30), []);
        let only = Ipv4Addr::new(10, 77, 0, 2);
        assert_eq!(pool.size(), 1);
        assert_eq!(pool.offer(0, machine(1), None), Some(only));
        assert_eq!(pool.take(0, machine(1), only, 100_000), Ok(()));
        assert_eq!(pool.offer(99_999, machine(2), None), None);
        assert_eq!(pool.take(99_999, machine(2), only, 1), Err(Taken));
        assert_eq!(pool.offer(100_000, machine(2), None), Some(only));
        assert_eq!(pool.of(&machine(1)), None);
        // Kept for the second machine until its offer is over.
        assert_eq!(pool.take(100_001, machine(1), only, 1), Err(Taken));
    }

    #[test]
    fn a_wish_is_granted_if_it_is_free_and_what_is_kept_free_is_not() {
        let router = Ipv4Addr::new(10, 77, 0, 9);
        let mut pool = Pool::new(subnet(24), [router, Ipv4Addr::new(8, 8, 8, 8)]);
        let wish = Ipv4Addr::new(10, 77, 0, 50);
        assert_eq!(pool.offer(0, machine(1), Some(wish)), Some(wish));
        for other in [wish, router, OURS, Ipv4Addr::new(192, 0, 2, 1)] {
            assert_ne!(pool.offer(0, machine(2), Some(other)), Some(other));
        }
        assert_eq!(pool.size(), 252);
    }

    #[test]
    fn a_released_address_is_free_for_others_when_nothing_else_is_and_a_declined_one_is_not() {
        let mut pool = Pool::new(subnet(30), []);
        let only = pool.offer(0, machine(1), None).unwrap();
        pool.release(1, &machine(2), only);
        assert_eq!(pool.offer(1, machine(2), None), None, "only its own machine releases it");
        pool.release(1, &machine(1), only);
        assert_eq!(pool.offer(1, machine(2), None), Some(only));
        pool.decline(2, &machine(1), only);
        assert_eq!(pool.of(&machine(2)), Some(only), "only its own machine declines it");
        pool.decline(2, &machine(2), only);
        assert_eq!(pool.offer(DECLINED, machine(2), None), None);
        assert_eq!(pool.offer(DECLINED + 2, machine(2), None), Some(only));
    }

    #[test]
    fn records_are_bounded_in_a_large_network() {
        let mut pool = Pool::new(subnet(8), []);
        for number in 0..u32::try_from(MOST).unwrap() + 100 {
            let mut octets = [0; CHADDR];
            octets[..4].copy_from_slice(&number.to_be_bytes());
            let offered = pool.offer(0, HardwareAddress { kind: 1, length: 6, octets }, None);
            assert_eq!(offered.is_some(), usize::try_from(number).unwrap() < MOST);
        }
        assert_eq!((pool.records.len(), pool.machines.len()), (MOST, MOST));
        let wish = Ipv4Addr::new(10, 200, 0, 1);
        assert_eq!(pool.take(OFFERED, machine(1), wish, 1), Err(Taken));
        assert!(pool.offer(OFFERED, machine(1), Some(wish)).is_some());
        assert_eq!(pool.records.len(), MOST);
    }

    proptest! {
        /// Whatever machines do, two never hold one address at a time, and none holds one that is
        /// not to be given.
        #[test]
        fn no_address_is_given_twice(
            prefix in 26..=30_u32,
            steps in proptest::collection::vec((0..5_u8, 0..6_u8, 0..70_u8, 0..90_000_u64), 1..200),
        ) {
            let router = Ipv4Addr::new(10, 77, 0, 2);
            let kept_free = if prefix < 30 { vec![router] } else { vec![] };
            let mut pool = Pool::new(subnet(prefix), kept_free.clone());
            let mut now = 0;
            // Who may use what until when, by what the pool has said.
            let mut held: BTreeMap<Ipv4Addr, (u8, u64)> = BTreeMap::new();
            for (step, who, host, wait) in steps {
                now += wait;
                let address = Ipv4Addr::new(10, 77, 0, host);
                let given = match step {
                    0 | 1 => {
                        let wish = (step == 1).then_some(address);
                        pool.offer(now, machine(who), wish).map(|given| (given, OFFERED))
                    }
                    2 => pool.take(now, machine(who), address, 100_000).ok().map(|()| (address, 100_000)),
                    3 => {
                        pool.release(now, &machine(who), address);
                        held.retain(|held, (whose, _)| *held != address || *whose != who);
                        None
                    }
                    _ => {
                        if pool.of(&machine(who)) == Some(address) {
                            pool.decline(now, &machine(who), address);
                            held.insert(address, (u8::MAX, now + DECLINED));
                        }
                        None
                    }
                };
                if let Some((given, time)) = given {
                    prop_assert!(pool.subnet().contains(given) && given != OURS);
                    prop_assert!(!kept_free.contains(&given));
                    if let Some((whose, until)) = held.get(&given) {
                        prop_assert!(*whose == who || *until <= now, "{} twice", given);
                    }
                    // A machine has one address.
                    held.retain(|_, (whose, _)| *whose != who);
                    held.insert(given, (who, now + time));
                    prop_assert_eq!(pool.of(&machine(who)), Some(given));
                }
                prop_assert!(pool.machines.len() <= pool.records.len());
            }
        }
    }
}
