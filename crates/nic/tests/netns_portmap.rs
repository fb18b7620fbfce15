//! Port mapping with a real gateway, miniupnpd, which speaks all three protocols.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails is a failed test")]

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use netyard_link::netns::{Netns, named};
use netyard_nic::portmap::live::Mapper;
use netyard_nic::portmap::{Portmap, PortmapError, Protocol, Transport, Wanted};
use netyard_testbed::{Background, Namespace, isolate, peer, run, wait_for};

/// Miniupnpd maps to public addresses only; nothing here leaves the namespaces.
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(1, 3, 3, 7);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ALL: [Protocol; 3] = [Protocol::Pcp, Protocol::NatPmp, Protocol::Upnp];
/// Far above what miniupnpd takes to listen.
const START: Duration = Duration::from_secs(60);
/// Far above what a packet takes to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);

const RULES: &str = "table inet miniupnpd {
    chain forward {
        type filter hook forward priority filter
        jump accepted
    }
    chain prerouting {
        type nat hook prerouting priority dstnat
        jump into
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        jump out
        oifname wan0 masquerade
    }
    chain accepted {
    }
    chain into {
    }
    chain out {
    }
}
";

/// A machine, this namespace as its router, and somebody outside.
struct Site {
    machine: Namespace,
    outside: Namespace,
}

impl Site {
    fn new() -> Self {
        let (machine, outside) = (Namespace::new("machine"), Namespace::new("outside"));
        let ip = |arguments: &str| {
            run(Command::new(peer("ip")).args(arguments.split(' ')));
        };
        ip("link add lan0 type veth peer name eth0 netns machine");
        ip("link add wan0 type veth peer name net0 netns outside");
        ip("address add 10.0.0.1/24 dev lan0");
        ip("address add 1.3.3.7/24 dev wan0");
        ip("link set lan0 up");
        ip("link set wan0 up");
        let inside = |arguments: &str| machine.ip(&arguments.split(' ').collect::<Vec<_>>());
        inside("address add 10.0.0.2/24 dev eth0");
        inside("link set eth0 up");
        inside("route add default via 10.0.0.1");
        let far = |arguments: &str| outside.ip(&arguments.split(' ').collect::<Vec<_>>());
        far("address add 1.3.3.1/24 dev net0");
        far("link set net0 up");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        nft(RULES);
        Self { machine, outside }
    }

    fn on<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
        Netns::open(&named(namespace.name()).unwrap()).unwrap().run(work).unwrap()
    }

    fn on_the_machine<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        Self::on(&self.machine, || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work)
        })
    }

    fn ask(&self) -> Mapper {
        self.on_the_machine(Mapper::open(None, None)).unwrap()
    }

    /// Asks until the gateway says this: it may be slow.
    fn told(&self, what: impl Fn(&Portmap) -> bool) -> Mapper {
        wait_for("the gateway's answers", START, || {
            Some(self.ask()).filter(|mapper| what(mapper.portmap()))
        })
    }

    /// Starts miniupnpd, and waits until it speaks what it should.
    fn miniupnpd(&self, natpmp: bool, upnp: bool) -> Background {
        let word = |on| if on { "yes" } else { "no" };
        let config = format!(
            "ext_ifname=wan0\nlistening_ip=lan0\nsecure_mode=yes\nenable_natpmp={}\n\
             enable_upnp={}\nupnp_table_name=miniupnpd\nupnp_nat_table_name=miniupnpd\n\
             upnp_forward_chain=accepted\nupnp_nat_chain=into\nupnp_nat_postrouting_chain=out\n\
             uuid=6d2a3c5e-0000-4000-8000-000000000001\n\
             allow 1024-65535 10.0.0.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            word(natpmp),
            word(upnp)
        );
        std::fs::write("/run/miniupnpd.conf", config).unwrap();
        let arguments = ["-d", "-f", "/run/miniupnpd.conf", "-P", "/run/miniupnpd.pid"];
        let server = Background::start(Command::new(peer("miniupnpd")).args(arguments));
        self.told(|it| (it.pcp, it.pmp, it.upnp) == (natpmp, natpmp, upnp));
        server
    }

    /// Whether what listens on the machine hears who connects from outside to the external port.
    fn lets_in(&self, port: u16, external_port: u16) -> bool {
        let listener =
            Self::on(&self.machine, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        let to = SocketAddr::new(EXTERNAL.into(), external_port);
        let connected = Self::on(&self.outside, || TcpStream::connect_timeout(&to, ARRIVAL));
        connected.is_ok() && listener.accept().is_ok()
    }
}

