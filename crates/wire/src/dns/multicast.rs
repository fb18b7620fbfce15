//! Messages of Multicast DNS (RFC 6762), as somebody needs them who passes them on.

use super::message::{Header, RawRecord};
use super::{Flags, IN, Name, Question};
use crate::ParseError;

/// What the highest bit of a class means in a question: the answer may come to the asker alone (RFC 6762
/// section 18.12).
const UNICAST_RESPONSE: u16 = 0x8000;

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

/// The names that the records of a response by multicast are about, each as often as it comes. `None` if it is a query,
/// or of a kind that is to be ignored.
///
/// # Errors
/// It is malformed.
pub fn answered(message: &[u8]) -> Result<Option<Vec<Name>>, ParseError> {
    let (header, mut reader) = Header::read(message)?;
    if !header.flags.contains(Flags::RESPONSE) || !is_ordinary(header.flags) {
        return Ok(None);
    }
    // RFC 6762 section 6: there should be none, and they are ignored.
    for _ in 0..header.questions {
        Question::read(&mut reader)?;
    }
    let mut names = Vec::new();
    for count in [header.answers, header.authorities, header.additionals] {
        for _ in 0..count {
            let record = RawRecord::read(&mut reader)?;
            // The highest bit has others forget what they know (RFC 6762 section 10.2).
            if record.class & !UNICAST_RESPONSE == IN {
                names.push(record.name);
            }
        }
    }
    Ok(Some(names))
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
        assert_eq!(answered(&message), Ok(None));
        for len in 0..message.len() {
            assert!(MulticastQuery::parse(&message[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn records_of_a_response_are_named_whatever_they_say() {
        // A response with one answer of an unknown type, cache-flush bit set, and one additional record by a pointer.
        let mut message = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 1];
        message.extend(b"\x03web\x05local\0\xff\x01\x80\x01\0\0\0\x78\0\x02hi");
        message.extend(b"\x03two\xc0\x10\0\x01\0\x01\0\0\0\x78\0\x04\xc0\0\x02\x01");
        let names = answered(&message).unwrap().unwrap();
        assert_eq!(names, ["web.local".parse().unwrap(), "two.local".parse().unwrap()]);
        assert_eq!(MulticastQuery::parse(&message), Ok(None));
        for len in 0..message.len() {
            assert!(answered(&message[..len]).is_err(), "{len}");
        }
        message[3] = 3;
        assert_eq!(answered(&message), Ok(None));
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
