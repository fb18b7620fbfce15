//! System calls on sockets of the stack, as Linux has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use libc::{c_int, c_short};
use netyard_stack::{Error, ListenerId, Options, State as Tcp, TcpId, UdpId};

use crate::errno::{AGAIN, Errno};
use crate::world::{State, World};

/// The most that one call takes in.
const MAX_READ: usize = 1 << 20;
/// What is known of calls; others mean something that this stack has not.
const KNOWN_FLAGS: c_int = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// A socket of a script.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) kind: Kind,
    /// Its addresses are those of IPv6, IPv4 ones mapped.
    v6: bool,
    nonblocking: bool,
    /// What was set before there was a connection; accepted ones have it from their listener.
    pub(crate) options: Options,
    /// What has gone wrong and was seen by `poll`, and is still to be told.
    pending: Option<Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP, neither listening nor connected; the address that it is bound to.
    Fresh(Option<SocketAddr>),
    Listener(ListenerId),
    /// `connecting`: nobody was told yet how `connect` ended.
    Stream {
        id: TcpId,
        connecting: bool,
    },
    Udp(UdpId),
}

impl Socket {
    pub(crate) fn is_stream(&self) -> bool {
        !matches!(self.kind, Kind::Udp(_))
    }
}

impl World {
    /// A socket, known by `fd`.
    pub(crate) fn socket(&self, fd: c_int, domain: c_int, kind: c_int) -> Result<(), Errno> {
        let v6 = match domain {
            libc::AF_INET => false,
            libc::AF_INET6 => true,
            _ => return Err(Errno(libc::EAFNOSUPPORT)),
        };
        self.call(|state| {
            let any = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            let nonblocking = kind & libc::SOCK_NONBLOCK != 0;
            let kind = match kind & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) {
                libc::SOCK_STREAM => Kind::Fresh(None),
                libc::SOCK_DGRAM => Kind::Udp(state.stack.udp_bind(SocketAddr::new(any, 0))?),
                _ => return Err(Errno(libc::ESOCKTNOSUPPORT)),
            };
            state.add(
                fd,
                Socket { kind, v6, nonblocking, options: Options::default(), pending: None },
            );
            Ok(())
        })
    }

    pub(crate) fn bind(&self, fd: c_int, address: SocketAddr) -> Result<(), Errno> {
        self.call(|state| {
            state.own(address.ip());
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            match state.get(fd)?.kind {
                Kind::Fresh(None) => {
                    // Asks whether the address can be had; who listens on it is found out later.
                    let free = state.stack.tcp_listen(address, 1)?;
                    let now = state.clock.now();
                    let bound = state.stack.tcp_listener_address(free)?;
                    state.stack.tcp_close_listener(now, free);
                    state.get_mut(fd)?.kind = Kind::Fresh(Some(bound));
                }
                Kind::Udp(id) => {
                    let bound = state.stack.udp_bind(address)?;
                    state.stack.udp_close(id);
                    state.get_mut(fd)?.kind = Kind::Udp(bound);
                }
                _ => return Err(Errno(libc::EINVAL)),
            }
            Ok(())
        })
    }

    pub(crate) fn listen(&self, fd: c_int, backlog: c_int) -> Result<(), Errno> {
        self.call(|state| {
            let socket = state.get(fd)?;
            match socket.kind {
                Kind::Fresh(bound) => {
                    let any: IpAddr = if socket.v6 {
                        Ipv6Addr::UNSPECIFIED.into()
                    } else {
                        Ipv4Addr::UNSPECIFIED.into()
                    };
                    let local = bound.unwrap_or(SocketAddr::new(any, 0));
                    let backlog = usize::try_from(backlog).unwrap_or(1);
                    let id = state.stack.tcp_listen(local, backlog)?;
                    state.get_mut(fd)?.kind = Kind::Listener(id);
                    Ok(())
                }
                Kind::Listener(_) => Ok(()),
                Kind::Stream { .. } => Err(Errno(libc::EINVAL)),
                Kind::Udp(_) => Err(Errno(libc::EOPNOTSUPP)),
            }
        })
    }

    /// Takes a connection, to be known by `fd`; returns who is at its other end.
    pub(crate) fn accept(&self, listener: c_int, fd: c_int) -> Result<SocketAddr, Errno> {
        let waits = self.waits(listener, 0)?;
        self.wait(waits, None, |state| {
            let socket = state.get(listener)?;
            let (options, v6) = (socket.options, socket.v6);
            let (id, remote) = match socket.kind {
                Kind::Listener(id) => state.stack.tcp_accept(id)?,
                Kind::Udp(_) => return Err(Errno(libc::EOPNOTSUPP)),
                _ => return Err(Errno(libc::EINVAL)),
            };
            state.stack.tcp_set_options(id, options)?;
            let kind = Kind::Stream { id, connecting: false };
            state.add(fd, Socket { kind, v6, nonblocking: false, options, pending: None });
            Ok(state.get(fd)?.shown(remote))
        })
    }

    pub(crate) fn connect(&self, fd: c_int, remote: SocketAddr) -> Result<(), Errno> {
        let waits = self.waits(fd, 0)?;
        let mut begun = false;
        let result = self.wait(waits, None, |state| {
            let now = state.clock.now();
            let socket = state.get(fd)?;
            let options = socket.options;
            match socket.kind {
                Kind::Udp(id) => Ok(state.stack.udp_connect(now, id, remote)?),
                Kind::Listener(_) => Err(Errno(libc::EISCONN)),
                Kind::Stream { connecting: false, .. } => Err(Errno(libc::EISCONN)),
                Kind::Fresh(bound) => {
                    begun = true;
                    let id = state.stack.tcp_connect(now, remote, bound)?;
                    state.stack.tcp_set_options(id, options)?;
                    state.get_mut(fd)?.kind = Kind::Stream { id, connecting: true };
                    Err(AGAIN)
                }
                Kind::Stream { id, .. } => state.opened(fd, id),
            }
        });
        match result {
            Err(AGAIN) if begun => Err(Errno(libc::EINPROGRESS)),
            Err(AGAIN) => Err(Errno(libc::EALREADY)),
            result => result,
        }
    }

    /// Takes up to `len` bytes that have come, or one datagram; returns who sent them.
    pub(crate) fn read(
        &self,
        fd: c_int,
        len: usize,
        flags: c_int,
    ) -> Result<(Vec<u8>, Option<SocketAddr>), Errno> {
        check(flags)?;
        let peek = flags & libc::MSG_PEEK != 0;
        let waits = self.waits(fd, flags)?;
        let mut buffer = vec![0; len.min(MAX_READ)];
        let (count, from) = self.wait(waits, None, |state| {
            let now = state.clock.now();
            match state.ready(fd)? {
                Kind::Stream { id, .. } => {
                    Ok((state.stack.tcp_recv(now, id, &mut buffer, peek)?, None))
                }
                Kind::Udp(id) => {
                    let (count, from) = state.stack.udp_recv(id, &mut buffer, peek)?;
                    Ok((count, Some(state.get(fd)?.shown(from))))
                }
                Kind::Fresh(_) | Kind::Listener(_) => Err(Errno(libc::ENOTCONN)),
            }
        })?;
        buffer.truncate(count);
        Ok((buffer, from))
    }

    /// Sends bytes, all of them if the socket waits, or one datagram.
    pub(crate) fn write(
        &self,
        fd: c_int,
        bytes: &[u8],
        flags: c_int,
        to: Option<SocketAddr>,
    ) -> Result<usize, Errno> {
        check(flags)?;
        let waits = self.waits(fd, flags)?;
        let mut sent = 0;
        let result = self.wait(waits, None, |state| {
            let now = state.clock.now();
            match state.ready(fd)? {
                Kind::Stream { id, .. } => {
                    sent += state.stack.tcp_send(id, bytes.get(sent..).unwrap_or_default())?;
                    if sent < bytes.len() { Err(AGAIN) } else { Ok(()) }
                }
                Kind::Udp(id) => {
                    state.stack.udp_send(now, id, to, bytes)?;
                    sent = bytes.len();
                    Ok(())
                }
                Kind::Fresh(_) => Err(Errno(libc::EPIPE)),
                Kind::Listener(_) => Err(Errno(libc::ENOTCONN)),
            }
        });
        match result {
            Err(_) if sent > 0 => Ok(sent),
            result => result.map(|()| sent),
        }
    }

    pub(crate) fn shutdown(&self, fd: c_int, how: c_int) -> Result<(), Errno> {
        let (read, write) = match how {
            libc::SHUT_RD => (true, false),
            libc::SHUT_WR => (false, true),
            libc::SHUT_RDWR => (true, true),
            _ => return Err(Errno(libc::EINVAL)),
        };
        self.call(|state| match state.get(fd)?.kind {
            Kind::Stream { id, .. } => {
                state.stack.tcp_shutdown(id, read, write)?;
                // Who reads or writes at this moment finds out.
                state.clock.wake_all();
                Ok(())
            }
            _ => Err(Errno(libc::ENOTCONN)),
        })
    }

    pub(crate) fn close(&self, fd: c_int) -> Result<(), Errno> {
        self.call(|state| {
            let socket = state.sockets.remove(&fd).ok_or(Errno(libc::EBADF))?;
            state.end(&socket);
            Ok(())
        })
    }

    pub(crate) fn set_nonblocking(&self, fd: c_int, nonblocking: bool) -> Result<(), Errno> {
        self.call(|state| state.get_mut(fd).map(|socket| socket.nonblocking = nonblocking))
    }

    pub(crate) fn is_nonblocking(&self, fd: c_int) -> Result<bool, Errno> {
        self.call(|state| state.get(fd).map(|socket| socket.nonblocking))
    }

    /// Bytes that wait to be read, and bytes that are not acknowledged.
    pub(crate) fn queues(&self, fd: c_int) -> Result<(usize, usize), Errno> {
        self.call(|state| match state.get(fd)?.kind {
            Kind::Stream { id, .. } => {
                let info = state.stack.tcp_info(id)?;
                Ok((info.unread, info.unacknowledged))
            }
            _ => Err(Errno(libc::EINVAL)),
        })
    }

    /// Waits until one of the sockets has something of what is asked for; returns what each has.
    /// `timeout`: milliseconds; a negative one waits for ever.
    pub(crate) fn poll(&self, asked: &[(c_int, c_short)], timeout: c_int) -> Vec<c_short> {
        let limit = u64::try_from(timeout).ok().map(Duration::from_millis);
        let deadline = limit.map(|limit| self.call(|state| state.clock.now() + limit));
        let mut found = Vec::new();
        // The only way to fail is that time is up, with nothing found.
        let _ = self.wait(true, deadline, |state| {
            found = asked.iter().map(|(fd, events)| state.found(*fd, *events)).collect();
            if found.iter().any(|found| *found != 0) { Ok(()) } else { Err(AGAIN) }
        });
        found
    }

    fn waits(&self, fd: c_int, flags: c_int) -> Result<bool, Errno> {
        let nonblocking = self.is_nonblocking(fd)?;
        Ok(!nonblocking && flags & libc::MSG_DONTWAIT == 0)
    }
}

