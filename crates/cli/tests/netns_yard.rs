//! A yard's life: up, what the commands show, changes, faults, down, and nothing left behind.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs;
use std::net::{SocketAddr, TcpListener};

use netyard_testbed::{
    Background, User, isolate, isolate_mapped, output, run, runtime_root, wait_for,
};

use crate::stage::{HELLO, PUBLISHED, SOON, Stage, before, signal, text, wait_until_answered, who};

fn hello(user: User) {
    let before = before(user);
    let stage = Stage::new(user, "hello", HELLO);
    let mut keeper = Background::start(&mut stage.netyard(&["up"]));
    wait_until_answered(PUBLISHED);
    run(&mut stage.netyard(&["up", "--wait", "-d"]));
    let all = stage.json(&["ps"]);
    let states: Vec<_> = all.as_array().unwrap().iter().map(|it| it["state"].clone()).collect();
    assert_eq!(states, ["healthy"; 3], "{all}");
    stage.say(&["down"]);
    assert!(keeper.wait(SOON).success(), "{}", keeper.output());
    fs::remove_dir_all(&stage.folder).unwrap();
    before.assert_restored(SOON);
}

#[test]
fn comes_up_and_goes_down_without_a_trace() {
    isolate(|| hello(User::Root));
}

#[test]
fn comes_up_and_goes_down_for_an_ordinary_user() {
    isolate(|| hello(User::Ordinary));
}

#[test]
fn comes_up_and_goes_down_inside_a_user_namespace() {
    isolate_mapped(|| hello(User::Root));
}

#[test]
fn an_interrupt_stops_everything() {
    isolate(|| {
        let before = before(User::Root);
        for name in ["INT", "TERM"] {
            let stage = Stage::new(User::Root, "hello", HELLO);
            let mut keeper = Background::start(&mut stage.netyard(&["up"]));
            wait_until_answered(PUBLISHED);
            keeper.signal(name);
            keeper.wait(SOON);
            fs::remove_dir_all(&stage.folder).unwrap();
            before.assert_restored(SOON);
        }
    });
}

#[test]
fn an_interrupt_while_it_comes_up_leaves_nothing() {
    isolate(|| {
        let before = before(User::Root);
        let socket = runtime_root(User::Root).join("hello/keeper.sock");
        for _ in 0..5 {
            let stage = Stage::new(User::Root, "hello", HELLO);
            let mut keeper = Background::start(&mut stage.netyard(&["up"]));
            wait_for("the keeper to begin", SOON, || socket.exists().then_some(()));
            keeper.signal("INT");
            match keeper.wait(SOON).code() {
                Some(1) => drop(keeper.wait_for_line("interrupted", SOON)),
                // It was faster than the signal.
                Some(0) => {}
                code => panic!("{code:?}: {}", keeper.output()),
            }
            fs::remove_dir_all(&stage.folder).unwrap();
            before.assert_restored(SOON);
        }
    });
}

#[test]
fn the_commands_tell_what_runs() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", HELLO);
        let table = stage.say(&["ps"]);
        for word in ["web-1", "web-2", "web-3", "healthy", "192.168.127."] {
            assert!(table.contains(word), "{word} is not in:\n{table}");
        }
        let services = stage.say(&["service", "ls"]);
        for word in ["web", "127.0.0.1:8080"] {
            assert!(services.contains(word), "{word} is not in:\n{services}");
        }
        let id = who(PUBLISHED).unwrap();
        let turns: u64 = stage.json(&["service", "ls"])[0]["instances"]
            .as_array()
            .unwrap()
            .iter()
            .map(|instance| instance["turns"]["turns"].as_u64().unwrap())
            .sum();
        assert_eq!(turns, 1, "one connection with the answer {id}");
        // Rocket says at its start where it listens.
        let logs = stage.say(&["logs", "web-2"]);
        assert!(logs.contains("8080"), "{logs}");
        let inspect = stage.json(&["inspect"]);
        assert_eq!(inspect["name"], "hello");
        assert_eq!(inspect["networks"][0]["state"]["plugs"].as_array().unwrap().len(), 3);
    });
}

