//! Frames of every kind that a guest may send, sound before they are spoiled.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netyard_engine::control::Plugged;
use netyard_wire::arp::{Arp, Operation};
use netyard_wire::build::TcpFrame;
use netyard_wire::dhcp::{v4, v6};
use netyard_wire::dns::{Flags as DnsFlags, IN, Query, Question};
use netyard_wire::ethernet;
use netyard_wire::icmp::{Icmp, IcmpError, Ndp, solicited_node};
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{FrameBuf, MacAddr, Offload, SeqNumber, build, fragment};

use super::choices::Choices;
use crate::common::{GATEWAY_MAC, Seen, config};

/// Connections of which a guest remembers the numbers.
const REMEMBERED: usize = 16;

/// A guest that sends anything.
pub(crate) struct Stranger {
    pub(crate) plug: Plugged,
    /// Everybody on the segment.
    pub(crate) everybody: Vec<Plugged>,
    /// Addresses of a service.
    pub(crate) fronts: Vec<IpAddr>,
    /// The last segment that came, for each connection.
    heard: VecDeque<Seen>,
    /// The last IP packet that came or went.
    pub(crate) packet: Vec<u8>,
}

pub(crate) fn frame(write: impl FnOnce(&mut Vec<u8>) -> Offload) -> FrameBuf {
    let mut bytes = Vec::new();
    let offload = write(&mut bytes);
    FrameBuf { bytes, offload }
}

/// Where a multicast group is found on the segment.
fn group_mac(group: IpAddr) -> MacAddr {
    match group {
        IpAddr::V4(group) => MacAddr::ipv4_multicast(group),
        IpAddr::V6(group) => MacAddr::ipv6_multicast(group),
    }
}

impl Stranger {
    pub(crate) fn new(plug: Plugged, everybody: Vec<Plugged>, fronts: Vec<IpAddr>) -> Self {
        Self { plug, everybody, fronts, heard: VecDeque::new(), packet: Vec::new() }
    }

    /// Heeds a frame that came.
    pub(crate) fn hear(&mut self, frame: &FrameBuf) {
        if let Some(packet) = frame.bytes.get(ethernet::HEADER_LEN..) {
            self.packet = packet.to_vec();
        }
        if let Some(seen) = Seen::parse(frame) {
            let ends = (seen.source, seen.destination);
            self.heard.retain(|other| (other.source, other.destination) != ends);
            self.heard.push_back(seen);
            if self.heard.len() > REMEMBERED {
                self.heard.pop_front();
            }
        }
    }

