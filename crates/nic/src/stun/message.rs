//! Messages: bytes to a checked view and back.
//!
//! A message is parsed once, whole: header, every attribute's length, the fingerprint if there is one.
//! What passes can be read without further checks. Values are checked when they are asked for, because
//! an answer with one strange optional attribute is still an answer.

use std::fmt;
use std::net::SocketAddr;

use super::attribute::{
    self, Attribute, Change, ErrorCode, Kind, address_to_bytes, parse_address, xor_address,
};

/// Length of the header, bytes.
pub const HEADER_LEN: usize = 20;
/// Longest message that is read, bytes: one datagram of an Ethernet with jumbo frames.
pub const MAX_LEN: usize = 9000;
/// Most attributes that a message may have.
pub const MAX_ATTRIBUTES: usize = 64;

/// The fixed value behind the length since RFC 5389.
const COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
/// What the checksum of FINGERPRINT is mixed with (RFC 8489, section 14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554E;
/// Length of a FINGERPRINT with its header, bytes.
const FINGERPRINT_LEN: usize = 8;

/// What kind of message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Asks for an answer.
    Request,
    /// Wants none.
    Indication,
    /// The answer that was asked for.
    Success,
    /// The answer that it cannot be had.
    Error,
}

impl Class {
    /// Its two bits in the type (RFC 8489, section 5).
    const fn bits(self) -> u16 {
        match self {
            Self::Request => 0x000,
            Self::Indication => 0x010,
            Self::Success => 0x100,
            Self::Error => 0x110,
        }
    }

    const fn of(kind: u16) -> Self {
        match kind & 0x110 {
            0x000 => Self::Request,
            0x010 => Self::Indication,
            0x100 => Self::Success,
            _ => Self::Error,
        }
    }
}

/// What a message is about: a number of 12 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method(u16);

impl Method {
    /// Which address do you see?
    pub const BINDING: Self = Self(1);

    /// The 12 bits, spread around the class's two.
    const fn bits(self) -> u16 {
        let method = self.0;
        (method & 0x00F) | (method & 0x070) << 1 | (method & 0xF80) << 2
    }

