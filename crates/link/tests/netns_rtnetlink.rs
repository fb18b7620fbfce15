//! The rtnetlink verbs, read back by `ip`.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::process::Command;

use ipnet::IpNet;
use netyard_link::netns::{Netns, named};
use netyard_link::rtnetlink::{
    BridgeOptions, Change, ForwardingEntry, Kind, LinkChange, LinkIndex, LinkName, MAIN_TABLE,
    Neighbor, NewLink, PROTOCOL, PeerEnd, PortOptions, Route, RouteKind, Rtnetlink, Rule,
    VxlanOptions, Watch,
};
use netyard_testbed::{Namespace, isolate, peer, run};
use netyard_wire::MacAddr;
use serde_json::Value;

/// What `ip -j -d ...` says, here or in a namespace.
fn ip(namespace: Option<&Namespace>, arguments: &[&str]) -> Vec<Value> {
    let mut command = match namespace {
        Some(namespace) => namespace.command(peer("ip")),
        None => Command::new(peer("ip")),
    };
    let text = run(command.args(["-j", "-d"]).args(arguments));
    // `ip` prints nothing at all where there is nothing.
    let found = if text.trim().is_empty() { Value::Null } else { text.parse().unwrap() };
    let list = found.as_array().cloned().unwrap_or_default();
    // `ip -j -d address show dev x` has empty objects between.
    list.into_iter().filter(|item| item.as_object().is_some_and(|item| !item.is_empty())).collect()
}

fn name(name: &str) -> LinkName {
    name.parse().unwrap()
}

fn net(net: &str) -> IpNet {
    net.parse().unwrap()
}

fn bridge(kernel: &mut Rtnetlink, called: &str) -> LinkIndex {
    kernel
        .add_link(&NewLink::new(&name(called), Kind::Bridge(BridgeOptions::default())).up())
        .unwrap()
}

#[test]
fn one_request_makes_a_pair_whose_ends_are_in_place() {
    isolate(|| {
        let red = Namespace::new("red");
        let mut kernel = Rtnetlink::open().unwrap();
        let br1 = bridge(&mut kernel, "br1");
        let (host, guest) = (name("ve-red"), name("eth0"));
        let inside = Netns::open(&named("red").unwrap()).unwrap();
        let mac = MacAddr::from_seed("red");
        let far = PeerEnd { name: &guest, mac: Some(mac), namespace: Some(&inside) };
        let new = NewLink::new(&host, Kind::Veth(far))
            .mac(Some(MacAddr::from_seed("host")))
            .mtu(Some(1400))
            .master(Some(br1))
            .group(0x1234)
            .up();
        let link = kernel.add_link(&new).unwrap();
        let mut there = Rtnetlink::open_in(&inside).unwrap();
        let eth0 = there.index("eth0").unwrap();
        there.change_link(eth0, &LinkChange::new().up(true)).unwrap();

        let outside = &ip(None, &["link", "show", "ve-red"])[0];
        assert_eq!(outside["master"], "br1");
        assert_eq!(outside["mtu"], 1400);
        assert_eq!(outside["address"], MacAddr::from_seed("host").to_string());
        assert_eq!(outside["operstate"], "UP", "both ends are up: there is a carrier");
        assert_eq!(outside["ifindex"], link.0);
        let seen = &ip(Some(&red), &["link", "show", "eth0"])[0];
        assert_eq!((&seen["mtu"], &seen["address"]), (&1400.into(), &mac.to_string().into()));

        let found = kernel.link("ve-red").unwrap().unwrap();
        assert_eq!(found.kind.as_deref(), Some("veth"));
        assert_eq!((found.master, found.group, found.mtu), (Some(br1), 0x1234, 1400));
        assert!(found.up && found.carrier && found.peer_namespace.is_some());
        assert_eq!(kernel.ports(br1).unwrap(), [found]);

        // What the other end sends arrives here.
        there.add_address(eth0, net("192.0.2.2/24")).unwrap();
        kernel.add_address(br1, net("192.0.2.1/24")).unwrap();
        run(red.command(peer("ping")).args(["-c3", "-i0.01", "-W5", "192.0.2.1"]));
        let traffic = kernel.traffic(link).unwrap().unwrap();
        assert!(traffic.received_packets >= 3 && traffic.sent_packets >= 3, "{traffic:?}");
        assert!(traffic.received_bytes >= 3 * 84, "{traffic:?}");
        let seen = &ip(None, &["-s", "link", "show", "ve-red"])[0]["stats64"];
        assert!(seen["rx"]["packets"].as_u64().unwrap() >= traffic.received_packets);
        assert_eq!(kernel.traffic(LinkIndex(9999)).unwrap(), None);

        let error = kernel.add_link(&new).unwrap_err();
        assert!(error.exists(), "{error}");
        assert!(error.to_string().contains("ve-red"), "{error}");

        kernel.remove_link(link).unwrap();
        kernel.remove_link(link).unwrap();
        assert!(kernel.link("ve-red").unwrap().is_none());
        assert!(ip(Some(&red), &["link"]).iter().all(|link| link["ifname"] != "eth0"));
    });
}

