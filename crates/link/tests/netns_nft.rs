//! Rulesets, read back by `nft`, and what they do to packets.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::process::Command;
use std::time::Duration;

use netyard_link::conntrack::{Conntrack, Filter};
use netyard_link::netns::Netns;
use netyard_link::nft::trace::{Packet, Port, Ruleset};
use netyard_link::nft::{
    Batch, Chain, CtState, Datum, Element, Event, Family, Hook, LOCAL, Limit, Nftables, Policy,
    Priority, Reject, Rule, Selector, Set, Table, Target, Type, Value, Verdict, Watch,
};
use netyard_link::rtnetlink::LinkName;
use netyard_link::{BridgeFilter, Error, Features};
use netyard_testbed::{Namespace, isolate, isolate_mapped, output, peer, run, wait_for};
use serde_json::Value as Json;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Runs `nft` with these arguments.
fn nft(arguments: &[&str]) -> String {
    run(Command::new(peer("nft")).args(arguments))
}

/// The ruleset as `nft` reads it, in its own words.
fn listed(table: &Table) -> String {
    nft(&["list", "table", table.family().as_str(), table.name()])
}

/// What `nft -j` lists of one kind: `rule`, `set`, `map`, `chain`, `table`.
fn json(kind: &str) -> Vec<Json> {
    let text = nft(&["-j", "list", "ruleset"]);
    let all: Json = text.parse().unwrap();
    let items = all["nftables"].as_array().unwrap().iter();
    items.filter_map(|item| item.get(kind)).cloned().collect()
}

fn commit(kernel: &mut Nftables, build: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::new();
    build(&mut batch);
    kernel.commit(&batch).unwrap_or_else(|error| panic!("{error}"));
}

fn pair(protocol: u8, port: u16) -> Value {
    Value::concat([Value::byte(protocol), Value::port(port)])
}

fn to4(address: [u8; 4], port: u16) -> Value {
    Value::concat([Ipv4Addr::from(address).into(), Value::port(port)])
}

