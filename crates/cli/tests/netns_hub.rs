//! A hub and peers in namespaces of their own, joined by a network of veth pairs that plays the Internet.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use netyard_testbed::{Background, Namespace, isolate, output, peer, run, wait_for};
use serde_json::json as value;

use crate::outer::{
    HUB, Outer, PATIENCE, Talk, ip, is_reached, joined_peer, json, netyard, peers, ping, start_hub,
    start_peer, token, transfer,
};

#[test]
fn a_hub_and_two_peers_reach_each_other() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let _one = joined_peer(&outer, 1, &[]);
        let _two = joined_peer(&outer, 2, &[]);
        let (one, two) = (&outer.peers[0], &outer.peers[1]);
        for (from, to) in
            [(one, "10.1.1.1"), (&outer.hub, "10.1.1.3"), (one, "10.1.1.5"), (two, "10.1.1.3")]
        {
            ping(from, to);
        }
        for len in [1, 1399, 70_000, 20_000_000] {
            transfer(one, two, "10.1.1.5", len);
            transfer(&outer.hub, one, "10.1.1.3", len);
            transfer(two, &outer.hub, "10.1.1.1", len);
        }
        let listed = peers(&outer);
        assert_eq!(listed.len(), 2);
        assert!(listed.iter().all(|peer| peer["connected"] == true), "{listed:?}");
        let status = json(&mut netyard(&outer.hub, &["hub", "status", "--json"]));
        assert_eq!(status["connected"], 2);
        let drops = &status["drops"];
        assert_eq!((&drops["spoof"], &drops["bad_packet"]), (&0.into(), &0.into()), "{status}");
        let whole = listed[1]["to_peer"].clone();
        let (packets, bytes) =
            (whole["packets"].as_u64().unwrap(), whole["bytes"].as_u64().unwrap());
        assert!(bytes / packets > 1400, "super-packets go whole: {whole}");
    });
}

#[test]
fn offload_on_one_side_only_carries_the_same_bytes() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let _one = joined_peer(&outer, 1, &["--no-offload"]);
        let _two = joined_peer(&outer, 2, &[]);
        for len in [1, 65_536, 3_000_000] {
            transfer(&outer.peers[0], &outer.peers[1], "10.1.1.5", len);
            transfer(&outer.peers[1], &outer.peers[0], "10.1.1.3", len);
        }
    });
}

#[test]
fn without_offload_anywhere_the_same_bytes_are_carried() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &["--no-offload"]);
        let _one = joined_peer(&outer, 1, &["--no-offload"]);
        let _two = joined_peer(&outer, 2, &["--no-offload"]);
        let (one, two) = (&outer.peers[0], &outer.peers[1]);
        for len in [1, 65_536, 3_000_000] {
            transfer(one, two, "10.1.1.5", len);
            transfer(&outer.hub, one, "10.1.1.3", len);
            transfer(two, &outer.hub, "10.1.1.1", len);
        }
    });
}

#[test]
fn addresses_routes_and_mtu_are_those_of_pairs() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let _one = joined_peer(&outer, 1, &["--main-table"]);
        let one = &outer.peers[0];
        for (namespace, local, far) in
            [(&outer.hub, "10.1.1.1", "10.1.1.2"), (one, "10.1.1.3", "10.1.1.4")]
        {
            let link = &ip(namespace, &["address", "show", "tun0"])[0];
            assert_eq!((&link["mtu"], &link["txqlen"]), (&1400.into(), &100.into()), "{link}");
            let addresses = link["addr_info"].as_array().unwrap();
            let [address] = &addresses[..] else { panic!("{link}") };
            assert_eq!((&address["local"], &address["address"]), (&local.into(), &far.into()));
            let routes = ip(namespace, &["route", "show", "dev", "tun0"]);
            let routes: Vec<_> = (routes.as_array().unwrap().iter())
                .map(|route| (route["dst"].as_str().unwrap(), route["gateway"].as_str()))
                .collect();
            assert_eq!(routes.len(), 2, "{routes:?}");
            assert!(routes.contains(&("10.1.1.0/24", Some(far))), "{routes:?}");
            assert!(routes.contains(&(far, None)), "{routes:?}");
        }
        let pin = &ip(one, &["route", "show", HUB])[0];
        let way = (&pin["dst"], &pin["gateway"], &pin["dev"]);
        assert_eq!(way, (&HUB.into(), &"198.51.1.1".into(), &"eth0".into()), "{pin}");
    });
}

