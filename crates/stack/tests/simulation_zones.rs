//! Addresses of one link: a host on two links, whose neighbours have the same address on both, in virtual time.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use netyard_stack::{Error, Medium, NicIndex, Settings, Stack, TcpId, UdpId};
use netyard_wire::{Frame, FrameBuf, MacAddr, Offload, build, fragment};
use proptest::prelude::*;

const MANY: usize = 10_000;
/// The host in the middle: the same address on both of its links.
const OWN: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Its neighbour, on each of them.
const PEER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x12, 0x34);
const HOST: usize = 0;

/// The host, and the neighbours on its links 1 and 2.
struct Links {
    now: Instant,
    stacks: [Stack; 3],
}

fn at(ip: Ipv6Addr, port: u16, zone: u32) -> SocketAddr {
    SocketAddrV6::new(ip, port, 0, zone).into()
}

impl Links {
    fn new() -> Self {
        let now = Instant::now();
        let stack = |number: u8, nics: u8, ip: Ipv6Addr| {
            let mut stack = Stack::new(now, [number; 32], Settings::default());
            for nic in 0..nics {
                let mac = MacAddr([2, 0, 0, 0, number, nic]);
                let nic = stack.add_nic(Medium::Ethernet(mac), 1500).unwrap();
                stack.add_address(now, nic, format!("{ip}/64").parse().unwrap()).unwrap();
            }
            stack
        };
        let mut links =
            Self { now, stacks: [stack(1, 2, OWN), stack(2, 1, PEER), stack(3, 1, PEER)] };
        links.run(Duration::from_secs(3));
        links
    }

    /// Carries what is sent; true if there was anything.
    fn carry(&mut self) -> bool {
        let mut frame = FrameBuf::default();
        let mut carried = 0;
        for sender in 0..3 {
            while let Some(nic) = self.stacks[sender].poll_transmit(self.now, &mut frame) {
                let (receiver, arrives) = match sender {
                    HOST => (usize::from(nic.0) + 1, NicIndex(0)),
                    neighbour => (HOST, NicIndex(u16::try_from(neighbour - 1).unwrap())),
                };
                self.stacks[receiver].handle_frame(self.now, arrives, frame.as_frame());
                carried += 1;
                assert!(carried < MANY, "they send and send");
            }
        }
        carried > 0
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while self.carry() {}
            let due = self.stacks.iter().filter_map(Stack::poll_timeout).min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            for stack in &mut self.stacks {
                stack.handle_timeout(self.now);
            }
        }
        self.now = end;
    }

    fn bind(&mut self, who: usize, to: SocketAddr) -> UdpId {
        self.stacks[who].udp_bind(to).unwrap()
    }

    fn send(&mut self, who: usize, id: UdpId, to: SocketAddr, text: &str) {
        self.stacks[who].udp_send(self.now, id, Some(to), text.as_bytes()).unwrap();
        self.run(Duration::from_secs(1));
    }

    fn recv(&mut self, who: usize, id: UdpId) -> Result<(String, SocketAddr), Error> {
        let mut buffer = [0; 100];
        let (len, from) = self.stacks[who].udp_recv(id, &mut buffer, false)?;
        Ok((String::from_utf8(buffer[..len].to_vec()).unwrap(), from))
    }

    fn connect(&mut self, who: usize, to: SocketAddr, from: Option<SocketAddr>) -> TcpId {
        let id = self.stacks[who].tcp_connect(self.now, to, from).unwrap();
        self.run(Duration::from_secs(1));
        id
    }

    fn ends(&self, who: usize, id: TcpId) -> (SocketAddr, SocketAddr) {
        let info = self.stacks[who].tcp_info(id).unwrap();
        (info.local, info.remote)
    }

    fn say(&mut self, who: usize, id: TcpId, text: &str) {
        assert_eq!(self.stacks[who].tcp_send(id, text.as_bytes()), Ok(text.len()));
        self.run(Duration::from_secs(1));
    }

    fn hear(&mut self, who: usize, id: TcpId) -> Result<String, Error> {
        let mut buffer = [0; 100];
        let len = self.stacks[who].tcp_recv(self.now, id, &mut buffer, false)?;
        Ok(String::from_utf8(buffer[..len].to_vec()).unwrap())
    }
}

