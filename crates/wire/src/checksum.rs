//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! A *sum* here is a ones' complement sum of big-endian 16-bit words, not yet complemented, held in
//! a `u32` whose upper half may hold carries; [`finish`] turns it into the value of a header field.

use std::net::IpAddr;

use crate::ip::IpPacket;

/// The sum of `bytes`, at most `0xffff`; a last odd byte counts as if a zero followed.
///
/// Sums of parts may be [`combine`]d when every part but the last has an even length.
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    // Ones' complement addition does not care about byte order or word size (RFC 1071 section 2),
    // so 32-bit native words are added into 64-bit lanes, which cannot overflow below 16 GiB of
    // input, and the result is folded and swapped once. The lanes let the compiler use vectors.
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut total = if blocks.is_empty() { 0 } else { sum_blocks(blocks) };
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        total = total.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        total = total.wrapping_add(u64::from(u16::from_ne_bytes(*word)));
    }
    if let [last] = rest {
        total = total.wrapping_add(u64::from(u16::from_ne_bytes([*last, 0])));
    }
    u32::from(u16::from_be(fold64(total)))
}

fn sum_blocks(blocks: &[[u8; 32]]) -> u64 {
    let mut lanes = [0u64; 8];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
        }
    }
    lanes
        .iter()
        .fold(0, |total, lane| total.wrapping_add(lane & 0xffff_ffff).wrapping_add(lane >> 32))
}

/// The sum of two sums.
#[must_use]
pub fn combine(one: u32, other: u32) -> u32 {
    u32::from(fold(one)).wrapping_add(u32::from(fold(other)))
}

/// The sum of the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
/// `len` is the length of the upper-layer packet, header included.
#[must_use]
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: u32) -> u32 {
    let [a, b, c, d] = len.to_be_bytes();
    let tail = u32::from(u16::from_be_bytes([a, b]))
        .wrapping_add(u32::from(u16::from_be_bytes([c, d])))
        .wrapping_add(u32::from(protocol));
    combine(tail, combine(address(source), address(destination)))
}

fn address(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    }
}

/// Folds the carries of a sum into 16 bits; the value of a *partial* checksum field, where the rest
/// is left to whoever sends the packet out.
#[must_use]
pub fn fold(sum: u32) -> u16 {
    fold64(u64::from(sum))
}

/// Ends a sum: folded and complemented, the value of a checksum field. UDP sends 0 as `0xffff`
/// (RFC 768), which is the caller's affair.
#[must_use]
pub fn finish(sum: u32) -> u16 {
    !fold(sum)
}

fn fold64(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff).wrapping_add(sum >> 32);
    let sum = (sum & 0xffff).wrapping_add((sum >> 16) & 0xffff).wrapping_add(sum >> 32);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    // The carries are in; nothing is left above.
    let [.., high, low] = sum.to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// A complete checksum after `old` bytes of what it covers became `new` bytes (RFC 1624 equation 3).
///
/// Both start at an even offset of the covered data. A UDP checksum of 0 means "none" and must not
/// be adjusted.
#[must_use]
pub fn adjust(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    // HC' = ~(~HC + ~m + m')
    finish(combine(u32::from(!checksum), combine(u32::from(!fold(sum(old))), sum(new))))
}

/// A partial checksum (the folded, uncomplemented pseudo-header sum) after `old` bytes of the
/// pseudo-header became `new` bytes.
#[must_use]
pub fn adjust_partial(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    fold(combine(u32::from(checksum), combine(u32::from(!fold(sum(old))), sum(new))))
}

/// Whether the checksum over `message`, an upper-layer packet of `ip`, and its pseudo-header is
/// right.
pub(crate) fn verify(ip: &IpPacket<'_>, message: &[u8]) -> bool {
    // An IP payload is at most 65 535 bytes long.
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let pseudo = pseudo_header(ip.source, ip.destination, ip.protocol, len);
    finish(combine(pseudo, sum(message))) == 0
}
