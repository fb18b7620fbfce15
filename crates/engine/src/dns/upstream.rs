//! Lookups at the host's resolvers.
//!
//! Each attempt has a socket of its own, and so a port that the kernel chose, and a random
//! identification; an answer counts only if it comes from the resolver that was asked and has
//! both right and the same question (RFC 5452 section 9). An attempt ends with an answer, with an
//! error of the resolver or the network, or in silence; then the next resolver is asked, and the
//! one that was silent is asked last from then on. A truncated answer is fetched over TCP from the
//! same resolver.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use netyard_wire::dns::{self, Flags, Query, Rcode, Response, framed};
use rand::RngExt as _;
use slab::Slab;

use super::stream::{Front, Streams, front};
use super::{Client, pass_on, reply};
use crate::context::Context;
use crate::edge::{PlugId, Readiness, SocketId};
use crate::wheel::Wheel;

/// How long a resolver may be silent over UDP. Three attempts fit the 5 s of common clients.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(1500);
/// How long it may take over TCP.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);
/// Attempts if there are fewer resolvers than that: one datagram may get lost.
const MIN_ATTEMPTS: usize = 2;
/// Resolvers that are used; more only prolong the wait.
const MAX_SERVERS: usize = 4;
/// Lookups in flight, of one network and of one guest. Each holds a descriptor.
const MAX_LOOKUPS: usize = 512;
const MAX_PER_PLUG: usize = 128;
/// Answers to one attempt that are not to its question: then somebody is guessing, and the
/// attempt is given up.
const MAX_STRAYS: u32 = 64;
/// The longest message with the length before it that TCP has (RFC 1035 section 4.2.2), bytes.
const MAX_STREAM_MESSAGE: usize = 2 + 65_535;

