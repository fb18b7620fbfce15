//! Services whose turns the kernel keeps.
//!
//! # Theory of operation
//!
//! A service is a chain with one rule: `numgen inc`, one counter for everybody, looked up in a map
//! of turns; each turn leads to the chain of an instance, which counts, marks the connection and
//! translates it. Only the first packet of a connection comes here.
//!
//! When the instances change, the rule is replaced by one with a new map, in one transaction: a
//! packet sees either both old or both new. The new rule counts from 0, so the new map begins with
//! the instance whose turn it is: the first of those that were to come that is still there. Whose
//! turn it is follows from the instances' counters.
//!
//! An instance that gets no more turns keeps its connections: they are tracked, and need no rule.
//! They carry the instance's mark, by which they are counted until the last one has ended.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netyard_engine::control::TurnState;
use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::{KernelInstance, KernelService};
use netyard_link::conntrack::{Conntrack, Filter};
use netyard_link::nft::{
    Batch, Chain, Element, Nftables, Rule, Selector, Set, Target, Type, Value, Verdict,
};

use super::rules::{self, IPV4, IPV6, Rules};

/// Longest time that the kernel keeps a TCP connection which is closing, by default
/// (`nf_conntrack_tcp_timeout_time_wait`); open ones are kept for days.
const CLOSING: Duration = Duration::from_secs(120);

/// The services of a network.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    services: BTreeMap<String, Service>,
    /// The high half of every mark: tells networks apart.
    marks: u32,
    next_mark: u16,
}

#[derive(Debug, Clone)]
struct Service {
    spec: KernelService,
    /// How often its rule was replaced: part of the name of its map.
    epoch: u32,
    /// Who has a turn, in the order of the map. Exactly these have a chain.
    ring: Vec<String>,
    /// Everybody who ever had one.
    members: BTreeMap<String, Member>,
}

#[derive(Debug, Clone)]
struct Member {
    mark: u32,
    /// Turns that its chain does not count: of chains before it.
    before: u64,
    /// What its chain had counted when it was looked at last.
    counted: u64,
    /// What its chain had counted when the ring began.
    at_begin: u64,
}

impl Member {
    /// Its chain goes, and with it the counter.
    fn keep_count(&mut self) {
        self.before += std::mem::take(&mut self.counted);
        self.at_begin = 0;
    }
}

impl Turns {
    /// None yet. `network` tells its marks from those of others.
    pub(super) fn new(network: u32) -> Self {
        Self { services: BTreeMap::new(), marks: network << 16, next_mark: 1 }
    }

    /// The services that are to be there.
    pub(super) fn specs(&self) -> impl Iterator<Item = &KernelService> {
        self.services.values().map(|service| &service.spec)
    }

    /// What these turns would be with other services, and what makes them so.
    pub(super) fn change_to(
        &self,
        wanted: &[KernelService],
        rules: &Rules,
        kernel: &mut Nftables,
    ) -> netyard_link::Result<(Self, Batch)> {
        let mut next = self.clone();
        let mut batch = Batch::new();
        for (name, service) in &self.services {
            if !wanted.iter().any(|spec| spec.name == *name) {
                service.take_out(rules, &mut batch);
                service.take_down(rules, &mut batch);
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
                known.take_out(rules, &mut batch);
            }
            let changed = next.changed(spec, rules, &mut batch);
            changed.put_in(rules, &mut batch);
            next.services.insert(spec.name.clone(), changed);
        }
        Ok((next, batch))
    }

    /// Everything of every service, for a table that has nothing of it. Turns go on from where
    /// they were when they were looked at last.
    pub(super) fn restore(&mut self, rules: &Rules) -> Batch {
        let mut batch = Batch::new();
        for service in self.services.values_mut() {
            service.ring = service.upcoming();
            service.members.values_mut().for_each(Member::keep_count);
            service.make_chains(|_| true, rules, &mut batch);
            service.make_rule(rules, &mut batch);
            service.put_in(rules, &mut batch);
        }
        batch
    }

