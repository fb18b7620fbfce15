//! Rules in the words of nft(8).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netyard_wire::MacAddr;

use super::Verdict;
use super::expression::{Comparison, Expression, FIRST, Header, REGISTERS};

/// How bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ip4,
    Ip6,
    Mac,
    Name,
    Protocol,
    NetworkProtocol,
    EtherType,
    /// Network order.
    Number,
    /// The host's order.
    HostNumber,
    CtState,
    AddressType,
    TcpFlags,
    Raw,
}

#[derive(Debug, Clone)]
struct Loaded {
    text: String,
    kind: Kind,
    mask: Option<Vec<u8>>,
}

/// A rule as one line, like `ip saddr 10.0.0.0/8 oifname != "br0" masquerade`.
pub(super) fn rule(expressions: &[Expression]) -> String {
    let mut words = Words::default();
    expressions.iter().for_each(|expression| words.say(expression));
    words.text.join(" ")
}

#[derive(Default)]
struct Words {
    text: Vec<String>,
    registers: BTreeMap<u32, Loaded>,
}

impl Words {
    fn load(&mut self, to: u32, text: impl Into<String>, kind: Kind) {
        self.registers.insert(to, Loaded { text: text.into(), kind, mask: None });
    }

    fn push(&mut self, text: impl Into<String>) {
        self.text.push(text.into());
    }

    fn said(&self, register: u32) -> String {
        self.registers.get(&register).map_or_else(|| "?".to_owned(), |it| it.text.clone())
    }

    /// What lies side by side from a register on, without the one that the network protocol is
    /// checked in.
    fn key(&mut self, from: u32) -> String {
        const CHECKED: u32 = FIRST + REGISTERS - 1;
        let parts: Vec<_> = self.registers.range(from..CHECKED).map(|(_, it)| &*it.text).collect();
        let key = parts.join(" . ");
        self.registers.clear();
        key
    }

    fn say(&mut self, expression: &Expression) {
        match expression {
            Expression::Meta { key, to } => {
                let (text, kind) = meta(*key);
                self.load(*to, text, kind);
            }
            Expression::Ct { key, to, .. } => {
                let (text, kind) = ct(*key);
                self.load(*to, text, kind);
            }
            Expression::Payload { header, offset, len, to } => {
                let (text, kind) = payload(*header, *offset, *len);
                self.load(*to, text, kind);
            }
            Expression::Fib { result, flags, to } => {
                let (what, kind) = match result {
                    1 => ("oif", Kind::HostNumber),
                    2 => ("oifname", Kind::Name),
                    _ => ("type", Kind::AddressType),
                };
                self.load(*to, format!("fib {} {what}", fib_key(*flags)), kind);
            }
            Expression::Turn { modulus, offset, random, to } => {
                let how = if *random { "random" } else { "inc" };
                let offset = if *offset == 0 { String::new() } else { format!(" offset {offset}") };
                let text = format!("numgen {how} mod {modulus}{offset}");
                self.load(*to, text, Kind::HostNumber);
            }
            Expression::RouteMss { to } => self.load(*to, "rt mtu", Kind::HostNumber),
            Expression::Immediate { value, to } => {
                let kind = match value.len() {
                    4 => Kind::Ip4,
                    16 => Kind::Ip6,
                    _ => Kind::Number,
                };
                self.load(*to, show(kind, value), kind);
            }
            Expression::Mask { register, mask } => {
                if let Some(loaded) = self.registers.get_mut(register) {
                    loaded.mask = Some(mask.clone());
                }
            }
            Expression::Compare { how, register, value } => self.compare(*how, *register, value),
            Expression::Lookup { set, from, invert, to } => {
                let key = self.key(*from);
                let not = if *invert { "!= " } else { "" };
                match to {
                    None => self.push(format!("{key} {not}@{set}")),
                    Some(0) => self.push(format!("{key} vmap @{set}")),
                    Some(to) => self.load(*to, format!("{key} map @{set}"), Kind::Raw),
                }
            }
            action => self.act(action),
        }
    }

