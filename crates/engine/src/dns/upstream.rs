//! Lookups at resolvers: those of the host, and those that the network's configuration names for names below
//! some domains ([`Group`]).
//!
//! What was asked before is answered from the [`Cache`]. Each attempt has a socket of its own, and so a port that
//! the kernel chose, and a random identification; an answer counts only if it comes from the resolver that was
//! asked and has both right and the same question (RFC 5452 section 9). Where a resolver ends an attempt with an
//! error, or the network does, the next one is asked at once; where it is silent for a moment, the next one is asked
//! beside it, and the first answer of any counts, but that something is not there only when those that were asked
//! before have failed: they may know names that others do not. One that was silent while another answered is asked
//! last from then on. A truncated answer is fetched over TCP from the same resolver.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use netyard_wire::dns::{self, Flags, Name, Query, Rcode, Response, framed};
use rand::RngExt as _;
use slab::Slab;

use super::cache::Cache;
use super::stream::{Front, Streams, front};
use super::{Client, pass_on, reply};
use crate::config;
use crate::context::Context;
use crate::control::DnsState;
use crate::edge::{PlugId, Readiness, SocketId};
use crate::wheel::Wheel;

/// How long a resolver may be silent until the next one is asked beside it.
const MOMENT: Duration = Duration::from_millis(300);
/// How long until the only one there is is asked again: its datagram may be lost.
const AGAIN: Duration = Duration::from_millis(1500);
/// How long a lookup may take over UDP, whoever is asked: less than the 5 s of common clients.
const DATAGRAM_PATIENCE: Duration = Duration::from_secs(3);
/// How long a resolver may take over TCP.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);
/// Attempts if there are fewer resolvers than that.
const MIN_ATTEMPTS: usize = 2;
/// Resolvers of a group that are used; more only prolong the wait.
const MAX_SERVERS: usize = 4;
/// Lookups in flight, of one network and of one guest. Each holds a descriptor.
const MAX_LOOKUPS: usize = 512;
const MAX_PER_PLUG: usize = 128;
/// Descriptors of all attempts, and of those of one guest, above which nobody is asked beside another.
const MANY_SOCKETS: usize = 512;
const MANY_PER_PLUG: usize = 128;
/// Answers to one attempt that are not to its question: then somebody is guessing, and the
/// attempt is given up.
const MAX_STRAYS: u32 = 64;
/// The longest message with the length before it that TCP has (RFC 1035 section 4.2.2), bytes.
const MAX_STREAM_MESSAGE: usize = 2 + 65_535;

/// All lookups in flight.
#[derive(Debug)]
pub(super) struct Upstream {
    /// The first ones are the host's, for all names that no other group is for.
    groups: Vec<Group>,
    /// `None`: nothing is kept.
    cache: Option<Cache>,
    /// Counts how often what was known has been forgotten.
    generation: u64,
    lookups: Slab<Lookup>,
    by_socket: HashMap<SocketId, u32>,
    /// Of datagrams, by who asks and the identification of the query: clients repeat themselves.
    by_client: HashMap<(SocketAddr, u16), u32>,
    per_plug: HashMap<Option<PlugId>, usize>,
    wheel: Wheel,
    buffer: Vec<u8>,
}

/// Resolvers that know the same names.
#[derive(Debug)]
struct Group {
    /// The domain that they are for.
    domain: Name,
    servers: Vec<SocketAddr>,
    /// Index of the one that is asked first.
    preferred: usize,
}

#[derive(Debug)]
struct Lookup {
    client: Client,
    /// As the client asked it.
    query: Query,
    message: Vec<u8>,
    /// The generation that it began in: answers of before are not kept.
    generation: u64,
    /// Index of the group that is asked.
    group: usize,
    /// Index of the resolver that was asked first.
    first: usize,
    /// Attempts begun.
    begun: usize,
    /// Those that go on.
    attempts: Vec<Attempt>,
    /// When another attempt begins beside them.
    next_at: Option<Instant>,
    /// When datagrams are not waited for any more.
    until: Instant,
    /// An answer to fall back on: truncated, or an error.
    spare: Option<(Vec<u8>, Rcode)>,
    /// That something is not there, for when those that were asked before have failed.
    held: Option<Held>,
}

/// An answer of a resolver that was asked beside others.
#[derive(Debug)]
struct Held {
    /// Of the attempt.
    number: usize,
    message: Vec<u8>,
    response: Response,
}

