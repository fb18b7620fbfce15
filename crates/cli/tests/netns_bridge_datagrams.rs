//! A service over UDP whose turns the kernel keeps: exact from everywhere and under load, and clients
//! move on when instances go.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "stage/datagrams.rs"]
mod datagrams;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use netyard_testbed::ask::Socket;
use netyard_testbed::{Background, Outside, User, binary, isolate, peer, run, wait_for};

use crate::datagrams::{
    ask, changes_lose_nothing, has_left, slow_to_leave, two_to_seven_take_turns, web,
};
use crate::stage::{
    SOON, Stage, asked, has_turns, have_had, id, number, signal, text, who_udp,
    with_and_without_br_netfilter,
};

/// Where the service is published unless a test says otherwise.
const EVERYWHERE: &str = "0.0.0.0:8080";

/// So many daemons on a bridge, published at every address of a family.
fn yard(count: usize, publish: &str) -> String {
    web("bridge", count, publish)
}

/// A flow that was answered and goes on for longer is remembered for minutes.
const LASTING: Duration = Duration::from_secs(3);

/// The service's virtual addresses, and its published one where the kernel translates it and where
/// the network's process relays.
fn fronts() -> [SocketAddr; 4] {
    let v6: IpAddr = "fd00:77::fd".parse().unwrap();
    let v4: IpAddr = [192, 168, 77, 253].into();
    [v4, v6, Outside::HOST4.into(), Ipv4Addr::LOCALHOST.into()].map(|ip| SocketAddr::new(ip, 8080))
}

fn up(yard: &str) -> Stage {
    let stage = Stage::up(User::Root, "turns", yard);
    let addresses = stage.json(&["service", "ls"])[0]["addresses"].to_string();
    assert!(fronts()[..2].iter().all(|front| addresses.contains(&front.ip().to_string())));
    stage
}

fn words(servers: &[SocketAddr], count: usize) -> Vec<String> {
    let servers = servers.iter().map(|server| format!("{server}/udp"));
    let ask = ["ask", "--count"].map(str::to_owned);
    ask.into_iter().chain([count.to_string()]).chain(servers).collect()
}

/// `netyard-traffic ask` inside an instance.
fn inside(stage: &Stage, name: &str, servers: &[SocketAddr], count: usize) -> Command {
    let mut command = stage.netyard(&["exec", name, "--", "netyard-traffic"]);
    command.args(words(servers, count));
    command
}

#[test]
fn flows_go_strictly_in_turn_from_everywhere() {
    isolate(|| {
        let outside = Outside::new();
        let stage = up(&yard(3, EVERYWHERE));
        let [v4, v6, published, loopback] = fronts();
        let first: Vec<_> = (0..3).map(|_| who_udp(v4).unwrap()).collect();
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "{first:?}");
        let is_in_turn = |answers: &[String]| {
            assert!(answers.chunks(3).all(|turn| turn == first), "{answers:?}");
        };
        for front in fronts() {
            is_in_turn(&(0..30).map(|_| who_udp(front).unwrap()).collect::<Vec<_>>());
        }
        // Neighbours, whoever serves itself, another network by the host's address, and the outside.
        let from = |mut command: Command| asked(&text(&command.output().unwrap()));
        is_in_turn(&from(inside(&stage, "client", &[v4, v6, published], 4)));
        is_in_turn(&from(inside(&stage, "web-1", &[v4, v6, published], 4)));
        is_in_turn(&from(inside(&stage, "stranger", &[published], 6)));
        let mut client = outside.command(binary("netyard-traffic"));
        client.args(words(&[published], 6));
        is_in_turn(&from(client));
        // A socket that stays has one daemon, by way of the kernel and by way of a relay.
        for front in [v4, loopback] {
            let socket = Socket::to(front).unwrap();
            let one = ask(&socket);
            assert!((0..10).all(|_| ask(&socket) == one));
        }
        // Networks are isolated from each other: by the virtual address nobody else gets there.
        let said = text(&inside(&stage, "stranger", &[v4], 1).output().unwrap());
        assert!(!said.contains("My id is"), "{said}");
        let service = &stage.json(&["service", "ls"])[0];
        assert_eq!(service["protocol"], "udp");
        let explained = stage.say(&["explain", "client", "web"]);
        assert!(explained.contains("8080") && explained.contains("udp"), "{explained}");
    });
}

