//! DHCPv6 (RFC 8415): messages between clients and servers, with the options that a server of
//! addresses needs. Messages of relays are not read.

use std::net::Ipv6Addr;

use super::{read_names, write_names};
use crate::ParseError;
use crate::dns::Name;

/// UDP port of servers.
pub const SERVER_PORT: u16 = 547;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 546;

/// The group that clients send to (RFC 8415 section 7.1).
pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// A DUID has a type of two bytes and 1 to 128 more (RFC 8415 section 11.1).
const DUID_LEN: std::ops::RangeInclusive<usize> = 3..=130;

/// Option codes (RFC 8415 section 21; RFC 3646).
pub mod option {
    pub(super) const CLIENT: u16 = 1;
    pub(super) const SERVER: u16 = 2;
    pub(super) const NON_TEMPORARY: u16 = 3;
    pub(super) const TEMPORARY: u16 = 4;
    pub(super) const ADDRESS: u16 = 5;
    pub(super) const WANTS: u16 = 6;
    pub(super) const PREFERENCE: u16 = 7;
    pub(super) const STATUS: u16 = 13;
    pub(super) const RAPID_COMMIT: u16 = 14;
    pub(super) const PREFIX: u16 = 25;
    /// Addresses of resolvers.
    pub const DNS: u16 = 23;
    /// Domains to look short names up in.
    pub const SEARCH: u16 = 24;
}

/// The kind of message (RFC 8415 section 7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// Are there servers?
    Solicit,
    /// I am a server, and would give you this.
    Advertise,
    /// Give it to me.
    Request,
    /// Am I still on the same link?
    Confirm,
    /// Let me keep it, to the server that gave it.
    Renew,
    /// Let me keep it, to any server.
    Rebind,
    /// A server's answer.
    Reply,
    /// I need it no more.
    Release,
    /// Somebody else uses it.
    Decline,
    /// Ask me again.
    Reconfigure,
    /// Tell me what is not about addresses.
    InformationRequest,
}

impl MessageType {
    const ALL: [Self; 11] = [
        Self::Solicit,
        Self::Advertise,
        Self::Request,
        Self::Confirm,
        Self::Renew,
        Self::Rebind,
        Self::Reply,
        Self::Release,
        Self::Decline,
        Self::Reconfigure,
        Self::InformationRequest,
    ];

    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        let place = Self::ALL.iter().zip(1u8..).find(|(kind, _)| **kind == self);
        place.map_or(0, |(_, code)| code)
    }

    /// The kind with this number; a relay's are unknown.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// A message between client and server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The kind.
    pub kind: MessageType,
    /// Transaction, 24 bits: chosen by the client, repeated by the server.
    pub xid: u32,
    /// The client's DUID.
    pub client: Option<Vec<u8>>,
    /// The server's DUID.
    pub server: Option<Vec<u8>>,
    /// What the client wants addresses for, or gets them for.
    pub associations: Vec<Association>,
    /// Codes of the options that the client wants.
    pub wants: Vec<u16>,
    /// How much a server is to be preferred; 255 ends the search.
    pub preference: Option<u8>,
    /// The client takes a reply at once, or the server has done so.
    pub rapid_commit: bool,
    /// What came of the request as a whole.
    pub status: Option<Status>,
    /// Addresses of resolvers.
    pub dns: Vec<Ipv6Addr>,
    /// Domains to look short names up in.
    pub search: Vec<Name>,
}

/// An identity association: what addresses are lent for, several to one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Association {
    /// The kind.
    pub kind: AssociationKind,
    /// The client's number for it.
    pub id: u32,
    /// When to renew (T1), seconds; 0 leaves it to the client. Temporary addresses have none.
    pub renew: u32,
    /// When to ask any server (T2), seconds; as above.
    pub rebind: u32,
    /// The addresses. Prefixes are not read.
    pub addresses: Vec<Address>,
    /// What came of it.
    pub status: Option<Status>,
}

/// Kinds of [`Association`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AssociationKind {
    /// Addresses (IA_NA).
    NonTemporary,
    /// Temporary addresses (IA_TA).
    Temporary,
    /// Prefixes for delegation (IA_PD).
    Prefix,
}

/// An address in an [`Association`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// The address.
    pub address: Ipv6Addr,
    /// How long it is for new connections, seconds; all ones is for ever.
    pub preferred: u32,
    /// How long it may be used, seconds; all ones is for ever. 0: no more.
    pub valid: u32,
}

