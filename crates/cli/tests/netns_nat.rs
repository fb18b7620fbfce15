//! `nic nat`, `nic stun`, `nic stun-server` and `nic lab`, as users type them.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::{Command, Output};
use std::time::Duration;

use netyard_testbed::{
    Background, Outside, binary, isolate, isolate_mapped, output, peer, run, wait_for,
};
use serde_json::Value;

/// Far above what starting takes.
const START: Duration = Duration::from_secs(30);

/// Far above what several attempts take.
const STALL: Duration = Duration::from_secs(120);

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

/// Starts a server outside, with a certificate for its address.
fn server_with_tls(outside: &Outside, port: &str, tls_port: &str) -> Background {
    let mut server = outside.command(binary("netyard"));
    server.args(["nic", "stun-server", "--ip", "203.0.113.1", "--port", port]);
    server.args(["--tls-cert", "/tmp/cert.pem", "--tls-key", "/tmp/key.pem"]);
    let mut server = Background::start(server.args(["--tls-port", tls_port]));
    server.wait_for_line("answering STUN on 203.0.113.1", START);
    server
}

#[test]
fn c20_where_udp_and_tcp_are_silent_servers_are_asked_over_tls() {
    isolate(|| {
        let outside = Outside::new();
        run(Command::new(peer("openssl"))
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=stun"])
            .args(["-addext", "subjectAltName=IP:203.0.113.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-out", "/tmp/cert.pem", "-keyout", "/tmp/key.pem"]));
        let _servers = [("3478", "5349"), ("3479", "443")]
            .map(|(port, tls_port)| server_with_tls(&outside, port, tls_port));
        let netyard = binary("netyard");
        let (plain, https) = (&["203.0.113.1"][..], &["203.0.113.1", "stuns:203.0.113.1:443"][..]);
        let ask = |verb: &[&str], servers: &[&str]| {
            let mut command = Command::new(&netyard);
            command.arg("nic").args(verb).env("SSL_CERT_FILE", "/tmp/cert.pem");
            servers.iter().for_each(|server| _ = command.args(["--server", server]));
            command
        };
        // A firewall that lets nothing out but one port of TCP; it is silent about the rest.
        for (port, servers) in [("5349", plain), ("443", https)] {
            let rules = [
                "flush ruleset".to_owned(),
                "add table inet f".to_owned(),
                "add chain inet f in { type filter hook input priority 0; }".to_owned(),
                "add rule inet f in meta l4proto udp drop".to_owned(),
                format!("add rule inet f in tcp dport != {port} drop"),
            ];
            for rule in rules {
                run(outside.command(peer("nft")).args(rule.split(' ')));
            }
            // Servers have two seconds for the handshake: on a machine that stalls it takes some more attempts.
            let said = wait_for("a verdict that TLS proves", STALL, || {
                let said = output(&mut ask(&["nat", "--json"], servers));
                (said.status.code() == Some(0)).then_some(said)
            });
            let report: Value = serde_json::from_str(&text(&said)).unwrap();
            assert_eq!(report["type"], 7, "{port}: {report}");
            assert_eq!(report["confidence"], "proven", "{port}: {report}");
            assert_eq!((&report["tcp_stun"], &report["tls_stun"]), (&false.into(), &true.into()));
            let external = report["external"].as_str().unwrap();
            assert!(external.starts_with("198.51.100.1:"), "{port}: {report}");
            let routes = ["routes", "-4", "--treat-as-public", "198.51.100.0/24"];
            wait_for("an external address over TLS", STALL, || {
                let said = text(&output(&mut ask(&routes, servers)));
                said.contains("[198.51.100.1]  -> [198.51.100.1]  direct").then_some(())
            });
            // Who does not prove its name is not believed.
            let doubted = output(ask(&["nat"], servers).env("SSL_CERT_FILE", "/dev/null"));
            assert_eq!(doubted.status.code(), Some(4), "{port}: {doubted:?}");
        }
        // Named for TLS, the server is asked so, and only so.
        let mut stun = Command::new(&netyard);
        stun.args(["nic", "stun", "stuns:203.0.113.1:443", "--ca", "/tmp/cert.pem"]);
        wait_for("an answer over TLS", STALL, || {
            let said = text(&output(&mut stun));
            said.contains("203.0.113.1:443  198.51.100.1:").then_some(())
        });
        let wrong = output(stun.args(["--proto", "tcp"]));
        assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
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
