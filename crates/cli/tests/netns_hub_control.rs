//! What a hub's administrator decides: subnets behind peers, exits, who may reach whom; and the control API.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use std::path::Path;

use netyard_testbed::http;
use netyard_testbed::{Background, Namespace, User, isolate, output, peer, run, wait_for};
use serde_json::Value;

use crate::outer::{
    Outer, PATIENCE, ip, is_reached, joined_peer, json, netyard, peers, ping, start_hub,
    start_peer, token,
};

/// A server on the Internet, which knows nothing of the hub's network.
const OUTSIDE: &str = "203.0.113.9";

fn lead_outside(outer: &Outer) {
    outer.router.ip(&["address", "add", &format!("{OUTSIDE}/32"), "dev", "lo"]);
}

/// A network behind a peer, with one machine that knows nothing of the hub's network.
fn behind(gateway: &Namespace) -> Namespace {
    let lan = Namespace::new("lan");
    let pair = ["link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", "lan"];
    gateway.ip(&pair);
    gateway.ip(&["address", "add", "192.168.7.1/24", "dev", "lan0"]);
    gateway.ip(&["link", "set", "lan0", "up"]);
    lan.ip(&["address", "add", "192.168.7.9/24", "dev", "eth0"]);
    lan.ip(&["link", "set", "eth0", "up"]);
    lan
}

fn device_to(namespace: &Namespace, address: &str) -> Value {
    ip(namespace, &["route", "get", address])[0]["dev"].clone()
}

fn is_led(namespace: &Namespace, address: &str, device: &str) {
    wait_for(&format!("{address} by {device}"), PATIENCE, || {
        (device_to(namespace, address) == device).then_some(())
    });
}

fn hub(outer: &Outer, arguments: &[&str]) -> String {
    run(&mut netyard(&outer.hub, arguments))
}

fn setting(namespace: &Namespace, name: &str) -> String {
    run(namespace.command(peer("sysctl")).args(["-n", name])).trim().to_owned()
}

fn is_silent(from: &Namespace, to: &str) {
    let done = output(from.command(peer("ping")).args(["-c", "1", "-W", "1", to]));
    assert!(!done.status.success(), "{to} answers: {done:?}");
}

#[test]
fn a_subnet_behind_a_peer_is_reached_when_it_is_accepted() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let (one, two) = (&outer.peers[0], &outer.peers[1]);
        let _lan = behind(two);
        let before = setting(two, "net.ipv4.ip_forward");
        let _one = joined_peer(&outer, 1, &[]);
        let mut second = joined_peer(&outer, 2, &["--subnet", "192.168.7.0/24"]);
        assert_eq!(setting(two, "net.ipv4.ip_forward"), "1");
        assert_eq!(device_to(one, "192.168.7.9"), "eth0");
        let offered = peers(&outer)[1]["subnets"][0].clone();
        assert_eq!(offered["prefix"], "192.168.7.0/24");
        assert_eq!((&offered["offered"], &offered["accepted"]), (&true.into(), &false.into()));
        hub(&outer, &["peers", "accept", "peer-2", "192.168.7.0/24"]);
        is_led(one, "192.168.7.9", "tun0");
        ping(one, "192.168.7.9");
        ping(&outer.hub, "192.168.7.9");
        assert_eq!(device_to(two, "192.168.7.9"), "lan0", "not there, where it is near");
        hub(&outer, &["peers", "refuse", "peer-2", "192.168.7.0/24"]);
        is_led(one, "192.168.7.9", "eth0");
        let unknown =
            output(&mut netyard(&outer.hub, &["peers", "accept", "peer-1", "10.9.0.0/16"]));
        assert_eq!(unknown.status.code(), Some(1));
        // What was accepted is so when the peer comes again.
        hub(&outer, &["peers", "accept", "peer-2", "192.168.7.0/24"]);
        is_led(one, "192.168.7.9", "tun0");
        second.signal("TERM");
        assert!(second.wait(PATIENCE).success(), "{}", second.output());
        assert_eq!(setting(two, "net.ipv4.ip_forward"), before);
        let mut second = joined_peer(&outer, 2, &["--subnet", "192.168.7.0/24"]);
        ping(one, "192.168.7.9");
        second.signal("TERM");
        second.wait(PATIENCE);
        // And gone when it does not offer it any more.
        let _other = joined_peer(&outer, 2, &["--no-subnets"]);
        is_led(one, "192.168.7.9", "eth0");
    });
}

