//! C13: the REST service: who may ask, what is answered, split requests, limits, pipes, tunnels, events.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod stage;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use netyard_nic::lab::{Card, Impairment, Kind, Lab, SERVERS};
use netyard_nic::pipe::Pipe;
use netyard_nic::rest::{self, RestOptions};
use netyard_nic::{Bind, Daemon, Family, Handler, Interface, PublicPolicy, pipe};
use netyard_testbed::{Outside, isolate, peer, run};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use self::stage::{LIMIT, now, within};

const TOKEN: &str = "a-token";

/// Runs a test against a service.
fn served<F: Future<Output = ()>>(options: RestOptions, test: impl FnOnce(SocketAddr) -> F) {
    now(with_service(options, test));
}

async fn with_service<F: Future<Output = ()>>(
    options: RestOptions,
    test: impl FnOnce(SocketAddr) -> F,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::select! {
        ended = rest::serve(vec![listener], options) => panic!("the service ended: {ended:?}"),
        () = test(at) => {}
    }
}

fn options() -> RestOptions {
    RestOptions::new(Some(TOKEN.to_owned()))
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A request as it goes over the wire.
fn request(at: SocketAddr, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{line} HTTP/1.1\r\n");
    let mut all = BTreeMap::from([
        ("host", at.to_string()),
        ("authorization", format!("Bearer {TOKEN}")),
        ("content-length", body.len().to_string()),
        ("connection", "close".to_owned()),
    ]);
    all.extend(headers.iter().map(|(name, value)| (*name, (*value).to_owned())));
    for (name, value) in all.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    [text.as_bytes(), b"\r\n", body].concat()
}

/// Reads an answer's head; what came behind it is kept.
async fn head(stream: &mut TcpStream) -> (Answer, Vec<u8>) {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") {
            break end;
        }
        let length = stream.read_buf(&mut bytes).await.unwrap();
        assert!(length > 0, "no answer: {:?}", String::from_utf8_lossy(&bytes));
    };
    let text = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = text.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    (Answer { status, headers, body: Vec::new() }, bytes[end + 4..].to_vec())
}

async fn answered(stream: &mut TcpStream) -> Answer {
    let (mut answer, mut body) = head(stream).await;
    stream.read_to_end(&mut body).await.unwrap();
    answer.body = body;
    answer
}

async fn asked(at: SocketAddr, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(&request(at, line, headers, body)).await.unwrap();
    answered(&mut stream).await
}

async fn get(at: SocketAddr, path: &str) -> Answer {
    asked(at, &format!("GET {path}"), &[], b"").await
}

async fn post(at: SocketAddr, path: &str, body: &Value) -> Answer {
    let json = [("content-type", "application/json")];
    asked(at, &format!("POST {path}"), &json, body.to_string().as_bytes()).await
}

#[test]
fn c13_cards_and_routes_are_told() {
    isolate(|| {
        let _outside = Outside::new();
        served(options(), async |at| {
            let all = get(at, "/v1/interfaces").await;
            assert_eq!((all.status, &*all.headers["content-type"]), (200, "application/json"));
            let all = all.json();
            let names: Vec<_> = all.as_array().unwrap().iter().map(|it| &it["name"]).collect();
            assert_eq!(names, ["lo", "uplink"]);
            assert_eq!(all[1]["standing"]["2"], "default");
            for name in ["uplink", "default"] {
                let one = get(at, &format!("/v1/interfaces/{name}")).await.json();
                assert_eq!((&one["schema"], &one["name"]), (&json!("nic/1"), &json!("uplink")));
                assert_eq!(Interface::from_json(&one).unwrap().to_json(), one);
            }
            let routes = get(at, "/v1/interfaces/uplink/routes").await.json();
            assert_eq!(routes["rp"]["2"][0]["nic_ips"][0]["ip"], "198.51.100.1");
            assert_eq!(routes["addresses"]["2"], "0", "nobody was asked");
            let unasked = get(at, "/v1/interfaces/uplink?ask=true").await;
            assert_eq!(unasked.status, 409, "{unasked:?}");
            assert_eq!(get(at, "/v1/interfaces/eth9").await.status, 404);
        });
    });
}

