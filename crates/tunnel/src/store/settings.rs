//! What the hub's administrator has decided: the policy, and the roles of users.

use rusqlite::OptionalExtension as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::audit::{self, Stamp};
use super::sqlite::{Sqlite, failed};
use crate::admin::{Role, Roles};
use crate::error::{Blame, Error, Result};
use crate::policy::Policy;

const POLICY: &str = "policy";
const ROLES: &str = "roles";

/// What a store keeps of what administrators have decided.
pub trait Settings {
    /// Who may reach whom; `None`: everybody.
    ///
    /// # Errors
    /// The store cannot be read, or a newer version wrote it.
    fn policy(&self) -> Result<Option<Policy>>;

    /// Sets who may reach whom.
    ///
    /// # Errors
    /// The store cannot be written.
    fn set_policy(&mut self, policy: Option<&Policy>, by: &Stamp) -> Result<()>;

    /// The users with roles.
    ///
    /// # Errors
    /// The store cannot be read, or a newer version wrote it.
    fn roles(&self) -> Result<Roles>;

    /// Gives a user a role in place of the one before, or takes it away. The users with roles then.
    ///
    /// # Errors
    /// The store cannot be read or written.
    fn set_role(&mut self, user: u32, role: Option<Role>, by: &Stamp) -> Result<Roles>;
}

impl Settings for Sqlite {
    fn policy(&self) -> Result<Option<Policy>> {
        self.setting(POLICY)
    }

    fn set_policy(&mut self, policy: Option<&Policy>, by: &Stamp) -> Result<()> {
        let action = if policy.is_some() { "set-policy" } else { "remove-policy" };
        self.set(POLICY, policy, (action, ""), by)
    }

    fn roles(&self) -> Result<Roles> {
        Ok(self.setting(ROLES)?.unwrap_or_default())
    }

    fn set_role(&mut self, user: u32, role: Option<Role>, by: &Stamp) -> Result<Roles> {
        let mut roles = self.roles()?;
        let deed = match role {
            Some(role) => {
                roles.insert(user, role);
                ("grant-role", format!("user {user} {role}"))
            }
            None => {
                roles.remove(&user);
                ("revoke-role", format!("user {user}"))
            }
        };
        self.set(ROLES, Some(&roles), (deed.0, &deed.1), by)?;
        Ok(roles)
    }
}

impl Sqlite {
    fn setting<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let sql = "SELECT value FROM settings WHERE name = ?1";
        let text = self.database.query_row(sql, [name], |row| row.get::<_, String>(0)).optional();
        let unread =
            |error| Error::new(Blame::System, format!("read the hub's setting {name}"), error);
        let text = text.map_err(|error| failed(&error))?;
        text.map(|text| serde_json::from_str(&text).map_err(unread)).transpose()
    }

    fn set(
        &mut self,
        name: &str,
        value: Option<&impl Serialize>,
        (action, subject): (&str, &str),
        by: &Stamp,
    ) -> Result<()> {
        // Names, numbers and prefixes: nothing in it can fail.
        let text = value.map(|value| serde_json::to_string(value).unwrap_or_default());
        self.change(|change| {
            match text {
                Some(text) => {
                    let sql = "INSERT OR REPLACE INTO settings (name, value) VALUES (?1, ?2)";
                    change.execute(sql, [name, &text])?
                }
                None => change.execute("DELETE FROM settings WHERE name = ?1", [name])?,
            };
            audit::write(change, action, subject, by)
        })
    }
}
