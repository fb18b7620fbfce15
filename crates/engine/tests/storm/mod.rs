//! A whole network under everything that guests may send, with hosts that answer as they like, in virtual time.
//!
//! What happens is read from bytes: seeds and a fuzzer (`fuzz/fuzz_targets/network.rs`) do the same. Asserted is
//! what holds whatever happens: each frame that comes out is sound and from who it says, every table empties in the
//! end, and a guest that had no part in it has all that a network is for.

mod aftermath;
mod choices;
mod frames;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netyard_engine::config::Mdns;
use netyard_engine::control::{Plugged, ServiceInstance, ServiceSpec, TurnPolicy};
use netyard_engine::edge::{DatagramError, PlugId, Readiness, SocketId};
use netyard_engine::forward::{Forward, Protocol};
use netyard_engine::policy::rules::{Direction, Rule, Rules, Verdict};
use netyard_wire::arp::Arp;
use netyard_wire::dns::{Data, Query, Rcode, Record, Response};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::{Icmp, IcmpError};
use netyard_wire::ip::{ICMP, ICMPV6, IGMP, IpPacket, TCP, UDP};
use netyard_wire::reassembly::{self, Reassembly};
use netyard_wire::tcp::Segment;
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, Features, Frame, FrameBuf, Offload, VNET_HEADER_LEN, fit};

use self::choices::Choices;
use self::frames::{Stranger, spoil};
use crate::common::{GATEWAY_MAC, Sim, config};

/// A card of the host.
const CARD: u32 = 3;

/// A network with two guests that send anything, and one that does not.
struct Storm {
    sim: Sim,
    strangers: Vec<Stranger>,
    sound: Plugged,
    /// Frames that were made and not sent yet, and some that were.
    held: Vec<(usize, FrameBuf)>,
    /// What guests put together again.
    parts: BTreeMap<PlugId, Reassembly>,
    /// Sockets of the published and forwarded ports.
    ports: Vec<SocketId>,
    /// Those and all others that are there before anybody has sent anything.
    first: Vec<SocketId>,
}

/// Does what the bytes say, and asserts what must hold then.
pub(crate) fn run(bytes: &[u8]) {
    let mut c = Choices::new(bytes);
    let mut storm = Storm::new(&mut c);
    while !c.is_over() {
        storm.step(&mut c);
        storm.check_frames();
    }
    storm.calm();
    storm.serve_the_sound();
    storm.leave_nothing(c.one_in(2));
}

impl Storm {
    fn new(c: &mut Choices<'_>) -> Self {
        let mut sim =
            Sim::with(netyard_engine::config::Config { mdns: Mdns::Everywhere, ..config() });
        let plugs = ["a", "b", "sound"].map(|name| sim.plug(name));
        sim.network.set_upstreams(vec!["198.51.100.1:53".parse().unwrap()]);
        sim.network.set_mdns_cards(sim.now, &[CARD].into(), &mut sim.world);
        if c.one_in(2) {
            let rule = Rule {
                name: "some".into(),
                verdict: Verdict::Deny,
                direction: Direction::Out,
                instances: vec!["a".into()],
                others: vec!["instance:sound".parse().unwrap(), "other.example".parse().unwrap()],
                protocol: None,
                ports: Vec::new(),
            };
            let rules = Rules { list: vec![rule], otherwise: Verdict::Allow };
            sim.network.set_rules(sim.now, "test", rules, &mut sim.world);
        }
        let mut ports = Vec::new();
        let mut fronts = Vec::new();
        for (name, protocol) in [("web", Protocol::Tcp), ("time", Protocol::Udp)] {
            let instances = plugs[..2].iter().zip(["a", "b"]).map(|(plug, name)| ServiceInstance {
                name: name.into(),
                address4: plug.address4,
                address6: plug.address6,
                weight: 1,
                eligible: true,
            });
            let spec = ServiceSpec {
                name: name.into(),
                protocol,
                port: 8080,
                publish: Some("127.0.0.1:8080".parse().unwrap()).filter(|_| name == "web"),
                delivery: Default::default(),
                policy: TurnPolicy::RoundRobin,
                affinity: None,
                instances: instances.collect(),
            };
            let made = sim.network.set_service(sim.now, "test", spec, &mut sim.world).unwrap();
            fronts.extend(made.0);
        }
        ports.push(sim.world.last());
        for text in ["0.0.0.0:2222:22", "0.0.0.0:5353:53/udp"] {
            let forward = Forward { instance: "a".into(), ..text.parse::<Forward>().unwrap() };
            sim.network.add_forward(sim.now, "test", forward, None, &mut sim.world).unwrap();
            ports.push(sim.world.last());
        }
        let stranger = |plug: &Plugged| Stranger::new(plug.clone(), plugs.to_vec(), fronts.clone());
        let strangers = plugs[..2].iter().map(stranger).collect();
        let [.., sound] = plugs;
        let mut storm = Self {
            sim,
            strangers,
            sound,
            held: Vec::new(),
            parts: BTreeMap::new(),
            ports,
            first: Vec::new(),
        };
        storm.first = storm.open();
        storm
    }

