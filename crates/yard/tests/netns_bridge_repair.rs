//! Networks in bridge mode: what others undo, and what a killed process leaves.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod bridge;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bridge::{
    Guest, Network, SOON, ask, at, config, forward, here, instances, ip, ip_json, machine, nft,
    traffic,
};
use netyard_engine::edge::PlugId;
use netyard_engine::plumbing::{KernelService, Plumbing};
use netyard_link::Features;
use netyard_sys::tap::{Device, Layer};
use netyard_testbed::{Background, Outside, SetAtEnd, State, isolate};

/// Flushes all rules again and again while clients connect. What is open goes on; new connections
/// are made all the time where tables can be owned, and after the repair where they cannot.
fn flush_under_load(network: &mut Network, owned: bool) {
    let vip = at(network.config.nth4(253), 8080);
    let mut open = TcpStream::connect(at(Outside::HOST4, 9001)).unwrap();
    open.set_read_timeout(Some(SOON)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = SetAtEnd(&stop);
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut failed = 0;
                    while !stop.load(Ordering::Relaxed) {
                        failed += u32::from(ask(&here(), vip).is_err());
                    }
                    failed
                })
            })
            .collect();
        for _ in 0..10 {
            nft(&["flush", "ruleset"]);
            assert_eq!(network.plumber.handle_changes(), []);
            assert_eq!(ask(&here(), vip).unwrap().0, "one");
            open.write_all(b"echo").unwrap();
            open.read_exact(&mut [0; 4]).unwrap();
        }
        drop(end);
        let failed: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert!(failed == 0 || !owned, "{failed} connections failed");
    });
}

#[test]
fn the_rules_outlive_a_flush_by_somebody_else() {
    isolate(|| {
        let all = Features::probe().unwrap();
        let (_outside, world) = machine();
        for features in [all, all.without(["table-owner"]).unwrap()] {
            let mut network = Network::with(config("lab", "br1"), features);
            let one = network.guest("one", 21);
            one.serve(8080);
            let service = network.service("web", &[&one]);
            network.plumber.set_services(std::slice::from_ref(&service)).unwrap();
            let echo = one.netns.run(|| TcpListener::bind("0.0.0.0:7")).unwrap().unwrap();
            std::thread::spawn(move || {
                let (mut stream, _) = echo.accept().unwrap();
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
            });
            let forwards = [forward("0.0.0.0:9000:8080", &one), forward("0.0.0.0:9001:7", &one)];
            network.plumber.change_forwards(&[], &forwards).unwrap();
            let before = nft(&["list", "table", "inet", "netyard-lab"]);
            nft(&["flush", "ruleset"]);
            assert_eq!(network.plumber.handle_changes(), []);
            let after = nft(&["list", "table", "inet", "netyard-lab"]);
            // Counters aside, and the number of the map.
            let steady = |text: &str| text.lines().filter(|line| !line.contains("counter")).count();
            assert_eq!(steady(&before), steady(&after), "{before}\n{after}");
            let vip = at(network.config.nth4(253), 8080);
            assert_eq!(ask(&here(), vip).unwrap().0, "one");
            assert_eq!(ask(&world, at(Outside::HOST4, 9000)).unwrap().0, "one");
            assert!(nft(&["list", "table", "bridge", "netyard-lab"]).contains("ve-one"));
            flush_under_load(&mut network, features.table_owner);
            let mut service = service;
            service.instances.clear();
            network.plumber.set_services(&[service]).unwrap();
            assert!(ask(&here(), vip).is_err());
            drop(network);
            assert_eq!(nft(&["list", "ruleset"]).trim(), "");
        }
    });
}

#[test]
fn rules_that_others_touch_are_made_again_and_turns_go_on() {
    isolate(|| {
        // Where others can change our tables.
        let features = Features::probe().unwrap().without(["table-owner"]).unwrap();
        let mut network = Network::with(config("lab", "br1"), features);
        let guests: Vec<Guest> =
            (1..=3).map(|n| network.guest(&format!("web-{n}"), 20 + n)).collect();
        guests.iter().for_each(|guest| guest.serve(8080));
        let (red, blue) = (network.guest("red", 31), network.guest("blue", 32));
        let all: Vec<&Guest> = guests.iter().collect();
        let service = network.service("web", &all);
        network.plumber.set_services(std::slice::from_ref(&service)).unwrap();
        let vip = at(network.config.nth4(253), 8080);
        let touch = |network: &mut Network| {
            nft(&["add", "chain", "inet", "netyard-lab", "foreign"]);
            assert_eq!(network.plumber.handle_changes(), []);
            assert!(!nft(&["list", "chains"]).contains("foreign"));
        };
        assert_eq!(ask(&red.netns, vip).unwrap().0, "web-1");
        touch(&mut network);
        assert_eq!(ask(&red.netns, vip).unwrap().0, "web-2");

        // Clients that are kept stay with whom they have.
        let affinity = Some(Duration::from_secs(600));
        let kept = KernelService { affinity, ..service.clone() };
        network.plumber.set_services(&[kept]).unwrap();
        assert_eq!(ask(&red.netns, vip).unwrap().0, "web-3");
        assert_eq!(ask(&blue.netns, vip).unwrap().0, "web-1");
        touch(&mut network);
        assert_eq!(traffic(&mut network).clients, 2);
        assert_eq!(ask(&red.netns, vip).unwrap().0, "web-3");
        assert_eq!(ask(&blue.netns, vip).unwrap().0, "web-1");
        assert_eq!(ask(&here(), vip).unwrap().0, "web-2");

        // What is not there any more is made again before it is changed; what was counted stays.
        assert_eq!(instances(&mut network)["web-2"].turns, 2);
        nft(&["delete", "table", "inet", "netyard-lab"]);
        assert_eq!(instances(&mut network)["web-2"].turns, 2);
        nft(&["delete", "table", "inet", "netyard-lab"]);
        network.plumber.set_services(&[service]).unwrap();
        assert_eq!(ask(&red.netns, vip).unwrap().0, "web-3");
    });
}

