//! Stream sockets on the host: TCP connections and listeners, ends of Unix socket pairs.
//!
//! Every call is non-blocking. The receive queue is looked at without taking from it
//! ([`Stream::peek`]) and shortened when the bytes are no longer needed ([`Stream::discard`]).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::address;
use crate::call;

/// Size of the area into which bytes before a wanted offset are peeked again, on kernels without
/// `SO_PEEK_OFF` for TCP (before Linux 6.9).
const SKIP_AREA: usize = 16 * 1024;

/// How often that area is repeated at most in one call: some 16 MiB can be skipped. Stays below
/// `UIO_MAXIOV` (1,024).
const SKIP_PARTS: usize = 1_000;

/// How a stream skips bytes that were peeked before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Skip {
    /// Nothing was peeked yet; not known.
    Unknown,
    /// The kernel keeps an offset (`SO_PEEK_OFF`), and this is it. It moves on with each peek and
    /// back with each discard.
    Offset(usize),
    /// The bytes are peeked again and thrown away.
    Again,
}

/// A connected, or connecting, stream socket.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    skip: Skip,
    tcp: bool,
}

impl Stream {
    /// Starts a TCP connection; it becomes writable when it is open or has failed.
    ///
    /// # Errors
    /// What the kernel said at once.
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        Self::connect_by(unconnected(to.is_ipv4())?, to)
    }

    /// The same by a socket that is there, of whichever network namespace it is: see [`unconnected`].
    ///
    /// # Errors
    /// It is no TCP socket, or not of that family; what the kernel said at once.
    pub fn connect_by(fd: OwnedFd, to: SocketAddr) -> io::Result<Self> {
        let stream = Self::adopt(fd)?;
        if !stream.tcp {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match call::connect(stream.as_fd(), to) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(stream),
        }
    }

    /// Our own end.
    ///
    /// # Errors
    /// What the kernel said; it is no TCP connection.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        call::local_address(self.fd.as_fd())
    }

    /// Adopts a connected stream descriptor, TCP or Unix, and makes it non-blocking.
    ///
    /// # Errors
    /// It is no stream socket.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        if call::option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE)? != libc::SOCK_STREAM {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let tcp =
            call::option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL)? == libc::IPPROTO_TCP;
        call::set_nonblocking(fd.as_fd(), true)?;
        Ok(Self { fd, skip: Skip::Unknown, tcp })
    }

    /// The descriptor, for somebody who waits in reads and writes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn into_blocking(self) -> io::Result<OwnedFd> {
        call::set_nonblocking(self.fd.as_fd(), false)?;
        Ok(self.fd)
    }

    /// The descriptor, for other calls.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Takes the pending error (`SO_ERROR`): the outcome of [`Stream::connect`].
    ///
    /// # Errors
    /// The pending error.
    pub fn take_error(&self) -> io::Result<()> {
        match call::option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR)? {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Copies received bytes that lie `offset` bytes into the queue, and leaves them there.
    /// `Ok(0)`: the stream ends at that offset.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing at that offset yet; else the stream's error.
    pub fn peek(&mut self, offset: usize, into: &mut [u8]) -> io::Result<usize> {
        if self.skip != Skip::Again && self.skip != Skip::Offset(offset) {
            self.seek(offset)?;
        }
        let Skip::Offset(at) = &mut self.skip else { return self.peek_again(offset, into) };
        let len = receive(self.fd.as_fd(), into, libc::MSG_PEEK)?;
        *at += len;
        Ok(len)
    }

    /// Takes received bytes. `Ok(0)`: the stream has ended.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing now; else the stream's error.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        receive(self.fd.as_fd(), into, 0)
    }

    /// Takes `count` bytes off the receive queue; returns how many there were.
    ///
    /// # Errors
    /// `WouldBlock`: there were none; else the stream's error.
    pub fn discard(&mut self, count: usize) -> io::Result<usize> {
        let mut taken = 0;
        while taken < count {
            match self.discard_some(count - taken) {
                Ok(0) => break,
                Ok(some) => taken += some,
                Err(_) if taken > 0 => break,
                Err(error) => return Err(error),
            }
        }
        if let Skip::Offset(at) = &mut self.skip {
            *at = at.saturating_sub(taken);
        }
        Ok(taken)
    }

    /// Hands bytes to the stream; returns how many it took.
    ///
    /// # Errors
    /// `WouldBlock`: it takes none now; else the stream's error.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let (fd, flags) = (self.fd.as_raw_fd(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
        // SAFETY: the pointer and length describe `bytes`, which the kernel only reads.
        call::check_len(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
    }

    /// Sends FIN once everything handed over is sent.
    ///
    /// # Errors
    /// The stream's error.
    pub fn shutdown_write(&self) -> io::Result<()> {
        // SAFETY: no pointers.
        call::check(unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_WR) }).map(drop)
    }

    /// Closes with RST: what was not sent is thrown away.
    pub fn reset(self) {
        // struct linger { on, seconds }
        let linger = [1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()].concat();
        // A stream that has no linger is closed without.
        let _ = call::set_option_bytes(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger);
    }

    /// Bytes that the stream would take now: its send buffer less what is queued, overhead counted
    /// (`SO_MEMINFO`).
    #[must_use]
    pub fn send_room(&self) -> Option<usize> {
        /// Places in the array of `u32` that `SO_MEMINFO` fills (`linux/sock_diag.h`).
        const SK_MEMINFO_WMEM_ALLOC: usize = 2;
        const SK_MEMINFO_SNDBUF: usize = 3;
        const SK_MEMINFO_WMEM_QUEUED: usize = 5;
        let mut bytes = [0; 4 * 9];
        let fd = self.fd.as_fd();
        let len = call::option_bytes(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut bytes).ok()?;
        let words = bytes.get(..len)?.as_chunks().0;
        let word = |at: usize| words.get(at).map(|word| u32::from_ne_bytes(*word));
        // TCP counts what it has queued; Unix streams count what the other end has not read.
        let used = word(if self.tcp { SK_MEMINFO_WMEM_QUEUED } else { SK_MEMINFO_WMEM_ALLOC })?;
        usize::try_from(word(SK_MEMINFO_SNDBUF)?.saturating_sub(used)).ok()
    }

    /// Asks the kernel to peek from `offset` on; falls back to peeking again.
    fn seek(&mut self, offset: usize) -> io::Result<()> {
        let value = libc::c_int::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let seen = call::set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, value);
        self.skip = if seen.is_ok() { Skip::Offset(offset) } else { Skip::Again };
        Ok(())
    }

    /// [`Stream::peek`] for kernels without `SO_PEEK_OFF`.
    fn peek_again(&self, offset: usize, into: &mut [u8]) -> io::Result<usize> {
        let seen = peek_past(self.fd.as_fd(), offset, into)?;
        if seen > offset {
            return Ok(seen - offset);
        }
        // Nothing at the offset: the end of the stream, if the FIN is in the queue. What came
        // before the FIN may have come since, so look once more.
        if self.fin_received() && peek_past(self.fd.as_fd(), offset, into)? == seen {
            return Ok(0);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// True once the other end's FIN is in the queue.
    fn fin_received(&self) -> bool {
        /// Of `enum tcp_state`: `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`, `TIME_WAIT`, `CLOSE`.
        const AFTER_FIN: [u8; 5] = [8, 9, 11, 6, 7];
        // The first byte of `struct tcp_info` is `tcpi_state`.
        let mut state = [0; 1];
        let fd = self.fd.as_fd();
        let len = call::option_bytes(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state);
        matches!(len, Ok(1)) && AFTER_FIN.contains(&state[0])
    }

    /// One call of [`Stream::discard`].
    fn discard_some(&self, count: usize) -> io::Result<usize> {
        if !self.tcp {
            // Unix streams do not honour MSG_TRUNC: the bytes have to be read.
            let mut scratch = [0; 16 * 1024];
            let room = count.min(scratch.len());
            return receive(self.fd.as_fd(), scratch.get_mut(..room).unwrap_or_default(), 0);
        }
        let (fd, flags) = (self.fd.as_raw_fd(), libc::MSG_TRUNC | libc::MSG_DONTWAIT);
        // SAFETY: with MSG_TRUNC, TCP drops the bytes and never writes to the buffer, tcp(7).
        call::check_len(unsafe { libc::recv(fd, std::ptr::null_mut(), count, flags) })
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Copies the bytes that wait first in a stream socket and leaves them there: how many were copied, and how
/// many wait in all. `(0, 0)`: the other end is gone.
///
/// # Errors
/// `WouldBlock`: there are none; else the socket's error.
pub fn look_ahead(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(usize, usize)> {
    let copied = receive(fd, into, libc::MSG_PEEK)?;
    let mut waiting: libc::c_int = 0;
    // SAFETY: the request writes one int, which is ours.
    call::check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut waiting) })?;
    Ok((copied, usize::try_from(waiting).unwrap_or_default()))
}

/// Takes bytes and the descriptors that come with them from a Unix stream socket. `Ok((0, []))`: the other end
/// is gone.
///
/// # Errors
/// `WouldBlock`; `InvalidData`: more descriptors came than are taken, or than this process can have, and are
/// lost; else the socket's error.
pub fn receive_with_descriptors(
    fd: BorrowedFd<'_>,
    into: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    call::receive_with_descriptors(fd, into, libc::MSG_DONTWAIT)
}

/// A TCP socket of this network namespace that leads nowhere yet (`TCP_NODELAY` set), for [`Stream::connect_by`].
///
/// # Errors
/// Out of descriptors; the kernel has no such family.
pub fn unconnected(ipv4: bool) -> io::Result<OwnedFd> {
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    let fd = call::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK)?;
    call::set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    Ok(fd)
}

