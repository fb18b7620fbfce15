//! C21: IPv6 that the Linux kernel translates. Our verdict must be what the rules do.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use netyard_link::netns::Netns;
use netyard_nic::nat::live::{Options, test};
use netyard_nic::nat::{DeltaType, Filtering, Mapping, NatReport, NatType};
use netyard_nic::stun::Server;
use netyard_nic::stun::listen::Listening;
use netyard_nic::{
    External, Family, Interface, IpRange, PublicPolicy, card_named, stun::StunProber,
};
use netyard_testbed::{Namespace, isolate, peer, run};

const SERVERS: [&str; 2] = ["2001:db8:b::1", "2001:db8:b::2"];

/// A machine with a unique local address, this namespace as its router, and an Internet with a STUN server.
struct Site {
    machine: Namespace,
    _internet: Namespace,
}

impl Site {
    fn new(rules: &str) -> Self {
        let (machine, internet) = (Namespace::new("machine"), Namespace::new("internet"));
        let ip = |arguments: &str| run(Command::new(peer("ip")).args(arguments.split(' ')));
        let inside = |arguments: &str| machine.ip(&arguments.split(' ').collect::<Vec<_>>());
        let outside = |arguments: &str| internet.ip(&arguments.split(' ').collect::<Vec<_>>());
        ip("link add lan0 type veth peer name eth0 netns machine");
        ip("link add wan0 type veth peer name net0 netns internet");
        ip("address add fd00:a::1/64 dev lan0 nodad");
        ip("address add 2001:db8:f::1/64 dev wan0 nodad");
        ip("link set lan0 up");
        ip("link set wan0 up");
        inside("address add fd00:a::2/64 dev eth0 nodad");
        inside("link set eth0 up");
        inside("route add default via fd00:a::1");
        outside("address add 2001:db8:f::fe/64 dev net0 nodad");
        for server in SERVERS {
            outside(&format!("address add {server}/128 dev lo nodad"));
        }
        outside("link set net0 up");
        outside("route add 2001:db8:a::/64 via 2001:db8:f::1");
        ip("route add 2001:db8:b::/64 via 2001:db8:f::fe");
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        nft(rules);
        serve(&internet);
        Self { machine, _internet: internet }
    }

    fn on_the_machine<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        let work = || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work)
        };
        Netns::open(&self.machine.path()).unwrap().run(work).unwrap()
    }

    /// What the NAT is, and the external address of the machine's only route.
    fn examine(&self) -> (NatReport, External) {
        let servers = || SERVERS[..1].iter().map(|server| (*server).to_owned()).collect();
        self.on_the_machine(async {
            let report = test(&Options::new(servers(), Family::Ip6)).await.unwrap();
            let card = card_named("eth0").unwrap();
            let public = PublicPolicy::treat_as_public(vec!["2001:db8::/32".parse().unwrap()]);
            let nic = Interface::load(card, public, 1, &StunProber { servers: servers() }).await;
            let routes = nic.rp(Family::Ip6).routes();
            assert_eq!(routes.len(), 1, "{routes:?}");
            (report, routes[0].external().clone())
        })
    }
}

fn nft(rules: &str) {
    let mut nft =
        Command::new(peer("nft")).args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}

/// Answers STUN until the test ends.
fn serve(internet: &Namespace) {
    let netns = Netns::open(&internet.path()).unwrap();
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        netns.run(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let [one, two] = SERVERS.map(|it| it.parse::<IpAddr>().unwrap());
                let (one, two) = (SocketAddr::new(one, 3478), SocketAddr::new(two, 3479));
                let server = Server::full(one, two).unwrap();
                let listening = Listening::bind(server, one).await.unwrap();
                ready.send(()).unwrap();
                listening.serve(None).await.unwrap();
            });
        })
    });
    is_ready.recv().unwrap();
}

/// As every router does, but for what neighbours are found with.
const CLOSED: &str = "table ip6 closed {
    chain input {
        type filter hook input priority 0;
        iifname wan0 ct state established,related accept
        iifname wan0 meta l4proto udp drop
    }
}
";

#[test]
fn c21_nat66_is_restricted_like_its_brother_of_ipv4() {
    let rules = format!(
        "{CLOSED}table ip6 nat {{
            chain post {{
                type nat hook postrouting priority srcnat;
                oifname wan0 masquerade
            }}
        }}\n"
    );
    isolate(move || {
        let (report, external) = Site::new(&rules).examine();
        assert_eq!(report.kind, Some(NatType::PortRestricted), "{report:#?}");
        assert_eq!(report.details.mapping, Some(Mapping::EndpointIndependent));
        let router: IpAddr = "2001:db8:f::1".parse().unwrap();
        assert_eq!(report.details.external.unwrap().ip(), router);
        assert_eq!(external, External::Known(IpRange::host(router)));
    });
}

#[test]
fn c21_a_prefix_that_is_translated_is_open_under_another_address() {
    // RFC 6296, with the kernel's own way to choose addresses: the host's part stays.
    let rules = "table ip6 nat {
        chain pre {
            type nat hook prerouting priority dstnat;
            iifname wan0 dnat ip6 prefix to ip6 daddr map { 2001:db8:a::/64 : fd00:a::/64 }
        }
        chain post {
            type nat hook postrouting priority srcnat;
            oifname wan0 snat ip6 prefix to ip6 saddr map { fd00:a::/64 : 2001:db8:a::/64 }
        }
    }\n";
    isolate(|| {
        let (report, external) = Site::new(rules).examine();
        assert_eq!(report.kind, Some(NatType::FullCone), "{report:#?}");
        assert_eq!(report.details.mapping, Some(Mapping::EndpointIndependent));
        assert_eq!(report.details.filtering, Some(Filtering::EndpointIndependent));
        assert_eq!(report.delta.unwrap().kind, DeltaType::Equal);
        let translated: IpAddr = "2001:db8:a::2".parse().unwrap();
        assert_eq!(report.details.external.unwrap().ip(), translated);
        assert_eq!(external, External::Known(IpRange::host(translated)));
    });
}
