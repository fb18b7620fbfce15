//! Rules about what guests may reach outside, as people write them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use netyard_wire::dns::Name;
use serde::{Deserialize, Serialize};

use super::{Protocol, embedded};

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It may leave.
    #[default]
    Allow,
    /// It may not.
    Deny,
}

/// The rules of one member of a network, about what it has plugged in itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rules {
    /// The first that fits decides.
    pub list: Vec<Rule>,
    /// What becomes of what none of them fits.
    pub otherwise: Verdict,
}

/// One rule. What it leaves open fits everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What it is called where it is counted.
    pub name: String,
    /// What it says.
    pub verdict: Verdict,
    /// About whom: names of plugs; empty: all.
    pub from: Vec<String>,
    /// About which remotes; empty: all.
    pub to: Vec<Remote>,
    /// About which protocol; `None`: all.
    pub protocol: Option<Protocol>,
    /// About which ports of TCP and UDP; empty: all, and pings.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// Somebody outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Remote {
    /// These addresses.
    Net(IpNet),
    /// What the guest was told, by the network's own DNS, that this name stands for.
    Name(Pattern),
}

/// A name, or, with `*.` in front, all names below one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    name: Name,
    below: bool,
}

impl Pattern {
    /// Whether it means this name.
    #[must_use]
    pub fn means(&self, name: &Name) -> bool {
        match self.below {
            true => name != &self.name && name.is_within(&self.name),
            false => name == &self.name,
        }
    }
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(net) = text.parse::<IpNet>() {
            return match net == net.trunc() {
                true => Ok(Self::Net(net)),
                false => Err(format!("a prefix without host bits: write \"{}\"", net.trunc())),
            };
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address.into()));
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        // The top level of a name has a letter in it (RFC 3696 section 2); what has none is an address.
        let has_letter = |label: &str| label.bytes().any(|byte| byte.is_ascii_alphabetic());
        let top = name.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        match name.parse::<Name>() {
            Ok(name_) if name.bytes().all(plain) && has_letter(top) => {
                Ok(Self::Name(Pattern { name: name_, below }))
            }
            _ => Err(
                "a prefix like \"203.0.113.0/24\", an address, a name like \"example.org\", or \
                      all names below one like \"*.example.org\""
                    .to_owned(),
            ),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::Name(Pattern { name, below }) => {
                write!(f, "{}{name}", if *below { "*." } else { "" })
            }
        }
    }
}

impl TryFrom<String> for Remote {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Remote> for String {
    fn from(remote: Remote) -> Self {
        remote.to_string()
    }
}

impl Rules {
    /// The rule that decides about a flow of the guest with this name; `None`: [`Rules::otherwise`] does.
    /// `is_known_as` says whether the guest knows the remote by a name of a pattern.
    pub fn deciding(
        &self,
        guest: &str,
        protocol: Protocol,
        to: SocketAddr,
        is_known_as: impl Fn(&Pattern) -> bool,
    ) -> Option<&Rule> {
        self.list.iter().find(|rule| {
            rule.is_about(guest)
                && rule.protocol.is_none_or(|wanted| wanted == protocol)
                && rule.fits_port(protocol, to.port())
                && (rule.to.is_empty()
                    || rule.to.iter().any(|remote| match remote {
                        Remote::Net(net) => rule.covers(net, to.ip()),
                        Remote::Name(pattern) => is_known_as(pattern),
                    }))
        })
    }

    /// Whether a guest may have a name looked up: something that it stands for may be reached.
    #[must_use]
    pub fn lets_ask(&self, guest: &str, name: &Name) -> bool {
        for rule in self.list.iter().filter(|rule| rule.is_about(guest)) {
            let is_meant = rule.to.is_empty()
                || rule.to.iter().any(|it| matches!(it, Remote::Name(it) if it.means(name)));
            let may_be_meant = rule.to.iter().any(|it| matches!(it, Remote::Net(_)));
            match rule.verdict {
                Verdict::Allow if is_meant || may_be_meant => return true,
                Verdict::Deny if is_meant && rule.is_about_everything() => return false,
                _ => {}
            }
        }
        self.otherwise == Verdict::Allow
    }
}

impl Rule {
    fn is_about(&self, guest: &str) -> bool {
        self.from.is_empty() || self.from.iter().any(|name| name == guest)
    }

    /// Whether an address is meant by one of its prefixes. What is denied has no second spelling.
    fn covers(&self, net: &IpNet, address: IpAddr) -> bool {
        let leads_there = || match address {
            IpAddr::V6(address) if self.verdict == Verdict::Deny => {
                embedded(address).is_some_and(|address| net.contains(&IpAddr::V4(address)))
            }
            _ => false,
        };
        net.contains(&address) || leads_there()
    }

