//! Messages: questions, queries, responses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::BitOr;

use super::{A, AAAA, CNAME, IN, MIN_UDP_SIZE, Name, OPT, PTR, SOA, SRV, TXT};
use crate::ParseError;

/// Length of the header, bytes.
pub const HEADER_LEN: usize = 12;

/// Where the question's name stands in every message, bytes.
const QUESTION_AT: u16 = 12;

/// RFC 1035 section 3.3, bytes.
const MAX_STRING_LEN: usize = 255;

/// The bits between identification and counts (RFC 1035 section 4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// The message is a response.
    pub const RESPONSE: Self = Self(0x8000);
    /// The answer comes from who is responsible for the name (AA).
    pub const AUTHORITATIVE: Self = Self(0x0400);
    /// The answer did not fit (TC).
    pub const TRUNCATED: Self = Self(0x0200);
    /// The asker wants recursion (RD).
    pub const RECURSION_DESIRED: Self = Self(0x0100);
    /// The server offers recursion (RA).
    pub const RECURSION_AVAILABLE: Self = Self(0x0080);

    const OPCODE: u16 = 0x7800;
    const RCODE: u16 = 0x000f;

    /// True if every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The kind of query; 0 is the ordinary one.
    #[must_use]
    pub const fn opcode(self) -> u8 {
        let [high, _] = (self.0 & Self::OPCODE).to_be_bytes();
        high >> 3
    }

    /// The response code.
    #[must_use]
    pub fn rcode(self) -> Rcode {
        let [_, low] = (self.0 & Self::RCODE).to_be_bytes();
        Rcode::from(low)
    }

    /// The same flags with another response code.
    #[must_use]
    pub fn with_rcode(self, rcode: Rcode) -> Self {
        Self(self.0 & !Self::RCODE | u16::from(u8::from(rcode)) & Self::RCODE)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A response code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rcode {
    /// All is well, even if there is no such record.
    NoError,
    /// The query cannot be understood.
    FormatError,
    /// The server has trouble.
    ServerFailure,
    /// There is no such name (NXDOMAIN).
    NameError,
    /// The server does not know such queries.
    NotImplemented,
    /// The server does not want to.
    Refused,
    /// Another code, 6 to 15.
    Other(u8),
}

impl From<u8> for Rcode {
    fn from(code: u8) -> Self {
        match code {
            0 => Self::NoError,
            1 => Self::FormatError,
            2 => Self::ServerFailure,
            3 => Self::NameError,
            4 => Self::NotImplemented,
            5 => Self::Refused,
            code => Self::Other(code),
        }
    }
}

impl From<Rcode> for u8 {
    fn from(rcode: Rcode) -> Self {
        match rcode {
            Rcode::NoError => 0,
            Rcode::FormatError => 1,
            Rcode::ServerFailure => 2,
            Rcode::NameError => 3,
            Rcode::NotImplemented => 4,
            Rcode::Refused => 5,
            Rcode::Other(code) => code,
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// About which name.
    pub name: Name,
    /// Which record type, or [`ANY`](super::ANY).
    pub kind: u16,
    /// Which class, nearly always [`IN`].
    pub class: u16,
}

/// What the sender of a message told by EDNS (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Edns {
    /// The longest message over UDP that it takes, bytes; at least 512.
    pub udp_size: u16,
}

/// A query: a message with one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Comes back in the response.
    pub id: u16,
    /// The header's bits.
    pub flags: Flags,
    /// The question.
    pub question: Question,
    /// What the asker told of itself.
    pub edns: Option<Edns>,
}

impl Query {
    /// Parses a message.
    ///
    /// # Errors
    /// The message is a response, does not hold exactly one question, or is malformed.
    pub fn parse(message: &[u8]) -> Result<Self, ParseError> {
        let (header, mut reader) = Header::read(message)?;
        if header.flags.contains(Flags::RESPONSE) {
            return Err(ParseError::new("dns-not-a-query"));
        }
        if header.questions != 1 {
            return Err(ParseError::new("dns-question-count"));
        }
        let question = Question::read(&mut reader)?;
        let mut edns = None;
        for _ in 0..header.answers {
            RawRecord::read(&mut reader)?;
        }
        for _ in 0..header.authorities {
            RawRecord::read(&mut reader)?;
        }
        for _ in 0..header.additionals {
            RawRecord::read(&mut reader)?.note_edns(&mut edns)?;
        }
        Ok(Self { id: header.id, flags: header.flags, question, edns })
    }

    /// The longest response over UDP that the asker takes, bytes.
    #[must_use]
    pub fn udp_size(&self) -> usize {
        usize::from(self.edns.map_or(MIN_UDP_SIZE, |edns| edns.udp_size))
    }

    /// The message's bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let header = Header {
            id: self.id,
            flags: self.flags,
            questions: 1,
            answers: 0,
            authorities: 0,
            additionals: u16::from(self.edns.is_some()),
        };
        let mut out = Vec::with_capacity(64);
        header.write(&mut out);
        self.question.write(&mut out);
        if let Some(edns) = self.edns {
            edns.write(&mut out);
        }
        out
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// As in the query.
    pub id: u16,
    /// The header's bits.
    pub flags: Flags,
    /// As in the query. Servers that could not read the question leave it out.
    pub question: Option<Question>,
    /// The answer.
    pub answers: Vec<Record>,
    /// Who is responsible; the SOA record of a negative answer (RFC 2308).
    pub authority: Vec<Record>,
    /// What the server tells of itself.
    pub edns: Option<Edns>,
}