/// A TCP port of ours, open or closed; or a Unix socket that listens.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    tcp: bool,
}

impl Listener {
    /// Binds a TCP port, nobody else's from here on; connections are refused until
    /// [`Listener::set_listening`]. Port 0 lets the kernel choose.
    ///
    /// A bound port is only ours for sure once it has listened: two sockets that merely bind may
    /// share it under `SO_REUSEADDR`. So this listens, and stops at once.
    ///
    /// # Errors
    /// `AddrInUse`, `PermissionDenied`, `AddrNotAvailable`, ...
    pub fn bind(at: SocketAddr) -> io::Result<Self> {
        let listener = Self::bound(at)?;
        // The kernel gives up a port that it chose itself when listening ends, so ask for it by
        // number, while the first socket still keeps it for us.
        let listener = match at.port() {
            0 => Self::bound(listener.local_address()?)?,
            _ => listener,
        };
        listener.set_listening(true)?;
        listener.set_listening(false)?;
        Ok(listener)
    }

    fn bound(at: SocketAddr) -> io::Result<Self> {
        let fd = call::socket(address::family(at), libc::SOCK_STREAM | libc::SOCK_NONBLOCK)?;
        call::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        call::bind(fd.as_fd(), at)?;
        Ok(Self { fd, tcp: true })
    }

