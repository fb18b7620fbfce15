//! What people see of hubs and peers.

use std::time::{Duration, UNIX_EPOCH};

use netyard_tunnel::addresses::Addressing;
use netyard_tunnel::admin::{HubStatus, LaneKind, PeerStatus, Roles, TokenStatus};
use netyard_tunnel::peer::Joined;
use netyard_tunnel::policy::Policy;
use netyard_tunnel::store::{Deed, Subnet};

use crate::output::{Cell, Mood, Table};
use crate::view::{bytes, duration, title};

/// `netyard hub` and `netyard hub status`.
pub(crate) fn hub(hub: &HubStatus, colour: bool) -> String {
    let mut list = Table::list();
    let addressing = match hub.addressing {
        Addressing::Pair => "pairs",
        Addressing::Single => "single addresses",
    };
    let network6 = hub.network6.map_or(String::new(), |network6| format!(" and {network6}"));
    let address6 = hub.address6.map_or(String::new(), |address6| format!(" and {address6}"));
    let name = &hub.network_name;
    list.item(
        "network",
        format!("{name}: {}{network6}, {addressing}, MTU {}", hub.network, hub.mtu),
    );
    list.item("address", format!("{}{address6} on {}", hub.address, hub.device));
    let names = if hub.dns { "by DNS at its address" } else { "for hosts files" };
    list.item("names", format!("NAME.{}, {names}", hub.zone));
    let protocols = if hub.udp { "TCP and UDP" } else { "TCP" };
    list.item("listens on", format!("{}, {protocols}", hub.listen));
    let at = hub.reached_at.iter().map(|at| format!("{} on {}", at.address, at.card));
    let at: Vec<_> = at.collect();
    if !at.is_empty() {
        list.item("reached at", at.join(", "));
    }
    list.item("reached as", hub.reached_as.as_str());
    list.item("peers", format!("{} connected, room for {}", hub.connected, hub.capacity));
    if let Some(descriptors) = hub.descriptors {
        list.item("descriptors", format!("{descriptors} at most, one for each connection"));
    }
    if hub.exit {
        list.item("exit", "what peers send to the outside is let on from here");
    }
    if let Some(policy) = &hub.policy {
        list.item("policy", format!("{} rules, nothing else is allowed", policy.allow.len()));
    }
    let drops = [
        ("spoofed", hub.drops.spoof),
        ("no route", hub.drops.no_route),
        ("isolated", hub.drops.isolated),
        ("refused by the policy", hub.drops.refused),
        ("malformed", hub.drops.bad_packet),
        ("too big", hub.drops.too_big),
        ("refused by the kernel", hub.device_refused),
    ];
    let dropped = drops.iter().filter(|(_, count)| *count > 0);
    let dropped: Vec<_> = dropped.map(|(reason, count)| format!("{count} {reason}")).collect();
    if !dropped.is_empty() {
        list.item("dropped", dropped.join(", "));
    }
    title("hub", &hub.name, colour) + &list.render(colour)
}

/// `netyard hub network ls`.
pub(crate) fn networks(networks: &[HubStatus], colour: bool) -> String {
    let mut table = Table::new(&["NETWORK", "PREFIX", "DEVICE", "PEERS", "ROOM FOR", "NAMES"]);
    for network in networks {
        let network6 = network.network6.map_or(String::new(), |network6| format!(", {network6}"));
        table.row([
            network.network_name.as_str().into(),
            format!("{}{network6}", network.network).into(),
            network.device.as_str().into(),
            network.connected.to_string().into(),
            network.capacity.to_string().into(),
            format!("NAME.{}", network.zone).into(),
        ]);
    }
    table.render(colour)
}

/// `netyard join`, each time that it is on the network.
pub(crate) fn joined(joined: &Joined, _: bool) -> String {
    let at = &joined.connected;
    let address6 = at.address6.map_or(String::new(), |address6| format!(" and {address6}"));
    let zone = at.zone.as_ref().map_or(String::new(), |zone| format!(", names of {zone}"));
    format!(
        "joined {} as {}: {}{address6} on {}, network {}, hub {}{zone}\n",
        joined.hub, joined.name, at.address, joined.device, at.network, at.hub_address
    )
}

