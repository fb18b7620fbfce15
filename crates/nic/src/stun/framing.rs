//! Messages on a stream (TCP, TLS): one behind the other, each as long as its header says (RFC 8489,
//! section 6.2.2).

use super::message::{HEADER_LEN, MAX_LEN, Malformed};

/// Cuts a stream into messages.
#[derive(Debug, Default)]
pub struct Framing {
    buffer: Vec<u8>,
}

impl Framing {
    /// Takes what arrived.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    /// The next whole message, unparsed; `None` if more bytes are needed.
    ///
    /// # Errors
    /// What comes next is no STUN message. A stream cannot be put right again: close it.
    pub fn poll_message(&mut self) -> Result<Option<Vec<u8>>, Malformed> {
        let Some([kind_high, _, length_high, length_low]) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        if kind_high & 0xC0 != 0 {
            return Err(Malformed::NotStun);
        }
        let length = usize::from(u16::from_be_bytes([*length_high, *length_low])) + HEADER_LEN;
        if length > MAX_LEN {
            return Err(Malformed::TooLarge);
        }
        if self.buffer.len() < length {
            return Ok(None);
        }
        let rest = self.buffer.split_off(length);
        Ok(Some(std::mem::replace(&mut self.buffer, rest)))
    }
}
