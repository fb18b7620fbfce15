//! By which card of this machine leaves what a network sends to the outside, and as whom servers see it.

use std::io::{self, Write as _};

use netyard_engine::config::Uplink;
use netyard_nic::nat::NatReport;
use netyard_nic::watch::Way;
use netyard_nic::{Card, External, Family, Look, cards};
use netyard_yard::api::{InstanceStatus, NetworkStatus, ServiceStatus, YardStatus};
use netyard_yard::error::YardError;
use serde::Serialize;

use super::asked::Asked;
use crate::output::patiently;

/// How traffic of one family leaves.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Leaving {
    pub(crate) family: Family,
    #[serde(flatten)]
    pub(crate) way: Way,
    /// As whom servers see it, if they were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seen: Option<Seen>,
}

/// As whom servers see what leaves.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Seen {
    /// The external address or block.
    pub(crate) external: Option<String>,
    /// Why it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unknown: Option<String>,
    /// What stands in between; `None`: there could be no test.
    pub(crate) nat: Option<NatReport>,
}

/// A network, and how it leaves.
#[derive(Debug, Serialize)]
pub(crate) struct Network {
    #[serde(flatten)]
    pub(crate) status: NetworkStatus,
    /// Nothing for a closed network, and where there is no way out.
    pub(crate) leaves: Vec<Leaving>,
}

/// A yard, and how its networks leave.
#[derive(Debug, Serialize)]
pub(crate) struct Yard {
    #[serde(flatten)]
    pub(crate) rest: Rest,
    pub(crate) networks: Vec<Network>,
}

/// What a yard has beside networks.
#[derive(Debug, Serialize)]
pub(crate) struct Rest {
    pub(crate) name: String,
    pub(crate) file: std::path::PathBuf,
    pub(crate) keeper_pid: u32,
    pub(crate) instances: Vec<InstanceStatus>,
    pub(crate) services: Vec<ServiceStatus>,
}

impl Yard {
    /// The yard with the ways of its networks.
    pub(crate) fn new(status: YardStatus, ways: &[Leaving]) -> Self {
        let YardStatus { name, file, keeper_pid, instances, services, networks } = status;
        let networks = networks.into_iter().map(|network| Network::new(network, ways)).collect();
        Self { rest: Rest { name, file, keeper_pid, instances, services }, networks }
    }
}

impl Network {
    /// The network with its ways, of those that this machine has.
    pub(crate) fn new(status: NetworkStatus, ways: &[Leaving]) -> Self {
        let bridge = status.state.interface.as_deref();
        let leaves = match status.state.config.as_ref().map(|config| &config.uplink) {
            None | Some(Uplink::None) => Vec::new(),
            Some(Uplink::Nat) => ways.to_vec(),
            Some(uplink @ (Uplink::Routed | Uplink::Card(_))) => {
                ways.iter().map(|way| untranslated(way, uplink, bridge)).collect()
            }
        };
        Self { status, leaves }
    }
}

/// The way of what leaves with the addresses of its sender: as whom this machine is seen says nothing
/// about it.
fn untranslated(leaving: &Leaving, uplink: &Uplink, bridge: Option<&str>) -> Leaving {
    let mut way = Way { source: None, ..leaving.way.clone() };
    if let Uplink::Card(card) = uplink
        && bridge == Some(&way.card)
    {
        // The addresses of the card are the bridge's, whose port it is.
        way.card.clone_from(card);
    }
    Leaving { family: leaving.family, way, seen: None }
}

/// How this machine's traffic leaves. Nobody is asked.
pub(crate) fn here() -> Vec<Leaving> {
    outwards(&there())
}

/// The cards that there are. Where they cannot be listed that is said on stderr, and there are none: what
/// is shown beside them is known all the same.
pub(super) fn there() -> Vec<Card> {
    cards().unwrap_or_else(|error| {
        // Nothing can be done where stderr is closed.
        _ = writeln!(io::stderr(), "netyard: cannot list the cards of this machine: {error}");
        Vec::new()
    })
}

fn outwards(cards: &[Card]) -> Vec<Leaving> {
    let way = |family| {
        let way = Way::outwards(cards, family)?;
        Some(Leaving { family, way, seen: None })
    };
    Family::BOTH.into_iter().filter_map(way).collect()
}

/// The same, and as whom servers see it if any are named; `gateway`: it is asked too.
///
/// # Errors
/// Nobody can be asked.
pub(crate) fn ways(asked: &Asked, gateway: bool) -> Result<Vec<Leaving>, YardError> {
    let cards = there();
    let mut ways = outwards(&cards);
    if !asked.nobody() {
        patiently("asking STUN servers", || {
            super::run(look(&cards, &mut ways, &asked.look(gateway)))
        })?;
    }
    Ok(ways)
}

async fn look(cards: &[Card], ways: &mut [Leaving], look: &Look) {
    for Leaving { way, seen, .. } in ways {
        let card = cards.iter().find(|card| card.name == way.card);
        if let (Some(card), Some(source)) = (card, way.source) {
            let netyard_nic::Seen { external, nat } = look.from(card, source, true).await;
            let (external, unknown) = match external {
                External::Known(range) => (Some(range.to_string()), None),
                External::Unknown(why) => (None, Some(why.to_string())),
            };
            *seen = Some(Seen { external, unknown, nat });
        }
    }
}

#[cfg(test)]
mod tests {
    use netyard_engine::control::State;

    use super::*;

    fn leaving() -> Leaving {
        let way = Way {
            card: "br0".into(),
            source: Some([192, 0, 2, 7].into()),
            gateway: Some([192, 0, 2, 1].into()),
        };
        let seen = Seen { external: Some("203.0.113.1".into()), unknown: None, nat: None };
        Leaving { family: Family::Ip4, way, seen: Some(seen) }
    }

    #[test]
    fn what_is_not_translated_is_not_seen_as_this_machine() {
        let routed = untranslated(&leaving(), &Uplink::Routed, Some("br1"));
        assert_eq!((routed.way.card.as_str(), routed.way.source), ("br0", None));
        assert!(routed.seen.is_none());
        let card = untranslated(&leaving(), &Uplink::Card("eth0".into()), Some("br0"));
        assert_eq!(card.way.card, "eth0", "the bridge's port");
        let other = untranslated(&leaving(), &Uplink::Card("eth1".into()), Some("br1"));
        assert_eq!(other.way.card, "br0", "another card leads to the outside");
    }

    #[test]
    fn a_network_that_is_not_known_leaves_nowhere() {
        let status = NetworkStatus { name: "lan".into(), state: State::default(), problem: None };
        assert!(Network::new(status, &[leaving()]).leaves.is_empty());
    }
}
