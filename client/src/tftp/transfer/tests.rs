//! Literal exchanges, and a network that loses, repeats and reorders packets.

use std::{cmp::Reverse, collections::BinaryHeap};

use proptest::prelude::*;

use super::*;
use crate::wire::tftp::data_header;

const MTU: u16 = 1500;
const NOW: Duration = Duration::ZERO;

fn ack(block: u16) -> [u8; 4] {
    let [high, low] = block.to_be_bytes();
    [0, 4, high, low]
}

fn plain(length: u64) -> (Transfer, Action) {
    Transfer::begin(Agreement::new(Options::default(), length, MTU), length, NOW)
}

fn windowed(length: u64, block: u16, window: u16) -> (Transfer, Action) {
    let asked = Options { block: Some(block), window: Some(window), ..Options::default() };
    Transfer::begin(Agreement::new(asked, length, MTU), length, NOW)
}

fn window(first: u64, count: u16) -> Action {
    Action::Window { first, count }
}

#[test]
fn wire_45_only_what_was_asked_is_granted() {
    let all = Options { block: Some(1468), timeout: Some(7), size: true, window: Some(4) };
    let agreement = Agreement::new(all, 5_000_000_000, MTU);
    assert_eq!(
        agreement.oack.as_deref(),
        Some(&b"\0\x06blksize\x001468\0timeout\x007\0tsize\x005000000000\0windowsize\x004\0"[..])
    );
    let size = Options { size: true, ..Options::default() };
    let agreement = Agreement::new(size, 3, MTU);
    assert_eq!(agreement.oack.as_deref(), Some(&b"\0\x06tsize\x003\0"[..]));
    assert_eq!((agreement.block, agreement.window), (512, 1));
}

#[test]
fn wire_46_blocks_fit_the_mtu_and_windows_are_bounded() {
    for (asked, mtu, granted) in [
        (8, 1500, 8),
        (1468, 1500, 1468),
        (1469, 1500, 1468),
        (65464, 1500, 1468),
        (8968, 9000, 8968),
        (1468, 1400, 1368),
        (65535, 65535, 65464),
        // An MTU that IPv4 hosts need not even have.
        (1468, 100, 512),
        (256, 100, 256),
    ] {
        let options = Options { block: Some(asked), ..Options::default() };
        let block = Agreement::new(options, 1, mtu).block;
        assert_eq!(block, granted, "{asked} at {mtu}");
    }
    for (asked, block, granted) in [(1, 1468, 1), (4, 1468, 4), (65535, 1468, 64), (64, 65464, 4)] {
        let options = Options { block: Some(block), window: Some(asked), ..Options::default() };
        let agreement = Agreement::new(options, 1, 65535);
        assert_eq!(agreement.window, granted, "{asked} blocks of {block}");
    }
}

#[test]
fn wire_47_no_oack_for_a_plain_request() {
    let (mut transfer, action) = plain(513);
    assert_eq!(action, window(1, 1));
    assert_eq!(transfer.receive(&ack(1), NOW), window(2, 1));
    assert_eq!(transfer.receive(&ack(2), NOW), Action::Done);
    assert_eq!(transfer.octets(), 513);
    assert_eq!(transfer.retransmissions(), 0);
}

#[test]
fn wire_47_a_lost_oack_or_ack_0_is_repaired() {
    let (mut transfer, action) = windowed(100, 8, 4);
    let oack = Action::Oack(b"\0\x06blksize\x008\0windowsize\x004\0".to_vec());
    assert_eq!(action, oack);
    assert_eq!(transfer.deadline(), FIRST_PAUSE);
    assert_eq!(transfer.time_out(FIRST_PAUSE), oack);
    // ACK of a block that was never sent does not start the transfer.
    assert_eq!(transfer.receive(&ack(1), FIRST_PAUSE), Action::Wait);
    assert_eq!(transfer.receive(&ack(0), FIRST_PAUSE), window(1, 4));
    // The reader had answered the second OACK, too.
    assert_eq!(transfer.receive(&ack(0), FIRST_PAUSE), Action::Wait);
}

#[test]
fn wire_48_the_last_block_is_short_or_empty() {
    for (length, last) in [(0, 1), (1, 1), (511, 1), (512, 2), (513, 2), (1024, 3)] {
        let (mut transfer, mut action) = plain(length);
        for block in 1..=last {
            assert_eq!(action, window(block, 1), "{length}");
            action = transfer.receive(&ack(u16::try_from(block).unwrap()), NOW);
        }
        assert_eq!(action, Action::Done, "{length}");
        assert_eq!(transfer.octets(), length);
    }
}