const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

#[test]
fn datagrams_go_to_the_link_that_is_named_and_tell_theirs() {
    let mut links = Links::new();
    let host = links.bind(HOST, at(ANY, 5000, 0));
    for zone in [1, 2] {
        let who = usize::try_from(zone).unwrap();
        let peer = links.bind(who, at(ANY, 53, 0));
        links.send(HOST, host, at(PEER, 53, zone), "question");
        // A neighbour with one interface calls it 1.
        let from = at(OWN, 5000, 1);
        assert_eq!(links.recv(who, peer), Ok(("question".to_owned(), from)));
        links.send(who, peer, from, "answer");
        assert_eq!(links.recv(HOST, host), Ok(("answer".to_owned(), at(PEER, 53, zone))));
        assert_eq!(links.recv(HOST, host), Err(Error::WouldBlock));
    }
}

#[test]
fn a_connected_socket_belongs_to_the_link_of_its_peer() {
    let mut links = Links::new();
    let host = links.bind(HOST, at(ANY, 5000, 0));
    links.stacks[HOST].udp_connect(links.now, host, at(PEER, 53, 2)).unwrap();
    let addresses = links.stacks[HOST].udp_addresses(host).unwrap();
    assert_eq!(addresses, (at(OWN, 5000, 2), Some(at(PEER, 53, 2))));
    for who in [1, 2] {
        let peer = links.bind(who, at(PEER, 53, 1));
        links.send(who, peer, at(OWN, 5000, 1), &format!("from {who}"));
    }
    assert_eq!(links.recv(HOST, host), Ok(("from 2".to_owned(), at(PEER, 53, 2))));
    // The other one has the same address and port, and is somebody else.
    assert_eq!(links.recv(HOST, host), Err(Error::WouldBlock));
    let other = links.stacks[HOST].udp_send(links.now, host, Some(at(PEER, 53, 1)), b"x");
    assert_eq!(other, Err(Error::InvalidInput));
}

#[test]
fn errors_come_to_the_socket_of_their_link() {
    let mut links = Links::new();
    let silent = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
    for (to, error) in [(PEER, Error::ConnectionRefused), (silent, Error::HostUnreachable)] {
        let ids = [1, 2].map(|zone| {
            let id = links.bind(HOST, at(ANY, 0, 0));
            links.stacks[HOST].udp_connect(links.now, id, at(to, 9, zone)).unwrap();
            id
        });
        links.stacks[HOST].udp_send(links.now, ids[1], None, b"anybody?").unwrap();
        links.run(Duration::from_secs(5));
        assert_eq!(links.stacks[HOST].udp_take_error(ids[0]), Ok(None));
        assert_eq!(links.stacks[HOST].udp_take_error(ids[1]), Ok(Some(error)));
    }
    let id = links.connect(HOST, at(PEER, 9, 2), None);
    assert_eq!(links.hear(HOST, id), Err(Error::ConnectionRefused));
}

#[test]
fn connections_to_the_same_address_on_two_links_are_two() {
    let mut links = Links::new();
    let mut open = Vec::new();
    for zone in [1, 2] {
        let who = usize::try_from(zone).unwrap();
        let listener = links.stacks[who].tcp_listen(at(ANY, 80, 0), 4).unwrap();
        // The same ends but for the zone.
        let client = links.connect(HOST, at(PEER, 80, zone), Some(at(OWN, 4000, zone)));
        assert_eq!(links.ends(HOST, client), (at(OWN, 4000, zone), at(PEER, 80, zone)));
        let (server, from) = links.stacks[who].tcp_accept(listener).unwrap();
        assert_eq!(from, at(OWN, 4000, 1));
        assert_eq!(links.ends(who, server), (at(PEER, 80, 1), at(OWN, 4000, 1)));
        open.push((who, client, server));
    }
    for (who, client, server) in open {
        links.say(HOST, client, &format!("to {who}"));
        assert_eq!(links.hear(who, server), Ok(format!("to {who}")));
        links.say(who, server, &format!("from {who}"));
        assert_eq!(links.hear(HOST, client), Ok(format!("from {who}")));
    }
}

