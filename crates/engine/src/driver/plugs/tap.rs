//! A plug by a TAP device.

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;

use netyard_sys::poll;
use netyard_wire::{Features, Frame};

use super::device::Arrival;

/// A queue of a TAP device, each frame behind a header.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    features: Features,
}

impl Tap {
    /// Takes over an open TAP device that takes such frames.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn adopt(fd: OwnedFd, features: Features) -> io::Result<Self> {
        let file = File::from(fd);
        if !file.metadata()?.file_type().is_char_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no TAP device"));
        }
        poll::set_nonblocking(file.as_fd())?;
        Ok(Self { file, features })
    }

    pub(super) fn features(&self) -> Features {
        self.features
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<Arrival> {
        Ok(match self.file.read(into)? {
            0 => Arrival::Gone,
            len => Arrival::Frame(len),
        })
    }

    pub(super) fn write(&mut self, frame: Frame<'_>) -> io::Result<()> {
        let header = frame.offload.encode();
        self.file.write_vectored(&[IoSlice::new(&header), IoSlice::new(frame.bytes)]).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
