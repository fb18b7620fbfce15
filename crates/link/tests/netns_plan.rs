//! Plans: made, undone, interrupted at every moment, recovered.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::cell::Cell;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use netyard_link::netns::{Netns, named};
use netyard_link::nft::{
    Batch, Chain, Hook, Priority, Rule as NftRule, Selector, Set, Table, Type,
};
use netyard_link::plan::{
    Device, Host, Layer, Options, Owner, Pair, Peer, Place, Plan, Progress, Step,
};
use netyard_link::rtnetlink::{
    BridgeOptions, LinkName, PortOptions, Route, Rtnetlink, Rule, VxlanOptions,
};
use netyard_link::{Error, Features};
use netyard_sys::namespace::Namespaces;
use netyard_testbed::{Background, Outside, State, isolate, peer, run};
use netyard_wire::MacAddr;

fn name(name: &str) -> LinkName {
    name.parse().unwrap()
}

fn net(net: &str) -> IpNet {
    net.parse().unwrap()
}

fn ip(arguments: &[&str]) -> String {
    run(Command::new(peer("ip")).args(arguments))
}

fn options(owner: &str, features: Features) -> Options {
    Options {
        owner: Owner::new(owner).unwrap(),
        journal: format!("/run/netyard/{owner}/links").into(),
        ledger: "/run/netyard/settings".into(),
        features,
    }
}

fn open(owner: &str) -> Host {
    Host::open(&options(owner, Features::probe().unwrap())).unwrap()
}

fn sysctl(key: &str, value: &str) -> Step {
    Step::Sysctl { namespace: None, key: key.parse().unwrap(), value: value.into() }
}

fn bridge(called: &str) -> Step {
    let mac = Some(MacAddr::from_seed(called));
    Step::Bridge { name: name(called), mac, mtu: None, options: BridgeOptions::default() }
}

/// What a network in bridge mode makes on its host: every kind of step.
fn network() -> Plan {
    let br1 = || Place::here(name("br1"));
    let table = Table::inet("netyard-lan").owned(true);
    let published = Set::map(&table, "published", [Type::Protocol, Type::Port], [Type::Ipv4]);
    let post = Chain::base(&table, "post", Hook::NatPostrouting, Priority::SNAT);
    let mut content = Batch::new();
    content.add_set(&published).add_chain(&post);
    let leaves = NftRule::new(&post)
        .within(Selector::Ip4Source, net("192.168.1.0/24"))
        .is_not(Selector::OutputName, &name("br1"))
        .masquerade();
    content.add_rule(&leaves);
    let gateway: IpAddr = "192.168.1.11".parse().unwrap();
    Plan::new("network lan")
        .unwrap()
        .step(bridge("br1"))
        .step(Step::Address { at: br1(), net: net("192.168.1.10/24") })
        .step(Step::Address { at: br1(), net: net("fd00:1::1/64") })
        .step(Step::PointToPoint {
            at: Place::here(name("theirs")),
            local: Ipv4Addr::new(10, 7, 0, 1),
            far: Ipv4Addr::new(10, 7, 0, 2),
        })
        .step(sysctl("net/ipv4/ip_forward", "1"))
        .step(sysctl("net/ipv4/conf/br1/rp_filter", "2"))
        .step(Step::Namespace { name: "red".into() })
        .step(Pair {
            name: name("ve-red"),
            mac: None,
            mtu: Some(1400),
            bridge: Some(name("br1")),
            port: PortOptions { isolated: Some(true), ..PortOptions::default() },
            peer: Peer { at: Place::here(name("far")), mac: Some(MacAddr::from_seed("far")) },
        })
        .step(Device {
            name: name("tap0"),
            layer: Layer::Frames,
            headers: true,
            // The one user that every user namespace has.
            user: Some(0),
            mtu: None,
            bridge: Some(name("br1")),
            port: PortOptions { hairpin: Some(true), ..PortOptions::default() },
        })
        .step(Step::Vxlan {
            name: name("vx1"),
            options: VxlanOptions::new(77),
            mtu: None,
            bridge: Some(name("br1")),
            port: PortOptions::default(),
        })
        .step(Step::Route {
            at: br1(),
            route: Route { gateway: Some(gateway), ..Route::new(net("10.77.0.0/16")) },
        })
        .step(Step::Rule {
            namespace: None,
            rule: Rule { from: Some(net("192.168.1.0/24")), ..Rule::new(600, false, 77) },
        })
        .step(Step::Neighbor { at: br1(), address: gateway, mac: MacAddr::from_seed("red") })
        .step(Step::Table { table, content })
        .step(Step::Up { at: Place::here(name("spare")) })
        .step(Step::Join { link: name("spare"), bridge: name("br1"), port: PortOptions::default() })
        .step(Step::Join {
            link: name(Outside::UPLINK),
            bridge: name("br1"),
            port: PortOptions::default(),
        })
        .step(Step::Move { from: name(Outside::UPLINK), to: name("br1") })
}