/// An HTTP proxy that wants to know who asks: name "bob", password "p@ss:word".
const PROXY: &str = "import base64, socket, sys, threading
s = socket.create_server((sys.argv[1], 3128))
print('listening', flush=True)
known = 'Proxy-Authorization: Basic ' + base64.b64encode(b'bob:p@ss:word').decode()
def carry(a, b):
    try:
        while piece := a.recv(1 << 16): b.sendall(piece)
    except OSError: pass
    for end in (a, b):
        try: end.shutdown(socket.SHUT_RDWR)
        except OSError: pass
def serve(c):
    head = b''
    while not head.endswith(b'\\r\\n\\r\\n'): head += c.recv(1)
    lines = head.decode().split('\\r\\n')
    if known not in lines:
        c.sendall(b'HTTP/1.1 407 Proxy Authentication Required\\r\\n\\r\\n')
        return c.close()
    host, port = lines[0].split(' ')[1].rsplit(':', 1)
    hub = socket.create_connection((host, int(port)))
    c.sendall(b'HTTP/1.1 200 Connection established\\r\\n\\r\\n')
    print('connected', host, flush=True)
    threading.Thread(target=carry, args=(c, hub)).start()
    carry(hub, c)
while True: threading.Thread(target=serve, args=(s.accept()[0],)).start()";

#[test]
fn a_proxy_leads_to_a_hub_that_nothing_else_leads_to() {
    isolate(|| {
        let outer = Outer::new(1);
        run(outer.router.command(peer("sysctl")).args(["-q", "-w", "net.ipv4.ip_forward=0"]));
        let _hub = start_hub(&outer, &[]);
        let mut proxy = outer.router.command(peer("python3"));
        let mut proxy = Background::start(proxy.args(["-c", PROXY, "198.51.1.1"]));
        proxy.wait_for_line("listening", PATIENCE);
        let join = token(&outer, &[]);
        let mut unknown = start_peer(&outer, 1, &join, &["--proxy", "http://198.51.1.1:3128"]);
        unknown.wait_for_line("407", PATIENCE);
        assert_eq!(unknown.wait(PATIENCE).code(), Some(1));
        let url = "http://bob:p%40ss%3Aword@198.51.1.1:3128";
        let mut one = start_peer(&outer, 1, &join, &["--proxy", url, "--redirect"]);
        one.wait_for_line("joined", PATIENCE);
        proxy.wait_for_line("connected 192.0.2.10", PATIENCE);
        ping(&outer.peers[0], "10.1.1.1");
        transfer(&outer.peers[0], &outer.hub, "10.1.1.1", 5_000_000);
        assert!(!one.output().contains("word"), "{}", one.output());
    });
}

#[test]
fn what_is_larger_than_the_network_takes_is_told_to_its_sender() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &["--network6", "fd00:5::/64"]);
        let _one = joined_peer(&outer, 1, &[]);
        let _two = joined_peer(&outer, 2, &[]);
        // What machines behind peers have.
        for namespace in &outer.peers {
            namespace.ip(&["link", "set", "tun0", "mtu", "9000"]);
        }
        let [one, two] = &outer.peers[..] else { panic!("there are two") };
        for (address, most) in [("10.1.1.5", 1400 - 40), ("fd00:5::5", 1400 - 60)] {
            let script = "import socket, sys
family = socket.getaddrinfo(sys.argv[1], 9000)[0][0]
s = socket.create_server((sys.argv[1], 9000), family=family)
print('listening', flush=True)
c, _ = s.accept()
print('largest', c.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), flush=True)";
            let mut server =
                Background::start(two.command(peer("python3")).args(["-c", script, address]));
            server.wait_for_line("listening", PATIENCE);
            let script = "import socket, sys; socket.create_connection((sys.argv[1], 9000))";
            run(one.command(peer("python3")).args(["-c", script, address]));
            let line = server.wait_for_line("largest", PATIENCE);
            let largest: u32 = line.strip_prefix("largest ").unwrap().parse().unwrap();
            assert!((1200..=most).contains(&largest), "{line}");

            let mut ping = one.command(peer("ping"));
            let done =
                output(ping.args(["-c", "1", "-W", "10", "-M", "do", "-s", "3000", address]));
            let text = String::from_utf8_lossy(&done.stdout).into_owned();
            assert!(!done.status.success(), "{text}");
            let way = &ip(one, &["route", "get", address])[0];
            assert_eq!(way["metrics"][0]["mtu"], 1400, "{way} {text}");
        }
        let status = json(&mut netyard(&outer.hub, &["hub", "status", "--json"]));
        assert_eq!(status["drops"]["too_big"], 2, "{status}");
    });
}

