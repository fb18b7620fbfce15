//! The examples, as their own files have them: what they promise, and that nothing stays.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::net::SocketAddr;
use std::process::Command;

use netyard_testbed::{Outside, State, User, http, isolate, output, peer, run, wait_for};
use serde_json::Value;

use crate::stage::{SOON, Stage, have_had, serve_outside, text, who, who_udp};

/// The machine with its outside, when the kernel is through with their addresses.
fn machine() -> (Outside, State) {
    let outside = Outside::new();
    wait_for("settled addresses", SOON, || {
        let text =
            run(Command::new(peer("ip")).args(["-6", "address", "show", "dev", Outside::UPLINK]));
        (text.contains("fe80:") && !text.contains("tentative")).then_some(())
    });
    (outside, State::take())
}

fn ip_json(arguments: &[&str]) -> Value {
    run(Command::new(peer("ip")).args(["-j", "-d"]).args(arguments)).parse().unwrap()
}

/// Takes the yard down, and waits until everything is as it was.
fn down(stage: &Stage, before: &State) {
    stage.say(&["down"]);
    wait_for("the end of the network", SOON, || (State::take() == *before).then_some(()));
}

fn pings(stage: &Stage, from: &str, to: &str) -> bool {
    pings_within(stage, from, to, "20")
}

/// The same where nobody is to answer.
fn pings_in_vain(stage: &Stage, from: &str, to: &str) -> bool {
    !pings_within(stage, from, to, "3")
}

fn pings_within(stage: &Stage, from: &str, to: &str, seconds: &str) -> bool {
    stage.inside(from, &["ping", "-n", "-c", "1", "-W", seconds, to]).status.success()
}

/// What `ip route get` says inside an instance.
fn way(stage: &Stage, from: &str, to: &str) -> Value {
    let said = stage.inside(from, &["ip", "-j", "route", "get", to]);
    let said: Value = text(&said).parse().unwrap_or_else(|_| panic!("{}", text(&said)));
    said[0].clone()
}

#[test]
fn this_machine_and_red_reach_each_other_and_nobody_else() {
    isolate(|| {
        let (_outside, before) = machine();
        let yard = include_str!("../../../examples/labs/host-red/yard.toml");
        let stage = Stage::up(User::Root, "host-red", yard);
        let mut ping = Command::new(peer("ping"));
        let pinged = output(ping.args(["-c", "1", "-W", "20", "192.168.10.2"]));
        assert!(pinged.status.success(), "{}", text(&pinged));
        let route = &ip_json(&["route", "get", "192.168.10.2"])[0];
        assert_eq!(route["prefsrc"], "192.168.10.1", "the bridge is this machine's card there");
        assert!(pings(&stage, "red", "192.168.10.1"));
        assert!(pings_in_vain(&stage, "red", &Outside::ADDRESS4.to_string()));
        down(&stage, &before);
    });
}

#[test]
fn red_and_blue_reach_each_other_and_are_on_no_link_of_this_machine() {
    isolate(|| {
        let (_outside, before) = machine();
        let yard = include_str!("../../../examples/labs/pair/yard.toml");
        let stage = Stage::up(User::Ordinary, "pair", yard);
        for (from, to) in [("red", "192.168.10.3"), ("blue", "192.168.10.2"), ("red", "blue.lab")] {
            assert!(pings(&stage, from, to), "{from} {to}");
        }
        assert!(pings_in_vain(&stage, "red", &Outside::ADDRESS4.to_string()));
        before.assert_restored("while it runs");
        down(&stage, &before);
    });
}

#[test]
fn each_corner_of_the_triangle_reaches_both_others_by_the_side_between() {
    isolate(|| {
        let (_outside, before) = machine();
        let yard = include_str!("../../../examples/labs/triangle/yard.toml");
        let stage = Stage::up(User::Ordinary, "triangle", yard);
        let corners = ["red", "green", "blue"];
        let plugs = |name: &str| {
            let explained = stage.json(&["explain", name]);
            explained[0]["plugs"].as_array().unwrap().clone()
        };
        for (from, to) in corners.iter().flat_map(|from| corners.map(|to| (*from, to))) {
            if from == to {
                continue;
            }
            let (own, others) = (plugs(from), plugs(to));
            let side = |plug: &&Value| others.iter().any(|it| it["network"] == plug["network"]);
            let [side] = own.iter().filter(side).collect::<Vec<_>>()[..] else { panic!("{own:?}") };
            let there = others.iter().find(|it| it["network"] == side["network"]).unwrap();
            let address = there["addresses"][0].as_str().unwrap();
            assert!(pings(&stage, from, address), "{from} {to}");
            let way = way(&stage, from, address);
            assert_eq!(way["dev"], side["inside"]["name"], "{from} {to}");
            assert!(way["gateway"].is_null(), "{way}");
        }
        down(&stage, &before);
    });
}

