//! From a guest to the outside and back: real clients, every byte checked, and what is refused.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use netyard_testbed::{
    Background, Outside, User, binary, isolate, output, peer, run, traffic, wait_for,
};

use crate::stage::{SOON, Stage, serve_outside, text};

/// Bytes of a whole transfer.
const GIB: &str = "1073741824";

/// The outside's server, one address family each.
fn servers() -> [SocketAddr; 2] {
    Outside::ADDRESSES.map(|address| SocketAddr::new(address, 7000))
}

/// Runs a program as a guest with a way out, to its end.
fn guest(user: User, program: &[&str]) -> String {
    run(user.command("netyard").args(["run", "--"]).args(program))
}

#[test]
fn curl_reaches_the_outside() {
    isolate(|| {
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        for user in User::ALL {
            for server in servers() {
                let said = guest(user, &["curl", "-sS", "--fail", &format!("http://{server}/")]);
                assert_eq!(said, traffic::HTTP_BODY);
            }
        }
    });
}

#[test]
fn iperf3_runs_both_ways_over_both_families() {
    isolate(|| {
        let outside = Outside::new();
        let mut server =
            Background::start(outside.command(peer("iperf3")).args(["-s", "--forceflush"]));
        server.wait_for_line("listening", SOON);
        for address in Outside::ADDRESSES.map(|address| address.to_string()) {
            for flags in [&["-n", "64M"][..], &["-n", "64M", "-R"], &["-n", "64M", "-P", "8"]] {
                let said = guest(User::Root, &[&["iperf3", "-c", &address], flags].concat());
                assert!(said.contains("iperf Done"), "{said}");
            }
        }
    });
}

#[test]
fn datagrams_come_back_whole() {
    isolate(|| {
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        for server in servers().map(|server| server.to_string()) {
            for size in ["1", "1400"] {
                let program = ["netyard-traffic", "datagrams", &server, "--count", "100"];
                guest(User::Ordinary, &[&program[..], &["--size", size]].concat());
            }
        }
    });
}

#[test]
fn a_gibibyte_arrives_whole_from_the_guest() {
    isolate(|| {
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let server = servers()[0].to_string();
        let program = ["netyard-traffic", "send", &server, "--bytes", GIB, "--flows", "64"];
        guest(User::Root, &program);
    });
}

#[test]
fn a_gibibyte_arrives_whole_at_the_guest() {
    isolate(|| {
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let server = servers()[1].to_string();
        let program = ["netyard-traffic", "receive", &server, "--bytes", GIB, "--flows", "64"];
        guest(User::Root, &program);
    });
}

#[test]
fn a_thousand_connections_are_open_at_once() {
    isolate(|| {
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let server = servers()[0].to_string();
        let program = ["run", "--", "netyard-traffic", "hold", &server, "--count", "1000"];
        let mut holder = Background::start(User::Root.command("netyard").args(program));
        holder.wait_for_line("holding 1000", Duration::from_secs(300));
    });
}

#[test]
fn a_closed_port_is_refused_at_once() {
    isolate(|| {
        let _outside = Outside::new();
        for address in Outside::ADDRESSES {
            let url = format!("http://{}/", SocketAddr::new(address, 9));
            let done = output(
                User::Root.command("netyard").args(["run", "--", "curl", "-sS", "-m", "10", &url]),
            );
            // 7: could not connect; 28 would be curl's own deadline.
            assert_eq!(done.status.code(), Some(7), "{}", text(&done));
        }
    });
}

#[test]
fn names_are_resolved_by_the_hosts_resolver() {
    isolate(|| {
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let resolver = SocketAddr::new(Outside::ADDRESSES[0], 53).to_string();
        let mut dns = outside.command(binary("netyard-traffic"));
        dns.args(["dns", &resolver]);
        for address in Outside::ADDRESSES {
            dns.args(["--answers", &address.to_string()]);
        }
        let mut dns = Background::start(&mut dns);
        dns.wait_for_line("listening", SOON);
        netyard_testbed::set_resolver(Outside::ADDRESSES[0]);
        for (family, name) in [("-4", "any.example"), ("-6", "any.example"), ("-4", "long.example")]
        {
            let url = format!("http://{name}:7000/");
            let said = guest(User::Root, &["curl", "-sS", "--fail", family, &url]);
            assert_eq!(said, traffic::HTTP_BODY, "{family} {name}");
        }
    });
}

