//! One packet, rule by rule: registers, comparisons, lookups, verdicts.

use std::net::IpAddr;

use super::super::expression::{Comparison, Expression, FIRST, Header, REGISTERS};
use super::super::words::{self, address};
use super::super::{ChainState, CtState, Datum, ElementState, Verdict};
use super::{Decision, Effect, Known, Packet, Passage, Port, Ruleset};

/// `NFT_JUMP_STACK_SIZE`: how deep the kernel lets jumps go.
const DEPTH: usize = 16;

const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// `NFT_FIB_RESULT_ADDRTYPE`.
const FIB_TYPE: u32 = 3;

/// `NFTA_FIB_F_DADDR` alone: the destination, as every link of this machine has it.
const FIB_DESTINATION: u32 = 1 << 1;

/// What a chain or a rule came to: the packet needs no other rule of this base chain.
pub(super) type Ended = Option<()>;

/// The registers: bytes that are known.
type Registers = [Option<u8>; 4 * REGISTERS as usize];

/// A packet on its way through the chains of a hook.
pub(super) struct Run<'a> {
    ruleset: &'a Ruleset,
    pub(super) passage: Passage,
}

/// What a rule says of a packet.
enum Said {
    /// The next rule is next.
    Next,
    Verdict(Verdict),
    Done,
}

impl<'a> Run<'a> {
    /// One that has not begun.
    pub(super) fn new(ruleset: &'a Ruleset, packet: &Packet) -> Self {
        let passage = Passage {
            packet: packet.clone(),
            decisions: Vec::new(),
            turns: None,
            doubts: Vec::new(),
        };
        Self { ruleset, passage }
    }

    /// The rules of a chain, and of those that it leads to; `path` are the chains before.
    pub(super) fn chain(&mut self, chain: &'a ChainState, path: &mut Vec<String>) -> Ended {
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
                Expression::SetCt { key: 3, from } => {
                    let mark = read(&registers, *from, 4).and_then(|mark| mark.try_into().ok());
                    self.passage.packet.mark = mark.map_or(0, u32::from_ne_bytes);
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
                    3 => number(packet.mark),
                    _ => None,
                };
                (*to, value)
            }
            Expression::Payload { header, offset, len, to } => {
                (*to, self.payload(*header, *offset, *len))
            }
            Expression::Fib { result, flags, to } => {
                let known = (*result, *flags) == (FIB_TYPE, FIB_DESTINATION);
                (*to, number(address_type(packet)).filter(|_| known))
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
                let kind: [u8; 2] =
                    if packet.destination.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
                [destination.0.as_slice(), source.0.as_slice(), &kind].concat()
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

/// What an address is to this machine: `RTN_UNICAST`, `RTN_LOCAL`, `RTN_BROADCAST` or
/// `RTN_MULTICAST`.
fn address_type(packet: &Packet) -> u32 {
    match packet.destination {
        _ if packet.local => 2,
        IpAddr::V4(v4) if v4.is_broadcast() => 3,
        to if to.is_multicast() => 5,
        _ => 1,
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
