//! UDP and ping sockets on the host, with hop limits and the error queue.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::address;
use crate::call::{self, Control};
use crate::segments::{self, Batch};

/// How often a call is repeated that reports an earlier datagram's error instead of its own
/// outcome. Each report takes one error away.
const PENDING_ERRORS: usize = 8;

/// A socket for datagrams: a bound UDP port, or one for pings.
#[derive(Debug)]
pub struct Datagram {
    fd: OwnedFd,
}

/// Who reported an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This machine.
    Local,
    /// An ICMP message.
    Icmp,
    /// An ICMPv6 message.
    Icmp6,
}

/// One entry of the error queue (`struct sock_extended_err`, and what comes with it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedError {
    /// Where the datagram was going.
    pub destination: SocketAddr,
    /// Who reported it.
    pub origin: Origin,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// What the error is on this machine, as `errno`.
    pub errno: i32,
    /// The path's MTU for errors of size, bytes.
    pub mtu: u32,
    /// Who sent the ICMP message.
    pub reporter: Option<IpAddr>,
    /// The hop limit that its packet had left.
    pub hop_limit: Option<u8>,
    /// What the message quotes of the datagram, from the UDP payload, or of the ping, from its ICMP
    /// header: at most [`QUOTED`] bytes.
    pub quoted: Vec<u8>,
}

/// The most that is read of a quoted packet, bytes: an ICMPv6 error is no longer than 1,280 (RFC 4443
/// section 2.4).
pub const QUOTED: usize = 1_280;

/// What a ping socket has received: an ICMP message from its type on, its identifier the socket's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Its length, bytes.
    pub len: usize,
    /// Who sent it.
    pub from: IpAddr,
    /// The hop limit that its packet had left.
    pub hop_limit: Option<u8>,
}

impl Datagram {
    /// Binds a UDP port with the error queue on; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// `AddrInUse`, `PermissionDenied`, `AddrNotAvailable`, ...
    pub fn bind(at: SocketAddr) -> io::Result<Self> {
        let fd = call::socket(address::family(at), libc::SOCK_DGRAM | libc::SOCK_NONBLOCK)?;
        tell_errors(fd.as_fd(), at.is_ipv4())?;
        call::bind(fd.as_fd(), at)?;
        Ok(Self { fd })
    }

    /// Opens a ping socket (ICMP echo, icmp(7)) of one family with the error queue on. It sends ICMP messages
    /// from their type on, with an identifier and a checksum of the kernel's, and receives their answers. It
    /// takes no privilege, but a group that `net.ipv4.ping_group_range` allows, for both families.
    ///
    /// # Errors
    /// `PermissionDenied`: none of this process's groups is in that range.
    pub fn ping(ipv4: bool) -> io::Result<Self> {
        let (domain, protocol) = match ipv4 {
            true => (libc::AF_INET, libc::IPPROTO_ICMP),
            false => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
        };
        let fd = call::socket_of(domain, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, protocol)?;
        tell_errors(fd.as_fd(), ipv4)?;
        Ok(Self { fd })
    }

