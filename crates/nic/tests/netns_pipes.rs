//! C11: pipes, on loopback.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod stage;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use netyard_nic::pipe::{
    ClientTls, Filter, Limits, Pipe, PipeBuilder, PipeError, PipeOptions, Policy, Proto, Target,
    max_datagram, relay,
};
use netyard_nic::{Bind, Family, tls};
use netyard_testbed::{isolate, peer, run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::stage::{LIMIT, certificate, now, sockets};

/// What relays carry, bytes.
const MUCH: usize = 10 << 20;

fn pipe(proto: Proto) -> PipeBuilder {
    match proto {
        Proto::Tcp => Pipe::tcp(),
        Proto::Udp => Pipe::udp(),
    }
}

fn loopback(family: Family) -> Bind {
    Bind::every(family).loopback()
}

async fn server(proto: Proto, family: Family) -> Pipe {
    pipe(proto).bind(loopback(family)).gathered().listen().await.unwrap()
}

/// Bytes of which no part is like another.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

/// Sends back what comes, until nothing does.
async fn echo(server: &Pipe) {
    while let Ok(Some(message)) = server.next().await {
        server.send_to(message.bytes, message.from).await.unwrap();
    }
}

async fn text(pipe: &Pipe) -> String {
    let message = pipe.recv(LIMIT).await.unwrap().unwrap();
    String::from_utf8(message.bytes.to_vec()).unwrap()
}

#[test]
fn c11_both_protocols_and_families_are_echoed() {
    isolate(|| {
        now(async {
            for (proto, family) in [
                (Proto::Tcp, Family::Ip4),
                (Proto::Tcp, Family::Ip6),
                (Proto::Udp, Family::Ip4),
                (Proto::Udp, Family::Ip6),
            ] {
                let server = server(proto, family).await;
                let client = pipe(proto).connect(server.local()).await.unwrap();
                assert_eq!(client.peer(), Some(server.local()));
                assert_eq!(Family::of(client.local().ip()), family);
                tokio::select! {
                    () = echo(&server) => panic!("the server ended"),
                    () = async {
                        for word in ["one", "two"] {
                            client.send(word).await.unwrap();
                            assert_eq!(text(&client).await, word);
                        }
                    } => {}
                }
                let stats = client.close().await;
                assert_eq!((stats.sent_messages, stats.sent_bytes), (2, 6), "{proto} {family}");
                assert_eq!(stats.received_bytes, 6);
                server.close().await;
            }
            assert_eq!(sockets(), 0);
        });
    });
}

#[test]
fn c11_clients_of_a_server_are_pipes_of_their_own() {
    isolate(|| {
        now(async {
            let server = Pipe::tcp().bind(loopback(Family::Ip4)).listen().await.unwrap();
            let all = server.subscribe(Filter::all());
            let one = Pipe::tcp().connect(server.local()).await.unwrap();
            let two = Pipe::tcp().connect(server.local()).await.unwrap();
            let accepted = [server.accept().await.unwrap(), server.accept().await.unwrap()];
            for client in [&one, &two] {
                client.send(format!("from {}", client.local())).await.unwrap();
            }
            for client in &accepted {
                let peer = client.peer().unwrap();
                assert_eq!(text(client).await, format!("from {peer}"));
                client.send("hello").await.unwrap();
                assert!(all.recv(LIMIT).await.unwrap().is_some(), "the server sees copies");
            }
            assert_eq!((text(&one).await, text(&two).await), ("hello".into(), "hello".into()));
            assert!(matches!(server.recv(LIMIT).await, Err(PipeError::Misuse(_))));
            assert!(matches!(server.send("x").await, Err(PipeError::NoClient(None))));
            let nobody: SocketAddr = "127.0.0.1:9".parse().unwrap();
            assert!(matches!(server.send_to("x", nobody).await, Err(PipeError::NoClient(Some(_)))));
            // Whoever was accepted stays.
            server.close().await;
            assert!(Pipe::tcp().connect(one.peer().unwrap()).await.is_err());
            one.send("still").await.unwrap();
            let of_one = accepted.iter().find(|it| it.peer() == Some(one.local())).unwrap();
            assert_eq!(text(of_one).await, "still");
            one.finish().await.unwrap();
            assert_eq!(of_one.recv(LIMIT).await.unwrap(), None, "it is done");
            of_one.send("bye").await.unwrap();
            assert_eq!(text(&one).await, "bye", "half of it is open");
        });
    });
}

#[test]
fn c11_subscriptions_get_what_they_want_each_a_copy() {
    isolate(|| {
        now(async {
            for proto in [Proto::Tcp, Proto::Udp] {
                let server = server(proto, Family::Ip4).await;
                let one = pipe(proto).connect(server.local()).await.unwrap();
                let two = pipe(proto).connect(server.local()).await.unwrap();
                let all = [server.subscribe(Filter::all()), server.subscribe(Filter::all())];
                let numbers = server.subscribe(Filter::all().matching(r"^\d+$").unwrap());
                let of_one = server.subscribe(Filter::all().from_endpoint(one.local()));
                let any_port = SocketAddr::new(one.local().ip(), 0);
                let of_host = server.subscribe(Filter::all().from_endpoint(any_port));
                for (client, word) in [(&one, "word"), (&two, "17"), (&one, "99 b")] {
                    client.send(word).await.unwrap();
                    // One after the other, so that the order is known and TCP cuts here.
                    for subscription in all.iter().chain([&of_host]) {
                        let message = subscription.recv(LIMIT).await.unwrap().unwrap();
                        assert_eq!((&message.bytes[..], message.from), {
                            (word.as_bytes(), client.local())
                        });
                    }
                    assert_eq!(text(&server).await, word, "and the inbox");
                }
                assert_eq!(numbers.recv(LIMIT).await.unwrap().unwrap().bytes, "17");
                assert_eq!(of_one.recv(LIMIT).await.unwrap().unwrap().bytes, "word");
                assert_eq!(of_one.recv(LIMIT).await.unwrap().unwrap().bytes, "99 b");
                let nothing = numbers.recv(Duration::from_millis(1)).await;
                assert!(matches!(nothing, Err(PipeError::Timeout { .. })), "silence is no end");
            }
        });
    });
}

#[test]
fn c11_closing_wakes_everyone_who_waits() {
    isolate(|| {
        now(async {
            for proto in [Proto::Tcp, Proto::Udp] {
                let server = server(proto, Family::Ip4).await;
                let client = pipe(proto).connect(server.local()).await.unwrap();
                let [here, there] =
                    [client.subscribe(Filter::all()), server.subscribe(Filter::all())];
                let ((), at_client, at_server) = tokio::join!(
                    async {
                        client.close().await;
                        server.close().await;
                    },
                    here.next(),
                    there.next(),
                );
                assert_eq!((at_client.unwrap(), at_server.unwrap()), (None, None));
            }
            let server = Pipe::tcp().bind(loopback(Family::Ip4)).listen().await.unwrap();
            let address = server.local();
            // A server that is dropped goes as well.
            drop(server);
            while Pipe::tcp().connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
            assert_eq!(sockets(), 0);
        });
    });
}

#[test]
fn c11_a_full_queue_makes_streams_wait_and_nothing_is_lost() {
    isolate(|| {
        now(async {
            let limits = Limits { bytes: 64 * 1024, ..Limits::new(Policy::Wait) };
            let options = PipeOptions { limits: Some(limits), ..PipeOptions::default() };
            let server = Pipe::tcp().bind(loopback(Family::Ip4)).options(options);
            let server = server.listen().await.unwrap();
            let client = Pipe::tcp().connect(server.local()).await.unwrap();
            let accepted = server.accept().await.unwrap();
            let sent = noise(4 * MUCH);
            let sending = async {
                client.send(&sent).await.unwrap();
                client.finish().await.unwrap();
            };
            let receiving = async {
                let mut got = Vec::new();
                while let Some(message) = accepted.next().await.unwrap() {
                    got.extend_from_slice(&message.bytes);
                }
                got
            };
            let mut sending = std::pin::pin!(sending);
            // Nobody takes anything: the sender gets stuck with most of it.
            let stuck = tokio::time::timeout(Duration::from_millis(300), &mut sending).await;
            assert!(stuck.is_err(), "40 MiB are taken by a queue of 64 KiB");
            assert!(accepted.stats().received_bytes < 1 << 20);
            let ((), got) = tokio::join!(sending, receiving);
            assert!(got == sent);
            assert_eq!(accepted.stats().dropped_messages, 0);
        });
    });
}

#[test]
fn c11_a_full_queue_drops_the_oldest_datagrams_and_counts_them() {
    isolate(|| {
        now(async {
            let limits = Limits { messages: 2, ..Limits::new(Policy::DropOldest) };
            let options = PipeOptions { limits: Some(limits), ..PipeOptions::default() };
            let server = Pipe::udp().bind(loopback(Family::Ip4)).options(options);
            let server = server.listen().await.unwrap();
            let roomy = Limits::new(Policy::DropOldest);
            let seen = server.subscribe_within(Filter::all(), roomy);
            let client = Pipe::udp().connect(server.local()).await.unwrap();
            for number in 0..5 {
                client.send(format!("{number}")).await.unwrap();
                assert!(seen.recv(LIMIT).await.unwrap().is_some());
            }
            assert_eq!(server.stats().dropped_messages, 3);
            assert_eq!((text(&server).await, text(&server).await), ("3".into(), "4".into()));

            let closes = Limits { messages: 1, ..Limits::new(Policy::Close) };
            let _narrow = server.subscribe_within(Filter::all(), closes);
            for _ in 0..2 {
                client.send("x").await.unwrap();
            }
            while let Ok(Some(_)) = server.next().await {}
            assert!(matches!(server.send_to("x", client.local()).await, Err(PipeError::Closed)));
        });
    });
}

#[test]
fn c11_a_udp_client_hears_its_other_end_only() {
    isolate(|| {
        now(async {
            let server = server(Proto::Udp, Family::Ip4).await;
            let stranger = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let client = Pipe::udp().connect(server.local()).await.unwrap();
            stranger.send_to(b"evil", client.local()).await.unwrap();
            client.send("hello").await.unwrap();
            let from = server.recv(LIMIT).await.unwrap().unwrap().from;
            server.send_to("good", from).await.unwrap();
            assert_eq!(text(&client).await, "good");
            let large = vec![0; 65_508];
            assert!(matches!(
                client.send(large).await,
                Err(PipeError::TooLarge { len: 65_508, .. })
            ));
            assert!(matches!(client.send_to("x", from).await, Err(PipeError::NoClient(_))));
            // Nobody is there any more: it is told, and harms nothing.
            server.close().await;
            while client.stats().undelivered_messages == 0 {
                client.send("is somebody there?").await.unwrap();
                tokio::task::yield_now().await;
            }
        });
    });
}

#[test]
fn c11_the_longest_datagrams_pass_and_do_not_end_a_relay() {
    isolate(|| {
        now(async {
            let longest = max_datagram(Family::Ip6);
            let mut entry = server(Proto::Udp, Family::Ip6).await;
            let client = Pipe::udp().connect(entry.local()).await.unwrap();
            assert!(matches!(
                client.send(noise(longest + 1)).await,
                Err(PipeError::TooLarge { len: 65_528, most: 65_527 })
            ));
            client.send(noise(longest)).await.unwrap();
            assert_eq!(entry.recv(LIMIT).await.unwrap().unwrap().bytes, noise(longest), "whole");
            let target = server(Proto::Udp, Family::Ip4).await;
            let onward = Pipe::udp().connect(target.local()).await.unwrap();
            let relay = entry.relay_to(&onward);
            // IPv4 carries less: that one is dropped and counted, and what comes behind it passes.
            client.send(noise(longest)).await.unwrap();
            client.send("short").await.unwrap();
            assert_eq!(text(&target).await, "short");
            assert_eq!(relay.stats().dropped, 1);
        });
    });
}

/// Changes the firewall.
fn nft(rule: &str) {
    run(Command::new(peer("nft")).args(rule.split(' ')));
}

#[test]
fn c11_a_firewall_that_refuses_a_datagram_does_not_end_the_pipe() {
    isolate(|| {
        now(async {
            for (family, refusal) in [
                (Family::Ip4, "icmp type admin-prohibited"),
                (Family::Ip4, "icmp type prot-unreachable"),
                (Family::Ip6, "icmpv6 type admin-prohibited"),
            ] {
                let server = server(Proto::Udp, family).await;
                let client = Pipe::udp().connect(server.local()).await.unwrap();
                let port = server.local().port();
                nft("add table inet wall");
                nft("add chain inet wall in { type filter hook input priority 0 ; }");
                nft(&format!("add rule inet wall in udp dport {port} reject with {refusal}"));
                client.send("refused").await.unwrap();
                // Its reader hears of it before anything else is sent.
                while client.stats().undelivered_messages == 0 {
                    tokio::task::yield_now().await;
                }
                nft("delete table inet wall");
                client.send("again").await.unwrap();
                let heard = server.recv(LIMIT).await.unwrap().unwrap();
                assert_eq!(heard.bytes, "again", "{refusal}");
                server.send_to("here", heard.from).await.unwrap();
                assert_eq!(text(&client).await, "here", "{refusal}");
            }
        });
    });
}

/// A client of `front`, whose bytes a relay carries to `back`, which echoes them.
async fn relayed(front: Proto, back: Proto) {
    let (entry, target) = (server(front, Family::Ip4).await, server(back, Family::Ip6).await);
    let client = pipe(front).connect(entry.local()).await.unwrap();
    let mut onward = pipe(back).connect(target.local()).await.unwrap();
    let mut entry = entry;
    let mut both = relay(&mut entry, &mut onward);
    let sent = noise(MUCH);
    let talking = async {
        let mut got = Vec::with_capacity(MUCH);
        // Datagrams are lost where too many are under way.
        let window = if (front, back) == (Proto::Tcp, Proto::Tcp) { MUCH } else { 16 * 1024 };
        for part in sent.chunks(window) {
            let sending = async {
                for piece in part.chunks(1024) {
                    client.send(piece).await.unwrap();
                }
            };
            let receiving = async {
                let wanted = got.len() + part.len();
                while got.len() < wanted {
                    got.extend_from_slice(&client.recv(LIMIT).await.unwrap().unwrap().bytes);
                }
            };
            tokio::join!(sending, receiving);
        }
        assert!(got == sent, "{front} to {back}");
    };
    tokio::select! {
        () = echo(&target) => panic!("the target ended"),
        () = talking => {}
    }
    for way in &both {
        while way.stats().bytes < MUCH as u64 {
            tokio::task::yield_now().await;
        }
        assert_eq!(way.stats().bytes, MUCH as u64);
    }
    if (front, back) == (Proto::Tcp, Proto::Tcp) {
        // The end of one is told to the other.
        target.close().await;
        both[1].finished().await.unwrap();
        assert_eq!(client.recv(LIMIT).await.unwrap(), None);
    }
}

#[test]
fn c11_relays_carry_both_ways_between_streams() {
    isolate(|| now(relayed(Proto::Tcp, Proto::Tcp)));
}

#[test]
fn c11_relays_carry_both_ways_between_datagrams() {
    isolate(|| now(relayed(Proto::Udp, Proto::Udp)));
}

#[test]
fn c11_relays_carry_both_ways_between_a_stream_and_datagrams() {
    isolate(|| {
        now(async {
            relayed(Proto::Tcp, Proto::Udp).await;
            relayed(Proto::Udp, Proto::Tcp).await;
        });
    });
}

#[test]
fn c11_tls_refuses_a_bad_certificate() {
    isolate(|| {
        let folder = Path::new("/tmp/certificate");
        std::fs::create_dir(folder).unwrap();
        let (certificate, key) = certificate(folder, "pipe.test");
        now(async {
            let identity = tls::identity(&certificate, &key).unwrap();
            let server = Pipe::tcp().bind(loopback(Family::Ip4)).gathered();
            let server = server.listen_tls(identity.clone()).await.unwrap();
            let trust = tls::trust_in(&certificate).unwrap();
            let open = async |trust: &ClientTls| {
                Pipe::tcp().connect_tls(server.local(), trust.clone()).await
            };
            let good = ClientTls { trust: trust.clone(), name: Some("pipe.test".to_owned()) };
            let client = open(&good).await.unwrap();
            tokio::select! {
                () = echo(&server) => panic!("the server ended"),
                () = async {
                    client.send("secret").await.unwrap();
                    assert_eq!(text(&client).await, "secret");
                } => {}
            }
            for bad in [
                ClientTls { trust: trust.clone(), name: Some("other.test".to_owned()) },
                ClientTls { name: Some("pipe.test".to_owned()), ..ClientTls::default() },
                ClientTls { trust, name: None },
            ] {
                let refused = open(&bad).await;
                assert!(matches!(refused, Err(PipeError::Tls { .. })), "{refused:?}");
            }
            // Who speaks no TLS is no client, and harms nobody.
            let plain = Pipe::tcp().connect(server.local()).await.unwrap();
            plain.send("GET / HTTP/1.0\r\n\r\n").await.unwrap();
            while let Ok(Some(_)) = plain.recv(LIMIT).await {}
            assert!(open(&good).await.is_ok());
            let udp = Pipe::udp().bind(loopback(Family::Ip4)).listen_tls(identity).await;
            assert!(matches!(udp, Err(PipeError::Tls { .. })));
        });
    });
}

#[test]
fn c11_a_pipe_is_a_stream_of_bytes() {
    isolate(|| {
        now(async {
            let server = Pipe::tcp().bind(loopback(Family::Ip6)).listen().await.unwrap();
            let mut client = Pipe::tcp().connect(server.local()).await.unwrap();
            let mut accepted = server.accept().await.unwrap();
            let sent = noise(MUCH);
            let echoing = tokio::spawn(async move {
                let mut all = Vec::new();
                accepted.read_to_end(&mut all).await.unwrap();
                accepted.write_all(&all).await.unwrap();
                accepted.shutdown().await.unwrap();
                accepted
            });
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert!(got == sent);
            assert_eq!(client.stats().sent_bytes, MUCH as u64);
            drop(echoing.await.unwrap());
            let mut udp = Pipe::udp().connect(server.local()).await.unwrap();
            assert!(udp.write_all(b"x").await.is_err());
        });
    });
}

#[test]
fn c11_nothing_is_read_of_clients_before_they_are_accepted() {
    isolate(|| {
        now(async {
            let options = PipeOptions { max_clients: usize::MAX, ..PipeOptions::default() };
            let server = Pipe::tcp().bind(loopback(Family::Ip4)).options(options);
            let server = server.listen().await.unwrap();
            let client = Pipe::tcp().connect(server.local()).await.unwrap();
            client.send("early").await.unwrap();
            // It has been taken in when the next one has.
            let other = Pipe::tcp().connect(server.local()).await.unwrap();
            let accepted = server.accept().await.unwrap();
            assert_eq!(text(&accepted).await, "early");
            other.send("unheard").await.unwrap();
            client.send("heard").await.unwrap();
            assert_eq!(text(&accepted).await, "heard");
            assert_eq!(server.stats().received_messages, 2);
            assert_eq!(text(&server.accept().await.unwrap()).await, "unheard");
            assert_eq!(server.stats().received_messages, 3);
        });
    });
}

#[test]
fn c11_a_write_that_is_given_up_stops_nobody() {
    isolate(|| {
        now(async {
            let server = Pipe::tcp().bind(loopback(Family::Ip4)).listen().await.unwrap();
            let mut client = Pipe::tcp().connect(server.local()).await.unwrap();
            let accepted = server.accept().await.unwrap();
            // Nobody reads there: at some time there is no room.
            let much = noise(64 << 10);
            while tokio::time::timeout(Duration::from_millis(200), client.write_all(&much))
                .await
                .is_ok()
            {}
            let sending = async { client.send("the last").await.unwrap() };
            let reading = async {
                let mut got = Vec::new();
                while !got.ends_with(b"the last") {
                    got.extend_from_slice(&accepted.recv(LIMIT).await.unwrap().unwrap().bytes);
                }
            };
            tokio::join!(sending, reading);
            client.finish().await.unwrap();
            assert_eq!(accepted.recv(LIMIT).await.unwrap(), None);
        });
    });
}

#[test]
fn c11_bytes_and_messages_take_turns() {
    isolate(|| {
        now(async {
            let server = Pipe::tcp().bind(loopback(Family::Ip4)).listen().await.unwrap();
            let client = Pipe::tcp().connect(server.local()).await.unwrap();
            let mut accepted = server.accept().await.unwrap();
            let to = client.local();
            let (bytes, message) = (noise(MUCH / 4), noise(256 << 10));
            let writing = async {
                accepted.write_all(&bytes).await.unwrap();
                accepted.flush().await.unwrap();
            };
            let sending = async {
                for _ in 0..8 {
                    server.send_to(&message, to).await.unwrap();
                }
            };
            let reading = async {
                let mut left = bytes.len() + 8 * message.len();
                while left > 0 {
                    left -= client.recv(LIMIT).await.unwrap().unwrap().bytes.len();
                }
            };
            tokio::join!(writing, sending, reading);
        });
    });
}

#[test]
fn c11_an_end_that_is_not_there_is_named() {
    isolate(|| {
        now(async {
            let nobody: SocketAddr = "127.0.0.1:9".parse().unwrap();
            let error = Pipe::tcp().connect(nobody).await.unwrap_err();
            assert!(error.to_string().starts_with("cannot connect to 127.0.0.1:9: "), "{error}");
            let far: SocketAddr = "192.0.2.1:9".parse().unwrap();
            let error = Pipe::tcp().connect(far).await.unwrap_err();
            assert!(matches!(error, PipeError::Connect { .. }), "{error}");
            let taken = server(Proto::Tcp, Family::Ip4).await;
            let bind = loopback(Family::Ip4).port(taken.local().port());
            let error = Pipe::tcp().bind(bind).listen().await.unwrap_err();
            assert!(matches!(error, PipeError::Bind(_)), "{error}");
            let scoped = Target::from(("[fe80::1%eth1]", 80));
            assert_eq!(scoped.family(), Some(Family::Ip6));
            assert_eq!(Target::from(("example.com", 80)).family(), None);
            let local = Pipe::tcp().connect(("fe80::1", 9)).await.unwrap_err();
            assert!(local.to_string().contains("fe80::1 is link-local"), "{local}");
        });
    });
}
