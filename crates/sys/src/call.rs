//! The few raw calls that every socket module shares: results, options, control messages.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::address;

/// Turns the kernel's −1 into the error that `errno` holds.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for calls that return a length.
pub(crate) fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Takes ownership of a descriptor that a call has just returned (or its error).
pub(crate) fn own(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just made `fd` for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a socket of a kind's usual protocol, close-on-exec; `kind` may carry `SOCK_NONBLOCK`.
pub(crate) fn socket(domain: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
    socket_of(domain, kind, 0)
}

/// The same with a protocol.
pub(crate) fn socket_of(
    domain: libc::c_int,
    kind: libc::c_int,
    protocol: libc::c_int,
) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    own(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })
}

/// Sets an option whose value is an `int`.
pub(crate) fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set_option_bytes(fd, level, name, &value.to_ne_bytes())
}

/// Sets an option whose value is a structure, given as its bytes.
pub(crate) fn set_option_bytes(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which the kernel only reads.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), length(value))
    })
    .map(drop)
}

/// Reads an option whose value is an `int`.
pub(crate) fn option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value = [0; size_of::<libc::c_int>()];
    option_bytes(fd, level, name, &mut value)?;
    Ok(libc::c_int::from_ne_bytes(value))
}

/// Reads an option whose value is a structure; returns how many bytes the kernel filled in.
pub(crate) fn option_bytes(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    into: &mut [u8],
) -> io::Result<usize> {
    let mut filled = length(into);
    // SAFETY: the pointer and length describe `into`, which is ours to write; `filled` outlives
    // the call.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, into.as_mut_ptr().cast(), &raw mut filled)
    })?;
    Ok(usize::try_from(filled).unwrap_or(usize::MAX).min(into.len()))
}

/// Makes a descriptor non-blocking, or blocking again.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> io::Result<()> {
    let mut value = libc::c_int::from(nonblocking);
    // SAFETY: FIONBIO reads one int, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONBIO, &raw mut value) }).map(drop)
}

/// The length of a small buffer as the kernel's `socklen_t`.
pub(crate) fn length(bytes: &[u8]) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes.len()).unwrap_or(libc::socklen_t::MAX)
}

/// The kernel's `struct cmsghdr`: `size_t` length, `int` level, `int` type.
const CONTROL_HEADER: usize = size_of::<usize>() + 2 * size_of::<libc::c_int>();

/// Rounds up to where the next control message starts.
const fn control_align(len: usize) -> usize {
    len.next_multiple_of(size_of::<usize>())
}

/// Room for control messages of `sendmsg(2)` and `recvmsg(2)`, aligned as the kernel likes it.
#[repr(C, align(8))]
pub(crate) struct Control {
    bytes: [u8; Control::CAPACITY],
    len: usize,
}

impl Control {
    /// Enough for 16 descriptors, or an extended socket error with an IPv6 address.
    pub(crate) const CAPACITY: usize = 256;

    pub(crate) const fn new() -> Self {
        Self { bytes: [0; Self::CAPACITY], len: 0 }
    }

    /// Adds one message; false if there is no room for it.
    pub(crate) fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) -> bool {
        let size = CONTROL_HEADER + data.len();
        let Some(room) = self.bytes.get_mut(self.len..self.len + control_align(size)) else {
            return false;
        };
        let fields = [&size.to_ne_bytes()[..], &level.to_ne_bytes(), &kind.to_ne_bytes(), data];
        for (byte, value) in room.iter_mut().zip(fields.into_iter().flatten()) {
            *byte = *value;
        }
        self.len += control_align(size);
        true
    }

    /// The messages in it: level, type, data. Stops at the first whose length lies.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (libc::c_int, libc::c_int, &[u8])> {
        let mut rest = self.bytes.get(..self.len).unwrap_or_default();
        std::iter::from_fn(move || {
            let (size, tail) = rest.split_first_chunk()?;
            let (level, tail) = tail.split_first_chunk()?;
            let (kind, tail) = tail.split_first_chunk()?;
            let size = usize::from_ne_bytes(*size);
            let data = tail.get(..size.checked_sub(CONTROL_HEADER)?)?;
            rest = rest.get(control_align(size)..).unwrap_or_default();
            Some((libc::c_int::from_ne_bytes(*level), libc::c_int::from_ne_bytes(*kind), data))
        })
    }

    /// Points a `msghdr` at what was pushed (nothing if nothing was).
    pub(crate) fn lend_filled(&mut self, message: &mut libc::msghdr) {
        if self.len > 0 {
            message.msg_control = self.bytes.as_mut_ptr().cast();
            message.msg_controllen = self.len as _;
        }
    }

    /// Points a `msghdr` at the whole room, for `recvmsg(2)`.
    pub(crate) fn lend_room(&mut self, message: &mut libc::msghdr) {
        message.msg_control = self.bytes.as_mut_ptr().cast();
        message.msg_controllen = Self::CAPACITY as _;
    }

    /// Takes over how much of the room `recvmsg(2)` filled.
    pub(crate) fn filled(&mut self, message: &libc::msghdr) {
        self.len = Self::CAPACITY.min(message.msg_controllen as _);
    }
}

/// A `struct ifreq` with the name filled in and the rest zero.
pub(crate) fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq holds integers, arrays and unions of them; all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the kernel wants the name closed.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// An empty `struct msghdr`.
pub(crate) fn message_header() -> libc::msghdr {
    // SAFETY: msghdr holds integers and pointers only; all zeros is its empty value.
    unsafe { std::mem::zeroed() }
}

