//! A service's turns are exact: over all clients, under load, and when instances die.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use netyard_testbed::{Background, SetAtEnd, User, isolate, wait_for};

use crate::stage::{HELLO, PUBLISHED, SOON, Stage, signal, wait_until_answered, who};

fn strictly_in_turn(user: User) {
    let _stage = Stage::up(user, "hello", HELLO);
    let answers: Vec<_> = (0..300).map(|_| who(PUBLISHED).unwrap()).collect();
    let (first, rest) = answers.split_at(3);
    assert!(first[0] != first[1] && first[1] != first[2] && first[2] != first[0], "{first:?}");
    for turn in rest.chunks(3) {
        assert_eq!(turn, first);
    }
}

#[test]
fn sequential_connections_go_strictly_in_turn() {
    isolate(|| strictly_in_turn(User::Root));
}

#[test]
fn sequential_connections_go_strictly_in_turn_for_an_ordinary_user() {
    isolate(|| strictly_in_turn(User::Ordinary));
}

#[test]
fn parallel_connections_are_shared_out_exactly() {
    isolate(|| {
        let _stage = Stage::up(User::Root, "hello", HELLO);
        // 64 clients, 3,000 connections.
        let clients: Vec<_> = (0..64)
            .map(|client| {
                let count = if client < 56 { 47 } else { 46 };
                thread::spawn(move || -> Vec<String> {
                    (0..count).map(|_| who(PUBLISHED).unwrap()).collect()
                })
            })
            .collect();
        let mut answers = BTreeMap::<_, u32>::new();
        for answer in clients.into_iter().flat_map(|client| client.join().unwrap()) {
            *answers.entry(answer).or_default() += 1;
        }
        assert_eq!(answers.values().copied().collect::<Vec<_>>(), [1000; 3]);
    });
}

#[test]
fn published_and_virtual_address_share_one_turn() {
    isolate(|| {
        let yard = format!("{HELLO}\n[instances.client]\nrun = [\"sleep\", \"infinity\"]\n");
        let stage = Stage::up(User::Root, "hello", &yard);
        // One family at a time: curl tries both at once where the first is slow.
        let curl = |family: &str| {
            let done = stage.inside("client", &["curl", family, "-s", "http://web.lan:8080/"]);
            let text = stage::text(&done);
            text.trim().strip_prefix("My id is ").unwrap_or_else(|| panic!("{text}")).to_owned()
        };
        let answers: Vec<_> = (0..30)
            .map(|at| match at % 4 {
                1 => curl("-4"),
                3 => curl("-6"),
                _ => who(PUBLISHED).unwrap(),
            })
            .collect();
        for turn in answers.chunks(3) {
            assert_eq!(turn, &answers[..3]);
        }
    });
}

#[test]
fn an_instance_reaches_itself_through_its_service() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", HELLO);
        let mut answers = BTreeMap::<_, u32>::new();
        for _ in 0..6 {
            let done = stage.inside("web-1", &["curl", "-4", "-s", "http://web.lan:8080/"]);
            *answers.entry(stage::text(&done)).or_default() += 1;
        }
        assert_eq!(answers.values().copied().collect::<Vec<_>>(), [2; 3], "{answers:?}");
    });
}

#[test]
fn no_request_fails_once_a_death_is_known() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", HELLO);
        let stop = AtomicBool::new(false);
        let results: Vec<(Instant, std::io::Result<String>)> = thread::scope(|scope| {
            let end = SetAtEnd(&stop);
            let clients: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let mut results = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            results.push((Instant::now(), who(PUBLISHED)));
                        }
                        results
                    })
                })
                .collect();
            let victim = stage.pid("web-2");
            signal(victim, "KILL");
            wait_for("web-2's end to be known", SOON, || {
                let state = stage.instance("web-2")["state"].clone();
                state.get("exited").is_some().then_some(())
            });
            let known = Instant::now();
            // Some hundreds of requests after it.
            for _ in 0..100 {
                who(PUBLISHED).unwrap();
            }
            drop(end);
            let all = clients.into_iter().flat_map(|client| client.join().unwrap());
            all.filter(|(start, _)| *start >= known).collect()
        });
        assert!(results.len() > 50, "only {} requests were made", results.len());
        let failed: Vec<_> = results.iter().filter(|(_, result)| result.is_err()).collect();
        assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), results.len());
        let answers: Vec<_> = (0..40).map(|_| who(PUBLISHED).unwrap()).collect();
        assert!(answers[0] != answers[1]);
        for turn in answers.chunks(2) {
            assert_eq!(turn, &answers[..2]);
        }
    });
}

