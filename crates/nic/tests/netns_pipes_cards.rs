//! C16, C20, C21 and C23 for pipes: two cards, each behind what a lab puts there. Whom the Internet sees is
//! the witness of the card that a pipe has left by, as each card has a NAT of its own.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod stage;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use netyard_link::netns::Netns;
use netyard_nic::lab::{Card, Impairment, Kind, Lab, SERVERS, SERVERS6};
use netyard_nic::pipe::{Pipe, PipeBuilder, PipeError, PipeOptions, Proto};
use netyard_nic::stun::listen::Listening;
use netyard_nic::stun::{Server, StunProber};
use netyard_nic::{
    Bind, DnsError, Family, Interface, IpRange, Pin, PublicPolicy, RoutePool, StunClient,
    card_named,
};
use netyard_testbed::{Namespace, isolate, isolate_mapped, peer, run, wait_for};
use netyard_wire::dns::{Data, Query, Rcode, Record, Response};

use self::stage::{LIMIT, now, route, within};

/// Where the witness answers.
const PORT: u16 = 7000;

fn pipe(proto: Proto) -> PipeBuilder {
    match proto {
        Proto::Tcp => Pipe::tcp(),
        Proto::Udp => Pipe::udp(),
    }
}

/// Answers in the Internet with the address that it sees, over TCP and UDP.
fn witness(far: &Netns, at: IpAddr) {
    let at = SocketAddr::new(at, PORT);
    let (listener, datagrams) =
        far.run(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, from)) = datagrams.recv_from(&mut buffer) {
            datagrams.send_to(from.ip().to_string().as_bytes(), from).unwrap();
        }
    });
    thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            // A client that goes away is the client's matter.
            _ = stream.read(&mut [0; 16]);
            _ = stream.write_all(from.ip().to_string().as_bytes());
        }
    });
}

/// Whom the witness sees.
async fn seen(pipe: PipeBuilder, at: IpAddr) -> Result<IpAddr, PipeError> {
    let pipe = pipe.connect((at, PORT)).await?;
    pipe.send("who am I?").await?;
    let answer = pipe.recv(LIMIT).await?.unwrap();
    Ok(std::str::from_utf8(&answer.bytes).unwrap().parse().unwrap())
}

fn external(number: u8) -> IpAddr {
    Card::number(number).external
}

fn two_nats_tell_the_cards_apart(protos: &[Proto]) {
    let lab = Lab::up([Kind::Port, Kind::Symmetric], Impairment::default()).unwrap();
    witness(lab.internet(), SERVERS[0]);
    within(lab.machine(), async {
        for proto in protos.iter().copied() {
            for number in [0, 1, 0] {
                let route = route(&Card::number(number).name, Family::Ip4);
                let held = seen(pipe(proto).via(&route), SERVERS[0]).await.unwrap();
                assert_eq!(held, external(number), "{proto} by {route}");
            }
            // The address alone does not choose the card: that one leaves by the default one.
            let second = route("eth1", Family::Ip4).bind();
            let loose = second.clone().pin(Pin::Never);
            let by_default = seen(pipe(proto).bind(loose), SERVERS[0]).await.unwrap();
            assert_eq!(by_default, external(0), "{proto}");
            let pinned = pipe(proto).bind(second).connect((SERVERS[0], PORT)).await.unwrap();
            assert!(pinned.is_pinned());
            assert_eq!(pinned.local().ip(), Card::number(1).addresses[0]);
        }
    });
}

#[test]
fn c16_a_pipe_leaves_by_the_card_of_its_route() {
    isolate(|| two_nats_tell_the_cards_apart(&[Proto::Tcp, Proto::Udp]));
}

#[test]
fn c16_a_pipe_leaves_by_the_card_of_its_route_without_root() {
    isolate_mapped(|| two_nats_tell_the_cards_apart(&[Proto::Tcp, Proto::Udp]));
}

#[test]
fn c21_ipv6_leaves_by_the_card_of_its_route() {
    isolate(|| {
        let lab = Lab::up([Kind::Open, Kind::Open], Impairment::default()).unwrap();
        witness(lab.internet(), SERVERS6[0]);
        within(lab.machine(), async {
            for proto in [Proto::Tcp, Proto::Udp] {
                for number in [1, 0] {
                    let card = Card::number(number);
                    let route = route(&card.name, Family::Ip6);
                    let held = seen(pipe(proto).via(&route), SERVERS6[0]).await.unwrap();
                    assert_eq!(held, card.addresses[1], "{proto} by {route}");
                }
            }
        });
    });
}

