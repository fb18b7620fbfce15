//! A service over UDP takes exact turns in user mode: each flow of a client one, over all clients, under
//! load, and when instances come, go and die.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "stage/datagrams.rs"]
mod datagrams;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use netyard_testbed::ask::Socket;
use netyard_testbed::{Background, SetAtEnd, User, isolate, wait_for};

use crate::datagrams::{
    ask, changes_lose_nothing, has_left, slow_to_leave, two_to_seven_take_turns, web,
};
use crate::stage::{PUBLISHED, SOON, Stage, asked, has_turns, number, signal, text, who_udp};

/// Three daemons, published on loopback.
fn yard() -> String {
    web("user", 3, "127.0.0.1:8080")
}

fn up(user: User) -> Stage {
    Stage::up(user, "hello", &yard())
}

/// The service's virtual addresses with its port.
fn fronts(stage: &Stage) -> [String; 2] {
    let addresses = stage.json(&["service", "ls"])[0]["addresses"].clone();
    let [v4, v6] = [0, 1].map(|family| addresses[family].as_str().unwrap().to_owned());
    [format!("{v4}:8080/udp"), format!("[{v6}]:8080/udp")]
}

/// Asks from inside an instance, each server so often, each time from another port.
fn ask_inside(stage: &Stage, instance: &str, servers: &[String], count: usize) -> Vec<String> {
    let count = count.to_string();
    let mut words = vec!["netyard-traffic", "ask", "--count", &count];
    words.extend(servers.iter().map(String::as_str));
    asked(&text(&stage.inside(instance, &words)))
}

fn strictly_in_turn(user: User) {
    let stage = up(user);
    let answers: Vec<_> = (0..300).map(|_| who_udp(PUBLISHED).unwrap()).collect();
    let (first, rest) = answers.split_at(3);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "{first:?}");
    assert!(rest.chunks(3).all(|turn| turn == first), "{answers:?}");
    // Both virtual addresses take part, and who serves may ask itself.
    let servers = fronts(&stage);
    for instance in ["client", "web-1"] {
        let inside = ask_inside(&stage, instance, &servers, 6);
        assert!(inside.chunks(3).all(|turn| turn == first), "{inside:?}");
    }
    // A socket that stays has one daemon.
    let socket = Socket::to(PUBLISHED).unwrap();
    let one = ask(&socket);
    assert!((0..10).all(|_| ask(&socket) == one));
    assert_eq!(who_udp(PUBLISHED).unwrap(), first[1]);
    let service = &stage.json(&["service", "ls"])[0];
    assert_eq!((&service["protocol"], &service["port"]), (&"udp".into(), &8080.into()));
    assert!(stage.say(&["service", "ls"]).contains(" udp "));
    assert!(stage.say(&["inspect", "web"]).contains("8080/udp"));
    // Another network is another world.
    let said = text(&stage.inside("stranger", &["netyard-traffic", "ask", &servers[0]]));
    assert!(!said.contains("My id is"), "{said}");
}

#[test]
fn flows_go_strictly_in_turn() {
    isolate(|| strictly_in_turn(User::Root));
}

#[test]
fn flows_go_strictly_in_turn_for_an_ordinary_user() {
    isolate(|| strictly_in_turn(User::Ordinary));
}

fn shared_out_exactly(user: User) {
    let stage = up(user);
    let servers = fronts(&stage);
    let mut inside = ["client", "web-1"].map(|name| {
        let words = ["exec", name, "--", "netyard-traffic", "ask", "--count", "75"];
        let words = [&words[..], &[&servers[0], &servers[1]]].concat();
        Background::start(&mut stage.netyard(&words))
    });
    // 62 more clients on the host.
    let local: Vec<_> =
        (0..62).map(|_| thread::spawn(|| [(); 45].map(|()| who_udp(PUBLISHED).unwrap()))).collect();
    let mut answers = BTreeMap::<_, u32>::new();
    for answer in local.into_iter().flat_map(|client| client.join().unwrap()) {
        *answers.entry(answer).or_default() += 1;
    }
    for client in &mut inside {
        client.wait_for_line("asked", SOON);
        assert!(client.wait(SOON).success(), "{}", client.output());
        for answer in asked(&client.output()) {
            *answers.entry(answer).or_default() += 1;
        }
    }
    assert_eq!(answers.values().copied().collect::<Vec<_>>(), [1030; 3], "62 * 45 + 2 * 150");
}

#[test]
fn flows_of_64_clients_are_shared_out_exactly() {
    isolate(|| shared_out_exactly(User::Root));
}

#[test]
fn flows_of_64_clients_are_shared_out_exactly_for_an_ordinary_user() {
    isolate(|| shared_out_exactly(User::Ordinary));
}

#[test]
fn flows_follow_each_other_with_two_to_seven_instances() {
    isolate(|| {
        let yard = |count| web("user", count, "127.0.0.1:8080");
        let stage = Stage::up(User::Ordinary, "hello", &yard(2));
        two_to_seven_take_turns(&stage, &[PUBLISHED], yard);
    });
}