    fn act(&mut self, action: &Expression) {
        let text = match action {
            Expression::Verdict(verdict) => match verdict {
                Verdict::Accept => "accept".into(),
                Verdict::Drop => "drop".into(),
                Verdict::Jump(chain) => format!("jump {chain}"),
                Verdict::Goto(chain) => format!("goto {chain}"),
                Verdict::Return => "return".into(),
                Verdict::Continue => "continue".into(),
            },
            Expression::Nat { source, address, port, .. } => {
                let verb = if *source { "snat" } else { "dnat" };
                let mut to = address.map(|at| self.said(at)).unwrap_or_default();
                // A map that leads to both says so with the address.
                if let Some(text) = port.and_then(|at| self.registers.get(&at)) {
                    let _ = write!(to, ":{}", text.text);
                }
                format!("{verb} to {to}")
            }
            Expression::Masquerade { .. } => "masquerade".into(),
            Expression::Redirect { port } => match port.map(|at| self.said(at)) {
                Some(port) => format!("redirect to :{port}"),
                None => "redirect".into(),
            },
            Expression::Reject { kind: 1, .. } => "reject with tcp reset".into(),
            Expression::Reject { code, .. } => match code {
                0 => "reject with icmpx no-route".into(),
                1 => "reject with icmpx port-unreachable".into(),
                2 => "reject with icmpx host-unreachable".into(),
                _ => "reject with icmpx admin-prohibited".into(),
            },
            Expression::Counter => "counter".into(),
            Expression::NoTrack => "notrack".into(),
            Expression::Log { prefix } => format!("log prefix {prefix:?}"),
            Expression::Limit { rate, per_seconds, over, .. } => {
                let over = if *over { "over " } else { "" };
                format!("limit rate {over}{rate} per {per_seconds}s")
            }
            Expression::SetMeta { key, from } => {
                format!("{} set {}", meta(*key).0, self.said(*from))
            }
            Expression::SetCt { key, from } => {
                format!("{} set {}", ct(*key).0, self.mark(*from))
            }
            Expression::SetTcpOption { from, .. } => {
                format!("tcp option maxseg size set {}", self.said(*from))
            }
            Expression::Update { set, key, data, .. } => {
                let value = data.map(|at| self.registers.split_off(&at));
                let value = value.and_then(|mut at| at.pop_first());
                let key = self.key(*key);
                let value = value.map(|(_, it)| format!(" : {}", it.text)).unwrap_or_default();
                format!("update @{set} {{ {key}{value} }}")
            }
            Expression::Forget { set, key, data } => {
                data.map(|at| self.registers.split_off(&at));
                let key = self.key(*key);
                format!("delete @{set} {{ {key} }}")
            }
            _ => return,
        };
        self.push(text);
    }

    /// A mark that was written as it is: a number, not an address.
    fn mark(&self, register: u32) -> String {
        let said = self.said(register);
        let bits = said.parse::<Ipv4Addr>().map(|address| u32::from_ne_bytes(address.octets()));
        bits.map_or(said, |bits| format!("{bits:#x}"))
    }

    fn compare(&mut self, how: Comparison, register: u32, value: &[u8]) {
        let Some(Loaded { text, kind, mask }) = self.registers.get(&register).cloned() else {
            return;
        };
        // Implied by what comes next.
        if register != FIRST && matches!(kind, Kind::NetworkProtocol | Kind::EtherType) {
            self.registers.remove(&register);
            return;
        }
        let zero = value.iter().all(|byte| *byte == 0);
        let sign = match how {
            Comparison::Equal => "",
            Comparison::Unequal => "!= ",
            Comparison::AtMost => "<= ",
            Comparison::AtLeast => ">= ",
        };
        let said = match (&mask, kind) {
            (Some(mask), Kind::Ip4 | Kind::Ip6) => {
                let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
                format!("{text} {sign}{}/{ones}", show(kind, value))
            }
            // Any of these bits.
            (Some(mask), _) if zero && how == Comparison::Unequal => {
                format!("{text} {}", show(kind, mask))
            }
            (Some(mask), _) => {
                format!("{text} & {} == {}", show(kind, mask), show(kind, value))
            }
            (None, _) => format!("{text} {sign}{}", show(kind, value)),
        };
        self.push(said);
        // Ranges compare twice.
        if how == Comparison::Equal {
            self.registers.remove(&register);
        }
    }
}

