//! A guest's end of a connection as a whole TCP: it retransmits, holds what comes early, closes its window.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{FrameBuf, SeqNumber};
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::plan::{Order, Plan, Side};
use crate::common::{Guest, Seen};

/// How often an idle end asks whether the other one is there.
const KEEPALIVE: Duration = Duration::from_secs(10);
const RTO: Duration = Duration::from_millis(300);
/// The shift that the gateway announces.
const THEIR_SCALE: u8 = 7;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is said yet: it waits for a SYN, or is about to send one.
    Fresh,
    /// Its SYN, alone or with an acknowledgement, is unanswered.
    Opening,
    Open,
    /// Reset by itself.
    Resetting,
    /// Reset by the gateway.
    Reset,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (acked, sent, edge, got) = (self.acked, self.sent, self.edge, self.got.len());
        let (all, fin, down) = (self.plan.up.len(), self.got_fin, self.plan.down.len());
        write!(
            f,
            "{:?} up {acked}/{sent}/{edge} of {all}, down {got} of {down} {fin}",
            self.state
        )?;
        write!(f, " {:?} {:?}", self.plan.order, self.plan.reset)
    }
}

pub(crate) struct Peer {
    pub(crate) guest: Guest,
    pub(crate) plan: Plan,
    pub(crate) state: State,
    /// Offset of the stream from the gateway, all that is in order.
    pub(crate) got: Vec<u8>,
    /// The gateway's FIN is in order.
    pub(crate) got_fin: bool,
    /// Its first sequence numbers of payload: the guest's and the gateway's.
    base: SeqNumber,
    start: SeqNumber,
    held: BTreeMap<usize, Seen>,
    read: usize,
    /// Right edge of the window that was ever offered, as an offset.
    promised: usize,
    /// Offsets: acknowledged by the gateway (its FIN counts for one), sent for now, ever sent, that may be sent.
    pub(crate) acked: usize,
    sent: usize,
    most_sent: usize,
    edge: usize,
    duplicates: u32,
    rto_at: Option<Instant>,
    backoff: u32,
    alive_at: Instant,
    /// The right edge of the gateway's window and its acknowledgement, in the order in which they were sent.
    their_edge: usize,
    their_ack: usize,
}

impl Peer {
    pub(crate) fn new(guest: Guest, plan: Plan, now: Instant) -> Self {
        let base = SeqNumber(plan.isn) + 1u32;
        let start = SeqNumber(0);
        Self {
            guest,
            plan,
            state: State::Fresh,
            got: Vec::new(),
            got_fin: false,
            base,
            start,
            held: BTreeMap::new(),
            read: 0,
            promised: 0,
            acked: 0,
            sent: 0,
            most_sent: 0,
            edge: 0,
            duplicates: 0,
            rto_at: None,
            backoff: 0,
            alive_at: now + KEEPALIVE,
            their_edge: 0,
            their_ack: 0,
        }
    }

    pub(crate) fn is_for(&self, seen: &Seen) -> bool {
        (self.guest.own, self.guest.remote) == (seen.destination, seen.source)
    }

    /// The gateway's first sequence number.
    pub(crate) fn their_first(&self) -> u32 {
        self.start.0.wrapping_sub(1)
    }

    /// All is said and heard.
    pub(crate) fn is_done(&self) -> bool {
        self.got_fin && self.acked > self.plan.up.len()
    }

    fn scale(&self) -> u8 {
        self.plan.scale.unwrap_or(0)
    }

    /// A segment with all that is known now.
    fn segment(&mut self, seq: SeqNumber, flags: Flags, payload: &[u8]) -> FrameBuf {
        let room = self.plan.buffer.saturating_sub(self.got.len() - self.read);
        let field = u16::try_from(room >> self.scale()).unwrap_or(u16::MAX);
        self.guest.window = field;
        self.promised = self.promised.max(self.got.len() + (usize::from(field) << self.scale()));
        self.guest.ack = self.start + self.got.len() + usize::from(self.got_fin);
        self.guest.options = TcpOptions::default();
        if self.plan.sack {
            let blocks = self.guest.options.sack.iter_mut().take(3);
            for (block, (offset, seen)) in blocks.zip(&self.held) {
                *block = Some((self.start + *offset, seen.end()));
            }
        }
        self.guest.segment_at(seq, flags, payload)
    }