#[test]
fn every_kind_of_rule_is_what_nft_would_have_written() {
    isolate(|| {
        let mut kernel = Nftables::open().unwrap();
        let table = Table::inet("t").comment("ours");
        let forward = Chain::base(&table, "forward", Hook::Forward, Priority::FILTER);
        let forward = forward.policy(Policy::Drop);
        let pre = Chain::base(&table, "pre", Hook::NatPrerouting, Priority::DNAT);
        let post = Chain::base(&table, "post", Hook::NatPostrouting, Priority::SNAT);
        let raw = Chain::base(&table, "raw", Hook::Prerouting, Priority::RAW);
        let route = Chain::base(&table, "route", Hook::RouteOutput, Priority::MANGLE);
        let other = Chain::regular(&table, "other");
        let clients = Set::new(&table, "clients", [Type::Ipv4]).timeout(None).dynamic(1000);
        let affinity = Set::map(&table, "affinity", [Type::Ipv4], [Type::Mark])
            .timeout(Some(Duration::from_secs(600)))
            .dynamic(1000);
        let nets = Set::new(&table, "nets", [Type::Ipv4]).interval();
        let turns = Set::verdict_map(&table, "turns", [Type::Mark]);
        let here: IpAddr = [192, 0, 2, 1].into();
        let six: IpAddr = "2001:db8::1".parse().unwrap();
        let limit = Limit { packets: 10, per: Duration::from_secs(60), burst: 5 };
        // Beside each rule, what `nft` says of it.
        let rules = [
            (
                Rule::new(&forward).ct_state(CtState::ESTABLISHED | CtState::RELATED).accept(),
                "ct state established,related accept",
            ),
            (Rule::new(&forward).ct_state(CtState::INVALID).drop(), "ct state invalid drop"),
            (
                Rule::new(&forward)
                    .is(Selector::InputName, &"br1".parse().unwrap())
                    .counter()
                    .accept(),
                "iifname \"br1\" counter packets 0 bytes 0 accept",
            ),
            (
                Rule::new(&forward).is_not(Selector::OutputName, Value::names_from("ve")).drop(),
                "oifname != \"ve*\" drop",
            ),
            (
                Rule::new(&forward)
                    .within(Selector::Ip4Source, "10.1.0.0/16".parse().unwrap())
                    .accept(),
                "ip saddr 10.1.0.0/16 accept",
            ),
            (
                Rule::new(&forward)
                    .outside(Selector::Ip6Destination, "fd00::/8".parse().unwrap())
                    .drop(),
                "ip6 daddr != fd00::/8 drop",
            ),
            (
                Rule::new(&forward)
                    .is(Selector::Ip4Destination, here)
                    .is(Selector::L4Protocol, Value::byte(TCP))
                    .between(Selector::DestinationPort, Value::port(80), Value::port(90))
                    .reject(Reject::TcpReset),
                "ip daddr 192.0.2.1 tcp dport 80-90 reject with tcp reset",
            ),
            (
                Rule::new(&forward)
                    .load([Selector::Ip4Source])
                    .in_set(&nets)
                    .reject(Reject::Prohibited),
                "ip saddr @nets reject with icmpx admin-prohibited",
            ),
            (
                Rule::new(&forward).load([Selector::Ip4Source]).not_in_set(&nets).jump(&other),
                "ip saddr != @nets jump other",
            ),
            (
                Rule::new(&forward).limit(limit).log("seen "),
                "limit rate 10/minute log prefix \"seen \"",
            ),
            (
                Rule::new(&forward).clamp_mss_to_route(),
                "tcp flags syn / syn,rst tcp option maxseg size set rt mtu",
            ),
            (
                Rule::new(&forward).clamp_mss(1360),
                "tcp flags syn / syn,rst tcp option maxseg size set 1360",
            ),
            (
                Rule::new(&forward)
                    .bits(Selector::Mark, Value::number(0xff), Value::number(0x10))
                    .accept(),
                "meta mark & 0x000000ff == 0x00000010 accept",
            ),
            (Rule::new(&forward).destination_translated().accept(), "ct status dnat accept"),
            (
                Rule::new(&forward).is(Selector::CtDirection, Value::byte(0)).accept(),
                "ct direction original accept",
            ),
            (Rule::new(&pre).dnat(here, Some(8080)), "meta nfproto ipv4 dnat ip to 192.0.2.1:8080"),
            (Rule::new(&pre).dnat(six, None), "meta nfproto ipv6 dnat ip6 to 2001:db8::1"),
            (
                Rule::new(&pre)
                    .is(Selector::FibDestinationType, LOCAL)
                    .is(Selector::L4Protocol, Value::byte(TCP))
                    .redirect(Some(10_000)),
                "fib daddr type local meta l4proto tcp redirect to :10000",
            ),
            (
                Rule::new(&pre)
                    .load([Selector::Ip4Source])
                    .update(&clients, Some(Duration::from_secs(30))),
                "update @clients { ip saddr timeout 30s }",
            ),
            (
                Rule::new(&pre).load([Selector::Ip4Source]).update_map(
                    &affinity,
                    Value::number(7),
                    None,
                ),
                "update @affinity { ip saddr : 0x00000007 }",
            ),
            (
                Rule::new(&pre).load([Selector::Ip4Source]).forget(&affinity),
                "delete @affinity { ip saddr : 0x00000000 }",
            ),
            (
                Rule::new(&pre).load([Selector::Turn { modulus: 3, offset: 0 }]).vmap(&turns),
                "numgen inc mod 3 vmap @turns",
            ),
            (
                Rule::new(&pre).load([Selector::Ip4Source]).map(&affinity).store(Target::CtMark),
                "ct mark set ip saddr map @affinity",
            ),
            (
                Rule::new(&pre)
                    .load([Selector::Ip4Source])
                    .map(&affinity)
                    .store(Target::CtMark)
                    .load([Selector::CtMark])
                    .vmap(&turns),
                "ct mark set ip saddr map @affinity ct mark vmap @turns",
            ),
            (
                Rule::new(&post).is(Selector::OutputName, &"uplink".parse().unwrap()).masquerade(),
                "oifname \"uplink\" masquerade fully-random",
            ),
            (Rule::new(&post).snat(here), "meta nfproto ipv4 snat ip to 192.0.2.1"),
            (
                Rule::new(&raw).set(Target::CtZone, Value::bytes(&5_u16.to_ne_bytes())),
                "ct zone set 5",
            ),
            (Rule::new(&raw).notrack(), "notrack"),
            (
                Rule::new(&raw).is(Selector::FibSourceLink, Value::number(0)).drop(),
                "fib saddr . iif oif 0 drop",
            ),
            (Rule::new(&route).set(Target::Mark, Value::number(0x20)), "meta mark set 0x00000020"),
            (Rule::new(&other).verdict(Verdict::Return).comment("back"), "return comment \"back\""),
        ];
        commit(&mut kernel, |batch| {
            batch.create_table(&table);
            for set in [&clients, &affinity, &nets, &turns] {
                batch.add_set(set);
            }
            for chain in [&forward, &pre, &post, &raw, &route, &other] {
                batch.add_chain(chain);
            }
            rules.iter().for_each(|(rule, _)| {
                batch.add_rule(rule);
            });
        });
        let text = listed(&table);
        for (_, words) in &rules {
            assert!(text.contains(words), "no `{words}` in\n{text}");
        }
        assert!(text.contains("comment \"ours\""), "{text}");
        let chains = [
            "type filter hook forward priority filter; policy drop;",
            "type nat hook prerouting priority dstnat; policy accept;",
            "type nat hook postrouting priority srcnat; policy accept;",
            "type filter hook prerouting priority raw; policy accept;",
            "type route hook output priority mangle; policy accept;",
        ];
        for chain in chains {
            assert!(text.contains(chain), "no `{chain}` in\n{text}");
        }

        // And as we read it back ourselves.
        let states = kernel.chains(&table).unwrap();
        assert_eq!(states.len(), 6);
        let state = states.iter().find(|chain| chain.name == "forward").unwrap();
        assert_eq!(state.base, Some((2, 0, "filter".into())));
        assert!(state.drops);
        let found = kernel.rules(&other).unwrap();
        assert_eq!(found[0].comment.as_deref(), Some("back"));
        assert_eq!(kernel.sets(&table).unwrap().len(), 4);
        let found = kernel.table(&table).unwrap().unwrap();
        assert_eq!((found.comment.as_deref(), found.owner), (Some("ours"), None));
        assert!(kernel.table(&Table::inet("none")).unwrap().is_none());
        commit(&mut kernel, |batch| {
            batch.remove_table(&table);
        });
        assert_eq!(json("table").len(), 0);
    });
}

