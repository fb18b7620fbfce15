//! What the builders write, the parsers read back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::net::{IpAddr, SocketAddr};

use netyard_wire::arp::{Arp, Operation};
use netyard_wire::build::{self, TcpFrame};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{Icmp, IcmpError, Ndp, Prefix, Resolvers, solicited_node};
use netyard_wire::ip::{self, IpPacket};
use netyard_wire::tcp::{Flags, Segment, TcpOptions};
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, Features, Frame, GsoKind, MacAddr, Offload, SeqNumber, fit};
use proptest::prelude::*;

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);

fn socket_pairs() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = any::<([u8; 4], u16, [u8; 4], u16)>()
        .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
    let v6 = any::<([u8; 16], u16, [u8; 16], u16)>()
        .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
    prop_oneof![v4, v6]
}

fn address_pairs() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    socket_pairs().prop_map(|(a, b)| (a.ip(), b.ip()))
}

fn tcp_options() -> impl Strategy<Value = TcpOptions> {
    let blocks = prop::collection::vec(any::<(u32, u32)>(), 0..=3);
    (
        prop::option::of(any::<u16>()),
        prop::option::of(0..=14u8),
        any::<bool>(),
        prop::option::of(any::<(u32, u32)>()),
        blocks,
    )
        .prop_map(|(mss, window_scale, sack_permitted, timestamps, blocks)| {
            let mut sack = [None; 4];
            // As many as have room behind the other options.
            let other = 4 * usize::from(mss.is_some())
                + 4 * usize::from(window_scale.is_some())
                + 4 * usize::from(sack_permitted)
                + 12 * usize::from(timestamps.is_some());
            let room = (36 - other) / 8;
            for (slot, (left, right)) in sack.iter_mut().zip(blocks).take(room) {
                *slot = Some((SeqNumber(left), SeqNumber(right)));
            }
            TcpOptions { mss, window_scale, sack_permitted, sack, timestamps }
        })
}

prop_compose! {
    fn tcp_headers()(
        (source, destination) in socket_pairs(),
        (seq, ack, window, ip_id) in any::<(u32, u32, u16, u16)>(),
        (flags, hop_limit, traffic_class) in any::<(u8, u8, u8)>(),
        options in tcp_options(),
    ) -> TcpFrame {
        TcpFrame {
            source_mac: A, destination_mac: B, source, destination,
            seq: SeqNumber(seq), ack: SeqNumber(ack), flags: Flags(flags), window, options,
            hop_limit, traffic_class, ip_id,
        }
    }
}

/// The frame with its checksum completed, as a receiver without offloads gets it.
fn complete(bytes: &[u8], offload: Offload) -> Vec<u8> {
    let mut frames = Vec::new();
    let frame = Frame { bytes, offload: Offload { gso: None, ..offload } };
    fit(frame, Features::NONE, &mut Vec::new(), &mut |frame| {
        assert_eq!(frame.offload, Offload::default());
        frames.push(frame.bytes.to_vec());
    })
    .unwrap();
    assert_eq!(frames.len(), 1);
    frames.remove(0)
}

fn ip_of(frame: &[u8]) -> IpPacket<'_> {
    let (ethernet, packet) = Ethernet::parse(frame).unwrap();
    assert_eq!((ethernet.source, ethernet.destination), (A, B));
    IpPacket::parse(ethernet.ethertype, packet).unwrap()
}

