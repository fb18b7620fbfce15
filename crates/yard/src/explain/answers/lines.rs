//! The lines that answers are made of.

use std::net::IpAddr;

use netyard_engine::config::{Config, Mode, Uplink};

use crate::api::NetworkStatus;
use crate::explain::facts::{Cable, Card, Facts, InstanceFacts, Namespace, Way};

pub(super) fn what(facts: &Facts, network: &NetworkStatus, config: &Config) -> Vec<String> {
    let pid = network.state.pid;
    let (subnet4, subnet6) = (config.subnet4, config.subnet6);
    let mut lines = vec![format!("{subnet4} and {subnet6}, names end in .{}", config.zone)];
    match &config.mode {
        Mode::User => lines.push(format!(
            "in user mode: network process {pid} is its switch and its gateway. It reads frames from \
             the instances' TAP devices and speaks with the world by sockets of its own; no link, \
             address, route or rule of this machine is of it"
        )),
        Mode::Bridge(wanted) => {
            let bridge = facts.bridge(network);
            let about = bridge.map_or_else(
                || "its bridge is not there".into(),
                |bridge| format!(
                    "the bridge {} (#{}, {} ports) of this machine is its switch, net:[{}]",
                    bridge.name,
                    bridge.index,
                    facts.host.ports(bridge.index).count(),
                    facts.host.inode
                ),
            );
            lines.push(format!(
                "in bridge mode: {about}; the kernel moves the packets. Network process {pid} keeps \
                 the books, answers names and lends addresses"
            ));
            lines.push(match wanted.isolate {
                true => "nothing passes between it and other networks".into(),
                false => "other networks that are open too may reach it".into(),
            });
        }
    }
    lines
}

pub(super) fn why_addresses(bridge: &Card, config: &Config) -> Vec<String> {
    let why = |address: IpAddr| {
        if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            "every link that speaks IPv6 has one; router advertisements come from it"
        } else if config.is_gateway(address) {
            "the gateway: with it the bridge is a card of this machine on the network, so that \
             instances reach this machine's routes, and this machine reaches them"
        } else if config.is_host(address) {
            "host.ZONE: services of this machine that are opened to the network"
        } else if config.is_local(address) {
            "a service's virtual address: this machine answers for it, and the rules lead on"
        } else {
            "it was the bridge's own before"
        }
    };
    bridge.addresses.iter().map(|net| format!("{net}: {}", why(net.addr()))).collect()
}

pub(super) fn leaves(network: &NetworkStatus, config: &Config) -> Vec<String> {
    let bridge = network.state.interface.as_deref();
    let text = match (&config.uplink, bridge) {
        (Uplink::Nat, Some(bridge)) => format!(
            "what comes from {} or {} and goes out by another link than {bridge} gets the address of \
             that link (masquerade), so that answers find back",
            config.subnet4, config.subnet6
        ),
        (Uplink::Nat, None) => "it goes out from sockets of the network process, with this \
                                machine's own addresses, if its policy lets it"
            .into(),
        (Uplink::None, _) => "nothing leaves: it has no uplink".into(),
        (Uplink::Routed, _) => "it leaves as it is: others need a route back to the prefix".into(),
        (Uplink::Card(card), _) => {
            format!("it leaves as it is by {card}, which is a port of the bridge")
        }
    };
    vec![text]
}

pub(super) fn gateway(facts: &Facts, network: &NetworkStatus, config: &Config) -> String {
    let (v4, v6) = (config.gateway4(), config.gateway6());
    match facts.bridge(network) {
        Some(bridge) => {
            let mac = bridge.mac.map(|mac| format!(", {mac}")).unwrap_or_default();
            format!(
                "{v4} and {v6}{mac}: the bridge {} of this machine has these addresses, so what is \
                 sent there reaches this machine, which knows the way on",
                bridge.name
            )
        }
        None => format!(
            "{v4} and {v6}, {}: network process {} answers for them and leads on what it gets",
            config.gateway_mac, network.state.pid
        ),
    }
}

