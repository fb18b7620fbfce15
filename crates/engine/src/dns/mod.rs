//! The gateway's DNS server: answers for the network's own names, everything else is forwarded to
//! the host's resolvers.
//!
//! [`Zone`] knows the names of guests and services and the network's own records and is asked first, then
//! those of remote machines ([`crate::remote`]). What is in none goes
//! to [`Upstream`], which asks the host's resolvers, or those that the network names for a domain, over UDP and
//! where an answer was truncated over TCP, and keeps their answers for a while.
//!
//! Guests ask by datagram or, as a truncated answer tells them to (RFC 7766 section 5), by stream
//! ([`Streams`]); the question is treated alike.

mod cache;
mod records;
mod stream;
mod upstream;
mod zone;

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netyard_wire::MacAddr;
use netyard_wire::dns::{self, Flags, Hosts as _, Query, Rcode, Response, Zone};

use self::records::Records;
use self::stream::Streams;
use self::upstream::Upstream;
use self::zone::Members;
use crate::config::{Config, Uplink};
use crate::context::Context;
use crate::control::DnsState;
use crate::edge::{PlugId, Readiness, SocketId};
use crate::guests::Guests;
use crate::service::Services;

/// The port of DNS.
pub(crate) const PORT: u16 = 53;

/// The longest query that is looked at, bytes. Honest ones are a tenth of that.
const MAX_QUERY: usize = 4096;

/// Queries taken from one stream before others get their turn.
const BURST: usize = 32;

/// How a query came, and how its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// In a frame of who has this hardware address.
    Frame(PlugId, MacAddr),
    /// In a datagram, to this socket.
    Socket(SocketId),
    /// In a stream; this is our end of it.
    Stream(SocketId),
}

impl Transport {
    /// True if answers may be lost and have to be short.
    fn is_datagram(self) -> bool {
        !matches!(self, Self::Stream(_))
    }
}

/// Where a query came from, and where its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client {
    /// The guest's plug; `None` for somebody on the segment who is no guest (bridge mode).
    pub(crate) plug: Option<PlugId>,
    /// Address and port that it asked from.
    pub(crate) source: SocketAddr,
    /// The gateway's address that it asked.
    pub(crate) destination: SocketAddr,
    /// How it asked.
    pub(crate) transport: Transport,
}

impl Client {
    /// The address that the guest has of the network; of somebody else, that from which they ask.
    fn guest(&self, cx: &Context<'_>) -> IpAddr {
        let guest = self.plug.and_then(|plug| cx.guests.by_plug(plug));
        guest.map_or(self.source.ip(), |guest| guest.address4.into())
    }
}

/// The gateway's DNS server.
#[derive(Debug)]
pub(crate) struct Dns {
    zone: Zone,
    records: Records,
    upstream: Upstream,
    streams: Streams,
}