impl Response {
    /// An empty response to `query`. If the query had EDNS, so has the response, with the asker's
    /// own size.
    #[must_use]
    pub fn to(query: &Query, rcode: Rcode) -> Self {
        let kept = Flags(query.flags.0 & (Flags::OPCODE | Flags::RECURSION_DESIRED.0));
        Self {
            id: query.id,
            flags: (kept | Flags::RESPONSE | Flags::RECURSION_AVAILABLE).with_rcode(rcode),
            question: Some(query.question.clone()),
            answers: Vec::new(),
            authority: Vec::new(),
            edns: query.edns,
        }
    }

    /// Parses a message. Records of other classes than [`IN`] are left out, and of the additional
    /// ones only EDNS is kept.
    ///
    /// # Errors
    /// The message is a query, holds several questions, or is malformed.
    pub fn parse(message: &[u8]) -> Result<Self, ParseError> {
        let (header, mut reader) = Header::read(message)?;
        if !header.flags.contains(Flags::RESPONSE) {
            return Err(ParseError::new("dns-not-a-response"));
        }
        let question = match header.questions {
            0 => None,
            1 => Some(Question::read(&mut reader)?),
            _ => return Err(ParseError::new("dns-question-count")),
        };
        let mut answers = Vec::new();
        for _ in 0..header.answers {
            answers.extend(RawRecord::read(&mut reader)?.parse()?);
        }
        let mut authority = Vec::new();
        for _ in 0..header.authorities {
            authority.extend(RawRecord::read(&mut reader)?.parse()?);
        }
        let mut edns = None;
        for _ in 0..header.additionals {
            RawRecord::read(&mut reader)?.note_edns(&mut edns)?;
        }
        Ok(Self { id: header.id, flags: header.flags, question, answers, authority, edns })
    }

    /// True if this can be the response to `query`: identification and question are the same
    /// (RFC 5452 section 9.1). The sender's address is for the caller to check.
    #[must_use]
    pub fn answers(&self, query: &Query) -> bool {
        self.id == query.id && self.question.as_ref() == Some(&query.question)
    }

    /// The message's bytes. If there would be more than `limit`, the records are left out and the
    /// message says that it was truncated.
    #[must_use]
    pub fn emit(&self, limit: usize) -> Vec<u8> {
        let whole = self.write(self.flags, &self.answers, &self.authority);
        match whole {
            Some(message) if message.len() <= limit => message,
            _ => self.write(self.flags | Flags::TRUNCATED, &[], &[]).unwrap_or_default(),
        }
    }

