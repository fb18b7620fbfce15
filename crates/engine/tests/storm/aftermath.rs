//! What must be when a storm is over: a sound guest has all that a network is for, and nothing is left of the others.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use netyard_engine::edge::{PlugId, Readiness, SocketId};
use netyard_wire::arp::{Arp, Operation};
use netyard_wire::dhcp::v4;
use netyard_wire::dns::{A, Data, Flags as DnsFlags, IN, Query, Question, Rcode, Record, Response};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::Icmp;
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::Flags;
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, FrameBuf, MacAddr, build};

use super::Storm;
use super::frames::frame;
use crate::common::{GATEWAY_MAC, Guest, Seen, config, pattern};

/// Longer than any flow is kept that nobody uses.
const LONG: Duration = Duration::from_secs(3 * 60 * 60);

impl Storm {
    /// The host is well again, and what has waited is sent.
    pub(super) fn calm(&mut self) {
        self.sim.world.refuse = false;
        self.sim.world.exhausted = false;
        for name in ["a", "b"] {
            let (now, world) = (self.sim.now, &mut self.sim.world);
            self.sim.network.set_eligible(now, "test", "web", name, true, world).unwrap();
        }
        self.sim.flush();
        self.sim.advance(Duration::from_secs(2));
        self.check_frames();
        let state = self.sim.network.state();
        let dns = state.dns.unwrap_or_default();
        assert!(dns.answers <= 4096 && dns.bytes <= 1 << 20, "{dns:?}");
        assert!(state.pings.unwrap_or_default() <= 2 * 128, "{:?}", state.pings);
        assert!(state.plugs.iter().all(|plug| plug.groups.len() <= 256));
    }

    /// What the sound guest gets for a frame.
    fn ask(&mut self, frame: &FrameBuf) -> Vec<FrameBuf> {
        self.sim.frame(self.sound.plug, frame.as_frame());
        self.heard()
    }

    fn heard(&mut self) -> Vec<FrameBuf> {
        let frames = self.sim.world.frames.drain(..);
        frames.filter(|(to, _)| *to == self.sound.plug).map(|(_, frame)| frame).collect()
    }

    /// The payload of the datagrams that the sound guest gets for one.
    fn ask_by_udp(&mut self, mac: MacAddr, ends: [SocketAddr; 2], payload: &[u8]) -> Vec<Vec<u8>> {
        let [from, to] = ends;
        let own = self.sound.mac;
        let asked = frame(|out| build::udp_frame(out, own, mac, from, to, 64, payload));
        let heard = self.ask(&asked);
        payloads(&heard)
    }

    pub(super) fn serve_the_sound(&mut self) {
        self.sim.world.frames.clear();
        self.neighbours_answer();
        self.an_address_is_given();
        self.names_are_told();
        self.connections_work();
    }

    fn neighbours_answer(&mut self) {
        let arp = Arp {
            operation: Operation::Request,
            sender_mac: self.sound.mac,
            sender_ip: self.sound.address4,
            target_mac: MacAddr([0; 6]),
            target_ip: config().gateway4(),
        };
        let own = self.sound.mac;
        let asked = frame(|out| build::arp_frame(out, own, MacAddr::BROADCAST, &arp));
        let heard = self.ask(&asked);
        let [reply] = heard.as_slice() else { panic!("{heard:?}") };
        let reply = Arp::parse(&reply.bytes[ethernet::HEADER_LEN..]).unwrap();
        assert_eq!((reply.sender_mac, reply.sender_ip), (GATEWAY_MAC, config().gateway4()));
        for to in [IpAddr::from(config().gateway4()), config().gateway6().into()] {
            let from =
                if to.is_ipv4() { self.sound.address4.into() } else { self.sound.address6.into() };
            let ping = Icmp::EchoRequest { id: 1, seq: 2, data: b"data" };
            let heard = self
                .ask(&frame(|out| build::icmp_frame(out, own, GATEWAY_MAC, from, to, 64, &ping)));
            let [pong] = heard.as_slice() else { panic!("{heard:?}") };
            let (header, packet) = Ethernet::parse(&pong.bytes).unwrap();
            let ip = IpPacket::parse(header.ethertype, packet).unwrap();
            let pong = Icmp::parse(&ip, Checksum::Present).unwrap();
            assert_eq!(pong, Icmp::EchoReply { id: 1, seq: 2, data: b"data" });
        }
    }

    fn an_address_is_given(&mut self) {
        let none = Ipv4Addr::UNSPECIFIED;
        for (kind, wanted) in [
            (v4::MessageType::Discover, v4::MessageType::Offer),
            (v4::MessageType::Request, v4::MessageType::Ack),
        ] {
            let mut options = v4::Options::default();
            options.set(v4::option::MESSAGE_TYPE, [kind.code()]);
            if kind == v4::MessageType::Request {
                options.set(50, self.sound.address4.octets());
                options.set(54, config().gateway4().octets());
            }
            let message = v4::Message {
                operation: v4::Operation::Request,
                xid: 7,
                secs: 0,
                broadcast: true,
                ciaddr: none,
                yiaddr: none,
                siaddr: none,
                giaddr: none,
                chaddr: self.sound.mac,
                options,
            };
            let ends = [(none, 68).into(), (Ipv4Addr::BROADCAST, 67).into()];
            let heard = self.ask_by_udp(MacAddr::BROADCAST, ends, &message.emit());
            let [answer] = heard.as_slice() else { panic!("{heard:?}") };
            let answer = v4::Message::parse(answer).unwrap();
            assert_eq!((answer.options.kind(), answer.xid), (Some(wanted), 7));
            assert_eq!(answer.yiaddr, self.sound.address4);
        }
    }