    const fn of(kind: u16) -> Self {
        Self((kind & 0x00F) | (kind & 0x0E0) >> 1 | (kind & 0x3E00) >> 2)
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// The 16 bytes that tie an answer to its request: the cookie and 12 random bytes, or in classic
/// messages (RFC 3489) 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransactionId([u8; 16]);

impl TransactionId {
    /// An id with the cookie.
    pub const fn modern(random: [u8; 12]) -> Self {
        let mut id = [0; 16];
        let (cookie, rest) = id.split_at_mut(COOKIE.len());
        cookie.copy_from_slice(&COOKIE);
        rest.copy_from_slice(&random);
        Self(id)
    }

    /// An id without. One that begins with the cookie by chance is made another.
    pub fn classic(mut random: [u8; 16]) -> Self {
        if random.starts_with(&COOKIE)
            && let Some(first) = random.first_mut()
        {
            *first ^= 0xFF;
        }
        Self(random)
    }

    /// Whether it lacks the cookie.
    pub fn is_classic(&self) -> bool {
        !self.0.starts_with(&COOKIE)
    }

    /// All 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// Why bytes are no message, or a value is not what its attribute should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer bytes than a header, or than the header says.
    #[error("the message is cut off")]
    Truncated,
    /// More bytes than the header says.
    #[error("there are bytes behind the message")]
    TrailingBytes,
    /// Longer than [`MAX_LEN`], or more than [`MAX_ATTRIBUTES`].
    #[error("the message is larger than STUN messages are")]
    TooLarge,
    /// The first two bits are not zero: another protocol.
    #[error("this is no STUN message")]
    NotStun,
    /// The length is not a multiple of 4, or an attribute reaches beyond the message.
    #[error("a length inside the message is wrong")]
    Length,
    /// The FINGERPRINT is wrong, or something follows it.
    #[error("the fingerprint is wrong")]
    Fingerprint,
    /// The value of an attribute is wrong.
    #[error("the value of attribute {:#06x} is wrong", .0.0)]
    Value(Kind),
}

/// A message, checked.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    class: Class,
    method: Method,
    id: TransactionId,
    attributes: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// The bytes are not exactly one well-formed message.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_LEN {
            return Err(Malformed::TooLarge);
        }
        let (header, attributes) =
            bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
        let [kind_high, kind_low, length_high, length_low, id @ ..] = *header;
        let kind = u16::from_be_bytes([kind_high, kind_low]);
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        if kind & 0xC000 != 0 {
            return Err(Malformed::NotStun);
        }
        if !length.is_multiple_of(4) {
            return Err(Malformed::Length);
        }
        match attributes.len() {
            there if there < length => return Err(Malformed::Truncated),
            there if there > length => return Err(Malformed::TrailingBytes),
            _ => {}
        }
        let message = Self {
            class: Class::of(kind),
            method: Method::of(kind),
            id: TransactionId(id),
            attributes,
        };
        message.check(bytes)?;
        Ok(message)
    }

    /// Checks the lengths of all attributes, and the fingerprint.
    fn check(&self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut rest = self.attributes;
        let mut count = 0;
        while !rest.is_empty() {
            let (attribute, after) = split(rest).ok_or(Malformed::Length)?;
            count += 1;
            if count > MAX_ATTRIBUTES {
                return Err(Malformed::TooLarge);
            }
            if attribute.kind == Kind::FINGERPRINT && !self.id.is_classic() {
                let covered = bytes.len() - rest.len();
                let covered = bytes.get(..covered).unwrap_or_default();
                if !after.is_empty() || attribute.value != fingerprint(covered).to_be_bytes() {
                    return Err(Malformed::Fingerprint);
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// Its class.
    pub const fn class(&self) -> Class {
        self.class
    }

    /// Its method.
    pub const fn method(&self) -> Method {
        self.method
    }

    /// Its id.
    pub const fn id(&self) -> TransactionId {
        self.id
    }

    /// All attributes, in order. What stands behind a MESSAGE-INTEGRITY is left out, as it is not
    /// protected (RFC 8489, section 14.5), but for the fingerprint.
    pub fn attributes(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        let mut rest = self.attributes;
        let mut protected = false;
        std::iter::from_fn(move || {
            let (attribute, after) = split(rest)?;
            rest = after;
            Some(attribute)
        })
        .filter(move |attribute| {
            let seals = [Kind::MESSAGE_INTEGRITY, Kind::MESSAGE_INTEGRITY_SHA256];
            let is_seal = seals.contains(&attribute.kind);
            let shown = !protected || is_seal || attribute.kind == Kind::FINGERPRINT;
            protected |= is_seal;
            shown
        })
    }

    /// The value of the first attribute of this kind; further ones are ignored (RFC 8489, section 14).
    pub fn value(&self, kind: Kind) -> Option<&'a [u8]> {
        self.attributes().find(|attribute| attribute.kind == kind).map(|attribute| attribute.value)
    }

    /// An address in the clear; `None` if it is not there or makes no sense.
    pub fn address(&self, kind: Kind) -> Option<SocketAddr> {
        parse_address(kind, self.value(kind)?).ok()
    }

    /// XOR-MAPPED-ADDRESS, also under the number of the drafts.
    pub fn xor_mapped(&self) -> Option<SocketAddr> {
        [Kind::XOR_MAPPED_ADDRESS, Kind::XOR_MAPPED_ADDRESS_DRAFT]
            .into_iter()
            .find_map(|kind| self.address(kind))
            .map(|address| xor_address(address, &self.id))
    }

    /// The address that the server saw: XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS.
    pub fn mapped(&self) -> Option<SocketAddr> {
        self.xor_mapped().or_else(|| self.address(Kind::MAPPED_ADDRESS))
    }

    /// CHANGE-REQUEST; `None` if it is not there.
    ///
    /// # Errors
    /// It is malformed.
    pub fn change(&self) -> Result<Option<Change>, Malformed> {
        self.value(Kind::CHANGE_REQUEST).map(Change::parse).transpose()
    }

    /// RESPONSE-PORT, in either of its lengths; `None` if it is not there.
    ///
    /// # Errors
    /// It is malformed.
    pub fn response_port(&self) -> Result<Option<u16>, Malformed> {
        self.value(Kind::RESPONSE_PORT).map(attribute::parse_response_port).transpose()
    }

    /// ERROR-CODE; `None` if it is not there.
    ///
    /// # Errors
    /// It is malformed.
    pub fn error_code(&self) -> Result<Option<ErrorCode>, Malformed> {
        self.value(Kind::ERROR_CODE).map(ErrorCode::parse).transpose()
    }

    /// The kinds that UNKNOWN-ATTRIBUTES names.
    pub fn unknown_attributes(&self) -> impl Iterator<Item = Kind> + use<'a> {
        let (kinds, _) = self.value(Kind::UNKNOWN_ATTRIBUTES).unwrap_or_default().as_chunks::<2>();
        kinds.iter().map(|bytes| Kind(u16::from_be_bytes(*bytes)))
    }

    /// SOFTWARE, as far as it is text.
    pub fn software(&self) -> Option<String> {
        self.value(Kind::SOFTWARE).map(|value| String::from_utf8_lossy(value).into_owned())
    }
}

/// Splits the first attribute off, with its padding.
fn split(bytes: &[u8]) -> Option<(Attribute<'_>, &[u8])> {
    let ([kind_high, kind_low, length_high, length_low], rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([*length_high, *length_low]));
    let value = rest.get(..length)?;
    let after = rest.get(length.next_multiple_of(4)..)?;
    let kind = Kind(u16::from_be_bytes([*kind_high, *kind_low]));
    Some((Attribute { kind, value }, after))
}

fn fingerprint(covered: &[u8]) -> u32 {
    crc32fast::hash(covered) ^ FINGERPRINT_XOR
}

/// Writes a message.
#[derive(Clone, Debug)]
pub struct Builder {
    bytes: Vec<u8>,
    id: TransactionId,
}

impl Builder {
    /// A message without attributes.
    pub fn new(class: Class, method: Method, id: TransactionId) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend((class.bits() | method.bits()).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(id.as_bytes());
        Self { bytes, id }
    }

    /// A Binding request.
    pub fn request(id: TransactionId) -> Self {
        Self::new(Class::Request, Method::BINDING, id)
    }

    /// Adds any attribute. What would make the message larger than [`MAX_LEN`] is left out.
    #[must_use]
    pub fn attribute(mut self, kind: Kind, value: &[u8]) -> Self {
        let padded = value.len().next_multiple_of(4);
        if let Ok(length) = u16::try_from(value.len())
            && self.bytes.len() + 4 + padded <= MAX_LEN - FINGERPRINT_LEN
        {
            self.bytes.extend(kind.0.to_be_bytes());
            self.bytes.extend(length.to_be_bytes());
            self.bytes.extend(value);
            self.bytes.resize(self.bytes.len() + padded - value.len(), 0);
        }
        self
    }

    /// Adds an address in the clear.
    #[must_use]
    pub fn address(self, kind: Kind, address: SocketAddr) -> Self {
        self.attribute(kind, &address_to_bytes(address))
    }

    /// Adds XOR-MAPPED-ADDRESS.
    #[must_use]
    pub fn xor_mapped(self, address: SocketAddr) -> Self {
        let hidden = xor_address(address, &self.id);
        self.address(Kind::XOR_MAPPED_ADDRESS, hidden)
    }

    /// Adds CHANGE-REQUEST.
    #[must_use]
    pub fn change(self, change: Change) -> Self {
        self.attribute(Kind::CHANGE_REQUEST, &change.to_bytes())
    }

    /// Adds RESPONSE-PORT, in its length of 4 that RFC 5780 draws.
    #[must_use]
    pub fn response_port(self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.attribute(Kind::RESPONSE_PORT, &[high, low, 0, 0])
    }

    /// Adds ERROR-CODE.
    #[must_use]
    pub fn error_code(self, code: u16, reason: &str) -> Self {
        self.attribute(Kind::ERROR_CODE, &ErrorCode::to_bytes(code, reason))
    }

    /// Adds UNKNOWN-ATTRIBUTES.
    #[must_use]
    pub fn unknown_attributes(self, kinds: &[Kind]) -> Self {
        let value: Vec<u8> = kinds.iter().flat_map(|kind| kind.0.to_be_bytes()).collect();
        self.attribute(Kind::UNKNOWN_ATTRIBUTES, &value)
    }

    /// Adds SOFTWARE.
    #[must_use]
    pub fn software(self, name: &str) -> Self {
        self.attribute(Kind::SOFTWARE, name.as_bytes())
    }

    /// The message.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() - HEADER_LEN;
        self.write_length(length);
        self.bytes
    }

    /// The message with a FINGERPRINT at its end, for modern messages.
    pub fn finish_with_fingerprint(mut self) -> Vec<u8> {
        let length = self.bytes.len() - HEADER_LEN + FINGERPRINT_LEN;
        self.write_length(length);
        let value = fingerprint(&self.bytes);
        self.bytes.extend(Kind::FINGERPRINT.0.to_be_bytes());
        self.bytes.extend([0, 4]);
        self.bytes.extend(value.to_be_bytes());
        self.bytes
    }

    fn write_length(&mut self, length: usize) {
        // `attribute` keeps messages below MAX_LEN, which 16 bits hold.
        let length = u16::try_from(length).unwrap_or_default().to_be_bytes();
        if let Some(field) = self.bytes.get_mut(2..4) {
            field.copy_from_slice(&length);
        }
    }
}
