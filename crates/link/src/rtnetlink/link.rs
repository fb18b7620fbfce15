//! Links: make, change, remove and list them.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::str::FromStr;

use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::{BRIDGE, Rtnetlink, UNSPECIFIED};
use crate::attribute::{Answer, Attributes, CREATE, EXCLUSIVE, Message};
use crate::error::{Error, Result, errno, gone_is_done};
use crate::netns::Netns;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

// linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// linux/veth.h
const VETH_INFO_PEER: u16 = 1;

/// `RTEXT_FILTER_SKIP_STATS`: counters are asked for by [`Rtnetlink::traffic`] alone.
const SKIP_STATISTICS: u32 = 8;
/// `IN6_ADDR_GEN_MODE_NONE` and `..._EUI64`.
const NO_LINK_LOCAL: u8 = 1;
const LINK_LOCAL: u8 = 0;
/// `IFF_UP`.
const UP: u32 = 1;
/// `IFF_LOOPBACK`.
const LOOPBACK: u32 = 1 << 3;
/// `IFF_POINTOPOINT`: there is one other end, and no neighbours.
const POINT_TO_POINT: u32 = 1 << 4;
/// `IFF_LOWER_UP`: the other end is there and up.
const CARRIER: u32 = 1 << 16;

/// The number of a link in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkIndex(pub u32);

impl fmt::Display for LinkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The name of a link: 1 to 15 bytes, without `/`, `:` and white space, not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

impl LinkName {
    /// Longest name, bytes: `IFNAMSIZ` without the closing zero.
    pub const MAX_LEN: usize = 15;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LinkName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        // dev_valid_name() of the kernel.
        let reason = if name.is_empty() || name == "." || name == ".." {
            "it must not be empty, \".\" or \"..\""
        } else if name.len() > Self::MAX_LEN {
            "it must not be longer than 15 bytes"
        } else if name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace()) {
            "it must not contain \"/\", \":\" or white space"
        } else {
            return Ok(Self(name));
        };
        Err(Error::Invalid(format!("{name:?} is not a name for a link: {reason}")))
    }
}

impl FromStr for LinkName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        name.to_owned().try_into()
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> Self {
        name.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of link to make.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Kind<'a> {
    /// A bridge.
    Bridge(BridgeOptions),
    /// One end of a pair; the other end is made with it, wherever it is to be.
    Veth(PeerEnd<'a>),
    /// An end of a VXLAN overlay.
    Vxlan(VxlanOptions),
}

/// How a bridge behaves. What is `None` stays as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BridgeOptions {
    /// Whether it listens to multicast memberships and forwards groups to members only.
    pub multicast_snooping: Option<bool>,
    /// Whether it asks for memberships itself (IGMPv3, MLDv2), without which snooping waits for a multicast
    /// router, and how long members may take to answer, seconds.
    pub multicast_querier: Option<u32>,
    /// How long an address that is silent stays learned, seconds.
    pub ageing: Option<u32>,
}

/// The far end of a veth pair.
#[derive(Debug, Clone)]
pub struct PeerEnd<'a> {
    /// Its name there.
    pub name: &'a LinkName,
    /// Its hardware address; the kernel takes one by chance if `None`.
    pub mac: Option<MacAddr>,
    /// The namespace it is made in; that of the near end if `None`.
    pub namespace: Option<&'a Netns>,
}

/// One end of a VXLAN overlay (RFC 7348).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VxlanOptions {
    /// The overlay's number, 24 bits.
    pub vni: u32,
    /// UDP port, of all ends.
    pub port: u16,
    /// Our own address in the underlay.
    pub local: Option<IpAddr>,
    /// Whether addresses are learned from what arrives; if not, the forwarding table says all.
    pub learning: bool,
}

impl VxlanOptions {
    /// The port that RFC 7348 section 8 gives.
    pub const PORT: u16 = 4789;

    /// An end that learns nothing by itself.
    #[must_use]
    pub const fn new(vni: u32) -> Self {
        Self { vni, port: Self::PORT, local: None, learning: false }
    }
}

/// A link to be made.
#[derive(Debug, Clone)]
pub struct NewLink<'a> {
    name: &'a LinkName,
    kind: Kind<'a>,
    mac: Option<MacAddr>,
    mtu: Option<u32>,
    master: Option<LinkIndex>,
    group: u32,
    up: bool,
}

