//! What comes in: from a frame to whom it is for.

use std::net::SocketAddr;
use std::time::Instant;

use netyard_wire::arp::Arp;
use netyard_wire::dhcp::v4::CLIENT_PORT;
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{Icmp, IcmpError};
use netyard_wire::ip::{self as protocol, IpPacket};
use netyard_wire::tcp::Segment;
use netyard_wire::udp::{Datagram, destination_port};
use netyard_wire::{Checksum, Frame, FrameBuf, Offload, ParseError, Quoted};

use super::Stack;
use crate::ip::{Destination, Medium, NicIndex, on_link};
use crate::{Error, tcp, udp};

/// How a packet came.
#[derive(Debug, Clone, Copy)]
struct Came {
    /// The link that it was on; `None`: this host sent it to itself, and its addresses are of no link.
    nic: Option<NicIndex>,
    /// In a frame to a group of stations.
    group: bool,
    /// This host sent it to itself.
    looped: bool,
}

impl Stack {
    /// Takes a frame that an interface has received.
    pub fn handle_frame(&mut self, now: Instant, nic: NicIndex, frame: Frame<'_>) {
        let Some(interface) = self.ip.nic(nic) else { return };
        let (medium, own) = (interface.medium, interface.mac());
        let (header, packet) = match Ethernet::parse(frame.bytes) {
            Ok(parts) => parts,
            Err(error) => return self.ip.drop(error.reason()),
        };
        if medium != Medium::Ip {
            if header.destination != own && !header.destination.is_multicast() {
                return self.ip.drop("ethernet-destination");
            }
            if header.ethertype == ethernet::ARP {
                return match Arp::parse(packet) {
                    Ok(arp) => self.ip.handle_arp(now, nic, &arp),
                    Err(error) => self.ip.drop(error.reason()),
                };
            }
        }
        let group = medium != Medium::Ip && header.destination.is_multicast();
        match IpPacket::parse(header.ethertype, packet) {
            Ok(packet) => {
                let came = Came { nic: Some(nic), group, looped: false };
                self.handle_packet(now, came, &packet, frame.offload);
            }
            Err(error) => self.ip.drop(error.reason()),
        }
    }

    /// Takes a frame that this host has sent to itself, on a link if its addresses belong to one.
    pub(super) fn handle_looped(&mut self, now: Instant, nic: Option<NicIndex>, frame: &FrameBuf) {
        let packet = Ethernet::parse(&frame.bytes)
            .and_then(|(header, packet)| IpPacket::parse(header.ethertype, packet));
        match packet {
            Ok(packet) => {
                let came = Came { nic, group: false, looped: true };
                self.handle_packet(now, came, &packet, frame.offload);
            }
            Err(error) => self.ip.drop(error.reason()),
        }
    }

    fn handle_packet(&mut self, now: Instant, came: Came, packet: &IpPacket<'_>, offload: Offload) {
        let Came { nic, group, looped } = came;
        let strange = !self.ip.may_be_source(packet.source);
        if strange || (!looped && self.is_forged(nic, packet)) {
            return self.ip.drop("ip-source");
        }
        // A server writes to an address that is not ours yet.
        if let Some(nic) = nic.filter(|nic| !looped && self.ip.has_dhcp(*nic))
            && destination_port(packet) == Some(CLIENT_PORT)
            && packet.source.is_ipv4()
        {
            return match Datagram::parse(packet, offload.checksum) {
                Ok(datagram) => self.ip.handle_dhcp(now, nic, datagram.payload),
                Err(error) => self.ip.drop(error.reason()),
            };
        }
        let Some(kind) = self.ip.destination(nic, packet.destination) else {
            // Groups that nobody here is in are everyday traffic of a link.
            if !packet.destination.is_multicast() {
                self.ip.drop("ip-destination");
            }
            return;
        };
        if group && kind == Destination::Own {
            // RFC 1122 section 3.3.6: not for one host, whatever the packet says.
            return self.ip.drop("ip-group-frame");
        }
        if packet.fragment.is_none() {
            return self.deliver(now, nic, packet, offload, kind);
        }
        if let Some(payload) = self.ip.reassemble(now, nic, packet) {
            let whole = IpPacket { fragment: None, payload: &payload, ..*packet };
            let offload = Offload { checksum: Checksum::Present, gso: None };
            self.deliver(now, nic, &whole, offload, kind);
        }
    }

    /// True for a packet that came from outside, and cannot have.
    fn is_forged(&self, nic: Option<NicIndex>, packet: &IpPacket<'_>) -> bool {
        let loops = packet.source.is_loopback() || packet.destination.is_loopback();
        // Who has an address of ours, too, says so by neighbour discovery.
        let discovery = packet.protocol == protocol::ICMPV6;
        loops || (!discovery && self.ip.is_own_on(nic, packet.source))
    }

