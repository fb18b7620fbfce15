//! Virtual machines on bridges of the host, and what somebody else starts there: with a real QEMU
//! and a kernel of the machine that the tests run on. Booting takes long without KVM, so each machine
//! is asked many things.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![allow(clippy::print_stdout, reason = "how long a machine takes to answer is of interest")]

#[path = "stage/bridge.rs"]
mod bridge;
mod stage;
#[path = "stage/vm.rs"]
mod vm;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Instant;

use netyard_testbed::{
    Background, Outside, User, binary, http, isolate, output, peer, run, traffic, wait_for,
};
use serde_json::Value;

use crate::bridge::{at, ip_json, machine, netyard, refused, restored};
use crate::stage::{PUBLISHED, SOON, Stage, have_had, number, signal, text, who, who_udp};
use crate::vm::{BOOTED, initrd, needs_qemu, qemus};

/// A link as `ip` shows it; `None` if there is none.
fn link(name: &str) -> Option<Value> {
    let done = output(Command::new(peer("ip")).args(["-j", "-d", "link", "show", name]));
    let shown: Value = serde_json::from_slice(&done.stdout).ok()?;
    shown.get(0).cloned()
}

/// The user 1000 as `ip` shows it: by name, if it has one.
fn ordinary() -> String {
    let name = output(Command::new(peer("id")).args(["-nu", "1000"]));
    let name = String::from_utf8(name.stdout).unwrap().trim().to_owned();
    if name.is_empty() { "1000".to_owned() } else { name }
}

/// The links that a set of the network's guard names.
fn guarded(network: &str, set: &str) -> BTreeSet<String> {
    let table = format!("netyard-{network}");
    let listed = run(Command::new(peer("nft")).args(["-j", "list", "set", "bridge", &table, set]));
    let listed: Value = listed.parse().unwrap();
    let listed = listed["nftables"].as_array().unwrap();
    let found = listed.iter().find_map(|it| it["set"]["elem"].as_array());
    let first = |element: &Value| {
        let word = element.get("concat").map_or(element, |parts| &parts[0]);
        word.as_str().unwrap().to_owned()
    };
    found.into_iter().flatten().map(first).collect()
}

/// The QEMU that has a TAP open, as the kernel tells it.
fn qemu_of(tap: &str) -> u32 {
    let line = format!("iff:\t{tap}");
    let has = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
        let mut texts = descriptors.filter_map(|it| fs::read_to_string(it.path()).ok());
        texts.any(|text| text.lines().any(|it| it == line))
    };
    qemus().into_iter().find(has).unwrap_or_else(|| panic!("no QEMU has {tap} open"))
}

/// The TAP of an instance, by the name for people that it has.
fn tap_of(network: &str, instance: &str) -> String {
    let has = |link: &&Value| {
        let alias = link["ifalias"].as_str().unwrap_or_default();
        alias.contains(network) && alias.ends_with(&format!(" {instance}"))
    };
    let links = ip_json(&["link", "show"]);
    let mut links = links.as_array().unwrap().iter();
    let found = links.find(has).unwrap();
    found["ifname"].as_str().unwrap().to_owned()
}

/// Waits until a network is served by another process than `killed`.
fn another_network_process(killed: u32) {
    wait_for("another network process", SOON, || {
        let networks: Value = run(&mut netyard(&["network", "ls", "--json"])).parse().unwrap();
        let pid = networks[0]["state"]["pid"].as_u64()?;
        (pid != 0 && pid != u64::from(killed)).then_some(())
    });
}

