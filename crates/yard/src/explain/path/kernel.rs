//! Bridge mode: the kernel moves the packets, by its routes and by its rules.

use std::net::{IpAddr, SocketAddr};

use netyard_engine::control::TurnPolicy;
use netyard_link::nft::trace::{Decision, Effect, Packet, Passage, Port, Ruleset};
use netyard_link::nft::{CtState, Hook};
use netyard_wire::MacAddr;

use super::{Addresses, BY_REQUEST, Door, End, Leads, Outcome, Resolved, Speech, Trip, eligible};
use crate::api::{NetworkStatus, ServiceStatus};
use crate::error::{ErrorKind, YardError};
use crate::explain::facts::{Cable, Card, InstanceFacts};

/// Where this machine's rules look at packets, for people.
const HERE: &str = "this machine";

/// Ports of DNS and of DHCP's server.
const DNS: u16 = 53;
const DHCP: u16 = 67;

/// More turns than these are not followed one by one.
const MOST_TURNS: u32 = 64;

pub(super) fn follow<'a>(
    trip: &mut Trip<'a>,
    question: &Resolved<'a>,
) -> Result<Outcome, YardError> {
    let rules = trip.facts.rules.as_ref().map_err(|error| {
        let wanted = "follow packets through this machine's rules";
        YardError::new(ErrorKind::NotPermitted, wanted, error.clone())
            .next("run this command as root, or give netyard the capability CAP_NET_ADMIN")
    })?;
    let mut walk = Walk { trip, rules, translated: false, mark: 0, output: None, relay: None };
    let outcome = match &question.asker {
        Some((instance, cable)) => walk.instance_sends(instance, cable),
        None if matches!(question.from, End::Host) => walk.machine_sends(),
        None => walk.outside_sends(),
    };
    if matches!(outcome, Outcome::Arrives(_)) {
        walk.answer(question);
    }
    Ok(outcome)
}

struct Walk<'t, 'a> {
    trip: &'t mut Trip<'a>,
    rules: &'a Ruleset,
    /// The destination was.
    translated: bool,
    /// The connection's mark.
    mark: u32,
    /// The link that the last hop left this machine by.
    output: Option<&'a Card>,
    /// The network process that carries the bytes from socket to socket, and the addresses of its
    /// own connection.
    relay: Option<(String, Addresses)>,
}