#[test]
fn flows_of_64_clients_are_shared_out_exactly() {
    isolate(|| {
        let outside = Outside::new();
        let stage = up(&yard(3, EVERYWHERE));
        let [v4, v6, published, loopback] = fronts();
        let mut from_outside = outside.command(binary("netyard-traffic"));
        from_outside.args(words(&[published], 60));
        let mut clients: Vec<Background> = [
            inside(&stage, "client", &[v4, v6], 30),
            inside(&stage, "client", &[published], 60),
            inside(&stage, "web-1", &[v4], 60),
            inside(&stage, "stranger", &[published], 60),
            from_outside,
        ]
        .iter_mut()
        .map(Background::start)
        .collect();
        let local: Vec<_> = [v4, v6, published, loopback]
            .into_iter()
            .cycle()
            .take(60)
            .map(|front| thread::spawn(move || [(); 35].map(|()| who_udp(front).unwrap())))
            .collect();
        let mut answers = BTreeMap::<_, u32>::new();
        for answer in local.into_iter().flat_map(|client| client.join().unwrap()) {
            *answers.entry(answer).or_default() += 1;
        }
        for client in &mut clients {
            client.wait_for_line("asked", SOON);
            assert!(client.wait(SOON).success(), "{}", client.output());
            for answer in asked(&client.output()) {
                *answers.entry(answer).or_default() += 1;
            }
        }
        assert_eq!(answers.values().copied().collect::<Vec<_>>(), [800; 3], "60 * 35 + 5 * 60");
        have_had(&stage, 0, &[800; 3]);
    });
}

#[test]
fn clients_of_an_instance_that_is_gone_move_on_and_the_rest_is_exact() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(&yard(3, EVERYWHERE));
        // By way of the kernel, and by way of a relay.
        for (victim, front) in [("web-1", fronts()[0]), ("web-2", fronts()[3])] {
            let kept = [(); 3].map(|()| Socket::to(front).unwrap());
            let before = kept.each_ref().map(ask);
            signal(stage.pid(victim), "KILL");
            has_turns(&stage, victim, false);
            has_left(&stage, victim);
            let after = kept.each_ref().map(ask);
            let stay = before.iter().filter(|one| after.contains(one)).collect::<BTreeSet<_>>();
            assert!(before.iter().zip(&after).all(|(one, now)| one == now || !stay.contains(one)));
            assert!(before != after, "{before:?} {after:?}");
            for front in fronts() {
                let answers: Vec<_> = (0..6).map(|_| who_udp(front).unwrap()).collect();
                assert!(answers.iter().all(|id| after.contains(id)), "{answers:?} {after:?}");
            }
        }
        // Nobody is left: clients are refused, however long others have been there, and the port stays taken.
        let lasting = Socket::to(fronts()[3]).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < LASTING {
            ask(&lasting);
        }
        signal(stage.pid("web-3"), "KILL");
        has_turns(&stage, "web-3", false);
        has_left(&stage, "web-3");
        for front in fronts() {
            wait_for(&format!("{front} to refuse"), SOON, || {
                let error = Socket::to(front).unwrap().ask().err()?;
                (error.kind() == ErrorKind::ConnectionRefused).then_some(())
            });
        }
        let said = text(&inside(&stage, "client", &[fronts()[0]], 1).output().unwrap());
        assert!(said.contains("refused"), "{said}");
        let taken = UdpSocket::bind(fronts()[3]).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        let refused = fronts().map(|front| Socket::to(front).unwrap());
        for socket in &refused {
            assert_eq!(socket.ask().unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        stage.say(&["start", "web-2"]);
        has_turns(&stage, "web-2", true);
        for (socket, front) in refused.iter().zip(fronts()) {
            wait_for(&format!("{front} to answer the same socket"), SOON, || socket.ask().ok());
        }
        for front in fronts() {
            wait_for(&format!("an answer from {front}"), SOON, || who_udp(front).ok());
        }
    });
}