#[test]
fn options_of_a_port_alias_and_group_are_as_asked() {
    isolate(|| {
        let mut kernel = Rtnetlink::open().unwrap();
        let options = BridgeOptions {
            multicast_snooping: Some(true),
            multicast_querier: Some(2),
            ageing: Some(60),
        };
        let br1 = kernel.add_link(&NewLink::new(&name("br1"), Kind::Bridge(options)).up()).unwrap();
        let (near, far) = (name("ve1"), name("ve2"));
        let pair = Kind::Veth(PeerEnd { name: &far, mac: None, namespace: None });
        let link = kernel.add_link(&NewLink::new(&near, pair).master(Some(br1))).unwrap();
        let port = PortOptions {
            isolated: Some(true),
            hairpin: Some(true),
            learning: Some(false),
            unicast_flood: Some(false),
            ..PortOptions::default()
        };
        let alias = "netyard lan plug web-1";
        let change = LinkChange::new().alias(alias).port(port).link_local(false).group(7).up(true);
        kernel.change_link(link, &change).unwrap();

        let seen = &ip(None, &["link", "show", "ve1"])[0];
        assert_eq!(seen["ifalias"], alias);
        assert_eq!(seen["inet6_addr_gen_mode"], "none");
        let slave = &seen["linkinfo"]["info_slave_data"];
        assert_eq!((&slave["isolated"], &slave["hairpin"]), (&true.into(), &true.into()));
        assert_eq!((&slave["learning"], &slave["flood"]), (&false.into(), &false.into()));
        let data = &ip(None, &["link", "show", "br1"])[0]["linkinfo"]["info_data"];
        assert_eq!((&data["forward_delay"], &data["stp_state"]), (&0.into(), &0.into()));
        assert_eq!((&data["mcast_snooping"], &data["ageing_time"]), (&1.into(), &6000.into()));
        let querier = (&data["mcast_querier"], &data["mcast_query_response_intvl"]);
        assert_eq!(querier, (&1.into(), &200.into()));
        let versions = (&data["mcast_igmp_version"], &data["mcast_mld_version"]);
        assert_eq!(versions, (&3.into(), &2.into()));
        let found = kernel.link("ve1").unwrap().unwrap();
        assert_eq!(found.alias.as_deref(), Some(alias));
        assert!(found.port.unwrap().satisfies(&port));

        // An alias goes, a port leaves its bridge.
        kernel
            .change_link(link, &LinkChange::new().alias("").master(None).name(name("ve9")))
            .unwrap();
        let found = kernel.link("ve9").unwrap().unwrap();
        assert_eq!((found.alias, found.master, found.port), (None, None, None));
        // A whole group goes at once, and nothing else.
        kernel.remove_group(7).unwrap();
        kernel.remove_group(7).unwrap();
        let left: Vec<String> = kernel.links().unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(left, ["lo", "br1"]);
    });
}

