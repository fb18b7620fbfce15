//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{ParseError, checksum, ethernet};

/// Protocol number of ICMP for IPv4.
pub const ICMP: u8 = 1;
/// Protocol number of IGMP.
pub const IGMP: u8 = 2;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMP for IPv6.
pub const ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
/// The extension header of IPv6 that says which part of a datagram follows.
pub(crate) const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// A packet with more extension headers than this is refused: RFC 8504 section 5.3 lets a host set
/// a limit, and honest packets carry two or three.
const MAX_EXTENSIONS: usize = 8;

/// An IP packet of either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpPacket<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Time to live, hop limit.
    pub hop_limit: u8,
    /// Type of service, traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// What the payload is: the protocol behind all extension headers.
    pub protocol: u8,
    /// Set when the packet is a fragment. The payload of the first fragment begins with the
    /// upper-layer header, that of others does not; none can be parsed further.
    pub fragment: Option<Fragment>,
    /// The IP header with its options or extension headers.
    pub header: &'a [u8],
    /// What follows the header, without Ethernet padding.
    pub payload: &'a [u8],
}

/// Which part of a datagram a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Where the payload belongs in the datagram, bytes.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
    /// The datagram's identification.
    pub id: u32,
}

impl<'a> IpPacket<'a> {
    /// Parses the payload of an Ethernet frame with this EtherType.
    ///
    /// # Errors
    /// The EtherType is neither IPv4 nor IPv6; a length lies; the version or the IPv4 header
    /// checksum is wrong; the packet asks to be routed by its source (RFC 7126 section 4.3,
    /// RFC 5095); a fragment ends past the largest datagram.
    pub fn parse(ethertype: u16, bytes: &'a [u8]) -> Result<Self, ParseError> {
        match ethertype {
            ethernet::IPV4 => parse_v4(bytes),
            ethernet::IPV6 => parse_v6(bytes),
            _ => Err(ParseError::new("ethernet-ethertype")),
        }
    }

    /// Parses a packet that nothing stands before: its first four bits say which version it is.
    ///
    /// # Errors
    /// As [`IpPacket::parse`].
    pub fn parse_bare(bytes: &'a [u8]) -> Result<Self, ParseError> {
        match bytes.first().map(|first| first >> 4) {
            Some(6) => parse_v6(bytes),
            _ => parse_v4(bytes),
        }
    }

    /// The packet as it was on the wire, as far as it goes: header and payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.header.len().saturating_add(self.payload.len())
    }

    /// Whether its sender wants it to stay in one piece on its way: IPv4 with the bit for that (RFC 791 section
    /// 3.1), and IPv6 without a header for fragments.
    #[must_use]
    pub fn stays_whole(&self) -> bool {
        match (self.source, self.header.get(6)) {
            (IpAddr::V4(_), Some(flags)) => flags & 0x40 != 0,
            (IpAddr::V6(_), Some(next)) => *next != FRAGMENT && self.fragment.is_none(),
            (_, None) => false,
        }
    }

    /// The identification of IPv4 (RFC 6864); IPv6 has one in fragments alone.
    #[must_use]
    pub fn identification(&self) -> Option<u16> {
        let [_, _, _, _, high, low] = self.header.first_chunk()?;
        self.source.is_ipv4().then_some(u16::from_be_bytes([*high, *low]))
    }

    /// The checksum of TCP, UDP or ICMP, as it stands in the packet; `None` where there is none to be seen.
    #[must_use]
    pub fn checksum(&self) -> Option<u16> {
        let offset = match self.protocol {
            TCP => 16,
            UDP => 6,
            ICMP | ICMPV6 => 2,
            _ => return None,
        };
        if self.fragment.is_some() {
            return None;
        }
        let field = self.payload.get(offset..)?.first_chunk()?;
        Some(u16::from_be_bytes(*field))
    }

    /// Always false: a packet has a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.header.is_empty()
    }
}

