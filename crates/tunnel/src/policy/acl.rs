//! What the relay asks of a policy: whether this packet may go there.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netyard_wheel::Recent;
use netyard_wire::ip::{ICMP, ICMPV6, IpPacket, TCP, UDP};
use netyard_wire::tcp::Flags as TcpFlags;

use super::{Allow, Policy, Ports, Protocol, Who};
use crate::relay::NodeId;

/// A datagram's answer may take this long, and up to twice as long.
pub(super) const SLICE: Duration = Duration::from_secs(120);
/// Flows over UDP of one slice of time. When there are more, those before them are forgotten.
pub(super) const MOST_FLOWS: usize = 32 * 1024;

/// One end of a packet's way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) whose: Whose,
    pub(crate) address: IpAddr,
}

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Hub,
    Node(NodeId),
    /// Of a machine behind a peer or the hub.
    Other,
}

/// A policy whose names are numbers, and the flows that it has let pass.
#[derive(Debug)]
pub(crate) struct Acl {
    rules: Vec<Rule>,
    flows: Recent<Flow, ()>,
}

#[derive(Debug)]
struct Rule {
    from: Vec<Match>,
    to: Vec<Match>,
    protocol: Option<Protocol>,
    ports: Vec<Ports>,
}

#[derive(Debug)]
enum Match {
    All,
    Whose(Whose),
    Net(IpNet),
}

impl Acl {
    /// Of a policy and the peers that there are, with their names.
    pub(crate) fn new(policy: &Policy, peers: &[(String, NodeId)]) -> Self {
        let nodes = |name: &str| {
            let found = peers.iter().find(|(known, _)| known == name);
            found.map(|(_, node)| Match::Whose(Whose::Node(*node)))
        };
        let matches = |all: &[Who]| {
            let mut found = Vec::new();
            for who in all {
                match who {
                    Who::All => found.push(Match::All),
                    Who::Hub => found.push(Match::Whose(Whose::Hub)),
                    Who::Net(net) => found.push(Match::Net(*net)),
                    Who::Node(name) => found.extend(nodes(name)),
                    Who::Tag(tag) => {
                        let names = policy.tags.get(tag).into_iter().flatten();
                        found.extend(names.filter_map(|name| nodes(name)));
                    }
                }
            }
            found
        };
        let rule = |allow: &Allow| Rule {
            from: matches(&allow.from),
            to: matches(&allow.to),
            protocol: allow.protocol,
            ports: allow.ports.clone(),
        };
        Self { rules: policy.allow.iter().map(rule).collect(), flows: no_flows() }
    }

    /// How many flows over UDP it remembers.
    #[cfg(test)]
    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }

    /// With the flows that another table has let pass.
    pub(crate) fn with_flows_of(self, before: Option<Self>) -> Self {
        Self { flows: before.map_or_else(no_flows, |before| before.flows), ..self }
    }

    /// Whether a packet may go from one end to the other.
    pub(crate) fn allows(
        &mut self,
        from: End,
        to: End,
        packet: &IpPacket<'_>,
        now: Instant,
    ) -> bool {
        let ports = || {
            let [a, b, c, d] = *packet.payload.first_chunk()?;
            Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
        };
        if packet.fragment.is_some() {
            return self.between(from, to, packet.protocol);
        }
        match packet.protocol {
            TCP => {
                let flags = packet.payload.get(13).map(|flags| TcpFlags(*flags));
                let (Some((source, destination)), Some(flags)) = (ports(), flags) else {
                    return false;
                };
                let begins = flags.contains(TcpFlags::SYN) && !flags.contains(TcpFlags::ACK);
                self.any(from, to, Protocol::Tcp, Some(destination))
                    || !begins && self.any(to, from, Protocol::Tcp, Some(source))
            }
            UDP => {
                let Some((source, destination)) = ports() else { return false };
                let (here, there) = ((from.address, source), (to.address, destination));
                if self.any(from, to, Protocol::Udp, Some(destination)) {
                    self.flows.note(now, (here, there), ());
                    return true;
                }
                // An answer keeps it, as a question does.
                self.flows.get(now, (there, here)).is_some()
            }
            ICMP | ICMPV6 => {
                let ipv4 = packet.protocol == ICMP;
                let kind = packet.payload.first().copied();
                // Echo reply, and errors (RFC 792; RFC 4443 section 2.1).
                let answers = match kind {
                    Some(0 | 3 | 11 | 12) => ipv4,
                    Some(1..=4 | 129) => !ipv4,
                    _ => false,
                };
                self.any(from, to, Protocol::Icmp, None)
                    || answers && self.rules.iter().any(|it| it.is_between(from, to))
            }
            other => self.between(from, to, other),
        }
    }

    /// Whether a rule allows a protocol from one end to the other.
    fn any(&self, from: End, to: End, protocol: Protocol, port: Option<u16>) -> bool {
        self.rules.iter().any(|rule| rule.leads(from, to) && rule.takes(protocol, port))
    }

    /// Whether a rule allows any of a protocol between two ends.
    fn between(&self, from: End, to: End, protocol: u8) -> bool {
        let named = match protocol {
            TCP => Some(Protocol::Tcp),
            UDP => Some(Protocol::Udp),
            ICMP | ICMPV6 => Some(Protocol::Icmp),
            _ => None,
        };
        let takes = |rule: &&Rule| match rule.protocol {
            None => rule.ports.is_empty() || named.is_some_and(|it| it != Protocol::Icmp),
            wanted => wanted == named,
        };
        self.rules.iter().filter(takes).any(|rule| rule.is_between(from, to))
    }
}

impl Rule {
    fn leads(&self, from: End, to: End) -> bool {
        let fits = |all: &[Match], end: End| {
            all.iter().any(|it| match it {
                Match::All => true,
                Match::Whose(whose) => *whose == end.whose,
                Match::Net(net) => net.contains(&end.address),
            })
        };
        fits(&self.from, from) && fits(&self.to, to)
    }

    fn is_between(&self, one: End, other: End) -> bool {
        self.leads(one, other) || self.leads(other, one)
    }

    fn takes(&self, protocol: Protocol, port: Option<u16>) -> bool {
        let fits = |ports: &Ports| port.is_some_and(|it| (ports.first..=ports.last).contains(&it));
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && (self.ports.is_empty() || self.ports.iter().any(fits))
    }
}

/// Who sends to whom over UDP.
type Flow = ((IpAddr, u16), (IpAddr, u16));

fn no_flows() -> Recent<Flow, ()> {
    Recent::new(SLICE, MOST_FLOWS)
}
