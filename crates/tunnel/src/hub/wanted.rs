//! What networks of a hub are told, and where that is written down for those that were added while it ran.
//!
//! The main network is what the hub's own options say. Each other has a folder, with what was wanted of it and its
//! database; without the first, the folder is that of a network that was being added or removed when the hub
//! was killed.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::addresses::{Addressing, Plan};
use crate::error::{Blame, Error, Result};
use crate::folder::write_private;
use crate::join::is_network;
use crate::message::MAX_NAME;

/// The name of the network that every hub has, which join strings leave out.
pub const MAIN: &str = "main";

/// In a network's folder: what was wanted of it.
const FILE: &str = "network.json";

/// The smallest packet that every IPv4 host takes is this long, bytes (RFC 791 section 3.1).
const MIN_MTU: u32 = 576;

/// A network, as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOptions {
    /// Its name at the hub: up to 32 lower-case letters, digits and `-`.
    pub name: String,
    /// Its prefix.
    pub network: Ipv4Net,
    /// Its IPv6 prefix.
    #[serde(default)]
    pub network6: Option<Ipv6Net>,
    /// How addresses are given.
    #[serde(default)]
    pub addressing: Addressing,
    /// The largest packet, bytes.
    #[serde(default = "mtu")]
    pub mtu: u32,
    /// How many packets wait in the kernel for the tunnel.
    #[serde(default = "queue_length")]
    pub queue_length: u32,
    /// Peers reach the hub, and not each other.
    #[serde(default)]
    pub isolate: bool,
    /// What peers send to the outside is let on from here, with this machine's address.
    #[serde(default)]
    pub exit: bool,
    /// The zone of the machines' names.
    pub zone: String,
    /// Whether the hub answers questions about names by DNS; with [`exit`](Self::exit) about all.
    #[serde(default = "yes")]
    pub dns: bool,
    /// The TUN device; with `%d` in it the first free number.
    #[serde(default = "tun")]
    pub tun: String,
}

const fn mtu() -> u32 {
    1400
}

const fn queue_length() -> u32 {
    100
}

const fn yes() -> bool {
    true
}

fn tun() -> String {
    "tun%d".into()
}

impl NetworkOptions {
    /// Its addresses.
    ///
    /// # Errors
    /// [`Blame::Input`]: something of it cannot be.
    pub fn plan(&self) -> Result<Plan> {
        let wanted = || format!("have the network {}", self.name);
        let wrong = |found: &str| Err(Error::new(Blame::Input, wanted(), found));
        if !is_network(&self.name) {
            return wrong("its name is not of up to 32 lower-case letters, digits and \"-\"");
        }
        if !(MIN_MTU..=u16::MAX.into()).contains(&self.mtu) {
            return wrong("its MTU is not from 576 to 65535");
        }
        let plan = Plan::new(self.network, self.addressing);
        plan.and_then(|plan| self.network6.map_or(Ok(plan), |network6| plan.with_ipv6(network6)))
            .map_err(|found| Error::new(Blame::Input, wanted(), found))
    }

    /// Whether its zone can be one, with room for names below it.
    ///
    /// # Errors
    /// [`Blame::Input`]: it cannot.
    pub(super) fn check_zone(&self) -> Result<()> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let is_label = |label: &str| !label.is_empty() && label.bytes().all(plain);
        if self.zone.len() <= MAX_NAME && self.zone.split('.').all(is_label) {
            return Ok(());
        }
        let wanted = format!("have the network {}", self.name);
        let found = format!("its zone {:?} is no name of up to {MAX_NAME} bytes", self.zone);
        Err(Error::new(Blame::Input, wanted, found).next("choose one like lab.example.net"))
    }

    /// Writes it down in the network's folder.
    pub(super) fn keep(&self, folder: &Path) -> Result<()> {
        // Names, numbers and prefixes: nothing in it can fail.
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        write_private(&folder.join(FILE), &text)
    }
}

/// The networks that were added, with folders below this one, in the order of their names.
pub(super) fn kept(folder: &Path) -> Result<Vec<NetworkOptions>> {
    let failed = |path: PathBuf, error: &dyn Display| {
        Error::new(Blame::System, format!("read {}", path.display()), error)
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| failed(folder.to_owned(), &error))?,
    };
    let mut kept = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| failed(folder.to_owned(), &error))?.path().join(FILE);
        match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(file, &error)),
            Ok(text) => {
                kept.push(serde_json::from_str(&text).map_err(|error| failed(file, &error))?)
            }
        }
    }
    kept.sort_by(|one: &NetworkOptions, other| one.name.cmp(&other.name));
    Ok(kept)
}

/// Has nobody find a network in this folder any more.
pub(super) fn withdraw(folder: &Path) -> Result<()> {
    removed(&folder.join(FILE), fs::remove_file(folder.join(FILE)))
}

/// Removes a network's folder, if there is one.
pub(super) fn forget(folder: &Path) -> Result<()> {
    withdraw(folder)?;
    removed(folder, fs::remove_dir_all(folder))
}

/// That something has been removed, or was not there.
fn removed(path: &Path, done: io::Result<()>) -> Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str, network: &str) -> NetworkOptions {
        let text = format!(r#"{{"name": "{name}", "network": "{network}", "zone": "x.internal"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_network_is_checked_before_anything_is_made() {
        assert!(options("office-2", "10.2.0.0/24").plan().is_ok());
        for (name, network) in [("", "10.2.0.0/24"), ("a/b", "10.2.0.0/24"), ("a", "10.2.0.0/32")] {
            assert_eq!(options(name, network).plan().unwrap_err().blame, Blame::Input, "{name}");
        }
        assert!(NetworkOptions { mtu: 100, ..options("a", "10.2.0.0/24") }.plan().is_err());
        assert!(serde_json::from_str::<NetworkOptions>(r#"{"name": "a", "colour": 1}"#).is_err());
    }

    #[test]
    fn a_zone_is_a_name_with_room_below_it() {
        let zone = |zone: &str| NetworkOptions { zone: zone.into(), ..options("a", "10.2.0.0/24") };
        for good in ["lab", "lab.example.net", "x_1.internal"] {
            assert!(zone(good).check_zone().is_ok(), "{good}");
        }
        for bad in ["", ".", "lab.", "a..b", "a b", "b\u{fc}ro", &"a".repeat(64)] {
            assert_eq!(zone(bad).check_zone().unwrap_err().blame, Blame::Input, "{bad}");
        }
    }

    #[test]
    fn what_was_added_is_found_again_until_it_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str| root.path().join(name);
        assert_eq!(kept(&folder("none")).unwrap(), []);
        let [two, one] = [options("two", "10.2.0.0/24"), options("one", "10.1.0.0/24")];
        for network in [&two, &one] {
            fs::create_dir(folder(&network.name)).unwrap();
            network.keep(&folder(&network.name)).unwrap();
        }
        fs::create_dir(folder("half")).unwrap();
        assert_eq!(kept(root.path()).unwrap(), [one.clone(), two.clone()]);
        withdraw(&folder("one")).unwrap();
        assert_eq!(kept(root.path()).unwrap(), [two]);
        for _ in 0..2 {
            forget(&folder("one")).unwrap();
            assert!(!folder("one").exists());
        }
        fs::write(folder("two").join(FILE), "{").unwrap();
        assert!(kept(root.path()).unwrap_err().wanted.contains("two/network.json"));
    }
}
