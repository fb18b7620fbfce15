//! Many datagrams of one length with one call (`UDP_SEGMENT` and `UDP_GRO` of udp(7)), none of which is cut
//! on its way.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;

use crate::address;
use crate::arrival;
use crate::call::{self, Control};

/// The most datagrams that one call sends (`UDP_MAX_SEGMENTS` before Linux 6.10).
pub const MOST: usize = 64;
/// The most bytes that one call sends: what a length in an IP header can say, without the headers.
pub const MOST_BYTES: usize = 65_535 - 40 - 8;

/// The most batches that one call takes.
pub const BATCHES: usize = 16;
/// Room for any batch, bytes.
pub const ROOM: usize = 65_536;

/// Datagrams that were taken, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Length of all of them, bytes.
    pub len: usize,
    /// Length of each but the last, which may be shorter, bytes.
    pub size: usize,
    /// Who sent them.
    pub from: SocketAddr,
}

/// Sets up a UDP socket: what comes may come in batches, and what leaves is never fragmented, whatever the
/// kernel believes the path takes (`IP_PMTUDISC_PROBE`). `room`: of its buffers, bytes, if the kernel allows
/// that.
///
/// # Errors
/// It is no UDP socket, or the kernel knows no such things (before Linux 5.0).
pub fn prepare(socket: BorrowedFd<'_>, room: u32) -> io::Result<()> {
    call::set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)?;
    if call::local_address(socket)?.is_ipv6() {
        let whole = libc::IPV6_PMTUDISC_PROBE;
        call::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, whole)?;
    }
    // For the IPv4 of a socket of both, too.
    let whole = libc::IP_PMTUDISC_PROBE;
    call::set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, whole)?;
    let room = libc::c_int::try_from(room).unwrap_or(libc::c_int::MAX);
    for (force, ask) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        // The first one passes the system's limit by, with CAP_NET_ADMIN.
        call::set_option(socket, libc::SOL_SOCKET, force, room)
            .or_else(|_| call::set_option(socket, libc::SOL_SOCKET, ask, room))?;
    }
    Ok(())
}

/// Takes what came from one sender in one go.
///
/// # Errors
/// `WouldBlock`: there is nothing. What an earlier datagram met on its way.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Batch> {
    let (len, from, control) = arrival::take(socket, into)?;
    Ok(Batch::of(len, from, &control))
}

/// Takes what came from several senders, with one call (recvmmsg(2)): up to [`BATCHES`] batches, as many as there
/// are pieces of [`ROOM`] bytes in `into`, each at the beginning of one. True if there may be more.
pub(crate) fn receive_many(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    came: &mut Vec<Batch>,
) -> io::Result<bool> {
    came.clear();
    let mut names = [[0; address::ROOM]; BATCHES];
    let mut controls = [const { Control::new() }; BATCHES];
    let mut parts = [const { libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 } }; BATCHES];
    let mut messages =
        [(); BATCHES].map(|()| libc::mmsghdr { msg_hdr: call::message_header(), msg_len: 0 });
    let places = parts.iter_mut().zip(&mut names).zip(&mut controls);
    let mut count = 0;
    for ((piece, message), ((part, name), control)) in
        into.chunks_exact_mut(ROOM).zip(&mut messages).zip(places)
    {
        (part.iov_base, part.iov_len) = (piece.as_mut_ptr().cast(), piece.len());
        let header = &mut message.msg_hdr;
        (header.msg_iov, header.msg_iovlen) = (&raw mut *part, 1);
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = call::length(name);
        control.lend_room(header);
        count += 1;
    }
    let (fd, list) = (socket.as_raw_fd(), messages.as_mut_ptr());
    // SAFETY: each of the first `count` messages points at a part, a name and a control of its own, and the part
    // at its own piece of `into`; all outlive the call and are ours to write.
    let taken = call::check(unsafe {
        libc::recvmmsg(fd, list, count, libc::MSG_DONTWAIT, ptr::null_mut())
    })?;
    let filled = messages.iter().zip(&names).zip(&mut controls);
    for ((message, name), control) in filled.take(usize::try_from(taken).unwrap_or_default()) {
        control.filled(&message.msg_hdr);
        let from = address::decode(name).ok_or(io::ErrorKind::InvalidData)?;
        came.push(Batch::of(usize::try_from(message.msg_len).unwrap_or_default(), from, control));
    }
    Ok(taken.cast_unsigned() == count)
}

impl Batch {
    /// `control`: what came with it.
    fn of(len: usize, from: SocketAddr, control: &Control) -> Self {
        let size = control.iter().find_map(|(level, kind, data)| match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                usize::try_from(libc::c_int::from_ne_bytes(*data.first_chunk()?)).ok()
            }
            _ => None,
        });
        Self { len, size: size.filter(|size| *size > 0).unwrap_or(len), from }
    }
}

/// Sends datagrams of `size` bytes, one behind the other in `bytes`, the last of which may be shorter: at most
/// [`MOST`], and [`MOST_BYTES`] in all. They leave from an address of this machine, if one is named; the port
/// is the socket's own.
///
/// # Errors
/// `WouldBlock`, `EMSGSIZE`: longer than the link takes; `EIO`: the link wants them one by one; no route,
/// what an earlier datagram met on its way.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    size: u16,
    from: Option<SocketAddr>,
    to: SocketAddr,
) -> io::Result<usize> {
    let mut control = Control::new();
    if let Some(from) = from {
        arrival::push_source(&mut control, from);
    }
    if bytes.len() > size.into() {
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }
    call::send_message(socket, bytes, to, &mut control)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use super::*;
    use crate::wait;

    #[test]
    fn what_was_sent_in_one_go_comes_whole_and_in_order() {
        for (any, address) in [("127.0.0.1:0", "127.0.0.1:0"), ("[::]:0", "[::1]:0")] {
            let (server, client) =
                (UdpSocket::bind(any).unwrap(), UdpSocket::bind(address).unwrap());
            for socket in [&server, &client] {
                prepare(socket.as_fd(), 1 << 20).unwrap();
            }
            let to = SocketAddr::new(
                client.local_addr().unwrap().ip(),
                server.local_addr().unwrap().port(),
            );
            let sent: Vec<u8> = (0..4500_u32).map(|at| (at % 251) as u8).collect();
            assert_eq!(send(client.as_fd(), &sent, 1000, None, to).unwrap(), 4500);
            let (mut came, mut room) = (Vec::new(), vec![0; 65_535]);
            while came.len() < sent.len() {
                let long = Some(Duration::from_secs(20));
                assert_eq!(wait::readable([server.as_fd()], long).unwrap(), [true]);
                let batch = receive(server.as_fd(), &mut room).unwrap();
                assert_eq!(batch.from, client.local_addr().unwrap());
                assert!(batch.size == 1000 || batch.len == 500, "{batch:?}");
                came.extend_from_slice(&room[..batch.len]);
            }
            assert_eq!(came, sent);
            let from = SocketAddr::new(to.ip(), 0);
            let answer =
                send(server.as_fd(), b"one", 1000, Some(from), client.local_addr().unwrap());
            assert_eq!(answer.unwrap(), 3);
            let mut buffer = [0; 8];
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (3, to));
        }
    }
}
