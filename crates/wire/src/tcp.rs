//! TCP segments (RFC 9293 section 3.1).

use std::fmt;
use std::ops::BitOr;

use crate::ip::{self, IpPacket};
use crate::{Checksum, ParseError, SeqNumber, checksum};

/// Length of the header without options, bytes.
pub const HEADER_LEN: usize = 20;

/// Where the flags lie in the header, bytes.
pub(crate) const FLAGS_OFFSET: usize = 13;

/// Where the checksum lies in the header, bytes.
pub(crate) const CHECKSUM_OFFSET: u16 = 16;

/// Room for options, bytes.
pub(crate) const MAX_OPTIONS_LEN: usize = 40;

/// The largest window shift (RFC 7323 section 2.3).
const MAX_WINDOW_SCALE: u8 = 14;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// The control bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement field counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// True if every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True if any flag of `other` is set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// These flags but those of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let mut separator = "";
        for (bit, name) in names.into_iter().enumerate() {
            if self.0 & (1 << bit) != 0 {
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        if separator.is_empty() { f.write_str("NONE") } else { Ok(()) }
    }
}

/// A TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number of the first byte, or of the SYN.
    pub seq: SeqNumber,
    /// The next sequence number wanted, if ACK is set.
    pub ack: SeqNumber,
    /// The control bits.
    pub flags: Flags,
    /// The window, not scaled.
    pub window: u16,
    /// The urgent pointer, if URG is set: an offset from `seq` that may point past the payload.
    pub urgent: u16,
    /// The options that are understood.
    pub options: TcpOptions,
    /// The data.
    pub payload: &'a [u8],
}

/// The TCP options that are understood; others are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcpOptions {
    /// Maximum segment size, bytes (RFC 9293 section 3.7.1).
    pub mss: Option<u16>,
    /// Window shift, at most 14 (RFC 7323 section 2).
    pub window_scale: Option<u8>,
    /// Selective acknowledgements may be sent (RFC 2018 section 2).
    pub sack_permitted: bool,
    /// Blocks received out of order, each from its first byte to the byte behind its last
    /// (RFC 2018 section 3).
    pub sack: [Option<(SeqNumber, SeqNumber)>; 4],
    /// Timestamp value and echo reply (RFC 7323 section 3).
    pub timestamps: Option<(u32, u32)>,
}

impl<'a> Segment<'a> {
    /// Parses the payload of an IP packet. The checksum is verified where it is
    /// [`Checksum::Present`].
    ///
    /// # Errors
    /// The packet is a fragment or another protocol; a length lies; the checksum is wrong.
    pub fn parse(ip: &IpPacket<'a>, checksum: Checksum) -> Result<Self, ParseError> {
        if ip.protocol != ip::TCP {
            return Err(ParseError::new("tcp-protocol"));
        }
        if ip.fragment.is_some() {
            return Err(ParseError::new("tcp-fragment"));
        }
        let header = Header::parse(ip.payload)?;
        if checksum == Checksum::Present && !checksum::verify(ip, ip.payload) {
            return Err(ParseError::new("tcp-checksum"));
        }
        let &[s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, _, flags, w0, w1, _, _, u0, u1] =
            header.fixed;
        Ok(Self {
            source_port: u16::from_be_bytes([s0, s1]),
            destination_port: u16::from_be_bytes([d0, d1]),
            seq: SeqNumber(u32::from_be_bytes([q0, q1, q2, q3])),
            ack: SeqNumber(u32::from_be_bytes([a0, a1, a2, a3])),
            flags: Flags(flags),
            window: u16::from_be_bytes([w0, w1]),
            urgent: u16::from_be_bytes([u0, u1]),
            options: TcpOptions::parse(header.options)?,
            payload: header.payload,
        })
    }

    /// How far the segment reaches in sequence space (SEG.LEN): data, SYN and FIN.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload
            .len()
            .saturating_add(usize::from(self.flags.contains(Flags::SYN)))
            .saturating_add(usize::from(self.flags.contains(Flags::FIN)))
    }

    /// True if the segment takes no sequence space: a pure acknowledgement or reset.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The parts of a segment.
struct Header<'a> {
    fixed: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(segment: &'a [u8]) -> Result<Self, ParseError> {
        let (fixed, rest) = segment.split_first_chunk().ok_or(ParseError::new("tcp-truncated"))?;
        let len = usize::from(fixed[12] >> 4).saturating_mul(4);
        let (options, payload) = len
            .checked_sub(HEADER_LEN)
            .and_then(|len| rest.split_at_checked(len))
            .ok_or(ParseError::new("tcp-data-offset"))?;
        Ok(Self { fixed, options, payload })
    }
}

