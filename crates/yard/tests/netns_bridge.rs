//! Networks in bridge mode, without the network process: what the plumbing makes of the kernel.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netyard_engine::config::{Bridge, Config, Mode, Uplink};
use netyard_engine::control::{ControlErrorKind, Link, PlugKind, PlugRequest, Plugged, TurnState};
use netyard_engine::edge::PlugId;
use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::{
    KernelForward, KernelInstance, KernelService, Plumbing, Segment, ServiceTraffic,
};
use netyard_engine::service::MAX_CLIENTS;
use netyard_link::Features;
use netyard_link::netns::Netns;
use netyard_sys::tap::{Device, Layer};
use netyard_testbed::{
    Background, Namespace, Outside, State, isolate, output, peer, run, wait_for,
};
use netyard_wire::MacAddr;
use netyard_yard::bridge::Plumber;
use serde_json::Value as Json;

const SOON: Duration = Duration::from_secs(20);

fn config(name: &str, bridge: &str) -> Config {
    Config {
        name: name.into(),
        subnet4: "192.168.1.0/24".parse().unwrap(),
        subnet6: "fd00:1:2:3::/64".parse().unwrap(),
        mode: Mode::Bridge(Bridge { name: Some(bridge.into()), isolate: true }),
        gateway: Some([192, 168, 1, 10].into()),
        gateway_mac: MacAddr::from_seed(name),
        zone: name.into(),
        mtu: 1500,
        uplink: Uplink::Nat,
        host: Vec::new(),
        dhcp: None,
        permanent: false,
    }
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new("/tmp/networks").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A network in bridge mode.
struct Network {
    plumber: Plumber,
    config: Config,
    segment: Segment,
}

impl Network {
    fn open(config: Config) -> Self {
        Self::with(config, Features::probe().unwrap())
    }

    fn with(config: Config, features: Features) -> Self {
        let mut plumber = Plumber::new(&folder(&config.name), features);
        let segment = plumber.open(&config).unwrap();
        Self { plumber, config, segment }
    }

    /// A guest in a namespace of its own, with address and routes.
    fn guest(&mut self, name: &str, number: u32) -> Guest {
        let namespace = Namespace::new(name);
        let plugged = Plugged {
            plug: PlugId(number),
            mac: MacAddr::from_seed(name),
            address4: self.config.nth4(number),
            address6: self.config.nth6(number),
        };
        let file = File::open(namespace.path()).unwrap();
        self.plumber.add_plug(&plugged, &request(name), Some(file.into())).unwrap();
        let address =
            |text: String| namespace.ip(&["address", "add", &text, "dev", "eth0", "nodad"]);
        namespace.ip(&["address", "add", &format!("{}/24", plugged.address4), "dev", "eth0"]);
        address(format!("{}/64", plugged.address6));
        let gateways = [self.config.gateway4().to_string(), self.config.gateway6().to_string()];
        namespace.ip(&["route", "add", "default", "via", &gateways[0]]);
        namespace.ip(&["-6", "route", "add", "default", "via", &gateways[1]]);
        let netns = Netns::open(&namespace.path()).unwrap();
        Guest { namespace, netns, plugged }
    }

    /// The TAP of a machine.
    fn machine(&mut self, name: &str, number: u32) -> OwnedFd {
        let plugged = Plugged {
            plug: PlugId(number),
            mac: MacAddr::from_seed(name),
            address4: self.config.nth4(number),
            address6: self.config.nth6(number),
        };
        let wish = PlugRequest { kind: PlugKind::Tap, ..request(name) };
        let device = Device::create(&format!("tap-{name}"), Layer::Frames, true).unwrap();
        let ours = device.fd.try_clone().unwrap();
        self.plumber.add_plug(&plugged, &wish, Some(ours)).unwrap();
        device.fd
    }

    fn service(&self, name: &str, guests: &[&Guest]) -> KernelService {
        KernelService {
            name: name.into(),
            port: 8080,
            address4: self.config.nth4(253),
            address6: self.config.nth6(253),
            publish: None,
            affinity: None,
            answered_at: Vec::new(),
            instances: guests.iter().map(|guest| guest.instance()).collect(),
            resting: Vec::new(),
        }
    }
}

/// All of these are instances of the service, and those that it does not name get no connections now.
fn rest(service: &mut KernelService, all: &[Guest]) {
    let gets = |name: &String| service.instances.iter().any(|it| it.name == *name);
    let names = all.iter().map(|guest| guest.instance().name);
    service.resting = names.filter(|name| !gets(name)).collect();
}

fn request(name: &str) -> PlugRequest {
    PlugRequest {
        name: name.into(),
        aliases: Vec::new(),
        kind: PlugKind::Namespace,
        features: 0,
        mac: None,
        address: None,
        address6: None,
        link: Link::default(),
        interface: Some(format!("ve-{name}")),
        guest_interface: None,
    }
}

struct Guest {
    namespace: Namespace,
    netns: Netns,
    plugged: Plugged,
}

impl Guest {
    fn addresses(&self) -> [IpAddr; 2] {
        [self.plugged.address4.into(), self.plugged.address6.into()]
    }

    fn instance(&self) -> KernelInstance {
        KernelInstance {
            name: self.namespace.name().into(),
            address4: self.plugged.address4,
            address6: self.plugged.address6,
            weight: 1,
        }
    }

    /// Says its name and whom it speaks with to everybody who connects to this port.
    fn serve(&self, port: u16) {
        serve(&self.netns, self.namespace.name(), port);
    }

    fn pings(&self, to: IpAddr) -> bool {
        let mut command = self.namespace.command(peer("ping"));
        output(command.args(["-c", "1", "-W", "2", &to.to_string()])).status.success()
    }
}

fn serve(netns: &Netns, name: &str, port: u16) {
    let name = name.to_owned();
    let listener = netns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = write!(stream, "{name} {from}");
        }
    });
}

/// Who answers, and whom it sees.
fn ask(from: &Netns, to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (name, seen) = text.split_once(' ').unwrap();
        Ok((name.to_owned(), seen.parse().unwrap()))
    })
    .unwrap()
}

/// Counters of the instances of the service `web`.
fn traffic(network: &mut Network) -> ServiceTraffic {
    network.plumber.services().unwrap().remove("web").unwrap()
}