/// A host with a card that has addresses, default routes and a static route, and with things of
/// other people that look like ours.
fn machine() -> Outside {
    let outside = Outside::new();
    ip(&["link", "add", "spare", "type", "veth", "peer", "name", "spare-far"]);
    // A link that was never up has no queueing discipline yet, and never loses the one it gets.
    ip(&["link", "set", "spare", "up"]);
    ip(&["link", "set", "spare", "down"]);
    ip(&["address", "add", "198.51.100.77/24", "dev", Outside::UPLINK, "label", "uplink:2"]);
    ip(&[
        "route",
        "add",
        "172.16.0.0/12",
        "via",
        "198.51.100.2",
        "metric",
        "50",
        "proto",
        "static",
        "mtu",
        "1300",
    ]);
    ip(&["link", "add", "theirs", "type", "bridge"]);
    ip(&["link", "set", "theirs", "alias", "netyard/lan2/network", "up"]);
    ip(&["link", "add", "other", "type", "bridge"]);
    ip(&["address", "add", "192.168.99.1/24", "dev", "theirs"]);
    ip(&["rule", "add", "priority", "600", "table", "78"]);
    run(Command::new(peer("nft")).args(["add", "table", "inet", "theirs"]));
    // Links are made with link-local addresses that the kernel checks first.
    settle();
    outside
}

/// Waits until duplicate address detection is through: it ends by itself.
fn settle() {
    netyard_testbed::wait_for("settled addresses", Duration::from_secs(20), || {
        let mut kernel = Rtnetlink::open().unwrap();
        kernel.addresses(None).unwrap().iter().all(|it| !it.tentative).then_some(())
    });
}

#[test]
fn what_a_plan_made_is_there_and_undone_it_is_as_before() {
    isolate(|| {
        let outside = machine();
        let before = State::take();
        let mut host = open("lan");
        let plan = network();
        host.check(&plan).unwrap();
        before.assert_restored("a check changes nothing");
        let mut lines = Vec::new();
        host.apply_watched(&plan, |step, progress| {
            if progress == Progress::Recorded {
                lines.push(step.to_string());
            }
        })
        .unwrap();
        assert_eq!(plan.to_string(), format!("network lan:\n  {}\n", lines.join("\n  ")));
        assert_eq!(host.plans(), ["network lan"]);

        let json = |arguments: &[&str]| -> serde_json::Value {
            ip(&[&["-j", "-d"], arguments].concat()).parse().unwrap()
        };
        let far = json(&["link", "show", "ve-red"]);
        assert_eq!((&far[0]["master"], &far[0]["mtu"]), (&"br1".into(), &1400.into()));
        assert_eq!(far[0]["ifalias"], "netyard/lan/network lan");
        assert_eq!(far[0]["linkinfo"]["info_slave_data"]["isolated"], true);
        let tap = &json(&["link", "show", "tap0"])[0]["linkinfo"]["info_data"];
        assert_eq!((&tap["type"], &tap["persist"]), (&"tap".into(), &true.into()), "{tap}");
        assert_eq!(tap["vnet_hdr"], true);
        assert!(tap["user"].is_string(), "the name of user 0, or the number");
        assert_eq!(json(&["link", "show", "tap0"])[0]["master"], "br1");
        let addresses = ip(&["-o", "-4", "address", "show", "br1"]);
        for address in ["192.168.1.10/24", "198.51.100.1/24", "198.51.100.77/24"] {
            assert!(addresses.contains(address), "{addresses}");
        }
        assert!(!ip(&["-4", "address", "show", Outside::UPLINK]).contains("inet "));
        let pair = ip(&["-4", "address", "show", "theirs"]);
        assert!(pair.contains("inet 10.7.0.1 peer 10.7.0.2/32"), "{pair}");
        let routes = ip(&["route"]);
        assert!(routes.contains("default via 198.51.100.2 dev br1"), "{routes}");
        assert!(
            routes.contains("172.16.0.0/12 via 198.51.100.2 dev br1 proto 110 metric 50 mtu 1300"),
            "{routes}"
        );
        assert!(ip(&["-6", "route"]).contains("default via 2001:db8:1::2 dev br1"));
        // The machine is still on the Internet, by its card, in the bridge.
        run(Command::new(peer("ping")).args(["-c1", "-W5", &Outside::ADDRESS4.to_string()]));
        run(Command::new(peer("ping")).args(["-c1", "-W5", &Outside::ADDRESS6.to_string()]));
        let red = Netns::open(&named("red").unwrap()).unwrap();
        assert!(Rtnetlink::open_in(&red).unwrap().link("lo").unwrap().unwrap().up);
        drop(red);

        assert!(matches!(host.apply(&plan), Err(Error::Several(_))), "once is enough");
        host.undo("network lan").unwrap();
        settle();
        before.assert_restored("undone");
        run(Command::new(peer("ping")).args(["-c1", "-W5", &Outside::ADDRESS4.to_string()]));
        host.undo("network lan").unwrap();
        assert!(host.plans().is_empty());
        drop(outside);
    });
}

