//! Daemons that answer datagrams behind one service, and how it goes with their flows.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use netyard_testbed::ask::Socket;
use netyard_testbed::{SetAtEnd, wait_for};

use crate::stage::{SOON, Stage, has_turns, id, lan_and_other, who_udp};

/// So many daemons behind a published service, somebody beside them, and somebody on another network.
pub(crate) fn web(mode: &str, count: usize, publish: &str) -> String {
    lan_and_other(mode)
        + &format!(
            r#"
[instances.web]
run = ["netyard-whoami", "-a", "::", "-p", "8080", "--udp"]
count = {count}
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
publish = "{publish}"
check = {{ every = "100ms", timeout = "20s" }}
"#
        )
}

/// The same yard with whoami daemons that take no SIGTERM: they answer until they are killed, some time after
/// their flows were waited for.
pub(crate) fn slow_to_leave(yard: &str) -> String {
    let daemon = r#"run = ["netyard-whoami", "-a", "::", "-p", "8080", "--udp"]"#;
    let script = "trap '' TERM; setsid netyard-whoami -a :: -p 8080 --udp & wait";
    assert!(yard.contains(daemon), "{yard}");
    yard.replace(daemon, &format!(r#"run = ["sh", "-c", "{script}"]"#))
}

/// Which daemon answers the next datagram of a socket.
pub(crate) fn ask(socket: &Socket) -> String {
    id(&socket.ask().unwrap()).to_owned()
}

/// Waits until an instance gets no flows and has none.
pub(crate) fn has_left(stage: &Stage, name: &str) {
    wait_for(&format!("the last flow of {name}"), SOON, || {
        let service = stage.json(&["service", "ls"])[0].clone();
        let mut instances = service["instances"].as_array().unwrap().iter();
        let is = instances.find(|it| it["name"] == name).unwrap();
        (is["eligible"] == false && is["turns"]["open"] == 0).then_some(())
    });
}

/// Two to seven daemons behind these addresses, one more at a time: the turns stay exact. One datagram of all may
/// go unanswered after a change (docs/limits.md), and with it a turn: then they are exact from there on.
pub(crate) fn two_to_seven_take_turns(
    stage: &Stage,
    fronts: &[SocketAddr],
    yard: impl Fn(usize) -> String,
) {
    let mut unanswered = 0;
    for count in 2..=7 {
        stage.write(&yard(count));
        stage.say(&["up", "-d", "--wait"]);
        has_turns(stage, &format!("web-{count}"), true);
        let all = || -> Result<Vec<String>, _> {
            fronts.iter().cycle().take(10 * count).map(|front| who_udp(*front)).collect()
        };
        let answers = all().unwrap_or_else(|error| {
            unanswered += 1;
            assert_eq!((unanswered, error.kind()), (1, ErrorKind::WouldBlock), "with {count}");
            all().unwrap()
        });
        let (first, rest) = answers.split_at(count);
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), count, "{first:?}");
        assert!(rest.chunks(count).all(|turn| turn == first), "{answers:?}");
    }
}

/// Adds daemons to three, takes them out again and changes weights, while sockets ask at these addresses: they
/// are answered, but for a datagram in a thousand at most, and who has a daemon that stays keeps it.
pub(crate) fn changes_lose_nothing(
    stage: &Stage,
    fronts: &[SocketAddr],
    yard: impl Fn(usize) -> String,
) {
    /// Between two questions: a load that leaves room for what changes.
    const BREATH: Duration = Duration::from_millis(5);
    /// Questions of one client with new sockets: in all fewer than there are ports, so that none comes again.
    const ENOUGH: usize = 3_000;
    let kept: Vec<Socket> =
        fronts.iter().cycle().take(12).map(|front| Socket::to(*front).unwrap()).collect();
    let ids: Vec<String> = kept.iter().map(ask).collect();
    let is_over = AtomicBool::new(false);
    let load = |most: usize, questions: &dyn Fn() -> Vec<bool>| {
        let mut answered = Vec::new();
        while answered.len() < most && !is_over.load(Ordering::Relaxed) {
            answered.extend(questions());
            thread::sleep(BREATH);
        }
        answered
    };
    let keep = |(socket, daemon): (&Socket, &String)| match socket.ask() {
        Ok(answer) => {
            assert_eq!(id(&answer), daemon);
            true
        }
        Err(_) => false,
    };
    thread::scope(|scope| {
        let end = SetAtEnd(&is_over);
        let new = fronts
            .iter()
            .cycle()
            .take(4)
            .map(|front| scope.spawn(move || load(ENOUGH, &|| vec![who_udp(*front).is_ok()])));
        let mut clients: Vec<_> = new.collect();
        clients
            .push(scope.spawn(|| load(usize::MAX, &|| kept.iter().zip(&ids).map(keep).collect())));
        let weighted = |yard: &str| {
            yard.replace("port = 8080\npublish", "port = 8080\nweights = { web-1 = 3 }\npublish")
        };
        let change = |yard: &str, last: bool| {
            stage.write(yard);
            stage.say(&["up", "-d", "--wait"]);
            has_turns(stage, "web-5", last);
        };
        change(&yard(5), true);
        change(&weighted(&yard(5)), true);
        change(&weighted(&yard(3)), false);
        change(&yard(3), false);
        drop(end);
        for client in clients {
            let answered = client.join().unwrap();
            let lost = answered.iter().filter(|answered| !**answered).count();
            assert!(lost * 1_000 <= answered.len().max(1_000), "{lost} of {}", answered.len());
            assert_ne!(answered.len(), lost);
        }
    });
    let answers: Vec<String> =
        fronts.iter().cycle().take(30).map(|front| who_udp(*front).unwrap()).collect();
    assert_eq!(answers[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{answers:?}");
    assert!(answers.chunks(3).all(|turn| turn == &answers[..3]), "{answers:?}");
}