    /// A service as `spec` wants it, made of what it was, but for the elements that lead to it.
    fn changed(&mut self, spec: &KernelService, rules: &Rules, batch: &mut Batch) -> Service {
        let old = self.services.remove(&spec.name);
        let old = old.unwrap_or_else(|| Service {
            spec: KernelService { instances: Vec::new(), ..spec.clone() },
            epoch: 0,
            ring: Vec::new(),
            members: BTreeMap::new(),
        });
        let names: Vec<String> = spec.instances.iter().map(|it| it.name.clone()).collect();
        let mut new = Service {
            spec: spec.clone(),
            epoch: old.epoch.wrapping_add(1),
            ring: turned(&names, &old.upcoming()),
            members: old.members.clone(),
        };
        // A chain stays if it would be made as it is.
        let stays = |instance: &KernelInstance| {
            old.spec.port == spec.port && old.spec.instances.contains(instance)
        };
        for instance in &spec.instances {
            if !new.members.contains_key(&instance.name) {
                let mark = self.new_mark();
                let member = Member { mark, before: 0, counted: 0, at_begin: 0 };
                new.members.insert(instance.name.clone(), member);
            }
        }
        for (name, member) in &mut new.members {
            match spec.instances.iter().find(|it| it.name == *name) {
                Some(instance) if stays(instance) => member.at_begin = member.counted,
                _ => member.keep_count(),
            }
        }
        new.make_chains(|instance| !stays(instance), rules, batch);
        new.make_rule(rules, batch);
        // The old map is not looked up any more, so nothing leads to the chains of those who left.
        if !old.ring.is_empty() {
            batch.remove_set(&old.map(rules));
        }
        for name in old.ring.iter().filter(|name| !new.ring.contains(name)) {
            let turn = old.turn(name, rules);
            batch.flush_chain(&turn).remove_chain(&turn);
        }
        new
    }

    fn new_mark(&mut self) -> u32 {
        let mark = self.marks | u32::from(self.next_mark);
        // Far more than there are at once; 0 is no mark.
        self.next_mark = self.next_mark.checked_add(1).unwrap_or(1);
        mark
    }

    /// Counters of a service's instances.
    pub(super) fn states(
        &mut self,
        service: &str,
        rules: &Rules,
        kernel: &mut Nftables,
        tracked: &mut Conntrack,
    ) -> netyard_link::Result<Vec<(String, TurnState)>> {
        let Some(service) = self.services.get_mut(service) else { return Ok(Vec::new()) };
        service.look(rules, kernel)?;
        let mut open: BTreeMap<u32, u64> = BTreeMap::new();
        let ours = Filter { mark: Some((self.marks, 0xffff_0000)), ..Filter::all() };
        for entry in tracked.entries(&ours)? {
            if entry.expires.is_some_and(|expires| expires > CLOSING) {
                *open.entry(entry.mark).or_default() += 1;
            }
        }
        let states = service.members.iter().map(|(name, member)| {
            let open = open.get(&member.mark).copied().unwrap_or_default();
            let draining = open > 0 && !service.ring.contains(name);
            let turns = member.before + member.counted;
            (name.clone(), TurnState { turns, failed: 0, open, draining })
        });
        Ok(states.collect())
    }
}

impl Service {
    fn chain(&self, rules: &Rules) -> Chain {
        Chain::regular(&rules.table, &format!("service/{}", self.spec.name))
    }

    fn turn(&self, instance: &str, rules: &Rules) -> Chain {
        Chain::regular(&rules.table, &format!("turn/{}/{instance}", self.spec.name))
    }

    fn map(&self, rules: &Rules) -> Set {
        let name = format!("turns/{}/{}", self.spec.name, self.epoch);
        Set::verdict_map(&rules.table, &name, [Type::Mark])
    }

    /// Reads the counters.
    fn look(&mut self, rules: &Rules, kernel: &mut Nftables) -> netyard_link::Result<()> {
        for name in &self.ring {
            let counters = kernel.rules(&self.turn(name, rules))?;
            let counters = counters.iter().filter_map(|rule| rule.counter);
            if let Some(member) = self.members.get_mut(name) {
                member.counted = counters.map(|counter| counter.packets).sum();
            }
        }
        Ok(())
    }

    /// The ring from the instance whose turn it is.
    fn upcoming(&self) -> Vec<String> {
        let members = self.ring.iter().filter_map(|name| self.members.get(name));
        let given = members.map(|member| member.counted.saturating_sub(member.at_begin)).sum();
        let mut ring = self.ring.clone();
        let count = u64::try_from(ring.len()).unwrap_or(u64::MAX);
        let position = u64::checked_rem(given, count).unwrap_or_default();
        ring.rotate_left(usize::try_from(position).unwrap_or_default());
        ring
    }

    /// Makes the chains of those instances.
    fn make_chains(&self, of: impl Fn(&KernelInstance) -> bool, rules: &Rules, batch: &mut Batch) {
        for instance in self.spec.instances.iter().filter(|instance| of(instance)) {
            let Some(member) = self.members.get(&instance.name) else { continue };
            let turn = self.turn(&instance.name, rules);
            batch.add_chain(&turn).flush_chain(&turn);
            let families: [(_, IpAddr); 2] =
                [(IPV4, instance.address4.into()), (IPV6, instance.address6.into())];
            for (family, address) in families {
                let rule = Rule::new(&turn).is(Selector::NetworkProtocol, Value::byte(family));
                let rule = rule.counter().set(Target::CtMark, Value::number(member.mark));
                batch.add_rule(&rule.dnat(address, Some(self.spec.port)));
            }
        }
    }

