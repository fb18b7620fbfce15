//! What a ruleset does with a packet, worked out from the rules themselves, without sending it.
//!
//! [`Ruleset::read`] takes the rules of every table as the kernel lists them; [`Ruleset::pass`] is
//! what the kernel does at one hook: every base chain there in the order of priorities, jumps and
//! maps followed, translations applied. What cannot be worked out (expressions that are not known
//! here, fields that nobody told) is said in [`Passage::doubts`] and taken for "does not match".

use std::net::IpAddr;

use netyard_wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::expression::{Comparison, Expression, FIRST, Header, REGISTERS};
use super::state::split;
use super::words::{self, address};
use super::{
    ChainState, CtState, Datum, ElementState, Family, Hook, Nftables, Set, SetState, Table,
    Verdict, message,
};
use crate::attribute::Attributes;
use crate::error::Result;

const GETRULE: u8 = 7;
/// `NFTA_LIST_ELEM`.
const LIST_ELEM: u16 = 1;

/// `NFT_JUMP_STACK_SIZE`: how deep the kernel lets jumps go.
const DEPTH: usize = 16;

const IPV4: u8 = 2;
const IPV6: u8 = 10;

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
        let mut run = Run {
            ruleset: self,
            passage: Passage {
                packet: packet.clone(),
                decisions: Vec::new(),
                turns: None,
                doubts: Vec::new(),
            },
        };
        let mut translated = false;
        for chain in chains {
            let translates = chain.hook().is_some_and(|(_, nat)| nat);
            // Only what begins a connection is asked for, and only until one has decided.
            if translates && (translated || packet.state != CtState::NEW) {
                continue;
            }
            let before = run.passage.decisions.len();
            let ended = run.chain(chain, &mut vec![chain.name.clone()]);
            translated |= translates && run.passage.decisions.len() > before;
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

/// What a chain or a rule came to: the packet needs no other rule of this base chain.
type Ended = Option<()>;

/// The registers: bytes that are known.
type Registers = [Option<u8>; 4 * REGISTERS as usize];

struct Run<'a> {
    ruleset: &'a Ruleset,
    passage: Passage,
}

/// What a rule says of a packet.
enum Said {
    /// The next rule is next.
    Next,
    Verdict(Verdict),
    Done,
}

impl<'a> Run<'a> {
    fn chain(&mut self, chain: &'a ChainState, path: &mut Vec<String>) -> Ended {
        let ruleset = self.ruleset;
        let rules = ruleset.rules.iter().filter(|rule| {
            rule.family == chain.family && rule.table == chain.table && rule.chain == chain.name
        });
        for rule in rules {
            let (name, returns) = match self.rule(rule, path) {
                Said::Next | Said::Verdict(Verdict::Continue) => continue,
                Said::Verdict(Verdict::Return) => return None,
                Said::Done | Said::Verdict(Verdict::Accept | Verdict::Drop) => return Some(()),
                Said::Verdict(Verdict::Jump(name)) => (name, true),
                Said::Verdict(Verdict::Goto(name)) => (name, false),
            };
            let next = ruleset.chains.iter().find(|next| {
                next.family == chain.family && next.table == chain.table && next.name == name
            });
            if let Some(next) = next.filter(|_| path.len() < DEPTH) {
                path.push(name);
                let ended = self.chain(next, path);
                path.pop();
                if ended.is_some() {
                    return ended;
                }
            }
            if !returns {
                return None;
            }
        }
        None
    }

