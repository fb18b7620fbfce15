//! What a connection of the model is to do.

use std::ops::Range;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::SmallRng;

/// Who does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Guest,
    Host,
}

/// Which end of the stream comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Each when it has said all.
    Any,
    /// The host says half of what it has to say when the guest has finished.
    GuestFirst,
    /// The guest says half of what it has to say when the host has finished.
    HostFirst,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// A client of the host's opens it.
    pub(crate) inbound: bool,
    pub(crate) ipv4: bool,
    pub(crate) up: Vec<u8>,
    pub(crate) down: Vec<u8>,
    pub(crate) order: Order,
    /// Who resets it, and when.
    pub(crate) reset: Option<Side>,
    pub(crate) reset_after: Duration,
    /// When it begins.
    pub(crate) begins: Duration,
    /// The guest's first sequence number, segment size, window shift, and whether it does SACK.
    pub(crate) isn: u32,
    pub(crate) mss: u16,
    pub(crate) scale: Option<u8>,
    pub(crate) sack: bool,
    /// What the guest takes in before its program reads, bytes.
    pub(crate) buffer: usize,
    /// How likely its program reads in a moment, and how likely the host's does.
    pub(crate) eager: f64,
    pub(crate) host_eager: f64,
    /// What the host's socket takes at a time, bytes.
    pub(crate) host_room: usize,
}

/// Bytes that differ from place to place and from flow to flow.
fn stream(rng: &mut SmallRng, lens: Range<usize>) -> Vec<u8> {
    let len = if rng.random_bool(0.1) { lens.start } else { rng.random_range(lens) };
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes[..]);
    bytes
}

impl Plan {
    /// Any connection.
    pub(crate) fn any(rng: &mut SmallRng) -> Self {
        let buffers = [500, 1_460, 4_096, 30_000, 65_535, 400_000];
        let scale = [None, Some(0), Some(3), Some(7)][rng.random_range(0..4)];
        Self {
            inbound: rng.random_bool(0.4),
            ipv4: rng.random_bool(0.5),
            up: stream(rng, 0..40_000),
            down: stream(rng, 0..60_000),
            order: [Order::Any, Order::GuestFirst, Order::HostFirst][rng.random_range(0..3)],
            reset: match rng.random_range(0..8) {
                0 => Some(Side::Guest),
                1 => Some(Side::Host),
                _ => None,
            },
            reset_after: Duration::from_millis(rng.random_range(0..1500)),
            begins: Duration::from_millis(rng.random_range(0..300)),
            isn: match rng.random_range(0..3) {
                0 => u32::MAX - rng.random_range(0..20_000),
                1 => (1 << 31) - rng.random_range(0..20_000),
                _ => rng.random(),
            },
            mss: [536, 1_460, 9_000][rng.random_range(0..3)],
            scale,
            sack: rng.random_bool(0.7),
            buffer: buffers[rng.random_range(0..buffers.len())],
            eager: [0.02, 0.3, 1.0][rng.random_range(0..3)],
            host_eager: [0.05, 0.5, 1.0][rng.random_range(0..3)],
            host_room: [300, 5_000, 200_000][rng.random_range(0..3)],
        }
    }
}
