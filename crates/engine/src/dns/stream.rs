//! Queries over TCP (RFC 7766): messages in a stream, each behind its length (RFC 1035 section
//! 4.2.2).
//!
//! The `tcp` module speaks TCP with the guest; a stream here is the other end of that connection's
//! pair, and there are as many as it lets in. The receive queue is the only buffer of what comes
//! in: a query is peeked, and taken off the queue when it is whole. Queries of one stream are
//! answered as their answers come, in any order (RFC 7766 section 7). One that has too many
//! under way, or does not read its answers, is not read until that changes.
//!
//! A stream ends when the client has finished and has all its answers, when nothing has moved for
//! [`IDLE`], or when it carries what cannot be a query. Events only mark streams; `Dns::flush`
//! serves those that are marked.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use netyard_wire::dns::framed;
use slab::Slab;

use super::{Client, MAX_QUERY};
use crate::context::Context;
use crate::edge::{PlugId, Readiness, SocketId};
use crate::wheel::Wheel;

/// How long a stream may be still. RFC 7766 section 6.2.3: a few seconds.
const IDLE: Duration = Duration::from_secs(10);
/// Queries of one stream that are under way.
const MAX_WAITING: usize = 32;
/// Bytes of answers that wait behind a full socket, of one stream: four of the longest.
const MAX_UNSENT: usize = 256 * 1024;

/// What the front of a receive queue holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Front<'a> {
    /// A whole message, without its length.
    Whole(&'a [u8]),
    /// The beginning of one.
    Part,
    /// One that is longer than it may be.
    TooLong,
}

/// Looks at the first message of `bytes`, which may be `limit` bytes long.
pub(super) fn front(bytes: &[u8], limit: usize) -> Front<'_> {
    let Some((len, rest)) = bytes.split_first_chunk() else { return Front::Part };
    let len = usize::from(u16::from_be_bytes(*len));
    if len > limit {
        return Front::TooLong;
    }
    rest.get(..len).map_or(Front::Part, Front::Whole)
}

