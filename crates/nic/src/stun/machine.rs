//! Conversations over several sockets, without sockets.
//!
//! # Theory of operation
//!
//! A test of a NAT is a story: ask from a fresh socket, wait, ask again, and do a second thing in the
//! meantime. It is written as one, as an `async` function over a [`Line`]. A [`Machine`] is what
//! runs it, and has the shape of every core here: `handle_*` for what comes in, `poll_*` for what is
//! to be done. It knows no runtime. Time, bytes, and the seed of its randomness are handed in, so that
//! the same story runs on real sockets and in virtual time.
//!
//! Whatever is handled, the whole story is polled once; every place in it that waits looks whether what
//! it waits for is there, and says until when it would wait. There are a few dozen such places at most.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::message::{MAX_LEN, TransactionId};

/// Datagrams that wait for one socket, most. The oldest goes: it answers a question long given up.
const INBOX: usize = 64;

/// A socket of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(usize);

/// Which local port a socket should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Any one that was not used before.
    Any,
    /// This one.
    Exact(u16),
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a socket, and tell with [`Machine::handle_opened`].
    Open {
        /// What it will be called.
        socket: SocketId,
        /// Its local port.
        port: Port,
    },
    /// Send a datagram.
    Send {
        /// From which socket.
        socket: SocketId,
        /// Where to.
        to: SocketAddr,
        /// Its payload.
        bytes: Vec<u8>,
    },
    /// Close a socket.
    Close(SocketId),
}

#[derive(Debug)]
enum Opening {
    Asked,
    Opened(Result<SocketAddr, io::ErrorKind>),
    Closed,
}

/// A datagram that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// When.
    pub at: Instant,
    /// Where from.
    pub from: SocketAddr,
    /// Its payload.
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
struct Slot {
    opening: Opening,
    inbox: VecDeque<Datagram>,
    /// The last datagram that could not be sent: where to, and why.
    unsent: Option<(SocketAddr, io::ErrorKind)>,
}

#[derive(Debug)]
struct State {
    now: Instant,
    rng: StdRng,
    sockets: Vec<Slot>,
    actions: VecDeque<Action>,
    /// The earliest time at which some place of the story would go on by itself.
    wake: Option<Instant>,
}

/// A story's end of the machine.
#[derive(Clone, Debug)]
pub struct Line(Arc<Mutex<State>>);

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.state().now
    }

    /// An id for a transaction, which nobody can guess.
    pub fn id(&self, classic: bool) -> TransactionId {
        let mut random = [0; 16];
        self.state().rng.fill_bytes(&mut random);
        if classic {
            return TransactionId::classic(random);
        }
        let [.., a, b, c, d, e, f, g, h, i, j, k, l] = random;
        TransactionId::modern([a, b, c, d, e, f, g, h, i, j, k, l])
    }

    /// A random port between `first` and `last`, both included.
    pub fn port(&self, first: u16, last: u16) -> u16 {
        self.state().rng.random_range(first..=last.max(first))
    }

    /// Opens a socket.
    ///
    /// # Errors
    /// What the system said.
    pub async fn open(&self, port: Port) -> Result<Socket, io::ErrorKind> {
        let id = {
            let mut state = self.state();
            let id = SocketId(state.sockets.len());
            state.sockets.push(Slot {
                opening: Opening::Asked,
                inbox: VecDeque::new(),
                unsent: None,
            });
            state.actions.push_back(Action::Open { socket: id, port });
            id
        };
        let mut socket = Socket { line: self.clone(), id, local: ([0, 0, 0, 0], 0).into() };
        socket.local = std::future::poll_fn(|_| {
            match self.state().sockets.get(id.0).map(|slot| &slot.opening) {
                Some(Opening::Opened(result)) => Poll::Ready(*result),
                Some(Opening::Asked) => Poll::Pending,
                Some(Opening::Closed) | None => Poll::Ready(Err(io::ErrorKind::NotConnected)),
            }
        })
        .await?;
        Ok(socket)
    }

    /// Waits until `then`.
    pub async fn until(&self, then: Instant) {
        std::future::poll_fn(|_| if self.is_over(then) { Poll::Ready(()) } else { Poll::Pending })
            .await;
    }

    /// Waits for `time`.
    pub async fn pause(&self, time: Duration) {
        self.until(self.now() + time).await;
    }

    /// Whether it is `then` or later; if not, asks to be polled then.
    fn is_over(&self, then: Instant) -> bool {
        let mut state = self.state();
        if state.now >= then {
            return true;
        }
        state.wake = Some(state.wake.map_or(then, |wake| wake.min(then)));
        false
    }
}

/// An open socket of a story. It closes when it is dropped.
#[derive(Debug)]
pub struct Socket {
    line: Line,
    id: SocketId,
    local: SocketAddr,
}

impl Socket {
    /// Its local address.
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// What it is called where sockets are.
    pub(super) const fn id(&self) -> SocketId {
        self.id
    }

    /// The line that it belongs to.
    pub const fn line(&self) -> &Line {
        &self.line
    }