#[test]
fn exec_runs_inside_and_hands_back_the_exit_code() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", HELLO);
        let done = stage.inside("web-1", &["ip", "-o", "address"]);
        let addresses = text(&done);
        assert!(done.status.success(), "{addresses}");
        for word in ["lo", "eth0", "127.0.0.1/8", "192.168.127.", "inet6 fd"] {
            assert!(addresses.contains(word), "{word} is not in:\n{addresses}");
        }
        let done = stage.inside("web-1", &["sh", "-c", "exit 42"]);
        assert_eq!(done.status.code(), Some(42));
        let hosts = text(&stage.inside("web-1", &["cat", "/etc/resolv.conf"]));
        assert!(hosts.contains("nameserver 192.168.127.1"), "{hosts}");
    });
}

#[test]
fn logs_are_kept_and_followed() {
    isolate(|| {
        let yard = r#"
            [networks.lan]
            [instances.talker]
            run = ["sh", "-c", "echo first; echo second >&2; read line < /run/testbed/go; echo third"]
            restart = "no"
        "#;
        run(std::process::Command::new("mkfifo").arg("/run/testbed/go"));
        let stage = Stage::new(User::Root, "talk", yard);
        run(&mut stage.netyard(&["up", "-d"]));
        let mut follower = Background::start(&mut stage.netyard(&["logs", "-f", "talker"]));
        follower.wait_for_line("second", SOON);
        fs::write("/run/testbed/go", "go\n").unwrap();
        follower.wait_for_line("third", SOON);
        wait_for("the end to be told", SOON, || {
            (stage.instance("talker")["state"]["exited"]["code"] == 0).then_some(())
        });
        let logs = stage.say(&["logs", "talker"]);
        for word in ["first", "second", "third"] {
            assert!(logs.contains(word), "{word} is not in:\n{logs}");
        }
    });
}

#[test]
fn a_second_up_applies_the_difference() {
    isolate(|| {
        let stage = Stage::up(User::Root, "hello", HELLO);
        let kept: Vec<_> = ["web-1", "web-2"].map(|name| stage.pid(name)).into();
        stage.write(&HELLO.replace("count = 3", "count = 2"));
        stage.say(&["up", "-d", "--wait"]);
        assert_eq!(stage.json(&["ps"]).as_array().unwrap().len(), 2);
        let answers: Vec<_> = (0..4).map(|_| who(PUBLISHED).unwrap()).collect();
        assert_eq!(answers[..2], answers[2..]);
        stage.write(&HELLO.replace("count = 3", "count = 4"));
        stage.say(&["up", "-d", "--wait"]);
        let answers: Vec<_> = (0..8).map(|_| who(PUBLISHED).unwrap()).collect();
        assert_eq!(answers[..4], answers[4..]);
        assert_eq!(["web-1", "web-2"].map(|name| stage.pid(name)).to_vec(), kept);
        // What was stopped is started, and nothing else is touched.
        stage.say(&["stop", "web-4"]);
        let said = text(&output(&mut stage.netyard(&["up", "-d", "--wait"])));
        assert!(said.contains("~ instance web-4: start (stopped)"), "{said}");
        assert!(!said.contains("web-3: "), "{said}");
        // A third time nothing differs.
        let keeper = stage.keeper_pid();
        stage.say(&["up", "-d", "--wait"]);
        assert_eq!(stage.keeper_pid(), keeper);
    });
}

