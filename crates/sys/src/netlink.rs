//! Links, addresses and routes of the calling thread's network namespace, over rtnetlink(7).
//!
//! One request, one acknowledgement: a call returns when the kernel has done it or has said why
//! not.

use std::ffi::CString;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::call;

/// Room for the kernel's acknowledgement: an error number, our header and extended text.
const ANSWER_ROOM: usize = 8192;

/// `IFA_F_NODAD`: usable at once, nobody else has it.
const NO_DUPLICATE_DETECTION: u8 = libc::IFA_F_NODAD as u8;

/// The kernel subsystem that a [`Socket`] speaks with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, rules, neighbours: rtnetlink(7).
    Route,
    /// nf_tables and conntrack.
    Netfilter,
}

/// A netlink(7) socket: bytes to the kernel and back, for those who know the messages.
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

/// A socket that speaks rtnetlink, bound to the network namespace it was opened in.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

/// The number of a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface(u32);

impl Interface {
    /// The interface with this name in the calling thread's network namespace.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> io::Result<Self> {
        let name = CString::new(name)?;
        // SAFETY: a C string that outlives the call.
        match unsafe { libc::if_nametoindex(name.as_ptr()) } {
            0 => Err(io::Error::last_os_error()),
            index => Ok(Self(index)),
        }
    }
}

impl Netlink {
    /// Opens the socket.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = call::own(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sets an interface's hardware address.
    ///
    /// # Errors
    /// `EPERM`, `EADDRNOTAVAIL`: a multicast address; `EBUSY`: it is up and cannot change.
    pub fn set_mac(&mut self, interface: Interface, mac: [u8; 6]) -> io::Result<()> {
        let mut message = Message::link(interface, 0, 0);
        message.attribute(libc::IFLA_ADDRESS, &mac);
        self.request(message)
    }

    /// Sets the largest IP packet that an interface carries, bytes.
    ///
    /// # Errors
    /// `EPERM`, `EINVAL`: out of range.
    pub fn set_mtu(&mut self, interface: Interface, mtu: u16) -> io::Result<()> {
        let mut message = Message::link(interface, 0, 0);
        message.attribute(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes());
        self.request(message)
    }

    /// Sets how many frames wait to be sent before the next is dropped.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn set_queue_length(&mut self, interface: Interface, frames: u32) -> io::Result<()> {
        let mut message = Message::link(interface, 0, 0);
        message.attribute(libc::IFLA_TXQLEN, &frames.to_ne_bytes());
        self.request(message)
    }

    /// Switches an interface on.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn set_up(&mut self, interface: Interface) -> io::Result<()> {
        const UP: u32 = libc::IFF_UP.unsigned_abs();
        self.request(Message::link(interface, UP, UP))
    }

    /// Gives an interface an address; IPv6 without duplicate address detection (RFC 4862
    /// section 5.4), as nobody else can have it.
    ///
    /// # Errors
    /// `EPERM`, `EEXIST`: it has it already.
    pub fn add_address(
        &mut self,
        interface: Interface,
        address: IpAddr,
        prefix_len: u8,
    ) -> io::Result<()> {
        let (family, octets) = family_and_octets(address);
        let flags = if address.is_ipv6() { NO_DUPLICATE_DETECTION } else { 0 };
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // struct ifaddrmsg: family, prefix length, flags, scope (0: everywhere), interface.
        message.bytes.extend([family, prefix_len, flags, 0]);
        message.bytes.extend(interface.0.to_ne_bytes());
        message.attribute(libc::IFA_LOCAL, &octets);
        message.attribute(libc::IFA_ADDRESS, &octets);
        self.request(message)
    }

    /// Adds a default route through a gateway that is on the interface's segment.
    ///
    /// # Errors
    /// `EPERM`, `EEXIST`, `ENETUNREACH`: the gateway is not on the segment.
    pub fn add_default_route(&mut self, interface: Interface, gateway: IpAddr) -> io::Result<()> {
        let (family, octets) = family_and_octets(gateway);
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // struct rtmsg: family, destination and source prefix lengths, type of service, table,
        // who made it, scope, kind, flags (32 bits).
        message.bytes.extend([
            family,
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ]);
        message.bytes.extend(0u32.to_ne_bytes());
        message.attribute(libc::RTA_GATEWAY, &octets);
        message.attribute(libc::RTA_OIF, &interface.0.to_ne_bytes());
        self.request(message)
    }

    /// Sends a request and waits for its acknowledgement.
    fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(self.sequence);
        // SAFETY: the pointer and length describe `bytes`, which the kernel only reads.
        call::check_len(unsafe {
            libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0)
        })?;
        let mut answer = vec![0; ANSWER_ROOM];
        loop {
            // SAFETY: the pointer and length describe `answer`, which is ours to write.
            let received = call::check_len(unsafe {
                libc::recv(self.fd.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
            });
            let len = match received {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            let answer = answer.get(..len).unwrap_or_default();
            if let Some(outcome) = acknowledgement(answer, self.sequence) {
                return outcome;
            }
        }
    }
}

