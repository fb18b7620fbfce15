//! Netlink sockets: datagrams to the kernel and back, for those who know the messages.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::{call, interface};

/// The kernel subsystem that a [`Socket`] speaks with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, rules, neighbours: rtnetlink(7).
    Route,
    /// nf_tables and conntrack.
    Netfilter,
    /// Families that are looked up by name, nl80211 among them: genetlink.
    Generic,
}

/// A netlink(7) socket.
///
/// It belongs to the network namespace that the calling thread is in when it opens it, and stays
/// there, whichever namespace it is used from.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u32,
}

/// What [`Socket::receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A datagram from the kernel is in the buffer.
    Datagram,
    /// There is none at the moment.
    Nothing,
    /// Some were lost: the kernel had no room for them (`ENOBUFS`).
    Overrun,
}

impl Socket {
    /// Opens the socket, with explanations in acknowledgements, without our requests repeated in
    /// them, and with dumps that filter as they are asked to.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(protocol: Protocol) -> io::Result<Self> {
        let protocol = match protocol {
            Protocol::Route => libc::NETLINK_ROUTE,
            Protocol::Netfilter => libc::NETLINK_NETFILTER,
            Protocol::Generic => libc::NETLINK_GENERIC,
        };
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = call::own(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            call::set_option(fd.as_fd(), libc::SOL_NETLINK, option, 1)?;
        }
        // struct sockaddr_nl: family, padding, port id (0: chosen by the kernel), groups.
        let mut address = [0; size_of::<libc::sockaddr_nl>()];
        let family = u16::try_from(libc::AF_NETLINK).unwrap_or_default().to_ne_bytes();
        address[..family.len()].copy_from_slice(&family);
        // SAFETY: the pointer and length describe `address`, which the kernel only reads.
        call::check(unsafe {
            libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), call::length(&address))
        })?;
        let mut len = call::length(&address);
        let into = address.as_mut_ptr().cast();
        // SAFETY: `address` has room for `len` bytes; both outlive the call.
        call::check(unsafe { libc::getsockname(fd.as_raw_fd(), into, &raw mut len) })?;
        let [_, _, _, _, port @ .., _, _, _, _] = address;
        Ok(Self { fd, port: u32::from_ne_bytes(port) })
    }

    /// The number that the kernel knows this socket by.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Has the kernel send the notices of a group (`RTNLGRP_*`, `NFNLGRP_*`) to this socket.
    ///
    /// # Errors
    /// `EPERM`, `EINVAL`: no such group.
    pub fn subscribe(&self, group: u32) -> io::Result<()> {
        let group = group.cast_signed();
        call::set_option(self.fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)
    }

    /// The number of the link with this name in the socket's network namespace. Asking by netlink
    /// would wait for every change of any link that is under way; this does not.
    ///
    /// # Errors
    /// `ENODEV`: there is none; `InvalidInput`: not a name.
    pub fn link_index(&self, name: &str) -> io::Result<u32> {
        interface::index_by(self.fd.as_fd(), name)
    }

    /// Asks for this much room for what waits to be received, bytes: beyond the system's limit
    /// if we are privileged, else up to it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_receive_room(&self, bytes: usize) -> io::Result<()> {
        self.set_room(bytes, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)
    }

    /// Asks for this much room for one datagram to the kernel, bytes; as
    /// [`Socket::set_receive_room`].
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_send_room(&self, bytes: usize) -> io::Result<()> {
        self.set_room(bytes, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)
    }

    fn set_room(&self, bytes: usize, force: libc::c_int, ask: libc::c_int) -> io::Result<()> {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        call::set_option(self.fd.as_fd(), libc::SOL_SOCKET, force, bytes)
            .or_else(|_| call::set_option(self.fd.as_fd(), libc::SOL_SOCKET, ask, bytes))
    }

    /// Sends messages to the kernel as one datagram. When this returns, the kernel has acted on
    /// them.
    ///
    /// # Errors
    /// `EMSGSIZE`: more than the room for sending.
    pub fn send(&self, messages: &[u8]) -> io::Result<()> {
        loop {
            // SAFETY: the pointer and length describe `messages`, which the kernel only reads.
            let sent = call::check_len(unsafe {
                libc::send(self.fd.as_raw_fd(), messages.as_ptr().cast(), messages.len(), 0)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent.map(drop),
            }
        }
    }

    /// Receives one datagram of the kernel into `into`, which becomes as long as it needs to be;
    /// waits for one if `wait`. Datagrams of other processes are passed over.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn receive(&self, into: &mut Vec<u8>, wait: bool) -> io::Result<Received> {
        let wait = if wait { 0 } else { libc::MSG_DONTWAIT };
        loop {
            into.clear();
            // Its length first: a datagram of a dump may be of any size.
            let len = match self.receive_into(into, wait | libc::MSG_PEEK | libc::MSG_TRUNC) {
                Ok((len, _)) => len,
                Err(error) => match outcome(error)? {
                    Some(outcome) => return Ok(outcome),
                    None => continue,
                },
            };
            into.resize(len, 0);
            let (len, sender) = match self.receive_into(into, wait) {
                Ok(received) => received,
                Err(error) => match outcome(error)? {
                    Some(outcome) => return Ok(outcome),
                    None => continue,
                },
            };
            into.truncate(len);
            if sender == 0 {
                return Ok(Received::Datagram);
            }
        }
    }

    /// One recvmsg(2): the length of the datagram and the port of its sender (0: the kernel).
    fn receive_into(&self, into: &mut [u8], flags: libc::c_int) -> io::Result<(usize, u32)> {
        let mut address = [0_u8; size_of::<libc::sockaddr_nl>()];
        let mut len = call::length(&address);
        let (buffer, room) = (into.as_mut_ptr().cast(), into.len());
        let (from, from_len) = (address.as_mut_ptr().cast(), &raw mut len);
        // SAFETY: the pointers and lengths describe `into` and `address`, which are ours to write.
        let received = call::check_len(unsafe {
            libc::recvfrom(self.fd.as_raw_fd(), buffer, room, flags, from, from_len)
        })?;
        let [_, _, _, _, port @ .., _, _, _, _] = address;
        Ok((received, u32::from_ne_bytes(port)))
    }
}

