//! Every NAT there can be, in virtual time: the verdict must be what the NAT does.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a world that breaks is a failed test")]

mod world;

use std::time::Duration;

use netyard_nic::nat::report::Hairpin;
use netyard_nic::nat::simulate::{Allocation, Behaviour, Hairpinning};
use netyard_nic::nat::{
    Confidence, DeltaType, Filtering, Mapping, NatReport, NatType, Plan, Rules, examine,
};
use netyard_nic::stun::{Lookup, Machine, lookup};
use netyard_nic::{Agreement, Verdict};
use world::{World, at, seed};

const MAPPINGS: [Mapping; 4] = [
    Mapping::None,
    Mapping::EndpointIndependent,
    Mapping::AddressDependent,
    Mapping::AddressAndPortDependent,
];
const FILTERINGS: [Filtering; 3] = [
    Filtering::EndpointIndependent,
    Filtering::AddressDependent,
    Filtering::AddressAndPortDependent,
];
const ALLOCATIONS: [Allocation; 5] = [
    Allocation::Preserve,
    Allocation::Shift(1000),
    Allocation::Sequential(7),
    Allocation::Random,
    Allocation::Parity,
];

fn plan() -> Plan {
    Plan::new(vec![at("198.51.100.1:3478")])
}

fn test(world: &mut World, number: u64, plan: Plan) -> NatReport {
    let machine = Machine::new(seed(number), world.start, |line| examine(line, plan));
    world.run(machine)
}

/// Every NAT of the matrix, with a number for its name.
fn matrix() -> impl Iterator<Item = Behaviour> {
    MAPPINGS.into_iter().flat_map(|mapping| {
        FILTERINGS.into_iter().flat_map(move |filtering| {
            ALLOCATIONS
                .into_iter()
                .map(move |allocation| Behaviour::new(mapping, filtering, allocation))
        })
    })
}

#[test]
fn c17_every_nat_is_told_for_what_it_is_twenty_times() {
    for behaviour in matrix() {
        for round in 0..20 {
            let mut world = World::new(round).behind(behaviour.clone()).server();
            let report = test(&mut world, round, plan());
            let name = format!("{behaviour:?}, round {round}: {report:#?}");
            let details = &report.details;
            assert_eq!(details.mapping, Some(behaviour.mapping), "{name}");
            assert_eq!(details.filtering, Some(behaviour.filtering), "{name}");
            let kind = NatType::of(Some(behaviour.mapping), Some(behaviour.filtering));
            assert_eq!(report.kind, kind, "{name}");
            assert_eq!(details.confidence, Confidence::Proven, "{name}");
            assert_eq!(details.alg, Some(false), "{name}");

            let delta = report.delta.expect("ports were looked at");
            let ports = details.port;
            let expected = match behaviour.allocation {
                _ if behaviour.mapping == Mapping::None => (DeltaType::Equal, 0),
                Allocation::Preserve => (DeltaType::Equal, 0),
                Allocation::Shift(_) => (DeltaType::Preserving, 0),
                Allocation::Sequential(step) => (DeltaType::Independent, step.unsigned_abs()),
                Allocation::Random | Allocation::Parity => (DeltaType::Random, 0),
            };
            assert_eq!((delta.kind, delta.value), expected, "{name}");
            if behaviour.mapping != Mapping::None {
                let ports = ports.expect("ports were looked at");
                let parity = [Allocation::Preserve, Allocation::Parity, Allocation::Shift(1000)];
                assert_eq!(ports.preserve, behaviour.allocation == Allocation::Preserve, "{name}");
                assert_eq!(ports.parity, parity.contains(&behaviour.allocation), "{name}");
            }
            assert!(details.took_ms.unwrap() <= 2000, "{name}");
        }
    }
}

