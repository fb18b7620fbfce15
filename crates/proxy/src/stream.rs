//! Streams to clients and instances, how they are opened, and when they are given up.
//!
//! Whoever is at the other end may vanish without a word (power, a NAT that forgets), or take nothing
//! of what is sent to it. A TCP socket is watched by the kernel, which asks the other end while it is
//! quiet, and knows what it has acknowledged. The other end of a Unix stream is a network of this
//! process, which closes it when the guest's connection ends; a write that makes no progress is timed
//! here.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{self, Sleep};

use crate::PATIENCE;

/// How an instance is reached.
#[derive(Clone)]
pub enum Way {
    /// By an ordinary connection of the host.
    Host,
    /// By a connection that somebody else opens: each call asks for one. It must not block.
    Asked(Arc<dyn Fn(Dial) + Send + Sync>),
}

/// A connection that is asked for. Dropping it says that there will be none.
#[derive(Debug)]
pub struct Dial {
    /// Where to.
    pub to: SocketAddr,
    /// How long to try.
    pub within: Duration,
    answer: oneshot::Sender<io::Result<net::UnixStream>>,
}

impl Dial {
    /// Hands over one end of the connection, or says why there is none.
    pub fn answer(self, connection: io::Result<net::UnixStream>) {
        // Who asked may have gone.
        let _ = self.answer.send(connection);
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "Host",
            Self::Asked(_) => "Asked",
        })
    }
}

impl Way {
    /// Opens a connection to the first of these addresses that answers.
    pub(crate) async fn open(
        &self,
        addresses: &[SocketAddr],
        silence: Duration,
    ) -> io::Result<Stream> {
        let mut failed = io::ErrorKind::AddrNotAvailable.into();
        let until = time::Instant::now() + PATIENCE;
        for to in addresses {
            match time::timeout_at(until, self.open_one(*to, silence)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failed = error,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Err(failed)
    }

    async fn open_one(&self, to: SocketAddr, silence: Duration) -> io::Result<Stream> {
        match self {
            Self::Host => Ok(Stream::of_tcp(TcpStream::connect(to).await?, silence)),
            Self::Asked(ask) => {
                let (answer, answered) = oneshot::channel();
                ask(Dial { to, within: PATIENCE, answer });
                let nobody = |_| io::Error::from(io::ErrorKind::ConnectionAborted);
                Stream::adopt(answered.await.map_err(nobody)??, silence)
            }
        }
    }
}

/// Has the kernel end a connection whose other end does not answer for so long (`SO_KEEPALIVE`), or
/// does not acknowledge or take what was sent (`TCP_USER_TIMEOUT`, RFC 5482).
fn end_when_silent(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    // The kernel counts in seconds, and wants one at least. The timeout goes before the number of
    // questions.
    let second = Duration::from_secs(1);
    let asking = TcpKeepalive::new()
        .with_time((silence / 2).max(second))
        .with_interval((silence / 6).max(second));
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&asking)?;
    socket.set_tcp_user_timeout(Some(silence))
}

/// A connected stream.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    broken: Arc<AtomicBool>,
    /// How long the other end may take nothing.
    silence: Duration,
    /// Runs while it does, where the kernel does not see to it.
    stalled: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Says of a stream that it is broken, whoever has it.
#[derive(Debug)]
pub(crate) struct Breaker(Arc<AtomicBool>);

impl Breaker {
    /// Has the stream end with a reset when it is closed, where it can: what was sent is not to be
    /// taken for everything.
    pub(crate) fn break_off(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Stream {
    /// A TCP connection that ends if the other end is silent for so long.
    pub(crate) fn of_tcp(stream: TcpStream, silence: Duration) -> Self {
        // A stream without it is slower.
        let _ = stream.set_nodelay(true);
        if let Err(error) = end_when_silent(&stream, silence) {
            tracing::debug!(%error, "a connection is not watched");
        }
        Self::new(Socket::Tcp(stream), silence)
    }

    /// Takes over a connected stream that ends if the other end takes nothing for so long.
    pub(crate) fn adopt(stream: net::UnixStream, silence: Duration) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self::new(Socket::Unix(UnixStream::from_std(stream)?), silence))
    }

    fn new(socket: Socket, silence: Duration) -> Self {
        Self { socket, broken: Arc::default(), silence, stalled: None }
    }

    /// What came of a write, or that it takes too long.
    fn in_time(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() || matches!(self.socket, Socket::Tcp(_)) {
            self.stalled = None;
            return written;
        }
        let silence = self.silence;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(time::sleep(silence)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    pub(crate) fn breaker(&self) -> Breaker {
        Breaker(Arc::clone(&self.broken))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let (Socket::Tcp(stream), true) = (&self.socket, self.broken.load(Ordering::Relaxed)) {
            // A stream that has no linger ends without.
            let _ = stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        this.in_time(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        };
        this.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