#[test]
fn a_subnet_that_the_kernel_cannot_lead_keeps_no_other_away() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let _lan = behind(&outer.peers[1]);
        outer.hub.ip(&["route", "add", "10.77.0.0/24", "via", "192.0.2.1"]);
        let offers = ["--subnet", "10.77.0.0/24", "--subnet", "192.168.7.0/24"];
        let _second = joined_peer(&outer, 2, &offers);
        let accept = |subnet: &str| hub(&outer, &["peers", "accept", "peer-2", subnet]);
        accept("10.77.0.0/24");
        assert_eq!(device_to(&outer.hub, "10.77.0.1"), "eth0");
        accept("192.168.7.0/24");
        assert_eq!(device_to(&outer.hub, "192.168.7.9"), "tun0");
        ping(&outer.hub, "192.168.7.9");
        outer.hub.ip(&["route", "del", "10.77.0.0/24", "via", "192.0.2.1"]);
        accept("10.77.0.0/24");
        is_led(&outer.hub, "10.77.0.1", "tun0");
        hub(&outer, &["peers", "refuse", "peer-2", "192.168.7.0/24"]);
        is_led(&outer.hub, "192.168.7.9", "eth0");
        assert_eq!(device_to(&outer.hub, "10.77.0.1"), "tun0");
    });
}

#[test]
fn the_hub_and_peers_lead_to_the_outside() {
    isolate(|| {
        let outer = Outer::new(2);
        lead_outside(&outer);
        let before = setting(&outer.hub, "net.ipv4.ip_forward");
        let mut first = start_hub(&outer, &["--exit"]);
        let (one, two) = (&outer.peers[0], &outer.peers[1]);
        let mut by_hub = joined_peer(&outer, 1, &["--redirect"]);
        assert_eq!(device_to(one, OUTSIDE), "tun0");
        ping(one, OUTSIDE);
        by_hub.signal("TERM");
        by_hub.wait(PATIENCE);
        first.signal("TERM");
        assert!(first.wait(PATIENCE).success(), "{}", first.output());
        assert_eq!(setting(&outer.hub, "net.ipv4.ip_forward"), before);
        assert_eq!(run(outer.hub.command(peer("nft")).args(["list", "ruleset"])), "");
        // A hub that is no exit, and a peer that is one.
        let _hub = start_hub(&outer, &[]);
        let _exit = joined_peer(&outer, 2, &["--subnet", "0.0.0.0/0"]);
        let mut refused = start_peer(&outer, 1, &token(&outer, &[]), &["--exit", "peer-2"]);
        assert_eq!(refused.wait(PATIENCE).code(), Some(1), "{}", refused.output());
        assert!(refused.output().contains("chosen as the exit"), "{}", refused.output());
        hub(&outer, &["peers", "accept", "peer-2", "0.0.0.0/0"]);
        assert_eq!(device_to(two, OUTSIDE), "eth0");
        let _by_peer = joined_peer(&outer, 1, &["--exit", "peer-2"]);
        assert_eq!(device_to(one, OUTSIDE), "tun0");
        ping(one, OUTSIDE);
        ping(one, "10.1.1.1");
        hub(&outer, &["peers", "refuse", "peer-2", "0.0.0.0/0"]);
        is_silent(one, OUTSIDE);
    });
}

