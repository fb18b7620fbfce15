//! A network of veth pairs that plays the Internet, and a hub and peers in namespaces on it.
#![allow(dead_code, reason = "no test file needs all of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use netyard_testbed::{Background, Namespace, User, output, peer, run, wait_for};
use serde_json::Value;

/// Far above what anything here takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The hub's address on the outer network.
pub(crate) const HUB: &str = "192.0.2.10";

/// A router with a namespace for the hub and for each peer behind it, each on a subnet of its own, so that
/// the way to the hub leads through a gateway.
pub(crate) struct Outer {
    pub(crate) hub: Namespace,
    pub(crate) peers: Vec<Namespace>,
    pub(crate) router: Namespace,
}

impl Outer {
    pub(crate) fn new(peers: usize) -> Self {
        let router = Namespace::new("router");
        let command = &mut router.command(peer("sysctl"));
        run(command.args(["-q", "-w", "net.ipv4.ip_forward=1"]));
        let join = |name: &str, subnet: &str| {
            let namespace = Namespace::new(name);
            let link = format!("to-{name}");
            let pair = ["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns"];
            router.ip(&[&pair[..], &[name]].concat());
            router.ip(&["address", "add", &format!("{subnet}.1/24"), "dev", &link]);
            router.ip(&["link", "set", &link, "up"]);
            namespace.ip(&["address", "add", &format!("{subnet}.10/24"), "dev", "eth0"]);
            namespace.ip(&["link", "set", "eth0", "up"]);
            namespace.ip(&["route", "add", "default", "via", &format!("{subnet}.1")]);
            // The kernel adds a route with it, some time after the link is up.
            wait_for("a link-local address", PATIENCE, || {
                ip(&namespace, &["-6", "route"]).to_string().contains("fe80").then_some(())
            });
            namespace
        };
        let hub = join("hub", "192.0.2");
        let peers = (1..=peers).map(|n| join(&format!("p{n}"), &format!("198.51.{n}"))).collect();
        Self { hub, peers, router }
    }
}

/// The program of this workspace, in a namespace.
pub(crate) fn netyard(namespace: &Namespace, arguments: &[&str]) -> Command {
    let program = PathBuf::from(User::Root.command("netyard").get_program());
    let mut command = namespace.command(program);
    command.args(arguments).env("NETYARD_LOG", "info");
    command
}

pub(crate) fn start_hub(outer: &Outer, flags: &[&str]) -> Background {
    let command = ["hub", "--state", "/tmp/hub-state"];
    let mut hub = Background::start(&mut netyard(&outer.hub, &[&command[..], flags].concat()));
    hub.wait_for_line("reached as", PATIENCE);
    hub
}

/// A new join string.
pub(crate) fn token(outer: &Outer, flags: &[&str]) -> String {
    let text = run(&mut netyard(&outer.hub, &[&["token", "create"][..], flags].concat()));
    text.trim().to_owned()
}

pub(crate) fn start_peer(outer: &Outer, number: usize, join: &str, flags: &[&str]) -> Background {
    let (name, state) = (format!("peer-{number}"), format!("/tmp/peer-{number}-state"));
    let command = ["join", "--name", &name, "--state", &state, join];
    Background::start(&mut netyard(&outer.peers[number - 1], &[&command[..], flags].concat()))
}

/// A peer that is on the network.
pub(crate) fn joined_peer(outer: &Outer, number: usize, flags: &[&str]) -> Background {
    let mut joined = start_peer(outer, number, &token(outer, &[]), flags);
    joined.wait_for_line("joined", PATIENCE);
    joined
}

pub(crate) fn json(command: &mut Command) -> Value {
    run(command).parse().unwrap()
}

pub(crate) fn ip(namespace: &Namespace, arguments: &[&str]) -> Value {
    json(namespace.command(peer("ip")).arg("-j").args(arguments))
}

pub(crate) fn ping(from: &Namespace, to: &str) {
    let (mut command, patience) = (from.command(peer("ping")), PATIENCE.as_secs().to_string());
    run(command.args(["-c", "3", "-i", "0.05", "-W", &patience, to]));
}

/// Waits until an address answers. What is sent while a machine is on its way back to the hub waits for it for two
/// seconds at most.
pub(crate) fn is_reached(from: &Namespace, to: &str) {
    wait_for(&format!("an answer of {to}"), PATIENCE, || {
        let mut command = from.command(peer("ping"));
        output(command.args(["-c", "1", "-W", "5", to])).status.success().then_some(())
    });
}

/// The peers as the hub sees them.
pub(crate) fn peers(outer: &Outer) -> Vec<Value> {
    let list = json(&mut netyard(&outer.hub, &["peers", "--json"]));
    list.as_array().unwrap().clone()
}

