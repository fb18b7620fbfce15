//! Services: one name and virtual address over several instances, in exact turns.
//!
//! This module keeps the turns and nothing else; it opens no connection. A connection to a
//! service, whether it came in by the published host address or by the virtual address, takes a
//! turn with [`Services::next`] and then reports exactly one outcome for that turn:
//!
//! ```text
//! next -> Turn -+-> opened ----> closed        the connection was established, later it ended
//!               +-> failed                     it was not; take another turn, with this instance
//!               |                              in `tried`
//!               +-> abandoned                  the client went away first
//! ```
//!
//! Turns are one [`ring`] for each service, shared by all clients and both addresses. A turn is
//! consumed when it is given, so a failed attempt costs the instance its turn. Only instances that may
//! get new connections are in the ring; when they change, it goes on where it was. A removed
//! instance drains: it gets no turns and is forgotten when its last connection ends.
//!
//! A service with affinity leads a client to its instance again ([`Services::next_for`]), which takes
//! no turn from the ring.

mod affinity;
pub mod ring;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use self::affinity::Affinity;
pub use self::affinity::MAX_CLIENTS;
use self::ring::{MAX_CYCLE, MAX_WEIGHT, Ring};
use crate::config::Config;
use crate::control::{
    ControlError, ControlErrorKind, ServiceInstance, ServiceSpec, ServiceState, TurnState,
};

/// How long a client may be kept with its instance.
pub const AFFINITY: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3_600);

/// A service, never reused while the network lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

/// Whose turn it is: an instance of a service, never reused while the network lives. An instance
/// that comes back with another address is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TurnKey {
    service: ServiceId,
    instance: u32,
}

impl TurnKey {
    /// The service that gave the turn.
    #[must_use]
    pub fn service(self) -> ServiceId {
        self.service
    }
}

/// A turn that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Whose turn it is.
    pub key: TurnKey,
    /// Its IPv4 address.
    pub address4: Ipv4Addr,
    /// Its IPv6 address.
    pub address6: Ipv6Addr,
}

impl Turn {
    /// The instance's address of the same family as `like`.
    #[must_use]
    pub fn address_like(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.address4.into(),
            IpAddr::V6(_) => self.address6.into(),
        }
    }
}

/// One service.
#[derive(Debug)]
pub struct Service {
    name: String,
    member: String,
    spec: ServiceSpec,
    address4: Ipv4Addr,
    address6: Ipv6Addr,
    /// In the order of the list.
    instances: Vec<Instance>,
    /// Removed, with connections still open or opening.
    draining: Vec<Instance>,
    /// Those that may get new connections.
    ring: Ring,
    affinity: Affinity,
    refused: u64,
}

#[derive(Debug)]
struct Instance {
    key: TurnKey,
    spec: ServiceInstance,
    turns: u64,
    failed: u64,
    /// Turns without an outcome yet.
    opening: u64,
    open: u64,
}

impl Instance {
    /// It gets a connection.
    fn take_turn(&mut self) -> Turn {
        self.turns += 1;
        self.opening += 1;
        let ServiceInstance { address4, address6, .. } = self.spec;
        Turn { key: self.key, address4, address6 }
    }
}

