//! Services whose turns the kernel keeps.
//!
//! # Theory of operation
//!
//! A service is a chain whose last rule takes a turn: `numgen inc`, one counter for everybody, looked
//! up in a map of turns; each turn leads to the chain of an instance, which counts, marks the
//! connection and translates it. Only the first packet of a connection comes here.
//!
//! When the instances change, the rule is replaced by one with a new map, in one transaction: a
//! packet sees either both old or both new. The new rule counts from 0, so the new map begins with
//! the turn that is next in the [`Ring`]; how many turns were given is what the rule itself has counted.
//! A packet that has just begun with the old rule still has to find its turn in the old map, so that goes in a
//! transaction of its own, afterwards: the elements of a map are gone for everybody when a transaction ends.
//!
//! With affinity a dynamic map leads from clients to *tickets*, and rules before the last one from
//! tickets to chains. An instance's chain puts the client into the map, or starts its time again.
//! A ticket stands for an instance as long as that gets turns: who comes back has a new one, so what
//! the map says of the old one leads nowhere. Who takes a turn is taken out of the map before, because
//! an entry that is there would keep its ticket.
//!
//! A service whose connections the network process answers has no turns here: its chain leads to
//! that process.
//!
//! An instance that gets no more turns keeps its connections: they are tracked, and need no rule.
//! They carry the instance's mark, by which they are counted until the last one has ended. When its
//! plug goes, so do they: the kernel forgets them, and what their clients still send is reset, because
//! only what opens a connection takes a turn.
//! Over UDP it is more that has to be forgotten: [`forget`].

pub(super) mod forget;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netyard_engine::control::TurnState;
use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::{KernelInstance, KernelService, ServiceTraffic};
use netyard_engine::service::MAX_CLIENTS;
use netyard_engine::service::ring::Ring;
use netyard_link::conntrack::{Conntrack, Entry, Filter};
use netyard_link::nft::{
    Batch, Chain, Datum, Element, Nftables, Rule, RuleState, Selector, Set, Target, Type, Value,
    Verdict,
};
use netyard_link::plan::Owner;

use super::rules::{self, IPV4, IPV6, Pair, Rules};

/// The bit of a TCP header that a segment has which opens a connection.
const SYN: u8 = 0x02;

/// Comments of the rules that count: connections without an instance, turns of the ring, connections of
/// an instance, and those whose client found the map full.
const REFUSED: &str = "refused";
const RING: &str = "ring";
const TURN: &str = "turn";
const NOT_KEPT: &str = "not kept";

/// The services of a network.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    services: BTreeMap<String, Service>,
    /// The high half of every mark: tells networks apart.
    marks: u32,
    next_mark: u16,
    next_ticket: u32,
}

/// Turns that are to take the place of others.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) turns: Turns,
    /// What makes them so.
    pub(super) batch: Batch,
    /// What is left of those before, for the transaction after.
    pub(super) rest: Batch,
}

#[derive(Debug, Clone)]
struct Service {
    spec: KernelService,
    /// How often its rule was replaced: part of the names of its maps.
    epoch: u32,
    /// Who gets turns, as of when the rule was made. Exactly these have a chain.
    ring: Ring,
    /// What the rule had counted when it was looked at last.
    given: u64,
    /// Connections that found no instance: until the rules were made, and since, as of the last look.
    refused_before: u64,
    refused: u64,
    /// Its instances that had a turn, and those that have left with connections that are still open.
    members: BTreeMap<String, Member>,
}

#[derive(Debug, Clone)]
struct Member {
    mark: u32,
    ticket: u32,
    /// What chains before its present one have counted.
    before: Counted,
    /// What its chain had counted when it was looked at last.
    counted: Counted,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    turns: u64,
    not_kept: u64,
}

impl Member {
    /// Its chain goes, and with it the counters.
    fn keep_count(&mut self) {
        let Counted { turns, not_kept } = std::mem::take(&mut self.counted);
        self.before.turns += turns;
        self.before.not_kept += not_kept;
    }
}

impl Turns {
    /// None yet, of a network whose things are this owner's.
    pub(super) fn of(owner: &Owner) -> Self {
        Self::new(owner.group() & 0xffff)
    }

    /// None yet. `network` tells its marks from those of others.
    fn new(network: u32) -> Self {
        Self { services: BTreeMap::new(), marks: network << 16, next_mark: 1, next_ticket: 1 }
    }

