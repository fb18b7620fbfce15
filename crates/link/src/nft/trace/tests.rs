use super::super::{Chain, Datum, Priority, Reject, Rule, Selector, Type, Value, Verdict};
use super::*;

const TCP: u8 = 6;

/// Keeps what a batch would make.
#[derive(Default)]
struct Made(Ruleset);

impl Made {
    fn chain(&mut self, chain: &Chain, drops: bool) {
        let base = chain.base.as_ref().map(|base| {
            let (hook, kind) = base.hook.parts();
            (hook, base.priority.0, kind.to_owned())
        });
        self.0.chains.push(ChainState {
            table: chain.table.name.clone(),
            family: chain.table.family,
            name: chain.name.clone(),
            base,
            drops,
            used: 0,
        });
    }

    fn rule(&mut self, rule: Rule) {
        rule.check().unwrap();
        let handle = 1 + self.0.rules.len() as u64;
        self.0.rules.push(Known {
            family: rule.chain.table.family,
            table: rule.chain.table.name.clone(),
            chain: rule.chain.name.clone(),
            handle,
            comment: rule.comment.clone(),
            counted: 0,
            expressions: Ok(rule.expressions.clone()),
        });
    }

    fn set(&mut self, set: &Set, elements: &[(Value, Option<Datum>)]) {
        let state = SetState {
            table: set.table.name.clone(),
            family: set.table.family,
            name: set.name.clone(),
            key_len: super::super::set::width(&set.key).try_into().unwrap(),
            is_map: set.data.is_some(),
            ranges: false,
        };
        let elements = elements.iter().map(|(key, data)| ElementState {
            key: key.clone(),
            last: None,
            end: false,
            data: data.clone(),
            timeout: None,
            expires: None,
            comment: None,
            counter: None,
        });
        self.0.sets.push((state, elements.collect()));
    }
}

fn packet(to: [u8; 4], port: u16) -> Packet {
    Packet {
        input: Some(Port { name: "br1".into(), index: 7 }),
        output: None,
        mac: None,
        source: [192, 168, 1, 11].into(),
        destination: to.into(),
        protocol: TCP,
        source_port: 40_000,
        destination_port: port,
        state: CtState::NEW,
        translated: false,
        mark: 0,
        local: false,
        turn: 0,
    }
}

#[test]
fn turns_and_maps_lead_to_instances() {
    let table = Table::inet("t");
    let entry = Chain::base(&table, "prerouting", Hook::NatPrerouting, Priority::DNAT);
    let service = Chain::regular(&table, "service/web");
    let key = [Type::Ipv4, Type::Protocol, Type::Port];
    let services = Set::verdict_map(&table, "services", key);
    let turns = Set::verdict_map(&table, "turns", [Type::Mark]);
    let mut made = Made::default();
    made.chain(&entry, false);
    made.chain(&service, false);
    let with = [Selector::Ip4Destination, Selector::L4Protocol, Selector::DestinationPort];
    made.rule(Rule::new(&entry).load(with).vmap(&services));
    let two = Selector::Turn { modulus: 2, offset: 0 };
    made.rule(Rule::new(&service).load([two]).vmap(&turns));
    let address = IpAddr::from([192, 168, 1, 254]);
    let goto = |name: &str| Some(Datum::Verdict(Verdict::Goto(name.into())));
    let web = Value::concat([address.into(), Value::byte(TCP), Value::port(80)]);
    made.set(&services, &[(web, goto("service/web"))]);
    made.set(&turns, &[(Value::number(0), goto("one")), (Value::number(1), goto("two"))]);
    for (name, last) in [("one", 11), ("two", 12)] {
        let chain = Chain::regular(&table, name);
        made.chain(&chain, false);
        let to = IpAddr::from([192, 168, 1, last]);
        made.rule(Rule::new(&chain).counter().dnat(to, Some(8080)).comment("a turn"));
    }
    for (counted, turn, last) in [(0, 0, 11), (0, 1, 12), (0, 2, 11), (7, 0, 12), (7, 1, 11)] {
        made.0.rules[1].counted = counted;
        let asked = Packet { turn, ..packet([192, 168, 1, 254], 80) };
        let passage = made.0.pass(Hook::Prerouting, false, &asked);
        assert_eq!(passage.packet.destination, IpAddr::from([192, 168, 1, last]));
        assert_eq!(passage.packet.destination_port, 8080);
        assert!(passage.packet.translated && passage.passes());
        assert_eq!((passage.turns, passage.doubts.len()), (Some(2), 0));
        let [decision] = passage.decisions.as_slice() else { panic!("{passage:?}") };
        assert_eq!(decision.chains[..2], ["prerouting", "service/web"]);
        assert_eq!(decision.comment.as_deref(), Some("a turn"));
        assert_eq!(decision.rule, format!("counter dnat to 192.168.1.{last}:8080"));
    }
    let other = made.0.pass(Hook::Prerouting, false, &packet([192, 168, 1, 254], 81));
    assert!(other.decisions.is_empty() && other.turns.is_none());
    let known = Packet { state: CtState::ESTABLISHED, ..packet([192, 168, 1, 254], 80) };
    assert!(made.0.pass(Hook::Prerouting, false, &known).decisions.is_empty());
}

