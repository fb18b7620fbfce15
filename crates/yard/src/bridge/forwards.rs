//! Forwards as elements of maps: one for each port, found in one step however many there are.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::net::{IpAddr, SocketAddr};

use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::KernelForward;
use netyard_link::conntrack::{Conntrack, Entry, Filter};
use netyard_link::nft::{Batch, Element, Nftables, Set, Value};

use super::rules::{self, Rules};

/// Where a forward begins: an unspecified address is every address of its family.
type From = (Protocol, SocketAddr);

/// The forwards that are in the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Forwards {
    ports: BTreeMap<From, SocketAddr>,
}

impl Forwards {
    /// One entry for each port of each forward.
    pub(super) fn of(forwards: &[KernelForward]) -> Self {
        let ports = forwards.iter().flat_map(|KernelForward { forward, address4, address6 }| {
            let target = match forward.host {
                IpAddr::V4(_) => IpAddr::V4(*address4),
                IpAddr::V6(_) => IpAddr::V6(*address6),
            };
            forward
                .pairs()
                .map(move |(from, port)| ((forward.protocol, from), SocketAddr::new(target, port)))
        });
        Self { ports: ports.collect() }
    }

    /// What makes `next` of these.
    pub(super) fn change_to(&self, next: &Self, rules: &Rules) -> Batch {
        let differing = |one: &Self, other: &Self| -> BTreeMap<Name, (Set, Vec<Element>)> {
            let mut sets = BTreeMap::new();
            for (from, to) in &one.ports {
                if other.ports.get(from) != Some(to) {
                    let (set, key) = place(*from, rules);
                    let element = Element::new(key).to(rules::to(to.ip(), to.port()));
                    let (_, elements) = sets
                        .entry(set.name().to_owned())
                        .or_insert_with(|| (set.clone(), Vec::new()));
                    elements.push(element);
                }
            }
            sets
        };
        let mut batch = Batch::new();
        for (set, elements) in differing(self, next).into_values() {
            batch.remove_elements(&set, elements);
        }
        for (set, elements) in differing(next, self).into_values() {
            batch.add_elements(&set, elements);
        }
        batch
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

    /// Has the kernel forget the UDP connections that go by what differs from `next`: those of
    /// forwards that have gone would go on, those to a port that is forwarded now would stay
    /// here. (A TCP connection that has been made is its own matter.)
    pub(super) fn forget_changed(
        &self,
        next: &Self,
        tracked: &mut Conntrack,
    ) -> netyard_link::Result<()> {
        let changed: BTreeSet<From> =
            (self.ports.iter().filter(|(from, to)| next.ports.get(from) != Some(to)))
                .chain(next.ports.iter().filter(|(from, to)| self.ports.get(from) != Some(to)))
                .map(|(from, _)| *from)
                .filter(|(protocol, _)| *protocol == Protocol::Udp)
                .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let udp = Filter { protocol: Some(rules::number(Protocol::Udp)), ..Filter::all() };
        let gone = |entry: &&Entry| {
            let to = entry.original.destination;
            let any = SocketAddr::new(unspecified(to.ip()), to.port());
            let here = entry.reply.source == to;
            let old = [to, any].map(|from| self.ports.get(&(Protocol::Udp, from)));
            let forwarded = old.into_iter().flatten().any(|to| *to == entry.reply.source);
            let is_changed = [to, any].iter().any(|from| changed.contains(&(Protocol::Udp, *from)));
            is_changed && (forwarded || here)
        };
        for entry in tracked.entries(&udp)?.iter().filter(gone) {
            tracked.remove(entry)?;
        }
        Ok(())
    }
}

type Name = String;

/// The map that a forward belongs to, and its key there.
fn place((protocol, from): From, rules: &Rules) -> (&Set, Value) {
    if from.ip().is_unspecified() {
        let set = rules.forwards_everywhere.of(from.ip());
        (set, rules::everywhere(protocol, from.port()))
    } else {
        (rules.forwards.of(from.ip()), rules::at(from.ip(), protocol, from.port()))
    }
}

fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    }
}
