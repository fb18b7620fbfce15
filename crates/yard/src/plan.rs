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

use netyard_engine::config::Mode;
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
    /// Says anew what instances may reach outside.
    SetRules {
        /// The network.
        network: String,
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

impl Step {
    /// The instance that it makes.
    #[must_use]
    pub fn starts(&self) -> Option<&str> {
        match self {
            Self::StartInstance { name, .. } => Some(name),
            _ => None,
        }
    }

    /// The instance whose program it stops.
    #[must_use]
    pub fn stops(&self) -> Option<&str> {
        match self {
            Self::StopInstance { name, .. } | Self::RestartInstance { name, .. } => Some(name),
            _ => None,
        }
    }
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
            Self::SetRules { network } => write!(f, "~ network {network}: rules"),
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
    let nothing = Yard::empty(wanted.name.clone(), &wanted.path);
    let yards = Difference::between(current.unwrap_or(&nothing), wanted);
    let (services_now, services_later): (Vec<_>, Vec<_>) =
        wanted.services.iter().partition(|service| yards.stays(&service.network));
    let (stops, starts) = yards.instances();
    let mut steps = yards.host_ports_to_close();
    steps.extend(services_now.into_iter().filter_map(|service| yards.set_service(service)));
    steps.extend(yards.rules());
    steps.extend(stops);
    steps.extend(yards.networks());
    steps.extend(services_later.into_iter().filter_map(|service| yards.set_service(service)));
    steps.extend(yards.forwards_to_open());
    steps.extend(starts);
    steps
}

/// Two yards held against each other.
struct Difference<'y> {
    current: &'y Yard,
    wanted: &'y Yard,
    /// Networks of both that differ, with what does.
    remade: BTreeMap<&'y str, Vec<&'static str>>,
}

impl<'y> Difference<'y> {
    fn between(current: &'y Yard, wanted: &'y Yard) -> Self {
        let mut remade = BTreeMap::new();
        for (name, new) in &wanted.networks {
            if let Some(old) = current.networks.get(name) {
                let changes = network_changes(old, new);
                if !changes.is_empty() {
                    remade.insert(name.as_str(), changes);
                }
            }
        }
        Self { current, wanted, remade }
    }

    /// True for a network that runs on as it is.
    fn stays(&self, network: &str) -> bool {
        self.current.networks.contains_key(network)
            && self.wanted.networks.contains_key(network)
            && !self.remade.contains_key(network)
    }

    /// Host ports that go or move.
    fn host_ports_to_close(&self) -> Vec<Step> {
        let wanted = forwards(self.wanted);
        let mut steps: Vec<Step> = forwards(self.current)
            .into_iter()
            .filter(|forward| !wanted.contains(forward))
            .map(|(network, forward)| Step::CloseForward {
                network: network.to_owned(),
                forward: forward.clone(),
            })
            .collect();
        for old in &self.current.services {
            match self.wanted.service(&old.name) {
                Some(new) if new.network == old.network => {
                    // With another policy somebody else listens there.
                    let moves = old.publish != new.publish
                        || old.policy != new.policy
                        || old.protocol != new.protocol;
                    if old.publish.is_some() && moves {
                        steps.push(Step::Unpublish { name: old.name.clone() });
                    }
                }
                _ => steps.push(Step::RemoveService { name: old.name.clone() }),
            }
        }
        steps
    }

    fn set_service(&self, new: &ServiceSpec) -> Option<Step> {
        let old = self.current.service(&new.name).filter(|old| old.network == new.network);
        let changes = match old {
            None => Vec::new(),
            Some(old) => {
                let mut changes = service_changes(self.current, old, self.wanted, new);
                if self.remade.contains_key(new.network.as_str()) {
                    changes.push("network");
                }
                if changes.is_empty() {
                    return None;
                }
                changes
            }
        };
        Some(Step::SetService { name: new.name.clone(), changes })
    }

    /// Instances that stop, and those that start or change.
    fn instances(&self) -> (Vec<Step>, Vec<Step>) {
        let mut stopped = BTreeSet::new();
        let mut stops = Vec::new();
        for old in start_order(self.current).into_iter().rev() {
            let changes = match self.wanted.instance(&old.name) {
                None => Vec::new(),
                Some(new) => {
                    let mut changes = plug_changes(old, new);
                    if new.plugs.iter().any(|plug| self.remade.contains_key(plug.network.as_str()))
                    {
                        changes.push("network");
                    }
                    if changes.is_empty() {
                        continue;
                    }
                    changes
                }
            };
            stopped.insert(old.name.as_str());
            stops.push(Step::StopInstance { name: old.name.clone(), changes });
        }
        let start = |new: &InstanceSpec| {
            let name = new.name.clone();
            let again = stopped.contains(name.as_str());
            let Some(old) = self.current.instance(&name).filter(|_| !again) else {
                return Some(Step::StartInstance { name, again });
            };
            let changes = program_changes(old, new);
            if !changes.is_empty() {
                return Some(Step::RestartInstance { name, changes });
            }
            let changes = policy_changes(old, new);
            (!changes.is_empty()).then_some(Step::UpdateInstance { name, changes })
        };
        let starts = start_order(self.wanted).into_iter().filter_map(start).collect();
        (stops, starts)
    }