    /// The services that are to be there.
    pub(super) fn specs(&self) -> impl Iterator<Item = &KernelService> {
        self.services.values().map(|service| &service.spec)
    }

    /// What these turns would be with other services.
    pub(super) fn change_to(
        &self,
        wanted: &[KernelService],
        rules: &Rules,
        kernel: &mut Nftables,
        tracked: &mut Conntrack,
    ) -> netyard_link::Result<Change> {
        let mut next = self.clone();
        let mut marks = BTreeSet::new();
        let comes = |spec: &KernelService| {
            let known = self.services.get(&spec.name);
            let is_known = |name| known.is_some_and(|known| known.members.contains_key(name));
            spec.instances.iter().any(|it| !is_known(&it.name))
        };
        if wanted.iter().any(comes) || next.services.values().any(Service::has_left) {
            let entries = tracked.entries(&self.marked())?;
            let open = self.open(&entries, rules);
            next.services.values_mut().for_each(|service| service.forget_closed(&open));
            let members = next.services.values().flat_map(|service| service.members.values());
            marks.extend(members.map(|member| member.mark));
            marks.extend(entries.iter().map(|entry| entry.mark));
        }
        let (mut made, mut rest) = (Batch::new(), Batch::new());
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (name, service) in &self.services {
            if !wanted.iter().any(|spec| spec.name == *name) {
                before.extend(service.entries(rules));
                service.take_down(rules, &mut made);
                next.services.remove(name);
            }
        }
        for spec in wanted {
            let known = next.services.get_mut(&spec.name);
            if known.as_ref().is_some_and(|known| known.spec == *spec) {
                continue;
            }
            if let Some(known) = known {
                known.look(rules, kernel)?;
                before.extend(known.entries(rules));
            }
            let changed = next.changed(spec, &mut marks, rules, (&mut made, &mut rest));
            after.extend(changed.entries(rules));
            next.services.insert(spec.name.clone(), changed);
        }
        // What leads nowhere goes first, and what leads somewhere comes last: services may change places.
        let mut batch = Batch::new();
        for (set, element) in before.iter().filter(|entry| !after.contains(entry)) {
            batch.remove_elements(set, [element.clone()]);
        }
        batch.append(&made);
        for (set, element) in after.iter().filter(|entry| !before.contains(entry)) {
            batch.add_elements(set, [element.clone()]);
        }
        Ok(Change { turns: next, batch, rest })
    }

    /// Everything of every service, for a table that is about to have nothing of it. If it has it still,
    /// turns go on and clients keep their instances; else turns go on from where they were when they
    /// were looked at last, and which client had which instance is forgotten.
    pub(super) fn restore(
        &mut self,
        rules: &Rules,
        kernel: &mut Nftables,
    ) -> netyard_link::Result<Batch> {
        let mut batch = Batch::new();
        for service in self.services.values_mut() {
            service.look(rules, kernel)?;
            let clients = service.kept_clients(rules, kernel);
            service.ring.advance(std::mem::take(&mut service.given));
            service.refused_before += std::mem::take(&mut service.refused);
            service.members.values_mut().for_each(Member::keep_count);
            service.make_kept(rules, &mut batch);
            for (kept, clients) in clients {
                batch.add_elements(&kept, clients);
            }
            service.make_chains(|_| true, rules, &mut batch);
            service.make_rules(rules, &mut batch);
            for (set, element) in service.entries(rules) {
                batch.add_elements(&set, [element]);
            }
        }
        Ok(batch)
    }