#[test]
fn c13_external_addresses_nats_and_mappings_are_found_out_on_request() {
    isolate(|| {
        let lab = Lab::up([Kind::Port, Kind::Symmetric], Impairment::default()).unwrap();
        let options = RestOptions {
            servers: vec![SERVERS[0].to_string()],
            policy: PublicPolicy::treat_as_public(vec!["203.0.113.0/24".parse().unwrap()]),
            ..options()
        };
        within(
            lab.machine(),
            with_service(options, async |at| {
                for (number, kind) in [(0, 5), (1, 6)] {
                    let card = Card::number(number);
                    let routes = format!("/v1/interfaces/{}/routes?ask=true", card.name);
                    let routes = get(at, &routes).await.json();
                    assert_eq!(routes["rp"]["2"][0]["ext_ips"][0]["ip"], json!(card.external));
                    let nat = format!("/v1/interfaces/{}/nat", card.name);
                    let quiet = asked(at, &format!("POST {nat}"), &[], b"").await.json();
                    assert_eq!(quiet["type"], kind, "{quiet}");
                    assert!(quiet["portmap"].is_null(), "the gateway was not to be asked: {quiet}");
                    let body = br#"{"gateway": true}"#;
                    let nat = asked(at, &format!("POST {nat}"), &[], body).await.json();
                    assert_eq!(nat["layers"], 1, "{nat}");
                    for proto in ["udp", "tcp"] {
                        let path = format!("/v1/mapping?card={}&proto={proto}", card.name);
                        let mapping = get(at, &path).await.json();
                        assert_eq!(mapping["laddr"][0], json!(card.addresses[0]), "{mapping}");
                        assert_eq!(mapping["raddr"], json!([SERVERS[0], 3478]));
                        assert_eq!(mapping["mapped"][0], json!(card.external));
                        assert_eq!(mapping["if"]["name"], json!(card.name));
                        let route = &mapping["route"];
                        assert_eq!(route["nic_ips"][0]["ip"], json!(card.addresses[0]));
                        assert_eq!(route["ext_ips"][0]["ip"], json!(card.external));
                    }
                }
            }),
        );
    });
}

#[test]
fn c13_requests_come_in_pieces_and_wrong_ones_have_their_status() {
    isolate(|| {
        served(options(), async |at| {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let body = json!({ "proto": "udp", "listen": 0 }).to_string();
            let json = [("content-type", "application/json")];
            for byte in request(at, "POST /v1/pipes", &json, body.as_bytes()) {
                stream.write_all(&[byte]).await.unwrap();
            }
            let opened = answered(&mut stream).await;
            assert_eq!((opened.status, &opened.json()["proto"]), (201, &json!("udp")));
            // In chunks, each with its length before it.
            let chunked = [("transfer-encoding", "chunked"), ("content-length", ""), json[0]];
            let (one, two) = body.split_at(5);
            let chunks =
                format!("{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n", one.len(), two.len());
            let opened = asked(at, "POST /v1/pipes", &chunked, chunks.as_bytes()).await;
            assert_eq!(opened.status, 201, "{opened:?}");

            let large = vec![b'x'; (1 << 20) + 1];
            for (line, headers, body, status) in [
                ("GET /v1/nothing", &[][..], &b""[..], 404),
                ("GET /", &[], b"", 404),
                ("DELETE /v1/interfaces", &[], b"", 405),
                ("GET /v1/pipes/99", &[], b"", 404),
                ("GET /v1/pipes/x", &[], b"", 400),
                ("GET /v1/pipes/1/messages?wait=1", &[], b"", 400),
                ("POST /v1/pipes", &json, b"{", 400),
                ("POST /v1/pipes", &json, b"{\"proto\":\"sctp\"}", 400),
                ("POST /v1/pipes", &json, b"{}", 400),
                ("POST /v1/pipes", &json, b"{\"to\":\"nowhere\"}", 400),
                ("POST /v1/pipes", &json, b"{\"to\":\"127.0.0.1:9\"}", 502),
                ("POST /v1/pipes", &json, b"{\"listen\":0,\"card\":\"eth9\"}", 404),
                ("POST /v1/pipes/1/messages", &[], &large, 413),
            ] {
                let answer = asked(at, line, headers, body).await;
                assert_eq!(answer.status, status, "{line}: {answer:?}");
                if status != 405 || !answer.body.is_empty() {
                    let error = answer.json();
                    assert!(error["wanted"].is_string() && error["found"].is_string(), "{error}");
                }
            }
        });
    });
}

