//! The cards of a network namespace, as `ip` has made them.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use netyard_nic::{
    AddressState, Card, CardAddress, CardKind, External, Family, Interface, NicError, Standing,
    Unknown, Unusable, card_named, cards, default_card,
};
use netyard_testbed::{Namespace, Outside, isolate, peer, run, wait_for};

/// Far above what the kernel takes to look for duplicates.
const SOON: Duration = Duration::from_secs(20);

fn ip(arguments: &str) {
    run(Command::new(peer("ip")).args(arguments.split(' ')));
}

fn nft(ruleset: &str) -> String {
    run(Command::new(peer("nft")).args(ruleset.split(' ')))
}

/// A pair of links, switched on.
fn pair(near: &str, far: &str) {
    ip(&format!("link add {near} type veth peer name {far}"));
    for end in [near, far] {
        ip(&format!("link set {end} up"));
    }
}

fn card(name: &str) -> Card {
    card_named(name).unwrap()
}

fn address(card: &Card, address: &str) -> CardAddress {
    let wanted: IpAddr = address.parse().unwrap();
    *card.addresses.iter().find(|it| it.range.base() == wanted).unwrap()
}

#[test]
fn c15_every_card_is_listed_with_what_it_is_good_for() {
    isolate(|| {
        let _outside = Outside::new();
        pair("lan", "lan-far");
        ip("address add 192.168.0.20/24 dev lan");
        ip("link add br1 type bridge");
        ip("link set lan-far master br1");
        ip("link add off type veth peer name off-far");
        ip("tuntap add vpn0 mode tun");
        ip("tuntap add tap0 mode tap");
        ip("link set vpn0 up");
        let all = cards().unwrap();
        let standing = |name: &str| {
            let card = all.iter().find(|card| card.name == name).unwrap();
            (card.kind, card.standing(Family::Ip4))
        };
        let no = Standing::Unusable;
        for (name, kind, good_for) in [
            ("lo", CardKind::Loopback, no(Unusable::Loopback)),
            ("uplink", CardKind::Virtual, Standing::Default),
            ("lan", CardKind::Virtual, Standing::Local),
            ("lan-far", CardKind::Virtual, no(Unusable::PortOf("br1".into()))),
            ("br1", CardKind::Bridge, no(Unusable::Down)),
            ("off", CardKind::Virtual, no(Unusable::Down)),
            ("vpn0", CardKind::Vpn, no(Unusable::NoCarrier)),
            ("tap0", CardKind::Virtual, no(Unusable::Down)),
        ] {
            assert_eq!(standing(name), (kind, good_for), "{name}");
        }
        ip("link set br1 up");
        assert_eq!(card("br1").standing(Family::Ip4), Standing::Unusable(Unusable::NoAddress));
        let uplink = default_card().unwrap();
        assert_eq!(uplink.name, "uplink");
        assert_eq!(uplink.standing(Family::Ip6), Standing::Default);
        let gateways: Vec<_> = uplink.gateways.iter().filter_map(|way| way.address).collect();
        assert_eq!(gateways, [Outside::ROUTER4.into(), IpAddr::from(Outside::ROUTER6)]);
        assert_eq!(uplink.source.ip4, Some(Outside::HOST4.into()));
        assert!(uplink.is_usable() && !card("lo").is_usable());
        let lan = card("lan");
        assert_eq!(address(&lan, "192.168.0.20").range.subnet(), Some(24));
        assert_eq!(lan.default.ip4, Some(false));
        let error = card_named("eth9").unwrap_err();
        assert!(matches!(error, NicError::NotFound { .. }));
        assert!(error.to_string().contains("eth9; there are: lo, "), "{error}");
    });
}

#[test]
fn c15_names_and_hardware_addresses_tell_nothing() {
    isolate(|| {
        pair("eth0", "far");
        ip("address add 192.168.0.20/24 dev eth0");
        // A card upon another one, with the same hardware address.
        ip("link add upper link eth0 type macvlan mode passthru");
        let (below, upper) = (card("eth0"), card("upper"));
        assert_eq!(below.mac, upper.mac);
        assert_eq!((upper.kind, upper.upon.as_deref()), (CardKind::Sub, Some("eth0")));
        ip("link del upper");
        let index = below.index;
        ip("link set eth0 down");
        ip("link set eth0 name wlan0");
        ip("link set wlan0 up");
        let renamed = card("wlan0");
        assert_eq!((renamed.index, renamed.kind), (index, CardKind::Virtual));
        // The same address on two cards is two addresses.
        ip("address add 192.168.0.20/24 dev far");
        let twice = |card: &Card| card.addresses(Family::Ip4).count();
        assert_eq!((twice(&card("far")), twice(&card("wlan0"))), (1, 1));
    });
}