/// What came of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The code.
    pub code: StatusCode,
    /// For people.
    pub message: String,
}

/// Status codes (RFC 8415 section 21.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusCode {
    /// Done.
    Success,
    /// There is no address for the association.
    NoAddrsAvail,
    /// The server knows no such lease.
    NoBinding,
    /// The address is of another link.
    NotOnLink,
    /// There is no prefix for the association.
    NoPrefixAvail,
    /// Any other.
    Other(u16),
}

impl StatusCode {
    fn number(self) -> u16 {
        match self {
            Self::Success => 0,
            Self::NoAddrsAvail => 2,
            Self::NoBinding => 3,
            Self::NotOnLink => 4,
            Self::NoPrefixAvail => 6,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Success,
            2 => Self::NoAddrsAvail,
            3 => Self::NoBinding,
            4 => Self::NotOnLink,
            6 => Self::NoPrefixAvail,
            other => Self::Other(other),
        }
    }
}

impl Message {
    /// A message without options.
    #[must_use]
    pub fn new(kind: MessageType, xid: u32) -> Self {
        Self {
            kind,
            xid,
            client: None,
            server: None,
            associations: Vec::new(),
            wants: Vec::new(),
            preference: None,
            rapid_commit: false,
            status: None,
            dns: Vec::new(),
            search: Vec::new(),
        }
    }

    /// Parses the payload of a UDP datagram. Options that are not understood are left out, of one
    /// that may come once the last counts.
    ///
    /// # Errors
    /// It is a relay's or of no known kind; an option ends past what it is in, or is not as long as
    /// it should be.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (&[kind, x0, x1, x2], mut options) =
            bytes.split_first_chunk().ok_or(ParseError::new("dhcp6-truncated"))?;
        let kind = MessageType::from_code(kind).ok_or(ParseError::new("dhcp6-type"))?;
        let mut message = Self::new(kind, u32::from_be_bytes([0, x0, x1, x2]));
        while let Some((code, data)) = next(&mut options)? {
            message.add(code, data).ok_or(ParseError::new("dhcp6-option"))??;
        }
        Ok(message)
    }

    /// Reads one option; `None` if it is not as long as it should be.
    fn add(&mut self, code: u16, data: &[u8]) -> Option<Result<(), ParseError>> {
        let duid = || DUID_LEN.contains(&data.len()).then(|| data.to_vec());
        match code {
            option::CLIENT => self.client = Some(duid()?),
            option::SERVER => self.server = Some(duid()?),
            option::NON_TEMPORARY | option::TEMPORARY | option::PREFIX => {
                return match Association::parse(code, data)? {
                    Ok(association) => {
                        self.associations.push(association);
                        Some(Ok(()))
                    }
                    Err(error) => Some(Err(error)),
                };
            }
            option::WANTS => self.wants = numbers(data)?,
            option::PREFERENCE => {
                let &[preference] = data else { return None };
                self.preference = Some(preference);
            }
            option::STATUS => self.status = Some(Status::parse(data)?),
            option::RAPID_COMMIT => self.rapid_commit = true,
            option::DNS => self.dns = addresses(data)?,
            option::SEARCH => self.search = read_names(data)?,
            _ => {}
        }
        Some(Ok(()))
    }

    /// The message as the payload of a UDP datagram.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let [_, x0, x1, x2] = self.xid.to_be_bytes();
        let mut out = vec![self.kind.code(), x0, x1, x2];
        let duids = [(option::CLIENT, &self.client), (option::SERVER, &self.server)];
        for (code, duid) in duids {
            if let Some(duid) = duid {
                write(code, &mut out, |out| out.extend_from_slice(duid));
            }
        }
        for association in &self.associations {
            association.emit(&mut out);
        }
        if !self.wants.is_empty() {
            write(option::WANTS, &mut out, |out| {
                out.extend(self.wants.iter().flat_map(|code| code.to_be_bytes()));
            });
        }
        if let Some(preference) = self.preference {
            write(option::PREFERENCE, &mut out, |out| out.push(preference));
        }
        if let Some(status) = &self.status {
            status.emit(&mut out);
        }
        if self.rapid_commit {
            write(option::RAPID_COMMIT, &mut out, |_| {});
        }
        if !self.dns.is_empty() {
            write(option::DNS, &mut out, |out| {
                out.extend(self.dns.iter().flat_map(Ipv6Addr::octets));
            });
        }
        if !self.search.is_empty() {
            write(option::SEARCH, &mut out, |out| write_names(&self.search, out));
        }
        out
    }
}

