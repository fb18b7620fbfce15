//! Questions of guests for names in `.local` that go on to the host's link, and the answers (RFC 6762).
//!
//! A question that a guest sends to the group is asked once more on the host's cards, from the host's address, and what
//! their links answer to the group is said to all guests, by the gateway. Nothing else passes:
//!
//! * *to the link*: questions for names within `local.` that the guest may ask, and that are not the network's own. What it
//!   knows already, and what it is about to claim, stays here, so that the link does not hear of the guests' names. Their
//!   announcements stay here, too.
//! * *to the guests*: records about names that were asked for, and no others that came with them: what else a service
//!   needs is asked for next (RFC 6763 section 12). Whoever asked, all hear them who may ask for the name: a guest that
//!   hears another's question takes it for its own (RFC 6762 section 7.3).
//!
//! Both ways there is so much in a time, and each guest has so many names remembered; what is beyond is dropped and counted.
//! Only who asks from port 5353 hears the answer: others want one to themselves (RFC 6762 section 6.7).

mod wanted;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use netyard_wire::dns::{
    HEADER_LEN, MulticastQuery, MulticastRecord, MulticastResponse, Name, Question,
};
use netyard_wire::ip::IpPacket;
use netyard_wire::udp::Datagram;
use netyard_wire::{MacAddr, build};

use self::wanted::Wanted;
use crate::config::Config;
use crate::context::Context;
use crate::edge::{PlugId, SocketId};
use crate::multicast::Snooping;

/// RFC 6762 section 3.
const PORT: u16 = 5353;
const GROUP4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);

/// RFC 6762 section 11.
const HOP_LIMIT: u8 = 255;

/// RFC 6762 section 17: with its headers no message is longer, bytes.
const MAX_MESSAGE: usize = 9_000;

/// The longest message of questions, bytes: what a packet on Ethernet takes over IPv6.
const MAX_QUERY: usize = 1_452;

/// Cards of the host that are asked on; each takes two descriptors.
const MAX_CARDS: usize = 16;

/// Messages for one guest: so many at once, and then one in this time. A browser asks ten questions when it starts.
const QUERY_BURST: u32 = 50;
const QUERY_EVERY: Duration = Duration::from_millis(100);

/// Responses of the links together.
const RESPONSE_BURST: u32 = 200;
const RESPONSE_EVERY: Duration = Duration::from_millis(10);

/// Datagrams read from one card before others get their turn.
const BURST: usize = 32;

/// What relates the network to mDNS of the host's links.
#[derive(Debug)]
pub(crate) struct Mdns {
    /// By card and whether it is IPv4's.
    sockets: BTreeMap<(u32, bool), SocketId>,
    by_socket: HashMap<SocketId, bool>,
    /// Those that could not be made when they were tried last.
    failed: BTreeSet<(u32, bool)>,
    /// The zone of the network and names elsewhere that it has records of.
    own: (Option<Name>, HashSet<Name>),
    wanted: Wanted,
    queries: HashMap<PlugId, Pace>,
    responses: Pace,
    readable: BTreeSet<SocketId>,
    buffer: Vec<u8>,
}

/// How often something may be: the time at which all that was let through is made up for.
#[derive(Debug, Clone, Copy)]
struct Pace(Instant);

impl Pace {
    /// Whether once more is within the bounds.
    fn take(&mut self, now: Instant, every: Duration, burst: u32) -> bool {
        let after = self.0.max(now) + every;
        if after > now + every * burst {
            return false;
        }
        self.0 = after;
        true
    }
}