    fn rule(&mut self, rule: &'a Known, path: &[String]) -> Said {
        let place = || format!("{} {} {}", rule.family.as_str(), rule.table, rule.chain);
        let expressions = match &rule.expressions {
            Ok(expressions) => expressions,
            Err(name) => {
                self.doubt(format!(
                    "the rule {} of {} is left out: what {name} does is not known here",
                    rule.handle,
                    place()
                ));
                return Said::Next;
            }
        };
        let mut registers: Registers = [None; 4 * REGISTERS as usize];
        for expression in expressions {
            let effect = match expression {
                Expression::Compare { how, register, value } => {
                    match compare(&registers, *how, *register, value) {
                        Some(true) => continue,
                        Some(false) => return Said::Next,
                        None => {
                            self.doubt(format!(
                                "the rule {} of {} asks for what is not known here",
                                rule.handle,
                                place()
                            ));
                            return Said::Next;
                        }
                    }
                }
                Expression::Lookup { set, from, invert, to } => {
                    match self.lookup(rule, set, *from, &registers) {
                        Some(found) if *invert == found.is_some() => return Said::Next,
                        Some(found) => match (found.and_then(|element| element.data.clone()), to) {
                            (Some(Datum::Verdict(verdict)), Some(0)) => {
                                return self.decided(rule, path, verdict);
                            }
                            (Some(Datum::Value(value)), Some(to)) => {
                                write(&mut registers, *to, &value.0);
                                continue;
                            }
                            _ => continue,
                        },
                        None => {
                            self.doubt(format!(
                                "the rule {} of {} looks up what is not known here",
                                rule.handle,
                                place()
                            ));
                            return Said::Next;
                        }
                    }
                }
                Expression::Verdict(verdict) => {
                    return self.decided(rule, path, verdict.clone());
                }
                // One packet does not exceed a rate.
                Expression::Limit { over: true, .. } => return Said::Next,
                Expression::Nat { source, address: at, port, .. } => {
                    let bytes = |at: &u32, len| read(&registers, *at, len);
                    let len = if self.passage.packet.destination.is_ipv4() { 4 } else { 16 };
                    let address = at.as_ref().and_then(|at| address(&bytes(at, len)?));
                    let port = port.as_ref().and_then(|at| match bytes(at, 2)?.as_slice() {
                        [high, low] => Some(u16::from_be_bytes([*high, *low])),
                        _ => None,
                    });
                    match (source, address) {
                        (true, Some(address)) => Effect::Source(address),
                        (false, Some(address)) => Effect::Destination(address, port),
                        (_, None) => return Said::Done,
                    }
                }
                Expression::Masquerade { .. } => Effect::Masquerade,
                Expression::Redirect { port } => {
                    let port = port.and_then(|at| read(&registers, at, 2));
                    let port = port.and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
                    Effect::Redirect(port)
                }
                Expression::Reject { kind, .. } => Effect::Reject(*kind == 1),
                Expression::SetTcpOption { .. } => {
                    self.note(rule, path, Effect::ClampSegments);
                    continue;
                }
                load => {
                    self.load(load, rule.counted, &mut registers);
                    continue;
                }
            };
            self.apply(&effect);
            self.note(rule, path, effect);
            return Said::Done;
        }
        Said::Next
    }

    fn decided(&mut self, rule: &Known, path: &[String], verdict: Verdict) -> Said {
        match verdict {
            Verdict::Accept => self.note(rule, path, Effect::Accept),
            Verdict::Drop => self.note(rule, path, Effect::Drop),
            _ => {}
        }
        Said::Verdict(verdict)
    }

    fn note(&mut self, rule: &Known, path: &[String], effect: Effect) {
        let expressions = rule.expressions.as_deref().unwrap_or_default();
        self.passage.decisions.push(Decision {
            table: format!("{} {}", rule.family.as_str(), rule.table),
            chains: path.to_vec(),
            handle: Some(rule.handle),
            rule: words::rule(expressions),
            comment: rule.comment.clone(),
            effect,
        });
    }

    fn doubt(&mut self, text: String) {
        if !self.passage.doubts.contains(&text) {
            self.passage.doubts.push(text);
        }
    }

