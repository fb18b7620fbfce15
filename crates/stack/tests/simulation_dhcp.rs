//! The DHCP client against a server made of the other stack's UDP sockets, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use common::{CLIENT, Link, NIC, SERVER, Sim};
use netyard_stack::{Error, Medium, NicIndex, Settings, Stack, State, UdpId};
use netyard_wire::MacAddr;
use netyard_wire::dhcp::v4::{Message, MessageType, Operation, Options, option};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
const OFFERED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);
const SECOND: Duration = Duration::from_secs(1);

/// The client has no address; the server is 10.0.0.2.
struct Lab {
    sim: Sim,
    socket: UdpId,
    /// What the client has asked, and from where.
    asked: Vec<(Instant, MessageType, SocketAddr)>,
}

impl Lab {
    fn new(link: Link) -> Self {
        let mut sim = Sim::new(1, link);
        let mut stack = Stack::new(sim.now, [3; 32], Settings::default());
        assert_eq!(stack.add_nic(Medium::Ethernet(MAC), 1500), Ok(NIC));
        stack.enable_dhcp(sim.now, NicIndex(0)).unwrap();
        sim.stacks[CLIENT] = stack;
        let socket = sim.stacks[SERVER].udp_bind("0.0.0.0:67".parse().unwrap()).unwrap();
        sim.stacks[SERVER].udp_set_broadcast(socket, true).unwrap();
        Self { sim, socket, asked: Vec::new() }
    }

    /// Runs, and answers what `answer` gives for a kind of message.
    fn serve(
        &mut self,
        time: Duration,
        mut answer: impl FnMut(MessageType) -> Option<MessageType>,
    ) {
        let end = self.sim.now + time;
        while self.sim.step(end) {
            let mut buffer = [0; 1500];
            while let Ok((len, from)) =
                self.sim.stacks[SERVER].udp_recv(self.socket, &mut buffer, false)
            {
                let ask = Message::parse(&buffer[..len]).unwrap();
                let kind = ask.options.kind().unwrap();
                self.asked.push((self.sim.now, kind, from));
                assert_eq!((ask.operation, ask.chaddr), (Operation::Request, MAC));
                if let Some(kind) = answer(kind) {
                    self.answer(&ask, kind, from);
                }
            }
        }
    }

    fn answer(&mut self, ask: &Message, kind: MessageType, from: SocketAddr) {
        let mut options = Options::default();
        options.set(option::MESSAGE_TYPE, [kind.code()]);
        options.set(option::SERVER, [10, 0, 0, 2]);
        options.set(option::SUBNET_MASK, [255, 255, 255, 0]);
        options.set(option::ROUTER, [10, 0, 0, 2]);
        options.set(option::DNS, [10, 0, 0, 2, 0, 0, 0, 0, 10, 0, 0, 3]);
        options.set(option::LEASE_TIME, 1000u32.to_be_bytes());
        options.set(option::MTU, 1400u16.to_be_bytes());
        let answer = Message {
            operation: Operation::Reply,
            yiaddr: OFFERED,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            options,
            ..ask.clone()
        };
        let to = match from.ip().is_unspecified() {
            true => "255.255.255.255:68".parse().unwrap(),
            false => from,
        };
        let now = self.sim.now;
        self.sim.stacks[SERVER].udp_send(now, self.socket, Some(to), &answer.emit()).unwrap();
    }

    fn has_address(&self) -> bool {
        let net = "10.0.0.50/24".parse().unwrap();
        self.sim.stacks[CLIENT].addresses(NIC).contains(&net)
    }

    fn kinds(&self) -> Vec<MessageType> {
        self.asked.iter().map(|(_, kind, _)| *kind).collect()
    }
}

fn honest(kind: MessageType) -> Option<MessageType> {
    match kind {
        MessageType::Discover => Some(MessageType::Offer),
        _ => Some(MessageType::Ack),
    }
}

