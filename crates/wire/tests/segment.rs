//! The segmenter: what comes out is what went in, and no more is done than is needed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on shall fail")]

#[allow(dead_code, reason = "shared with the other tests and the fuzz targets")]
mod checks;

use std::net::SocketAddr;

use netyard_wire::build::{self, TcpFrame};
use netyard_wire::ethernet::Ethernet;
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::{Flags, Segment, TcpOptions};
use netyard_wire::{
    Checksum, Features, Frame, FrameBuf, Gso, GsoKind, MacAddr, Offload, OffloadError, Part,
    SeqNumber, checksum, fit, part,
};
use proptest::prelude::*;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const V4: &str = "10.0.0.1:1000";
const V6: &str = "[fd00::1]:1000";

fn tcp(address: &str, seq: u32, ip_id: u16, flags: Flags, payload: &[u8], mss: u16) -> FrameBuf {
    let address: SocketAddr = address.parse().unwrap();
    let headers = TcpFrame {
        source_mac: MAC,
        destination_mac: MAC,
        source: address,
        destination: address,
        seq: SeqNumber(seq),
        ack: SeqNumber(7),
        flags,
        window: 1,
        options: TcpOptions { timestamps: Some((1, 2)), ..TcpOptions::default() },
        hop_limit: 64,
        traffic_class: 0xb8,
        ip_id,
    };
    let mut bytes = vec![0; headers.header_len()];
    bytes.extend_from_slice(payload);
    let offload = headers.emit(&mut bytes, mss);
    FrameBuf { bytes, offload }
}

fn udp(address: &str, payload: &[u8], size: u16) -> FrameBuf {
    let address: SocketAddr = address.parse().unwrap();
    let mut bytes = Vec::new();
    let offload = build::udp_frame(&mut bytes, MAC, MAC, address, address, 64, payload);
    let header_len = if address.is_ipv4() { 42 } else { 62 };
    let gso = Some(Gso { kind: GsoKind::Udp, size, header_len, ecn: false });
    FrameBuf { bytes, offload: Offload { gso, ..offload } }
}

fn collect(frame: Frame<'_>, takes: Features) -> Vec<FrameBuf> {
    let mut out = Vec::new();
    fit(frame, takes, &mut Vec::new(), &mut |frame| out.push(FrameBuf::from(frame))).unwrap();
    out
}

fn segment(frame: &FrameBuf) -> Segment<'_> {
    let (ethernet, packet) = Ethernet::parse(&frame.bytes).unwrap();
    let ip = IpPacket::parse(ethernet.ethertype, packet).unwrap();
    Segment::parse(&ip, frame.offload.checksum).unwrap()
}

#[test]
fn a_stream_is_cut_across_every_wrap() {
    let payload: Vec<u8> = (0..250).collect();
    let flags = Flags::ACK | Flags::PSH | Flags::FIN | Flags::CWR;
    let whole = tcp(V4, u32::MAX - 99, u16::MAX, flags, &payload, 100);
    let frames = collect(whole.as_frame(), Features::NONE);
    let parts: Vec<Segment<'_>> = frames.iter().map(segment).collect();
    assert_eq!(parts.len(), 3);
    assert_eq!(
        parts.iter().map(|part| part.seq).collect::<Vec<_>>(),
        [SeqNumber(u32::MAX - 99), SeqNumber(0), SeqNumber(100)]
    );
    assert_eq!(
        parts.iter().map(|part| part.flags).collect::<Vec<_>>(),
        [Flags::ACK | Flags::CWR, Flags::ACK, Flags::ACK | Flags::PSH | Flags::FIN]
    );
    assert_eq!(parts.iter().flat_map(|part| part.payload).copied().collect::<Vec<_>>(), payload);
    assert!(parts.iter().all(|part| part.options.timestamps == Some((1, 2))));
    let ids: Vec<&[u8]> = frames.iter().map(|frame| &frame.bytes[18..20]).collect();
    assert_eq!(ids, [[0xff, 0xff], [0, 0], [0, 1]]);
}

