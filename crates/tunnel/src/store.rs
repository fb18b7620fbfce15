//! What a network of a hub remembers: nodes with their addresses, tokens, and what was done.
//!
//! A [`Store`] is the sum of its subjects; [`Sqlite`] is the one there is. Every change is done whole or not at all, and
//! is safe when it returns. Times are milliseconds of Unix time by the hub's clock, and arguments.
//!
//! A node keeps its slot of the address plan for life. Slots are given in order, and those of nodes that
//! were revoked again, lowest first; finding one takes the same time however many there are. When all are
//! taken, the node that was away the longest loses its own, if that is longer than [`RECLAIM_MS`], but not one that an
//! operator has chosen for it. One that is chosen for whoever joins with a token is kept until that has happened, or
//! the token is good no more.

mod audit;
#[cfg(test)]
mod memory;
mod migrations;
mod nodes;
mod settings;
mod slots;
mod sqlite;
mod subnets;
mod tokens;

use std::fmt::Debug;
use std::path::Path;

use crate::error::Result;

pub use self::audit::{Audit, Deed, Stamp};
pub use self::nodes::{Login, Node, Nodes, NotPinned, Presence};
pub use self::settings::Settings;
pub use self::slots::{Holder, RECLAIM_MS};
pub use self::sqlite::Sqlite;
pub use self::subnets::{Subnet, Subnets};
pub use self::tokens::{Terms, Token, Tokens};

/// What a network remembers, and that it is safe. A store is used by one thread at a time.
pub trait Store: Nodes + Tokens + Subnets + Settings + Audit + Debug + Send {
    /// Whether it can be written, now: by writing the version that it has.
    ///
    /// # Errors
    /// It cannot.
    fn check(&mut self) -> Result<()>;

    /// Writes a copy of the database to a file that is not there yet, while it is in use.
    ///
    /// # Errors
    /// The file cannot be written.
    fn back_up(&self, file: &Path) -> Result<()>;
}

#[cfg(test)]
mod tests;
