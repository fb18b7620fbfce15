//! Listening: connections that are being opened, and those that wait to be accepted.
//!
//! A SYN costs an [`Opening`], no connection. Each listener has a bounded number of them; beyond that
//! SYNs are answered with cookies (RFC 4987 section 3.6) and nothing is remembered, so that a flood
//! does not keep others out. A connection that is open waits in the listener's queue; while that is
//! full, neither new SYNs nor the last step of an opening is taken, and the peer tries again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use netyard_wire::build::TcpFrame;
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{FrameBuf, MacAddr, SeqNumber};

use super::ends::Ends;
use super::peer::Peer;
use super::receiver::Receiver;
use super::settings::Settings;
use super::timestamps::Timestamps;
use crate::ip::Path;

/// Answers to one SYN (Linux's `tcp_synack_retries`, and the first).
pub(super) const MAX_ANSWERS: u32 = 6;
/// Openings of one listener before cookies are used, whatever its backlog.
const MIN_OPENINGS: usize = 128;

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) local: SocketAddr,
    /// Connections that may wait to be accepted.
    backlog: usize,
    /// Connections that are open, oldest first.
    pub(super) waiting: VecDeque<usize>,
    /// Connections that are being opened.
    pub(super) openings: usize,
    /// When a cookie was last given out: only then one can come back.
    pub(super) cookies_at: Option<Instant>,
    pub(super) told: bool,
}

impl Listener {
    pub(super) fn new(local: SocketAddr, backlog: usize) -> Self {
        Self {
            local,
            backlog: backlog.max(1),
            waiting: VecDeque::new(),
            openings: 0,
            cookies_at: None,
            told: false,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= self.backlog
    }

    pub(super) fn wants_cookies(&self) -> bool {
        self.openings >= self.backlog.max(MIN_OPENINGS)
    }
}

/// A connection whose SYN was answered.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) ends: Ends,
    pub(super) listener: usize,
    pub(super) path: Path,
    pub(super) peer: Peer,
    pub(super) iss: SeqNumber,
    pub(super) timestamps: Timestamps,
    /// When the SYN came, and how often it was answered.
    pub(super) since: Instant,
    pub(super) answers: u32,
}

/// An answer to a SYN; `clock`: the timestamps to tell.
pub(super) fn answer(
    ends: &Ends,
    path: &Path,
    peer: &Peer,
    iss: SeqNumber,
    clock: Option<(u32, u32)>,
    settings: &Settings,
) -> FrameBuf {
    let headers = if ends.is_ipv4() { 40 } else { 60 };
    let options = TcpOptions {
        mss: Some(u16::try_from(path.mtu.saturating_sub(headers)).unwrap_or(u16::MAX)),
        window_scale: (peer.scaled && settings.window_scaling).then(|| settings.window_scale()),
        sack_permitted: peer.sack && settings.sack,
        timestamps: clock,
        ..TcpOptions::default()
    };
    let window = Receiver::syn_window(settings);
    let flags = Flags::SYN | Flags::ACK;
    bare(ends, path, iss, peer.seq + 1u32, flags, window, options)
}

/// A segment without payload that belongs to no connection.
pub(super) fn bare(
    ends: &Ends,
    path: &Path,
    seq: SeqNumber,
    ack: SeqNumber,
    flags: Flags,
    window: u16,
    options: TcpOptions,
) -> FrameBuf {
    let header = TcpFrame {
        source_mac: path.source_mac,
        destination_mac: MacAddr([0; 6]),
        source: ends.local(),
        destination: ends.remote(),
        seq,
        ack,
        flags,
        window,
        options,
        hop_limit: path.hop_limit,
        traffic_class: 0,
        ip_id: 0,
    };
    let mut frame = FrameBuf { bytes: vec![0; header.header_len()], ..FrameBuf::default() };
    frame.offload = header.emit(&mut frame.bytes, u16::MAX);
    frame
}
