//! Routes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{INET, INET6, LinkIndex, PROTOCOL, Rtnetlink, family};
use crate::attribute::{Answer, Attributes, CREATE, EXCLUSIVE, Message, Value};
use crate::error::{Error, Result, errno, gone_is_done};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

// linux/rtnetlink.h
/// `RTNH_F_DEAD | RTNH_F_LINKDOWN` of a next hop: packets do not take it.
const DEAD: u8 = 1 | 16;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_EXPIRES: u16 = 23;
/// The first of the metrics: `RTAX_MTU`.
const RTAX_MTU: u16 = 2;

/// `RTNH_F_ONLINK`: the gateway is on this link, whatever the addresses say.
const ON_LINK: u32 = 4;
/// `RTM_F_CLONED`: a cache entry, not a route.
const CLONED: u32 = 0x200;
/// The flags that a program may set; the others say how the route is doing (`RTNH_F_*`).
const SETTABLE: u32 = ON_LINK | 2;

/// `RT_TABLE_MAIN`: the table that `ip route` shows.
pub const MAIN_TABLE: u32 = 254;
/// `RT_TABLE_LOCAL`: the kernel's own, with the addresses of this machine.
pub const LOCAL_TABLE: u32 = 255;

const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;

/// What happens to packets that take a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RouteKind {
    /// They go on.
    Unicast,
    /// They are for this machine.
    Local,
    /// They vanish.
    Blackhole,
    /// They are answered with "host unreachable".
    Unreachable,
    /// They are answered with "administratively prohibited".
    Prohibit,
    /// A kind that is only listed: broadcast, anycast, ...; the kernel's number.
    Other(u8),
}

impl RouteKind {
    const fn number(self) -> u8 {
        match self {
            Self::Unicast => 1,
            Self::Local => 2,
            Self::Blackhole => 6,
            Self::Unreachable => 7,
            Self::Prohibit => 8,
            Self::Other(number) => number,
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Unicast,
            2 => Self::Local,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            number => Self::Other(number),
        }
    }
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Where to; `0.0.0.0/0` and `::/0` are the default routes.
    pub destination: IpNet,
    /// What happens.
    pub kind: RouteKind,
    /// The next hop; that of an IPv4 route may be an IPv6 address (RFC 8950).
    pub gateway: Option<IpAddr>,
    /// The link.
    pub link: Option<LinkIndex>,
    /// The source address of what this machine sends by it.
    pub source: Option<IpAddr>,
    /// Of several to one destination the lowest is taken.
    pub metric: Option<u32>,
    /// Its table.
    pub table: u32,
    /// The gateway is on the link even if no address says so.
    pub on_link: bool,
    /// The largest packet that fits this way, bytes, if less than the link's.
    pub mtu: Option<u32>,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
}

impl Route {
    /// A route of ours in the main table.
    #[must_use]
    pub const fn new(destination: IpNet) -> Self {
        Self {
            destination,
            kind: RouteKind::Unicast,
            gateway: None,
            link: None,
            source: None,
            metric: None,
            table: MAIN_TABLE,
            on_link: false,
            mtu: None,
            protocol: PROTOCOL,
        }
    }

    /// A default route of ours in the main table.
    #[must_use]
    pub fn default_via(gateway: IpAddr, link: LinkIndex) -> Self {
        let unspecified = match gateway {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        Self {
            gateway: Some(gateway),
            link: Some(link),
            ..Self::new(IpNet::new_assert(unspecified, 0))
        }
    }

    /// True when it was made here.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let direct = self.gateway.is_none() && self.kind == RouteKind::Unicast;
        // An IPv4 route without a gateway leads to neighbours only.
        let scope = match (self.destination, kind) {
            (IpNet::V4(_), RTM_NEWROUTE) if direct => SCOPE_LINK,
            (_, RTM_NEWROUTE) => SCOPE_UNIVERSE,
            // Whatever scope it has.
            _ => u8::MAX,
        };
        let on_link = if self.on_link { ON_LINK } else { 0 };
        let [a, b, c, d] = on_link.to_ne_bytes();
        // struct rtmsg: family, destination and source prefix lengths, type of service, table
        // (RTA_TABLE counts), who made it, scope, kind, flags.
        let mut message = Message::new(kind, flags).fixed(&[
            family(&self.destination),
            self.destination.prefix_len(),
            0,
            0,
            0,
            self.protocol,
            scope,
            self.kind.number(),
            a,
            b,
            c,
            d,
        ]);
        message.put_u32(RTA_TABLE, self.table);
        message.put_address(RTA_DST, self.destination.network());
        match self.gateway {
            Some(gateway) if gateway.is_ipv4() == self.destination.addr().is_ipv4() => {
                message.put_address(RTA_GATEWAY, gateway);
            }
            Some(gateway) => put_via(&mut message, gateway),
            None => {}
        }
        if let Some(link) = self.link {
            message.put_u32(RTA_OIF, link.0);
        }
        if let Some(source) = self.source {
            message.put_address(RTA_PREFSRC, source);
        }
        if let Some(metric) = self.metric {
            message.put_u32(RTA_PRIORITY, metric);
        }
        if let Some(mtu) = self.mtu {
            message.nest(RTA_METRICS, |metrics| {
                metrics.put_u32(RTAX_MTU, mtu);
            });
        }
        message
    }