#[test]
fn a_part_is_what_its_segments_are_part_of() {
    const ETHERNET: usize = 14;
    let flags = Flags::ACK | Flags::PSH | Flags::CWR;
    let payload: Vec<u8> = (0..=255).cycle().take(950).collect();
    for whole in [
        tcp(V4, u32::MAX - 99, u16::MAX, flags, &payload, 100),
        tcp(V6, 5, 0, flags, &payload, 100),
        udp(V4, &payload, 100),
        udp(V6, &payload, 100),
    ] {
        let frames = collect(whole.as_frame(), Features::CSUM);
        let gso = whole.offload.gso.unwrap();
        let Checksum::Partial { start, .. } = whole.offload.checksum else { panic!("{whole:?}") };
        for (first, end) in [(0, 10), (0, 1), (3, 4), (2, 7), (8, 10), (9, 10), (0, 9)] {
            let (headers, payload) = whole.bytes.split_at(usize::from(gso.header_len));
            let range = first * 100..payload.len().min(end * 100);
            let mut packet = [&headers[ETHERNET..], &payload[range]].concat();
            let wanted = Part {
                transport: start - 14,
                size: 100,
                first: u16::try_from(first).unwrap(),
                last: end == 10,
            };
            let offload = part(&mut packet, wanted).unwrap();
            let (read, _) = Offload::parse_packet(&offload.encode(), &packet).unwrap();
            assert_eq!((read, offload.gso.is_some()), (offload, end - first > 1));
            // As a frame, cut as the whole was.
            let frame = [&headers[..ETHERNET], &packet].concat();
            let checksum = whole.offload.checksum;
            let gso = offload.gso.map(|it| Gso { header_len: gso.header_len, ..it });
            let frame = Frame { bytes: &frame, offload: Offload { checksum, gso } };
            assert_eq!(collect(frame, Features::CSUM), frames[first..end], "{first}..{end}");
        }
    }
}

#[test]
fn a_part_of_no_packet_is_refused() {
    let whole = tcp(V4, 0, 0, Flags::ACK, &[0; 300], 100);
    let wanted = Part { transport: 20, size: 100, first: 0, last: true };
    let packet = &whole.bytes[14..];
    assert!(part(&mut packet.to_vec(), wanted).is_ok());
    for transport in [0, 19, 24, 60, 9999] {
        assert!(part(&mut packet.to_vec(), Part { transport, ..wanted }).is_err(), "{transport}");
    }
    assert!(part(&mut packet.to_vec(), Part { size: 0, ..wanted }).is_err());
    for len in 0..40 {
        assert!(part(&mut packet[..len].to_vec(), wanted).is_err(), "{len}");
    }
    let mut icmp = packet.to_vec();
    icmp[9] = 1;
    assert!(part(&mut icmp, wanted).is_err());
}

#[test]
fn what_fits_goes_through_untouched() {
    let takes = Features::CSUM | Features::TSO6;
    let whole = tcp(V6, 0, 0, Flags::ACK, &[0; 3000], 1000);
    let unchanged = |frame: Frame<'_>, takes| {
        let mut same = 0;
        fit(frame, takes, &mut Vec::new(), &mut |out| {
            same += usize::from(out == frame && std::ptr::eq(out.bytes, frame.bytes));
        })
        .unwrap();
        same == 1
    };
    assert!(unchanged(whole.as_frame(), takes));
    assert!(unchanged(udp(V4, &[0; 3000], 1000).as_frame(), Features::ALL));
    assert!(unchanged(tcp(V4, 0, 0, Flags::ACK, &[0; 900], 1000).as_frame(), Features::CSUM));
    let other = FrameBuf { bytes: vec![1; 20], offload: Offload::default() };
    assert!(unchanged(other.as_frame(), Features::NONE));
}

#[test]
fn each_missing_feature_is_made_up_for_and_no_other() {
    let partial = |frames: &[FrameBuf]| {
        frames.iter().all(|frame| matches!(frame.offload.checksum, Checksum::Partial { .. }))
    };
    let tcp4 = tcp(V4, 0, 0, Flags::ACK, &[0; 3000], 1000);
    let frames = collect(tcp4.as_frame(), Features::CSUM | Features::TSO6 | Features::USO);
    assert!(frames.len() == 3 && partial(&frames), "cut, but checksums left");
    let frames = collect(tcp4.as_frame(), Features::TSO4);
    assert!(frames.len() == 3 && !partial(&frames), "no use without partial checksums");

    let reduced = tcp(V4, 0, 0, Flags::ACK | Flags::CWR, &[0; 3000], 1000);
    assert_eq!(collect(reduced.as_frame(), Features::CSUM | Features::TSO4).len(), 3);
    let takes = Features::CSUM | Features::TSO4 | Features::ECN;
    assert_eq!(collect(reduced.as_frame(), takes).len(), 1);

    let takes = Features::CSUM | Features::TSO4 | Features::TSO6;
    assert_eq!(collect(udp(V6, &[0; 3000], 1000).as_frame(), takes).len(), 3);

    let valid =
        FrameBuf { bytes: vec![1; 60], offload: Offload { checksum: Checksum::Valid, gso: None } };
    assert_eq!(collect(valid.as_frame(), Features::CSUM)[0], valid);
    assert_eq!(collect(valid.as_frame(), Features::NONE)[0].offload, Offload::default());
}

