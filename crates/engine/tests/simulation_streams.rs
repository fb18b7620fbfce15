//! Streams of bytes between guests and hosts, whatever the link between does, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod common;
mod model;

use std::time::Duration;

use common::{Guest, Sim};
use model::{Link, Model, Plan};
use netyard_wire::tcp::Flags;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const NEVER: std::ops::Range<Duration> = Duration::MAX..Duration::MAX;

/// Runs a scenario for seeds, and says which one fails.
fn for_seeds(seeds: std::ops::Range<u64>, scenario: impl Fn(SmallRng) + std::panic::RefUnwindSafe) {
    for seed in seeds {
        let rng = SmallRng::seed_from_u64(seed);
        if std::panic::catch_unwind(|| scenario(rng)).is_err() {
            panic!("seed {seed}");
        }
    }
}

/// Both families, both directions of opening, several at once, halves that close in any order, resets, small windows
/// and such that close, sequence numbers that wrap.
#[test]
fn each_end_has_the_bytes_that_the_other_has_sent() {
    for_seeds(0..120, |mut rng| {
        let link = Link {
            loss: [0.0, 0.03, 0.2][rng.random_range(0..3)],
            again: [0.0, 0.1][rng.random_range(0..2)],
            delay: 0..[1, 500, 40_000][rng.random_range(0..3)] + 1,
            pause: NEVER,
        };
        let plans = (0..rng.random_range(1..=4)).map(|_| Plan::any(&mut rng)).collect();
        Model::new(Sim::new(), link, plans, rng).run();
    });
}

/// Our own sequence numbers wrap. They follow a clock (RFC 6528), so it is moved to where they are about to.
#[test]
fn the_gateways_sequence_numbers_may_wrap() {
    for_seeds(0..10, |mut rng| {
        let mut sim = Sim::new();
        let link = Link { loss: 0.05, again: 0.05, delay: 0..2_000, pause: NEVER };
        let mut plan = Plan::any(&mut rng);
        (plan.inbound, plan.reset, plan.begins) = (false, None, Duration::ZERO);
        plan.down = common::pattern(60_000);
        // The plug and the ends of the model's first connection.
        let probe = sim.plug("a");
        let remote = if plan.ipv4 { "203.0.113.5:1000" } else { "[2001:db8::5]:1000" };
        let mut guest = Guest::new(probe.clone(), remote);
        guest.connect(&mut sim);
        let first = guest.ack.0.wrapping_sub(1);
        guest.send(&mut sim, Flags::RST, b"");
        assert!(sim.network.remove_plug(sim.now, "test", probe.plug, &mut sim.world));
        // Four microseconds for each number.
        let left = u64::from(u32::MAX - rng.random_range(0..60_000) - first);
        sim.advance(Duration::from_micros(4 * left));
        sim.world = Default::default();
        let model = Model::new(sim, link, vec![plan], rng).run();
        let began = model.first_numbers();
        assert!(began > u32::MAX - 61_000, "it began at {began}, which does not wrap");
    });
}

/// Connections come and go, more and fewer at a time; those who read do it slowly, windows are tiny, the machine is
/// paused for a minute and goes on. All bytes arrive, and nothing is left.
#[test]
fn a_ramp_of_connections_survives_loss_and_a_pause_of_the_machine() {
    for_seeds(0..2, |mut rng| {
        let pause = Duration::from_millis(700);
        let link = Link {
            loss: 0.02,
            again: 0.02,
            delay: 200..15_000,
            pause: pause..pause + Duration::from_secs(60),
        };
        let plans = model::ramp(&mut rng, 40, Duration::from_millis(40));
        let model = Model::new(Sim::new(), link, plans, rng).run();
        assert!(model.crowd >= 8, "no more than {} at a time", model.crowd);
        let state = model.sim.network.state();
        assert_eq!((state.tcp_flows, state.udp_flows), (0, 0));
        let left = model.sim.world.streams.values().filter(|stream| !stream.closed);
        assert_eq!(
            left.filter(|stream| stream.bound.is_none()).count(),
            0,
            "sockets are left open"
        );
    });
}
