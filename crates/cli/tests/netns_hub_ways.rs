//! How peers find their hub: by a name that nobody may answer for, and at addresses of which not all lead there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use std::fs;
use std::process::Command;

use netyard_testbed::{Background, isolate, peer, run};

use crate::outer::{HUB, Outer, PATIENCE, netyard, ping, start_hub, start_peer, token};

const NAME: &str = "hub.example.net";

/// Where the first peer has met its hub, as it remembers it.
const REMEMBERED: &str = "/tmp/peer-1-state/hub-addresses";

fn remember(hosts: &[String]) {
    fs::create_dir_all("/tmp/peer-1-state").unwrap();
    let lines: String = hosts.iter().map(|host| format!("{host}:6441\n")).collect();
    fs::write(REMEMBERED, lines).unwrap();
}

/// A hub that is known by its name.
fn named_hub(outer: &Outer) -> Background {
    start_hub(outer, &["--advertise", NAME])
}

#[test]
fn a_hub_is_found_by_its_name_and_remembered() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = named_hub(&outer);
        fs::write("/tmp/hosts", format!("127.0.0.1 localhost\n{HUB} {NAME}\n")).unwrap();
        run(Command::new(peer("mount")).args(["--bind", "/tmp/hosts", "/etc/hosts"]));
        let mut one = start_peer(&outer, 1, &token(&outer, &[]), &[]);
        one.wait_for_line("joined", PATIENCE);
        assert_eq!(fs::read_to_string(REMEMBERED).unwrap(), format!("{HUB}:6441\n"));
    });
}

#[test]
fn a_resolver_that_is_silent_delays_nobody_who_knows_where_the_hub_was() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = named_hub(&outer);
        let script = "import signal, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('198.51.1.1', 53))
print('listening', flush=True)
s.recvfrom(1500)
print('asked', flush=True)
signal.pause()";
        let mut silent = outer.router.command(peer("python3"));
        let mut silent = Background::start(silent.args(["-c", script]));
        silent.wait_for_line("listening", PATIENCE);
        fs::write("/etc/resolv.conf", "nameserver 198.51.1.1\noptions timeout:30 attempts:1\n")
            .unwrap();
        remember(&[HUB.to_owned()]);
        let mut one = start_peer(&outer, 1, &token(&outer, &[]), &["--redirect"]);
        one.wait_for_line("joined", PATIENCE);
        silent.wait_for_line("asked", PATIENCE);
        // The next question goes into the tunnel.
        run(&mut netyard(&outer.hub, &["peers", "pin", "peer-1", "10.1.1.77"]));
        one.wait_for_line("10.1.1.77", PATIENCE);
        ping(&outer.peers[0], "10.1.1.1");
        let said = one.output();
        assert!(!said.contains("its name is not known"), "it has waited for the name: {said}");
        // Nor does it wait for it when it is told to stop.
        one.signal("TERM");
        assert!(one.wait(PATIENCE).success(), "{}", one.output());
    });
}

#[test]
fn addresses_where_the_hub_is_not_keep_nobody_from_those_where_it_is() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = named_hub(&outer);
        // What is sent there vanishes. One after the other they would take longer than anybody waits here.
        outer.router.ip(&["route", "add", "blackhole", "203.0.113.0/24"]);
        let mut hosts: Vec<String> = (1..=30).map(|host| format!("203.0.113.{host}")).collect();
        // And somebody who takes connections and speaks no TLS.
        let script = "import socket
s = socket.create_server(('192.0.2.1', 6441))
print('listening', flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b'220 good day\\r\\n')
    print('came', flush=True)";
        let mut other = outer.router.command(peer("python3"));
        let mut other = Background::start(other.args(["-c", script]));
        other.wait_for_line("listening", PATIENCE);
        hosts.insert(0, "192.0.2.1".into());
        hosts.push(HUB.into());
        remember(&hosts);
        let mut one = start_peer(&outer, 1, &token(&outer, &[]), &[]);
        one.wait_for_line("joined", PATIENCE);
        other.wait_for_line("came", PATIENCE);
        ping(&outer.peers[0], "10.1.1.1");
    });
}

#[test]
fn in_the_main_table_addresses_are_tried_one_after_the_other() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = named_hub(&outer);
        remember(&["192.0.2.1".into(), HUB.into()]);
        let mut one = start_peer(&outer, 1, &token(&outer, &[]), &["--main-table", "--redirect"]);
        one.wait_for_line("joined", PATIENCE);
        ping(&outer.peers[0], "10.1.1.1");
    });
}
