//! The plugs of a network: TAP devices, frame sockets and streams of frames, those that come by a path
//! among them, with their queues, links and counters.
//!
//! A frame to a guest is written at once (to a stream: with the others of this turn). Only when the device takes no more is it copied into the
//! plug's bounded queue, which goes out when the device has room again; a full queue drops the
//! newcomer and counts it. What a plug's device cannot take (super-frames, partial checksums) is
//! done here, just before writing. A plug whose device is gone is put on the list of the dead, for
//! the driver to remove.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::sync::Arc;
use std::time::Instant;

use netyard_sys::framed::Framed;
use netyard_sys::poll::{self, Interest, Poll};
use netyard_sys::seqpacket::SeqPacket;
use netyard_sys::supply::{Came, Supply};
use netyard_wire::pcapng::Way;
use netyard_wire::{Features, Frame, FrameBuf, MAX_FRAME_LEN, Offload, VNET_HEADER_LEN, segment};

use super::awaited::Awaited;
use super::edge::Ports;
use super::token::Token;
use crate::capture::Captures;
use crate::control::{Link, PlugKind, PlugRequest, Traffic};
use crate::edge::PlugId;
use crate::shaper::Shaper;

/// Bounds of one plug's queue towards its guest.
const MAX_QUEUED_FRAMES: usize = 1_024;
const MAX_QUEUED_BYTES: usize = 4 << 20;

/// Room for one frame with its header.
pub(super) const BUFFER_LEN: usize = VNET_HEADER_LEN + MAX_FRAME_LEN;

/// The plugs, by number.
#[derive(Debug)]
pub(super) struct Plugs {
    /// Ordered by number. (Numbers only grow, so a new plug goes to the end.)
    list: Vec<Plug>,
    /// Where frames are cut to what a device takes.
    scratch: Vec<u8>,
    dead: Vec<(PlugId, String)>,
    /// Who wants to see what passes.
    pub(super) captures: Captures,
}

/// Counters of one plug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) guest_to_host: Traffic,
    pub(super) host_to_guest: Traffic,
    pub(super) dropped: u64,
    /// Sockets of the instance's namespace can be had.
    pub(super) supplied: bool,
}

/// What reading a plug brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received<'a> {
    /// A frame for the network, now.
    Frame(Frame<'a>),
    /// A frame that is on its way over the plug's link, or that told the peer's features.
    Taken,
    /// Something that is no frame; the reason, for the drop counters.
    Malformed(&'static str),
    /// Nothing for now, or for ever.
    Nothing,
}

#[derive(Debug)]
struct Plug {
    id: PlugId,
    /// The instance behind it.
    name: Arc<str>,
    /// Who made it.
    member: String,
    device: Device,
    features: Features,
    /// The device may have more to read.
    readable: bool,
    queue: Queue,
    link: Option<Box<Shaped>>,
    /// Where sockets of the instance's namespace come from.
    supply: Option<Box<Supply>>,
    counts: Counts,
}

#[derive(Debug)]
enum Device {
    Tap(File),
    Socket {
        socket: SeqPacket,
        /// The peer has said what it takes.
        greeted: bool,
    },
    Stream(Framed),
    /// A stream of whoever connects.
    Awaited(Awaited),
}

/// Both directions of a shaped link.
#[derive(Debug)]
struct Shaped {
    guest_to_host: Shaper,
    host_to_guest: Shaper,
}

/// Frames that wait for room in the device.
#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<FrameBuf>,
    bytes: usize,
}

/// What became of one frame.
enum Sent {
    Yes,
    Dropped,
    /// The device does not take such super-frames after all.
    TooMuch,
}

impl Plugs {
    pub(super) fn new() -> Self {
        let captures = Captures::default();
        Self { list: Vec::new(), scratch: Vec::new(), dead: Vec::new(), captures }
    }

    /// Adds a plug; `seed` decides which frames its link loses.
    pub(super) fn add(
        &mut self,
        poll: &Poll,
        id: PlugId,
        member: &str,
        fd: OwnedFd,
        request: &PlugRequest,
        seed: u64,
    ) -> io::Result<()> {
        let device = Device::adopt(fd, request.kind)?;
        let shaped = request.link != Link::default();
        let plug = Plug {
            id,
            name: request.name.as_str().into(),
            member: member.to_owned(),
            features: device.features(request),
            device,
            readable: true,
            queue: Queue::default(),
            link: shaped.then(|| Box::new(Shaped::new(request.link, seed))),
            supply: None,
            counts: Counts::default(),
        };
        poll.add(plug.device.as_fd(), Token::Plug(id).encode(), Interest::Changes)?;
        let place = self.list.partition_point(|other| other.id < id);
        self.list.insert(place, plug);
        Ok(())
    }

