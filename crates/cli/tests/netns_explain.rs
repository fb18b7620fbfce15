//! What `explain` says, held against what other tools see and against what packets do.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use netyard_testbed::{Background, Outside, User, binary, isolate, output, peer, run};
use serde_json::Value;

use crate::stage::{SOON, Stage, number, serve_outside, text, who};

/// Two networks on bridges, a service that is published for everybody and one that is not.
const BRIDGES: &str = r#"
[networks.lan]
mode = "bridge"
bridge = "br-lan"
subnet = "192.168.77.0/24"

[networks.other]
mode = "bridge"
subnet = "192.168.78.0/24"

[instances.web]
run = ["netyard-whoami", "-a", "::", "-p", "8080"]
count = 3
network = "lan"

[instances.stranger]
run = ["netyard-whoami", "-a", "127.0.0.1", "-p", "8080"]
network = "other"
forwards = ["0.0.0.0:9000:8080"]

[services.web]
instances = "web"
port = 8080
publish = "127.0.0.1:8080"
check = { http = "/", every = "1h" }

[services.open]
instances = "web"
port = 8080
publish = "0.0.0.0:8081"
check = { http = "/", every = "1h" }
"#;

/// Two daemons behind one service, in user mode.
const FRONT_PROXY: &str = include_str!("../../../examples/front-proxy/yard.toml");

/// One program that does nothing.
const ASLEEP: &str = "[networks.lan]\n[instances.sleeper]\nrun = [\"sleep\", \"infinity\"]\n";

fn ip_json(arguments: &[&str]) -> Value {
    run(Command::new(peer("ip")).args(["-j", "-d"]).args(arguments)).parse().unwrap()
}

/// The texts of an array.
fn texts<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    let all = value.as_array().unwrap_or_else(|| panic!("{value}"));
    all.iter().filter_map(|one| one[key].as_str()).collect()
}

/// Every rule that a path names, with the text beside it.
fn comments(path: &Value) -> Vec<String> {
    let hops = path["there"].as_array().unwrap().iter();
    let rules = hops.flat_map(|hop| hop["rules"].as_array().cloned().unwrap_or_default());
    rules.filter_map(|rule| rule["comment"].as_str().map(str::to_owned)).collect()
}

fn refusal(path: &Value) -> &str {
    path["outcome"]["refused"].as_str().unwrap_or_else(|| panic!("{path:#}"))
}

fn arrival(path: &Value) -> &str {
    path["outcome"]["arrives"].as_str().unwrap_or_else(|| panic!("{path:#}"))
}

#[test]
fn both_ends_of_each_pair_are_those_that_the_kernel_has() {
    isolate(|| {
        let _outside = Outside::new();
        let stage = Stage::up(User::Root, "yard", BRIDGES);
        for name in ["web-1", "stranger"] {
            let explained = stage.json(&["explain", name]);
            let plug = &explained[0]["plugs"][0];
            let port = plug["outside"]["name"].as_str().unwrap();
            let link = &ip_json(&["link", "show", port])[0];
            assert_eq!(plug["outside"]["index"], link["ifindex"]);
            assert_eq!(plug["outside"]["mac"], link["address"]);
            assert_eq!(plug["bridge"], link["master"]);
            let inside = stage.inside(name, &["ip", "-j", "-d", "link", "show", "eth0"]);
            let inside: Value = text(&inside).parse().unwrap();
            assert_eq!(plug["inside"]["index"], inside[0]["ifindex"]);
            assert_eq!(plug["inside"]["mac"], inside[0]["address"]);
            assert_eq!(inside[0]["link_index"], link["ifindex"], "one pair");
            let pid = number(&stage.instance(name)["pid"]);
            let namespace = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
            let expected = format!("net:[{}]", plug["namespace"]);
            assert_eq!(namespace.to_str(), Some(expected.as_str()));
            // The same in words.
            let said = stage.say(&["explain", name]);
            for part in [port, "eth0", &expected, "veth pair", "gateway"] {
                assert!(said.contains(part), "{part} in {said}");
            }
        }
        let bridge = stage.say(&["explain", "br-lan"]);
        for part in
            ["Why does the bridge have addresses?", "192.168.77.1/24", "masquerade", "web-3"]
        {
            assert!(bridge.contains(part), "{part} in {bridge}");
        }
        // Each rule of the network's tables, as nft has it.
        let rules = stage.json(&["explain", "lan"])[0]["rules"].clone();
        let listed = run(Command::new(peer("nft")).args([
            "-a",
            "list",
            "table",
            "inet",
            "netyard-yard.lan",
        ]));
        let handles: Vec<_> = rules
            .as_array()
            .unwrap()
            .iter()
            .filter(|rule| rule["table"] == "inet netyard-yard.lan")
            .map(|rule| format!("# handle {}\n", rule["handle"]))
            .collect();
        assert!(handles.len() > 40 && handles.iter().all(|it| listed.contains(it)), "{listed}");
        let unknown = output(&mut stage.netyard(&["explain", "nobody"]));
        assert_eq!(unknown.status.code(), Some(1));
        assert!(text(&unknown).contains("choose one of web-1"), "{}", text(&unknown));
        let wrong = output(&mut stage.netyard(&["explain", "web-1", "web:x"]));
        assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong));
    });
}

