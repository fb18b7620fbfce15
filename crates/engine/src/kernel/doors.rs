//! The host's ports that lead into the network: bound by us, and open where the kernel does not
//! translate. And the ports of `host.<zone>`, which lead to services of the host.
//!
//! The kernel translates what is sent to an address of the host that is not a loopback one, before
//! any socket sees it. A port of loopback, or of all addresses, has to be open beside: loopback
//! never leaves the machine, and is not translated.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use super::Io;
use super::books::Books;
use super::datagrams::{BURST, Datagrams, MAX_DATAGRAM};
use super::relay::Relays;
use super::segment::WHOLE;
use crate::config::Config;
use crate::control::ControlError;
use crate::edge::{Edge, PlugId, SocketId};
use crate::forward::{self, Forward, Protocol};
use crate::network::cannot_bind;
use crate::service::ServiceId;

/// Connections taken from one port before the others get their turn.
const ACCEPTS: usize = 32;

/// All host ports.
#[derive(Debug)]
pub(super) struct Doors {
    by_socket: HashMap<SocketId, Door>,
    published: BTreeMap<ServiceId, Published>,
    /// Services whose UDP port closes when its clients have left.
    closing: Vec<ServiceId>,
    /// Ports on which there may be more.
    readable: Vec<SocketId>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Door {
    protocol: Protocol,
    target: Target,
    /// Connections or flows that were relayed.
    connections: u64,
}

/// Where a host port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// To an instance.
    Guest { name: String, port: u16 },
    /// To the virtual address of a service; `None` while that is being made.
    Service(Option<ServiceId>),
    /// To a service of the host.
    Host(SocketAddr),
}

/// The host address of a service.
#[derive(Debug, Clone, Copy)]
struct Published {
    protocol: Protocol,
    at: SocketAddr,
    socket: SocketId,
    listening: bool,
}

impl Doors {
    pub(super) fn new() -> Self {
        Self {
            by_socket: HashMap::new(),
            published: BTreeMap::new(),
            closing: Vec::new(),
            readable: Vec::new(),
            buffer: vec![0; MAX_DATAGRAM],
        }
    }

