//! The testbed's own promises.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use netyard_testbed::{Outside, Snapshot, User, isolate, isolate_mapped, peer, run};

/// Names of the interfaces here.
fn links() -> Vec<String> {
    let text = run(Command::new(peer("ip")).args(["-o", "link"]));
    text.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned).collect()
}

fn is_alone() {
    assert_eq!(links(), ["lo"]);
    // No route to anywhere, and a port of one's own.
    let routes = run(Command::new(peer("ip")).args(["route", "show", "table", "main"]));
    assert_eq!(routes, "");
    assert!(TcpListener::bind(("127.0.0.1", 80)).is_ok());
    assert_eq!(fs::read_dir("/tmp").unwrap().flatten().filter(|it| it.path().is_file()).count(), 0);
}

#[test]
fn a_test_has_the_world_for_itself() {
    isolate(|| {
        is_alone();
    });
}

#[test]
fn a_user_namespace_does_as_well() {
    isolate_mapped(|| {
        is_alone();
    });
}

#[test]
fn the_ordinary_user_is_ordinary() {
    isolate(|| {
        let status = run(User::Ordinary.peer("cat").arg("/proc/self/status"));
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(field("Uid:"), ["1000"; 4]);
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
        run(User::Ordinary.command("netyard-traffic").arg("--help"));
    });
}

#[test]
fn the_outside_answers() {
    isolate(|| {
        let _outside = Outside::new();
        for address in Outside::ADDRESSES {
            run(Command::new(peer("ping")).args(["-c1", "-W5"]).arg(address.to_string()));
        }
    });
}

#[test]
fn leftovers_are_seen() {
    isolate(|| {
        let before = Snapshot::take();
        before.assert_restored(Duration::ZERO);
        let outside = Outside::new();
        fs::write("/tmp/left", "").unwrap();
        let mut sleeper = Command::new(peer("sleep")).arg("60").spawn().unwrap();
        let _listener = TcpListener::bind(("127.0.0.1", 80)).unwrap();
        let after = std::panic::catch_unwind(|| before.assert_restored(Duration::ZERO));
        let message = *after.unwrap_err().downcast::<String>().unwrap();
        for left in [
            "+ link uplink".to_owned(),
            "+ named namespace outside".to_owned(),
            "+ file /tmp/left".to_owned(),
            "+ socket tcp 0100007F:0050".to_owned(),
            format!("+ process {} sleep", sleeper.id()),
        ] {
            assert!(message.contains(&left), "{left} is not in:\n{message}");
        }
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        drop(outside);
    });
}
