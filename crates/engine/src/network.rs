//! The core of one network: switch and gateway, flows, forwards, services. No IO, no clock.
//!
//! The driver hands in frames, readiness of host sockets and the time; everything the network
//! does in turn goes out through [`Edge`]. After each batch of events the driver calls
//! [`Network::flush`].

mod flows;
pub(crate) mod frames;
mod rules;
mod services;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netyard_wire::reassembly::Reassembly;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::between::Between;
use crate::config::{self, Config};
use crate::context::Context;
use crate::control::{
    ControlError, ControlErrorKind, ForwardState, Name, PlugRequest, PlugState, Plugged, Remote,
    RemoteState, State,
};
use crate::counters::Counters;
use crate::dhcp;
use crate::dns::Dns;
use crate::edge::{Edge, PlugId, Readiness, SocketId};
use crate::forward::{self, Forward, Protocol};
use crate::guests::{self, Guests};
use crate::mdns::Mdns;
use crate::multicast::Snooping;
use crate::ping::Pings;
use crate::policy::Policy;
use crate::policy::rules::Rules;
use crate::remote::Remotes;
use crate::router::Advertiser;
use crate::service::{ServiceId, Services};
use crate::switch::Switch;
pub use crate::tcp::DialId;
use crate::tcp::{ListenerId, ListenerTarget, Tcp, TcpEvent};
use crate::udp::{self, UdpFlows};
use crate::vip::Vip;

/// What the network tells its driver.
#[derive(Debug)]
pub enum Event {
    /// A [`Network::dial`] is open or has failed.
    Dialed {
        /// Which.
        dial: DialId,
        /// How it went.
        result: Result<(), ControlError>,
    },
    /// A guest has connected to a service of which each request takes a turn. The socket is the
    /// driver's from here on: it leads to the guest.
    Entered {
        /// The service.
        service: ServiceId,
        /// The guest's address and port.
        client: SocketAddr,
        /// The stream.
        socket: SocketId,
    },
}

/// One user-mode network.
#[derive(Debug)]
pub struct Network {
    config: Config,
    guests: Guests,
    remotes: Remotes,
    switch: Switch,
    /// `None`: what is sent to a group goes to everybody.
    snooping: Option<Snooping>,
    policy: Policy,
    between: Between,
    counters: Counters,
    rng: SmallRng,
    scratch: Vec<u8>,
    services: Services,
    tcp: Tcp,
    udp: UdpFlows,
    pings: Pings,
    dns: Dns,
    /// `None` if nothing of it goes on to the host's links.
    mdns: Option<Mdns>,
    vip: Vip,
    /// Fragments for the gateway and beyond that wait for the rest of their datagram, for each guest alone.
    fragments: HashMap<PlugId, Reassembly>,
    /// `None` if guests get neither addresses nor advertisements.
    dhcp: Option<dhcp::Gateway>,
    router: Option<Advertiser>,
    /// Who made which plug.
    members: BTreeMap<PlugId, String>,
    next_plug: u32,
    forwards: Vec<OpenForward>,
    published: BTreeMap<ServiceId, Published>,
}

/// A forward with its bound TCP ports; UDP ports are kept with the UDP flows.
#[derive(Debug)]
struct OpenForward {
    forward: Forward,
    member: String,
    ports: Vec<Bound>,
}

/// One bound host port.
#[derive(Debug, Clone, Copy)]
enum Bound {
    Tcp(ListenerId),
    Udp(SocketId),
}

impl Bound {
    fn protocol(self) -> Protocol {
        match self {
            Self::Tcp(_) => Protocol::Tcp,
            Self::Udp(_) => Protocol::Udp,
        }
    }
}

/// The host side of a service.
#[derive(Debug, Clone, Copy)]
struct Published {
    at: SocketAddr,
    port: Bound,
    listening: bool,
}

