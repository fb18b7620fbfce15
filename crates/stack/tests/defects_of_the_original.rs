//! What the stack that `GONET` comes from does wrong, each shown absent here: a test for each.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;
mod hosts;

use std::cell::Cell;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use common::{CLIENT, Link, NIC, SERVER, Sim};
use netyard_stack::blocking::{TcpListener, TcpStream, UdpSocket};
use netyard_stack::config::Config;
use netyard_stack::{Error, Medium, NicIndex, Settings, Stack};
use netyard_wire::{FrameBuf, MacAddr};

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
    let text = "nic id=1 dev=t; ip nic=1 addr=10.0.0.1/24";
    let printed = Config::parse(text).unwrap().config.to_string();
    assert!(printed.contains("addr=10.0.0.1/24"), "the prefix tells the route: {printed}");
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
    sim.stacks[CLIENT].tcp_connect(now, server, None, Some(NIC)).unwrap();
    sim.run(Duration::from_secs(1));
    let (_, from) = sim.stacks[SERVER].tcp_accept(listener).unwrap();
    assert!(from.to_string().starts_with("[fe80::"), "{from}");
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
    let id = sim.stacks[CLIENT].tcp_connect(now, to, Some(from), None).unwrap();
    assert_eq!(sim.stacks[CLIENT].tcp_info(id).unwrap().local, from);
    let foreign = Some("10.0.0.99:0".parse().unwrap());
    let refused = sim.stacks[CLIENT].tcp_connect(now, to, foreign, None);
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
    let settings = Settings::default();
    assert!(settings.receive_buffer > 1 << 20 && settings.send_buffer > 1 << 20, "{settings:?}");
    let hosts = hosts();
    let listener = TcpListener::bind_on(&hosts.other, at("10.0.0.2:80")).unwrap();
    let mut client = TcpStream::connect_on(&hosts.one, at("10.0.0.2:80")).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let writer = thread::spawn(move || client.write_all(&vec![7; 8 << 20]));
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), 8 << 20);
    writer.join().unwrap().unwrap();
}

#[test]
fn it_crashes_where_there_is_no_interface() {
    // It works without one, to itself.
    let mut stack = Stack::new(Instant::now(), [1; 32], Settings::default());
    assert_eq!(stack.addresses(NicIndex(0)), []);
    let listener = stack.tcp_listen("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let to = stack.tcp_listener_address(listener).unwrap();
    stack.tcp_connect(Instant::now(), to, None, None).unwrap();
}
