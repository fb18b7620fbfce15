//! The example as its README has it: a bridge, a TAP device in it, and clients on the other side.

#![cfg(feature = "stack")]
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use netyard_testbed::{Background, dns, isolate, peer, run};

/// Far above what anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// The configuration of the README.
const GONET: &str = "verbose; nic id=1 ether=fe:e1:ba:d0:33:33 mtu=1500 dev=tap0 sniff=true; \
                     ip nic=1 addr=192.168.1.100/24; route nic=1 ipnet=0.0.0.0/0 gw=192.168.1.1; \
                     dns ip=8.8.8.8";

fn ip(arguments: &str) {
    run(Command::new(peer("ip")).args(arguments.split(' ')));
}

/// What the README sets up; the outside is on the bridge: a router with a resolver behind it.
fn lab() {
    ip("link add bridge0 type bridge");
    ip("link set dev bridge0 up");
    ip("address add 192.168.1.200/24 dev bridge0");
    ip("address add 192.168.1.1/24 dev bridge0");
    ip("address add 8.8.8.8/32 dev bridge0");
    ip("tuntap add dev tap0 mode tap");
    ip("link set dev tap0 address fe:e1:ba:d0:11:11");
    ip("link set tap0 master bridge0");
    ip("link set dev tap0 up");
    let (stream, datagrams) =
        (TcpListener::bind("8.8.8.8:53").unwrap(), UdpSocket::bind("8.8.8.8:53").unwrap());
    let answers = vec!["192.0.2.7".parse().unwrap()];
    thread::spawn(move || dns::serve(&stream, datagrams, answers));
}

fn webapp() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_webapp"));
    command.env_remove("NETYARD_STACK").env_remove("GONET");
    command
}

fn curl(arguments: &str) -> String {
    let mut command = Command::new(peer("curl"));
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60"]);
    command.args(["--retry", "20", "--retry-connrefused", "--retry-delay", "1"]);
    run(command.args(arguments.split(' ')))
}

#[test]
fn its_page_comes_over_tap0_and_every_packet_is_told() {
    isolate(|| {
        lab();
        let mut app = Background::start(webapp().env("GONET", GONET));
        app.wait_for_line("dns ip=8.8.8.8:53", LONG);
        let page = curl("http://192.168.1.100:8080/");
        assert!(page.contains("This is page 1, and it came by a stack of its own."), "{page}");
        // A browser takes the page and what it names over one connection.
        let both = curl("http://192.168.1.100:8080/ http://192.168.1.100:8080/style.css");
        assert!(both.contains("This is page 2") && both.contains("sans-serif"), "{both}");
        app.wait_for_line("nic 1 in  arp 192.168.1.", LONG);
        app.wait_for_line(" > 192.168.1.100:8080 SYN seq=", LONG);
        app.wait_for_line("nic 1 out tcp 192.168.1.100:8080 > 192.168.1.", LONG);
        // Its resolver goes through the router, and over TCP where the answer is long.
        let found = curl("http://192.168.1.100:8080/lookup/www.example.com");
        assert_eq!(found, "192.0.2.7\n");
        let found = curl("http://192.168.1.100:8080/lookup/long.example.com");
        assert_eq!(found, "192.0.2.7\n");
        app.wait_for_line(" > 8.8.8.8:53 SYN seq=", LONG);
    });
}

/// What `ab` counts under this name.
fn counted(report: &str, name: &str) -> u64 {
    let line = report.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().parse().ok()).unwrap_or_else(|| panic!("{name}: {report}"))
}

#[test]
fn fifty_clients_at_once_all_get_what_they_ask_for() {
    isolate(|| {
        lab();
        let quiet = GONET.replace(" sniff=true", "");
        let mut app = Background::start(webapp().env("GONET", quiet));
        app.wait_for_line("dns ip=8.8.8.8:53", LONG);
        curl("http://192.168.1.100:8080/");
        for keeps in [false, true] {
            let mut ab = Command::new(peer("ab"));
            ab.args(["-q", "-c", "50", "-n", "3000", "-s", "60"]);
            if keeps {
                ab.arg("-k");
            }
            let report = run(ab.arg("http://192.168.1.100:8080/style.css"));
            assert_eq!(counted(&report, "Complete requests:"), 3000, "{report}");
            assert_eq!(counted(&report, "Failed requests:"), 0, "{report}");
            assert!(!report.contains("Non-2xx") && !report.contains("Write errors:"), "{report}");
            if keeps {
                assert_eq!(counted(&report, "Keep-Alive requests:"), 3000, "{report}");
            }
        }
    });
}

#[test]
fn what_is_wrong_is_told_at_the_start() {
    isolate(|| {
        let says = |command: &mut Command| {
            let done = command.output().unwrap();
            assert!(!done.status.success());
            String::from_utf8(done.stderr).unwrap()
        };
        let text = says(&mut webapp());
        assert!(text.contains("cannot serve on 0.0.0.0:8080") && text.contains("GONET"), "{text}");
        let text = says(webapp().env("GONET", "nic id=1 dev=tap0; ip nic=2 addr=10.0.0.1/8"));
        assert!(text.contains("statement 2 (`ip`), key `nic`, column 23"), "{text}");
        // Ours counts before the other.
        let text = says(webapp().env("GONET", "verbose").env("NETYARD_STACK", "nonsense"));
        assert!(text.contains("statement 1 (`nonsense`)"), "{text}");
    });
}
