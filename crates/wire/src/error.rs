//! Why a packet was refused.

use std::fmt;

/// A packet that does not keep to its format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParseError {
    reason: &'static str,
}

impl ParseError {
    /// `reason` is `<layer>-<field>`: the layer without a dash, the field with any number.
    pub(crate) const fn new(reason: &'static str) -> Self {
        Self { reason }
    }

    /// The name of the drop counter: layer and field, e.g. `tcp-checksum`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.reason
    }

    /// The layer that was being parsed, e.g. `tcp`.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        self.split().0
    }

    /// The field that lies, e.g. `checksum`; `truncated` when the bytes end too early.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.split().1
    }

    fn split(&self) -> (&'static str, &'static str) {
        self.reason.split_once('-').unwrap_or((self.reason, ""))
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (layer, field) = self.split();
        write!(f, "malformed {layer} packet: {field}")
    }
}

impl std::error::Error for ParseError {}
