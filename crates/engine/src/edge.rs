//! What the core asks of the world: sockets on the host, transmission on plugs.
//!
//! The core never opens a socket or reads a clock. The driver implements [`Edge`] with system
//! calls; the simulation implements it with a scripted host in virtual time. Every socket call is
//! non-blocking; `WouldBlock` means that the driver reports readiness later, once, when it
//! changes (edge-triggered), through `Network::handle_host`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use netyard_sys::segments::{self, Batch};
use netyard_wire::Frame;
use netyard_wire::icmp::IcmpError;

/// A plug of the network, never reused while the network lives.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct PlugId(pub u32);

/// A host socket, handed out by the edge; reused after [`Edge::close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

/// What changed on a host socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Data, a connection, or end of stream can be read.
    pub readable: bool,
    /// The send queue has room again, or a connect finished.
    pub writable: bool,
    /// The other end has finished sending (`EPOLLRDHUP`).
    pub read_closed: bool,
    /// Both directions are over (`EPOLLHUP`).
    pub hangup: bool,
    /// An error waits to be read (`EPOLLERR`): `SO_ERROR` or the error queue.
    pub error: bool,
}

/// An error that was reported about a datagram or a ping sent earlier (`IP_RECVERR`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatagramError {
    /// Where it was going; the port of a ping is 0.
    pub destination: SocketAddr,
    /// What is wrong.
    pub kind: IcmpError,
    /// Who says so; `None` is this machine's kernel, which says it of what was just sent.
    pub reporter: Option<IpAddr>,
    /// The hop limit that the report had left.
    pub hop_limit: Option<u8>,
    /// The beginning of what was sent, as far as it is quoted: of a datagram its payload, of a ping its
    /// ICMP message with the identifier of the socket.
    pub quoted: Vec<u8>,
}

#[cfg(test)]
impl DatagramError {
    /// What `reporter` reports of something without content that was sent there.
    pub(crate) fn reported(kind: IcmpError, destination: SocketAddr, reporter: IpAddr) -> Self {
        let (reporter, hop_limit, quoted) = (Some(reporter), None, Vec::new());
        Self { destination, kind, reporter, hop_limit, quoted }
    }
}

/// The answer to a ping that a socket has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echoed {
    /// Length of the ICMP message, bytes.
    pub len: usize,
    /// Who answers.
    pub from: IpAddr,
    /// The hop limit that the answer had left.
    pub hop_limit: Option<u8>,
}

/// What [`Edge::pour`] has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Poured {
    /// Bytes that the one stream has given.
    pub bytes: usize,
    /// How it stands.
    pub then: Then,
}

/// How two streams stand, of which one is poured into the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// There may be more at once.
    More,
    /// All was poured that there was.
    Dry,
    /// The other takes no more for now.
    Full,
    /// The one has ended, and the other has all of it.
    Ended,
    /// The one is broken, and the other has all that there was.
    Broken,
    /// The other is broken.
    Refused,
}

