//! Packets that lie: truncated at every byte, every length field wrong, every rule broken. Each is
//! refused, for the right reason.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

use netyard_wire::arp::Arp;
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{self, Icmp};
use netyard_wire::ip::{Fragment, IpPacket};
use netyard_wire::tcp::{Flags, Segment};
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, ParseError, SeqNumber, checksum};

/// 10.0.0.1 to 10.0.0.2, no options.
const IPV4: [u8; 20] = [0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];

/// An IPv4 packet with true lengths and checksum, but for what `lie` does to its header.
fn v4(protocol: u8, options: &[u8], payload: &[u8], lie: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut packet = [&IPV4, options, payload].concat();
    packet[0] = 0x40 | u8::try_from((20 + options.len()) / 4).unwrap();
    let total_len = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&total_len.to_be_bytes());
    packet[9] = protocol;
    lie(&mut packet);
    let header_len = (20 + options.len()).max(usize::from(packet[0] & 0xf) * 4);
    let header_len = header_len.min(packet.len());
    let value = checksum::finish(checksum::sum(&packet[..header_len]));
    packet[10..12].copy_from_slice(&value.to_be_bytes());
    packet
}

/// An IPv6 packet from fd00::1 to fd00::2 with a true length, but for what `lie` does to it.
fn v6(next_header: u8, payload: &[u8], lie: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next_header, 64];
    for last in [1, 2] {
        packet.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    let len = u16::try_from(payload.len()).unwrap();
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet.extend_from_slice(payload);
    lie(&mut packet);
    packet
}

fn honest(_: &mut [u8]) {}

fn parse4(packet: &[u8]) -> Result<IpPacket<'_>, &'static str> {
    IpPacket::parse(ethernet::IPV4, packet).map_err(|error| error.reason())
}

fn parse6(packet: &[u8]) -> Result<IpPacket<'_>, &'static str> {
    IpPacket::parse(ethernet::IPV6, packet).map_err(|error| error.reason())
}

#[test]
fn errors_tell_layer_and_field() {
    let error: ParseError = Ethernet::parse(&[0; 13]).unwrap_err();
    assert_eq!(error.reason(), "ethernet-truncated");
    assert_eq!((error.layer(), error.field()), ("ethernet", "truncated"));
    assert_eq!(error.to_string(), "malformed ethernet packet: truncated");
    let error = IpPacket::parse(ethernet::ARP, &[0; 60]).unwrap_err();
    assert_eq!(error.reason(), "ethernet-ethertype");
}

#[test]
fn ipv4_runts_and_lengths() {
    let packet = v4(17, &[], b"payload", honest);
    for len in 0..20 {
        assert_eq!(parse4(&packet[..len]), Err("ipv4-truncated"));
    }
    for len in 20..packet.len() {
        assert_eq!(parse4(&packet[..len]), Err("ipv4-total-length"));
    }
    let ip = parse4(&packet).unwrap();
    assert_eq!((ip.header.len(), ip.payload), (20, &b"payload"[..]));
    assert_eq!((ip.hop_limit, ip.protocol, ip.fragment), (64, 17, None));

    let padded = [&packet[..], &[0xaa; 30]].concat();
    assert_eq!(parse4(&padded).unwrap().payload, b"payload", "padding is not payload");

    for version in [0, 5, 6, 15] {
        let packet = v4(17, &[], &[], |packet| packet[0] = version << 4 | 5);
        assert_eq!(parse4(&packet), Err("ipv4-version"));
    }
    for ihl in 0..5 {
        let packet = v4(17, &[], &[], |packet| packet[0] = 0x40 | ihl);
        assert_eq!(parse4(&packet), Err("ipv4-header-length"));
    }
    let packet = v4(17, &[], b"payload", |packet| packet[0] = 0x4f);
    assert_eq!(parse4(&packet), Err("ipv4-total-length"), "header longer than the packet");
    for len in 0..20 {
        let packet = v4(17, &[], &[], |packet| packet[3] = len);
        assert_eq!(parse4(&packet), Err("ipv4-total-length"), "shorter than its header");
    }
    let packet = v4(17, &[], &[], |packet| packet[3] = 21);
    assert_eq!(parse4(&packet), Err("ipv4-total-length"), "longer than the frame");
}