/// Published services and forwards.
pub(super) fn doors(facts: &Facts, network: &NetworkStatus) -> Vec<String> {
    let bridge = network.state.interface.is_some();
    let pid = network.state.pid;
    let by = |host: Option<IpAddr>| match bridge && host.is_some_and(|it| !it.is_loopback()) {
        true => "the rules translate it".to_owned(),
        false => format!("a socket of network process {pid}"),
    };
    let services = facts.services.iter().filter(|service| service.network == network.name);
    let published = services.filter_map(|service| {
        let at = service.published?;
        let protocol = service.protocol;
        Some(format!("{at}/{protocol} to the service {}: {}", service.name, by(Some(at.ip()))))
    });
    let forwards = network.state.forwards.iter().map(|state| {
        let forward = &state.forward;
        format!("{forward} to {}: {}", forward.instance, by(forward.host.address()))
    });
    published.chain(forwards).collect()
}

/// Both ends of a plug in a line.
pub(super) fn pair(
    facts: &Facts,
    inside: Result<&Namespace, &String>,
    cable: &Cable<'_>,
) -> String {
    let own = match (cable.inside, inside) {
        (Some(card), Ok(namespace)) => {
            format!("{} in net:[{}] (process {})", link(card), namespace.inode, namespace.pid)
        }
        (_, Err(why)) => format!("a card that cannot be looked at ({why}), {}", cable.plug.mac),
        (None, Ok(_)) => format!("no card has {}", cable.plug.mac),
    };
    let pid = cable.network.state.pid;
    match (cable.outside, facts.bridge(cable.network)) {
        (Some(port), Some(bridge)) => {
            let kind = match port.kind.as_deref() {
                Some("veth") => "the other end of one veth pair".to_owned(),
                Some(kind) => format!("a {kind} device, the other end of which a process holds"),
                None => "its other end".to_owned(),
            };
            format!(
                "{own} is paired with {} in net:[{}] (this machine), {kind} and a port of the bridge \
                 {}",
                link(port),
                facts.host.inode,
                bridge.name
            )
        }
        (None, Some(bridge)) => format!("{own}; its port on {} is not seen", bridge.name),
        (_, None) => {
            let what = match cable.inside.map(|card| card.kind.as_deref()) {
                Some(Some("tun")) => "is a TAP device: its other end is a descriptor that",
                _ => "is joined to a socket that",
            };
            format!("{own} {what} network process {pid} holds, no link of this machine")
        }
    }
}

/// `eth0 (#2, 02:00:00:00:00:01, up)`.
fn link(card: &Card) -> String {
    let mac = card.mac.map(|mac| format!(", {mac}")).unwrap_or_default();
    let up = if card.up { "up" } else { "down" };
    format!("{} (#{}{mac}, {up})", card.name, card.index)
}

pub(super) fn route(way: &Way) -> String {
    let by = way.link.as_ref().map(|link| format!(" by {link}")).unwrap_or_default();
    let what = match (way.closed, way.gateway) {
        (true, _) => "nowhere: it is refused".to_owned(),
        (false, Some(gateway)) => format!("through {gateway}{by}"),
        (false, None) => format!("directly{by}"),
    };
    let to = match way.destination.prefix_len() {
        0 => format!("everything else ({})", way.destination),
        _ => way.destination.to_string(),
    };
    format!("to {to} {what}")
}

pub(super) fn mtu(facts: &Facts, cable: &Cable<'_>) -> Option<String> {
    let card = cable.inside?;
    let why = match facts.bridge(cable.network) {
        Some(bridge) if bridge.mtu == card.mtu => {
            format!("as the bridge {} and this machine's uplink have it", bridge.name)
        }
        Some(bridge) => format!("the bridge {} has {}", bridge.name, bridge.mtu),
        None => {
            "as the network has it; larger segments stay whole up to the network process".into()
        }
    };
    Some(format!("{} bytes by {}: {why}", card.mtu, card.name))
}

pub(super) fn names(instance: &InstanceFacts, cables: &[Cable<'_>]) -> Vec<String> {
    let Ok(inside) = &instance.inside else { return Vec::new() };
    let known = |address: IpAddr| {
        cables.iter().find_map(|cable| {
            let config = cable.network.state.config.as_ref()?;
            config.is_gateway(address).then_some((cable.network, config))
        })
    };
    let mut lines: Vec<String> = (inside.resolvers.iter())
        .map(|address| match known(*address) {
            Some((network, config)) => format!(
                "{address}, the gateway: network process {} knows the names that end in .{}, and asks \
                 this machine's resolvers for all others",
                network.state.pid, config.zone
            ),
            None => format!("{address}, which is not a gateway of its networks"),
        })
        .collect();
    if !inside.search.is_empty() {
        lines.push(format!(
            "a name without dots is tried with .{} first",
            inside.search.join(", .")
        ));
    }
    lines
}
