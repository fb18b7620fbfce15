//! Data on a lane: batches of packets, one batch in each binary message.
//!
//! ```text
//! message  kind (0: packets), flags (0), then records until the end
//! record   length (varint), type, payload of that length
//! type 0   an IP packet with nothing left to do
//! type 1   a virtio-net header (12 bytes, little endian, struct virtio_net_hdr_v1) and an IP packet,
//!          most often a super-packet of up to 64 KiB
//! ```
//!
//! In a record of type 1 header and packet are as a TUN device takes them, in one piece. Messages are
//! filled to about [`TARGET_LEN`] with what is there, and never waited with.

use netyard_wire::ip::IpPacket;
use netyard_wire::{Offload, OffloadError, VNET_HEADER_LEN};

/// A message that is this long takes no other packet, bytes.
pub const TARGET_LEN: usize = 64 * 1024;

/// The longest packet with its header, bytes.
pub const MAX_PACKET_LEN: usize = VNET_HEADER_LEN + 65_535;

const KIND_PACKETS: u8 = 0;
const PLAIN: u8 = 0;
const OFFLOADED: u8 = 1;
/// The virtio-net header of a packet with nothing left to do.
pub(crate) const NOTHING_LEFT: [u8; VNET_HEADER_LEN] = [0; VNET_HEADER_LEN];

/// A message that cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a kind of message that was agreed on.
    #[error("unknown kind {0} of data message")]
    Kind(u8),
    /// A record ends after its message, or has a length that is none.
    #[error("a record that does not fit its data message")]
    Length,
    /// Not a type of record that was agreed on.
    #[error("unknown record type {0}")]
    Type(u8),
}

/// A packet of a message, and what has been left undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The virtio-net header.
    pub header: &'a [u8; VNET_HEADER_LEN],
    /// The packet.
    pub bytes: &'a [u8],
    /// Both, as they follow each other in the message; `None` if the header was left out.
    pub joined: Option<&'a [u8]>,
}

impl<'a> Record<'a> {
    /// What has been left undone, and the packet, if it and its header are what they say.
    ///
    /// # Errors
    /// They lie.
    pub fn packet(&self) -> Result<(Offload, IpPacket<'a>), OffloadError> {
        Offload::parse_packet(self.header, self.bytes)
    }
}

/// The records of a message, until its end or the first that is wrong.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Of the payload of a binary message. Flags are for later; today they say nothing.
    ///
    /// # Errors
    /// It is no batch of packets.
    pub fn parse(message: &'a [u8]) -> Result<Self, FrameError> {
        match message {
            [KIND_PACKETS, _, rest @ ..] => Ok(Self { rest }),
            [kind, ..] if *kind != KIND_PACKETS => Err(FrameError::Kind(*kind)),
            _ => Err(FrameError::Length),
        }
    }

    fn read(&mut self) -> Result<Record<'a>, FrameError> {
        let (len, rest) = varint(self.rest).ok_or(FrameError::Length)?;
        let (kind, rest) = rest.split_first().ok_or(FrameError::Length)?;
        let (payload, rest) = rest.split_at_checked(len).ok_or(FrameError::Length)?;
        self.rest = rest;
        match *kind {
            PLAIN => Ok(Record { header: &NOTHING_LEFT, bytes: payload, joined: None }),
            OFFLOADED => {
                let (header, bytes) = payload.split_first_chunk().ok_or(FrameError::Length)?;
                Ok(Record { header, bytes, joined: Some(payload) })
            }
            other => Err(FrameError::Type(other)),
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.read();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

/// Begins a message in an empty buffer.
pub fn begin(message: &mut Vec<u8>) {
    message.clear();
    message.extend_from_slice(&[KIND_PACKETS, 0]);
}

/// Appends a packet, given with its virtio-net header before it, which is left out if it says nothing.
pub fn put(message: &mut Vec<u8>, packet: &[u8]) {
    let (kind, payload) = match packet.strip_prefix(&NOTHING_LEFT) {
        Some(bytes) => (PLAIN, bytes),
        None => (OFFLOADED, packet),
    };
    put_varint(message, payload.len());
    message.push(kind);
    message.extend_from_slice(payload);
}

/// Seven bits in each byte, the lowest first; the highest bit says that more follow.
fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// At most three bytes: lengths below 2^21.
fn varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes {
        [a @ ..0x80, rest @ ..] => Some((usize::from(*a), rest)),
        [a, b @ ..0x80, rest @ ..] => Some((usize::from(a & 0x7f) | usize::from(*b) << 7, rest)),
        [a, b, c @ ..0x80, rest @ ..] => {
            let low = usize::from(a & 0x7f) | usize::from(b & 0x7f) << 7;
            Some((low | usize::from(*c) << 14, rest))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_header(header: u8, len: usize) -> Vec<u8> {
        let mut packet = vec![0; VNET_HEADER_LEN + len];
        packet[0] = header;
        packet[VNET_HEADER_LEN..].fill(0x45);
        packet
    }

    #[test]
    fn packets_come_back_in_order_with_their_headers() {
        let packets =
            [with_header(0, 0), with_header(1, 20), with_header(0, 127), with_header(1, 65_535)];
        let mut message = vec![9; 4];
        begin(&mut message);
        for packet in &packets {
            put(&mut message, packet);
        }
        let records: Result<Vec<_>, _> = Records::parse(&message).unwrap().collect();
        let records = records.unwrap();
        assert_eq!(records.len(), packets.len());
        for (record, packet) in records.iter().zip(&packets) {
            assert_eq!([&record.header[..], record.bytes].concat(), *packet);
            assert_eq!(record.joined, (packet[0] == 1).then_some(&packet[..]));
        }
    }

    #[test]
    fn a_message_that_lies_ends_at_the_lie() {
        assert_eq!(Records::parse(&[]).unwrap_err(), FrameError::Length);
        assert_eq!(Records::parse(&[7, 0]).unwrap_err(), FrameError::Kind(7));
        fn read(bytes: &[u8]) -> Vec<Result<Record<'_>, FrameError>> {
            Records::parse(bytes).unwrap().collect()
        }
        assert_eq!(read(&[0, 0]), []);
        assert_eq!(read(&[0, 0, 5, 0, 1]), [Err(FrameError::Length)]);
        assert_eq!(read(&[0, 0, 1, 9, 1]), [Err(FrameError::Type(9))]);
        assert_eq!(read(&[0, 0, 1, 1, 1]), [Err(FrameError::Length)], "shorter than a header");
        assert_eq!(read(&[0, 0, 0xff, 0xff, 0xff, 0xff]), [Err(FrameError::Length)]);
    }

    #[test]
    fn lengths_read_back() {
        for len in [0, 1, 127, 128, 16_383, 16_384, 65_547, (1 << 21) - 1] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, len);
            assert_eq!(varint(&bytes), Some((len, &[][..])));
        }
    }
}
