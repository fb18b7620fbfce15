//! Pipes as streams: of bytes for those that read and write, of messages for those that iterate.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf as _;
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::turn::no_bytes;
use super::{Message, Pipe, Proto};

/// Of TCP. Takes messages from the inbox.
impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.shared.proto == Proto::Udp {
            return Poll::Ready(Err(no_bytes()));
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
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote =
            ready!(self.shared.out.poll(context, |out, context| out.poll_write(context, bytes)));
        if let Ok(count) = wrote {
            self.shared.count_sent(count);
        }
        Poll::Ready(wrote)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.out.poll(context, |out, context| out.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.out.poll(context, |out, context| out.poll_shutdown(context))
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
