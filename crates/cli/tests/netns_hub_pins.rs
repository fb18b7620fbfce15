//! Addresses that an operator of a hub has chosen for machines.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use netyard_testbed::{isolate, output, run};
use serde_json::Value;

use crate::outer::{
    Outer, PATIENCE, ip, is_reached, joined_peer, netyard, peers, ping, start_hub, start_peer,
    token,
};

/// The one of this name, as the hub sees it.
fn seen(outer: &Outer, name: &str) -> Value {
    peers(outer).into_iter().find(|peer| peer["name"] == name).unwrap()
}

/// What the hub refuses to do, and why.
fn refused(outer: &Outer, arguments: &[&str], code: i32, why: &str) {
    let done = output(&mut netyard(&outer.hub, arguments));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(code) && said.contains(why), "{arguments:?}: {said}");
}

/// A connected machine gets another address, by a pin that is said in this form, and keeps it, on the same device.
fn is_moved(flags: &[&str], said: &str, (before, after, other): (&str, &str, &str), device: &str) {
    let outer = Outer::new(2);
    let mut hub = start_hub(&outer, flags);
    let join = token(&outer, &[]);
    let mut one = start_peer(&outer, 1, &join, &["--tun", device]);
    one.wait_for_line(&format!("{before} "), PATIENCE);
    let _two = joined_peer(&outer, 2, &[]);
    assert_eq!(seen(&outer, "peer-2")["address"], other);
    let told = run(&mut netyard(&outer.hub, &["peers", "pin", "peer-1", said]));
    assert!(told.contains(&format!("peer-1 has {after}, and keeps it")), "{told}");
    one.wait_for_line(&format!("{after} "), PATIENCE);
    let namespace = &outer.peers[0];
    let links = ip(namespace, &["address", "show", "type", "tun"]);
    let [link] = &links.as_array().unwrap()[..] else { panic!("{links}") };
    assert_eq!(link["ifname"], device.replace("%d", "0"));
    let addresses = link["addr_info"].as_array().unwrap();
    let has = |address: &str| addresses.iter().any(|it| it["local"] == address);
    assert!(has(after) && !has(before), "{links}");
    ping(namespace, other);
    ping(&outer.peers[1], after);
    let row = seen(&outer, "peer-1");
    assert_eq!((&row["pinned"], &row["connected"]), (&true.into(), &true.into()), "{row}");
    // It outlives both ends' processes, and what is free goes to the next.
    one.signal("TERM");
    assert!(one.wait(PATIENCE).success(), "{}", one.output());
    hub.signal("TERM");
    assert!(hub.wait(PATIENCE).success(), "{}", hub.output());
    let _hub = start_hub(&outer, flags);
    let mut again = start_peer(&outer, 1, &join, &[]);
    again.wait_for_line(&format!("{after} "), PATIENCE);
    is_reached(&outer.peers[1], after);
}

#[test]
fn a_connected_machine_gets_the_address_that_is_chosen_in_pairs() {
    isolate(|| {
        let flags = ["--network6", "fd00:5::/64"];
        is_moved(&flags, "fd00:5::4d", ("10.1.1.3", "10.1.1.77", "10.1.1.5"), "tun%d");
    });
}

#[test]
fn a_connected_machine_gets_the_address_that_is_chosen_in_single_ones() {
    isolate(|| {
        let flags = ["--addressing", "single"];
        is_moved(&flags, "199", ("10.1.1.2", "10.1.1.200", "10.1.1.3"), "joined0");
    });
}

#[test]
fn an_address_that_is_somebodys_or_nobodys_is_refused_with_the_reason() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let _one = joined_peer(&outer, 1, &[]);
        let kept = token(&outer, &["--address", "10.1.1.77"]);
        let id = kept.strip_prefix("netyard://").unwrap().split_once('.').unwrap().0;
        for (address, code, why) in [
            ("10.1.1.1", 2, "is the hub's own"),
            ("10.1.1.4", 2, "is the far end of a machine's link"),
            ("10.9.9.9", 2, "is not in the network 10.1.1.0/24"),
            ("fd00:5::3", 2, "is not in the network 10.1.1.0/24"),
            ("127", 2, "their numbers are 1 to 126"),
            ("10.1.1.77", 1, id),
        ] {
            refused(&outer, &["peers", "pin", "peer-1", address], code, why);
            refused(&outer, &["token", "create", "--address", address], code, why);
        }
        refused(&outer, &["token", "create", "--address", "10.1.1.3"], 1, "peer-1");
        refused(&outer, &["token", "create", "--address", "10.1.1.9", "--uses", "2"], 2, "--uses");
        refused(&outer, &["peers", "pin", "nobody", "10.1.1.9"], 1, "no peer has that name");
        let listed = run(&mut netyard(&outer.hub, &["token", "ls"]));
        assert!(listed.lines().any(|line| line.contains(id) && line.contains("10.1.1.77")));
        // Who joins with it has it.
        let mut two = start_peer(&outer, 2, &kept, &[]);
        two.wait_for_line("10.1.1.77 ", PATIENCE);
        ping(&outer.peers[0], "10.1.1.77");
        refused(&outer, &["peers", "pin", "peer-1", "10.1.1.77"], 1, "the address of peer-2");
        // The session of who keeps its address goes on.
        let logins = || ["peer-1", "peer-2"].map(|name| seen(&outer, name)["logins"].clone());
        let before = logins();
        run(&mut netyard(&outer.hub, &["peers", "pin", "peer-1", "10.1.1.3"]));
        run(&mut netyard(&outer.hub, &["peers", "unpin", "peer-2"]));
        assert_eq!(logins(), before);
        let pinned = ["peer-1", "peer-2"].map(|name| seen(&outer, name)["pinned"].clone());
        assert_eq!(pinned, [true, false]);
    });
}
