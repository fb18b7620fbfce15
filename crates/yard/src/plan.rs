//! From the yard that runs to the yard that is wanted: ordered, typed steps.
//!
//! What does not differ gets no step. The order is such that every step finds what it needs and
//! nothing is in its way:
//!
//! 1. host ports that others may want are let go: forwards and services that went, publications
//!    that moved;
//! 2. services on networks that stay are set, so that connections drain from instances before
//!    they stop;
//! 3. instances that went, or whose plugs change, stop, those that need others first;
//! 4. networks go, are remade, come;
//! 5. services on those networks are set, and forwards open: a taken host port is found before
//!    any program starts;
//! 6. instances start, those that others need first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use netyard_engine::forward::Forward;

use crate::model::{InstanceSpec, Need, NetworkSpec, ServiceSpec, Yard};

/// One step. Names are those of the wanted yard, or of the current one for what goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Closes a forward.
    CloseForward {
        /// Its network.
        network: String,
        /// Which.
        forward: Forward,
    },
    /// Removes a service of the current yard.
    RemoveService {
        /// Its name.
        name: String,
    },
    /// Closes the host port of a service that stays: it moves, or another may want the port.
    Unpublish {
        /// The service.
        name: String,
    },
    /// Makes a service, or tells its network what changed.
    SetService {
        /// Its name.
        name: String,
        /// What differs; empty for a new one.
        changes: Vec<&'static str>,
    },
    /// Stops an instance of the current yard. If something changed, it starts again later.
    StopInstance {
        /// Its name.
        name: String,
        /// Why it starts again later; empty if it is not wanted any more.
        changes: Vec<&'static str>,
    },
    /// Leaves a network.
    RemoveNetwork {
        /// Its name.
        name: String,
    },
    /// Leaves a network and makes it anew: a network cannot change while it runs.
    RemakeNetwork {
        /// Its name.
        name: String,
        /// What differs.
        changes: Vec<&'static str>,
    },
    /// Makes a network.
    MakeNetwork {
        /// Its name.
        name: String,
    },
    /// Opens a forward.
    OpenForward {
        /// Its network.
        network: String,
        /// Which.
        forward: Forward,
    },
    /// Replaces what is known of an instance without touching its program.
    UpdateInstance {
        /// Its name.
        name: String,
        /// What differs.
        changes: Vec<&'static str>,
    },
    /// Starts an instance once what it needs is healthy.
    StartInstance {
        /// Its name.
        name: String,
        /// Whether an earlier step stopped it.
        again: bool,
    },
    /// Stops an instance and starts it with the new program; its plugs stay the same.
    RestartInstance {
        /// Its name.
        name: String,
        /// What differs.
        changes: Vec<&'static str>,
    },
}

/// One line for people: `+` comes, `-` goes, `~` changes.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CloseForward { forward, .. } => {
                write!(f, "- forward {forward} of {}", forward.instance)
            }
            Self::OpenForward { forward, .. } => {
                write!(f, "+ forward {forward} of {}", forward.instance)
            }
            Self::RemoveService { name } => write!(f, "- service {name}"),
            Self::Unpublish { name } => write!(f, "~ service {name}: unpublish"),
            Self::SetService { name, changes } if changes.is_empty() => {
                write!(f, "+ service {name}")
            }
            Self::SetService { name, changes } => {
                write!(f, "~ service {name}: {}", changes.join(", "))
            }
            Self::StopInstance { name, changes } if changes.is_empty() => {
                write!(f, "- instance {name}")
            }
            Self::StopInstance { name, changes } => {
                write!(f, "~ instance {name}: stop ({})", changes.join(", "))
            }
            Self::RemoveNetwork { name } => write!(f, "- network {name}"),
            Self::RemakeNetwork { name, changes } => {
                write!(f, "~ network {name}: {}", changes.join(", "))
            }
            Self::MakeNetwork { name } => write!(f, "+ network {name}"),
            Self::UpdateInstance { name, changes } => {
                write!(f, "~ instance {name}: {}", changes.join(", "))
            }
            Self::StartInstance { name, again: false } => write!(f, "+ instance {name}"),
            Self::StartInstance { name, again: true } => write!(f, "~ instance {name}: start"),
            Self::RestartInstance { name, changes } => {
                write!(f, "~ instance {name}: restart ({})", changes.join(", "))
            }
        }
    }
}

