//! Forwards: host addresses and ports that lead to one instance of the network.
//!
//! As text, on the command line and in the yard file:
//!
//! ```text
//! [ADDRESS:]PORTS[:PORTS][/tcp|/udp][/splice|/no-splice][/loopback][/proxy-v1|/proxy-v2]
//! 8081                        127.0.0.1:8081 to the instance's 8081, TCP
//! 8081:80                     127.0.0.1:8081 to the instance's 80
//! 0.0.0.0:8080:80/tcp         every IPv4 address of the host
//! [::1]:5353:53/udp           IPv6 addresses stand in brackets
//! 8000-8010:9000-9010         eleven ports
//! 8081:80/loopback            to port 80 of the instance's own 127.0.0.1, or ::1
//! 8081:80/proxy-v2            its first bytes say who the client is (the PROXY protocol)
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::delivery::{Delivery, DeliveryError};

/// Transport protocol of a forward.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One or more consecutive ports, none of them 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// The ports from `first` to `last`, both included; `None` if reversed or if it has port 0.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first != 0 && first <= last).then_some(Self { first, last })
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports: 1 to 65,535.
    #[must_use]
    pub fn count(self) -> u16 {
        (self.last - self.first).saturating_add(1)
    }

    /// Every port, ascending.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// True when a port is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl TryFrom<(u16, u16)> for Ports {
    type Error = ForwardError;

    fn try_from((first, last): (u16, u16)) -> Result<Self, ForwardError> {
        Self::new(first, last).ok_or_else(|| match first {
            0 => ForwardError::Port(first.to_string()),
            _ => ForwardError::Reversed { first, last },
        })
    }
}

impl From<Ports> for (u16, u16) {
    fn from(ports: Ports) -> Self {
        (ports.first, ports.last)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for Ports {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        Self::try_from((first, last))
    }
}

/// A forward from host ports to the ports of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Forward {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Host address that is bound; an unspecified address is every address of that family.
    pub host: IpAddr,
    /// Bound ports.
    pub host_ports: Ports,
    /// Ports of the instance, as many as `host_ports`, in the same order.
    pub guest_ports: Ports,
    /// How connections are handed over.
    #[serde(default, skip_serializing_if = "Delivery::is_default")]
    pub delivery: Delivery,
    /// Name of the instance in the network. Not a part of the text form: parsing leaves it empty.
    pub instance: String,
}

impl Forward {
    /// The host addresses with the instance's port that each leads to.
    pub fn pairs(&self) -> impl Iterator<Item = (SocketAddr, u16)> + '_ {
        self.host_ports
            .iter()
            .zip(self.guest_ports.iter())
            .map(|(host_port, guest_port)| (SocketAddr::new(self.host, host_port), guest_port))
    }

    /// True when both cannot be bound at once: same protocol, a common port, and the same
    /// address or an unspecified one of the family.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        let same_family = self.host.is_ipv4() == other.host.is_ipv4();
        let addresses = self.host == other.host
            || same_family && (self.host.is_unspecified() || other.host.is_unspecified());
        self.protocol == other.protocol && addresses && self.host_ports.overlaps(other.host_ports)
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            IpAddr::V4(host) => write!(f, "{host}")?,
            IpAddr::V6(host) => write!(f, "[{host}]")?,
        }
        write!(f, ":{}:{}/{}{}", self.host_ports, self.guest_ports, self.protocol, self.delivery)
    }
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let (rest, words) =
            text.split_once('/').map_or((text, None), |(rest, words)| (rest, Some(words)));
        let (mut protocol, mut delivery) = (Protocol::Tcp, Delivery::default());
        for (place, word) in words.into_iter().flat_map(|words| words.split('/')).enumerate() {
            match word {
                "tcp" if place == 0 => {}
                "udp" if place == 0 => protocol = Protocol::Udp,
                word if delivery.read(word) => {}
                other => return Err(ForwardError::Word(other.to_owned())),
            }
        }
        let (host, rest) = split_host(rest)?;
        let (host_ports, guest_ports) = match rest.split_once(':') {
            Some((host_ports, guest_ports)) => (host_ports.parse()?, guest_ports.parse()?),
            None => (rest.parse()?, rest.parse()?),
        };
        let instance = String::new();
        Self { protocol, host, host_ports, guest_ports, delivery, instance }.checked()
    }
}

/// A [`Forward`] as it was written, whose parts may not go together.
#[derive(Deserialize)]
struct Unchecked {
    protocol: Protocol,
    host: IpAddr,
    host_ports: Ports,
    guest_ports: Ports,
    #[serde(default)]
    delivery: Delivery,
    instance: String,
}

