//! Programs with a TCP/IP stack of their own in a yard.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use netyard_testbed::{Background, User, http, isolate, run, wait_for};
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

/// A program that somebody else starts plugs in by the path of a socket, again after the network's process
/// was killed, and after another one.
fn connects(user: User) {
    let yard = yard("user").replace(
        "kind = \"stack\"\nrun = [\"webapp\"]\nrestart = \"always\"",
        "kind = \"external\"\nsocket = \"plug.sock\"\nmac = \"02:00:5e:10:00:05\"",
    );
    let stage = Stage::new(user, "hello", &yard);
    run(&mut stage.netyard(&["up", "-d"]));
    let socket = stage.instance("web")["sockets"][0]["path"].as_str().unwrap().to_owned();
    assert!(stage.say(&["inspect", "web"]).contains("02:00:5e:10:00:05, for user"));
    let start = || {
        let mut webapp = user.command("webapp");
        webapp.env_remove("GONET").env(
            "NETYARD_STACK",
            format!("nic id=1 ether=02:00:5e:10:00:05 dev=unix:{socket}; ip nic=1 addr=dhcp"),
        );
        Background::start(&mut webapp)
    };
    let mut webapp = start();
    wait_for_page();
    // It has its address and its resolver by DHCP.
    let found = stage
        .inside("client", &["curl", "-sS", "-m", "60", "http://web.lan:8080/lookup/client.lan"]);
    let address = stage.instance("client")["addresses"][0].as_str().unwrap().to_owned();
    assert!(text(&found).contains(&address), "{}", text(&found));

    let network = stage.network_pid();
    signal(network, "KILL");
    wait_for("another network process", SOON, || {
        let now = stage.json(&["inspect"])["networks"][0]["state"]["pid"].as_u64();
        now.filter(|now| *now != u64::from(network))
    });
    wait_for_page();

    webapp.signal("KILL");
    webapp.wait(SOON);
    let _again = start();
    wait_for_page();
    run(&mut stage.netyard(&["down"]));
    assert!(!std::path::Path::new(&socket).exists(), "{socket}");
}

#[test]
fn one_that_somebody_else_starts_connects_to_a_socket() {
    isolate(|| connects(User::Root));
}

#[test]
fn one_that_somebody_else_starts_connects_to_a_socket_for_an_ordinary_user() {
    isolate(|| connects(User::Ordinary));
}

#[test]
fn a_socket_is_attached_until_it_is_not_wanted_any_more() {
    isolate(|| {
        let stage = Stage::new(User::Root, "hello", "");
        let mut attach = stage.netyard(&["attach", "--socket", "plug.sock", "-p", "8080"]);
        let mut attached = Background::start(attach.arg("--mac").arg("02:00:5e:10:00:05"));
        let line = attached.wait_for_line("plug.sock is there for user 0", SOON);
        assert!(line.contains("02:00:5e:10:00:05"), "{line}");
        let socket = line.split(" is there").next().unwrap();
        let mut webapp = User::Root.command("webapp");
        let configuration =
            format!("nic id=1 ether=02:00:5e:10:00:05 dev=unix:{socket}; ip nic=1 addr=dhcp");
        let _webapp = Background::start(webapp.env("NETYARD_STACK", configuration));
        wait_for_page();
        attached.signal("INT");
        assert_eq!(attached.wait(SOON).code(), Some(0), "{}", attached.output());
        assert!(!std::path::Path::new(socket).exists());
    });
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
