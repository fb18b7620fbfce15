//! Who listens to which multicast group: IGMP versions 1 to 3 (RFC 1112, RFC 2236, RFC 9776) and MLD versions 1 and 2
//! (RFC 2710, RFC 9777), read into one type. Sources are passed over: who wants a group of some sources
//! only is one who wants the group.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::ethernet::{self, Ethernet};
use crate::ip::{self, IpPacket};
use crate::{Checksum, MacAddr, Offload, ParseError, checksum};

/// Every host on the link, where questions about all groups go.
const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Messages go no further than the link.
const HOP_LIMIT: u8 = 1;
/// RFC 9776 section 4: IGMP is sent with this type of service, Internetwork Control.
const CONTROL: u8 = 0xc0;
/// The option Router Alert of IPv4 (RFC 2113), and the header of IPv6 that holds it (RFC 2711) with what fills it up.
const ALERT4: [u8; 4] = [0x94, 4, 0, 0];
const ALERT6: [u8; 8] = [ip::ICMPV6, 0, 5, 2, 0, 0, 1, 0];

/// The robustness variable and the interval of questions that queriers tell (RFC 9776 sections 8.1 and 8.2), seconds.
pub const ROBUSTNESS: u8 = 2;
/// See [`ROBUSTNESS`].
pub const QUERY_INTERVAL: u8 = 125;

mod igmp {
    pub(super) const QUERY: u8 = 0x11;
    pub(super) const REPORT_V1: u8 = 0x12;
    pub(super) const REPORT_V2: u8 = 0x16;
    pub(super) const LEAVE: u8 = 0x17;
    pub(super) const REPORT_V3: u8 = 0x22;
}

mod mld {
    pub(super) const QUERY: u8 = 130;
    pub(super) const REPORT_V1: u8 = 131;
    pub(super) const DONE: u8 = 132;
    pub(super) const REPORT_V2: u8 = 143;
}

/// A message about who listens to which group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership<'a> {
    /// Who listens? Routers ask that.
    Query,
    /// I listen to this group. `first` if it is the first version of IGMP, whose hosts never say that they leave.
    Report {
        /// Which.
        group: IpAddr,
        /// IGMPv1.
        first: bool,
    },
    /// I do not listen to this group any more.
    Leave(IpAddr),
    /// What changed, or how it is, for several groups.
    Records(Records<'a>),
}

impl<'a> Membership<'a> {
    /// Reads a packet, if it is such a message. The checksum is verified where it is [`Checksum::Present`].
    ///
    /// # Errors
    /// It is too short, its checksum is wrong, it is none of this link, or a group is no multicast address.
    pub fn parse(ip: &IpPacket<'a>, checksum: Checksum) -> Option<Result<Self, ParseError>> {
        if ip.fragment.is_some() {
            return None;
        }
        match (ip.protocol, ip.source) {
            (ip::IGMP, IpAddr::V4(_)) => Self::parse_igmp(ip, checksum).transpose(),
            (ip::ICMPV6, IpAddr::V6(source)) => Self::parse_mld(ip, source, checksum).transpose(),
            _ => None,
        }
    }

    /// `None`: a message that is not about this, as of routers among each other.
    fn parse_igmp(ip: &IpPacket<'a>, checksum: Checksum) -> Result<Option<Self>, ParseError> {
        let (&[kind, _, _, _, word @ ..], body) =
            ip.payload.split_first_chunk::<8>().ok_or(ParseError::new("igmp-truncated"))?;
        let known = [igmp::QUERY, igmp::REPORT_V1, igmp::REPORT_V2, igmp::LEAVE, igmp::REPORT_V3];
        if !known.contains(&kind) {
            return Ok(None);
        }
        if checksum == Checksum::Present && checksum::finish(checksum::sum(ip.payload)) != 0 {
            return Err(ParseError::new("igmp-checksum"));
        }
        let group = || match Ipv4Addr::from(word) {
            group if group.is_multicast() => Ok(group.into()),
            _ => Err(ParseError::new("igmp-group")),
        };
        Ok(Some(match kind {
            igmp::QUERY => Self::Query,
            igmp::REPORT_V1 => Self::Report { group: group()?, first: true },
            igmp::REPORT_V2 => Self::Report { group: group()?, first: false },
            igmp::LEAVE => Self::Leave(group()?),
            _ => {
                let [_, _, n0, n1] = word;
                Self::Records(Records::check(true, u16::from_be_bytes([n0, n1]), body)?)
            }
        }))
    }

