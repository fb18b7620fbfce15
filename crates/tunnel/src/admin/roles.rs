//! Who may ask a hub for what.
//!
//! Whoever asks is a user of the hub's machine: the kernel says which one has connected to the control socket
//! (unix(7), `SO_PEERCRED`). Root and the hub's own user decide everything. Other users reach the hub by a socket that
//! it opens for them, and may do what their role says. Peers have no role: they ask a hub for nothing but their
//! network.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use netyard_sys::process::effective_user;
use serde::{Deserialize, Serialize};
use tokio::net::unix::UCred;

use super::places::Standing;
use super::{Ask, NetworkAsk};
use crate::error::{Blame, Error, Result};

/// What a user may do; each may do what those before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look: at networks, peers, tokens without their secrets, policies, the audit, metrics.
    Reader,
    /// Let machines in and turn them out: tokens, revocations, addresses, subnets behind peers.
    Operator,
    /// Decide: networks, policies, backups, roles.
    Admin,
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "reader" => Ok(Self::Reader),
            "operator" => Ok(Self::Operator),
            "admin" => Ok(Self::Admin),
            _ => Err("expected reader, operator or admin".into()),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// Users by number who have a role, beside root and the hub's own.
pub type Roles = BTreeMap<u32, Role>;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    user: u32,
    process: Option<i32>,
}

impl From<UCred> for Caller {
    fn from(credentials: UCred) -> Self {
        Self { user: credentials.uid(), process: credentials.pid() }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}", self.user)?;
        self.process.map_or(Ok(()), |process| write!(f, ", process {process}"))
    }
}

impl Caller {
    /// Whose number this is.
    pub(crate) const fn user(&self) -> u32 {
        self.user
    }

    /// What this one is to the hub.
    pub(super) fn standing(&self, roles: &Roles) -> Standing {
        match self.user {
            0 => Standing::Own,
            user if user == effective_user() => Standing::Own,
            user if roles.contains_key(&user) => Standing::Known,
            _ => Standing::Stranger,
        }
    }

    /// Whether this one may ask for what takes a role.
    ///
    /// # Errors
    /// [`Blame::NotPermitted`]: no.
    pub(crate) fn check(&self, roles: &Roles, needed: Role) -> Result<()> {
        let user = self.user;
        let role = match self.standing(roles) {
            Standing::Own => Some(Role::Admin),
            Standing::Known | Standing::Stranger => roles.get(&user).copied(),
        };
        let found = match role {
            Some(role) if role >= needed => return Ok(()),
            Some(role) => format!("the user {user} has the role {role}, and that takes {needed}"),
            None => format!("the user {user} has no role, and that takes {needed}"),
        };
        Err(Error::new(Blame::NotPermitted, "do that at the hub", found)
            .next(format!("have its administrator run: netyard hub role grant {user} {needed}")))
    }
}

impl Ask {
    /// The role that it takes.
    pub(crate) const fn needs(&self) -> Role {
        match self {
            Self::Networks | Self::Metrics | Self::Roles => Role::Reader,
            Self::AddNetwork(_) | Self::RemoveNetwork(_) | Self::SetRole { .. } => Role::Admin,
            Self::Of { ask, .. } => ask.needs(),
        }
    }
}

impl NetworkAsk {
    const fn needs(&self) -> Role {
        match self {
            Self::Status
            | Self::Health
            | Self::Peers
            | Self::Peer(_)
            | Self::Tokens
            | Self::Policy
            | Self::Audit { .. } => Role::Reader,
            Self::RevokePeer(_)
            | Self::Pin { .. }
            | Self::JudgeSubnet { .. }
            | Self::CreateToken(_)
            | Self::RevokeToken(_) => Role::Operator,
            Self::SetPolicy(_) | Self::BackUp(_) => Role::Admin,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_may_what_those_before_it_may() {
        let roles = Roles::from([(7001, Role::Reader), (7002, Role::Operator)]);
        let may = |user, needed| Caller { user, process: None }.check(&roles, needed).is_ok();
        let all = [Role::Reader, Role::Operator, Role::Admin];
        let allowed = |user| all.map(|needed| may(user, needed));
        assert_eq!(allowed(0), [true; 3]);
        assert_eq!(allowed(7001), [true, false, false]);
        assert_eq!(allowed(7002), [true, true, false]);
        assert_eq!(allowed(7003), [false; 3]);
        let error = Caller { user: 7001, process: None }.check(&roles, Role::Admin).unwrap_err();
        assert_eq!(error.blame, Blame::NotPermitted);
        assert!(error.next.unwrap().contains("grant 7001 admin"));
        for role in all {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
    }
}
