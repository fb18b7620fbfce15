//! TCP sockets that neither listen nor connect yet.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::class::{self, traffic_classes};
use super::{TcpListener, TcpStream};
use crate::host::{ListenerHandle, Manner, TcpHandle};
use crate::{self as stack, Host, Keepalive};

/// A TCP socket that neither listens nor connects yet, as `tokio::net::TcpSocket`.
#[derive(Debug)]
pub struct TcpSocket {
    ipv4: bool,
    settings: Mutex<Settings>,
}

#[derive(Debug, Default)]
struct Settings {
    local: Option<SocketAddr>,
    manner: Manner,
    reuse_address: bool,
}

traffic_classes!(TcpSocket);

impl TcpSocket {
    /// One for IPv4.
    ///
    /// # Errors
    /// None.
    pub fn new_v4() -> io::Result<Self> {
        Ok(Self { ipv4: true, settings: Mutex::default() })
    }

    /// One for IPv6.
    ///
    /// # Errors
    /// None.
    pub fn new_v6() -> io::Result<Self> {
        Ok(Self { ipv4: false, settings: Mutex::default() })
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, address: SocketAddr) -> io::Result<()> {
        if address.is_ipv4() == self.ipv4 {
            return Ok(());
        }
        let message = format!("{address} is of another family than the socket");
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }

    /// The address that it will have.
    ///
    /// # Errors
    /// `InvalidInput`: of the other family.
    pub fn bind(&self, at: SocketAddr) -> io::Result<()> {
        self.check(at)?;
        self.settings().local = Some(at);
        Ok(())
    }

    /// The address that it was [bound](Self::bind) to; the unspecified one before.
    ///
    /// # Errors
    /// None.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.settings().local.unwrap_or_else(|| match self.ipv4 {
            true => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            false => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
        }))
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// As [`TcpStream::connect`]; `AddrNotAvailable`, `AddrInUse`: what it was bound to.
    pub async fn connect(self, to: SocketAddr) -> io::Result<TcpStream> {
        self.check(to)?;
        let settings = self.settings.into_inner().unwrap_or_else(PoisonError::into_inner);
        let host = Host::of_process()?;
        TcpStream::open(TcpHandle::open(&host, to, settings.local, settings.manner)?).await
    }

    /// Listens; so many connections wait to be accepted, and have what was set here.
    ///
    /// # Errors
    /// As [`TcpListener::bind`].
    pub fn listen(self, backlog: u32) -> io::Result<TcpListener> {
        let backlog = usize::try_from(backlog).unwrap_or(usize::MAX);
        let (local, manner) = (self.local_addr()?, self.settings().manner);
        ListenerHandle::bind(&Host::of_process()?, local, backlog, manner).map(TcpListener::new)
    }

    /// Lets small segments go at once, or not.
    ///
    /// # Errors
    /// None.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.settings().manner.options.no_delay = nodelay;
        Ok(())
    }

    /// Whether small segments go at once.
    ///
    /// # Errors
    /// None.
    pub fn nodelay(&self) -> io::Result<bool> {
        Ok(self.settings().manner.options.no_delay)
    }

    /// Asks after a peer that is silent, or not.
    ///
    /// # Errors
    /// None.
    pub fn set_keepalive(&self, keepalive: bool) -> io::Result<()> {
        let keepalive = keepalive.then(Keepalive::default);
        self.settings().manner.options.keepalive = keepalive;
        Ok(())
    }

    /// Whether a peer that is silent is asked after.
    ///
    /// # Errors
    /// None.
    pub fn keepalive(&self) -> io::Result<bool> {
        Ok(self.settings().manner.options.keepalive.is_some())
    }

    /// Takes note of `SO_REUSEADDR`: the stack lets a port be listened on while old connections are
    /// remembered, always.
    ///
    /// # Errors
    /// None.
    pub fn set_reuseaddr(&self, reuse: bool) -> io::Result<()> {
        self.settings().reuse_address = reuse;
        Ok(())
    }

    /// `SO_REUSEADDR`.
    ///
    /// # Errors
    /// None.
    pub fn reuseaddr(&self) -> io::Result<bool> {
        Ok(self.settings().reuse_address)
    }

    /// `SO_LINGER`, see [`TcpStream::set_linger`].
    ///
    /// # Errors
    /// None.
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.settings().manner.set_linger(linger);
        Ok(())
    }

    /// `SO_LINGER`.
    ///
    /// # Errors
    /// None.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        Ok(self.settings().manner.linger)
    }

    /// Lets closing reset the connection.
    ///
    /// # Errors
    /// None.
    pub fn set_zero_linger(&self) -> io::Result<()> {
        self.set_linger(Some(Duration::ZERO))
    }

    /// Takes `SO_REUSEPORT` if it is off.
    ///
    /// # Errors
    /// `Unsupported`: several sockets are to share a port.
    pub fn set_reuseport(&self, reuse: bool) -> io::Result<()> {
        match reuse {
            false => Ok(()),
            true => {
                let message = "a port of this stack belongs to one listener: share that one";
                Err(io::Error::new(io::ErrorKind::Unsupported, message))
            }
        }
    }

    /// `SO_REUSEPORT`, which is off.
    ///
    /// # Errors
    /// None.
    pub fn reuseport(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Sets the most that is queued to be sent, bytes; the stack has a limit of its own.
    ///
    /// # Errors
    /// None.
    pub fn set_send_buffer_size(&self, size: u32) -> io::Result<()> {
        self.settings().manner.options.send_buffer = Some(size);
        Ok(())
    }

    /// The most that is queued to be sent, bytes: what was set, or the stack's limit.
    ///
    /// # Errors
    /// What [`Host::of_process`] says.
    pub fn send_buffer_size(&self) -> io::Result<u32> {
        let set = self.settings().manner.options.send_buffer;
        most(set, |settings| settings.send_buffer)
    }

    /// Sets the most that waits to be read, bytes; the stack has a limit of its own.
    ///
    /// # Errors
    /// None.
    pub fn set_recv_buffer_size(&self, size: u32) -> io::Result<()> {
        self.settings().manner.options.receive_buffer = Some(size);
        Ok(())
    }

    /// The most that waits to be read, bytes: what was set, or the stack's limit.
    ///
    /// # Errors
    /// What [`Host::of_process`] says.
    pub fn recv_buffer_size(&self) -> io::Result<u32> {
        let set = self.settings().manner.options.receive_buffer;
        most(set, |settings| settings.receive_buffer)
    }

    /// What has gone wrong: nothing does before it connects.
    ///
    /// # Errors
    /// None.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(None)
    }

    fn set_class(&self, class: u8) -> io::Result<()> {
        self.settings().manner.options.traffic_class = class;
        Ok(())
    }

    fn class(&self) -> u8 {
        self.settings().manner.options.traffic_class
    }
}

/// The size of a buffer that was set, below the stack's limit.
fn most(set: Option<u32>, limit: impl Fn(&stack::Settings) -> usize) -> io::Result<u32> {
    let limit = Host::of_process()?.with(|stack, _| limit(stack.tcp_settings()));
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    Ok(set.unwrap_or(limit).min(limit))
}
