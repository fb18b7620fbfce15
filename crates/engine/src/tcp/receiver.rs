//! What comes from the guest: the order of bytes, the window offered, acknowledgements due.
//!
//! A byte is acknowledged when the host socket has taken it, or when it waits in `pending`, the
//! bounded slice behind a full socket: what was accepted is never thrown away, so a guest
//! retransmits only what the link lost. The window offered is the room of the host socket's send
//! buffer plus the rest of that slice, and its right edge never moves back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use netyard_wire::SeqNumber;

use super::assembler::Assembler;

/// Bytes of a flow that may wait behind a full host socket. It keeps the socket's buffer full,
/// which is what makes the kernel grow it.
pub(super) const PENDING_LIMIT: usize = 256 * 1024;
/// Largest window offered; a guest's tap ring and our own loop set the pace, not more bytes.
const MAX_WINDOW: usize = 4 * 1024 * 1024;
/// Window shift we announce (RFC 7323): 65535 << 7 covers [`MAX_WINDOW`].
pub(super) const WINDOW_SCALE: u8 = 7;
/// With less than this much of the window left the host socket is asked for its room again, once
/// for each [`ASK_EVERY`] bytes that have come.
const LOW_WINDOW: u32 = 768 * 1024;
/// Half a super-frame: bulk data asks for every frame, a conversation hardly ever.
const ASK_EVERY: u32 = 32 * 1024;
/// No segment of a guest carries more, bytes (an IPv4 packet without options). A guest that sees less room than a segment sends nothing
/// until its persist timer runs out, so a window must not stay below this unsaid.
const LONGEST_SEGMENT: usize = 65_535 - 20 - 20;

/// How long an acknowledgement may wait for data to carry it. RFC 1122 4.2.3.2 allows 500 ms; a
/// guest whose second write waits for it (RFC 896) should not notice.
const ACK_DELAY: Duration = Duration::from_millis(1);
/// So many answers in a row within [`ACK_DELAY`] make a conversation, whose acknowledgements wait.
const CONVERSATION: u8 = 8;

#[derive(Debug)]
pub(super) struct Receiver {
    /// The next byte expected.
    pub(super) next: SeqNumber,
    /// Payload that was accepted, bytes.
    pub(super) accepted: u64,
    /// Right edge of the window offered.
    edge: SeqNumber,
    /// Right edge as the guest was last told.
    announced: SeqNumber,
    /// Accepted bytes that the host socket has not taken.
    pub(super) pending: VecDeque<u8>,
    pub(super) ahead: Assembler,
    /// The sequence number of the guest's FIN, once seen.
    fin: Option<SeqNumber>,
    /// The FIN is in order: everything before it is here.
    pub(super) finished: bool,
    /// The guest does SACK.
    pub(super) sack: bool,
    /// Our window is scaled.
    pub(super) scaled: bool,
    /// An acknowledgement is due now.
    pub(super) ack_due: bool,
    /// An acknowledgement is due then, if no data has carried it before.
    ack_at: Option<Instant>,
    /// The acknowledgement number that the guest knows.
    told: SeqNumber,
    /// When data came last, until it is answered.
    heard_at: Option<Instant>,
    /// Answers in a row that came soon.
    prompt: u8,
    /// `next` when the socket was last asked for its room.
    asked: SeqNumber,
}

/// The part of a segment that is new.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Placed<'a> {
    /// These bytes come next.
    InOrder(&'a [u8]),
    /// Held behind a gap, or already here: acknowledge at once.
    Elsewhere,
    /// Outside the window or no room to hold it.
    Refused,
}

impl Receiver {
    /// `irs` is the guest's initial sequence number.
    pub(super) fn new(irs: SeqNumber) -> Self {
        let next = irs + 1u32;
        Self {
            next,
            accepted: 0,
            edge: next,
            announced: next,
            pending: VecDeque::new(),
            ahead: Assembler::default(),
            fin: None,
            finished: false,
            sack: false,
            scaled: false,
            ack_due: false,
            ack_at: None,
            told: next,
            heard_at: None,
            prompt: 0,
            asked: next,
        }
    }

    /// RFC 9293 3.10.7.4 step 1, the four cases; `len` counts SYN and FIN.
    pub(super) fn acceptable(&self, seq: SeqNumber, len: usize) -> bool {
        let inside = |at: SeqNumber| (at - self.next) >= 0 && (at - self.edge) < 0;
        if len == 0 {
            return seq == self.next || inside(seq);
        }
        let last = seq + (len - 1);
        inside(seq) || inside(last) || ((seq - self.next) < 0 && (last - self.edge) >= 0)
    }

