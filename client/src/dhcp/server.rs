//! A DHCP server for one interface (RFC 2131 section 4.3): a client's message, the time and the
//! addresses -> what it is given, or silence.
//!
//! Guarantees: pure; as soon as another DHCP server is heard of, nothing is given any more; a refusal
//! (DHCPNAK) goes only to who asks us by name, or asks for an address when we gave it another one; what
//! is sent passes the helper's output guard. Whether an address is in use by a machine that did not ask is not
//! known: no ordinary user can ask by ARP. Machines that look and decline get another address.

use std::net::{Ipv4Addr, SocketAddrV4};

use portcullis_dbus::DHCP_PORT;

use super::{
    ask::Ask,
    decide::CLIENT_PORT,
    pool::{HardwareAddress, Pool, Taken},
};
use crate::wire::{
    dhcp::{Header, Message, message_type, option},
    dhcp_reply::{Boot, BootFileTooLong, Kind, Lease, Reply},
};

/// Seconds for which an address is given: long enough for an installation that cannot renew when
/// this program has ended, short enough that the network's own server soon has its machines back.
pub const LEASE: u32 = 3600;

/// The server that sent a datagram, if it is the answer of a DHCP server.
#[must_use]
pub fn answering_server(datagram: &[u8]) -> Option<Ipv4Addr> {
    let message = Message::parse_reply(datagram).ok()?;
    let gives = matches!(
        message.message_type(),
        Some(message_type::OFFER | message_type::ACK | message_type::NAK)
    );
    message.address(option::SERVER_ID).filter(|_| gives)
}

/// What is told beside addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Option 3, if there is a router.
    pub router: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
}

/// What follows from a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer so.
    Answer(Answer),
    /// Every address is taken.
    Exhausted,
    /// Another DHCP server was heard of just now.
    Rival(Ipv4Addr),
    /// Not for us to answer.
    Silence,
}

/// An answer, to which boot data may be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// OFFER, ACK or NAK.
    pub kind: Kind,
    /// What is given; nothing by a NAK.
    pub lease: Option<Lease>,
    /// Where to, from port 67.
    pub destination: SocketAddrV4,
}

impl Answer {
    /// The datagram's payload.
    ///
    /// # Errors
    /// The run's own values do not fit the message.
    pub fn emit(
        &self,
        ask: &Ask,
        server: Ipv4Addr,
        boot: Option<Boot>,
    ) -> Result<Vec<u8>, BootFileTooLong> {
        let mut header = ask.header;
        if self.kind != Kind::Ack {
            header.ciaddr = Ipv4Addr::UNSPECIFIED;
        }
        if self.kind == Kind::Nak && !header.giaddr.is_unspecified() {
            // The relay is to broadcast it (RFC 2131 section 4.3.2).
            header.flags[0] |= 0x80;
        }
        let reply = Reply {
            kind: self.kind,
            header,
            server,
            lease: self.lease.clone(),
            machine_id: ask.machine_id.clone().filter(|_| boot.is_some()),
            boot,
            client_id: ask.client_id.clone(),
            relay: ask.relay.clone(),
        };
        reply.emit()
    }
}

/// The server.
#[derive(Clone, Debug)]
pub struct Server {
    pool: Pool,
    settings: Settings,
    rival: Option<Ipv4Addr>,
}

impl Server {
    /// A server that has given nothing yet.
    #[must_use]
    pub fn new(pool: Pool, settings: Settings) -> Self {
        Self { pool, settings, rival: None }
    }

