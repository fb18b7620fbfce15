//! The C interface: a table of functions, each of which gets the pointer that is in the table, too.
//!
//! Every function of it is called by packetdrill, or by who does as it does: with the pointer from the table,
//! with other pointers as the system calls of the same names take them, from one or two threads. That is what
//! all of them rely on. Those that are system calls on sockets are in `calls`.

use std::ffi::CStr;
use std::io::Write as _;
use std::time::Duration;
use std::{io, process, slice};

use libc::{
    c_char, c_int, c_long, c_longlong, c_uint, c_ulong, c_void, epoll_event, iovec, loff_t, msghdr,
    nfds_t, pollfd, size_t, sockaddr, socklen_t, ssize_t, timeval, timezone,
};

use crate::calls::{
    accept, bind, close, connect, fcntl, getsockopt, ioctl, listen, poll, read, readv, recv,
    recvfrom, recvmsg, send, sendmsg, sendto, setsockopt, shutdown, socket, write, writev,
};
use crate::errno::Errno;
use crate::flags::Flags;
use crate::pointers;
use crate::world::World;

/// packetdrill's `struct packetdrill_interface`: what it calls instead of the kernel. `fcntl` and `ioctl`
/// are variadic there; their one argument is passed as any other is on Linux's architectures.
#[repr(C)]
#[derive(Debug)]
#[allow(
    missing_docs,
    reason = "each field is the system call of that name, or told above its function"
)]
pub struct Interface {
    pub userdata: *mut c_void,
    pub free: unsafe extern "C" fn(*mut c_void),
    pub socket: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int) -> c_int,
    pub bind: unsafe extern "C" fn(*mut c_void, c_int, *const sockaddr, socklen_t) -> c_int,
    pub listen: unsafe extern "C" fn(*mut c_void, c_int, c_int) -> c_int,
    pub accept: unsafe extern "C" fn(*mut c_void, c_int, *mut sockaddr, *mut socklen_t) -> c_int,
    pub connect: unsafe extern "C" fn(*mut c_void, c_int, *const sockaddr, socklen_t) -> c_int,
    pub read: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, size_t) -> ssize_t,
    pub readv: unsafe extern "C" fn(*mut c_void, c_int, *const iovec, c_int) -> ssize_t,
    pub recv: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, size_t, c_int) -> ssize_t,
    pub recvfrom: unsafe extern "C" fn(
        *mut c_void,
        c_int,
        *mut c_void,
        size_t,
        c_int,
        *mut sockaddr,
        *mut socklen_t,
    ) -> ssize_t,
    pub recvmsg: unsafe extern "C" fn(*mut c_void, c_int, *mut msghdr, c_int) -> ssize_t,
    pub write: unsafe extern "C" fn(*mut c_void, c_int, *const c_void, size_t) -> ssize_t,
    pub writev: unsafe extern "C" fn(*mut c_void, c_int, *const iovec, c_int) -> ssize_t,
    pub send: unsafe extern "C" fn(*mut c_void, c_int, *const c_void, size_t, c_int) -> ssize_t,
    pub sendto: unsafe extern "C" fn(
        *mut c_void,
        c_int,
        *const c_void,
        size_t,
        c_int,
        *const sockaddr,
        socklen_t,
    ) -> ssize_t,
    pub sendmsg: unsafe extern "C" fn(*mut c_void, c_int, *const msghdr, c_int) -> ssize_t,
    pub fcntl: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_long) -> c_int,
    pub ioctl: unsafe extern "C" fn(*mut c_void, c_int, c_ulong, *mut c_int) -> c_int,
    pub close: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    pub shutdown: unsafe extern "C" fn(*mut c_void, c_int, c_int) -> c_int,
    pub getsockopt: unsafe extern "C" fn(
        *mut c_void,
        c_int,
        c_int,
        c_int,
        *mut c_void,
        *mut socklen_t,
    ) -> c_int,
    pub setsockopt:
        unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *const c_void, socklen_t) -> c_int,
    pub poll: unsafe extern "C" fn(*mut c_void, *mut pollfd, nfds_t, c_int) -> c_int,
    pub netdev_send: unsafe extern "C" fn(*mut c_void, *const c_void, size_t) -> c_int,
    pub netdev_receive:
        unsafe extern "C" fn(*mut c_void, *mut c_void, *mut size_t, *mut c_longlong) -> c_int,
    pub usleep: unsafe extern "C" fn(*mut c_void, c_uint) -> c_int,
    pub gettimeofday: unsafe extern "C" fn(*mut c_void, *mut timeval, *mut timezone) -> c_int,
    pub epoll_create: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    pub epoll_ctl:
        unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *mut epoll_event) -> c_int,
    pub epoll_wait:
        unsafe extern "C" fn(*mut c_void, c_int, *mut epoll_event, c_int, c_int) -> c_int,
    pub pipe: unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int,
    pub splice: unsafe extern "C" fn(
        *mut c_void,
        c_int,
        *mut loff_t,
        c_int,
        *mut loff_t,
        size_t,
        c_uint,
    ) -> ssize_t,
}

