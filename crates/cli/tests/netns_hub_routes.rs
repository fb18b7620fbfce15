//! Where a peer's traffic goes: its own routing table, and the kill switch.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use std::path::Path;

use netyard_testbed::{Background, Namespace, isolate, output, peer, run, wait_for};
use serde_json::Value;

use crate::outer::{
    HUB, Outer, PATIENCE, ip, joined_peer, netyard, peers, ping, start_hub, start_peer, token,
};

/// Everything that decides where packets go.
fn routing(namespace: &Namespace) -> Vec<Value> {
    let kinds = [&["rule"][..], &["-6", "rule"], &["route"], &["-6", "route"]];
    kinds.map(|kind| ip(namespace, kind)).to_vec()
}

fn device_to(namespace: &Namespace, address: &str) -> Value {
    ip(namespace, &["route", "get", address])[0]["dev"].clone()
}

/// The mark of the tunnel in a namespace, as its rules say.
fn mark(namespace: &Namespace) -> String {
    let rules = ip(namespace, &["rule", "show", "priority", "6441"]);
    rules[0]["fwmark"].as_str().unwrap().to_owned()
}

#[test]
fn the_network_has_a_table_of_its_own_and_the_main_one_stays() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &["--network6", "fd00:5::/64"]);
        let one = &outer.peers[0];
        // Wider than the network, and not in its way.
        one.ip(&["route", "add", "10.0.0.0/8", "via", "198.51.1.1"]);
        let before = routing(one);
        let mut joined = joined_peer(&outer, 1, &[]);
        ping(one, "10.1.1.1");
        ping(one, "fd00:5::1");
        assert_eq!(device_to(one, "10.1.1.77"), "tun0");
        assert_eq!(device_to(one, "10.2.1.77"), "eth0");
        assert_eq!(device_to(one, "203.0.113.7"), "eth0");
        let main = ip(one, &["route"]);
        let ours = main.as_array().unwrap().iter().filter(|route| route["protocol"] != "kernel");
        let old = before[2].as_array().unwrap().iter();
        assert_eq!(
            ours.collect::<Vec<_>>(),
            old.filter(|route| route["protocol"] != "kernel").collect::<Vec<_>>(),
        );
        joined.signal("TERM");
        assert!(joined.wait(PATIENCE).success(), "{}", joined.output());
        assert_eq!(routing(one), before);
    });
}

#[test]
fn everything_but_what_is_near_goes_through_the_hub_and_the_tunnel_beside_it() {
    isolate(|| {
        let outer = Outer::new(1);
        let mut hub = start_hub(&outer, &[]);
        let one = &outer.peers[0];
        one.ip(&["route", "add", "172.20.0.0/16", "via", "198.51.1.1"]);
        one.ip(&["address", "add", "2001:db8:1::10/64", "dev", "eth0", "nodad"]);
        one.ip(&["-6", "route", "add", "default", "via", "2001:db8:1::1"]);
        // The strictest form of the kernel's reverse path check.
        run(one.command(peer("sysctl")).args(["-q", "-w", "net.ipv4.conf.eth0.rp_filter=1"]));
        let before = routing(one);
        let valid_mark = || {
            let mut sysctl = one.command(peer("sysctl"));
            run(sysctl.args(["-n", "net.ipv4.conf.all.src_valid_mark"]))
        };
        let valid_before = valid_mark();
        let joined = joined_peer(&outer, 1, &["--redirect"]);
        for through in ["203.0.113.7", "9.9.9.9", HUB] {
            assert_eq!(device_to(one, through), "tun0", "{through}");
        }
        for near in ["198.51.1.1", "172.20.1.1", "2001:db8:1::1"] {
            assert_eq!(device_to(one, near), "eth0", "{near}");
        }
        let mark = mark(one);
        let marked = ip(one, &["route", "get", HUB, "mark", &mark]);
        assert_eq!(marked[0]["dev"], "eth0", "{marked}");
        let none = output(one.command(peer("ip")).args(["route", "get", "2001:db8:9::1"]));
        assert!(!none.status.success(), "IPv6 goes beside the tunnel: {none:?}");
        ping(one, "10.1.1.1");
        // Another way out, and a connection that begins while everything is redirected.
        one.ip(&["route", "replace", "default", "via", "198.51.1.1", "metric", "7"]);
        hub.signal("KILL");
        hub.wait(PATIENCE);
        let _hub = start_hub(&outer, &[]);
        wait_for("the peer", PATIENCE, || (peers(&outer)[0]["connected"] == true).then_some(()));
        ping(one, "10.1.1.1");
        one.ip(&["route", "del", "default", "metric", "7"]);
        drop(joined);
        assert_ne!(routing(one), before, "a killed peer's rules are left");
        let mut next = start_peer(&outer, 1, &token(&outer, &[]), &["--redirect"]);
        next.wait_for_line("joined", PATIENCE);
        ping(one, "10.1.1.1");
        next.signal("INT");
        assert!(next.wait(PATIENCE).success(), "{}", next.output());
        assert_eq!(routing(one), before);
        assert_eq!(valid_mark(), valid_before);
        assert_eq!(run(one.command(peer("nft")).args(["list", "ruleset"])), "");
    });
}