    /// Removes a plug. (Its instance may hold a copy of the descriptor, so closing ours would not
    /// end the watch.)
    pub(super) fn remove(&mut self, poll: &Poll, id: PlugId) {
        let Ok(place) = self.place(id) else { return };
        let mut plug = self.list.remove(place);
        plug.drop_supply(poll);
        if let Err(error) = poll.remove(plug.device.as_fd()) {
            tracing::warn!(plug = id.0, %error, "the plug's device is still watched");
        }
    }

    /// Takes the connection by which the instance behind a plug hands out sockets. What goes over a shaped link
    /// goes in frames.
    pub(super) fn set_supply(&mut self, poll: &Poll, id: PlugId, fd: OwnedFd) -> io::Result<()> {
        let place = self.place(id).map_err(|_| io::ErrorKind::NotFound)?;
        let plug = self.list.get_mut(place).ok_or(io::ErrorKind::NotFound)?;
        plug.drop_supply(poll);
        if plug.link.is_some() {
            return Ok(());
        }
        let supply = Supply::new(fd)?;
        poll.add(supply.as_fd(), Token::Supply(id).encode(), Interest::Readable)?;
        plug.supply = Some(Box::new(supply));
        Ok(())
    }

    /// Takes in what a supply has brought.
    pub(super) fn receive_supply(&mut self, poll: &Poll, id: PlugId) -> Vec<Came> {
        let plug = self.place(id).ok().and_then(|place| self.list.get_mut(place));
        let Some(plug) = plug else { return Vec::new() };
        let Some(supply) = &mut plug.supply else { return Vec::new() };
        supply.receive().unwrap_or_else(|error| {
            // Most often the instance has gone, and its plug follows.
            tracing::debug!(plug = id.0, %error, "no more sockets from inside");
            plug.drop_supply(poll);
            Came::NONE.to_vec()
        })
    }

    /// Removes every plug of a member.
    pub(super) fn remove_member(&mut self, poll: &Poll, member: &str) {
        self.captures.remove_member(member);
        let plugs = self.list.iter().filter(|plug| plug.member == member);
        for id in plugs.map(|plug| plug.id).collect::<Vec<_>>() {
            self.remove(poll, id);
        }
    }

    /// The plugs whose device has gone since the last call, with their members.
    pub(super) fn take_dead(&mut self) -> Vec<(PlugId, String)> {
        std::mem::take(&mut self.dead)
    }