fn meta(key: u32) -> (&'static str, Kind) {
    match key {
        1 => ("meta protocol", Kind::EtherType),
        3 => ("meta mark", Kind::HostNumber),
        4 => ("iif", Kind::HostNumber),
        5 => ("oif", Kind::HostNumber),
        6 => ("iifname", Kind::Name),
        7 => ("oifname", Kind::Name),
        15 => ("meta nfproto", Kind::NetworkProtocol),
        16 => ("meta l4proto", Kind::Protocol),
        17 => ("ibrname", Kind::Name),
        18 => ("obrname", Kind::Name),
        19 => ("pkttype", Kind::Number),
        _ => ("meta ?", Kind::Raw),
    }
}

fn ct(key: u32) -> (&'static str, Kind) {
    match key {
        0 => ("ct state", Kind::CtState),
        1 => ("ct direction", Kind::Number),
        2 => ("ct status", Kind::CtState),
        3 => ("ct mark", Kind::HostNumber),
        12 => ("ct original proto-dst", Kind::Number),
        17 => ("ct zone", Kind::HostNumber),
        20 => ("ct original ip daddr", Kind::Ip4),
        22 => ("ct original ip6 daddr", Kind::Ip6),
        _ => ("ct ?", Kind::Raw),
    }
}

/// What is looked up in the routes: the `NFTA_FIB_F_` flags.
fn fib_key(flags: u32) -> String {
    let parts = ["saddr", "daddr", "mark", "iif", "oif"].into_iter().enumerate();
    let parts = parts.filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, part)| part);
    parts.collect::<Vec<_>>().join(" . ")
}

fn payload(header: Header, offset: u32, len: u32) -> (String, Kind) {
    let (text, kind) = match (header, offset, len) {
        (Header::Link, 0, 6) => ("ether daddr", Kind::Mac),
        (Header::Link, 6, 6) => ("ether saddr", Kind::Mac),
        (Header::Network, 12, 4) => ("ip saddr", Kind::Ip4),
        (Header::Network, 16, 4) => ("ip daddr", Kind::Ip4),
        (Header::Network, 8, 16) => ("ip6 saddr", Kind::Ip6),
        (Header::Network, 24, 16) => ("ip6 daddr", Kind::Ip6),
        (Header::Network, 8, 6) => ("arp saddr ether", Kind::Mac),
        (Header::Network, 14, 4) => ("arp saddr ip", Kind::Ip4),
        (Header::Network, 24, 4) => ("arp daddr ip", Kind::Ip4),
        (Header::Network, 6, 2) => ("arp operation", Kind::Number),
        (Header::Network, 9, 1) => ("ip protocol", Kind::Protocol),
        (Header::Transport, 0, 1) => ("icmp type", Kind::Number),
        (Header::Transport, 0, 2) => ("th sport", Kind::Number),
        (Header::Transport, 2, 2) => ("th dport", Kind::Number),
        (Header::Transport, 8, 16) => ("icmpv6 taddr", Kind::Ip6),
        (Header::Transport, 13, 1) => ("tcp flags", Kind::TcpFlags),
        _ => {
            let base = match header {
                Header::Link => "ll",
                Header::Network => "nh",
                Header::Transport => "th",
            };
            return (format!("@{base},{},{}", offset * 8, len * 8), Kind::Raw);
        }
    };
    (text.to_owned(), kind)
}