    /// Opens the ports of `host.<zone>` that lead to services of the host. The kernel would not take
    /// packets to loopback addresses from a network.
    pub(super) fn open_host(
        &mut self,
        edge: &mut dyn Edge,
        config: &Config,
    ) -> Result<(), ControlError> {
        for service in &config.host {
            let alias = match service {
                SocketAddr::V4(_) => IpAddr::V4(config.host4()),
                SocketAddr::V6(_) => IpAddr::V6(config.host6()),
            };
            let at = SocketAddr::new(alias, service.port());
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                self.bind_one(edge, protocol, at, Target::Host(*service))
                    .map_err(|error| cannot_bind(at, protocol, &error))?;
            }
        }
        Ok(())
    }

    /// Binds the host ports of a forward, all or none, or takes in the socket that it begins at.
    pub(super) fn bind(
        &mut self,
        edge: &mut dyn Edge,
        forward: &Forward,
        socket: Option<OwnedFd>,
    ) -> Result<Vec<SocketId>, ControlError> {
        let mut sockets = Vec::new();
        if let Some(listener) = forward::listener(forward, socket)? {
            let adopted = edge.adopt_listener(listener);
            let socket = adopted.map_err(|error| forward::not_adopted(forward, &error))?;
            let port = forward.guest_ports.first();
            let target = Target::Guest { name: forward.instance.clone(), port };
            let door = Door { protocol: Protocol::Tcp, target, connections: 0 };
            self.by_socket.insert(socket, door);
            sockets.push(socket);
        }
        for (at, port) in forward.pairs() {
            let target = Target::Guest { name: forward.instance.clone(), port };
            match self.bind_one(edge, forward.protocol, at, target) {
                Ok(socket) => sockets.push(socket),
                Err(error) => {
                    self.forget(edge, &sockets);
                    return Err(cannot_bind(at, forward.protocol, &error));
                }
            }
        }
        Ok(sockets)
    }

    fn bind_one(
        &mut self,
        edge: &mut dyn Edge,
        protocol: Protocol,
        at: SocketAddr,
        target: Target,
    ) -> io::Result<SocketId> {
        let socket = match protocol {
            Protocol::Udp => edge.udp_bind(at)?,
            Protocol::Tcp => {
                let socket = edge.tcp_bind(at)?;
                let opens = match target {
                    Target::Guest { .. } => is_relayed(at.ip()),
                    Target::Service(_) => false,
                    Target::Host(_) => true,
                };
                if opens && let Err(error) = edge.set_listening(socket, true) {
                    edge.close(socket);
                    return Err(error);
                }
                socket
            }
        };
        self.by_socket.insert(socket, Door { protocol, target, connections: 0 });
        Ok(socket)
    }

    /// Closes host ports; connections that are open stay.
    pub(super) fn unbind(
        &mut self,
        io: &mut Io<'_>,
        datagrams: &mut Datagrams,
        sockets: &[SocketId],
    ) {
        for socket in sockets {
            if self.by_socket.get(socket).is_some_and(|door| door.protocol == Protocol::Udp) {
                datagrams.remove_door(io, *socket);
            }
        }
        self.forget(io.edge, sockets);
    }

    fn forget(&mut self, edge: &mut dyn Edge, sockets: &[SocketId]) {
        for socket in sockets {
            self.by_socket.remove(socket);
            edge.close(*socket);
        }
    }

    /// Connections or flows that came by these ports.
    pub(super) fn connections(&self, sockets: &[SocketId]) -> u64 {
        let doors = sockets.iter().filter_map(|socket| self.by_socket.get(socket));
        doors.map(|door| door.connections).sum()
    }

    /// Binds the host port of a service that is about to be made or replaced, if that has another
    /// one than it `had`.
    pub(super) fn prepare(
        &mut self,
        edge: &mut dyn Edge,
        service: Option<ServiceId>,
        protocol: Protocol,
        publish: Option<SocketAddr>,
    ) -> Result<Option<SocketId>, ControlError> {
        let old = service.and_then(|service| self.published.get(&service));
        match publish {
            Some(at) if old.map(|old| (old.protocol, old.at)) != Some((protocol, at)) => self
                .bind_one(edge, protocol, at, Target::Service(None))
                .map(Some)
                .map_err(|error| cannot_bind(at, protocol, &error)),
            _ => Ok(None),
        }
    }

    /// The service could not be made.
    pub(super) fn drop_prepared(&mut self, edge: &mut dyn Edge, prepared: Option<SocketId>) {
        self.forget(edge, prepared.as_slice());
    }

    /// The service was made.
    pub(super) fn publish(
        &mut self,
        io: &mut Io<'_>,
        datagrams: &mut Datagrams,
        service: ServiceId,
        publish: Option<SocketAddr>,
        prepared: Option<SocketId>,
    ) {
        if publish.is_none() || prepared.is_some() {
            self.unpublish(io, datagrams, service);
        }
        let Some((at, socket)) = publish.zip(prepared) else { return };
        if let Some(door) = self.by_socket.get_mut(&socket) {
            door.target = Target::Service(Some(service));
            // A TCP port listens when it is told to, a UDP port takes datagrams from the start.
            let (protocol, listening) = (door.protocol, door.protocol == Protocol::Udp);
            self.published.insert(service, Published { protocol, at, socket, listening });
        }
    }

    /// Closes the host port of a service.
    pub(super) fn unpublish(
        &mut self,
        io: &mut Io<'_>,
        datagrams: &mut Datagrams,
        service: ServiceId,
    ) {
        if let Some(published) = self.published.remove(&service) {
            self.unbind(io, datagrams, &[published.socket]);
        }
    }

    /// A published port is open exactly as long as some instance may get a connection; else clients
    /// are refused. One over UDP stays open for the flows that it has.
    pub(super) fn set_available(
        &mut self,
        edge: &mut dyn Edge,
        datagrams: &Datagrams,
        service: ServiceId,
        available: bool,
    ) {
        self.closing.retain(|closing| *closing != service);
        let Some(published) = self.published.get_mut(&service) else { return };
        let listening = available && is_relayed(published.at.ip());
        if !listening && published.listening && datagrams.comes_by(published.socket) {
            self.closing.push(service);
        } else if published.listening != listening
            && edge.set_listening(published.socket, listening).is_ok()
        {
            published.listening = listening;
        }
    }

    /// Whether UDP ports of services without instances are open for flows of before.
    pub(super) fn is_closing(&self) -> bool {
        !self.closing.is_empty()
    }

    /// Closes those whose last flow has ended. Where `is_heard` says that nobody answers any, they end now.
    pub(super) fn close_unused(
        &mut self,
        io: &mut Io<'_>,
        datagrams: &mut Datagrams,
        is_heard: impl Fn(ServiceId) -> bool,
    ) {
        for service in std::mem::take(&mut self.closing) {
            if let Some(published) = self.published.get(&service).filter(|_| !is_heard(service)) {
                datagrams.remove_door(io, published.socket);
            }
            self.set_available(io.edge, datagrams, service, false);
        }
    }

    pub(super) fn owns(&self, socket: SocketId) -> bool {
        self.by_socket.contains_key(&socket)
    }

    /// Something has come to a port. Call [`Doors::flush`] after.
    pub(super) fn handle_socket(&mut self, io: &mut Io<'_>, socket: SocketId) {
        // Answers that could not be delivered are nobody's concern.
        while io.edge.udp_error(socket).is_some() {}
        if !self.readable.contains(&socket) {
            self.readable.push(socket);
        }
    }

    /// Takes what has come. True if there is more to do at once.
    pub(super) fn flush(
        &mut self,
        io: &mut Io<'_>,
        books: &Books,
        relays: &mut Relays,
        datagrams: &mut Datagrams,
    ) -> bool {
        let Self { by_socket, readable, buffer, .. } = self;
        readable.retain(|socket| {
            let Some(door) = by_socket.get_mut(socket) else { return false };
            match door.protocol {
                Protocol::Tcp => door.accept(io, books, relays, *socket),
                Protocol::Udp => door.receive(io, books, datagrams, *socket, buffer),
            }
        });
        !readable.is_empty()
    }
}