impl Service {
    /// Its name: `<name>.<zone>`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its TCP port, on the virtual addresses and on the instances.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.spec.port
    }

    /// What was asked for.
    #[must_use]
    pub fn spec(&self) -> &ServiceSpec {
        &self.spec
    }

    /// Its instances, without those that drain.
    pub fn instances(&self) -> impl Iterator<Item = &ServiceInstance> {
        self.instances.iter().map(|instance| &instance.spec)
    }

    /// What was asked for, with the instances as they are now.
    #[must_use]
    pub fn wanted(&self) -> ServiceSpec {
        ServiceSpec { instances: self.instances().cloned().collect(), ..self.spec.clone() }
    }

    /// Its virtual IPv4 address.
    #[must_use]
    pub fn address4(&self) -> Ipv4Addr {
        self.address4
    }

    /// Its virtual IPv6 address.
    #[must_use]
    pub fn address6(&self) -> Ipv6Addr {
        self.address6
    }

    /// Both virtual addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.address4.into(), self.address6.into()]
    }

    /// True when some instance may get a new connection. A published port listens exactly as
    /// long as this holds.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.instances.iter().any(|instance| instance.spec.eligible)
    }

    fn next(&mut self, tried: &[TurnKey]) -> Option<Turn> {
        let Self { ring, instances, .. } = self;
        let found = ring.upcoming().zip(1..).find_map(|(name, turns)| {
            let index = instances.iter().position(|instance| instance.spec.name == name)?;
            let untried = !tried.contains(&instances.get(index)?.key);
            untried.then_some((index, turns))
        });
        let Some((index, turns)) = found else {
            self.refused += 1;
            return None;
        };
        ring.advance(turns);
        instances.get_mut(index).map(Instance::take_turn)
    }

    fn next_for(&mut self, now: Instant, client: IpAddr, tried: &[TurnKey]) -> Option<Turn> {
        let Some(time) = self.spec.affinity else { return self.next(tried) };
        let kept = self.affinity.instance_of(now, client).filter(|key| !tried.contains(key));
        let kept =
            kept.and_then(|key| self.instances.iter_mut().find(|instance| instance.key == key));
        let turn = match kept {
            Some(instance) => instance.take_turn(),
            None => self.next(tried)?,
        };
        self.affinity.keep(now, client, turn.key, time);
        Some(turn)
    }

    /// Replaces the instances; those with the same name and addresses stay the same instance.
    fn replace(&mut self, wanted: Vec<ServiceInstance>, new_key: &mut impl FnMut() -> TurnKey) {
        let same = |old: &Instance, new: &ServiceInstance| {
            old.spec.name == new.name
                && old.spec.address4 == new.address4
                && old.spec.address6 == new.address6
        };
        let mut old: Vec<Instance> =
            self.instances.drain(..).chain(self.draining.drain(..)).collect();
        for spec in wanted {
            let instance = match old.iter().position(|old| same(old, &spec)) {
                Some(index) => Instance { spec, ..old.swap_remove(index) },
                None => Instance { key: new_key(), spec, turns: 0, failed: 0, opening: 0, open: 0 },
            };
            self.instances.push(instance);
        }
        for instance in &mut old {
            instance.spec.eligible = false;
        }
        self.draining = old;
        self.change_ring();
        self.forget_drained();
    }

    /// Brings the ring, and whose clients are kept, up to date with who may get connections.
    fn change_ring(&mut self) {
        let eligible = || self.instances.iter().filter(|instance| instance.spec.eligible);
        let ring = eligible().map(|instance| (instance.spec.name.as_str(), instance.spec.weight));
        let ring = self.ring.change_to(ring);
        let keys: Vec<TurnKey> = eligible().map(|instance| instance.key).collect();
        self.ring = ring;
        match self.spec.affinity {
            Some(_) => self.affinity.retain(&keys),
            None => self.affinity = Affinity::default(),
        }
    }

    fn forget_drained(&mut self) {
        self.draining.retain(|instance| instance.open + instance.opening > 0);
    }

    fn instance(&mut self, key: TurnKey) -> Option<&mut Instance> {
        self.instances.iter_mut().chain(&mut self.draining).find(|instance| instance.key == key)
    }

    fn state(&self) -> ServiceState {
        let all = || self.instances.iter().chain(&self.draining);
        ServiceState {
            spec: ServiceSpec {
                instances: all().map(|instance| instance.spec.clone()).collect(),
                ..self.spec.clone()
            },
            member: self.member.clone(),
            addresses: self.addresses().to_vec(),
            instances: all()
                .map(|instance| TurnState {
                    turns: instance.turns,
                    failed: instance.failed,
                    open: instance.open,
                    draining: !instance.spec.eligible && instance.open > 0,
                })
                .collect(),
            refused: self.refused,
            clients: self.affinity.clients(),
            clients_not_kept: self.affinity.not_kept(),
        }
    }
}

/// All services of a network.
#[derive(Debug, Default)]
pub struct Services {
    by_id: BTreeMap<ServiceId, Service>,
    next_service: u32,
    next_instance: u32,
}

