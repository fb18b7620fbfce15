//! Networks on bridges of the host, as the commands make them.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "stage/bridge.rs"]
mod bridge;
mod stage;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use netyard_testbed::{Background, Outside, User, binary, isolate, output, peer, run, wait_for};
use serde_json::Value;

use crate::bridge::{at, ip, ip_json, machine, netyard, refused, restored};
use crate::stage::{PUBLISHED, SOON, Stage, number, serve_outside, signal, text, who};

/// The lab of red and blue over br1, completed with gateway and NAT.
const LAB: &str = include_str!("../../../examples/red-blue/yard.toml");

/// Three daemons behind one service.
fn hello(count: usize) -> String {
    format!(
        r#"
[networks.lan]
mode = "bridge"
subnet = "192.168.77.0/24"

[instances.web]
run = ["netyard-whoami", "-a", "::", "-p", "8080"]
count = {count}
restart = "no"

[instances.client]
run = ["sleep", "1000"]

[services.web]
instances = "web"
port = 8080
publish = "127.0.0.1:8080"
check = {{ http = "/", every = "100ms", timeout = "20s" }}
"#
    )
}

#[test]
fn a_unix_socket_of_the_host_leads_to_an_instance() {
    isolate(|| {
        let (_outside, before) = machine();
        let yard = "[networks.lan]\nmode = \"bridge\"\nsubnet = \"192.168.77.0/24\"\n[instances.web]\n\
                    run = [\"netyard-whoami\", \"-a\", \"0.0.0.0\", \"-p\", \"8080\"]\n\
                    forwards = [\"unix:web.sock:8080/mode=660\"]\n";
        let stage = Stage::up(User::Root, "socket", yard);
        let path = stage.folder.join("web.sock");
        let ask = || {
            let mut curl = Command::new(peer("curl"));
            curl.args(["-sS", "--fail", "http://web/", "--unix-socket"]).arg(&path);
            let done = output(&mut curl);
            done.status.success().then(|| text(&done))
        };
        let own = wait_for("the daemon", SOON, ask);
        for _ in 0..3 {
            assert_eq!(ask().as_ref(), Some(&own));
        }
        let forwards = stage.json(&["forward", "ls"]);
        assert!(number(&forwards[0]["connections"]) >= 4, "{forwards}");
        run(&mut stage.netyard(&["down"]));
        assert!(!path.exists());
        restored(&before);
    });
}

#[test]
fn the_lab_of_red_and_blue_has_gateway_and_nat_and_goes_as_it_came() {
    isolate(|| {
        let (outside, before) = machine();
        let _server = serve_outside(&outside);
        let stage = Stage::up(User::Root, "lab", LAB);
        let plugs = ["bridge-plug1", "bridge-plug2"];
        for (plug, name) in plugs.into_iter().zip(["red", "blue"]) {
            let link = &ip_json(&["link", "show", plug])[0];
            assert_eq!(link["master"], "br1");
            assert_eq!(link["linkinfo"]["info_kind"], "veth");
            let alias = link["ifalias"].as_str().unwrap();
            assert!(alias.starts_with("netyard/lab.lab/") && alias.ends_with(name), "{alias}");
        }
        let bridge = ip(&["address", "show", "dev", "br1"]);
        assert!(bridge.contains("192.168.1.10/24 brd 192.168.1.255"), "{bridge}");
        // The host reaches both, they reach each other, by name too, the bridge, and the world.
        for last in [11, 12] {
            wait_for("a daemon", SOON, || who(at([192, 168, 1, last], 8080)).ok());
        }
        let servers = Outside::ADDRESSES.map(|address| SocketAddr::new(address, 7000));
        for (from, to) in [("red", "192.168.1.12"), ("blue", "red.lab")] {
            for target in [to, "192.168.1.10", "gateway.lab"] {
                let pinged = stage.inside(from, &["ping", "-c", "1", "-W", "20", target]);
                assert!(pinged.status.success(), "{from} {target}: {}", text(&pinged));
            }
            let target = format!("http://{to}:8080/");
            let asked = stage.inside(from, &["curl", "-sS", "--fail", &target]);
            assert!(text(&asked).contains("My id is"), "{}", text(&asked));
            for server in servers {
                let target = format!("http://{server}/");
                let asked = stage.inside(from, &["curl", "-sS", "--fail", &target]);
                assert_eq!(text(&asked), netyard_testbed::traffic::HTTP_BODY);
            }
        }
        // The host is closed to them.
        let asked = stage.inside("red", &["curl", "-sS", "-m", "5", "http://192.168.1.10:22/"]);
        assert!(text(&asked).contains("Failed to connect"), "{}", text(&asked));
        let state = stage.json(&["network", "inspect", "lab.lab"])["state"].clone();
        assert_eq!(state["policy"]["host-address"], 1, "{state}");
        assert!(state["policy"]["outside"].as_u64().unwrap() >= 4, "{state}");
        let again = output(&mut stage.netyard(&["up", "-d"]));
        assert!(text(&again).contains("nothing differs"), "{}", text(&again));
        stage.say(&["down"]);
        restored(&before);
    });
}