impl Door {
    /// Takes connections; true if there may be more.
    fn accept(
        &mut self,
        io: &mut Io<'_>,
        books: &Books,
        relays: &mut Relays,
        socket: SocketId,
    ) -> bool {
        for _ in 0..ACCEPTS {
            let Ok((client, from)) = io.edge.tcp_accept(socket) else { return false };
            let (targets, plug) = self.target.addresses(books, from.is_ipv4());
            if targets.is_empty() {
                io.counters.drop("forward-without-guest");
                io.edge.reset(client);
            } else {
                self.connections += 1;
                relays.open(io, client, targets, plug);
            }
        }
        true
    }

    /// Takes datagrams; true if there may be more.
    fn receive(
        &mut self,
        io: &mut Io<'_>,
        books: &Books,
        datagrams: &mut Datagrams,
        socket: SocketId,
        buffer: &mut [u8],
    ) -> bool {
        for _ in 0..BURST {
            let Ok((len, client)) = io.edge.udp_recv(socket, buffer) else { return false };
            let payload = buffer.get(..len).unwrap_or_default();
            let (targets, plug) = self.target.addresses(books, client.is_ipv4());
            let Some(target) = targets.first() else {
                io.counters.drop("forward-without-guest");
                continue;
            };
            let new = datagrams.relay(io, (socket, client), (plug, *target), payload);
            self.connections += u64::from(new);
        }
        true
    }
}

impl Target {
    /// Where to connect, in this order, and whose plug that is. An instance that does not answer on
    /// the address of the client's family may on the other.
    fn addresses(&self, books: &Books, ipv4: bool) -> (Vec<SocketAddr>, Option<PlugId>) {
        let (both, port, plug): ([IpAddr; 2], u16, _) = match self {
            Self::Host(service) => return (vec![*service], Some(WHOLE)),
            Self::Guest { name, port } => {
                let Some(guest) = books.guests.by_name(name) else {
                    return (Vec::new(), None);
                };
                ([guest.address4.into(), guest.address6.into()], *port, Some(guest.plug))
            }
            Self::Service(service) => {
                let service = service.and_then(|service| books.services.get(service));
                let Some(service) = service else { return (Vec::new(), None) };
                (service.addresses(), service.port(), None)
            }
        };
        let mut targets = both.map(|address| SocketAddr::new(address, port));
        if !ipv4 {
            targets.reverse();
        }
        // The virtual addresses of a service share their turns: one try is one turn.
        let tries = if plug.is_some() { 2 } else { 1 };
        (targets.into_iter().take(tries).collect(), plug)
    }
}

/// True for addresses whose traffic, all or some of it, does not pass the kernel's translation.
fn is_relayed(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}
