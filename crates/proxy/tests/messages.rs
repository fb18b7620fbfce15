//! What becomes of messages on their way.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use common::{Bench, Counts, GET, Message};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use netyard_proxy::{Limits, MAX_HEAD};
use netyard_testbed::wait_for;

/// An instance that answers with `answer` and tells what it was asked.
fn tells(bench: &Bench, answer: &'static str) -> mpsc::Receiver<Message> {
    let (asked, questions) = mpsc::channel();
    bench.instance(1, move |mut peer| {
        while let Some(request) = peer.request() {
            asked.send(request).unwrap();
            peer.send(answer);
        }
    });
    questions
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn the_instance_sees_who_asks_and_nothing_of_the_clients_connection() {
    let bench = Bench::new();
    let asked = tells(
        &bench,
        "HTTP/1.1 200 OK\r\nConnection: X-Own\r\nX-Own: 1\r\nKeep-Alive: x\r\nX-Theirs: 2\r\nContent-Length: 2\r\n\r\nok",
    );
    let answer = bench.client_of("[2001:db8::7]:99").ask(
        "GET /a?b HTTP/1.1\r\nHost: web.lan\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n\
         X-Forwarded-For: 203.0.113.9\r\nAccept: */*\r\n\r\n",
    );
    let request = asked.recv().unwrap();
    assert_eq!(request.line(), "GET /a?b HTTP/1.1");
    assert_eq!(request.field("host"), Some("web.lan"));
    assert_eq!(request.field("x-forwarded-for"), Some("203.0.113.9, 2001:db8::7"));
    assert_eq!(request.field("x-forwarded-proto"), Some("http"));
    assert_eq!(request.field("x-forwarded-host"), Some("web.lan"));
    assert_eq!(request.field("accept"), Some("*/*"));
    assert_eq!((request.field("x-mine"), request.field("connection")), (None, None));
    assert_eq!((answer.field("x-own"), answer.field("keep-alive")), (None, None));
    assert_eq!((answer.field("x-theirs"), answer.field("connection")), (Some("2"), Some("close")));
}

#[test]
fn bodies_are_passed_on_with_and_without_a_length() {
    let bench = Bench::new();
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let asked = tells(&bench, chunked);
    let mut client = bench.client();
    let post =
        "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let answer = client.ask(post);
    assert_eq!((answer.status(), answer.body.as_str()), (200, "abcde"));
    let request = asked.recv().unwrap();
    assert_eq!(request.body, "hello");
    assert_eq!(request.field("transfer-encoding"), Some("chunked"));
    // Which of both lengths counts must not be a matter of opinion.
    let both = post.replace("\r\nTransfer", "\r\nContent-Length: 3\r\nTransfer");
    client.send(&both);
    match asked.recv_timeout(Duration::from_secs(20)) {
        Ok(request) => {
            assert_eq!((request.field("content-length"), request.body.as_str()), (None, "hello"))
        }
        Err(_) => panic!("{}", client.rest()),
    }
}

#[test]
fn an_expectation_is_met_when_the_instance_wants_the_body() {
    let bench = Bench::new();
    let asked = tells(&bench, OK);
    let mut client = bench.client();
    client.send("PUT / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(client.head().unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.ask("hi").status(), 200);
    let request = asked.recv().unwrap();
    assert_eq!((request.body.as_str(), request.field("expect")), ("hi", None));
}

#[test]
fn responses_that_break_off_break_off() {
    for (head, length) in [("Content-Length: 100", 10), ("Transfer-Encoding: chunked", 15)] {
        let bench = Bench::new();
        bench.instance(1, move |mut peer| {
            peer.request();
            let body = if length == 10 { "0123456789" } else { "a\r\n0123456789\r\n" };
            peer.send(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}"));
        });
        bench.well([2]);
        let mut client = bench.client();
        client.send(GET);
        assert!(client.head().unwrap().starts_with("HTTP/1.1 200"));
        let rest = client.rest();
        assert!(rest.contains("0123456789") && !rest.contains("\r\n0\r\n"), "{rest:?}");
        bench.ring.wait_for(1, Counts { turns: 1, ..Counts::default() });
        assert_eq!(bench.ring.counts(2).turns, 0, "an answer that has begun is nobody else's");
    }
}

#[test]
fn who_does_not_read_stops_who_sends() {
    const MUCH: usize = 64 << 20;
    let bench = Bench::new();
    let (stopped, stop) = mpsc::channel();
    bench.instance(1, move |mut peer| {
        peer.request();
        peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {MUCH}\r\n\r\n"));
        peer.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut sent = 0;
        while sent < MUCH {
            match peer.stream.write(&[b'x'; 65_536]) {
                Ok(len) => sent += len,
                Err(_) => break,
            }
        }
        stopped.send(sent).unwrap();
    });
    let mut client = bench.client();
    client.send(GET);
    assert!(stop.recv().unwrap() < MUCH / 8);
}

#[test]
fn upgraded_connections_are_joined() {
    let bench = Bench::new();
    bench.instance(1, |mut peer| {
        let request = peer.request().unwrap();
        assert_eq!(request.field("upgrade"), Some("echo"));
        assert_eq!(request.field("connection"), Some("upgrade"));
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst",
        );
        let heard = peer.take(5);
        peer.send(&heard.to_uppercase());
    });
    let mut client = bench.client();
    client.send("GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    let head = client.head().unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("upgrade: echo\r\n") && head.contains("connection: upgrade\r\n"));
    assert_eq!(client.take(5), "first");
    client.send("hello");
    assert_eq!(client.rest(), "HELLO");
    bench.ring.wait_for(1, Counts { turns: 1, ..Counts::default() });
}

#[test]
fn tunnels_without_a_byte_end() {
    let limits = Limits { connections: 100, tunnel: Duration::from_millis(50), ..Limits::of(0) };
    let bench = Bench::with(limits);
    let (ended, end) = mpsc::channel();
    bench.instance(1, move |mut peer| {
        peer.request();
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst",
        );
        ended.send(peer.rest()).unwrap();
    });
    let mut client = bench.client();
    client.send("GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    client.head().unwrap();
    assert_eq!(client.rest(), "first");
    assert_eq!(end.recv().unwrap(), "");
    wait_for("the seat", Duration::from_secs(20), || {
        (bench.proxy.connections() == 0).then_some(())
    });
}

#[test]
fn heads_that_are_too_long_or_nonsense_are_refused() {
    let bench = Bench::new();
    bench.well([1]);
    let long = format!("GET / HTTP/1.1\r\nHost: web\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD));
    assert_eq!(bench.client().ask(&long).status(), 431);
    let many = format!("GET / HTTP/1.1\r\nHost: web\r\n{}\r\n", "X: y\r\n".repeat(200));
    assert_eq!(bench.client().ask(&many).status(), 431);
    assert_eq!(bench.client().ask("nonsense\r\n\r\n").status(), 400);
    let connect = "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n";
    assert_eq!(bench.client().ask(connect).status(), 405);
    assert_eq!(bench.ring.counts(1).turns, 0);
}

#[test]
fn slow_heads_and_quiet_connections_end() {
    let limits = Limits { connections: 100, idle: Duration::from_secs(2), ..Limits::of(0) };
    let bench = Bench::with(limits);
    bench.well([1]);
    let mut silent = bench.client();
    let mut slow = bench.client();
    slow.send("GET / HTTP/1.1\r\nHost:");
    let mut quiet = bench.client();
    assert_eq!(quiet.get(), "1");
    for client in [&mut silent, &mut slow, &mut quiet] {
        assert_eq!(client.rest(), "");
    }
    assert_eq!(bench.ring.counts(1).turns, 1);
}

#[test]
fn requests_under_way_complete_when_the_service_ends() {
    let mut bench = Bench::new();
    let (asked, came) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    bench.instance(1, move |mut peer| {
        peer.request();
        asked.send(()).unwrap();
        gone.lock().unwrap().recv().unwrap();
        peer.answer("late");
    });
    let mut quiet = bench.client();
    let mut busy = bench.client();
    busy.send(GET);
    came.recv().unwrap();
    bench.service = None;
    assert_eq!(quiet.rest(), "", "ended at once");
    go.send(()).unwrap();
    let answer = busy.rest();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("late"), "{answer}");
}

#[test]
fn requests_that_do_not_complete_are_ended() {
    let limits = Limits { connections: 100, drain: Duration::from_millis(50), ..Limits::of(0) };
    let mut bench = Bench::with(limits);
    let (asked, came) = mpsc::channel();
    bench.instance(1, move |mut peer| {
        peer.request();
        asked.send(()).unwrap();
        peer.rest();
    });
    let mut client = bench.client();
    client.send(GET);
    came.recv().unwrap();
    bench.service = None;
    assert_eq!(client.rest(), "");
}

#[test]
fn requests_of_http2_take_turns_and_trailers_arrive() {
    let bench = Bench::new();
    bench.well([1, 2]);
    bench.instance(3, |mut peer| {
        while let Some(request) = peer.request() {
            assert_eq!(request.field("host"), Some("web.lan"));
            assert_eq!(request.field("te"), Some("trailers"));
            peer.send(
                "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                 1\r\n3\r\n0\r\nX-Sum: 42\r\n\r\n",
            );
        }
    });
    bench.instance(4, |mut peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart");
    });
    let stream = bench.connect("192.0.2.7:1");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (texts, sum, broken) = runtime.block_on(async move {
        let mut sender = speak_http2(stream).await;
        let mut ask = async || {
            let request = Request::get("http://web.lan/").header("te", "trailers");
            let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap());
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            answer.into_body().collect().await
        };
        let mut texts = Vec::new();
        let mut sum = None;
        for _ in 0..3 {
            let body = ask().await.unwrap();
            sum = body.trailers().and_then(|trailers| trailers.get("x-sum").cloned());
            texts.push(String::from_utf8(body.to_bytes().to_vec()).unwrap());
        }
        let broken = ask().await.is_err();
        texts.push(String::from_utf8(ask().await.unwrap().to_bytes().to_vec()).unwrap());
        (texts, sum, broken)
    });
    assert_eq!(texts, ["1", "2", "3", "1"], "the connection goes on behind what broke off");
    assert_eq!(sum.unwrap(), "42");
    assert!(broken);
}

async fn speak_http2(stream: UnixStream) -> http2::SendRequest<Empty<Bytes>> {
    stream.set_nonblocking(true).unwrap();
    let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream).unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}
