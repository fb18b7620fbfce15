//! ICMP of guests with the outside: pings, what routers on the way say, and datagrams that are too big for
//! a link.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod stage;

use std::fs;
use std::net::IpAddr;
use std::process::Output;

use netyard_testbed::{Background, Namespace, Outside, User, binary, isolate, peer, run};

use crate::stage::{SOON, Stage, allow_pings, text};

/// The second router, by its end of the link with the first.
const SECOND: [&str; 2] = ["192.0.2.2", "2001:db8:3::2"];
/// A server behind it.
const SERVER: [&str; 2] = ["192.0.2.130", "2001:db8:4::2"];
/// The MTU of the link between the routers, bytes.
const NARROW: &str = "1400";

const YARD: &str = r#"
[networks.lan]

[instances.one]
run = ["sleep", "infinity"]
"#;

/// Two routers between this machine and a server: the one that [`Outside`] is, and a second one.
struct Way {
    _outside: Outside,
    _second: Namespace,
    server: Namespace,
}

impl Way {
    fn new() -> Self {
        let outside = Outside::new();
        let (second, server) = (Namespace::new("second"), Namespace::new("server"));
        let first = outside.namespace();
        let between = ["192.0.2.1/25", "192.0.2.2/25"];
        join(first, &second, between, ["2001:db8:3::1/64", "2001:db8:3::2/64"]);
        let behind = ["192.0.2.129/25", "192.0.2.130/25"];
        join(&second, &server, behind, ["2001:db8:4::1/64", "2001:db8:4::2/64"]);
        for (router, link) in [(first, "to-second"), (&second, "to-outside")] {
            router.ip(&["link", "set", link, "mtu", NARROW]);
        }
        for (net, via) in [("192.0.2.128/25", SECOND[0]), ("2001:db8:4::/64", SECOND[1])] {
            first.ip(&["route", "add", net, "via", via]);
        }
        for (namespace, vias) in
            [(&second, ["192.0.2.1", "2001:db8:3::1"]), (&server, ["192.0.2.129", "2001:db8:4::1"])]
        {
            for via in vias {
                namespace.ip(&["route", "add", "default", "via", via]);
            }
        }
        for router in [first, &second] {
            run(router.command(peer("sysctl")).args([
                "-q",
                "net.ipv4.ip_forward=1",
                "net.ipv6.conf.all.forwarding=1",
                "net.ipv4.icmp_ratelimit=0",
                "net.ipv6.icmp.ratelimit=0",
            ]));
        }
        Self { _outside: outside, _second: second, server }
    }
}

/// Joins two namespaces by a link with addresses of both families, the first one's first.
fn join(near: &Namespace, far: &Namespace, v4: [&str; 2], v6: [&str; 2]) {
    let ends = [(near, format!("to-{}", far.name())), (far, format!("to-{}", near.name()))];
    let pair = ["link", "add", &ends[0].1, "type", "veth", "peer", "name", &ends[1].1, "netns"];
    near.ip(&[&pair[..], &[far.name()]].concat());
    for ((namespace, link), (v4, v6)) in ends.iter().zip(v4.into_iter().zip(v6)) {
        namespace.ip(&["address", "add", v4, "dev", link]);
        namespace.ip(&["address", "add", v6, "dev", link, "nodad"]);
        namespace.ip(&["link", "set", link, "up"]);
    }
}

fn ping(stage: &Stage, flags: &[&str], to: &str) -> Output {
    stage.inside("one", &[&["ping", "-n", "-c", "1", "-W", "20"], flags, &[to]].concat())
}

/// Sends UDP to closed ports with rising hop limits, as traceroute does, and prints who says what of each, until
/// the remote does: reporter, ICMP type and code. The kernel gives a report to the socket whose packet it
/// quotes, and hands over the payload that it quotes.
const TRACE: &str = r#"
import select, socket, struct, sys
to = sys.argv[1]
v4 = '.' in to
family = socket.AF_INET if v4 else socket.AF_INET6
level, errors, hops = (0, 11, 2) if v4 else (41, 25, 16)
for limit in range(1, 9):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.setsockopt(level, errors, 1)
    s.setsockopt(level, hops, limit)
    payload = b'probe %d' % limit
    s.sendto(payload, (to, 33434 + limit))
    poll = select.poll()
    poll.register(s, select.POLLERR)
    assert poll.poll(20000), 'no answer'
    data, control, _, _ = s.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
    assert data == payload, data
    (_, _, report), = [it for it in control if it[1] == errors]
    kind, code = report[5], report[6]
    offender = report[20:24] if v4 else report[24:40]
    print(socket.inet_ntop(family, offender), kind, code)
    if kind != (11 if v4 else 3):
        break
"#;