impl<'a> Walk<'_, 'a> {
    fn packet(&self, input: Option<&Card>, output: Option<&Card>) -> Packet {
        let port = |card: &Card| Port { name: card.name.clone(), index: card.index };
        let now = self.trip.now;
        Packet {
            input: input.map(port),
            output: output.map(port),
            mac: None,
            source: now.source.ip(),
            destination: now.destination.ip(),
            protocol: self.trip.speech.number(now.destination.is_ipv4()),
            source_port: now.source.port(),
            destination_port: now.destination.port(),
            state: CtState::NEW,
            translated: self.translated,
            mark: self.mark,
            local: self.trip.facts.host.is_local(now.destination.ip()),
            turn: 0,
        }
    }

    /// What the rules at a hook do, as a hop. `Err`: they refuse.
    fn pass(&mut self, hook: Hook, bridge: bool, packet: &Packet) -> Result<(), Outcome> {
        let passage = self.rules.pass(hook, bridge, packet);
        if let Some(turns) = passage.turns {
            self.note_turns(turns, hook, packet);
        }
        for doubt in &passage.doubts {
            self.trip.doubt(doubt.clone());
        }
        if passage.decisions.is_empty() {
            return Ok(());
        }
        let masquerade = passage.decisions.iter().any(|it| it.effect == Effect::Masquerade);
        let mut behind = addresses(&passage.packet);
        if masquerade
            && let Some(address) =
                self.output.and_then(|link| link.address(behind.source.is_ipv4()))
        {
            behind.source.set_ip(address);
        }
        if let Some(Effect::Redirect(_)) = passage.decisions.last().map(|it| &it.effect) {
            let own = self.trip.facts.host.by_index(packet.input.as_ref().map_or(0, |it| it.index));
            if let Some(address) = own.and_then(|link| link.address(behind.source.is_ipv4())) {
                behind.destination.set_ip(address);
            }
        }
        self.translated |= passage.packet.translated;
        self.mark = passage.packet.mark;
        let text = effects(&passage, behind);
        self.trip.hop(place(hook, bridge), text, behind);
        let passes = passage.passes();
        let reason = passage.decisions.last().map(reason);
        if let Some(hop) = self.trip.there.last_mut() {
            hop.rules = passage.decisions;
        }
        match reason {
            Some(reason) if !passes => Err(Outcome::Refused(reason)),
            _ => Ok(()),
        }
    }

    /// The names behind every turn.
    fn note_turns(&mut self, turns: u32, hook: Hook, packet: &Packet) {
        let facts = self.trip.facts;
        let names = (0..turns.min(MOST_TURNS)).filter_map(|turn| {
            let given = self.rules.pass(hook, false, &Packet { turn, ..packet.clone() });
            let (instance, _) = facts.at(given.packet.destination)?;
            Some(instance.status.name.clone())
        });
        self.trip.turns = names.collect();
    }

    fn instance_sends(&mut self, instance: &'a InstanceFacts, cable: &Cable<'a>) -> Outcome {
        let on_link = match self.trip.leaves(instance, cable) {
            Ok(on_link) => on_link,
            Err(outcome) => return outcome,
        };
        self.frame(cable, on_link).unwrap_or_else(|outcome| outcome)
    }

    /// A frame of an instance at its port of the bridge.
    fn frame(&mut self, cable: &Cable<'a>, on_link: bool) -> Result<Outcome, Outcome> {
        let facts = self.trip.facts;
        let network = cable.network;
        let now = self.trip.now;
        let to = now.destination.ip();
        let bridge = facts.bridge(network).ok_or_else(|| gone(network))?;
        let port = cable.outside.ok_or_else(|| {
            Outcome::Refused(format!("{} has no port on {} now", cable.plug.name, bridge.name))
        })?;
        let neighbor =
            facts.at(to).filter(|(_, cable)| on_link && std::ptr::eq(cable.network, network));
        let mac = neighbor.as_ref().map(|(_, cable)| cable.plug.mac).or(bridge.mac);
        let card = cable.inside.map_or("its card", |card| card.name.as_str());
        let end =
            format!("what goes into {card} comes out of {}, a port of {}", port.name, bridge.name);
        self.trip.hop(&port.name, end, now);
        let mut packet = self.packet(Some(port), None);
        packet.mac = mac.map(|mac| (cable.plug.mac, mac));
        self.pass(Hook::Prerouting, true, &packet)?;
        let here = facts.host.is_local(to);
        let card_of =
            facts.host.ports(bridge.index).find(|port| port.peer.is_none() && port.kind.is_none());
        match (neighbor, on_link && !here) {
            (Some((instance, other)), true) => {
                self.bridged(cable.plug.mac, port, bridge, instance, &other)
            }
            (None, true) => match card_of {
                Some(card) => {
                    let text = format!("the frame leaves by {}, the card on it", card.name);
                    self.trip.hop(&bridge.name, text, now);
                    self.output = Some(card);
                    Ok(Outcome::Arrives("outside".into()))
                }
                None => {
                    let asks = if to.is_ipv4() { "ARP" } else { "neighbour discovery" };
                    let text = format!("nobody answers {asks} for {to}");
                    self.trip.hop(&bridge.name, text, now);
                    Err(Outcome::Refused(format!("nobody on {} has {to}", network.name)))
                }
            },
            _ => {
                let text = "the frame is for the bridge's own hardware address: this machine routes \
                            the packet";
                self.trip.hop(&bridge.name, text, now);
                self.routed(bridge)
            }
        }
    }

    /// From port to port of one bridge.
    fn bridged(
        &mut self,
        sender: MacAddr,
        port: &'a Card,
        bridge: &'a Card,
        instance: &'a InstanceFacts,
        other: &Cable<'a>,
    ) -> Result<Outcome, Outcome> {
        let out = other.outside.ok_or_else(|| gone(other.network))?;
        let now = self.trip.now;
        let text = format!("the bridge knows that hardware address behind {}", out.name);
        self.trip.hop(&bridge.name, text, now);
        let mut packet = self.packet(Some(port), Some(out));
        packet.mac = Some((sender, other.plug.mac));
        self.pass(Hook::Forward, true, &packet)?;
        let filter = self.trip.facts.filter;
        if if now.destination.is_ipv4() { filter.ipv4 } else { filter.ipv6 } {
            let packet = self.packet(Some(bridge), Some(bridge));
            self.pass(Hook::Forward, false, &packet)?;
        }
        self.into(instance, other)
    }

    /// Through the pair into an instance.
    fn into(&mut self, instance: &'a InstanceFacts, cable: &Cable<'a>) -> Result<Outcome, Outcome> {
        let (now, out) = (self.trip.now, cable.outside.ok_or_else(|| gone(cable.network))?);
        let card = cable.inside.map_or("its card", |card| card.name.as_str());
        let name = &instance.status.name;
        let text = format!("what goes out by {} comes out of {card} in {name}", out.name);
        self.trip.hop(&out.name, text, now);
        Ok(self.trip.arrives(instance))
    }

    /// A packet at this machine, come in by a link.
    fn routed(&mut self, input: &'a Card) -> Result<Outcome, Outcome> {
        let packet = self.packet(Some(input), None);
        self.pass(Hook::Prerouting, false, &packet)?;
        let to = self.trip.now.destination.ip();
        if self.trip.facts.host.is_local(to) {
            let packet = self.packet(Some(input), None);
            self.pass(Hook::Input, false, &packet)?;
            return self.local(false);
        }
        let output = self.way(to)?;
        let packet = self.packet(Some(input), Some(output));
        self.pass(Hook::Forward, false, &packet)?;
        self.output = Some(output);
        let packet = self.packet(Some(input), Some(output));
        self.pass(Hook::Postrouting, false, &packet)?;
        self.out(output)
    }

    /// The link that this machine's routes lead out by.
    fn way(&mut self, to: IpAddr) -> Result<&'a Card, Outcome> {
        let host = &self.trip.facts.host;
        let now = self.trip.now;
        let way = host.route(to).filter(|way| !way.closed);
        let link = way.and_then(|way| Some((way, host.link(way.link.as_deref()?)?)));
        match link {
            Some((way, link)) => {
                let via = way.gateway.map(|via| format!(" via {via}")).unwrap_or_default();
                let text = format!("its route {}{via} leads out by {}", way.destination, link.name);
                self.trip.hop(HERE, text, now);
                Ok(link)
            }
            None => {
                self.trip.hop(HERE, "it has no route there", now);
                Err(Outcome::Refused(format!("this machine has no route to {to}")))
            }
        }
    }

    /// Out by a link.
    fn out(&mut self, output: &'a Card) -> Result<Outcome, Outcome> {
        let facts = self.trip.facts;
        let now = self.trip.now;
        let to = now.destination.ip();
        let Some(network) = facts.on_bridge(&output.name) else {
            self.trip.hop(&output.name, "it leaves this machine", now);
            return Ok(Outcome::Arrives("outside".into()));
        };
        match facts.at(to).filter(|(_, cable)| std::ptr::eq(cable.network, network)) {
            Some((instance, cable)) => {
                let text = format!("the frame goes to the plug of {}", instance.status.name);
                self.trip.hop(&output.name, text, now);
                self.into(instance, &cable)
            }
            None => {
                let text = "nobody on the bridge answers for that address";
                self.trip.hop(&output.name, text, now);
                Err(Outcome::Refused(format!("nobody on {} has {to}", network.name)))
            }
        }
    }

    /// This machine sends.
    fn machine_sends(&mut self) -> Outcome {
        self.sends().unwrap_or_else(|outcome| outcome)
    }

    fn sends(&mut self) -> Result<Outcome, Outcome> {
        let host = &self.trip.facts.host;
        let to = self.trip.now.destination.ip();
        let first = if host.is_local(to) {
            let now = self.trip.now;
            self.trip.hop(HERE, "the address is its own", now);
            host.link("lo")
        } else {
            Some(self.way(to)?)
        };
        let packet = self.packet(None, first);
        self.pass(Hook::Output, false, &packet)?;
        let next = self.trip.now.destination.ip();
        if host.is_local(next) {
            return self.local(true);
        }
        let output = if next == to { first } else { Some(self.way(next)?) };
        let Some(output) = output else {
            return Err(Outcome::Refused("this machine has no loopback".into()));
        };
        self.output = Some(output);
        let packet = self.packet(None, Some(output));
        self.pass(Hook::Postrouting, false, &packet)?;
        self.out(output)
    }

    /// Somebody outside sends, to this machine or through it.
    fn outside_sends(&mut self) -> Outcome {
        let (host, now) = (&self.trip.facts.host, self.trip.now);
        let back = host.route(now.source.ip()).and_then(|way| way.link.as_deref());
        let Some(input) = back.and_then(|name| host.link(name)) else {
            return Outcome::Refused(format!(
                "this machine has no link to {}: it has no route there",
                now.source.ip()
            ));
        };
        if now.destination.ip().is_loopback() {
            return Outcome::Refused("loopback addresses are this machine's own".into());
        }
        self.trip.hop(&input.name, "it comes in by this link", now);
        self.routed(input).unwrap_or_else(|outcome| outcome)
    }

    /// For this machine itself.
    fn local(&mut self, by_us: bool) -> Result<Outcome, Outcome> {
        let (facts, now) = (self.trip.facts, self.trip.now);
        let at = now.destination;
        if by_us && let Some(Door { network, leads, .. }) = facts.door(at, self.trip.speech) {
            let process = process(network);
            let flow = self.trip.speech == Speech::Udp;
            let taken = if flow { "gets the datagram" } else { "takes the connection" };
            self.trip.hop(&process, format!("its socket {at} {taken}"), now);
            let v4 = at.is_ipv4();
            let of = |addresses: &[IpAddr]| addresses.iter().copied().find(|it| it.is_ipv4() == v4);
            let to = match leads {
                Leads::Service(service) if service.policy == TurnPolicy::PerRequest => {
                    return self.answers(service, process);
                }
                Leads::Service(service) => of(&service.addresses).map(|it| (it, service.port)),
                Leads::Instance(instance, port) => {
                    of(&instance.status.addresses).map(|it| (it, port))
                }
            };
            let Some((address, port)) = to else {
                return Err(Outcome::Refused("it has no address now".into()));
            };
            let host = &facts.host;
            let source = match host.is_local(address) {
                true => Some(address),
                false => host.route(address).and_then(|way| host.source(way, address)),
            };
            let own = Addresses {
                source: SocketAddr::new(source.unwrap_or(address), now.source.port()),
                destination: SocketAddr::new(address, port),
            };
            let text = match flow {
                true => "it sends the datagram on from a socket of its own for this client",
                false => "it opens a connection of its own, and carries the bytes",
            };
            self.trip.hop(&process, text, own);
            self.relay = Some((process, own));
            return self.sends();
        }
        if let Some(service) = self.by_request() {
            let network = facts.networks.iter().find(|it| it.name == service.network);
            let at = network.map_or_else(|| service.network.clone(), process);
            return self.answers(service, at);
        }
        let config_of = |network: &'a NetworkStatus| network.state.config.as_ref();
        let serves = facts.networks.iter().find(|network| {
            config_of(network)
                .is_some_and(|config| config.is_gateway(at.ip()) || config.is_host(at.ip()))
        });
        let named = match (serves, self.trip.speech) {
            (_, Speech::Ping) => "its kernel answers".to_owned(),
            (Some(network), _) if at.port() == DNS || at.port() == DHCP => {
                format!("{} answers", process(network))
            }
            (Some(network), _) if config_of(network).is_some_and(|it| it.is_host(at.ip())) => {
                format!("{} leads it to the service of this machine", process(network))
            }
            _ => "for a program of this machine, if one listens there".to_owned(),
        };
        self.trip.hop(HERE, named, now);
        Ok(Outcome::Arrives("host".into()))
    }

    /// The network process answers for a service.
    fn answers(&mut self, service: &ServiceStatus, process: String) -> Result<Outcome, Outcome> {
        self.trip.hop(process.clone(), BY_REQUEST, self.trip.now);
        self.trip.turns = eligible(service);
        match self.trip.turns.is_empty() {
            true => Err(Outcome::Refused(format!("no instance of {} is healthy", service.name))),
            false => Ok(Outcome::Arrives(process)),
        }
    }

    /// The service that was asked for, if the network process answers for it.
    fn by_request(&self) -> Option<&'a ServiceStatus> {
        let asked = self.relay.as_ref().map_or(self.trip.asked, |(_, own)| *own).destination;
        let facts = self.trip.facts;
        let asked_for = |service: &&ServiceStatus| {
            let here = service.published.is_some_and(|at| {
                at == asked || (at.ip().is_unspecified() && at.port() == asked.port())
            });
            here || (service.addresses.contains(&asked.ip()) && service.port == asked.port())
        };
        let per_request = facts.services.iter().filter(|it| it.policy == TurnPolicy::PerRequest);
        per_request.into_iter().find(asked_for).filter(|_| self.translated)
    }

    /// The way back: every rule is asked about the answer, and connection tracking puts the
    /// addresses back.
    fn answer(&mut self, question: &Resolved<'_>) {
        let facts = self.trip.facts;
        let (got, asked) = (self.trip.now.reversed(), self.trip.asked.reversed());
        let last = self.trip.there.last().map(|hop| hop.at.clone()).unwrap_or_default();
        let answerer = facts.at(got.source.ip()).filter(|(it, _)| it.status.name == last);
        let here = facts.host.is_local(got.source.ip());
        let who = if answerer.is_some() || here { last } else { "outside".into() };
        self.trip.answer(&who, "it answers", got, Vec::new());
        let answers = |walk: &Self, at: Addresses, input, output| {
            let packet = walk.packet(input, output);
            Packet {
                source: at.source.ip(),
                destination: at.destination.ip(),
                source_port: at.source.port(),
                destination_port: at.destination.port(),
                state: CtState::ESTABLISHED,
                local: facts.host.is_local(at.destination.ip()),
                ..packet
            }
        };
        let mut input = self.output;
        if let Some((_, cable)) = &answerer {
            let bridge = facts.bridge(cable.network);
            if let (Some(port), Some(bridge)) = (cable.outside, bridge) {
                let mut packet = answers(self, got, Some(port), None);
                packet.mac = bridge.mac.map(|mac| (cable.plug.mac, mac));
                let rules = self.rules.pass(Hook::Prerouting, true, &packet).decisions;
                let text = format!("the answer comes out of {}", port.name);
                self.trip.answer(&port.name, text, got, rules);
                input = Some(bridge);
            }
        }
        let asker = question.asker.as_ref().map(|(_, cable)| *cable);
        let direct = match (&answerer, &asker) {
            (Some((_, one)), Some(other)) => {
                std::ptr::eq(one.network, other.network) && got == asked
            }
            _ => false,
        };
        if direct {
            let name =
                asker.and_then(|cable| facts.bridge(cable.network)).map(|it| it.name.clone());
            let text = "the bridge hands the frame to the plug of the asker";
            self.trip.answer(name.unwrap_or_default(), text, asked, Vec::new());
            return;
        }
        let whole = self.relay.as_ref().map_or(asked, |(_, own)| own.reversed());
        if got != whole {
            let text = "connection tracking puts the addresses back";
            self.trip.answer(HERE, text, whole, Vec::new());
        }
        let output = match &asker {
            Some(cable) => facts.bridge(cable.network),
            None => None,
        };
        let local_ends = here || matches!(question.from, End::Host);
        let (hook, output) = match (local_ends, output) {
            (true, None) => (Hook::Input, None),
            (true, output) => (Hook::Output, output),
            (false, Some(output)) => (Hook::Forward, Some(output)),
            (false, None) => {
                let way = facts.host.route(asked.destination.ip());
                let link = way.and_then(|way| facts.host.link(way.link.as_deref()?));
                (Hook::Forward, link)
            }
        };
        let packet = answers(self, whole, input.filter(|_| hook != Hook::Output), output);
        let passage = self.rules.pass(hook, false, &packet);
        let text = match (passage.decisions.is_empty(), passage.passes()) {
            (true, _) => "no rule is in the answer's way",
            (false, true) => "the rules know the connection and let the answer pass",
            (false, false) => "the rules refuse the answer",
        };
        self.trip.answer(place(hook, false), text, whole, passage.decisions);
        if let Some((process, _)) = self.relay.take() {
            self.trip.answer(process, "it writes the bytes to its socket", asked, Vec::new());
        }
    }
}

