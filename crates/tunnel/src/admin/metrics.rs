//! A hub's counters as Prometheus reads them (text format 0.0.4).

use std::fmt::Write as _;

use super::{HubStatus, LaneKind, PeerStatus};

/// All of them, of all networks with their peers.
pub(crate) fn text(networks: &[(HubStatus, Vec<PeerStatus>)]) -> String {
    let mut text = String::new();
    let of = |hub: &HubStatus| format!("network=\"{}\"", escaped(&hub.network_name));
    let connected =
        networks.iter().map(|(hub, _)| (format!("{{{}}}", of(hub)), hub.connected as u64));
    family(
        &mut text,
        "netyard_hub_peers_connected",
        "gauge",
        "Peers that are connected.",
        connected,
    );
    let drops = networks.iter().flat_map(|(hub, _)| {
        let drops = [
            ("spoof", hub.drops.spoof),
            ("no_route", hub.drops.no_route),
            ("isolated", hub.drops.isolated),
            ("refused", hub.drops.refused),
            ("bad_packet", hub.drops.bad_packet),
            ("too_big", hub.drops.too_big),
            ("device_refused", hub.device_refused),
        ];
        drops.map(|(reason, count)| (format!("{{{},reason=\"{reason}\"}}", of(hub)), count))
    });
    family(
        &mut text,
        "netyard_hub_dropped_packets_total",
        "counter",
        "Packets dropped, by reason.",
        drops,
    );
    let peers = || networks.iter().flat_map(|(hub, peers)| peers.iter().map(move |it| (hub, it)));
    let name = |(hub, peer): (&HubStatus, &PeerStatus)| {
        format!("{},peer=\"{}\"", of(hub), escaped(&peer.name))
    };
    let each = |value: fn(&PeerStatus) -> u64| {
        peers().map(move |peer| (format!("{{{}}}", name(peer)), value(peer.1)))
    };
    let both = |value: fn(&PeerStatus) -> [u64; 2]| {
        peers().flat_map(move |peer| {
            let [to, from] = value(peer.1);
            let label = |direction| format!("{{{},direction=\"{direction}\"}}", name(peer));
            [(label("to_peer"), to), (label("from_peer"), from)]
        })
    };
    let up = each(|peer| peer.connected.into());
    family(&mut text, "netyard_peer_connected", "gauge", "Whether a peer is connected.", up);
    let udp = each(|peer| (peer.lane == Some(LaneKind::Udp)).into());
    family(&mut text, "netyard_peer_udp", "gauge", "Whether UDP gets through to a peer.", udp);
    let logins = each(|peer| peer.logins);
    family(&mut text, "netyard_peer_logins_total", "counter", "Logins of a peer.", logins);
    let packets = both(|peer| [peer.to_peer.packets, peer.from_peer.packets]);
    family(
        &mut text,
        "netyard_peer_session_packets",
        "gauge",
        "Packets of this session; a super-packet is one.",
        packets,
    );
    let bytes = both(|peer| [peer.to_peer.bytes, peer.from_peer.bytes]);
    family(
        &mut text,
        "netyard_peer_session_bytes",
        "gauge",
        "Bytes of IP packets of this session.",
        bytes,
    );
    let bytes = both(|peer| [peer.to_peer_by_udp.bytes, peer.from_peer_by_udp.bytes]);
    family(
        &mut text,
        "netyard_peer_session_udp_bytes",
        "gauge",
        "Bytes of IP packets of this session that went by UDP.",
        bytes,
    );
    let lost = peers().flat_map(|peer| {
        let losses = &peer.1.losses;
        let losses = [("queue_full", losses.queue_full), ("codel", losses.codel)];
        losses.map(|(reason, count)| (format!("{{{},reason=\"{reason}\"}}", name(peer)), count))
    });
    family(
        &mut text,
        "netyard_peer_session_dropped_packets",
        "gauge",
        "Packets to a peer that its queue dropped in this session, by reason.",
        lost,
    );
    text
}

fn family(
    text: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    samples: impl IntoIterator<Item = (String, u64)>,
) {
    // Writing to a string cannot fail.
    _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        _ = writeln!(text, "{name}{labels} {value}");
    }
}

/// A label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