#[test]
fn c20_where_udp_is_blocked_tcp_gets_through() {
    isolate(|| {
        let lab = Lab::up([Kind::Open, Kind::Blocked], Impairment::default()).unwrap();
        witness(lab.internet(), SERVERS[0]);
        within(lab.machine(), async {
            let route = route("eth1", Family::Ip4);
            let by_tcp = seen(Pipe::tcp().via(&route), SERVERS[0]).await.unwrap();
            assert_eq!(by_tcp, Card::number(1).addresses[0]);
            let udp = Pipe::udp().via(&route).connect((SERVERS[0], PORT)).await.unwrap();
            udp.send("who am I?").await.unwrap();
            let silence = udp.recv(std::time::Duration::from_millis(300)).await;
            assert!(matches!(silence, Err(PipeError::Timeout { .. })), "{silence:?}");
        });
    });
}

/// Answers DNS questions over UDP in the Internet, with the witness's addresses, and tells who asked what.
fn resolver(lab: &Lab) -> Receiver<(IpAddr, String)> {
    let at = SocketAddr::new(SERVERS[1], 53);
    let socket = lab.internet().run(|| UdpSocket::bind(at).unwrap()).unwrap();
    let (told, asked) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = Query::parse(&buffer[..length]).unwrap();
            let name = query.question.name.clone();
            // Whoever asks may have gone.
            _ = told.send((from.ip(), name.to_string()));
            let mut response = Response::to(&query, Rcode::NoError);
            let is_known = name.to_string().starts_with("witness.test")
                || (name.to_string().starts_with("six.test") && query.question.kind == 28);
            if is_known {
                let record = |address: IpAddr| Record {
                    name: name.clone(),
                    ttl: 60,
                    data: Data::from(address),
                };
                response.answers = vec![match query.question.kind {
                    28 => record(SERVERS6[0]),
                    _ => record(SERVERS[0]),
                }];
            }
            socket.send_to(&response.emit(512), from).unwrap();
        }
    });
    asked
}

#[test]
fn c16_names_are_asked_through_the_card() {
    isolate(|| {
        let lab = Lab::up([Kind::Port, Kind::Port], Impairment::default()).unwrap();
        witness(lab.internet(), SERVERS[0]);
        let asked = resolver(&lab);
        netyard_testbed::set_resolver(SERVERS[1]);
        within(lab.machine(), async move {
            for number in [1, 0] {
                let route = route(&Card::number(number).name, Family::Ip4);
                let pipe = Pipe::tcp().via(&route).connect(("witness.test", PORT)).await.unwrap();
                assert_eq!(pipe.peer().unwrap().ip(), SERVERS[0]);
                let (who, name) = asked.recv().unwrap();
                assert_eq!((who, name.trim_end_matches('.')), (external(number), "witness.test"));
                // The server of the lab answers STUN, too.
                let stun = StunClient::new("witness.test").via(&route);
                assert_eq!(stun.wan_ip().await.unwrap(), external(number));
                assert_eq!(asked.recv().unwrap().0, external(number));
            }
            // IPv6 too: the resolver of IPv4 is asked through the same card.
            let route = route("eth1", Family::Ip6);
            let to = ("witness.test", PORT);
            let pipe = Pipe::udp().via(&route).connect(to).await.unwrap();
            assert_eq!(pipe.peer().unwrap().ip(), SERVERS6[0]);
            assert_eq!(asked.recv().unwrap().0, external(1));
            // A name that has IPv6 addresses only.
            let both = [Family::Ip4, Family::Ip6].map(|family| self::route("eth1", family).bind());
            let pipe = Pipe::udp().among(both).connect(("six.test", PORT)).await.unwrap();
            assert_eq!(pipe.peer().unwrap().ip(), SERVERS6[0]);
            assert_eq!([asked.recv().unwrap().0, asked.recv().unwrap().0], [external(1); 2]);
            // Nothing that is known is asked for.
            assert!(Pipe::udp().via(&route).connect(("localhost", 9)).await.is_ok());
            let unknown = Pipe::udp().via(&route).connect(("other.test", 9)).await;
            assert!(
                matches!(unknown, Err(PipeError::Dns(DnsError::NotFound { .. }))),
                "{unknown:?}"
            );
            assert_eq!(asked.recv().unwrap().1.trim_end_matches('.'), "other.test");
            let nowhere = PipeOptions { resolvers: Some(Vec::new()), ..PipeOptions::default() };
            let nobody = Pipe::udp().via(&route).options(nowhere).connect(("a.test", 9)).await;
            assert!(matches!(nobody, Err(PipeError::Dns(DnsError::NoServer { .. }))));
        });
    });
}