#[test]
fn names_of_machines_are_in_a_hosts_file_as_long_as_they_are_wanted() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &["--network6", "fd00:5::/64", "--zone", "lab.internal"]);
        let file = "/tmp/hosts";
        let others = "127.0.0.1 localhost\n";
        std::fs::write(file, others).unwrap();
        let read = || std::fs::read_to_string(file).unwrap();
        let has = |line: &str| {
            wait_for(line, PATIENCE, || {
                read().lines().any(|it| it.starts_with(line)).then_some(())
            });
        };
        let join = token(&outer, &[]);
        let mut one = start_peer(&outer, 1, &join, &["--hosts", file]);
        one.wait_for_line("joined", PATIENCE);
        has("10.1.1.1 hub.lab.internal #");
        has("fd00:5::3 peer-1.lab.internal #");
        let _two = joined_peer(&outer, 2, &[]);
        has("10.1.1.5 peer-2.lab.internal #");
        hub(&outer, &["peers", "revoke", "peer-2"]);
        wait_for("no such name", PATIENCE, || (!read().contains("peer-2")).then_some(()));
        one.signal("KILL");
        one.wait(PATIENCE);
        assert!(read().contains("peer-1"), "a killed one leaves its lines");
        let mut again = start_peer(&outer, 1, &join, &[]);
        again.wait_for_line("joined", PATIENCE);
        assert_eq!(read(), others);
        again.signal("TERM");
        again.wait(PATIENCE);
        let mut last = start_peer(&outer, 1, &join, &["--hosts", file]);
        last.wait_for_line("joined", PATIENCE);
        has("10.1.1.1 hub.lab.internal #");
        last.signal("TERM");
        assert!(last.wait(PATIENCE).success(), "{}", last.output());
        assert_eq!(read(), others);
    });
}

const POLICY: &str = r#"
[tags]
servers = ["peer-2"]

[[allow]]
from = ["peer-1"]
to = ["tag:servers"]
protocol = "icmp"
"#;

#[test]
fn a_policy_says_who_reaches_whom() {
    isolate(|| {
        let outer = Outer::new(2);
        let mut first = start_hub(&outer, &[]);
        let _one = joined_peer(&outer, 1, &[]);
        let _two = joined_peer(&outer, 2, &[]);
        let (one, two) = (&outer.peers[0], &outer.peers[1]);
        std::fs::write("/tmp/policy.toml", POLICY).unwrap();
        hub(&outer, &["hub", "policy", "set", "/tmp/policy.toml"]);
        ping(one, "10.1.1.5");
        is_silent(two, "10.1.1.3");
        is_silent(one, "10.1.1.1");
        is_silent(&outer.hub, "10.1.1.5");
        let status = || json(&mut netyard(&outer.hub, &["hub", "status", "--json"]));
        wait_for("all three to be counted", PATIENCE, || {
            (status()["drops"]["refused"] == 3).then_some(())
        });
        assert_eq!(status()["policy"]["tags"]["servers"][0], "peer-2");
        std::fs::write("/tmp/bad.toml", "[[allow]]\nfrom = [\"tag:x\"]\nto = [\"*\"]").unwrap();
        let bad = output(&mut netyard(&outer.hub, &["hub", "policy", "set", "/tmp/bad.toml"]));
        assert_eq!(bad.status.code(), Some(2), "{bad:?}");
        assert!(String::from_utf8_lossy(&bad.stderr).contains("no tag x"), "{bad:?}");
        // It outlives the hub's process.
        first.signal("KILL");
        first.wait(PATIENCE);
        let _hub = start_hub(&outer, &[]);
        is_reached(one, "10.1.1.5");
        is_silent(two, "10.1.1.3");
        hub(&outer, &["hub", "policy", "remove"]);
        ping(two, "10.1.1.3");
    });
}

#[test]
fn the_control_api_answers_what_is_asked_of_a_hub() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let _one = joined_peer(&outer, 1, &[]);
        ping(&outer.peers[0], "10.1.1.1");
        let socket = Path::new("/run/netyard/.hub-hub/hub.sock");
        let get = |path: &str| http::unix(socket, "GET", path).unwrap();
        let value = |path: &str| serde_json::from_str::<Value>(&get(path).body).unwrap();
        assert_eq!(value("/v1/health")["healthy"], true);
        let one = value("/v1/peers/peer-1");
        assert_eq!((&one["connected"], &one["address"]), (&true.into(), &"10.1.1.3".into()));
        assert_eq!(get("/v1/peers/nobody").status, 404);
        assert_eq!(value("/v1/policy"), Value::Null);
        // The last of three pings may be on its way when the one before it was answered.
        let three = "netyard_peer_session_packets{network=\"main\",peer=\"peer-1\",direction=\"to_peer\"} 3\n";
        let metrics = wait_for("three answers", PATIENCE, || {
            Some(get("/metrics").body).filter(|metrics| metrics.contains(three))
        });
        for line in [
            "netyard_hub_peers_connected{network=\"main\"} 1",
            "netyard_hub_dropped_packets_total{network=\"main\",reason=\"spoof\"} 0",
            "netyard_peer_connected{network=\"main\",peer=\"peer-1\"} 1",
        ] {
            assert!(metrics.lines().any(|it| it == line), "{line} is not in:\n{metrics}");
        }
        let deeds = json(&mut netyard(&outer.hub, &["hub", "audit", "--json"]));
        let what: Vec<_> =
            deeds.as_array().unwrap().iter().map(|it| it["action"].clone()).collect();
        assert_eq!(what, ["join", "create-token"]);
        hub(&outer, &["hub", "backup", "/tmp/copy.db"]);
        let again = output(&mut netyard(&outer.hub, &["hub", "backup", "/tmp/copy.db"]));
        assert_eq!(again.status.code(), Some(1), "{again:?}");
        assert_eq!(std::fs::metadata("/tmp/copy.db").unwrap().len() % 4096, 0);
    });
}