#[test]
fn rules_about_frames_and_arp_are_what_nft_would_have_written() {
    isolate(|| {
        let mut kernel = Nftables::open().unwrap();
        let table = Table::new(Family::Bridge, "b");
        let chain = Chain::base(&table, "c", Hook::Prerouting, Priority::BRIDGE_FILTER);
        let spoofed = Set::new(&table, "bound", [Type::LinkName, Type::Mac, Type::Ipv4]);
        let mac = netyard_wire::MacAddr([2, 0, 0, 0, 0, 1]);
        let rules = [
            (
                Rule::new(&chain)
                    .load([Selector::InputName, Selector::EtherSource, Selector::Ip4Source])
                    .not_in_set(&spoofed)
                    .drop(),
                "iifname . ether saddr . ip saddr != @bound drop",
            ),
            (
                Rule::new(&chain).is(Selector::EtherSource, mac).accept(),
                "ether saddr 02:00:00:00:00:01 accept",
            ),
            (
                Rule::new(&chain)
                    .load([Selector::InputName, Selector::ArpSenderMac, Selector::ArpSenderIp])
                    .not_in_set(&spoofed)
                    .drop(),
                "iifname . arp saddr ether . arp saddr ip != @bound drop",
            ),
            (
                Rule::new(&chain).is(Selector::Icmp6Type, Value::byte(134)).drop(),
                "icmpv6 type nd-router-advert drop",
            ),
            (
                Rule::new(&chain)
                    .is(Selector::NeighborTarget, "fe80::1".parse::<IpAddr>().unwrap())
                    .drop(),
                "@th,64,128 0xfe800000000000000000000000000001 drop",
            ),
        ];
        commit(&mut kernel, |batch| {
            batch.add_table(&table).add_set(&spoofed).add_chain(&chain);
            rules.iter().for_each(|(rule, _)| {
                batch.add_rule(rule);
            });
            let key = Value::concat([
                Value::from(&"ve1".parse().unwrap()),
                mac.into(),
                Ipv4Addr::new(10, 0, 0, 1).into(),
            ]);
            batch.add_elements(&spoofed, [Element::new(key)]);
        });
        let text = listed(&table);
        for (_, words) in &rules {
            assert!(text.contains(words), "no `{words}` in\n{text}");
        }
        assert!(text.contains("\"ve1\" . 02:00:00:00:00:01 . 10.0.0.1"), "{text}");
    });
}