#[test]
fn rules_and_routes_that_somebody_removes_come_back() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let one = &outer.peers[0];
        let _joined = joined_peer(&outer, 1, &["--redirect"]);
        let table = mark(one);
        let whole = || {
            let rules = ip(one, &["rule"]);
            (rules.as_array().unwrap().len(), ip(one, &["route", "show", "table", &table]))
        };
        let before = whole();
        one.ip(&["rule", "del", "priority", "6443"]);
        one.ip(&["route", "flush", "table", &table]);
        wait_for("rules and routes", PATIENCE, || (whole() == before).then_some(()));
        ping(one, "10.1.1.1");
    });
}

/// Sends all the time, by every way that programs may think of, and says how often it did.
const TALK: &str = "import itertools, socket, time
TARGETS = [('203.0.113.7', 53), ('198.51.1.53', 53), ('198.51.1.1', 53), ('198.51.1.1', 853), ('192.0.2.10', 53), ('192.0.2.10', 6442), ('10.99.0.1', 9)]
def udp(family, target, device=None):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        if device: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        s.sendto(b'x' * 64, target)
def tcp(family, target):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.setblocking(False)
        s.connect_ex(target)
def ping(target):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
        s.sendto(bytes([8, 0, 0xf7, 0xff, 0, 0, 0, 0]), (target, 0))
for turn in itertools.count(1):
    for what in ([lambda t=t: udp(socket.AF_INET, t) for t in TARGETS]
                 + [lambda t=t: tcp(socket.AF_INET, t) for t in TARGETS]
                 + [lambda: udp(socket.AF_INET, ('203.0.113.7', 53), b'eth0'),
                    lambda: ping('203.0.113.7'),
                    lambda: udp(socket.AF_INET6, ('2001:db8:9::9', 53)),
                    lambda: udp(socket.AF_INET6, ('2001:db8:1::1', 53)),
                    lambda: tcp(socket.AF_INET6, ('2001:db8:9::9', 443))]):
        try: what()
        except OSError: pass
    print('turn', turn, flush=True)
    time.sleep(0.005)";

/// Looks up another name each time, as programs do, and says so.
const LOOK_UP: &str = "import itertools, socket, time
for turn in itertools.count(1):
    try: socket.getaddrinfo(f'host-{turn}.example', None)
    except OSError: pass
    print('turn', turn, flush=True)
    time.sleep(0.005)";

/// Says what leaves by the uplink, but for the lane to the hub, ARP and neighbour discovery.
const CAPTURE: &str = "import socket
# Without a protocol it hears nothing: not what passes other links before it is bound.
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
s.bind(('eth0', 3))
print('listening', flush=True)
OUTGOING, ARP, IPV4, IPV6 = 4, 0x0806, 0x0800, 0x86dd
while True:
    p, (_, protocol, kind, *_) = s.recvfrom(65536)
    if kind != OUTGOING or protocol == ARP: continue
    if protocol == IPV4 and p[9] in (6, 17) and p[16:20] == bytes([192, 0, 2, 10]) and p[22:24] == (6441).to_bytes(2, 'big'): continue
    if protocol == IPV6 and p[6] == 58 and p[40] in (133, 135, 136): continue
    print('left', hex(protocol), p[:48].hex(), flush=True)";

/// The machine's resolver, in a network that is allowed.
const RESOLVER: &str = "nameserver 198.51.1.1\n";

/// The packet that is let out to see that the capture has seen everything before it.
const CONTROL: &str = "198.51.1.1";

fn python(namespace: &Namespace, script: &str) -> Background {
    Background::start(namespace.command(peer("python3")).args(["-c", script]))
}

/// Waits until everything has been tried again, several times.
fn several_turns(talk: &Background) {
    turns(talk, 20);
}

fn turns(talk: &Background, count: usize) {
    let turn = || talk.output().lines().filter(|line| line.starts_with("turn")).count();
    let enough = turn() + count;
    wait_for("more turns", PATIENCE, || (turn() >= enough).then_some(()));
}