    /// Sets whether what is sent must not be cut into fragments on its way: what is too big for the path as
    /// far as this machine knows it is refused (`EMSGSIZE`) then, and told in the error queue.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_whole(&self, whole: bool) -> io::Result<()> {
        let (level, name, values) = match call::local_address(self.fd.as_fd())? {
            SocketAddr::V4(_) => (
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                [libc::IP_PMTUDISC_DONT, libc::IP_PMTUDISC_DO],
            ),
            SocketAddr::V6(_) => (
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                [libc::IPV6_PMTUDISC_WANT, libc::IPV6_PMTUDISC_DO],
            ),
        };
        let [parts, entire] = values;
        call::set_option(self.fd.as_fd(), level, name, if whole { entire } else { parts })
    }

    /// Binds a UDP port for what comes in by one interface, given by its number, and goes out there.
    /// Others that share ports may have it on other interfaces or on all. The address may come
    /// later. The error queue is off.
    ///
    /// # Errors
    /// `AddrInUse`: somebody has it and does not share; `PermissionDenied`.
    pub fn bind_on(interface: u32, at: SocketAddr) -> io::Result<Self> {
        let fd = call::socket(address::family(at), libc::SOCK_DGRAM | libc::SOCK_NONBLOCK)?;
        call::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        call::confine(fd.as_fd(), interface, at)?;
        call::bind(fd.as_fd(), at)?;
        Ok(Self { fd })
    }

    /// Has this machine receive what is sent to a group on an interface, as long as the socket is
    /// open.
    ///
    /// # Errors
    /// It is no IPv6 socket, or there is no such interface.
    pub fn join(&self, interface: u32, group: Ipv6Addr) -> io::Result<()> {
        // struct ipv6_mreq.
        let request = [&group.octets()[..], &interface.to_ne_bytes()].concat();
        let option = libc::IPV6_ADD_MEMBERSHIP;
        call::set_option_bytes(self.fd.as_fd(), libc::IPPROTO_IPV6, option, &request)
    }

    /// Binds to a multicast group and its port on one interface, given by its number, and joins it there: what is sent to
    /// the group on that interface is taken, whoever else takes it, and what is sent to it goes out there. Of what is sent
    /// to an address of this machine nothing is taken.
    ///
    /// # Errors
    /// There is no such interface, or it has no such family; `AddrInUse`: somebody has the port and does not share.
    pub fn member(interface: u32, group: SocketAddr) -> io::Result<Self> {
        let socket = Self::bind_on(interface, group)?;
        match group.ip() {
            IpAddr::V6(group) => socket.join(interface, group)?,
            IpAddr::V4(group) => {
                // struct ip_mreqn: the group, an address that is not looked at beside the interface's number.
                let request = [group.octets(), [0; 4], interface.to_ne_bytes()].concat();
                let option = libc::IP_ADD_MEMBERSHIP;
                call::set_option_bytes(socket.as_fd(), libc::IPPROTO_IP, option, &request)?;
            }
        }
        Ok(socket)
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        call::local_address(self.fd.as_fd())
    }

    /// Sets whether anybody's datagrams are taken. If not, the port stays taken and who sends to it is
    /// told that it is closed (ICMP port unreachable): the socket is connected to itself, and a
    /// connected socket takes datagrams of its peer only. While it is, only itself can be sent to. Not for
    /// a port that the kernel has chosen: it is lost when the socket takes datagrams again.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_receiving(&self, receiving: bool) -> io::Result<()> {
        if receiving {
            return call::disconnect(self.fd.as_fd());
        }
        let mut at = self.local_address()?;
        match at.ip() {
            IpAddr::V4(any) if any.is_unspecified() => at.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(any) if any.is_unspecified() => at.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        call::connect(self.fd.as_fd(), at)
    }

    /// Sends one datagram, with a hop limit (TTL) if given.
    ///
    /// # Errors
    /// `WouldBlock`, `EMSGSIZE`, no route, ...
    pub fn send(&self, to: SocketAddr, hop_limit: Option<u8>, bytes: &[u8]) -> io::Result<usize> {
        self.send_with(to, hop_limit, bytes, Control::new())
    }

    /// Sends datagrams of `size` bytes, one behind the other in `bytes`, the last of which may be shorter
    /// (`UDP_SEGMENT` of udp(7)): all of them or none, at most [`segments::MOST`], and
    /// [`segments::MOST_BYTES`] in all.
    ///
    /// # Errors
    /// Those of [`Datagram::send`]; `InvalidInput`: longer than the link takes; `EIO`: the link wants them one
    /// by one.
    pub fn send_many(
        &self,
        to: SocketAddr,
        hop_limit: Option<u8>,
        bytes: &[u8],
        size: u16,
    ) -> io::Result<usize> {
        let mut control = Control::new();
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        self.send_with(to, hop_limit, bytes, control)
    }

    fn send_with(
        &self,
        to: SocketAddr,
        hop_limit: Option<u8>,
        bytes: &[u8],
        mut control: Control,
    ) -> io::Result<usize> {
        if let Some(limit) = hop_limit {
            let (level, kind) = match to {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT),
            };
            control.push(level, kind, &libc::c_int::from(limit).to_ne_bytes());
        }
        past_pending_errors(|| call::send_message(self.fd.as_fd(), bytes, to, &mut control))
    }

    /// From now on what arrives may come as several datagrams in one ([`Datagram::recv_many`]), where the kernel
    /// has them so (`UDP_GRO` of udp(7)).
    ///
    /// # Errors
    /// The kernel knows no such thing (before Linux 5.0).
    pub fn take_many(&self) -> io::Result<()> {
        call::set_option(self.fd.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)
    }

    /// Takes what has arrived, with one call: up to [`segments::BATCHES`] batches, as many as there are pieces of
    /// [`segments::ROOM`] bytes in `into`, each at the beginning of one. True if there may be more.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing.
    pub fn recv_many(&self, into: &mut [u8], came: &mut Vec<Batch>) -> io::Result<bool> {
        past_pending_errors(|| segments::receive_many(self.fd.as_fd(), into, came))
    }

    /// Takes one datagram: its length and sender. What does not fit `into` is cut off.
    ///
    /// # Errors
    /// `WouldBlock`: there is none.
    pub fn recv(&self, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut from = [0; address::ROOM];
        let len = past_pending_errors(|| {
            let mut from_len = call::length(&from);
            let (fd, buffer) = (self.fd.as_raw_fd(), into.as_mut_ptr().cast());
            let name = from.as_mut_ptr().cast();
            // SAFETY: the pointers and lengths describe `into` and `from`, which outlive the call
            // and are ours to write.
            call::check_len(unsafe {
                libc::recvfrom(fd, buffer, into.len(), libc::MSG_DONTWAIT, name, &raw mut from_len)
            })
        })?;
        let from = address::decode(&from).ok_or(io::ErrorKind::InvalidData)?;
        Ok((len, from))
    }

    /// Takes what a ping socket has received. What does not fit `into` is cut off.
    ///
    /// # Errors
    /// `WouldBlock`: there is none.
    pub fn recv_echo(&self, into: &mut [u8]) -> io::Result<Echo> {
        let (len, from, control) =
            past_pending_errors(|| call::receive_message(self.fd.as_fd(), into, 0))?;
        let from = from.ok_or(io::ErrorKind::InvalidData)?.ip();
        Ok(Echo { len, from, hop_limit: hop_limit(&control) })
    }

    /// Takes one entry of the error queue; `None` when it is empty, or the entry is of another kind.
    #[must_use]
    pub fn take_error(&self) -> Option<QueuedError> {
        let mut quoted = vec![0; QUOTED];
        let (len, destination, control) =
            call::receive_message(self.fd.as_fd(), &mut quoted, libc::MSG_ERRQUEUE).ok()?;
        quoted.truncate(len);
        let destination = destination?;
        let error = control.iter().find_map(|(level, kind, data)| match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                QueuedError::decode(destination, data)
            }
            _ => None,
        })?;
        Some(QueuedError { quoted, hop_limit: hop_limit(&control), ..error })
    }
}