#[test]
fn elements_of_every_kind_come_and_go() {
    isolate(|| {
        let mut kernel = Nftables::open().unwrap();
        let table = Table::inet("t");
        let nets = Set::new(&table, "nets", [Type::Ipv4]).interval();
        let ports = Set::map(
            &table,
            "ports",
            [Type::Ipv4, Type::Protocol, Type::Port],
            [Type::Ipv4, Type::Port],
        )
        .interval();
        let published =
            Set::map(&table, "published", [Type::Protocol, Type::Port], [Type::Ipv6, Type::Port]);
        let services = Set::verdict_map(&table, "services", [Type::Port]);
        let expiring = Set::new(&table, "expiring", [Type::Ipv4]).timeout(None);
        let counting = Set::verdict_map(&table, "counting", [Type::Port]).counted();
        let chain = Chain::regular(&table, "service");
        let v4 = |text: &str| Value::from(text.parse::<Ipv4Addr>().unwrap());
        let v6 = "2001:db8::1".parse::<Ipv6Addr>().unwrap();
        let range = |first, last| {
            let key = |port| Value::concat([v4("192.0.2.1"), Value::byte(TCP), Value::port(port)]);
            Element::new(key(first)).up_to(key(last)).to(to4([10, 0, 0, 1], 80))
        };
        let six = Element::new(pair(UDP, 53)).to(Value::concat([v6.into(), Value::port(5353)]));
        commit(&mut kernel, |batch| {
            batch.add_table(&table).add_chain(&chain);
            for set in [&nets, &ports, &published, &services, &expiring, &counting] {
                batch.add_set(set);
            }
            batch.add_elements(&counting, [Element::new(Value::port(80)).to(Verdict::Accept)]);
            batch.add_elements(
                &nets,
                [
                    Element::new(v4("10.0.0.0")).up_to(v4("10.0.0.255")),
                    Element::new(v4("192.0.2.7")),
                    Element::new(v4("224.0.0.0")).up_to(v4("255.255.255.255")),
                ],
            );
            batch.add_elements(&ports, [range(1000, 1999)]);
            batch.add_elements(&published, [six.clone().comment("dns")]);
            batch.add_elements(
                &services,
                [
                    Element::new(Value::port(80)).to(Verdict::Goto("service".into())),
                    Element::new(Value::port(81)).to(Verdict::Drop),
                ],
            );
            batch.add_elements(
                &expiring,
                [Element::new(v4("10.0.0.1")).timeout(Duration::from_secs(60))],
            );
        });
        let text = listed(&table);
        let words = [
            "10.0.0.0/24",
            "192.0.2.7",
            "224.0.0.0/3",
            "192.0.2.1 . tcp . 1000-1999 : 10.0.0.1 . 80",
            "udp . 53 comment \"dns\" : 2001:db8::1 . 5353",
            "80 : goto service",
            "81 : drop",
            "80 counter packets 0 bytes 0 : accept",
            "10.0.0.1 timeout 1m expires",
        ];
        // `nft` breaks lines as it likes.
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in words {
            assert!(flat.contains(words), "no `{words}` in\n{text}");
        }

        let found = kernel.elements(&services).unwrap();
        let verdicts: BTreeMap<Value, Datum> =
            found.into_iter().map(|it| (it.key, it.data.unwrap())).collect();
        assert_eq!(verdicts[&Value::port(80)], Verdict::Goto("service".into()).into());
        let found = &kernel.elements(&published).unwrap()[0];
        assert_eq!((&found.key, found.comment.as_deref()), (&pair(UDP, 53), Some("dns")));
        let Some(Datum::Value(value)) = &found.data else { panic!("{found:?}") };
        let parts = value.split(&[Type::Ipv6, Type::Port]).unwrap();
        assert_eq!(parts, [v6.into(), Value::port(5353)]);
        let found = &kernel.elements(&expiring).unwrap()[0];
        assert_eq!(found.timeout, Some(Duration::from_secs(60)));
        assert!(found.expires.unwrap() <= Duration::from_secs(60));

        commit(&mut kernel, |batch| {
            batch.remove_elements(&ports, [range(1000, 1999)]);
            batch.remove_elements(&published, [six]);
            batch.remove_elements(
                &nets,
                [Element::new(v4("224.0.0.0")).up_to(v4("255.255.255.255"))],
            );
            batch.flush_set(&services);
        });
        for set in [&ports, &published, &services] {
            assert!(kernel.elements(set).unwrap().is_empty(), "{}", set.name());
        }
        assert!(!listed(&table).contains("224.0.0.0"));
        commit(&mut kernel, |batch| {
            batch.remove_set(&services);
        });
        assert!(!listed(&table).contains("map services"));
    });
}

#[test]
fn a_transaction_is_done_whole_or_not_at_all() {
    isolate(|| {
        let mut kernel = Nftables::open().unwrap();
        let table = Table::inet("t");
        let chain = Chain::regular(&table, "c");
        let missing = Chain::regular(&table, "missing");
        let mut batch = Batch::new();
        batch.create_table(&table).add_chain(&chain);
        batch.add_rule(&Rule::new(&missing).accept());
        let error = kernel.commit(&batch).unwrap_err();
        assert!(error.is_gone(), "{error}");
        assert!(error.to_string().contains("add a rule to the chain missing of inet t"), "{error}");
        assert_eq!(json("table").len(), 0);

        commit(&mut kernel, |batch| {
            batch.create_table(&table);
        });
        let mut again = Batch::new();
        again.create_table(&table);
        assert!(kernel.commit(&again).unwrap_err().exists());

        // Somebody changes the ruleset while we think: we think again.
        let mut attempts = 0;
        kernel
            .transact(|kernel| {
                attempts += 1;
                if attempts == 1 {
                    nft(&["add", "chain", "inet", "t", "theirs"]);
                }
                let mut batch = Batch::new();
                if kernel.chains(&table)?.iter().any(|chain| chain.name == "theirs") {
                    batch.add_chain(&chain);
                }
                batch.add_chain(&Chain::regular(&table, "always"));
                Ok(batch)
            })
            .unwrap();
        assert_eq!(attempts, 2);
        assert_eq!(kernel.chains(&table).unwrap().len(), 3, "built from what is there");
        let error = kernel.transact(|_| {
            nft(&["add", "chain", "inet", "t", "theirs"]);
            nft(&["delete", "chain", "inet", "t", "theirs"]);
            Ok(again.clone())
        });
        assert!(matches!(error, Err(Error::Busy { .. })), "{error:?}");
    });
}

