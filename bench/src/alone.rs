//! The engine alone: guests and a host in memory, in virtual time, so that there may be more connections than a
//! process has descriptors.

#[path = "../../crates/engine/tests/common/mod.rs"]
mod common;

use std::process;
use std::time::Duration;

use netyard_engine::edge::SocketId;
use netyard_wire::tcp::Flags;

use self::common::{Guest, Sim};
use crate::process::run_time;

/// Requests and answers of one byte.
const ROUND_TRIPS: u32 = 200_000;
/// How long one takes.
const ROUND_TRIP: Duration = Duration::from_micros(50);

/// Connections from one guest port each to one server.
const PORTS: u32 = 50_000;

/// The processor time for round trips while there are so many idle connections, in terms of that among ten.
///
/// # Errors
/// What went wrong, for people.
pub(crate) fn work_among(many: u32) -> Result<f64, String> {
    Ok(work(many)? / work(10)?)
}

fn work(idle: u32) -> Result<f64, String> {
    let mut sim = Sim::new();
    let plug = sim.plug("a");
    let connect = |sim: &mut Sim, number: u32| -> Result<(Guest, SocketId), String> {
        let server = format!("203.0.113.{}:80", 1 + number / PORTS);
        let mut guest = Guest::new(plug.clone(), &server);
        let port = u16::try_from(10_000 + number % PORTS).map_err(|error| error.to_string())?;
        guest.own.set_port(port);
        let socket = guest.connect(sim);
        Ok((guest, socket))
    };
    for number in 0..idle {
        connect(&mut sim, number)?;
    }
    let (mut guest, socket) = connect(&mut sim, idle)?;
    let before = run_time(process::id());
    for _ in 0..ROUND_TRIPS {
        guest.send(&mut sim, Flags::PSH | Flags::ACK, b"?");
        sim.arrives(socket, b"!");
        let answer = sim.expect();
        guest.acknowledge(&mut sim, &answer);
        sim.advance(ROUND_TRIP);
    }
    Ok(run_time(process::id()) - before)
}
