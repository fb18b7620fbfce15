//! What rules look at, and the values that they compare it with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netyard_wire::MacAddr;

use crate::error::{Error, Result};
use crate::rtnetlink::LinkName;

/// The type of a field: of a set's key, of a map's data, of what a rule has loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Type {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// A hardware address.
    Mac,
    /// What a frame carries (16 bits, network order).
    EtherType,
    /// A transport protocol.
    Protocol,
    /// A TCP or UDP port (network order).
    Port,
    /// A number of 32 bits in the host's order: marks, turns, zones.
    Mark,
    /// The name of a link.
    LinkName,
    /// The number of a link.
    LinkIndex,
    /// Bytes that have no type: from [`Selector::Payload`], and flags.
    Bytes(u8),
}

impl Type {
    /// Length of a value, bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        match self {
            Self::Protocol => 1,
            Self::EtherType | Self::Port => 2,
            Self::Ipv4 | Self::Mark | Self::LinkIndex => 4,
            Self::Mac => 6,
            Self::Ipv6 | Self::LinkName => 16,
            Self::Bytes(len) => len as usize,
        }
    }

    /// False: every type has a length.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Length in a register, bytes: whole words.
    pub(super) const fn room(self) -> usize {
        self.len().next_multiple_of(4)
    }

    /// The number by which nft(8) knows it, so that it lists our sets in words.
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Bytes(_) => 4,
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Mac => 9,
            Self::EtherType => 10,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::LinkIndex => 20,
            Self::LinkName => 41,
        }
    }
}

/// A value as the kernel compares it. Several joined to one key: [`Value::concat`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(super) Vec<u8>);

impl Value {
    /// A TCP or UDP port.
    #[must_use]
    pub fn port(port: u16) -> Self {
        Self(port.to_be_bytes().to_vec())
    }

    /// A transport protocol, or another field of one byte.
    #[must_use]
    pub fn byte(value: u8) -> Self {
        Self(vec![value])
    }

    /// A number of 16 bits in network order, such as what a frame carries.
    #[must_use]
    pub fn word(value: u16) -> Self {
        Self(value.to_be_bytes().to_vec())
    }

    /// A number of 32 bits in the host's order: marks, turns, link numbers, ct states.
    #[must_use]
    pub fn number(value: u32) -> Self {
        Self(value.to_ne_bytes().to_vec())
    }

    /// Every link whose name begins so; for [`super::Rule::is`] and its opposite only.
    #[must_use]
    pub fn names_from(beginning: &str) -> Self {
        Self(beginning.as_bytes().to_vec())
    }

    /// Bytes as they stand in the packet.
    #[must_use]
    pub fn bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Several values as one key, each in whole words of 4 bytes.
    #[must_use]
    pub fn concat(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut joined = Vec::new();
        for part in parts {
            joined.extend(part.0);
            joined.resize(joined.len().next_multiple_of(4), 0);
        }
        Self(joined)
    }

    /// The bytes that it has in the kernel.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Ipv4Addr> for Value {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.octets().to_vec())
    }
}

