//! What packets meet between the two devices of a lab: NATs in a row, then delay and loss. A core without
//! IO.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::packet::{Carried, datagram, look, payload, rewrite};
use crate::nat::simulate::{Allocation, Behaviour, Ends, Fate, Hairpinning, Nat};
use crate::nat::{Filtering, Mapping};
use crate::portmap::pmp;

/// Packets under way, most. Further ones are lost, as in any queue.
const MAX_UNDER_WAY: usize = 4096;

/// What a path does with packets that its NATs let through.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Impairment {
    /// How long each takes, in one direction.
    pub delay: Duration,
    /// The part that is lost, in each direction, 0 to 1.
    pub loss: f64,
}

/// A side of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Machine,
    Internet,
}

/// A packet under way: when it arrives, its number, where, and what it is.
type UnderWay = (Instant, u64, Side, Vec<u8>);

/// NATs in a row, outwards, for each protocol.
#[derive(Debug)]
struct Row {
    udp: Vec<Nat>,
    tcp: Vec<Nat>,
}

impl Row {
    fn new(row: &[(Behaviour, IpAddr)], seed: u64) -> Self {
        let nats = |behaviour: fn(&Behaviour) -> Behaviour| {
            row.iter().map(|(nat, external)| Nat::new(behaviour(nat), *external, seed)).collect()
        };
        Self { udp: nats(Behaviour::clone), tcp: nats(for_tcp) }
    }
}

/// The first router on the way, as its neighbours see it.
#[derive(Debug)]
struct Gateway {
    address: IpAddr,
    /// Its external address, if it translates.
    external: Option<Ipv4Addr>,
}

impl Gateway {
    /// True for what is sent to the gateway itself, or to a group of neighbours.
    fn is_meant(&self, from: Side, Ends { destination, .. }: Ends) -> bool {
        let to = destination.ip();
        from == Side::Machine && (to == self.address || to.is_multicast())
    }

    /// Tells its external address by NAT-PMP, and nothing else.
    fn answer(&self, ends: Ends, question: &[u8]) -> Option<Vec<u8>> {
        let is_question = ends.destination == SocketAddr::new(self.address, pmp::PORT);
        let external = self.external.filter(|_| is_question)?;
        let answer = pmp::answer(question, external)?;
        datagram(Ends { source: ends.destination, destination: ends.source }, &answer)
    }
}

/// The external address of the first of several NATs.
fn external(row: &[(Behaviour, IpAddr)]) -> Option<Ipv4Addr> {
    match row.first()? {
        (nat, IpAddr::V4(address)) if nat.mapping != Mapping::None => Some(*address),
        _ => None,
    }
}

/// The path.
#[derive(Debug)]
pub(super) struct Path {
    ip4: Row,
    ip6: Row,
    /// UDP does not pass at all.
    blocks_udp: bool,
    /// Who stands on the machine's own network.
    gateway: Gateway,
    /// Nothing is translated or filtered, so that what has no ports passes too.
    is_open: bool,
    impairment: Impairment,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    count: u64,
    rng: SmallRng,
}

