//! Networks that join a hub as a whole: their instances and remote machines reach each other.
//!
//! # Theory of operation
//!
//! The keeper starts a process of the same binary for each such network ([`main`]), which is a peer of the hub
//! and a member of the network. It offers the network's prefixes to the hub as subnets behind it, so that both
//! sides see each other's true addresses, and tells the network what the hub says: which networks lead there, the
//! names there, and whether it is reached. In user mode packets go by a frame socket between the two processes,
//! and nothing is made on this machine; in bridge mode there is a TUN device with its routes, as for any
//! other peer.
//!
//! What the process is to do comes on its standard input, which is open for as long as its keeper wants it: it
//! ends with that, and takes back what it has made, also when the keeper was killed.

mod process;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use netyard_engine::config::Config;
use netyard_tunnel::join::Join;
use serde::{Deserialize, Serialize};

pub use self::process::main;
use crate::bridge;
use crate::error::{ErrorKind, YardError};
use crate::model::{HubSpec, JoinSource, NetworkSpec};
use crate::runtime::Runtime;
use crate::state;

/// The hidden verb that calls [`main`].
pub const VERB: &str = "network-peer";

/// A join string is not longer than this, bytes.
const MAX_LEN: u64 = 4096;

/// What such a process is to do. It has a secret in it, and is never printed.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    /// The network's folder, and what it is.
    network: PathBuf,
    config: Config,
    /// What the process is called as a member of the network.
    member: String,
    join: String,
    /// What it calls itself at the hub.
    name: String,
    /// Where its key is.
    state: PathBuf,
    /// Where its journal is, and the ledger that all owners share.
    runtime: PathBuf,
    ledger: PathBuf,
    owner: String,
}

impl Order {
    /// The order for a network of a yard, if it joins a hub.
    ///
    /// # Errors
    /// There is no join string where it is said to be, or it is none.
    pub(crate) fn of(
        runtime: &Runtime,
        yard: &str,
        network: &NetworkSpec,
        config: &Config,
    ) -> Result<Option<Self>, YardError> {
        let Some(hub) = &network.hub else { return Ok(None) };
        let owner = format!("network-{}", network.global);
        let folder = runtime.network(&network.global);
        Ok(Some(Self {
            // The network wants some of the same settings: the last of both puts them back.
            ledger: bridge::ledger(&folder),
            network: folder,
            config: config.clone(),
            member: format!("{yard}: hub"),
            join: join_string(hub, &network.name)?.to_string(),
            name: hub.name.clone(),
            state: match &hub.state {
                Some(folder) => folder.clone(),
                None => state::folder(&owner)?,
            },
            runtime: runtime.root().join(format!(".{owner}")),
            owner,
        }))
    }

    /// The name of the network.
    pub(crate) fn network_name(&self) -> &str {
        &self.config.name
    }
}

/// The join string of a network.
fn join_string(hub: &HubSpec, network: &str) -> Result<Join, YardError> {
    let wanted = || format!("join network {network} to a hub with the join string in {}", hub.join);
    let text = match &hub.join {
        JoinSource::File(path) => read(path).map_err(|error| {
            YardError::io(wanted(), &error).next(
                "have the hub's administrator say `netyard token create`, and save what it prints",
            )
        })?,
        JoinSource::Env(name) => {
            withheld().insert(name.clone());
            std::env::var(name).map_err(|_| {
                let error = YardError::new(ErrorKind::Input, wanted(), "it is not set");
                error.next("set it where `netyard up` is started")
            })?
        }
    };
    // Not what was found: it may be a secret with a mistake in it.
    text.parse().map_err(|error| YardError::new(ErrorKind::Input, wanted(), format!("{error}")))
}

/// Variables of this process's environment that are secrets: what it starts for an instance does not get them.
static WITHHELD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn withheld() -> MutexGuard<'static, BTreeSet<String>> {
    // A set is whole, whatever a thread that panicked was about to do.
    WITHHELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps join strings from a process that is about to be started.
pub(crate) fn withhold(command: &mut Command) {
    for name in &*withheld() {
        command.env_remove(name);
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_LEN).read_to_string(&mut text)?;
    Ok(text)
}
