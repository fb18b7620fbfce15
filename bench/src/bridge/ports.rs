//! Ten thousand host ports that lead to one instance.

use std::collections::BTreeMap;
use std::time::Instant;

use netyard_engine::control::Request;
use netyard_engine::forward::Ports;

use super::contender::{Contender, Guest};
use super::netyard::Network;
use super::others::Script;
use super::report::Row;

/// Who takes part. (portmap and netavark start a program for each port.)
pub(super) const CONTENDERS: [Contender; 2] = [Contender::Netyard, Contender::HandMade];

/// The ports.
pub(super) const FIRST: u16 = 20_000;
pub(super) const LAST: u16 = 29_999;

/// Takes the figure here, in a namespace that plays the host.
pub(super) fn take(contender: Contender) -> BTreeMap<Row, f64> {
    let guest = Guest::new(0);
    let took = match contender {
        Contender::Netyard => {
            let mut network = Network::join();
            network.connect(&guest);
            let Some(ports) = Ports::new(FIRST, LAST) else { return BTreeMap::new() };
            let forward = Network::forward(&guest.name(), ports, ports);
            let begin = Instant::now();
            network.ask(Request::AddForward(forward), None);
            begin.elapsed()
        }
        Contender::HandMade => {
            let script = Script::new();
            let begin = Instant::now();
            script.publish(&guest, FIRST..=LAST);
            begin.elapsed()
        }
        _ => return BTreeMap::new(),
    };
    BTreeMap::from([(Row::Ports, took.as_secs_f64() * 1e3)])
}
