//! What is measured of a tunnel.

use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use netyard_testbed::{Background, Namespace, output, peer, run};

use super::contender::{self, Contender, Running};
use super::report::Row;
use super::stage::{HUB, Stage};
use crate::link::Impairment;
use crate::process::{processor_time, resident};

/// Far above what a server needs to listen.
const SOON: Duration = Duration::from_secs(10);
/// What a flow on a long link has before its figures count: slow start and what follows.
const SETTLE: u32 = 3;
/// Questions for the round trip of an idle tunnel.
const PINGS: u32 = 400;

/// The figures of one contender, and one round.
pub(super) type Figures = BTreeMap<Row, f64>;

/// Links as fast as they get.
pub(super) fn fast(contender: Contender, seconds: u32) -> Result<Figures, String> {
    let stage = Stage::new(2, None).map_err(|error| error.to_string())?;
    let running = contender.start(&stage)?;
    let [hub, one, two] = places(&stage, &running)?;
    let mut figures = Figures::new();
    figures.insert(Row::PingIdle, p(50, pings(one, hub, PINGS, "0.005")?));
    // Hub and the first peer are at the two ends; of a flow between peers all three carry it.
    for (from, to, rate, cost, count) in [
        (one, hub, Row::PeerToHub, Row::CostPeerToHub, 2),
        (hub, one, Row::HubToPeer, Row::CostHubToPeer, 2),
        (one, two, Row::PeerToPeer, Row::CostPeerToPeer, 3),
    ] {
        let before = running.processor_time(count);
        let flow = flow(from, to, seconds, 0)?;
        let used = running.processor_time(count) - before;
        figures.insert(rate, flow.rate / 1e9);
        figures.insert(cost, used / (flow.bytes / 1e9));
    }
    Ok(figures)
}

/// 100 Mbit/s, 20 ms round trip.
pub(super) fn slow(contender: Contender, seconds: u32) -> Result<Figures, String> {
    let delay = Duration::from_millis(10);
    let impairment = Impairment { rate: 100_000_000, delay, loss: 0 };
    let stage = Stage::new(1, Some(impairment)).map_err(|error| error.to_string())?;
    let running = contender.start(&stage)?;
    let [hub, one] = places(&stage, &running)?;
    let base = p(50, pings(one, hub, 50, "0.02")?);
    let _server = server(hub);
    let mut client = client(one, hub, seconds + SETTLE + 2);
    let mut client = Background::start(&mut client);
    thread::sleep(Duration::from_secs(SETTLE.into()));
    let busy = pings(one, hub, seconds * 50, "0.02")?;
    client.wait(SOON);
    Ok(Figures::from([(Row::PingBusy, (p(99, busy) - base) / 1000.0)]))
}

/// 100 Mbit/s, 50 ms round trip, 1 % lost each way.
pub(super) fn lossy(contender: Contender, seconds: u32) -> Result<Figures, String> {
    let delay = Duration::from_millis(25);
    let impairment = Impairment { rate: 100_000_000, delay, loss: 10 };
    let stage = Stage::new(1, Some(impairment)).map_err(|error| error.to_string())?;
    let running = contender.start(&stage)?;
    let [hub, one] = places(&stage, &running)?;
    // Losses make round trips uneven, at which the flow's own slow start may end early: it takes seconds until it
    // fills the link.
    let flow = flow(one, hub, 5 * seconds, SETTLE)?;
    Ok(Figures::from([(Row::Lossy, flow.rate / 1e6)]))
}

