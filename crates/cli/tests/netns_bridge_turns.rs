//! Turns that the kernel keeps are exact: from everywhere, under load, when instances come, go and
//! die, when somebody flushes all rules, and with `br_netfilter` on and off.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use netyard_testbed::{Background, Outside, SetAtEnd, User, isolate, output, peer, run, wait_for};

use crate::stage::{
    SOON, Stage, has_turns, have_had, lan_and_other, serve_outside, signal, text, who,
    with_and_without_br_netfilter,
};

/// A service that is published on every address, somebody beside it, and somebody on another
/// network.
fn yard(count: usize) -> String {
    lan_and_other("bridge")
        + &format!(
            r#"
[instances.web]
run = ["netyard-whoami", "-a", "::", "-p", "8080"]
count = {count}
restart = "no"
network = "lan"

[instances.client]
run = ["sleep", "1000"]
network = "lan"

[instances.stranger]
run = ["netyard-whoami", "-a", "::", "-p", "8080"]
network = "other"

[services.web]
instances = "web"
port = 8080
publish = "0.0.0.0:8080"
check = {{ tcp = true, every = "100ms", timeout = "20s" }}
"#
        )
}

/// The service's virtual addresses, and its published one where the kernel translates it and where
/// the network's process relays.
fn fronts() -> [SocketAddr; 4] {
    let v6: IpAddr = "fd00:77::fd".parse().unwrap();
    let v4: IpAddr = [192, 168, 77, 253].into();
    [v4, v6, Outside::HOST4.into(), Ipv4Addr::LOCALHOST.into()].map(|ip| SocketAddr::new(ip, 8080))
}

fn up(count: usize) -> Stage {
    let stage = Stage::up(User::Root, "turns", &yard(count));
    let addresses = stage.json(&["service", "ls"])[0]["addresses"].to_string();
    assert!(fronts()[..2].iter().all(|front| addresses.contains(&front.ip().to_string())));
    stage
}

/// `curl` that opens a connection for each of so many requests.
fn requests(front: SocketAddr, count: usize) -> Vec<String> {
    let words = ["curl", "-sS", "-g", "-H", "Connection: close", "-w", "\\n"];
    let urls = (0..count).map(|number| format!("http://{front}/?{number}"));
    words.into_iter().map(str::to_owned).chain(urls).collect()
}

/// How often each daemon has answered, by what clients have printed.
fn answers<'a>(outputs: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, u32> {
    let mut answers = BTreeMap::new();
    for line in outputs.into_iter().flat_map(str::lines).filter(|line| !line.is_empty()) {
        let id = line.strip_prefix("My id is ").unwrap_or_else(|| panic!("{line}"));
        *answers.entry(id.to_owned()).or_default() += 1;
    }
    answers
}

#[test]
fn turns_follow_each_other_with_two_to_seven_instances() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(2);
        for count in 2..=7 {
            stage.write(&yard(count));
            stage.say(&["up", "-d", "--wait"]);
            has_turns(&stage, &format!("web-{count}"), true);
            let mut fronts = fronts().into_iter().cycle();
            let answers: Vec<String> =
                (0..10 * count).map(|_| who(fronts.next().unwrap()).unwrap()).collect();
            let (first, rest) = answers.split_at(count);
            assert_eq!(first.iter().collect::<std::collections::BTreeSet<_>>().len(), count);
            assert!(rest.chunks(count).all(|turn| turn == first), "{answers:?}");
        }
    });
}

#[test]
fn parallel_connections_from_everywhere_are_shared_out_exactly() {
    isolate(|| {
        let outside = Outside::new();
        let stage = up(3);
        let [v4, v6, published, loopback] = fronts();
        let inside = |name: &str, front: SocketAddr| {
            let mut command = stage.netyard(&["exec", name, "--"]);
            command.args(requests(front, 150));
            command
        };
        let mut from_outside = outside.command(peer("env"));
        from_outside.args(requests(published, 150));
        let mut clients: Vec<Background> = [
            inside("client", v4),
            inside("client", v6),
            inside("client", published),
            // Whoever serves may get its own turn.
            inside("web-1", v4),
            inside("stranger", published),
            from_outside,
        ]
        .iter_mut()
        .map(Background::start)
        .collect();
        // From the host, 58 more.
        let local: Vec<_> = [v4, v6, published, loopback]
            .into_iter()
            .cycle()
            .take(58)
            .map(|front| {
                let ask = move || format!("My id is {}\n", who(front).unwrap());
                thread::spawn(move || (0..36).map(|_| ask()).collect::<String>())
            })
            .collect();
        let mut said: Vec<String> = local.into_iter().map(|it| it.join().unwrap()).collect();
        for client in &mut clients {
            assert!(client.wait(SOON).success(), "{}", client.output());
            said.push(client.output());
        }
        let answers = answers(said.iter().map(String::as_str));
        assert_eq!(answers.values().copied().collect::<Vec<_>>(), [996; 3], "58 * 36 + 6 * 150");
        have_had(&stage, 0, &[996; 3]);
    });
}

