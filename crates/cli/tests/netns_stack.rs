//! Programs with a TCP/IP stack of their own in a yard.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use netyard_testbed::{User, http, isolate, wait_for};
use serde_json::Value;

use crate::stage::{PUBLISHED, SOON, Stage, signal, text};

fn yard(mode: &str) -> String {
    format!(
        r#"
[networks.lan]
mode = "{mode}"
subnet = "192.168.77.0/24"

[instances.web]
kind = "stack"
run = ["webapp"]
restart = "always"

[instances.client]
run = ["sleep", "infinity"]

[services.app]
instances = "web"
port = 8080
publish = "127.0.0.1:8080"
check = {{ http = "/", every = "100ms" }}
"#
    )
}

/// Waits until the page comes to the host.
fn wait_for_page() {
    let page = wait_for("the page", SOON, || http::get(PUBLISHED, "/").ok());
    assert!(page.body.contains("it came by a stack of its own"), "{page:?}");
}

/// What the program answers to the host and to an instance, before and after it was killed.
fn serves(mode: &str, user: User) {
    let stage = Stage::up(user, "hello", &yard(mode));
    wait_for_page();
    let fetch = |url: &str| text(&stage.inside("client", &["curl", "-sS", "-m", "60", url]));
    let page = fetch("http://web.lan:8080/");
    assert!(page.contains("it came by a stack of its own"), "{page}");
    // Its own resolver knows the network's names, short ones, too.
    let found = fetch("http://web:8080/lookup/client");
    let address = stage.instance("client")["addresses"][0].as_str().unwrap().to_owned();
    assert!(found.contains(&address), "{found}");
    let web = stage.instance("web");
    assert_eq!((&web["own_stack"], &web["ports"]), (&Value::Bool(true), &Value::Array(Vec::new())));
    assert!(stage.say(&["inspect", "web"]).contains("a stack of the program's own"));

    let before = stage.pid("web");
    signal(before, "KILL");
    wait_for("another program", SOON, || {
        stage.instance("web")["pid"].as_u64().filter(|now| *now != u64::from(before))
    });
    wait_for_page();
    assert_eq!(stage.instance("web")["addresses"], web["addresses"], "its addresses stay");
}

#[test]
fn one_is_a_member_like_any_other() {
    isolate(|| serves("user", User::Root));
}

#[test]
fn one_is_a_member_like_any_other_for_an_ordinary_user() {
    isolate(|| serves("user", User::Ordinary));
}

#[test]
fn one_is_a_member_like_any_other_on_a_bridge() {
    isolate(|| serves("bridge", User::Root));
}

#[test]
fn one_goes_on_when_the_network_process_is_killed() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", &yard("user"));
        let program = stage.pid("web");
        stage.kill_network();
        wait_for_page();
        assert_eq!(stage.pid("web"), program, "it was not started again");
    });
}
