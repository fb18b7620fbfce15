//! What is sent next, and what is noted of it when it was.

use std::time::Instant;

use netyard_wire::SeqNumber;

use super::{Recovery, Sender, Timer};
use crate::tcp::board::distance;

/// Something to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tcp) struct Piece {
    pub(in crate::tcp) seq: SeqNumber,
    /// Bytes of payload.
    pub(in crate::tcp) len: usize,
    pub(in crate::tcp) fin: bool,
    again: bool,
}

impl Piece {
    fn end(&self) -> SeqNumber {
        self.seq + self.len + u32::from(self.fin)
    }
}

impl Sender {
    /// The next piece that may be sent; `unit` bounds its payload, bytes. `None`: windows forbid, or
    /// there is nothing.
    pub(in crate::tcp) fn next_piece(
        &mut self,
        now: Instant,
        unit: usize,
        nagle: bool,
    ) -> Option<Piece> {
        if std::mem::take(&mut self.probe_due)
            && let Some(piece) = self.probe_piece()
        {
            return Some(piece);
        }
        let mss = usize::from(self.mss);
        let pipe = self.pipe();
        let budget = self.congestion.window.saturating_sub(pipe);
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        if let Some((start, end)) = self.board.next_lost() {
            if budget < mss && pipe > 0 {
                self.limited = true;
                return None;
            }
            let whole = (budget / mss).max(1).saturating_mul(mss);
            return Some(self.again(start, end, whole.min(unit)));
        }
        if self.fin_sent {
            return None;
        }
        if self.is_idle() && self.has_rested(now) {
            self.congestion.on_idle();
        }
        let data_end = self.data_end();
        let available = usize::try_from(distance(self.next, data_end)).unwrap_or(0);
        let room = distance(self.next, self.una + self.window);
        let room = usize::try_from(room).unwrap_or(0);
        if available == 0 {
            let fin = Piece { seq: self.next, len: 0, fin: true, again: false };
            return self.closing.then_some(fin);
        }
        let budget = if pipe == 0 { budget.max(mss) } else { budget };
        let mut len = available.min(room).min(unit);
        if budget < len {
            self.limited = true;
            len = budget;
        }
        if len < available || (len % mss != 0 && nagle && !self.closing && self.small.gt(self.una))
        {
            // Only what ends the data may end in a segment that is not full.
            let whole = len - len % mss;
            // Silly window syndrome (RFC 9293 section 3.8.6.2.1): a small window is used when nothing
            // is on its way that could open it, or when it is the best the peer has.
            let cramped = whole == 0
                && len == room
                && (self.is_idle() || len >= usize::try_from(self.widest).unwrap_or(0) / 2);
            len = if cramped { len } else { whole };
        }
        if len == 0 {
            if self.is_idle() && room == 0 {
                self.arm(now, false);
            }
            return None;
        }
        let fin = self.closing && len == available;
        Some(Piece { seq: self.next, len, fin, again: false })
    }

    fn has_rested(&self, now: Instant) -> bool {
        self.last_sent.is_some_and(|at| now.saturating_duration_since(at) > self.rtt.timeout())
    }

    /// RFC 8985 section 7.3: new data if there is any, else the last segment once more.
    fn probe_piece(&mut self) -> Option<Piece> {
        let mss = u32::from(self.mss);
        let room = distance(self.next, self.una + self.window);
        let available = distance(self.next, self.data_end());
        let len = available.min(room).min(mss);
        if len > 0 && !self.fin_sent {
            self.probe = Some((self.next + len, false));
            let fin = self.closing && len == available;
            let len = usize::try_from(len).unwrap_or(0);
            return Some(Piece { seq: self.next, len, fin, again: false });
        }
        let (start, end) = self.board.tail(self.fin_sent)?;
        self.probe = Some((self.next, true));
        Some(self.again(start, end, usize::from(self.mss)))
    }

    /// A range that was sent before, at most so many bytes of it.
    fn again(&self, start: SeqNumber, end: SeqNumber, most: usize) -> Piece {
        let data = distance(start, end.min(self.data_end()));
        let data = usize::try_from(data).unwrap_or(0);
        let len = data.min(most);
        let fin = self.fin_sent && end == self.next && len == data;
        Piece { seq: start, len, fin, again: true }
    }

    /// Appends the payload of a piece to a frame.
    pub(in crate::tcp) fn append(&self, piece: &Piece, out: &mut Vec<u8>) {
        let offset = usize::try_from(distance(self.una, piece.seq)).unwrap_or(0);
        self.buffer.append(offset, piece.len, out);
    }

    /// A piece was sent, in segments of so many bytes.
    pub(in crate::tcp) fn sent(&mut self, now: Instant, piece: &Piece, segment: u16) {
        let end = piece.end();
        if let Recovery::Fast { out, .. } = &mut self.recovery {
            *out = out.saturating_add(distance(piece.seq, end));
        }
        self.last_sent = Some(now);
        if piece.again {
            self.board.resent(now, (piece.seq, end), segment);
            if self.timer.is_none() {
                self.arm(now, true);
            }
            return;
        }
        if self.is_idle() {
            self.progress = now;
        }
        self.board.push(now, (self.next, end), segment);
        self.next = end;
        self.fin_sent |= piece.fin;
        if !piece.len.is_multiple_of(usize::from(self.mss)) {
            self.small = end;
        }
        // RFC 8985 section 7.2: new data pushes the probe back, but not the retransmission.
        let probing = matches!(self.timer, None | Some((_, Timer::Probe | Timer::Persist)));
        if probing {
            self.arm(now, true);
        }
    }

    /// The sequence number of a question after the window: the byte before it, which the peer must
    /// answer (RFC 9293 section 3.8.6.1).
    pub(in crate::tcp) fn window_probe(&mut self) -> SeqNumber {
        self.window_probe_due = false;
        self.una - 1u32
    }
}
