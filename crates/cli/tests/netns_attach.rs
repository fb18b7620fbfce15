//! `netyard attach PID`: a network for a namespace that somebody else has made.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use netyard_testbed::{Background, Outside, User, isolate, output, peer, run, traffic, wait_for};
use serde_json::Value;

use crate::stage::{SOON, before, serve_outside, signal, text, wait_until_open};

/// Says that it is there, as the user that it is to be, and stays.
const WAIT: &str = "echo there; exec sleep 600";

/// A process of a user in namespaces of its own.
fn stranger(user: User) -> Background {
    let mut command = user.peer("unshare");
    command.args(["--user", "--map-root-user", "--net", "sh", "-c", WAIT]);
    let mut stranger = Background::start(&mut command);
    stranger.wait_for_line("there", SOON);
    stranger
}

/// A command in a process's namespaces.
fn inside(user: User, process: u32, program: &[&str]) -> Command {
    let mut command = user.peer("nsenter");
    command.arg("--target").arg(process.to_string());
    command.args(["--user", "--net", "--preserve-credentials"]).args(program);
    command
}

/// What it says, both streams.
fn within(user: User, process: u32, program: &[&str]) -> String {
    text(&output(&mut inside(user, process, program)))
}

fn attach(user: User, arguments: &[&str]) -> Command {
    let mut command = user.command("netyard");
    command.arg("attach").args(arguments);
    command
}

/// Where `--json` says what was made.
fn attached(background: &mut Background) -> Value {
    background.wait_for_line("}", SOON);
    background.output().parse().unwrap_or_else(|_| panic!("{}", background.output()))
}

fn links(user: User, process: u32) -> String {
    within(user, process, &["ip", "-o", "link"])
}

fn a_stranger_gets_a_network(user: User) {
    let outside = Outside::new();
    let _server = serve_outside(&outside);
    let mut stranger = stranger(user);
    let process = stranger.id();
    let pid = process.to_string();

    // The descriptor is ready when everything is there: what waits for it goes on at once.
    let script = r#"netyard attach "$0" -p 7000 -p unix:/tmp/told.sock:7000 --ready-fd 3 --json 3>&1 >/tmp/told | {
        head -c 1
        nsenter --target "$0" --user --net --preserve-credentials \
            curl -sS --fail http://203.0.113.1:7000/
        cat
    }"#;
    let mut running = Background::start(user.peer("sh").args(["-c", script, &pid]));
    running.wait_for_line(&format!("1{}", traffic::HTTP_BODY.trim()), SOON);
    let told: Value = fs::read_to_string("/tmp/told").unwrap().parse().unwrap();
    assert_eq!((&told["link"], &told["name"]), (&"tap0".into(), &"tap0".into()));

    let gateway = told["gateways"][0].as_str().unwrap();
    let said = within(user, process, &["ping", "-n", "-c", "1", gateway]);
    assert!(said.contains("1 received"), "{said}");
    let url = "http://[2001:db8:2::1]:7000/";
    let said = within(user, process, &["curl", "-sS", "--fail", url]);
    assert_eq!(said, traffic::HTTP_BODY);
    // A program of the stranger is reached by the forward.
    let serve = ["netyard-traffic", "serve", "0.0.0.0:7000"];
    let mut server = Background::start(&mut inside(user, process, &serve));
    server.wait_for_line("listening", SOON);
    wait_until_open(SocketAddr::from(([127, 0, 0, 1], 7000)));
    assert_eq!(told["sockets"], serde_json::json!(["/tmp/told.sock"]));
    let mut curl = Command::new(peer("curl"));
    let said = run(curl.args(["-sS", "--fail", "--unix-socket", "/tmp/told.sock", "http://web/"]));
    assert_eq!(said, traffic::HTTP_BODY);
    drop(server);

    // It ends with the stranger.
    stranger.signal("KILL");
    stranger.wait(SOON);
    assert!(running.wait(SOON).success(), "{}", running.output());
    assert!(!Path::new("/tmp/told.sock").exists());
}

#[test]
fn a_process_gets_a_network() {
    isolate(|| a_stranger_gets_a_network(User::Root));
}

#[test]
fn a_process_of_an_ordinary_user_gets_a_network() {
    isolate(|| a_stranger_gets_a_network(User::Ordinary));
}