impl Services {
    /// Makes or replaces a service of `member`. A new one gets the highest free virtual address
    /// below `host.<zone>`; `in_use` tells which addresses others have. A replaced one keeps its
    /// addresses, its position and the counters of the instances that stay.
    ///
    /// # Errors
    /// `Malformed` for a service that cannot be, `Taken` when the name belongs to another
    /// member, `Exhausted` when no virtual address is free.
    pub fn set(
        &mut self,
        member: &str,
        mut spec: ServiceSpec,
        config: &Config,
        in_use: impl Fn(IpAddr) -> bool,
    ) -> Result<ServiceId, ControlError> {
        check(&spec)?;
        let wanted = std::mem::take(&mut spec.instances);
        let id = match self.id_of(&spec.name) {
            Some(id) => id,
            None => self.create(member, &spec, config, in_use)?,
        };
        let Self { by_id, next_instance, .. } = self;
        let Some(service) = by_id.get_mut(&id) else {
            return Err(unknown(&spec.name));
        };
        if service.member != member {
            return Err(ControlError {
                kind: ControlErrorKind::Taken,
                message: format!(
                    "service `{}` already exists in this network and belongs to `{}`: choose \
                     another name or stop that one",
                    spec.name, service.member
                ),
            });
        }
        service.spec = spec;
        service.replace(wanted, &mut || {
            *next_instance += 1;
            TurnKey { service: id, instance: *next_instance }
        });
        Ok(id)
    }

    /// Removes a service of `member` and returns what it was. Outcomes reported for it later are
    /// ignored.
    ///
    /// # Errors
    /// `Unknown` when the member has no such service.
    pub fn remove(&mut self, member: &str, name: &str) -> Result<ServiceId, ControlError> {
        let id = self
            .id_of(name)
            .filter(|id| self.get(*id).is_some_and(|service| service.member == member))
            .ok_or_else(|| unknown(name))?;
        self.by_id.remove(&id);
        Ok(id)
    }

    /// Removes all services of a member that left.
    pub fn remove_member(&mut self, member: &str) -> Vec<ServiceId> {
        let gone: Vec<_> =
            self.iter().filter(|(_, service)| service.member == member).map(|(id, _)| id).collect();
        for id in &gone {
            self.by_id.remove(id);
        }
        gone
    }

    /// Says whether an instance may get new connections; whose turns that concerns.
    /// Connections to an instance that may not because it is dead should move on at once.
    ///
    /// # Errors
    /// `Unknown` when the member has no such service or the service no such instance.
    pub fn set_eligible(
        &mut self,
        member: &str,
        service: &str,
        instance: &str,
        eligible: bool,
    ) -> Result<TurnKey, ControlError> {
        let (_, found) = self
            .by_id
            .iter_mut()
            .find(|(_, found)| found.member == member && found.name == service)
            .ok_or_else(|| unknown(service))?;
        let instance =
            found.instances.iter_mut().find(|found| found.spec.name == instance).ok_or_else(
                || ControlError {
                    kind: ControlErrorKind::Unknown,
                    message: format!("service `{service}` has no instance `{instance}`"),
                },
            )?;
        instance.spec.eligible = eligible;
        let key = instance.key;
        found.change_ring();
        Ok(key)
    }

    /// Takes the next turn. `tried` are the instances that this connection has failed to reach
    /// already. `None`: nobody is left, the connection is refused (and counted so).
    pub fn next(&mut self, service: ServiceId, tried: &[TurnKey]) -> Option<Turn> {
        self.by_id.get_mut(&service)?.next(tried)
    }

    /// Takes a turn for a client: with the instance that it had last, if the service has affinity and
    /// that instance may get connections; else as [`Services::next`] does.
    pub fn next_for(
        &mut self,
        now: Instant,
        client: IpAddr,
        service: ServiceId,
        tried: &[TurnKey],
    ) -> Option<Turn> {
        self.by_id.get_mut(&service)?.next_for(now, client, tried)
    }

    /// Outcome of a turn: the connection is established.
    pub fn opened(&mut self, turn: TurnKey) {
        self.outcome(turn, |instance| {
            instance.opening = instance.opening.saturating_sub(1);
            instance.open += 1;
        });
    }

    /// Outcome of a turn: the instance refused or did not answer.
    pub fn failed(&mut self, turn: TurnKey) {
        self.outcome(turn, |instance| {
            instance.opening = instance.opening.saturating_sub(1);
            instance.failed += 1;
        });
    }

    /// Outcome of a turn: the client went away before the instance answered.
    pub fn abandoned(&mut self, turn: TurnKey) {
        self.outcome(turn, |instance| {
            instance.opening = instance.opening.saturating_sub(1);
        });
    }

    /// An established connection ended.
    pub fn closed(&mut self, turn: TurnKey) {
        self.outcome(turn, |instance| {
            instance.open = instance.open.saturating_sub(1);
        });
    }

    /// One service.
    #[must_use]
    pub fn get(&self, service: ServiceId) -> Option<&Service> {
        self.by_id.get(&service)
    }

