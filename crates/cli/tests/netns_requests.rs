//! Services of which each request takes a turn, in networks that move their own packets and on
//! bridges.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use netyard_testbed::{Outside, SetAtEnd, User, isolate, output, peer, wait_for};
use serde_json::Value;

use crate::stage::{
    PUBLISHED, SOON, Stage, have_had, have_turns, signal, text, wait_until_answered,
};

/// So many daemons behind one published port, and a client.
fn yard(mode: &str, count: usize) -> String {
    format!(
        r#"
[networks.lan]
mode = "{mode}"
subnet = "192.168.77.0/24"

[instances.web]
run = ["netyard-whoami", "-a", "0.0.0.0", "-p", "8080"]
count = {count}
restart = "no"

[instances.client]
run = ["sleep", "infinity"]

[services.web]
instances = "web"
port = 8080
publish = "127.0.0.1:8080"
policy = "per-request"
check = {{ http = "/", every = "100ms", timeout = "20s" }}
"#
    )
}

/// A server that shows what it was asked, published for everybody, and clients on two networks.
fn mirror(mode: &str) -> String {
    format!(
        r#"
[networks.lan]
mode = "{mode}"
subnet = "192.168.77.0/24"

[networks.other]
mode = "{mode}"
subnet = "192.168.78.0/24"

[instances.mirror]
run = ["hello-server"]
network = "lan"

[instances.client]
run = ["sleep", "infinity"]
network = "lan"

[instances.stranger]
run = ["sleep", "infinity"]
network = "other"

[services.web]
instances = "mirror"
port = 8081
publish = "0.0.0.0:8080"
policy = "per-request"
"#
    )
}

/// Brings a yard up, until its network gives turns to so many instances.
fn up(user: User, name: &str, yard: &str, count: usize) -> Stage {
    let stage = Stage::up(user, name, yard);
    have_turns(&stage, count);
    stage
}

/// A connection that stays open.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(server: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Status and body of one more answer.
    fn get(&mut self) -> io::Result<(u16, String)> {
        self.0.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: web.lan\r\n\r\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no answer: {line:?}")))?;
        let mut len = 0;
        while line.trim_end() != "" {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse().unwrap();
            }
            line.clear();
            self.0.read_line(&mut line)?;
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body)?;
        Ok((status, String::from_utf8(body).unwrap()))
    }

    /// Who answers.
    fn who(&mut self) -> String {
        let (status, body) = self.get().unwrap();
        assert_eq!(status, 200, "{body}");
        body.strip_prefix("My id is ").unwrap_or_else(|| panic!("{body}")).to_owned()
    }
}

/// Who answers a guest's requests, so many on one connection.
fn asked_inside(stage: &Stage, instance: &str, flags: &[&str], count: usize) -> Vec<String> {
    let url = "http://web.lan:8080/";
    let mut command = vec!["curl", "-sS", "--fail", "-w", "\n"];
    command.extend(flags);
    command.extend(std::iter::repeat_n(url, count));
    let done = stage.inside(instance, &command);
    let answers = text(&done);
    let ids = answers.lines().map(|line| line.strip_prefix("My id is "));
    ids.map(|id| id.unwrap_or_else(|| panic!("{answers}")).to_owned()).collect()
}

fn service(stage: &Stage) -> Value {
    stage.json(&["service", "ls"])[0].clone()
}

/// The counter of each instance of the service.
/// How many turns of each instance came to nothing.
fn failed(stage: &Stage) -> Vec<u64> {
    let service = service(stage);
    let instances = service["instances"].as_array().unwrap().iter();
    instances.map(|instance| instance["turns"]["failed"].as_u64().unwrap()).collect()
}

fn assert_in_turn(answers: &[String], count: usize) {
    let (first, rest) = answers.split_at(count);
    for (place, id) in first.iter().enumerate() {
        assert!(!first[..place].contains(id), "{first:?}");
    }
    for turn in rest.chunks(count) {
        assert_eq!(turn, &first[..turn.len()]);
    }
}