/// What an error of receiving means; `None`: try again.
fn outcome(error: io::Error) -> io::Result<Option<Received>> {
    match error.raw_os_error() {
        Some(libc::EINTR) => Ok(None),
        Some(libc::EAGAIN) => Ok(Some(Received::Nothing)),
        Some(libc::ENOBUFS) => Ok(Some(Received::Overrun)),
        _ => Err(error),
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct nlmsghdr` (length, kind, flags, sequence, port), then `struct ifinfomsg` of link 1.
    fn ask_for_loopback() -> Vec<u8> {
        const RTM_GETLINK: u16 = 18;
        const REQUEST: u16 = 1;
        let header =
            [&32_u32.to_ne_bytes()[..], &RTM_GETLINK.to_ne_bytes(), &REQUEST.to_ne_bytes()];
        let rest = [7_u32.to_ne_bytes(), [0; 4], [0; 4], 1_u32.to_ne_bytes(), [0; 4], [0; 4]];
        [header.concat(), rest.concat()].concat()
    }

    #[test]
    fn answers_arrive_whole_and_then_there_is_nothing() {
        let socket = Socket::open(Protocol::Route).unwrap();
        let mut answer = Vec::new();
        assert_eq!(socket.receive(&mut answer, false).unwrap(), Received::Nothing);
        socket.send(&ask_for_loopback()).unwrap();
        assert_eq!(socket.receive(&mut answer, true).unwrap(), Received::Datagram);
        let len = u32::from_ne_bytes(*answer.first_chunk().unwrap());
        assert_eq!(usize::try_from(len).unwrap(), answer.len());
        assert!(answer.windows(3).any(|part| part == b"lo\0"));
        assert_eq!(socket.receive(&mut answer, false).unwrap(), Received::Nothing);
    }

    #[test]
    fn links_are_found_by_name() {
        let socket = Socket::open(Protocol::Route).unwrap();
        assert_eq!(socket.link_index("lo").unwrap(), 1);
        let error = socket.link_index("no-such-link").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert!(socket.link_index("a-name-that-is-too-long").is_err());
    }

    #[test]
    fn sockets_have_numbers_of_their_own() {
        let (a, b) =
            (Socket::open(Protocol::Route).unwrap(), Socket::open(Protocol::Route).unwrap());
        assert_ne!(a.port(), b.port());
    }

    #[test]
    fn what_other_processes_send_is_passed_over() {
        let (ours, theirs) =
            (Socket::open(Protocol::Route).unwrap(), Socket::open(Protocol::Route).unwrap());
        let mut address = [0_u8; size_of::<libc::sockaddr_nl>()];
        let family = u16::try_from(libc::AF_NETLINK).unwrap().to_ne_bytes();
        address[..2].copy_from_slice(&family);
        address[4..8].copy_from_slice(&ours.port().to_ne_bytes());
        let lie = [1_u8; 32];
        // SAFETY: the pointers and lengths describe `lie` and `address`, which are only read.
        let sent = call::check_len(unsafe {
            let to = address.as_ptr().cast();
            libc::sendto(
                theirs.fd.as_raw_fd(),
                lie.as_ptr().cast(),
                lie.len(),
                0,
                to,
                call::length(&address),
            )
        });
        // A kernel may forbid it to ordinary users; then there is nothing to pass over.
        let _ = sent;
        ours.send(&ask_for_loopback()).unwrap();
        let mut answer = Vec::new();
        assert_eq!(ours.receive(&mut answer, true).unwrap(), Received::Datagram);
        assert_ne!(answer, lie);
    }
}