#[test]
fn rules_are_replaced_and_removed_by_handle() {
    isolate(|| {
        let mut kernel = Nftables::open().unwrap();
        let table = Table::inet("t");
        let chain = Chain::regular(&table, "c");
        commit(&mut kernel, |batch| {
            batch.add_table(&table).add_chain(&chain);
            batch.add_rule(&Rule::new(&chain).accept().comment("two"));
            batch.add_rule(&Rule::new(&chain).accept().comment("three"));
            batch.insert_rule(&Rule::new(&chain).accept().comment("one"));
        });
        let comments = |kernel: &mut Nftables| -> Vec<String> {
            kernel.rules(&chain).unwrap().into_iter().filter_map(|rule| rule.comment).collect()
        };
        assert_eq!(comments(&mut kernel), ["one", "two", "three"]);
        let handles: Vec<u64> =
            kernel.rules(&chain).unwrap().iter().map(|rule| rule.handle).collect();
        commit(&mut kernel, |batch| {
            batch.replace_rule(handles[1], &Rule::new(&chain).drop().comment("zwei"));
            batch.remove_rule(&chain, handles[2]);
        });
        assert_eq!(comments(&mut kernel), ["one", "zwei"]);
        commit(&mut kernel, |batch| {
            batch.flush_chain(&chain).remove_chain(&chain);
        });
        assert!(kernel.chains(&table).unwrap().is_empty());
    });
}

#[test]
fn an_owned_table_survives_others_and_its_owner() {
    isolate(|| {
        let features = Features::probe().unwrap();
        assert!(features.table_owner, "this kernel is too old for the test: {features:?}");
        let mut kernel = Nftables::open().unwrap();
        let owned = Table::inet("owned").owned(true);
        let plain = Table::inet("plain");
        let chain = Chain::regular(&owned, "c");
        commit(&mut kernel, |batch| {
            batch.create_table(&owned).add_chain(&chain).add_table(&plain);
        });
        let state = kernel.table(&owned).unwrap().unwrap();
        assert_eq!((state.owner, state.persistent), (Some(kernel.port()), true));
        nft(&["flush", "ruleset"]);
        assert!(kernel.table(&owned).unwrap().is_some(), "passed over");
        assert!(kernel.table(&plain).unwrap().is_none());
        let refused = output(Command::new(peer("nft")).args(["delete", "table", "inet", "owned"]));
        assert!(!refused.status.success());

        // Its owner dies: it stays, is nobody's, and is adopted with all that is in it.
        drop(kernel);
        let mut kernel = Nftables::open().unwrap();
        let state = kernel.table(&owned).unwrap().unwrap();
        assert_eq!((state.owner, state.persistent), (None, true));
        commit(&mut kernel, |batch| {
            batch.add_table(&owned);
        });
        assert_eq!(kernel.table(&owned).unwrap().unwrap().owner, Some(kernel.port()));
        assert_eq!(kernel.chains(&owned).unwrap().len(), 1);
        nft(&["flush", "ruleset"]);
        commit(&mut kernel, |batch| {
            batch.remove_table(&owned);
        });
    });
}

#[test]
fn changes_by_anybody_are_noticed() {
    isolate(|| {
        let mut watch = Watch::open(None).unwrap();
        assert_eq!(watch.next_event().unwrap(), None);
        nft(&["add", "table", "inet", "theirs"]);
        nft(&["add", "chain", "inet", "theirs", "c"]);
        nft(&["flush", "ruleset"]);
        let mut seen = Vec::new();
        while let Some(event) = watch.next_event().unwrap() {
            seen.push(event);
        }
        let committed = seen
            .iter()
            .filter(|it| matches!(it, Event::Committed { program, .. } if program == "nft"));
        assert_eq!(committed.count(), 3, "{seen:?}");
        assert!(matches!(&seen[0], Event::Table(state) if state.table.name() == "theirs"));
        assert!(
            seen.iter().any(|it| matches!(it, Event::Inside { table, .. } if table == "theirs"))
        );
        assert!(seen.iter().any(|it| matches!(it, Event::TableGone(_))));
    });
}

/// A client's namespace with a route here; here is 10.9.0.1 on the link `near`.
fn client() -> Namespace {
    let client = Namespace::new("client");
    let ip = |arguments: &[&str]| run(Command::new(peer("ip")).args(arguments));
    ip(&["link", "add", "near", "type", "veth", "peer", "name", "eth0", "netns", "client"]);
    ip(&["address", "add", "10.9.0.1/24", "dev", "near"]);
    ip(&["link", "set", "near", "up"]);
    client.ip(&["address", "add", "10.9.0.2/24", "dev", "eth0"]);
    client.ip(&["link", "set", "eth0", "up"]);
    client.ip(&["route", "add", "default", "via", "10.9.0.1"]);
    client
}

fn connect(from: &Netns, to: SocketAddr) -> std::io::Result<SocketAddr> {
    from.run(|| {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        let mut byte = [0; 2];
        std::io::Read::read_exact(&mut &stream, &mut byte)?;
        Ok(SocketAddr::new(stream.peer_addr()?.ip(), u16::from_be_bytes(byte)))
    })
    .unwrap()
}

/// Says its own port to everybody who connects.
fn backend(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = std::io::Write::write_all(&mut stream.unwrap(), &at.port().to_be_bytes());
        }
    });
    at
}