/// Takes one off the hop limit of a packet, as a router does (RFC 1812 section 5.3.1, RFC 8200 section 3). False,
/// with nothing changed, if none is left for another link, or it is no packet.
pub fn take_hop(packet: &mut [u8]) -> bool {
    let one_less = |hops: u8| hops.checked_sub(1).filter(|left| *left > 0);
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let Some([.., ttl, protocol, c0, c1]) = packet.first_chunk_mut::<12>() else {
                return false;
            };
            let Some(left) = one_less(*ttl) else { return false };
            let old = [*ttl, *protocol];
            *ttl = left;
            let sum = u16::from_be_bytes([*c0, *c1]);
            [*c0, *c1] = checksum::adjust(sum, &old, &[*ttl, *protocol]).to_be_bytes();
            true
        }
        Some(6) => {
            let Some([.., hops]) = packet.first_chunk_mut::<8>() else { return false };
            let Some(left) = one_less(*hops) else { return false };
            *hops = left;
            true
        }
        _ => false,
    }
}

/// Sets the type of service, or traffic class, of a packet (RFC 2474), the IPv4 header of which has its checksum.
pub fn set_traffic_class(packet: &mut [u8], class: u8) {
    match packet {
        [first, tos, _, _, _, _, _, _, _, _, c0, c1, ..] if *first >> 4 == 4 => {
            let (old, new) = ([*first, *tos], [*first, class]);
            let sum = u16::from_be_bytes([*c0, *c1]);
            [*c0, *c1] = checksum::adjust(sum, &old, &new).to_be_bytes();
            *tos = class;
        }
        [first, second, ..] if *first >> 4 == 6 => {
            *first = 0x60 | class >> 4;
            *second = class << 4 | (*second & 0x0f);
        }
        _ => {}
    }
}

fn parse_v4(bytes: &[u8]) -> Result<IpPacket<'_>, ParseError> {
    let (
        &[
            version_ihl,
            tos,
            l0,
            l1,
            i0,
            i1,
            f0,
            f1,
            ttl,
            protocol,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ],
        _,
    ) = bytes.split_first_chunk().ok_or(ParseError::new("ipv4-truncated"))?;
    if version_ihl >> 4 != 4 {
        return Err(ParseError::new("ipv4-version"));
    }
    let header_len = usize::from(version_ihl & 0xf).saturating_mul(4);
    if header_len < 20 {
        return Err(ParseError::new("ipv4-header-length"));
    }
    let total_len = usize::from(u16::from_be_bytes([l0, l1]));
    if total_len < header_len {
        return Err(ParseError::new("ipv4-total-length"));
    }
    let (header, payload) = bytes
        .get(..total_len)
        .and_then(|packet| packet.split_at_checked(header_len))
        .ok_or(ParseError::new("ipv4-total-length"))?;
    if checksum::finish(checksum::sum(header)) != 0 {
        return Err(ParseError::new("ipv4-checksum"));
    }
    if let Some((_, options)) = header.split_at_checked(20) {
        check_v4_options(options)?;
    }
    let flags_offset = u16::from_be_bytes([f0, f1]);
    let fragment = Fragment {
        offset: (flags_offset & 0x1fff) << 3,
        more: flags_offset & 0x2000 != 0,
        id: u32::from(u16::from_be_bytes([i0, i1])),
    };
    Ok(IpPacket {
        source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
        destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
        hop_limit: ttl,
        traffic_class: tos,
        protocol,
        fragment: check_fragment(fragment, payload.len(), "ipv4-fragment")?,
        header,
        payload,
    })
}

/// Walks the options (RFC 791 section 3.1): lengths must be true, source routes are refused.
fn check_v4_options(mut options: &[u8]) -> Result<(), ParseError> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    loop {
        options = match options {
            [] | [END, ..] => return Ok(()),
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => {
                return Err(ParseError::new("ipv4-source-route"));
            }
            [NO_OPERATION, rest @ ..] => rest,
            [_, len, ..] if *len >= 2 => {
                options.get(usize::from(*len)..).ok_or(ParseError::new("ipv4-option-length"))?
            }
            _ => return Err(ParseError::new("ipv4-option-length")),
        }
    }
}

