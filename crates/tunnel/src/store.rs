//! What a hub remembers: nodes with their addresses, tokens, and what was done; in SQLite.
//!
//! Every change is one transaction that is on the disk when it returns (write-ahead log, `synchronous =
//! FULL`). Times are milliseconds of Unix time by the hub's clock, and arguments.
//!
//! A node keeps its slot of the address plan for life. Slots are given in order, and those of nodes that
//! were revoked again, lowest first; finding one takes the same time however many there are. When all are
//! taken, the node that was away the longest loses its own, if that is longer than [`RECLAIM_MS`].

mod subnets;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

use crate::error::{Blame, Error, Result};
use crate::identity::{same, sha256};
use crate::join::{Secret, TokenId};
use crate::message::RejectCode;
use crate::policy::Policy;
use crate::relay::NodeId;
use crate::text;

pub use self::subnets::Subnet;

/// A node that was away for less keeps its address in any case: 30 days.
pub const RECLAIM_MS: i64 = 30 * 24 * 3600 * 1000;

/// How long another program may hold the database (a backup) before a change fails.
const PATIENCE: Duration = Duration::from_secs(5);

/// One step for each version of the database; its number is `user_version`.
const MIGRATIONS: [&str; 3] = [
    "
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    slot INTEGER UNIQUE,
    epoch INTEGER NOT NULL DEFAULT 0,
    token BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL,
    connected INTEGER NOT NULL DEFAULT 0,
    revoked_ms INTEGER
);
CREATE INDEX nodes_idle ON nodes (connected, seen_ms) WHERE slot IS NOT NULL;
CREATE TABLE free_slots (slot INTEGER PRIMARY KEY);
CREATE TABLE tokens (
    id BLOB PRIMARY KEY,
    hash BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    uses_left INTEGER,
    revoked_ms INTEGER
);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL
);
",
    "
CREATE TABLE subnets (
    node INTEGER NOT NULL,
    prefix TEXT NOT NULL,
    offered INTEGER NOT NULL,
    accepted_ms INTEGER,
    PRIMARY KEY (node, prefix)
) WITHOUT ROWID;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
",
    "CREATE INDEX nodes_name ON nodes (name COLLATE NOCASE);",
];

/// A machine that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name, which no other has.
    pub name: String,
    /// Its slot of the address plan; `None`: it has lost it.
    pub slot: Option<u32>,
    /// How often it has logged in.
    pub epoch: u64,
    /// When it joined.
    pub created_ms: i64,
    /// When it was last here.
    pub seen_ms: i64,
}

/// A token, without what proves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its name.
    pub id: String,
    /// When it was made.
    pub created_ms: i64,
    /// When it ends; `None`: it does not.
    pub expires_ms: Option<i64>,
    /// How many more nodes may join with it; `None`: any number.
    pub uses_left: Option<u32>,
    /// When it was revoked.
    pub revoked_ms: Option<i64>,
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// When, milliseconds of Unix time.
    pub at_ms: i64,
    /// What: `join`, `create-token`, `accept-subnet`, ...
    pub action: String,
    /// To whom or what.
    pub subject: String,
}

/// What a node shows at its login. The proof of its key has been looked at already.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// Its public key.
    pub key: &'a [u8; 32],
    /// What it calls itself.
    pub name: &'a str,
    /// The token it brings.
    pub token: Option<(TokenId, Secret)>,
    /// How many slots nodes may have.
    pub capacity: u32,
    /// The hub's clock.
    pub now_ms: i64,
}

/// The database.
#[derive(Debug)]
pub struct Store {
    database: Connection,
}

fn failed(error: &rusqlite::Error) -> Error {
    Error::new(Blame::System, "use the hub's database", error)
        .next("look whether its disk is full, and whether another program holds it")
}

/// A login in the database: let in, or not, and why.
type Judged = rusqlite::Result<Result<Node, RejectCode>>;

impl Store {
    /// Opens a database, made or brought up to date if need be. Nobody is connected then.
    ///
    /// # Errors
    /// It cannot be used, or a newer version has made it.
    pub fn open(file: &Path) -> Result<Self> {
        Self::with(Connection::open(file).map_err(|error| failed(&error))?)
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
        if version as usize > MIGRATIONS.len() {
            let found =
                format!("it is of version {version}, and this netyard knows {}", MIGRATIONS.len());
            return Err(Error::new(Blame::Conflict, "use the hub's database", found)
                .next("use the netyard that made it, or a newer one"));
        }
        Ok(Self { database })
    }

