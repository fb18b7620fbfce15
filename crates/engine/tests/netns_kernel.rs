//! A network in bridge mode, with a bridge that the test makes and a plumbing that only takes notes.
//!
//! This program is both the tests and, under the hidden verb, the network process. It runs itself
//! in namespaces of its own, of which the outer one plays the host.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program with its own main")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netyard_engine::client::Connection;
use netyard_engine::config::{Bridge, Config, Dhcp, Mode, Range, Uplink};
use netyard_engine::control::{
    ControlError, ControlErrorKind, Link, PlugKind, PlugRequest, Plugged, Reply, Request,
    ServiceInstance, ServiceSpec, Shape, State, Traffic, TurnPolicy, TurnState,
};
use netyard_engine::edge::PlugId;
use netyard_engine::forward::{Forward, Protocol};
use netyard_engine::plumbing::{
    Flows, KernelForward, KernelService, PlugTraffic, Plumbing, Refusals, Segment, ServiceTraffic,
    Tracked,
};
use netyard_engine::process::{self, JoinError, VERB};
use netyard_sys::namespace::{Namespaces, within};
use netyard_testbed::{Background, Namespace, isolate_main, output, peer, run, wait_for};
use netyard_wire::MacAddr;
use netyard_wire::dns::{self, Data, Query, Question, Rcode, Response};

