//! System calls on sockets, as the table has them: pointers to values, values to numbers.

use std::fs::File;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::{ptr, slice};

use libc::{
    c_int, c_long, c_ulong, c_void, iovec, msghdr, nfds_t, pollfd, size_t, sockaddr, socklen_t,
    ssize_t,
};

use crate::errno::Errno;
use crate::pointers;
use crate::table::{answer, done, short, world};

/// A descriptor that stands for a socket. packetdrill closes those that are left at its end itself, as
/// descriptors of its process, so that they have to be some.
fn descriptor() -> Result<OwnedFd, Errno> {
    match File::open("/dev/null") {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(Errno(error.raw_os_error().unwrap_or(libc::EIO))),
    }
}

pub(crate) unsafe extern "C" fn socket(
    user: *mut c_void,
    domain: c_int,
    kind: c_int,
    _: c_int,
) -> c_int {
    short(descriptor().and_then(|descriptor| {
        let fd = descriptor.into_raw_fd();
        world(user).socket(fd, domain, kind).map(|()| fd).inspect_err(|_| release(fd))
    }))
}

/// Closes a descriptor that stands for a socket.
fn release(fd: c_int) {
    // SAFETY: `descriptor` has made it, and whom it was handed to gives it back.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

pub(crate) unsafe extern "C" fn bind(
    user: *mut c_void,
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    // SAFETY: as the system call has it.
    let address = unsafe { pointers::socket_address(address, len) };
    done(address.and_then(|address| world(user).bind(fd, address.ok_or(Errno(libc::EFAULT))?)))
}

pub(crate) unsafe extern "C" fn listen(user: *mut c_void, fd: c_int, backlog: c_int) -> c_int {
    done(world(user).listen(fd, backlog))
}

pub(crate) unsafe extern "C" fn accept(
    user: *mut c_void,
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    short(descriptor().and_then(|descriptor| {
        let accepted = descriptor.into_raw_fd();
        let remote = world(user).accept(fd, accepted).inspect_err(|_| release(accepted))?;
        // SAFETY: as the system call has it.
        unsafe { pointers::tell_address(Some(remote), address, len) };
        Ok(accepted)
    }))
}

pub(crate) unsafe extern "C" fn connect(
    user: *mut c_void,
    fd: c_int,
    address: *const sockaddr,
    len: socklen_t,
) -> c_int {
    // SAFETY: as the system call has it.
    let address = unsafe { pointers::socket_address(address, len) };
    done(address.and_then(|address| world(user).connect(fd, address.ok_or(Errno(libc::EFAULT))?)))
}

/// All calls that read: into a list of buffers.
///
/// # Safety
/// Each of `parts` has as much room as it says, or is null; `address` and `len` are null or lead to room for an
/// address and its length.
unsafe fn receive(
    user: *mut c_void,
    fd: c_int,
    parts: Result<&[iovec], Errno>,
    flags: c_int,
    (address, len): (*mut sockaddr, *mut socklen_t),
) -> ssize_t {
    answer(parts.and_then(|parts| {
        let room = pointers::room(parts)?;
        let (bytes, from) = world(user).read(fd, room, flags)?;
        // SAFETY: the caller says that the room is there; `room` has looked at it.
        unsafe { pointers::scatter(&bytes, parts) };
        // SAFETY: the caller says so.
        unsafe { pointers::tell_address(from, address, len) };
        Ok(bytes.len())
    }))
}

const NOBODY: (*mut sockaddr, *mut socklen_t) = (ptr::null_mut(), ptr::null_mut());

pub(crate) unsafe extern "C" fn read(
    user: *mut c_void,
    fd: c_int,
    to: *mut c_void,
    len: size_t,
) -> ssize_t {
    // SAFETY: as the system call has it.
    unsafe { recv(user, fd, to, len, 0) }
}

pub(crate) unsafe extern "C" fn readv(
    user: *mut c_void,
    fd: c_int,
    parts: *const iovec,
    count: c_int,
) -> ssize_t {
    // SAFETY: as the system call has it.
    let parts = unsafe { list(parts, count) };
    // SAFETY: the same.
    unsafe { receive(user, fd, parts, 0, NOBODY) }
}

pub(crate) unsafe extern "C" fn recv(
    user: *mut c_void,
    fd: c_int,
    to: *mut c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: as the system call has it.
    unsafe { recvfrom(user, fd, to, len, flags, NOBODY.0, NOBODY.1) }
}

pub(crate) unsafe extern "C" fn recvfrom(
    user: *mut c_void,
    fd: c_int,
    to: *mut c_void,
    len: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_len: *mut socklen_t,
) -> ssize_t {
    let part = iovec { iov_base: to, iov_len: len };
    // SAFETY: as the system call has it.
    unsafe { receive(user, fd, Ok(slice::from_ref(&part)), flags, (address, address_len)) }
}

pub(crate) unsafe extern "C" fn recvmsg(
    user: *mut c_void,
    fd: c_int,
    message: *mut msghdr,
    flags: c_int,
) -> ssize_t {
    // SAFETY: as the system call has it.
    let message = match unsafe { pointers::message(message) } {
        Ok(message) => message,
        Err(error) => return answer::<ssize_t>(Err(error)),
    };
    message.msg_controllen = 0;
    message.msg_flags = 0;
    // SAFETY: as the system call has it.
    let parts = unsafe { pointers::parts(message.msg_iov, message.msg_iovlen) };
    let address = (message.msg_name.cast(), &raw mut message.msg_namelen);
    // SAFETY: the same.
    unsafe { receive(user, fd, parts, flags, address) }
}

/// A list of buffers whose number may be nonsense.
///
/// # Safety
/// As [`pointers::parts`].
unsafe fn list<'a>(parts: *const iovec, count: c_int) -> Result<&'a [iovec], Errno> {
    let count = size_t::try_from(count).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: the caller says so.
    unsafe { pointers::parts(parts, count) }
}

pub(crate) unsafe extern "C" fn write(
    user: *mut c_void,
    fd: c_int,
    from: *const c_void,
    len: size_t,
) -> ssize_t {
    // SAFETY: as the system call has it.
    unsafe { send(user, fd, from, len, 0) }
}

pub(crate) unsafe extern "C" fn writev(
    user: *mut c_void,
    fd: c_int,
    parts: *const iovec,
    count: c_int,
) -> ssize_t {
    // SAFETY: as the system call has it.
    let parts = unsafe { list(parts, count) };
    answer(parts.and_then(|parts| {
        // SAFETY: the same.
        let bytes = unsafe { pointers::gather(parts) }?;
        world(user).write(fd, &bytes, 0, None)
    }))
}

pub(crate) unsafe extern "C" fn send(
    user: *mut c_void,
    fd: c_int,
    from: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: as the system call has it.
    unsafe { sendto(user, fd, from, len, flags, NOBODY.0, 0) }
}

pub(crate) unsafe extern "C" fn sendto(
    user: *mut c_void,
    fd: c_int,
    from: *const c_void,
    len: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_len: socklen_t,
) -> ssize_t {
    // SAFETY: as the system call has it.
    let bytes = unsafe { pointers::bytes(from, len) };
    // SAFETY: the same.
    let to = unsafe { pointers::socket_address(address, address_len) };
    answer(bytes.and_then(|bytes| world(user).write(fd, bytes, flags, to?)))
}

pub(crate) unsafe extern "C" fn sendmsg(
    user: *mut c_void,
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> ssize_t {
    // SAFETY: as the system call has it; nothing is written to it.
    let message = match unsafe { pointers::message(message.cast_mut()) } {
        Ok(message) => &*message,
        Err(error) => return answer::<ssize_t>(Err(error)),
    };
    // SAFETY: as the system call has it.
    let parts = unsafe { pointers::parts(message.msg_iov, message.msg_iovlen) };
    // SAFETY: the same.
    let to = unsafe { pointers::socket_address(message.msg_name.cast(), message.msg_namelen) };
    answer(parts.and_then(|parts| {
        // SAFETY: the same.
        let bytes = unsafe { pointers::gather(parts) }?;
        world(user).write(fd, &bytes, flags, to?)
    }))
}

/// `argument`: looked at only where `command` has one.
pub(crate) unsafe extern "C" fn fcntl(
    user: *mut c_void,
    fd: c_int,
    command: c_int,
    argument: c_long,
) -> c_int {
    let world = world(user);
    short(match command {
        libc::F_GETFL => world
            .is_nonblocking(fd)
            .map(|nonblocking| libc::O_RDWR | if nonblocking { libc::O_NONBLOCK } else { 0 }),
        libc::F_SETFL => {
            let nonblocking = argument & c_long::from(libc::O_NONBLOCK) != 0;
            world.set_nonblocking(fd, nonblocking).map(|()| 0)
        }
        _ => Err(Errno(libc::EINVAL)),
    })
}

pub(crate) unsafe extern "C" fn ioctl(
    user: *mut c_void,
    fd: c_int,
    request: c_ulong,
    argument: *mut c_int,
) -> c_int {
    let world = world(user);
    // SAFETY: both requests that get here have a number to tell.
    let tell = |count: usize| unsafe {
        pointers::put(c_int::try_from(count).unwrap_or(c_int::MAX), argument)
    };
    done(match request {
        libc::FIONREAD => world.queues(fd).and_then(|(unread, _)| tell(unread)),
        libc::TIOCOUTQ => world.queues(fd).and_then(|(_, unacknowledged)| tell(unacknowledged)),
        _ => Err(Errno(libc::EINVAL)),
    })
}

pub(crate) unsafe extern "C" fn close(user: *mut c_void, fd: c_int) -> c_int {
    done(world(user).close(fd).map(|()| release(fd)))
}

pub(crate) unsafe extern "C" fn shutdown(user: *mut c_void, fd: c_int, how: c_int) -> c_int {
    done(world(user).shutdown(fd, how))
}

pub(crate) unsafe extern "C" fn getsockopt(
    user: *mut c_void,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    const NUMBER: socklen_t = size_of::<c_int>() as socklen_t;
    done(world(user).option(fd, (level, name)).and_then(|number| {
        // SAFETY: as the system call has it.
        let room = unsafe { len.as_ref() }.copied().ok_or(Errno(libc::EFAULT))?;
        if room < NUMBER {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: there is room for a number, which need not be aligned.
        unsafe { pointers::put(number.to_ne_bytes(), value.cast()) }?;
        // SAFETY: as the system call has it.
        unsafe { pointers::put(NUMBER, len) }
    }))
}

pub(crate) unsafe extern "C" fn setsockopt(
    user: *mut c_void,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    // SAFETY: as the system call has it.
    let numbers = unsafe { pointers::numbers(value, len) };
    done(numbers.and_then(|(number, next)| world(user).set_option(fd, (level, name), number, next)))
}

pub(crate) unsafe extern "C" fn poll(
    user: *mut c_void,
    fds: *mut pollfd,
    count: nfds_t,
    timeout: c_int,
) -> c_int {
    let polled: &mut [pollfd] = if fds.is_null() {
        &mut []
    } else {
        // SAFETY: as the system call has it; numbers of descriptors fit any size.
        unsafe { slice::from_raw_parts_mut(fds, count as size_t) }
    };
    let asked: Vec<_> = polled.iter().map(|polled| (polled.fd, polled.events)).collect();
    let found = world(user).poll(&asked, timeout);
    for (polled, found) in polled.iter_mut().zip(&found) {
        polled.revents = *found;
    }
    short(Ok(found.iter().map(|found| c_int::from(*found != 0)).sum()))
}