#[test]
fn the_command_lines_of_the_ops_documentation_work_in_machines() {
    isolate(|| {
        needs_qemu();
        let (_outside, before) = machine();
        let folder = User::Root.folder("demo");
        for (program, name) in [("hello-server", "server"), ("hello-client", "client")] {
            fs::copy(binary(program), folder.join(name)).unwrap();
        }
        let start = |line: &str| {
            let words: Vec<&str> = line.split(' ').skip(1).collect();
            Background::start(netyard(&words).current_dir(&folder))
        };
        let begun = Instant::now();
        let server = start("netyard run server --vm -p 8081 -b -t tap0 --ip-address 192.168.42.19");
        let hello = at([192, 168, 42, 19], 8081);
        wait_for("the server", BOOTED, || http::get(hello, "/hello").ok());
        println!("first answer after {:.1?}", begun.elapsed());
        let line =
            "netyard run client --vm -a 192.168.42.19:8081 -b -t tap1 --ip-address 192.168.42.20";
        let mut client = start(line);
        client.wait_for_line("hello test 2", BOOTED);
        let forwarded = SocketAddr::from((Ipv4Addr::LOCALHOST, 8081));
        assert!(http::get(forwarded, "/headers").unwrap().body.contains("Host: 127.0.0.1:8081"));

        // Both are ports of the bridge, which know who may send.
        let was = link("tap0").unwrap();
        for (tap, name) in [("tap0", "server"), ("tap1", "client")] {
            let link = link(tap).unwrap();
            assert_eq!(
                (&link["master"], &link["linkinfo"]["info_kind"]),
                (&"br0".into(), &"tun".into())
            );
            assert_eq!(link["linkinfo"]["info_data"]["vnet_hdr"], true, "{link}");
            assert_eq!(link["linkinfo"]["info_data"]["persist"], false, "{link}");
            let alias = link["ifalias"].as_str().unwrap();
            assert!(alias.starts_with("netyard br0/plug ") && alias.ends_with(name), "{alias}");
        }
        for set in ["plugs", "senders", "senders4", "senders6", "targets4", "targets6"] {
            assert_eq!(guarded("br0", set), ["tap0", "tap1"].map(str::to_owned).into(), "{set}");
        }

        // What is taken or cannot be is said.
        let said = |flags: &str| {
            let line = format!("run --vm -b {flags} -- true");
            refused(&mut netyard(&line.split(' ').collect::<Vec<_>>())).1
        };
        let taken = said("-t tap0 --ip-address 192.168.42.30");
        assert!(taken.contains("there is a link tap0 already, held by"), "{taken}");
        assert!(taken.contains("choose another name"), "{taken}");
        let card = said(&format!("-t {} --ip-address 192.168.42.30", Outside::UPLINK));
        assert!(card.contains("already, which is no TAP"), "{card}");
        assert!(!card.contains("ip link delete"), "{card}");
        let long = said("-t a-name-of-17-bytes --ip-address 192.168.42.30");
        assert!(long.contains("must not be longer than 15 bytes"), "{long}");
        let taken = said("-t tap2 --ip-address 192.168.42.19");
        assert!(taken.contains("192.168.42.19"), "{taken}");
        assert_eq!(link("tap2"), None);

        // Under machines that run on, the network's process is replaced.
        let networks: Value = run(&mut netyard(&["network", "ls", "--json"])).parse().unwrap();
        let killed = number(&networks[0]["state"]["pid"]);
        signal(killed, "KILL");
        another_network_process(killed);
        wait_for("the server on the new bridge", SOON, || http::get(hello, "/hello").ok());
        wait_for("the forward", SOON, || http::get(forwarded, "/hello").ok());
        assert_eq!(link("tap0").unwrap()["ifindex"], was["ifindex"], "the same TAP");
        assert_eq!(guarded("br0", "plugs").len(), 2);

        // A machine that is killed ends its run, and nothing of it is left.
        signal(qemu_of("tap1"), "KILL");
        assert!(!client.wait(SOON).success());
        assert!(client.output().contains("QEMU has ended with signal 9"), "{}", client.output());
        wait_for("the end of tap1", SOON, || link("tap1").is_none().then_some(()));
        http::get(hello, "/hello").unwrap();

        // Nor of one whose keeper is.
        server.signal("KILL");
        wait_for("no QEMU", SOON, || qemus().is_empty().then_some(()));
        restored(&before);
    });
}

/// Machines and processes in one service, and a guest that configures itself.
const MIXED: &str = r#"
[networks.lab]
mode = "bridge"
subnet = "192.168.77.0/24"
mtu = 1400

[networks.side]

[instances.server]
run = ["netyard-traffic", "serve", "0.0.0.0:7000", "[::]:7001"]
network = "lab"

[instances.web]
kind = "vm"
memory = "256M"
run = ["netyard-whoami", "-a", "::", "-p", "8080", "--udp"]
network = "lab"
count = 2
restart = "always"

[instances.process]
run = ["netyard-whoami", "-a", "::", "-p", "8080", "--udp"]
network = "lab"

