//! Rules, built from left to right.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::expression::{Comparison, Expression, FIRST, Header, REGISTERS};
use super::set::{Data, milliseconds, user_data, width};
use super::{Chain, CtState, Family, Selector, Set, Target, Type, Value, Verdict};
use crate::attribute::Message;
use crate::error::{Error, Result};

const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// `NFPROTO_IPV4`.
const IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
const IPV6: u8 = 10;

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reject {
    /// With a TCP reset; TCP only.
    TcpReset,
    /// With "port unreachable", ICMP or ICMPv6.
    PortUnreachable,
    /// With "administratively prohibited", ICMP or ICMPv6.
    Prohibited,
    /// With "host unreachable", ICMP or ICMPv6.
    HostUnreachable,
}

/// A rate of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// How many packets.
    pub packets: u64,
    /// In which time; whole seconds, at least one.
    pub per: Duration,
    /// How many at once beyond that.
    pub burst: u32,
}

/// A rule of a chain.
///
/// The methods add what is done with a packet, in that order; a comparison that fails ends the rule
/// for it. [`Rule::load`] puts fields of the packet side by side, and what follows works on what is
/// loaded: compares it, looks it up, translates with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub(super) chain: Chain,
    pub(super) expressions: Vec<Expression>,
    loaded: Vec<Type>,
    /// The network protocol that packets surely have by now.
    network: Option<u8>,
    /// The transport protocol that they surely have.
    transport: Option<u8>,
    pub(super) comment: Option<String>,
    fault: Option<String>,
}

impl Rule {
    /// A rule that does nothing yet.
    #[must_use]
    pub fn new(chain: &Chain) -> Self {
        Self {
            chain: chain.clone(),
            expressions: Vec::new(),
            loaded: Vec::new(),
            network: None,
            transport: None,
            comment: None,
            fault: None,
        }
    }

    /// A text beside it, up to 127 bytes.
    #[must_use]
    pub fn comment(mut self, text: &str) -> Self {
        self.comment = Some(text.to_owned());
        self
    }

    /// Loads fields, side by side. Packets that do not have them leave the rule.
    #[must_use]
    pub fn load(mut self, fields: impl IntoIterator<Item = Selector>) -> Self {
        let fields: Vec<Selector> = fields.into_iter().collect();
        for field in &fields {
            self = self.require(*field);
        }
        let mut at = FIRST;
        for field in &fields {
            self.expressions.push(load(*field, at));
            at += words(field.kind().room());
        }
        if at > FIRST + REGISTERS {
            self.fault = Some("more is loaded than fits into 64 bytes".into());
        }
        self.loaded = fields.into_iter().map(Selector::kind).collect();
        self
    }

    /// Goes on if what is loaded has this value.
    #[must_use]
    pub fn equals(self, value: impl Into<Value>) -> Self {
        self.compare(Comparison::Equal, value.into())
    }

    /// Goes on if what is loaded has another value.
    #[must_use]
    pub fn differs(self, value: impl Into<Value>) -> Self {
        self.compare(Comparison::Unequal, value.into())
    }

    /// Goes on if a field has this value.
    #[must_use]
    pub fn is(self, field: Selector, value: impl Into<Value>) -> Self {
        let value = value.into();
        let mut rule = self.load([field]);
        if let (Selector::L4Protocol, [protocol]) = (field, value.0.as_slice()) {
            rule.transport = Some(*protocol);
        }
        rule.equals(value)
    }

    /// Goes on if a field has another value.
    #[must_use]
    pub fn is_not(self, field: Selector, value: impl Into<Value>) -> Self {
        self.load([field]).differs(value)
    }

    /// Goes on if a field in network order lies between two values, both included.
    #[must_use]
    pub fn between(self, field: Selector, first: impl Into<Value>, last: impl Into<Value>) -> Self {
        self.load([field])
            .compare(Comparison::AtLeast, first.into())
            .compare(Comparison::AtMost, last.into())
    }

