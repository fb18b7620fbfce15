//! The test of a NAT, as a story over sockets (see [`machine`](crate::stun::machine)).
//!
//! The two axes are tested at once from fresh sockets, because what was sent before changes what a filter
//! lets in (RFC 5780, section 4). Ports are looked at while the filter's silences are waited for: by then
//! all sockets of the other tests have their mappings, and nothing disturbs a NAT that counts.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::filter::Gate;
use super::kind::{Filtering, Mapping, NatType};
use super::report::{Confidence, Details, Evidence, Method, NatReport};
use crate::Family;
use crate::stun::client::{Enough, Reply, may_name, survey};
use crate::stun::machine::{Line, Port, Socket, both};
use crate::stun::{Answer, Change, Failure, Question, Schedule};

/// Servers without a second address are waited for so long behind the first answer.
const OTHERS: Duration = Duration::from_millis(500);

/// By which rules to test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rules {
    /// RFC 5780's, with what servers can do.
    #[default]
    Modern,
    /// RFC 3489's, with its requests.
    Classic,
}

/// What to test, and with whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The servers, best first; of one address family.
    pub servers: Vec<SocketAddr>,
    /// By which rules.
    pub rules: Rules,
    /// How external ports follow local ones: a dozen or two sockets.
    pub delta: bool,
    /// Whether packets to one's own external address come back in.
    pub hairpin: bool,
    /// How long mappings live, up to this; takes as long.
    pub lifetime: Option<Duration>,
    /// The gateway's own external address, if it told.
    pub gateway: Option<IpAddr>,
    /// Seconds since 1970 now.
    pub tested_at: Option<u64>,
}

impl Plan {
    /// What takes no more than two seconds: both axes and the ports.
    pub const fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            rules: Rules::Modern,
            delta: true,
            hairpin: false,
            lifetime: None,
            gateway: None,
            tested_at: None,
        }
    }
}

/// A server of four endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// Where it is asked.
    pub(super) primary: SocketAddr,
    /// Its other address with its other port.
    pub(super) other: SocketAddr,
    /// It speaks RFC 3489.
    pub(super) classic: bool,
}

impl Site {
    /// The other address, the same port.
    pub(super) fn other_address(&self) -> SocketAddr {
        SocketAddr::new(self.other.ip(), self.primary.port())
    }

    /// The same address, the other port.
    pub(super) fn other_port(&self) -> SocketAddr {
        SocketAddr::new(self.primary.ip(), self.other.port())
    }
}

/// A test under way.
#[derive(Debug)]
pub(super) struct Examiner {
    pub(super) line: Line,
    evidence: Mutex<Vec<Evidence>>,
    rewritten: Mutex<Option<bool>>,
}

impl Examiner {
    /// Opens a socket; the error is for people.
    pub(super) async fn open(&self, port: Port) -> Result<Socket, String> {
        self.line.open(port).await.map_err(|kind| Failure::Socket(kind).to_string())
    }

    /// Asks, and writes it down.
    pub(super) async fn ask(
        &self,
        step: &str,
        socket: &Socket,
        question: Question,
    ) -> Result<Answer, Failure> {
        let result = socket.ask(question, Schedule::QUICK).await;
        self.note(step, socket.local(), &question, &result);
        result
    }

    fn note(
        &self,
        step: &str,
        local: SocketAddr,
        question: &Question,
        result: &Result<Answer, Failure>,
    ) {
        let answer = result.as_ref().ok();
        let sent = match result {
            Ok(answer) => answer.copies,
            Err(Failure::Timeout { copies, .. }) => *copies,
            Err(_) => 1,
        };
        let evidence = Evidence {
            step: step.to_owned(),
            server: question.to,
            local,
            mapped: answer.map(|answer| answer.mapped),
            sent,
            answered_from: answer.map(|answer| answer.from),
            rtt_us: answer.and_then(|answer| u64::try_from(answer.rtt.as_micros()).ok()),
            error: result.as_ref().err().map(Failure::to_string),
        };
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner).push(evidence);
        if let Some(answer) = answer.filter(|answer| answer.has_both_forms) {
            let mut rewritten = self.rewritten.lock().unwrap_or_else(PoisonError::into_inner);
            *rewritten = Some(rewritten.unwrap_or_default() || answer.rewritten);
        }
    }
}

/// What the mapping steps found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapped {
    /// How addresses are chosen; `None` if they depend on the destination, in a way not known.
    mapping: Option<Mapping>,
    external: SocketAddr,
}