    /// Networks that stay, with other rules. (Those that are made have theirs from the start.)
    fn rules(&self) -> impl Iterator<Item = Step> {
        self.wanted.networks.iter().filter_map(|(name, new)| {
            let old = self.current.networks.get(name).filter(|_| self.stays(name))?;
            (old.rules != new.rules).then(|| Step::SetRules { network: name.clone() })
        })
    }

    fn networks(&self) -> Vec<Step> {
        let (old, new) = (&self.current.networks, &self.wanted.networks);
        let gone = old.keys().filter(|name| !new.contains_key(*name));
        let made = new.keys().filter(|name| !old.contains_key(*name));
        let remade = self.remade.iter().map(|(name, changes)| Step::RemakeNetwork {
            name: (*name).to_owned(),
            changes: changes.clone(),
        });
        gone.map(|name| Step::RemoveNetwork { name: name.clone() })
            .chain(remade)
            .chain(made.map(|name| Step::MakeNetwork { name: name.clone() }))
            .collect()
    }

    fn forwards_to_open(&self) -> Vec<Step> {
        let current = forwards(self.current);
        forwards(self.wanted)
            .into_iter()
            .filter(|forward| !(current.contains(forward) && self.stays(forward.0)))
            .map(|(network, forward)| Step::OpenForward {
                network: network.to_owned(),
                forward: forward.clone(),
            })
            .collect()
    }
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
    let link = |network: &NetworkSpec| match &network.mode {
        Mode::Bridge(bridge) => Some((bridge.name.clone(), bridge.isolate)),
        Mode::User => None,
    };
    // A bridge that is not given one has its uplink's.
    let mtu = |network: &NetworkSpec| match &network.mode {
        Mode::Bridge(bridge) => bridge.mtu,
        Mode::User => Some(network.mtu),
    };
    let same_mode = old.is_bridge() == new.is_bridge();
    differing([
        ("name", old.global != new.global),
        ("mode", !same_mode),
        ("bridge", same_mode && link(old) != link(new)),
        ("gateway", old.gateway != new.gateway),
        ("subnet", old.subnet != new.subnet),
        ("subnet6", old.subnet6 != new.subnet6),
        ("dns", old.zone != new.zone || old.dns != new.dns),
        ("dhcp", old.dhcp != new.dhcp),
        ("uplink", old.uplink != new.uplink),
        ("host", old.host != new.host),
        ("mtu", same_mode && mtu(old) != mtu(new)),
        ("snooping", old.snooping != new.snooping),
        ("mdns", old.mdns != new.mdns),
        ("hub", old.hub != new.hub),
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
        ("protocol", old.protocol != new.protocol),
        ("port", old.port != new.port),
        ("publish", old.publish != new.publish),
        ("splice", old.delivery != new.delivery),
        ("weights", same_instances && old.weights != new.weights),
        ("policy", old.policy != new.policy),
        ("affinity", old.affinity != new.affinity),
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
    if std::mem::discriminant(&old.kind) != std::mem::discriminant(&new.kind) {
        return vec!["kind"];
    }
    let pairs = || old.plugs.iter().zip(&new.plugs);
    differing([
        ("address", pairs().any(|(old, new)| old.address.get() != new.address.get())),
        ("mac", pairs().any(|(old, new)| old.mac != new.mac)),
        ("address6", pairs().any(|(old, new)| old.address6 != new.address6)),
        ("link", pairs().any(|(old, new)| old.link != new.link)),
        ("tap", pairs().any(|(old, new)| old.tap != new.tap)),
        ("socket", pairs().any(|(old, new)| old.socket != new.socket)),
        ("owner", old.kind.external() != new.kind.external()),
    ])
}

fn program_changes(old: &InstanceSpec, new: &InstanceSpec) -> Vec<&'static str> {
    differing([
        ("run", old.run != new.run),
        ("machine", old.kind.vm() != new.kind.vm()),
        ("env", old.env != new.env),
        ("cwd", old.cwd != new.cwd),
    ])
}

fn policy_changes(old: &InstanceSpec, new: &InstanceSpec) -> Vec<&'static str> {
    differing([("restart policy", old.restart != new.restart), ("needs", old.needs != new.needs)])
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
