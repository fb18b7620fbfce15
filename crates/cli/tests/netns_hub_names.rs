//! The names of a hub's network, as programs of its machines ask for them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use netyard_testbed::{Background, Namespace, binary, isolate, output, peer, run, wait_for};

use crate::outer::{Outer, PATIENCE, netyard, start_hub, start_peer, token};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the outside's resolver answers about every name.
const OUTSIDE: &str = "203.0.113.9";

/// A resolver in a namespace.
fn resolver(namespace: &Namespace, address: &str) -> Background {
    let mut command = namespace.command(binary("netyard-traffic"));
    command.args(["dns", &format!("{address}:53"), "--answers", OUTSIDE]);
    let mut server = Background::start(&mut command);
    server.wait_for_line("listening", PATIENCE);
    server
}

/// Looks a name up, or the name of an address, as programs do; `late` if no answer came in time (`EAI_AGAIN`,
/// `TRY_AGAIN`).
const LOOK_UP: &str = "import socket, sys
what = sys.argv[1]
try:
    if what[0].isdigit() or ':' in what: print(socket.gethostbyaddr(what)[0])
    else: print(*sorted({a[4][0] for a in socket.getaddrinfo(what, None, 0, socket.SOCK_STREAM)}))
except OSError as error: print('late' if error.errno in (socket.EAI_AGAIN, 2) else 'none:', error)";

fn look_up(from: &Namespace, what: &str) -> String {
    wait_for(&format!("an answer about {what}"), PATIENCE, || {
        let found = run(from.command(peer("python3")).args(["-c", LOOK_UP, what]));
        (!found.starts_with("late")).then(|| found.trim().to_owned())
    })
}

#[test]
fn programs_ask_the_hub_for_names_of_the_network_and_others_as_before() {
    isolate(|| {
        let outer = Outer::new(2);
        let _outside = resolver(&outer.router, "198.51.1.1");
        let before = "# of this machine\nnameserver 198.51.1.1\noptions timeout:10";
        fs::write(RESOLV_CONF, before).unwrap();
        let _hub = start_hub(&outer, &["--network6", "fd00:5::/64", "--zone", "lab.internal"]);
        let one = &outer.peers[0];
        let join = token(&outer, &["--reusable"]);
        let mut first = start_peer(&outer, 1, &join, &["--dns"]);
        first.wait_for_line("names of lab.internal", PATIENCE);
        assert_eq!(look_up(one, "hub.lab.internal"), "10.1.1.1 fd00:5::1");
        // Who joins has its name at once, but for what was answered a moment ago.
        let second = start_peer(&outer, 2, &join, &[]);
        wait_for("the name of another", PATIENCE, || {
            (look_up(one, "peer-2.lab.internal") == "10.1.1.5 fd00:5::5").then_some(())
        });
        assert_eq!(look_up(one, "10.1.1.5"), "peer-2.lab.internal");
        assert_eq!(look_up(one, "fd00:5::5"), "peer-2.lab.internal");
        assert!(look_up(one, "nobody.lab.internal").starts_with("none"));
        assert_eq!(look_up(one, "host.example"), OUTSIDE);
        // Over TCP, as resolv.conf may say; options of before stay.
        let ours = fs::read_to_string(RESOLV_CONF).unwrap();
        assert!(ours.lines().any(|line| line == "options timeout:10"), "{ours}");
        fs::write(RESOLV_CONF, format!("{ours}\noptions use-vc\n")).unwrap();
        assert_eq!(look_up(one, "peer-2.lab.internal"), "10.1.1.5 fd00:5::5");
        assert_eq!(look_up(one, "host.example"), OUTSIDE);
        // Somebody names other resolvers: they are asked for the rest.
        let _other = resolver(&outer.router, "192.0.2.1");
        let changed = "nameserver 192.0.2.1\n";
        fs::write(RESOLV_CONF, changed).unwrap();
        wait_for("names of the network", PATIENCE, || {
            (look_up(one, "peer-2.lab.internal") == "10.1.1.5 fd00:5::5").then_some(())
        });
        assert_eq!(look_up(one, "host.example"), OUTSIDE);
        first.signal("TERM");
        assert!(first.wait(PATIENCE).success(), "{}", first.output());
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), changed);
        // What a killed one leaves, its next start takes back, and --undo.
        let mut killed = start_peer(&outer, 1, &join, &["--dns"]);
        killed.wait_for_line("names of lab.internal", PATIENCE);
        killed.signal("KILL");
        killed.wait(PATIENCE);
        assert_ne!(fs::read_to_string(RESOLV_CONF).unwrap(), changed);
        run(&mut netyard(one, &["join", "--undo", "--state", "/tmp/peer-1-state", &join]));
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), changed);
        drop(second);
    });
}

