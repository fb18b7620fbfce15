//! The host sockets of a network, found by number.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use netyard_sys::datagram::{Datagram, Echo, Origin, QueuedError};
use netyard_sys::poll::{Event, Interest, Poll};
use netyard_sys::stream::{Listener, Stream};
use netyard_wire::icmp::IcmpError;

use super::token::Token;
use crate::edge::{DatagramError, Echoed, Readiness, SocketId};

/// A [`SocketId`] is a place in the table (low bits) and how often that place was reused: a number
/// that was kept too long, or an event that was on its way when its socket closed, finds nothing.
const PLACE_BITS: u32 = 20;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;
const GENERATION_MASK: u32 = u32::MAX >> PLACE_BITS;

/// Pending connections that are thrown away at once when descriptors run out.
const SHED_CONNECTIONS: usize = 128;

/// The table of host sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Given up for a moment when descriptors run out, so that pending connections can be taken
    /// and reset instead of being left to hang.
    reserve: Option<File>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    socket: Option<Socket>,
}

/// A host socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// A connection.
    Stream(Stream),
    /// A TCP port.
    Listener(Port),
    /// A UDP or a ping socket.
    Datagram(Datagram),
}

/// A TCP port.
#[derive(Debug)]
pub(crate) struct Port {
    listener: Listener,
    listening: bool,
    watched: bool,
}