    fn acknowledgement(&mut self) -> FrameBuf {
        let at = self.sent.min(self.plan.up.len() + 1);
        self.segment(self.base + at, Flags::ACK, b"")
    }

    /// Its SYN, with an acknowledgement if it answers one.
    pub(crate) fn syn(&mut self, now: Instant) -> FrameBuf {
        self.state = State::Opening;
        self.rto_at = Some(now + RTO);
        let plan = &self.plan;
        // A SYN's window is never scaled.
        self.guest.window = u16::try_from(plan.buffer).unwrap_or(u16::MAX);
        self.promised = usize::from(self.guest.window);
        self.guest.options = TcpOptions {
            mss: Some(plan.mss),
            window_scale: plan.scale,
            sack_permitted: plan.sack,
            ..TcpOptions::default()
        };
        let flags = if plan.inbound { Flags::SYN | Flags::ACK } else { Flags::SYN };
        self.guest.segment_at(SeqNumber(plan.isn), flags, b"")
    }

    /// What must hold for every segment that the gateway sends, in the order in which they are sent.
    pub(crate) fn check(&mut self, seen: &Seen) {
        if seen.has(Flags::RST) || seen.has(Flags::SYN) || self.state == State::Fresh {
            return;
        }
        let ack =
            usize::try_from(seen.ack - self.base).expect("an acknowledgement of what was sent");
        assert!(ack <= self.most_sent, "acknowledges {ack} of {}", self.most_sent);
        assert!(ack >= self.their_ack, "its acknowledgements go back");
        self.their_ack = ack;
        let edge = ack + (usize::from(seen.window) << self.their_scale());
        // The field counts in units of the scale.
        assert!(edge + (1 << self.their_scale()) > self.their_edge, "its window moves back");
        self.their_edge = self.their_edge.max(edge);
        if let Some(size) = seen.gso {
            assert!(size <= self.plan.mss.max(64));
        }
        let end = (seen.seq + seen.payload.len()) - self.start;
        let end = usize::try_from(end).unwrap_or(0);
        assert!(end <= self.promised, "sends to {end}, beyond the window to {}", self.promised);
    }

    fn their_scale(&self) -> u8 {
        if self.plan.scale.is_some() { THEIR_SCALE } else { 0 }
    }

    /// Heeds a segment; what it answers.
    pub(crate) fn hear(&mut self, now: Instant, seen: Seen) -> Vec<FrameBuf> {
        self.alive_at = now + KEEPALIVE;
        match self.state {
            State::Fresh | State::Opening if seen.has(Flags::SYN) => {
                let fits = seen.has(Flags::ACK) != self.plan.inbound;
                assert!(fits, "{seen:?}");
                self.start = seen.seq + 1u32;
                self.guest.ack = self.start;
                if self.plan.inbound {
                    return vec![self.syn(now)];
                }
                assert_eq!(seen.ack, self.base);
                self.open(usize::from(seen.window));
                vec![self.acknowledgement()]
            }
            State::Fresh => panic!("{seen:?} before a SYN"),
            State::Opening => {
                if seen.has(Flags::RST) {
                    // Its answer was lost for so long that the gateway has told its client that nobody is there.
                    assert!(self.plan.inbound, "refused");
                    self.state = State::Reset;
                    return Vec::new();
                }
                self.open(usize::from(seen.window) << self.their_scale());
                self.hear_open(now, seen)
            }
            State::Open if seen.has(Flags::SYN) => vec![self.acknowledgement()],
            State::Open if seen.has(Flags::RST) => {
                self.state = State::Reset;
                Vec::new()
            }
            State::Open => self.hear_open(now, seen),
            State::Resetting | State::Reset if seen.has(Flags::RST) => {
                self.state = State::Reset;
                Vec::new()
            }
            // RFC 5961 section 3.2: its answer to a reset that is not exactly in order says what would be.
            State::Resetting => vec![self.segment(seen.ack, Flags::RST, b"")],
            State::Reset => Vec::new(),
        }
    }

    fn open(&mut self, window: usize) {
        self.state = State::Open;
        self.edge = window;
        self.rto_at = None;
        self.backoff = 0;
    }

