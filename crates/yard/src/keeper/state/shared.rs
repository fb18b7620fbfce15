//! Networks that run already when a yard joins them.

use netyard_engine::config::{Config, Dns, Mdns, Mode, Uplink};

use crate::address;
use crate::error::{ErrorKind, YardError};
use crate::model::{self, NetworkSpec};

/// A network that was there before us must be what we ask for, where we ask for anything.
pub(super) fn check_shared(wanted: &NetworkSpec, found: &Config) -> Result<(), YardError> {
    let asks = wanted.config();
    let differs = if let Some(differs) = bridge_differs(&asks, found) {
        differs
    } else if wanted.subnet != model::DEFAULT_SUBNET && asks.subnet4 != found.subnet4 {
        format!("its prefix is {}, not {}", found.subnet4, asks.subnet4)
    } else if wanted.subnet6 != address::unique_local(&wanted.global)
        && asks.subnet6 != found.subnet6
    {
        format!("its IPv6 prefix is {}, not {}", found.subnet6, asks.subnet6)
    } else if !wanted.is_bridge() && wanted.mtu != model::DEFAULT_MTU && asks.mtu != found.mtu {
        format!("its MTU is {}, not {}", found.mtu, asks.mtu)
    } else if asks.gateway.is_some() && asks.gateway4() != found.gateway4() {
        format!("its gateway is {}, not {}", found.gateway4(), asks.gateway4())
    } else if !asks.host.is_empty() && asks.host != found.host {
        "it opens other services of the host".to_owned()
    } else if let Some(differs) = dns_differs(&asks.dns, &found.dns) {
        differs.to_owned()
    } else if asks.uplink != Uplink::Nat && asks.uplink != found.uplink {
        format!("its uplink is {}, not {}", found.uplink, asks.uplink)
    } else if !asks.snooping && found.snooping {
        "it leads multicast to those who have joined it, as `snooping = false` does not".to_owned()
    } else if asks.mdns != Mdns::Off && asks.mdns != found.mdns {
        "it asks on other links for names in `.local`, or on none".to_owned()
    } else {
        return Ok(());
    };
    let wanted = format!("join network {}", found.name);
    Err(YardError::new(ErrorKind::Conflict, wanted, format!("it runs already, and {differs}"))
        .next("join it as it is, stop what is on it first, or choose another name"))
}

/// How the DNS of a network that runs answers otherwise than is asked for. What is searched is the network's own,
/// and may be another one's words.
fn dns_differs(asks: &Dns, found: &Dns) -> Option<&'static str> {
    if !asks.records.is_empty() && asks.records != found.records {
        Some("its DNS has other records")
    } else if !asks.split.is_empty() && asks.split != found.split {
        Some("its DNS asks other resolvers")
    } else if !asks.cache && found.cache {
        Some("its DNS keeps answers")
    } else {
        None
    }
}

/// How a network that runs is on another bridge than is asked for, or on none.
fn bridge_differs(asks: &Config, found: &Config) -> Option<String> {
    match (&asks.mode, &found.mode) {
        (Mode::Bridge(_), Mode::User) => Some("it is in user mode".to_owned()),
        (Mode::Bridge(asks), Mode::Bridge(found)) if asks.name.is_some() => {
            let name = found.name.as_deref().unwrap_or("one of its own");
            (asks.name != found.name).then(|| format!("its bridge is {name}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The network of a file with these words about its DNS.
    fn network(dns: &str) -> NetworkSpec {
        let text = format!("[networks.lan]\ndns = {{ {dns} }}\n[instances.web]\nrun = [\"x\"]\n");
        let yard = crate::file::parse(&text, Path::new("/srv/hello/yard.toml")).unwrap();
        yard.networks["lan"].clone()
    }

    #[test]
    fn only_what_is_asked_for_must_be_there() {
        let records = "records = { \"a.lan\" = \"192.168.127.77\" }";
        let split = "split = { \"corp.example\" = \"10.0.0.53\" }";
        let found = network(&format!("{records}, {split}")).config();
        for same in ["", "search = [\"corp.example\"]", "cache = true", records, split] {
            assert!(check_shared(&network(same), &found).is_ok(), "{same}");
        }
        for (other, differs) in [
            ("records = { \"a.lan\" = \"192.168.127.78\" }", "has other records"),
            ("split = { \"corp.example\" = \"10.0.0.54\" }", "asks other resolvers"),
            ("cache = false", "keeps answers"),
        ] {
            let error = check_shared(&network(other), &found).unwrap_err();
            assert!(error.to_string().contains(differs), "{error}");
        }
    }
}
