//! Networks in bridge mode: bridges, isolation, what is in the way.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod bridge;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;
use std::time::Duration;

use bridge::{
    Guest, Network, SOON, ask, ask_in_vain, at, config, folder, here, ip, ip_json, machine, nft,
    request, serve, settle,
};
use netyard_engine::config::{Bridge, Config, Mode, Uplink};
use netyard_engine::control::{ControlErrorKind, Plugged};
use netyard_engine::edge::PlugId;
use netyard_engine::plumbing::Plumbing;
use netyard_link::Features;
use netyard_testbed::{Outside, State, isolate, peer, run, wait_for};
use netyard_wire::MacAddr;
use netyard_yard::bridge::Plumber;

#[test]
fn red_and_blue_reach_each_other_the_gateway_and_the_world() {
    isolate(|| {
        let (_outside, world) = machine();
        let before = State::take();
        // The servers stay for the whole test.
        serve(&world, "world", 7000);
        for filter in ["1", "0"] {
            let keys = ["iptables", "ip6tables", "arptables"];
            for key in keys.map(|key| format!("/proc/sys/net/bridge/bridge-nf-call-{key}")) {
                std::fs::write(key, filter).unwrap();
            }
            let mut network = Network::open(config("lab", "br1"));
            assert_eq!(network.segment.interface, "br1");
            assert!(network.segment.warnings.is_empty(), "{:?}", network.segment.warnings);
            let (red, blue) = (network.guest("red", 11), network.guest("blue", 12));
            for address in red.addresses().into_iter().chain([
                network.config.gateway4().into(),
                network.config.gateway6().into(),
                Outside::ADDRESS4.into(),
                Outside::ADDRESS6.into(),
            ]) {
                assert!(blue.pings(address), "{address}");
            }
            red.serve(80);
            for address in red.addresses() {
                assert_eq!(ask(&blue.netns, at(address, 80)).unwrap().0, "red");
                assert_eq!(ask(&here(), at(address, 80)).unwrap().0, "red", "from the host");
            }
            let seen = Outside::ADDRESSES.map(|to| ask(&red.netns, at(to, 7000)).unwrap().1);
            assert_eq!(seen, [IpAddr::V4(Outside::HOST4), IpAddr::V6(Outside::HOST6)]);
            // The outside knows the way, and still nobody may come in.
            let guest = "192.168.1.0/24";
            run(Command::new(peer("nsenter")).args([
                "--net=/run/netns/outside",
                "ip",
                "route",
                "replace",
                guest,
                "via",
                "198.51.100.1",
            ]));
            let refused = ask_in_vain(&world, at(red.plugged.address4, 80));
            assert!(refused.is_err(), "{refused:?}");
            let links = ip_json(&["link", "show", "ve-red"]);
            assert_eq!(links[0]["master"], "br1");
            assert!(links[0]["ifalias"].as_str().unwrap().starts_with("netyard/lab/"), "{links}");
            let traffic = network.plumber.traffic(PlugId(11)).unwrap();
            assert!(traffic.guest_to_host.frames > 0 && traffic.host_to_guest.bytes > 0);
            drop((red, blue, network));
            for key in keys.map(|key| format!("/proc/sys/net/bridge/bridge-nf-call-{key}")) {
                std::fs::write(key, "1").unwrap();
            }
            before.assert_restored("after the network");
        }
        assert!(!folder("lab").join("links.journal").exists());
    });
}