/// Length of the header with options, bytes, of a segment that may be cut into several: a SYN
/// takes a sequence number of its own and a reset ends everything, so neither may.
pub(crate) fn segmentable_header_len(segment: &[u8]) -> Result<usize, ParseError> {
    let header = Header::parse(segment)?;
    if Flags(header.fixed[13]).intersects(Flags::SYN | Flags::RST) {
        return Err(ParseError::new("tcp-gso-flags"));
    }
    Ok(HEADER_LEN.saturating_add(header.options.len()))
}

impl TcpOptions {
    /// Parses the options of a header (RFC 9293 section 3.1).
    fn parse(mut bytes: &[u8]) -> Result<Self, ParseError> {
        let mut options = Self::default();
        loop {
            let (kind, data, rest) = match bytes {
                [] | [END, ..] => return Ok(options),
                [NO_OPERATION, rest @ ..] => {
                    bytes = rest;
                    continue;
                }
                [kind, len, rest @ ..] => {
                    let (data, rest) = usize::from(*len)
                        .checked_sub(2)
                        .and_then(|len| rest.split_at_checked(len))
                        .ok_or(ParseError::new("tcp-option-length"))?;
                    (*kind, data, rest)
                }
                [_] => return Err(ParseError::new("tcp-option-length")),
            };
            options.set(kind, data)?;
            bytes = rest;
        }
    }

    fn set(&mut self, kind: u8, data: &[u8]) -> Result<(), ParseError> {
        match (kind, data) {
            (MSS, &[a, b]) => self.mss = Some(u16::from_be_bytes([a, b])),
            // RFC 7323 section 2.3: a larger shift is taken as 14.
            (WINDOW_SCALE, &[shift]) => self.window_scale = Some(shift.min(MAX_WINDOW_SCALE)),
            (SACK_PERMITTED, &[]) => self.sack_permitted = true,
            (TIMESTAMPS, &[a, b, c, d, e, f, g, h]) => {
                let value = u32::from_be_bytes([a, b, c, d]);
                self.timestamps = Some((value, u32::from_be_bytes([e, f, g, h])));
            }
            (SACK, data) => {
                let (blocks, rest) = data.as_chunks::<8>();
                if !rest.is_empty() || blocks.is_empty() || blocks.len() > self.sack.len() {
                    return Err(ParseError::new("tcp-option-length"));
                }
                self.sack = [None; 4];
                for (slot, &[a, b, c, d, e, f, g, h]) in self.sack.iter_mut().zip(blocks) {
                    let left = SeqNumber(u32::from_be_bytes([a, b, c, d]));
                    *slot = Some((left, SeqNumber(u32::from_be_bytes([e, f, g, h]))));
                }
            }
            (MSS | WINDOW_SCALE | SACK_PERMITTED | TIMESTAMPS, _) => {
                return Err(ParseError::new("tcp-option-length"));
            }
            _ => {}
        }
        Ok(())
    }

    /// The options as they stand in a header, padded to 32-bit words. They are laid out as Linux
    /// does, each at a word boundary, but for "SACK permitted", which takes the place of the padding of
    /// timestamps. SACK blocks that have no room are left out.
    pub(crate) fn encode(&self) -> EncodedOptions {
        let mut out = EncodedOptions { bytes: [0; MAX_OPTIONS_LEN], len: 0 };
        if *self == Self::default() {
            return out;
        }
        if let Some(mss) = self.mss {
            let [a, b] = mss.to_be_bytes();
            out.push([MSS, 4, a, b]);
        }
        if let Some((value, echo)) = self.timestamps {
            let [first, second] =
                if self.sack_permitted { [SACK_PERMITTED, 2] } else { [NO_OPERATION; 2] };
            out.push([first, second, TIMESTAMPS, 10]);
            out.push(value.to_be_bytes());
            out.push(echo.to_be_bytes());
        } else if self.sack_permitted {
            out.push([NO_OPERATION, NO_OPERATION, SACK_PERMITTED, 2]);
        }
        if let Some(shift) = self.window_scale {
            out.push([NO_OPERATION, WINDOW_SCALE, 3, shift.min(MAX_WINDOW_SCALE)]);
        }
        let room = MAX_OPTIONS_LEN.saturating_sub(4).saturating_sub(out.len) / 8;
        let blocks = || self.sack.iter().flatten().take(room);
        let len = (0u8..).step_by(8).nth(blocks().count()).unwrap_or(0);
        if len > 0 {
            out.push([NO_OPERATION, NO_OPERATION, SACK, len.saturating_add(2)]);
            for (left, right) in blocks() {
                out.push(left.0.to_be_bytes());
                out.push(right.0.to_be_bytes());
            }
        }
        out
    }
}

/// Options as they stand in a header.
pub(crate) struct EncodedOptions {
    bytes: [u8; MAX_OPTIONS_LEN],
    len: usize,
}

impl EncodedOptions {
    fn push(&mut self, word: [u8; 4]) {
        let end = self.len.saturating_add(4);
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(&word);
            self.len = end;
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
