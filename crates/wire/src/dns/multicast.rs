//! Messages of Multicast DNS (RFC 6762), as somebody needs them who passes them on.

use super::message::{Header, RawRecord};
use super::{A, AAAA, CNAME, Flags, HEADER_LEN, IN, NSEC, Name, PTR, Question, SRV, TXT};
use crate::ParseError;

/// What the highest bit of a class means in a question: the answer may come to the asker alone (RFC 6762
/// section 18.12).
const UNICAST_RESPONSE: u16 = 0x8000;

/// What the highest bit of a class means in a record: others forget what they know (RFC 6762 section 10.2).
const CACHE_FLUSH: u16 = 0x8000;

/// Record type (RFC 1035 section 3.3.2): what a machine is.
const HINFO: u16 = 13;

/// Questions that one message may hold.
const MAX_QUESTIONS: u16 = 64;

/// A query by multicast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MulticastQuery {
    /// What it asks, which the bit that asks for an answer to one alone is taken from. May be nothing: what the asker
    /// knows already may take several messages (RFC 6762 section 7.2).
    pub questions: Vec<Question>,
    /// It says which records its sender is about to claim (RFC 6762 section 8.1).
    pub is_probe: bool,
}

impl MulticastQuery {
    /// Parses a message; `None` if it is a response, or of a kind that is to be ignored (RFC 6762 sections 18.3
    /// and 18.11).
    ///
    /// # Errors
    /// It is malformed, or asks too much.
    pub fn parse(message: &[u8]) -> Result<Option<Self>, ParseError> {
        let (header, mut reader) = Header::read(message)?;
        if header.flags.contains(Flags::RESPONSE) || !is_ordinary(header.flags) {
            return Ok(None);
        }
        if header.questions > MAX_QUESTIONS {
            return Err(ParseError::new("dns-question-count"));
        }
        let mut questions = Vec::new();
        for _ in 0..header.questions {
            let question = Question::read(&mut reader)?;
            questions.push(Question { class: question.class & !UNICAST_RESPONSE, ..question });
        }
        Ok(Some(Self { questions, is_probe: header.authorities > 0 }))
    }

    /// A message that asks this, of everybody and without what is known already.
    #[must_use]
    pub fn emit(questions: &[Question]) -> Vec<u8> {
        let count = questions.len().min(usize::from(MAX_QUESTIONS));
        let header = Header::of_questions(u16::try_from(count).unwrap_or(MAX_QUESTIONS));
        let mut out = Vec::with_capacity(128);
        header.write(&mut out);
        for question in questions.iter().take(count) {
            question.write(&mut out);
        }
        out
    }
}

/// A response by multicast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MulticastResponse {
    /// Its answers and what it has added to them; those of class [`IN`] and of the types that are known, [`NSEC`] among
    /// them: a name in another one may be compressed, and mean nothing elsewhere.
    pub records: Vec<MulticastRecord>,
}

/// A record of a response by multicast, that stands by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MulticastRecord {
    /// About which name.
    pub name: Name,
    kind: u16,
    /// With the bit that has others forget what they know (RFC 6762 section 10.2).
    class: u16,
    ttl: u32,
    /// Without compressed names.
    data: Vec<u8>,
}

impl MulticastResponse {
    /// Parses a message; `None` if it is a query, or of a kind that is to be ignored.
    ///
    /// # Errors
    /// It is malformed.
    pub fn parse(message: &[u8]) -> Result<Option<Self>, ParseError> {
        let (header, mut reader) = Header::read(message)?;
        if !header.flags.contains(Flags::RESPONSE) || !is_ordinary(header.flags) {
            return Ok(None);
        }
        // RFC 6762 section 6: there should be none, and they are ignored.
        for _ in 0..header.questions {
            Question::read(&mut reader)?;
        }
        let mut records = Vec::new();
        for (count, counts) in [
            (header.answers, true),
            // RFC 6762 section 18.9: they mean nothing.
            (header.authorities, false),
            (header.additionals, true),
        ] {
            for _ in 0..count {
                let record = RawRecord::read(&mut reader)?;
                if counts && record.class & !CACHE_FLUSH == IN {
                    records.extend(MulticastRecord::read(record)?);
                }
            }
        }
        Ok(Some(Self { records }))
    }
}

impl MulticastRecord {
    fn read(record: RawRecord<'_>) -> Result<Option<Self>, ParseError> {
        let RawRecord { name, kind, class, ttl, data: mut rest } = record;
        let mut data = Vec::new();
        match kind {
            A | AAAA | TXT | HINFO => {}
            PTR | CNAME | NSEC => data.extend(Name::read(&mut rest)?.as_wire()),
            SRV => {
                for _ in 0..3 {
                    data.extend(rest.u16()?.to_be_bytes());
                }
                data.extend(Name::read(&mut rest)?.as_wire());
            }
            _ => return Ok(None),
        }
        data.extend(rest.rest());
        Ok(Some(Self { name, kind, class, ttl, data }))
    }

