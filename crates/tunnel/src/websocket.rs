//! WebSocket frames (RFC 6455 section 5), on buffers that their owner keeps.
//!
//! Messages are not fragmented by us, and fragments are refused: both ends are ours, and what cannot be
//! fragmented has one length that is known before any of it is read. Peers mask with the key zero, as TLS
//! has encrypted what the mask would hide from proxies; any key is understood.

/// The longest header that is written, bytes: length of 64 bits, mask.
pub const MAX_HEADER_LEN: usize = 14;

/// The longest payload of a message, bytes.
pub const MAX_PAYLOAD_LEN: usize = 128 * 1024;

/// The longest payload of a control frame, bytes (section 5.5).
pub const MAX_CONTROL_LEN: usize = 125;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// What a frame is (section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// Text: control messages.
    Text,
    /// Binary: packets.
    Binary,
    /// The last frame of a connection.
    Close,
    /// To be answered with [`Opcode::Pong`] and the same payload.
    Ping,
    /// An answer.
    Pong,
}

impl Opcode {
    const fn number(self) -> u8 {
        match self {
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }
}

/// Which end sends: peers mask, hubs do not (section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Peer,
    /// The one that was connected to.
    Hub,
}

/// Bytes that are no frame of ours. The connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WebSocketError {
    /// A fragment, or a reserved bit.
    #[error("a fragmented or extended WebSocket frame")]
    Fragment,
    /// An opcode that does not exist.
    #[error("unknown WebSocket opcode {0}")]
    Opcode(u8),
    /// A payload that is longer than it may be.
    #[error("a WebSocket frame of {0} bytes")]
    Length(u64),
    /// A peer that does not mask, or a hub that does.
    #[error("a WebSocket frame that is masked by the wrong side")]
    Mask,
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub opcode: Opcode,
    /// How the payload is masked; `None` from a hub.
    pub mask: Option<[u8; 4]>,
    /// Length of this header, bytes.
    pub header_len: usize,
    /// Length of the payload, bytes.
    pub payload_len: usize,
}

impl Header {
    /// Reads the header of a frame that `from` sent; `None`: it is not all there yet.
    ///
    /// # Errors
    /// These bytes never become a frame of ours.
    pub fn parse(bytes: &[u8], from: Side) -> Result<Option<Self>, WebSocketError> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        let opcode = match first & 0x0f {
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            0 => return Err(WebSocketError::Fragment),
            other => return Err(WebSocketError::Opcode(other)),
        };
        if first & 0xf0 != FINAL {
            return Err(WebSocketError::Fragment);
        }
        if (second & MASKED != 0) != (from == Side::Peer) {
            return Err(WebSocketError::Mask);
        }
        let (len, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk() {
                Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((len, rest)) => (u64::from_be_bytes(*len), rest),
                None => return Ok(None),
            },
            len => (u64::from(len), rest),
        };
        let most = match opcode {
            Opcode::Text | Opcode::Binary => MAX_PAYLOAD_LEN,
            Opcode::Close | Opcode::Ping | Opcode::Pong => MAX_CONTROL_LEN,
        };
        let payload_len = usize::try_from(len).ok().filter(|len| *len <= most);
        let payload_len = payload_len.ok_or(WebSocketError::Length(len))?;
        let (mask, rest) = match (from, rest.split_first_chunk()) {
            (Side::Hub, _) => (None, rest),
            (Side::Peer, Some((mask, rest))) => (Some(*mask), rest),
            (Side::Peer, None) => return Ok(None),
        };
        let header_len = bytes.len().saturating_sub(rest.len());
        Ok(Some(Self { opcode, mask, header_len, payload_len }))
    }
}

/// Takes the mask off a payload (section 5.3).
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    if mask == [0; 4] {
        return;
    }
    let (words, rest) = payload.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask) {
        *byte ^= key;
    }
}

/// Appends the header of a frame that `from` sends; its payload follows.
pub fn put_header(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize, from: Side) {
    let mask = if from == Side::Peer { MASKED } else { 0 };
    out.push(FINAL | opcode.number());
    match (u8::try_from(payload_len), u16::try_from(payload_len)) {
        (Ok(len), _) if len < 126 => out.push(mask | len),
        (_, Ok(len)) => {
            out.push(mask | 126);
            out.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            out.push(mask | 127);
            out.extend_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
    if from == Side::Peer {
        out.extend_from_slice(&[0; 4]);
    }
}

/// Appends a whole frame.
pub fn put(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], from: Side) {
    put_header(out, opcode, payload.len(), from);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_the_shortest_and_read_back() {
        for from in [Side::Peer, Side::Hub] {
            let mask = if from == Side::Peer { 4 } else { 0 };
            for (len, header_len) in
                [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10), (MAX_PAYLOAD_LEN, 10)]
            {
                let mut bytes = Vec::new();
                put_header(&mut bytes, Opcode::Binary, len, from);
                assert_eq!(bytes.len(), header_len + mask, "{len}");
                for short in 0..bytes.len() {
                    assert_eq!(Header::parse(&bytes[..short], from), Ok(None));
                }
                let header = Header::parse(&bytes, from).unwrap().unwrap();
                assert_eq!((header.payload_len, header.header_len), (len, bytes.len()));
            }
        }
    }

    #[test]
    fn examples_of_the_rfc_are_read() {
        // RFC 6455 section 5.7: a masked "Hello", an unmasked Ping.
        let mut hello = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        let header = Header::parse(&hello, Side::Peer).unwrap().unwrap();
        assert_eq!((header.opcode, header.header_len, header.payload_len), (Opcode::Text, 6, 5));
        unmask(&mut hello[6..], header.mask.unwrap());
        assert_eq!(&hello[6..], b"Hello");
        let ping = Header::parse(b"\x89\x05Hello", Side::Hub).unwrap().unwrap();
        assert_eq!((ping.opcode, ping.payload_len, ping.mask), (Opcode::Ping, 5, None));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let refused = |bytes: &[u8], from| Header::parse(bytes, from).unwrap_err();
        assert_eq!(refused(&[0x02, 0], Side::Hub), WebSocketError::Fragment);
        assert_eq!(refused(&[0x80, 0], Side::Hub), WebSocketError::Fragment);
        assert_eq!(refused(&[0xc2, 0], Side::Hub), WebSocketError::Fragment, "compressed");
        assert_eq!(refused(&[0x83, 0], Side::Hub), WebSocketError::Opcode(3));
        assert_eq!(refused(&[0x82, 0], Side::Peer), WebSocketError::Mask);
        assert_eq!(refused(&[0x82, 0x80], Side::Hub), WebSocketError::Mask);
        assert_eq!(refused(&[0x89, 126, 0, 126], Side::Hub), WebSocketError::Length(126));
        let long = [0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(refused(&long, Side::Hub), WebSocketError::Length(u64::MAX));
    }
}
