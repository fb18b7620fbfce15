//! Whole frames, ready for a plug.
//!
//! TCP and UDP checksums are left partial: most receivers are kernels on this machine, which need
//! none. Nothing is padded: TAP devices and VMs take runts, and padding is how memory leaks.
//!
//! Both addresses of a frame are of one family; if a caller mixes them, the frame is IPv6 with
//! IPv4-mapped addresses, which every receiver drops.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::arp::Arp;
use crate::ethernet::{self, Ethernet};
use crate::icmp::{Icmp, IcmpError, NDP_HOP_LIMIT};
use crate::router::RouterAdvertisement;
use crate::tcp::{self, Flags, TcpOptions};
use crate::{Checksum, Gso, GsoKind, MacAddr, Offload, SeqNumber, checksum, ip, udp};

/// The hop limit of packets that start here (RFC 1700).
pub const HOP_LIMIT: u8 = 64;

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const DONT_FRAGMENT: u8 = 0x40;

/// The headers of a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFrame {
    /// Source hardware address.
    pub source_mac: MacAddr,
    /// Destination hardware address.
    pub destination_mac: MacAddr,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: SeqNumber,
    /// Acknowledgement number.
    pub ack: SeqNumber,
    /// Control bits.
    pub flags: Flags,
    /// Window, already scaled down.
    pub window: u16,
    /// Options. SACK blocks that have no room behind the others are left out.
    pub options: TcpOptions,
    /// Time to live, hop limit.
    pub hop_limit: u8,
    /// Type of service, traffic class.
    pub traffic_class: u8,
    /// Identification of the (first) IPv4 packet.
    pub ip_id: u16,
}

impl TcpFrame {
    /// Length of all headers, Ethernet to TCP options, bytes.
    #[must_use]
    pub fn header_len(&self) -> usize {
        let ip = Pair::new(self.source.ip(), self.destination.ip()).header_len();
        let fixed = ethernet::HEADER_LEN.saturating_add(ip).saturating_add(tcp::HEADER_LEN);
        fixed.saturating_add(self.options.encode().as_bytes().len())
    }

    /// Writes the headers into the first [`header_len`](Self::header_len) bytes of `frame`, which
    /// ends where the payload ends; a shorter frame is left as it is. The IP packet must not exceed
    /// 65 535 bytes. The checksum is left partial, and the frame is to be cut into segments if it
    /// holds more payload than `mss`, bytes.
    pub fn emit(&self, frame: &mut [u8], mss: u16) -> Offload {
        self.write(frame, mss).unwrap_or_default()
    }

    fn write(&self, frame: &mut [u8], mss: u16) -> Option<Offload> {
        let options = self.options.encode();
        let options = options.as_bytes();
        let ip = IpHeader {
            pair: Pair::new(self.source.ip(), self.destination.ip()),
            traffic_class: self.traffic_class,
            hop_limit: self.hop_limit,
            protocol: ip::TCP,
            id: self.ip_id,
        };
        let transport = ip.transport_offset();
        let header_len = transport.checked_add(tcp::HEADER_LEN)?.checked_add(options.len())?;
        let payload_len = frame.len().checked_sub(header_len)?;
        let segment = ip.write(frame, self.source_mac, self.destination_mac)?;
        let pseudo_header = ip.pseudo_header(segment.len());
        let (header, rest) = segment.split_first_chunk_mut()?;
        *header = self.header(options.len(), pseudo_header);
        rest.get_mut(..options.len())?.copy_from_slice(options);
        let gso = (payload_len > usize::from(mss)).then_some(Gso {
            kind: match ip.pair {
                Pair::V4(..) => GsoKind::Tcp4,
                Pair::V6(..) => GsoKind::Tcp6,
            },
            size: mss,
            header_len: u16::try_from(header_len).ok()?,
            ecn: self.flags.contains(Flags::CWR),
        });
        Some(Offload { checksum: partial(transport, tcp::CHECKSUM_OFFSET), gso })
    }