#[test]
fn who_drains_answers_whom_it_has_and_a_flush_loses_nothing() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(&slow_to_leave(&yard(3, EVERYWHERE)));
        let kept = fronts().map(|front| Socket::to(front).unwrap());
        let ids = kept.each_ref().map(ask);
        for _ in 0..10 {
            run(Command::new(peer("nft")).args(["flush", "ruleset"]));
            assert_eq!(kept.each_ref().map(ask), ids);
            for front in fronts() {
                who_udp(front).unwrap();
            }
        }
        // Turns took their way four at a time: the first one has the fourth flow, too.
        let leaving = ["web-1", "web-2", "web-3"].into_iter().find(|name| {
            let address = &stage.instance(name)["addresses"][0];
            let address: IpAddr = address.as_str().unwrap().parse().unwrap();
            who_udp(SocketAddr::new(address, 8080)).unwrap() == ids[0]
        });
        let leaving = leaving.unwrap();
        let mut stop = Background::start(&mut stage.netyard(&["stop", leaving]));
        has_turns(&stage, leaving, false);
        assert_eq!(kept.each_ref().map(ask), ids, "it still answers whom it has");
        for front in fronts() {
            assert_ne!(who_udp(front).unwrap(), ids[0], "and new ones avoid it");
        }
        assert!(stop.wait(SOON).success(), "{}", stop.output());
        has_left(&stage, leaving);
        let moved = kept.each_ref().map(ask);
        assert!(!moved.contains(&ids[0]), "{moved:?}");
        assert_eq!(moved[1..3], ids[1..3], "and nobody else has moved");
        stage.say(&["start", leaving]);
        has_turns(&stage, leaving, true);
        let found: BTreeSet<_> = (0..6).map(|_| who_udp(fronts()[0]).unwrap()).collect();
        assert_eq!(found.len(), 3);
    });
}

#[test]
fn weights_and_affinity_hold_and_a_service_that_moves_takes_its_flows_along() {
    isolate(|| {
        let _outside = Outside::new();
        let yard = yard(3, EVERYWHERE);
        let with = |key: &str| {
            yard.replace("port = 8080\npublish", &format!("port = 8080\n{key}\npublish"))
        };
        let stage = up(&with("weights = { web-1 = 2 }"));
        let order: Vec<_> = (0..16).map(|at| who_udp(fronts()[at % 4]).unwrap()).collect();
        assert!(order.chunks(4).all(|turn| turn == &order[..4]), "{order:?}");
        let mut counts = BTreeMap::<_, u32>::new();
        order.iter().for_each(|id| *counts.entry(id).or_default() += 1);
        let mut counts: Vec<_> = counts.into_values().collect();
        counts.sort_unstable();
        assert_eq!(counts, [4, 4, 8]);
        let change = |yard: &str| {
            stage.write(yard);
            stage.say(&["up", "-d", "--wait"]);
        };
        change(&with("affinity = \"10m\""));
        let kept: Vec<_> = (0..6).map(|_| who_udp(fronts()[0]).unwrap()).collect();
        assert!(kept.iter().all(|id| *id == kept[0]), "{kept:?}");
        // What was published elsewhere goes on nowhere.
        let socket = Socket::to(fronts()[2]).unwrap();
        ask(&socket);
        change(&yard.replace("0.0.0.0:8080", "0.0.0.0:8081"));
        let error = socket.ask().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        who_udp(SocketAddr::new(fronts()[2].ip(), 8081)).unwrap();
        // TCP takes the place.
        change(&yard.replace("protocol = \"udp\"", "protocol = \"tcp\""));
        stage::who(fronts()[2]).unwrap();
        let error = Socket::to(fronts()[0]).unwrap().ask().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn flows_follow_each_other_with_two_to_seven_instances() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(&yard(2, EVERYWHERE));
        two_to_seven_take_turns(&stage, &fronts(), |count| yard(count, EVERYWHERE));
    });
}