fn instances(network: &mut Network) -> BTreeMap<String, TurnState> {
    traffic(network).instances.into_iter().collect()
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

fn here() -> Netns {
    Netns::current().unwrap()
}

fn ip(arguments: &[&str]) -> String {
    run(Command::new(peer("ip")).args(arguments))
}

fn ip_json(arguments: &[&str]) -> Json {
    ip(&[&["-j", "-d"], arguments].concat()).parse().unwrap()
}

fn nft(arguments: &[&str]) -> String {
    run(Command::new(peer("nft")).args(arguments))
}

fn forward(text: &str, guest: &Guest) -> KernelForward {
    KernelForward {
        forward: text.parse().unwrap(),
        address4: guest.plugged.address4,
        address6: guest.plugged.address6,
    }
}

/// The host and its outside; the outside knows no route to the segments.
fn machine() -> (Outside, Netns) {
    let outside = Outside::new();
    let netns = Netns::open(&outside.namespace().path()).unwrap();
    settle(&[Outside::UPLINK]);
    (outside, netns)
}

/// Waits until links that have just been switched on have their link-local addresses, which the
/// kernel checks first.
fn settle(links: &[&str]) {
    wait_for("settled addresses", SOON, || {
        let settled = |link: &&str| {
            let text = ip(&["-6", "address", "show", "dev", link]);
            text.contains("fe80:") && !text.contains("tentative")
        };
        links.iter().all(settled).then_some(())
    });
}

#[test]
fn red_and_blue_reach_each_other_the_gateway_and_the_world() {
    isolate(|| {
        let (_outside, world) = machine();
        let before = State::take();
        // The servers stay for the whole test.
        serve(&world, "world", 7000);
        for filter in ["1", "0"] {
            let keys = ["iptables", "ip6tables", "arptables"];
            for key in keys.map(|key| format!("/proc/sys/net/bridge/bridge-nf-call-{key}")) {
                std::fs::write(key, filter).unwrap();
            }
            let mut network = Network::open(config("lab", "br1"));
            assert_eq!(network.segment.interface, "br1");
            assert!(network.segment.warnings.is_empty(), "{:?}", network.segment.warnings);
            let (red, blue) = (network.guest("red", 11), network.guest("blue", 12));
            for address in red.addresses().into_iter().chain([
                network.config.gateway4().into(),
                network.config.gateway6().into(),
                Outside::ADDRESS4.into(),
                Outside::ADDRESS6.into(),
            ]) {
                assert!(blue.pings(address), "{address}");
            }
            red.serve(80);
            for address in red.addresses() {
                assert_eq!(ask(&blue.netns, at(address, 80)).unwrap().0, "red");
                assert_eq!(ask(&here(), at(address, 80)).unwrap().0, "red", "from the host");
            }
            let seen = Outside::ADDRESSES.map(|to| ask(&red.netns, at(to, 7000)).unwrap().1);
            assert_eq!(seen, [IpAddr::V4(Outside::HOST4), IpAddr::V6(Outside::HOST6)]);
            // The outside knows the way, and still nobody may come in.
            let guest = "192.168.1.0/24";
            run(Command::new(peer("nsenter")).args([
                "--net=/run/netns/outside",
                "ip",
                "route",
                "replace",
                guest,
                "via",
                "198.51.100.1",
            ]));
            let refused = ask(&world, at(red.plugged.address4, 80));
            assert!(refused.is_err(), "{refused:?}");
            let links = ip_json(&["link", "show", "ve-red"]);
            assert_eq!(links[0]["master"], "br1");
            assert!(links[0]["ifalias"].as_str().unwrap().starts_with("netyard/lab/"), "{links}");
            let traffic = network.plumber.traffic(PlugId(11)).unwrap();
            assert!(traffic.guest_to_host.frames > 0 && traffic.host_to_guest.bytes > 0);
            drop((red, blue, network));
            for key in keys.map(|key| format!("/proc/sys/net/bridge/bridge-nf-call-{key}")) {
                std::fs::write(key, "1").unwrap();
            }
            before.assert_restored("after the network");
        }
        assert!(!folder("lab").join("links.journal").exists());
    });
}

#[test]
fn groups_reach_their_members() {
    isolate(|| {
        let (_outside, _world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let guests = [("red", 11), ("blue", 12), ("green", 13)];
        let [red, blue, green] = guests.map(|(name, number)| network.guest(name, number));
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let member = |guest: &Guest| {
            let own = guest.plugged.address4;
            let socket =
                guest.netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5000))).unwrap();
            let socket = socket.unwrap();
            socket.join_multicast_v4(&group, &own).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            socket
        };
        let members = [member(&blue), member(&green)];
        let sender = red.netns.run(|| UdpSocket::bind((red.plugged.address4, 0))).unwrap().unwrap();
        let mut heard = [0; 16];
        // Before the bridge has asked who is a member, and after it.
        let asked = || run(Command::new(peer("bridge")).args(["mdb", "show", "dev", "br1"]));
        for text in [&b"before"[..], b"after"] {
            if text == b"after" {
                wait_for("the members' answers", SOON, || {
                    let text = asked();
                    let both = ["ve-blue", "ve-green"]
                        .iter()
                        .all(|port| text.contains(&format!("port {port} grp {group}")));
                    both.then_some(())
                });
                assert!(!asked().contains(&format!("port ve-red grp {group}")));
            }
            for socket in &members {
                wait_for("the group's datagram", SOON, || {
                    sender.send_to(text, (group, 5000)).unwrap();
                    let (len, _) = socket.recv_from(&mut heard).ok()?;
                    (&heard[..len] == text).then_some(())
                });
            }
        }
    });
}

