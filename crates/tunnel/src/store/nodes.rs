//! Nodes: who has joined, and who may come back.

use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::audit::{self, Deed, Stamp};
use super::slots::{self, Holder};
use super::sqlite::Sqlite;
use super::tokens;
use crate::error::Result;
use crate::join::{Secret, TokenId};
use crate::message::RejectCode;
use crate::relay::NodeId;

/// A machine that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name, which no other has.
    pub name: String,
    /// Its slot of the address plan; `None`: it has lost it.
    pub slot: Option<u32>,
    /// Whether an operator has chosen its slot: it is not taken from it while it is away.
    pub pinned: bool,
    /// How often it has logged in.
    pub epoch: u64,
    /// When it joined.
    pub created_ms: i64,
    /// When it was last here.
    pub seen_ms: i64,
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
    /// Its last login that the hub knows of, by count: one may not be written down.
    pub epoch: u64,
    /// The hub's clock.
    pub now_ms: i64,
}

/// Whether a node is here, as of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// Its number.
    pub node: NodeId,
    /// Which of its logins that was, by count.
    pub epoch: u64,
    /// Whether it is here.
    pub is_here: bool,
    /// When it was here last, milliseconds of Unix time.
    pub seen_ms: i64,
}

/// Why a node does not get the slot that it shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotPinned {
    /// There is no such node.
    Unknown,
    /// Somebody has that slot.
    Taken(Holder),
}

/// A login in the database: let in, or not, and why.
type Judged = rusqlite::Result<Result<Node, RejectCode>>;

