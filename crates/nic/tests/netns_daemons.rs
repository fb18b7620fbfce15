//! C12: daemons are reached exactly from where they promise.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod stage;

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use netyard_link::netns::Netns;
use netyard_nic::pipe::{Message, Pipe, PipeBuilder, Proto, Target};
use netyard_nic::{Bind, Daemon, DaemonError, Family, Handler, Interface, card_named};
use netyard_testbed::{Namespace, Outside, isolate, peer, run};

use self::stage::{LIMIT, now, sockets, within};

/// Sends back what it gets, and counts clients.
#[derive(Debug, Default)]
struct Echo {
    up: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Handler for Echo {
    async fn msg(&self, message: Message, pipe: &Pipe) {
        // A client that goes away is the client's matter.
        _ = pipe.answer(&message, &message.bytes).await;
    }

    async fn up(&self, _pipe: &Pipe) {
        self.up.fetch_add(1, Ordering::Relaxed);
    }

    async fn end(&self, _pipe: &Pipe) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

fn pipe(proto: Proto) -> PipeBuilder {
    match proto {
        Proto::Tcp => Pipe::tcp(),
        Proto::Udp => Pipe::udp(),
    }
}

/// How long silence is listened to.
const SILENCE: Duration = Duration::from_millis(300);

/// Whether an echo answers within this time.
async fn answers(pipe: PipeBuilder, at: Target, time: Duration) -> bool {
    let Ok(pipe) = pipe.connect(at).await else { return false };
    if pipe.send("hello").await.is_err() {
        return false;
    }
    matches!(pipe.recv(time).await, Ok(Some(_)))
}

fn nic(card: &str) -> Interface {
    Interface::unasked(card_named(card).unwrap())
}

/// A card with neighbours at its other end, and the other end's namespace.
fn neighbours() -> Outside {
    let outside = Outside::new();
    stage::until("link-local addresses that are ready", || {
        let tentative = |output: String| output.contains("tentative") || !output.contains("fe80");
        let here = run(Command::new(peer("ip")).args(["-6", "address", "show", "dev", "uplink"]));
        let there =
            run(outside.command(peer("ip")).args(["-6", "address", "show", "dev", "inside"]));
        !tentative(here) && !tentative(there)
    });
    outside
}

#[test]
fn c12_daemons_are_reached_from_where_they_promise_and_from_nowhere_else() {
    isolate(|| {
        let outside = neighbours();
        let there = Netns::open(&outside.namespace().path()).unwrap();
        let nic = nic("uplink");
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let own = [address("198.51.100.1:0"), address("[2001:db8:1::1]:0")];
        let loopback = [address("127.0.0.1:0"), address("[::1]:0")];
        let at = |mut address: SocketAddr, port| {
            address.set_port(port);
            address
        };
        // From the neighbour: on a thread in its namespace, while the daemons answer on this one.
        let far = async |proto, to: Target, time| {
            let there = there.clone();
            let asking = move || within(&there, answers(pipe(proto), to, time));
            tokio::task::spawn_blocking(asking).await.unwrap()
        };
        let near = async |proto, to: SocketAddr, time| answers(pipe(proto), to.into(), time).await;
        now(async {
            for proto in [Proto::Tcp, Proto::Udp] {
                let daemons = [(); 3].map(|()| Daemon::new(Echo::default()));
                let all = daemons[0].listen_all(proto, 0, &nic).await;
                let looped = daemons[1].listen_loopback(proto, 0, &nic).await;
                let local = daemons[2].listen_local(proto, 0, &nic).await;
                for report in [&all, &looped, &local] {
                    assert!(report.is_complete(), "{report:?}");
                    let ports: Vec<_> = report.listening().map(|it| it.port()).collect();
                    assert_eq!(ports.len(), 2, "both families: {report:?}");
                    assert_eq!(ports[0], ports[1], "the port is shared");
                }
                let [all_port, looped_port, local_port] =
                    [&all, &looped, &local].map(|it| it.listening().next().unwrap().port());
                assert_eq!(local.addresses[0].address.ip(), own[0].ip());
                assert!(local.addresses.iter().all(|it| it.pinned));

                for address in own {
                    assert!(
                        far(proto, at(address, all_port).into(), LIMIT).await,
                        "{proto} {address}"
                    );
                    assert!(near(proto, at(address, all_port), LIMIT).await, "{proto} {address}");
                    assert!(
                        !far(proto, at(address, looped_port).into(), SILENCE).await,
                        "{proto} {address}"
                    );
                }
                for address in loopback {
                    assert!(near(proto, at(address, all_port), LIMIT).await, "{proto} {address}");
                    assert!(
                        near(proto, at(address, looped_port), LIMIT).await,
                        "{proto} {address}"
                    );
                    assert!(
                        !near(proto, at(address, local_port), SILENCE).await,
                        "{proto} {address}"
                    );
                }
                assert!(far(proto, at(own[0], local_port).into(), LIMIT).await, "{proto}");
                // Of IPv6 by link-local addresses only; the neighbour names its own card.
                assert!(!far(proto, at(own[1], local_port).into(), SILENCE).await, "{proto}");
                let link_local = local.addresses[1].address.ip();
                let named = Target::Name(format!("{link_local}%inside"), local_port);
                assert!(far(proto, named, LIMIT).await, "{proto}");
                for daemon in daemons {
                    assert_eq!(daemon.servers().len(), 2);
                    daemon.close().await;
                }
                assert_eq!(sockets(), 0, "{proto}");
            }
        });
    });
}

#[test]
fn c12_what_is_taken_or_not_permitted_is_said_for_each_address() {
    isolate(|| {
        let _outside = neighbours();
        now(async {
            let nic = nic("uplink");
            for proto in [Proto::Tcp, Proto::Udp] {
                let port = 4000;
                let first = Daemon::new(Echo::default());
                assert!(first.listen_loopback(proto, port, &nic).await.is_complete());
                let second = Daemon::new(Echo::default());
                // Every address is one of them; the card's own are others.
                let all = second.listen_all(proto, port, &nic).await;
                for listened in &all.addresses {
                    assert!(matches!(listened.error, Some(DaemonError::InUse(_))), "{all:?}");
                }
                let text = all.addresses[0].error.as_ref().unwrap().to_string();
                assert!(text.starts_with("0.0.0.0:4000 is taken by another program"), "{text}");
                assert!(second.listen_local(proto, port, &nic).await.is_complete());
                let json = serde_json::to_value(&all).unwrap();
                assert_eq!(json["addresses"][0]["address"], "0.0.0.0:4000");
                assert!(json["addresses"][0]["error"].as_str().unwrap().contains("taken"));
                let bind = Bind::every(Family::Ip4).ip([192, 0, 2, 1].into()).port(port);
                let error = second.add_listener(proto, bind).await.unwrap_err();
                assert!(matches!(error, DaemonError::NotHere(_)), "{error}");
                first.close().await;
                // The port is free at once.
                assert!(second.listen_all(proto, port + 1, &nic).await.is_complete());
                assert!(second.listen_loopback(proto, port, &nic).await.is_complete());
                second.close().await;
            }
            assert_eq!(sockets(), 0);
        });
    });
}

#[test]
fn c12_a_daemon_starts_again_at_once_behind_one_that_had_clients() {
    isolate(|| {
        let _outside = neighbours();
        now(async {
            let nic = nic("uplink");
            let (up, ended) = (Arc::default(), Arc::default());
            let mut clients = Vec::new();
            for _ in 0..3 {
                let handler = Echo { up: Arc::clone(&up), ended: Arc::clone(&ended) };
                let daemon = Daemon::new(handler);
                assert!(daemon.listen_loopback(Proto::Tcp, 4000, &nic).await.is_complete());
                let client = Pipe::tcp().connect(("127.0.0.1", 4000)).await.unwrap();
                client.send("hello").await.unwrap();
                assert_eq!(client.recv(LIMIT).await.unwrap().unwrap().bytes, "hello");
                // The daemon closes first: its end of the connection winds down.
                daemon.close().await;
                assert_eq!(client.recv(LIMIT).await.unwrap(), None);
                clients.push(client);
            }
            assert_eq!((up.load(Ordering::Relaxed), ended.load(Ordering::Relaxed)), (3, 0));
            let daemon = Daemon::new(Echo { up, ended: Arc::clone(&ended) });
            assert!(daemon.listen_loopback(Proto::Tcp, 4000, &nic).await.is_complete());
            let client = Pipe::tcp().connect(("127.0.0.1", 4000)).await.unwrap();
            client.finish().await.unwrap();
            assert_eq!(client.recv(LIMIT).await.unwrap(), None);
            assert_eq!(ended.load(Ordering::Relaxed), 1, "it was told that the client is done");
            drop(daemon);
            while Pipe::tcp().connect(("127.0.0.1", 4000)).await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
    });
}

/// A second card, to which the default route does not lead, and who is beyond it.
fn second_card() -> Namespace {
    let beyond = Namespace::new("beyond");
    let ip = |arguments: &str| run(Command::new(peer("ip")).args(arguments.split(' ')));
    ip("link add second type veth peer name near netns beyond");
    ip("address add 10.9.0.2/24 dev second");
    ip("link set second up");
    ip("route add default via 10.9.0.1 dev second metric 500");
    for step in [
        "address add 10.9.0.1/24 dev near",
        "link set near up",
        "address add 192.0.2.50/32 dev lo",
        "route add default via 10.9.0.2 src 192.0.2.50",
    ] {
        beyond.ip(&step.split(' ').collect::<Vec<_>>());
    }
    beyond
}

#[test]
fn c16_a_daemon_on_the_second_card_answers_by_it() {
    isolate(|| {
        let _outside = neighbours();
        let beyond = second_card();
        let there = Netns::open(&beyond.path()).unwrap();
        now(async {
            for proto in [Proto::Tcp, Proto::Udp] {
                let daemon = Daemon::new(Echo::default());
                let report = daemon.listen_local(proto, 0, &nic("second")).await;
                let listened = &report.addresses[0];
                assert_eq!((listened.address.ip(), listened.pinned), ([10, 9, 0, 2].into(), true));
                let (there, to) = (there.clone(), listened.address);
                // Its address is far beyond: what is not held to the card would answer by the default one.
                let from = Bind::every(Family::Ip4).ip([192, 0, 2, 50].into());
                let asking =
                    move || within(&there, answers(pipe(proto).bind(from), to.into(), LIMIT));
                assert!(tokio::task::spawn_blocking(asking).await.unwrap(), "{proto}");
                daemon.close().await;
            }
        });
    });
}

/// Answers twice: in the way that names the message, and in the one that names its sender.
struct Twice;

impl Handler for Twice {
    async fn msg(&self, message: Message, pipe: &Pipe) {
        _ = pipe.answer(&message, "one").await;
        _ = pipe.send_to("two", message.from).await;
    }
}

#[test]
fn c12_datagrams_are_answered_from_the_address_that_was_asked() {
    isolate(|| {
        let outside = neighbours();
        let ip = |arguments: &str| run(Command::new(peer("ip")).args(arguments.split(' ')));
        let far = |arguments: &str| {
            outside.namespace().ip(&arguments.split(' ').collect::<Vec<_>>());
        };
        // Further addresses of the card, and blocks that are this machine's as a whole.
        ip("address add 198.51.100.77/24 dev uplink");
        ip("address add 2001:db8:1::77/64 dev uplink nodad");
        ip("route add local 192.0.2.0/24 dev lo");
        ip("route add local 2001:db8:77::/64 dev lo");
        far("route add 192.0.2.0/24 via 198.51.100.1");
        far("route add 2001:db8:77::/64 via 2001:db8:1::1");
        let there = Netns::open(&outside.namespace().path()).unwrap();
        let within_there = async |asking: Asking| {
            let there = there.clone();
            tokio::task::spawn_blocking(move || there.run(asking).unwrap()).await.unwrap();
        };
        now(async {
            let daemon = Daemon::new(Twice);
            let report = daemon.listen_all(Proto::Udp, 0, &nic("uplink")).await;
            let port = report.listening().next().unwrap().port();
            for both in [
                ["198.51.100.1", "198.51.100.77"],
                ["198.51.100.77", "192.0.2.200"],
                ["2001:db8:1::1", "2001:db8:1::77"],
                ["2001:db8:1::77", "2001:db8:77::200"],
            ] {
                let asked = both.map(|it| SocketAddr::new(it.parse().unwrap(), port));
                within_there(Box::new(move || assert_answers_from(asked))).await;
            }
            daemon.close().await;
        });
    });
}

type Asking = Box<dyn FnOnce() + Send>;

/// Asks two addresses of one server from one socket, and looks where the answers come from.
fn assert_answers_from(asked: [SocketAddr; 2]) {
    let any = if asked[0].is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = UdpSocket::bind(any).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    let heard = || {
        let mut buffer = [0; 8];
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        (from, String::from_utf8_lossy(&buffer[..len]).into_owned())
    };
    for to in asked {
        client.send_to(b"hello", to).unwrap();
        assert_eq!([heard(), heard()], ["one", "two"].map(|it| (to, it.to_owned())));
    }
    // Both at once: what names the message goes by it, what names the sender by its latest choice.
    for to in asked {
        client.send_to(b"hello", to).unwrap();
    }
    let mut ones: Vec<_> =
        (0..4).map(|_| heard()).filter(|(_, text)| text == "one").map(|(from, _)| from).collect();
    ones.sort();
    let mut asked = asked.to_vec();
    asked.sort();
    assert_eq!(ones, asked);
}

/// Panics where it is asked to, else sends back what it gets.
struct Shaky;

impl Handler for Shaky {
    async fn msg(&self, message: Message, pipe: &Pipe) {
        assert_ne!(message.bytes, "panic");
        _ = pipe.answer(&message, &message.bytes).await;
    }
}

#[test]
fn c12_a_handler_that_panics_does_not_end_its_server() {
    isolate(|| {
        now(async {
            let daemon = Daemon::new(Shaky);
            for proto in [Proto::Tcp, Proto::Udp] {
                let bind = Bind::every(Family::Ip4).loopback();
                let at = daemon.add_listener(proto, bind).await.unwrap().address;
                let doomed = pipe(proto).connect(at).await.unwrap();
                doomed.send("panic").await.unwrap();
                let client = pipe(proto).connect(at).await.unwrap();
                client.send("hello").await.unwrap();
                assert_eq!(client.recv(LIMIT).await.unwrap().unwrap().bytes, "hello", "{proto}");
            }
            assert_eq!(daemon.servers().len(), 2);
            daemon.close().await;
        });
    });
}