#[test]
fn ipv4_checksum() {
    let packet = v4(17, &[], b"payload", honest);
    for at in 0..20 {
        let mut packet = packet.clone();
        packet[at] ^= 0x08;
        assert!(parse4(&packet).is_err(), "byte {at} changed in transit");
    }
    let mut packet = packet;
    packet[8] -= 1;
    assert_eq!(parse4(&packet), Err("ipv4-checksum"));
}

#[test]
fn ipv4_options() {
    let with =
        |options: &[u8]| parse4(&v4(17, options, b"data", honest)).map(|ip| ip.payload.len());
    assert_eq!(with(&[1, 1, 1, 0]), Ok(4));
    assert_eq!(with(&[148, 4, 0, 0]), Ok(4), "router alert");
    assert_eq!(with(&[0, 131, 3, 4]), Ok(4), "nothing counts behind the end");
    assert_eq!(with(&[131, 3, 4, 0]), Err("ipv4-source-route"));
    assert_eq!(with(&[1, 137, 3, 4]), Err("ipv4-source-route"));
    assert_eq!(with(&[7, 0, 0, 0]), Err("ipv4-option-length"));
    assert_eq!(with(&[7, 1, 0, 0]), Err("ipv4-option-length"));
    assert_eq!(with(&[7, 5, 0, 0]), Err("ipv4-option-length"));
    assert_eq!(with(&[1, 1, 1, 7]), Err("ipv4-option-length"));
}

#[test]
fn ipv4_fragments() {
    let fragment = |flags_offset: u16, payload: &[u8]| {
        let packet = v4(17, &[], payload, |packet| {
            packet[6..8].copy_from_slice(&flags_offset.to_be_bytes());
        });
        parse4(&packet).map(|ip| ip.fragment)
    };
    let id = 0x1234;
    assert_eq!(fragment(0x4000, &[0; 3]), Ok(None), "DF is no fragment");
    assert_eq!(fragment(0x2000, &[0; 8]), Ok(Some(Fragment { offset: 0, more: true, id })));
    assert_eq!(fragment(0x0003, &[0; 3]), Ok(Some(Fragment { offset: 24, more: false, id })));
    assert_eq!(fragment(0x2000, &[0; 7]), Err("ipv4-fragment"), "not a multiple of 8");
    assert_eq!(fragment(0x1fff, &[0; 7]), Ok(Some(Fragment { offset: 65_528, more: false, id })));
    assert_eq!(fragment(0x1fff, &[0; 8]), Err("ipv4-fragment"), "past the largest datagram");

    let packet = v4(17, &[], &[0; 8], |packet| packet[6] = 0x20);
    let ip = parse4(&packet).unwrap();
    assert_eq!(Datagram::parse(&ip, Checksum::Present).unwrap_err().reason(), "udp-fragment");
    let packet = v4(6, &[], &[0; 24], |packet| packet[6] = 0x20);
    let ip = parse4(&packet).unwrap();
    assert_eq!(Segment::parse(&ip, Checksum::Present).unwrap_err().reason(), "tcp-fragment");
    let packet = v4(1, &[], &[0; 8], |packet| packet[6] = 0x20);
    let ip = parse4(&packet).unwrap();
    assert_eq!(Icmp::parse(&ip, Checksum::Present).unwrap_err().reason(), "icmp-fragment");
}