impl Network {
    /// An empty network. `seed` feeds everything random: sequence numbers, ports, DNS ids.
    #[must_use]
    pub fn new(config: Config, seed: u64, now: Instant) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let secret = (rng.random(), rng.random());
        Self {
            guests: Guests::default(),
            remotes: Remotes::default(),
            switch: Switch::new(config.gateway_mac),
            snooping: config.snooping.then(|| Snooping::new(now)),
            policy: Policy::new(&config, Vec::new()),
            between: Between::new(),
            counters: Counters::default(),
            scratch: Vec::new(),
            services: Services::default(),
            tcp: Tcp::new(now, secret),
            udp: UdpFlows::new(now),
            pings: Pings::new(now),
            dns: Dns::new(&config, now),
            mdns: (config.mdns != config::Mdns::Off).then(|| Mdns::new(&config, now)),
            vip: Vip::new(now),
            fragments: HashMap::new(),
            dhcp: dhcp::Gateway::new(&config, None),
            router: config.dhcp.map(|_| Advertiser::new(now)),
            members: BTreeMap::new(),
            next_plug: 1,
            forwards: Vec::new(),
            published: BTreeMap::new(),
            rng,
            config,
        }
    }

    /// The network's configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether `member` has a plug.
    #[must_use]
    pub fn has_plug(&self, member: &str, plug: PlugId) -> bool {
        self.members.get(&plug).is_some_and(|owner| owner == member)
    }

    /// How many plugs there are.
    #[must_use]
    pub fn plugs(&self) -> usize {
        self.members.len()
    }

    /// Counts a frame that could not even be read.
    pub fn count_drop(&mut self, reason: &'static str) {
        self.counters.drop(reason);
    }

    /// Sets whether the network stays when the last plug leaves.
    pub fn set_permanent(&mut self, permanent: bool) {
        self.config.permanent = permanent;
    }

    /// The host's own addresses, which guests may not reach. With others the host may be at another place, where a
    /// resolver on the host itself gives other answers than before.
    pub fn set_host_addresses(&mut self, addresses: Vec<IpAddr>) {
        if self.policy.set_host_addresses(addresses) {
            self.dns.forget();
        }
    }

    /// The host's cards, by their numbers, whose links are asked for names in `.local`, if any are.
    pub fn set_mdns_cards(&mut self, now: Instant, cards: &BTreeSet<u32>, edge: &mut dyn Edge) {
        let Parts { mut cx, mdns, .. } = self.parts(now, edge);
        if let Some(mdns) = mdns {
            mdns.set_cards(&mut cx, cards);
        }
    }

    /// The host's resolvers, to which names outside of the zone go.
    pub fn set_upstreams(&mut self, upstreams: Vec<SocketAddr>) {
        self.dns.set_upstreams(upstreams);
    }

    /// How many descriptors the process may have; guests get their parts of them.
    pub fn set_descriptors(&mut self, descriptors: usize) {
        self.tcp.set_descriptors(descriptors);
    }

    /// Handles readiness of a host socket.
    pub fn handle_host(
        &mut self,
        now: Instant,
        socket: SocketId,
        ready: Readiness,
        edge: &mut dyn Edge,
    ) {
        let Parts { mut cx, services, tcp, udp, pings, dns, mdns, .. } = self.parts(now, edge);
        if tcp.owns(socket) {
            tcp.handle_socket(&mut cx, services, socket, ready);
        } else if udp.owns(socket) {
            udp.handle_socket(&mut cx, services, socket, ready);
        } else if dns.owns(socket) {
            dns.handle_socket(&mut cx, socket, ready);
        } else if pings.owns(socket) {
            pings.handle_socket(&mut cx, socket, ready);
        } else if let Some(mdns) = mdns.filter(|mdns| mdns.owns(socket)) {
            mdns.handle_socket(&mut cx, socket);
        }
        // Else: an event of a socket that an event before it has closed.
    }

    /// Sockets of a family inside the namespace of who is behind a plug have come, see [`Edge::connect_inside`], or
    /// cannot be had there for now.
    pub fn handle_supply(
        &mut self,
        now: Instant,
        plug: PlugId,
        ipv4: bool,
        came: bool,
        edge: &mut dyn Edge,
    ) {
        let Parts { mut cx, services, tcp, .. } = self.parts(now, edge);
        tcp.handle_supply(&mut cx, services, (plug, ipv4), came);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, edge: &mut dyn Edge) {
        self.fragments.retain(|_, parts| {
            parts.handle_timeout(now);
            !parts.is_empty()
        });
        let Parts { mut cx, services, tcp, udp, pings, dns, vip, router, snooping, .. } =
            self.parts(now, edge);
        if let Some(snooping) = snooping {
            snooping.handle_timeout(&mut cx);
        }
        tcp.handle_timeout(&mut cx, services);
        udp.handle_timeout(&mut cx, services);
        pings.handle_timeout(&mut cx);
        dns.handle_timeout(&mut cx);
        vip.handle_timeout(&mut cx, services);
        if let Some(router) = router {
            let plugs = cx.guests.iter().map(|guest| guest.plug);
            router.advertise(&mut cx, plugs);
        }
    }

    /// When [`Network::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = [
            self.tcp.poll_timeout(),
            self.udp.poll_timeout(),
            self.pings.poll_timeout(),
            self.dns.poll_timeout(),
            self.vip.poll_timeout(),
            self.fragments.values().filter_map(Reassembly::poll_timeout).min(),
            self.router.as_ref().map(Advertiser::poll_timeout),
            self.snooping.as_ref().and_then(Snooping::poll_timeout),
        ];
        due.into_iter().flatten().min()
    }

    /// Does the work that a batch of events has left. True if there is more to do at once.
    pub fn flush(&mut self, now: Instant, edge: &mut dyn Edge) -> bool {
        let Parts { mut cx, services, tcp, udp, dns, mdns, snooping, .. } = self.parts(now, edge);
        let dns_more = dns.flush(&mut cx, services);
        let mdns_more = mdns.is_some_and(|mdns| mdns.flush(&mut cx, snooping.as_deref()));
        let tcp_more = tcp.flush(&mut cx, services);
        udp.flush(&mut cx, services) || tcp_more || dns_more || mdns_more
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        Some(match self.tcp.poll_event()? {
            TcpEvent::Dialed(dial, result) => {
                let kind = ControlErrorKind::Unreachable;
                let result = result.map_err(|message| ControlError { kind, message });
                Event::Dialed { dial, result }
            }
            TcpEvent::Entered { service, client, socket } => {
                Event::Entered { service, client, socket }
            }
        })
    }

    /// Plugs a guest in for `member` and gives it its addresses.
    ///
    /// # Errors
    /// `Taken` if the wanted name or address is another guest's, `Malformed` if the address is
    /// not of this network, `Exhausted` if no address is free.
    pub fn add_plug(
        &mut self,
        member: &str,
        request: &PlugRequest,
    ) -> Result<Plugged, ControlError> {
        let services = &self.services;
        let in_use = |address| services.by_address(address).is_some();
        let plug = PlugId(self.next_plug);
        let guest = self.guests.plan(plug, &self.config, request, &in_use)?;
        if !self.switch.add_plug(plug, Some(guest.mac)) {
            return Err(guests::mac_refused(&self.config, &guest));
        }
        self.next_plug += 1;
        let plugged = guest.plugged();
        let addresses = [guest.address4.into(), guest.address6.into()];
        self.policy.add_guest(member, &guest.name, addresses);
        self.guests.insert(guest);
        if let (Some(snooping), false) = (&mut self.snooping, request.silent) {
            snooping.add_plug(plug);
        }
        self.members.insert(plug, member.to_owned());
        Ok(plugged)
    }

    /// Takes a plug out; its flows end. False if `member` has no such plug.
    pub fn remove_plug(
        &mut self,
        now: Instant,
        member: &str,
        plug: PlugId,
        edge: &mut dyn Edge,
    ) -> bool {
        if self.members.get(&plug).is_none_or(|owner| owner != member) {
            return false;
        }
        self.members.remove(&plug);
        if self.remotes.remove_plug(plug) {
            let Parts { mut cx, services, tcp, .. } = self.parts(now, edge);
            tcp.remove_guest(&mut cx, services, plug);
            self.fragments.remove(&plug);
            return true;
        }
        self.switch.remove_plug(plug);
        if let Some(snooping) = &mut self.snooping {
            snooping.remove_plug(plug);
        }
        if let Some(mdns) = &mut self.mdns {
            mdns.remove_plug(plug);
        }
        let Some(guest) = self.guests.remove(plug) else { return true };
        self.policy.remove_guest(&guest.name);
        self.between.remove_plug(plug);
        let Parts { mut cx, services, tcp, udp, pings, dns, vip, .. } = self.parts(now, edge);
        tcp.remove_guest(&mut cx, services, plug);
        udp.remove_guest(&mut cx, services, &guest);
        pings.remove_guest(&mut cx, plug);
        dns.remove_guest(&mut cx, plug);
        vip.remove_guest(&mut cx, services, &guest);
        self.fragments.remove(&plug);
        true
    }

    /// A number for the plug of remote machines that `member` is about to bring.
    ///
    /// # Errors
    /// `Taken`: it has brought some.
    pub fn new_remote(&mut self, member: &str) -> Result<PlugId, ControlError> {
        if self.remotes.has(member) {
            let message = format!("`{member}` has brought remote machines already");
            return Err(ControlError { kind: ControlErrorKind::Taken, message });
        }
        let plug = PlugId(self.next_plug);
        self.next_plug += 1;
        Ok(plug)
    }

    /// Heeds what `member` tells of its remote machines, and where their plug is the first time.
    ///
    /// # Errors
    /// `Malformed`: they have no plug.
    pub fn set_remote(
        &mut self,
        member: &str,
        remote: Remote,
        plug: Option<PlugId>,
    ) -> Result<(), ControlError> {
        self.remotes.set(&self.config, member, Remote { interface: None, ..remote }, plug)?;
        if let Some(plug) = plug {
            self.members.insert(plug, member.to_owned());
        }
        Ok(())
    }

    /// The remote machines, with their plugs.
    #[must_use]
    pub fn remotes(&self) -> Vec<(Option<PlugId>, RemoteState)> {
        self.remotes.state()
    }

    /// The names and addresses of guests and services.
    #[must_use]
    pub fn names(&self) -> Vec<Name> {
        names(&self.guests, &self.services)
    }

    /// Opens a forward of `member`; returns the bound host addresses. That of a Unix socket comes with the
    /// socket, which listens.
    ///
    /// # Errors
    /// `Taken` if the member or the host has such a port, `NotPermitted`, `Malformed` without the socket or with one
    /// that does not belong there, `Failed`. Nothing stays bound then.
    pub fn add_forward(
        &mut self,
        now: Instant,
        member: &str,
        forward: Forward,
        socket: Option<OwnedFd>,
        edge: &mut dyn Edge,
    ) -> Result<Vec<SocketAddr>, ControlError> {
        let mut ports = Vec::new();
        if let Some(listener) = forward::listener(&forward, socket)? {
            let adopted = edge.adopt_listener(listener);
            let socket = adopted.map_err(|error| forward::not_adopted(&forward, &error))?;
            let port = forward.guest_ports.first();
            let target = ListenerTarget::Guest { name: forward.instance.clone(), port };
            ports.push(Bound::Tcp(self.tcp.listen(socket, target, forward.delivery)));
        }
        for (at, port) in forward.pairs() {
            if let Err(error) = self.bind(now, &forward, at, port, &mut ports, edge) {
                self.unbind(now, &ports, edge);
                return Err(cannot_bind(at, forward.protocol, &error));
            }
        }
        let bound = forward.pairs().map(|(at, _)| at).collect();
        self.forwards.push(OpenForward { forward, member: member.to_owned(), ports });
        Ok(bound)
    }

    /// Binds one port of a forward and notes it in `ports`.
    fn bind(
        &mut self,
        now: Instant,
        forward: &Forward,
        at: SocketAddr,
        port: u16,
        ports: &mut Vec<Bound>,
        edge: &mut dyn Edge,
    ) -> io::Result<()> {
        let Parts { mut cx, tcp, udp, .. } = self.parts(now, edge);
        match forward.protocol {
            Protocol::Tcp => {
                let target = ListenerTarget::Guest { name: forward.instance.clone(), port };
                let listener = tcp.bind(&mut cx, at, target, forward.delivery)?;
                ports.push(Bound::Tcp(listener));
                tcp.set_listening(&mut cx, listener, true)
            }
            Protocol::Udp => {
                let target = udp::Target::Guest { name: forward.instance.clone(), port };
                let socket = udp.bind(&mut cx, at, target)?;
                ports.push(Bound::Udp(socket));
                Ok(())
            }
        }
    }

    fn unbind(&mut self, now: Instant, ports: &[Bound], edge: &mut dyn Edge) {
        let Parts { mut cx, services, tcp, udp, .. } = self.parts(now, edge);
        for port in ports {
            match *port {
                Bound::Tcp(listener) => tcp.unbind(&mut cx, listener),
                Bound::Udp(socket) => udp.unbind(&mut cx, services, socket),
            }
        }
    }

    /// Closes a forward of `member`; open connections stay. False if it has no such forward.
    pub fn remove_forward(
        &mut self,
        now: Instant,
        member: &str,
        forward: &Forward,
        edge: &mut dyn Edge,
    ) -> bool {
        let found =
            self.forwards.iter().position(|open| open.member == member && open.forward == *forward);
        let Some(found) = found else { return false };
        let open = self.forwards.remove(found);
        self.unbind(now, &open.ports, edge);
        true
    }

    /// Opens a TCP connection from the gateway to an address of the network; `stream` is joined
    /// to it. [`Event::Dialed`] tells the outcome.
    ///
    /// # Errors
    /// `Failed` if the stream cannot be used.
    pub fn dial(
        &mut self,
        now: Instant,
        to: SocketAddr,
        within: Duration,
        stream: OwnedFd,
        edge: &mut dyn Edge,
    ) -> Result<DialId, ControlError> {
        let Parts { mut cx, services, tcp, .. } = self.parts(now, edge);
        tcp.dial(&mut cx, services, to, within, stream).map_err(|error| ControlError {
            kind: ControlErrorKind::Failed,
            message: format!("cannot dial {to}: {error}"),
        })
    }

    /// Takes everything out that `member` made.
    pub fn remove_member(&mut self, now: Instant, member: &str, edge: &mut dyn Edge) {
        for id in self.services.remove_member(member) {
            self.end_service(now, id, edge);
        }
        let forwards: Vec<Forward> = self
            .forwards
            .iter()
            .filter(|open| open.member == member)
            .map(|open| open.forward.clone())
            .collect();
        for forward in &forwards {
            self.remove_forward(now, member, forward, edge);
        }
        let plugs: Vec<PlugId> = self
            .members
            .iter()
            .filter(|(_, owner)| *owner == member)
            .map(|(plug, _)| *plug)
            .collect();
        for plug in plugs {
            self.remove_plug(now, member, plug, edge);
        }
        self.policy.set_rules(member, Rules::default());
        self.remotes.remove_member(member);
    }

    /// What is in the way of the guests' traffic, and what to do about it.
    pub fn warnings(&self) -> Vec<String> {
        let pings = self.pings.warning().map(str::to_owned).into_iter();
        pings.chain(self.remotes.warnings(&self.config)).collect()
    }

    /// Looks whether this host allows guests to ping, which [`Network::state`] shows.
    pub fn check_pings(&mut self, edge: &mut dyn Edge) {
        self.pings.check(edge);
    }

    /// What `inspect` shows. The driver adds what it knows: process id, members and traffic.
    #[must_use]
    pub fn state(&self) -> State {
        let plugs = self.guests.iter().map(|guest| PlugState {
            plug: guest.plug,
            name: guest.name.clone(),
            member: self.members.get(&guest.plug).cloned().unwrap_or_default(),
            mac: guest.mac,
            addresses: vec![guest.address4.into(), guest.address6.into()],
            guest_to_host: Default::default(),
            host_to_guest: Default::default(),
            dropped: 0,
            spliced: self.tcp.spliced(guest.plug),
            groups: self.snooping.iter().flat_map(|it| it.groups(guest.plug)).collect(),
        });
        let forwards = self.forwards.iter().map(|open| ForwardState {
            forward: open.forward.clone(),
            member: open.member.clone(),
            connections: open
                .ports
                .iter()
                .map(|port| match *port {
                    Bound::Tcp(listener) => self.tcp.accepted(listener),
                    Bound::Udp(socket) => self.udp.accepted(socket),
                })
                .sum(),
        });
        State {
            config: Some(self.config.clone()),
            interface: None,
            warnings: self.warnings(),
            pid: 0,
            members: Vec::new(),
            asked_by: String::new(),
            plugs: plugs.collect(),
            remotes: Vec::new(),
            forwards: forwards.collect(),
            services: self.services.state(),
            leases: Vec::new(),
            tcp_flows: self.tcp.len() + self.vip.len(),
            udp_flows: self.udp.len(),
            pings: self.pings.len(),
            dns: self.dns.state(),
            drops: self.counters.all(),
            policy: self.policy.counts(),
            rules: self.policy.rules().clone(),
        }
    }

    /// The parts that an event touches, borrowed side by side.
    fn parts<'a>(&'a mut self, now: Instant, edge: &'a mut dyn Edge) -> Parts<'a> {
        Parts {
            cx: Context {
                now,
                edge,
                config: &self.config,
                guests: &self.guests,
                remotes: &self.remotes,
                policy: &mut self.policy,
                counters: &mut self.counters,
                rng: &mut self.rng,
                scratch: &mut self.scratch,
            },
            services: &mut self.services,
            tcp: &mut self.tcp,
            udp: &mut self.udp,
            pings: &mut self.pings,
            dns: &mut self.dns,
            mdns: self.mdns.as_mut(),
            vip: &mut self.vip,
            between: &mut self.between,
            dhcp: self.dhcp.as_mut(),
            router: self.router.as_mut(),
            snooping: self.snooping.as_mut(),
        }
    }
}

