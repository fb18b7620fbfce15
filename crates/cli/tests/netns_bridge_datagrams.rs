//! A service over UDP whose turns the kernel keeps: exact from everywhere and under load, and clients
//! move on when instances go.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;

use netyard_testbed::ask::Socket;
use netyard_testbed::{Background, Outside, User, binary, isolate, peer, run, wait_for};

use crate::stage::{SOON, Stage, asked, id, signal, slow_to_leave, text, who_udp};

/// A service that is published on every address, somebody beside it, and somebody on another network.
const YARD: &str = r#"
[networks.lan]
mode = "bridge"
subnet = "192.168.77.0/24"
subnet6 = "fd00:77::/64"

[networks.other]
mode = "bridge"
subnet = "192.168.78.0/24"

[instances.web]
run = ["netyard-whoami", "-a", "::", "-p", "8080", "--udp"]
count = 3
restart = "no"
network = "lan"

[instances.client]
run = ["sleep", "1000"]
network = "lan"

[instances.stranger]
run = ["sleep", "1000"]
network = "other"

[services.web]
instances = "web"
protocol = "udp"
port = 8080
publish = "0.0.0.0:8080"
check = { every = "100ms" }
"#;

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

/// Waits until an instance gets turns, or gets none.
fn has_turns(instance: &str, has: bool) {
    wait_for(&format!("{instance} to have turns: {has}"), SOON, || {
        let rules = run(Command::new(peer("nft")).args(["list", "ruleset"]));
        (rules.contains(&format!("chain turn/web/{instance} ")) == has).then_some(())
    });
}

/// Waits until an instance gets no flows and has none.
fn has_left(stage: &Stage, name: &str) {
    wait_for(&format!("the last flow of {name}"), SOON, || {
        let service = stage.json(&["service", "ls"])[0].clone();
        let mut instances = service["instances"].as_array().unwrap().iter();
        let is = instances.find(|it| it["name"] == name).unwrap();
        (is["eligible"] == false && is["turns"]["open"] == 0).then_some(())
    });
}

fn ask(socket: &Socket) -> String {
    id(&socket.ask().unwrap()).to_owned()
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
        let stage = up(YARD);
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
        let stage = up(YARD);
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
        let service = &stage.json(&["service", "ls"])[0];
        let turns = service["instances"].as_array().unwrap().iter();
        assert!(turns.map(|it| &it["turns"]["turns"]).all(|turns| turns == 800), "{service}");
    });
}

#[test]
fn clients_of_an_instance_that_is_gone_move_on_and_the_rest_is_exact() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = up(YARD);
        // By way of the kernel, and by way of a relay.
        for (victim, front) in [("web-1", fronts()[0]), ("web-2", fronts()[3])] {
            let kept = [(); 3].map(|()| Socket::to(front).unwrap());
            let before = kept.each_ref().map(ask);
            signal(stage.pid(victim), "KILL");
            has_turns(victim, false);
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
        // Nobody is left: clients are refused, and the port stays taken.
        signal(stage.pid("web-3"), "KILL");
        has_turns("web-3", false);
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
        has_turns("web-2", true);
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
        let stage = up(&slow_to_leave(YARD));
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
        has_turns(leaving, false);
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
        has_turns(leaving, true);
        let found: BTreeSet<_> = (0..6).map(|_| who_udp(fronts()[0]).unwrap()).collect();
        assert_eq!(found.len(), 3);
    });
}

#[test]
fn weights_and_affinity_hold_and_a_service_that_moves_takes_its_flows_along() {
    isolate(|| {
        let _outside = Outside::new();
        let stage =
            up(&YARD
                .replace("port = 8080\npublish", "port = 8080\nweights = { web-1 = 2 }\npublish"));
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
        change(&YARD.replace("port = 8080\npublish", "port = 8080\naffinity = \"10m\"\npublish"));
        let kept: Vec<_> = (0..6).map(|_| who_udp(fronts()[0]).unwrap()).collect();
        assert!(kept.iter().all(|id| *id == kept[0]), "{kept:?}");
        // What was published elsewhere goes on nowhere.
        let socket = Socket::to(fronts()[2]).unwrap();
        ask(&socket);
        change(&YARD.replace("0.0.0.0:8080", "0.0.0.0:8081"));
        let error = socket.ask().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        who_udp(SocketAddr::new(fronts()[2].ip(), 8081)).unwrap();
        // TCP takes the place.
        change(&YARD.replace("protocol = \"udp\"", "protocol = \"tcp\""));
        stage::who(fronts()[2]).unwrap();
        let error = Socket::to(fronts()[0]).unwrap().ask().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}