impl<'a> NewLink<'a> {
    /// One of this kind, down, with nothing said about the rest.
    #[must_use]
    pub const fn new(name: &'a LinkName, kind: Kind<'a>) -> Self {
        Self { name, kind, mac: None, mtu: None, master: None, group: 0, up: false }
    }

    /// Its hardware address. A bridge without one takes that of its lowest port, and changes it.
    #[must_use]
    pub const fn mac(mut self, mac: Option<MacAddr>) -> Self {
        self.mac = mac;
        self
    }

    /// The largest IP packet it carries, bytes; of both ends of a pair.
    #[must_use]
    pub const fn mtu(mut self, mtu: Option<u32>) -> Self {
        self.mtu = mtu;
        self
    }

    /// The bridge that it is a port of.
    #[must_use]
    pub const fn master(mut self, bridge: Option<LinkIndex>) -> Self {
        self.master = bridge;
        self
    }

    /// The number of the group it belongs to; see [`Rtnetlink::remove_group`].
    #[must_use]
    pub const fn group(mut self, group: u32) -> Self {
        self.group = group;
        self
    }

    /// Switched on from the first moment. The far end of a pair is not: the kernel makes it before
    /// there is a near end that it could be switched on with.
    #[must_use]
    pub const fn up(mut self) -> Self {
        self.up = true;
        self
    }

    fn message(&self) -> Message {
        let flags = if self.up { UP } else { 0 };
        let mut message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE).fixed(&interface(
            UNSPECIFIED,
            LinkIndex(0),
            flags,
            flags,
        ));
        message.put_text(IFLA_IFNAME, self.name.as_str());
        put_mac(&mut message, self.mac);
        put_number(&mut message, IFLA_MTU, self.mtu);
        put_number(&mut message, IFLA_MASTER, self.master.map(|bridge| bridge.0));
        if self.group != 0 {
            message.put_u32(IFLA_GROUP, self.group);
        }
        message.nest(IFLA_LINKINFO, |info| match &self.kind {
            Kind::Bridge(options) => {
                info.put(IFLA_INFO_KIND, b"bridge");
                info.nest(IFLA_INFO_DATA, |data| options.put(data));
            }
            Kind::Veth(peer) => {
                info.put(IFLA_INFO_KIND, b"veth");
                info.nest(IFLA_INFO_DATA, |data| {
                    data.nest(VETH_INFO_PEER, |end| {
                        end.raw(&interface(UNSPECIFIED, LinkIndex(0), 0, 0));
                        end.put_text(IFLA_IFNAME, peer.name.as_str());
                        put_mac(end, peer.mac);
                        put_number(end, IFLA_MTU, self.mtu);
                        if let Some(namespace) = peer.namespace {
                            let fd = namespace.as_fd().as_raw_fd();
                            end.put(IFLA_NET_NS_FD, &fd.to_ne_bytes());
                        }
                    });
                });
            }
            Kind::Vxlan(options) => {
                info.put(IFLA_INFO_KIND, b"vxlan");
                info.nest(IFLA_INFO_DATA, |data| options.put(data));
            }
        });
        message
    }
}

impl BridgeOptions {
    fn put(self, data: &mut Message) {
        const IFLA_BR_FORWARD_DELAY: u16 = 1;
        const IFLA_BR_AGEING_TIME: u16 = 4;
        const IFLA_BR_STP_STATE: u16 = 5;
        const IFLA_BR_MCAST_SNOOPING: u16 = 23;
        const IFLA_BR_MCAST_QUERIER: u16 = 25;
        const IFLA_BR_MCAST_QUERY_RESPONSE_INTVL: u16 = 34;
        const IFLA_BR_MCAST_IGMP_VERSION: u16 = 43;
        const IFLA_BR_MCAST_MLD_VERSION: u16 = 44;
        /// The kernel takes hundredths of a second (`USER_HZ`).
        const TICKS: u32 = 100;
        // No spanning tree: a port forwards as soon as it is up.
        data.put_u32(IFLA_BR_STP_STATE, 0).put_u32(IFLA_BR_FORWARD_DELAY, 0);
        if let Some(snooping) = self.multicast_snooping {
            data.put_u8(IFLA_BR_MCAST_SNOOPING, snooping.into());
        }
        if let Some(response) = self.multicast_querier {
            let response = u64::from(response) * u64::from(TICKS);
            // Members that are asked in older versions keep silent when they hear another member, and a
            // bridge that has heard one of them alone takes the group from the others.
            data.put_u8(IFLA_BR_MCAST_IGMP_VERSION, 3).put_u8(IFLA_BR_MCAST_MLD_VERSION, 2);
            // In this order: the querier reads how long answers may take when it begins.
            data.put(IFLA_BR_MCAST_QUERY_RESPONSE_INTVL, &response.to_ne_bytes());
            data.put_u8(IFLA_BR_MCAST_QUERIER, 1);
        }
        put_number(data, IFLA_BR_AGEING_TIME, self.ageing.map(|time| time.saturating_mul(TICKS)));
    }
}

