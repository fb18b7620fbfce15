//! `AF_UNIX` sequenced packets: reliable, ordered messages with borders, and descriptors in them.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::call::{self, Control, retry};
use crate::socket_path::{PATH_ROOM, SocketPath};

/// Wanted size of the send buffer, bytes: a message never exceeds it. The kernel caps it at
/// `net.core.wmem_max` (212,992 by default) and doubles it for its own overhead.
const SEND_BUFFER: libc::c_int = 512 * 1024;

/// Most descriptors in one message.
pub const MAX_DESCRIPTORS: usize = 16;

/// One end of a SEQPACKET connection.
#[derive(Debug)]
pub struct SeqPacket {
    fd: OwnedFd,
}

/// A SEQPACKET socket that takes connections on a path.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

impl SeqPacket {
    /// Two connected ends, blocking, close-on-exec.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let mut ends = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: the kernel writes two ints to `ends`, which has room for two.
        call::check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
        let [one, other] = ends;
        let (one, other) = (call::own(one)?, call::own(other)?);
        Ok((Self::from(one), Self::from(other)))
    }

    /// Connects to the listener at `path`, blocking until it has room for us.
    ///
    /// # Errors
    /// `NotFound`: nothing has that name; `ConnectionRefused`: nobody listens there any more.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = call::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
        let path = SocketPath::new(path)?;
        let address = path_address(path.as_ref())?;
        // SAFETY: the pointer and length describe `address`, which the kernel only reads.
        call::check(unsafe {
            libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), call::length(&address))
        })?;
        Ok(Self::from(fd))
    }

    /// Listens on `path`, which must not exist.
    ///
    /// # Errors
    /// `AddrInUse`: the path exists; `NotFound`: its folder does not.
    pub fn listen(path: &Path) -> io::Result<Listener> {
        Listener::bind(path)
    }

    /// Sends one message with descriptors, whole or not at all.
    ///
    /// # Errors
    /// `WouldBlock` (non-blocking and the peer is slow), `BrokenPipe`/`ConnectionReset` (the peer
    /// is gone), `InvalidInput` (empty, or more than [`MAX_DESCRIPTORS`]), `EMSGSIZE`.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.is_empty() || descriptors.len() > MAX_DESCRIPTORS {
            // An empty message would read as the end of the connection.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut part =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = Control::new();
        if !descriptors.is_empty() {
            let numbers: Vec<u8> =
                descriptors.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()).collect();
            if !control.push(libc::SOL_SOCKET, libc::SCM_RIGHTS, &numbers) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
        let mut message = call::message_header();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        control.lend_filled(&mut message);
        retry(|| {
            // SAFETY: `message` points at `part` (which points at `bytes`) and `control`; all
            // outlive the call and the kernel only reads them.
            call::check_len(unsafe {
                libc::sendmsg(self.fd.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
            })
        })
        .map(drop)
    }

    /// Receives one message: its length and descriptors. `Ok((0, []))`: the peer is gone.
    ///
    /// # Errors
    /// `WouldBlock` (non-blocking and there is none), `InvalidData`: the message did not fit
    /// `into`, or brought more than [`MAX_DESCRIPTORS`]; it is lost, its descriptors are closed,
    /// the connection still works.
    pub fn recv(&self, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        self.receive(into, 0)
    }

    /// The same without waiting, whoever made the connection a blocking one.
    ///
    /// # Errors
    /// As [`SeqPacket::recv`]; `WouldBlock`: there is none.
    pub fn recv_now(&self, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        self.receive(into, libc::MSG_DONTWAIT)
    }

    fn receive(&self, into: &mut [u8], flags: libc::c_int) -> io::Result<(usize, Vec<OwnedFd>)> {
        let (len, descriptors) = call::receive_with_descriptors(self.fd.as_fd(), into, flags)?;
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too big"));
        }
        Ok((len, descriptors))
    }

    /// Adopts a descriptor that somebody else says is a SEQPACKET connection.
    ///
    /// # Errors
    /// `InvalidInput`: it is a socket of another type; `ENOTSOCK`: it is no socket.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        if call::option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE)? != libc::SOCK_SEQPACKET {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self::from(fd))
    }

    /// Sends one message, made of parts, without waiting and without descriptors.
    ///
    /// # Errors
    /// As [`SeqPacket::send`].
    pub fn send_parts(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut message = call::message_header();
        // An `IoSlice` is laid out as an `iovec`.
        message.msg_iov = parts.as_mut_ptr().cast();
        message.msg_iovlen = parts.len() as _;
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: `message` points at `parts`, whose slices outlive the call; the kernel only
        // reads them.
        let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, flags) };
        call::check_len(sent).map(drop)
    }

    /// Receives one message without waiting; descriptors that come with it are closed.
    /// `Ok(0)`: the peer is gone.
    ///
    /// # Errors
    /// `WouldBlock`: there is none; `InvalidData`: the message did not fit `into` and is lost.
    pub fn recv_bytes(&self, into: &mut [u8]) -> io::Result<usize> {
        // With MSG_TRUNC the whole length is returned, also of what did not fit.
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let (fd, buffer) = (self.fd.as_raw_fd(), into.as_mut_ptr().cast());
        // SAFETY: the pointer and length describe `into`, which is ours to write.
        let len = call::check_len(unsafe { libc::recv(fd, buffer, into.len(), flags) })?;
        if len > into.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too big"));
        }
        Ok(len)
    }

    /// Makes calls return `WouldBlock` instead of waiting, or wait again.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        call::set_nonblocking(self.fd.as_fd(), nonblocking)
    }
}

