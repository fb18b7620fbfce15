//! Addresses that IPv6 hosts make for themselves: duplicate address detection and stateless
//! autoconfiguration (RFC 4862), and the routers that advertise prefixes (RFC 4861 section 6.3).
//!
//! Addresses are optimistic (RFC 4429): they are used while the question whether somebody else has
//! them is open, because it hardly ever is answered. A duplicate is given up, and told.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv6Net};
use netyard_wire::MacAddr;
use netyard_wire::icmp::{Ndp, Prefix, Resolvers, solicited_node};
use rand::RngExt as _;

use super::nic::{Address, MAX_ADDRESSES, Nic, Origin};
use super::{Ip, Medium, NicIndex};
use crate::Error;

/// RFC 4861 section 10, RETRANS_TIMER: how long the one probe (RFC 4862 section 5.1) may remain
/// unanswered.
const PROBE: Duration = Duration::from_secs(1);
/// RFC 4861 section 10: questions for routers, their distance, and the longest delay of the first.
const SOLICITATIONS: u8 = 3;
const SOLICITATION_INTERVAL: Duration = Duration::from_secs(4);
const SOLICITATION_DELAY: Duration = Duration::from_secs(1);

/// Most default routers, and most on-link prefixes of one interface; further ones are not learnt.
const MAX_ROUTERS: usize = 8;
const MAX_PREFIXES: usize = 16;
/// Most resolvers of one interface (RFC 8106 section 5.3.1 wants at least three).
const MAX_RESOLVERS: usize = 6;

/// RFC 4862 section 5.5.3 (e): nobody may shorten an address's life to less by a forged message.
const TWO_HOURS: Duration = Duration::from_secs(7200);
/// A lifetime that does not end (RFC 4861 section 4.6.2).
const FOREVER: u32 = u32::MAX;
/// Prefixes that addresses are made of have this length: the rest is made of the hardware address
/// (RFC 2464 section 4).
const PREFIX_LEN: u8 = 64;
/// RFC 8200 section 5.
const MIN_MTU: u32 = 1280;

const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// What routers have told one interface.
#[derive(Debug, Default)]
pub(crate) struct Autoconf {
    enabled: bool,
    solicitations_left: u8,
    solicit_at: Option<Instant>,
    /// Default routers, and until when.
    routers: Vec<(Ipv6Addr, Instant)>,
    /// Prefixes on the link, and until when (`None`: for ever).
    prefixes: Vec<(IpNet, Option<Instant>)>,
    /// Resolvers, and until when (`None`: for ever).
    resolvers: Vec<(Ipv6Addr, Option<Instant>)>,
}

impl Autoconf {
    fn learn_resolvers(&mut self, now: Instant, told: Resolvers) {
        let asked = told.addresses.into_iter().flatten().filter(|ip| !ip.is_multicast());
        self.resolvers.retain(|(known, _)| !told.addresses.contains(&Some(*known)));
        if told.lifetime > 0 {
            let until = until(now, told.lifetime);
            self.resolvers.extend(asked.map(|ip| (ip, until)));
            self.resolvers.truncate(MAX_RESOLVERS);
        }
    }

    /// The resolvers that may be asked.
    pub(super) fn resolvers(&self, now: Instant) -> impl Iterator<Item = Ipv6Addr> {
        let valid = move |until: Option<Instant>| until.is_none_or(|until| now < until);
        self.resolvers.iter().filter(move |(_, until)| valid(*until)).map(|(ip, _)| *ip)
    }
}

/// When [`Ip::handle_autoconf_timeout`] has something to do for this interface.
pub(super) fn poll_timeout(nic: &Nic) -> Option<Instant> {
    let addresses = nic
        .addresses()
        .iter()
        .flat_map(|address| [address.tentative_until, address.valid_until])
        .flatten();
    let routers = nic.autoconf.routers.iter().map(|(_, until)| *until);
    let prefixes = nic.autoconf.prefixes.iter().filter_map(|(_, until)| *until);
    let dhcp = nic.dhcp.as_ref().map(|client| client.at);
    addresses.chain(routers).chain(prefixes).chain(nic.autoconf.solicit_at).chain(dhcp).min()
}

impl Ip {
    /// Makes an interface with Ethernet ask for routers, and make itself addresses of the prefixes
    /// that they advertise.
    pub(crate) fn enable_autoconf(&mut self, now: Instant, index: NicIndex) -> Result<(), Error> {
        let delay = SOLICITATION_DELAY.mul_f64(self.rng.random());
        let nic = self.nic_mut(index).ok_or(Error::InvalidInput)?;
        let Medium::Ethernet(mac) = nic.medium else { return Err(Error::InvalidInput) };
        nic.autoconf.enabled = true;
        nic.autoconf.solicitations_left = SOLICITATIONS;
        nic.autoconf.solicit_at = Some(now + delay);
        self.add_link_local(now, index, mac)
    }

