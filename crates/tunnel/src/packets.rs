//! Packets for tests.

use std::net::SocketAddr;

use netyard_wire::build::{self, TcpFrame};
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{Checksum, Gso, GsoKind, MacAddr, Offload, SeqNumber, ethernet};

/// A TCP packet with so many bytes of payload, cut to `mss` bytes.
pub(crate) fn tcp([from, to]: [&str; 2], flags: Flags, len: usize, mss: u16) -> (Vec<u8>, Offload) {
    let (source, destination): (SocketAddr, SocketAddr) =
        (from.parse().unwrap(), to.parse().unwrap());
    let frame = TcpFrame {
        source_mac: MacAddr([0; 6]),
        destination_mac: MacAddr([0; 6]),
        source,
        destination,
        seq: SeqNumber(1),
        ack: SeqNumber(0),
        flags,
        window: 9,
        options: TcpOptions { mss: Some(1460), ..TcpOptions::default() },
        hop_limit: 64,
        traffic_class: 0,
        ip_id: 65_535,
    };
    let mut bytes = vec![0; frame.header_len()];
    bytes.extend((0..len).map(|at| (at % 251) as u8));
    bare(frame.emit(&mut bytes, mss), bytes)
}

/// A UDP packet with so many bytes of payload, cut to `size` bytes.
pub(crate) fn udp([from, to]: [&str; 2], len: usize, size: u16) -> (Vec<u8>, Offload) {
    let (source, destination): (SocketAddr, SocketAddr) =
        (from.parse().unwrap(), to.parse().unwrap());
    let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    let mut bytes = Vec::new();
    let nobody = MacAddr([0; 6]);
    let offload = build::udp_frame(&mut bytes, nobody, nobody, source, destination, 64, &payload);
    let gso = Gso { kind: GsoKind::Udp, size, header_len: 0, ecn: false };
    bare(Offload { gso: (len > size.into()).then_some(gso), ..offload }, bytes)
}

/// Without the Ethernet header.
fn bare(offload: Offload, mut bytes: Vec<u8>) -> (Vec<u8>, Offload) {
    bytes.drain(..ethernet::HEADER_LEN);
    let mut offload = offload;
    // Places count from the packet now.
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        *start -= u16::try_from(ethernet::HEADER_LEN).unwrap();
    }
    let (offload, _) = Offload::parse_packet(&offload.encode(), &bytes).unwrap();
    (bytes, offload)
}