#[test]
fn turns_are_exact_from_everywhere_and_go_on_when_instances_come_and_go() {
    isolate(|| {
        let (_outside, world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let guests: Vec<Guest> =
            (1..=4).map(|n| network.guest(&format!("web-{n}"), 20 + n)).collect();
        guests.iter().for_each(|guest| guest.serve(8080));
        let client = network.guest("client", 30);
        let set = |network: &mut Network, numbers: &[usize]| {
            let chosen: Vec<&Guest> = numbers.iter().map(|n| &guests[n - 1]).collect();
            let mut service = network.service("web", &chosen);
            service.publish = Some("0.0.0.0:9000".parse().unwrap());
            rest(&mut service, &guests);
            network.plumber.set_services(&[service]).unwrap();
        };
        set(&mut network, &[1, 2, 3]);
        let vip4 = at(network.config.nth4(253), 8080);
        let vip6 = at(network.config.nth6(253), 8080);
        let published = at(Outside::HOST4, 9000);
        let ways: [(&Netns, SocketAddr); 6] = [
            (&here(), vip4),
            (&client.netns, vip4),
            (&client.netns, vip6),
            (&world, published),
            // A client that may get its own turn, and one that comes round by the host's address.
            (&guests[0].netns, vip4),
            (&client.netns, published),
        ];
        let mut next = ways.iter().cycle();
        let mut take = |count: usize| -> String {
            let names = (0..count).map(|_| {
                let (from, to) = next.next().unwrap();
                let (name, _) = ask(from, *to).unwrap_or_else(|error| panic!("{to}: {error}"));
                name.strip_prefix("web-").unwrap().to_owned()
            });
            names.collect()
        };
        assert_eq!(take(300), "123".repeat(100));
        assert_eq!(take(1), "1");
        // One more: the order goes on.
        set(&mut network, &[1, 2, 3, 4]);
        assert_eq!(take(6), "234123");
        // The next one goes.
        set(&mut network, &[1, 2, 3]);
        assert_eq!(take(4), "1231");
        set(&mut network, &[1, 3]);
        assert_eq!(take(3), "313");
        let turns: BTreeMap<String, u64> =
            instances(&mut network).into_iter().map(|(name, it)| (name, it.turns)).collect();
        assert_eq!(turns.values().sum::<u64>(), 300 + 1 + 6 + 4 + 3);
        assert_eq!((turns["web-4"], turns["web-2"]), (1, 100 + 2 + 1));
        // Somebody is answered who is not in the network, by the address that they asked.
        assert_eq!(ask(&world, published).unwrap().1, IpAddr::V4(Outside::ROUTER4));

        // Nobody left: refused, not lost, everywhere.
        set(&mut network, &[]);
        for (from, to) in ways {
            let error = ask(from, to).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        }
        assert_eq!(traffic(&mut network).refused, 6);
        // There is nothing else on the virtual address.
        let other = at(network.config.nth4(253), 22);
        serve(&here(), "host", 22);
        assert_eq!(ask(&client.netns, other).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(ask(&world, other).is_err());
        network.plumber.set_services(&[]).unwrap();
        assert!(!nft(&["list", "ruleset"]).contains("/web"), "nothing of it stays");
        let addresses = ip(&["address", "show", "dev", "br1"]);
        assert!(!addresses.contains("192.168.1.253"), "{addresses}");
    });
}

#[test]
fn weights_are_exact_and_change_without_losing_the_place() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let guests: Vec<Guest> =
            (1..=3).map(|n| network.guest(&format!("web-{n}"), 20 + n)).collect();
        guests.iter().for_each(|guest| guest.serve(8080));
        let set = |network: &mut Network, weights: &[(usize, u32)]| {
            let chosen: Vec<&Guest> = weights.iter().map(|(n, _)| &guests[n - 1]).collect();
            let mut service = network.service("web", &chosen);
            for (instance, (_, weight)) in service.instances.iter_mut().zip(weights) {
                instance.weight = *weight;
            }
            rest(&mut service, &guests);
            network.plumber.set_services(&[service]).unwrap();
        };
        let vips = [at(network.config.nth4(253), 8080), at(network.config.nth6(253), 8080)];
        let mut vips = vips.iter().cycle();
        let mut take = |count: usize| -> String {
            let names = (0..count).map(|_| ask(&here(), *vips.next().unwrap()).unwrap().0);
            names.map(|name| name.strip_prefix("web-").unwrap().to_owned()).collect()
        };
        set(&mut network, &[(1, 3), (2, 1), (3, 1)]);
        assert_eq!(take(50), "11213".repeat(10));
        assert_eq!(take(2), "11");
        set(&mut network, &[(1, 2), (2, 2), (3, 1)]);
        assert_eq!(take(5), "21231");
        set(&mut network, &[(1, 2), (3, 1)]);
        assert_eq!(take(6), "131131");
        let turns: Vec<u64> = instances(&mut network).values().map(|it| it.turns).collect();
        assert_eq!(turns, [30 + 2 + 2 + 4, 10 + 2, 10 + 1 + 2]);
    });
}

#[test]
fn a_client_stays_with_its_instance_for_a_time() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let guests: Vec<Guest> =
            (1..=3).map(|n| network.guest(&format!("web-{n}"), 20 + n)).collect();
        guests.iter().for_each(|guest| guest.serve(8080));
        let (red, blue) = (network.guest("red", 31), network.guest("blue", 32));
        let set = |network: &mut Network, numbers: &[usize], affinity: Option<u64>| {
            let chosen: Vec<&Guest> = numbers.iter().map(|n| &guests[n - 1]).collect();
            let affinity = affinity.map(Duration::from_secs);
            let service = KernelService { affinity, ..network.service("web", &chosen) };
            network.plumber.set_services(&[service]).unwrap();
        };
        let vip4 = at(network.config.nth4(253), 8080);
        let vip6 = at(network.config.nth6(253), 8080);
        let names = |from: &Netns, to: SocketAddr, count: usize| -> String {
            let names = (0..count).map(|_| ask(from, to).unwrap().0);
            names.map(|name| name.strip_prefix("web-").unwrap().to_owned()).collect()
        };
        set(&mut network, &[1, 2, 3], Some(600));
        assert_eq!(names(&red.netns, vip4, 3), "111");
        assert_eq!(names(&blue.netns, vip4, 3), "222");
        assert_eq!(names(&red.netns, vip6, 3), "333", "by another address it is another client");
        assert_eq!(names(&here(), vip4, 2), "11");
        let counted = traffic(&mut network);
        assert_eq!((counted.clients, counted.clients_not_kept), (4, 0));
        let turns: Vec<u64> = instances(&mut network).values().map(|it| it.turns).collect();
        assert_eq!(turns, [5, 3, 3], "connections, whoever they come from");

        // One leaves and comes back: who had it does not return to it, asked meanwhile or not.
        set(&mut network, &[2, 3], Some(600));
        assert_eq!(traffic(&mut network).clients, 2);
        assert_eq!(names(&here(), vip4, 2), "22");
        set(&mut network, &[1, 2, 3], Some(600));
        assert_eq!(names(&here(), vip4, 2), "22");
        assert_eq!(names(&red.netns, vip4, 2), "33");
        assert_eq!(names(&blue.netns, vip4, 2), "22", "whose instance stayed");

        // A short time, and none.
        set(&mut network, &[1, 2, 3], Some(1));
        assert_eq!(names(&red.netns, vip6, 1), "3");
        set(&mut network, &[1, 2, 3], None);
        assert_eq!(names(&red.netns, vip4, 4), "1231");
        assert!(!nft(&["list", "ruleset"]).contains("kept/"));
        set(&mut network, &[1, 2, 3], Some(1));
        assert_eq!(names(&red.netns, vip4, 1), "2");
        wait_for("the end of its time", SOON, || {
            (traffic(&mut network).clients == 0).then_some(())
        });
        assert_eq!(names(&red.netns, vip4, 1), "3");
        network.plumber.set_services(&[]).unwrap();
        assert!(!nft(&["list", "ruleset"]).contains("/web"), "nothing of it stays");
    });
}

