//! What can go wrong with a pipe.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::bind::BindError;
use crate::error::NicError;
use crate::resolve::DnsError;

/// What went wrong with a pipe. Its text says what was wanted and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipeError {
    /// The name of the other end could not be had.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// There is no socket as it is wanted.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The card, or the kernel's choice of one, could not be had.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// The other end does not take the connection, or there is no way to it.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// The other end.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// It did not happen in time.
    #[error("{what} took longer than {}.{} s", .after.as_secs(), .after.subsec_millis() / 100)]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The pipe is closed.
    #[error("the pipe is closed")]
    Closed,
    /// The datagram is longer than UDP takes.
    #[error("a datagram to there has at most {most} bytes, this one has {len}")]
    TooLarge {
        /// Its length, bytes.
        len: usize,
        /// The longest that the family carries, bytes.
        most: usize,
    },
    /// The other end does not prove who it is, or there is no TLS over UDP.
    #[error("no TLS with {with}: {reason}")]
    Tls {
        /// The other end.
        with: String,
        /// What is wrong.
        reason: String,
    },
    /// A server has many clients; this one is none of them, or none was named and none was heard.
    #[error("{}", match .0 { Some(to) => format!("{to} is no client of this server"), None => "no client has been heard yet; name one".to_owned() })]
    NoClient(Option<SocketAddr>),
    /// What was asked for is not how this pipe works.
    #[error("{0}")]
    Misuse(&'static str),
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(io::Error),
}

impl From<PipeError> for io::Error {
    fn from(error: PipeError) -> Self {
        match error {
            PipeError::Io(error) => error,
            PipeError::Connect { source, .. } => source,
            PipeError::Closed => io::ErrorKind::BrokenPipe.into(),
            PipeError::Timeout { .. } => Self::new(io::ErrorKind::TimedOut, error),
            PipeError::TooLarge { .. } | PipeError::Misuse(_) => {
                Self::new(io::ErrorKind::InvalidInput, error)
            }
            other => Self::other(other),
        }
    }
}
