//! What names a connection.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::Error;
use crate::ip::{Ip, NicIndex, Path, on_link, zone};

/// The two ends of a connection, both of one family. Packed: the table of connections holds one for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(super) local_ip: IpAddr,
    pub(super) remote_ip: IpAddr,
    local_port: u16,
    remote_port: u16,
    /// The link that the addresses belong to, if one of them does.
    pub(super) zone: Option<NicIndex>,
}

impl Ends {
    /// Of addresses that have their zone, and one in common if both have one.
    pub(crate) fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            local_ip: local.ip(),
            remote_ip: remote.ip(),
            local_port: local.port(),
            remote_port: remote.port(),
            zone: zone(remote).or_else(|| zone(local)),
        }
    }

    pub(super) fn local(&self) -> SocketAddr {
        on_link(self.local_ip, self.local_port, self.zone)
    }

    pub(super) fn remote(&self) -> SocketAddr {
        on_link(self.remote_ip, self.remote_port, self.zone)
    }

    /// How packets get to the other end.
    ///
    /// # Errors
    /// Those of [`Ip::path`].
    pub(super) fn path(&self, ip: &Ip, now: Instant) -> Result<Path, Error> {
        ip.path(now, Some(self.local_ip), self.zone, self.remote_ip)
    }

    pub(super) fn is_ipv4(&self) -> bool {
        self.local_ip.is_ipv4()
    }
}
