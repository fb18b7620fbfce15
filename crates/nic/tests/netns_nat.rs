//! NATs of the Linux kernel, made with `nft`, and a foreign server, coturn: our verdict must be what the
//! rules do, and what coturn's own client says wherever it can tell.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a failed test")]

mod foreign;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use netyard_link::netns::{Netns, named};
use netyard_nic::nat::live::{Options, test};
use netyard_nic::nat::report::Hairpin;
use netyard_nic::nat::{DeltaType, Filtering, Mapping, NatReport, NatType, Rules};
use netyard_nic::stun::names::PORT;
use netyard_nic::stun::{Source, stream};
use netyard_nic::watch::Weight;
use netyard_nic::{Family, Look, NatMonitor, PublicPolicy};
use netyard_testbed::{Background, Namespace, isolate, output, peer, run, wait_for};

use self::foreign::assert_agrees;

const SERVER: &str = "198.51.100.1";
const OTHER: &str = "198.51.100.2";
const EXTERNAL: &str = "203.0.113.1";
/// Far above what coturn takes to listen.
const START: Duration = Duration::from_secs(60);

/// A machine, this namespace as its router, and an Internet with coturn.
struct Site {
    machine: Namespace,
    _internet: Namespace,
    _coturn: Background,
}

impl Site {
    fn new(rules: &str) -> Self {
        let (machine, internet) = (Namespace::new("machine"), Namespace::new("internet"));
        let ip = |arguments: &str| {
            run(Command::new(peer("ip")).args(arguments.split(' ')));
        };
        ip("link add lan0 type veth peer name eth0 netns machine");
        ip("link add wan0 type veth peer name net0 netns internet");
        ip("address add 10.0.0.1/24 dev lan0");
        ip("address add 203.0.113.1/24 dev wan0");
        ip("link set lan0 up");
        ip("link set wan0 up");
        let inside = |arguments: &str| machine.ip(&arguments.split(' ').collect::<Vec<_>>());
        inside("address add 10.0.0.2/24 dev eth0");
        inside("link set eth0 up");
        inside("route add default via 10.0.0.1");
        let outside = |arguments: &str| internet.ip(&arguments.split(' ').collect::<Vec<_>>());
        outside("address add 203.0.113.254/24 dev net0");
        outside("address add 198.51.100.1/32 dev net0");
        outside("address add 198.51.100.2/32 dev net0");
        outside("link set net0 up");
        outside("route add 10.0.0.0/24 via 203.0.113.1");
        ip("route add 198.51.100.0/24 via 203.0.113.254");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        nft(rules);
        let coturn = Background::start(internet.command(peer("turnserver")).args([
            "-n",
            "-S",
            "-L",
            SERVER,
            "-L",
            OTHER,
            "--no-tls",
            "--no-dtls",
            "--no-cli",
            "--log-file=stdout",
            "--simple-log",
            "--pidfile=/run/turnserver.pid",
        ]));
        let site = Self { machine, _internet: internet, _coturn: coturn };
        site.wait_for_server();
        site
    }

    fn wait_for_server(&self) {
        let server = SocketAddr::new(SERVER.parse().unwrap(), PORT);
        wait_for("an answer of coturn", START, || {
            self.on_the_machine(async {
                let source = Source::towards(server, None).await.unwrap();
                stream::ask_tcp(&source, server).await.ok()
            })
        });
    }

    fn on_the_machine<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        let machine = Netns::open(&named(self.machine.name()).unwrap()).unwrap();
        let work = || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work)
        };
        machine.run(work).unwrap()
    }

    fn examine(&self, options: Options) -> NatReport {
        self.on_the_machine(test(&options)).unwrap()
    }

    fn foreign(&self, arguments: &[&str]) -> Output {
        output(self.machine.command(peer("turnutils_natdiscovery")).args(arguments))
    }
}

fn options() -> Options {
    Options::new(vec![SERVER.to_owned()], Family::Ip4)
}

/// Between rules that are made one behind the other: one message holds about 4000 elements, as far as an
/// ordinary user may send it.
const PART: &str = "\n# part\n";

fn nft(rules: &str) {
    rules.split(PART).for_each(nft_part);
}

fn nft_part(rules: &str) {
    let mut nft = Command::new(peer("nft"))
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    let done = nft.wait_with_output().unwrap();
    assert!(done.status.success(), "{}\n{rules}", String::from_utf8_lossy(&done.stderr));
}

/// Drops what comes unasked to the router itself, as every home router does: the kernel would take it for
/// a connection, and give its port to nobody else.
const CLOSED: &str = "table ip closed {
    chain input {
        type filter hook input priority 0;
        iifname wan0 ct state established,related accept
        iifname wan0 drop
    }
}
";