/// A connection from one machine to another on port 9000, with a turn each way all the time.
pub(crate) struct Talk {
    _echo: Background,
    talker: Background,
}

impl Talk {
    pub(crate) fn start(from: &Namespace, to: &Namespace, address: &str) -> Self {
        let script = "import socket, sys
s = socket.create_server((sys.argv[1], 9000))
print('listening', flush=True)
c, _ = s.accept()
while data := c.recv(100): c.sendall(data)";
        let mut echo = to.command(peer("python3"));
        let mut echo = Background::start(echo.args(["-c", script, address]));
        echo.wait_for_line("listening", PATIENCE);
        let script = "import socket, sys, time
c = socket.create_connection((sys.argv[1], 9000))
while True:
    c.sendall(b'x')
    print('echo', c.recv(100), flush=True)
    time.sleep(0.05)";
        let mut talker = from.command(peer("python3"));
        let mut talker = Background::start(talker.args(["-c", script, address]));
        talker.wait_for_line("echo", PATIENCE);
        Self { _echo: echo, talker }
    }

    /// The same connection lives on.
    pub(crate) fn goes_on(&self) {
        let turns = || self.talker.output().lines().count();
        let before = turns();
        wait_for("more turns", PATIENCE, || (turns() > before + 3).then_some(()));
    }
}

/// Sends a file over TCP and compares what came.
pub(crate) fn transfer(from: &Namespace, to: &Namespace, address: &str, len: usize) {
    let folder = Path::new("/tmp").join(format!("files-{}-{address}-{len}", from.name()));
    std::fs::create_dir(&folder).unwrap();
    let content: Vec<u8> = (0..len as u64).map(|at| (at * at / 251) as u8).collect();
    let (sent, came) = (folder.join("sent"), folder.join("came"));
    std::fs::write(&sent, &content).unwrap();
    let script = "import socket, sys
s = socket.create_server((sys.argv[1], 9000), family=socket.getaddrinfo(sys.argv[1], 9000)[0][0])
print('listening', flush=True)
c, _ = s.accept()
with open(sys.argv[2], 'wb') as f:
    while piece := c.recv(1 << 16): f.write(piece)
print('done', flush=True)";
    let mut server = to.command(peer("python3"));
    let mut server = Background::start(server.args(["-c", script, address]).arg(&came));
    server.wait_for_line("listening", PATIENCE);
    let script = "import socket, sys
with socket.create_connection((sys.argv[1], 9000)) as c, open(sys.argv[2], 'rb') as f: c.sendfile(f)";
    let mut client = from.command(peer("python3"));
    run(client.args(["-c", script, address]).arg(&sent));
    server.wait_for_line("done", PATIENCE);
    assert!(std::fs::read(&came).unwrap() == content, "{len} bytes did not come as they were sent");
}

/// What both ends of streams have seen go by: numbers of bytes that are not the same twice, and their SHA-256.
const STREAMS: &str = "import hashlib, os, socket, sys
what, address, lengths = sys.argv[1], sys.argv[2], [int(length) for length in sys.argv[3:]]
if what == 'receive':
    s = socket.create_server((address, 9000))
    print('listening', flush=True)
for length in lengths:
    seen, left = hashlib.sha256(), length
    if what == 'receive':
        c, _ = s.accept()
        while piece := c.recv(1 << 20):
            seen.update(piece)
            left -= len(piece)
    else:
        c = socket.create_connection((address, 9000))
        noise = os.urandom(1 << 20)
        while left:
            piece = (left.to_bytes(8, 'big') + noise)[:left]
            c.sendall(piece)
            seen.update(piece)
            left -= len(piece)
        c.shutdown(socket.SHUT_WR)
        c.recv(1)
    c.close()
    print(length - left, seen.hexdigest(), flush=True)
print('done', flush=True)";

/// Sends so many bytes over TCP, one stream after the other, and compares what both ends have seen.
pub(crate) fn streams(from: &Namespace, to: &Namespace, address: &str, lengths: &[u64]) {
    let lengths: Vec<String> = lengths.iter().map(u64::to_string).collect();
    let command = |namespace: &Namespace, what: &str| {
        let mut command = namespace.command(peer("python3"));
        command.args(["-c", STREAMS, what, address]).args(&lengths);
        command
    };
    let mut receiver = Background::start(&mut command(to, "receive"));
    receiver.wait_for_line("listening", PATIENCE);
    let sent = run(&mut command(from, "send"));
    receiver.wait_for_line("done", PATIENCE);
    let came = receiver.output().replace("listening\n", "");
    assert_eq!(came.trim(), sent.trim());
    let told: Vec<&str> = sent.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(told, [&lengths[..], &["done".to_owned()]].concat());
}
