//! Frames byte for byte, as an independent implementation of the checksums makes them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use std::net::{IpAddr, SocketAddr};

use netyard_wire::arp::{Arp, Operation};
use netyard_wire::build::{self, TcpFrame};
use netyard_wire::icmp::{Icmp, IcmpError, Ndp};
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{Features, Frame, MacAddr, Offload, SeqNumber, fit};

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The frame as it goes out to a receiver without offloads.
fn hex(bytes: &[u8], offload: Offload) -> String {
    let mut text = String::new();
    fit(Frame { bytes, offload }, Features::NONE, &mut Vec::new(), &mut |frame| {
        text.extend(frame.bytes.iter().map(|byte| format!("{byte:02x}")));
    })
    .unwrap();
    text
}

fn tcp(headers: &TcpFrame, payload: &[u8]) -> String {
    let mut frame = vec![0xee; headers.header_len()];
    frame.extend_from_slice(payload);
    let offload = headers.emit(&mut frame, 1460);
    hex(&frame, offload)
}

#[test]
fn tcp_syn_over_ipv4() {
    let headers = TcpFrame {
        source_mac: A,
        destination_mac: B,
        source: socket("10.0.0.2:40000"),
        destination: socket("10.0.0.3:80"),
        seq: SeqNumber(0xffff_fff0),
        ack: SeqNumber(0),
        flags: Flags::SYN,
        window: 64240,
        options: TcpOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            sack: [None; 4],
            timestamps: Some((1, 0)),
        },
        hop_limit: 64,
        traffic_class: 2,
        ip_id: 0x1234,
    };
    let wanted = [
        "02000000000b02000000000a08004502003c12344000400614820a0000020a00",
        "00039c400050fffffff000000000a002faf09c880000020405b40402080a0000",
        "00010000000001030307",
    ];
    assert_eq!(tcp(&headers, b""), wanted.concat());
}

#[test]
fn tcp_data_over_ipv6() {
    let mut options = TcpOptions { timestamps: Some((1, 2)), ..TcpOptions::default() };
    options.sack[0] = Some((SeqNumber(u32::MAX), SeqNumber(9)));
    let headers = TcpFrame {
        source_mac: A,
        destination_mac: B,
        source: socket("[fd00::2]:40000"),
        destination: socket("[fd00::3]:80"),
        seq: SeqNumber(1),
        ack: SeqNumber(7),
        flags: Flags::ACK | Flags::PSH,
        window: 500,
        options,
        hop_limit: 64,
        traffic_class: 0xab,
        ip_id: 0,
    };
    let wanted = [
        "02000000000b02000000000a86dd6ab0000000310640fd000000000000000000",
        "000000000002fd0000000000000000000000000000039c400050000000010000",
        "0007b01801f4dd9400000101080a00000001000000020101050affffffff0000",
        "0009474554202f",
    ];
    assert_eq!(tcp(&headers, b"GET /"), wanted.concat());
}

#[test]
fn udp() {
    let mut frame = Vec::new();
    let (source, destination) = (socket("10.0.0.2:40000"), socket("10.0.0.3:53"));
    let offload = build::udp_frame(&mut frame, A, B, source, destination, 64, b"hello");
    let wanted = [
        "02000000000b02000000000a08004500002100004000401126c80a0000020a00",
        "00039c400035000d0b8868656c6c6f",
    ];
    assert_eq!(hex(&frame, offload), wanted.concat());

    let (source, destination) = (socket("[fd00::2]:40000"), socket("[fd00::3]:53"));
    let offload = build::udp_frame(&mut frame, A, B, source, destination, 64, b"hello");
    let wanted = [
        "02000000000b02000000000a86dd60000000000d1140fd000000000000000000",
        "000000000002fd0000000000000000000000000000039c400035000d25866865",
        "6c6c6f",
    ];
    assert_eq!(hex(&frame, offload), wanted.concat());
}

#[test]
fn echo() {
    let mut frame = Vec::new();
    let message = Icmp::EchoRequest { id: 1, seq: 2, data: b"ping!" };
    let (source, destination) = (ip("10.0.0.2"), ip("10.0.0.3"));
    let offload = build::icmp_frame(&mut frame, A, B, source, destination, 64, &message);
    let wanted = [
        "02000000000b02000000000a08004500002100004000400126d80a0000020a00",
        "00030800f82b0001000270696e6721",
    ];
    assert_eq!(hex(&frame, offload), wanted.concat());

    let (source, destination) = (ip("fd00::2"), ip("fd00::3"));
    let offload = build::icmp_frame(&mut frame, A, B, source, destination, 64, &message);
    let wanted = [
        "02000000000b02000000000a86dd60000000000d3a40fd000000000000000000",
        "000000000002fd000000000000000000000000000003800085dd000100027069",
        "6e6721",
    ];
    assert_eq!(hex(&frame, offload), wanted.concat());
}

#[test]
fn fragmentation_needed() {
    let mut frame = Vec::new();
    let (source, destination) = (ip("10.0.0.2"), ip("10.0.0.3"));
    let error = IcmpError::TooBig(1400);
    let original = [0x45, 0, 0, 0x14];
    let offload = build::icmp_error(&mut frame, A, B, source, destination, error, &original);
    let wanted = [
        "02000000000b02000000000a08004500002000004000400126d90a0000020a00",
        "00030304b26f0000057845000014",
    ];
    assert_eq!(hex(&frame, offload), wanted.concat());
}

#[test]
fn neighbor_advertisement() {
    let mut frame = Vec::new();
    let message = Icmp::Ndp(Ndp::NeighborAdvertisement {
        target: "fd00::2".parse().unwrap(),
        target_mac: Some(A),
        router: true,
        solicited: true,
        override_: true,
    });
    let (source, destination) = (ip("fd00::2"), ip("fd00::3"));
    let offload = build::icmp_frame(&mut frame, A, B, source, destination, 255, &message);
    let wanted = [
        "02000000000b02000000000a86dd6000000000203afffd000000000000000000",
        "000000000002fd00000000000000000000000000000388009c8fe0000000fd00",
        "0000000000000000000000000002020102000000000a",
    ];
    assert_eq!(hex(&frame, offload), wanted.concat());
}

#[test]
fn arp_reply() {
    let mut frame = Vec::new();
    let arp = Arp {
        operation: Operation::Reply,
        sender_mac: A,
        sender_ip: [10, 0, 0, 2].into(),
        target_mac: B,
        target_ip: [10, 0, 0, 3].into(),
    };
    let offload = build::arp_frame(&mut frame, A, B, &arp);
    let wanted = [
        "02000000000b02000000000a0806000108000604000202000000000a0a000002",
        "02000000000b0a000003",
    ];
    assert_eq!(hex(&frame, offload), wanted.concat());
}

#[test]
fn a_frame_without_room_for_its_headers_is_left_alone() {
    let headers = TcpFrame {
        source_mac: A,
        destination_mac: B,
        source: socket("10.0.0.2:1"),
        destination: socket("10.0.0.3:2"),
        seq: SeqNumber(0),
        ack: SeqNumber(0),
        flags: Flags::RST,
        window: 0,
        options: TcpOptions::default(),
        hop_limit: 64,
        traffic_class: 0,
        ip_id: 0,
    };
    let mut frame = [7; 53];
    assert_eq!(headers.emit(&mut frame, 1460), Offload::default());
    assert_eq!(frame, [7; 53]);
}
