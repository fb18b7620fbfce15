//! The edges on real sockets: UDP, TCP and TLS, our client against our server.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a failed test")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use netyard_nic::nat::NatType;
use netyard_nic::stun::listen::Listening;
use netyard_nic::stun::{
    Builder, Carrier, Class, Failure, Kept, Message, Server, Source, StunClient, StunError,
    StunProber, TransactionId, stream, udp,
};
use netyard_nic::{Agreement, Confidence, Probe, ProbeError, Prober as _, Verdict, tls};
use netyard_testbed::{isolate, peer, run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Far above what anything here takes.
const LIMIT: Duration = Duration::from_secs(60);
const TLS_PORT: u16 = 5349;

/// Runs a test with a server on 127.0.0.1 and 127.0.0.2, with TLS if it is given.
fn with_server<F: Future<Output = ()>>(
    tls: Option<(PathBuf, PathBuf)>,
    test: impl FnOnce(SocketAddr) -> F,
) {
    now(async {
        let (one, two) = ("127.0.0.1:3478", "127.0.0.2:3479");
        let server = Server::full(one.parse().unwrap(), two.parse().unwrap()).unwrap();
        let mut listening = Listening::bind(server, one.parse().unwrap()).await.unwrap();
        assert_eq!(listening.endpoints().len(), 4);
        let tls = tls.map(|(certificate, key)| tls::identity(&certificate, &key).unwrap());
        if tls.is_some() {
            listening.bind_tls(TLS_PORT).await.unwrap();
        }
        tokio::select! {
            result = listening.serve(tls) => panic!("the server ended: {result:?}"),
            () = test(one.parse().unwrap()) => {}
        }
    });
}

/// Runs a test to its end.
fn now(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, work).await.unwrap() });
}

fn loopback() -> Source {
    Source { address: [127, 0, 0, 1].into(), card: None }
}

/// A certificate for `name` that signs itself, and its key.
fn certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    run(Command::new(peer("openssl"))
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", &format!("/CN={name}")])
        .args(["-addext", &format!("subjectAltName=DNS:{name}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key));
    (certificate, key)
}

#[test]
fn c9_udp_and_tcp_tell_the_address() {
    isolate(|| {
        with_server(None, async |server| {
            let (local, answer) = udp::ask(&loopback(), server).await.unwrap();
            assert_eq!((answer.mapped, answer.from), (local, server));
            assert_eq!(answer.other, Some("127.0.0.2:3479".parse().unwrap()));
            let (local, answer) = stream::ask_tcp(&loopback(), server).await.unwrap();
            assert_eq!(answer.mapped, local);
        });
    });
}

#[test]
fn c9_tls_tells_the_address_to_those_who_trust_the_server() {
    isolate(|| {
        let folder = Path::new("/tmp/certificate");
        std::fs::create_dir(folder).unwrap();
        let files = certificate(folder, "stun.test");
        let trust = tls::trust_in(&files.0).unwrap();
        with_server(Some(files), async |server| {
            let server = SocketAddr::new(server.ip(), TLS_PORT);
            let source = loopback();
            let (local, answer) =
                stream::ask_tls(&source, server, "stun.test", trust.clone()).await.unwrap();
            assert_eq!(answer.mapped, local);
            // Another name, and authorities that do not know it.
            let untrusted = Failure::Socket(io::ErrorKind::InvalidData);
            let wrong_name = stream::ask_tls(&source, server, "other.test", trust).await;
            assert_eq!(wrong_name.unwrap_err(), untrusted);
            let unknown = stream::ask_tls(&source, server, "stun.test", tls::system_trust()).await;
            assert_eq!(unknown.unwrap_err(), untrusted);
        });
    });
}

#[test]
fn c9_a_request_may_come_byte_by_byte_and_nonsense_ends_the_connection() {
    isolate(|| {
        with_server(None, async |server| {
            let id = TransactionId::modern([5; 12]);
            let mut stream = TcpStream::connect(server).await.unwrap();
            stream.set_nodelay(true).unwrap();
            for byte in Builder::request(id).finish_with_fingerprint() {
                stream.write_all(&[byte]).await.unwrap();
            }
            let mut answer = vec![0; 1024];
            let length = stream.read(&mut answer).await.unwrap();
            let answer = Message::parse(&answer[..length]).unwrap();
            assert_eq!((answer.class(), answer.id()), (Class::Success, id));
            assert_eq!(answer.mapped(), Some(stream.local_addr().unwrap()));

            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let end = stream.read(&mut [0; 16]).await;
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        });
    });
}

#[test]
fn c9_servers_that_are_asked_by_name_agree_or_are_told_from_each_other() {
    isolate(|| {
        with_server(None, async |_| {
            let servers = ["127.0.0.1", "127.0.0.2:3479", "no.such.name.test"];
            let prober = StunProber { servers: servers.map(str::to_owned).into() };
            let probe = Probe { card: None, from: [127, 0, 0, 1].into() };
            let agreement = prober.probe(probe.clone(), Agreement::new(2)).await;
            let seen = Verdict::Seen([127, 0, 0, 1].into(), Confidence::Proven);
            assert_eq!(agreement.verdict(), seen);
            let unknown = agreement.answers().iter().find(|answer| answer.server == servers[2]);
            assert!(matches!(unknown.unwrap().seen, Err(ProbeError::Name(_))));

            // By the loopback card, whose number is 1; there is none with another.
            let by_card = Probe { card: Some(1), ..probe.clone() };
            assert_eq!(prober.probe(by_card, Agreement::new(2)).await.verdict(), seen);
            let by_none = Probe { card: Some(4000), ..probe.clone() };
            let agreement = prober.probe(by_none, Agreement::new(2)).await;
            assert!(matches!(agreement.answers()[1].seen, Err(ProbeError::CannotSend(_))));

            // From an address that is not this machine's.
            let foreign = Probe { from: [192, 0, 2, 1].into(), ..probe };
            let prober = StunProber { servers: vec!["127.0.0.1".to_owned()] };
            let agreement = prober.probe(foreign, Agreement::new(2)).await;
            assert_eq!(agreement.verdict(), Verdict::CannotSend);
        });
    });
}

#[test]
fn c9_no_way_to_a_server_is_told_at_once() {
    isolate(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = "192.0.2.1:3478".parse().unwrap();
            let failure = udp::ask(&loopback(), server).await.unwrap_err();
            assert!(matches!(failure, Failure::Socket(_)), "{failure}");
            let failure = Source::towards(server, None).await.unwrap_err();
            assert_eq!(failure.kind(), io::ErrorKind::NetworkUnreachable);
        });
    });
}