/// Has the kernel keep what is reported about datagrams, with the hop limits of what arrives.
fn tell_errors(fd: BorrowedFd<'_>, ipv4: bool) -> io::Result<()> {
    let (level, errors, hop_limit) = match ipv4 {
        true => (libc::IPPROTO_IP, libc::IP_RECVERR, libc::IP_RECVTTL),
        false => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, libc::IPV6_RECVHOPLIMIT),
    };
    call::set_option(fd, level, errors, 1)?;
    call::set_option(fd, level, hop_limit, 1)
}

/// The hop limit among control messages.
fn hop_limit(control: &Control) -> Option<u8> {
    control.iter().find_map(|(level, kind, data)| match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
            u8::try_from(libc::c_int::from_ne_bytes(*data.first_chunk()?)).ok()
        }
        _ => None,
    })
}

impl AsFd for Datagram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl QueuedError {
    /// Reads a `struct sock_extended_err`: errno, origin, type, code, padding, info, data; the reporter's
    /// address follows.
    fn decode(destination: SocketAddr, bytes: &[u8]) -> Option<Self> {
        let (errno, rest) = bytes.split_first_chunk()?;
        let ([origin, kind, code, _], rest) = rest.split_first_chunk()?;
        let origin = match *origin {
            libc::SO_EE_ORIGIN_LOCAL => Origin::Local,
            libc::SO_EE_ORIGIN_ICMP => Origin::Icmp,
            libc::SO_EE_ORIGIN_ICMP6 => Origin::Icmp6,
            _ => return None,
        };
        let (mtu, rest) = rest.split_first_chunk()?;
        let reporter = rest.get(4..).and_then(address::decode).map(|reporter| reporter.ip());
        Some(Self {
            destination,
            origin,
            kind: *kind,
            code: *code,
            errno: i32::from_ne_bytes(*errno),
            mtu: u32::from_ne_bytes(*mtu),
            reporter: reporter.filter(|_| origin != Origin::Local),
            hop_limit: None,
            quoted: Vec::new(),
        })
    }
}

