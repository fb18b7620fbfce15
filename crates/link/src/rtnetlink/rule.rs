//! Rules: which routing table a packet is looked up in.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{INET, INET6, LinkName, PROTOCOL, Rtnetlink, UNSPECIFIED, family};
use crate::attribute::{Answer, CREATE, EXCLUSIVE, Message};
use crate::error::{Result, gone_is_done};

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

// linux/fib_rules.h
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PROTOCOL: u16 = 21;
/// `FIB_RULE_INVERT`.
const INVERT: u32 = 2;

/// What a rule does with packets that match it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RuleAction {
    /// Looks them up in a table.
    Table(u32),
    /// Answers them with "host unreachable".
    Unreachable,
    /// Answers them with "administratively prohibited".
    Prohibit,
    /// Lets them vanish.
    Blackhole,
    /// An action that is only listed; the kernel's number.
    Other(u8),
}

/// A rule. What is `None` matches everything; with `invert` it is for all packets that do not match.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Rules are tried from the lowest number up.
    pub priority: u32,
    /// IPv6 instead of IPv4.
    pub ipv6: bool,
    /// Source addresses.
    pub from: Option<IpNet>,
    /// Destination addresses.
    pub to: Option<IpNet>,
    /// The link that packets came in by.
    pub input: Option<LinkName>,
    /// The link that the sending socket is bound to.
    pub output: Option<LinkName>,
    /// The packet's mark, and which bits of it count.
    pub mark: Option<(u32, u32)>,
    /// It is for what does not match.
    #[serde(default)]
    pub invert: bool,
    /// What is done.
    pub action: RuleAction,
    /// What is found in the table does not count if its prefix is not longer than this, bits: with 0
    /// all routes but the default one.
    #[serde(default)]
    pub suppress: Option<u32>,
    /// Who made it (`FRA_PROTOCOL`).
    pub protocol: u8,
}

impl Rule {
    /// A rule of ours that looks every packet of one family up in a table.
    #[must_use]
    pub const fn new(priority: u32, ipv6: bool, table: u32) -> Self {
        Self {
            priority,
            ipv6,
            from: None,
            to: None,
            input: None,
            output: None,
            mark: None,
            invert: false,
            action: RuleAction::Table(table),
            suppress: None,
            protocol: PROTOCOL,
        }
    }