#[test]
fn c9_a_server_on_every_address_answers_from_the_one_that_was_asked() {
    isolate(|| {
        run(Command::new(peer("ip")).args([
            "address",
            "add",
            "2001:db8::5/128",
            "dev",
            "lo",
            "nodad",
        ]));
        now(async {
            for (every, asked, from) in
                [("0.0.0.0", "127.0.0.9", "127.0.0.1"), ("::", "2001:db8::5", "::1")]
            {
                let every = SocketAddr::new(every.parse().unwrap(), 3478);
                let listening = Listening::bind(Server::single(), every).await.unwrap();
                let source = Source { address: from.parse().unwrap(), card: None };
                let asked = SocketAddr::new(asked.parse().unwrap(), 3478);
                tokio::select! {
                    result = listening.serve(None) => panic!("the server ended: {result:?}"),
                    answered = udp::ask(&source, asked) => {
                        let (local, answer) = answered.unwrap();
                        assert_eq!((answer.from, answer.mapped), (asked, local));
                    }
                }
            }
        });
    });
}

#[test]
fn c9_one_client_asks_one_server_over_each_carrier_and_keeps_its_socket() {
    isolate(|| {
        let folder = Path::new("/tmp/certificate");
        std::fs::create_dir(folder).unwrap();
        let files = certificate(folder, "localhost");
        let trust = tls::trust_in(&files.0).unwrap();
        with_server(Some(files), async |server| {
            let loopback = IpAddr::from([127, 0, 0, 1]);
            let client = |name: &str| StunClient::new(name).from_address(loopback);
            for (client, port) in [
                (client("localhost"), 3478),
                (client("localhost").classic(), 3478),
                (client("127.0.0.2:3479"), 3479),
                (client("localhost").over(Carrier::Tcp), 3478),
                (client("stuns:localhost").trusting(trust), TLS_PORT),
            ] {
                assert_eq!(client.wan_ip().await.unwrap(), loopback);
                let mapping = client.mapping().await.unwrap();
                assert_eq!(mapping.server.port(), port, "{client:?}");
                assert_eq!(mapping.answer.mapped, mapping.local, "{client:?}");
                let kept = match mapping.socket {
                    Kept::Udp(socket) => socket.local_addr(),
                    Kept::Tcp(socket) => socket.local_addr(),
                    Kept::Tls(socket) => socket.get_ref().0.local_addr(),
                };
                assert_eq!(kept.unwrap(), mapping.local, "the socket is open");
            }
            let client = client("127.0.0.1");
            let answer = client.change_port().await.unwrap();
            assert_eq!(answer.from, SocketAddr::new(server.ip(), 3479));
            let answer = client.change_ip_port().await.unwrap();
            assert_eq!(answer.from, "127.0.0.2:3479".parse().unwrap());
            assert_eq!(client.nat().await.unwrap().kind, Some(NatType::OpenInternet));
            for wrong in [
                StunClient::new("stuns:localhost").over(Carrier::Udp),
                client.clone().over(Carrier::Tcp).classic(),
            ] {
                assert!(matches!(wrong.mapping().await, Err(StunError::Misuse(_))), "{wrong:?}");
            }
            let over_tcp = client.over(Carrier::Tcp).change_port().await;
            assert!(matches!(over_tcp, Err(StunError::Misuse(_))));
        });
    });
}

#[test]
fn c9_a_taken_port_is_named() {
    isolate(|| {
        with_server(None, async |server| {
            let error = Listening::bind(Server::single(), server).await.unwrap_err();
            assert!(error.to_string().contains("cannot listen on 127.0.0.1:3478"), "{error}");
        });
    });
}