    fn add_link_local(&mut self, now: Instant, index: NicIndex, mac: MacAddr) -> Result<(), Error> {
        let ip = mac.link_local();
        if self.nic(index).is_some_and(|nic| nic.has(ip.into())) {
            return Ok(());
        }
        let net = Ipv6Net::new(ip, PREFIX_LEN).map_err(|_| Error::InvalidInput)?;
        self.assign(now, index, Address::permanent(net.into(), Origin::LinkLocal))
    }

    /// Asks whether somebody else has an address that an interface has just got. An interface with
    /// an IPv6 address has a link-local one, too (RFC 4291 section 2.8).
    pub(super) fn start_duplicate_detection(&mut self, now: Instant, index: NicIndex, ip: IpAddr) {
        let Some(nic) = self.nic_mut(index) else { return };
        let (Medium::Ethernet(mac), IpAddr::V6(target)) = (nic.medium, ip) else { return };
        for address in nic.addresses_mut().iter_mut().filter(|own| own.net.addr() == ip) {
            address.tentative_until = Some(now + PROBE);
        }
        let group = solicited_node(target);
        let probe = Ndp::NeighborSolicitation { target, source_mac: None };
        let to = MacAddr::ipv6_multicast(group);
        self.send_ndp(index, to, Ipv6Addr::UNSPECIFIED, group, probe);
        if !target.is_unicast_link_local() {
            // There is room, or the address would not be there.
            let _ = self.add_link_local(now, index, mac);
        }
    }

    /// Somebody else has an address of ours: it is given up while it is new (RFC 4862 section 5.4.5),
    /// else only counted, as whoever claims it may be lying.
    pub(super) fn handle_duplicate(&mut self, index: NicIndex, ip: Ipv6Addr) {
        let Some(nic) = self.nic_mut(index) else { return };
        let given_up = nic.remove(|address| {
            address.net.addr() == IpAddr::V6(ip) && address.tentative_until.is_some()
        });
        if given_up.is_empty() {
            return self.drop("ndp-conflict");
        }
        self.generation += 1;
        // Who does not listen is not told for ever.
        if self.duplicates.len() < MAX_ADDRESSES {
            self.duplicates.push_back((index, ip.into()));
        }
    }

    pub(super) fn handle_router_advertisement(
        &mut self,
        now: Instant,
        index: NicIndex,
        router: Ipv6Addr,
        message: Ndp,
    ) {
        let Ndp::RouterAdvertisement { hop_limit, lifetime, source_mac, mtu, prefix, resolvers } =
            message
        else {
            return;
        };
        let Some(nic) = self.nic_mut(index).filter(|nic| nic.autoconf.enabled) else { return };
        nic.autoconf.solicit_at = None;
        if hop_limit != 0 {
            nic.hop_limit = hop_limit;
        }
        if let Some(mtu) = mtu.filter(|mtu| (MIN_MTU..=nic.mtu).contains(mtu)) {
            nic.mtu6 = mtu;
        }
        if let Some(told) = resolvers {
            nic.autoconf.learn_resolvers(now, told);
        }
        if let Some(mac) = source_mac.filter(|mac| !mac.is_multicast()) {
            self.neighbors.heard(now, (index, router.into()), mac);
        }
        self.set_router(now, index, router, lifetime);
        if let Some(prefix) = prefix.filter(|prefix| !prefix.address.is_unicast_link_local()) {
            if prefix.on_link {
                self.set_prefix(now, index, prefix);
            }
            if prefix.autonomous && prefix.len == PREFIX_LEN && prefix.preferred <= prefix.valid {
                self.make_address(now, index, prefix);
            }
        }
        self.generation += 1;
    }

    /// A router may be a default router for so many seconds; 0: it is none any more.
    fn set_router(&mut self, now: Instant, index: NicIndex, router: Ipv6Addr, lifetime: u16) {
        let default = IpNet::V6(Ipv6Net::default());
        let Some(nic) = self.nic_mut(index) else { return };
        let routers = &mut nic.autoconf.routers;
        routers.retain(|(other, _)| *other != router);
        if lifetime == 0 {
            self.routes.remove(|route| {
                route.nic == index
                    && route.prefix == default
                    && route.gateway == Some(router.into())
            });
        } else if routers.len() < MAX_ROUTERS {
            routers.push((router, now + Duration::from_secs(lifetime.into())));
            // A full table was the configuration's choice.
            let _ = self.add_route(default, index, Some(router.into()));
        }
    }

