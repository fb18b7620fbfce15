//! The rows of tunnels, and their promises.

use std::collections::BTreeMap;

use serde::Serialize;

use super::contender::Contender;
use crate::table;

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    /// One flow from a peer to the hub
    PeerToHub,
    /// What the tunnel's ends use for it
    CostPeerToHub,
    /// One flow from the hub to a peer
    HubToPeer,
    /// What the tunnel's ends use for it
    CostHubToPeer,
    /// One flow between two peers
    PeerToPeer,
    /// What hub and peers use for it
    CostPeerToPeer,
    /// Half of the round trips through an idle tunnel are faster
    PingIdle,
    /// What 99 % of the round trips beside a bulk flow wait longer than alone
    PingBusy,
    /// One flow where packets are lost
    Lossy,
    /// Longest silence when a peer's address changes
    Roam,
    /// Longest silence when the hub starts again
    Restart,
    /// Until a peer knows that its hub has fallen silent
    Silence,
    /// Memory of a hub with many idle peers
    IdleMemory,
    /// Part of a processor of a hub with many idle peers
    IdleProcessor,
}

impl table::Row for Row {
    type Contender = Contender;
    const ABOUT: &str = "tunnels";

    fn name(self) -> &'static str {
        match self {
            Self::PeerToHub => "TCP peer->hub",
            Self::HubToPeer => "TCP hub->peer",
            Self::PeerToPeer => "TCP peer->peer",
            Self::CostPeerToHub | Self::CostHubToPeer | Self::CostPeerToPeer => "  processor time",
            Self::PingIdle => "ping, idle, p50",
            Self::PingBusy => "ping beside bulk, p99 - idle",
            Self::Lossy => "TCP, 1 % lost, 50 ms",
            Self::Roam => "gap, address changes",
            Self::Restart => "gap, hub starts again",
            Self::Silence => "silent hub noticed",
            Self::IdleMemory => "memory, idle peers",
            Self::IdleProcessor => "processor, idle peers",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::PeerToHub | Self::HubToPeer | Self::PeerToPeer => "Gbit/s",
            Self::CostPeerToHub | Self::CostHubToPeer | Self::CostPeerToPeer => "s/GB",
            Self::PingIdle => "us",
            Self::PingBusy => "ms",
            Self::Lossy => "Mbit/s",
            Self::Roam | Self::Restart | Self::Silence => "s",
            Self::IdleMemory => "MiB",
            Self::IdleProcessor => "%",
        }
    }

    fn verdicts(self, medians: &BTreeMap<Contender, f64>) -> Vec<(bool, String)> {
        self.promises().iter().filter_map(|promise| promise.look(medians)).collect()
    }
}

impl Row {
    /// What netyard's figure is to be.
    fn promises(self) -> &'static [Promise] {
        use Promise::{AtLeast, AtMost, TimesBest, TimesOpenvpn, TimesWireguard};
        match self {
            Self::PeerToHub | Self::HubToPeer => &[TimesBest(1.7), TimesOpenvpn(7.0)],
            Self::PeerToPeer => &[TimesBest(1.2)],
            Self::CostPeerToHub | Self::CostHubToPeer => &[AtMost(2.8)],
            Self::CostPeerToPeer => &[],
            Self::PingIdle => &[TimesWireguard(1.2)],
            Self::PingBusy => &[AtMost(20.0)],
            Self::Lossy => &[AtLeast(80.0)],
            Self::Roam => &[AtMost(1.0)],
            Self::Restart => &[AtMost(3.0)],
            Self::Silence => &[AtMost(10.0)],
            Self::IdleMemory => &[AtMost(64.0)],
            Self::IdleProcessor => &[AtMost(1.0)],
        }
    }
}

/// What is promised of netyard's figure.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Promise {
    /// At least so many times the fastest WireGuard.
    TimesBest(f64),
    /// At least so many times the faster OpenVPN.
    TimesOpenvpn(f64),
    /// At most so many times wireguard-go.
    TimesWireguard(f64),
    AtLeast(f64),
    AtMost(f64),
}

const WIREGUARDS: [Contender; 3] =
    [Contender::WireguardGo, Contender::WireguardGoDebian, Contender::Boringtun];
const OPENVPNS: [Contender; 2] = [Contender::OpenvpnUdp, Contender::OpenvpnTcp];

impl Promise {
    /// Whether it is kept, and with what; `None`: it was not measured.
    fn look(self, figures: &BTreeMap<Contender, f64>) -> Option<(bool, String)> {
        let ours = *figures.get(&Contender::Netyard)?;
        let fastest = |of: &[Contender]| {
            let figures = of.iter().filter_map(|who| figures.get(who).copied());
            figures.reduce(f64::max).map(|theirs| ours / theirs)
        };
        Some(match self {
            Self::TimesBest(least) => {
                let is = fastest(&WIREGUARDS)?;
                (is >= least, format!("{is:.2} of WireGuard (>= {least})"))
            }
            Self::TimesOpenvpn(least) => {
                let is = fastest(&OPENVPNS)?;
                (is >= least, format!("{is:.1} of OpenVPN (>= {least})"))
            }
            Self::TimesWireguard(most) => {
                let is = fastest(&WIREGUARDS[..1]).or_else(|| fastest(&WIREGUARDS[1..2]))?;
                (is <= most, format!("{is:.2} of wireguard-go (<= {most})"))
            }
            Self::AtLeast(least) => (ours >= least, format!("{ours:.2} (>= {least})")),
            Self::AtMost(most) => (ours <= most, format!("{ours:.2} (<= {most})")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_looked_at_where_both_were_measured() {
        let figures = BTreeMap::from([
            (Contender::Netyard, 4.0),
            (Contender::WireguardGoDebian, 2.0),
            (Contender::Boringtun, 3.0),
        ]);
        let kept = |promise: Promise| promise.look(&figures).map(|(kept, _)| kept);
        assert_eq!(kept(Promise::TimesBest(1.3)), Some(true));
        assert_eq!(kept(Promise::TimesBest(1.4)), Some(false));
        assert_eq!(kept(Promise::TimesOpenvpn(1.0)), None);
        assert_eq!(kept(Promise::TimesWireguard(2.0)), Some(true));
        assert_eq!(kept(Promise::AtMost(3.9)), Some(false));
        assert_eq!(kept(Promise::AtLeast(4.0)), Some(true));
    }
}