/// Tests the NAT.
pub async fn examine(line: Line, plan: Plan) -> NatReport {
    let began = line.now();
    let examiner = Examiner { line, evidence: Mutex::new(Vec::new()), rewritten: Mutex::new(None) };
    let mut report = examiner.run(&plan).await;
    let details = &mut report.details;
    details.af = plan.servers.first().map(|server| Family::of(server.ip()));
    details.tested_at = plan.tested_at;
    details.took_ms = u64::try_from(examiner.line.now().duration_since(began).as_millis()).ok();
    details.alg = examiner.rewritten.into_inner().unwrap_or_else(PoisonError::into_inner);
    details.evidence = examiner.evidence.into_inner().unwrap_or_else(PoisonError::into_inner);
    details.count_layers(plan.gateway);
    report
}

/// A report without a verdict.
fn inconclusive(reason: String) -> NatReport {
    let details = Details { inconclusive: Some(reason), ..Details::default() };
    NatReport { details, ..NatReport::default() }
}

impl Examiner {
    async fn run(&self, plan: &Plan) -> NatReport {
        if plan.servers.is_empty() {
            return inconclusive("no server was named".to_owned());
        }
        let replies = match self.discover(plan).await {
            Ok(replies) => replies,
            Err(reason) => return inconclusive(reason),
        };
        let answers = replies
            .iter()
            .filter_map(|reply| reply.result.as_ref().ok().map(|answer| (reply, answer)));
        if answers.clone().next().is_none() {
            return silence(&replies);
        }
        let mut report = match answers.clone().find_map(|(reply, answer)| site(reply, answer).ok())
        {
            Some(site) => self.four_endpoints(plan, site).await,
            None => single_addresses(&replies),
        };
        report.details.udp = Some(true);
        report
    }

    /// Asks all servers for their other endpoints. The first that has some will do.
    async fn discover(&self, plan: &Plan) -> Result<Vec<Reply>, String> {
        let socket = self.open(Port::Any).await?;
        let classic = plan.rules == Rules::Classic;
        let questions: Vec<Question> =
            plan.servers.iter().map(|server| Question::plain(*server, classic)).collect();
        let began = self.line.now();
        let replies = survey(&socket, &questions, 1, Schedule::QUICK, |replies, _| {
            has_enough(replies, began)
        })
        .await;
        for reply in &replies {
            self.note("discovery", reply.local, &reply.question, &reply.result);
        }
        Ok(replies)
    }

    /// The test with a server that has four endpoints.
    async fn four_endpoints(&self, plan: &Plan, site: Site) -> NatReport {
        let classic = plan.rules == Rules::Classic;
        let gates = both(
            self.gate(site, Change::BOTH, site.other),
            self.gate(site, Change::PORT, site.other_port()),
        );
        let mapping = async {
            let mapped = self.mapping(site, classic).await;
            let ports = match (&mapped, plan.delta) {
                (Ok(mapped), true) => Some(self.ports(site, mapped.mapping).await),
                _ => None,
            };
            (mapped, ports)
        };
        let ((mapped, ports), (far, near)) = both(mapping, gates).await;
        let mut report = verdict(&mapped, &far, &near);
        let details = &mut report.details;
        details.method =
            Some(if classic || site.classic { Method::Rfc3489 } else { Method::Rfc5780 });
        if let Some(ports) = ports {
            report.delta = ports.delta;
            details.port = ports.ports;
            details.next_destination = ports.next_destination;
        }
        let has_nat = mapped.as_ref().is_ok_and(|mapped| mapped.mapping != Some(Mapping::None));
        if plan.hairpin && has_nat {
            details.hairpin = self.hairpin(site).await;
        }
        if let Some(longest) = plan.lifetime
            && has_nat
        {
            (details.lifetime_s, details.lifetime_below_s) = self.lifetime(site, longest).await;
        }
        report
    }

    /// RFC 5780, section 4.3. By RFC 3489's rules the second step goes to the other address and port at
    /// once, which cannot tell on which of the two the mapping depends.
    async fn mapping(&self, site: Site, classic: bool) -> Result<Mapped, String> {
        let socket = self.open(Port::Any).await?;
        let ask = async |to: SocketAddr| {
            self.ask("mapping", &socket, Question::plain(to, site.classic))
                .await
                .map_err(|error| format!("{to} does not answer: {error}"))
        };
        let first = ask(site.primary).await?.mapped;
        let second = ask(if classic { site.other } else { site.other_address() }).await?.mapped;
        let mapping = if second == first {
            Some(if first == socket.local() { Mapping::None } else { Mapping::EndpointIndependent })
        } else if classic {
            None
        } else if ask(site.other).await?.mapped == second {
            Some(Mapping::AddressDependent)
        } else {
            Some(Mapping::AddressAndPortDependent)
        };
        Ok(Mapped { mapping, external: first })
    }
}

/// Whether discovery goes on.
fn has_enough(replies: &[Reply], began: Instant) -> Enough {
    let answers = replies.iter().filter_map(|reply| Some((reply, reply.result.as_ref().ok()?)));
    let mut slowest = None;
    for (reply, answer) in answers {
        if site(reply, answer).is_ok() {
            return Enough::Now;
        }
        slowest = slowest.max(Some(answer.rtt));
    }
    slowest.map_or(Enough::No, |rtt| Enough::At(began + rtt * 2 + OTHERS))
}

