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
//! instance drains: it gets no turns and is forgotten when its last connection ends. An instance that the rules
//! keep a client from is passed over (`Services::barred`).
//!
//! Over UDP a flow is what a connection is here: it is open once its instance has answered, or has had
//! the time to refuse.
//!
//! In a service of which each *request* takes a turn, what is said here of connections is said of
//! requests; those are given by somebody else, from the same [`Turns`].
//!
//! A service with affinity leads a client to its instance again ([`Services::next_for`]), which takes
//! no turn from the ring.

mod affinity;
pub mod ring;
mod turns;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

pub use self::affinity::MAX_CLIENTS;
use self::ring::{MAX_CYCLE, MAX_WEIGHT};
pub use self::turns::Turns;
use crate::config::Config;
use crate::control::{
    ControlError, ControlErrorKind, ServiceInstance, ServiceSpec, ServiceState, TurnPolicy,
};
use crate::forward::Protocol;
use crate::policy::rules::What;
use crate::policy::{self, Comer, Policy};

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

    /// The key as a number.
    #[must_use]
    pub fn to_u64(self) -> u64 {
        u64::from(self.service.0) << 32 | u64::from(self.instance)
    }

    /// The key of a number that was one.
    #[must_use]
    pub fn from_u64(number: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
        let service = ServiceId(u32::from_be_bytes([a, b, c, d]));
        Self { service, instance: u32::from_be_bytes([e, f, g, h]) }
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
    /// Its port.
    pub port: u16,
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

    /// Where to ask the instance for a client: at the address of the client's family, then at its IPv4
    /// address.
    pub(crate) fn candidates(&self, client: IpAddr) -> (SocketAddr, Option<SocketAddr>) {
        let first = SocketAddr::new(self.address_like(client), self.port);
        let other = SocketAddr::new(self.address4.into(), self.port);
        (first, client.is_ipv6().then_some(other))
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
    turns: Turns,
}

impl Service {
    /// Its name: `<name>.<zone>`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its clients speak.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.spec.protocol
    }

    /// Its port, on the virtual addresses and on the instances.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.spec.port
    }

    /// Whether this is what its virtual addresses are there for.
    #[must_use]
    pub fn is_at(&self, protocol: Protocol, port: u16) -> bool {
        (self.spec.protocol, self.spec.port) == (protocol, port)
    }

    /// What was asked for.
    #[must_use]
    pub fn spec(&self) -> &ServiceSpec {
        &self.spec
    }

    /// Its instances, without those that drain.
    #[must_use]
    pub fn instances(&self) -> Vec<ServiceInstance> {
        self.turns.instances()
    }

    /// Its turns, to be given by somebody else too.
    #[must_use]
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// True if the network itself ends the connections of its clients, and each request on them
    /// takes a turn.
    #[must_use]
    pub fn is_per_request(&self) -> bool {
        self.spec.policy == TurnPolicy::PerRequest
    }

    /// What was asked for, with the instances as they are now.
    #[must_use]
    pub fn wanted(&self) -> ServiceSpec {
        ServiceSpec { instances: self.instances(), ..self.spec.clone() }
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
        self.turns.is_available()
    }

    fn state(&self) -> ServiceState {
        let counted = self.turns.counted();
        let (instances, turns) = counted.instances.into_iter().unzip();
        ServiceState {
            spec: ServiceSpec { instances, ..self.spec.clone() },
            member: self.member.clone(),
            addresses: self.addresses().to_vec(),
            instances: turns,
            refused: counted.refused,
            clients: counted.clients,
            clients_not_kept: counted.clients_not_kept,
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
        service.turns.replace(wanted, spec.port, spec.affinity, &mut || {
            *next_instance += 1;
            TurnKey { service: id, instance: *next_instance }
        });
        service.spec = spec;
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
        found.turns.set_eligible(instance, eligible).ok_or_else(|| ControlError {
            kind: ControlErrorKind::Unknown,
            message: format!("service `{service}` has no instance `{instance}`"),
        })
    }

    /// The service of this name, if it is that member's.
    #[must_use]
    pub fn of_member(&self, member: &str, name: &str) -> Option<&Service> {
        let mut all = self.by_id.values();
        all.find(|service| service.member == member && service.name == name)
    }

    /// Takes the next turn. `tried` are the instances that this connection has failed to reach
    /// already. `None`: nobody is left, the connection is refused (and counted so).
    pub fn next(&mut self, service: ServiceId, tried: &[TurnKey]) -> Option<Turn> {
        self.by_id.get(&service)?.turns.next(tried)
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
        self.by_id.get(&service)?.turns.next_for(now, client, tried)
    }

    /// The instances that the rules keep a new client from: they are passed over, and cost no turn. What is decided
    /// about the client is counted once, by one that it may reach if there is any.
    pub(crate) fn barred(
        &self,
        policy: &mut Policy,
        comer: Comer,
        service: ServiceId,
    ) -> Vec<TurnKey> {
        let (barred, about) = self.judged(policy, comer, service);
        if let Some((address, what)) = about {
            policy.decide_entry(comer, address, what);
        }
        barred
    }

    /// The same by rules that have changed since the client came.
    pub(crate) fn barred_now(
        &self,
        policy: &Policy,
        comer: Comer,
        service: ServiceId,
    ) -> Vec<TurnKey> {
        self.judged(policy, comer, service).0
    }

    /// The instances that the rules keep a client from, and what the decision about it is about.
    fn judged(
        &self,
        policy: &Policy,
        comer: Comer,
        service: ServiceId,
    ) -> (Vec<TurnKey>, Option<(IpAddr, What)>) {
        let Some(service) = self.get(service).filter(|_| policy.is_about_entry()) else {
            return (Vec::new(), None);
        };
        let protocol = match service.protocol() {
            Protocol::Tcp => policy::Protocol::Tcp,
            Protocol::Udp => policy::Protocol::Udp,
        };
        let what = |port| What::to(protocol, port);
        let permits = |it: SocketAddr| policy.permits_entry(comer, it.ip(), what(it.port()));
        let (barred, about) = service.turns.barred(permits);
        (barred, about.map(|at| (at.ip(), what(at.port()))))
    }

    /// Outcome of a turn: the connection is established.
    pub fn opened(&mut self, turn: TurnKey) {
        self.outcome(turn, Turns::opened);
    }

    /// Outcome of a turn: the instance refused or did not answer.
    pub fn failed(&mut self, turn: TurnKey) {
        self.outcome(turn, Turns::failed);
    }

    /// Outcome of a turn: the client went away before the instance answered.
    pub fn abandoned(&mut self, turn: TurnKey) {
        self.outcome(turn, Turns::abandoned);
    }

    /// An established connection ended.
    pub fn closed(&mut self, turn: TurnKey) {
        self.outcome(turn, Turns::closed);
    }

    /// Whether whose turn it was may get another one.
    #[must_use]
    pub fn is_eligible(&self, turn: TurnKey) -> bool {
        self.by_id.get(&turn.service).is_some_and(|service| service.turns.is_eligible(turn))
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
            turns: Turns::default(),
        };
        self.by_id.insert(id, service);
        Ok(id)
    }

    fn outcome(&mut self, turn: TurnKey, told: impl FnOnce(&Turns, TurnKey)) {
        if let Some(service) = self.by_id.get(&turn.service) {
            told(&service.turns, turn);
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
    if spec.protocol == Protocol::Udp && spec.policy == TurnPolicy::PerRequest {
        return malformed(format!(
            "requests of service `{}` cannot take turns: they are HTTP over TCP, and it is UDP",
            spec.name
        ));
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