/// Sends a datagram that may be cut on its way, of so many bytes, until it comes back (with IPv6 both ends learn
/// by lost ones how long their fragments may be); then one that may not. Prints what comes back, or why none does
/// and how long a packet may be.
const BIG: &str = r#"
import select, socket, sys
to, size = sys.argv[1], int(sys.argv[2])
v4 = '.' in to
family = socket.AF_INET if v4 else socket.AF_INET6
level, discover, mtu = (0, 10, 14) if v4 else (41, 23, 24)
payload = bytes(n % 251 for n in range(size))
for how, tries in [(0, 20), (2, 2)]:
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(20 / tries)
    s.setsockopt(level, discover, how)
    s.connect((to, 7000))
    for _ in range(tries):
        try:
            s.send(payload)
            print('echoed' if s.recv(65536) == payload else 'garbled', size)
            break
        except TimeoutError:
            pass
        except OSError as error:
            print(error.errno, s.getsockopt(level, mtu))
            break
"#;

fn yard_with(user: User) -> Stage {
    Stage::up(user, "ping", YARD)
}

fn pings_leave(user: User) {
    let _way = Way::new();
    allow_pings();
    let stage = yard_with(user);
    for (family, server) in SERVER.iter().enumerate() {
        let said = text(&ping(&stage, &["-c", "3", "-i", "0.1"], server));
        assert!(said.contains("3 received"), "{said}");
        // 64 from the server, less two routers and this machine.
        assert!(said.contains("ttl=61"), "{said}");
        let router = [IpAddr::from(Outside::ROUTER4), Outside::ROUTER6.into()][family];
        for (limit, hop) in [("2", router.to_string()), ("3", SECOND[family].to_owned())] {
            let said = text(&ping(&stage, &["-t", limit], server));
            assert!(said.contains(&format!("From {hop} icmp_seq=1 Time")), "{said}");
        }
        let said = text(&ping(&stage, &["-M", "do", "-s", "1420"], server));
        assert!(said.contains(&format!("From {router} ")), "{said}");
        assert!(said.contains(NARROW), "{said}");
        // In fragments it comes through, both ways. (With IPv6 the ends learn of what size they may be.)
        let flags = ["-M", "dont", "-s", "20000", "-c", "10", "-i", "0.2"];
        let said = text(&ping(&stage, &flags, server));
        assert!(said.contains("20008 bytes from"), "{said}");
    }
}

#[test]
fn pings_leave_and_routers_speak_to_the_guest() {
    isolate(|| pings_leave(User::Root));
}

#[test]
fn pings_leave_without_privilege() {
    isolate(|| pings_leave(User::Ordinary));
}

#[test]
fn a_machine_without_pings_says_so() {
    isolate(|| {
        let _way = Way::new();
        for user in User::ALL {
            let stage = yard_with(user);
            let said = text(&ping(&stage, &[], SERVER[0]));
            assert!(said.contains("Packet filtered"), "{said}");
            let said = stage.say(&["inspect", "lan"]);
            for part in ["net.ipv4.ping_group_range", "icmp-ping-group-range"] {
                assert!(said.contains(part), "{part} in {said}");
            }
            run(&mut stage.netyard(&["down"]));
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn the_way_out_can_be_traced() {
    isolate(|| {
        let _way = Way::new();
        for user in User::ALL {
            let stage = yard_with(user);
            for (family, server) in SERVER.iter().enumerate() {
                let done = stage.inside("one", &["python3", "-c", TRACE, server]);
                assert!(done.status.success(), "{}", text(&done));
                let said = text(&done);
                let lines: Vec<&str> = said.lines().collect();
                let (router, over, closed) = match family {
                    0 => (IpAddr::from(Outside::ROUTER4), "11 0", "3 3"),
                    _ => (IpAddr::from(Outside::ROUTER6), "3 0", "1 4"),
                };
                let [gateway, first, second, last] = lines[..] else { panic!("{said}") };
                assert!(gateway.ends_with(&format!(" {over}")), "{said}");
                assert_eq!(first, format!("{router} {over}"));
                assert_eq!(second, format!("{} {over}", SECOND[family]));
                assert_eq!(last, format!("{server} {closed}"));
            }
            run(&mut stage.netyard(&["down"]));
            fs::remove_dir_all(&stage.folder).unwrap();
        }
    });
}

#[test]
fn big_datagrams_are_cut_and_put_together_and_what_may_not_be_cut_is_told() {
    isolate(|| {
        let way = Way::new();
        let at = SERVER.map(|server| match server.contains(':') {
            true => format!("[{server}]:7000"),
            false => format!("{server}:7000"),
        });
        let program = binary("netyard-traffic");
        let mut server = Background::start(way.server.command(program).arg("serve").args(at));
        server.wait_for_line("listening", SOON);
        let stage = yard_with(User::Ordinary);
        for server in SERVER {
            let said = text(&stage.inside("one", &["python3", "-c", BIG, server, "9000"]));
            assert!(said.starts_with("echoed 9000\n90 "), "{said}");
            let said = text(&stage.inside("one", &["python3", "-c", BIG, server, "1420"]));
            assert_eq!(said, format!("echoed 1420\n90 {NARROW}\n"));
        }
    });
}
