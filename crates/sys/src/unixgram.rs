//! Frames on a Unix socket of datagrams: one in each, and nothing else, as QEMU's `-netdev dgram` (7.2) and what
//! speaks vfkit's `unixgram` have it.
//!
//! There is no connection: whoever sent last is the other end, which may go and come again. The kernel does not
//! tell when the other end has room again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::call;

/// What vfkit and libkrun send first, which is no frame.
const HELLO: &[u8] = b"VFKT";

/// Our end of such a socket, bound to a path.
#[derive(Debug)]
pub struct Unixgram {
    socket: UnixDatagram,
    /// Who sent last.
    other: Option<SocketAddr>,
}

impl Unixgram {
    /// Takes over a bound socket of datagrams.
    ///
    /// # Errors
    /// It is something else.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let option = |name| call::option(fd.as_fd(), libc::SOL_SOCKET, name);
        let is =
            option(libc::SO_DOMAIN)? == libc::AF_UNIX && option(libc::SO_TYPE)? == libc::SOCK_DGRAM;
        if !is {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let socket = UnixDatagram::from(fd);
        socket.set_nonblocking(true)?;
        Ok(Self { socket, other: None })
    }

    /// The next frame: its length.
    ///
    /// # Errors
    /// `WouldBlock`; `Interrupted`: it was no frame, the next may be; `InvalidData`: it fills `into`, and may be
    /// longer.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (len, from) = self.socket.recv_from(into)?;
        if !from.is_unnamed() {
            self.other = Some(from);
        }
        match into.get(..len) {
            Some([] | HELLO) => Err(io::ErrorKind::Interrupted.into()),
            _ if len >= into.len() => Err(io::ErrorKind::InvalidData.into()),
            _ => Ok(len),
        }
    }

    /// Sends a frame to the other end.
    ///
    /// # Errors
    /// `WouldBlock`: the other end is behind; `HostUnreachable`: nobody is there, or takes it from us; else the frame
    /// is lost.
    pub fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        use io::ErrorKind::{
            BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected, NotFound,
        };
        let absent = || io::Error::from(io::ErrorKind::HostUnreachable);
        let other = self.other.as_ref().ok_or_else(absent)?;
        match self.socket.send_to_addr(frame, other) {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), ConnectionRefused | NotFound) => {
                // Whoever comes next says where.
                self.other = None;
                Err(absent())
            }
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected) => {
                Err(absent())
            }
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Unixgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use super::*;

    fn ours(folder: &Path) -> Unixgram {
        Unixgram::adopt(UnixDatagram::bind(folder.join("ours")).unwrap().into()).unwrap()
    }

    #[test]
    fn the_other_end_is_who_sent_last_and_may_come_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut ours = ours(folder.path());
        let (at, mut room) = (folder.path().join("ours"), [0; 100]);
        assert_eq!(ours.write(b"frame").unwrap_err().kind(), ErrorKind::HostUnreachable);
        assert_eq!(ours.read(&mut room).unwrap_err().kind(), ErrorKind::WouldBlock);
        let path = folder.path().join("theirs");
        for _ in 0..2 {
            let theirs = UnixDatagram::bind(&path).unwrap();
            theirs.send_to(b"VFKT", &at).unwrap();
            theirs.send_to(b"", &at).unwrap();
            for kind in [ErrorKind::Interrupted, ErrorKind::Interrupted, ErrorKind::WouldBlock] {
                assert_eq!(ours.read(&mut room).unwrap_err().kind(), kind);
            }
            // Its hello has said where it is.
            ours.write(b"frame").unwrap();
            assert_eq!(theirs.recv(&mut room).unwrap(), 5);
            theirs.send_to(b"answer", &at).unwrap();
            assert_eq!(ours.read(&mut room).unwrap(), 6);
            assert_eq!(&room[..6], b"answer");
            drop(theirs);
            // A program that another test starts has a copy of it until it runs, and that fills up.
            let gone = loop {
                match ours.write(b"frame") {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => break error,
                    _ => {}
                }
            };
            assert_eq!(gone.kind(), ErrorKind::HostUnreachable);
            std::fs::remove_file(&path).unwrap();
        }
        // Who is connected to us hears us, too, and who has no name cannot be answered.
        let connected = UnixDatagram::bind(&path).unwrap();
        connected.connect(&at).unwrap();
        connected.send(b"frame").unwrap();
        UnixDatagram::unbound().unwrap().send_to(b"nameless", &at).unwrap();
        assert_eq!((ours.read(&mut room).unwrap(), ours.read(&mut room).unwrap()), (5, 8));
        ours.write(b"both").unwrap();
        assert_eq!(connected.recv(&mut room).unwrap(), 4);
    }

    #[test]
    fn a_full_socket_and_a_long_frame_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut ours = ours(folder.path());
        let theirs = UnixDatagram::bind(folder.path().join("theirs")).unwrap();
        let at = folder.path().join("ours");
        theirs.send_to(&[1; 100], &at).unwrap();
        theirs.send_to(&[2; 99], &at).unwrap();
        let mut room = [0; 100];
        assert_eq!(ours.read(&mut room).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(ours.read(&mut room).unwrap(), 99);
        let mut taken = 0;
        let full = loop {
            match ours.write(&[3; 1_000]) {
                Ok(()) => taken += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        for _ in 0..taken {
            theirs.recv(&mut [0; 1_000]).unwrap();
        }
        ours.write(b"again").unwrap();
    }

    #[test]
    fn only_sockets_of_datagrams_are_adopted() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for other in [OwnedFd::from(stream), OwnedFd::from(udp)] {
            let error = Unixgram::adopt(other).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    }
}
