//! TCP sockets of a host, as programs hold them: each ends with its last handle.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::Host;
use super::socket::Socket;
use crate::{Error, Event, ListenerId, NicIndex, Options, Stack, State, TcpId};

/// A TCP connection.
#[derive(Debug)]
pub(crate) struct TcpHandle {
    pub(crate) socket: Socket,
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
    ) -> io::Result<Self> {
        let nic = nic_of_scope(remote);
        let id = host.call(|stack, now| stack.tcp_connect(now, remote, local, nic))?;
        Ok(Self::new(host, id, false))
    }

    fn new(host: &Host, id: TcpId, mapped: bool) -> Self {
        let socket = Socket::new(host, Event::Tcp(id));
        Self { socket, id, mapped, linger: Mutex::new(None) }
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

    pub(crate) const fn id(&self) -> TcpId {
        self.id
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        let info = self.socket.call(|stack, _| stack.tcp_info(self.id))?;
        Ok(self.shown(info.local))
    }

    /// # Errors
    /// `NotConnected`: it is not open any more.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        let info = self.socket.call(|stack, _| stack.tcp_info(self.id))?;
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
        self.change(|options| options.reset_on_close = linger.is_some_and(|time| time.is_zero()))
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
        let _ = self.socket.wait(Some(Instant::now() + limit), gone);
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

/// A listening TCP socket.
#[derive(Debug)]
pub(crate) struct ListenerHandle {
    socket: Socket,
    id: ListenerId,
    local: SocketAddr,
    /// For the connections that it accepts.
    hop_limit: Mutex<Option<u8>>,
}

impl ListenerHandle {
    pub(crate) fn bind(host: &Host, local: SocketAddr, backlog: usize) -> io::Result<Self> {
        let (id, local) = host.call(|stack, _| {
            let id = stack.tcp_listen(local, backlog)?;
            Ok((id, stack.tcp_listener_address(id)?))
        })?;
        let socket = Socket::new(host, Event::Listener(id));
        Ok(Self { socket, id, local, hop_limit: Mutex::new(None) })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn hop_limit(&self) -> Option<u8> {
        *self.hop_limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_hop_limit(&self, hops: Option<u8>) {
        *self.hop_limit.lock().unwrap_or_else(PoisonError::into_inner) = hops;
    }

    fn take(&self, stack: &mut Stack) -> Result<(TcpId, SocketAddr), Error> {
        let accepted = stack.tcp_accept(self.id)?;
        if let Some(hops) = self.hop_limit() {
            let options = Options { hop_limit: Some(hops), ..stack.tcp_options(accepted.0)? };
            stack.tcp_set_options(accepted.0, options)?;
        }
        Ok(accepted)
    }

    fn handle(&self, (id, remote): (TcpId, SocketAddr)) -> (TcpHandle, SocketAddr) {
        let mapped = remote.is_ipv6() && remote.ip().to_canonical().is_ipv4();
        (TcpHandle::new(self.socket.host(), id, mapped), remote)
    }

    /// Accepts a connection; if it is not to wait, at once or not at all.
    pub(crate) fn accept(&self, wait: bool) -> io::Result<(TcpHandle, SocketAddr)> {
        let accepted = if wait {
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

/// The interface that an address names by its scope, from 1, where it means something there alone.
fn nic_of_scope(address: SocketAddr) -> Option<NicIndex> {
    let SocketAddr::V6(address) = address else { return None };
    let local = Ipv6Addr::is_unicast_link_local(address.ip());
    let number = address.scope_id().checked_sub(1).filter(|_| local)?;
    u16::try_from(number).ok().map(NicIndex)
}
