//! A network in bridge mode as a whole: its process, and the kernel as that process changes it.
//!
//! This program is both the tests and, under the hidden verb, the network process. It runs itself
//! in namespaces of its own, of which the outer one plays the host.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program with its own main")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use netyard_engine::client::Connection;
use netyard_engine::config::{Bridge, Config, Dhcp, Mode, Uplink};
use netyard_engine::control::{
    PlugKind, PlugRequest, Plugged, Reply, Request, ServiceInstance, ServiceSpec, TurnPolicy,
};
use netyard_engine::forward::{Forward, Protocol};
use netyard_engine::process::{self, VERB};
use netyard_sys::namespace::{Namespaces, within, within_new};
use netyard_testbed::{Namespace, State, isolate_main, output, peer, run, wait_for};
use netyard_wire::MacAddr;
use netyard_yard::bridge;

const LONG: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(VERB) {
        return process::main(bridge::plumbing);
    }
    if let Some(code) = isolate_main() {
        return code;
    }
    type Test = (&'static str, fn());
    let tests: [Test; 5] = [
        ("guests_configure_themselves_and_know_names", guests_configure_themselves),
        ("turns_are_the_same_ones_by_loopback_and_dial", turns_are_the_same_ones),
        ("forwards_lead_to_instances", forwards_lead_to_instances),
        ("a_killed_process_is_replaced_and_leaves_nothing", a_killed_process_is_replaced),
        ("a_thousand_plugs_come_and_go", a_thousand_plugs),
    ];
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, test) in tests {
        if wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str())) {
            let before = State::take();
            test();
            before.assert_restored(name);
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn config() -> Config {
    Config {
        name: "lab".into(),
        subnet4: "192.168.42.0/24".parse().unwrap(),
        subnet6: "fd00:42::/64".parse().unwrap(),
        mode: Mode::Bridge(Bridge { name: Some("br0".into()), ..Bridge::default() }),
        gateway: None,
        gateway_mac: MacAddr::from_seed("lab"),
        zone: "lab.lan".into(),
        dns: Default::default(),
        mtu: 1500,
        uplink: Uplink::Nat,
        host: Vec::new(),
        dhcp: Some(Dhcp::default()),
        snooping: true,
        mdns: Default::default(),
        permanent: false,
    }
}

/// A network, and us as its member.
struct Network {
    folder: tempfile::TempDir,
    connection: Option<Connection>,
}

/// A namespace that is plugged in.
struct Guest {
    namespace: Namespace,
    plugged: Plugged,
}

impl Network {
    fn new() -> Self {
        Self::of(&config())
    }

    fn of(config: &Config) -> Self {
        let mut network = Self { folder: tempfile::tempdir().unwrap(), connection: None };
        network.join(config);
        network
    }

    fn join(&mut self, config: &Config) {
        let program = std::env::current_exe().unwrap();
        let folder = self.folder.path().join("lab");
        let mut connection = process::join(&folder, config, &program).unwrap();
        connection.hello("test").unwrap();
        self.connection = Some(connection);
    }

    fn ask(&mut self, request: Request) -> Reply {
        self.connection.as_mut().unwrap().request(request, None).unwrap().0.unwrap()
    }

    fn state(&mut self) -> netyard_engine::control::State {
        match self.ask(Request::Inspect) {
            Reply::State(state) => *state,
            other => panic!("{other:?}"),
        }
    }

    fn plug(&mut self, name: &str) -> Guest {
        let namespace = Namespace::new(name);
        let plugged = self.plug_in(&namespace);
        Guest { namespace, plugged }
    }

    fn plug_in(&mut self, namespace: &Namespace) -> Plugged {
        self.plug_namespace(namespace.name(), File::open(namespace.path()).unwrap())
    }

    fn plug_namespace(&mut self, name: &str, namespace: File) -> Plugged {
        let request = PlugRequest {
            interface: Some(format!("ve-{name}")),
            ..PlugRequest::new(name, PlugKind::Namespace)
        };
        let descriptor = namespace.into();
        let connection = self.connection.as_mut().unwrap();
        match connection.request(Request::AddPlug(request), Some(descriptor)).unwrap().0.unwrap() {
            Reply::Plugged(plugged) => plugged,
            other => panic!("{other:?}"),
        }
    }

    /// A guest with addresses and routes.
    fn guest(&mut self, name: &str) -> Guest {
        let guest = self.plug(name);
        guest.configure();
        guest
    }

    fn dial(&mut self, to: SocketAddr) -> TcpStream {
        let dial = Request::Dial { to, within: LONG };
        let (reply, stream) = self.connection.as_mut().unwrap().request(dial, None).unwrap();
        reply.unwrap();
        stream.unwrap().into()
    }

    /// Leaves, and waits for the end.
    fn leave(mut self) {
        let folder = self.folder.path().join("lab");
        self.connection = None;
        wait_for("the network's folder is gone", LONG, || (!folder.exists()).then_some(()));
    }
}

impl Guest {
    fn configure(&self) {
        let Plugged { address4, address6, .. } = self.plugged;
        let namespace = &self.namespace;
        namespace.ip(&["address", "add", &format!("{address4}/24"), "dev", "eth0"]);
        namespace.ip(&["address", "add", &format!("{address6}/64"), "dev", "eth0", "nodad"]);
        namespace.ip(&["route", "add", "default", "via", "192.168.42.1"]);
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.namespace.path()).unwrap();
        within(std::os::fd::AsFd::as_fd(&file), Namespaces::NETWORK, work).unwrap()
    }

    /// Tells everybody who connects its name.
    fn serve(&self) {
        let listener = self.inside(|| TcpListener::bind("[::]:8080").unwrap());
        let name = self.namespace.name().to_owned();
        thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                let _ = client.write_all(name.as_bytes());
            }
        });
    }

    fn lookup(&self, name: &str, server: &str) -> String {
        let mut lookup = self.namespace.command(peer("busybox"));
        run(lookup.args(["nslookup", "-type=a", name, server]))
    }
}

