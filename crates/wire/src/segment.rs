//! The one segmenter: does for a receiver what it cannot do itself, and nothing more.

use std::net::IpAddr;

use crate::frame::Layout;
use crate::ip::{self, IpPacket};
use crate::tcp::Flags;
use crate::{Checksum, Features, Frame, Gso, GsoKind, Offload, OffloadError, checksum, ethernet};

/// Makes `frame` fit a receiver that takes only these offloads, and hands each resulting frame to
/// `emit`, in order. A frame that fits goes through untouched, without a copy; else each result is
/// built in `scratch`, in which nothing else needs to be.
///
/// Segments are what Linux makes of the same frame: identification of IPv4 counts up, FIN and PSH
/// stay on the last segment only, CWR on the first only (RFC 3168 section 6.1.2), TCP and IP
/// options are on all.
///
/// # Errors
/// The frame has [`Gso`] that does not suit its bytes; nothing was emitted. Offloads that
/// [`Offload::parse`] or [`build`](crate::build) returned with the frame always suit.
pub fn fit(
    frame: Frame<'_>,
    takes: Features,
    scratch: &mut Vec<u8>,
    emit: &mut dyn FnMut(Frame<'_>),
) -> Result<(), OffloadError> {
    let partial = takes.contains(Features::CSUM);
    let offload = frame.offload;
    match (offload.gso, offload.checksum) {
        (Some(gso), _) if !takes.contains(needs(gso)) => {
            return cut(frame, gso, partial, scratch, emit);
        }
        (None, Checksum::Partial { start, offset }) if !partial => {
            scratch.clear();
            scratch.extend_from_slice(frame.bytes);
            complete(scratch, start, offset).ok_or(OffloadError::ChecksumOffset)?;
            emit(Frame { bytes: scratch, offload: Offload::default() });
        }
        // "Known to be right" can be told to those only who take partial checksums.
        (None, Checksum::Valid) if !partial => {
            emit(Frame { bytes: frame.bytes, offload: Offload::default() });
        }
        _ => emit(frame),
    }
    Ok(())
}

fn needs(gso: Gso) -> Features {
    let kind = match gso.kind {
        GsoKind::Tcp4 => Features::TSO4,
        GsoKind::Tcp6 => Features::TSO6,
        GsoKind::Udp => Features::USO,
    };
    let ecn = if gso.ecn { Features::ECN } else { Features::NONE };
    Features::CSUM | kind | ecn
}

fn cut(
    frame: Frame<'_>,
    gso: Gso,
    partial: bool,
    scratch: &mut Vec<u8>,
    emit: &mut dyn FnMut(Frame<'_>),
) -> Result<(), OffloadError> {
    let layout = Layout::of(frame.bytes)?;
    layout.check(gso.kind, gso.size, frame.offload.checksum)?;
    let size = usize::from(gso.size);
    if layout.payload.len() <= size {
        let offload = Offload { gso: None, ..frame.offload };
        let takes = if partial { Features::CSUM } else { Features::NONE };
        return fit(Frame { offload, ..frame }, takes, scratch, emit);
    }
    let headers =
        frame.bytes.get(..usize::from(layout.header_len)).ok_or(OffloadError::GsoHeaderLength)?;
    let (start, offset) = (layout.transport, layout.checksum_offset());
    let heads = Heads::of(&layout.ip, layout.kind);
    let mut position = Position { index: 0, offset: 0, last: false };
    let mut rest = layout.payload;
    while !rest.is_empty() {
        let (payload, behind) = rest.split_at_checked(size).unwrap_or((rest, &[]));
        rest = behind;
        position.last = rest.is_empty();
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(payload);
        let (_, packet) = scratch
            .split_at_mut_checked(ethernet::HEADER_LEN)
            .ok_or(OffloadError::GsoHeaderLength)?;
        rewrite(&heads, position, packet).ok_or(OffloadError::GsoHeaderLength)?;
        let offload = if partial {
            Offload { checksum: Checksum::Partial { start, offset }, gso: None }
        } else {
            complete(scratch, start, offset).ok_or(OffloadError::ChecksumOffset)?;
            Offload::default()
        };
        emit(Frame { bytes: scratch, offload });
        position.index = position.index.wrapping_add(1);
        position.offset = position.offset.wrapping_add(u32::from(gso.size));
    }
    Ok(())
}

/// Some segments of a super-packet, in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where the transport header begins, bytes from the start of the IP packet.
    pub transport: u16,
    /// Payload of each segment but the last, bytes.
    pub size: u16,
    /// Number of the first of them.
    pub first: u16,
    /// Whether the super-packet ends with them.
    pub last: bool,
}

/// Makes a packet of part of a super-packet. `packet` is an IP packet's headers as the whole had them, and
/// behind them the payload of these segments alone; the headers become those of the part, with a partial
/// checksum. What it returns fits the packet, as [`Offload::parse_packet`] has it: nothing else about
/// `packet` is believed.
///
/// # Errors
/// The bytes are no such headers; what `packet` is then is of no use.
pub fn part(packet: &mut [u8], part: Part) -> Result<Offload, OffloadError> {
    let Part { transport, size, first, last } = part;
    let bad = OffloadError::GsoHeaderLength;
    let (headers, rest) = packet.split_at_mut_checked(transport.into()).ok_or(bad)?;
    let is_ipv4 = headers.first().is_some_and(|first| first >> 4 == 4);
    let transport_len = u16::try_from(rest.len()).map_err(|_| bad)?;
    rewrite_ip(headers, is_ipv4, transport_len, first).ok_or(bad)?;
    let ip = IpPacket::parse_bare(packet)?;
    let kind = match (ip.protocol, is_ipv4) {
        (ip::TCP, true) => GsoKind::Tcp4,
        (ip::TCP, false) => GsoKind::Tcp6,
        (ip::UDP, _) => GsoKind::Udp,
        _ => return Err(OffloadError::GsoKind),
    };
    if ip.header.len() != usize::from(transport) {
        return Err(bad);
    }
    let heads = Heads::of(&ip, kind);
    let offset = u32::from(first).saturating_mul(size.into());
    let position = Position { index: first, offset, last };
    let (_, rest) = packet.split_at_mut_checked(transport.into()).ok_or(bad)?;
    rewrite_transport(&heads, position, rest).ok_or(bad)?;
    let layout = Layout::of_packet(IpPacket::parse_bare(packet)?, 0)?;
    let checksum = Checksum::Partial { start: transport, offset: layout.checksum_offset() };
    layout.check(kind, size, checksum)?;
    if layout.payload.len() <= usize::from(size) {
        return Ok(Offload { checksum, gso: None });
    }
    let ecn = kind != GsoKind::Udp && layout.has_flags(Flags::CWR);
    Ok(Offload { checksum, gso: Some(Gso { kind, size, header_len: layout.header_len, ecn }) })
}

/// Where a segment, or several in a row, stand among their siblings.
#[derive(Clone, Copy)]
struct Position {
    /// Number of the first of them; at most 65 535 bytes are cut, so it does not wrap.
    index: u16,
    /// Payload in all segments before, bytes.
    offset: u32,
    last: bool,
}

/// What the headers of a segment are made from, beside those of the whole.
#[derive(Clone, Copy)]
struct Heads {
    kind: GsoKind,
    /// Length of the IP header, bytes.
    ip_len: usize,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
}

impl Heads {
    fn of(ip: &IpPacket<'_>, kind: GsoKind) -> Self {
        let IpPacket { source, destination, protocol, .. } = *ip;
        Self { kind, ip_len: ip.header.len(), source, destination, protocol }
    }
}

/// Turns the headers of the whole, copied to the front of `segment`, an IP packet, into its own. The
/// checksum is left partial. `None` if the headers are not all there.
fn rewrite(heads: &Heads, position: Position, segment: &mut [u8]) -> Option<()> {
    let (ip, transport) = segment.split_at_mut_checked(heads.ip_len)?;
    let transport_len = u16::try_from(transport.len()).ok()?;
    rewrite_ip(ip, heads.source.is_ipv4(), transport_len, position.index)?;
    rewrite_transport(heads, position, transport)
}

/// The same for the IP header alone.
fn rewrite_ip(ip: &mut [u8], is_ipv4: bool, transport_len: u16, index: u16) -> Option<()> {
    if is_ipv4 {
        let header_len = u16::try_from(ip.len()).ok()?;
        let total_len = header_len.checked_add(transport_len)?;
        let (fixed, _) = ip.split_first_chunk_mut::<12>()?;
        let [_, _, l0, l1, i0, i1, _, _, _, _, c0, c1] = fixed;
        let id = u16::from_be_bytes([*i0, *i1]).wrapping_add(index);
        [*l0, *l1] = total_len.to_be_bytes();
        [*i0, *i1] = id.to_be_bytes();
        [*c0, *c1] = [0, 0];
        let value = checksum::finish(checksum::sum(ip));
        *ip.get_mut(10..12)?.first_chunk_mut()? = value.to_be_bytes();
    } else {
        let extensions_len = u16::try_from(ip.len()).ok()?.checked_sub(40)?;
        let payload_len = extensions_len.checked_add(transport_len)?;
        *ip.get_mut(4..6)?.first_chunk_mut()? = payload_len.to_be_bytes();
    }
    Some(())
}

/// The same for what is behind the IP header.
fn rewrite_transport(heads: &Heads, position: Position, transport: &mut [u8]) -> Option<()> {
    let transport_len = u16::try_from(transport.len()).ok()?;
    let Heads { source, destination, protocol, .. } = *heads;
    let pseudo_header =
        checksum::pseudo_header(source, destination, protocol, u32::from(transport_len));
    let sum = checksum::fold(pseudo_header).to_be_bytes();
    match heads.kind {
        GsoKind::Tcp4 | GsoKind::Tcp6 => {
            let [_, _, _, _, q0, q1, q2, q3, _, _, _, _, _, flags, _, _, c0, c1] =
                transport.first_chunk_mut()?;
            let seq = u32::from_be_bytes([*q0, *q1, *q2, *q3]).wrapping_add(position.offset);
            [*q0, *q1, *q2, *q3] = seq.to_be_bytes();
            if position.index > 0 {
                *flags &= !Flags::CWR.0;
            }
            if !position.last {
                *flags &= !(Flags::FIN | Flags::PSH).0;
            }
            [*c0, *c1] = sum;
        }
        GsoKind::Udp => {
            let [_, _, _, _, l0, l1, c0, c1] = transport.first_chunk_mut()?;
            [*l0, *l1] = transport_len.to_be_bytes();
            [*c0, *c1] = sum;
        }
    }
    Some(())
}

/// Completes a partial checksum. A result of 0 is written as `0xffff`, which is the same number in
/// ones' complement and in UDP does not mean "none" (RFC 768). `None` if the field lies outside.
fn complete(frame: &mut [u8], start: u16, offset: u16) -> Option<()> {
    let covered = frame.get_mut(usize::from(start)..)?;
    let value = match checksum::finish(checksum::sum(covered)) {
        0 => u16::MAX,
        value => value,
    };
    let (field, _) = covered.get_mut(usize::from(offset)..)?.split_first_chunk_mut()?;
    *field = value.to_be_bytes();
    Some(())
}