    /// Goes on if an address lies in a network.
    #[must_use]
    pub fn within(self, field: Selector, net: IpNet) -> Self {
        self.prefix(field, net, Comparison::Equal)
    }

    /// Goes on if an address lies outside of a network.
    #[must_use]
    pub fn outside(self, field: Selector, net: IpNet) -> Self {
        self.prefix(field, net, Comparison::Unequal)
    }

    /// Goes on if, of the bits of `mask`, exactly those of `value` are set.
    #[must_use]
    pub fn bits(self, field: Selector, mask: impl Into<Value>, value: impl Into<Value>) -> Self {
        self.load([field]).mask(mask).equals(value)
    }

    /// Keeps of what is loaded only the bits of `mask`.
    #[must_use]
    pub fn mask(self, mask: impl Into<Value>) -> Self {
        let mask = mask.into().0;
        if mask.len() != width(&self.loaded) {
            let fault = format!("{:?} masked with {} bytes", self.loaded, mask.len());
            return self.fail(fault);
        }
        self.push(Expression::Mask { register: FIRST, mask })
    }

    /// Goes on if the connection is in one of these states.
    #[must_use]
    pub fn ct_state(self, states: CtState) -> Self {
        self.any_bit(Selector::CtState, states.0)
    }

    /// Goes on if the destination of the connection has been translated (`IPS_DST_NAT`).
    #[must_use]
    pub fn destination_translated(self) -> Self {
        const IPS_DST_NAT: u32 = 1 << 5;
        self.any_bit(Selector::CtStatus, IPS_DST_NAT)
    }

    /// Goes on if what is loaded is in a set.
    #[must_use]
    pub fn in_set(self, set: &Set) -> Self {
        self.lookup(set, false, None)
    }

    /// Goes on if what is loaded is not in a set.
    #[must_use]
    pub fn not_in_set(self, set: &Set) -> Self {
        self.lookup(set, true, None)
    }

    /// Looks up what is loaded in a map, and has what it leads to loaded instead. Packets that are
    /// not in it leave the rule.
    #[must_use]
    pub fn map(mut self, map: &Set) -> Self {
        match &map.data {
            Some(Data::Values(types)) => {
                let types = types.clone();
                self = self.lookup(map, false, Some(FIRST));
                self.loaded = types;
                self
            }
            _ => self.fail(format!("{} is no map to values", map.name)),
        }
    }

    /// Looks up what is loaded in a map of verdicts and does what it says.
    #[must_use]
    pub fn vmap(self, map: &Set) -> Self {
        /// `NFT_REG_VERDICT`.
        const VERDICT: u32 = 0;
        match &map.data {
            Some(Data::Verdict) => self.lookup(map, false, Some(VERDICT)),
            _ => self.fail(format!("{} is no map to verdicts", map.name)),
        }
    }

    /// Adds what is loaded to a dynamic set, or starts its time again. Packets that find the set full
    /// leave the rule.
    #[must_use]
    pub fn update(mut self, set: &Set, timeout: Option<Duration>) -> Self {
        self = self.expect_key(set);
        let (set, timeout_ms) = (set.name.clone(), timeout.map(milliseconds));
        self.push(Expression::Update { set, key: FIRST, data: None, timeout_ms })
    }

    /// Adds to a dynamic map that what is loaded leads to `value`, or starts its time again: what is
    /// there keeps what it leads to. Packets that find the map full leave the rule.
    #[must_use]
    pub fn update_map(
        mut self,
        map: &Set,
        value: impl Into<Value>,
        timeout: Option<Duration>,
    ) -> Self {
        self = self.expect_key(map);
        let at = FIRST + words(width(&self.loaded));
        let (set, timeout_ms) = (map.name.clone(), timeout.map(milliseconds));
        self.push(Expression::Immediate { value: value.into().0, to: at })
            .push(Expression::Update { set, key: FIRST, data: Some(at), timeout_ms })
    }