#[test]
fn addresses_routes_rules_and_neighbours_come_and_go_with_our_mark() {
    isolate(|| {
        let mut kernel = Rtnetlink::open().unwrap();
        let br1 = bridge(&mut kernel, "br1");
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            kernel.add_address(br1, net(address)).unwrap();
        }
        assert!(kernel.add_address(br1, net("192.0.2.1/24")).unwrap_err().exists());
        let seen = &ip(None, &["address", "show", "br1"])[0]["addr_info"];
        assert_eq!(
            (&seen[0]["local"], &seen[0]["broadcast"]),
            (&"192.0.2.1".into(), &"192.0.2.255".into())
        );
        assert_eq!((&seen[1]["local"], &seen[1]["nodad"]), (&"2001:db8::1".into(), &true.into()));
        let found = kernel.addresses(Some(br1)).unwrap();
        let ours: Vec<IpNet> = found.iter().filter(|it| it.is_ours()).map(|it| it.net).collect();
        assert_eq!(ours, [net("192.0.2.1/24"), net("2001:db8::1/64")]);

        let default = Route::default_via("192.0.2.9".parse().unwrap(), br1);
        let six = Route {
            metric: Some(77),
            mtu: Some(1400),
            ..Route::default_via("2001:db8::9".parse().unwrap(), br1)
        };
        let direct = Route { link: Some(br1), ..Route::new(net("198.51.100.7/32")) };
        let blocked =
            Route { kind: RouteKind::Unreachable, table: 1000, ..Route::new(net("10.0.0.0/8")) };
        let routes = [default, six, direct, blocked];
        for route in &routes {
            kernel.add_route(route).unwrap_or_else(|error| panic!("{error}"));
        }
        assert!(kernel.add_route(&default).unwrap_err().exists());
        let seen = ip(None, &["route"]);
        assert_eq!(
            (&seen[0]["dst"], &seen[0]["gateway"]),
            (&"default".into(), &"192.0.2.9".into())
        );
        assert_eq!(seen[0]["protocol"], PROTOCOL.to_string());
        let seen = ip(None, &["-6", "route", "show", "default"]);
        assert_eq!((&seen[0]["metric"], &seen[0]["metrics"][0]["mtu"]), (&77.into(), &1400.into()));
        let seen = ip(None, &["route", "show", "table", "1000"]);
        assert_eq!(
            (&seen[0]["type"], &seen[0]["dst"]),
            (&"unreachable".into(), &"10.0.0.0/8".into())
        );
        let found = kernel.routes(None).unwrap();
        assert_eq!(found.iter().filter(|route| route.is_ours()).count(), routes.len());
        for route in &routes {
            let same = |found: &&Route| found.destination == route.destination && found.is_ours();
            let found = found.iter().find(same).unwrap();
            let metric = found.metric.filter(|_| route.metric.is_some());
            // Unreachable routes have the loopback link.
            let link = found.link.filter(|_| route.link.is_some());
            assert_eq!(Route { metric, link, ..*found }, *route);
        }

        let rules = [
            Rule {
                from: Some(net("192.0.2.0/24")),
                mark: Some((0x10, 0xff)),
                ..Rule::new(500, false, 1000)
            },
            Rule {
                mark: Some((0x20, u32::MAX)),
                invert: true,
                suppress: Some(0),
                ..Rule::new(502, false, 1000)
            },
            Rule {
                input: Some(name("br1")),
                to: Some(net("2001:db8::/32")),
                ..Rule::new(501, true, 1000)
            },
        ];
        for rule in &rules {
            kernel.add_rule(rule).unwrap();
        }
        assert!(kernel.add_rule(&rules[0]).unwrap_err().exists());
        let seen = ip(None, &["rule", "show", "priority", "500"]);
        assert_eq!((&seen[0]["src"], &seen[0]["fwmark"]), (&"192.0.2.0".into(), &"0x10".into()));
        assert_eq!((&seen[0]["table"], &seen[0]["protocol"]), (&"1000".into(), &"110".into()));
        let seen = ip(None, &["rule", "show", "priority", "502"]);
        assert_eq!(seen[0]["suppress_prefixlen"], 0);
        assert!(seen[0].get("not").is_some(), "{seen:?}");
        let found: Vec<Rule> = kernel.rules().unwrap().into_iter().filter(Rule::is_ours).collect();
        assert_eq!(found, rules);

        let neighbor = Neighbor::new(br1, "192.0.2.9".parse().unwrap(), MacAddr::from_seed("n"));
        kernel.set_neighbor(&neighbor).unwrap();
        let seen = ip(None, &["neighbor", "show", "dev", "br1"]);
        assert_eq!(
            (&seen[0]["dst"], &seen[0]["state"][0]),
            (&"192.0.2.9".into(), &"PERMANENT".into())
        );
        let found = kernel.neighbors(Some(br1)).unwrap();
        assert_eq!(found.into_iter().filter(|it| it.permanent).collect::<Vec<_>>(), [neighbor]);

        // All of it goes, twice over.
        for _ in 0..2 {
            kernel.remove_neighbor(&neighbor).unwrap();
            rules.iter().for_each(|rule| kernel.remove_rule(rule).unwrap());
            routes.iter().for_each(|route| kernel.remove_route(route).unwrap());
            kernel.remove_address(br1, net("192.0.2.1/24")).unwrap();
            kernel.remove_address(br1, net("2001:db8::1/64")).unwrap();
        }
        assert!(
            ip(None, &["route", "show", "table", "all"]).iter().all(|it| it["protocol"] != "110")
        );
        assert_eq!(ip(None, &["rule"]).len(), 3, "the kernel's own");
        assert!(kernel.addresses(Some(br1)).unwrap().iter().all(|it| !it.is_ours()));
    });
}

