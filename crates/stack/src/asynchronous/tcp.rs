//! The halves of a TCP connection.

use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};

use super::TcpStream;

/// The reading half of a borrowed [`TcpStream`].
#[derive(Debug)]
pub struct ReadHalf<'a>(pub(super) &'a TcpStream);

/// The writing half of a borrowed [`TcpStream`].
#[derive(Debug)]
pub struct WriteHalf<'a>(pub(super) &'a TcpStream);

/// The reading half of a [`TcpStream`].
#[derive(Debug)]
pub struct OwnedReadHalf(pub(super) TcpStream);

/// The writing half of a [`TcpStream`]; it ends writing when it goes.
#[derive(Debug)]
pub struct OwnedWriteHalf {
    stream: TcpStream,
    ends_writing: bool,
}

/// These halves are not of the same connection.
#[derive(Debug)]
pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tried to reunite halves that are not from the same socket")
    }
}

impl Error for ReuniteError {}

macro_rules! reads {
    ($half:ty) => {
        impl $half {
            /// Waits until there is something to read, or an end.
            ///
            /// # Errors
            /// The stack has ended.
            pub async fn readable(&self) -> io::Result<()> {
                self.stream().readable().await
            }

            /// Reads what is there.
            ///
            /// # Errors
            /// As [`TcpStream::try_read`].
            pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
                self.stream().try_read(into)
            }

            /// Reads what is there into several buffers.
            ///
            /// # Errors
            /// As [`TcpStream::try_read`].
            pub fn try_read_vectored(&self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                self.stream().try_read_vectored(parts)
            }

            /// Reads what is there to the end of a buffer.
            ///
            /// # Errors
            /// As [`TcpStream::try_read`].
            pub fn try_read_buf<B: BufMut>(&self, into: &mut B) -> io::Result<usize> {
                self.stream().try_read_buf(into)
            }

            /// Waits for something to read, and leaves it where it is.
            ///
            /// # Errors
            /// As [`TcpStream::peek`].
            pub async fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
                self.stream().peek(into).await
            }

            /// As [`peek`](Self::peek).
            ///
            /// # Errors
            /// As there.
            pub fn poll_peek(
                &mut self,
                context: &mut Context<'_>,
                into: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<usize>> {
                self.stream().poll_peek(context, into)
            }
        }

        impl AsyncRead for $half {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                into: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.stream().poll_receive(context, into, false).map_ok(drop)
            }
        }
    };
}

macro_rules! writes {
    ($half:ty) => {
        impl $half {
            /// Waits until there is room to write, or an end.
            ///
            /// # Errors
            /// The stack has ended.
            pub async fn writable(&self) -> io::Result<()> {
                self.stream().writable().await
            }

            /// Writes what has room.
            ///
            /// # Errors
            /// As [`TcpStream::try_write`].
            pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
                self.stream().try_write(bytes)
            }

            /// Writes what has room, of several buffers.
            ///
            /// # Errors
            /// As [`TcpStream::try_write`].
            pub fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
                self.stream().try_write_vectored(parts)
            }
        }

        impl AsyncWrite for $half {
            fn poll_write(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.stream().poll_send(context, &[IoSlice::new(bytes)])
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                parts: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.stream().poll_send(context, parts)
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(self.stream().end_writing())
            }
        }
    };
}

macro_rules! named {
    ($half:ty) => {
        impl $half {
            /// This end's address.
            ///
            /// # Errors
            /// The stack has ended.
            pub fn local_addr(&self) -> io::Result<SocketAddr> {
                self.stream().local_addr()
            }

            /// The other end's address.
            ///
            /// # Errors
            /// `NotConnected`.
            pub fn peer_addr(&self) -> io::Result<SocketAddr> {
                self.stream().peer_addr()
            }

            /// Waits until one of these is possible.
            ///
            /// # Errors
            /// The stack has ended.
            pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
                self.stream().ready(interest).await
            }
        }

        impl AsRef<TcpStream> for $half {
            fn as_ref(&self) -> &TcpStream {
                self.stream()
            }
        }
    };
}

named!(ReadHalf<'_>);
named!(WriteHalf<'_>);
named!(OwnedReadHalf);
named!(OwnedWriteHalf);
reads!(ReadHalf<'_>);
reads!(OwnedReadHalf);
writes!(WriteHalf<'_>);
writes!(OwnedWriteHalf);

impl ReadHalf<'_> {
    fn stream(&self) -> &TcpStream {
        self.0
    }
}

impl WriteHalf<'_> {
    fn stream(&self) -> &TcpStream {
        self.0
    }
}

impl OwnedReadHalf {
    fn stream(&self) -> &TcpStream {
        &self.0
    }

    /// The connection, of both halves.
    ///
    /// # Errors
    /// They are not of the same connection; both come back.
    pub fn reunite(self, writer: OwnedWriteHalf) -> Result<TcpStream, ReuniteError> {
        reunite(self, writer)
    }
}

impl OwnedWriteHalf {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, ends_writing: true }
    }

    fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The connection, of both halves.
    ///
    /// # Errors
    /// They are not of the same connection; both come back.
    pub fn reunite(self, reader: OwnedReadHalf) -> Result<TcpStream, ReuniteError> {
        reunite(reader, self)
    }

    /// Goes without ending writing.
    pub fn forget(mut self) {
        self.ends_writing = false;
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        if self.ends_writing {
            // It may be over already.
            let _ = self.stream.end_writing();
        }
    }
}

fn reunite(reader: OwnedReadHalf, writer: OwnedWriteHalf) -> Result<TcpStream, ReuniteError> {
    if !reader.0.is_shared_with(&writer.stream) {
        return Err(ReuniteError(reader, writer));
    }
    writer.forget();
    Ok(reader.0)
}