/// The steps from `current` (`None`: nothing runs) to `wanted`. Call [`crate::address::keep`] on
/// `wanted` before, so that instances do not move without need.
#[must_use]
pub fn difference(current: Option<&Yard>, wanted: &Yard) -> Vec<Step> {
    let nothing =
        Yard { networks: BTreeMap::new(), instances: vec![], services: vec![], ..wanted.clone() };
    let current = current.unwrap_or(&nothing);
    let remade: BTreeMap<&str, Vec<&'static str>> = wanted
        .networks
        .values()
        .filter_map(|new| {
            let changes = network_changes(current.networks.get(&new.name)?, new);
            (!changes.is_empty()).then_some((new.name.as_str(), changes))
        })
        .collect();
    let stays = |network: &str| {
        current.networks.contains_key(network)
            && wanted.networks.contains_key(network)
            && !remade.contains_key(network)
    };

    let mut steps = Vec::new();
    let (old_forwards, new_forwards) = (forwards(current), forwards(wanted));
    for (network, forward) in &old_forwards {
        if !new_forwards.contains(&(network, forward)) {
            let (network, forward) = ((*network).to_owned(), (*forward).clone());
            steps.push(Step::CloseForward { network, forward });
        }
    }
    for old in &current.services {
        match wanted.service(&old.name) {
            Some(new) if new.network == old.network => {
                if old.publish.is_some() && old.publish != new.publish {
                    steps.push(Step::Unpublish { name: old.name.clone() });
                }
            }
            _ => steps.push(Step::RemoveService { name: old.name.clone() }),
        }
    }
    let (set_now, set_later): (Vec<&ServiceSpec>, Vec<&ServiceSpec>) =
        wanted.services.iter().partition(|service| stays(&service.network));
    let set_service = |new: &ServiceSpec| {
        let old = current.service(&new.name).filter(|old| old.network == new.network);
        let changes = match old {
            None => Vec::new(),
            Some(old) => {
                let mut changes = service_changes(current, old, wanted, new);
                if remade.contains_key(new.network.as_str()) {
                    changes.push("network");
                }
                if changes.is_empty() {
                    return None;
                }
                changes
            }
        };
        Some(Step::SetService { name: new.name.clone(), changes })
    };
    steps.extend(set_now.into_iter().filter_map(set_service));

    let mut stopped = BTreeSet::new();
    for old in start_order(current).iter().rev() {
        let changes = match wanted.instance(&old.name) {
            None => Vec::new(),
            Some(new) => {
                let mut changes = plug_changes(old, new);
                if new.plugs.iter().any(|plug| remade.contains_key(plug.network.as_str())) {
                    changes.push("network");
                }
                if changes.is_empty() {
                    continue;
                }
                changes
            }
        };
        stopped.insert(old.name.as_str());
        steps.push(Step::StopInstance { name: old.name.clone(), changes });
    }

    for name in current.networks.keys().filter(|name| !wanted.networks.contains_key(*name)) {
        steps.push(Step::RemoveNetwork { name: name.clone() });
    }
    for (name, changes) in &remade {
        steps.push(Step::RemakeNetwork { name: (*name).to_owned(), changes: changes.clone() });
    }
    for name in wanted.networks.keys().filter(|name| !current.networks.contains_key(*name)) {
        steps.push(Step::MakeNetwork { name: name.clone() });
    }

    steps.extend(set_later.into_iter().filter_map(set_service));
    for (network, forward) in &new_forwards {
        if !(old_forwards.contains(&(network, forward)) && stays(network)) {
            let (network, forward) = ((*network).to_owned(), (*forward).clone());
            steps.push(Step::OpenForward { network, forward });
        }
    }

    for new in start_order(wanted) {
        let name = new.name.clone();
        let Some(old) = current.instance(&name) else {
            steps.push(Step::StartInstance { name, again: false });
            continue;
        };
        if stopped.contains(name.as_str()) {
            steps.push(Step::StartInstance { name, again: true });
            continue;
        }
        let changes = program_changes(old, new);
        if !changes.is_empty() {
            steps.push(Step::RestartInstance { name, changes });
            continue;
        }
        let changes = policy_changes(old, new);
        if !changes.is_empty() {
            steps.push(Step::UpdateInstance { name, changes });
        }
    }
    steps
}

/// Every forward of a yard with its network: that of its instance's first plug.
fn forwards(yard: &Yard) -> Vec<(&str, &Forward)> {
    yard.instances
        .iter()
        .filter_map(|instance| Some((instance.plugs.first()?, &instance.forwards)))
        .flat_map(|(plug, forwards)| {
            forwards.iter().map(|forward| (plug.network.as_str(), forward))
        })
        .collect()
}

