//! Pipes as streams: of bytes for those that read and write, of messages for those that iterate.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf as _;
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedMutexGuard;

use super::shared::Out;
use super::{Message, Pipe, PipeError, Proto};

/// A turn to send.
type Turn = OwnedMutexGuard<Option<Out>>;

/// How far a write is. The turn is kept while the kernel has no room, so that nobody else's bytes come
/// between, and given back with each result.
#[derive(Default)]
pub(super) enum Writing {
    #[default]
    Idle,
    Waiting(Pin<Box<dyn Future<Output = Turn> + Send + Sync>>),
    Turn(Turn),
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Idle => "Idle",
            Self::Waiting(_) => "Waiting",
            Self::Turn(_) => "Turn",
        })
    }
}

impl Pipe {
    /// Does something with the way out of a stream, when it is this one's turn.
    fn poll_out<T>(
        &mut self,
        context: &mut Context<'_>,
        mut act: impl FnMut(
            Pin<&mut tokio::io::WriteHalf<super::shared::Connection>>,
            &mut Context<'_>,
        ) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        loop {
            match &mut self.writing {
                Writing::Idle => {
                    self.writing = Writing::Waiting(Box::pin(self.shared.out.clone().lock_owned()));
                }
                Writing::Waiting(turn) => {
                    self.writing = Writing::Turn(ready!(turn.as_mut().poll(context)));
                }
                Writing::Turn(turn) => {
                    let result = match turn.as_mut() {
                        Some(Out::Stream(writer)) => ready!(act(Pin::new(writer), context)),
                        Some(Out::Datagrams(_)) => Err(datagrams()),
                        None => Err(PipeError::Closed.into()),
                    };
                    self.writing = Writing::Idle;
                    return Poll::Ready(result);
                }
            }
        }
    }
}

fn datagrams() -> io::Error {
    PipeError::Misuse("bytes are read and written over TCP; over UDP use messages").into()
}

/// Of TCP. Takes messages from the inbox.
impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.shared.proto == Proto::Udp {
            return Poll::Ready(Err(datagrams()));
        }
        if self.rest.is_empty() {
            let inbox = self.inbox()?;
            match ready!(inbox.poll_take(context)) {
                Some(message) => self.rest = message.bytes,
                None => {
                    return Poll::Ready(match inbox.failure() {
                        Some(reason) => Err(io::Error::other(reason)),
                        None => Ok(()),
                    });
                }
            }
        }
        let count = self.rest.len().min(into.remaining());
        into.put_slice(self.rest.get(..count).unwrap_or_default());
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// Of TCP.
impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote =
            ready!(self.poll_out(context, |writer, context| writer.poll_write(context, bytes)));
        if let Ok(count) = wrote {
            self.shared.count_sent(count);
        }
        Poll::Ready(wrote)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(context, |writer, context| writer.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(context, |writer, context| writer.poll_shutdown(context))
    }
}

/// Messages of the inbox, until there are no more. One without an inbox has none.
impl Stream for Pipe {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        match &self.inbox {
            Some(inbox) => inbox.poll_take(context),
            None => Poll::Ready(None),
        }
    }
}
