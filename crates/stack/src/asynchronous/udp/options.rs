//! What can be set for UDP sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::UdpSocket;
use crate::asynchronous::class::{self, traffic_classes};
use crate::host::{Place, udp_options};

traffic_classes!(UdpSocket);
udp_options!(UdpSocket);

impl UdpSocket {
    fn set_class(&self, class: u8) -> io::Result<()> {
        self.0.change(|settings| settings.traffic_class = class)
    }

    fn class(&self) -> u8 {
        self.0.settings().traffic_class
    }

    /// Joins a group, on the interface with this address; the unspecified one is the first interface.
    ///
    /// # Errors
    /// `InvalidInput`: no group; `AddrNotAvailable`: no such interface; `AddrInUse`: joined already.
    pub fn join_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.0.member(true, IpAddr::V4(group), Place::Address(IpAddr::V4(interface)))
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// `AddrNotAvailable`: not joined.
    pub fn leave_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.0.member(false, IpAddr::V4(group), Place::Address(IpAddr::V4(interface)))
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// `AddrNotAvailable`: not joined.
    pub fn leave_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.0.member(false, IpAddr::V6(*group), Place::Number(interface))
    }

    /// What has gone wrong, once.
    ///
    /// # Errors
    /// The stack has ended.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.0.take_error()
    }
}
