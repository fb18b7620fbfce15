//! The words for what a NAT does: two axes of RFC 4787, and the seven types and six deltas of older
//! programs with the numbers and texts that those write into their files.

use serde::{Deserialize, Serialize};

/// How external addresses are chosen (RFC 4787, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// There is none: the address that servers see is the local one.
    None,
    /// One for each local address and port, whatever the destination.
    EndpointIndependent,
    /// Another one for each destination address.
    AddressDependent,
    /// Another one for each destination address and port.
    AddressAndPortDependent,
}

/// Who may send to an external address (RFC 4787, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// Anybody.
    EndpointIndependent,
    /// Addresses that were sent to.
    AddressDependent,
    /// Addresses and ports that were sent to.
    AddressAndPortDependent,
}

impl Mapping {
    /// In words.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "no translation",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address- and port-dependent",
        }
    }
}

impl Filtering {
    /// In words.
    pub const fn label(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address- and port-dependent",
        }
    }
}

/// One of the seven types; the numbers are those of older programs' files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
#[repr(u8)]
pub enum NatType {
    /// No NAT, and everybody may send.
    OpenInternet = 1,
    /// No NAT, but a firewall.
    SymmetricUdpFirewall = 2,
    /// One mapping; anybody may use it.
    FullCone = 3,
    /// One mapping; for addresses that were sent to.
    Restricted = 4,
    /// One mapping; for addresses and ports that were sent to.
    PortRestricted = 5,
    /// A mapping for each destination.
    Symmetric = 6,
    /// No answer over UDP.
    Blocked = 7,
}

/// A number that stands for no type or delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{number} is no {what}: there are 1 to {last}")]
pub struct UnknownNumber {
    what: &'static str,
    number: u8,
    last: u8,
}

impl NatType {
    /// All seven, in order.
    pub const ALL: [Self; 7] = [
        Self::OpenInternet,
        Self::SymmetricUdpFirewall,
        Self::FullCone,
        Self::Restricted,
        Self::PortRestricted,
        Self::Symmetric,
        Self::Blocked,
    ];

    /// The type that the two axes make. `None` where the answer depends on an axis that is not
    /// known.
    pub const fn of(mapping: Option<Mapping>, filtering: Option<Filtering>) -> Option<Self> {
        Some(match (mapping, filtering) {
            (Some(Mapping::None), Some(Filtering::EndpointIndependent)) => Self::OpenInternet,
            (Some(Mapping::None), Some(_)) => Self::SymmetricUdpFirewall,
            (Some(Mapping::EndpointIndependent), Some(filtering)) => match filtering {
                Filtering::EndpointIndependent => Self::FullCone,
                Filtering::AddressDependent => Self::Restricted,
                Filtering::AddressAndPortDependent => Self::PortRestricted,
            },
            (Some(Mapping::AddressDependent | Mapping::AddressAndPortDependent), _) => {
                Self::Symmetric
            }
            (None, _) | (Some(_), None) => return None,
        })
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The text of older programs' files, letter for letter.
    pub const fn info(self) -> &'static str {
        match self {
            Self::OpenInternet => "open internet (no NAT)",
            Self::SymmetricUdpFirewall => "possible firewall (no NAT)",
            Self::FullCone => "full cone",
            Self::Restricted => "restrict reuse",
            Self::PortRestricted => "restrict port",
            Self::Symmetric => "symetric",
            Self::Blocked => "unknown (all responses blocked)",
        }
    }

    /// In words for people.
    pub const fn label(self) -> &'static str {
        match self {
            Self::OpenInternet => "open, no NAT",
            Self::SymmetricUdpFirewall => "firewall, no NAT",
            Self::FullCone => "full cone",
            Self::Restricted => "restricted by address",
            Self::PortRestricted => "restricted by address and port",
            Self::Symmetric => "symmetric",
            Self::Blocked => "UDP is blocked",
        }
    }
}

impl From<NatType> for u8 {
    fn from(kind: NatType) -> Self {
        kind.number()
    }
}

impl TryFrom<u8> for NatType {
    type Error = UnknownNumber;

    fn try_from(number: u8) -> Result<Self, UnknownNumber> {
        let unknown = UnknownNumber { what: "NAT type", number, last: 7 };
        Self::ALL.into_iter().find(|kind| kind.number() == number).ok_or(unknown)
    }
}

/// How the external port follows from local ports and from the port before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
#[repr(u8)]
pub enum DeltaType {
    /// There is nothing to say.
    NotApplicable = 1,
    /// The same as the local port.
    Equal = 2,
    /// A constant distance from the local port.
    Preserving = 3,
    /// A constant distance from the one before, whatever the local port.
    Independent = 4,
    /// A constant distance from the one before when the local port goes up by one.
    Dependent = 5,
    /// No pattern.
    Random = 6,
}

impl DeltaType {
    /// All six, in order.
    pub const ALL: [Self; 6] = [
        Self::NotApplicable,
        Self::Equal,
        Self::Preserving,
        Self::Independent,
        Self::Dependent,
        Self::Random,
    ];

    /// Its number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The text of older programs' files, letter for letter.
    pub const fn info(self) -> &'static str {
        match self {
            Self::NotApplicable => "not applicable",
            Self::Equal => "equal delta (local port == mapped port)",
            Self::Preserving => "preserving delta ((local port + dist) == (mapped_start + dist))",
            Self::Independent => "independent delta (rand port == (last_mapped += delta))",
            Self::Dependent => {
                "dependent delta ((local port += [1 to delta]) == (last_mapped += [1 to delta]))"
            }
            Self::Random => "random delta (local port == rand port)",
        }
    }
}

impl From<DeltaType> for u8 {
    fn from(kind: DeltaType) -> Self {
        kind.number()
    }
}

impl TryFrom<u8> for DeltaType {
    type Error = UnknownNumber;

    fn try_from(number: u8) -> Result<Self, UnknownNumber> {
        let unknown = UnknownNumber { what: "delta", number, last: 6 };
        Self::ALL.into_iter().find(|kind| kind.number() == number).ok_or(unknown)
    }
}