impl State {
    fn add(&mut self, fd: c_int, socket: Socket) {
        // A number that comes again was closed behind our back, as packetdrill does it at its end.
        if let Some(left) = self.sockets.insert(fd, socket) {
            self.end(&left);
        }
    }

    fn end(&mut self, socket: &Socket) {
        let now = self.clock.now();
        match socket.kind {
            Kind::Fresh(_) => {}
            Kind::Listener(id) => self.stack.tcp_close_listener(now, id),
            Kind::Stream { id, .. } => self.stack.tcp_close(now, id),
            Kind::Udp(id) => self.stack.udp_close(id),
        }
    }

    pub(crate) fn get(&self, fd: c_int) -> Result<&Socket, Errno> {
        self.sockets.get(&fd).ok_or(Errno(libc::EBADF))
    }

    pub(crate) fn get_mut(&mut self, fd: c_int) -> Result<&mut Socket, Errno> {
        self.sockets.get_mut(&fd).ok_or(Errno(libc::EBADF))
    }

    /// A socket to read from or write to, after what was left to tell.
    fn ready(&mut self, fd: c_int) -> Result<Kind, Errno> {
        let socket = self.get_mut(fd)?;
        socket.pending.take().map_or(Ok(socket.kind), |error| Err(error.into()))
    }