impl Dns {
    /// A server for the zone of `config`, without resolvers to forward to.
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        Self {
            zone: zone::zone(config),
            records: Records::new(config),
            upstream: Upstream::new(&config.dns, now),
            streams: Streams::new(now),
        }
    }

    /// Replaces the host's resolvers, in the order in which they are to be asked.
    pub(crate) fn set_upstreams(&mut self, servers: Vec<SocketAddr>) {
        self.upstream.set_servers(servers);
    }

    /// Forgets what resolvers have answered: elsewhere they may know other answers.
    pub(crate) fn forget(&mut self) {
        self.upstream.forget();
    }

    /// How many connections `client` has, and how many there are in all.
    pub(crate) fn connections(&self, client: Option<PlugId>) -> (usize, usize) {
        self.streams.count(client)
    }

    /// Takes over a connection to the gateway's port 53.
    pub(crate) fn open(&mut self, cx: &Context<'_>, client: Client) {
        if let Transport::Stream(socket) = client.transport {
            self.streams.open(cx, client, socket);
        }
    }

    /// Handles a message to the gateway's port 53.
    pub(crate) fn handle_query(
        &mut self,
        cx: &mut Context<'_>,
        services: &Services,
        client: Client,
        message: &[u8],
    ) {
        let query = match Query::parse(message) {
            Ok(query) if message.len() <= MAX_QUERY => query,
            _ => {
                match (dns::format_error(message), client.transport) {
                    (Some(answer), _) => send(cx, &mut self.streams, &client, &answer),
                    (None, transport) => {
                        cx.counters.drop("dns-not-a-query");
                        if let Transport::Stream(socket) = transport {
                            self.streams.end(socket);
                        }
                    }
                }
                return;
            }
        };
        let members =
            Members { config: cx.config, guests: cx.guests, services, records: &self.records };
        let answer = if query.flags.opcode() != 0 {
            Response::to(&query, Rcode::NotImplemented)
        } else if let Some(answer) = self.zone.answer(&query, &members) {
            // Rules about a name are about what a record of the network says of it, too.
            if self.records.has(&query.question.name) {
                let guest = client.guest(cx);
                cx.policy.learn(cx.now, guest, &query.question.name, &answer.answers);
            }
            answer
        } else if let Some(answer) = cx.remotes.answer(&query) {
            answer
        } else if cx.config.uplink == Uplink::None {
            Response::to(&query, Rcode::Refused)
        } else if !cx.policy.lets_ask(client.guest(cx), &query.question.name) {
            cx.counters.drop("dns-policy");
            Response::to(&query, Rcode::Refused)
        } else {
            self.upstream.ask(cx, &mut self.streams, client, query, message);
            return;
        };
        reply(cx, &mut self.streams, &client, &query, &answer);
    }

    /// True for the sockets of this server.
    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.upstream.owns(socket) || self.streams.owns(socket)
    }

    /// Handles readiness of one of its sockets. Call [`Dns::flush`] after.
    pub(crate) fn handle_socket(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        ready: Readiness,
    ) {
        if self.streams.owns(socket) {
            self.streams.handle_socket(socket, ready);
        } else {
            self.upstream.handle_socket(cx, &mut self.streams, socket, ready);
        }
    }

    /// Gives up resolvers that are silent, and streams. Call [`Dns::flush`] after.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        self.upstream.handle_timeout(cx, &mut self.streams);
        self.streams.handle_timeout(cx);
    }

    /// When [`Dns::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.upstream.poll_timeout(), self.streams.poll_timeout()].into_iter().flatten().min()
    }

    /// Serves the streams on which something has happened. True if there is more to do at once.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>, services: &Services) -> bool {
        for socket in self.streams.take_marked() {
            for _ in 0..BURST {
                let Some((client, message)) = self.streams.poll_query(cx, socket) else { break };
                self.handle_query(cx, services, client, &message);
            }
            if self.streams.settle(cx, socket) {
                self.upstream.abandon(cx, |client| client.transport == Transport::Stream(socket));
            }
        }
        self.streams.any_marked()
    }

    /// What the network's zone calls an address, with the zone's name.
    pub(crate) fn name_of(
        &self,
        config: &Config,
        guests: &Guests,
        services: &Services,
        address: IpAddr,
    ) -> Option<String> {
        let host = Members { config, guests, services, records: &self.records }.host(address)?;
        Some(format!("{host}.{}", config.zone))
    }

    /// What `inspect` shows; `None`: nothing is kept.
    pub(crate) fn state(&self) -> Option<DnsState> {
        self.upstream.state()
    }

    /// A guest was unplugged: nobody waits for its answers.
    pub(crate) fn remove_guest(&mut self, cx: &mut Context<'_>, plug: PlugId) {
        self.upstream.abandon(cx, |client| client.plug == Some(plug));
        self.streams.remove_guest(cx, plug);
    }
}

/// The longest message that `client` takes, bytes. In a datagram: what it announced, and what goes
/// in one packet, for datagrams are not fragmented here. In a stream: what its length can say.
fn limit(cx: &Context<'_>, client: &Client, query: &Query) -> usize {
    if !client.transport.is_datagram() {
        return usize::from(u16::MAX);
    }
    let headers = match client.source.ip() {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    };
    query.udp_size().min(usize::from(cx.config.mtu).saturating_sub(headers))
}

/// Sends an answer of our own.
fn reply(
    cx: &mut Context<'_>,
    streams: &mut Streams,
    client: &Client,
    query: &Query,
    answer: &Response,
) {
    let message = answer.emit(limit(cx, client, query));
    send(cx, streams, client, &message);
}

/// Sends the answer of a resolver; cut if it is too long for the client (RFC 2181 section 9).
fn pass_on(
    cx: &mut Context<'_>,
    streams: &mut Streams,
    client: &Client,
    query: &Query,
    message: &[u8],
    rcode: Rcode,
) {
    if message.len() <= limit(cx, client, query) {
        send(cx, streams, client, message);
    } else {
        let mut cut = Response::to(query, rcode);
        cut.flags = cut.flags | Flags::TRUNCATED;
        reply(cx, streams, client, query, &cut);
    }
}

fn send(cx: &mut Context<'_>, streams: &mut Streams, client: &Client, message: &[u8]) {
    match client.transport {
        Transport::Frame(plug, mac) => {
            cx.send_udp(plug, mac, client.destination, client.source, message);
        }
        Transport::Socket(socket) => {
            // As good as lost on the way if it cannot be sent: the client asks again.
            if cx.edge.udp_send(socket, client.source, None, message).is_err() {
                cx.counters.drop("dns-answer-unsent");
            }
        }
        Transport::Stream(socket) => streams.answer(cx, socket, message),
    }
}

#[cfg(test)]
mod tests;
