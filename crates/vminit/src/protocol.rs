//! What the guest's init and the host say to each other on a virtio-serial port: messages of a
//! kind (one byte), a length (four bytes in network order) and a payload.

use std::io::{self, Read, Write};

/// Longest payload, bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Kind and length.
const HEADER_LEN: usize = 5;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Guest to host: the program runs.
    Started,
    /// Guest to host: the program has written this to its standard output.
    Output(Vec<u8>),
    /// Guest to host: the same for its standard error.
    Error(Vec<u8>),
    /// Guest to host: the program has ended with this code; nothing comes after it.
    Exited(i32),
    /// Guest to host: the program was ended by this signal; nothing comes after it.
    Killed(i32),
    /// Guest to host: the guest cannot be set up, and why; nothing comes after it.
    Failed(String),
    /// Host to guest: send the program this signal.
    Signal(i32),
}

impl Message {
    /// Writes it.
    ///
    /// # Errors
    /// Those of `to`; `InvalidInput`: the payload is longer than [`MAX_PAYLOAD`].
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let number;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Started => (b'R', &[]),
            Self::Output(bytes) => (b'O', bytes),
            Self::Error(bytes) => (b'E', bytes),
            Self::Failed(text) => (b'F', text.as_bytes()),
            Self::Exited(code) => (b'X', {
                number = code.to_be_bytes();
                &number
            }),
            Self::Killed(signal) => (b'K', {
                number = signal.to_be_bytes();
                &number
            }),
            Self::Signal(signal) => (b'S', {
                number = signal.to_be_bytes();
                &number
            }),
        };
        let len = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        if payload.len() > MAX_PAYLOAD {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        bytes.push(kind);
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        to.write_all(&bytes)
    }

    /// Reads the next one; `None` at the end.
    ///
    /// # Errors
    /// Those of `from`; `InvalidData`: what comes is no message.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut kind = [0];
        loop {
            match from.read(&mut kind) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut len = [0; 4];
        from.read_exact(&mut len)?;
        let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
        if len > MAX_PAYLOAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; len];
        from.read_exact(&mut payload)?;
        let number = || payload.as_slice().try_into().map(i32::from_be_bytes);
        let invalid = |_| io::ErrorKind::InvalidData;
        Ok(Some(match kind {
            [b'R'] if payload.is_empty() => Self::Started,
            [b'O'] => Self::Output(payload),
            [b'E'] => Self::Error(payload),
            [b'F'] => Self::Failed(String::from_utf8_lossy(&payload).into_owned()),
            [b'X'] => Self::Exited(number().map_err(invalid)?),
            [b'K'] => Self::Killed(number().map_err(invalid)?),
            [b'S'] => Self::Signal(number().map_err(invalid)?),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back() {
        let messages = [
            Message::Started,
            Message::Output(b"out\n".to_vec()),
            Message::Error(vec![0xff; MAX_PAYLOAD]),
            Message::Exited(-1),
            Message::Killed(9),
            Message::Failed("no card".to_owned()),
            Message::Signal(15),
        ];
        let mut bytes = Vec::new();
        for message in &messages {
            message.write(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        for message in messages {
            assert_eq!(Message::read(&mut rest).unwrap(), Some(message));
        }
        assert_eq!(Message::read(&mut rest).unwrap(), None);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let lies: [&[u8]; 6] = [
            b"?\0\0\0\0",
            b"R\0\0\0\x01x",
            b"X\0\0\0\x03abc",
            b"O\xff\xff\xff\xff",
            b"O\0\0\0\x05ab",
            b"O\0",
        ];
        for lie in lies {
            assert!(Message::read(&mut &*lie).is_err(), "{lie:?}");
        }
        let long = Message::Output(vec![0; MAX_PAYLOAD + 1]);
        assert!(long.write(&mut Vec::new()).is_err());
    }
}