#[test]
fn nothing_leaves_beside_the_tunnel_whatever_happens() {
    isolate(|| {
        let outer = Outer::new(1);
        let mut hub = start_hub(&outer, &[]);
        let one = &outer.peers[0];
        let talk = python(one, TALK);
        let mut before = python(one, CAPTURE);
        before.wait_for_line("left", PATIENCE);
        drop(before);
        let join = token(&outer, &[]);
        // A resolver that may be reached, and is not asked for all that.
        std::fs::write("/etc/resolv.conf", RESOLVER).unwrap();
        let asks_before = || std::fs::read_to_string("/etc/resolv.conf").unwrap() == RESOLVER;
        let flags = ["--kill-switch", "--allow", "198.51.1.1/32"];
        let mut joined = start_peer(&outer, 1, &join, &flags);
        joined.wait_for_line("joined", PATIENCE);
        let mut capture = python(one, CAPTURE);
        capture.wait_for_line("listening", PATIENCE);
        several_turns(&talk);
        ping(one, "10.1.1.1");
        // Names are asked of the hub; somebody changes that, and it is changed back.
        assert!(!asks_before());
        let names = python(one, LOOK_UP);
        turns(&names, 5);
        std::fs::write("/etc/resolv.conf", RESOLVER).unwrap();
        turns(&names, 5);
        wait_for("the resolver", PATIENCE, || (!asks_before()).then_some(()));
        turns(&names, 5);
        // The hub dies, and is away for a while.
        hub.signal("KILL");
        hub.wait(PATIENCE);
        joined.wait_for_line("the lane to the hub has ended", PATIENCE);
        several_turns(&talk);
        turns(&names, 5);
        let hub = start_hub(&outer, &[]);
        let is_back = || (peers(&outer)[0]["connected"] == true).then_some(());
        wait_for("the peer", PATIENCE, is_back);
        // The hub hangs.
        hub.signal("STOP");
        several_turns(&talk);
        hub.signal("CONT");
        // IPv6 appears, another default route, another resolver.
        one.ip(&["address", "add", "2001:db8:1::10/64", "dev", "eth0", "nodad"]);
        one.ip(&["neighbor", "add", "2001:db8:1::1", "lladdr", "02:00:00:00:00:01", "dev", "eth0"]);
        one.ip(&["-6", "route", "add", "default", "via", "2001:db8:1::1"]);
        one.ip(&["route", "replace", "default", "via", "198.51.1.1", "metric", "7"]);
        several_turns(&talk);
        // Somebody removes rules, firewall and device.
        run(one.command(peer("nft")).args(["flush", "ruleset"]));
        one.ip(&["rule", "flush"]);
        one.ip(&["rule", "add", "priority", "32766", "table", "main"]);
        several_turns(&talk);
        one.ip(&["link", "del", "tun0"]);
        several_turns(&talk);
        // The peer crashes, in every state of the next start.
        joined.signal("KILL");
        joined.wait(PATIENCE);
        several_turns(&talk);
        turns(&names, 5);
        let mut joined = start_peer(&outer, 1, &join, &flags);
        joined.wait_for_line("joined", PATIENCE);
        several_turns(&talk);
        ping(one, "10.1.1.1");
        // It is refused for good.
        run(&mut netyard(&outer.hub, &["peers", "revoke", "peer-1"]));
        assert_eq!(joined.wait(PATIENCE).code(), Some(1), "{}", joined.output());
        assert!(joined.output().contains("the kill switch stays"), "{}", joined.output());
        several_turns(&talk);
        // All that has left by now has been seen when this has.
        run(one.command(peer("ping")).args(["-c", "1", "-W", "10", CONTROL]));
        let address = "c6330101";
        capture.wait_for_line(address, PATIENCE);
        let seen = capture.output();
        let leaked: Vec<_> = seen.lines().filter(|line| line.starts_with("left")).collect();
        assert_eq!(leaked.len(), 1, "{seen}");
        // It ends when somebody says so.
        assert!(asks_before());
        let mut undo = netyard(one, &["join", "--undo", "--state", "/tmp/peer-1-state", &join]);
        run(&mut undo);
        wait_for("a packet that leaves", PATIENCE, || {
            (capture.output().lines().count() > seen.lines().count()).then_some(())
        });
        assert_eq!(run(one.command(peer("nft")).args(["list", "ruleset"])), "");
    });
}

#[test]
fn a_kill_switch_ends_with_a_peer_that_is_told_to_stop() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let one = &outer.peers[0];
        let before = routing(one);
        let mut joined = joined_peer(&outer, 1, &["--kill-switch"]);
        let out = || output(one.command(peer("ping")).args(["-c", "1", "-W", "1", "198.51.1.1"]));
        assert!(!out().status.success());
        ping(one, "10.1.1.1");
        joined.signal("TERM");
        assert!(joined.wait(PATIENCE).success(), "{}", joined.output());
        ping(one, "198.51.1.1");
        assert_eq!(run(one.command(peer("nft")).args(["list", "ruleset"])), "");
        assert_eq!(routing(one), before);
        let settings = Path::new("/run/netyard/.settings.json");
        assert!(!settings.exists(), "a setting is left");
    });
}