#[test]
fn single_addresses_lead_by_the_link_itself() {
    isolate(|| {
        let outer = Outer::new(2);
        let flags = ["--addressing", "single", "--network", "10.9.0.0/16", "--mtu", "9000"];
        let _hub = start_hub(&outer, &flags);
        let _one = joined_peer(&outer, 1, &[]);
        let _two = joined_peer(&outer, 2, &[]);
        let one = &outer.peers[0];
        ping(one, "10.9.0.1");
        ping(one, "10.9.0.3");
        let link = &ip(one, &["address", "show", "tun0"])[0];
        assert_eq!(link["mtu"], 9000);
        assert_eq!(
            (&link["addr_info"][0]["local"], &link["addr_info"][0]["prefixlen"]),
            (&"10.9.0.2".into(), &32.into())
        );
        let routes = ip(&outer.hub, &["route", "show", "dev", "tun0"]);
        assert_eq!(routes.as_array().unwrap().len(), 1, "{routes}");
        assert_eq!(routes[0]["dst"], "10.9.0.0/16");
    });
}

#[test]
fn ipv6_goes_beside_ipv4() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &["--network6", "fd00:5::/64"]);
        let mut one = start_peer(&outer, 1, &token(&outer, &[]), &["--redirect"]);
        let line = one.wait_for_line("joined", PATIENCE);
        assert!(line.contains("10.1.1.3 and fd00:5::3"), "{line}");
        let _two = joined_peer(&outer, 2, &[]);
        let (one, two) = (&outer.peers[0], &outer.peers[1]);
        ping(one, "fd00:5::1");
        ping(one, "fd00:5::5");
        ping(&outer.hub, "fd00:5::3");
        transfer(one, two, "fd00:5::5", 5_000_000);
        transfer(two, one, "10.1.1.3", 5_000_000);
        let way = &ip(one, &["route", "get", "2001:db8::7"])[0];
        assert_eq!((&way["dev"], &way["prefsrc"]), (&"tun0".into(), &"fd00:5::3".into()));
        let routes = ip(two, &["-6", "route", "show", "dev", "tun0", "table", "all"]);
        assert!(routes.as_array().unwrap().iter().any(|route| route["dst"] == "fd00:5::/64"));
    });
}

#[test]
fn everything_goes_through_the_hub_on_request_and_comes_back() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let one = &outer.peers[0];
        let before = ip(one, &["route"]);
        let mut joined = joined_peer(&outer, 1, &["--main-table", "--redirect"]);
        let device_to = |address: &str| ip(one, &["route", "get", address])[0]["dev"].clone();
        assert_eq!(device_to("203.0.113.7"), "tun0");
        assert_eq!(device_to("9.9.9.9"), "tun0");
        assert_eq!(device_to(HUB), "eth0");
        ping(one, "10.1.1.1");
        joined.signal("TERM");
        assert!(joined.wait(PATIENCE).success(), "{}", joined.output());
        assert_eq!(ip(one, &["route"]), before);
    });
}

