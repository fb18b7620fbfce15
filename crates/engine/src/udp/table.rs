//! The table of UDP flows: found from either side, bounded per guest, expired by deadline.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::{Duration, Instant};

use netyard_wire::MacAddr;

use super::inward::comer;
use crate::control::{FlowKind, FlowPhase, FlowState};
use crate::edge::{PlugId, SocketId};
use crate::policy::Comer;
use crate::service::{ServiceId, TurnKey};
use crate::wheel::Wheel;

/// How long a flow lives that only one side has used (as in Linux's connection tracking).
pub(super) const ONE_WAY: Duration = Duration::from_secs(30);

/// How long a flow lives that both sides have used (RFC 4787 section 4.3: not less than two
/// minutes).
pub(super) const TWO_WAY: Duration = Duration::from_secs(120);

/// How long a client's flow must go on for that (as in Linux's connection tracking).
pub(super) const LASTING: Duration = Duration::from_secs(2);

/// One of so many flows goes when there are too many, so that not each new one has to look for another.
const CROWD: usize = 16;

/// Flows that a guest has opened. Programs that talk to thousands (DHTs) fit.
pub(super) const OPENED_PER_GUEST: usize = 8192;

/// Flows that clients have opened to a guest. A count of their own: clients are strangers, and
/// must not use up what the guest itself may open.
pub(super) const ACCEPTED_PER_GUEST: usize = 4096;

/// Flows that a guest has to services of its network: a part of what their instances take, so that one
/// guest cannot use that up.
pub(super) const ASKED_PER_GUEST: usize = 1024;

/// The way by which the other end of a flow comes and is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Via {
    /// A socket of the host.
    Socket(SocketId),
    /// The virtual address and port of a service: the other end is a guest, too.
    Front(SocketAddr),
}

/// A side of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The guest that it leads to, or that has opened it.
    Guest,
    /// Whoever is at the other end.
    Peer,
}

/// Datagrams between one address and port of a guest and one of somebody else.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) plug: PlugId,
    pub(super) mac: MacAddr,
    /// The guest's end.
    pub(super) guest: SocketAddr,
    /// The other end, as the guest sees it.
    pub(super) remote: SocketAddr,
    /// The way to the other end.
    pub(super) via: Via,
    /// The other end, as it is known there.
    pub(super) peer: SocketAddr,
    /// Who sent the first datagram: its guest's side, or the other.
    pub(super) opened_by: Side,
    /// Whose turn it is, if a service has led to the guest.
    pub(super) turn: Option<TurnKey>,
}

impl Flow {
    /// The address of the guest that asks a service.
    fn asks(&self) -> Option<IpAddr> {
        matches!(self.via, Via::Front(_)).then_some(self.peer.ip())
    }
}

/// A flow in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FlowId(pub(super) u32);

#[derive(Debug)]
pub(super) struct Table {
    flows: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// By the guest's end and the other end, as the guest sees them.
    by_guest: HashMap<(SocketAddr, SocketAddr), FlowId>,
    /// By way and the other end, as it is known there; ordered, so that the flows of one way, and those
    /// of one address, lie side by side.
    by_peer: BTreeMap<(Via, SocketAddr), FlowId>,
    usage: HashMap<PlugId, Usage>,
    /// How many flows to services a guest's address has.
    asked: HashMap<IpAddr, usize>,
    wheel: Wheel,
    expired: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    flow: Flow,
    two_way: bool,
    /// Whether it has had an answer and gone on for [`LASTING`] at least.
    lasting: bool,
    begun: Instant,
    /// When it had its last datagram.
    touched: Instant,
    /// Payload from the guest, and to it, bytes.
    guest_to_host: u64,
    host_to_guest: u64,
}

/// How many flows a guest has, by who opened them.
#[derive(Debug, Default)]
struct Usage {
    opened: usize,
    accepted: usize,
}

impl Usage {
    fn of(&mut self, side: Side) -> &mut usize {
        match side {
            Side::Guest => &mut self.opened,
            Side::Peer => &mut self.accepted,
        }
    }
}

