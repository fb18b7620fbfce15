//! Multicast between instances: real sockets join groups, speak to them and leave.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs;
use std::process::Command;

use netyard_testbed::{Background, Outside, User, isolate, peer, run, wait_for};

use crate::stage::{SOON, Stage};

const YARD: &str = r#"
[networks.lan]
subnet = "192.168.77.0/24"
subnet6 = "fd00:77::/64"

[instances.one]
run = ["python3", "-u", "groups.py", "answer"]

[instances.two]
run = ["python3", "-u", "groups.py", "ask"]

[instances.bystander]
run = ["sleep", "infinity"]
"#;

/// Answers on all groups, as mDNS does: to the group. Or asks until it is answered on each, and leaves those that are
/// not mDNS's.
const GROUPS: &str = r#"
import select, socket, struct, sys

GROUPS = ["224.0.0.251", "239.1.2.3", "ff02::fb", "ff05::77"]
CARD = next(index for index, name in socket.if_nameindex() if name != "lo")

def request(group):
    if ":" in group:
        return socket.IPPROTO_IPV6, socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", CARD)
    return socket.IPPROTO_IP, struct.pack("4s4si", socket.inet_aton(group), bytes(4), CARD)

def member(group):
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    it = socket.socket(family, socket.SOCK_DGRAM)
    it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    it.bind((group, 5353, 0, CARD) if ":" in group else (group, 5353))
    level, which = request(group)
    if ":" in group:
        it.setsockopt(level, socket.IPV6_JOIN_GROUP, which)
        it.setsockopt(level, socket.IPV6_MULTICAST_IF, CARD)
        it.setsockopt(level, socket.IPV6_MULTICAST_HOPS, 4)
    else:
        it.setsockopt(level, socket.IP_ADD_MEMBERSHIP, which)
        it.setsockopt(level, socket.IP_MULTICAST_IF, which)
        it.setsockopt(level, socket.IP_MULTICAST_TTL, 4)
    return it

def speaker(group):
    it = socket.socket(socket.AF_INET6 if ":" in group else socket.AF_INET, socket.SOCK_DGRAM)
    level, which = request(group)
    if ":" in group:
        it.setsockopt(level, socket.IPV6_MULTICAST_IF, CARD)
        it.setsockopt(level, socket.IPV6_MULTICAST_HOPS, 4)
    else:
        it.setsockopt(level, socket.IP_MULTICAST_IF, which)
        it.setsockopt(level, socket.IP_MULTICAST_TTL, 4)
    return it

def say(speakers, group, what):
    to = (group, 5353, 0, CARD) if ":" in group else (group, 5353)
    try:
        speakers[group].sendto(what, to)
    except OSError as error:
        # An address of the card may still be looked for a duplicate of.
        print(group, error)

members = {member(group): group for group in GROUPS}
speakers = {group: speaker(group) for group in GROUPS}
missing = set(GROUPS)
while True:
    for it in select.select(members, [], [], 0.2)[0]:
        what, group = it.recv(99), members[it]
        if sys.argv[1] == "answer" and what == b"who?":
            say(speakers, group, b"one")
        elif sys.argv[1] == "ask" and what == b"one" and group in missing:
            missing.remove(group)
            print("heard in", group)
            if group in ("239.1.2.3", "ff05::77"):
                level, which = request(group)
                leave = socket.IPV6_LEAVE_GROUP if ":" in group else socket.IP_DROP_MEMBERSHIP
                it.setsockopt(level, leave, which)
    if sys.argv[1] == "ask":
        for group in missing:
            say(speakers, group, b"who?")
"#;

/// The groups of an instance that the network knows.
fn joined(stage: &Stage, instance: &str) -> Vec<String> {
    let network = stage.json(&["network", "inspect", "groups.lan"])["state"].clone();
    let plugs = network["plugs"].as_array().unwrap();
    let plug = plugs.iter().find(|plug| plug["name"] == instance).unwrap();
    let groups = plug["groups"].as_array().cloned().unwrap_or_default();
    groups.iter().map(|group| group.as_str().unwrap().to_owned()).collect()
}

