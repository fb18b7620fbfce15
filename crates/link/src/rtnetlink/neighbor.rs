//! Neighbours (ARP and NDP) and the forwarding tables of bridges and VXLAN ends.

use std::net::IpAddr;

use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::{BRIDGE, INET, INET6, LinkIndex, PROTOCOL, Rtnetlink, UNSPECIFIED};
use crate::attribute::{APPEND, Answer, CREATE, Message, REPLACE};
use crate::error::{Result, gone_is_done};

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

// linux/neighbour.h
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;
const NDA_PROTOCOL: u16 = 12;
const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;
/// The entry of the device itself: of a VXLAN end, or of a bridge's own address.
const NTF_SELF: u8 = 0x02;
/// The entry of the bridge that the device is a port of.
const NTF_MASTER: u8 = 0x04;

/// A neighbour: whose frames carry packets to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Neighbor {
    /// The link it is on.
    pub link: LinkIndex,
    /// Its IP address.
    pub address: IpAddr,
    /// Its hardware address; `None`: not known yet, or none needed.
    pub mac: Option<MacAddr>,
    /// It never expires: somebody has set it.
    pub permanent: bool,
    /// Who made it (`NDA_PROTOCOL`); 0: it was learned, or nobody said.
    pub protocol: u8,
}

impl Neighbor {
    /// A permanent one of ours.
    #[must_use]
    pub const fn new(link: LinkIndex, address: IpAddr, mac: MacAddr) -> Self {
        Self { link, address, mac: Some(mac), permanent: true, protocol: PROTOCOL }
    }

    fn read(answer: &Answer<'_>) -> Option<Self> {
        let (header, attributes) = answer.split::<12>()?;
        let (family, link, state, _) = split(header);
        if ![INET, INET6].contains(&family) {
            return None;
        }
        Some(Self {
            link,
            address: attributes.find(NDA_DST)?.address()?,
            mac: attributes.find(NDA_LLADDR).and_then(|value| value.mac()),
            permanent: state & NUD_PERMANENT != 0,
            protocol: attributes.find(NDA_PROTOCOL).and_then(|value| value.u8()).unwrap_or(0),
        })
    }
}

/// A line of a forwarding table: where frames to a hardware address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForwardingEntry {
    /// A port of a bridge, or a VXLAN end.
    pub link: LinkIndex,
    /// The hardware address. On a VXLAN end all zeros stands for every one that is not known:
    /// several such entries make copies.
    pub mac: MacAddr,
    /// For a VXLAN end: the underlay address that the frames go to. `None`: the line is of the
    /// bridge that `link` is a port of.
    pub remote: Option<IpAddr>,
    /// Somebody has set it; it was not learned.
    pub permanent: bool,
}

impl ForwardingEntry {
    fn read(answer: &Answer<'_>) -> Option<Self> {
        let (header, attributes) = answer.split::<12>()?;
        let (family, link, state, _) = split(header);
        (family == BRIDGE).then_some(())?;
        Some(Self {
            link,
            mac: attributes.find(NDA_LLADDR)?.mac()?,
            remote: attributes.find(NDA_DST).and_then(|value| value.address()),
            permanent: state & (NUD_PERMANENT | NUD_NOARP) != 0,
        })
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let (table, state) = match self.remote {
            Some(_) => (NTF_SELF, NUD_NOARP | NUD_PERMANENT),
            // "Static" alone: what is permanent the bridge takes for an address of its own.
            None => (NTF_MASTER, NUD_NOARP),
        };
        let header = header(BRIDGE, self.link, state, table);
        let mut message = Message::new(kind, flags).fixed(&header);
        message.put(NDA_LLADDR, &self.mac.0);
        if let Some(remote) = self.remote {
            message.put_address(NDA_DST, remote);
        }
        message
    }
}

impl Rtnetlink {
    /// Sets a neighbour, in the place of what was known of that address.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_neighbor(&mut self, neighbor: &Neighbor) -> Result<()> {
        let header = header(family(neighbor), neighbor.link, NUD_PERMANENT, 0);
        let mut message = Message::new(RTM_NEWNEIGH, CREATE | REPLACE).fixed(&header);
        message.put_address(NDA_DST, neighbor.address).put_u8(NDA_PROTOCOL, neighbor.protocol);
        if let Some(mac) = neighbor.mac {
            message.put(NDA_LLADDR, &mac.0);
        }
        self.connection.request(message, || format!("set the neighbour {}", neighbor.address))
    }

    /// Forgets a neighbour; one that is not known is fine.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove_neighbor(&mut self, neighbor: &Neighbor) -> Result<()> {
        let mut message =
            Message::new(RTM_DELNEIGH, 0).fixed(&header(family(neighbor), neighbor.link, 0, 0));
        message.put_address(NDA_DST, neighbor.address);
        let operation = || format!("forget the neighbour {}", neighbor.address);
        gone_is_done(self.connection.request(message, operation))
    }

    /// Every neighbour that is known, of one link or of all.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn neighbors(&mut self, link: Option<LinkIndex>) -> Result<Vec<Neighbor>> {
        let mut message =
            Message::new(RTM_GETNEIGH, 0).fixed(&header(UNSPECIFIED, LinkIndex(0), 0, 0));
        if let Some(link) = link {
            message.put_u32(NDA_IFINDEX, link.0);
        }
        self.connection.dump(
            &message,
            || "list the neighbours".into(),
            |answer| {
                Neighbor::read(answer).filter(|found| link.is_none_or(|link| link == found.link))
            },
        )
    }

    /// Adds a line to a forwarding table. On a VXLAN end one address may have several.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add_forwarding(&mut self, entry: &ForwardingEntry) -> Result<()> {
        let flags = CREATE | if entry.remote.is_some() { APPEND } else { REPLACE };
        let message = entry.message(RTM_NEWNEIGH, flags);
        self.connection.request(message, || format!("forward {} by {}", entry.mac, entry.link))
    }

    /// Removes a line of a forwarding table; one that is gone is fine.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove_forwarding(&mut self, entry: &ForwardingEntry) -> Result<()> {
        let message = entry.message(RTM_DELNEIGH, 0);
        let operation = || format!("stop forwarding {} by {}", entry.mac, entry.link);
        gone_is_done(self.connection.request(message, operation))
    }

    /// Every line of every forwarding table, of one link or of all.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn forwarding(&mut self, link: Option<LinkIndex>) -> Result<Vec<ForwardingEntry>> {
        let message = Message::new(RTM_GETNEIGH, 0).fixed(&header(BRIDGE, LinkIndex(0), 0, 0));
        self.connection.dump(
            &message,
            || "list the forwarding tables".into(),
            |answer| {
                ForwardingEntry::read(answer)
                    .filter(|found| link.is_none_or(|link| link == found.link))
            },
        )
    }
}

fn family(neighbor: &Neighbor) -> u8 {
    if neighbor.address.is_ipv4() { INET } else { INET6 }
}

/// `struct ndmsg`: family, three of padding, link, state, flags, type.
fn header(family: u8, link: LinkIndex, state: u16, flags: u8) -> [u8; 12] {
    let [a, b, c, d] = link.0.to_ne_bytes();
    let [e, f] = state.to_ne_bytes();
    [family, 0, 0, 0, a, b, c, d, e, f, flags, 0]
}

/// The same read: family, link, state, flags.
fn split(header: [u8; 12]) -> (u8, LinkIndex, u16, u8) {
    let [family, _, _, _, a, b, c, d, e, f, flags, _] = header;
    let link = LinkIndex(u32::from_ne_bytes([a, b, c, d]));
    (family, link, u16::from_ne_bytes([e, f]), flags)
}
