//! The groups that a socket is in, and on which links.

use std::net::IpAddr;

use crate::Error;
use crate::ip::{Ip, NicIndex};

/// Groups that one socket may be in (Linux's `igmp_max_memberships`).
const MAX_GROUPS: usize = 20;

#[derive(Debug, Default)]
pub(crate) struct Memberships(Vec<(NicIndex, IpAddr)>);

impl Memberships {
    pub(crate) fn join(&mut self, ip: &mut Ip, nic: NicIndex, group: IpAddr) -> Result<(), Error> {
        if !group.is_multicast() {
            return Err(Error::InvalidInput);
        }
        if self.0.contains(&(nic, group)) {
            return Err(Error::AddressInUse);
        }
        if self.0.len() >= MAX_GROUPS {
            return Err(Error::NoBuffers);
        }
        ip.join(nic, group)?;
        self.0.push((nic, group));
        Ok(())
    }

    pub(crate) fn leave(&mut self, ip: &mut Ip, nic: NicIndex, group: IpAddr) -> Result<(), Error> {
        let place = self.0.iter().position(|joined| *joined == (nic, group));
        self.0.swap_remove(place.ok_or(Error::AddressNotAvailable)?);
        ip.leave(nic, group);
        Ok(())
    }

    /// The socket goes.
    pub(crate) fn leave_all(self, ip: &mut Ip) {
        for (nic, group) in self.0 {
            ip.leave(nic, group);
        }
    }

    /// Where the socket has joined a group.
    pub(crate) fn link_of(&self, group: IpAddr) -> Option<NicIndex> {
        self.0.iter().find(|(_, joined)| *joined == group).map(|(nic, _)| *nic)
    }

    /// True if the socket is in a group where a packet has come from; `None`: from this host.
    pub(crate) fn hears(&self, arrived: Option<NicIndex>, group: IpAddr) -> bool {
        let here = |nic: NicIndex| arrived.is_none_or(|arrived| arrived == nic);
        self.0.iter().any(|(nic, joined)| *joined == group && here(*nic))
    }
}
