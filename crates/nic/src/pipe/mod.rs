//! Pipes: TCP and UDP, client and server, IPv4 and IPv6, bound to a route and leaving by its card.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use netyard_nic::pipe::{Filter, Pipe};
//! use netyard_nic::{Interface, default_card};
//!
//! let nic = Interface::unasked(default_card()?);
//! let pipe = Pipe::tcp().via(&nic.route(None)?).connect(("example.com", 80)).await?;
//! let statuses = pipe.subscribe(Filter::all().matching("^HTTP/1")?);
//! pipe.send("GET / HTTP/1.0\r\n\r\n").await?;
//! println!("{:?}", statuses.recv(Duration::from_secs(2)).await?);
//! # Ok(()) }
//! ```
//!
//! What comes in is cut into [messages](Message): datagrams, or pieces of a stream as they come. Each goes to
//! every [`Subscription`] that wants it, and to the pipe's own inbox, which [`Pipe::recv`] takes from. Each of
//! these queues is [bounded](Limits): where nobody takes messages, those of streams make the other end wait,
//! and of datagrams the oldest are dropped and counted. An inbox that nobody reads therefore stops a stream,
//! also for the subscriptions: [`PipeBuilder::without_inbox`] leaves it out.
//!
//! A TCP server gives its clients to [`Pipe::accept`], as pipes of their own, and reads nothing of them before;
//! its subscriptions see the messages of all of them. One that is [gathered](PipeBuilder::gathered) keeps its clients, and acts as a UDP
//! server does: their messages come to its inbox, and [`Pipe::send_to`] answers them.

mod datagrams;
mod error;
mod heard;
mod open;
mod queue;
mod relay;
mod serve;
mod shared;
mod stream;
mod subscription;
mod turn;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use datagrams::max_datagram;
pub use error::PipeError;
pub use open::{ClientTls, PipeBuilder, PipeOptions, Target};
pub use queue::{Limits, Policy};
pub use relay::{Relay, RelayStats, relay};
pub use subscription::{Filter, Subscription};

use self::shared::Shared;
use crate::Bind;

/// What carries messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// A stream of bytes: messages are cut wherever the network cut them.
    Tcp,
    /// Datagrams: messages arrive whole or not at all.
    Udp,
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Reads `tcp` and `udp`.
impl FromStr for Proto {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(format!("{other:?} is neither tcp nor udp")),
        }
    }
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The bytes.
    pub bytes: Bytes,
    /// Who sent them.
    pub from: SocketAddr,
    /// The address of this machine that they were sent to. Of a server over UDP on every address, where the
    /// kernel does not say, that which stands for every one.
    pub to: SocketAddr,
}

/// What a pipe carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Messages that were sent.
    pub sent_messages: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Messages that came in.
    pub received_messages: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Messages that were thrown away because nobody took them.
    pub dropped_messages: u64,
    /// Datagrams of which somebody on the way said that they do not arrive.
    pub undelivered_messages: u64,
}

/// One end of a connection, or a server. It is closed when it is dropped; [`Pipe::close`] waits for that.
#[derive(Debug)]
pub struct Pipe {
    shared: Arc<Shared>,
    inbox: Option<Subscription>,
    /// What is left of a message that [`AsyncRead`](tokio::io::AsyncRead) has taken.
    rest: Bytes,
}

impl Pipe {
    /// A pipe over TCP, to be opened.
    #[must_use]
    pub fn tcp() -> PipeBuilder {
        PipeBuilder::new(Proto::Tcp)
    }

    /// A pipe over UDP, to be opened.
    #[must_use]
    pub fn udp() -> PipeBuilder {
        PipeBuilder::new(Proto::Udp)
    }

    fn new(shared: Arc<Shared>, inbox: Option<Subscription>) -> Self {
        Self { shared, inbox, rest: Bytes::new() }
    }

    /// What carries its messages.
    #[must_use]
    pub fn proto(&self) -> Proto {
        self.shared.proto
    }