const LONG: Duration = Duration::from_secs(30);
const BRIDGE: &str = "br0";
/// Verb by which this program joins as somebody without capabilities, and prints how that fails.
const JOIN: &str = "join-and-fail";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(VERB) => return process::main(|folder| Ok(Box::new(Notes::new(folder)))),
        Some(JOIN) => return join_and_fail(),
        _ => {}
    }
    if let Some(code) = isolate_main() {
        return code;
    }
    type Test = (&'static str, fn(&mut Bench));
    let tests: [Test; 13] = [
        ("plugs_come_and_go_with_their_member", plugs_come_and_go_with_their_member),
        ("what_stands_in_the_way_is_told", what_stands_in_the_way_is_told),
        // From here on the host has a resolver.
        ("dns_answers_over_udp_and_tcp", dns_answers_over_udp_and_tcp),
        ("dhcp_gives_planned_addresses_and_lends_others", dhcp_gives_and_lends),
        ("dhclient_leases_ipv6", dhclient_leases_ipv6),
        ("leases_outlive_a_killed_process", leases_outlive_a_killed_process),
        ("a_range_is_lent_and_told", a_range_is_lent_and_told),
        ("the_kernel_learns_its_router", the_kernel_learns_its_router),
        ("loopback_forwards_are_relayed", loopback_forwards_are_relayed),
        ("other_forwards_are_the_kernels", other_forwards_are_the_kernels),
        ("services_are_the_kernels", services_are_the_kernels),
        ("members_dial_into_the_network", members_dial_into_the_network),
        ("what_the_kernel_refuses_is_taken_back", what_the_kernel_refuses_is_taken_back),
    ];
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, test) in tests {
        if wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str())) {
            test(&mut Bench::new());
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

/// A plumbing that writes down what it is told, one line each, beside the network's folder, and
/// refuses what is marked.
#[derive(Debug)]
struct Notes {
    file: File,
    /// The numbers of plugs that have gone come in here.
    gone: File,
    /// While this is there, the first instance of each service has an open connection.
    connected: PathBuf,
    /// While this is there, it is known what is tracked.
    tracking: PathBuf,
    /// While this is there, every change is refused.
    refusing: PathBuf,
}

impl Notes {
    fn new(folder: &Path) -> Self {
        let notes = folder.parent().unwrap();
        let file = OpenOptions::new().append(true).create(true).open(notes.join("notes")).unwrap();
        let mut options = OpenOptions::new();
        let gone = options.read(true).write(true).custom_flags(0o4000).open(notes.join("gone"));
        let at = |name| notes.join(name);
        let (connected, tracking, refusing) = (at("connected"), at("tracking"), at("refusing"));
        Self { file, gone: gone.unwrap(), connected, tracking, refusing }
    }

    fn note(&mut self, line: &str) {
        self.file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Notes it and refuses it if it has a mark of that, or everything is to be refused.
    fn judge(&mut self, line: &str) -> Result<(), ControlError> {
        self.note(line);
        if !line.contains("666") && !self.refusing.exists() {
            return Ok(());
        }
        let message = "the kernel does not like 666".to_owned();
        Err(ControlError { kind: ControlErrorKind::Failed, message })
    }
}

impl Plumbing for Notes {
    fn open(&mut self, config: &Config) -> Result<Segment, ControlError> {
        self.judge(&format!("open {}", config.name))?;
        // "7: br0: <...> ... link/ether 02:00:00:00:00:01 brd ..."
        let shown = ip(&["-o", "link", "show", BRIDGE]);
        let (index, rest) = shown.split_once(':').unwrap();
        let mac = rest.split_once("link/ether ").unwrap().1.split(' ').next().unwrap();
        let octets: Vec<u8> =
            mac.split(':').map(|it| u8::from_str_radix(it, 16).unwrap()).collect();
        Ok(Segment {
            joined: false,
            interface: BRIDGE.into(),
            index: index.parse().unwrap(),
            mac: MacAddr(octets.try_into().unwrap()),
            mtu: 1400,
            warnings: vec!["this is a test".into()],
        })
    }

    fn add_plug(
        &mut self,
        plugged: &Plugged,
        request: &PlugRequest,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), ControlError> {
        let PlugRequest { name, kind, interface, guest_interface, .. } = request;
        // Opening it by its descriptor shows what was handed over.
        let leads_to = descriptor.map_or_else(Default::default, |descriptor| {
            let number = std::os::fd::AsRawFd::as_raw_fd(&descriptor);
            fs::read_link(format!("/proc/self/fd/{number}")).unwrap()
        });
        let plug = plugged.plug.0;
        self.judge(&format!(
            "add {plug} {name} {kind:?} {interface:?} {guest_interface:?} {}",
            leads_to.display()
        ))
    }

    fn remove_plugs(&mut self, plugs: &[PlugId]) {
        let all: Vec<String> = plugs.iter().map(|plug| plug.0.to_string()).collect();
        self.note(&format!("remove {}", all.join(" ")));
    }

    fn change_forwards(
        &mut self,
        gone: &[KernelForward],
        new: &[KernelForward],
    ) -> Result<(), ControlError> {
        let words = |mark: char, forwards: &[KernelForward]| -> String {
            forwards.iter().map(|it| format!(" {mark}{}>{}", it.forward, it.address4)).collect()
        };
        self.judge(&format!("forwards{}{}", words('-', gone), words('+', new)))
    }

    fn set_services(&mut self, services: &[KernelService]) -> Result<(), ControlError> {
        let all = services.iter().map(|it| {
            let instances = it.instances.iter().map(|instance| instance.name.as_str());
            let publish = it.publish.map(|at| at.to_string()).unwrap_or_default();
            let instances = instances.collect::<Vec<_>>().join(",");
            format!("{}:{}@{}[{publish}]={instances}", it.name, it.port, it.address4)
        });
        let line = format!("services {}", all.collect::<Vec<_>>().join(" "));
        self.judge(&line)
    }

    fn forget_flows(&mut self, _: PlugId) {}

    fn forget_unanswered(&mut self, _: &str, _: &str) {}

    fn set_tunnels(&mut self, _: &[String]) -> Result<(), ControlError> {
        Ok(())
    }

    fn traffic(&mut self, plug: PlugId) -> Option<PlugTraffic> {
        let guest_to_host = Traffic { frames: plug.0.into(), bytes: 100 };
        Some(PlugTraffic { guest_to_host, ..PlugTraffic::default() })
    }

    fn forward_traffic(&mut self) -> BTreeMap<(Protocol, SocketAddr), u64> {
        BTreeMap::from([((Protocol::Tcp, "0.0.0.0:18080".parse().unwrap()), 3)])
    }

    fn tracked(&mut self) -> Option<Tracked> {
        if !self.tracking.exists() {
            return None;
        }
        self.note("look at everything");
        Some(Tracked { flows: Flows { tcp: 5, udp: 6 }, services: self.counted() })
    }

    fn refusals(&mut self) -> Refusals {
        let counted = |name: &str| BTreeMap::from([(name.to_owned(), 4)]);
        Refusals { drops: counted("spoofed-ip"), policy: counted("outside") }
    }

    fn services(&mut self) -> Option<BTreeMap<String, ServiceTraffic>> {
        self.note("look at services");
        Some(self.counted())
    }

    fn watched(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.gone.as_fd()]
    }

    fn handle_changes(&mut self) -> Vec<PlugId> {
        let mut buffer = [0; 16];
        let len = self.gone.read(&mut buffer).unwrap_or_default();
        buffer[..len].iter().map(|number| PlugId(u32::from(*number))).collect()
    }
}

impl Notes {
    fn counted(&self) -> BTreeMap<String, ServiceTraffic> {
        let open = u64::from(self.connected.exists());
        let draining = open > 0;
        let one = TurnState { turns: 7, open, draining, ..TurnState::default() };
        let two = TurnState { turns: 8, ..TurnState::default() };
        let instances = vec![("web-1".into(), one), ("web-2".into(), two)];
        let web = ServiceTraffic { instances, ..ServiceTraffic::default() };
        BTreeMap::from([("web".into(), web)])
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        self.note("undone");
    }
}

fn config() -> Config {
    Config {
        name: "lab".into(),
        subnet4: "192.168.127.0/24".parse().unwrap(),
        subnet6: "fd00:1:2:3::/64".parse().unwrap(),
        mode: Mode::Bridge(Bridge::default()),
        gateway: None,
        gateway_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        zone: "lab.lan".into(),
        dns: Default::default(),
        mtu: 1500,
        uplink: Uplink::Nat,
        host: Vec::new(),
        dhcp: Some(Dhcp { lease: Duration::from_secs(3_600), range: None }),
        snooping: true,
        mdns: Default::default(),
        permanent: false,
    }
}

/// A bridge with a network.
struct Bench {
    folder: tempfile::TempDir,
    /// `None` once we have left.
    connection: Option<Connection>,
}

/// A namespace on the bridge.
struct Guest {
    namespace: Namespace,
    /// `None` for one that nobody has plugged in.
    plugged: Option<Plugged>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new(peer("mkfifo")).arg(folder.path().join("gone")));
        ip(&["link", "add", BRIDGE, "address", "02:00:00:00:00:01", "type", "bridge"]);
        ip(&["address", "add", "192.168.127.1/24", "dev", BRIDGE]);
        ip(&["address", "add", "fd00:1:2:3::1/64", "dev", BRIDGE, "nodad"]);
        ip(&["link", "set", BRIDGE, "up"]);
        let connection = Some(join(folder.path(), "test").unwrap());
        Self { folder, connection }
    }

    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().unwrap()
    }

    /// Leaves the network, and waits until it has ended.
    fn leave(&mut self) {
        self.connection = None;
        let net = self.folder.path().join("net");
        wait_for("the network's folder is gone", LONG, || (!net.exists()).then_some(()));
    }

    fn join(&self, member: &str) -> Connection {
        join(self.folder.path(), member).unwrap()
    }

    /// What the plumbing was told so far.
    fn notes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("notes")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn last_note(&self, about: &str) -> String {
        let mut notes = self.notes();
        notes.retain(|note| note.starts_with(about));
        notes.pop().unwrap_or_default()
    }

    fn ask(&mut self, request: Request) -> Result<Reply, ControlError> {
        ask(self.connection(), request)
    }

    fn state(&mut self) -> State {
        match self.ask(Request::Inspect) {
            Ok(Reply::State(state)) => *state,
            other => panic!("{other:?}"),
        }
    }

    /// Makes a namespace, plugs it in, and has it configured.
    fn guest(&mut self, name: &str) -> Guest {
        let guest = self.plug(name);
        guest.configure();
        guest
    }

    /// Makes a namespace and plugs it in.
    fn plug(&mut self, name: &str) -> Guest {
        let mut guest = Guest::stranger(name);
        guest.plugged = Some(plug_in(self.connection(), &guest.namespace).unwrap());
        guest.ip(&["link", "set", "eth0", "down"]);
        let mac = guest.plugged().mac.to_string();
        guest.ip(&["link", "set", "eth0", "address", &mac]);
        guest.ip(&["link", "set", "eth0", "up"]);
        guest
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = Command::new(peer("ip")).args(["link", "del", BRIDGE]).output();
    }
}