impl Path {
    /// A path through NATs that stand in a row, outwards, each with its external address.
    pub(super) fn new(
        gateway: IpAddr,
        row: &[(Behaviour, IpAddr)],
        blocks_udp: bool,
        impairment: Impairment,
        seed: u64,
    ) -> Self {
        let is_open = row.iter().all(|(nat, _)| {
            nat.mapping == Mapping::None && nat.filtering == Filtering::EndpointIndependent
        });
        // IPv6 is not translated; what is not open has a firewall, as home routers have.
        let filtering = if is_open {
            Filtering::EndpointIndependent
        } else {
            Filtering::AddressAndPortDependent
        };
        let firewall = Behaviour::new(Mapping::None, filtering, Allocation::Preserve);
        let nowhere = IpAddr::from([0_u16; 8]);
        Self {
            ip4: Row::new(row, seed),
            ip6: Row::new(&[(firewall, nowhere)], seed),
            gateway: Gateway { address: gateway, external: external(row) },
            blocks_udp,
            is_open,
            impairment,
            under_way: BinaryHeap::new(),
            count: 0,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Takes a packet from a side.
    pub(super) fn handle_packet(&mut self, now: Instant, from: Side, bytes: &[u8]) {
        let Some((to, bytes)) = self.translate(now, from, bytes) else { return };
        let is_lost = self.rng.random_bool(self.impairment.loss.clamp(0.0, 1.0));
        if is_lost || self.under_way.len() >= MAX_UNDER_WAY {
            return;
        }
        // What takes longer than the clock has never arrives.
        let Some(arrival) = now.checked_add(self.impairment.delay) else { return };
        self.count += 1;
        self.under_way.push(Reverse((arrival, self.count, to, bytes)));
    }

    /// When the next packet arrives.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse((then, ..))| *then)
    }

    /// A packet that has arrived, and at which side.
    pub(super) fn poll_packet(&mut self, now: Instant) -> Option<(Side, Vec<u8>)> {
        if self.poll_timeout()? > now {
            return None;
        }
        self.under_way.pop().map(|Reverse((_, _, to, bytes))| (to, bytes))
    }

    fn row(&mut self, ends: Ends) -> &mut Row {
        if ends.source.is_ipv4() { &mut self.ip4 } else { &mut self.ip6 }
    }

    fn translate(&mut self, now: Instant, from: Side, bytes: &[u8]) -> Option<(Side, Vec<u8>)> {
        let (nats, ends) = match look(bytes) {
            Carried::Tcp(ends) if self.gateway.is_meant(from, ends) => return None,
            Carried::Udp(ends) if self.gateway.is_meant(from, ends) => {
                return Some((Side::Machine, self.gateway.answer(ends, payload(bytes)?)?));
            }
            Carried::Udp(_) if self.blocks_udp => return None,
            Carried::Udp(ends) => (&mut self.row(ends).udp, ends),
            Carried::Tcp(ends) => (&mut self.row(ends).tcp, ends),
            Carried::Icmp | Carried::Other if self.is_open => {
                let to = if from == Side::Machine { Side::Internet } else { Side::Machine };
                return Some((to, bytes.to_vec()));
            }
            Carried::Icmp | Carried::Other => return None,
        };
        let (to, new) = match from {
            Side::Machine => outwards(nats, now, ends)?,
            Side::Internet => (Side::Machine, inwards(nats, now, ends)?),
        };
        let bytes = if new == ends { bytes.to_vec() } else { rewrite(bytes, new)? };
        Some((to, bytes))
    }
}

/// Through the NATs one by one, until one sends it back in.
fn outwards(nats: &mut [Nat], now: Instant, ends: Ends) -> Option<(Side, Ends)> {
    let mut ends = ends;
    for place in 0..nats.len() {
        match nats.get_mut(place)?.handle_outbound(now, ends) {
            Fate::Out(next) => ends = next,
            Fate::In(back) => {
                return Some((Side::Machine, inwards(nats.get_mut(..place)?, now, back)?));
            }
            Fate::Dropped => return None,
        }
    }
    Some((Side::Internet, ends))
}

/// Through the NATs from the last to the first.
fn inwards(nats: &mut [Nat], now: Instant, ends: Ends) -> Option<Ends> {
    nats.iter_mut().rev().try_fold(ends, |ends, nat| match nat.handle_inbound(now, ends) {
        Fate::In(next) => Some(next),
        Fate::Out(_) | Fate::Dropped => None,
    })
}

/// What a NAT does to TCP: the same addresses, and nobody comes in unasked, but where everybody may.
fn for_tcp(udp: &Behaviour) -> Behaviour {
    let is_open = udp.mapping == Mapping::None && udp.filtering == Filtering::EndpointIndependent;
    Behaviour {
        mapping: match udp.mapping {
            Mapping::None => Mapping::None,
            _ => Mapping::EndpointIndependent,
        },
        filtering: if is_open { udp.filtering } else { Filtering::AddressAndPortDependent },
        allocation: Allocation::Preserve,
        ports: udp.ports.clone(),
        // RFC 5382, REQ-5.
        life: Duration::from_secs(2 * 3600 + 4 * 60),
        hairpin: Hairpinning::Drop,
    }
}
