//! Forwards as elements of maps: one for each port, found in one step however many there are.

use std::collections::{BTreeMap, HashMap, btree_map};
use std::net::{IpAddr, SocketAddr};

use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::KernelForward;
use netyard_link::conntrack::{Conntrack, Entry, Filter};
use netyard_link::nft::{Batch, Element, Nftables, Set, Value};

use super::everywhere::Everywhere;
use super::rules::{self, Rules};

/// Where a forward begins: an unspecified address is every address of its family.
type From = (Protocol, SocketAddr);

/// The ports in the maps, and where they lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Forwards {
    ports: BTreeMap<From, SocketAddr>,
}

/// Ports that go, and then ports that come.
#[derive(Debug, Default)]
pub(super) struct Change {
    gone: BTreeMap<From, SocketAddr>,
    new: BTreeMap<From, SocketAddr>,
}

/// Each port of each forward.
fn ports(forwards: &[KernelForward]) -> impl Iterator<Item = (From, SocketAddr)> {
    forwards.iter().flat_map(|KernelForward { forward, address4, address6 }| {
        forward.pairs().map(|(from, port)| {
            let target = match from {
                SocketAddr::V4(_) => IpAddr::V4(*address4),
                SocketAddr::V6(_) => IpAddr::V6(*address6),
            };
            ((forward.protocol, from), SocketAddr::new(target, port))
        })
    })
}

impl Forwards {
    /// What has to be done so that some forwards go and others come.
    pub(super) fn change(&self, gone: &[KernelForward], new: &[KernelForward]) -> Change {
        let mut gone: BTreeMap<From, SocketAddr> =
            ports(gone).filter(|(from, to)| self.ports.get(from) == Some(to)).collect();
        let mut change = Change::default();
        for (from, to) in ports(new) {
            match self.ports.get(&from) {
                Some(is) if *is == to => {
                    gone.remove(&from);
                    continue;
                }
                // Somebody else's until now.
                Some(is) => drop(gone.insert(from, *is)),
                None => {}
            }
            change.new.insert(from, to);
        }
        Change { gone, ..change }
    }

    /// That all that there are come.
    pub(super) fn all(&self) -> Change {
        Change { gone: BTreeMap::new(), new: self.ports.clone() }
    }

    /// That all that there are go.
    pub(super) fn none(&self) -> Change {
        Change { gone: self.ports.clone(), new: BTreeMap::new() }
    }

    /// How many connections each has had since it was put into its map.
    pub(super) fn traffic(
        &self,
        rules: &Rules,
        kernel: &mut Nftables,
    ) -> netyard_link::Result<BTreeMap<From, u64>> {
        let mut maps: BTreeMap<&str, HashMap<Value, u64>> = BTreeMap::new();
        let mut traffic = BTreeMap::new();
        for from in self.ports.keys() {
            let (map, key) = place(*from, rules);
            let counted = match maps.entry(map.name()) {
                btree_map::Entry::Occupied(known) => known.into_mut(),
                btree_map::Entry::Vacant(unknown) => {
                    let elements = kernel.elements(map)?.into_iter();
                    let counted = elements.filter_map(|it| Some((it.key, it.counter?.packets)));
                    unknown.insert(counted.collect())
                }
            };
            traffic.insert(*from, counted.get(&key).copied().unwrap_or_default());
        }
        Ok(traffic)
    }

    /// It has been done.
    pub(super) fn apply(&mut self, change: &Change) {
        for from in change.gone.keys() {
            self.ports.remove(from);
        }
        self.ports.extend(&change.new);
    }
}

impl Change {
    /// What does it, in one step.
    pub(super) fn batch(&self, rules: &Rules) -> Batch {
        let sets = |ports: &BTreeMap<From, SocketAddr>| {
            let mut sets: BTreeMap<String, (Set, Vec<Element>)> = BTreeMap::new();
            for (from, to) in ports {
                let (set, key) = place(*from, rules);
                let element = Element::new(key).to(rules::to(to.ip(), to.port()));
                let (_, elements) =
                    sets.entry(set.name().to_owned()).or_insert_with(|| (set.clone(), Vec::new()));
                elements.push(element);
            }
            sets.into_values()
        };
        let mut batch = Batch::new();
        for (set, elements) in sets(&self.gone) {
            batch.remove_elements(&set, elements);
        }
        for (set, elements) in sets(&self.new) {
            batch.add_elements(&set, elements);
        }
        batch
    }

    /// Whether it is about a UDP port of every address.
    pub(super) fn is_everywhere(&self) -> bool {
        self.over_udp().any(|from| from.ip().is_unspecified())
    }

    fn over_udp(&self) -> impl Iterator<Item = &SocketAddr> {
        let all = self.gone.keys().chain(self.new.keys());
        all.filter(|(protocol, _)| *protocol == Protocol::Udp).map(|(_, from)| from)
    }

    /// Has the kernel forget the UDP connections that go by what has changed: those of forwards that
    /// have gone would go on, those to a port that is forwarded now would stay here. (A TCP
    /// connection that has been made is its own matter.)
    pub(super) fn forget(
        &self,
        everywhere: &Everywhere,
        tracked: &mut Conntrack,
    ) -> netyard_link::Result<()> {
        if self.over_udp().next().is_none() {
            return Ok(());
        }
        let udp = Filter { protocol: Some(rules::number(Protocol::Udp)), ..Filter::all() };
        let gone = |entry: &&Entry| {
            let (to, leads_to) = (entry.original.destination, entry.reply.source);
            let mut from = everywhere.fronts(to).map(|from| (Protocol::Udp, from));
            match leads_to == to {
                true => from.any(|from| self.new.contains_key(&from)),
                false => from.any(|from| self.gone.get(&from) == Some(&leads_to)),
            }
        };
        for entry in tracked.entries(&udp)?.iter().filter(gone) {
            tracked.remove(entry)?;
        }
        Ok(())
    }
}

/// The map that a forward belongs to, and its key there.
fn place((protocol, from): From, rules: &Rules) -> (&Set, Value) {
    if from.ip().is_unspecified() {
        let set = rules.forwards_everywhere.of(from.ip());
        (set, rules::everywhere(protocol, from.port()))
    } else {
        (rules.forwards.of(from.ip()), rules::at(from.ip(), protocol, from.port()))
    }
}