impl Guest {
    /// A namespace on the bridge that nobody has plugged in.
    fn stranger(name: &str) -> Self {
        let namespace = Namespace::new(name);
        let (host, eth) = (format!("v-{name}"), "eth0");
        let pair = ["type", "veth", "peer", "name", eth, "netns", name];
        ip(&[&["link", "add", &host][..], &pair].concat());
        ip(&["link", "set", &host, "master", BRIDGE, "up"]);
        namespace.ip(&["link", "set", eth, "up"]);
        Self { namespace, plugged: None }
    }

    fn plugged(&self) -> &Plugged {
        self.plugged.as_ref().unwrap()
    }

    fn configure(&self) {
        let Plugged { address4, address6, .. } = self.plugged();
        self.ip(&["address", "add", &format!("{address4}/24"), "dev", "eth0"]);
        self.ip(&["address", "add", &format!("{address6}/64"), "dev", "eth0", "nodad"]);
        self.ip(&["route", "add", "default", "via", "192.168.127.1"]);
    }

    fn ip(&self, arguments: &[&str]) {
        self.namespace.ip(arguments);
    }

    fn show(&self, arguments: &[&str]) -> String {
        run(self.namespace.command(peer("ip")).args(arguments))
    }

    /// Runs something in the namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.namespace.path()).unwrap();
        within(file.as_fd(), Namespaces::NETWORK, work).unwrap()
    }

    /// Serves TCP at a port: each client's bytes come back in capitals, when it has finished.
    fn shout(&self, port: u16) -> Vec<JoinHandle<()>> {
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let bind = |at: IpAddr| self.inside(|| TcpListener::bind((at, port)));
        // The second address family may share the first one's socket.
        let listeners = any.into_iter().rev().filter_map(|at| bind(at).ok());
        listeners.map(|listener| thread::spawn(move || serve(&listener))).collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // With its namespace it would go later.
        let host = format!("v-{}", self.namespace.name());
        let _ = Command::new(peer("ip")).args(["link", "del", &host]).output();
    }
}

fn serve(listener: &TcpListener) {
    while let Ok((mut client, _)) = listener.accept() {
        let mut text = Vec::new();
        if client.read_to_end(&mut text).is_ok() {
            let _ = client.write_all(&text.to_ascii_uppercase());
        }
    }
}

/// Sends text, finishes, and returns what comes back.
fn converse(mut stream: TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(LONG))?;
    let mut writer = stream.try_clone()?;
    let (sent, mut answer) = (text.to_owned(), Vec::new());
    let writing = thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(Shutdown::Write)
    });
    stream.read_to_end(&mut answer)?;
    writing.join().unwrap()?;
    Ok(answer)
}

fn ip(arguments: &[&str]) -> String {
    run(Command::new(peer("ip")).args(arguments))
}

fn join(folder: &Path, member: &str) -> Result<Connection, JoinError> {
    join_with(folder, member, &config())
}

fn join_with(folder: &Path, member: &str, config: &Config) -> Result<Connection, JoinError> {
    let program = std::env::current_exe().unwrap();
    let mut connection = process::join(&folder.join("net"), config, &program)?;
    let welcome = connection.hello(member).unwrap();
    // Perhaps not the only one.
    assert_eq!(welcome.warnings.first().map(String::as_str), Some("this is a test"));
    Ok(connection)
}

fn ask(connection: &mut Connection, request: Request) -> Result<Reply, ControlError> {
    connection.request(request, None).unwrap().0
}

fn request(name: &str, kind: PlugKind) -> PlugRequest {
    PlugRequest { interface: Some(format!("v-{name}")), ..PlugRequest::new(name, kind) }
}

fn plug_in(connection: &mut Connection, namespace: &Namespace) -> Result<Plugged, ControlError> {
    let request = Request::AddPlug(request(namespace.name(), PlugKind::Namespace));
    let descriptor = File::open(namespace.path()).unwrap().into();
    match connection.request(request, Some(descriptor)).unwrap().0 {
        Ok(Reply::Plugged(plugged)) => Ok(plugged),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    }
}

fn forward(text: &str, instance: &str) -> Forward {
    Forward { instance: instance.into(), ..text.parse().unwrap() }
}