impl TryFrom<Unchecked> for Forward {
    type Error = ForwardError;

    fn try_from(unchecked: Unchecked) -> Result<Self, ForwardError> {
        let Unchecked { protocol, host, host_ports, guest_ports, delivery, instance } = unchecked;
        Self { protocol, host, host_ports, guest_ports, delivery, instance }.checked()
    }
}

impl Forward {
    /// Both ranges must be equally long, and the options be those of the protocol.
    fn checked(self) -> Result<Self, ForwardError> {
        self.delivery.check(self.protocol)?;
        let (host, guest) = (self.host_ports.count(), self.guest_ports.count());
        if host == guest { Ok(self) } else { Err(ForwardError::Lengths { host, guest }) }
    }
}

/// Splits the optional host address off the front.
fn split_host(text: &str) -> Result<(IpAddr, &str), ForwardError> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, rest) =
            bracketed.split_once("]:").ok_or_else(|| ForwardError::Shape(text.to_owned()))?;
        let address: std::net::Ipv6Addr =
            address.parse().map_err(|_| ForwardError::Address(address.to_owned()))?;
        return Ok((address.into(), rest));
    }
    let default = IpAddr::V4(Ipv4Addr::LOCALHOST);
    match text.split_once(':') {
        // Ports never have a dot or a letter, so `127.0.0.1:8081` is an address and a port.
        Some((head, rest)) if rest.contains(':') || !is_ports(head) => {
            if rest.matches(':').count() > 1 {
                return Err(if text.parse::<IpAddr>().is_ok() || text.contains("::") {
                    ForwardError::Brackets(text.to_owned())
                } else {
                    ForwardError::Shape(text.to_owned())
                });
            }
            let address: Ipv4Addr =
                head.parse().map_err(|_| ForwardError::Address(head.to_owned()))?;
            Ok((address.into(), rest))
        }
        _ => Ok((default, text)),
    }
}

/// True for text that was meant as a port or a port range.
fn is_ports(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

/// A port: digits only (no sign, no blank), 1 to 65535.
fn port(text: &str) -> Result<u16, ForwardError> {
    let refused = || ForwardError::Port(text.to_owned());
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refused());
    }
    text.parse().ok().filter(|port| *port != 0).ok_or_else(refused)
}