#[test]
fn red_and_blue_reach_each_other_over_the_bridge_of_that_name() {
    isolate(|| {
        let (_outside, before) = machine();
        let yard = include_str!("../../../examples/labs/red-bridge-blue/yard.toml");
        let stage = Stage::up(User::Root, "red-bridge-blue", yard);
        let bridge = &ip_json(&["link", "show", "colour_bridge"])[0];
        assert_eq!(bridge["linkinfo"]["info_kind"], "bridge");
        for port in ["br-red", "br-blue"] {
            wait_for(&format!("{port} on its bridge"), SOON, || {
                let link = &ip_json(&["link", "show", port])[0];
                (link["master"] == "colour_bridge" && link["operstate"] == "UP").then_some(())
            });
        }
        assert!(pings(&stage, "red", "192.168.10.3") && pings(&stage, "blue", "192.168.10.2"));
        assert!(pings_in_vain(&stage, "red", &Outside::ADDRESS4.to_string()));
        down(&stage, &before);
    });
}

#[test]
fn red_reaches_the_internet_with_this_machines_address() {
    isolate(|| {
        let (outside, before) = machine();
        let _server = serve_outside(&outside);
        let yard = include_str!("../../../examples/labs/internet/yard.toml");
        let stage = Stage::up(User::Root, "internet", yard);
        let bridge = &ip_json(&["-4", "address", "show", "dev", "br-red"])[0]["addr_info"][0];
        assert_eq!((&bridge["local"], &bridge["prefixlen"]), (&"192.168.10.1".into(), &28.into()));
        let address = Outside::ADDRESS4.to_string();
        let out = way(&stage, "red", &address);
        assert_eq!(
            (&out["gateway"], &out["prefsrc"]),
            (&"192.168.10.1".into(), &"192.168.10.2".into())
        );
        // The outside has no route to red's network: answers come because this machine asks.
        assert!(pings(&stage, "red", &address));
        let asked = stage.inside("red", &["curl", "-sS", "--fail", "http://203.0.113.1:7000/"]);
        assert_eq!(text(&asked), netyard_testbed::traffic::HTTP_BODY);
        // Up again makes nothing twice.
        let rules = || run(Command::new(peer("nft")).args(["list", "ruleset"]));
        let once = rules();
        stage.say(&["up", "-d"]);
        assert_eq!(rules(), once);
        down(&stage, &before);
    });
}

#[test]
fn the_front_proxy_gives_every_connection_to_the_other_daemon() {
    isolate(|| {
        let (_outside, before) = machine();
        let yard = include_str!("../../../examples/front-proxy/yard.toml");
        let stage = Stage::up(User::Ordinary, "front-proxy", yard);
        let front: SocketAddr = "127.0.0.1:10000".parse().unwrap();
        let ids: Vec<_> = (0..10).map(|_| who(front).unwrap()).collect();
        assert_ne!(ids[0], ids[1]);
        assert!(ids.windows(3).all(|three| three[0] == three[2]), "{ids:?}");
        // Back ends are known by name, and so is the front inside.
        for name in ["daemon1", "daemon2"] {
            let url = format!("http://{name}.front:8080/");
            let asked = stage.inside("daemon1", &["curl", "-sS", "--fail", &url]);
            assert!(ids.iter().any(|id| text(&asked).contains(id)), "{}", text(&asked));
        }
        have_had(&stage, 0, &[5, 5]);
        down(&stage, &before);
        wait_for("nobody", SOON, || who(front).is_err().then_some(()));
    });
}

#[test]
fn datagrams_of_every_new_socket_go_to_the_other_daemon() {
    isolate(|| {
        let (_outside, before) = machine();
        let yard = include_str!("../../../examples/datagrams/yard.toml");
        let stage = Stage::up(User::Ordinary, "datagrams", yard);
        let front: SocketAddr = "127.0.0.1:5300".parse().unwrap();
        let ids: Vec<_> = (0..10).map(|_| who_udp(front).unwrap()).collect();
        assert_ne!(ids[0], ids[1]);
        assert!(ids.windows(3).all(|three| three[0] == three[2]), "{ids:?}");
        // The other service has the same daemons, and turns of its own.
        let asked = stage.inside("daemon-1", &["curl", "-sS", "--fail", "http://health.lan:8080/"]);
        assert!(text(&asked).contains(&ids[0]) || text(&asked).contains(&ids[1]));
        have_had(&stage, 0, &[5, 5]);
        down(&stage, &before);
    });
}

#[test]
fn tiers_reach_each_other_as_far_as_they_must() {
    isolate(|| {
        let yard = include_str!("../../../examples/tiers/yard.toml");
        let stage = Stage::up(User::Root, "tiers", yard);
        let curl = |from: &str, url: &str| {
            stage.inside(from, &["curl", "-sS", "--fail", "-m", "20", url]).status.code()
        };
        let reaches = |from: &str, url: &str| {
            wait_for(url, SOON, || (curl(from, url) == Some(0)).then_some(()));
        };
        reaches("web", "http://app:8080/");
        reaches("app", "http://db:5432/");
        for (from, url) in [("web", "http://db:5432/"), ("db", "http://app:8080/")] {
            assert_eq!(curl(from, url), Some(7), "{from} {url}");
        }
        let forward = SocketAddr::from(([127, 0, 0, 1], 8081));
        wait_for("the forward", SOON, || http::get(forward, "/").ok());
        let refused = stage.json(&["policy", "test", "192.0.2.9", "web:8080"]);
        assert_eq!(
            (&refused["allowed"], &refused["rule"]),
            (&false.into(), &"tiers/web.elsewhere".into())
        );
    });
}
