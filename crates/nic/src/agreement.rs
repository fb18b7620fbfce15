//! What several servers say about one address, and whether they agree.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A question to servers outside: as whom do you see what I send from here?
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Probe {
    /// The number of the card by which it has to leave; `None`: the kernel's choice.
    pub card: Option<u32>,
    /// The address to send from.
    pub from: IpAddr,
}

/// Why a server has not said anything of use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProbeError {
    /// The kernel does not let us send from this address, or has no way to the server.
    #[error("cannot send: {0}")]
    CannotSend(String),
    /// Nothing came back in time.
    #[error("no answer")]
    NoAnswer,
    /// What came back is of no use: an error, or nonsense.
    #[error("{0}")]
    BadAnswer(String),
    /// The server's name is not known, or has no address of this family.
    #[error("{0}")]
    Name(String),
}

/// What one server said: evidence, kept with the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The server, as the user named it.
    pub server: String,
    /// The address and port that it saw, or why there is none.
    pub seen: Result<SocketAddr, ProbeError>,
    /// How long it took from the first question to the end, to the microsecond.
    pub took: Duration,
}

/// Asks servers which address they see. The one who implements it resolves names, repeats what is lost,
/// and sends from [`Probe::from`] by [`Probe::card`].
pub trait Prober {
    /// Asks, tells `agreement` each answer, and may stop once that is [settled](Agreement::is_settled).
    fn probe(&self, probe: Probe, agreement: Agreement) -> impl Future<Output = Agreement> + Send;
}

impl<P: Prober + Sync> Prober for &P {
    fn probe(&self, probe: Probe, agreement: Agreement) -> impl Future<Output = Agreement> + Send {
        (**self).probe(probe, agreement)
    }
}

/// How sure something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// As many servers as were wanted said the same.
    Proven,
    /// Fewer servers than were wanted answered, and none said otherwise.
    Single,
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proven => "proven",
            Self::Single => "single",
        })
    }
}

/// What came of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// This is the address.
    Seen(IpAddr, Confidence),
    /// Servers saw different addresses, and no side has more voices than every other.
    Disagreement,
    /// Nobody said anything of use.
    Silence,
    /// The kernel did not let us ask anybody.
    CannotSend,
}

/// Collects answers until enough servers say the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    wanted: usize,
    answers: Vec<Answer>,
}

impl Agreement {
    /// How many equal answers are wanted unless the user says otherwise.
    pub const WANTED: usize = 2;

    /// One that wants `wanted` equal answers, at least one.
    #[must_use]
    pub fn new(wanted: usize) -> Self {
        Self { wanted: wanted.max(1), answers: Vec::new() }
    }

    /// A server has answered, or is given up. Only the first answer of each server counts.
    pub fn handle_answer(&mut self, mut answer: Answer) {
        // What is kept is what can be written down.
        answer.took -= Duration::from_nanos((answer.took.subsec_nanos() % 1000).into());
        if self.answers.iter().all(|known| known.server != answer.server) {
            self.answers.push(answer);
        }
    }

    /// True once enough servers say the same and nobody has more voices.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self.verdict(), Verdict::Seen(_, Confidence::Proven))
    }

    /// What they say, up to now.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let mut voices: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for seen in self.answers.iter().filter_map(|answer| answer.seen.as_ref().ok()) {
            *voices.entry(seen.ip().to_canonical()).or_default() += 1;
        }
        let Some((address, most)) = voices.iter().max_by_key(|(_, voices)| **voices) else {
            let unsent = |answer: &Answer| matches!(answer.seen, Err(ProbeError::CannotSend(_)));
            let never_sent = !self.answers.is_empty() && self.answers.iter().all(unsent);
            return if never_sent { Verdict::CannotSend } else { Verdict::Silence };
        };
        if voices.values().filter(|voices| *voices == most).count() > 1 {
            Verdict::Disagreement
        } else if *most >= self.wanted {
            Verdict::Seen(*address, Confidence::Proven)
        } else if voices.len() == 1 {
            Verdict::Seen(*address, Confidence::Single)
        } else {
            Verdict::Disagreement
        }
    }

    /// The answers, in the order in which they came.
    #[must_use]
    pub fn answers(&self) -> &[Answer] {
        &self.answers
    }

    /// The answers, to be kept.
    #[must_use]
    pub fn into_answers(self) -> Vec<Answer> {
        self.answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(wanted: usize, seen: &[Option<&str>]) -> Agreement {
        let mut agreement = Agreement::new(wanted);
        for (number, address) in seen.iter().enumerate() {
            let address = address.map(|address| SocketAddr::new(address.parse().unwrap(), 4000));
            agreement.handle_answer(Answer {
                server: format!("server-{number}:3478"),
                seen: address.ok_or(ProbeError::NoAnswer),
                took: Duration::from_millis(20),
            });
        }
        agreement
    }

    fn seen(address: &str, confidence: Confidence) -> Verdict {
        Verdict::Seen(address.parse().unwrap(), confidence)
    }

    #[test]
    fn enough_equal_answers_are_proof_and_a_minority_is_kept() {
        let two = heard(2, &[Some("1.3.3.7"), Some("1.3.3.7")]);
        assert_eq!(two.verdict(), seen("1.3.3.7", Confidence::Proven));
        assert!(two.is_settled());
        let outvoted = heard(2, &[Some("9.9.9.9"), Some("1.3.3.7"), Some("1.3.3.7")]);
        assert_eq!(outvoted.verdict(), seen("1.3.3.7", Confidence::Proven));
        assert_eq!(outvoted.answers().len(), 3, "the minority is evidence");
    }

    #[test]
    fn one_that_answers_alone_is_believed_and_marked() {
        let alone = heard(2, &[None, Some("1.3.3.7"), None]);
        assert_eq!(alone.verdict(), seen("1.3.3.7", Confidence::Single));
        assert!(!alone.is_settled());
        assert_eq!(heard(1, &[Some("1.3.3.7")]).verdict(), seen("1.3.3.7", Confidence::Proven));
    }

    #[test]
    fn different_answers_are_no_answer() {
        for seen in [
            &[Some("1.1.1.1"), Some("2.2.2.2")][..],
            &[Some("1.1.1.1"), Some("2.2.2.2"), Some("3.3.3.3")],
            &[Some("1.1.1.1"), Some("2.2.2.2"), Some("1.1.1.1"), Some("2.2.2.2")],
        ] {
            assert_eq!(heard(2, seen).verdict(), Verdict::Disagreement, "{seen:?}");
        }
        let outvoted = heard(3, &[Some("1.1.1.1"), Some("1.1.1.1"), Some("2.2.2.2")]);
        assert_eq!(outvoted.verdict(), Verdict::Disagreement, "three were wanted");
    }

    #[test]
    fn silence_is_told_from_what_could_not_be_sent() {
        assert_eq!(heard(2, &[]).verdict(), Verdict::Silence);
        assert_eq!(heard(2, &[None, None]).verdict(), Verdict::Silence);
        let mut unsent = Agreement::new(2);
        unsent.handle_answer(Answer {
            server: "a:3478".into(),
            seen: Err(ProbeError::CannotSend("no such address".into())),
            took: Duration::ZERO,
        });
        assert_eq!(unsent.verdict(), Verdict::CannotSend);
    }

    #[test]
    fn a_server_has_one_voice() {
        let mut agreement = heard(2, &[Some("1.3.3.7")]);
        let again = agreement.answers()[0].clone();
        agreement.handle_answer(again);
        assert_eq!(agreement.verdict(), seen("1.3.3.7", Confidence::Single));
    }
}
