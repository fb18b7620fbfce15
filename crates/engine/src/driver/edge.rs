//! The edge with system calls: host sockets, and whatever takes frames, behind [`Edge`].

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use netyard_sys::datagram::Datagram;
use netyard_sys::poll::{Event, Poll};
use netyard_sys::segments::Batch;
use netyard_sys::supply::Came;
use netyard_wire::{Frame, FrameBuf};

use super::plugs::{Counts, Plugs, Received};
use super::pour::Pours;
use super::sockets::{Socket, Sockets};
use crate::capture::Captures;
use crate::control::PlugRequest;
use crate::edge::{DatagramError, Echoed, Edge, PlugId, Poured, Readiness, SocketId};

/// Where frames go: plugs in user mode, the whole segment in bridge mode.
pub(crate) trait Ports: fmt::Debug {
    /// Sends a frame; false if it was dropped, and counted.
    fn transmit(&mut self, now: Instant, plug: PlugId, frame: Frame<'_>) -> bool;

    /// A socket inside the namespace of who is behind a plug, as [`Edge::connect_inside`] says.
    fn take_inside(&mut self, plug: PlugId, ipv4: bool) -> io::Result<OwnedFd>;

    /// Whether somebody looks at what passes a plug.
    fn is_captured(&self, plug: PlugId) -> bool;
}

/// What the network acts through.
#[derive(Debug)]
pub(crate) struct HostEdge<P> {
    poll: Poll,
    sockets: Sockets,
    pours: Pours,
    pub(crate) plugs: P,
    now: Instant,
}

impl<P> HostEdge<P> {
    pub(crate) fn new(plugs: P, now: Instant) -> io::Result<Self> {
        let (poll, sockets, pours) = (Poll::new()?, Sockets::new(), Pours::default());
        Ok(Self { poll, sockets, pours, plugs, now })
    }

    pub(crate) fn poll(&self) -> &Poll {
        &self.poll
    }

    /// The time, as it was at the last [`HostEdge::tick`].
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Looks at the clock.
    pub(crate) fn tick(&mut self) -> Instant {
        self.now = Instant::now();
        self.now
    }

    pub(crate) fn readiness(&self, id: SocketId, event: Event) -> Option<Readiness> {
        self.sockets.readiness(id, event)
    }

    /// Takes in a socket that was made elsewhere.
    pub(crate) fn adopt(&mut self, socket: Socket) -> io::Result<SocketId> {
        self.sockets.insert(&self.poll, socket)
    }

    /// Gives a stream away: it is not watched any more, and waits in reads and writes.
    pub(crate) fn release(&mut self, socket: SocketId) -> io::Result<OwnedFd> {
        self.sockets.release(&self.poll, socket)
    }
}

impl HostEdge<Plugs> {
    pub(crate) fn add_plug(
        &mut self,
        id: PlugId,
        member: &str,
        fd: OwnedFd,
        request: &PlugRequest,
    ) -> io::Result<()> {
        self.plugs.add(&self.poll, id, member, fd, request, rand::random())
    }

    pub(crate) fn set_supply(&mut self, id: PlugId, supply: OwnedFd) -> io::Result<()> {
        self.pours.prepare()?;
        self.plugs.set_supply(&self.poll, id, supply)
    }

    /// Takes in what a supply has brought.
    pub(crate) fn receive_supply(&mut self, id: PlugId) -> Vec<Came> {
        self.plugs.receive_supply(&self.poll, id)
    }

    pub(crate) fn remove_plug(&mut self, id: PlugId) {
        self.plugs.remove(&self.poll, id);
    }

    pub(crate) fn remove_member(&mut self, member: &str) {
        self.plugs.remove_member(&self.poll, member);
    }

    pub(crate) fn take_dead(&mut self) -> Vec<(PlugId, String)> {
        self.plugs.take_dead()
    }

    pub(crate) fn captures(&mut self) -> &mut Captures {
        &mut self.plugs.captures
    }

    pub(crate) fn counts(&self, id: PlugId) -> Option<Counts> {
        self.plugs.counts(id)
    }

    pub(crate) fn plug_count(&self) -> usize {
        self.plugs.len()
    }

    pub(crate) fn any_readable(&self) -> bool {
        self.plugs.any_readable()
    }

    pub(crate) fn is_readable(&self, place: usize) -> bool {
        self.plugs.is_readable(place)
    }

    pub(crate) fn handle_plug(&mut self, id: PlugId, event: Event) {
        let readable = event.readable || event.read_closed || event.hangup || event.error;
        self.plugs.handle_event(id, readable, event.writable);
    }

    pub(crate) fn receive<'a>(
        &mut self,
        place: usize,
        buffer: &'a mut [u8],
    ) -> (PlugId, Received<'a>) {
        self.plugs.receive(&self.poll, self.now, place, buffer)
    }

    pub(crate) fn next_arrival(&mut self, now: Instant) -> Option<(PlugId, FrameBuf)> {
        self.plugs.next_arrival(now)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.plugs.poll_timeout()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.plugs.handle_timeout(now);
    }

    pub(super) fn send_batches(&mut self) {
        self.plugs.send_batches(&self.poll, self.now);
    }
}

