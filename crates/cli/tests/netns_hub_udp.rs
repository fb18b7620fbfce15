//! UDP between a hub and its peers: what goes by it, and what happens where it does not get through.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use netyard_testbed::{Background, Namespace, isolate, output, peer, run, wait_for};
use serde_json::Value;

use crate::outer::{
    HUB, Outer, PATIENCE, joined_peer, json, netyard, peers, ping, start_hub, transfer,
};

/// Waits until the hub says that this goes by that.
fn wait_for_lane(outer: &Outer, number: usize, lane: &str) -> Value {
    let name = format!("peer-{number}");
    wait_for(&format!("{name} by {lane}"), PATIENCE, || {
        let listed = peers(outer).into_iter().find(|peer| peer["name"] == name.as_str())?;
        (listed["lane"] == lane).then_some(listed)
    })
}

/// Waits until a peer knows that it reaches the hub by UDP.
fn wait_for_udp(outer: &Outer, number: usize, peer: &mut Background) {
    wait_for_lane(outer, number, "udp");
    peer.wait_for_line("UDP gets through", PATIENCE);
}

fn bytes(peer: &Value, field: &str) -> u64 {
    peer[field]["bytes"].as_u64().unwrap()
}

/// Has a namespace drop what it forwards, by a rule of nftables; nothing if it is empty.
fn drop_forwarded(namespace: &Namespace, rule: &str) {
    let ruleset = match rule {
        "" => "flush ruleset".to_owned(),
        rule => format!(
            "add table inet wall
add chain inet wall passing {{ type filter hook forward priority 0; }}
add rule inet wall passing {rule} drop"
        ),
    };
    run(namespace.command(peer("nft")).arg(ruleset));
}

#[test]
fn what_is_not_tcp_goes_by_udp_and_tcp_stays_in_the_stream() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &["--network6", "fd00:5::/64"]);
        let (mut one, mut two) = (joined_peer(&outer, 1, &[]), joined_peer(&outer, 2, &[]));
        wait_for_udp(&outer, 1, &mut one);
        wait_for_udp(&outer, 2, &mut two);
        for address in ["10.1.1.1", "10.1.1.5", "fd00:5::5"] {
            ping(&outer.peers[0], address);
        }
        transfer(&outer.peers[0], &outer.peers[1], "10.1.1.5", 3_000_000);
        let listed = peers(&outer);
        for peer in &listed {
            for (all, by_udp) in [("to_peer", "to_peer_by_udp"), ("from_peer", "from_peer_by_udp")]
            {
                let (all, by_udp) = (bytes(peer, all), bytes(peer, by_udp));
                assert!((500..50_000).contains(&by_udp) && all > by_udp, "{peer}");
            }
        }
        let status = json(&mut netyard(&outer.hub, &["hub", "status", "--json"]));
        assert_eq!(status["udp"], true);
        let text = run(&mut netyard(&outer.hub, &["peers"]));
        assert!(text.contains(" udp "), "{text}");
    });
}

#[test]
fn everything_goes_by_udp_on_request_with_offload_or_without() {
    isolate(|| {
        let outer = Outer::new(2);
        let _hub = start_hub(&outer, &[]);
        let (mut one, mut two) = (
            joined_peer(&outer, 1, &["--lane", "udp"]),
            joined_peer(&outer, 2, &["--lane", "udp", "--no-offload"]),
        );
        wait_for_udp(&outer, 1, &mut one);
        wait_for_udp(&outer, 2, &mut two);
        let (one, two) = (&outer.peers[0], &outer.peers[1]);
        for len in [1, 1399, 70_000, 5_000_000] {
            transfer(one, two, "10.1.1.5", len);
            transfer(two, one, "10.1.1.3", len);
            transfer(&outer.hub, one, "10.1.1.3", len);
            transfer(two, &outer.hub, "10.1.1.1", len);
        }
        for peer in peers(&outer) {
            assert!(bytes(&peer, "to_peer_by_udp") > 5_000_000, "{peer}");
            assert!(bytes(&peer, "from_peer_by_udp") > 5_000_000, "{peer}");
        }
        let status = json(&mut netyard(&outer.hub, &["hub", "status", "--json"]));
        assert_eq!(
            (&status["drops"]["spoof"], &status["drops"]["bad_packet"]),
            (&0.into(), &0.into())
        );
    });
}

