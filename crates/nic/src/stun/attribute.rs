//! Attributes: their numbers, their values, and how the values are written as bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::message::{Malformed, TransactionId};

/// The number of an attribute.
///
/// Numbers below 0x8000 must be understood by whoever gets them (RFC 8489, section 14); a server that
/// does not answers with error 420.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u16);

impl Kind {
    /// MAPPED-ADDRESS: the source of the request, as the server saw it.
    pub const MAPPED_ADDRESS: Self = Self(0x0001);
    /// CHANGE-REQUEST: answer from another address or port (RFC 5780, section 7.2; RFC 3489).
    pub const CHANGE_REQUEST: Self = Self(0x0003);
    /// SOURCE-ADDRESS: where a classic answer came from (RFC 3489).
    pub const SOURCE_ADDRESS: Self = Self(0x0004);
    /// CHANGED-ADDRESS: the other address and port of a classic server (RFC 3489).
    pub const CHANGED_ADDRESS: Self = Self(0x0005);
    /// USERNAME.
    pub const USERNAME: Self = Self(0x0006);
    /// MESSAGE-INTEGRITY.
    pub const MESSAGE_INTEGRITY: Self = Self(0x0008);
    /// ERROR-CODE.
    pub const ERROR_CODE: Self = Self(0x0009);
    /// UNKNOWN-ATTRIBUTES: what the server did not understand.
    pub const UNKNOWN_ATTRIBUTES: Self = Self(0x000A);
    /// REALM.
    pub const REALM: Self = Self(0x0014);
    /// NONCE.
    pub const NONCE: Self = Self(0x0015);
    /// MESSAGE-INTEGRITY-SHA256.
    pub const MESSAGE_INTEGRITY_SHA256: Self = Self(0x001C);
    /// XOR-MAPPED-ADDRESS: as MAPPED-ADDRESS, hidden from boxes that rewrite addresses.
    pub const XOR_MAPPED_ADDRESS: Self = Self(0x0020);
    /// PADDING: fills a message up (RFC 5780, section 7.6).
    pub const PADDING: Self = Self(0x0026);
    /// RESPONSE-PORT: answer to another port (RFC 5780, section 7.5).
    pub const RESPONSE_PORT: Self = Self(0x0027);
    /// XOR-MAPPED-ADDRESS as drafts before RFC 5389 numbered it; servers of that time still run.
    pub const XOR_MAPPED_ADDRESS_DRAFT: Self = Self(0x8020);
    /// SOFTWARE: who made the message.
    pub const SOFTWARE: Self = Self(0x8022);
    /// ALTERNATE-SERVER: whom to ask instead, in an answer with error 300.
    pub const ALTERNATE_SERVER: Self = Self(0x8023);
    /// FINGERPRINT: a checksum over the message.
    pub const FINGERPRINT: Self = Self(0x8028);
    /// RESPONSE-ORIGIN: where the answer came from (RFC 5780, section 7.3).
    pub const RESPONSE_ORIGIN: Self = Self(0x802B);
    /// OTHER-ADDRESS: the other address and port of the server (RFC 5780, section 7.4).
    pub const OTHER_ADDRESS: Self = Self(0x802C);

    /// Whether whoever gets it must understand it.
    pub const fn is_required(self) -> bool {
        self.0 < 0x8000
    }
}

/// One attribute of a parsed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its number.
    pub kind: Kind,
    /// Its value, without padding.
    pub value: &'a [u8],
}

/// What CHANGE-REQUEST asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Change {
    /// Answer from the other address.
    pub address: bool,
    /// Answer from the other port.
    pub port: bool,
}

impl Change {
    /// From the other address and the other port.
    pub const BOTH: Self = Self { address: true, port: true };
    /// From the other port of the same address.
    pub const PORT: Self = Self { address: false, port: true };

    const ADDRESS_BIT: u32 = 0x04;
    const PORT_BIT: u32 = 0x02;

    /// Reads a value.
    ///
    /// # Errors
    /// It is not 4 bytes long.
    pub fn parse(value: &[u8]) -> Result<Self, Malformed> {
        let bytes: [u8; 4] =
            value.try_into().map_err(|_| Malformed::Value(Kind::CHANGE_REQUEST))?;
        let bits = u32::from_be_bytes(bytes);
        Ok(Self { address: bits & Self::ADDRESS_BIT != 0, port: bits & Self::PORT_BIT != 0 })
    }

