//! `netyard nic pipe`: bytes between stdin, stdout and the network, by a card of one's choice.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use netyard_link::netns::Netns;
use netyard_testbed::{Namespace, Outside, User, isolate, peer, run};
use serde_json::Value;

/// A server on the Internet, which is another one by each card.
const FAR: &str = "203.0.113.1:7000";

fn netyard(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netyard"));
    command.args(["nic", "pipe"]).args(arguments);
    command
}

/// Runs a command with this on its stdin.
fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = start(command);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command that wants no more is looked at by what it says.
    let writing = thread::spawn(move || _ = stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Starts a server, and waits until it listens; what it said, and the rest of its stderr.
fn listening(arguments: &[&str]) -> (Child, Value) {
    let mut child = start(netyard(arguments).arg("--json"));
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    // Nobody wants the rest, but it has to go somewhere.
    thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    let event: Value = line.parse().unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!(event["event"], "listening on");
    (child, event)
}

fn address(event: &Value) -> String {
    event["local"].as_str().unwrap().to_owned()
}

/// Bytes of which no part is like another.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

/// Answers in a namespace with its word, over TCP and UDP.
fn witness(namespace: &Namespace, word: &'static str) {
    let netns = Netns::open(&namespace.path()).unwrap();
    let bind = || (TcpListener::bind(FAR).unwrap(), UdpSocket::bind(FAR).unwrap());
    let (listener, datagrams) = netns.run(bind).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            write!(stream, "{word} hears {said} from {}", from.ip()).unwrap();
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let answer = format!("{word} hears {said} from {}", from.ip());
            datagrams.send_to(answer.as_bytes(), from).unwrap();
        }
    });
}

/// Two cards, each with a server of the same address behind it; the default route is the first one's.
fn two_cards() -> (Outside, Namespace) {
    let outside = Outside::new();
    let beyond = Namespace::new("beyond");
    let ip = |arguments: &str| run(Command::new(peer("ip")).args(arguments.split(' ')));
    ip("link add second type veth peer name near netns beyond");
    for step in [
        "address add 10.9.0.1/24 dev near",
        "link set near up",
        "address add 203.0.113.1/32 dev lo",
    ] {
        beyond.ip(&step.split(' ').collect::<Vec<_>>());
    }
    ip("address add 10.9.0.2/24 dev second");
    ip("link set second up");
    ip("route add default via 10.9.0.1 dev second metric 500");
    witness(outside.namespace(), "first");
    witness(&beyond, "second");
    (outside, beyond)
}

#[test]
fn an_ordinary_user_leaves_by_the_card_that_is_named() {
    isolate(|| {
        let _cards = two_cards();
        for user in User::ALL {
            for (arguments, answer) in [
                (&[FAR][..], "first hears hello from 198.51.100.1"),
                (&["--card", "uplink", FAR], "first hears hello from 198.51.100.1"),
                (&["--card", "second", FAR], "second hears hello from 10.9.0.2"),
                (&["--route", "10.9.0.2", FAR], "second hears hello from 10.9.0.2"),
                (
                    &["--udp", "--wait", "5s", "--card", "second", FAR],
                    "second hears hello from 10.9.0.2",
                ),
                (&["--udp", "--wait", "5s", FAR], "first hears hello from 198.51.100.1"),
            ] {
                let mut command = user.command("netyard");
                command.args(["nic", "pipe"]).args(arguments);
                let output = with_input(&mut command, b"hello");
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{user:?} {arguments:?}: {errors}");
                assert_eq!(
                    String::from_utf8_lossy(&output.stdout),
                    answer,
                    "{user:?} {arguments:?}"
                );
                let held = arguments.contains(&"second");
                assert!(!held || errors.contains(", by second only"), "{user:?}: {errors}");
            }
        }
    });
}