#[test]
fn changes_while_sockets_send_lose_nothing() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(&yard(3, EVERYWHERE));
        changes_lose_nothing(&stage, &fronts(), |count| yard(count, EVERYWHERE));
    });
}

#[test]
fn a_service_is_published_over_ipv6() {
    isolate(|| {
        let outside = Outside::new();
        let stage = up(&yard(3, "[::]:8080"));
        let published = SocketAddr::new(Outside::HOST6.into(), 8080);
        let loopback = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 8080);
        let fronts = [published, loopback, fronts()[1]];
        let mut answers: Vec<_> = (0..30).map(|at| who_udp(fronts[at % 3]).unwrap()).collect();
        let mut client = outside.command(binary("netyard-traffic"));
        client.args(words(&[published], 6));
        for mut command in [client, inside(&stage, "stranger", &[published], 6)] {
            answers.extend(asked(&text(&command.output().unwrap())));
        }
        assert_eq!(answers[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{answers:?}");
        assert!(answers.chunks(3).all(|turn| turn == &answers[..3]), "{answers:?}");
        let kept = fronts.map(|front| Socket::to(front).unwrap());
        let before = kept.each_ref().map(ask);
        assert_eq!(kept.each_ref().map(ask), before);
        for name in ["web-1", "web-2", "web-3"] {
            signal(stage.pid(name), "KILL");
            has_turns(&stage, name, false);
            has_left(&stage, name);
        }
        for front in fronts {
            wait_for(&format!("{front} to refuse"), SOON, || {
                let error = Socket::to(front).unwrap().ask().err()?;
                (error.kind() == ErrorKind::ConnectionRefused).then_some(())
            });
        }
    });
}

#[test]
fn flows_are_led_with_and_without_br_netfilter() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(&yard(2, EVERYWHERE));
        with_and_without_br_netfilter(|value| {
            let [v4, v6, published, _] = fronts();
            // Neighbours, whoever serves itself, and another network by the host's address.
            let mut answers: Vec<_> = fronts().map(|front| who_udp(front).unwrap()).into();
            let others = [
                ("client", &[v4, v6, published][..]),
                ("web-1", &[v4, v6]),
                ("stranger", &[published]),
            ];
            for (from, fronts) in others {
                let said = inside(&stage, from, fronts, 2).output().unwrap();
                answers.extend(asked(&text(&said)));
            }
            assert_ne!(answers[0], answers[1], "br_netfilter {value}");
            let in_turn = answers.chunks(2).all(|turn| turn == &answers[..2]);
            assert!(in_turn, "br_netfilter {value}: {answers:?}");
            let said = text(&inside(&stage, "stranger", &[v4], 1).output().unwrap());
            assert!(!said.contains("My id is"), "br_netfilter {value}: {said}");
        });
    });
}

/// Has its UDP port and never answers; its TCP port until somebody has written to the FIFO `gate` beside it.
const MUTE: &str = r#"
import socket, threading

datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
datagrams.bind(("::", 8080))
server = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)

def accept():
    try:
        while True:
            server.accept()[0].close()
    except OSError:
        pass

threading.Thread(target=accept).start()
open("gate").read()
server.shutdown(socket.SHUT_RDWR)
server.close()
threading.Event().wait()
"#;