#[test]
fn turns_are_exact_from_everywhere_and_connections_are_counted_by_mark() {
    isolate(|| {
        let client = client();
        let outside = Netns::open(&client.path()).unwrap();
        let here = Netns::current().unwrap();
        let backends: Vec<SocketAddr> = (0..3).map(|_| backend("10.9.0.1:0")).collect();
        let vip: SocketAddr = "10.9.9.9:80".parse().unwrap();

        let mut kernel = Nftables::open().unwrap();
        let table = Table::inet("lb");
        let services =
            Set::verdict_map(&table, "services", [Type::Ipv4, Type::Protocol, Type::Port]);
        let turns = Set::verdict_map(&table, "turns", [Type::Mark]);
        let shared = Chain::regular(&table, "shared");
        let service = Chain::regular(&table, "service");
        let pre = Chain::base(&table, "pre", Hook::NatPrerouting, Priority::DNAT);
        let out = Chain::base(&table, "out", Hook::NatOutput, Priority::DNAT);
        commit(&mut kernel, |batch| {
            batch.add_table(&table).add_set(&services).add_set(&turns);
            for chain in [&shared, &service, &pre, &out] {
                batch.add_chain(chain);
            }
            for (number, backend) in (0..).zip(&backends) {
                let chain = Chain::regular(&table, &format!("be_{number}"));
                let mark = Value::number(0x7a00 + number);
                batch.add_chain(&chain).add_rule(
                    &Rule::new(&chain)
                        .counter()
                        .set(Target::CtMark, mark)
                        .dnat(backend.ip(), Some(backend.port()))
                        .comment("to"),
                );
                let goto = Verdict::Goto(chain.name().into());
                batch.add_elements(&turns, [Element::new(Value::number(number)).to(goto)]);
            }
            batch.add_rule(
                &Rule::new(&service).load([Selector::Turn { modulus: 3, offset: 0 }]).vmap(&turns),
            );
            let key = [Selector::Ip4Destination, Selector::L4Protocol, Selector::DestinationPort];
            batch.add_rule(&Rule::new(&shared).load(key).vmap(&services));
            for base in [&pre, &out] {
                batch.add_rule(&Rule::new(base).jump(&shared));
            }
            let IpAddr::V4(address) = vip.ip() else { panic!() };
            let key = Value::concat([address.into(), Value::byte(TCP), Value::port(vip.port())]);
            batch.add_elements(&services, [Element::new(key).to(Verdict::Goto("service".into()))]);
        });
        // From both sides in turn, one counter.
        run(Command::new(peer("ip")).args(["route", "add", "10.9.9.9/32", "dev", "near"]));
        let order: Vec<u16> = (0..30)
            .map(|turn| {
                let from = if turn % 2 == 0 { &outside } else { &here };
                connect(from, vip).unwrap_or_else(|error| panic!("turn {turn}: {error}")).port()
            })
            .collect();
        let expected: Vec<u16> = (0..30).map(|turn| backends[turn % 3].port()).collect();
        assert_eq!(order, expected);
        for number in 0..3 {
            let chain = Chain::regular(&table, &format!("be_{number}"));
            assert_eq!(kernel.counter(&chain, "to").unwrap().unwrap().packets, 10);
        }

        let mut tracked = Conntrack::open().unwrap();
        assert_eq!(tracked.count(&Filter::mark(0x7a01)).unwrap(), 10);
        let marked = Filter { mark: Some((0x7a00, 0xff00)), ..Filter::all() };
        assert_eq!(tracked.count(&marked).unwrap(), 30);
        assert_eq!(tracked.count(&Filter::to(TCP, vip)).unwrap(), 30);
        let entry = &tracked.entries(&Filter::mark(0x7a02)).unwrap()[0];
        assert_eq!((entry.original.destination, entry.reply.source), (vip, backends[2]));
        assert_eq!(tracked.remove_matching(&Filter::mark(0x7a02)).unwrap(), 10);
        tracked.remove(entry).unwrap();
        assert_eq!(tracked.count(&marked).unwrap(), 20);
        assert!(tracked.remove_matching(&Filter::all()).is_err());

        // A service without anybody to serve refuses at once.
        commit(&mut kernel, |batch| {
            batch.flush_set(&turns).flush_chain(&service);
            batch.add_rule(&Rule::new(&service).set(Target::Mark, Value::number(1)));
            let forward = Chain::base(&table, "reject", Hook::Forward, Priority::FILTER);
            let input = Chain::base(&table, "reject_in", Hook::Input, Priority::FILTER);
            for chain in [forward, input] {
                batch.add_chain(&chain);
                let rule = Rule::new(&chain).is(Selector::Mark, Value::number(1));
                batch.add_rule(&rule.reject(Reject::TcpReset));
            }
        });
        run(Command::new(peer("ip")).args(["address", "add", "10.9.9.9/32", "dev", "lo"]));
        assert_eq!(connect(&outside, vip).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn ten_thousand_ports_are_published_in_one_transaction() {
    isolate(|| {
        let client = client();
        let outside = Netns::open(&client.path()).unwrap();
        let server = UdpSocket::bind("10.9.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let mut kernel = Nftables::open().unwrap();
        let table = Table::inet("ports");
        let published =
            Set::map(&table, "published", [Type::Protocol, Type::Port], [Type::Ipv4, Type::Port]);
        let pre = Chain::base(&table, "pre", Hook::NatPrerouting, Priority::DNAT);
        let mut batch = Batch::new();
        batch.add_table(&table).add_set(&published).add_chain(&pre);
        batch.add_rule(
            &Rule::new(&pre)
                .is(Selector::FibDestinationType, LOCAL)
                .load([Selector::L4Protocol, Selector::DestinationPort])
                .map(&published)
                .dnat_loaded(),
        );
        let elements = (20_000..30_000)
            .map(|number| Element::new(pair(UDP, number)).to(to4([10, 9, 0, 1], port)));
        batch.add_elements(&published, elements);
        kernel.commit(&batch).unwrap();
        assert_eq!(kernel.elements(&published).unwrap().len(), 10_000);

        outside
            .run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                for number in [20_000, 25_123, 29_999] {
                    socket.send_to(b"hello", ("10.9.0.1", number)).unwrap();
                    let mut heard = [0; 8];
                    let (len, from) = server.recv_from(&mut heard).unwrap();
                    server.send_to(&heard[..len], from).unwrap();
                    let (_, answered) = socket.recv_from(&mut heard).unwrap();
                    assert_eq!(answered, SocketAddr::from(([10, 9, 0, 1], number)));
                }
            })
            .unwrap();
        // The connections of a port that is taken away go with it.
        let mut tracked = Conntrack::open().unwrap();
        let gone = Filter::to(UDP, "10.9.0.1:25123".parse().unwrap());
        assert_eq!(tracked.count(&gone).unwrap(), 1);
        assert_eq!(tracked.remove_matching(&gone).unwrap(), 1);
        assert_eq!(tracked.count(&gone).unwrap(), 0);
    });
}

#[test]
fn connections_of_both_families_are_listed_and_removed_one_by_one() {
    isolate(|| {
        let mut kernel = Nftables::open().unwrap();
        let table = Table::inet("t");
        let chain = Chain::base(&table, "c", Hook::Output, Priority::FILTER);
        // Connections are tracked where somebody asks about them.
        commit(&mut kernel, |batch| {
            batch.add_table(&table).add_chain(&chain);
            batch.add_rule(
                &Rule::new(&chain).ct_state(CtState::NEW).set(Target::CtMark, Value::number(9)),
            );
        });
        let mut tracked = Conntrack::open().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
            let other = UdpSocket::bind(address).unwrap();
            let to = b.local_addr().unwrap();
            for socket in [&a, &other] {
                socket.send_to(b"x", to).unwrap();
            }
            assert_eq!(tracked.count(&Filter::to(UDP, to)).unwrap(), 2);
            let from = a.local_addr().unwrap();
            let entries = tracked.entries(&Filter::to(UDP, to)).unwrap();
            let entry = entries.iter().find(|entry| entry.original.source == from).unwrap();
            assert_eq!((entry.mark, entry.zone, entry.reply.source), (9, 0, to));
            assert!(entry.expires.is_some());
            tracked.remove(entry).unwrap();
            tracked.remove(entry).unwrap();
            let left = tracked.entries(&Filter::to(UDP, to)).unwrap();
            assert_eq!(left.len(), 1);
            assert_eq!(left[0].original.source, other.local_addr().unwrap());
        }
    });
}

#[test]
fn a_connection_is_open_until_both_ends_have_closed_it() {
    isolate(|| {
        let mut kernel = Nftables::open().unwrap();
        let table = Table::inet("t");
        let chain = Chain::base(&table, "c", Hook::Output, Priority::FILTER);
        commit(&mut kernel, |batch| {
            batch.add_table(&table).add_chain(&chain);
            batch.add_rule(&Rule::new(&chain).ct_state(CtState::NEW).counter());
        });
        // What the kernel keeps longer or shorter says nothing.
        for (setting, seconds) in [("established", "30"), ("time_wait", "600")] {
            let name = format!("net/netfilter/nf_conntrack_tcp_timeout_{setting}");
            let key: netyard_link::sysctl::Key = name.parse().unwrap();
            key.set(None, seconds).unwrap();
        }
        let mut tracked = Conntrack::open().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Filter::to(TCP, listener.local_addr().unwrap());
        let mut is_open = || {
            let entries = tracked.entries(&to).unwrap();
            assert_eq!(entries.len(), 1);
            entries[0].open
        };
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert!(is_open());
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0, "it is half closed");
        assert!(is_open());
        server.write_all(b"still").unwrap();
        (&client).read_exact(&mut [0; 5]).unwrap();
        assert!(is_open());
        drop(server);
        assert_eq!((&client).read(&mut [0]).unwrap(), 0);
        // The last acknowledgement may still be on its way.
        wait_for("the end", Duration::from_secs(10), || (!is_open()).then_some(()));
    });
}

#[test]
fn frames_between_ports_pass_the_ip_rules_or_not() {
    isolate(|| {
        let set = |value: &str| {
            let key: netyard_link::sysctl::Key =
                "net/bridge/bridge-nf-call-iptables".parse().unwrap();
            // A kernel without br_netfilter has no such setting, and passes nothing.
            key.set(None, value).is_ok()
        };
        if set("1") {
            assert!(BridgeFilter::current().unwrap().ipv4);
        }
        set("0");
        assert!(!BridgeFilter::current().unwrap().ipv4);
    });
}

#[test]
fn an_ordinary_user_can_do_it_in_a_namespace_of_their_own() {
    isolate_mapped(|| {
        let features = Features::probe().unwrap();
        assert!(features.nftables && features.nat && features.bridge && features.veth);
        let mut kernel = Nftables::open().unwrap();
        let table = Table::inet("t").owned(features.table_owner);
        commit(&mut kernel, |batch| {
            batch.create_table(&table);
        });
        assert_eq!(json("table").len(), 1);
        let ports = Set::map(&table, "p", [Type::Protocol, Type::Port], [Type::Ipv4, Type::Port]);
        commit(&mut kernel, |batch| {
            let elements =
                (1..10_001).map(|port| Element::new(pair(TCP, port)).to(to4([10, 0, 0, 1], port)));
            batch.add_set(&ports).add_elements(&ports, elements);
        });
    });
}

#[test]
fn a_ruleset_is_read_back_and_followed() {
    isolate(|| {
        let mut kernel = Nftables::open().unwrap();
        let table = Table::inet("t");
        let pre = Chain::base(&table, "pre", Hook::NatPrerouting, Priority::DNAT);
        let forward = Chain::base(&table, "forward", Hook::Forward, Priority::FILTER);
        let service = Chain::regular(&table, "service");
        let instances = ["one", "two"].map(|name| Chain::regular(&table, name));
        let key = [Type::Ipv4, Type::Protocol, Type::Port];
        let services = Set::verdict_map(&table, "services", key);
        let turns = Set::verdict_map(&table, "turns", [Type::Mark]);
        let here: IpAddr = [192, 0, 2, 1].into();
        commit(&mut kernel, |batch| {
            batch.add_table(&table).add_set(&services).add_set(&turns);
            for chain in [&pre, &forward, &service].into_iter().chain(&instances) {
                batch.add_chain(chain);
            }
            let with = [Selector::Ip4Destination, Selector::L4Protocol, Selector::DestinationPort];
            batch.add_rule(&Rule::new(&pre).load(with).vmap(&services));
            let web = Value::concat([here.into(), pair(TCP, 80)]);
            let goto = |chain: &Chain| Verdict::Goto(chain.name().to_owned());
            batch.add_elements(&services, [Element::new(web).to(goto(&service))]);
            let turn = Rule::new(&service).counter();
            batch.add_rule(&turn.load([Selector::Turn { modulus: 2, offset: 0 }]).vmap(&turns));
            for (number, chain) in (0..).zip(&instances) {
                batch.add_elements(&turns, [Element::new(Value::number(number)).to(goto(chain))]);
                let to = IpAddr::from([10, 0, 0, 1 + u8::try_from(number).unwrap()]);
                batch.add_rule(&Rule::new(chain).comment("a turn").dnat(to, Some(8080)));
            }
            let known = CtState::ESTABLISHED | CtState::RELATED;
            batch.add_rule(&Rule::new(&forward).ct_state(known).accept());
            let link: LinkName = "br1".parse().unwrap();
            let leaving = Rule::new(&forward).is(Selector::InputName, &link);
            batch.add_rule(&leaving.reject(Reject::Prohibited).comment("closed"));
        });
        let rules = Ruleset::read(&mut kernel).unwrap();
        // As nft(8) says it.
        let said = listed(&table);
        for rule in rules.listing(&table).iter().filter(|rule| rule.chain == "forward") {
            assert!(said.contains(&rule.rule), "{} in {said}", rule.rule);
        }
        let packet = |turn, state| Packet {
            input: Some(Port { name: "br1".into(), index: 2 }),
            output: None,
            mac: None,
            source: [10, 0, 0, 9].into(),
            destination: here,
            protocol: TCP,
            source_port: 4000,
            destination_port: 80,
            state,
            translated: false,
            mark: 0,
            local: false,
            turn,
        };
        for (turn, last) in [(0, 1), (1, 2), (2, 1)] {
            let passage = rules.pass(Hook::Prerouting, false, &packet(turn, CtState::NEW));
            assert_eq!(passage.packet.destination, IpAddr::from([10, 0, 0, last]));
            assert_eq!(passage.decisions[0].comment.as_deref(), Some("a turn"));
            assert!(passage.doubts.is_empty(), "{:?}", passage.doubts);
        }
        let refused = rules.pass(Hook::Forward, false, &packet(0, CtState::NEW));
        assert!(!refused.passes());
        assert_eq!(refused.decisions[0].comment.as_deref(), Some("closed"));
        let answered = rules.pass(Hook::Forward, false, &packet(0, CtState::ESTABLISHED));
        assert!(answered.passes());
    });
}