#[test]
fn a_listener_on_all_links_tells_who_came_by_which() {
    let mut links = Links::new();
    let listener = links.stacks[HOST].tcp_listen(at(ANY, 80, 0), 4).unwrap();
    for who in [1, 2] {
        let client = links.connect(who, at(OWN, 80, 1), Some(at(PEER, 4000, 0)));
        let (server, from) = links.stacks[HOST].tcp_accept(listener).unwrap();
        let zone = u32::try_from(who).unwrap();
        assert_eq!(from, at(PEER, 4000, zone));
        assert_eq!(links.ends(HOST, server), (at(OWN, 80, zone), from));
        links.say(HOST, server, "welcome");
        assert_eq!(links.hear(who, client), Ok("welcome".to_owned()));
    }
}

#[test]
fn a_listener_on_an_address_of_one_link_is_heard_there_only() {
    let mut links = Links::new();
    let one = links.stacks[HOST].tcp_listen(at(OWN, 80, 1), 4).unwrap();
    assert_eq!(links.stacks[HOST].tcp_listener_address(one), Ok(at(OWN, 80, 1)));
    let id = links.connect(2, at(OWN, 80, 0), None);
    assert_eq!(links.hear(2, id), Err(Error::ConnectionRefused));
    // The same address and port on the other link are free.
    let other = links.stacks[HOST].tcp_listen(at(OWN, 80, 2), 4).unwrap();
    assert_eq!(links.stacks[HOST].tcp_listen(at(OWN, 80, 2), 4), Err(Error::AddressInUse));
    links.connect(2, at(OWN, 80, 0), None);
    assert_eq!(links.stacks[HOST].tcp_accept(one), Err(Error::WouldBlock));
    assert!(links.stacks[HOST].tcp_accept(other).is_ok());
    let datagrams = [1, 2].map(|zone| links.bind(HOST, at(OWN, 53, zone)));
    let client = links.bind(2, at(ANY, 0, 0));
    links.send(2, client, at(OWN, 53, 1), "hello");
    assert_eq!(links.recv(HOST, datagrams[0]), Err(Error::WouldBlock));
    assert!(links.recv(HOST, datagrams[1]).is_ok());
}

#[test]
fn an_address_that_does_not_say_of_which_link_is_refused() {
    let mut links = Links::new();
    let now = links.now;
    let stack = &mut links.stacks[HOST];
    let id = stack.udp_bind(at(ANY, 0, 0)).unwrap();
    for (zone, error) in
        [(0, Error::InvalidInput), (3, Error::NoDevice), (u32::MAX, Error::NoDevice)]
    {
        assert_eq!(stack.udp_send(now, id, Some(at(PEER, 9, zone)), b"x"), Err(error));
        assert_eq!(stack.udp_connect(now, id, at(PEER, 9, zone)), Err(error));
        assert_eq!(stack.udp_bind(at(OWN, 0, zone)), Err(error));
        assert_eq!(stack.tcp_connect(now, at(PEER, 9, zone), None), Err(error));
        assert_eq!(stack.tcp_listen(at(OWN, 0, zone), 1), Err(error));
    }
    let two = Some(at(OWN, 0, 1));
    assert_eq!(stack.tcp_connect(now, at(PEER, 9, 2), two), Err(Error::InvalidInput));
    assert_eq!(stack.tcp_listen(at(PEER, 0, 1), 1), Err(Error::AddressNotAvailable));
    // What is bound to a link needs no zone, nor does a host on one link; others have none to give.
    let bound = stack.udp_bind(at(OWN, 0, 2)).unwrap();
    assert_eq!(stack.udp_send(now, bound, Some(at(PEER, 9, 0)), b"x"), Ok(()));
    assert!(stack.tcp_connect(now, at(PEER, 9, 0), two).is_ok());
    let lonely = &mut links.stacks[1];
    assert_eq!(
        lonely.tcp_listen(at(PEER, 80, 0), 1).and_then(|id| lonely.tcp_listener_address(id)),
        Ok(at(PEER, 80, 1))
    );
    lonely.add_address(now, NicIndex(0), "fd00::2/64".parse().unwrap()).unwrap();
    let global: SocketAddr = at("fd00::2".parse().unwrap(), 53, 7);
    let id = lonely.udp_bind(global).unwrap();
    assert_eq!(lonely.udp_addresses(id).unwrap().0, "[fd00::2]:53".parse().unwrap());
}