#[test]
fn the_command_lines_of_the_ops_documentation_work_as_they_stand() {
    isolate(|| {
        let (_outside, before) = machine();
        let folder = User::Root.folder("demo");
        for (program, name) in [("hello-server", "server"), ("hello-client", "client")] {
            fs::copy(binary(program), folder.join(name)).unwrap();
        }
        let start = |line: &str| {
            let words: Vec<&str> = line.split(' ').skip(1).collect();
            Background::start(netyard(&words).current_dir(&folder))
        };
        let mut server = start("netyard run server -p 8081 -b -t tap0 --ip-address 192.168.42.19");
        wait_for("the server", SOON, || {
            netyard_testbed::http::get(at([192, 168, 42, 19], 8081), "/hello").ok()
        });
        let mut client =
            start("netyard run client -a 192.168.42.19:8081 -b -t tap1 --ip-address 192.168.42.20");
        client.wait_for_line("hello test 2", SOON);
        for tap in ["tap0", "tap1"] {
            assert_eq!(ip_json(&["link", "show", tap])[0]["master"], "br0");
        }
        let headers = netyard_testbed::http::get(at(Ipv4Addr::LOCALHOST, 8081), "/headers");
        assert!(headers.unwrap().body.contains("Host: 127.0.0.1:8081"), "by the forward");
        let networks: Value = run(&mut netyard(&["network", "ls", "--json"])).parse().unwrap();
        assert_eq!(networks.as_array().unwrap().len(), 1);
        assert_eq!(networks[0]["name"], "br0");
        assert_eq!(networks[0]["state"]["plugs"].as_array().unwrap().len(), 2);
        // A link or an address that is somebody's.
        let taken = |flags: &str| {
            let line = format!("run -b {flags} -- sleep 1");
            refused(&mut netyard(&line.split(' ').collect::<Vec<_>>())).1
        };
        let said = taken("-t tap0 --ip-address 192.168.42.30");
        assert!(said.contains("tap0") && said.contains("choose another"), "{said}");
        let said = taken("--ip-address 192.168.42.19");
        assert!(said.contains("192.168.42.19"), "{said}");
        let said = taken("--ip-address 192.168.43.1");
        assert!(said.contains("its prefix is 192.168.42.0/24"), "{said}");
        for instance in [&mut client, &mut server] {
            instance.signal("INT");
            instance.wait(SOON);
        }
        restored(&before);
    });
}

/// Which instance answers, by the ids that each gives itself.
fn ids(addresses: &[Ipv4Addr]) -> BTreeMap<String, usize> {
    (1..)
        .zip(addresses)
        .map(|(number, address)| {
            (wait_for("a daemon", SOON, || who(at(*address, 8080)).ok()), number)
        })
        .collect()
}