#[test]
fn wire_49_duplicate_and_future_acks_cause_nothing() {
    let (mut transfer, _) = plain(5000);
    assert_eq!(transfer.receive(&ack(1), NOW), window(2, 1));
    assert_eq!(transfer.receive(&ack(1), NOW), Action::Wait);
    assert_eq!(transfer.receive(&ack(1), NOW), Action::Wait);
    assert_eq!(transfer.receive(&ack(0), NOW), Action::Wait);
    assert_eq!(transfer.receive(&ack(3), NOW), Action::Wait);
    assert_eq!(transfer.receive(&ack(65535), NOW), Action::Wait);
    assert_eq!(transfer.receive(&ack(2), NOW), window(3, 1));
}

#[test]
fn wire_49_an_ack_inside_the_window_goes_on_from_there() {
    let (mut transfer, _) = windowed(800, 8, 4);
    assert_eq!(transfer.receive(&ack(0), NOW), window(1, 4));
    assert_eq!(transfer.receive(&ack(4), NOW), window(5, 4));
    assert_eq!(transfer.receive(&ack(6), NOW), window(7, 4));
    assert_eq!(transfer.receive(&ack(6), NOW), Action::Wait);
    assert_eq!(transfer.receive(&ack(10), NOW), window(11, 4));
    assert_eq!(transfer.retransmissions(), 1);
}

#[test]
fn wire_49_a_window_whose_first_block_was_lost_is_sent_again_once() {
    let at = Duration::from_micros;
    let (mut transfer, _) = windowed(8000, 8, 4);
    assert_eq!(transfer.receive(&ack(0), at(2000)), window(1, 4));
    assert_eq!(transfer.receive(&ack(4), at(4000)), window(5, 4));
    // Doubled on the way: it cannot be an answer to what was sent half a millisecond ago.
    assert_eq!(transfer.receive(&ack(4), at(4500)), Action::Wait);
    // The reader saw block 6.
    assert_eq!(transfer.receive(&ack(4), at(6000)), window(5, 4));
    // And block 7.
    assert_eq!(transfer.receive(&ack(4), at(8000)), Action::Wait);
    assert_eq!(transfer.receive(&ack(8), at(9000)), window(9, 4));
    // This may answer the second of two windows 5 to 8.
    assert_eq!(transfer.receive(&ack(8), at(11_000)), Action::Wait);
    assert_eq!(transfer.receive(&ack(12), at(12_000)), window(13, 4));
    assert_eq!(transfer.receive(&ack(12), at(14_000)), window(13, 4));
    assert_eq!(transfer.retransmissions(), 2);
}

#[test]
fn wire_51_pauses_grow_and_are_bounded() {
    let (mut transfer, _) = plain(5000);
    let mut now = NOW;
    let mut pauses = Vec::new();
    let end = loop {
        pauses.push((transfer.deadline() - now).as_secs());
        now = transfer.deadline();
        match transfer.time_out(now) {
            Action::Window { first: 1, count: 1 } => {}
            other => break other,
        }
    };
    assert_eq!(end, Action::GivenUp);
    assert_eq!(pauses[..5], [1, 2, 4, 5, 5]);
    assert!(now >= GIVE_UP && now <= GIVE_UP + MAX_PAUSE, "{now:?}");
}

#[test]
fn wire_51_pauses_follow_the_round_trip_and_the_timeout_option() {
    let (mut transfer, _) = plain(50_000);
    let mut now = NOW;
    for block in 1..20 {
        now += Duration::from_millis(2);
        transfer.receive(&ack(block), now);
    }
    assert_eq!(transfer.deadline() - now, MIN_PAUSE);
    now = transfer.deadline();
    transfer.time_out(now);
    assert_eq!(transfer.deadline() - now, MIN_PAUSE * 2);

    let asked = Options { timeout: Some(2), ..Options::default() };
    let (mut transfer, _) = Transfer::begin(Agreement::new(asked, 1, MTU), 1, NOW);
    for _ in 0..4 {
        transfer.time_out(transfer.deadline());
    }
    let before = transfer.deadline();
    transfer.time_out(before);
    assert_eq!(transfer.deadline() - before, Duration::from_secs(2));
}

