//! Packets that are too big for the network: what their senders are told, and what keeps TCP from sending
//! them.
//!
//! A lane takes packets of any size, so it is not the way that is too narrow but the device behind it. A
//! sender that asked not to be cut (IPv6, or "don't fragment") is told the size that fits, RFC 1191 and
//! RFC 8201; for those that never hear it, the largest segment that is named when a connection opens is made
//! to fit (RFC 4459 section 3.2).

use std::net::IpAddr;

use netyard_wire::icmp::{IcmpError, may_answer_with_error};
use netyard_wire::ip::{self, IpPacket};
use netyard_wire::{Checksum, MacAddr, Offload, build, checksum, ethernet};

/// IPv4 header byte with the flags, and "don't fragment" in it.
const FLAGS: usize = 6;
const DONT_FRAGMENT: u8 = 0x40;
/// The TCP header (RFC 9293 section 3.1): its length without options, where its own length, its flags
/// and its checksum are.
const TCP_LEN: usize = 20;
const DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const SYN: u8 = 2;
/// Options (RFC 9293 section 3.2).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;

/// Whether a packet, or what it is to be cut into, is larger than `mtu` and may not be cut further.
pub(crate) fn is_too_big(mtu: u32, offload: &Offload, packet: &IpPacket<'_>) -> bool {
    let len = match offload.gso {
        Some(gso) => usize::from(gso.header_len).saturating_add(gso.size.into()),
        None => packet.len(),
    };
    let is_whole = match packet.source {
        IpAddr::V4(_) => packet.header.get(FLAGS).is_some_and(|flags| flags & DONT_FRAGMENT != 0),
        IpAddr::V6(_) => true,
    };
    is_whole && u32::try_from(len).is_ok_and(|len| len > mtu)
}

/// The answer to a packet that is too big, from `from`; `None`: nothing may be answered to it.
pub(crate) fn too_big(
    mtu: u32,
    from: IpAddr,
    bytes: &[u8],
    packet: &IpPacket<'_>,
) -> Option<Vec<u8>> {
    if !may_answer_with_error(packet) || from.is_ipv4() != packet.source.is_ipv4() {
        return None;
    }
    let mut frame = Vec::new();
    let nobody = MacAddr([0; 6]);
    let error = IcmpError::TooBig(mtu);
    build::icmp_error(&mut frame, nobody, nobody, from, packet.source, error, bytes);
    frame.drain(..ethernet::HEADER_LEN);
    Some(frame)
}

/// A packet that opens a TCP connection with larger segments than fit `mtu`, with those that fit; `None`:
/// it is none, or they do.
pub(crate) fn clamp(
    mtu: u32,
    offload: &Offload,
    bytes: &[u8],
    packet: &IpPacket<'_>,
) -> Option<Vec<u8>> {
    if packet.protocol != ip::TCP
        || packet.fragment.is_some()
        || packet.payload.get(TCP_FLAGS)? & SYN == 0
    {
        return None;
    }
    let ip_len = if packet.source.is_ipv4() { 20 } else { 40 };
    let most = u16::try_from(mtu.checked_sub(ip_len + TCP_LEN as u32)?).ok()?;
    let header_len = usize::from(packet.payload.get(DATA_OFFSET)? >> 4) * 4;
    let before = packet.payload.get(..header_len)?;
    let at = largest_segment(before)?;
    let named = before.get(at..at + 2)?;
    if named <= &most.to_be_bytes()[..] {
        return None;
    }
    let mut after = before.to_vec();
    after.get_mut(at..at + 2)?.copy_from_slice(&most.to_be_bytes());
    // A partial checksum covers the pseudo-header alone.
    if !matches!(offload.checksum, Checksum::Partial { .. }) {
        let field: &mut [u8; 2] = after.get_mut(TCP_CHECKSUM..)?.first_chunk_mut()?;
        let old = u16::from_be_bytes(*field);
        *field = [0; 2];
        let mut before = before.to_vec();
        before.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2)?.fill(0);
        let new = checksum::adjust(old, &before, &after);
        after.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2)?.copy_from_slice(&new.to_be_bytes());
    }
    let mut clamped = bytes.to_vec();
    clamped.get_mut(packet.header.len()..)?.get_mut(..header_len)?.copy_from_slice(&after);
    Some(clamped)
}

