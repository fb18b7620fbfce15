//! Firewalls of others that are in the way, and what to do about it.
//!
//! What one table lets pass another may still drop: a packet must pass all of them. So rules of
//! ours cannot help where another firewall drops what is forwarded by default, and only its owner
//! can make an exception.

use std::collections::BTreeSet;

use netyard_link::BridgeFilter;
use netyard_link::nft::{ChainState, Family};
use netyard_link::rtnetlink::LinkName;

/// `NF_INET_LOCAL_IN` and `NF_INET_FORWARD`.
const INPUT: u32 = 1;
const FORWARD: u32 = 2;

/// One line for each firewall that drops what this network needs, with the next step. `chains` are
/// those of all tables.
pub(super) fn warnings(
    chains: &[ChainState],
    ours: &str,
    bridge: &LinkName,
    filter: BridgeFilter,
) -> Vec<String> {
    let foreign = || {
        chains.iter().filter(|chain| {
            chain.table != ours
                && matches!(chain.family, Family::Inet | Family::Ip | Family::Ip6)
                && !chain.table.starts_with("netyard-")
        })
    };
    let has = |name: &str| foreign().any(|chain| chain.name == name);
    let dropping = |hook: u32| {
        foreign().filter(move |chain| {
            let filters = |(at, _, kind): &(u32, i32, String)| *at == hook && kind == "filter";
            chain.drops && chain.base.as_ref().is_some_and(filters)
        })
    };
    let mut warnings = BTreeSet::new();
    for chain in dropping(FORWARD) {
        let (table, name) = (format!("{} {}", chain.family.as_str(), chain.table), &chain.name);
        let tool = if chain.family == Family::Ip6 { "ip6tables" } else { "iptables" };
        let (who, fix) = if has("ufw-before-forward") || has("ufw6-before-forward") {
            ("ufw", format!("ufw route allow in on {bridge}` and `ufw route allow out on {bridge}"))
        } else if has("DOCKER-USER") && name == "FORWARD" {
            (
                "Docker",
                format!(
                    "{tool} -I DOCKER-USER -i {bridge} -j ACCEPT` and `{tool} -I DOCKER-USER -o \
                     {bridge} -j ACCEPT"
                ),
            )
        } else {
            (
                "another firewall",
                format!(
                    "nft insert rule {table} {name} iifname {bridge} accept` and `nft insert rule \
                     {table} {name} oifname {bridge} accept"
                ),
            )
        };
        let inside = match chain.family {
            Family::Ip => filter.ipv4,
            Family::Ip6 => filter.ipv6,
            _ => filter.ipv4 || filter.ipv6,
        };
        let also = if inside { ", and between its instances (br_netfilter is on)" } else { "" };
        warnings.insert(format!(
            "{who} drops what is forwarded (the chain {name} of {table}), so nothing passes between \
             {bridge} and other links{also}: allow it with `{fix}`"
        ));
    }
    if foreign().any(|chain| chain.table == "firewalld") {
        warnings.insert(format!(
            "firewalld refuses links that it has no zone for: allow {bridge} with `firewall-cmd \
             --zone=trusted --add-interface={bridge}`"
        ));
    } else if let Some(chain) = dropping(INPUT).next() {
        let table = format!("{} {}", chain.family.as_str(), chain.table);
        let fix = match has("ufw-before-input") || has("ufw6-before-input") {
            true => format!("ufw allow in on {bridge}"),
            false => format!("nft insert rule {table} {} iifname {bridge} accept", chain.name),
        };
        warnings.insert(format!(
            "another firewall drops what is for this machine (the chain {} of {table}), so \
             instances get no names and addresses from the gateway: allow it with `{fix}`",
            chain.name
        ));
    }
    warnings.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(
        family: Family,
        table: &str,
        name: &str,
        base: Option<u32>,
        drops: bool,
    ) -> ChainState {
        ChainState {
            table: table.into(),
            family,
            name: name.into(),
            base: base.map(|hook| (hook, 0, "filter".into())),
            drops,
            used: 0,
        }
    }

    fn about(chains: &[ChainState]) -> Vec<String> {
        let filter = BridgeFilter { ipv4: true, ipv6: false };
        warnings(chains, "netyard-lan", &"br1".parse().unwrap(), filter)
    }

    #[test]
    fn other_firewalls_are_named_with_their_own_remedy() {
        let forward = || chain(Family::Ip, "filter", "FORWARD", Some(FORWARD), true);
        let docker = about(&[forward(), chain(Family::Ip, "filter", "DOCKER-USER", None, false)]);
        assert_eq!(docker.len(), 1);
        assert!(docker[0].contains("iptables -I DOCKER-USER -i br1 -j ACCEPT"), "{docker:?}");
        assert!(docker[0].contains("br_netfilter"), "{docker:?}");
        let ufw =
            about(&[forward(), chain(Family::Ip, "filter", "ufw-before-forward", None, false)]);
        assert!(ufw[0].contains("ufw route allow in on br1"), "{ufw:?}");
        let own = about(&[chain(Family::Inet, "mine", "fwd", Some(FORWARD), true)]);
        assert!(own[0].contains("nft insert rule inet mine fwd iifname br1 accept"), "{own:?}");
        let input = about(&[chain(Family::Inet, "mine", "in", Some(INPUT), true)]);
        assert!(input[0].contains("nft insert rule inet mine in iifname br1"), "{input:?}");
        let zones = about(&[chain(Family::Inet, "firewalld", "filter_FORWARD", Some(2), false)]);
        assert!(zones[0].contains("firewall-cmd"), "{zones:?}");
    }

    #[test]
    fn what_drops_nothing_or_is_ours_is_no_news() {
        assert!(about(&[chain(Family::Ip, "filter", "FORWARD", Some(FORWARD), false)]).is_empty());
        let ours = chain(Family::Inet, "netyard-lan", "forward", Some(FORWARD), true);
        assert!(about(&[ours]).is_empty());
        let bridge = chain(Family::Bridge, "mine", "fwd", Some(FORWARD), true);
        assert!(about(&[bridge]).is_empty());
    }
}