#[test]
fn paths_over_bridges_are_those_that_packets_take() {
    isolate(|| {
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let stage = Stage::up(User::Root, "yard", BRIDGES);
        let follow = |ends: &[&str]| {
            let path = stage.json(&[&["explain"], ends].concat());
            assert!(path.get("doubts").is_none(), "{path:#}");
            path
        };
        // The next turn, whoever asks and by whichever address, is who answers.
        let web: SocketAddr = "192.168.77.253:8080".parse().unwrap();
        let published: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        for (ends, asked) in [
            (["host", "web"], web),
            (["host", "127.0.0.1:8080"], published),
            (["host", "web"], web),
            (["host", "web"], web),
        ] {
            let path = follow(&ends);
            let next = arrival(&path);
            assert_eq!(path["turns"].as_array().unwrap().len(), 3);
            let id = who(asked).unwrap();
            assert!(stage.say(&["logs", next]).contains(&id), "{next} was to answer {ends:?}");
        }
        let path = follow(&["web-1", "web"]);
        let rewritten: Vec<_> = path["there"].as_array().unwrap().iter().collect();
        let sources: Vec<_> = rewritten
            .iter()
            .filter(|hop| hop["rewritten"] == true)
            .map(|hop| hop["packet"]["source"].as_str().unwrap().split(':').next().unwrap())
            .collect();
        assert_eq!(sources, ["192.168.77.2", "192.168.77.1"], "by the turn, then the gateway");
        let answer = path["back"].as_array().unwrap().last().unwrap();
        assert_eq!(answer["packet"]["source"], "192.168.77.253:8080");

        // Out: masqueraded, and the answer is known.
        let path = follow(&["web-1", "203.0.113.1:7000"]);
        assert_eq!(arrival(&path), "outside");
        let last = path["there"].as_array().unwrap().last().unwrap();
        assert_eq!(last["packet"]["source"], format!("{}:40000", Outside::HOST4));
        let asked = stage.inside("web-1", &["curl", "-sS", "--fail", "http://203.0.113.1:7000/"]);
        assert!(asked.status.success(), "{}", text(&asked));
        let path = follow(&["-6", "web-1", "outside"]);
        assert!(comments(&path).iter().any(|it| it.starts_with("what leaves has the address")));

        // In: what is published arrives, what is not does not.
        let path = follow(&["outside", "198.51.100.1:8081"]);
        assert!(arrival(&path).starts_with("web-"), "{path:#}");
        let asked = output(outside.command(peer("curl")).args([
            "-sS",
            "--fail",
            "http://198.51.100.1:8081/",
        ]));
        assert!(text(&asked).contains("My id is"), "{}", text(&asked));
        let path = follow(&["outside", "192.168.77.2:8080"]);
        assert!(refusal(&path).contains("nobody outside knows these addresses"), "{path:#}");
        let path = follow(&["outside", "198.51.100.1:9000"]);
        assert!(refusal(&path).contains("listens on 127.0.0.1:8080 only"), "{path:#}");

        // Refused, each by its rule.
        for (ends, why, asked) in [
            (["web-1", "stranger"], "networks are closed to each other", "192.168.78.2:8080"),
            (["web-1", "host:22"], "this machine is closed to instances", "192.168.77.1:22"),
            (["web-1", "169.254.169.254:80"], "metadata", "169.254.169.254:80"),
            (["web-1", "web-2:81"], "nothing listens on port 81 of web-2", "192.168.77.3:81"),
        ] {
            let path = follow(&ends);
            assert!(refusal(&path).contains(why), "{ends:?}: {path:#}");
            let url = format!("http://{asked}/");
            let done = stage.inside("web-1", &["curl", "-sS", "-m", "5", &url]);
            assert!(!done.status.success(), "{ends:?}: {}", text(&done));
        }
        // When nobody is left, by the rule that says so.
        stage.say(&["stop", "web-1", "web-2", "web-3"]);
        let path = follow(&["outside", "198.51.100.1:8081"]);
        assert!(refusal(&path).contains("no instance of this service is healthy"), "{path:#}");
    });
}

