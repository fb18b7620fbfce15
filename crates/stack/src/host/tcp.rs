//! TCP sockets of a host, as programs hold them: each ends with its last handle.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::socket::Socket;
use super::{Host, Patience};
use crate::{Error, Event, Info, ListenerId, Options, Stack, State, TcpId};

/// A TCP connection.
#[derive(Debug)]
pub(crate) struct TcpHandle {
    pub(crate) socket: Socket,
    /// How calls that may wait do so; nothing to who polls.
    pub(crate) patience: Patience,
    id: TcpId,
    /// It was accepted by a listener of both families, and IPv4 addresses are shown as mapped.
    mapped: bool,
    /// `SO_LINGER`.
    linger: Mutex<Option<Duration>>,
}

impl TcpHandle {
    /// Begins to open a connection.
    pub(crate) fn open(
        host: &Host,
        remote: SocketAddr,
        local: Option<SocketAddr>,
        manner: Manner,
    ) -> io::Result<Self> {
        let id = host.call(|stack, now| {
            let id = stack.tcp_connect(now, remote, local)?;
            stack.tcp_set_options(id, manner.options)?;
            Ok(id)
        })?;
        Ok(Self::new(host, id, false, manner.linger))
    }

    fn new(host: &Host, id: TcpId, mapped: bool, linger: Option<Duration>) -> Self {
        let socket = Socket::new(host, Event::Tcp(id));
        Self { socket, patience: Patience::default(), id, mapped, linger: Mutex::new(linger) }
    }

    /// `Ok` once the connection is open.
    fn opened(&self, stack: &mut Stack) -> Result<(), Error> {
        match stack.tcp_info(self.id)?.state {
            State::SynSent | State::SynReceived => Err(Error::WouldBlock),
            _ => stack.tcp_take_error(self.id)?.map_or(Ok(()), Err),
        }
    }

    pub(crate) fn wait_open(&self, deadline: Option<Instant>) -> io::Result<()> {
        self.socket.wait(deadline, |stack, _| self.opened(stack))
    }

    pub(crate) fn poll_open(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll(context, |stack, _| self.opened(stack))
    }

    /// Sends from the first buffer on, as far as there is room.
    pub(crate) fn send_parts(
        &self,
        stack: &mut Stack,
        parts: &[IoSlice<'_>],
    ) -> Result<usize, Error> {
        let mut sent = 0;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            match stack.tcp_send(self.id, part) {
                Ok(count) => {
                    sent += count;
                    if count < part.len() {
                        break;
                    }
                }
                Err(Error::WouldBlock) if sent > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// Takes what is there into the first buffers.
    pub(crate) fn receive_parts(
        &self,
        stack: &mut Stack,
        now: Instant,
        parts: &mut [IoSliceMut<'_>],
    ) -> Result<usize, Error> {
        let mut received = 0;
        for part in parts.iter_mut().filter(|part| !part.is_empty()) {
            // An end, or what has gone wrong, is for the next call.
            if received > 0 && stack.tcp_info(self.id)?.unread == 0 {
                break;
            }
            received += stack.tcp_recv(now, self.id, part, false)?;
        }
        Ok(received)
    }

    pub(crate) const fn id(&self) -> TcpId {
        self.id
    }

    fn info(&self) -> io::Result<Info> {
        self.socket.call(|stack, _| stack.tcp_info(self.id))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.shown(self.info()?.local))
    }

    /// # Errors
    /// `NotConnected`: it is not open any more.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        let info = self.info()?;
        match info.state {
            State::Closed | State::SynSent => Err(Error::NotConnected.into()),
            _ => Ok(self.shown(info.remote)),
        }
    }

    fn shown(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(ip) if self.mapped => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), address.port())
            }
            _ => address,
        }
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let read = matches!(how, Shutdown::Read | Shutdown::Both);
        let write = matches!(how, Shutdown::Write | Shutdown::Both);
        let result = self.socket.call(|stack, _| stack.tcp_shutdown(self.id, read, write));
        // Who reads or writes at this moment finds out.
        self.socket.wake();
        result
    }

    pub(crate) fn options(&self) -> io::Result<Options> {
        self.socket.call(|stack, _| stack.tcp_options(self.id))
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Options)) -> io::Result<()> {
        self.socket.call(|stack, _| {
            let mut options = stack.tcp_options(self.id)?;
            change(&mut options);
            stack.tcp_set_options(self.id, options)
        })
    }

    pub(crate) fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        *self.linger.lock().unwrap_or_else(PoisonError::into_inner) = linger;
        self.change(|options| options.reset_on_close = resets(linger))
    }

    pub(crate) fn linger(&self) -> Option<Duration> {
        *self.linger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket
            .call(|stack, _| stack.tcp_take_error(self.id))
            .map(|error| error.map(Into::into))
    }

    /// Waits until the other end has everything, as `SO_LINGER` asks for.
    fn linger_on(&self, limit: Duration) {
        let gone = |stack: &mut Stack, _: Instant| match stack.tcp_info(self.id)?.state {
            State::FinWait1 | State::Closing | State::LastAck => Err(Error::WouldBlock),
            _ => Ok(()),
        };
        // What is not gone in time goes on without the program.
        let _ = self.socket.call(|stack, _| stack.tcp_shutdown(self.id, false, true));
        // A time that ends after all time does not end.
        let _ = self.socket.wait(Instant::now().checked_add(limit), gone);
    }
}

