//! What is done about losses, and when nothing is heard.
//!
//! Losses are found by RACK with tail probes (RFC 8985) where the peer does SACK, by duplicate
//! acknowledgements (RFC 6582) where it does not, and by the timer (RFC 6298). While the holes of a
//! flight are filled, the window shrinks in proportion to what arrives (RFC 6937).

use std::time::{Duration, Instant};

use netyard_wire::tcp::Segment;

use super::{Recovery, Sender, Timer};
use crate::tcp::board::DUPLICATE_THRESHOLD;

/// Timeouts in a row without an answer after which a connection is given up (Linux's `tcp_retries2`):
/// with back-off a quarter of an hour.
const MAX_TIMEOUTS: u32 = 15;
/// RFC 8985 section 7.2: how long a peer may keep an acknowledgement to itself.
const MAX_ACK_DELAY: Duration = Duration::from_millis(200);
/// RFC 8985 section 7.2: the probe timeout before a round trip was measured.
const FIRST_PROBE: Duration = Duration::from_secs(1);

impl Sender {
    /// RFC 8985 section 7.4: whether a tail probe has shown a loss.
    pub(super) fn end_probe(&mut self, segment: &Segment<'_>, newly: u32, duplicate: bool) {
        let Some((end, again)) = self.probe else { return };
        if segment.ack.lt(end) {
            return;
        }
        let no_loss = !again || duplicate || (newly == 0 && self.board.sacked() == 0);
        if !no_loss && segment.ack.gt(end) && self.recovery == Recovery::None {
            self.congestion.on_loss(self.flight());
            self.congestion.window = self.congestion.threshold;
        }
        if no_loss || segment.ack.gt(end) || self.is_idle() {
            self.probe = None;
        }
    }

    /// Finds losses, and moves the window of congestion.
    pub(super) fn recover(&mut self, now: Instant, before: u32, newly: u32, delivered: u32) {
        let had_lost = self.board.any_lost();
        self.find_losses(now, newly);
        match self.recovery {
            Recovery::Fast { point, .. } | Recovery::Timeout { point } if self.una.ge(point) => {
                let fast = matches!(self.recovery, Recovery::Fast { .. });
                self.recovery = Recovery::None;
                self.board.recovered();
                if fast && !self.board.any_lost() {
                    // What this acknowledgement covers was sent by the old window.
                    self.congestion.window = self.congestion.threshold;
                    return;
                }
            }
            Recovery::Fast { .. } => {
                let safe = newly > 0 && (had_lost || !self.board.any_lost());
                return self.reduce(delivered, safe);
            }
            Recovery::Timeout { .. } | Recovery::None => {}
        }
        if self.recovery == Recovery::None && self.board.any_lost() {
            return self.enter_recovery(delivered);
        }
        // Growing a window that nobody fills says nothing about the path (RFC 7661).
        let slow_start = self.congestion.window < self.congestion.threshold;
        let used = if slow_start { before.saturating_mul(2) } else { before };
        if newly > 0 && (self.limited || used >= self.congestion.window) {
            self.congestion.on_ack(now, newly, self.rtt.smoothed());
        }
    }

    fn find_losses(&mut self, now: Instant, newly: u32) {
        let recovering = self.recovery != Recovery::None;
        if self.sack {
            let (smoothed, min) = (self.rtt.smoothed(), self.rtt.min());
            let again_in = self.board.detect(now, self.mss, recovering, smoothed, min);
            self.timer = match again_in {
                Some(wait) => Some((now + wait, Timer::Reorder)),
                None => self.timer.filter(|(_, timer)| *timer != Timer::Reorder),
            };
        } else if newly > 0 {
            // RFC 6582: a partial acknowledgement shows the next hole.
            if let Recovery::Fast { point, .. } = self.recovery
                && self.una.lt(point)
            {
                self.board.lose_first(self.mss.into());
            }
        } else if !recovering && self.duplicates >= DUPLICATE_THRESHOLD {
            self.board.lose_first(self.mss.into());
        }
    }

    fn enter_recovery(&mut self, delivered: u32) {
        self.congestion.on_loss(self.flight());
        self.recovery =
            Recovery::Fast { point: self.next, flight: self.flight().max(1), delivered: 0, out: 0 };
        self.reduce(delivered, false);
    }

    /// RFC 6937 with the slow start reduction bound that its successor made the default.
    fn reduce(&mut self, newly_delivered: u32, safe: bool) {
        let pipe = self.pipe();
        let mss = u32::from(self.mss);
        let threshold = self.congestion.threshold;
        let Recovery::Fast { flight, delivered, out, .. } = &mut self.recovery else { return };
        *delivered = delivered.saturating_add(newly_delivered);
        let count = if pipe > threshold {
            let share = u64::from(*delivered) * u64::from(threshold);
            let share = share.div_ceil(u64::from(*flight));
            u32::try_from(share).unwrap_or(u32::MAX).saturating_sub(*out)
        } else {
            let more = delivered.saturating_sub(*out).max(newly_delivered);
            let more = if safe { more.saturating_add(mss) } else { more };
            more.min(threshold - pipe)
        };
        // The first retransmission goes in any case.
        let count = if *out == 0 { count.max(mss) } else { count };
        self.congestion.window = pipe.saturating_add(count);
    }

