//! The files that an instance sees as its `/etc/resolv.conf` and `/etc/hosts`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use netyard_engine::config::Config;
use netyard_engine::control::Plugged;

use crate::error::YardError;

/// Where they are.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
}

/// Writes the files of an instance to its runtime folder.
pub(super) fn write(
    folder: &Path,
    instance: &str,
    networks: &[(&Config, &Plugged)],
) -> Result<Files, YardError> {
    let files = Files { resolv_conf: folder.join("resolv.conf"), hosts: folder.join("hosts") };
    for (path, text) in
        [(&files.resolv_conf, resolv_conf(networks)), (&files.hosts, hosts(instance, networks))]
    {
        fs::write(path, text)
            .map_err(|error| YardError::io(format!("write {}", path.display()), &error))?;
    }
    Ok(files)
}

/// Every network's gateway is its name server; short names are looked up in every zone.
fn resolv_conf(networks: &[(&Config, &Plugged)]) -> String {
    let zones: Vec<_> = networks.iter().map(|(config, _)| config.zone.as_str()).collect();
    let mut text = format!("search {}\n", zones.join(" "));
    for (config, _) in networks {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "nameserver {}", config.gateway4());
    }
    text
}

fn hosts(instance: &str, networks: &[(&Config, &Plugged)]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for (config, plugged) in networks {
        for address in [&plugged.address4 as &dyn std::fmt::Display, &plugged.address6] {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{address} {instance}.{} {instance}", config.zone);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use netyard_engine::edge::PlugId;

    use super::*;
    use crate::model::NetworkSpec;

    #[test]
    fn names_are_looked_up_at_the_gateways_in_their_zones() {
        let [lan, back] =
            ["lan", "back"].map(|name| NetworkSpec::new(name, &format!("hello.{name}")).config());
        let plugged = Plugged {
            plug: PlugId(1),
            mac: netyard_wire::MacAddr([2, 0, 0, 0, 0, 1]),
            address4: [192, 168, 127, 2].into(),
            address6: "fd00::2".parse().unwrap(),
        };
        let networks = [(&lan, &plugged), (&back, &plugged)];
        assert_eq!(
            resolv_conf(&networks),
            "search lan back\nnameserver 192.168.127.1\nnameserver 192.168.127.1\n"
        );
        let hosts = hosts("web-1", &networks);
        assert!(hosts.contains("192.168.127.2 web-1.lan web-1\nfd00::2 web-1.lan web-1\n"));
        assert!(hosts.contains("192.168.127.2 web-1.back web-1\n"));
    }
}