    /// `None` if a count or length does not fit its field.
    fn write(&self, flags: Flags, answers: &[Record], authority: &[Record]) -> Option<Vec<u8>> {
        let header = Header {
            id: self.id,
            flags,
            questions: u16::from(self.question.is_some()),
            answers: u16::try_from(answers.len()).ok()?,
            authorities: u16::try_from(authority.len()).ok()?,
            additionals: u16::from(self.edns.is_some()),
        };
        let mut out = Vec::with_capacity(128);
        header.write(&mut out);
        if let Some(question) = &self.question {
            question.write(&mut out);
        }
        let known = self.question.as_ref().map(|question| (&question.name, QUESTION_AT));
        for record in answers.iter().chain(authority) {
            record.write(&mut out, known)?;
        }
        if let Some(edns) = self.edns {
            edns.write(&mut out);
        }
        Some(out)
    }
}

/// The response to a query that cannot be read: a header that says so. `None` if there is not even
/// a query's header to answer to.
#[must_use]
pub fn format_error(message: &[u8]) -> Option<[u8; HEADER_LEN]> {
    let (header, _) = Header::read(message).ok()?;
    if header.flags.contains(Flags::RESPONSE) {
        return None;
    }
    let kept = Flags(header.flags.0 & (Flags::OPCODE | Flags::RECURSION_DESIRED.0));
    let [f0, f1] = (kept | Flags::RESPONSE).with_rcode(Rcode::FormatError).0.to_be_bytes();
    let [i0, i1] = header.id.to_be_bytes();
    Some([i0, i1, f0, f1, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// Gives a message another identification, as a forwarder does with what it passes on.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.first_chunk_mut() {
        *field = id.to_be_bytes();
    }
}

/// A message behind its length, as it goes into a stream, in one piece (RFC 1035 section 4.2.2, RFC 7766
/// section 8); `None` if it is longer than a length can say.
#[must_use]
pub fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(message.len()).ok()?;
    Some([&len.to_be_bytes(), message].concat())
}

/// A resource record of class [`IN`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// About which name.
    pub name: Name,
    /// How long it may be kept, seconds.
    pub ttl: u32,
    /// What it says.
    pub data: Data,
}

/// The data of a [`Record`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// The name of an address.
    Ptr(Name),
    /// The name that the record's name stands for.
    Cname(Name),
    /// The zone's own record.
    Soa(Soa),
    /// Where a service is (RFC 2782).
    Srv(Srv),
    /// A record that is not understood.
    Other {
        /// Record type.
        kind: u16,
        /// The data as it stood in its message. Names in it may be compressed and then mean nothing
        /// elsewhere.
        bytes: Vec<u8>,
    },
}

impl Data {
    /// The record type.
    #[must_use]
    pub fn kind(&self) -> u16 {
        match self {
            Self::A(_) => A,
            Self::Aaaa(_) => AAAA,
            Self::Ptr(_) => PTR,
            Self::Cname(_) => CNAME,
            Self::Soa(_) => SOA,
            Self::Srv(_) => SRV,
            Self::Other { kind, .. } => *kind,
        }
    }

    /// A text, in as many strings as it takes (RFC 1035 section 3.3.14).
    #[must_use]
    pub fn text(text: &str) -> Self {
        let mut bytes = Vec::with_capacity(text.len().saturating_add(1));
        for piece in text.as_bytes().chunks(MAX_STRING_LEN) {
            bytes.extend(u8::try_from(piece.len()));
            bytes.extend_from_slice(piece);
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
        Self::Other { kind: TXT, bytes }
    }
}

impl From<IpAddr> for Data {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::A(address),
            IpAddr::V6(address) => Self::Aaaa(address),
        }
    }
}

