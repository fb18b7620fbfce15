//! What a program takes from tokio's network.

/// `tokio::net`, or the same names on a stack of the program's own.
///
/// As [`crate::net`], for programs that run on tokio: with the feature `stack` the sockets are those of the
/// [host of the process](crate::Host::of_process), without it tokio's own.
pub mod net {
    #[cfg(feature = "stack")]
    pub use crate::asynchronous::*;
    #[cfg(not(feature = "stack"))]
    pub use ::tokio::net::*;
    #[cfg(feature = "stack")]
    pub use ::tokio::net::{UnixDatagram, UnixListener, UnixSocket, UnixStream, unix};
}