/// The endpoints that an answer tells of. An alternate with the same address or the same port makes every
/// NAT look open or symmetric, and is not believed.
fn site(reply: &Reply, answer: &Answer) -> Result<Site, String> {
    let primary = reply.question.to;
    let Some(other) = answer.other else {
        return Err(format!("{primary} has no second address"));
    };
    let is_other = other.ip() != primary.ip() && other.port() != primary.port();
    if !is_other || other.is_ipv4() != primary.is_ipv4() || !may_name(primary, other) {
        return Err(format!("{primary} names {other} as its other endpoint, which is none"));
    }
    Ok(Site { primary, other, classic: reply.question.classic || answer.other_is_classic })
}

/// The report when nobody answered.
fn silence(replies: &[Reply]) -> NatReport {
    let failure = |reply: &Reply| reply.result.as_ref().err().map(Failure::to_string);
    let is_silence = |reply: &Reply| matches!(reply.result, Err(Failure::Timeout { .. }));
    if let Some(other) = replies.iter().find(|reply| !is_silence(reply)) {
        let said = failure(other).unwrap_or_default();
        return inconclusive(format!(
            "no server answered with an address; {}: {said}",
            other.question.to
        ));
    }
    let details =
        Details { udp: Some(false), confidence: Confidence::Assumed, ..Details::default() };
    NatReport { kind: Some(NatType::Blocked), details, ..NatReport::default() }
}

/// What servers with one address each tell together: the mapping, from one socket.
fn single_addresses(replies: &[Reply]) -> NatReport {
    let answers: Vec<(&Reply, &Answer)> =
        replies.iter().filter_map(|reply| Some((reply, reply.result.as_ref().ok()?))).collect();
    let Some((first_reply, first)) = answers.first() else { return silence(replies) };
    let others: Vec<&Answer> = answers
        .iter()
        .filter(|(reply, _)| reply.question.to.ip() != first_reply.question.to.ip())
        .map(|(_, answer)| *answer)
        .collect();
    let details = Details {
        external: Some(first.mapped),
        method: Some(Method::MultiServer),
        ..Details::default()
    };
    let no_filter =
        |reason: &str| Details { inconclusive: Some(reason.to_owned()), ..details.clone() };
    if others.is_empty() {
        let reason = site(first_reply, first).err().unwrap_or_default();
        let details =
            no_filter(&format!("{reason}, and one address does not tell how others are treated"));
        return NatReport { details, ..NatReport::default() };
    }
    let same = others.iter().all(|answer| answer.mapped == first.mapped);
    let is_local = first.mapped == first_reply.local;
    let (kind, mapping, confidence) = match (same, is_local) {
        (true, true) => (None, Some(Mapping::None), Confidence::Unknown),
        (true, false) => {
            (Some(NatType::PortRestricted), Some(Mapping::EndpointIndependent), Confidence::Assumed)
        }
        (false, _) => (Some(NatType::Symmetric), None, Confidence::Single),
    };
    let details = Details {
        mapping,
        confidence,
        ..no_filter("no server has a second address: who may send in was not tested")
    };
    NatReport { kind, details, ..NatReport::default() }
}

/// What mapping and filtering say together.
fn verdict(mapped: &Result<Mapped, String>, far: &Gate, near: &Gate) -> NatReport {
    // Who lets strangers in lets in whoever shares an address with a friend.
    let (filtering, proven, reason) = match (far, near) {
        (Gate::Open, _) => (Some(Filtering::EndpointIndependent), true, None),
        (Gate::Closed { proven }, Gate::Open) => (Some(Filtering::AddressDependent), *proven, None),
        (Gate::Closed { proven: far }, Gate::Closed { proven: near }) => {
            (Some(Filtering::AddressAndPortDependent), *far && *near, None)
        }
        (Gate::Unknown(reason), _) | (_, Gate::Unknown(reason)) => (None, false, Some(reason)),
    };
    let mapped = match mapped {
        Ok(mapped) => mapped,
        Err(reason) => {
            let mut report = inconclusive(reason.clone());
            report.details.filtering = filtering;
            return report;
        }
    };
    let kind = match mapped.mapping {
        None => Some(NatType::Symmetric),
        mapping => NatType::of(mapping, filtering),
    };
    // What a symmetric NAT filters does not change its type.
    let confidence = match kind {
        None => Confidence::Unknown,
        Some(NatType::Symmetric) => Confidence::Proven,
        Some(_) if proven => Confidence::Proven,
        Some(_) => Confidence::Assumed,
    };
    let details = Details {
        mapping: mapped.mapping,
        filtering,
        confidence,
        inconclusive: reason.cloned(),
        external: Some(mapped.external),
        ..Details::default()
    };
    NatReport { kind, details, ..NatReport::default() }
}
