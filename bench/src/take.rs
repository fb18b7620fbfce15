//! How the figures of user mode are taken.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use netyard_testbed::traffic::Latency;
use netyard_testbed::{Background, Outside, binary, output, peer};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::engine::{Engine, FORWARDED, Running};
use crate::measure::server;
use crate::process::{resident, run_time};

/// For `prlimit`: descriptors for the most connections that are held.
pub(crate) const MANY_FILES: &str = "--nofile=12000";

/// Far above what a program needs to listen, or to connect.
const SOON: Duration = Duration::from_secs(30);

/// Round trips on one connection for each figure.
const ROUND_TRIPS: u32 = 20_000;

/// The same where only the engine's processor time counts, of which there has to be some.
const MANY_ROUND_TRIPS: u32 = 50_000;

/// Whole connections for each figure; far fewer than there are ports, which stay occupied for a
/// minute after a close.
const CONNECTIONS: u32 = 3_000;

/// Payload of a datagram in a flood, bytes: with its headers it fits into every MTU here.
const DATAGRAM: u32 = 1_400;

/// Length of one flood, seconds.
const FLOOD: u32 = 2;

/// What may be lost of one, percent.
const LOST: f64 = 0.5;

/// Rates of floods: the highest one that is tried, Mbit/s, and how closely the best one is found, as its part.
const MOST: f64 = 4_000.0;
const CLOSELY: f64 = 0.05;

/// Where the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client.
    Out,
    /// To the client.
    In,
}

/// What a bulk transfer or a flood did.
struct Sum {
    /// What the receiver got, bit/s.
    rate: f64,
    bytes: f64,
    /// Percent of the datagrams.
    lost: f64,
}

/// So many iperf3 streams; what the receiver got, Gbit/s.
pub(crate) fn bulk(
    running: &Running,
    seconds: u32,
    direction: Direction,
    streams: u32,
) -> Result<f64, String> {
    Ok(outward(running, seconds, direction, streams)?.rate / 1e9)
}

/// Processor time of the engine for one stream, seconds for each GB.
pub(crate) fn cost(
    running: &Running,
    seconds: u32,
    direction: Direction,
) -> Result<Option<f64>, String> {
    let Some(process) = running.process else { return Ok(None) };
    let before = run_time(process);
    let sum = outward(running, seconds, direction, 1)?;
    // What is sent in the second that iperf3 leaves out is worked for, too.
    let all = sum.bytes * f64::from(seconds + 1) / f64::from(seconds);
    Ok(Some((run_time(process) - before) / (all / 1e9)))
}

/// The highest rate of datagrams of which nearly all arrive, Mbit/s; 0: none is low enough.
pub(crate) fn datagram_rate(running: &Running, direction: Direction) -> Result<f64, String> {
    let (mut low, mut high) = (0.0, MOST);
    while high - low > CLOSELY * high && high > MOST / 1000.0 {
        let rate = if low == 0.0 { high / 4.0 } else { f64::midpoint(low, high) };
        let sum = flood(running, direction, rate)?;
        // A sender that cannot keep up sends what it can.
        match sum.lost < LOST {
            true if sum.rate / 1e6 < 0.9 * rate => return Ok(sum.rate / 1e6),
            true => low = rate,
            false => high = rate,
        }
    }
    Ok(low)
}

/// One stream from the host's loopback to a server in the guest, Gbit/s.
pub(crate) fn forwarded(
    running: &Running,
    seconds: u32,
    direction: Direction,
) -> Result<f64, String> {
    let port = FORWARDED.to_string();
    let mut server = running.command(&peer("iperf3"));
    let mut server = Background::start(server.args(["-s", "--forceflush", "-p", &port]));
    server.wait_for_line("listening", SOON);
    let mut client = Command::new(peer("timeout"));
    streams(&mut client, seconds, direction, 1);
    let sum = sum(client.args(["-c", "127.0.0.1", "-p", &port]))?;
    Ok(sum.rate / 1e9)
}

/// Connections from the host's loopback to a server in the guest, each second.
pub(crate) fn forwarded_connections(running: &Running, at_once: u32) -> Result<f64, String> {
    let mut server = running.command(&binary("netyard-traffic"));
    let mut server = Background::start(server.arg("serve").arg(format!("0.0.0.0:{FORWARDED}")));
    server.wait_for_line("listening", SOON);
    let mut client = Command::new(binary("netyard-traffic"));
    client.arg("connections").arg(format!("127.0.0.1:{FORWARDED}"));
    connection_rate(&mut client, at_once)
}

/// Connections from the guest, each second.
pub(crate) fn connections(running: &Running, at_once: u32) -> Result<f64, String> {
    connection_rate(&mut client(running, "connections"), at_once)
}

pub(crate) fn round_trips(running: &Running) -> Result<Latency, String> {
    latency(&mut client(running, "round-trips"), ROUND_TRIPS)
}

pub(crate) fn datagrams(running: &Running) -> Result<Latency, String> {
    latency(client(running, "datagrams").args(["--size", "1"]), ROUND_TRIPS)
}

/// Resident memory of the engine while its guest holds so many connections, MiB.
pub(crate) fn memory(running: &Running, held: u32) -> Result<Option<f64>, String> {
    let Some(process) = running.process else { return Ok(None) };
    let _holder = holder(running, held)?;
    resident(process).map(|kib| Some(kib / 1024.0)).ok_or_else(|| "the engine is gone".to_owned())
}

