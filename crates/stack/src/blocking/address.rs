//! What can stand for the address of a socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::{option, slice, vec};

use crate::Host;

/// What can be turned into addresses, as `std::net::ToSocketAddrs`; names are looked up by this program's
/// own resolver.
pub trait ToSocketAddrs {
    /// The addresses, one after the other.
    type Iter: Iterator<Item = SocketAddr>;

    /// The addresses that this stands for.
    ///
    /// # Errors
    /// `InvalidInput`: it can stand for none; for names what [`Host::resolve`] says, and what
    /// [`Host::of_process`] says.
    fn to_socket_addrs(&self) -> io::Result<Self::Iter>;
}

macro_rules! plain {
    ($($from:ty),*) => {$(
        impl ToSocketAddrs for $from {
            type Iter = option::IntoIter<SocketAddr>;

            fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
                Ok(Some(SocketAddr::from(*self)).into_iter())
            }
        }
    )*};
}

plain!(SocketAddr, SocketAddrV4, SocketAddrV6, (IpAddr, u16), (Ipv4Addr, u16), (Ipv6Addr, u16));

impl ToSocketAddrs for (&str, u16) {
    type Iter = vec::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        let (host, port) = *self;
        if let Some(address) = literal(host, port) {
            return Ok(vec![address].into_iter());
        }
        let addresses = Host::of_process()?.resolve(host)?;
        let addresses: Vec<SocketAddr> =
            addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        Ok(addresses.into_iter())
    }
}

impl ToSocketAddrs for (String, u16) {
    type Iter = vec::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        (self.0.as_str(), self.1).to_socket_addrs()
    }
}

impl ToSocketAddrs for str {
    type Iter = vec::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        if let Ok(address) = self.parse() {
            return Ok(vec![address].into_iter());
        }
        split(self)?.to_socket_addrs()
    }
}

impl ToSocketAddrs for String {
    type Iter = vec::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        self.as_str().to_socket_addrs()
    }
}

impl<'a> ToSocketAddrs for &'a [SocketAddr] {
    type Iter = std::iter::Cloned<slice::Iter<'a, SocketAddr>>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        Ok(self.iter().cloned())
    }
}

impl<T: ToSocketAddrs + ?Sized> ToSocketAddrs for &T {
    type Iter = T::Iter;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        (**self).to_socket_addrs()
    }
}

/// The address that a text is, with the zone of an IPv6 one if it has one (`fe80::1%2`).
pub(crate) fn literal(host: &str, port: u16) -> Option<SocketAddr> {
    match host.parse() {
        Ok(ip) => Some(SocketAddr::new(ip, port)),
        Err(_) => format!("[{host}]:{port}").parse().ok(),
    }
}

/// A host and its port, out of `HOST:PORT`.
pub(crate) fn split(text: &str) -> io::Result<(&str, u16)> {
    let wanted = |what: &str| {
        let message = format!("HOST:PORT is wanted, found `{text}`, which has {what}");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wanted("no colon"))?;
    let port = port.parse().map_err(|_| wanted("no number for a port"))?;
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_for_themselves() {
        let wanted: Vec<SocketAddr> = vec!["10.0.0.1:80".parse().unwrap()];
        let all = |addresses: io::Result<vec::IntoIter<SocketAddr>>| {
            addresses.unwrap().collect::<Vec<SocketAddr>>()
        };
        assert_eq!(all("10.0.0.1:80".to_socket_addrs()), wanted);
        assert_eq!(all(("10.0.0.1", 80).to_socket_addrs()), wanted);
        assert_eq!(all(("10.0.0.1".to_owned(), 80).to_socket_addrs()), wanted);
        let zoned = vec!["[fe80::1%2]:80".parse().unwrap()];
        assert_eq!(all("[fe80::1%2]:80".to_socket_addrs()), zoned);
        assert_eq!(all(("fe80::1%2", 80).to_socket_addrs()), zoned);
        let ip: Ipv4Addr = "10.0.0.1".parse().unwrap();
        assert!((ip, 80).to_socket_addrs().unwrap().eq(wanted.clone()));
        assert!(wanted.as_slice().to_socket_addrs().unwrap().eq(wanted.clone()));
    }

    #[test]
    fn what_is_no_address_says_what_is_wanted() {
        for text in ["host", "host:", "host:http", "host:70000"] {
            let error = text.to_socket_addrs().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{text}");
            assert!(error.to_string().contains("HOST:PORT"), "{error}");
        }
    }
}