/// Repeats a call that reported an earlier datagram's error: that one is in the error queue too.
fn past_pending_errors<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    /// Errors that ICMP messages cause on the socket (`icmp_err_convert` in the kernel), but the one of
    /// size, which is as likely to be this call's own.
    const FROM_ICMP: [i32; 7] = [
        libc::ECONNREFUSED,
        libc::EHOSTUNREACH,
        libc::ENETUNREACH,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::ENOPROTOOPT,
        libc::EPROTO,
    ];
    let mut result = call();
    for _ in 0..PENDING_ERRORS {
        match &result {
            Err(error) if error.raw_os_error().is_some_and(|code| FROM_ICMP.contains(&code)) => {
                result = call()
            }
            _ => break,
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use netyard_testbed::ask::with_port;

    use super::*;
    use crate::wait;

    const LONG: Duration = Duration::from_secs(10);
    const LOOPBACK: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

    #[test]
    fn datagrams_carry_sender_and_hop_limit() {
        for address in LOOPBACK {
            let (one, other) = (bound(address), bound(address));
            let to = other.local_address().unwrap();
            assert_eq!(other.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert_eq!(one.send(to, Some(3), b"hello").unwrap(), 5);
            assert_eq!(one.send(to, None, b"").unwrap(), 0);
            assert_eq!(wait::readable([other.as_fd()], Some(LONG)).unwrap(), [true]);
            let mut buffer = [0; 3];
            assert_eq!(other.recv(&mut buffer).unwrap(), (3, one.local_address().unwrap()));
            assert_eq!(other.recv(&mut buffer).unwrap().0, 0);
        }
    }

    #[test]
    fn an_unreachable_port_is_told_through_the_error_queue_only() {
        for address in LOOPBACK {
            // Closed, and nobody else can have it.
            let closed = bound(address);
            closed.set_receiving(false).unwrap();
            let gone = closed.local_address().unwrap();
            let (one, other) = (bound(address), bound(address));
            assert_eq!(one.take_error(), None);
            one.send(gone, None, b"x").unwrap();
            // The error does not spoil the next call.
            one.send(other.local_address().unwrap(), None, b"y").unwrap();
            assert_eq!(one.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let error = one.take_error().unwrap();
            assert_eq!((error.destination, error.errno), (gone, libc::ECONNREFUSED));
            // Port unreachable: type 3 code 3, ICMPv6 type 1 code 4.
            let expected =
                if gone.is_ipv4() { (Origin::Icmp, 3, 3) } else { (Origin::Icmp6, 1, 4) };
            assert_eq!((error.origin, error.kind, error.code), expected);
            assert_eq!((error.reporter, error.hop_limit), (Some(gone.ip()), Some(64)));
            assert_eq!(error.quoted, b"x");
            assert_eq!(one.take_error(), None);
        }
    }

    #[test]
    fn a_port_that_takes_nothing_refuses_and_stays_taken() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            // A port that the kernel has chosen is given back when it is not connected any more.
            let port = numbered(address);
            let at = port.local_address().unwrap();
            let local = if at.is_ipv4() { LOOPBACK[0] } else { LOOPBACK[1] };
            let client = bound(local);
            let mut to: SocketAddr = local.parse().unwrap();
            to.set_port(at.port());
            for _ in 0..2 {
                port.set_receiving(false).unwrap();
                client.send(to, None, b"nobody").unwrap();
                assert_eq!(client.take_error().map(|it| it.errno), Some(libc::ECONNREFUSED));
                assert_eq!(port.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
                assert_eq!(Datagram::bind(at).unwrap_err().kind(), io::ErrorKind::AddrInUse);
                port.set_receiving(true).unwrap();
                assert_eq!(port.local_address().unwrap(), at);
                client.send(to, None, b"all").unwrap();
                assert_eq!(wait::readable([port.as_fd()], Some(LONG)).unwrap(), [true]);
                let (len, from) = port.recv(&mut [0; 8]).unwrap();
                assert_eq!((len, from), (3, client.local_address().unwrap()));
                port.send(from, None, b"you").unwrap();
                assert_eq!(client.recv(&mut [0; 8]).unwrap(), (3, to));
            }
        }
    }

    #[test]
    fn a_datagram_that_is_too_big_is_refused() {
        let (one, other) = (bound(LOOPBACK[0]), bound(LOOPBACK[0]));
        let error = one.send(other.local_address().unwrap(), None, &[0; 65_536]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn a_taken_port_is_refused_and_the_other_family_is_free() {
        let one = numbered("127.0.0.1:0");
        let at = one.local_address().unwrap();
        assert_eq!(Datagram::bind(at).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let any6 = SocketAddr::new("::".parse().unwrap(), at.port());
        Datagram::bind(any6).unwrap();
    }

    #[test]
    fn queue_entries_that_are_cut_short_or_foreign_are_none() {
        let to = "192.0.2.1:9".parse().unwrap();
        let whole =
            [&90_i32.to_ne_bytes()[..], &[2, 3, 4, 0], &1_400_u32.to_ne_bytes(), &[0; 4]].concat();
        assert_eq!(QueuedError::decode(to, &whole).unwrap().mtu, 1_400);
        assert_eq!(QueuedError::decode(to, &whole[..10]), None);
        let timestamp = [&[0; 4][..], &[4, 0, 0, 0], &[0; 8]].concat();
        assert_eq!(QueuedError::decode(to, &timestamp), None);
    }

    fn bound(address: &str) -> Datagram {
        Datagram::bind(address.parse().unwrap()).unwrap()
    }

    /// One with a port that no other test is given.
    fn numbered(address: &str) -> Datagram {
        let address: SocketAddr = address.parse().unwrap();
        with_port(|port| Datagram::bind(SocketAddr::new(address.ip(), port))).unwrap()
    }

    #[test]
    fn many_datagrams_of_several_senders_come_with_few_calls_whole_and_in_order() {
        for address in LOOPBACK {
            let any = address.parse().unwrap();
            let receiver = Datagram::bind(any).unwrap();
            receiver.take_many().unwrap();
            let to = receiver.local_address().unwrap();
            let senders = [Datagram::bind(any).unwrap(), Datagram::bind(any).unwrap()];
            let payload: Vec<u8> = (0..=249).collect();
            assert_eq!(senders[0].send_many(to, Some(9), &payload, 100).unwrap(), 250);
            for number in 0..40 {
                senders[1].send(to, None, &[number; 30]).unwrap();
            }
            senders[0].send(to, None, &[]).unwrap();
            let (mut room, mut came) = (vec![0; 4 * segments::ROOM], Vec::new());
            let mut got = [Vec::new(), Vec::new()];
            while got.iter().flatten().count() < 44 {
                assert_eq!(wait::readable([receiver.as_fd()], Some(LONG)).unwrap(), [true]);
                receiver.recv_many(&mut room, &mut came).unwrap();
                assert!((1..=4).contains(&came.len()));
                for (batch, place) in came.iter().zip(room.chunks(segments::ROOM)) {
                    let who = usize::from(batch.from != senders[0].local_address().unwrap());
                    let bytes = &place[..batch.len];
                    match bytes.is_empty() {
                        true => got[who].push(Vec::new()),
                        false => got[who].extend(bytes.chunks(batch.size).map(<[u8]>::to_vec)),
                    }
                }
            }
            let [first, second] = got;
            let expected = [&payload[..100], &payload[100..200], &payload[200..], &[]];
            assert_eq!(first, expected);
            assert!(second.iter().zip(0..40).all(|(it, number)| *it == [number; 30]));
            let error = receiver.recv_many(&mut room, &mut came).unwrap_err();
            assert_eq!((error.kind(), came.len()), (io::ErrorKind::WouldBlock, 0));
        }
    }
}
