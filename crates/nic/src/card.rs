//! Cards as the kernel has them, and what each is good for.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use crate::{AddressClass, CardId, Family, IpRange};

/// One thing of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PerFamily<T> {
    /// Of IPv4.
    pub ip4: T,
    /// Of IPv6.
    pub ip6: T,
}

impl<T> PerFamily<T> {
    /// Of this family.
    pub const fn get(&self, family: Family) -> &T {
        match family {
            Family::Ip4 => &self.ip4,
            Family::Ip6 => &self.ip6,
        }
    }

    /// Of this family, to be changed.
    pub const fn get_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::Ip4 => &mut self.ip4,
            Family::Ip6 => &mut self.ip6,
        }
    }
}

/// What a card is, as the kernel knows it; nothing is read from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CardKind {
    /// A device on a wire.
    Ethernet,
    /// A device on the air (nl80211).
    Wireless,
    /// A modem of a mobile network.
    Mobile,
    /// A point-to-point connection: a modem, DSL, some VPNs.
    Ppp,
    /// A VPN: WireGuard, IPsec, OpenVPN, or a program behind a TUN device.
    Vpn,
    /// Packets in packets: GRE, SIT, VXLAN and the like.
    Tunnel,
    /// A bridge of this machine.
    Bridge,
    /// Several cards that act as one.
    Bond,
    /// A VLAN of another card.
    Vlan,
    /// Another card again, with addresses of its own: macvlan, ipvlan.
    Sub,
    /// This machine itself.
    Loopback,
    /// Something else that is no device: veth, TAP, dummy, VRF.
    Virtual,
    /// Nothing that is known here, or nothing is said.
    Other,
}

impl CardKind {
    /// From the kernel's word for a link that is no device, the kind of hardware (`ARPHRD_*` of
    /// linux/if_arp.h), and whether it is wireless.
    #[must_use]
    pub fn of(kernel: Option<&str>, hardware: u16, wireless: bool) -> Self {
        const ETHERNET: u16 = 1;
        const PPP: u16 = 512;
        const RAW_IP: u16 = 519;
        const LOOPBACK: u16 = 772;
        const IEEE80211: [u16; 3] = [801, 802, 803];
        match (kernel, hardware) {
            (_, LOOPBACK) => Self::Loopback,
            _ if wireless || IEEE80211.contains(&hardware) => Self::Wireless,
            (Some("wwan" | "rmnet"), _) | (None, RAW_IP) => Self::Mobile,
            (Some("ppp"), _) | (_, PPP) => Self::Ppp,
            (Some("tun"), ETHERNET) => Self::Virtual,
            (Some("tun" | "wireguard" | "ovpn" | "xfrm" | "vti" | "vti6"), _) => Self::Vpn,
            (Some("bridge"), _) => Self::Bridge,
            (Some("bond" | "team"), _) => Self::Bond,
            (Some("vlan"), _) => Self::Vlan,
            (Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap" | "macsec"), _) => Self::Sub,
            (
                Some(
                    "ipip" | "sit" | "gre" | "gretap" | "ip6gre" | "ip6gretap" | "ip6tnl"
                    | "erspan" | "ip6erspan" | "vxlan" | "geneve" | "bareudp" | "gtp",
                ),
                _,
            ) => Self::Tunnel,
            (
                Some("veth" | "dummy" | "ifb" | "vrf" | "netkit" | "netdevsim" | "nlmon" | "vcan"),
                _,
            ) => Self::Virtual,
            (None, ETHERNET) => Self::Ethernet,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for CardKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ethernet => "ethernet",
            Self::Wireless => "wireless",
            Self::Mobile => "mobile",
            Self::Ppp => "ppp",
            Self::Vpn => "vpn",
            Self::Tunnel => "tunnel",
            Self::Bridge => "bridge",
            Self::Bond => "bond",
            Self::Vlan => "vlan",
            Self::Sub => "sub",
            Self::Loopback => "loopback",
            Self::Virtual => "virtual",
            Self::Other => "other",
        })
    }
}

/// How an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressState {
    /// It can be used.
    #[default]
    Ready,
    /// Not yet: the kernel is looking whether another one has it (RFC 4862 section 5.4).
    Tentative,
    /// Never: another one has it.
    Duplicate,
    /// Not for anything new (RFC 4862 section 5.5.4).
    Deprecated,
}

impl fmt::Display for AddressState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Tentative => "tentative",
            Self::Duplicate => "duplicate",
            Self::Deprecated => "deprecated",
        })
    }
}

/// An address, or a block of them, on a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardAddress {
    /// The address, with the length of its subnet's prefix; or the block.
    pub range: IpRange,
    /// How it is.
    pub state: AddressState,
    /// It is there for a while only, so that its user is not known by it (RFC 8981).
    pub temporary: bool,
    /// Seconds for which it stays preferred; `None`: for ever.
    pub preferred: Option<u32>,
    /// Seconds for which it stays; `None`: for ever.
    pub valid: Option<u32>,
}

impl CardAddress {
    /// One that is ready and stays.
    #[must_use]
    pub const fn new(range: IpRange) -> Self {
        Self { range, state: AddressState::Ready, temporary: false, preferred: None, valid: None }
    }

    /// What it is for.
    #[must_use]
    pub fn class(&self) -> AddressClass {
        AddressClass::of(self.range.base())
    }
}

/// A default route by a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// The family of what it carries.
    pub family: Family,
    /// The next hop, of either family; `None`: everything is a neighbour, as in a tunnel.
    pub address: Option<IpAddr>,
    /// Of several the lowest is taken.
    pub metric: u32,
    /// The table it is in; 254 is the main one.
    pub table: u32,
}

