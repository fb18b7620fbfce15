//! The files that an instance sees as its `/etc/resolv.conf` and `/etc/hosts`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use netyard_engine::config::Config;

use crate::error::YardError;

/// Names that every machine has for itself. An instance's own name is asked of the network like
/// all others: it may be that of a service.
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

/// Where they are.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
}

/// Writes the files of an instance to its runtime folder.
pub(super) fn write(folder: &Path, networks: &[&Config]) -> Result<Files, YardError> {
    let files = Files { resolv_conf: folder.join("resolv.conf"), hosts: folder.join("hosts") };
    for (path, text) in
        [(&files.resolv_conf, resolv_conf(networks)), (&files.hosts, HOSTS.to_owned())]
    {
        fs::write(path, text)
            .map_err(|error| YardError::io(format!("write {}", path.display()), &error))?;
    }
    Ok(files)
}

/// Where short names are looked up: in every network's zone, and then where the networks say.
pub(super) fn search<'c>(networks: &[&'c Config]) -> Vec<&'c str> {
    let zones = networks.iter().map(|config| config.zone.as_str());
    let mut domains: Vec<&str> = Vec::new();
    for domain in zones.chain(networks.iter().flat_map(|config| config.search())) {
        if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
    domains
}

/// Every network's gateway is its name server.
fn resolv_conf(networks: &[&Config]) -> String {
    let mut text = format!("search {}\n", search(networks).join(" "));
    for config in networks {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "nameserver {}", config.gateway4());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NetworkSpec;

    #[test]
    fn names_are_looked_up_at_the_gateways_in_their_zones() {
        let [mut lan, back] =
            ["lan", "back"].map(|name| NetworkSpec::new(name, &format!("hello.{name}")).config());
        assert_eq!(
            resolv_conf(&[&lan, &back]),
            "search lan back\nnameserver 192.168.127.1\nnameserver 192.168.127.1\n"
        );
        lan.dns.search = ["corp.example", "back"].map(str::to_owned).into();
        assert!(resolv_conf(&[&lan, &back]).starts_with("search lan back corp.example\n"));
    }
}
