//! Drives the built daemon over loopback, as its users do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The port of every daemon here; each test has a loopback address of its own.
const PORT: u16 = 8080;

/// A loopback address that nobody else uses: from our process id and the test's number.
fn address(test: u8) -> IpAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 | (high << 6) | (middle & 0x3f), low, test).into()
}

/// A running daemon, killed at the end of its test.
struct Daemon {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: IpAddr,
}

impl Daemon {
    /// Starts the daemon and waits until it says that it listens.
    fn start(test: u8) -> Daemon {
        let address = address(test);
        let mut child = command(address).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("Listening on http://{address}:{PORT}, ")), "{line}");
        Daemon { child, stdout, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((self.address, PORT)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// Tells the daemon to end; how long it took, and whether it said that all went well.
    fn terminate(&mut self) -> (Duration, bool) {
        let pid = self.child.id();
        let start = Instant::now();
        let told = Command::new("sh").arg("-c").arg(format!("kill -TERM {pid}")).status().unwrap();
        assert!(told.success());
        let status = self.child.wait().unwrap();
        (start.elapsed(), status.success())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn command(address: IpAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netyard-whoami"));
    command.args(["-a", &address.to_string(), "-p", &PORT.to_string()]);
    command.env_remove("ROCKET_LOG_LEVEL");
    command
}

/// Sends a request and returns the body of the answer.
fn get(stream: &mut TcpStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: whoami\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap();
            }
            _ if line == "\r\n" => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

fn message(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn it_answers_with_one_uuid_over_all_connections() {
    let daemon = Daemon::start(1);
    let first = get(&mut daemon.connect(), "/");
    assert!(first.starts_with("My id is "), "{first}");
    assert_eq!(get(&mut daemon.connect(), "/"), first);
    assert_eq!(get(&mut daemon.connect(), "/users"), "You're my first user");
}

#[test]
fn sigterm_ends_it_soon_though_clients_stay_connected() {
    let mut daemon = Daemon::start(2);
    let mut idle = daemon.connect();
    get(&mut idle, "/");
    let mut half_sent = daemon.connect();
    half_sent.write_all(b"GET / HTTP/1.1\r\nHost:").unwrap();
    get(&mut daemon.connect(), "/");
    let (took, success) = daemon.terminate();
    assert!(success);
    // Clients have half a second; the rest is for a machine that is busy.
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn nothing_but_its_first_line_is_logged() {
    let mut daemon = Daemon::start(3);
    get(&mut daemon.connect(), "/");
    daemon.terminate();
    let mut rest = String::new();
    daemon.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let address = address(4);
    let _taken = TcpListener::bind((address, PORT)).unwrap();
    let output = command(address).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = message(&output);
    assert!(message.contains(&format!("cannot listen on {address}:{PORT}")), "{message}");
    assert!(message.contains("-p"), "{message}");
}

#[test]
fn bad_values_are_errors_that_name_the_flag() {
    for (flag, value) in [("--port", "0"), ("--port", "70000"), ("--address", "localhost")] {
        let output = Command::new(env!("CARGO_BIN_EXE_netyard-whoami"))
            .args([flag, value])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let message = message(&output);
        assert!(message.contains(flag) && message.contains(value), "{message}");
    }
}

#[test]
fn datagrams_are_answered_with_the_same_uuid_if_that_is_asked_for() {
    let address = address(5);
    let mut child = command(address).arg("--udp").stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    let daemon = Daemon { child, stdout, address };
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.connect((address, PORT)).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let id = get(&mut daemon.connect(), "/");
    for question in [&b"who?"[..], b""] {
        client.send(question).unwrap();
        let mut answer = [0; 100];
        let len = client.recv(&mut answer).unwrap();
        assert_eq!(std::str::from_utf8(&answer[..len]).unwrap(), id);
    }
    // Without the flag nobody has the port.
    let other = Daemon::start(6);
    client.connect((other.address, PORT)).unwrap();
    client.send(b"who?").unwrap();
    assert!(client.recv(&mut [0; 100]).is_err());
}