#[test]
fn ipv6_runts_and_lengths() {
    let packet = v6(17, b"payload", honest);
    for len in 0..40 {
        assert_eq!(parse6(&packet[..len]), Err("ipv6-truncated"));
    }
    for len in 40..packet.len() {
        assert_eq!(parse6(&packet[..len]), Err("ipv6-payload-length"));
    }
    let padded = [&packet[..], &[0xaa; 30]].concat();
    let ip = parse6(&padded).unwrap();
    assert_eq!((ip.header.len(), ip.payload), (40, &b"payload"[..]));
    assert_eq!(parse6(&v6(17, &[], |packet| packet[0] = 0x45)), Err("ipv6-version"));
    let packet = v6(17, &[], |packet| (packet[0], packet[1]) = (0x6a, 0xbf));
    assert_eq!(parse6(&packet).unwrap().traffic_class, 0xab);
}

#[test]
fn ipv6_extension_headers() {
    let parse = |next_header: u8, payload: &[u8]| {
        parse6(&v6(next_header, payload, honest))
            .map(|ip| (ip.protocol, ip.header.len() - 40, ip.payload.len()))
    };
    let options = [60, 0, 1, 4, 0, 0, 0, 0];
    let to_udp = [17, 0, 1, 4, 0, 0, 0, 0];
    assert_eq!(parse(60, &to_udp), Ok((17, 8, 0)));
    assert_eq!(parse(0, &[&options[..], &to_udp, b"data"].concat()), Ok((17, 16, 4)));
    assert_eq!(parse(59, b"data"), Ok((59, 0, 4)), "no next header");
    assert_eq!(parse(60, &[]), Err("ipv6-extension"), "absent");
    assert_eq!(parse(60, &to_udp[..7]), Err("ipv6-extension"), "cut off");
    assert_eq!(parse(60, &[17, 1, 1, 4, 0, 0, 0, 0]), Err("ipv6-extension"), "too long");
    assert_eq!(parse(60, &[17, 255, 1, 4, 0, 0, 0, 0]), Err("ipv6-extension"), "too long");
    let late = [0, 0, 1, 4, 0, 0, 0, 0];
    assert_eq!(parse(60, &[late, to_udp].concat()), Err("ipv6-extension-order"));
    assert_eq!(parse(60, &[options.repeat(6), to_udp.to_vec()].concat()), Ok((17, 56, 0)));
    assert_eq!(parse(60, &options.repeat(500)), Err("ipv6-extension-count"));
    assert_eq!(parse(43, &[17, 0, 0, 0, 0, 0, 0, 0]), Ok((17, 8, 0)), "route already run through");
    assert_eq!(parse(43, &[17, 0, 0, 1, 0, 0, 0, 0]), Err("ipv6-source-route"));
    assert_eq!(parse(43, &[17, 0, 2, 1, 0, 0, 0, 0]), Err("ipv6-source-route"));
}

#[test]
fn ipv6_fragments() {
    let parse = |header: &[u8], payload: &[u8]| {
        let packet = v6(44, &[header, payload].concat(), honest);
        parse6(&packet).map(|ip| (ip.protocol, ip.fragment))
    };
    let id = 0x0102_0304;
    assert_eq!(parse(&[17, 0, 0, 0, 1, 2, 3, 4], &[0; 3]), Ok((17, None)), "atomic (RFC 6946)");
    let first = Some(Fragment { offset: 0, more: true, id });
    assert_eq!(parse(&[17, 0, 0, 1, 1, 2, 3, 4], &[0; 8]), Ok((17, first)));
    let last = Some(Fragment { offset: 8, more: false, id });
    assert_eq!(parse(&[60, 0, 0, 8, 1, 2, 3, 4], &[0; 3]), Ok((60, last)), "not walked further");
    assert_eq!(parse(&[17, 0, 0, 1, 1, 2, 3, 4], &[0; 7]), Err("ipv6-fragment"));
    assert_eq!(parse(&[17, 0, 0xff, 0xf8, 1, 2, 3, 4], &[0; 8]), Err("ipv6-fragment"));
    assert_eq!(parse(&[17, 0, 0, 1, 1, 2, 3], &[]), Err("ipv6-extension"));
}