#[test]
fn groups_reach_their_members() {
    isolate(|| {
        let (_outside, _world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let guests = [("red", 11), ("blue", 12), ("green", 13)];
        let [red, blue, green] = guests.map(|(name, number)| network.guest(name, number));
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let member = |guest: &Guest| {
            let own = guest.plugged.address4;
            let socket =
                guest.netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5000))).unwrap();
            let socket = socket.unwrap();
            socket.join_multicast_v4(&group, &own).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            socket
        };
        let members = [member(&blue), member(&green)];
        let sender = red.netns.run(|| UdpSocket::bind((red.plugged.address4, 0))).unwrap().unwrap();
        let mut heard = [0; 16];
        // Before the bridge has asked who is a member, and after it.
        let asked = || run(Command::new(peer("bridge")).args(["mdb", "show", "dev", "br1"]));
        for text in [&b"before"[..], b"after"] {
            if text == b"after" {
                wait_for("the members' answers", SOON, || {
                    let text = asked();
                    let both = ["ve-blue", "ve-green"]
                        .iter()
                        .all(|port| text.contains(&format!("port {port} grp {group}")));
                    both.then_some(())
                });
                assert!(!asked().contains(&format!("port ve-red grp {group}")));
            }
            for socket in &members {
                wait_for("the group's datagram", SOON, || {
                    sender.send_to(text, (group, 5000)).unwrap();
                    let (len, _) = socket.recv_from(&mut heard).ok()?;
                    (&heard[..len] == text).then_some(())
                });
            }
        }
    });
}

#[test]
fn networks_are_isolated_in_both_directions_unless_both_are_open() {
    isolate(|| {
        let (_outside, _) = machine();
        let second = |isolate| Config {
            subnet4: "10.9.0.0/24".parse().unwrap(),
            subnet6: "fd00:9::/64".parse().unwrap(),
            gateway: None,
            mode: Mode::Bridge(Bridge { name: Some("br2".into()), isolate, mtu: None }),
            ..config("other", "br2")
        };
        for (open, other_open) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut first = config("lab", "br1");
            first.mode =
                Mode::Bridge(Bridge { name: Some("br1".into()), isolate: !open, mtu: None });
            let (mut lab, mut other) = (Network::open(first), Network::open(second(!other_open)));
            // Each learns of the other.
            lab.plumber.handle_changes();
            other.plumber.handle_changes();
            let (red, blue) = (lab.guest("red", 11), other.guest("blue", 12));
            red.serve(80);
            blue.serve(80);
            let both = open && other_open;
            for (from, to) in [(&red, &blue), (&blue, &red)] {
                for (own, address) in from.addresses().into_iter().zip(to.addresses()) {
                    let ask = if both { ask } else { ask_in_vain };
                    let answer = ask(&from.netns, at(address, 80)).ok();
                    let expected = both.then(|| (to.namespace.name().to_owned(), own));
                    assert_eq!(answer, expected, "{open} {other_open} {address}");
                }
            }
            // Both sides count what they refuse.
            let (drops, policy) = {
                let [lab, other] = [&mut lab, &mut other].map(|it| it.plumber.refusals());
                (
                    lab.drops.contains_key("other-network"),
                    other.policy.get("other-network").copied(),
                )
            };
            assert_eq!(policy.is_some(), !other_open, "{open} {other_open}");
            assert_eq!(drops, !open && other_open, "{open} {other_open}");
            // What is published is for everybody, but not virtual addresses.
            let mut service = other.service("web", &[&blue]);
            service.port = 80;
            service.publish = Some("0.0.0.0:9000".parse().unwrap());
            other.plumber.set_services(&[service]).unwrap();
            assert_eq!(ask(&red.netns, at(Outside::HOST4, 9000)).unwrap().0, "blue");
            assert!(ask_in_vain(&red.netns, at(other.config.nth4(253), 80)).is_err());
            // Nor is the host's own: only what is named.
            let host = TcpListener::bind("0.0.0.0:5432").unwrap();
            let refused = ask(&red.netns, at(lab.config.gateway4(), 5432)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            drop(host);
        }
    });
}