/// Forwards are added and removed while a yard of `user` runs, and nothing else is touched.
fn forwards(user: User) {
    let stage = Stage::up(user, "hello", HELLO);
    let kept = || (stage.keeper_pid(), ["web-1", "web-2"].map(|name| stage.pid(name)));
    let (before, network) = (kept(), stage.network_pid());
    let at: SocketAddr = "127.0.0.1:8091".parse().unwrap();
    let add = |forward: &str| stage.json(&["forward", "add", "web-1", forward]);
    let added = add("8091:8080");
    assert_eq!((&added["changed"], &added["network"]), (&true.into(), &"lan".into()), "{added}");
    let first = who(at).unwrap();
    assert_eq!(who(at).unwrap(), first, "one instance alone is behind it");
    assert_eq!(add("8091:8080")["changed"], false);
    assert!(stage.say(&["forward", "ls"]).contains("127.0.0.1:8091"));

    let refused = |instance: &str, forward: &str, code: i32, why: &str| {
        let done = output(&mut stage.netyard(&["forward", "add", instance, forward]));
        assert_eq!(done.status.code(), Some(code), "{}", text(&done));
        assert!(text(&done).contains(why), "{}", text(&done));
    };
    let other = TcpListener::bind("127.0.0.1:8092").unwrap();
    refused("web-2", "8092:8080", 1, "is taken");
    refused("web-2", "8091:8080", 1, "the forward 127.0.0.1:8091:8080/tcp of instance web-1");
    refused("web-2", "8080", 1, "the published port of service web");
    refused("nobody", "8093", 1, "no instance of that name");
    refused("web-2", "port", 2, "is not a port");
    if matches!(user, User::Ordinary) {
        refused("web-2", "81:8080", 3, "need root");
    }
    drop(other);

    // The file does not know of it, and leaves it in place.
    stage.write(&HELLO.replace("count = 3", "count = 2"));
    stage.say(&["up", "-d", "--wait"]);
    assert_eq!(who(at).unwrap(), first);
    // Now the file has it, and then not any more.
    let one = "[instances.one]\nrun = [\"sleep\", \"1d\"]\nforwards = [\"8091:8080\"]\n";
    stage.write(&format!("{}{one}", HELLO.replace("count = 3", "count = 2")));
    let said = text(&output(&mut stage.netyard(&["up", "-d", "--wait"])));
    assert!(said.contains("- forward 127.0.0.1:8091:8080/tcp of web-1"), "{said}");
    assert!(said.contains("+ forward 127.0.0.1:8091:8080/tcp of one"), "{said}");
    stage.write(&HELLO.replace("count = 3", "count = 2"));
    stage.say(&["up", "-d", "--wait"]);
    assert!(who(at).is_err(), "it was the file's");

    assert_eq!(add("8091:8080")["changed"], true);
    assert_eq!((kept(), stage.network_pid()), (before, network), "nothing else was touched");
    stage.kill_network();
    wait_for("the forward in a new network process", SOON, || {
        who(at).ok().map(|answer| assert_eq!(answer, first))
    });
    let remove = || stage.json(&["forward", "rm", "web-1", "8091:8080"])["changed"].clone();
    assert_eq!(remove(), true);
    assert!(who(at).is_err(), "it is closed");
    assert_eq!(remove(), false);
    assert_eq!(kept(), before);
}

#[test]
fn forwards_come_and_go_while_everything_runs() {
    isolate(|| forwards(User::Root));
}

#[test]
fn forwards_come_and_go_for_an_ordinary_user() {
    isolate(|| forwards(User::Ordinary));
}

#[test]
fn what_is_needed_starts_first() {
    isolate(|| {
        let yard = format!(
            "{HELLO}\n[instances.client]\nneeds = [\"web\"]\n\
             run = [\"curl\", \"-s\", \"http://web.lan:8080/\"]\nrestart = \"no\"\n"
        );
        let stage = Stage::new(User::Root, "hello", &yard);
        run(&mut stage.netyard(&["up", "-d"]));
        wait_for("the client's end", SOON, || {
            let state = stage.instance("client")["state"].clone();
            state.get("exited").map(|exited| assert_eq!(exited["code"], 0, "{state}"))
        });
        assert!(stage.say(&["logs", "client"]).contains("My id is "));
    });
}

fn killed_keeper(user: User) {
    let before = before(user);
    let stage = Stage::up(user, "hello", HELLO);
    let pids = ["web-1", "web-2", "web-3"].map(|name| stage.pid(name));
    signal(stage.keeper_pid(), "KILL");
    wait_for("the instances' end", SOON, || pids.iter().all(|pid| !is_alive(*pid)).then_some(()));
    run(&mut stage.netyard(&["up", "-d", "--wait"]));
    let answers: Vec<_> = (0..6).map(|_| who(PUBLISHED).unwrap()).collect();
    assert_eq!(answers[..3], answers[3..]);
    stage.say(&["down"]);
    fs::remove_dir_all(&stage.folder).unwrap();
    before.assert_restored(SOON);
}

#[test]
fn a_killed_keeper_leaves_nothing_after_the_next_start() {
    isolate(|| killed_keeper(User::Root));
}

#[test]
fn a_killed_keeper_leaves_nothing_for_an_ordinary_user() {
    isolate(|| killed_keeper(User::Ordinary));
}