    fn header(&self, options_len: usize, checksum: u16) -> [u8; tcp::HEADER_LEN] {
        let [s0, s1] = self.source.port().to_be_bytes();
        let [d0, d1] = self.destination.port().to_be_bytes();
        let [q0, q1, q2, q3] = self.seq.0.to_be_bytes();
        let [a0, a1, a2, a3] = self.ack.0.to_be_bytes();
        let [w0, w1] = self.window.to_be_bytes();
        let [c0, c1] = checksum.to_be_bytes();
        // The length in 32-bit words, in the upper half of the byte: bytes / 4 * 16.
        let len = u8::try_from(tcp::HEADER_LEN.saturating_add(options_len)).unwrap_or(60);
        [
            s0,
            s1,
            d0,
            d1,
            q0,
            q1,
            q2,
            q3,
            a0,
            a1,
            a2,
            a3,
            len << 2,
            self.flags.0,
            w0,
            w1,
            c0,
            c1,
            0,
            0,
        ]
    }
}

/// Writes a UDP datagram into `out`, which is cleared first; its checksum is left partial. The IP
/// packet must not exceed 65 535 bytes.
pub fn udp_frame(
    out: &mut Vec<u8>,
    source_mac: MacAddr,
    destination_mac: MacAddr,
    source: SocketAddr,
    destination: SocketAddr,
    hop_limit: u8,
    payload: &[u8],
) -> Offload {
    let macs = (source_mac, destination_mac);
    udp_frame_of_many(out, macs, (source, destination), hop_limit, [payload], u16::MAX)
}

/// Writes UDP datagrams of `size` bytes, the last of which may be shorter, into `out` as one frame that is to be cut
/// into them, if they are several; `parts` are the datagrams, one behind the other. `out` is cleared first, and
/// checksums are left partial. The IP packet must not exceed 65 535 bytes.
pub fn udp_frame_of_many<'a>(
    out: &mut Vec<u8>,
    (source_mac, destination_mac): (MacAddr, MacAddr),
    (source, destination): (SocketAddr, SocketAddr),
    hop_limit: u8,
    parts: impl IntoIterator<Item = &'a [u8]>,
    size: u16,
) -> Offload {
    let ip = IpHeader {
        pair: Pair::new(source.ip(), destination.ip()),
        traffic_class: 0,
        hop_limit,
        protocol: ip::UDP,
        id: 0,
    };
    let transport = ip.transport_offset();
    let header_len = transport.saturating_add(udp::HEADER_LEN);
    out.clear();
    out.resize(header_len, 0);
    parts.into_iter().for_each(|part| out.extend_from_slice(part));
    let several = out.len() > header_len.saturating_add(size.into());
    if let Some(datagram) = ip.write(out, source_mac, destination_mac) {
        let len = datagram.len();
        let pseudo_header = ip.pseudo_header(len);
        if let Some(header) = datagram.first_chunk_mut() {
            let [s0, s1] = source.port().to_be_bytes();
            let [d0, d1] = destination.port().to_be_bytes();
            let [l0, l1] = length_field(len).to_be_bytes();
            let [c0, c1] = pseudo_header.to_be_bytes();
            *header = [s0, s1, d0, d1, l0, l1, c0, c1];
        }
    }
    let header_len = u16::try_from(header_len).unwrap_or(u16::MAX);
    let gso = several.then_some(Gso { kind: GsoKind::Udp, size, header_len, ecn: false });
    Offload { checksum: partial(transport, udp::CHECKSUM_OFFSET), gso }
}

/// Writes an ICMP message with its checksum into `out`, which is cleared first. A neighbour
/// discovery message wants IPv6 addresses and a hop limit of 255.
pub fn icmp_frame(
    out: &mut Vec<u8>,
    source_mac: MacAddr,
    destination_mac: MacAddr,
    source: IpAddr,
    destination: IpAddr,
    hop_limit: u8,
    message: &Icmp<'_>,
) -> Offload {
    let pair = match message {
        Icmp::Ndp(_) => Pair::mapped(source, destination),
        _ => Pair::new(source, destination),
    };
    let ipv4 = matches!(pair, Pair::V4(..));
    icmp(out, source_mac, destination_mac, pair, hop_limit, |out| message.emit(ipv4, out))
}

