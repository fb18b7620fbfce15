//! `run -b` with all that is said of a bridge on the command line, and bridges that are there already.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "stage/bridge.rs"]
mod bridge;
mod stage;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use netyard_testbed::{
    Background, Namespace, User, http, isolate, output, peer, run, traffic, wait_for,
};
use serde_json::Value;

use crate::bridge::{at, ip, ip_json, machine, netyard, refused, restored};
use crate::stage::{SOON, Stage, has_turns, text};

/// The command line, as one types it.
fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn all_that_is_said_of_a_bridge_holds() {
    isolate(|| {
        let (_outside, before) = machine();
        let mut server = Background::start(&mut netyard(&words(
            "run -b --bridgename colour_bridge --bridgeipaddress 10.1.0.66 --netmask 255.255.0.0 \
             --ip-address 10.1.3.7 --ipv6-address fd00:1::9 -p 9000-9009:8000-8009 --udp 5353:7000 \
             --name server -- netyard-traffic serve [::]:8000 [::]:8009 [::]:7000",
        )));
        server.wait_for_line("listening", SOON);
        let addresses = ip(&["address", "show", "dev", "colour_bridge"]);
        for own in ["10.1.0.66/16", "fd00:1::1/64"] {
            assert!(addresses.contains(own), "{addresses}");
        }
        // It is reached by its addresses, by the first and the last port of the range, and over UDP.
        let reached: [SocketAddr; 4] = [
            at([10, 1, 3, 7], 8000),
            "[fd00:1::9]:8009".parse().unwrap(),
            at(Ipv4Addr::LOCALHOST, 9000),
            at(Ipv4Addr::LOCALHOST, 9009),
        ];
        for address in reached {
            let answer = wait_for(&format!("{address}"), SOON, || http::get(address, "/").ok());
            assert_eq!(answer.body, traffic::HTTP_BODY, "{address}");
        }
        traffic::datagrams(at(Ipv4Addr::LOCALHOST, 5353), 3, 100).unwrap();

        // A network's name has small letters and dashes.
        let networks: Value = run(&mut netyard(&["network", "ls", "--json"])).parse().unwrap();
        assert_eq!(networks[0]["name"], "colour-bridge", "{networks}");
        let second = "run -b --bridgename colour_bridge --netmask 255.255.0.0 --ip-address";
        let client = |flags: &str, script: &str| {
            let line = format!("{second} {flags} -- sh -c");
            output(netyard(&words(&line)).arg(script))
        };
        let asks = "ip route; curl -sS --fail http://server.colour-bridge:8000/";
        let said = text(&client("10.1.200.8 --gateway 10.1.0.66", asks));
        assert!(said.contains("default via 10.1.0.66"), "{said}");
        assert!(said.contains(traffic::HTTP_BODY), "{said}");
        let said = text(&client("10.1.200.9 --gateway 10.1.0.1", "true"));
        assert!(said.contains("its gateway is 10.1.0.66, not 10.1.0.1"), "{said}");
        server.signal("INT");
        server.wait(SOON);
        restored(&before);
    });
}

#[test]
fn bridges_whose_names_differ_in_capitals_are_not_mixed_up() {
    isolate(|| {
        let (_outside, before) = machine();
        let mut first = Background::start(
            netyard(&words("run -b --bridgename Br0 -- sh -c")).arg("echo there; exec sleep 1000"),
        );
        first.wait_for_line("there", SOON);
        assert_eq!(ip_json(&["link", "show", "Br0"])[0]["linkinfo"]["info_kind"], "bridge");
        let second = |flags: &str| netyard(&words(&format!("run -b --bridgename {flags} -- true")));
        let (_, said) = refused(&mut second("br0"));
        assert!(said.contains("join network br0") && said.contains("its bridge is Br0"), "{said}");
        run(&mut second("br0 --network other --subnet 10.9.0.0/24"));
        let (code, said) = refused(&mut second("___"));
        assert!(code == Some(2) && said.contains("--network"), "{said}");
        first.signal("INT");
        first.wait(SOON);
        restored(&before);
    });
}