impl Table {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            flows: Vec::new(),
            free: Vec::new(),
            by_guest: HashMap::new(),
            by_peer: BTreeMap::new(),
            usage: HashMap::new(),
            asked: HashMap::new(),
            wheel: Wheel::new(now),
            expired: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_guest.len()
    }

    /// Whether the guest may have one more flow that `side` opens.
    pub(super) fn has_room(&self, plug: PlugId, side: Side) -> bool {
        self.usage.get(&plug).is_none_or(|usage| match side {
            Side::Guest => usage.opened < OPENED_PER_GUEST,
            Side::Peer => usage.accepted < ACCEPTED_PER_GUEST,
        })
    }

    /// Flows of clients that are to leave before the guest may have another one.
    pub(super) fn in_the_way_of_client(&self, plug: PlugId) -> Vec<FlowId> {
        if self.has_room(plug, Side::Peer) {
            return Vec::new();
        }
        self.longest_still(|flow| flow.plug == plug && flow.opened_by == Side::Peer)
    }

    /// Flows that are to leave before the guest with this address may have another one to services.
    pub(super) fn in_the_way_of_asker(&self, address: IpAddr) -> Vec<FlowId> {
        if self.asked.get(&address).is_none_or(|asked| *asked < ASKED_PER_GUEST) {
            return Vec::new();
        }
        self.longest_still(|flow| flow.asks() == Some(address))
    }

    /// The flows that were still for the longest time, those that have not lasted before the others.
    fn longest_still(&self, wanted: impl Fn(&Flow) -> bool) -> Vec<FlowId> {
        let all = (0..).zip(&self.flows).filter_map(|(key, entry)| Some((key, entry.as_ref()?)));
        let mut all: Vec<_> = all
            .filter(|(_, entry)| wanted(&entry.flow))
            .map(|(key, entry)| (entry.lasting, entry.touched, key))
            .collect();
        all.sort_unstable();
        all.truncate(all.len().div_ceil(CROWD));
        all.into_iter().map(|(.., key)| FlowId(key)).collect()
    }

    /// Adds a flow. `None` if there is no room for it, or one with the same ends exists.
    pub(super) fn insert(&mut self, now: Instant, flow: Flow) -> Option<FlowId> {
        let guest_key = (flow.guest, flow.remote);
        let peer_key = (flow.via, flow.peer);
        if !self.has_room(flow.plug, flow.opened_by)
            || self.by_guest.contains_key(&guest_key)
            || self.by_peer.contains_key(&peer_key)
        {
            return None;
        }
        let entry = Some(Entry {
            flow,
            two_way: false,
            lasting: false,
            begun: now,
            touched: now,
            guest_to_host: 0,
            host_to_guest: 0,
        });
        let key = match self.free.pop() {
            Some(key) => key,
            None => {
                self.flows.push(None);
                u32::try_from(self.flows.len() - 1).ok()?
            }
        };
        *self.flows.get_mut(key as usize)? = entry;
        self.by_guest.insert(guest_key, FlowId(key));
        self.by_peer.insert(peer_key, FlowId(key));
        *self.usage.entry(flow.plug).or_default().of(flow.opened_by) += 1;
        if let Some(address) = flow.asks() {
            *self.asked.entry(address).or_default() += 1;
        }
        self.wheel.set(key, Some(now + ONE_WAY));
        Some(FlowId(key))
    }

    pub(super) fn get(&self, id: FlowId) -> Option<&Flow> {
        self.entry(id.0).map(|entry| &entry.flow)
    }

    fn entry(&self, key: u32) -> Option<&Entry> {
        self.flows.get(key as usize)?.as_ref()
    }

    /// The flow between these ends, as the guest sees them.
    pub(super) fn by_guest(&self, guest: SocketAddr, remote: SocketAddr) -> Option<FlowId> {
        self.by_guest.get(&(guest, remote)).copied()
    }

    /// The flow by this way with this other end, as it is known there.
    pub(super) fn by_peer(&self, via: Via, peer: SocketAddr) -> Option<FlowId> {
        self.by_peer.get(&(via, peer)).copied()
    }

    /// Some flow of this socket with any port of this address.
    pub(super) fn by_peer_address(&self, socket: SocketId, peer: IpAddr) -> Option<FlowId> {
        let (first, last) = match peer {
            IpAddr::V4(ip) => (SocketAddrV4::new(ip, 0).into(), SocketAddrV4::new(ip, !0).into()),
            IpAddr::V6(ip) => {
                (SocketAddrV6::new(ip, 0, 0, 0).into(), SocketAddrV6::new(ip, !0, !0, !0).into())
            }
        };
        let via = Via::Socket(socket);
        self.by_peer.range((via, first)..=(via, last)).next().map(|(_, id)| *id)
    }

    /// All flows of a socket.
    pub(super) fn of_socket(&self, socket: SocketId) -> impl Iterator<Item = FlowId> {
        let first = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let via = Via::Socket(socket);
        self.by_peer
            .range((via, first)..)
            .take_while(move |((of, _), _)| *of == via)
            .map(|(_, id)| *id)
    }

    /// All flows to a guest, or of it.
    pub(super) fn of_plug(&self, plug: PlugId) -> Vec<FlowId> {
        self.matching(|flow| flow.plug == plug)
    }

    /// All flows that guests with one of these addresses have to services.
    pub(super) fn asked_by(&self, addresses: [IpAddr; 2]) -> Vec<FlowId> {
        self.matching(|flow| flow.asks().is_some_and(|asks| addresses.contains(&asks)))
    }

    /// All flows of a service.
    pub(super) fn of_service(&self, service: ServiceId) -> Vec<FlowId> {
        self.matching(|flow| flow.turn.is_some_and(|turn| turn.service() == service))
    }

    /// All flows that are so.
    pub(super) fn matching(&self, wanted: impl Fn(&Flow) -> bool) -> Vec<FlowId> {
        let all = (0..).zip(&self.flows);
        let wanted = all.filter(|(_, entry)| entry.as_ref().is_some_and(|it| wanted(&it.flow)));
        wanted.map(|(key, _)| FlowId(key)).collect()
    }

    /// The flows as they are shown.
    pub(super) fn states(&self, now: Instant) -> impl Iterator<Item = FlowState> {
        self.flows.iter().flatten().map(move |entry| {
            let flow = &entry.flow;
            let outbound = flow.opened_by == Side::Guest;
            let client = match comer(flow.via, flow.peer) {
                Comer::Outside(client) if !outbound => Some(client),
                _ => None,
            };
            FlowState {
                outbound,
                client,
                state: if entry.two_way { FlowPhase::Open } else { FlowPhase::Opening },
                guest_to_host: Some(entry.guest_to_host),
                host_to_guest: Some(entry.host_to_guest),
                ..FlowState::new(FlowKind::Udp, flow.guest, flow.remote, now, entry.begun)
            }
        })
    }

    /// Notes that `side` has sent datagrams with so much payload, bytes.
    pub(super) fn touch(&mut self, now: Instant, id: FlowId, side: Side, len: usize) {
        let Some(Some(entry)) = self.flows.get_mut(id.0 as usize) else { return };
        match side {
            Side::Guest => entry.guest_to_host += len as u64,
            Side::Peer => entry.host_to_guest += len as u64,
        }
        entry.two_way |= side != entry.flow.opened_by;
        entry.lasting |= entry.two_way && now >= entry.begun + LASTING;
        entry.touched = now;
        let stays = entry.lasting || entry.two_way && entry.flow.opened_by == Side::Guest;
        let lifetime = if stays { TWO_WAY } else { ONE_WAY };
        self.wheel.set(id.0, Some(now + lifetime));
    }

    /// Whether both sides have sent datagrams.
    pub(super) fn is_two_way(&self, id: FlowId) -> bool {
        self.entry(id.0).is_some_and(|entry| entry.two_way)
    }

    /// Takes a flow out.
    pub(super) fn remove(&mut self, id: FlowId) -> Option<Flow> {
        let Entry { flow, .. } = self.flows.get_mut(id.0 as usize)?.take()?;
        self.free.push(id.0);
        self.wheel.set(id.0, None);
        self.by_guest.remove(&(flow.guest, flow.remote));
        self.by_peer.remove(&(flow.via, flow.peer));
        if let Some(usage) = self.usage.get_mut(&flow.plug) {
            let count = usage.of(flow.opened_by);
            *count = count.saturating_sub(1);
            if usage.opened + usage.accepted == 0 {
                self.usage.remove(&flow.plug);
            }
        }
        if let Some(address) = flow.asks()
            && let Some(asked) = self.asked.get_mut(&address)
        {
            *asked -= 1;
            if *asked == 0 {
                self.asked.remove(&address);
            }
        }
        Some(flow)
    }

    /// One flow whose time is over, to be removed at once; `None` when there is none (any more).
    pub(super) fn next_expired(&mut self, now: Instant) -> Option<FlowId> {
        if self.expired.is_empty() {
            self.wheel.expire(now, &mut self.expired);
        }
        // Between expiry and now nothing else ran: every key is still its flow's.
        self.expired.pop().map(FlowId)
    }

    /// When [`Table::next_expired`] may have something.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.wheel.next()
    }
}