[instances.echo]
kind = "vm"
memory = "256M"
run = ["netyard-traffic", "serve", "[::]:7000"]
forwards = ["5300:7000/udp", "0.0.0.0:5301:7000/udp"]
network = [{ name = "lab", tap = "tap-echo" }, "side"]

[instances.guest]
kind = "vm"
memory = "256M"
kernel = "KERNEL"
initrd = "INITRD"
network = "lab"
address = "192.168.77.99"
restart = "no"
needs = ["server"]

[services.site]
instances = ["web", "process"]
port = 8080
publish = "127.0.0.1:8080"
check = { http = "/", every = "500ms", timeout = "20s" }

[services.datagrams]
instances = ["web", "process"]
protocol = "udp"
port = 8080
publish = "127.0.0.1:8080"
check = { http = "/", port = 8080, every = "500ms", timeout = "20s" }

[services.side]
network = "side"
instances = "echo"
port = 7000
publish = "127.0.0.1:8090"
"#;

#[test]
fn machines_and_processes_share_a_bridge_and_a_service() {
    isolate(|| {
        needs_qemu();
        let (_outside, before) = machine();
        let stage = Stage::new(User::Root, "mixed", "");
        let (kernel, initrd) = initrd(&stage.folder);
        let yard = MIXED.replace("KERNEL", kernel.to_str().unwrap());
        stage.write(&yard.replace("INITRD", initrd.to_str().unwrap()));
        let up = output(&mut stage.netyard(&["up", "--wait", "--timeout", "3m"]));
        assert!(up.status.success(), "{}", text(&up));

        // The guest has its address by DHCP, and learnt how long packets may be from its card.
        wait_for("the guest's end", BOOTED, || stage.instance("guest")["exit"].as_str().map(drop));
        let log = stage.say(&["logs", "guest"]);
        assert!(log.contains("the mtu is 1400"), "{log}");
        assert!(log.contains("the address is 192.168.77.99/24"), "{log}");
        assert!(log.contains("hello from outside"), "{log}");
        assert_eq!(stage.instance("guest")["exit"], "code 0");

        // Exact turns, whoever asks and over either family.
        let asked = |number: usize| {
            let family = match number % 4 {
                0 => "-4",
                1 => "-6",
                _ => return who(PUBLISHED).unwrap(),
            };
            let words = ["curl", "-sS", "--fail", family, "http://site.lab:8080/"];
            let said = text(&stage.inside("server", &words));
            said.trim().strip_prefix("My id is ").unwrap().to_owned()
        };
        let turns: Vec<String> = (0..30).map(asked).collect();
        let ids: BTreeSet<&String> = turns.iter().collect();
        assert_eq!(ids.len(), 3, "{turns:?}");
        for (one, after) in turns.iter().zip(&turns[3..]) {
            assert_eq!(one, after, "{turns:?}");
        }

        // Flows over UDP, too.
        wait_for("turns for all three", BOOTED, || {
            let yard = stage.json(&["inspect"]);
            let networks = yard["networks"].as_array().unwrap().iter();
            let services = networks.filter_map(|it| it["state"]["services"].as_array()).flatten();
            let given = services
                .filter(|it| it["spec"]["name"] == "datagrams")
                .flat_map(|it| it["spec"]["instances"].as_array().unwrap())
                .filter(|it| it["eligible"] == true);
            (given.count() == 3).then_some(())
        });
        let services = stage.json(&["service", "ls"]);
        let mut services = services.as_array().unwrap().iter();
        let fronts = &services.find(|it| it["name"] == "datagrams").unwrap()["addresses"];
        let fronts = [0, 1].map(|family| fronts[family].as_str().unwrap().parse().unwrap());
        let [v4, v6] = fronts.map(|address: IpAddr| at(address, 8080));
        let mut turns: Vec<String> =
            (0..12).map(|number| who_udp([v4, v6, PUBLISHED][number % 3]).unwrap()).collect();
        let [v4, v6] = [v4, v6].map(|front| format!("{front}/udp"));
        let words = ["netyard-traffic", "ask", "--count", "6", &v4, &v6];
        turns.extend(stage::asked(&text(&stage.inside("server", &words))));
        assert_eq!(turns[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{turns:?}");
        assert!(turns.chunks(3).all(|turn| turn == &turns[..3]), "{turns:?}");

        // One of the machines is on a network in user mode, too.
        let side = SocketAddr::from((Ipv4Addr::LOCALHOST, 8090));
        assert_eq!(http::get(side, "/").unwrap().body, traffic::HTTP_BODY);

        // UDP: from the host by a loopback address and by one of its own, and from a process; and
        // bytes in both directions, which leave their kernels in pieces larger than a frame.
        for server in ["127.0.0.1:5300", "198.51.100.1:5301"] {
            traffic::datagrams(server.parse().unwrap(), 10, 1000).unwrap();
        }
        let echo = stage.instance("echo")["addresses"].clone();
        let [echo4, echo6] = [&echo[0], &echo[1]].map(|address| address.as_str().unwrap());
        for server in [format!("{echo4}:7000"), format!("[{echo6}]:7000")] {
            for (verb, flag, amount) in [
                ("datagrams", "--count", "10"),
                ("send", "--bytes", "8000000"),
                ("receive", "--bytes", "8000000"),
            ] {
                let words = ["netyard-traffic", verb, &server, flag, amount];
                let done = stage.inside("server", &words);
                assert!(done.status.success(), "{verb} {server}: {}", text(&done));
            }
        }

        // It starts again when QEMU is killed: with the same TAP, addresses and place.
        let web = stage.instance("web-1");
        let tap = tap_of("mixed.lab", "web-1");
        let index = link(&tap).unwrap()["ifindex"].clone();
        signal(qemu_of(&tap), "KILL");
        wait_for("the machine's next start", BOOTED, || {
            let now = stage.instance("web-1");
            (number(&now["restarts"]) > 0 && now["state"] == "healthy").then_some(())
        });
        assert_eq!(stage.instance("web-1")["addresses"], web["addresses"]);
        assert_eq!(link(&tap).unwrap()["ifindex"], index);

        // And with another TAP when somebody has deleted that one.
        let qemu = qemu_of(&tap);
        run(Command::new(peer("ip")).args(["link", "del", &tap]));
        let cut_off = stage.instance("web-1");
        assert_eq!(cut_off["vm"]["lost_taps"], serde_json::json!([tap]), "{cut_off}");
        assert_eq!(cut_off["state"], "unhealthy", "{cut_off}");
        let why = format!("somebody has deleted its TAP {tap}");
        for verb in [&["ps"][..], &["inspect", "web-1"]] {
            let said = stage.say(verb);
            assert!(said.contains(&why), "{said}");
        }
        signal(qemu, "KILL");
        wait_for("the machine's start with another TAP", BOOTED, || {
            let now = stage.instance("web-1");
            (number(&now["restarts"]) > 1 && now["state"] == "healthy").then_some(())
        });
        assert_eq!(stage.instance("web-1")["addresses"], web["addresses"]);
        assert!(guarded("mixed.lab", "plugs").contains(&tap));
        stage.say(&["down"]);
        restored(&before);
    });
}

/// Daemons behind two services.
const ASKED: &str = r#"
[networks.lab]
mode = "bridge"
subnet = "192.168.77.0/24"
subnet6 = "fd00:77::/64"

[instances.web]
run = ["netyard-whoami", "-a", "::", "-p", "8080", "--udp"]
network = "lab"
count = 3

[services.datagrams]
instances = "web"
protocol = "udp"
port = 8080

[services.pages]
instances = "web"
port = 8080
"#;

/// A machine that asks them, over both protocols and both families.
const ASKER: &str = r#"
[instances.asker]
kind = "vm"
memory = "256M"
run = [
    "netyard-traffic", "ask", "--count", "6",
    "192.168.77.253:8080/udp", "[fd00:77::fd]:8080/udp",
    "192.168.77.252:8080/tcp", "[fd00:77::fc]:8080/tcp",
]
network = "lab"
restart = "no"
needs = ["datagrams", "pages"]
"#;

#[test]
fn a_machine_takes_its_turns_over_tcp_and_udp() {
    isolate(|| {
        needs_qemu();
        let (_outside, before) = machine();
        let stage = Stage::up(User::Root, "asker", ASKED);
        // One that has its turns is enough for the machine's start, and not for what it is to see.
        wait_for("turns for all three", SOON, || {
            let services = stage.json(&["service", "ls"]);
            let services = services.as_array().unwrap().iter();
            let mut instances = services.flat_map(|it| it["instances"].as_array().unwrap());
            instances.all(|it| it["eligible"] == true).then_some(())
        });
        stage.write(&format!("{ASKED}{ASKER}"));
        stage.say(&["up", "-d"]);
        wait_for("the machine's end", BOOTED, || {
            stage.instance("asker")["exit"].as_str().map(drop)
        });
        let log = stage.say(&["logs", "asker"]);
        assert_eq!(stage.instance("asker")["exit"], "code 0", "{log}");
        for protocol in ["udp", "tcp"] {
            let answers: Vec<&str> = log
                .lines()
                .filter_map(|line| line.split_once(&format!("/{protocol} My id is ")))
                .map(|(_, id)| id.trim())
                .collect();
            assert_eq!(answers.len(), 12, "{log}");
            assert_eq!(answers[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{log}");
            assert!(answers.chunks(3).all(|turn| turn == &answers[..3]), "{log}");
        }
        // Those of the host, and of everybody else, go on from there.
        let front = at([192, 168, 77, 253], 8080);
        let ids: BTreeSet<_> = (0..3).map(|_| who_udp(front).unwrap()).collect();
        assert_eq!(ids.len(), 3);
        for (place, service) in
            stage.json(&["service", "ls"]).as_array().unwrap().iter().enumerate()
        {
            have_had(&stage, place, &[if service["protocol"] == "udp" { 5 } else { 4 }; 3]);
        }
        stage.say(&["down"]);
        restored(&before);
    });
}

/// What somebody else starts, on a TAP with a name.
const EXTERNAL: &str = r#"
[networks.lab]
mode = "bridge"
subnet = "192.168.88.0/24"

[instances.server]
run = ["netyard-traffic", "serve", "0.0.0.0:7000"]

[instances.box]
kind = "external"
tap = "tap5"
owner = 1000
address = "192.168.88.30"
mac = "02:00:5e:10:00:05"
"#;

#[test]
fn what_somebody_else_starts_opens_its_tap_by_name() {
    isolate(|| {
        if !User::ids_are_real() {
            // There is no second user to give the TAP to: root's run of this test is the one that counts.
            return;
        }
        needs_qemu();
        let (_outside, before) = machine();
        let stage = Stage::up(User::Root, "lab", EXTERNAL);
        let is = stage.instance("box");
        assert_eq!((&is["state"], &is["pid"]), (&"running".into(), &Value::Null), "{is}");
        let tap = serde_json::json!([
            { "name": "tap5", "mac": "02:00:5e:10:00:05", "owner": 1000, "open": false }
        ]);
        assert_eq!(is["external"], tap);
        assert_eq!(is["addresses"][0], "192.168.88.30");
        assert!(stage.say(&["ps"]).contains("external"));
        let link = link("tap5").unwrap();
        assert_eq!(link["master"], "br-lab.lab");
        let data = &link["linkinfo"]["info_data"];
        assert_eq!((&data["persist"], &data["user"]), (&true.into(), &ordinary().into()), "{link}");
        assert!(guarded("lab.lab", "senders4").contains("tap5"));

        // An ordinary user's QEMU, which knows nothing of netyard.
        let (kernel, initrd) = initrd(&stage.folder);
        let mut qemu = User::Ordinary.peer("qemu-system-x86_64");
        qemu.args(["-M", "microvm,rtc=on", "-accel", "tcg", "-m", "256M", "-nodefaults"]);
        qemu.args(["-display", "none", "-no-reboot", "-serial", "stdio", "-netdev"]);
        qemu.arg("tap,id=n,ifname=tap5,script=no,downscript=no");
        qemu.args(["-device", "virtio-net-device,netdev=n,mac=02:00:5e:10:00:05"]);
        qemu.args(["-global", "virtio-mmio.force-legacy=false", "-append"]);
        qemu.args(["console=ttyS0 reboot=t tsc_early_khz=2000000 tsc=reliable", "-kernel"]);
        let mut machine = Background::start(qemu.arg(&kernel).arg("-initrd").arg(&initrd));
        wait_for("an open TAP", SOON, || {
            stage.instance("box")["external"][0]["open"].as_bool().filter(|open| *open).map(drop)
        });
        machine.wait_for_line("the address is 192.168.88.30/24", BOOTED);
        machine.wait_for_line("hello from outside", BOOTED);
        machine.wait(BOOTED);
        // The TAP stays for the next one, until the yard goes.
        assert_eq!(stage.instance("box")["external"], tap);
        stage.say(&["down"]);
        restored(&before);
    });
}

#[test]
fn a_tap_is_made_for_whoever_opens_it_and_goes_as_it_came() {
    isolate(|| {
        if !User::ids_are_real() {
            // There is no second user to give the TAP to: root's run of this test is the one that counts.
            return;
        }
        let (_outside, before) = machine();
        let mut attach = netyard(&["attach", "-t", "tap5", "--ip-address", "192.168.42.30"]);
        attach.args(["--owner", "1000", "--mac", "02:00:5e:10:00:05", "-p", "2222:22"]);
        let mut attached = Background::start(&mut attach);
        let line = attached.wait_for_line("tap5 is there for user 1000", SOON);
        assert!(line.contains("02:00:5e:10:00:05") && line.contains("192.168.42.30"), "{line}");
        assert_eq!(link("tap5").unwrap()["master"], "br0");
        assert!(guarded("br0", "senders").contains("tap5"));

        // The network's process is replaced, and the TAP is there again.
        let networks: Value = run(&mut netyard(&["network", "ls", "--json"])).parse().unwrap();
        let killed = number(&networks[0]["state"]["pid"]);
        signal(killed, "KILL");
        another_network_process(killed);
        wait_for("the TAP on the new bridge", SOON, || {
            link("tap5").filter(|link| link["master"] == "br0").map(drop)
        });
        assert_eq!(link("tap5").unwrap()["linkinfo"]["info_data"]["user"], ordinary());

        let refused_as = |flags: &str| {
            let line = format!("attach {flags}");
            refused(&mut netyard(&line.split(' ').collect::<Vec<_>>()))
        };
        let (code, said) = refused_as("-t tap5 --ip-address 192.168.42.31");
        assert!(code == Some(1) && said.contains("tap5"), "{said}");
        let (_, said) = refused_as("-t tap6 --ip-address 192.168.42.30");
        assert!(said.contains("192.168.42.30"), "{said}");
        let (code, said) = refused_as("-t a-name-of-17-bytes");
        assert!(code == Some(2) && said.contains("15 bytes"), "{said}");
        let (code, said) = refused_as("-t tap6 --owner no-such-user");
        assert!(code == Some(2) && said.contains("/etc/passwd"), "{said}");
        let mut ordinary = User::Ordinary.command("netyard");
        let (code, said) = refused(ordinary.args(["attach", "-t", "tap6"]));
        assert!(code == Some(3) && said.contains("CAP_NET_ADMIN"), "{said}");

        // Deleted by somebody, it is there again, for the same user.
        let old = link("tap5").unwrap();
        run(Command::new(peer("ip")).args(["link", "del", "tap5"]));
        let new = wait_for("the TAP made anew", SOON, || {
            let persists = |link: &Value| link["linkinfo"]["info_data"]["persist"] == true;
            link("tap5").filter(|link| link["ifindex"] != old["ifindex"] && persists(link))
        });
        for field in ["master", "ifalias", "linkinfo"] {
            assert_eq!(new[field], old[field], "{field}");
        }

        attached.signal("INT");
        assert_eq!(attached.wait(SOON).code(), Some(0), "{}", attached.output());
        restored(&before);

        // Nobody is there to take it away: the next start of anything does.
        let mut attached = Background::start(&mut netyard(&["attach", "-t", "tap5"]));
        attached.wait_for_line("tap5 is there for user 0", SOON);
        let networks: Value = run(&mut netyard(&["network", "ls", "--json"])).parse().unwrap();
        let network = number(&networks[0]["state"]["pid"]);
        // It cannot act before it is killed.
        signal(network, "STOP");
        attached.signal("KILL");
        signal(network, "KILL");
        attached.wait(SOON);
        wait_for("the end of the network's process", SOON, || {
            let status = fs::read_to_string(format!("/proc/{network}/status")).unwrap_or_default();
            (status.is_empty() || status.contains("State:\tZ")).then_some(())
        });
        assert!(link("tap5").is_some());
        run(&mut netyard(&["run", "--", "true"]));
        restored(&before);
    });
}
