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
//! Turns are one ring for each service, shared by all clients and both addresses. A turn is
//! consumed when it is given, so a failed attempt costs the instance its turn, and an instance
//! that gets no new connections is passed over. When the instances change, the position stays:
//! the next turn goes to the instance that would have had it, or to the first one behind it that
//! is still there. A removed instance drains: it gets no turns and is forgotten when its last
//! connection ends.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Config;
use crate::control::{
    ControlError, ControlErrorKind, ServiceInstance, ServiceSpec, ServiceState, TurnState,
};

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
    /// In turn order.
    instances: Vec<Instance>,
    /// Removed, with connections still open or opening.
    draining: Vec<Instance>,
    /// Index in `instances` of whoever is next, if it may.
    position: usize,
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

    /// Its instances, in turn order, without those that drain.
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
        let count = self.instances.len();
        let found = (0..count)
            .filter_map(|step| self.position.checked_add(step)?.checked_rem(count))
            .find(|index| {
                self.instances.get(*index).is_some_and(|instance| {
                    instance.spec.eligible && !tried.contains(&instance.key)
                })
            });
        let Some((index, instance)) =
            found.and_then(|index| Some((index, self.instances.get_mut(index)?)))
        else {
            self.refused += 1;
            return None;
        };
        instance.turns += 1;
        instance.opening += 1;
        let turn = Turn {
            key: instance.key,
            address4: instance.spec.address4,
            address6: instance.spec.address6,
        };
        self.position = if index + 1 == count { 0 } else { index + 1 };
        Some(turn)
    }

    /// Replaces the instances; those with the same name and addresses stay the same instance.
    fn replace(&mut self, wanted: Vec<ServiceInstance>, new_key: &mut impl FnMut() -> TurnKey) {
        let same = |old: &Instance, new: &ServiceInstance| {
            old.spec.name == new.name
                && old.spec.address4 == new.address4
                && old.spec.address6 == new.address6
        };
        // Whoever is next, and those behind: the first that stays keeps the position.
        let (before, behind) = self.instances.split_at(self.position.min(self.instances.len()));
        let position = behind
            .iter()
            .chain(before)
            .find_map(|old| wanted.iter().position(|new| new.name == old.spec.name))
            .unwrap_or(0);

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
        self.position = position;
        self.forget_drained();
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
        Ok(instance.key)
    }

    /// Takes the next turn. `tried` are the instances that this connection has failed to reach
    /// already. `None`: nobody is left, the connection is refused (and counted so).
    pub fn next(&mut self, service: ServiceId, tried: &[TurnKey]) -> Option<Turn> {
        self.by_id.get_mut(&service)?.next(tried)
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
            position: 0,
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
    Ok(())
}

