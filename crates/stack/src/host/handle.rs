//! Sockets of a host, as programs hold them: each ends with its last handle.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use netyard_wire::build;

use super::state::State;
use super::{Awaited, Host};
use crate::{Error, Event, ListenerId, NicIndex, Options, Stack, State as TcpState, TcpId, UdpId};

/// A TCP connection.
#[derive(Debug)]
pub(crate) struct TcpHandle {
    host: Host,
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
        Ok(Self { host: host.clone(), id, mapped: false, linger: Mutex::new(None) })
    }

    fn awaited(&self) -> Awaited {
        Awaited::Socket(Event::Tcp(self.id))
    }

    /// `Ok` once the connection is open.
    fn opened(&self, stack: &mut Stack) -> Result<(), Error> {
        match stack.tcp_info(self.id)?.state {
            TcpState::SynSent | TcpState::SynReceived => Err(Error::WouldBlock),
            _ => stack.tcp_take_error(self.id)?.map_or(Ok(()), Err),
        }
    }

    pub(crate) fn wait_open(&self, deadline: Option<Instant>) -> io::Result<()> {
        self.wait(deadline, |stack, _| self.opened(stack))
    }

    pub(crate) fn poll_open(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        self.poll(context, |stack, _| self.opened(stack))
    }

    /// A call that waits; see [`Host::wait`].
    pub(crate) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut call: impl FnMut(&mut Stack, Instant) -> Result<T, Error>,
    ) -> io::Result<T> {
        self.host.wait(self.awaited(), deadline, |state, now| call(state.stack().0, now))
    }

    /// A call that leaves a waker; see [`Host::poll`].
    pub(crate) fn poll<T>(
        &self,
        context: &Context<'_>,
        call: impl FnOnce(&mut Stack, Instant) -> Result<T, Error>,
    ) -> Poll<io::Result<T>> {
        self.host.poll(context, self.awaited(), |state, now| call(state.stack().0, now))
    }

    /// A call that does neither.
    pub(crate) fn call<T>(
        &self,
        call: impl FnOnce(&mut Stack, Instant) -> Result<T, Error>,
    ) -> io::Result<T> {
        self.host.call(call)
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
        let info = self.call(|stack, _| stack.tcp_info(self.id))?;
        Ok(self.shown(info.local))
    }

    /// # Errors
    /// `NotConnected`: it is not open any more.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        let info = self.call(|stack, _| stack.tcp_info(self.id))?;
        match info.state {
            TcpState::Closed | TcpState::SynSent => Err(Error::NotConnected.into()),
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
        let result = self.call(|stack, _| stack.tcp_shutdown(self.id, read, write));
        // Who reads or writes at this moment finds out.
        self.host.wake(self.awaited());
        result
    }

    pub(crate) fn options(&self) -> io::Result<Options> {
        self.call(|stack, _| stack.tcp_options(self.id))
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Options)) -> io::Result<()> {
        self.call(|stack, _| {
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
        self.call(|stack, _| stack.tcp_take_error(self.id)).map(|error| error.map(Into::into))
    }

    /// Waits until the other end has everything, as `SO_LINGER` asks for.
    fn linger_on(&self, limit: Duration) {
        let gone = |stack: &mut Stack, _: Instant| match stack.tcp_info(self.id)?.state {
            TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck => Err(Error::WouldBlock),
            _ => Ok(()),
        };
        // What is not gone in time goes on without the program.
        let _ = self.call(|stack, _| stack.tcp_shutdown(self.id, false, true));
        let _ = self.wait(Some(Instant::now() + limit), gone);
    }
}

impl Drop for TcpHandle {
    fn drop(&mut self) {
        if let Some(limit) = self.linger().filter(|limit| !limit.is_zero()) {
            self.linger_on(limit);
        }
        let id = self.id;
        self.host.close(self.awaited(), |state, now| state.stack().0.tcp_close(now, id));
    }
}

/// A listening TCP socket.
#[derive(Debug)]
pub(crate) struct ListenerHandle {
    host: Host,
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
        Ok(Self { host: host.clone(), id, local, hop_limit: Mutex::new(None) })
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

    fn awaited(&self) -> Awaited {
        Awaited::Socket(Event::Listener(self.id))
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
        let host = self.host.clone();
        (TcpHandle { host, id, mapped, linger: Mutex::new(None) }, remote)
    }

    /// Accepts a connection; if it is not to wait, at once or not at all.
    pub(crate) fn accept(&self, wait: bool) -> io::Result<(TcpHandle, SocketAddr)> {
        let accepted = if wait {
            self.host.wait(self.awaited(), None, |state, _| self.take(state.stack().0))
        } else {
            self.host.call(|stack, _| self.take(stack))
        };
        accepted.map(|accepted| self.handle(accepted))
    }

    pub(crate) fn poll_accept(
        &self,
        context: &Context<'_>,
    ) -> Poll<io::Result<(TcpHandle, SocketAddr)>> {
        self.host
            .poll(context, self.awaited(), |state, _| self.take(state.stack().0))
            .map_ok(|accepted| self.handle(accepted))
    }
}

impl Drop for ListenerHandle {
    fn drop(&mut self) {
        let id = self.id;
        let end = |state: &mut State, now| state.stack().0.tcp_close_listener(now, id);
        self.host.close(self.awaited(), end);
    }
}

/// A UDP socket.
#[derive(Debug)]
pub(crate) struct UdpHandle {
    host: Host,
    id: UdpId,
    settings: Mutex<UdpSettings>,
}

/// What a UDP socket was told, to be told back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UdpSettings {
    pub(crate) broadcast: bool,
    pub(crate) multicast_loop: bool,
    pub(crate) multicast_hops: u8,
    pub(crate) hops: Option<u8>,
}