/// Address report and verdict on a path of 20 ms, by a clock that no other program slows down.
#[test]
fn c25_the_budgets_are_kept_on_a_path_of_20_ms() {
    let round_trip = Duration::from_millis(20);
    for behaviour in matrix() {
        let mut world = World::new(2).behind(behaviour.clone()).server();
        let servers = ["198.51.100.1:3478", "198.51.100.2:3479"];
        let servers = servers.map(|server| (server.to_owned(), at(server))).to_vec();
        let machine = Machine::new(seed(2), world.start, |line| {
            lookup(line, Lookup::new(servers), Agreement::new(Agreement::WANTED))
        });
        let external = world.run(machine);
        let verdict = external.agreement.verdict();
        assert!(
            matches!(verdict, Verdict::Seen(_, netyard_nic::Confidence::Proven)),
            "{verdict:?}"
        );
        assert!(external.took <= round_trip + Duration::from_millis(50), "{:?}", external.took);

        let mut world = World::new(2).behind(behaviour.clone()).server();
        let report = test(&mut world, 2, plan());
        assert!(world.passed() <= Duration::from_secs(2), "{behaviour:?}: {report:#?}");
    }
}

#[test]
fn c18_on_a_lossy_slow_path_no_verdict_is_wrong() {
    let mut inconclusive = 0;
    for behaviour in matrix() {
        for round in 0..20 {
            let mut world = World::new(round)
                .behind(behaviour.clone())
                .server()
                .over(Duration::from_millis(200), 50);
            let report = test(&mut world, round, plan());
            let name = format!("{behaviour:?}, round {round}: {report:#?}");
            let kind = NatType::of(Some(behaviour.mapping), Some(behaviour.filtering));
            let details = &report.details;
            assert!(report.kind.is_none() || report.kind == kind, "{name}");
            let mapping = details.mapping;
            assert!(mapping.is_none_or(|mapping| mapping == behaviour.mapping), "{name}");
            let filtering = details.filtering;
            assert!(filtering.is_none_or(|filtering| filtering == behaviour.filtering), "{name}");
            if report.kind.is_none() {
                assert!(details.inconclusive.is_some(), "{name}");
                inconclusive += 1;
            }
        }
    }
    assert!(inconclusive <= 12, "{inconclusive} of 1200 tests had no verdict");
}

#[test]
fn c20_no_answer_over_udp_is_blocked() {
    let report = test(&mut World::new(1), 1, plan());
    assert_eq!(report.kind, Some(NatType::Blocked));
    assert_eq!(report.details.udp, Some(false));
    assert_eq!(report.details.mapping, None);
}

#[test]
fn c17_classic_rules_tell_the_types_of_their_time() {
    for behaviour in matrix() {
        let mut world = World::new(3).behind(behaviour.clone()).server();
        let report = test(&mut world, 3, Plan { rules: Rules::Classic, ..plan() });
        let kind = NatType::of(Some(behaviour.mapping), Some(behaviour.filtering));
        assert_eq!(report.kind, kind, "{behaviour:?}: {report:#?}");
        // The step to the other address and port cannot tell on which of them a mapping depends.
        let depends = kind == Some(NatType::Symmetric);
        assert_eq!(report.details.mapping.is_none(), depends, "{behaviour:?}");
    }
}

#[test]
fn c17_two_servers_with_one_address_tell_the_mapping_alone() {
    let plan = || Plan::new(vec![at("198.51.100.7:3478"), at("198.51.100.8:3478")]);
    let world = || World::new(4).single("198.51.100.7:3478").single("198.51.100.8:3478");
    let behaviour =
        |mapping| Behaviour::new(mapping, Filtering::EndpointIndependent, Allocation::Preserve);

    let report = test(&mut world().behind(behaviour(Mapping::EndpointIndependent)), 4, plan());
    assert_eq!(report.kind, Some(NatType::PortRestricted), "the careful guess");
    assert_eq!(report.details.confidence, Confidence::Assumed);
    assert_eq!(report.details.filtering, None);

    let report = test(&mut world().behind(behaviour(Mapping::AddressDependent)), 4, plan());
    assert_eq!(report.kind, Some(NatType::Symmetric));
    assert_eq!(report.details.mapping, None, "on which of the two it depends is not known");

    let report = test(&mut world().behind(behaviour(Mapping::None)), 4, plan());
    assert_eq!(report.kind, None, "whether there is a firewall was not tested");
    assert_eq!(report.details.mapping, Some(Mapping::None));

    let one = Plan::new(vec![at("198.51.100.7:3478")]);
    let report = test(&mut world().behind(behaviour(Mapping::EndpointIndependent)), 4, one);
    assert_eq!(report.kind, None);
    let reason = report.details.inconclusive.unwrap();
    assert!(reason.contains("198.51.100.7:3478 has no second address"), "{reason}");
}

