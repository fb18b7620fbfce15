//! Files of packets in pcapng (draft-ietf-opsawg-pcapng): each block as bytes.
//!
//! A file begins with [`section`]. An [`interface`] comes before its first [`packet`], and is known by how
//! many came before it.

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
/// How the byte order is told.
const ORDER: u32 = 0x1a2b_3c4d;
/// Options: none follow; name of an interface; resolution of its timestamps; flags of a packet; packets
/// that were missed before it.
const END: u16 = 0;
const NAME: u16 = 2;
const RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;
const MISSED: u16 = 4;
/// Timestamps are nanoseconds: ten to the minus ninth.
const NANOSECONDS: u8 = 9;
/// Bytes of a block beside its body: kind and length, and length once more.
const AROUND: usize = 12;

/// What the packets of an interface begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header (LINKTYPE_ETHERNET).
    Ethernet,
    /// An IP header (LINKTYPE_RAW).
    Ip,
}

/// Which way a packet went, from its interface's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The interface received it.
    In,
    /// The interface sent it.
    Out,
}

/// A packet of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its interface: how many there are in the file before that.
    pub interface: u32,
    /// When it passed, nanoseconds since 1970.
    pub nanoseconds: u64,
    /// Which way.
    pub way: Way,
    /// How many packets of the interface were missed before it, since the last one.
    pub missed: u64,
    /// All of it.
    pub bytes: &'a [u8],
}

/// The beginning of a file: byte order, version 1.0, length unknown.
#[must_use]
pub fn section() -> Vec<u8> {
    block(SECTION, &[&ORDER.to_le_bytes(), &[1, 0, 0, 0], &[0xff; 8]])
}

/// An interface; without a name it has none. Names have 65,535 bytes at most, of which the rest is left out.
#[must_use]
pub fn interface(link: Link, name: &str) -> Vec<u8> {
    let link: u16 = match link {
        Link::Ethernet => 1,
        Link::Ip => 101,
    };
    let name = if name.is_empty() { Vec::new() } else { option(NAME, name.as_bytes()) };
    let resolution = option(RESOLUTION, &[NANOSECONDS]);
    // Packets are never cut.
    block(INTERFACE, &[&link.to_le_bytes(), &[0; 2], &[0; 4], &name, &resolution, &end()])
}

/// A packet.
#[must_use]
pub fn packet(packet: &Packet<'_>) -> Vec<u8> {
    let len = u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let way = match packet.way {
        Way::In => 1,
        Way::Out => 2,
    };
    let [a, b, c, d, e, f, g, h] = packet.nanoseconds.to_le_bytes();
    // The upper half of the time comes first.
    let (high, low) = ([e, f, g, h], [a, b, c, d]);
    let flags = option(FLAGS, &[way, 0, 0, 0]);
    let missed = match packet.missed {
        0 => Vec::new(),
        missed => option(MISSED, &missed.to_le_bytes()),
    };
    block(
        PACKET,
        &[
            &packet.interface.to_le_bytes(),
            &high,
            &low,
            &len,
            &len,
            packet.bytes,
            padding(packet.bytes.len()),
            &flags,
            &missed,
            &end(),
        ],
    )
}

/// The kind and length of a block, by its first eight bytes: whether it is a packet, and how many bytes it
/// has in all. `None`: no block of this byte order.
#[must_use]
pub fn header(bytes: [u8; 8]) -> Option<(bool, usize)> {
    let [a, b, c, d, e, f, g, h] = bytes;
    let len = usize::try_from(u32::from_le_bytes([e, f, g, h])).ok()?;
    (len >= AROUND && len.is_multiple_of(4))
        .then_some((u32::from_le_bytes([a, b, c, d]) == PACKET, len))
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    let value = value.get(..usize::from(len)).unwrap_or_default();
    [&code.to_le_bytes(), &len.to_le_bytes(), value, padding(value.len())].concat()
}

fn end() -> [u8; 4] {
    let [a, b] = END.to_le_bytes();
    [a, b, 0, 0]
}

/// What is missing to a whole number of words of 32 bits.
fn padding(len: usize) -> &'static [u8] {
    match len % 4 {
        0 => &[],
        1 => &[0; 3],
        2 => &[0; 2],
        _ => &[0; 1],
    }
}

/// A block: kind, length, body, length once more.
fn block(kind: u32, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let len = u32::try_from(body.len().saturating_add(AROUND)).unwrap_or(u32::MAX).to_le_bytes();
    [&kind.to_le_bytes(), &len, body.as_slice(), &len].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_right_to_the_byte() {
        let section_wanted = [
            10, 13, 13, 10, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255,
            255, 255, 255, 255, 28, 0, 0, 0,
        ];
        assert_eq!(section(), section_wanted);
        let interface_wanted = [
            &[1, 0, 0, 0, 44, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 0, 5, 0, b'w', b'e', b'b', b'-', b'1', 0, 0, 0],
            &[9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 44, 0, 0, 0],
        ];
        assert_eq!(interface(Link::Ethernet, "web-1"), interface_wanted.concat());
        let one = Packet {
            interface: 3,
            nanoseconds: 0x1_0000_0002,
            way: Way::Out,
            missed: 7,
            bytes: &[9; 14],
        };
        let packet_wanted = [
            &[6, 0, 0, 0, 72, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0][..],
            &[14, 0, 0, 0, 14, 0, 0, 0],
            &[9; 14],
            &[0, 0, 2, 0, 4, 0, 2, 0, 0, 0, 4, 0, 8, 0, 7, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 72, 0, 0, 0],
        ];
        assert_eq!(packet(&one), packet_wanted.concat());
    }

    #[test]
    fn blocks_are_told_by_their_beginning() {
        let block = interface(Link::Ip, "");
        assert_eq!(block.first_chunk().copied().and_then(header), Some((false, block.len())));
        assert_eq!(header([6, 0, 0, 0, 60, 0, 0, 0]), Some((true, 60)));
        assert_eq!(header([6, 0, 0, 0, 7, 0, 0, 0]), None);
    }
}
