//! ICMP (RFC 792), ICMPv6 (RFC 4443) and neighbour discovery (RFC 4861), read into one type.

use std::net::{IpAddr, Ipv6Addr};

use crate::ip::{self, IpPacket};
use crate::router::RouterAdvertisement;
use crate::{Checksum, MacAddr, ParseError, Quoted, checksum};

mod v4 {
    pub(super) const ECHO_REPLY: u8 = 0;
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const ECHO_REQUEST: u8 = 8;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    /// Codes of [`UNREACHABLE`]: nobody has the port; fragmentation needed and DF set.
    pub(super) const CLOSED_PORT: u8 = 3;
    pub(super) const TOO_BIG: u8 = 4;
    /// Error messages, and redirect, which is treated as one (RFC 1122 section 3.2.2).
    pub(super) const ERRORS: [u8; 5] = [UNREACHABLE, 4, 5, TIME_EXCEEDED, 12];
    /// An error is at most 576 bytes long (RFC 1812 section 4.3.2.3), with its own headers.
    pub(super) const MAX_QUOTED: usize = 576 - 20 - 8;
}

mod v6 {
    pub(super) const UNREACHABLE: u8 = 1;
    /// Code of [`UNREACHABLE`]: nobody has the port.
    pub(super) const CLOSED_PORT: u8 = 4;
    pub(super) const PACKET_TOO_BIG: u8 = 2;
    pub(super) const TIME_EXCEEDED: u8 = 3;
    /// Types below this one are errors (RFC 4443 section 2.1).
    pub(super) const FIRST_QUERY: u8 = 128;
    pub(super) const ECHO_REQUEST: u8 = 128;
    pub(super) const ECHO_REPLY: u8 = 129;
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOR_ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
    /// An error fits the smallest MTU (RFC 4443 section 2.4 (c)), with its own headers.
    pub(super) const MAX_QUOTED: usize = 1280 - 40 - 8;
}

/// Neighbour discovery must not have crossed a router (RFC 4861 section 3.1).
pub(crate) const NDP_HOP_LIMIT: u8 = 255;

const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_TARGET_MAC: u8 = 2;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
/// RFC 8106 section 5.1.
const OPTION_RESOLVERS: u8 = 25;

/// An ICMP message of either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icmp<'a> {
    /// Ping.
    EchoRequest {
        /// Identifier of the pinging program.
        id: u16,
        /// Number of the ping.
        seq: u16,
        /// Comes back in the answer.
        data: &'a [u8],
    },
    /// The answer to a ping.
    EchoReply {
        /// As in the request.
        id: u16,
        /// As in the request.
        seq: u16,
        /// As in the request.
        data: &'a [u8],
    },
    /// Destination unreachable. The codes of the two versions differ.
    Unreachable {
        /// Why.
        code: u8,
        /// The beginning of the packet in question, from its IP header.
        original: &'a [u8],
    },
    /// The packet does not fit the path; in IPv4, destination unreachable with code 4 (RFC 1191).
    PacketTooBig {
        /// Largest packet that fits, bytes; at most 65 535 in IPv4, where 0 is "not told".
        mtu: u32,
        /// The beginning of the packet in question, from its IP header.
        original: &'a [u8],
    },
    /// The hop limit ran out (code 0), or the time for reassembly (code 1).
    TimeExceeded {
        /// Which of the two.
        code: u8,
        /// The beginning of the packet in question, from its IP header.
        original: &'a [u8],
    },
    /// Neighbour discovery.
    Ndp(Ndp),
    /// Anything else.
    Other {
        /// The message's type.
        kind: u8,
        /// The message's code.
        code: u8,
    },
}

/// A neighbour discovery message (RFC 4861 section 4), with the options that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ndp {
    /// Are there routers?
    RouterSolicitation {
        /// Hardware address of the asker.
        source_mac: Option<MacAddr>,
    },
    /// I am a router.
    RouterAdvertisement {
        /// Hop limit that hosts shall use; 0 is "not told".
        hop_limit: u8,
        /// How long the router may be a default router, seconds; 0 is "it is none".
        lifetime: u16,
        /// Hardware address of the router.
        source_mac: Option<MacAddr>,
        /// MTU of the link, bytes.
        mtu: Option<u32>,
        /// A prefix of the link; the last if there are several.
        prefix: Option<Prefix>,
        /// Resolvers that hosts may ask; the first of them if there are several lists.
        resolvers: Option<Resolvers>,
    },
    /// Who has `target`?
    NeighborSolicitation {
        /// The address in question; never multicast.
        target: Ipv6Addr,
        /// Hardware address of the asker; absent when it probes for a duplicate of its address.
        source_mac: Option<MacAddr>,
    },
    /// I have `target`.
    NeighborAdvertisement {
        /// The address in question; never multicast.
        target: Ipv6Addr,
        /// Hardware address of the sender.
        target_mac: Option<MacAddr>,
        /// The sender is a router.
        router: bool,
        /// This answers a solicitation.
        solicited: bool,
        /// What was known before shall be replaced.
        override_: bool,
    },
}