impl Association {
    fn parse(code: u16, data: &[u8]) -> Option<Result<Self, ParseError>> {
        let (id, mut rest) = data.split_first_chunk::<4>()?;
        let mut association = Self {
            kind: match code {
                option::NON_TEMPORARY => AssociationKind::NonTemporary,
                option::TEMPORARY => AssociationKind::Temporary,
                _ => AssociationKind::Prefix,
            },
            id: u32::from_be_bytes(*id),
            renew: 0,
            rebind: 0,
            addresses: Vec::new(),
            status: None,
        };
        if association.kind != AssociationKind::Temporary {
            let (renew, behind) = rest.split_first_chunk::<4>()?;
            let (rebind, behind) = behind.split_first_chunk::<4>()?;
            association.renew = u32::from_be_bytes(*renew);
            association.rebind = u32::from_be_bytes(*rebind);
            rest = behind;
        }
        loop {
            match next(&mut rest) {
                Ok(None) => return Some(Ok(association)),
                Ok(Some((option::ADDRESS, data))) => {
                    association.addresses.push(Address::parse(data)?);
                }
                Ok(Some((option::STATUS, data))) => {
                    association.status = Some(Status::parse(data)?);
                }
                Ok(Some(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn emit(&self, out: &mut Vec<u8>) {
        let code = match self.kind {
            AssociationKind::NonTemporary => option::NON_TEMPORARY,
            AssociationKind::Temporary => option::TEMPORARY,
            AssociationKind::Prefix => option::PREFIX,
        };
        write(code, out, |out| {
            out.extend_from_slice(&self.id.to_be_bytes());
            if self.kind != AssociationKind::Temporary {
                out.extend_from_slice(&self.renew.to_be_bytes());
                out.extend_from_slice(&self.rebind.to_be_bytes());
            }
            for address in &self.addresses {
                write(option::ADDRESS, out, |out| {
                    out.extend_from_slice(&address.address.octets());
                    out.extend_from_slice(&address.preferred.to_be_bytes());
                    out.extend_from_slice(&address.valid.to_be_bytes());
                });
            }
            if let Some(status) = &self.status {
                status.emit(out);
            }
        });
    }
}

impl Address {
    /// Options of single addresses are not read: none has a meaning for a server.
    fn parse(data: &[u8]) -> Option<Self> {
        let (address, rest) = data.split_first_chunk::<16>()?;
        let (preferred, rest) = rest.split_first_chunk::<4>()?;
        let (valid, _) = rest.split_first_chunk::<4>()?;
        Some(Self {
            address: Ipv6Addr::from(*address),
            preferred: u32::from_be_bytes(*preferred),
            valid: u32::from_be_bytes(*valid),
        })
    }
}

impl Status {
    fn parse(data: &[u8]) -> Option<Self> {
        let (code, message) = data.split_first_chunk()?;
        let code = StatusCode::from_number(u16::from_be_bytes(*code));
        let message = std::str::from_utf8(message).ok()?.to_owned();
        Some(Self { code, message })
    }

    fn emit(&self, out: &mut Vec<u8>) {
        write(option::STATUS, out, |out| {
            out.extend_from_slice(&self.code.number().to_be_bytes());
            out.extend_from_slice(self.message.as_bytes());
        });
    }
}

/// Takes the next option off `bytes`; `None` at their end.
fn next<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u16, &'a [u8])>, ParseError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let truncated = ParseError::new("dhcp6-option");
    let (&[c0, c1, l0, l1], rest) = bytes.split_first_chunk().ok_or(truncated)?;
    let len = usize::from(u16::from_be_bytes([l0, l1]));
    let (data, rest) = rest.split_at_checked(len).ok_or(truncated)?;
    *bytes = rest;
    Ok(Some((u16::from_be_bytes([c0, c1]), data)))
}

/// Appends an option whose data `body` appends. Its length does not exceed 16 bits: what a message
/// holds fits a datagram.
fn write(code: u16, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&code.to_be_bytes());
    let length_at = out.len();
    out.extend_from_slice(&[0; 2]);
    let start = out.len();
    body(out);
    let len = u16::try_from(out.len().saturating_sub(start)).unwrap_or(u16::MAX);
    if let Some(field) = out.get_mut(length_at..start) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

fn numbers(data: &[u8]) -> Option<Vec<u16>> {
    let (pairs, rest) = data.as_chunks();
    rest.is_empty().then(|| pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect())
}

fn addresses(data: &[u8]) -> Option<Vec<Ipv6Addr>> {
    let (addresses, rest) = data.as_chunks();
    rest.is_empty().then(|| addresses.iter().map(|it: &[u8; 16]| Ipv6Addr::from(*it)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let address = Address { address: "fd00::2".parse().unwrap(), preferred: 100, valid: 200 };
        let association = |kind, addresses, status| Association {
            kind,
            id: 7,
            renew: if kind == AssociationKind::Temporary { 0 } else { 10 },
            rebind: if kind == AssociationKind::Temporary { 0 } else { 20 },
            addresses,
            status,
        };
        let status = |code| Some(Status { code, message: "why".into() });
        Message {
            client: Some(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 1]),
            server: Some(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 2]),
            associations: vec![
                association(AssociationKind::NonTemporary, vec![address], None),
                association(
                    AssociationKind::Temporary,
                    Vec::new(),
                    status(StatusCode::NoAddrsAvail),
                ),
                association(AssociationKind::Prefix, Vec::new(), status(StatusCode::Other(99))),
            ],
            wants: vec![23, 24],
            preference: Some(255),
            rapid_commit: true,
            status: status(StatusCode::Success),
            dns: vec!["fd00::1".parse().unwrap()],
            search: vec!["lan".parse().unwrap(), "a.b".parse().unwrap()],
            ..Message::new(MessageType::Reply, 0x01_0203)
        }
    }

    #[test]
    fn a_message_reads_back() {
        assert_eq!(Message::parse(&message().emit()), Ok(message()));
    }

    #[test]
    fn a_message_is_right_to_the_byte() {
        let mut small = Message::new(MessageType::Solicit, 0x01_0203);
        small.client = Some(vec![0, 3, 0]);
        small.associations = message().associations;
        small.associations.truncate(1);
        small.search = vec!["lan".parse().unwrap()];
        let mut wanted = vec![1, 1, 2, 3, 0, 1, 0, 3, 0, 3, 0];
        wanted.extend([0, 3, 0, 40, 0, 0, 0, 7, 0, 0, 0, 10, 0, 0, 0, 20, 0, 5, 0, 24]);
        wanted.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        wanted.extend([0, 0, 0, 100, 0, 0, 0, 200]);
        wanted.extend([0, 24, 0, 5, 3, b'l', b'a', b'n', 0]);
        assert_eq!(small.emit(), wanted);
    }

    #[test]
    fn lies_are_refused_and_the_unknown_is_passed_over() {
        let reason = |bytes: &[u8]| Message::parse(bytes).unwrap_err().reason();
        assert_eq!(reason(&[1, 0, 0]), "dhcp6-truncated");
        assert_eq!(reason(&[0, 0, 0, 0]), "dhcp6-type");
        assert_eq!(reason(&[12, 0, 0, 0]), "dhcp6-type");
        for option in [
            &[0, 1][..],
            &[0, 1, 0, 4, 0, 3, 0],
            &[0, 1, 0, 2, 0, 3],
            &[0, 3, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 4, 0, 8, 0, 0, 0, 0, 0, 5, 0, 1],
            &[0, 4, 0, 9, 0, 0, 0, 0, 0, 5, 0, 1, 0],
            &[0, 6, 0, 1, 0],
            &[0, 7, 0, 0],
            &[0, 13, 0, 1, 0],
            &[0, 13, 0, 3, 0, 0, 0xff],
            &[0, 23, 0, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 24, 0, 2, 0xc0, 0],
        ] {
            assert_eq!(reason(&[&[1, 0, 0, 0], option].concat()), "dhcp6-option", "{option:?}");
        }
        let unknown = [1, 0, 0, 9, 0xff, 0xff, 0, 1, 0];
        assert_eq!(Message::parse(&unknown), Ok(Message::new(MessageType::Solicit, 9)));
    }
}