#[test]
fn c13_strangers_and_pages_of_others_are_refused() {
    isolate(|| {
        served(options(), async |at| {
            let own = format!("http://{at}");
            let localhost = format!("localhost:{}", at.port());
            for (headers, status) in [
                (&[][..], 200),
                (&[("authorization", "")], 401),
                (&[("authorization", "Bearer another")], 401),
                (&[("authorization", "Basic YTpi")], 401),
                (&[("authorization", "bearer a-token")], 200),
                (&[("host", "evil.test")], 403),
                (&[("host", "")], 400),
                (&[("host", &localhost)], 200),
                (&[("origin", &own)], 200),
                (&[("origin", "http://evil.test")], 403),
                (&[("origin", "null")], 403),
                (&[("sec-fetch-site", "none")], 200),
                (&[("sec-fetch-site", "same-origin")], 200),
                (&[("sec-fetch-site", "same-site")], 403),
                (&[("sec-fetch-site", "cross-site")], 403),
            ] {
                let mut stream = TcpStream::connect(at).await.unwrap();
                let bytes = request(at, "GET /v1/interfaces", headers, b"");
                stream.write_all(&bytes).await.unwrap();
                let answer = answered(&mut stream).await;
                // Without a host it is no HTTP/1.1, and refused in any case.
                let expected = if headers == [("host", "")] { 400..=403 } else { status..=status };
                assert!(expected.contains(&answer.status), "{headers:?}: {answer:?}");
                assert!(!answer.headers.contains_key("access-control-allow-origin"));
            }
        });
        served(RestOptions::new(None), async |at| {
            const OURS: (&str, &str) = ("x-netyard", "1");
            for (headers, status) in [
                (&[OURS][..], 200),
                // As what a page embeds is asked for, by browsers that tell from where and by others.
                (&[("sec-fetch-site", "cross-site")], 403),
                (&[], 403),
                (&[OURS, ("sec-fetch-site", "cross-site")], 403),
                (&[OURS, ("origin", "http://evil.test")], 403),
            ] {
                let headers = [&[("authorization", "")], headers].concat();
                let answer = asked(at, "GET /v1/interfaces", &headers, b"").await;
                assert_eq!(answer.status, status, "{headers:?}: {answer:?}");
                assert!(!answer.headers.contains_key("access-control-allow-origin"));
            }
            // A browser asks first whether it may send that header: it may not.
            let first = [("authorization", ""), ("access-control-request-headers", "x-netyard")];
            let answer = asked(at, "OPTIONS /v1/interfaces", &first, b"").await;
            assert!(answer.status >= 400, "{answer:?}");
        });
    });
}

/// Sends back what it gets.
struct Echo;

impl Handler for Echo {
    async fn msg(&self, message: pipe::Message, pipe: &Pipe) {
        // A client that goes away is the client's matter.
        _ = pipe.send_to(message.bytes, message.from).await;
    }
}

/// An echo over this protocol, on loopback.
async fn echo(proto: pipe::Proto) -> (Daemon<Echo>, SocketAddr) {
    let daemon = Daemon::new(Echo);
    let bind = Bind::every(Family::Ip4).loopback();
    let at = daemon.add_listener(proto, bind).await.unwrap().address;
    (daemon, at)
}