#[test]
fn a_peer_with_two_ways_out_keeps_one_to_the_hub() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let one = &outer.peers[0];
        let second =
            ["link", "add", "to-p1b", "type", "veth", "peer", "name", "eth1", "netns", "p1"];
        outer.router.ip(&second);
        outer.router.ip(&["address", "add", "198.51.9.1/24", "dev", "to-p1b"]);
        outer.router.ip(&["link", "set", "to-p1b", "up"]);
        one.ip(&["address", "add", "198.51.9.10/24", "dev", "eth1"]);
        one.ip(&["link", "set", "eth1", "up"]);
        let hops = ["nexthop", "via", "198.51.1.1", "nexthop", "via", "198.51.9.1"];
        one.ip(&[&["route", "replace", "default"], &hops[..]].concat());
        let before = ip(one, &["route"]);
        let mut joined = joined_peer(&outer, 1, &["--main-table", "--redirect"]);
        let device_to = |address: &str| ip(one, &["route", "get", address])[0]["dev"].clone();
        assert_eq!(device_to("203.0.113.7"), "tun0");
        let way = device_to(HUB);
        assert!(way == "eth0" || way == "eth1", "{way}");
        ping(one, "10.1.1.1");
        joined.signal("TERM");
        assert!(joined.wait(PATIENCE).success(), "{}", joined.output());
        assert_eq!(ip(one, &["route"]), before);
        // One that is dead is not taken, whichever it is.
        for (dead, alive) in [("to-p1", "eth1"), ("to-p1b", "eth0")] {
            outer.router.ip(&["link", "set", dead, "down"]);
            let mut joined = joined_peer(&outer, 1, &["--main-table", "--redirect"]);
            assert_eq!(device_to(HUB), alive);
            ping(one, "10.1.1.1");
            joined.signal("TERM");
            assert!(joined.wait(PATIENCE).success(), "{}", joined.output());
            outer.router.ip(&["link", "set", dead, "up"]);
        }
    });
}

#[test]
fn what_a_killed_peer_left_is_undone_by_the_next_and_its_address_stays() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let one = &outer.peers[0];
        let before = ip(one, &["route"]);
        let join = token(&outer, &[]);
        let mut first = start_peer(&outer, 1, &join, &["--main-table"]);
        first.wait_for_line("joined", PATIENCE);
        first.signal("KILL");
        first.wait(PATIENCE);
        assert_ne!(ip(one, &["route"]), before, "the way to the hub is left");
        let _other = joined_peer(&outer, 2, &[]);
        // The token is used up; the node is known by its key.
        let mut second = start_peer(&outer, 1, &join, &[]);
        let line = second.wait_for_line("joined", PATIENCE);
        assert!(line.contains("10.1.1.3 "), "{line}");
        ping(one, "10.1.1.5");
        second.signal("INT");
        assert!(second.wait(PATIENCE).success());
        assert_eq!(ip(one, &["route"]), before);
    });
}

#[test]
fn a_hub_that_comes_back_finds_its_peers_and_their_addresses() {
    isolate(|| {
        let outer = Outer::new(2);
        let mut hub = start_hub(&outer, &[]);
        let _one = joined_peer(&outer, 1, &[]);
        let _two = joined_peer(&outer, 2, &[]);
        let one = &outer.peers[0];
        let index = ip(one, &["link", "show", "tun0"])[0]["ifindex"].clone();
        let talks = [("10.1.1.5", &outer.peers[1]), ("10.1.1.1", &outer.hub)]
            .map(|(address, to)| Talk::start(one, to, address));
        for signal in ["KILL", "TERM"] {
            hub.signal(signal);
            hub.wait(PATIENCE);
            hub = start_hub(&outer, &[]);
            wait_for("both peers", PATIENCE, || {
                let all = peers(&outer);
                all.iter().all(|peer| peer["connected"] == true).then_some(())
            });
            is_reached(one, "10.1.1.5");
            talks.iter().for_each(Talk::goes_on);
        }
        assert_eq!(ip(one, &["link", "show", "tun0"])[0]["ifindex"], index, "the device stayed");
    });
}

/// Removes a machine's device, and waits for another one that has the routes to these networks.
fn remove_device(namespace: &Namespace, networks: &[&str]) {
    let index = || {
        let links = ip(namespace, &["link"]);
        let tun = links.as_array().unwrap().iter().find(|link| link["ifname"] == "tun0").cloned();
        tun.map(|link| link["ifindex"].clone())
    };
    let before = index();
    namespace.ip(&["link", "del", "tun0"]);
    wait_for("another device", PATIENCE, || {
        let is_led = |network: &&str| {
            let routes = ip(namespace, &["route", "show", "table", "all", network]);
            routes[0]["dev"] == "tun0"
        };
        (index().is_some_and(|now| Some(now) != before) && networks.iter().all(is_led))
            .then_some(())
    });
}