#[test]
fn clients_that_find_the_table_full_take_turns_and_are_counted() {
    isolate(|| {
        // A table that this test may fill.
        let features = Features::probe().unwrap().without(["table-owner"]).unwrap();
        let mut network = Network::with(config("lab", "br1"), features);
        let (one, two) = (network.guest("one", 21), network.guest("two", 22));
        one.serve(8080);
        two.serve(8080);
        let affinity = Some(Duration::from_secs(600));
        let service = KernelService { affinity, ..network.service("web", &[&one, &two]) };
        network.plumber.set_services(&[service]).unwrap();
        let strangers = (0..MAX_CLIENTS).map(|n| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
            format!("{address} timeout 1h : 0xffffffff")
        });
        let strangers: Vec<String> = strangers.collect();
        let script = folder("lab").join("strangers.nft");
        let name = "inet netyard-lab kept/web/4";
        // As many at a time as an ordinary user's socket takes in one message.
        for some in strangers.chunks(1024) {
            let elements = some.join(", ");
            std::fs::write(&script, format!("add element {name} {{ {elements} }}")).unwrap();
            nft(&["-f", script.to_str().unwrap()]);
        }
        let vip = at(network.config.nth4(253), 8080);
        let names: Vec<String> = (0..4).map(|_| ask(&here(), vip).unwrap().0).collect();
        assert_eq!(names, ["one", "two", "one", "two"]);
        let counted = traffic(&mut network);
        assert_eq!((counted.clients, counted.clients_not_kept), (0, 4));
    });
}

#[test]
fn an_instance_that_leaves_keeps_its_connections() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let (one, two) = (network.guest("one", 21), network.guest("two", 22));
        let vip = at(network.config.nth4(253), 8080);
        let listener =
            one.netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))).unwrap().unwrap();
        two.serve(8080);
        let service = network.service("web", &[&one, &two]);
        network.plumber.set_services(&[service]).unwrap();
        let mut open = TcpStream::connect(vip).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        let service = network.service("web", &[&two]);
        network.plumber.set_services(&[service]).unwrap();
        let state = |network: &mut Network| instances(network)["one"];
        assert!(state(&mut network).draining && state(&mut network).open == 1);
        let tracked = network.plumber.tracked().unwrap();
        assert_eq!((tracked.flows.tcp, &tracked.services["web"]), (1, &traffic(&mut network)));
        for _ in 0..4 {
            assert_eq!(ask(&here(), vip).unwrap().0, "two");
        }
        open.write_all(b"still here").unwrap();
        let mut heard = [0; 10];
        served.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still here");
        // Who has said everything may still be listening.
        open.shutdown(Shutdown::Write).unwrap();
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
        assert!(state(&mut network).draining && state(&mut network).open == 1);
        served.write_all(b"the end").unwrap();
        open.read_exact(&mut [0; 7]).unwrap();
        drop((open, served));
        wait_for("nothing is known of it any more", SOON, || {
            (!instances(&mut network).contains_key("one")).then_some(())
        });

        // One that rests keeps its counters, and who comes back begins anew.
        let mut service = network.service("web", &[&one]);
        service.resting = vec!["two".into()];
        network.plumber.set_services(&[service]).unwrap();
        let turns = instances(&mut network).into_iter().map(|(name, it)| (name, it.turns));
        assert_eq!(turns.collect::<Vec<_>>(), [("one".into(), 0), ("two".into(), 4)]);
    });
}

#[test]
fn connections_of_a_plug_that_goes_are_reset_and_take_no_turn() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let (one, two) = (network.guest("one", 21), network.guest("two", 22));
        let vip = at(network.config.nth4(253), 8080);
        let listener =
            one.netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))).unwrap().unwrap();
        two.serve(8080);
        let service = network.service("web", &[&one, &two]);
        network.plumber.set_services(&[service]).unwrap();
        let mut open = TcpStream::connect(vip).unwrap();
        open.set_read_timeout(Some(SOON)).unwrap();
        let _served = listener.accept().unwrap();
        let service = network.service("web", &[&two]);
        network.plumber.set_services(&[service]).unwrap();
        assert!(instances(&mut network)["one"].draining);
        network.plumber.remove_plugs(&[one.plugged.plug]);
        assert!(!instances(&mut network).contains_key("one"));
        open.write_all(b"anybody there?").unwrap();
        assert_eq!(open.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(instances(&mut network)["two"].turns, 0);
        assert_eq!(ask(&here(), vip).unwrap().0, "two");
    });
}

#[test]
fn connections_from_before_are_nobody_elses() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let one = network.guest("one", 21);
        let vip = at(network.config.nth4(253), 8080);
        let listener =
            one.netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))).unwrap().unwrap();
        let service = network.service("web", &[&one]);
        network.plumber.set_services(&[service]).unwrap();
        let _open = TcpStream::connect(vip).unwrap();
        let _served = listener.accept().unwrap();
        assert_eq!(instances(&mut network)["one"].open, 1);
        drop(network);
        let mut network = Network::open(config("lab", "br1"));
        let two = network.guest("two", 22);
        let service = network.service("web", &[&two]);
        network.plumber.set_services(&[service]).unwrap();
        assert_eq!(instances(&mut network)["two"].open, 0);
    });
}

