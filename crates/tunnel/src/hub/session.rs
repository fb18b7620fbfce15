//! Sessions: which nodes are here, by which lane, and what waits for them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use netyard_wire::Offload;
use netyard_wire::ip::IpPacket;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::{task, time};

use super::Hub;
use super::book::PATIENCE;
use super::network::Network;
use crate::addresses::{Plan, Slot};
use crate::admin::{LaneKind, PeerStatus};
use crate::clock::{now_ms, skew};
use crate::frame::{NOTHING_LEFT, Record};
use crate::lane::{self, Ended, Inbox, KEPT, Outbox, Receive};
use crate::login::{self, Failure, Guest, HubStream};
use crate::message::{ByUdp, ByeReason, Connected, Message, Name, Reject, RejectCode};
use crate::mtu;
use crate::relay::{Member, NodeId, Way};
use crate::store::{Node, Stamp};
use crate::udp;
use crate::websocket::Side;

/// A node that is here, or was a moment ago.
#[derive(Debug, Clone)]
struct Session {
    outbox: Rc<Outbox>,
    /// Whether it wants to know the names of others.
    names: bool,
    /// The number of its program's run.
    run: u64,
    /// When another run of it came from another address while it was still here, of late.
    moves: Vec<Instant>,
    /// The names of what is behind it, as it says.
    behind: Vec<Name>,
    /// Its lane: the connection's far end, the lane's number and since when; `None` for the moment after
    /// it broke.
    lane: Option<(SocketAddr, u64, i64)>,
}

/// A node that was let in, and the one that leads what it sends to the outside.
#[derive(Debug, Clone)]
pub(super) struct Entrant {
    pub(super) node: Node,
    pub(super) exit: Option<NodeId>,
    pub(super) names: bool,
    pub(super) by_udp: ByUdp,
    /// Of its program.
    pub(super) run: u64,
}

/// A node that moves so often within this time, without leaving, is two.
const MOVES: usize = 3;
const MOVES_WITHIN: time::Duration = time::Duration::from_secs(60);

/// The nodes that are here.
#[derive(Debug, Default)]
pub(super) struct Sessions(RefCell<HashMap<NodeId, Session>>);

impl Sessions {
    /// What waits for a node.
    pub(super) fn outbox(&self, node: NodeId) -> Option<Rc<Outbox>> {
        self.0.borrow().get(&node).map(|session| Rc::clone(&session.outbox))
    }