    /// Sends a datagram.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) {
        let action = Action::Send { socket: self.id, to, bytes: bytes.to_vec() };
        self.line.state().actions.push_back(action);
    }

    /// Why nothing can be sent to `to`, if the system said so.
    pub fn unsent(&self, to: SocketAddr) -> Option<io::ErrorKind> {
        let state = self.line.state();
        let (unsent, kind) = state.sockets.get(self.id.0)?.unsent?;
        (unsent == to).then_some(kind)
    }

    /// Waits for a datagram that `wanted` makes something of, until `deadline`. What it makes nothing of
    /// stays for others that wait on this socket. `wanted` must not use the line.
    pub async fn recv<T>(
        &self,
        deadline: Instant,
        mut wanted: impl FnMut(&Datagram) -> Option<T>,
    ) -> Option<T> {
        std::future::poll_fn(|_| {
            if let Some(found) = self.take(&mut wanted) {
                return Poll::Ready(Some(found));
            }
            if self.line.is_over(deadline) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    fn take<T>(&self, wanted: &mut impl FnMut(&Datagram) -> Option<T>) -> Option<T> {
        let mut state = self.line.state();
        let inbox = &mut state.sockets.get_mut(self.id.0)?.inbox;
        let (at, found) =
            inbox.iter().enumerate().find_map(|(at, datagram)| Some((at, wanted(datagram)?)))?;
        inbox.remove(at);
        Some(found)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.line.state();
        if let Some(slot) = state.sockets.get_mut(self.id.0) {
            slot.opening = Opening::Closed;
            slot.inbox = VecDeque::new();
        }
        state.actions.push_back(Action::Close(self.id));
    }
}

type Story<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Runs a story.
pub struct Machine<T> {
    line: Line,
    story: Option<Story<T>>,
    result: Option<T>,
}

impl<T> Machine<T> {
    /// A machine for a story that begins now. The seed must be secret and random where answers come
    /// from the outside.
    pub fn new<F>(seed: [u8; 32], now: Instant, story: impl FnOnce(Line) -> F) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let line = Line(Arc::new(Mutex::new(State {
            now,
            rng: StdRng::from_seed(seed),
            sockets: Vec::new(),
            actions: VecDeque::new(),
            wake: None,
        })));
        let story: Story<T> = Box::pin(story(line.clone()));
        let mut machine = Self { line, story: Some(story), result: None };
        machine.go_on(now);
        machine
    }

    fn go_on(&mut self, now: Instant) {
        {
            let mut state = self.line.state();
            state.now = state.now.max(now);
            state.wake = None;
        }
        let Some(story) = &mut self.story else { return };
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(result) = story.as_mut().poll(&mut context) {
            self.result = Some(result);
            // Drops the sockets of places that are not reached any more.
            self.story = None;
        }
    }

    /// Takes the outcome of [`Action::Open`]: the local address.
    pub fn handle_opened(
        &mut self,
        now: Instant,
        socket: SocketId,
        outcome: Result<SocketAddr, io::ErrorKind>,
    ) {
        if let Some(slot) = self.line.state().sockets.get_mut(socket.0)
            && matches!(slot.opening, Opening::Asked)
        {
            slot.opening = Opening::Opened(outcome);
        }
        self.go_on(now);
    }

    /// Takes a datagram that arrived. One that is longer than a STUN message is dropped.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        bytes: &[u8],
    ) {
        if let Some(slot) = self.line.state().sockets.get_mut(socket.0)
            && matches!(slot.opening, Opening::Opened(Ok(_)))
            && bytes.len() <= MAX_LEN
        {
            if slot.inbox.len() == INBOX {
                slot.inbox.pop_front();
            }
            slot.inbox.push_back(Datagram { at: now, from, bytes: bytes.to_vec() });
        }
        self.go_on(now);
    }

    /// Takes the news that a datagram to `to` could not be sent, and that no other could.
    pub fn handle_unsent(
        &mut self,
        now: Instant,
        socket: SocketId,
        to: SocketAddr,
        kind: io::ErrorKind,
    ) {
        if let Some(slot) = self.line.state().sockets.get_mut(socket.0) {
            slot.unsent = Some((to, kind));
        }
        self.go_on(now);
    }

    /// Goes on when [`poll_timeout`](Self::poll_timeout) is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.go_on(now);
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.line.state().actions.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.line.state().wake
    }

    /// The story's result, once, when it is over.
    pub fn poll_result(&mut self) -> Option<T> {
        self.result.take()
    }
}

impl<T> fmt::Debug for Machine<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Machine").field("line", &self.line).finish_non_exhaustive()
    }
}

/// Does two things at once.
pub async fn both<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> (A, B) {
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    let (mut a, mut b) = (None, None);
    std::future::poll_fn(|context| {
        if a.is_none()
            && let Poll::Ready(value) = first.as_mut().poll(context)
        {
            a = Some(value);
        }
        if b.is_none()
            && let Poll::Ready(value) = second.as_mut().poll(context)
        {
            b = Some(value);
        }
        match (a.take(), b.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (one, other) => {
                (a, b) = (one, other);
                Poll::Pending
            }
        }
    })
    .await
}

/// Does many things at once; results are in order.
pub async fn all<T>(stories: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut stories: Vec<_> =
        stories.into_iter().map(|story| (Some(Box::pin(story)), None)).collect();
    std::future::poll_fn(|context| {
        for (story, result) in &mut stories {
            if let Some(running) = story
                && let Poll::Ready(value) = running.as_mut().poll(context)
            {
                *result = Some(value);
                *story = None;
            }
        }
        if stories.iter().any(|(story, _)| story.is_some()) {
            return Poll::Pending;
        }
        Poll::Ready(stories.iter_mut().filter_map(|(_, result)| result.take()).collect())
    })
    .await
}