#[test]
fn it_ends_when_it_is_told_to_and_leaves_the_namespace_as_it_was() {
    isolate(|| {
        let user = User::Ordinary;
        let stranger = stranger(user);
        let process = stranger.id();
        let pid = process.to_string();
        // It would be switched on, and left so.
        within(user, process, &["ip", "link", "set", "lo", "up"]);
        let (links_before, snapshot) = (links(user, process), before(user));
        // The network's process closes its copy of the TAP a moment later.
        let restored = || {
            wait_for("the namespace as it was", SOON, || {
                (links(user, process) == links_before).then_some(())
            });
        };
        for end in ["INT", "TERM"] {
            let mut running = Background::start(&mut attach(user, &[&pid, "-t", "out0", "--json"]));
            assert_eq!(attached(&mut running)["link"], "out0");
            assert!(links(user, process).contains("out0"));
            // A service manager tells all of its processes; the one in the namespace leaves that to its keeper.
            let mut children = Command::new(peer("pgrep"));
            let children = run(children.arg("--parent").arg(running.id().to_string()));
            assert_ne!(children, "");
            children.lines().for_each(|child| signal(child.parse().unwrap(), end));
            running.signal(end);
            assert!(running.wait(SOON).success(), "{}", running.output());
            restored();
        }
        // By the end of whoever has the other end of a pipe.
        let pipe = user.folder("pipes").join("exit");
        run(user.peer("mkfifo").arg(&pipe));
        let script = "exec netyard attach \"$0\" --exit-fd 3 --json 3<\"$1\"";
        let mut shell = user.peer("sh");
        let mut running = Background::start(shell.args(["-c", script, &pid]).arg(&pipe));
        let holder = OpenOptions::new().write(true).open(&pipe).unwrap();
        attached(&mut running);
        assert!(links(user, process).contains("tap0"));
        drop(holder);
        assert!(running.wait(SOON).success(), "{}", running.output());
        fs::remove_dir_all(pipe.parent().unwrap()).unwrap();
        restored();
        snapshot.assert_restored(SOON);
    });
}

#[test]
fn a_network_that_is_killed_is_made_again_with_the_same_addresses() {
    isolate(|| {
        let user = User::Ordinary;
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let stranger = stranger(user);
        let (process, pid) = (stranger.id(), stranger.id().to_string());
        let flags = [pid.as_str(), "--network", "lab", "--json"];
        let mut running = Background::start(&mut attach(user, &flags));
        let told = attached(&mut running);
        let state = || -> Value {
            let mut command = user.command("netyard");
            let done = output(command.args(["network", "inspect", "lab", "--json"]));
            String::from_utf8_lossy(&done.stdout).parse().unwrap_or_default()
        };
        let network = u32::try_from(state()["state"]["pid"].as_u64().unwrap()).unwrap();
        signal(network, "KILL");
        wait_for("another process", SOON, || {
            let now = state();
            let other = now["state"]["pid"].as_u64().is_some_and(|it| it != u64::from(network));
            (other && now["state"]["plugs"][0]["addresses"] == told["addresses"]).then_some(())
        });
        let url = "http://203.0.113.1:7000/";
        let said = within(user, process, &["curl", "-sS", "--fail", url]);
        assert_eq!(said, traffic::HTTP_BODY);
    });
}

/// A program in a process's namespaces that serves checked traffic.
fn serve(user: User, process: u32, at: &str) -> Background {
    let serve = ["netyard-traffic", "serve", at];
    let mut server = Background::start(&mut inside(user, process, &serve));
    server.wait_for_line("listening", SOON);
    server
}

/// What is answered at a port of this machine's loopback.
fn ask(port: u16) -> String {
    let url = format!("http://127.0.0.1:{port}/");
    text(&output(Command::new(peer("curl")).args(["-sS", "--fail", &url])))
}

fn wait_for_answer(port: u16) {
    wait_for("an answer", SOON, || (ask(port) == traffic::HTTP_BODY).then_some(()));
}