    fn deliver(
        &mut self,
        now: Instant,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
        offload: Offload,
        kind: Destination,
    ) {
        let icmp = matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6)
            .then(|| Icmp::parse(packet, offload.checksum));
        // RFC 3542 section 3.1: programs see no ICMPv6 whose checksum is not known to be right.
        let unsure =
            |error: &ParseError| matches!(error.reason(), "icmp-checksum" | "icmp-truncated");
        let damaged = packet.protocol == protocol::ICMPV6
            && matches!(&icmp, Some(Err(error)) if unsure(error));
        let raw = kind != Destination::Broadcast
            && !damaged
            && self.raw.handle(&mut self.ip, &mut self.events, nic, packet);
        let parsed = match packet.protocol {
            protocol::TCP if kind != Destination::Own || packet.source.is_unspecified() => {
                return self.ip.drop("tcp-group");
            }
            protocol::TCP => Segment::parse(packet, offload.checksum).map(|segment| {
                let gso = offload.gso;
                let (source, destination) =
                    ends_of(packet, nic, segment.source_port, segment.destination_port);
                let arrival = tcp::Arrival { source, destination, segment, gso };
                self.tcp.handle(&mut self.ip, &mut self.events, now, &arrival);
            }),
            protocol::UDP => Datagram::parse(packet, offload.checksum).map(|datagram| {
                let (source, destination) =
                    ends_of(packet, nic, datagram.source_port, datagram.destination_port);
                let arrival =
                    udp::Arrival { nic, source, destination, kind, datagram, gso: offload.gso };
                if !self.udp.handle(&mut self.ip, &mut self.events, &arrival) {
                    self.ip.drop("udp-port");
                    if kind == Destination::Own {
                        self.ip.send_error(now, nic, packet, IcmpError::PortUnreachable);
                    }
                }
            }),
            _ => match icmp {
                Some(icmp) => {
                    icmp.map(|message| self.handle_icmp(now, nic, packet, message, kind, raw))
                }
                None if raw => return,
                None => return self.ip.drop("ip-protocol"),
            },
        };
        if let Err(error) = parsed {
            self.ip.drop(error.reason());
        }
    }

    /// `raw`: a raw socket has it, too.
    fn handle_icmp(
        &mut self,
        now: Instant,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
        message: Icmp<'_>,
        kind: Destination,
        raw: bool,
    ) {
        match message {
            Icmp::EchoRequest { id, seq, data } => {
                // RFC 1122 section 3.2.2.6: a ping to everybody need not be answered.
                if kind == Destination::Own {
                    let answer = Icmp::EchoReply { id, seq, data };
                    self.ip.answer(now, nic, packet, &answer);
                }
            }
            Icmp::EchoReply { .. } | Icmp::Other { .. } if raw => {}
            Icmp::EchoReply { .. } | Icmp::Other { .. } => self.ip.drop("icmp-unasked"),
            Icmp::Unreachable { code, original } => {
                let error = unreachable_error(packet.source.is_ipv4(), code);
                self.handle_error(now, nic, original, error);
            }
            Icmp::TimeExceeded { original, .. } => {
                self.handle_error(now, nic, original, Error::HostUnreachable);
            }
            Icmp::PacketTooBig { mtu, original } => self.handle_too_big(now, nic, mtu, original),
            Icmp::Ndp(message) => {
                if let Some(nic) = nic {
                    self.ip.handle_ndp(now, nic, packet, message);
                }
            }
        }
    }

    /// An error about a packet of ours on a link, quoted from its IP header.
    pub(super) fn handle_error(
        &mut self,
        now: Instant,
        nic: Option<NicIndex>,
        original: &[u8],
        error: Error,
    ) {
        let Some(quoted) = Quoted::parse(original) else { return self.ip.drop("icmp-quote") };
        let local = on_link(quoted.source, quoted.source_port, nic);
        let remote = on_link(quoted.destination, quoted.destination_port, nic);
        if quoted.protocol == protocol::UDP {
            self.udp.handle_error(&mut self.events, local, remote, error);
        } else {
            let ends = tcp::Ends::new(local, remote);
            let (ip, events) = (&mut self.ip, &mut self.events);
            self.tcp.handle_error(ip, events, now, &ends, quoted.seq, error);
        }
    }

    fn handle_too_big(&mut self, now: Instant, nic: Option<NicIndex>, mtu: u32, original: &[u8]) {
        let quoted = Quoted::parse(original).or_else(|| Quoted::parse_header(original));
        let Some(quoted) = quoted else { return self.ip.drop("icmp-quote") };
        let local = on_link(quoted.source, quoted.source_port, nic);
        let remote = on_link(quoted.destination, quoted.destination_port, nic);
        let ends = tcp::Ends::new(local, remote);
        // Only what is on its way is believed, or may be: anybody can send such a message.
        let known = match quoted.protocol {
            protocol::TCP => self.tcp.is_in_flight(&ends, quoted.seq),
            protocol::UDP => self.udp.may_have_sent(local, remote),
            _ => false,
        };
        let packets = on_link(quoted.source, 0, nic);
        if !known && !self.raw.may_have_sent(packets, quoted.protocol) {
            return self.ip.drop("icmp-stale");
        }
        if !self.ip.is_own(quoted.source)
            || !self.ip.learn_path_mtu(now, quoted.destination, nic, mtu, quoted.len)
        {
            return;
        }
        if quoted.protocol == protocol::TCP {
            self.tcp.handle_too_big(&self.ip, now, &ends);
        } else if quoted.protocol == protocol::UDP {
            self.udp.handle_error(&mut self.events, local, remote, Error::MessageTooLong);
        }
    }
}

/// Who sent a packet on a link, and to whom.
fn ends_of(
    packet: &IpPacket<'_>,
    nic: Option<NicIndex>,
    source_port: u16,
    destination_port: u16,
) -> (SocketAddr, SocketAddr) {
    (on_link(packet.source, source_port, nic), on_link(packet.destination, destination_port, nic))
}

/// What an unreachable destination means to a socket (RFC 1122 section 4.2.3.9, RFC 4443 section 3.1;
/// as Linux maps them).
fn unreachable_error(ipv4: bool, code: u8) -> Error {
    match (ipv4, code) {
        (true, 3) | (false, 4) => Error::ConnectionRefused,
        (true, 2) => Error::ProtocolUnreachable,
        (true, 0 | 6 | 9 | 11) | (false, 0) => Error::NetworkUnreachable,
        _ => Error::HostUnreachable,
    }
}