#[test]
fn instances_find_each_other_by_mdns_and_other_groups() {
    isolate(|| {
        for user in User::ALL {
            let stage = Stage::new(user, "groups", YARD);
            fs::write(stage.folder.join("groups.py"), GROUPS).unwrap();
            run(&mut stage.netyard(&["up", "-d", "--wait"]));
            for group in ["224.0.0.251", "239.1.2.3", "ff02::fb", "ff05::77"] {
                wait_for(group, SOON, || {
                    let log = stage.say(&["logs", "two"]);
                    log.contains(&format!("heard in {group}\n")).then_some(())
                });
            }
            let all = ["239.1.2.3", "ff02::fb", "ff05::77"];
            wait_for("what the one has joined", SOON, || {
                (joined(&stage, "one") == all).then_some(())
            });
            wait_for("what the other has left", SOON, || {
                (joined(&stage, "two") == ["ff02::fb"]).then_some(())
            });
            assert_eq!(joined(&stage, "bystander"), [""; 0]);
            assert_eq!(joined(&stage, "one"), all, "it has said that it stays");
            run(&mut stage.netyard(&["down"]));
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn a_yard_that_runs_turns_snooping_off_and_on_again() {
    isolate(|| {
        let yard = |says: &str| {
            let yard = "[networks.lan]\nSAYS\n[instances.one]\nrun = [\"sleep\", \"infinity\"]\n";
            yard.replace("SAYS", says)
        };
        let stage = Stage::up(User::Root, "groups", &yard(""));
        let snoops = || {
            stage.json(&["network", "inspect", "groups.lan"])["state"]["config"]["snooping"].clone()
        };
        assert_eq!(snoops(), true);
        for says in ["snooping = false", "snooping = true"] {
            stage.write(&yard(says));
            run(&mut stage.netyard(&["up", "-d", "--wait"]));
            assert_eq!(snoops(), says.ends_with("true"), "{says}");
        }
    });
}

/// Speaks mDNS on a card, over both families: `answer NAME` responds to questions for a name with a record about it and tells
/// every question that it hears, `ask OWN NAME ..` announces a name of its own, then asks for others until each is answered.
const MDNS: &str = r#"
import select, socket, struct, sys

GROUPS = {socket.AF_INET: "224.0.0.251", socket.AF_INET6: "ff02::fb"}
CARD = next(index for index, name in socket.if_nameindex() if name not in ("lo", "tunl0", "sit0"))

def member(family):
    it = socket.socket(family, socket.SOCK_DGRAM)
    it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    group = GROUPS[family]
    if family == socket.AF_INET:
        which = struct.pack("4s4si", socket.inet_aton(group), bytes(4), CARD)
        it.bind(("", 5353))
        it.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, which)
        it.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, which)
    else:
        it.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        it.bind(("::", 5353))
        which = socket.inet_pton(family, group) + struct.pack("@I", CARD)
        it.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, which)
        it.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, CARD)
    return it

def name(text):
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".")) + b"\0"

def text(message, at):
    labels = []
    while message[at]:
        labels.append(message[at + 1:at + 1 + message[at]].decode())
        at += 1 + message[at]
    return ".".join(labels), at + 1

def question(asked):
    return struct.pack("!6H", 0, 0, 1, 0, 0, 0) + name(asked) + struct.pack("!2H", 12, 1)

def response(about):
    # One address that is to replace what was known before.
    return struct.pack("!6H", 0, 0x8400, 0, 1, 0, 0) + name(about) + struct.pack("!2HIH4B", 1, 0x8001, 120, 4, 192, 0, 2, 1)

def say(it, message):
    try:
        it.sendto(message, (GROUPS[it.family], 5353))
    except OSError as error:
        # An address of the card may still be looked for a duplicate of.
        print(error)

members = [member(family) for family in GROUPS]
names = sys.argv[2:]
missing = set()
if sys.argv[1] == "ask":
    missing = {(it.family, wanted) for it in members for wanted in names[1:]}
