//! What goes from one instance to another, where rules are about that.
//!
//! # Theory of operation
//!
//! The switch asks here only if some rule is about other instances. A flow is judged by its first packet, and what is
//! let pass is remembered by both ends, so that answers pass whatever the rules say of the other direction. For TCP
//! the segment that begins a connection counts. One of a connection that nobody has seen begin (it is older than the
//! rules, or was still for hours) passes only if either end might have begun it.
//!
//! Both ends are known by their plugs, not by the addresses in a packet: a guest that is reached by another address of
//! its own, by a group or by everybody's is the same guest. What is flooded is judged for each who would hear it. ARP
//! and neighbour discovery always pass; what goes to the gateway does not come here.
//!
//! A fragment shows no ports. Those of datagrams and pings wait until they are whole, which
//! [`Network`](crate::network::Network) sees to; others are refused where a rule about ports might refuse them.
//!
//! A connection that new rules do not allow is remembered as ended. Its numbers are not known here, so both ends are
//! sent a segment that they have to answer (RFC 9293 section 3.10.7.4), and each answer is reset.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netyard_wheel::Recent;
use netyard_wire::icmp::{Icmp, IcmpError};
use netyard_wire::ip::{ICMP, ICMPV6, IpPacket, TCP, UDP};
use netyard_wire::tcp::{Flags, Segment};
use netyard_wire::udp::Datagram;
use netyard_wire::{Checksum, MacAddr, Quoted, SeqNumber};
use rand::RngExt as _;

use crate::context::Context;
use crate::edge::PlugId;
use crate::icmp;
use crate::network::frames::Content;
use crate::policy::rules::{Port, What};
use crate::policy::{Comer, Protocol};
use crate::sending::Refusal;

/// How long a flow is remembered at least when it is still, and twice as long at most: RFC 4787 section 4.3 asks
/// for two minutes.
const SLICE: Duration = Duration::from_secs(120);
/// The same of open connections: RFC 5382 section 5 asks for two hours and four minutes.
const CONNECTION_SLICE: Duration = Duration::from_secs(124 * 60);
/// Flows of one slice of time that one guest has been the first to send in. When there are more, those before them
/// are forgotten, and judged anew.
const MOST_FLOWS: usize = 8 * 1024;

/// The drop counter of what the rules refuse.
const REFUSED: &str = "instance-policy";

/// The flows between instances.
#[derive(Debug)]
pub(crate) struct Between {
    /// Of each guest those that it was the first to send in, so that it makes only its own forgotten.
    flows: HashMap<PlugId, Recent<Key, Known>>,
    /// The same of connections, until an end of theirs ends them.
    connections: HashMap<PlugId, Recent<Key, Known>>,
}

/// A flow by its ends, the one that begins it first. Ports are 0 where a protocol has none; of a ping the first is
/// its identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    from: SocketAddr,
    to: SocketAddr,
    protocol: u8,
}

impl Key {
    fn back(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }

    fn what(self) -> What {
        match self.protocol {
            TCP => What::to(Protocol::Tcp, self.to.port()),
            UDP => What::to(Protocol::Udp, self.to.port()),
            other => portless(other, Port::None),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Known {
    pair: Pair,
    /// Who has begun it was not seen: either may have.
    either: bool,
    /// Who has said that nothing more comes from there.
    finished: Option<PlugId>,
    /// The rules do not allow the connection any more.
    ended: bool,
}

/// Who sends, and who would get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    from: PlugId,
    to: PlugId,
}

impl Pair {
    fn back(self) -> Self {
        Self { from: self.to, to: self.from }
    }

    fn is_of(self, other: Self) -> bool {
        self == other || self.back() == other
    }

    /// As the policy knows the two.
    fn ends(self, cx: &Context<'_>) -> Option<(Comer, IpAddr)> {
        let address = |plug| cx.guests.by_plug(plug).map(|guest| IpAddr::V4(guest.address4));
        Some((Comer::Guest(address(self.from)?), address(self.to)?))
    }

    fn permits(self, cx: &Context<'_>, what: What) -> bool {
        self.ends(cx).is_some_and(|(from, to)| cx.policy.permits_entry(from, to, what))
    }

    fn decide(self, cx: &mut Context<'_>, what: What) -> bool {
        self.ends(cx).is_some_and(|(from, to)| cx.policy.decide_entry(from, to, what))
    }
}

impl Between {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self { flows: HashMap::new(), connections: HashMap::new() }
    }

    /// Whether what a guest, with this hardware address, sends to another one may go there. If not, it is told.
    pub(crate) fn admits(
        &mut self,
        cx: &mut Context<'_>,
        (from, mac): (PlugId, MacAddr),
        to: PlugId,
        content: &Content<'_>,
    ) -> bool {
        let pair = Pair { from, to };
        let ip = match content {
            Content::Arp(_) | Content::Icmp(_, Icmp::Ndp(_)) => return true,
            Content::Other => {
                let admitted = pair.decide(cx, what_of(content));
                if !admitted {
                    cx.counters.drop(REFUSED);
                }
                return admitted;
            }
            Content::Icmp(ip, message) => {
                if self.admits_message(cx, pair, ip, message) {
                    return true;
                }
                ip
            }
            Content::Ip(ip) => {
                if icmp::is_group(cx.config, ip.destination) || ip.fragment.is_some() {
                    if pair.decide(cx, what_of(content)) {
                        return true;
                    }
                } else if ip.protocol == TCP {
                    return self.admits_segment(cx, pair, mac, ip);
                } else if let Some(key) = key_of(ip)
                    && (self.knows(cx, pair, key) || self.begin(cx, from, pair, key))
                {
                    return true;
                }
                ip
            }
        };
        icmp::refuse(cx, from, mac, ip, Refusal::told(REFUSED, IcmpError::Prohibited));
        false
    }

    /// Whether a guest may hear what another one sends to several.
    pub(crate) fn overhears(
        cx: &mut Context<'_>,
        from: PlugId,
        to: PlugId,
        content: &Content<'_>,
    ) -> bool {
        // Behind the first header of a fragment may be any protocol, of which nobody is asked.
        let is_hidden = content.ip().is_some_and(|ip| {
            ip.fragment.is_some() && !matches!(ip.protocol, TCP | UDP | ICMP | ICMPV6)
        });
        let passes = matches!(content, Content::Arp(_) | Content::Icmp(_, Icmp::Ndp(_)))
            || !is_hidden && Pair { from, to }.permits(cx, what_of(content));
        if !passes {
            cx.counters.drop(REFUSED);
        }
        passes
    }

    /// The rules have changed: what they do not allow any more ends.
    pub(crate) fn end_refused(&mut self, cx: &mut Context<'_>) {
        if !cx.policy.is_about_instances() {
            *self = Self::new();
            return;
        }
        let mut ended = Vec::new();
        let mut judge = |key: &Key, known: &mut Known| {
            let permitted = known.pair.permits(cx, key.what())
                && (!known.either || known.pair.back().permits(cx, key.back().what()));
            if key.protocol != TCP || permitted {
                // One that was ended and is allowed again begins anew.
                return permitted && !known.ended;
            }
            if !std::mem::replace(&mut known.ended, true) {
                ended.push((*key, known.pair));
            }
            true
        };
        for flows in self.flows.values_mut().chain(self.connections.values_mut()) {
            flows.retain(&mut judge);
        }
        for (key, pair) in ended {
            probe(cx, key, pair.to);
            probe(cx, key.back(), pair.from);
        }
    }

    /// A plug has gone. Who comes next may have its addresses.
    pub(crate) fn remove_plug(&mut self, plug: PlugId) {
        self.flows.remove(&plug);
        self.connections.remove(&plug);
        for flows in self.flows.values_mut().chain(self.connections.values_mut()) {
            flows.retain(|_, known| known.pair.from != plug && known.pair.to != plug);
        }
    }

    /// What is known of a flow between two, whoever has sent first.
    fn find(&mut self, cx: &Context<'_>, pair: Pair, key: Key) -> Option<Known> {
        let open = self.find_open(cx, pair, key);
        open.or_else(|| find_in(&mut self.flows, cx, pair, key))
    }

    /// The same of a connection that is not over.
    fn find_open(&mut self, cx: &Context<'_>, pair: Pair, key: Key) -> Option<Known> {
        let is_tcp = key.protocol == TCP;
        is_tcp.then(|| find_in(&mut self.connections, cx, pair, key)).flatten()
    }

    /// An end of a connection ends it, or its half of it. When both have it is remembered for what is on its way.
    fn close(&mut self, cx: &Context<'_>, pair: Pair, key: Key, is_reset: bool) {
        for plug in [pair.from, pair.to] {
            let Some(connections) = self.connections.get_mut(&plug) else { continue };
            for key in [key, key.back()] {
                if let Some(known) = connections.remove(&key) {
                    if !is_reset && known.finished.is_none_or(|first| first == pair.from) {
                        let half = Known { finished: Some(pair.from), ..known };
                        connections.note(cx.now, key, half);
                        continue;
                    }
                    let flows = self.flows.entry(plug);
                    let flows = flows.or_insert_with(|| Recent::new(SLICE, MOST_FLOWS));
                    flows.note(cx.now, key, known);
                }
            }
        }
    }

    /// Whether a packet between two belongs to a flow that was let pass.
    fn knows(&mut self, cx: &Context<'_>, pair: Pair, key: Key) -> bool {
        let mut is_open = |key| self.find(cx, pair, key).is_some_and(|known| !known.ended);
        is_open(key) || is_open(key.back())
    }

    /// Decides about a new flow, and remembers it for who sends its first packet.
    fn begin(&mut self, cx: &mut Context<'_>, sender: PlugId, pair: Pair, key: Key) -> bool {
        let admitted = pair.decide(cx, key.what());
        if admitted {
            self.note(cx, sender, key, Known { pair, either: false, finished: None, ended: false });
        }
        admitted
    }

    /// Remembers a flow for who sends in it first.
    fn note(&mut self, cx: &Context<'_>, sender: PlugId, key: Key, known: Known) {
        let (list, slice) = match key.protocol {
            TCP => (&mut self.connections, CONNECTION_SLICE),
            _ => (&mut self.flows, SLICE),
        };
        let flows = list.entry(sender).or_insert_with(|| Recent::new(slice, MOST_FLOWS));
        flows.note(cx.now, key, known);
    }

    fn admits_message(
        &mut self,
        cx: &mut Context<'_>,
        pair: Pair,
        ip: &IpPacket<'_>,
        message: &Icmp<'_>,
    ) -> bool {
        let ping = |from: IpAddr, id: u16, to: IpAddr| Key {
            from: SocketAddr::new(from, id),
            to: SocketAddr::new(to, 0),
            protocol: ip.protocol,
        };
        match *message {
            Icmp::EchoRequest { id, .. } if !icmp::is_group(cx.config, ip.destination) => {
                let key = ping(ip.source, id, ip.destination);
                self.knows(cx, pair, key) || self.begin(cx, pair.from, pair, key)
            }
            Icmp::EchoReply { id, .. } => {
                self.knows(cx, pair, ping(ip.destination, id, ip.source))
                    || pair.decide(cx, portless(ip.protocol, Port::None))
            }
            Icmp::Unreachable { original, .. }
            | Icmp::PacketTooBig { original, .. }
            | Icmp::TimeExceeded { original, .. } => {
                self.is_about_flow(cx, pair, original)
                    || pair.decide(cx, portless(ip.protocol, Port::None))
            }
            _ => pair.decide(cx, portless(ip.protocol, Port::None)),
        }
    }

    /// Whether an error is about a flow between the same two.
    fn is_about_flow(&mut self, cx: &Context<'_>, pair: Pair, original: &[u8]) -> bool {
        let Some(quoted) = Quoted::parse(original) else { return false };
        let key = Key { from: quoted.sender(), to: quoted.receiver(), protocol: quoted.protocol };
        self.knows(cx, pair, key)
    }

    fn admits_segment(
        &mut self,
        cx: &mut Context<'_>,
        pair: Pair,
        mac: MacAddr,
        ip: &IpPacket<'_>,
    ) -> bool {
        // The receiver verifies its checksum.
        let segment = match Segment::parse(ip, Checksum::Valid) {
            Ok(segment) => segment,
            Err(error) => {
                cx.counters.drop(error.reason());
                return false;
            }
        };
        let key = Key {
            from: SocketAddr::new(ip.source, segment.source_port),
            to: SocketAddr::new(ip.destination, segment.destination_port),
            protocol: TCP,
        };
        let begins = segment.flags.contains(Flags::SYN) && !segment.flags.contains(Flags::ACK);
        // What is over does not let another one with the same ports in.
        let (ahead, behind) = match begins {
            true => (self.find_open(cx, pair, key), None),
            false => (self.find(cx, pair, key), self.find(cx, pair, key.back())),
        };
        let mut known = ahead.into_iter().chain(behind);
        let ended = !begins && known.clone().any(|known| known.ended);
        let admitted = if known.any(|known| !known.ended) {
            true
        } else if begins {
            self.begin(cx, pair.from, pair, key)
        } else if ended {
            false
        } else {
            let admitted = pair.decide(cx, key.what()) && pair.back().decide(cx, key.back().what());
            if admitted {
                self.note(
                    cx,
                    pair.from,
                    key,
                    Known { pair, either: true, finished: None, ended: false },
                );
            }
            admitted
        };
        let is_reset = segment.flags.contains(Flags::RST);
        if admitted && (is_reset || segment.flags.contains(Flags::FIN)) {
            self.close(cx, pair, key, is_reset);
        }
        if !admitted {
            cx.counters.drop(REFUSED);
            reset(cx, pair, mac, key, &segment, ended);
        }
        admitted
    }
}

/// What a list knows of a flow between two, whoever has sent first.
fn find_in(
    list: &mut HashMap<PlugId, Recent<Key, Known>>,
    cx: &Context<'_>,
    pair: Pair,
    key: Key,
) -> Option<Known> {
    let mut found = [pair.from, pair.to].into_iter().filter_map(|plug| {
        let known = list.get_mut(&plug)?.get(cx.now, key)?;
        known.pair.is_of(pair).then_some(known)
    });
    found.next()
}

/// A protocol whose flows have no ports, or none that are seen.
fn portless(protocol: u8, port: Port) -> What {
    match protocol {
        TCP => What { protocol: Some(Protocol::Tcp), port },
        UDP => What { protocol: Some(Protocol::Udp), port },
        ICMP | ICMPV6 => What { protocol: Some(Protocol::Icmp), port: Port::None },
        _ => What { protocol: None, port: Port::None },
    }
}

/// What a frame is by itself, as part of no flow.
fn what_of(content: &Content<'_>) -> What {
    match content.ip() {
        Some(ip) => {
            key_of(ip).map_or_else(|| portless(ip.protocol, Port::Hidden), |key| key.what())
        }
        None => What { protocol: None, port: Port::None },
    }
}

/// The flow that a packet is of; `None` where its ports are not seen.
fn key_of(ip: &IpPacket<'_>) -> Option<Key> {
    let (source_port, destination_port) = match ip.protocol {
        TCP => {
            let segment = Segment::parse(ip, Checksum::Valid).ok()?;
            (segment.source_port, segment.destination_port)
        }
        UDP => {
            let datagram = Datagram::parse(ip, Checksum::Valid).ok()?;
            (datagram.source_port, datagram.destination_port)
        }
        _ => (0, 0),
    };
    Some(Key {
        from: SocketAddr::new(ip.source, source_port),
        to: SocketAddr::new(ip.destination, destination_port),
        protocol: ip.protocol,
    })
}

/// Answers a segment that is refused with a reset (RFC 9293 section 3.10.7.1). Where it is of a connection that was
/// let pass once, who it is for is told, too.
fn reset(
    cx: &mut Context<'_>,
    pair: Pair,
    mac: MacAddr,
    Key { from, to, .. }: Key,
    segment: &Segment<'_>,
    both: bool,
) {
    if segment.flags.contains(Flags::RST) {
        return;
    }
    if segment.flags.contains(Flags::ACK) {
        cx.send_tcp((pair.from, mac), (to, from), (segment.ack, None), Flags::RST);
    } else {
        let ack = Some(segment.seq + segment.len());
        cx.send_tcp((pair.from, mac), (to, from), (SeqNumber(0), ack), Flags::RST);
    }
    let receiver = cx.guests.by_plug(pair.to).map(|guest| (pair.to, guest.mac));
    if let (true, Some(receiver)) = (both, receiver) {
        cx.send_tcp(receiver, (from, to), (segment.seq, Some(segment.ack)), Flags::RST);
    }
}

/// Has the receiving end of a connection say where it is.
fn probe(cx: &mut Context<'_>, Key { from, to, .. }: Key, plug: PlugId) {
    let Some(mac) = cx.guests.by_plug(plug).map(|guest| guest.mac) else { return };
    let numbers = (SeqNumber(cx.rng.random()), Some(SeqNumber(cx.rng.random())));
    cx.send_tcp((plug, mac), (from, to), numbers, Flags::default());
}