    /// The nodes.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.0.borrow().keys().copied().collect()
    }

    /// Whether a node wants to know the names of others.
    fn tell_names(&self, node: NodeId, names: bool) {
        if let Some(session) = self.0.borrow_mut().get_mut(&node) {
            session.names = names;
        }
    }

    /// A node says what is behind it; true if that is new.
    fn set_behind(&self, node: NodeId, names: Vec<Name>) -> bool {
        let mut sessions = self.0.borrow_mut();
        let session = sessions.get_mut(&node).filter(|session| session.behind != names);
        session.map(|session| session.behind = names).is_some()
    }

    /// The names of what is behind a node.
    pub(super) fn behind(&self, node: NodeId) -> Vec<Name> {
        self.0.borrow().get(&node).map(|session| session.behind.clone()).unwrap_or_default()
    }

    /// Tells each what there is for it.
    pub(super) fn tell(&self, message: impl Fn(NodeId, bool) -> Message) {
        for (node, session) in self.0.borrow().iter() {
            session.outbox.tell(message(*node, session.names));
        }
    }

    /// Whether a node is here.
    pub(super) fn is_here(&self, node: NodeId) -> bool {
        self.0.borrow().get(&node).is_some_and(|session| session.lane.is_some())
    }

    /// How many are here.
    pub(super) fn count(&self) -> usize {
        self.0.borrow().values().filter(|session| session.lane.is_some()).count()
    }

    /// A node is here: what waits for it goes by a new lane from now on, whose number is told.
    fn attach(
        &self,
        (node, run): (NodeId, u64),
        remote: SocketAddr,
        outbox: impl FnOnce() -> Outbox,
    ) -> (Rc<Outbox>, u64) {
        let mut sessions = self.0.borrow_mut();
        let session = sessions.entry(node).or_insert_with(|| Session {
            outbox: Rc::new(outbox()),
            names: false,
            run,
            moves: Vec::new(),
            behind: Vec::new(),
            lane: None,
        });
        let number = session.outbox.attach(Instant::now());
        session.lane = Some((remote, number, now_ms()));
        session.run = run;
        (Rc::clone(&session.outbox), number)
    }

    /// Another run of a node's program comes from this address. True if that is one time too many from another one than
    /// before, where it is still connected: two machines have its key.
    fn is_cloned(&self, (node, run): (NodeId, u64), remote: SocketAddr, now: Instant) -> bool {
        let mut sessions = self.0.borrow_mut();
        let Some(session) = sessions.get_mut(&node) else { return false };
        let is_near = session.lane.is_none_or(|(before, _, _)| before.ip() == remote.ip());
        // Programs of before there was such a number say 0.
        if is_near || run != 0 && session.run == run {
            return false;
        }
        session.moves.retain(|then| now.saturating_duration_since(*then) < MOVES_WITHIN);
        session.moves.push(now);
        let is_cloned = session.moves.len() >= MOVES;
        if is_cloned {
            session.moves.clear();
        }
        is_cloned
    }

    /// A lane has ended; true if its session has no other.
    fn detach(&self, node: NodeId, outbox: &Rc<Outbox>, number: u64) -> bool {
        let mut sessions = self.0.borrow_mut();
        let session = sessions.get_mut(&node).filter(|it| Rc::ptr_eq(&it.outbox, outbox));
        let ended =
            session.and_then(|session| session.lane.take_if(|(_, lane, _)| *lane == number));
        ended.is_some()
    }

    /// Ends a session whose last lane, number `number` of this outbox, has ended, unless it gets another
    /// one within [`KEPT`]; true if it is over.
    async fn expire(&self, node: NodeId, outbox: &Rc<Outbox>, number: u64) -> bool {
        time::sleep(KEPT).await;
        let mut sessions = self.0.borrow_mut();
        let is_over = sessions.get(&node).is_some_and(|session| {
            session.lane.is_none()
                && Rc::ptr_eq(&session.outbox, outbox)
                && session.outbox.is_last(number)
        });
        if is_over {
            sessions.remove(&node);
        }
        is_over
    }

    /// Ends the session of a node at once. What waited for it, if it was here.
    pub(super) fn cut(&self, node: NodeId, reason: ByeReason) -> Option<Rc<Outbox>> {
        let Session { outbox, .. } = self.0.borrow_mut().remove(&node)?;
        outbox.cut(reason);
        Some(outbox)
    }

    /// A node has to log in again, if it is here.
    pub(super) fn end_lane(&self, node: NodeId, reason: ByeReason) {
        if let Some(outbox) = self.outbox(node) {
            outbox.end_lane(Instant::now(), reason);
        }
    }

    /// Ends all sessions; true if there was one.
    fn stop(&self) -> bool {
        let sessions = self.0.borrow();
        let mut here = sessions.values().filter(|session| session.lane.is_some()).peekable();
        let any = here.peek().is_some();
        here.for_each(|session| session.outbox.end(ByeReason::Stop));
        any
    }

    pub(super) fn peer_status(&self, node: Node, plan: &Plan) -> PeerStatus {
        let sessions = self.0.borrow();
        let session = sessions.get(&node.id);
        let lane = session.and_then(|session| session.lane);
        let slot = node.slot.and_then(|slot| plan.slot(slot));
        let (to_peer, from_peer) = session.map(|it| it.outbox.traffic()).unwrap_or_default();
        let by_udp = session.map(|it| it.outbox.udp_traffic()).unwrap_or_default();
        let is_udp_up = session.is_some_and(|it| it.outbox.is_udp_up());
        let kind = if is_udp_up { LaneKind::Udp } else { LaneKind::Websocket };
        PeerStatus {
            address: slot.map(|slot| slot.address),
            address6: slot.and_then(|slot| slot.address6),
            number: node.slot,
            pinned: node.pinned,
            connected: lane.is_some(),
            lane: lane.map(|_| kind),
            remote: lane.map(|(remote, _, _)| remote),
            since_ms: lane.map(|(_, _, since)| since),
            seen_ms: node.seen_ms,
            logins: node.epoch,
            name: node.name,
            subnets: Vec::new(),
            to_peer,
            from_peer,
            to_peer_by_udp: by_udp.0,
            from_peer_by_udp: by_udp.1,
            losses: session.map(|session| session.outbox.losses()).unwrap_or_default(),
        }
    }
}

