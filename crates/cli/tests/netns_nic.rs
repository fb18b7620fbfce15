//! `netyard nic`, in a namespace whose cards the test has made.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::{Command, Output};
use std::time::Duration;

use netyard_testbed::{Background, Outside, isolate, peer, run, wait_for};
use serde_json::Value;

/// Far above what it takes.
const SOON: Duration = Duration::from_secs(30);

fn netyard(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netyard"));
    command.args(line.split(' '));
    command
}

fn output(line: &str) -> Output {
    netyard(line).output().unwrap()
}

fn said(line: &str) -> String {
    run(&mut netyard(line))
}

fn json(line: &str) -> Value {
    said(line).parse().unwrap()
}

fn ip(arguments: &str) {
    run(Command::new(peer("ip")).args(arguments.split(' ')));
}

#[test]
fn cards_and_routes_are_shown_without_asking_anybody() {
    isolate(|| {
        let _outside = Outside::new();
        ip("link add spare type veth peer name spare-far");
        let list = said("nic list");
        let lines: Vec<_> = list.lines().collect();
        assert_eq!(lines.len(), 2, "{list}");
        assert!(lines[1].starts_with("uplink  virtual  up     default  default  1500"), "{list}");
        let all = said("nic list --all");
        assert!(all.contains("leads to this machine itself") && all.contains("is switched off"));
        let cards = json("nic list --all --json");
        let spare = cards.as_array().unwrap().iter().find(|card| card["name"] == "spare").unwrap();
        assert_eq!(spare["standing"]["2"]["unusable"], "down");

        let routes = said("nic routes");
        assert!(routes.contains("IPv4 routes of uplink (1 route, no external address known)"));
        assert!(routes.contains("[198.51.100.1]  -> unknown  not asked"), "{routes}");
        let only = said("nic routes uplink -6");
        assert!(only.contains("[2001:db8:1::1]") && !only.contains("IPv4"), "{only}");
        let shown = json("nic show --json");
        assert_eq!((&shown["schema"], &shown["name"]), (&"nic/1".into(), &"uplink".into()));
        assert!(shown["nat"].is_null());
        assert_eq!(shown["rp"]["2"][0]["nic_ips"][0]["ip"], "198.51.100.1");
        let seed = said("nic show --seed --assume");
        assert!(seed.starts_with("Interface.from_dict({\n    \"name\": \"uplink\","), "{seed}");
        assert!(seed.contains("\"nat_info\": \"restrict port\""), "{seed}");
        assert!(said("nic show default").starts_with("default\n"));
    });
}

#[test]
fn what_is_asked_for_wrongly_says_what_to_do() {
    isolate(|| {
        let _outside = Outside::new();
        for (line, code, words) in [
            ("nic show eth9", 1, "there is no card eth9; there are: lo, "),
            ("nic show --nat", 2, "--server, --config or NETYARD_STUN"),
            ("nic nat", 2, "the name `public` stands for stun."),
            ("nic stun", 2, "no server is named"),
            ("nic routes --external", 2, "no server is named"),
            ("nic show --seed --json", 2, "cannot be used with"),
            ("nic routes --config nowhere.toml", 1, "nowhere.toml"),
            ("nic routes --treat-as-public 1.2.3.4/99", 2, "1.2.3.4/99"),
            ("-y hello nic list", 2, "--yard"),
        ] {
            let output = output(line);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{line}: {error}");
            assert!(error.contains(words), "{line}: {error}");
        }
        ip("link del uplink");
        let error = String::from_utf8(output("nic routes").stderr).unwrap();
        assert!(error.contains("no route to the outside"), "{error}");
    });
}

#[test]
fn external_addresses_are_those_that_the_servers_see() {
    isolate(|| {
        let outside = Outside::new();
        let mut server = outside.command(env!("CARGO_BIN_EXE_netyard"));
        server.args(["nic", "stun-server", "--ip", "203.0.113.1"]);
        let _server = Background::start(&mut server);
        std::fs::write(
            "/tmp/servers.toml",
            "servers = [\"203.0.113.1\"]\ntreat_as_public = [\"198.51.100.0/24\"]\n",
        )
        .unwrap();
        let routes = wait_for("the server to answer", SOON, || {
            Some(said("nic routes -4 --config /tmp/servers.toml"))
                .filter(|it| it.contains("direct"))
        });
        assert!(routes.contains("IPv4 routes of uplink (1 route, 1 address)"), "{routes}");
        assert!(
            routes.contains("[198.51.100.1]  -> [198.51.100.1]  direct, 1 of 1 servers answered")
        );
        // Addresses for documentation are not public unless the user says so.
        let doubted = said("nic routes -4 --server 203.0.113.1");
        assert!(doubted.contains("servers see 198.51.100.1, which is not public"), "{doubted}");
    });
}

#[test]
fn changes_are_printed_as_they_come() {
    isolate(|| {
        let _outside = Outside::new();
        let watch = Background::start(&mut netyard("nic watch --json"));
        let line = wait_for("a line of the watch", SOON, || {
            for verb in ["add", "delete"] {
                ip(&format!("address {verb} 198.51.100.77/24 dev uplink"));
            }
            let output = watch.output();
            output.lines().find(|line| line.contains("address-added")).map(str::to_owned)
        });
        let change: Value = line.parse().unwrap();
        assert_eq!(change["weight"], "major");
        let events = change["events"].as_array().unwrap();
        assert!(events.iter().all(|event| event["card"] == "uplink"), "{line}");
    });
}