    /// Ours.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.pool.subnet().address()
    }

    /// How many machines can have an address at a time.
    #[must_use]
    pub fn size(&self) -> usize {
        self.pool.size()
    }

    /// The other server that was heard of, after which nothing is given.
    #[must_use]
    pub fn rival(&self) -> Option<Ipv4Addr> {
        self.rival
    }

    /// Another server was seen to answer. Returns whether that is news.
    pub fn rival_answers(&mut self, server: Ipv4Addr) -> bool {
        let news = self.rival.is_none() && server != self.address() && !server.is_unspecified();
        if news {
            self.rival = Some(server);
        }
        news
    }

    /// A message has come, `now` milliseconds into the run.
    pub fn hear(&mut self, now: u64, ask: &Ask) -> Verdict {
        use message_type::{DECLINE, DISCOVER, INFORM, RELEASE, REQUEST};
        let ours = self.address();
        let Header { ciaddr, giaddr, .. } = ask.header;
        let known = matches!(ask.message_type, DECLINE | DISCOVER | INFORM | RELEASE | REQUEST);
        // Our own question for other servers comes back to us, for it is a broadcast.
        if self.rival.is_some() || !known || giaddr == ours {
            return Verdict::Silence;
        }
        if let Some(server) = ask.server_id.filter(|server| self.rival_answers(*server)) {
            return Verdict::Rival(server);
        }
        // A relay in another network asks for addresses that are not ours to give.
        if !giaddr.is_unspecified() && !self.pool.subnet().contains(giaddr) {
            return Verdict::Silence;
        }
        let machine = HardwareAddress::of(&ask.header);
        match ask.message_type {
            DISCOVER => match self.pool.offer(now, machine, ask.requested) {
                Some(address) => self.give(ask, Kind::Offer, address),
                None => Verdict::Exhausted,
            },
            REQUEST => self.request(now, ask, machine),
            INFORM if self.pool.subnet().contains(ciaddr) && ciaddr != ours => {
                let lease = Lease { seconds: None, ..self.lease(Ipv4Addr::UNSPECIFIED) };
                self.answer(ask, Kind::Ack, Some(lease))
            }
            DECLINE => {
                if let Some(address) = ask.requested {
                    self.pool.decline(now, &machine, address);
                }
                Verdict::Silence
            }
            RELEASE => {
                self.pool.release(now, &machine, ciaddr);
                Verdict::Silence
            }
            _ => Verdict::Silence,
        }
    }

    /// RFC 2131 section 4.3.2; the states are told apart by table 4.
    fn request(&mut self, now: u64, ask: &Ask, machine: HardwareAddress) -> Verdict {
        let holds = Some(ask.header.ciaddr).filter(|address| !address.is_unspecified());
        let Some(wanted) = ask.requested.or(holds) else {
            return Verdict::Silence;
        };
        let of_ours = ask.server_id.is_some();
        let on_record = self.pool.of(&machine);
        // Restarting, and nothing is known of it: to be silent is a MUST. Renewing is not like it:
        // an earlier run of ours gave the address, which is free.
        if !of_ours && on_record.is_none() && holds.is_none() {
            return Verdict::Silence;
        }
        // Answered by a change of address is only who asked us for an offer.
        let another = on_record.is_some_and(|address| address != wanted);
        let taken = match another && !of_ours {
            true => Err(Taken),
            false => self.pool.take(now, machine, wanted, u64::from(LEASE) * 1000),
        };
        match taken {
            Ok(()) => self.give(ask, Kind::Ack, wanted),
            Err(Taken) if of_ours || on_record.is_some() => self.answer(ask, Kind::Nak, None),
            Err(Taken) => Verdict::Silence,
        }
    }

    fn give(&self, ask: &Ask, kind: Kind, address: Ipv4Addr) -> Verdict {
        self.answer(ask, kind, Some(self.lease(address)))
    }

    fn lease(&self, address: Ipv4Addr) -> Lease {
        let subnet = self.pool.subnet();
        Lease {
            address,
            seconds: Some(LEASE),
            mask: subnet.mask(),
            broadcast: subnet.broadcast(),
            router: self.settings.router,
            dns: self.settings.dns.clone(),
        }
    }

    /// RFC 2131 section 4.1. A machine without an address is answered by broadcast whatever it asks
    /// for: no ordinary user can send to a hardware address.
    fn answer(&self, ask: &Ask, kind: Kind, lease: Option<Lease>) -> Verdict {
        let Header { ciaddr, giaddr, .. } = ask.header;
        let destination = match kind {
            _ if !giaddr.is_unspecified() => SocketAddrV4::new(giaddr, DHCP_PORT),
            Kind::Ack if self.pool.subnet().contains(ciaddr) => {
                SocketAddrV4::new(ciaddr, CLIENT_PORT)
            }
            _ => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
        };
        Verdict::Answer(Answer { kind, lease, destination })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dhcp::{pool::Subnet, tests::message_from},
        wire::{
            dhcp::HEADER,
            dhcp_reply::{MAX, MIN, Vendor},
        },
    };

    const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
    const MACHINE: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 9];
    const NEIGHBOUR: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 10];
    const DISCOVER: (u8, &[u8]) = (53, &[1]);
    const REQUEST: (u8, &[u8]) = (53, &[3]);
    const DECLINE: (u8, &[u8]) = (53, &[4]);
    const RELEASE: (u8, &[u8]) = (53, &[7]);
    const INFORM: (u8, &[u8]) = (53, &[8]);
    const SERVER: (u8, &[u8]) = (54, &[10, 77, 0, 1]);
    const FIFTY: [u8; 4] = [10, 77, 0, 50];
    const WISH: (u8, &[u8]) = (50, &FIFTY);
    const EVERYBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::BROADCAST, 68);

    fn server_of(prefix: u32) -> Server {
        let mask = Ipv4Addr::from(u32::MAX << (32 - prefix));
        let pool = Pool::new(Subnet::new(OURS, mask).unwrap(), []);
        Server::new(pool, Settings::default())
    }

    fn fresh() -> Server {
        server_of(24)
    }

    fn ask(mac: [u8; 6], options: &[(u8, &[u8])]) -> Ask {
        Ask::parse(&message_from(mac, options)).unwrap()
    }

    fn from(mac: [u8; 6], ciaddr: [u8; 4], options: &[(u8, &[u8])]) -> Ask {
        let mut ask = ask(mac, options);
        ask.header.ciaddr = ciaddr.into();
        ask
    }

    #[track_caller]
    fn answered(verdict: Verdict) -> Answer {
        match verdict {
            Verdict::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn given(verdict: Verdict, kind: Kind) -> Ipv4Addr {
        let answer = answered(verdict);
        assert_eq!(answer.kind, kind);
        answer.lease.unwrap().address
    }

    /// The machine has 10.77.0.50 of this server.
    fn with_a_lease() -> Server {
        let mut server = fresh();
        server.hear(0, &ask(MACHINE, &[DISCOVER, WISH]));
        let verdict = server.hear(0, &ask(MACHINE, &[REQUEST, WISH, SERVER]));
        assert_eq!(given(verdict, Kind::Ack), Ipv4Addr::from(FIFTY));
        server
    }

    #[test]
    fn an_offer_octet_by_octet() {
        let pool = fresh().pool;
        let dns = vec![Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)];
        let settings = Settings { router: Some(OTHER), dns };
        let mut server = Server::new(pool, settings);
        let ask = ask(MACHINE, &[DISCOVER, WISH, (61, &[1, 2, 3])]);
        let answer = answered(server.hear(0, &ask));
        assert_eq!(answer.destination, EVERYBODY);
        let bytes = answer.emit(&ask, OURS, None).unwrap();
        let mut expected = vec![2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0];
        expected.extend([0, 0, 0, 0, 10, 77, 0, 50, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend(MACHINE);
        expected.resize(236, 0);
        expected.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 2, 54, 4, 10, 77, 0, 1]);
        expected.extend([51, 4, 0, 0, 0x0e, 0x10, 58, 4, 0, 0, 0x07, 0x08]);
        expected.extend([59, 4, 0, 0, 0x0c, 0x4e, 1, 4, 255, 255, 255, 0, 28, 4, 10, 77, 0, 255]);
        expected.extend([3, 4, 10, 77, 0, 254, 6, 8, 9, 9, 9, 9, 1, 1, 1, 1]);
        expected.extend([61, 3, 1, 2, 3, 255]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn an_address_and_what_to_boot_stand_in_one_offer() {
        let ask = ask(MACHINE, &[DISCOVER, WISH, (97, &[0; 17])]);
        let answer = answered(fresh().hear(0, &ask));
        let boot = || Boot {
            vendor_class: "PXEClient",
            vendor: Vendor::TakeThisFile,
            file: "52-54-00-77-00-09/snponly.efi".to_owned(),
        };
        let bytes = answer.emit(&ask, OURS, Some(boot())).unwrap();
        // yiaddr, then siaddr; sname; file.
        assert_eq!(bytes[16..24], [10, 77, 0, 50, 10, 77, 0, 1]);
        assert_eq!(bytes[44..54], *b"10.77.0.1\0");
        assert_eq!(bytes[108..138], *b"52-54-00-77-00-09/snponly.efi\0");
        let options: Vec<_> = crate::wire::dhcp::Options::new(&bytes[HEADER..])
            .map(|(code, data)| (code, data.to_vec()))
            .collect();
        let codes: Vec<u8> = options.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, [53, 54, 51, 58, 59, 1, 28, 60, 43, 67, 97]);
        assert!(options.contains(&(60, b"PXEClient".to_vec())));
        assert!(options.contains(&(43, vec![6, 1, 8, 255])));
        assert!(options.contains(&(67, b"52-54-00-77-00-09/snponly.efi\0".to_vec())));
        // With the longest of everything it still passes the guard, boot data first.
        let mut server = fresh();
        server.settings = Settings { router: Some(OTHER), dns: vec![OTHER; 9] };
        let mut long = ask.clone();
        long.client_id = Some(vec![7; 255]);
        long.relay = Some(vec![8; 255]);
        let answer = answered(server.hear(0, &long));
        let boot = Boot { file: "x".repeat(127), ..boot() };
        let bytes = answer.emit(&long, OURS, Some(boot)).unwrap();
        assert!((MIN..=MAX).contains(&bytes.len()), "{}", bytes.len());
        assert_eq!(bytes[236..243], [0x63, 0x82, 0x53, 0x63, 53, 1, 2]);
        assert_eq!(bytes.last(), Some(&255));
    }

    #[test]
    fn who_selects_our_offer_gets_it_and_another_address_is_refused() {
        let mut server = fresh();
        let offered = given(server.hear(0, &ask(MACHINE, &[DISCOVER])), Kind::Offer).octets();
        let select = ask(MACHINE, &[REQUEST, (50, &offered), SERVER]);
        let verdict = server.hear(1, &select);
        let acknowledged = answered(verdict.clone());
        assert_eq!(acknowledged.destination, EVERYBODY);
        assert_eq!(acknowledged.lease.unwrap().seconds, Some(LEASE));
        assert_eq!(given(verdict, Kind::Ack).octets(), offered);
        // What a neighbour has, what is not in the network, and our own.
        for wanted in [offered, [192, 0, 2, 1], OURS.octets(), [10, 77, 0, 255]] {
            let request = ask(NEIGHBOUR, &[REQUEST, (50, &wanted), SERVER]);
            let refusal = answered(server.hear(2, &request));
            assert_eq!((refusal.kind, &refusal.lease), (Kind::Nak, &None));
            assert_eq!(refusal.destination, EVERYBODY);
            let bytes = refusal.emit(&request, OURS, None).unwrap();
            assert_eq!(bytes[12..28], [0; 16]);
            assert_eq!(bytes[240..250], [53, 1, 6, 54, 4, 10, 77, 0, 1, 255]);
        }
    }

    #[test]
    fn a_machine_that_restarts_is_answered_only_if_it_is_known() {
        let mut server = with_a_lease();
        let restart = ask(MACHINE, &[REQUEST, WISH]);
        assert_eq!(given(server.hear(5, &restart), Kind::Ack), Ipv4Addr::from(FIFTY));
        let elsewhere = ask(MACHINE, &[REQUEST, (50, &[10, 77, 0, 51])]);
        assert_eq!(answered(server.hear(5, &elsewhere)).kind, Kind::Nak);
        for wanted in [FIFTY, [10, 77, 0, 60], [192, 0, 2, 1]] {
            let stranger = ask(NEIGHBOUR, &[REQUEST, (50, &wanted)]);
            assert_eq!(server.hear(5, &stranger), Verdict::Silence, "{wanted:?}");
        }
    }

    #[test]
    fn renewing_and_rebinding_are_answered_to_the_machines_address() {
        let mut server = with_a_lease();
        let renew = from(MACHINE, FIFTY, &[REQUEST]);
        let renewed = answered(server.hear(1_800_000, &renew));
        assert_eq!(renewed.kind, Kind::Ack);
        assert_eq!(renewed.destination, SocketAddrV4::new(FIFTY.into(), 68));
        let bytes = renewed.emit(&renew, OURS, None).unwrap();
        assert_eq!(bytes[12..20], [10, 77, 0, 50, 10, 77, 0, 50]);
        // Longer than the first lease, since it was renewed.
        let neighbour = ask(NEIGHBOUR, &[REQUEST, WISH, SERVER]);
        assert_eq!(answered(server.hear(5_000_000, &neighbour)).kind, Kind::Nak);
        assert_eq!(given(server.hear(5_400_000, &neighbour), Kind::Ack), Ipv4Addr::from(FIFTY));
        // Now it is the neighbour's.
        assert_eq!(server.hear(5_400_001, &renew), Verdict::Silence);
        // Of an earlier run: free, and so given again. Not free, or not ours: silence.
        let mut later = fresh();
        assert_eq!(given(later.hear(0, &renew), Kind::Ack), Ipv4Addr::from(FIFTY));
        assert_eq!(later.hear(0, &from(NEIGHBOUR, FIFTY, &[REQUEST])), Verdict::Silence);
        let foreign = from(NEIGHBOUR, [192, 0, 2, 1], &[REQUEST]);
        assert_eq!(later.hear(0, &foreign), Verdict::Silence);
        // A machine that we gave another address.
        let wrong = from(MACHINE, [10, 77, 0, 51], &[REQUEST]);
        assert_eq!(answered(later.hear(0, &wrong)).kind, Kind::Nak);
        assert_eq!(later.hear(0, &ask(MACHINE, &[REQUEST])), Verdict::Silence);
    }

    #[test]
    fn released_and_declined_addresses() {
        let mut server = with_a_lease();
        server.hear(1, &from(MACHINE, FIFTY, &[RELEASE, SERVER]));
        let taker = ask(NEIGHBOUR, &[DISCOVER, WISH]);
        assert_eq!(given(server.hear(2, &taker), Kind::Offer), Ipv4Addr::from(FIFTY));
        assert_eq!(server.hear(3, &ask(NEIGHBOUR, &[DECLINE, WISH, SERVER])), Verdict::Silence);
        for mac in [MACHINE, NEIGHBOUR] {
            let offered = given(server.hear(4, &ask(mac, &[DISCOVER, WISH])), Kind::Offer);
            assert_ne!(offered, Ipv4Addr::from(FIFTY), "somebody uses it");
        }
    }

    #[test]
    fn who_has_an_address_is_told_the_rest_and_nothing_of_a_lease() {
        let mut server = fresh();
        let inform = from(MACHINE, FIFTY, &[INFORM]);
        let told = answered(server.hear(0, &inform));
        assert_eq!(told.destination, SocketAddrV4::new(FIFTY.into(), 68));
        let bytes = told.emit(&inform, OURS, None).unwrap();
        assert_eq!(bytes[16..20], [0; 4]);
        assert_eq!(bytes[240..249], [53, 1, 5, 54, 4, 10, 77, 0, 1]);
        assert_eq!(bytes[249..262], [1, 4, 255, 255, 255, 0, 28, 4, 10, 77, 0, 255, 255]);
        for address in [[0; 4], [192, 0, 2, 1], OURS.octets()] {
            assert_eq!(server.hear(0, &from(MACHINE, address, &[INFORM])), Verdict::Silence);
        }
    }

    #[test]
    fn when_another_server_is_heard_of_nothing_is_given_any_more() {
        let theirs: (u8, &[u8]) = (54, &[10, 77, 0, 254]);
        let mut server = with_a_lease();
        let chosen = ask(NEIGHBOUR, &[REQUEST, WISH, theirs]);
        assert_eq!(server.hear(0, &chosen), Verdict::Rival(OTHER));
        assert_eq!(server.rival(), Some(OTHER));
        for silent in [&chosen, &ask(MACHINE, &[DISCOVER]), &from(MACHINE, FIFTY, &[REQUEST])] {
            assert_eq!(server.hear(1, silent), Verdict::Silence);
        }
        // By its answer: told once.
        let mut server = fresh();
        let mut offer = message_from(MACHINE, &[(53, &[2]), theirs]);
        assert_eq!(answering_server(&offer), None, "op 1 is no answer");
        offer[0] = 2;
        assert_eq!(answering_server(&offer), Some(OTHER));
        assert!(server.rival_answers(OTHER) && !server.rival_answers(OTHER));
        let mut server = fresh();
        assert!(!server.rival_answers(OURS) && !server.rival_answers(Ipv4Addr::UNSPECIFIED));
        assert_eq!(server.rival(), None);
        let mut discover = message_from(MACHINE, &[(53, &[1]), theirs]);
        discover[0] = 2;
        assert_eq!(answering_server(&discover), None);
    }

    #[test]
    fn relays_of_this_network_are_answered_and_others_and_our_own_question_are_not() {
        let relayed = |giaddr: [u8; 4]| {
            let mut ask = ask(MACHINE, &[DISCOVER]);
            ask.header.giaddr = giaddr.into();
            ask
        };
        let mut server = fresh();
        let answer = answered(server.hear(0, &relayed([10, 77, 0, 9])));
        assert_eq!(answer.destination, SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 9), 67));
        for giaddr in [[192, 0, 2, 1], OURS.octets()] {
            assert_eq!(server.hear(0, &relayed(giaddr)), Verdict::Silence);
        }
        let mut refused = relayed([10, 77, 0, 9]);
        (refused.message_type, refused.server_id) = (3, Some(OURS));
        refused.requested = Some(Ipv4Addr::new(192, 0, 2, 1));
        let refusal = answered(server.hear(0, &refused));
        assert_eq!(refusal.emit(&refused, OURS, None).unwrap()[10], 0x80);
    }

    #[test]
    fn when_all_are_taken_that_is_said() {
        let mut server = server_of(30);
        given(server.hear(0, &ask(MACHINE, &[DISCOVER])), Kind::Offer);
        assert_eq!(server.hear(0, &ask(NEIGHBOUR, &[DISCOVER])), Verdict::Exhausted);
        // Not a message of a client.
        assert_eq!(server.hear(0, &ask(MACHINE, &[(53, &[2])])), Verdict::Silence);
    }
}
