//! Answers that are under way when their instance is stopped: they arrive whole, by connection and by
//! request, in networks that move their own packets and on bridges.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs::{self, OpenOptions};
use std::process::Command;

use netyard_testbed::{Background, User, http, isolate, peer, run, wait_for};

use crate::stage::{PUBLISHED, SOON, Stage, has_turns};

/// Says its name: at once, or of `/slow` one half at once and the other when somebody has written to the
/// FIFO `gate` beside it.
const SERVER: &str = r#"
import socket, threading

NAME = (socket.gethostname() + "\n").encode()

def answer(client):
    with client, client.makefile("rb") as lines:
        words = lines.readline().split()
        if not words:
            return
        while lines.readline().strip():
            pass
        half = NAME * 20000 if words[1] == b"/slow" else NAME
        head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (2 * len(half))
        client.sendall(head.encode() + half)
        if words[1] == b"/slow":
            open("gate").read()
        client.sendall(half)

server = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    threading.Thread(target=answer, args=(server.accept()[0],)).start()
"#;

fn yard(mode: &str, policy: &str) -> String {
    format!(
        r#"
[networks.lan]
mode = "{mode}"
subnet = "192.168.77.0/24"

[instances.web]
run = ["python3", "server.py"]
count = 2
restart = "no"

[instances.client]
run = ["sleep", "infinity"]

[services.web]
instances = "web"
port = 8080
publish = "127.0.0.1:8080"
policy = "{policy}"
check = {{ http = "/", every = "100ms", timeout = "20s" }}
"#
    )
}

fn slow_answers_end_whole(mode: &str) {
    for policy in ["round-robin", "per-request"] {
        let stage = Stage::new(User::Root, policy, &yard(mode, policy));
        fs::write(stage.folder.join("server.py"), SERVER).unwrap();
        let gate = stage.folder.join("gate");
        run(Command::new(peer("mkfifo")).arg(&gate));
        stage.say(&["up", "-d", "--wait"]);

        // Somebody outside, and a guest.
        let download = stage.folder.join("answer");
        let curl = ["curl", "-sS", "--fail", "-o", download.to_str().unwrap()];
        let mut outside = Command::new(peer("curl"));
        outside.args(&curl[1..]).arg(format!("http://{PUBLISHED}/slow"));
        let url = "http://web.lan:8080/slow";
        let inside = stage.netyard(&[&["exec", "client", "--"][..], &curl, &[url]].concat());
        for mut client in [outside, inside] {
            let mut client = Background::start(&mut client);
            let begun = wait_for("the first half", SOON, || {
                let text = fs::read_to_string(&download).ok()?;
                text.lines().next().map(str::to_owned)
            });
            let mut stop = Background::start(&mut stage.netyard(&["stop", &begun]));
            has_turns(&stage, &begun, false);
            for _ in 0..2 {
                let other = http::get(PUBLISHED, "/").unwrap().body;
                assert!(!other.contains(&begun), "{policy}: {other}");
            }
            // Who opens it waits for who reads it.
            drop(OpenOptions::new().write(true).open(&gate).unwrap());
            assert!(client.wait(SOON).success(), "{policy}: {}", client.output());
            let whole = fs::read_to_string(&download).unwrap();
            assert!(
                whole == format!("{begun}\n").repeat(40_000),
                "{policy}: {} bytes",
                whole.len()
            );
            assert!(stop.wait(SOON).success(), "{policy}: {}", stop.output());
            assert_eq!(stage.instance(&begun)["state"], "stopped", "{policy}");
            fs::remove_file(&download).unwrap();
            stage.say(&["start", &begun]);
            has_turns(&stage, &begun, true);
        }
        stage.say(&["down"]);
    }
}

#[test]
fn a_slow_answer_ends_whole_though_its_instance_is_stopped() {
    isolate(|| slow_answers_end_whole("user"));
}

#[test]
fn a_slow_answer_ends_whole_though_its_instance_is_stopped_on_a_bridge() {
    isolate(|| slow_answers_end_whole("bridge"));
}