#[test]
fn isolation_knows_networks_that_have_joined_a_bridge() {
    isolate(|| {
        let (_outside, _) = machine();
        for bridge in ["br1", "br2"] {
            ip(&["link", "add", bridge, "type", "bridge"]);
        }
        for (uplink, isolate) in [(Uplink::Routed, true), (Uplink::Nat, false)] {
            let on = |name: &str, bridge: &str| Config {
                mode: Mode::Bridge(Bridge { name: Some(bridge.into()), isolate, mtu: None }),
                uplink: uplink.clone(),
                ..config(name, bridge)
            };
            let mut lab = Network::open(on("lab", "br1"));
            let mut other = Network::open(Config {
                subnet4: "10.9.0.0/24".parse().unwrap(),
                subnet6: "fd00:9::/64".parse().unwrap(),
                gateway: None,
                ..on("other", "br2")
            });
            // The first learns of the second, which has seen it.
            lab.plumber.handle_changes();
            let (red, blue) = (lab.guest("red", 11), other.guest("blue", 12));
            // Bridges of somebody else check their own addresses, and ask for neighbours with them.
            settle(&["br1", "br2"]);
            red.serve(80);
            blue.serve(80);
            for (from, to) in [(&red, &blue), (&blue, &red)] {
                for (own, address) in from.addresses().into_iter().zip(to.addresses()) {
                    let ask = if isolate { ask_in_vain } else { ask };
                    let answer = ask(&from.netns, at(address, 80)).ok();
                    let expected = (!isolate).then(|| (to.namespace.name().to_owned(), own));
                    assert_eq!(answer, expected, "{uplink:?} {address}");
                }
            }
            for (table, bridge) in [("netyard-lab", "br2"), ("netyard-other", "br1")] {
                let others = nft(&["list", "set", "inet", table, "others"]);
                assert!(others.contains(bridge), "{uplink:?} {others}");
            }
            let refusals = other.plumber.refusals();
            for counted in [refusals.drops, refusals.policy] {
                assert_eq!(counted.contains_key("other-network"), isolate, "{uplink:?}");
            }
        }
    });
}

#[test]
fn a_bridge_that_is_there_is_joined_and_keeps_what_it_has() {
    isolate(|| {
        ip(&["link", "add", "br1", "type", "bridge"]);
        ip(&["address", "add", "10.77.0.1/24", "dev", "br1"]);
        ip(&["link", "add", "theirs", "type", "veth", "peer", "name", "far"]);
        ip(&["link", "set", "theirs", "master", "br1"]);
        for link in ["br1", "theirs", "far"] {
            ip(&["link", "set", link, "up"]);
        }
        settle(&["br1", "theirs", "far"]);
        let before = State::take();
        let mac = ip_json(&["link", "show", "br1"])[0]["address"].as_str().unwrap().to_owned();
        let mut network = Network::open(config("lab", "br1"));
        assert_eq!(network.segment.mac.to_string(), mac);
        let addresses = ip(&["address", "show", "dev", "br1"]);
        assert!(addresses.contains("10.77.0.1/24") && addresses.contains("192.168.1.10/24"));
        let red = network.guest("red", 11);
        assert!(red.pings(network.config.gateway4().into()));
        // Two networks cannot have one bridge's place in one prefix.
        drop((red, network));
        before.assert_restored("after the network");
    });
}