/// One resolver that was asked.
#[derive(Debug)]
struct Attempt {
    /// Those that began before have lower ones.
    number: usize,
    /// The resolver's index.
    place: usize,
    server: SocketAddr,
    id: u16,
    socket: SocketId,
    stage: Stage,
    /// When it is given up.
    until: Instant,
    strays: u32,
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Datagram,
    /// TCP, still connecting.
    Connecting,
    /// TCP, question sent.
    Stream,
}

/// What came of reading a socket.
enum Outcome {
    Wait,
    Answer(Vec<u8>, Response),
    Failed,
}

impl Upstream {
    pub(super) fn new(config: &config::Dns, now: Instant) -> Self {
        let host = Group { domain: Name::root(), servers: Vec::new(), preferred: 0 };
        let split = config.split.iter().filter_map(|split| {
            let servers = split.servers.iter().copied().take(MAX_SERVERS).collect();
            Some(Group { domain: split.domain.parse().ok()?, servers, preferred: 0 })
        });
        Self {
            groups: std::iter::once(host).chain(split).collect(),
            cache: config.cache.then(Cache::default),
            generation: 0,
            lookups: Slab::new(),
            by_socket: HashMap::new(),
            by_client: HashMap::new(),
            per_plug: HashMap::new(),
            wheel: Wheel::new(now),
            buffer: vec![0; MAX_STREAM_MESSAGE],
        }
    }

    /// Replaces the host's resolvers. Others may know other answers: none of before is kept.
    pub(super) fn set_servers(&mut self, mut servers: Vec<SocketAddr>) {
        servers.truncate(MAX_SERVERS);
        let Some(host) = self.groups.first_mut() else { return };
        if servers != host.servers {
            host.servers = servers;
            host.preferred = 0;
            self.forget();
        }
    }

    /// Forgets what was answered, and keeps no answer to what was asked before.
    pub(super) fn forget(&mut self) {
        self.generation += 1;
        if let Some(cache) = &mut self.cache {
            cache.clear();
        }
    }

    /// What `inspect` shows of the cache; `None`: there is none.
    pub(super) fn state(&self) -> Option<DnsState> {
        self.cache.as_ref().map(Cache::state)
    }

    /// The group that is for a name: that of the longest domain.
    fn group_for(&self, name: &Name) -> usize {
        let fitting =
            self.groups.iter().enumerate().filter(|(_, group)| name.is_within(&group.domain));
        // Of equals the last one: a configuration may be for all names, in place of the host's.
        let longest = fitting.max_by_key(|(_, group)| group.domain.labels().count());
        longest.map_or(0, |(place, _)| place)
    }

    /// Looks up what `message` asks, and sends the answer to `client` when it is there.
    pub(super) fn ask(
        &mut self,
        cx: &mut Context<'_>,
        streams: &mut Streams,
        client: Client,
        query: Query,
        message: &[u8],
    ) {
        let kept = self.cache.as_mut().and_then(|cache| cache.get(cx.now, &query, message));
        if let Some(kept) = kept
            && let Ok(response) = Response::parse(&kept)
        {
            return tell(cx, streams, &client, &query, &kept, &response);
        }
        let datagram = client.transport.is_datagram();
        let key = (client.source, query.id);
        if datagram
            && let Some(index) = self.by_client.get(&key)
            && let Some(lookup) = self.lookups.get(*index as usize)
            && lookup.query.question == query.question
        {
            cx.counters.drop("dns-repeated-query");
            return;
        }
        let of_plug = self.per_plug.get(&client.plug).copied().unwrap_or_default();
        if self.lookups.len() >= MAX_LOOKUPS || of_plug >= MAX_PER_PLUG {
            cx.counters.drop("dns-lookups-full");
            // A datagram may as well have been lost; in a stream each query has its answer.
            if !datagram {
                let failure = Response::to(&query, Rcode::ServerFailure);
                reply(cx, streams, &client, &query, &failure);
            }
            return;
        }
        let plug = client.plug;
        let group = self.group_for(&query.question.name);
        let index = self.lookups.insert(Lookup {
            client,
            query,
            message: message.to_vec(),
            generation: self.generation,
            group,
            first: self.groups.get(group).map_or(0, |group| group.preferred),
            begun: 0,
            attempts: Vec::new(),
            next_at: None,
            until: cx.now + DATAGRAM_PATIENCE,
            spare: None,
            held: None,
        });
        let Ok(index) = u32::try_from(index) else { return };
        if datagram {
            self.by_client.insert(key, index);
        }
        *self.per_plug.entry(plug).or_default() += 1;
        self.go_on(cx, streams, index, true);
    }

    pub(super) fn owns(&self, socket: SocketId) -> bool {
        self.by_socket.contains_key(&socket)
    }