#[test]
fn translations_come_behind_chains_that_only_accept() {
    let (firewall, ours) = (Table::new(Family::Ip, "firewall"), Table::inet("ours"));
    let early = Chain::base(&firewall, "early", Hook::NatPrerouting, Priority(-200));
    let entry = Chain::base(&ours, "entry", Hook::NatPrerouting, Priority::DNAT);
    let late = Chain::base(&firewall, "late", Hook::NatPrerouting, Priority(10));
    let to = |last| IpAddr::from([192, 168, 1, last]);
    let mut made = Made::default();
    for chain in [&early, &entry, &late] {
        made.chain(chain, false);
    }
    made.rule(Rule::new(&early).accept());
    made.rule(Rule::new(&entry).dnat(to(11), Some(8080)));
    made.rule(Rule::new(&late).dnat(to(12), Some(8080)));
    let passage = made.0.pass(Hook::Prerouting, false, &packet([10, 0, 0, 1], 80));
    let effects: Vec<_> = passage.decisions.iter().map(|it| it.effect.clone()).collect();
    let once = Effect::Destination(to(11), Some(8080));
    assert_eq!(effects, [Effect::Accept, once], "one translation, and no other after it");
    assert_eq!(passage.packet.destination, to(11));
}

#[test]
fn types_of_addresses_are_those_of_the_destination() {
    const UNICAST: u32 = 1;
    const BROADCAST: u32 = 3;
    const MULTICAST: u32 = 5;
    let table = Table::inet("t");
    let chain = Chain::base(&table, "input", Hook::Input, Priority::FILTER);
    for (to, kind) in
        [([10, 0, 0, 1], UNICAST), ([255, 255, 255, 255], BROADCAST), ([224, 0, 0, 251], MULTICAST)]
    {
        for other in [UNICAST, BROADCAST, MULTICAST] {
            let mut made = Made::default();
            made.chain(&chain, false);
            let is = Value::number(other);
            made.rule(Rule::new(&chain).is(Selector::FibDestinationType, is).drop());
            let passage = made.0.pass(Hook::Input, false, &packet(to, 80));
            assert_eq!(passage.passes(), other != kind, "{to:?} {other}");
        }
    }
    // Of the sender, or as one link has it: not known.
    for flags in [1, 1 << 1 | 1 << 3] {
        let mut made = Made::default();
        made.chain(&chain, false);
        made.rule(
            Rule::new(&chain).is(Selector::FibDestinationType, Value::number(UNICAST)).drop(),
        );
        for expression in made.0.rules.iter_mut().flat_map(|it| it.expressions.as_mut().unwrap()) {
            if let Expression::Fib { flags: all, .. } = expression {
                *all = flags;
            }
        }
        let passage = made.0.pass(Hook::Input, false, &packet([10, 0, 0, 1], 80));
        assert!(passage.passes() && passage.doubts.len() == 1, "{passage:?}");
    }
}