fn plugs_come_and_go_with_their_member(bench: &mut Bench) {
    let one = bench.plug("one");
    assert_eq!(one.plugged().address4, Ipv4Addr::new(192, 168, 127, 2));
    let mut other = bench.join("other");
    let two = Namespace::new("two");
    plug_in(&mut other, &two).unwrap();
    let three = Namespace::new("three");
    let third = plug_in(&mut other, &three).unwrap();
    assert_eq!(
        bench.notes(),
        [
            "open lab",
            "add 1 one Namespace Some(\"v-one\") None /run/netns/one",
            "add 2 two Namespace Some(\"v-two\") None /run/netns/two",
            "add 3 three Namespace Some(\"v-three\") None /run/netns/three",
        ]
    );
    let state = bench.state();
    let traffic: Vec<u64> = state.plugs.iter().map(|plug| plug.guest_to_host.frames).collect();
    assert_eq!(traffic, [1, 2, 3]);
    assert_eq!(state.interface.as_deref(), Some(BRIDGE));
    assert_eq!(state.warnings, ["this is a test"]);
    let config = state.config.unwrap();
    // What the segment really has.
    assert_eq!((config.mtu, config.gateway_mac), (1400, MacAddr([2, 0, 0, 0, 0, 1])));
    // It keeps the capabilities that it needs, and no others.
    let status = fs::read_to_string(format!("/proc/{}/status", state.pid)).unwrap();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let line = status.lines().find(|line| line.starts_with(set)).unwrap();
        assert!(line.ends_with("0000000000203400"), "{line}");
    }

    // Frame sockets and shaped links are user mode's.
    for wrong in [
        request("wrong", PlugKind::Socket),
        PlugRequest {
            link: Link { up: Shape { loss: 0.5, ..Shape::default() }, ..Link::default() },
            ..request("wrong", PlugKind::Tap)
        },
    ] {
        let descriptor = Some(File::open(one.namespace.path()).unwrap().into());
        let (refused, _) = bench.connection().request(Request::AddPlug(wrong), descriptor).unwrap();
        assert_eq!(refused.unwrap_err().kind, ControlErrorKind::Malformed);
    }

    // One goes by itself, one with its member.
    let mut gone = OpenOptions::new().write(true).open(bench.folder.path().join("gone")).unwrap();
    gone.write_all(&[u8::try_from(third.plug.0).unwrap()]).unwrap();
    wait_for("the third is gone", LONG, || (bench.state().plugs.len() == 2).then_some(()));
    drop(other);
    wait_for("the second is gone", LONG, || (bench.state().plugs.len() == 1).then_some(()));
    assert_eq!(bench.notes()[4..], ["remove 3", "remove 2"]);
    bench.leave();
    assert_eq!(bench.notes()[6..], ["remove 1", "undone"]);
}

/// Asks the gateway for the addresses of a name, by datagram.
fn ask_by_datagram(guest: &Guest, server: &str, name: &str, kind: u16) -> Response {
    let server: SocketAddr = server.parse().unwrap();
    let socket = guest.inside(|| {
        let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        UdpSocket::bind((any, 0)).unwrap()
    });
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.send_to(&query(name, kind), server).unwrap();
    let mut buffer = [0; 4096];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(from, server);
    Response::parse(&buffer[..len]).unwrap()
}

/// The same, by stream.
fn ask_by_stream(guest: &Guest, server: &str, name: &str, kind: u16) -> Response {
    let server: SocketAddr = server.parse().unwrap();
    let stream = guest.inside(|| TcpStream::connect(server).unwrap());
    let query = query(name, kind);
    let framed = [&u16::try_from(query.len()).unwrap().to_be_bytes()[..], &query].concat();
    let answer = converse(stream, &framed).unwrap();
    let (len, message) = answer.split_first_chunk().unwrap();
    assert_eq!(usize::from(u16::from_be_bytes(*len)), message.len());
    Response::parse(message).unwrap()
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let question = Question { name: name.parse().unwrap(), kind, class: dns::IN };
    Query { id: 7, flags: dns::Flags::RECURSION_DESIRED, question, edns: None }.emit()
}

fn addresses(response: &Response) -> Vec<IpAddr> {
    let addresses = response.answers.iter().filter_map(|record| match record.data {
        Data::A(address) => Some(address.into()),
        Data::Aaaa(address) => Some(address.into()),
        _ => None,
    });
    addresses.collect()
}

