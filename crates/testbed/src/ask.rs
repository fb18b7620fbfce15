//! Clients of daemons that say who they are: one connection or one socket for each question.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::http;

/// How long an answer to a datagram may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ports of our own sockets, below those that kernels choose. A kernel soon gives a port again, and whoever
/// has it then is taken for who had it before.
const PORTS: RangeInclusive<u16> = 10_000..=32_000;

/// Where the next one is looked for. Each process begins somewhere else, whatever its id: those of instances
/// begin again with each start.
static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| {
    let random = RandomState::new().build_hasher().finish();
    AtomicU32::new(u32::try_from(random % 100_000).expect("below 2^32"))
});

/// Binds a socket to a port that kernels give to nobody, and that no socket made here has had.
///
/// # Errors
/// What `bind` says, but that a port is taken.
pub fn with_port<T>(bind: impl Fn(u16) -> io::Result<T>) -> io::Result<T> {
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let room = u32::from(PORTS.end() - PORTS.start());
        let port = u16::try_from(next % room).expect("below 2^16");
        match bind(PORTS.start() + port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
}

/// Where to ask, and over what: `192.0.2.1:80/tcp`, `[2001:db8::1]:53/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// By `GET /` over HTTP.
    Tcp(SocketAddr),
    /// By a datagram.
    Udp(SocketAddr),
}

impl Server {
    /// What the daemon answers, on a connection or to a socket of its own.
    ///
    /// # Errors
    /// What connecting, sending or reading gave; `WouldBlock` when no datagram comes back.
    pub fn ask(self) -> io::Result<String> {
        match self {
            Self::Tcp(server) => http::get(server, "/").map(|answer| answer.body),
            Self::Udp(server) => Socket::to(server)?.ask(),
        }
    }
}

/// A UDP socket that asks one server, as often as one likes.
#[derive(Debug)]
pub struct Socket(UdpSocket);

impl Socket {
    /// A new one, with a port that no socket of this process has had.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn to(server: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = with_port(|port| UdpSocket::bind((any, port)))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Sends one datagram, and waits for one.
    ///
    /// # Errors
    /// `ConnectionRefused` when somebody says that nobody is there; `WouldBlock` when nobody says
    /// anything.
    pub fn ask(&self) -> io::Result<String> {
        self.0.send(b"who?")?;
        let mut answer = [0; 1500];
        let count = self.0.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(server) => write!(f, "{server}/tcp"),
            Self::Udp(server) => write!(f, "{server}/udp"),
        }
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |server: &str| server.parse().map_err(|error| format!("{server}: {error}"));
        match text.rsplit_once('/') {
            Some((server, "tcp")) => Ok(Self::Tcp(parse(server)?)),
            Some((server, "udp")) => Ok(Self::Udp(parse(server)?)),
            _ => Err(format!("{text}: no /tcp or /udp")),
        }
    }
}
