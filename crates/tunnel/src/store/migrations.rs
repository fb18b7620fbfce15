//! How the database came to its shape: one step for each version. A step that was delivered is never changed.

use rusqlite::{Connection, TransactionBehavior};

/// One step for each version of the database; its number is `user_version`.
pub(super) const STEPS: [&str; 6] = [
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
    "ALTER TABLE audit ADD COLUMN who TEXT NOT NULL DEFAULT '';",
    "
ALTER TABLE nodes ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
DROP INDEX nodes_idle;
CREATE INDEX nodes_idle ON nodes (connected, seen_ms) WHERE slot IS NOT NULL AND pinned = 0;
CREATE TABLE reserved_slots (
    slot INTEGER PRIMARY KEY,
    token BLOB NOT NULL UNIQUE,
    expires_ms INTEGER
);
CREATE INDEX reserved_slots_end ON reserved_slots (expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE next_slot (slot INTEGER NOT NULL);
INSERT INTO next_slot SELECT 1 + max(
    coalesce((SELECT max(slot) FROM nodes), 0), coalesce((SELECT max(slot) FROM free_slots), 0)
);
",
    "CREATE INDEX nodes_dotted ON nodes (name) WHERE instr(name, '.') > 0;",
];

/// Brings a database up to date; the version it has then, which may be one of a newer netyard.
pub(super) fn run(database: &mut Connection) -> rusqlite::Result<u32> {
    let change = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut version: u32 = change.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for step in STEPS.iter().skip(version as usize) {
        change.execute_batch(step)?;
        version += 1;
        change.pragma_update(None, "user_version", version)?;
    }
    change.commit()?;
    Ok(version)
}