impl Drop for TcpHandle {
    fn drop(&mut self) {
        if let Some(limit) = self.linger().filter(|limit| !limit.is_zero()) {
            self.linger_on(limit);
        }
        let id = self.id;
        self.socket.close(|stack, now| stack.tcp_close(now, id));
    }
}

/// What a connection has from its first moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    pub(crate) options: Options,
    /// `SO_LINGER`.
    pub(crate) linger: Option<Duration>,
}

impl Manner {
    pub(crate) fn set_linger(&mut self, linger: Option<Duration>) {
        (self.linger, self.options.reset_on_close) = (linger, resets(linger));
    }
}

/// Closing with no time to linger resets.
fn resets(linger: Option<Duration>) -> bool {
    linger.is_some_and(|time| time.is_zero())
}

/// A listening TCP socket.
#[derive(Debug)]
pub(crate) struct ListenerHandle {
    socket: Socket,
    /// Whether accepting waits; nothing to who polls.
    pub(crate) patience: Patience,
    id: ListenerId,
    local: SocketAddr,
    /// For the connections that it accepts.
    manner: Mutex<Manner>,
}

impl ListenerHandle {
    pub(crate) fn bind(
        host: &Host,
        local: SocketAddr,
        backlog: usize,
        manner: Manner,
    ) -> io::Result<Self> {
        let (id, local) = host.call(|stack, _| {
            let id = stack.tcp_listen(local, backlog)?;
            Ok((id, stack.tcp_listener_address(id)?))
        })?;
        let socket = Socket::new(host, Event::Listener(id));
        Ok(Self { socket, patience: Patience::default(), id, local, manner: Mutex::new(manner) })
    }

    fn manner(&self) -> MutexGuard<'_, Manner> {
        self.manner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn hop_limit(&self) -> Option<u8> {
        self.manner().options.hop_limit
    }

    pub(crate) fn set_hop_limit(&self, hops: Option<u8>) {
        self.manner().options.hop_limit = hops;
    }

    fn take(&self, stack: &mut Stack) -> Result<(TcpId, SocketAddr), Error> {
        let accepted = stack.tcp_accept(self.id)?;
        stack.tcp_set_options(accepted.0, self.manner().options)?;
        Ok(accepted)
    }

    fn handle(&self, (id, remote): (TcpId, SocketAddr)) -> (TcpHandle, SocketAddr) {
        let mapped = remote.is_ipv6() && remote.ip().to_canonical().is_ipv4();
        (TcpHandle::new(self.socket.host(), id, mapped, self.manner().linger), remote)
    }

    /// Accepts a connection; if it is not to wait, at once or not at all.
    pub(crate) fn accept(&self) -> io::Result<(TcpHandle, SocketAddr)> {
        let accepted = if self.patience.waits() {
            self.socket.wait(None, |stack, _| self.take(stack))
        } else {
            self.socket.call(|stack, _| self.take(stack))
        };
        accepted.map(|accepted| self.handle(accepted))
    }

    pub(crate) fn poll_accept(
        &self,
        context: &Context<'_>,
    ) -> Poll<io::Result<(TcpHandle, SocketAddr)>> {
        let accepted = self.socket.poll(context, |stack, _| self.take(stack));
        accepted.map_ok(|accepted| self.handle(accepted))
    }
}

impl Drop for ListenerHandle {
    fn drop(&mut self) {
        let id = self.id;
        self.socket.close(|stack, now| stack.tcp_close_listener(now, id));
    }
}
