//! Streams to clients and instances, and how they are opened.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time;

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
    pub(crate) async fn open(&self, addresses: &[SocketAddr]) -> io::Result<Stream> {
        let mut failed = io::ErrorKind::AddrNotAvailable.into();
        let until = time::Instant::now() + PATIENCE;
        for to in addresses {
            match time::timeout_at(until, self.open_one(*to)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failed = error,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Err(failed)
    }

    async fn open_one(&self, to: SocketAddr) -> io::Result<Stream> {
        match self {
            Self::Host => Ok(TcpStream::connect(to).await?.into()),
            Self::Asked(ask) => {
                let (answer, answered) = oneshot::channel();
                ask(Dial { to, within: PATIENCE, answer });
                let nobody = |_| io::Error::from(io::ErrorKind::ConnectionAborted);
                Stream::adopt(answered.await.map_err(nobody)??)
            }
        }
    }
}

/// A connected stream.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    broken: Arc<AtomicBool>,
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

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        // A stream without it is slower.
        let _ = stream.set_nodelay(true);
        Self { socket: Socket::Tcp(stream), broken: Arc::default() }
    }
}

impl Stream {
    /// Takes over a connected stream.
    pub(crate) fn adopt(stream: net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let socket = Socket::Unix(UnixStream::from_std(stream)?);
        Ok(Self { socket, broken: Arc::default() })
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
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
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