/// Bytes in words.
fn show(kind: Kind, bytes: &[u8]) -> String {
    let raw = || {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("0x{hex}")
    };
    let padded = || {
        let mut word = [0; 8];
        let at = word.len().saturating_sub(bytes.len());
        word.get_mut(at..).filter(|room| room.len() == bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_be_bytes(word))
    };
    let host = || bytes.try_into().ok().map(u32::from_ne_bytes);
    let said = match kind {
        Kind::Ip4 | Kind::Ip6 => address(bytes).map(|address| address.to_string()),
        Kind::Mac => <[u8; 6]>::try_from(bytes).ok().map(|mac| MacAddr(mac).to_string()),
        Kind::Name => {
            let open: Vec<u8> = bytes.iter().copied().take_while(|byte| *byte != 0).collect();
            let wild = if bytes.contains(&0) { "" } else { "*" };
            Some(format!("\"{}{wild}\"", String::from_utf8_lossy(&open)))
        }
        Kind::Protocol => Some(match bytes {
            [1] => "icmp".into(),
            [6] => "tcp".into(),
            [17] => "udp".into(),
            [58] => "ipv6-icmp".into(),
            _ => raw(),
        }),
        Kind::NetworkProtocol => Some(match bytes {
            [2] => "ipv4".into(),
            [10] => "ipv6".into(),
            _ => raw(),
        }),
        Kind::EtherType => Some(match bytes {
            [8, 0] => "ip".into(),
            [8, 6] => "arp".into(),
            [0x86, 0xdd] => "ip6".into(),
            _ => raw(),
        }),
        Kind::Number => padded().map(|number| number.to_string()),
        Kind::HostNumber => host().map(|number| format!("{number:#x}")),
        Kind::AddressType => host().map(|number| match number {
            2 => "local".to_owned(),
            number => number.to_string(),
        }),
        Kind::CtState => host().map(|bits| {
            let names = [
                (1, "invalid"),
                (2, "established"),
                (4, "related"),
                (8, "new"),
                (32, "dnat"),
                (64, "untracked"),
            ];
            let set = names.into_iter().filter(|(bit, _)| bits & bit != 0);
            set.map(|(_, name)| name).collect::<Vec<_>>().join(",")
        }),
        Kind::TcpFlags => Some(match bytes {
            [flags] => {
                let names = [(1, "fin"), (2, "syn"), (4, "rst"), (8, "psh"), (16, "ack")];
                let set = names.into_iter().filter(|(bit, _)| flags & bit != 0);
                set.map(|(_, name)| name).collect::<Vec<_>>().join("|")
            }
            _ => raw(),
        }),
        Kind::Raw => None,
    };
    said.unwrap_or_else(raw)
}

/// An address of whichever family has this length.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::super::{
        Chain, CtState, Hook, LOCAL, Priority, Reject, Rule, Selector, Set, Table, Target, Type,
        Value,
    };
    use super::*;

    #[test]
    fn rules_read_as_nft_shows_them() {
        let table = Table::inet("t");
        let chain = Chain::base(&table, "c", Hook::Forward, Priority::FILTER);
        let rule = || Rule::new(&chain);
        let key = [Type::Ipv4, Type::Protocol, Type::Port];
        let forwards = Set::map(&table, "forwards4", key, [Type::Ipv4, Type::Port]);
        let services = Set::verdict_map(&table, "services4", key);
        let with = [Selector::Ip4Destination, Selector::L4Protocol, Selector::DestinationPort];
        let link: crate::rtnetlink::LinkName = "br1".parse().unwrap();
        let known = CtState::ESTABLISHED | CtState::RELATED;
        for (rule, text) in [
            (
                rule().load(with).map(&forwards).dnat_loaded(),
                "dnat to ip daddr . meta l4proto . th dport map @forwards4",
            ),
            (
                rule().load(with).vmap(&services),
                "ip daddr . meta l4proto . th dport vmap @services4",
            ),
            (rule().ct_state(known).accept(), "ct state established,related accept"),
            (rule().destination_translated().accept(), "ct status dnat accept"),
            (
                rule()
                    .is_not(Selector::OutputName, &link)
                    .within(Selector::Ip4Source, "10.0.0.0/8".parse().unwrap())
                    .masquerade(),
                "oifname != \"br1\" ip saddr 10.0.0.0/8 masquerade",
            ),
            (
                rule()
                    .is(Selector::FibDestinationType, LOCAL)
                    .is(Selector::L4Protocol, Value::byte(17))
                    .between(Selector::DestinationPort, Value::port(1), Value::port(9))
                    .reject(Reject::PortUnreachable),
                "fib daddr type local meta l4proto udp th dport >= 1 th dport <= 9 reject with \
                 icmpx port-unreachable",
            ),
            (
                rule().is(Selector::FibSourceLink, Value::number(0)).drop(),
                "fib saddr . iif oif 0x0 drop",
            ),
            (
                rule().clamp_mss_to_route(),
                "meta l4proto tcp tcp flags & syn|rst == syn tcp option maxseg size set rt mtu",
            ),
            (
                rule().set(Target::CtMark, Value::number(0x1_0002)).snat([10, 0, 0, 1].into()),
                "ct mark set 0x10002 snat to 10.0.0.1",
            ),
        ] {
            assert_eq!(self::rule(&rule.expressions), text);
        }
    }
}