/// Writes a router advertisement with its checksum into `out`, which is cleared first.
pub fn router_advertisement_frame(
    out: &mut Vec<u8>,
    source_mac: MacAddr,
    destination_mac: MacAddr,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    advertisement: &RouterAdvertisement,
) -> Offload {
    let pair = Pair::V6(source, destination);
    icmp(out, source_mac, destination_mac, pair, NDP_HOP_LIMIT, |out| advertisement.emit(out))
}

/// Writes an ICMP message that `emit` appends with its checksum zero.
fn icmp(
    out: &mut Vec<u8>,
    source_mac: MacAddr,
    destination_mac: MacAddr,
    pair: Pair,
    hop_limit: u8,
    emit: impl FnOnce(&mut Vec<u8>),
) -> Offload {
    let ipv4 = matches!(pair, Pair::V4(..));
    let protocol = if ipv4 { ip::ICMP } else { ip::ICMPV6 };
    let ip = IpHeader { pair, traffic_class: 0, hop_limit, protocol, id: 0 };
    out.clear();
    out.resize(ip.transport_offset(), 0);
    emit(out);
    if let Some(message) = ip.write(out, source_mac, destination_mac) {
        ip.complete_icmp(message);
    }
    Offload::default()
}

/// Writes an IP packet around a payload that has its own headers into `out`, which is cleared first. Of those only the
/// checksum of ICMPv6 is filled in (RFC 3542 section 3.1).
#[expect(clippy::too_many_arguments, reason = "the fields of two headers")]
pub fn raw_frame(
    out: &mut Vec<u8>,
    source_mac: MacAddr,
    destination_mac: MacAddr,
    source: IpAddr,
    destination: IpAddr,
    hop_limit: u8,
    protocol: u8,
    payload: &[u8],
) -> Offload {
    let pair = Pair::new(source, destination);
    let ip = IpHeader { pair, traffic_class: 0, hop_limit, protocol, id: 0 };
    out.clear();
    out.resize(ip.transport_offset(), 0);
    out.extend_from_slice(payload);
    if let Some(message) = ip.write(out, source_mac, destination_mac)
        && protocol == ip::ICMPV6
        && matches!(pair, Pair::V6(..))
    {
        if let Some([_, _, field @ ..]) = message.first_chunk_mut::<4>() {
            *field = [0, 0];
        }
        ip.complete_icmp(message);
    }
    Offload::default()
}

/// Writes an ICMP error about a packet into `out`, which is cleared first.
/// [`icmp::may_answer_with_error`](crate::icmp::may_answer_with_error) says whether to send one.
pub fn icmp_error(
    out: &mut Vec<u8>,
    source_mac: MacAddr,
    destination_mac: MacAddr,
    source: IpAddr,
    destination: IpAddr,
    error: IcmpError,
    original_ip_packet: &[u8],
) -> Offload {
    let ipv4 = matches!(Pair::new(source, destination), Pair::V4(..));
    let message = error.message(ipv4, original_ip_packet);
    icmp_frame(out, source_mac, destination_mac, source, destination, HOP_LIMIT, &message)
}

/// Writes an ARP packet into `out`, which is cleared first.
pub fn arp_frame(
    out: &mut Vec<u8>,
    source_mac: MacAddr,
    destination_mac: MacAddr,
    arp: &Arp,
) -> Offload {
    let ethernet =
        Ethernet { destination: destination_mac, source: source_mac, ethertype: ethernet::ARP };
    out.clear();
    out.extend_from_slice(&ethernet.emit());
    out.extend_from_slice(&arp.emit());
    Offload::default()
}

/// Source and destination of a packet, of one family.
#[derive(Debug, Clone, Copy)]
enum Pair {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Pair {
    fn new(source: IpAddr, destination: IpAddr) -> Self {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Self::V4(source, destination),
            _ => Self::mapped(source, destination),
        }
    }

    fn mapped(source: IpAddr, destination: IpAddr) -> Self {
        let map = |address| match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        Self::V6(map(source), map(destination))
    }

    fn header_len(self) -> usize {
        match self {
            Self::V4(..) => IPV4_LEN,
            Self::V6(..) => IPV6_LEN,
        }
    }
}

/// An IP header, without options.
struct IpHeader {
    pair: Pair,
    traffic_class: u8,
    hop_limit: u8,
    protocol: u8,
    id: u16,
}

