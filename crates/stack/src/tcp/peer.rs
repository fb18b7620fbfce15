//! What the other end of a connection has said in its SYN.

use netyard_wire::SeqNumber;
use netyard_wire::tcp::Segment;

/// RFC 9293 section 3.7.1: what a peer takes that says nothing, over IPv4 and IPv6.
pub(super) const DEFAULT_MSS4: u16 = 536;
const DEFAULT_MSS6: u16 = 1220;
/// A peer that announces less would make us send a segment for every few bytes (Linux's
/// `tcp_min_snd_mss` is 48).
const MIN_MSS: u16 = 64;

/// What a peer's SYN said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    /// Its initial sequence number.
    pub(super) seq: SeqNumber,
    /// Bytes, scaled already where that applies.
    pub(super) window: u32,
    /// The largest payload that it takes, without options.
    pub(super) mss: u16,
    /// Shift of its window; `None`: ours must not be scaled either.
    pub(super) scale: u8,
    pub(super) scaled: bool,
    pub(super) sack: bool,
    /// Its clock, if it does timestamps.
    pub(super) timestamp: Option<u32>,
}

impl Peer {
    pub(super) fn of(syn: &Segment<'_>, ipv4: bool) -> Self {
        let default = if ipv4 { DEFAULT_MSS4 } else { DEFAULT_MSS6 };
        Self {
            seq: syn.seq,
            window: syn.window.into(),
            mss: syn.options.mss.unwrap_or(default).max(MIN_MSS),
            scale: syn.options.window_scale.unwrap_or(0),
            scaled: syn.options.window_scale.is_some(),
            sack: syn.options.sack_permitted,
            timestamp: syn.options.timestamps.map(|(value, _)| value),
        }
    }
}
