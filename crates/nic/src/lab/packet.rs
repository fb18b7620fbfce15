//! The two ends of an IP packet: reading them, and giving the packet others.

use std::net::{IpAddr, SocketAddr};

use netyard_wire::ip::{ICMP, ICMPV6, IpPacket, TCP, UDP};
use netyard_wire::{MacAddr, build, checksum, ethernet, udp};

use crate::nat::simulate::Ends;

/// Hops that a packet of our own may take.
const HOPS: u8 = 64;
/// Where UDP's checksum is behind an IPv4 header without options.
const CHECKSUM: std::ops::Range<usize> = 26..28;

/// What a packet carries, as far as a NAT minds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Udp(Ends),
    Tcp(Ends),
    /// Ping and errors; they have no ports.
    Icmp,
    /// Fragments, other protocols, nonsense.
    Other,
}

/// Looks at a packet.
pub(super) fn look(bytes: &[u8]) -> Carried {
    let Some(packet) = parse(bytes) else { return Carried::Other };
    if packet.fragment.is_some() {
        return Carried::Other;
    }
    if matches!(packet.protocol, ICMP | ICMPV6) {
        return Carried::Icmp;
    }
    let Some([s0, s1, d0, d1]) = packet.payload.first_chunk::<4>() else { return Carried::Other };
    let ends = Ends {
        source: SocketAddr::new(packet.source, u16::from_be_bytes([*s0, *s1])),
        destination: SocketAddr::new(packet.destination, u16::from_be_bytes([*d0, *d1])),
    };
    match packet.protocol {
        UDP => Carried::Udp(ends),
        TCP => Carried::Tcp(ends),
        _ => Carried::Other,
    }
}

fn parse(bytes: &[u8]) -> Option<IpPacket<'_>> {
    let ethertype = match bytes.first()? >> 4 {
        4 => ethernet::IPV4,
        6 => ethernet::IPV6,
        _ => return None,
    };
    IpPacket::parse(ethertype, bytes).ok()
}

/// What a packet of UDP carries.
pub(super) fn payload(bytes: &[u8]) -> Option<&[u8]> {
    parse(bytes)?.payload.get(udp::HEADER_LEN..)
}

/// A UDP packet of IPv4; it has no checksum (RFC 768).
pub(super) fn datagram(ends: Ends, payload: &[u8]) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    let nobody = MacAddr([0; 6]);
    build::udp_frame(&mut frame, nobody, nobody, ends.source, ends.destination, HOPS, payload);
    let mut packet = frame.split_off(ethernet::HEADER_LEN);
    packet.get_mut(CHECKSUM)?.fill(0);
    Some(packet)
}

/// Gives an IPv4 packet of UDP or TCP other ends. Checksums are adjusted, never made anew: one that was
/// wrong stays wrong. `None`: it is no such packet, or the ends are of another family.
pub(super) fn rewrite(bytes: &[u8], ends: Ends) -> Option<Vec<u8>> {
    let packet = parse(bytes)?;
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (ends.source.ip(), ends.destination.ip())
    else {
        return None;
    };
    let header_len = packet.header.len();
    let mut out = bytes.to_vec();
    let (header, payload) = out.split_at_mut_checked(header_len)?;
    let header: &mut [u8; 20] = header.first_chunk_mut()?;
    let (before, addresses) = header.split_at_mut_checked(12)?;
    let old_addresses: [u8; 8] = *addresses.first_chunk()?;
    let mut new_addresses = [0; 8];
    let (first, second) = new_addresses.split_at_mut(4);
    first.copy_from_slice(&source.octets());
    second.copy_from_slice(&destination.octets());
    addresses.copy_from_slice(&new_addresses);
    patch(before.get_mut(10..12)?, &old_addresses, &new_addresses);

    let old_ports: [u8; 4] = *payload.first_chunk()?;
    let [s0, s1] = ends.source.port().to_be_bytes();
    let [d0, d1] = ends.destination.port().to_be_bytes();
    let new_ports = [s0, s1, d0, d1];
    payload.first_chunk_mut::<4>()?.copy_from_slice(&new_ports);
    let field = match packet.protocol {
        UDP => payload.get_mut(6..8)?,
        TCP => payload.get_mut(16..18)?,
        _ => return None,
    };
    // RFC 768: zero says that there is none.
    if packet.protocol == TCP || field != [0, 0] {
        patch(field, &old_addresses, &new_addresses);
        patch(field, &old_ports, &new_ports);
        if packet.protocol == UDP && field == [0, 0] {
            field.copy_from_slice(&[0xFF, 0xFF]);
        }
    }
    Some(out)
}

fn patch(field: &mut [u8], old: &[u8], new: &[u8]) {
    if let [high, low] = field {
        let adjusted = checksum::adjust(u16::from_be_bytes([*high, *low]), old, new);
        [*high, *low] = adjusted.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// A UDP packet with right checksums.
    fn udp(ends: Ends, payload: &[u8]) -> Vec<u8> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) =
            (ends.source.ip(), ends.destination.ip())
        else {
            panic!("IPv4 only")
        };
        let length = u16::try_from(8 + payload.len()).unwrap();
        let mut header = vec![0x45, 0];
        header.extend((20 + length).to_be_bytes());
        header.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        let sum = checksum::finish(checksum::sum(&header));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut datagram = ends.source.port().to_be_bytes().to_vec();
        datagram.extend(ends.destination.port().to_be_bytes());
        datagram.extend(length.to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        let pseudo =
            checksum::pseudo_header(source.into(), destination.into(), UDP, u32::from(length));
        let sum = checksum::finish(checksum::combine(pseudo, checksum::sum(&datagram)));
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        [header, datagram].concat()
    }

    #[test]
    fn a_rewritten_packet_is_the_one_that_would_have_been_sent() {
        let inner = ends("10.0.0.2:4000", "198.51.100.1:3478");
        let outer = ends("203.0.113.1:50001", "198.51.100.1:3478");
        for payload in [&b""[..], b"a", b"hello, world", &[0xFF; 999]] {
            let packet = udp(inner, payload);
            assert_eq!(look(&packet), Carried::Udp(inner));
            assert_eq!(rewrite(&packet, outer), Some(udp(outer, payload)));
        }
    }

    #[test]
    fn a_missing_checksum_stays_missing() {
        let inner = ends("10.0.0.2:4000", "198.51.100.1:3478");
        let mut packet = udp(inner, b"hello");
        packet[26..28].copy_from_slice(&[0, 0]);
        let out = rewrite(&packet, ends("203.0.113.1:1", "198.51.100.1:3478")).unwrap();
        assert_eq!(out[26..28], [0, 0]);
    }

    #[test]
    fn a_datagram_carries_its_payload() {
        let ends = ends("10.0.0.1:5351", "10.0.0.2:4000");
        let packet = datagram(ends, b"hello").unwrap();
        assert_eq!(packet[26..28], [0, 0]);
        assert_eq!((look(&packet), payload(&packet)), (Carried::Udp(ends), Some(&b"hello"[..])));
    }

    #[test]
    fn what_is_cut_is_no_packet() {
        let packet = udp(ends("10.0.0.2:4000", "198.51.100.1:3478"), b"hello");
        for length in 0..packet.len() {
            assert_eq!(look(&packet[..length]), Carried::Other, "cut at {length}");
        }
    }
}
