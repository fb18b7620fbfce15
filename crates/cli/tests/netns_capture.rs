//! What passes a network in user mode, and who talks to whom: `capture`, `flows` and the counters, with
//! tshark as the witness.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;

use netyard_testbed::{Background, User, http, isolate, run, tshark, wait_for};
use serde_json::Value;

use crate::stage::{HELLO, PUBLISHED, SOON, Stage};

/// The network of the yard, as `network ls` names it.
const NETWORK: &str = "hello.lan";

/// A capture that is under way: it has begun its file.
fn capture(stage: &Stage, file: &str, flags: &[&str]) -> Background {
    let arguments = [&["capture", NETWORK, "-w", file], flags].concat();
    let background = Background::start(&mut stage.netyard(&arguments));
    wait_for("the beginning of the file", SOON, || {
        let len = fs::metadata(stage.folder.join(file)).ok()?.len();
        (len > 0).then_some(())
    });
    background
}

#[test]
fn tshark_reads_what_passes_and_finds_nothing_malformed() {
    isolate(|| {
        for user in User::ALL {
            let stage = Stage::up(user, "hello", HELLO);
            let mut all = capture(&stage, "all.pcapng", &[]);
            // Some ten packets are one connection, or more if they are sent again: this is enough for all.
            let flags = ["--port", "8080", "--protocol", "tcp", "--count", "100"];
            let mut web = capture(&stage, "web.pcapng", &flags);
            let one = ["--instance", "web-2", "--protocol", "arp", "--protocol", "tcp"];
            let mut one = capture(&stage, "one.pcapng", &[&one[..], &["--count", "10"]].concat());
            wait_for("all packets", SOON, || {
                http::get(PUBLISHED, "/").unwrap();
                let ended = web.output().contains("100 packets are in web.pcapng");
                (ended && one.output().contains("10 packets are in one.pcapng")).then_some(())
            });
            web.wait_for_line("100 packets", SOON);
            one.wait_for_line("10 packets", SOON);
            all.signal("INT");
            all.wait(SOON);

            let read = |name: &str, filter: &str, fields: &[&str]| {
                tshark::fields(&stage.folder.join(name), filter, fields)
            };
            let fields = ["frame.interface_name", "frame.packet_flags_direction", "tcp.port"];
            let packets = read("web.pcapng", "frame", &fields);
            assert_eq!(packets.len(), 100);
            let of = |place: usize| -> BTreeSet<&str> {
                packets.iter().map(|packet| packet[place].as_str()).collect()
            };
            assert_eq!(of(0), ["web-1", "web-2", "web-3"].into());
            assert_eq!(of(1).len(), 2, "both ways");
            assert!(of(2).iter().all(|ports| ports.split(',').any(|port| port == "8080")));
            let interfaces = read("one.pcapng", "frame", &["frame.interface_name"]);
            assert!(interfaces.iter().all(|interface| interface[0] == "web-2"), "{interfaces:?}");

            for file in ["all.pcapng", "web.pcapng", "one.pcapng"] {
                let malformed = tshark::malformed(&stage.folder.join(file));
                assert_eq!(malformed, Vec::<Vec<String>>::new(), "{file}");
            }
            let answers = read("all.pcapng", "http.response.code == 200", &["http.response.code"]);
            assert!(answers.len() > 2, "{answers:?}");
            run(&mut stage.netyard(&["down"]));
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn flows_and_counters_tell_who_talks_to_whom() {
    isolate(|| {
        let by_frames = HELLO.replace("publish = ", "splice = false\npublish = ");
        let stage = Stage::up(User::Ordinary, "hello", &by_frames);
        let mut client = TcpStream::connect(PUBLISHED).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        // Checks of the service come and go beside it.
        let ours = |flow: &Value| {
            flow["protocol"] == "tcp" && flow["host_to_guest"] == 29 && flow["rtt_us"].is_u64()
        };
        let flow = wait_for("the flow", SOON, || {
            let flows = stage.json(&["flows", NETWORK]);
            let flow = flows.as_array().unwrap().iter().find(|flow| ours(flow)).cloned()?;
            (flow["guest_to_host"].as_u64()? > 0).then_some(flow)
        });
        assert_eq!((&flow["network"], &flow["outbound"]), (&NETWORK.into(), &false.into()));
        assert!(flow["instance"].as_str().unwrap().starts_with("web-"), "{flow}");
        assert_eq!(flow["name"], "gateway.lan");
        assert_eq!((&flow["client"], &flow["rule"]), (&"127.0.0.1".into(), &"no-rule".into()));
        assert!(flow["guest"].as_str().unwrap().ends_with(":8080"), "{flow}");

        let table = stage.say(&["flows"]);
        assert!(table.starts_with("NETWORK"), "{table}");
        assert!(table.contains("gateway.lan"), "{table}");
        let text = stage.say(&["network", "inspect", NETWORK, "--prometheus"]);
        let value = |start: &str| -> Option<u64> {
            let line = text.lines().find(|line| line.starts_with(start))?;
            line.rsplit_once(' ')?.1.parse().ok()
        };
        let plug = format!(
            "netyard_plug_bytes_total{{network=\"{NETWORK}\",instance=\"web-1\",\
             direction=\"guest_to_host\"}}"
        );
        assert!(value(&plug).unwrap() > 0, "{text}");
        let instance = format!("netyard_instance_flows{{network=\"{NETWORK}\",instance=");
        assert!(value(&instance).unwrap() > 0, "{text}");
        let turns = format!("netyard_service_turns_total{{network=\"{NETWORK}\",service=\"web\"");
        assert!(value(&turns).is_some(), "{text}");

        let guest = flow["guest"].clone();
        let remote = flow["remote"].clone();
        drop(client);
        wait_for("the end of the flow", SOON, || {
            let flows = stage.json(&["flows", NETWORK]);
            let flows = flows.as_array().unwrap();
            let gone = !flows.iter().any(|it| it["guest"] == guest && it["remote"] == remote);
            gone.then_some(())
        });
    });
}
