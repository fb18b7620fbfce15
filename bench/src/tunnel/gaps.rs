//! How long nothing gets through a tunnel when something happens to it.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use netyard_testbed::{Background, Namespace, peer, run};

use super::contender::{self, Contender, Running};
use super::measure::Figures;
use super::report::Row;
use super::stage::{HUB, Stage};

/// How long anything is waited for; a gap that is longer counts as this.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often what is waited for is looked at.
const LOOKED: Duration = Duration::from_millis(5);
/// For how long answers have to come before and after what happens.
const STEADY: Duration = Duration::from_secs(1);

/// Pairs of veth. The hub of others is not started again, and what they notice they do not say.
pub(super) fn broken(contender: Contender) -> Result<Figures, String> {
    let stage = Stage::new(1, None).map_err(|error| error.to_string())?;
    let mut running = contender.start(&stage)?;
    let [one] = &stage.peers[..] else { return Err("there is not one peer".into()) };
    let to = running.addresses.first().cloned().unwrap_or_default();
    let roam = gap(one, &to, || roam(one))?;
    let mut figures = Figures::from([(Row::Roam, roam)]);
    if contender == Contender::Netyard {
        figures.insert(Row::Restart, gap(one, &to, || restart(&stage, &mut running))?);
        figures.insert(Row::Silence, silence(&stage, &running)?);
    }
    Ok(figures)
}

/// Seconds of the longest gap between two answers, one of which is due every 10 ms, while this happens.
fn gap(from: &Namespace, to: &str, happens: impl FnOnce()) -> Result<f64, String> {
    let mut ping = from.command(peer("ping"));
    let mut ping = Background::start(ping.args(["-n", "-D", "-i", "0.01", "-W", "1", to]));
    thread::sleep(STEADY);
    let before = seconds();
    happens();
    let start = Instant::now();
    while start.elapsed() < PATIENCE
        && !arrivals(&ping).last().is_some_and(|last| *last > before + STEADY.as_secs_f64())
    {
        thread::sleep(LOOKED);
    }
    let after = seconds();
    ping.signal("INT");
    ping.wait(PATIENCE);
    let times: Vec<f64> = arrivals(&ping).into_iter().chain([after]).collect();
    let gaps = times.windows(2).filter_map(|pair| Some(pair.last()? - pair.first()?));
    gaps.reduce(f64::max).ok_or_else(|| "nothing came back".into())
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// When answers came, in seconds as [`seconds`] counts them.
fn arrivals(ping: &Background) -> Vec<f64> {
    let time = |line: &str| line.strip_prefix('[')?.split_once(']')?.0.parse().ok();
    ping.output().lines().filter(|line| line.contains(" time=")).filter_map(time).collect()
}

/// The peer gets another address in the place of its own.
fn roam(one: &Namespace) {
    let script = format!(
        "set -e; ip -batch - <<'END'
address del 198.51.1.10/24 dev eth0
address add 198.51.1.20/24 dev eth0
route replace {HUB} via 198.51.1.1
END"
    );
    run(one.command(peer("sh")).args(["-c", &script]));
}

/// The hub ends as it does on request, and starts again.
fn restart(stage: &Stage, running: &mut Running) {
    if let Some(hub) = running.processes.first_mut() {
        hub.signal("TERM");
        hub.wait(PATIENCE);
        *hub = contender::netyard_hub(&stage.hub, &[]);
    }
}

/// Seconds until a peer that is in use says that its hub is gone, whose packets vanish without a word.
fn silence(stage: &Stage, running: &Running) -> Result<f64, String> {
    let peer_process = running.processes.get(1).ok_or("the peer is gone")?;
    let lost = || peer_process.output().matches("the lane to the hub has ended").count();
    let before = lost();
    let wall = "add table inet wall
add chain inet wall from { type filter hook input priority 0; policy drop; }
add chain inet wall to { type filter hook output priority 0; policy drop; }";
    run(stage.hub.command(peer("nft")).arg(wall));
    let one = stage.peers.first().ok_or("there is no peer")?;
    let mut ping = one.command(peer("ping"));
    let to = running.addresses.first().ok_or("the hub has no address")?;
    let _ping = Background::start(ping.args(["-n", "-i", "0.1", "-W", "1", to]));
    let start = Instant::now();
    while lost() == before && start.elapsed() < PATIENCE {
        thread::sleep(LOOKED);
    }
    let noticed = start.elapsed().as_secs_f64();
    run(stage.hub.command(peer("nft")).args(["delete", "table", "inet", "wall"]));
    Ok(noticed)
}
