//! Connections per second from the outside through a published service over three back ends that
//! do nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netyard_engine::control::{Reply, Request, ServiceInstance, ServiceSpec, TurnPolicy};
use netyard_engine::forward::Protocol;
use netyard_link::netns::Netns;
use netyard_testbed::{Background, peer, wait_for};

use super::contender::{Contender, GUEST_PORT, Guest, Plugs};
use super::netyard::Network;
use super::others::Script;
use super::report::Row;
use super::stage;

/// Who takes part.
pub(super) const CONTENDERS: [Contender; 3] =
    [Contender::Netyard, Contender::Nginx, Contender::Haproxy];

/// Where the service is published.
pub(super) const PORT: u16 = 8080;

/// Clients at once, spread over the host's addresses: enough for nobody to be idle.
const CLIENTS: usize = 32;

/// Left out at the beginning, while caches and tables fill.
const WARM_UP: Duration = Duration::from_secs(1);

/// Far above what a balancer needs to listen.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// Takes the figure here, in a namespace that plays the host.
pub(super) fn take(contender: Contender, seconds: u32) -> BTreeMap<Row, f64> {
    let guests = [0, 1, 2].map(Guest::new);
    let _balancer = match contender {
        Contender::Netyard => Balancer::netyard(&guests, TurnPolicy::RoundRobin),
        Contender::Nginx => Balancer::program("nginx", &guests, NGINX),
        Contender::Haproxy => Balancer::program("haproxy", &guests, HAPROXY),
        _ => return BTreeMap::new(),
    };
    guests.iter().for_each(serve);
    for host in stage::hosts() {
        let answer = || within_outside(|| connect(SocketAddr::new(host.into(), PORT))).ok();
        wait_for("an answer", SOON, answer);
    }
    BTreeMap::from([(Row::Connections, rate(Duration::from_secs(seconds.into())))])
}

/// What takes the connections; it ends when this value goes.
#[derive(Default)]
pub(super) struct Balancer {
    _network: Option<Network>,
    _program: Option<Background>,
}

impl Balancer {
    pub(super) fn netyard(guests: &[Guest], policy: TurnPolicy) -> Self {
        let mut network = Network::join();
        let instances = guests.iter().map(|guest| {
            let plugged = network.connect(guest);
            let (address4, address6) = (plugged.address4, plugged.address6);
            ServiceInstance { name: guest.name(), address4, address6, weight: 1, eligible: true }
        });
        let spec = ServiceSpec {
            protocol: Protocol::Tcp,
            name: "bench".to_owned(),
            port: GUEST_PORT,
            publish: Some(SocketAddr::from(([0; 4], PORT))),
            delivery: Default::default(),
            instances: instances.collect(),
            policy,
            affinity: None,
        };
        let reply = network.ask(Request::SetService(spec), None);
        assert!(matches!(reply, Reply::Serving { .. }), "{reply:?}");
        Self { _network: Some(network), ..Self::default() }
    }

    /// A program of Debian before the same guests, on a bridge made by hand. In its configuration
    /// `SERVERS` stands for them.
    pub(super) fn program(
        name: &str,
        guests: &[Guest],
        (line, configuration): (&str, &str),
    ) -> Self {
        let mut script = Script::new();
        let mut servers = String::new();
        for (number, guest) in guests.iter().enumerate() {
            script.plug(guest);
            let at = format!("{}:{GUEST_PORT}", guest.address());
            servers += &line.replace("NAME", &format!("s{number}")).replace("ADDRESS", &at);
        }
        let file = format!("/run/{name}.conf");
        let text = configuration.replace("SERVERS", &servers);
        fs::write(&file, text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let flag = if name == "nginx" { "-c" } else { "-f" };
        let mut command = Command::new(peer(name));
        let program = Background::start(command.args([flag, &file]));
        Self { _program: Some(program), ..Self::default() }
    }
}

const NGINX: (&str, &str) = (
    "server ADDRESS;",
    "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
user root;
pid /run/nginx.pid;
error_log stderr crit;
worker_processes auto;
events { worker_connections 4096; }
stream {
    upstream guests { SERVERS }
    server { listen 8080 backlog=4096 reuseport; proxy_pass guests; }
}
",
);

const HAPROXY: (&str, &str) = (
    "    server NAME ADDRESS\n",
    "global
    maxconn 1000
defaults
    mode tcp
    timeout connect 10s
    timeout client 10s
    timeout server 10s
frontend published
    bind :8080 backlog 4096
    default_backend guests
backend guests
    balance roundrobin
SERVERS",
);

/// Answers everybody who connects to a guest, and closes.
fn serve(guest: &Guest) {
    let listener = Netns::open(&guest.path())
        .and_then(|netns| netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, GUEST_PORT))));
    let listener = match listener {
        Ok(Ok(listener)) => listener,
        Ok(Err(error)) => panic!("listen in {}: {error}", guest.name()),
        Err(error) => panic!("listen in {}: {error}", guest.name()),
    };
    thread::spawn(move || {
        loop {
            if let Ok((mut client, _)) = listener.accept() {
                // Who has gone needs no answer.
                let _ = client.write_all(b"hello\n");
            }
        }
    });
}

pub(super) fn within_outside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    stage::outside_namespace().run(work).unwrap_or_else(|error| panic!("{error}"))
}

/// One whole connection.
fn connect(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut answer = [0; 64];
    let mut len = 0;
    loop {
        match stream.read(&mut answer)? {
            0 if len > 0 => return Ok(()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => len += more,
        }
    }
}

/// Whole connections per second.
fn rate(length: Duration) -> f64 {
    let (count, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    let hosts = stage::hosts().map(|host| SocketAddr::new(host.into(), PORT));
    let took = thread::scope(|scope| {
        for to in hosts.collect::<Vec<_>>().into_iter().cycle().take(CLIENTS) {
            let (count, failed, over) = (&count, &failed, &over);
            scope.spawn(move || {
                within_outside(|| {
                    while !over.load(Ordering::Relaxed) {
                        let counter = if connect(to).is_ok() { count } else { failed };
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        thread::sleep(WARM_UP);
        let (before, begin) = (count.load(Ordering::Relaxed), Instant::now());
        thread::sleep(length);
        let done = count.load(Ordering::Relaxed) - before;
        let took = begin.elapsed();
        over.store(true, Ordering::Relaxed);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let done = done as f64;
        done / took.as_secs_f64()
    });
    let failed = failed.into_inner();
    if failed > 0 {
        eprintln!("{failed} connections failed");
    }
    took
}