#[test]
fn a_bridge_that_is_there_says_whose_the_gateway_is() {
    isolate(|| {
        let (_outside, _) = machine();
        ip(&["link", "add", "br1", "type", "bridge"]);
        ip(&["address", "add", "192.168.42.50/24", "dev", "br1"]);
        ip(&["link", "set", "br1", "up"]);
        let line = "run -b --bridgename br1 --ip-address 192.168.42.19";
        let (_, said) = refused(&mut netyard(&words(&format!("{line} -- true"))));
        assert!(said.contains("192.168.42.1 beside 192.168.42.50/24"), "{said}");
        assert!(said.contains("gateway = \"192.168.42.50\""), "{said}");
        let ping = "ping -c 1 -W 20 192.168.42.50";
        let said = run(&mut netyard(&words(&format!("{line} --gateway 192.168.42.50 -- {ping}"))));
        assert!(said.contains("1 received"), "{said}");
        let addresses = ip(&["-4", "address", "show", "dev", "br1"]);
        assert_eq!(addresses.matches("inet ").count(), 1, "{addresses}");
    });
}

/// A network on somebody's bridge, with a member.
const YARD: &str = r#"
[networks.lab]
mode = "bridge"
bridge = "br1"
subnet = "192.168.77.0/24"
subnet6 = "fd00:77::/64"

[instances.member]
run = ["netyard-whoami", "-a", "::", "-p", "8080"]

[services.member]
instances = "member"
port = 8080
"#;

/// A client of DHCP on `eth0` that asks so many times, a second each: what it says.
fn asks_for_an_address(mut inside: Command, times: &str) -> String {
    inside.args(["-f", "-q", "-n", "-t", times, "-T", "1", "-i", "eth0", "-s", "/bin/true"]);
    text(&output(&mut inside))
}

/// The same for a router.
fn asks_for_a_router(mut inside: Command, times: &str) -> String {
    text(&output(inside.args(["-1", "-r", times, "-w", "1000", "eth0"])))
}

#[test]
fn only_members_are_served_on_a_bridge_that_is_somebody_elses() {
    isolate(|| {
        let (_outside, _) = machine();
        ip(&["link", "add", "br1", "type", "bridge"]);
        ip(&["link", "add", "theirs", "type", "veth", "peer", "name", "far"]);
        ip(&["link", "set", "theirs", "master", "br1"]);
        let stranger = Namespace::new("stranger");
        ip(&["link", "set", "far", "netns", "stranger", "name", "eth0"]);
        for link in ["br1", "theirs"] {
            ip(&["link", "set", link, "up"]);
        }
        stranger.ip(&["link", "set", "eth0", "up"]);
        let shown = |arguments: &[&str]| run(stranger.command(peer("ip")).args(arguments));
        wait_for("the stranger's link-local address", SOON, || {
            let text = shown(&["-6", "address", "show", "dev", "eth0"]);
            (text.contains("fe80:") && !text.contains("tentative")).then_some(())
        });

        let stage = Stage::up(User::Root, "joined", YARD);
        has_turns(&stage, "member", true);
        let member = stage.pid("member").to_string();
        let inside = |program: PathBuf| {
            let mut command = Command::new(peer("nsenter"));
            command.args(["--target", &member, "--net"]).arg(program);
            command
        };
        let lease = asks_for_an_address(inside(peer("udhcpc")), "30");
        assert!(lease.contains("lease of 192.168.77.2 obtained from 192.168.77.1"), "{lease}");
        let refused = asks_for_an_address(stranger.command(peer("udhcpc")), "3");
        assert!(refused.contains("no lease, failing"), "{refused}");
        let silence = asks_for_a_router(stranger.command(peer("rdisc6")), "3");
        assert!(silence.contains("No response"), "{silence}");
        assert_eq!(shown(&["-6", "route", "show", "default"]), "");

        // The same clients are, where addresses for them are named.
        let lent = "dhcp = { range = \"192.168.77.100-192.168.77.110\" }\nsubnet6";
        stage.write(&YARD.replace("subnet6", lent));
        stage.say(&["up", "-d", "--wait"]);
        has_turns(&stage, "member", true);
        let lease = asks_for_an_address(stranger.command(peer("udhcpc")), "30");
        assert!(lease.contains("lease of 192.168.77.100 obtained from 192.168.77.1"), "{lease}");
        let told = asks_for_a_router(stranger.command(peer("rdisc6")), "30");
        assert!(told.contains("fd00:77::/64"), "{told}");
        stage.say(&["down"]);
    });
}