#[test]
fn every_obstacle_is_found_before_anything_is_made() {
    isolate(|| {
        let _outside = machine();
        ip(&["link", "add", "br1", "type", "bridge"]);
        run(Command::new(peer("nft")).args(["add", "table", "inet", "netyard-lan"]));
        ip(&["netns", "add", "red"]);
        let before = State::take();
        let mut host = open("lan");
        let Err(Error::Several(problems)) = host.apply(&network()) else { panic!() };
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let wanted = ["the link br1", "the namespace red", "the nftables table inet netyard-lan"];
        assert_eq!(text.len(), wanted.len(), "{text:?}");
        for (text, wanted) in text.iter().zip(wanted) {
            assert!(text.starts_with(wanted) && text.contains("not ours"), "{text}");
        }
        before.assert_restored("refused");

        // A kernel without a feature: the refusal names it.
        let less = Features::probe().unwrap().without(["vxlan"]).unwrap();
        let mut other = Host::open(&options("less", less)).unwrap();
        let vxlan = Step::Vxlan {
            name: name("vx9"),
            options: VxlanOptions::new(9),
            mtu: None,
            bridge: Some(name("no-such")),
            port: PortOptions::default(),
        };
        let error = other.apply(&Plan::new("overlay").unwrap().step(vxlan)).unwrap_err();
        assert!(error.to_string().contains("CONFIG_VXLAN"), "{error}");
    });
}

#[test]
fn a_step_that_fails_takes_the_others_back_with_it() {
    isolate(|| {
        let _outside = machine();
        let before = State::take();
        let mut host = open("lan");
        let gateway = Some("203.0.113.99".parse().unwrap());
        let unreachable = Route { gateway, ..Route::new(net("10.0.0.0/8")) };
        let plan = network()
            .step(Step::Route { at: Place::here(name("br1")), route: unreachable })
            .step(sysctl("net/ipv4/conf/br1/proxy_arp", "1"));
        let error = host.apply(&plan).unwrap_err();
        let Error::Step { step, left, .. } = &error else { panic!("{error}") };
        assert!(step.starts_with("add the route 10.0.0.0/8 via 203.0.113.99"), "{step}");
        assert!(left.is_none(), "{error}");
        settle();
        before.assert_restored("taken back");
        assert!(host.plans().is_empty());
    });
}

/// Applies a plan and "dies" at the given moment: everything is dropped, nothing is undone. False:
/// there is no such moment any more.
fn die_at(moment: usize, plan: &Plan) -> bool {
    let seen = Cell::new(0);
    let died = catch_unwind(AssertUnwindSafe(|| {
        let mut host = open("lan");
        host.apply_watched(plan, |_, _| {
            if seen.replace(seen.get() + 1) == moment {
                // Without the message that a panic prints.
                panic_any(());
            }
        })
        .unwrap();
    }));
    died.is_err()
}

