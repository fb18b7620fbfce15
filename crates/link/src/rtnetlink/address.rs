//! Addresses of links.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{INET6, LinkIndex, PROTOCOL, Rtnetlink, UNSPECIFIED, family};
use crate::attribute::{Answer, CREATE, EXCLUSIVE, Message};
use crate::error::{Result, gone_is_done};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;

/// `IFA_F_NODAD`: usable at once, nobody else has it (RFC 4862 section 5.4).
const NO_DUPLICATE_DETECTION: u32 = 0x02;
/// `IFA_F_TEMPORARY`, of IPv6 addresses.
const TEMPORARY: u8 = 0x01;
/// `IFA_F_DADFAILED`: another one has it.
const DUPLICATE: u32 = 0x08;
/// `IFA_F_DEPRECATED`: not for new connections (RFC 4862 section 5.5.4).
const DEPRECATED: u32 = 0x20;
/// `IFA_F_TENTATIVE`: not usable yet.
const TENTATIVE: u32 = 0x40;
/// A lifetime without an end (`INFINITY_LIFE_TIME`).
const FOREVER: u32 = u32::MAX;

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The link's number.
    pub link: LinkIndex,
    /// The address, with the length of its prefix.
    pub net: IpNet,
    /// The address at the far end of a point-to-point link; `None` if it has no other than its own.
    pub far: Option<IpAddr>,
    /// Who made it (`IFA_PROTO`); 0 if nobody said.
    pub protocol: u8,
    /// It cannot be used yet: the kernel is looking whether another one has it.
    pub tentative: bool,
    /// It cannot be used at all: another one on the link has it.
    pub duplicate: bool,
    /// It is no longer for new connections.
    pub deprecated: bool,
    /// The kernel made it for a while, so that its user is not known by it (RFC 8981).
    pub temporary: bool,
    /// How long it stays preferred, seconds from when it was read; `None`: for ever.
    pub preferred: Option<u32>,
    /// How long it stays, seconds from when it was read; `None`: for ever.
    pub valid: Option<u32>,
}

impl Address {
    /// An address that stays for ever, with nothing special about it.
    #[must_use]
    pub const fn new(link: LinkIndex, net: IpNet) -> Self {
        Self {
            link,
            net,
            far: None,
            protocol: 0,
            tentative: false,
            duplicate: false,
            deprecated: false,
            temporary: false,
            preferred: None,
            valid: None,
        }
    }

    /// True when it was made here.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }

    fn read(answer: &Answer<'_>) -> Option<Self> {
        // struct ifaddrmsg: family, prefix length, flags, scope, link.
        let ([family, len, flags, _, link @ ..], attributes) = answer.split::<8>()?;
        // IFA_ADDRESS is the far end of a point-to-point link; IPv6 without one has only that.
        let far = attributes.find(IFA_ADDRESS).and_then(|value| value.address());
        let address = attributes.find(IFA_LOCAL).and_then(|value| value.address()).or(far)?;
        let flags = attributes.find(IFA_FLAGS).map_or(Some(flags.into()), |value| value.u32())?;
        // struct ifa_cacheinfo: preferred, valid, when it was made and changed.
        let lives = attributes.find(IFA_CACHEINFO).map(|value| value.0.as_chunks().0);
        let life = |number: usize| {
            let seconds = u32::from_ne_bytes(*lives?.get(number)?);
            (seconds != FOREVER).then_some(seconds)
        };
        Some(Self {
            far: far.filter(|far| *far != address),
            protocol: attributes.find(IFA_PROTO).and_then(|value| value.u8()).unwrap_or(0),
            tentative: flags & TENTATIVE != 0,
            duplicate: flags & DUPLICATE != 0,
            deprecated: flags & DEPRECATED != 0,
            // Of IPv4 the same bit says "not the first of its prefix".
            temporary: family == INET6 && flags & u32::from(TEMPORARY) != 0,
            preferred: life(0),
            valid: life(1),
            ..Self::new(LinkIndex(u32::from_ne_bytes(link)), IpNet::new(address, len).ok()?)
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.net, self.link)
    }
}

/// An address with all that the kernel says of it, to be put back as it was: `struct ifaddrmsg`
/// and its attributes, as `ip address save` keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddressRecord {
    pub(crate) net: IpNet,
    message: Vec<u8>,
}

