use std::net::IpAddr;
use std::time::Instant;

use netyard_wire::ip::{ICMP, IpPacket, TCP, UDP};

use super::acl::{MOST_FLOWS, SLICE};
use super::*;

const A: End =
    End { whose: Whose::Node(1), address: IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 1, 3)) };
const B: End =
    End { whose: Whose::Node(2), address: IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 1, 5)) };
const BEHIND: End =
    End { whose: Whose::Other, address: IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 7, 9)) };

fn policy(text: &str) -> Policy {
    let policy: Policy = serde_json::from_str(text).unwrap();
    policy.check().unwrap();
    policy
}

fn acl(text: &str) -> Acl {
    Acl::new(&policy(text), &[("a".into(), 1), ("b".into(), 2)])
}

fn sent(acl: &mut Acl, from: End, to: End, protocol: u8, payload: &[u8], now: Instant) -> bool {
    let packet = IpPacket {
        source: from.address,
        destination: to.address,
        hop_limit: 64,
        traffic_class: 0,
        protocol,
        fragment: None,
        header: &[],
        payload,
    };
    acl.allows(from, to, &packet, now)
}

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut segment = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    segment.resize(20, 0);
    segment[13] = flags;
    segment
}

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;

#[test]
fn connections_are_allowed_in_one_direction_and_answered_in_the_other() {
    let mut acl = acl(
        r#"{"allow": [{"from": ["a"], "to": ["b"], "protocol": "tcp", "ports": [22, "80-90"]}]}"#,
    );
    let now = Instant::now();
    let mut pass = |from, to, payload: &[u8]| sent(&mut acl, from, to, TCP, payload, now);
    assert!(pass(A, B, &tcp(4000, 22, SYN)));
    assert!(pass(B, A, &tcp(22, 4000, SYN_ACK)));
    assert!(pass(A, B, &tcp(4000, 85, SYN)));
    assert!(!pass(A, B, &tcp(4000, 91, SYN)), "another port");
    assert!(!pass(B, A, &tcp(22, 4000, SYN)), "the other direction");
    assert!(!pass(B, A, &tcp(4000, 22, SYN_ACK)), "no answer of that port");
    assert!(!pass(A, BEHIND, &tcp(4000, 22, SYN)));
    assert!(!pass(A, B, &[0, 1]), "no header");
    assert!(!sent(&mut acl, A, B, UDP, &tcp(4000, 22, 0), now), "another protocol");
    assert!(!sent(&mut acl, A, B, ICMP, &[8], now));
    assert!(sent(&mut acl, B, A, ICMP, &[3], now), "errors pass");
    assert!(!sent(&mut acl, B, BEHIND, ICMP, &[3], now));
}

#[test]
fn datagrams_are_answered_for_a_while() {
    let mut acl =
        acl(r#"{"allow": [{"from": ["*"], "to": ["192.168.7.0/24"], "protocol": "udp"}]}"#);
    let now = Instant::now();
    let (there, back) = (tcp(53, 4000, 0), tcp(4000, 53, 0));
    assert!(!sent(&mut acl, BEHIND, A, UDP, &there, now));
    assert!(sent(&mut acl, A, BEHIND, UDP, &back, now));
    assert!(sent(&mut acl, BEHIND, A, UDP, &there, now));
    assert!(!sent(&mut acl, BEHIND, B, UDP, &there, now));
    assert!(sent(&mut acl, BEHIND, A, UDP, &there, now + SLICE));
    assert!(!sent(&mut acl, BEHIND, A, UDP, &there, now + SLICE * 4), "too late");
    for n in 0..MOST_FLOWS * 2 {
        let port = u16::try_from(n % 60_000).unwrap();
        sent(&mut acl, A, BEHIND, UDP, &tcp(port, u16::try_from(n / 60_000).unwrap(), 0), now);
    }
    assert!(acl.flows() <= MOST_FLOWS * 2);
}

#[test]
fn tags_name_peers_and_peers_that_are_not_there_match_nobody() {
    let mut acl = acl(r#"{"tags": {"admins": ["a", "later"]},
        "allow": [{"from": ["tag:admins"], "to": ["*"]}, {"from": ["later"], "to": ["hub"]}]}"#);
    let now = Instant::now();
    assert!(sent(&mut acl, A, B, ICMP, &[8], now));
    assert!(sent(&mut acl, A, BEHIND, 47, &[], now));
    assert!(!sent(&mut acl, B, A, ICMP, &[8], now));
    let hub = End { whose: Whose::Hub, address: "10.1.1.1".parse().unwrap() };
    assert!(!sent(&mut acl, B, hub, ICMP, &[8], now));
}

#[test]
fn what_makes_no_sense_is_refused_and_what_does_reads_back() {
    for bad in [
        r#"{"allow": [{"from": ["a b"], "to": ["*"]}]}"#,
        r#"{"allow": [{"from": ["tag:"], "to": ["*"]}]}"#,
        r#"{"allow": [{"from": ["a"], "to": ["*"], "ports": ["9-8"]}]}"#,
        r#"{"allow": [{"from": ["a"], "to": ["*"], "port": [1]}]}"#,
        r#"{"allow": [{"from": ["a"]}]}"#,
    ] {
        assert!(serde_json::from_str::<Policy>(bad).is_err(), "{bad}");
    }
    for bad in [
        r#"{"allow": [{"from": ["tag:x"], "to": ["*"]}]}"#,
        r#"{"allow": [{"from": ["a"], "to": ["*"], "protocol": "icmp", "ports": [1]}]}"#,
    ] {
        assert!(serde_json::from_str::<Policy>(bad).unwrap().check().is_err(), "{bad}");
    }
    let text = r#"{"tags":{"t":["a"]},"allow":[{"from":["tag:t","hub"],"to":["fd00::/64"],"protocol":"udp","ports":[53,"60-70"]}]}"#;
    assert_eq!(serde_json::to_string(&policy(text)).unwrap(), text);
}