#[test]
fn a_joined_bridge_gets_no_address_that_nobody_chose() {
    isolate(|| {
        ip(&["link", "add", "br1", "mtu", "1400", "type", "bridge"]);
        ip(&["link", "add", "theirs", "type", "veth", "peer", "name", "far"]);
        ip(&["link", "set", "theirs", "mtu", "1400", "master", "br1"]);
        for link in ["br1", "theirs", "far"] {
            ip(&["link", "set", link, "up"]);
        }
        settle(&["br1", "theirs", "far"]);
        let gateway =
            |last| Config { gateway: Some([192, 168, 1, last].into()), ..config("lab", "br1") };
        let nobodys = Config { gateway: None, ..config("lab", "br1") };
        let refusal = |config: &Config, texts: &[&str]| {
            let before = State::take();
            let mut plumber = Plumber::new(&folder("lab"), Features::probe().unwrap());
            let error = plumber.open(config).unwrap_err();
            for text in texts {
                assert!(error.message.contains(text), "{text}: {error}");
            }
            drop(plumber);
            before.assert_restored("after a refusal");
        };
        let has = |config: Config, addresses: &[&str]| {
            let before = State::take();
            let network = Network::open(config);
            assert_eq!(network.segment.mtu, 1400);
            let shown = ip(&["-4", "-o", "address", "show", "dev", "br1"]);
            let all: BTreeSet<_> =
                (shown.lines()).map(|line| line.split_whitespace().nth(3).unwrap()).collect();
            assert_eq!(all, addresses.iter().copied().collect());
            drop(network);
            before.assert_restored("after a network");
        };

        // Nothing there says whose the network's addresses are.
        has(nobodys.clone(), &["192.168.1.1/24"]);

        ip(&["address", "add", "192.168.1.50/24", "dev", "br1"]);
        let own = "192.168.1.1 beside 192.168.1.50/24";
        refusal(&nobodys, &["the bridge br1 is there", own, "gateway = \"192.168.1.50\""]);
        has(gateway(50), &["192.168.1.50/24"]);
        has(gateway(10), &["192.168.1.50/24", "192.168.1.10/24"]);
        // So it is where the bridge is on a larger network.
        ip(&["address", "del", "192.168.1.50/24", "dev", "br1"]);
        ip(&["address", "add", "192.168.0.50/16", "dev", "br1"]);
        refusal(&nobodys, &["192.168.1.1 beside 192.168.0.50/16", "name one that is free"]);
        ip(&["address", "add", "192.168.1.1/16", "dev", "br1"]);
        has(nobodys.clone(), &["192.168.0.50/16", "192.168.1.1/16", "192.168.1.1/24"]);
        ip(&["address", "del", "192.168.1.1/16", "dev", "br1"]);

        ip(&["route", "add", "default", "via", "192.168.1.10"]);
        refusal(&gateway(10), &["192.168.1.10, which is a router's", "free"]);
        ip(&["route", "del", "default"]);

        // The kernel adds the address's own route a little later.
        let give = |address: &str| {
            ip(&["address", "add", &format!("{address}/64"), "dev", "br1", "nodad"]);
            wait_for("the address's own route", SOON, || {
                let routes = ip(&["-6", "route", "show", "table", "local"]);
                routes.contains(&format!("local {address} ")).then_some(())
            });
        };
        give("fd00:1:2:3::50");
        refusal(&gateway(10), &["fd00:1:2:3::1 beside fd00:1:2:3::50/64", "another subnet6"]);
        give("fd00:1:2:3::1");
        has(gateway(10), &["192.168.0.50/16", "192.168.1.10/24"]);

        // Its MTU stays what it is.
        let mtu = |mtu| Config {
            mode: Mode::Bridge(Bridge {
                name: Some("br1".into()),
                mtu: Some(mtu),
                ..Bridge::default()
            }),
            ..gateway(10)
        };
        refusal(&mtu(1500), &["the MTU of br1 is 1400, and not 1500", "ip link set br1 mtu 1500"]);
        has(mtu(1400), &["192.168.0.50/16", "192.168.1.10/24"]);
    });
}

