//! What instances may reach outside, who may reach them, and which of them reach each other: rules by address and by
//! name, changed while they run.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use netyard_testbed::{
    Background, Outside, User, binary, isolate, output, peer, run, set_resolver, traffic, wait_for,
};

use crate::stage::{SOON, Stage, allow_pings, serve_outside, text};

/// curl: no such name, and could not connect.
const NO_NAME: Option<i32> = Some(6);
const NO_CONNECTION: Option<i32> = Some(7);

/// A site of which only the name is known, and pings of one instance.
const RULES: &str = r#"
    { allow = "*.example.org", protocol = "tcp", ports = [7000], name = "site" },
    { allow = "2001:db8:2::/64", from = "web", protocol = "icmp" },
"#;

fn yard(rules: &str) -> String {
    format!(
        r#"
[networks.lan]
egress = "deny"
rules = [{rules}]

[instances.web]
run = ["sleep", "infinity"]

[instances.other]
run = ["sleep", "infinity"]
"#
    )
}

/// Whatever is asked, the answer is the outside.
fn resolver(outside: &Outside) -> Background {
    let at = SocketAddr::new(Outside::ADDRESS4.into(), 53).to_string();
    let mut command = outside.command(binary("netyard-traffic"));
    command.args(["dns", &at]);
    for address in Outside::ADDRESSES {
        command.args(["--answers", &address.to_string()]);
    }
    let mut server = Background::start(&mut command);
    server.wait_for_line("listening", SOON);
    set_resolver(Outside::ADDRESS4.into());
    server
}

/// How curl ends in an instance, and what it prints.
fn curl(stage: &Stage, instance: &str, host: &str) -> (Option<i32>, String) {
    let url = format!("http://{host}:7000/");
    let done = stage.inside(instance, &["curl", "-sS", "-m", "20", &url]);
    (done.status.code(), text(&done))
}

/// Connects, says so, and says when the connection is over.
const STAY: &str = "import socket, sys
stream = socket.create_connection((sys.argv[1], 7000))
print('open', flush=True)
try: stream.recv(1)
except OSError as error: print('ended', error.errno, flush=True)";