/// In user mode the same, by what the network process does.
fn user_mode(user: User) {
    let _outside = Outside::new();
    let stage = Stage::up(user, "front-proxy", FRONT_PROXY);
    let follow = |ends: &[&str]| stage.json(&[&["explain"], ends].concat());
    let process = format!("process {}", stage.network_pid());
    let said = stage.say(&["explain", "daemon1"]);
    for part in ["TAP device", &process, "no link of this machine", "eth0"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let plug = &stage.json(&["explain", "daemon1"])[0]["plugs"][0];
    let inside = stage.inside("daemon1", &["ip", "-j", "link", "show", "eth0"]);
    let inside: Value = text(&inside).parse().unwrap();
    assert_eq!(plug["inside"]["mac"], inside[0]["address"]);
    assert!(plug["outside"].is_null(), "nothing of it is on this machine");

    // What a program writes into its files does not steer whoever reads the explanation.
    let script = r"printf 'search \033[2Jfaked\007\n' >> /etc/resolv.conf";
    let written = stage.inside("daemon1", &["sh", "-c", script]);
    assert!(written.status.success(), "{}", text(&written));
    let said = stage.say(&["explain", "daemon1"]);
    assert!(said.contains("[2Jfaked"), "{said}");
    assert!(!said.contains(|it: char| it.is_control() && it != '\n'), "{said:?}");

    let path = follow(&["host", "127.0.0.1:10000"]);
    assert_eq!(path["turns"], serde_json::json!(["daemon1", "daemon2"]));
    assert!(texts(&path["there"], "text").iter().any(|it| it.contains("splices")), "{path:#}");
    let path = follow(&["daemon1", "web"]);
    assert!(arrival(&path).starts_with("daemon"), "{path:#}");
    assert!(path.get("doubts").is_none(), "{path:#}");
    let path = follow(&["daemon1", "outside"]);
    let hops = path["there"].as_array().unwrap();
    assert_eq!(hops.last().unwrap()["packet"]["source"], format!("{}:40000", Outside::HOST4));
    assert!(texts(&path["there"], "at").iter().any(|at| at.contains(&process)), "{path:#}");
    for (to, why) in [
        ("host:22", "the policy's rule host-address"),
        ("127.0.0.1:22", "nothing listens on port 22"),
        ("169.254.169.254:80", "the policy's rule link-local"),
        ("203.0.113.1", "net.ipv4.ping_group_range allows"),
        ("192.168.127.77:80", "nobody on front has"),
        ("web:81", "the service is port 8080/tcp"),
    ] {
        let path = follow(&["daemon1", to]);
        assert!(refusal(&path).starts_with(why), "{to}: {path:#}");
    }
    let path = follow(&["outside", "daemon1:8080"]);
    assert!(refusal(&path).contains("no link into front"), "{path:#}");

    let drawing = stage.folder.join("yard.svg");
    stage.say(&["explain", "--svg", "yard.svg"]);
    let svg = fs::read_to_string(&drawing).unwrap();
    let printed = stage.say(&["explain", "--svg"]);
    assert_eq!(svg, printed);
    // Nothing else is lost for a drawing: a new one replaces an old one only.
    stage.say(&["explain", "--svg", "yard.svg"]);
    let file = fs::read_to_string(stage.folder.join("yard.toml")).unwrap();
    let refused = output(&mut stage.netyard(&["explain", "--svg", "yard.toml"]));
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains("that is no drawing"), "{}", text(&refused));
    assert_eq!(fs::read_to_string(stage.folder.join("yard.toml")).unwrap(), file);
    let refused = output(&mut stage.netyard(&["explain", "--json", "--svg", "new.svg"]));
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(!stage.folder.join("new.svg").exists());
    for part in ["<svg", "192.168.127.0/24", "127.0.0.1:10000", "eth0 192.168.127.2", "daemon2"] {
        assert!(svg.contains(part), "{part} in {svg}");
    }
}

#[test]
fn user_mode_is_explained_by_what_the_network_process_does() {
    isolate(|| user_mode(User::Root));
}

#[test]
fn an_ordinary_user_gets_the_same_explanations() {
    isolate(|| user_mode(User::Ordinary));
}