#[test]
fn a_killed_network_process_is_replaced() {
    isolate(|| {
        let before = before(User::Root);
        let stage = Stage::up(User::Root, "hello", HELLO);
        let pids = ["web-1", "web-2", "web-3"].map(|name| stage.pid(name));
        let network = stage.network_pid();
        signal(network, "KILL");
        wait_for("answers from a new network process", SOON, || {
            let ok = who(PUBLISHED).is_ok() && !is_alive(network);
            ok.then_some(())
        });
        wait_for("all three to be healthy again", SOON, || {
            let all = stage.json(&["ps"]);
            all.as_array().unwrap().iter().all(|it| it["state"] == "healthy").then_some(())
        });
        // The programs never noticed.
        assert_eq!(["web-1", "web-2", "web-3"].map(|name| stage.pid(name)), pids);
        let answers: Vec<_> = (0..6).map(|_| who(PUBLISHED).unwrap()).collect();
        assert_eq!(answers[..3], answers[3..]);
        stage.say(&["down"]);
        fs::remove_dir_all(&stage.folder).unwrap();
        before.assert_restored(SOON);
    });
}

#[test]
fn the_process_of_a_network_may_do_its_duties_only() {
    isolate(|| {
        for user in User::ALL {
            let stage = Stage::up(user, "hello", HELLO);
            let process = format!("/proc/{}", stage.network_pid());
            let threads = fs::read_dir(format!("{process}/task")).unwrap();
            let others = threads.map(|thread| thread.unwrap().path().join("status"));
            // All but the first may end meanwhile.
            let others = others.filter_map(|status| fs::read_to_string(status).ok());
            let first = fs::read_to_string(format!("{process}/status")).unwrap();
            for status in [first].into_iter().chain(others) {
                let has = |line: &str| status.lines().any(|it| it == line);
                assert!(has("Seccomp:\t2") && has("NoNewPrivs:\t1"), "{status}");
                // Root's may still bind low ports.
                let none = "0000000000000";
                assert!(has(&format!("CapPrm:\t{none}000")) || has(&format!("CapPrm:\t{none}400")));
            }
            stage.say(&["down"]);
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn a_program_that_only_listens_on_loopback_is_told_of() {
    isolate(|| {
        let yard = r#"
            [networks.lan]
            [instances.shy]
            run = ["netyard-whoami", "-p", "8080"]
        "#;
        let stage = Stage::new(User::Root, "shy", yard);
        run(&mut stage.netyard(&["up", "-d"]));
        wait_for("the warning", SOON, || {
            let warnings = stage.instance("shy")["warnings"].to_string();
            warnings.contains("127.0.0.1:8080").then_some(())
        });
    });
}

#[test]
fn a_check_that_never_passes_ends_the_wait_and_not_the_yard() {
    isolate(|| {
        let deaf = HELLO.replace("\"0.0.0.0\"", "\"127.0.0.1\"");
        // So that it is not unhealthy before anybody looks.
        let deaf = deaf.replace("every = \"1s\"", "every = \"1h\"");
        assert_ne!(deaf, HELLO);
        let stage = Stage::new(User::Root, "deaf", &deaf);
        run(&mut stage.netyard(&["up", "-d"]));
        wait_for("somebody has looked", SOON, || {
            let warnings = stage.instance("web-1")["warnings"].to_string();
            warnings.contains("127.0.0.1:8080 only").then_some(())
        });
        let done = output(&mut stage.netyard(&["up", "--wait", "--timeout", "1s"]));
        let said = text(&done);
        assert_eq!(done.status.code(), Some(4), "{said}");
        for word in ["web-1 is running", "127.0.0.1:8080 only", "netyard logs web-1"] {
            assert!(said.contains(word), "no `{word}` in: {said}");
        }
        assert_eq!(stage.json(&["ps"]).as_array().unwrap().len(), 3);
    });
}

#[test]
fn down_without_a_yard_is_one_clear_error() {
    isolate(|| {
        let stage = Stage::new(User::Root, "hello", HELLO);
        for verb in ["down", "ps", "inspect"] {
            let done = output(&mut stage.netyard(&[verb]));
            assert_eq!(done.status.code(), Some(1), "{verb}: {}", text(&done));
            assert!(text(&done).contains("next:"), "{verb}: {}", text(&done));
        }
    });
}

fn is_alive(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}
