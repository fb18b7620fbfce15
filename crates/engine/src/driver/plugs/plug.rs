//! One plug: its device with the queue before it, its shaped link and its counters.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netyard_sys::poll::Poll;
use netyard_sys::supply::Supply;
use netyard_wire::pcapng::Way;
use netyard_wire::{Features, Frame, Offload, segment};

use super::device::Device;
use super::queue::Queue;
use super::{Counts, Received};
use crate::capture::Captures;
use crate::control::{Link, PlugRequest, Traffic};
use crate::driver::token::Token;
use crate::edge::PlugId;
use crate::shaper::Shaper;

/// Pauses before a device is tried again that does not tell when it has room: the first, and the longest.
const RETRY: Duration = Duration::from_millis(1);
const LONGEST_RETRY: Duration = Duration::from_millis(64);

/// A plug of the list.
#[derive(Debug)]
pub(super) struct Plug {
    pub(super) id: PlugId,
    /// The instance behind it.
    pub(super) name: Arc<str>,
    /// Who made it.
    pub(super) member: String,
    pub(super) device: Device,
    pub(super) features: Features,
    /// The device may have more to read.
    pub(super) readable: bool,
    pub(super) queue: Queue,
    /// The poll tells of room in the device, as frames wait for it.
    awaits_room: bool,
    /// When a device that tells of no room is tried again, and how long after the last time.
    pub(super) retry: Option<(Instant, Duration)>,
    pub(super) link: Option<Box<Shaped>>,
    /// Where sockets of the instance's namespace come from.
    pub(super) supply: Option<Box<Supply>>,
    pub(super) counts: Counts,
}

/// Both directions of a shaped link.
#[derive(Debug)]
pub(super) struct Shaped {
    pub(super) guest_to_host: Shaper,
    pub(super) host_to_guest: Shaper,
}

/// What became of one frame.
enum Sent {
    Yes,
    Dropped,
    /// The device does not take such super-frames after all.
    TooMuch,
}

impl Plug {
    /// A plug on a descriptor that a member brings; `seed` decides which frames its link loses.
    ///
    /// # Errors
    /// The descriptor is no such thing.
    pub(super) fn new(
        id: PlugId,
        member: &str,
        fd: OwnedFd,
        request: &PlugRequest,
        seed: u64,
    ) -> io::Result<Self> {
        let device = Device::adopt(fd, request)?;
        let shaped = request.link != Link::default();
        Ok(Self {
            id,
            name: request.name.as_str().into(),
            member: member.to_owned(),
            features: device.features(),
            device,
            readable: true,
            queue: Queue::default(),
            awaits_room: false,
            retry: None,
            link: shaped.then(|| Box::new(Shaped::new(request.link, seed))),
            supply: None,
            counts: Counts::default(),
        })
    }

    /// Closes the way by which sockets come, and throws those away that have.
    pub(super) fn drop_supply(&mut self, poll: &Poll) {
        let Some(supply) = self.supply.take() else { return };
        // The keeper has a copy of it.
        if let Err(error) = poll.remove(supply.as_fd()) {
            tracing::warn!(plug = self.id.0, %error, "a supply is still watched");
        }
    }

