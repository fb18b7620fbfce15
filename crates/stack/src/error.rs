//! What a call on a socket can come to.

use std::io;

/// Why a call on a socket failed. Each is an error number of Linux, so that a program on this stack
/// sees what it would see on the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing to read, no room to write, nobody to accept (EAGAIN).
    #[error("nothing to be had at once; wait for the socket's event")]
    WouldBlock,
    /// The socket is not there any more (EBADF).
    #[error("no such socket")]
    BadSocket,
    /// An address names an interface that is not there (ENODEV).
    #[error(
        "no such interface: a scope id is its number, from 1 in the order of the configuration"
    )]
    NoDevice,
    /// An argument makes no sense, or an address of one link does not say of which (EINVAL).
    #[error("invalid argument")]
    InvalidInput,
    /// The other end reads no more, or this one has said that it writes no more (EPIPE).
    #[error("broken pipe")]
    BrokenPipe,
    /// To a broadcast address, of a socket that does not broadcast (EACCES).
    #[error("permission denied: the socket is not set to broadcast")]
    PermissionDenied,
    /// A datagram without an address, of a socket without a peer (EDESTADDRREQ).
    #[error("destination address required")]
    DestinationRequired,
    /// The datagram is longer than the path or the protocol takes (EMSGSIZE).
    #[error("message too long")]
    MessageTooLong,
    /// Another socket has the port (EADDRINUSE).
    #[error("address in use")]
    AddressInUse,
    /// No interface has the address, or no port is free (EADDRNOTAVAIL).
    #[error("address not available: no interface of this stack has it, or its ports are used up")]
    AddressNotAvailable,
    /// No route leads there (ENETUNREACH).
    #[error("network unreachable: no route of this stack leads there")]
    NetworkUnreachable,
    /// The host, or the next hop to it, does not answer (EHOSTUNREACH).
    #[error("host unreachable")]
    HostUnreachable,
    /// Nobody listens there (ECONNREFUSED).
    #[error("connection refused")]
    ConnectionRefused,
    /// The other end ended the connection without a FIN (ECONNRESET).
    #[error("connection reset by peer")]
    ConnectionReset,
    /// This end gave the connection up (ECONNABORTED).
    #[error("connection aborted")]
    ConnectionAborted,
    /// The other end was silent for too long (ETIMEDOUT).
    #[error("timed out")]
    TimedOut,
    /// The socket has no other end (ENOTCONN).
    #[error("not connected")]
    NotConnected,
    /// The other end does not speak the protocol (ENOPROTOOPT).
    #[error("protocol not available")]
    ProtocolUnreachable,
    /// A table or queue is full (ENOBUFS).
    #[error("no buffer space available")]
    NoBuffers,
}

impl Error {
    /// The error number, as Linux has it on every architecture but MIPS, SPARC and PA-RISC.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::BadSocket => 9,
            Self::WouldBlock => 11,
            Self::PermissionDenied => 13,
            Self::NoDevice => 19,
            Self::InvalidInput => 22,
            Self::BrokenPipe => 32,
            Self::DestinationRequired => 89,
            Self::MessageTooLong => 90,
            Self::ProtocolUnreachable => 92,
            Self::AddressInUse => 98,
            Self::AddressNotAvailable => 99,
            Self::NetworkUnreachable => 101,
            Self::ConnectionAborted => 103,
            Self::ConnectionReset => 104,
            Self::NoBuffers => 105,
            Self::NotConnected => 107,
            Self::TimedOut => 110,
            Self::ConnectionRefused => 111,
            Self::HostUnreachable => 113,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::from_raw_os_error(error.errno())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_see_the_kinds_that_the_kernel_would_give_them() {
        for (error, kind) in [
            (Error::WouldBlock, io::ErrorKind::WouldBlock),
            (Error::ConnectionRefused, io::ErrorKind::ConnectionRefused),
            (Error::ConnectionReset, io::ErrorKind::ConnectionReset),
            (Error::ConnectionAborted, io::ErrorKind::ConnectionAborted),
            (Error::BrokenPipe, io::ErrorKind::BrokenPipe),
            (Error::TimedOut, io::ErrorKind::TimedOut),
            (Error::AddressInUse, io::ErrorKind::AddrInUse),
            (Error::AddressNotAvailable, io::ErrorKind::AddrNotAvailable),
            (Error::NetworkUnreachable, io::ErrorKind::NetworkUnreachable),
            (Error::HostUnreachable, io::ErrorKind::HostUnreachable),
            (Error::NotConnected, io::ErrorKind::NotConnected),
            (Error::InvalidInput, io::ErrorKind::InvalidInput),
            (Error::PermissionDenied, io::ErrorKind::PermissionDenied),
        ] {
            assert_eq!(io::Error::from(error).kind(), kind, "{error}");
        }
    }
}
