//! The frame type of the whole project: bytes plus offload metadata.
//!
//! The metadata means what a virtio-net header means (Virtual I/O Device 1.3 section 5.1.6): the
//! sender may leave the transport checksum and the cutting into segments to whoever sends the frame
//! out on a link that needs them, most often to nobody.

use std::ops::BitOr;

use crate::ethernet::{self, Ethernet};
use crate::ip::{self, IpPacket};
use crate::{ParseError, tcp, udp};

/// Length of the virtio-net header before each frame, bytes: `struct virtio_net_hdr_v1`.
pub const VNET_HEADER_LEN: usize = 12;

/// Length of the biggest frame, bytes: the largest IP packet, an Ethernet header, a VLAN tag.
pub const MAX_FRAME_LEN: usize = 65_535 + 14 + 4;

const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// The smallest TCP segment that Linux cuts to (`TCP_MIN_GSO_SIZE`), bytes of payload. It bounds
/// how many frames one frame can become.
const MIN_TCP_SIZE: u16 = 8;
/// The most datagrams that one frame may hold (`UDP_MAX_SEGMENTS`).
const MAX_UDP_SEGMENTS: usize = 128;

/// A frame somebody else owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The Ethernet frame, without frame check sequence.
    pub bytes: &'a [u8],
    /// What is left to be done to it.
    pub offload: Offload,
}

/// A frame that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrameBuf {
    /// The Ethernet frame, without frame check sequence.
    pub bytes: Vec<u8>,
    /// What is left to be done to it.
    pub offload: Offload,
}

impl FrameBuf {
    /// The frame, borrowed.
    #[must_use]
    pub fn as_frame(&self) -> Frame<'_> {
        Frame { bytes: &self.bytes, offload: self.offload }
    }
}

impl From<Frame<'_>> for FrameBuf {
    fn from(frame: Frame<'_>) -> Self {
        Self { bytes: frame.bytes.to_vec(), offload: frame.offload }
    }
}

/// What the sender of a frame left to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The state of the transport checksum.
    pub checksum: Checksum,
    /// How to cut the frame up, if it holds more than one packet.
    pub gso: Option<Gso>,
}

/// The state of a frame's transport checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// In the packet, to be verified.
    #[default]
    Present,
    /// To be completed: the field holds the folded sum of the pseudo-header, and the checksum runs
    /// from `start` to the end of the packet.
    Partial {
        /// Where the covered bytes begin, bytes from the start of the frame.
        start: u16,
        /// Where the field lies, bytes from `start`.
        offset: u16,
    },
    /// In the packet, and known to be right.
    Valid,
}

/// Segmentation left to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// Which protocol is to be cut.
    pub kind: GsoKind,
    /// Payload of each segment but the last, bytes.
    pub size: u16,
    /// Length of all headers, Ethernet to transport, bytes.
    pub header_len: u16,
    /// TCP only: the frame carries CWR, which only the first segment may keep (RFC 3168
    /// section 6.1.2).
    pub ecn: bool,
}

/// What a frame with [`Gso`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of equal size, over either.
    Udp,
}

/// A virtio-net header that does not fit its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// The frame is longer than [`MAX_FRAME_LEN`].
    #[error("frame longer than the largest super-frame")]
    TooLong,
    /// Flags that were not negotiated.
    #[error("unknown flags {0:#04x} in the virtio-net header")]
    Flags(u8),
    /// A GSO kind that was not negotiated.
    #[error("unknown GSO type {0:#04x} in the virtio-net header")]
    Kind(u8),
    /// The checksum to be completed does not lie in the packet.
    #[error("checksum offsets outside the packet")]
    ChecksumOffset,
    /// Segments must have their checksums completed, and this frame does not ask for it.
    #[error("GSO without checksum offload")]
    GsoChecksum,
    /// Segments without payload, or absurdly many.
    #[error("GSO size {0} bytes is out of bounds")]
    GsoSize(u16),
    /// The frame is not what the GSO kind says.
    #[error("the packet is not what the GSO type says")]
    GsoKind,
    /// The headers announced are longer than the frame.
    #[error("GSO header length outside the frame")]
    GsoHeaderLength,
    /// The packet to be cut is malformed.
    #[error(transparent)]
    Packet(#[from] ParseError),
}

impl OffloadError {
    /// The name of the drop counter.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong => "offload-too-long",
            Self::Flags(_) => "offload-flags",
            Self::Kind(_) => "offload-kind",
            Self::ChecksumOffset => "offload-checksum-offset",
            Self::GsoChecksum => "offload-gso-checksum",
            Self::GsoSize(_) => "offload-gso-size",
            Self::GsoKind => "offload-gso-kind",
            Self::GsoHeaderLength => "offload-gso-header-length",
            Self::Packet(error) => error.reason(),
        }
    }
}

