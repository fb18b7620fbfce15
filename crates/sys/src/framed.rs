//! Frames on a stream socket, as QEMU's `-netdev stream` speaks: each frame has its length before
//! it, four bytes in network order, and no offload header.
//!
//! Both directions work in batches: one read takes in what the socket holds, up to
//! `READ_ROOM` bytes, and frames are cut from that; frames to the other end gather until the end of
//! the caller's turn, or until `BATCH` bytes are together, and leave with one write. A frame is
//! never torn: what the socket does not take stays, in order, and while more than `MAX_UNSENT`
//! bytes stay no further frame is taken in.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::stream::Stream;

/// Bytes taken in with one read: more than a hundred packets of ordinary size, and the biggest
/// frame with room to spare.
const READ_ROOM: usize = 256 * 1024;

/// Bytes to the other end that are written without waiting for the end of the turn.
const BATCH: usize = 64 * 1024;

/// Bytes that the socket has not taken, above which no frame is added.
const MAX_UNSENT: usize = 256 * 1024;

/// Bytes before each frame that say how long it is.
const LENGTH_LEN: usize = size_of::<u32>();

/// One end of such a stream.
#[derive(Debug)]
pub struct Framed {
    socket: UnixStream,
    /// Bytes of the longest frame that is believed.
    max: usize,
    received: Received,
    /// What is still to be written, from `sent` on.
    unsent: Vec<u8>,
    sent: usize,
}

/// Bytes that were read and not cut into frames yet: `bytes[start..end]`.
#[derive(Debug)]
struct Received {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// A length was a lie: nothing that follows can be understood.
    broken: bool,
}

/// What the received bytes start with.
#[derive(Debug, PartialEq, Eq)]
enum Next<'a> {
    Frame(&'a [u8]),
    /// Its rest has not arrived.
    Partial,
    /// Longer than any frame.
    Lie,
}

impl Framed {
    /// Takes over one end of a connected stream, whose frames have at most `max` bytes: less than
    /// 256 KiB.
    ///
    /// # Errors
    /// It is no stream socket.
    pub fn adopt(fd: OwnedFd, max: usize) -> io::Result<Self> {
        let max = max.min(READ_ROOM - LENGTH_LEN);
        let socket = UnixStream::from(Stream::adopt(fd)?.into_fd());
        Ok(Self { socket, max, received: Received::new(), unsent: Vec::new(), sent: 0 })
    }

