//! What a hub and peers keep on their machines while they run, and what they leave when they are killed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use netyard_testbed::{Background, Namespace, isolate, output, peer, run, wait_for};

use crate::outer::{
    Outer, PATIENCE, ip, is_reached, joined_peer, json, netyard, ping, start_hub, start_peer, token,
};

const FORWARDING: &str = "net.ipv4.ip_forward";

fn sysctl(namespace: &Namespace, words: &[&str]) -> String {
    run(namespace.command(peer("sysctl")).arg("-n").args(words)).trim().to_owned()
}

fn ruleset(namespace: &Namespace) -> String {
    run(namespace.command(peer("nft")).args(["list", "ruleset"]))
}

fn undo(outer: &Outer) -> (bool, String) {
    let words = ["hub", "--undo", "--state", "/tmp/hub-state"];
    let done = output(&mut netyard(&outer.hub, &words));
    let said = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn what_a_killed_exit_leaves_goes_with_the_next_one_or_on_request() {
    isolate(|| {
        let outer = Outer::new(1);
        sysctl(&outer.hub, &["-w", &format!("{FORWARDING}=0")]);
        let add = ["hub", "network", "add", "lab", "10.2.0.0/24", "--exit"];
        let is_as_new = || {
            assert_eq!(sysctl(&outer.hub, &[FORWARDING]), "0");
            assert_eq!(ruleset(&outer.hub), "");
        };
        let mut hub = start_hub(&outer, &["--exit"]);
        run(&mut netyard(&outer.hub, &add));
        let rules = ruleset(&outer.hub);
        assert_eq!(rules.matches("masquerade").count(), 2, "{rules}");
        let (done, said) = undo(&outer);
        assert!(!done && said.contains("another process uses it"), "{said}");
        hub.signal("KILL");
        hub.wait(PATIENCE);
        assert_eq!(sysctl(&outer.hub, &[FORWARDING]), "1");
        assert_eq!(ruleset(&outer.hub), rules);
        // The next start makes the same once more, and takes it away at the end.
        let mut hub = start_hub(&outer, &["--exit"]);
        assert_eq!(ruleset(&outer.hub), rules);
        hub.signal("TERM");
        assert!(hub.wait(PATIENCE).success(), "{}", hub.output());
        is_as_new();
        let mut hub = start_hub(&outer, &["--exit"]);
        hub.signal("KILL");
        hub.wait(PATIENCE);
        assert_eq!(sysctl(&outer.hub, &[FORWARDING]), "1");
        let (done, said) = undo(&outer);
        assert!(done && said.contains("nothing of the hub hub is left"), "{said}");
        is_as_new();
        let again = undo(&outer);
        assert!(again.0, "{}", again.1);
    });
}

#[test]
fn translation_that_somebody_flushes_comes_back() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &["--exit"]);
        let _one = joined_peer(&outer, 1, &["--redirect"]);
        let _two = joined_peer(&outer, 2, &["--subnet", "192.168.7.0/24"]);
        let [one, two] = &outer.peers[..] else { panic!("there are two") };
        ping(one, "198.51.2.10");
        for namespace in [&outer.hub, two] {
            let before = ruleset(namespace);
            assert!(before.contains("masquerade"), "{before}");
            run(namespace.command(peer("nft")).args(["flush", "ruleset"]));
            sysctl(namespace, &["-w", &format!("{FORWARDING}=0")]);
            wait_for("the table and the setting", PATIENCE, || {
                let whole = (ruleset(namespace), sysctl(namespace, &[FORWARDING]));
                (whole == (before.clone(), "1".into())).then_some(())
            });
        }
        is_reached(one, "198.51.2.10");
    });
}

#[test]
fn a_device_that_somebody_renames_or_switches_off_is_made_right() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &["--network6", "fd00:5::/64"]);
        let _one = joined_peer(&outer, 1, &[]);
        let _two = joined_peer(&outer, 2, &["--subnet", "192.168.7.0/24"]);
        run(&mut netyard(&outer.hub, &["peers", "accept", "peer-2", "192.168.7.0/24"]));
        let one = &outer.peers[0];
        for namespace in [one, &outer.hub] {
            let whole = || {
                let link = ip(namespace, &["address", "show"]);
                let tun = link.as_array()?.iter().find(|link| link["ifname"] == "tun0")?.clone();
                let routes = ip(namespace, &["route", "show", "table", "all", "dev", "tun0"]);
                let routes6 =
                    ip(namespace, &["-6", "route", "show", "table", "all", "dev", "tun0"]);
                let flags = tun["flags"].as_array()?.contains(&"UP".into());
                Some((tun["ifindex"].clone(), flags, tun["addr_info"].clone(), routes, routes6))
            };
            let before = wait_for("the subnet", PATIENCE, || {
                whole().filter(|it| it.3.to_string().contains("192.168.7.0/24"))
            });
            for change in [&["down"][..], &["down", "name", "other"]] {
                namespace.ip(&[&["link", "set", "tun0"], change].concat());
                wait_for("the device", PATIENCE, || (whole()? == before).then_some(()));
                is_reached(one, "10.1.1.1");
                is_reached(one, "fd00:5::5");
            }
        }
    });
}

