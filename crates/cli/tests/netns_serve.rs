//! `netyard nic serve`: the cards over HTTP, as curl asks for them.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::process::{Command, Output};
use std::time::Duration;

use netyard_testbed::{Background, Outside, isolate, output, peer, wait_for};
use serde_json::Value;

/// Far above what anything here takes.
const SOON: Duration = Duration::from_secs(30);

fn netyard(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netyard"));
    command.args(line.split(' '));
    command
}

fn curl(arguments: &[&str]) -> Output {
    output(Command::new(peer("curl")).args(["-s", "-m", "30", "--noproxy", "*"]).args(arguments))
}

#[test]
fn whoever_has_the_token_is_answered() {
    isolate(|| {
        let _outside = Outside::new();
        let mut server = Background::start(&mut netyard("nic serve --port 0 --json"));
        let told: Value = server.wait_for_line("listening", SOON).parse().unwrap();
        let token = told["token"].as_str().unwrap();
        assert_eq!(token.len(), 64, "{told}");
        let urls: Vec<_> =
            told["listening"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        assert!(urls[0].starts_with("http://127.0.0.1:") && urls[1].starts_with("http://[::1]:"));
        for url in &urls {
            let bearer = format!("Authorization: Bearer {token}");
            let said = curl(&["-g", "-H", &bearer, &format!("{url}/v1/interfaces/default")]).stdout;
            let card: Value = serde_json::from_slice(&said).unwrap();
            assert_eq!(card["name"], "uplink");
            let refused = curl(&["-g", "-w", "%{http_code}", &format!("{url}/v1/interfaces")]);
            let refused = String::from_utf8(refused.stdout).unwrap();
            assert!(refused.ends_with("401") && refused.contains("Bearer TOKEN"), "{refused}");
        }
        let again = output(&mut netyard(&format!("nic serve --port {}", {
            urls[0].rsplit(':').next().unwrap()
        })));
        let error = String::from_utf8(again.stderr).unwrap();
        assert_eq!(again.status.code(), Some(1), "{error}");
        assert!(error.contains("cannot use 127.0.0.1:"), "{error}");
        server.signal("INT");
        assert!(server.wait(SOON).success());
    });
}

#[test]
fn it_is_reached_from_where_it_listens_only() {
    isolate(|| {
        let outside = Outside::new();
        let far = |url: &str| {
            let mut command = outside.command(peer("curl"));
            command.args([
                "-s",
                "-m",
                "5",
                "--noproxy",
                "*",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
            ]);
            String::from_utf8(output(command.args(["-H", "Authorization: Bearer t", url])).stdout)
                .unwrap()
        };
        for (listen, reached) in [("loopback", false), ("local", true), ("all", true)] {
            let line = format!("nic serve --listen {listen} --token t --port 8000");
            let mut server = Background::start(&mut netyard(&line));
            let told = server.wait_for_line("answering on", SOON);
            assert!(!server.output().contains("the token is"), "{told}");
            let code = far("http://198.51.100.1:8000/v1/pipes");
            assert_eq!(code, if reached { "200" } else { "000" }, "{told}");
            drop(server);
            wait_for("the port to be free", SOON, || {
                std::net::TcpListener::bind("0.0.0.0:8000").ok().map(drop)
            });
        }
        let open = output(&mut netyard("nic serve --listen all --no-token"));
        assert_eq!(open.status.code(), Some(2));
        assert!(String::from_utf8(open.stderr).unwrap().contains("without a token"));
    });
}