impl AddressRecord {
    fn read(answer: &Answer<'_>) -> Option<(LinkIndex, Self)> {
        let address = Address::read(answer)?;
        Some((address.link, Self { net: address.net, message: answer.body.to_vec() }))
    }

    /// The message that gives the address to `link`; with our mark, or its own.
    fn message(&self, link: LinkIndex, ours: bool) -> Option<Message> {
        let ([family, len, flags, scope, ..], attributes) =
            Answer { kind: 0, flags: 0, sequence: 0, port: 0, body: &self.message }.split::<8>()?;
        let [a, b, c, d] = link.0.to_ne_bytes();
        let mut message = Message::new(RTM_NEWADDR, CREATE | EXCLUSIVE)
            .fixed(&[family, len, flags, scope, a, b, c, d]);
        for (kind, value) in attributes {
            match kind {
                // A label begins with the name of the link it is on.
                IFA_LABEL | IFA_PROTO if ours => {}
                // Nobody else has got it meanwhile.
                IFA_FLAGS if ours && family == INET6 => {
                    message.put_u32(IFA_FLAGS, value.u32()? | NO_DUPLICATE_DETECTION);
                }
                _ => {
                    message.put(kind, value.0);
                }
            }
        }
        if ours {
            message.put_u8(IFA_PROTO, PROTOCOL);
        }
        Some(message)
    }
}

impl Rtnetlink {
    /// Gives a link an address, marked as ours; IPv6 without duplicate address detection, as
    /// netyard gives every address once.
    ///
    /// # Errors
    /// [`crate::Error::exists`]: it has it already.
    pub fn add_address(&mut self, link: LinkIndex, net: IpNet) -> Result<()> {
        let mut message = Message::new(RTM_NEWADDR, CREATE | EXCLUSIVE).fixed(&header(link, &net));
        message.put_address(IFA_LOCAL, net.addr()).put_address(IFA_ADDRESS, net.addr());
        match net {
            IpNet::V4(net) if net.prefix_len() < 31 => {
                message.put_address(IFA_BROADCAST, IpAddr::V4(net.broadcast()));
            }
            IpNet::V4(_) => {}
            IpNet::V6(_) => {
                message.put_u32(IFA_FLAGS, NO_DUPLICATE_DETECTION);
            }
        }
        message.put_u8(IFA_PROTO, PROTOCOL);
        self.connection.request(message, || format!("give the address {net} to {link}"))
    }

    /// Gives a point-to-point link its own IPv4 address and that of its far end, marked as ours.
    ///
    /// # Errors
    /// [`crate::Error::exists`]: it has it already.
    pub fn add_pair(&mut self, link: LinkIndex, local: Ipv4Addr, far: Ipv4Addr) -> Result<()> {
        let message = Message::new(RTM_NEWADDR, CREATE | EXCLUSIVE);
        let mut message = pair(message, link, local, far);
        message.put_u8(IFA_PROTO, PROTOCOL);
        let operation = || format!("give the address {local} with the far end {far} to {link}");
        self.connection.request(message, operation)
    }