#[test]
fn after_a_death_at_any_moment_nothing_is_left_and_nothing_foreign_touched() {
    isolate(|| {
        let _outside = machine();
        let before = State::take();
        std::panic::set_hook(Box::new(|info| {
            if !info.payload().is::<()>() {
                eprintln!("{info}");
            }
        }));
        let plan = network();
        let mut moment = 0;
        while die_at(moment, &plan) {
            let mut host = open("lan");
            assert_eq!(host.plans(), ["network lan"], "moment {moment}");
            host.recover().unwrap_or_else(|error| panic!("moment {moment}: {error}"));
            assert!(host.plans().is_empty());
            drop(host);
            settle();
            before.assert_restored(&format!("moment {moment}"));
            moment += 1;
        }
        assert_eq!(moment, 3 * plan.steps().len());
        // It was applied whole in the end, and its owner has gone.
        let mut host = open("lan");
        host.undo("network lan").unwrap();
        settle();
        before.assert_restored("at last");
    });
}

#[test]
fn a_death_in_the_middle_of_undoing_is_gone_on_with() {
    isolate(|| {
        let _outside = machine();
        let before = State::take();
        for kept in 0..4 {
            let mut host = open("lan");
            host.apply(&network()).unwrap();
            drop(host);
            // The journal as it was before the last `kept` steps were struck out: undone, but not
            // known to be.
            let journal = options("lan", Features::default()).journal;
            let text = std::fs::read(&journal).unwrap();
            let mut host = open("lan");
            match kept {
                0 => host.recover().unwrap(),
                _ => host.undo("network lan").unwrap(),
            }
            drop(host);
            std::fs::write(&journal, text).unwrap();
            let mut host = open("lan");
            host.recover().unwrap_or_else(|error| panic!("{error}"));
            settle();
            before.assert_restored("undone twice");
        }
    });
}

#[test]
fn what_somebody_has_put_in_the_place_of_ours_is_theirs() {
    isolate(|| {
        let _outside = machine();
        let mut host = open("lan");
        host.apply(&network()).unwrap();
        drop(host);
        ip(&["link", "del", "br1"]);
        ip(&["link", "add", "br1", "type", "bridge"]);
        ip(&["address", "add", "192.168.1.10/24", "dev", "br1"]);
        ip(&["link", "del", "tap0"]);
        ip(&["tuntap", "add", "tap0", "mode", "tap"]);
        ip(&["netns", "del", "red"]);
        ip(&["netns", "add", "red"]);
        run(Command::new(peer("nft")).args(["delete", "table", "inet", "netyard-lan"]));
        run(Command::new(peer("nft")).args(["add", "table", "inet", "netyard-lan"]));
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let mut host = open("lan");
        host.recover().unwrap();
        let links = ip(&["-br", "link"]);
        assert!(links.contains("br1 ") && links.contains("tap0 "), "{links}");
        assert!(!links.contains("ve-red") && !links.contains("vx1"), "{links}");
        assert!(ip(&["address", "show", "br1"]).contains("192.168.1.10/24"));
        assert!(Path::new("/run/netns/red").exists());
        run(Command::new(peer("nft")).args(["list", "table", "inet", "netyard-lan"]));
        // The card has its own addresses again.
        assert!(ip(&["address", "show", Outside::UPLINK]).contains("198.51.100.77/24"));
    });
}

#[test]
fn marked_links_and_tables_without_a_journal_are_found_too() {
    isolate(|| {
        let _outside = machine();
        let before = State::take();
        let mut host = open("lan");
        host.apply(&Plan::new("network lan").unwrap().step(bridge("br1"))).unwrap();
        let table = Step::Table { table: Table::inet("orphan").owned(true), content: Batch::new() };
        host.apply(&Plan::new("rules").unwrap().step(table)).unwrap();
        drop(host);
        std::fs::remove_file(options("lan", Features::default()).journal).unwrap();
        // One that was made, and killed before it had its alias.
        let group = Owner::new("lan").unwrap().group().to_string();
        ip(&["link", "add", "half", "group", &group, "type", "bridge"]);
        open("lan").recover().unwrap();
        before.assert_restored("swept");

        // Somebody else's link in our group is not taken with it.
        let mut host = open("lan");
        host.apply(&Plan::new("network lan").unwrap().step(bridge("br1"))).unwrap();
        ip(&["link", "set", "other", "alias", "mine", "group", &group]);
        host.recover().unwrap();
        let links = ip(&["-br", "link"]);
        assert!(links.contains("other ") && !links.contains("br1 "), "{links}");
    });
}

