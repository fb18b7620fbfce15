//! The ledger of settings: who wants which setting of the whole machine, and what it was before.
//!
//! Several networks may want `net/ipv4/ip_forward`. The first writes down what it was; the last that
//! goes puts it back. One file for all owners, locked while it is read and written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::journal::boot;
use crate::error::{Error, Result};
use crate::netns::Netns;
use crate::sysctl::Key;

/// Where it is.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    path: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    boot: String,
    /// By number of the namespace and name.
    settings: BTreeMap<String, Held>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Held {
    before: String,
    value: String,
    holders: BTreeSet<String>,
}

impl Ledger {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Sets a setting for `holder`.
    pub(super) fn hold(&self, key: &Key, value: &str, holder: &str) -> Result<()> {
        self.change(key, |held| {
            let is = key
                .get(None)?
                .ok_or_else(|| Error::Absent { what: format!("setting {key} in this kernel") })?;
            match held {
                Some(held) if held.value != value => {
                    let holders = held.holders.iter().cloned().collect::<Vec<_>>().join(", ");
                    Err(Error::Taken {
                        what: format!("the value {} of {key}, for {holders},", held.value),
                    })
                }
                Some(held) => {
                    held.holders.insert(holder.to_owned());
                    Ok(())
                }
                None => {
                    *held = Some(Held {
                        before: is,
                        value: value.to_owned(),
                        holders: [holder.to_owned()].into(),
                    });
                    Ok(())
                }
            }
        })?;
        // After it is written down: a kill in between is undone as if it had been set.
        key.set(None, value)
    }

    /// Takes back what [`Ledger::hold`] did, done or not.
    pub(super) fn release(&self, key: &Key, holder: &str) -> Result<()> {
        self.change(key, |slot| {
            let Some(held) = slot else { return Ok(()) };
            held.holders.remove(holder);
            if held.holders.is_empty() {
                // A value that somebody else has set since is theirs.
                if key.get(None)?.as_ref() == Some(&held.value) {
                    key.set(None, &held.before)?;
                }
                *slot = None;
            }
            Ok(())
        })
    }

    /// Changes one entry under the lock.
    fn change(
        &self,
        key: &Key,
        change: impl FnOnce(&mut Option<Held>) -> Result<()>,
    ) -> Result<()> {
        let failed = |error| Error::io(format!("keep the ledger {}", self.path.display()), error);
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        // The lock is the folder's: the ledger itself is replaced whole, and goes when it is empty.
        let lock = File::open(folder).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let now = boot()?;
        let mut content = match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(failed(error)),
        };
        if content.boot != now {
            content = Content { boot: now, ..Content::default() };
        }
        let name = format!("{}/{key}", Netns::current()?.id().number());
        let mut held = content.settings.remove(&name);
        change(&mut held)?;
        if let Some(held) = held {
            content.settings.insert(name, held);
        }
        if content.settings.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            };
        }
        let new = self.path.with_extension("new");
        let text = serde_json::to_vec(&content).map_err(|error| failed(error.into()))?;
        fs::write(&new, text).map_err(failed)?;
        fs::rename(new, &self.path).map_err(failed)
    }
}