    pub(super) fn counts(&self, id: PlugId) -> Option<Counts> {
        let plug = self.list.get(self.place(id).ok()?)?;
        Some(Counts { supplied: plug.supply.is_some(), ..plug.counts })
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Notes what the poll told of a plug; sends what waited if there is room.
    pub(super) fn handle_event(&mut self, id: PlugId, readable: bool, writable: bool) {
        let Ok(place) = self.place(id) else { return };
        let Some(plug) = self.list.get_mut(place) else { return };
        plug.readable |= readable;
        if writable && let Err(error) = plug.flush() {
            self.bury(id, &error);
        }
    }

    /// True while some plug may have more to read.
    pub(super) fn any_readable(&self) -> bool {
        self.list.iter().any(|plug| plug.readable)
    }

    /// True while the plug at a place in the list may have more to read.
    pub(super) fn is_readable(&self, place: usize) -> bool {
        self.list.get(place).is_some_and(|plug| plug.readable)
    }

    /// Reads one frame of the plug at a place in the list into `buffer` ([`BUFFER_LEN`] bytes).
    pub(super) fn receive<'a>(
        &mut self,
        poll: &Poll,
        now: Instant,
        place: usize,
        buffer: &'a mut [u8],
    ) -> (PlugId, Received<'a>) {
        let Some(plug) = self.list.get_mut(place) else { return (PlugId(0), Received::Nothing) };
        let id = plug.id;
        let received = match plug.device.read(poll, id, buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                plug.accept(now, bytes, &mut self.scratch, &mut self.captures)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Received::Taken),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Ok(Received::Malformed("oversized"))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                plug.readable = false;
                Ok(Received::Nothing)
            }
            Err(error) => Err(error),
        };
        match received {
            Ok(received) => (id, received),
            Err(error) => {
                self.bury(id, &error);
                (id, Received::Nothing)
            }
        }
    }

    /// When the next frame on a shaped link arrives.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let links = self.list.iter().filter_map(|plug| plug.link.as_ref());
        links
            .flat_map(|link| [link.guest_to_host.next(), link.host_to_guest.next()])
            .flatten()
            .min()
    }

    /// Delivers the frames that have arrived at guests.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for plug in &mut self.list {
            let Some(mut link) = plug.link.take() else { continue };
            while let Some(frame) = link.host_to_guest.pop(now) {
                if let Err(error) = plug.send(frame.as_frame(), &mut self.scratch) {
                    mark_dead(&mut self.dead, plug, &error);
                    break;
                }
            }
            plug.link = Some(link);
        }
    }

    /// Writes the frames that were gathered for streams since the last call.
    pub(super) fn send_batches(&mut self) {
        for plug in &mut self.list {
            if let Err(error) = plug.device.flush() {
                mark_dead(&mut self.dead, plug, &error);
            }
        }
    }

    /// A frame that has arrived from a guest, over a shaped link.
    pub(super) fn next_arrival(&mut self, now: Instant) -> Option<(PlugId, FrameBuf)> {
        self.list.iter_mut().find_map(|plug| {
            let frame = plug.link.as_mut()?.guest_to_host.pop(now)?;
            Some((plug.id, frame))
        })
    }

    fn place(&self, id: PlugId) -> Result<usize, usize> {
        self.list.binary_search_by_key(&id, |plug| plug.id)
    }

    fn bury(&mut self, id: PlugId, error: &io::Error) {
        let Ok(place) = self.place(id) else { return };
        let Some(plug) = self.list.get_mut(place) else { return };
        mark_dead(&mut self.dead, plug, error);
    }
}

/// Puts a plug on the list of the dead, and stops reading it.
fn mark_dead(dead: &mut Vec<(PlugId, String)>, plug: &mut Plug, error: &io::Error) {
    plug.readable = false;
    if !dead.iter().any(|(id, _)| *id == plug.id) {
        tracing::warn!(plug = plug.id.0, %error, "the plug's device is gone");
        dead.push((plug.id, plug.member.clone()));
    }
}

impl Ports for Plugs {
    fn transmit(&mut self, now: Instant, id: PlugId, frame: Frame<'_>) -> bool {
        let Ok(place) = self.place(id) else { return false };
        let Some(plug) = self.list.get_mut(place) else { return false };
        self.captures.see(id, &plug.name, Way::In, frame);
        let sent = match plug.link.take() {
            None => plug.send(frame, &mut self.scratch),
            Some(mut link) => {
                let sent = plug.send_over(&mut link, now, frame, &mut self.scratch);
                plug.link = Some(link);
                Ok(sent)
            }
        };
        sent.unwrap_or_else(|error| {
            self.bury(id, &error);
            false
        })
    }

    fn take_inside(&mut self, id: PlugId, ipv4: bool) -> io::Result<OwnedFd> {
        let plug = self.place(id).ok().and_then(|place| self.list.get_mut(place));
        let supply = plug.and_then(|plug| plug.supply.as_mut());
        supply.ok_or(io::ErrorKind::Unsupported)?.take(ipv4)
    }

    fn is_captured(&self, id: PlugId) -> bool {
        let plug = self.place(id).ok().and_then(|place| self.list.get(place));
        plug.is_some_and(|plug| self.captures.look_at(&plug.name))
    }
}

impl Plug {
    /// Closes the way by which sockets come, and throws those away that have.
    fn drop_supply(&mut self, poll: &Poll) {
        let Some(supply) = self.supply.take() else { return };
        // The keeper has a copy of it.
        if let Err(error) = poll.remove(supply.as_fd()) {
            tracing::warn!(plug = self.id.0, %error, "a supply is still watched");
        }
    }

