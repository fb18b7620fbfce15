//! UDP datagrams (RFC 768).

use crate::ip::{self, IpPacket};
use crate::{Checksum, ParseError, checksum};

/// Length of the header, bytes.
pub const HEADER_LEN: usize = 8;

/// Where the checksum lies in the header, bytes.
pub(crate) const CHECKSUM_OFFSET: u16 = 6;

/// A UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Source port; 0 where no answer is wanted.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// The data; of several datagrams, one behind the other, if the frame has GSO.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Parses the payload of an IP packet. The checksum is verified where it is
    /// [`Checksum::Present`]; only IPv4 may go without (RFC 8200 section 8.1).
    ///
    /// # Errors
    /// The packet is a fragment or another protocol; the length lies; the checksum is wrong.
    pub fn parse(ip: &IpPacket<'a>, checksum: Checksum) -> Result<Self, ParseError> {
        if ip.protocol != ip::UDP {
            return Err(ParseError::new("udp-protocol"));
        }
        if ip.fragment.is_some() {
            return Err(ParseError::new("udp-fragment"));
        }
        let (&[s0, s1, d0, d1, l0, l1, c0, c1], _) =
            ip.payload.split_first_chunk().ok_or(ParseError::new("udp-truncated"))?;
        // The length may be less than what the IP header leaves room for, never more.
        let datagram = ip
            .payload
            .get(..usize::from(u16::from_be_bytes([l0, l1])))
            .ok_or(ParseError::new("udp-length"))?;
        let payload = datagram.get(HEADER_LEN..).ok_or(ParseError::new("udp-length"))?;
        if checksum == Checksum::Present {
            let right = match [c0, c1] {
                [0, 0] => ip.source.is_ipv4(),
                _ => checksum::verify(ip, datagram),
            };
            if !right {
                return Err(ParseError::new("udp-checksum"));
            }
        }
        Ok(Self {
            source_port: u16::from_be_bytes([s0, s1]),
            destination_port: u16::from_be_bytes([d0, d1]),
            payload,
        })
    }
}

/// The destination port of a UDP datagram, also where the packet is its first fragment; `None` where
/// it does not tell.
#[must_use]
pub fn destination_port(ip: &IpPacket<'_>) -> Option<u16> {
    if ip.protocol != ip::UDP || ip.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return None;
    }
    let (&[_, _, d0, d1], _) = ip.payload.split_first_chunk()?;
    Some(u16::from_be_bytes([d0, d1]))
}

/// Length of the header, bytes, of datagrams that share one: its length field covers them all.
pub(crate) fn segmentable_header_len(datagram: &[u8]) -> Result<usize, ParseError> {
    let (&[_, _, _, _, l0, l1, _, _], _) =
        datagram.split_first_chunk::<HEADER_LEN>().ok_or(ParseError::new("udp-truncated"))?;
    if usize::from(u16::from_be_bytes([l0, l1])) == datagram.len() {
        Ok(HEADER_LEN)
    } else {
        Err(ParseError::new("udp-length"))
    }
}