#[test]
fn users_may_what_their_roles_allow_and_the_audit_says_who_it_was() {
    isolate(|| {
        if !User::ids_are_real() {
            // There is nobody else who could ask: root's run of this test is the one that counts.
            return;
        }
        let outer = Outer::new(1);
        let socket = "/tmp/hub.sock";
        let mut first = start_hub(&outer, &["--socket", socket]);
        // Another user, who has no way to the hub's own socket.
        let other = |words: &[&str]| {
            let command = &mut User::Ordinary.command("netyard");
            let done = output(command.args(words).args(["--hub", socket]));
            let text = [done.stdout, done.stderr].concat();
            (done.status.code(), String::from_utf8_lossy(&text).into_owned())
        };
        let (code, text) = other(&["hub", "status"]);
        assert_eq!(code, Some(3), "{text}");
        assert!(
            text.contains("user 1000 has no role") && text.contains("grant 1000 reader"),
            "{text}"
        );
        hub(&outer, &["hub", "role", "grant", "1000", "reader"]);
        assert_eq!(other(&["peers"]).0, Some(0));
        let (code, text) = other(&["token", "create"]);
        assert!(code == Some(3) && text.contains("role reader, and that takes operator"), "{text}");
        hub(&outer, &["hub", "role", "grant", "1000", "operator"]);
        let (code, join) = other(&["token", "create"]);
        assert_eq!(code, Some(0), "{join}");
        let mut one = start_peer(&outer, 1, join.trim(), &[]);
        one.wait_for_line("joined", PATIENCE);
        for words in [&["hub", "policy", "remove"][..], &["hub", "network", "rm", "x"]] {
            assert_eq!(other(words).0, Some(3), "{words:?}");
        }
        assert_eq!(other(&["hub", "role", "grant", "1000", "admin"]).0, Some(3));
        let deeds = json(&mut netyard(&outer.hub, &["hub", "audit", "--json"]));
        let deeds = deeds.as_array().unwrap();
        let deed = |at: usize, field: &str| deeds[at][field].as_str().unwrap().to_owned();
        assert_eq!(deed(0, "action"), "join");
        let id = join.strip_prefix("netyard://").unwrap().split_once('.').unwrap().0;
        assert_eq!(deed(0, "who"), format!("token {id}"));
        assert_eq!(deed(1, "action"), "create-token");
        assert!(deed(1, "who").starts_with("user 1000, process "), "{deeds:?}");
        assert_eq!(
            (deed(2, "action"), deed(2, "subject")),
            ("grant-role".into(), "user 1000 operator".into())
        );
        assert!(deed(2, "who").starts_with("user 0, process "), "{deeds:?}");
        // Roles outlive the hub, its socket does not.
        first.signal("TERM");
        assert!(first.wait(PATIENCE).success(), "{}", first.output());
        assert!(!Path::new(socket).exists());
        let _second = start_hub(&outer, &["--socket", socket]);
        assert_eq!(other(&["peers"]).0, Some(0));
        hub(&outer, &["hub", "role", "revoke", "1000"]);
        assert_eq!(other(&["peers"]).0, Some(3));
    });
}

