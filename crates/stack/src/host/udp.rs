//! UDP sockets of a host, as programs hold them: each ends with its last handle.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use super::socket::Socket;
use super::{Host, Patience};
use crate::{Error, Event, NicIndex, Stack, UdpId};

/// A UDP socket.
#[derive(Debug)]
pub(crate) struct UdpHandle {
    pub(crate) socket: Socket,
    /// How calls that may wait do so; nothing to who polls.
    pub(crate) patience: Patience,
    id: UdpId,
    settings: Mutex<UdpSettings>,
}

/// What a UDP socket was told, to be told back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UdpSettings {
    pub(crate) broadcast: bool,
    pub(crate) multicast_loop: bool,
    pub(crate) multicast_hops: u8,
    pub(crate) hops: Option<u8>,
    pub(crate) traffic_class: u8,
}

impl UdpHandle {
    pub(crate) fn bind(host: &Host, local: SocketAddr) -> io::Result<Self> {
        let id = host.call(|stack, _| stack.udp_bind(local))?;
        let settings = UdpSettings {
            broadcast: false,
            multicast_loop: true,
            multicast_hops: 1,
            hops: None,
            traffic_class: 0,
        };
        let socket = Socket::new(host, Event::Udp(id));
        Ok(Self { socket, patience: Patience::default(), id, settings: Mutex::new(settings) })
    }

    pub(crate) const fn id(&self) -> UdpId {
        self.id
    }

    pub(crate) fn connect(&self, remote: SocketAddr) -> io::Result<()> {
        self.socket.call(|stack, now| stack.udp_connect(now, self.id, remote))
    }

    pub(crate) fn send(&self, to: Option<SocketAddr>, payload: &[u8]) -> io::Result<usize> {
        self.socket
            .call(|stack, now| stack.udp_send(now, self.id, to, payload))
            .map(|()| payload.len())
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.call(|stack, _| stack.udp_addresses(self.id)).map(|(local, _)| local)
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.call(|stack, _| stack.udp_addresses(self.id)?.1.ok_or(Error::NotConnected))
    }

    pub(crate) fn settings(&self) -> UdpSettings {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut UdpSettings)) -> io::Result<()> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut settings);
        let UdpSettings { broadcast, multicast_loop, multicast_hops, hops, traffic_class } =
            *settings;
        self.socket.call(|stack, _| {
            stack.udp_set_broadcast(self.id, broadcast)?;
            stack.udp_set_multicast(self.id, multicast_hops, multicast_loop)?;
            stack.udp_set_hop_limit(self.id, hops)?;
            stack.udp_set_traffic_class(self.id, traffic_class)
        })
    }

    pub(crate) fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.socket
            .call(|stack, _| stack.udp_take_error(self.id))
            .map(|error| error.map(Into::into))
    }

    /// Joins or leaves a group on the interface that `pick` names.
    pub(crate) fn member(&self, joins: bool, group: IpAddr, place: Place) -> io::Result<()> {
        self.socket.call(|stack, _| {
            let nic = place.find(stack)?;
            match joins {
                true => stack.udp_join(self.id, nic, group),
                false => stack.udp_leave(self.id, nic, group),
            }
        })
    }
}

impl Drop for UdpHandle {
    fn drop(&mut self) {
        let id = self.id;
        self.socket.close(|stack, _| stack.udp_close(id));
    }
}

/// How a program names an interface.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// By one of its addresses; the unspecified one is the first interface.
    Address(IpAddr),
    /// By its number, from 1; 0 is the first interface.
    Number(u32),
}

impl Place {
    pub(crate) fn find(self, stack: &Stack) -> Result<NicIndex, Error> {
        let has = |nic: &NicIndex, ip| stack.addresses(*nic).iter().any(|net| net.addr() == ip);
        let mut nics = stack.nics();
        let found = match self {
            Self::Address(ip) if ip.is_unspecified() => nics.next(),
            Self::Address(ip) => nics.find(|nic| has(nic, ip)),
            Self::Number(0) => nics.next(),
            Self::Number(number) => nics.find(|nic| nic.number() == number),
        };
        found.ok_or(Error::NoDevice)
    }
}
