//! What one stream carries over links of all kinds, in virtual time, beside what it carried when this was last
//! looked at: a change of how TCP sends shows as a change of the table.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::fmt::Write as _;
use std::time::Duration;

use common::{CLIENT, FAMILIES, Link, Sim, pattern};
use netyard_stack::{Algorithm, Settings};

/// The table, to be replaced by what the test prints where a change is wanted.
const TABLE: &str = include_str!("simulation_grid.txt");

const LOSSES: [f64; 4] = [0.0, 0.001, 0.01, 0.03];
/// Some eight hundred segments.
const LEN: usize = 1_000_000;
const HOUR: Duration = Duration::from_secs(3600);

/// Mbit/s of a stream of [`LEN`] bytes, by a link whose queue holds a round trip.
fn goodput(congestion: Algorithm, megabits: u64, round_trip: Duration, loss: f64) -> f64 {
    let rate = megabits * 125_000;
    let queue = (rate as f64 * round_trip.as_secs_f64()) as usize;
    let delay = round_trip / 2;
    let link = Link { delay, loss, rate: Some(rate), buffer: queue.max(30_000), ..Link::default() };
    let settings = Settings { congestion, ..Settings::default() };
    let mut sim = Sim::with(5, link, settings, 1500);
    let (client, server) = sim.open(FAMILIES[0]);
    let data = pattern(LEN);
    let start = sim.now;
    assert!(sim.transfer(CLIENT, (client, server), &data, HOUR) == data);
    8.0 * data.len() as f64 / 1e6 / (sim.now - start).as_secs_f64()
}

#[test]
fn a_stream_carries_what_it_carried() {
    let mut table = String::from("Mbit/s                lost: none   0.1 %     1 %     3 %\n");
    for congestion in [Algorithm::Cubic, Algorithm::NewReno] {
        for megabits in [10, 100] {
            for milliseconds in [5, 50, 200] {
                let name = format!("{congestion:?}, {megabits} Mbit/s, {milliseconds} ms");
                write!(table, "{name:<26}").unwrap();
                for loss in LOSSES {
                    let round_trip = Duration::from_millis(milliseconds);
                    let rate = goodput(congestion, megabits, round_trip, loss);
                    write!(table, "{rate:>8.1}").unwrap();
                }
                table.push('\n');
            }
        }
    }
    assert!(table == TABLE, "is:\n{table}\nwas:\n{TABLE}");
}