/// What a store knows of nodes.
pub trait Nodes {
    /// Lets a node in, or says why not. A known node gets what it had; a new one uses up its token and gets
    /// a slot, in one transaction.
    ///
    /// # Errors
    /// The store cannot be written.
    fn login(&mut self, login: &Login<'_>) -> Result<Result<Node, RejectCode>>;

    /// Writes down who is here and who is not, unless a newer login says otherwise, and what was done meanwhile.
    ///
    /// # Errors
    /// The store cannot be written.
    fn keep_up(&mut self, presences: &[Presence], deeds: &[Deed]) -> Result<()>;

    /// Revokes a node by its name, for ever: its key is refused, its address is free. `None`: there is none.
    ///
    /// # Errors
    /// The store cannot be written.
    fn revoke_node(&mut self, name: &str, by: &Stamp) -> Result<Option<NodeId>>;

    /// Gives a node a slot, in place of the one that it has, and leaves it that whatever happens. Its number, and
    /// whether it had another slot or none before. `place`: the slot, and how it was named, for the audit.
    ///
    /// # Errors
    /// The store cannot be written.
    fn pin(
        &mut self,
        name: &str,
        place: (u32, &str),
        by: &Stamp,
    ) -> Result<Result<(NodeId, bool), NotPinned>>;

    /// A node keeps its slot as others do, from now on. `false`: there is none of that name.
    ///
    /// # Errors
    /// The store cannot be written.
    fn unpin(&mut self, name: &str, by: &Stamp) -> Result<bool>;

    /// The nodes that may log in, in the order in which they joined.
    ///
    /// # Errors
    /// The store cannot be read.
    fn nodes(&self) -> Result<Vec<Node>>;
}

impl Nodes for Sqlite {
    fn login(&mut self, login: &Login<'_>) -> Result<Result<Node, RejectCode>> {
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

    fn keep_up(&mut self, presences: &[Presence], deeds: &[Deed]) -> Result<()> {
        self.change(|change| {
            let mut write = change.prepare(
                "UPDATE nodes SET epoch = ?2, connected = ?3, seen_ms = max(seen_ms, ?4) \
                 WHERE id = ?1 AND epoch <= ?2 AND revoked_ms IS NULL",
            )?;
            for Presence { node, epoch, is_here, seen_ms } in presences {
                write.execute(params![node, epoch.cast_signed(), is_here, seen_ms])?;
            }
            deeds.iter().try_for_each(|Deed { at_ms, who, action, subject }| {
                let by = Stamp { who: who.clone(), at_ms: *at_ms };
                audit::write(change, action, subject, &by)
            })
        })
    }

    fn revoke_node(&mut self, name: &str, by: &Stamp) -> Result<Option<NodeId>> {
        self.change(|change| {
            let Some(Node { id, .. }) = named(change, name)? else { return Ok(None) };
            slots::release(change, id)?;
            change.execute("DELETE FROM subnets WHERE node = ?1", [id])?;
            // Its name may be somebody else's from now on.
            let sql = "UPDATE nodes SET revoked_ms = ?2, connected = 0, name = name || '#' || id \
                       WHERE id = ?1";
            change.execute(sql, params![id, by.at_ms])?;
            audit::write(change, "revoke-node", name, by)?;
            Ok(Some(id))
        })
    }

    fn pin(
        &mut self,
        name: &str,
        (slot, place): (u32, &str),
        by: &Stamp,
    ) -> Result<Result<(NodeId, bool), NotPinned>> {
        self.change(|change| {
            let Some(node) = named(change, name)? else { return Ok(Err(NotPinned::Unknown)) };
            let moves = node.slot != Some(slot);
            if moves {
                slots::sweep(change, by.at_ms)?;
                if let Some(holder) = slots::holder(change, slot)? {
                    return Ok(Err(NotPinned::Taken(holder)));
                }
                slots::release(change, node.id)?;
                slots::occupy(change, slot)?;
            }
            let sql = "UPDATE nodes SET slot = ?2, pinned = 1 WHERE id = ?1";
            change.execute(sql, params![node.id, slot])?;
            audit::write(change, "pin-address", &format!("{name} {place}"), by)?;
            Ok(Ok((node.id, moves)))
        })
    }

    fn unpin(&mut self, name: &str, by: &Stamp) -> Result<bool> {
        self.change(|change| {
            let Some(node) = named(change, name)? else { return Ok(false) };
            change.execute("UPDATE nodes SET pinned = 0 WHERE id = ?1", [node.id])?;
            audit::write(change, "unpin-address", name, by).map(|()| true)
        })
    }

    fn nodes(&self) -> Result<Vec<Node>> {
        let sql = format!("SELECT {NODE} FROM nodes WHERE revoked_ms IS NULL ORDER BY id");
        self.list(&sql, node)
    }
}

const NODE: &str = "id, name, slot, epoch, created_ms, seen_ms, pinned";

/// The node of this name, if it may log in.
fn named(change: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<Node>> {
    let sql = format!("SELECT {NODE} FROM nodes WHERE name = ?1 AND revoked_ms IS NULL");
    change.query_row(&sql, [name], node).optional()
}

fn node(row: &Row<'_>) -> rusqlite::Result<Node> {
    Ok(Node {
        id: row.get(0)?,
        name: row.get(1)?,
        slot: row.get(2)?,
        epoch: row.get::<_, i64>(3)?.cast_unsigned(),
        created_ms: row.get(4)?,
        seen_ms: row.get(5)?,
        pinned: row.get(6)?,
    })
}

/// Makes a node of somebody with a token.
fn enrol(
    change: &Transaction<'_>,
    login: &Login<'_>,
) -> rusqlite::Result<Result<NodeId, RejectCode>> {
    let Some(token) = login.token else { return Ok(Err(RejectCode::Unknown)) };
    if let Err(code) = tokens::check(change, token, login.now_ms)? {
        return Ok(Err(code));
    }
    let reserved = slots::reserved(change, token.0)?;
    let slot = match reserved {
        Some(slot) => Some(slot).filter(|slot| *slot <= login.capacity),
        None => slots::take(change, login.capacity, login.now_ms)?,
    };
    let Some(slot) = slot else { return Ok(Err(RejectCode::NoAddress)) };
    if reserved.is_some() {
        slots::unreserve(change, slot)?;
    }
    tokens::use_up(change, token.0)?;
    let name = free_name(change, login.name)?;
    change.execute(
        "INSERT INTO nodes (key, name, slot, pinned, token, created_ms, seen_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
        params![&login.key[..], name, slot, reserved.is_some(), &token.0.0[..], login.now_ms],
    )?;
    let id = change.last_insert_rowid();
    // The node's own deed: whoever made the token is written down with that.
    let by = Stamp { who: format!("token {}", token.0), at_ms: login.now_ms };
    audit::write(change, "join", &name, &by)?;
    Ok(Ok(id))
}

/// A node's login: the next epoch, and its address.
fn admit(change: &Transaction<'_>, id: NodeId, login: &Login<'_>) -> Judged {
    let slot: Option<u32> =
        change.query_row("SELECT slot FROM nodes WHERE id = ?1", [id], |row| row.get(0))?;
    let slot = match slot {
        None => slots::take(change, login.capacity, login.now_ms)?,
        slot => slot,
    };
    let Some(slot) = slot else { return Ok(Err(RejectCode::NoAddress)) };
    let sql = format!(
        "UPDATE nodes SET epoch = max(epoch, ?4) + 1, connected = 1, seen_ms = ?2, slot = ?3 \
         WHERE id = ?1 RETURNING {NODE}"
    );
    change.query_row(&sql, params![id, login.now_ms, slot, login.epoch.cast_signed()], node).map(Ok)
}

/// Whether somebody has a name. By DNS names are the same in any case (RFC 4343), and the hub's is its own.
pub(super) const NAME_TAKEN: &str = "SELECT ?1 = 'hub' COLLATE NOCASE \
                          OR EXISTS (SELECT 1 FROM nodes WHERE name = ?1 COLLATE NOCASE)";

/// Whether somebody has a name below one, such as `web.office` below `office`.
const NAME_ABOVE: &str = "SELECT EXISTS (SELECT 1 FROM nodes WHERE instr(name, '.') > 0 \
                          AND (substr(name, -1 - length(?1)) COLLATE NOCASE) = '.' || ?1)";

/// The name that a node wants, or that with the lowest number behind it that nobody has. What is behind a node has
/// names below its own: so no node has one below that of another.
fn free_name(change: &Transaction<'_>, wanted: &str) -> rusqlite::Result<String> {
    let is = |sql: &str, name: &str| change.query_row(sql, [name], |row| row.get::<_, bool>(0));
    let taken = |name: &str| -> rusqlite::Result<bool> {
        for above in name.match_indices('.').filter_map(|(at, _)| name.get(at + 1..)) {
            if is(NAME_TAKEN, above)? {
                return Ok(true);
            }
        }
        Ok(is(NAME_TAKEN, name)? || is(NAME_ABOVE, name)?)
    };
    let mut name = wanted.to_owned();
    let mut number: u64 = 2;
    while taken(&name)? {
        name = format!("{wanted}-{number}");
        number += 1;
    }
    Ok(name)
}