    /// Takes in what was read: a header and a frame, or a frame socket's first message.
    fn accept<'a>(
        &mut self,
        now: Instant,
        bytes: &'a [u8],
        scratch: &mut Vec<u8>,
        captures: &mut Captures,
    ) -> io::Result<Received<'a>> {
        if let Device::Socket { greeted: greeted @ false, .. } = &mut self.device {
            // What was meant for another network process before us may come first.
            let Ok(word) = bytes.try_into() else { return Ok(Received::Malformed("ungreeted")) };
            self.features = Features::from_bits_truncate(u32::from_le_bytes(word));
            *greeted = true;
            return Ok(Received::Taken);
        }
        let Some((header, bytes)) = bytes.split_first_chunk() else {
            return Ok(Received::Malformed("truncated"));
        };
        self.counts.guest_to_host.count(bytes.len());
        let offload = match Offload::parse(header, bytes) {
            Ok(offload) => offload,
            Err(error) => return Ok(Received::Malformed(error.reason())),
        };
        let frame = Frame { bytes, offload };
        captures.see(self.id, &self.name, Way::Out, frame);
        let Some(link) = &mut self.link else { return Ok(Received::Frame(frame)) };
        // A link carries and loses single packets.
        let lost = &mut self.counts.dropped;
        let cut = segment::fit(frame, Features::CSUM, scratch, &mut |packet| {
            *lost += u64::from(!link.guest_to_host.push(now, packet.into()));
        });
        Ok(cut.map_or_else(|error| Received::Malformed(error.reason()), |()| Received::Taken))
    }

    /// Sends a frame into the plug's link; false if its queue has no room for all of it. What the
    /// link loses on the way is counted, but it was sent: no sender knows.
    fn send_over(
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
    fn send(&mut self, frame: Frame<'_>, scratch: &mut Vec<u8>) -> io::Result<bool> {
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

    /// Writes what waited.
    ///
    /// # Errors
    /// The device is gone.
    fn flush(&mut self) -> io::Result<()> {
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
}

impl Device {
    /// Takes over a descriptor that a member says is a plug of this kind.
    fn adopt(fd: OwnedFd, kind: PlugKind) -> io::Result<Self> {
        match kind {
            PlugKind::Tap => {
                let file = File::from(fd);
                if !file.metadata()?.file_type().is_char_device() {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no TAP device"));
                }
                poll::set_nonblocking(file.as_fd())?;
                Ok(Self::Tap(file))
            }
            PlugKind::Socket => {
                let socket = SeqPacket::adopt(fd)?;
                socket.set_nonblocking(true)?;
                // What we take; the peer's word is the first message that we read.
                socket.send(&Features::ALL.bits().to_le_bytes(), &[])?;
                Ok(Self::Socket { socket, greeted: false })
            }
            PlugKind::Namespace | PlugKind::Device { .. } => {
                let why = "a network in user mode makes no links: bring a TAP device";
                Err(io::Error::new(io::ErrorKind::InvalidInput, why))
            }
            PlugKind::Stream => Framed::adopt(fd, MAX_FRAME_LEN).map(Self::Stream),
            PlugKind::Listener => Awaited::adopt(fd).map(Self::Awaited),
        }
    }

    /// What the device takes, as far as is known when it is plugged in.
    fn features(&self, request: &PlugRequest) -> Features {
        match self {
            Self::Tap(_) => Features::from_bits_truncate(request.features),
            Self::Socket { .. } | Self::Stream(_) | Self::Awaited(_) => Features::NONE,
        }
    }

    /// Reads one header and frame. `Ok(0)`: the other end is gone, for ever.
    fn read(&mut self, poll: &Poll, id: PlugId, into: &mut [u8]) -> io::Result<usize> {
        let awaited = match self {
            Self::Tap(file) => return file.read(into),
            Self::Socket { socket, .. } => return socket.recv_bytes(into),
            Self::Stream(stream) => return read_bare(into, |room| stream.read(room)),
            Self::Awaited(awaited) => awaited,
        };
        loop {
            awaited.admit(poll, Token::Plug(id).encode())?;
            // Whoever comes next has his turn at once.
            match read_bare(into, |room| awaited.read(room))? {
                0 => {}
                len => return Ok(len),
            }
        }
    }

    /// Writes one header and frame.
    fn write(&mut self, frame: Frame<'_>) -> io::Result<()> {
        let header = frame.offload.encode();
        let mut parts = [IoSlice::new(&header), IoSlice::new(frame.bytes)];
        match self {
            Self::Tap(file) => file.write_vectored(&parts).map(drop),
            Self::Socket { socket, .. } => socket.send_parts(&mut parts),
            Self::Stream(stream) => stream.write(frame.bytes),
            Self::Awaited(awaited) => awaited.write(frame.bytes),
        }
    }

    /// Writes what was gathered.
    ///
    /// # Errors
    /// The device is gone.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tap(_) | Self::Socket { .. } => Ok(()),
            Self::Stream(stream) => stream.flush().map(drop),
            Self::Awaited(awaited) => {
                awaited.flush();
                Ok(())
            }
        }
    }
}