/// All streams.
#[derive(Debug)]
pub(super) struct Streams {
    streams: Slab<Stream>,
    by_socket: HashMap<SocketId, u32>,
    /// Streams with something to do.
    marked: Vec<SocketId>,
    wheel: Wheel,
    /// Where queries are peeked.
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Stream {
    client: Client,
    socket: SocketId,
    /// There may be more to read.
    readable: bool,
    /// Nothing comes after what is in the queue.
    read_closed: bool,
    /// Everything was read.
    finished: bool,
    /// Queries that were taken and not answered.
    waiting: usize,
    /// Answers that the socket has not taken.
    unsent: Vec<u8>,
    /// When it has been still for too long.
    idle_at: Instant,
    /// It ends, whatever is left to say.
    broken: bool,
    /// Already on the list of streams with something to do.
    marked: bool,
}

impl Streams {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            streams: Slab::new(),
            by_socket: HashMap::new(),
            marked: Vec::new(),
            wheel: Wheel::new(now),
            buffer: vec![0; 2 + MAX_QUERY],
        }
    }

    /// Takes over `socket`, on which `client` asks.
    pub(super) fn open(&mut self, cx: &Context<'_>, client: Client, socket: SocketId) {
        let idle_at = cx.now + IDLE;
        let index = self.streams.insert(Stream {
            client,
            socket,
            readable: true,
            read_closed: false,
            finished: false,
            waiting: 0,
            unsent: Vec::new(),
            idle_at,
            broken: false,
            marked: false,
        });
        let Ok(index) = u32::try_from(index) else { return };
        self.by_socket.insert(socket, index);
        self.wheel.set(index, Some(idle_at));
    }

    pub(super) fn owns(&self, socket: SocketId) -> bool {
        self.by_socket.contains_key(&socket)
    }

    pub(super) fn handle_socket(&mut self, socket: SocketId, ready: Readiness) {
        let Some(stream) = self.get_mut(socket) else { return };
        stream.readable |= ready.readable || ready.read_closed;
        stream.read_closed |= ready.read_closed;
        // Nobody is there to be answered (RFC 7766 section 6.2.4).
        stream.broken |= ready.hangup || ready.error;
        self.mark(socket);
    }

    /// How many streams a client has, and how many there are in all.
    pub(super) fn count(&self, plug: Option<PlugId>) -> (usize, usize) {
        let own = self.streams.iter().filter(|(_, stream)| stream.client.plug == plug).count();
        (own, self.streams.len())
    }

    pub(super) fn handle_timeout(&mut self, cx: &Context<'_>) {
        let mut expired = Vec::new();
        self.wheel.expire(cx.now, &mut expired);
        for index in expired {
            let Some(stream) = self.streams.get_mut(index as usize) else { continue };
            if stream.waiting > 0 && stream.unsent.is_empty() {
                // It is not the client that is slow, and a lookup ends by itself.
                stream.idle_at = cx.now + IDLE;
            }
            if stream.idle_at > cx.now {
                self.wheel.set(index, Some(stream.idle_at));
            } else {
                stream.broken = true;
                let socket = stream.socket;
                self.mark(socket);
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// The streams with something to do. Each is to be asked for queries, then settled.
    pub(super) fn take_marked(&mut self) -> Vec<SocketId> {
        std::mem::take(&mut self.marked)
    }

    /// True if [`Streams::take_marked`] has any.
    pub(super) fn any_marked(&self) -> bool {
        !self.marked.is_empty()
    }

    /// The next query of a stream, and whose it is. It gets one answer, or [`Streams::end`].
    pub(super) fn poll_query(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
    ) -> Option<(Client, Vec<u8>)> {
        let index = self.by_socket.get(&socket)?;
        let stream = self.streams.get_mut(*index as usize)?;
        stream.send(cx);
        let query = stream.receive(cx, &mut self.buffer)?;
        Some((stream.client, query))
    }

    /// Sends the answer to a query. A stream that has ended in the meantime gets none.
    pub(super) fn answer(&mut self, cx: &mut Context<'_>, socket: SocketId, message: &[u8]) {
        let Some(stream) = self.get_mut(socket) else { return };
        let Some(framed) = framed(message) else { return self.end(socket) };
        stream.waiting = stream.waiting.saturating_sub(1);
        if stream.unsent.len() + framed.len() > MAX_UNSENT {
            cx.counters.drop("dns-answers-unread");
            return self.end(socket);
        }
        stream.unsent.extend(framed);
        stream.send(cx);
        self.mark(socket);
    }

    /// Ends a stream that cannot be understood.
    pub(super) fn end(&mut self, socket: SocketId) {
        if let Some(stream) = self.get_mut(socket) {
            stream.broken = true;
            self.mark(socket);
        }
    }

    /// A marked stream was served. True if that was the end of it, and it was closed.
    pub(super) fn settle(&mut self, cx: &mut Context<'_>, socket: SocketId) -> bool {
        let Some(stream) = self.get_mut(socket) else { return false };
        stream.marked = false;
        if stream.is_over() {
            self.close(cx, socket);
            return true;
        }
        if stream.wants_query() {
            self.mark(socket);
        }
        false
    }

    pub(super) fn remove_guest(&mut self, cx: &mut Context<'_>, plug: PlugId) {
        let of_plug: Vec<SocketId> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.client.plug == Some(plug))
            .map(|(_, stream)| stream.socket)
            .collect();
        for socket in of_plug {
            self.close(cx, socket);
        }
    }

    fn close(&mut self, cx: &mut Context<'_>, socket: SocketId) {
        let Some(index) = self.by_socket.remove(&socket) else { return };
        self.wheel.set(index, None);
        self.streams.try_remove(index as usize);
        cx.edge.close(socket);
    }

    fn get_mut(&mut self, socket: SocketId) -> Option<&mut Stream> {
        self.streams.get_mut(*self.by_socket.get(&socket)? as usize)
    }

    fn mark(&mut self, socket: SocketId) {
        if let Some(stream) = self.get_mut(socket)
            && !stream.marked
        {
            stream.marked = true;
            self.marked.push(socket);
        }
    }
}

impl Stream {
    /// True if it is to be read.
    fn wants_query(&self) -> bool {
        self.readable && !self.broken && self.waiting < MAX_WAITING && self.unsent.is_empty()
    }

    /// True if nothing is left to do.
    fn is_over(&self) -> bool {
        self.broken || (self.finished && self.waiting == 0 && self.unsent.is_empty())
    }

    /// Hands over what the socket takes of the answers.
    fn send(&mut self, cx: &mut Context<'_>) {
        while !self.unsent.is_empty() && !self.broken {
            match cx.edge.send(self.socket, &self.unsent) {
                Ok(sent) => {
                    self.unsent.drain(..sent);
                    self.idle_at = cx.now + IDLE;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.broken = true,
            }
        }
    }

    /// Takes the next query off the receive queue, if it is whole.
    fn receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Option<Vec<u8>> {
        if !self.wants_query() {
            return None;
        }
        let bytes = match cx.edge.peek(self.socket, 0, buffer) {
            Ok(len) => buffer.get(..len).unwrap_or_default(),
            Err(error) => {
                self.readable = false;
                self.broken = error.kind() != io::ErrorKind::WouldBlock;
                return None;
            }
        };
        let (query, taken) = match front(bytes, MAX_QUERY) {
            Front::Whole(message) => (Some(message.to_vec()), 2 + message.len()),
            // The queue is shorter than the buffer, so this is all there will be.
            Front::Part if bytes.is_empty() || self.read_closed => {
                if !bytes.is_empty() {
                    cx.counters.drop("dns-cut-query");
                }
                self.finished = true;
                self.readable = false;
                (None, bytes.len())
            }
            Front::Part => {
                self.readable = false;
                (None, 0)
            }
            Front::TooLong => {
                cx.counters.drop("dns-oversize-query");
                self.broken = true;
                (None, 0)
            }
        };
        if taken > 0 && cx.edge.discard(self.socket, taken).is_err() {
            self.broken = true;
            return None;
        }
        if query.is_some() {
            self.waiting += 1;
            self.idle_at = cx.now + IDLE;
        }
        query
    }
}