fn in_turn_for_everybody(mode: &str, user: User) {
    let stage = up(user, "hello", &yard(mode, 3), 3);
    let mut client = Client::connect(PUBLISHED).unwrap();
    let mut answers: Vec<String> = (0..300).map(|_| client.who()).collect();
    // The same turns by name from inside, by both families, on one connection each; from an instance
    // of the service itself; and on new connections.
    answers.extend(asked_inside(&stage, "client", &["-4"], 10));
    answers.extend(asked_inside(&stage, "client", &["-6"], 10));
    answers.extend(asked_inside(&stage, "web-2", &[], 4));
    answers.extend((0..3).map(|_| Client::connect(PUBLISHED).unwrap().who()));
    answers.extend((0..3).map(|_| client.who()));
    assert_eq!(answers.len(), 330);
    assert_in_turn(&answers, 3);
    have_had(&stage, 0, &[110; 3]);
    assert_eq!(failed(&stage), [0; 3]);
    assert_eq!(service(&stage)["policy"], "per-request");
    let shown = stage.say(&["service", "ls"]);
    assert!(shown.contains("per-request"), "{shown}");
    stage.say(&["down"]);
    wait_for("nobody", SOON, || Client::connect(PUBLISHED).is_err().then_some(()));
}

#[test]
fn requests_of_everybody_go_strictly_in_turn() {
    isolate(|| in_turn_for_everybody("user", User::Root));
}

#[test]
fn requests_of_everybody_go_strictly_in_turn_for_an_ordinary_user() {
    isolate(|| in_turn_for_everybody("user", User::Ordinary));
}

#[test]
fn requests_of_everybody_go_strictly_in_turn_on_a_bridge() {
    isolate(|| in_turn_for_everybody("bridge", User::Root));
}

/// 64 clients that keep their connections, 3,000 requests.
fn shared_out_exactly(mode: &str) {
    let _stage = up(User::Root, "hello", &yard(mode, 3), 3);
    let clients: Vec<_> = (0..64)
        .map(|client| {
            let count = if client < 56 { 47 } else { 46 };
            thread::spawn(move || -> Vec<String> {
                let mut client = Client::connect(PUBLISHED).unwrap();
                (0..count).map(|_| client.who()).collect()
            })
        })
        .collect();
    let mut answers = BTreeMap::<_, u32>::new();
    for answer in clients.into_iter().flat_map(|client| client.join().unwrap()) {
        *answers.entry(answer).or_default() += 1;
    }
    assert_eq!(answers.values().copied().collect::<Vec<_>>(), [1000; 3]);
}

#[test]
fn parallel_requests_are_shared_out_exactly() {
    isolate(|| shared_out_exactly("user"));
}

#[test]
fn parallel_requests_are_shared_out_exactly_on_a_bridge() {
    isolate(|| shared_out_exactly("bridge"));
}

fn nothing_fails(mode: &str) {
    let stage = up(User::Root, "hello", &yard(mode, 3), 3);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = SetAtEnd(&stop);
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::connect(PUBLISHED).unwrap();
                    let mut asked = 0;
                    while !stop.load(Ordering::Relaxed) {
                        client.who();
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        // Not even those that the dead one had: another instance gets them.
        signal(stage.pid("web-2"), "KILL");
        wait_for("web-2's end to be known", SOON, || {
            stage.instance("web-2")["state"].get("exited").is_some().then_some(())
        });
        // One that is told to stop completes what it has.
        stage.say(&["stop", "web-3"]);
        stage.write(&yard(mode, 4));
        stage.say(&["up", "-d", "--wait"]);
        have_turns(&stage, 4);
        drop(end);
        let asked: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert!(asked > 50, "only {asked} requests were made");
    });
    let mut client = Client::connect(PUBLISHED).unwrap();
    let answers: Vec<String> = (0..40).map(|_| client.who()).collect();
    assert_in_turn(&answers, 4);
}

#[test]
fn no_request_fails_when_instances_die_stop_and_come() {
    isolate(|| nothing_fails("user"));
}

#[test]
fn no_request_fails_when_instances_die_stop_and_come_on_a_bridge() {
    isolate(|| nothing_fails("bridge"));
}

fn order_goes_on(mode: &str) {
    let stage = up(User::Root, "hello", &yard(mode, 3), 3);
    let mut client = Client::connect(PUBLISHED).unwrap();
    let first: Vec<String> = (0..3).map(|_| client.who()).collect();
    assert_eq!(client.who(), first[0]);
    stage.write(&yard(mode, 4));
    stage.say(&["up", "-d", "--wait"]);
    have_turns(&stage, 4);
    let next: Vec<String> = (0..8).map(|_| client.who()).collect();
    assert_eq!(next[..2], first[1..]);
    assert!(!first.contains(&next[2]));
    assert_eq!(next[3], first[0]);
    assert_eq!(next[..4], next[4..]);
    for name in ["web-1", "web-2", "web-3", "web-4"] {
        stage.say(&["stop", name]);
    }
    have_turns(&stage, 0);
    let (status, body) = client.get().unwrap();
    assert_eq!((status, body.as_str()), (503, "no instance of web can be asked now\n"));
    wait_for("it to be counted", SOON, || (service(&stage)["refused"] == 1).then_some(()));
    // The other policy joins connections with instances again, and back.
    let connections = yard(mode, 4).replace("per-request", "round-robin");
    for (yard, policy) in [(connections, "round-robin"), (yard(mode, 4), "per-request")] {
        stage.write(&yard);
        stage.say(&["up", "-d", "--wait"]);
        assert_eq!(service(&stage)["policy"], policy);
        have_turns(&stage, 4);
        wait_until_answered(PUBLISHED);
        let mut client = Client::connect(PUBLISHED).unwrap();
        assert_eq!(client.who() == client.who(), policy == "round-robin");
    }
}