impl VxlanOptions {
    fn put(self, data: &mut Message) {
        const IFLA_VXLAN_ID: u16 = 1;
        const IFLA_VXLAN_LOCAL: u16 = 4;
        const IFLA_VXLAN_LEARNING: u16 = 7;
        const IFLA_VXLAN_PORT: u16 = 15;
        const IFLA_VXLAN_LOCAL6: u16 = 17;
        data.put_u32(IFLA_VXLAN_ID, self.vni);
        data.put_be16(IFLA_VXLAN_PORT, self.port);
        data.put_u8(IFLA_VXLAN_LEARNING, self.learning.into());
        match self.local {
            Some(local @ IpAddr::V4(_)) => {
                data.put_address(IFLA_VXLAN_LOCAL, local);
            }
            Some(local @ IpAddr::V6(_)) => {
                data.put_address(IFLA_VXLAN_LOCAL6, local);
            }
            None => {}
        }
    }
}

/// What to change of a link; what is not named stays.
#[derive(Debug, Clone, Default)]
pub struct LinkChange {
    up: Option<bool>,
    mac: Option<MacAddr>,
    mtu: Option<u32>,
    name: Option<LinkName>,
    master: Option<Option<LinkIndex>>,
    alias: Option<String>,
    group: Option<u32>,
    link_local: Option<bool>,
    queue_length: Option<u32>,
    port: PortOptions,
}

impl LinkChange {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Switches it on or off.
    #[must_use]
    pub const fn up(mut self, up: bool) -> Self {
        self.up = Some(up);
        self
    }

    /// Its hardware address.
    #[must_use]
    pub const fn mac(mut self, mac: MacAddr) -> Self {
        self.mac = Some(mac);
        self
    }

    /// The largest IP packet it carries, bytes.
    #[must_use]
    pub const fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Its name. A link that is up can be renamed since Linux 6.2.
    #[must_use]
    pub fn name(mut self, name: LinkName) -> Self {
        self.name = Some(name);
        self
    }

    /// The bridge it is a port of; `None`: of none.
    #[must_use]
    pub const fn master(mut self, bridge: Option<LinkIndex>) -> Self {
        self.master = Some(bridge);
        self
    }

    /// A text of up to 255 bytes beside its name, which `ip link` shows; empty: none.
    #[must_use]
    pub fn alias(mut self, alias: &str) -> Self {
        self.alias = Some(alias.to_owned());
        self
    }

    /// The number of its group.
    #[must_use]
    pub const fn group(mut self, group: u32) -> Self {
        self.group = Some(group);
        self
    }

    /// Whether the kernel gives it an IPv6 link-local address when it goes up. A port of a bridge
    /// needs none, and without one it sends no neighbour discovery of its own.
    #[must_use]
    pub const fn link_local(mut self, wanted: bool) -> Self {
        self.link_local = Some(wanted);
        self
    }

    /// How many frames wait to be sent before the next is dropped.
    #[must_use]
    pub const fn queue_length(mut self, frames: u32) -> Self {
        self.queue_length = Some(frames);
        self
    }

    /// What its bridge does with this port.
    #[must_use]
    pub const fn port(mut self, options: PortOptions) -> Self {
        self.port = options;
        self
    }

