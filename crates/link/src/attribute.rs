//! The one codec of this crate: netlink messages and attributes, `struct nlmsghdr` and
//! `struct nlattr` of netlink(7), which rtnetlink, nf_tables and conntrack share.
//!
//! Numbers are in the host's byte order unless a method says `be`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netyard_wire::MacAddr;

/// Length of `struct nlmsghdr`, bytes.
const HEADER: usize = 16;

/// Messages and attributes start at multiples of this, bytes.
const ALIGNMENT: usize = 4;

/// `NLA_F_NESTED`: the value is a row of attributes.
const NESTED: u16 = 1 << 15;

/// `NLA_TYPE_MASK`: without the two flag bits.
const KIND_MASK: u16 = !(3 << 14);

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`: what is dumped has changed meanwhile.
pub(crate) const INTERRUPTED: u16 = 0x10;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`: fail if it is there.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;

/// A message, or several, that is being written.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
    /// An attribute was longer than its 16-bit length field can say.
    overflow: bool,
}

impl Message {
    /// A request; `flags` beside `NLM_F_REQUEST`.
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        Self { bytes, overflow: false }
    }

    /// Adds the fixed part that follows the header.
    pub(crate) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self.align();
        self
    }

    /// Adds an attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len() + 4).unwrap_or_else(|_| {
            self.overflow = true;
            u16::MAX
        });
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.align();
        self
    }

    pub(crate) fn put_u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.put(kind, &[value])
    }

    pub(crate) fn put_be16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(crate) fn put_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(crate) fn put_be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Text, closed with a zero byte.
    pub(crate) fn put_text(&mut self, kind: u16, value: &str) -> &mut Self {
        let closed: Vec<u8> = value.bytes().chain([0]).collect();
        self.put(kind, &closed)
    }

    pub(crate) fn put_address(&mut self, kind: u16, value: IpAddr) -> &mut Self {
        match value {
            IpAddr::V4(address) => self.put(kind, &address.octets()),
            IpAddr::V6(address) => self.put(kind, &address.octets()),
        }
    }

    /// An attribute whose value is what `fill` adds.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        fill(self);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or_else(|_| {
            self.overflow = true;
            u16::MAX
        });
        if let Some(field) = self.bytes.get_mut(start..start + 2) {
            field.copy_from_slice(&len.to_ne_bytes());
        }
        self
    }

    /// Bytes inside an attribute that [`Message::nest`] opened: a fixed part before its attributes.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self.align();
        self
    }

    /// How long it is so far, bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Sets flags that were not given to [`Message::new`].
    pub(crate) fn add_flags(&mut self, flags: u16) {
        if let Some([a, b]) = self.bytes.get_mut(6..8) {
            [*a, *b] = (u16::from_ne_bytes([*a, *b]) | flags).to_ne_bytes();
        }
    }

    /// Fills in length and sequence number. `None`: an attribute did not fit.
    pub(crate) fn finish(mut self, sequence: u32) -> Option<Vec<u8>> {
        let len = u32::try_from(self.bytes.len()).ok().filter(|_| !self.overflow)?;
        self.bytes.get_mut(0..4)?.copy_from_slice(&len.to_ne_bytes());
        self.bytes.get_mut(8..12)?.copy_from_slice(&sequence.to_ne_bytes());
        Some(self.bytes)
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// A message that the kernel sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Of a notice: the socket whose request it comes of, 0 if there is none.
    pub(crate) port: u32,
    pub(crate) body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// The messages in a datagram, up to the first whose length lies.
    pub(crate) fn all(mut datagram: &'a [u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let [a, b, c, d, kind @ .., _, _, _, _, _, _, _, _, _, _] =
                *datagram.first_chunk::<HEADER>()?;
            let [_, _, _, _, _, _, f, g, sequence @ .., h, i, j, k] =
                *datagram.first_chunk::<HEADER>()?;
            let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
            let body = datagram.get(HEADER..len)?;
            datagram = datagram.get(len.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
            Some(Self {
                kind: u16::from_ne_bytes(kind),
                flags: u16::from_ne_bytes([f, g]),
                sequence: u32::from_ne_bytes(sequence),
                port: u32::from_ne_bytes([h, i, j, k]),
                body,
            })
        })
    }

    /// The fixed part of `N` bytes, and the attributes behind it.
    pub(crate) fn split<const N: usize>(&self) -> Option<([u8; N], Attributes<'a>)> {
        let (fixed, _) = self.body.split_first_chunk::<N>()?;
        let rest = self.body.get(N.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((*fixed, Attributes(rest)))
    }
}

