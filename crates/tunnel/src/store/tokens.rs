//! Tokens: what lets new nodes in.

use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use super::audit::{self, Stamp};
use super::slots::{self, Holder};
use super::sqlite::Sqlite;
use crate::error::Result;
use crate::identity::{same, sha256};
use crate::join::{Secret, TokenId};
use crate::message::RejectCode;
use crate::text;

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
    /// The slot that whoever joins with it gets; `None`: any, or it lets nobody in any more.
    pub slot: Option<u32>,
}

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// When it ends; `None`: it does not.
    pub expires_ms: Option<i64>,
    /// How many nodes may join with it; `None`: any number.
    pub uses: Option<u32>,
    /// The slot that the one who joins with it gets, and keeps; nobody else gets it meanwhile. `None`: any.
    pub slot: Option<u32>,
}

/// What a store knows of tokens.
pub trait Tokens {
    /// Makes a token, unless the slot that it is for is somebody's.
    ///
    /// # Errors
    /// The store cannot be written.
    fn create_token(
        &mut self,
        token: (TokenId, Secret),
        terms: Terms,
        by: &Stamp,
    ) -> Result<Result<(), Holder>>;

    /// Revokes a token: nobody joins with it any more. Those who have stay. `false`: there is none.
    ///
    /// # Errors
    /// The store cannot be written.
    fn revoke_token(&mut self, id: TokenId, by: &Stamp) -> Result<bool>;

    /// The tokens, in the order in which they were made.
    ///
    /// # Errors
    /// The store cannot be read.
    fn tokens(&self) -> Result<Vec<Token>>;
}

impl Tokens for Sqlite {
    fn create_token(
        &mut self,
        (id, secret): (TokenId, Secret),
        Terms { expires_ms, uses, slot }: Terms,
        by: &Stamp,
    ) -> Result<Result<(), Holder>> {
        self.change(|change| {
            slots::sweep(change, by.at_ms)?;
            if let Some(slot) = slot {
                if let Some(holder) = slots::holder(change, slot)? {
                    return Ok(Err(holder));
                }
                slots::reserve(change, slot, id, expires_ms)?;
            }
            let sql = "INSERT INTO tokens (id, hash, created_ms, expires_ms, uses_left) \
                       VALUES (?1, ?2, ?3, ?4, ?5)";
            let hash = sha256(&secret.0);
            change.execute(sql, params![&id.0[..], &hash[..], by.at_ms, expires_ms, uses])?;
            audit::write(change, "create-token", &id.to_string(), by).map(Ok)
        })
    }

    fn revoke_token(&mut self, id: TokenId, by: &Stamp) -> Result<bool> {
        self.change(|change| {
            let sql = "UPDATE tokens SET revoked_ms = coalesce(revoked_ms, ?2) WHERE id = ?1";
            if change.execute(sql, params![&id.0[..], by.at_ms])? == 0 {
                return Ok(false);
            }
            if let Some(slot) = slots::reserved(change, id)? {
                slots::cancel(change, slot)?;
            }
            audit::write(change, "revoke-token", &id.to_string(), by).map(|()| true)
        })
    }

    fn tokens(&self) -> Result<Vec<Token>> {
        let sql = "SELECT id, created_ms, tokens.expires_ms, uses_left, revoked_ms, slot FROM tokens \
                   LEFT JOIN reserved_slots ON token = id ORDER BY created_ms, tokens.rowid";
        self.list(sql, |row| {
            Ok(Token {
                id: text::encode(&row.get::<_, Vec<u8>>(0)?),
                created_ms: row.get(1)?,
                expires_ms: row.get(2)?,
                uses_left: row.get(3)?,
                revoked_ms: row.get(4)?,
                slot: row.get(5)?,
            })
        })
    }
}

/// Whether a token lets a new node in, now.
pub(super) fn check(
    change: &Transaction<'_>,
    (id, secret): (TokenId, Secret),
    now_ms: i64,
) -> rusqlite::Result<Result<(), RejectCode>> {
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
    Ok(if !same(&hash, &sha256(&secret.0)) {
        Err(RejectCode::BadToken)
    } else if revoked.is_some() {
        Err(RejectCode::Revoked)
    } else if expires.is_some_and(|expires| now_ms >= expires) {
        Err(RejectCode::Expired)
    } else if uses == Some(0) {
        Err(RejectCode::Used)
    } else {
        Ok(())
    })
}

/// One more node has joined with it.
pub(super) fn use_up(change: &Transaction<'_>, id: TokenId) -> rusqlite::Result<()> {
    let sql = "UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ?1";
    change.execute(sql, [&id.0[..]]).map(drop)
}