    /// A service as `spec` wants it, made of what it was, but for the elements that lead to it. `marks`
    /// are in use. The second batch is for the transaction after.
    fn changed(
        &mut self,
        spec: &KernelService,
        marks: &mut BTreeSet<u32>,
        rules: &Rules,
        (batch, rest): (&mut Batch, &mut Batch),
    ) -> Service {
        let old = self.services.remove(&spec.name);
        let mut old = old.unwrap_or_else(|| Service {
            spec: KernelService { instances: Vec::new(), affinity: None, ..spec.clone() },
            epoch: 0,
            ring: Ring::default(),
            given: 0,
            refused_before: 0,
            refused: 0,
            members: BTreeMap::new(),
        });
        old.ring.advance(old.given);
        let weighted = spec.instances.iter().map(|it| (it.name.as_str(), it.weight));
        let mut new = Service {
            spec: spec.clone(),
            epoch: old.epoch.wrapping_add(1),
            ring: old.ring.change_to(weighted),
            given: 0,
            refused_before: old.refused_before + old.refused,
            refused: 0,
            members: old.members.clone(),
        };
        let same = |one: &KernelInstance, other: &KernelInstance| {
            one.name == other.name
                && one.address4 == other.address4
                && one.address6 == other.address6
        };
        let was_there = |instance: &KernelInstance| {
            old.spec.port == spec.port && old.spec.instances.iter().any(|it| same(it, instance))
        };
        // A chain stays if it would be made as it is.
        let stays =
            |instance: &KernelInstance| old.spec.affinity == spec.affinity && was_there(instance);
        for instance in &spec.instances {
            let ticket = self.next_ticket;
            let member = new.members.entry(instance.name.clone()).or_insert_with(|| {
                let (before, counted) = Default::default();
                Member { mark: self.new_mark(marks), ticket, before, counted }
            });
            if !was_there(instance) {
                member.ticket = ticket;
                self.next_ticket = self.next_ticket.wrapping_add(1);
            }
        }
        for (name, member) in &mut new.members {
            if !spec.instances.iter().any(|it| it.name == *name && stays(it)) {
                member.keep_count();
            }
        }
        if spec.affinity.is_some() && old.spec.affinity.is_none() {
            new.make_kept(rules, batch);
        }
        new.make_chains(|instance| !stays(instance), rules, batch);
        new.make_rules(rules, batch);
        // The old maps are not looked up any more then, so nothing leads to the chains of those who left.
        old.remove_maps(rules, rest);
        for name in old.ring.names().filter(|name| !new.ring.names().any(|other| other == *name)) {
            let turn = old.turn(name, rules);
            rest.flush_chain(&turn).remove_chain(&turn);
        }
        if spec.affinity.is_none() {
            old.remove_kept(rules, rest);
        }
        new
    }

    /// How many connections each mark has that are open.
    fn open(&self, entries: &[Entry], rules: &Rules) -> BTreeMap<u32, u64> {
        let marked = self.marked();
        let mut open: BTreeMap<u32, u64> = BTreeMap::new();
        let is_open = |entry: &&Entry| entry.open || entry.original.protocol == rules::UDP;
        for entry in entries.iter().filter(is_open).filter(|entry| marked.matches(entry)) {
            if rules.is_of_segment(entry.reply.source.ip()) {
                *open.entry(entry.mark).or_default() += 1;
            }
        }
        open
    }

    /// A mark that is not in use yet, as long as there is one.
    fn new_mark(&mut self, marks: &mut BTreeSet<u32>) -> u32 {
        let next = self.next_mark;
        // 0 is no mark.
        let mut numbers = (next..=u16::MAX).chain(1..next);
        let free = numbers.find(|number| !marks.contains(&(self.marks | u32::from(*number))));
        let number = free.unwrap_or(next);
        self.next_mark = number.checked_add(1).unwrap_or(1);
        let mark = self.marks | u32::from(number);
        marks.insert(mark);
        mark
    }

    /// Which connections have a mark of ours. (Another network may have the same, and has other
    /// addresses.)
    pub(super) fn marked(&self) -> Filter {
        Filter { mark: Some((self.marks, 0xffff_0000)), ..Filter::all() }
    }

    /// Counters of all services. `entries` has all connections that are [`Self::marked`], and may have
    /// others.
    pub(super) fn traffic(
        &mut self,
        entries: &[Entry],
        rules: &Rules,
        kernel: &mut Nftables,
    ) -> netyard_link::Result<BTreeMap<String, ServiceTraffic>> {
        let open = self.open(entries, rules);
        let counted = self.services.iter_mut().map(|(name, service)| {
            service.look(rules, kernel)?;
            service.forget_closed(&open);
            Ok((name.clone(), service.traffic(&open, rules, kernel)?))
        });
        counted.collect()
    }
}

impl Service {
    /// Whether an instance may get turns, now or later.
    fn has(&self, instance: &str) -> bool {
        self.spec.instances.iter().any(|it| it.name == instance)
            || self.spec.resting.iter().any(|it| it == instance)
    }

    /// Whether anybody is known who is no instance any more.
    fn has_left(&self) -> bool {
        self.members.keys().any(|name| !self.has(name))
    }