/// A prefix of the link (RFC 4861 section 4.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The prefix.
    pub address: Ipv6Addr,
    /// How many of its bits count, at most 128.
    pub len: u8,
    /// Addresses of the prefix are on the link.
    pub on_link: bool,
    /// Hosts may make themselves an address.
    pub autonomous: bool,
    /// How long the prefix is on the link, seconds; all ones is for ever.
    pub valid: u32,
    /// How long addresses made of it are preferred, seconds; all ones is for ever.
    pub preferred: u32,
}

/// An error about a packet, for [`build::icmp_error`](crate::build::icmp_error).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IcmpError {
    /// Nobody listens on the port.
    PortUnreachable,
    /// The host does not answer.
    HostUnreachable,
    /// There is no route.
    NetworkUnreachable,
    /// Policy forbids it.
    Prohibited,
    /// The packet is too big for the path, which takes this many bytes.
    TooBig(u32),
    /// The hop limit ran out.
    TimeExceeded,
}

impl IcmpError {
    /// The message about a packet, from its IP header, in its version. As much of the packet is quoted as
    /// RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4 (c) allow.
    #[must_use]
    pub fn message(self, ipv4: bool, original: &[u8]) -> Icmp<'_> {
        let most = if ipv4 { v4::MAX_QUOTED } else { v6::MAX_QUOTED };
        let original = original.get(..most).unwrap_or(original);
        // RFC 792, RFC 1812 section 5.2.7.1; RFC 4443 section 3.1.
        let code = match (self, ipv4) {
            (Self::NetworkUnreachable, _) => 0,
            (Self::HostUnreachable, true) => 1,
            (Self::HostUnreachable, false) => 3,
            (Self::PortUnreachable, true) => v4::CLOSED_PORT,
            (Self::PortUnreachable, false) => v6::CLOSED_PORT,
            (Self::Prohibited, true) => 13,
            (Self::Prohibited, false) => 1,
            (Self::TooBig(mtu), _) => return Icmp::PacketTooBig { mtu, original },
            (Self::TimeExceeded, _) => return Icmp::TimeExceeded { code: 0, original },
        };
        Icmp::Unreachable { code, original }
    }
}

/// Whether an ICMP error may be sent about this packet (RFC 1122 section 3.2.2, RFC 4443
/// section 2.4 (e)): not about an error, nor a later fragment, nor one to or from more than one
/// host. The broadcast address of a prefix is for the caller to know.
#[must_use]
pub fn may_answer_with_error(ip: &IpPacket<'_>) -> bool {
    let kind = ip.payload.first();
    let about_error = match ip.protocol {
        ip::ICMP => kind.is_none_or(|kind| v4::ERRORS.contains(kind)),
        ip::ICMPV6 => kind.is_none_or(|kind| *kind < v6::FIRST_QUERY || *kind == v6::REDIRECT),
        _ => false,
    };
    let later_fragment = ip.fragment.is_some_and(|fragment| fragment.offset != 0);
    let one_host = |address: IpAddr| {
        let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
        !(broadcast || address.is_multicast() || address.is_unspecified())
    };
    !about_error && !later_fragment && one_host(ip.source) && one_host(ip.destination)
}