    /// Takes in what was read: a header and a frame.
    pub(super) fn accept<'a>(
        &mut self,
        now: Instant,
        bytes: &'a [u8],
        scratch: &mut Vec<u8>,
        captures: &mut Captures,
    ) -> Received<'a> {
        let Some((header, bytes)) = bytes.split_first_chunk() else {
            return Received::Malformed("truncated");
        };
        self.counts.guest_to_host.count(bytes.len());
        let offload = match Offload::parse(header, bytes) {
            Ok(offload) => offload,
            Err(error) => return Received::Malformed(error.reason()),
        };
        let frame = Frame { bytes, offload };
        captures.see(self.id, &self.name, Way::Out, frame);
        let Some(link) = &mut self.link else { return Received::Frame(frame) };
        // A link carries and loses single packets.
        let lost = &mut self.counts.dropped;
        let cut = segment::fit(frame, Features::CSUM, scratch, &mut |packet| {
            *lost += u64::from(!link.guest_to_host.push(now, packet.into()));
        });
        cut.map_or_else(|error| Received::Malformed(error.reason()), |()| Received::Taken)
    }

    /// Sends a frame into the plug's link; false if its queue has no room for all of it. What the
    /// link loses on the way is counted, but it was sent: no sender knows.
    pub(super) fn send_over(
        &mut self,
        link: &mut Shaped,
        now: Instant,
        frame: Frame<'_>,
        scratch: &mut Vec<u8>,
    ) -> bool {
        let packet = frame.offload.gso.map_or(frame.bytes.len(), |gso| usize::from(gso.size));
        if !link.host_to_guest.has_room(now, frame.bytes.len(), packet) {
            self.counts.dropped += 1;
            return false;
        }
        let lost = &mut self.counts.dropped;
        let cut = segment::fit(frame, Features::CSUM, scratch, &mut |packet| {
            *lost += u64::from(!link.host_to_guest.push(now, packet.into()));
        });
        *lost += u64::from(cut.is_err());
        cut.is_ok()
    }

    /// Sends a frame to the device as far as the device takes it, or cut; false if any of it was
    /// dropped.
    ///
    /// # Errors
    /// The device is gone.
    pub(super) fn send(&mut self, frame: Frame<'_>, scratch: &mut Vec<u8>) -> io::Result<bool> {
        let (mut all, mut too_much, mut gone) = (true, false, None);
        let cut =
            segment::fit(frame, self.features, scratch, &mut |packet| match self.offer(packet) {
                Ok(Sent::Yes) => {}
                Ok(Sent::Dropped) => all = false,
                Ok(Sent::TooMuch) => too_much = true,
                Err(error) => gone = Some(error),
            });
        if let Some(error) = gone {
            return Err(error);
        }
        if too_much {
            tracing::warn!(plug = self.id.0, "the device refuses super-frames: cutting them");
            self.features = Features::CSUM;
            return self.send(frame, scratch);
        }
        if cut.is_err() {
            self.counts.dropped += 1;
        }
        Ok(all && cut.is_ok())
    }

    /// Hands one frame to the device, or to the queue.
    ///
    /// # Errors
    /// The device is gone.
    fn offer(&mut self, frame: Frame<'_>) -> io::Result<Sent> {
        if self.queue.frames.is_empty() {
            match self.device.write(frame) {
                Ok(()) => {
                    self.counts.host_to_guest.count(frame.bytes.len());
                    return Ok(Sent::Yes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if gone(&error) => return Err(error),
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidInput
                        && frame.offload.gso.is_some() =>
                {
                    return Ok(Sent::TooMuch);
                }
                // The guest's interface is down, or its kernel has no memory.
                Err(_) => {
                    self.counts.dropped += 1;
                    return Ok(Sent::Dropped);
                }
            }
        }
        if self.queue.push(frame) {
            return Ok(Sent::Yes);
        }
        self.counts.dropped += 1;
        Ok(Sent::Dropped)
    }

    /// Writes what was gathered, and sees to it that what waits goes on when there is room.
    ///
    /// # Errors
    /// The device is gone, or cannot be watched.
    pub(super) fn end_turn(&mut self, poll: &Poll, now: Instant) -> io::Result<()> {
        if self.device.tells_room() {
            self.device.flush()?;
            return self.await_room(poll);
        }
        if self.queue.frames.is_empty() {
            self.retry = None;
            return Ok(());
        }
        let (due, pause) = self.retry.unwrap_or((now, RETRY / 2));
        if due > now {
            return Ok(());
        }
        let waited = self.queue.frames.len();
        self.flush()?;
        let left = self.queue.frames.len();
        let pause = if left < waited { RETRY } else { (pause * 2).min(LONGEST_RETRY) };
        self.retry = (left > 0).then(|| (now + pause, pause));
        Ok(())
    }

    /// Writes what waited.
    ///
    /// # Errors
    /// The device is gone.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.device.flush()?;
        while let Some(frame) = self.queue.frames.front() {
            match self.device.write(frame.as_frame()) {
                Ok(()) => self.counts.host_to_guest.count(frame.bytes.len()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if gone(&error) => return Err(error),
                Err(_) => self.counts.dropped += 1,
            }
            self.queue.pop();
        }
        Ok(())
    }

    /// Notes what the other end takes; what waits was cut for what it took before, and is dropped.
    pub(super) fn set_features(&mut self, features: Features) {
        if features != self.features {
            self.features = features;
            self.drop_waiting();
        }
    }

    /// Drops the frames that wait for room.
    pub(super) fn drop_waiting(&mut self) {
        self.counts.dropped += u64::try_from(self.queue.frames.len()).unwrap_or_default();
        self.queue = Queue::default();
    }

    /// Has the poll tell of room in the device as long as frames wait for it.
    ///
    /// # Errors
    /// What the kernel said.
    fn await_room(&mut self, poll: &Poll) -> io::Result<()> {
        let waits = !self.queue.frames.is_empty();
        let (before, now) = (self.device.interest(self.awaits_room), self.device.interest(waits));
        self.awaits_room = waits;
        if before == now {
            return Ok(());
        }
        poll.change(self.device.as_fd(), Token::Plug(self.id).encode(), now)
    }
}

impl Shaped {
    fn new(link: Link, seed: u64) -> Self {
        // Each direction loses frames of its own.
        Self {
            guest_to_host: Shaper::new(link.up, seed),
            host_to_guest: Shaper::new(link.down, !seed),
        }
    }
}

impl Traffic {
    fn count(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += u64::try_from(bytes).unwrap_or_default();
    }
}

/// True for errors after which a device never works again.
fn gone(error: &io::Error) -> bool {
    /// The TAP's network device was deleted.
    const EBADFD: i32 = 77;
    const ENODEV: i32 = 19;
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
        || matches!(error.raw_os_error(), Some(EBADFD | ENODEV))
}
