//! Many instances, which are made several at a time: in order all the same, and all or none.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use netyard_testbed::{State, User, isolate, output, peer, run};
use serde_json::Value;

use crate::stage::{PUBLISHED, SOON, Stage, before, text, who};

/// More than are made at a time.
const MANY: usize = 20;

fn yard(mode: &str) -> String {
    format!(
        r#"
[networks.lan]
mode = "{mode}"
subnet = "192.168.77.0/24"

[instances.first]
run = ["sleep", "infinity"]

[instances.web]
run = ["netyard-whoami", "-a", "0.0.0.0", "-p", "8080"]
count = {MANY}
needs = ["first"]

[instances.last]
run = ["sleep", "infinity"]
needs = ["web"]

[services.web]
instances = "web"
port = 8080
publish = "127.0.0.1:8080"
check = {{ http = "/", every = "1s", timeout = "20s" }}
"#
    )
}

fn in_order(mode: &str) {
    let stage = Stage::up(User::Root, "many", &yard(mode));
    let all = stage.json(&["ps"]);
    let addresses = all.as_array().unwrap().iter().map(|it| it["addresses"][0].clone());
    let planned = (2..).map(|number| Value::from(format!("192.168.77.{number}")));
    assert_eq!(
        addresses.collect::<Vec<_>>(),
        planned.take(MANY + 2).collect::<Vec<_>>(),
        "in the order of the file"
    );
    let turns: Vec<_> = (0..MANY).map(|_| who(PUBLISHED).unwrap()).collect();
    assert_eq!(turns, (0..MANY).map(|_| who(PUBLISHED).unwrap()).collect::<Vec<_>>());
    if mode == "bridge" {
        let direct = (3..).take(MANY).map(|number| {
            let address = IpAddr::from([192, 168, 77, number]);
            who(SocketAddr::new(address, 8080)).unwrap()
        });
        assert_eq!(turns, direct.collect::<Vec<_>>(), "in the order of the file");
    }
    stage.say(&["down"]);
}

#[test]
fn addresses_and_turns_are_in_the_order_of_the_file() {
    isolate(|| in_order("user"));
}

#[test]
fn addresses_and_turns_are_in_the_order_of_the_file_on_a_bridge() {
    isolate(|| in_order("bridge"));
}

#[test]
fn one_that_cannot_be_made_undoes_the_others() {
    isolate(|| {
        let ip = |arguments: &[&str]| run(Command::new(peer("ip")).args(arguments));
        // Two of the links are somebody else's; the first in the file is told.
        for taken in ["taken0", "taken1"] {
            ip(&["link", "add", taken, "type", "bridge"]);
        }
        let yard = yard("bridge").replace(
            "[instances.last]",
            "[instances.odd]\nrun = [\"sleep\", \"1\"]\ntap = \"taken0\"\n\n\
             [instances.odder]\nrun = [\"sleep\", \"1\"]\ntap = \"taken1\"\n\n[instances.last]",
        );
        let stage = Stage::new(User::Root, "many", &yard);
        let (left, state) = (before(User::Root), State::take());
        for _ in 0..3 {
            let done = output(&mut stage.netyard(&["up", "-d"]));
            let said = text(&done);
            assert_eq!(done.status.code(), Some(1), "{said}");
            assert!(said.contains("plug instance odd in") && said.contains("taken0"), "{said}");
            left.assert_restored(SOON);
            state.assert_restored("after a link that was taken");
        }
        for taken in ["taken0", "taken1"] {
            ip(&["link", "del", taken]);
        }
        stage.say(&["up", "-d", "--wait"]);
        let all = stage.json(&["ps"]);
        assert_eq!(all.as_array().unwrap().len(), MANY + 4);
    });
}