impl<'a> Icmp<'a> {
    /// Reads an echo request or its answer as a ping socket hands it over, and as errors about one quote it:
    /// it may be cut off behind its header, and its checksum is not looked at. `None` for anything else.
    #[must_use]
    pub fn parse_echo(ipv4: bool, message: &'a [u8]) -> Option<Self> {
        let (&[kind, code, _, _, i0, i1, s0, s1], data) = message.split_first_chunk()?;
        let (id, seq) = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1]));
        match (ipv4, kind, code) {
            (true, v4::ECHO_REQUEST, 0) | (false, v6::ECHO_REQUEST, 0) => {
                Some(Self::EchoRequest { id, seq, data })
            }
            (true, v4::ECHO_REPLY, 0) | (false, v6::ECHO_REPLY, 0) => {
                Some(Self::EchoReply { id, seq, data })
            }
            _ => None,
        }
    }

    /// Parses the payload of an IP packet. The checksum is verified where it is
    /// [`Checksum::Present`].
    ///
    /// # Errors
    /// The packet is a fragment or another protocol; it is too short; the checksum is wrong; a
    /// neighbour discovery message breaks a rule of RFC 4861.
    pub fn parse(ip: &IpPacket<'a>, checksum: Checksum) -> Result<Self, ParseError> {
        let ipv4 = match (ip.protocol, ip.source.is_ipv4()) {
            (ip::ICMP, true) => true,
            (ip::ICMPV6, false) => false,
            _ => return Err(ParseError::new("icmp-protocol")),
        };
        if ip.fragment.is_some() {
            return Err(ParseError::new("icmp-fragment"));
        }
        let (&[kind, code, _, _, w0, w1, w2, w3], body) =
            ip.payload.split_first_chunk().ok_or(ParseError::new("icmp-truncated"))?;
        let right = match checksum {
            Checksum::Partial { .. } | Checksum::Valid => true,
            Checksum::Present if ipv4 => checksum::finish(checksum::sum(ip.payload)) == 0,
            Checksum::Present => checksum::verify(ip, ip.payload),
        };
        if !right {
            return Err(ParseError::new("icmp-checksum"));
        }
        if let Some(echo) = Self::parse_echo(ipv4, ip.payload) {
            return Ok(echo);
        }
        let word = u32::from_be_bytes([w0, w1, w2, w3]);
        Ok(match (ipv4, kind, code) {
            (true, v4::UNREACHABLE, v4::TOO_BIG) => {
                Self::PacketTooBig { mtu: word & u32::from(u16::MAX), original: body }
            }
            (false, v6::PACKET_TOO_BIG, _) => Self::PacketTooBig { mtu: word, original: body },
            (true, v4::UNREACHABLE, _) | (false, v6::UNREACHABLE, _) => {
                Self::Unreachable { code, original: body }
            }
            (true, v4::TIME_EXCEEDED, _) | (false, v6::TIME_EXCEEDED, _) => {
                Self::TimeExceeded { code, original: body }
            }
            (false, v6::ROUTER_SOLICITATION..=v6::NEIGHBOR_ADVERTISEMENT, _) => {
                Self::Ndp(Ndp::parse(ip, kind, code, [w0, w1, w2, w3], body)?)
            }
            _ => Self::Other { kind, code },
        })
    }

    /// The packet that has not reached whom it was for, if that is what the message says, and whether the
    /// reason is that nobody has the port.
    #[must_use]
    pub fn unreachable(&self) -> Option<(Quoted, bool)> {
        let Self::Unreachable { code, original } = *self else { return None };
        let quoted = Quoted::parse(original)?;
        let closed = if quoted.source.is_ipv4() { v4::CLOSED_PORT } else { v6::CLOSED_PORT };
        Some((quoted, code == closed))
    }

    /// Appends the message to `out`, its checksum zero: as a ping socket takes it.
    pub fn emit(&self, ipv4: bool, out: &mut Vec<u8>) {
        let of = |v4: u8, v6: u8| if ipv4 { v4 } else { v6 };
        let (kind, code, word, body): (u8, u8, u32, &[u8]) = match *self {
            Self::EchoRequest { id, seq, data } => {
                (of(v4::ECHO_REQUEST, v6::ECHO_REQUEST), 0, words(id, seq), data)
            }
            Self::EchoReply { id, seq, data } => {
                (of(v4::ECHO_REPLY, v6::ECHO_REPLY), 0, words(id, seq), data)
            }
            Self::Unreachable { code, original } => {
                (of(v4::UNREACHABLE, v6::UNREACHABLE), code, 0, original)
            }
            Self::PacketTooBig { mtu, original } if ipv4 => {
                (v4::UNREACHABLE, v4::TOO_BIG, mtu.min(u32::from(u16::MAX)), original)
            }
            Self::PacketTooBig { mtu, original } => (v6::PACKET_TOO_BIG, 0, mtu, original),
            Self::TimeExceeded { code, original } => {
                (of(v4::TIME_EXCEEDED, v6::TIME_EXCEEDED), code, 0, original)
            }
            Self::Ndp(ndp) => return ndp.emit(out),
            Self::Other { kind, code } => (kind, code, 0, &[]),
        };
        let [w0, w1, w2, w3] = word.to_be_bytes();
        out.extend_from_slice(&[kind, code, 0, 0, w0, w1, w2, w3]);
        out.extend_from_slice(body);
    }
}