#[test]
fn an_address_is_lent_and_used() {
    let mut lab = Lab::new(Link::default());
    lab.serve(SECOND, honest);
    assert!(lab.has_address());
    assert_eq!(lab.kinds(), [MessageType::Discover, MessageType::Request]);
    // The gateway, resolvers and the MTU came with it.
    let now = lab.sim.now;
    let resolvers = ["10.0.0.2:53", "10.0.0.3:53"].map(|at| at.parse().unwrap());
    assert_eq!(lab.sim.stacks[CLIENT].resolvers(now), resolvers);
    let outside = "203.0.113.1:80".parse().unwrap();
    let id = lab.sim.stacks[CLIENT].tcp_connect(now, outside, None).unwrap();
    assert_eq!(lab.sim.stacks[CLIENT].tcp_info(id).unwrap().local.ip(), OFFERED);
    lab.sim.run(SECOND);
    assert_eq!(lab.sim.stacks[CLIENT].tcp_info(id).unwrap().state, State::SynSent);
    lab.sim.filter = Some(Box::new(|side, frame| {
        assert!(side == SERVER || frame.bytes.len() <= 1414, "{} bytes", frame.bytes.len());
        true
    }));
    let socket = lab.sim.stacks[CLIENT].udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    lab.sim.stacks[CLIENT].udp_send(lab.sim.now, socket, Some(outside), &[0; 1400]).unwrap();
    lab.sim.run(SECOND);
}

#[test]
fn it_is_renewed_at_half_time_with_its_server() {
    let mut lab = Lab::new(Link::default());
    lab.serve(Duration::from_secs(1600), honest);
    let renewals: Vec<_> = lab.asked.iter().skip(2).collect();
    assert_eq!(renewals.len(), 3, "{:?}", lab.asked);
    for ((at, kind, from), seconds) in renewals.into_iter().zip([500, 1000, 1500]) {
        assert_eq!((*kind, from.ip()), (MessageType::Request, OFFERED.into()));
        let passed = (*at - lab.sim.start).as_secs();
        assert!(passed.abs_diff(seconds) <= 1, "{passed} s");
    }
    assert!(lab.has_address());
}

#[test]
fn without_an_answer_any_server_is_asked_and_then_it_is_given_up() {
    let mut lab = Lab::new(Link::default());
    lab.serve(SECOND, honest);
    lab.serve(Duration::from_secs(950), |_| None);
    let broadcast =
        lab.asked.iter().filter(|(at, _, _)| (870..960).contains(&(*at - lab.sim.start).as_secs()));
    assert!(broadcast.count() >= 1, "rebinding: {:?}", lab.asked);
    assert!(lab.has_address());
    lab.serve(Duration::from_secs(100), |_| None);
    assert!(!lab.has_address());
    let now = lab.sim.now;
    let gone = lab.sim.stacks[CLIENT].tcp_connect(now, "10.0.0.2:80".parse().unwrap(), None);
    assert_eq!(gone, Err(Error::NetworkUnreachable));
    assert_eq!(lab.kinds().last(), Some(&MessageType::Discover));
    lab.serve(Duration::from_secs(70), honest);
    assert!(lab.has_address());
}

#[test]
fn a_refusal_starts_again() {
    let mut lab = Lab::new(Link::default());
    let mut refusals = 1;
    lab.serve(Duration::from_secs(20), |kind| match kind {
        MessageType::Request if refusals > 0 => {
            refusals -= 1;
            Some(MessageType::Nak)
        }
        kind => honest(kind),
    });
    let wanted =
        [MessageType::Discover, MessageType::Request, MessageType::Discover, MessageType::Request];
    assert_eq!(lab.kinds(), wanted);
    assert!(lab.has_address());
}

#[test]
fn it_asks_on_with_patience() {
    let mut lab = Lab::new(Link::default());
    lab.serve(Duration::from_secs(300), |_| None);
    let gaps: Vec<u64> =
        lab.asked.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_secs()).collect();
    for (gap, wanted) in gaps.iter().zip([4u64, 8, 16, 32, 64, 64, 64]) {
        assert!(gap.abs_diff(wanted) <= 1, "{gaps:?}");
    }
    assert!(gaps.len() >= 6, "{gaps:?}");
    let mut lab = Lab::new(Link { loss: 0.4, ..Link::default() });
    lab.serve(Duration::from_secs(400), honest);
    assert!(lab.has_address(), "lost messages are sent again");
}
