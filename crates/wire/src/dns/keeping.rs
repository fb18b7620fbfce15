//! Answers that are kept for whoever asks the same again: which may be, for how long, and what they say when
//! they are older.

use super::message::{Header, Reader};
use super::{ANY, Flags, HEADER_LEN, Name, OPT, Query, Question, Rcode, Record, Response, SOA};
use crate::ParseError;

/// The longest that an answer is kept, seconds: a day, and five minutes if it says that something is not there,
/// less than RFC 2308 section 5 allows, since what is missed there may come any time.
const LONGEST: u32 = 86_400;
const LONGEST_NEGATIVE: u32 = 300;

/// What of a query beside its question its answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Manner {
    /// Recursion desired, authentic data, checking disabled.
    flags: u16,
    /// With EDNS: whether signatures are wanted (RFC 3225).
    edns: Option<bool>,
}

impl Manner {
    const FLAGS: u16 = 0x0130;
    /// The bit for signatures, in the place of a TTL.
    const DNSSEC_OK: u32 = 0x8000;

    /// The manner of a query. `None`: its answer may be for this asker alone, as with options of EDNS, or it is
    /// no ordinary query.
    #[must_use]
    pub fn of(query: &[u8]) -> Option<Self> {
        let (header, mut reader) = Header::read(query).ok()?;
        let plain = header.flags.opcode() == 0
            && (header.questions, header.answers, header.authorities) == (1, 0, 0);
        Question::read(&mut reader).ok().filter(|_| plain)?;
        let edns = match header.additionals {
            0 => None,
            1 => {
                let record = Place::read(&mut reader).ok()?;
                let known = record.ttl & !Self::DNSSEC_OK == 0;
                (record.kind == OPT && record.is_empty && known).then_some(())?;
                Some(record.ttl & Self::DNSSEC_OK != 0)
            }
            _ => return None,
        };
        Some(Self { flags: header.flags.0 & Self::FLAGS, edns })
    }
}

/// An answer that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    message: Vec<u8>,
    /// Where the times stand that its records may be kept.
    ttls: Vec<usize>,
    lifetime: u32,
    /// It says that something is not there.
    is_negative: bool,
}

impl Kept {
    /// Keeps an answer. `None`: it may not be kept, or is malformed.
    #[must_use]
    pub fn of(message: &[u8]) -> Option<Self> {
        let (header, mut reader) = Header::read(message).ok()?;
        let flags = header.flags;
        let whole = flags.contains(Flags::RESPONSE) && !flags.contains(Flags::TRUNCATED);
        if !whole || header.questions != 1 {
            return None;
        }
        let question = Question::read(&mut reader).ok()?;
        // Whoever asks for whatever there is gets what the server has at hand.
        (question.kind != ANY).then_some(())?;
        let (mut ttls, mut lifetime) = (Vec::new(), LONGEST);
        let (mut answered, mut negative) = (false, None);
        let sections = [header.answers, header.authorities, header.additionals];
        for (section, count) in sections.into_iter().enumerate() {
            for _ in 0..count {
                let record = Place::read(&mut reader).ok()?;
                if record.kind == OPT {
                    continue;
                }
                ttls.push(record.ttl_at);
                // RFC 2181 section 8: the highest bit is a mistake.
                let ttl = if record.ttl > i32::MAX.unsigned_abs() { 0 } else { record.ttl };
                lifetime = lifetime.min(ttl);
                answered |= section == 0 && record.kind == question.kind;
                if section == 1 && record.kind == SOA {
                    negative = record.minimum.map(|minimum| minimum.min(LONGEST_NEGATIVE));
                }
            }
        }
        let is_negative = match flags.rcode() {
            Rcode::NoError => !answered,
            Rcode::NameError => true,
            _ => return None,
        };
        if is_negative {
            // RFC 2308 section 5: without the zone's record nobody says for how long.
            lifetime = lifetime.min(negative?);
        }
        ttls.shrink_to_fit();
        (lifetime > 0 && says_the_same_at_any_time(message, &ttls)).then(|| Self {
            message: message.to_vec(),
            ttls,
            lifetime,
            is_negative,
        })
    }

    /// How long it may be kept, seconds; not 0.
    #[must_use]
    pub fn lifetime(&self) -> u32 {
        self.lifetime
    }

    /// What it takes, with the places of its times, bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.message.len().saturating_add(size_of_val(self.ttls.as_slice()))
    }

    /// The answer for a query of the same question, after so many seconds.
    #[must_use]
    pub fn answer(&self, query: &Query, age: u32) -> Vec<u8> {
        let mut message = self.message.clone();
        super::set_id(&mut message, query.id);
        // Whoever asks keeps that something is not there no longer than is known here.
        let longest = if self.is_negative { self.lifetime } else { u32::MAX };
        for at in &self.ttls {
            let field = message.get_mut(*at..).and_then(<[u8]>::first_chunk_mut);
            if let Some(field) = field {
                let ttl = u32::from_be_bytes(*field).min(longest);
                *field = ttl.saturating_sub(age).to_be_bytes();
            }
        }
        // Askers may look whether the name comes back in the case that they wrote it in.
        let name = query.question.name.as_wire();
        let stands = HEADER_LEN..HEADER_LEN.saturating_add(name.len());
        if let Some(own) = message.get_mut(stands)
            && own.eq_ignore_ascii_case(name)
        {
            own.copy_from_slice(name);
        }
        message
    }
}

/// Whether no name that is read here runs through the places of times, or through the identification, as a pointer may
/// lead there: with others there would be other names.
fn says_the_same_at_any_time(message: &[u8], ttls: &[usize]) -> bool {
    let mut other = message.to_vec();
    super::set_id(&mut other, 0xffff);
    for at in ttls {
        if let Some(field) = other.get_mut(*at..).and_then(<[u8]>::first_chunk_mut::<4>) {
            // No beginning of a label, and a pointer farther than messages are kept.
            *field = [0xff; 4];
        }
    }
    let (Ok(one), Ok(other)) = (Response::parse(message), Response::parse(&other)) else {
        return false;
    };
    let same = |one: &[Record], other: &[Record]| {
        one.iter().map(|it| (&it.name, &it.data)).eq(other.iter().map(|it| (&it.name, &it.data)))
    };
    same(&one.answers, &other.answers) && same(&one.authority, &other.authority)
}

/// What of a record is of interest here.
struct Place {
    kind: u16,
    ttl: u32,
    ttl_at: usize,
    /// It has no data.
    is_empty: bool,
    /// Of a zone's own record.
    minimum: Option<u32>,
}

impl Place {
    fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        Name::read(reader)?;
        let kind = reader.u16()?;
        reader.u16()?;
        let ttl_at = reader.position();
        let ttl = reader.u32()?;
        let len = usize::from(reader.u16()?);
        let mut data = reader.split(len)?;
        let mut minimum = None;
        if kind == SOA {
            Name::read(&mut data)?;
            Name::read(&mut data)?;
            for _ in 0..5 {
                minimum = Some(data.u32()?);
            }
        }
        Ok(Self { kind, ttl, ttl_at, is_empty: len == 0, minimum })
    }
}
