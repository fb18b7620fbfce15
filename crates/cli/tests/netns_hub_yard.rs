//! Networks of yards that join a hub: instances and remote machines reach each other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;
mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use netyard_testbed::{Background, Namespace, State, User, isolate, output, peer, run, wait_for};
use serde_json::Value;

use crate::outer::{Outer, PATIENCE, netyard, start_hub, start_peer, token};
use crate::stage::{SOON, Stage, text};

/// How the hub's network is set up.
const HUB: [&str; 4] = ["--network6", "fd00:5::/64", "--zone", "lab.internal"];

/// The networks that are behind the yard.
const BEHIND: [&str; 2] = ["192.168.77.0/24", "fd00:77::/64"];

/// The instances' files, which everybody may read.
const FILES: &str = "/tmp/files";

/// A megabyte for each direction is more than any queue on the way holds.
const LEN: usize = 8 * 1024 * 1024;

/// The variable with the join string of a yard that has it in its environment.
const JOIN: &str = "OFFICE_JOIN";

fn yard(mode: &str, join: &str) -> String {
    format!(
        r#"
[networks.lan]
mode = "{mode}"
subnet = "192.168.77.0/24"
subnet6 = "fd00:77::/64"
hub = {{ join = "{join}", name = "office", state = "state" }}

[instances.web]
run = ["python3", "-m", "http.server", "8000", "--bind", "::", "--directory", "{FILES}"]
count = 2

[services.files]
instances = "web"
port = 8000

[services.asked]
instances = "web"
port = 8000
policy = "per-request"
"#
    )
}

/// This namespace becomes one of the machines on the outer network.
fn join_outer(outer: &Outer) {
    let ip = |arguments: &str| run(Command::new(peer("ip")).args(arguments.split(' ')));
    ip("link add eth9 type veth peer name to-here netns router");
    outer.router.ip(&["address", "add", "198.51.100.1/24", "dev", "to-here"]);
    outer.router.ip(&["link", "set", "to-here", "up"]);
    ip("address add 198.51.100.10/24 dev eth9");
    ip("link set eth9 up");
    ip("route add default via 198.51.100.1");
    wait_for("settled addresses", SOON, || {
        let text = ip("-6 address show dev eth9");
        (text.contains("fe80:") && !text.contains("tentative")).then_some(())
    });
}

/// The hub as the yard's network sees it, and its warnings.
fn seen(stage: &Stage) -> (Value, String) {
    let state = stage.json(&["inspect"])["networks"][0]["state"].clone();
    (state["remotes"][0].clone(), state["warnings"].to_string())
}

fn wait_for_state(stage: &Stage, state: &str) -> String {
    wait_for(&format!("the hub to be {state}"), PATIENCE, || {
        let (remote, warnings) = seen(stage);
        (remote["link"]["state"] == state).then_some(warnings)
    })
}

fn pings(stage: &Stage, to: &str) -> bool {
    stage.inside("web-1", &["ping", "-n", "-c", "1", "-W", "5", to]).status.success()
}

/// Waits until an instance reaches an address or name.
fn wait_until_reached(stage: &Stage, to: &str) {
    wait_for(&format!("{to} from an instance"), PATIENCE, || pings(stage, to).then_some(()));
}

/// Fetches a file over HTTP and compares it; who has asked, as the server has seen it, is in its log.
const FETCH: &str = "import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
    came = answer.read()
sys.exit(came != open(sys.argv[2], 'rb').read())";

fn fetch(url: &str) -> [String; 4] {
    ["-c".into(), FETCH.into(), url.into(), format!("{FILES}/big")]
}

fn fetched_from(namespace: &Namespace, url: &str) {
    run(namespace.command(peer("python3")).args(fetch(url)));
}

fn accept(outer: &Outer) {
    for prefix in BEHIND {
        run(&mut netyard(&outer.hub, &["peers", "accept", "office", prefix]));
    }
}

/// Saves a join string beside the yard file, for the yard's user alone.
fn save_join(outer: &Outer, stage: &Stage) {
    let file = stage.folder.join("hub.join");
    let script = format!("umask 077 && echo '{}' > {}", token(outer, &[]), file.display());
    run(stage.user.peer("sh").arg("-c").arg(script));
}

