//! Datagrams with the address of this machine that they were sent to, for sockets that are bound to every
//! address: an answer has to leave from there, not from where the kernel would have it (`IP_PKTINFO` of
//! ip(7), `IPV6_RECVPKTINFO` of RFC 3542 section 6).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::BorrowedFd;

use crate::call::{self, Control};

/// A datagram that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// Its length, bytes.
    pub len: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// The address of this machine that it was sent to, with the link where that is link-local; of what came to
    /// many machines the one to answer from. The port is 0. `None`: the kernel does not say, or it is no
    /// address to answer from.
    pub at: Option<SocketAddr>,
}

/// Has the kernel say of each datagram which address it was sent to; for what arrived before it does not.
///
/// # Errors
/// It is no socket of IPv4 or IPv6.
pub fn tell(socket: BorrowedFd<'_>) -> io::Result<()> {
    match call::local_address(socket)? {
        SocketAddr::V4(_) => call::set_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
        SocketAddr::V6(_) => {
            // Of a block that is this machine's as a whole it takes packets for every address, but sends from
            // none unless the socket may use any.
            call::set_option(socket, libc::IPPROTO_IPV6, call::FREE_BIND6, 1)?;
            call::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
        }
    }
}

/// Takes one datagram. What does not fit `into` is cut off.
///
/// # Errors
/// `WouldBlock`: there is none. What an earlier datagram met on its way.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Arrived> {
    let (len, from, control) = take(socket, into)?;
    let at = control.iter().find_map(|(level, kind, data)| match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => read4(data),
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => read6(data),
        _ => None,
    });
    Ok(Arrived { len, from, at })
}

/// Sends one datagram from an address of this machine; its port is the socket's own.
///
/// # Errors
/// `WouldBlock`, `EMSGSIZE`, no route, what an earlier datagram met on its way; `InvalidInput` or
/// `NetworkUnreachable`: the address is not, or no longer, this machine's.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    from: SocketAddr,
    to: SocketAddr,
) -> io::Result<usize> {
    let mut control = Control::new();
    push_source(&mut control, from);
    call::send_message(socket, bytes, to, &mut control)
}

/// Takes one datagram: its length and sender, and what the kernel says of it.
pub(crate) fn take(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
) -> io::Result<(usize, SocketAddr, Control)> {
    let (len, from, control) = call::receive_message(socket, into, 0)?;
    Ok((len, from.ok_or(io::ErrorKind::InvalidData)?, control))
}

/// Says from which address of this machine a datagram leaves.
pub(crate) fn push_source(control: &mut Control, from: SocketAddr) {
    match from {
        SocketAddr::V4(from) => {
            control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &write4(*from.ip()))
        }
        SocketAddr::V6(from) => control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &write6(from)),
    };
}

/// Reads a `struct in_pktinfo`: the interface, the address to answer from, and the one in the header, which
/// may be that of a group.
fn read4(data: &[u8]) -> Option<SocketAddr> {
    let (_, rest) = data.split_first_chunk::<4>()?;
    let address = Ipv4Addr::from(*rest.first_chunk::<4>()?);
    (!address.is_unspecified()).then(|| SocketAddr::new(address.into(), 0))
}

/// Writes one. The route to the other end says by which interface it leaves.
fn write4(from: Ipv4Addr) -> [u8; 12] {
    let [a, b, c, d] = from.octets();
    [0, 0, 0, 0, a, b, c, d, 0, 0, 0, 0]
}

/// Reads a `struct in6_pktinfo`: the address in the header and the interface.
fn read6(data: &[u8]) -> Option<SocketAddr> {
    let (address, rest) = data.split_first_chunk::<16>()?;
    let address = Ipv6Addr::from(*address);
    let interface = u32::from_ne_bytes(*rest.first_chunk()?);
    if address.is_multicast() || address.is_unspecified() {
        return None;
    }
    let scope = if address.is_unicast_link_local() { interface } else { 0 };
    Some(SocketAddrV6::new(address, 0, 0, scope).into())
}

/// Writes one, with the interface that a link-local address is one of.
fn write6(from: SocketAddrV6) -> [u8; 20] {
    let mut bytes = [0; 20];
    let fields = from.ip().octets().into_iter().chain(from.scope_id().to_ne_bytes());
    bytes.iter_mut().zip(fields).for_each(|(byte, value)| *byte = value);
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::{address, wait};

    const LONG: Duration = Duration::from_secs(20);

    /// A socket on every address, which tells where datagrams arrive.
    fn everywhere(any: &str) -> UdpSocket {
        let at: SocketAddr = any.parse().unwrap();
        let fd = call::socket(address::family(at), libc::SOCK_DGRAM | libc::SOCK_NONBLOCK).unwrap();
        tell(fd.as_fd()).unwrap();
        call::bind(fd.as_fd(), at).unwrap();
        fd.into()
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        for (any, own, asked) in
            [("0.0.0.0:0", "127.0.0.1:0", "127.5.5.5"), ("[::]:0", "[::1]:0", "::1")]
        {
            let (server, client) = (everywhere(any), UdpSocket::bind(own).unwrap());
            client.set_read_timeout(Some(LONG)).unwrap();
            let port = server.local_addr().unwrap().port();
            let asked = SocketAddr::new(asked.parse().unwrap(), port);
            client.send_to(b"question", asked).unwrap();
            assert_eq!(wait::readable([server.as_fd()], Some(LONG)).unwrap(), [true]);
            let mut buffer = [0; 16];
            let arrived = receive(server.as_fd(), &mut buffer).unwrap();
            let at = SocketAddr::new(asked.ip(), 0);
            let from = client.local_addr().unwrap();
            assert_eq!(arrived, Arrived { len: 8, from, at: Some(at) });
            assert_eq!(send(server.as_fd(), b"answer", at, from).unwrap(), 6);
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (6, asked));
            let none = receive(server.as_fd(), &mut buffer).unwrap_err();
            assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_foreign_address_is_no_source() {
        let server = everywhere("0.0.0.0:0");
        let (from, to) = ("192.0.2.77:0".parse().unwrap(), "127.0.0.1:9".parse().unwrap());
        let error = send(server.as_fd(), b"x", from, to).unwrap_err().kind();
        // Linux 6.18 says the latter.
        let said = [io::ErrorKind::InvalidInput, io::ErrorKind::NetworkUnreachable];
        assert!(said.contains(&error), "{error}");
    }

    #[test]
    fn what_many_got_is_not_answered_from_the_groups_address() {
        let group: SocketAddrV6 = "[ff02::1]:0".parse().unwrap();
        assert_eq!(read6(&write6(group)), None);
        let link_local: SocketAddrV6 = "[fe80::1%7]:0".parse().unwrap();
        assert_eq!(read6(&write6(link_local)), Some(link_local.into()));
        assert_eq!(read4(&write4(Ipv4Addr::UNSPECIFIED)), None);
        assert_eq!(read4(&write4(Ipv4Addr::LOCALHOST)[..7]), None, "cut short");
        assert_eq!(read6(&write6(link_local)[..19]), None, "cut short");
    }
}