#[test]
fn forwards_lead_in_by_any_address_or_one_and_come_and_go_in_one_step() {
    isolate(|| {
        let (_outside, world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let (one, two) = (network.guest("one", 21), network.guest("two", 22));
        one.serve(80);
        two.serve(80);
        let own = Outside::HOST4;
        let first = [
            forward("0.0.0.0:8080:80", &one),
            forward(&format!("{own}:8081:80"), &two),
            forward("[::]:8080:80", &two),
        ];
        network.plumber.change_forwards(&[], &first).unwrap();
        assert_eq!(ask(&world, at(own, 8080)).unwrap(), ("one".into(), Outside::ROUTER4.into()));
        assert_eq!(ask(&world, at(own, 8081)).unwrap().0, "two");
        assert_eq!(ask(&world, at(Outside::HOST6, 8080)).unwrap().0, "two");
        assert_eq!(ask(&here(), at(own, 8080)).unwrap().0, "one", "from the host itself");
        assert_eq!(ask(&two.netns, at(own, 8080)).unwrap().0, "one", "from inside");
        assert_eq!(ask(&one.netns, at(own, 8080)).unwrap().0, "one", "from itself");
        let (tcp, own6) = (Protocol::Tcp, at(Ipv6Addr::UNSPECIFIED, 8080));
        let counted = network.plumber.forward_traffic();
        let everywhere = (tcp, at(Ipv4Addr::UNSPECIFIED, 8080));
        assert_eq!(
            counted,
            BTreeMap::from([(everywhere, 4), ((tcp, at(own, 8081)), 1), ((tcp, own6), 1)])
        );
        // Only what is for this machine: traffic that passes through is not touched.
        serve(&world, "world", 8080);
        assert_eq!(ask(&one.netns, at(Outside::ADDRESS4, 8080)).unwrap().0, "world");
        // Loopback is not the kernel's.
        assert!(ask(&here(), at(Ipv4Addr::LOCALHOST, 8080)).is_err());

        let other = [forward("0.0.0.0:8080:80", &two)];
        network.plumber.change_forwards(&first, &other).unwrap();
        assert_eq!(ask(&world, at(own, 8080)).unwrap().0, "two", "no stale rule");
        assert!(ask(&world, at(own, 8081)).is_err());

        // Ten thousand ports.
        let range = [forward("0.0.0.0:20000-29999:30000-39999/udp", &one)];
        network.plumber.change_forwards(&other, &range).unwrap();
        let server = one.netns.run(|| UdpSocket::bind("0.0.0.0:34321")).unwrap().unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        let client = world.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        client.connect((own, 24_321)).unwrap();
        client.send(b"hello").unwrap();
        let mut heard = [0; 16];
        let (len, from) = server.recv_from(&mut heard).unwrap();
        assert_eq!((&heard[..len], from.ip()), (&b"hello"[..], Outside::ROUTER4.into()));
        server.send_to(b"answer", from).unwrap();
        client.recv(&mut heard).unwrap();
        // A forward that has gone has gone for those who know it, too.
        network.plumber.change_forwards(&range, &[]).unwrap();
        client.send(b"again").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(server.recv_from(&mut heard).is_err(), "the old connection goes on");
    });
}

#[test]
fn networks_are_isolated_in_both_directions_unless_both_are_open() {
    isolate(|| {
        let (_outside, _) = machine();
        let second = |isolate| Config {
            subnet4: "10.9.0.0/24".parse().unwrap(),
            subnet6: "fd00:9::/64".parse().unwrap(),
            gateway: None,
            mode: Mode::Bridge(Bridge { name: Some("br2".into()), isolate }),
            ..config("other", "br2")
        };
        for (open, other_open) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut first = config("lab", "br1");
            first.mode = Mode::Bridge(Bridge { name: Some("br1".into()), isolate: !open });
            let (mut lab, mut other) = (Network::open(first), Network::open(second(!other_open)));
            // Each learns of the other.
            lab.plumber.handle_changes();
            other.plumber.handle_changes();
            let (red, blue) = (lab.guest("red", 11), other.guest("blue", 12));
            red.serve(80);
            blue.serve(80);
            let both = open && other_open;
            for (from, to) in [(&red, &blue), (&blue, &red)] {
                for (own, address) in from.addresses().into_iter().zip(to.addresses()) {
                    let answer = ask(&from.netns, at(address, 80)).ok();
                    let expected = both.then(|| (to.namespace.name().to_owned(), own));
                    assert_eq!(answer, expected, "{open} {other_open} {address}");
                }
            }
            // Both sides count what they refuse.
            let (drops, policy) = {
                let [lab, other] = [&mut lab, &mut other].map(|it| it.plumber.refusals());
                (
                    lab.drops.contains_key("other-network"),
                    other.policy.get("other-network").copied(),
                )
            };
            assert_eq!(policy.is_some(), !other_open, "{open} {other_open}");
            assert_eq!(drops, !open && other_open, "{open} {other_open}");
            // What is published is for everybody, but not virtual addresses.
            let mut service = other.service("web", &[&blue]);
            service.port = 80;
            service.publish = Some("0.0.0.0:9000".parse().unwrap());
            other.plumber.set_services(&[service]).unwrap();
            assert_eq!(ask(&red.netns, at(Outside::HOST4, 9000)).unwrap().0, "blue");
            assert!(ask(&red.netns, at(other.config.nth4(253), 80)).is_err());
            // Nor is the host's own: only what is named.
            let host = TcpListener::bind("0.0.0.0:5432").unwrap();
            let refused = ask(&red.netns, at(lab.config.gateway4(), 5432)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            drop(host);
        }
    });
}

#[test]
fn isolation_knows_networks_that_have_joined_a_bridge() {
    isolate(|| {
        let (_outside, _) = machine();
        for bridge in ["br1", "br2"] {
            ip(&["link", "add", bridge, "type", "bridge"]);
        }
        for (uplink, isolate) in [(Uplink::Routed, true), (Uplink::Nat, false)] {
            let on = |name: &str, bridge: &str| Config {
                mode: Mode::Bridge(Bridge { name: Some(bridge.into()), isolate }),
                uplink: uplink.clone(),
                ..config(name, bridge)
            };
            let mut lab = Network::open(on("lab", "br1"));
            let mut other = Network::open(Config {
                subnet4: "10.9.0.0/24".parse().unwrap(),
                subnet6: "fd00:9::/64".parse().unwrap(),
                gateway: None,
                ..on("other", "br2")
            });
            // The first learns of the second, which has seen it.
            lab.plumber.handle_changes();
            let (red, blue) = (lab.guest("red", 11), other.guest("blue", 12));
            red.serve(80);
            blue.serve(80);
            for (from, to) in [(&red, &blue), (&blue, &red)] {
                for (own, address) in from.addresses().into_iter().zip(to.addresses()) {
                    let answer = ask(&from.netns, at(address, 80)).ok();
                    let expected = (!isolate).then(|| (to.namespace.name().to_owned(), own));
                    assert_eq!(answer, expected, "{uplink:?} {address}");
                }
            }
            for (table, bridge) in [("netyard-lab", "br2"), ("netyard-other", "br1")] {
                let others = nft(&["list", "set", "inet", table, "others"]);
                assert!(others.contains(bridge), "{uplink:?} {others}");
            }
            let refusals = other.plumber.refusals();
            for counted in [refusals.drops, refusals.policy] {
                assert_eq!(counted.contains_key("other-network"), isolate, "{uplink:?}");
            }
        }
    });
}

#[test]
fn what_the_network_answers_itself_is_reached_by_its_service_only() {
    isolate(|| {
        let (_outside, world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let red = network.guest("red", 11);
        let gateway = at(network.config.gateway4(), 18_080);
        let mut service = network.service("web", &[&red]);
        service.answered_at = vec![gateway];
        network.plumber.set_services(&[service]).unwrap();
        serve(&here(), "proxy", 18_080);
        // The neighbour knows the way.
        world
            .run(|| ip(&["route", "replace", "192.168.1.0/24", "via", &Outside::HOST4.to_string()]))
            .unwrap();
        let vip = at(network.config.nth4(253), 8080);
        for again in [false, true] {
            for from in [&here(), &red.netns] {
                assert_eq!(ask(from, vip).unwrap().0, "proxy", "{again}");
            }
            for from in [&world, &red.netns] {
                let refused = ask(from, gateway).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{again}");
            }
            nft(&["flush", "ruleset"]);
            network.plumber.handle_changes();
        }
        // A port that is free again is the machine's.
        network.plumber.set_services(&[]).unwrap();
        assert_eq!(ask(&world, gateway).unwrap().0, "proxy");
    });
}

/// Sends frames as they are, from a guest's link.
const SEND_FRAMES: &str = r#"
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for frame in sys.argv[1:]:
    s.send(bytes.fromhex(frame))
"#;

/// Says what comes to a guest's link.
const HEAR_FRAMES: &str = r#"
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 3))
print("listening")
while True:
    print(s.recv(2000).hex())
