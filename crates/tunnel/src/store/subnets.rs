//! What is behind nodes: offered by them, accepted by the hub's administrator.

use ipnet::IpNet;
use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use super::audit::{self, Stamp};
use super::sqlite::{Sqlite, failed};
use crate::error::{Blame, Error, Result};
use crate::relay::NodeId;

/// A subnet behind a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its prefix; `/0`: everything.
    pub prefix: IpNet,
    /// Whether the node offers it.
    pub offered: bool,
    /// Whether the administrator has accepted it.
    pub accepted: bool,
}

impl Subnet {
    /// Whether packets go there.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.offered && self.accepted
    }
}

/// What a store knows of what is behind nodes.
pub trait Subnets {
    /// A node offers these subnets, and no others.
    ///
    /// # Errors
    /// The store cannot be written.
    fn offer(&mut self, node: NodeId, subnets: &[IpNet]) -> Result<()>;

    /// What is behind nodes.
    ///
    /// # Errors
    /// The store cannot be read.
    fn subnets(&self) -> Result<Vec<(NodeId, Subnet)>>;

    /// Accepts a subnet that a node offers, or takes that back.
    ///
    /// # Errors
    /// [`Blame::Unknown`]: there is no such node, or it has no such subnet. [`Blame::Conflict`]: the same
    /// subnet of another node is accepted. The store cannot be written.
    fn judge_subnet(&mut self, name: &str, prefix: IpNet, accept: bool, by: &Stamp) -> Result<()>;

    /// The node of this name, if everything is behind it and that is accepted.
    ///
    /// # Errors
    /// The store cannot be read.
    fn exit(&self, name: &str) -> Result<Option<NodeId>>;
}

/// Forgets what is neither offered nor accepted.
const NOBODYS: &str = "DELETE FROM subnets WHERE offered = 0 AND accepted_ms IS NULL";

impl Subnets for Sqlite {
    fn offer(&mut self, node: NodeId, subnets: &[IpNet]) -> Result<()> {
        let mut known: Vec<String> = self
            .subnets()?
            .into_iter()
            .filter(|(of, subnet)| *of == node && subnet.offered)
            .map(|(_, subnet)| subnet.prefix.to_string())
            .collect();
        let mut offered: Vec<String> = subnets.iter().map(IpNet::to_string).collect();
        known.sort();
        offered.sort();
        if known == offered {
            return Ok(());
        }
        self.change(|change| {
            change.execute("UPDATE subnets SET offered = 0 WHERE node = ?1", [node])?;
            for prefix in offered {
                let sql = "INSERT INTO subnets (node, prefix, offered) VALUES (?1, ?2, 1) \
                           ON CONFLICT (node, prefix) DO UPDATE SET offered = 1";
                change.execute(sql, params![node, prefix])?;
            }
            change.execute(NOBODYS, []).map(drop)
        })
    }

    fn subnets(&self) -> Result<Vec<(NodeId, Subnet)>> {
        let sql = "SELECT node, prefix, offered, accepted_ms IS NOT NULL FROM subnets \
                   ORDER BY node, prefix";
        let found = self.list(sql, |row| {
            let prefix: String = row.get(1)?;
            Ok((row.get(0)?, prefix, row.get(2)?, row.get(3)?))
        })?;
        let subnet = |(node, prefix, offered, accepted): (_, String, _, _)| {
            // Nobody else writes there.
            Some((node, Subnet { prefix: prefix.parse().ok()?, offered, accepted }))
        };
        Ok(found.into_iter().filter_map(subnet).collect())
    }

    fn judge_subnet(&mut self, name: &str, prefix: IpNet, accept: bool, by: &Stamp) -> Result<()> {
        let verb = if accept { "accept" } else { "refuse" };
        let wanted = format!("{verb} the subnet {prefix} behind {name}");
        let text = prefix.to_string();
        let judged = self.change(|change| {
            let sql = "SELECT node FROM subnets JOIN nodes ON nodes.id = node \
                       WHERE nodes.name = ?1 AND prefix = ?2 AND revoked_ms IS NULL";
            let found = change.query_row(sql, params![name, text], |row| row.get::<_, NodeId>(0));
            let Some(node) = found.optional()? else {
                let error = Error::new(Blame::Unknown, wanted, "that peer does not offer it");
                return Ok(Err(error.next("see `netyard peers`")));
            };
            if accept
                && prefix.prefix_len() > 0
                && let Some(other) = accepted_elsewhere(change, node, &text)?
            {
                let found = format!("the same one behind {other} is accepted");
                let next = format!("refuse that first: netyard peers refuse {other} {text}");
                return Ok(Err(Error::new(Blame::Conflict, wanted, found).next(next)));
            }
            let sql = "UPDATE subnets SET accepted_ms = ?3 WHERE node = ?1 AND prefix = ?2";
            change.execute(sql, params![node, text, accept.then_some(by.at_ms)])?;
            change.execute(NOBODYS, [])?;
            let action = if accept { "accept-subnet" } else { "refuse-subnet" };
            audit::write(change, action, &format!("{name} {text}"), by)?;
            Ok(Ok(()))
        });
        judged?
    }

    fn exit(&self, name: &str) -> Result<Option<NodeId>> {
        let sql = "SELECT node FROM subnets JOIN nodes ON nodes.id = node WHERE nodes.name = ?1 \
                   AND revoked_ms IS NULL AND accepted_ms IS NOT NULL \
                   AND prefix IN ('0.0.0.0/0', '::/0') LIMIT 1";
        let found = self.database.query_row(sql, [name], |row| row.get(0)).optional();
        found.map_err(|error| failed(&error))
    }
}

/// The name of another node whose subnet of this prefix is accepted.
fn accepted_elsewhere(
    change: &Transaction<'_>,
    node: NodeId,
    prefix: &str,
) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT name FROM subnets JOIN nodes ON nodes.id = node \
               WHERE node <> ?1 AND prefix = ?2 AND accepted_ms IS NOT NULL";
    change.query_row(sql, params![node, prefix], |row| row.get(0)).optional()
}