#[test]
fn what_others_undo_is_done_again_and_plugs_that_go_are_told() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let (red, blue) = (network.guest("red", 11), network.guest("blue", 12));
        ip(&["address", "del", "192.168.1.10/24", "dev", "br1"]);
        ip(&["link", "set", "ve-red", "nomaster"]);
        assert_eq!(network.plumber.handle_changes(), []);
        assert!(red.pings(network.config.gateway4().into()));
        assert!(red.pings(blue.plugged.address4.into()));
        ip(&["link", "del", "br1"]);
        assert_eq!(network.plumber.handle_changes(), []);
        assert!(red.pings(network.config.gateway4().into()));
        ip(&["link", "del", "ve-blue"]);
        assert_eq!(network.plumber.handle_changes(), [blue.plugged.plug]);
        assert!(network.plumber.traffic(blue.plugged.plug).is_none());
        assert!(!nft(&["list", "ruleset"]).contains("ve-blue"));
    });
}

#[test]
fn taps_for_others_come_back_whoever_deletes_them() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let red = network.guest("red", 11);
        let plugged = network.external("tap5", 12);
        let before = ip_json(&["link", "show", "tap5"]);
        let assert_back = || {
            let now = ip_json(&["link", "show", "tap5"]);
            for field in ["mtu", "master", "ifalias", "group", "linkinfo"] {
                assert_eq!(now[0][field], before[0][field], "{field}");
            }
        };
        for deleting in ["tap5", "br1"] {
            ip(&["link", "del", deleting]);
            assert_eq!(network.plumber.handle_changes(), []);
            assert_back();
        }
        // By whoever has it open, too.
        let tap = Device::attach("tap5", Layer::Frames, true).unwrap();
        tap.set_persistent(false).unwrap();
        drop(tap);
        assert_eq!(network.plumber.handle_changes(), []);
        assert_back();
        assert!(network.plumber.traffic(plugged.plug).is_some());
        assert!(red.pings(network.config.gateway4().into()));
        // A link of that name that is somebody else's is left alone, until it goes.
        ip(&["link", "del", "tap5"]);
        ip(&["link", "add", "tap5", "type", "bridge"]);
        assert_eq!(network.plumber.handle_changes(), []);
        assert_eq!(ip_json(&["link", "show", "tap5"])[0]["linkinfo"]["info_kind"], "bridge");
        ip(&["link", "del", "tap5"]);
        assert_eq!(network.plumber.handle_changes(), []);
        assert_back();
        network.plumber.remove_plugs(&[plugged.plug]);
        assert_eq!(network.plumber.handle_changes(), []);
        assert!(!ip(&["link"]).contains("tap5"));
    });
}

#[test]
fn taps_of_machines_are_ports_again_whatever_others_do() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let tap = network.machine("machine", 11);
        for undoing in [
            ["link", "set", "tap-machine", "nomaster"].as_slice(),
            &["link", "set", "tap-machine", "down"],
            &["link", "set", "tap-machine", "type", "bridge_slave", "hairpin", "off"],
            &["link", "del", "br1"],
        ] {
            ip(undoing);
            assert_eq!(network.plumber.handle_changes(), []);
            let link = &ip_json(&["link", "show", "tap-machine"])[0];
            assert_eq!(link["master"], "br1", "{undoing:?}");
            assert!(link["flags"].as_array().unwrap().contains(&"UP".into()), "{undoing:?}");
            assert_eq!(link["linkinfo"]["info_slave_data"]["hairpin"], true, "{undoing:?}");
        }
        drop(tap);
        assert_eq!(network.plumber.handle_changes(), [PlugId(11)]);
    });
}

/// The part of the next test that is killed: run again by it, in a process of its own.
const KILLED: &str = "NETYARD_TEST_KILLED";

#[test]
fn what_a_killed_process_leaves_is_taken_back_by_the_next() {
    isolate(|| {
        if std::env::var_os(KILLED).is_some() {
            let mut network = Network::open(config("lab", "br1"));
            let red = network.guest("red", 11);
            let mut service = network.service("web", &[&red]);
            service.publish = Some("0.0.0.0:9001".parse().unwrap());
            network.plumber.set_services(&[service]).unwrap();
            network.plumber.change_forwards(&[], &[forward("0.0.0.0:9000:80", &red)]).unwrap();
            println!("everything is there");
            loop {
                std::thread::park();
            }
        }
        let (_outside, _) = machine();
        let before = State::take();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "what_a_killed_process_leaves_is_taken_back_by_the_next";
        command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(KILLED, "1");
        let mut victim = Background::start(&mut command);
        victim.wait_for_line("everything is there", SOON);
        victim.signal("KILL");
        victim.wait(SOON);
        assert!(ip(&["link", "show", "br1"]).contains("br1"), "it holds on");
        ip(&["netns", "del", "red"]);
        let network = Network::open(config("lab", "br1"));
        let links = ip(&["link"]);
        assert!(!links.contains("ve-red"), "{links}");
        drop(network);
        before.assert_restored("after the next network");
    });
}