/// Where a service is (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// Those with the lowest number are tried first.
    pub priority: u16,
    /// Among equals: how often this one is taken.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The name of the machine.
    pub target: Name,
}

/// The record at the top of a zone (RFC 1035 section 3.3.13). Times are in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soa {
    /// The primary server.
    pub primary: Name,
    /// Mailbox of who is responsible.
    pub mailbox: Name,
    /// Version of the zone.
    pub serial: u32,
    /// How often secondaries look.
    pub refresh: u32,
    /// How soon they look again after a failure.
    pub retry: u32,
    /// How long they go on without.
    pub expire: u32,
    /// How long a negative answer may be kept (RFC 2308 section 4).
    pub minimum: u32,
}

impl Record {
    fn write(&self, out: &mut Vec<u8>, known: Option<(&Name, u16)>) -> Option<()> {
        self.name.write(out, known);
        out.extend_from_slice(&self.data.kind().to_be_bytes());
        out.extend_from_slice(&IN.to_be_bytes());
        out.extend_from_slice(&self.ttl.to_be_bytes());
        let len_at = out.len();
        out.extend_from_slice(&[0; 2]);
        let data_at = out.len();
        match &self.data {
            Data::A(address) => out.extend_from_slice(&address.octets()),
            Data::Aaaa(address) => out.extend_from_slice(&address.octets()),
            Data::Ptr(name) | Data::Cname(name) => name.write(out, known),
            Data::Soa(soa) => {
                soa.primary.write(out, known);
                soa.mailbox.write(out, known);
                for number in [soa.serial, soa.refresh, soa.retry, soa.expire, soa.minimum] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
            }
            Data::Srv(srv) => {
                for number in [srv.priority, srv.weight, srv.port] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
                // Not compressed: RFC 2782.
                srv.target.write(out, None);
            }
            Data::Other { bytes, .. } => out.extend_from_slice(bytes),
        }
        let len = u16::try_from(out.len().checked_sub(data_at)?).ok()?;
        *out.get_mut(len_at..data_at)?.first_chunk_mut()? = len.to_be_bytes();
        Some(())
    }
}

impl Question {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        let name = Name::read(reader)?;
        Ok(Self { name, kind: reader.u16()?, class: reader.u16()? })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        self.name.write(out, None);
        out.extend_from_slice(&self.kind.to_be_bytes());
        out.extend_from_slice(&self.class.to_be_bytes());
    }
}

impl Edns {
    /// RFC 6891 section 6.1.2: the root's name, the size in place of the class, then extended
    /// response code, version and flags, all zero, and no options.
    fn write(self, out: &mut Vec<u8>) {
        let [k0, k1] = OPT.to_be_bytes();
        let [s0, s1] = self.udp_size.to_be_bytes();
        out.extend_from_slice(&[0, k0, k1, s0, s1, 0, 0, 0, 0, 0, 0]);
    }
}

/// The fixed part of a message.
pub(super) struct Header {
    id: u16,
    pub(super) flags: Flags,
    pub(super) questions: u16,
    pub(super) answers: u16,
    pub(super) authorities: u16,
    pub(super) additionals: u16,
}

impl Header {
    pub(super) fn read(message: &[u8]) -> Result<(Self, Reader<'_>), ParseError> {
        let mut reader = Reader { message, rest: message };
        let header = Self {
            id: reader.u16()?,
            flags: Flags(reader.u16()?),
            questions: reader.u16()?,
            answers: reader.u16()?,
            authorities: reader.u16()?,
            additionals: reader.u16()?,
        };
        Ok((header, reader))
    }

    /// That of a query by multicast (RFC 6762 section 18).
    pub(super) fn of_questions(questions: u16) -> Self {
        let (id, flags) = (0, Flags::default());
        Self { id, flags, questions, answers: 0, authorities: 0, additionals: 0 }
    }

