//! Rules about what leaves a network, what comes in, and what goes from one instance to another, as people write
//! them.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use netyard_wire::dns::Name;
use serde::{Deserialize, Serialize};

pub use super::remote::{Instance, Pattern, Remote};
use super::{Protocol, embedded};

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It may go.
    #[default]
    Allow,
    /// It may not.
    Deny,
}

/// Which way a flow goes, as seen by the instances that a rule is about. Answers go with their flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// They begin it.
    #[default]
    Out,
    /// It comes to them.
    In,
}

/// The rules of one member of a network, about what it has plugged in itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rules {
    /// The first that fits decides, for each direction.
    pub list: Vec<Rule>,
    /// What becomes of what leaves the network and none of them fits. All else goes then.
    pub otherwise: Verdict,
}

/// One rule. What it leaves open fits everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RuleText", into = "RuleText")]
pub struct Rule {
    /// What it is called where it is counted.
    pub name: String,
    /// What it says.
    pub verdict: Verdict,
    /// Which way.
    pub direction: Direction,
    /// About whom: names of plugs; empty: all.
    pub instances: Vec<String>,
    /// About whom at the other end; empty: everybody outside.
    pub others: Vec<Remote>,
    /// About which protocol; `None`: all.
    pub protocol: Option<Protocol>,
    /// About which ports of TCP and UDP, to which it goes; empty: all, and pings.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// A rule as it is written: the other end stands where it is, in `to` of what goes out, in `from` of what comes in.
#[derive(Debug, Serialize, Deserialize)]
struct RuleText {
    name: String,
    verdict: Verdict,
    direction: Direction,
    from: Vec<String>,
    to: Vec<String>,
    protocol: Option<Protocol>,
    ports: Vec<RangeInclusive<u16>>,
}

impl From<Rule> for RuleText {
    fn from(rule: Rule) -> Self {
        let Rule { name, verdict, direction, instances, others, protocol, ports } = rule;
        let others = others.iter().map(ToString::to_string).collect();
        let (from, to) = match direction {
            Direction::Out => (instances, others),
            Direction::In => (others, instances),
        };
        Self { name, verdict, direction, from, to, protocol, ports }
    }
}

impl TryFrom<RuleText> for Rule {
    type Error = String;

    fn try_from(text: RuleText) -> Result<Self, String> {
        let RuleText { name, verdict, direction, from, to, protocol, ports } = text;
        let (instances, others) = match direction {
            Direction::Out => (from, to),
            Direction::In => (to, from),
        };
        let others = others.iter().map(|it| it.parse()).collect::<Result<_, _>>()?;
        Ok(Self { name, verdict, direction, instances, others, protocol, ports })
    }
}

/// A flow, as the rules of who is at one end of it see it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// The name of whose rules are asked.
    pub instance: &'a str,
    /// Who is at the other end.
    pub other: Other<'a>,
    /// What it speaks.
    pub what: What,
}

/// Who is at the other end of a flow.
#[derive(Debug, Clone, Copy)]
pub enum Other<'a> {
    /// Somebody outside.
    Outside(IpAddr),
    /// Another instance of the network.
    Instance {
        /// Its name.
        name: &'a str,
        /// All of its addresses: what is said of one holds for it, whichever it uses.
        addresses: &'a [IpAddr],
    },
}

/// What a flow speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct What {
    /// `None`: another protocol than those that rules know.
    pub protocol: Option<Protocol>,
    /// The port that it goes to.
    pub port: Port,
}

/// The port of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// It has none.
    None,
    /// This one.
    At(u16),
    /// It cannot be seen, as in a fragment: what might be denied is, what might be allowed is not.
    Hidden,
}

impl What {
    /// A flow of a protocol to a port; pings have none.
    #[must_use]
    pub fn to(protocol: Protocol, port: u16) -> Self {
        let port = if protocol == Protocol::Icmp { Port::None } else { Port::At(port) };
        Self { protocol: Some(protocol), port }
    }
}

