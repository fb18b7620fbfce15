//! The engine alone: guests and a host in memory, in virtual time, so that there may be more connections than a
//! process has descriptors.

#[path = "../../crates/engine/tests/common/mod.rs"]
mod common;

use std::process;
use std::time::Duration;

use netyard_wire::tcp::Flags;

use self::common::{Guest, Sim};
use crate::process::run_time;

/// Requests and answers of one byte.
const ROUND_TRIPS: u32 = 200_000;
/// How long one takes.
const ROUND_TRIP: Duration = Duration::from_micros(50);

/// Connections to one server: ports of the guest.
const PORTS: u16 = 50_000;

/// The processor time for round trips while there are so many idle connections, in terms of that among ten.
pub(crate) fn work_among(many: u32) -> f64 {
    work(many, many) / work(10, many)
}

/// With so many idle connections, in a world with so many sockets: it takes longer to find one among more.
fn work(idle: u32, sockets: u32) -> f64 {
    let mut sim = Sim::new();
    let plug = sim.plug("a");
    let servers = (1..).map(|server| format!("203.0.113.{server}:80"));
    let clients = servers.flat_map(|server| (0..PORTS).map(move |port| (server.clone(), port)));
    let mut connections = clients.map(|(server, port)| {
        let mut guest = Guest::new(plug.clone(), &server);
        guest.own.set_port(10_000 + port);
        guest
    });
    for _ in idle..sockets {
        sim.world.open();
    }
    for mut guest in connections.by_ref().take(idle as usize) {
        guest.connect(&mut sim);
    }
    let Some(mut guest) = connections.next() else { return f64::NAN };
    let socket = guest.connect(&mut sim);
    let before = run_time(process::id());
    for _ in 0..ROUND_TRIPS {
        guest.send(&mut sim, Flags::PSH | Flags::ACK, b"?");
        sim.arrives(socket, b"!");
        let answer = sim.expect();
        guest.acknowledge(&mut sim, &answer);
        sim.advance(ROUND_TRIP);
    }
    run_time(process::id()) - before
}
