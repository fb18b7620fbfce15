//! What programs ask of TCP.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::RngExt as _;

use super::connection::{Connection, State};
use super::ends::Ends;
use super::listener::Listener;
use super::settings::{Options, Settings};
use super::timestamps::Timestamps;
use super::{MAX_ORPHANS, Place, Shared, Tcp};
use crate::Error;
use crate::ip::{Ip, on_link, zone};
use crate::port;
use crate::udp::plain;

/// A TCP connection of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpId(pub(crate) usize);

/// A listening TCP socket of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub(crate) usize);

/// What is known about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Its state.
    pub state: State,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The smoothed round trip, once one was measured.
    pub rtt: Option<Duration>,
    /// The retransmission timeout, with back-off.
    pub rto: Duration,
    /// The window of congestion, bytes.
    pub congestion_window: u32,
    /// The slow start threshold, bytes.
    pub slow_start_threshold: u32,
    /// Payload of a full segment, bytes.
    pub segment_len: u16,
    /// Bytes that wait to be read.
    pub unread: usize,
    /// Bytes that were written and are not acknowledged.
    pub unacknowledged: usize,
}

impl Tcp {
    pub(crate) fn listen(
        &mut self,
        ip: &mut Ip,
        local: SocketAddr,
        backlog: usize,
    ) -> Result<ListenerId, Error> {
        let mut local = ip.settle(local, None)?;
        if !ip.may_bind(local) || local.ip().is_multicast() {
            return Err(Error::AddressNotAvailable);
        }
        let port = match local.port() {
            0 => port::pick(ip.rng.random(), |port| self.is_free(local, port))
                .ok_or(Error::AddressNotAvailable)?,
            port if self.is_free(local, port) => port,
            _ => return Err(Error::AddressInUse),
        };
        local.set_port(port);
        let place = self.listeners.insert(Listener::new(local, backlog));
        self.by_port.entry(port).or_default().push(place);
        Ok(ListenerId(place))
    }

    /// True if no listener has the port on an address that would clash.
    fn is_free(&self, mut local: SocketAddr, port: u16) -> bool {
        local.set_port(port);
        let clash = |place: &usize| {
            self.listeners.get(*place).is_some_and(|listener| {
                let (other, ip) = (listener.local.ip(), local.ip());
                let wild = other.is_unspecified() || ip.is_unspecified();
                listener.local == local
                    || (wild && (other.is_ipv4() == ip.is_ipv4() || covers_both(other, ip)))
            })
        };
        !self.by_port.get(&port).is_some_and(|places| places.iter().any(clash))
    }

    pub(crate) fn listener_address(&self, id: ListenerId) -> Result<SocketAddr, Error> {
        self.listeners.get(id.0).map(|listener| listener.local).ok_or(Error::BadSocket)
    }

    pub(crate) fn accept(&mut self, id: ListenerId) -> Result<(TcpId, SocketAddr), Error> {
        let listener = self.listeners.get_mut(id.0).ok_or(Error::BadSocket)?;
        let both = listener.local.is_ipv6();
        let slot = listener.waiting.pop_front().ok_or(Error::WouldBlock)?;
        let connection = self.connections.get_mut(slot).ok_or(Error::BadSocket)?;
        connection.told = false;
        Ok((TcpId(slot), shown(connection.ends.remote(), both)))
    }