"#;

#[test]
fn guests_send_with_their_own_addresses_only() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let (red, blue) = (network.guest("red", 11), network.guest("blue", 12));
        let python = |guest: &Guest, program: &str, arguments: &[String]| {
            let mut command = guest.namespace.command(peer("env"));
            command.args(["python3", "-u", "-c", program]).args(arguments);
            command
        };
        let mut ears = Background::start(&mut python(&blue, HEAR_FRAMES, &[]));
        ears.wait_for_line("listening", SOON);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let own = hex(&red.plugged.mac.0);
        let asks = |mac: &str, sender: &str, address: &[u8], target: &[u8]| {
            let (address, target) = (hex(address), hex(target));
            let end = "00".repeat(18);
            format!(
                "ffffffffffff{mac}08060001080006040001{sender}{address}000000000000{target}{end}"
            )
        };
        let arp = |mac: &str, sender: &str, address: &[u8]| {
            asks(mac, sender, address, &blue.plugged.address4.octets())
        };
        // UDP without a checksum, to everybody.
        let ipv4 = |mac: &str, source: &[u8], port: u16| {
            let mut header = [0x45, 0, 0, 28, 0, 0, 0x40, 0, 0x40, 17, 0, 0].to_vec();
            header.extend(source);
            header.extend([255; 4]);
            let sum = netyard_wire::checksum::finish(netyard_wire::checksum::sum(&header));
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let body = format!("{port:04x}004400080000");
            format!("ffffffffffff{mac}0800{}{body}", hex(&header))
        };
        let ipv6 = |mac: &str, source: Ipv6Addr, kind: u8, target: Ipv6Addr| {
            let to = "ff020000000000000000000000000001";
            let body = format!("{kind:02x}00000020000000{}", hex(&target.octets()));
            format!("333300000001{mac}86dd6000000000183aff{}{to}{body}", hex(&source.octets()))
        };
        let (red4, red6) = (red.plugged.address4.octets(), red.plugged.address6);
        let nobody = Ipv6Addr::UNSPECIFIED;
        let other = "020000000099";
        let (honest, lies) = (
            [
                arp(&own, &own, &red4),
                asks(&own, &own, &[0; 4], &red4),
                ipv4(&own, &red4, 4000),
                ipv6(&own, red6, 136, red6),
                ipv6(&own, nobody, 135, red6),
                ipv6(&own, nobody, 135, "fe80::77".parse().unwrap()),
                ipv6(&own, "fe80::77".parse().unwrap(), 136, "fe80::77".parse().unwrap()),
            ],
            [
                arp(other, &own, &red4),
                arp(&own, other, &red4),
                arp(&own, &own, &network.config.gateway4().octets()),
                ipv4(&own, &[192, 168, 1, 12], 4000),
                ipv4(&own, &[10, 9, 9, 9], 4000),
                ipv4(other, &red4, 4000),
                // A DHCP server, a router, a redirect.
                ipv4(&own, &red4, 67),
                ipv6(&own, red6, 134, red6),
                ipv6(&own, red6, 137, red6),
                // Somebody else, and the gateway.
                ipv6(&own, red6, 136, blue.plugged.address6),
                ipv6(&own, blue.plugged.address6, 135, red6),
                ipv6(&own, red6, 136, network.segment.mac.link_local()),
                ipv6(&own, network.segment.mac.link_local(), 135, red6),
                // Claims to addresses of others before they have them.
                arp(&own, &own, &[0; 4]),
                ipv6(&own, nobody, 135, blue.plugged.address6),
                ipv6(&own, nobody, 135, network.segment.mac.link_local()),
                // What nobody knows.
                format!("ffffffffffff{own}88b5{}", "00".repeat(46)),
            ],
        );
        // Behind each frame one that surely arrives, unlike any other.
        let mut hears = |number: usize, frame: &String| {
            let mark =
                format!("ffffffffffff{own}0806{}{number:08x}", &arp(&own, &own, &red4)[28..84]);
            run(&mut python(&red, SEND_FRAMES, &[frame.clone(), mark.clone()]));
            ears.wait_for_line(&mark, SOON);
            ears.output().contains(frame)
        };
        for (number, frame) in honest.iter().enumerate() {
            assert!(hears(number, frame), "honest {number}");
        }
        for (number, frame) in lies.iter().enumerate() {
            assert!(!hears(100 + number, frame), "lie {number}");
        }
        // Behind a VLAN tag is what else would pass; whoever hears it has the tag taken off.
        let tagged = [
            ("8100000a", ipv4(&own, &red4, 4001)),
            ("88a8000a", ipv4(&own, &red4, 4002)),
            ("8100000a", asks(&own, &own, &red4, &[192, 168, 1, 77])),
        ];
        for (tag, frame) in &tagged {
            let (addresses, rest) = frame.split_at(24);
            run(&mut python(&red, SEND_FRAMES, &[format!("{addresses}{tag}{rest}")]));
        }
        assert!(hears(200, &honest[0]));
        for (tag, frame) in &tagged {
            assert!(!ears.output().contains(frame), "{tag} {frame}");
        }
        drop(ears);
        let drops = network.plumber.refusals().drops;
        let expected = [
            ("rogue-dhcp", 1),
            ("rogue-redirect", 1),
            ("rogue-router", 1),
            ("spoofed-arp", 3),
            ("spoofed-ip", 4),
            ("spoofed-mac", 2),
            ("spoofed-ndp", 4),
            ("unknown-ethertype", 4),
        ];
        assert_eq!(drops, expected.map(|(name, count)| (name.to_owned(), count)).into());
        // The same address again, for somebody else.
        network.plumber.remove_plugs(&[red.plugged.plug]);
        assert!(!nft(&["list", "ruleset"]).contains("ve-red"));
    });
}

/// Flushes all rules again and again while clients connect. What is open goes on; new connections
/// are made all the time where tables can be owned, and after the repair where they cannot.
fn flush_under_load(network: &mut Network, owned: bool) {
    let vip = at(network.config.nth4(253), 8080);
    let mut open = TcpStream::connect(at(Outside::HOST4, 9001)).unwrap();
    open.set_read_timeout(Some(SOON)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut failed = 0;
                    while !stop.load(Ordering::Relaxed) {
                        failed += u32::from(ask(&here(), vip).is_err());
                    }
                    failed
                })
            })
            .collect();
        for _ in 0..10 {
            nft(&["flush", "ruleset"]);
            assert_eq!(network.plumber.handle_changes(), []);
            assert_eq!(ask(&here(), vip).unwrap().0, "one");
            open.write_all(b"echo").unwrap();
            open.read_exact(&mut [0; 4]).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        let failed: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert!(failed == 0 || !owned, "{failed} connections failed");
    });
}

