//! DHCP for guests: servers for IPv4 ([`v4`]) and IPv6 ([`v6`]), and the gateway's use of them.
//!
//! # Theory of operation
//!
//! A server gets one message at a time, with what is known of its sender and the time, and returns
//! the answer with where it goes. It has no socket and sees no frame: the gateway of a user-mode
//! network calls it, and so may a process that reads UDP sockets on a bridge.
//!
//! A client with a [`Reservation`], by its plug or by its hardware address, gets that address and
//! no other, whatever it calls itself; no state is kept about it. The others share a pool, see
//! [`leases`]. The server is taken to be the only one of its link (it is *authoritative*): a client
//! that asks for an address that it cannot have is told so, also where the server does not know it.
//! Messages of relays are not answered.
//!
//! On a user-mode network every plug has a planned address, so there is no pool. A guest that
//! answers DHCP itself is not heard by the others. On a bridge there may be clients that nobody has
//! plugged in: they share a `Pool`.

pub mod leases;
pub mod v4;
pub mod v6;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Instant, SystemTime};

use netyard_wire::dhcp::{v4 as wire4, v6 as wire6};
use netyard_wire::dns::Name;
use netyard_wire::ip::IpPacket;
use netyard_wire::udp::{self, Datagram};
use netyard_wire::{Features, Frame, MacAddr, build, fit};
use serde::{Deserialize, Serialize};

use self::leases::{Client, SavedLease};
use crate::config::Config;
use crate::context::{Context, HOP_LIMIT};
use crate::control::LeaseState;
use crate::edge::PlugId;
use crate::guests::Guest;
use crate::icmp;

/// What one client gets, always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation<A> {
    /// Its address.
    pub address: A,
    /// The name that it is told to have, without domain. Only DHCPv4 can tell it.
    pub host_name: Option<String>,
}

/// A message of a client, and what is known of it. `A` is the kind of address that is given out.
pub struct Request<'a, A> {
    /// The payload of the UDP datagram.
    pub message: &'a [u8],
    /// Hardware address of the sender, where it is known for sure.
    pub mac: Option<MacAddr>,
    /// What is planned for the sender's plug.
    pub planned: Option<Reservation<A>>,
    /// Addresses that the pool does not give out although they lie in it.
    pub taken: &'a dyn Fn(A) -> bool,
}

impl<A: std::fmt::Debug> std::fmt::Debug for Request<'_, A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("message", &self.message)
            .field("mac", &self.mac)
            .field("planned", &self.planned)
            .finish_non_exhaustive()
    }
}

/// Refuses what only a DHCP server sends: guests are none, and who answers first would own the
/// others' routes and names.
///
/// # Errors
/// The name of the drop counter.
pub(crate) fn check_guest(ip: &IpPacket<'_>) -> Result<(), &'static str> {
    // Clients listen on one port, and take answers from any.
    let client = if ip.source.is_ipv4() { wire4::CLIENT_PORT } else { wire6::CLIENT_PORT };
    if udp::destination_port(ip) == Some(client) { Err("rogue-dhcp") } else { Ok(()) }
}

/// The gateway's servers.
#[derive(Debug)]
pub(crate) struct Gateway {
    v4: v4::Server,
    v6: v6::Server,
}

/// Addresses for clients without a plug, first and last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    v4: RangeInclusive<Ipv4Addr>,
    v6: RangeInclusive<Ipv6Addr>,
}

impl Pool {
    /// The pool of a network: its range, or what lies between the lowest addresses, which plugs get,
    /// and the highest, which services get.
    pub(crate) fn new(config: &Config) -> Self {
        let all = config.usable4();
        let range = config.dhcp.and_then(|dhcp| dhcp.range);
        let (first, last) = (all.div_ceil(2).max(2), (all - all / 8).saturating_sub(1));
        let number6 = |number: u128| Ipv6Addr::from_bits(config.nth6(0).to_bits() | number);
        // Beyond every number that an IPv4 address has in its prefix.
        Self {
            v4: match range {
                Some(range) => range.first..=range.last,
                None => config.nth4(first)..=config.nth4(last),
            },
            v6: number6(1 << 32)..=number6(1 << 32 | 0xffff),
        }
    }
}

/// The leases of both families, as they are saved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedLeases {
    v4: Vec<SavedLease<Ipv4Addr>>,
    v6: Vec<SavedLease<Ipv6Addr>>,
}

/// Who asks for an address.
pub(crate) struct Asker<'a> {
    /// Its plug.
    pub(crate) plug: PlugId,
    /// The hardware address that its message came from.
    pub(crate) mac: MacAddr,
    /// The guest that it is; others share the pool.
    pub(crate) guest: Option<&'a Guest>,
    /// Addresses that the pool does not give out although they lie in it.
    pub(crate) taken: &'a dyn Fn(IpAddr) -> bool,
}

impl Gateway {
    /// The servers of a network; `None` if its guests are not to be answered.
    pub(crate) fn new(config: &Config, pool: Option<Pool>) -> Option<Self> {
        let lease = config.dhcp?.lease;
        let domain: Option<Name> = config.zone.parse().ok();
        let search = || config.search().filter_map(|domain| domain.parse().ok());
        let (pool4, pool6) = pool.map(|pool| (pool.v4, pool.v6)).unzip();
        let v4 = v4::Settings {
            server: config.gateway4(),
            subnet: config.subnet4,
            router: Some(config.gateway4()),
            dns: vec![config.gateway4()],
            ntp: Vec::new(),
            domain,
            search: search().skip(1).collect(),
            mtu: Some(config.mtu),
            routes: Vec::new(),
            pool: pool4,
            reservations: Default::default(),
            lease,
        };
        let v6 = v6::Settings {
            server: v6::duid(config.gateway_mac),
            subnet: config.subnet6,
            dns: vec![config.gateway6()],
            search: search().collect(),
            pool: pool6,
            reservations: Default::default(),
            lease,
        };
        Some(Self { v4: v4::Server::new(v4), v6: v6::Server::new(v6) })
    }