impl Listener {
    /// Listens on `path`, which must not exist.
    ///
    /// # Errors
    /// `AddrInUse`: the path exists; `NotFound`: its folder does not.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let fd = call::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
        let path = SocketPath::new(path)?;
        let address = path_address(path.as_ref())?;
        // SAFETY: the pointer and length describe `address`, which the kernel only reads.
        call::check(unsafe {
            libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), call::length(&address))
        })?;
        // SAFETY: no pointers.
        call::check(unsafe { libc::listen(fd.as_raw_fd(), 128) })?;
        Ok(Self::from(fd))
    }

    /// Takes one connection.
    ///
    /// # Errors
    /// `WouldBlock` (non-blocking and there is none), out of descriptors.
    pub fn accept(&self) -> io::Result<SeqPacket> {
        let null = std::ptr::null_mut();
        let fd = retry(|| {
            // SAFETY: null pointers say that the peer's address is not wanted.
            call::check(unsafe {
                libc::accept4(self.fd.as_raw_fd(), null, std::ptr::null_mut(), libc::SOCK_CLOEXEC)
            })
        })?;
        call::own(fd).map(SeqPacket::from)
    }

    /// Makes [`Listener::accept`] return `WouldBlock` instead of waiting, or wait again.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        call::set_nonblocking(self.fd.as_fd(), nonblocking)
    }
}

impl From<OwnedFd> for SeqPacket {
    /// Adopts a connected SEQPACKET descriptor.
    fn from(fd: OwnedFd) -> Self {
        // A smaller send buffer only makes the biggest message smaller, which `send` reports.
        let _ = call::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER);
        Self { fd }
    }
}