/// A segment to port 80 with these options and this payload, of 10.0.0.1 to 10.0.0.2, with its
/// checksum.
fn tcp(options: &[u8], payload: &[u8], lie: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let data_offset = u8::try_from(20 + options.len()).unwrap() << 2;
    let header = [
        0x9c,
        0x40,
        0,
        80,
        0xff,
        0xff,
        0xff,
        0xff,
        0,
        0,
        0,
        7,
        data_offset,
        0x10,
        0x10,
        0,
        0,
        0,
        0,
        0,
    ];
    let mut segment = [&header, options, payload].concat();
    lie(&mut segment);
    let len = u32::try_from(segment.len()).unwrap();
    let pseudo = checksum::pseudo_header([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 6, len);
    let value = checksum::finish(checksum::combine(pseudo, checksum::sum(&segment)));
    if let Some(field) = segment.get_mut(16..18) {
        field.copy_from_slice(&value.to_be_bytes());
    }
    segment
}

fn parse_tcp(segment: &[u8], check: Checksum) -> Result<(usize, Flags, u16), &'static str> {
    let packet = v4(6, &[], segment, honest);
    let ip = parse4(&packet).unwrap();
    Segment::parse(&ip, check)
        .map(|segment| (segment.payload.len(), segment.flags, segment.urgent))
        .map_err(|error| error.reason())
}

#[test]
fn tcp_lengths_and_checksum() {
    let segment = tcp(&[1, 1, 1, 1], b"data", honest);
    for len in 0..20 {
        assert_eq!(parse_tcp(&segment[..len], Checksum::Valid), Err("tcp-truncated"));
    }
    for len in 20..24 {
        assert_eq!(parse_tcp(&segment[..len], Checksum::Valid), Err("tcp-data-offset"));
    }
    for data_offset in 0..5 {
        let segment = tcp(&[], b"data", |segment| segment[12] = data_offset << 4);
        assert_eq!(parse_tcp(&segment, Checksum::Present), Err("tcp-data-offset"));
    }
    let beyond = tcp(&[], b"data", |segment| segment[12] = 0xf0);
    assert_eq!(parse_tcp(&beyond, Checksum::Present), Err("tcp-data-offset"));

    assert_eq!(parse_tcp(&segment, Checksum::Present), Ok((4, Flags::ACK, 0)));
    for at in 0..segment.len() {
        let mut segment = segment.clone();
        segment[at] ^= 0x01;
        assert!(parse_tcp(&segment, Checksum::Present).is_err(), "byte {at} changed in transit");
    }
    let mut segment = segment;
    segment[17] ^= 1;
    assert_eq!(parse_tcp(&segment, Checksum::Present), Err("tcp-checksum"));
    assert!(parse_tcp(&segment, Checksum::Valid).is_ok(), "vouched for");
    assert!(parse_tcp(&segment, Checksum::Partial { start: 34, offset: 16 }).is_ok());
}

#[test]
fn tcp_urgent_pointers_may_lie_and_harm_nobody() {
    let segment = tcp(&[], b"data", |segment| {
        segment[13] = Flags::URG.0;
        segment[18..20].copy_from_slice(&[0xff, 0xff]);
    });
    assert_eq!(parse_tcp(&segment, Checksum::Present), Ok((4, Flags::URG, 0xffff)));
}