impl Hub {
    /// A connection, from its first byte to its last.
    pub(super) async fn connection(
        self: Rc<Self>,
        socket: TcpStream,
        remote: SocketAddr,
        handshake: OwnedSemaphorePermit,
    ) {
        let login = time::timeout(login::LIMIT, self.let_in(socket)).await;
        drop(handshake);
        let (stream, mut inbox, entrant, network) = match login.unwrap_or(Err(Failure::TimedOut)) {
            Ok(Some(entered)) => entered,
            Ok(None) => return,
            Err(failure) => return tracing::info!(%remote, %failure, "a connection became no lane"),
        };
        let ended = network.lane(stream, &mut inbox, &entrant, remote).await;
        tracing::info!(network = network.options.name, peer = entrant.node.name, %remote, %ended, "a lane has ended");
    }

    /// Lets a peer in; `None`: it was told why not.
    async fn let_in(
        &self,
        socket: TcpStream,
    ) -> Result<Option<(HubStream, Inbox, Entrant, Rc<Network>)>, Failure> {
        let (mut stream, inbox, guest) = login::receive(&self.acceptor, socket).await?;
        let judged = match guest {
            Ok(guest) => match self.networks.find(guest.network.as_deref()) {
                Some(network) => match network.look_up(guest).await {
                    Ok(_) if network.is_closing() => Err(login::reject(RejectCode::Busy)),
                    judged => judged.map(|entrant| (entrant, network)),
                },
                // Nothing is told of networks to somebody who has no token of theirs.
                None => Err(login::reject(RejectCode::BadToken)),
            },
            Err(reject) => Err(reject),
        };
        let (entrant, network) = match judged {
            Ok(entrant) => entrant,
            Err(reject) => {
                tracing::info!(code = ?reject.code, "a peer was refused");
                lane::say(&mut stream, &Message::Reject(reject), Side::Hub).await?;
                stream.shutdown().await?;
                return Ok(None);
            }
        };
        Ok(Some((stream, inbox, entrant, network)))
    }
}

impl Network {
    async fn look_up(&self, guest: Guest) -> Result<Entrant, Reject> {
        if let Some(seconds) = skew(now_ms(), guest.clock_ms) {
            tracing::warn!(peer = guest.name, seconds, "a peer's clock is ahead of ours");
        }
        let entered = self.book.log_in(&guest, self.plan.capacity()).await;
        entered.map_err(login::reject)
    }

    /// A lane, until it ends.
    async fn lane(
        self: &Rc<Self>,
        mut stream: HubStream,
        inbox: &mut Inbox,
        entrant: &Entrant,
        remote: SocketAddr,
    ) -> Ended {
        let Entrant { node, run, .. } = entrant;
        let Some(slot) = node.slot.and_then(|slot| self.plan.slot(slot)) else {
            self.book.doubt(node);
            return Ended::Left;
        };
        let is_cloned = self.sessions.is_cloned((node.id, *run), remote, Instant::now());
        let (outbox, number) = self.attach(entrant, slot, remote);
        if is_cloned {
            tracing::warn!(peer = node.name, "two machines have the key of this peer: revoke it");
            let by = Stamp { who: "hub".into(), at_ms: now_ms() };
            self.book.note("duplicate-node", &node.name, by);
        }
        let udp = self.open_udp(&stream, node.id, &outbox, entrant.by_udp);
        self.look_behind().await;
        let connected = Message::Connected(Connected {
            name: node.name.clone(),
            epoch: node.epoch,
            network: self.plan.network(),
            address: slot.address,
            far: slot.far,
            hub: self.plan.hub().address,
            network6: self.plan.network6(),
            address6: slot.address6,
            dns: self.dns(),
            news: self.knowledge.borrow().news_for(node.id, entrant.names),
            mtu: self.options.mtu,
            queue_length: self.options.queue_length,
            clock_ms: now_ms().cast_unsigned(),
            udp: udp.as_ref().map(|udp| udp.number),
        });
        let ended = match lane::say(&mut stream, &connected, Side::Hub).await {
            Ok(()) => {
                let mut receive = FromPeer { network: self, node: node.id, outbox: &outbox };
                let lane = (&*outbox, number);
                let way = stream.get_ref().0.get_ref().way();
                tokio::select! {
                    ended = lane::run((stream, way), inbox, lane, rand::random(), &mut receive) => ended,
                    never = udp::keep(udp.as_ref().map(|udp| &*udp.lane), &outbox) => match never {},
                    // Who did not hear the goodbye.
                    () = self.closed() => Ended::Left,
                }
            }
            Err(error) => error.into(),
        };
        drop(udp);
        self.detach(node, outbox, number);
        ended
    }