    /// Adopts a Unix stream socket that listens, and makes it non-blocking, for everybody who has it.
    ///
    /// # Errors
    /// `InvalidInput`: it is none.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let option = |name| call::option(fd.as_fd(), libc::SOL_SOCKET, name);
        let is = option(libc::SO_DOMAIN)? == libc::AF_UNIX
            && option(libc::SO_TYPE)? == libc::SOCK_STREAM
            && option(libc::SO_ACCEPTCONN)? != 0;
        if !is {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        call::set_nonblocking(fd.as_fd(), true)?;
        Ok(Self { fd, tcp: false })
    }

    /// Binds a TCP port for what comes in by one interface, given by its number, and listens. The
    /// address may come later.
    ///
    /// # Errors
    /// `AddrInUse`: somebody listens there, or on all interfaces; `PermissionDenied`.
    pub fn listen_on(interface: u32, at: SocketAddr) -> io::Result<Self> {
        let fd = call::socket(address::family(at), libc::SOCK_STREAM | libc::SOCK_NONBLOCK)?;
        call::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        call::confine(fd.as_fd(), interface, at)?;
        call::bind(fd.as_fd(), at)?;
        let listener = Self { fd, tcp: true };
        listener.set_listening(true)?;
        Ok(listener)
    }

    /// Opens the port, or closes it: then connections are refused and the port stays ours.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_listening(&self, listening: bool) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        if listening {
            // Connections inherit it, so that their TIME-WAIT does not block the port for us.
            self.share(true)?;
            // SAFETY: no pointers.
            call::check(unsafe { libc::listen(fd, libc::SOMAXCONN) })?;
        } else {
            // SAFETY: no pointers.
            call::check(unsafe { libc::shutdown(fd, libc::SHUT_RD) })?;
            // Without it nobody can bind the port beside us while we do not listen.
            self.share(false)?;
        }
        Ok(())
    }

    /// Takes one connection (`TCP_NODELAY` set) and the client's address. A client by a Unix socket has none, and is
    /// told as port 0 of this machine's 127.0.0.1.
    ///
    /// # Errors
    /// `WouldBlock`: there is none; out of descriptors.
    pub fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let mut from = [0; address::ROOM];
        let mut len = call::length(&from);
        let (fd, flags) = (self.fd.as_raw_fd(), libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        // SAFETY: `from` has room for `len` bytes; both outlive the call.
        let accepted = unsafe { libc::accept4(fd, from.as_mut_ptr().cast(), &raw mut len, flags) };
        let fd = call::own(accepted)?;
        if !self.tcp {
            let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            return Ok((Stream { fd, skip: Skip::Unknown, tcp: false }, client));
        }
        let client = address::decode(&from).ok_or(io::ErrorKind::InvalidData)?;
        call::set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        Ok((Stream { fd, skip: Skip::Unknown, tcp: true }, client))
    }

    /// The descriptor, for other calls.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        call::local_address(self.fd.as_fd())
    }

    fn share(&self, share: bool) -> io::Result<()> {
        call::set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, share.into())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `recv(2)` without waiting.
