//! The edge with system calls: host sockets and plugs behind [`Edge`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use netyard_sys::poll::{Event, Poll};
use netyard_wire::{Frame, FrameBuf};

use super::plugs::{Counts, Plugs, Received};
use super::sockets::Sockets;
use crate::control::PlugRequest;
use crate::edge::{DatagramError, Edge, PlugId, Readiness, SocketId};

/// What the network acts through.
#[derive(Debug)]
pub(super) struct HostEdge {
    poll: Poll,
    sockets: Sockets,
    plugs: Plugs,
    now: Instant,
}

impl HostEdge {
    pub(super) fn new(now: Instant) -> io::Result<Self> {
        Ok(Self { poll: Poll::new()?, sockets: Sockets::new(), plugs: Plugs::new(), now })
    }

    pub(super) fn poll(&self) -> &Poll {
        &self.poll
    }

    /// The time, as it was at the last [`HostEdge::tick`].
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Looks at the clock.
    pub(super) fn tick(&mut self) -> Instant {
        self.now = Instant::now();
        self.now
    }

    pub(super) fn readiness(&self, id: SocketId, event: Event) -> Option<Readiness> {
        self.sockets.readiness(id, event)
    }

    pub(super) fn add_plug(
        &mut self,
        id: PlugId,
        member: &str,
        fd: OwnedFd,
        request: &PlugRequest,
    ) -> io::Result<()> {
        self.plugs.add(&self.poll, id, member, fd, request, rand::random())
    }

    pub(super) fn remove_plug(&mut self, id: PlugId) {
        self.plugs.remove(&self.poll, id);
    }

    pub(super) fn remove_member(&mut self, member: &str) {
        self.plugs.remove_member(&self.poll, member);
    }

    pub(super) fn take_dead(&mut self) -> Vec<(PlugId, String)> {
        self.plugs.take_dead()
    }

    pub(super) fn counts(&self, id: PlugId) -> Option<Counts> {
        self.plugs.counts(id)
    }

    pub(super) fn plug_count(&self) -> usize {
        self.plugs.len()
    }

    pub(super) fn any_readable(&self) -> bool {
        self.plugs.any_readable()
    }

    pub(super) fn is_readable(&self, place: usize) -> bool {
        self.plugs.is_readable(place)
    }

    pub(super) fn handle_plug(&mut self, id: PlugId, event: Event) {
        let readable = event.readable || event.read_closed || event.hangup || event.error;
        self.plugs.handle_event(id, readable, event.writable);
    }

    pub(super) fn receive<'a>(
        &mut self,
        place: usize,
        buffer: &'a mut [u8],
    ) -> (PlugId, Received<'a>) {
        self.plugs.receive(self.now, place, buffer)
    }

    pub(super) fn next_arrival(&mut self, now: Instant) -> Option<(PlugId, FrameBuf)> {
        self.plugs.next_arrival(now)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.plugs.poll_timeout()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.plugs.handle_timeout(now);
    }
}

impl Edge for HostEdge {
    fn transmit(&mut self, plug: PlugId, frame: Frame<'_>) -> bool {
        self.plugs.transmit(self.now, plug, frame)
    }

    fn tcp_connect(&mut self, to: SocketAddr) -> io::Result<SocketId> {
        self.sockets.tcp_connect(&self.poll, to)
    }

    fn take_error(&mut self, socket: SocketId) -> io::Result<()> {
        self.sockets.take_error(socket)
    }

    fn tcp_accept(&mut self, listener: SocketId) -> io::Result<(SocketId, SocketAddr)> {
        self.sockets.tcp_accept(&self.poll, listener)
    }

    fn tcp_bind(&mut self, at: SocketAddr) -> io::Result<SocketId> {
        self.sockets.tcp_bind(&self.poll, at)
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
        self.sockets.close(socket, true);
    }

    fn close(&mut self, socket: SocketId) {
        self.sockets.close(socket, false);
    }

    fn udp_bind(&mut self, at: SocketAddr) -> io::Result<SocketId> {
        self.sockets.udp_bind(&self.poll, at)
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

    fn udp_error(&mut self, socket: SocketId) -> Option<DatagramError> {
        self.sockets.udp_error(socket)
    }
}