impl From<Ipv6Addr> for Value {
    fn from(address: Ipv6Addr) -> Self {
        Self(address.octets().to_vec())
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

impl From<MacAddr> for Value {
    fn from(mac: MacAddr) -> Self {
        Self(mac.0.to_vec())
    }
}

impl From<&LinkName> for Value {
    fn from(name: &LinkName) -> Self {
        let mut bytes = name.as_str().as_bytes().to_vec();
        bytes.resize(Type::LinkName.len(), 0);
        Self(bytes)
    }
}

impl TryFrom<&Value> for LinkName {
    type Error = Error;

    fn try_from(value: &Value) -> Result<Self> {
        let end = value.0.iter().position(|byte| *byte == 0).unwrap_or(value.0.len());
        String::from_utf8_lossy(value.0.get(..end).unwrap_or_default()).into_owned().try_into()
    }
}

/// The states of connections, a bit each (`NF_CT_STATE_BIT`); joined with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CtState(pub u32);

impl CtState {
    /// Belongs to no connection and cannot begin one.
    pub const INVALID: Self = Self(1);
    /// Both sides have been heard of.
    pub const ESTABLISHED: Self = Self(2);
    /// An error about a connection, or one that another announced.
    pub const RELATED: Self = Self(4);
    /// Begins a connection.
    pub const NEW: Self = Self(8);
    /// Kept out of connection tracking.
    pub const UNTRACKED: Self = Self(64);
}

impl std::ops::BitOr for CtState {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What [`Selector::FibDestinationType`] gives for an address of this machine (`RTN_LOCAL`).
pub const LOCAL: FibLocal = FibLocal;

/// See [`LOCAL`].
#[derive(Debug, Clone, Copy)]
pub struct FibLocal;

impl From<FibLocal> for Value {
    fn from(_: FibLocal) -> Self {
        Self::number(2)
    }
}

/// Something about a packet that a rule can look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Selector {
    /// Name of the link it came in by.
    InputName,
    /// Name of the link it goes out by.
    OutputName,
    /// Number of the link it came in by.
    InputIndex,
    /// Number of the link it goes out by.
    OutputIndex,
    /// Name of the bridge whose port it came in by; family bridge.
    InputBridge,
    /// Name of the bridge whose port it goes out by; family bridge.
    OutputBridge,
    /// The packet's mark.
    Mark,
    /// IPv4 (2) or IPv6 (10).
    NetworkProtocol,
    /// What the frame carries.
    FrameProtocol,
    /// Transport protocol.
    L4Protocol,
    /// To this machine (0), broadcast (1), multicast (2), to another one (3).
    PacketKind,
    /// Ethernet source.
    EtherSource,
    /// Ethernet destination.
    EtherDestination,
    /// IPv4 source.
    Ip4Source,
    /// IPv4 destination.
    Ip4Destination,
    /// IPv6 source.
    Ip6Source,
    /// IPv6 destination.
    Ip6Destination,
    /// TCP or UDP source port.
    SourcePort,
    /// TCP or UDP destination port.
    DestinationPort,
    /// TCP flags (RFC 9293 section 3.1), one byte.
    TcpFlags,
    /// ICMP type.
    IcmpType,
    /// ICMPv6 type.
    Icmp6Type,
    /// The address that a neighbour solicitation or advertisement is about (RFC 4861 section 4.3).
    NeighborTarget,
    /// ARP operation: request (1), reply (2).
    ArpOperation,
    /// ARP sender's hardware address.
    ArpSenderMac,
    /// ARP sender's IPv4 address.
    ArpSenderIp,
    /// ARP target's IPv4 address.
    ArpTargetIp,
    /// State of the connection, see [`CtState`].
    CtState,
    /// Status bits of the connection (`IPS_*`).
    CtStatus,
    /// Mark of the connection.
    CtMark,
    /// Zone of the connection, 16 bits in the host's order.
    CtZone,
    /// The packet goes as the connection's first packet did (0), or is an answer (1).
    CtDirection,
    /// Destination before translation, IPv4.
    CtOriginalDestination4,
    /// Destination before translation, IPv6.
    CtOriginalDestination6,
    /// Destination port before translation.
    CtOriginalPort,
    /// What kind of address the destination is (`RTN_*`); see [`LOCAL`].
    FibDestinationType,
    /// The link that an answer to the source would go out by; 0 if none or not this one:
    /// the reverse path check.
    FibSourceLink,
    /// Whose turn it is: 0 to `modulus` - 1 and again from 0, plus `offset`. One counter for each
    /// rule that it stands in, exact over all processors.
    Turn {
        /// How many turns there are.
        modulus: u32,
        /// Added to each.
        offset: u32,
    },
    /// A number by chance, 0 to `modulus` - 1.
    Chance {
        /// How many there are.
        modulus: u32,
    },
    /// Bytes of the packet.
    Payload {
        /// Counted from the link layer (0), network (1) or transport header (2).
        base: u8,
        /// First byte.
        offset: u8,
        /// How many.
        len: u8,
    },
}

impl Selector {
    /// The type of what it gives.
    #[must_use]
    pub const fn kind(self) -> Type {
        match self {
            Self::InputName | Self::OutputName | Self::InputBridge | Self::OutputBridge => {
                Type::LinkName
            }
            Self::InputIndex | Self::OutputIndex | Self::FibSourceLink => Type::LinkIndex,
            Self::Mark
            | Self::CtMark
            | Self::CtState
            | Self::CtStatus
            | Self::FibDestinationType
            | Self::Turn { .. }
            | Self::Chance { .. } => Type::Mark,
            Self::FrameProtocol => Type::EtherType,
            Self::L4Protocol => Type::Protocol,
            Self::NetworkProtocol
            | Self::PacketKind
            | Self::TcpFlags
            | Self::IcmpType
            | Self::Icmp6Type
            | Self::CtDirection => Type::Bytes(1),
            Self::CtZone | Self::ArpOperation => Type::Bytes(2),
            Self::EtherSource | Self::EtherDestination | Self::ArpSenderMac => Type::Mac,
            Self::Ip4Source
            | Self::Ip4Destination
            | Self::ArpSenderIp
            | Self::ArpTargetIp
            | Self::CtOriginalDestination4 => Type::Ipv4,
            Self::Ip6Source
            | Self::Ip6Destination
            | Self::NeighborTarget
            | Self::CtOriginalDestination6 => Type::Ipv6,
            Self::SourcePort | Self::DestinationPort | Self::CtOriginalPort => Type::Port,
            Self::Payload { len, .. } => Type::Bytes(len),
        }
    }
}

/// Something that a rule can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// The packet's mark.
    Mark,
    /// The connection's mark.
    CtMark,
    /// The connection's zone; before connection tracking only ([`super::Priority::RAW`]).
    CtZone,
    /// Where the frame is for: 0 makes a bridge hand it to this machine's own stack.
    PacketKind,
}