#[test]
fn groups_are_joined_and_addressed_by_link() {
    let mut links = Links::new();
    let member = links.bind(HOST, at(ANY, 5353, 0));
    links.stacks[HOST].udp_join(member, NicIndex(1), GROUP.into()).unwrap();
    for who in [1, 2] {
        let sender = links.bind(who, at(ANY, 4000, 0));
        links.send(who, sender, at(GROUP, 5353, 1), &format!("from {who}"));
    }
    assert_eq!(links.recv(HOST, member), Ok(("from 2".to_owned(), at(PEER, 4000, 2))));
    assert_eq!(links.recv(HOST, member), Err(Error::WouldBlock));
    // Without a zone it goes where the socket has joined; with one there.
    let peers = [1, 2].map(|who| {
        let id = links.bind(who, at(ANY, 5353, 0));
        links.stacks[who].udp_join(id, NicIndex(0), GROUP.into()).unwrap();
        id
    });
    for (zone, heard) in [(0, [false, true]), (1, [true, false]), (2, [false, true])] {
        links.send(HOST, member, at(GROUP, 5353, zone), "to all");
        let got = [1, 2].map(|who| links.recv(who, peers[who - 1]).is_ok());
        assert_eq!(got, heard, "to zone {zone}");
        // Its own member hears it where it is one.
        let own = links.recv(HOST, member).map(|(_, from)| from);
        let wanted = if zone == 1 { Err(Error::WouldBlock) } else { Ok(at(OWN, 5353, 2)) };
        assert_eq!(own, wanted, "to zone {zone}");
    }
    let outsider = links.bind(HOST, at(ANY, 0, 0));
    let sent = links.stacks[HOST].udp_send(links.now, outsider, Some(at(GROUP, 5353, 0)), b"x");
    assert_eq!(sent, Err(Error::InvalidInput));
}

#[test]
fn a_host_reaches_itself_by_the_addresses_of_its_links() {
    let mut links = Links::new();
    let listener = links.stacks[HOST].tcp_listen(at(ANY, 80, 0), 4).unwrap();
    let server = links.bind(HOST, at(ANY, 53, 0));
    for zone in [1, 2] {
        let client = links.connect(HOST, at(OWN, 80, zone), Some(at(OWN, 4000, zone)));
        let (accepted, from) = links.stacks[HOST].tcp_accept(listener).unwrap();
        assert_eq!(from, at(OWN, 4000, zone));
        links.say(HOST, client, "myself");
        assert_eq!(links.hear(HOST, accepted), Ok("myself".to_owned()));
        links.send(HOST, server, at(OWN, 53, zone), "me");
        assert_eq!(links.recv(HOST, server), Ok(("me".to_owned(), at(OWN, 53, zone))));
    }
    // From an address of a link to one of every link.
    let global: IpAddr = "fd00::7".parse().unwrap();
    let net = "fd00::7/64".parse().unwrap();
    links.stacks[HOST].add_address(links.now, NicIndex(0), net).unwrap();
    links.connect(HOST, SocketAddr::new(global, 80), Some(at(OWN, 4001, 2)));
    let (_, from) = links.stacks[HOST].tcp_accept(listener).unwrap();
    assert_eq!(from, at(OWN, 4001, 2));
}