#[test]
fn what_others_made_is_not_removed_for_ours() {
    isolate(|| {
        let mut kernel = Rtnetlink::open().unwrap();
        let br1 = bridge(&mut kernel, "br1");
        kernel.add_address(br1, net("192.0.2.1/24")).unwrap();
        run(Command::new(peer("ip")).args(["route", "add", "10.0.0.0/8", "dev", "br1"]));
        run(Command::new(peer("ip")).args(["rule", "add", "priority", "500", "table", "1000"]));
        let route = Route { link: Some(br1), ..Route::new(net("10.0.0.0/8")) };
        kernel.remove_route(&route).unwrap();
        run(Command::new(peer("ip")).args(["-6", "route", "add", "2001:db8::/32", "dev", "br1"]));
        kernel
            .remove_route(&Route { link: Some(br1), ..Route::new(net("2001:db8::/32")) })
            .unwrap();
        assert_eq!(ip(None, &["-6", "route", "show", "2001:db8::/32"]).len(), 1);
        kernel.remove_rule(&Rule::new(500, false, 1000)).unwrap();
        assert_eq!(ip(None, &["route", "show", "10.0.0.0/8"]).len(), 1);
        assert_eq!(ip(None, &["rule", "show", "priority", "500"]).len(), 1);
    });
}

#[test]
fn overlays_have_their_forwarding_tables() {
    isolate(|| {
        let mut kernel = Rtnetlink::open().unwrap();
        let br1 = bridge(&mut kernel, "br1");
        let local = Some("192.0.2.1".parse().unwrap());
        let options = VxlanOptions { local, ..VxlanOptions::new(4097) };
        let vx = name("vx1");
        let link =
            kernel.add_link(&NewLink::new(&vx, Kind::Vxlan(options)).master(Some(br1))).unwrap();
        let data = &ip(None, &["link", "show", "vx1"])[0]["linkinfo"]["info_data"];
        assert_eq!((&data["id"], &data["port"]), (&4097.into(), &4789.into()));
        assert_eq!((&data["local"], &data["learning"]), (&"192.0.2.1".into(), &false.into()));
        let remote = |last: u8| Some([198, 51, 100, last].into());
        let entry = |mac, remote| ForwardingEntry { link, mac, remote, permanent: true };
        let entries = [
            entry(MacAddr([0; 6]), remote(1)),
            entry(MacAddr([0; 6]), remote(2)),
            entry(MacAddr::from_seed("far"), remote(1)),
            entry(MacAddr::from_seed("far"), None),
        ];
        for entry in &entries {
            kernel.add_forwarding(entry).unwrap_or_else(|error| panic!("{entry:?}: {error}"));
        }
        let found = kernel.forwarding(Some(link)).unwrap();
        for entry in &entries {
            assert!(found.contains(entry), "{entry:?} in {found:?}");
        }
        for entry in entries.iter().chain(&entries) {
            kernel.remove_forwarding(entry).unwrap();
        }
        let found = kernel.forwarding(Some(link)).unwrap();
        assert!(entries.iter().all(|entry| !found.contains(entry)));
    });
}