/// The addresses of web-1 and so on.
fn web(stage: &Stage, count: usize) -> Vec<Ipv4Addr> {
    (1..=count)
        .map(|number| {
            let instance = stage.instance(&format!("web-{number}"));
            instance["addresses"][0].as_str().unwrap().parse().unwrap()
        })
        .collect()
}

#[test]
fn turns_are_exact_however_clients_come_and_whoever_leaves() {
    isolate(|| {
        let (_outside, before) = machine();
        let stage = Stage::up(User::Root, "hello", &hello(3));
        let service = |stage: &Stage| stage.json(&["service", "ls"])[0].clone();
        let virtual_ = service(&stage)["addresses"][0].as_str().unwrap().parse::<Ipv4Addr>();
        let vip = at(virtual_.unwrap(), 8080);
        let names = ids(&web(&stage, 3));
        // From the host by both addresses, in turn, and from inside, over IPv6.
        let asked = |number: usize, names: &BTreeMap<String, usize>| {
            let id = match number % 10 {
                9 => {
                    let target = format!("http://web.lan:8080/?{number}");
                    let said = stage.inside("client", &["curl", "-6sS", "--fail", &target]);
                    text(&said).trim().strip_prefix("My id is ").unwrap().to_owned()
                }
                even if even % 2 == 0 => who(PUBLISHED).unwrap(),
                _ => who(vip).unwrap(),
            };
            names[&id]
        };
        let order: Vec<usize> = (0..300).map(|number| asked(number, &names)).collect();
        let expected: Vec<usize> = (0..300).map(|number| (order[0] - 1 + number) % 3 + 1).collect();
        assert_eq!(order, expected);
        let last = order[299];

        // One more: the order goes on.
        let has_turn = |instance: &str, has: bool| {
            wait_for(&format!("{instance} to have turns: {has}"), SOON, || {
                let rules = run(Command::new(peer("nft")).args(["list", "ruleset"]));
                (rules.contains(&format!("chain turn/web/{instance} ")) == has).then_some(())
            });
        };
        stage.write(&hello(4));
        stage.say(&["up", "-d", "--wait"]);
        has_turn("web-4", true);
        let names = ids(&web(&stage, 4));
        // Whoever was next is next; then the new one has its place among the others.
        let mut next = last % 3 + 1;
        for number in 0..40 {
            assert_eq!(asked(number, &names), next);
            next = next % 4 + 1;
        }
        // One is killed: nobody is sent there from the moment that this is known.
        signal(stage.pid("web-2"), "KILL");
        has_turn("web-2", false);
        let alive = [1, 3, 4];
        let mut counts = BTreeMap::new();
        for number in 0..30 {
            *counts.entry(asked(number, &names)).or_insert(0) += 1;
        }
        assert_eq!(counts, alive.map(|name| (name, 10)).into());
        stage.say(&["down"]);
        restored(&before);
    });
}

#[test]
fn forwards_lead_in_from_loopback_and_from_outside_with_ranges() {
    isolate(|| {
        let (outside, _) = machine();
        let yard = LAB.replacen(
            "tap = \"bridge-plug1\"",
            "forwards = [\"9000:8080\", \"0.0.0.0:9001:8080\", \"[::]:9002:8080\", \
             \"198.51.100.1:20000-20999:7500-8499\"]",
            1,
        );
        let yard = yard.replacen("\"0.0.0.0\"", "\"::\"", 1);
        let stage = Stage::up(User::Root, "lab", &yard);
        let red = ids(&[[192, 168, 1, 11].into()]);
        let from_outside = |target: &str| {
            let done = output(outside.command(peer("curl")).args(["-sS", "-m", "30", target]));
            text(&done)
        };
        for local in [
            "127.0.0.1:9000",
            "127.0.0.1:9001",
            "198.51.100.1:9001",
            "[::1]:9002",
            "198.51.100.1:20580",
        ] {
            assert!(red.contains_key(&who(local.parse().unwrap()).unwrap()), "{local}");
        }
        for (target, good) in [
            ("http://198.51.100.1:9000/", false),
            ("http://198.51.100.1:9001/", true),
            ("http://[2001:db8:1::1]:9002/", true),
            ("http://198.51.100.1:20580/", true),
            ("http://198.51.100.1:20581/", false),
            ("http://192.168.1.11:8080/", false),
        ] {
            let said = from_outside(target);
            assert_eq!(said.contains("My id is"), good, "{target}: {said}");
        }
        wait_for("1, 3, 2 and 3 connections to be counted", SOON, || {
            let forwards = stage.json(&["forward", "ls"]);
            let counted = forwards.as_array().unwrap().iter().map(|it| it["connections"].as_u64());
            counted.eq([1, 3, 2, 3].map(Some)).then_some(())
        });
        // A port that somebody has is a clear error.
        let taken = "forwards = [\"0.0.0.0:9001:8080\"]";
        let other = Stage::new(
            User::Root,
            "other",
            &format!(
                "[networks.lan]\nmode = \"bridge\"\nsubnet = \"10.9.0.0/24\"\n[instances.x]\n\
             run = [\"sleep\", \"9\"]\n{taken}\n"
            ),
        );
        let (code, said) = refused(&mut other.netyard(&["up", "-d"]));
        assert!(code == Some(1) && said.contains("9001"), "{said}");
    });
}