#[test]
fn a_setting_that_two_want_is_put_back_by_the_last() {
    isolate(|| {
        let forward = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        let plan =
            |value| Plan::new("forwarding").unwrap().step(sysctl("net/ipv4/ip_forward", value));
        let (mut lan, mut dmz) = (open("lan"), open("dmz"));
        assert_eq!(forward().trim(), "0");
        lan.apply(&plan("1")).unwrap();
        dmz.apply(&plan("1")).unwrap();
        let error = open("third").apply(&plan("0")).unwrap_err();
        assert!(
            error.to_string().contains("netyard/dmz/forwarding, netyard/lan/forwarding"),
            "{error}"
        );
        lan.undo("forwarding").unwrap();
        assert_eq!(forward().trim(), "1", "dmz still wants it");
        drop(dmz);
        open("dmz").recover().unwrap();
        assert_eq!(forward().trim(), "0");
        // What somebody else set meanwhile stays.
        lan.apply(&plan("1")).unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        lan.undo("forwarding").unwrap();
        assert_eq!(forward().trim(), "0");
        assert!(plan("1").steps()[0].to_string().contains("ip_forward"));
    });
}

#[test]
fn drift_is_found_and_made_right() {
    isolate(|| {
        let _outside = machine();
        let mut host = open("lan");
        host.apply(&network()).unwrap();
        assert!(host.reconcile().unwrap().is_empty());
        ip(&["link", "set", "ve-red", "nomaster", "down", "mtu", "1300"]);
        ip(&["address", "del", "192.168.1.10/24", "dev", "br1"]);
        ip(&["address", "del", "10.7.0.1", "peer", "10.7.0.2", "dev", "theirs"]);
        // Somebody else's, with the same near end.
        ip(&["address", "add", "10.7.0.1", "peer", "10.7.0.9", "dev", "theirs"]);
        ip(&["link", "del", "tap0"]);
        ip(&["rule", "del", "priority", "600", "table", "77"]);
        ip(&["neighbor", "del", "192.168.1.11", "dev", "br1"]);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let drifts = host.reconcile().unwrap();
        let steps: Vec<String> =
            drifts.iter().map(|drift| format!("{}: {:?}", drift.step, drift.repaired)).collect();
        assert!(drifts.iter().all(|drift| matches!(drift.repaired, Ok(true))), "{steps:#?}");
        assert!(drifts.len() >= 7, "{steps:#?}");
        assert!(host.reconcile().unwrap().is_empty());
        let links = ip(&["-br", "link"]);
        assert!(links.contains("tap0"), "{links}");
        assert!(ip(&["link", "show", "ve-red"]).contains("mtu 1400"));
        assert!(ip(&["link", "show", "ve-red"]).contains("master br1"));
        assert!(ip(&["route"]).contains("10.77.0.0/16 via 192.168.1.11"));
        assert!(ip(&["address", "show", "theirs"]).contains("10.7.0.1 peer 10.7.0.2/32"));

        // The table went (on a kernel that cannot own it): its owner is told.
        drop(host);
        run(Command::new(peer("nft")).args(["delete", "table", "inet", "netyard-lan"]));
        let mut host = open("lan");
        let drifts = host.reconcile().unwrap();
        assert!(matches!(drifts.as_slice(), [one] if matches!(one.repaired, Ok(false))));
        host.recover().unwrap();
        let left = ip(&["address", "show", "theirs"]);
        assert!(left.contains("10.7.0.1 peer 10.7.0.9/32") && !left.contains("10.7.0.2"), "{left}");
    });
}

#[test]
fn a_device_that_somebody_else_makes_in_between_stays_theirs() {
    isolate(|| {
        let mut host = open("lan");
        let plan = Plan::new("tap").unwrap().step(Device {
            name: name("tap0"),
            layer: Layer::Frames,
            headers: true,
            user: None,
            mtu: None,
            bridge: None,
            port: PortOptions::default(),
        });
        let made = host.apply_watched(&plan, |_, progress| {
            if progress == Progress::Intended {
                ip(&["tuntap", "add", "tap0", "mode", "tap"]);
            }
        });
        let Err(Error::Step { cause, left: None, .. }) = made else { panic!("{made:?}") };
        assert!(cause.exists(), "{cause}");
        assert!(!ip(&["link", "show", "tap0"]).contains("alias"));
    });
}

