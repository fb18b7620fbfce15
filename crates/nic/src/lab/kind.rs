//! The kinds of NAT that a lab can have.

use std::str::FromStr;
use std::time::Duration;

use crate::nat::simulate::{Allocation, Behaviour, Hairpinning};
use crate::nat::{Filtering, Mapping};

/// What stands between the machine and the Internet of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Open,
    /// A firewall without translation.
    Firewall,
    /// One mapping for each local address and port; anybody may send to it.
    FullCone,
    /// The same, for addresses that were sent to.
    Address,
    /// The same, for addresses and ports that were sent to; as most home routers are.
    Port,
    /// A mapping for each destination, with random ports.
    Symmetric,
    /// A mapping for each destination; ports count up.
    SymmetricSequential,
    /// A home router behind a carrier's.
    Carrier,
    /// A firewall that lets no UDP through.
    Blocked,
}

/// A word that names no kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no kind of NAT; there are: {}", Kind::ALL.map(Kind::name).join(", "))]
pub struct UnknownKind {
    word: String,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Open,
        Self::Firewall,
        Self::FullCone,
        Self::Address,
        Self::Port,
        Self::Symmetric,
        Self::SymmetricSequential,
        Self::Carrier,
        Self::Blocked,
    ];

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Firewall => "fw",
            Self::FullCone => "full-cone",
            Self::Address => "addr",
            Self::Port => "port",
            Self::Symmetric => "sym",
            Self::SymmetricSequential => "sym-seq",
            Self::Carrier => "cgnat",
            Self::Blocked => "blocked",
        }
    }

    /// What UDP meets, from the machine outwards.
    pub fn behaviours(self) -> Vec<Behaviour> {
        use Filtering as F;
        use Mapping as M;
        let strict = F::AddressAndPortDependent;
        let nat = |mapping, filtering, allocation| Behaviour {
            hairpin: Hairpinning::External,
            ..Behaviour::new(mapping, filtering, allocation)
        };
        let home = || nat(M::EndpointIndependent, strict, Allocation::Preserve);
        vec![match self {
            Self::Open => nat(M::None, F::EndpointIndependent, Allocation::Preserve),
            Self::Firewall | Self::Blocked => nat(M::None, strict, Allocation::Preserve),
            Self::FullCone => {
                nat(M::EndpointIndependent, F::EndpointIndependent, Allocation::Preserve)
            }
            Self::Address => nat(M::EndpointIndependent, F::AddressDependent, Allocation::Preserve),
            Self::Port => home(),
            Self::Symmetric => nat(M::AddressAndPortDependent, strict, Allocation::Random),
            Self::SymmetricSequential => {
                nat(M::AddressAndPortDependent, strict, Allocation::Sequential(1))
            }
            Self::Carrier => {
                // A block of ports for each subscriber, and a short life.
                let carrier = Behaviour {
                    ports: 2048..=4095,
                    life: Duration::from_secs(60),
                    ..nat(M::EndpointIndependent, strict, Allocation::Random)
                };
                return vec![home(), carrier];
            }
        }]
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(word: &str) -> Result<Self, UnknownKind> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == word);
        kind.ok_or_else(|| UnknownKind { word: word.to_owned() })
    }
}
