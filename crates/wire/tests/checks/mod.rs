//! What holds for any bytes whatever. The fuzz targets in `fuzz/` and the test that replays their
//! seeds call the same functions.

use std::net::SocketAddr;

use netyard_wire::arp::Arp;
use netyard_wire::build::{self, TcpFrame};
use netyard_wire::dhcp::{v4, v6};
use netyard_wire::dns::{self, Data, Query, Response};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{self, Icmp};
use netyard_wire::ip::IpPacket;
use netyard_wire::membership::Membership;
use netyard_wire::tcp::{Flags, Segment};
use netyard_wire::udp::Datagram;
use netyard_wire::{
    Checksum, Features, Frame, Gso, GsoKind, MacAddr, Offload, VNET_HEADER_LEN, checksum, fit,
};

/// `input` is a virtio-net header and a frame.
pub(crate) fn offload(input: &[u8]) {
    let Some((header, frame)) = input.split_first_chunk::<VNET_HEADER_LEN>() else { return };
    let Ok(offload) = Offload::parse(header, frame) else { return };
    if let Checksum::Partial { start, offset } = offload.checksum {
        assert!(usize::from(start) + usize::from(offset) + 2 <= frame.len());
    }
    if let Some(gso) = offload.gso {
        assert!(gso.size > 0);
        assert!(usize::from(gso.header_len) <= frame.len());
        assert!(matches!(offload.checksum, Checksum::Partial { .. }));
    }
    assert_eq!(Offload::parse(&offload.encode(), frame), Ok(offload), "what fits, fits again");
}

/// `input` is a virtio-net header and an IP packet.
pub(crate) fn tun(input: &[u8]) {
    let Some((header, packet)) = input.split_first_chunk::<VNET_HEADER_LEN>() else { return };
    let Ok((offload, ip)) = Offload::parse_packet(header, packet) else { return };
    assert_eq!(ip.len(), packet.len());
    if let Checksum::Partial { start, offset } = offload.checksum {
        assert!(usize::from(start) + usize::from(offset) + 2 <= packet.len());
    }
    if let Some(gso) = offload.gso {
        assert!(gso.size > 0 && usize::from(gso.header_len) <= packet.len());
        assert!(matches!(offload.checksum, Checksum::Partial { .. }));
    }
    assert_eq!(Offload::parse_packet(&offload.encode(), packet), Ok((offload, ip)));
}

/// `input` is an Ethernet frame.
pub(crate) fn packet(input: &[u8]) {
    packet_as_is(input);
    packet_as_is(&mended(input));
}

fn packet_as_is(frame: &[u8]) {
    let Ok((ethernet, bytes)) = Ethernet::parse(frame) else { return };
    assert_eq!([&ethernet.emit(), bytes].concat(), frame);
    if let Ok(arp) = Arp::parse(bytes) {
        assert_eq!(arp.emit(), bytes[..28]);
    }
    // Whatever the EtherType says: both parsers see all inputs.
    for ethertype in [ethernet::IPV4, ethernet::IPV6] {
        let Ok(ip) = IpPacket::parse(ethertype, bytes) else { continue };
        assert_eq!([ip.header, ip.payload].concat(), bytes[..ip.len()]);
        assert_eq!(ip.source.is_ipv4(), ip.destination.is_ipv4());
        assert!(!(icmp::may_answer_with_error(&ip) && ip.destination.is_multicast()));
        for state in [Checksum::Present, Checksum::Valid] {
            if let Ok(segment) = Segment::parse(&ip, state) {
                tcp_reads_back(&ip, &segment);
            }
            if let Ok(datagram) = Datagram::parse(&ip, state) {
                udp_reads_back(&ip, &datagram);
            }
            if let Ok(message) = Icmp::parse(&ip, state) {
                icmp_reads_back(&ip, &message);
            }
            if let Some(Ok(Membership::Records(records))) = Membership::parse(&ip, state) {
                assert!(records.into_iter().all(|(group, _)| group.is_multicast()));
            }
        }
    }
}

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);

