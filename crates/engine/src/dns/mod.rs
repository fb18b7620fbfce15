//! The gateway's DNS server: answers for the network's own names, everything else is forwarded to
//! the host's resolvers.
//!
//! [`Zone`] knows the names of guests and services and is asked first. What is not its own goes
//! to [`Upstream`], which asks the host's resolvers in turn, over UDP and where an answer was
//! truncated over TCP. Nothing is kept: the host's resolvers have caches.

mod upstream;
mod zone;

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netyard_wire::MacAddr;
use netyard_wire::dns::{self, Flags, Query, Rcode, Response};

use self::upstream::Upstream;
use self::zone::Zone;
use crate::config::{Config, Uplink};
use crate::context::Context;
use crate::edge::{PlugId, Readiness, SocketId};
use crate::service::Services;

/// The port of DNS.
pub(crate) const PORT: u16 = 53;

/// The longest query that is looked at, bytes. Honest ones are a tenth of that.
const MAX_QUERY: usize = 4096;

/// Where a query came from, and where its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client {
    /// The guest's plug.
    pub(crate) plug: PlugId,
    /// Its hardware address.
    pub(crate) mac: MacAddr,
    /// Address and port that it asked from.
    pub(crate) source: SocketAddr,
    /// The gateway's address that it asked.
    pub(crate) destination: SocketAddr,
}

/// The gateway's DNS server.
#[derive(Debug)]
pub(crate) struct Dns {
    zone: Zone,
    upstream: Upstream,
}

impl Dns {
    /// A server for the zone of `config`, without resolvers to forward to.
    pub(crate) fn new(config: &Config, now: Instant) -> Self {
        Self { zone: Zone::new(config), upstream: Upstream::new(now) }
    }

    /// Replaces the host's resolvers, in the order in which they are to be asked.
    pub(crate) fn set_upstreams(&mut self, servers: Vec<SocketAddr>) {
        self.upstream.set_servers(servers);
    }

    /// Handles a datagram to the gateway's port 53.
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
                match dns::format_error(message) {
                    Some(answer) => send(cx, &client, &answer),
                    None => cx.counters.drop("dns-not-a-query"),
                }
                return;
            }
        };
        let answer = if query.flags.opcode() != 0 {
            Response::to(&query, Rcode::NotImplemented)
        } else if let Some(answer) = self.zone.answer(&query, cx.config, cx.guests, services) {
            answer
        } else if cx.config.uplink == Uplink::None {
            Response::to(&query, Rcode::Refused)
        } else {
            self.upstream.ask(cx, client, query, message);
            return;
        };
        reply(cx, &client, &query, &answer);
    }

    /// True for sockets that this server has opened.
    pub(crate) fn owns(&self, socket: SocketId) -> bool {
        self.upstream.owns(socket)
    }

    /// Handles readiness of one of its sockets.
    pub(crate) fn handle_socket(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        ready: Readiness,
    ) {
        self.upstream.handle_socket(cx, socket, ready);
    }

    /// Gives up resolvers that are silent.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        self.upstream.handle_timeout(cx);
    }

    /// When [`Dns::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.upstream.poll_timeout()
    }

    /// A guest was unplugged: nobody waits for its answers.
    pub(crate) fn remove_guest(&mut self, cx: &mut Context<'_>, plug: PlugId) {
        self.upstream.remove_guest(cx, plug);
    }
}

/// The longest message that `client` takes in one datagram, bytes: what it announced, and what
/// goes in one packet, for datagrams are not fragmented here.
fn limit(cx: &Context<'_>, client: &Client, query: &Query) -> usize {
    let headers = match client.source.ip() {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    };
    query.udp_size().min(usize::from(cx.config.mtu).saturating_sub(headers))
}

/// Sends an answer of our own.
fn reply(cx: &mut Context<'_>, client: &Client, query: &Query, answer: &Response) {
    let message = answer.emit(limit(cx, client, query));
    send(cx, client, &message);
}

/// Sends the answer of a resolver; cut if it is too long for the client (RFC 2181 section 9).
fn pass_on(cx: &mut Context<'_>, client: &Client, query: &Query, message: &[u8], rcode: Rcode) {
    if message.len() <= limit(cx, client, query) {
        send(cx, client, message);
    } else {
        let mut cut = Response::to(query, rcode);
        cut.flags = cut.flags | Flags::TRUNCATED;
        reply(cx, client, query, &cut);
    }
}

fn send(cx: &mut Context<'_>, client: &Client, message: &[u8]) {
    cx.send_udp(client.plug, client.mac, client.destination, client.source, message);
}

#[cfg(test)]
mod tests;
