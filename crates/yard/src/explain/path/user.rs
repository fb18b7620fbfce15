//! User mode: a network process reads frames from TAP devices and speaks with the world by sockets
//! of this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use netyard_engine::config::Config;
use netyard_engine::control::{State, TurnPolicy};
use netyard_engine::delivery::Delivery;
use netyard_engine::policy::rules::{Remote, What};
use netyard_engine::policy::{Comer, Decision, Policy, Protocol, Tested};

use super::{Addresses, BY_REQUEST, Door, End, Leads, Outcome, Resolved, Speech, Trip, eligible};
use crate::api::{NetworkStatus, ServiceStatus};
use crate::explain::facts::InstanceFacts;

/// The port of DNS (RFC 1035 section 4.2).
const DNS: u16 = 53;

/// A port that the gateway takes for a connection of its own; it takes one by chance.
const GATEWAY_PORT: u16 = 1024;

pub(super) fn follow(trip: &mut Trip<'_>, question: &Resolved<'_>) -> Outcome {
    if let Some((instance, cable)) = &question.asker {
        let on_link = match trip.leaves(instance, cable) {
            Ok(on_link) => on_link,
            Err(outcome) => return outcome,
        };
        return inside(trip, cable.network, on_link);
    }
    let door = trip.facts.door(question.to, question.speech);
    let outside = !matches!(question.from, End::Host);
    let (now, here) = (trip.now, "this machine");
    let Some(Door { network, leads, delivery }) = door else {
        if trip.facts.host.is_local(question.to.ip()) {
            trip.hop(here, "for a program of this machine, if one listens there", now);
            return Outcome::Arrives("host".into());
        }
        let way = trip.facts.host.route(question.to.ip()).and_then(|way| way.link.clone());
        let way = way.map_or("it has no route there".into(), |link| format!("out by {link}"));
        match outside {
            true => trip.hop("outside", "no route there knows the network", now),
            false => trip.hop(here, way, now),
        }
        return match question.network {
            Some(network) => Outcome::Refused(format!(
                "this machine has no link into {}: publish a service, or forward a port",
                network.name
            )),
            None => Outcome::Arrives("outside".into()),
        };
    };
    let process = process(network);
    if question.to.ip().is_loopback() && outside {
        trip.hop(here, "loopback addresses are this machine's own", now);
        return Outcome::Refused(format!("{} leads in from this machine only", question.to));
    }
    // Guests see who is there, but for this machine itself, whose addresses lead elsewhere inside.
    let config = network.state.config.as_ref();
    let seen = match (outside, config) {
        (false, Some(config)) => gateway(config, now.destination.is_ipv4()),
        _ => now.source,
    };
    let flow = trip.speech == Speech::Udp;
    let by_request = matches!(leads, Leads::Service(it) if it.policy == TurnPolicy::PerRequest);
    let taken = if flow { "gets the datagram" } else { "takes the connection" };
    trip.hop(&process, format!("its socket {} {taken}", question.to), now);
    let mut text = match flow {
        true => "it sends it on, as it does the next ones of this client",
        false => "it opens a connection of its own there, and carries the bytes",
    };
    let end = match leads {
        Leads::Service(service) if service.policy == TurnPolicy::PerRequest => {
            text = BY_REQUEST;
            turn(trip, service, seen)
        }
        Leads::Service(service) => turn(trip, service, seen),
        Leads::Instance(instance, port) => {
            let addresses = &instance.status.addresses;
            let of = |v4| addresses.iter().copied().find(|it: &IpAddr| it.is_ipv4() == v4);
            let to = of(now.destination.is_ipv4()).map(|to| SocketAddr::new(to, port));
            to.map(|to| Addresses { source: seen, destination: to }).ok_or_else(|| {
                Outcome::Refused(format!("{} has no address now", instance.status.name))
            })
        }
    };
    let end = match end {
        Ok(end) => end,
        Err(outcome) => return outcome,
    };
    let client = Comer::Outside(now.source.ip());
    if let Some(refused) = kept_out(trip, &process, &network.state, client, end.destination) {
        return refused;
    }
    let whole = !flow && !by_request && delivery.splices(now.source.ip());
    if let Some(instance) = joined(trip, network, end.destination.ip()).filter(|_| whole) {
        return splice(trip, &process, instance, delivery, end.destination);
    }
    trip.hop(&process, text, end);
    let outcome = deliver(trip);
    if matches!(outcome, Outcome::Arrives(_)) {
        answer(trip);
        let back = trip.asked.reversed();
        let text = match flow {
            true => "its socket sends the datagram",
            false => "it writes the bytes to its socket",
        };
        trip.answer(process, text, back, Vec::new());
    }
    outcome
}

