//! Asking several servers at once, and what they agree on.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::ask::{Answer, Asking, Failure, Question, Schedule};
use super::machine::{Line, Port, Socket};
use crate::agreement::{self, Agreement, ProbeError, Verdict};

/// Between the first copies to two servers beyond those that are asked at once.
const PACING: Duration = Duration::from_millis(50);
/// How long a first answer waits for one more server to confirm it, at least.
const GRACE: Duration = Duration::from_millis(250);

/// What one server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What it was asked.
    pub question: Question,
    /// From which local address.
    pub local: SocketAddr,
    /// Its answer.
    pub result: Result<Answer, Failure>,
}

/// Whether a server may lead to another endpoint: not to this machine's own services, nor to many machines at
/// once.
pub(crate) fn may_name(server: SocketAddr, other: SocketAddr) -> bool {
    let to_all = match other.ip() {
        IpAddr::V4(address) => address.is_broadcast() || address.is_multicast(),
        IpAddr::V6(address) => address.is_multicast(),
    };
    let to_itself = other.ip().is_loopback() && !server.ip().is_loopback();
    !to_all && !to_itself && !other.ip().is_unspecified() && other.port() != 0
}

/// Whether a survey goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enough {
    /// What there is, is enough.
    Now,
    /// It is enough at this time.
    At(Instant),
    /// It is not.
    No,
}

/// Asks many questions from one socket: the first `at_once` together, the others one by one behind
/// them. Replies are in the order in which they came; what was not waited for is left out.
pub(crate) async fn survey(
    socket: &Socket,
    questions: &[Question],
    at_once: usize,
    schedule: Schedule,
    enough: impl Fn(&[Reply], Instant) -> Enough,
) -> Vec<Reply> {
    let line = socket.line();
    let start = line.now();
    let mut asked: Vec<Asking> = questions
        .iter()
        .zip(0_u32..)
        .map(|(question, number)| {
            let behind = number.saturating_sub(u32::try_from(at_once).unwrap_or(u32::MAX) - 1);
            Asking::new(socket, *question, schedule, start + PACING * behind)
        })
        .collect();
    let mut replies: Vec<Reply> = Vec::new();
    let mut redirected = 0;
    loop {
        let now = line.now();
        let reply = |question: &Question, result| Reply {
            question: *question,
            local: socket.local(),
            result,
        };
        asked.retain_mut(|asking| match asking.go_on(socket, now) {
            Some(failure) => {
                replies.push(reply(asking.question(), Err(failure)));
                false
            }
            None => true,
        });
        let until = match enough(&replies, now) {
            Enough::Now => return replies,
            Enough::At(then) if then <= now => return replies,
            Enough::At(then) => Some(then),
            Enough::No => None,
        };
        let Some(next) = asked.iter().map(Asking::next).chain(until).min() else { return replies };
        let answered = socket
            .recv(next, |datagram| {
                asked.iter_mut().enumerate().find_map(|(place, asking)| {
                    asking.handle(datagram).map(|result| (place, result))
                })
            })
            .await;
        let Some((place, result)) = answered else { continue };
        let asking = asked.remove(place);
        // RFC 8489, section 10: a server may send to another one. One that sends on and on is left.
        if let Err(Failure::Elsewhere(server)) = result
            && redirected < questions.len()
            && server.is_ipv4() == socket.local().is_ipv4()
            && may_name(asking.question().to, server)
        {
            redirected += 1;
            let question = Question::plain(server, asking.question().classic);
            asked.push(Asking::new(socket, question, schedule, line.now()));
        }
        replies.push(reply(asking.question(), result));
    }
}

/// What to look an external address up with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Whom to ask, best first; of one address family. With their names as the user knows them.
    pub servers: Vec<(String, SocketAddr)>,
    /// How many are asked at once; others follow one by one until the agreement is settled.
    pub at_once: usize,
    /// In the form of RFC 3489.
    pub classic: bool,
    /// How patiently.
    pub schedule: Schedule,
    /// The local port to ask from.
    pub port: Port,
}