fn words(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// Resolvers that a router advertises (RFC 8106 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Resolvers {
    /// Their addresses: the first three, which RFC 8106 holds for enough.
    pub addresses: [Option<Ipv6Addr>; 3],
    /// How long they may be asked, seconds; 0: no more.
    pub lifetime: u32,
}

impl Ndp {
    fn parse(
        ip: &IpPacket<'_>,
        kind: u8,
        code: u8,
        word: [u8; 4],
        body: &[u8],
    ) -> Result<Self, ParseError> {
        if ip.hop_limit != NDP_HOP_LIMIT {
            return Err(ParseError::new("ndp-hop-limit"));
        }
        if code != 0 {
            return Err(ParseError::new("ndp-code"));
        }
        let truncated = ParseError::new("ndp-truncated");
        match kind {
            v6::ROUTER_SOLICITATION => {
                let Options { source_mac, .. } = Options::parse(body)?;
                // RFC 4861 section 6.1.1.
                if ip.source.is_unspecified() && source_mac.is_some() {
                    return Err(ParseError::new("ndp-source"));
                }
                Ok(Self::RouterSolicitation { source_mac })
            }
            v6::ROUTER_ADVERTISEMENT => {
                // RFC 4861 section 6.1.2.
                if !matches!(ip.source, IpAddr::V6(source) if source.is_unicast_link_local()) {
                    return Err(ParseError::new("ndp-source"));
                }
                let [hop_limit, _, l0, l1] = word;
                let (_, options) = body.split_first_chunk::<8>().ok_or(truncated)?;
                let Options { source_mac, mtu, prefix, resolvers, .. } = Options::parse(options)?;
                let lifetime = u16::from_be_bytes([l0, l1]);
                Ok(Self::RouterAdvertisement {
                    hop_limit,
                    lifetime,
                    source_mac,
                    mtu,
                    prefix,
                    resolvers,
                })
            }
            v6::NEIGHBOR_SOLICITATION => {
                let (target, options) = target(body)?;
                let Options { source_mac, .. } = Options::parse(options)?;
                // RFC 4861 section 7.1.1: a probe has no hardware address to tell, and goes to the
                // solicited-node group.
                if ip.source.is_unspecified() {
                    let group = IpAddr::V6(solicited_node(target));
                    if source_mac.is_some() || ip.destination != group {
                        return Err(ParseError::new("ndp-source"));
                    }
                }
                Ok(Self::NeighborSolicitation { target, source_mac })
            }
            _ => {
                let (target, options) = target(body)?;
                let Options { target_mac, .. } = Options::parse(options)?;
                let [flags, ..] = word;
                let solicited = flags & 0x40 != 0;
                // RFC 4861 section 7.1.2.
                if solicited && ip.destination.is_multicast() {
                    return Err(ParseError::new("ndp-solicited"));
                }
                Ok(Self::NeighborAdvertisement {
                    target,
                    target_mac,
                    router: flags & 0x80 != 0,
                    solicited,
                    override_: flags & 0x20 != 0,
                })
            }
        }
    }

