//! TCP sockets that neither listen nor connect yet.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{TcpListener, TcpStream};
use crate::host::{ListenerHandle, TcpHandle};
use crate::{Host, Keepalive};

/// A TCP socket that neither listens nor connects yet, as `tokio::net::TcpSocket`.
#[derive(Debug)]
pub struct TcpSocket {
    ipv4: bool,
    settings: Mutex<Settings>,
}

#[derive(Debug, Default)]
struct Settings {
    local: Option<SocketAddr>,
    no_delay: bool,
    keepalive: bool,
    reuse_address: bool,
    linger: Option<Duration>,
}

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
        let handle = TcpHandle::open(&Host::of_process()?, to, settings.local)?;
        handle.change(|options| {
            options.no_delay = settings.no_delay;
            options.keepalive = settings.keepalive.then(Keepalive::default);
        })?;
        handle.set_linger(settings.linger)?;
        TcpStream::open(handle).await
    }

    /// Listens; so many connections wait to be accepted.
    ///
    /// # Errors
    /// As [`TcpListener::bind`].
    pub fn listen(self, backlog: u32) -> io::Result<TcpListener> {
        let backlog = usize::try_from(backlog).unwrap_or(usize::MAX);
        let local = self.local_addr()?;
        ListenerHandle::bind(&Host::of_process()?, local, backlog).map(TcpListener::new)
    }

    /// Lets small segments go at once, or not.
    ///
    /// # Errors
    /// None.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.settings().no_delay = nodelay;
        Ok(())
    }

    /// Whether small segments go at once.
    ///
    /// # Errors
    /// None.
    pub fn nodelay(&self) -> io::Result<bool> {
        Ok(self.settings().no_delay)
    }

    /// Asks after a peer that is silent, or not.
    ///
    /// # Errors
    /// None.
    pub fn set_keepalive(&self, keepalive: bool) -> io::Result<()> {
        self.settings().keepalive = keepalive;
        Ok(())
    }

    /// Whether a peer that is silent is asked after.
    ///
    /// # Errors
    /// None.
    pub fn keepalive(&self) -> io::Result<bool> {
        Ok(self.settings().keepalive)
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
        self.settings().linger = linger;
        Ok(())
    }

    /// `SO_LINGER`.
    ///
    /// # Errors
    /// None.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        Ok(self.settings().linger)
    }
}