    /// That of a response by multicast, from who is responsible for its names (RFC 6762 section 18).
    pub(super) fn of_answers(answers: u16) -> Self {
        let flags = Flags::RESPONSE | Flags::AUTHORITATIVE;
        Self { id: 0, flags, questions: 0, answers, authorities: 0, additionals: 0 }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let counts = [self.questions, self.answers, self.authorities, self.additionals];
        for field in [self.id, self.flags.0].into_iter().chain(counts) {
            out.extend_from_slice(&field.to_be_bytes());
        }
    }
}

/// A record whose data has not been looked at.
pub(super) struct RawRecord<'a> {
    pub(super) name: Name,
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    /// Reads the data; the message around it is there for compressed names.
    pub(super) data: Reader<'a>,
}

impl<'a> RawRecord<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let name = Name::read(reader)?;
        let (kind, class, ttl) = (reader.u16()?, reader.u16()?, reader.u32()?);
        let len = usize::from(reader.u16()?);
        let data = reader.split(len)?;
        Ok(Self { name, kind, class, ttl, data })
    }

    /// The record with its data; `None` if it is of another class.
    fn parse(mut self) -> Result<Option<Record>, ParseError> {
        if self.class != IN {
            return Ok(None);
        }
        let data = &mut self.data;
        let value = match self.kind {
            A => Data::A(Ipv4Addr::from(data.array::<4>()?)),
            AAAA => Data::Aaaa(Ipv6Addr::from(data.array::<16>()?)),
            PTR => Data::Ptr(Name::read(data)?),
            CNAME => Data::Cname(Name::read(data)?),
            SOA => Data::Soa(Soa {
                primary: Name::read(data)?,
                mailbox: Name::read(data)?,
                serial: data.u32()?,
                refresh: data.u32()?,
                retry: data.u32()?,
                expire: data.u32()?,
                minimum: data.u32()?,
            }),
            SRV => Data::Srv(Srv {
                priority: data.u16()?,
                weight: data.u16()?,
                port: data.u16()?,
                target: Name::read(data)?,
            }),
            kind => Data::Other { kind, bytes: data.take_rest().to_vec() },
        };
        if !data.rest.is_empty() {
            return Err(ParseError::new("dns-data-length"));
        }
        Ok(Some(Record { name: self.name, ttl: self.ttl, data: value }))
    }

    /// Remembers the record if it is EDNS; a message has at most one (RFC 6891 section 6.1.1).
    fn note_edns(self, edns: &mut Option<Edns>) -> Result<(), ParseError> {
        if self.kind != OPT {
            return Ok(());
        }
        let told = Edns { udp_size: self.class.max(MIN_UDP_SIZE) };
        match edns.replace(told) {
            None => Ok(()),
            Some(_) => Err(ParseError::new("dns-edns-count")),
        }
    }
}

/// Reads a message from front to back.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    message: &'a [u8],
    /// What has not been read; a part of `message`, which may end before it.
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// How much of the message lies before what has not been read, bytes.
    pub(super) fn position(&self) -> usize {
        self.message.len().saturating_sub(self.rest.len())
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn set_rest(&mut self, rest: &'a [u8]) {
        self.rest = rest;
    }

    /// The message from a byte on; nothing if it ends before.
    pub(super) fn from(&self, position: usize) -> &'a [u8] {
        self.message.get(position..).unwrap_or_default()
    }

    /// A reader of the next `len` bytes only, which are skipped here.
    pub(super) fn split(&mut self, len: usize) -> Result<Self, ParseError> {
        let start = self.position();
        let (_, rest) = self.rest.split_at_checked(len).ok_or(ParseError::new("dns-truncated"))?;
        self.rest = rest;
        // The part's message ends where the part ends, so that positions keep their meaning.
        let message = self.message.get(..self.position()).unwrap_or_default();
        Ok(Self { message, rest: message.get(start..).unwrap_or_default() })
    }

    fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let (array, rest) =
            self.rest.split_first_chunk().ok_or(ParseError::new("dns-truncated"))?;
        self.rest = rest;
        Ok(*array)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ParseError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ParseError> {
        self.array().map(u32::from_be_bytes)
    }
}
