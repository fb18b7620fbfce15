//! Where keys and databases are kept that outlive what runs.

use std::env;
use std::path::PathBuf;

use netyard_sys::process::effective_user;

use crate::error::{ErrorKind, YardError};

/// The folder of this name: below `/var/lib/netyard` for root, else below `$XDG_STATE_HOME/netyard` or
/// `~/.local/state/netyard`. It is not made.
///
/// # Errors
/// The caller has neither.
pub fn folder(name: &str) -> Result<PathBuf, YardError> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if effective_user() == 0 {
        return Ok(PathBuf::from("/var/lib/netyard").join(name));
    }
    let home = || Some(variable("HOME")?.join(".local/state"));
    match variable("XDG_STATE_HOME").or_else(home) {
        Some(root) => Ok(root.join("netyard").join(name)),
        None => Err(YardError::new(
            ErrorKind::Input,
            "find a place for keys",
            "neither XDG_STATE_HOME nor HOME is set",
        )
        .next("set XDG_STATE_HOME")),
    }
}