/// The instance at an address, if connections can be joined to sockets inside it.
fn joined<'a>(
    trip: &Trip<'a>,
    network: &NetworkStatus,
    address: IpAddr,
) -> Option<&'a InstanceFacts> {
    let (instance, _) = trip.facts.at(address)?;
    let mut plugs = network.state.plugs.iter();
    let plug = plugs.find(|plug| plug.name == instance.status.name)?;
    plug.spliced.possible.then_some(instance)
}

/// Without a frame into an instance.
fn splice(
    trip: &mut Trip<'_>,
    process: &str,
    instance: &InstanceFacts,
    delivery: Delivery,
    to: SocketAddr,
) -> Outcome {
    let address = match to.ip() {
        own if !delivery.loopback => own,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let destination = SocketAddr::new(address, to.port());
    let packet = Addresses { source: SocketAddr::new(address, GATEWAY_PORT), destination };
    trip.hop(process, "it splices the connection to a socket inside the instance", packet);
    let outcome = trip.arrives(instance);
    if matches!(outcome, Outcome::Arrives(_)) {
        answer(trip);
        let back = trip.asked.reversed();
        trip.answer(process, "it splices the answer back", back, Vec::new());
    }
    outcome
}

/// A frame of an instance at the network process.
fn inside(trip: &mut Trip<'_>, network: &NetworkStatus, on_link: bool) -> Outcome {
    let process = process(network);
    let Some(config) = &network.state.config else {
        let why = network.problem.clone().unwrap_or_else(|| "it says nothing".into());
        return Outcome::Refused(format!("{process} does not answer: {why}"));
    };
    let now = trip.now;
    let to = now.destination;
    let facts = trip.facts;
    trip.hop(
        &process,
        "it reads the frame from the TAP device, and checks that it has the plug's own addresses",
        now,
    );
    let service = (facts.services.iter())
        .find(|service| service.network == network.name && service.addresses.contains(&to.ip()));
    if let Some(service) = service {
        if trip.speech == Speech::Ping {
            trip.hop(&process, "it answers for the service's virtual address", now);
            echo(trip, &process);
            return Outcome::Arrives(format!("{process} (virtual address)"));
        }
        if trip.speech.protocol() != Some(service.protocol) || to.port() != service.port {
            trip.hop(&process, "a virtual address has nothing but its service", now);
            let found = format!("the service is port {}/{}", service.port, service.protocol);
            return Outcome::Refused(found);
        }
        let turned = turn(trip, service, gateway(config, to.is_ipv4()));
        let end = match turned {
            Ok(end) => end,
            Err(outcome) => return outcome,
        };
        let client = Comer::Guest(now.source.ip());
        if let Some(refused) = kept_out(trip, &process, &network.state, client, end.destination) {
            return refused;
        }
        let text = match service.policy {
            TurnPolicy::RoundRobin => {
                "it rewrites the frame: to the instance, and from the gateway, so that the answer \
                 comes back here"
            }
            TurnPolicy::PerRequest => BY_REQUEST,
        };
        trip.hop(&process, text, end);
        let outcome = deliver(trip);
        if matches!(outcome, Outcome::Arrives(_)) {
            answer(trip);
            let back = trip.asked.reversed();
            trip.answer(process, "it puts the addresses back", back, Vec::new());
        }
        return outcome;
    }
    if config.is_gateway(to.ip()) {
        let served = match trip.speech {
            Speech::Ping => Some("the gateway answers pings"),
            _ if to.port() == DNS => Some("the gateway answers names"),
            _ => None,
        };
        return match served {
            Some(text) => {
                trip.hop(&process, text, now);
                echo(trip, &process);
                Outcome::Arrives("gateway".into())
            }
            None => {
                trip.hop(&process, "the gateway serves names and addresses alone", now);
                Outcome::Refused(format!("the gateway has nothing on port {}", to.port()))
            }
        };
    }
    if config.is_local(to.ip()) && !config.is_host(to.ip()) {
        if facts.at(to.ip()).is_some() {
            let text = "its switch finds the plug with that hardware address; the frame goes there \
                        as it is";
            trip.hop(&process, text, now);
            let sender = Comer::Guest(now.source.ip());
            if let Some(refused) = kept_out(trip, &process, &network.state, sender, to) {
                return refused;
            }
            let outcome = deliver(trip);
            if matches!(outcome, Outcome::Arrives(_)) {
                answer(trip);
                let back = trip.asked.reversed();
                trip.answer(process, "its switch hands it to the plug", back, Vec::new());
            }
            return outcome;
        }
        let asks = if to.is_ipv4() { "ARP" } else { "neighbour discovery" };
        trip.hop(&process, format!("nobody answers {asks} for that address"), now);
        return Outcome::Refused(format!("nobody on {} has {}", network.name, to.ip()));
    }
    if on_link {
        trip.doubt("the route leads to the link itself, and the address is not on it".into());
    }
    leave(trip, &process, config, &network.state)
}

/// The policy of a network, with the rules of its members.
fn policy(config: &Config, state: &State, own: Vec<IpAddr>) -> Policy {
    let mut policy = Policy::new(config, own);
    for (member, rules) in &state.rules {
        policy.set_rules(member, rules.clone());
    }
    for plug in &state.plugs {
        policy.add_guest(&plug.member, &plug.name, plug.addresses.iter().copied());
    }
    policy
}

const fn spoken(speech: Speech) -> Protocol {
    match speech {
        Speech::Tcp => Protocol::Tcp,
        Speech::Udp => Protocol::Udp,
        Speech::Ping => Protocol::Icmp,
    }
}

/// What becomes of somebody whom the rules do not let come to an instance.
fn kept_out(
    trip: &mut Trip<'_>,
    process: &str,
    state: &State,
    comer: Comer,
    to: SocketAddr,
) -> Option<Outcome> {
    let policy = policy(state.config.as_ref()?, state, Vec::new());
    let what = What::to(spoken(trip.speech), to.port());
    let Tested { decision, rule, meaning } = policy.test_entry(comer, to, what);
    if let Decision::Allow(_) = decision {
        return None;
    }
    trip.hop(process, format!("its policy refuses: {rule}, {meaning}"), trip.now);
    Some(Outcome::Refused(format!("the policy's rule {rule}: {meaning}")))
}

/// What leaves passes the policy, and goes on from a socket of this machine.
fn leave(trip: &mut Trip<'_>, process: &str, config: &Config, state: &State) -> Outcome {
    let (now, host) = (trip.now, &trip.facts.host);
    let own = host.links.iter().flat_map(|link| &link.addresses).map(|net| net.addr());
    let policy = policy(config, state, own.collect());
    let protocol = spoken(trip.speech);
    let mut rules = state.rules.values().flat_map(|rules| &rules.list);
    if rules.any(|rule| rule.others.iter().any(|remote| matches!(remote, Remote::Name(_)))) {
        trip.doubt(
            "rules speak of names, and which of them an instance was told is not looked at: \
             `netyard policy test` asks its network"
                .to_owned(),
        );
    }
    let Tested { decision, rule, meaning } =
        policy.test(Instant::now(), protocol, now.source.ip(), now.destination);
    match decision {
        Decision::Deny(_) => {
            trip.hop(process, format!("its policy refuses: {rule}, {meaning}"), now);
            Outcome::Refused(format!("the policy's rule {rule}: {meaning}"))
        }
        Decision::Allow(_) if trip.speech == Speech::Ping && state.pings.is_none() => {
            let text =
                "this machine allows it no pings, and it answers \"administratively prohibited\"";
            trip.hop(process, text, now);
            let why = "net.ipv4.ping_group_range allows the network's process no pings";
            Outcome::Refused(why.into())
        }
        Decision::Allow(to) => {
            let way = host.route(to.ip());
            let source = match host.is_local(to.ip()) {
                true => Some(to.ip()),
                false => way.and_then(|way| host.source(way, to.ip())),
            };
            let source = source.unwrap_or(now.source.ip());
            let out =
                Addresses { source: SocketAddr::new(source, now.source.port()), destination: to };
            let opened = match trip.speech {
                Speech::Udp => "sends from a socket of its own",
                Speech::Ping => "pings by a socket of its own",
                _ => "opens a connection of its own",
            };
            let text = format!("its policy lets it pass; it {opened}, and carries the bytes");
            trip.hop(process, text, out);
            let link = way.and_then(|way| Some((way, way.link.as_ref()?)));
            let here = host.is_local(to.ip());
            let text = match (&link, here) {
                (_, true) => "to a program of this machine, if one listens there".into(),
                (Some((way, link)), _) => {
                    let via = way.gateway.map(|via| format!(" via {via}")).unwrap_or_default();
                    format!("its route {}{via} leads out by {link}", way.destination)
                }
                (None, _) => "it has no route there".to_owned(),
            };
            trip.hop("this machine", text, out);
            if link.is_none() && !here {
                return Outcome::Refused(format!("this machine has no route to {}", to.ip()));
            }
            let answer = out.reversed();
            trip.answer("this machine", format!("to the socket of {process}"), answer, Vec::new());
            let back = trip.asked.reversed();
            let text = "it writes frames to the instance, from the address that was asked";
            trip.answer(process, text, back, Vec::new());
            Outcome::Arrives(if here { "host" } else { "outside" }.into())
        }
    }
}

/// Whose turn a connection may be.
fn turn(
    trip: &mut Trip<'_>,
    service: &ServiceStatus,
    source: SocketAddr,
) -> Result<Addresses, Outcome> {
    trip.turns = eligible(service);
    if service.affinity_ms.is_some() {
        trip.doubt("a client that came before is led to the instance that it had".into());
    }
    let first = trip.turns.first().and_then(|name| trip.facts.instance(name));
    let v4 = trip.now.destination.is_ipv4();
    let address = first.and_then(|instance| {
        instance.status.addresses.iter().copied().find(|it| it.is_ipv4() == v4)
    });
    match address {
        Some(address) => {
            Ok(Addresses { source, destination: SocketAddr::new(address, service.port) })
        }
        None => Err(Outcome::Refused(format!("no instance of {} is healthy", service.name))),
    }
}

/// To the instance that the addresses name.
fn deliver(trip: &mut Trip<'_>) -> Outcome {
    match trip.facts.at(trip.now.destination.ip()) {
        Some((instance, _)) => trip.arrives(instance),
        None => Outcome::Refused(format!("nobody has {} now", trip.now.destination.ip())),
    }
}

/// The answer's first hop: whoever has the packet answers.
fn answer(trip: &mut Trip<'_>) {
    let who = trip.there.last().map(|hop| hop.at.clone()).unwrap_or_default();
    let back = trip.now.reversed();
    trip.answer(who, "it answers", back, Vec::new());
}

/// An answer of the process itself.
fn echo(trip: &mut Trip<'_>, process: &str) {
    let back = trip.asked.reversed();
    trip.answer(process, "it answers", back, Vec::new());
}

fn gateway(config: &Config, v4: bool) -> SocketAddr {
    let address = if v4 { IpAddr::V4(config.gateway4()) } else { config.gateway6().into() };
    SocketAddr::new(address, GATEWAY_PORT)
}

fn process(network: &NetworkStatus) -> String {
    format!("network {} (process {})", network.name, network.state.pid)
}