#[test]
fn changes_while_sockets_send_lose_nothing() {
    isolate(|| {
        let stage = up(User::Root);
        changes_lose_nothing(&stage, &[PUBLISHED], |count| web("user", count, "127.0.0.1:8080"));
    });
}

#[test]
fn a_service_is_published_over_ipv6() {
    isolate(|| {
        let stage = Stage::up(User::Ordinary, "hello", &web("user", 3, "[::1]:8080"));
        let published = SocketAddr::from((Ipv6Addr::LOCALHOST, 8080));
        let answers: Vec<_> = (0..30).map(|_| who_udp(published).unwrap()).collect();
        assert_eq!(answers[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{answers:?}");
        assert!(answers.chunks(3).all(|turn| turn == &answers[..3]), "{answers:?}");
        let kept = Socket::to(published).unwrap();
        let one = ask(&kept);
        assert!((0..10).all(|_| ask(&kept) == one));
        for name in ["web-1", "web-2", "web-3"] {
            signal(stage.pid(name), "KILL");
            has_left(&stage, name);
        }
        wait_for("the port to refuse", SOON, || {
            let error = Socket::to(published).unwrap().ask().err()?;
            (error.kind() == ErrorKind::ConnectionRefused).then_some(())
        });
    });
}

#[test]
fn clients_of_a_network_process_that_is_killed_take_turns_again() {
    isolate(|| {
        let stage = up(User::Root);
        let kept = [(); 3].map(|()| Socket::to(PUBLISHED).unwrap());
        let before = kept.each_ref().map(ask);
        stage.kill_network();
        has_turns(&stage, "web-3", true);
        // What comes before the instances have their links again is lost.
        wait_for("an answer", SOON * 3, || who_udp(PUBLISHED).ok());
        let after: BTreeSet<_> = kept.iter().map(ask).collect();
        assert_eq!(after, before.into_iter().collect(), "each has a turn again");
        let answers: Vec<_> = (0..30).map(|_| who_udp(PUBLISHED).unwrap()).collect();
        assert!(answers.chunks(3).all(|turn| turn == &answers[..3]), "{answers:?}");
    });
}

#[test]
fn no_flow_is_lost_once_a_death_is_known_and_open_ones_move_on() {
    isolate(|| {
        let stage = up(User::Root);
        let kept = [(); 3].map(|()| Socket::to(PUBLISHED).unwrap());
        let before = kept.each_ref().map(ask);
        let is_known = AtomicBool::new(false);
        let known: Vec<_> = thread::scope(|scope| {
            let end = SetAtEnd(&is_known);
            let clients = [(); 8].map(|()| {
                scope.spawn(|| {
                    // No more than the two that stay take, however fast this machine is.
                    for _ in 0..400 {
                        if is_known.load(Ordering::Acquire) {
                            break;
                        }
                        let _may_be_lost = who_udp(PUBLISHED);
                    }
                    wait_for("the death to be known", SOON * 2, || {
                        is_known.load(Ordering::Acquire).then_some(())
                    });
                    [(); 20].map(|()| who_udp(PUBLISHED))
                })
            });
            signal(stage.pid("web-2"), "KILL");
            has_left(&stage, "web-2");
            drop(end);
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        let failed: Vec<_> = known.iter().filter(|result| result.is_err()).collect();
        assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), known.len());
        // Who had another keeps it, who had the dead one goes on with the next datagram.
        let after = kept.each_ref().map(ask);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
        assert_eq!(moved.count(), 1, "{before:?} {after:?}");
        assert_eq!(after.iter().collect::<BTreeSet<_>>().len(), 2);
        let answers: Vec<_> = (0..40).map(|_| who_udp(PUBLISHED).unwrap()).collect();
        assert!(answers[0] != answers[1] && answers.chunks(2).all(|turn| turn == &answers[..2]));
    });
}

#[test]
fn an_instance_that_is_stopped_drains_and_one_that_starts_takes_its_turn() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", &slow_to_leave(&yard()));
        let kept = [(); 3].map(|()| Socket::to(PUBLISHED).unwrap());
        let ids = kept.each_ref().map(ask);
        let mut stop = Background::start(&mut stage.netyard(&["stop", "web-2"]));
        let answers = || (0..4).map(|_| who_udp(PUBLISHED).unwrap()).collect::<BTreeSet<_>>();
        wait_for("no new flows for web-2", SOON, || (answers().len() == 2).then_some(()));
        assert_eq!(kept.each_ref().map(ask), ids, "it still answers whom it has");
        // A flow over UDP does not say when it ends: the stop waits for its time only.
        assert!(stop.wait(SOON).success(), "{}", stop.output());
        assert_eq!(stage.instance("web-2")["state"], "stopped");
        has_left(&stage, "web-2");
        let moved = kept.each_ref().map(ask);
        assert!(!moved.contains(&ids[1]) && moved[0] == ids[0] && moved[2] == ids[2]);
        stage.say(&["start", "web-2"]);
        wait_for("three daemons with a new one", SOON, || {
            let found: BTreeSet<_> = (0..3).map(|_| who_udp(PUBLISHED).unwrap()).collect();
            (found.len() == 3 && !found.contains(&ids[1])).then_some(())
        });
        let order: Vec<_> = (0..30).map(|_| who_udp(PUBLISHED).unwrap()).collect();
        assert!(order.chunks(3).all(|turn| turn == &order[..3]), "{order:?}");
        signal(stage.pid("web-1"), "KILL");
        has_left(&stage, "web-1");
        assert_eq!(answers().len(), 2);
        stage.say(&["restart", "web-1"]);
        wait_for("three daemons again", SOON, || {
            let found: BTreeSet<_> = (0..3).map(|_| who_udp(PUBLISHED).unwrap()).collect();
            (found.len() == 3).then_some(())
        });
    });
}