/// A source NAT.
fn source_nat(statement: &str) -> String {
    format!(
        "{CLOSED}table ip nat {{
            chain post {{
                type nat hook postrouting priority srcnat;
                oifname wan0 meta l4proto udp {statement}
                oifname wan0 masquerade
            }}
        }}\n"
    )
}

/// Everything that comes in goes to the one machine.
const EVERYTHING_IN: &str = "table ip open {
    chain pre {
        type nat hook prerouting priority dstnat;
        iifname wan0 meta l4proto udp dnat to 10.0.0.2
    }
}
";

/// A map with an entry for each port, as a NAT that computes the external one.
fn table_of_ports(external: impl Fn(u32) -> u32) -> String {
    let snat = format!("snat to {EXTERNAL}:udp sport map @ports");
    let table = "table ip nat {\nmap ports {\ntype inet_service : inet_service\n}";
    let mut rules = source_nat(&snat).replace("table ip nat {", table);
    for first in (10_000..61_000).step_by(2000) {
        rules.push_str(PART);
        rules.push_str("add element ip nat ports {");
        for port in first..first + 2000 {
            write!(rules, "{port}:{},", external(port) % 64_000 + 1024).unwrap();
        }
        rules.push_str("}\n");
    }
    rules
}

/// Tests the NAT of these rules, and asks coturn's client.
fn row(rules: &str, mapping: Mapping, filtering: Filtering) -> (Site, NatReport) {
    let site = Site::new(rules);
    let report = assert_row(&site, mapping, filtering);
    (site, report)
}

/// The same where the rules are made already.
fn assert_row(site: &Site, mapping: Mapping, filtering: Filtering) -> NatReport {
    let repeats: u32 =
        std::env::var("NETYARD_REPEATS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut report = site.examine(options());
    for round in 0..repeats {
        if round > 0 {
            report = site.examine(options());
        }
        assert_eq!(report.details.mapping, Some(mapping), "{report:#?}");
        assert_eq!(report.details.filtering, Some(filtering), "{report:#?}");
        assert_eq!(report.kind, NatType::of(Some(mapping), Some(filtering)), "{report:#?}");
    }
    assert_agrees(SERVER, mapping, filtering, |arguments| site.foreign(arguments));
    report
}

const EIM: Mapping = Mapping::EndpointIndependent;
const EIF: Filtering = Filtering::EndpointIndependent;
const ADF: Filtering = Filtering::AddressDependent;
const APDF: Filtering = Filtering::AddressAndPortDependent;

#[test]
fn c17_plain_forwarding_is_open() {
    isolate(|| {
        row("", Mapping::None, EIF);
    });
}

#[test]
fn c17_a_stateful_filter_is_a_firewall() {
    let rules = "table ip f {
        chain across {
            type filter hook forward priority 0;
            iifname wan0 ct state established,related accept
            iifname wan0 drop
        }
    }\n";
    isolate(|| {
        row(rules, Mapping::None, APDF);
    });
}

#[test]
fn c17_masquerading_with_everything_let_in_is_a_full_cone() {
    isolate(|| {
        row(&(source_nat("masquerade") + EVERYTHING_IN), EIM, EIF);
    });
}

#[test]
fn c17_ports_that_are_let_in_to_whoever_uses_them_are_full_cones_of_several_machines() {
    // Row 3b: whose port it is, is written down on the way out and looked up on the way in.
    let rules = "table ip cone {
        map owners {
            type inet_service : ipv4_addr . inet_service
            flags dynamic,timeout
            timeout 300s
            size 65536
        }
        chain pre {
            type nat hook prerouting priority dstnat;
            iifname wan0 meta l4proto udp dnat ip to udp dport map @owners
        }
        chain post {
            type nat hook postrouting priority srcnat - 1;
            oifname wan0 meta l4proto udp update @owners { udp sport timeout 300s : ip saddr . udp sport }
        }
    }\n";
    isolate(move || {
        let (site, _) = row(&(source_nat("masquerade") + rules), EIM, EIF);
        site.machine.ip(&["address", "add", "10.0.0.3/24", "dev", "eth0"]);
        for address in ["10.0.0.3", "10.0.0.2"] {
            let address = Some(address.parse().unwrap());
            let report = site.examine(Options { address, ..options() });
            assert_eq!(report.kind, Some(NatType::FullCone), "{address:?}: {report:#?}");
        }
    });
}