    fn is_about_everything(&self) -> bool {
        self.protocol.is_none() && self.ports.is_empty()
    }

    fn fits_port(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.is_empty()
            || protocol != Protocol::Icmp && self.ports.iter().any(|ports| ports.contains(&port))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Protocol::{Icmp, Tcp, Udp};
    use super::*;

    fn rule(verdict: Verdict, to: &[&str]) -> Rule {
        Rule {
            name: format!("{verdict:?}"),
            verdict,
            from: Vec::new(),
            to: to.iter().map(|text| text.parse().unwrap()).collect(),
            protocol: None,
            ports: Vec::new(),
        }
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let mut rules = Rules { list: Vec::new(), otherwise: Verdict::Deny };
        rules.list.push(Rule {
            from: vec!["web".into()],
            protocol: Some(Tcp),
            ports: vec![443..=443, 8000..=8010],
            ..rule(Verdict::Allow, &["203.0.113.0/24", "2001:db8::/32"])
        });
        rules.list.push(rule(Verdict::Deny, &["203.0.113.7"]));
        rules.list.push(rule(Verdict::Allow, &["203.0.113.0/24", "*.example.org"]));
        let decided = |guest: &str, protocol, to: &str, known: Option<&str>| {
            let known = known.map(name);
            let is_known = |it: &Pattern| known.as_ref().is_some_and(|name| it.means(name));
            let rule = rules.deciding(guest, protocol, to.parse().unwrap(), is_known)?;
            rules.list.iter().position(|other| std::ptr::eq(other, rule))
        };
        assert_eq!(decided("web", Tcp, "203.0.113.7:443", None), Some(0));
        assert_eq!(decided("web", Tcp, "[2001:db8::9]:8005", None), Some(0));
        assert_eq!(decided("web", Tcp, "203.0.113.7:8011", None), Some(1));
        assert_eq!(decided("web", Udp, "203.0.113.7:443", None), Some(1));
        assert_eq!(decided("web", Icmp, "203.0.113.8:0", None), Some(2));
        assert_eq!(decided("db", Tcp, "203.0.113.8:443", None), Some(2));
        assert_eq!(decided("db", Tcp, "198.51.100.1:443", None), None);
        // What is denied is denied however it is written; what is allowed, as it is written.
        assert_eq!(decided("db", Tcp, "[64:ff9b::203.0.113.7]:443", None), Some(1));
        assert_eq!(decided("db", Tcp, "[2002:cb00:7107::1]:443", None), Some(1));
        assert_eq!(decided("db", Tcp, "[64:ff9b::203.0.113.8]:443", None), None);
        assert_eq!(decided("db", Tcp, "198.51.100.1:443", Some("A.B.Example.ORG")), Some(2));
        assert_eq!(decided("db", Tcp, "198.51.100.1:443", Some("example.org")), None);
        assert_eq!(decided("db", Tcp, "198.51.100.1:443", Some("badexample.org")), None);
    }

    #[test]
    fn names_that_lead_nowhere_are_not_asked_for() {
        let mut rules =
            Rules { list: vec![rule(Verdict::Allow, &["example.org"])], otherwise: Verdict::Deny };
        assert!(rules.lets_ask("web", &name("Example.org")));
        assert!(!rules.lets_ask("web", &name("www.example.org")));
        // Any name may stand for one of these addresses.
        rules.list.push(rule(Verdict::Allow, &["203.0.113.0/24"]));
        assert!(rules.lets_ask("web", &name("www.example.org")));
        rules.list.insert(0, rule(Verdict::Deny, &["*.example.org"]));
        assert!(!rules.lets_ask("web", &name("www.example.org")));
        if let Some(first) = rules.list.first_mut() {
            first.protocol = Some(Tcp);
        }
        assert!(rules.lets_ask("web", &name("www.example.org")));
        rules = Rules { list: vec![rule(Verdict::Deny, &[])], otherwise: Verdict::Allow };
        assert!(!rules.lets_ask("web", &name("www.example.org")));
        assert!(Rules::default().lets_ask("web", &name("www.example.org")));
    }

    #[test]
    fn remotes_are_read_as_they_are_written() {
        for text in ["203.0.113.0/24", "203.0.113.7", "2001:db8::/32", "example.org", "*.x.example"]
        {
            assert_eq!(text.parse::<Remote>().unwrap().to_string(), text);
        }
        for text in ["203.0.113.7/24", "", "*", "*.", "a b", "300.1.2.3", "*example.org", "10.1"] {
            assert!(text.parse::<Remote>().is_err(), "{text}");
        }
    }
}