/// A yard on a network of this mode, joined and accepted, beside a hub and a remote machine.
struct Joined {
    outer: Outer,
    hub: Background,
    _remote: Background,
    stage: Stage,
    /// The join string, if it is in the environment.
    secret: Option<String>,
    before: State,
}

fn up(stage: &Stage, secret: Option<&str>) {
    let mut up = stage.netyard(&["up", "-d", "--wait"]);
    run(up.envs(secret.map(|secret| (JOIN, secret))));
}

impl Joined {
    fn new(user: User, mode: &str) -> Self {
        let outer = Outer::new(1);
        join_outer(&outer);
        let hub = start_hub(&outer, &HUB);
        let mut remote = start_peer(&outer, 1, &token(&outer, &[]), &["--dns"]);
        remote.wait_for_line("names of lab.internal", PATIENCE);
        fs::create_dir(FILES).unwrap();
        let content: Vec<u8> = (0..LEN as u64).map(|at| (at * at / 251) as u8).collect();
        fs::write(format!("{FILES}/big"), content).unwrap();
        let secret = (user == User::Ordinary).then(|| token(&outer, &[]));
        let join = match &secret {
            Some(_) => format!("env:{JOIN}"),
            None => "file:hub.join".to_owned(),
        };
        let stage = Stage::new(user, "office", &yard(mode, &join));
        if secret.is_none() {
            save_join(&outer, &stage);
        }
        let before = State::take();
        up(&stage, secret.as_deref());
        let warnings = wait_for_state(&stage, "connected");
        assert!(warnings.contains("netyard peers accept office 192.168.77.0/24"), "{warnings}");
        let key = stage.folder.join("state/node.key").metadata().unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        accept(&outer);
        wait_for("nothing that is wrong", PATIENCE, || (seen(&stage).1 == "[]").then_some(()));
        Self { outer, hub, _remote: remote, stage, secret, before }
    }

    fn remote(&self) -> &Namespace {
        &self.outer.peers[0]
    }

    /// Both sides reach each other, by address and by name, with their true addresses.
    fn check_reached(&self) {
        let (stage, remote) = (&self.stage, self.remote());
        for to in ["10.1.1.1", "10.1.1.3", "fd00:5::3", "hub.lab.internal", "peer-1.lab.internal"] {
            wait_until_reached(stage, to);
        }
        let address = stage.instance("web-1")["addresses"][0].as_str().unwrap().to_owned();
        let mut ping = remote.command(peer("ping"));
        run(ping.args(["-n", "-c", "1", "-W", "20", &address]));
        fetched_from(remote, &format!("http://{address}:8000/big"));
        for name in ["web-1", "web-2", "files", "asked"] {
            let host = format!("{name}.office.lab.internal");
            // It is looked who is in the network, and that is told, once a second.
            wait_for(&host, PATIENCE, || {
                let mut find = remote.command(peer("getent"));
                output(find.args(["ahosts", &host])).status.success().then_some(())
            });
            fetched_from(remote, &format!("http://{host}:8000/big"));
        }
        wait_for("the remote machine's address in the logs", SOON, || {
            let logs = stage.say(&["logs", "web-1"]) + &stage.say(&["logs", "web-2"]);
            (logs.contains("10.1.1.3") || logs.contains("fd00:5::3")).then_some(())
        });
    }

    /// What runs in an instance does not see the join string.
    fn check_secret(&self) {
        let done = self.stage.inside("web-1", &["sh", "-c", "cat /proc/[0-9]*/environ"]);
        let seen = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(seen.contains("PATH=") && !seen.contains(JOIN), "{seen}");
    }

    /// An instance fetches from a remote machine.
    fn check_fetched(&self) {
        let mut server = self.remote().command(peer("python3"));
        server.args([
            "-u",
            "-m",
            "http.server",
            "9000",
            "--bind",
            "10.1.1.3",
            "--directory",
            FILES,
        ]);
        let mut server = Background::start(&mut server);
        server.wait_for_line("Serving", PATIENCE);
        let script = fetch("http://peer-1.lab.internal:9000/big");
        let words: Vec<&str> =
            ["python3"].into_iter().chain(script.iter().map(String::as_str)).collect();
        let done = self.stage.inside("web-1", &words);
        assert!(done.status.success(), "{}", text(&done));
        server.wait_for_line("192.168.77.", PATIENCE);
    }