fn unknown(name: &str) -> ControlError {
    ControlError {
        kind: ControlErrorKind::Unknown,
        message: format!("this member has no service `{name}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: &str = "hello";

    fn config() -> Config {
        Config {
            name: "hello.lan".into(),
            subnet4: "192.168.127.0/24".parse().unwrap(),
            subnet6: "fd00:1:2:3::/64".parse().unwrap(),
            mode: crate::config::Mode::User,
            gateway: None,
            gateway_mac: netyard_wire::MacAddr::from_seed("hello.lan"),
            zone: "lan".into(),
            mtu: 1500,
            uplink: crate::config::Uplink::Nat,
            host: Vec::new(),
            dhcp: None,
            permanent: false,
        }
    }

    fn instance(number: u8) -> ServiceInstance {
        ServiceInstance {
            name: format!("web-{number}"),
            address4: Ipv4Addr::new(192, 168, 127, number + 1),
            address6: Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, u16::from(number) + 1),
            eligible: true,
        }
    }

    fn spec(instances: &[u8]) -> ServiceSpec {
        ServiceSpec {
            name: "web".into(),
            port: 8080,
            publish: None,
            instances: instances.iter().copied().map(instance).collect(),
        }
    }

    struct Bench {
        services: Services,
        id: ServiceId,
    }

    impl Bench {
        fn new(instances: &[u8]) -> Self {
            let mut services = Services::default();
            let id = services.set(MEMBER, spec(instances), &config(), |_| false).unwrap();
            Self { services, id }
        }

        fn set(&mut self, instances: &[u8]) {
            let id = self.services.set(MEMBER, spec(instances), &config(), |_| false).unwrap();
            assert_eq!(id, self.id);
        }

        fn eligible(&mut self, number: u8, eligible: bool) {
            self.services.set_eligible(MEMBER, "web", &format!("web-{number}"), eligible).unwrap();
        }

        /// Opens and closes `count` connections; the numbers of the instances that got them.
        fn turns(&mut self, count: usize) -> Vec<u8> {
            (0..count)
                .map(|_| {
                    let turn = self.services.next(self.id, &[]).unwrap();
                    self.services.opened(turn.key);
                    self.services.closed(turn.key);
                    turn.address4.octets()[3] - 1
                })
                .collect()
        }

        fn state(&self) -> ServiceState {
            self.services.state().remove(0)
        }
    }

    #[test]
    fn turns_are_exact() {
        let mut bench = Bench::new(&[1, 2, 3]);
        assert_eq!(bench.turns(7), [1, 2, 3, 1, 2, 3, 1]);
        bench.turns(293);
        assert_eq!(bench.state().instances.iter().map(|i| i.turns).collect::<Vec<_>>(), [100; 3]);
    }

    #[test]
    fn an_instance_that_may_not_is_passed_over_and_comes_back_in_its_place() {
        let mut bench = Bench::new(&[1, 2, 3]);
        assert_eq!(bench.turns(1), [1]);
        bench.eligible(2, false);
        assert_eq!(bench.turns(3), [3, 1, 3]);
        bench.eligible(2, true);
        assert_eq!(bench.turns(4), [1, 2, 3, 1]);
    }

    #[test]
    fn the_position_is_kept_when_instances_come_and_go() {
        let mut bench = Bench::new(&[1, 2, 3]);
        assert_eq!(bench.turns(1), [1]);
        bench.set(&[1, 2, 3, 4]);
        assert_eq!(bench.turns(3), [2, 3, 4]);
        assert_eq!(bench.turns(1), [1]);
        bench.set(&[1, 3, 4]); // 2 was next: 3 is now
        assert_eq!(bench.turns(4), [3, 4, 1, 3]);
        bench.set(&[4, 3, 1]); // another order: 4 is still next
        assert_eq!(bench.turns(4), [4, 3, 1, 4]);
        bench.set(&[5, 6]);
        assert_eq!(bench.turns(3), [5, 6, 5]);
    }

    #[test]
    fn a_failed_attempt_consumes_the_turn() {
        let mut bench = Bench::new(&[1, 2, 3]);
        let first = bench.services.next(bench.id, &[]).unwrap();
        bench.services.failed(first.key);
        let second = bench.services.next(bench.id, &[first.key]).unwrap();
        bench.services.opened(second.key);
        assert_eq!(second.address4, instance(2).address4);
        assert_eq!(bench.turns(3), [3, 1, 2]);
        let state = bench.state();
        assert_eq!((state.instances[0].turns, state.instances[0].failed), (2, 1));
        assert_eq!((state.instances[1].turns, state.instances[1].open), (2, 1));
        assert_eq!(state.refused, 0);
    }

    #[test]
    fn each_instance_is_tried_once_and_then_the_connection_is_refused() {
        let mut bench = Bench::new(&[1, 2, 3]);
        let mut tried = Vec::new();
        while let Some(turn) = bench.services.next(bench.id, &tried) {
            bench.services.failed(turn.key);
            tried.push(turn.key);
        }
        assert_eq!(tried.len(), 3);
        assert_eq!(bench.state().refused, 1);
        assert_eq!(bench.turns(1), [1]);
    }

    #[test]
    fn without_instances_connections_are_refused() {
        let mut bench = Bench::new(&[]);
        assert_eq!(bench.services.next(bench.id, &[]), None);
        assert!(!bench.services.get(bench.id).unwrap().is_available());
        bench.set(&[1]);
        assert!(bench.services.get(bench.id).unwrap().is_available());
        bench.eligible(1, false);
        assert!(!bench.services.get(bench.id).unwrap().is_available());
        assert_eq!(bench.services.next(bench.id, &[]), None);
        assert_eq!(bench.state().refused, 2);
    }

    #[test]
    fn a_removed_instance_drains() {
        let mut bench = Bench::new(&[1, 2]);
        let open = bench.services.next(bench.id, &[]).unwrap();
        bench.services.opened(open.key);
        bench.set(&[2]);
        assert_eq!(bench.turns(2), [2, 2]);
        let state = bench.state();
        assert_eq!(state.spec.instances[1].name, "web-1");
        assert!(state.instances[1].draining && !state.instances[0].draining);
        bench.services.closed(open.key);
        assert_eq!(bench.state().instances.len(), 1);
    }

    #[test]
    fn a_draining_instance_that_returns_is_the_same_one() {
        let mut bench = Bench::new(&[1, 2]);
        let open = bench.services.next(bench.id, &[]).unwrap();
        bench.services.opened(open.key);
        bench.set(&[2]);
        bench.set(&[1, 2]);
        let state = bench.state();
        assert_eq!((state.instances.len(), state.instances[0].open), (2, 1));
        assert!(!state.instances[0].draining);
        bench.services.closed(open.key);
        assert_eq!(bench.state().instances[0].open, 0);
    }

    #[test]
    fn an_instance_with_another_address_is_another_one_in_the_same_place() {
        let mut bench = Bench::new(&[1, 2, 3]);
        let old = bench.services.next(bench.id, &[]).unwrap();
        bench.services.opened(old.key);
        let mut moved = spec(&[1, 2, 3]);
        moved.instances[1].address4 = Ipv4Addr::new(192, 168, 127, 99);
        bench.services.set(MEMBER, moved, &config(), |_| false).unwrap();
        assert_eq!(bench.turns(3), [98, 3, 1]);
        assert_eq!(bench.state().instances[0].open, 1);
    }

    #[test]
    fn outcomes_after_the_end_are_ignored() {
        let mut bench = Bench::new(&[1]);
        let turn = bench.services.next(bench.id, &[]).unwrap();
        bench.services.remove(MEMBER, "web").unwrap();
        bench.services.opened(turn.key);
        bench.services.closed(turn.key);
        assert_eq!(bench.services.next(bench.id, &[]), None);
        assert!(bench.services.state().is_empty());
    }

    #[test]
    fn an_abandoned_attempt_is_neither_open_nor_failed() {
        let mut bench = Bench::new(&[1]);
        let turn = bench.services.next(bench.id, &[]).unwrap();
        bench.services.abandoned(turn.key);
        let state = bench.state().instances[0];
        assert_eq!((state.turns, state.failed, state.open), (1, 0, 0));
        bench.set(&[]);
        assert!(bench.state().instances.is_empty());
    }

    #[test]
    fn virtual_addresses_grow_downward_below_the_host_and_stay() {
        let mut services = Services::default();
        let config = config();
        let taken = config.nth4(252);
        let mut add = |name: &str| {
            let spec = ServiceSpec { name: name.into(), ..spec(&[1]) };
            let id = services
                .set(MEMBER, spec, &config, |address| address == IpAddr::from(taken))
                .unwrap();
            services.get(id).unwrap().address4()
        };
        assert_eq!(add("a"), config.nth4(253));
        assert_eq!(add("b"), config.nth4(251));
        assert_eq!(add("a"), config.nth4(253));
        let a = services.by_address(config.nth6(253).into());
        assert_eq!(a, services.id_of("A"));
        services.remove(MEMBER, "a").unwrap();
        assert_eq!(services.by_address(config.nth4(253).into()), None);
    }

    #[test]
    fn a_full_subnet_a_foreign_name_and_nonsense_are_refused() {
        let mut services = Services::default();
        let small = Config { subnet4: "10.0.0.0/29".parse().unwrap(), ..config() };
        let mut set = |member: &str, name: &str, spec: ServiceSpec| {
            services
                .set(member, ServiceSpec { name: name.into(), ..spec }, &small, |a| {
                    a < IpAddr::from(small.nth4(5))
                })
                .map_err(|error| error.kind)
        };
        set(MEMBER, "a", spec(&[1])).unwrap();
        assert_eq!(set(MEMBER, "b", spec(&[1])), Err(ControlErrorKind::Exhausted));
        assert_eq!(set("other", "a", spec(&[1])), Err(ControlErrorKind::Taken));
        assert_eq!(set(MEMBER, "", spec(&[1])), Err(ControlErrorKind::Malformed));
        assert_eq!(set(MEMBER, "c", spec(&[1, 1])), Err(ControlErrorKind::Malformed));
        let no_port = ServiceSpec { port: 0, ..spec(&[1]) };
        assert_eq!(set(MEMBER, "c", no_port), Err(ControlErrorKind::Malformed));
        assert!(services.set_eligible(MEMBER, "a", "web-9", true).is_err());
        assert!(services.set_eligible("other", "a", "web-1", true).is_err());
        assert!(services.remove("other", "a").is_err());
        assert_eq!(services.remove_member(MEMBER).len(), 1);
    }
}