/// Reads a frame without a header behind one that says that nothing is left undone in it. `Ok(0)`: there
/// is none, for ever.
fn read_bare(
    into: &mut [u8],
    read: impl FnOnce(&mut [u8]) -> io::Result<Option<usize>>,
) -> io::Result<usize> {
    let room = into.split_at_mut_checked(VNET_HEADER_LEN);
    let (header, rest) = room.ok_or(io::ErrorKind::InvalidInput)?;
    header.fill(0);
    Ok(read(rest)?.map_or(0, |len| VNET_HEADER_LEN + len))
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(file) => file.as_fd(),
            Self::Socket { socket, .. } => socket.as_fd(),
            Self::Stream(stream) => stream.as_fd(),
            Self::Awaited(awaited) => awaited.as_fd(),
        }
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

impl Queue {
    /// Copies a frame to the end; false if the queue is full.
    fn push(&mut self, frame: Frame<'_>) -> bool {
        let bytes = self.bytes + frame.bytes.len();
        if self.frames.len() >= MAX_QUEUED_FRAMES || bytes > MAX_QUEUED_BYTES {
            return false;
        }
        self.bytes = bytes;
        self.frames.push_back(frame.into());
        true
    }

    /// Drops the frame at the front; memory goes with the last one.
    fn pop(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= frame.bytes.len();
        }
        if self.frames.is_empty() {
            *self = Self::default();
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    use netyard_sys::poll::Events;
    use netyard_wire::{Checksum, Gso, GsoKind, MacAddr, build};

    use super::*;
    use crate::control::Shape;

    const ID: PlugId = PlugId(3);

    /// Plugs with one frame socket, and the other end of that.
    struct Bench {
        poll: Poll,
        plugs: Plugs,
        peer: SeqPacket,
        buffer: Vec<u8>,
    }

    impl Bench {
        fn new(link: Link, features: Features) -> Self {
            let mut bench = Self::greeting(link);
            bench.peer.send(&features.bits().to_le_bytes(), &[]).unwrap();
            assert_eq!(bench.receive(), None);
            bench
        }

        /// The peer has not said what it takes.
        fn greeting(link: Link) -> Self {
            let (near, peer) = SeqPacket::pair().unwrap();
            peer.set_nonblocking(true).unwrap();
            let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
            plugs.add(&poll, ID, "yard", near.into(), &request(PlugKind::Socket, link), 1).unwrap();
            let mut word = [0; 8];
            assert_eq!(peer.recv_bytes(&mut word).unwrap(), 4);
            assert_eq!(word[..4], Features::ALL.bits().to_le_bytes());
            Self { poll, plugs, peer, buffer: vec![0; BUFFER_LEN] }
        }

        /// Reads until there is a frame, or nothing more.
        fn receive(&mut self) -> Option<Result<FrameBuf, &'static str>> {
            self.plugs.handle_event(ID, true, false);
            loop {
                match self.plugs.receive(&self.poll, Instant::now(), 0, &mut self.buffer).1 {
                    Received::Frame(frame) => return Some(Ok(frame.into())),
                    Received::Malformed(reason) => return Some(Err(reason)),
                    Received::Taken => {}
                    Received::Nothing => return None,
                }
            }
        }

        fn peer_sends(&self, frame: Frame<'_>) {
            let header = frame.offload.encode();
            self.peer.send(&[&header, frame.bytes].concat(), &[]).unwrap();
        }

        /// What the peer has got.
        fn peer_receives(&self) -> Vec<FrameBuf> {
            let mut buffer = vec![0; BUFFER_LEN];
            let messages = std::iter::from_fn(|| {
                let len = self.peer.recv_bytes(&mut buffer).ok()?;
                let (header, bytes) = buffer[..len].split_first_chunk().unwrap();
                let offload = Offload::parse(header, bytes).unwrap();
                Some(FrameBuf { bytes: bytes.to_vec(), offload })
            });
            messages.collect()
        }
    }

    fn both(shape: Shape) -> Link {
        Link { up: shape, down: shape }
    }

    fn request(kind: PlugKind, link: Link) -> PlugRequest {
        PlugRequest { features: Features::ALL.bits(), link, ..PlugRequest::new("one", kind) }
    }