    /// Of what is killed each is made again, and nobody has to do anything about it.
    fn check_killed(&mut self) {
        let peer_process = || run(Command::new(peer("pgrep")).args(["-f", "network-peer"]));
        run(Command::new(peer("kill")).args(["-KILL", peer_process().trim()]));
        wait_until_reached(&self.stage, "10.1.1.3");
        self.stage.kill_network();
        wait_for_state(&self.stage, "connected");
        wait_until_reached(&self.stage, "10.1.1.3");
        self.hub.signal("KILL");
        self.hub.wait(PATIENCE);
        let warnings = wait_for_state(&self.stage, "connecting");
        assert!(warnings.contains("is not reached"), "{warnings}");
        self.hub = start_hub(&self.outer, &HUB);
        wait_for_state(&self.stage, "connected");
        wait_until_reached(&self.stage, "10.1.1.3");
        // With the keeper everything goes.
        run(Command::new(peer("kill")).args(["-KILL", &self.stage.keeper_pid().to_string()]));
        self.wait_until_gone();
        up(&self.stage, self.secret.as_deref());
        wait_until_reached(&self.stage, "10.1.1.3");
    }

    fn check_revoked(&self) {
        run(&mut netyard(&self.outer.hub, &["peers", "revoke", "office"]));
        let warnings = wait_for_state(&self.stage, "refused");
        assert!(warnings.contains("revoked"), "{warnings}");
        assert!(!pings(&self.stage, "10.1.1.3"));
    }

    /// Nothing is left, neither in the kernel nor a process.
    fn wait_until_gone(&self) {
        wait_for("the end of everything", PATIENCE, || {
            let mut found = Command::new(peer("pgrep"));
            let none = !output(found.args(["-f", "network-peer"])).status.success();
            (none && State::take() == self.before).then_some(())
        });
    }
}

/// From the first start to the last trace.
fn instances_and_remote_machines_reach_each_other(user: User, mode: &str) {
    let mut joined = Joined::new(user, mode);
    joined.check_reached();
    joined.check_secret();
    joined.check_fetched();
    joined.check_killed();
    joined.check_revoked();
    joined.stage.say(&["down"]);
    joined.wait_until_gone();
}

#[test]
fn instances_of_an_ordinary_user_and_remote_machines_reach_each_other() {
    isolate(|| instances_and_remote_machines_reach_each_other(User::Ordinary, "user"));
}

#[test]
fn instances_on_a_bridge_and_remote_machines_reach_each_other() {
    isolate(|| instances_and_remote_machines_reach_each_other(User::Root, "bridge"));
}

#[test]
fn the_office_of_the_example_is_reached_from_elsewhere() {
    isolate(|| {
        let outer = Outer::new(1);
        join_outer(&outer);
        let _hub = start_hub(&outer, &[]);
        let mut remote = start_peer(&outer, 1, &token(&outer, &[]), &["--dns"]);
        remote.wait_for_line("names of netyard.internal", PATIENCE);
        let user = User::Ordinary;
        let stage = Stage::new(user, "office", include_str!("../../../examples/office/yard.toml"));
        save_join(&outer, &stage);
        let state = user.folder("state");
        run(stage.netyard(&["up", "-d", "--wait"]).env("XDG_STATE_HOME", &state));
        wait_for_state(&stage, "connected");
        assert!(state.join("netyard/network-office.lan/node.key").exists());
        run(&mut netyard(&outer.hub, &["peers", "accept", "office", "192.168.77.0/24"]));
        let curl = |host: &str| {
            let url = format!("http://{host}.office.netyard.internal:8080/");
            let mut curl = outer.peers[0].command(peer("curl"));
            output(curl.args(["-4", "--silent", "--fail", "--max-time", "20", &url]))
        };
        for name in ["web-2", "web"] {
            wait_for(name, PATIENCE, || curl(name).status.success().then_some(()));
        }
        let turn = || {
            let done = curl("web");
            assert!(done.status.success(), "{done:?}");
            text(&done)
        };
        let turns: BTreeSet<String> = (0..3).map(|_| turn()).collect();
        assert_eq!(turns.len(), 3, "{turns:?}");
    });
}