    /// Lets a node in, or says why not. A known node gets what it had; a new one uses up its token and gets
    /// a slot, in one transaction.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn login(&mut self, login: &Login<'_>) -> Result<Result<Node, RejectCode>> {
        self.change(|change| {
            let known = change.query_row(
                "SELECT id, revoked_ms FROM nodes WHERE key = ?1",
                [&login.key[..]],
                |row| Ok((row.get::<_, NodeId>(0)?, row.get::<_, Option<i64>>(1)?)),
            );
            let id = match known.optional()? {
                Some((_, Some(_))) => return Ok(Err(RejectCode::Revoked)),
                Some((id, None)) => id,
                None => match enrol(change, login)? {
                    Ok(id) => id,
                    Err(code) => return Ok(Err(code)),
                },
            };
            admit(change, id, login)
        })
    }

    /// A node has gone.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn logout(&mut self, node: NodeId, epoch: u64, now_ms: i64) -> Result<()> {
        self.change(|change| {
            let sql = "UPDATE nodes SET connected = 0, seen_ms = ?3 WHERE id = ?1 AND epoch = ?2";
            change.execute(sql, params![node, epoch.cast_signed(), now_ms]).map(drop)
        })
    }

    /// Revokes a node by its name, for ever: its key is refused, its address is free. `None`: there is none.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn revoke_node(&mut self, name: &str, now_ms: i64) -> Result<Option<NodeId>> {
        self.change(|change| {
            let found = change.query_row(
                "SELECT id FROM nodes WHERE name = ?1 AND revoked_ms IS NULL",
                [name],
                |row| row.get::<_, NodeId>(0),
            );
            let Some(id) = found.optional()? else { return Ok(None) };
            release(change, id)?;
            change.execute("DELETE FROM subnets WHERE node = ?1", [id])?;
            // Its name may be somebody else's from now on.
            let sql = "UPDATE nodes SET revoked_ms = ?2, connected = 0, name = name || '#' || id \
                       WHERE id = ?1";
            change.execute(sql, params![id, now_ms])?;
            audit(change, now_ms, "revoke-node", name)?;
            Ok(Some(id))
        })
    }

    /// The nodes that may log in, in the order in which they joined.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        let sql = format!("SELECT {NODE} FROM nodes WHERE revoked_ms IS NULL ORDER BY id");
        self.list(&sql, node)
    }

    /// Makes a token.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn create_token(
        &mut self,
        (id, secret): (TokenId, Secret),
        expires_ms: Option<i64>,
        uses: Option<u32>,
        now_ms: i64,
    ) -> Result<()> {
        self.change(|change| {
            let sql = "INSERT INTO tokens (id, hash, created_ms, expires_ms, uses_left) \
                       VALUES (?1, ?2, ?3, ?4, ?5)";
            let hash = sha256(&secret.0);
            change.execute(sql, params![&id.0[..], &hash[..], now_ms, expires_ms, uses])?;
            audit(change, now_ms, "create-token", &id.to_string())
        })
    }

    /// Revokes a token: nobody joins with it any more. Those who have stay. `false`: there is none.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn revoke_token(&mut self, id: TokenId, now_ms: i64) -> Result<bool> {
        self.change(|change| {
            let sql = "UPDATE tokens SET revoked_ms = coalesce(revoked_ms, ?2) WHERE id = ?1";
            if change.execute(sql, params![&id.0[..], now_ms])? == 0 {
                return Ok(false);
            }
            audit(change, now_ms, "revoke-token", &id.to_string()).map(|()| true)
        })
    }

    /// The tokens, in the order in which they were made.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn tokens(&self) -> Result<Vec<Token>> {
        let sql = "SELECT id, created_ms, expires_ms, uses_left, revoked_ms FROM tokens \
                   ORDER BY created_ms, rowid";
        self.list(sql, |row| {
            Ok(Token {
                id: text::encode(&row.get::<_, Vec<u8>>(0)?),
                created_ms: row.get(1)?,
                expires_ms: row.get(2)?,
                uses_left: row.get(3)?,
                revoked_ms: row.get(4)?,
            })
        })
    }

    /// Who may reach whom; `None`: everybody.
    ///
    /// # Errors
    /// The database cannot be read, or a newer version wrote it.
    pub fn policy(&self) -> Result<Option<Policy>> {
        let sql = "SELECT value FROM settings WHERE name = 'policy'";
        let text = self.database.query_row(sql, [], |row| row.get::<_, String>(0)).optional();
        let unread = |error| Error::new(Blame::System, "read the hub's policy", error);
        text.map_err(|error| failed(&error))?
            .map(|text| serde_json::from_str(&text).map_err(unread))
            .transpose()
    }

    /// Sets who may reach whom.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set_policy(&mut self, policy: Option<&Policy>, now_ms: i64) -> Result<()> {
        // Names, numbers and prefixes: nothing in it can fail.
        let text = policy.map(|policy| serde_json::to_string(policy).unwrap_or_default());
        self.change(|change| match text {
            Some(text) => {
                let sql = "INSERT OR REPLACE INTO settings (name, value) VALUES ('policy', ?1)";
                change.execute(sql, [text])?;
                audit(change, now_ms, "set-policy", "")
            }
            None => {
                change.execute("DELETE FROM settings WHERE name = 'policy'", [])?;
                audit(change, now_ms, "remove-policy", "")
            }
        })
    }

    /// What was done, the latest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn audit(&self, most: u32) -> Result<Vec<Deed>> {
        let sql = format!("SELECT at_ms, action, subject FROM audit ORDER BY id DESC LIMIT {most}");
        self.list(&sql, |row| {
            Ok(Deed { at_ms: row.get(0)?, action: row.get(1)?, subject: row.get(2)? })
        })
    }

    /// Writes a copy of the database to a file that is not there yet, while it is in use.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn back_up(&self, file: &Path) -> Result<()> {
        let wanted = || format!("back the hub's database up to {}", file.display());
        let text = file
            .to_str()
            .ok_or_else(|| Error::new(Blame::Input, wanted(), "its name is not UTF-8"))?;
        // An empty file of ours, so that nobody else can read what comes.
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(file).map_err(|error| {
            Error::io(wanted(), &error).next("name a file that is not there yet")
        })?;
        let copied = self.database.execute("VACUUM INTO ?1", [text]);
        copied.map(drop).map_err(|error| Error::new(Blame::System, wanted(), error))
    }

    fn list<T>(
        &self,
        sql: &str,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let all =
            self.database.prepare(sql).and_then(|mut rows| rows.query_map([], read)?.collect());
        all.map_err(|error| failed(&error))
    }

    /// One transaction: all of it, or nothing.
    fn change<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let change = || {
            let change = self.database.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = work(&change)?;
            change.commit()?;
            Ok(result)
        };
        change().map_err(|error| failed(&error))
    }
}