    /// The service of this name, letter case ignored as in DNS.
    #[must_use]
    pub fn id_of(&self, name: &str) -> Option<ServiceId> {
        self.iter().find(|(_, service)| service.name.eq_ignore_ascii_case(name)).map(|(id, _)| id)
    }

    /// The service that has this virtual address.
    #[must_use]
    pub fn by_address(&self, address: IpAddr) -> Option<ServiceId> {
        self.iter().find(|(_, service)| service.addresses().contains(&address)).map(|(id, _)| id)
    }

    /// All services.
    pub fn iter(&self) -> impl Iterator<Item = (ServiceId, &Service)> {
        self.by_id.iter().map(|(id, service)| (*id, service))
    }

    /// What `inspect` shows. Draining instances stand behind the others in `spec.instances`, so
    /// that counters and instances pair up.
    #[must_use]
    pub fn state(&self) -> Vec<ServiceState> {
        self.by_id.values().map(Service::state).collect()
    }

    fn create(
        &mut self,
        member: &str,
        spec: &ServiceSpec,
        config: &Config,
        in_use: impl Fn(IpAddr) -> bool,
    ) -> Result<ServiceId, ControlError> {
        // The first is the gateway's, the last is host.<zone>.
        let number = (2..config.usable4())
            .rev()
            .filter(|number| !config.is_set_aside(config.nth4(*number)))
            .find(|number| {
                let mut both =
                    [config.nth4(*number).into(), config.nth6(*number).into()].into_iter();
                both.all(|address| {
                    let free = !in_use(address) && self.by_address(address).is_none();
                    free && !config.is_gateway(address)
                })
            })
            .ok_or_else(|| ControlError {
                kind: ControlErrorKind::Exhausted,
                message: format!(
                    "no address of {} is free for service `{}`: choose a larger subnet",
                    config.subnet4, spec.name
                ),
            })?;
        self.next_service += 1;
        let id = ServiceId(self.next_service);
        let service = Service {
            name: spec.name.clone(),
            member: member.to_owned(),
            spec: spec.clone(),
            address4: config.nth4(number),
            address6: config.nth6(number),
            instances: Vec::new(),
            draining: Vec::new(),
            ring: Ring::default(),
            affinity: Affinity::default(),
            refused: 0,
        };
        self.by_id.insert(id, service);
        Ok(id)
    }

    fn outcome(&mut self, turn: TurnKey, record: impl FnOnce(&mut Instance)) {
        let Some(service) = self.by_id.get_mut(&turn.service) else { return };
        if let Some(instance) = service.instance(turn) {
            record(instance);
            service.forget_drained();
        }
    }
}

/// Refuses what cannot be a service.
fn check(spec: &ServiceSpec) -> Result<(), ControlError> {
    let malformed = |message| Err(ControlError { kind: ControlErrorKind::Malformed, message });
    if spec.name.is_empty() {
        return malformed("a service needs a name".to_owned());
    }
    if spec.port == 0 {
        return malformed(format!("service `{}` needs a port from 1 to 65535", spec.name));
    }
    let mut names: Vec<_> = spec.instances.iter().map(|instance| &instance.name).collect();
    names.sort_unstable();
    if let Some(twice) = names.iter().zip(names.iter().skip(1)).find(|(one, other)| one == other) {
        return malformed(format!("service `{}` names instance `{}` twice", spec.name, twice.0));
    }
    let range = 1..=MAX_WEIGHT;
    if let Some(instance) = spec.instances.iter().find(|it| !range.contains(&it.weight)) {
        return malformed(format!(
            "instance `{}` of service `{}` has weight {}: choose one from 1 to {MAX_WEIGHT}",
            instance.name, spec.name, instance.weight
        ));
    }
    let cycle: u32 = spec.instances.iter().fold(0, |sum, it| sum.saturating_add(it.weight));
    if cycle > MAX_CYCLE {
        return malformed(format!(
            "the weights of service `{}` add up to {cycle}, more than {MAX_CYCLE}: choose smaller \
             ones of the same proportion",
            spec.name
        ));
    }
    if spec.affinity.is_some_and(|time| !AFFINITY.contains(&time)) {
        return malformed(format!(
            "the affinity of service `{}` is from {:?} to {:?}",
            spec.name,
            AFFINITY.start(),
            AFFINITY.end()
        ));
    }
    Ok(())
}

fn unknown(name: &str) -> ControlError {
    ControlError {
        kind: ControlErrorKind::Unknown,
        message: format!("this member has no service `{name}`"),
    }
}

#[cfg(test)]
mod tests;