#[test]
fn users_without_a_role_hold_few_connections_and_not_for_long() {
    isolate(|| {
        if !User::ids_are_real() {
            // There is nobody else who could connect: root's run of this test is the one that counts.
            return;
        }
        let outer = Outer::new(0);
        let socket = "/tmp/hub.sock";
        let _hub = start_hub(&outer, &["--socket", socket]);
        // Many that say nothing, each until its end.
        let script = "import os, socket, sys
os.setgroups([]), os.setgid(1000), os.setuid(1000)
held = [socket.socket(socket.AF_UNIX) for _ in range(64)]
for s in held: s.connect(sys.argv[1])
print('opened', flush=True)
said = []
for s in held:
    said.append(b'')
    while data := s.recv(4096): said[-1] += data
print('refused', sum(b'too many connections' in it for it in said), 'of', len(said), flush=True)";
        let mut many = outer.hub.command(peer("python3"));
        let mut many = Background::start(many.args(["-c", script, socket]));
        many.wait_for_line("opened", PATIENCE);
        // Whose hub it is gets in, and so does who has a role by now.
        hub(&outer, &["peers", "--hub", socket]);
        hub(&outer, &["hub", "role", "grant", "1000", "reader", "--hub", socket]);
        run(User::Ordinary.command("netyard").args(["peers", "--hub", socket]));
        let line = many.wait_for_line("refused", PATIENCE);
        assert!(line.ends_with(" of 64") && !line.starts_with("refused 0 "), "{line}");
    });
}

