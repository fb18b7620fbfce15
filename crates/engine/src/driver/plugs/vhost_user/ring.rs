//! One ring of a device: chains of buffers that the guest offers, and those that it gets back.
//!
//! The ring lies in the guest's memory and may change at any time, so each word of it is read once and
//! checked. What the guest offers is read by [`virtio_queue`]; what it gets back is written here, so that
//! all buffers of a frame become visible at once: a guest that polls would else find the first of them,
//! and miss the rest.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::num::Wrapping;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{Ordering, fence};

use netyard_sys::poll;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::VirtqUsedElem;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{ByteValued, Bytes as _, GuestAddress, GuestMemoryMmap};

use netyard_sys::guest_memory::GuestMemory;

use super::messages::wrong;

/// The most entries that a ring may have: as many as QEMU gives it.
pub(super) const MAX_ENTRIES: u16 = 1_024;

/// Bytes before the entries of both rings: flags and an index, two bytes each.
const HEADER_LEN: u64 = 4;
const INDEX_AT: u64 = 2;
const AVAILABLE_LEN: u64 = 2;
const USED_LEN: u64 = 8;

/// The guest has written nonsense into the ring itself: nothing more can be had of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl From<Broken> for io::Error {
    fn from(_: Broken) -> Self {
        wrong("a ring of the machine is broken")
    }
}

/// A chain that the guest offers.
pub(super) type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// A ring, as far as the front end has set it up.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    place: Option<Place>,
    /// By which the guest tells that there is something.
    pub(super) kick: Option<File>,
    /// What the front end wants in its place.
    pub(super) new_kick: Option<Option<File>>,
    call: Option<File>,
    enabled: bool,
    /// Chains that the guest gets back, written but not told.
    used: Wrapping<u16>,
    told: Wrapping<u16>,
    /// The index when it was last seen whether the guest wants to be told.
    considered: Wrapping<u16>,
}