/// The names of the fields that differ.
fn differing<const N: usize>(fields: [(&'static str, bool); N]) -> Vec<&'static str> {
    fields.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}

fn network_changes(old: &NetworkSpec, new: &NetworkSpec) -> Vec<&'static str> {
    differing([
        ("name", old.global != new.global),
        ("subnet", old.subnet != new.subnet),
        ("subnet6", old.subnet6 != new.subnet6),
        ("dns", old.zone != new.zone),
        ("uplink", old.uplink != new.uplink),
        ("host", old.host != new.host),
        ("mtu", old.mtu != new.mtu),
    ])
}

fn service_changes(
    current: &Yard,
    old: &ServiceSpec,
    wanted: &Yard,
    new: &ServiceSpec,
) -> Vec<&'static str> {
    let addresses = |yard: &Yard| -> Vec<_> {
        new.instances.iter().map(|name| address_on(yard, name, &new.network)).collect()
    };
    let same_instances = old.instances == new.instances;
    differing([
        ("instances", !same_instances),
        ("addresses", same_instances && addresses(current) != addresses(wanted)),
        ("port", old.port != new.port),
        ("publish", old.publish != new.publish),
        ("check", old.check != new.check),
    ])
}

/// The address that an instance has on a network.
fn address_on(yard: &Yard, instance: &str, network: &str) -> Option<std::net::Ipv4Addr> {
    let plugs = &yard.instance(instance)?.plugs;
    plugs.iter().find(|plug| plug.network == network)?.address.get()
}

fn plug_changes(old: &InstanceSpec, new: &InstanceSpec) -> Vec<&'static str> {
    let networks = |it: &InstanceSpec| -> Vec<_> {
        it.plugs.iter().map(|plug| plug.network.clone()).collect()
    };
    if networks(old) != networks(new) {
        return vec!["networks"];
    }
    let pairs = || old.plugs.iter().zip(&new.plugs);
    differing([
        ("address", pairs().any(|(old, new)| old.address.get() != new.address.get())),
        ("mac", pairs().any(|(old, new)| old.mac != new.mac)),
        ("link", pairs().any(|(old, new)| old.link != new.link)),
    ])
}

fn program_changes(old: &InstanceSpec, new: &InstanceSpec) -> Vec<&'static str> {
    differing([
        ("run", old.run != new.run),
        ("env", old.env != new.env),
        ("cwd", old.cwd != new.cwd),
    ])
}

fn policy_changes(old: &InstanceSpec, new: &InstanceSpec) -> Vec<&'static str> {
    differing([("restart", old.restart != new.restart), ("needs", old.needs != new.needs)])
}

/// The instances, those that others need first, else in the order of the file. Instances that
/// need each other in a circle come last; [`cycle`] finds them.
#[must_use]
pub fn start_order(yard: &Yard) -> Vec<&InstanceSpec> {
    let graph = Graph::of(yard);
    let mut order = graph.order();
    let ordered: BTreeSet<usize> = order.iter().copied().collect();
    order.extend((0..yard.instances.len()).filter(|index| !ordered.contains(index)));
    order.into_iter().filter_map(|index| yard.instances.get(index)).collect()
}

/// Instances that need each other in a circle, each one the next, the last one the first.
#[must_use]
pub fn cycle(yard: &Yard) -> Option<Vec<&InstanceSpec>> {
    let graph = Graph::of(yard);
    let ordered: BTreeSet<usize> = graph.order().into_iter().collect();
    let stuck = |index: &usize| !ordered.contains(index);
    // Whoever is stuck needs somebody who is stuck: following that leads into a circle.
    let mut path: Vec<usize> = Vec::new();
    let mut at = (0..yard.instances.len()).find(stuck)?;
    while !path.contains(&at) {
        path.push(at);
        at = graph.needs.get(at)?.iter().copied().find(stuck)?;
    }
    let circle = path.into_iter().skip_while(|index| *index != at);
    Some(circle.filter_map(|index| yard.instances.get(index)).collect())
}

/// Who needs whom, by index into `Yard::instances`.
struct Graph {
    needs: Vec<BTreeSet<usize>>,
}

impl Graph {
    fn of(yard: &Yard) -> Self {
        let index: BTreeMap<&str, usize> = yard
            .instances
            .iter()
            .enumerate()
            .map(|(index, instance)| (instance.name.as_str(), index))
            .collect();
        let needed = |need: &Need| -> Vec<usize> {
            match need {
                Need::Instance(name) => index.get(name.as_str()).copied().into_iter().collect(),
                Need::Service(name) => yard
                    .service(name)
                    .into_iter()
                    .flat_map(|service| &service.instances)
                    .filter_map(|name| index.get(name.as_str()).copied())
                    .collect(),
            }
        };
        let needs = |instance: &InstanceSpec| instance.needs.iter().flat_map(needed).collect();
        Self { needs: yard.instances.iter().map(needs).collect() }
    }

    /// Kahn's algorithm; among those that are ready, the first of the file goes first. Leaves out
    /// whoever needs a circle or is in one.
    fn order(&self) -> Vec<usize> {
        let mut waiting: Vec<usize> = self.needs.iter().map(BTreeSet::len).collect();
        let mut needed_by: Vec<Vec<usize>> = vec![Vec::new(); self.needs.len()];
        for (index, needs) in self.needs.iter().enumerate() {
            for need in needs {
                if let Some(needed_by) = needed_by.get_mut(*need) {
                    needed_by.push(index);
                }
            }
        }
        let mut ready: BTreeSet<usize> =
            waiting.iter().enumerate().filter(|(_, count)| **count == 0).map(|(i, _)| i).collect();
        let mut order = Vec::with_capacity(self.needs.len());
        while let Some(next) = ready.pop_first() {
            order.push(next);
            for index in needed_by.get(next).into_iter().flatten() {
                if let Some(count) = waiting.get_mut(*index) {
                    *count -= 1;
                    if *count == 0 {
                        ready.insert(*index);
                    }
                }
            }
        }
        order
    }
}