#[test]
fn changes_are_noticed_also_in_other_namespaces() {
    isolate(|| {
        let red = Namespace::new("red");
        let inside = Netns::open(&red.path()).unwrap();
        let mut watch = Watch::open(Some(&inside)).unwrap();
        let mut kernel = Rtnetlink::open_in(&inside).unwrap();
        assert_eq!(watch.next_change().unwrap(), None);
        let br1 = bridge(&mut kernel, "br1");
        kernel.add_address(br1, net("192.0.2.1/24")).unwrap();
        kernel.remove_link(br1).unwrap();
        let mut seen = Vec::new();
        while let Some(change) = watch.next_change().unwrap() {
            seen.push(change);
        }
        let has = |wanted: &dyn Fn(&Change) -> bool| seen.iter().any(wanted);
        assert!(has(&|it| matches!(it, Change::Link(link) if link.name == "br1" && link.up)));
        assert!(has(&|it| matches!(it, Change::Address(address) if address.is_ours())));
        assert!(has(&|it| matches!(it, Change::AddressGone(_))));
        assert!(has(&|it| matches!(it, Change::LinkGone(link) if link.name == "br1")));
        assert!(Rtnetlink::open().unwrap().link("br1").unwrap().is_none(), "we never moved");
    });
}

#[test]
fn the_kernel_says_where_a_packet_would_go_and_nothing_is_sent() {
    isolate(|| {
        let mut kernel = Rtnetlink::open().unwrap();
        let (near, far) = (name("ve1"), name("ve2"));
        let pair = Kind::Veth(PeerEnd { name: &far, mac: None, namespace: None });
        let ve1 = kernel.add_link(&NewLink::new(&near, pair).up()).unwrap();
        let ve2 = kernel.index("ve2").unwrap();
        kernel.change_link(ve2, &LinkChange::new().up(true)).unwrap();
        let outside = ["203.0.113.9".parse().unwrap(), "2001:db8:9::1".parse().unwrap()];
        for address in outside {
            assert_eq!(kernel.decide(address, None).unwrap(), None, "no route to {address}");
        }
        for address in ["192.0.2.7/24", "2001:db8::7/64"] {
            kernel.add_address(ve1, net(address)).unwrap();
        }
        let gateways = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        for gateway in gateways {
            kernel.add_route(&Route::default_via(gateway, ve1)).unwrap();
        }
        for ((address, gateway), source) in
            outside.into_iter().zip(gateways).zip(["192.0.2.7", "2001:db8::7"])
        {
            let way = kernel.decide(address, None).unwrap().unwrap();
            assert_eq!((way.link, way.gateway), (ve1, Some(gateway)));
            assert_eq!(way.source, Some(source.parse().unwrap()));
            assert_eq!((way.kind, way.table), (RouteKind::Unicast, MAIN_TABLE));
        }
        let own = kernel.decide("192.0.2.7".parse().unwrap(), None).unwrap().unwrap();
        assert_eq!(own.kind, RouteKind::Local);
        // Only by a link without a route: its neighbours might be asked, nothing more.
        let by_other = kernel.decide(outside[0], Some(ve2)).unwrap();
        assert!(by_other.is_none_or(|way| way.gateway.is_none()), "{by_other:?}");
        let asked =
            run(Command::new(peer("ip")).args(["neigh", "show", "nud", "all", "dev", "ve1"]));
        assert!(gateways.iter().all(|it| !asked.contains(&format!("{it} "))), "{asked}");
    });
}