fn dns_answers_over_udp_and_tcp(bench: &mut Bench) {
    let one = bench.guest("one");
    let two = bench.guest("two");
    let service = ServiceSpec {
        name: "web".into(),
        protocol: Protocol::Tcp,
        port: 80,
        publish: None,
        delivery: Default::default(),
        policy: TurnPolicy::RoundRobin,
        affinity: None,
        instances: vec![],
    };
    bench.ask(Request::SetService(service)).unwrap();
    // The host's own resolver, on its own address.
    let at: SocketAddr = "127.0.0.1:53".parse().unwrap();
    let (listener, datagrams) = (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
    let outside: IpAddr = "203.0.113.1".parse().unwrap();
    thread::spawn(move || netyard_testbed::dns::serve(&listener, datagrams, vec![outside]));

    type Ask = fn(&Guest, &str, &str, u16) -> Response;
    let cases: [(Ask, &str); 4] = [
        (ask_by_datagram, "192.168.127.1:53"),
        (ask_by_stream, "192.168.127.1:53"),
        (ask_by_datagram, "[fd00:1:2:3::1]:53"),
        (ask_by_stream, "[fd00:1:2:3::1]:53"),
    ];
    for (ask, server) in cases {
        for (name, kind, expected) in [
            ("two.lab.lan", dns::A, IpAddr::from(two.plugged().address4)),
            ("TWO.lab.lan", dns::AAAA, two.plugged().address6.into()),
            ("gateway.lab.lan", dns::A, "192.168.127.1".parse().unwrap()),
            ("web.lab.lan", dns::A, "192.168.127.253".parse().unwrap()),
            ("example.org", dns::A, outside),
        ] {
            assert_eq!(addresses(&ask(&one, server, name, kind)), [expected], "{name} at {server}");
        }
        let nobody = ask(&one, server, "nobody.lab.lan", dns::A);
        assert_eq!(nobody.flags.rcode(), Rcode::NameError);
    }
    let long = format!("{}.example.org", netyard_testbed::dns::LONG);
    let cut = ask_by_datagram(&one, "192.168.127.1:53", &long, dns::A);
    assert!(cut.flags.contains(dns::Flags::TRUNCATED));
    assert_eq!(addresses(&ask_by_stream(&one, "192.168.127.1:53", &long, dns::A)).len(), 100);
    // An independent client.
    let mut lookup = one.namespace.command(peer("busybox"));
    let answer = run(lookup.args(["nslookup", "-type=a", "two.lab.lan", "192.168.127.1"]));
    assert!(answer.contains("Address: 192.168.127.3"), "{answer}");
    // Nobody on the host's own side is answered.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = socket.send_to(&query("two.lab.lan", dns::A), "192.168.127.1:53");
    socket.recv_from(&mut [0; 512]).unwrap_err();
}

/// Runs a DHCP client in a namespace until it has an address; returns what it was told.
fn lease(guest: &Guest, folder: &Path) -> BTreeMap<String, String> {
    let (script, told) = (folder.join("script"), folder.join("told"));
    let _ = fs::remove_file(&told);
    let text = format!("#!/bin/sh\ntest \"$1\" = bound && env > {}\nexit 0\n", told.display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut client = guest.namespace.command(peer("udhcpc"));
    client.args(["-f", "-q", "-n", "-t", "30", "-T", "1", "-i", "eth0", "-s"]).arg(&script);
    run(&mut client);
    let text = fs::read_to_string(&told).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn dhcp_gives_and_lends(bench: &mut Bench) {
    let one = bench.plug("one");
    let folder = tempfile::tempdir().unwrap();
    let told = lease(&one, folder.path());
    for (name, value) in [
        ("ip", "192.168.127.2"),
        ("mask", "24"),
        ("router", "192.168.127.1"),
        ("dns", "192.168.127.1"),
        ("domain", "lab.lan"),
        ("hostname", "one"),
        ("serverid", "192.168.127.1"),
    ] {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name} in {told:?}");
    }
    // Who was not plugged in gets an address from the pool, the same one each time.
    let stranger = Guest::stranger("stranger");
    for _ in 0..2 {
        assert_eq!(lease(&stranger, folder.path())["ip"], "192.168.127.127");
    }
    // That is nobody else's now.
    let namespace = Namespace::new("two");
    let wanted = PlugRequest {
        address: Some(Ipv4Addr::new(192, 168, 127, 127)),
        ..request("two", PlugKind::Namespace)
    };
    let descriptor = File::open(namespace.path()).unwrap().into();
    let (refused, _) =
        bench.connection().request(Request::AddPlug(wanted), Some(descriptor)).unwrap();
    assert_eq!(refused.unwrap_err().kind, ControlErrorKind::Taken);
    // A renewal goes from the client's own address to the gateway's.
    one.configure();
    let _client = Background::start(one.namespace.command(peer("udhcpc")).args([
        "-f",
        "-i",
        "eth0",
        "-s",
        "/bin/true",
    ]));
    let mut drops = bench.state().drops;
    drops.retain(|reason, _| reason.contains("dhcp"));
    assert_eq!(drops, BTreeMap::new());
}

fn dhclient_leases_ipv6(bench: &mut Bench) {
    let one = bench.plug("one");
    let stranger = Guest::stranger("stranger");
    for (guest, expected) in
        [(&one, one.plugged().address6), (&stranger, "fd00:1:2:3:0:1::".parse().unwrap())]
    {
        wait_for("a link-local address", LONG, || {
            let addresses = guest.show(&["-6", "address", "show", "dev", "eth0", "scope", "link"]);
            (addresses.contains("fe80::") && !addresses.contains("tentative")).then_some(())
        });
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let told = file("told");
        let text = format!(
            "#!/bin/sh\ntest \"$reason\" = BOUND6 && env > {0}.new && mv {0}.new {0}\n",
            told.display()
        );
        fs::write(file("script"), text).unwrap();
        fs::set_permissions(file("script"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(file("conf"), "request dhcp6.name-servers;\n").unwrap();
        let mut client = guest.namespace.command(peer("dhclient"));
        client.args(["-6", "-d", "-1", "-cf"]).arg(file("conf")).arg("-sf").arg(file("script"));
        client.arg("-lf").arg(file("leases")).arg("-pf").arg(file("pid")).arg("eth0");
        let _client = Background::start(&mut client);
        let text = wait_for("an address", LONG, || {
            fs::read_to_string(&told).ok().filter(|text| text.contains("new_ip6_address"))
        });
        assert!(text.contains(&format!("new_ip6_address={expected}\n")), "{expected}: {text}");
        assert!(text.contains("new_dhcp6_name_servers=fd00:1:2:3::1\n"), "{text}");
    }
}

fn leases_outlive_a_killed_process(bench: &mut Bench) {
    let folder = tempfile::tempdir().unwrap();
    let first = Guest::stranger("first");
    assert_eq!(lease(&first, folder.path())["ip"], "192.168.127.127");
    let saved = bench.folder.path().join("net/leases.json");
    wait_for("the lease is saved", LONG, || saved.exists().then_some(()));
    let pid = bench.state().pid.to_string();
    run(Command::new(peer("kill")).args(["-KILL", &pid]));
    wait_for("the process is gone", LONG, || process::find(&bench.folder.path().join("net")).err());
    bench.connection = Some(bench.join("test"));
    let second = Guest::stranger("second");
    assert_eq!(lease(&second, folder.path())["ip"], "192.168.127.128");
    assert_eq!(lease(&first, folder.path())["ip"], "192.168.127.127");
    bench.leave();
}

/// Addresses of a range, shown by `inspect`; a file of leases that cannot be read costs no more than
/// the leases.
fn a_range_is_lent_and_told(bench: &mut Bench) {
    let folder = tempfile::tempdir().unwrap();
    bench.leave();
    fs::create_dir_all(bench.folder.path().join("net")).unwrap();
    let saved = bench.folder.path().join("net/leases.json");
    fs::write(&saved, "{\"v4\": [{\"address\"").unwrap();
    let [first, last] = [2, 3].map(|last| Ipv4Addr::new(192, 168, 127, last));
    let lease = Duration::from_secs(600);
    let dhcp = Some(Dhcp { lease, range: Some(Range { first, last }) });
    let config = Config { dhcp, ..config() };
    bench.connection = Some(join_with(bench.folder.path(), "test", &config).unwrap());
    let warnings = bench.state().warnings;
    assert!(warnings.iter().any(|it| it.contains("leases.json cannot be read")), "{warnings:?}");
    // Instances get others, unless they ask.
    assert_eq!(bench.plug("one").plugged().address4, Ipv4Addr::new(192, 168, 127, 4));
    let stranger = Guest::stranger("stranger");
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(self::lease(&stranger, folder.path())["ip"], first.to_string());
    let state = bench.state();
    let [lent] = state.leases.as_slice() else { panic!("{:?}", state.leases) };
    assert_eq!(lent.address, IpAddr::from(first));
    let mac = stranger.show(&["link", "show", "dev", "eth0"]);
    assert!(mac.contains(&lent.mac.unwrap().to_string()), "{mac} {lent:?}");
    assert!((before + 595..before + 1200).contains(&lent.until), "{lent:?} {before}");
    wait_for("the file is made anew", LONG, || {
        fs::read_to_string(&saved).ok().filter(|text| text.contains(&first.to_string()))
    });
    bench.leave();
}

fn the_kernel_learns_its_router(bench: &mut Bench) {
    let one = bench.plug("one");
    let route = wait_for("a default route", LONG, || {
        let routes = one.show(&["-6", "route", "show", "default", "dev", "eth0"]);
        (!routes.is_empty()).then_some(routes)
    });
    assert!(route.contains("via fe80::ff:fe00:1 ") && route.contains("proto ra"), "{route}");
    let told = run(one.namespace.command(peer("rdisc6")).args(["-1", "-r", "10", "eth0"]));
    assert!(told.contains("fd00:1:2:3::/64") && told.contains("1400 bytes"), "{told}");
    // That is the bridge, once its own kernel knows that nobody else has the address.
    let mut ping = one.namespace.command(peer("ping"));
    ping.args(["-6", "-c", "1", "-W", "1", "fe80::ff:fe00:1%eth0"]);
    wait_for("the router's answer", LONG, || output(&mut ping).status.success().then_some(()));
}

fn loopback_forwards_are_relayed(bench: &mut Bench) {
    let one = bench.guest("one");
    let _servers = one.shout(8080);
    for text in ["127.0.0.1:18080:8080", "[::1]:18080:8080"] {
        bench.ask(Request::AddForward(forward(text, "one"))).unwrap();
        let at: SocketAddr = text.rsplit_once(':').unwrap().0.parse().unwrap();
        assert_eq!(converse(TcpStream::connect(at).unwrap(), b"hello").unwrap(), b"HELLO");
    }
    // Far more than any buffer holds, both ways.
    let text: Vec<u8> = b"abcdefgh".repeat(1 << 20);
    let stream = TcpStream::connect("127.0.0.1:18080").unwrap();
    assert!(converse(stream, &text).unwrap() == text.to_ascii_uppercase());
    // One who listens on the other address family only is found too.
    let six = one.inside(|| TcpListener::bind((one.plugged().address6, 8081)).unwrap());
    thread::spawn(move || serve(&six));
    bench.ask(Request::AddForward(forward("127.0.0.1:18082:8081", "one"))).unwrap();
    let stream = TcpStream::connect("127.0.0.1:18082").unwrap();
    assert_eq!(converse(stream, b"hello").unwrap(), b"HELLO");
    // Nobody listens there, and the client is told so.
    bench.ask(Request::AddForward(forward("127.0.0.1:18081:9", "one"))).unwrap();
    let refused = TcpStream::connect("127.0.0.1:18081").and_then(|stream| converse(stream, b"x"));
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.is_empty()));

    let echo = one.inside(|| UdpSocket::bind("0.0.0.0:5353").unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..len], from);
        }
    });
    bench.ask(Request::AddForward(forward("127.0.0.1:15353:5353/udp", "one"))).unwrap();
    for _ in 0..2 {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        client.connect("127.0.0.1:15353").unwrap();
        for text in ["one", "two"] {
            client.send(text.as_bytes()).unwrap();
            let mut buffer = [0; 16];
            let len = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], text.as_bytes());
        }
    }
    let state = bench.state();
    let connections: Vec<u64> = state.forwards.iter().map(|it| it.connections).collect();
    assert_eq!(connections, [2, 1, 1, 1, 2]);
    assert_eq!(state.udp_flows, 2);
    // The kernel has nothing to do with them.
    assert_eq!(bench.last_note("forwards"), "");

    // An open connection ends with its guest.
    let mut stream = TcpStream::connect("127.0.0.1:18080").unwrap();
    wait_for("it is open", LONG, || (bench.state().tcp_flows == 1).then_some(()));
    bench.ask(Request::RemovePlug { plug: one.plugged().plug }).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let state = bench.state();
    assert_eq!((state.tcp_flows, state.udp_flows), (0, 0));
}