/// Whether nobody listens at a port of this machine's loopback.
fn is_refused(port: u16) -> bool {
    let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn forwards_come_and_go(user: User) {
    let stranger = stranger(user);
    let (process, pid) = (stranger.id(), stranger.id().to_string());
    let _server = serve(user, process, "0.0.0.0:7000");
    let folder = user.folder("control");
    let path = folder.join("ctl.sock");
    let control = path.to_str().unwrap();
    let mut running = Background::start(&mut attach(
        user,
        &[&pid, "-p", "7001:7000", "--network", "lab", "--control", control, "--json"],
    ));
    let told = attached(&mut running);
    assert_eq!(
        (&told["control"], &told["forwards"][0]),
        (&control.into(), &"127.0.0.1:7001".into())
    );
    let say = |arguments: &[&str]| -> Value {
        let mut command = user.command("netyard");
        run(command.args(arguments).arg("--json")).parse().unwrap()
    };
    wait_for_answer(7001);

    // By its control socket, and by the name of its yard.
    let yard = told["yard"].as_str().unwrap();
    assert_eq!(say(&["-y", control, "forward", "add", "tap0", "7002:7000"])["changed"], true);
    assert_eq!(say(&["-y", yard, "forward", "add", "tap0", "7002:7000"])["changed"], false);
    wait_for_answer(7002);
    assert_eq!(say(&["-y", control, "forward", "rm", "tap0", "7001:7000"])["changed"], true);
    assert_eq!(say(&["-y", control, "forward", "rm", "tap0", "7001:7000"])["changed"], false);
    assert!(is_refused(7001));

    // And by programs, with HTTP.
    let call = |path: &str, body: Option<&Value>| -> Value {
        let mut curl = user.peer("curl");
        curl.args(["-sS", "--fail", "--unix-socket", control, &format!("http://attach/v1/{path}")]);
        if let Some(body) = body {
            curl.args(["--json", &body.to_string()]);
        }
        run(&mut curl).parse().unwrap()
    };
    let all = call("forwards", None);
    let [only] = all.as_array().unwrap().as_slice() else { panic!("{all}") };
    assert_eq!((&only["forward"]["instance"], &only["network"]), (&"tap0".into(), &"lab".into()));
    let mut wanted = serde_json::json!({ "forward": only["forward"] });
    wanted["forward"]["host_ports"] = serde_json::json!([7003, 7003]);
    assert_eq!(call("forwards/add", Some(&wanted))["changed"], true);
    wait_for_answer(7003);
    assert_eq!(say(&["-y", control, "forward", "ls"]).as_array().unwrap().len(), 2);

    // What was added is there again in another process of the network, and what was closed is not.
    let network = say(&["network", "inspect", "lab"])["state"]["pid"].as_u64().unwrap();
    signal(u32::try_from(network).unwrap(), "KILL");
    wait_for_answer(7002);
    wait_for_answer(7003);
    assert!(is_refused(7001));

    // It is a yard of one plug that somebody else starts.
    let instances = say(&["-y", control, "ps"]);
    assert_eq!(instances[0]["state"], "running");
    assert_eq!(instances[0]["addresses"], told["addresses"]);
    let done = output(user.command("netyard").args(["-y", control, "exec", "tap0", "--", "true"]));
    assert!(text(&done).contains("nsenter"), "{}", text(&done));
    running.signal("TERM");
    assert!(running.wait(SOON).success(), "{}", running.output());
    assert!(!path.exists());
    wait_for("nobody at the port", SOON, || is_refused(7002).then_some(()));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn forwards_of_a_namespace_come_and_go_while_it_is_attached_to() {
    isolate(|| forwards_come_and_go(User::Root));
}

#[test]
fn forwards_come_and_go_for_an_ordinary_user() {
    isolate(|| forwards_come_and_go(User::Ordinary));
}

fn loopback_is_reached(user: User) {
    let stranger = stranger(user);
    let (process, pid) = (stranger.id(), stranger.id().to_string());
    let flags = [&pid, "-p", "7001:7000/loopback", "--network", "lab", "--json"];
    let mut running = Background::start(&mut attach(user, &flags));
    attached(&mut running);
    // Where nothing comes in but by a socket of the namespace itself.
    let _server = serve(user, process, "127.0.0.1:7000");
    wait_for_answer(7001);
    let mut command = user.command("netyard");
    let state: Value = run(command.args(["network", "inspect", "lab", "--json"])).parse().unwrap();
    signal(u32::try_from(state["state"]["pid"].as_u64().unwrap()).unwrap(), "KILL");
    wait_for_answer(7001);
    drop(stranger);
    assert!(running.wait(SOON).success(), "{}", running.output());
}

#[test]
fn programs_on_the_loopback_of_a_namespace_are_reached_by_its_own_sockets() {
    isolate(|| loopback_is_reached(User::Root));
}

#[test]
fn those_of_an_ordinary_user_are_reached_too() {
    isolate(|| loopback_is_reached(User::Ordinary));
}

/// What the outside answers to who is in a network namespace.
fn ask_outside(inside: &mut Command) -> String {
    text(&output(inside.args(["curl", "-sS", "--fail", "http://203.0.113.1:7000/"])))
}

#[test]
fn a_namespace_with_a_path_gets_a_network() {
    isolate(|| {
        let user = User::Root;
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        run(Command::new(peer("ip")).args(["netns", "add", "red"]));
        let enter = |program: &[&str]| {
            let mut command = user.peer("nsenter");
            command.arg("--net=/run/netns/red").args(program);
            command
        };
        let mut running = Background::start(&mut attach(user, &["/run/netns/red", "--json"]));
        let told = attached(&mut running);
        assert_eq!(told["target"], "/run/netns/red");
        assert_eq!(ask_outside(&mut enter(&[])), traffic::HTTP_BODY);
        running.signal("TERM");
        assert!(running.wait(SOON).success(), "{}", running.output());
        wait_for("the namespace as it was", SOON, || {
            let links = run(&mut enter(&["ip", "-o", "link"]));
            (!links.contains("tap0")).then_some(())
        });
    });
}

#[test]
fn an_ordinary_user_attaches_to_the_file_of_a_process() {
    isolate(|| {
        let user = User::Ordinary;
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let stranger = stranger(user);
        let file = format!("/proc/{}/ns/net", stranger.id());
        let mut running = Background::start(&mut attach(user, &[&file, "--json"]));
        attached(&mut running);
        assert_eq!(ask_outside(&mut inside(user, stranger.id(), &[])), traffic::HTTP_BODY);
    });
}

/// A container engine of an ordinary user has a user namespace of its own, in which it is user 0, and keeps network
/// namespaces there as files that nobody else sees.
#[test]
fn an_engine_in_a_user_namespace_of_its_own_attaches_to_a_file() {
    isolate(|| {
        let user = User::Ordinary;
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let folder = user.folder("engine");
        let script = "touch box && unshare --net=box true && \
            exec netyard attach ./box -t eth0 --mtu 65520 -p 7001:7000/loopback --control c.sock --json";
        let mut engine = user.peer("unshare");
        engine.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        let mut running = Background::start(engine.current_dir(&folder));
        let told = attached(&mut running);
        assert_eq!((&told["link"], &told["mtu"]), (&"eth0".into(), &65520.into()));
        let pid = running.id();
        let file = format!("/proc/{pid}/root{}/box", folder.display());
        let enter = |program: &[&str]| {
            let mut command = user.peer("nsenter");
            command.args(["--target", &pid.to_string(), "--user", "--preserve-credentials"]);
            command.arg(format!("--net={file}")).args(program);
            command
        };
        assert_eq!(ask_outside(&mut enter(&[])), traffic::HTTP_BODY);
        let serve = ["netyard-traffic", "serve", "127.0.0.1:7000"];
        let mut server = Background::start(&mut enter(&serve));
        server.wait_for_line("listening", SOON);
        wait_for_answer(7001);
        // From outside of its user namespace.
        let control = folder.join("c.sock");
        let mut netyard = user.command("netyard");
        netyard.arg("-y").arg(&control).args(["forward", "add", "eth0", "7002:7000/loopback"]);
        run(&mut netyard);
        wait_for_answer(7002);
        running.signal("TERM");
        assert!(running.wait(SOON).success(), "{}", running.output());
        assert!(!control.exists());
        fs::remove_dir_all(&folder).unwrap();
    });
}

/// The steps that the guide gives to container engines, as they stand there.
fn recipe() -> String {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/commands.md");
    let guide = fs::read_to_string(guide).unwrap();
    let (_, behind) = guide.split_once("calls it so:\n\n```\n").unwrap();
    let (steps, _) = behind.split_once("```").unwrap();
    // The last one needs a program that is no part of this.
    steps.lines().filter(|line| !line.starts_with("jq ")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_recipe_of_the_guide_serves_an_engine() {
    isolate(|| {
        let user = User::Ordinary;
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let stranger = stranger(user);
        let (process, pid) = (stranger.id(), stranger.id().to_string());
        let folder = user.folder("recipe");
        // What follows the ready descriptor finds everything there, without waiting.
        let script = format!(
            "set -e\npid=$0\n{}nsenter --target $pid --user --net --preserve-credentials \
             curl -sS --fail http://203.0.113.1:7000/\n",
            recipe()
        );
        let mut shell = user.peer("bash");
        let said = run(shell.args(["-c", &script, &pid]).current_dir(&folder));
        assert_eq!(said, traffic::HTTP_BODY);
        let told: Value =
            fs::read_to_string(folder.join("attached.json")).unwrap().parse().unwrap();
        assert_eq!(told["gateways"].as_array().unwrap().len(), 2);
        // It ends with the shell.
        wait_for("the namespace as it was", SOON, || {
            (!links(user, process).contains("tap0")).then_some(())
        });
        fs::remove_dir_all(&folder).unwrap();
    });
}

#[test]
fn the_network_of_a_namespace_is_as_it_is_asked_for() {
    isolate(|| {
        let user = User::Ordinary;
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let stranger = stranger(user);
        let (process, pid) = (stranger.id(), stranger.id().to_string());
        let flags = "--network lab --mtu 9000 --subnet6 fd00:9::/64 --dns 203.0.113.1 --delay 1ms --rate 50mbit --json";
        let flags: Vec<_> = [pid.as_str()].into_iter().chain(flags.split(' ')).collect();
        let mut running = Background::start(&mut attach(user, &flags));
        let told = attached(&mut running);
        assert_eq!(told["mtu"], 9000);
        assert!(told["gateways"][1].as_str().unwrap().starts_with("fd00:9::"), "{told}");
        assert!(within(user, process, &["ip", "link", "show", "tap0"]).contains("mtu 9000"));
        assert_eq!(ask_outside(&mut inside(user, process, &[])), traffic::HTTP_BODY);
        let netyard = |arguments: &str| {
            let mut command = user.command("netyard");
            output(command.args(arguments.split(' ')))
        };
        let state: Value = String::from_utf8(netyard("network inspect lab --json").stdout)
            .unwrap()
            .parse()
            .unwrap();
        let config = &state["state"]["config"];
        assert_eq!((&config["mtu"], &config["subnet6"]), (&9000.into(), &"fd00:9::/64".into()));
        assert_eq!(config["dns"]["split"][0]["servers"][0], "203.0.113.1:53");
        // Who joins it as another network is told.
        for other in ["--mtu 1400", "--subnet6 fd00:8::/64"] {
            let done = netyard(&format!("run --network lab {other} true"));
            assert!(text(&done).contains("it runs already, and its"), "{}", text(&done));
        }
        // By a link that loses everything nothing is reached.
        let other = crate::stranger(user);
        let other_pid = other.id().to_string();
        let mut lossy =
            Background::start(&mut attach(user, &[&other_pid, "--loss", "1", "--json"]));
        let told = attached(&mut lossy);
        let gateway = told["gateways"][0].as_str().unwrap();
        let said = within(user, other.id(), &["ping", "-n", "-c", "1", "-W", "1", gateway]);
        assert!(said.contains(" 0 received"), "{said}");
        // What is for packets that are shaped cannot be spliced.
        let done = netyard(&format!("attach {pid} -t tap1 --rate 1mbit -p 7001/loopback"));
        assert_eq!(done.status.code(), Some(2), "{}", text(&done));
    });
}

#[test]
fn what_cannot_be_attached_to_is_named() {
    isolate(|| {
        let user = User::Ordinary;
        let refused = |arguments: &[&str], code: i32, part: &str| {
            let done = output(&mut attach(user, arguments));
            assert_eq!(done.status.code(), Some(code), "{arguments:?}: {}", text(&done));
            assert!(text(&done).contains(part), "{arguments:?}: {}", text(&done));
        };
        let stranger = stranger(user);
        let pid = stranger.id().to_string();
        within(user, stranger.id(), &["ip", "tuntap", "add", "mine", "mode", "tap"]);
        let snapshot = before(user);
        refused(&["4000000"], 1, "no such process");
        refused(&["/run/none"], 1, "it is not there");
        refused(&["red"], 2, "neither a process id");
        refused(&[], 2, "PID|FILE");
        refused(&[&pid, "-b"], 2, "--bridged");
        refused(&[&pid, "--ready-fd", "77"], 2, "descriptor 77 of --ready-fd");
        refused(&[&pid, "-t", "lo"], 1, "there is a link lo in it already");
        refused(&[&pid, "-t", "mine"], 1, "there is a link mine in it already");
        refused(&[&pid, "--name", "a.b"], 2, "a.b is no name");
        refused(&[&pid, "--control", "/dev/null"], 1, "there is something of that name");
        refused(&["-t", "tap0", "--control", "c.sock"], 2, "--control");
        let mut own = Background::start(user.peer("sh").args(["-c", WAIT]));
        own.wait_for_line("there", SOON);
        refused(&[&own.id().to_string()], 2, "the same network namespace");
        if User::ids_are_real() {
            let other = crate::stranger(User::Root);
            refused(&[&other.id().to_string()], 3, "it belongs to somebody else");
        }
        drop(own);
        snapshot.assert_restored(SOON);
    });
}