#[test]
fn what_rules_do_not_allow_is_not_reached_and_changes_count_at_once() {
    isolate(|| {
        let outside = Outside::new();
        let (_server, _resolver) = (serve_outside(&outside), resolver(&outside));
        allow_pings();
        let [address, _] = Outside::ADDRESSES.map(|address| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        });
        for user in User::ALL {
            let stage = Stage::up(user, "fenced", &yard(RULES));
            // Nobody knows whose address it is, until its name was asked for.
            assert_eq!(curl(&stage, "web", &address).0, NO_CONNECTION);
            let reached = curl(&stage, "web", "www.example.org");
            assert_eq!(reached, (Some(0), traffic::HTTP_BODY.to_owned()));
            assert_eq!(curl(&stage, "web", &address).0, Some(0));
            assert_eq!(curl(&stage, "other", &address).0, NO_CONNECTION);
            // A name that leads nowhere is not even asked for.
            assert_eq!(curl(&stage, "other", "www.example.net").0, NO_NAME);
            let datagrams = ["netyard-traffic", "datagrams", "203.0.113.1:7000", "--count", "1"];
            let refused = stage.inside("web", &[&datagrams[..], &["--size", "1"]].concat());
            assert!(!refused.status.success(), "{}", text(&refused));
            for (instance, pings) in [("web", true), ("other", false)] {
                let ping = ["ping", "-c", "1", "-W", "10", "2001:db8:2::1"];
                let done = stage.inside(instance, &ping);
                assert_eq!(done.status.success(), pings, "{}", text(&done));
            }
            told(&stage, &address);
            changed(&stage, &address);
            stage.say(&["down"]);
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

/// What the command says of the rules.
fn told(stage: &Stage, address: &str) {
    let rules = stage.json(&["policy", "ls"]);
    let row = |name: &str| {
        let rows = rules.as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).cloned().unwrap_or_else(|| panic!("{rules}"))
    };
    let site = row("site");
    assert_eq!((&site["verdict"], &site["to"][0]), (&"allow".into(), &"*.example.org".into()));
    assert!(site["decided"].as_u64() >= Some(2), "{site}");
    assert!(row("otherwise")["decided"].as_u64() >= Some(3), "{rules}");
    assert_eq!(row("rule-2")["from"][0], "web");
    let test = |instance: &str, to: &str| {
        let tested = stage.json(&["policy", "test", instance, to]);
        (tested["allowed"].as_bool().unwrap(), tested["rule"].as_str().unwrap().to_owned())
    };
    let to = format!("{address}:7000");
    assert_eq!(test("web", &to), (true, "fenced/site".into()));
    assert_eq!(test("other", &to), (false, "fenced/otherwise".into()));
    assert_eq!(test("web", &format!("{address}:7001")), (false, "fenced/otherwise".into()));
    assert_eq!(test("other", "a.b.example.org:7000"), (true, "fenced/site".into()));
    assert_eq!(test("other", "example.org:7000"), (false, "fenced/otherwise".into()));
    assert_eq!(test("web", "2001:db8:2::9"), (true, "fenced/rule-2".into()));
    assert_eq!(test("web", "169.254.169.254:80"), (false, "link-local".into()));
    let unknown = output(&mut stage.netyard(&["policy", "test", "nobody", &to]));
    assert!(text(&unknown).contains("there are other, web"), "{}", text(&unknown));
}

/// Rules that change end what they do not allow, and nothing else; a network process that comes for a killed
/// one has them.
fn changed(stage: &Stage, address: &str) {
    let program = stage.pid("web");
    let stay = |instance: &str, host: &str| {
        let words = ["exec", instance, "--", "python3", "-c", STAY, host];
        let mut stay = Background::start(&mut stage.netyard(&words));
        stay.wait_for_line("open", SOON);
        stay
    };
    let mut by_name = stay("web", "www.example.org");
    let only = RULES.replace("*.example.org", "203.0.113.1");
    stage.write(&yard(&only));
    let said = text(&output(&mut stage.netyard(&["up", "-d"])));
    assert!(said.contains("~ network lan: rules"), "{said}");
    // That connection may have been one over IPv6, and this one is not.
    let mut by_address = stay("other", "203.0.113.1");
    assert_eq!(curl(stage, "other", "www.example.net").0, Some(0), "it may stand for that address");
    stage.write(&yard(""));
    stage.say(&["up", "-d"]);
    for stay in [&mut by_name, &mut by_address] {
        stay.wait_for_line("ended", SOON);
    }
    assert_eq!(curl(stage, "other", address).0, NO_CONNECTION);
    assert_eq!(stage.pid("web"), program, "instances run on");
    stage.write(&yard(RULES));
    stage.say(&["up", "-d"]);
    stage.kill_network();
    wait_for("rules and instances to be back", SOON, || {
        (curl(stage, "web", "www.example.org").0 == Some(0)).then_some(())
    });
    assert_eq!(curl(stage, "other", address).0, NO_CONNECTION);
}

#[test]
fn one_program_is_fenced_in_by_flags() {
    isolate(|| {
        let outside = Outside::new();
        let (_server, _resolver) = (serve_outside(&outside), resolver(&outside));
        let curl = |user: User, flags: &[&str], host: &str| {
            let url = format!("http://{host}:7000/");
            let words = [&["run"], flags, &["--", "curl", "-sS", "-m", "20", &url]].concat();
            output(user.command("netyard").args(words)).status.code()
        };
        for user in User::ALL {
            let allow = ["--allow", "*.example.org"];
            assert_eq!(curl(user, &allow, "www.example.org"), Some(0));
            assert_eq!(curl(user, &allow, "203.0.113.1"), NO_CONNECTION);
            assert_eq!(curl(user, &allow, "www.example.net"), NO_NAME);
            let deny = ["--deny", "203.0.113.0/24", "--deny", "2001:db8:2::/48"];
            assert_eq!(curl(user, &deny, "203.0.113.1"), NO_CONNECTION);
            assert_eq!(curl(user, &deny, "www.example.org"), NO_CONNECTION);
            let but_one = ["--deny", "2001:db8:2::/48", "--allow", "203.0.113.1"];
            assert_eq!(curl(user, &but_one, "203.0.113.1"), Some(0));
        }
        // By the rules of one nobody else is bound.
        let mut alone = User::Root.command("netyard");
        alone.args(["run", "--network", "lab", "--name", "alone", "--allow", "192.0.2.1", "--"]);
        let _alone = Background::start(alone.args(["sleep", "infinity"]));
        wait_for("the network", SOON, || {
            let listed = output(User::Root.command("netyard").args(["network", "inspect", "lab"]));
            text(&listed).contains("alone").then_some(())
        });
        let beside = ["run", "--network", "lab", "--", "curl", "-sS", "http://203.0.113.1:7000/"];
        run(User::Root.command("netyard").args(beside));
        let mut ls = User::Root.command("netyard");
        let listed = run(ls.args(["policy", "ls", "--network", "lab"]));
        assert!(listed.contains("192.0.2.1"), "{listed}");
        let wrong =
            output(User::Root.command("netyard").args(["run", "--allow", "10.1.1.1/8", "x"]));
        assert!(text(&wrong).contains("write \"10.0.0.0/8\""), "{}", text(&wrong));
        let wrong = output(User::Root.command("netyard").args(["run", "--deny", "instance:db"]));
        assert!(text(&wrong).contains("stand in a yard file"), "{}", text(&wrong));
    });
}

#[test]
fn a_namespace_that_is_attached_is_fenced_in() {
    isolate(|| {
        let outside = Outside::new();
        let _server = serve_outside(&outside);
        let mut command = std::process::Command::new(peer("unshare"));
        let script = "echo here; exec sleep infinity";
        command.args(["-Urn", "sh", "-c", script]);
        let mut program = Background::start(&mut command);
        program.wait_for_line("here", SOON);
        let id = program.id().to_string();
        let mut attach = User::Root.command("netyard");
        let allow = ["--allow", "2001:db8:2::1", "--json"];
        let mut attached = Background::start(attach.args(["attach", &id]).args(allow));
        attached.wait_for_line("gateways", SOON);
        let curl = |host: &str| {
            let url = format!("http://{host}:7000/");
            let mut enter = std::process::Command::new(peer("nsenter"));
            enter.args(["-t", &id, "-U", "-n", "--preserve-credentials"]);
            output(enter.arg(peer("curl")).args(["-sS", "-m", "20", &url])).status.code()
        };
        assert_eq!(curl("[2001:db8:2::1]"), Some(0));
        assert_eq!(curl("203.0.113.1"), NO_CONNECTION);
    });
}

/// `web` reaches one port of `db`, nobody else anything of it; clients of this machine do.
fn apart(rules: &str) -> String {
    format!(
        r#"
[networks.lan]
rules = [{rules}]

[instances.web]
run = ["sleep", "infinity"]

[instances.other]
run = ["sleep", "infinity"]

[instances.db]
run = ["netyard-traffic", "serve", "[::]:7000"]
forwards = ["0.0.0.0:8100:7000", "0.0.0.0:8100:7000/udp"]

[services.front]
instances = "db"
port = 7000
"#
    )
}

const APART: &str = r#"
    { allow = "instance:db", from = "web", protocol = "tcp", ports = [7000], name = "sql" },
    { deny = "instance:db", name = "closed" },
    { allow = "127.0.0.0/8", direction = "in", to = "db", name = "here" },
    { deny = "*", direction = "in" },
"#;

/// The same without those who were let through.
const CLOSED: &str = r#"
    { deny = "instance:db", name = "closed" },
    { deny = "*", direction = "in" },
"#;

const FORWARD: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8100);

#[test]
fn instances_reach_each_other_as_the_rules_say() {
    isolate(|| {
        for user in User::ALL {
            let stage = Stage::up(user, "apart", &apart(APART));
            wait_for("the server", SOON, || (curl(&stage, "web", "db").0 == Some(0)).then_some(()));
            let plug = stage.json(&["inspect"])["networks"][0]["state"]["plugs"].clone();
            let db = plug.as_array().unwrap().iter().find(|it| it["name"] == "db").unwrap().clone();
            let [v4, v6] = [0, 1].map(|at| db["addresses"][at].as_str().unwrap().to_owned());
            // By each address and by the service, and no other protocol.
            for to in ["db", "front", &v4, &format!("[{v6}]")] {
                assert_eq!(curl(&stage, "web", to).0, Some(0), "{to}");
                assert_eq!(curl(&stage, "other", to).0, NO_CONNECTION, "{to}");
            }
            let datagrams = ["netyard-traffic", "datagrams", &format!("{v4}:7000")];
            let refused = stage.inside("web", &[&datagrams[..], &["--count", "1"]].concat());
            assert!(!refused.status.success(), "{}", text(&refused));
            let ping = |from: &str, to: &str| {
                let done = stage.inside(from, &["ping", "-c", "1", "-W", "10", to]);
                done.status.success()
            };
            assert!(!ping("web", &v4) && !ping("web", &v6));
            assert!(ping("db", "web") && ping("web", "other"));
            asked(&stage);
            // An open connection ends though neither end says anything.
            let words = ["exec", "web", "--", "python3", "-c", STAY, "db"];
            let mut stay = Background::start(&mut stage.netyard(&words));
            stay.wait_for_line("open", SOON);
            stage.write(&apart(CLOSED));
            stage.say(&["up", "-d"]);
            stay.wait_for_line("ended", SOON);
            assert_eq!(curl(&stage, "web", "db").0, NO_CONNECTION);
            stage.say(&["down"]);
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

/// What the command says of rules between instances and about clients.
fn asked(stage: &Stage) {
    let test = |from: &str, to: &str| {
        let tested = stage.json(&["policy", "test", from, to]);
        (tested["allowed"].as_bool().unwrap(), tested["rule"].as_str().unwrap().to_owned())
    };
    assert_eq!(test("web", "db:7000"), (true, "apart/sql".into()));
    assert_eq!(test("web", "db:7000/udp"), (false, "apart/closed".into()));
    assert_eq!(test("other", "db:7000"), (false, "apart/closed".into()));
    assert_eq!(test("db", "other:22"), (true, "no-rule".into()));
    assert_eq!(test("127.0.0.1", "db:7000"), (true, "apart/here".into()));
    assert_eq!(test("2001:db8::9", "db:7000"), (false, "apart/rule-4".into()));
    // Names with the zone are those of instances, too.
    assert_eq!(test("web.lan", "db.lan:7000"), (true, "apart/sql".into()));
    assert_eq!(test("other.LAN", "db:7000"), (false, "apart/closed".into()));
    assert_eq!(test("127.0.0.1", "db.lan:7000"), (true, "apart/here".into()));
    // Of a service its instances are asked about, at its port.
    let addresses = stage.json(&["service", "ls"])[0]["addresses"].clone();
    for to in ["front", "front:7000", "front.lan", addresses[0].as_str().unwrap()] {
        assert_eq!(test("web", to), (true, "apart/sql".into()), "{to}");
        assert_eq!(test("other.lan", to), (false, "apart/closed".into()), "{to}");
    }
    assert_eq!(test("2001:db8::9", "front.lan"), (false, "apart/rule-4".into()));
    let tested = stage.json(&["policy", "test", "other", "front"]);
    let [at] = tested["instances"].as_array().unwrap().as_slice() else { panic!("{tested}") };
    assert_eq!((&at["instance"], &at["allowed"]), (&"db".into(), &false.into()));
    assert_eq!(at["rule"], "apart/closed");
    let told = stage.say(&["policy", "test", "web.lan", "front.lan"]);
    assert!(told.contains("allow") && told.contains("at db, by apart/sql"), "{told}");
    for (to, why) in [
        ("front:80", "service front is at port 7000/tcp"),
        ("nobody.lan:80", "there are db, front, other, web"),
    ] {
        let done = output(&mut stage.netyard(&["policy", "test", "web", to]));
        assert!(!done.status.success() && text(&done).contains(why), "{}", text(&done));
    }
    let rules = stage.json(&["policy", "ls"]);
    let row = |name: &str| {
        let rows = rules.as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).cloned().unwrap_or_else(|| panic!("{rules}"))
    };
    let (sql, here) = (row("sql"), row("here"));
    assert_eq!((&sql["to"][0], &sql["from"][0]), (&"instance:db".into(), &"web".into()));
    assert_eq!((&here["direction"], &here["to"][0]), (&"in".into(), &"db".into()));
    assert!(sql["decided"].as_u64() >= Some(4), "{sql}");
    assert!(row("closed")["decided"].as_u64() >= Some(4), "{rules}");
    let told = text(&output(&mut stage.netyard(&["explain", "other", "db:7000"])));
    assert!(told.contains("apart/closed"), "{told}");
}

#[test]
fn clients_come_in_as_the_rules_say() {
    isolate(|| {
        let outside = Outside::new();
        for user in User::ALL {
            let stage = Stage::up(user, "apart", &apart(APART));
            let get = |at: SocketAddr| {
                let mut stream = TcpStream::connect(at).ok()?;
                stream.set_read_timeout(Some(SOON)).ok()?;
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok()?;
                answer.contains(traffic::HTTP_BODY).then_some(())
            };
            wait_for("the server", SOON, || get(FORWARD));
            let at = SocketAddr::new(Outside::HOST4.into(), 8100).to_string();
            let url = format!("http://{at}/");
            let curl = output(outside.command(peer("curl")).args(["-sS", "-m", "20", &url]));
            assert!(!curl.status.success(), "{}", text(&curl));
            let send = format!("echo > /dev/udp/{}/8100", Outside::HOST4);
            run(outside.command(peer("bash")).args(["-c", &send]));
            wait_for("the datagram to be dropped", SOON, || {
                let drops = stage.json(&["inspect"])["networks"][0]["state"]["drops"].clone();
                (drops["udp-policy"].as_u64() >= Some(1)).then_some(())
            });
            // Who is in goes when the rules say so.
            let mut stay = TcpStream::connect(FORWARD).unwrap();
            stay.set_read_timeout(Some(SOON)).unwrap();
            wait_for("the connection to be led in", SOON, || {
                let flows = stage.json(&["flows"]);
                let open =
                    |flow: &&serde_json::Value| flow["state"] == "open" && flow["instance"] == "db";
                flows.as_array().unwrap().iter().find(open).map(drop)
            });
            stage.write(&apart(CLOSED));
            stage.say(&["up", "-d"]);
            let ended = stay.read(&mut [0]).unwrap_err();
            assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
            assert_eq!(get(FORWARD), None);
            let counted = stage.json(&["inspect"])["networks"][0]["state"]["policy"].clone();
            assert!(counted["apart/rule-4"].as_u64() >= Some(2), "{counted}");
            stage.say(&["down"]);
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}
