//! What the stack that `GONET` comes from does wrong, each shown absent here: a test for each.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;
mod hosts;

use std::cell::Cell;
use std::fs;
use std::io::{self, ErrorKind, Read as _, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{CLIENT, Link, NIC, SERVER, Sim};
use netyard_stack::blocking::{TcpListener, TcpStream, UdpSocket};
use netyard_stack::config::Config;
use netyard_stack::driver::Driver;
use netyard_stack::{Error, Medium, NicIndex, RawSocket, Settings, Stack, sniffer};
use netyard_sys::seqpacket::SeqPacket;
use netyard_wire::{Features, Frame, FrameBuf, MacAddr, Offload, build};

use self::hosts::{at, hosts};

// ------------------------------------------------------------------------------- configuration --

#[test]
fn it_crashes_at_a_statement_of_blanks() {
    for text in ["nic id=1 dev=t; ", "nic id=1 dev=t;\t;\n", " ; ;nic id=1 dev=t"] {
        assert_eq!(Config::parse(text).unwrap().config.nics.len(), 1, "{text:?}");
    }
}

#[test]
fn it_stops_at_the_first_error() {
    let errors = Config::parse("nic id=x dev=t; ip nic=7; dns ip=nobody").unwrap_err();
    assert!(errors.0.len() > 2, "{errors}");
}

#[test]
fn it_takes_an_unknown_key_of_an_interface_for_one_of_a_route() {
    let errors = Config::parse("nic id=1 dev=t metric=5").unwrap_err().to_string();
    assert!(errors.contains("(`nic`), key `metric`, column 16"), "{errors}");
}

#[test]
fn it_takes_any_rubbish_for_a_resolver() {
    assert!(Config::parse("dns ip=not-an-address").is_err());
}

#[test]
fn it_does_not_print_routes_that_come_with_addresses() {
    let (near, _far) = SeqPacket::pair().unwrap();
    let near = OwnedFd::from(near);
    let inherited = near.as_raw_fd();
    let text = format!(
        "verbose; nic id=7 ether=02:00:00:00:00:01 fd={inherited}; ip nic=7 addr=10.0.0.1/24 addr=fd00::1/64; \
         route nic=7 ipnet=0.0.0.0/0 gw=10.0.0.254"
    );
    let config = Config::parse(&text).unwrap().config;
    let printed = Printed::default();
    Driver::start(&config, || Box::new(printed.clone())).unwrap();
    let printed = printed.0.lock().unwrap();
    let lines: Vec<&str> = std::str::from_utf8(&printed).unwrap().lines().collect();
    for line in [
        "ip nic=7 addr=10.0.0.1/24 addr=fd00::1/64;",
        "route nic=7 ipnet=0.0.0.0/0 gw=10.0.0.254;",
        "route nic=7 ipnet=10.0.0.0/24;",
        "route nic=7 ipnet=fd00::/64;",
        "ip nic=7 addr=fe80::ff:fe00:1/64;",
        "route nic=7 ipnet=fe80::/64;",
    ] {
        assert_eq!(lines.iter().filter(|other| **other == line).count(), 1, "{line} in {lines:#?}");
    }
}

/// What was printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// --------------------------------------------------------------------------------------- sniffer --

#[test]
fn its_trace_does_not_look_behind_extension_headers() {
    let mut datagram = Vec::new();
    let (from, to) = (at("[fd00::1]:1"), at("[fd00::2]:53"));
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    build::udp_frame(&mut datagram, mac, mac, from, to, 64, b"hello");
    // Hop-by-hop options and destination options, each of eight bytes, before the datagram.
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let udp = std::mem::replace(&mut datagram[20], 0);
    datagram[19] += 16;
    datagram.splice(54..54, [options(60), options(udp)].concat());
    let frame = Frame { bytes: &datagram, offload: Offload::default() };
    assert_eq!(sniffer::describe(frame), "udp [fd00::1]:1 > [fd00::2]:53 len=5");
}

#[test]
fn its_trace_cannot_be_kept_in_a_file() {
    let config = Config::parse("nic id=1 dev=t pcap=/tmp/trace.pcapng").unwrap().config;
    assert_eq!(config.nics[0].capture.as_deref(), Some("/tmp/trace.pcapng"));
}

// --------------------------------------------------------------------------------------- routes --

/// Where a packet to `destination` goes to, by the next hop that is asked for.
fn next_hop(stack: &mut Stack, now: Instant, destination: &str) -> Ipv4Addr {
    let socket = stack.udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let to = SocketAddr::new(destination.parse().unwrap(), 9);
    stack.udp_send(now, socket, Some(to), b"x").unwrap();
    let mut frame = FrameBuf::default();
    stack.poll_transmit(now, &mut frame).unwrap();
    // The target of an ARP request.
    let target: [u8; 4] = frame.bytes[38..42].try_into().unwrap();
    target.into()
}

#[test]
fn its_first_route_wins_not_the_longest_prefix() {
    let now = Instant::now();
    let mut stack = Stack::new(now, [1; 32], Settings::default());
    let nic = stack.add_nic(Medium::Ethernet(MacAddr([2, 0, 0, 0, 0, 1])), 1500).unwrap();
    let gateway = Some("10.0.0.254".parse().unwrap());
    stack.add_route("0.0.0.0/0".parse().unwrap(), nic, gateway).unwrap();
    stack.add_address(now, nic, "10.0.0.1/24".parse().unwrap()).unwrap();
    assert_eq!(next_hop(&mut stack, now, "10.0.0.7"), Ipv4Addr::new(10, 0, 0, 7));
    assert_eq!(next_hop(&mut stack, now, "192.0.2.1"), Ipv4Addr::new(10, 0, 0, 254));
}

#[test]
fn its_addresses_have_no_prefixes() {
    let sim = Sim::new(1, Link::default());
    let addresses = sim.stacks[CLIENT].addresses(NIC);
    assert!(addresses.contains(&"10.0.0.1/24".parse().unwrap()), "{addresses:?}");
    assert!(addresses.contains(&"fd00::1/64".parse().unwrap()), "{addresses:?}");
}

#[test]
fn it_has_no_route_to_link_local_addresses() {
    let mut sim = Sim::new(1, Link::default());
    let server: SocketAddr = format!("[{}]:80", common::mac(SERVER).link_local()).parse().unwrap();
    let listener = sim.stacks[SERVER].tcp_listen("[::]:80".parse().unwrap(), 4).unwrap();
    let now = sim.now;
    sim.stacks[CLIENT].tcp_connect(now, server, None).unwrap();
    sim.run(Duration::from_secs(1));
    let (_, from) = sim.stacks[SERVER].tcp_accept(listener).unwrap();
    let own = common::mac(CLIENT).link_local();
    assert_eq!(from, format!("[{own}%1]:{}", from.port()).parse().unwrap());
}

#[test]
fn it_loses_the_zones_of_addresses() {
    let hosts = hosts();
    for (host, number) in [(&hosts.one, 1), (&hosts.other, 2)] {
        let net = format!("fe80::{number}/64").parse().unwrap();
        host.with(|stack, now| stack.add_address(now, NIC, net)).unwrap();
    }
    let server = UdpSocket::bind_on(&hosts.other, at("[fe80::2%1]:5000")).unwrap();
    assert_eq!(server.local_addr().unwrap(), at("[fe80::2%1]:5000"));
    let client = UdpSocket::bind_on(&hosts.one, at("[fe80::1%1]:4000")).unwrap();
    client.connect(at("[fe80::2%1]:5000")).unwrap();
    assert_eq!(client.peer_addr().unwrap(), at("[fe80::2%1]:5000"));
    client.send(b"hello").unwrap();
    let mut got = [0; 9];
    assert_eq!(server.recv_from(&mut got).unwrap(), (5, at("[fe80::1%1]:4000")));
    let listener = TcpListener::bind_on(&hosts.other, at("[::]:80")).unwrap();
    let client = TcpStream::connect_on(&hosts.one, at("[fe80::2%1]:80")).unwrap();
    let (server, from) = listener.accept().unwrap();
    assert_eq!(from, client.local_addr().unwrap());
    assert_eq!((from.ip(), zone(from)), ("fe80::1".parse().unwrap(), 1));
    assert_eq!(
        (server.peer_addr().unwrap(), server.local_addr().unwrap()),
        (from, at("[fe80::2%1]:80"))
    );
    let nowhere = TcpStream::connect_on(&hosts.one, at("[fe80::2%9]:80")).unwrap_err();
    assert_eq!(nowhere.raw_os_error(), Some(19), "ENODEV");
}

fn zone(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}

#[test]
fn it_does_not_know_the_groups_of_an_interface() {
    let mut sim = Sim::new(1, Link::default());
    let stack = &mut sim.stacks[CLIENT];
    let socket = stack.udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    stack.udp_join(socket, NIC, "239.1.2.3".parse().unwrap()).unwrap();
    let groups = stack.groups(NIC);
    for group in ["224.0.0.1", "239.1.2.3", "ff02::1", "ff02::1:ff00:1"] {
        assert!(groups.contains(&group.parse().unwrap()), "{group} among {groups:?}");
    }
}

#[test]
fn it_does_not_ask_whether_somebody_has_its_address() {
    let now = Instant::now();
    let mut stack = Stack::new(now, [1; 32], Settings::default());
    let nic = stack.add_nic(Medium::Ethernet(MacAddr([2, 0, 0, 0, 0, 1])), 1500).unwrap();
    stack.add_address(now, nic, "fd00::1/64".parse().unwrap()).unwrap();
    let (mut frame, mut probes) = (FrameBuf::default(), 0);
    while stack.poll_transmit(now, &mut frame).is_some() {
        // A neighbour solicitation (RFC 4861 section 4.3) without a source.
        probes += usize::from(frame.bytes[54] == 135 && frame.bytes[22..38] == [0; 16]);
    }
    assert!(probes > 0);
}

// -------------------------------------------------------------------------------------- sockets --

#[test]
fn its_listener_on_port_0_says_port_0() {
    let hosts = hosts();
    let listener = TcpListener::bind_on(&hosts.one, at("10.0.0.1:0")).unwrap();
    assert_ne!(listener.local_addr().unwrap().port(), 0);
}

#[test]
fn it_crashes_when_a_listener_is_closed() {
    let hosts = hosts();
    let to = at("10.0.0.2:80");
    let listener = TcpListener::bind_on(&hosts.other, to).unwrap();
    let waiting = TcpStream::connect_on(&hosts.one, to).unwrap();
    drop(listener);
    // Who was not accepted hears of it, and so does whoever comes later.
    let error = (&waiting).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = TcpStream::connect_on(&hosts.one, to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    TcpListener::bind_on(&hosts.other, to).unwrap();
}

#[test]
fn it_ignores_the_address_that_a_connection_is_to_come_from() {
    let mut sim = Sim::new(1, Link::default());
    let now = sim.now;
    let (to, from) = ("10.0.0.2:80".parse().unwrap(), "10.0.0.1:1234".parse().unwrap());
    let id = sim.stacks[CLIENT].tcp_connect(now, to, Some(from)).unwrap();
    assert_eq!(sim.stacks[CLIENT].tcp_info(id).unwrap().local, from);
    let foreign = Some("10.0.0.99:0".parse().unwrap());
    let refused = sim.stacks[CLIENT].tcp_connect(now, to, foreign);
    assert_eq!(refused, Err(Error::AddressNotAvailable));
}

#[test]
fn it_does_not_know_linger() {
    let hosts = hosts();
    let listener = TcpListener::bind_on(&hosts.other, at("10.0.0.2:80")).unwrap();
    let client = TcpStream::connect_on(&hosts.one, at("10.0.0.2:80")).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.set_linger(Some(Duration::ZERO)).unwrap();
    assert_eq!(client.linger().unwrap(), Some(Duration::ZERO));
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn it_has_no_multicast() {
    let hosts = hosts();
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let member = UdpSocket::bind_on(&hosts.other, at("0.0.0.0:5000")).unwrap();
    member.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED).unwrap();
    let sender = UdpSocket::bind_on(&hosts.one, at("10.0.0.1:0")).unwrap();
    sender.send_to(b"to all", (group, 5000)).unwrap();
    let mut got = [0; 9];
    let (len, from) = member.recv_from(&mut got).unwrap();
    assert_eq!((&got[..len], from), (&b"to all"[..], sender.local_addr().unwrap()));
}

#[test]
fn its_listeners_cannot_be_asked_without_waiting() {
    let hosts = hosts();
    let listener = TcpListener::bind_on(&hosts.other, at("10.0.0.2:80")).unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn its_datagrams_come_from_addresses_of_tcp() {
    let hosts = hosts();
    let server = UdpSocket::bind_on(&hosts.other, at("10.0.0.2:53")).unwrap();
    let client = UdpSocket::bind_on(&hosts.one, at("10.0.0.1:4000")).unwrap();
    client.connect(at("10.0.0.2:53")).unwrap();
    client.send(b"question").unwrap();
    let mut got = [0; 9];
    let (len, from) = server.recv_from(&mut got).unwrap();
    assert_eq!((&got[..len], from), (&b"question"[..], at("10.0.0.1:4000")));
    assert_eq!(client.peer_addr().unwrap(), at("10.0.0.2:53"));
    // What has come can be answered as it is.
    server.send_to(b"answer", from).unwrap();
    assert_eq!(client.recv(&mut got).unwrap(), 6);
}

#[test]
fn it_does_not_tell_ipv4_from_ipv6() {
    let mut sim = Sim::new(1, Link::default());
    let four = sim.stacks[SERVER].tcp_listen("0.0.0.0:80".parse().unwrap(), 4).unwrap();
    let now = sim.now;
    let refused = sim.connect("[fd00::2]:80");
    sim.run(Duration::from_secs(1));
    let error = sim.stacks[CLIENT].tcp_take_error(refused).unwrap();
    assert_eq!(error, Some(Error::ConnectionRefused), "an IPv4 listener hears no IPv6");
    // Both families have the port for themselves, for TCP and UDP.
    let six = sim.stacks[SERVER].tcp_listen("[fd00::2]:80".parse().unwrap(), 4).unwrap();
    let sockets = ["0.0.0.0:53", "[fd00::2]:53"]
        .map(|at| sim.stacks[SERVER].udp_bind(at.parse().unwrap()).unwrap());
    let client = sim.stacks[CLIENT].udp_bind("[::]:0".parse().unwrap()).unwrap();
    for (to, listener, socket) in [("10.0.0.2", four, sockets[0]), ("fd00::2", six, sockets[1])] {
        let to: IpAddr = to.parse().unwrap();
        sim.connect(&SocketAddr::new(to, 80).to_string());
        sim.stacks[CLIENT].udp_send(now, client, Some(SocketAddr::new(to, 53)), b"x").unwrap();
        sim.run(Duration::from_secs(1));
        let (_, from) = sim.stacks[SERVER].tcp_accept(listener).unwrap();
        assert_eq!(from.is_ipv4(), to.is_ipv4());
        let (_, from) = sim.stacks[SERVER].udp_recv(socket, &mut [0], false).unwrap();
        assert_eq!(from.is_ipv4(), to.is_ipv4());
    }
}

#[test]
fn it_has_no_raw_sockets() {
    let hosts = hosts();
    // A protocol of the program's own (RFC 3692 leaves 253 to experiments).
    let server = RawSocket::open_on(&hosts.other, at("0.0.0.0:0"), 253).unwrap();
    let client = RawSocket::open_on(&hosts.one, at("10.0.0.1:0"), 253).unwrap();
    let mut got = vec![0; 65_536];
    for len in [1, 1480, 9000] {
        let data = hosts::pattern(len);
        client.send_to(&data, at("10.0.0.2:0")).unwrap();
        let (len, from) = server.recv_from(&mut got).unwrap();
        assert_eq!((&got[..len], from), (&data[..], at("10.0.0.1:0")));
    }
    // A ping: an echo request (RFC 792) is answered by the other host itself.
    let ping = RawSocket::open_on(&hosts.one, at("0.0.0.0:0"), 1).unwrap();
    ping.set_read_timeout(Some(hosts::LONG)).unwrap();
    let (kind, id) = (0x0800_u16, 0x1234_u16);
    let checksum = !(kind + id);
    let words = [kind, checksum, id, 0].map(u16::to_be_bytes).concat();
    ping.send_to(&words, at("10.0.0.2:0")).unwrap();
    let (len, from) = ping.recv_from(&mut got).unwrap();
    assert_eq!((len, got[0], &got[4..6], from), (8, 0, &[0x12, 0x34][..], at("10.0.0.2:0")));
    ping.set_nonblocking(true).unwrap();
    assert_eq!(ping.recv_from(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
    let family = ping.send_to(&words, at("[fd00::2]:0")).unwrap_err();
    assert_eq!(family.kind(), ErrorKind::InvalidInput);
}

#[test]
fn its_errors_have_no_numbers() {
    let hosts = hosts();
    let error = TcpStream::connect_on(&hosts.one, at("10.0.0.2:9")).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::ConnectionRefused, Some(111)));
    let error = TcpStream::connect_on(&hosts.one, at("192.0.2.1:9")).unwrap_err();
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NetworkUnreachable, Some(101)));
}

#[test]
fn its_listeners_have_room_for_ten() {
    let hosts = hosts();
    let to = at("10.0.0.2:80");
    let _listener = TcpListener::bind_on(&hosts.other, to).unwrap();
    let open: Vec<_> = (0..100).map(|_| TcpStream::connect_on(&hosts.one, to).unwrap()).collect();
    assert_eq!(open.len(), 100);
}

// ------------------------------------------------------------------------------------------ TCP --

#[test]
fn it_does_not_acknowledge_selectively() {
    // Four of ten are lost, not one after the other. Only those are sent again, and perhaps a probe.
    let mut sim = Sim::new(1, Link { delay: Duration::from_millis(50), ..Link::default() });
    let (client, server) = sim.open("10.0.0.2:80");
    let sent = Rc::new(Cell::new(0));
    let count = Rc::clone(&sent);
    sim.filter = Some(Box::new(move |side, frame| {
        if side == SERVER || frame.bytes.len() < 1000 {
            return true;
        }
        count.set(count.get() + 1);
        ![2, 4, 6, 8].contains(&count.get())
    }));
    let data = common::pattern(14_400);
    assert!(sim.transfer(CLIENT, (client, server), &data, Duration::from_secs(10)) == data);
    assert!(sent.get() <= 10 + 4 + 1, "{} were sent", sent.get());
}

#[test]
fn its_buffers_do_not_grow() {
    // It has a mebibyte for each, from the first to the last byte.
    let delay = Duration::from_millis(100);
    let mut sim = Sim::new(1, Link { delay, features: Features::ALL, ..Link::default() });
    let (client, server) = sim.open("10.0.0.2:80");
    let first = sim.stacks[CLIENT].tcp_send(client, &vec![7; 2 << 20]).unwrap();
    assert!(first <= 128 << 10, "{first} bytes are taken before anything is known of the path");
    let (mut got, mut under_way) = (0, 0);
    sim.until("sixteen mebibytes", Duration::from_secs(60), |sim| {
        while sim.stacks[CLIENT].tcp_send(client, &[7; 65_536]).is_ok() {}
        while let Ok(bytes) = sim.recv(SERVER, server) {
            got += bytes.len();
        }
        under_way = under_way.max(sim.stacks[CLIENT].tcp_info(client).unwrap().unacknowledged);
        (got >= 16 << 20).then_some(())
    });
    assert!(under_way > 2 << 20, "{under_way} bytes at most were under way");
}

#[test]
fn it_crashes_where_there_is_no_interface() {
    // It works without one, to itself.
    let mut stack = Stack::new(Instant::now(), [1; 32], Settings::default());
    assert_eq!(stack.addresses(NicIndex(0)), []);
    let listener = stack.tcp_listen("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let to = stack.tcp_listener_address(listener).unwrap();
    stack.tcp_connect(Instant::now(), to, None).unwrap();
}

// ---------------------------------------------------------------------------------------- the index --

#[test]
fn every_defect_has_its_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let index = fs::read_to_string(folder.join("README.md")).unwrap();
    let named: Vec<(&str, &str)> =
        index.split('`').filter_map(|code| code.split_once("::")).collect();
    assert!(named.len() > 30, "{named:?}");
    for (file, test) in &named {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        assert!(text.contains(&format!("#[test]\nfn {test}()")), "{file} has no test {test}");
    }
    let here = include_str!("defects_of_the_original.rs");
    for name in here.split("#[test]\nfn it").skip(1).filter_map(|rest| rest.split_once("()")) {
        let name = format!("it{}", name.0);
        assert!(named.iter().any(|(_, test)| *test == name), "{name} is not in the index");
    }
}