    /// Makes the rule, or puts it in the place of the one before.
    fn make_rule(&self, rules: &Rules, batch: &mut Batch) {
        let chain = self.chain(rules);
        batch.add_chain(&chain).flush_chain(&chain);
        let modulus = match u32::try_from(self.ring.len()) {
            Ok(0) | Err(_) => return,
            Ok(modulus) => modulus,
        };
        let map = self.map(rules);
        let turns = (0..).zip(&self.ring).map(|(number, name)| {
            let goto = Verdict::Goto(self.turn(name, rules).name().to_owned());
            Element::new(Value::number(number)).to(goto)
        });
        batch.add_set(&map).add_elements(&map, turns);
        let next = Rule::new(&chain).load([Selector::Turn { modulus, offset: 0 }]).vmap(&map);
        batch.add_rule(&next);
    }

    /// Removes the rule, the map and all chains; nothing leads to it any more.
    fn take_down(&self, rules: &Rules, batch: &mut Batch) {
        let chain = self.chain(rules);
        batch.flush_chain(&chain).remove_chain(&chain);
        if !self.ring.is_empty() {
            batch.remove_set(&self.map(rules));
        }
        for name in &self.ring {
            let turn = self.turn(name, rules);
            batch.flush_chain(&turn).remove_chain(&turn);
        }
    }

    /// The elements that lead to the service: by its virtual addresses, and by its published one.
    fn entries(&self, rules: &Rules) -> Vec<(Set, Element)> {
        let (tcp, port) = (Protocol::Tcp, self.spec.port);
        let lead = |set: &Set, key| {
            let goto = Verdict::Goto(self.chain(rules).name().to_owned());
            (set.clone(), Element::new(key).to(goto))
        };
        let serves = !self.ring.is_empty();
        let mut entries = Vec::new();
        for address in addresses(&self.spec) {
            let bare = Element::new(address);
            entries.push((rules.virtual_addresses.of(address).clone(), bare));
            if serves {
                entries.push(lead(rules.services.of(address), rules::at(address, tcp, port)));
            }
        }
        if let Some(at) = self.spec.publish.filter(|at| !at.ip().is_loopback()) {
            let (leading, refused, key) = published(at, rules);
            entries.push(match serves {
                true => lead(leading, key),
                false => (refused.clone(), Element::new(key)),
            });
        }
        entries
    }

    fn put_in(&self, rules: &Rules, batch: &mut Batch) {
        for (set, element) in self.entries(rules) {
            batch.add_elements(&set, [element]);
        }
    }

    fn take_out(&self, rules: &Rules, batch: &mut Batch) {
        for (set, element) in self.entries(rules) {
            batch.remove_elements(&set, [element]);
        }
    }
}

/// The sets for a published service: with instances, and without. The key is the same.
fn published(at: SocketAddr, rules: &Rules) -> (&Set, &Set, Value) {
    let (address, port) = (at.ip(), at.port());
    if address.is_unspecified() {
        let sets = (rules.published_everywhere.of(address), rules.refused_everywhere.of(address));
        (sets.0, sets.1, rules::everywhere(Protocol::Tcp, port))
    } else {
        let sets = (rules.published.of(address), rules.refused.of(address));
        (sets.0, sets.1, rules::at(address, Protocol::Tcp, port))
    }
}

/// A service's virtual addresses.
pub(super) fn addresses(spec: &KernelService) -> [IpAddr; 2] {
    [spec.address4.into(), spec.address6.into()]
}

/// The names in their order, beginning with the first of `upcoming` that is one of them.
fn turned(names: &[String], upcoming: &[String]) -> Vec<String> {
    let mut ring = names.to_vec();
    let first = upcoming.iter().find_map(|next| names.iter().position(|name| name == next));
    ring.rotate_left(first.unwrap_or_default());
    ring
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_order_goes_on_when_instances_come_and_go() {
        for (all, upcoming, ring) in [
            ("a b c", "", "a b c"),
            ("a b c", "b c a", "b c a"),
            ("a c", "b c a", "c a"),
            ("a b c d", "b c a", "b c d a"),
            ("x y", "b c a", "x y"),
            ("", "b c a", ""),
        ] {
            assert_eq!(
                turned(&names(all), &names(upcoming)),
                names(ring),
                "{all} after {upcoming}"
            );
        }
    }
}