/// `netyard peers`.
pub(crate) fn peers(peers: &[PeerStatus], colour: bool) -> String {
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        "LANE",
        "ADDRESS",
        "FROM",
        "SINCE",
        "SENT TO IT",
        "RECEIVED",
        "LOST",
        "BEHIND IT",
    ]);
    for peer in peers {
        let state = match peer.connected {
            true => Cell::new("connected", Mood::Good),
            false => Cell::new("away", Mood::Doubtful),
        };
        let lane = peer.lane.map_or("", |lane| match lane {
            LaneKind::Websocket => "websocket",
            LaneKind::Udp => "udp",
        });
        let lost = peer.losses.queue_full.saturating_add(peer.losses.codel);
        table.row([
            peer.name.as_str().into(),
            state,
            lane.into(),
            address(peer).into(),
            peer.remote.into(),
            since(peer.since_ms.unwrap_or(peer.seen_ms)).into(),
            bytes(peer.to_peer.bytes).into(),
            bytes(peer.from_peer.bytes).into(),
            lost.to_string().into(),
            behind(&peer.subnets).into(),
        ]);
    }
    table.render(colour)
}

/// The address of a peer, and whether it keeps it.
fn address(peer: &PeerStatus) -> String {
    match peer.address {
        Some(address) if peer.pinned => format!("{address} (pinned)"),
        address => address.map(|address| address.to_string()).unwrap_or_default(),
    }
}

/// The subnets of a peer, and what is in the way of those that nothing goes to.
fn behind(subnets: &[Subnet]) -> String {
    let word = |subnet: &Subnet| match (subnet.accepted, subnet.offered) {
        (true, true) => subnet.prefix.to_string(),
        (false, _) => format!("{} (not accepted)", subnet.prefix),
        (true, false) => format!("{} (not offered)", subnet.prefix),
    };
    subnets.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// `netyard hub policy`.
pub(crate) fn policy(policy: &Option<Policy>, _: bool) -> String {
    match policy {
        None => "no policy: everybody reaches everybody\n".into(),
        // What was read from TOML can be written so.
        Some(policy) => toml::to_string(policy).unwrap_or_default(),
    }
}

/// `netyard hub audit`.
pub(crate) fn audit(deeds: &[Deed], colour: bool) -> String {
    let mut table = Table::new(&["WHEN", "BY", "WHAT", "WHOM"]);
    for deed in deeds {
        let when = format!("{} ago", since(deed.at_ms));
        let [by, what, whom] = [&deed.who, &deed.action, &deed.subject].map(String::as_str);
        table.row([when.into(), by.into(), what.into(), whom.into()]);
    }
    table.render(colour)
}

/// `netyard hub role`.
pub(crate) fn roles(roles: &Roles, colour: bool) -> String {
    let mut table = Table::new(&["USER", "ROLE"]);
    for (user, role) in roles {
        table.row([user.to_string().into(), role.to_string().into()]);
    }
    table.render(colour)
}

/// `netyard token ls`.
pub(crate) fn tokens(tokens: &[TokenStatus], colour: bool) -> String {
    let mut table = Table::new(&["TOKEN", "STATE", "USES LEFT", "EXPIRES IN", "MADE", "ADDRESS"]);
    for TokenStatus { token, address } in tokens {
        let left = token.expires_ms.map(|end| end.saturating_sub(now_ms()));
        let state = if token.revoked_ms.is_some() {
            Cell::new("revoked", Mood::Bad)
        } else if left.is_some_and(|left| left <= 0) {
            Cell::new("expired", Mood::Doubtful)
        } else if token.uses_left == Some(0) {
            Cell::new("used", Mood::Plain)
        } else {
            Cell::new("open", Mood::Good)
        };
        let uses = token.uses_left.map_or("any".into(), |uses| uses.to_string());
        let expires = match left {
            None => "never".into(),
            Some(left) => duration(Duration::from_millis(u64::try_from(left).unwrap_or(0))),
        };
        let made = format!("{} ago", since(token.created_ms));
        table.row([
            token.id.as_str().into(),
            state,
            uses.into(),
            expires.into(),
            made.into(),
            (*address).into(),
        ]);
    }
    table.render(colour)
}

fn since(then_ms: i64) -> String {
    let ms = u64::try_from(now_ms().saturating_sub(then_ms)).unwrap_or(0);
    duration(Duration::from_millis(ms))
}

fn now_ms() -> i64 {
    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