#[test]
fn a_sum_of_zero_is_never_sent() {
    // The last two bytes make the sum of the datagram come out as zero, which means "none".
    let mut whole = udp(V4, &[0; 4], 100);
    whole.offload.gso = None;
    let plain = collect(whole.as_frame(), Features::NONE).remove(0);
    let sum = plain.bytes[40..42].to_vec();
    whole.bytes[44..46].copy_from_slice(&sum);
    let zero = collect(whole.as_frame(), Features::NONE).remove(0);
    assert_eq!(zero.bytes[40..42], [0xff, 0xff]);
    let (ethernet, packet) = Ethernet::parse(&zero.bytes).unwrap();
    let ip = IpPacket::parse(ethernet.ethertype, packet).unwrap();
    assert!(netyard_wire::udp::Datagram::parse(&ip, Checksum::Present).is_ok());
}

#[test]
fn metadata_that_does_not_suit_is_an_error_and_emits_nothing() {
    let refused = |frame: FrameBuf| {
        fit(frame.as_frame(), Features::NONE, &mut Vec::new(), &mut |_| panic!("emitted"))
            .unwrap_err()
    };
    let good = tcp(V4, 0, 0, Flags::ACK, &[0; 3000], 1000);
    let gso = good.offload.gso.unwrap();
    let with = |offload| refused(FrameBuf { offload, ..good.clone() });
    let other = Some(Gso { kind: GsoKind::Udp, ..gso });
    assert_eq!(with(Offload { gso: other, ..good.offload }), OffloadError::GsoKind);
    let zero = Some(Gso { size: 0, ..gso });
    assert_eq!(with(Offload { gso: zero, ..good.offload }), OffloadError::GsoSize(0));
    assert_eq!(with(Offload { gso: Some(gso), ..Offload::default() }), OffloadError::GsoChecksum);
    let checksum = Checksum::Partial { start: 34, offset: 5000 };
    assert_eq!(with(Offload { checksum, gso: None }), OffloadError::ChecksumOffset);
    let checksum = Checksum::Partial { start: 5000, offset: 0 };
    assert_eq!(with(Offload { checksum, gso: None }), OffloadError::ChecksumOffset);
}

/// Puts IP options, or an extension header, between the IP header and what follows it.
fn with_extension(frame: &FrameBuf) -> FrameBuf {
    let mut bytes = frame.bytes.clone();
    let (at, extension): (usize, &[u8]) = if bytes[14] >> 4 == 4 {
        (34, &[148, 4, 0, 0, 1, 1, 1, 0]) // router alert
    } else {
        (54, &[6, 0, 1, 4, 0, 0, 0, 0]) // destination options, then TCP
    };
    bytes.splice(at..at, extension.iter().copied());
    let len = u16::try_from(bytes.len()).unwrap() - 14;
    if at == 34 {
        bytes[14] = 0x47;
        bytes[16..18].copy_from_slice(&len.to_be_bytes());
        bytes[24..26].fill(0);
        let value = checksum::finish(checksum::sum(&bytes[14..42]));
        bytes[24..26].copy_from_slice(&value.to_be_bytes());
    } else {
        bytes[18..20].copy_from_slice(&(len - 40).to_be_bytes());
        bytes[20] = 60;
    }
    let Checksum::Partial { start, offset } = frame.offload.checksum else { panic!("built so") };
    let checksum = Checksum::Partial { start: start + 8, offset };
    let gso = frame.offload.gso.map(|gso| Gso { header_len: gso.header_len + 8, ..gso });
    FrameBuf { bytes, offload: Offload { checksum, gso } }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cut_frames_hold_what_the_whole_held(
        (seq, ip_id, flags) in any::<(u32, u16, u8)>(),
        payload in prop::collection::vec(any::<u8>(), 0..9000),
        size in 8u16..4000,
        features in 0u32..32,
        v4: bool,
    ) {
        let takes = Features::from_bits_truncate(features);
        let address = if v4 { V4 } else { V6 };
        let flags = Flags(flags).without(Flags::SYN | Flags::RST);
        let whole = tcp(address, seq, ip_id, flags, &payload, size);
        checks::fits(whole.as_frame(), takes);
        checks::fits(with_extension(&whole).as_frame(), takes);
        let count = payload.len().div_ceil(usize::from(size));
        if count <= 128 && !payload.is_empty() {
            checks::fits(udp(address, &payload, size).as_frame(), takes);
        }
    }
}

#[test]
fn the_largest_frame_is_cut_into_the_smallest_segments() {
    let whole = tcp(V4, 0, 0, Flags::ACK, &vec![9; 65_535 - 52], 8);
    checks::fits(whole.as_frame(), Features::NONE);
    assert_eq!(collect(whole.as_frame(), Features::NONE).len(), (65_535 - 52usize).div_ceil(8));
}