    /// Removes what is loaded from a dynamic set or map, if it is there (Linux 5.4).
    #[must_use]
    pub fn forget(mut self, set: &Set) -> Self {
        self = self.expect_key(set);
        let (set_name, mut data) = (set.name.clone(), None);
        if let Some(Data::Values(types)) = &set.data {
            // The kernel wants to hear a value, and does not look at it.
            let at = FIRST + words(width(&self.loaded));
            let value = vec![0; width(types)];
            self = self.push(Expression::Immediate { value, to: at });
            data = Some(at);
        }
        self.push(Expression::Forget { set: set_name, key: FIRST, data })
    }

    /// Sets something to a value.
    #[must_use]
    pub fn set(self, target: Target, value: impl Into<Value>) -> Self {
        self.push(Expression::Immediate { value: value.into().0, to: FIRST }).store_from(target)
    }

    /// Sets something to what is loaded.
    #[must_use]
    pub fn store(self, target: Target) -> Self {
        if self.loaded.len() != 1 {
            let fault = format!("{target:?} takes one value, not {:?}", self.loaded);
            return self.fail(fault);
        }
        self.store_from(target)
    }

    /// Changes the destination of the connection.
    #[must_use]
    pub fn dnat(self, address: IpAddr, port: Option<u16>) -> Self {
        self.nat_to(false, address, port, 0)
    }

    /// Changes the destination of the connection to what is loaded: an address, and a port if there
    /// is one.
    #[must_use]
    pub fn dnat_loaded(self) -> Self {
        let (family, port) = match self.loaded.as_slice() {
            [Type::Ipv4] => (IPV4, None),
            [Type::Ipv4, Type::Port] => (IPV4, Some(FIRST + 1)),
            [Type::Ipv6] => (IPV6, None),
            [Type::Ipv6, Type::Port] => (IPV6, Some(FIRST + 4)),
            other => {
                let fault = format!("a destination is an address and a port, not {other:?}");
                return self.fail(fault);
            }
        };
        let address = Some(FIRST);
        self.network(family).push(Expression::Nat {
            source: false,
            family,
            address,
            port,
            flags: 0,
        })
    }

    /// Changes the source of the connection.
    #[must_use]
    pub fn snat(self, address: IpAddr) -> Self {
        self.nat_to(true, address, None, 0)
    }

    /// Changes the source of the connection to the address of the link it leaves by. Ports are taken
    /// by chance, so that two connections cannot want the same one.
    #[must_use]
    pub fn masquerade(self) -> Self {
        /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
        const FULLY_RANDOM: u32 = 1 << 4;
        self.push(Expression::Masquerade { flags: FULLY_RANDOM })
    }

    /// Changes the destination to this machine, and to this port if it is given.
    #[must_use]
    pub fn redirect(mut self, port: Option<u16>) -> Self {
        if let Some(port) = port {
            self = self.push(Expression::Immediate { value: Value::port(port).0, to: FIRST });
        }
        self.push(Expression::Redirect { port: port.map(|_| FIRST) })
    }

    /// Keeps the packet out of connection tracking; at [`super::Priority::RAW`] only.
    #[must_use]
    pub fn notrack(self) -> Self {
        self.push(Expression::NoTrack)
    }

    /// Lowers the segment size that opening TCP segments offer to what fits the route.
    #[must_use]
    pub fn clamp_mss_to_route(self) -> Self {
        self.opening_segment()
            .push(Expression::RouteMss { to: FIRST })
            .push(Expression::ToNetworkOrder { register: FIRST, len: 2 })
            .push(MSS)
    }

    /// Lowers the segment size that opening TCP segments offer to this many bytes.
    #[must_use]
    pub fn clamp_mss(self, bytes: u16) -> Self {
        self.opening_segment()
            .push(Expression::Immediate { value: Value::port(bytes).0, to: FIRST })
            .push(MSS)
    }