    /// Takes such a pair from a link, whoever gave it; one that is gone already is fine.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove_pair(&mut self, link: LinkIndex, local: Ipv4Addr, far: Ipv4Addr) -> Result<()> {
        let message = pair(Message::new(RTM_DELADDR, 0), link, local, far);
        let operation = || format!("take the address {local} with the far end {far} from {link}");
        gone_is_done(self.connection.request(message, operation))
    }

    /// Takes an address from a link, whoever gave it; one that is gone already is fine.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove_address(&mut self, link: LinkIndex, net: IpNet) -> Result<()> {
        let mut message = Message::new(RTM_DELADDR, 0).fixed(&header(link, &net));
        message.put_address(IFA_LOCAL, net.addr()).put_address(IFA_ADDRESS, net.addr());
        let operation = || format!("take the address {net} from {link}");
        gone_is_done(self.connection.request(message, operation))
    }

    /// Every address, of one link or of all.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn addresses(&mut self, link: Option<LinkIndex>) -> Result<Vec<Address>> {
        self.dump_addresses(link, |answer| {
            Address::read(answer).filter(|address| link.is_none_or(|link| link == address.link))
        })
    }

    /// The addresses of one link, to be put back later. Link-local and temporary ones (RFC 8981) are
    /// left out: the kernel makes them.
    pub(crate) fn record_addresses(&mut self, link: LinkIndex) -> Result<Vec<AddressRecord>> {
        self.dump_addresses(Some(link), |answer| {
            let (of, record) = AddressRecord::read(answer)?;
            let ([_, _, flags, ..], _) = answer.split::<8>()?;
            if record.net.addr().is_ipv6() && flags & TEMPORARY != 0 {
                return None;
            }
            let link_local =
                matches!(record.net.addr(), IpAddr::V6(address) if address.is_unicast_link_local());
            (of == link && !link_local).then_some(record)
        })
    }

    /// Gives a recorded address to a link: as it was, or marked as ours. One that is there is
    /// fine.
    pub(crate) fn put_address(
        &mut self,
        link: LinkIndex,
        record: &AddressRecord,
        ours: bool,
    ) -> Result<()> {
        let operation = || format!("give the address {} to {link}", record.net);
        let message = record
            .message(link, ours)
            .ok_or_else(|| crate::Error::Malformed { operation: operation() })?;
        match self.connection.request(message, operation) {
            Err(error) if error.exists() => Ok(()),
            result => result,
        }
    }

    fn dump_addresses<T>(
        &mut self,
        link: Option<LinkIndex>,
        parse: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        let [a, b, c, d] = link.map_or(0, |link| link.0).to_ne_bytes();
        let message = Message::new(RTM_GETADDR, 0).fixed(&[UNSPECIFIED, 0, 0, 0, a, b, c, d]);
        self.connection.dump(&message, || "list the addresses".into(), parse)
    }
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope (0: everywhere), link.
fn header(link: LinkIndex, net: &IpNet) -> [u8; 8] {
    let [a, b, c, d] = link.0.to_ne_bytes();
    [family(net), net.prefix_len(), 0, 0, a, b, c, d]
}

/// A local address and the one at the other end of the link; the prefix is the far end's.
fn pair(message: Message, link: LinkIndex, local: Ipv4Addr, far: Ipv4Addr) -> Message {
    let whole = IpNet::new_assert(IpAddr::V4(far), 32);
    let mut message = message.fixed(&header(link, &whole));
    message.put_address(IFA_LOCAL, IpAddr::V4(local)).put_address(IFA_ADDRESS, IpAddr::V4(far));
    message
}

/// What a notice says of an address.
pub(super) fn read(answer: &Answer<'_>) -> Option<Address> {
    Address::read(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_address_moves_without_its_label() {
        let net: IpNet = "192.0.2.7/24".parse().unwrap();
        let mut message = Message::new(RTM_NEWADDR, 0).fixed(&header(LinkIndex(3), &net));
        message.put_address(IFA_LOCAL, net.addr()).put_text(IFA_LABEL, "eth0").put_u32(200, 5);
        let bytes = message.finish(1).unwrap();
        let (of, record) = AddressRecord::read(&Answer::all(&bytes).next().unwrap()).unwrap();
        assert_eq!((of, record.net), (LinkIndex(3), net));
        let read = |ours| {
            let bytes = record.message(LinkIndex(8), ours).unwrap().finish(1).unwrap();
            let answer = Answer::all(&bytes).next().unwrap();
            let (_, attributes) = answer.split::<8>().unwrap();
            assert_eq!(attributes.find(200).unwrap().u32(), Some(5), "what is unknown is kept");
            (Address::read(&answer).unwrap(), attributes.find(IFA_LABEL).map(|label| label.text()))
        };
        let moved = Address { protocol: PROTOCOL, ..Address::new(LinkIndex(8), net) };
        assert_eq!(read(true), (moved, None));
        assert_eq!(read(false), (Address { protocol: 0, ..moved }, Some("eth0".into())));
    }
}