    fn message(&self, link: LinkIndex) -> Message {
        const INET6: u16 = super::INET6 as u16;
        let (flags, mask) = match self.up {
            Some(up) => (if up { UP } else { 0 }, UP),
            None => (0, 0),
        };
        let mut message =
            Message::new(RTM_NEWLINK, 0).fixed(&interface(UNSPECIFIED, link, flags, mask));
        put_mac(&mut message, self.mac);
        put_number(&mut message, IFLA_MTU, self.mtu);
        put_number(&mut message, IFLA_GROUP, self.group);
        put_number(&mut message, IFLA_TXQLEN, self.queue_length);
        if let Some(name) = &self.name {
            message.put_text(IFLA_IFNAME, name.as_str());
        }
        if let Some(alias) = &self.alias {
            // Without the closing zero: an empty value takes the alias away.
            message.put(IFLA_IFALIAS, alias.as_bytes());
        }
        if let Some(master) = self.master {
            message.put_u32(IFLA_MASTER, master.map_or(0, |bridge| bridge.0));
        }
        if let Some(wanted) = self.link_local {
            let mode = if wanted { LINK_LOCAL } else { NO_LINK_LOCAL };
            message.nest(IFLA_AF_SPEC, |families| {
                families.nest(INET6, |inet6| {
                    inet6.put_u8(IFLA_INET6_ADDR_GEN_MODE, mode);
                });
            });
        }
        if self.port != PortOptions::default() {
            message.nest(IFLA_LINKINFO, |info| {
                info.put(IFLA_INFO_SLAVE_KIND, b"bridge");
                info.nest(IFLA_INFO_SLAVE_DATA, |data| self.port.put(data));
            });
        }
        message
    }
}

/// What a bridge does with one of its ports. What is `None` stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortOptions {
    /// Frames go to ports that are not isolated only.
    pub isolated: Option<bool>,
    /// Frames may go back out of the port they came in by.
    pub hairpin: Option<bool>,
    /// Source addresses are learned.
    pub learning: Option<bool>,
    /// Frames to addresses not yet learned go here too.
    pub unicast_flood: Option<bool>,
    /// Multicast without a known member goes here too.
    pub multicast_flood: Option<bool>,
    /// Broadcast goes here.
    pub broadcast_flood: Option<bool>,
    /// The bridge answers ARP and neighbour solicitations for known neighbours instead of
    /// sending them here.
    pub neighbor_suppression: Option<bool>,
    /// Only sources that are in the forwarding table for this port may send (Linux 5.18).
    pub locked: Option<bool>,
}

impl PortOptions {
    /// The kernel's numbers (`IFLA_BRPORT_*`) beside the options.
    fn numbered(&self) -> [(u16, Option<bool>); 8] {
        [
            (4, self.hairpin),
            (8, self.learning),
            (9, self.unicast_flood),
            (27, self.multicast_flood),
            (30, self.broadcast_flood),
            (32, self.neighbor_suppression),
            (33, self.isolated),
            (39, self.locked),
        ]
    }

    fn put(&self, data: &mut Message) {
        for (kind, value) in self.numbered() {
            if let Some(value) = value {
                data.put_u8(kind, value.into());
            }
        }
    }

    fn read(data: Attributes<'_>) -> Self {
        let flag = |kind| data.find(kind).and_then(|value| Some(value.u8()? != 0));
        Self {
            hairpin: flag(4),
            learning: flag(8),
            unicast_flood: flag(9),
            multicast_flood: flag(27),
            broadcast_flood: flag(30),
            neighbor_suppression: flag(32),
            isolated: flag(33),
            locked: flag(39),
        }
    }