    pub(super) fn to_bytes(self) -> [u8; 4] {
        let address = if self.address { Self::ADDRESS_BIT } else { 0 };
        let port = if self.port { Self::PORT_BIT } else { 0 };
        (address | port).to_be_bytes()
    }
}

/// An ERROR-CODE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorCode {
    /// 300 to 699.
    pub code: u16,
    /// What the server says about it.
    pub reason: String,
}

impl ErrorCode {
    /// Longest reason, bytes (RFC 8489, section 14.8).
    const MAX_REASON: usize = 763;

    /// Reads a value.
    ///
    /// # Errors
    /// It is too short or too long, or the code is out of range.
    pub fn parse(value: &[u8]) -> Result<Self, Malformed> {
        let bad = Malformed::Value(Kind::ERROR_CODE);
        let Some(([_, _, class, number], reason)) = value.split_first_chunk::<4>() else {
            return Err(bad);
        };
        let class = class & 0x07;
        if !(3..=6).contains(&class) || *number > 99 || reason.len() > Self::MAX_REASON {
            return Err(bad);
        }
        let code = u16::from(class) * 100 + u16::from(*number);
        Ok(Self { code, reason: String::from_utf8_lossy(reason).into_owned() })
    }

    pub(super) fn to_bytes(code: u16, reason: &str) -> Vec<u8> {
        let class = u8::try_from(code / 100 % 8).unwrap_or_default();
        let number = u8::try_from(code % 100).unwrap_or_default();
        let mut value = vec![0, 0, class, number];
        value.extend(reason.bytes().take(Self::MAX_REASON));
        value
    }
}

/// Reads a RESPONSE-PORT: 2 bytes, as stuntman writes it, or with 2 more of padding, as RFC 5780 draws
/// it and coturn writes it.
///
/// # Errors
/// It has another length.
pub fn parse_response_port(value: &[u8]) -> Result<u16, Malformed> {
    match *value {
        [high, low] | [high, low, _, _] => Ok(u16::from_be_bytes([high, low])),
        _ => Err(Malformed::Value(Kind::RESPONSE_PORT)),
    }
}

const FAMILY_IP4: u8 = 1;
const FAMILY_IP6: u8 = 2;

/// Reads an address (RFC 8489, section 14.1).
///
/// # Errors
/// The family is unknown, or the length is not that of its family.
pub fn parse_address(kind: Kind, value: &[u8]) -> Result<SocketAddr, Malformed> {
    let bad = Malformed::Value(kind);
    let Some(([_, family, high, low], address)) = value.split_first_chunk::<4>() else {
        return Err(bad);
    };
    let address = match *family {
        FAMILY_IP4 => <[u8; 4]>::try_from(address).map(|bytes| Ipv4Addr::from(bytes).into()),
        FAMILY_IP6 => <[u8; 16]>::try_from(address).map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => return Err(bad),
    };
    let address: IpAddr = address.map_err(|_| bad)?;
    Ok(SocketAddr::new(address, u16::from_be_bytes([*high, *low])))
}

pub(super) fn address_to_bytes(address: SocketAddr) -> Vec<u8> {
    let mut value = vec![0, if address.is_ipv4() { FAMILY_IP4 } else { FAMILY_IP6 }];
    value.extend(address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => value.extend(ip.octets()),
        IpAddr::V6(ip) => value.extend(ip.octets()),
    }
    value
}

/// Hides an address, or shows it again (RFC 8489, section 14.2).
///
/// The 16 bytes behind the length are the key: the cookie and the id. A classic id takes the place of
/// both, which is how servers of the drafts did it.
pub(super) fn xor_address(address: SocketAddr, id: &TransactionId) -> SocketAddr {
    let key = id.as_bytes();
    let [first, second, ..] = *key;
    let port = address.port() ^ u16::from_be_bytes([first, second]);
    let ip = match address.ip() {
        IpAddr::V4(ip) => Ipv4Addr::from(xor(ip.octets(), key)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(xor(ip.octets(), key)).into(),
    };
    SocketAddr::new(ip, port)
}

fn xor<const N: usize>(mut bytes: [u8; N], key: &[u8; 16]) -> [u8; N] {
    for (byte, key) in bytes.iter_mut().zip(key) {
        *byte ^= key;
    }
    bytes
}
