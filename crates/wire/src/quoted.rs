//! The packet that an ICMP error is about, as far as the error quotes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{SeqNumber, ip};

/// What identifies a quoted packet. The quoter may have cut it off anywhere behind the
/// ports (RFC 792), so its lengths and checksums say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quoted {
    /// Who sent it.
    pub source: IpAddr,
    /// Where it was going.
    pub destination: IpAddr,
    /// [`ip::TCP`] or [`ip::UDP`], unless [`parse_header`](Quoted::parse_header) has read it.
    pub protocol: u8,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// The sequence number of a TCP segment; meaningless for UDP.
    pub seq: SeqNumber,
    /// Length of the whole packet by its IP header, bytes.
    pub len: u32,
}

impl Quoted {
    /// Reads the beginning of a packet, from its IP header. `None` where it is not TCP or UDP, a
    /// later fragment, behind IPv6 extension headers, or cut off before the eighth byte behind the
    /// IP header.
    #[must_use]
    pub fn parse(original: &[u8]) -> Option<Self> {
        let (header, rest) = Self::split(original)?;
        if !matches!(header.protocol, ip::TCP | ip::UDP) {
            return None;
        }
        let (&[s0, s1, d0, d1, q0, q1, q2, q3], _) = rest.split_first_chunk()?;
        Some(Self {
            source_port: u16::from_be_bytes([s0, s1]),
            destination_port: u16::from_be_bytes([d0, d1]),
            seq: SeqNumber(u32::from_be_bytes([q0, q1, q2, q3])),
            ..header
        })
    }

    /// The same of a packet of any protocol, by its IP header alone: its ports and number are 0.
    #[must_use]
    pub fn parse_header(original: &[u8]) -> Option<Self> {
        Self::split(original).map(|(header, _)| header)
    }

    fn split(original: &[u8]) -> Option<(Self, &[u8])> {
        let (source, destination, protocol, len, rest) = match original.first()? >> 4 {
            4 => v4(original)?,
            6 => v6(original)?,
            _ => return None,
        };
        let (source_port, destination_port, seq) = (0, 0, SeqNumber(0));
        let header =
            Self { source, destination, protocol, source_port, destination_port, seq, len };
        Some((header, rest))
    }

    /// Who sent it, with its port.
    #[must_use]
    pub const fn sender(&self) -> SocketAddr {
        SocketAddr::new(self.source, self.source_port)
    }

    /// Where it was going, with the port there.
    #[must_use]
    pub const fn receiver(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.destination_port)
    }
}

type Parts<'a> = (IpAddr, IpAddr, u8, u32, &'a [u8]);

fn v4(original: &[u8]) -> Option<Parts<'_>> {
    let (fixed, _) = original.split_first_chunk::<20>()?;
    let &[first, _, l0, l1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        fixed;
    if u16::from_be_bytes([f0, f1]) & 0x1fff != 0 {
        return None;
    }
    let rest = original.get(usize::from(first & 0xf).saturating_mul(4).max(20)..)?;
    let source = Ipv4Addr::new(s0, s1, s2, s3);
    let destination = Ipv4Addr::new(d0, d1, d2, d3);
    let len = u32::from(u16::from_be_bytes([l0, l1]));
    Some((source.into(), destination.into(), protocol, len, rest))
}

fn v6(original: &[u8]) -> Option<Parts<'_>> {
    let (&[_, _, _, _, l0, l1, protocol, _], rest) = original.split_first_chunk()?;
    let (source, rest) = rest.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let len = u32::from(u16::from_be_bytes([l0, l1])).saturating_add(40);
    Some((Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), protocol, len, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::udp_frame;
    use crate::{MacAddr, ethernet};

    #[test]
    fn a_packet_is_known_by_its_first_bytes() {
        for (source, destination) in [("10.0.0.1:5", "10.0.0.2:6"), ("[fd00::1]:5", "[fd00::2]:6")]
        {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let mut frame = Vec::new();
            let mac = MacAddr([2; 6]);
            udp_frame(&mut frame, mac, mac, source, destination, 64, &[7; 100]);
            let packet = &frame[ethernet::HEADER_LEN..];
            let header = packet.len() - 108;
            let quoted = Quoted::parse(&packet[..header + 8]).unwrap();
            assert_eq!((quoted.source, quoted.source_port), (source.ip(), source.port()));
            assert_eq!(quoted.destination, destination.ip());
            assert_eq!(quoted.destination_port, destination.port());
            assert_eq!((quoted.protocol, quoted.len as usize), (ip::UDP, packet.len()));
            for len in 0..header + 8 {
                assert_eq!(Quoted::parse(&packet[..len]), None, "{len} bytes");
            }
            let header = Quoted::parse_header(&packet[..header]).unwrap();
            assert_eq!((header.source_port, header.destination_port), (0, 0));
            assert_eq!(
                Quoted { source_port: 5, destination_port: 6, seq: quoted.seq, ..header },
                quoted
            );
        }
    }
}
