//! The kill switch: what leaves this machine leaves by the tunnel, or not at all.
//!
//! It is an nftables table of its own, which outlives its process: only [`KillSwitch::lift`] removes it. From
//! the moment that it is there, packets pass that
//!
//! * stay on this machine, or go to the tunnel's device, known by its number, which no later device gets;
//! * carry the tunnel's mark: what the tunnel itself sends to the hub;
//! * keep the link alive: DHCP, and neighbour discovery;
//! * go to the networks that its operator has named; not questions about names, if the hub is asked for those.
//!
//! Everything else is refused, also what this machine forwards. While its process lives, the table is that
//! process's own where the kernel can do that (Linux 6.9), and `nft flush ruleset` passes it by.

use std::path::Path;

use ipnet::IpNet;
use netyard_link::nft::{
    Batch, Chain, Hook, Policy, Priority, Reject, Rule, Selector, Table, Value,
};
use netyard_link::plan::{Host, Options, Owner, Plan, Step};
use netyard_link::rtnetlink::LinkIndex;
use netyard_link::{Features, Result};

const PLAN: &str = "kill switch";

/// `lo` in every namespace.
const LOOPBACK: LinkIndex = LinkIndex(1);

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Ports of DNS (RFC 1035 section 4.2), and of DNS in TLS, DTLS and QUIC (RFC 7858, RFC 8094, RFC 9250).
const NAMES: [u16; 2] = [53, 853];
/// Ports of DHCP clients and servers (RFC 2131 section 4.1, RFC 8415 section 7.2).
const DHCP: [(Family, u16, u16); 2] = [(Family::V4, 68, 67), (Family::V6, 546, 547)];
/// Router solicitation, neighbour solicitation and advertisement (RFC 4861 section 4).
const DISCOVERY: [u8; 3] = [133, 135, 136];

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
#[derive(Debug, Clone, Copy)]
enum Family {
    V4 = 2,
    V6 = 10,
}

/// A peer's kill switch, there or not.
#[derive(Debug)]
pub(crate) struct KillSwitch {
    host: Host,
    owner: Owner,
    table: Table,
    features: Features,
}

/// What passes a kill switch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passes<'a> {
    /// What carries this mark.
    pub(crate) mark: u32,
    /// What goes to this device.
    pub(crate) tunnel: Option<LinkIndex>,
    /// What goes to these networks.
    pub(crate) networks: &'a [IpNet],
    /// Names are asked by the tunnel alone, and not even in those networks.
    pub(crate) names_inside: bool,
}

impl KillSwitch {
    /// Of this owner; what a killed process has left stays.
    pub(crate) fn open(owner: &str, folder: &Path, ledger: &Path) -> Result<Self> {
        let owner = Owner::new(&format!("{owner}-kill"))?;
        let features = Features::probe()?;
        let host = Host::open(&Options {
            owner: owner.clone(),
            journal: folder.join("kill-switch.json"),
            ledger: ledger.to_owned(),
            features,
        })?;
        let table = Table::inet(&format!("netyard-{owner}"));
        Ok(Self { host, owner, table, features })
    }

    /// Whether it is there, or was when its process was killed.
    pub(crate) fn is_engaged(&self) -> bool {
        !self.host.plans().is_empty()
    }

    /// Puts it there, or has the one that is there let other things pass, in one moment.
    pub(crate) fn engage(&mut self, passes: Passes<'_>) -> Result<()> {
        let content = self.content(passes);
        if !self.is_engaged() {
            let table = self.table.clone().owned(true);
            return self.host.apply(&Plan::new(PLAN)?.step(Step::Table { table, content }));
        }
        let table =
            (self.table.clone()).comment(&self.owner.tag(PLAN)).owned(self.features.table_owner);
        self.host.kernel().nftables()?.transact(|ruleset| {
            let mut batch = Batch::new();
            if ruleset.table(&table)?.is_some() {
                batch.remove_table(&table);
            }
            batch.create_table(&table).append(&content);
            Ok(batch)
        })
    }

    /// Puts it back if somebody has removed it.
    pub(crate) fn hold(&mut self, passes: Passes<'_>) -> Result<()> {
        if !self.is_engaged() || self.host.kernel().nftables()?.table(&self.table)?.is_some() {
            return Ok(());
        }
        tracing::warn!(table = %self.table, "somebody removed the kill switch; it is there again");
        self.engage(passes)
    }

    /// Removes it.
    pub(crate) fn lift(&mut self) -> Result<()> {
        self.host.undo(PLAN)
    }

    fn content(&self, passes: Passes<'_>) -> Batch {
        let base = |name, hook| {
            Chain::base(&self.table, name, hook, Priority::FILTER).policy(Policy::Drop)
        };
        let mut content = Batch::new();
        for chain in [base("sent", Hook::Output), base("forwarded", Hook::Forward)] {
            content.add_chain(&chain);
            for rule in rules(&chain, passes) {
                content.add_rule(&rule);
            }
        }
        content
    }
}

fn rules(chain: &Chain, passes: Passes<'_>) -> Vec<Rule> {
    let rule = |comment: &str| Rule::new(chain).comment(comment);
    let by = |rule: Rule, link: LinkIndex| rule.is(Selector::OutputIndex, Value::number(link.0));
    let mut rules = vec![by(rule("stays here"), LOOPBACK).accept()];
    rules.extend(passes.tunnel.map(|link| by(rule("goes by the tunnel"), link).accept()));
    let marked = rule("is the tunnel").is(Selector::Mark, Value::number(passes.mark));
    rules.push(marked.accept());
    if passes.names_inside {
        for (protocol, port) in NAMES.iter().flat_map(|port| [(TCP, *port), (UDP, *port)]) {
            rules.push(
                rule("a question about a name")
                    .is(Selector::L4Protocol, Value::byte(protocol))
                    .is(Selector::DestinationPort, Value::port(port))
                    .counter()
                    .reject(Reject::Prohibited),
            );
        }
    }
    for net in passes.networks {
        let field = match net {
            IpNet::V4(_) => Selector::Ip4Destination,
            IpNet::V6(_) => Selector::Ip6Destination,
        };
        rules.push(rule("goes where it may").within(field, *net).accept());
    }
    for (family, client, server) in DHCP {
        rules.push(
            rule("DHCP")
                .is(Selector::NetworkProtocol, Value::byte(family as u8))
                .is(Selector::L4Protocol, Value::byte(UDP))
                .is(Selector::SourcePort, Value::port(client))
                .is(Selector::DestinationPort, Value::port(server))
                .accept(),
        );
    }
    for kind in DISCOVERY {
        let rule = rule("neighbour discovery");
        rules.push(rule.is(Selector::Icmp6Type, Value::byte(kind)).accept());
    }
    rules.push(rule("everything else").counter().reject(Reject::Prohibited));
    rules
}