    pub(super) fn read(answer: &Answer<'_>) -> Option<Self> {
        let (header, attributes) = answer.split::<12>()?;
        let [family, len, _, _, table, protocol, _, kind, flags @ ..] = header;
        let flags = u32::from_ne_bytes(flags);
        if flags & CLONED != 0 {
            return None;
        }
        let unspecified = match family {
            INET => IpAddr::from([0; 4]),
            INET6 => IpAddr::from([0; 16]),
            _ => return None,
        };
        let destination =
            attributes.find(RTA_DST).map_or(Some(unspecified), |value| value.address())?;
        let number = |kind| attributes.find(kind).and_then(|value| value.u32());
        let address = |kind| attributes.find(kind).and_then(|value| value.address());
        let metrics = attributes.find(RTA_METRICS).map(|metrics| metrics.nested());
        Some(Self {
            destination: IpNet::new(destination, len).ok()?,
            kind: RouteKind::from_number(kind),
            gateway: gateway(attributes),
            link: number(RTA_OIF).map(LinkIndex),
            source: address(RTA_PREFSRC),
            metric: number(RTA_PRIORITY),
            table: number(RTA_TABLE).unwrap_or(table.into()),
            on_link: flags & ON_LINK != 0,
            mtu: metrics.and_then(|metrics| metrics.find(RTAX_MTU)?.u32()),
            protocol,
        })
    }
}

/// Where the kernel would send a packet at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decision {
    /// What happens to it.
    pub kind: RouteKind,
    /// The link by which it leaves.
    pub link: LinkIndex,
    /// The source address it would have.
    pub source: Option<IpAddr>,
    /// The next hop; `None`: the destination is a neighbour.
    pub gateway: Option<IpAddr>,
    /// The table that the route is in.
    pub table: u32,
}

impl Decision {
    fn read(answer: &Answer<'_>) -> Option<Self> {
        let ([_, _, _, _, table, _, _, kind, ..], attributes) = answer.split::<12>()?;
        let number = |kind| attributes.find(kind).and_then(|value| value.u32());
        Some(Self {
            kind: RouteKind::from_number(kind),
            link: LinkIndex(number(RTA_OIF)?),
            source: attributes.find(RTA_PREFSRC).and_then(|value| value.address()),
            gateway: gateway(attributes),
            table: number(RTA_TABLE).unwrap_or(table.into()),
        })
    }
}

/// The next hop: of the route's family, or of another one (`struct rtvia`: family, address).
fn gateway(attributes: Attributes<'_>) -> Option<IpAddr> {
    let same = || attributes.find(RTA_GATEWAY)?.address();
    let other = || Value(attributes.find(RTA_VIA)?.0.get(2..)?).address();
    same().or_else(other)
}

/// A next hop of another family than the route's.
fn put_via(message: &mut Message, gateway: IpAddr) {
    let family = if gateway.is_ipv4() { INET } else { INET6 };
    let mut via = u16::from(family).to_ne_bytes().to_vec();
    match gateway {
        IpAddr::V4(address) => via.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => via.extend_from_slice(&address.octets()),
    }
    message.put(RTA_VIA, &via);
}

/// The route once for each of its next hops that are alive; without such ones, for each of them.
fn hops(answer: &Answer<'_>) -> Vec<Route> {
    let Some(route) = Route::read(answer) else { return Vec::new() };
    let Some((_, attributes)) = answer.split::<12>() else { return Vec::new() };
    let Some(several) = attributes.find(RTA_MULTIPATH) else {
        return vec![route];
    };
    // struct rtnexthop: length (16 bits), flags, weight, link; then its attributes.
    let mut rest = several.0;
    let (mut found, mut dead) = (Vec::new(), Vec::new());
    while let Some([a, b, flags, _, link @ ..]) = rest.first_chunk::<8>() {
        let len = usize::from(u16::from_ne_bytes([*a, *b]));
        let Some(own) = rest.get(8..len) else { break };
        let link = Some(LinkIndex(u32::from_ne_bytes(*link)));
        let hop = Route { link, gateway: gateway(Attributes(own)), ..route };
        if flags & DEAD == 0 {
            found.push(hop)
        } else {
            dead.push(hop)
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    if found.is_empty() { dead } else { found }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(f, " by {link}")?;
        }
        if self.table != MAIN_TABLE {
            write!(f, " in table {}", self.table)?;
        }
        Ok(())
    }
}