#[test]
fn the_order_goes_on_through_changes() {
    isolate(|| order_goes_on("user"));
}

#[test]
fn the_order_goes_on_through_changes_on_a_bridge() {
    isolate(|| order_goes_on("bridge"));
}

fn clients_are_told(mode: &str) {
    let outside = Outside::new();
    let before = stage::before(User::Root);
    let stage = up(User::Root, "mirror", &mirror(mode), 1);
    let shown = |done: &std::process::Output| -> BTreeMap<String, String> {
        let said = text(done);
        let fields = said.lines().filter_map(|line| line.split_once(": "));
        let fields: BTreeMap<String, String> =
            fields.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        assert!(fields.contains_key("x-forwarded-for"), "{said}");
        fields
    };
    let curl = ["-sS", "-m", "20", "--fail"];
    // From outside, by the host's address.
    let at = SocketAddr::new(IpAddr::V4(Outside::HOST4), 8080);
    let url = format!("http://{at}/headers");
    let fields = shown(&output(outside.command(peer("curl")).args(curl).arg(&url)));
    assert_eq!(fields["x-forwarded-for"], Outside::ROUTER4.to_string());
    assert_eq!((&fields["host"], &fields["x-forwarded-host"]), (&at.to_string(), &at.to_string()));
    assert_eq!(fields["x-forwarded-proto"], "http");
    assert!(!fields.contains_key("connection"), "{fields:?}");
    // From the host itself, by loopback.
    let loopback = ["http://127.0.0.1:8080/headers", "-H", "X-Forwarded-For: 203.0.113.5"];
    let fields = shown(&output(User::Root.peer("curl").args(curl).args(loopback)));
    assert_eq!(fields["x-forwarded-for"], "203.0.113.5, 127.0.0.1");
    // From a guest, by the name and both families.
    let guest = stage.instance("client")["addresses"].clone();
    for (flag, place) in [("-4", 0), ("-6", 1)] {
        let url = "http://web.lan:8081/headers";
        let done = stage.inside("client", &["curl", flag, "-sS", "-m", "20", url]);
        assert_eq!(shown(&done)["x-forwarded-for"], guest[place].as_str().unwrap());
    }
    if mode == "bridge" {
        // From a guest of another network, and from one of the same, by the host's address.
        for instance in ["stranger", "client"] {
            let address = stage.instance(instance)["addresses"][0].clone();
            let done = stage.inside(instance, &["curl", "-sS", "-m", "20", &url]);
            assert_eq!(shown(&done)["x-forwarded-for"], address.as_str().unwrap());
        }
    }
    // Nothing but the service is open at its address.
    let done = stage.inside("client", &["curl", "-sS", "-m", "20", "http://web.lan:8082/"]);
    assert!(text(&done).contains("Failed to connect"), "{}", text(&done));
    stage.say(&["down"]);
    std::fs::remove_dir_all(&stage.folder).unwrap();
    before.assert_restored(SOON);
}

#[test]
fn instances_are_told_who_asks() {
    isolate(|| clients_are_told("user"));
}

#[test]
fn instances_are_told_who_asks_on_a_bridge() {
    isolate(|| clients_are_told("bridge"));
}

/// The network's process is killed and replaced; the programs go on.
#[test]
fn a_network_process_that_is_killed_serves_requests_again() {
    isolate(|| {
        let stage = up(User::Root, "hello", &yard("user", 2), 2);
        let mut client = Client::connect(PUBLISHED).unwrap();
        let first = [client.who(), client.who()];
        signal(stage.network_pid(), "KILL");
        assert!(client.get().is_err());
        have_turns(&stage, 2);
        let mut client = Client::connect(PUBLISHED).unwrap();
        let mut again = [client.who(), client.who()];
        again.sort();
        let mut first = first;
        first.sort();
        assert_eq!(first, again);
    });
}