#[test]
fn the_rules_outlive_a_flush_by_somebody_else() {
    isolate(|| {
        let all = Features::probe().unwrap();
        let (_outside, world) = machine();
        for features in [all, all.without(["table-owner"]).unwrap()] {
            let mut network = Network::with(config("lab", "br1"), features);
            let one = network.guest("one", 21);
            one.serve(8080);
            let service = network.service("web", &[&one]);
            network.plumber.set_services(std::slice::from_ref(&service)).unwrap();
            let echo = one.netns.run(|| TcpListener::bind("0.0.0.0:7")).unwrap().unwrap();
            std::thread::spawn(move || {
                let (mut stream, _) = echo.accept().unwrap();
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
            });
            let forwards = [forward("0.0.0.0:9000:8080", &one), forward("0.0.0.0:9001:7", &one)];
            network.plumber.change_forwards(&[], &forwards).unwrap();
            let before = nft(&["list", "table", "inet", "netyard-lab"]);
            nft(&["flush", "ruleset"]);
            assert_eq!(network.plumber.handle_changes(), []);
            let after = nft(&["list", "table", "inet", "netyard-lab"]);
            // Counters aside, and the number of the map.
            let steady = |text: &str| text.lines().filter(|line| !line.contains("counter")).count();
            assert_eq!(steady(&before), steady(&after), "{before}\n{after}");
            let vip = at(network.config.nth4(253), 8080);
            assert_eq!(ask(&here(), vip).unwrap().0, "one");
            assert_eq!(ask(&world, at(Outside::HOST4, 9000)).unwrap().0, "one");
            assert!(nft(&["list", "table", "bridge", "netyard-lab"]).contains("ve-one"));
            flush_under_load(&mut network, features.table_owner);
            let mut service = service;
            service.instances.clear();
            network.plumber.set_services(&[service]).unwrap();
            assert!(ask(&here(), vip).is_err());
            drop(network);
            assert_eq!(nft(&["list", "ruleset"]).trim(), "");
        }
    });
}

#[test]
fn rules_that_others_touch_are_made_again_and_turns_go_on() {
    isolate(|| {
        // Where others can change our tables.
        let features = Features::probe().unwrap().without(["table-owner"]).unwrap();
        let mut network = Network::with(config("lab", "br1"), features);
        let guests: Vec<Guest> =
            (1..=3).map(|n| network.guest(&format!("web-{n}"), 20 + n)).collect();
        guests.iter().for_each(|guest| guest.serve(8080));
        let (red, blue) = (network.guest("red", 31), network.guest("blue", 32));
        let all: Vec<&Guest> = guests.iter().collect();
        let service = network.service("web", &all);
        network.plumber.set_services(std::slice::from_ref(&service)).unwrap();
        let vip = at(network.config.nth4(253), 8080);
        let touch = |network: &mut Network| {
            nft(&["add", "chain", "inet", "netyard-lab", "foreign"]);
            assert_eq!(network.plumber.handle_changes(), []);
            assert!(!nft(&["list", "chains"]).contains("foreign"));
        };
        assert_eq!(ask(&red.netns, vip).unwrap().0, "web-1");
        touch(&mut network);
        assert_eq!(ask(&red.netns, vip).unwrap().0, "web-2");

        // Clients that are kept stay with whom they have.
        let affinity = Some(Duration::from_secs(600));
        let kept = KernelService { affinity, ..service.clone() };
        network.plumber.set_services(&[kept]).unwrap();
        assert_eq!(ask(&red.netns, vip).unwrap().0, "web-3");
        assert_eq!(ask(&blue.netns, vip).unwrap().0, "web-1");
        touch(&mut network);
        assert_eq!(traffic(&mut network).clients, 2);
        assert_eq!(ask(&red.netns, vip).unwrap().0, "web-3");
        assert_eq!(ask(&blue.netns, vip).unwrap().0, "web-1");
        assert_eq!(ask(&here(), vip).unwrap().0, "web-2");

        // What is not there any more is made again before it is changed; what was counted stays.
        assert_eq!(instances(&mut network)["web-2"].turns, 2);
        nft(&["delete", "table", "inet", "netyard-lab"]);
        assert_eq!(instances(&mut network)["web-2"].turns, 2);
        nft(&["delete", "table", "inet", "netyard-lab"]);
        network.plumber.set_services(&[service]).unwrap();
        assert_eq!(ask(&red.netns, vip).unwrap().0, "web-3");
    });
}

#[test]
fn what_others_undo_is_done_again_and_plugs_that_go_are_told() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let (red, blue) = (network.guest("red", 11), network.guest("blue", 12));
        ip(&["address", "del", "192.168.1.10/24", "dev", "br1"]);
        ip(&["link", "set", "ve-red", "nomaster"]);
        assert_eq!(network.plumber.handle_changes(), []);
        assert!(red.pings(network.config.gateway4().into()));
        assert!(red.pings(blue.plugged.address4.into()));
        ip(&["link", "del", "br1"]);
        assert_eq!(network.plumber.handle_changes(), []);
        assert!(red.pings(network.config.gateway4().into()));
        ip(&["link", "del", "ve-blue"]);
        assert_eq!(network.plumber.handle_changes(), [blue.plugged.plug]);
        assert!(network.plumber.traffic(blue.plugged.plug).is_none());
        assert!(!nft(&["list", "ruleset"]).contains("ve-blue"));
    });
}

#[test]
fn taps_of_machines_are_ports_again_whatever_others_do() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let tap = network.machine("machine", 11);
        for undoing in [
            ["link", "set", "tap-machine", "nomaster"].as_slice(),
            &["link", "set", "tap-machine", "down"],
            &["link", "set", "tap-machine", "type", "bridge_slave", "hairpin", "off"],
            &["link", "del", "br1"],
        ] {
            ip(undoing);
            assert_eq!(network.plumber.handle_changes(), []);
            let link = &ip_json(&["link", "show", "tap-machine"])[0];
            assert_eq!(link["master"], "br1", "{undoing:?}");
            assert!(link["flags"].as_array().unwrap().contains(&"UP".into()), "{undoing:?}");
            assert_eq!(link["linkinfo"]["info_slave_data"]["hairpin"], true, "{undoing:?}");
        }
        drop(tap);
        assert_eq!(network.plumber.handle_changes(), [PlugId(11)]);
    });
}