/// A route with all that the kernel says of it, to be put back as it was: `struct rtmsg` and its
/// attributes, as `ip route save` keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RouteRecord {
    pub(crate) route: Route,
    message: Vec<u8>,
}

impl RouteRecord {
    fn read(answer: &Answer<'_>) -> Option<Self> {
        Some(Self { route: Route::read(answer)?, message: answer.body.to_vec() })
    }

    /// Whether it needs others to be there first: a gateway must be reachable.
    fn has_gateway(&self) -> bool {
        self.route.gateway.is_some()
            || self.attributes().is_some_and(|mut all| all.any(|(kind, _)| kind == RTA_VIA))
    }

    fn split(&self) -> Option<([u8; 12], Attributes<'_>)> {
        Answer { kind: 0, flags: 0, sequence: 0, port: 0, body: &self.message }.split::<12>()
    }

    fn attributes(&self) -> Option<Attributes<'_>> {
        self.split().map(|(_, attributes)| attributes)
    }

    /// The message that makes it again, on `link`; with our mark, or its own.
    fn message(&self, link: LinkIndex, ours: bool) -> Option<Message> {
        let (header, attributes) = self.split()?;
        let [family, to, from, tos, table, mut protocol, scope, kind, flags @ ..] = header;
        let [a, b, c, d] = (u32::from_ne_bytes(flags) & SETTABLE).to_ne_bytes();
        if ours {
            protocol = PROTOCOL;
        }
        let mut message = Message::new(RTM_NEWROUTE, CREATE | EXCLUSIVE)
            .fixed(&[family, to, from, tos, table, protocol, scope, kind, a, b, c, d]);
        for (kind, value) in attributes {
            match kind {
                // How often it was used, and when it expires (RFC 4861 section 6.3.4).
                RTA_CACHEINFO => {
                    if let Some(seconds) = expiry(value.0) {
                        message.put_u32(RTA_EXPIRES, seconds);
                    }
                }
                RTA_OIF => {
                    message.put_u32(RTA_OIF, link.0);
                }
                _ => {
                    message.put(kind, value.0);
                }
            }
        }
        Some(message)
    }
}