#[test]
fn c13_pipes_carry_messages() {
    isolate(|| {
        served(options(), async |at| {
            for proto in [pipe::Proto::Tcp, pipe::Proto::Udp] {
                let (_daemon, to) = echo(proto).await;
                let opened = post(at, "/v1/pipes", &json!({ "proto": proto, "to": to })).await;
                assert_eq!(opened.status, 201, "{opened:?}");
                let opened = opened.json();
                assert_eq!((&opened["peer"], &opened["card"]), (&json!(to), &Value::Null));
                let path = format!("/v1/pipes/{}", opened["id"]);
                let messages = format!("{path}/messages");
                assert_eq!(get(at, &messages).await.status, 204, "nothing has come");
                let said = b"\x00\xff what \r\n\r\n ever";
                let sent = asked(at, &format!("POST {messages}"), &[], said).await;
                assert_eq!(sent.status, 204, "{sent:?}");
                let answer = get(at, &format!("{messages}?wait_ms=30000")).await;
                assert_eq!((answer.status, &answer.body[..]), (200, &said[..]));
                assert_eq!(answer.headers["x-from"], to.to_string());
                let shown = get(at, &path).await.json();
                assert_eq!(shown["stats"]["sent_bytes"], said.len());
                let closed = asked(at, &format!("DELETE {path}"), &[], b"").await.json();
                assert_eq!(closed["stats"]["received_bytes"], said.len());
                assert_eq!(get(at, &path).await.status, 404);
            }
            // A server, which answers whom it names.
            let opened = post(at, "/v1/pipes", &json!({ "listen": 0 })).await.json();
            let to: SocketAddr = opened["local"].as_str().unwrap().parse().unwrap();
            let messages = format!("/v1/pipes/{}/messages", opened["id"]);
            let client = Pipe::tcp().connect(to).await.unwrap();
            client.send("hello").await.unwrap();
            let heard = get(at, &format!("{messages}?wait_ms=30000")).await;
            assert_eq!(heard.body, b"hello");
            assert_eq!(heard.headers["x-from"], client.local().to_string());
            let line = format!("POST {messages}?to={}", client.local());
            assert_eq!(asked(at, &line, &[], b"welcome").await.status, 204);
            assert_eq!(client.recv(LIMIT).await.unwrap().unwrap().bytes, "welcome");
            let nobody = format!("POST {messages}?to=127.0.0.1:9");
            assert_eq!(asked(at, &nobody, &[], b"x").await.status, 409);
            assert_eq!(get(at, "/v1/pipes").await.json().as_array().unwrap().len(), 1);
        });
    });
}

#[test]
fn c13_a_connection_becomes_the_pipes() {
    isolate(|| {
        served(options(), async |at| {
            let (_daemon, to) = echo(pipe::Proto::Tcp).await;
            let opened = post(at, "/v1/pipes", &json!({ "to": to })).await.json();
            let path = format!("/v1/pipes/{}/tunnel", opened["id"]);
            assert_eq!(get(at, &path).await.status, 400, "it has to be asked for");
            let mut stream = TcpStream::connect(at).await.unwrap();
            let upgrade = [("connection", "upgrade"), ("upgrade", "netyard-pipe")];
            let asking = request(at, &format!("GET {path}"), &upgrade, b"");
            stream.write_all(&asking).await.unwrap();
            let (answer, rest) = head(&mut stream).await;
            assert_eq!((answer.status, &*answer.headers["upgrade"]), (101, "netyard-pipe"));
            assert!(rest.is_empty());
            let sent: Vec<u8> = (0..2_000_000_u32).map(|number| (number % 251) as u8).collect();
            let (mut reader, mut writer) = stream.split();
            let mut got = Vec::new();
            let (wrote, read) = tokio::join!(
                async {
                    writer.write_all(&sent).await.unwrap();
                    writer.shutdown().await
                },
                reader.read_to_end(&mut got),
            );
            wrote.unwrap();
            read.unwrap();
            assert!(got == sent);
            assert!(get(at, "/v1/pipes").await.json().as_array().unwrap().is_empty());
            let udp = post(at, "/v1/pipes", &json!({ "proto": "udp", "to": to })).await.json();
            let line = format!("GET /v1/pipes/{}/tunnel", udp["id"]);
            assert_eq!(asked(at, &line, &upgrade, b"").await.status, 400);
        });
    });
}

