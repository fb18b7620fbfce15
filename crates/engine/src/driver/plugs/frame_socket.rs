//! A plug by a frame socket: a word that says what each end takes, then a header and a frame in each
//! message.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netyard_sys::seqpacket::SeqPacket;
use netyard_wire::{Features, Frame};

use super::device::Arrival;

/// One end of a frame socket.
#[derive(Debug)]
pub(super) struct FrameSocket {
    socket: SeqPacket,
    /// The peer has said what it takes.
    greeted: bool,
}

impl FrameSocket {
    /// Takes over one end, and says what we take; the peer's word is the first message that we read.
    ///
    /// # Errors
    /// It is no such socket, or the peer is gone.
    pub(super) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let socket = SeqPacket::adopt(fd)?;
        socket.set_nonblocking(true)?;
        socket.send(&Features::ALL.bits().to_le_bytes(), &[])?;
        Ok(Self { socket, greeted: false })
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<Arrival> {
        let len = match self.socket.recv_bytes(into)? {
            0 => return Ok(Arrival::Gone),
            len if self.greeted => return Ok(Arrival::Frame(len)),
            len => len,
        };
        // What was meant for another network process before us may come first.
        let word = into.get(..len).and_then(|word| word.try_into().ok());
        let Some(word) = word else { return Ok(Arrival::Malformed("ungreeted")) };
        self.greeted = true;
        Ok(Arrival::Features(Features::from_bits_truncate(u32::from_le_bytes(word))))
    }

    pub(super) fn write(&self, frame: Frame<'_>) -> io::Result<()> {
        let header = frame.offload.encode();
        self.socket.send_parts(&mut [IoSlice::new(&header), IoSlice::new(frame.bytes)])
    }
}

impl AsFd for FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