    /// The next frame: its length. `Ok(None)`: the other end is gone.
    ///
    /// # Errors
    /// `WouldBlock`; `InvalidInput`: `into` is shorter than the longest frame; `InvalidData`, once, for a
    /// length that no frame has, and `ConnectionAborted` after that.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.received.next(self.max) {
                Next::Frame(frame) => {
                    let len = frame.len();
                    into.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(frame);
                    self.received.take(LENGTH_LEN + len);
                    return Ok(Some(len));
                }
                Next::Lie if self.received.broken => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Next::Lie => {
                    self.received.broken = true;
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Next::Partial => match self.socket.read(self.received.room())? {
                    0 => return Ok(None),
                    len => self.received.end += len,
                },
            }
        }
    }

    /// Takes a frame in, to be written at the latest by [`Framed::flush`].
    ///
    /// # Errors
    /// `WouldBlock`: the other end is behind; else that of the socket.
    pub fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.unsent.len() - self.sent > MAX_UNSENT {
            self.flush()?;
            if self.unsent.len() - self.sent > MAX_UNSENT {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        let len = u32::try_from(frame.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.unsent.extend(len.to_be_bytes());
        self.unsent.extend(frame);
        if self.unsent.len() - self.sent >= BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what the socket takes; true if that is everything.
    ///
    /// # Errors
    /// That of the socket, never `WouldBlock`.
    pub fn flush(&mut self) -> io::Result<bool> {
        while let Some(rest) = self.unsent.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        // What was written goes; the memory stays, as the next turn wants it again.
        self.unsent.drain(..self.sent);
        self.sent = 0;
        Ok(self.unsent.is_empty())
    }
}

impl AsFd for Framed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Received {
    fn new() -> Self {
        let bytes = vec![0; READ_ROOM].into_boxed_slice();
        Self { bytes, start: 0, end: 0, broken: false }
    }

    fn next(&self, max: usize) -> Next<'_> {
        let bytes = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some((len, rest)) = bytes.split_first_chunk::<LENGTH_LEN>() else {
            return Next::Partial;
        };
        match usize::try_from(u32::from_be_bytes(*len)) {
            Ok(len) if len <= max => rest.get(..len).map_or(Next::Partial, Next::Frame),
            _ => Next::Lie,
        }
    }

    fn take(&mut self, count: usize) {
        self.start += count;
        if self.start >= self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room behind what is there. A partial frame moves to the front first, so that there is
    /// always room for the rest of it.
    fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait;

    /// As of Ethernet and IP.
    const MAX: usize = 65_535 + 14;

    fn pair() -> (Framed, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        (Framed::adopt(near.into(), MAX).unwrap(), far)
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
    }

    fn read(framed: &mut Framed) -> io::Result<Vec<u8>> {
        let mut buffer = vec![9; MAX];
        let len = framed.read(&mut buffer)?.expect("it is there");
        Ok(buffer[..len].to_vec())
    }

    #[test]
    fn frames_are_cut_from_bytes_however_they_arrive() {
        let (mut near, mut far) = pair();
        let frames: Vec<Vec<u8>> = (0..20).map(|n| vec![n; usize::from(n) * 70]).collect();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
        for size in [1, 3, 4, 5, 100, bytes.len()] {
            let mut got = Vec::new();
            for part in bytes.chunks(size) {
                far.write_all(part).unwrap();
                while let Ok(frame) = read(&mut near) {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames, "{size} bytes at a time");
            assert_eq!(read(&mut near).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn the_biggest_frame_passes_at_any_place_of_the_buffer() {
        let (mut near, far) = pair();
        far.set_nonblocking(false).unwrap();
        let big = vec![7; MAX];
        let bytes = [framed(&[1; 1_000]), framed(&big)].concat().repeat(20);
        let writer = std::thread::spawn(move || (&far).write_all(&bytes).map(|()| far));
        let mut got = 0;
        while got < 40 {
            match read(&mut near) {
                Ok(frame) => {
                    assert!(frame == big || frame == [1; 1_000]);
                    got += 1;
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        drop(writer.join().unwrap().unwrap());
        wait::gone(near.as_fd());
        assert_eq!(near.read(&mut vec![0; MAX]).unwrap(), None, "the end");
    }

    #[test]
    fn a_length_that_no_frame_has_is_told_once_and_ends_it() {
        for lie in [u32::MAX, u32::try_from(MAX).unwrap() + 1] {
            let (mut near, mut far) = pair();
            far.write_all(&framed(b"a frame")).unwrap();
            far.write_all(&lie.to_be_bytes()).unwrap();
            far.write_all(&framed(b"never read")).unwrap();
            assert_eq!(read(&mut near).unwrap(), b"a frame");
            assert_eq!(read(&mut near).unwrap_err().kind(), io::ErrorKind::InvalidData);
            for _ in 0..3 {
                let error = read(&mut near).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            }
        }
    }

    #[test]
    fn frames_to_a_slow_reader_wait_whole_and_in_order() {
        let (mut near, mut far) = pair();
        let mut taken = 0_u32;
        while near.write(&taken.to_be_bytes().repeat(250)).is_ok() {
            taken += 1;
        }
        let mut got = Vec::new();
        loop {
            near.flush().unwrap();
            let mut buffer = vec![0; 100_000];
            match far.read(&mut buffer) {
                Ok(len) => got.extend_from_slice(&buffer[..len]),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        let sent = (0..taken).flat_map(|n| framed(&n.to_be_bytes().repeat(250)));
        assert!(got == sent.collect::<Vec<_>>());
        assert!(near.write(b"again").is_ok());
    }

    #[test]
    fn a_reader_that_has_gone_is_an_error_of_the_write() {
        let (mut near, far) = pair();
        drop(far);
        wait::gone(near.as_fd());
        near.write(b"gathered").unwrap();
        assert_eq!(near.flush().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