#[test]
fn a_hub_may_have_as_many_descriptors_as_the_kernel_lets_it() {
    isolate(|| {
        let outer = Outer::new(1);
        let plain = netyard(&outer.hub, &["hub", "--state", "/tmp/hub-state"]);
        let words: Vec<_> = plain.get_args().skip_while(|word| *word != "--").skip(1).collect();
        let mut limited = outer.hub.command(peer("sh"));
        limited.args(["-c", "ulimit -Sn 64; exec \"$@\"", "sh"]).args(words);
        let mut hub = Background::start(&mut limited);
        hub.wait_for_line("reached as", PATIENCE);
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", hub.id())).unwrap();
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let [soft, hard] = [0, 1].map(|at| limit.split_whitespace().nth(at).unwrap());
        assert_eq!(soft, hard, "{limits}");
        let status = json(&mut netyard(&outer.hub, &["hub", "status", "--json"]));
        assert_eq!(status["descriptors"].to_string(), hard, "{status}");
    });
}

#[test]
fn a_hub_is_reached_at_all_addresses_of_both_families() {
    isolate(|| {
        let outer = Outer::new(2);
        let six = |namespace: &Namespace, address: &str, device: &str| {
            namespace.ip(&["address", "add", address, "dev", device, "nodad"]);
        };
        sysctl(&outer.router, &["-w", "net.ipv6.conf.all.forwarding=1"]);
        six(&outer.router, "2001:db8:9::1/64", "to-hub");
        six(&outer.hub, "2001:db8:9::10/64", "eth0");
        outer.hub.ip(&["-6", "route", "add", "default", "via", "2001:db8:9::1"]);
        six(&outer.router, "2001:db8:1::1/64", "to-p1");
        six(&outer.peers[0], "2001:db8:1::10/64", "eth0");
        outer.peers[0].ip(&["-6", "route", "add", "default", "via", "2001:db8:1::1"]);
        let at = || {
            let status = json(&mut netyard(&outer.hub, &["hub", "status", "--json"]));
            let at = status["reached_at"].as_array().unwrap().clone();
            let text = |of: &serde_json::Value| of.as_str().unwrap().to_owned();
            at.iter().map(|at| (text(&at["address"]), text(&at["card"]))).collect::<Vec<_>>()
        };
        let four = ("192.0.2.10:6441".to_owned(), "eth0".to_owned());
        // The default is IPv4's.
        let mut hub = start_hub(&outer, &["--network6", "fd00:5::/64"]);
        assert_eq!(at(), std::slice::from_ref(&four));
        hub.signal("TERM");
        assert!(hub.wait(PATIENCE).success(), "{}", hub.output());
        let _hub = start_hub(&outer, &["--listen", "[::]:6441", "--network6", "fd00:5::/64"]);
        assert_eq!(at(), [four, ("[2001:db8:9::10]:6441".to_owned(), "eth0".to_owned())]);
        let by_six = token(&outer, &[]).replace("192.0.2.10", "[2001:db8:9::10]");
        let mut one = start_peer(&outer, 1, &by_six, &["--redirect"]);
        one.wait_for_line("joined", PATIENCE);
        let _two = joined_peer(&outer, 2, &[]);
        ping(&outer.peers[0], "10.1.1.5");
        ping(&outer.peers[1], "fd00:5::3");
        wait_for("UDP to both", PATIENCE, || {
            let all = outer::peers(&outer);
            all.iter().all(|peer| peer["lane"] == "udp").then_some(())
        });
        ping(&outer.peers[0], "10.1.1.5");
        let from = outer::peers(&outer).iter().map(|it| it["remote"].clone()).collect::<Vec<_>>();
        assert!(from[0].as_str().unwrap().starts_with("[2001:db8:1::10]:"), "{from:?}");
    });
}