    fn own(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.plug.address4.into() } else { self.plug.address6.into() }
    }

    /// Somebody to speak to.
    fn anybody(&self, c: &mut Choices<'_>) -> IpAddr {
        let other = &self.everybody[c.below(self.everybody.len())];
        match c.below(12) {
            0..3 => IpAddr::from([203, 0, 113, 5]),
            3..5 => "2001:db8::5".parse().unwrap(),
            5 => config().gateway4().into(),
            6 => config().gateway6().into(),
            7 => other.address4.into(),
            8 => other.address6.into(),
            9 => c.of(&self.fronts),
            10 => c
                .of(&["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "64:ff9b::7f00:1"])
                .parse()
                .unwrap(),
            _ if c.one_in(2) => Ipv4Addr::from_bits(c.long()).into(),
            _ => c
                .of(&["224.0.0.251", "ff02::fb", "ff02::1", "255.255.255.255", "239.1.2.3"])
                .parse()
                .unwrap(),
        }
    }

    /// Where a frame to an address goes, most of the time.
    fn mac_of(&self, c: &mut Choices<'_>, to: IpAddr) -> MacAddr {
        let is = |plug: &&Plugged| IpAddr::from(plug.address4) == to || plug.address6 == to;
        match self.everybody.iter().find(is) {
            _ if to.is_multicast() => group_mac(to),
            Some(plug) if !c.one_in(4) => plug.mac,
            _ if c.one_in(16) => MacAddr::BROADCAST,
            _ => GATEWAY_MAC,
        }
    }

    /// A sound frame; fragments of one datagram come as several.
    pub(crate) fn frames(&mut self, c: &mut Choices<'_>) -> Vec<FrameBuf> {
        let one = match c.below(24) {
            0 => self.arp(c),
            1 => self.ndp(c),
            2 => self.dhcp4(c),
            3 => self.dhcp6(c),
            4 | 5 => self.question(c),
            6..13 => self.segment(c),
            13 | 14 => self.datagram(c, &[0, 1, 100, 1472, 1473]),
            15 => self.datagrams(c),
            16 | 17 => self.message(c),
            18 => self.membership(c),
            19 | 20 => return self.fragments(c),
            21 => self.raw(c),
            22 => {
                let mut tagged = self.datagram(c, &[10]);
                let tag = [0x81, c.of(&[0x00, 0xa8]), c.byte(), c.byte()];
                tagged.bytes.splice(12..12, tag);
                tagged
            }
            // Runts, jumbos and noise.
            _ => {
                let len = c.of(&[0, 1, 13, 14, 15, 33, 60, 1514, 9000, 65_549, 65_553]);
                let mut bytes = [GATEWAY_MAC.0, self.plug.mac.0].concat();
                bytes.extend(c.bytes(16));
                bytes.resize(len, c.byte());
                FrameBuf { bytes, offload: Offload::default() }
            }
        };
        vec![one]
    }

    fn arp(&self, c: &mut Choices<'_>) -> FrameBuf {
        let other = &self.everybody[c.below(self.everybody.len())];
        let targets =
            [config().gateway4(), other.address4, self.plug.address4, [10, 0, 0, 1].into()];
        let arp = Arp {
            operation: c.of(&[Operation::Request, Operation::Reply]),
            sender_mac: self.plug.mac,
            sender_ip: c.of(&[self.plug.address4, self.plug.address4, [0; 4].into(), targets[1]]),
            target_mac: MacAddr([0; 6]),
            target_ip: c.of(&targets),
        };
        let mac = c.of(&[MacAddr::BROADCAST, GATEWAY_MAC]);
        frame(|out| build::arp_frame(out, self.plug.mac, mac, &arp))
    }

    fn ndp(&self, c: &mut Choices<'_>) -> FrameBuf {
        let other = &self.everybody[c.below(self.everybody.len())];
        let own = [self.plug.address6, self.plug.mac.link_local(), Ipv6Addr::UNSPECIFIED];
        let source = c.of(&own);
        let target = c.of(&[config().gateway6(), other.address6, GATEWAY_MAC.link_local()]);
        let source_mac = c.of(&[Some(self.plug.mac), None]);
        let (group, message) = match c.below(3) {
            0 => (solicited_node(target), Ndp::NeighborSolicitation { target, source_mac }),
            1 => ("ff02::2".parse().unwrap(), Ndp::RouterSolicitation { source_mac }),
            _ => {
                let target = c.of(&[source, target]);
                let (solicited, override_) = (c.one_in(2), c.one_in(2));
                let router = c.one_in(4);
                let target_mac = source_mac;
                let message =
                    Ndp::NeighborAdvertisement { target, target_mac, router, solicited, override_ };
                ("ff02::1".parse().unwrap(), message)
            }
        };
        let (mac, source) = (MacAddr::ipv6_multicast(group), source.into());
        let message = Icmp::Ndp(message);
        frame(|out| build::icmp_frame(out, self.plug.mac, mac, source, group.into(), 255, &message))
    }

    fn dhcp4(&self, c: &mut Choices<'_>) -> FrameBuf {
        use v4::MessageType::{Decline, Discover, Inform, Release, Request};
        let mut options = v4::Options::default();
        let kind = c.of(&[Discover, Request, Decline, Release, Inform]);
        options.set(v4::option::MESSAGE_TYPE, [kind.code()]);
        for _ in 0..c.below(4) {
            let (code, len) = (c.of(&[12, 50, 54, 55, 57, 61, 81, 119]), c.of(&[0, 1, 4, 20]));
            options.set(code, c.bytes(len));
        }
        let none = Ipv4Addr::UNSPECIFIED;
        let message = v4::Message {
            operation: v4::Operation::Request,
            xid: c.long(),
            secs: 0,
            broadcast: c.one_in(2),
            ciaddr: c.of(&[none, self.plug.address4]),
            yiaddr: none,
            siaddr: none,
            giaddr: none,
            chaddr: self.plug.mac,
            options,
        };
        let from = SocketAddr::new(c.of(&[none, self.plug.address4]).into(), 68);
        let to = SocketAddr::new(c.of(&[Ipv4Addr::BROADCAST, config().gateway4()]).into(), 67);
        let mac = if to.ip() == Ipv4Addr::BROADCAST { MacAddr::BROADCAST } else { GATEWAY_MAC };
        frame(|out| build::udp_frame(out, self.plug.mac, mac, from, to, 64, &message.emit()))
    }

    fn dhcp6(&self, c: &mut Choices<'_>) -> FrameBuf {
        let kind = v6::MessageType::from_code(1 + c.byte() % 11).unwrap();
        let mut message = v6::Message::new(kind, c.long() >> 8);
        message.client = (!c.one_in(8)).then(|| vec![0, 4, 1, 2]);
        message.server = c.one_in(2).then(|| c.bytes(4));
        message.rapid_commit = c.one_in(2);
        message.wants = vec![c.word(), 23];
        for id in 0..c.below(3) {
            message.associations.push(v6::Association {
                kind: v6::AssociationKind::NonTemporary,
                id: u32::try_from(id).unwrap(),
                renew: c.long(),
                rebind: 0,
                addresses: vec![v6::Address {
                    address: self.plug.address6,
                    preferred: c.long(),
                    valid: c.long(),
                }],
                status: None,
            });
        }
        let group: Ipv6Addr = "ff02::1:2".parse().unwrap();
        let from = SocketAddr::new(self.plug.mac.link_local().into(), 546);
        let mac = MacAddr::ipv6_multicast(group);
        let to = SocketAddr::new(group.into(), 547);
        frame(|out| build::udp_frame(out, self.plug.mac, mac, from, to, 1, &message.emit()))
    }

    /// A question to a name server.
    pub(crate) fn query(c: &mut Choices<'_>) -> Vec<u8> {
        let names =
            ["a.test", "web.test", "host.test", "shop.example", "other.example", "printer.local"];
        let name = match c.below(8) {
            6 => format!("{}.{}.example", "x".repeat(63), c.byte()),
            7 => "1.127.168.192.in-addr.arpa".to_owned(),
            which => names[which].to_owned(),
        };
        let question = Question {
            name: name.parse().unwrap(),
            kind: c.of(&[1, 28, 12, 16, 65, 255]),
            class: IN,
        };
        let flags = DnsFlags::RECURSION_DESIRED;
        Query { id: c.word(), flags, question, edns: None }.emit()
    }

    fn question(&self, c: &mut Choices<'_>) -> FrameBuf {
        let question = Self::query(c);
        let local = c.of(&["224.0.0.251:5353", "[ff02::fb]:5353"]).parse().unwrap();
        let (to, port) = match c.below(4) {
            0 => (local, 5353),
            1 => (SocketAddr::new(config().gateway6().into(), 53), c.word()),
            _ => (SocketAddr::new(config().gateway4().into(), 53), c.word()),
        };
        let mac = if to.ip().is_multicast() { group_mac(to.ip()) } else { GATEWAY_MAC };
        let from = SocketAddr::new(self.own(to.ip()), port);
        frame(|out| build::udp_frame(out, self.plug.mac, mac, from, to, 255, &question))
    }

    fn datagram(&self, c: &mut Choices<'_>, lens: &[usize]) -> FrameBuf {
        let to = SocketAddr::new(self.anybody(c), c.of(&[53, 80, 123, 443, 8080, 9]));
        let mac = self.mac_of(c, to.ip());
        let from = SocketAddr::new(self.own(to.ip()), 4000 + u16::from(c.byte() % 8));
        let payload = vec![c.byte(); c.of(lens)];
        let hops = c.of(&[64, 64, 64, 1, 0]);
        frame(|out| build::udp_frame(out, self.plug.mac, mac, from, to, hops, &payload))
    }

    /// Several datagrams in one frame.
    fn datagrams(&self, c: &mut Choices<'_>) -> FrameBuf {
        let to = SocketAddr::new(self.anybody(c), 9);
        let macs = (self.plug.mac, self.mac_of(c, to.ip()));
        let from = SocketAddr::new(self.own(to.ip()), 4000);
        let payload = vec![c.byte(); 1 + c.below(30_000)];
        let size = c.of(&[300, 512, 1472, 1452]);
        let ends = (from, to);
        frame(|out| build::udp_frame_of_many(out, macs, ends, 64, [&payload[..]], size))
    }

    fn segment(&self, c: &mut Choices<'_>) -> FrameBuf {
        let mut flags = Flags::ACK;
        let mut options = TcpOptions::default();
        let (mut seq, mut ack) = (SeqNumber(c.of(&[0, u32::MAX - 2, 1 << 31])), SeqNumber(0));
        let known = (!self.heard.is_empty() && !c.one_in(4))
            .then(|| &self.heard[c.below(self.heard.len())]);
        let (source, destination) = match known {
            Some(seen) => {
                seq = seen.ack + c.of(&[0, 0, 0, 0, 1, 1000, 70_000, u32::MAX, 1 << 31]);
                ack = seen.end() + c.of(&[0, 0, 0, 0, u32::MAX, u32::MAX - 700, 1, 1 << 31]);
                if seen.has(Flags::SYN) && !seen.has(Flags::ACK) && !c.one_in(4) {
                    flags = Flags::SYN | Flags::ACK;
                }
                (seen.destination, seen.source)
            }
            None => {
                flags = Flags::SYN;
                let to = SocketAddr::new(self.anybody(c), c.of(&[80, 53, 53, 8080, 22]));
                (SocketAddr::new(self.own(to.ip()), 40_000 + u16::from(c.byte() % 8)), to)
            }
        };
        if flags.contains(Flags::SYN) {
            options.mss = c.of(&[Some(1460), Some(0), Some(1), Some(536), Some(u16::MAX), None]);
            options.window_scale = c.of(&[Some(7), Some(0), Some(14), Some(255), None]);
            options.sack_permitted = !c.one_in(3);
        } else if c.one_in(3) {
            for block in options.sack.iter_mut().take(3) {
                let begin = ack + c.of(&[1000, 0, u32::MAX, 1 << 30]);
                *block = Some((begin, begin + u32::from(c.word())));
            }
        }
        match c.below(16) {
            0 => flags = flags | Flags::FIN,
            1 => flags = flags | Flags::RST,
            2 => flags = Flags(c.byte()),
            3 => flags = flags | Flags::PSH | Flags::URG,
            _ => {}
        }
        let payload = match c.below(8) {
            0..3 => Vec::new(),
            3 if destination.port() == 53 => {
                let query = Self::query(c);
                [&u16::try_from(query.len()).unwrap().to_be_bytes(), &query[..]].concat()
            }
            3 | 4 => vec![c.byte(); c.below(64)],
            5 => vec![c.byte(); 1460],
            6 => vec![c.byte(); 1 + c.below(3000)],
            _ => vec![c.byte(); 1 + c.below(60_000)],
        };
        let headers = TcpFrame {
            source_mac: self.plug.mac,
            destination_mac: self.mac_of(c, destination.ip()),
            source,
            destination,
            seq,
            ack,
            flags,
            window: c.of(&[u16::MAX, 0, 1, 500, 30_000]),
            options,
            hop_limit: c.of(&[64, 64, 64, 1]),
            traffic_class: c.byte(),
            ip_id: c.word(),
        };
        let len = headers.header_len();
        frame(|out| {
            out.resize(len + payload.len(), 0);
            out[len..].copy_from_slice(&payload);
            headers.emit(out, c.of(&[1460, 1440, 536, 8]))
        })
    }

    fn message(&self, c: &mut Choices<'_>) -> FrameBuf {
        let to = self.anybody(c);
        let mac = self.mac_of(c, to);
        let (id, seq, data) =
            (u16::from(c.byte() % 4), c.word(), vec![c.byte(); c.of(&[0, 56, 1400])]);
        let message = match c.below(6) {
            0..3 => Icmp::EchoRequest { id, seq, data: &data },
            3 => Icmp::EchoReply { id, seq, data: &data },
            4 => Icmp::Other { kind: c.byte(), code: c.byte() },
            _ => {
                let kinds = [
                    IcmpError::PortUnreachable,
                    IcmpError::HostUnreachable,
                    IcmpError::TooBig(u32::from(c.word())),
                    IcmpError::TimeExceeded,
                ];
                c.of(&kinds).message(to.is_ipv4(), &self.packet)
            }
        };
        frame(|out| build::icmp_frame(out, self.plug.mac, mac, self.own(to), to, 64, &message))
    }

    /// Reports of groups, and questions for them, of both families.
    fn membership(&self, c: &mut Choices<'_>) -> FrameBuf {
        let ipv4 = c.one_in(2);
        let (source, to, protocol): (IpAddr, IpAddr, u8) = if ipv4 {
            (self.plug.address4.into(), "224.0.0.22".parse().unwrap(), 2)
        } else {
            (self.plug.mac.link_local().into(), "ff02::16".parse().unwrap(), 58)
        };
        let kind = if ipv4 { c.of(&[0x22, 0x16, 0x17, 0x11]) } else { c.of(&[143, 131, 132, 130]) };
        let count = c.of(&[1, 2, 255]);
        let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, count, 1 + c.byte() % 6, 0, 0, c.byte() % 4];
        bytes.extend(match ipv4 {
            true => vec![239, 1, 2, c.byte()],
            false => [&[0xff, 5][..], &[0; 13], &[c.byte()]].concat(),
        });
        bytes.extend(c.bytes(8));
        if ipv4 {
            let sum = netyard_wire::checksum::finish(netyard_wire::checksum::sum(&bytes));
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let (from, mac) = (self.plug.mac, group_mac(to));
        frame(|out| build::raw_frame(out, from, mac, source, to, 1, protocol, &bytes))
    }

    fn fragments(&self, c: &mut Choices<'_>) -> Vec<FrameBuf> {
        let whole = match c.below(3) {
            0 => self.message(c),
            1 => self.segment(c),
            _ => self.datagram(c, &[2000, 5000, 60_000]),
        };
        let mut parts = Vec::new();
        let mtu = c.of(&[1500, 576, 1280, 68]);
        let emit = &mut |bytes: &[u8]| {
            parts.push(FrameBuf { bytes: bytes.to_vec(), offload: Offload::default() });
        };
        let _ = fragment::complete_and_cut(whole.as_frame(), mtu, c.long() % 8, emit);
        parts.truncate(64);
        parts
    }

    /// Another protocol over IP, or none.
    fn raw(&self, c: &mut Choices<'_>) -> FrameBuf {
        let to = self.anybody(c);
        let mac = self.mac_of(c, to);
        let len = c.below(64);
        let (protocol, bytes) = (c.of(&[4, 41, 47, 50, 0, 43, 44, 60, 132, 255]), c.bytes(len));
        let own = self.own(to);
        frame(|out| build::raw_frame(out, self.plug.mac, mac, own, to, 64, protocol, &bytes))
    }
}

/// Spoils a frame and its virtio-net header.
pub(crate) fn spoil(c: &mut Choices<'_>, frame: &mut FrameBuf, header: &mut [u8]) {
    for _ in 0..1 + c.below(3) {
        let len = frame.bytes.len();
        match c.below(7) {
            _ if len == 0 => {}
            // A bit, a byte, a word that may be a length.
            0 => {
                let at = c.below(len.min(100));
                frame.bytes[at] ^= 1 << (c.byte() % 8);
            }
            1 => {
                let at = c.below(len);
                frame.bytes[at] = c.byte();
            }
            2 => {
                let at = c.below(len.min(80));
                let word = c.of(&[0, 1, 8, 19, 20, 0x7fff, u16::MAX]).to_be_bytes();
                frame.bytes.iter_mut().skip(at).zip(word).for_each(|(to, from)| *to = from);
            }
            3 => frame.bytes.truncate(c.below(len)),
            4 => frame.bytes.extend(vec![c.byte(); c.below(40)]),
            5 => header[c.below(10)] = c.byte(),
            // "Known to be right": what was spoiled is not found by its checksum.
            _ => header[..2].copy_from_slice(&[2, 0]),
        }
    }
    if !c.one_in(4) {
        fix_header(&mut frame.bytes);
    }
}

/// Sets the checksum of an IPv4 header, if there is one.
fn fix_header(bytes: &mut [u8]) {
    if bytes.get(12..14) != Some(&[8, 0]) {
        return;
    }
    let Some(len) = bytes.get(14).map(|first| usize::from(first & 15) * 4) else { return };
    let Some(header) = bytes.get_mut(14..14 + len).filter(|it| it.len() >= 20) else { return };
    header[10..12].fill(0);
    let sum = netyard_wire::checksum::finish(netyard_wire::checksum::sum(header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}
