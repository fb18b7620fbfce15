//! Two cards, two routers with NAT, and STUN servers on the Internet behind them.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use netyard_link::netns::Netns;
use netyard_nic::stun::Server;
use netyard_nic::stun::listen::Listening;
use netyard_nic::stun::udp::StunProber;
use netyard_nic::{
    AddressState, Agreement, CardAddress, Confidence, Family, Interface, Probe, Prober as _,
    PublicPolicy, Verdict, card_named,
};
use netyard_testbed::{Namespace, isolate, peer, run, wait_for};

const SERVERS: [&str; 6] = [
    "203.0.113.100",
    "203.0.113.101",
    "203.0.113.102",
    "2001:db8:ff::100",
    "2001:db8:ff::101",
    "2001:db8:ff::102",
];

fn ip(arguments: &str) {
    run(Command::new(peer("ip")).args(arguments.split(' ')));
}

/// The Internet, two routers before it, and a card towards each of them here.
struct Lab {
    _namespaces: [Namespace; 3],
}

impl Lab {
    fn new() -> Self {
        let inet = Namespace::new("inet");
        let on = |namespace: &Namespace, steps: &[&str]| {
            steps.iter().for_each(|step| namespace.ip(&step.split(' ').collect::<Vec<_>>()));
        };
        on(&inet, &["link add name br0 type bridge", "link set br0 up"]);
        for server in SERVERS {
            let prefix = if server.contains(':') { "64 nodad" } else { "24" };
            on(&inet, &[&format!("address add dev br0 {server}/{prefix}")]);
        }
        let nats = [("nat1", "left", 1), ("nat2", "right", 2)].map(|(name, card, number)| {
            let nat = Namespace::new(name);
            ip(&format!("link add {card} type veth peer name lan netns {name}"));
            on(
                &nat,
                &[
                    &format!("link add wan type veth peer name {name} netns inet"),
                    "link set lan up",
                    "link set wan up",
                    &format!("address add 10.{number}.0.1/24 dev lan"),
                    &format!("address add 2001:db8:{number}::1/64 dev lan nodad"),
                    &format!("address add 203.0.113.{number}{number}/24 dev wan"),
                    &format!("address add 2001:db8:ff::{number}/64 dev wan nodad"),
                ],
            );
            on(&inet, &[&format!("link set {name} master br0"), &format!("link set {name} up")]);
            run(nat.command(peer("sysctl")).args(["-qw", "net.ipv4.ip_forward=1"]));
            run(nat.command(peer("sysctl")).args(["-qw", "net.ipv6.conf.all.forwarding=1"]));
            for rule in [
                "add table ip nat",
                "add chain ip nat out { type nat hook postrouting priority 100 ; }",
                "add rule ip nat out ip saddr 10.0.0.0/8 oifname wan masquerade",
            ] {
                run(nat.command(peer("nft")).args(rule.split(' ')));
            }
            ip(&format!("link set {card} up"));
            ip(&format!("address add 10.{number}.0.2/24 dev {card}"));
            ip(&format!("route add default via 10.{number}.0.1 metric {number}00"));
            nat
        });
        // The left one has IPv6, an address that is its own on the Internet, and a block of them.
        ip("address add 2001:db8:1::2/64 dev left nodad");
        ip("-6 route add default via 2001:db8:1::1");
        ip("address add 198.51.100.7/32 dev left");
        ip("route add local 198.18.8.0/24 dev left");
        for net in ["198.51.100.7/32", "198.18.8.0/24"] {
            on(&nats[0], &[&format!("route add {net} via 10.1.0.2")]);
            on(&inet, &[&format!("route add {net} via 203.0.113.11")]);
        }
        on(&inet, &["route add 2001:db8:1::/64 via 2001:db8:ff::1"]);
        serve(&inet);
        wait_for("a link-local address that is ready", Duration::from_secs(20), || {
            let left = card_named("left").unwrap();
            let ready = |it: &CardAddress| it.state == AddressState::Ready;
            left.addresses.iter().all(ready).then_some(())
        });
        let [nat1, nat2] = nats;
        Self { _namespaces: [inet, nat1, nat2] }
    }
}

/// Runs the servers until the test ends.
fn serve(inet: &Namespace) {
    let netns = Netns::open(Path::new(&inet.path())).unwrap();
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        netns.run(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut servers = tokio::task::JoinSet::new();
                for server in SERVERS {
                    let at = SocketAddr::new(server.parse().unwrap(), 3478);
                    let listening = Listening::bind(Server::single(), at).await.unwrap();
                    servers.spawn(listening.serve(None));
                }
                ready.send(()).unwrap();
                while servers.join_next().await.is_some() {}
            });
        })
    });
    is_ready.recv().unwrap();
}

fn load(card: &str) -> Interface {
    let policy = ["203.0.113.0/24", "198.51.100.0/24", "198.18.0.0/15", "2001:db8::/32"];
    let policy = PublicPolicy::treat_as_public(policy.map(|it| it.parse().unwrap()).to_vec());
    let prober = StunProber { servers: SERVERS.map(str::to_owned).to_vec() };
    now(Interface::load(card_named(card).unwrap(), policy, 2, &prober))
}

fn now<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

fn shown(interface: &Interface, family: Family) -> Vec<String> {
    interface.rp(family).routes().iter().map(ToString::to_string).collect()
}

#[test]
fn c16_each_card_has_the_external_addresses_of_its_own_gateway() {
    isolate(|| {
        let _lab = Lab::new();
        let left = load("left");
        assert_eq!(
            shown(&left, Family::Ip4),
            [
                "[10.1.0.2] -> [203.0.113.11]",
                "[198.18.8.0/24] -> [198.18.8.0/24]",
                "[198.51.100.7] -> [198.51.100.7]",
            ]
        );
        let right = load("right");
        assert_eq!(shown(&right, Family::Ip4), ["[10.2.0.2] -> [203.0.113.22]"]);
        let pool = left.rp(Family::Ip4);
        assert_eq!(pool.len(), 1 + 254 + 1);
        for route in pool.routes() {
            assert_eq!(route.confidence(), Some(Confidence::Proven));
            assert!(route.evidence().len() >= 2);
        }
        let ip6 = &left.rp(Family::Ip6).routes()[0];
        assert_eq!(ip6.ext(), Some("2001:db8:1::2".parse().unwrap()));
        assert_eq!((ip6.is_direct(), ip6.nic_ips()), (true, ip6.link_locals()));
        assert!(right.rp(Family::Ip6).routes().is_empty());
        // Any address of the block is an external address: the outside sees it.
        let prober = StunProber { servers: SERVERS.map(str::to_owned).to_vec() };
        for index in [1, 77, 254] {
            let route = pool.get(index).unwrap();
            let external: IpAddr = route.ext().unwrap();
            let probe = Probe { card: route.card().index, from: route.bind_address() };
            let seen = now(prober.probe(probe, Agreement::new(2)));
            assert_eq!(seen.verdict(), Verdict::Seen(external, Confidence::Proven));
        }
        assert_eq!(Interface::from_json(&left.to_json()).unwrap(), left);
    });
}

#[test]
fn c16_a_card_without_a_way_to_the_servers_says_so() {
    isolate(|| {
        let _lab = Lab::new();
        ip("route del default via 10.2.0.1 metric 200");
        assert_eq!(shown(&load("right"), Family::Ip4), {
            ["[10.2.0.2] -> unknown: no server answered"]
        });
        assert_eq!(shown(&load("left"), Family::Ip4)[0], "[10.1.0.2] -> [203.0.113.11]");
    });
}
