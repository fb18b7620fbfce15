//! The stack: frames and time in, frames and events out. What comes in is in [`incoming`],
//! what programs ask of its sockets in [`sockets`].

mod incoming;
mod sockets;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use netyard_wire::{FrameBuf, MacAddr, ethernet};

use crate::Error;
use crate::event::{Event, Events};
use crate::ip::{Ip, Medium, NicIndex};
use crate::raw::Raw;
use crate::tcp::{Settings, Tcp};
use crate::udp::Udp;

/// A TCP/IP host: interfaces, addresses, routes, sockets. No IO, no clock, no randomness of its own.
///
/// The program hands in what the devices bring ([`handle_frame`](Self::handle_frame)) and lets time pass
/// ([`handle_timeout`](Self::handle_timeout) at [`poll_timeout`](Self::poll_timeout)); after that, and
/// after each call on a socket, it sends what [`poll_transmit`](Self::poll_transmit) has as long as
/// the devices have room, and looks at what [`poll_event`](Self::poll_event) tells.
///
/// Frames have an Ethernet header in any case, and may be super-frames of up to 64 KiB with the
/// meaning of a virtio-net header, in both directions. Who cannot take them cuts them with
/// [`netyard_wire::fit`].
#[derive(Debug)]
pub struct Stack {
    ip: Ip,
    tcp: Tcp,
    udp: Udp,
    raw: Raw,
    events: Events,
}

/// What a stack has in its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// TCP connections.
    pub connections: usize,
    /// TCP connections that a peer is opening.
    pub opening: usize,
    /// TCP connections that are over and remembered.
    pub time_wait: usize,
}

impl Stack {
    /// A stack without interfaces. `seed` must be unpredictable: sequence numbers and ports are made
    /// of it.
    #[must_use]
    pub fn new(now: Instant, seed: [u8; 32], settings: Settings) -> Self {
        let mut ip = Ip::new(seed, now);
        let tcp = Tcp::new(now, &mut ip, settings);
        Self { ip, tcp, udp: Udp::default(), raw: Raw::default(), events: Events::default() }
    }

    // ------------------------------------------------------------------------- interfaces --

    /// Adds an interface. `mtu`: the largest IP packet, bytes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: less than IPv4 needs (68 bytes, RFC 791), or more than a packet can
    /// have.
    pub fn add_nic(&mut self, medium: Medium, mtu: u32) -> Result<NicIndex, Error> {
        if !(68..=65_535).contains(&mtu) {
            return Err(Error::InvalidInput);
        }
        self.ip.add_nic(medium, mtu)
    }

    /// Gives an interface an address, with a route to the prefix that it is in. With IPv6 and
    /// Ethernet the interface asks whether somebody else has it, and gets a link-local address, too.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: no such interface, or an address that no host has;
    /// [`Error::NoBuffers`]: too many.
    pub fn add_address(&mut self, now: Instant, nic: NicIndex, net: IpNet) -> Result<(), Error> {
        self.ip.add_address(now, nic, net)
    }

    /// Adds a route. `gateway`: the next hop; without one, destinations are on the link.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: no such interface, or a gateway of the other family;
    /// [`Error::NoBuffers`]: too many.
    pub fn add_route(
        &mut self,
        prefix: IpNet,
        nic: NicIndex,
        gateway: Option<IpAddr>,
    ) -> Result<(), Error> {
        self.ip.add_route(prefix, nic, gateway)
    }

    /// Makes an Ethernet interface ask for IPv6 routers, and make itself addresses of what they
    /// advertise (RFC 4862).
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: no such interface, or no Ethernet.
    pub fn enable_autoconf(&mut self, now: Instant, nic: NicIndex) -> Result<(), Error> {
        self.ip.enable_autoconf(now, nic)
    }

    /// Makes an Ethernet interface ask for its IPv4 address by DHCP (RFC 2131).
    ///
    /// # Errors
    /// [`Error::InvalidInput`]: no such interface, or no Ethernet.
    pub fn enable_dhcp(&mut self, now: Instant, nic: NicIndex) -> Result<(), Error> {
        self.ip.enable_dhcp(now, nic)
    }

    /// Sets the hardware address of a neighbour, which is not asked for any more.
    pub fn set_neighbor(&mut self, nic: NicIndex, ip: IpAddr, mac: MacAddr) {
        self.ip.set_neighbor(nic, ip, mac);
    }