#[test]
fn a_device_that_somebody_removes_comes_back() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let _one = joined_peer(&outer, 1, &[]);
        let one = &outer.peers[0];
        let talk = Talk::start(one, &outer.hub, "10.1.1.1");
        remove_device(one, &["10.1.1.0/24"]);
        is_reached(one, "10.1.1.1");
        talk.goes_on();
    });
}

#[test]
fn a_hubs_device_that_somebody_removes_comes_back_and_all_sessions_stay() {
    isolate(|| {
        let outer = Outer::new(2);
        let flags = ["--network6", "fd00:5::/64", "--exit"];
        let mut hub = start_hub(&outer, &flags);
        let _one = joined_peer(&outer, 1, &[]);
        let _two = joined_peer(&outer, 2, &["--subnet", "192.168.7.0/24"]);
        run(&mut netyard(&outer.hub, &["peers", "accept", "peer-2", "192.168.7.0/24"]));
        let one = &outer.peers[0];
        let talk = Talk::start(one, &outer.hub, "10.1.1.1");
        let rules = || run(outer.hub.command(peer("nft")).args(["list", "ruleset"]));
        let logins = || peers(&outer).iter().map(|peer| peer["logins"].clone()).collect::<Vec<_>>();
        let before = (rules(), logins());
        for _ in 0..2 {
            remove_device(&outer.hub, &["10.1.1.0/24", "fd00:5::/64", "192.168.7.0/24"]);
            ping(one, "10.1.1.1");
            ping(&outer.hub, "fd00:5::5");
            ping(one, "10.1.1.5");
            talk.goes_on();
        }
        assert_eq!((rules(), logins()), before);
        let status = json(&mut netyard(&outer.hub, &["hub", "status", "--json"]));
        assert_eq!((&status["device"], &status["connected"]), (&"tun0".into(), &2.into()));
        // It answers for names as before, and all of it is undone at the end.
        std::fs::write("/etc/resolv.conf", "nameserver 10.1.1.1\n").unwrap();
        let names = run(one.command(peer("getent")).args(["ahostsv4", "peer-2.netyard.internal"]));
        assert!(names.contains("10.1.1.5"), "{names}");
        hub.signal("TERM");
        assert!(hub.wait(PATIENCE).success(), "{}", hub.output());
        assert_eq!(rules(), "");
        assert_eq!(
            ip(&outer.hub, &["route", "show", "table", "all", "192.168.7.0/24"]),
            value!([])
        );
    });
}

#[test]
fn a_revoked_peer_is_out_at_once_and_for_good() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let join = token(&outer, &["--reusable"]);
        let mut one = start_peer(&outer, 1, &join, &[]);
        one.wait_for_line("joined", PATIENCE);
        let mut two = start_peer(&outer, 2, &join, &[]);
        two.wait_for_line("joined", PATIENCE);
        run(&mut netyard(&outer.hub, &["peers", "revoke", "peer-1"]));
        let ended = one.wait(PATIENCE);
        assert_eq!(ended.code(), Some(1), "{}", one.output());
        assert!(one.output().contains("revoked"), "{}", one.output());
        let links = run(outer.peers[0].command(peer("ip")).args(["-o", "link"]));
        assert!(!links.contains("tun0"), "{links}");
        // A good token does not help a key that is revoked.
        let mut again = start_peer(&outer, 1, &join, &[]);
        assert_eq!(again.wait(PATIENCE).code(), Some(1));
        let names: Vec<_> = peers(&outer).iter().map(|peer| peer["name"].clone()).collect();
        assert_eq!(names, ["peer-2"]);
        ping(&outer.hub, "10.1.1.5");
        let unknown = output(&mut netyard(&outer.hub, &["peers", "revoke", "peer-1"]));
        assert_eq!(unknown.status.code(), Some(1));
    });
}