/// Sets a database up; the version it has then.
fn prepare(database: &mut Connection) -> rusqlite::Result<u32> {
    database.busy_timeout(PATIENCE)?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.pragma_update(None, "synchronous", "FULL")?;
    let change = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut version: u32 = change.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for step in MIGRATIONS.iter().skip(version as usize) {
        change.execute_batch(step)?;
        version += 1;
        change.pragma_update(None, "user_version", version)?;
    }
    change.execute("UPDATE nodes SET connected = 0", [])?;
    change.commit()?;
    Ok(version)
}

const NODE: &str = "id, name, slot, epoch, created_ms, seen_ms";

fn node(row: &Row<'_>) -> rusqlite::Result<Node> {
    Ok(Node {
        id: row.get(0)?,
        name: row.get(1)?,
        slot: row.get(2)?,
        epoch: row.get::<_, i64>(3)?.cast_unsigned(),
        created_ms: row.get(4)?,
        seen_ms: row.get(5)?,
    })
}

/// Makes a node of somebody with a token.
fn enrol(
    change: &Transaction<'_>,
    login: &Login<'_>,
) -> rusqlite::Result<Result<NodeId, RejectCode>> {
    let Some((id, secret)) = login.token else { return Ok(Err(RejectCode::Unknown)) };
    let found = change.query_row(
        "SELECT hash, expires_ms, uses_left, revoked_ms FROM tokens WHERE id = ?1",
        [&id.0[..]],
        |row| {
            let hash: Vec<u8> = row.get(0)?;
            let (expires, uses): (Option<i64>, Option<u32>) = (row.get(1)?, row.get(2)?);
            Ok((hash, expires, uses, row.get::<_, Option<i64>>(3)?))
        },
    );
    let Some((hash, expires, uses, revoked)) = found.optional()? else {
        return Ok(Err(RejectCode::BadToken));
    };
    // Nothing is told of a token to somebody who does not have it.
    if !same(&hash, &sha256(&secret.0)) {
        return Ok(Err(RejectCode::BadToken));
    }
    if revoked.is_some() {
        return Ok(Err(RejectCode::Revoked));
    }
    if expires.is_some_and(|expires| login.now_ms >= expires) {
        return Ok(Err(RejectCode::Expired));
    }
    if uses == Some(0) {
        return Ok(Err(RejectCode::Used));
    }
    let Some(slot) = take_slot(change, login)? else { return Ok(Err(RejectCode::NoAddress)) };
    change.execute("UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ?1", [&id.0[..]])?;
    let name = free_name(change, login.name)?;
    change.execute(
        "INSERT INTO nodes (key, name, slot, token, created_ms, seen_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
        params![&login.key[..], name, slot, &id.0[..], login.now_ms],
    )?;
    let id = change.last_insert_rowid();
    audit(change, login.now_ms, "join", &name)?;
    Ok(Ok(id))
}

