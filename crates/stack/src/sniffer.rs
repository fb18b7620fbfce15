//! What passes an interface, as text: a line for each packet.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use netyard_wire::arp::{Arp, Operation};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{Icmp, Ndp};
use netyard_wire::ip::{self, IpPacket};
use netyard_wire::tcp::{Flags, Segment};
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, Frame};

/// Which way a frame goes, seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It was received.
    In,
    /// It is sent.
    Out,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::In => "in",
            Self::Out => "out",
        })
    }
}

/// What a frame is: protocol, ends, and what matters of the rest. Checksums are not looked at. A frame
/// that is cut into several later says so by `gso`.
#[must_use]
pub fn describe(frame: Frame<'_>) -> String {
    let mut line = String::new();
    // Writing to a string does not fail.
    let _ = write_frame(&mut line, frame);
    line
}

fn write_frame(out: &mut String, frame: Frame<'_>) -> fmt::Result {
    let (header, packet) = match Ethernet::parse(frame.bytes) {
        Ok(parts) => parts,
        Err(error) => return write!(out, "malformed {}", error.reason()),
    };
    match header.ethertype {
        ethernet::ARP => return write_arp(out, packet),
        ethernet::IPV4 | ethernet::IPV6 => {}
        other => {
            let Ethernet { source, destination, .. } = header;
            return write!(out, "ethernet {source} > {destination} type={other:#06x}");
        }
    }
    match IpPacket::parse(header.ethertype, packet) {
        Ok(packet) => write_packet(out, &packet)?,
        Err(error) => return write!(out, "malformed {}", error.reason()),
    }
    match frame.offload.gso {
        Some(gso) => write!(out, " gso={}", gso.size),
        None => Ok(()),
    }
}

fn write_arp(out: &mut String, packet: &[u8]) -> fmt::Result {
    match Arp::parse(packet) {
        Ok(Arp { operation: Operation::Request, sender_ip, target_ip, .. }) => {
            write!(out, "arp {sender_ip} asks for {target_ip}")
        }
        Ok(Arp { sender_ip, sender_mac, target_ip, .. }) => {
            write!(out, "arp {sender_ip} is at {sender_mac}, to {target_ip}")
        }
        Err(error) => write!(out, "malformed {}", error.reason()),
    }
}

fn write_packet(out: &mut String, packet: &IpPacket<'_>) -> fmt::Result {
    let (source, destination) = (packet.source, packet.destination);
    let len = packet.payload.len();
    if let Some(fragment) = packet.fragment {
        let (offset, id) = (fragment.offset, fragment.id);
        let more = if fragment.more { "+" } else { "" };
        let protocol = packet.protocol;
        return write!(
            out,
            "fragment {source} > {destination} protocol={protocol} id={id} offset={offset}{more} \
             len={len}"
        );
    }
    let result = match packet.protocol {
        ip::TCP => Segment::parse(packet, Checksum::Valid)
            .map(|segment| write_segment(out, source, destination, &segment)),
        ip::UDP => Datagram::parse(packet, Checksum::Valid).map(|datagram| {
            let from = SocketAddr::new(source, datagram.source_port);
            let to = SocketAddr::new(destination, datagram.destination_port);
            write!(out, "udp {from} > {to} len={}", datagram.payload.len())
        }),
        ip::ICMP | ip::ICMPV6 => Icmp::parse(packet, Checksum::Valid).map(|message| {
            let name = if source.is_ipv4() { "icmp" } else { "icmp6" };
            write!(out, "{name} {source} > {destination} ")?;
            write_icmp(out, &message)
        }),
        other => Ok(write!(out, "ip {source} > {destination} protocol={other} len={len}")),
    };
    match result {
        Ok(written) => written,
        Err(error) => write!(out, "malformed {} {source} > {destination}", error.reason()),
    }
}

fn write_segment(
    out: &mut String,
    source: IpAddr,
    destination: IpAddr,
    segment: &Segment<'_>,
) -> fmt::Result {
    let from = SocketAddr::new(source, segment.source_port);
    let to = SocketAddr::new(destination, segment.destination_port);
    let Segment { seq, window, flags, options, .. } = segment;
    write!(out, "tcp {from} > {to} {flags:?} seq={seq}")?;
    if flags.contains(Flags::ACK) {
        write!(out, " ack={}", segment.ack)?;
    }
    write!(out, " win={window} len={}", segment.payload.len())?;
    if let Some(mss) = options.mss {
        write!(out, " mss={mss}")?;
    }
    if let Some(shift) = options.window_scale {
        write!(out, " ws={shift}")?;
    }
    if options.sack_permitted {
        write!(out, " sackok")?;
    }
    if let Some((value, echo)) = options.timestamps {
        write!(out, " ts={value}/{echo}")?;
    }
    for (left, right) in options.sack.into_iter().flatten() {
        write!(out, " sack={left}-{right}")?;
    }
    Ok(())
}