/// A row of attributes; ends at the first whose length lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of this kind.
    pub(crate) fn find(self, kind: u16) -> Option<Value<'a>> {
        self.into_iter().find_map(|(found, value)| (found == kind).then_some(value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & KIND_MASK, Value(value)))
    }
}

/// The value of an attribute; each reading is `None` when it is too short for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value<'a>(pub(crate) &'a [u8]);

impl<'a> Value<'a> {
    pub(crate) fn u8(self) -> Option<u8> {
        self.0.first().copied()
    }

    pub(crate) fn be16(self) -> Option<u16> {
        self.0.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub(crate) fn u32(self) -> Option<u32> {
        self.0.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    pub(crate) fn i32(self) -> Option<i32> {
        self.0.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
    }

    pub(crate) fn be32(self) -> Option<u32> {
        self.0.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(crate) fn be64(self) -> Option<u64> {
        self.0.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// Text up to the zero byte that closes it; what is not UTF-8 is replaced.
    pub(crate) fn text(self) -> String {
        let open = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(open).into_owned()
    }

    /// An address of whichever family has this length.
    pub(crate) fn address(self) -> Option<IpAddr> {
        if let Ok(octets) = <[u8; 4]>::try_from(self.0) {
            return Some(Ipv4Addr::from(octets).into());
        }
        <[u8; 16]>::try_from(self.0).ok().map(|octets| Ipv6Addr::from(octets).into())
    }

    pub(crate) fn mac(self) -> Option<MacAddr> {
        <[u8; 6]>::try_from(self.0).ok().map(MacAddr)
    }

    pub(crate) fn nested(self) -> Attributes<'a> {
        Attributes(self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut message = Message::new(16, ACK).fixed(&[1, 2, 3, 4]);
        message.put_text(3, "veth").put_be16(4, 7).nest(18, |message| {
            message.put_u32(1, 9).put_address(2, IpAddr::from([10, 0, 0, 1]));
        });
        let bytes = message.finish(5).unwrap();
        let answer = Answer::all(&bytes).next().unwrap();
        assert_eq!((answer.kind, answer.flags, answer.sequence), (16, REQUEST | ACK, 5));
        let (fixed, attributes) = answer.split::<4>().unwrap();
        assert_eq!(fixed, [1, 2, 3, 4]);
        assert_eq!(attributes.find(3).unwrap().text(), "veth");
        assert_eq!(attributes.find(4).unwrap().be16(), Some(7));
        let nested = attributes.find(18).unwrap().nested();
        assert_eq!(nested.find(1).unwrap().u32(), Some(9));
        assert_eq!(nested.find(2).unwrap().address(), Some(IpAddr::from([10, 0, 0, 1])));
        assert!(attributes.find(99).is_none());
    }

    #[test]
    fn golden_bytes_of_a_message() {
        let mut message = Message::new(0x12, 0).fixed(&[0; 4]);
        message.put(3, b"lo\0");
        #[rustfmt::skip]
        let expected = if cfg!(target_endian = "little") { [
            28, 0, 0, 0, 0x12, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0,
            7, 0, 3, 0, b'l', b'o', 0, 0,
        ] } else { [
            0, 0, 0, 28, 0, 0x12, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0,
            0, 0, 0, 0,
            0, 7, 0, 3, b'l', b'o', 0, 0,
        ] };
        assert_eq!(message.finish(7).unwrap(), expected);
    }

    #[test]
    fn an_attribute_that_is_too_long_is_refused_not_cut() {
        let mut message = Message::new(16, 0);
        message.put(1, &vec![0; 70_000]);
        assert!(message.finish(1).is_none());
        let mut message = Message::new(16, 0);
        message.nest(1, |message| {
            for _ in 0..10 {
                message.put(2, &[0; 7_000]);
            }
        });
        assert!(message.finish(1).is_none());
    }

    proptest! {
        #[test]
        fn bytes_that_lie_end_the_row_and_never_panic(bytes: Vec<u8>) {
            for answer in Answer::all(&bytes) {
                let _ = answer.split::<16>();
                for (_, value) in Attributes(answer.body) {
                    let _ = (value.u8(), value.be64(), value.text(), value.nested().count());
                }
            }
            let _ = Attributes(&bytes).count();
        }
    }
}