#[test]
fn an_address_of_one_link_is_nobodys_on_another() {
    let now = Instant::now();
    let mut links = Links::new();
    let other: Ipv6Addr = "fe80::7".parse().unwrap();
    links.stacks[HOST].add_address(now, NicIndex(1), "fe80::7/64".parse().unwrap()).unwrap();
    let listener = links.stacks[HOST].tcp_listen(at(ANY, 80, 0), 4).unwrap();
    links.connect(2, at(other, 80, 1), None);
    assert!(links.stacks[HOST].tcp_accept(listener).is_ok());
    let id = links.connect(1, at(other, 80, 1), None);
    links.run(Duration::from_secs(5));
    assert_eq!(links.hear(1, id), Err(Error::HostUnreachable), "nobody answers for it there");
    // Nor takes what is sent to it all the same.
    links.stacks[1].set_neighbor(NicIndex(0), other.into(), MacAddr([2, 0, 0, 0, 1, 0]));
    let id = links.connect(1, at(other, 80, 1), None);
    assert_eq!(links.hear(1, id), Err(Error::WouldBlock));
    assert_eq!(links.stacks[HOST].tcp_accept(listener), Err(Error::WouldBlock));
    assert!(links.stacks[HOST].drops()["ip-destination"] > 0);
}

#[test]
fn a_neighbour_on_one_link_is_answered_there_from_the_address_of_another() {
    let (now, mut stack, nics) = common::alone(["10.0.0.1/24", "169.254.1.1/16"]);
    let gateway = "10.0.0.254".parse().unwrap();
    stack.add_route("0.0.0.0/0".parse().unwrap(), nics[0], Some(gateway)).unwrap();
    stack.tcp_listen("0.0.0.0:80".parse().unwrap(), 4).unwrap();
    // To the address of the other link, which has a router.
    let (from, to) = ("169.254.9.9:4000".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
    let came = common::syn(MacAddr([0; 6]), from, to);
    stack.handle_frame(now, nics[1], came.as_frame());
    let mut frame = FrameBuf::default();
    assert_eq!(stack.poll_transmit(now, &mut frame), Some(nics[1]));
    assert_eq!(stack.poll_transmit(now, &mut frame), None);
}

#[test]
fn no_router_is_asked_for_an_address_of_a_link() {
    let (now, mut stack, [nic]) = common::alone(["fd00::1/64"]);
    let ethernet = stack.add_nic(Medium::Ethernet(MacAddr([2, 0, 0, 0, 0, 1])), 1500).unwrap();
    stack.add_address(now, ethernet, "fd00:1::1/64".parse().unwrap()).unwrap();
    let gateway = Some("fd00:1::ffff".parse().unwrap());
    stack.add_route("::/0".parse().unwrap(), ethernet, gateway).unwrap();
    let mut frame = FrameBuf::default();
    while stack.poll_transmit(now, &mut frame).is_some() {}
    let id = stack.udp_bind(at(ANY, 0, 0)).unwrap();
    stack.udp_send(now, id, Some(at(PEER, 9, 2)), b"x").unwrap();
    assert_eq!(stack.poll_transmit(now, &mut frame), Some(ethernet));
    // A neighbour solicitation asks for the destination itself.
    assert_eq!(frame.bytes[62..78], PEER.octets());
    // A TUN has nobody to ask.
    stack.udp_send(now, id, Some(at(PEER, 9, 1)), b"x").unwrap();
    assert_eq!(stack.poll_transmit(now, &mut frame), Some(nic));
}

#[test]
fn packets_of_a_program_go_to_groups_by_its_link() {
    let (now, mut stack, nics) = common::alone(["10.0.0.1/24", "10.0.1.1/24"]);
    let gateway = "10.0.0.254".parse().unwrap();
    stack.add_route("0.0.0.0/0".parse().unwrap(), nics[0], Some(gateway)).unwrap();
    // All routers that speak OSPF (RFC 2328 appendix A.1).
    let group: IpAddr = "224.0.0.5".parse().unwrap();
    let bound = stack.raw_open("10.0.1.1:0".parse().unwrap(), 89).unwrap();
    let any = stack.raw_open("0.0.0.0:0".parse().unwrap(), 89).unwrap();
    let sent = |stack: &mut Stack, id| {
        stack.raw_send(now, id, SocketAddr::new(group, 0), b"hello").unwrap();
        let mut frame = FrameBuf::default();
        let nic = stack.poll_transmit(now, &mut frame);
        assert_eq!(frame.bytes[22], 1, "no router takes it on");
        (nic, frame)
    };
    // From its address, or where it has joined.
    assert_eq!(sent(&mut stack, bound).0, Some(nics[1]));
    assert_eq!(sent(&mut stack, any).0, Some(nics[0]));
    stack.raw_join(any, nics[1], group).unwrap();
    assert_eq!(sent(&mut stack, any).0, Some(nics[1]));
    stack.raw_join(bound, nics[1], group).unwrap();
    assert_eq!(stack.raw_join(bound, nics[1], group), Err(Error::AddressInUse));
    let mut frame = Vec::new();
    let (none, from) = (MacAddr([0; 6]), "10.0.1.2".parse().unwrap());
    let offload = build::raw_frame(&mut frame, none, none, from, group, 1, 89, b"hello");
    for (nic, heard) in [(nics[0], false), (nics[1], true)] {
        stack.handle_frame(now, nic, Frame { bytes: &frame, offload });
        for id in [bound, any] {
            assert_eq!(stack.raw_recv(id, &mut [0; 9], false).is_ok(), heard, "{id:?} {nic:?}");
        }
    }
    // The last one that leaves takes the link with it.
    stack.raw_leave(any, nics[1], group).unwrap();
    assert!(stack.groups(nics[1]).contains(&group));
    stack.raw_close(bound);
    assert!(!stack.groups(nics[1]).contains(&group));
}

#[test]
fn fragments_of_neighbours_with_one_address_are_not_mixed() {
    let mut links = Links::new();
    let socket = links.bind(HOST, at(OWN, 53, 1));
    let other = links.bind(HOST, at(OWN, 53, 2));
    let cut = |byte| {
        let mut frame = FrameBuf::default();
        let none = MacAddr([0; 6]);
        let to = MacAddr([2, 0, 0, 0, 1, byte]);
        let (from, own) = (at(PEER, 4000, 0), at(OWN, 53, 0));
        frame.offload = build::udp_frame(&mut frame.bytes, none, to, from, own, 64, &[byte; 2000]);
        let mut parts = Vec::new();
        let keep = &mut |bytes: &[u8]| parts.push(bytes.to_vec());
        fragment::complete_and_cut(frame.as_frame(), 1280, 7, keep).unwrap();
        parts
    };
    for (one, two) in cut(0).iter().zip(&cut(1)) {
        for (nic, bytes) in [(0, one), (1, two)] {
            let frame = Frame { bytes, offload: Offload::default() };
            links.stacks[HOST].handle_frame(links.now, NicIndex(nic), frame);
        }
    }
    for (id, byte) in [(socket, 0), (other, 1)] {
        let mut buffer = [7; 3000];
        let (len, _) = links.stacks[HOST].udp_recv(id, &mut buffer, false).unwrap();
        assert_eq!(buffer[..len], [byte; 2000]);
    }
}

#[test]
fn pings_of_a_program_go_by_the_link_that_is_named() {
    let mut links = Links::new();
    let raw = links.stacks[HOST].raw_open(at(ANY, 0, 0), 58).unwrap();
    for zone in [1, 2] {
        // An echo request (RFC 4443 section 4.1), whose checksum is filled in.
        let ask = [128, 0, 0xff, 0xff, 0, 7, 0, u8::try_from(zone).unwrap()];
        links.stacks[HOST].raw_send(links.now, raw, at(PEER, 0, zone), &ask).unwrap();
        links.run(Duration::from_secs(1));
        let mut answers = Vec::new();
        let mut buffer = [0; 100];
        while let Ok((len, from)) = links.stacks[HOST].raw_recv(raw, &mut buffer, false) {
            // Neighbour discovery is ICMPv6, too.
            if buffer[0] == 129 {
                answers.push((buffer[4..len].to_vec(), from));
            }
        }
        assert_eq!(answers, [(ask[4..].to_vec(), at(PEER, 0, zone))]);
    }
}

/// Addresses of a link and of none, ours and others', and some that no host has.
const ADDRESSES: [&str; 8] =
    ["fe80::1", "fe80::2", "fe80::99", "ff02::1234", "ff02::1", "fd00::1", "fd00::2", "::"];

/// An address that the stack tells has a zone exactly where that has a meaning.
fn is_told_right(told: SocketAddr) -> bool {
    let SocketAddr::V6(told) = told else { return false };
    let [first, second, ..] = told.ip().octets();
    let zoned = told.ip().is_unicast_link_local() || (first == 0xff && second == 2);
    if zoned { matches!(told.scope_id(), 1 | 2) } else { told.scope_id() == 0 }
}

proptest! {
    #[test]
    fn whatever_comes_and_is_asked_for_addresses_have_their_zones(
        steps in proptest::collection::vec((0..5u8, 0..2u16, 0..8usize, 0..8usize, 0..4u32), 1..60),
    ) {
        let mut links = Links::new();
        let now = links.now;
        let stack = &mut links.stacks[HOST];
        stack.add_address(now, NicIndex(0), "fd00::1/64".parse().unwrap()).unwrap();
        let listener = stack.tcp_listen(at(ANY, 80, 0), 100).unwrap();
        let member = stack.udp_bind(at(ANY, 53, 0)).unwrap();
        stack.udp_join(member, NicIndex(1), GROUP.into()).unwrap();
        let none = MacAddr([0; 6]);
        let ip = |which: usize| ADDRESSES[which].parse::<Ipv6Addr>().unwrap();
        for (kind, link, one, other, zone) in steps {
            let (from, to) = (at(ip(one), 4000, 0), at(ip(other), 53, 0));
            let mac = MacAddr([2, 0, 0, 0, 1, u8::try_from(link).unwrap()]);
            let mut bytes = Vec::new();
            match kind {
                0 => {
                    let offload = build::udp_frame(&mut bytes, none, mac, from, to, 64, b"x");
                    stack.handle_frame(now, NicIndex(link), Frame { bytes: &bytes, offload });
                }
                1 => {
                    let syn = common::syn(mac, from, at(ip(other), 80, 0));
                    stack.handle_frame(now, NicIndex(link), syn.as_frame());
                }
                // What cannot be is an error, and nothing else.
                2 => drop(stack.udp_send(now, member, Some(at(ip(other), 53, zone)), b"y")),
                3 => {
                    if let Ok(id) = stack.udp_bind(at(ip(one), 0, zone)) {
                        let connected = stack.udp_connect(now, id, at(ip(other), 53, zone));
                        let (local, remote) = stack.udp_addresses(id).unwrap();
                        prop_assert!(is_told_right(local), "{local}");
                        prop_assert_eq!(remote.is_some(), connected.is_ok());
                        prop_assert!(remote.is_none_or(is_told_right), "{remote:?}");
                        stack.udp_close(id);
                    }
                }
                _ => {
                    let from = Some(at(ip(one), 0, zone));
                    if let Ok(id) = stack.tcp_connect(now, at(ip(other), 80, zone), from) {
                        let info = stack.tcp_info(id).unwrap();
                        prop_assert!(is_told_right(info.local), "{}", info.local);
                        prop_assert!(is_told_right(info.remote), "{}", info.remote);
                    }
                }
            }
            let mut frame = FrameBuf::default();
            let sent = std::iter::from_fn(|| stack.poll_transmit(now, &mut frame)).take(MANY);
            prop_assert!(sent.count() < MANY, "it sends and sends");
            while let Ok((_, from)) = stack.udp_recv(member, &mut [0], false) {
                prop_assert!(is_told_right(from), "{from}");
            }
            while let Ok((_, from)) = stack.tcp_accept(listener) {
                prop_assert!(is_told_right(from), "{from}");
            }
        }
    }
}