/// What is wrong with the text of a forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// Neither digits nor in range.
    #[error("`{0}` is not a port: a port is a number from 1 to 65535")]
    Port(String),
    /// The range ends before it begins.
    #[error("the port range {first}-{last} is reversed: write {last}-{first}")]
    Reversed {
        /// As written.
        first: u16,
        /// As written.
        last: u16,
    },
    /// The two ranges differ in length.
    #[error(
        "{host} host port(s) cannot lead to {guest} instance port(s): both ranges must be equally long"
    )]
    Lengths {
        /// Host ports.
        host: u16,
        /// Instance ports.
        guest: u16,
    },
    /// Not an address.
    #[error("`{0}` is not a host address: expected one like 127.0.0.1, 0.0.0.0 or [::1]")]
    Address(String),
    /// An IPv6 address without brackets.
    #[error("`{0}`: an IPv6 address stands in brackets, as in [::1]:8080:80")]
    Brackets(String),
    /// Neither a protocol nor an option.
    #[error(
        "`{0}` is not a protocol: expected tcp or udp, and after it splice, no-splice, loopback, proxy-v1 or proxy-v2"
    )]
    Word(String),
    /// Options that cannot be.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    /// Too many or too few parts.
    #[error(
        "`{0}` is not a forward: expected [ADDRESS:]PORTS[:PORTS][/tcp|/udp], as in 0.0.0.0:8080:80/tcp"
    )]
    Shape(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Forward>().map_or_else(|error| format!("error: {error}"), |f| f.to_string())
    }

    #[test]
    fn every_written_form_means_what_it_says() {
        for (text, means) in [
            ("8081", "127.0.0.1:8081:8081/tcp"),
            ("8081:80", "127.0.0.1:8081:80/tcp"),
            ("8081/udp", "127.0.0.1:8081:8081/udp"),
            ("127.0.0.1:8081", "127.0.0.1:8081:8081/tcp"),
            ("127.0.0.1:8081:8080", "127.0.0.1:8081:8080/tcp"),
            ("0.0.0.0:8080:80/tcp", "0.0.0.0:8080:80/tcp"),
            ("[::1]:8080:80/udp", "[::1]:8080:80/udp"),
            ("[::]:8080", "[::]:8080:8080/tcp"),
            ("8000-8010:9000-9010", "127.0.0.1:8000-8010:9000-9010/tcp"),
            ("8000-8010", "127.0.0.1:8000-8010:8000-8010/tcp"),
            ("1-65535", "127.0.0.1:1-65535:1-65535/tcp"),
            ("8081:80/splice", "127.0.0.1:8081:80/tcp/splice"),
            ("8081:80/tcp/no-splice", "127.0.0.1:8081:80/tcp/no-splice"),
            ("[::1]:8081/loopback", "[::1]:8081:8081/tcp/loopback"),
            ("8081:80/proxy-v1", "127.0.0.1:8081:80/tcp/proxy-v1"),
            ("8081:80/tcp/proxy-v2/splice", "127.0.0.1:8081:80/tcp/splice/proxy-v2"),
            ("8081/tcp/loopback/splice", "127.0.0.1:8081:8081/tcp/splice/loopback"),
        ] {
            assert_eq!(canonical(text), means, "{text}");
            assert_eq!(canonical(means), means, "the canonical form parses back");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        for (text, says) in [
            ("", "`` is not a port"),
            ("0", "`0` is not a port"),
            ("70000", "`70000` is not a port"),
            ("8081:0", "`0` is not a port"),
            ("+80", "`+80` is not a port"),
            ("80 ", "`80 ` is not a port"),
            ("8081:", "`` is not a port"),
            (":80", "`` is not a host address"),
            ("8010-8000", "the port range 8010-8000 is reversed: write 8000-8010"),
            ("8000-8010:9000", "11 host port(s) cannot lead to 1 instance port(s)"),
            ("1-2-3", "`2-3` is not a port"),
            ("localhost:80", "`localhost` is not a host address"),
            ("127.0.0.256:80", "`127.0.0.256` is not a host address"),
            ("80:80:80", "`80` is not a host address"),
            ("::1:8080:80", "an IPv6 address stands in brackets"),
            ("[::1]", "is not a forward"),
            ("[::1]8080", "is not a forward"),
            ("[127.0.0.1]:8080", "`127.0.0.1` is not a host address"),
            ("80/sctp", "`sctp` is not a protocol"),
            ("80/", "`` is not a protocol"),
            ("80/tcp/udp", "`udp` is not a protocol"),
            ("80/udp/splice", "only TCP is spliced"),
            ("80/udp/proxy-v1", "datagrams have no header of the PROXY protocol"),
            ("80/proxy", "expected tcp or udp, and after it splice, no-splice, loopback, proxy-v1"),
            ("80/loopback/no-splice", "is reached by splicing only"),
            ("1.2.3.4:1:2:3", "is not a forward"),
        ] {
            let error = text.parse::<Forward>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn pairs_run_in_step() {
        let forward: Forward = "0.0.0.0:8000-8002:9000-9002".parse().unwrap();
        let pairs: Vec<_> = forward.pairs().map(|(at, port)| (at.port(), port)).collect();
        assert_eq!(pairs, [(8000, 9000), (8001, 9001), (8002, 9002)]);
        assert_eq!(forward.host_ports.count(), 3);
    }

    #[test]
    fn conflicts_follow_what_the_kernel_would_refuse() {
        let conflict = |a: &str, b: &str| {
            let (a, b): (Forward, Forward) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.conflicts(&b), b.conflicts(&a));
            a.conflicts(&b)
        };
        assert!(conflict("8080", "8000-8090"));
        assert!(conflict("0.0.0.0:8080", "8080:80"));
        assert!(!conflict("8080", "8080/udp"));
        assert!(!conflict("[::1]:8080", "8080"));
        assert!(!conflict("127.0.0.2:8080", "127.0.0.1:8080"));
    }

    #[test]
    fn a_message_whose_parts_do_not_go_together_is_refused() {
        let forward: Forward = "8000-8010".parse().unwrap();
        let json = serde_json::to_string(&forward).unwrap();
        assert_eq!(serde_json::from_str::<Forward>(&json).unwrap(), forward);
        assert!(
            serde_json::from_str::<Forward>(&json.replace("[8000,8010]", "[8010,8000]")).is_err()
        );
        let error = |from: &str, to: &str| {
            let message = json.replacen(from, to, 1);
            serde_json::from_str::<Forward>(&message).expect_err(&message).to_string()
        };
        assert!(error("[8000,8010]", "[8000,8000]").contains("both ranges must be equally long"));
        let with = |delivery: &str| format!("\"udp\",\"delivery\":{delivery}");
        assert!(error("\"tcp\"", &with("{\"splice\":true}")).contains("only TCP is spliced"));
        assert!(error("\"tcp\"", &with("{\"proxy\":\"v1\"}")).contains("no header"));
    }
}