#[test]
fn clients_that_were_never_answered_leave_who_hangs() {
    isolate(|| {
        let _outside = Outside::new();
        let mute = "[instances.mute]\nrun = [\"python3\", \"mute.py\"]\nnetwork = \"lan\"\n\n";
        let yard = yard(1, EVERYWHERE)
            .replace("[services.web]", &format!("{mute}[services.web]"))
            .replace("instances = \"web\"", "instances = [\"mute\", \"web\"]")
            .replace("check = { ", "check = { tcp = true, port = 8080, ");
        let stage = Stage::new(User::Root, "turns", &yard);
        fs::write(stage.folder.join("mute.py"), MUTE).unwrap();
        let gate = stage.folder.join("gate");
        run(Command::new(peer("mkfifo")).arg(&gate));
        stage.say(&["up", "-d", "--wait"]);
        stage.say(&["stop", "web-1"]);
        has_turns(&stage, "web-1", false);
        has_turns(&stage, "mute", true);
        let clients = fronts().map(|front| {
            let any: IpAddr =
                if front.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.connect(front).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket.send(b"who?").unwrap();
            socket
        });
        wait_for("a turn for each", SOON, || {
            let mute = &stage.json(&["service", "ls"])[0]["instances"][0];
            assert_eq!(mute["name"], "mute");
            (number(&mute["turns"]["turns"]) == 4).then_some(())
        });
        stage.say(&["start", "web-1"]);
        has_turns(&stage, "web-1", true);
        drop(OpenOptions::new().write(true).open(&gate).unwrap());
        has_turns(&stage, "mute", false);
        for (client, front) in clients.iter().zip(fronts()) {
            let mut answer = [0; 100];
            let len = wait_for(&format!("an answer of web by {front}"), SOON, || {
                client.send(b"who?").unwrap();
                client.recv(&mut answer).ok()
            });
            id(std::str::from_utf8(&answer[..len]).unwrap());
        }
        assert_eq!(stage.instance("mute")["state"], "unhealthy");
    });
}

/// True if the kernel tracks as many flows over UDP with a mark as that. Only root may look.
fn are_marked(wanted: impl Fn(usize) -> bool) -> bool {
    let Ok(tracked) = fs::read_to_string("/proc/net/nf_conntrack") else {
        return !User::ids_are_real();
    };
    let is_marked = |line: &&str| line.contains(" udp ") && !line.contains(" mark=0 ");
    wanted(tracked.lines().filter(is_marked).count())
}

#[test]
fn flows_of_a_killed_network_process_are_forgotten_and_turns_exact_again() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(&yard(3, EVERYWHERE));
        let kept = fronts().map(|front| Socket::to(front).unwrap());
        drop(kept.each_ref().map(ask));
        assert!(are_marked(|count| count == 4));
        assert_eq!(stage.json(&["inspect"])["networks"][0]["name"], "lan");
        stage.kill_network();
        assert!(are_marked(|count| count == 0));
        for name in ["web-1", "web-2", "web-3"] {
            has_turns(&stage, name, true);
            for address in stage.instance(name)["addresses"].as_array().unwrap() {
                let address = address.as_str().unwrap();
                wait_for(&format!("the way to {address}"), SOON, || {
                    let mut ping = Command::new(peer("ping"));
                    ping.args(["-c1", "-W1", address])
                        .output()
                        .unwrap()
                        .status
                        .success()
                        .then_some(())
                });
            }
        }
        let after = kept.each_ref().map(ask);
        assert_eq!(after[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{after:?}");
        assert_eq!(after[3], after[0], "turns begin with the first");
        let service = &stage.json(&["service", "ls"])[0];
        let instances = service["instances"].as_array().unwrap().iter();
        let open: Vec<u32> = instances.map(|it| number(&it["turns"]["open"])).collect();
        assert_eq!(open.iter().sum::<u32>(), 4, "all that there are are known: {service}");
        let answers: Vec<_> = (0..30).map(|at| who_udp(fronts()[at % 4]).unwrap()).collect();
        assert_eq!(answers[0], after[1]);
        assert!(answers.chunks(3).all(|turn| turn == &answers[..3]), "{answers:?}");

        // Killed with its keeper, it is the next start that looks. What lasts is not forgotten by itself.
        let begun = Instant::now();
        while begun.elapsed() < LASTING {
            drop(kept.each_ref().map(ask));
        }
        assert!(are_marked(|count| count >= 4));
        let victims = [stage.keeper_pid(), stage.network_pid()].map(|pid| pid.to_string());
        run(Command::new(peer("kill")).arg("-KILL").args(victims));
        wait_for("nothing of them", SOON, || {
            run(&mut stage.netyard(&["run", "--", "true"]));
            are_marked(|count| count == 0).then_some(())
        });
    });
}