/// What older programs of this kind answer by calls of their own, and the rest of what can be asked.
#[test]
fn everything_about_a_hub_can_be_asked_by_http() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let socket = Path::new("/run/netyard/.hub-hub/hub.sock");
        let ask = |method: &str, path: &str, json: &str| {
            let answer = http::unix_with(socket, method, path, json).unwrap();
            let value: Value = serde_json::from_str(&answer.body).unwrap();
            (answer.status, value)
        };
        let good = |method: &str, path: &str, json: &str| {
            let (status, value) = ask(method, path, json);
            assert_eq!(status, 200, "{method} {path}: {value}");
            value
        };
        // Every refusal says what was wanted, and what was found.
        let refused = |method: &str, path: &str, json: &str, status: u16| {
            let (found, value) = ask(method, path, json);
            assert_eq!(found, status, "{method} {path}: {value}");
            assert!(value["wanted"].is_string() && value["found"].is_string(), "{value}");
        };
        // A token for ten minutes, one for ever, and what can be done with it.
        let created = good("POST", "/v1/tokens", r#"{"life_ms": 600000, "uses": 1}"#);
        let join = created["join"].as_str().unwrap();
        let forever = good("POST", "/v1/tokens", r#"{"life_ms": null, "uses": null}"#);
        assert_eq!((&forever["expires_ms"], &forever["uses"]), (&Value::Null, &Value::Null));
        let tokens = good("GET", "/v1/tokens", "");
        assert_eq!(tokens.as_array().unwrap().len(), 2);
        let secret = join.split(['.', '@']).nth(1).unwrap();
        assert!(!tokens.to_string().contains(secret), "{tokens}");
        let id = forever["id"].as_str().unwrap();
        assert_eq!(good("POST", &format!("/v1/tokens/{id}/revoke"), ""), id);
        refused("POST", "/v1/tokens/AAAAAAAA/revoke", "", 404);
        refused("POST", "/v1/tokens", r#"{"life": 1}"#, 400);
        refused("POST", "/v1/tokens", "{", 400);
        // State and address of a node, of all, and of the hub.
        let mut one = start_peer(&outer, 1, join, &["--subnet", "192.168.7.0/24"]);
        one.wait_for_line("joined", PATIENCE);
        let peer = good("GET", "/v1/peers/peer-1", "");
        assert_eq!((&peer["connected"], &peer["address"]), (&true.into(), &"10.1.1.3".into()));
        assert_eq!(good("GET", "/v1/peers", "").as_array().unwrap().len(), 1);
        assert_eq!(good("GET", "/v1/hub", "")["address"], "10.1.1.1");
        assert_eq!(good("GET", "/v1/health", "")["healthy"], true);
        let accepted = r#"{"prefix": "192.168.7.0/24", "accepted": true}"#;
        good("POST", "/v1/peers/peer-1/subnets", accepted);
        refused("POST", "/v1/peers/nobody/subnets", accepted, 404);
        let pinned = good("PUT", "/v1/peers/peer-1/pin", r#"{"address": "10.1.1.3"}"#);
        assert_eq!((&pinned["pinned"], &pinned["number"]), (&true.into(), &1.into()));
        assert_eq!(good("DELETE", "/v1/peers/peer-1/pin", "")["pinned"], false);
        refused("PUT", "/v1/peers/peer-1/pin", r#"{"address": "10.1.1.4"}"#, 400);
        refused("PUT", "/v1/peers/peer-1/pin", r#"{"address": "x"}"#, 400);
        refused("PUT", "/v1/peers/nobody/pin", r#"{"address": "9"}"#, 404);
        refused("DELETE", "/v1/peers/nobody/pin", "", 404);
        let kept = good("POST", "/v1/tokens", r#"{"address": "10.1.1.9"}"#);
        assert_eq!(good("GET", "/v1/tokens", "")[2]["address"], "10.1.1.9", "{kept}");
        refused("POST", "/v1/tokens", r#"{"address": "10.1.1.9"}"#, 409);
        refused("POST", "/v1/tokens", r#"{"address": "10.1.1.7", "uses": 2}"#, 400);
        refused("PUT", "/v1/peers/peer-1/pin", r#"{"address": "10.1.1.9"}"#, 409);
        // A node that is turned out is not known any more, and its address is free.
        assert_eq!(good("POST", "/v1/peers/peer-1/revoke", ""), "peer-1");
        assert_eq!(one.wait(PATIENCE).code(), Some(1), "{}", one.output());
        refused("GET", "/v1/peers/peer-1", "", 404);
        refused("POST", "/v1/peers/peer-1/revoke", "", 404);
        // What only administrators decide.
        let policy = r#"{"allow": [{"from": ["*"], "to": ["hub"]}]}"#;
        assert_eq!(good("PUT", "/v1/policy", policy)["allow"][0]["to"][0], "hub");
        assert_eq!(good("GET", "/v1/policy", "")["allow"][0]["from"][0], "*");
        assert_eq!(good("DELETE", "/v1/policy", ""), Value::Null);
        refused("PUT", "/v1/policy", r#"{"allow": [{"from": ["tag:x"], "to": ["*"]}]}"#, 400);
        let network = r#"{"name": "office", "network": "10.2.0.0/24", "zone": "office.internal"}"#;
        refused("POST", "/v1/networks", &network.replace("office.", "office.."), 400);
        assert_eq!(good("POST", "/v1/networks", network)["address"], "10.2.0.1");
        refused("POST", "/v1/networks", network, 409);
        assert_eq!(good("GET", "/v1/networks", "").as_array().unwrap().len(), 2);
        assert_eq!(good("GET", "/v1/peers?network=office", ""), serde_json::json!([]));
        refused("GET", "/v1/peers?network=nowhere", "", 404);
        assert_eq!(good("DELETE", "/v1/networks/office", ""), "office");
        assert_eq!(good("PUT", "/v1/roles/1000", r#""operator""#)["1000"], "operator");
        assert_eq!(good("GET", "/v1/roles", "")["1000"], "operator");
        assert_eq!(good("DELETE", "/v1/roles/1000", ""), serde_json::json!({}));
        refused("PUT", "/v1/roles/bob", r#""operator""#, 400);
        refused("PUT", "/v1/roles/1000", r#""king""#, 400);
        good("POST", "/v1/backup", r#"{"file": "/tmp/copy.db"}"#);
        refused("POST", "/v1/backup", r#"{"file": "/tmp/copy.db"}"#, 409);
        refused("POST", "/v1/backup", r#"{"file": "copy.db"}"#, 400);
        refused("POST", "/v1/backup", r#"{"file": "/nowhere/copy.db"}"#, 404);
        wait_for("the copy in the audit", PATIENCE, || {
            let deeds = good("GET", "/v1/audit?most=1", "");
            let deed = &deeds[0];
            (deed["action"] == "back-up" && deed["subject"] == "/tmp/copy.db").then_some(())
        });
        assert_eq!(good("GET", "/v1/audit?most=2", "").as_array().unwrap().len(), 2);
        refused("GET", "/v1/audit?most=x", "", 400);
        refused("GET", "/v1/nothing", "", 404);
        refused("DELETE", "/v1/hub", "", 400);
    });
}