/// A node's login: the next epoch, and its address.
fn admit(change: &Transaction<'_>, id: NodeId, login: &Login<'_>) -> Judged {
    change.execute(
        "UPDATE nodes SET epoch = epoch + 1, connected = 1, seen_ms = ?2 WHERE id = ?1",
        params![id, login.now_ms],
    )?;
    let sql = format!("SELECT {NODE} FROM nodes WHERE id = ?1");
    let mut found = change.query_row(&sql, [id], node)?;
    if found.slot.is_none() {
        let Some(slot) = take_slot(change, login)? else { return Ok(Err(RejectCode::NoAddress)) };
        change.execute("UPDATE nodes SET slot = ?2 WHERE id = ?1", params![id, slot])?;
        found.slot = Some(slot);
    }
    Ok(Ok(found))
}

/// The lowest slot that was given back.
const FREE_SLOT: &str = "SELECT min(slot) FROM free_slots";
/// The highest one that somebody has.
const LAST_SLOT: &str = "SELECT max(slot) FROM nodes";
/// Who was away the longest.
const IDLE_NODE: &str = "SELECT id, name FROM nodes WHERE connected = 0 AND seen_ms < ?1 \
                         AND slot IS NOT NULL ORDER BY seen_ms LIMIT 1";

/// A slot that nobody has, from 1 to the capacity.
fn take_slot(change: &Transaction<'_>, login: &Login<'_>) -> rusqlite::Result<Option<u32>> {
    loop {
        let free: Option<u32> = change.query_row(FREE_SLOT, [], |row| row.get(0))?;
        if let Some(slot) = free {
            change.execute("DELETE FROM free_slots WHERE slot = ?1", [slot])?;
            if slot <= login.capacity {
                return Ok(Some(slot));
            }
            // The network is smaller than it was.
            continue;
        }
        let last: Option<u32> = change.query_row(LAST_SLOT, [], |row| row.get(0))?;
        let next = last.unwrap_or(0).saturating_add(1);
        if next <= login.capacity {
            return Ok(Some(next));
        }
        let idle = change.query_row(IDLE_NODE, [login.now_ms.saturating_sub(RECLAIM_MS)], |row| {
            Ok((row.get::<_, NodeId>(0)?, row.get::<_, String>(1)?))
        });
        let Some((id, name)) = idle.optional()? else { return Ok(None) };
        release(change, id)?;
        audit(change, login.now_ms, "reclaim-address", &name)?;
    }
}

/// Frees a node's slot.
fn release(change: &Transaction<'_>, id: NodeId) -> rusqlite::Result<()> {
    let sql = "INSERT INTO free_slots SELECT slot FROM nodes WHERE id = ?1 AND slot IS NOT NULL";
    change.execute(sql, [id])?;
    change.execute("UPDATE nodes SET slot = NULL WHERE id = ?1", [id]).map(drop)
}

/// Whether somebody has a name. By DNS names are the same in any case (RFC 4343), and the hub's is its own.
const NAME_TAKEN: &str = "SELECT ?1 = 'hub' COLLATE NOCASE \
                          OR EXISTS (SELECT 1 FROM nodes WHERE name = ?1 COLLATE NOCASE)";

/// The name that a node wants, or that with the lowest number behind it that nobody has.
fn free_name(change: &Transaction<'_>, wanted: &str) -> rusqlite::Result<String> {
    let taken = |name: &str| change.query_row(NAME_TAKEN, [name], |row| row.get::<_, bool>(0));
    let mut name = wanted.to_owned();
    let mut number: u64 = 2;
    while taken(&name)? {
        name = format!("{wanted}-{number}");
        number += 1;
    }
    Ok(name)
}

fn audit(
    change: &Transaction<'_>,
    now_ms: i64,
    action: &str,
    subject: &str,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO audit (at_ms, action, subject) VALUES (?1, ?2, ?3)";
    change.execute(sql, params![now_ms, action, subject]).map(drop)
}

#[cfg(test)]
mod tests;
