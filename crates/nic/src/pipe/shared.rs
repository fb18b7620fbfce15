//! What the handle of a pipe, its tasks and its relays have in common: the socket's way out, the
//! subscriptions, counters, and the word that it is closing.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::heard::Heard;
use super::queue::End;
use super::serve::Clients;
use super::subscription::Hub;
use super::turn::{Out, Turns};
use super::{Limits, Message, Pipe, PipeError, Proto, Stats};
use crate::Bind;
use crate::datagrams::Datagrams;

/// How long a connection has to take its leave.
const GOODBYE: Duration = Duration::from_secs(2);
/// How much of a stream is read at once, most, bytes.
const CHUNK: usize = 64 * 1024;
/// With less room than this a new buffer is begun, bytes.
const MIN_ROOM: usize = 4 * 1024;

/// A connection, encrypted or not.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin + fmt::Debug {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + fmt::Debug> Duplex for T {}

/// A connection of either kind.
pub(super) type Connection = Box<dyn Duplex>;

/// What is said of a pipe when it is made.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) proto: Proto,
    pub(super) local: SocketAddr,
    pub(super) peer: Option<SocketAddr>,
    pub(super) bind: Bind,
    pub(super) pinned: bool,
    pub(super) limits: Limits,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) proto: Proto,
    pub(super) local: SocketAddr,
    pub(super) peer: Option<SocketAddr>,
    pub(super) bind: Bind,
    pub(super) pinned: bool,
    pub(super) limits: Limits,
    pub(super) hub: Hub,
    pub(super) out: Turns,
    pub(super) clients: Option<Clients>,
    /// Its place at the server that it is a client of.
    member: Option<Membership>,
    heard: Mutex<Heard>,
    closing: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    sent_messages: AtomicU64,
    sent_bytes: AtomicU64,
    received_messages: AtomicU64,
    received_bytes: AtomicU64,
    undelivered: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is locked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(about: About, out: Option<Out>) -> Self {
        let About { proto, local, peer, bind, pinned, limits } = about;
        Self {
            proto,
            local,
            peer,
            bind,
            pinned,
            limits,
            hub: Hub::default(),
            out: Turns::new(out),
            clients: None,
            member: None,
            heard: Mutex::new(Heard::new(peer)),
            closing: watch::Sender::new(false),
            task: Mutex::default(),
            counters: Counters::default(),
        }
    }

    /// A pipe of datagrams.
    pub(super) fn datagrams(about: About, socket: Arc<Datagrams>) -> Arc<Self> {
        Arc::new(Self::new(about, Some(Out::Datagrams(socket))))
    }

    /// A pipe on a connection, and what it reads from.
    pub(super) fn stream(
        about: About,
        connection: Connection,
        member: Option<Membership>,
    ) -> (Arc<Self>, ReadHalf<Connection>) {
        let (reader, writer) = tokio::io::split(connection);
        let shared = Self::new(about, Some(Out::Stream(writer)));
        (Arc::new(Self { member, ..shared }), reader)
    }

    /// A server of connections.
    pub(super) fn server(about: About, clients: Clients) -> Arc<Self> {
        Arc::new(Self { clients: Some(clients), ..Self::new(about, None) })
    }

    /// Runs the task that reads.
    pub(super) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        *lock(&self.task) = Some(tokio::spawn(task));
    }

    /// Waits until the pipe is to be closed.
    pub(super) async fn closing(&self) {
        // The sender is here.
        _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    pub(super) fn begin_to_close(&self) {
        self.closing.send_replace(true);
    }

    pub(super) async fn close(&self) -> Stats {
        self.begin_to_close();
        let out = self.out.next().await.out.take();
        if let Some(Out::Stream(mut writer)) = out {
            // Whoever does not listen hears no goodbye.
            _ = timeout(GOODBYE, writer.shutdown()).await;
        }
        let task = lock(&self.task).take();
        if let Some(task) = task {
            // It ends by itself, and has nothing to say.
            _ = task.await;
        }
        if let Some(clients) = &self.clients {
            clients.close().await;
        }
        self.stats()
    }

    pub(super) fn stats(&self) -> Stats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            sent_messages: of(&self.counters.sent_messages),
            sent_bytes: of(&self.counters.sent_bytes),
            received_messages: of(&self.counters.received_messages),
            received_bytes: of(&self.counters.received_bytes),
            dropped_messages: self.hub.dropped(),
            undelivered_messages: of(&self.counters.undelivered),
        }
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        self.counters.sent_messages.fetch_add(1, Ordering::Relaxed);
        self.counters.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> Result<(), PipeError> {
        let from = lock(&self.heard).place(to).unwrap_or(self.local);
        self.send_between(bytes, from, to).await
    }

    /// Sends from this of the addresses that the pipe has.
    pub(super) async fn send_between(
        &self,
        bytes: &[u8],
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<(), PipeError> {
        if let Some(clients) = &self.clients {
            let client = clients.get(to).ok_or(PipeError::NoClient(Some(to)))?;
            client.write(bytes, from, to).await?;
            self.count_sent(bytes.len());
            return Ok(());
        }
        match self.peer {
            Some(peer) if peer != to => Err(PipeError::NoClient(Some(to))),
            _ => self.write(bytes, from, to).await,
        }
    }

    pub(super) async fn reply(&self, bytes: &[u8]) -> Result<(), PipeError> {
        let last = lock(&self.heard).last();
        self.send_to(bytes, last.ok_or(PipeError::NoClient(None))?).await
    }

    async fn write(&self, bytes: &[u8], from: SocketAddr, to: SocketAddr) -> Result<(), PipeError> {
        let work = async {
            match self.out.next().await.out.as_mut() {
                None => return Err(PipeError::Closed),
                Some(Out::Stream(writer)) => {
                    writer.write_all(bytes).await.map_err(PipeError::Io)?;
                    writer.flush().await.map_err(PipeError::Io)?;
                }
                Some(Out::Datagrams(socket)) => {
                    self.send_datagram(socket, bytes, from, to).await?;
                }
            }
            self.count_sent(bytes.len());
            Ok(())
        };
        tokio::select! {
            biased;
            () = self.closing() => Err(PipeError::Closed),
            result = work => result,
        }
    }

    pub(super) fn count_undelivered(&self, datagrams: u64) {
        self.counters.undelivered.fetch_add(datagrams, Ordering::Relaxed);
    }

    pub(super) async fn finish(&self) -> Result<(), PipeError> {
        let client = match &self.clients {
            None => None,
            Some(clients) => {
                let last = lock(&self.heard).last();
                match last.and_then(|last| clients.get(last)) {
                    Some(client) => Some(client),
                    None => return Ok(()),
                }
            }
        };
        let out = client.as_ref().map_or(&self.out, |client| &client.out);
        let work = async {
            match out.next().await.out.as_mut() {
                Some(Out::Stream(writer)) => writer.shutdown().await.map_err(PipeError::Io),
                Some(Out::Datagrams(_)) | None => Ok(()),
            }
        };
        tokio::select! {
            biased;
            () = self.closing() => Ok(()),
            result = work => result,
        }
    }

    /// Gives what came in to everyone who wants it, here and at the server.
    pub(super) async fn publish(&self, message: Message) -> Result<(), PipeError> {
        self.note(&message);
        self.hub.publish(&message).await?;
        if let Some(server) = self.member.as_ref().and_then(|it| it.server.upgrade()) {
            server.note(&message);
            // Full is the server's queue, not this client's.
            if server.hub.publish(&message).await.is_err() {
                server.begin_to_close();
            }
        }
        Ok(())
    }

    fn note(&self, message: &Message) {
        self.counters.received_messages.fetch_add(1, Ordering::Relaxed);
        self.counters.received_bytes.fetch_add(message.bytes.len() as u64, Ordering::Relaxed);
        let mut heard = lock(&self.heard);
        heard.note(message);
        if self.proto == Proto::Udp && message.to != self.local {
            heard.note_place(message);
        }
    }

    /// Reads a stream until it ends or the pipe closes.
    pub(super) async fn read_stream(self: Arc<Self>, mut reader: ReadHalf<Connection>) {
        let from = self.peer.unwrap_or(self.local);
        let reading = async {
            let mut buffer = BytesMut::new();
            loop {
                // Small pieces share a buffer, so that they hold little more than they are.
                if buffer.capacity() < MIN_ROOM {
                    buffer.reserve(CHUNK);
                }
                match reader.read_buf(&mut buffer).await {
                    Ok(0) => return End::Closed,
                    Ok(_) => {}
                    Err(error) => return End::Failed(error.to_string()),
                }
                let bytes = buffer.split().freeze();
                if self.publish(Message { bytes, from, to: self.local }).await.is_err() {
                    return End::Failed("messages came faster than they were taken".to_owned());
                }
            }
        };
        self.until_closed(reading).await;
    }

    /// Reads until the end or the word to close, and tells the subscriptions.
    pub(super) async fn until_closed(&self, reading: impl Future<Output = End>) {
        let end = tokio::select! {
            biased;
            () = self.closing() => End::Closed,
            end = reading => end,
        };
        if matches!(end, End::Failed(_)) {
            self.begin_to_close();
        }
        self.hub.end(&end);
    }

    pub(super) async fn accept(&self) -> Result<Pipe, PipeError> {
        let clients = self.clients.as_ref().filter(|clients| !clients.are_kept());
        let clients = clients.ok_or(PipeError::Misuse(
            "only a TCP server that does not keep its clients has clients to accept",
        ))?;
        tokio::select! {
            biased;
            () = self.closing() => Err(PipeError::Closed),
            client = clients.next() => Ok(client),
        }
    }
}

/// A client's place at its server.
#[derive(Debug)]
pub(super) struct Membership {
    server: Weak<Shared>,
    client: SocketAddr,
    /// One of those that the server has.
    _place: OwnedSemaphorePermit,
}

impl Membership {
    pub(super) fn new(
        server: &Arc<Shared>,
        client: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { server: Arc::downgrade(server), client, _place: place }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(server) = self.server.upgrade()
            && let Some(clients) = &server.clients
        {
            clients.forget(self.client);
        }
    }
}