#[test]
fn routes_with_several_next_hops_are_listed_by_hop() {
    isolate(|| {
        let mut kernel = Rtnetlink::open().unwrap();
        let br1 = bridge(&mut kernel, "br1");
        let br2 = bridge(&mut kernel, "br2");
        kernel.add_address(br1, net("192.0.2.7/24")).unwrap();
        kernel.add_address(br2, net("198.51.100.7/24")).unwrap();
        run(Command::new(peer("ip")).args(["route", "add", "default"]).args([
            "nexthop",
            "via",
            "192.0.2.1",
            "nexthop",
            "via",
            "198.51.100.1",
        ]));
        run(Command::new(peer("ip")).args([
            "route",
            "add",
            "203.0.113.0/24",
            "via",
            "inet6",
            "fe80::1",
            "dev",
            "br1",
        ]));
        let routes = kernel.hops().unwrap();
        let to = |prefix: &str| -> Vec<_> {
            let wanted = net(prefix);
            let found = routes.iter().filter(|route| route.destination == wanted);
            found.map(|route| (route.link.unwrap(), route.gateway.unwrap().to_string())).collect()
        };
        let defaults = [(br1, "192.0.2.1".to_owned()), (br2, "198.51.100.1".to_owned())];
        assert_eq!(to("0.0.0.0/0"), defaults);
        assert_eq!(to("203.0.113.0/24"), [(br1, "fe80::1".to_owned())]);
    });
}

#[test]
fn addresses_tell_how_long_and_for_what_they_are() {
    isolate(|| {
        let mut kernel = Rtnetlink::open().unwrap();
        let br1 = bridge(&mut kernel, "br1");
        kernel.add_address(br1, net("192.0.2.7/24")).unwrap();
        kernel.add_address(br1, net("192.0.2.8/24")).unwrap();
        for address in [
            &["2001:db8::7/64", "valid_lft", "600", "preferred_lft", "300", "nodad"][..],
            &["2001:db8::8/64", "valid_lft", "600", "preferred_lft", "0", "nodad"],
        ] {
            run(Command::new(peer("ip")).args(["address", "add", "dev", "br1"]).args(address));
        }
        let all = kernel.addresses(Some(br1)).unwrap();
        let find = |text: &str| *all.iter().find(|it| it.net == net(text)).unwrap();
        let second = find("192.0.2.8/24");
        assert!(!second.temporary, "a second IPv4 address is not a temporary one: {second:?}");
        assert_eq!((second.preferred, second.valid), (None, None));
        let fresh = find("2001:db8::7/64");
        assert!(!fresh.deprecated && !fresh.temporary && !fresh.duplicate, "{fresh:?}");
        assert!(fresh.preferred.is_some_and(|seconds| (1..=300).contains(&seconds)), "{fresh:?}");
        assert!(fresh.valid.is_some_and(|seconds| (301..=600).contains(&seconds)), "{fresh:?}");
        assert!(find("2001:db8::8/64").deprecated);
    });
}

#[test]
fn links_tell_what_they_are() {
    isolate(|| {
        let mut kernel = Rtnetlink::open().unwrap();
        bridge(&mut kernel, "br1");
        run(Command::new(peer("ip")).args(["tuntap", "add", "vpn0", "mode", "tun"]));
        let lo = kernel.link("lo").unwrap().unwrap();
        assert!(lo.loopback && lo.bus.is_none());
        let br1 = kernel.link("br1").unwrap().unwrap();
        assert_eq!((br1.hardware, br1.loopback, br1.point_to_point), (1, false, false));
        let tun = kernel.link("vpn0").unwrap().unwrap();
        assert_eq!((tun.hardware, tun.kind.as_deref()), (65534, Some("tun")));
        assert!(tun.point_to_point);
    });
}
