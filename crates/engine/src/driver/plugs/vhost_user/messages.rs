//! Messages of a front end: a header, a body of numbers, and open files beside it.
//!
//! They are read here and not by `vhost`'s own handler, which tries again for ever where descriptors do not
//! come whole, and with it the network's one thread.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use netyard_sys::stream;
use netyard_sys::wait::{self, Want};
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};

/// Bytes before each message: its kind, flags, and how long it is.
const HEADER_LEN: usize = 12;
const LENGTH_AT: usize = 8;

/// Of the messages, in their flags.
const VERSION: u32 = 1;

/// The longest message that is believed, without its header: as long as any is.
const MAX_LEN: usize = 4_096;

/// The most files with one message, and so the most parts that a memory has.
pub(super) const MAX_FILES: usize = 8;

/// A whole message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: FrontendReq,
    /// It says that it wants to be answered, whatever it is.
    pub(super) wants_answer: bool,
    pub(super) body: Vec<u8>,
    pub(super) files: Vec<File>,
}

impl Message {
    /// Takes the next one from a connection; `None` if there is no whole one yet. Half of one stays: who reads it
    /// would wait for the rest, and the network with it.
    ///
    /// # Errors
    /// `UnexpectedEof`: the front end is gone, maybe within a message; `InvalidData`: it is no message; else the
    /// socket's error.
    pub(super) fn take(stream: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        if let Some(message) = Self::take_whole(stream)? {
            return Ok(Some(message));
        }
        let [end] = wait::ready([(stream, Want::ReadClosed)], Some(Duration::ZERO))?;
        if !end.ended {
            return Ok(None);
        }
        // The rest may have come before the end did, and after the first look.
        Self::take_whole(stream)?
            .map_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()), |rest| Ok(Some(rest)))
    }

    fn take_whole(stream: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER_LEN];
        let (copied, waiting) = match stream::look_ahead(stream, &mut header) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            looked => looked?,
        };
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if waiting >= HEADER_LEN && copied < HEADER_LEN {
            return Err(wrong("a torn message"));
        }
        let length = header.get(LENGTH_AT..).and_then(|word| word.try_into().ok());
        let length = usize::try_from(length.map_or(0, u32::from_ne_bytes)).unwrap_or(usize::MAX);
        if copied == HEADER_LEN && length > MAX_LEN {
            return Err(wrong("a message is too long"));
        }
        if waiting < HEADER_LEN + length {
            return Ok(None);
        }
        let (bytes, files) = read(stream, HEADER_LEN + length)?;
        let mut words = Words(&bytes);
        let (kind, flags, _) = (words.u32()?, words.u32()?, words.u32()?);
        let kind = FrontendReq::try_from(kind).map_err(|_| wrong("a message of no known kind"))?;
        let wants = VhostUserHeaderFlag::NEED_REPLY.bits();
        if flags & !wants != VERSION {
            return Err(wrong("a message of another version, or an answer"));
        }
        let (body, wants_answer) = (words.0.to_vec(), flags & wants != 0);
        Ok(Some(Self { kind, wants_answer, body, files }))
    }
}

/// Reads so many bytes, which are there, and the files with them.
fn read(stream: BorrowedFd<'_>, len: usize) -> io::Result<(Vec<u8>, Vec<File>)> {
    let (mut bytes, mut files) = (vec![0; len], Vec::new());
    let mut end = 0;
    while let Some(room) = bytes.get_mut(end..).filter(|room| !room.is_empty()) {
        let (more, with) = match stream::receive_with_descriptors(stream, room) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(wrong("a torn message"));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(wrong("files of a message are too many, or cannot be had"));
            }
            read => read?,
        };
        files.extend(with.into_iter().map(File::from));
        if files.len() > MAX_FILES {
            return Err(wrong("a message comes with too many files"));
        }
        end += more;
    }
    Ok((bytes, files))
}

/// The answer to a message of this kind.
pub(super) fn answer(kind: FrontendReq, body: [u8; 8]) -> Vec<u8> {
    let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
    let mut bytes: Vec<u8> =
        [u32::from(kind), flags, 8].into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.extend(body);
    bytes
}

/// The numbers of a message, in the order in which they are asked for.
pub(super) struct Words<'a>(pub(super) &'a [u8]);

impl Words<'_> {
    fn next<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (word, rest) = self.0.split_first_chunk().ok_or_else(|| wrong("a message is short"))?;
        self.0 = rest;
        Ok(*word)
    }

    pub(super) fn u32(&mut self) -> io::Result<u32> {
        self.next().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> io::Result<u64> {
        self.next().map(u64::from_ne_bytes)
    }

    /// There are no more.
    pub(super) fn end(&self) -> io::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(wrong("a message is long")) }
    }
}

/// What is said is wrong: the connection ends.
pub(super) fn wrong(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