    /// Forgets who has left and has no open connection.
    fn forget_closed(&mut self, open: &BTreeMap<u32, u64>) {
        let mut members = std::mem::take(&mut self.members);
        members.retain(|name, member| self.has(name) || open.contains_key(&member.mark));
        self.members = members;
    }

    fn chain(&self, rules: &Rules) -> Chain {
        Chain::regular(&rules.table, &format!("service/{}", self.spec.name))
    }

    fn turn(&self, instance: &str, rules: &Rules) -> Chain {
        Chain::regular(&rules.table, &format!("turn/{}/{instance}", self.spec.name))
    }

    /// From turns to chains.
    fn map(&self, rules: &Rules) -> Set {
        let name = format!("turns/{}/{}", self.spec.name, self.epoch);
        Set::verdict_map(&rules.table, &name, [Type::Mark])
    }

    /// From tickets to chains.
    fn tickets(&self, rules: &Rules) -> Set {
        let name = format!("tickets/{}/{}", self.spec.name, self.epoch);
        Set::verdict_map(&rules.table, &name, [Type::Mark])
    }

    /// From clients to tickets.
    fn kept(&self, rules: &Rules) -> Pair {
        Pair::new(&format!("kept/{}/", self.spec.name), |name, address| {
            let map = Set::map(&rules.table, name, [address], [Type::Mark]);
            map.dynamic(MAX_CLIENTS).timeout(None)
        })
    }

    /// Reads the counters; those of rules that are not there stay as they were.
    fn look(&mut self, rules: &Rules, kernel: &mut Nftables) -> netyard_link::Result<()> {
        let counters = kernel.rules(&self.chain(rules))?;
        self.given = packets(&counters, RING).unwrap_or(self.given);
        self.refused = packets(&counters, REFUSED).unwrap_or(self.refused);
        for name in self.ring.names() {
            let counters = kernel.rules(&self.turn(name, rules))?;
            if let Some(member) = self.members.get_mut(name) {
                let Counted { turns, not_kept } = member.counted;
                member.counted = Counted {
                    turns: packets(&counters, TURN).unwrap_or(turns),
                    not_kept: packets(&counters, NOT_KEPT).unwrap_or(not_kept),
                };
            }
        }
        Ok(())
    }

    /// Its counters, as of the last look; `open` has the open connections by their marks.
    fn traffic(
        &self,
        open: &BTreeMap<u32, u64>,
        rules: &Rules,
        kernel: &mut Nftables,
    ) -> netyard_link::Result<ServiceTraffic> {
        let in_ring: BTreeSet<&str> = self.ring.names().collect();
        let instances = self.members.iter().map(|(name, member)| {
            let open = open.get(&member.mark).copied().unwrap_or_default();
            let draining = open > 0 && !in_ring.contains(name.as_str());
            let turns = member.before.turns + member.counted.turns;
            (name.clone(), TurnState { turns, failed: 0, opening: 0, open, draining })
        });
        let counted = self.members.values();
        Ok(ServiceTraffic {
            instances: instances.collect(),
            refused: self.refused_before + self.refused,
            clients: self.clients(rules, kernel)?,
            clients_not_kept: counted.map(|it| it.before.not_kept + it.counted.not_kept).sum(),
        })
    }

    /// How many clients are led to the same instance again.
    fn clients(&self, rules: &Rules, kernel: &mut Nftables) -> netyard_link::Result<u64> {
        if self.spec.affinity.is_none() {
            return Ok(0);
        }
        let in_ring = self.ring.names().filter_map(|name| self.members.get(name));
        let tickets: BTreeSet<Value> = in_ring.map(|it| Value::number(it.ticket)).collect();
        let Pair { v4, v6 } = self.kept(rules);
        let mut clients = 0;
        for kept in [v4, v6] {
            let entries = kernel.elements(&kept)?;
            let valid = entries.iter().filter(|it| match &it.data {
                Some(Datum::Value(ticket)) => tickets.contains(ticket),
                _ => false,
            });
            clients += u64::try_from(valid.count()).unwrap_or(u64::MAX);
        }
        Ok(clients)
    }

    /// The maps of clients with what is in them, if they are there; each client with the time that is
    /// left to it.
    fn kept_clients(&self, rules: &Rules, kernel: &mut Nftables) -> Vec<(Set, Vec<Element>)> {
        if self.spec.affinity.is_none() {
            return Vec::new();
        }
        let Pair { v4, v6 } = self.kept(rules);
        let maps = [v4, v6].into_iter().map(|kept| {
            let clients = kernel.elements(&kept).unwrap_or_default().into_iter();
            let clients = clients.filter_map(|client| {
                let left = client.expires.filter(|left| !left.is_zero())?;
                Some(Element::new(client.key).to(client.data?).timeout(left))
            });
            let clients = clients.collect();
            (kept, clients)
        });
        maps.collect()
    }