#[test]
fn c17_a_filter_of_addresses_spoken_to_restricts() {
    let filter = "table ip filter {
        set spoken {
            type ipv4_addr . inet_service . ipv4_addr
            flags dynamic,timeout
            timeout 60s
            size 65536
        }
        chain across {
            type filter hook forward priority filter; policy accept;
            oifname wan0 meta l4proto udp update @spoken { ip saddr . udp sport . ip daddr timeout 60s }
            iifname wan0 ct state established,related accept
            iifname wan0 meta l4proto udp ip daddr . udp dport . ip saddr @spoken accept
            iifname wan0 drop
        }
    }\n";
    isolate(|| {
        row(&(source_nat("masquerade") + EVERYTHING_IN + filter), EIM, ADF);
    });
}

#[test]
fn c17_plain_masquerading_is_port_restricted_and_keeps_ports() {
    isolate(|| {
        let (site, report) = row(&source_nat("masquerade"), EIM, APDF);
        assert_eq!(report.delta.unwrap().kind, DeltaType::Equal);
        assert!(report.details.port.unwrap().preserve);
        let classic = site.examine(Options { rules: Rules::Classic, ..options() });
        assert_eq!(classic.kind, Some(NatType::PortRestricted), "{classic:#?}");
    });
}

#[test]
fn c17_random_masquerading_is_symmetric() {
    isolate(|| {
        let (_, report) = row(
            &source_nat("masquerade random,fully-random"),
            Mapping::AddressAndPortDependent,
            APDF,
        );
        assert_eq!(report.delta.unwrap().kind, DeltaType::Random);
    });
}

#[test]
fn c17_a_counter_of_ports_is_symmetric_and_counts() {
    let mut entries = String::new();
    for number in 0..2048 {
        write!(entries, "{number}:{},", 40_000 + number * 4).unwrap();
    }
    let rules = source_nat(&format!("snat to {EXTERNAL}:numgen inc mod 2048 map {{ {entries} }}"));
    isolate(move || {
        let (_, report) = row(&rules, Mapping::AddressAndPortDependent, APDF);
        let delta = report.delta.unwrap();
        assert_eq!((delta.kind, delta.signed), (DeltaType::Independent, Some(4)), "{report:#?}");
    });
}

#[test]
fn c17_a_hash_of_addresses_depends_on_addresses() {
    // Of two sockets with one hash the second gets nothing through. So the local ports are in eight parts, each
    // with external ports of its own.
    let mut rules = source_nat("masquerade");
    for part in 0..8 {
        write!(rules, "{PART}insert rule ip nat post oifname wan0 udp sport & 7 == {part} ")
            .unwrap();
        let hash = "jhash ip saddr . udp sport . ip daddr mod 4096";
        write!(rules, "snat to {EXTERNAL}:{hash} map {{").unwrap();
        for number in 0..4096 {
            write!(rules, "{number}:{},", 20_000 + part * 4096 + number).unwrap();
        }
        rules.push_str("}\n");
    }
    isolate(move || {
        row(&rules, Mapping::AddressDependent, APDF);
    });
}

#[test]
fn c17_a_shift_of_ports_preserves_distances() {
    isolate(|| {
        let rules = table_of_ports(|port| port + 3000 - 1024);
        let (_, report) = row(&rules, EIM, APDF);
        let delta = report.delta.unwrap();
        assert_eq!((delta.kind, delta.signed), (DeltaType::Preserving, Some(3000)), "{report:#?}");
    });
}

#[test]
fn c17_a_slope_of_ports_depends_on_the_local_one() {
    isolate(|| {
        let (_, report) = row(&table_of_ports(|port| port * 7), EIM, APDF);
        let delta = report.delta.unwrap();
        assert_eq!((delta.kind, delta.signed), (DeltaType::Dependent, Some(7)), "{report:#?}");
    });
}

#[test]
fn c17_a_fixed_disorder_of_ports_is_random() {
    isolate(|| {
        let (_, report) = row(&table_of_ports(|port| port * port % 63_997), EIM, APDF);
        assert_eq!(report.delta.unwrap().kind, DeltaType::Random, "{report:#?}");
    });
}

#[test]
fn c17_a_block_of_ports_is_seen() {
    isolate(|| {
        // So many that two of them are hardly ever the same.
        let rules = source_nat("masquerade to :20000-59999 random");
        let (_, report) = row(&rules, Mapping::AddressAndPortDependent, APDF);
        let ports = report.details.port.unwrap();
        assert!(ports.min >= 20_000 && ports.max <= 59_999, "{ports:?}");
    });
}

/// Row 13: a router with several external addresses.
fn several_addresses(statement: &str, mapping: Mapping) {
    let site = Site::new(&source_nat(&format!("snat to 203.0.113.1-203.0.113.4{statement}")));
    for address in 2..=4 {
        let address = format!("203.0.113.{address}/32");
        run(Command::new(peer("ip")).args(["address", "add", &address, "dev", "wan0"]));
    }
    assert_row(&site, mapping, APDF);
}