/// What the core asks of the world.
pub trait Edge {
    /// Sends a frame out on a plug. Returns false if it was dropped (bounded queue full, plug
    /// gone); the drop has been counted. The frame's offload metadata is honoured: the edge
    /// segments and checksums where the plug lacks a feature.
    fn transmit(&mut self, plug: PlugId, frame: Frame<'_>) -> bool;

    /// Starts a TCP connect (`TCP_NODELAY` set). `writable` or `error` reports the outcome.
    ///
    /// # Errors
    /// What the kernel said at once (no route, out of descriptors).
    fn tcp_connect(&mut self, to: SocketAddr) -> io::Result<SocketId>;

    /// Starts a TCP connect by a socket inside the network namespace of who is behind a plug; the address that it
    /// is seen with there. `writable` or `error` reports the outcome.
    ///
    /// # Errors
    /// `WouldBlock`: no such socket is at hand, `Network::handle_supply` tells when some come; `Unsupported`: there are
    /// none for this plug; else what the kernel said at once.
    fn connect_inside(
        &mut self,
        plug: PlugId,
        to: SocketAddr,
    ) -> io::Result<(SocketId, SocketAddr)>;

    /// Whether somebody looks at what passes a plug.
    fn is_captured(&self, plug: PlugId) -> bool;

    /// Moves what one stream has received to another one, as far as that takes it. At most so much in one go that
    /// others get their turn soon.
    fn pour(&mut self, from: SocketId, to: SocketId) -> Poured;

    /// The outcome of [`Edge::tcp_connect`] and [`Edge::connect_inside`], or the pending error of a stream (`SO_ERROR`).
    ///
    /// # Errors
    /// The pending error.
    fn take_error(&mut self, socket: SocketId) -> io::Result<()>;

    /// Takes one connection from a listener; the client's address with it. That of a client by a Unix socket is
    /// port 0 of 127.0.0.1.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    fn tcp_accept(&mut self, listener: SocketId) -> io::Result<(SocketId, SocketAddr)>;

    /// The address of this host that a client has connected to.
    ///
    /// # Errors
    /// What the kernel said.
    fn tcp_local(&mut self, socket: SocketId) -> io::Result<SocketAddr>;

    /// Binds a TCP port; connections are refused until [`Edge::set_listening`].
    ///
    /// # Errors
    /// `AddrInUse`, `PermissionDenied`, `AddrNotAvailable`, ...
    fn tcp_bind(&mut self, at: SocketAddr) -> io::Result<SocketId>;

    /// Adopts a Unix stream socket that listens, and that somebody else may hold too.
    ///
    /// # Errors
    /// It is none; what the kernel said.
    fn adopt_listener(&mut self, listener: OwnedFd) -> io::Result<SocketId>;

    /// Opens or closes a bound port. A closed one stays ours, and its clients are refused: TCP with
    /// RST, UDP with ICMP port unreachable.
    ///
    /// # Errors
    /// What the kernel said.
    fn set_listening(&mut self, listener: SocketId, listening: bool) -> io::Result<()>;

    /// Adopts an open stream descriptor: one end of a socket pair made for `dial`.
    ///
    /// # Errors
    /// What the kernel said.
    fn adopt_stream(&mut self, stream: OwnedFd) -> io::Result<SocketId>;

    /// Opens two streams that are joined to each other (`socketpair`): what one is handed, the
    /// other receives.
    ///
    /// # Errors
    /// Out of descriptors.
    fn stream_pair(&mut self) -> io::Result<(SocketId, SocketId)>;

    /// Copies received bytes into `into`, from `offset` bytes past what was discarded, without
    /// taking them off the queue (`MSG_PEEK`, `SO_PEEK_OFF`). `Ok(0)`: end of stream at that
    /// offset.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing (yet) at that offset; else the stream's error.
    fn peek(&mut self, socket: SocketId, offset: usize, into: &mut [u8]) -> io::Result<usize>;

    /// Takes `count` bytes off the receive queue (`MSG_TRUNC`).
    ///
    /// # Errors
    /// The stream's error.
    fn discard(&mut self, socket: SocketId, count: usize) -> io::Result<()>;

    /// Hands bytes to the stream; returns how many it took.
    ///
    /// # Errors
    /// `WouldBlock` when it takes none now; else the stream's error.
    fn send(&mut self, socket: SocketId, bytes: &[u8]) -> io::Result<usize>;

    /// Bytes that the stream would take now: its send buffer less what is queued, overhead counted
    /// (`SO_MEMINFO`). 0 if it cannot be asked.
    fn send_room(&mut self, socket: SocketId) -> usize;

    /// Sends FIN once everything handed over is sent (`SHUT_WR`).
    ///
    /// # Errors
    /// The stream's error.
    fn shutdown_write(&mut self, socket: SocketId) -> io::Result<()>;

    /// Closes with RST (`SO_LINGER` 0).
    fn reset(&mut self, socket: SocketId);

    /// Closes.
    fn close(&mut self, socket: SocketId);

    /// Opens a UDP socket (error queue on) bound to `at`, which takes datagrams from the start; port 0
    /// lets the kernel choose.
    ///
    /// # Errors
    /// `AddrInUse`, out of descriptors, ...
    fn udp_bind(&mut self, at: SocketAddr) -> io::Result<SocketId>;

    /// Opens a UDP socket that is a member of a group on a card of the host, by its number, and hears what is sent to the
    /// group there. What it sends to the group goes out there.
    ///
    /// # Errors
    /// The card has gone, or lacks that family; somebody has the port for itself.
    fn udp_member(&mut self, card: u32, group: SocketAddr) -> io::Result<SocketId>;

    /// Sends one datagram, with a hop limit if given.
    ///
    /// # Errors
    /// What the kernel said.
    fn udp_send(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        hop_limit: Option<u8>,
        bytes: &[u8],
    ) -> io::Result<usize>;

    /// Takes one datagram; its length and sender.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    fn udp_recv(&mut self, socket: SocketId, into: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Sends datagrams of `size` bytes, one behind the other in `bytes`, the last of which may be shorter: at most
    /// [`segments::MOST`], and [`segments::MOST_BYTES`] in all. The kernel sends all of them or none.
    ///
    /// # Errors
    /// What the kernel said. Where it does not send several at once, one by one may do.
    fn udp_send_many(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        hop_limit: Option<u8>,
        bytes: &[u8],
        size: u16,
    ) -> io::Result<()> {
        let mut pieces = bytes.chunks(usize::from(size.max(1)));
        pieces.try_for_each(|piece| self.udp_send(socket, to, hop_limit, piece).map(drop))
    }

    /// Lets a UDP socket take several datagrams of one sender as one, where the kernel has them so: they are told
    /// by [`Edge::udp_recv_many`] alone then.
    fn udp_take_many(&mut self, _socket: SocketId) {}

    /// Takes what has arrived: each batch at the beginning of a piece of [`segments::ROOM`] bytes of `into`,
    /// as many as there are. True if there may be more.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing.
    fn udp_recv_many(
        &mut self,
        socket: SocketId,
        into: &mut [u8],
        came: &mut Vec<Batch>,
    ) -> io::Result<bool> {
        came.clear();
        for piece in into.chunks_exact_mut(segments::ROOM) {
            match self.udp_recv(socket, piece) {
                Ok((len, from)) => came.push(Batch { len, size: len, from }),
                Err(error) if came.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(true)
    }

    /// Opens a socket for pings to one family (error queue on). It is used with [`Edge::udp_send`], to port
    /// 0, for ICMP messages from their type on; the kernel sets identifier and checksum.
    ///
    /// # Errors
    /// `PermissionDenied`: this host allows none (`net.ipv4.ping_group_range`); out of descriptors.
    fn ping_open(&mut self, ipv4: bool) -> io::Result<SocketId>;

    /// Takes one answer that a ping socket has received.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    fn ping_recv(&mut self, socket: SocketId, into: &mut [u8]) -> io::Result<Echoed>;

    /// Sets whether what a datagram or ping socket sends must stay whole on its way: [`Edge::udp_send`]
    /// refuses what is too big for the path then (`EMSGSIZE`), and [`Edge::udp_error`] tells what is not.
    ///
    /// # Errors
    /// What the kernel said.
    fn set_whole(&mut self, socket: SocketId, whole: bool) -> io::Result<()>;

    /// Takes one entry of the error queue of a datagram or ping socket.
    fn udp_error(&mut self, socket: SocketId) -> Option<DatagramError>;
}