    pub(super) fn handle_socket(
        &mut self,
        cx: &mut Context<'_>,
        streams: &mut Streams,
        socket: SocketId,
        ready: Readiness,
    ) {
        let Some(index) = self.by_socket.get(&socket).copied() else { return };
        let Some(lookup) = self.lookups.get_mut(index as usize) else { return };
        let Lookup { attempts, query, message, .. } = lookup;
        let Some(attempt) = attempts.iter_mut().find(|it| it.socket == socket) else { return };
        let outcome = match attempt.stage {
            Stage::Datagram => attempt.receive(cx, query, ready, &mut self.buffer),
            Stage::Connecting | Stage::Stream => {
                attempt.exchange(cx, query, message, ready, &mut self.buffer)
            }
        };
        match outcome {
            Outcome::Wait => {}
            Outcome::Failed => {
                self.close(cx, index, socket);
                self.go_on(cx, streams, index, true);
            }
            Outcome::Answer(message, response) => {
                self.answered(cx, streams, (index, socket), message, &response);
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, cx: &mut Context<'_>, streams: &mut Streams) {
        let mut expired = Vec::new();
        self.wheel.expire(cx.now, &mut expired);
        for index in expired {
            let Some(lookup) = self.lookups.get(index as usize) else { continue };
            let silent: Vec<_> = lookup
                .attempts
                .iter()
                .filter(|attempt| attempt.until <= cx.now)
                .map(|attempt| (attempt.socket, attempt.place))
                .collect();
            let (group, over) = (lookup.group, lookup.next_at.is_some_and(|at| at <= cx.now));
            for (socket, place) in silent {
                self.close(cx, index, socket);
                self.put_off(group, place);
            }
            self.go_on(cx, streams, index, over);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// Ends the lookups of clients that have gone.
    pub(super) fn abandon(&mut self, cx: &mut Context<'_>, gone: impl Fn(&Client) -> bool) {
        let waiting: Vec<u32> = self
            .lookups
            .iter()
            .filter(|(_, lookup)| gone(&lookup.client))
            .filter_map(|(index, _)| u32::try_from(index).ok())
            .collect();
        for index in waiting {
            self.finish(cx, index);
        }
    }

    /// Has a resolver that is silent asked after the others from now on.
    fn put_off(&mut self, group: usize, place: usize) {
        if let Some(group) = self.groups.get_mut(group)
            && group.preferred == place
        {
            group.preferred = place.saturating_add(1).checked_rem(group.servers.len()).unwrap_or(0);
        }
    }

    /// Asks the next resolver, if it is time for that or nobody else is asked. When all were asked, and none goes
    /// on, the client gets what there is, or an error.
    fn go_on(&mut self, cx: &mut Context<'_>, streams: &mut Streams, index: u32, next: bool) {
        let Some(lookup) = self.lookups.get_mut(index as usize) else { return };
        if let Some(Held { message, response, .. }) = lookup.take_held() {
            return self.conclude(cx, streams, index, &message, &response);
        }
        let many = next && {
            let plug = lookup.client.plug;
            let of_plug = self.lookups.iter().filter(|(_, lookup)| lookup.client.plug == plug);
            self.by_socket.len() >= MANY_SOCKETS
                || of_plug.map(|(_, lookup)| lookup.attempts.len()).sum::<usize>() >= MANY_PER_PLUG
        };
        let Some(lookup) = self.lookups.get_mut(index as usize) else { return };
        let none: &[SocketAddr] = &[];
        let servers = self.groups.get(lookup.group).map_or(none, |group| group.servers.as_slice());
        let wanted = servers.len().max(MIN_ATTEMPTS);
        let beside = !lookup.attempts.is_empty();
        if !beside || next && !many {
            while lookup.begun < wanted {
                let Some(place) = (lookup.first + lookup.begun).checked_rem(servers.len()) else {
                    break;
                };
                lookup.begun += 1;
                let Some(server) = servers.get(place).copied() else { break };
                if let Ok(attempt) = lookup.send(cx, place, server) {
                    self.by_socket.insert(attempt.socket, index);
                    lookup.attempts.push(attempt);
                    break;
                }
            }
        }
        // One that was asked is asked again only after a while.
        let pause = if lookup.begun < servers.len() { MOMENT } else { AGAIN };
        lookup.next_at = (lookup.begun < wanted).then(|| cx.now + pause);
        let ends = lookup.attempts.iter().map(|attempt| attempt.until);
        match ends.min() {
            Some(end) => {
                let due = lookup.next_at.map_or(end, |at| at.min(end));
                self.wheel.set(index, Some(due));
            }
            None => {
                match lookup.spare.take() {
                    Some((message, rcode)) => {
                        pass_on(cx, streams, &lookup.client, &lookup.query, &message, rcode);
                    }
                    None => {
                        let failure = Response::to(&lookup.query, Rcode::ServerFailure);
                        reply(cx, streams, &lookup.client, &lookup.query, &failure);
                    }
                }
                self.finish(cx, index);
            }
        }
    }

    /// A resolver that was asked by this socket has answered.
    fn answered(
        &mut self,
        cx: &mut Context<'_>,
        streams: &mut Streams,
        (index, socket): (u32, SocketId),
        mut message: Vec<u8>,
        response: &Response,
    ) {
        let Some(lookup) = self.lookups.get_mut(index as usize) else { return };
        let Some(attempt) = lookup.attempts.iter_mut().find(|it| it.socket == socket) else {
            return;
        };
        dns::set_id(&mut message, lookup.query.id);
        let rcode = response.flags.rcode();
        let truncated = response.flags.contains(Flags::TRUNCATED);
        if truncated && attempt.stage == Stage::Datagram {
            // To a client that already asks by stream it says nothing.
            if lookup.client.transport.is_datagram() {
                lookup.spare = Some((message, rcode));
            }
            self.by_socket.remove(&socket);
            cx.edge.close(socket);
            match cx.edge.tcp_connect(attempt.server) {
                Ok(socket) => {
                    attempt.socket = socket;
                    attempt.stage = Stage::Connecting;
                    attempt.until = cx.now + STREAM_PATIENCE;
                    self.by_socket.insert(socket, index);
                    self.go_on(cx, streams, index, false);
                }
                Err(_) => {
                    lookup.attempts.retain(|it| it.socket != socket);
                    self.go_on(cx, streams, index, true);
                }
            }
        } else if matches!(rcode, Rcode::ServerFailure | Rcode::Refused | Rcode::NotImplemented) {
            lookup.spare.get_or_insert((message, rcode));
            self.close(cx, index, socket);
            self.go_on(cx, streams, index, true);
        } else {
            let (group, place, number) = (lookup.group, attempt.place, attempt.number);
            let before = lookup.attempts.iter().any(|it| it.number < number && it.place != place);
            if before && is_negative(response) {
                if lookup.held.as_ref().is_none_or(|held| number < held.number) {
                    lookup.held = Some(Held { number, message, response: response.clone() });
                }
                self.close(cx, index, socket);
                return self.go_on(cx, streams, index, false);
            }
            // Those that were asked before are slower, if they answer at all.
            let slower = lookup.attempts.iter().any(|it| it.place == lookup.first);
            if slower
                && place != lookup.first
                && let Some(group) = self.groups.get_mut(group)
            {
                group.preferred = place;
            }
            self.conclude(cx, streams, index, &message, response);
        }
    }

    /// Ends a lookup with what a resolver has answered.
    fn conclude(
        &mut self,
        cx: &mut Context<'_>,
        streams: &mut Streams,
        index: u32,
        message: &[u8],
        response: &Response,
    ) {
        let Some(lookup) = self.lookups.get(index as usize) else { return };
        tell(cx, streams, &lookup.client, &lookup.query, message, response);
        if let Some(cache) = &mut self.cache
            && lookup.generation == self.generation
        {
            cache.keep(cx.now, &lookup.query, &lookup.message, message);
        }
        self.finish(cx, index);
    }

    fn finish(&mut self, cx: &mut Context<'_>, index: u32) {
        self.wheel.set(index, None);
        let Some(lookup) = self.lookups.try_remove(index as usize) else { return };
        for attempt in &lookup.attempts {
            self.by_socket.remove(&attempt.socket);
            cx.edge.close(attempt.socket);
        }
        let key = (lookup.client.source, lookup.query.id);
        // Another question may have taken the same identification in the meantime.
        if self.by_client.get(&key) == Some(&index) {
            self.by_client.remove(&key);
        }
        if let Some(count) = self.per_plug.get_mut(&lookup.client.plug) {
            *count -= 1;
            if *count == 0 {
                self.per_plug.remove(&lookup.client.plug);
            }
        }
    }

    /// Ends one attempt.
    fn close(&mut self, cx: &mut Context<'_>, index: u32, socket: SocketId) {
        if let Some(lookup) = self.lookups.get_mut(index as usize) {
            lookup.attempts.retain(|attempt| attempt.socket != socket);
        }
        self.by_socket.remove(&socket);
        cx.edge.close(socket);
    }
}

/// Tells a client what a resolver has answered, now or before.
fn tell(
    cx: &mut Context<'_>,
    streams: &mut Streams,
    client: &Client,
    query: &Query,
    message: &[u8],
    response: &Response,
) {
    let guest = client.guest(cx);
    cx.policy.learn(cx.now, guest, &query.question.name, &response.answers);
    pass_on(cx, streams, client, query, message, response.flags.rcode());
}

/// True if it says that the name is not there, or has nothing of what is asked.
fn is_negative(response: &Response) -> bool {
    let asked = |kind: u16| {
        response.question.as_ref().is_none_or(|it| it.kind == dns::ANY || it.kind == kind)
    };
    match response.flags.rcode() {
        Rcode::NameError => true,
        Rcode::NoError => !response.answers.iter().any(|record| asked(record.data.kind())),
        _ => false,
    }
}

impl Lookup {
    /// The answer that was held back, if none goes on that was asked before, nor has told a part of what there is.
    fn take_held(&mut self) -> Option<Held> {
        let Self { attempts, spare, held, .. } = self;
        let partly = spare.as_ref().is_some_and(|(_, rcode)| *rcode == Rcode::NoError);
        held.take_if(|held| !partly && attempts.iter().all(|it| it.number > held.number))
    }

    /// Sends the question to a resolver from a new port under a new identification.
    fn send(
        &mut self,
        cx: &mut Context<'_>,
        place: usize,
        server: SocketAddr,
    ) -> io::Result<Attempt> {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = cx.edge.udp_bind(SocketAddr::new(any, 0))?;
        let id = cx.rng.random();
        dns::set_id(&mut self.message, id);
        if let Err(error) = cx.edge.udp_send(socket, server, None, &self.message) {
            cx.edge.close(socket);
            return Err(error);
        }
        let until = self.until.max(cx.now + AGAIN);
        let (number, stage) = (self.begun, Stage::Datagram);
        Ok(Attempt { number, place, server, id, socket, stage, until, strays: 0 })
    }
}

impl Attempt {
    /// True if it answers what was asked in this attempt.
    fn is_answered_by(&self, query: &Query, response: &Response) -> bool {
        response.id == self.id && response.question.as_ref() == Some(&query.question)
    }

    fn receive(
        &mut self,
        cx: &mut Context<'_>,
        query: &Query,
        ready: Readiness,
        buffer: &mut [u8],
    ) -> Outcome {
        loop {
            match cx.edge.udp_recv(self.socket, buffer) {
                Ok((len, from)) => {
                    let message = buffer.get(..len).unwrap_or_default();
                    let response = Response::parse(message);
                    if let Ok(response) = response
                        && same_endpoint(from, self.server)
                        && self.is_answered_by(query, &response)
                    {
                        return Outcome::Answer(message.to_vec(), response);
                    }
                    cx.counters.drop("dns-stray-answer");
                    self.strays += 1;
                    if self.strays >= MAX_STRAYS {
                        return Outcome::Failed;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Outcome::Failed,
            }
        }
        // The socket is this attempt's own: whatever the network reports concerns it.
        if ready.error && cx.edge.udp_error(self.socket).is_some() {
            return Outcome::Failed;
        }
        Outcome::Wait
    }

    fn exchange(
        &mut self,
        cx: &mut Context<'_>,
        query: &Query,
        asked: &mut [u8],
        ready: Readiness,
        buffer: &mut [u8],
    ) -> Outcome {
        let socket = self.socket;
        if self.stage == Stage::Connecting {
            if !(ready.writable || ready.error || ready.hangup) {
                return Outcome::Wait;
            }
            // A fresh socket takes a whole question at once; if it does not, something is wrong.
            dns::set_id(asked, self.id);
            let Some(framed) = framed(asked) else { return Outcome::Failed };
            let sent = cx.edge.take_error(socket).and_then(|()| cx.edge.send(socket, &framed));
            if !sent.is_ok_and(|sent| sent == framed.len()) {
                return Outcome::Failed;
            }
            self.stage = Stage::Stream;
        }
        match cx.edge.peek(socket, 0, buffer) {
            Ok(0) => Outcome::Failed,
            Ok(len) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                let Front::Whole(message) = front(bytes, usize::from(u16::MAX)) else {
                    return Outcome::Wait;
                };
                match Response::parse(message) {
                    Ok(response) if self.is_answered_by(query, &response) => {
                        Outcome::Answer(message.to_vec(), response)
                    }
                    _ => Outcome::Failed,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Outcome::Wait,
            Err(_) => Outcome::Failed,
        }
    }
}

/// Same address and port; flow label and scope are the kernel's.
fn same_endpoint(one: SocketAddr, other: SocketAddr) -> bool {
    one.ip() == other.ip() && one.port() == other.port()
}