#[test]
fn where_udp_dies_all_goes_by_the_stream_until_it_is_back() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let mut joined = joined_peer(&outer, 1, &["--lane", "udp"]);
        wait_for_udp(&outer, 1, &mut joined);
        drop_forwarded(&outer.router, "meta l4proto udp");
        // Lost until both ends know, and no longer.
        let one = &outer.peers[0];
        wait_for("an answer by the stream", PATIENCE, || {
            let mut ping = one.command(peer("ping"));
            let done = output(ping.args(["-c", "1", "-W", "1", "10.1.1.1"]));
            done.status.success().then_some(())
        });
        let listed = wait_for_lane(&outer, 1, "websocket");
        transfer(one, &outer.hub, "10.1.1.1", 2_000_000);
        transfer(&outer.hub, one, "10.1.1.3", 2_000_000);
        drop_forwarded(&outer.router, "");
        let again = wait_for_lane(&outer, 1, "udp");
        assert_eq!(again["logins"], listed["logins"], "the session is the same");
        assert_eq!(again["since_ms"], listed["since_ms"]);
        ping(&outer.hub, "10.1.1.3");
    });
}

#[test]
fn where_udp_is_blocked_or_off_all_goes_by_the_stream() {
    isolate(|| {
        let outer = Outer::new(1);
        drop_forwarded(&outer.router, "meta l4proto udp");
        let hub = start_hub(&outer, &[]);
        let mut joined = joined_peer(&outer, 1, &[]);
        ping(&outer.peers[0], "10.1.1.1");
        joined.wait_for_line("all goes by WebSocket", PATIENCE);
        ping(&outer.peers[0], "10.1.1.1");
        assert_eq!(peers(&outer)[0]["lane"], "websocket");
        drop_forwarded(&outer.router, "");
        drop((hub, joined));
        let _hub = start_hub(&outer, &["--no-udp"]);
        let _joined = joined_peer(&outer, 1, &["--lane", "udp"]);
        ping(&outer.peers[0], "10.1.1.1");
        let listed = &peers(&outer)[0];
        assert_eq!((&listed["lane"], bytes(listed, "to_peer_by_udp")), (&"websocket".into(), 0));
        let text = run(&mut netyard(&outer.hub, &["hub", "status"]));
        assert!(text.contains(", TCP\n"), "{text}");
    });
}

#[test]
fn a_way_too_narrow_for_the_networks_packets_is_not_used() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let mut joined = joined_peer(&outer, 1, &["--lane", "udp"]);
        wait_for_udp(&outer, 1, &mut joined);
        let (one, hub) = (&outer.peers[0], &outer.hub);
        transfer(one, hub, "10.1.1.1", 2_000_000);
        // 1400 bytes of a packet, and 62 around them, do not pass any more: the hub's kernel says so, and
        // the router to the peer.
        outer.router.ip(&["link", "set", "to-hub", "mtu", "1400"]);
        hub.ip(&["link", "set", "eth0", "mtu", "1400"]);
        transfer(one, hub, "10.1.1.1", 1_000_000);
        transfer(hub, one, "10.1.1.3", 1_000_000);
        wait_for_lane(&outer, 1, "websocket");
        let mut whole = one.command(peer("ping"));
        run(whole.args(["-c", "1", "-W", "20", "-M", "do", "-s", "1372", "10.1.1.1"]));
    });
}

#[test]
fn a_nat_that_forgets_costs_no_session() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &[]);
        let mut joined = joined_peer(&outer, 1, &["--lane", "udp"]);
        wait_for_udp(&outer, 1, &mut joined);
        let one = &outer.peers[0];
        let sockets = run(one.command(peer("ss")).args(["-Hun", "dst", HUB]));
        let own = sockets.split_whitespace().nth(2).unwrap().rsplit_once(':').unwrap().1;
        let before = peers(&outer).remove(0);
        // Another port each time, and nothing comes back to the one before.
        for port in [40_001_u16, 40_002] {
            let there = format!("iifname \"to-p1\" udp dport 6441 udp sport set {port}");
            let back = format!("iifname \"to-hub\" udp dport {port} udp dport set {own}");
            let nat = format!(
                "flush ruleset
add table ip nat
add chain ip nat way {{ type filter hook prerouting priority -300; }}
add rule ip nat way {there}
add rule ip nat way {back}"
            );
            run(outer.router.command(peer("nft")).arg(nat));
            // The peer says something, and the hub follows.
            let from = |count: u64| {
                let listed = peers(&outer).remove(0);
                (bytes(&listed, "to_peer_by_udp") > count).then_some(listed)
            };
            let count = bytes(&peers(&outer)[0], "to_peer_by_udp");
            wait_for("an answer by UDP", PATIENCE, || {
                let mut ping = one.command(peer("ping"));
                let done = output(ping.args(["-c", "1", "-W", "1", "10.1.1.1"]));
                done.status.success().then_some(())
            });
            transfer(&outer.hub, one, "10.1.1.3", 1_000_000 + usize::from(port));
            assert!(from(count + 1_000_000).is_some(), "it went by the stream");
        }
        let after = peers(&outer).remove(0);
        assert_eq!((&after["logins"], &after["lane"]), (&before["logins"], &"udp".into()));
    });
}