/// Reads an acknowledgement: `struct nlmsghdr`, then an `int`, 0 or a negative error number.
/// `None`: it belongs to another request.
fn acknowledgement(answer: &[u8], sequence: u32) -> Option<io::Result<()>> {
    const ERROR: u16 = libc::NLMSG_ERROR as u16;
    let malformed = || Some(Err(io::ErrorKind::InvalidData.into()));
    let Some((header, rest)) = answer.split_first_chunk::<HEADER_LEN>() else {
        return malformed();
    };
    let [_, _, _, _, kind_0, kind_1, _, _, number @ .., _, _, _, _] = *header;
    if u32::from_ne_bytes(number) != sequence {
        return None;
    }
    match (u16::from_ne_bytes([kind_0, kind_1]), rest.first_chunk()) {
        (ERROR, Some(code)) => match i32::from_ne_bytes(*code) {
            0 => Some(Ok(())),
            code => Some(Err(io::Error::from_raw_os_error(code.saturating_neg()))),
        },
        _ => malformed(),
    }
}

/// `AF_INET` or `AF_INET6` and the address in network order.
fn family_and_octets(address: IpAddr) -> (u8, Vec<u8>) {
    const INET: u8 = libc::AF_INET as u8;
    const INET6: u8 = libc::AF_INET6 as u8;
    match address {
        IpAddr::V4(address) => (INET, address.octets().to_vec()),
        IpAddr::V6(address) => (INET6, address.octets().to_vec()),
    }
}

/// Length of `struct nlmsghdr`, bytes.
const HEADER_LEN: usize = 16;

/// A request that is being written.
struct Message {
    /// Room for the header, then what follows it.
    bytes: Vec<u8>,
    kind: u16,
    flags: u16,
}

impl Message {
    fn new(kind: u16, flags: libc::c_int) -> Self {
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        Self { bytes: vec![0; HEADER_LEN], kind, flags: u16::try_from(flags).unwrap_or_default() }
    }

    /// A change of one interface: `struct ifinfomsg` is family, a pad byte, device type, index,
    /// flags, mask of the flags to change.
    fn link(interface: Interface, flags: u32, mask: u32) -> Self {
        let mut message = Self::new(libc::RTM_NEWLINK, 0);
        message.bytes.extend([0; 4]);
        message.bytes.extend(interface.0.to_ne_bytes());
        message.bytes.extend(flags.to_ne_bytes());
        message.bytes.extend(mask.to_ne_bytes());
        message
    }

    /// Adds an attribute (`struct rtattr`: length, kind, then the value), padded to 4 bytes.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Fills in the header.
    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        let header = [
            &len.to_ne_bytes()[..],
            &self.kind.to_ne_bytes(),
            &self.flags.to_ne_bytes(),
            &sequence.to_ne_bytes(),
            &0u32.to_ne_bytes(),
        ];
        for (byte, value) in self.bytes.iter_mut().zip(header.into_iter().flatten()) {
            *byte = *value;
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_refused_says_why() {
        let mut netlink = Netlink::open().unwrap();
        let nobody = Interface(i32::MAX.unsigned_abs());
        let error = netlink.set_up(nobody).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{error}");
        let error = netlink.set_mtu(nobody, 1500).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{error}");
    }

    #[test]
    fn interfaces_are_found_by_name() {
        assert!(Interface::named("lo").is_ok());
        assert!(Interface::named("no-such-link").is_err());
    }

    #[test]
    fn answers_that_lie_are_errors_not_panics() {
        assert!(acknowledgement(&[], 1).unwrap().is_err());
        assert!(acknowledgement(&[0; 16], 0).unwrap().is_err());
        assert!(acknowledgement(&[0; 20], 7).is_none(), "another request's answer");
    }
}
