//! The whole network under sequences of hostile frames, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod common;
mod storm;

use std::net::SocketAddr;
use std::path::Path;

use common::{GATEWAY_MAC, Sim, config};
use netyard_engine::control::Plugged;
use netyard_wire::dns::{A, Flags, IN, Query, Question};
use netyard_wire::icmp::Icmp;
use netyard_wire::{Frame, build};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// Each is a sequence of some hundred frames.
const SEEDS: u64 = 60;

#[test]
fn no_sequence_of_frames_brings_the_network_down() {
    for seed in 0..SEEDS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let bytes: Vec<u8> = (0..4096).map(|_| rng.random()).collect();
        if std::panic::catch_unwind(|| storm::run(&bytes)).is_err() {
            panic!("seed {seed}");
        }
    }
}

/// What a fuzzer has found, and what it may begin with.
#[test]
fn sequences_of_the_fuzz_target_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/network");
    let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
    assert!(!seeds.is_empty());
    for seed in seeds {
        let bytes = std::fs::read(seed.unwrap().path()).unwrap();
        storm::run(&bytes);
        for end in (0..bytes.len()).step_by(97) {
            storm::run(&bytes[..end]);
        }
    }
}

/// One guest asks for all that it can; what it gets is its part, and another one still gets what it asks for.
#[test]
fn a_flood_of_any_kind_fills_no_more_than_a_guests_part() {
    let send = |sim: &mut Sim, from: &Plugged, write: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        write(&mut bytes);
        let offload = netyard_wire::Offload { checksum: netyard_wire::Checksum::Valid, gso: None };
        sim.frame(from.plug, Frame { bytes: &bytes, offload });
        sim.world.frames.clear();
    };
    let datagram =
        |from: &Plugged, port: u16, to: SocketAddr, payload: &[u8], out: &mut Vec<u8>| {
            let source = SocketAddr::new(from.address4.into(), port);
            build::udp_frame(out, from.mac, GATEWAY_MAC, source, to, 64, payload);
        };
    let ping = |from: &Plugged, to: [u8; 4], out: &mut Vec<u8>| {
        let message = Icmp::EchoRequest { id: 1, seq: 1, data: b"data" };
        let (own, to) = (from.address4.into(), to.into());
        build::icmp_frame(out, from.mac, GATEWAY_MAC, own, to, 64, &message);
    };
    let question = |from: &Plugged, number: u16, out: &mut Vec<u8>| {
        let name = format!("n{number}.example").parse().unwrap();
        let question = Question { name, kind: A, class: IN };
        let query = Query { id: number, flags: Flags::RECURSION_DESIRED, question, edns: None };
        let to = SocketAddr::new(config().gateway4().into(), 53);
        datagram(from, 5000, to, &query.emit(), out);
    };
    let open = |sim: &Sim| sim.world.streams.values().filter(|socket| !socket.closed).count();
    let opens = |sim: &mut Sim, from: &Plugged, write: &dyn Fn(&mut Vec<u8>)| {
        let before = open(sim);
        send(sim, from, write);
        open(sim) > before
    };

    let mut sim = Sim::new();
    sim.network.set_upstreams(vec!["198.51.100.1:53".parse().unwrap()]);
    let (greedy, other) = (sim.plug("greedy"), sim.plug("other"));
    // Datagrams to more ends than a guest may have, by fewer ports than it may have.
    for number in 0..20_000u16 {
        let (port, to) = (1024 + number % 512, SocketAddr::from(([203, 0, 113, 5], 1 + number)));
        send(&mut sim, &greedy, &|out| datagram(&greedy, port, to, b"hello", out));
    }
    assert_eq!(sim.network.state().udp_flows, 8192);
    // By more ports than it may have.
    let to = "203.0.113.5:9".parse().unwrap();
    for port in 2_000..6_000 {
        send(&mut sim, &greedy, &|out| datagram(&greedy, port, to, b"hello", out));
    }
    assert!(sim.network.state().udp_flows <= 8192 && open(&sim) <= 1024, "{}", open(&sim));
    assert!(opens(&mut sim, &other, &|out| datagram(&other, 4000, to, b"hello", out)));

    let before = open(&sim);
    for number in 0..500u16 {
        let [high, low] = number.to_be_bytes();
        send(&mut sim, &greedy, &|out| ping(&greedy, [203, 0, high, low], out));
    }
    assert!(sim.network.state().pings.unwrap() <= 128 && open(&sim) <= before + 128);
    assert!(opens(&mut sim, &other, &|out| ping(&other, [203, 0, 113, 9], out)));

    let before = open(&sim);
    for number in 0..1_000 {
        send(&mut sim, &greedy, &|out| question(&greedy, number, out));
    }
    assert!(open(&sim) <= before + 128, "{} more", open(&sim) - before);
    assert!(opens(&mut sim, &other, &|out| question(&other, 1_001, out)));
    // Nobody answers, and nothing stays.
    sim.advance(std::time::Duration::from_secs(300));
    assert_eq!((open(&sim), sim.network.state().udp_flows), (0, 0));
}
