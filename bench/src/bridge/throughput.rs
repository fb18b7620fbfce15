//! Bulk TCP between two instances, and from an instance through NAT to the outside.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use netyard_testbed::{Background, peer, run};

use super::contender::{Contender, Guest};
use super::report::Row;
use super::stage;

/// Who takes part.
pub(super) const CONTENDERS: [Contender; 2] = [Contender::HandMade, Contender::Netyard];

/// Far above what a server needs to listen.
const SOON: Duration = Duration::from_secs(10);

/// Takes the figures here, in a namespace that plays the host.
pub(super) fn take(contender: Contender, seconds: u32) -> BTreeMap<Row, f64> {
    let Some(mut plugs) = contender.plugs() else { return BTreeMap::new() };
    let guests = [0, 1].map(Guest::new);
    guests.iter().for_each(|guest| plugs.plug(guest));
    let [client, server] = &guests;
    let listen = |mut command: Command| {
        let mut server = Background::start(command.args(["-s", "--forceflush"]));
        server.wait_for_line("listening", SOON);
        server
    };
    let servers = [server.command("iperf3"), stage::outside("iperf3")].map(listen);
    let figures = BTreeMap::from([
        (Row::BetweenInstances, bulk(client, plugs.address(server), seconds)),
        (Row::ToOutside, bulk(client, stage::SERVER, seconds)),
    ]);
    drop(servers);
    plugs.clear(&guests);
    figures
}

/// One stream; what the receiver got, Gbit/s.
fn bulk(client: &Guest, to: Ipv4Addr, seconds: u32) -> f64 {
    // The first second is left out: it belongs to slow start.
    let mut command = client.command("iperf3");
    command.args(["-J", "-O1", "-C", "cubic", "-t", &seconds.to_string(), "-c", &to.to_string()]);
    let limit = (seconds + 20).to_string();
    let mut limited = Command::new(peer("timeout"));
    limited.arg(limit).arg(command.get_program()).args(command.get_args());
    let answer: serde_json::Value = serde_json::from_str(&run(&mut limited)).unwrap_or_default();
    let bits = answer["end"]["sum_received"]["bits_per_second"].as_f64();
    bits.unwrap_or_else(|| panic!("iperf3 said {}", answer["error"])) / 1e9
}
