//! Connections that come in by host ports: those that go by sockets inside instances, without a frame, and what
//! instances are told of their clients.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;

use netyard_testbed::{Background, Outside, User, isolate, output, peer, run, traffic, wait_for};
use serde_json::Value;

use crate::stage::{SOON, Stage, signal, wait_until_open};

/// One instance with checked traffic, and one that does as its clients say. What they listen on alone
/// is loopback.
const YARD: &str = r#"
[networks.lan]
subnet = "192.168.77.0/24"
subnet6 = "fd00:77::/64"

[instances.web]
run = ["netyard-traffic", "serve", "[::]:7000"]
address = "192.168.77.10"
forwards = ["7000", "[::1]:7000", "7009:7000/no-splice"]

[instances.odd]
run = ["python3", "-u", "odd.py"]
address = "192.168.77.11"
forwards = ["0.0.0.0:7001", "0.0.0.0:7002:7001/splice", "7003:7003/loopback", "7004/loopback", "7005:7003"]
"#;

/// Does what the first byte of a connection says: tells who the client is, ends first, or resets it; and says
/// how the others end.
const ODD: &str = r#"
import socket, struct, threading

def answer(connection, client):
    wish = connection.recv(1)
    if wish == b"w":
        connection.sendall(client[0].encode())
    elif wish == b"r":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif wish == b"f":
        connection.sendall(b"first")
        connection.shutdown(socket.SHUT_WR)
        print("ended", flush=True)
        size = 0
        while part := connection.recv(65536):
            size += len(part)
        print("got", size, flush=True)
    else:
        while connection.recv(65536):
            pass
        print("finished", flush=True)
    connection.close()

def serve(listener):
    while True:
        threading.Thread(target=answer, args=listener.accept()).start()

at = [("0.0.0.0", 7001, socket.AF_INET), ("127.0.0.1", 7003, socket.AF_INET), ("::1", 7004, socket.AF_INET6)]
# Who is answered by one finds all of them.
listeners = [socket.create_server((address, port), family=family) for address, port, family in at]
for listener in listeners:
    threading.Thread(target=serve, args=[listener]).start()
"#;

fn up(user: User) -> Stage {
    let stage = Stage::new(user, "splice", YARD);
    fs::write(stage.folder.join("odd.py"), ODD).unwrap();
    run(&mut stage.netyard(&["up", "-d", "--wait"]));
    wait_until_open(here(7000));
    // The first connections may go by frames: sockets inside are ordered with them, and waited for a moment only.
    wait_for("the odd one", SOON, || {
        wish(7001, b"w").ok().filter(|client| client == "192.168.77.11")
    });
    stage
}

/// Waits until connections to a port are spliced: sockets inside may still be on their way.
fn wait_until_spliced(stage: &Stage, server: SocketAddr) {
    wait_for(&format!("connections to {server} to be spliced"), SOON, || {
        let _held = traffic::hold(server, 1).ok()?;
        (flows(stage, 1)[0]["spliced"] == true).then_some(())
    });
}