#[test]
fn c15_addresses_are_deprecated_tentative_taken_or_there_for_a_while() {
    isolate(|| {
        let other = Namespace::new("other");
        ip("link add eth0 type veth peer name far netns other");
        other.ip(&["link", "set", "far", "up"]);
        other.ip(&["address", "add", "2001:db8::9/64", "dev", "far", "nodad"]);
        fs::write("/proc/sys/net/ipv6/conf/eth0/use_tempaddr", "2").unwrap();
        ip("link set eth0 up");
        ip("address add 2001:db8::1/64 dev eth0 preferred_lft 0 valid_lft 600 nodad");
        assert_eq!(card("eth0").standing(Family::Ip6), {
            Standing::Unusable(Unusable::NotReady(AddressState::Deprecated))
        });
        ip("address add 2001:db8::9/64 dev eth0");
        ip(
            "address add 2001:db8:1::2/64 dev eth0 mngtmpaddr nodad valid_lft 600 preferred_lft 300",
        );
        let eth0 = card("eth0");
        let deprecated = address(&eth0, "2001:db8::1");
        assert_eq!((deprecated.state, deprecated.preferred), (AddressState::Deprecated, Some(0)));
        assert!(deprecated.valid.is_some_and(|seconds| seconds <= 600));
        let stable = address(&eth0, "2001:db8:1::2");
        assert_eq!((stable.state, stable.temporary), (AddressState::Ready, false));
        let taken = wait_for("the other one to be found", SOON, || {
            Some(address(&card("eth0"), "2001:db8::9"))
                .filter(|it| it.state != AddressState::Tentative)
        });
        assert_eq!(taken.state, AddressState::Duplicate);
        let eth0 = wait_for("an address for a while", SOON, || {
            let ready = |it: &&CardAddress| it.temporary && it.state == AddressState::Ready;
            let card = card("eth0");
            card.addresses.iter().find(ready).is_some().then_some(card)
        });
        // Routes: the stable one, then the temporary one; nothing of the others.
        let routes = Interface::unasked(eth0.clone());
        let near: Vec<_> =
            routes.rp(Family::Ip6).routes().iter().flat_map(|it| it.nic_ips()).collect();
        assert_eq!(near.len(), 2, "{near:?}");
        assert_eq!(near[0].base(), stable.range.base());
        // Without carrier an address stays tentative.
        other.ip(&["link", "set", "far", "down"]);
        ip("address add 2001:db8::7/64 dev eth0");
        let cut = card("eth0");
        assert_eq!(address(&cut, "2001:db8::7").state, AddressState::Tentative);
        assert_eq!(cut.standing(Family::Ip6), Standing::Unusable(Unusable::NoCarrier));
    });
}

#[test]
fn c15_a_machine_with_ipv6_alone_has_a_default_card() {
    isolate(|| {
        pair("eth0", "far");
        ip("-6 address add 2001:db8:5::7/64 dev eth0 nodad");
        let error = default_card().unwrap_err();
        assert!(error.to_string().contains("no route to the outside"), "{error}");
        ip("-6 route add default via 2001:db8:5::1");
        let eth0 = default_card().unwrap();
        assert_eq!(eth0.name, "eth0");
        assert_eq!((eth0.default.ip4, eth0.default.ip6), (Some(false), Some(true)));
        assert_eq!(eth0.standing(Family::Ip4), Standing::Unusable(Unusable::NoAddress));
        let lite = Interface::default_lite().unwrap();
        assert_eq!(lite.supported().collect::<Vec<_>>(), [Family::Ip6]);
    });
}

