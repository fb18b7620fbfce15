//! A UDP socket on a tokio runtime, with many datagrams in a call.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::os::fd::AsFd as _;

use netyard_sys::segments;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Room of the socket's buffers, bytes: some milliseconds of what a fast link carries.
const ROOM: u32 = 4 * 1024 * 1024;
/// Read before others have their turn, bytes.
const TURN: usize = 128 * 1024;
/// Errors of datagrams sent before that a read passes by.
const ERRORS: u32 = 8;
/// `asm-generic/errno-base.h`.
const EIO: i32 = 5;

/// A UDP socket.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
    /// The link wants datagrams one by one.
    is_slow: Cell<bool>,
}

impl Socket {
    /// A hub's, for all its peers.
    pub(crate) fn at_hub(listen: SocketAddr) -> io::Result<Self> {
        Self::of(StdSocket::bind(listen)?)
    }

    /// A peer's, to its hub, with the mark of what goes outside of the tunnel, if it needs one.
    pub(crate) fn to_hub(hub: SocketAddr, mark: Option<u32>) -> io::Result<Self> {
        Self::of(connected(hub, mark)?)
    }

    /// The address that the kernel sends from to this one now, by a socket with this mark. Nothing is sent.
    pub(crate) fn source(to: SocketAddr, mark: Option<u32>) -> io::Result<IpAddr> {
        Ok(connected(to, mark)?.local_addr()?.ip())
    }

    fn of(socket: StdSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        segments::prepare(socket.as_fd(), ROOM)?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, is_slow: Cell::new(false) })
    }

    /// Sends datagrams of `size` bytes, the last of which may be shorter, one behind the other in `bytes`,
    /// from this address if one is named. Does not wait.
    pub(crate) fn send(
        &self,
        bytes: &[u8],
        size: usize,
        from: Option<SocketAddr>,
        to: SocketAddr,
    ) -> io::Result<()> {
        let size = size.max(1);
        let together = segments::MOST.min(segments::MOST_BYTES / size).max(1);
        let each = u16::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        for some in bytes.chunks(together * size) {
            let mut sent = Ok(0);
            if !self.is_slow.get() || some.len() <= size {
                sent = segments::send(self.socket.as_fd(), some, each, from, to);
                let is_refused =
                    some.len() > size && matches!(&sent, Err(it) if it.raw_os_error() == Some(EIO));
                if !is_refused {
                    sent?;
                    continue;
                }
                self.is_slow.set(true);
            }
            for one in some.chunks(size) {
                sent = segments::send(self.socket.as_fd(), one, each, from, to);
            }
            sent?;
        }
        Ok(())
    }

    /// Waits for datagrams, and hands each to `handle`, until none is there or others are to have their turn.
    pub(crate) async fn receive(
        &self,
        room: &mut [u8],
        mut handle: impl FnMut(SocketAddr, &mut [u8]),
    ) -> io::Result<()> {
        self.socket.readable().await?;
        let (mut count, mut errors) = (0, 0);
        while count < TURN {
            let read = || segments::receive(self.socket.as_fd(), room);
            match self.socket.try_io(Interest::READABLE, read) {
                Ok(batch) => {
                    count += batch.len.max(1);
                    let came = room.get_mut(..batch.len).unwrap_or_default();
                    came.chunks_mut(batch.size.max(1)).for_each(|one| handle(batch.from, one));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What became of one that was sent: whether it got there is seen by answers.
                Err(_) if errors < ERRORS => errors += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A socket that sends to one address, with this mark if any.
fn connected(to: SocketAddr, mark: Option<u32>) -> io::Result<StdSocket> {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = StdSocket::bind(any)?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(to)?;
    Ok(socket)
}
