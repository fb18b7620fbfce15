//! Labs: what is behind a NAT of each kind finds that NAT, and so does a foreign client.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a failed test")]

mod foreign;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use netyard_nic::lab::{Card, Impairment, Kind, Lab, SERVERS, SERVERS6, SHARED};
use netyard_nic::nat::live::{Options, test};
use netyard_nic::nat::report::Hairpin;
use netyard_nic::nat::simulate::Behaviour;
use netyard_nic::nat::{Confidence, Filtering, Mapping, NatReport, NatType, simulate::Allocation};
use netyard_nic::{External, Family, IpRange, Look, PublicPolicy, card_named};
use netyard_testbed::{isolate, isolate_mapped, peer, wait_for};

use self::foreign::assert_agrees;

/// Far above what anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// How often each NAT is tested; a bar of twenty is reached by setting it.
fn repeats() -> u32 {
    std::env::var("NETYARD_REPEATS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn on_the_machine<T: Send>(lab: &Lab, work: impl Future<Output = T> + Send) -> T {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work)
    };
    lab.machine().run(work).unwrap()
}

/// Tests the NAT from the machine of a lab.
fn examine(lab: &Lab, options: Options) -> NatReport {
    on_the_machine(lab, test(&options)).unwrap()
}

fn options() -> Options {
    Options::new(vec![SERVERS[0].to_string()], Family::Ip4)
}

fn expected(kind: Kind) -> NatType {
    match kind {
        Kind::Open => NatType::OpenInternet,
        Kind::Firewall => NatType::SymmetricUdpFirewall,
        Kind::FullCone => NatType::FullCone,
        Kind::Address => NatType::Restricted,
        Kind::Port | Kind::Carrier => NatType::PortRestricted,
        Kind::Symmetric | Kind::SymmetricSequential => NatType::Symmetric,
        Kind::Blocked => NatType::Blocked,
    }
}

/// An examination of a lab that has found enough. On a machine that is busy one may hear too little, and says so; none
/// takes it for another kind.
fn verdict(lab: &Lab, kind: Option<NatType>, is_enough: impl Fn(&NatReport) -> bool) -> NatReport {
    wait_for("a verdict", LIMIT, || {
        let report = examine(lab, options());
        assert!(report.kind.is_none() || report.kind == kind, "not {kind:?}: {report:#?}");
        Some(report).filter(&is_enough)
    })
}