/// Where in a TCP header the value of its option "maximum segment size" is.
fn largest_segment(header: &[u8]) -> Option<usize> {
    let mut at = TCP_LEN;
    loop {
        match header.get(at..)? {
            [END, ..] => return None,
            [NO_OPERATION, ..] => at += 1,
            [MSS, 4, _, _, ..] => return Some(at + 2),
            [MSS, ..] => return None,
            [_, len @ 2..=u8::MAX, ..] => at += usize::from(*len),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use netyard_wire::icmp::Icmp;
    use netyard_wire::tcp::{Flags, Segment};

    use super::*;
    use crate::packets::tcp;

    const ENDS: [[&str; 2]; 2] =
        [["10.1.1.3:1000", "10.1.1.5:80"], ["[fd00::3]:1000", "[fd00::5]:80"]];

    #[test]
    fn what_cannot_be_cut_to_fit_is_answered() {
        for (ends, headers) in ENDS.into_iter().zip([20 + 24, 40 + 24]) {
            let (bytes, offload) = tcp(ends, Flags::ACK, 30_000, 1400);
            let packet = IpPacket::parse_bare(&bytes).unwrap();
            assert!(!is_too_big(headers + 1400, &offload, &packet), "segments count");
            assert!(is_too_big(headers + 1399, &offload, &packet));
            let whole = Offload { gso: None, ..offload };
            assert!(is_too_big(30_000, &whole, &packet));
            let from: SocketAddr = ends[1].parse().unwrap();
            let answer = too_big(1300, from.ip(), &bytes, &packet).unwrap();
            let answer = IpPacket::parse_bare(&answer).unwrap();
            assert_eq!((answer.source, answer.destination), (from.ip(), packet.source));
            match Icmp::parse(&answer, Checksum::Present).unwrap() {
                Icmp::PacketTooBig { mtu: 1300, original } => {
                    assert!(bytes.starts_with(original) && original.len() >= 28);
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(too_big(1300, from.ip(), &[], &answer), None, "no error about an error");
        }
        let (mut bytes, offload) = tcp(ENDS[0], Flags::ACK, 3000, 9000);
        assert!(is_too_big(1400, &offload, &IpPacket::parse_bare(&bytes).unwrap()));
        // Without "don't fragment", and with the checksum that this makes.
        bytes[FLAGS] &= !DONT_FRAGMENT;
        bytes[10..12].fill(0);
        let sum = checksum::finish(checksum::sum(&bytes[..20]));
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        assert!(!is_too_big(1400, &offload, &IpPacket::parse_bare(&bytes).unwrap()));
    }

    #[test]
    fn connections_open_with_segments_that_fit() {
        for (ends, fits) in ENDS.into_iter().zip([1400 - 40, 1400 - 60]) {
            let (mut bytes, partial) = tcp(ends, Flags::SYN, 0, 1460);
            for offload in [partial, Offload::default()] {
                let packet = IpPacket::parse_bare(&bytes).unwrap();
                let clamped = clamp(1400, &offload, &bytes, &packet).unwrap();
                let packet = IpPacket::parse_bare(&clamped).unwrap();
                // Where it is whole, it is verified here.
                let segment = Segment::parse(&packet, offload.checksum).unwrap();
                assert_eq!(segment.options.mss, Some(fits));
                assert_eq!(clamp(1400, &offload, &clamped, &packet), None, "it fits");
                // The next one has its checksum.
                let packet = IpPacket::parse_bare(&bytes).unwrap();
                let sum = checksum::finish(checksum::combine(
                    checksum::pseudo_header(
                        packet.source,
                        packet.destination,
                        ip::TCP,
                        packet.payload.len().try_into().unwrap(),
                    ),
                    {
                        let mut segment = packet.payload.to_vec();
                        segment[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0);
                        checksum::sum(&segment)
                    },
                ));
                let at = packet.header.len() + TCP_CHECKSUM;
                bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            }
            let (bytes, offload) = tcp(ends, Flags::ACK, 0, 1460);
            let packet = IpPacket::parse_bare(&bytes).unwrap();
            assert_eq!(clamp(1400, &offload, &bytes, &packet), None, "it opens nothing");
        }
    }

    #[test]
    fn options_that_lie_are_left_alone() {
        let mut header = [0; 28];
        for options in
            [[8, 0, 0, 0, 0, 0, 0, 0], [9, 200, 2, 4, 0, 0, 0, 0], [2, 3, 1, 2, 4, 9, 9, 9]]
        {
            header[TCP_LEN..].copy_from_slice(&options);
            assert_eq!(largest_segment(&header), None, "{options:?}");
        }
        header[TCP_LEN..].copy_from_slice(&[1, 3, 3, 7, 2, 4, 5, 0xb4]);
        assert_eq!(largest_segment(&header), Some(TCP_LEN + 6));
    }
}