/// `None` for a whole datagram, which an atomic fragment is too (RFC 6946).
fn check_fragment(
    fragment: Fragment,
    payload_len: usize,
    reason: &'static str,
) -> Result<Option<Fragment>, ParseError> {
    if fragment.offset == 0 && !fragment.more {
        return Ok(None);
    }
    // RFC 8200 section 4.5: a fragment with others behind it is a multiple of 8 bytes, and none
    // ends past the largest datagram. The same holds for IPv4 (RFC 791 section 3.2).
    let end = usize::from(fragment.offset).saturating_add(payload_len);
    if (fragment.more && !payload_len.is_multiple_of(8)) || end > usize::from(u16::MAX) {
        return Err(ParseError::new(reason));
    }
    Ok(Some(fragment))
}

fn parse_v6(bytes: &[u8]) -> Result<IpPacket<'_>, ParseError> {
    let (&[v0, v1, _, _, l0, l1, first, hop_limit], rest) =
        bytes.split_first_chunk().ok_or(ParseError::new("ipv6-truncated"))?;
    if v0 >> 4 != 6 {
        return Err(ParseError::new("ipv6-version"));
    }
    let (source, rest) = rest.split_first_chunk::<16>().ok_or(ParseError::new("ipv6-truncated"))?;
    let (destination, rest) =
        rest.split_first_chunk::<16>().ok_or(ParseError::new("ipv6-truncated"))?;
    let rest = rest
        .get(..usize::from(u16::from_be_bytes([l0, l1])))
        .ok_or(ParseError::new("ipv6-payload-length"))?;
    let chain = Extensions::walk(first, rest)?;
    let header_len = 40usize.saturating_add(rest.len()).saturating_sub(chain.payload.len());
    Ok(IpPacket {
        source: IpAddr::V6(Ipv6Addr::from(*source)),
        destination: IpAddr::V6(Ipv6Addr::from(*destination)),
        hop_limit,
        traffic_class: (v0 << 4) | (v1 >> 4),
        protocol: chain.protocol,
        fragment: chain.fragment,
        header: bytes.get(..header_len).ok_or(ParseError::new("ipv6-truncated"))?,
        payload: chain.payload,
    })
}

/// Whether this is an extension header that is walked over, not what is behind all of them.
pub(crate) fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// What lies behind the extension headers (RFC 8200 section 4).
struct Extensions<'a> {
    protocol: u8,
    fragment: Option<Fragment>,
    payload: &'a [u8],
}

impl<'a> Extensions<'a> {
    fn walk(first: u8, mut payload: &'a [u8]) -> Result<Self, ParseError> {
        let mut protocol = first;
        for position in 0..MAX_EXTENSIONS {
            let (next, len) = match protocol {
                FRAGMENT => {
                    let (&[next, _, o0, o1, i0, i1, i2, i3], rest) =
                        payload.split_first_chunk().ok_or(ParseError::new("ipv6-extension"))?;
                    let offset = u16::from_be_bytes([o0, o1]);
                    let fragment = Fragment {
                        offset: offset & !7,
                        more: offset & 1 != 0,
                        id: u32::from_be_bytes([i0, i1, i2, i3]),
                    };
                    let fragment = check_fragment(fragment, rest.len(), "ipv6-fragment")?;
                    if fragment.is_some() {
                        return Ok(Self { protocol: next, fragment, payload: rest });
                    }
                    (next, 8)
                }
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                    let [next, len, _, segments_left, ..] = *payload else {
                        return Err(ParseError::new("ipv6-extension"));
                    };
                    if protocol == HOP_BY_HOP && position != 0 {
                        return Err(ParseError::new("ipv6-extension-order"));
                    }
                    if protocol == ROUTING && segments_left != 0 {
                        return Err(ParseError::new("ipv6-source-route"));
                    }
                    (next, usize::from(len).saturating_add(1).saturating_mul(8))
                }
                _ => return Ok(Self { protocol, fragment: None, payload }),
            };
            payload = payload.get(len..).ok_or(ParseError::new("ipv6-extension"))?;
            protocol = next;
        }
        Err(ParseError::new("ipv6-extension-count"))
    }
}