    /// A UDP frame, its checksum left to do; cut into datagrams of `size` bytes if given.
    fn frame(payload: usize, size: Option<u16>) -> FrameBuf {
        let (from, to): (SocketAddr, SocketAddr) =
            ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        let mut bytes = Vec::new();
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let mut offload = build::udp_frame(&mut bytes, mac, mac, from, to, 64, &vec![7; payload]);
        assert!(matches!(offload.checksum, Checksum::Partial { .. }));
        let header_len = u16::try_from(bytes.len() - payload).unwrap();
        offload.gso = size.map(|size| Gso { kind: GsoKind::Udp, size, header_len, ecn: false });
        FrameBuf { bytes, offload }
    }

    #[test]
    fn frames_pass_both_ways_whole_and_are_counted() {
        let mut bench = Bench::new(Link::default(), Features::ALL);
        let sent = frame(5_000, Some(1_000));
        assert!(bench.plugs.transmit(Instant::now(), ID, sent.as_frame()));
        assert_eq!(bench.peer_receives(), std::slice::from_ref(&sent));
        bench.peer_sends(sent.as_frame());
        assert_eq!(bench.receive(), Some(Ok(sent.clone())));
        assert_eq!(bench.receive(), None);
        let once = Traffic { frames: 1, bytes: u64::try_from(sent.bytes.len()).unwrap() };
        let expected =
            Counts { guest_to_host: once, host_to_guest: once, dropped: 0, supplied: false };
        assert_eq!(bench.plugs.counts(ID), Some(expected));
    }

    #[test]
    fn a_peer_gets_no_more_than_it_takes() {
        for features in [Features::NONE, Features::CSUM] {
            let mut bench = Bench::new(Link::default(), features);
            bench.plugs.transmit(Instant::now(), ID, frame(5_000, Some(1_000)).as_frame());
            let got = bench.peer_receives();
            assert_eq!(got.len(), 5);
            let partial = |frame: &FrameBuf| {
                frame.offload.gso.is_none()
                    && matches!(frame.offload.checksum, Checksum::Partial { .. })
            };
            assert_eq!(got.iter().all(partial), features == Features::CSUM);
        }
    }

    #[test]
    fn a_peer_that_has_not_spoken_takes_nothing_special() {
        let mut bench = Bench::greeting(Link::default());
        bench.plugs.transmit(Instant::now(), ID, frame(100, None).as_frame());
        assert_eq!(bench.peer_receives()[0].offload, Offload::default());
        bench.peer_sends(frame(100, None).as_frame());
        assert_eq!(bench.receive(), Some(Err("ungreeted")), "a frame is no greeting");
        assert!(bench.plugs.take_dead().is_empty());
    }

    #[test]
    fn what_is_no_frame_is_told_and_harms_nothing() {
        let mut bench = Bench::new(Link::default(), Features::ALL);
        bench.peer.send(b"short", &[]).unwrap();
        assert_eq!(bench.receive(), Some(Err("truncated")));
        let mut lie = frame(100, None);
        lie.offload.checksum = Checksum::Partial { start: 9_000, offset: 6 };
        bench.peer_sends(lie.as_frame());
        assert!(matches!(bench.receive(), Some(Err(_))));
        bench.peer.send(&vec![0; BUFFER_LEN + 1], &[]).unwrap();
        assert_eq!(bench.receive(), Some(Err("oversized")));
        bench.peer_sends(frame(100, None).as_frame());
        assert_eq!(bench.receive(), Some(Ok(frame(100, None))));
        assert!(bench.plugs.take_dead().is_empty());
    }

    #[test]
    fn a_slow_peer_has_a_bounded_queue_that_goes_out_later() {
        let mut bench = Bench::new(Link::default(), Features::ALL);
        let big = frame(60_000, None);
        let now = Instant::now();
        let taken =
            (0..1_000).take_while(|_| bench.plugs.transmit(now, ID, big.as_frame())).count();
        let counts = bench.plugs.counts(ID).unwrap();
        assert_eq!(counts.dropped, 1);
        let queued = &bench.plugs.list[0].queue;
        assert!(queued.bytes <= MAX_QUEUED_BYTES && queued.bytes > MAX_QUEUED_BYTES - 70_000);
        let mut got = bench.peer_receives().len();
        while got < taken {
            bench.plugs.handle_event(ID, false, true);
            let more = bench.peer_receives().len();
            assert!(more > 0);
            got += more;
        }
        let sent = bench.plugs.counts(ID).unwrap().host_to_guest.frames;
        assert_eq!(sent, u64::try_from(taken).unwrap());
        assert_eq!(bench.plugs.list[0].queue.frames.capacity(), 0, "the memory is given back");
        assert!(bench.plugs.transmit(now, ID, big.as_frame()));
    }