fn here(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// What the odd one says to a wish.
fn wish(port: u16, wish: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(here(port))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(wish)?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// The flows that come in at an instance's port 7000 and carry something: some end, whatever was before.
fn flows(stage: &Stage, count: usize) -> Vec<Value> {
    wait_for(&format!("{count} flows"), SOON, || {
        let mut flows = stage.json(&["flows", "splice.lan"]).as_array().unwrap().clone();
        flows.retain(|flow| flow["instance"] == "web" && flow["state"] == "open");
        (flows.len() == count).then_some(flows)
    })
}

fn open_files(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

#[test]
fn content_is_whole_both_ways_and_the_instance_sees_itself() {
    isolate(|| {
        for user in User::ALL {
            let stage = up(user);
            for server in [here(7000), "[::1]:7000".parse().unwrap()] {
                wait_until_spliced(&stage, server);
                traffic::send(server, 40_000_001, 3).unwrap();
                traffic::receive(server, 40_000_001, 3).unwrap();
                traffic::round_trips(server, 200).unwrap();
                let _held = traffic::hold(server, 2).unwrap();
                for flow in flows(&stage, 2) {
                    assert_eq!(flow["spliced"], true, "{flow}");
                    let own = if server.is_ipv4() { "192.168.77.10:" } else { "[fd00:77::" };
                    assert!(flow["remote"].as_str().unwrap().starts_with(own), "{flow}");
                    assert_eq!(
                        (&flow["host_to_guest"], &flow["guest_to_host"]),
                        (&18.into(), &1.into())
                    );
                }
            }
            let text = stage.say(&["network", "inspect", "splice.lan", "--prometheus"]);
            let spliced = "netyard_spliced_bytes_total{network=\"splice.lan\",instance=\"web\",\
                           direction=\"host_to_guest\"} ";
            let line = text.lines().find_map(|line| line.strip_prefix(spliced)).unwrap();
            assert!(line.parse::<u64>().unwrap() > 80_000_000, "{text}");
            // By frames all is as it is for others.
            traffic::send(here(7009), 1_000_001, 2).unwrap();
            let _held = traffic::hold(here(7009), 1).unwrap();
            let [flow] = <[Value; 1]>::try_from(flows(&stage, 1)).unwrap();
            assert_eq!((&flow["spliced"], &flow["name"]), (&false.into(), &"gateway.lan".into()));
            run(&mut stage.netyard(&["down"]));
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn only_clients_of_this_machine_are_spliced_unless_asked() {
    isolate(|| {
        let outside = Outside::new();
        let _stage = up(User::Ordinary);
        assert_eq!(wish(7001, b"w").unwrap(), "192.168.77.11");
        assert_eq!(wish(7002, b"w").unwrap(), "192.168.77.11");
        let host = Outside::HOST4;
        let far = |port: u16| {
            let ask = format!(
                "import socket; s = socket.create_connection(('{host}', {port})); s.sendall(b'w'); \
                 print(s.recv(99).decode())"
            );
            run(outside.command(peer("python3")).args(["-c", &ask])).trim().to_owned()
        };
        assert_eq!(far(7001), Outside::ROUTER4.to_string());
        assert_eq!(far(7002), "192.168.77.11");
    });
}

/// Says whom the header of the PROXY protocol names, and whom the socket. Without one it says "400".
const NGINX: &str = r#"
user root; daemon off; master_process off; pid pid; error_log stderr notice;
events {}
http {
    access_log off;
    client_body_temp_path .; proxy_temp_path .; fastcgi_temp_path .; uwsgi_temp_path .; scgi_temp_path .;
    server {
        listen 0.0.0.0:8080 proxy_protocol; listen [::]:8080 proxy_protocol ipv6only=on;
        default_type text/plain;
        return 200 "$proxy_protocol_addr $proxy_protocol_server_addr:$proxy_protocol_server_port $remote_addr\n";
    }
}
"#;

const TOLD: &str = r#"
[networks.lan]
subnet = "192.168.77.0/24"
subnet6 = "fd00:77::/64"

[instances.web]
run = ["NGINX", "-e", "stderr", "-p", ".", "-c", "nginx.conf"]
address = "192.168.77.10"
forwards = [
    "0.0.0.0:7010:8080/proxy-v1", "0.0.0.0:7011:8080/proxy-v2", "0.0.0.0:7012:8080/proxy-v2/splice",
    "7013:8080/proxy-v1/no-splice", "[::1]:7014:8080/proxy-v2", "[::1]:7015:8080/proxy-v1/no-splice",
    "7016:8080/loopback/proxy-v2", "7017:8080",
]
"#;

#[test]
fn a_web_server_is_told_who_its_clients_are() {
    isolate(|| {
        let outside = Outside::new();
        for user in User::ALL {
            let yard = TOLD.replace("NGINX", peer("nginx").to_str().unwrap());
            let stage = Stage::new(user, "told", &yard);
            fs::write(stage.folder.join("nginx.conf"), NGINX).unwrap();
            run(&mut stage.netyard(&["up", "-d", "--wait"]));
            let ask = |host: &str, port: u16| {
                let ask = format!(
                    "import urllib.request as r; print(r.urlopen('http://{host}:{port}/', timeout=30).read().decode())"
                );
                let mut command = Command::new(peer("python3"));
                command.args(["-c", &ask]);
                command
            };
            // The header is the same in any case; what the socket says may take until sockets inside are at hand.
            let tells = |ask: &mut dyn FnMut() -> String, header: &str, socket: &str| {
                wait_for(&format!("{header}, from {socket}"), SOON, || {
                    let told = ask();
                    let from = told.strip_prefix(header).unwrap_or_else(|| panic!("{told}"));
                    (from.trim() == socket).then_some(())
                });
            };
            wait_for("nginx", SOON, || {
                output(&mut ask("127.0.0.1", 7010)).status.success().then_some(())
            });
            // By sockets, the program sees itself, by frames the gateway.
            for (host, port, socket) in [
                ("127.0.0.1", 7010, "192.168.77.10"),
                ("127.0.0.1", 7011, "192.168.77.10"),
                ("127.0.0.1", 7013, "192.168.77.1"),
                ("[::1]", 7014, "fd00:77::a"),
                ("[::1]", 7015, "fd00:77::1"),
                ("127.0.0.1", 7016, "127.0.0.1"),
            ] {
                let client = host.trim_matches(['[', ']']);
                let header = format!("{client} {client}:{port} ");
                tells(&mut || run(&mut ask(host, port)), &header, socket);
            }
            // Without a header the server hears nonsense.
            assert!(!output(&mut ask("127.0.0.1", 7017)).status.success());
            let (host, client) = (Outside::HOST4.to_string(), Outside::ROUTER4.to_string());
            for (port, socket) in [(7010, &*client), (7011, &*client), (7012, "192.168.77.10")] {
                let mut far =
                    || run(outside.command(peer("python3")).args(ask(&host, port).get_args()));
                tells(&mut far, &format!("{client} {host}:{port} "), socket);
            }
            run(&mut stage.netyard(&["down"]));
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn programs_that_listen_on_their_loopback_alone_are_reached_when_asked() {
    isolate(|| {
        for user in User::ALL {
            let stage = up(user);
            assert_eq!(wish(7003, b"w").unwrap(), "127.0.0.1");
            assert_eq!(wish(7004, b"w").unwrap(), "::1");
            let error = wish(7005, b"w").unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
            run(&mut stage.netyard(&["down"]));
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn ends_and_resets_pass_both_ways() {
    isolate(|| {
        let stage = up(User::Root);
        let log = || stage.say(&["logs", "odd"]);
        // The instance ends first.
        let mut stream = TcpStream::connect(here(7001)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(b"f").unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert_eq!(said, "first");
        stream.write_all(&[7; 300_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        wait_for("what came after the end", SOON, || log().contains("got 300000").then_some(()));
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        // It resets.
        assert_eq!(wish(7001, b"r").unwrap_err().kind(), ErrorKind::ConnectionReset);
        // The client ends, and resets: as it is closed it has bytes that nobody has read.
        let stream = TcpStream::connect(here(7001)).unwrap();
        (&stream).write_all(b"--").unwrap();
        drop(stream);
        wait_for("the client's end", SOON, || log().contains("finished").then_some(()));
        assert!(!log().contains("Reset"), "{}", log());
        let stream = TcpStream::connect(here(7001)).unwrap();
        (&stream).write_all(b"f").unwrap();
        wait_for("unread bytes", SOON, || stream.peek(&mut [0; 5]).ok().filter(|len| *len == 5));
        // It would find its connection gone as it ends it, and say something else of it.
        wait_for("its end", SOON, || (log().matches("ended").count() == 2).then_some(()));
        drop(stream);
        wait_for("the reset", SOON, || log().contains("ConnectionResetError").then_some(()));
        wait_for("the end of all", SOON, || {
            let flows = stage.json(&["flows", "splice.lan"]);
            let mut flows = flows.as_array().unwrap().iter();
            flows.all(|flow| flow["instance"] != "odd").then_some(())
        });
    });
}

#[test]
fn a_capture_sees_new_connections() {
    isolate(|| {
        let stage = up(User::Ordinary);
        wait_until_spliced(&stage, here(7000));
        let arguments = ["capture", "splice.lan", "-w", "all.pcapng", "--instance", "web"];
        let mut capture = Background::start(&mut stage.netyard(&arguments));
        wait_for("the beginning of the file", SOON, || {
            let len = fs::metadata(stage.folder.join("all.pcapng")).ok()?.len();
            (len > 0).then_some(())
        });
        let held = traffic::hold(here(7000), 1).unwrap();
        assert_eq!(flows(&stage, 1)[0]["spliced"], false);
        assert_eq!(wish(7001, b"w").unwrap(), "192.168.77.11", "nobody looks at this one");
        drop(held);
        flows(&stage, 0);
        capture.signal("INT");
        capture.wait(SOON);
        wait_until_spliced(&stage, here(7000));
    });
}

#[test]
fn restarts_of_everybody_are_lived_through() {
    isolate(|| {
        let stage = up(User::Ordinary);
        let spliced = || {
            wait_until_open(here(7000));
            wait_until_spliced(&stage, here(7000));
        };
        spliced();
        run(&mut stage.netyard(&["restart", "web"]));
        spliced();
        // Its namespace goes, and with it all sockets of it.
        let init = stage.json(&["inspect"])["instances"]
            .as_array()
            .unwrap()
            .iter()
            .find_map(|it| (it["name"] == "web").then(|| it["init_pid"].as_u64()).flatten());
        let held = traffic::hold(here(7000), 3).unwrap();
        signal(u32::try_from(init.unwrap()).unwrap(), "KILL");
        for mut stream in held {
            let end = stream.read(&mut [0]);
            assert!(!end.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "it goes on");
        }
        spliced();
        stage.kill_network();
        spliced();
    });
}

#[test]
fn more_connections_than_there_are_ports_inside_all_arrive() {
    isolate(|| {
        let stage = up(User::Ordinary);
        let inside = |script: &str| {
            let namespace = format!("--net=/proc/{}/ns/net", stage.pid("web"));
            run(Command::new(peer("nsenter")).args([&namespace, "sh", "-c", script]))
        };
        assert_eq!(inside("cat /proc/sys/net/ipv4/tcp_tw_reuse").trim(), "1");
        // The client ends first, so each port stays taken for a while.
        inside("echo 40000 40063 > /proc/sys/net/ipv4/ip_local_port_range");
        traffic::connections(here(7000), 500).unwrap();
    });
}

#[test]
fn a_thousand_connections_leave_no_descriptor_behind() {
    isolate(|| {
        // Only root sees what the network's process has open, which nobody may trace.
        if !User::ids_are_real() {
            return;
        }
        let stage = up(User::Ordinary);
        let network = stage.network_pid();
        traffic::connections(here(7000), 50).unwrap();
        let all_ended = || {
            wait_for("the end of all", SOON, || {
                stage.json(&["flows", "splice.lan"]).as_array().unwrap().is_empty().then_some(())
            });
        };
        all_ended();
        let before = open_files(network);
        traffic::connections(here(7000), 500).unwrap();
        all_ended();
        let held = traffic::hold(here(7000), 500).unwrap();
        // Two each, and no pipe.
        let during = open_files(network) - before;
        assert!((980..1_040).contains(&during), "{during}");
        drop(held);
        // Sockets inside that are kept at hand may be more or fewer.
        wait_for("the descriptors", SOON, || {
            let after = open_files(network);
            (after <= before + 8).then_some(())
        });
    });
}
