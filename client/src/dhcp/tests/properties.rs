//! Whatever was asked: silence, or a reply that the helper's guard lets pass.

use super::*;

fn options_strategy() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let code = prop_oneof![
        prop::sample::select(vec![43, 52, 53, 54, 57, 60, 61, 77, 82, 93, 94, 97, 175]),
        any::<u8>()
    ];
    prop::collection::vec((code, prop::collection::vec(any::<u8>(), 0..255)), 0..8)
}

fn port_strategy() -> impl Strategy<Value = Port> {
    let from = (any::<u32>(), prop_oneof![Just(68), Just(4011), any::<u16>()]);
    prop_oneof![
        Just(Port::Dhcp),
        from.prop_map(|(address, port)| Port::BootServer {
            asker: SocketAddrV4::new(address.into(), port)
        }),
    ]
}

/// Whatever was asked: silence, or a reply that the guard lets pass.
fn holds(bytes: &[u8], port: Port, policy: &Policy) -> Result<bool, TestCaseError> {
    let Ok(query) = Query::parse(bytes) else {
        return Ok(false);
    };
    let Decision::Reply { bytes, destination, .. } =
        decide(&query, port, policy, Memory::default(), &only(&Err(NoEfiImage::Kernel)))
    else {
        return Ok(false);
    };
    let source = if port == Port::Dhcp { 67 } else { 4011 };
    prop_assert!(guard_passes(&bytes, source, destination));
    prop_assert!((dhcp_reply::MIN..=dhcp_reply::MAX).contains(&bytes.len()));
    let file = option(&bytes, 67).unwrap();
    let (nul, name) = file.split_last().unwrap();
    prop_assert_eq!(*nul, 0);
    prop_assert_eq!(&bytes[108..108 + name.len()], name);
    prop_assert_eq!(bytes[108 + name.len()], 0);
    Ok(true)
}

proptest! {
    #[test]
    fn random_octets_are_met_with_silence(
        bytes in prop::collection::vec(any::<u8>(), 0..700),
        port in port_strategy(),
    ) {
        prop_assert!(!holds(&bytes, port, &policy())?);
    }

    #[test]
    fn mutated_packets_never_panic_and_never_break_the_guard(
        packet in prop::sample::select(vec![
            include_str!("../testdata/ovmf.hex"),
            include_str!("../testdata/ipxe-rom-bios.hex"),
            include_str!("../testdata/ipxe-snponly-uefi.hex"),
        ]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        port in port_strategy(),
    ) {
        let mut bytes = fixture(packet);
        for (at, octet) in changes {
            let at = at.index(bytes.len());
            bytes[at] = octet;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        holds(&bytes, port, &policy())?;
    }

    #[test]
    fn every_answer_to_a_boot_client_passes_the_guard(
        header in prop::collection::vec(any::<u8>(), 234),
        relayed in any::<bool>(),
        hlen in 6_u8..=16,
        arch in prop::sample::select(vec![0_u8, 7, 9]),
        extra in options_strategy(),
        address in any::<u32>(),
        http_port in any::<u16>(),
        port in port_strategy(),
    ) {
        let kind = if port == Port::Dhcp { DISCOVER } else { REQUEST };
        let arch = [0, arch];
        let mut all: Vec<(u8, &[u8])> = vec![kind, PXE, (93, &arch)];
        // Options that stand twice are joined, and then are something else; what follows a PAD (0) is read
        // as options, these among them.
        let rest = extra.iter().filter(|(code, _)| ![0, 52, 53, 60, 93, 97].contains(code));
        all.extend(rest.map(|(code, data)| (*code, data.as_slice())));
        let mut bytes = message(&all);
        bytes[2..236].copy_from_slice(&header);
        bytes[2] = hlen;
        if !relayed {
            bytes[24..28].fill(0);
        }
        let policy = Policy { address: address.into(), http_port, ..policy() };
        let answered = holds(&bytes, port, &policy)?;
        // An END among the random options can hide what follows, nothing before.
        prop_assert!(answered || relayed || port != Port::Dhcp);
    }
}