#[test]
fn c17_of_several_external_addresses_a_socket_has_one() {
    // The kernel looks for what a socket has been mapped to before it chooses.
    isolate(|| several_addresses("", EIM));
}

#[test]
fn c17_of_several_external_addresses_a_machine_has_one() {
    isolate(|| several_addresses(" persistent", EIM));
}

#[test]
fn c17_of_several_external_addresses_each_destination_sees_another_one() {
    isolate(|| several_addresses(" random,fully-random", Mapping::AddressAndPortDependent));
}

#[test]
fn c17_silent_udp_is_blocked_whether_dropped_or_rejected() {
    isolate(|| {
        let site = Site::new(&source_nat("masquerade"));
        nft("table ip f {\n chain across {\n type filter hook forward priority 0;\n }\n}\n");
        for verdict in ["drop", "reject with icmp type admin-prohibited"] {
            nft(&format!(
                "flush chain ip f across\nadd rule ip f across meta l4proto udp {verdict}\n"
            ));
            wait_for(&format!("TCP to prove it: {verdict}"), START, || {
                let report = site.examine(options());
                assert_eq!(report.kind, Some(NatType::Blocked), "{verdict}: {report:#?}");
                (report.details.tcp_stun == Some(true)).then_some(())
            });
        }
    });
}

#[test]
fn c19_hairpin_comes_back_with_the_address_that_the_rules_give() {
    // To the external address from inside: back to the machine, as if from outside.
    let hairpin = "table ip hairpin {
        chain pre {
            type nat hook prerouting priority dstnat;
            iifname lan0 ip daddr 203.0.113.1 meta l4proto udp dnat to 10.0.0.2
        }
        chain post {
            type nat hook postrouting priority srcnat;
            iifname lan0 oifname lan0 SOURCE
        }
    }\n";
    isolate(move || {
        let site = Site::new(
            &(source_nat("masquerade")
                + EVERYTHING_IN
                + &hairpin.replace("SOURCE", "snat to 203.0.113.1")),
        );
        let ask = || site.examine(Options { hairpin: true, ..options() }).details.hairpin;
        assert_eq!(ask(), Some(Hairpin::External));
        nft("flush table ip hairpin");
        assert_eq!(ask(), Some(Hairpin::No));
        nft(&hairpin.replace("SOURCE", "masquerade"));
        assert_eq!(ask(), Some(Hairpin::Internal));
    });
}

#[test]
fn c22_a_nat_that_is_swapped_is_noticed_and_tested_anew() {
    isolate(|| {
        let site = Site::new(&source_nat("masquerade"));
        let (told, lines) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let watching = async {
            let look = Look {
                servers: vec![SERVER.to_owned()],
                agree: 1,
                public: PublicPolicy::treat_as_public(vec!["203.0.113.0/24".parse().unwrap()]),
                gateway: false,
            };
            // The NAT tells nobody that it is another one: it is looked at from time to time.
            let every = Duration::from_millis(500);
            let mut monitor = NatMonitor::open(look, &[Family::Ip4], every).unwrap();
            let telling = async {
                loop {
                    let change = monitor.changed().await.unwrap();
                    for event in &change.events {
                        told.send((change.weight, event.to_string())).unwrap();
                    }
                }
            };
            tokio::select! {
                () = telling => {}
                _ = stopped => {}
            }
        };
        std::thread::scope(|scope| {
            let _stop = stop;
            scope.spawn(|| site.on_the_machine(watching));
            // What else changes meanwhile, such as link-local addresses that get ready, is let pass.
            let wait_for = |line: &str| loop {
                let (weight, said) = lines.recv_timeout(START).expect(line);
                if said.starts_with(line) {
                    assert_eq!(weight, Weight::Major, "{line}");
                    break;
                }
            };
            wait_for("external address of IPv4: 203.0.113.1, was ");
            wait_for("NAT of IPv4: restricted by address and port, was ");
            run(Command::new(peer("ip")).args(["address", "add", "203.0.113.2/24", "dev", "wan0"]));
            let symmetric = source_nat("snat to 203.0.113.2 random,fully-random");
            nft(&format!("flush ruleset\n{symmetric}"));
            wait_for("external address of IPv4: 203.0.113.2, was ");
            wait_for("NAT of IPv4: symmetric, was ");
        });
    });
}

#[test]
fn c19_short_lives_of_mappings_are_measured() {
    isolate(|| {
        let site = Site::new(&source_nat("masquerade random,fully-random"));
        for name in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            std::fs::write(format!("/proc/sys/net/netfilter/{name}"), "25").unwrap();
        }
        let lifetime = Some(Duration::from_secs(30));
        let report = site.examine(Options { lifetime, ..options() });
        let details = report.details;
        assert_eq!((details.lifetime_s, details.lifetime_below_s), (Some(20), Some(30)));
    });
}