/// Makes a stack and fills in the table: what packetdrill calls when it has loaded the object. Where the flags
/// (`--so_flags`) are wrong, it says so and ends the process: there is no other answer.
///
/// # Safety
/// `flags` is null or leads to a string that ends with 0, `interface` to room for a table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn packetdrill_interface_init(
    flags: *const c_char,
    interface: *mut Interface,
) {
    let text = if flags.is_null() {
        String::new()
    } else {
        // SAFETY: the caller says that it is a string.
        unsafe { CStr::from_ptr(flags) }.to_string_lossy().into_owned()
    };
    let world = Flags::parse(&text)
        .and_then(|flags| World::new(flags).map_err(|error| format!("mtu={}: {error}", flags.mtu)));
    let world = match world {
        Ok(world) => Box::into_raw(Box::new(world)),
        Err(error) => refuse(&error),
    };
    let table = Interface {
        userdata: world.cast(),
        free,
        socket,
        bind,
        listen,
        accept,
        connect,
        read,
        readv,
        recv,
        recvfrom,
        recvmsg,
        write,
        writev,
        send,
        sendto,
        sendmsg,
        fcntl,
        ioctl,
        close,
        shutdown,
        getsockopt,
        setsockopt,
        poll,
        netdev_send,
        netdev_receive,
        usleep,
        gettimeofday,
        epoll_create,
        epoll_ctl,
        epoll_wait,
        pipe,
        splice,
    };
    // SAFETY: the caller says that there is room for a table.
    unsafe { interface.write(table) };
}

#[allow(clippy::exit, reason = "the interface has no way to fail")]
fn refuse(error: &str) -> ! {
    // Nobody is left to hear that nobody listens.
    let _ = writeln!(io::stderr(), "netyard-drill: --so_flags: {error}");
    process::exit(2)
}

/// Ends the stack. What a script has not closed stays its own to close.
unsafe extern "C" fn free(user: *mut c_void) {
    // SAFETY: the table's pointer came from a box, and is not used after this.
    drop(unsafe { Box::from_raw(user.cast::<World>()) });
}

pub(crate) fn world<'a>(user: *mut c_void) -> &'a World {
    // SAFETY: it is the table's pointer, to what lives until `free` and may be shared by threads.
    unsafe { &*user.cast::<World>() }
}

/// What a call returns: a number, or -1 with `errno` set.
pub(crate) fn answer<T: TryInto<ssize_t>>(result: Result<T, Errno>) -> ssize_t {
    match result {
        Ok(number) => number.try_into().unwrap_or(ssize_t::MAX),
        Err(Errno(number)) => {
            // SAFETY: it has no preconditions, and what it returns is this thread's own.
            let errno = unsafe { libc::__errno_location() };
            // SAFETY: as above.
            unsafe { errno.write(number) };
            -1
        }
    }
}

/// The same for calls that return no lengths.
pub(crate) fn short(result: Result<c_int, Errno>) -> c_int {
    // All that comes from a `c_int` fits one.
    answer(result) as c_int
}

pub(crate) fn done(result: Result<(), Errno>) -> c_int {
    short(result.map(|()| 0))
}

/// A packet that a peer has sent, from its IP header on.
unsafe extern "C" fn netdev_send(user: *mut c_void, packet: *const c_void, len: size_t) -> c_int {
    // SAFETY: the caller has so many bytes.
    let packet = unsafe { pointers::bytes(packet, len) };
    done(packet.and_then(|packet| match world(user).receive(packet) {
        true => Ok(()),
        false => Err(Errno(libc::EINVAL)),
    }))
}

/// The next packet that the stack sends, and when; no bytes: it sends nothing any more.
unsafe extern "C" fn netdev_receive(
    user: *mut c_void,
    packet: *mut c_void,
    len: *mut size_t,
    microseconds: *mut c_longlong,
) -> c_int {
    done(|| -> Result<(), Errno> {
        // SAFETY: the caller says how much room there is.
        let room = unsafe { len.as_ref() }.copied().ok_or(Errno(libc::EFAULT))?;
        let (at, bytes) = world(user).next_packet().unwrap_or_default();
        let part = iovec { iov_base: packet, iov_len: room };
        pointers::room(slice::from_ref(&part))?;
        // SAFETY: the caller says so, and `room` has looked at it.
        unsafe { pointers::scatter(&bytes, slice::from_ref(&part)) };
        // SAFETY: it has led to a length before.
        unsafe { pointers::put(bytes.len().min(room), len) }?;
        // The clock begins at some 2^50 microseconds.
        // SAFETY: the caller has room for a time.
        unsafe { pointers::put(at.as_micros() as c_longlong, microseconds) }
    }())
}

unsafe extern "C" fn usleep(user: *mut c_void, microseconds: c_uint) -> c_int {
    world(user).sleep(Duration::from_micros(microseconds.into()));
    0
}

unsafe extern "C" fn gettimeofday(
    user: *mut c_void,
    time: *mut timeval,
    _: *mut timezone,
) -> c_int {
    let now = world(user).call(|state| state.clock.look());
    // The clock begins at some 2^30 seconds.
    let now = timeval { tv_sec: now.as_secs() as _, tv_usec: now.subsec_micros().into() };
    // SAFETY: as the system call has it.
    done(unsafe { pointers::put(now, time) })
}

const MISSING: Errno = Errno(libc::ENOSYS);

unsafe extern "C" fn epoll_create(_: *mut c_void, _: c_int) -> c_int {
    short(Err(MISSING))
}

unsafe extern "C" fn epoll_ctl(
    _: *mut c_void,
    _: c_int,
    _: c_int,
    _: c_int,
    _: *mut epoll_event,
) -> c_int {
    short(Err(MISSING))
}

unsafe extern "C" fn epoll_wait(
    _: *mut c_void,
    _: c_int,
    _: *mut epoll_event,
    _: c_int,
    _: c_int,
) -> c_int {
    short(Err(MISSING))
}

unsafe extern "C" fn pipe(_: *mut c_void, _: *mut c_int) -> c_int {
    short(Err(MISSING))
}

unsafe extern "C" fn splice(
    _: *mut c_void,
    _: c_int,
    _: *mut loff_t,
    _: c_int,
    _: *mut loff_t,
    _: size_t,
    _: c_uint,
) -> ssize_t {
    answer::<ssize_t>(Err(MISSING))
}