#[test]
fn wire_51_an_error_ends_it_at_once() {
    let (mut transfer, _) = windowed(5000, 512, 4);
    let refused = Action::Refused { code: 8, message: b"User aborted".to_vec() };
    assert_eq!(transfer.receive(b"\0\x05\0\x08User aborted\0", NOW), refused);
    assert!(!transfer.under_way());
}

#[test]
fn other_packets_change_nothing() {
    let (mut transfer, _) = plain(5000);
    for datagram in [&b""[..], b"\0\x04\0", b"\0\x01f\0octet\0", b"\0\x03\0\x01x", b"\xff\xff"] {
        assert_eq!(transfer.receive(datagram, NOW), Action::Wait, "{datagram:?}");
    }
    assert_eq!(transfer.receive(&ack(1), NOW), window(2, 1));
}

/// A small deterministic generator, so that a failing case can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// How the network treats packets, each out of a hundred.
#[derive(Clone, Copy, Debug)]
struct Weather {
    lost: u64,
    twice: u64,
    late: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    ToReader(Vec<u8>),
    ToServer(Vec<u8>),
    ReaderTimer,
}

/// A reader after RFC 7440: acknowledges whole windows, and the last good block when one is missing.
struct Reader {
    block: usize,
    window: u64,
    received: Vec<u8>,
    blocks: u64,
    since_ack: u64,
    complete: bool,
}

impl Reader {
    fn receive(&mut self, packet: &[u8]) -> Option<[u8; 4]> {
        let low = u16::try_from(self.blocks % 65536).unwrap();
        if packet.starts_with(&[0, 6]) {
            return (self.blocks == 0).then(|| ack(0));
        }
        if packet[..4] != data_header(self.blocks + 1) || self.complete {
            self.since_ack = 0;
            return Some(ack(low));
        }
        self.received.extend_from_slice(&packet[4..]);
        self.blocks += 1;
        self.since_ack += 1;
        self.complete = packet.len() - 4 < self.block;
        (self.complete || self.since_ack == self.window).then(|| {
            self.since_ack = 0;
            ack(low.wrapping_add(1))
        })
    }
}

/// How long the reader waits before it says again what it has.
const READER_PAUSE: Duration = Duration::from_secs(1);

/// Runs a transfer of `file`; gives what arrived and how many DATA packets were sent for it.
fn simulate(file: &[u8], block: u16, blocks: u16, weather: Weather, seed: u64) -> (Vec<u8>, u64) {
    let length = file.len() as u64;
    let mut dice = Dice(seed | 1);
    let mut queue = BinaryHeap::new();
    let mut order = 0_u64;
    let mut now = NOW;
    let mut sent_data = 0;
    let (mut transfer, mut action) = windowed(length, block, blocks);
    let mut reader = Reader {
        block: block.into(),
        window: blocks.into(),
        received: Vec::new(),
        blocks: 0,
        since_ack: 0,
        complete: false,
    };
    let mut heard = NOW;
    queue.push(Reverse((READER_PAUSE, 0, Event::ReaderTimer)));
    loop {
        let mut out = Vec::new();
        match action {
            Action::Wait => {}
            Action::Oack(packet) => out.push(Event::ToReader(packet)),
            Action::Window { first, count } => {
                for number in (first..).take(count.into()) {
                    let from = (usize::try_from(number).unwrap() - 1) * usize::from(block);
                    let to = file.len().min(from + usize::from(block));
                    let mut packet = data_header(number).to_vec();
                    packet.extend_from_slice(&file[from..to]);
                    out.push(Event::ToReader(packet));
                    sent_data += 1;
                }
            }
            Action::Done => {
                assert_eq!(transfer.octets(), length);
                return (reader.received, sent_data);
            }
            other => panic!("{other:?} at {now:?}"),
        }
        action = Action::Wait;
        let next = queue.peek().map(|Reverse((at, _, _))| *at);
        if out.is_empty() && next.is_none_or(|at| at >= transfer.deadline()) {
            now = transfer.deadline();
            action = transfer.time_out(now);
            continue;
        }
        if out.is_empty() {
            let Some(Reverse((at, _, event))) = queue.pop() else {
                unreachable!();
            };
            now = at;
            match event {
                Event::ToServer(packet) => action = transfer.receive(&packet, now),
                Event::ToReader(packet) => {
                    heard = now;
                    out.extend(reader.receive(&packet).map(|ack| Event::ToServer(ack.into())));
                }
                Event::ReaderTimer => {
                    // A reader repeats its last ACK when nothing comes.
                    if now - heard >= READER_PAUSE {
                        let low = u16::try_from(reader.blocks % 65536).unwrap();
                        out.push(Event::ToServer(ack(low).into()));
                        heard = now;
                    }
                    let again = heard + READER_PAUSE;
                    queue.push(Reverse((again, 0, Event::ReaderTimer)));
                }
            }
        }
        for event in out {
            if dice.roll(100) < weather.lost {
                continue;
            }
            for _ in 0..=u64::from(dice.roll(100) < weather.twice) {
                let mut delay = Duration::from_micros(500);
                if dice.roll(100) < weather.late {
                    delay += Duration::from_micros(dice.roll(400_000));
                }
                order += 1;
                queue.push(Reverse((now + delay, order, event.clone())));
            }
        }
    }
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251).to_le_bytes()[0]).collect()
}