impl Mdns {
    /// One without cards.
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        let records = config.dns.records.iter().filter_map(|record| record.name.parse().ok());
        Self {
            sockets: BTreeMap::new(),
            by_socket: HashMap::new(),
            failed: BTreeSet::new(),
            own: (config.zone.parse().ok(), records.collect()),
            wanted: Wanted::default(),
            queries: HashMap::new(),
            responses: Pace(now),
            readable: BTreeSet::new(),
            buffer: vec![0; MAX_MESSAGE],
        }
    }

    /// The cards to ask on are these, by their numbers. One that takes no socket of a family, as it has no address of it
    /// yet, is tried again with the next call.
    pub(crate) fn set_cards(&mut self, cx: &mut Context<'_>, cards: &BTreeSet<u32>) {
        let cards: BTreeSet<u32> = cards.iter().copied().take(MAX_CARDS).collect();
        let Self { sockets, by_socket, readable, .. } = self;
        sockets.retain(|(card, _), socket| {
            let stays = cards.contains(card);
            if !stays {
                by_socket.remove(socket);
                readable.remove(socket);
                cx.edge.close(*socket);
            }
            stays
        });
        self.failed.retain(|(card, _)| cards.contains(card));
        for at in cards.into_iter().flat_map(|card| [(card, true), (card, false)]) {
            if sockets.contains_key(&at) {
                continue;
            }
            let (card, ipv4) = at;
            match cx.edge.udp_member(card, group(ipv4)) {
                Ok(socket) => {
                    sockets.insert(at, socket);
                    by_socket.insert(socket, ipv4);
                    if self.failed.remove(&at) {
                        tracing::info!(card, ipv4, "names in .local are asked for here now");
                    }
                }
                Err(error) if self.failed.insert(at) => tracing::warn!(
                    card,
                    ipv4,
                    %error,
                    "names in .local are not asked for on a card until its link or addresses change"
                ),
                Err(_) => {}
            }
        }
    }

    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.by_socket.contains_key(&socket)
    }

    pub(crate) fn remove_plug(&mut self, plug: PlugId) {
        self.queries.remove(&plug);
        self.wanted.remove_plug(plug);
    }

    /// Whether a datagram of a guest is for the group.
    pub(crate) fn listens(ip: &IpPacket<'_>, datagram: &Datagram<'_>) -> bool {
        SocketAddr::new(ip.destination, datagram.destination_port)
            == group(ip.destination.is_ipv4())
    }

    /// Asks on the cards what a guest asks.
    ///
    /// # Errors
    /// The name of the drop counter.
    pub(crate) fn handle_guest(
        &mut self,
        cx: &mut Context<'_>,
        plug: PlugId,
        ip: &IpPacket<'_>,
        datagram: &Datagram<'_>,
    ) -> Result<(), &'static str> {
        if datagram.payload.len() > MAX_MESSAGE {
            return Err("mdns-too-long");
        }
        let query = MulticastQuery::parse(datagram.payload).map_err(|error| error.reason())?;
        // Announcements are for the network, and who asks what it may claim would claim it outside.
        let Some(query) = query.filter(|query| !query.is_probe) else { return Ok(()) };
        let guest = cx.guests.by_plug(plug).ok_or("unknown-plug")?.address4.into();
        let mut questions = query.questions;
        questions.retain(|it| {
            is_local(&it.name) && !self.is_own(&it.name) && cx.policy.lets_ask(guest, &it.name)
        });
        if questions.is_empty() {
            return Ok(());
        }
        if datagram.source_port != PORT {
            return Err("mdns-one-shot");
        }
        let mut rest = questions.as_slice();
        while let Some((part, later)) =
            rest.split_at_checked(fitting(rest)).filter(|it| !it.0.is_empty())
        {
            let pace = self.queries.entry(plug).or_insert(Pace(cx.now));
            if !pace.take(cx.now, QUERY_EVERY, QUERY_BURST) {
                return Err("mdns-queries-too-often");
            }
            for question in part {
                if !self.wanted.note(cx.now, plug, &question.name) {
                    cx.counters.drop("mdns-names-forgotten");
                }
            }
            self.ask(cx, ip.destination.is_ipv4(), &MulticastQuery::emit(part));
            rest = later;
        }
        Ok(())
    }

    /// Whether it is for the network itself to say what a name stands for.
    fn is_own(&self, name: &Name) -> bool {
        let (zone, records) = &self.own;
        zone.as_ref().is_some_and(|zone| name.is_within(zone)) || records.contains(name)
    }

    /// Sends a message to the links, over one family.
    fn ask(&self, cx: &mut Context<'_>, ipv4: bool, message: &[u8]) {
        for (_, socket) in self.sockets.iter().filter(|((_, family), _)| *family == ipv4) {
            if cx.edge.udp_send(*socket, group(ipv4), Some(HOP_LIMIT), message).is_err() {
                cx.counters.drop("mdns-not-sent");
            }
        }
    }

    /// Something has come on a card. Call [`Mdns::flush`] after.
    pub(crate) fn handle_socket(&mut self, cx: &mut Context<'_>, socket: SocketId) {
        // What could not be sent is asked again by who wants to know.
        while cx.edge.udp_error(socket).is_some() {}
        self.readable.insert(socket);
    }

    /// Takes what has come. True if there is more to do at once.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>, snooping: Option<&Snooping>) -> bool {
        let readable = std::mem::take(&mut self.readable);
        for socket in readable {
            let Some(ipv4) = self.by_socket.get(&socket).copied() else { continue };
            let mut buffer = std::mem::take(&mut self.buffer);
            let empty = (0..BURST).any(|_| {
                let Ok((len, from)) = cx.edge.udp_recv(socket, &mut buffer) else { return true };
                let message = buffer.get(..len).unwrap_or_default();
                if let Err(reason) = self.handle_link(cx, snooping, (ipv4, from), message) {
                    cx.counters.drop(reason);
                }
                false
            });
            self.buffer = buffer;
            if !empty {
                self.readable.insert(socket);
            }
        }
        !self.readable.is_empty()
    }

    /// Says to the guests what a link has answered of what one has asked for.
    fn handle_link(
        &mut self,
        cx: &mut Context<'_>,
        snooping: Option<&Snooping>,
        (ipv4, from): (bool, SocketAddr),
        message: &[u8],
    ) -> Result<(), &'static str> {
        // RFC 6762 section 11: others are no responders. Our own questions come back, too.
        if from.port() != PORT {
            return Ok(());
        }
        let response = MulticastResponse::parse(message).map_err(|error| error.reason())?;
        let Some(MulticastResponse { mut records }) = response else { return Ok(()) };
        let now = cx.now;
        records.retain(|record| self.wanted.has(now, &record.name));
        if records.is_empty() {
            return Ok(());
        }
        if message.len() >= MAX_MESSAGE {
            return Err("mdns-too-long");
        }
        if !self.responses.take(now, RESPONSE_EVERY, RESPONSE_BURST) {
            return Err("mdns-responses-too-often");
        }
        let to = group(ipv4);
        let (source, mac): (IpAddr, _) = match to.ip() {
            IpAddr::V4(group) => (cx.config.gateway4().into(), MacAddr::ipv4_multicast(group)),
            IpAddr::V6(group) => {
                (cx.config.gateway_link_local().into(), MacAddr::ipv6_multicast(group))
            }
        };
        let audience = snooping.map(|snooping| snooping.audience(now, to.ip()));
        let guests = cx.guests.iter().map(|guest| (guest.plug, guest.address4.into()));
        let guests: Vec<(PlugId, IpAddr)> = guests.collect();
        // What one may hear is mostly what the one before may.
        let (mut heard, mut said) = (Vec::new(), (Vec::new(), 0));
        for (plug, guest) in
            guests.into_iter().filter(|it| audience.is_none_or(|all| all.has(it.0)))
        {
            let may = |record: &MulticastRecord| cx.policy.lets_ask(guest, &record.name);
            let hears: Vec<bool> = records.iter().map(may).collect();
            if heard != hears {
                let records = records.iter().zip(&hears).filter(|(_, hears)| **hears);
                said = MulticastRecord::emit(records.map(|(record, _)| record), MAX_MESSAGE);
                heard = hears;
            }
            let (message, count) = &said;
            if usize::from(*count) < heard.iter().filter(|hears| **hears).count() {
                cx.counters.drop("mdns-too-long");
            }
            if *count > 0 {
                let (ours, source) = (cx.config.gateway_mac, SocketAddr::new(source, PORT));
                let offload =
                    build::udp_frame(cx.scratch, ours, mac, source, to, HOP_LIMIT, message);
                cx.transmit_cut(plug, offload);
            }
        }
        Ok(())
    }
}