    /// Looks what is behind a peer that has just come, unless that takes too long.
    async fn look_behind(&self) {
        if self.book.is_late() {
            return;
        }
        match time::timeout(PATIENCE, self.refresh()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "what is behind a peer is not known"),
            // It is looked again when that is possible.
            Err(_) => self.stale.notify_one(),
        }
    }

    /// The node is here: what waits for it goes by this lane from now on.
    fn attach(&self, entrant: &Entrant, slot: Slot, remote: SocketAddr) -> (Rc<Outbox>, u64) {
        let Entrant { node, exit, names, run, .. } = entrant;
        let outbox = || Outbox::new(Rc::clone(&self.pool), rand::random());
        let attached = self.sessions.attach((node.id, *run), remote, outbox);
        self.sessions.tell_names(node.id, *names);
        let subnets = self.knowledge.borrow().subnets_of(node.id);
        let member = Member { slot, subnets, exit: *exit };
        let displaced = self.relay.borrow_mut().insert(node.id, member);
        // The database has given its address away, which it has not heard yet.
        displaced.into_iter().for_each(|other| self.readdress(other));
        tracing::info!(peer = node.name, %remote, address = %slot.address, "a peer is here");
        attached
    }

    /// A lane has ended. If it was the last of its session, that stays for a moment.
    fn detach(self: &Rc<Self>, node: &Node, outbox: Rc<Outbox>, number: u64) {
        self.book.doubt(node);
        if !self.sessions.detach(node.id, &outbox, number) {
            return;
        }
        let (network, id) = (Rc::clone(self), node.id);
        task::spawn_local(async move {
            if network.sessions.expire(id, &outbox, number).await {
                network.relay.borrow_mut().remove(id);
                network.stale.notify_one();
            }
        });
    }

    /// Says goodbye to everybody.
    pub(super) async fn say_bye(&self) {
        let gone = async {
            while self.sessions.stop() {
                time::sleep(CLOSING).await;
            }
        };
        // Who does not hear it within this time, will notice.
        _ = time::timeout(CLOSING * 50, gone).await;
    }
}

/// How often a hub that stops looks whether everybody has gone.
const CLOSING: time::Duration = time::Duration::from_millis(10);

/// What comes from a peer.
pub(super) struct FromPeer<'a> {
    pub(super) network: &'a Network,
    pub(super) node: NodeId,
    pub(super) outbox: &'a Outbox,
}

impl FromPeer<'_> {
    /// Tells the peer that a packet of its was too big.
    fn answer_too_big(&self, bytes: &[u8], packet: &IpPacket<'_>) {
        self.network.relay.borrow_mut().count_too_big();
        let Slot { address, address6, .. } = self.network.plan.hub();
        let from =
            if packet.source.is_ipv4() { Some(address.into()) } else { address6.map(Into::into) };
        let answer =
            from.and_then(|from| mtu::too_big(self.network.options.mtu, from, bytes, packet));
        if let Some(answer) = answer
            && let Ok(packet) = IpPacket::parse_bare(&answer)
        {
            let parsed = (&Offload::default(), &packet);
            self.outbox.push(Instant::now(), (&NOTHING_LEFT, &answer), parsed);
        }
    }
}

