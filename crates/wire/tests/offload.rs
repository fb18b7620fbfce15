//! Virtio-net headers: golden bytes, round trips, and every lie refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::net::SocketAddr;

use netyard_wire::build::{self, TcpFrame};
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{
    Checksum, Features, Frame, FrameBuf, Gso, GsoKind, MAX_FRAME_LEN, MacAddr, Offload,
    OffloadError, SeqNumber, VNET_HEADER_LEN,
};

const V4: &str = "10.0.0.1:1000";
const V6: &str = "[fd00::1]:1000";

fn tcp(address: &str, flags: Flags, payload: usize) -> FrameBuf {
    let address: SocketAddr = address.parse().unwrap();
    let headers = TcpFrame {
        source_mac: MacAddr([2; 6]),
        destination_mac: MacAddr([6; 6]),
        source: address,
        destination: address,
        seq: SeqNumber(0),
        ack: SeqNumber(0),
        flags,
        window: 1,
        options: TcpOptions { timestamps: Some((1, 2)), ..TcpOptions::default() },
        hop_limit: 64,
        traffic_class: 0,
        ip_id: 0,
    };
    let mut bytes = vec![0; headers.header_len() + payload];
    let offload = headers.emit(&mut bytes, 1448);
    FrameBuf { bytes, offload }
}

fn udp(address: &str, payload: usize, size: u16) -> FrameBuf {
    let address: SocketAddr = address.parse().unwrap();
    let mut bytes = Vec::new();
    let mac = MacAddr([2; 6]);
    let offload = build::udp_frame(&mut bytes, mac, mac, address, address, 64, &vec![0; payload]);
    let header_len = if address.is_ipv4() { 42 } else { 62 };
    let gso = Some(Gso { kind: GsoKind::Udp, size, header_len, ecn: false });
    FrameBuf { bytes, offload: Offload { gso, ..offload } }
}