fn other_forwards_are_the_kernels(bench: &mut Bench) {
    let one = bench.guest("one");
    let _servers = one.shout(8080);
    let everywhere = forward("0.0.0.0:18080:8080", "one");
    bench.ask(Request::AddForward(everywhere.clone())).unwrap();
    let note = "forwards +0.0.0.0:18080:8080/tcp>192.168.127.2";
    assert_eq!(bench.last_note("forwards"), note);
    // The port is ours, and by loopback it leads there too.
    let taken = TcpListener::bind("0.0.0.0:18080").unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    let stream = TcpStream::connect("127.0.0.1:18080").unwrap();
    assert_eq!(converse(stream, b"hello").unwrap(), b"HELLO");
    let state = bench.state();
    assert_eq!(state.forwards[0].connections, 1 + 3, "relayed here, and led in by the kernel");
    assert_eq!((state.drops["spoofed-ip"], state.policy["outside"]), (4, 4));

    // What is for one address is reserved, no more.
    let ports = forward("192.168.127.1:18090-18092:1-3/udp", "two");
    bench.ask(Request::AddForward(ports.clone())).unwrap();
    let taken = UdpSocket::bind("192.168.127.1:18091").unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(bench.last_note("forwards"), note, "two is not here yet");
    let _two = bench.plug("two");
    let second = "192.168.127.1:18090-18092:1-3/udp>192.168.127.3";
    assert_eq!(bench.last_note("forwards"), format!("forwards +{second}"));

    // A port of somebody else is told with who has it, and the whole range is given back.
    let other = TcpListener::bind("127.0.0.1:18103").unwrap();
    let range = forward("0.0.0.0:18100-18110:1-11", "one");
    let error = bench.ask(Request::AddForward(range.clone())).unwrap_err();
    assert_eq!(error.kind, ControlErrorKind::Taken);
    let pid = format!("pid {}", std::process::id());
    assert!(error.message.contains("18103") && error.message.contains(&pid), "{error}");
    drop(other);
    bench.ask(Request::AddForward(range.clone())).unwrap();
    for gone in [range, everywhere, ports] {
        bench.ask(Request::RemoveForward { forward: gone.clone() }).unwrap();
        let unknown = bench.ask(Request::RemoveForward { forward: gone }).unwrap_err();
        assert_eq!(unknown.kind, ControlErrorKind::Unknown);
    }
    assert_eq!(bench.last_note("forwards"), format!("forwards -{second}"));
    TcpListener::bind("0.0.0.0:18080").unwrap();
}