#[test]
fn two_of_them_carry_everything_both_ways() {
    isolate(|| {
        let (server, event) = listening(&["--listen", "0"]);
        let (there, back) = (noise(3 << 20), noise(5 << 20));
        let client = thread::spawn({
            let (to, there) = (address(&event), there.clone());
            move || with_input(&mut netyard(&[&to, "--json"]), &there)
        });
        let mut server = server;
        let mut stdin = server.stdin.take().unwrap();
        let writing = thread::spawn({
            let back = back.clone();
            move || stdin.write_all(&back).unwrap()
        });
        let server = server.wait_with_output().unwrap();
        let client = client.join().unwrap();
        writing.join().unwrap();
        for done in [&server, &client] {
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        assert!(server.stdout == there && client.stdout == back);
        let said = String::from_utf8(client.stderr).unwrap();
        let events: Vec<Value> = said.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(events[0]["event"], "connected to");
        assert_eq!(events[1]["stats"]["sent_bytes"], 3 << 20);
        assert_eq!(events[1]["stats"]["received_bytes"], 5 << 20);
    });
}

#[test]
fn a_relay_leads_out_by_the_card_that_is_named() {
    isolate(|| {
        let _cards = two_cards();
        let (mut relay, event) =
            listening(&["--listen", "0", "--relay", FAR, "--keep", "--card", "second"]);
        assert!(address(&event).starts_with("127.0.0.1:"), "{event}");
        for _ in 0..3 {
            let output = with_input(&mut netyard(&[&address(&event)]), b"hello");
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(said, "second hears hello from 10.9.0.2");
        }
        relay.kill().unwrap();
        relay.wait().unwrap();
    });
}

#[test]
fn tls_is_spoken_with_those_who_prove_their_name() {
    isolate(|| {
        let [certificate, key] = ["/tmp/cert.pem", "/tmp/key.pem"];
        run(Command::new(peer("openssl"))
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=pipe.test"])
            .args(["-addext", "subjectAltName=DNS:pipe.test"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-out", certificate, "-keyout", key]));
        let (server, event) =
            listening(&["--listen", "0", "--tls-cert", certificate, "--tls-key", key]);
        let to = address(&event);
        let untrusted = with_input(&mut netyard(&["--tls", &to]), b"secret");
        let errors = String::from_utf8_lossy(&untrusted.stderr);
        assert_eq!(untrusted.status.code(), Some(1), "{errors}");
        assert!(errors.contains("no TLS with 127.0.0.1: "), "{errors}");
        let trusting = ["--tls", "--ca", certificate, "--name", "pipe.test", &to];
        let client = thread::spawn({
            let trusting = trusting.map(str::to_owned);
            move || {
                let arguments: Vec<&str> = trusting.iter().map(String::as_str).collect();
                with_input(&mut netyard(&arguments), b"secret")
            }
        });
        let server = server.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&server.stdout), "secret");
        let client = client.join().unwrap();
        assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
        assert!(Path::new(certificate).exists());
    });
}

#[test]
fn what_is_asked_for_wrongly_says_what_to_do() {
    isolate(|| {
        let _taken = TcpListener::bind("127.0.0.1:7000").unwrap();
        let _cards = two_cards();
        for (arguments, code, words) in [
            (&["example.com"][..], 2, "not HOST:PORT"),
            (&["127.0.0.1:9"], 1, "cannot connect to 127.0.0.1:9"),
            (&["--listen", "127.0.0.1:80"], 2, "give the port alone"),
            (&["--listen", "7000"], 1, "cannot use 127.0.0.1:7000"),
            (&["--listen", "--on", "route", "0"], 2, "name it with --card or --route"),
            (&["--card", "third", FAR], 1, "there is no card third"),
            (&["--route", "192.0.2.9", FAR], 1, "192.0.2.9 is not an address of a route of"),
            (&["--tls", "--udp", FAR], 2, "cannot be used with"),
            (&["--keep", FAR], 2, "--listen"),
        ] {
            let output = with_input(&mut netyard(arguments), b"");
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
            assert!(error.contains(words), "{arguments:?}: {error}");
        }
    });
}
