//! The stage of the whole-binary tests: a yard of one's own, and what the commands say about it.
#![allow(dead_code, reason = "each test file uses its own part of the stage")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a step that fails is a failed test, wherever it stands"
)]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use netyard_testbed::{
    Background, Outside, Snapshot, User, ask, binary, http, output, run, runtime_root, wait_for,
};
use serde_json::Value;

/// Far above what a start or a stop takes on a slow machine with nothing to spare.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Where the yards of these tests publish their service.
pub(crate) const PUBLISHED: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// Three whoami daemons behind one published port, as in `examples/hello`.
pub(crate) const HELLO: &str = r#"
[networks.lan]

[instances.web]
run = ["netyard-whoami", "-a", "0.0.0.0", "-p", "8080"]
count = 3
restart = "no"

[services.web]
instances = "web"
port = 8080
publish = "127.0.0.1:8080"
check = { http = "/", every = "1s", timeout = "20s" }
"#;

/// The networks of yards in which somebody is on another network: `lan` has both families.
pub(crate) fn lan_and_other(mode: &str) -> String {
    format!(
        r#"
[networks.lan]
mode = "{mode}"
subnet = "192.168.77.0/24"
subnet6 = "fd00:77::/64"

[networks.other]
mode = "{mode}"
subnet = "192.168.78.0/24"
"#
    )
}

/// A yard in a folder of its own. It is not stopped when this value goes: the process namespace
/// of the test is.
pub(crate) struct Stage {
    pub(crate) user: User,
    pub(crate) folder: PathBuf,
}

impl Stage {
    /// Writes the yard file; the folder's name is the yard's.
    pub(crate) fn new(user: User, name: &str, yard: &str) -> Self {
        let stage = Self { user, folder: user.folder(name) };
        stage.write(yard);
        stage
    }

    /// The same with the yard running and everything in it healthy.
    pub(crate) fn up(user: User, name: &str, yard: &str) -> Self {
        let stage = Self::new(user, name, yard);
        run(&mut stage.netyard(&["up", "-d", "--wait"]));
        stage
    }

    /// Replaces the yard file.
    pub(crate) fn write(&self, yard: &str) {
        fs::write(self.folder.join("yard.toml"), yard).unwrap();
    }

    /// A `netyard` command in the yard's folder.
    pub(crate) fn netyard(&self, arguments: &[&str]) -> Command {
        let mut command = self.user.command("netyard");
        command.args(arguments).current_dir(&self.folder);
        command
    }

    /// Runs a `netyard` command to its end and returns its standard output.
    pub(crate) fn say(&self, arguments: &[&str]) -> String {
        run(&mut self.netyard(arguments))
    }

    /// What a command prints with `--json`.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let text = self.say(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// What `ps` knows of one instance.
    pub(crate) fn instance(&self, name: &str) -> Value {
        let all = self.json(&["ps"]);
        let found = all.as_array().unwrap().iter().find(|it| it["name"] == name).cloned();
        found.unwrap_or_else(|| panic!("no {name} in {all}"))
    }

    /// Process id of an instance's program.
    pub(crate) fn pid(&self, name: &str) -> u32 {
        number(&self.instance(name)["pid"])
    }

    /// Process id of the first network's process.
    pub(crate) fn network_pid(&self) -> u32 {
        wait_for("the network's process", SOON, || {
            let pid = number(&self.json(&["inspect"])["networks"][0]["state"]["pid"]);
            (pid != 0).then_some(pid)
        })
    }

    /// Kills the process of the first network, and waits until another one serves it.
    pub(crate) fn kill_network(&self) {
        let killed = self.network_pid();
        signal(killed, "KILL");
        wait_for("another network process", SOON, || {
            let pid = self.json(&["inspect"])["networks"][0]["state"]["pid"].as_u64()?;
            (pid != 0 && pid != u64::from(killed)).then_some(())
        });
    }

    /// Process id of the keeper.
    pub(crate) fn keeper_pid(&self) -> u32 {
        number(&self.json(&["inspect"])["keeper_pid"])
    }

    /// Runs a program inside an instance to its end.
    pub(crate) fn inside(&self, instance: &str, program: &[&str]) -> Output {
        let arguments = [&["exec", instance, "--"], program].concat();
        output(&mut self.netyard(&arguments))
    }
}

/// A number that is a process id or a count.
pub(crate) fn number(value: &Value) -> u32 {
    let number = value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"));
    u32::try_from(number).unwrap()
}

/// Sends a signal to one process.
pub(crate) fn signal(process: u32, name: &str) {
    run(Command::new("kill").arg(format!("-{name}")).arg(process.to_string()));
}

/// Which whoami daemon answers one new connection.
pub(crate) fn who(server: SocketAddr) -> std::io::Result<String> {
    let answer = http::get(server, "/")?;
    let id = answer.body.trim().strip_prefix("My id is ").map(str::to_owned);
    id.filter(|_| answer.status == 200)
        .ok_or_else(|| std::io::Error::other(format!("answered {answer:?}")))
}