#[test]
fn c23_the_second_run_of_a_process_is_like_the_first() {
    isolate(|| {
        let lab = Lab::up([Kind::Port, Kind::Symmetric], Impairment::default()).unwrap();
        witness(lab.internet(), SERVERS[0]);
        within(lab.machine(), async {
            let bind = route("eth1", Family::Ip4).bind().port(40_000);
            for proto in [Proto::Tcp, Proto::Udp] {
                for _ in 0..2 {
                    // From the same port, as soon as the first is closed.
                    let server = pipe(proto).bind(bind.clone()).listen().await.unwrap();
                    assert!(server.is_pinned());
                    server.close().await;
                    let route = route("eth1", Family::Ip4);
                    assert_eq!(
                        seen(pipe(proto).via(&route), SERVERS[0]).await.unwrap(),
                        external(1)
                    );
                }
            }
        });
    });
}

/// Answers STUN.
fn stun(far: &Netns, at: IpAddr) {
    let far = far.clone();
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        far.run(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listening = Listening::bind(Server::single(), SocketAddr::new(at, 3478)).await;
                ready.send(()).unwrap();
                listening.unwrap().serve(None).await.unwrap();
            });
        })
    });
    is_ready.recv().unwrap();
}

/// A card with a block of addresses of each family, and a neighbour that tells whom it sees.
fn block() -> Namespace {
    let beyond = Namespace::new("beyond");
    let ip = |arguments: &str| run(Command::new(peer("ip")).args(arguments.split(' ')));
    ip("link add card type veth peer name near netns beyond");
    for step in [
        "address add 10.9.0.1/24 dev near",
        "address add 2001:db8:9::1/64 dev near nodad",
        "link set near up",
        "route add 198.18.8.0/24 via 10.9.0.2",
        "route add 2001:db8:8::/64 via 2001:db8:9::2",
    ] {
        beyond.ip(&step.split(' ').collect::<Vec<_>>());
    }
    ip("address add 10.9.0.2/24 dev card");
    ip("address add 2001:db8:9::2/64 dev card nodad");
    ip("link set card up");
    ip("route add local 198.18.8.0/24 dev card");
    ip("route add local 2001:db8:8::/64 dev card");
    // What no card has cannot ask for neighbours: the link-local address does.
    wait_for("a link-local address that is ready", LIMIT, || {
        let addresses = ip("-6 address show dev card");
        (addresses.contains("fe80") && !addresses.contains("tentative")).then_some(())
    });
    beyond
}

#[test]
fn c21_any_address_of_a_block_can_be_left_from() {
    isolate(|| {
        let beyond = block();
        let far = Netns::open(&beyond.path()).unwrap();
        for at in ["10.9.0.1", "2001:db8:9::1"] {
            witness(&far, at.parse().unwrap());
        }
        for at in ["10.9.0.1", "2001:db8:9::1"] {
            stun(&far, at.parse().unwrap());
        }
        let public = ["198.18.0.0/15", "2001:db8::/32"].map(|it| it.parse().unwrap());
        let policy = PublicPolicy::treat_as_public(public.to_vec());
        let prober = StunProber { servers: vec!["10.9.0.1".into(), "2001:db8:9::1".into()] };
        let card = card_named("card").unwrap();
        let nic = now(Interface::load(card, policy, 1, &prober));
        for (block, at, count) in [
            ("198.18.8.0/24", "10.9.0.1", 254),
            ("2001:db8:8::/64", "2001:db8:9::1", (1_u128 << 64) - 1),
        ] {
            let range = IpRange::block(block.parse().unwrap());
            let mut routes = nic.rp(range.family()).routes().iter();
            let found = routes.find(|route| route.ext_ips() == Some(&range));
            let route = found.unwrap_or_else(|| panic!("{block} is no route of {nic:#?}"));
            assert!(route.is_direct(), "{route}");
            let pool = RoutePool::new([route.clone()]);
            assert_eq!(pool.len(), count);
            for index in [0, 77, -1] {
                let route = pool.get(index).unwrap();
                for proto in [Proto::Tcp, Proto::Udp] {
                    let who = now(seen(pipe(proto).via(&route), at.parse().unwrap())).unwrap();
                    assert_eq!(Some(who), route.ext(), "{proto} {route}");
                }
            }
        }
        // What is nobody's cannot be bound to.
        let foreign = Bind::on(nic.card().id(), "2001:db8:7::1".parse().unwrap());
        let error = now(Pipe::udp().bind(foreign).listen()).unwrap_err();
        assert!(error.to_string().starts_with("cannot use [2001:db8:7::1]:0"), "{error}");
    });
}