    /// True if every option that `wanted` names has that value here.
    #[must_use]
    pub fn satisfies(&self, wanted: &Self) -> bool {
        let pairs = self.numbered().into_iter().zip(wanted.numbered());
        pairs.into_iter().all(|((_, is), (_, wanted))| wanted.is_none() || is == wanted)
    }
}

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: LinkIndex,
    /// Its name.
    pub name: String,
    /// Its kind, as `ip -d link` says it: `bridge`, `veth`, `tun`; `None` for physical cards.
    pub kind: Option<String>,
    /// Its hardware, `ARPHRD_*` of linux/if_arp.h: 1 is Ethernet, 65534 none (packets only).
    pub hardware: u16,
    /// The bus of the device behind it: `pci`, `usb`, `virtio`; `None` if there is no device
    /// (or before Linux 5.14).
    pub bus: Option<String>,
    /// Its hardware address, if it has one of Ethernet's length.
    pub mac: Option<MacAddr>,
    /// The largest IP packet it carries, bytes.
    pub mtu: u32,
    /// It is switched on.
    pub up: bool,
    /// The other end is there and switched on too.
    pub carrier: bool,
    /// It leads to this machine itself.
    pub loopback: bool,
    /// It has one other end and no neighbours: a tunnel.
    pub point_to_point: bool,
    /// The bridge, bond or VRF it is a port of.
    pub master: Option<LinkIndex>,
    /// For a veth the other end's number, for a VLAN and the like that of the link below; in the
    /// namespace of `peer_namespace`.
    pub peer: Option<LinkIndex>,
    /// This namespace's own number for the peer's namespace; `None`: the same namespace.
    pub peer_namespace: Option<i32>,
    /// The text beside its name.
    pub alias: Option<String>,
    /// Its group.
    pub group: u32,
    /// What its bridge does with it.
    pub port: Option<PortOptions>,
}

impl Link {
    pub(super) fn read(answer: &Answer<'_>) -> Option<Self> {
        // struct ifinfomsg: family, pad, device type (16 bits), index, flags, mask.
        let ([_, _, i, j, rest @ ..], attributes) = answer.split::<16>()?;
        let [a, b, c, d, e, f, g, h, _, _, _, _] = rest;
        let flags = u32::from_ne_bytes([e, f, g, h]);
        let mut link = Self {
            index: LinkIndex(u32::from_ne_bytes([a, b, c, d])),
            name: String::new(),
            kind: None,
            hardware: u16::from_ne_bytes([i, j]),
            bus: None,
            mac: None,
            mtu: 0,
            up: flags & UP != 0,
            carrier: flags & CARRIER != 0,
            loopback: flags & LOOPBACK != 0,
            point_to_point: flags & POINT_TO_POINT != 0,
            master: None,
            peer: None,
            peer_namespace: None,
            alias: None,
            group: 0,
            port: None,
        };
        for (kind, value) in attributes {
            match kind {
                IFLA_IFNAME => link.name = value.text(),
                IFLA_ADDRESS => link.mac = value.mac(),
                IFLA_MTU => link.mtu = value.u32()?,
                IFLA_MASTER => link.master = value.u32().map(LinkIndex),
                IFLA_LINK => link.peer = value.u32().map(LinkIndex),
                IFLA_LINK_NETNSID => link.peer_namespace = value.i32(),
                IFLA_IFALIAS => link.alias = Some(value.text()).filter(|text| !text.is_empty()),
                IFLA_GROUP => link.group = value.u32()?,
                IFLA_PARENT_DEV_BUS_NAME => link.bus = Some(value.text()),
                IFLA_LINKINFO => {
                    let info = value.nested();
                    link.kind = info.find(IFLA_INFO_KIND).map(|kind| kind.text());
                    let slave = info.find(IFLA_INFO_SLAVE_KIND).map(|kind| kind.text());
                    if slave.as_deref() == Some("bridge") {
                        let data = info.find(IFLA_INFO_SLAVE_DATA);
                        link.port = data.map(|data| PortOptions::read(data.nested()));
                    }
                }
                _ => {}
            }
        }
        Some(link)
    }
}

/// What a link has carried, seen from the side that it is on: what a port of a bridge has received is
/// what the other end has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkTraffic {
    /// Packets that came in by it.
    pub received_packets: u64,
    /// Bytes that came in by it.
    pub received_bytes: u64,
    /// Packets that went out by it.
    pub sent_packets: u64,
    /// Bytes that went out by it.
    pub sent_bytes: u64,
    /// Packets that came in and were thrown away.
    pub received_dropped: u64,
    /// Packets that were to go out and were thrown away.
    pub sent_dropped: u64,
}

impl LinkTraffic {
    fn read(answer: &Answer<'_>) -> Option<Self> {
        let (_, attributes) = answer.split::<16>()?;
        // struct rtnl_link_stats64: numbers of 64 bits, received before sent: packets, bytes,
        // errors, dropped.
        let (numbers, _) = attributes.find(IFLA_STATS64)?.0.as_chunks();
        let [
            received_packets,
            sent_packets,
            received_bytes,
            sent_bytes,
            _,
            _,
            received_dropped,
            sent_dropped,
        ] = numbers.first_chunk::<8>()?.map(u64::from_ne_bytes);
        Some(Self {
            received_packets,
            received_bytes,
            sent_packets,
            sent_bytes,
            received_dropped,
            sent_dropped,
        })
    }
}

