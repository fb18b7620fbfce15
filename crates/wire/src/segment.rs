//! The one segmenter: does for a receiver what it cannot do itself, and nothing more.

use crate::frame::Layout;
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
    let mut position = Position { index: 0, offset: 0, last: false };
    let mut rest = layout.payload;
    while !rest.is_empty() {
        let (payload, behind) = rest.split_at_checked(size).unwrap_or((rest, &[]));
        rest = behind;
        position.last = rest.is_empty();
        scratch.clear();
        scratch.extend_from_slice(headers);
        scratch.extend_from_slice(payload);
        rewrite(&layout, position, scratch).ok_or(OffloadError::GsoHeaderLength)?;
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

/// Where a segment stands among its siblings.
#[derive(Clone, Copy)]
struct Position {
    /// Number of the segment; at most 65 535 bytes are cut, so it does not wrap.
    index: u16,
    /// Payload in all segments before, bytes.
    offset: u32,
    last: bool,
}

/// Turns the headers of the whole, copied to the front of `segment`, into its own. The checksum is
/// left partial. `None` if the headers are not all there.
fn rewrite(layout: &Layout<'_>, position: Position, segment: &mut [u8]) -> Option<()> {
    let (headers, transport) = segment.split_at_mut_checked(usize::from(layout.transport))?;
    let (_, ip) = headers.split_at_mut_checked(ethernet::HEADER_LEN)?;
    let transport_len = u16::try_from(transport.len()).ok()?;
    if layout.ip.source.is_ipv4() {
        let header_len = u16::try_from(ip.len()).ok()?;
        let total_len = header_len.checked_add(transport_len)?;
        let (fixed, _) = ip.split_first_chunk_mut::<12>()?;
        let [_, _, l0, l1, i0, i1, _, _, _, _, c0, c1] = fixed;
        let id = u16::from_be_bytes([*i0, *i1]).wrapping_add(position.index);
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
    let ip = &layout.ip;
    let pseudo_header =
        checksum::pseudo_header(ip.source, ip.destination, ip.protocol, u32::from(transport_len));
    let sum = checksum::fold(pseudo_header).to_be_bytes();
    match layout.kind {
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