impl UdpHandle {
    pub(crate) fn bind(host: &Host, local: SocketAddr) -> io::Result<Self> {
        let id = host.call(|stack, _| stack.udp_bind(local))?;
        let settings =
            UdpSettings { broadcast: false, multicast_loop: true, multicast_hops: 1, hops: None };
        Ok(Self { host: host.clone(), id, settings: Mutex::new(settings) })
    }

    pub(crate) const fn id(&self) -> UdpId {
        self.id
    }

    fn awaited(&self) -> Awaited {
        Awaited::Socket(Event::Udp(self.id))
    }

    pub(crate) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut call: impl FnMut(&mut Stack, Instant) -> Result<T, Error>,
    ) -> io::Result<T> {
        self.host.wait(self.awaited(), deadline, |state, now| call(state.stack().0, now))
    }

    pub(crate) fn poll<T>(
        &self,
        context: &Context<'_>,
        call: impl FnOnce(&mut Stack, Instant) -> Result<T, Error>,
    ) -> Poll<io::Result<T>> {
        self.host.poll(context, self.awaited(), |state, now| call(state.stack().0, now))
    }

    pub(crate) fn call<T>(
        &self,
        call: impl FnOnce(&mut Stack, Instant) -> Result<T, Error>,
    ) -> io::Result<T> {
        self.host.call(call)
    }

    pub(crate) fn connect(&self, remote: SocketAddr) -> io::Result<()> {
        self.call(|stack, now| stack.udp_connect(now, self.id, remote))
    }

    pub(crate) fn send(&self, to: Option<SocketAddr>, payload: &[u8]) -> io::Result<usize> {
        self.call(|stack, now| stack.udp_send(now, self.id, to, payload)).map(|()| payload.len())
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.call(|stack, _| stack.udp_addresses(self.id)).map(|(local, _)| local)
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.call(|stack, _| stack.udp_addresses(self.id)?.1.ok_or(Error::NotConnected))
    }

    pub(crate) fn settings(&self) -> UdpSettings {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut UdpSettings)) -> io::Result<()> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut settings);
        let UdpSettings { broadcast, multicast_loop, multicast_hops, hops } = *settings;
        self.call(|stack, _| {
            stack.udp_set_broadcast(self.id, broadcast)?;
            stack.udp_set_multicast(self.id, multicast_hops, multicast_loop)?;
            stack.udp_set_hop_limit(self.id, hops)
        })
    }

    pub(crate) fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.call(|stack, _| stack.udp_take_error(self.id)).map(|error| error.map(Into::into))
    }

    /// Joins or leaves a group on the interface that `pick` names.
    pub(crate) fn member(&self, joins: bool, group: IpAddr, place: Place) -> io::Result<()> {
        self.call(|stack, _| {
            let nic = place.find(stack)?;
            match joins {
                true => stack.udp_join(self.id, nic, group),
                false => stack.udp_leave(self.id, nic, group),
            }
        })
    }
}