#[test]
fn c13_a_pipe_closes_under_those_who_wait() {
    isolate(|| {
        served(options(), async |at| {
            // Somebody who neither says nor reads anything.
            let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let to = silent.local_addr().unwrap();
            let opened = post(at, "/v1/pipes", &json!({ "to": to })).await.json();
            let (mut held, _) = silent.accept().await.unwrap();
            let path = format!("/v1/pipes/{}", opened["id"]);
            let messages = format!("{path}/messages");
            let waiting = format!("{messages}?wait_ms=60000");
            let sending = async {
                let much = vec![b'x'; 1 << 20];
                loop {
                    let sent = asked(at, &format!("POST {messages}"), &[], &much).await;
                    if sent.status != 204 {
                        return sent.status;
                    }
                }
            };
            let closing = async {
                // Something has been sent; whoever waits does so for longer than the test may take.
                let mut first = [0];
                held.read_exact(&mut first).await.unwrap();
                asked(at, &format!("DELETE {path}"), &[], b"").await.status
            };
            let (got, sent, closed) = tokio::join!(get(at, &waiting), sending, closing);
            assert!(matches!((got.status, closed), (410 | 404, 200)), "{got:?} {closed}");
            assert!(matches!(sent, 410 | 404), "{sent}");
        });
    });
}

#[test]
fn c13_pipes_that_became_connections_have_places_too() {
    isolate(|| {
        served(options(), async |at| {
            let (_daemon, to) = echo(pipe::Proto::Tcp).await;
            let mut tunnels = Vec::new();
            for _ in 0..256 {
                let opened = post(at, "/v1/pipes", &json!({ "to": to })).await.json();
                let mut stream = TcpStream::connect(at).await.unwrap();
                let upgrade = [("connection", "upgrade"), ("upgrade", "netyard-pipe")];
                let line = format!("GET /v1/pipes/{}/tunnel", opened["id"]);
                stream.write_all(&request(at, &line, &upgrade, b"")).await.unwrap();
                assert_eq!(head(&mut stream).await.0.status, 101);
                tunnels.push(stream);
            }
            assert_eq!(post(at, "/v1/pipes", &json!({ "to": to })).await.status, 409);
            drop(tunnels.pop());
            while post(at, "/v1/pipes", &json!({ "to": to })).await.status != 201 {
                tokio::task::yield_now().await;
            }
        });
    });
}

#[test]
fn c13_changes_are_told_as_they_come() {
    isolate(|| {
        let _outside = Outside::new();
        served(options(), async |at| {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(&request(at, "GET /v1/events", &[], b"")).await.unwrap();
            let (answer, mut said) = head(&mut stream).await;
            assert_eq!(
                (answer.status, &*answer.headers["content-type"]),
                (200, "text/event-stream")
            );
            // The card is looked at from now on at the latest.
            run(Command::new(peer("ip")).args([
                "address",
                "add",
                "198.51.100.77/24",
                "dev",
                "uplink",
            ]));
            let line = loop {
                let text = String::from_utf8_lossy(&said);
                let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
                let found = lines.find(|line| line.contains("198.51.100.77"));
                if let Some(line) = found.and_then(|line| line.strip_prefix("data: ")) {
                    break line.to_owned();
                }
                assert!(stream.read_buf(&mut said).await.unwrap() > 0, "the events ended");
            };
            let change: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(change["events"][0]["card"], "uplink", "{change}");
        });
    });
}

#[test]
fn c13_whoever_says_nothing_is_not_waited_for() {
    isolate(|| {
        served(options(), async |at| {
            let mut silent = TcpStream::connect(at).await.unwrap();
            silent.write_all(b"GET /v1/interfaces HTTP/1.1\r\nhost: ").await.unwrap();
            let mut slow = TcpStream::connect(at).await.unwrap();
            let all = request(at, "POST /v1/pipes/1/messages", &[("content-length", "10")], b"x");
            slow.write_all(&all).await.unwrap();
            // Others are answered meanwhile.
            assert_eq!(get(at, "/v1/interfaces").await.status, 200);
            let mut rest = Vec::new();
            let closed = silent.read_to_end(&mut rest).await;
            assert!(closed.is_err() || rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"));
            assert_eq!(answered(&mut slow).await.status, 408);
            let soon = Duration::from_secs(1);
            assert!(tokio::time::timeout(soon * 30, get(at, "/v1/pipes")).await.is_ok());
        });
    });
}
