//! Machines that move: another address, another link. Nothing that runs through the tunnel ends by it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use netyard_testbed::{Background, isolate, wait_for};

use crate::outer::{Outer, PATIENCE, Talk, ip, joined_peer, peers, ping, start_hub};

/// A machine is connected from this address.
fn comes_from(outer: &Outer, number: usize, address: &str) {
    wait_for(address, PATIENCE, || {
        let all = peers(outer);
        let one = all.iter().find(|it| it["name"] == format!("peer-{number}"))?;
        let remote = one["remote"].as_str()?;
        (one["connected"] == true && remote.starts_with(&format!("{address}:"))).then_some(())
    });
}

/// Its own address is replaced by another one of the same network.
fn readdress(outer: &Outer, number: usize) {
    let namespace = &outer.peers[number - 1];
    let subnet = format!("198.51.{number}");
    namespace.ip(&["address", "del", &format!("{subnet}.10/24"), "dev", "eth0"]);
    namespace.ip(&["address", "add", &format!("{subnet}.20/24"), "dev", "eth0"]);
    namespace.ip(&["route", "replace", "default", "via", &format!("{subnet}.1")]);
    comes_from(outer, number, &format!("{subnet}.20"));
}

/// It is plugged in elsewhere, and its first link goes then.
fn relink(outer: &Outer, number: usize) {
    let namespace = &outer.peers[number - 1];
    let (link, subnet) = (format!("other-p{number}"), format!("203.0.{number}"));
    let pair = ["link", "add", &link, "type", "veth", "peer", "name", "eth1", "netns"];
    outer.router.ip(&[&pair[..], &[namespace.name()]].concat());
    outer.router.ip(&["address", "add", &format!("{subnet}.1/24"), "dev", &link]);
    outer.router.ip(&["link", "set", &link, "up"]);
    namespace.ip(&["address", "add", &format!("{subnet}.10/24"), "dev", "eth1"]);
    namespace.ip(&["link", "set", "eth1", "up"]);
    namespace.ip(&["route", "replace", "default", "via", &format!("{subnet}.1")]);
    namespace.ip(&["link", "del", "eth0"]);
    comes_from(outer, number, &format!("{subnet}.10"));
}

/// What moves, in each of the ways that routes are kept, and in both ways of a packet.
fn moves(flags: [&[&str]; 2], by: fn(&Outer, usize)) {
    let outer = Outer::new(2);
    let _hub = start_hub(&outer, &[]);
    let joined: [Background; 2] =
        [1, 2].map(|number| joined_peer(&outer, number, flags[number - 1]));
    let (one, two) = (&outer.peers[0], &outer.peers[1]);
    let index = |number: usize| {
        ip(&outer.peers[number - 1], &["link", "show", "tun0"])[0]["ifindex"].clone()
    };
    let devices = [1, 2].map(index);
    let talks = [
        Talk::start(one, &outer.hub, "10.1.1.1"),
        Talk::start(&outer.hub, two, "10.1.1.5"),
        Talk::start(two, one, "10.1.1.3"),
    ];
    for number in [1, 2] {
        by(&outer, number);
        talks.iter().for_each(Talk::goes_on);
        ping(&outer.peers[number - 1], "10.1.1.1");
    }
    assert_eq!([1, 2].map(index), devices, "the devices stayed");
    for mut one in joined {
        one.wait_for_line("has another way to the hub", PATIENCE);
    }
}

#[test]
fn a_machine_whose_own_address_changes_loses_no_connection() {
    isolate(|| moves([&[], &["--main-table", "--lane", "udp"]], readdress));
}

#[test]
fn a_machine_that_is_plugged_in_elsewhere_loses_no_connection() {
    isolate(|| moves([&["--main-table"], &["--redirect", "--lane", "udp"]], relink));
}