/// All lookups in flight.
#[derive(Debug)]
pub(super) struct Upstream {
    servers: Vec<SocketAddr>,
    /// Index of the resolver that is asked first.
    preferred: usize,
    lookups: Slab<Lookup>,
    by_socket: HashMap<SocketId, u32>,
    /// Of datagrams, by who asks and the identification of the query: clients repeat themselves.
    by_client: HashMap<(SocketAddr, u16), u32>,
    per_plug: HashMap<Option<PlugId>, usize>,
    wheel: Wheel,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Lookup {
    client: Client,
    /// As the client asked it.
    query: Query,
    message: Vec<u8>,
    /// Index of the resolver that was asked first.
    first: usize,
    /// Attempts begun.
    attempts: usize,
    server: SocketAddr,
    /// The identification of this attempt.
    id: u16,
    socket: Option<SocketId>,
    stage: Stage,
    strays: u32,
    /// An answer to fall back on: truncated, or an error.
    spare: Option<(Vec<u8>, Rcode)>,
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
    pub(super) fn new(now: Instant) -> Self {
        Self {
            servers: Vec::new(),
            preferred: 0,
            lookups: Slab::new(),
            by_socket: HashMap::new(),
            by_client: HashMap::new(),
            per_plug: HashMap::new(),
            wheel: Wheel::new(now),
            buffer: vec![0; MAX_STREAM_MESSAGE],
        }
    }

    pub(super) fn set_servers(&mut self, mut servers: Vec<SocketAddr>) {
        servers.truncate(MAX_SERVERS);
        if servers != self.servers {
            self.servers = servers;
            self.preferred = 0;
        }
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
        let index = self.lookups.insert(Lookup {
            client,
            query,
            message: message.to_vec(),
            first: self.preferred,
            attempts: 0,
            server: client.destination,
            id: 0,
            socket: None,
            stage: Stage::Datagram,
            strays: 0,
            spare: None,
        });
        let Ok(index) = u32::try_from(index) else { return };
        if datagram {
            self.by_client.insert(key, index);
        }
        *self.per_plug.entry(plug).or_default() += 1;
        self.attempt(cx, streams, index);
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
        let outcome = match lookup.stage {
            Stage::Datagram => lookup.receive(cx, socket, ready, &mut self.buffer),
            Stage::Connecting | Stage::Stream => {
                lookup.exchange(cx, socket, ready, &mut self.buffer)
            }
        };
        match outcome {
            Outcome::Wait => {}
            Outcome::Failed => self.attempt(cx, streams, index),
            Outcome::Answer(message, response) => {
                self.answered(cx, streams, index, message, &response)
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, cx: &mut Context<'_>, streams: &mut Streams) {
        let mut expired = Vec::new();
        self.wheel.expire(cx.now, &mut expired);
        for index in expired {
            let Some(lookup) = self.lookups.get(index as usize) else { continue };
            if self.servers.get(self.preferred) == Some(&lookup.server) {
                self.preferred = (self.preferred + 1) % self.servers.len().max(1);
            }
            self.attempt(cx, streams, index);
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

    /// Asks the next resolver. When all were asked, the client gets what there is, or an error.
    fn attempt(&mut self, cx: &mut Context<'_>, streams: &mut Streams, index: u32) {
        self.close(cx, index);
        let wanted = self.servers.len().max(MIN_ATTEMPTS);
        while let Some(lookup) = self.lookups.get_mut(index as usize) {
            let next = (lookup.first + lookup.attempts).checked_rem(self.servers.len());
            let server = next.and_then(|next| self.servers.get(next)).copied();
            let Some(server) = server.filter(|_| lookup.attempts < wanted) else {
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
                return;
            };
            lookup.attempts += 1;
            lookup.server = server;
            if let Ok(socket) = lookup.send(cx) {
                self.by_socket.insert(socket, index);
                self.wheel.set(index, Some(cx.now + DATAGRAM_PATIENCE));
                return;
            }
        }
    }

    /// The resolver that was asked has answered.
    fn answered(
        &mut self,
        cx: &mut Context<'_>,
        streams: &mut Streams,
        index: u32,
        mut message: Vec<u8>,
        response: &Response,
    ) {
        let Some(lookup) = self.lookups.get_mut(index as usize) else { return };
        dns::set_id(&mut message, lookup.query.id);
        let rcode = response.flags.rcode();
        let truncated = response.flags.contains(Flags::TRUNCATED);
        if truncated && lookup.stage == Stage::Datagram {
            // To a client that already asks by stream it says nothing.
            if lookup.client.transport.is_datagram() {
                lookup.spare = Some((message, rcode));
            }
            self.close(cx, index);
            let Some(lookup) = self.lookups.get_mut(index as usize) else { return };
            match cx.edge.tcp_connect(lookup.server) {
                Ok(socket) => {
                    lookup.socket = Some(socket);
                    lookup.stage = Stage::Connecting;
                    self.by_socket.insert(socket, index);
                    self.wheel.set(index, Some(cx.now + STREAM_PATIENCE));
                }
                Err(_) => self.attempt(cx, streams, index),
            }
        } else if matches!(rcode, Rcode::ServerFailure | Rcode::Refused | Rcode::NotImplemented) {
            lookup.spare.get_or_insert((message, rcode));
            self.attempt(cx, streams, index);
        } else {
            let (guest, asked) = (lookup.client.guest(cx), &lookup.query.question.name);
            cx.policy.learn(cx.now, guest, asked, &response.answers);
            pass_on(cx, streams, &lookup.client, &lookup.query, &message, rcode);
            self.finish(cx, index);
        }
    }

    fn finish(&mut self, cx: &mut Context<'_>, index: u32) {
        self.close(cx, index);
        self.wheel.set(index, None);
        let Some(lookup) = self.lookups.try_remove(index as usize) else { return };
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

    /// Closes the socket of the attempt that is over.
    fn close(&mut self, cx: &mut Context<'_>, index: u32) {
        let lookup = self.lookups.get_mut(index as usize);
        if let Some(socket) = lookup.and_then(|lookup| lookup.socket.take()) {
            self.by_socket.remove(&socket);
            cx.edge.close(socket);
        }
    }
}

impl Lookup {
    /// Sends the question to the resolver from a new port under a new identification.
    fn send(&mut self, cx: &mut Context<'_>) -> io::Result<SocketId> {
        let any: IpAddr = match self.server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = cx.edge.udp_bind(SocketAddr::new(any, 0))?;
        self.id = cx.rng.random();
        self.stage = Stage::Datagram;
        self.strays = 0;
        dns::set_id(&mut self.message, self.id);
        if let Err(error) = cx.edge.udp_send(socket, self.server, None, &self.message) {
            cx.edge.close(socket);
            return Err(error);
        }
        self.socket = Some(socket);
        Ok(socket)
    }

    /// True if it answers what was asked in this attempt.
    fn is_answered_by(&self, response: &Response) -> bool {
        response.id == self.id && response.question.as_ref() == Some(&self.query.question)
    }

    fn receive(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        ready: Readiness,
        buffer: &mut [u8],
    ) -> Outcome {
        loop {
            match cx.edge.udp_recv(socket, buffer) {
                Ok((len, from)) => {
                    let message = buffer.get(..len).unwrap_or_default();
                    let response = Response::parse(message);
                    if let Ok(response) = response
                        && same_endpoint(from, self.server)
                        && self.is_answered_by(&response)
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
        if ready.error && cx.edge.udp_error(socket).is_some() {
            return Outcome::Failed;
        }
        Outcome::Wait
    }

    fn exchange(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        ready: Readiness,
        buffer: &mut [u8],
    ) -> Outcome {
        if self.stage == Stage::Connecting {
            if !(ready.writable || ready.error || ready.hangup) {
                return Outcome::Wait;
            }
            // A fresh socket takes a whole question at once; if it does not, something is wrong.
            let Some(framed) = framed(&self.message) else { return Outcome::Failed };
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
                    Ok(response) if self.is_answered_by(&response) => {
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