impl Rules {
    /// The rule that decides about a flow; `None`: none is about it. `is_known_as` says whether the guest knows the
    /// other end by a name of a pattern.
    pub fn deciding(
        &self,
        asked: &Asked<'_>,
        is_known_as: impl Fn(&Pattern) -> bool,
    ) -> Option<&Rule> {
        self.list.iter().find(|rule| {
            rule.direction == asked.direction
                && rule.is_about(asked.instance)
                && rule.protocol.is_none_or(|wanted| Some(wanted) == asked.what.protocol)
                && rule.fits_port(asked.what.port)
                && rule.fits_other(&asked.other, &is_known_as)
        })
    }

    /// Whether any rule is about what comes in from outside.
    pub(super) fn are_about_clients(&self) -> bool {
        self.list.iter().any(|rule| rule.direction == Direction::In && rule.is_about_outside())
    }

    /// Whether any rule is about what goes from one instance to another.
    pub(super) fn are_about_instances(&self) -> bool {
        self.list.iter().any(Rule::is_about_instances)
    }

    /// Whether a guest may have a name looked up: something that it stands for may be reached.
    #[must_use]
    pub fn lets_ask(&self, guest: &str, name: &Name) -> bool {
        let is_about = |rule: &&Rule| rule.direction == Direction::Out && rule.is_about(guest);
        for rule in self.list.iter().filter(is_about) {
            let is_meant = rule.others.is_empty()
                || rule.others.iter().any(|it| matches!(it, Remote::Name(it) if it.means(name)));
            let may_be_meant = rule.others.iter().any(|it| matches!(it, Remote::Net(_)));
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
        self.instances.is_empty() || self.instances.iter().any(|name| name == guest)
    }

    fn is_about_outside(&self) -> bool {
        self.others.is_empty() || self.others.iter().any(|it| !matches!(it, Remote::Instance(_)))
    }

    fn is_about_instances(&self) -> bool {
        self.others.iter().any(|it| matches!(it, Remote::Instance(_)))
    }

    fn fits_other(&self, other: &Other<'_>, is_known_as: &impl Fn(&Pattern) -> bool) -> bool {
        match other {
            Other::Outside(address) => {
                self.others.is_empty()
                    || self.others.iter().any(|remote| match remote {
                        Remote::Net(net) => self.covers(net, *address),
                        Remote::Name(pattern) => is_known_as(pattern),
                        Remote::Instance(_) => false,
                    })
            }
            Other::Instance { name, addresses } => self.others.iter().any(|remote| match remote {
                Remote::Instance(Instance::All) => true,
                Remote::Instance(Instance::Named(wanted)) => wanted == name,
                Remote::Instance(Instance::Net(net)) => {
                    addresses.iter().any(|address| net.contains(address))
                }
                Remote::Net(_) | Remote::Name(_) => false,
            }),
        }
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

    fn fits_port(&self, port: Port) -> bool {
        self.ports.is_empty()
            || match port {
                Port::None => false,
                Port::At(port) => self.ports.iter().any(|ports| ports.contains(&port)),
                Port::Hidden => self.verdict == Verdict::Deny,
            }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::Protocol::{Icmp, Tcp, Udp};
    use super::*;

    fn rule(verdict: Verdict, to: &[&str]) -> Rule {
        Rule {
            name: format!("{verdict:?}"),
            verdict,
            direction: Direction::Out,
            instances: Vec::new(),
            others: to.iter().map(|text| text.parse().unwrap()).collect(),
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
            instances: vec!["web".into()],
            protocol: Some(Tcp),
            ports: vec![443..=443, 8000..=8010],
            ..rule(Verdict::Allow, &["203.0.113.0/24", "2001:db8::/32"])
        });
        rules.list.push(rule(Verdict::Deny, &["203.0.113.7"]));
        rules.list.push(rule(Verdict::Allow, &["203.0.113.0/24", "*.example.org"]));
        let decided = |guest: &str, protocol, to: &str, known: Option<&str>| {
            let known = known.map(name);
            let is_known = |it: &Pattern| known.as_ref().is_some_and(|name| it.means(name));
            let to: SocketAddr = to.parse().unwrap();
            let asked = Asked {
                direction: Direction::Out,
                instance: guest,
                other: Other::Outside(to.ip()),
                what: What::to(protocol, to.port()),
            };
            let rule = rules.deciding(&asked, is_known)?;
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
    fn what_comes_in_has_rules_of_its_own() {
        let mut rules = Rules::default();
        rules.list.push(Rule {
            direction: Direction::In,
            instances: vec!["db".into()],
            ports: vec![5432..=5432],
            ..rule(Verdict::Allow, &["instance:web", "192.0.2.0/24"])
        });
        rules.list.push(Rule {
            direction: Direction::In,
            instances: vec!["db".into()],
            ..rule(Verdict::Deny, &["instance:*"])
        });
        rules.list.push(Rule { direction: Direction::In, ..rule(Verdict::Deny, &[]) });
        let web: [IpAddr; 2] = ["192.168.127.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let web = Other::Instance { name: "web", addresses: &web };
        let near = Other::Outside("192.0.2.9".parse().unwrap());
        let far = Other::Outside("198.51.100.9".parse().unwrap());
        let decided = |direction, instance: &str, other: Other<'_>, what: What| {
            let asked = Asked { direction, instance, other, what };
            let rule = rules.deciding(&asked, |_| false)?;
            rules.list.iter().position(|other| std::ptr::eq(other, rule))
        };
        let hidden = What { protocol: Some(Udp), port: Port::Hidden };
        let other_protocol = What { protocol: None, port: Port::None };
        assert_eq!(decided(Direction::In, "db", web, What::to(Tcp, 5432)), Some(0));
        assert_eq!(decided(Direction::In, "db", web, What::to(Tcp, 5433)), Some(1));
        // What has no ports that are seen is not let through by a rule about ports.
        for what in [hidden, other_protocol, What::to(Icmp, 0)] {
            assert_eq!(decided(Direction::In, "db", web, what), Some(1), "{what:?}");
        }
        assert_eq!(decided(Direction::In, "web", web, What::to(Tcp, 5432)), None);
        assert_eq!(decided(Direction::Out, "db", web, What::to(Tcp, 5432)), None);
        assert_eq!(decided(Direction::In, "db", near, What::to(Tcp, 5432)), Some(0));
        assert_eq!(decided(Direction::In, "db", near, What::to(Tcp, 22)), Some(2));
        assert_eq!(decided(Direction::In, "web", far, What::to(Udp, 53)), Some(2));
        assert!(rules.are_about_clients() && rules.are_about_instances());
        let text = serde_json::to_string(&rules).unwrap();
        assert!(text.contains(r#""from":["instance:web","192.0.2.0/24"],"to":["db"]"#), "{text}");
        assert_eq!(serde_json::from_str::<Rules>(&text).unwrap(), rules);
    }

    #[test]
    fn an_instance_that_a_prefix_means_is_meant_at_each_of_its_addresses() {
        let mut rules = Rules::default();
        rules.list.push(rule(Verdict::Deny, &["instance:192.168.127.64/26"]));
        let addresses: [IpAddr; 2] =
            ["192.168.127.70".parse().unwrap(), "fd00::7".parse().unwrap()];
        let asked = Asked {
            direction: Direction::Out,
            instance: "web",
            other: Other::Instance { name: "db", addresses: &addresses },
            what: What::to(Tcp, 80),
        };
        assert!(rules.deciding(&asked, |_| false).is_some());
        // Prefixes alone are about what is outside.
        rules.list = vec![rule(Verdict::Deny, &["192.168.127.0/24", "0.0.0.0/0"])];
        assert!(rules.deciding(&asked, |_| false).is_none());
        assert!(!rules.are_about_clients() && !rules.are_about_instances());
    }
}
