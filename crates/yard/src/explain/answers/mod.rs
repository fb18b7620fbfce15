//! The questions that somebody asks who looks at a network for the first time, answered from the
//! facts.

mod lines;

use std::net::IpAddr;
use std::time::Duration;

use netyard_engine::control::TurnPolicy;
use netyard_engine::forward::Protocol;
pub use netyard_link::nft::trace::Listed;
use netyard_link::nft::{Family, Table};
use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use self::lines::{doors, gateway, leaves, mtu, names, pair, route, what, why_addresses};
use super::facts::{Cable, Card, Facts, InstanceFacts, Namespace, Way};
use super::path::{self, End, Outcome, Question};
use crate::api::{NetworkStatus, ServiceStatus};
use crate::error::{ErrorKind, YardError};

/// What is explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An instance.
    Instance,
    /// A service.
    Service,
    /// A network, asked for by its name or its bridge's.
    Network,
}

/// One question with its answer, a line for each thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: Vec<String>,
}

/// One plug with both its ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plug {
    /// The network's name.
    pub network: String,
    /// The instance's.
    pub instance: String,
    /// Hardware address that the instance has there.
    pub mac: MacAddr,
    /// Addresses that it has there.
    pub addresses: Vec<IpAddr>,
    /// The instance's card; `None`: it cannot be seen.
    pub inside: Option<Card>,
    /// The instance's network namespace, as in `net:[4026531840]`.
    pub namespace: Option<u64>,
    /// A process in it.
    pub pid: Option<u32>,
    /// This machine's end, in bridge mode.
    pub outside: Option<Card>,
    /// The bridge that it is a port of.
    pub bridge: Option<String>,
    /// The network process.
    pub process: u32,
}

/// Everything that is explained of one thing: the answers, and the facts that they are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The answers.
    pub answers: Vec<Answer>,
    /// Its plugs; of a network those of everybody.
    pub plugs: Vec<Plug>,
    /// The routes of an instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Way>,
    /// The rules of a network in bridge mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Listed>,
}

/// Explains everything of that name.
///
/// # Errors
/// There is nothing of that name.
pub fn about(facts: &Facts, name: &str) -> Result<Vec<Explanation>, YardError> {
    let mut found = Vec::new();
    if let Some(one) = facts.instance(name) {
        found.push(instance(facts, one));
    }
    if let Some(one) = facts.services.iter().find(|service| service.name == name) {
        found.push(service(facts, one));
    }
    let named = |network: &&NetworkStatus| {
        let global = network.state.config.as_ref().is_some_and(|config| config.name == name);
        network.name == name || global || network.state.interface.as_deref() == Some(name)
    };
    found.extend(facts.networks.iter().find(named).map(|one| network(facts, one)));
    if found.is_empty() {
        let known: Vec<_> = (facts.instances.iter().map(|one| one.status.name.as_str()))
            .chain(facts.services.iter().map(|one| one.name.as_str()))
            .chain(facts.networks.iter().map(|one| one.name.as_str()))
            .chain(facts.networks.iter().filter_map(|one| one.state.interface.as_deref()))
            .collect();
        return Err(YardError::new(
            ErrorKind::Unknown,
            format!("explain {name}"),
            "no instance, service, network or bridge has that name",
        )
        .next(format!("choose one of {}", known.join(", "))));
    }
    Ok(found)
}

/// Explains every network.
#[must_use]
pub fn everything(facts: &Facts) -> Vec<Explanation> {
    facts.networks.iter().map(|one| network(facts, one)).collect()
}

#[derive(Default)]
struct Answers(Vec<Answer>);

impl Answers {
    /// Questions without an answer are not asked.
    fn add(&mut self, question: impl Into<String>, answer: impl IntoIterator<Item = String>) {
        let answer: Vec<_> = answer.into_iter().collect();
        if !answer.is_empty() {
            self.0.push(Answer { question: question.into(), answer });
        }
    }
}