proptest! {
    #[test]
    fn tcp(headers in tcp_headers(), payload in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut frame = vec![0; headers.header_len()];
        frame.extend_from_slice(&payload);
        let offload = headers.emit(&mut frame, 1460);
        prop_assert_eq!(offload.gso.is_some(), payload.len() > 1460);
        if let Some(gso) = offload.gso {
            prop_assert_eq!(usize::from(gso.header_len), headers.header_len());
            prop_assert_eq!(gso.size, 1460);
            prop_assert_eq!(gso.ecn, headers.flags.contains(Flags::CWR));
            let kind = if headers.source.is_ipv4() { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
            prop_assert_eq!(gso.kind, kind);
        }
        let frame = complete(&frame, offload);
        let ip = ip_of(&frame);
        prop_assert_eq!(ip.source, headers.source.ip());
        prop_assert_eq!(ip.destination, headers.destination.ip());
        prop_assert_eq!(ip.hop_limit, headers.hop_limit);
        prop_assert_eq!(ip.traffic_class, headers.traffic_class);
        let segment = Segment::parse(&ip, Checksum::Present).unwrap();
        prop_assert_eq!(segment, Segment {
            source_port: headers.source.port(),
            destination_port: headers.destination.port(),
            seq: headers.seq,
            ack: headers.ack,
            flags: headers.flags,
            window: headers.window,
            urgent: 0,
            options: headers.options,
            payload: &payload,
        });
    }

    #[test]
    fn udp(
        (source, destination) in socket_pairs(),
        hop_limit: u8,
        payload in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let mut frame = vec![1, 2, 3];
        let offload = build::udp_frame(&mut frame, A, B, source, destination, hop_limit, &payload);
        let frame = complete(&frame, offload);
        let ip = ip_of(&frame);
        prop_assert_eq!((ip.source, ip.destination), (source.ip(), destination.ip()));
        prop_assert_eq!(ip.hop_limit, hop_limit);
        let datagram = Datagram::parse(&ip, Checksum::Present).unwrap();
        prop_assert_eq!(datagram, Datagram {
            source_port: source.port(),
            destination_port: destination.port(),
            payload: &payload,
        });
    }

    #[test]
    fn icmp(
        (source, destination) in address_pairs(),
        (which, code, id, seq) in any::<(u8, u8, u16, u16)>(),
        data in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let data = data.as_slice();
        let message = match which % 5 {
            0 => Icmp::EchoRequest { id, seq, data },
            1 => Icmp::EchoReply { id, seq, data },
            2 => Icmp::Unreachable { code: if code == 4 { 3 } else { code }, original: data },
            3 => Icmp::PacketTooBig { mtu: u32::from(id), original: data },
            _ => Icmp::TimeExceeded { code, original: data },
        };
        let mut frame = vec![1, 2, 3];
        let offload = build::icmp_frame(&mut frame, A, B, source, destination, 64, &message);
        prop_assert_eq!(offload, Offload::default());
        prop_assert_eq!(Icmp::parse(&ip_of(&frame), Checksum::Present).unwrap(), message);
    }

    #[test]
    fn arp(mac: [u8; 6], ip: [u8; 4], target: [u8; 4], request: bool) {
        let arp = Arp {
            operation: if request { Operation::Request } else { Operation::Reply },
            sender_mac: MacAddr(mac),
            sender_ip: ip.into(),
            target_mac: A,
            target_ip: target.into(),
        };
        let mut frame = vec![1, 2, 3];
        prop_assert_eq!(build::arp_frame(&mut frame, A, B, &arp), Offload::default());
        frame.resize(60, 0); // padded as a switch may
        let (header, packet) = Ethernet::parse(&frame).unwrap();
        prop_assert_eq!(header, Ethernet { source: A, destination: B, ethertype: ethernet::ARP });
        prop_assert_eq!(Arp::parse(packet).unwrap(), arp);
    }
}

#[test]
fn neighbour_discovery() {
    let node = "fe80::1".parse().unwrap();
    let target = "fd00::12:3456".parse().unwrap();
    let prefix = Prefix {
        address: "fd00::".parse().unwrap(),
        len: 64,
        on_link: true,
        autonomous: false,
        valid: u32::MAX,
        preferred: 3600,
    };
    let messages = [
        Ndp::RouterSolicitation { source_mac: Some(A) },
        Ndp::RouterSolicitation { source_mac: None },
        Ndp::RouterAdvertisement {
            hop_limit: 64,
            lifetime: 1800,
            source_mac: Some(B),
            mtu: Some(9000),
            prefix: Some(prefix),
            resolvers: Some(Resolvers {
                addresses: [Some(target), Some("fe80::1".parse().unwrap()), None],
                lifetime: 1200,
            }),
        },
        Ndp::RouterAdvertisement {
            hop_limit: 0,
            lifetime: 0,
            source_mac: None,
            mtu: None,
            prefix: None,
            resolvers: None,
        },
        Ndp::NeighborSolicitation { target, source_mac: Some(A) },
        Ndp::NeighborAdvertisement {
            target,
            target_mac: Some(B),
            router: true,
            solicited: true,
            override_: false,
        },
        Ndp::NeighborAdvertisement {
            target,
            target_mac: None,
            router: false,
            solicited: false,
            override_: true,
        },
    ];
    for message in messages {
        let message = Icmp::Ndp(message);
        let mut frame = Vec::new();
        build::icmp_frame(&mut frame, A, B, node, IpAddr::V6(target), 255, &message);
        assert_eq!(Icmp::parse(&ip_of(&frame), Checksum::Present), Ok(message));

        build::icmp_frame(&mut frame, A, B, node, IpAddr::V6(target), 254, &message);
        let error = Icmp::parse(&ip_of(&frame), Checksum::Present).unwrap_err();
        assert_eq!(error.reason(), "ndp-hop-limit", "has crossed a router");
    }
    assert_eq!(solicited_node(target).to_string(), "ff02::1:ff12:3456");
}

#[test]
fn errors_quote_as_much_as_their_version_allows() {
    let original: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let cases: [(&str, usize, IcmpError, u8); 6] = [
        ("10.0.0.1", 576, IcmpError::PortUnreachable, 3),
        ("10.0.0.1", 576, IcmpError::Prohibited, 13),
        ("10.0.0.1", 576, IcmpError::HostUnreachable, 1),
        ("fd00::1", 1280, IcmpError::PortUnreachable, 4),
        ("fd00::1", 1280, IcmpError::Prohibited, 1),
        ("fd00::1", 1280, IcmpError::NetworkUnreachable, 0),
    ];
    for (address, len, error, wanted) in cases {
        let address: IpAddr = address.parse().unwrap();
        let mut frame = Vec::new();
        build::icmp_error(&mut frame, A, B, address, address, error, &original);
        assert_eq!(frame.len(), ethernet::HEADER_LEN + len);
        let ip = ip_of(&frame);
        let Ok(Icmp::Unreachable { code, original: quote }) = Icmp::parse(&ip, Checksum::Present)
        else {
            panic!("{error:?} about {address} reads back as something else");
        };
        assert_eq!(code, wanted, "{error:?} about {address}");
        assert!(original.starts_with(quote));

        build::icmp_error(&mut frame, A, B, address, address, IcmpError::TooBig(1400), &[1, 2]);
        let parsed = Icmp::parse(&ip_of(&frame), Checksum::Present);
        assert_eq!(parsed, Ok(Icmp::PacketTooBig { mtu: 1400, original: &[1, 2] }));

        build::icmp_error(&mut frame, A, B, address, address, IcmpError::TimeExceeded, &[1, 2]);
        let parsed = Icmp::parse(&ip_of(&frame), Checksum::Present);
        assert_eq!(parsed, Ok(Icmp::TimeExceeded { code: 0, original: &[1, 2] }));
    }
}

#[test]
fn routers_take_a_hop_and_the_header_stays_right() {
    for address in ["10.0.0.1:7", "[fd00::1]:7"] {
        let address: SocketAddr = address.parse().unwrap();
        for hop_limit in [0, 1, 2, 255] {
            let mut bytes = Vec::new();
            build::udp_frame(&mut bytes, A, B, address, address, hop_limit, b"payload");
            let packet = &mut bytes[ethernet::HEADER_LEN..];
            let left = ip::take_hop(packet);
            // Parsing verifies the checksum of an IPv4 header.
            let parsed = IpPacket::parse_bare(packet).unwrap();
            assert_eq!((left, parsed.hop_limit), (hop_limit > 1, hop_limit - u8::from(left)));
        }
    }
    assert!(
        !ip::take_hop(&mut []) && !ip::take_hop(&mut [0x45; 11]) && !ip::take_hop(&mut [0x60; 7])
    );
}

#[test]
fn a_class_is_set_and_the_header_stays_right() {
    for address in ["10.0.0.1:7", "[fd00::1]:7"] {
        let address: SocketAddr = address.parse().unwrap();
        let mut bytes = Vec::new();
        build::udp_frame(&mut bytes, A, B, address, address, 64, b"payload");
        let packet = &mut bytes[ethernet::HEADER_LEN..];
        let plain = packet.to_vec();
        for class in [0xb8, 0x01, 0xff, 0] {
            ip::set_traffic_class(packet, class);
            let parsed = IpPacket::parse_bare(packet).unwrap();
            assert_eq!((parsed.traffic_class, parsed.hop_limit), (class, 64));
            assert_eq!(parsed.identification(), address.is_ipv4().then_some(0));
            assert!(parsed.checksum().is_some());
        }
        assert_eq!(packet, plain);
    }
    for mut none in [vec![], vec![0x45; 11], vec![0x60], vec![0x10; 40]] {
        let before = none.clone();
        ip::set_traffic_class(&mut none, 9);
        assert_eq!(none, before);
    }
}