/// A card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: Option<u32>,
    /// What it is.
    pub kind: CardKind,
    /// Its hardware address.
    pub mac: Option<MacAddr>,
    /// The largest IP packet that it carries, bytes.
    pub mtu: Option<u32>,
    /// It is switched on.
    pub up: bool,
    /// The other end is there.
    pub carrier: bool,
    /// The bridge or bond that it is a port of.
    pub port_of: Option<String>,
    /// The card that it is upon: of a VLAN and the like.
    pub upon: Option<String>,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<CardAddress>,
    /// The default routes by it.
    pub gateways: Vec<Gateway>,
    /// Whether the kernel sends by it what goes to the outside; `None`: nobody has asked.
    pub default: PerFamily<Option<bool>>,
    /// The source address of what the kernel sends to the outside by it.
    pub source: PerFamily<Option<IpAddr>>,
}

/// Why a card is of no use for a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Unusable {
    /// It leads to this machine itself.
    Loopback,
    /// It is a port of this bridge or bond, which has the addresses.
    PortOf(String),
    /// It is switched off.
    Down,
    /// There is nothing at its other end.
    NoCarrier,
    /// It has no address.
    NoAddress,
    /// It has link-local addresses only.
    LinkLocalOnly,
    /// It has addresses, none of which can be used.
    NotReady(AddressState),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("leads to this machine itself"),
            Self::PortOf(master) => write!(f, "is a port of {master}, which has the addresses"),
            Self::Down => f.write_str("is switched off"),
            Self::NoCarrier => f.write_str("has nothing at its other end"),
            Self::NoAddress => f.write_str("has no address"),
            Self::LinkLocalOnly => f.write_str("has link-local addresses only"),
            Self::NotReady(state) => write!(f, "has {state} addresses only"),
        }
    }
}

/// What a card is good for in a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The kernel sends by it what goes to the outside.
    Default,
    /// It has a way to the outside, for sockets that are bound to it.
    Outside,
    /// It leads to its neighbours only: there is no default route by it.
    Local,
    /// It is of no use, and why.
    Unusable(Unusable),
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Outside => f.write_str("has a way to the outside"),
            Self::Local => f.write_str("leads to its neighbours only"),
            Self::Unusable(why) => why.fmt(f),
        }
    }
}

impl Card {
    /// A card of which nothing but the name is known.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            index: None,
            kind: CardKind::Other,
            mac: None,
            mtu: None,
            up: false,
            carrier: false,
            port_of: None,
            upon: None,
            addresses: Vec::new(),
            gateways: Vec::new(),
            default: PerFamily::default(),
            source: PerFamily::default(),
        }
    }

    /// Which one it is.
    #[must_use]
    pub fn id(&self) -> CardId {
        CardId { name: Arc::from(self.name.as_str()), index: self.index }
    }

    /// Its addresses of a family.
    pub fn addresses(&self, family: Family) -> impl Iterator<Item = &CardAddress> {
        self.addresses.iter().filter(move |address| address.range.family() == family)
    }

    /// What it is good for in a family.
    #[must_use]
    pub fn standing(&self, family: Family) -> Standing {
        match self.obstacle(family) {
            Some(why) => Standing::Unusable(why),
            None if *self.default.get(family) == Some(true) => Standing::Default,
            None if self.gateways.iter().any(|way| way.family == family) => Standing::Outside,
            None => Standing::Local,
        }
    }

    /// True if it is good for something.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        Family::BOTH.iter().any(|family| self.obstacle(*family).is_none())
    }

    fn obstacle(&self, family: Family) -> Option<Unusable> {
        if self.kind == CardKind::Loopback {
            return Some(Unusable::Loopback);
        }
        if let Some(master) = &self.port_of {
            return Some(Unusable::PortOf(master.clone()));
        }
        if !self.up {
            return Some(Unusable::Down);
        }
        if !self.carrier {
            return Some(Unusable::NoCarrier);
        }
        let beyond = || self.addresses(family).filter(|it| it.class() != AddressClass::LinkLocal);
        if self.addresses(family).next().is_none() {
            Some(Unusable::NoAddress)
        } else if beyond().next().is_none() {
            Some(Unusable::LinkLocalOnly)
        } else if beyond().any(|it| it.state == AddressState::Ready) {
            None
        } else {
            beyond().next().map(|it| Unusable::NotReady(it.state))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_from_what_the_kernel_says() {
        for (kernel, hardware, wireless, kind) in [
            (None, 1, false, CardKind::Ethernet),
            (None, 1, true, CardKind::Wireless),
            (None, 803, false, CardKind::Wireless),
            (None, 519, false, CardKind::Mobile),
            (Some("wwan"), 65534, false, CardKind::Mobile),
            (Some("wireguard"), 65534, false, CardKind::Vpn),
            (Some("tun"), 65534, false, CardKind::Vpn),
            (Some("tun"), 1, false, CardKind::Virtual),
            (None, 512, false, CardKind::Ppp),
            (Some("vlan"), 1, false, CardKind::Vlan),
            (Some("bond"), 1, false, CardKind::Bond),
            (Some("sit"), 776, false, CardKind::Tunnel),
            (Some("vxlan"), 1, false, CardKind::Tunnel),
            (Some("something-new"), 1, false, CardKind::Other),
            (None, 772, false, CardKind::Loopback),
        ] {
            assert_eq!(CardKind::of(kernel, hardware, wireless), kind, "{kernel:?} {hardware}");
        }
    }
}
