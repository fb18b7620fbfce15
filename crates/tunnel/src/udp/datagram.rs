//! What is in a datagram, once it is opened.
//!
//! ```text
//! kind 0   an IP packet with nothing left to do
//! kind 1   an IP packet whose transport checksum is partial: it has the sum of the pseudo-header
//! kind 2   a segment of a super-packet: its number, the length of the IP header, the length of all headers
//!          (one byte each), the payload of each segment but the last (two bytes), the headers of the
//!          whole, the payload of this one
//! kind 3   the last segment of a super-packet
//! kind 4   a question whether this gets through, filled up
//! kind 5   the answer: the counter of the question (eight bytes)
//! ```

use netyard_sys::segments;
use netyard_wire::ip::{self, IpPacket};
use netyard_wire::{Checksum, Offload};

use super::sealed;

/// What is before a packet at most, bytes.
pub const OVERHEAD: usize = 6;
/// The longest content, bytes.
pub(crate) const MOST: usize = segments::MOST_BYTES - sealed::OVERHEAD;

const PACKET: u8 = 0;
const PARTIAL_PACKET: u8 = 1;
const SEGMENT: u8 = 2;
const LAST_SEGMENT: u8 = 3;
const QUESTION: u8 = 4;
const ANSWER: u8 = 5;

/// What is in a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// An IP packet.
    Packet {
        /// Its transport checksum is to be completed.
        is_partial: bool,
        /// The packet.
        bytes: &'a [u8],
    },
    /// One of a super-packet.
    Segment(Segment<'a>),
    /// Does this get through?
    Question {
        /// Length of the whole content, bytes.
        len: usize,
    },
    /// A question did.
    Answer {
        /// The counter of the question.
        counter: u64,
    },
}

/// A segment of a super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Which one.
    pub number: u8,
    /// Whether the super-packet ends with it.
    pub is_last: bool,
    /// Length of the IP header, bytes.
    pub transport: u8,
    /// Payload of each segment but the last, bytes.
    pub size: u16,
    /// The headers of the super-packet.
    pub headers: &'a [u8],
    /// The payload of this one.
    pub payload: &'a [u8],
}

impl<'a> Content<'a> {
    /// Reads what was opened; `None`: that is nothing that this version knows.
    #[must_use]
    pub fn parse(content: &'a [u8]) -> Option<Self> {
        let (kind, rest) = content.split_first()?;
        match *kind {
            PACKET | PARTIAL_PACKET => {
                Some(Self::Packet { is_partial: *kind == PARTIAL_PACKET, bytes: rest })
            }
            SEGMENT | LAST_SEGMENT => {
                let (&[number, transport, headers_len, s0, s1], rest) = rest.split_first_chunk()?;
                let (headers, payload) = rest.split_at_checked(headers_len.into())?;
                let (is_last, size) = (*kind == LAST_SEGMENT, u16::from_be_bytes([s0, s1]));
                let is_full = payload.len() == usize::from(size);
                let fits = if is_last { payload.len() <= size.into() } else { is_full };
                let segment = Segment { number, is_last, transport, size, headers, payload };
                (fits && !payload.is_empty()).then_some(Self::Segment(segment))
            }
            QUESTION => Some(Self::Question { len: content.len() }),
            ANSWER => {
                let counter = u64::from_be_bytes(*rest.first_chunk()?);
                Some(Self::Answer { counter })
            }
            _ => None,
        }
    }

    /// Appends it.
    pub fn put(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Packet { is_partial, bytes } => {
                out.push(if is_partial { PARTIAL_PACKET } else { PACKET });
                out.extend_from_slice(bytes);
            }
            Self::Segment(Segment { number, is_last, transport, size, headers, payload }) => {
                let [s0, s1] = size.to_be_bytes();
                let kind = if is_last { LAST_SEGMENT } else { SEGMENT };
                // Its length came from a byte.
                let headers_len = u8::try_from(headers.len()).unwrap_or(u8::MAX);
                out.extend_from_slice(&[kind, number, transport, headers_len, s0, s1]);
                out.extend_from_slice(headers);
                out.extend_from_slice(payload);
            }
            Self::Question { len } => {
                out.push(QUESTION);
                out.resize(out.len() + len.saturating_sub(1), 0);
            }
            Self::Answer { counter } => {
                out.push(ANSWER);
                out.extend_from_slice(&counter.to_be_bytes());
            }
        }
    }
}

/// How a packet is put into datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Into one.
    Whole { is_partial: bool },
    /// Each segment into one.
    Segments { transport: u8, headers_len: u8, size: u16 },
}

impl Cut {
    /// Of a packet into contents of at most `largest` bytes; `None`: it cannot be.
    pub(crate) fn of(offload: &Offload, packet: &IpPacket<'_>, largest: usize) -> Option<Self> {
        let Some(gso) = offload.gso else {
            let is_partial = match offload.checksum {
                Checksum::Present | Checksum::Valid => false,
                // The other end looks for it where it belongs.
                partial => (partial == partial_of(packet)?).then_some(true)?,
            };
            return (packet.len() < largest).then_some(Self::Whole { is_partial });
        };
        let transport = u8::try_from(packet.header.len()).ok()?;
        let headers_len = u8::try_from(gso.header_len).ok()?;
        let payload_len = packet.len().checked_sub(headers_len.into())?;
        let count = payload_len.div_ceil(gso.size.into());
        let fits = OVERHEAD + usize::from(headers_len) + usize::from(gso.size) <= largest;
        (fits && (1..=256).contains(&count)).then_some(Self::Segments {
            transport,
            headers_len,
            size: gso.size,
        })
    }

    /// The contents, given the packet. All but the last have one length.
    pub(crate) fn contents(self, bytes: &[u8]) -> impl Iterator<Item = Content<'_>> {
        let (whole, segments) = match self {
            Self::Whole { is_partial } => (Some(Content::Packet { is_partial, bytes }), None),
            Self::Segments { transport, headers_len, size } => {
                let parts = bytes.split_at_checked(headers_len.into());
                (None, parts.map(|(headers, payload)| (transport, size, headers, payload)))
            }
        };
        let segments = segments.into_iter().flat_map(|(transport, size, headers, all)| {
            let count = all.len().div_ceil(size.into());
            (0..=u8::MAX).zip(all.chunks(size.into())).map(move |(number, payload)| {
                let is_last = usize::from(number) + 1 == count;
                Content::Segment(Segment { number, is_last, transport, size, headers, payload })
            })
        });
        whole.into_iter().chain(segments)
    }
}

/// The partial checksum of a packet, as it is where one belongs; `None`: none does.
pub(crate) fn partial_of(packet: &IpPacket<'_>) -> Option<Checksum> {
    let offset = match packet.protocol {
        ip::TCP => 16,
        ip::UDP => 6,
        _ => return None,
    };
    let start = u16::try_from(packet.header.len()).ok()?;
    packet.fragment.is_none().then_some(Checksum::Partial { start, offset })
}