/// The network, taken apart for one event.
struct Parts<'a> {
    cx: Context<'a>,
    services: &'a mut Services,
    tcp: &'a mut Tcp,
    udp: &'a mut UdpFlows,
    pings: &'a mut Pings,
    dns: &'a mut Dns,
    mdns: Option<&'a mut Mdns>,
    vip: &'a mut Vip,
    between: &'a mut Between,
    dhcp: Option<&'a mut dhcp::Gateway>,
    router: Option<&'a mut Advertiser>,
    snooping: Option<&'a mut Snooping>,
}

/// The names and addresses of guests and services. A service goes before a guest of its name.
pub(crate) fn names(guests: &Guests, services: &Services) -> Vec<Name> {
    let of_services = services.state().into_iter();
    let of_services = of_services.map(|it| Name { name: it.spec.name, addresses: it.addresses });
    let of_guests = guests.iter().flat_map(|guest| {
        let addresses = || vec![guest.address4.into(), guest.address6.into()];
        guest.names().map(move |name| Name { name: name.clone(), addresses: addresses() })
    });
    let mut names: Vec<_> = of_services.chain(of_guests).collect();
    // Stable: of equals the first stays.
    names.sort_by(|one, other| one.name.cmp(&other.name));
    names.dedup_by(|other, one| one.name == other.name);
    names
}

pub(crate) fn cannot_bind(at: SocketAddr, protocol: Protocol, error: &io::Error) -> ControlError {
    let (kind, why) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            ControlErrorKind::Taken,
            "the port is taken: choose another, or stop who has it".to_owned(),
        ),
        io::ErrorKind::PermissionDenied => (
            ControlErrorKind::NotPermitted,
            "ports below net.ipv4.ip_unprivileged_port_start (usually 1024) need root: choose a \
             higher one"
                .to_owned(),
        ),
        io::ErrorKind::AddrNotAvailable => (
            ControlErrorKind::Failed,
            "this host has no such address: `ip addr` lists those it has".to_owned(),
        ),
        _ => (ControlErrorKind::Failed, error.to_string()),
    };
    ControlError { kind, message: format!("cannot bind {at}/{protocol}: {why}") }
}