fn web(publish: Option<&str>, instances: &[&Guest]) -> ServiceSpec {
    let instances = instances.iter().map(|guest| ServiceInstance {
        name: guest.namespace.name().to_owned(),
        address4: guest.plugged().address4,
        address6: guest.plugged().address6,
        weight: 1,
        eligible: true,
    });
    ServiceSpec {
        name: "web".into(),
        protocol: Protocol::Tcp,
        port: 8080,
        publish: publish.map(|at| at.parse().unwrap()),
        delivery: Default::default(),
        policy: TurnPolicy::RoundRobin,
        affinity: None,
        instances: instances.collect(),
    }
}

fn services_are_the_kernels(bench: &mut Bench) {
    File::create(bench.folder.path().join("tracking")).unwrap();
    let (one, two) = (bench.guest("web-1"), bench.guest("web-2"));
    let service = web(Some("127.0.0.1:18080"), &[&one, &two]);
    let Ok(Reply::Serving { addresses, published }) = bench.ask(Request::SetService(service))
    else {
        panic!("not serving");
    };
    assert_eq!(addresses[0], IpAddr::from([192, 168, 127, 253]));
    assert_eq!(published, Some("127.0.0.1:18080".parse().unwrap()));
    let note = |rest: &str| format!("services web:8080@192.168.127.253{rest}");
    assert_eq!(bench.last_note("services"), note("[]=web-1,web-2"));

    // By loopback one comes to the virtual address, which the first instance has in this test.
    one.ip(&["address", "add", "192.168.127.253/32", "dev", "eth0"]);
    let _servers = one.shout(8080);
    let stream = TcpStream::connect("127.0.0.1:18080").unwrap();
    assert_eq!(converse(stream, b"hello").unwrap(), b"HELLO");

    let eligible = |bench: &mut Bench, instance: &str, eligible: bool| {
        let (service, instance) = ("web".to_owned(), instance.to_owned());
        bench.ask(Request::SetEligible { service, instance, eligible }).unwrap();
    };
    eligible(bench, "web-1", false);
    assert_eq!(bench.last_note("services"), note("[]=web-2"));
    eligible(bench, "web-2", false);
    assert_eq!(bench.last_note("services"), note("[]="));
    let refused = TcpStream::connect("127.0.0.1:18080").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    eligible(bench, "web-2", true);
    TcpStream::connect("127.0.0.1:18080").unwrap();

    let state = bench.state().services.remove(0);
    let turns: Vec<u64> = state.instances.iter().map(|it| it.turns).collect();
    assert_eq!(turns, [7, 8]);

    // Another host address, and one instance less: that drains, as long as it has a connection.
    let connected = bench.folder.path().join("connected");
    File::create(&connected).unwrap();
    bench.ask(Request::SetService(web(Some("0.0.0.0:18081"), &[&two]))).unwrap();
    assert_eq!(bench.last_note("services"), note("[0.0.0.0:18081]=web-2"));
    TcpListener::bind("127.0.0.1:18080").unwrap();
    let state = bench.state().services.remove(0);
    let shown: Vec<_> = state.spec.instances.iter().map(|it| it.name.as_str()).collect();
    let turns: Vec<_> = state.instances.iter().map(|it| (it.turns, it.draining)).collect();
    assert_eq!((shown, turns), (vec!["web-2", "web-1"], vec![(8, false), (7, true)]));
    fs::remove_file(&connected).unwrap();
    let state = bench.state().services.remove(0);
    assert_eq!((state.spec.instances.len(), state.instances.len()), (1, 1));

    // What is tracked is looked at once, and no further than is asked.
    let looks = |bench: &Bench| -> Vec<String> {
        bench.notes().into_iter().filter(|note| note.starts_with("look")).collect()
    };
    let before = looks(bench).len();
    let state = bench.state();
    assert_eq!((state.tcp_flows, state.udp_flows), (5, 6));
    let Ok(Reply::Services(services)) = bench.ask(Request::Services) else { panic!("no services") };
    assert_eq!((services.len(), services[0].instances[0].turns), (1, 8));
    assert_eq!(looks(bench)[before..], ["look at everything", "look at services"]);
    let reply = ask(&mut bench.join("other"), Request::Services);
    assert!(matches!(reply, Ok(Reply::Services(none)) if none.is_empty()), "somebody else's");

    // A port that is taken leaves everything as it was.
    let _other = TcpListener::bind("127.0.0.1:18082").unwrap();
    let moved = web(Some("127.0.0.1:18082"), &[&one, &two]);
    let error = bench.ask(Request::SetService(moved)).unwrap_err();
    assert_eq!(error.kind, ControlErrorKind::Taken);
    assert_eq!(bench.state().services[0].spec.publish, Some("0.0.0.0:18081".parse().unwrap()));

    bench.ask(Request::RemoveService { name: "web".into() }).unwrap();
    assert_eq!(bench.last_note("services"), "services ");
    TcpListener::bind("0.0.0.0:18081").unwrap();
}