fn name_at(at: &str) -> String {
    name_of(TcpStream::connect(at).unwrap())
}

fn name_of(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut name = String::new();
    stream.read_to_string(&mut name).unwrap();
    name
}

fn web(publish: &str, guests: &[&Guest]) -> ServiceSpec {
    let instances = guests.iter().map(|guest| ServiceInstance {
        name: guest.namespace.name().into(),
        address4: guest.plugged.address4,
        address6: guest.plugged.address6,
        weight: 1,
        eligible: true,
    });
    ServiceSpec {
        name: "web".into(),
        protocol: Protocol::Tcp,
        port: 8080,
        publish: Some(publish.parse().unwrap()),
        delivery: Default::default(),
        policy: TurnPolicy::RoundRobin,
        affinity: None,
        instances: instances.collect(),
    }
}

fn guests_configure_themselves() {
    let mut network = Network::new();
    let (one, two) = (network.plug("one"), network.guest("two"));
    // By DHCP, through the rules that hold guests to their own addresses.
    let script = network.folder.path().join("script");
    let told = network.folder.path().join("told");
    let text = format!(
        "#!/bin/sh\ntest \"$1\" = bound || exit 0\nip address add $ip/$mask dev $interface\n\
         ip route add default via $router\nenv > {}\n",
        told.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut client = one.namespace.command(peer("udhcpc"));
    client.args(["-f", "-q", "-n", "-t", "20", "-T", "1", "-i", "eth0", "-s"]).arg(script);
    run(client.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
    let told = fs::read_to_string(told).unwrap();
    let told: BTreeMap<&str, &str> = told.lines().filter_map(|line| line.split_once('=')).collect();
    assert_eq!(told["ip"], one.plugged.address4.to_string());
    assert_eq!((told["hostname"], told["dns"]), ("one", "192.168.42.1"));
    // By router advertisements.
    let route = wait_for("a default route", LONG, || {
        let mut show = one.namespace.command(peer("ip"));
        let routes = run(show.args(["-6", "route", "show", "default", "dev", "eth0"]));
        (!routes.is_empty()).then_some(routes)
    });
    assert!(route.contains("via fe80::") && route.contains("proto ra"), "{route}");

    for server in ["192.168.42.1", "fd00:42::1"] {
        let answer = two.lookup("one.lab.lan", server);
        assert!(answer.contains(&format!("Address: {}", one.plugged.address4)), "{answer}");
    }
    let mut ping = one.namespace.command(peer("ping"));
    run(ping.args(["-c", "1", "-W", "10", &two.plugged.address4.to_string()]));
    network.leave();
}

fn turns_are_the_same_ones() {
    let mut network = Network::new();
    let guests = ["web-1", "web-2", "web-3"].map(|name| network.guest(name));
    guests.iter().for_each(Guest::serve);
    let all: Vec<&Guest> = guests.iter().collect();
    let Reply::Serving { addresses, .. } =
        network.ask(Request::SetService(web("127.0.0.1:18080", &all)))
    else {
        panic!("not serving");
    };
    let virtual4 = SocketAddr::new(addresses[0], 8080);
    // By loopback, by the virtual address from the host, and by dialling: one counter.
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(name_at("127.0.0.1:18080"));
        seen.push(name_of(TcpStream::connect(virtual4).unwrap()));
        seen.push(name_of(network.dial(virtual4)));
    }
    assert_eq!(seen, ["web-1", "web-2", "web-3"].repeat(4));
    let service = network.state().services.remove(0);
    let turns: Vec<u64> = service.instances.iter().map(|it| it.turns).collect();
    assert_eq!(turns, [4, 4, 4]);

    let away =
        Request::SetEligible { service: "web".into(), instance: "web-2".into(), eligible: false };
    network.ask(away);
    let seen: Vec<String> = (0..4).map(|_| name_at("127.0.0.1:18080")).collect();
    assert_eq!(seen, ["web-1", "web-3", "web-1", "web-3"]);
    network.leave();
}

fn forwards_lead_to_instances() {
    let mut network = Network::new();
    let one = network.guest("one");
    one.serve();
    // The host has an address that is not the network's.
    run(Command::new(peer("ip")).args(["address", "add", "198.51.100.7/32", "dev", "lo"]));
    for text in ["127.0.0.1:18080:8080", "0.0.0.0:18081:8080", "198.51.100.7:18082:8080"] {
        let forward = Forward { instance: "one".into(), ..text.parse().unwrap() };
        network.ask(Request::AddForward(forward));
    }
    for at in ["127.0.0.1:18080", "127.0.0.1:18081", "198.51.100.7:18081", "198.51.100.7:18082"] {
        assert_eq!(name_at(at), "one", "{at}");
    }
    let dialled = network.dial(SocketAddr::new(IpAddr::from(one.plugged.address6), 8080));
    assert_eq!(name_of(dialled), "one");
    run(Command::new(peer("ip")).args(["address", "del", "198.51.100.7/32", "dev", "lo"]));
    network.leave();
}

fn a_killed_process_is_replaced() {
    let mut network = Network::new();
    let one = network.guest("one");
    one.serve();
    let forward: Forward = "0.0.0.0:18081:8080".parse().unwrap();
    network.ask(Request::AddForward(Forward { instance: "one".into(), ..forward }));
    let pid = network.state().pid.to_string();
    run(Command::new(peer("kill")).args(["-KILL", &pid]));
    wait_for("the process is gone", LONG, || {
        process::find(&network.folder.path().join("lab")).err()
    });
    network.join(&config());
    assert!(network.state().plugs.is_empty());
    assert!(!output(Command::new(peer("ip")).args(["link", "show", "ve-one"])).status.success());
    // The same namespace is plugged in anew.
    let plugged = network.plug_in(&one.namespace);
    assert_eq!(plugged, one.plugged);
    one.configure();
    let to = SocketAddr::new(plugged.address4.into(), 8080);
    assert_eq!(name_of(network.dial(to)), "one");
    network.leave();
}

/// A namespace without a name, held open.
fn nameless() -> File {
    within_new(Namespaces::NETWORK, || File::open("/proc/thread-self/ns/net").unwrap()).unwrap()
}

/// How many links, and how many forwarded ports, the kernel has of the network.
fn counts() -> (usize, usize) {
    let ports = run(Command::new(peer("ip")).args(["-o", "link", "show", "master", "br0"]));
    let list = ["list", "map", "inet", "netyard-lab", "forwards_everywhere4"];
    let forwards = run(Command::new(peer("nft")).args(list));
    (ports.lines().count(), forwards.matches("tcp .").count())
}

fn a_thousand_plugs() {
    const ALL: u16 = 1_000;
    let wide = Config { subnet4: "10.42.0.0/16".parse().unwrap(), ..config() };
    let mut network = Network::of(&wide);
    let mut plugs = Vec::new();
    for number in 0..ALL {
        let namespace = nameless();
        let name = format!("guest-{number}");
        let plugged = network.plug_namespace(&name, namespace.try_clone().unwrap());
        let port = 20_000 + number;
        let forward: Forward = format!("0.0.0.0:{port}:80").parse().unwrap();
        let forward = Forward { instance: name, ..forward };
        network.ask(Request::AddForward(forward.clone()));
        plugs.push((namespace, plugged, forward));
    }
    let addresses: BTreeSet<_> = plugs.iter().map(|(_, plugged, _)| plugged.address4).collect();
    assert_eq!(addresses.len(), usize::from(ALL));
    assert_eq!(counts(), (usize::from(ALL), usize::from(ALL)));
    // Some are taken out, one after the other.
    for (_, plugged, forward) in plugs.drain(..100) {
        network.ask(Request::RemoveForward { forward });
        network.ask(Request::RemovePlug { plug: plugged.plug });
    }
    assert_eq!(counts(), (900, 900));
    // Some go with their namespaces.
    plugs.truncate(700);
    wait_for("the plugs that have gone", LONG, || {
        (network.state().plugs.len() == 700).then_some(())
    });
    assert_eq!(counts(), (700, 700));
    // The rest go with their member.
    network.leave();
}
