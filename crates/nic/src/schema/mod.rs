//! Interfaces as JSON, `nic/1`, and what other programs have written before.
//!
//! What is written is a superset of the older form: `name`, `nat` and `rp` come first and have its names,
//! numbers and texts. The keys of families are fixed: `"2"` is IPv4 and `"23"` is IPv6, whichever machine
//! writes. An address range is `ip`, `cidr` (the length of its prefix) and `af`; what is not known is null
//! or missing.
//!
//! Reading is lenient: a family is any number that a system gives it (IPv6: 10, 23, 24, 28, 30) or its
//! name, a range may say `host_limit` in place of `cidr`, everything but the name may be missing, and the
//! text may stand in `Interface.from_dict(...)`. Fields that are not known here are kept and written again
//! where they were, unless routes of the file have become one or several.

mod order;
mod read;
mod unread;
mod write;

use serde_json::Value;

pub use order::InOrder;
pub(crate) use unread::Unread;

use crate::{Card, Family, Interface};

/// Name and version of the form.
pub const SCHEMA: &str = "nic/1";

/// What is around the JSON where programs print it.
const WRAPPER: (&str, &str) = ("Interface.from_dict(", ")");

/// Keys of IPv4 and IPv6.
const FAMILY_KEYS: [&str; 2] = ["2", "23"];

/// Why a text is no interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// It is no JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// It is of a form that is not known here.
    #[error("the form is {found:?}; this version reads {SCHEMA:?}")]
    Version {
        /// What it says.
        found: String,
    },
    /// A field is not what it has to be.
    #[error("{path}: wanted {wanted}, found {found}")]
    Field {
        /// Where: `/rp/2/0/nic_ips/0/ip`.
        path: String,
        /// What has to be there.
        wanted: &'static str,
        /// What is there.
        found: String,
    },
}

impl Card {
    /// What a list of cards says of it: the form without external addresses, and `standing`, what it is good
    /// for in each family.
    #[must_use]
    pub fn to_listed_json(&self) -> Value {
        let mut value = Interface::unasked(self.clone()).to_json();
        let standing = |family| serde_json::json!(self.standing(family));
        value["standing"] =
            serde_json::json!({ "2": standing(Family::Ip4), "23": standing(Family::Ip6) });
        value
    }
}

impl Interface {
    /// Reads a text: JSON, also in `Interface.from_dict(...)`.
    ///
    /// # Errors
    /// It is no JSON, or no interface.
    pub fn parse(text: &str) -> Result<Self, SchemaError> {
        let text = text.trim();
        let inner = text.strip_prefix(WRAPPER.0).and_then(|text| text.strip_suffix(WRAPPER.1));
        let value: Value = serde_json::from_str(inner.unwrap_or(text))
            .map_err(|error| SchemaError::Json(error.to_string()))?;
        Self::from_json(&value)
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// It is no interface.
    pub fn from_json(value: &Value) -> Result<Self, SchemaError> {
        let mut interface = read::interface(value)?;
        interface.unread = Unread::between(value, &write::interface(&interface));
        Ok(interface)
    }

    /// All of it as JSON. [`InOrder`] writes it with the fields in their order.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut value = write::interface(self);
        self.unread.put(&mut value);
        value
    }

    /// The older form, as the programs that read it print it: `Interface.from_dict({...})`.
    #[must_use]
    pub fn to_seed(&self) -> String {
        let value = write::seed(self);
        format!("{}{}{}", WRAPPER.0, order::pretty(&value), WRAPPER.1)
    }
}