impl Offload {
    /// Reads the virtio-net header of `frame` (little endian, 12 bytes), and believes none of it:
    /// what it returns fits the frame. The announced header length is only a hint (section
    /// 5.1.6.2); [`Gso::header_len`] is measured.
    ///
    /// # Errors
    /// The header lies.
    pub fn parse(header: &[u8; VNET_HEADER_LEN], frame: &[u8]) -> Result<Self, OffloadError> {
        if frame.len() > MAX_FRAME_LEN {
            return Err(OffloadError::TooLong);
        }
        Self::read(header, frame, ethernet::HEADER_LEN, || Layout::of(frame))
    }

    /// The same for an IP packet without an Ethernet header, as TUN devices have them. What is told of
    /// places in it counts from its first byte, so [`fit`](crate::fit) does not take it.
    ///
    /// # Errors
    /// The header lies, or the packet is none, or bytes follow it.
    pub fn parse_packet<'a>(
        header: &[u8; VNET_HEADER_LEN],
        bytes: &'a [u8],
    ) -> Result<(Self, IpPacket<'a>), OffloadError> {
        let packet = IpPacket::parse_bare(bytes)?;
        if packet.len() != bytes.len() {
            return Err(OffloadError::TooLong);
        }
        let offload = Self::read(header, bytes, 0, || Layout::of_packet(packet, 0))?;
        Ok((offload, packet))
    }

    /// `link_len`: where the IP packet begins in `frame`, bytes.
    fn read<'a>(
        header: &[u8; VNET_HEADER_LEN],
        frame: &[u8],
        link_len: usize,
        layout: impl FnOnce() -> Result<Layout<'a>, OffloadError>,
    ) -> Result<Self, OffloadError> {
        let [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = *header;
        if flags & !(NEEDS_CHECKSUM | DATA_VALID) != 0 {
            return Err(OffloadError::Flags(flags));
        }
        let checksum = if flags & NEEDS_CHECKSUM != 0 {
            let start = u16::from_le_bytes([s0, s1]);
            let offset = u16::from_le_bytes([o0, o1]);
            let end = usize::from(start).saturating_add(usize::from(offset)).saturating_add(2);
            if usize::from(start) < link_len || end > frame.len() {
                return Err(OffloadError::ChecksumOffset);
            }
            Checksum::Partial { start, offset }
        } else if flags & DATA_VALID != 0 {
            Checksum::Valid
        } else {
            Checksum::Present
        };
        let ecn = kind & GSO_ECN != 0;
        let kind = match kind & !GSO_ECN {
            GSO_NONE if !ecn => return Ok(Self { checksum, gso: None }),
            GSO_TCP4 => GsoKind::Tcp4,
            GSO_TCP6 => GsoKind::Tcp6,
            GSO_UDP if !ecn => GsoKind::Udp,
            _ => return Err(OffloadError::Kind(kind)),
        };
        if usize::from(u16::from_le_bytes([h0, h1])) > frame.len() {
            return Err(OffloadError::GsoHeaderLength);
        }
        let size = u16::from_le_bytes([g0, g1]);
        let layout = layout()?;
        layout.check(kind, size, checksum)?;
        let header_len = layout.header_len;
        Ok(Self { checksum, gso: Some(Gso { kind, size, header_len, ecn }) })
    }

    /// The same when the IP packet, which began `from` bytes into the frame, begins `to` bytes into it, as with an
    /// Ethernet header before it or without. `None` if what is told of places does not lie behind `from`.
    #[must_use]
    pub fn moved(self, from: u16, to: u16) -> Option<Self> {
        let moved = |place: u16| place.checked_sub(from)?.checked_add(to);
        let checksum = match self.checksum {
            Checksum::Partial { start, offset } => {
                Checksum::Partial { start: moved(start)?, offset }
            }
            known => known,
        };
        let gso = match self.gso {
            Some(gso) => Some(Gso { header_len: moved(gso.header_len)?, ..gso }),
            None => None,
        };
        Some(Self { checksum, gso })
    }

    /// The virtio-net header (little endian, 12 bytes, one buffer).
    #[must_use]
    pub fn encode(&self) -> [u8; VNET_HEADER_LEN] {
        let (flags, start, offset) = match self.checksum {
            Checksum::Present => (0, 0, 0),
            Checksum::Partial { start, offset } => (NEEDS_CHECKSUM, start, offset),
            Checksum::Valid => (DATA_VALID, 0, 0),
        };
        let (kind, size, header_len) = match self.gso {
            None => (GSO_NONE, 0, 0),
            Some(gso) => {
                let kind = match gso.kind {
                    GsoKind::Tcp4 => GSO_TCP4,
                    GsoKind::Tcp6 => GSO_TCP6,
                    GsoKind::Udp => GSO_UDP,
                };
                (if gso.ecn { kind | GSO_ECN } else { kind }, gso.size, gso.header_len)
            }
        };
        let [h0, h1] = header_len.to_le_bytes();
        let [g0, g1] = size.to_le_bytes();
        let [s0, s1] = start.to_le_bytes();
        let [o0, o1] = offset.to_le_bytes();
        [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1, 1, 0]
    }
}