fn addresses(packet: &Packet) -> Addresses {
    Addresses {
        source: SocketAddr::new(packet.source, packet.source_port),
        destination: SocketAddr::new(packet.destination, packet.destination_port),
    }
}

fn process(network: &NetworkStatus) -> String {
    format!("network {} (process {})", network.name, network.state.pid)
}

fn gone(network: &NetworkStatus) -> Outcome {
    Outcome::Refused(format!("the bridge of {} is not there now", network.name))
}

/// A hook, for people.
fn place(hook: Hook, bridge: bool) -> String {
    let rules = if bridge { "frame rules" } else { "rules" };
    let at = match hook {
        Hook::Prerouting => "arriving",
        Hook::Input => "for this machine",
        Hook::Forward => "passing through",
        Hook::Output => "sent by this machine",
        _ => "leaving",
    };
    format!("{rules}, {at}")
}

/// What the rules did, in words.
fn effects(passage: &Passage, behind: Addresses) -> String {
    let last = passage.decisions.last().map(|decision| &decision.effect);
    let said: Vec<String> = passage
        .decisions
        .iter()
        .map(|decision| match &decision.effect {
            Effect::Accept if Some(&decision.effect) == last => "let it pass".into(),
            Effect::Accept => "see nothing wrong".into(),
            Effect::Drop => "drop it without a word".into(),
            Effect::Reject(true) => "refuse it with a TCP reset".into(),
            Effect::Reject(false) => "refuse it with an ICMP error".into(),
            Effect::Destination(..) => format!("make the destination {}", behind.destination),
            Effect::Redirect(_) => format!("make the destination {}", behind.destination),
            Effect::Source(_) => format!("make the source {}", behind.source.ip()),
            Effect::Masquerade => {
                format!("make the source {}, the link's own (masquerade)", behind.source.ip())
            }
            Effect::ClampSegments => "keep TCP segments small enough for the way".into(),
        })
        .collect();
    let decided = !matches!(last, Some(Effect::ClampSegments));
    said.join("; ") + if decided { "" } else { "; none refuses it" }
}

/// The rule that refuses, in words.
fn reason(decision: &Decision) -> String {
    let chain = decision.chains.last().map_or("", String::as_str);
    let what = decision.comment.clone().unwrap_or_else(|| decision.rule.clone());
    let handle = decision.handle.map(|it| format!(", handle {it}")).unwrap_or_default();
    format!("{what} (table {}, chain {chain}{handle})", decision.table)
}