    /// The host's open sockets, oldest first.
    fn open(&self) -> Vec<SocketId> {
        let open = self.sim.world.streams.iter().filter(|(_, it)| !it.closed);
        open.map(|(socket, _)| SocketId(*socket)).collect()
    }

    fn step(&mut self, c: &mut Choices<'_>) {
        match c.below(32) {
            0..18 => self.make(c),
            18..20 if !self.held.is_empty() => {
                // Late, again, or both.
                let at = c.below(self.held.len());
                let (who, frame) = self.held[at].clone();
                if c.one_in(2) {
                    self.held.swap_remove(at);
                }
                self.send(c, who, frame);
            }
            20 => {
                let time = c.of(&[0, 1, 20, 300, 1_500, 40_000, 700_000]);
                self.sim.advance(Duration::from_millis(time));
            }
            21 => self.sim.advance(Duration::from_millis(c.of(&[1, 5, 50]))),
            22 => {
                let port = c.of(&self.ports);
                let from = c.of(&["127.0.0.1:5000", "192.0.2.9:5000", "[2001:db8::9]:5000"]);
                let from = from.parse().unwrap();
                let is_tcp = self.sim.world.stream(port).bound.is_some();
                if !is_tcp {
                    let bytes = vec![c.byte(); c.below(2000)];
                    self.sim.datagram(port, from, &bytes);
                } else if self.sim.world.stream(port).listening {
                    let client = self.sim.world.open();
                    self.sim.world.stream(port).waiting.push_back((client, from));
                    self.sim.readable(port);
                }
            }
            23 => match c.below(4) {
                0 => self.sim.world.refuse ^= true,
                1 => self.sim.world.exhausted ^= true,
                2 => {
                    let plug = self.strangers[c.below(2)].plug.plug;
                    *self.sim.world.inside.entry(plug).or_default() += 1;
                    self.sim.network.handle_supply(
                        self.sim.now,
                        plug,
                        c.one_in(2),
                        c.one_in(2),
                        &mut self.sim.world,
                    );
                    self.sim.flush();
                }
                _ => {
                    let web = c.of(&["a", "b"]);
                    let eligible = c.one_in(2);
                    let world = &mut self.sim.world;
                    let now = self.sim.now;
                    self.sim
                        .network
                        .set_eligible(now, "test", "web", web, eligible, world)
                        .unwrap();
                    self.sim.flush();
                }
            },
            _ => self.host(c),
        }
    }

    /// Makes frames, and sends them or holds them back.
    fn make(&mut self, c: &mut Choices<'_>) {
        let who = c.below(2);
        for frame in self.strangers[who].frames(c) {
            if c.one_in(4) {
                self.held.push((who, frame.clone()));
                if c.one_in(2) {
                    continue;
                }
            }
            self.send(c, who, frame);
        }
        if self.held.len() > 64 {
            self.held.swap_remove(0);
        }
    }

    /// Sends a frame, perhaps spoiled, the way that it takes: its virtio-net header is read as the driver does.
    fn send(&mut self, c: &mut Choices<'_>, who: usize, mut frame: FrameBuf) {
        let mut header = frame.offload.encode();
        if c.one_in(3) {
            spoil(c, &mut frame, &mut header);
        }
        let stranger = &mut self.strangers[who];
        if let Some(packet) = frame.bytes.get(ethernet::HEADER_LEN..) {
            stranger.packet = packet.to_vec();
        }
        let header: [u8; VNET_HEADER_LEN] = header;
        let Ok(offload) = Offload::parse(&header, &frame.bytes) else { return };
        self.sim.frame(stranger.plug.plug, Frame { bytes: &frame.bytes, offload });
    }

    /// The host does something to one of its sockets.
    fn host(&mut self, c: &mut Choices<'_>) {
        let mut open = self.open();
        open.retain(|socket| self.sim.world.stream(*socket).peer.is_none());
        // The newest are those about which most is left to say.
        let back = if c.one_in(2) { c.below(open.len().min(4)) } else { c.below(open.len()) };
        let socket = open[open.len() - 1 - back];
        let stream = self.sim.world.stream(socket);
        let mut ready = Readiness::default();
        match c.below(10) {
            0..3 => {
                ready.writable = true;
                stream.room = c.of(&[1 << 20, 0, 1, 3000, 100_000]);
            }
            3 => {
                ready.readable = true;
                if !stream.inbox_ended {
                    stream.inbox.extend(vec![c.byte(); c.of(&[1, 100, 5_000, 200_000])]);
                }
            }
            4 => {
                (ready.readable, ready.read_closed) = (true, true);
                stream.inbox_ended = true;
            }
            5 => {
                (ready.error, ready.hangup, ready.readable) = (true, true, true);
                stream.inbox_ended = true;
                let kinds = [io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset];
                stream.error = Some(c.of(&kinds));
            }
            6 => {
                ready.error = true;
                let kinds = [
                    IcmpError::PortUnreachable,
                    IcmpError::TooBig(u32::from(c.word())),
                    IcmpError::TimeExceeded,
                    IcmpError::HostUnreachable,
                ];
                stream.reports.push_back(DatagramError {
                    destination: stream.to.unwrap_or("203.0.113.5:9".parse().unwrap()),
                    kind: c.of(&kinds),
                    reporter: c.of(&[None, Some(IpAddr::from([203, 0, 113, 1]))]),
                    hop_limit: c.of(&[None, Some(60)]),
                    quoted: stream.outbox.iter().copied().take(c.below(600)).collect(),
                });
            }
            _ => {
                ready.readable = true;
                let bytes = answer(c, &stream.outbox);
                let strange: SocketAddr = "203.0.113.66:666".parse().unwrap();
                let from = stream.to.filter(|_| !c.one_in(4)).unwrap_or(strange);
                stream.datagrams.push_back((from, bytes));
            }
        }
        self.sim.host(socket, ready);
    }

