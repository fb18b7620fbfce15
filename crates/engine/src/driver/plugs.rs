//! The plugs of a network: TAP devices, frame sockets, streams of frames and datagrams, those that come by a
//! path among them, with their queues, links and counters.
//!
//! A frame to a guest is written at once (to a stream: with the others of this turn). Only when the device takes no more is it copied into the
//! plug's bounded queue, which goes out when the device has room again; a full queue drops the
//! newcomer and counts it. What a plug's device cannot take (super-frames, partial checksums) is
//! done here, just before writing. A plug whose device is gone is put on the list of the dead, for
//! the driver to remove.

mod awaited;
mod device;
mod frame_socket;
mod plug;
mod queue;
mod tap;
mod vhost_user;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use netyard_sys::poll::{Interest, Poll};
use netyard_sys::supply::{Came, Supply};
use netyard_wire::pcapng::Way;
use netyard_wire::{Features, Frame, FrameBuf, MAX_FRAME_LEN, VNET_HEADER_LEN};

use self::device::Arrival;
use self::plug::Plug;
use super::edge::Ports;
use super::token::Token;
use crate::capture::Captures;
use crate::control::{PlugRequest, Traffic};
use crate::edge::PlugId;

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
        let plug = Plug::new(id, member, fd, request, seed)?;
        poll.add(plug.device.as_fd(), Token::Plug(id).encode(), plug.device.interest(false))?;
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
        plug.device.leave(poll);
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
        plug.device.woken();
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
            Ok(Arrival::Frame(len)) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                Ok(plug.accept(now, bytes, &mut self.scratch, &mut self.captures))
            }
            Ok(Arrival::Features(features)) => {
                plug.set_features(features);
                Ok(Received::Taken)
            }
            Ok(Arrival::Other) => {
                plug.features = Features::NONE;
                plug.drop_waiting();
                Ok(Received::Taken)
            }
            Ok(Arrival::Malformed(reason)) => Ok(Received::Malformed(reason)),
            Ok(Arrival::Gone) => Err(io::ErrorKind::UnexpectedEof.into()),
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

    /// When the next frame on a shaped link arrives, or a device is tried again that took none.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let links = self.list.iter().filter_map(|plug| plug.link.as_ref());
        let arrivals =
            links.flat_map(|link| [link.guest_to_host.next(), link.host_to_guest.next()]);
        let retries = self.list.iter().map(|plug| plug.retry.map(|(at, _)| at));
        arrivals.chain(retries).flatten().min()
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

    /// Writes the frames that were gathered for streams since the last call, has the poll tell of room where frames
    /// wait for it, and tries devices again of whose room nobody tells.
    pub(super) fn send_batches(&mut self, poll: &Poll, now: Instant) {
        for plug in &mut self.list {
            if let Err(error) = plug.end_turn(poll, now) {
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

#[cfg(test)]
mod tests;