#[test]
fn services_of_the_host_are_reached_where_they_are_named() {
    isolate(|| {
        let (_outside, before) = machine();
        let yard = LAB.replacen(
            "gateway =",
            "host = [\"127.0.0.1:7000\", \"[::1]:7000\", \"198.51.100.1:7001\"]\ngateway =",
            1,
        );
        let stage = Stage::up(User::Root, "lab", &yard);
        let at = ["127.0.0.1:7000", "[::1]:7000", "198.51.100.1:7001"];
        let mut server =
            Background::start(User::Root.command("netyard-traffic").arg("serve").args(at));
        server.wait_for_line("listening", SOON);
        let asks = |flags: &[&str], target: &str| {
            let words = [&["curl", "-sS", "-m", "30"], flags, &[target]].concat();
            text(&stage.inside("red", &words))
        };
        let body = netyard_testbed::traffic::HTTP_BODY;
        assert_eq!(asks(&["-4"], "http://host.lab:7000/"), body);
        assert_eq!(asks(&["-6"], "http://host.lab:7000/"), body);
        assert_eq!(asks(&[], "http://198.51.100.1:7001/"), body);
        for closed in ["http://192.168.1.10:7000/", "http://host.lab:7002/"] {
            let said = asks(&[], closed);
            assert!(said.contains("Failed to connect"), "{closed}: {said}");
        }
        drop(server);
        stage.say(&["down"]);
        restored(&before);
    });
}

#[test]
fn two_networks_meet_by_what_is_published_only() {
    isolate(|| {
        let (_outside, before) = machine();
        let yard = r#"
[networks.one]
mode = "bridge"
subnet = "10.1.0.0/24"
[networks.two]
mode = "bridge"
subnet = "10.2.0.0/24"
[instances.a]
run = ["netyard-whoami", "-a", "0.0.0.0", "-p", "8080"]
network = "one"
[instances.b]
run = ["netyard-whoami", "-a", "0.0.0.0", "-p", "8080"]
network = "two"
forwards = ["0.0.0.0:9000:8080"]
"#;
        let stage = Stage::up(User::Root, "both", yard);
        let asks = |from: &str, target: &str| {
            text(&stage.inside(from, &["curl", "-sS", "-m", "3", target]))
        };
        for (from, target) in [("a", "http://10.2.0.2:8080/"), ("b", "http://10.1.0.2:8080/")] {
            let said = asks(from, target);
            assert!(!said.contains("My id is"), "{from}: {said}");
        }
        wait_for("what is published", SOON, || {
            asks("a", "http://198.51.100.1:9000/").contains("My id is").then_some(())
        });
        let open = yard.replace("mode = \"bridge\"", "mode = \"bridge\"\nisolate = false");
        stage.write(&open);
        stage.say(&["up", "-d", "--wait"]);
        wait_for("the other network", SOON, || {
            asks("a", "http://10.2.0.2:8080/").contains("My id is").then_some(())
        });
        stage.say(&["down"]);
        restored(&before);
    });
}