    pub(crate) fn close_listener(&mut self, ip: &mut Ip, now: Instant, id: ListenerId) {
        let Some(listener) = self.listeners.try_remove(id.0) else { return };
        if let Some(places) = self.by_port.get_mut(&listener.local.port()) {
            places.retain(|place| *place != id.0);
            if places.is_empty() {
                self.by_port.remove(&listener.local.port());
            }
        }
        let openings: Vec<usize> = self
            .openings
            .iter()
            .filter(|(_, opening)| opening.listener == id.0)
            .map(|(slot, _)| slot)
            .collect();
        for slot in openings {
            self.remove_opening(slot);
        }
        for slot in listener.waiting {
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.options.reset_on_close = true;
            }
            self.close(ip, now, TcpId(slot));
        }
    }

    pub(crate) fn connect(
        &mut self,
        ip: &mut Ip,
        now: Instant,
        remote: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Result<TcpId, Error> {
        let wanted = local.map(plain);
        let remote = ip.settle(plain(remote), wanted.and_then(zone))?;
        if remote.port() == 0 || remote.ip().is_multicast() || ip.is_broadcast(remote.ip()) {
            return Err(Error::InvalidInput);
        }
        let wanted = wanted.map(|local| ip.settle(local, zone(remote))).transpose()?;
        if wanted.is_some_and(|local| !ip.may_bind(local)) {
            return Err(Error::AddressNotAvailable);
        }
        let source = wanted.map(|local| local.ip()).filter(|source| !source.is_unspecified());
        let link = zone(remote).or_else(|| wanted.and_then(zone));
        let path = ip.path(now, source, link, remote.ip())?;
        let ends = |port| Ends::new(on_link(path.source, port, path.link()), remote);
        let port = match wanted.map_or(0, |local| local.port()) {
            0 => port::pick(ip.rng.random(), |port| !self.places.contains_key(&ends(port)))
                .ok_or(Error::AddressNotAvailable)?,
            port if !self.places.contains_key(&ends(port)) => port,
            _ => return Err(Error::AddressInUse),
        };
        let ends = ends(port);
        let iss = self.keys.isn(now, &ends);
        let timestamps = Timestamps::new(self.keys.epoch(), self.keys.clock_offset(&ends));
        let mut connection =
            Connection::new(now, ends, path, iss, timestamps, &self.shared.settings);
        connection.generation = ip.generation;
        let slot = self.connections.insert(Box::new(connection));
        self.places.insert(ends, Place::Connection(slot));
        self.touch(slot);
        Ok(TcpId(slot))
    }

    fn get_mut(&mut self, id: TcpId) -> Result<&mut Connection, Error> {
        self.with_shared(id).map(|(connection, _)| connection)
    }

    /// A connection of the program, and what it shares with others.
    fn with_shared(&mut self, id: TcpId) -> Result<(&mut Connection, &mut Shared), Error> {
        let connection =
            self.connections.get_mut(id.0).filter(|connection| connection.orphan.is_none());
        Ok((connection.ok_or(Error::BadSocket)?, &mut self.shared))
    }

    /// Takes bytes of the program: at least one, or an error.
    pub(crate) fn send(&mut self, id: TcpId, bytes: &[u8]) -> Result<usize, Error> {
        let (connection, shared) = self.with_shared(id)?;
        // What ICMP said about an open connection ends no call (RFC 1122 section 4.2.3.9).
        if let Some(error) = connection.error.take() {
            return Err(error);
        }
        match connection.state {
            State::SynSent | State::SynReceived => return Err(Error::WouldBlock),
            State::Established | State::CloseWait if !connection.sender.closing => {}
            _ => return Err(Error::BrokenPipe),
        }
        let count = connection.sender.room().min(bytes.len());
        if count == 0 && !bytes.is_empty() {
            connection.wants_room = true;
            return Err(Error::WouldBlock);
        }
        connection.sender.buffer.push(bytes.get(..count).unwrap_or_default(), &mut shared.spare);
        self.touch(id.0);
        Ok(count)
    }

    /// Hands bytes to the program. `Ok(0)`: the other end has finished.
    pub(crate) fn recv(
        &mut self,
        now: Instant,
        id: TcpId,
        into: &mut [u8],
        peek: bool,
    ) -> Result<usize, Error> {
        let (connection, shared) = self.with_shared(id)?;
        if connection.receiver.unread() > 0 {
            let rtt = connection.sender.rtt.smoothed();
            let count = connection.receiver.read(now, into, peek, rtt, shared);
            if connection.receiver.ack_due {
                self.touch(id.0);
            }
            return Ok(count);
        }
        if let Some(error) = connection.error.take() {
            return Err(error);
        }
        let over = connection.receiver.finished || connection.receiver.shut;
        match connection.state {
            State::SynSent | State::SynReceived => Err(Error::WouldBlock),
            _ if over => Ok(0),
            State::Closed => Ok(0),
            _ => Err(Error::WouldBlock),
        }
    }

    /// The program reads no more, writes no more, or both.
    pub(crate) fn shutdown(&mut self, id: TcpId, read: bool, write: bool) -> Result<(), Error> {
        let connection = self.get_mut(id)?;
        if matches!(connection.state, State::SynSent | State::Closed) {
            return Err(Error::NotConnected);
        }
        if read {
            connection.receiver.shut();
        }
        if write {
            connection.shut_write();
        }
        self.touch(id.0);
        Ok(())
    }

    /// The program is done with a connection. What it has written still goes out.
    pub(crate) fn close(&mut self, ip: &mut Ip, now: Instant, id: TcpId) {
        let crowded = self.orphans - self.fin_waits.len() >= MAX_ORPHANS;
        let Ok((connection, shared)) = self.with_shared(id) else { return };
        connection.options.reset_on_close |= crowded;
        if let Some(reset) = connection.close(now, &shared.settings) {
            let (path, frame) = (connection.path, connection.reset_frame(now, reset));
            // What cannot be sent was counted; the peer finds out when it sends next.
            let _ = ip.send(now, &path, frame);
        }
        let over = connection.state == State::Closed;
        self.orphans += 1;
        if over {
            self.finish(id.0);
        } else {
            self.touch(id.0);
            self.note_fin_wait(id.0);
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    pub(crate) fn set_options(&mut self, id: TcpId, options: Options) -> Result<(), Error> {
        let (connection, shared) = self.with_shared(id)?;
        connection.options = options;
        connection.sender.set_limit(options.send_buffer, &shared.settings);
        connection.receiver.set_limit(options.receive_buffer, &shared.settings);
        self.touch(id.0);
        Ok(())
    }

    pub(crate) fn set_quick_ack(&mut self, id: TcpId, quick: bool) -> Result<(), Error> {
        self.get_mut(id)?.receiver.set_quick(quick);
        self.touch(id.0);
        Ok(())
    }

    pub(crate) fn quick_ack(&self, id: TcpId) -> Result<bool, Error> {
        let connection = self.connections.get(id.0).ok_or(Error::BadSocket)?;
        Ok(connection.receiver.is_quick())
    }

    pub(crate) fn options(&self, id: TcpId) -> Result<Options, Error> {
        self.connections.get(id.0).map(|connection| connection.options).ok_or(Error::BadSocket)
    }

    pub(crate) fn take_error(&mut self, id: TcpId) -> Result<Option<Error>, Error> {
        self.get_mut(id).map(Connection::take_error)
    }

    pub(crate) fn is_readable(&self, id: TcpId) -> bool {
        self.connections.get(id.0).is_some_and(|connection| connection.is_readable())
    }

    pub(crate) fn is_writable(&mut self, id: TcpId) -> bool {
        self.connections.get_mut(id.0).is_none_or(|connection| connection.is_writable())
    }

    pub(crate) fn is_acceptable(&self, id: ListenerId) -> bool {
        self.listeners.get(id.0).is_none_or(|listener| !listener.waiting.is_empty())
    }

    pub(crate) fn info(&self, id: TcpId) -> Result<Info, Error> {
        let connection = self.connections.get(id.0).ok_or(Error::BadSocket)?;
        let sender = &connection.sender;
        Ok(Info {
            state: connection.state,
            local: connection.ends.local(),
            remote: connection.ends.remote(),
            rtt: sender.rtt.smoothed(),
            rto: sender.rtt.timeout(),
            congestion_window: sender.congestion.window,
            slow_start_threshold: sender.congestion.threshold,
            segment_len: sender.mss,
            unread: connection.receiver.unread(),
            unacknowledged: sender.buffer.len(),
        })
    }

    /// Connections, those that are being opened, and those that are over and remembered.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.connections.len(), self.openings.len(), self.time_wait.len())
    }

    pub(crate) fn taken(&mut self, id: TcpId) {
        if let Some(connection) = self.connections.get_mut(id.0) {
            connection.told = false;
        }
    }

    pub(crate) fn listener_taken(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(id.0) {
            listener.told = false;
        }
    }
}

/// The unspecified IPv6 address stands for IPv4, too.
fn covers_both(one: IpAddr, other: IpAddr) -> bool {
    let wild = |ip: IpAddr| ip.is_ipv6() && ip.is_unspecified();
    wild(one) || wild(other)
}

/// A peer as a listener of both families sees it (RFC 4291 section 2.5.5.2).
fn shown(remote: SocketAddr, both: bool) -> SocketAddr {
    match remote.ip() {
        IpAddr::V4(ip) if both => SocketAddr::new(ip.to_ipv6_mapped().into(), remote.port()),
        _ => remote,
    }
}
