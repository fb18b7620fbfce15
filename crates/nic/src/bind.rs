//! To what sockets are bound: an address and a port of this machine, and the card that packets must
//! leave by.
//!
//! The address alone does not choose the card: the kernel looks at the destination. A socket that is
//! *pinned* (`SO_BINDTODEVICE`) sends and receives by its card only, which since Linux 5.7 takes no
//! privilege. What is bound to an address of a card is pinned; what is bound to loopback or to every address
//! is not, as nothing would reach it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd as _;

use netyard_link::rtnetlink::{LinkIndex, RouteKind, Rtnetlink};
use netyard_sys::arrival;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use crate::{AddressClass, AddressState, CardId, Family, Interface, IpRange, Route};

/// Connections that wait in the kernel for a server to take them in.
const BACKLOG: i32 = 1024;

/// Whether a socket is held to its card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pin {
    /// If it is bound to an address of a card; where the kernel forbids it, it is not.
    #[default]
    Auto,
    /// In any case, also to receive what comes to every address by this card only.
    Always,
    /// Never: the kernel chooses the card for each destination.
    Never,
}

/// What a socket is bound to. [`Route::bind`] makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    address: IpAddr,
    port: u16,
    card: Option<CardId>,
    link_local: Option<IpAddr>,
    pin: Pin,
}

/// Why a socket cannot be bound as it is wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The other end is of the other family.
    #[error("{to} cannot be reached from {from}: they are of different families")]
    Family {
        /// The local address.
        from: IpAddr,
        /// The other end.
        to: SocketAddr,
    },
    /// Nobody knows on which link a link-local address is.
    #[error(
        "{address} is link-local, and it is not said on which card; use a route of a card, or add %NUMBER"
    )]
    Scope {
        /// The address.
        address: IpAddr,
    },
    /// There is no card to be held to.
    #[error("a socket can be held to a card only where a route of a card is used")]
    NoCard,
    /// The kernel does not hold the socket to the card.
    #[error(
        "cannot hold a socket to the card {card}: {source}; Linux 5.7 and later let every user"
    )]
    Pin {
        /// The card.
        card: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not give the address or port.
    #[error("cannot use {address}: {source}")]
    Address {
        /// The address and port.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BindError {
    /// The kind of what the kernel said, if it was asked.
    #[must_use]
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Pin { source, .. } | Self::Address { source, .. } => Some(source.kind()),
            Self::Family { .. } | Self::Scope { .. } | Self::NoCard => None,
        }
    }
}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        match error {
            BindError::Pin { source, .. } | BindError::Address { source, .. } => source,
            other => Self::new(io::ErrorKind::InvalidInput, other),
        }
    }
}

/// A socket that is bound.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: Socket,
    pub(crate) pinned: bool,
}

impl Bind {
    /// Every address of this machine, and whichever card the kernel takes.
    #[must_use]
    pub const fn every(family: Family) -> Self {
        let address = family.unspecified();
        Self { address, port: 0, card: None, link_local: None, pin: Pin::Auto }
    }

    /// This address of a card.
    #[must_use]
    pub const fn on(card: CardId, address: IpAddr) -> Self {
        Self { address, port: 0, card: Some(card), link_local: None, pin: Pin::Auto }
    }

    /// The same with this port; 0 is one that the kernel chooses.
    #[must_use]
    pub const fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The same with this address, instead of the route's.
    #[must_use]
    pub const fn ip(mut self, address: IpAddr) -> Self {
        self.address = address;
        self
    }

    /// The same with every address of this machine.
    #[must_use]
    pub const fn any(self) -> Self {
        let every = self.family().unspecified();
        self.ip(every)
    }

    /// The same with the loopback address.
    #[must_use]
    pub const fn loopback(self) -> Self {
        let loopback = match self.family() {
            Family::Ip4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::Ip6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        self.ip(loopback)
    }

    /// The same with an address for neighbours: of IPv6 the card's link-local one, if it has one; of IPv4
    /// the card's own, as it is.
    #[must_use]
    pub const fn local(self) -> Self {
        match self.link_local {
            Some(address) => self.ip(address),
            None => self,
        }
    }

    /// The same, held to the card or not.
    #[must_use]
    pub const fn pin(mut self, pin: Pin) -> Self {
        self.pin = pin;
        self
    }

    /// The family.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.address)
    }

    /// The card, if it is one.
    #[must_use]
    pub fn card(&self) -> Option<&CardId> {
        self.card.as_ref()
    }