fn nft(rules: &str) {
    let mut nft =
        Command::new(peer("nft")).args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
}

fn rules() -> String {
    run(Command::new(peer("nft")).args(["list", "ruleset"]))
}

fn wanted(port: u16, external_port: u16) -> Wanted {
    Wanted { transport: Transport::Tcp, port, external_port, lifetime: Duration::from_secs(600) }
}

#[test]
fn c24_a_gateway_that_is_asked_tells_its_address_and_nothing_is_left_on_it() {
    isolate(|| {
        let site = Site::new();
        let before = rules();
        let _server = site.miniupnpd(true, true);
        let told = Portmap {
            gateway: GATEWAY.into(),
            pcp: true,
            pmp: true,
            upnp: true,
            external: Some(EXTERNAL),
        };
        site.told(|it| *it == told);
        assert_eq!(rules(), before);
    });
}

#[test]
fn a_port_is_let_in_by_each_protocol_and_given_back() {
    isolate(|| {
        let site = Site::new();
        let before = rules();
        let _server = site.miniupnpd(true, true);
        let mapper = site.told(|it| it.protocols().count() == 3);
        for (protocol, port) in ALL.into_iter().zip(8001..) {
            let granted = site
                .on_the_machine(mapper.map_by(&[protocol], wanted(port, port + 1000)))
                .unwrap_or_else(|error| panic!("{protocol}: {error}"));
            assert_eq!((granted.by, granted.external), (protocol, Some(EXTERNAL)));
            assert_eq!(granted.local, SocketAddr::new([10, 0, 0, 2].into(), port));
            assert!((1..=600).contains(&granted.lifetime_s), "{granted:?}");
            assert!(site.lets_in(port, granted.external_port), "{granted:?}");
            // Renewed it is the same.
            let again = wanted(port, granted.external_port);
            let renewed = site.on_the_machine(mapper.map_by(&[protocol], again)).unwrap();
            assert_eq!(renewed.external_port, granted.external_port, "{protocol}");
            site.on_the_machine(mapper.release(&renewed)).unwrap();
            assert_eq!(rules(), before, "{protocol}");
        }
    });
}

#[test]
fn a_gateway_that_speaks_upnp_only_is_asked_by_it() {
    isolate(|| {
        let site = Site::new();
        let _server = site.miniupnpd(false, true);
        // Told over SOAP.
        let mapper = site.told(|it| it.external == Some(EXTERNAL));
        let granted = site.on_the_machine(mapper.map(wanted(8001, 9001))).unwrap();
        assert_eq!((granted.by, granted.external_port), (Protocol::Upnp, 9001));
        wait_for("its address where nothing is to be mapped, too", START, || {
            let said = site.on_the_machine(Mapper::look(None, None)).unwrap();
            (said.external == Some(EXTERNAL)).then_some(())
        });
        assert!(site.lets_in(8001, 9001));
    });
}

#[test]
fn a_gateway_that_refuses_or_is_silent_is_told_apart() {
    isolate(|| {
        let site = Site::new();
        let silent = site.ask();
        assert_eq!(silent.portmap(), &Portmap::silent(GATEWAY.into()));
        let error = site.on_the_machine(silent.map(wanted(8001, 8001))).unwrap_err();
        assert_eq!(error, PortmapError::Silent { gateway: GATEWAY.into() });
        // It would give back what there is.
        let brief = Wanted { lifetime: Duration::from_millis(900), ..wanted(8001, 8001) };
        let error = site.on_the_machine(silent.map(brief)).unwrap_err();
        assert_eq!(error, PortmapError::Lifetime);

        let _server = site.miniupnpd(true, true);
        // What is below 1024 is denied. (By the other two miniupnpd tries, and logs, every other port before it says so.)
        let mapper = site.ask();
        let asked = mapper.map_by(&[Protocol::NatPmp], wanted(80, 80));
        let error = site.on_the_machine(asked).unwrap_err();
        let PortmapError::Refused { reasons, .. } = &error else { panic!("{error}") };
        assert_eq!(reasons.len(), 1, "{error}");

        site.machine.ip(&["route", "del", "default"]);
        let error = site.on_the_machine(Mapper::open(Some("eth0"), None)).unwrap_err();
        assert_eq!(error.to_string(), "eth0 has no IPv4 gateway that could be asked");
    });
}