print("ready", flush=True)
while True:
    for it in members if missing else []:
        say(it, response(names[0]))
        for wanted in names[1:]:
            say(it, question(wanted))
    for it in select.select(members, [], [], 0.2)[0]:
        message, who = it.recvfrom(9000)
        about, _ = text(message, 12)
        if message[2] & 0x80:
            if sys.argv[1] == "answer":
                print("announced", about, flush=True)
            elif (it.family, about) in missing:
                missing.remove((it.family, about))
                print("heard", about, "of", who[0], "over", it.family.name, flush=True)
        elif sys.argv[1] == "answer":
            print("asked", about, flush=True)
            if about in names:
                say(it, response(about))
"#;

const LINKED: &str = r#"
[networks.lan]
subnet = "192.168.77.0/24"
subnet6 = "fd00:77::/64"
mdns = MDNS

[instances.one]
run = ["python3", "-u", "mdns.py", "ask", "own.local", "far.local", "here.local"]
"#;

#[test]
fn names_of_the_hosts_link_are_found_and_those_of_guests_stay() {
    isolate(|| {
        let outside = Outside::new();
        for (user, mdns) in User::ALL.into_iter().zip(["true", "[\"uplink\", \"gone0\"]"]) {
            let stage = Stage::new(user, "linked", &LINKED.replace("MDNS", mdns));
            let script = stage.folder.join("mdns.py");
            fs::write(&script, MDNS).unwrap();
            // One on a machine of the link, and one on the host itself, which has the port for as many as want it.
            let python = || peer("python3");
            let answer = |name: &str, mut command: Command| {
                command.arg("-u").arg(&script).args(["answer", name]);
                let mut answers = Background::start(&mut command);
                answers.wait_for_line("ready", SOON);
                answers
            };
            let mut far = answer("far.local", outside.command(python()));
            let _here = answer("here.local", Command::new(python()));
            run(&mut stage.netyard(&["up", "-d", "--wait"]));
            for name in ["far.local", "here.local"] {
                for family in ["AF_INET\n", "AF_INET6\n"] {
                    wait_for(&format!("{name} over {family}"), SOON, || {
                        let log = stage.say(&["logs", "one"]);
                        let mut lines = log.split_inclusive('\n');
                        let heard = format!("heard {name} of ");
                        lines.any(|it| it.contains(&heard) && it.ends_with(family)).then_some(())
                    });
                }
            }
            // It is the gateway that says it.
            let log = stage.say(&["logs", "one"]);
            assert!(log.contains("heard far.local of 192.168.77.1 over"), "{log}");
            // The guest has announced its name before it asked, and no machine of the link has heard that.
            far.wait_for_line("asked far.local", SOON);
            assert!(!far.output().contains("own.local"), "{}", far.output());
            run(&mut stage.netyard(&["down"]));
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn a_card_that_comes_up_with_the_addresses_that_it_had_is_asked_on() {
    isolate(|| {
        let outside = Outside::new();
        let ip = |arguments: &[&str]| run(Command::new(peer("ip")).args(arguments));
        // Nothing but the link changes when it comes up: it makes no address of its own.
        ip(&["link", "set", Outside::UPLINK, "addrgenmode", "none"]);
        ip(&["link", "set", Outside::UPLINK, "down"]);
        let stage = Stage::new(User::Ordinary, "late", &LINKED.replace("MDNS", "true"));
        let script = stage.folder.join("mdns.py");
        fs::write(&script, MDNS).unwrap();
        let mut command = outside.command(peer("python3"));
        command.arg("-u").arg(&script).args(["answer", "far.local"]);
        let mut far = Background::start(&mut command);
        far.wait_for_line("ready", SOON);
        run(&mut stage.netyard(&["up", "-d", "--wait"]));
        ip(&["link", "set", Outside::UPLINK, "up"]);
        wait_for("far.local", SOON, || {
            stage.say(&["logs", "one"]).contains("heard far.local of ").then_some(())
        });
        run(&mut stage.netyard(&["down"]));
    });
}