    /// As [`Membership::parse_igmp`].
    fn parse_mld(
        ip: &IpPacket<'a>,
        source: Ipv6Addr,
        checksum: Checksum,
    ) -> Result<Option<Self>, ParseError> {
        let kind = ip.payload.first().copied().unwrap_or_default();
        if ![mld::QUERY, mld::REPORT_V1, mld::DONE, mld::REPORT_V2].contains(&kind) {
            return Ok(None);
        }
        let (&[_, _, _, _, word @ ..], body) =
            ip.payload.split_first_chunk::<8>().ok_or(ParseError::new("mld-truncated"))?;
        if checksum == Checksum::Present && !checksum::verify(ip, ip.payload) {
            return Err(ParseError::new("mld-checksum"));
        }
        // RFC 9777 section 5; without an address yet a host reports from the unspecified one (section 5.2.14).
        if ip.hop_limit != HOP_LIMIT || !(source.is_unicast_link_local() || source.is_unspecified())
        {
            return Err(ParseError::new("mld-source"));
        }
        let group = || {
            let group = body.first_chunk::<16>().ok_or(ParseError::new("mld-truncated"))?;
            match Ipv6Addr::from(*group) {
                group if group.is_multicast() => Ok(group.into()),
                _ => Err(ParseError::new("mld-group")),
            }
        };
        Ok(Some(match kind {
            mld::QUERY => Self::Query,
            mld::REPORT_V1 => Self::Report { group: group()?, first: false },
            mld::DONE => Self::Leave(group()?),
            _ => {
                let [_, _, n0, n1] = word;
                Self::Records(Records::check(false, u16::from_be_bytes([n0, n1]), body)?)
            }
        }))
    }
}

/// Whether a packet is a fragment of what may be such a message, of which nothing can be said before it is whole. True
/// for every fragment of IGMP, and to a group for those of ICMPv6 and of what its headers may go on with. Honest
/// messages fit into a packet: a report with too many records is sent as several.
#[must_use]
pub fn may_be_part(ip: &IpPacket<'_>) -> bool {
    ip.fragment.is_some()
        && match ip.destination {
            IpAddr::V4(_) => ip.protocol == ip::IGMP,
            IpAddr::V6(to) => {
                to.is_multicast() && (ip.protocol == ip::ICMPV6 || ip::is_extension(ip.protocol))
            }
        }
}

/// The records of a report about several groups, of which each is whole and about a multicast address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Records<'a> {
    ipv4: bool,
    left: u16,
    bytes: &'a [u8],
}

impl<'a> Records<'a> {
    fn check(ipv4: bool, left: u16, bytes: &'a [u8]) -> Result<Self, ParseError> {
        let records = Self { ipv4, left, bytes };
        let mut rest = records;
        while rest.left > 0 {
            let Some((group, _)) = rest.record() else {
                return Err(ParseError::new(if ipv4 { "igmp-truncated" } else { "mld-truncated" }));
            };
            if !group.is_multicast() {
                return Err(ParseError::new(if ipv4 { "igmp-group" } else { "mld-group" }));
            }
        }
        Ok(records)
    }

    /// Takes the next record off: its group, and whether it says that its sender listens to that; `None` if it does
    /// not say that. (RFC 9776 section 4.2.4, RFC 9777 section 5.2.4.)
    fn record(&mut self) -> Option<(IpAddr, Option<bool>)> {
        self.left = self.left.checked_sub(1)?;
        let (&[kind, auxiliary, n0, n1], rest) = self.bytes.split_first_chunk()?;
        let sources = usize::from(u16::from_be_bytes([n0, n1]));
        let (group, rest, width): (IpAddr, _, usize) = if self.ipv4 {
            let (group, rest) = rest.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*group).into(), rest, 4)
        } else {
            let (group, rest) = rest.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*group).into(), rest, 16)
        };
        let behind = sources.saturating_mul(width).saturating_add(usize::from(auxiliary) << 2);
        self.bytes = rest.get(behind..)?;
        let listens = match kind {
            // MODE_IS_INCLUDE and CHANGE_TO_INCLUDE_MODE: of these sources only.
            1 | 3 => Some(sources > 0),
            // MODE_IS_EXCLUDE, CHANGE_TO_EXCLUDE_MODE, ALLOW_NEW_SOURCES.
            2 | 4 | 5 => Some(true),
            // BLOCK_OLD_SOURCES; what is not known is passed over.
            _ => None,
        };
        Some((group, listens))
    }
}

