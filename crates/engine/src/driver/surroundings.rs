//! What the network must know of the machine and that changes: its addresses, cards and resolvers.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netyard_sys::{interface, resolv_conf};

use crate::config::Mdns;

/// The host's resolver configuration, resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How often that file is looked at, at most. Nothing wakes an idle network for it: it is looked
/// at before a wake-up is handled, and so before a question is passed on.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Every address of the machine.
///
/// # Errors
/// What the kernel said.
pub(crate) fn host_addresses() -> io::Result<Vec<IpAddr>> {
    let mut addresses = interface::addresses()?;
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The numbers of the cards that names in `.local` are asked for on.
///
/// # Errors
/// What the kernel said.
pub(crate) fn cards(mdns: &Mdns) -> io::Result<BTreeSet<u32>> {
    let cards = interface::multicast_cards()?.into_iter();
    Ok(cards.filter(|(_, name)| mdns.has(name)).map(|(number, _)| number).collect())
}

/// The host's resolvers, read again when their file changes.
#[derive(Debug)]
pub(crate) struct Resolvers {
    path: PathBuf,
    seen: Option<Stamp>,
    looked: Option<Instant>,
}

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl Resolvers {
    pub(crate) fn new() -> Self {
        Self::of(Path::new(RESOLV_CONF))
    }

    fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: None, looked: None }
    }

    /// The resolvers, if they may have changed since the last call.
    pub(crate) fn poll_change(&mut self, now: Instant) -> Option<Vec<SocketAddr>> {
        if self.looked.is_some_and(|looked| now < looked + LOOK_EVERY) {
            return None;
        }
        let first = self.looked.replace(now).is_none();
        let stamp = fs::metadata(&self.path).ok().map(|file| Stamp {
            device: file.dev(),
            inode: file.ino(),
            modified: (file.mtime(), file.mtime_nsec()),
            size: file.size(),
        });
        if stamp == self.seen && !first {
            return None;
        }
        self.seen = stamp;
        let text = match fs::read(&self.path) {
            // It is there and closed to us: those of before stay.
            Err(error) if stamp.is_some() => {
                tracing::warn!(%error, file = %self.path.display(), "cannot read the resolvers");
                if !first {
                    return None;
                }
                Vec::new()
            }
            read => read.unwrap_or_default(),
        };
        Some(resolv_conf::servers(&String::from_utf8_lossy(&text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_read_again_but_not_too_often() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1").unwrap();
        let mut resolvers = Resolvers::of(&path);
        let start = Instant::now();
        assert_eq!(resolvers.poll_change(start).unwrap(), ["192.0.2.1:53".parse().unwrap()]);
        assert_eq!(resolvers.poll_change(start + LOOK_EVERY), None);
        let other = folder.path().join("new");
        fs::write(&other, "nameserver 192.0.2.2").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(resolvers.poll_change(start + LOOK_EVERY), None);
        let changed = resolvers.poll_change(start + 2 * LOOK_EVERY).unwrap();
        assert_eq!(changed, ["192.0.2.2:53".parse().unwrap()]);
        fs::remove_file(&path).unwrap();
        let gone = resolvers.poll_change(start + 3 * LOOK_EVERY).unwrap();
        assert_eq!(gone, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn the_machine_has_addresses() {
        let found = host_addresses().unwrap();
        assert!(found.contains(&IpAddr::from([127, 0, 0, 1])));
        assert!(found.is_sorted());
    }
}