impl IpHeader {
    /// Where the transport header begins, bytes from the start of the frame.
    fn transport_offset(&self) -> usize {
        ethernet::HEADER_LEN.saturating_add(self.pair.header_len())
    }

    /// Writes Ethernet and IP headers to the front of `frame`; the rest of it is the payload.
    /// `None` if the headers have no room.
    fn write<'f>(
        &self,
        frame: &'f mut [u8],
        source_mac: MacAddr,
        destination_mac: MacAddr,
    ) -> Option<&'f mut [u8]> {
        let ethertype = match self.pair {
            Pair::V4(..) => ethernet::IPV4,
            Pair::V6(..) => ethernet::IPV6,
        };
        let header = Ethernet { destination: destination_mac, source: source_mac, ethertype };
        let (ethernet, packet) = frame.split_first_chunk_mut()?;
        *ethernet = header.emit();
        match self.pair {
            Pair::V4(source, destination) => {
                let total_len = length_field(packet.len());
                let (header, payload) = packet.split_first_chunk_mut()?;
                *header = self.v4(source, destination, total_len);
                Some(payload)
            }
            Pair::V6(source, destination) => {
                let payload_len = packet.len().checked_sub(IPV6_LEN)?;
                let (fixed, rest) = packet.split_first_chunk_mut()?;
                *fixed = self.v6(length_field(payload_len));
                let (field, rest) = rest.split_first_chunk_mut()?;
                *field = source.octets();
                let (field, payload) = rest.split_first_chunk_mut()?;
                *field = destination.octets();
                Some(payload)
            }
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr, total_len: u16) -> [u8; IPV4_LEN] {
        let [l0, l1] = total_len.to_be_bytes();
        let [i0, i1] = self.id.to_be_bytes();
        let [s0, s1, s2, s3] = source.octets();
        let [d0, d1, d2, d3] = destination.octets();
        let header = |[c0, c1]: [u8; 2]| {
            let (tos, ttl, protocol) = (self.traffic_class, self.hop_limit, self.protocol);
            [
                0x45,
                tos,
                l0,
                l1,
                i0,
                i1,
                DONT_FRAGMENT,
                0,
                ttl,
                protocol,
                c0,
                c1, //
                s0,
                s1,
                s2,
                s3,
                d0,
                d1,
                d2,
                d3,
            ]
        };
        header(checksum::finish(checksum::sum(&header([0, 0]))).to_be_bytes())
    }

    /// The header up to its addresses.
    fn v6(&self, payload_len: u16) -> [u8; 8] {
        let [l0, l1] = payload_len.to_be_bytes();
        let (high, low) = (self.traffic_class >> 4, self.traffic_class << 4);
        [0x60 | high, low, 0, 0, l0, l1, self.protocol, self.hop_limit]
    }

    /// Fills in the checksum of an ICMP message, whose field is zero.
    fn complete_icmp(&self, message: &mut [u8]) {
        let pseudo_header = match self.pair {
            Pair::V4(..) => 0,
            Pair::V6(..) => self.pseudo_header(message.len()),
        };
        let sum = checksum::combine(u32::from(pseudo_header), checksum::sum(message));
        if let Some([_, _, field @ ..]) = message.first_chunk_mut::<4>() {
            *field = checksum::finish(sum).to_be_bytes();
        }
    }

    /// The folded sum of the pseudo-header: the value of a partial checksum field.
    fn pseudo_header(&self, payload_len: usize) -> u16 {
        let (source, destination) = match self.pair {
            Pair::V4(source, destination) => (IpAddr::V4(source), IpAddr::V4(destination)),
            Pair::V6(source, destination) => (IpAddr::V6(source), IpAddr::V6(destination)),
        };
        let len = u32::from(length_field(payload_len));
        checksum::fold(checksum::pseudo_header(source, destination, self.protocol, len))
    }
}

/// The value of a 16-bit length field. A packet that is too long for it keeps the largest: it
/// contradicts its own length, and every receiver drops it.
fn length_field(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn partial(transport: usize, offset: u16) -> Checksum {
    Checksum::Partial { start: length_field(transport), offset }
}
