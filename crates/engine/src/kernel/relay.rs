//! TCP connections of the host, relayed into the network.
//!
//! A *pair* is the connection of a client, which the host's kernel has accepted, and one of our own
//! to where it leads. Bytes are peeked from one receive queue, handed to the other socket, and then
//! taken off: the queues of the two sockets are the only buffers, and who does not read stops who
//! sends. A finished direction is passed on when everything before it was (half-close), and an
//! error of one connection resets the other.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use slab::Slab;

use super::Io;
use crate::edge::{Edge, PlugId, Readiness, SocketId};
use crate::wheel::Wheel;

/// Pairs at most, of one network. Each costs two descriptors.
const MAX_PAIRS: usize = 16 * 1024;
/// How long all addresses together may take to answer, as in user mode.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// How long a pair may be still. RFC 5382 section 5: two hours and four minutes at least.
const IDLE: Duration = Duration::from_secs(2 * 3_600 + 300);
/// Bytes that are moved at once, and how often one pair is served before the others.
const CHUNK: usize = 128 * 1024;
const ROUNDS: usize = 8;

/// All pairs.
#[derive(Debug)]
pub(super) struct Relays {
    pairs: Slab<Pair>,
    /// The pair, and which of its ends.
    by_socket: HashMap<SocketId, (u32, usize)>,
    /// Pairs with something to do.
    busy: VecDeque<u32>,
    wheel: Wheel,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Pair {
    /// The client's, and ours.
    ends: [End; 2],
    /// Where else to try, while ours is not open; `None` once it is.
    others: Option<VecDeque<SocketAddr>>,
    /// The guest that it leads to, if it is one.
    plug: Option<PlugId>,
    expires_at: Instant,
    busy: bool,
}

#[derive(Debug)]
struct End {
    socket: SocketId,
    readable: bool,
    writable: bool,
    /// Everything was read, and the other end was told.
    finished: bool,
}

impl End {
    fn new(socket: SocketId) -> Self {
        Self { socket, readable: false, writable: false, finished: false }
    }
}

/// What became of serving a pair.
#[derive(Debug, PartialEq, Eq)]
enum Served {
    /// It waits for its sockets.
    Waits,
    /// There is more to do at once.
    More,
    /// Both directions have finished.
    Over,
    /// An end is broken.
    Broken,
}

impl Relays {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pairs: Slab::new(),
            by_socket: HashMap::new(),
            busy: VecDeque::new(),
            wheel: Wheel::new(now),
            buffer: vec![0; CHUNK],
        }
    }

    /// How many pairs there are.
    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Joins an accepted connection to the first of `targets` that answers.
    pub(super) fn open(
        &mut self,
        io: &mut Io<'_>,
        client: SocketId,
        targets: Vec<SocketAddr>,
        plug: Option<PlugId>,
    ) {
        if self.pairs.len() >= MAX_PAIRS {
            io.counters.drop("relays-full");
            io.edge.reset(client);
            return;
        }
        let mut others = VecDeque::from(targets);
        let Some(server) = connect(io.edge, &mut others) else {
            io.counters.drop("relay-without-answer");
            io.edge.reset(client);
            return;
        };
        let expires_at = io.now + CONNECT_PATIENCE;
        let index = self.pairs.insert(Pair {
            ends: [End::new(client), End::new(server)],
            others: Some(others),
            plug,
            expires_at,
            busy: false,
        });
        let Ok(index) = u32::try_from(index) else { return };
        self.by_socket.insert(client, (index, 0));
        self.by_socket.insert(server, (index, 1));
        self.wheel.set(index, Some(expires_at));
    }

    pub(super) fn owns(&self, socket: SocketId) -> bool {
        self.by_socket.contains_key(&socket)
    }

    /// Handles readiness of one of its sockets. Call [`Relays::flush`] after.
    pub(super) fn handle_socket(&mut self, io: &mut Io<'_>, socket: SocketId, ready: Readiness) {
        let Some((index, side)) = self.by_socket.get(&socket).copied() else { return };
        let Some(pair) = self.pairs.get_mut(index as usize) else { return };
        let Some(end) = pair.ends.get_mut(side) else { return };
        // What is wrong is found out by reading and writing.
        let ended = ready.hangup || ready.error;
        end.readable |= ready.readable || ready.read_closed || ended;
        end.writable |= ready.writable || ended;
        if pair.others.is_none() {
            self.mark(index);
        } else if side == 1 && (ready.writable || ended) {
            self.connected(io, index);
        } else if ended {
            // The client does not wait any more.
            self.close(io, index, true);
        }
    }

    /// Our connection is open, or has failed.
    fn connected(&mut self, io: &mut Io<'_>, index: u32) {
        let Some(pair) = self.pairs.get_mut(index as usize) else { return };
        let [_, server] = &mut pair.ends;
        if io.edge.take_error(server.socket).is_ok() {
            pair.others = None;
            pair.expires_at = io.now + IDLE;
            // The wheel has the earlier time, and finds out.
            self.mark(index);
            return;
        }
        self.by_socket.remove(&server.socket);
        io.edge.close(server.socket);
        let next = pair.others.as_mut().and_then(|others| connect(io.edge, others));
        match next {
            Some(socket) => {
                *server = End::new(socket);
                self.by_socket.insert(socket, (index, 1));
            }
            None => {
                io.counters.drop("relay-without-answer");
                self.close(io, index, true);
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, io: &mut Io<'_>) {
        let mut expired = Vec::new();
        self.wheel.expire(io.now, &mut expired);
        for index in expired {
            let Some(pair) = self.pairs.get(index as usize) else { continue };
            if pair.expires_at > io.now {
                self.wheel.set(index, Some(pair.expires_at));
            } else {
                io.counters.drop("relay-idle");
                self.close(io, index, true);
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// Serves the pairs on which something has happened. True if there is more to do at once.
    pub(super) fn flush(&mut self, io: &mut Io<'_>) -> bool {
        for _ in 0..self.busy.len() {
            let Some(index) = self.busy.pop_front() else { break };
            let Some(pair) = self.pairs.get_mut(index as usize) else { continue };
            pair.busy = false;
            match pair.serve(io, &mut self.buffer) {
                Served::Waits => {}
                Served::More => self.mark(index),
                Served::Over => self.close(io, index, false),
                Served::Broken => self.close(io, index, true),
            }
        }
        !self.busy.is_empty()
    }

    /// Resets the pairs of a guest that was unplugged.
    pub(super) fn remove_guest(&mut self, io: &mut Io<'_>, plug: PlugId) {
        let of_guest = self.pairs.iter().filter(|(_, pair)| pair.plug == Some(plug));
        let of_guest: Vec<u32> =
            of_guest.filter_map(|(index, _)| u32::try_from(index).ok()).collect();
        for index in of_guest {
            self.close(io, index, true);
        }
    }

    fn close(&mut self, io: &mut Io<'_>, index: u32, reset: bool) {
        self.wheel.set(index, None);
        let Some(pair) = self.pairs.try_remove(index as usize) else { return };
        for end in pair.ends {
            // One whose other end could not be opened has lost its socket already.
            if self.by_socket.remove(&end.socket).is_none() {
                continue;
            }
            if reset {
                io.edge.reset(end.socket);
            } else {
                io.edge.close(end.socket);
            }
        }
    }

    fn mark(&mut self, index: u32) {
        if let Some(pair) = self.pairs.get_mut(index as usize)
            && !pair.busy
        {
            pair.busy = true;
            self.busy.push_back(index);
        }
    }
}

impl Pair {
    /// Moves what can be moved, in both directions.
    fn serve(&mut self, io: &mut Io<'_>, buffer: &mut [u8]) -> Served {
        let [client, server] = &mut self.ends;
        let mut more = false;
        for _ in 0..ROUNDS {
            let moved = [
                move_bytes(io.edge, client, server, buffer),
                move_bytes(io.edge, server, client, buffer),
            ];
            more = false;
            for moved in moved {
                match moved {
                    Ok(moved) => more |= moved,
                    Err(_) => return Served::Broken,
                }
            }
            if !more {
                break;
            }
            self.expires_at = io.now + IDLE;
        }
        if client.finished && server.finished {
            Served::Over
        } else if more {
            Served::More
        } else {
            Served::Waits
        }
    }
}

/// Moves one chunk; false if there is nothing to move now.
fn move_bytes(
    edge: &mut dyn Edge,
    from: &mut End,
    to: &mut End,
    buffer: &mut [u8],
) -> io::Result<bool> {
    if from.finished || !from.readable || !to.writable {
        return Ok(false);
    }
    let len = match edge.peek(from.socket, 0, buffer) {
        Ok(0) => {
            from.finished = true;
            edge.shutdown_write(to.socket)?;
            return Ok(true);
        }
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            from.readable = false;
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    match edge.send(to.socket, buffer.get(..len).unwrap_or_default()) {
        Ok(sent) => {
            edge.discard(from.socket, sent)?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            to.writable = false;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Starts to connect to the first address for which the kernel tries.
fn connect(edge: &mut dyn Edge, targets: &mut VecDeque<SocketAddr>) -> Option<SocketId> {
    while let Some(target) = targets.pop_front() {
        if let Ok(socket) = edge.tcp_connect(target) {
            return Some(socket);
        }
    }
    None
}