impl<P: Ports> Edge for HostEdge<P> {
    fn transmit(&mut self, plug: PlugId, frame: Frame<'_>) -> bool {
        self.plugs.transmit(self.now, plug, frame)
    }

    fn tcp_connect(&mut self, to: SocketAddr) -> io::Result<SocketId> {
        self.sockets.tcp_connect(&self.poll, to)
    }

    fn connect_inside(
        &mut self,
        plug: PlugId,
        to: SocketAddr,
    ) -> io::Result<(SocketId, SocketAddr)> {
        let socket = self.plugs.take_inside(plug, to.is_ipv4())?;
        self.sockets.connect_by(&self.poll, socket, to)
    }

    fn is_captured(&self, plug: PlugId) -> bool {
        self.plugs.is_captured(plug)
    }

    fn pour(&mut self, from: SocketId, to: SocketId) -> Poured {
        self.pours.pour(&self.sockets, from, to)
    }

    fn take_error(&mut self, socket: SocketId) -> io::Result<()> {
        self.sockets.take_error(socket)
    }

    fn tcp_accept(&mut self, listener: SocketId) -> io::Result<(SocketId, SocketAddr)> {
        self.sockets.tcp_accept(&self.poll, listener)
    }

    fn tcp_local(&mut self, socket: SocketId) -> io::Result<SocketAddr> {
        self.sockets.tcp_local(socket)
    }

    fn tcp_bind(&mut self, at: SocketAddr) -> io::Result<SocketId> {
        self.sockets.tcp_bind(&self.poll, at)
    }

    fn adopt_listener(&mut self, listener: OwnedFd) -> io::Result<SocketId> {
        // Its clients are spliced, whether somebody else's are or not.
        self.pours.prepare()?;
        self.sockets.adopt_listener(&self.poll, listener)
    }

    fn set_listening(&mut self, listener: SocketId, listening: bool) -> io::Result<()> {
        self.sockets.set_listening(&self.poll, listener, listening)
    }

    fn adopt_stream(&mut self, stream: OwnedFd) -> io::Result<SocketId> {
        self.sockets.adopt_stream(&self.poll, stream)
    }

    fn stream_pair(&mut self) -> io::Result<(SocketId, SocketId)> {
        self.sockets.stream_pair(&self.poll)
    }

    fn peek(&mut self, socket: SocketId, offset: usize, into: &mut [u8]) -> io::Result<usize> {
        self.sockets.peek(socket, offset, into)
    }

    fn discard(&mut self, socket: SocketId, count: usize) -> io::Result<()> {
        self.sockets.discard(socket, count)
    }

    fn send(&mut self, socket: SocketId, bytes: &[u8]) -> io::Result<usize> {
        self.sockets.send(socket, bytes)
    }

    fn send_room(&mut self, socket: SocketId) -> usize {
        self.sockets.send_room(socket)
    }

    fn shutdown_write(&mut self, socket: SocketId) -> io::Result<()> {
        self.sockets.shutdown_write(socket)
    }

    fn reset(&mut self, socket: SocketId) {
        self.pours.forget(socket);
        self.sockets.close(socket, true);
    }

    fn close(&mut self, socket: SocketId) {
        self.pours.forget(socket);
        self.sockets.close(socket, false);
    }

    fn udp_bind(&mut self, at: SocketAddr) -> io::Result<SocketId> {
        self.sockets.udp_bind(&self.poll, at)
    }

    fn udp_member(&mut self, card: u32, group: SocketAddr) -> io::Result<SocketId> {
        self.sockets.insert(&self.poll, Socket::Datagram(Datagram::member(card, group)?))
    }

    fn udp_send(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        hop_limit: Option<u8>,
        bytes: &[u8],
    ) -> io::Result<usize> {
        self.sockets.udp_send(socket, to, hop_limit, bytes)
    }

    fn udp_recv(&mut self, socket: SocketId, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.sockets.udp_recv(socket, into)
    }

    fn udp_send_many(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        hop_limit: Option<u8>,
        bytes: &[u8],
        size: u16,
    ) -> io::Result<()> {
        self.sockets.datagram(socket)?.send_many(to, hop_limit, bytes, size).map(drop)
    }

    fn udp_take_many(&mut self, socket: SocketId) {
        // Where the kernel has them one by one, so do we.
        _ = self.sockets.datagram(socket).and_then(|datagram| datagram.take_many());
    }

    fn udp_recv_many(
        &mut self,
        socket: SocketId,
        into: &mut [u8],
        came: &mut Vec<Batch>,
    ) -> io::Result<bool> {
        self.sockets.datagram(socket)?.recv_many(into, came)
    }

    fn ping_open(&mut self, ipv4: bool) -> io::Result<SocketId> {
        self.sockets.ping_open(&self.poll, ipv4)
    }

    fn ping_recv(&mut self, socket: SocketId, into: &mut [u8]) -> io::Result<Echoed> {
        self.sockets.ping_recv(socket, into)
    }

    fn set_whole(&mut self, socket: SocketId, whole: bool) -> io::Result<()> {
        self.sockets.set_whole(socket, whole)
    }

    fn udp_error(&mut self, socket: SocketId) -> Option<DatagramError> {
        self.sockets.udp_error(socket)
    }
}