/// The descriptors in an `SCM_RIGHTS` payload, each owned from here on.
///
/// # Safety
/// `data` must be such a payload as `recvmsg(2)` returned it, and be passed here once.
pub(crate) unsafe fn own_all(data: &[u8]) -> impl Iterator<Item = OwnedFd> {
    data.as_chunks::<{ size_of::<RawFd>() }>().0.iter().map(|bytes| {
        // SAFETY: by this function's contract the kernel installed the descriptor for us, and
        // nobody else takes it.
        unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(*bytes)) }
    })
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// recvmsg(2) with the descriptors that come with the bytes, which close when a program is executed. `Ok((0, []))`:
/// the other end is gone.
///
/// # Errors
/// `InvalidData`: more came than was taken in (too long a message, too many descriptors, or this process cannot
/// have them); the rest is lost, what was taken in is closed.
pub(crate) fn receive_with_descriptors(
    fd: BorrowedFd<'_>,
    into: &mut [u8],
    flags: libc::c_int,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut control = Control::new();
    let mut message = message_header();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let len = retry(|| {
        control.lend_room(&mut message);
        // SAFETY: `message` points at `part` (which points at `into`) and `control`; all outlive the
        // call and are ours to write.
        check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })
    })?;
    control.filled(&message);
    let descriptors: Vec<OwnedFd> = control
        .iter()
        .filter(|(level, kind, _)| (*level, *kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS))
        .flat_map(|(_, _, data)| {
            // SAFETY: recvmsg(2) has just returned `data` as SCM_RIGHTS; it is visited once.
            unsafe { own_all(data) }
        })
        .collect();
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too big"));
    }
    Ok((len, descriptors))
}

/// `SO_BINDTOIFINDEX` of asm-generic/socket.h (Linux 5.0).
const BIND_TO_INTERFACE: libc::c_int = 62;

/// `IPV6_FREEBIND` of linux/in6.h.
pub(crate) const FREE_BIND6: libc::c_int = 78;

/// Confines a socket to an interface, given by its number, before it is bound to `at`. The address
/// may be one that this machine gets later.
pub(crate) fn confine(fd: BorrowedFd<'_>, interface: u32, at: SocketAddr) -> io::Result<()> {
    let option = interface.to_ne_bytes();
    set_option_bytes(fd, libc::SOL_SOCKET, BIND_TO_INTERFACE, &option)?;
    match at {
        SocketAddr::V4(_) => set_option(fd, libc::IPPROTO_IP, libc::IP_FREEBIND, 1),
        SocketAddr::V6(_) => set_option(fd, libc::IPPROTO_IPV6, FREE_BIND6, 1),
    }
}

/// Binds a socket to an address; an IPv6 socket is bound for IPv6 only.
pub(crate) fn bind(fd: BorrowedFd<'_>, at: SocketAddr) -> io::Result<()> {
    if at.is_ipv6() {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    let at = address::encode(at);
    let at = at.as_bytes();
    // SAFETY: the pointer and length describe `at`, which the kernel only reads.
    check(unsafe { libc::bind(fd.as_raw_fd(), at.as_ptr().cast(), length(at)) }).map(drop)
}

/// Where a socket is bound.
pub(crate) fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut bytes = [0; address::ROOM];
    let mut len = length(&bytes);
    let into = bytes.as_mut_ptr().cast();
    // SAFETY: `bytes` has room for `len` bytes; both outlive the call.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), into, &raw mut len) })?;
    address::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Sends one datagram with control messages, without waiting (sendmsg(2)).
pub(crate) fn send_message(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    to: SocketAddr,
    control: &mut Control,
) -> io::Result<usize> {
    let name = address::encode(to);
    let name = name.as_bytes();
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = message_header();
    message.msg_name = name.as_ptr().cast_mut().cast();
    message.msg_namelen = length(name);
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    control.lend_filled(&mut message);
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: `message` points at `name`, `part` (which points at `bytes`) and `control`; all outlive the
    // call and the kernel only reads them.
    check_len(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// Takes one datagram without waiting (recvmsg(2)): its length, the address that comes with it, if one does, and
/// its control messages. What does not fit `into` is cut off.
pub(crate) fn receive_message(
    fd: BorrowedFd<'_>,
    into: &mut [u8],
    flags: libc::c_int,
) -> io::Result<(usize, Option<SocketAddr>, Control)> {
    let mut name = [0; address::ROOM];
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut control = Control::new();
    let mut message = message_header();
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = length(&name);
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    control.lend_room(&mut message);
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: `message` points at `name`, `part` (which points at `into`) and `control`, which outlive
    // the call and are ours to write.
    let len = check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })?;
    control.filled(&message);
    Ok((len, address::decode(&name), control))
}

/// Connects a socket.
pub(crate) fn connect(fd: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
    let to = address::encode(to);
    connect_to(fd, to.as_bytes())
}

/// Takes back what [`connect`] did to a socket for datagrams: an address of no family (`AF_UNSPEC`).
pub(crate) fn disconnect(fd: BorrowedFd<'_>) -> io::Result<()> {
    connect_to(fd, &[0; size_of::<libc::sockaddr>()])
}

fn connect_to(fd: BorrowedFd<'_>, to: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and length describe `to`, which the kernel only reads.
    check(unsafe { libc::connect(fd.as_raw_fd(), to.as_ptr().cast(), length(to)) }).map(drop)
}