    #[test]
    fn a_peer_that_has_gone_is_told_once_and_not_read_again() {
        let mut bench = Bench::new(Link::default(), Features::ALL);
        bench.peer = SeqPacket::pair().unwrap().0;
        assert_eq!(bench.receive(), None);
        assert!(!bench.plugs.any_readable());
        assert!(!bench.plugs.transmit(Instant::now(), ID, frame(100, None).as_frame()));
        assert_eq!(bench.plugs.take_dead(), [(ID, "yard".to_owned())]);
        bench.plugs.remove(&bench.poll, ID);
        assert_eq!((bench.plugs.len(), bench.plugs.counts(ID)), (0, None));
        assert!(!bench.plugs.transmit(Instant::now(), ID, frame(100, None).as_frame()));
    }

    #[test]
    fn a_shaped_link_delays_single_packets_both_ways() {
        let delay = Duration::from_secs(1);
        let mut bench = Bench::new(both(Shape { delay, ..Shape::default() }), Features::ALL);
        let sent = frame(2_000, Some(1_000));
        let now = Instant::now();
        assert!(bench.plugs.transmit(now, ID, sent.as_frame()));
        bench.peer_sends(sent.as_frame());
        assert_eq!(bench.receive(), None);
        assert!(bench.peer_receives().is_empty());
        assert_eq!(bench.plugs.poll_timeout(), Some(now + delay));
        bench.plugs.handle_timeout(now + delay);
        assert_eq!(bench.peer_receives().len(), 2);
        let later = now + 10 * delay;
        let arrived = std::iter::from_fn(|| bench.plugs.next_arrival(later)).count();
        assert_eq!((arrived, bench.plugs.poll_timeout()), (2, None));
    }

    #[test]
    fn a_lossy_link_counts_what_it_loses() {
        let mut bench = Bench::new(both(Shape { loss: 1.0, ..Shape::default() }), Features::ALL);
        let sent = bench.plugs.transmit(Instant::now(), ID, frame(100, None).as_frame());
        assert!(sent, "no sender knows what a link loses");
        bench.peer_sends(frame(100, None).as_frame());
        assert_eq!(bench.receive(), None);
        assert_eq!(bench.plugs.counts(ID).unwrap().dropped, 2);
    }

    #[test]
    fn a_tap_drops_while_it_is_down_and_is_told_when_it_goes() {
        netyard_testbed::isolate(|| {
            let tap = netyard_sys::tap::Tap::create("tap0").unwrap();
            let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
            let request = request(PlugKind::Tap, Link::default());
            plugs.add(&poll, ID, "yard", tap.fd, &request, 1).unwrap();
            // The kernel refuses frames to a guest whose interface is down.
            assert!(!plugs.transmit(Instant::now(), ID, frame(100, None).as_frame()));
            assert_eq!(plugs.counts(ID).unwrap().dropped, 1);

            let ip = |arguments: &str| {
                let arguments = arguments.split(' ');
                netyard_testbed::run(std::process::Command::new("ip").args(arguments));
            };
            ip("link set tap0 up");
            assert!(plugs.transmit(Instant::now(), ID, frame(5_000, Some(1_000)).as_frame()));
            // The guest's kernel asks for routers and groups by itself.
            let mut buffer = vec![0; BUFFER_LEN];
            netyard_testbed::wait_for("a frame of the guest", Duration::from_secs(10), || {
                plugs.handle_event(ID, true, false);
                let (_, received) = plugs.receive(&poll, Instant::now(), 0, &mut buffer);
                matches!(received, Received::Frame(_)).then_some(())
            });

            let mut events = Events::new();
            poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
            ip("link delete tap0");
            poll.wait(&mut events, Some(Duration::from_secs(10))).unwrap();
            assert!(events.iter().next().unwrap().error);
            plugs.handle_event(ID, true, false);
            while plugs.any_readable() {
                plugs.receive(&poll, Instant::now(), 0, &mut buffer);
            }
            assert_eq!(plugs.take_dead().len(), 1);
            plugs.remove(&poll, ID);
        });
    }