    /// Makes the maps of clients, if there are to be any.
    fn make_kept(&self, rules: &Rules, batch: &mut Batch) {
        if self.spec.affinity.is_some() {
            let Pair { v4, v6 } = self.kept(rules);
            batch.add_set(&v4).add_set(&v6);
        }
    }

    /// Makes the chains of those instances.
    fn make_chains(&self, of: impl Fn(&KernelInstance) -> bool, rules: &Rules, batch: &mut Batch) {
        let kept = self.kept(rules);
        for instance in self.spec.instances.iter().filter(|instance| of(instance)) {
            let Some(member) = self.members.get(&instance.name) else { continue };
            let turn = self.turn(&instance.name, rules);
            batch.add_chain(&turn).flush_chain(&turn);
            let families: [(_, _, IpAddr); 2] = [
                (IPV4, Selector::Ip4Source, instance.address4.into()),
                (IPV6, Selector::Ip6Source, instance.address6.into()),
            ];
            for (family, source, address) in families {
                let rule = || Rule::new(&turn).is(Selector::NetworkProtocol, Value::byte(family));
                let counted = rule().comment(TURN).counter();
                let counted = counted.set(Target::CtMark, Value::number(member.mark));
                let translate = |rule: Rule| rule.dnat(address, Some(self.spec.port));
                let Some(time) = self.spec.affinity else {
                    batch.add_rule(&translate(counted));
                    continue;
                };
                batch.add_rule(&counted);
                let keep = Rule::new(&turn).load([source]);
                let ticket = Value::number(member.ticket);
                let keep = keep.update_map(kept.of(address), ticket, Some(time));
                batch.add_rule(&translate(keep));
                batch.add_rule(&translate(rule().comment(NOT_KEPT).counter()));
            }
        }
    }

    /// Makes the service's rules, or puts them in the place of those before.
    fn make_rules(&self, rules: &Rules, batch: &mut Batch) {
        let chain = self.chain(rules);
        batch.add_chain(&chain).flush_chain(&chain);
        if self.spec.protocol == Protocol::Tcp {
            let goes_on = Rule::new(&chain).comment("goes on, and is not tracked any more");
            let goes_on = goes_on.bits(Selector::TcpFlags, Value::byte(SYN), Value::byte(0));
            batch.add_rule(&goes_on.verdict(Verdict::Return));
        }
        for at in &self.spec.answered_at {
            let family = if at.is_ipv4() { IPV4 } else { IPV6 };
            let rule = Rule::new(&chain).is(Selector::NetworkProtocol, Value::byte(family));
            let rule = rule.set(Target::CtMark, Value::number(rules::ANSWERED));
            batch.add_rule(&rule.dnat(at.ip(), Some(at.port())));
        }
        let modulus = match u32::try_from(self.ring.len()) {
            // Who finds nobody goes on to be refused.
            Ok(0) | Err(_) => {
                batch.add_rule(&Rule::new(&chain).comment(REFUSED).counter());
                return;
            }
            Ok(modulus) => modulus,
        };
        let goto = |name: &str| Verdict::Goto(self.turn(name, rules).name().to_owned());
        if self.spec.affinity.is_some() {
            let tickets = self.tickets(rules);
            let in_ring = self.ring.names().filter_map(|name| {
                let ticket = Value::number(self.members.get(name)?.ticket);
                Some(Element::new(ticket).to(goto(name)))
            });
            batch.add_set(&tickets).add_elements(&tickets, in_ring);
            let Pair { v4, v6 } = self.kept(rules);
            for (source, kept) in [(Selector::Ip4Source, v4), (Selector::Ip6Source, v6)] {
                let client = || Rule::new(&chain).load([source]);
                // By the connection's mark: nft has no words for a lookup in what a lookup has found. The
                // instance's chain sets another one.
                let ticket = client().map(&kept).store(Target::CtMark).load([Selector::CtMark]);
                batch.add_rule(&ticket.vmap(&tickets));
                batch.add_rule(&client().forget(&kept));
            }
        }
        let map = self.map(rules);
        let turns = (0..).zip(self.ring.upcoming());
        let turns = turns.map(|(number, name)| Element::new(Value::number(number)).to(goto(name)));
        batch.add_set(&map).add_elements(&map, turns);
        let next = Rule::new(&chain).comment(RING).counter();
        let next = next.load([Selector::Turn { modulus, offset: 0 }]).vmap(&map);
        batch.add_rule(&next);
    }