/// Services that take turns by request: the network process speaks with both sides.
fn by_request(mode: &str) {
    let _outside = Outside::new();
    let yard = format!(
        r#"
[networks.front]
mode = "{mode}"
subnet = "192.168.127.0/24"

[instances.web]
run = ["netyard-whoami", "-a", "0.0.0.0", "-p", "8080"]
count = 2

[services.web]
instances = "web"
port = 8080
publish = "127.0.0.1:10000"
policy = "per-request"
check = {{ http = "/", every = "1s", timeout = "20s" }}
"#
    );
    let stage = Stage::up(User::Root, "yard", &yard);
    let process = format!("process {}", stage.network_pid());
    let ways = [["host", "127.0.0.1:10000"], ["web-1", "web"], ["host", "web"]];
    // A network in user mode has its virtual addresses for itself.
    let ways = &ways[..if mode == "bridge" { 3 } else { 2 }];
    for ends in ways {
        let path = stage.json(&[&["explain"], &ends[..]].concat());
        let who = if mode == "bridge" { "network front" } else { "web-" };
        assert!(arrival(&path).starts_with(who), "{ends:?}: {path:#}");
        assert_eq!(path["turns"], serde_json::json!(["web-1", "web-2"]), "{ends:?}: {path:#}");
        let hops = path["there"].as_array().unwrap();
        let hop = hops.iter().find(|hop| hop["text"].as_str().unwrap().contains("speaks HTTP"));
        let hop = hop.unwrap_or_else(|| panic!("{ends:?}: {path:#}"));
        assert!(hop["at"].as_str().unwrap().contains(&process), "{ends:?}: {path:#}");
        assert!(!path.to_string().contains("carries the bytes"), "{ends:?}: {path:#}");
    }
    stage.say(&["stop", "web-1"]);
    for ends in ways {
        let path = stage.json(&[&["explain"], &ends[..]].concat());
        assert_eq!(path["turns"], serde_json::json!(["web-2"]), "{ends:?}: {path:#}");
    }
    stage.say(&["stop", "web-2"]);
    for ends in ways {
        let path = stage.json(&[&["explain"], &ends[..]].concat());
        assert!(refusal(&path).contains("healthy"), "{ends:?}: {path:#}");
    }
}

#[test]
fn turns_by_request_are_explained_in_user_mode() {
    isolate(|| by_request("user"));
}

#[test]
fn turns_by_request_are_explained_on_bridges() {
    isolate(|| by_request("bridge"));
}

#[test]
fn nobody_looks_into_the_instances_of_others() {
    isolate(|| {
        if !User::ids_are_real() {
            // There is nobody else to be looked at: root's run of this test is the one that counts.
            return;
        }
        let stage = Stage::up(User::Root, "front-proxy", FRONT_PROXY);
        let init = number(&stage.instance("daemon1")["init_pid"]).to_string();
        let keeper = stage.keeper_pid().to_string();
        let look = ["instance-look", &init, &keeper];
        run(&mut stage.netyard(&look));
        // Not even where the program's file may enter everything.
        let folder = User::Ordinary.folder("granted");
        let program = folder.join("netyard");
        fs::copy(binary("netyard"), &program).unwrap();
        run(Command::new(peer("setcap")).arg("cap_sys_admin,cap_sys_ptrace=ep").arg(&program));
        let ordinary = |arguments: &[&str]| {
            let mut command = Command::new(peer("setpriv"));
            command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
            command.arg(&program).args(arguments).current_dir(&folder);
            command.env("XDG_RUNTIME_DIR", "/run/user/1000");
            command
        };
        let refused = output(&mut ordinary(&look));
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{}", text(&refused));
        assert!(text(&refused).contains("is another user's"), "{}", text(&refused));
        stage.say(&["down"]);
        // Into one's own as before, and into nothing else that has got the number.
        fs::write(folder.join("yard.toml"), ASLEEP).unwrap();
        run(&mut ordinary(&["up", "-d", "--wait"]));
        let said = run(&mut ordinary(&["explain", "sleeper", "--json"]));
        let explained: Value = said.parse().unwrap();
        assert!(explained[0]["plugs"][0]["inside"].is_object(), "{said}");
        let mut stranger = Command::new(peer("setpriv"));
        stranger.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
        stranger.args(["sh", "-c", "echo there; exec cat"]);
        let mut stranger = Background::start(&mut stranger);
        stranger.wait_for_line("there", SOON);
        let refused =
            output(&mut ordinary(&["instance-look", &stranger.id().to_string(), &keeper]));
        assert!(!refused.status.success(), "{}", text(&refused));
        assert!(text(&refused).contains("is not of keeper"), "{}", text(&refused));
        run(&mut ordinary(&["down"]));
    });
}

#[test]
fn networks_without_a_yard_are_explained_too() {
    isolate(|| {
        let _outside = Outside::new();
        let netyard = |line: &str| {
            let mut command = User::Root.command("netyard");
            run(command.args(line.split(' ')))
        };
        netyard("network create lab -b --bridgename br7 --subnet 192.168.33.1/24");
        for name in ["lab", "br7"] {
            let said = netyard(&format!("explain {name}"));
            for part in ["network lab", "192.168.33.1/24", "the bridge br7", "masquerade"] {
                assert!(said.contains(part), "{part} in {said}");
            }
        }
        netyard("network rm lab");
    });
}