/// A resolver in the outside that answers everything with one address.
fn resolver(outside: &Outside, port: u16, answer: &str) -> Background {
    let at = SocketAddr::new(Outside::ADDRESSES[0], port).to_string();
    let mut dns = outside.command(binary("netyard-traffic"));
    let mut dns = Background::start(dns.args(["dns", &at, "--answers", answer]));
    dns.wait_for_line("listening", SOON);
    dns
}

const NAMES: &str = r#"
[networks.lan.dns]
split = { "corp.example" = "203.0.113.1:5353" }
search = ["corp.example", "host"]

[networks.lan.dns.records]
"printer.lan" = "192.168.127.77"
"api.shop.test" = ["203.0.113.5", "2001:db8::5"]
"www.lan" = { alias = "asker.lan" }

[instances.asker]
run = ["sleep", "infinity"]
"#;

#[test]
fn names_have_records_resolvers_and_a_memory_of_their_own() {
    isolate(|| {
        let outside = Outside::new();
        let _corp = resolver(&outside, 5353, "198.51.100.77");
        let set = |text: &str| fs::write("/etc/resolv.conf", text).unwrap();
        for user in User::ALL {
            set("search vpn.example\nnameserver 203.0.113.1\n");
            let general = resolver(&outside, 53, "198.51.100.66");
            let stage = Stage::up(user, "names", NAMES);
            let first = |kind: &str, name: &str| {
                let said = text(&stage.inside("asker", &["getent", kind, name]));
                said.split_whitespace().next().map(str::to_owned)
            };
            for (kind, name, answer) in [
                ("ahostsv4", "printer.lan", "192.168.127.77"),
                ("ahostsv4", "printer", "192.168.127.77"),
                ("ahostsv4", "api.shop.test", "203.0.113.5"),
                ("ahostsv6", "api.shop.test", "2001:db8::5"),
                ("ahostsv4", "www.lan", "192.168.127.2"),
                ("ahostsv4", "any.example", "198.51.100.66"),
                ("ahostsv4", "wiki.corp.example", "198.51.100.77"),
                ("ahostsv4", "wiki", "198.51.100.77"),
            ] {
                wait_for(&format!("{answer} for {name}"), SOON, || {
                    first(kind, name).filter(|found| found == answer)
                });
            }
            let file = text(&stage.inside("asker", &["cat", "/etc/resolv.conf"]));
            assert!(file.contains("search lan corp.example vpn.example\n"), "{file}");
            let back = text(&stage.inside("asker", &["getent", "hosts", "192.168.127.77"]));
            assert!(back.contains("printer.lan"), "{back}");

            let network = || stage.json(&["inspect"])["networks"][0]["state"]["dns"].clone();
            wait_for("an answer that was kept", SOON, || {
                first("ahostsv4", "any.example").filter(|answer| answer == "198.51.100.66")?;
                network()["hits"].as_u64().filter(|hits| *hits > 0)
            });
            // Other resolvers of the host may have other answers.
            drop(general);
            let _general = resolver(&outside, 53, "198.51.100.88");
            set("nameserver 203.0.113.1\nnameserver 203.0.113.2\n");
            wait_for("the answer of the host's new resolvers", SOON, || {
                first("ahostsv4", "any.example").filter(|answer| answer == "198.51.100.88")
            });
            stage.say(&["down"]);
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

/// How a guest's `curl` to a server ends.
fn curl(flags: &[&str], url: &str) -> Option<i32> {
    let mut command = User::Root.command("netyard");
    command.arg("run").args(flags).args(["--", "curl", "-sS", "-m", "10", url]);
    output(&mut command).status.code()
}

#[test]
fn the_host_itself_is_refused_unless_named() {
    isolate(|| {
        let _outside = Outside::new();
        let host = SocketAddr::from((Outside::HOST4, 7000));
        let loopback = SocketAddr::from(([127, 0, 0, 1], 7001));
        let other = SocketAddr::from(([127, 0, 0, 1], 7002));
        for at in [host, loopback, other] {
            let (listener, datagrams) =
                (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
            thread::spawn(move || traffic::serve(&listener, datagrams));
        }
        // The host's own address, its wildcard, link-local metadata: refused at once.
        for to in [host, SocketAddr::from(([169, 254, 169, 254], 80))] {
            assert_eq!(curl(&[], &format!("http://{to}/")), Some(7), "{to}");
        }
        let named = ["--network", "lab", "--host", "127.0.0.1:7001"];
        assert_eq!(curl(&named, "http://host.lab:7001/"), Some(0));
        assert_eq!(curl(&named, "http://host.lab:7002/"), Some(7));
        assert_ne!(curl(&["--network", "lab"], "http://host.lab:7001/"), Some(0));
    });
}

#[test]
fn a_closed_network_has_no_outside() {
    isolate(|| {
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        for server in servers() {
            let url = format!("http://{server}/");
            assert_eq!(curl(&[], &url), Some(0));
            assert_eq!(curl(&["--uplink", "none"], &url), Some(7));
        }
    });
}

#[test]
fn refusals_are_counted() {
    isolate(|| {
        let yard = r#"
            [networks.lan]
            [instances.guest]
            run = ["sleep", "infinity"]
        "#;
        let stage = Stage::up(User::Root, "counted", yard);
        stage.inside("guest", &["curl", "-sS", "-m", "10", "http://169.254.169.254/"]);
        let policy = stage.json(&["inspect"])["networks"][0]["state"]["policy"].clone();
        assert!(policy.as_object().is_some_and(|rules| !rules.is_empty()), "{policy}");
    });
}

#[test]
fn forwards_lead_into_the_network() {
    isolate(|| {
        let yard = r#"
            [networks.lan]
            [instances.server]
            run = ["netyard-traffic", "serve", "0.0.0.0:9000", "0.0.0.0:9001", "0.0.0.0:9002"]
            forwards = [
                "8000",
                "8100-8102:9000-9002/tcp",
                "8100-8102:9000-9002/udp",
                "[::1]:8200:9000/tcp",
                "0.0.0.0:8300:9001",
            ]
        "#;
        let _stage = Stage::up(User::Root, "forwards", yard);
        stage::wait_until_open(SocketAddr::from(([127, 0, 0, 1], 8100)));
        for port in 8100..=8102 {
            let at = SocketAddr::from(([127, 0, 0, 1], port));
            assert_eq!(traffic::connections(at, 20).unwrap().count, 20);
            assert_eq!(traffic::datagrams(at, 20, 1000).unwrap().count, 20);
        }
        let six = "[::1]:8200".parse().unwrap();
        assert_eq!(traffic::connections(six, 20).unwrap().count, 20);
        let _outside = Outside::new();
        let any = SocketAddr::new(IpAddr::V4(Outside::HOST4), 8300);
        assert_eq!(traffic::connections(any, 20).unwrap().count, 20);
        // Nobody listens on 8000 inside.
        assert!(traffic::connections("127.0.0.1:8000".parse().unwrap(), 1).is_err());
    });
}

#[test]
fn much_goes_through_a_forward_both_ways() {
    isolate(|| {
        let yard = r#"
            [networks.lan]
            [instances.server]
            run = ["netyard-traffic", "serve", "0.0.0.0:9000"]
            forwards = ["8100:9000"]
        "#;
        let _stage = Stage::up(User::Ordinary, "forwards", yard);
        let at = SocketAddr::from(([127, 0, 0, 1], 8100));
        stage::wait_until_open(at);
        traffic::send(at, 256 << 20, 32).unwrap();
        traffic::receive(at, 256 << 20, 32).unwrap();
    });
}

#[test]
fn a_client_from_outside_keeps_its_address() {
    isolate(|| {
        let outside = Outside::new();
        let yard = r#"
            [networks.lan]
            [instances.server]
            run = ["sh", "-c", "exec netyard-traffic serve 0.0.0.0:9000"]
            forwards = ["0.0.0.0:8100:9000"]
        "#;
        let stage = Stage::up(User::Root, "forwards", yard);
        stage::wait_until_open(SocketAddr::from(([127, 0, 0, 1], 8100)));
        let at = SocketAddr::new(IpAddr::V4(Outside::HOST4), 8100).to_string();
        let mut holder = outside.command(binary("netyard-traffic"));
        let mut holder = Background::start(holder.args(["hold", &at, "--count", "1"]));
        holder.wait_for_line("holding", SOON);
        let sockets = text(&stage.inside("server", &["ss", "-Htn", "state", "established"]));
        assert!(sockets.contains(&Outside::ROUTER4.to_string()), "{sockets}");
    });
}

#[test]
fn without_an_uplink_the_guest_is_told_at_once() {
    isolate(|| {
        assert_eq!(curl(&[], "http://203.0.113.1:7000/"), Some(7));
    });
}

/// Prints what comes, and answers.
const ECHO: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 9000))
print("bound", flush=True)
while True:
    data, who = s.recvfrom(2000)
    print(data.decode(), flush=True)
    s.sendto(data, who)
"#;

#[test]
fn each_direction_of_a_link_is_as_the_file_says() {
    isolate(|| {
        let yard = r#"
[networks.lan]

[instances.mute]
run = ["python3", "echo.py"]
link = { delay = "1ms", up = { loss = 1 } }
forwards = ["9001:9000/udp"]

[instances.fair]
run = ["python3", "echo.py"]
link = { packets = 100000, down = { rate = "1gbit" } }
forwards = ["9002:9000/udp"]
"#;
        let stage = Stage::new(User::Ordinary, "links", yard);
        fs::write(stage.folder.join("echo.py"), ECHO).unwrap();
        stage.say(&["up", "-d", "--wait"]);
        let logs = |name: &str, word: &str| {
            wait_for(word, SOON, || stage.say(&["logs", name]).contains(word).then_some(()));
        };
        let ask = |port: u16, word: &str, within: Duration| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(within)).unwrap();
            socket.send_to(word.as_bytes(), ("127.0.0.1", port)).unwrap();
            socket.recv(&mut [0; 100])
        };
        logs("fair", "bound");
        assert_eq!(ask(9002, "hello", SOON).unwrap(), 5);
        // What is sent to it arrives; nothing comes from it.
        logs("mute", "bound");
        assert!(ask(9001, "anybody", Duration::from_secs(1)).is_err());
        logs("mute", "anybody");
    });
}

#[test]
fn packets_are_as_large_as_the_network_says() {
    isolate(|| {
        let yard = r#"
[networks.lan]
mtu = 65520

[instances.near]
run = ["sleep", "infinity"]

[instances.far]
run = ["python3", "echo.py"]
"#;
        let stage = Stage::new(User::Ordinary, "large", yard);
        fs::write(stage.folder.join("echo.py"), ECHO).unwrap();
        stage.say(&["up", "-d", "--wait"]);
        let ping = |size: &str| {
            let words = ["ping", "-4", "-n", "-c", "1", "-W", "20", "-M", "do", "-s", size, "far"];
            stage.inside("near", &words).status.success()
        };
        // With 28 bytes of headers; one more is refused by the instance's own kernel.
        assert!(ping("65492"));
        assert!(!ping("65493"));
        // The gateway answers them as well.
        let gateway = "ip -o route get 192.0.2.1 | grep -o 'via [0-9.]*' | cut -d' ' -f2";
        let ping = format!("ping -n -c 1 -W 20 -M do -s 60000 $({gateway})");
        let done = stage.inside("near", &["sh", "-c", &ping]);
        assert!(done.status.success(), "{}", text(&done));
    });
}