    /// Removes the rules, the maps and all chains; nothing leads to them any more.
    fn take_down(&self, rules: &Rules, batch: &mut Batch) {
        let chain = self.chain(rules);
        batch.flush_chain(&chain).remove_chain(&chain);
        self.remove_maps(rules, batch);
        for name in self.ring.names() {
            let turn = self.turn(name, rules);
            batch.flush_chain(&turn).remove_chain(&turn);
        }
        self.remove_kept(rules, batch);
    }

    /// Removes the maps that lead to chains of instances; nothing looks them up any more.
    fn remove_maps(&self, rules: &Rules, batch: &mut Batch) {
        if self.ring.is_empty() {
            return;
        }
        batch.remove_set(&self.map(rules));
        if self.spec.affinity.is_some() {
            batch.remove_set(&self.tickets(rules));
        }
    }

    /// Removes the maps of clients, which no rule uses any more.
    fn remove_kept(&self, rules: &Rules, batch: &mut Batch) {
        if self.spec.affinity.is_some() {
            let Pair { v4, v6 } = self.kept(rules);
            batch.remove_set(&v4).remove_set(&v6);
        }
    }

    /// The elements that lead to the service: by its virtual addresses, and by its published one.
    fn entries(&self, rules: &Rules) -> Vec<(Set, Element)> {
        let (protocol, port) = (self.spec.protocol, self.spec.port);
        let lead = |set: &Set, key| {
            let goto = Verdict::Goto(self.chain(rules).name().to_owned());
            (set.clone(), Element::new(key).to(goto))
        };
        let mut entries = Vec::new();
        for address in addresses(&self.spec) {
            let bare = Element::new(address);
            entries.push((rules.virtual_addresses.of(address).clone(), bare));
            entries.push(lead(rules.services.of(address), rules::at(address, protocol, port)));
        }
        if let Some(at) = self.spec.publish.filter(|at| !at.ip().is_loopback()) {
            let (leading, refused, key) = published(protocol, at, rules);
            entries.push(lead(leading, key.clone()));
            if self.ring.is_empty() && self.spec.answered_at.is_empty() {
                entries.push((refused.clone(), Element::new(key)));
            }
        }
        entries
    }
}

/// The sets for a published service: with instances, and without. The key is the same.
fn published(protocol: Protocol, at: SocketAddr, rules: &Rules) -> (&Set, &Set, Value) {
    let (address, port) = (at.ip(), at.port());
    if address.is_unspecified() {
        let sets = (rules.published_everywhere.of(address), rules.refused_everywhere.of(address));
        (sets.0, sets.1, rules::everywhere(protocol, port))
    } else {
        let sets = (rules.published.of(address), rules.refused.of(address));
        (sets.0, sets.1, rules::at(address, protocol, port))
    }
}

/// A service's virtual addresses.
pub(super) fn addresses(spec: &KernelService) -> [IpAddr; 2] {
    [spec.address4.into(), spec.address6.into()]
}

/// What the rules with this comment have counted; `None`: there are none.
fn packets(rules: &[RuleState], comment: &str) -> Option<u64> {
    let counting = rules.iter().filter(|rule| rule.comment.as_deref() == Some(comment));
    let counted = counting.filter_map(|rule| rule.counter).map(|counter| counter.packets);
    counted.reduce(|one, other| one + other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_given_again_when_nobody_has_it() {
        let mut turns = Turns::new(7);
        let mut marks = BTreeSet::from([0x7_0002]);
        assert_eq!(turns.new_mark(&mut marks), 0x7_0001);
        assert_eq!(turns.new_mark(&mut marks), 0x7_0003);
        turns.next_mark = u16::MAX;
        assert_eq!(turns.new_mark(&mut marks), 0x7_ffff);
        assert_eq!(turns.new_mark(&mut marks), 0x7_0004);
        marks.remove(&0x7_0001);
        turns.next_mark = u16::MAX;
        assert_eq!(turns.new_mark(&mut marks), 0x7_0001);
    }
}