    /// Changes the packet as a translation does.
    fn apply(&mut self, effect: &Effect) {
        let packet = &mut self.passage.packet;
        match effect {
            Effect::Destination(address, port) => {
                packet.destination = *address;
                packet.destination_port = port.unwrap_or(packet.destination_port);
                packet.translated = true;
            }
            Effect::Source(address) => packet.source = *address,
            Effect::Redirect(port) => {
                packet.destination_port = port.unwrap_or(packet.destination_port);
                packet.translated = true;
            }
            _ => {}
        }
    }

    /// `None`: the key is not known, or the set is not; `Some(None)`: it is not in the set.
    fn lookup(
        &self,
        rule: &Known,
        set: &str,
        from: u32,
        registers: &Registers,
    ) -> Option<Option<&'a ElementState>> {
        let (state, elements) = self.ruleset.sets.iter().find(|(state, _)| {
            state.name == set && state.table == rule.table && state.family == rule.family
        })?;
        let key = read(registers, from, usize::try_from(state.key_len).ok()?)?;
        if !state.ranges {
            return Some(elements.iter().find(|element| element.key.0 == key));
        }
        // Ranges of joined keys are compared field by field, and the fields are not listed.
        if elements.iter().any(|element| element.last.is_some()) {
            return None;
        }
        let below = elements.iter().filter(|element| element.key.0 <= key);
        let nearest =
            below.max_by(|one, other| (&one.key.0, !one.end).cmp(&(&other.key.0, !other.end)));
        Some(nearest.filter(|element| !element.end))
    }

    /// Loads a field of the packet, if it is known.
    fn load(&mut self, load: &Expression, counted: u64, registers: &mut Registers) {
        let packet = &self.passage.packet;
        let name = |port: &Option<Port>| {
            let mut name = port.as_ref()?.name.clone().into_bytes();
            name.resize(16, 0);
            Some(name)
        };
        let number = |number: u32| Some(number.to_ne_bytes().to_vec());
        let v4 = packet.destination.is_ipv4();
        let (to, value) = match load {
            Expression::Meta { key, to } => {
                let value = match key {
                    1 => Some(if v4 { vec![8, 0] } else { vec![0x86, 0xdd] }),
                    3 => number(0),
                    4 => packet.input.as_ref().and_then(|port| number(port.index)),
                    5 => packet.output.as_ref().and_then(|port| number(port.index)),
                    6 => name(&packet.input).or_else(|| Some(vec![0; 16])),
                    7 => name(&packet.output).or_else(|| Some(vec![0; 16])),
                    15 => Some(vec![if v4 { IPV4 } else { IPV6 }]),
                    16 => Some(vec![packet.protocol]),
                    _ => None,
                };
                (*to, value)
            }
            Expression::Ct { key, to, .. } => {
                const DESTINATION_TRANSLATED: u32 = 1 << 5;
                let value = match key {
                    0 => number(packet.state.0),
                    1 => Some(vec![0]),
                    2 => number(if packet.translated { DESTINATION_TRANSLATED } else { 0 }),
                    3 => number(0),
                    _ => None,
                };
                (*to, value)
            }
            Expression::Payload { header, offset, len, to } => {
                (*to, self.payload(*header, *offset, *len))
            }
            Expression::Fib { result: 3, to, .. } => {
                (*to, number(if packet.local { 2 } else { 1 }))
            }
            Expression::Turn { modulus, offset, random, to } => {
                // A rule that counts has counted the turns that were given: the next is behind them.
                let given = if *random { 0 } else { counted };
                let turn = given.wrapping_add(packet.turn.into()).checked_rem((*modulus).into());
                let turn = turn.and_then(|turn| u32::try_from(turn).ok()).unwrap_or_default();
                self.passage.turns = Some(*modulus);
                (*to, number(turn.wrapping_add(*offset)))
            }
            Expression::Immediate { value, to } => (*to, Some(value.clone())),
            Expression::Mask { register, mask } => {
                let masked = read(registers, *register, mask.len())
                    .map(|value| value.iter().zip(mask).map(|(byte, mask)| byte & mask).collect());
                (*register, masked)
            }
            _ => return,
        };
        match value {
            Some(value) => write(registers, to, &value),
            None => forget(registers, to),
        }
    }

    /// Bytes of the packet's headers.
    fn payload(&self, header: Header, offset: u32, len: u32) -> Option<Vec<u8>> {
        let packet = &self.passage.packet;
        let headers = match header {
            Header::Link => {
                let (source, destination) = packet.mac?;
                [destination.0.as_slice(), source.0.as_slice()].concat()
            }
            Header::Network => match (packet.source, packet.destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, packet.protocol, 0, 0];
                    bytes.extend(source.octets().into_iter().chain(destination.octets()));
                    bytes
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    let mut bytes = vec![0x60, 0, 0, 0, 0, 20, packet.protocol, 64];
                    bytes.extend(source.octets().into_iter().chain(destination.octets()));
                    bytes
                }
                _ => return None,
            },
            Header::Transport => {
                const SYN: u8 = 2;
                const ECHO: [u8; 2] = [8, 128];
                let v6 = usize::from(packet.destination.is_ipv6());
                let flags = if packet.state == CtState::NEW { SYN } else { 0x10 };
                let mut bytes = match packet.protocol {
                    1 | 58 => vec![*ECHO.get(v6)?, 0, 0, 0],
                    _ => [packet.source_port.to_be_bytes(), packet.destination_port.to_be_bytes()]
                        .concat(),
                };
                bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
                bytes
            }
        };
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(usize::try_from(len).ok()?)?;
        headers.get(offset..end).map(<[u8]>::to_vec)
    }
}

