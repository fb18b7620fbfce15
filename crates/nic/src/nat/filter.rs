//! Who may send to an external address: one step of RFC 5780, section 4.4.
//!
//! Silence proves nothing by itself. It is believed when the question was repeated, when the socket was
//! seen to be alive behind each silence, and when in the end the very same question is answered once the
//! socket has sent to where the answer comes from. A server that ignores or cannot do what it is
//! asked fails that last check, and can make no NAT look better or worse than it is.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::examine::{Examiner, Site};
use crate::stun::ask::read_answer;
use crate::stun::machine::{Port, Socket};
use crate::stun::{Change, Failure, Question, TransactionId};

/// How often silence must repeat itself.
const REPEATS: u32 = 3;
/// How long an answer is waited for, at least; behind twice the round trip where that is longer.
const PATIENCE: Duration = Duration::from_millis(400);
/// Copies of the question in that time.
const COPIES: u32 = 3;
/// No round trip is taken to be longer.
const LONGEST_ROUND: Duration = Duration::from_secs(1);

/// Whether answers come in from where nothing was sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// They do.
    Open,
    /// They do not.
    Closed {
        /// The server was seen to have sent them.
        proven: bool,
    },
    /// It cannot be told, because of this.
    Unknown(String),
}

/// What was heard in one wait.
enum Heard {
    /// The answer, from where it should come.
    Right,
    /// The answer, from elsewhere.
    Elsewhere(SocketAddr),
    /// A refusal.
    Refused(Failure),
    Nothing,
}

impl Examiner {
    /// Tells whether an answer comes in from `origin`, which the server is asked to send it from.
    pub(super) async fn gate(&self, site: Site, change: Change, origin: SocketAddr) -> Gate {
        match self.try_gate(site, change, origin).await {
            Ok(gate) => gate,
            Err(reason) => Gate::Unknown(reason),
        }
    }

    async fn try_gate(
        &self,
        site: Site,
        change: Change,
        origin: SocketAddr,
    ) -> Result<Gate, String> {
        // A fresh socket: what was sent before decides what the filter lets in.
        let socket = self.open(Port::Any).await?;
        let plain = Question::plain(site.primary, site.classic);
        let first = self
            .ask("filtering", &socket, plain)
            .await
            .map_err(|error| format!("{} does not answer any more: {error}", site.primary))?;
        let patience = PATIENCE.max(first.rtt.min(LONGEST_ROUND) * 2 + PATIENCE / 2);
        let question = plain.from_elsewhere(change, origin);
        let id = self.line.id(site.classic);
        for _ in 0..REPEATS {
            if let Some(gate) = told(self.listen(&socket, id, &question, patience).await, origin)? {
                return Ok(gate);
            }
            let alive = self
                .ask("still there", &socket, plain)
                .await
                .map_err(|error| format!("{} does not answer any more: {error}", site.primary))?;
            if alive.mapped != first.mapped {
                return Err("the external address changed while it was tested".to_owned());
            }
        }
        let control = self
            .ask("control", &socket, Question::plain(origin, site.classic))
            .await
            .map_err(|error| format!("the server's other endpoint {origin} is silent: {error}"))?;
        if control.mapped != first.mapped {
            // Another mapping was opened to there, not this one's filter: no control can be had.
            return Ok(Gate::Closed { proven: false });
        }
        let again = self.line.id(site.classic);
        for _ in 0..REPEATS {
            match self.listen(&socket, again, &question, patience).await {
                Heard::Right => {
                    // Was one of the earlier answers only slow?
                    let late = self.heard(&socket, id, &question, self.line.now()).await;
                    let is_late = matches!(late, Heard::Right);
                    return Ok(if is_late { Gate::Open } else { Gate::Closed { proven: true } });
                }
                Heard::Nothing => {}
                other => {
                    if let Some(gate) = told(other, origin)? {
                        return Ok(gate);
                    }
                }
            }
        }
        Err(format!("the server does not answer from {origin}, even where nothing stops it"))
    }

    /// Sends the question a few times and listens for as long as is said.
    async fn listen(
        &self,
        socket: &Socket,
        id: TransactionId,
        question: &Question,
        patience: Duration,
    ) -> Heard {
        let bytes = question.to_bytes(id);
        for _ in 0..COPIES {
            socket.send(question.to, &bytes);
            let until = self.line.now() + patience / COPIES;
            match self.heard(socket, id, question, until).await {
                Heard::Nothing => {}
                heard => return heard,
            }
        }
        Heard::Nothing
    }

    async fn heard(
        &self,
        socket: &Socket,
        id: TransactionId,
        question: &Question,
        until: Instant,
    ) -> Heard {
        let answer = socket.recv(until, |datagram| {
            Some((datagram.from, read_answer(id, datagram.from, &datagram.bytes)?))
        });
        match answer.await {
            None => Heard::Nothing,
            Some((from, Ok(_))) if from == question.expect => Heard::Right,
            Some((from, Ok(_))) => Heard::Elsewhere(from),
            Some((_, Err(failure))) => Heard::Refused(failure),
        }
    }
}

/// What was heard, as a verdict; none for silence.
fn told(heard: Heard, origin: SocketAddr) -> Result<Option<Gate>, String> {
    match heard {
        Heard::Right => Ok(Some(Gate::Open)),
        Heard::Nothing => Ok(None),
        Heard::Elsewhere(from) => {
            Err(format!("asked to answer from {origin}, the server answers from {from}"))
        }
        Heard::Refused(failure) => Err(format!("asked to answer from {origin}: {failure}")),
    }
}
