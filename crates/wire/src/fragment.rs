//! Cuts a datagram into fragments (RFC 791 section 3.2, RFC 8200 section 4.5).

use crate::{Features, Frame, checksum, ethernet, fit, ip};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// The fragment header of IPv6, bytes.
const EXTENSION_LEN: usize = 8;
const MORE_FRAGMENTS: u16 = 0x2000;

/// Cuts a frame whose IP packet is longer than `mtu` bytes into such that are not, and hands each to
/// `emit`, in order. Its checksums must be complete: what is cut cannot be completed any more. `id`
/// tells its fragments from others between the same ends; of IPv4 only the low half counts.
///
/// `None`, and nothing emitted, where the frame is no IP packet without options and extension
/// headers, or no fragment would have room for anything.
pub fn cut(frame: &[u8], mtu: usize, id: u32, emit: &mut dyn FnMut(&[u8])) -> Option<()> {
    let (ethernet, packet) = frame.split_at_checked(ethernet::HEADER_LEN)?;
    let ipv4 = packet.first()? >> 4 == 4;
    let header_len = if ipv4 { IPV4_LEN } else { IPV6_LEN };
    if ipv4 && packet.first()? & 0xf != 5 {
        return None;
    }
    let (header, payload) = packet.split_at_checked(header_len)?;
    let more_len = if ipv4 { 0 } else { EXTENSION_LEN };
    let room = mtu.checked_sub(header_len)?.checked_sub(more_len)? & !7;
    if room == 0 || payload.is_empty() {
        return None;
    }
    let mut fragment = Vec::with_capacity(frame.len().min(mtu.saturating_add(ethernet.len())));
    let mut offset = 0usize;
    for part in payload.chunks(room) {
        let end = offset.checked_add(part.len())?;
        let more = end < payload.len();
        fragment.clear();
        fragment.extend_from_slice(ethernet);
        let field = u16::try_from(offset).ok()?;
        if ipv4 {
            let header = v4(header.first_chunk()?, part.len(), id, field >> 3, more)?;
            fragment.extend_from_slice(&header);
        } else {
            let header = v6(header.first_chunk()?, part.len(), id, field, more)?;
            fragment.extend_from_slice(&header);
        }
        fragment.extend_from_slice(part);
        emit(&fragment);
        offset = end;
    }
    Some(())
}

/// The same with a frame whose checksum may be unfinished.
pub fn complete_and_cut(
    frame: Frame<'_>,
    mtu: usize,
    id: u32,
    emit: &mut dyn FnMut(&[u8]),
) -> Option<()> {
    let mut done = None;
    let whole = &mut |whole: Frame<'_>| done = cut(whole.bytes, mtu, id, emit);
    fit(frame, Features::NONE, &mut Vec::new(), whole).ok()?;
    done
}

/// `offset` in units of eight bytes.
fn v4(
    header: &[u8; IPV4_LEN],
    len: usize,
    id: u32,
    offset: u16,
    more: bool,
) -> Option<[u8; IPV4_LEN]> {
    let &[first, tos, _, _, _, _, _, _, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        header;
    let [l0, l1] = u16::try_from(len.checked_add(IPV4_LEN)?).ok()?.to_be_bytes();
    let [_, _, i0, i1] = id.to_be_bytes();
    let [f0, f1] = (offset | if more { MORE_FRAGMENTS } else { 0 }).to_be_bytes();
    let with = |[c0, c1]: [u8; 2]| {
        [first, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3]
    };
    Some(with(checksum::finish(checksum::sum(&with([0, 0]))).to_be_bytes()))
}

/// `offset` in bytes, a multiple of eight.
fn v6(header: &[u8; IPV6_LEN], len: usize, id: u32, offset: u16, more: bool) -> Option<Vec<u8>> {
    let (&[v0, v1, v2, v3, _, _, next, hop_limit], addresses) = header.split_first_chunk()?;
    let [l0, l1] = u16::try_from(len.checked_add(EXTENSION_LEN)?).ok()?.to_be_bytes();
    let [o0, o1] = (offset | u16::from(more)).to_be_bytes();
    let [i0, i1, i2, i3] = id.to_be_bytes();
    let mut out = vec![v0, v1, v2, v3, l0, l1, ip::FRAGMENT, hop_limit];
    out.extend_from_slice(addresses);
    out.extend_from_slice(&[next, 0, o0, o1, i0, i1, i2, i3]);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MacAddr;
    use crate::build::udp_frame;
    use crate::ethernet::Ethernet;
    use crate::ip::IpPacket;

    #[test]
    fn fragments_make_up_the_whole() {
        let data: Vec<u8> = (0..4000u16).map(|n| n.to_be_bytes()[1]).collect();
        for (from, to) in [("10.0.0.1:5", "10.0.0.2:6"), ("[fd00::1]:5", "[fd00::2]:6")] {
            let (mut built, mac) = (Vec::new(), MacAddr([2; 6]));
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let offload = udp_frame(&mut built, mac, mac, from, to, 64, &data);
            let whole = Frame { bytes: &built, offload };
            let mut frame = Vec::new();
            let complete = &mut |done: Frame<'_>| frame = done.bytes.to_vec();
            fit(whole, Features::NONE, &mut Vec::new(), complete).unwrap();
            let mut payload = Vec::new();
            let mut last = false;
            complete_and_cut(whole, 1500, 0x1234_5678, &mut |fragment| {
                assert!(!last && fragment.len() <= 1500 + ethernet::HEADER_LEN);
                let (header, packet) = Ethernet::parse(fragment).unwrap();
                let packet = IpPacket::parse(header.ethertype, packet).unwrap();
                let found = packet.fragment.unwrap();
                assert_eq!(usize::from(found.offset), payload.len());
                assert_eq!(found.id & 0xffff, 0x5678);
                assert_eq!((packet.protocol, packet.source), (ip::UDP, from.ip()));
                payload.extend_from_slice(packet.payload);
                last = !found.more;
            })
            .unwrap();
            assert!(last);
            let header = frame.len() - data.len() - 8;
            assert_eq!(payload, frame[header..]);
        }
    }

    #[test]
    fn what_cannot_be_cut_is_left_alone() {
        let mut count = 0;
        let mut emit = |_: &[u8]| count += 1;
        assert_eq!(cut(&[0; 10], 1500, 1, &mut emit), None);
        assert_eq!(cut(&[0x45; 40], 27, 1, &mut emit), None, "no room for eight bytes");
        assert_eq!(cut(&[0x46; 80], 1500, 1, &mut emit), None, "options");
        assert_eq!(count, 0);
    }
}