/// Seconds until a route expires, of `struct rta_cacheinfo`: two numbers of 32 bits, then the time
/// in hundredths of a second (`USER_HZ`). `None`: it does not.
fn expiry(cache_info: &[u8]) -> Option<u32> {
    const TICKS: i32 = 100;
    let [a, b, c, d] = *cache_info.get(8..)?.first_chunk()?;
    let seconds = i32::from_ne_bytes([a, b, c, d]) / TICKS;
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

impl Rtnetlink {
    /// Adds a route.
    ///
    /// # Errors
    /// [`Error::exists`]: there is one to this destination with this metric; the gateway cannot
    /// be reached (`ENETUNREACH`, `EHOSTUNREACH`).
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let message = route.message(RTM_NEWROUTE, CREATE | EXCLUSIVE);
        self.connection.request(message, || format!("add the route {route}"))
    }

    /// Removes a route that whoever [`Route::protocol`] names made; one that is gone already is
    /// fine.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove_route(&mut self, route: &Route) -> Result<()> {
        let message = route.message(RTM_DELROUTE, 0);
        gone_is_done(self.connection.request(message, || format!("remove the route {route}")))
    }

    /// Every route of every table; those of one link if it is given.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn routes(&mut self, link: Option<LinkIndex>) -> Result<Vec<Route>> {
        self.dump_routes(link, |answer| {
            Route::read(answer).filter(|route| link.is_none() || route.link == link)
        })
    }

    /// Every route of every table, those with several next hops once for each of them that is alive. The gateway of
    /// an IPv4 route may be an IPv6 address.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn hops(&mut self) -> Result<Vec<Route>> {
        let found = self.dump_routes(None, |answer| Some(hops(answer)))?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Where the kernel would send a packet to `destination` at this moment, by all of its rules and
    /// tables; only by `link` if it is given. Nothing is sent. `None`: nowhere.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn decide(
        &mut self,
        destination: IpAddr,
        link: Option<LinkIndex>,
    ) -> Result<Option<Decision>> {
        const NOWHERE: [i32; 4] =
            [errno::EACCES, errno::EINVAL, errno::ENETUNREACH, errno::EHOSTUNREACH];
        let net = IpNet::from(destination);
        let mut message = Message::new(RTM_GETROUTE, 0).fixed(&[
            family(&net),
            net.prefix_len(),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
        message.put_address(RTA_DST, destination);
        if let Some(link) = link {
            message.put_u32(RTA_OIF, link.0);
        }
        let operation = || format!("ask for the way to {destination}");
        match self.connection.get(message, operation, Decision::read) {
            // The kernel answers "prohibit", "blackhole" and "unreachable" routes with these.
            Err(error) if error.errno().is_some_and(|code| NOWHERE.contains(&code)) => Ok(None),
            Err(error) if error.is_gone() => Ok(None),
            found => found,
        }
    }

    /// The routes of one link, to be put back later, those first that others need. Routes of the
    /// kernel's own table are left out: they come with the addresses.
    pub(crate) fn record_routes(&mut self, link: LinkIndex) -> Result<Vec<RouteRecord>> {
        let mut found = self.dump_routes(Some(link), |answer| {
            RouteRecord::read(answer).filter(|record| {
                let route = &record.route;
                let link_local = IpNet::new_assert([0xfe80, 0, 0, 0, 0, 0, 0, 0].into(), 10);
                route.link == Some(link)
                    && route.table != LOCAL_TABLE
                    && route.kind == RouteKind::Unicast
                    && !link_local.contains(&route.destination)
                    && !route.destination.addr().is_multicast()
                    && record.attributes().is_some_and(|all| all.find(RTA_MULTIPATH).is_none())
            })
        })?;
        found.sort_by_key(RouteRecord::has_gateway);
        Ok(found)
    }

    /// Makes a recorded route, on `link`: as it was, or marked as ours. One that is there is fine.
    pub(crate) fn put_route(
        &mut self,
        link: LinkIndex,
        record: &RouteRecord,
        ours: bool,
    ) -> Result<()> {
        let operation = || format!("add the route {}", record.route);
        let message = record
            .message(link, ours)
            .ok_or_else(|| Error::Malformed { operation: operation() })?;
        match self.connection.request(message, operation) {
            Err(error) if error.exists() => Ok(()),
            result => result,
        }
    }

    fn dump_routes<T>(
        &mut self,
        link: Option<LinkIndex>,
        parse: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut message = Message::new(RTM_GETROUTE, 0).fixed(&[0; 12]);
        if let Some(link) = link {
            message.put_u32(RTA_OIF, link.0);
        }
        self.connection.dump(&message, || "list the routes".into(), parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(route: Route) -> Option<Route> {
        let bytes = route.message(RTM_NEWROUTE, 0).finish(1)?;
        Route::read(&Answer::all(&bytes).next()?)
    }

    #[test]
    fn what_is_asked_for_is_what_is_read() {
        let gateway = "2001:db8::1".parse().unwrap();
        let route = Route {
            mtu: Some(1400),
            metric: Some(5),
            on_link: true,
            ..Route::default_via(gateway, LinkIndex(3))
        };
        assert_eq!(round(route), Some(route));
        let by_ipv6 = Route { destination: "0.0.0.0/0".parse().unwrap(), ..route };
        assert_eq!(round(by_ipv6), Some(by_ipv6));
        let route = Route {
            kind: RouteKind::Unreachable,
            table: 1000,
            ..Route::new("10.0.0.0/8".parse().unwrap())
        };
        assert_eq!(round(route), Some(route));
        assert_eq!(route.to_string(), "10.0.0.0/8 in table 1000");
    }

    #[test]
    fn a_recorded_route_moves_to_another_link() {
        let route =
            Route { protocol: 4, ..Route::default_via("192.0.2.1".parse().unwrap(), LinkIndex(3)) };
        let mut message = route.message(RTM_NEWROUTE, 0);
        let info: Vec<u8> = [0, 0, 3000, 0].into_iter().flat_map(i32::to_ne_bytes).collect();
        message.put(RTA_CACHEINFO, &info).put_u32(200, 5);
        let bytes = message.finish(1).unwrap();
        let record = RouteRecord::read(&Answer::all(&bytes).next().unwrap()).unwrap();
        assert!(record.has_gateway());
        let read = |ours| {
            let bytes = record.message(LinkIndex(8), ours).unwrap().finish(1).unwrap();
            let answer = Answer::all(&bytes).next().unwrap();
            let (_, attributes) = answer.split::<12>().unwrap();
            assert!(attributes.find(RTA_CACHEINFO).is_none());
            assert_eq!(attributes.find(RTA_EXPIRES).unwrap().u32(), Some(30));
            assert_eq!(attributes.find(200).unwrap().u32(), Some(5), "what is unknown is kept");
            Route::read(&answer).unwrap()
        };
        let moved = Route { link: Some(LinkIndex(8)), ..route };
        assert_eq!(read(false), moved);
        assert_eq!(read(true), Route { protocol: PROTOCOL, ..moved });
    }
}