#[test]
fn no_request_fails_once_a_death_is_known_and_the_rest_is_exact() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(3);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let end = SetAtEnd(&stop);
            let clients: Vec<_> = fronts()
                .into_iter()
                .cycle()
                .take(8)
                .map(|front| {
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut results = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            results.push((Instant::now(), who(front)));
                        }
                        results
                    })
                })
                .collect();
            signal(stage.pid("web-2"), "KILL");
            has_turns(&stage, "web-2", false);
            let known = Instant::now();
            for _ in 0..100 {
                who(fronts()[0]).unwrap();
            }
            drop(end);
            let all = clients.into_iter().flat_map(|client| client.join().unwrap());
            let after: Vec<_> = all.filter(|(start, _)| *start >= known).collect();
            assert!(after.len() > 50, "only {} requests were made", after.len());
            let failed: Vec<_> = after.iter().filter(|(_, result)| result.is_err()).collect();
            assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), after.len());
        });
        let answers: Vec<_> = (0..40).map(|at| who(fronts()[at % 4]).unwrap()).collect();
        assert!(answers[0] != answers[1] && answers.chunks(2).all(|turn| turn == &answers[..2]));
    });
}

/// Requests on a connection that stays open.
struct Open(TcpStream);

impl Open {
    fn to(front: SocketAddr) -> Self {
        let stream = TcpStream::connect(front).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self(stream)
    }

    /// Which daemon answers.
    fn ask(&mut self) -> String {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: hello\r\n\r\n").unwrap();
        let mut answer = String::new();
        loop {
            let mut piece = [0; 1024];
            let len = self.0.read(&mut piece).unwrap();
            assert_ne!(len, 0, "closed after {answer:?}");
            answer.push_str(std::str::from_utf8(&piece[..len]).unwrap());
            if let Some((_, id)) = answer.split_once("My id is ") {
                return id.trim().to_owned();
            }
        }
    }
}

#[test]
fn open_connections_stay_with_their_instance_which_drains_when_it_is_stopped() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(2);
        // One to each instance, by way of the kernel and by way of a relay.
        let mut all = [fronts()[0], fronts()[3]].map(Open::to);
        let ids = all.each_mut().map(Open::ask);
        assert_ne!(ids[0], ids[1]);
        for _ in 0..5 {
            assert_eq!(all.each_mut().map(Open::ask), ids);
        }
        let web = ["web-1", "web-2"];
        let state = stage.json(&["network", "inspect", "turns.lan"])["state"].clone();
        assert!(state["tcp_flows"].as_u64().unwrap() >= 2, "{state}");
        let first = web.into_iter().position(|name| {
            let address = &stage.instance(name)["addresses"][0];
            let address: IpAddr = address.as_str().unwrap().parse().unwrap();
            who(SocketAddr::new(address, 8080)).unwrap() == ids[0]
        });
        let leaving = web[first.unwrap()];
        let mut stop = Background::start(&mut stage.netyard(&["stop", leaving]));
        // Who leaves waits for its connections for ten seconds: there is no time for commands.
        wait_for("new ones to avoid it", SOON, || {
            let all = || fronts().into_iter().all(|front| who(front).unwrap() == ids[1]);
            (all() && all()).then_some(())
        });
        assert_eq!(all.each_mut().map(Open::ask), ids, "and it still answers whom it has");
        assert_eq!(stage.instance(leaving)["state"], "healthy");
        drop(all);
        assert!(stop.wait(SOON).success(), "{}", stop.output());
        assert_eq!(stage.instance(leaving)["state"], "stopped");
    });
}

#[test]
fn flushes_under_load_lose_no_connection() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(2);
        let mut open = Open::to(fronts()[2]);
        let id = open.ask();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let end = SetAtEnd(&stop);
            let clients: Vec<_> = fronts()
                .into_iter()
                .map(|front| {
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut count = 0;
                        while !stop.load(Ordering::Relaxed) {
                            who(front).unwrap();
                            count += 1;
                        }
                        count
                    })
                })
                .collect();
            for _ in 0..30 {
                run(Command::new(peer("nft")).args(["flush", "ruleset"]));
                assert_eq!(open.ask(), id);
                who(fronts()[2]).unwrap();
            }
            drop(end);
            let made: Vec<u32> = clients.into_iter().map(|it| it.join().unwrap()).collect();
            assert!(made.iter().all(|count| *count > 0), "{made:?}");
        });
        let asked = stage.inside("client", &["curl", "-sS", "--fail", "http://web.lan:8080/"]);
        assert!(text(&asked).contains("My id is"), "{}", text(&asked));
    });
}

