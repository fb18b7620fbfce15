//! What a plug reads from and writes to; each kind that has more to it than its socket has a module.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netyard_sys::poll::{Interest, Poll};
use netyard_sys::unixgram::Unixgram;
use netyard_wire::{Features, Frame, VNET_HEADER_LEN};

use super::awaited::Awaited;
use super::frame_socket::FrameSocket;
use super::tap::Tap;
use super::vhost_user::VhostUser;
use crate::control::{PlugKind, PlugRequest};
use crate::driver::token::Token;
use crate::edge::PlugId;

/// Where a plug's frames come from and go to.
#[derive(Debug)]
pub(super) enum Device {
    Tap(Tap),
    Socket(FrameSocket),
    /// A stream of whoever connects.
    Awaited(Awaited),
    VhostUser(Box<VhostUser>),
    Datagrams(Unixgram),
}

/// What a device has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// So many bytes: a header and a frame.
    Frame(usize),
    /// What the other end takes from now on.
    Features(Features),
    /// It is another one from now on, or none: it takes no more than any does.
    Other,
    /// Something that is no frame; the reason, for the drop counters.
    Malformed(&'static str),
    /// The other end is gone, for ever.
    Gone,
}

impl Device {
    /// Takes over a descriptor that a member says is a plug of the requested kind.
    ///
    /// # Errors
    /// It is something else, or its kind needs a network in bridge mode.
    pub(super) fn adopt(fd: OwnedFd, request: &PlugRequest) -> io::Result<Self> {
        match request.kind {
            PlugKind::Tap => {
                Tap::adopt(fd, Features::from_bits_truncate(request.features)).map(Self::Tap)
            }
            PlugKind::Socket => FrameSocket::adopt(fd).map(Self::Socket),
            PlugKind::Namespace | PlugKind::Device { .. } => {
                let why = "a network in user mode makes no links: bring a TAP device";
                Err(io::Error::new(io::ErrorKind::InvalidInput, why))
            }
            PlugKind::Listener => Awaited::adopt(fd).map(Self::Awaited),
            PlugKind::VhostUser => {
                VhostUser::adopt(fd).map(|device| Self::VhostUser(Box::new(device)))
            }
            PlugKind::Datagrams => Unixgram::adopt(fd).map(Self::Datagrams),
        }
    }

    /// What the device takes, as far as is known when it is plugged in.
    pub(super) fn features(&self) -> Features {
        match self {
            Self::Tap(tap) => tap.features(),
            Self::Socket(_) | Self::Awaited(_) | Self::VhostUser(_) | Self::Datagrams(_) => {
                Features::NONE
            }
        }
    }

    /// What the poll is to tell of the device; `waits`: frames wait for room in it. A TAP that was written to has room
    /// again with each frame that its kernel takes, so it is asked only then.
    pub(super) const fn interest(&self, waits: bool) -> Interest {
        match self {
            Self::Tap(_) if !waits => Interest::Arrivals,
            _ => Interest::Changes,
        }
    }

    /// Whether an event tells when the device that took no more takes frames again. If not, it has to be tried.
    pub(super) fn tells_room(&self) -> bool {
        !matches!(self, Self::Datagrams(_))
    }

    /// Reads one header and frame.
    ///
    /// # Errors
    /// `WouldBlock`; `InvalidData`: the frame was longer than any; else the device is gone.
    pub(super) fn read(&mut self, poll: &Poll, id: PlugId, into: &mut [u8]) -> io::Result<Arrival> {
        match self {
            Self::Tap(tap) => tap.read(into),
            Self::Socket(socket) => socket.read(into),
            Self::Awaited(awaited) => loop {
                awaited.admit(poll, Token::Plug(id).encode())?;
                // Whoever comes next has his turn at once.
                match read_bare(into, |room| awaited.read(room))? {
                    Arrival::Gone => {}
                    arrival => break Ok(arrival),
                }
            },
            Self::Datagrams(socket) => read_bare(into, |room| socket.read(room).map(Some)),
            Self::VhostUser(device) => device.read(poll, Token::Plug(id).encode(), into),
        }
    }

    /// Something has happened to what the device watches.
    pub(super) fn woken(&mut self) {
        if let Self::VhostUser(device) = self {
            device.woken();
        }
    }

    /// Stops watching what the device has added to the poll by itself and others have copies of.
    pub(super) fn leave(&mut self, poll: &Poll) {
        if let Self::VhostUser(device) = self {
            device.leave(poll);
        }
    }

    /// Writes one header and frame.
    ///
    /// # Errors
    /// `WouldBlock`; `InvalidInput` for a super-frame that the device does not take after all; else the
    /// frame is lost, or the device gone.
    pub(super) fn write(&mut self, frame: Frame<'_>) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.write(frame),
            Self::Socket(socket) => socket.write(frame),
            Self::Awaited(awaited) => awaited.write(frame.bytes),
            Self::VhostUser(device) => device.write(frame),
            Self::Datagrams(socket) => socket.write(frame.bytes),
        }
    }

    /// Writes what was gathered.
    ///
    /// # Errors
    /// The device is gone.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tap(_) | Self::Socket(_) | Self::Datagrams(_) => Ok(()),
            Self::Awaited(awaited) => {
                awaited.flush();
                Ok(())
            }
            Self::VhostUser(device) => {
                device.flush();
                Ok(())
            }
        }
    }
}

/// Reads a frame without a header behind one that says that nothing is left undone in it.
fn read_bare(
    into: &mut [u8],
    read: impl FnOnce(&mut [u8]) -> io::Result<Option<usize>>,
) -> io::Result<Arrival> {
    let room = into.split_at_mut_checked(VNET_HEADER_LEN);
    let (header, rest) = room.ok_or(io::ErrorKind::InvalidInput)?;
    header.fill(0);
    Ok(read(rest)?.map_or(Arrival::Gone, |len| Arrival::Frame(VNET_HEADER_LEN + len)))
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(tap) => tap.as_fd(),
            Self::Socket(socket) => socket.as_fd(),
            Self::Awaited(awaited) => awaited.as_fd(),
            Self::VhostUser(device) => device.as_fd(),
            Self::Datagrams(socket) => socket.as_fd(),
        }
    }
}