    /// Counts packets and bytes.
    #[must_use]
    pub fn counter(self) -> Self {
        self.push(Expression::Counter)
    }

    /// Goes on while the rate is kept.
    #[must_use]
    pub fn limit(self, limit: Limit) -> Self {
        self.rate(limit, false)
    }

    /// Goes on when the rate is exceeded.
    #[must_use]
    pub fn over_limit(self, limit: Limit) -> Self {
        self.rate(limit, true)
    }

    /// Writes a line to the kernel's log, beginning with this text.
    #[must_use]
    pub fn log(self, prefix: &str) -> Self {
        self.push(Expression::Log { prefix: prefix.to_owned() })
    }

    /// Refuses the packet and says so to its sender.
    #[must_use]
    pub fn reject(self, how: Reject) -> Self {
        /// `NFT_REJECT_TCP_RST` and `NFT_REJECT_ICMPX_UNREACH`.
        const RESET: u32 = 1;
        const ICMPX: u32 = 2;
        let (kind, code) = match how {
            Reject::TcpReset => (RESET, 0),
            Reject::PortUnreachable => (ICMPX, 1),
            Reject::HostUnreachable => (ICMPX, 2),
            Reject::Prohibited => (ICMPX, 3),
        };
        let rule = if how == Reject::TcpReset { self.transport(TCP) } else { self };
        rule.push(Expression::Reject { kind, code })
    }

