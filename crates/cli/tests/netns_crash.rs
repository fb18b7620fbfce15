//! `kill -9` at the steps of a network's coming and going in bridge mode, and the start after it.
//!
//! Moments are counted in lines of the network's journal, which is written before and after each step:
//! a watcher reads it all the time, and kills when it has so many. What is foreign on the machine (a
//! bridge with addresses, a route, a table of rules, settings) is compared with all the rest.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use netyard_testbed::{Background, Outside, State, User, isolate, output, peer, run, wait_for};

use crate::stage::{SOON, Stage};

/// A bridge, a service of the host, two plugs, forwards, a service.
const YARD: &str = r#"
[networks.lan]
mode = "bridge"
subnet = "192.168.77.0/24"
host = ["127.0.0.1:7000"]

[instances.web]
run = ["netyard-whoami", "-a", "0.0.0.0", "-p", "8080"]
count = 2

[instances.client]
run = ["sleep", "1000"]
forwards = ["0.0.0.0:9000:80", "0.0.0.0:9001:81/udp"]

[services.web]
instances = "web"
port = 8080
publish = "0.0.0.0:8080"
"#;

/// The network's journal: the yard is the folder's name.
const JOURNAL: &str = "/run/netyard/.networks/crash.lan/links.journal";

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Network,
    Keeper,
    /// The keeper, and the network's process before it can see that.
    Both,
}

/// A machine with things of somebody else's on it.
fn machine() -> (Outside, State) {
    let outside = Outside::new();
    let ip = |line: &str| run(Command::new(peer("ip")).args(line.split(' ')));
    ip("link add br-foreign type bridge");
    ip("link set br-foreign addrgenmode none");
    ip("address add 10.200.0.1/24 dev br-foreign");
    ip("-6 address add fd00:200::1/64 dev br-foreign nodad");
    ip("link set br-foreign up");
    ip("route add 10.201.0.0/24 via 10.200.0.2");
    let rules = "table inet foreign { chain in { type filter hook input priority 0; accept; }; }";
    run(Command::new(peer("nft")).arg(rules.replace("table", "add table")));
    wait_for("settled addresses", SOON, || {
        let show = ["-6", "address", "show", "dev", Outside::UPLINK];
        let text = run(Command::new(peer("ip")).args(show));
        (text.contains("fe80:") && !text.contains("tentative")).then_some(())
    });
    (outside, State::take())
}

/// How many lines of a kind the journal has; none if there is no journal.
fn lines(kind: &str) -> usize {
    let text = fs::read_to_string(JOURNAL).unwrap_or_default();
    text.lines().filter(|line| line.contains(kind)).count()
}

/// The processes of netyard that run, those of the network only or all. They are known by their program:
/// what they call themselves differs.
fn processes(of_network: bool) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_string_lossy().parse().ok()?;
        // Also the file that was there before it was built anew.
        let program = fs::read_link(entry.path().join("exe")).ok()?;
        let ours = program.to_string_lossy().trim_end_matches(" (deleted)").ends_with("/netyard");
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let verb = line.split(|byte| *byte == 0).nth(1)?;
        let wanted = ours && (!of_network || verb == b"network-process");
        (wanted && is_running(pid)).then_some(pid)
    });
    processes.collect()
}

/// Whether any thread of a process is there: until the last has ended its files are open.
fn is_running(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        !status.is_empty() && !status.contains("State:\tZ") && !status.contains("State:\tX")
    })
}

/// Kills all at once, whoever of them is there, and waits for their ends: what a process has open is
/// closed some time after it has lost its program's name.
fn kill(victims: &[u32]) {
    let ids = victims.iter().map(u32::to_string);
    output(Command::new(peer("kill")).arg("-KILL").args(ids));
    wait_for("the end of who is killed", SOON, || {
        victims.iter().all(|victim| !is_running(*victim)).then_some(())
    });
}

/// Waits until the journal has so many lines of a kind, or the act is over; kills then.
fn kill_at(
    kind: &str,
    count: usize,
    victim: Victim,
    keeper: u32,
    mut is_over: impl FnMut() -> bool,
) {
    let start = Instant::now();
    while lines(kind) < count && !is_over() {
        assert!(start.elapsed() < SOON, "{count} lines of {kind:?}");
    }
    let network = || processes(true);
    match victim {
        Victim::Network => kill(&network()),
        Victim::Keeper => kill(&[keeper]),
        Victim::Both => kill(&[&[keeper], &network()[..]].concat()),
    }
}

/// What is left goes: with the process of the network that lives, or else with the next start.
fn recovered(stage: &Stage, before: &State, when: &str) {
    wait_for("the end of the network", SOON, || processes(false).is_empty().then_some(()));
    run(&mut stage.netyard(&["run", "--", "true"]));
    before.assert_restored(when);
    assert!(!Path::new(JOURNAL).exists(), "{when}");
}

/// Kills at one moment after another of what brings the yard up.
fn while_it_comes(victim: Victim, stride: usize) {
    let (_outside, before) = machine();
    let stage = Stage::up(User::Root, "crash", YARD);
    let all = lines("");
    assert!(all > 30, "the journal tells of {all} moments");
    stage.say(&["down"]);
    recovered(&stage, &before, "after a whole life");
    for moment in (1..=all).step_by(stride) {
        let when = format!("{victim:?} killed at line {moment} of {all} while it came");
        let mut keeper = Background::start(&mut stage.netyard(&["up"]));
        let id = keeper.id();
        kill_at("", moment, victim, id, || !is_running(id));
        if victim == Victim::Network {
            // The keeper has made it again, or has given up.
            wait_for("the keeper", SOON, || {
                let down = output(&mut stage.netyard(&["down"]));
                (down.status.success() || !is_running(id)).then_some(())
            });
        }
        keeper.wait(SOON);
        recovered(&stage, &before, &when);
    }
}

/// Kills at one moment after another of what takes the yard down.
fn while_it_goes(victim: Victim, stride: usize) {
    let (_outside, before) = machine();
    let stage = Stage::new(User::Root, "crash", YARD);
    let mut all = 1;
    let mut moment = 1;
    while moment <= all {
        run(&mut stage.netyard(&["up", "-d", "--wait"]));
        let keeper = stage.keeper_pid();
        all = lines("\"done\"");
        let when = format!("{victim:?} killed at step {moment} of {all} while it went");
        let mut down = Background::start(&mut stage.netyard(&["down"]));
        // The last step takes the journal away.
        kill_at("\"undone\"", moment, victim, keeper, || {
            !Path::new(JOURNAL).exists() || processes(true).is_empty()
        });
        down.wait(SOON);
        wait_for("the keeper's end", SOON, || (!is_running(keeper)).then_some(()));
        recovered(&stage, &before, &when);
        moment += stride;
    }
    assert!(all > 15, "the journal tells of {all} steps");
}

#[test]
fn the_network_may_be_killed_while_it_comes() {
    isolate(|| while_it_comes(Victim::Network, 4));
}

#[test]
fn the_keeper_may_be_killed_while_it_comes() {
    isolate(|| while_it_comes(Victim::Keeper, 4));
}

#[test]
fn the_network_may_be_killed_while_it_goes() {
    isolate(|| while_it_goes(Victim::Network, 1));
}

#[test]
fn the_keeper_may_be_killed_while_it_goes() {
    isolate(|| while_it_goes(Victim::Keeper, 1));
}

#[test]
fn both_may_be_killed_while_it_comes() {
    isolate(|| while_it_comes(Victim::Both, 4));
}

#[test]
fn both_may_be_killed_while_it_goes() {
    isolate(|| while_it_goes(Victim::Both, 1));
}