impl Rtnetlink {
    /// What a link has carried; `None`: there is no such link.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn traffic(&mut self, link: LinkIndex) -> Result<Option<LinkTraffic>> {
        let message = Message::new(RTM_GETLINK, 0).fixed(&interface(UNSPECIFIED, link, 0, 0));
        let operation = || format!("count the traffic of the link {link}");
        match self.connection.get(message, operation, LinkTraffic::read) {
            Err(error) if error.is_gone() => Ok(None),
            found => found,
        }
    }

    /// Makes a link; returns its number.
    ///
    /// # Errors
    /// [`Error::exists`]: the name is taken, here or where the peer goes.
    pub fn add_link(&mut self, new: &NewLink<'_>) -> Result<LinkIndex> {
        let operation = || match &new.kind {
            Kind::Bridge(_) => format!("make the bridge {}", new.name),
            Kind::Veth(peer) => format!("make the pair {} and {}", new.name, peer.name),
            Kind::Vxlan(options) => format!("make the VXLAN {} link {}", options.vni, new.name),
        };
        self.connection.request(new.message(), operation)?;
        self.index(new.name.as_str())
    }

    /// Changes a link.
    ///
    /// # Errors
    /// There is no such link, or it cannot be so.
    pub fn change_link(&mut self, link: LinkIndex, change: &LinkChange) -> Result<()> {
        let operation = || format!("change the link {link}");
        self.connection.request(change.message(link), operation)
    }

    /// Removes a link, and its other end; one that is gone already is fine.
    ///
    /// # Errors
    /// It is a physical card (`EOPNOTSUPP`).
    pub fn remove_link(&mut self, link: LinkIndex) -> Result<()> {
        let message = Message::new(RTM_DELLINK, 0).fixed(&interface(UNSPECIFIED, link, 0, 0));
        gone_is_done(self.connection.request(message, || format!("remove the link {link}")))
    }

    /// Removes every link of a group, and their other ends, at once: a thousand links cost little
    /// more than one. A group without links is fine.
    ///
    /// # Errors
    /// One of them cannot be removed; then none is.
    pub fn remove_group(&mut self, group: u32) -> Result<()> {
        let mut message =
            Message::new(RTM_DELLINK, 0).fixed(&interface(UNSPECIFIED, LinkIndex(0), 0, 0));
        message.put_u32(IFLA_GROUP, group);
        gone_is_done(self.connection.request(message, || format!("remove the link group {group}")))
    }

    /// The link with this name.
    ///
    /// # Errors
    /// What the kernel said; that there is none is no error.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = get(LinkIndex(0));
        message.put_text(IFLA_IFNAME, name);
        self.one_link(message, || format!("look at the link {name}"))
    }

    /// The link with this number.
    ///
    /// # Errors
    /// As [`Rtnetlink::link`].
    pub fn link_by_index(&mut self, link: LinkIndex) -> Result<Option<Link>> {
        self.one_link(get(link), || format!("look at the link {link}"))
    }

    fn one_link(
        &mut self,
        message: Message,
        operation: impl Fn() -> String,
    ) -> Result<Option<Link>> {
        match self.connection.get(message, operation, Link::read) {
            Err(error) if error.is_gone() => Ok(None),
            found => found,
        }
    }

    /// The number of the link with this name.
    ///
    /// # Errors
    /// [`Error::Absent`]: there is none.
    pub fn index(&mut self, name: &str) -> Result<LinkIndex> {
        match self.connection.socket().link_index(name) {
            Ok(index) => Ok(LinkIndex(index)),
            Err(error) if error.raw_os_error() == Some(errno::ENODEV) => {
                Err(Error::Absent { what: format!("link {name}") })
            }
            Err(error) => Err(Error::io(format!("look for the link {name}"), error)),
        }
    }

    /// Every link.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.connection.dump(&get(LinkIndex(0)), || "list the links".into(), Link::read)
    }

    /// The ports of a bridge.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn ports(&mut self, bridge: LinkIndex) -> Result<Vec<Link>> {
        let mut message = get(LinkIndex(0));
        message.put_u32(IFLA_MASTER, bridge.0);
        self.connection.dump(
            &message,
            || format!("list the ports of {bridge}"),
            |answer| Link::read(answer).filter(|link| link.master == Some(bridge)),
        )
    }
}