#[test]
fn a_restarted_instance_takes_its_turn_again() {
    isolate(|| {
        let yard = HELLO.replace("restart = \"no\"", "restart = \"always\"");
        let stage = Stage::up(User::Root, "hello", &yard);
        let before: Vec<_> = (0..3).map(|_| who(PUBLISHED).unwrap()).collect();
        signal(stage.pid("web-3"), "KILL");
        // Until its end is known, connections may still be given to it.
        wait_for("web-3's restart", SOON, || {
            (stage::number(&stage.instance("web-3")["restarts"]) == 1).then_some(())
        });
        wait_for("three different answers with a new one among them", SOON, || {
            let answers: Vec<_> = (0..3).map(|_| who(PUBLISHED).unwrap()).collect();
            let new = answers.iter().filter(|answer| !before.contains(answer)).count();
            let old = answers.iter().filter(|answer| before.contains(answer)).count();
            (new == 1 && old == 2).then_some(())
        });
    });
}

#[test]
fn weights_change_under_way_and_clients_are_kept() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", HELLO);
        let ids: Vec<_> = (0..3).map(|_| who(PUBLISHED).unwrap()).collect();
        let order = |count: usize| -> Vec<usize> {
            let answers = (0..count).map(|_| who(PUBLISHED).unwrap());
            answers.map(|id| 1 + ids.iter().position(|known| *known == id).unwrap()).collect()
        };
        assert_eq!(order(4), [1, 2, 3, 1]);
        let weighted = "instances = \"web\"\nweights = { web-1 = 3 }";
        let yard = HELLO.replace("instances = \"web\"", weighted);
        let change = |yard: &str| {
            stage.write(yard);
            stage.say(&["up", "-d", "--wait"]);
        };
        change(&yard);
        assert_eq!(order(10), [2, 1, 3, 1, 1, 2, 1, 3, 1, 1]);
        change(&yard.replace(weighted, &format!("{weighted}\naffinity = \"10m\"")));
        assert_eq!(order(5), [2; 5]);
        let service = &stage.json(&["service", "ls"])[0];
        assert_eq!(service["instances"][0]["weight"], 3);
        assert_eq!((&service["affinity_ms"], &service["clients"]), (&600_000.into(), &1.into()));
        // Whoever was kept moves on when its instance goes, and stays there.
        stage.say(&["stop", "web-2"]);
        let next = order(5);
        assert!(next[0] != 2 && next == [next[0]; 5], "{next:?}");
    });
}

/// One request on a connection that stays open; the whole answer.
fn ask(connection: &mut TcpStream) -> String {
    connection.write_all(b"GET / HTTP/1.1\r\nhost: hello\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("My id is ") {
        let mut piece = [0; 1024];
        let len = connection.read(&mut piece).unwrap();
        assert_ne!(len, 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..len]);
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn an_instance_that_is_stopped_drains_first() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", HELLO);
        let mut connections = [(); 3].map(|()| TcpStream::connect(PUBLISHED).unwrap());
        for connection in &mut connections {
            ask(connection);
        }
        let [first, second, third] = &mut connections;
        for connection in [first, second] {
            connection.shutdown(std::net::Shutdown::Both).unwrap();
        }
        let mut stop = Background::start(&mut stage.netyard(&["stop", "web-3"]));
        let answers = || (0..4).map(|_| who(PUBLISHED).unwrap()).collect::<BTreeSet<_>>();
        wait_for("no new connections for web-3", SOON, || (answers().len() == 2).then_some(()));
        // It still answers whom it has, and is stopped when that one has gone.
        ask(third);
        assert_eq!(stage.instance("web-3")["state"], "healthy");
        third.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(stop.wait(SOON).success(), "{}", stop.output());
        assert_eq!(stage.instance("web-3")["state"], "stopped");
    });
}

#[test]
fn a_service_without_instances_refuses_and_keeps_its_port() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", HELLO);
        for name in ["web-1", "web-2", "web-3"] {
            stage.say(&["stop", name]);
        }
        let error = who(PUBLISHED).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
        let taken = std::net::TcpListener::bind(PUBLISHED).unwrap_err();
        assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
        stage.say(&["start", "web-2"]);
        wait_until_answered(PUBLISHED);
    });
}
