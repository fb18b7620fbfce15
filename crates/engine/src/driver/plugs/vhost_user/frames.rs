//! Frames in the chains of buffers of a guest.

use netyard_wire::{Frame, VNET_HEADER_LEN};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::ring::{Broken, Chain, Ring};

/// The most buffers that one frame may be in: more than a frame of 64 KiB in pieces of 512 bytes, or any
/// guest's lists of pages, has. It bounds what a guest can have us do for one frame.
const MAX_PIECES: usize = 512;

/// Where the count of chains is in the header (virtio 1.2, 5.1.6).
const COUNT_AT: usize = 10;

/// What a guest has sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// So many bytes: a header and a frame.
    Frame(usize),
    /// No frame; the reason, for the drop counters.
    Malformed(&'static str),
    Nothing,
}

/// What became of a frame for the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Placed {
    Yes,
    /// The guest has not offered enough buffers now.
    NoRoom,
    /// What it has offered does not hold the frame.
    Unfit,
}

/// Room for where pieces are, kept from frame to frame.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    list: Vec<(GuestAddress, usize)>,
    /// The chains that they are of, and the bytes in each.
    chains: Vec<(u16, usize)>,
}

/// Copies the next frame that the guest sends into `into`, and gives its buffers back.
pub(super) fn receive(
    ring: &mut Ring,
    memory: &GuestMemoryMmap,
    pieces: &mut Pieces,
    into: &mut [u8],
) -> Result<Sent, Broken> {
    let Some(chain) = ring.take(memory)? else { return Ok(Sent::Nothing) };
    ring.hush(memory)?;
    pieces.clear();
    let head = chain.head_index();
    let sent = match pieces.add(chain, false) {
        Ok(_) => copy(memory, pieces, into),
        Err(reason) => Sent::Malformed(reason),
    };
    ring.give_back(memory, head, 0)?;
    Ok(sent)
}

fn copy(memory: &GuestMemoryMmap, pieces: &Pieces, into: &mut [u8]) -> Sent {
    let mut end = 0;
    for &(at, len) in &pieces.list {
        let room = into.get_mut(end..).and_then(|room| room.get_mut(..len));
        let Some(room) = room else { return Sent::Malformed("oversized") };
        if memory.read_slice(room, at).is_err() {
            return Sent::Malformed("outside-memory");
        }
        end += len;
    }
    // The guest has no use for the count; what it leaves there means nothing.
    if let Some(count) = into.get_mut(COUNT_AT..VNET_HEADER_LEN) {
        count.fill(0);
    }
    Sent::Frame(end)
}

/// Copies a frame into the guest's buffers: those of one chain, or of several if it has agreed to put them
/// together (`merge`).
pub(super) fn send(
    ring: &mut Ring,
    memory: &GuestMemoryMmap,
    pieces: &mut Pieces,
    merge: bool,
    frame: Frame<'_>,
) -> Result<Placed, Broken> {
    let wanted = VNET_HEADER_LEN + frame.bytes.len();
    let first = ring.next();
    let mut room = 0;
    let mut fits = true;
    pieces.clear();
    while room < wanted {
        if !pieces.chains.is_empty() && !merge {
            // The chain stays for a frame that it holds.
            ring.put_back(first);
            return Ok(Placed::Unfit);
        }
        let Some(chain) = ring.take(memory)? else {
            ring.put_back(first);
            // A guest that offers all that it can never offers more.
            let all = pieces.chains.len() >= ring.len();
            return Ok(if all { Placed::Unfit } else { Placed::NoRoom });
        };
        let head = chain.head_index();
        let len = pieces.add(chain, true);
        pieces.chains.push((head, *len.as_ref().unwrap_or(&0)));
        room += match len {
            Ok(len) if len > 0 => len,
            _ => {
                fits = false;
                break;
            }
        };
    }
    ring.hush(memory)?;
    let mut header = frame.offload.encode();
    let count = u16::try_from(pieces.chains.len()).unwrap_or(u16::MAX);
    if let Some(place) = header.get_mut(COUNT_AT..VNET_HEADER_LEN) {
        place.copy_from_slice(&count.to_le_bytes());
    }
    fits = fits && fill(memory, pieces, &header, frame.bytes);
    // What holds no frame goes back empty, so that the guest notices.
    let mut left = if fits { wanted } else { 0 };
    for &(head, len) in &pieces.chains {
        let written = len.min(left);
        left -= written;
        ring.give_back(memory, head, u32::try_from(written).unwrap_or_default())?;
    }
    Ok(if fits { Placed::Yes } else { Placed::Unfit })
}

/// Writes a header and a frame into pieces with room enough; false if a piece is not in the memory.
fn fill(memory: &GuestMemoryMmap, pieces: &Pieces, header: &[u8], frame: &[u8]) -> bool {
    let mut parts = [header, frame].into_iter();
    let mut part = parts.next().unwrap_or_default();
    for &(at, len) in &pieces.list {
        let (mut at, mut room) = (at.0, len);
        while room > 0 {
            if part.is_empty() {
                let Some(next) = parts.next() else { return true };
                part = next;
                continue;
            }
            let (now, rest) = part.split_at(part.len().min(room));
            if memory.write_slice(now, GuestAddress(at)).is_err() {
                return false;
            }
            part = rest;
            room -= now.len();
            at = at.saturating_add(u64::try_from(now.len()).unwrap_or_default());
        }
    }
    true
}

impl Pieces {
    fn clear(&mut self) {
        self.list.clear();
        self.chains.clear();
    }

    /// Adds the buffers of a chain, all of which must be for the guest to read, or `writable` for us; their
    /// bytes.
    ///
    /// # Errors
    /// The reason, for the drop counters.
    fn add(&mut self, chain: Chain<'_>, writable: bool) -> Result<usize, &'static str> {
        let mut bytes = 0_usize;
        let mut ended = false;
        for buffer in chain {
            if buffer.is_write_only() != writable {
                return Err("wrong-direction");
            }
            if self.list.len() >= MAX_PIECES {
                return Err("scattered");
            }
            let len = usize::try_from(buffer.len()).unwrap_or(usize::MAX);
            self.list.push((buffer.addr(), len));
            bytes = bytes.saturating_add(len);
            ended = !buffer.has_next();
        }
        // Else it leads into itself, or to a buffer that does not exist.
        if ended { Ok(bytes) } else { Err("endless-chain") }
    }
}