#[test]
fn an_older_kernel_gets_the_same_by_other_means() {
    isolate(|| {
        let _outside = machine();
        let older = Features::probe().unwrap().without(["address-mark", "table-owner"]).unwrap();
        let theirs = Place::here(name("theirs"));
        ip(&["address", "add", "10.5.0.1/24", "dev", "theirs"]);
        let before = State::take();
        let mut host = Host::open(&options("lan", older)).unwrap();
        let plan = network()
            .step(Step::Address { at: theirs.clone(), net: net("10.5.0.1/24") })
            .step(Step::Address { at: theirs, net: net("10.6.0.1/24") });
        host.apply(&plan).unwrap();
        let table = host.kernel().nftables().unwrap().table(&Table::inet("netyard-lan")).unwrap();
        assert_eq!(table.unwrap().owner, None);
        drop(host);
        let mut host = Host::open(&options("lan", older)).unwrap();
        host.recover().unwrap();
        settle();
        before.assert_restored("with the address that was there");
    });
}

/// Longer than any step takes.
const SOON: Duration = Duration::from_secs(30);

/// Set for the part of the next test that is killed: run again by it, in a process of its own.
const KILLED: &str = "NETYARD_TEST_KILLED";

/// Applies the plan and takes it back until it is killed.
#[allow(clippy::print_stdout, reason = "tells the test that it has begun")]
fn apply_until_killed() {
    let mut host = open("lan");
    host.recover().unwrap();
    println!("begun");
    loop {
        host.apply(&network()).unwrap();
        host.undo("network lan").unwrap();
    }
}

#[test]
fn after_a_kill_at_any_time_nothing_is_left_and_nothing_foreign_touched() {
    isolate(|| {
        if std::env::var_os(KILLED).is_some() {
            apply_until_killed();
        }
        let _outside = machine();
        let before = State::take();
        let name = "after_a_kill_at_any_time_nothing_is_left_and_nothing_foreign_touched";
        let mut interrupted = 0;
        for delay in 0..30_u64 {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(KILLED, "1");
            let mut victim = Background::start(&mut command);
            victim.wait_for_line("begun", SOON);
            // The time is what is tried out; nothing is waited for.
            std::thread::sleep(Duration::from_micros(7_300 * delay));
            victim.signal("KILL");
            victim.wait(SOON);
            let mut host = open("lan");
            interrupted += usize::from(!host.plans().is_empty());
            host.recover().unwrap_or_else(|error| panic!("after {delay}: {error}"));
            drop(host);
            settle();
            before.assert_restored(&format!("after {delay}"));
        }
        println!("{interrupted} of 30 were killed with something made");
        assert!(interrupted > 0);
    });
}

/// One plug: a pair whose far end is in a namespace, with address and default route there.
fn plug(number: u32, inside: &Netns) -> Plan {
    let at = Place::inside(name("eth0"), inside);
    let address = IpNet::new([10, 1, (number >> 8) as u8, number as u8].into(), 32).unwrap();
    Plan::new(&format!("plug {number}"))
        .unwrap()
        .step(Pair {
            name: name(&format!("ve{number}")),
            mac: None,
            mtu: None,
            bridge: Some(name("br1")),
            port: PortOptions { isolated: Some(true), ..PortOptions::default() },
            peer: Peer { at: at.clone(), mac: Some(MacAddr::from_seed(&number.to_string())) },
        })
        .step(Step::Address { at: at.clone(), net: address })
        .step(Step::Route {
            at,
            route: Route::new(
                IpNet::new([10, 2, (number >> 8) as u8, number as u8].into(), 32).unwrap(),
            ),
        })
}

/// A namespace that lasts as long as the value.
fn namespace() -> Netns {
    let inside = || File::open("/proc/thread-self/ns/net").unwrap();
    let file = netyard_sys::namespace::within_new(Namespaces::NETWORK, inside).unwrap();
    Netns::from_descriptor(file.into()).unwrap()
}

#[test]
fn a_thousand_plugs_that_nobody_has_taken_out_go_with_the_next_start() {
    isolate(|| {
        let before = State::take();
        let mut host = open("lan");
        host.apply(&Plan::new("network lan").unwrap().step(bridge("br1"))).unwrap();
        let namespaces: Vec<_> = (0..1000)
            .map(|number| {
                let inside = namespace();
                let applied = host.apply(&plug(number, &inside));
                applied.unwrap_or_else(|error| panic!("plug {number}: {error}"));
                inside
            })
            .collect();
        assert_eq!(host.plans().len(), 1001);
        // As if it had been killed.
        drop(host);
        open("lan").recover().unwrap();
        before.assert_restored("a thousand plugs later");
        for inside in [&namespaces[0], &namespaces[999]] {
            let left = Rtnetlink::open_in(inside).unwrap().links().unwrap();
            assert_eq!(left.len(), 1, "loopback");
        }
    });
}