#[test]
fn every_table_has_its_say_in_order() {
    let (ours, others) = (Table::inet("ours"), Table::new(Family::Ip, "others"));
    let mine = Chain::base(&ours, "forward", Hook::Forward, Priority::FILTER);
    let late = Chain::base(&others, "late", Hook::Forward, Priority(10));
    let mut made = Made::default();
    made.chain(&late, true);
    made.chain(&mine, false);
    let net: ipnet::IpNet = "192.168.1.0/24".parse().unwrap();
    let link: crate::rtnetlink::LinkName = "br1".parse().unwrap();
    let leaving = Rule::new(&mine).is(Selector::InputName, &link);
    made.rule(leaving.clone().within(Selector::Ip4Destination, net).accept());
    let metadata = "169.254.0.0/16".parse().unwrap();
    made.rule(leaving.within(Selector::Ip4Destination, metadata).reject(Reject::Prohibited));
    let inside = made.0.pass(Hook::Forward, false, &packet([192, 168, 1, 12], 80));
    let said: Vec<_> = inside.decisions.iter().map(|it| it.rule.as_str()).collect();
    assert_eq!(
        said,
        ["iifname \"br1\" ip daddr 192.168.1.0/24 accept", "policy drop"],
        "the other table drops what ours lets pass"
    );
    assert!(!inside.passes());
    let cloud = made.0.pass(Hook::Forward, false, &packet([169, 254, 169, 254], 80));
    assert_eq!(cloud.decisions.last().unwrap().effect, Effect::Reject(false));
    assert_eq!(cloud.decisions.len(), 1, "nobody is asked after a refusal");
    let v6 = Packet {
        source: "fd00::1".parse().unwrap(),
        destination: "fd00::2".parse().unwrap(),
        ..packet([0; 4], 80)
    };
    assert!(made.0.pass(Hook::Forward, false, &v6).passes(), "the other table is of IPv4");
}

#[test]
fn what_is_not_known_is_said_and_does_not_match() {
    let table = Table::inet("t");
    let chain = Chain::base(&table, "input", Hook::Input, Priority::FILTER);
    let mut made = Made::default();
    made.chain(&chain, false);
    made.rule(Rule::new(&chain).is(Selector::CtZone, Value::bytes(&[0, 1])).drop());
    made.rule(Rule::new(&chain).drop());
    if let Some(rule) = made.0.rules.last_mut() {
        rule.expressions = Err("match".into());
    }
    let passage = made.0.pass(Hook::Input, false, &packet([10, 0, 0, 1], 80));
    assert!(passage.passes());
    assert_eq!(passage.doubts.len(), 2, "{:?}", passage.doubts);
    assert!(passage.doubts[1].contains("match"), "{:?}", passage.doubts);
}

#[test]
fn ranges_hold_what_lies_between() {
    let table = Table::inet("t");
    let chain = Chain::base(&table, "input", Hook::Input, Priority::FILTER);
    let ports = Set::new(&table, "ports", [Type::Port]);
    let mut made = Made::default();
    made.chain(&chain, false);
    made.rule(Rule::new(&chain).load([Selector::DestinationPort]).in_set(&ports).drop());
    made.set(&ports, &[(Value::port(80), None), (Value::port(90), None)]);
    if let Some((state, elements)) = made.0.sets.last_mut() {
        state.ranges = true;
        elements[1].end = true;
    }
    for (port, passes) in [(79, true), (80, false), (89, false), (90, true)] {
        let passage = made.0.pass(Hook::Input, false, &packet([10, 0, 0, 1], port));
        assert_eq!(passage.passes(), passes, "{port}");
    }
}