#[test]
fn c15_the_default_card_of_a_family_is_the_one_that_the_rules_choose() {
    isolate(|| {
        for (name, net) in [("eth0", 1), ("eth1", 2), ("vpn", 3)] {
            pair(name, &format!("{name}-far"));
            ip(&format!("address add 10.0.{net}.7/24 dev {name}"));
        }
        ip("route add default via 10.0.1.1 metric 200");
        ip("route add default via 10.0.2.1 metric 100");
        assert_eq!(default_card().unwrap().name, "eth1");
        assert_eq!(card("eth0").standing(Family::Ip4), Standing::Outside);
        // A VPN that takes everything by a rule and a table of its own.
        ip("route add default dev vpn table 51820");
        ip("rule add not fwmark 51820 table 51820");
        let vpn = default_card().unwrap();
        assert_eq!((vpn.name.as_str(), vpn.gateways[0].table), ("vpn", 51820));
        assert_eq!(vpn.gateways[0].address, None);
    });
}

#[test]
fn c15_blocks_are_blocks_where_the_kernel_answers_for_all_of_them() {
    isolate(|| {
        pair("eth0", "far");
        ip("address add 8.8.0.0/16 dev eth0");
        ip("address add 2020:deed:beef::/64 dev eth0 nodad");
        let ranges = |card: &Card| -> Vec<String> {
            let global = |it: &&CardAddress| !it.range.base().to_string().starts_with("fe80");
            card.addresses.iter().filter(global).map(|it| it.range.to_string()).collect()
        };
        // The other addresses are neighbours.
        assert_eq!(ranges(&card("eth0")), ["8.8.0.0", "2020:deed:beef::"]);
        ip("route add local 8.8.0.0/16 dev eth0");
        ip("route add local 2020:deed:deed::/64 dev lo");
        let eth0 = card("eth0");
        assert_eq!(ranges(&eth0), ["8.8.0.0/16", "2020:deed:beef::"], "of no card yet");
        UdpSocket::bind("8.8.3.7:0").unwrap();
        ip("-6 route add default via 2020:deed:beef::1");
        let of_default = ranges(&card("eth0"));
        assert_eq!(of_default, ["8.8.0.0/16", "2020:deed:beef::", "2020:deed:deed::/64"]);
    });
}

#[test]
fn c15_a_hundred_cards_are_listed() {
    isolate(|| {
        for number in 0..50 {
            let (near, far) = (format!("a{number}"), format!("b{number}"));
            pair(&near, &far);
            ip(&format!("address add 10.9.{number}.1/24 dev {near}"));
            ip(&format!("address add 2001:db8:{number}::1/64 dev {near} nodad"));
        }
        let started = Instant::now();
        let all = cards().unwrap();
        println!("{} cards in {:?}", all.len(), started.elapsed());
        assert_eq!(all.len(), 101);
        assert_eq!(all.iter().filter(|card| card.is_usable()).count(), 50);
    });
}

#[test]
fn c14_the_default_interface_sends_nothing_and_makes_up_nothing() {
    isolate(|| {
        let _outside = Outside::new();
        // Everything that leaves, but what the kernel itself says to its IPv6 neighbours.
        nft("add table inet count");
        nft("add chain inet count out { type filter hook output priority 0 ; }");
        nft("add rule inet count out meta l4proto != icmpv6 counter");
        let counted = || nft("list chain inet count out");
        let neighbours =
            || run(Command::new(peer("ip")).args(["neigh", "show", "nud", "all", "dev", "uplink"]));
        let routers = [Outside::ROUTER4.to_string(), Outside::ROUTER6.to_string()];
        let asked = || routers.iter().any(|router| neighbours().contains(&format!("{router} ")));
        let lite = Interface::default_lite().unwrap();
        assert!(counted().contains("packets 0"), "{}", counted());
        assert!(!asked(), "not even the gateway is looked for: {}", neighbours());
        assert_eq!(lite.name(), Interface::DEFAULT);
        for (family, source) in
            [(Family::Ip4, Outside::HOST4.into()), (Family::Ip6, Outside::HOST6.into())]
        {
            let route = lite.route(Some(family)).unwrap();
            assert_eq!((route.nic(), route.bind_address()), (source, source));
            assert_eq!(route.external(), &External::Unknown(Unknown::NotAsked));
            assert_eq!((route.ext(), lite.rp(family).len()), (None, 0));
            assert_eq!(lite.is_default(family), Some(true));
        }
        assert!(lite.nat().is_none());
        // The counter counts.
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", (Outside::ADDRESS4, 9)).unwrap();
        assert!(counted().contains("packets 1"), "{}", counted());
        ip("link del uplink");
        let none = Interface::default_lite().unwrap();
        assert_eq!(none.supported().count(), 0);
        assert!(matches!(none.route(None), Err(NicError::NoRoute { .. })));
    });
}