impl From<OwnedFd> for Listener {
    /// Adopts a listening SEQPACKET descriptor.
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<SeqPacket> for OwnedFd {
    fn from(socket: SeqPacket) -> Self {
        socket.fd
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        listener.fd
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The kernel's `struct sockaddr_un` for a path: family, then the path with a zero byte.
fn path_address(path: &Path) -> io::Result<Vec<u8>> {
    let name = path.as_os_str().as_bytes();
    if name.is_empty() || name.contains(&0) || name.len() >= PATH_ROOM {
        let why =
            format!("the socket path {} must have 1 to {} bytes", path.display(), PATH_ROOM - 1);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
    Ok([&family.to_ne_bytes()[..], name, &[0]].concat())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_keep_their_borders_and_the_end_is_told() {
        let (one, other) = SeqPacket::pair().unwrap();
        one.send(b"first", &[]).unwrap();
        one.send(b"second", &[]).unwrap();
        drop(one);
        let mut buffer = [0; 64];
        assert_eq!(other.recv(&mut buffer).unwrap().0, 5);
        assert_eq!(&buffer[..5], b"first");
        assert_eq!(other.recv(&mut buffer).unwrap().0, 6);
        assert_eq!(other.recv(&mut buffer).unwrap().0, 0);
        assert_eq!(other.send(b"anyone?", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn descriptors_arrive_open() {
        let (one, other) = SeqPacket::pair().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        one.send(b"x", &[far.as_fd(), far.as_fd()]).unwrap();
        drop(far);
        let (len, mut descriptors) = other.recv(&mut [0; 8]).unwrap();
        assert_eq!((len, descriptors.len()), (1, 2));
        let mut far = UnixStream::from(descriptors.remove(0));
        far.write_all(b"hello").unwrap();
        drop((far, descriptors));
        let mut text = String::new();
        near.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_message_as_big_as_the_control_socket_needs_passes_whole() {
        let (one, other) = SeqPacket::pair().unwrap();
        let sent = vec![7; 160 * 1024];
        one.send(&sent, &[]).unwrap();
        let mut buffer = vec![0; sent.len()];
        assert_eq!(other.recv(&mut buffer).unwrap().0, sent.len());
        assert_eq!(buffer, sent);
    }

    #[test]
    fn a_message_that_does_not_fit_is_refused_and_the_next_is_whole() {
        let (one, other) = SeqPacket::pair().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        one.send(&[1; 100], &[far.as_fd()]).unwrap();
        one.send(b"next", &[]).unwrap();
        drop(far);
        let mut buffer = [0; 64];
        assert_eq!(other.recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(
            (&near).read(&mut [0; 1]).unwrap(),
            0,
            "the refused message's descriptor is closed"
        );
        assert_eq!(other.recv(&mut buffer).unwrap().0, 4);
        assert_eq!(one.send(b"", &[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn parts_arrive_as_one_message() {
        let (one, other) = SeqPacket::pair().unwrap();
        assert_eq!(other.recv_bytes(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let whole = vec![9; 65_565];
        one.send_parts(&mut [IoSlice::new(b"ab"), IoSlice::new(&whole)]).unwrap();
        one.send_parts(&mut [IoSlice::new(b"too big")]).unwrap();
        one.send_parts(&mut [IoSlice::new(b"last")]).unwrap();
        let mut buffer = vec![0; 65_567];
        assert_eq!(other.recv_bytes(&mut buffer).unwrap(), 65_567);
        assert_eq!(&buffer[..4], b"ab\x09\x09");
        let refused = other.recv_bytes(&mut buffer[..3]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert_eq!(other.recv_bytes(&mut buffer).unwrap(), 4);
        let blocked = std::iter::repeat_with(|| one.send_parts(&mut [IoSlice::new(&whole)]));
        let full = blocked.take(1_000).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(other);
        assert!(one.send_parts(&mut [IoSlice::new(b"x")]).is_err());
    }

    #[test]
    fn only_sequenced_packets_are_adopted() {
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(SeqPacket::adopt(near.into()).is_err());
        let (one, _other) = SeqPacket::pair().unwrap();
        SeqPacket::adopt(one.into()).unwrap();
    }

    #[test]
    fn a_listener_takes_connections_by_path() {
        let path = std::env::temp_dir().join(format!("netyard-seqpacket-{}", std::process::id()));
        let listener = SeqPacket::listen(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let client = SeqPacket::connect(&path).unwrap();
        let server = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.send(b"hi", &[]).unwrap();
        assert_eq!(server.recv(&mut [0; 8]).unwrap().0, 2);
        drop(listener);
        // A program that another test starts has a copy of it until it runs.
        let refused = loop {
            if let Err(error) = SeqPacket::connect(&path) {
                break error;
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).unwrap();
        let long = Path::new("/").join("x".repeat(200));
        assert_eq!(SeqPacket::connect(&long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
