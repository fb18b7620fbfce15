//! Who is at the other end of what a rule is about, as people write it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use netyard_wire::dns::Name;

/// Somebody at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// These addresses outside.
    Net(IpNet),
    /// What the guest was told, by the network's own DNS, that this name stands for, outside.
    Name(Pattern),
    /// Another instance of the network.
    Instance(Instance),
}

/// Other instances of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instance {
    /// All of them.
    All,
    /// That of this name.
    Named(String),
    /// Those with an address of these.
    Net(IpNet),
}

/// What stands before the name of an instance.
const INSTANCE: &str = "instance:";

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
        if let Some(instance) = text.strip_prefix(INSTANCE) {
            return instance.parse().map(Self::Instance);
        }
        if let Some(net) = net(text)? {
            return Ok(Self::Net(net));
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
                "a prefix like \"203.0.113.0/24\", an address, a name like \"example.org\", all \
                      names below one like \"*.example.org\", or \"instance:NAME\""
                    .to_owned(),
            ),
        }
    }
}

impl FromStr for Instance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        match net(text)? {
            Some(net) => Ok(Self::Net(net)),
            None if text == "*" => Ok(Self::All),
            None if !text.is_empty() && text.bytes().all(plain) => Ok(Self::Named(text.to_owned())),
            None => Err("the name of an instance like \"instance:web\", addresses of some like \
                         \"instance:192.168.127.64/26\", or all with \"instance:*\""
                .to_owned()),
        }
    }
}

/// A prefix or an address.
fn net(text: &str) -> Result<Option<IpNet>, String> {
    let address = text.split('/').next().and_then(|address| address.parse::<Ipv6Addr>().ok());
    if let Some(plain) = address.and_then(|address| address.to_ipv4_mapped()) {
        return Err(format!("such clients count by their IPv4 address: write one of {plain}"));
    }
    match text.parse::<IpNet>() {
        Ok(net) if net == net.trunc() => Ok(Some(net)),
        Ok(net) => Err(format!("a prefix without host bits: write \"{}\"", net.trunc())),
        Err(_) => Ok(text.parse::<IpAddr>().ok().map(IpNet::from)),
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => show_net(net, f),
            Self::Name(Pattern { name, below }) => {
                write!(f, "{}{name}", if *below { "*." } else { "" })
            }
            Self::Instance(instance) => {
                f.write_str(INSTANCE)?;
                match instance {
                    Instance::All => f.write_str("*"),
                    Instance::Named(name) => f.write_str(name),
                    Instance::Net(net) => show_net(net, f),
                }
            }
        }
    }
}

/// A prefix; one of a single address as that.
fn show_net(net: &IpNet, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match net.prefix_len() == net.max_prefix_len() {
        true => fmt::Display::fmt(&net.addr(), f),
        false => fmt::Display::fmt(net, f),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_are_read_as_they_are_written() {
        for text in [
            "203.0.113.0/24",
            "203.0.113.7",
            "2001:db8::/32",
            "example.org",
            "*.x.example",
            "instance:web-1",
            "instance:*",
            "instance:192.168.127.64/26",
            "instance:fd00::7",
        ] {
            assert_eq!(text.parse::<Remote>().unwrap().to_string(), text);
        }
        for text in [
            "203.0.113.7/24",
            "",
            "*",
            "*.",
            "a b",
            "300.1.2.3",
            "*example.org",
            "10.1",
            "instance:",
            "instance:a b",
            "instance:*.a",
        ] {
            assert!(text.parse::<Remote>().is_err(), "{text}");
        }
    }
}
