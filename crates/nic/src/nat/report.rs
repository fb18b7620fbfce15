//! What a test of a NAT found, and its form in JSON.
//!
//! The form is a superset of the one that older programs write: `type`, `nat_info`, `delta` and
//! `delta_info` have their numbers and texts. What was not tested is null, never a guess.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kind::{DeltaType, Filtering, Mapping, NatType};
use crate::portmap::Portmap;
use crate::{AddressClass, Family};

/// What was found out about a NAT.
///
/// Texts that follow from other fields (`nat_info`, `delta_info`, `label`, `advice`) are written,
/// and ignored when read. Fields that this version does not know are kept.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct NatReport {
    /// The type; `None` if the test was inconclusive.
    pub kind: Option<NatType>,
    /// How external ports follow from local ones; `None` if that was not tested.
    pub delta: Option<Delta>,
    /// Everything else.
    pub details: Details,
    /// What this version does not know.
    pub unknown: Map<String, Value>,
}

/// How external ports follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The class.
    #[serde(rename = "type")]
    pub kind: DeltaType,
    /// The distance, without its sign; 0 for classes that have none.
    pub value: u16,
    /// The distance with its sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<i32>,
    /// What steps: a new local port towards one destination, or a new destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
}

impl Delta {
    /// A class with its distance.
    pub fn new(kind: DeltaType, signed: i32, scope: Scope) -> Self {
        let value = u16::try_from(signed.unsigned_abs()).unwrap_or(u16::MAX);
        Self { kind, value, signed: Some(signed), scope: Some(scope) }
    }
}

/// What makes the external port step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Another local port, the same destination.
    Socket,
    /// The same local port, another destination.
    Destination,
}

/// How sure a verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Every step had its proof: answers came from where they should, and silence was checked.
    Proven,
    /// One server's word.
    Single,
    /// The most likely one of several that fit.
    Assumed,
    /// There is no verdict.
    #[default]
    Unknown,
}

/// How a verdict was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The steps of RFC 5780.
    Rfc5780,
    /// The steps of RFC 3489.
    Rfc3489,
    /// Several servers with one address each.
    MultiServer,
}

/// Whether packets to one's own external address come back in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hairpin {
    /// They do, with the external address as source (RFC 4787, REQ-9).
    External,
    /// They do, with an internal address as source.
    Internal,
    /// They do not.
    No,
}

/// Which external ports were seen, over several local ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// They are the local ports.
    pub preserve: bool,
    /// They are even where local ports are, and odd where those are.
    pub parity: bool,
    /// What they are above the local ports, modulo 65536, if always the same.
    pub offset: Option<i32>,
    /// The lowest.
    pub min: u16,
    /// The highest.
    pub max: u16,
}

/// One question to one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// What was asked for, in a word.
    pub step: String,
    /// Who was asked.
    pub server: SocketAddr,
    /// From which local address.
    pub local: SocketAddr,
    /// The address that the server saw.
    pub mapped: Option<SocketAddr>,
    /// How many copies of the request were sent.
    pub sent: u32,
    /// Where the answer came from.
    pub answered_from: Option<SocketAddr>,
    /// From the first copy to the answer, microseconds.
    pub rtt_us: Option<u64>,
    /// Why there is no address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A requirement of RFC 4787, as far as it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compliance {
    /// Met.
    Pass,
    /// Not met.
    Fail,
    /// Not looked at.
    #[default]
    Untested,
}

impl From<Option<bool>> for Compliance {
    fn from(met: Option<bool>) -> Self {
        match met {
            Some(true) => Self::Pass,
            Some(false) => Self::Fail,
            None => Self::Untested,
        }
    }
}

/// The fields beside type and delta; `None` is "not tested".
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Details {
    /// How external addresses are chosen.
    pub mapping: Option<Mapping>,
    /// Who may send to them.
    pub filtering: Option<Filtering>,
    /// Whether packets to one's own external address come back in.
    pub hairpin: Option<Hairpin>,
    /// Which external ports were seen.
    pub port: Option<Ports>,
    /// How the external port steps with each further destination, if always alike.
    pub next_destination: Option<i32>,
    /// A mapping lives at least so long without traffic, seconds.
    pub lifetime_s: Option<u64>,
    /// A mapping was gone after so long, seconds.
    pub lifetime_below_s: Option<u64>,
    /// A box rewrites addresses inside of packets.
    pub alg: Option<bool>,
    /// How many NATs stand in a row, at least; 0 for none.
    pub layers: Option<u8>,
    /// What the gateway said of itself.
    pub portmap: Option<Portmap>,
    /// Answers came over UDP.
    pub udp: Option<bool>,
    /// Answers came over TCP.
    pub tcp_stun: Option<bool>,
    /// Answers came over TLS.
    pub tls_stun: Option<bool>,
    /// The network answers in the place of others, as those do that want a login first.
    pub captive_portal: Option<bool>,
    /// The address family.
    pub af: Option<Family>,
    /// How the verdict was found.
    pub method: Option<Method>,
    /// How sure it is.
    pub confidence: Confidence,
    /// Why there is no better verdict.
    pub inconclusive: Option<String>,
    /// The external address that servers saw.
    pub external: Option<SocketAddr>,
    /// When the test began, seconds since 1970.
    pub tested_at: Option<u64>,
    /// How long it took, milliseconds.
    pub took_ms: Option<u64>,
    /// All questions and answers.
    pub evidence: Vec<Evidence>,
}