/// A hub of ours with many peers that say nothing; each has a machine of its own on one network.
pub(super) fn idle(peers: u16) -> Result<Figures, String> {
    const HUB_MAC: &str = "02:00:00:00:ff:ff";
    let hub = Namespace::new("hub");
    let script = r#"for number in $(seq "$1"); do
    echo "link add to-$number type veth peer name eth0 netns i$number"
    echo "link set to-$number up master outer"
done"#;
    let number = |number: u16| {
        let [high, low] = (number + 2).to_be_bytes();
        (format!("192.0.{}.{low}", 3 + high), format!("02:00:00:00:{high:02x}:{low:02x}"))
    };
    // The kernel has room for some hundred neighbours, of all namespaces together, if they are to be found out.
    let knows = |place: &Namespace, device: &str, address: &str, mac: &str| {
        place.ip(&["neighbour", "add", address, "lladdr", mac, "dev", device, "nud", "permanent"]);
    };
    let batch = |script: &str| {
        let commands = format!("set -e; ({script}) | ip -n hub -batch -");
        run(Command::new("sh").args(["-c", &commands, "sh", &peers.to_string()]));
    };
    hub.ip(&["link", "add", "outer", "address", HUB_MAC, "type", "bridge"]);
    hub.ip(&["address", "add", &format!("{HUB}/16"), "dev", "outer"]);
    hub.ip(&["link", "set", "outer", "up"]);
    let namespaces: Vec<_> =
        (1..=peers).map(|number| Namespace::new(&format!("i{number}"))).collect();
    batch(script);
    for (namespace, (address, mac)) in namespaces.iter().zip((1..=peers).map(number)) {
        namespace.ip(&["address", "add", &format!("{address}/16"), "dev", "eth0"]);
        namespace.ip(&["link", "set", "eth0", "address", &mac, "up"]);
        knows(namespace, "eth0", HUB, HUB_MAC);
        knows(&hub, "outer", &address, &mac);
    }
    let network = ["--network", "10.9.0.0/16", "--addressing", "single"];
    let running = contender::netyard_hub(&hub, &network);
    let mut token = contender::netyard_command(&hub);
    let join = run(token.args(["token", "create", "--reusable"]));
    let mut joined = Vec::new();
    for part in namespaces.chunks(16) {
        let mut started: Vec<_> =
            part.iter().map(|namespace| contender::netyard_peer(namespace, join.trim())).collect();
        for peer in &mut started {
            peer.wait_for_line("joined", Duration::from_secs(60));
        }
        joined.append(&mut started);
    }
    // A round of keepalives.
    let (start, before) = (Instant::now(), processor_time(running.id()));
    thread::sleep(Duration::from_secs(30));
    let used = processor_time(running.id()) - before;
    let part = 100.0 * used / start.elapsed().as_secs_f64();
    let resident = resident(running.id()).ok_or("the hub is gone")?;
    Ok(Figures::from([(Row::IdleMemory, resident / 1024.0), (Row::IdleProcessor, part)]))
}

/// A machine and its address in the tunnel.
type Place<'a> = (&'a Namespace, &'a str);

fn places<'a, const COUNT: usize>(
    stage: &'a Stage,
    running: &'a Running,
) -> Result<[Place<'a>; COUNT], String> {
    let all = stage.all().zip(&running.addresses).map(|(place, address)| (place, &address[..]));
    let all: Vec<Place<'_>> = all.take(COUNT).collect();
    all.try_into().map_err(|_| "a place has no address".to_owned())
}

/// What came of a flow.
struct Flow {
    /// Bits in a second, after what was left out.
    rate: f64,
    /// Bytes that came in that time.
    bytes: f64,
}

fn server((place, _): Place<'_>) -> Background {
    let mut server = place.command(peer("iperf3"));
    let mut server = Background::start(server.args(["-s", "--forceflush"]));
    server.wait_for_line("listening", SOON);
    server
}

fn client((from, _): Place<'_>, (_, to): Place<'_>, seconds: u32) -> Command {
    let mut command = from.command(peer("timeout"));
    command.arg((seconds + 20).to_string()).arg(peer("iperf3"));
    command.args(["-J", "-C", "cubic", "-t", &seconds.to_string(), "-c", to]);
    command
}

/// One flow of TCP; its first seconds are left out.
fn flow(from: Place<'_>, to: Place<'_>, seconds: u32, left_out: u32) -> Result<Flow, String> {
    let _server = server(to);
    let mut client = client(from, to, seconds);
    let done = output(client.args(["-O", &left_out.to_string()]));
    let answer: serde_json::Value =
        serde_json::from_slice(&done.stdout).map_err(|error| error.to_string())?;
    let sum = &answer["end"]["sum_received"];
    match (sum["bits_per_second"].as_f64(), sum["bytes"].as_f64()) {
        (Some(rate), Some(bytes)) => Ok(Flow { rate, bytes }),
        _ => Err(format!("iperf3 said {}", answer["error"])),
    }
}

/// Round trips, microseconds, in order of size. What was lost counts as a second.
fn pings(
    (from, _): Place<'_>,
    (_, to): Place<'_>,
    count: u32,
    every: &str,
) -> Result<Vec<f64>, String> {
    let mut ping = from.command(peer("ping"));
    let done = output(ping.args(["-n", "-c", &count.to_string(), "-i", every, "-W", "1", to]));
    let text = String::from_utf8_lossy(&done.stdout);
    let time = |line: &str| -> Option<f64> {
        let (_, rest) = line.split_once("time=")?;
        rest.split(' ').next()?.parse().ok()
    };
    let mut times: Vec<f64> = text.lines().filter_map(time).map(|time| time * 1000.0).collect();
    if times.is_empty() {
        return Err(format!("nothing came back: {text}"));
    }
    times.resize(count.try_into().unwrap_or_default(), 1_000_000.0);
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// What so many of a hundred are below.
fn p(part: usize, sorted: Vec<f64>) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((sorted.len() * part / 100).min(last)).copied().unwrap_or(f64::NAN)
}