/// Where the parts of a frame that can be cut into segments lie.
pub(crate) struct Layout<'a> {
    pub(crate) ip: IpPacket<'a>,
    /// Which GSO kind suits the packet.
    pub(crate) kind: GsoKind,
    /// Where the transport header begins, bytes from the start of the frame.
    pub(crate) transport: u16,
    /// Where the payload begins, bytes from the start of the frame.
    pub(crate) header_len: u16,
    /// What is to be cut.
    pub(crate) payload: &'a [u8],
}

impl<'a> Layout<'a> {
    pub(crate) fn of(frame: &'a [u8]) -> Result<Self, OffloadError> {
        let (ethernet, packet) = Ethernet::parse(frame)?;
        Self::of_packet(IpPacket::parse(ethernet.ethertype, packet)?, ethernet::HEADER_LEN)
    }

    /// Of a packet that begins `link_len` bytes into the frame.
    pub(crate) fn of_packet(ip: IpPacket<'a>, link_len: usize) -> Result<Self, OffloadError> {
        if ip.fragment.is_some() {
            return Err(OffloadError::GsoKind);
        }
        let (kind, len) = match (ip.protocol, ip.source.is_ipv4()) {
            (ip::TCP, true) => (GsoKind::Tcp4, tcp::segmentable_header_len(ip.payload)?),
            (ip::TCP, false) => (GsoKind::Tcp6, tcp::segmentable_header_len(ip.payload)?),
            (ip::UDP, _) => (GsoKind::Udp, udp::segmentable_header_len(ip.payload)?),
            _ => return Err(OffloadError::GsoKind),
        };
        let transport = link_len.saturating_add(ip.header.len());
        let header_len = transport.saturating_add(len);
        Ok(Self {
            ip,
            kind,
            transport: u16::try_from(transport).map_err(|_| OffloadError::GsoHeaderLength)?,
            header_len: u16::try_from(header_len).map_err(|_| OffloadError::GsoHeaderLength)?,
            payload: ip.payload.get(len..).ok_or(OffloadError::GsoHeaderLength)?,
        })
    }

    /// Where the checksum field lies in the transport header.
    pub(crate) fn checksum_offset(&self) -> u16 {
        match self.kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => tcp::CHECKSUM_OFFSET,
            GsoKind::Udp => udp::CHECKSUM_OFFSET,
        }
    }

    /// Whether a TCP header has any of these flags.
    pub(crate) fn has_flags(&self, flags: tcp::Flags) -> bool {
        let byte = self.ip.payload.get(tcp::FLAGS_OFFSET).copied().unwrap_or_default();
        tcp::Flags(byte).intersects(flags)
    }

    /// Whether the frame can be cut as asked.
    pub(crate) fn check(
        &self,
        kind: GsoKind,
        size: u16,
        checksum: Checksum,
    ) -> Result<(), OffloadError> {
        if self.kind != kind {
            return Err(OffloadError::GsoKind);
        }
        let wanted = Checksum::Partial { start: self.transport, offset: self.checksum_offset() };
        if checksum != wanted {
            return Err(OffloadError::GsoChecksum);
        }
        let bounded = match kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => size >= MIN_TCP_SIZE,
            GsoKind::Udp => {
                size > 0 && self.payload.len() <= usize::from(size).saturating_mul(MAX_UDP_SEGMENTS)
            }
        };
        if bounded { Ok(()) } else { Err(OffloadError::GsoSize(size)) }
    }
}

/// The offloads that the receiver of a frame takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(u32);

impl Features {
    /// Nothing: whole packets with complete checksums.
    pub const NONE: Self = Self(0);
    /// Partial checksums. The others are of no use without it.
    pub const CSUM: Self = Self(1);
    /// TCP over IPv4 to be cut.
    pub const TSO4: Self = Self(2);
    /// TCP over IPv6 to be cut.
    pub const TSO6: Self = Self(4);
    /// TCP to be cut that carries CWR.
    pub const ECN: Self = Self(8);
    /// UDP to be cut.
    pub const USO: Self = Self(16);
    /// Everything.
    pub const ALL: Self = Self(31);

    /// True if every feature of `other` is there.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The features as bits, in the order of the constants, from bit 0.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The features in `bits`; unknown bits are dropped.
    #[must_use]
    pub const fn from_bits_truncate(bits: u32) -> Self {
        Self(bits & Self::ALL.0)
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