/// Groups that their sender listens to from now on, or does not any more.
impl Iterator for Records<'_> {
    type Item = (IpAddr, bool);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let (group, Some(listens)) = self.record()? {
                return Some((group, listens));
            }
        }
    }
}

/// Writes a question of the newest version to the group, or about all groups of the family, into `out`, which is
/// cleared first. Answers shall come within `within`, at most 12.7 seconds. `source` is the querier's address.
pub fn query_frame(
    out: &mut Vec<u8>,
    source_mac: MacAddr,
    source: IpAddr,
    group: Option<IpAddr>,
    within: Duration,
) -> Offload {
    out.clear();
    match source {
        IpAddr::V4(source) => {
            let group = match group {
                Some(IpAddr::V4(group)) => Some(group),
                _ => None,
            };
            igmp_query(out, source_mac, source, group, within);
        }
        IpAddr::V6(source) => {
            let group = match group {
                Some(IpAddr::V6(group)) => Some(group),
                _ => None,
            };
            mld_query(out, source_mac, source, group, within);
        }
    }
    Offload::default()
}

/// RFC 9776 section 4.1.
fn igmp_query(
    out: &mut Vec<u8>,
    source_mac: MacAddr,
    source: Ipv4Addr,
    group: Option<Ipv4Addr>,
    within: Duration,
) {
    let to = group.unwrap_or(ALL_HOSTS);
    let ethernet = Ethernet {
        destination: MacAddr::ipv4_multicast(to),
        source: source_mac,
        ethertype: ethernet::IPV4,
    };
    out.extend_from_slice(&ethernet.emit());
    let start = out.len();
    out.extend_from_slice(&[0x46, CONTROL, 0, 36, 0, 0, 0x40, 0, HOP_LIMIT, ip::IGMP, 0, 0]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&to.octets());
    out.extend_from_slice(&ALERT4);
    complete(out, start, start.saturating_add(10), 0);
    let start = out.len();
    let tenths = u8::try_from(within.as_millis() / 100).unwrap_or(127).min(127);
    out.extend_from_slice(&[igmp::QUERY, tenths, 0, 0]);
    out.extend_from_slice(&group.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    out.extend_from_slice(&[ROBUSTNESS, QUERY_INTERVAL, 0, 0]);
    complete(out, start, start.saturating_add(2), 0);
}

/// RFC 9777 section 5.1.
fn mld_query(
    out: &mut Vec<u8>,
    source_mac: MacAddr,
    source: Ipv6Addr,
    group: Option<Ipv6Addr>,
    within: Duration,
) {
    const LEN: u8 = 28;
    let to = group.unwrap_or(ALL_NODES);
    let ethernet = Ethernet {
        destination: MacAddr::ipv6_multicast(to),
        source: source_mac,
        ethertype: ethernet::IPV6,
    };
    out.extend_from_slice(&ethernet.emit());
    out.extend_from_slice(&[0x60, 0, 0, 0, 0, 8 + LEN, 0, HOP_LIMIT]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&to.octets());
    out.extend_from_slice(&ALERT6);
    let start = out.len();
    let [m0, m1] = u16::try_from(within.as_millis()).unwrap_or(12_700).to_be_bytes();
    out.extend_from_slice(&[mld::QUERY, 0, 0, 0, m0, m1, 0, 0]);
    out.extend_from_slice(&group.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
    out.extend_from_slice(&[ROBUSTNESS, QUERY_INTERVAL, 0, 0]);
    let pseudo = checksum::pseudo_header(source.into(), to.into(), ip::ICMPV6, LEN.into());
    complete(out, start, start.saturating_add(2), pseudo);
}

/// Writes the checksum of what begins at `start` to `field`.
fn complete(out: &mut [u8], start: usize, field: usize, begun: u32) {
    let sum = checksum::sum(out.get(start..).unwrap_or_default());
    let sum = checksum::finish(checksum::combine(begun, sum));
    if let Some(place) = out.get_mut(field..).and_then(<[u8]>::first_chunk_mut) {
        *place = sum.to_be_bytes();
    }
}