/// Parses what was built, with complete checksums, and hands it to `check`.
fn read_back(frame: &[u8], offload: Offload, check: impl Fn(&IpPacket<'_>)) {
    let frame = Frame { bytes: frame, offload: Offload { gso: None, ..offload } };
    let mut count = 0;
    fit(frame, Features::NONE, &mut Vec::new(), &mut |frame| {
        let (ethernet, bytes) = Ethernet::parse(frame.bytes).expect("built");
        assert_eq!((ethernet.source, ethernet.destination), (A, B));
        check(&IpPacket::parse(ethernet.ethertype, bytes).expect("built"));
        count += 1;
    })
    .expect("built");
    assert_eq!(count, 1);
}

fn tcp_reads_back(ip: &IpPacket<'_>, segment: &Segment<'_>) {
    let headers = TcpFrame {
        source_mac: A,
        destination_mac: B,
        source: SocketAddr::new(ip.source, segment.source_port),
        destination: SocketAddr::new(ip.destination, segment.destination_port),
        seq: segment.seq,
        ack: segment.ack,
        flags: segment.flags,
        window: segment.window,
        options: segment.options,
        hop_limit: ip.hop_limit,
        traffic_class: ip.traffic_class,
        ip_id: 0,
    };
    // Options may take more room as we lay them out.
    let room = 65_535 + 14 - headers.header_len();
    let payload = segment.payload.get(..room).unwrap_or(segment.payload);
    let mut frame = vec![0; headers.header_len()];
    frame.extend_from_slice(payload);
    let offload = headers.emit(&mut frame, u16::MAX);
    read_back(&frame, offload, |ip| {
        let mut read = Segment::parse(ip, Checksum::Present).expect("built");
        let shown = read.options.sack.iter().flatten().count();
        assert_eq!(read.options.sack[..shown], segment.options.sack[..shown]);
        read.options.sack = segment.options.sack;
        assert_eq!(read, Segment { urgent: 0, payload, ..*segment });
    });
}

fn udp_reads_back(ip: &IpPacket<'_>, datagram: &Datagram<'_>) {
    let source = SocketAddr::new(ip.source, datagram.source_port);
    let destination = SocketAddr::new(ip.destination, datagram.destination_port);
    // An IPv6 packet may be longer than an IPv4 packet; but this one was parsed, so it fits.
    let mut frame = Vec::new();
    let offload =
        build::udp_frame(&mut frame, A, B, source, destination, ip.hop_limit, datagram.payload);
    read_back(&frame, offload, |ip| {
        assert_eq!(Datagram::parse(ip, Checksum::Present), Ok(*datagram));
    });
}

fn icmp_reads_back(ip: &IpPacket<'_>, message: &Icmp<'_>) {
    // Of these only type and code are kept, or they may have options that are not understood.
    if matches!(message, Icmp::Other { .. }) {
        return;
    }
    let mut frame = Vec::new();
    let offload =
        build::icmp_frame(&mut frame, A, B, ip.source, ip.destination, ip.hop_limit, message);
    read_back(&frame, offload, |ip| match (Icmp::parse(ip, Checksum::Present), message) {
        // IPv4 has room for 16 bits.
        (Ok(Icmp::PacketTooBig { original, .. }), Icmp::PacketTooBig { original: wanted, .. }) => {
            assert_eq!(original, *wanted);
        }
        (read, wanted) => assert_eq!(read, Ok(*wanted)),
    });
}

/// `input` is a DNS message.
pub(crate) fn dns(input: &[u8]) {
    if let Some(answer) = dns::format_error(input) {
        assert_eq!(answer[..2], input[..2]);
    }
    if let Ok(query) = Query::parse(input) {
        assert_eq!(Query::parse(&query.emit()).as_ref(), Ok(&query));
        let name = &query.question.name;
        assert_eq!(name.to_string().parse().as_ref(), Ok(name));
        if let Some(address) = name.reverse_address() {
            assert_eq!(&dns::Name::reverse(address), name);
        }
    }
    let _ = dns::MulticastQuery::parse(input);
    if let Ok(Some(said)) = dns::MulticastResponse::parse(input) {
        let (message, count) = dns::MulticastRecord::emit(&said.records, 9_000);
        assert!(message.len() <= 9_000);
        let again = dns::MulticastResponse::parse(&message).expect("built").expect("a response");
        assert_eq!(again.records.len(), usize::from(count));
        if again.records.len() == said.records.len() {
            assert_eq!(again, said);
        }
    }
    let _ = dns::Manner::of(input);
    if let (Some(kept), Ok(query)) = (
        dns::Kept::of(input),
        Response::parse(input).map(|response| {
            let question = response.question.expect("kept with its question");
            Query { id: 1, flags: response.flags, question, edns: None }
        }),
    ) {
        assert!((1..=86_400).contains(&kept.lifetime()));
        let answer = kept.answer(&query, 1);
        assert!(answer.len() <= kept.size(), "with the places of its times");
        assert_eq!(answer[..2], [0, 1]);
        Response::parse(&answer).expect("only times differ");
    }
    if let Ok(response) = Response::parse(input) {
        let cut = response.emit(512);
        assert!(cut.len() <= 512);
        Response::parse(&cut).expect("built");
        let records = || response.answers.iter().chain(&response.authority);
        // Names in data that is not understood cannot be carried over, and compression may have
        // made a message possible that is too long without.
        let plain = !records().any(|record| matches!(record.data, Data::Other { .. }));
        let whole = Response::parse(&response.emit(usize::MAX)).expect("built");
        if plain && whole.answers.len() == response.answers.len() {
            assert_eq!(whole, response);
        }
    }
}

/// `input` is a DHCP message of either version.
pub(crate) fn dhcp(input: &[u8]) {
    if let Ok(message) = v4::Message::parse(input) {
        let bytes = message.emit();
        assert_eq!(bytes.len(), message.emitted_len());
        assert_eq!(v4::Message::parse(&bytes), Ok(message));
    }
    if let Ok(message) = v6::Message::parse(input) {
        assert_eq!(v6::Message::parse(&message.emit()), Ok(message));
    }
}

/// `input` is a byte of features, a virtio-net header and a frame.
pub(crate) fn segment(input: &[u8]) {
    let Some((features, input)) = input.split_first() else { return };
    let Some((header, frame)) = input.split_first_chunk::<VNET_HEADER_LEN>() else { return };
    let takes = Features::from_bits_truncate(u32::from(*features));
    for frame in [frame, &mended(frame)] {
        if let Ok(offload) = Offload::parse(header, frame) {
            fits(Frame { bytes: frame, offload }, takes);
        }
    }
}

/// What comes out of the segmenter is what went in, in a form that the receiver takes.
pub(crate) fn fits(frame: Frame<'_>, takes: Features) {
    let mut out = Vec::new();
    fit(frame, takes, &mut Vec::new(), &mut |frame| {
        out.push((frame.bytes.to_vec(), frame.offload));
    })
    .expect("parsed");
    for (_, offload) in &out {
        if !takes.contains(Features::CSUM) {
            assert_eq!(*offload, Offload::default());
        }
    }
    match frame.offload.gso {
        Some(gso) if out.iter().all(|(_, offload)| offload.gso.is_none()) => {
            cut_rightly(frame, gso, &out);
        }
        gso => {
            let [(bytes, offload)] = out.as_slice() else { panic!("cut without need") };
            assert_eq!(bytes.len(), frame.bytes.len());
            assert_eq!(offload.gso, gso);
        }
    }
}

fn cut_rightly(whole: Frame<'_>, gso: Gso, segments: &[(Vec<u8>, Offload)]) {
    let (ethernet, bytes) = Ethernet::parse(whole.bytes).expect("parsed");
    let whole_ip = IpPacket::parse(ethernet.ethertype, bytes).expect("parsed");
    let header_len = usize::from(gso.header_len);
    let payload_len = 14 + whole_ip.len() - header_len;
    let size = usize::from(gso.size);
    assert_eq!(segments.len(), payload_len.div_ceil(size).max(1));

    let mut joined = Vec::new();
    for (index, (bytes, offload)) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        let (own, packet) = Ethernet::parse(bytes).expect("cut");
        assert_eq!(own, ethernet);
        let ip = IpPacket::parse(own.ethertype, packet).expect("cut");
        assert_eq!((ip.source, ip.destination), (whole_ip.source, whole_ip.destination));
        assert_eq!((ip.hop_limit, ip.traffic_class), (whole_ip.hop_limit, whole_ip.traffic_class));
        if segments.len() > 1 {
            assert_eq!(14 + ip.len(), bytes.len());
            let own = bytes.len() - header_len;
            assert!(if last { (1..=size).contains(&own) } else { own == size });
        }
        if ip.source.is_ipv4() {
            let id = |ip: &IpPacket<'_>| u16::from_be_bytes([ip.header[4], ip.header[5]]);
            assert_eq!(usize::from(id(&ip).wrapping_sub(id(&whole_ip))), index);
        }
        assert_eq!(ip.header[20..], whole_ip.header[20..]);
        match offload.checksum {
            Checksum::Partial { start, offset } => {
                assert_eq!(offload.checksum, whole.offload.checksum);
                // A single one is the whole, whose sum is its sender's affair.
                if segments.len() > 1 {
                    let len = u32::try_from(ip.payload.len()).expect("16 bits");
                    let sum = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, len);
                    let at = usize::from(start) + usize::from(offset);
                    assert_eq!(bytes[at..at + 2], checksum::fold(sum).to_be_bytes());
                }
            }
            state => assert_eq!(state, Checksum::Present),
        }
        let state = if segments.len() > 1 { offload.checksum } else { Checksum::Valid };
        match gso.kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => {
                // Malformed options are copied as they are.
                let (Ok(whole), Ok(own)) =
                    (Segment::parse(&whole_ip, Checksum::Valid), Segment::parse(&ip, state))
                else {
                    assert!(Segment::parse(&whole_ip, Checksum::Valid).is_err());
                    joined.extend_from_slice(&bytes[header_len..14 + ip.len()]);
                    continue;
                };
                let mut flags = whole.flags;
                if !last {
                    flags = flags.without(Flags::FIN | Flags::PSH);
                }
                if index > 0 {
                    flags = flags.without(Flags::CWR);
                }
                let seq = whole.seq + index * size;
                assert_eq!(own, Segment { seq, flags, payload: own.payload, ..whole });
                joined.extend_from_slice(own.payload);
            }
            GsoKind::Udp => {
                let own = Datagram::parse(&ip, state).expect("cut");
                joined.extend_from_slice(own.payload);
            }
        }
    }
    assert_eq!(joined, whole.bytes[header_len..14 + whole_ip.len()]);
}

/// The frame with the checksum that its IPv4 header should have: fuzzing must get past it.
fn mended(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(packet) = frame.get_mut(14..)
        && let Some(first) = packet.first()
        && let Some(header) = packet.get_mut(..usize::from(first & 0xf) * 4)
        && header.len() >= 20
    {
        header[10..12].fill(0);
        let value = checksum::finish(checksum::sum(header));
        header[10..12].copy_from_slice(&value.to_be_bytes());
    }
    frame
}
