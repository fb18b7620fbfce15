//! What a ruleset does with a packet, worked out from the rules themselves, without sending it.
//!
//! [`Ruleset::read`] takes the rules of every table as the kernel lists them; [`Ruleset::pass`] is
//! what the kernel does at one hook: every base chain there in the order of priorities, jumps and
//! maps followed, translations applied. What cannot be worked out (expressions that are not known
//! here, fields that nobody told) is said in [`Passage::doubts`] and taken for "does not match".

mod run;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use self::run::Run;
use super::expression::Expression;
use super::state::split;
use super::words;
use super::{
    ChainState, CtState, ElementState, Family, Hook, Nftables, Set, SetState, Table, message,
};
use crate::attribute::Attributes;
use crate::error::Result;

const GETRULE: u8 = 7;
/// `NFTA_LIST_ELEM`.
const LIST_ELEM: u16 = 1;

/// Every rule of a network namespace.
#[derive(Debug, Clone, Default)]
pub struct Ruleset {
    chains: Vec<ChainState>,
    rules: Vec<Known>,
    sets: Vec<(SetState, Vec<ElementState>)>,
}

/// A rule with what it does.
#[derive(Debug, Clone)]
struct Known {
    family: Family,
    table: String,
    chain: String,
    handle: u64,
    comment: Option<String>,
    /// Packets that it has counted.
    counted: u64,
    /// `Err`: the name of the first expression that is not known here.
    expressions: std::result::Result<Vec<Expression>, String>,
}

/// A link as packets know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
}

/// A packet at a hook, and what the kernel knows about it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The link it came in by.
    pub input: Option<Port>,
    /// The link it goes out by.
    pub output: Option<Port>,
    /// Ethernet source and destination.
    pub mac: Option<(MacAddr, MacAddr)>,
    /// Where from.
    pub source: IpAddr,
    /// Where to, of the same family.
    pub destination: IpAddr,
    /// Transport protocol, e.g. 6 for TCP.
    pub protocol: u8,
    /// Port that it comes from; 0 if the protocol has none.
    pub source_port: u16,
    /// Port that it goes to.
    pub destination_port: u16,
    /// State of its connection.
    pub state: CtState,
    /// Its connection's destination was translated.
    pub translated: bool,
    /// The mark of its connection.
    pub mark: u32,
    /// Its destination is an address of this machine.
    pub local: bool,
    /// Which turn it gets where connections take turns: 0 is the next one where the rule counts, else
    /// the first one.
    pub turn: u32,
}

/// What a rule does with a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// The packet goes on to the chains of others.
    Accept,
    /// It vanishes.
    Drop,
    /// It is refused, and its sender is told: `true` with a TCP reset, `false` with ICMP.
    Reject(bool),
    /// The connection's destination becomes this one.
    Destination(IpAddr, Option<u16>),
    /// The connection's source becomes this one.
    Source(IpAddr),
    /// The connection's source becomes the address of the link that it leaves by.
    Masquerade,
    /// The connection's destination becomes this machine.
    Redirect(Option<u16>),
    /// A TCP segment that opens a connection offers no larger segments than fit the way.
    ClampSegments,
}

impl Effect {
    /// True for translations, of which a connection gets one at each hook.
    fn translates(&self) -> bool {
        match self {
            Self::Destination(..) | Self::Source(_) | Self::Masquerade | Self::Redirect(_) => true,
            Self::Accept | Self::Drop | Self::Reject(_) | Self::ClampSegments => false,
        }
    }
}

/// A rule that did something, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Family and name of its table: `inet netyard-lab`.
    pub table: String,
    /// Chains from the one at the hook to its own.
    pub chains: Vec<String>,
    /// Its handle, as `nft -a list ruleset` shows it; `None`: no rule, the chain's policy.
    pub handle: Option<u64>,
    /// The rule, in the words of nft(8).
    pub rule: String,
    /// The text beside it: what it is for.
    pub comment: Option<String>,
    /// What it does.
    pub effect: Effect,
}

/// A rule of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Family and name of its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Its handle.
    pub handle: u64,
    /// The rule, in the words of nft(8).
    pub rule: String,
    /// The text beside it: what it is for.
    pub comment: Option<String>,
}

/// How a packet gets past a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// The packet behind it, translated.
    pub packet: Packet,
    /// The rules that did something, in order.
    pub decisions: Vec<Decision>,
    /// How many turns there are, if the way depends on the turn.
    pub turns: Option<u32>,
    /// What could not be worked out, in words.
    pub doubts: Vec<String>,
}

impl Passage {
    /// True if the packet goes on.
    #[must_use]
    pub fn passes(&self) -> bool {
        let last = self.decisions.last().map(|decision| &decision.effect);
        !matches!(last, Some(Effect::Drop | Effect::Reject(_)))
    }
}

