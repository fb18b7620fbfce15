//! What was done, and by whom.

use rusqlite::{Transaction, params};
use serde::{Deserialize, Serialize};

use super::sqlite::Sqlite;
use crate::error::Result;

/// Who does something, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Whoever is answerable for it: a user of the hub's machine, who joins with a token, or the hub.
    pub who: String,
    /// When, milliseconds of Unix time by the hub's clock.
    pub at_ms: i64,
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// When, milliseconds of Unix time.
    pub at_ms: i64,
    /// By whom: `user 0, process 4711`, `token 3q2-7wAB` (who joins), `hub`; empty: an older version did not write
    /// that down.
    #[serde(default)]
    pub who: String,
    /// What: `join`, `create-token`, `accept-subnet`, ...
    pub action: String,
    /// To whom or what.
    pub subject: String,
}

/// What a store keeps of what was done.
pub trait Audit {
    /// Writes down that something was done that the database does not hold.
    ///
    /// # Errors
    /// The store cannot be written.
    fn note(&mut self, action: &str, subject: &str, by: &Stamp) -> Result<()>;

    /// What was done, the latest first.
    ///
    /// # Errors
    /// The store cannot be read.
    fn audit(&self, most: u32) -> Result<Vec<Deed>>;
}

impl Audit for Sqlite {
    fn note(&mut self, action: &str, subject: &str, by: &Stamp) -> Result<()> {
        self.change(|change| write(change, action, subject, by))
    }

    fn audit(&self, most: u32) -> Result<Vec<Deed>> {
        let sql =
            format!("SELECT at_ms, who, action, subject FROM audit ORDER BY id DESC LIMIT {most}");
        self.list(&sql, |row| {
            Ok(Deed {
                at_ms: row.get(0)?,
                who: row.get(1)?,
                action: row.get(2)?,
                subject: row.get(3)?,
            })
        })
    }
}

/// Writes it down, with the change that it is about.
pub(super) fn write(
    change: &Transaction<'_>,
    action: &str,
    subject: &str,
    by: &Stamp,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO audit (at_ms, who, action, subject) VALUES (?1, ?2, ?3, ?4)";
    change.execute(sql, params![by.at_ms, by.who, action, subject]).map(drop)
}
