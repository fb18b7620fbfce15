//! A store in SQLite: a file, and changes that are on the disk when they return (write-ahead log, `synchronous =
//! FULL`).

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Row, Transaction, TransactionBehavior};

use super::Store;
use super::migrations;
use crate::clock::now_ms;
use crate::error::{Blame, Error, Result};

/// How long another program may hold the database (a backup) before a change fails.
const PATIENCE: Duration = Duration::from_secs(5);

/// The database.
#[derive(Debug)]
pub struct Sqlite {
    pub(super) database: Connection,
    /// Its file, with the device and number that this had when it was opened; `None`: it is in memory.
    file: Option<(PathBuf, (u64, u64))>,
}

pub(super) fn failed(error: &rusqlite::Error) -> Error {
    Error::new(Blame::System, "use the hub's database", error)
        .next("look whether its disk is full, and whether another program holds it")
}

impl Sqlite {
    /// Opens a database, made or brought up to date if need be. Nobody is connected then; whoever was
    /// when it was used last, was so until now.
    ///
    /// # Errors
    /// It cannot be used, or a newer version has made it.
    pub fn open(file: &Path) -> Result<Self> {
        let store = Self::with(Connection::open(file).map_err(|error| failed(&error))?)?;
        let identity =
            identity(file).map_err(|error| Error::io("use the hub's database", &error))?;
        Ok(Self { file: Some((file.to_owned(), identity)), ..store })
    }

    /// One in memory, for tests.
    ///
    /// # Errors
    /// There is no memory.
    pub fn in_memory() -> Result<Self> {
        Self::with(Connection::open_in_memory().map_err(|error| failed(&error))?)
    }

    fn with(mut database: Connection) -> Result<Self> {
        let version = prepare(&mut database).map_err(|error| failed(&error))?;
        let known = migrations::STEPS.len();
        if version as usize > known {
            let found = format!("it is of version {version}, and this netyard knows {known}");
            return Err(Error::new(Blame::Conflict, "use the hub's database", found)
                .next("use the netyard that made it, or a newer one"));
        }
        // Whoever was here when the hub was killed has been here until now, as far as anybody knows.
        let sql = "UPDATE nodes SET connected = 0, seen_ms = max(seen_ms, ?1) WHERE connected = 1";
        database.execute(sql, [now_ms()]).map_err(|error| failed(&error))?;
        Ok(Self { database, file: None })
    }

    pub(super) fn list<T>(
        &self,
        sql: &str,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let all =
            self.database.prepare(sql).and_then(|mut rows| rows.query_map([], read)?.collect());
        all.map_err(|error| failed(&error))
    }

    /// One transaction: all of it, or nothing.
    pub(super) fn change<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        // What is written to a file that was removed is lost with us.
        if let Some((file, opened)) = &self.file
            && !identity(file).is_ok_and(|there| there == *opened)
        {
            let found = format!("{} is not there any more", file.display());
            return Err(Error::new(Blame::System, "use the hub's database", found)
                .next("put it back, or a backup and start the hub again"));
        }
        let change = || {
            let change = self.database.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = work(&change)?;
            change.commit()?;
            Ok(result)
        };
        change().map_err(|error| failed(&error))
    }
}

impl Store for Sqlite {
    fn check(&mut self) -> Result<()> {
        self.change(|change| {
            let version: u32 = change.pragma_query_value(None, "user_version", |row| row.get(0))?;
            change.pragma_update(None, "user_version", version)
        })
    }

    fn back_up(&self, file: &Path) -> Result<()> {
        let wanted = || format!("back the hub's database up to {}", file.display());
        let text = file
            .to_str()
            .ok_or_else(|| Error::new(Blame::Input, wanted(), "its name is not UTF-8"))?;
        // An empty file of ours, so that nobody else can read what comes.
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(file).map_err(|error| {
            Error::io(wanted(), &error).next("name a file that is not there yet")
        })?;
        self.database.execute("VACUUM INTO ?1", [text]).map(drop).map_err(|error| {
            // Half a copy is none. It is ours; where even that fails, it stays.
            _ = fs::remove_file(file);
            Error::new(Blame::System, wanted(), error)
        })
    }
}

/// Device and number of a file.
fn identity(file: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(file).map(|there| (there.dev(), there.ino()))
}

/// Sets a database up; the version it has then.
fn prepare(database: &mut Connection) -> rusqlite::Result<u32> {
    database.busy_timeout(PATIENCE)?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.pragma_update(None, "synchronous", "FULL")?;
    migrations::run(database)
}