impl Drop for UdpHandle {
    fn drop(&mut self) {
        let id = self.id;
        self.host.close(self.awaited(), |state, _| state.stack().0.udp_close(id));
    }
}

/// How a program names an interface.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// By one of its addresses; the unspecified one is the first interface.
    Address(IpAddr),
    /// By its number, from 1; 0 is the first interface.
    Number(u32),
}

impl Place {
    /// `ENODEV` of the kernel, for an interface that is not there, is none of the stack's errors.
    fn find(self, stack: &Stack) -> Result<NicIndex, Error> {
        let has = |nic: &NicIndex, ip| stack.addresses(*nic).iter().any(|net| net.addr() == ip);
        let mut nics = stack.nics();
        let found = match self {
            Self::Address(ip) if ip.is_unspecified() => nics.next(),
            Self::Address(ip) => nics.find(|nic| has(nic, ip)),
            Self::Number(number) => {
                nics.nth(usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX))
            }
        };
        found.ok_or(Error::AddressNotAvailable)
    }
}

/// Whether calls on a socket wait, and for how long.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    nonblocking: AtomicBool,
    read: Mutex<Option<Duration>>,
    write: Mutex<Option<Duration>>,
}

impl Patience {
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    pub(crate) fn waits(&self) -> bool {
        !self.nonblocking.load(Ordering::Relaxed)
    }

    pub(crate) fn read(&self) -> Option<Duration> {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> Option<Duration> {
        *self.write.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// `InvalidInput`: no time at all.
    pub(crate) fn set_read(&self, limit: Option<Duration>) -> io::Result<()> {
        set(&self.read, limit)
    }

    /// # Errors
    /// `InvalidInput`: no time at all.
    pub(crate) fn set_write(&self, limit: Option<Duration>) -> io::Result<()> {
        set(&self.write, limit)
    }

    /// When a call that begins now gives up; `limit` is that of its direction.
    pub(crate) fn deadline(&self, limit: Option<Duration>) -> Option<Instant> {
        let now = Instant::now();
        if self.waits() { limit.and_then(|limit| now.checked_add(limit)) } else { Some(now) }
    }
}

fn set(place: &Mutex<Option<Duration>>, limit: Option<Duration>) -> io::Result<()> {
    if limit.is_some_and(|limit| limit.is_zero()) {
        let message = "a timeout of no time; `None` waits for ever, `set_nonblocking` never";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    *place.lock().unwrap_or_else(PoisonError::into_inner) = limit;
    Ok(())
}

/// The interface that an address names by its scope, from 1, where it means something there alone.
fn nic_of_scope(address: SocketAddr) -> Option<NicIndex> {
    let SocketAddr::V6(address) = address else { return None };
    let local = Ipv6Addr::is_unicast_link_local(address.ip());
    let number = address.scope_id().checked_sub(1).filter(|_| local)?;
    u16::try_from(number).ok().map(NicIndex)
}

/// A hop limit, as programs write one.
///
/// # Errors
/// `InvalidInput`: not 1 to 255.
pub(crate) fn hop_limit(ttl: u32) -> io::Result<u8> {
    u8::try_from(ttl).ok().filter(|hops| *hops > 0).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("a TTL is 1 to 255, found {ttl}"))
    })
}

/// A hop limit, as programs read it; that of the interfaces where none was set.
pub(crate) fn ttl(hops: Option<u8>) -> u32 {
    hops.unwrap_or(build::HOP_LIMIT).into()
}