    /// A response of these records, as far as there is room in `limit` bytes; with how many it holds.
    #[must_use]
    pub fn emit<'r>(records: impl IntoIterator<Item = &'r Self>, limit: usize) -> (Vec<u8>, u16) {
        let mut out = Vec::with_capacity(256);
        Header::of_answers(0).write(&mut out);
        let (mut count, mut first) = (0_u16, None);
        for record in records {
            let before = out.len();
            // Most names end as the first one does.
            let at = u16::try_from(HEADER_LEN).unwrap_or(u16::MAX);
            let Ok(len) = u16::try_from(record.data.len()) else { continue };
            record.name.write(&mut out, first.map(|first| (first, at)));
            out.extend(record.kind.to_be_bytes());
            out.extend(record.class.to_be_bytes());
            out.extend(record.ttl.to_be_bytes());
            out.extend(len.to_be_bytes());
            out.extend(&record.data);
            match count.checked_add(1).filter(|_| out.len() <= limit) {
                Some(more) => count = more,
                None => {
                    out.truncate(before);
                    continue;
                }
            }
            first = first.or(Some(&record.name));
        }
        let mut header = Vec::with_capacity(HEADER_LEN);
        Header::of_answers(count).write(&mut header);
        out.splice(..HEADER_LEN, header);
        (out, count)
    }
}

/// No other operation, and no error.
fn is_ordinary(flags: Flags) -> bool {
    const RCODE: u16 = 0x000f;
    flags.opcode() == 0 && flags.0 & RCODE == 0
}

#[cfg(test)]
mod tests {
    use super::super::PTR;
    use super::*;

    fn question(name: &str, class: u16) -> Question {
        Question { name: name.parse().unwrap(), kind: PTR, class }
    }

    #[test]
    fn a_query_comes_back_without_the_wish_for_an_answer_to_one_alone() {
        let sent = [question("_http._tcp.local", IN), question("web.local", IN | UNICAST_RESPONSE)];
        let message = MulticastQuery::emit(&sent);
        let query = MulticastQuery::parse(&message).unwrap().unwrap();
        assert_eq!(query.questions, [sent[0].clone(), question("web.local", IN)]);
        assert!(!query.is_probe);
        assert_eq!(MulticastResponse::parse(&message), Ok(None));
        for len in 0..message.len() {
            assert!(MulticastQuery::parse(&message[..len]).is_err(), "{len}");
        }
    }

    /// A response with one answer, the bit for caches set, an authority, and additional records of several types, whose
    /// names are compressed.
    fn response() -> Vec<u8> {
        let mut message = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 1, 0, 4];
        message.extend(b"\x03web\x05local\0\0\x0c\x80\x01\0\0\0\x78\0\x06\x03two\xc0\x10");
        message.extend(b"\x03own\xc0\x10\0\x01\0\x01\0\0\0\x78\0\x04\xc0\0\x02\x01");
        message.extend(b"\xc0\x21\0\x21\0\x01\0\0\0\x78\0\x08\0\0\0\x01\0\x50\xc0\x21");
        message.extend(b"\xc0\x21\0\x2f\0\x01\0\0\0\x78\0\x06\xc0\x21\0\x02\x40\0");
        // Of another class, and of a type that nothing is known of.
        message.extend(b"\xc0\x21\0\x01\0\x03\0\0\0\x78\0\x04\xc0\0\x02\x01");
        message.extend(b"\xc0\x21\0\x0f\0\x01\0\0\0\x78\0\x04\0\x01\xc0\x0c");
        message
    }

    #[test]
    fn records_of_a_response_stand_by_themselves() {
        let message = response();
        let records = MulticastResponse::parse(&message).unwrap().unwrap().records;
        let names: Vec<_> = records.iter().map(|it| (it.name.to_string(), it.kind)).collect();
        let expected = [("web.local", PTR), ("two.local", SRV), ("two.local", NSEC)];
        assert_eq!(names, expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert_eq!(records[0].data, b"\x03two\x05local\0");
        assert_eq!(records[1].data, b"\0\0\0\x01\0\x50\x03two\x05local\0");
        assert_eq!(records[2].data, b"\x03two\x05local\0\0\x02\x40\0");
        // Without the first one they say the same.
        let (rest, count) = MulticastRecord::emit(&records[1..], 9_000);
        assert_eq!(count, 2);
        let read = MulticastResponse::parse(&rest).unwrap().unwrap();
        assert_eq!(read.records, records[1..]);
        let (all, _) = MulticastRecord::emit(&records, 9_000);
        assert_eq!(MulticastResponse::parse(&all).unwrap().unwrap().records, records);
        // What does not fit is left out.
        let (fits, count) = MulticastRecord::emit(&records, rest.len());
        assert!(count < 3 && fits.len() <= rest.len());
        assert_eq!(
            MulticastRecord::emit(&records, 20),
            (vec![0, 0, 0x84, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0)
        );
    }

    #[test]
    fn responses_that_are_broken_or_say_that_there_is_an_error_are_none() {
        let mut message = response();
        assert_eq!(MulticastQuery::parse(&message), Ok(None));
        for len in 0..message.len() {
            assert!(MulticastResponse::parse(&message[..len]).is_err(), "{len}");
        }
        message[3] = 3;
        assert_eq!(MulticastResponse::parse(&message), Ok(None));
    }

    #[test]
    fn what_claims_names_or_asks_too_much_is_told() {
        let mut message = MulticastQuery::emit(&[question("web.local", IN)]);
        message[9] = 1;
        assert!(MulticastQuery::parse(&message).unwrap().unwrap().is_probe);
        message[5] = 65;
        assert!(MulticastQuery::parse(&message).is_err());
    }
}