/// Where the parts are, by the front end's own addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl Ring {
    pub(super) fn new() -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            queue: Queue::new(MAX_ENTRIES)?,
            place: None,
            kick: None,
            new_kick: None,
            call: None,
            enabled: false,
            used: Wrapping(0),
            told: Wrapping(0),
            considered: Wrapping(0),
        })
    }

    /// Sets the number of entries; false if there cannot be as many.
    pub(super) fn set_len(&mut self, len: u32) -> bool {
        u16::try_from(len).is_ok_and(|len| self.queue.try_set_size(len).is_ok())
    }

    pub(super) fn set_place(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// Where the guest's next chain is.
    pub(super) fn set_next(&mut self, next: u16) {
        self.queue.set_next_avail(next);
    }

    pub(super) fn next(&self) -> u16 {
        self.queue.next_avail()
    }

    pub(super) fn set_event_index(&mut self, on: bool) {
        self.queue.set_event_idx(on);
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Takes the descriptor by which the guest is told that it has chains back. It is told at once: what was
    /// told by the one before may have woken nobody.
    ///
    /// # Errors
    /// It is no eventfd, so that a write is more than one to a counter.
    pub(super) fn set_call(&mut self, call: Option<File>) -> io::Result<()> {
        call.as_ref().map_or(Ok(()), check_event)?;
        self.call = call;
        self.wake();
        Ok(())
    }

    /// Takes the descriptor by which the guest tells that there is something.
    ///
    /// # Errors
    /// It is no eventfd.
    pub(super) fn set_kick(&mut self, kick: File) -> io::Result<()> {
        check_event(&kick)?;
        self.new_kick = Some(Some(kick));
        Ok(())
    }

    /// Wakes the guest. A counter that is full has woken it already; with one that the front end has made a
    /// blocking one again, this waits.
    fn wake(&mut self) {
        if let Some(call) = &mut self.call {
            let _ = call.write(&1_u64.to_ne_bytes());
        }
    }

    /// Whether the front end has said all of it.
    pub(super) fn is_set_up(&self) -> bool {
        self.place.is_some() && self.kick.is_some() && self.enabled
    }

    /// Looks again whether the ring can be used: all of it must lie in the memory. What the guest has
    /// back was told by whoever served it before.
    ///
    /// # Errors
    /// It cannot, for what the front end has said is wrong.
    pub(super) fn settle(&mut self, memory: Option<&GuestMemory>) -> Result<(), Broken> {
        let was = self.queue.ready();
        self.queue.set_ready(false);
        let (Some(memory), Some(place)) = (memory, self.place) else { return Ok(()) };
        if !self.is_set_up() {
            return Ok(());
        }
        let at = |user| memory.guest_address(user).map(GuestAddress).ok_or(Broken);
        let queue = &mut self.queue;
        queue.try_set_desc_table_address(at(place.descriptors)?).map_err(|_| Broken)?;
        queue.try_set_avail_ring_address(at(place.available)?).map_err(|_| Broken)?;
        queue.try_set_used_ring_address(at(place.used)?).map_err(|_| Broken)?;
        queue.set_ready(true);
        if !queue.is_valid(memory.bytes()) {
            queue.set_ready(false);
            return Err(Broken);
        }
        if !was {
            self.used = queue.used_idx(memory.bytes(), Ordering::Acquire).map_err(|_| Broken)?;
            self.told = self.used;
            self.considered = self.used;
            // Whoever served it before may have told the guest and not woken it.
            self.wake();
        }
        Ok(())
    }

    /// Its entries.
    pub(super) fn len(&self) -> usize {
        self.queue.size().into()
    }

    pub(super) fn is_live(&self) -> bool {
        self.queue.ready()
    }

    /// Takes the ring out of use, until the front end sets it up again.
    pub(super) fn stop(&mut self) {
        self.queue.set_ready(false);
        self.new_kick = Some(None);
    }

    /// The next chain that the guest offers. With none, it tells when there is one.
    pub(super) fn take<'a>(
        &mut self,
        memory: &'a GuestMemoryMmap,
    ) -> Result<Option<Chain<'a>>, Broken> {
        // The guest may offer one while it is asked to tell.
        for _ in 0..2 {
            let chain = self.queue.iter(memory).map_err(|_| Broken)?.next();
            if let Some(chain) = chain {
                if chain.head_index() >= self.queue.size() {
                    return Err(Broken);
                }
                return Ok(Some(chain));
            }
            if !self.queue.enable_notification(memory).map_err(|_| Broken)? {
                return Ok(None);
            }
        }
        // It says that there is one, which cannot be read.
        Err(Broken)
    }

    /// Asks the guest not to tell of chains that it offers: they are looked for.
    pub(super) fn hush(&mut self, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        self.queue.disable_notification(memory).map_err(|_| Broken)
    }

    /// Puts back the chains that were taken since the next one was at `next`.
    pub(super) fn put_back(&mut self, next: u16) {
        self.queue.set_next_avail(next);
    }

    /// Gives a chain back into which so many bytes were written.
    pub(super) fn give_back(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        written: u32,
    ) -> Result<(), Broken> {
        let place = u64::from(self.used.0 % self.queue.size().max(1));
        let at = self.queue.used_ring().checked_add(HEADER_LEN + USED_LEN * place);
        let mut element = VirtqUsedElem::default();
        let bytes = element.as_mut_slice();
        let (id, len) = bytes.split_at_mut_checked(4).ok_or(Broken)?;
        id.copy_from_slice(&u32::from(head).to_le_bytes());
        len.copy_from_slice(&written.to_le_bytes());
        memory.write_obj(element, GuestAddress(at.ok_or(Broken)?)).map_err(|_| Broken)?;
        self.used += 1;
        Ok(())
    }

    /// Tells the guest of the chains that it has back, if there are any, and wakes it if it wants that.
    pub(super) fn tell(&mut self, memory: &GuestMemoryMmap) -> Result<(), Broken> {
        if self.used == self.told {
            return Ok(());
        }
        let index = self.queue.used_ring().checked_add(INDEX_AT).ok_or(Broken)?;
        memory
            .store(self.used.0.to_le(), GuestAddress(index), Ordering::Release)
            .map_err(|_| Broken)?;
        self.told = self.used;
        // The guest writes what it wants, and then looks at the index; we the other way round.
        fence(Ordering::SeqCst);
        let wanted = self.wants_call(memory)?;
        self.considered = self.used;
        if wanted {
            self.wake();
        }
        Ok(())
    }

    /// Whether the guest wants to be woken for what it was told of (virtio 1.2, 2.7.7 and 2.7.10).
    fn wants_call(&self, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        let ring = self.queue.avail_ring();
        let read = |offset| {
            let at = ring.checked_add(offset).ok_or(Broken)?;
            let word = memory.load::<u16>(GuestAddress(at), Ordering::Relaxed);
            word.map(u16::from_le).map_err(|_| Broken)
        };
        if !self.queue.event_idx_enabled() {
            return Ok(u32::from(read(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = read(HEADER_LEN + AVAILABLE_LEN * u64::from(self.queue.size()))?;
        Ok(self.told - Wrapping(event) - Wrapping(1) < self.told - self.considered)
    }
}

/// Only an eventfd is written and waited for without surprises. It is made one that does not wait; the front end
/// has the other end of it and can undo that.
fn check_event(file: &File) -> io::Result<()> {
    let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no eventfd"));
    }
    poll::set_nonblocking(file.as_fd())
}