#[test]
fn tcp_options() {
    let parse = |options: &[u8]| {
        let packet = v4(6, &[], &tcp(options, b"data", honest), honest);
        let ip = parse4(&packet).unwrap();
        Segment::parse(&ip, Checksum::Present).map(|segment| segment.options)
    };
    let linux_syn = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 15];
    let options = parse(&linux_syn).unwrap();
    assert_eq!(options.mss, Some(1460));
    assert!(options.sack_permitted);
    assert_eq!(options.timestamps, Some((1, 2)));
    assert_eq!(options.window_scale, Some(14), "RFC 7323 section 2.3");

    let sack = parse(&[1, 1, 5, 10, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1]).unwrap().sack;
    assert_eq!(sack, [Some((SeqNumber(u32::MAX), SeqNumber(1))), None, None, None]);
    assert!(parse(&[253, 4, 1, 2]).is_ok(), "unknown options are skipped");
    assert!(parse(&[0, 2, 0, 0]).is_ok(), "nothing counts behind the end");

    for lie in [
        &[2, 0, 0, 0][..], // lengths that would not advance
        &[253, 1, 0, 0],
        &[2, 5, 0, 0], // past the header
        &[1, 1, 1, 2], // kind without a length
        &[2, 3, 1, 0], // known kinds of the wrong length
        &[3, 4, 1, 1],
        &[4, 3, 1, 0],
        &[8, 4, 0, 0],
        &[5, 2, 1, 1],
        &[5, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(parse(lie).unwrap_err().reason(), "tcp-option-length", "{lie:?}");
    }
}

#[test]
fn udp_lengths_and_checksum() {
    let datagram = |lie: &dyn Fn(&mut [u8])| {
        let mut bytes = b"\x9c\x40\x00\x35\x00\x0c\x00\x00data".to_vec();
        let pseudo = checksum::pseudo_header([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17, 12);
        let value = checksum::finish(checksum::combine(pseudo, checksum::sum(&bytes)));
        bytes[6..8].copy_from_slice(&value.to_be_bytes());
        lie(&mut bytes);
        bytes
    };
    let parse = |bytes: &[u8], check| {
        let packet = v4(17, &[], bytes, honest);
        let ip = parse4(&packet).unwrap();
        Datagram::parse(&ip, check)
            .map(|datagram| datagram.payload.len())
            .map_err(|error| error.reason())
    };
    let whole = datagram(&|_| {});
    assert_eq!(parse(&whole, Checksum::Present), Ok(4));
    for len in 0..8 {
        assert_eq!(parse(&whole[..len], Checksum::Valid), Err("udp-truncated"));
    }
    for len in 8..12 {
        assert_eq!(parse(&whole[..len], Checksum::Valid), Err("udp-length"));
    }
    for len in 0..8 {
        let bytes = datagram(&|bytes| bytes[5] = len);
        assert_eq!(parse(&bytes, Checksum::Valid), Err("udp-length"), "shorter than its header");
    }
    let bytes = datagram(&|bytes| bytes[4] = 0xff);
    assert_eq!(parse(&bytes, Checksum::Valid), Err("udp-length"), "longer than the packet");
    let surplus = [&whole[..], b"more"].concat();
    assert_eq!(parse(&surplus, Checksum::Present), Ok(4), "the packet may hold more");
    let bytes = datagram(&|bytes| bytes[11] ^= 1);
    assert_eq!(parse(&bytes, Checksum::Present), Err("udp-checksum"));
    assert_eq!(parse(&bytes, Checksum::Valid), Ok(4));
    let none = datagram(&|bytes| bytes[6..8].fill(0));
    assert_eq!(parse(&none, Checksum::Present), Ok(4), "IPv4 may go without");

    let packet = v6(17, &none, honest);
    let error = Datagram::parse(&parse6(&packet).unwrap(), Checksum::Present).unwrap_err();
    assert_eq!(error.reason(), "udp-checksum", "IPv6 may not");
}

#[test]
fn one_protocol_is_not_taken_for_another() {
    let packet = v4(50, &[], &[0; 40], honest);
    let ip = parse4(&packet).unwrap();
    assert_eq!(Segment::parse(&ip, Checksum::Valid).unwrap_err().reason(), "tcp-protocol");
    assert_eq!(Datagram::parse(&ip, Checksum::Valid).unwrap_err().reason(), "udp-protocol");
    assert_eq!(Icmp::parse(&ip, Checksum::Valid).unwrap_err().reason(), "icmp-protocol");
    let packet = v6(1, &[0; 40], honest);
    let ip = parse6(&packet).unwrap();
    let error = Icmp::parse(&ip, Checksum::Valid).unwrap_err();
    assert_eq!(error.reason(), "icmp-protocol", "ICMP for IPv4 inside IPv6");
}

#[test]
fn arp_lengths_and_formats() {
    let request = b"\x00\x01\x08\x00\x06\x04\x00\x01\x02\x00\x00\x00\x00\x01\x0a\x00\x00\x01\
        \x00\x00\x00\x00\x00\x00\x0a\x00\x00\x02";
    assert!(Arp::parse(request).is_ok());
    for len in 0..request.len() {
        assert_eq!(Arp::parse(&request[..len]).unwrap_err().reason(), "arp-truncated");
    }
    for (at, byte, reason) in [
        (1, 6, "arp-hardware"),
        (4, 8, "arp-hardware"),
        (2, 0x86, "arp-protocol"),
        (5, 16, "arp-protocol"),
        (7, 3, "arp-operation"),
        (7, 0, "arp-operation"),
    ] {
        let mut request = request.to_vec();
        request[at] = byte;
        assert_eq!(Arp::parse(&request).unwrap_err().reason(), reason);
    }
}

/// An ICMPv6 message, believed to have a right checksum, from `source` to `destination`.
fn ndp(source: &str, destination: &str, hop_limit: u8, message: &[u8]) -> Result<(), &'static str> {
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let packet = v6(58, message, |packet| {
        packet[7] = hop_limit;
        packet[8..24].copy_from_slice(&address(source));
        packet[24..40].copy_from_slice(&address(destination));
    });
    match Icmp::parse(&parse6(&packet).unwrap(), Checksum::Valid) {
        Ok(Icmp::Ndp(_)) => Ok(()),
        Ok(other) => panic!("neighbour discovery read as {other:?}"),
        Err(error) => Err(error.reason()),
    }
}

