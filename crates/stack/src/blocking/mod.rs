//! Sockets of this program's own stack, with the names and manners of `std::net`.
//!
//! Programs name them as [`crate::net`], which is the standard library's own where the feature `stack` is
//! off. `bind` and `connect` use the [host of this process](crate::Host::of_process), `bind_on` and
//! `connect_on` another one.

mod address;
mod listener;
mod stream;
mod udp;

pub use self::address::ToSocketAddrs;
pub(crate) use self::address::literal;
#[cfg(feature = "tokio")]
pub(crate) use self::address::split;
pub use self::listener::{Incoming, TcpListener};
pub use self::stream::TcpStream;
pub use self::udp::UdpSocket;
pub use std::net::{
    AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6,
};

use std::io;

/// Tries one address after the other: what the first success or the last failure is.
fn first<T>(
    addresses: impl Iterator<Item = SocketAddr>,
    mut attempt: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = None;
    for address in addresses {
        match attempt(address) {
            Ok(value) => return Ok(value),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "could not resolve to any addresses")
    }))
}
