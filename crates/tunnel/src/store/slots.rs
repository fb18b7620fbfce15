//! Slots of the address plan: who has which, and which are free.
//!
//! Slots are begun one after the other. Each that was begun is a node's, reserved by a token, or free; of the others
//! some may be so already, because an operator has chosen them.

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::audit::{self, Stamp};
use crate::join::TokenId;
use crate::relay::NodeId;

/// A node that was away for less keeps its address in any case: 30 days.
pub const RECLAIM_MS: i64 = 30 * 24 * 3600 * 1000;

/// The lowest slot that was given back.
pub(super) const FREE_SLOT: &str = "SELECT min(slot) FROM free_slots";
/// Who was away the longest.
pub(super) const IDLE_NODE: &str = "SELECT id, name FROM nodes WHERE connected = 0 \
                                    AND seen_ms < ?1 AND slot IS NOT NULL AND pinned = 0 \
                                    ORDER BY seen_ms LIMIT 1";
/// A slot that nobody can have any more by the token that had reserved it.
pub(super) const EXPIRED_SLOT: &str =
    "SELECT slot FROM reserved_slots WHERE expires_ms IS NOT NULL AND expires_ms <= ?1 LIMIT 1";
/// The node that has a slot.
pub(super) const OWNER: &str = "SELECT name FROM nodes WHERE slot = ?1";
/// The token that has reserved a slot.
pub(super) const RESERVED: &str = "SELECT token FROM reserved_slots WHERE slot = ?1";

/// Whose a slot is that somebody else shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// The node of this name.
    Node(String),
    /// Whoever joins with this token.
    Token(TokenId),
}

/// A slot that nobody has, from 1 to the capacity.
pub(super) fn take(
    change: &Transaction<'_>,
    capacity: u32,
    now_ms: i64,
) -> rusqlite::Result<Option<u32>> {
    sweep(change, now_ms)?;
    loop {
        let free: Option<u32> = change.query_row(FREE_SLOT, [], |row| row.get(0))?;
        // Of those behind the capacity there are some if the network is smaller than it was.
        if let Some(slot) = free.filter(|slot| *slot <= capacity) {
            occupy(change, slot)?;
            return Ok(Some(slot));
        }
        if let Some(slot) = begin(change, capacity)? {
            return Ok(Some(slot));
        }
        let idle = change.query_row(IDLE_NODE, [now_ms.saturating_sub(RECLAIM_MS)], |row| {
            Ok((row.get::<_, NodeId>(0)?, row.get::<_, String>(1)?))
        });
        let Some((id, name)) = idle.optional()? else { return Ok(None) };
        release(change, id)?;
        let by = Stamp { who: "hub".into(), at_ms: now_ms };
        audit::write(change, "reclaim-address", &name, &by)?;
    }
}

/// The next slot that was never begun, and that nobody has all the same.
fn begin(change: &Transaction<'_>, capacity: u32) -> rusqlite::Result<Option<u32>> {
    let first = next(change)?;
    let mut slot = first;
    while slot <= capacity && holder(change, slot)?.is_some() {
        slot += 1;
    }
    let begun = (slot <= capacity).then_some(slot);
    let next = slot + u32::from(begun.is_some());
    if next > first {
        change.execute("UPDATE next_slot SET slot = ?1", [next])?;
    }
    Ok(begun)
}

/// The first slot that was not begun yet.
fn next(change: &Transaction<'_>) -> rusqlite::Result<u32> {
    change.query_row("SELECT slot FROM next_slot", [], |row| row.get(0))
}

/// Whose a slot is; `None`: nobody's.
pub(super) fn holder(change: &Transaction<'_>, slot: u32) -> rusqlite::Result<Option<Holder>> {
    let node = change.query_row(OWNER, [slot], |row| row.get(0).map(Holder::Node)).optional()?;
    if node.is_some() {
        return Ok(node);
    }
    let token = |id| Holder::Token(TokenId(id));
    change.query_row(RESERVED, [slot], |row| row.get(0).map(token)).optional()
}

/// A slot that nobody has is somebody's from now on.
pub(super) fn occupy(change: &Transaction<'_>, slot: u32) -> rusqlite::Result<()> {
    change.execute("DELETE FROM free_slots WHERE slot = ?1", [slot]).map(drop)
}

/// Frees a node's slot.
pub(super) fn release(change: &Transaction<'_>, id: NodeId) -> rusqlite::Result<()> {
    let sql = "SELECT slot FROM nodes WHERE id = ?1";
    let slot: Option<u32> = change.query_row(sql, [id], |row| row.get(0))?;
    change.execute("UPDATE nodes SET slot = NULL, pinned = 0 WHERE id = ?1", [id])?;
    slot.map_or(Ok(()), |slot| give_back(change, slot))
}

fn give_back(change: &Transaction<'_>, slot: u32) -> rusqlite::Result<()> {
    if slot < next(change)? {
        change.execute("INSERT INTO free_slots (slot) VALUES (?1)", [slot])?;
    }
    Ok(())
}

/// Keeps a slot for whoever joins with a token.
pub(super) fn reserve(
    change: &Transaction<'_>,
    slot: u32,
    token: TokenId,
    expires_ms: Option<i64>,
) -> rusqlite::Result<()> {
    occupy(change, slot)?;
    let sql = "INSERT INTO reserved_slots (slot, token, expires_ms) VALUES (?1, ?2, ?3)";
    change.execute(sql, params![slot, &token.0[..], expires_ms]).map(drop)
}

/// The slot that a token has reserved.
pub(super) fn reserved(change: &Transaction<'_>, token: TokenId) -> rusqlite::Result<Option<u32>> {
    let sql = "SELECT slot FROM reserved_slots WHERE token = ?1";
    change.query_row(sql, [&token.0[..]], |row| row.get(0)).optional()
}

/// A reserved slot is free.
pub(super) fn cancel(change: &Transaction<'_>, slot: u32) -> rusqlite::Result<()> {
    unreserve(change, slot)?;
    give_back(change, slot)
}

/// A reserved slot is somebody's.
pub(super) fn unreserve(change: &Transaction<'_>, slot: u32) -> rusqlite::Result<()> {
    change.execute("DELETE FROM reserved_slots WHERE slot = ?1", [slot]).map(drop)
}

/// Frees what tokens have reserved that have expired.
pub(super) fn sweep(change: &Transaction<'_>, now_ms: i64) -> rusqlite::Result<()> {
    let expired = || change.query_row(EXPIRED_SLOT, [now_ms], |row| row.get(0)).optional();
    while let Some(slot) = expired()? {
        cancel(change, slot)?;
    }
    Ok(())
}