#[test]
fn icmp_lengths_and_checksum() {
    let echo = [8, 0, 0, 0, 0, 1, 0, 2, b'd'];
    let packet = v4(1, &[], &echo, honest);
    let error = Icmp::parse(&parse4(&packet).unwrap(), Checksum::Present).unwrap_err();
    assert_eq!(error.reason(), "icmp-checksum");
    for len in 0..8 {
        let packet = v4(1, &[], &echo[..len], honest);
        let error = Icmp::parse(&parse4(&packet).unwrap(), Checksum::Valid).unwrap_err();
        assert_eq!(error.reason(), "icmp-truncated");
    }
    let packet = v4(1, &[], &[13, 0, 0, 0, 0, 0, 0, 0], honest);
    let timestamp = Icmp::parse(&parse4(&packet).unwrap(), Checksum::Valid);
    assert_eq!(timestamp, Ok(Icmp::Other { kind: 13, code: 0 }));
}

#[test]
fn neighbour_discovery_keeps_to_its_rules() {
    let target = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56];
    let group = "ff02::1:ff12:3456";
    let mac = [1, 1, 2, 0, 0, 0, 0, 9];
    let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target].concat();
    let with_mac = [&solicitation[..], &mac].concat();
    assert_eq!(ndp("fd00::1", group, 255, &with_mac), Ok(()));
    assert_eq!(ndp("::", group, 255, &solicitation), Ok(()), "probe for a duplicate");
    assert_eq!(ndp("::", group, 255, &with_mac), Err("ndp-source"));
    assert_eq!(ndp("::", "fd00::12:3456", 255, &solicitation), Err("ndp-source"));
    assert_eq!(ndp("fd00::1", group, 64, &with_mac), Err("ndp-hop-limit"));
    for len in 8..24 {
        assert_eq!(ndp("fd00::1", group, 255, &solicitation[..len]), Err("ndp-truncated"));
    }
    let mut wrong = with_mac.clone();
    wrong[1] = 1;
    assert_eq!(ndp("fd00::1", group, 255, &wrong), Err("ndp-code"));
    let mut wrong = with_mac.clone();
    wrong[8] = 0xff;
    assert_eq!(ndp("fd00::1", group, 255, &wrong), Err("ndp-target"), "multicast");

    let option = |option: &[u8]| ndp("fd00::1", group, 255, &[&solicitation[..], option].concat());
    assert_eq!(option(&[14, 1, 0, 0, 0, 0, 0, 0]), Ok(()), "unknown options are skipped");
    assert_eq!(option(&[1, 0, 2, 0, 0, 0, 0, 9]), Err("ndp-option-length"), "would never end");
    assert_eq!(option(&[1, 2, 2, 0, 0, 0, 0, 9]), Err("ndp-option-length"), "past the end");
    assert_eq!(option(&mac[..7]), Err("ndp-option-length"));
    assert_eq!(option(&[1]), Err("ndp-option-length"));
    assert_eq!(option(&[1, 2, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]), Err("ndp-option-length"));

    let advertisement = [&[136, 0, 0, 0, 0x40, 0, 0, 0][..], &target].concat();
    assert_eq!(ndp("fd00::1", "fd00::2", 255, &advertisement), Ok(()));
    assert_eq!(ndp("fd00::1", "ff02::1", 255, &advertisement), Err("ndp-solicited"));

    let router = [&[134, 0, 0, 0, 64, 0, 7, 8][..], &[0; 8]].concat();
    assert_eq!(ndp("fe80::1", "ff02::1", 255, &router), Ok(()));
    assert_eq!(ndp("fd00::1", "ff02::1", 255, &router), Err("ndp-source"));
    assert_eq!(ndp("fe80::1", "ff02::1", 255, &router[..15]), Err("ndp-truncated"));
    let prefix = [&router[..], &[3, 4, 129], &[0; 29]].concat();
    assert_eq!(ndp("fe80::1", "ff02::1", 255, &prefix), Err("ndp-option-length"));
    let mtu = [&router[..], &[5, 2], &[0; 14]].concat();
    assert_eq!(ndp("fe80::1", "ff02::1", 255, &mtu), Err("ndp-option-length"));

    let router = [133, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(ndp("::", "ff02::2", 255, &router), Ok(()));
    assert_eq!(ndp("::", "ff02::2", 255, &[&router[..], &mac].concat()), Err("ndp-source"));
}