#[test]
fn everything_holds_with_and_without_br_netfilter() {
    isolate(|| {
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let stage = up(2);
        with_and_without_br_netfilter(|value| {
            let [v4, v6, published, _] = fronts();
            let fetch = |from: &str, front: SocketAddr, within: &str| {
                let url = format!("http://{front}/");
                text(&stage.inside(from, &["curl", "-sS", "-g", "-m", within, &url]))
            };
            let curl = |from: &str, front: SocketAddr| fetch(from, front, "30");
            // Services and hairpins: neighbours, itself, and round by the host's address.
            let said: Vec<String> = [("client", v4), ("client", v6), ("client", published)]
                .into_iter()
                .chain([("web-1", v4), ("web-1", v6), ("web-1", published)])
                .chain([("web-2", v4), ("web-2", v6), ("stranger", published)])
                .chain([("stranger", published)])
                .map(|(from, front)| curl(from, front) + "\n")
                .collect();
            let answers = answers(said.iter().map(String::as_str));
            let counts: Vec<u32> = answers.values().copied().collect();
            assert_eq!(counts, [5; 2], "br_netfilter {value}: {said:?}");
            // Isolation, in both directions.
            let address = |name: &str| {
                let address = stage.instance(name)["addresses"][0].clone();
                SocketAddr::new(address.as_str().unwrap().parse().unwrap(), 8080)
            };
            for (from, to) in
                [("client", address("stranger")), ("stranger", address("web-1")), ("stranger", v4)]
            {
                // What is dropped is never answered.
                let said = fetch(from, to, "2");
                assert!(!said.contains("My id is"), "br_netfilter {value}: {from} {to}: {said}");
            }
            // The world sees the host, by both families.
            for server in Outside::ADDRESSES {
                let said = curl("client", SocketAddr::new(server, 7000));
                assert_eq!(said, netyard_testbed::traffic::HTTP_BODY, "br_netfilter {value}");
            }
        });
    });
}

/// Two daemons that are well, one that listens on loopback only, and one whose check never passes.
const DEAF: &str = r#"
[networks.lan]
mode = "bridge"
subnet = "192.168.77.0/24"
subnet6 = "fd00:77::/64"

[instances.web]
run = ["netyard-whoami", "-a", "::", "-p", "8080"]
count = 2

[instances.deaf]
run = ["netyard-whoami", "-a", "127.0.0.1", "-p", "8080"]

[instances.sick]
run = ["netyard-whoami", "-a", "::", "-p", "8080"]

[services.web]
instances = ["web", "deaf"]
port = 8080
publish = "0.0.0.0:8080"
check = { http = "/", every = "1h", timeout = "20s" }

[services.sick]
instances = "sick"
port = 8080
publish = "0.0.0.0:8081"
check = { http = "/nowhere", every = "1h", timeout = "20s" }
"#;

#[test]
fn who_listens_on_loopback_or_never_gets_well_is_named_and_has_no_turns() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = Stage::new(User::Root, "turns", DEAF);
        run(&mut stage.netyard(&["up", "-d"]));
        wait_for("somebody has looked", SOON, || {
            let warnings = stage.instance("deaf")["warnings"].to_string();
            let is_running = stage.instance("sick")["state"] == "running";
            (is_running && warnings.contains("127.0.0.1:8080 only")).then_some(())
        });
        let done = output(&mut stage.netyard(&["up", "--wait", "--timeout", "1s"]));
        let said = text(&done);
        assert_eq!(done.status.code(), Some(4), "{said}");
        for word in ["deaf is running", "127.0.0.1:8080 only", "sick is running", "logs deaf"] {
            assert!(said.contains(word), "no `{word}` in: {said}");
        }
        // The others serve, as if there were nobody else.
        for name in ["web-1", "web-2"] {
            has_turns(&stage, name, true);
        }
        let answers: Vec<String> =
            fronts().into_iter().cycle().take(40).map(|front| who(front).unwrap()).collect();
        assert!(answers[0] != answers[1] && answers.chunks(2).all(|turn| turn == &answers[..2]));
        // Where nobody is well, clients are told at once.
        for address in ["127.0.0.1:8081", "198.51.100.1:8081"] {
            let refused = who(address.parse().unwrap()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}");
        }
        let services = stage.json(&["service", "ls"]);
        for (name, reason) in [("deaf", "refused"), ("sick", "404")] {
            let services = services.as_array().unwrap().iter();
            let mut all = services.flat_map(|it| it["instances"].as_array().unwrap());
            let is = all.find(|it| it["name"] == name).unwrap();
            assert_eq!(
                (&is["eligible"], &is["turns"]["turns"]),
                (&false.into(), &0.into()),
                "{is}"
            );
            assert!(is.to_string().contains(reason), "{is}");
        }
    });
}