    /// The addresses of an interface; none if there is no such interface.
    #[must_use]
    pub fn addresses(&self, nic: NicIndex) -> Vec<IpNet> {
        self.ip.addresses(nic)
    }

    /// The multicast groups that an interface hears; none if there is no such interface.
    #[must_use]
    pub fn groups(&self, nic: NicIndex) -> Vec<IpAddr> {
        self.ip.groups(nic)
    }

    /// All routes, longest prefixes first: prefix, interface and next hop, as [`add_route`](Self::add_route) takes
    /// them. Those that came with addresses are among them.
    pub fn routes(&self) -> impl Iterator<Item = (IpNet, NicIndex, Option<IpAddr>)> {
        self.ip.routes().map(|route| (route.prefix, route.nic, route.gateway))
    }

    /// Resolvers that DHCP servers and routers have named (RFC 2132 section 3.8, RFC 8106).
    #[must_use]
    pub fn resolvers(&self, now: Instant) -> Vec<SocketAddr> {
        self.ip.resolvers(now)
    }

    /// The interfaces, in the order in which they were added.
    pub fn nics(&self) -> impl Iterator<Item = NicIndex> {
        self.ip.indexes().map(|(index, _)| index)
    }

    /// The address that packets to `destination` leave with; `None`: no route leads there.
    #[must_use]
    pub fn source(&self, now: Instant, destination: IpAddr) -> Option<IpAddr> {
        self.ip.path(now, None, None, destination.to_canonical()).ok().map(|path| path.source)
    }

    /// How many packets were dropped for which reason.
    #[must_use]
    pub fn drops(&self) -> &BTreeMap<&'static str, u64> {
        &self.ip.drops
    }

    /// Counts a packet that was dropped before it got here.
    pub fn count_drop(&mut self, reason: &'static str) {
        self.ip.drop(reason);
    }

    /// What is in the tables.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let (connections, opening, time_wait) = self.tcp.counts();
        Counts { connections, opening, time_wait }
    }

    // ----------------------------------------------------------------------- frames and time --

    /// Lets what is due happen; see [`poll_timeout`](Self::poll_timeout).
    pub fn handle_timeout(&mut self, now: Instant) {
        self.ip.handle_timeout(now);
        for (nic, frame) in self.ip.take_lost() {
            let original = frame.bytes.get(ethernet::HEADER_LEN..).unwrap_or_default();
            self.handle_error(now, Some(nic), original, Error::HostUnreachable);
        }
        self.tcp.handle_timeout(&mut self.ip, &mut self.events, now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do; `None`: never, as things
    /// are.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.ip.poll_timeout(), self.tcp.poll_timeout()].into_iter().flatten().min()
    }

    /// The next frame to be sent, and the interface to send it by. Its bytes replace those of
    /// `frame`. What this host sends to itself arrives here, too.
    pub fn poll_transmit(&mut self, now: Instant, frame: &mut FrameBuf) -> Option<NicIndex> {
        loop {
            if let Some((nic, queued)) = self.ip.poll_output() {
                *frame = queued;
                return Some(nic);
            }
            match self.ip.poll_looped() {
                Some((nic, looped)) => self.handle_looped(now, nic, &looped),
                None => {
                    let (ip, events) = (&mut self.ip, &mut self.events);
                    if let Some(nic) = self.tcp.poll_transmit(ip, events, now, frame) {
                        return Some(nic);
                    }
                    if !self.ip.has_output() {
                        return None;
                    }
                }
            }
        }
    }

    /// True if [`poll_transmit`](Self::poll_transmit) may have something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.ip.has_output() || self.tcp.has_output()
    }

    /// The next thing that a program may have waited for.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some((nic, ip)) = self.ip.duplicates.pop_front() {
            return Some(Event::Duplicate(nic, ip));
        }
        let event = self.events.take()?;
        match event {
            Event::Tcp(id) => self.tcp.taken(id),
            Event::Listener(id) => self.tcp.listener_taken(id),
            Event::Udp(id) => self.udp.taken(id),
            Event::Raw(id) => self.raw.taken(id),
            Event::Duplicate(..) => {}
        }
        Some(event)
    }
}