    #[test]
    fn a_stream_carries_single_checksummed_packets() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
        let request = request(PlugKind::Stream, Link::default());
        plugs.add(&poll, ID, "yard", near.into(), &request, 1).unwrap();
        assert!(plugs.transmit(Instant::now(), ID, frame(5_000, Some(1_000)).as_frame()));
        plugs.send_batches();
        let mut got = vec![0; 65_536];
        let len = far.read(&mut got).unwrap();
        let mut rest = &got[..len];
        let mut count = 0;
        while let Some((len, bytes)) = rest.split_first_chunk() {
            let len = usize::try_from(u32::from_be_bytes(*len)).unwrap();
            assert_eq!(len, 1_000 + 14 + 20 + 8);
            (_, rest) = bytes.split_at(len);
            count += 1;
        }
        assert_eq!(count, 5);

        // What the guest sends back arrives as it is; nothing in it is left undone.
        far.write_all(&got[..len]).unwrap();
        far.write_all(&[0xff; 8]).unwrap();
        let mut buffer = vec![0; BUFFER_LEN];
        plugs.handle_event(ID, true, false);
        for _ in 0..5 {
            let (_, received) = plugs.receive(&poll, Instant::now(), 0, &mut buffer);
            let Received::Frame(frame) = received else { panic!("{received:?}") };
            assert_eq!((frame.bytes.len(), frame.offload), (1_042, Offload::default()));
        }
        let (_, received) = plugs.receive(&poll, Instant::now(), 0, &mut buffer);
        assert_eq!(received, Received::Malformed("oversized"), "a lie is counted");
        assert_eq!(plugs.receive(&poll, Instant::now(), 0, &mut buffer).1, Received::Nothing);
        assert_eq!(plugs.take_dead().len(), 1, "and ends the plug");
    }

    #[test]
    fn one_guest_after_the_other_comes_by_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plug");
        let listener = UnixListener::bind(&path).unwrap();
        let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
        let (mut events, mut buffer) = (Events::new(), vec![0; BUFFER_LEN]);
        let request = request(PlugKind::Listener, Link::default());
        plugs.add(&poll, ID, "yard", listener.into(), &request, 1).unwrap();
        let mut receive = |plugs: &mut Plugs| loop {
            match plugs.receive(&poll, Instant::now(), 0, &mut buffer).1 {
                Received::Frame(frame) => return frame.bytes.to_vec(),
                Received::Nothing => {
                    poll.wait(&mut events, Some(Duration::from_secs(20))).unwrap();
                    assert!(events.iter().any(|event| event.token == Token::Plug(ID).encode()));
                    plugs.handle_event(ID, true, true);
                }
                received => panic!("{received:?}"),
            }
        };
        let bare = frame(500, None);
        assert!(!plugs.transmit(Instant::now(), ID, bare.as_frame()), "nobody is there");
        for round in 0..3_u8 {
            let mut guest = UnixStream::connect(&path).unwrap();
            let mut other = UnixStream::connect(&path).unwrap();
            guest.write_all(&[&[0, 0, 0, 60][..], &[round; 60]].concat()).unwrap();
            assert_eq!(receive(&mut plugs), [round; 60]);
            assert!(plugs.transmit(Instant::now(), ID, bare.as_frame()));
            plugs.send_batches();
            let mut got = vec![0; 4 + bare.bytes.len()];
            guest.read_exact(&mut got).unwrap();
            // Its checksum was completed; the payload lies behind it.
            assert_eq!(got[46..], bare.bytes[42..]);
            // One that has broken off in the midst of a frame makes room for the next one.
            guest.write_all(&[0, 0, 0, 60, 1, 2]).unwrap();
            drop(guest);
            other.write_all(&[&[0, 0, 0, 61][..], &[round; 61]].concat()).unwrap();
            assert_eq!(receive(&mut plugs), [round; 61]);
        }
        assert_eq!(plugs.take_dead(), [], "the plug stays");
    }

    #[test]
    fn a_descriptor_of_another_kind_is_refused() {
        let (poll, mut plugs) = (Poll::new().unwrap(), Plugs::new());
        for kind in [PlugKind::Tap, PlugKind::Socket, PlugKind::Stream, PlugKind::Listener] {
            let fd = OwnedFd::from(File::open("/proc/self/status").unwrap());
            assert!(plugs.add(&poll, ID, "yard", fd, &request(kind, Link::default()), 1).is_err());
        }
        // A device that cannot be waited for.
        let fd = OwnedFd::from(File::open("/dev/zero").unwrap());
        assert!(
            plugs.add(&poll, ID, "yard", fd, &request(PlugKind::Tap, Link::default()), 1).is_err()
        );
        assert_eq!(plugs.len(), 0);
    }
}