    /// Its address here.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.shared.local
    }

    /// The other end; a server has none.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.shared.peer
    }

    /// What its socket is bound to.
    #[must_use]
    pub fn bound(&self) -> &Bind {
        &self.shared.bind
    }

    /// Whether the kernel holds it to its card.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.shared.pinned
    }

    /// What it has carried so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Sends to the other end. Of a stream all bytes have been taken by the kernel when it returns; if it is
    /// given up before, a part of them may have been.
    ///
    /// # Errors
    /// A server needs [`Pipe::send_to`]; the datagram is too large; the pipe is closed or has failed.
    pub async fn send(&self, bytes: impl AsRef<[u8]>) -> Result<(), PipeError> {
        match self.shared.peer {
            Some(peer) => self.shared.send_to(bytes.as_ref(), peer).await,
            None => Err(PipeError::NoClient(None)),
        }
    }

    /// Sends to this client of a server, or to the other end of a client. A server over UDP on every address
    /// sends from the one that the client has sent to last, if it is among the latest 4,096 that were heard.
    ///
    /// # Errors
    /// It is none; as for [`Pipe::send`].
    pub async fn send_to(&self, bytes: impl AsRef<[u8]>, to: SocketAddr) -> Result<(), PipeError> {
        self.shared.send_to(bytes.as_ref(), to).await
    }

    /// Answers a message: sends to who has sent it, from the address that it was sent to.
    ///
    /// # Errors
    /// As for [`Pipe::send_to`].
    pub async fn answer(
        &self,
        message: &Message,
        bytes: impl AsRef<[u8]>,
    ) -> Result<(), PipeError> {
        self.shared.send_between(bytes.as_ref(), message.to, message.from).await
    }

    /// Sends to the other end; a server sends to the client that it has heard last.
    ///
    /// # Errors
    /// Nobody has been heard; as for [`Pipe::send`].
    pub async fn reply(&self, bytes: impl AsRef<[u8]>) -> Result<(), PipeError> {
        self.shared.reply(bytes.as_ref()).await
    }

    /// Says that nothing more will be sent; a server says it to the client that it has heard last. What comes
    /// in still does. Of no meaning to UDP.
    ///
    /// # Errors
    /// The pipe has failed.
    pub async fn finish(&self) -> Result<(), PipeError> {
        self.shared.finish().await
    }

    /// Waits for the next message. `None`: there will be no more, as the other end is done or the pipe is
    /// closed.
    ///
    /// # Errors
    /// None came in time; the pipe has failed; it has no inbox.
    pub async fn recv(&self, within: Duration) -> Result<Option<Message>, PipeError> {
        self.inbox()?.recv(within).await
    }

    /// The same, however long it takes.
    ///
    /// # Errors
    /// As for [`Pipe::recv`].
    pub async fn next(&self) -> Result<Option<Message>, PipeError> {
        self.inbox()?.next().await
    }

    fn inbox(&self) -> Result<&Subscription, PipeError> {
        self.inbox.as_ref().ok_or(PipeError::Misuse(
            "this pipe has no inbox: it is relayed, or was opened without one; use a subscription, or accept \
             the clients of a server",
        ))
    }

    /// Messages that a filter wants, from now on, in a queue with the pipe's own limits.
    #[must_use]
    pub fn subscribe(&self, filter: Filter) -> Subscription {
        self.subscribe_within(filter, self.shared.limits)
    }

    /// The same with other limits.
    #[must_use]
    pub fn subscribe_within(&self, filter: Filter, limits: Limits) -> Subscription {
        self.shared.hub.subscribe(filter, limits)
    }

    /// The next client of a TCP server.
    ///
    /// # Errors
    /// It is none, or keeps its clients; it is closed.
    pub async fn accept(&self) -> Result<Self, PipeError> {
        self.shared.accept().await
    }

    /// Closes it: nothing more is received or sent, and when this returns its sockets are no more. Clients
    /// that were accepted stay.
    pub async fn close(self) -> Stats {
        self.shut().await
    }

    /// The same where others use it, too: those who wait for messages, or for room to send, learn that it is
    /// closed.
    pub async fn shut(&self) -> Stats {
        self.shared.close().await
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.shared.begin_to_close();
    }
}