    /// True for what a guest sends to DHCP servers.
    pub(crate) fn listens(config: &Config, ip: &IpPacket<'_>, datagram: &Datagram<'_>) -> bool {
        let to = ip.destination;
        match to {
            IpAddr::V4(_) => {
                datagram.destination_port == wire4::SERVER_PORT
                    && (config.is_gateway(to) || icmp::is_group(config, to))
            }
            IpAddr::V6(address) => {
                datagram.destination_port == wire6::SERVER_PORT
                    && (config.is_gateway(to) || address == wire6::ALL_SERVERS)
            }
        }
    }

    /// True if the address is lent to somebody.
    pub(crate) fn has_lent(&self, now: Instant, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.leases().iter(now).any(|(lent, _)| lent == address),
            IpAddr::V6(address) => self.v6.leases().iter(now).any(|(lent, _)| lent == address),
        }
    }

    /// What has to outlive the process, if it has changed since the last call. `wall` is the time
    /// of day at `now`.
    pub(crate) fn take_changed(&mut self, now: Instant, wall: SystemTime) -> Option<SavedLeases> {
        let changed4 = self.v4.leases_mut().take_changed();
        let changed6 = self.v6.leases_mut().take_changed();
        (changed4 || changed6).then(|| SavedLeases {
            v4: self.v4.leases().save(now, wall),
            v6: self.v6.leases().save(now, wall),
        })
    }

    /// What is lent, as `inspect` shows it.
    pub(crate) fn lent(&self, now: Instant, wall: SystemTime) -> Vec<LeaseState> {
        let v4 = self.v4.leases().save(now, wall).into_iter().map(|lease| {
            let mac = lease.client.as_deref().and_then(mac_of);
            LeaseState { mac, ..LeaseState::new(lease.address.into(), lease.client, lease.until) }
        });
        let v6 = self.v6.leases().save(now, wall).into_iter();
        let v6 = v6.map(|it| LeaseState::new(it.address.into(), it.client, it.until));
        v4.chain(v6).collect()
    }

    /// Takes up what was saved.
    pub(crate) fn restore(&mut self, now: Instant, wall: SystemTime, saved: &SavedLeases) {
        self.v4.leases_mut().restore(now, wall, &saved.v4);
        self.v6.leases_mut().restore(now, wall, &saved.v6);
    }

    /// Answers who asks, on its plug alone; see [`Gateway::listens`].
    pub(crate) fn handle_datagram(
        &mut self,
        cx: &mut Context<'_>,
        asker: &Asker<'_>,
        ip: &IpPacket<'_>,
        datagram: &Datagram<'_>,
    ) {
        let (plug, mac) = (asker.plug, asker.mac);
        let message = datagram.payload;
        let answer = match ip.source {
            IpAddr::V4(_) => {
                let planned = asker.guest.map(|guest| Reservation {
                    address: guest.address4,
                    host_name: Some(guest.name.clone()),
                });
                let taken = |address: Ipv4Addr| (asker.taken)(address.into());
                let request = Request { message, mac: Some(mac), planned, taken: &taken };
                let from = SocketAddr::from((cx.config.gateway4(), wire4::SERVER_PORT));
                let reply = self.v4.handle(cx.now, &request);
                reply.map(|reply| reply.map(|it| (from, it.to.into(), it.mac, it.message)))
            }
            IpAddr::V6(_) => {
                let planned = asker
                    .guest
                    .map(|guest| Reservation { address: guest.address6, host_name: None });
                let taken = |address: Ipv6Addr| (asker.taken)(address.into());
                let request = Request { message, mac: Some(mac), planned, taken: &taken };
                let from = SocketAddr::from((cx.config.gateway_link_local(), wire6::SERVER_PORT));
                let to = SocketAddr::new(ip.source, wire6::CLIENT_PORT);
                let reply = self.v6.handle(cx.now, &request);
                reply.map(|reply| reply.map(|message| (from, to, mac, message)))
            }
        };
        match answer {
            Ok(Some((from, to, mac, message))) => send(cx, plug, mac, from, to, &message),
            Ok(None) => {}
            Err(reason) => cx.counters.drop(reason),
        }
    }
}

/// The hardware address that a DHCPv4 client is known by, if it is known by one: behind the number of
/// Ethernet (RFC 2132 section 9.14).
fn mac_of(client: &str) -> Option<MacAddr> {
    match client.parse::<Client>().ok()?.0.as_slice() {
        [1, mac @ ..] => Some(MacAddr(mac.try_into().ok()?)),
        _ => None,
    }
}

/// Sends an answer with its checksum complete: clients read it past their kernel, before they have
/// an address, and some do not know that a checksum can be left to the hardware.
fn send(
    cx: &mut Context<'_>,
    plug: PlugId,
    mac: MacAddr,
    from: SocketAddr,
    to: SocketAddr,
    message: &[u8],
) {
    let mut bytes = Vec::new();
    let ours = cx.config.gateway_mac;
    let offload = build::udp_frame(&mut bytes, ours, mac, from, to, HOP_LIMIT, message);
    let frame = Frame { bytes: &bytes, offload };
    let edge = &mut *cx.edge;
    let sent = fit(frame, Features::NONE, cx.scratch, &mut |frame| {
        edge.transmit(plug, frame);
    });
    if sent.is_err() {
        cx.counters.drop("dhcp-reply");
    }
}
