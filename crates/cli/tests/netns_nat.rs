//! `nic nat`, `nic stun`, `nic stun-server` and `nic lab`, as users type them.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::{Command, Output};
use std::time::Duration;

use netyard_testbed::{Background, binary, isolate, isolate_mapped, output, peer};
use serde_json::Value;

/// Far above what starting takes.
const START: Duration = Duration::from_secs(30);

/// Runs `netyard` in a lab of a kind.
fn lab(kind: &str, arguments: &[&str]) -> Output {
    let netyard = binary("netyard");
    let mut command = Command::new(&netyard);
    command.args(["nic", "lab", "up", kind, "--"]).arg(&netyard).args(arguments);
    output(&mut command)
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_lab_shows_what_its_nat_is_without_root() {
    isolate_mapped(|| {
        let said = lab("port", &["nic", "nat"]);
        assert!(said.status.success(), "{said:?}");
        let said = text(&said);
        for line in [
            "NAT        restricted by address and port (type 5)",
            "mapping    endpoint-independent",
            "filtering  address- and port-dependent",
            "external   203.0.113.1:",
            "ports      the local ones",
        ] {
            assert!(said.contains(line), "{line} is not in:\n{said}");
        }
        assert!(!said.contains("STEP"), "evidence comes when it is asked for");
    });
}

#[test]
fn json_has_the_fields_of_older_programs_and_more() {
    isolate(|| {
        let said = lab("sym-seq", &["nic", "nat", "--json"]);
        let report: Value = serde_json::from_str(&text(&said)).unwrap();
        assert_eq!(report["type"], 6);
        assert_eq!(report["nat_info"], "symetric");
        assert_eq!(report["delta"]["type"], 4);
        assert_eq!(report["delta"]["value"], 1);
        assert_eq!(report["mapping"], "address-and-port-dependent");
        assert_eq!(report["confidence"], "proven");
        assert_eq!(report["hairpin"], Value::Null);
        assert!(report["evidence"].as_array().unwrap().len() > 10);
    });
}

#[test]
fn what_cannot_be_told_has_its_exit_code() {
    isolate(|| {
        let netyard = binary("netyard");
        // A server with one address cannot tell who may send in.
        let mut server = Background::start(Command::new(&netyard).args([
            "nic",
            "stun-server",
            "--ip",
            "127.0.0.1",
        ]));
        server.wait_for_line("answering STUN on 127.0.0.1:3478", START);
        let said = output(Command::new(&netyard).args(["nic", "nat", "--server", "127.0.0.1"]));
        assert_eq!(said.status.code(), Some(4), "{said:?}");
        let said = text(&said);
        assert!(said.contains("inconclusive") && said.contains("has no second address"), "{said}");
        // Where nobody is, it cannot be told that UDP is blocked; where TCP answers, it can.
        let nobody = lab("port", &["nic", "nat", "--server", "203.0.113.77"]);
        assert_eq!(nobody.status.code(), Some(4), "{nobody:?}");
        assert!(text(&nobody).contains("the servers may not be there"), "{nobody:?}");
        let blocked = lab("blocked", &["nic", "nat"]);
        assert_eq!(blocked.status.code(), Some(0), "{blocked:?}");
        assert!(text(&blocked).contains("type 7"), "{blocked:?}");
    });
}

#[test]
fn a_lab_ends_as_its_program_does() {
    isolate(|| {
        let netyard = binary("netyard");
        let up = |kind: &str, program: &[&str]| {
            output(Command::new(&netyard).args(["nic", "lab", "up", kind, "--"]).args(program))
        };
        assert_eq!(up("open", &["sh", "-c", "exit 7"]).status.code(), Some(7));
        assert_eq!(up("open", &["sh", "-c", "kill -9 $$"]).status.code(), Some(137));
        let none = up("open", &["/no/such/program"]);
        assert_eq!(none.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&none.stderr).contains("/no/such/program"), "{none:?}");
        let endless = ["nic", "lab", "up", "open", "--delay", "1000000000000d", "--", "true"];
        assert_eq!(output(Command::new(&netyard).args(endless)).status.code(), Some(0));
        let kind = up("cone", &["true"]);
        assert_eq!(kind.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&kind.stderr).contains("full-cone"), "{kind:?}");
    });
}

#[test]
fn the_server_answers_foreign_clients() {
    isolate(|| {
        let netyard = binary("netyard");
        let mut server = Background::start(Command::new(&netyard).args([
            "nic",
            "stun-server",
            "--ip",
            "127.0.0.1",
            "--ip",
            "127.0.0.2",
        ]));
        server.wait_for_line("answering STUN on 127.0.0.1:3478", START);
        let said =
            output(Command::new(peer("turnutils_natdiscovery")).args(["-m", "-f", "127.0.0.1"]));
        let said = text(&said);
        assert!(said.contains("Endpoint Independent Filtering"), "{said}");
        for proto in ["udp", "tcp"] {
            let said =
                output(Command::new(&netyard).args(["nic", "stun", "127.0.0.1", "--proto", proto]));
            assert!(text(&said).contains("127.0.0.2:3479"), "{proto}: {said:?}");
        }
    });
}

#[test]
fn servers_that_cannot_be_are_refused() {
    isolate(|| {
        let netyard = binary("netyard");
        for (arguments, word) in [
            (&["--ip", "127.0.0.1", "--ip", "127.0.0.1"][..], "two addresses"),
            (&["--ip", "127.0.0.1", "--ip", "::1"], "two families"),
            (&["--ip", "192.0.2.1"], "cannot listen on 192.0.2.1:3478"),
            (&["--tls-cert", "x.pem"], "--tls-key"),
        ] {
            let said = output(Command::new(&netyard).args(["nic", "stun-server"]).args(arguments));
            let errors = String::from_utf8_lossy(&said.stderr);
            assert!(!said.status.success() && errors.contains(word), "{word}: {errors}");
        }
    });
}