impl Sockets {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), reserve: File::open("/dev/null").ok() }
    }

    /// What an event means for the core; `None` if the socket has gone, or the event says nothing
    /// (a port that does not listen hangs up).
    pub(crate) fn readiness(&self, id: SocketId, event: Event) -> Option<Readiness> {
        match self.get(id).ok()? {
            Socket::Listener(port) => (port.listening && event.readable)
                .then(|| Readiness { readable: true, ..Readiness::default() }),
            Socket::Stream(_) | Socket::Datagram(_) => Some(Readiness {
                readable: event.readable,
                writable: event.writable,
                read_closed: event.read_closed,
                hangup: event.hangup,
                error: event.error,
            }),
        }
    }

    pub(crate) fn tcp_connect(&mut self, poll: &Poll, to: SocketAddr) -> io::Result<SocketId> {
        let stream = Stream::connect(to)?;
        self.insert(poll, Socket::Stream(stream))
    }

    /// Connects by a socket that was made elsewhere; the address that the other end sees.
    ///
    /// Where nobody listens, the kernel may pick the very port as ours and connect the socket with itself.
    pub(crate) fn connect_by(
        &mut self,
        poll: &Poll,
        socket: OwnedFd,
        to: SocketAddr,
    ) -> io::Result<(SocketId, SocketAddr)> {
        let stream = Stream::connect_by(socket, to)?;
        let seen = stream.local_address()?;
        if seen == to {
            stream.reset();
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok((self.insert(poll, Socket::Stream(stream))?, seen))
    }

    pub(crate) fn adopt_stream(&mut self, poll: &Poll, fd: OwnedFd) -> io::Result<SocketId> {
        let stream = Stream::adopt(fd)?;
        self.insert(poll, Socket::Stream(stream))
    }

    pub(crate) fn stream_pair(&mut self, poll: &Poll) -> io::Result<(SocketId, SocketId)> {
        let (one, other) = UnixStream::pair()?;
        let one = self.adopt_stream(poll, one.into())?;
        match self.adopt_stream(poll, other.into()) {
            Ok(other) => Ok((one, other)),
            Err(error) => {
                self.close(one, false);
                Err(error)
            }
        }
    }

    pub(crate) fn tcp_accept(
        &mut self,
        poll: &Poll,
        id: SocketId,
    ) -> io::Result<(SocketId, SocketAddr)> {
        let (stream, client) = loop {
            match self.port(id)?.listener.accept() {
                Ok(accepted) => break accepted,
                // The client gave up while it waited.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if out_of_descriptors(&error) => {
                    self.shed(id)?;
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Err(error) => return Err(error),
            }
        };
        Ok((self.insert(poll, Socket::Stream(stream))?, client))
    }

    pub(crate) fn tcp_local(&mut self, id: SocketId) -> io::Result<SocketAddr> {
        self.stream(id)?.local_address()
    }

    pub(crate) fn tcp_bind(&mut self, poll: &Poll, at: SocketAddr) -> io::Result<SocketId> {
        let listener = Listener::bind(at)?;
        self.insert(poll, Socket::Listener(Port { listener, listening: false, watched: false }))
    }

    pub(crate) fn adopt_listener(&mut self, poll: &Poll, fd: OwnedFd) -> io::Result<SocketId> {
        let listener = Listener::adopt(fd)?;
        self.insert(poll, Socket::Listener(Port::open(listener)))
    }

    pub(crate) fn set_listening(
        &mut self,
        poll: &Poll,
        id: SocketId,
        listening: bool,
    ) -> io::Result<()> {
        let port = match self.get_mut(id)? {
            Socket::Listener(port) => port,
            Socket::Datagram(datagram) => return datagram.set_receiving(listening),
            Socket::Stream(_) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        if port.listening == listening {
            return Ok(());
        }
        port.listener.set_listening(listening)?;
        port.listening = listening;
        if !port.watched {
            poll.add(port.listener.as_fd(), Token::Socket(id).encode(), Interest::Arrivals)?;
            port.watched = true;
        }
        Ok(())
    }

    pub(crate) fn udp_bind(&mut self, poll: &Poll, at: SocketAddr) -> io::Result<SocketId> {
        let datagram = Datagram::bind(at)?;
        self.insert(poll, Socket::Datagram(datagram))
    }

    #[cfg(test)]
    pub(crate) fn local_address(&self, id: SocketId) -> io::Result<SocketAddr> {
        match self.get(id)? {
            Socket::Listener(port) => port.listener.local_address(),
            Socket::Datagram(datagram) => datagram.local_address(),
            Socket::Stream(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    pub(crate) fn take_error(&mut self, id: SocketId) -> io::Result<()> {
        self.stream(id)?.take_error()
    }

    pub(crate) fn peek(
        &mut self,
        id: SocketId,
        offset: usize,
        into: &mut [u8],
    ) -> io::Result<usize> {
        self.stream(id)?.peek(offset, into)
    }

    pub(crate) fn discard(&mut self, id: SocketId, count: usize) -> io::Result<()> {
        self.stream(id)?.discard(count).map(drop)
    }

    pub(crate) fn send(&mut self, id: SocketId, bytes: &[u8]) -> io::Result<usize> {
        self.stream(id)?.send(bytes)
    }

    pub(crate) fn shutdown_write(&mut self, id: SocketId) -> io::Result<()> {
        self.stream(id)?.shutdown_write()
    }

    pub(crate) fn send_room(&mut self, id: SocketId) -> usize {
        self.stream(id).ok().and_then(|stream| stream.send_room()).unwrap_or_default()
    }

    pub(crate) fn udp_send(
        &mut self,
        id: SocketId,
        to: SocketAddr,
        hop_limit: Option<u8>,
        bytes: &[u8],
    ) -> io::Result<usize> {
        self.datagram(id)?.send(to, hop_limit, bytes)
    }

    pub(crate) fn udp_recv(
        &mut self,
        id: SocketId,
        into: &mut [u8],
    ) -> io::Result<(usize, SocketAddr)> {
        self.datagram(id)?.recv(into)
    }

    pub(crate) fn ping_open(&mut self, poll: &Poll, ipv4: bool) -> io::Result<SocketId> {
        let socket = Datagram::ping(ipv4)?;
        self.insert(poll, Socket::Datagram(socket))
    }

    pub(crate) fn ping_recv(&mut self, id: SocketId, into: &mut [u8]) -> io::Result<Echoed> {
        let Echo { len, from, hop_limit } = self.datagram(id)?.recv_echo(into)?;
        Ok(Echoed { len, from, hop_limit })
    }

    pub(crate) fn set_whole(&mut self, id: SocketId, whole: bool) -> io::Result<()> {
        self.datagram(id)?.set_whole(whole)
    }

    pub(crate) fn udp_error(&mut self, id: SocketId) -> Option<DatagramError> {
        let datagram = self.datagram(id).ok()?;
        // Entries that guests cannot be told of are passed over.
        std::iter::from_fn(|| datagram.take_error()).find_map(guest_error)
    }

    /// Closes; a stream with RST if `reset`. (Closing ends the watch: nobody else holds a copy.)
    pub(crate) fn close(&mut self, id: SocketId, reset: bool) {
        let socket = self.take(id);
        if let (Some(Socket::Stream(stream)), true) = (socket, reset) {
            stream.reset();
        }
    }

    /// Gives a stream away, with its descriptor not watched any more.
    pub(crate) fn release(&mut self, poll: &Poll, id: SocketId) -> io::Result<OwnedFd> {
        poll.remove(self.stream(id)?.as_fd())?;
        match self.take(id) {
            Some(Socket::Stream(stream)) => stream.into_blocking(),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Takes a socket out of the table.
    fn take(&mut self, id: SocketId) -> Option<Socket> {
        let place = id.0 & PLACE_MASK;
        self.get(id).ok()?;
        let slot = self.slot(place)?;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        let socket = slot.socket.take();
        self.free.push(place);
        socket
    }

    /// Takes a socket in and watches it.
    pub(crate) fn insert(&mut self, poll: &Poll, socket: Socket) -> io::Result<SocketId> {
        let place = match self.free.last() {
            Some(place) => *place,
            None => self.grow()?,
        };
        let generation = self.slots.get(index(place)).map_or(0, |slot| slot.generation);
        let id = SocketId(generation << PLACE_BITS | place);
        if let Some((fd, interest)) = socket.watched_from_the_start() {
            poll.add(fd, Token::Socket(id).encode(), interest)?;
        }
        self.free.pop();
        if let Some(slot) = self.slot(place) {
            slot.socket = Some(socket);
        }
        Ok(id)
    }

    /// Adds one free place.
    fn grow(&mut self) -> io::Result<u32> {
        let place = u32::try_from(self.slots.len())
            .ok()
            .filter(|place| *place <= PLACE_MASK)
            .ok_or(io::ErrorKind::QuotaExceeded)?;
        self.slots.push(Slot::default());
        self.free.push(place);
        Ok(place)
    }

    fn slot(&mut self, place: u32) -> Option<&mut Slot> {
        self.slots.get_mut(index(place))
    }

    fn get(&self, id: SocketId) -> io::Result<&Socket> {
        self.slots
            .get(index(id.0 & PLACE_MASK))
            .filter(|slot| slot.generation == id.0 >> PLACE_BITS)
            .and_then(|slot| slot.socket.as_ref())
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn get_mut(&mut self, id: SocketId) -> io::Result<&mut Socket> {
        self.slot(id.0 & PLACE_MASK)
            .filter(|slot| slot.generation == id.0 >> PLACE_BITS)
            .and_then(|slot| slot.socket.as_mut())
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn stream(&mut self, id: SocketId) -> io::Result<&mut Stream> {
        match self.get_mut(id)? {
            Socket::Stream(stream) => Ok(stream),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// A stream, to look at.
    pub(crate) fn open_stream(&self, id: SocketId) -> io::Result<&Stream> {
        match self.get(id)? {
            Socket::Stream(stream) => Ok(stream),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn port(&mut self, id: SocketId) -> io::Result<&mut Port> {
        match self.get_mut(id)? {
            Socket::Listener(port) => Ok(port),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    pub(super) fn datagram(&mut self, id: SocketId) -> io::Result<&mut Datagram> {
        match self.get_mut(id)? {
            Socket::Datagram(datagram) => Ok(datagram),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Resets the connections that wait at a listener, with the descriptor kept in reserve: they
    /// would hang, and arrivals are told only once.
    fn shed(&mut self, id: SocketId) -> io::Result<()> {
        tracing::warn!("out of descriptors: new connections are reset");
        self.reserve = None;
        let listener = &self.port(id)?.listener;
        for (stream, _) in std::iter::from_fn(|| listener.accept().ok()).take(SHED_CONNECTIONS) {
            stream.reset();
        }
        self.reserve = File::open("/dev/null").ok();
        Ok(())
    }
}

impl Port {
    /// A port that is open, and watched from the start.
    pub(crate) fn open(listener: Listener) -> Self {
        Self { listener, listening: true, watched: true }
    }
}

impl Socket {
    /// A listener is watched from when it first listens: before, it only hangs up. Nobody waits for room in a socket
    /// for datagrams, which is told with each of them that has left.
    fn watched_from_the_start(&self) -> Option<(BorrowedFd<'_>, Interest)> {
        match self {
            Self::Stream(stream) => Some((stream.as_fd(), Interest::Changes)),
            Self::Datagram(datagram) => Some((datagram.as_fd(), Interest::Arrivals)),
            Self::Listener(port) => {
                port.watched.then(|| (port.listener.as_fd(), Interest::Arrivals))
            }
        }
    }
}

fn index(place: u32) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}

fn out_of_descriptors(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// What a guest is told of an entry of the error queue: the ICMP types and codes of RFC 792,
/// RFC 1122 section 3.2.2.1 and RFC 1812 section 5.2.7.1, and those of RFC 4443 section 3.
fn guest_error(error: QueuedError) -> Option<DatagramError> {
    use IcmpError as Kind;
    const EMSGSIZE: i32 = 90;
    const EHOSTUNREACH: i32 = 113;
    const ENETUNREACH: i32 = 101;
    const EACCES: i32 = 13;
    const EPERM: i32 = 1;
    let kind = match (error.origin, error.kind, error.code) {
        (Origin::Icmp, 3, 2 | 3) | (Origin::Icmp6, 1, 4) => Kind::PortUnreachable,
        (Origin::Icmp, 3, 4) | (Origin::Icmp6, 2, _) => Kind::TooBig(error.mtu),
        (Origin::Icmp, 3, 9 | 10 | 13..=15) | (Origin::Icmp6, 1, 1 | 5 | 6) => Kind::Prohibited,
        (Origin::Icmp, 3, 0 | 6 | 11) | (Origin::Icmp6, 1, 0) => Kind::NetworkUnreachable,
        (Origin::Icmp, 3, _) | (Origin::Icmp6, 1, _) => Kind::HostUnreachable,
        (Origin::Icmp, 11, _) | (Origin::Icmp6, 3, _) => Kind::TimeExceeded,
        (Origin::Local, ..) => match error.errno {
            EMSGSIZE => Kind::TooBig(error.mtu),
            ENETUNREACH => Kind::NetworkUnreachable,
            EHOSTUNREACH => Kind::HostUnreachable,
            EACCES | EPERM => Kind::Prohibited,
            _ => return None,
        },
        _ => return None,
    };
    let QueuedError { destination, reporter, hop_limit, quoted, .. } = error;
    Some(DatagramError { destination, kind, reporter, hop_limit, quoted })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use netyard_sys::poll::Events;

    use super::*;

    struct Table {
        poll: Poll,
        sockets: Sockets,
    }

    impl Table {
        fn new() -> Self {
            Self { poll: Poll::new().unwrap(), sockets: Sockets::new() }
        }

        /// Waits for an event of a socket that `wanted` accepts.
        fn wait(&self, id: SocketId, wanted: impl Fn(Readiness) -> bool) {
            let deadline = Instant::now() + Duration::from_secs(10);
            let mut events = Events::new();
            loop {
                assert!(Instant::now() < deadline, "the event never came");
                self.poll.wait(&mut events, Some(Duration::from_millis(100))).unwrap();
                for event in events.iter() {
                    let Some(Token::Socket(socket)) = Token::decode(event.token) else { panic!() };
                    let readiness = self.sockets.readiness(socket, event);
                    if socket == id && readiness.is_some_and(&wanted) {
                        return;
                    }
                }
            }
        }
    }

    #[test]
    fn a_connection_is_opened_used_and_counted() {
        let mut table = Table::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let id = table.sockets.tcp_connect(&table.poll, listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        table.wait(id, |ready| ready.writable);
        table.sockets.take_error(id).unwrap();
        assert_eq!(table.sockets.send(id, b"hello").unwrap(), 5);
        far.read_exact(&mut [0; 5]).unwrap();
        assert!(table.sockets.send_room(id) > 0);
        table.sockets.shutdown_write(id).unwrap();
        assert_eq!(far.read(&mut [0; 5]).unwrap(), 0);
        far.write_all(b"bye").unwrap();
        drop(far);
        table.wait(id, |ready| ready.readable && ready.read_closed);
        let mut buffer = [0; 8];
        assert_eq!(table.sockets.peek(id, 0, &mut buffer).unwrap(), 3);
        assert_eq!(table.sockets.peek(id, 3, &mut buffer).unwrap(), 0);
        table.sockets.discard(id, 3).unwrap();
    }

    #[test]
    fn a_socket_that_would_connect_with_itself_is_refused() {
        netyard_testbed::isolate(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40000").unwrap();
            let mut table = Table::new();
            let to = "127.0.0.1:40000".parse().unwrap();
            for _ in 0..2 {
                let socket = netyard_sys::stream::unconnected(true).unwrap();
                let error = table.sockets.connect_by(&table.poll, socket, to).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            }
            TcpListener::bind(to).unwrap();
        });
    }

    #[test]
    fn the_ends_of_a_pair_hear_of_each_other() {
        let mut table = Table::new();
        let (one, other) = table.sockets.stream_pair(&table.poll).unwrap();
        table.wait(one, |ready| ready.writable);
        table.sockets.send(one, b"hello").unwrap();
        table.wait(other, |ready| ready.readable);
        let mut buffer = [0; 8];
        assert_eq!(table.sockets.peek(other, 0, &mut buffer).unwrap(), 5);
        table.sockets.discard(other, 5).unwrap();
        // Half closed, the other direction still works.
        table.sockets.shutdown_write(one).unwrap();
        table.wait(other, |ready| ready.read_closed && !ready.hangup);
        assert_eq!(table.sockets.peek(other, 0, &mut buffer).unwrap(), 0);
        table.sockets.send(other, b"bye").unwrap();
        table.sockets.close(other, false);
        table.wait(one, |ready| ready.hangup);
        assert_eq!(table.sockets.peek(one, 0, &mut buffer).unwrap(), 3);
        assert_eq!(table.sockets.peek(one, 3, &mut buffer).unwrap(), 0);
    }

    #[test]
    fn an_end_that_closes_on_unread_bytes_resets_the_other() {
        let mut table = Table::new();
        let (one, other) = table.sockets.stream_pair(&table.poll).unwrap();
        table.sockets.send(one, b"hello").unwrap();
        table.sockets.close(other, false);
        table.wait(one, |ready| ready.error);
        let error = table.sockets.take_error(one).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_number_that_was_kept_too_long_finds_nothing() {
        let mut table = Table::new();
        let (near, _far) = UnixStream::pair().unwrap();
        let (other, _other_far) = UnixStream::pair().unwrap();
        let old = table.sockets.adopt_stream(&table.poll, near.into()).unwrap();
        table.sockets.close(old, false);
        let new = table.sockets.adopt_stream(&table.poll, other.into()).unwrap();
        assert_eq!(old.0 & PLACE_MASK, new.0 & PLACE_MASK);
        assert_ne!(old, new);
        assert!(table.sockets.send(old, b"x").is_err());
        assert_eq!(table.sockets.send_room(old), 0);
        table.sockets.close(old, false);
        table.sockets.send(new, b"x").unwrap();
        let event = Event {
            token: 0,
            readable: true,
            writable: false,
            read_closed: false,
            hangup: false,
            error: false,
        };
        assert_eq!(table.sockets.readiness(old, event), None);
        assert!(table.sockets.readiness(new, event).is_some());
    }

    #[test]
    fn a_port_refuses_until_it_listens_and_tells_arrivals_only() {
        let mut table = Table::new();
        let id = table.sockets.tcp_bind(&table.poll, "127.0.0.1:0".parse().unwrap()).unwrap();
        let at = table.sockets.local_address(id).unwrap();
        for _ in 0..2 {
            assert_eq!(
                TcpStream::connect(at).unwrap_err().kind(),
                io::ErrorKind::ConnectionRefused
            );
            table.sockets.set_listening(&table.poll, id, true).unwrap();
            let client = TcpStream::connect(at).unwrap();
            table.wait(id, |ready| ready == Readiness { readable: true, ..Readiness::default() });
            let (accepted, from) = table.sockets.tcp_accept(&table.poll, id).unwrap();
            assert_eq!(from, client.local_addr().unwrap());
            table.wait(accepted, |ready| ready.writable);
            table.sockets.close(accepted, true);
            table.sockets.set_listening(&table.poll, id, false).unwrap();
        }
    }

    #[test]
    fn a_datagram_to_a_closed_port_is_told() {
        let mut table = Table::new();
        let any = "127.0.0.1:0".parse().unwrap();
        let id = table.sockets.udp_bind(&table.poll, any).unwrap();
        // Closed, and nobody else can have it.
        let closed = Datagram::bind(any).unwrap();
        closed.set_receiving(false).unwrap();
        let gone = closed.local_address().unwrap();
        table.sockets.udp_send(id, gone, Some(9), b"x").unwrap();
        table.wait(id, |ready| ready.error);
        let error = table.sockets.udp_error(id).unwrap();
        assert_eq!(error.kind, IcmpError::PortUnreachable);
        assert_eq!((error.destination, error.reporter), (gone, Some(gone.ip())));
        assert_eq!(error.quoted, b"x");
        assert_eq!(table.sockets.udp_error(id), None);
    }

    #[test]
    fn each_error_is_told_by_its_kind() {
        use IcmpError as Kind;
        let destination = "192.0.2.1:9".parse().unwrap();
        let told = |origin, kind, code, errno| {
            let (mtu, reporter, hop_limit, quoted) = (1_400, None, None, Vec::new());
            let error = QueuedError {
                destination,
                origin,
                kind,
                code,
                errno,
                mtu,
                reporter,
                hop_limit,
                quoted,
            };
            guest_error(error).map(|error| error.kind)
        };
        assert_eq!(told(Origin::Icmp, 3, 3, 111), Some(Kind::PortUnreachable));
        assert_eq!(told(Origin::Icmp, 3, 1, 113), Some(Kind::HostUnreachable));
        assert_eq!(told(Origin::Icmp, 3, 0, 101), Some(Kind::NetworkUnreachable));
        assert_eq!(told(Origin::Icmp, 3, 13, 113), Some(Kind::Prohibited));
        assert_eq!(told(Origin::Icmp, 3, 4, 90), Some(Kind::TooBig(1_400)));
        assert_eq!(told(Origin::Icmp, 11, 0, 113), Some(Kind::TimeExceeded));
        assert_eq!(told(Origin::Icmp6, 1, 0, 101), Some(Kind::NetworkUnreachable));
        assert_eq!(told(Origin::Icmp6, 1, 3, 113), Some(Kind::HostUnreachable));
        assert_eq!(told(Origin::Icmp6, 1, 4, 111), Some(Kind::PortUnreachable));
        assert_eq!(told(Origin::Icmp6, 2, 0, 90), Some(Kind::TooBig(1_400)));
        assert_eq!(told(Origin::Icmp6, 3, 0, 113), Some(Kind::TimeExceeded));
        assert_eq!(told(Origin::Local, 0, 0, 90), Some(Kind::TooBig(1_400)));
        assert_eq!(told(Origin::Local, 0, 0, 12), None);
        assert_eq!(told(Origin::Icmp, 8, 0, 0), None);
    }
}