#[test]
fn wireless_cards_are_refused_with_the_reason() {
    isolate(|| {
        let (_outside, _) = machine();
        let before = State::take();
        // As the kernel shows one that belongs to a radio (Documentation/ABI/testing/sysfs-class-net).
        run(Command::new(peer("mount")).args(["-t", "tmpfs", "links", "/sys/class/net"]));
        std::fs::create_dir_all(format!("/sys/class/net/{}/phy80211", Outside::UPLINK)).unwrap();
        let on_card = Config {
            subnet4: "198.51.100.0/24".parse().unwrap(),
            gateway: Some(Outside::HOST4),
            uplink: Uplink::Card(Outside::UPLINK.into()),
            ..config("lab", "br1")
        };
        let mut plumber = Plumber::new(&folder("lab"), Features::probe().unwrap());
        let error = plumber.open(&on_card).unwrap_err();
        assert_eq!(
            error.message,
            "the card uplink cannot become a port of br1: it is a Wi-Fi card, and a station may send \
             with its own hardware address only (IEEE 802.11 frames have no room for another): use \
             uplink = \"nat\" or \"routed\""
        );
        drop(plumber);
        before.assert_restored("after the refusal");
    });
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_made() {
    isolate(|| {
        let (_outside, _) = machine();
        ip(&["link", "add", "dummy", "type", "veth", "peer", "name", "far"]);
        ip(&["address", "add", "10.9.0.1/16", "dev", "dummy"]);
        ip(&["link", "set", "dummy", "up"]);
        let features = Features::probe().unwrap();
        let before = State::take();
        let base = || config("lab", "br1");
        let bridge =
            |name: &str| Mode::Bridge(Bridge { name: Some(name.into()), ..Bridge::default() });
        let card = |name: &str| Config { uplink: Uplink::Card(name.into()), ..base() };
        let cases = [
            (
                Config { subnet4: "10.9.3.0/24".parse().unwrap(), gateway: None, ..base() },
                features,
                "overlaps with 10.9.0.0/16",
            ),
            (Config { mode: bridge("dummy"), ..base() }, features, "it is not a bridge"),
            (Config { mode: bridge("much-too-long-a-name"), ..base() }, features, "15 bytes"),
            (card("eth7"), features, "there is none of that name; there are"),
            (card("lo"), features, "it is no Ethernet card"),
            (card(Outside::UPLINK), features, "gateway = \"198.51.100.1\""),
            (
                Config {
                    subnet4: "198.51.100.0/24".parse().unwrap(),
                    gateway: Some(Outside::HOST4),
                    mode: Mode::Bridge(Bridge { mtu: Some(9000), ..Bridge::default() }),
                    ..card(Outside::UPLINK)
                },
                features,
                "the MTU of uplink is 1500, and not 9000",
            ),
            (base(), features.without(["nat"]).unwrap(), "CONFIG_NFT_NAT"),
            (base(), features.without(["bridge"]).unwrap(), "CONFIG_BRIDGE"),
        ];
        for (config, features, text) in cases {
            let mut plumber = Plumber::new(&folder("lab"), features);
            let error = plumber.open(&config).unwrap_err();
            assert!(error.message.contains(text), "{text}: {error}");
            drop(plumber);
            before.assert_restored(text);
        }
        // A second network on the same bridge, a link that is there already.
        let mut network = Network::open(base());
        let mut other = Plumber::new(&folder("other"), features);
        let error = other.open(&Config { name: "other".into(), ..base() }).unwrap_err();
        assert!(error.message.contains("the network lab"), "{error}");
        let mut wish = request("red");
        wish.interface = Some("dummy".into());
        let file = || File::open("/proc/self/ns/net").unwrap();
        let plugged = |number| Plugged {
            plug: PlugId(number),
            mac: MacAddr::from_seed("red"),
            address4: [192, 168, 1, 11].into(),
            address6: "fd00:1:2:3::b".parse().unwrap(),
        };
        let error = network.plumber.add_plug(&plugged(1), &wish, Some(file().into())).unwrap_err();
        assert_eq!(error.kind, ControlErrorKind::Taken);
        assert!(error.message.contains("dummy"), "{error}");
        assert!(!nft(&["list", "ruleset"]).contains("dummy"));
        drop((network, other));
        before.assert_restored("after all");
    });
}

#[test]
fn firewalls_that_drop_what_is_forwarded_are_told() {
    isolate(|| {
        nft(&["add", "table", "inet", "mine"]);
        nft(&["add chain inet mine pass { type filter hook forward priority 0 ; policy drop ; }"]);
        let network = Network::open(config("lab", "br1"));
        let [warning] = network.segment.warnings.as_slice() else {
            panic!("{:?}", network.segment.warnings)
        };
        assert!(warning.contains("nft insert rule inet mine pass iifname br1 accept"), "{warning}");
    });
}