    /// Decides.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.push(Expression::Verdict(verdict))
    }

    /// The packet goes on.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    /// The packet goes no further.
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    /// The rules of another chain are next, then those after this one.
    #[must_use]
    pub fn jump(self, chain: &Chain) -> Self {
        let name = chain.name.clone();
        self.verdict(Verdict::Jump(name))
    }

    /// The rules of another chain are next.
    #[must_use]
    pub fn goto(self, chain: &Chain) -> Self {
        let name = chain.name.clone();
        self.verdict(Verdict::Goto(name))
    }

    /// Whether it makes sense; [`super::Batch`] asks this too.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the first thing that does not fit what is loaded.
    pub fn check(&self) -> Result<()> {
        match &self.fault {
            Some(fault) => Err(Error::Invalid(format!(
                "a rule of the chain {} is wrong: {fault}",
                self.chain.name
            ))),
            None => Ok(()),
        }
    }

    /// The attributes of `NFT_MSG_NEWRULE` beside its place.
    pub(super) fn put(&self, message: &mut Message) -> Result<()> {
        self.check()?;
        message.nest(NFTA_RULE_EXPRESSIONS, |list| {
            for expression in &self.expressions {
                expression.put(list);
            }
        });
        if let Some(comment) = &self.comment {
            message.put(NFTA_RULE_USERDATA, &user_data(0, comment));
        }
        Ok(())
    }

    fn push(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    /// The first fault stays.
    fn fail(mut self, fault: String) -> Self {
        self.fault.get_or_insert(fault);
        self
    }

    /// Makes sure that packets have the headers that a field is in.
    fn require(self, field: Selector) -> Self {
        match field {
            Selector::Ip4Source | Selector::Ip4Destination => self.network(IPV4),
            Selector::CtOriginalDestination4 => self.network(IPV4),
            Selector::Ip6Source | Selector::Ip6Destination => self.network(IPV6),
            Selector::CtOriginalDestination6 => self.network(IPV6),
            Selector::TcpFlags => self.transport(TCP),
            Selector::IcmpType => self.network(IPV4).transport(ICMP),
            Selector::Icmp6Type | Selector::NeighborTarget => self.network(IPV6).transport(ICMPV6),
            Selector::ArpOperation
            | Selector::ArpSenderMac
            | Selector::ArpSenderIp
            | Selector::ArpTargetIp => self.arp(),
            _ => self,
        }
    }

    /// Goes on if packets have this network protocol, unless that is sure.
    fn network(mut self, protocol: u8) -> Self {
        if self.network == Some(protocol) {
            return self;
        }
        let loaded = std::mem::take(&mut self.loaded);
        self.network = Some(protocol);
        let ethertype = if protocol == IPV4 { 0x0800 } else { 0x86dd };
        // Into the last register: the others may be in use.
        let at = FIRST + REGISTERS - 1;
        let checks = match self.chain.table.family {
            Family::Inet => Some((META_NFPROTO, vec![protocol])),
            Family::Bridge | Family::Netdev => Some((META_PROTOCOL, Value::word(ethertype).0)),
            Family::Ip | Family::Ip6 | Family::Arp => None,
        };
        if let Some((key, value)) = checks {
            let how = Comparison::Equal;
            self = self.push(Expression::Meta { key, to: at }).push(Expression::Compare {
                how,
                register: at,
                value,
            });
        }
        self.loaded = loaded;
        self
    }

    fn arp(self) -> Self {
        const ARP: u16 = 0x0806;
        match self.chain.table.family {
            Family::Bridge | Family::Netdev if self.network != Some(Family::Arp.number()) => {
                let mut rule = self.is(Selector::FrameProtocol, Value::word(ARP));
                rule.network = Some(Family::Arp.number());
                rule
            }
            _ => self,
        }
    }

    /// Goes on if packets have this transport protocol, unless that is sure.
    fn transport(mut self, protocol: u8) -> Self {
        if self.transport == Some(protocol) {
            return self;
        }
        self.transport = Some(protocol);
        self.is(Selector::L4Protocol, Value::byte(protocol))
    }

    fn compare(self, how: Comparison, value: Value) -> Self {
        let (len, width) = (value.0.len(), width(&self.loaded));
        // The beginning of a link's name is shorter.
        let fits = len == width || (self.loaded == [Type::LinkName] && len < width && len > 0);
        if !fits {
            let fault = format!("{:?} compared with {len} bytes", self.loaded);
            return self.fail(fault);
        }
        self.push(Expression::Compare { how, register: FIRST, value: value.0 })
    }

    fn any_bit(self, field: Selector, bits: u32) -> Self {
        self.load([field]).mask(Value::number(bits)).differs(Value::number(0))
    }

    fn prefix(self, field: Selector, net: IpNet, how: Comparison) -> Self {
        let rule = self.load([field]);
        let rule =
            if net.prefix_len() < net.max_prefix_len() { rule.mask(net.netmask()) } else { rule };
        rule.compare(how, net.network().into())
    }

    fn expect_key(self, set: &Set) -> Self {
        if self.loaded != set.key {
            let fault =
                format!("the set {} has keys {:?}, not {:?}", set.name, set.key, self.loaded);
            return self.fail(fault);
        }
        self
    }

    fn lookup(self, set: &Set, invert: bool, to: Option<u32>) -> Self {
        self.expect_key(set).push(Expression::Lookup {
            set: set.name.clone(),
            from: FIRST,
            invert,
            to,
        })
    }

    fn store_from(self, target: Target) -> Self {
        const META_MARK: u32 = 3;
        const META_PKTTYPE: u32 = 19;
        const CT_MARK: u32 = 3;
        const CT_ZONE: u32 = 17;
        self.push(match target {
            Target::Mark => Expression::SetMeta { key: META_MARK, from: FIRST },
            Target::PacketKind => Expression::SetMeta { key: META_PKTTYPE, from: FIRST },
            Target::CtMark => Expression::SetCt { key: CT_MARK, from: FIRST },
            Target::CtZone => Expression::SetCt { key: CT_ZONE, from: FIRST },
        })
    }

    fn nat_to(self, source: bool, address: IpAddr, port: Option<u16>, flags: u32) -> Self {
        let family = if address.is_ipv4() { IPV4 } else { IPV6 };
        let value = Value::from(address).0;
        let at = FIRST + words(value.len());
        let mut rule = self.network(family).push(Expression::Immediate { value, to: FIRST });
        if let Some(port) = port {
            rule = rule.push(Expression::Immediate { value: Value::port(port).0, to: at });
        }
        let (address, port) = (Some(FIRST), port.map(|_| at));
        rule.push(Expression::Nat { source, family, address, port, flags })
    }

    /// Goes on for TCP segments with SYN and without RST.
    fn opening_segment(self) -> Self {
        const SYN: u8 = 0x02;
        const RST: u8 = 0x04;
        self.bits(Selector::TcpFlags, Value::byte(SYN | RST), Value::byte(SYN))
    }

    fn rate(self, limit: Limit, over: bool) -> Self {
        self.push(Expression::Limit {
            rate: limit.packets,
            per_seconds: limit.per.as_secs().max(1),
            burst: limit.burst,
            over,
        })
    }
}

