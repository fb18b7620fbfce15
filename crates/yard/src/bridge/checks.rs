//! What is in the way of a segment: nothing is made before all of this is looked at.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netyard_engine::config::Config;
use netyard_engine::control::{ControlError, ControlErrorKind};
use netyard_link::Features;
use netyard_link::plan::{Kernel, Owner};
use netyard_link::rtnetlink::{Link, LinkName, MAIN_TABLE, Route};

use super::{failed, refused};

/// Shorter prefixes are ways out to everywhere, not somebody's networks: VPNs split the default
/// route into halves.
const WIDE4: u8 = 8;
const WIDE6: u8 = 16;

/// What no network in bridge mode can be without.
pub(super) fn features(features: &Features) -> Result<(), ControlError> {
    let needed = [
        (features.bridge, "bridges", "CONFIG_BRIDGE"),
        (features.nftables, "nf_tables for IPv4 and IPv6", "CONFIG_NF_TABLES_INET"),
        (features.nat, "address translation by nf_tables", "CONFIG_NFT_NAT and CONFIG_NFT_MASQ"),
        (features.fib, "route lookups by nf_tables", "CONFIG_NFT_FIB_INET"),
        (features.turns, "turns by nf_tables", "CONFIG_NFT_NUMGEN"),
    ];
    match needed.into_iter().find(|(there, ..)| !there) {
        None => Ok(()),
        Some((_, feature, option)) => Err(refused(
            ControlErrorKind::Failed,
            format!(
                "this kernel has no {feature}: it needs {option}, built in or as a module; mode = \
                 \"user\" works without"
            ),
        )),
    }
}

/// The bridge that is there already, if there is one.
pub(super) fn joined(
    bridge: &LinkName,
    links: &[Link],
    owner: &Owner,
) -> Result<Option<Link>, ControlError> {
    let Some(link) = links.iter().find(|link| link.name == bridge.as_str()) else {
        return Ok(None);
    };
    let taken = |what: String| Err(refused(ControlErrorKind::Taken, what));
    if link.kind.as_deref() != Some("bridge") {
        return taken(format!("the link {bridge} is there already, and it is not a bridge"));
    }
    match link.alias.as_deref().and_then(|alias| alias.strip_prefix("netyard/")) {
        Some(tag) if !owner.owns(link) => {
            let other = tag.split('/').next().unwrap_or(tag);
            taken(format!(
                "the bridge {bridge} is that of the network {other}: join that one by its name, or \
                 name another bridge"
            ))
        }
        _ => Ok(Some(link.clone())),
    }
}

/// The card that is to be a port of the bridge.
pub(super) fn card(
    name: &str,
    bridge: &LinkName,
    links: &[Link],
    owner: &Owner,
) -> Result<Link, ControlError> {
    let wrong = |why: &str| {
        let message = format!("the card {name} cannot become a port of {bridge}: {why}");
        refused(ControlErrorKind::Failed, message)
    };
    let Some(link) = links.iter().find(|link| link.name == name) else {
        let known: Vec<_> =
            links.iter().map(|link| link.name.as_str()).filter(|name| *name != "lo").collect();
        let why = format!("there is none of that name; there are {}", known.join(", "));
        return Err(ControlError { kind: ControlErrorKind::Unknown, ..wrong(&why) });
    };
    let master = links.iter().find(|other| Some(other.index) == link.master);
    let why = if link.kind.as_deref() == Some("bridge") {
        "it is a bridge itself: join it with `bridge = ` its name".to_owned()
    } else if owner.owns(link) || link.mac.is_none() || name == "lo" {
        "it is no Ethernet card".to_owned()
    } else if let Some(master) = master.filter(|master| master.name != bridge.as_str()) {
        format!("it is a port of {} already: join that one with `bridge = `", master.name)
    } else if is_wireless(Path::new("/sys/class/net"), name) {
        "it is a Wi-Fi card, and a station may send with its own hardware address only (IEEE 802.11 \
         frames have no room for another): use uplink = \"nat\" or \"routed\""
            .to_owned()
    } else {
        return Ok(link.clone());
    };
    Err(wrong(&why))
}

fn is_wireless(links: &Path, name: &str) -> bool {
    ["phy80211", "wireless"].iter().any(|file| links.join(name).join(file).exists())
}

