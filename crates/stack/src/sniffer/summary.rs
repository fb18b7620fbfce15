//! What a frame is: its protocol, its ends and its fields.

use std::net::{IpAddr, SocketAddr};

use netyard_wire::arp::{Arp, Operation};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{Icmp, Ndp};
use netyard_wire::ip::{self, IpPacket};
use netyard_wire::tcp::{Flags, Segment};
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, Frame, ParseError};

use super::Detail;

/// What a frame is.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) protocol: &'static str,
    pub(super) ends: Option<Ends>,
    /// What it does, in words.
    pub(super) what: String,
    pub(super) fields: Vec<Field>,
}

/// Addresses, with ports where there are any.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) source: String,
    pub(super) destination: String,
}

/// One thing about a frame.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) value: Value,
    /// From what detail on it is told.
    pub(super) detail: Detail,
}

#[derive(Debug)]
pub(super) enum Value {
    Number(u64),
    /// A number that people read with four digits.
    Hexadecimal(u16),
    Text(String),
    /// That it is so says all.
    Set,
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl From<$number> for Value {
            fn from(number: $number) -> Self {
                Self::Number(number.into())
            }
        }
    )*};
}

numbers!(u8, u16, u32);

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(u64::try_from(number).unwrap_or(u64::MAX))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Summary {
    pub(super) fn of(frame: Frame<'_>) -> Self {
        let (header, packet) = match Ethernet::parse(frame.bytes) {
            Ok(parts) => parts,
            Err(error) => return Self::malformed(error),
        };
        let mut summary = match header.ethertype {
            ethernet::ARP => Arp::parse(packet).map_or_else(Self::malformed, |arp| Self::arp(&arp)),
            ethernet::IPV4 | ethernet::IPV6 => IpPacket::parse(header.ethertype, packet)
                .map_or_else(Self::malformed, |packet| Self::packet(&packet, frame)),
            other => {
                let mut summary = Self::between("ethernet", header.source, header.destination);
                summary.add("type", Value::Hexadecimal(other));
                return summary;
            }
        };
        if let Some(gso) = frame.offload.gso {
            summary.add("gso", gso.size);
        }
        summary.add_full("from", header.source.to_string());
        summary.add_full("to", header.destination.to_string());
        summary
    }

    fn between(protocol: &'static str, source: impl ToString, destination: impl ToString) -> Self {
        let ends = Ends { source: source.to_string(), destination: destination.to_string() };
        Self { protocol, ends: Some(ends), ..Self::default() }
    }

    fn malformed(error: ParseError) -> Self {
        Self { protocol: "malformed", what: error.reason().to_owned(), ..Self::default() }
    }

    fn add(&mut self, key: &'static str, value: impl Into<Value>) {
        self.fields.push(Field { key, value: value.into(), detail: Detail::Brief });
    }

    fn add_usual(&mut self, key: &'static str, value: impl Into<Value>) {
        self.fields.push(Field { key, value: value.into(), detail: Detail::Usual });
    }

    fn add_full(&mut self, key: &'static str, value: impl Into<Value>) {
        self.fields.push(Field { key, value: value.into(), detail: Detail::Full });
    }

    fn arp(arp: &Arp) -> Self {
        let what = match arp.operation {
            Operation::Request => "asks for".to_owned(),
            _ => format!("is at {}, to", arp.sender_mac),
        };
        Self { what, ..Self::between("arp", arp.sender_ip, arp.target_ip) }
    }

    fn packet(packet: &IpPacket<'_>, frame: Frame<'_>) -> Self {
        let mut summary = match packet.fragment {
            Some(_) => Self::fragment(packet),
            None => Self::transport(packet),
        };
        if let Some(id) = packet.identification() {
            summary.add_full("ipid", Value::Hexadecimal(id));
        }
        summary.add_full("hops", packet.hop_limit);
        if packet.traffic_class != 0 {
            summary.add_full("class", packet.traffic_class);
        }
        match (frame.offload.checksum, packet.checksum()) {
            (Checksum::Partial { .. }, _) => summary.add_full("unsummed", Value::Set),
            (_, Some(sum)) => summary.add_full("sum", Value::Hexadecimal(sum)),
            (_, None) => {}
        }
        summary
    }

    fn fragment(packet: &IpPacket<'_>) -> Self {
        let mut summary = Self::between("fragment", packet.source, packet.destination);
        summary.add("protocol", packet.protocol);
        if let Some(fragment) = packet.fragment {
            summary.add("id", fragment.id);
            summary.add("offset", fragment.offset);
            if fragment.more {
                summary.add("more", Value::Set);
            }
        }
        summary.add("len", packet.payload.len());
        summary
    }

    fn transport(packet: &IpPacket<'_>) -> Self {
        let (source, destination) = (packet.source, packet.destination);
        let parsed = match packet.protocol {
            ip::TCP => Segment::parse(packet, Checksum::Valid)
                .map(|segment| Self::segment(source, destination, &segment)),
            ip::UDP => Datagram::parse(packet, Checksum::Valid).map(|datagram| {
                let from = SocketAddr::new(source, datagram.source_port);
                let to = SocketAddr::new(destination, datagram.destination_port);
                let mut summary = Self::between("udp", from, to);
                summary.add("len", datagram.payload.len());
                summary
            }),
            ip::ICMP | ip::ICMPV6 => Icmp::parse(packet, Checksum::Valid).map(|message| {
                let name = if source.is_ipv4() { "icmp" } else { "icmp6" };
                let mut summary = Self::between(name, source, destination);
                summary.tell_icmp(&message);
                summary
            }),
            other => {
                let mut summary = Self::between("ip", source, destination);
                summary.add("protocol", other);
                summary.add("len", packet.payload.len());
                Ok(summary)
            }
        };
        parsed.unwrap_or_else(|error| {
            let what = error.reason().to_owned();
            Self { what, ..Self::between("malformed", source, destination) }
        })
    }

    fn segment(source: IpAddr, destination: IpAddr, segment: &Segment<'_>) -> Self {
        let from = SocketAddr::new(source, segment.source_port);
        let to = SocketAddr::new(destination, segment.destination_port);
        let Segment { seq, ack, window, flags, options, .. } = segment;
        let mut summary = Self::between("tcp", from, to);
        summary.what = format!("{flags:?}");
        summary.add_usual("seq", seq.0);
        if flags.contains(Flags::ACK) {
            summary.add_usual("ack", ack.0);
        }
        summary.add_usual("win", *window);
        summary.add("len", segment.payload.len());
        if let Some(mss) = options.mss {
            summary.add_usual("mss", mss);
        }
        if let Some(shift) = options.window_scale {
            summary.add_usual("ws", shift);
        }
        if options.sack_permitted {
            summary.add_usual("sackok", Value::Set);
        }
        if let Some((value, echo)) = options.timestamps {
            summary.add_usual("ts", format!("{value}/{echo}"));
        }
        let blocks = options.sack.into_iter().flatten();
        let blocks: Vec<String> = blocks.map(|(left, right)| format!("{left}-{right}")).collect();
        if !blocks.is_empty() {
            summary.add_usual("sack", blocks.join(","));
        }
        summary
    }

    fn tell_icmp(&mut self, message: &Icmp<'_>) {
        self.what = match message {
            Icmp::EchoRequest { .. } => "echo request".to_owned(),
            Icmp::EchoReply { .. } => "echo reply".to_owned(),
            Icmp::Unreachable { .. } => "unreachable".to_owned(),
            Icmp::PacketTooBig { .. } => "packet too big".to_owned(),
            Icmp::TimeExceeded { .. } => "time exceeded".to_owned(),
            Icmp::Ndp(Ndp::RouterSolicitation { .. }) => "router solicitation".to_owned(),
            Icmp::Ndp(Ndp::RouterAdvertisement { .. }) => "router advertisement".to_owned(),
            Icmp::Ndp(Ndp::NeighborSolicitation { target, .. }) => {
                format!("neighbor solicitation for {target}")
            }
            Icmp::Ndp(Ndp::NeighborAdvertisement { target, .. }) => {
                format!("neighbor advertisement of {target}")
            }
            Icmp::Other { .. } => String::new(),
        };
        match message {
            Icmp::EchoRequest { id, seq, data } | Icmp::EchoReply { id, seq, data } => {
                self.add("id", *id);
                self.add("seq", *seq);
                self.add("len", data.len());
            }
            Icmp::Unreachable { code, .. } | Icmp::TimeExceeded { code, .. } => {
                self.add("code", *code);
            }
            Icmp::PacketTooBig { mtu, .. } => self.add("mtu", *mtu),
            Icmp::Ndp(Ndp::RouterAdvertisement { lifetime, .. }) => self.add("lifetime", *lifetime),
            Icmp::Other { kind, code } => {
                self.add("type", *kind);
                self.add("code", *code);
            }
            Icmp::Ndp(_) => {}
        }
    }
}
