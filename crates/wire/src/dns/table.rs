//! The hosts of a zone, as a list of names has them.

use std::collections::HashMap;
use std::net::IpAddr;

use super::Hosts;

/// Who has which name in a zone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    by_host: HashMap<String, Vec<IpAddr>>,
    by_address: HashMap<IpAddr, String>,
}

impl Table {
    /// Of whole names and their addresses; those outside of the zone are left out.
    #[must_use]
    pub fn new<'a>(zone: &str, names: impl IntoIterator<Item = (&'a str, &'a [IpAddr])>) -> Self {
        let mut table = Self::default();
        let suffix = format!(".{zone}").to_ascii_lowercase();
        for (name, addresses) in names {
            let name = name.to_ascii_lowercase();
            let Some(host) = name.strip_suffix(&suffix) else { continue };
            // What has names below it is there (RFC 8020).
            let mut below = host;
            while let Some((_, above)) = below.split_once('.') {
                table.by_host.entry(above.to_owned()).or_default();
                below = above;
            }
            table.by_address.extend(addresses.iter().map(|address| (*address, host.to_owned())));
            table.by_host.entry(host.to_owned()).or_default().extend(addresses);
        }
        table
    }
}

impl Hosts for Table {
    fn addresses(&self, host: &str) -> Option<Vec<IpAddr>> {
        self.by_host.get(host).cloned()
    }

    fn host(&self, address: IpAddr) -> Option<String> {
        self.by_address.get(&address).cloned()
    }
}