impl Details {
    /// Counts the NATs that stand in a row, at least, if the gateway told its external address.
    pub(super) fn count_layers(&mut self, gateway: Option<IpAddr>) {
        self.layers = match (self.mapping, self.external, gateway) {
            (Some(Mapping::None), ..) => Some(0),
            (_, Some(external), Some(gateway)) if external.ip() == gateway => Some(1),
            (_, Some(_), Some(_)) => Some(2),
            // Nobody outside has an address like this.
            (_, None, Some(gateway)) => match AddressClass::of(gateway) {
                AddressClass::Private | AddressClass::Shared => Some(2),
                _ => None,
            },
            (_, _, None) => None,
        };
    }

    /// The requirements of RFC 4787 that the other fields speak of.
    fn rfc4787(&self) -> Vec<(&'static str, Compliance)> {
        let independent = self
            .mapping
            .map(|mapping| matches!(mapping, Mapping::None | Mapping::EndpointIndependent));
        let lives = match (self.lifetime_s, self.lifetime_below_s) {
            (Some(seconds), _) if seconds >= 120 => Some(true),
            (_, Some(seconds)) if seconds <= 120 => Some(false),
            _ => None,
        };
        let filtering = self.filtering.map(|filtering| {
            matches!(filtering, Filtering::EndpointIndependent | Filtering::AddressDependent)
        });
        let hairpin = self.hairpin.map(|hairpin| hairpin == Hairpin::External);
        [("1", independent), ("5", lives), ("8", filtering), ("9", hairpin)]
            .map(|(number, met)| (number, met.into()))
            .into()
    }
}

impl NatReport {
    /// What older programs assume where nothing was tested: restricted by address and port, with
    /// random ports.
    pub fn assumed() -> Self {
        Self {
            kind: Some(NatType::PortRestricted),
            delta: Some(Delta { kind: DeltaType::Random, value: 0, signed: None, scope: None }),
            details: Details { confidence: Confidence::Assumed, ..Details::default() },
            unknown: Map::new(),
        }
    }

    /// What it means for connections between two machines that are both behind something.
    pub fn advice(&self) -> &'static str {
        match (self.kind, self.delta.map(|delta| delta.kind)) {
            (Some(NatType::OpenInternet | NatType::FullCone), _) => {
                "others can connect to this machine directly"
            }
            (
                Some(NatType::SymmetricUdpFirewall | NatType::Restricted | NatType::PortRestricted),
                _,
            ) => "direct connections work when both sides send at the same time",
            (
                Some(NatType::Symmetric),
                Some(
                    DeltaType::Equal
                    | DeltaType::Preserving
                    | DeltaType::Independent
                    | DeltaType::Dependent,
                ),
            ) => "direct connections need a guess of the next port; have a relay ready",
            (Some(NatType::Symmetric), _) => {
                "direct connections only to machines that are open; else a relay"
            }
            (Some(NatType::Blocked), _) => "UDP does not get out: use TCP or a relay",
            (None, _) => "not known: the test was inconclusive",
        }
    }
}

/// The JSON form.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(rename = "type")]
    kind: Option<NatType>,
    #[serde(default, skip_deserializing)]
    nat_info: Option<&'static str>,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default, skip_deserializing)]
    delta_info: Option<&'static str>,
    #[serde(default, skip_deserializing)]
    label: Option<&'static str>,
    #[serde(default, skip_deserializing)]
    advice: Option<&'static str>,
    #[serde(flatten)]
    details: Details,
    #[serde(default, skip_deserializing)]
    rfc4787: Map<String, Value>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl From<NatReport> for Written {
    fn from(report: NatReport) -> Self {
        let rfc4787 = report
            .details
            .rfc4787()
            .into_iter()
            .filter_map(|(number, met)| {
                Some((format!("req_{number}"), serde_json::to_value(met).ok()?))
            })
            .collect();
        Self {
            kind: report.kind,
            nat_info: report.kind.map(NatType::info),
            delta: report.delta,
            delta_info: report.delta.map(|delta| delta.kind.info()),
            label: report.kind.map(NatType::label),
            advice: Some(report.advice()),
            details: report.details,
            rfc4787,
            unknown: report.unknown,
        }
    }
}

impl From<Written> for NatReport {
    fn from(written: Written) -> Self {
        let derived = ["nat_info", "delta_info", "label", "advice", "rfc4787"];
        let known = serde_json::to_value(Details::default());
        let is_known = |key: &String| {
            derived.contains(&key.as_str())
                || known.as_ref().is_ok_and(|known| known.get(key).is_some())
        };
        let unknown = written.unknown.into_iter().filter(|(key, _)| !is_known(key)).collect();
        Self { kind: written.kind, delta: written.delta, details: written.details, unknown }
    }
}