fn write_icmp(out: &mut String, message: &Icmp<'_>) -> fmt::Result {
    match message {
        Icmp::EchoRequest { id, seq, data } => {
            write!(out, "echo request id={id} seq={seq} len={}", data.len())
        }
        Icmp::EchoReply { id, seq, data } => {
            write!(out, "echo reply id={id} seq={seq} len={}", data.len())
        }
        Icmp::Unreachable { code, .. } => write!(out, "unreachable code={code}"),
        Icmp::PacketTooBig { mtu, .. } => write!(out, "packet too big mtu={mtu}"),
        Icmp::TimeExceeded { code, .. } => write!(out, "time exceeded code={code}"),
        Icmp::Ndp(Ndp::RouterSolicitation { .. }) => write!(out, "router solicitation"),
        Icmp::Ndp(Ndp::RouterAdvertisement { lifetime, .. }) => {
            write!(out, "router advertisement lifetime={lifetime}")
        }
        Icmp::Ndp(Ndp::NeighborSolicitation { target, .. }) => {
            write!(out, "neighbor solicitation for {target}")
        }
        Icmp::Ndp(Ndp::NeighborAdvertisement { target, .. }) => {
            write!(out, "neighbor advertisement of {target}")
        }
        Icmp::Other { kind, code } => write!(out, "type={kind} code={code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netyard_wire::build::{self, TcpFrame};
    use netyard_wire::tcp::TcpOptions;
    use netyard_wire::{MacAddr, Offload, SeqNumber};
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn line(bytes: &[u8], offload: Offload) -> String {
        describe(Frame { bytes, offload })
    }

    #[test]
    fn packets_are_told_with_what_matters() {
        let mut bytes = Vec::new();
        let segment = TcpFrame {
            source_mac: MAC,
            destination_mac: MAC,
            source: "10.0.0.1:5000".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
            seq: SeqNumber(1),
            ack: SeqNumber(2),
            flags: Flags::SYN | Flags::ACK,
            window: 1000,
            options: TcpOptions {
                mss: Some(1460),
                window_scale: Some(7),
                sack_permitted: true,
                timestamps: Some((5, 6)),
                ..TcpOptions::default()
            },
            hop_limit: 64,
            traffic_class: 0,
            ip_id: 0,
        };
        bytes.resize(segment.header_len(), 0);
        let offload = segment.emit(&mut bytes, 1460);
        let wanted = "tcp 10.0.0.1:5000 > 10.0.0.2:80 SYN|ACK seq=1 ack=2 win=1000 len=0 mss=1460 \
                      ws=7 sackok ts=5/6";
        assert_eq!(line(&bytes, offload), wanted);
        let options = TcpOptions {
            sack: [Some((SeqNumber(7), SeqNumber(9))), None, None, None],
            ..TcpOptions::default()
        };
        let segment = TcpFrame { flags: Flags::ACK, options, ..segment };
        bytes.clear();
        bytes.resize(segment.header_len() + 4000, 0);
        let offload = segment.emit(&mut bytes, 1448);
        let wanted = "tcp 10.0.0.1:5000 > 10.0.0.2:80 ACK seq=1 ack=2 win=1000 len=4000 sack=7-9 \
                      gso=1448";
        assert_eq!(line(&bytes, offload), wanted);

        let (from, to) = ("[fd00::1]:1".parse().unwrap(), "[fd00::2]:53".parse().unwrap());
        let offload = build::udp_frame(&mut bytes, MAC, MAC, from, to, 64, b"hello");
        assert_eq!(line(&bytes, offload), "udp [fd00::1]:1 > [fd00::2]:53 len=5");
        let ask = Icmp::EchoRequest { id: 3, seq: 4, data: b"xy" };
        let (from, to) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let offload = build::icmp_frame(&mut bytes, MAC, MAC, from, to, 64, &ask);
        let wanted = "icmp 10.0.0.1 > 10.0.0.2 echo request id=3 seq=4 len=2";
        assert_eq!(line(&bytes, offload), wanted);
        let arp = Arp {
            operation: Operation::Request,
            sender_mac: MAC,
            sender_ip: "10.0.0.1".parse().unwrap(),
            target_mac: MAC,
            target_ip: "10.0.0.2".parse().unwrap(),
        };
        let offload = build::arp_frame(&mut bytes, MAC, MacAddr::BROADCAST, &arp);
        assert_eq!(line(&bytes, offload), "arp 10.0.0.1 asks for 10.0.0.2");
        assert_eq!(line(&bytes[..20], offload), "malformed arp-truncated");
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0..4) {
            if let (Some(field), 1..) = (bytes.get_mut(12..14), kind) {
                let kinds = [ethernet::ARP, ethernet::IPV4, ethernet::IPV6];
                field.copy_from_slice(&kinds[kind as usize - 1].to_be_bytes());
            }
            prop_assert!(!line(&bytes, Offload::default()).is_empty());
        }
    }
}