#[test]
fn a_network_process_that_is_killed_is_replaced_and_everything_works_again() {
    isolate(|| {
        let (_outside, before) = machine();
        let stage = Stage::up(User::Root, "hello", &hello(2));
        let program = stage.pid("web-1");
        let killed = stage.network_pid();
        signal(killed, "KILL");
        wait_for("another process", SOON, || {
            let networks = stage.json(&["inspect"])["networks"].clone();
            let pid = networks[0]["state"]["pid"].as_u64()?;
            (pid != u64::from(killed) && pid != 0).then_some(())
        });
        wait_for("answers", SOON, || who(PUBLISHED).ok());
        let asked = stage.inside("client", &["curl", "-sS", "--fail", "http://web.lan:8080/"]);
        assert!(text(&asked).contains("My id is"), "{}", text(&asked));
        assert_eq!(stage.pid("web-1"), program, "the program runs on");
        stage.say(&["down"]);
        restored(&before);
    });
}

#[test]
fn after_everything_was_killed_the_next_start_leaves_nothing_of_it() {
    isolate(|| {
        let (_outside, before) = machine();
        let stage = Stage::up(User::Root, "hello", &hello(2));
        let (keeper, network) = (stage.keeper_pid(), stage.network_pid());
        signal(keeper, "KILL");
        signal(network, "KILL");
        wait_for("their end", SOON, || {
            let gone = |pid: u32| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                status.is_empty() || status.contains("State:\tZ")
            };
            (gone(keeper) && gone(network)).then_some(())
        });
        assert!(ip(&["link"]).contains("br-hello.lan"));
        // Any start of any yard takes it back.
        run(&mut netyard(&["run", "--", "true"]));
        restored(&before);
        assert!(!Path::new("/run/netyard/.networks/hello.lan").exists());
    });
}

#[test]
fn a_flush_of_all_rules_by_somebody_else_cuts_nothing() {
    isolate(|| {
        let (_outside, _) = machine();
        let stage = Stage::up(User::Root, "hello", &hello(2));
        run(Command::new(peer("nft")).args(["flush", "ruleset"]));
        for _ in 0..4 {
            who(PUBLISHED).unwrap();
        }
        let tables: Value =
            run(Command::new(peer("nft")).args(["-j", "list", "tables"])).parse().unwrap();
        let names: Vec<_> = (tables["nftables"].as_array().unwrap().iter())
            .filter_map(|it| it["table"]["name"].as_str())
            .collect();
        assert_eq!(names, ["netyard-hello.lan"; 2]);
        stage.say(&["down"]);
    });
}

#[test]
fn networks_are_made_to_stay_and_removed() {
    isolate(|| {
        let (_outside, before) = machine();
        let create = ["network", "create", "-b", "--bridgename", "br7", "--subnet"];
        run(&mut netyard(&[&create[..], &["192.168.33.1/24"]].concat()));
        let bridge = ip(&["address", "show", "dev", "br7"]);
        assert!(bridge.contains("192.168.33.1/24"), "{bridge}");
        let shown = run(&mut netyard(&["network", "inspect", "br7"]));
        assert!(shown.contains("bridge br7") && shown.contains("192.168.33.0/24"), "{shown}");
        let (_, said) = refused(&mut netyard(&["network", "create", "br7"]));
        assert!(said.contains("there is one of that name"), "{said}");
        let mut guest = Background::start(&mut netyard(&[
            "run",
            "--network",
            "br7",
            "--",
            "sh",
            "-c",
            "echo there; exec sleep 1000",
        ]));
        guest.wait_for_line("there", SOON);
        let (_, said) = refused(&mut netyard(&["network", "rm", "br7"]));
        assert!(said.contains("is on it"), "{said}");
        guest.signal("INT");
        guest.wait(SOON);
        // It stays with nobody on it.
        let networks: Value = run(&mut netyard(&["network", "ls", "--json"])).parse().unwrap();
        assert_eq!(number(&networks[0]["state"]["plugs"].as_array().unwrap().len().into()), 0);
        run(&mut netyard(&["network", "rm", "br7"]));
        restored(&before);
        let (code, said) = refused(&mut netyard(&["network", "rm", "br7"]));
        assert!(code == Some(1) && said.contains("network ls"), "{said}");
    });
}