/// Starts turnutils_natdiscovery on the lab's machine.
fn foreign(lab: &Lab, arguments: &[&str]) -> Output {
    let mut command = Command::new(peer("turnutils_natdiscovery"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    lab.spawn(&mut command).unwrap().wait_with_output().unwrap()
}

#[test]
fn c17_each_kind_is_found_to_be_what_it_is() {
    isolate(|| {
        for kind in Kind::ALL {
            let lab = Lab::up([kind], Impairment::default()).unwrap();
            for round in 0..repeats() {
                let is_proven = |it: &NatReport| it.details.confidence == Confidence::Proven;
                let report = verdict(&lab, Some(expected(kind)), is_proven);
                assert_eq!(report.kind, Some(expected(kind)), "{kind:?} {round}: {report:#?}");
                match kind {
                    // TCP gets out, which proves that UDP is blocked.
                    Kind::Blocked => wait_for("TCP to prove it", LIMIT, || {
                        let tcp = examine(&lab, options()).details.tcp_stun;
                        (tcp == Some(true)).then_some(())
                    }),
                    Kind::Open | Kind::Firewall => {}
                    _ => {
                        assert_eq!(report.details.external.unwrap().ip(), Card::number(0).external)
                    }
                }
            }
        }
    });
}

/// The whole matrix on real sockets: three mappings, three filters, five allocations.
#[test]
fn c17_every_nat_of_the_matrix_is_found() {
    use netyard_nic::nat::Filtering as F;
    use netyard_nic::nat::Mapping as M;
    isolate(|| {
        let mut labs = Vec::new();
        for mapping in [M::EndpointIndependent, M::AddressDependent, M::AddressAndPortDependent] {
            for filtering in
                [F::EndpointIndependent, F::AddressDependent, F::AddressAndPortDependent]
            {
                for allocation in [
                    Allocation::Preserve,
                    Allocation::Shift(1000),
                    Allocation::Sequential(3),
                    Allocation::Random,
                    Allocation::Parity,
                ] {
                    labs.push(Behaviour::new(mapping, filtering, allocation));
                }
            }
        }
        for _ in 0..repeats() {
            // A few at a time: they wait for silence most of the time.
            for some in labs.chunks(9) {
                std::thread::scope(|scope| {
                    for behaviour in some {
                        scope.spawn(move || {
                            let lab = Lab::up([behaviour.clone()], Impairment::default()).unwrap();
                            let (mapping, filtering) = (behaviour.mapping, behaviour.filtering);
                            let kind = NatType::of(Some(mapping), Some(filtering));
                            let report = verdict(&lab, kind, |it| it.details.filtering.is_some());
                            assert_eq!(report.kind, kind, "{behaviour:?}: {report:#?}");
                            assert_eq!(report.details.mapping, Some(mapping), "{behaviour:?}");
                            assert_eq!(report.details.filtering, Some(filtering), "{behaviour:?}");
                        });
                    }
                });
            }
        }
    });
}

#[test]
fn c17_a_foreign_client_says_the_same_with_our_server() {
    isolate(|| {
        for (kind, mapping, filtering) in [
            (Kind::FullCone, Mapping::EndpointIndependent, Filtering::EndpointIndependent),
            (Kind::Address, Mapping::EndpointIndependent, Filtering::AddressDependent),
            (Kind::Port, Mapping::EndpointIndependent, Filtering::AddressAndPortDependent),
            (Kind::Symmetric, Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent),
        ] {
            let lab = Lab::up([kind], Impairment::default()).unwrap();
            let [server, _] = SERVERS;
            assert_agrees(&server.to_string(), mapping, filtering, |arguments| {
                foreign(&lab, arguments)
            });
        }
    });
}

#[test]
fn c18_a_path_that_delays_and_loses_gives_no_wrong_verdict() {
    isolate(|| {
        let impairment = Impairment { delay: Duration::from_millis(100), loss: 0.05 };
        std::thread::scope(|scope| {
            for kind in [Kind::Open, Kind::Firewall, Kind::FullCone, Kind::Address, Kind::Port] {
                scope.spawn(move || {
                    let lab = Lab::up([kind], impairment).unwrap();
                    for _ in 0..repeats() {
                        let report = examine(&lab, options());
                        let found = report.kind;
                        assert!(found.is_none() || found == Some(expected(kind)), "{report:#?}");
                    }
                });
            }
        });
    });
}

#[test]
fn c21_ip6_is_open_or_has_a_firewall() {
    isolate(|| {
        for (kind, expected) in
            [(Kind::Open, NatType::OpenInternet), (Kind::Port, NatType::SymmetricUdpFirewall)]
        {
            let lab = Lab::up([kind], Impairment::default()).unwrap();
            let options = Options::new(vec![SERVERS6[0].to_string()], Family::Ip6);
            let report = examine(&lab, options);
            assert_eq!(report.kind, Some(expected), "{kind:?}: {report:#?}");
            assert_eq!(report.details.mapping, Some(Mapping::None));
        }
    });
}

#[test]
fn c19_hairpin_and_carrier_are_as_they_are() {
    isolate(|| {
        let lab = Lab::up([Kind::Carrier], Impairment::default()).unwrap();
        let report = examine(&lab, Options { hairpin: true, ..options() });
        assert_eq!(report.details.hairpin, Some(Hairpin::External), "{report:#?}");
        let ports = report.details.port.unwrap();
        assert!(ports.min >= 2048 && ports.max <= 4095, "the carrier's block: {ports:?}");
    });
}

#[test]
fn c19_the_gateway_tells_one_nat_from_two() {
    isolate(|| {
        for (kind, layers, external) in [
            (Kind::Open, Some(0), None),
            (Kind::Port, Some(1), Some(Card::number(0).external)),
            (Kind::Carrier, Some(2), Some(SHARED)),
        ] {
            let lab = Lab::up([kind], Impairment::default()).unwrap();
            let details = wait_for("the gateway's word", LIMIT, || {
                Some(examine(&lab, options()).details).filter(|it| it.layers == layers)
            });
            let portmap = details.portmap.unwrap();
            assert_eq!(portmap.external.map(IpAddr::V4), external, "{kind:?}");
            assert_eq!((portmap.pcp, portmap.upnp), (false, false), "{portmap:?}");
            let quiet = Options { gateway: false, ..options() };
            assert_eq!(examine(&lab, quiet).details.portmap, None, "it was not to be asked");
        }
    });
}

#[test]
fn c20_where_udp_is_blocked_routes_are_asked_for_over_tcp() {
    isolate(|| {
        let lab = Lab::up([Kind::Blocked], Impairment::default()).unwrap();
        let look = Look {
            servers: SERVERS.map(|server| server.to_string()).into(),
            agree: 2,
            public: PublicPolicy::treat_as_public(vec!["10.0.0.0/24".parse().unwrap()]),
            gateway: false,
        };
        let seen = on_the_machine(&lab, async {
            let card = card_named("eth0").unwrap();
            look.from(&card, card.source.ip4.unwrap(), false).await
        });
        // There is a firewall, but no NAT.
        let [address, _] = Card::number(0).addresses;
        assert_eq!(seen.external, External::Known(IpRange::host(address)));
    });
}

/// Answers every request in the Internet with this.
fn pages(lab: &Lab, port: u16, answer: &'static str) {
    let at = SocketAddr::new(SERVERS[0], port);
    let listener = lab.internet().run(|| TcpListener::bind(at).unwrap()).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            // A client that goes away is the client's matter.
            _ = stream.read(&mut [0; 1024]);
            _ = stream.write_all(answer.as_bytes());
        }
    });
}