/// Where the first peer has a resolv.conf of its own.
const OWN: &str = "/tmp/own-resolv.conf";

/// Runs a command where that file is everybody's.
fn with_own(namespace: &Namespace, words: &[&str]) -> std::process::Command {
    let script = format!("mount --bind {OWN} {RESOLV_CONF} && exec \"$@\"");
    let mut command = namespace.command(peer("unshare"));
    command.args(["--mount", "sh", "-c", &script, "sh"]).args(words).env("NETYARD_LOG", "info");
    command
}

#[test]
fn an_exit_finds_out_about_all_names_for_who_sends_everything_there() {
    isolate(|| {
        let outer = Outer::new(1);
        let one = &outer.peers[0];
        // The hub's resolver; where the peer's was, nobody answers.
        let _outside = resolver(&outer.router, "192.0.2.1");
        fs::write(RESOLV_CONF, "nameserver 192.0.2.1\n").unwrap();
        fs::write(OWN, "nameserver 198.51.1.1\n").unwrap();
        let _hub = start_hub(&outer, &["--exit"]);
        let (program, python) = (binary("netyard"), peer("python3"));
        let join = token(&outer, &[]);
        let words = ["join", "--state", "/tmp/peer-1-state", "--redirect", "--dns", &join];
        let words = [&[program.to_str().unwrap()], &words[..]].concat();
        let mut joined = Background::start(&mut with_own(one, &words));
        joined.wait_for_line("names of netyard.internal", PATIENCE);
        let look_up =
            |what: &str| run(&mut with_own(one, &[python.to_str().unwrap(), "-c", LOOK_UP, what]));
        assert_eq!(look_up("host.example").trim(), OUTSIDE);
        assert_eq!(look_up("hub.netyard.internal").trim(), "10.1.1.1");
        // Nobody else is told.
        let elsewhere = Path::new("/tmp/stranger");
        let script = "import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('192.0.2.10', 0))
s.settimeout(20)
s.sendto(bytes.fromhex('0007010000010000000000000461616161076578616d706c650000010001'), ('10.1.1.1', 53))
print(s.recv(512)[3] & 15)";
        fs::write(elsewhere, script).unwrap();
        let refused = run(outer.hub.command(&python).arg(elsewhere));
        assert_eq!(refused.trim(), "5", "refused");
    });
}

#[test]
fn systemd_resolved_is_told_where_it_answers() {
    isolate(|| {
        let outer = Outer::new(1);
        let _hub = start_hub(&outer, &["--zone", "lab.internal"]);
        let text = "nameserver 127.0.0.53\n";
        fs::write(RESOLV_CONF, text).unwrap();
        fs::create_dir("/tmp/programs").unwrap();
        let (program, said) = ("/tmp/programs/resolvectl", "/tmp/said");
        fs::write(program, format!("#!/bin/sh\necho \"$@\" >> {said}\n")).unwrap();
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        let join = token(&outer, &[]);
        let path = format!("/tmp/programs:{}", std::env::var("PATH").unwrap());
        let words = ["join", "--state", "/tmp/peer-1-state", "--dns", &join];
        let mut command = netyard(&outer.peers[0], &words);
        let mut joined = Background::start(command.env("PATH", path));
        joined.wait_for_line("names of lab.internal", PATIENCE);
        let told = "dns tun0 10.1.1.1\ndomain tun0 ~lab.internal ~1.1.10.in-addr.arpa\n\
                    default-route tun0 no\n";
        wait_for("systemd-resolved to be told", PATIENCE, || {
            (fs::read_to_string(said).unwrap_or_default() == told).then_some(())
        });
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), text);
        joined.signal("TERM");
        assert!(joined.wait(PATIENCE).success(), "{}", joined.output());
        assert_eq!(fs::read_to_string(RESOLV_CONF).unwrap(), text);
        let without = output(&mut netyard(&outer.hub, &["hub", "status"]));
        assert!(String::from_utf8_lossy(&without.stdout).contains("by DNS at its address"));
    });
}
