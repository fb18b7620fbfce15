//! Bytes from one stream to another through a pipe, without a copy in user space: `splice(2)`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::call;
use crate::stream::Stream;

/// Wanted room of a pipe, bytes: what everybody may have (`fs.pipe-max-size`). The kernel counts it in
/// pages; a part of a received super-packet takes the place of one and has up to 32 KiB.
const ROOM: libc::c_int = 1 << 20;

/// A pipe between two streams.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    places: usize,
}

impl Pipe {
    /// An empty pipe.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        /// Places of a pipe of a user who has too many pages in pipes already, pipe(7).
        const FEWEST: usize = 1;
        let mut ends = [-1; 2];
        // SAFETY: the kernel writes two ints to `ends`, which has room for two.
        call::check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
        let [read, write] = ends;
        let (read, write) = (call::own(read)?, call::own(write)?);
        // With less room it works as well, in more steps.
        // SAFETY: no pointers.
        let _ = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, ROOM) };
        // SAFETY: no pointers.
        let room = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_GETPIPE_SZ) };
        // SAFETY: no pointers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let room = usize::try_from(room).unwrap_or_default();
        let page = usize::try_from(page).unwrap_or(4096).max(1);
        Ok(Self { read, write, places: (room / page).max(FEWEST) })
    }

    /// How many parts there is room for; each has at least a byte. (So fewer bytes than that never fill it.)
    #[must_use]
    pub fn places(&self) -> usize {
        self.places
    }

    /// Takes up to `most` bytes off a stream, into this pipe, which must be empty. `Ok(0)`: the stream has
    /// ended.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing now; else the stream's error.
    pub fn fill(&self, from: &Stream, most: usize) -> io::Result<usize> {
        splice(from.as_fd(), self.write.as_fd(), most)
    }

    /// Hands up to `most` bytes of this pipe to a stream; returns how many it took.
    ///
    /// # Errors
    /// `WouldBlock`: it takes none now; else the stream's error.
    pub fn empty(&self, to: &Stream, most: usize) -> io::Result<usize> {
        splice(self.read.as_fd(), to.as_fd(), most)
    }

    /// Takes up to `into.len()` bytes out of this pipe.
    ///
    /// # Errors
    /// `WouldBlock`: it is empty.
    pub fn take(&self, into: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and length describe `into`, which is ours to write.
        call::check_len(unsafe {
            libc::read(self.read.as_raw_fd(), into.as_mut_ptr().cast(), into.len())
        })
    }
}

/// `splice(2)` without waiting.
fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let (no_offset, none) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: null pointers say that neither end is a file with an offset.
    call::check_len(unsafe { libc::splice(from, no_offset, to, none, most, flags) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::wait;

    /// A stream of ours and the far end.
    fn stream() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Stream::adopt(listener.accept().unwrap().0.into()).unwrap(), far)
    }

    #[test]
    fn bytes_pass_and_the_end_is_told_after_them() {
        let ((from, mut sends), (to, mut gets)) = (stream(), stream());
        let pipe = Pipe::new().unwrap();
        assert!(pipe.places() > 1);
        assert_eq!(pipe.fill(&from, 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        sends.write_all(b"hello").unwrap();
        drop(sends);
        wait::readable([from.as_fd()], None).unwrap();
        assert_eq!(pipe.fill(&from, 3).unwrap(), 3);
        assert_eq!(pipe.empty(&to, 3).unwrap(), 3);
        assert_eq!(pipe.fill(&from, 100).unwrap(), 2);
        let mut rest = [0; 8];
        assert_eq!(pipe.take(&mut rest).unwrap(), 2);
        assert_eq!(&rest[..2], b"lo");
        assert_eq!(pipe.take(&mut rest).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        while pipe.fill(&from, 100).unwrap_or(1) != 0 {
            wait::readable([from.as_fd()], None).unwrap();
        }
        drop(to);
        let mut got = String::new();
        gets.read_to_string(&mut got).unwrap();
        assert_eq!(got, "hel");
    }
}