#[test]
fn c20_a_network_that_answers_in_the_place_of_others_is_told() {
    isolate(|| {
        let lab = Lab::up([Kind::Port], Impairment::default()).unwrap();
        pages(&lab, 80, "HTTP/1.1 204 No Content\r\n\r\n");
        pages(
            &lab,
            81,
            "HTTP/1.1 302 Found\r\nlocation: http://login.test/\r\ncontent-length: 0\r\n\r\n",
        );
        pages(&lab, 82, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nlogin");
        let captive = |url: String| {
            let portal = Some(url.parse().unwrap());
            examine(&lab, Options { portal, ..options() }).details.captive_portal
        };
        let server = SERVERS[0];
        assert_eq!(captive(format!("http://{server}/generate_204")), Some(false));
        assert_eq!(captive(format!("http://{server}:81/generate_204")), Some(true));
        assert_eq!(captive(format!("http://{server}:82")), Some(true));
        assert_eq!(captive(format!("http://{server}:83")), None, "nobody is there");
        assert_eq!(examine(&lab, options()).details.captive_portal, None, "it was not asked for");
    });
}

#[test]
fn c16_each_card_has_a_nat_of_its_own() {
    isolate(|| {
        let kinds = [Kind::Port, Kind::Symmetric, Kind::Open];
        let lab = Lab::up(kinds, Impairment::default()).unwrap();
        for (kind, number) in kinds.into_iter().zip(0..) {
            let card = Card::number(number);
            let report = examine(&lab, Options { card: Some(card.name.clone()), ..options() });
            assert_eq!(report.kind, Some(expected(kind)), "{card:?}: {report:#?}");
            let external = if kind == Kind::Open { card.addresses[0] } else { card.external };
            assert_eq!(report.details.external.unwrap().ip(), external);
        }
        // Unless a card is named it is the first.
        assert_eq!(examine(&lab, options()).kind, Some(NatType::PortRestricted));
    });
}

#[test]
fn a_lab_needs_no_root() {
    isolate_mapped(|| {
        let lab = Lab::up([Kind::Port], Impairment::default()).unwrap();
        assert_eq!(examine(&lab, options()).kind, Some(NatType::PortRestricted));
    });
}

#[test]
fn a_lab_leaves_nothing_behind() {
    isolate(|| {
        // Devices and namespaces that are open, by their names.
        let open = || -> Vec<String> {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap();
            let links = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
            let names = links.map(|link| link.to_string_lossy().into_owned());
            names.filter(|name| name.starts_with("net:") || name.contains("tun")).collect()
        };
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        for kind in [Kind::Port, Kind::Blocked] {
            let lab = Lab::up([kind], Impairment::default()).unwrap();
            assert!(open().len() >= 4, "two devices and two namespaces: {:?}", open());
            drop(lab);
        }
        wait_for("devices, namespaces and threads to go", Duration::from_secs(20), || {
            (open().is_empty() && threads() == before).then_some(())
        });
    });
}

#[test]
fn nothing_leads_out_of_a_lab() {
    isolate(|| {
        let lab = Lab::up([Kind::Open], Impairment::default()).unwrap();
        let mut command = Command::new(peer("ip"));
        command.args(["-o", "link", "show"]).stdout(Stdio::piped());
        let said = lab.spawn(&mut command).unwrap().wait_with_output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let links: Vec<&str> = said.lines().collect();
        assert_eq!(links.len(), 2, "loopback and the card of the lab:\n{said}");
    });
}