    fn set_prefix(&mut self, now: Instant, index: NicIndex, prefix: Prefix) {
        let Ok(net) = Ipv6Net::new(prefix.address, prefix.len) else { return };
        let net = IpNet::V6(net.trunc());
        let Some(nic) = self.nic_mut(index) else { return };
        let prefixes = &mut nic.autoconf.prefixes;
        let known = prefixes.iter().any(|(other, _)| *other == net);
        prefixes.retain(|(other, _)| *other != net);
        if prefix.valid == 0 {
            if known {
                self.routes.remove(|route| route.nic == index && route.prefix == net);
            }
        } else if prefixes.len() < MAX_PREFIXES {
            prefixes.push((net, until(now, prefix.valid)));
            // A full table was the configuration's choice.
            let _ = self.add_route(net, index, None);
        }
    }

    /// Makes or refreshes the address of a prefix (RFC 4862 section 5.5.3).
    fn make_address(&mut self, now: Instant, index: NicIndex, prefix: Prefix) {
        let Some(nic) = self.nic_mut(index) else { return };
        let Medium::Ethernet(mac) = nic.medium else { return };
        let interface = mac.link_local().to_bits() & u128::from(u64::MAX);
        let network = prefix.address.to_bits() & !u128::from(u64::MAX);
        let ip = Ipv6Addr::from_bits(network | interface);
        let own = nic.addresses_mut().iter_mut().find(|own| own.net.addr() == IpAddr::V6(ip));
        let Some(own) = own else {
            let Ok(net) = Ipv6Net::new(ip, PREFIX_LEN) else { return };
            if prefix.valid > 0 {
                let address = Address {
                    preferred_until: until(now, prefix.preferred),
                    valid_until: until(now, prefix.valid),
                    ..Address::permanent(net.into(), Origin::Advertised)
                };
                // No room for it: there are enough others.
                let _ = self.assign(now, index, address);
            }
            return;
        };
        if own.origin != Origin::Advertised {
            return;
        }
        own.preferred_until = until(now, prefix.preferred);
        let told = until(now, prefix.valid);
        let enough = now + TWO_HOURS;
        own.valid_until = match (told, own.valid_until) {
            (None, _) => None,
            (Some(told), Some(known)) if told > enough || told > known => Some(told),
            (Some(told), None) => Some(told.max(enough)),
            (Some(_), Some(known)) => Some(known.min(enough)),
        };
    }

    /// Lets what is due happen.
    pub(super) fn handle_autoconf_timeout(&mut self, now: Instant) {
        let due = |nic: &Nic| poll_timeout(nic).is_some_and(|at| at <= now);
        let due: Vec<NicIndex> =
            self.indexes().filter(|(_, nic)| due(nic)).map(|(index, _)| index).collect();
        for index in due {
            self.expire(now, index);
            self.solicit_routers(now, index);
            self.handle_dhcp_timeout(now, index);
        }
    }

    fn expire(&mut self, now: Instant, index: NicIndex) {
        let Some(nic) = self.nic_mut(index) else { return };
        for address in nic.addresses_mut() {
            address.tentative_until = address.tentative_until.filter(|until| *until > now);
        }
        let over = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        let addresses = nic.remove(|address| over(address.valid_until));
        let Autoconf { routers, prefixes, .. } = &mut nic.autoconf;
        let gone_routers: Vec<IpAddr> = routers
            .extract_if(.., |(_, until)| *until <= now)
            .map(|(router, _)| router.into())
            .collect();
        let gone_prefixes: Vec<IpNet> =
            prefixes.extract_if(.., |(_, until)| over(*until)).map(|(net, _)| net).collect();
        let routes = self.routes.remove(|route| {
            let gone = match route.gateway {
                Some(gateway) => route.prefix.prefix_len() == 0 && gone_routers.contains(&gateway),
                None => gone_prefixes.contains(&route.prefix),
            };
            gone && route.nic == index
        });
        self.generation += u64::from(routes || !addresses.is_empty());
    }

    fn solicit_routers(&mut self, now: Instant, index: NicIndex) {
        let Some(nic) = self.nic_mut(index) else { return };
        if nic.autoconf.solicit_at.is_none_or(|at| at > now) {
            return;
        }
        nic.autoconf.solicitations_left = nic.autoconf.solicitations_left.saturating_sub(1);
        let more = nic.autoconf.solicitations_left > 0;
        nic.autoconf.solicit_at = more.then(|| now + SOLICITATION_INTERVAL);
        let mac = nic.mac();
        let question = Ndp::RouterSolicitation { source_mac: Some(mac) };
        let to = MacAddr::ipv6_multicast(ALL_ROUTERS);
        self.send_ndp(index, to, mac.link_local(), ALL_ROUTERS, question);
    }
}

/// When a lifetime in seconds ends; `None`: never.
fn until(now: Instant, lifetime: u32) -> Option<Instant> {
    (lifetime != FOREVER).then(|| now + Duration::from_secs(lifetime.into()))
}