#[test]
fn errors_are_not_answered_with_errors() {
    let may = |packet: &[u8]| icmp::may_answer_with_error(&parse4(packet).unwrap());
    assert!(may(&v4(17, &[], &[0; 8], honest)));
    assert!(may(&v4(1, &[], &[8, 0, 0, 0], honest)), "echo request");
    for kind in [3, 4, 5, 11, 12] {
        assert!(!may(&v4(1, &[], &[kind, 0, 0, 0], honest)), "type {kind}");
    }
    assert!(!may(&v4(1, &[], &[], honest)));
    assert!(!may(&v4(17, &[], &[0; 8], |packet| packet[7] = 1)), "a later fragment");
    assert!(!may(&v4(17, &[], &[0; 8], |packet| packet[16] = 239)), "to a group");
    assert!(!may(&v4(17, &[], &[0; 8], |packet| packet[16..20].fill(255))), "to all");
    assert!(!may(&v4(17, &[], &[0; 8], |packet| packet[12..16].fill(0))), "from nobody");
    let may = |packet: &[u8]| icmp::may_answer_with_error(&parse6(packet).unwrap());
    assert!(may(&v6(58, &[128, 0, 0, 0], honest)));
    assert!(!may(&v6(58, &[1, 0, 0, 0], honest)));
    assert!(!may(&v6(58, &[137, 0, 0, 0], honest)));
    assert!(!may(&v6(17, &[0; 8], |packet| packet[24] = 0xff)));
}