    /// Looks at every frame that has come out.
    fn check_frames(&mut self) {
        while let Some((to, frame)) = self.sim.world.frames.pop_front() {
            let (header, _) = Ethernet::parse(&frame.bytes).expect("an Ethernet frame");
            if header.source != GATEWAY_MAC {
                let of = |stranger: &&Stranger| stranger.plug.mac == header.source;
                let from = self.strangers.iter().find(of).expect("one of the guests");
                assert_ne!(from.plug.plug, to, "a frame came back: {frame:?}");
                continue;
            }
            check(self.sim.now, &frame, self.parts.entry(to).or_default());
            if let Some(stranger) = self.strangers.iter_mut().find(|it| it.plug.plug == to) {
                stranger.hear(&frame);
            }
        }
    }
}

/// What a server says to what was sent to it: a name server's answer, an echo, or nonsense.
fn answer(c: &mut Choices<'_>, asked: &[u8]) -> Vec<u8> {
    let query = Query::parse(asked).ok().filter(|_| !c.one_in(4));
    if let Some(query) = query {
        let rcode = c.of(&[Rcode::NoError, Rcode::NoError, Rcode::NameError, Rcode::ServerFailure]);
        let mut response = Response::to(&query, rcode);
        for _ in 0..c.of(&[1, 0, 3, 100]) {
            let data = match c.below(3) {
                0 => Data::A(c.long().into()),
                1 => Data::A([127, 0, 0, 1].into()),
                _ => Data::Aaaa((u128::from(c.long()) << 96).into()),
            };
            let name = query.question.name.clone();
            response.answers.push(Record { name, ttl: c.long(), data });
        }
        return response.emit(4096);
    }
    let mut bytes = asked.to_vec();
    match bytes.first_mut() {
        Some(kind @ 8) => *kind = 0,
        Some(kind @ 128) => *kind = 129,
        _ => bytes = vec![c.byte(); c.of(&[0, 12, 1472, 1473, 9000, 65_507])],
    }
    bytes
}

/// A frame of the gateway's is sound, whole and in the parts that it is sent in.
fn check(now: std::time::Instant, frame: &FrameBuf, parts: &mut Reassembly) {
    let offload = Offload::parse(&frame.offload.encode(), &frame.bytes);
    assert_eq!(offload.as_ref(), Ok(&frame.offload), "{frame:?}");
    let mut count = 0;
    fit(frame.as_frame(), Features::NONE, &mut Vec::new(), &mut |sent| {
        count += 1;
        let (header, payload) = Ethernet::parse(sent.bytes).unwrap();
        assert!(!header.destination.is_broadcast() || header.ethertype != ethernet::IPV6);
        if header.ethertype == ethernet::ARP {
            Arp::parse(payload).unwrap();
            return;
        }
        let ip = IpPacket::parse(header.ethertype, payload).expect("an IP packet");
        assert_eq!(ip.len(), payload.len(), "nothing follows the packet: {frame:?}");
        let Some(fragment) = ip.fragment else { return check_packet(&ip, frame) };
        if let Some(payload) = parts.handle(now, &ip, fragment) {
            let whole = reassembly::join(&ip, &payload).unwrap();
            check_packet(&IpPacket::parse(header.ethertype, &whole).unwrap(), frame);
        }
    })
    .expect("offloads that suit the frame");
    assert_ne!(count, 0);
}

fn check_packet(ip: &IpPacket<'_>, frame: &FrameBuf) {
    // What a guest says of its own segments goes on with them to the instances of a service.
    let checksum = match frame.offload.checksum {
        Checksum::Valid => Checksum::Valid,
        _ => Checksum::Present,
    };
    let result = match ip.protocol {
        TCP => Segment::parse(ip, checksum).map(|_| ()),
        UDP => Datagram::parse(ip, checksum).map(|_| ()),
        ICMP | ICMPV6 => Icmp::parse(ip, checksum).map(|_| ()),
        IGMP => Ok(()),
        other => panic!("the gateway sends protocol {other}"),
    };
    assert_eq!(result, Ok(()), "{frame:?}");
}