fn place(register: u32) -> Option<usize> {
    usize::try_from(register.checked_sub(FIRST)?).ok()?.checked_mul(4)
}

/// The bytes from a register on; `None` if one of them is not known.
fn read(registers: &Registers, register: u32, len: usize) -> Option<Vec<u8>> {
    let at = place(register)?;
    registers.get(at..at.checked_add(len)?)?.iter().copied().collect()
}

/// Writes a value, with zeros up to the next register.
fn write(registers: &mut Registers, register: u32, value: &[u8]) {
    let Some(at) = place(register) else { return };
    let bytes = value.iter().copied().chain(std::iter::repeat(0));
    let room = registers.iter_mut().skip(at).take(value.len().next_multiple_of(4));
    for (register, byte) in room.zip(bytes) {
        *register = Some(byte);
    }
}

fn forget(registers: &mut Registers, register: u32) {
    let Some(at) = place(register) else { return };
    registers.iter_mut().skip(at).take(16).for_each(|byte| *byte = None);
}

/// `None`: what is compared is not known.
fn compare(registers: &Registers, how: Comparison, register: u32, value: &[u8]) -> Option<bool> {
    let found = read(registers, register, value.len())?;
    Some(match how {
        Comparison::Equal => found == value,
        Comparison::Unequal => found != value,
        Comparison::AtMost => found.as_slice() <= value,
        Comparison::AtLeast => found.as_slice() >= value,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Chain, Priority, Reject, Rule, Selector, Type, Value};
    use super::*;

    const TCP: u8 = 6;

    /// Keeps what a batch would make.
    #[derive(Default)]
    struct Made(Ruleset);

    impl Made {
        fn chain(&mut self, chain: &Chain, drops: bool) {
            let base = chain.base.as_ref().map(|base| {
                let (hook, kind) = base.hook.parts();
                (hook, base.priority.0, kind.to_owned())
            });
            self.0.chains.push(ChainState {
                table: chain.table.name.clone(),
                family: chain.table.family,
                name: chain.name.clone(),
                base,
                drops,
                used: 0,
            });
        }

        fn rule(&mut self, rule: Rule) {
            rule.check().unwrap();
            let handle = 1 + self.0.rules.len() as u64;
            self.0.rules.push(Known {
                family: rule.chain.table.family,
                table: rule.chain.table.name.clone(),
                chain: rule.chain.name.clone(),
                handle,
                comment: rule.comment.clone(),
                counted: 0,
                expressions: Ok(rule.expressions.clone()),
            });
        }

        fn set(&mut self, set: &Set, elements: &[(Value, Option<Datum>)]) {
            let state = SetState {
                table: set.table.name.clone(),
                family: set.table.family,
                name: set.name.clone(),
                key_len: super::super::set::width(&set.key).try_into().unwrap(),
                is_map: set.data.is_some(),
                ranges: false,
            };
            let elements = elements.iter().map(|(key, data)| ElementState {
                key: key.clone(),
                last: None,
                end: false,
                data: data.clone(),
                timeout: None,
                expires: None,
                comment: None,
                counter: None,
            });
            self.0.sets.push((state, elements.collect()));
        }
    }

    fn packet(to: [u8; 4], port: u16) -> Packet {
        Packet {
            input: Some(Port { name: "br1".into(), index: 7 }),
            output: None,
            mac: None,
            source: [192, 168, 1, 11].into(),
            destination: to.into(),
            protocol: TCP,
            source_port: 40_000,
            destination_port: port,
            state: CtState::NEW,
            translated: false,
            local: false,
            turn: 0,
        }
    }

    #[test]
    fn turns_and_maps_lead_to_instances() {
        let table = Table::inet("t");
        let entry = Chain::base(&table, "prerouting", Hook::NatPrerouting, Priority::DNAT);
        let service = Chain::regular(&table, "service/web");
        let key = [Type::Ipv4, Type::Protocol, Type::Port];
        let services = Set::verdict_map(&table, "services", key);
        let turns = Set::verdict_map(&table, "turns", [Type::Mark]);
        let mut made = Made::default();
        made.chain(&entry, false);
        made.chain(&service, false);
        let with = [Selector::Ip4Destination, Selector::L4Protocol, Selector::DestinationPort];
        made.rule(Rule::new(&entry).load(with).vmap(&services));
        let two = Selector::Turn { modulus: 2, offset: 0 };
        made.rule(Rule::new(&service).load([two]).vmap(&turns));
        let address = IpAddr::from([192, 168, 1, 254]);
        let goto = |name: &str| Some(Datum::Verdict(Verdict::Goto(name.into())));
        let web = Value::concat([address.into(), Value::byte(TCP), Value::port(80)]);
        made.set(&services, &[(web, goto("service/web"))]);
        made.set(&turns, &[(Value::number(0), goto("one")), (Value::number(1), goto("two"))]);
        for (name, last) in [("one", 11), ("two", 12)] {
            let chain = Chain::regular(&table, name);
            made.chain(&chain, false);
            let to = IpAddr::from([192, 168, 1, last]);
            made.rule(Rule::new(&chain).counter().dnat(to, Some(8080)).comment("a turn"));
        }
        for (counted, turn, last) in [(0, 0, 11), (0, 1, 12), (0, 2, 11), (7, 0, 12), (7, 1, 11)] {
            made.0.rules[1].counted = counted;
            let asked = Packet { turn, ..packet([192, 168, 1, 254], 80) };
            let passage = made.0.pass(Hook::Prerouting, false, &asked);
            assert_eq!(passage.packet.destination, IpAddr::from([192, 168, 1, last]));
            assert_eq!(passage.packet.destination_port, 8080);
            assert!(passage.packet.translated && passage.passes());
            assert_eq!((passage.turns, passage.doubts.len()), (Some(2), 0));
            let [decision] = passage.decisions.as_slice() else { panic!("{passage:?}") };
            assert_eq!(decision.chains[..2], ["prerouting", "service/web"]);
            assert_eq!(decision.comment.as_deref(), Some("a turn"));
            assert_eq!(decision.rule, format!("counter dnat to 192.168.1.{last}:8080"));
        }
        let other = made.0.pass(Hook::Prerouting, false, &packet([192, 168, 1, 254], 81));
        assert!(other.decisions.is_empty() && other.turns.is_none());
        let known = Packet { state: CtState::ESTABLISHED, ..packet([192, 168, 1, 254], 80) };
        assert!(made.0.pass(Hook::Prerouting, false, &known).decisions.is_empty());
    }

    #[test]
    fn every_table_has_its_say_in_order() {
        let (ours, others) = (Table::inet("ours"), Table::new(Family::Ip, "others"));
        let mine = Chain::base(&ours, "forward", Hook::Forward, Priority::FILTER);
        let late = Chain::base(&others, "late", Hook::Forward, Priority(10));
        let mut made = Made::default();
        made.chain(&late, true);
        made.chain(&mine, false);
        let net: ipnet::IpNet = "192.168.1.0/24".parse().unwrap();
        let link: crate::rtnetlink::LinkName = "br1".parse().unwrap();
        let leaving = Rule::new(&mine).is(Selector::InputName, &link);
        made.rule(leaving.clone().within(Selector::Ip4Destination, net).accept());
        let metadata = "169.254.0.0/16".parse().unwrap();
        made.rule(leaving.within(Selector::Ip4Destination, metadata).reject(Reject::Prohibited));
        let inside = made.0.pass(Hook::Forward, false, &packet([192, 168, 1, 12], 80));
        let said: Vec<_> = inside.decisions.iter().map(|it| it.rule.as_str()).collect();
        assert_eq!(
            said,
            ["iifname \"br1\" ip daddr 192.168.1.0/24 accept", "policy drop"],
            "the other table drops what ours lets pass"
        );
        assert!(!inside.passes());
        let cloud = made.0.pass(Hook::Forward, false, &packet([169, 254, 169, 254], 80));
        assert_eq!(cloud.decisions.last().unwrap().effect, Effect::Reject(false));
        assert_eq!(cloud.decisions.len(), 1, "nobody is asked after a refusal");
        let v6 = Packet {
            source: "fd00::1".parse().unwrap(),
            destination: "fd00::2".parse().unwrap(),
            ..packet([0; 4], 80)
        };
        assert!(made.0.pass(Hook::Forward, false, &v6).passes(), "the other table is of IPv4");
    }

    #[test]
    fn what_is_not_known_is_said_and_does_not_match() {
        let table = Table::inet("t");
        let chain = Chain::base(&table, "input", Hook::Input, Priority::FILTER);
        let mut made = Made::default();
        made.chain(&chain, false);
        made.rule(Rule::new(&chain).is(Selector::CtZone, Value::bytes(&[0, 1])).drop());
        made.rule(Rule::new(&chain).drop());
        if let Some(rule) = made.0.rules.last_mut() {
            rule.expressions = Err("match".into());
        }
        let passage = made.0.pass(Hook::Input, false, &packet([10, 0, 0, 1], 80));
        assert!(passage.passes());
        assert_eq!(passage.doubts.len(), 2, "{:?}", passage.doubts);
        assert!(passage.doubts[1].contains("match"), "{:?}", passage.doubts);
    }

    #[test]
    fn ranges_hold_what_lies_between() {
        let table = Table::inet("t");
        let chain = Chain::base(&table, "input", Hook::Input, Priority::FILTER);
        let ports = Set::new(&table, "ports", [Type::Port]);
        let mut made = Made::default();
        made.chain(&chain, false);
        made.rule(Rule::new(&chain).load([Selector::DestinationPort]).in_set(&ports).drop());
        made.set(&ports, &[(Value::port(80), None), (Value::port(90), None)]);
        if let Some((state, elements)) = made.0.sets.last_mut() {
            state.ranges = true;
            elements[1].end = true;
        }
        for (port, passes) in [(79, true), (80, false), (89, false), (90, true)] {
            let passage = made.0.pass(Hook::Input, false, &packet([10, 0, 0, 1], port));
            assert_eq!(passage.passes(), passes, "{port}");
        }
    }
}