impl Ruleset {
    /// The rules as they are now.
    ///
    /// # Errors
    /// What the kernel said: listing rules takes `CAP_NET_ADMIN`.
    pub fn read(nftables: &mut Nftables) -> Result<Self> {
        let chains = nftables.all_chains()?;
        let operation = || "list the rules".to_owned();
        let rules = nftables.connection.dump(&message(GETRULE, 0, 0), operation, |answer| {
            let (family, attributes) = split(answer)?;
            Known::read(family?, attributes)
        })?;
        let mut sets = Vec::new();
        for table in nftables.tables()? {
            for set in nftables.sets(&table.table)? {
                let place = Table::new(set.family, &set.table);
                let elements = nftables.elements(&Set::new(&place, &set.name, []))?;
                sets.push((set, elements));
            }
        }
        Ok(Self { chains, rules, sets })
    }

    /// The rules of a table, chain by chain, in order.
    #[must_use]
    pub fn listing(&self, table: &Table) -> Vec<Listed> {
        let chains = self
            .chains
            .iter()
            .filter(|chain| chain.family == table.family && chain.table == table.name);
        let rules = chains.flat_map(|chain| {
            let rules = self.rules.iter();
            rules.filter(|rule| {
                rule.family == chain.family && rule.table == chain.table && rule.chain == chain.name
            })
        });
        let listed = rules.map(|rule| Listed {
            table: format!("{} {}", rule.family.as_str(), rule.table),
            chain: rule.chain.clone(),
            handle: rule.handle,
            rule: match &rule.expressions {
                Ok(expressions) => words::rule(expressions),
                Err(name) => format!("... {name} ..."),
            },
            comment: rule.comment.clone(),
        });
        listed.collect()
    }

    /// What happens to a packet at a hook of IPv4 and IPv6, or of bridges.
    #[must_use]
    pub fn pass(&self, at: Hook, bridge: bool, packet: &Packet) -> Passage {
        let (hook, _) = at.parts();
        let families: &[Family] = match (bridge, packet.destination.is_ipv4()) {
            (true, _) => &[Family::Bridge],
            (false, true) => &[Family::Inet, Family::Ip],
            (false, false) => &[Family::Inet, Family::Ip6],
        };
        let mut chains: Vec<_> = (self.chains.iter())
            .filter(|chain| families.contains(&chain.family))
            .filter(|chain| chain.hook().is_some_and(|(at, _)| at == hook))
            .collect();
        chains.sort_by_key(|chain| chain.base.as_ref().map(|(_, priority, _)| *priority));
        let mut run = Run::new(self, packet);
        let mut translated = false;
        for chain in chains {
            let translates = chain.hook().is_some_and(|(_, nat)| nat);
            // Only what begins a connection is asked for, and only until one has translated: behind
            // a chain that accepts it the kernel asks the next (nf_nat_inet_fn).
            if translates && (translated || packet.state != CtState::NEW) {
                continue;
            }
            let before = run.passage.decisions.len();
            let ended = run.chain(chain, &mut vec![chain.name.clone()]);
            let decided = run.passage.decisions.iter().skip(before);
            translated |= translates && decided.map(|it| &it.effect).any(Effect::translates);
            if ended.is_none() && chain.drops {
                run.passage.decisions.push(Decision {
                    table: format!("{} {}", chain.family.as_str(), chain.table),
                    chains: vec![chain.name.clone()],
                    handle: None,
                    rule: "policy drop".into(),
                    comment: None,
                    effect: Effect::Drop,
                });
            }
            if !run.passage.passes() {
                break;
            }
        }
        run.passage
    }
}

impl Known {
    fn read(family: Family, attributes: Attributes<'_>) -> Option<Self> {
        let list = attributes.find(4).map(|list| list.nested()).into_iter().flatten();
        let mut counted = 0;
        let expressions = list.filter(|(kind, _)| *kind == LIST_ELEM).map(|(_, expression)| {
            let parts = expression.nested();
            let name = parts.find(1).map(|name| name.text()).unwrap_or_default();
            let data = parts.find(2).map_or(Attributes(&[]), |data| data.nested());
            if let Some(packets) = data.find(2).filter(|_| name == "counter") {
                counted = packets.be64().unwrap_or_default();
            }
            Expression::read(&name, data).ok_or(name)
        });
        Some(Self {
            family,
            table: attributes.find(1)?.text(),
            chain: attributes.find(2)?.text(),
            handle: attributes.find(3)?.be64()?,
            comment: attributes.find(7).and_then(|data| super::set::read_user_data(data.0, 0)),
            expressions: expressions.collect::<std::result::Result<_, _>>(),
            counted,
        })
    }
}