    /// The address and port, with the number of the link where the address is link-local.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.on_link(SocketAddr::new(self.address, self.port))
    }

    fn on_link(&self, address: SocketAddr) -> SocketAddr {
        let index = self.card.as_ref().and_then(|card| card.index);
        match (address, index) {
            (SocketAddr::V6(it), Some(index)) if is_link_local(address) && it.scope_id() == 0 => {
                SocketAddrV6::new(*it.ip(), it.port(), it.flowinfo(), index).into()
            }
            _ => address,
        }
    }

    /// What to bind to, and where to send, to reach `to`: loopback is reached from loopback, the address
    /// that stands for every one means loopback, and link-local addresses are on the card's link.
    ///
    /// # Errors
    /// The other family; a link-local address without a card.
    pub fn towards(&self, to: SocketAddr) -> Result<(Self, SocketAddr), BindError> {
        if Family::of(to.ip()) != self.family() {
            return Err(BindError::Family { from: self.address, to });
        }
        let mut bind = self.clone();
        let mut to = self.on_link(to);
        if to.ip().is_unspecified() {
            to.set_ip(self.clone().loopback().address);
        }
        if to.ip().is_loopback() {
            // No card leads there.
            bind = bind.loopback().pin(Pin::Never);
        } else if is_link_local(to) {
            match to {
                SocketAddr::V6(it) if it.scope_id() == 0 => {
                    return Err(BindError::Scope { address: to.ip() });
                }
                _ => bind = bind.local(),
            }
        }
        Ok((bind, to))
    }

    /// Listens for TCP. Also tells whether the kernel holds the socket to the card. Has to be called in a tokio
    /// runtime with IO.
    ///
    /// # Errors
    /// The address or port is taken, not permitted, or not this machine's.
    pub fn listener(&self) -> Result<(TcpListener, bool), BindError> {
        let address = self.address();
        let failed = |source| BindError::Address { address, source };
        let Bound { socket, pinned } = self.make(Type::STREAM, true)?;
        socket.listen(BACKLOG).map_err(failed)?;
        Ok((TcpListener::from_std(socket.into()).map_err(failed)?, pinned))
    }

    /// Makes a socket and binds it.
    pub(crate) fn socket(&self, kind: Type) -> Result<Bound, BindError> {
        self.make(kind, false)
    }

    /// A server over UDP.
    pub(crate) fn datagram_server(&self) -> Result<Bound, BindError> {
        self.make(Type::DGRAM, true)
    }

    fn make(&self, kind: Type, serves: bool) -> Result<Bound, BindError> {
        let address = self.address();
        let failed = |source| BindError::Address { address, source };
        let socket = Socket::new(Domain::for_address(address), kind, None).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        if address.is_ipv6() {
            socket.set_only_v6(true).map_err(failed)?;
        }
        if serves && kind == Type::STREAM {
            // A server can start again while connections of the one before wind down.
            socket.set_reuse_address(true).map_err(failed)?;
        } else if serves && self.address.is_unspecified() {
            // Answers have to leave from the address that was asked.
            arrival::tell(socket.as_fd()).map_err(failed)?;
        }
        let pinned = self.hold(&socket)?;
        let bound = match socket.bind(&address.into()) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable
                    && is_of_own_block(address.ip()) =>
            {
                // The kernel takes packets for it, but does not let it be bound to as it is.
                socket.set_freebind_v6(true).and_then(|()| socket.bind(&address.into()))
            }
            bound => bound,
        };
        bound.map_err(failed)?;
        Ok(Bound { socket, pinned })
    }

    /// Holds a socket to the card, if it has to be.
    fn hold(&self, socket: &Socket) -> Result<bool, BindError> {
        let everywhere = self.address.is_unspecified() || self.address.is_loopback();
        let card = self.card.as_ref().and_then(|card| Some((card, card.index?)));
        let (card, index) = match (self.pin, card) {
            (Pin::Never, _) | (Pin::Auto, None) => return Ok(false),
            (Pin::Auto, Some(_)) if everywhere => return Ok(false),
            (Pin::Always, None) => return Err(BindError::NoCard),
            (_, Some(card)) => card,
        };
        let held = card_name(index).and_then(|name| socket.bind_device(Some(name.as_bytes())));
        match held {
            Ok(()) => Ok(true),
            Err(error)
                if self.pin == Pin::Auto && error.kind() == io::ErrorKind::PermissionDenied =>
            {
                Ok(false)
            }
            Err(source) => Err(BindError::Pin { card: card.name.to_string(), source }),
        }
    }
}

impl Route {
    /// What a socket has to be bound to, to leave by this route.
    #[must_use]
    pub fn bind(&self) -> Bind {
        Bind {
            address: self.bind_address(),
            port: 0,
            card: self.card().index.map(|_| self.card().clone()),
            link_local: self.link_locals().first().map(IpRange::first),
            pin: Pin::Auto,
        }
    }
}