#[test]
fn a_bridge_that_is_there_is_joined_and_keeps_what_it_has() {
    isolate(|| {
        ip(&["link", "add", "br1", "type", "bridge"]);
        ip(&["address", "add", "10.77.0.1/24", "dev", "br1"]);
        ip(&["link", "add", "theirs", "type", "veth", "peer", "name", "far"]);
        ip(&["link", "set", "theirs", "master", "br1"]);
        for link in ["br1", "theirs", "far"] {
            ip(&["link", "set", link, "up"]);
        }
        settle(&["br1", "theirs", "far"]);
        let before = State::take();
        let mac = ip_json(&["link", "show", "br1"])[0]["address"].as_str().unwrap().to_owned();
        let mut network = Network::open(config("lab", "br1"));
        assert_eq!(network.segment.mac.to_string(), mac);
        let addresses = ip(&["address", "show", "dev", "br1"]);
        assert!(addresses.contains("10.77.0.1/24") && addresses.contains("192.168.1.10/24"));
        let red = network.guest("red", 11);
        assert!(red.pings(network.config.gateway4().into()));
        // Two networks cannot have one bridge's place in one prefix.
        drop((red, network));
        before.assert_restored("after the network");
    });
}

#[test]
fn a_card_joins_with_its_addresses_and_routes_and_gets_them_back() {
    isolate(|| {
        let (outside, world) = machine();
        let before = State::take();
        let on_card = Config {
            subnet4: "198.51.100.0/24".parse().unwrap(),
            gateway: Some(Outside::HOST4),
            uplink: Uplink::Card(Outside::UPLINK.into()),
            ..config("lab", "br1")
        };
        let mut network = Network::open(on_card);
        serve(&world, "world", 7000);
        assert_eq!(ask(&here(), at(Outside::ADDRESS4, 7000)).unwrap().1, Outside::HOST4);
        let guest = network.guest("guest", 50);
        // Everybody is on one segment: the guest is seen as itself.
        let own = IpAddr::V4(guest.plugged.address4);
        assert_eq!(ask(&guest.netns, at(Outside::ROUTER4, 7000)).unwrap().1, own);
        guest.serve(80);
        assert_eq!(ask(&world, at(guest.plugged.address4, 80)).unwrap().0, "guest");
        drop((guest, network));
        before.assert_restored("after the network");
        assert!(ask(&here(), at(Outside::ADDRESS4, 7000)).is_ok());
        drop(outside);
    });
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_made() {
    isolate(|| {
        let (_outside, _) = machine();
        ip(&["link", "add", "dummy", "type", "veth", "peer", "name", "far"]);
        ip(&["address", "add", "10.9.0.1/16", "dev", "dummy"]);
        ip(&["link", "set", "dummy", "up"]);
        let features = Features::probe().unwrap();
        let before = State::take();
        let base = || config("lab", "br1");
        let bridge = |name: &str| Mode::Bridge(Bridge { name: Some(name.into()), isolate: true });
        let card = |name: &str| Config { uplink: Uplink::Card(name.into()), ..base() };
        let cases = [
            (
                Config { subnet4: "10.9.3.0/24".parse().unwrap(), gateway: None, ..base() },
                features,
                "overlaps with 10.9.0.0/16",
            ),
            (Config { mode: bridge("dummy"), ..base() }, features, "it is not a bridge"),
            (Config { mode: bridge("much-too-long-a-name"), ..base() }, features, "15 bytes"),
            (card("eth7"), features, "there is none of that name; there are"),
            (card("lo"), features, "it is no Ethernet card"),
            (card(Outside::UPLINK), features, "gateway = \"198.51.100.1\""),
            (base(), features.without(["nat"]).unwrap(), "CONFIG_NFT_NAT"),
            (base(), features.without(["bridge"]).unwrap(), "CONFIG_BRIDGE"),
        ];
        for (config, features, text) in cases {
            let mut plumber = Plumber::new(&folder("lab"), features);
            let error = plumber.open(&config).unwrap_err();
            assert!(error.message.contains(text), "{text}: {error}");
            drop(plumber);
            before.assert_restored(text);
        }
        // A second network on the same bridge, a link that is there already.
        let mut network = Network::open(base());
        let mut other = Plumber::new(&folder("other"), features);
        let error = other.open(&Config { name: "other".into(), ..base() }).unwrap_err();
        assert!(error.message.contains("the network lab"), "{error}");
        let mut wish = request("red");
        wish.interface = Some("dummy".into());
        let file = || File::open("/proc/self/ns/net").unwrap();
        let plugged = |number| Plugged {
            plug: PlugId(number),
            mac: MacAddr::from_seed("red"),
            address4: [192, 168, 1, 11].into(),
            address6: "fd00:1:2:3::b".parse().unwrap(),
        };
        let error = network.plumber.add_plug(&plugged(1), &wish, Some(file().into())).unwrap_err();
        assert_eq!(error.kind, ControlErrorKind::Taken);
        assert!(error.message.contains("dummy"), "{error}");
        assert!(!nft(&["list", "ruleset"]).contains("dummy"));
        drop((network, other));
        before.assert_restored("after all");
    });
}

#[test]
fn firewalls_that_drop_what_is_forwarded_are_told() {
    isolate(|| {
        nft(&["add", "table", "inet", "mine"]);
        nft(&["add chain inet mine pass { type filter hook forward priority 0 ; policy drop ; }"]);
        let network = Network::open(config("lab", "br1"));
        let [warning] = network.segment.warnings.as_slice() else {
            panic!("{:?}", network.segment.warnings)
        };
        assert!(warning.contains("nft insert rule inet mine pass iifname br1 accept"), "{warning}");
    });
}

/// The part of the next test that is killed: run again by it, in a process of its own.
const KILLED: &str = "NETYARD_TEST_KILLED";

#[test]
fn what_a_killed_process_leaves_is_taken_back_by_the_next() {
    isolate(|| {
        if std::env::var_os(KILLED).is_some() {
            let mut network = Network::open(config("lab", "br1"));
            let red = network.guest("red", 11);
            let mut service = network.service("web", &[&red]);
            service.publish = Some("0.0.0.0:9001".parse().unwrap());
            network.plumber.set_services(&[service]).unwrap();
            network.plumber.change_forwards(&[], &[forward("0.0.0.0:9000:80", &red)]).unwrap();
            println!("everything is there");
            loop {
                std::thread::park();
            }
        }
        let (_outside, _) = machine();
        let before = State::take();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "what_a_killed_process_leaves_is_taken_back_by_the_next";
        command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(KILLED, "1");
        let mut victim = Background::start(&mut command);
        victim.wait_for_line("everything is there", SOON);
        victim.signal("KILL");
        victim.wait(SOON);
        assert!(ip(&["link", "show", "br1"]).contains("br1"), "it holds on");
        ip(&["netns", "del", "red"]);
        let network = Network::open(config("lab", "br1"));
        let links = ip(&["link"]);
        assert!(!links.contains("ve-red"), "{links}");
        drop(network);
        before.assert_restored("after the next network");
    });
}