const META_PROTOCOL: u32 = 1;
const META_NFPROTO: u32 = 15;

/// Writes what is loaded into the TCP option "maximum segment size" (RFC 9293 section 3.7.1), which
/// the kernel never raises.
const MSS: Expression = Expression::SetTcpOption { kind: 2, offset: 2, len: 2, from: FIRST };

/// Registers of 4 bytes for so many bytes.
fn words(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX)
}

/// The instruction that loads a field; keys are those of linux/nf_tables.h.
fn load(field: Selector, to: u32) -> Expression {
    let meta = |key| Expression::Meta { key, to };
    let ct = |key, direction| Expression::Ct { key, direction, to };
    let at = |header, offset, len| Expression::Payload { header, offset, len, to };
    /// `IP_CT_DIR_ORIGINAL`.
    const ORIGINAL: Option<u8> = Some(0);
    match field {
        Selector::FrameProtocol => meta(META_PROTOCOL),
        Selector::Mark => meta(3),
        Selector::InputIndex => meta(4),
        Selector::OutputIndex => meta(5),
        Selector::InputName => meta(6),
        Selector::OutputName => meta(7),
        Selector::NetworkProtocol => meta(META_NFPROTO),
        Selector::L4Protocol => meta(16),
        Selector::InputBridge => meta(17),
        Selector::OutputBridge => meta(18),
        Selector::PacketKind => meta(19),
        Selector::EtherDestination => at(Header::Link, 0, 6),
        Selector::EtherSource => at(Header::Link, 6, 6),
        // RFC 791 section 3.1.
        Selector::Ip4Source => at(Header::Network, 12, 4),
        Selector::Ip4Destination => at(Header::Network, 16, 4),
        // RFC 8200 section 3.
        Selector::Ip6Source => at(Header::Network, 8, 16),
        Selector::Ip6Destination => at(Header::Network, 24, 16),
        Selector::SourcePort => at(Header::Transport, 0, 2),
        Selector::DestinationPort => at(Header::Transport, 2, 2),
        Selector::TcpFlags => at(Header::Transport, 13, 1),
        Selector::IcmpType | Selector::Icmp6Type => at(Header::Transport, 0, 1),
        // Behind type, code, checksum and flags.
        Selector::NeighborTarget => at(Header::Transport, 8, 16),
        // RFC 826, for Ethernet and IPv4.
        Selector::ArpOperation => at(Header::Network, 6, 2),
        Selector::ArpSenderMac => at(Header::Network, 8, 6),
        Selector::ArpSenderIp => at(Header::Network, 14, 4),
        Selector::ArpTargetIp => at(Header::Network, 24, 4),
        Selector::CtState => ct(0, None),
        Selector::CtDirection => ct(1, None),
        Selector::CtStatus => ct(2, None),
        Selector::CtMark => ct(3, None),
        Selector::CtOriginalPort => ct(12, ORIGINAL),
        Selector::CtZone => ct(17, None),
        Selector::CtOriginalDestination4 => ct(20, ORIGINAL),
        Selector::CtOriginalDestination6 => ct(22, ORIGINAL),
        // NFT_FIB_RESULT_ADDRTYPE of the destination.
        Selector::FibDestinationType => Expression::Fib { result: 3, flags: 1 << 1, to },
        // NFT_FIB_RESULT_OIF of the source, by the link it came in by.
        Selector::FibSourceLink => Expression::Fib { result: 1, flags: 1 | 1 << 3, to },
        Selector::Turn { modulus, offset } => {
            Expression::Turn { modulus, offset, random: false, to }
        }
        Selector::Chance { modulus } => Expression::Turn { modulus, offset: 0, random: true, to },
        Selector::Payload { base, offset, len } => {
            let header = match base {
                0 => Header::Link,
                1 => Header::Network,
                _ => Header::Transport,
            };
            at(header, offset.into(), len.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Hook, Priority, Table};
    use super::*;

    fn chain(family: Family) -> Chain {
        Chain::base(&Table::new(family, "t"), "c", Hook::Forward, Priority::FILTER)
    }

    #[test]
    fn packets_of_the_other_family_leave_first() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let inet = Rule::new(&chain(Family::Inet))
            .is(Selector::Ip4Source, address)
            .is(Selector::Ip4Destination, address);
        assert_eq!(inet.expressions.len(), 6, "once, then a load and a comparison each");
        let ip = Rule::new(&chain(Family::Ip)).is(Selector::Ip4Source, address);
        assert_eq!(ip.expressions.len(), 2);
        let bridge = Rule::new(&chain(Family::Bridge)).is(Selector::Ip4Source, address);
        let Some(Expression::Compare { value, .. }) = bridge.expressions.get(1) else { panic!() };
        assert_eq!(value, &[8, 0]);
    }

    #[test]
    fn what_does_not_fit_is_a_fault_not_a_rule() {
        let chain = chain(Family::Inet);
        let rule = || Rule::new(&chain);
        let set = Set::new(chain.table(), "s", [Type::Ipv4, Type::Port]);
        let map = Set::map(chain.table(), "m", [Type::Port], [Type::Mark]);
        let faults = [
            rule().is(Selector::DestinationPort, Value::byte(80)),
            rule().is(Selector::Ip4Source, IpAddr::from([0; 16])),
            rule().load([Selector::Ip4Source]).in_set(&set),
            rule().load([Selector::DestinationPort]).vmap(&map),
            rule().load([Selector::DestinationPort]).map(&map).dnat_loaded(),
            rule().load([Selector::Ip6Source; 5]),
            rule().within(Selector::Ip4Source, "2001:db8::/32".parse().unwrap()),
            rule().load([Selector::Mark, Selector::CtMark]).store(Target::Mark),
        ];
        for (number, rule) in faults.into_iter().enumerate() {
            assert!(rule.check().is_err(), "{number}");
        }
        let good = rule().load([Selector::Ip4Source, Selector::DestinationPort]).in_set(&set);
        assert!(good.check().is_ok());
    }

    #[test]
    fn golden_expressions_of_a_published_port() {
        let chain = chain(Family::Ip);
        let map = Set::map(
            chain.table(),
            "published",
            [Type::Protocol, Type::Port],
            [Type::Ipv4, Type::Port],
        );
        let rule = Rule::new(&chain)
            .load([Selector::L4Protocol, Selector::DestinationPort])
            .map(&map)
            .dnat_loaded();
        assert_eq!(
            rule.expressions,
            [
                Expression::Meta { key: 16, to: 8 },
                Expression::Payload { header: Header::Transport, offset: 2, len: 2, to: 9 },
                Expression::Lookup { set: "published".into(), from: 8, invert: false, to: Some(8) },
                Expression::Nat {
                    source: false,
                    family: IPV4,
                    address: Some(8),
                    port: Some(9),
                    flags: 0
                },
            ]
        );
    }
}