const CALM: Weather = Weather { lost: 0, twice: 0, late: 0 };

#[test]
fn wire_50_the_block_counter_wraps() {
    let file = content(8 * 140_000 + 3);
    for blocks in [1, 64] {
        let (received, sent) = simulate(&file, 8, blocks, CALM, 1);
        assert!(received == file, "window {blocks}");
        assert_eq!(sent, 140_001, "window {blocks}");
    }
    let rough = Weather { lost: 1, twice: 1, late: 0 };
    let (received, _) = simulate(&file, 8, 64, rough, 7);
    assert!(received == file);
}

#[test]
fn wire_49_duplicated_packets_do_not_double_the_traffic() {
    // Every packet arrives twice, both ways: the sorcerer's apprentice would send each block twice.
    let doubled = Weather { twice: 100, ..CALM };
    let file = content(512 * 100);
    let (received, sent) = simulate(&file, 512, 1, doubled, 1);
    assert!(received == file);
    assert_eq!(sent, 101);
}

#[test]
fn wire_49_doubled_acks_of_windows_cause_nothing() {
    let (mut transfer, _) = windowed(8 * 400, 8, 4);
    let mut now = NOW;
    let mut sent = 0;
    for block in (0..=400).step_by(4) {
        now += Duration::from_millis(1);
        if let Action::Window { count, .. } = transfer.receive(&ack(block), now) {
            sent += count;
        }
        assert_eq!(transfer.receive(&ack(block), now), Action::Wait);
    }
    assert_eq!(sent, 401);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_file_arrives_intact_whatever_the_network_does(
        whole in 0_usize..40,
        odd in 0_usize..3,
        block in 8_u16..40,
        blocks in prop_oneof![Just(1_u16), Just(4), 1..=64_u16],
        lost in 0_u64..10,
        twice in 0_u64..30,
        late in 0_u64..30,
        seed: u64,
    ) {
        let file = content((whole * usize::from(block) + odd).saturating_sub(1));
        let (received, _) = simulate(&file, block, blocks, Weather { lost, twice, late }, seed);
        prop_assert!(received == file);
    }

    #[test]
    fn any_datagrams_keep_the_window(
        datagrams in proptest::collection::vec(
            prop_oneof![
                any::<u16>().prop_map(|block| ack(block).to_vec()),
                (0_u16..12).prop_map(|block| ack(block).to_vec()),
                proptest::collection::vec(any::<u8>(), 0..6),
            ], 0..60),
    ) {
        let (mut transfer, _) = windowed(1000, 8, 4);
        for datagram in datagrams {
            let before = transfer.acknowledged;
            if let Action::Window { first, count } = transfer.receive(&datagram, NOW) {
                prop_assert!(first > before || before == 0);
                prop_assert!((1..=4).contains(&count));
                prop_assert!(first + u64::from(count) - 1 <= transfer.last);
            }
        }
    }
}

#[test]
fn a_reader_that_takes_next_to_nothing_in_a_minute_is_given_up() {
    let seconds = Duration::from_secs;
    let (mut transfer, _) = plain(1 << 20);
    for block in 1..=2 {
        let now = seconds(29 * u64::from(block));
        assert_eq!(transfer.receive(&ack(block), now), window(u64::from(block) + 1, 1));
    }
    assert_eq!(transfer.receive(&ack(3), seconds(60)), Action::TooSlow);

    // 32 blocks of 512 octets a minute are enough, minute after minute.
    let (mut transfer, _) = plain(1 << 20);
    for block in 1..=128_u16 {
        let now = seconds(60) * u32::from(block) / 32;
        assert_eq!(transfer.receive(&ack(block), now), window(u64::from(block) + 1, 1), "{block}");
    }
}