impl Lookup {
    /// Two at once, from any port.
    pub const fn new(servers: Vec<(String, SocketAddr)>) -> Self {
        Self {
            servers,
            at_once: Agreement::WANTED,
            classic: false,
            schedule: Schedule::QUICK,
            port: Port::Any,
        }
    }
}

/// The external address, as servers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The answers, and what they agree on.
    pub agreement: Agreement,
    /// All that came, in order.
    pub replies: Vec<Reply>,
    /// How long it took.
    pub took: Duration,
}

/// Looks the external address up that belongs to a fresh socket, until `agreement` is settled.
pub async fn lookup(line: Line, options: Lookup, mut agreement: Agreement) -> External {
    let began = line.now();
    let name = |address: SocketAddr| {
        let named = options.servers.iter().find(|(_, server)| *server == address);
        named.map_or_else(|| address.to_string(), |(name, _)| name.clone())
    };
    let replies = match line.open(options.port).await {
        Ok(socket) => {
            let questions: Vec<Question> = options
                .servers
                .iter()
                .map(|(_, server)| Question::plain(*server, options.classic))
                .collect();
            survey(&socket, &questions, options.at_once, options.schedule, |replies, _| {
                let mut agreement = agreement.clone();
                replies.iter().for_each(|reply| agreement.handle_answer(reply.voice(&name)));
                is_enough(&agreement, replies, began)
            })
            .await
        }
        Err(kind) => {
            let cannot = ProbeError::CannotSend(kind.to_string());
            for (server, _) in &options.servers {
                agreement.handle_answer(agreement::Answer {
                    server: server.clone(),
                    seen: Err(cannot.clone()),
                    took: Duration::ZERO,
                });
            }
            Vec::new()
        }
    };
    for reply in &replies {
        agreement.handle_answer(reply.voice(&name));
    }
    External { agreement, replies, took: line.now().duration_since(began) }
}

impl Reply {
    /// As a voice among others.
    fn voice(&self, name: &impl Fn(SocketAddr) -> String) -> agreement::Answer {
        let (seen, took) = match &self.result {
            Ok(answer) => (Ok(answer.mapped), answer.rtt),
            Err(Failure::Timeout { waited, .. }) => (Err(ProbeError::NoAnswer), *waited),
            Err(Failure::Socket(kind)) => {
                (Err(ProbeError::CannotSend(kind.to_string())), Duration::ZERO)
            }
            Err(other) => (Err(ProbeError::BadAnswer(other.to_string())), Duration::ZERO),
        };
        agreement::Answer { server: name(self.question.to), seen, took }
    }
}

/// Whether enough servers agree, or there is little hope that more will.
fn is_enough(agreement: &Agreement, replies: &[Reply], began: Instant) -> Enough {
    if agreement.is_settled() {
        return Enough::Now;
    }
    let answers = replies.iter().filter_map(|reply| reply.result.as_ref().ok());
    let Some(slowest) = answers.map(|answer| answer.rtt).max() else { return Enough::No };
    // Servers that contradict each other are worth a longer wait for a third.
    let patience = if agreement.verdict() == Verdict::Disagreement { 4 } else { 2 };
    Enough::At(began + slowest + (slowest * patience).max(GRACE * (patience / 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_lead_to_nobody_who_is_not_a_server_outside() {
        let named = |server: &str, other: &str| {
            may_name(SocketAddr::new(server.parse().unwrap(), 3478), other.parse().unwrap())
        };
        assert!(named("192.0.2.1", "192.0.2.2:3479") && named("192.0.2.1", "10.0.0.2:3479"));
        assert!(named("127.0.0.1", "127.0.0.2:3479"), "a server that is on this machine itself");
        for other in ["127.0.0.1:53", "224.0.0.251:5353", "255.255.255.255:9", "0.0.0.0:1"] {
            assert!(!named("192.0.2.1", other), "{other}");
        }
        assert!(!named("192.0.2.1", "192.0.2.2:0"), "no port");
        assert!(!named("2001:db8::1", "[::1]:53") && !named("2001:db8::1", "[ff02::fb]:5353"));
    }
}
