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
        dns: Default::default(),
        mtu: 1500,
        uplink: crate::config::Uplink::Nat,
        host: Vec::new(),
        dhcp: None,
        snooping: true,
        mdns: Default::default(),
        permanent: false,
    }
}

fn instance(number: u8) -> ServiceInstance {
    ServiceInstance {
        name: format!("web-{number}"),
        address4: Ipv4Addr::new(192, 168, 127, number + 1),
        address6: Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, u16::from(number) + 1),
        weight: 1,
        eligible: true,
    }
}

fn spec(instances: &[u8]) -> ServiceSpec {
    ServiceSpec {
        name: "web".into(),
        protocol: Protocol::Tcp,
        port: 8080,
        publish: None,
        delivery: Default::default(),
        policy: TurnPolicy::RoundRobin,
        affinity: None,
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
        let id =
            services.set(MEMBER, spec, &config, |address| address == IpAddr::from(taken)).unwrap();
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

const MINUTE: Duration = Duration::from_secs(60);

impl Bench {
    fn with(spec: ServiceSpec) -> Self {
        let mut bench = Self::new(&[]);
        bench.change(spec);
        bench
    }

    fn change(&mut self, spec: ServiceSpec) {
        self.services.set(MEMBER, spec, &config(), |_| false).unwrap();
    }

    /// The number of the instance that a client gets.
    fn ask(&mut self, now: Instant, client: u16) -> u8 {
        let turn = self.services.next_for(now, address(client), self.id, &[]).unwrap();
        self.services.opened(turn.key);
        self.services.closed(turn.key);
        turn.address4.octets()[3] - 1
    }
}

fn address(client: u16) -> IpAddr {
    let [high, low] = client.to_be_bytes();
    IpAddr::from([10, 0, high, low])
}

fn weighted(weights: &[(u8, u32)]) -> ServiceSpec {
    let numbers: Vec<u8> = weights.iter().map(|(number, _)| *number).collect();
    let mut spec = spec(&numbers);
    for (instance, (_, weight)) in spec.instances.iter_mut().zip(weights) {
        instance.weight = *weight;
    }
    spec
}

fn keeping(instances: &[u8]) -> ServiceSpec {
    ServiceSpec { affinity: Some(MINUTE), ..spec(instances) }
}

#[test]
fn weights_share_the_turns_exactly_and_evenly() {
    let mut bench = Bench::with(weighted(&[(1, 3), (2, 1), (3, 1)]));
    assert_eq!(bench.turns(5), [1, 1, 2, 1, 3]);
    bench.turns(495);
    let turns: Vec<u64> = bench.state().instances.iter().map(|it| it.turns).collect();
    assert_eq!(turns, [300, 100, 100]);
    assert_eq!(bench.turns(2), [1, 1]);
    // Another weight: 2 is still next.
    bench.change(weighted(&[(1, 2), (2, 2), (3, 1)]));
    assert_eq!(bench.turns(5), [2, 1, 2, 3, 1]);
    // Whoever may not has no part in the cycle.
    bench.eligible(2, false);
    assert_eq!(bench.turns(6), [1, 3, 1, 1, 3, 1]);
}

#[test]
fn weights_that_cannot_be_are_refused() {
    let mut services = Services::default();
    let mut refused =
        |spec: ServiceSpec| services.set(MEMBER, spec, &config(), |_| false).unwrap_err().message;
    assert!(refused(weighted(&[(1, 0)])).contains("from 1 to 100"));
    assert!(refused(weighted(&[(1, 101)])).contains("weight 101"));
    let all: Vec<(u8, u32)> = (1..=101).map(|number| (number, 100)).collect();
    assert!(refused(weighted(&all)).contains("add up to 10100"));
    let brief = ServiceSpec { affinity: Some(Duration::from_millis(999)), ..spec(&[1]) };
    assert!(refused(brief).contains("affinity"));
}

#[test]
fn a_client_is_kept_as_long_as_it_comes_and_takes_no_turns() {
    let start = Instant::now();
    let mut bench = Bench::with(keeping(&[1, 2, 3]));
    assert_eq!([bench.ask(start, 7), bench.ask(start, 8)], [1, 2]);
    // Each connection begins the time again.
    let times = (1..=4).map(|n| start + n * (MINUTE - Duration::from_secs(1)));
    let last = start + 4 * (MINUTE - Duration::from_secs(1));
    assert!(times.map(|now| bench.ask(now, 7)).all(|instance| instance == 1));
    assert_eq!(bench.ask(last, 9), 3, "others take the turns");
    assert_eq!(bench.ask(last, 8), 1, "its time was over");
    assert_eq!(bench.ask(last + MINUTE, 7), 2, "exactly then");
    let state = bench.state();
    assert_eq!(state.instances.iter().map(|it| it.turns).sum::<u64>(), 9);
    assert_eq!((state.clients, state.clients_not_kept), (3, 0));
    // Without affinity nobody is kept any more.
    bench.change(spec(&[1, 2, 3]));
    assert_eq!(bench.state().clients, 0);
    assert_eq!([bench.ask(last, 7), bench.ask(last, 7)], [3, 1]);
}

#[test]
fn a_client_loses_an_instance_that_may_not_get_connections() {
    let now = Instant::now();
    let mut bench = Bench::with(keeping(&[1, 2, 3]));
    assert_eq!([bench.ask(now, 7), bench.ask(now, 8)], [1, 2]);
    bench.eligible(1, false);
    assert_eq!(bench.state().clients, 1);
    assert_eq!([bench.ask(now, 7), bench.ask(now, 7)], [3, 3]);
    // It stays with its new one, and who did not ask meanwhile does not go back either.
    bench.eligible(2, false);
    bench.eligible(1, true);
    bench.eligible(2, true);
    assert_eq!([bench.ask(now, 7), bench.ask(now, 8), bench.ask(now, 9)], [3, 3, 1]);
    bench.change(keeping(&[2, 3]));
    assert_eq!([bench.ask(now, 7), bench.ask(now, 8), bench.ask(now, 9)], [3, 3, 2]);
}

#[test]
fn a_client_whose_instance_does_not_answer_moves_on_and_stays_there() {
    let now = Instant::now();
    let mut bench = Bench::with(keeping(&[1, 2]));
    assert_eq!(bench.ask(now, 7), 1);
    let first = bench.services.next_for(now, address(7), bench.id, &[]).unwrap();
    bench.services.failed(first.key);
    let second = bench.services.next_for(now, address(7), bench.id, &[first.key]).unwrap();
    bench.services.opened(second.key);
    assert_eq!(second.address4, instance(2).address4);
    assert_eq!(bench.ask(now, 7), 2);
}

#[test]
fn the_table_of_clients_is_bounded() {
    let now = Instant::now();
    let mut bench = Bench::with(keeping(&[1, 2]));
    for client in 0..=u16::MAX {
        bench.ask(now, client);
    }
    assert_eq!(bench.state().clients, u64::from(MAX_CLIENTS));
    let stranger = IpAddr::from([192, 0, 2, 1]);
    let asked = |bench: &mut Bench, now| {
        bench.services.next_for(now, stranger, bench.id, &[]).unwrap().address4
    };
    assert_ne!(asked(&mut bench, now), asked(&mut bench, now), "not kept");
    assert_eq!(bench.state().clients_not_kept, 2);
    assert_eq!(bench.ask(now, 0), 1, "those who are in it are");
    let later = now + MINUTE;
    assert_eq!(asked(&mut bench, later), asked(&mut bench, later), "there is room again");
    assert_eq!(bench.state().clients, 1);
}