#[test]
fn headers_have_these_bytes() {
    assert_eq!(Offload::default().encode(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    let valid = Offload { checksum: Checksum::Valid, gso: None };
    assert_eq!(valid.encode(), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    let frame = tcp(V4, Flags::ACK | Flags::CWR, 3000);
    assert_eq!(frame.offload.encode(), [1, 0x81, 66, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0]);
    let frame = tcp(V6, Flags::ACK, 3000);
    assert_eq!(frame.offload.encode(), [1, 4, 86, 0, 0xa8, 5, 54, 0, 16, 0, 1, 0]);
    let frame = udp(V6, 3000, 0x1234);
    assert_eq!(frame.offload.encode(), [1, 5, 62, 0, 0x34, 0x12, 54, 0, 6, 0, 1, 0]);
}

#[test]
fn what_is_encoded_reads_back() {
    let frames = [
        tcp(V4, Flags::ACK, 0),
        tcp(V4, Flags::ACK, 60_000),
        tcp(V6, Flags::ACK | Flags::CWR, 60_000),
        udp(V4, 60_000, 1200),
        udp(V6, 1, 1),
        FrameBuf { bytes: vec![0; 60], offload: Offload::default() },
        FrameBuf { bytes: vec![0; 60], offload: Offload { checksum: Checksum::Valid, gso: None } },
    ];
    for frame in frames {
        assert_eq!(Offload::parse(&frame.offload.encode(), &frame.bytes), Ok(frame.offload));
        assert_eq!(FrameBuf::from(frame.as_frame()), frame);
    }
}

#[test]
fn header_lengths_are_measured_not_believed() {
    let frame = tcp(V4, Flags::ACK, 3000);
    for told in [0, 1, 66, 200, 3066] {
        let mut header = frame.offload.encode();
        header[2..4].copy_from_slice(&u16::to_le_bytes(told));
        assert_eq!(Offload::parse(&header, &frame.bytes), Ok(frame.offload));
    }
    let mut header = frame.offload.encode();
    header[2..4].copy_from_slice(&3067u16.to_le_bytes());
    assert_eq!(Offload::parse(&header, &frame.bytes), Err(OffloadError::GsoHeaderLength));
}

/// What becomes of a true header in which one 16-bit field (or byte, for the first two) is changed.
fn lie(frame: Frame<'_>, at: usize, value: u16) -> Result<Offload, OffloadError> {
    let mut header: [u8; VNET_HEADER_LEN] = frame.offload.encode();
    let [low, high] = value.to_le_bytes();
    header[at] = low;
    if at >= 2 {
        header[at + 1] = high;
    }
    Offload::parse(&header, frame.bytes)
}

#[test]
fn headers_that_lie_are_refused() {
    let (flags, kind, size, start, offset) = (0, 1, 4, 6, 8);
    let tcp4 = tcp(V4, Flags::ACK, 3000);
    let tcp4 = tcp4.as_frame();
    let len = u16::try_from(tcp4.bytes.len()).unwrap();
    assert_eq!(lie(tcp4, flags, 0x81), Err(OffloadError::Flags(0x81)));
    assert_eq!(lie(tcp4, flags, 4), Err(OffloadError::Flags(4)));
    assert_eq!(lie(tcp4, flags, 0), Err(OffloadError::GsoChecksum));
    assert_eq!(lie(tcp4, flags, 2), Err(OffloadError::GsoChecksum));
    assert_eq!(lie(tcp4, flags, 3), Ok(tcp4.offload), "to be completed wins");
    for unknown in [2, 3, 6, 7, 0x80, 0x83, 0x85, 0xff] {
        assert!(matches!(lie(tcp4, kind, unknown), Err(OffloadError::Kind(_))), "{unknown:#x}");
    }
    assert_eq!(lie(tcp4, kind, 4), Err(OffloadError::GsoKind), "IPv6");
    assert_eq!(lie(tcp4, kind, 5), Err(OffloadError::GsoKind), "UDP");
    assert_eq!(lie(tcp4, size, 0), Err(OffloadError::GsoSize(0)));
    assert_eq!(lie(tcp4, size, 7), Err(OffloadError::GsoSize(7)));
    assert_eq!(lie(tcp4, start, 13), Err(OffloadError::ChecksumOffset), "in the Ethernet header");
    assert_eq!(lie(tcp4, start, len), Err(OffloadError::ChecksumOffset));
    assert_eq!(lie(tcp4, start, len - 17), Err(OffloadError::ChecksumOffset));
    assert_eq!(lie(tcp4, start, u16::MAX), Err(OffloadError::ChecksumOffset));
    assert_eq!(lie(tcp4, start, 14), Err(OffloadError::GsoChecksum), "in the IP header");
    assert_eq!(lie(tcp4, offset, len), Err(OffloadError::ChecksumOffset));
    assert_eq!(lie(tcp4, offset, u16::MAX), Err(OffloadError::ChecksumOffset));
    assert_eq!(lie(tcp4, offset, 6), Err(OffloadError::GsoChecksum), "not where TCP has it");

    let small = tcp(V4, Flags::ACK, 0);
    let small = small.as_frame();
    let end = u16::try_from(small.bytes.len()).unwrap() - 34;
    assert!(lie(small, offset, end - 2).is_ok(), "the last two bytes");
    assert_eq!(lie(small, offset, end - 1), Err(OffloadError::ChecksumOffset));
    assert_eq!(lie(small, kind, 0x80), Err(OffloadError::Kind(0x80)), "ECN without GSO");

    let datagrams = udp(V4, 1280, 10);
    let datagrams = datagrams.as_frame();
    assert_eq!(lie(datagrams, size, 10), Ok(datagrams.offload));
    assert_eq!(lie(datagrams, size, 9), Err(OffloadError::GsoSize(9)), "more than 128");
    assert_eq!(lie(datagrams, size, 0), Err(OffloadError::GsoSize(0)));
}

#[test]
fn packets_that_cannot_be_cut_are_refused() {
    let parse = |frame: &FrameBuf| {
        Offload::parse(&frame.offload.encode(), &frame.bytes).map_err(|error| error.reason())
    };
    assert_eq!(parse(&tcp(V4, Flags::SYN, 3000)), Err("tcp-gso-flags"));
    assert_eq!(parse(&tcp(V4, Flags::RST | Flags::ACK, 3000)), Err("tcp-gso-flags"));

    let changed = |at: usize, byte: u8| {
        let mut frame = tcp(V6, Flags::ACK, 3000);
        frame.bytes[at] = byte;
        parse(&frame)
    };
    assert_eq!(changed(12, 0x88), Err("ethernet-ethertype"));
    assert_eq!(changed(14, 0x40), Err("ipv6-version"));
    assert_eq!(changed(18, 0xff), Err("ipv6-payload-length"));
    assert_eq!(changed(20, 58), Err("offload-gso-kind"), "ICMPv6");
    assert_eq!(changed(54 + 12, 0x40), Err("tcp-data-offset"));

    let mut datagrams = udp(V4, 3000, 1000);
    datagrams.bytes[34 + 5] ^= 1;
    assert_eq!(parse(&datagrams), Err("udp-length"), "does not cover all datagrams");

    let mut cut_off = tcp(V4, Flags::ACK, 3000);
    cut_off.bytes.truncate(3000);
    assert_eq!(parse(&cut_off), Err("ipv4-total-length"));
    cut_off.bytes.truncate(10);
    assert_eq!(parse(&cut_off), Err("offload-checksum-offset"));
}

#[test]
fn frames_have_a_largest_length() {
    let header = Offload::default().encode();
    assert!(Offload::parse(&header, &vec![0; MAX_FRAME_LEN]).is_ok());
    let error = Offload::parse(&header, &vec![0; MAX_FRAME_LEN + 1]).unwrap_err();
    assert_eq!((error, error.reason()), (OffloadError::TooLong, "offload-too-long"));
}

#[test]
fn features_are_a_set() {
    let some = Features::CSUM | Features::TSO4;
    assert!(some.contains(Features::CSUM) && some.contains(Features::NONE));
    assert!(!some.contains(Features::CSUM | Features::TSO6));
    assert_eq!(Features::from_bits_truncate(some.bits()), some);
    assert_eq!(Features::from_bits_truncate(u32::MAX), Features::ALL);
    assert!(Features::ALL.contains(Features::ECN | Features::USO | Features::TSO6));
    assert_eq!(Features::default(), Features::NONE);
}

#[test]
fn places_move_with_the_packet() {
    for frame in [tcp(V4, Flags::ACK, 3000), tcp(V6, Flags::ACK, 3000), udp(V6, 3000, 1000)] {
        let bare = frame.offload.moved(14, 0).unwrap();
        let (parsed, _) = Offload::parse_packet(&bare.encode(), &frame.bytes[14..]).unwrap();
        assert_eq!(parsed, bare);
        assert_eq!(bare.moved(0, 14), Some(frame.offload));
        assert_eq!(frame.offload.moved(200, 0), None, "they lie before that");
        assert_eq!(frame.offload.moved(0, u16::MAX), None);
    }
    assert_eq!(Offload::default().moved(14, 0), Some(Offload::default()));
}