#[test]
fn what_is_missing_or_in_the_way_is_said() {
    isolate(|| {
        let (_outside, before) = machine();
        let mut ordinary = User::Ordinary.command("netyard");
        let (code, said) = refused(ordinary.args(["run", "-b", "--", "true"]));
        assert_eq!(code, Some(3), "{said}");
        assert!(said.contains("CAP_NET_ADMIN") && said.contains("setcap"), "{said}");
        let (_, said) =
            refused(&mut netyard(&["run", "-b", "--subnet", "198.51.100.0/25", "--", "true"]));
        assert!(said.contains("overlaps with 198.51.100.0/24"), "{said}");
        let (_, said) =
            refused(&mut netyard(&["run", "-b", "--bridgename", "uplink", "--", "true"]));
        assert!(said.contains("it is not a bridge"), "{said}");
        let (_, said) = refused(&mut netyard(&["run", "--uplink", "routed", "--", "true"]));
        assert!(said.contains("bridge mode"), "{said}");
        restored(&before);
    });
}

#[test]
fn an_ordinary_user_has_bridges_by_the_capabilities_of_the_program_file() {
    isolate(|| {
        if !User::ids_are_real() {
            // Nobody is there to be granted something: root's run of this test is the one that counts.
            return;
        }
        let (_outside, before) = machine();
        let folder = User::Ordinary.folder("granted");
        let program = folder.join("netyard");
        fs::copy(binary("netyard"), &program).unwrap();
        let ordinary = |flags: &[&str]| {
            let mut command = Command::new(peer("setpriv"));
            command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
            command.arg(&program).args(flags).current_dir(&folder);
            command.env("XDG_RUNTIME_DIR", "/run/user/1000");
            command
        };
        // The refusal says how to grant them; that works as it stands.
        let act = ["run", "-b", "--ip-address", "192.168.42.7", "--"];
        let ping = ["ping", "-c", "1", "-W", "10", "192.168.42.1"];
        let (code, said) = refused(&mut ordinary(&[&act[..], &ping].concat()));
        assert_eq!(code, Some(3), "{said}");
        let grant = said.split('`').find_map(|part| part.strip_prefix("sudo ")).unwrap();
        run(Command::new(peer("sh")).args(["-ec", grant]));
        let pinged = run(&mut ordinary(&[&act[..], &ping].concat()));
        assert!(pinged.contains("1 received"), "{pinged}");
        restored(&before);
        // One that is missing is named.
        run(Command::new(peer("setcap")).arg("cap_net_admin,cap_sys_admin+ep").arg(&program));
        let (code, said) = refused(&mut ordinary(&[&act[..], &ping].concat()));
        assert!(code == Some(3) && said.contains("needs CAP_NET_RAW"), "{said}");
        restored(&before);
    });
}

#[test]
fn what_the_kernel_moves_is_left_to_tools_that_see_it() {
    isolate(|| {
        let (_outside, before) = machine();
        run(&mut netyard(&["network", "create", "lab", "-b"]));
        for (arguments, tool) in [
            (&["flows", "lab"][..], "conntrack -L"),
            (&["capture", "lab", "-w", "/dev/null"], "tcpdump -i"),
        ] {
            let (code, said) = refused(&mut netyard(arguments));
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains(tool), "{said}");
        }
        let text = run(&mut netyard(&["network", "inspect", "lab", "--prometheus"]));
        assert!(text.contains("netyard_flows{network=\"lab\",class=\"tcp\"} "), "{text}");
        run(&mut netyard(&["network", "rm", "lab"]));
        restored(&before);
    });
}