    /// Sorts in the payload of a segment and its FIN. What comes before its turn is held if `may_hold`.
    pub(super) fn place<'a>(
        &mut self,
        seq: SeqNumber,
        payload: &'a [u8],
        fin: bool,
        may_hold: bool,
    ) -> Placed<'a> {
        let end = seq + payload.len();
        if fin && self.fin.is_none() && (end - self.next) >= 0 {
            self.fin = Some(end);
        }
        if payload.is_empty() {
            return Placed::Elsewhere;
        }
        // What lies beyond the FIN does not exist.
        let end = match self.fin {
            Some(fin) if (end - fin) > 0 => fin,
            _ => end,
        };
        let end = if (end - self.edge) > 0 { self.edge } else { end };
        let skip = usize::try_from(self.next - seq).unwrap_or(0);
        let Ok(until) = usize::try_from(end - seq) else { return Placed::Refused };
        if (seq - self.next) > 0 {
            let Some(bytes) = payload.get(..until) else { return Placed::Refused };
            let held = may_hold && self.ahead.insert(seq, bytes);
            return if held { Placed::Elsewhere } else { Placed::Refused };
        }
        match payload.get(skip..until) {
            Some(bytes) if !bytes.is_empty() => Placed::InOrder(bytes),
            _ => Placed::Elsewhere,
        }
    }

    /// Bytes that come next were accepted: counts them, and says whether the FIN follows.
    pub(super) fn accept(&mut self, len: usize) {
        self.next += len;
        self.accepted += len as u64;
    }

    /// Notes the FIN once everything before it is here. True the first time.
    pub(super) fn finish(&mut self) -> bool {
        if self.finished || self.fin != Some(self.next) {
            return false;
        }
        self.finished = true;
        self.next += 1u32;
        true
    }

    /// True when it is worth asking the host socket for its room.
    pub(super) fn wants_room(&self) -> bool {
        let left = remaining(self.next, self.edge);
        !self.finished
            && left < LOW_WINDOW
            && (remaining(self.asked, self.next) >= ASK_EVERY
                || (left as usize) < PENDING_LIMIT / 2)
    }

    /// Moves the right edge of the window to what the flow can take: `room` bytes in the socket
    /// and the rest of the slice. Never back.
    pub(super) fn offer(&mut self, room: usize) {
        self.asked = self.next;
        let room = if self.pending.is_empty() { room } else { 0 };
        let slice = PENDING_LIMIT.saturating_sub(self.pending.len());
        let window = (room + slice).min(MAX_WINDOW);
        let edge = self.next + window;
        if (edge - self.edge) > 0 {
            self.edge = edge;
        }
    }

    /// True when the guest should hear of a window that has grown (RFC 9293 3.8.6.2.2): it was
    /// below a segment and has opened by one since the guest was told.
    pub(super) fn window_opened(&self) -> bool {
        let known = remaining(self.next, self.announced) as usize;
        let now = remaining(self.next, self.edge) as usize;
        !self.finished && known < LONGEST_SEGMENT && now >= known + LONGEST_SEGMENT
    }

    /// Data in order has come that is to be acknowledged: now, or, in a conversation of small
    /// messages, with the answer.
    pub(super) fn owe(&mut self, now: Instant, mss: u16) {
        self.heard_at = Some(now);
        let small = remaining(self.told, self.next) < 2 * u32::from(mss);
        if self.prompt >= CONVERSATION && small && !self.finished {
            self.ack_at.get_or_insert(now + ACK_DELAY);
        } else {
            self.ack_due = true;
        }
    }

    /// Data goes to the guest: an answer to what came last.
    pub(super) fn answer(&mut self, now: Instant) {
        if let Some(heard) = self.heard_at.take() {
            let soon = now.saturating_duration_since(heard) < ACK_DELAY;
            self.prompt = if soon { (self.prompt + 1).min(CONVERSATION) } else { 0 };
        }
    }

    /// When an acknowledgement that waits is due.
    pub(super) fn ack_at(&self) -> Option<Instant> {
        self.ack_at
    }

    /// The acknowledgement that waited is due: no answer came, this is no conversation.
    pub(super) fn stop_waiting(&mut self) {
        self.ack_due = true;
        self.prompt = 0;
    }

    /// The acknowledgement number and window field of a segment sent now.
    pub(super) fn announce(&mut self) -> (SeqNumber, u16) {
        self.ack_due = false;
        self.ack_at = None;
        self.told = self.next;
        let scale = if self.scaled { WINDOW_SCALE } else { 0 };
        let window = remaining(self.next, self.edge) >> scale;
        let field = u16::try_from(window).unwrap_or(u16::MAX);
        self.announced = self.next + (u32::from(field) << scale);
        (self.next, field)
    }

    /// Bytes of the guest that wait here.
    pub(super) fn held(&self) -> usize {
        self.pending.len() + self.ahead.held()
    }

    /// Frees memory that a burst left behind.
    pub(super) fn shrink(&mut self) {
        if self.pending.is_empty() && self.pending.capacity() > 0 {
            self.pending = VecDeque::new();
        }
    }
}

fn remaining(from: SeqNumber, edge: SeqNumber) -> u32 {
    u32::try_from(edge - from).unwrap_or(0)
}