/// Which whoami daemon answers the datagram of a new socket.
pub(crate) fn who_udp(server: SocketAddr) -> std::io::Result<String> {
    ask::Server::Udp(server).ask().map(|answer| id(&answer).to_owned())
}

/// The id in the answer of a whoami daemon.
pub(crate) fn id(answer: &str) -> &str {
    answer.trim().strip_prefix("My id is ").unwrap_or_else(|| panic!("answered {answer:?}"))
}

/// What `netyard-traffic ask` has printed: which daemon has answered, question by question.
pub(crate) fn asked(output: &str) -> Vec<String> {
    let (answers, rest) = output.split_once("asked\n").unwrap_or_else(|| panic!("{output}"));
    assert!(rest.trim().is_empty(), "{output}");
    let answers = answers.lines().map(|line| id(line.split_once(' ').unwrap().1).to_owned());
    answers.collect()
}

/// Waits until the network of a yard gives turns to an instance, or gives it none.
pub(crate) fn has_turns(stage: &Stage, instance: &str, has: bool) {
    wait_for(&format!("{instance} to have turns: {has}"), SOON, || {
        let given = turns(stage);
        (given.iter().any(|name| name == instance) == has).then_some(())
    });
}

/// Waits until the network of a yard gives turns to so many instances.
pub(crate) fn have_turns(stage: &Stage, count: usize) {
    wait_for(&format!("turns of {count} instances"), SOON, || {
        (turns(stage).len() == count).then_some(())
    });
}

/// Waits until the instances of a service, by its place among all, have had so many turns: a network that is
/// busy is shown without them.
pub(crate) fn have_had(stage: &Stage, service: usize, turns: &[u64]) {
    wait_for(&format!("turns of {turns:?}"), SOON, || {
        let service = stage.json(&["service", "ls"])[service].clone();
        let instances = service["instances"].as_array().unwrap().iter();
        let had: Option<Vec<u64>> = instances.map(|it| it["turns"]["turns"].as_u64()).collect();
        (had? == turns).then_some(())
    });
}

/// The instances that get turns, as the networks themselves tell: the keeper may know better already.
fn turns(stage: &Stage) -> BTreeSet<String> {
    let yard = stage.json(&["inspect"]);
    let networks = yard["networks"].as_array().unwrap().iter();
    let services = networks.filter_map(|network| network["state"]["services"].as_array());
    let instances = services.flatten().filter_map(|it| it["spec"]["instances"].as_array());
    let given = instances.flatten().filter(|instance| instance["eligible"] == true);
    given.map(|instance| instance["name"].as_str().unwrap().to_owned()).collect()
}

/// Runs a test with and without frames that bridges forward passing the IP rules; once, as it is, where the
/// kernel has no such setting.
pub(crate) fn with_and_without_br_netfilter(mut test: impl FnMut(&str)) {
    let folder = Path::new("/proc/sys/net/bridge");
    if !folder.is_dir() {
        return test("not there");
    }
    for value in ["1", "0"] {
        for kind in ["iptables", "ip6tables", "arptables"] {
            fs::write(folder.join(format!("bridge-nf-call-{kind}")), value).unwrap();
        }
        test(value);
    }
}

/// Waits until new connections are answered.
pub(crate) fn wait_until_answered(server: SocketAddr) {
    wait_for(&format!("an answer from {server}"), SOON, || who(server).ok());
}

/// `netyard-traffic serve` in the outside, on port 7000 of both its addresses.
pub(crate) fn serve_outside(outside: &Outside) -> Background {
    let at = Outside::ADDRESSES.map(|address| SocketAddr::new(address, 7000).to_string());
    let mut server =
        Background::start(outside.command(binary("netyard-traffic")).arg("serve").args(at));
    server.wait_for_line("listening", SOON);
    server
}

/// Has every group of a user's programs ping. In a new network namespace none may.
pub(crate) fn allow_pings() {
    // In a user namespace only its own groups can be named.
    let groups = if User::ids_are_real() { "0 2147483647" } else { "0 0" };
    fs::write("/proc/sys/net/ipv4/ping_group_range", groups).unwrap();
}

/// What a failed command said, both streams.
pub(crate) fn text(done: &Output) -> String {
    let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&done.stderr));
    text
}

/// Waits until `netyard-traffic serve` answers behind an address.
pub(crate) fn wait_until_open(server: SocketAddr) {
    wait_for(&format!("{server} to open"), SOON, || {
        netyard_testbed::traffic::connections(server, 1).ok()
    });
}

/// What there is before a test acts. The user's runtime folder, which stays when the last yard
/// goes, is there already.
pub(crate) fn before(user: User) -> Snapshot {
    let root = runtime_root(user);
    for folder in [root.clone(), root.join(".networks")] {
        run(user.peer("mkdir").args(["-m", "700"]).arg(folder));
    }
    Snapshot::take()
}