#[test]
fn c19_hairpins_are_seen_with_their_source() {
    for (hairpin, expected) in [
        (Hairpinning::Drop, Hairpin::No),
        (Hairpinning::External, Hairpin::External),
        (Hairpinning::Internal, Hairpin::Internal),
    ] {
        for filtering in FILTERINGS {
            let behaviour = Behaviour {
                hairpin,
                ..Behaviour::new(Mapping::EndpointIndependent, filtering, Allocation::Random)
            };
            let mut world = World::new(5).behind(behaviour).server();
            let report = test(&mut world, 5, Plan { hairpin: true, ..plan() });
            assert_eq!(report.details.hairpin, Some(expected), "{filtering:?}");
        }
    }
}

#[test]
fn c19_the_life_of_a_mapping_is_told_within_a_step() {
    for (life, expected) in [
        (15, (None, Some(20))),
        (25, (Some(20), Some(30))),
        (65, (Some(60), Some(90))),
        (125, (Some(120), Some(180))),
        (600, (Some(300), None)),
    ] {
        let behaviour = Behaviour {
            life: Duration::from_secs(life),
            ..Behaviour::new(
                Mapping::EndpointIndependent,
                Filtering::AddressAndPortDependent,
                Allocation::Random,
            )
        };
        let mut world = World::new(6).behind(behaviour).server();
        let lifetime = Some(Duration::from_secs(300));
        let report = test(&mut world, 6, Plan { lifetime, ..plan() });
        let found = (report.details.lifetime_s, report.details.lifetime_below_s);
        assert_eq!(found, expected, "a life of {life} s");
    }
}

#[test]
fn c17_a_symmetric_nat_that_counts_is_told_by_its_next_destination() {
    let behaviour = Behaviour::new(
        Mapping::AddressAndPortDependent,
        Filtering::AddressAndPortDependent,
        Allocation::Sequential(-3),
    );
    let mut world = World::new(7).behind(behaviour).server();
    let report = test(&mut world, 7, plan());
    assert_eq!(report.details.next_destination, Some(-3));
    let delta = report.delta.unwrap();
    assert_eq!((delta.kind, delta.value, delta.signed), (DeltaType::Independent, 3, Some(-3)));
}

#[test]
fn c19_a_gateway_with_another_address_is_a_second_nat() {
    let behaviour = Behaviour::new(
        Mapping::EndpointIndependent,
        Filtering::AddressAndPortDependent,
        Allocation::Preserve,
    );
    for (gateway, layers) in [("203.0.113.1", 1), ("100.64.0.9", 2)] {
        let mut world = World::new(8).behind(behaviour.clone()).server();
        let gateway = Some(gateway.parse().unwrap());
        let report = test(&mut world, 8, Plan { gateway, ..plan() });
        assert_eq!(report.details.layers, Some(layers));
    }
}

#[test]
fn c23_a_second_test_tells_the_same() {
    let behaviour = Behaviour::new(
        Mapping::EndpointIndependent,
        Filtering::AddressAndPortDependent,
        Allocation::Preserve,
    );
    let mut world = World::new(9).behind(behaviour).server();
    for round in 0..3 {
        let report = test(&mut world, round, plan());
        assert_eq!(report.kind, Some(NatType::PortRestricted), "round {round}");
    }
}
