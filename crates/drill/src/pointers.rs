//! What a caller's pointers lead to.

use std::slice;

use libc::{c_int, c_void, iovec, msghdr, size_t, sockaddr, socklen_t};

use crate::address;
use crate::errno::Errno;
use std::net::SocketAddr;

const FAULT: Errno = Errno(libc::EFAULT);

/// Bytes to be read; none may be asked for with any pointer.
///
/// # Safety
/// Unless it is null, `from` leads to `len` bytes that stay as they are as long as the slice is used.
pub(crate) unsafe fn bytes<'a>(from: *const c_void, len: size_t) -> Result<&'a [u8], Errno> {
    match (len, from.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(FAULT),
        // SAFETY: the caller says that so many bytes are there and stay.
        _ => Ok(unsafe { slice::from_raw_parts(from.cast(), len) }),
    }
}

/// The parts of a list of buffers: each one's place and length.
///
/// # Safety
/// Unless it is null, `parts` leads to `count` of them.
pub(crate) unsafe fn parts<'a>(parts: *const iovec, count: size_t) -> Result<&'a [iovec], Errno> {
    match (count, parts.is_null()) {
        (0, _) => Ok(&[]),
        (_, true) => Err(FAULT),
        // SAFETY: the caller says that so many are there.
        _ => Ok(unsafe { slice::from_raw_parts(parts, count) }),
    }
}

/// All bytes of a list of buffers.
///
/// # Safety
/// Each of them leads to as many bytes as it says, or is null.
pub(crate) unsafe fn gather(parts: &[iovec]) -> Result<Vec<u8>, Errno> {
    let mut gathered = Vec::new();
    for part in parts {
        // SAFETY: the caller says so of each part.
        gathered.extend_from_slice(unsafe { bytes(part.iov_base, part.iov_len) }?);
    }
    Ok(gathered)
}

/// The room in a list of buffers, bytes.
///
/// # Errors
/// `EFAULT`: there is none where some is said to be.
pub(crate) fn room(parts: &[iovec]) -> Result<usize, Errno> {
    if parts.iter().any(|part| part.iov_base.is_null() && part.iov_len > 0) {
        return Err(FAULT);
    }
    Ok(parts.iter().map(|part| part.iov_len).sum())
}

/// Fills a list of buffers.
///
/// # Safety
/// Each of them has as much room as it says, and `room` has found no fault with them.
pub(crate) unsafe fn scatter(mut from: &[u8], parts: &[iovec]) {
    for part in parts {
        let (filled, rest) = from.split_at(part.iov_len.min(from.len()));
        if !filled.is_empty() {
            // SAFETY: the caller says that the part has the room; nobody else knows of `from`.
            unsafe { part.iov_base.cast::<u8>().copy_from(filled.as_ptr(), filled.len()) };
        }
        from = rest;
    }
}

/// A socket address; `None` for null.
///
/// # Safety
/// Unless it is null, `from` leads to `len` bytes.
pub(crate) unsafe fn socket_address(
    from: *const sockaddr,
    len: socklen_t,
) -> Result<Option<SocketAddr>, Errno> {
    if from.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller says that so many bytes are there.
    let bytes = unsafe { bytes(from.cast(), len as size_t) }?;
    address::parse(bytes).map(Some)
}

/// Tells a socket address, if the caller wants to know it.
///
/// # Safety
/// Unless they are null, `len` leads to a length, and `to` to so many bytes.
pub(crate) unsafe fn tell_address(
    address: Option<SocketAddr>,
    to: *mut sockaddr,
    len: *mut socklen_t,
) {
    let (Some(address), false, false) = (address, to.is_null(), len.is_null()) else { return };
    let bytes = address::emit(address);
    // SAFETY: the caller says that a length is there.
    let room = unsafe { len.read() } as usize;
    let count = bytes.len().min(room);
    // SAFETY: `count` is at most what the caller says there is room for, and what `bytes` has.
    unsafe { to.cast::<u8>().copy_from(bytes.as_ptr(), count) };
    // SAFETY: as above; addresses are some ten bytes long.
    unsafe { len.write(bytes.len() as socklen_t) };
}

/// A message's description.
///
/// # Safety
/// Unless it is null, `message` leads to one that nobody else uses as long as the reference is used.
pub(crate) unsafe fn message<'a>(message: *mut msghdr) -> Result<&'a mut msghdr, Errno> {
    // SAFETY: the caller says so.
    unsafe { message.as_mut() }.ok_or(FAULT)
}

/// The number that an option is set to, and the one behind it, if there is one.
///
/// # Safety
/// Unless it is null, `value` leads to `len` bytes.
pub(crate) unsafe fn numbers(
    value: *const c_void,
    len: socklen_t,
) -> Result<(c_int, c_int), Errno> {
    // SAFETY: the caller says that so many bytes are there.
    let bytes = unsafe { bytes(value, len as size_t) }?;
    let mut numbers = bytes.as_chunks().0.iter().map(|number| c_int::from_ne_bytes(*number));
    let first = numbers.next().ok_or(Errno(libc::EINVAL))?;
    Ok((first, numbers.next().unwrap_or(0)))
}

/// Puts a value where a caller wants it.
///
/// # Safety
/// Unless it is null, `to` leads to room for it.
pub(crate) unsafe fn put<T>(value: T, to: *mut T) -> Result<(), Errno> {
    if to.is_null() {
        return Err(FAULT);
    }
    // SAFETY: the caller says that there is room.
    unsafe { to.write(value) };
    Ok(())
}
