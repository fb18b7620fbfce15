//! Several networks of one hub: they share its port, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use netyard_testbed::{Background, Namespace, isolate, output, peer, run, wait_for};
use serde_json::Value;

use crate::outer::{
    Outer, PATIENCE, ip, is_reached, joined_peer, json, netyard, ping, start_hub, start_peer, token,
};

fn hub(outer: &Outer, arguments: &[&str]) -> String {
    run(&mut netyard(&outer.hub, arguments))
}

fn hub_json(outer: &Outer, arguments: &[&str]) -> Value {
    json(&mut netyard(&outer.hub, &[arguments, &["--json"]].concat()))
}

/// What an exit code and a complaint of the hub's machine are.
fn refused(outer: &Outer, arguments: &[&str]) -> (Option<i32>, String) {
    let done = output(&mut netyard(&outer.hub, arguments));
    (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
}

const OFFICE: [&str; 2] = ["--network", "office"];

/// A peer of the network "office".
fn in_office(outer: &Outer, number: usize, flags: &[&str]) -> Background {
    let mut peer = start_peer(outer, number, &token(outer, &OFFICE), flags);
    peer.wait_for_line("joined", PATIENCE);
    peer
}

/// Whether an address answers a packet, with another source if one is named.
fn reaches(from: &Namespace, to: &str, source: Option<&str>) -> bool {
    let mut command = from.command(peer("ping"));
    command.args(["-c", "1", "-W", "1"]).args(source.map(|it| ["-I", it]).iter().flatten());
    output(command.arg(to)).status.success()
}

/// Waits until a network has dropped so many packets for a reason.
fn has_dropped(outer: &Outer, network: &[&str], reason: &str, least: usize) {
    wait_for(&format!("{least} drops of {network:?}: {reason}"), PATIENCE, || {
        let status = hub_json(outer, &[&["hub", "status"], network].concat());
        (status["drops"][reason].as_u64().unwrap() >= least as u64).then_some(())
    });
}

/// Waits until all of the network's peers send what is not TCP by UDP.
fn by_udp(outer: &Outer, network: &[&str]) {
    wait_for("UDP", PATIENCE, || {
        let peers = hub_json(outer, &[&["peers"], network].concat());
        peers.as_array().unwrap().iter().all(|it| it["lane"] == "udp").then_some(())
    });
}

#[test]
fn nothing_passes_between_networks_of_a_hub() {
    isolate(|| {
        let outer = Outer::new(3);
        // The hub's kernel would carry everything from one to another.
        let _hub = start_hub(&outer, &["--exit", "--network6", "fd00:1::/64"]);
        let add = ["hub", "network", "add", "office", "10.2.0.0/24"];
        hub(&outer, &[&add[..], &["--exit", "--network6", "fd00:2::/64"]].concat());
        let forwards = run(outer.hub.command(peer("sysctl")).args(["-n", "net.ipv4.ip_forward"]));
        assert_eq!(forwards.trim(), "1");
        let subnet = ["--subnet", "192.168.7.0/24"];
        let _main = joined_peer(&outer, 1, &[&["--redirect"][..], &subnet].concat());
        let _office = in_office(&outer, 2, &["--redirect"]);
        let _third = in_office(&outer, 3, &subnet);
        by_udp(&outer, &[]);
        by_udp(&outer, &OFFICE);
        let (one, two, three) = (&outer.peers[0], &outer.peers[1], &outer.peers[2]);
        three.ip(&["address", "add", "192.168.7.9/32", "dev", "lo"]);
        hub(&outer, &[&["peers", "accept", "peer-3", "192.168.7.0/24"][..], &OFFICE].concat());
        // Within each everything works, with the same numbers in both.
        for (from, to) in [
            (one, "10.1.1.1"),
            (two, "10.2.0.1"),
            (two, "10.2.0.5"),
            (three, "10.2.0.3"),
            (two, "fd00:2::1"),
            (two, "192.168.7.9"),
            (&outer.hub, "192.168.7.9"),
        ] {
            ping(from, to);
        }
        // Nothing from one to the other: not to peers, not to the hub there, not to what is behind peers.
        let office = ["10.2.0.1", "10.2.0.3", "10.2.0.5", "192.168.7.9", "fd00:2::1", "fd00:2::3"];
        for to in office {
            assert!(!reaches(one, to, None), "{to}");
        }
        let main = ["10.1.1.1", "10.1.1.3", "fd00:1::1", "fd00:1::3"];
        for to in main {
            assert!(!reaches(two, to, None), "{to}");
        }
        has_dropped(&outer, &[], "isolated", office.len());
        has_dropped(&outer, &OFFICE, "isolated", main.len());
        // Nor as somebody of the other one.
        one.ip(&["address", "add", "10.2.0.3/32", "dev", "tun0"]);
        for to in ["10.1.1.1", "10.2.0.5"] {
            assert!(!reaches(one, to, Some("10.2.0.3")), "{to}");
        }
        has_dropped(&outer, &[], "spoof", 2);
        // The same subnet in both: the hub's machine reaches the first one, the peers of each their own.
        let device =
            |to: &str| ip(&outer.hub, &["route", "get", to])[0]["dev"].as_str().unwrap().to_owned();
        let main = hub_json(&outer, &["hub", "status"])["device"].as_str().unwrap().to_owned();
        assert_ne!(device("192.168.7.9"), main);
        hub(&outer, &["peers", "accept", "peer-1", "192.168.7.0/24"]);
        assert_eq!(device("192.168.7.9"), main);
        ping(two, "192.168.7.9");
        hub(&outer, &["peers", "refuse", "peer-1", "192.168.7.0/24"]);
        assert_ne!(device("192.168.7.9"), main);
        ping(&outer.hub, "192.168.7.9");
    });
}

#[test]
fn networks_have_tokens_names_policies_and_books_of_their_own() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        hub(&outer, &["hub", "network", "add", "office", "10.2.0.0/24"]);
        let add =
            |name: &str, prefix: &str| refused(&outer, &["hub", "network", "add", name, prefix]);
        let (code, error) = add("more", "10.2.0.128/25");
        assert!(code == Some(1) && error.contains("overlaps with the network office"), "{error}");
        let (code, error) = add("more", "10.0.0.0/8");
        assert!(code == Some(1) && error.contains("overlaps"), "{error}");
        assert!(add("office", "10.3.0.0/24").1.contains("one of that name"));
        assert_eq!(add("No/Name", "10.3.0.0/24").0, Some(2));
        assert_eq!(refused(&outer, &["hub", "network", "rm", "main"]).0, Some(2));
        let (code, error) = refused(&outer, &["peers", "--network", "nowhere"]);
        assert!(code == Some(1) && error.contains("none of that name"), "{error}");
        // A token of one network lets nobody into another.
        let office = token(&outer, &OFFICE);
        assert!(office.contains(":6441/office?ca="), "{office}");
        for other in ["?", "/nowhere?"] {
            let mut strayed = start_peer(&outer, 1, &office.replace("/office?", other), &[]);
            assert_eq!(strayed.wait(PATIENCE).code(), Some(1));
            assert!(strayed.output().contains("no such token"), "{}", strayed.output());
        }
        std::fs::write("/tmp/hosts", "").unwrap();
        let mut one = start_peer(&outer, 1, &office, &["--hosts", "/tmp/hosts"]);
        one.wait_for_line("joined", PATIENCE);
        let hosts = wait_for("its own name", PATIENCE, || {
            let hosts = std::fs::read_to_string("/tmp/hosts").unwrap();
            hosts.contains("10.2.0.3 peer-1.office.netyard.internal").then_some(hosts)
        });
        assert!(!hosts.contains("10.1.1."), "{hosts}");
        // A machine can be in both.
        let both = token(&outer, &[]);
        let words = ["join", "--name", "both", "--state", "/tmp/both-state", &both];
        let mut two = Background::start(&mut netyard(&outer.peers[0], &words));
        two.wait_for_line("joined", PATIENCE);
        ping(&outer.peers[0], "10.1.1.1");
        ping(&outer.peers[0], "10.2.0.1");
        let names = |network: &[&str]| {
            let peers = hub_json(&outer, &[&["peers"], network].concat());
            peers.as_array().unwrap().iter().map(|it| it["name"].to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["\"both\""]);
        assert_eq!(names(&OFFICE), ["\"peer-1\""]);
        assert_eq!(hub_json(&outer, &["token", "ls"]).as_array().unwrap().len(), 1);
        let id = office.strip_prefix("netyard://").unwrap().split_once('.').unwrap().0;
        assert_eq!(refused(&outer, &["token", "revoke", id]).0, Some(1), "it is another network's");
        std::fs::write("/tmp/policy.toml", "allow = []").unwrap();
        hub(&outer, &[&["hub", "policy", "set", "/tmp/policy.toml"][..], &OFFICE].concat());
        assert!(!reaches(&outer.peers[0], "10.2.0.1", None));
        ping(&outer.peers[0], "10.1.1.1");
        let what = |network: &[&str]| {
            let deeds = hub_json(&outer, &[&["hub", "audit"], network].concat());
            let deeds = deeds.as_array().unwrap().iter();
            deeds.map(|it| it["action"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(what(&[]), ["join", "create-token", "add-network"]);
        assert_eq!(what(&OFFICE), ["set-policy", "join", "create-token"]);
    });
}

#[test]
fn networks_outlive_the_hub_until_they_are_removed() {
    isolate(|| {
        let outer = Outer::new(2);
        let mut first = start_hub(&outer, &[]);
        hub(&outer, &["hub", "network", "add", "office", "10.2.0.0/24"]);
        let _one = joined_peer(&outer, 1, &[]);
        let join = token(&outer, &OFFICE);
        let mut two = start_peer(&outer, 2, &join, &[]);
        two.wait_for_line("joined", PATIENCE);
        first.signal("KILL");
        first.wait(PATIENCE);
        let mut second = start_hub(&outer, &[]);
        let networks = || {
            let list = hub_json(&outer, &["hub", "network", "ls"]);
            list.as_array().unwrap().clone()
        };
        let listed: Vec<_> = networks().iter().map(|it| it["network_name"].clone()).collect();
        assert_eq!(listed, ["main", "office"]);
        wait_for("both sessions", PATIENCE, || {
            networks().iter().all(|it| it["connected"] == 1).then_some(())
        });
        is_reached(&outer.peers[0], "10.1.1.1");
        is_reached(&outer.peers[1], "10.2.0.1");
        // One that is removed takes its machines along; the other stays.
        hub(&outer, &["hub", "network", "rm", "office"]);
        assert_eq!(two.wait(PATIENCE).code(), Some(1), "{}", two.output());
        ping(&outer.peers[0], "10.1.1.1");
        let routes = ip(&outer.hub, &["route"]).to_string();
        assert!(!routes.contains("10.2.0."), "{routes}");
        // One of the same name knows nobody.
        hub(&outer, &["hub", "network", "add", "office", "10.2.0.0/24"]);
        assert_eq!(start_peer(&outer, 2, &join, &[]).wait(PATIENCE).code(), Some(1));
        let runtime = std::path::Path::new("/run/netyard/.hub-hub/networks/office");
        assert!(runtime.exists());
        hub(&outer, &["hub", "network", "rm", "office"]);
        assert!(!runtime.exists(), "nothing of it is left");
        second.signal("TERM");
        assert!(second.wait(PATIENCE).success(), "{}", second.output());
        let _third = start_hub(&outer, &[]);
        assert_eq!(networks().len(), 1);
    });
}