impl Interface {
    /// What servers are bound to that only the neighbours of the card reach: its own IPv4 addresses, of a block
    /// the first, and its link-local IPv6 ones.
    #[must_use]
    pub fn local_binds(&self) -> Vec<Bind> {
        let mut addresses = Vec::new();
        for route in self.rp(Family::Ip4).routes() {
            addresses.extend(route.nic_ips().iter().map(IpRange::first));
        }
        let of_v6 = self.card().addresses(Family::Ip6);
        let ready = of_v6
            .filter(|it| it.state == AddressState::Ready && it.class() == AddressClass::LinkLocal);
        addresses.extend(ready.map(|it| it.range.first()));
        let card = self.card().id();
        let bind = |address| match card.index {
            Some(_) => Bind::on(card.clone(), address),
            None => Bind::every(Family::of(address)).ip(address),
        };
        addresses.into_iter().map(bind).collect()
    }
}

/// Whether an IPv6 address is of a block that the whole machine answers for.
fn is_of_own_block(address: IpAddr) -> bool {
    let way = Rtnetlink::open().and_then(|mut kernel| kernel.decide(address, None));
    address.is_ipv6() && way.is_ok_and(|way| way.is_some_and(|way| way.kind == RouteKind::Local))
}

fn is_link_local(address: SocketAddr) -> bool {
    address.is_ipv6() && AddressClass::of(address.ip()) == AddressClass::LinkLocal
}

/// The name that the card with this number has now.
pub(crate) fn card_name(index: u32) -> io::Result<String> {
    let link = Rtnetlink::open()
        .and_then(|mut kernel| kernel.link_by_index(LinkIndex(index)))
        .map_err(io::Error::other)?;
    link.map(|link| link.name).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no card has number {index}"))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn card() -> CardId {
        CardId { name: Arc::from("eth0"), index: Some(7) }
    }

    fn ip6() -> Route {
        let (global, local) = ("2020::1".parse().unwrap(), "fe80::1".parse().unwrap());
        Route::direct(card(), global, &[local])
    }

    #[test]
    fn ipv4_uses_the_near_side_and_ipv6_the_far_one_where_it_is_on_the_card() {
        let near = vec!["192.168.0.20".parse().unwrap()];
        let route = Route::translated(card(), Family::Ip4, near, "1.3.3.7".parse().unwrap());
        assert_eq!(route.bind().address(), "192.168.0.20:0".parse().unwrap());
        assert_eq!(ip6().bind().port(80).address(), "[2020::1]:80".parse().unwrap());
        let near = vec!["fd00::1".parse().unwrap()];
        let translated = Route::translated(card(), Family::Ip6, near, "2020::9".parse().unwrap());
        assert_eq!(translated.bind().address(), "[fd00::1]:0".parse().unwrap());
    }

    #[test]
    fn an_address_that_is_named_is_used_instead() {
        let bind = ip6().bind();
        assert_eq!(bind.clone().any().address(), "[::]:0".parse().unwrap());
        assert_eq!(bind.clone().loopback().address(), "[::1]:0".parse().unwrap());
        assert_eq!(bind.local().address(), "[fe80::1%7]:0".parse().unwrap());
    }

    #[test]
    fn destinations_choose_loopback_and_link() {
        let bind = ip6().bind();
        let towards = |to: &str| {
            let (bind, to) = bind.towards(to.parse().unwrap()).unwrap();
            (bind.address().to_string(), to.to_string())
        };
        let pair = |bind: &str, to: &str| (bind.to_owned(), to.to_owned());
        assert_eq!(towards("[2020::2]:80"), pair("[2020::1]:0", "[2020::2]:80"));
        assert_eq!(towards("[::1]:80"), pair("[::1]:0", "[::1]:80"));
        assert_eq!(towards("[::]:80"), pair("[::1]:0", "[::1]:80"));
        assert_eq!(towards("[fe80::2]:80"), pair("[fe80::1%7]:0", "[fe80::2%7]:80"));
        assert_eq!(towards("[fe80::2%3]:80"), pair("[fe80::1%7]:0", "[fe80::2%3]:80"));
        let other = bind.towards("192.0.2.1:80".parse().unwrap());
        assert!(matches!(other, Err(BindError::Family { .. })));
        let nowhere = Bind::every(Family::Ip6).towards("[fe80::2]:80".parse().unwrap());
        assert!(matches!(nowhere, Err(BindError::Scope { .. })));
    }
}