fn receive(fd: BorrowedFd<'_>, into: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the pointer and length describe `into`, which is ours to write.
    call::check_len(unsafe {
        libc::recv(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), flags)
    })
}

/// Peeks `offset` bytes that are thrown away, then bytes into `into`; returns how many in all.
fn peek_past(fd: BorrowedFd<'_>, offset: usize, into: &mut [u8]) -> io::Result<usize> {
    if offset.div_ceil(SKIP_AREA) > SKIP_PARTS {
        // Beyond what is skipped in one call: it is seen when earlier bytes have been discarded.
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let mut area = vec![0_u8; offset.min(SKIP_AREA)];
    let mut parts = Vec::with_capacity(offset.div_ceil(SKIP_AREA) + 1);
    let mut left = offset;
    while left > 0 {
        let len = left.min(area.len());
        parts.push(libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: len });
        left -= len;
    }
    parts.push(libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() });
    let mut message = call::message_header();
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: each part lies within `area` or `into`, which outlive the call and are ours to
    // write; nothing else refers to `area`, so it may be written more than once.
    call::check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::poll::{Events, Interest, Poll};
    use crate::wait;

    const LOOPBACK: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];
    const LONG: Duration = Duration::from_secs(10);

    /// Our end of a TCP connection that we opened, and the far end.
    fn opened(address: &str) -> (Stream, TcpStream) {
        let listener = TcpListener::bind(address).unwrap();
        let stream = Stream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        wait_settled(&stream);
        stream.take_error().unwrap();
        (stream, far)
    }

    fn wait_readable(fd: BorrowedFd<'_>) {
        assert_eq!(wait::readable([fd], Some(LONG)).unwrap(), [true]);
    }

    /// Waits until the connection is open or has failed.
    fn wait_settled(stream: &Stream) {
        let (poll, mut events) = (Poll::new().unwrap(), Events::new());
        poll.add(stream.as_fd(), 0, Interest::ReadableOrWritable).unwrap();
        poll.wait(&mut events, Some(LONG)).unwrap();
        assert_eq!(events.iter().count(), 1);
    }

    /// Repeats until it holds.
    fn eventually(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + LONG;
        while !condition() {
            assert!(Instant::now() < deadline, "it never came to hold");
            std::thread::yield_now();
        }
    }

    /// What both kinds of stream and both ways of skipping must do.
    fn peeks_and_discards(mut stream: Stream, mut far: impl Write) {
        let mut buffer = [0; 16];
        far.write_all(b"0123456789").unwrap();
        wait_readable(stream.as_fd());
        eventually(|| matches!(stream.peek(0, &mut buffer), Ok(10)));
        assert_eq!(stream.peek(0, &mut buffer[..4]).unwrap(), 4);
        assert_eq!(stream.peek(4, &mut buffer[..4]).unwrap(), 4);
        assert_eq!(&buffer[..4], b"4567");
        assert_eq!(stream.peek(8, &mut buffer).unwrap(), 2);
        assert_eq!(stream.peek(10, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // A hole is peeked again, then what follows.
        assert_eq!(stream.peek(2, &mut buffer[..3]).unwrap(), 3);
        assert_eq!(&buffer[..3], b"234");
        assert_eq!(stream.discard(6).unwrap(), 6);
        assert_eq!(stream.peek(0, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"6789");
        far.write_all(b"ab").unwrap();
        eventually(|| matches!(stream.peek(4, &mut buffer), Ok(2)));
        assert_eq!(&buffer[..2], b"ab");
        drop(far);
        eventually(|| matches!(stream.peek(6, &mut buffer), Ok(0)));
        assert_eq!(stream.peek(5, &mut buffer).unwrap(), 1);
        assert_eq!(stream.discard(6).unwrap(), 6);
        assert_eq!(stream.peek(0, &mut buffer).unwrap(), 0);
    }

    #[test]
    fn tcp_is_peeked_at_any_offset_and_discarded() {
        for address in LOOPBACK {
            let (stream, far) = opened(address);
            peeks_and_discards(stream, far);
        }
    }

    #[test]
    fn tcp_is_peeked_without_a_peek_offset_too() {
        let (mut stream, far) = opened(LOOPBACK[0]);
        stream.skip = Skip::Again;
        peeks_and_discards(stream, far);
    }

    #[test]
    fn a_big_skip_repeats_the_area() {
        let (mut stream, mut far) = opened(LOOPBACK[0]);
        stream.skip = Skip::Again;
        let sent: Vec<u8> = (0..60_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut buffer = [0; 1_000];
        let writer = std::thread::spawn(move || {
            far.write_all(&sent).unwrap();
            (far, sent)
        });
        eventually(|| matches!(stream.peek(50_000, &mut buffer), Ok(1_000)));
        let (_far, sent) = writer.join().unwrap();
        assert_eq!(buffer[..], sent[50_000..51_000]);
        assert_eq!(stream.discard(50_000).unwrap(), 50_000);
        assert_eq!(stream.peek(0, &mut buffer).unwrap(), 1_000);
        assert_eq!(buffer[..], sent[50_000..51_000]);
    }

    #[test]
    fn unix_streams_are_peeked_at_any_offset_and_discarded() {
        let (near, far) = UnixStream::pair().unwrap();
        peeks_and_discards(Stream::adopt(near.into()).unwrap(), far);
    }

    #[test]
    fn the_room_shrinks_as_the_far_end_does_not_read() {
        let (tcp, _tcp_far) = opened(LOOPBACK[0]);
        let (near, _unix_far) = UnixStream::pair().unwrap();
        for stream in [tcp, Stream::adopt(near.into()).unwrap()] {
            let empty = stream.send_room().unwrap();
            assert!(empty > 0);
            let chunk = [0; 64 * 1024];
            // What waits may still move to the far end after the first refusal, and leave room once more.
            eventually(|| {
                let full = std::iter::repeat_with(|| stream.send(&chunk)).find_map(Result::err);
                assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
                stream.send_room().unwrap() < chunk.len()
            });
        }
    }

    #[test]
    fn a_closed_listener_refuses_and_keeps_its_port() {
        for address in LOOPBACK {
            let listener = Listener::bind(address.parse().unwrap()).unwrap();
            let at = listener.local_address().unwrap();
            for _ in 0..3 {
                let refused = TcpStream::connect(at).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
                // Both with SO_REUSEADDR (std sets it) and by our own means.
                assert_eq!(TcpListener::bind(at).unwrap_err().kind(), io::ErrorKind::AddrInUse);
                assert_eq!(Listener::bind(at).unwrap_err().kind(), io::ErrorKind::AddrInUse);

                listener.set_listening(true).unwrap();
                assert_eq!(TcpListener::bind(at).unwrap_err().kind(), io::ErrorKind::AddrInUse);
                let mut client = TcpStream::connect(at).unwrap();
                wait_readable(listener.as_fd());
                let (accepted, from) = listener.accept().unwrap();
                assert_eq!(from, client.local_addr().unwrap());
                assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
                listener.set_listening(false).unwrap();
                // An accepted connection lives on; closing it from our side leaves TIME-WAIT.
                accepted.send(b"x").unwrap();
                drop(accepted);
                assert_eq!(client.read(&mut [0; 2]).unwrap(), 1);
            }
        }
    }

    #[test]
    fn a_reset_reaches_the_other_end() {
        let (stream, mut far) = opened(LOOPBACK[0]);
        stream.reset();
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_refused_connection_is_told_by_the_pending_error() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        match Stream::connect(listener.local_address().unwrap()) {
            Ok(stream) => {
                wait_settled(&stream);
                assert_eq!(
                    stream.take_error().unwrap_err().kind(),
                    io::ErrorKind::ConnectionRefused
                );
                stream.take_error().unwrap();
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
        }
    }

    #[test]
    fn a_unix_listener_of_somebody_else_is_adopted_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        let theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let listener = Listener::adopt(theirs.try_clone().unwrap().into()).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut client = UnixStream::connect(&path).unwrap();
        let (stream, from) = listener.accept().unwrap();
        assert_eq!(from, "127.0.0.1:0".parse().unwrap());
        stream.send(b"x").unwrap();
        assert_eq!(client.read(&mut [0; 2]).unwrap(), 1);
        let connected = UnixStream::pair().unwrap().0;
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        for other in [OwnedFd::from(connected), OwnedFd::from(port)] {
            let error = Listener::adopt(other).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn only_streams_are_adopted() {
        let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(Stream::adopt(datagram.into()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
