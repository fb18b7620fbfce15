//! What can go wrong.

use std::net::IpAddr;

use crate::Family;

/// `Result` of this crate.
pub type Result<T, E = NicError> = std::result::Result<T, E>;

/// What went wrong. Its text says what was wanted, what was found and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NicError {
    /// There is no such card.
    #[error("there is no card {name}; there are: {}", .there.join(", "))]
    NotFound {
        /// What was asked for.
        name: String,
        /// The names of those that there are.
        there: Vec<String>,
    },
    /// The kernel has no way to the outside, so no card is the default one.
    #[error(
        "no card is the default one: the kernel has no route to the outside; name one of {}",
        .there.join(", ")
    )]
    NoDefault {
        /// The names of the cards that there are.
        there: Vec<String>,
    },
    /// A card has no route of this family.
    #[error("{card} has no {family} route")]
    NoRoute {
        /// Its name.
        card: String,
        /// The family that was asked for.
        family: Family,
    },
    /// An address is not the card's.
    #[error("{address} is not an address of a route of {card}")]
    NotOnCard {
        /// Its name.
        card: String,
        /// What was asked for.
        address: IpAddr,
    },
    /// A system call or file failed.
    #[error("cannot {wanted}: {source}")]
    Io {
        /// What was wanted.
        wanted: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] netyard_link::Error),
}