    fn emit(&self, out: &mut Vec<u8>) {
        match *self {
            Self::RouterSolicitation { source_mac } => {
                out.extend_from_slice(&[v6::ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
                emit_mac(OPTION_SOURCE_MAC, source_mac, out);
            }
            Self::RouterAdvertisement {
                hop_limit,
                lifetime,
                source_mac,
                mtu,
                prefix,
                resolvers,
            } => {
                let resolvers = resolvers.unwrap_or_default();
                let advertisement = RouterAdvertisement {
                    hop_limit,
                    managed: false,
                    other: false,
                    lifetime,
                    source_mac,
                    mtu,
                    prefixes: prefix.into_iter().collect(),
                    dns: resolvers.addresses.into_iter().flatten().collect(),
                    search: Vec::new(),
                    dns_lifetime: resolvers.lifetime,
                };
                advertisement.emit(out);
            }
            Self::NeighborSolicitation { target, source_mac } => {
                out.extend_from_slice(&[v6::NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&target.octets());
                emit_mac(OPTION_SOURCE_MAC, source_mac, out);
            }
            Self::NeighborAdvertisement { target, target_mac, router, solicited, override_ } => {
                let flags =
                    u8::from(router) << 7 | u8::from(solicited) << 6 | u8::from(override_) << 5;
                out.extend_from_slice(&[v6::NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
                out.extend_from_slice(&target.octets());
                emit_mac(OPTION_TARGET_MAC, target_mac, out);
            }
        }
    }
}

/// The group in which a node is asked for its address (RFC 4291 section 2.7.1).
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

fn target(body: &[u8]) -> Result<(Ipv6Addr, &[u8]), ParseError> {
    let (target, options) =
        body.split_first_chunk::<16>().ok_or(ParseError::new("ndp-truncated"))?;
    let target = Ipv6Addr::from(*target);
    if target.is_multicast() { Err(ParseError::new("ndp-target")) } else { Ok((target, options)) }
}

fn emit_mac(kind: u8, mac: Option<MacAddr>, out: &mut Vec<u8>) {
    if let Some(MacAddr(mac)) = mac {
        out.extend_from_slice(&[kind, 1]);
        out.extend_from_slice(&mac);
    }
}

/// The options of a neighbour discovery message (RFC 4861 section 4.6); unknown ones are skipped.
#[derive(Default)]
struct Options {
    source_mac: Option<MacAddr>,
    target_mac: Option<MacAddr>,
    mtu: Option<u32>,
    prefix: Option<Prefix>,
    resolvers: Option<Resolvers>,
}

impl Options {
    fn parse(mut bytes: &[u8]) -> Result<Self, ParseError> {
        let wrong = ParseError::new("ndp-option-length");
        let mut options = Self::default();
        while let [kind, units, ..] = *bytes {
            let len = usize::from(units).saturating_mul(8);
            let (option, rest) = bytes.split_at_checked(len).ok_or(wrong)?;
            // A length of zero would never end (RFC 4861 section 4.6).
            let (_, data) = option.split_first_chunk::<2>().ok_or(wrong)?;
            match kind {
                OPTION_SOURCE_MAC => options.source_mac = Some(mac(data).ok_or(wrong)?),
                OPTION_TARGET_MAC => options.target_mac = Some(mac(data).ok_or(wrong)?),
                OPTION_MTU => {
                    let &[_, _, a, b, c, d] = data else { return Err(wrong) };
                    options.mtu = Some(u32::from_be_bytes([a, b, c, d]));
                }
                OPTION_PREFIX => options.prefix = Some(Prefix::parse(data).ok_or(wrong)?),
                OPTION_RESOLVERS => {
                    let resolvers = Resolvers::parse(data).ok_or(wrong)?;
                    options.resolvers.get_or_insert(resolvers);
                }
                _ => {}
            }
            bytes = rest;
        }
        if bytes.is_empty() { Ok(options) } else { Err(wrong) }
    }
}

fn mac(data: &[u8]) -> Option<MacAddr> {
    data.try_into().ok().map(MacAddr)
}

impl Resolvers {
    fn parse(data: &[u8]) -> Option<Self> {
        let (&[_, _, l0, l1, l2, l3], list) = data.split_first_chunk()?;
        let (addresses, rest) = list.as_chunks::<16>();
        let mut found = Self { lifetime: u32::from_be_bytes([l0, l1, l2, l3]), ..Self::default() };
        for (slot, address) in found.addresses.iter_mut().zip(addresses) {
            *slot = Some(Ipv6Addr::from(*address));
        }
        rest.is_empty().then_some(found)
    }
}

impl Prefix {
    fn parse(data: &[u8]) -> Option<Self> {
        let (&[len, flags, v0, v1, v2, v3, p0, p1, p2, p3, _, _, _, _], address) =
            data.split_first_chunk()?;
        let address: [u8; 16] = address.try_into().ok()?;
        (len <= 128).then_some(Self {
            address: Ipv6Addr::from(address),
            len,
            on_link: flags & 0x80 != 0,
            autonomous: flags & 0x40 != 0,
            valid: u32::from_be_bytes([v0, v1, v2, v3]),
            preferred: u32::from_be_bytes([p0, p1, p2, p3]),
        })
    }
}