fn instance(facts: &Facts, instance: &InstanceFacts) -> Explanation {
    let cables = facts.cables(instance);
    let name = &instance.status.name;
    let mut answers = Answers::default();
    let pairs = cables.iter().map(|cable| pair(facts, instance.inside.as_ref(), cable));
    answers.add("Which link belongs to which card, in which namespace?", pairs);
    if let Ok(inside) = &instance.inside {
        let addresses = inside
            .links
            .iter()
            .flat_map(|link| link.addresses.iter().map(|net| format!("{net} on {}", link.name)));
        let ways = inside.routes.iter().map(route);
        answers.add("Which addresses and routes does it have?", addresses.chain(ways));
    }
    let gateways = cables.iter().filter_map(|cable| {
        let config = cable.network.state.config.as_ref()?;
        let asks = instance.inside.as_ref().ok().and_then(|inside| {
            inside.routes.iter().find(|way| way.gateway == Some(config.gateway4().into()))
        });
        let way = asks.map_or(String::new(), |way| {
            format!("; the route {} of {name} leads there", way.destination)
        });
        Some(format!("{}{way}", gateway(facts, cable.network, config)))
    });
    answers.add("What is its gateway, and why?", gateways);
    answers.add("How large may a packet be?", cables.iter().filter_map(|it| mtu(facts, it)));
    answers.add("Who answers when it asks for a name?", names(instance, &cables));
    let mut may = Vec::new();
    for (to, port) in reaches(facts, instance, &cables) {
        let from = End::Instance(name.clone());
        may.extend(way(facts, from, to, port, None));
    }
    for cable in &cables {
        if let Some(address) = cable.plug.addresses.first() {
            may.extend(way(facts, End::Outside, End::Address(*address), Some(80), None));
        }
    }
    answers.add("What passes, what is rewritten, what is refused?", may);
    answers.add("What does it listen on?", instance.status.ports.iter().map(ToString::to_string));
    answers.add("What is wrong with it?", instance.status.warnings.iter().cloned());
    Explanation {
        kind: Kind::Instance,
        name: name.clone(),
        answers: answers.0,
        plugs: cables.iter().map(|cable| plug(cable, instance.inside.as_ref().ok())).collect(),
        routes: instance.inside.as_ref().map(|it| it.routes.clone()).unwrap_or_default(),
        rules: Vec::new(),
    }
}