    /// Bytes that are thought to be on their way.
    pub(super) fn pipe(&self) -> u32 {
        let left = if self.sack { 0 } else { self.duplicates.saturating_mul(self.mss.into()) };
        self.board.pipe().saturating_sub(left)
    }

    /// Sets the timer for what is on its way now. `restart`: something new was acknowledged or sent.
    pub(super) fn arm(&mut self, now: Instant, restart: bool) {
        if self.is_idle() {
            self.probe = None;
            self.probe_due = false;
            self.duplicates = 0;
            let blocked = !self.buffer.is_empty() && self.window == 0;
            self.timer = match self.timer {
                Some((at, Timer::Persist)) if blocked && !restart => Some((at, Timer::Persist)),
                _ => blocked.then(|| (now + self.rtt.timeout(), Timer::Persist)),
            };
            return;
        }
        if matches!(self.timer, Some((_, Timer::Reorder))) {
            return;
        }
        let probing = self.sack
            && self.recovery == Recovery::None
            && self.probe.is_none()
            && self.board.sacked() == 0
            && self.rtt.backoff() == 0;
        let set = match self.timer {
            Some((_, Timer::Retransmit)) => true,
            // RFC 8985 section 7.2: not while there is something else to go by.
            Some((_, Timer::Probe)) => probing,
            _ => false,
        };
        if set && !restart {
            return;
        }
        let timeout = now + self.rtt.timeout();
        self.timer = if probing {
            Some((self.probe_at(now).min(timeout), Timer::Probe))
        } else {
            Some((timeout, Timer::Retransmit))
        };
    }

    /// RFC 8985 section 7.2.
    fn probe_at(&self, now: Instant) -> Instant {
        let Some(smoothed) = self.rtt.smoothed() else { return now + FIRST_PROBE };
        let alone = self.flight() <= u32::from(self.mss);
        now + smoothed * 2 + if alone { MAX_ACK_DELAY } else { Duration::ZERO }
    }

    pub(in crate::tcp) fn deadline(&self) -> Option<Instant> {
        self.timer.map(|(at, _)| at)
    }

    /// The timer has run out, if it was due. False: the peer has been silent for too long.
    pub(in crate::tcp) fn handle_timeout(
        &mut self,
        now: Instant,
        user_timeout: Option<Duration>,
    ) -> bool {
        let Some((at, timer)) = self.timer.filter(|(at, _)| *at <= now) else { return true };
        self.timer = None;
        let silent = now.saturating_duration_since(self.progress);
        match timer {
            Timer::Reorder => {
                self.recover(now, 0, 0, 0);
                self.arm(now, true);
            }
            Timer::Probe => {
                self.probe_due = true;
                self.timer = Some((at.max(now) + self.rtt.timeout(), Timer::Retransmit));
            }
            Timer::Persist => {
                // A window may stay closed as long as the peer answers (RFC 9293 section 3.8.6.1),
                // unless the program has set a limit (RFC 5482).
                let limit = user_timeout.is_some_and(|limit| silent >= limit);
                if limit || self.unanswered >= MAX_TIMEOUTS {
                    return false;
                }
                self.unanswered += 1;
                self.rtt.back_off();
                self.window_probe_due = true;
                self.timer = Some((now + self.rtt.timeout(), Timer::Persist));
            }
            Timer::Retransmit => {
                let limit = user_timeout.is_some_and(|limit| silent >= limit);
                if limit || self.rtt.backoff() >= MAX_TIMEOUTS {
                    return false;
                }
                let again = self.rtt.backoff() > 0;
                self.congestion.on_timeout(self.flight(), again);
                self.rtt.back_off();
                self.board.lose_all();
                self.duplicates = 0;
                self.probe = None;
                self.probe_due = false;
                self.recovery = Recovery::Timeout { point: self.next };
                self.timer = Some((now + self.rtt.timeout(), Timer::Retransmit));
            }
        }
        true
    }

    /// The path takes less than was thought: what is on its way was too big (RFC 1191 section 6.5).
    /// That is no congestion.
    pub(in crate::tcp) fn resend(&mut self, now: Instant) {
        if !self.is_idle() {
            self.board.lose_all();
            if self.recovery == Recovery::None {
                self.recovery = Recovery::Timeout { point: self.next };
            }
            self.arm(now, true);
        }
    }
}