#[test]
fn a_join_string_is_read_from_a_file_and_from_standard_input() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        std::fs::write("/tmp/hub.join", token(&outer, &[]) + "\n").unwrap();
        let mut one = start_peer(&outer, 1, "file:/tmp/hub.join", &[]);
        one.wait_for_line("joined", PATIENCE);
        let said = std::fs::read(format!("/proc/{}/cmdline", one.id())).unwrap();
        assert!(!String::from_utf8_lossy(&said).contains("netyard://"));
        let join = |words: &str| {
            let mut shell = outer.peers[1].command(peer("sh"));
            let netyard = netyard(&outer.peers[1], &[]);
            let program = netyard.get_args().last().unwrap();
            shell.args(["-c", words]).env("NETYARD", program).env("JOIN", token(&outer, &[]));
            shell
        };
        let piped = "echo $JOIN | exec $NETYARD join --state /tmp/peer-2-state -";
        let mut two = Background::start(&mut join(piped));
        two.wait_for_line("joined", PATIENCE);
        ping(&outer.peers[0], "10.1.1.5");
        let done = output(&mut join("echo ${JOIN%???????} | $NETYARD join -"));
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.code() == Some(2) && error.contains("cut off"), "{error}");
        let done = output(&mut join("$NETYARD join file:/tmp/nobodys.join"));
        assert_eq!(done.status.code(), Some(1), "{done:?}");
    });
}

/// The text with another first character.
fn other_start(text: &str) -> String {
    format!("{}{}", if text.starts_with('A') { 'B' } else { 'A' }, &text[1..])
}

#[test]
fn bad_join_strings_are_refused_with_the_reason() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let refused = |join: &str, word: &str| {
            let done =
                output(&mut netyard(&outer.peers[1], &["join", "--state", "/tmp/nobody", join]));
            let error = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(!done.status.success() && error.contains(word), "{join}: {error}");
            let secret = join.split(['.', '@']).nth(1).unwrap_or_default();
            assert!(secret.len() < 22 || !error.contains(secret), "a secret is told: {error}");
        };
        let used = token(&outer, &[]);
        let mut one = start_peer(&outer, 1, &used, &[]);
        one.wait_for_line("joined", PATIENCE);
        refused(&used, "used up");
        refused(&token(&outer, &["--expires", "0s"]), "expired");
        let revoked = token(&outer, &[]);
        let id =
            revoked.strip_prefix("netyard://").and_then(|rest| rest.split_once('.')).unwrap().0;
        run(&mut netyard(&outer.hub, &["token", "revoke", id]));
        refused(&revoked, "revoked");
        let good = token(&outer, &[]);
        let (front, back) = good.split_once('@').unwrap();
        let (name, secret) = front.split_once('.').unwrap();
        let other: String = secret.chars().rev().collect();
        refused(&format!("{name}.{}@{back}", other_start(secret)), "no such token");
        refused(&format!("{name}.{}@{back}", &other[1..]), "cut off");
        // Another hub's authority: nothing is told to whoever answers there.
        let (hub, pin) = good.split_once("sha256:").unwrap();
        refused(&format!("{hub}sha256:{}", other_start(pin)), "another than the one");
        assert_eq!(peers(&outer).len(), 1);
    });
}

#[test]
fn a_peer_that_plays_another_is_not_heard() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let _one = joined_peer(&outer, 1, &[]);
        let _two = joined_peer(&outer, 2, &[]);
        let one = &outer.peers[0];
        one.ip(&["address", "add", "10.1.1.9/32", "dev", "tun0"]);
        let mut false_ping = one.command(peer("ping"));
        let done = output(
            false_ping.args(["-c", "2", "-i", "0.05", "-W", "1", "-I", "10.1.1.9", "10.1.1.5"]),
        );
        assert!(!done.status.success());
        wait_for("both to be counted", PATIENCE, || {
            let status = json(&mut netyard(&outer.hub, &["hub", "status", "--json"]));
            (status["drops"]["spoof"] == 2).then_some(())
        });
        ping(one, "10.1.1.5");
    });
}

#[test]
fn isolated_peers_reach_the_hub_alone() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &["--isolate"]);
        let _one = joined_peer(&outer, 1, &[]);
        let _two = joined_peer(&outer, 2, &[]);
        let one = &outer.peers[0];
        ping(one, "10.1.1.1");
        let done = output(one.command(peer("ping")).args(["-c", "1", "-W", "1", "10.1.1.5"]));
        assert!(!done.status.success());
        wait_for("it to be counted", PATIENCE, || {
            let status = json(&mut netyard(&outer.hub, &["hub", "status", "--json"]));
            (status["drops"]["isolated"] == 1).then_some(())
        });
    });
}
