//! iperf3 against the stack: its client, on the kernel, and a server of a few lines on sockets of the stack.
//!
//! The protocol is that of iperf3's `iperf_api.h`: single bytes that name the next state go over a first connection,
//! JSON with its length before it, and every connection begins with the client's cookie.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use netyard_stack::Host;
use netyard_stack::blocking::{TcpListener, TcpStream};
use netyard_stack::config::Config;
use netyard_testbed::{isolate, peer, run};
use serde_json::{Value, json};

/// Bytes of one run: many windows, moments on a slow machine.
const LEN: u64 = 30_000_000;
/// Length of the cookie, bytes.
const COOKIE: usize = 37;
const STACK: &str = "nic id=1 ether=fe:e1:ba:d0:33:33 dev=dev0; \
                     ip nic=1 addr=192.168.1.100/24 addr=fd00::100/64";

// The states that a server tells, and those that it is told.
const TEST_START: u8 = 1;
const TEST_RUNNING: u8 = 2;
const TEST_END: u8 = 4;
const PARAM_EXCHANGE: u8 = 9;
const CREATE_STREAMS: u8 = 10;
const EXCHANGE_RESULTS: u8 = 13;
const DISPLAY_RESULTS: u8 = 14;
const IPERF_DONE: u8 = 16;

fn read_json(control: &mut TcpStream) -> Value {
    let mut len = [0; 4];
    control.read_exact(&mut len).unwrap();
    let mut text = vec![0; u32::from_be_bytes(len) as usize];
    control.read_exact(&mut text).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn write_json(control: &mut TcpStream, value: &Value) {
    let text = value.to_string();
    control.write_all(&u32::try_from(text.len()).unwrap().to_be_bytes()).unwrap();
    control.write_all(text.as_bytes()).unwrap();
}

fn read_state(control: &mut TcpStream) -> u8 {
    let mut state = [0];
    control.read_exact(&mut state).unwrap();
    state[0]
}

fn accept(listener: &TcpListener) -> (TcpStream, [u8; COOKIE]) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut cookie = [0; COOKIE];
    stream.read_exact(&mut cookie).unwrap();
    (stream, cookie)
}

/// Takes all that comes, to the end; how much that was.
fn take(mut stream: TcpStream, counted: &AtomicU64) {
    let mut buffer = vec![0; 128 * 1024];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        counted.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// Gives until it is over; a client that has enough leaves without reading the rest.
fn give(mut stream: TcpStream, counted: &AtomicU64, over: &AtomicBool) {
    let buffer = vec![7; 128 * 1024];
    while !over.load(Ordering::Relaxed) {
        match stream.write(&buffer) {
            Ok(len) => counted.fetch_add(len as u64, Ordering::Relaxed),
            Err(_) => return,
        };
    }
}

/// Serves one run of a client. What has come or gone over all streams, bytes.
fn serve(listener: &TcpListener) -> u64 {
    let (mut control, cookie) = accept(listener);
    control.write_all(&[PARAM_EXCHANGE]).unwrap();
    let wanted = read_json(&mut control);
    let reverse = wanted["reverse"].as_bool().unwrap_or(false);
    let parallel = wanted["parallel"].as_u64().unwrap_or(1);
    control.write_all(&[CREATE_STREAMS]).unwrap();
    let counted = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    for _ in 0..parallel {
        let (stream, own) = accept(listener);
        assert_eq!(own, cookie);
        let (counted, over) = (Arc::clone(&counted), Arc::clone(&over));
        workers.push(thread::spawn(move || match reverse {
            true => give(stream, &counted, &over),
            false => take(stream, &counted),
        }));
    }
    control.write_all(&[TEST_START, TEST_RUNNING]).unwrap();
    assert_eq!(read_state(&mut control), TEST_END);
    over.store(true, Ordering::Relaxed);
    control.write_all(&[EXCHANGE_RESULTS]).unwrap();
    read_json(&mut control);
    // The client wants its streams back, by their numbers, which leave out 2.
    let streams: Vec<Value> = (0..parallel)
        .map(|place| {
            let id = if place == 0 { 1 } else { place + 2 };
            json!({"id": id, "bytes": counted.load(Ordering::Relaxed) / parallel,
                "retransmits": -1, "jitter": 0, "errors": 0, "packets": 0,
                "start_time": 0, "end_time": 1})
        })
        .collect();
    let results = json!({"cpu_util_total": 0, "cpu_util_user": 0, "cpu_util_system": 0,
        "sender_has_retransmits": 0, "streams": streams});
    write_json(&mut control, &results);
    control.write_all(&[DISPLAY_RESULTS]).unwrap();
    assert_eq!(read_state(&mut control), IPERF_DONE);
    for worker in workers {
        worker.join().unwrap();
    }
    counted.load(Ordering::Relaxed)
}

#[test]
fn iperf3_measures_the_stack_in_both_directions() {
    isolate(|| {
        let ip = |arguments: &str| {
            run(Command::new(peer("ip")).args(arguments.split(' ')));
        };
        ip("tuntap add dev dev0 mode tap");
        ip("address add 192.168.1.1/24 dev dev0");
        ip("address add fd00::1/64 dev dev0 nodad");
        ip("link set dev0 up");
        let config = Config::parse(STACK).unwrap().config;
        let host = Host::start(&config, || Box::new(std::io::stderr())).unwrap();
        let listener = TcpListener::bind_on(&host, "[::]:5201".parse().unwrap()).unwrap();
        for (to, flags) in [
            ("192.168.1.100", &[][..]),
            ("192.168.1.100", &["--reverse"]),
            ("192.168.1.100", &["--parallel", "4"]),
            ("fd00::100", &["--reverse", "--parallel", "4"]),
        ] {
            let len = LEN.to_string();
            let mut client = Command::new(peer("iperf3"));
            client.args(["--client", to, "--json", "--bytes", &len]).args(flags);
            let client = thread::spawn(move || run(&mut client));
            let served = serve(&listener);
            let told: Value = serde_json::from_str(&client.join().unwrap()).unwrap();
            assert!(told.get("error").is_none(), "{to} {flags:?}: {told}");
            let sent = told["end"]["sum_sent"]["bytes"].as_u64().unwrap();
            let received = told["end"]["sum_received"]["bytes"].as_u64().unwrap();
            if flags.contains(&"--reverse") {
                assert!(received >= LEN && served >= received, "{served}: {told}");
            } else {
                assert!(sent >= LEN && served == sent, "{served}: {told}");
            }
        }
    });
}