    fn opened(&mut self, fd: c_int, id: TcpId) -> Result<(), Errno> {
        if matches!(self.stack.tcp_info(id)?.state, Tcp::SynSent | Tcp::SynReceived) {
            return Err(AGAIN);
        }
        if let Some(error) = self.take_error(fd)? {
            self.stack.tcp_close(self.clock.now(), id);
            self.get_mut(fd)?.kind = Kind::Fresh(None);
            return Err(error.into());
        }
        self.get_mut(fd)?.kind = Kind::Stream { id, connecting: false };
        Ok(())
    }

    /// What has gone wrong with a socket, once.
    pub(crate) fn take_error(&mut self, fd: c_int) -> Result<Option<Error>, Errno> {
        let socket = self.get_mut(fd)?;
        let (pending, kind) = (socket.pending.take(), socket.kind);
        let found = match kind {
            Kind::Stream { id, .. } => self.stack.tcp_take_error(id)?,
            Kind::Udp(id) => self.stack.udp_take_error(id)?,
            Kind::Fresh(_) | Kind::Listener(_) => None,
        };
        Ok(pending.or(found))
    }

    /// What `poll` tells of a socket.
    fn found(&mut self, fd: c_int, asked: c_short) -> c_short {
        let Ok(error) = self.take_error(fd) else { return libc::POLLNVAL };
        let Ok(socket) = self.get_mut(fd) else { return libc::POLLNVAL };
        socket.pending = error;
        let failed = error.is_some();
        let (readable, writable, over) = match socket.kind {
            // As Linux says it of a socket that leads nowhere.
            Kind::Fresh(_) => (false, true, true),
            Kind::Listener(id) => (self.stack.tcp_is_acceptable(id), false, false),
            Kind::Udp(id) => (failed || self.stack.udp_is_readable(id), true, false),
            Kind::Stream { id, .. } => {
                let state = self.stack.tcp_info(id).map_or(Tcp::Closed, |info| info.state);
                let over = matches!(state, Tcp::Closed | Tcp::TimeWait);
                let readable = failed || self.stack.tcp_is_readable(id);
                (readable, failed || self.stack.tcp_is_writable(id), over)
            }
        };
        let flag = |on: bool, flag: c_short| if on { flag } else { 0 };
        let readable = flag(readable, libc::POLLIN | libc::POLLRDNORM);
        let writable = flag(writable, libc::POLLOUT | libc::POLLWRNORM);
        (asked & (readable | writable)) | flag(failed, libc::POLLERR) | flag(over, libc::POLLHUP)
    }
}

impl Socket {
    /// An address as the script sees it.
    fn shown(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(ip) if self.v6 => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), address.port())
            }
            _ => address,
        }
    }
}

fn check(flags: c_int) -> Result<(), Errno> {
    if flags & !KNOWN_FLAGS == 0 { Ok(()) } else { Err(Errno(libc::EOPNOTSUPP)) }
}
