//! The timestamps of one connection (RFC 7323 sections 3 to 5).

use std::time::{Duration, Instant};

use netyard_wire::tcp::Segment;

/// Length of the option in a header, bytes.
const LEN: usize = 12;
/// RFC 7323 section 5.5: a timestamp that was kept for longer says nothing any more.
const OUTDATED: Duration = Duration::from_secs(24 * 24 * 3600);

/// Our clock for one connection, and the peer's as far as it is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timestamps {
    epoch: Instant,
    /// Random for each connection: nobody learns how long the machine is up (RFC 7323 section 7.1).
    offset: u32,
    /// The peer's timestamp to echo, and when it came; `None`: no timestamps.
    recent: Option<(u32, Instant)>,
}

impl Timestamps {
    pub(crate) fn new(epoch: Instant, offset: u32) -> Self {
        Self { epoch, offset, recent: None }
    }

    /// The peer's SYN had a timestamp, or none.
    pub(crate) fn negotiate(&mut self, now: Instant, peer: Option<u32>) {
        self.recent = peer.map(|value| (value, now));
    }

    /// Our clock: milliseconds.
    pub(crate) fn clock(&self, now: Instant) -> u32 {
        let [.., a, b, c, d] = now.saturating_duration_since(self.epoch).as_millis().to_be_bytes();
        u32::from_be_bytes([a, b, c, d]).wrapping_add(self.offset)
    }

    /// The option of a SYN that nothing was agreed on before.
    pub(crate) fn first(&self, now: Instant) -> (u32, u32) {
        (self.clock(now), 0)
    }

    /// The option of every other segment.
    pub(crate) fn option(&self, now: Instant) -> Option<(u32, u32)> {
        self.recent.map(|(echo, _)| (self.clock(now), echo))
    }

    /// Bytes that the option takes in each header.
    pub(crate) fn len(&self) -> usize {
        if self.recent.is_some() { LEN } else { 0 }
    }

    /// PAWS (RFC 7323 section 5.3): the segment is an old duplicate. One without the option that was
    /// agreed on is taken for one, too (section 3.2).
    pub(crate) fn is_old(&self, now: Instant, segment: &Segment<'_>) -> bool {
        let Some((recent, at)) = self.recent else { return false };
        let Some((value, _)) = segment.options.timestamps else { return true };
        before(value, recent) && !is_outdated(now, at)
    }

    /// The segment's timestamp is the one to echo (RFC 7323 section 4.3, the caller has checked where
    /// it stands).
    pub(crate) fn learn(&mut self, now: Instant, segment: &Segment<'_>) {
        if let (Some((recent, at)), Some((value, _))) =
            (&mut self.recent, segment.options.timestamps)
            && (!before(value, *recent) || is_outdated(now, *at))
        {
            (*recent, *at) = (value, now);
        }
    }

    /// The round trip that a segment's echo tells, of a clock of milliseconds; `None` where it makes no
    /// sense.
    pub(crate) fn round_trip(&self, now: Instant, segment: &Segment<'_>) -> Option<Duration> {
        let (_, echo) = segment.options.timestamps.filter(|(_, echo)| *echo != 0)?;
        self.recent?;
        let passed = self.clock(now).wrapping_sub(echo);
        (passed.cast_signed() >= 0).then(|| Duration::from_millis(passed.max(1).into()))
    }

    /// RFC 6191 section 2: a SYN with this timestamp cannot be older than the connection. `later`: its number lies
    /// behind what was received, which tells where the timestamps are equal.
    pub(crate) fn is_newer(&self, value: u32, later: bool) -> bool {
        self.recent.is_some_and(|(recent, _)| before(recent, value) || (recent == value && later))
    }
}

/// True if what was kept since `at` says nothing any more.
fn is_outdated(now: Instant, at: Instant) -> bool {
    now.saturating_duration_since(at) >= OUTDATED
}

/// Which of two timestamps is the earlier one, by the shorter way round.
fn before(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}
