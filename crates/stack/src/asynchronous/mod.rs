//! Sockets of this program's own stack, with the names and manners of `tokio::net`.
//!
//! Programs name them as [`crate::tokio::net`], which is tokio's own where the feature `stack` is off.
//! `bind` and `connect` use the [host of this process](crate::Host::of_process), `bind_on` and
//! `connect_on` another one. They need no reactor of tokio's: any executor runs them.

mod address;
#[cfg(feature = "axum")]
mod axum;
mod blocking;
mod class;
mod listener;
mod socket;
mod stream;
pub mod tcp;
mod udp;

pub use self::address::{ToSocketAddrs, lookup_host};
pub use self::listener::TcpListener;
pub use self::socket::TcpSocket;
pub use self::stream::TcpStream;
pub use self::udp::UdpSocket;

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use tokio::task::coop;

/// Takes bytes into the next room of a buffer of whatever kind: how many, and what else is known of them.
fn fill<T>(
    into: &mut impl BufMut,
    read: impl FnOnce(&mut [u8]) -> io::Result<(usize, T)>,
) -> io::Result<(usize, T)> {
    let mut bytes = vec![0; into.chunk_mut().len().min(MAX_FILL)];
    let (len, rest) = read(&mut bytes)?;
    into.put_slice(bytes.get(..len).unwrap_or_default());
    Ok((len, rest))
}

/// The most that a buffer is filled with at once, bytes: more than any datagram.
const MAX_FILL: usize = 65_536;

/// The failure of a call with several addresses: what the last one came to.
fn last(error: Option<io::Error>) -> io::Error {
    error.unwrap_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "could not resolve to any address")
    })
}

/// Tries one address after the other.
fn first<T>(
    addresses: Vec<SocketAddr>,
    mut attempt: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut failed = None;
    for address in addresses {
        match attempt(address) {
            Ok(value) => return Ok(value),
            Err(error) => failed = Some(error),
        }
    }
    Err(last(failed))
}

/// Takes part in tokio's turns: who never finds an end lets others go first now and then.
fn in_turn<T>(
    context: &mut Context<'_>,
    call: impl FnOnce(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    let turn = ready!(coop::poll_proceed(context));
    let result = call(context);
    if result.is_ready() {
        turn.made_progress();
    }
    result
}