/// How many of these questions fit into one message: at least one, if there is any.
fn fitting(questions: &[Question]) -> usize {
    let mut len = HEADER_LEN;
    let fits = questions.iter().take_while(|question| {
        // Behind the name, type and class.
        len += question.name.wire_len() + 4;
        len <= MAX_QUERY
    });
    fits.count()
}

/// Whether a name is within `local.` (RFC 6762 section 3).
fn is_local(name: &Name) -> bool {
    name.labels().last().is_some_and(|top| top.eq_ignore_ascii_case(b"local"))
}

/// The group of a family, with its port.
fn group(ipv4: bool) -> SocketAddr {
    let group = if ipv4 { GROUP4.into() } else { GROUP6.into() };
    SocketAddr::new(group, PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_is_let_through_at_once_and_then_one_after_the_other() {
        let now = Instant::now();
        let mut pace = Pace(now);
        let mut taken =
            |now| (0..1_000).filter(|_| pace.take(now, QUERY_EVERY, QUERY_BURST)).count();
        assert_eq!(taken(now), 50);
        assert_eq!(taken(now + QUERY_EVERY - Duration::from_millis(1)), 0);
        assert_eq!(taken(now + QUERY_EVERY * 3), 3);
        assert_eq!(taken(now + QUERY_EVERY * 1_000), 50);
    }
}