impl Receive for FromPeer<'_> {
    fn packet(&mut self, record: &Record<'_>, offload: &Offload, packet: &IpPacket<'_>) {
        let way = self.network.relay.borrow_mut().from_peer(self.node, packet, Instant::now());
        let mtu = self.network.options.mtu;
        let clamped = mtu::clamp(mtu, offload, record.bytes, packet);
        let record = match &clamped {
            Some(bytes) => &Record { header: record.header, bytes, joined: None },
            None => record,
        };
        match way {
            Way::Hub if !self.network.device().write(record) => {
                self.network.device_refused.set(self.network.device_refused.get() + 1);
            }
            Way::Peer(_) if mtu::is_too_big(mtu, offload, packet) => {
                self.answer_too_big(record.bytes, packet);
            }
            Way::Peer(peer) => {
                if let Some(outbox) = self.network.sessions.outbox(peer) {
                    let packet = (offload, packet);
                    outbox.push(Instant::now(), (record.header, record.bytes), packet);
                }
            }
            Way::Hub | Way::Dropped => {}
        }
    }

    fn bad_packet(&mut self) {
        self.network.relay.borrow_mut().count_bad_packet();
    }

    /// Peers say all else of theirs when they log in.
    fn message(&mut self, message: Message) {
        if let Message::Names(names) = message
            && self.network.sessions.set_behind(self.node, names.fit().names)
        {
            self.network.stale.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pool::Pool;

    const NODE: NodeId = 7;

    /// A lane of the node.
    fn attach(sessions: &Sessions) -> (Rc<Outbox>, u64) {
        let remote = SocketAddr::from(([192, 0, 2, 1], 1234));
        let pool = || Rc::new(RefCell::new(Pool::default()));
        sessions.attach((NODE, 1), remote, || Outbox::new(pool(), 1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_kept_for_its_time_after_the_lane_that_ended_last() {
        let sessions = Sessions::default();
        let (outbox, first) = attach(&sessions);
        assert!(sessions.detach(NODE, &outbox, first));
        let gone = async {
            time::sleep(KEPT / 2).await;
            let (again, second) = attach(&sessions);
            assert!(Rc::ptr_eq(&outbox, &again), "what waited is there");
            assert!(!sessions.detach(NODE, &outbox, first), "it ended before");
            assert!(sessions.detach(NODE, &outbox, second));
            let ended = time::Instant::now();
            assert!(sessions.expire(NODE, &again, second).await);
            assert!(ended.elapsed() >= KEPT);
        };
        let (early, ()) = tokio::join!(sessions.expire(NODE, &outbox, first), gone);
        assert!(!early, "the first lane's end says nothing of the second's");
        assert!(sessions.outbox(NODE).is_none());
        // Numbers begin anew with another session.
        let (new, number) = attach(&sessions);
        assert!(!sessions.detach(NODE, &outbox, number), "a lane of the session before");
        assert!(sessions.detach(NODE, &new, number));
        assert!(!sessions.expire(NODE, &outbox, number).await);
        assert!(sessions.outbox(NODE).is_some());
    }

    #[tokio::test]
    async fn a_node_that_was_cut_off_and_comes_again_has_a_session_of_its_own() {
        let sessions = Sessions::default();
        let (outbox, first) = attach(&sessions);
        let cut = sessions.cut(NODE, ByeReason::Revoked).unwrap();
        assert!(Rc::ptr_eq(&cut, &outbox));
        assert!(sessions.outbox(NODE).is_none() && sessions.cut(NODE, ByeReason::Stop).is_none());
        let (again, number) = attach(&sessions);
        assert!(!Rc::ptr_eq(&again, &outbox) && number == first);
        // The end of the lane that was cut comes later.
        assert!(!sessions.detach(NODE, &outbox, first));
        assert!(sessions.is_here(NODE));
    }

    #[test]
    fn a_node_that_comes_from_here_and_there_all_the_time_is_two() {
        let from = |host: u8| SocketAddr::from(([192, 0, 2, host], 1234));
        let sessions = Sessions::default();
        let now = Instant::now();
        let comes_as = |run, host, after| {
            let then = now + Duration::from_secs(after);
            let is_cloned = sessions.is_cloned((NODE, run), from(host), then);
            let pool = Rc::new(RefCell::new(Pool::default()));
            sessions.attach((NODE, run), from(host), || Outbox::new(pool, 1));
            is_cloned
        };
        // Each machine's program has a number, or none has.
        let comes = |host: u8, after| comes_as(host.into(), host, after);
        assert!(!comes(1, 0));
        assert!(![1, 1, 1, 1].map(|host| comes(host, 1)).contains(&true), "one machine");
        assert!(!comes(2, 2) && !comes(1, 3) && !comes(2, 63), "it may move");
        assert!(!comes(1, 64) && comes(2, 65) && !comes(1, 66), "told once");
        assert!(![1, 2, 3, 4, 5].map(|host| comes_as(1, host, 67)).contains(&true), "it moves");
        let mut old = [6, 7, 8].map(|host| comes_as(0, host, 200)).into_iter();
        assert!(old.any(|is_cloned| is_cloned), "who does not say which run it is");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_was_replaced_ends_no_session() {
        let sessions = Sessions::default();
        let (outbox, first) = attach(&sessions);
        let (_, second) = attach(&sessions);
        assert!(!sessions.detach(NODE, &outbox, first));
        assert!(!sessions.expire(NODE, &outbox, first).await);
        assert_eq!(sessions.count(), 1);
        assert!(sessions.detach(NODE, &outbox, second));
        time::sleep(KEPT + Duration::from_millis(1)).await;
        assert!(sessions.outbox(NODE).is_some(), "nobody has ended it");
    }
}
