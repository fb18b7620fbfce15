//! Requests of HTTP per second, on connections that stay open, through a published service that takes
//! a turn for each, over three back ends that do nothing.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use netyard_engine::control::TurnPolicy;
use netyard_link::netns::Netns;
use netyard_testbed::wait_for;

use super::connections::{Balancer, PORT, SOON, within_outside};
use super::contender::{Contender, GUEST_PORT, Guest};
use super::report::Row;
use super::stage;

/// Who takes part.
pub(super) const CONTENDERS: [Contender; 2] = [Contender::Netyard, Contender::Nginx];

/// Connections that are open, each with one request under way most of the time.
const CLIENTS: usize = 64;

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: service\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";

/// Takes the figure here, in a namespace that plays the host.
pub(super) fn take(contender: Contender, seconds: u32) -> BTreeMap<Row, f64> {
    let guests = [0, 1, 2].map(Guest::new);
    let _balancer = match contender {
        Contender::Netyard => Balancer::netyard(&guests, TurnPolicy::PerRequest),
        Contender::Nginx => Balancer::program("nginx", &guests, NGINX),
        _ => return BTreeMap::new(),
    };
    guests.iter().for_each(serve);
    let host = stage::hosts().next().unwrap_or(Ipv4Addr::LOCALHOST);
    let to = SocketAddr::new(host.into(), PORT);
    let first = || within_outside(|| TcpStream::connect(to).and_then(|it| ask(&it)).ok());
    wait_for("an answer", SOON, first);
    let rate = within_outside(|| rate(to, Duration::from_secs(seconds.into())));
    let rate = rate.unwrap_or_else(|error| panic!("ask {to}: {error}"));
    BTreeMap::from([(Row::Requests, rate)])
}

const NGINX: (&str, &str) = (
    "server ADDRESS;",
    "daemon off;
user root;
pid /run/nginx.pid;
error_log stderr crit;
worker_processes auto;
worker_rlimit_nofile 65536;
events { worker_connections 16384; }
http {
    access_log off;
    keepalive_requests 1000000000;
    upstream guests {
        SERVERS
        keepalive 256;
        keepalive_requests 1000000000;
    }
    server {
        listen 8080 backlog=4096 reuseport;
        location / {
            proxy_pass http://guests;
            proxy_http_version 1.1;
            proxy_set_header Connection '';
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto http;
            proxy_set_header X-Forwarded-Host $host;
        }
    }
}
",
);

/// Answers every request to a guest, on connections that stay open.
fn serve(guest: &Guest) {
    let listener = Netns::open(&guest.path())
        .and_then(|netns| netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, GUEST_PORT))));
    let listener = match listener {
        Ok(Ok(listener)) => listener,
        Ok(Err(error)) => panic!("listen in {}: {error}", guest.name()),
        Err(error) => panic!("listen in {}: {error}", guest.name()),
    };
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // Who has gone needs no answer.
            thread::spawn(move || answer(&client));
        }
    });
}

fn answer(mut client: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut request = [0; 4096];
    let mut len = 0;
    loop {
        len += match client.read(request.get_mut(len..).unwrap_or_default())? {
            0 => return Ok(()),
            more => more,
        };
        if request.get(..len).is_some_and(|request| request.ends_with(b"\r\n\r\n")) {
            client.write_all(ANSWER)?;
            len = 0;
        }
    }
}

/// One request, and its answer.
fn ask(mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(REQUEST)?;
    hear(stream)
}

fn hear(mut stream: &TcpStream) -> io::Result<()> {
    let mut answer = [0; 4096];
    let mut len = 0;
    while !answer.get(..len).is_some_and(|answer| answer.ends_with(b"\r\n\r\nhello\n")) {
        len += match stream.read(answer.get_mut(len..).unwrap_or_default())? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => more,
        };
    }
    Ok(())
}

/// Answered requests per second: all connections are asked, then all are heard.
fn rate(to: SocketAddr, length: Duration) -> io::Result<f64> {
    let connect = |_| {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SOON))?;
        ask(&stream).map(|()| stream)
    };
    let clients: Vec<TcpStream> = (0..CLIENTS).map(connect).collect::<io::Result<_>>()?;
    let begin = Instant::now();
    let mut rounds = 0_u32;
    while begin.elapsed() < length {
        for mut client in &clients {
            client.write_all(REQUEST)?;
        }
        clients.iter().try_for_each(hear)?;
        rounds += 1;
    }
    #[allow(clippy::cast_precision_loss, reason = "64")]
    let clients = CLIENTS as f64;
    Ok(f64::from(rounds) * clients / begin.elapsed().as_secs_f64())
}