/// Whom an instance may want to reach: neighbours, services, the gateway's names, this machine, the
/// outside, other networks.
fn reaches(
    facts: &Facts,
    instance: &InstanceFacts,
    cables: &[Cable<'_>],
) -> Vec<(End, Option<u16>)> {
    /// What most machines listen on.
    const SSH: u16 = 22;
    let others = || {
        let others =
            facts.instances.iter().filter(|other| other.status.name != instance.status.name);
        others.filter_map(|other| Some((other, facts.cables(other).first()?.network)))
    };
    let near = |network: &NetworkStatus| cables.iter().any(|it| std::ptr::eq(it.network, network));
    let end = |(other, _): (&InstanceFacts, _)| (End::Instance(other.status.name.clone()), None);
    let neighbor = others().find(|(_, network)| near(network)).map(end);
    let stranger = others().find(|(_, network)| !near(network)).map(end);
    let services = facts
        .services
        .iter()
        .filter(|service| cables.iter().any(|cable| cable.network.name == service.network));
    let services = services.map(|service| (End::Service(service.name.clone()), None));
    neighbor
        .into_iter()
        .chain(services)
        .chain([(End::Host, Some(SSH)), (End::Outside, None)])
        .chain(stranger)
        .collect()
}

/// One line about a way: who decides, and what is rewritten.
fn way(
    facts: &Facts,
    from: End,
    to: End,
    port: Option<u16>,
    protocol: Option<Protocol>,
) -> Option<String> {
    let question = Question { from, to, port, protocol, ipv6: false };
    let path = path::follow(facts, &question).ok()?;
    let port = match (path.asked.destination.port(), path.speech) {
        (0, _) => " (ping)".to_owned(),
        (port, speech) => format!(":{port}/{speech}"),
    };
    let mut said = match &path.outcome {
        Outcome::Arrives(_) => "passes".to_owned(),
        Outcome::Refused(why) => format!("is refused: {why}"),
    };
    let decided = path.there.iter().flat_map(|hop| &hop.rules).rev().find(|it| {
        it.effect == netyard_link::nft::trace::Effect::Accept && it.table.starts_with("inet")
    });
    if let (Some(rule), Outcome::Arrives(_)) = (decided, &path.outcome) {
        let chain = rule.chains.last().map_or("", String::as_str);
        said.push_str(&format!(" by `{}` (table {}, chain {chain})", rule.rule, rule.table));
    }
    for hop in path.there.iter().filter(|hop| hop.rewritten) {
        said.push_str(&format!("; becomes {} at {}", hop.packet, hop.at));
    }
    Some(format!("{} to {}{port} {said}", path.from, path.to))
}

fn service(facts: &Facts, service: &ServiceStatus) -> Explanation {
    let network = facts.networks.iter().find(|it| it.name == service.network);
    let mut answers = Answers::default();
    let bridge = network.and_then(|network| facts.bridge(network));
    let by_request = service.policy == TurnPolicy::PerRequest;
    let port = format!("{}/{}", service.port, service.protocol);
    let held = service.addresses.iter().map(|address| {
        let by = match (bridge, network) {
            (Some(bridge), Some(network)) if by_request => format!(
                "the bridge {} has it, and network process {} takes requests at port {port}",
                bridge.name, network.state.pid
            ),
            (Some(bridge), _) => format!(
                "the bridge {} has it, and the rules lead its port {port} to an instance",
                bridge.name
            ),
            (None, Some(network)) => format!(
                "no link has it: network process {} answers for it and {} port {port}",
                network.state.pid,
                if by_request { "takes requests at" } else { "rewrites what is for" }
            ),
            (None, None) => "its network does not answer".into(),
        };
        format!("{address}: {by}")
    });
    answers.add("Where is it, inside the network?", held);
    let published = service.published.map(|at| {
        let by = match (bridge, at.ip().is_loopback()) {
            (Some(_), false) if !by_request => "the rules translate what comes for it".to_owned(),
            (_, _) => {
                let pid = network.map_or(0, |network| network.state.pid);
                format!("network process {pid} listens there and carries the bytes")
            }
        };
        format!("{at}/{}: {by}", service.protocol)
    });
    answers.add("Where is it, from outside of the network?", published);
    let turns = service.instances.iter().map(|one| {
        let how = match (one.turns.draining, one.eligible) {
            (true, _) => "keeps its open connections and gets no new ones",
            (false, true) => "gets its turn",
            (false, false) => "gets no turn: it is not healthy",
        };
        format!("{} {how}; turns {}, open {}", one.name, one.turns.turns, one.turns.open)
    });
    let same = service.affinity_ms.map(|ms| {
        let time = Duration::from_millis(ms);
        format!("a client is led to the same instance for {time:?} after it came last")
    });
    answers.add("Who answers?", turns.chain(same));
    let this = || End::Service(service.name.clone());
    let mut ways = Vec::new();
    let client = facts.instances.iter().find(|instance| {
        facts.cables(instance).iter().any(|cable| cable.network.name == service.network)
    });
    if let Some(client) = client {
        let from = End::Instance(client.status.name.clone());
        ways.extend(way(facts, from, this(), None, None));
    }
    if let Some(at) = service.published {
        let (port, protocol) = (Some(at.port()), Some(service.protocol));
        ways.extend(way(facts, End::Host, End::Address(at.ip()), port, protocol));
    }
    answers.add("What is rewritten, by whom?", ways);
    Explanation {
        kind: Kind::Service,
        name: service.name.clone(),
        answers: answers.0,
        plugs: Vec::new(),
        routes: Vec::new(),
        rules: Vec::new(),
    }
}

fn network(facts: &Facts, network: &NetworkStatus) -> Explanation {
    let mut answers = Answers::default();
    let config = network.state.config.as_ref();
    let inside = |cable: &Cable<'_>| {
        let own = cable.plug.member == network.state.asked_by;
        facts.instance(&cable.plug.name).filter(|_| own)
    };
    let cables: Vec<_> = (network.state.plugs.iter())
        .map(|plug| {
            let own = plug.member == network.state.asked_by;
            let instance = facts.instance(&plug.name).filter(|_| own);
            facts.cable(network, plug, instance.and_then(|it| it.inside.as_ref().ok()))
        })
        .collect();
    if let Some(config) = config {
        answers.add("What is it?", what(facts, network, config));
        answers.add("What is its gateway?", [gateway(facts, network, config)]);
        if let Some(bridge) = facts.bridge(network) {
            answers.add("Why does the bridge have addresses?", why_addresses(bridge, config));
            let mac = bridge.mac.map_or_else(|| "none".into(), |mac| mac.to_string());
            answers.add(
                "Why does it have a hardware address?",
                [format!(
                    "{mac}: a switch needs none to pass frames on; this one is also a card of this \
                 machine, and frames for the gateway are sent to that address"
                )],
            );
        }
        answers.add("What happens to what leaves it?", leaves(network, config));
    }
    answers.add("Which ports of this machine lead into it?", doors(facts, network));
    let pairs = cables.iter().map(|cable| {
        let text = match inside(cable) {
            Some(instance) => pair(facts, instance.inside.as_ref(), cable),
            None => {
                let why = format!("it is of {}", cable.plug.member);
                pair(facts, Err(&why), cable)
            }
        };
        format!("{}: {text}", cable.plug.name)
    });
    answers.add("Who is plugged in?", pairs);
    answers.add("What is in the way?", network.state.warnings.iter().cloned());
    let rules = match (&facts.rules, config) {
        (Ok(rules), Some(config)) if network.state.interface.is_some() => {
            let table = format!("netyard-{}", config.name);
            [Family::Inet, Family::Bridge]
                .into_iter()
                .flat_map(|family| rules.listing(&Table::new(family, &table)))
                .collect()
        }
        _ => Vec::new(),
    };
    if let (Err(why), true) = (&facts.rules, network.state.interface.is_some()) {
        answers.add("Which rules are there?", [format!("they cannot be read: {why}")]);
    }
    Explanation {
        kind: Kind::Network,
        name: network.name.clone(),
        answers: answers.0,
        plugs: cables
            .iter()
            .map(|cable| plug(cable, inside(cable).and_then(|it| it.inside.as_ref().ok())))
            .collect(),
        routes: Vec::new(),
        rules,
    }
}

fn plug(cable: &Cable<'_>, inside: Option<&Namespace>) -> Plug {
    Plug {
        network: cable.network.name.clone(),
        instance: cable.plug.name.clone(),
        mac: cable.plug.mac,
        addresses: cable.plug.addresses.clone(),
        inside: cable.inside.cloned(),
        namespace: inside.map(|inside| inside.inode),
        pid: inside.map(|inside| inside.pid),
        outside: cable.outside.cloned(),
        bridge: cable.network.state.interface.clone(),
        process: cable.network.state.pid,
    }
}