/// The engine's processor time for round trips while there are so many idle connections, in terms of that among
/// ten.
pub(crate) fn work_among(running: &Running, many: u32) -> Result<Option<f64>, String> {
    let Some(process) = running.process else { return Ok(None) };
    let work = |held: u32| -> Result<f64, String> {
        let _holder = holder(running, held)?;
        let before = run_time(process);
        latency(&mut client(running, "round-trips"), MANY_ROUND_TRIPS)?;
        Ok(run_time(process) - before)
    };
    let few = work(10)?;
    Ok(Some(work(many)? / few))
}

/// From the start of an engine at a namespace, which is there already, to the first connection of a program that
/// tries all the time, milliseconds.
pub(crate) fn start(engine: Engine) -> Result<Option<f64>, String> {
    let Some((namespace, mut command)) = engine.around_namespace() else { return Ok(None) };
    let mut client = namespace.command(binary("netyard-traffic"));
    let mut client = Background::start(client.arg("first").arg(server().to_string()));
    client.wait_for_line("trying", SOON);
    let before = SystemTime::now();
    let mut engine = Background::start(&mut command);
    says(&client, "connected");
    engine.signal("TERM");
    engine.wait(SOON);
    let said = client.output();
    let at = said.split_whitespace().last().and_then(|at| at.parse().ok());
    let took =
        at.and_then(|at| (UNIX_EPOCH + Duration::from_nanos(at)).duration_since(before).ok());
    let took =
        took.ok_or_else(|| format!("the client said {said:?}, the engine {:?}", engine.output()))?;
    Ok(Some(took.as_secs_f64() * 1e3))
}

/// Keeps so many connections of the guest open while it lives.
fn holder(running: &Running, held: u32) -> Result<Background, String> {
    let mut command = running.command(&peer("prlimit"));
    command.arg(MANY_FILES).arg(binary("netyard-traffic")).arg("hold");
    command.arg(server().to_string()).args(["--count", &held.to_string()]);
    let holder = Background::start(&mut command);
    if says(&holder, "holding") { Ok(holder) } else { Err(holder.output()) }
}

/// Waits until a program has said this; false: it has not in time, or something else.
fn says(program: &Background, word: &str) -> bool {
    let start = Instant::now();
    let has_failed = || program.output().contains("netyard-traffic: ");
    while !program.output().contains(word) {
        if start.elapsed() > SOON || has_failed() {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// A client of the traffic server, in the guest.
fn client(running: &Running, verb: &str) -> Command {
    let mut command = running.command(&binary("netyard-traffic"));
    command.arg(verb).arg(server().to_string());
    command
}

fn latency(command: &mut Command, count: u32) -> Result<Latency, String> {
    json(command.args(["--count", &count.to_string()]))
}

fn connection_rate(command: &mut Command, at_once: u32) -> Result<f64, String> {
    latency(command.args(["--at-once", &at_once.to_string()]), CONNECTIONS).map(|it| it.rate)
}

/// Streams from the guest to the outside, or back.
fn outward(
    running: &Running,
    seconds: u32,
    direction: Direction,
    count: u32,
) -> Result<Sum, String> {
    let mut command = running.command(&peer("timeout"));
    streams(&mut command, seconds, direction, count);
    sum(command.args(["-c", &Outside::ADDRESS4.to_string()]))
}

/// Datagrams between guest and outside at so many Mbit/s.
fn flood(running: &Running, direction: Direction, rate: f64) -> Result<Sum, String> {
    let mut command = running.command(&peer("timeout"));
    command.arg((FLOOD + 20).to_string()).arg(peer("iperf3"));
    command.args(["-J", "-u", "-t", &FLOOD.to_string(), "-l", &DATAGRAM.to_string()]);
    command.args(["-b", &format!("{rate:.0}M"), "-c", &Outside::ADDRESS4.to_string()]);
    sum(command.args(reverse(direction)))
}

/// iperf3 streams by a `timeout` command.
fn streams(command: &mut Command, seconds: u32, direction: Direction, count: u32) {
    // The first second is left out: it belongs to slow start.
    command.arg((seconds + 20).to_string()).arg(peer("iperf3"));
    command.args(["-J", "-O1", "-C", "cubic", "-t", &seconds.to_string()]);
    command.args(["-P", &count.to_string()]).args(reverse(direction));
}

fn reverse(direction: Direction) -> &'static [&'static str] {
    match direction {
        Direction::Out => &[],
        Direction::In => &["-R"],
    }
}

/// What iperf3 says at its end.
fn sum(command: &mut Command) -> Result<Sum, String> {
    let answer: Value = json(command)?;
    let end = &answer["end"];
    // Of streams nothing is lost; a flood of which this is not told did not arrive.
    let is_flood = answer["start"]["test_start"]["protocol"] == "UDP";
    let lost = end["sum"]["lost_percent"].as_f64().unwrap_or(if is_flood { 100.0 } else { 0.0 });
    // Of datagrams some versions tell what was sent alone.
    let (of, part) = match &end["sum_received"] {
        Value::Null => (&end["sum"], 1.0 - lost / 100.0),
        received => (received, 1.0),
    };
    let number = |name: &str| of[name].as_f64().map(|it| it * part);
    let (Some(rate), Some(bytes)) = (number("bits_per_second"), number("bytes")) else {
        return Err(format!("iperf3 said {}", answer["error"]));
    };
    Ok(Sum { rate, bytes, lost })
}

fn json<T: DeserializeOwned>(command: &mut Command) -> Result<T, String> {
    let done = output(command);
    serde_json::from_slice(&done.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        format!("{command:?} failed ({}): {said}", done.status)
    })
}