    /// True when it was made here.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let (action, table) = match self.action {
            RuleAction::Table(table) => (1, table),
            RuleAction::Blackhole => (6, 0),
            RuleAction::Unreachable => (7, 0),
            RuleAction::Prohibit => (8, 0),
            RuleAction::Other(action) => (action, 0),
        };
        let default = if self.ipv6 { INET6 } else { INET };
        let len = |net: &Option<IpNet>| net.map_or(0, |net| net.prefix_len());
        let by_net = self.from.or(self.to).map_or(default, |net| family(&net));
        let [a, b, c, d] = (if self.invert { INVERT } else { 0 }).to_ne_bytes();
        // struct fib_rule_hdr: family, destination and source prefix lengths, type of service,
        // table (FRA_TABLE counts), two reserved, action, flags.
        let mut message = Message::new(kind, flags).fixed(&[
            by_net,
            len(&self.to),
            len(&self.from),
            0,
            0,
            0,
            0,
            action,
            a,
            b,
            c,
            d,
        ]);
        message.put_u32(FRA_PRIORITY, self.priority).put_u32(FRA_TABLE, table);
        message.put_u8(FRA_PROTOCOL, self.protocol);
        for (kind, net) in [(FRA_SRC, self.from), (FRA_DST, self.to)] {
            if let Some(net) = net {
                message.put_address(kind, net.network());
            }
        }
        for (kind, link) in [(FRA_IIFNAME, &self.input), (FRA_OIFNAME, &self.output)] {
            if let Some(link) = link {
                message.put_text(kind, link.as_str());
            }
        }
        if let Some((mark, mask)) = self.mark {
            message.put_u32(FRA_FWMARK, mark).put_u32(FRA_FWMASK, mask);
        }
        if let Some(len) = self.suppress {
            message.put_u32(FRA_SUPPRESS_PREFIXLEN, len);
        }
        message
    }

    pub(super) fn read(answer: &Answer<'_>) -> Option<Self> {
        let (header, attributes) = answer.split::<12>()?;
        let [family, to, from, _, table, _, _, action, flags @ ..] = header;
        let number = |kind| attributes.find(kind).and_then(|value| value.u32());
        let net = |kind, len| {
            let address = attributes.find(kind).and_then(|value| value.address())?;
            IpNet::new(address, len).ok()
        };
        let name = |kind| attributes.find(kind).and_then(|value| value.text().parse().ok());
        Some(Self {
            priority: number(FRA_PRIORITY).unwrap_or(0),
            ipv6: family == INET6,
            from: net(FRA_SRC, from),
            to: net(FRA_DST, to),
            input: name(FRA_IIFNAME),
            output: name(FRA_OIFNAME),
            mark: number(FRA_FWMARK)
                .map(|mark| (mark, number(FRA_FWMASK).unwrap_or(u32::MAX)))
                .filter(|mark| *mark != (0, 0)),
            invert: u32::from_ne_bytes(flags) & INVERT != 0,
            // The kernel lists all bits set where nothing is suppressed.
            suppress: number(FRA_SUPPRESS_PREFIXLEN).filter(|len| *len != u32::MAX),
            action: match action {
                1 => RuleAction::Table(number(FRA_TABLE).unwrap_or(table.into())),
                6 => RuleAction::Blackhole,
                7 => RuleAction::Unreachable,
                8 => RuleAction::Prohibit,
                other => RuleAction::Other(other),
            },
            protocol: attributes.find(FRA_PROTOCOL).and_then(|value| value.u8()).unwrap_or(0),
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.priority, if self.invert { " not" } else { "" })?;
        for (word, net) in [("from", self.from), ("to", self.to)] {
            if let Some(net) = net {
                write!(f, " {word} {net}")?;
            }
        }
        for (word, link) in [("iif", &self.input), ("oif", &self.output)] {
            if let Some(link) = link {
                write!(f, " {word} {link}")?;
            }
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, " mark {mark:#x}/{mask:#x}")?;
        }
        match self.action {
            RuleAction::Table(table) => write!(f, " table {table}"),
            RuleAction::Unreachable => write!(f, " unreachable"),
            RuleAction::Prohibit => write!(f, " prohibit"),
            RuleAction::Blackhole => write!(f, " blackhole"),
            RuleAction::Other(action) => write!(f, " action {action}"),
        }?;
        match self.suppress {
            Some(len) => write!(f, " suppress_prefixlength {len}"),
            None => Ok(()),
        }
    }
}

impl Rtnetlink {
    /// Adds a rule.
    ///
    /// # Errors
    /// [`crate::Error::exists`]: there is the same one.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<()> {
        let message = rule.message(RTM_NEWRULE, CREATE | EXCLUSIVE);
        self.connection.request(message, || format!("add the rule {rule}"))
    }

    /// Removes a rule; one that is gone already is fine.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remove_rule(&mut self, rule: &Rule) -> Result<()> {
        let message = rule.message(RTM_DELRULE, 0);
        gone_is_done(self.connection.request(message, || format!("remove the rule {rule}")))
    }

    /// Every rule of both families.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        let mut header = [0; 12];
        header[0] = UNSPECIFIED;
        let message = Message::new(RTM_GETRULE, 0).fixed(&header);
        self.connection.dump(&message, || "list the rules".into(), Rule::read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_is_read() {
        let rule = Rule {
            from: Some("10.1.0.0/16".parse().unwrap()),
            input: Some("br1".parse().unwrap()),
            mark: Some((0x10, 0xff)),
            ..Rule::new(1000, false, 77)
        };
        let bytes = rule.message(RTM_NEWRULE, 0).finish(1).unwrap();
        assert_eq!(Rule::read(&Answer::all(&bytes).next().unwrap()).unwrap(), rule);
        assert_eq!(rule.to_string(), "1000: from 10.1.0.0/16 iif br1 mark 0x10/0xff table 77");
        let rule = Rule { action: RuleAction::Prohibit, ..Rule::new(1, true, 0) };
        let bytes = rule.message(RTM_NEWRULE, 0).finish(1).unwrap();
        assert_eq!(Rule::read(&Answer::all(&bytes).next().unwrap()).unwrap(), rule);
        let rule = Rule {
            mark: Some((7, u32::MAX)),
            invert: true,
            suppress: Some(0),
            ..Rule::new(10, false, 99)
        };
        let bytes = rule.message(RTM_NEWRULE, 0).finish(1).unwrap();
        assert_eq!(Rule::read(&Answer::all(&bytes).next().unwrap()).unwrap(), rule);
        let words = "10: not mark 0x7/0xffffffff table 99 suppress_prefixlength 0";
        assert_eq!(rule.to_string(), words);
    }
}
