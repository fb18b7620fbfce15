//! What can stand for the address of a socket.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use self::sealed::{Meaning, Sealed};
use crate::Host;
use crate::blocking::{literal, split};
use crate::host::Awaited;
use crate::resolver::LookupId;

/// What can be turned into addresses, as `tokio::net::ToSocketAddrs`; names are looked up by this program's
/// own resolver.
pub trait ToSocketAddrs: Sealed {}

mod sealed {
    use super::{SocketAddr, io};

    /// What a text or address stands for.
    #[derive(Debug)]
    pub enum Meaning {
        /// These addresses.
        Addresses(Vec<SocketAddr>),
        /// This name's addresses, with this port.
        Name(String, u16),
    }

    /// Kept here, so that what is asked of it may change.
    pub trait Sealed {
        /// What it stands for.
        fn meaning(&self) -> io::Result<Meaning>;
    }
}

macro_rules! plain {
    ($($from:ty),*) => {$(
        impl ToSocketAddrs for $from {}

        impl Sealed for $from {
            fn meaning(&self) -> io::Result<Meaning> {
                Ok(Meaning::Addresses(vec![SocketAddr::from(*self)]))
            }
        }
    )*};
}

plain!(SocketAddr, SocketAddrV4, SocketAddrV6, (IpAddr, u16), (Ipv4Addr, u16), (Ipv6Addr, u16));

impl ToSocketAddrs for (&str, u16) {}

impl Sealed for (&str, u16) {
    fn meaning(&self) -> io::Result<Meaning> {
        let (host, port) = *self;
        Ok(match literal(host, port) {
            Some(address) => Meaning::Addresses(vec![address]),
            None => Meaning::Name(host.to_owned(), port),
        })
    }
}

impl ToSocketAddrs for (String, u16) {}

impl Sealed for (String, u16) {
    fn meaning(&self) -> io::Result<Meaning> {
        (self.0.as_str(), self.1).meaning()
    }
}

impl ToSocketAddrs for str {}

impl Sealed for str {
    fn meaning(&self) -> io::Result<Meaning> {
        match self.parse() {
            Ok(address) => Ok(Meaning::Addresses(vec![address])),
            Err(_) => split(self)?.meaning(),
        }
    }
}

impl ToSocketAddrs for String {}

impl Sealed for String {
    fn meaning(&self) -> io::Result<Meaning> {
        self.as_str().meaning()
    }
}

impl ToSocketAddrs for &[SocketAddr] {}

impl Sealed for &[SocketAddr] {
    fn meaning(&self) -> io::Result<Meaning> {
        Ok(Meaning::Addresses(self.to_vec()))
    }
}

impl<T: ToSocketAddrs + ?Sized> ToSocketAddrs for &T {}

impl<T: Sealed + ?Sized> Sealed for &T {
    fn meaning(&self) -> io::Result<Meaning> {
        (**self).meaning()
    }
}

/// The addresses of a name, best first.
///
/// # Errors
/// What [`Host::resolve`] and [`Host::of_process`] say.
pub async fn lookup_host<T: ToSocketAddrs>(
    host: T,
) -> io::Result<impl Iterator<Item = SocketAddr>> {
    Ok(addresses(host).await?.into_iter())
}

/// The addresses that something stands for.
pub(super) async fn addresses(of: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>> {
    match of.meaning()? {
        Meaning::Addresses(addresses) => Ok(addresses),
        Meaning::Name(name, port) => {
            let ips = Host::of_process()?.resolve_async(&name).await?;
            Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
        }
    }
}

impl Host {
    /// As [`resolve`](Self::resolve), without holding up the thread.
    ///
    /// # Errors
    /// As there.
    pub async fn resolve_async(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let lookup = Lookup { host: self.clone(), id: self.look_up(name)? };
        poll_fn(|context| {
            let awaited = Awaited::Lookup(lookup.id);
            self.poll(context, awaited, |state, _| state.take_lookup(lookup.id))
        })
        .await?
    }
}

/// Ends with whoever waits for it.
struct Lookup {
    host: Host,
    id: LookupId,
}

impl Drop for Lookup {
    fn drop(&mut self) {
        let id = self.id;
        self.host.close(Awaited::Lookup(id), |state, _| state.cancel_lookup(id));
    }
}