    fn hear_open(&mut self, now: Instant, seen: Seen) -> Vec<FrameBuf> {
        let ack = usize::try_from(seen.ack - self.base).unwrap();
        self.edge = self.edge.max(ack + (usize::from(seen.window) << self.their_scale()));
        if ack > self.acked {
            self.acked = ack;
            self.sent = self.sent.max(ack);
            (self.duplicates, self.backoff) = (0, 0);
            self.rto_at = (self.acked < self.sent).then(|| now + RTO);
        } else if ack == self.acked && seen.end() == seen.seq && self.acked < self.sent {
            self.duplicates += 1;
            if self.duplicates == 3 {
                self.sent = self.acked;
            }
        }
        let offset = seen.seq - self.start;
        if seen.end() == seen.seq {
            // A question whether it is there, or what its window is, lies before what comes next.
            let asks = offset < i32::try_from(self.got.len()).unwrap();
            return if asks { vec![self.acknowledgement()] } else { Vec::new() };
        }
        if let Ok(offset) = usize::try_from(offset) {
            self.held.insert(offset, seen);
        }
        while let Some((offset, seen)) = self.held.pop_first() {
            if offset > self.got.len() {
                self.held.insert(offset, seen);
                break;
            }
            if let Some(new) = seen.payload.get(self.got.len() - offset..) {
                self.got.extend_from_slice(new);
                self.got_fin |=
                    seen.has(Flags::FIN) && offset + seen.payload.len() == self.got.len();
            }
        }
        assert!(self.plan.down.starts_with(&self.got), "not what the host has sent");
        vec![self.acknowledgement()]
    }

    /// How much of its stream it may send now, and whether its FIN.
    fn wants(&self) -> (usize, bool) {
        let all = self.plan.up.len();
        match self.plan.order {
            Order::HostFirst if !self.got_fin => (all / 2, false),
            _ => (all, true),
        }
    }

    /// A moment passes: it reads, sends, and sends again.
    pub(crate) fn tick(
        &mut self,
        now: Instant,
        since: Duration,
        rng: &mut SmallRng,
    ) -> Vec<FrameBuf> {
        if self.plan.reset == Some(Side::Guest) && since >= self.plan.reset_after {
            if self.state == State::Open {
                self.state = State::Resetting;
            }
            if self.state == State::Resetting && rng.random_bool(0.2) {
                return vec![self.segment(self.base + self.acked, Flags::RST, b"")];
            }
        }
        let overdue = self.rto_at.is_some_and(|at| at <= now);
        match self.state {
            State::Opening if overdue => return vec![self.syn(now)],
            State::Open => {}
            _ => return Vec::new(),
        }
        let mut out = Vec::new();
        let unread = self.got.len() - self.read;
        let room = self.plan.buffer.saturating_sub(unread);
        if unread > 0 && rng.random_bool(self.plan.eager) {
            self.read += rng.random_range(1..=unread);
            let opened = self.plan.buffer - (self.got.len() - self.read);
            let step = usize::from(self.plan.mss).min(self.plan.buffer / 2);
            if room < step && opened >= step {
                out.push(self.acknowledgement());
            }
        }
        if overdue {
            self.sent = self.acked;
            self.backoff = (self.backoff + 1).min(6);
            self.rto_at = None;
        }
        let (until, fin) = self.wants();
        let closed = self.edge <= self.sent && self.sent == self.acked && self.sent < until;
        if closed && overdue {
            // A byte beyond the window, to learn of its opening.
            self.edge = self.sent + 1;
        }
        while self.sent < until.min(self.edge) {
            let most = if rng.random_bool(0.2) { 60_000 } else { usize::from(self.plan.mss) };
            let len = rng.random_range(1..=most).min(until.min(self.edge) - self.sent);
            let payload = self.plan.up[self.sent..self.sent + len].to_vec();
            out.push(self.segment(self.base + self.sent, Flags::ACK, &payload));
            self.sent += len;
            self.most_sent = self.most_sent.max(self.sent);
        }
        if fin && self.sent == self.plan.up.len() {
            out.push(self.segment(self.base + self.sent, Flags::ACK | Flags::FIN, b""));
            self.sent += 1;
            self.most_sent = self.most_sent.max(self.sent);
        }
        if self.rto_at.is_none() && (self.acked < self.sent || closed) {
            self.rto_at = Some(now + RTO * (1 << self.backoff));
        }
        if self.alive_at <= now {
            // The byte before: the other end says where it is, or that it is no more.
            self.alive_at = now + KEEPALIVE;
            out.push(self.segment(self.base + self.acked + u32::MAX, Flags::ACK, b""));
        }
        out
    }
}
