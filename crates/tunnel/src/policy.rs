//! Who may reach whom: a policy as people write it, and the table that the relay asks.
//!
//! Without a policy everybody reaches everybody. With one, a connection is refused unless a rule allows it;
//! its answers pass. For TCP the segment that begins a connection counts, and every other one passes
//! where a rule allows the connection in one of the two directions. Datagrams are answers to those that
//! went the other way within some minutes. Errors and answers of ICMP pass where a rule allows anything
//! between the two ends, and so do fragments, which have no ports.

mod acl;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub(crate) use self::acl::{Acl, End, Whose};

/// Rules, as people write them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Names for groups of peers.
    #[serde(default)]
    pub tags: BTreeMap<String, Vec<String>>,
    /// What is allowed; nothing else is.
    #[serde(default)]
    pub allow: Vec<Allow>,
}

/// One rule: from any of these to any of those.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// Who begins.
    pub from: Vec<Who>,
    /// Whom they reach.
    pub to: Vec<Who>,
    /// By which protocol; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// At which ports, of TCP and UDP; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
}

/// Somebody in a rule: `*`, `hub`, the name of a peer, `tag:NAME`, or a prefix of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Who {
    /// Everybody and everything.
    All,
    /// The hub itself.
    Hub,
    /// A peer.
    Node(String),
    /// The peers of a tag.
    Tag(String),
    /// Whoever has these addresses: machines behind a peer or the hub.
    Net(IpNet),
}

/// A protocol of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, of both families.
    Icmp,
}

/// Ports from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PortsText", into = "PortsText")]
pub struct Ports {
    first: u16,
    last: u16,
}

/// `22` or `"8000-8010"`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum PortsText {
    One(u16),
    Range(String),
}

impl TryFrom<String> for Who {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let plain = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_.".contains(&it))
        };
        let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
        Ok(match text.strip_prefix("tag:") {
            Some(tag) if plain(tag) => Self::Tag(tag.to_owned()),
            None if text == "*" => Self::All,
            None if text == "hub" => Self::Hub,
            None => match text.parse::<IpNet>().ok().or_else(address) {
                Some(net) => Self::Net(net.trunc()),
                None if plain(&text) => Self::Node(text),
                None => {
                    return Err(format!(
                        "{text:?} is none of \"*\", \"hub\", NAME, tag:NAME, PREFIX"
                    ));
                }
            },
            Some(_) => return Err(format!("{text:?} is no tag")),
        })
    }
}

impl From<Who> for String {
    fn from(who: Who) -> Self {
        match who {
            Who::All => "*".into(),
            Who::Hub => "hub".into(),
            Who::Node(name) => name,
            Who::Tag(tag) => format!("tag:{tag}"),
            Who::Net(net) => net.to_string(),
        }
    }
}

impl TryFrom<PortsText> for Ports {
    type Error = String;

    fn try_from(text: PortsText) -> Result<Self, String> {
        let text = match text {
            PortsText::One(port) => return Ok(Self { first: port, last: port }),
            PortsText::Range(text) => text,
        };
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} is neither a port nor a range such as 8000-8010")),
        }
    }
}

impl From<Ports> for PortsText {
    fn from(Ports { first, last }: Ports) -> Self {
        if first == last { Self::One(first) } else { Self::Range(format!("{first}-{last}")) }
    }
}

impl Policy {
    /// Whether it makes sense. Peers that are named need not have joined yet.
    ///
    /// # Errors
    /// A tag that it does not define; ports of a protocol without ports.
    pub fn check(&self) -> Result<(), String> {
        for rule in &self.allow {
            for who in rule.from.iter().chain(&rule.to) {
                if let Who::Tag(tag) = who
                    && !self.tags.contains_key(tag)
                {
                    return Err(format!("there is no tag {tag}"));
                }
            }
            if rule.protocol == Some(Protocol::Icmp) && !rule.ports.is_empty() {
                return Err("icmp has no ports".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
