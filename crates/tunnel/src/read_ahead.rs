//! A connection that is read ahead while much comes, and has no room for that while little does.
//!
//! TLS takes records of up to 16 KiB, and asks for a few at a time: for a bulk flow that is a system call each.
//! A buffer below it saves most of them, but a hub of a thousand peers that say nothing would hold a thousand.
//! So what comes goes to whoever asks, as far as there is room. Where that is not enough twice in a row a buffer is
//! made, and it is given back when two reads in a row have not brought more than there would have been room for
//! without it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read at once where much comes, bytes: several TLS records.
const ROOM: usize = 128 * 1024;

/// A connection, and what was read of it and not asked for yet.
#[derive(Debug)]
pub(crate) struct ReadAhead<S> {
    stream: S,
    /// Empty while little comes.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// How many reads in a row say that the buffer should be there, or should not be.
    votes: u8,
}

/// So many votes count.
const ENOUGH: u8 = 2;

impl<S> ReadAhead<S> {
    pub(crate) const fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), begin: 0, end: 0, votes: 0 }
    }

    pub(crate) const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Counts what a read says; true if that is enough.
    const fn vote(&mut self, otherwise: bool) -> bool {
        self.votes = if otherwise { self.votes + 1 } else { 0 };
        let is_enough = self.votes >= ENOUGH;
        if is_enough {
            self.votes = 0;
        }
        is_enough
    }

    /// Hands on what was read ahead.
    fn take(&mut self, room: &mut ReadBuf<'_>) {
        let len = room.remaining().min(self.end - self.begin);
        room.put_slice(self.buffer.get(self.begin..self.begin + len).unwrap_or_default());
        self.begin += len;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.begin == this.end && this.buffer.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(context, room))?;
            if this.vote(room.remaining() == 0) {
                this.buffer.resize(ROOM, 0);
            }
            return Poll::Ready(Ok(()));
        }
        let mut is_little = false;
        if this.begin == this.end {
            let mut whole = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut whole))?;
            (this.begin, this.end) = (0, whole.filled().len());
            is_little = this.vote(this.end <= room.remaining());
        }
        this.take(room);
        if is_little {
            this.buffer = Vec::new();
            (this.begin, this.end) = (0, 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn everything_arrives_in_order_and_a_still_connection_has_no_buffer() {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let mut near = ReadAhead::new(near);
        let sent: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
        for len in [10, 20, 300_000] {
            let sent = sent.get(..len).unwrap();
            far.write_all(sent).await.unwrap();
            let (mut came, mut room) = (Vec::new(), vec![0; 16 * 1024]);
            let mut was_there = false;
            while came.len() < len {
                let count = near.read(&mut room).await.unwrap();
                came.extend_from_slice(&room[..count]);
                was_there |= near.buffer.len() == ROOM;
            }
            assert_eq!(was_there, len > 100_000, "{len}");
            assert_eq!(came, sent, "{len}");
        }
        for _ in 0..ENOUGH {
            far.write_all(&[1; 7]).await.unwrap();
            assert_eq!(near.read(&mut [0; 100]).await.unwrap(), 7);
        }
        assert!(near.buffer.is_empty(), "little has come since");
        drop(far);
        assert_eq!(near.read(&mut [0; 10]).await.unwrap(), 0);
    }
}