fn without_instances(user: User) {
    let stage = up(user);
    for name in ["web-1", "web-2", "web-3"] {
        signal(stage.pid(name), "KILL");
        has_left(&stage, name);
    }
    // Outside and inside the network clients are told at once.
    wait_for("the port to refuse", SOON, || {
        let error = Socket::to(PUBLISHED).unwrap().ask().err()?;
        (error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
    for front in fronts(&stage) {
        let said = text(&stage.inside("client", &["netyard-traffic", "ask", &front]));
        assert!(said.contains("refused"), "{said}");
    }
    let taken = UdpSocket::bind(PUBLISHED).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    stage.say(&["start", "web-2"]);
    wait_for("an answer", SOON, || who_udp(PUBLISHED).ok());
}

#[test]
fn a_service_without_instances_refuses_and_keeps_its_port() {
    isolate(|| without_instances(User::Root));
}

#[test]
fn a_service_of_an_ordinary_user_without_instances_refuses_and_keeps_its_port() {
    isolate(|| without_instances(User::Ordinary));
}

#[test]
fn weights_change_under_way_and_clients_are_kept() {
    isolate(|| {
        let stage = up(User::Root);
        let ids: Vec<_> = (0..3).map(|_| who_udp(PUBLISHED).unwrap()).collect();
        let order = |count: usize| -> Vec<usize> {
            let answers = (0..count).map(|_| who_udp(PUBLISHED).unwrap());
            answers.map(|id| 1 + ids.iter().position(|known| *known == id).unwrap()).collect()
        };
        let weighted = "instances = \"web\"\nweights = { web-1 = 3 }";
        let yard = yard().replace("instances = \"web\"", weighted);
        let change = |yard: &str| {
            stage.write(yard);
            stage.say(&["up", "-d", "--wait"]);
        };
        change(&yard);
        let ten = order(10);
        assert_eq!(ten[..5], ten[5..]);
        assert_eq!(ten.iter().filter(|number| **number == 1).count(), 6);
        change(&yard.replace(weighted, &format!("{weighted}\naffinity = \"10m\"")));
        let kept = order(5);
        assert_eq!(kept, [kept[0]; 5]);
        let victim = format!("web-{}", kept[0]);
        signal(stage.pid(&victim), "KILL");
        has_left(&stage, &victim);
        let next = order(5);
        assert!(next[0] != kept[0] && next == [next[0]; 5], "{next:?}");
    });
}

#[test]
fn an_instance_that_closes_its_port_is_passed_over() {
    isolate(|| {
        // Its HTTP port stays, so that the check passes.
        let yard = yard().replace("[services.web]", "[instances.mute]\nrun = [\"netyard-whoami\", \"-a\", \"::\", \"-p\", \"8080\"]\nnetwork = \"lan\"\n\n[services.web]");
        let yard = yard.replace("instances = \"web\"", "instances = [\"mute\", \"web\"]");
        let yard = yard.replace("every = \"100ms\"", "tcp = true, port = 8080, every = \"100ms\"");
        let stage = Stage::up(User::Root, "hello", &yard);
        // A kernel tells only so often in a second that a port is closed.
        let answers: Vec<_> = (0..6).map(|_| who_udp(PUBLISHED).unwrap()).collect();
        assert!(answers[..3] == answers[3..], "{answers:?}");
        let service = &stage.json(&["service", "ls"])[0];
        let mute = &service["instances"][0];
        assert_eq!((&mute["name"], &mute["eligible"]), (&"mute".into(), &true.into()));
        assert_eq!((number(&mute["turns"]["turns"]), number(&mute["turns"]["failed"])), (2, 2));
        // Without that the check sees it.
        stage.write(&yard.replace("tcp = true, port = 8080, ", ""));
        stage.say(&["up", "-d"]);
        wait_for("the check to see it", SOON, || {
            let mute = stage.json(&["service", "ls"])[0]["instances"][0].clone();
            let problem = mute["problem"].as_str().unwrap_or_default();
            (problem.contains("UDP port 8080") && mute["eligible"] == false).then_some(())
        });
    });
}