/// A request for one link or for all.
fn get(link: LinkIndex) -> Message {
    let mut message = Message::new(RTM_GETLINK, 0).fixed(&interface(UNSPECIFIED, link, 0, 0));
    message.put_u32(IFLA_EXT_MASK, SKIP_STATISTICS);
    message
}

/// `struct ifinfomsg`: family, pad, device type (16 bits), index, flags, which flags to change.
pub(super) fn interface(family: u8, link: LinkIndex, flags: u32, mask: u32) -> [u8; 16] {
    let [a, b, c, d] = link.0.to_ne_bytes();
    let [e, f, g, h] = flags.to_ne_bytes();
    let [i, j, k, l] = mask.to_ne_bytes();
    [family, 0, 0, 0, a, b, c, d, e, f, g, h, i, j, k, l]
}

fn put_mac(message: &mut Message, mac: Option<MacAddr>) {
    if let Some(mac) = mac {
        message.put(IFLA_ADDRESS, &mac.0);
    }
}

fn put_number(message: &mut Message, kind: u16, value: Option<u32>) {
    if let Some(value) = value {
        message.put_u32(kind, value);
    }
}

/// True for a notice of `RTM_NEWLINK` that a bridge sends about its port, not the link itself.
pub(super) fn is_bridge_notice(answer: &Answer<'_>) -> bool {
    answer.body.first() == Some(&BRIDGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_are_what_the_kernel_takes() {
        for good in ["br1", "a", "ve-web-1.lan0", "123456789012345"] {
            assert_eq!(good.parse::<LinkName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a b", "a/b", "a:b", "1234567890123456"] {
            assert!(bad.parse::<LinkName>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<LinkName>("\"a b\"").is_err(), "nor from a journal");
    }

    #[test]
    fn one_message_makes_a_pair_in_place() {
        let (host, guest): (LinkName, LinkName) = ("ve1".parse().unwrap(), "eth0".parse().unwrap());
        let peer = PeerEnd { name: &guest, mac: Some(MacAddr([2; 6])), namespace: None };
        let new = NewLink::new(&host, Kind::Veth(peer))
            .mtu(Some(1400))
            .master(Some(LinkIndex(9)))
            .group(77)
            .up();
        let bytes = new.message().finish(1).unwrap();
        let answer = Answer::all(&bytes).next().unwrap();
        let link = Link::read(&answer).unwrap();
        assert_eq!(link.name, "ve1");
        assert_eq!((link.mtu, link.master, link.group), (1400, Some(LinkIndex(9)), 77));
        assert!(link.up);
        let (_, attributes) = answer.split::<16>().unwrap();
        let info = attributes.find(IFLA_LINKINFO).unwrap().nested();
        assert_eq!(info.find(IFLA_INFO_KIND).unwrap().text(), "veth");
        let data = info.find(IFLA_INFO_DATA).unwrap().nested();
        let end = data.find(VETH_INFO_PEER).unwrap().0;
        let inside = Attributes(&end[16..]);
        assert_eq!(inside.find(IFLA_IFNAME).unwrap().text(), "eth0");
        assert_eq!(inside.find(IFLA_MTU).unwrap().u32(), Some(1400));
        assert_eq!(inside.find(IFLA_ADDRESS).unwrap().mac(), Some(MacAddr([2; 6])));
    }

    #[test]
    fn options_of_a_port_are_compared_where_something_is_wanted() {
        let is = PortOptions { isolated: Some(true), hairpin: Some(false), ..Default::default() };
        assert!(is.satisfies(&PortOptions::default()));
        assert!(is.satisfies(&PortOptions { isolated: Some(true), ..Default::default() }));
        assert!(!is.satisfies(&PortOptions { hairpin: Some(true), ..Default::default() }));
        assert!(!is.satisfies(&PortOptions { learning: Some(true), ..Default::default() }));
    }
}
