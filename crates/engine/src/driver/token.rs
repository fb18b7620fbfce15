//! Whom an event of the poll is for, as the number that the kernel keeps.

use crate::edge::{PlugId, SocketId};

/// Whom an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// A host socket of the core.
    Socket(SocketId),
    /// A plug.
    Plug(PlugId),
    /// Who hands out sockets of the namespace behind a plug.
    Supply(PlugId),
    /// Something that the driver's user watches.
    Watch(u32),
    /// The machine's addresses have changed.
    Addresses,
    /// A packet socket on the segment (bridge mode).
    Segment(u32),
    /// Something that the plumbing watches (bridge mode).
    Plumbing(u32),
    /// Connections that the proxy asks for.
    Asked,
}

/// The kind sits above the 32 bits of the number.
const KIND_SHIFT: u32 = 32;

impl Token {
    pub(crate) fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Socket(id) => (0, id.0),
            Self::Plug(id) => (1, id.0),
            Self::Watch(key) => (2, key),
            Self::Addresses => (3, 0),
            Self::Segment(number) => (4, number),
            Self::Plumbing(number) => (5, number),
            Self::Asked => (6, 0),
            Self::Supply(id) => (7, id.0),
        };
        kind << KIND_SHIFT | u64::from(number)
    }

    pub(crate) fn decode(token: u64) -> Option<Self> {
        let number = u32::try_from(token & u64::from(u32::MAX)).ok()?;
        match token >> KIND_SHIFT {
            0 => Some(Self::Socket(SocketId(number))),
            1 => Some(Self::Plug(PlugId(number))),
            2 => Some(Self::Watch(number)),
            3 => Some(Self::Addresses),
            4 => Some(Self::Segment(number)),
            5 => Some(Self::Plumbing(number)),
            6 => Some(Self::Asked),
            7 => Some(Self::Supply(PlugId(number))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_comes_back() {
        for number in [0, 7, u32::MAX] {
            let ids = [
                Token::Socket(SocketId(number)),
                Token::Plug(PlugId(number)),
                Token::Supply(PlugId(number)),
                Token::Watch(number),
                Token::Segment(number),
                Token::Plumbing(number),
                Token::Addresses,
                Token::Asked,
            ];
            for token in ids {
                assert_eq!(Token::decode(token.encode()), Some(token));
            }
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