fn members_dial_into_the_network(bench: &mut Bench) {
    let one = bench.guest("one");
    let _servers = one.shout(8080);
    let silent = bench.plug("silent");
    let mut dial = |to: SocketAddr, within: Duration| {
        let (reply, stream) =
            bench.connection().request(Request::Dial { to, within }, None).unwrap();
        reply.map(|_| TcpStream::from(stream.unwrap()))
    };
    for address in [IpAddr::from(one.plugged().address4), one.plugged().address6.into()] {
        let stream = dial(SocketAddr::new(address, 8080), LONG).unwrap();
        assert_eq!(converse(stream, b"hello").unwrap(), b"HELLO");
        let refused = dial(SocketAddr::new(address, 9), LONG).unwrap_err();
        assert_eq!(refused.kind, ControlErrorKind::Unreachable);
        assert!(refused.message.contains("refused"), "{refused}");
    }
    let nobody = dial("192.168.127.99:80".parse().unwrap(), LONG).unwrap_err();
    assert_eq!(nobody.kind, ControlErrorKind::Unreachable);
    let to = SocketAddr::new(silent.plugged().address4.into(), 80);
    let late = dial(to, Duration::from_millis(100)).unwrap_err();
    assert_eq!(late.kind, ControlErrorKind::Unreachable);
}

fn what_the_kernel_refuses_is_taken_back(bench: &mut Bench) {
    let one = bench.guest("web-1");
    let expect = |bench: &mut Bench, request: Request| {
        let error = bench.ask(request).unwrap_err();
        assert_eq!(error.message, "the kernel does not like 666");
    };
    let refused = forward("0.0.0.0:10666:80", "web-1");
    expect(bench, Request::AddForward(refused));
    TcpListener::bind("0.0.0.0:10666").unwrap();
    expect(bench, Request::SetService(web(Some("0.0.0.0:10666"), &[&one])));
    assert!(bench.state().services.is_empty());
    // The same for one that exists: it stays as it was.
    bench.ask(Request::SetService(web(None, &[&one]))).unwrap();
    expect(bench, Request::SetService(web(Some("0.0.0.0:10666"), &[])));
    let state = bench.state();
    assert!(state.forwards.is_empty());
    let spec = &state.services[0].spec;
    assert_eq!((spec.publish, spec.instances.len()), (None, 1));
    TcpListener::bind("0.0.0.0:10666").unwrap();

    // Who may get connections stays as it was, whatever was asked for.
    let refusing = bench.folder.path().join("refusing");
    let eligible = |eligible| Request::SetEligible {
        service: "web".into(),
        instance: "web-1".into(),
        eligible,
    };
    for was in [false, true] {
        bench.ask(eligible(was)).unwrap();
        File::create(&refusing).unwrap();
        for wanted in [false, true] {
            expect(bench, eligible(wanted));
            assert_eq!(bench.state().services[0].spec.instances[0].eligible, was);
        }
        fs::remove_file(&refusing).unwrap();
    }

    let wrong = Namespace::new("guest666");
    plug_in(bench.connection(), &wrong).unwrap_err();
    let two = bench.plug("two");
    assert_eq!(two.plugged().address4, Ipv4Addr::new(192, 168, 127, 3));
}

/// What [`JOIN`] does.
fn join_and_fail() -> ExitCode {
    let folder = std::env::args().nth(2).unwrap();
    match join(Path::new(&folder), "weak") {
        Err(JoinError::Refused(error)) => println!("{:?}: {error}", error.kind),
        other => println!("{other:?}"),
    }
    ExitCode::SUCCESS
}

fn what_stands_in_the_way_is_told(bench: &mut Bench) {
    bench.leave();
    // Without capabilities.
    let mut weak = Command::new(peer("setpriv"));
    weak.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(std::env::current_exe().unwrap());
    let told = run(weak.arg(JOIN).arg(bench.folder.path()));
    assert!(told.starts_with("NotPermitted: network `lab`"), "{told}");
    for part in ["CAP_NET_ADMIN, CAP_NET_RAW, ", "sudo setcap cap_net_admin,"] {
        assert!(told.contains(part), "{told}");
    }
    // With somebody who has the port for itself.
    let other = UdpSocket::bind("192.168.127.1:53").unwrap();
    let Err(JoinError::Refused(error)) = join(bench.folder.path(), "late") else {
        panic!("the port is taken");
    };
    assert_eq!(error.kind, ControlErrorKind::Taken);
    let pid = format!("pid {}", std::process::id());
    assert!(error.message.contains("192.168.127.1:53") && error.message.contains(&pid), "{error}");
    assert_eq!(bench.notes().last().unwrap(), "undone");
    drop(other);
    // With somebody who answers on all addresses, over TCP: that is passed over.
    let _other = TcpListener::bind("0.0.0.0:53").unwrap();
    bench.connection = Some(bench.join("test"));
    let warnings = bench.state().warnings;
    assert!(warnings.iter().any(|it| it.contains("192.168.127.1:53 is taken")), "{warnings:?}");
    let one = bench.guest("one");
    let answer = ask_by_datagram(&one, "192.168.127.1:53", "one.lab.lan", dns::A);
    assert_eq!(addresses(&answer), [IpAddr::from(one.plugged().address4)]);
}
