//! What can go wrong, by whose fault it is.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blame {
    /// A flag, a join string or a request says something that cannot be.
    Input,
    /// There is no such thing.
    Unknown,
    /// Something else has the place.
    Conflict,
    /// The kernel or the caller's rights forbid it.
    NotPermitted,
    /// The other end refused, or broke the rules.
    Peer,
    /// The system refused for another reason.
    System,
}

/// What went wrong: what was wanted, what was found, and the next step, if one is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Error {
    /// Whose fault it is.
    pub blame: Blame,
    /// What was wanted, e.g. `join the hub 192.0.2.1:6441`.
    pub wanted: String,
    /// What was found.
    pub found: String,
    /// The next step.
    pub next: Option<String>,
}

impl Error {
    /// An error without a next step; see [`Error::next`].
    pub fn new(blame: Blame, wanted: impl Into<String>, found: impl fmt::Display) -> Self {
        Self { blame, wanted: wanted.into(), found: found.to_string(), next: None }
    }

    /// The same error with its next step.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into());
        self
    }

    /// What the system said to `wanted`.
    pub fn io(wanted: impl Into<String>, error: &io::Error) -> Self {
        let blame = match error.kind() {
            io::ErrorKind::PermissionDenied => Blame::NotPermitted,
            io::ErrorKind::NotFound => Blame::Unknown,
            io::ErrorKind::AddrInUse | io::ErrorKind::AlreadyExists => Blame::Conflict,
            _ => Blame::System,
        };
        Self::new(blame, wanted, error)
    }

    /// What netlink said to `wanted`.
    pub(crate) fn link(wanted: impl Into<String>, error: &netyard_link::Error) -> Self {
        let blame = match error {
            netyard_link::Error::NotPermitted { .. } => Blame::NotPermitted,
            netyard_link::Error::Taken { .. } | netyard_link::Error::InUse { .. } => {
                Blame::Conflict
            }
            _ => Blame::System,
        };
        Self::new(blame, wanted, error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.wanted, self.found)?;
        match &self.next {
            Some(next) => write!(f, "\nnext: {next}"),
            None => Ok(()),
        }
    }
}