    fn names_are_told(&mut self) {
        let own = SocketAddr::new(self.sound.address4.into(), 40_000);
        let ends = [own, SocketAddr::new(config().gateway4().into(), 53)];
        for (name, local) in [("sound.test", true), ("calm.example", false)] {
            let question = Question { name: name.parse().unwrap(), kind: A, class: IN };
            let query = Query { id: 9, flags: DnsFlags::RECURSION_DESIRED, question, edns: None };
            let mut heard = self.ask_by_udp(GATEWAY_MAC, ends, &query.emit());
            let mut address = self.sound.address4;
            if !local {
                assert!(heard.is_empty(), "nobody can know that");
                address = [203, 0, 113, 5].into();
                let (socket, asked) = self.asked(name);
                let mut response = Response::to(&asked, Rcode::NoError);
                let (name, data) = (asked.question.name.clone(), Data::A(address));
                response.answers.push(Record { name, ttl: 300, data });
                let resolver = self.sim.world.stream(socket).to.unwrap();
                self.sim.datagram(socket, resolver, &response.emit(512));
                heard = payloads(&self.heard());
            }
            let [answer] = heard.as_slice() else { panic!("{name}: {heard:?}") };
            let answer = Response::parse(answer).unwrap();
            assert!(answer.answers(&query));
            assert_eq!(answer.answers[0].data, Data::A(address));
        }
    }

    /// The newest socket by which a resolver was asked for a name.
    fn asked(&mut self, name: &str) -> (SocketId, Query) {
        let open = self.open().into_iter().rev();
        let asked = open.filter_map(|socket| {
            let query = Query::parse(&self.sim.world.streams[&socket.0].outbox).ok()?;
            (query.question.name == name.parse().unwrap()).then_some((socket, query))
        });
        asked.into_iter().next().expect("a question to a resolver")
    }

    /// Both families, both ways, and both ends finish.
    fn connections_work(&mut self) {
        for to in ["203.0.113.5:80", "[2001:db8::5]:80"] {
            let mut guest = Guest::new(self.sound.clone(), to);
            guest.own.set_port(50_000);
            let socket = guest.connect(&mut self.sim);
            let (up, down) = (pattern(1000), pattern(5000));
            guest.send(&mut self.sim, Flags::ACK, &up);
            self.sim.arrives(socket, &down);
            self.sim.ends(socket);
            let mut got = Vec::new();
            let mut finished = false;
            while let Some((to, frame)) = self.sim.world.frames.pop_front() {
                let seen = Seen::parse(&frame).filter(|_| to == self.sound.plug);
                let Some(seen) = seen.filter(|seen| seen.end() != seen.seq) else { continue };
                assert_eq!(seen.seq, guest.ack);
                got.extend_from_slice(&seen.payload);
                finished |= seen.has(Flags::FIN);
                guest.acknowledge(&mut self.sim, &seen);
            }
            assert!(finished && got == down, "{} of {} bytes", got.len(), down.len());
            guest.send(&mut self.sim, Flags::ACK | Flags::FIN, b"");
            let stream = self.sim.world.stream(socket);
            assert!(stream.outbox == up && stream.shut && stream.closed && !stream.reset);
            self.sim.world.frames.clear();
        }
    }

    /// Nothing is left, when the guests have gone or are silent.
    pub(super) fn leave_nothing(&mut self, gone: bool) {
        let plugs: Vec<PlugId> = self.strangers.iter().map(|it| it.plug.plug).collect();
        if gone {
            for plug in plugs {
                assert!(self.sim.network.remove_plug(
                    self.sim.now,
                    "test",
                    plug,
                    &mut self.sim.world
                ));
                self.sim.flush();
            }
            // What the sound guest has asked, and pings.
            self.sim.advance(Duration::from_secs(60));
        } else {
            self.sim.advance(LONG);
            // Where the kernel moves the bytes, it knows who is still there.
            let flows = self.sim.network.flows(self.sim.now);
            assert!(flows.iter().all(|flow| flow.spliced), "{flows:?}");
            for socket in self.open() {
                let closed = self.sim.world.stream(socket).closed;
                if !closed && !self.first.contains(&socket) {
                    let stream = self.sim.world.stream(socket);
                    (stream.error, stream.inbox_ended) = (Some(std::io::ErrorKind::TimedOut), true);
                    let over = Readiness { error: true, hangup: true, ..Readiness::default() };
                    self.sim.host(socket, over);
                }
            }
        }
        let state = self.sim.network.state();
        let flows = self.sim.network.flows(self.sim.now);
        assert_eq!(
            (state.tcp_flows, state.udp_flows, state.pings.unwrap_or_default()),
            (0, 0, 0),
            "{flows:?}"
        );
        assert_eq!(self.open(), self.first, "sockets are left open");
    }
}

/// What datagrams carry.
fn payloads(frames: &[FrameBuf]) -> Vec<Vec<u8>> {
    let payload = |frame: &FrameBuf| {
        let (header, packet) = Ethernet::parse(&frame.bytes).unwrap();
        let ip = IpPacket::parse(header.ethertype, packet).unwrap();
        Datagram::parse(&ip, frame.offload.checksum).unwrap().payload.to_vec()
    };
    frames.iter().map(payload).collect()
}