/// With a card the network's prefix is the card's, and the gateway its address.
pub(super) fn on_card(
    config: &Config,
    card: &Link,
    kernel: &mut Kernel,
) -> Result<(), ControlError> {
    let addresses = kernel.here().and_then(|here| here.addresses(Some(card.index)));
    let addresses = addresses.map_err(|error| failed(&error))?;
    let own: Vec<_> = addresses.iter().filter(|it| it.net.addr().is_ipv4()).collect();
    let gateway = IpAddr::V4(config.gateway4());
    let prefix = IpNet::V4(config.subnet4);
    if own.is_empty() || own.iter().any(|it| it.net.addr() == gateway && it.net.trunc() == prefix) {
        return Ok(());
    }
    let is: Vec<_> = own
        .iter()
        .map(|it| format!("subnet = \"{}\", gateway = \"{}\"", it.net.trunc(), it.net.addr()))
        .collect();
    let message = format!(
        "the card {} has another address than the network's gateway, {gateway} in {prefix}, and \
         takes it along to the bridge: write {}",
        card.name,
        is.join(" or ")
    );
    Err(refused(ControlErrorKind::Failed, message))
}

/// A bridge that is there already may be a part of a network with other machines: it gets no address of
/// it that nobody has chosen, and not that of a router.
pub(super) fn on_bridge(
    config: &Config,
    bridge: &Link,
    routes: &[Route],
    kernel: &mut Kernel,
) -> Result<(), ControlError> {
    let addresses = kernel.here().and_then(|here| here.addresses(Some(bridge.index)));
    let addresses = addresses.map_err(|error| failed(&error))?;
    let chosen = config.gateway.is_some();
    for (gateway, prefix, key, chosen) in [
        (IpAddr::V4(config.gateway4()), IpNet::V4(config.subnet4), "gateway", chosen),
        (IpAddr::V6(config.gateway6()), IpNet::V6(config.subnet6), "subnet6", false),
    ] {
        let is_router =
            |route: &Route| route.link == Some(bridge.index) && route.gateway == Some(gateway);
        let own: Vec<IpNet> = addresses
            .iter()
            .map(|address| address.net)
            .filter(|net| net.contains(&prefix) || prefix.contains(net))
            .collect();
        let why = if routes.iter().any(is_router) {
            format!("{gateway}, which is a router's that this machine uses there")
        } else if chosen || own.is_empty() || own.iter().any(|net| net.addr() == gateway) {
            continue;
        } else {
            let own: Vec<_> = own.iter().map(IpNet::to_string).collect();
            format!("{gateway} beside {}, and it may be another machine's", own.join(" and "))
        };
        let inside = own.iter().find(|net| prefix.contains(&net.addr()));
        let next = match (key, inside) {
            ("gateway", Some(net)) => {
                format!("name the bridge's own (gateway = \"{}\"), or one that is free", net.addr())
            }
            ("gateway", None) => "name one that is free (gateway = ..)".to_owned(),
            _ => "choose another subnet6, or give the bridge that address first".to_owned(),
        };
        let message = format!(
            "the bridge {} is there already, and the network's gateway would have {why}: {next}",
            bridge.name
        );
        return Err(refused(ControlErrorKind::Failed, message));
    }
    Ok(())
}

/// The largest packet of a link that is there already, which is not changed.
pub(super) fn mtu(wanted: Option<u16>, link: &Link) -> Result<u16, ControlError> {
    let has = fit(link.mtu);
    match wanted.filter(|wanted| *wanted != has) {
        None => Ok(has),
        Some(wanted) => {
            let message = format!(
                "the MTU of {} is {has}, and not {wanted}: leave `mtu` out, or change the link first \
                 (ip link set {} mtu {wanted})",
                link.name, link.name
            );
            Err(refused(ControlErrorKind::Failed, message))
        }
    }
}

/// An MTU, which is at most as large as a packet can be.
pub(super) fn fit(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

/// Prefixes that lead elsewhere already.
pub(super) fn overlaps<'r>(
    config: &Config,
    routes: impl Iterator<Item = &'r Route>,
    links: &[Link],
) -> Result<(), ControlError> {
    let wanted = [IpNet::V4(config.subnet4), IpNet::V6(config.subnet6)];
    let narrow = |net: &IpNet| match net {
        IpNet::V4(net) => net.prefix_len() >= WIDE4,
        IpNet::V6(net) => net.prefix_len() >= WIDE6,
    };
    for route in routes.filter(|route| route.table == MAIN_TABLE && narrow(&route.destination)) {
        let there = &route.destination;
        for wanted in &wanted {
            if wanted.contains(there) || there.contains(wanted) {
                let by = links.iter().find(|link| Some(link.index) == route.link);
                let by = by.map_or(String::new(), |link| format!(" by {}", link.name));
                let message = format!(
                    "the network's prefix {wanted} overlaps with {there}, to which this machine has \
                     a route{by}: choose another subnet"
                );
                return Err(refused(ControlErrorKind::Taken, message));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wireless_cards_are_known_by_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("wlan0/phy80211")).unwrap();
        std::fs::create_dir_all(folder.path().join("eth0")).unwrap();
        assert!(is_wireless(folder.path(), "wlan0"));
        assert!(!is_wireless(folder.path(), "eth0") && !is_wireless(folder.path(), "eth1"));
    }
}
