//! Plans: what is to be made on a machine, step by step, and taken back.
//!
//! # Theory of operation
//!
//! A [`Plan`] is a list of [`Step`]s with a name ("plug web-1"). [`Host::apply`] first checks all of
//! them against the machine, then makes one after the other. When one fails, that one, which may be
//! half done, and those before it are undone in reverse. [`Host::undo`] undoes a plan by its name.
//!
//! Around each step the [journal](Host::open) is written: before it, what will be made and what
//! must be known to take it back (*intent*); after it, that it is there (*done*). A process that is
//! killed at any moment therefore leaves nothing that is not written down: the next start reads
//! the journal and [`Host::recover`]s. An intent without *done* may be made, half made or not made;
//! undoing copes with all three.
//!
//! What is undone must be ours. A journal alone does not prove that: somebody may have removed what
//! we made and made something else in its place. So every object carries a mark from its first
//! moment, and only what carries it is removed:
//!
//! | object | mark |
//! | --- | --- |
//! | link | its group, given in the message that makes it, and from the next message on its alias |
//! | address, route, rule, neighbour | [`PROTOCOL`](crate::rtnetlink::PROTOCOL) |
//! | named namespace | the alias of its loopback link, set before it has the name |
//! | nftables table | its comment, given in the transaction that makes it |
//!
//! What is changed and not made (settings, a card that joins a bridge, addresses that move to it)
//! is put back as the journal says it was, where it still is as we left it. Settings of the whole
//! machine may be wanted by several owners; a [ledger](Options::ledger) that all of them share
//! counts them, and the last one puts the setting back.
//!
//! A reboot takes all of it away by itself. The journal names the boot that it belongs to, and one
//! of another boot is begun anew.

mod host;
mod journal;
mod ledger;
mod step;

use std::fmt;

pub use host::{Drift, Host, Kernel, Options, Progress};
pub use step::{Device, Layer, Pair, Peer, Place, Step};

use crate::error::{Error, Result};
use crate::rtnetlink::Link;

/// Whose things they are: the name of a network or yard. Part of every mark.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(String);

impl Owner {
    /// Longest name, bytes: aliases of links have room for 255 with the name of a plan.
    pub const MAX_LEN: usize = 100;

    /// An owner with this name: letters, digits, `.`, `_` and `-`.
    ///
    /// # Errors
    /// [`Error::Invalid`]: other characters, empty or longer than [`Owner::MAX_LEN`].
    pub fn new(name: &str) -> Result<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > Self::MAX_LEN || !name.bytes().all(plain) {
            return Err(Error::Invalid(format!(
                "{name:?} cannot own links: an owner's name has up to {} letters, digits, \".\", \
                 \"_\" and \"-\"",
                Self::MAX_LEN
            )));
        }
        Ok(Self(name.to_owned()))
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The mark that begins the alias of every link of this owner.
    #[must_use]
    pub fn mark(&self) -> String {
        format!("netyard/{}/", self.0)
    }

    /// The alias of a link that a plan made, and the comment of its tables.
    #[must_use]
    pub fn tag(&self, plan: &str) -> String {
        format!("{}{plan}", self.mark())
    }

    /// The group of every link of this owner: FNV-1a of its mark, far from the small numbers that
    /// people use.
    #[must_use]
    pub fn group(&self) -> u32 {
        const OFFSET_BASIS: u32 = 0x811c_9dc5;
        const PRIME: u32 = 0x0100_0193;
        let hash = self
            .mark()
            .bytes()
            .fold(OFFSET_BASIS, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(PRIME));
        hash >> 2 | 0x4000_0000
    }

    /// Whether a link is this owner's: by its alias, or, before it has one, by its group.
    #[must_use]
    pub fn owns(&self, link: &Link) -> bool {
        match &link.alias {
            Some(alias) => alias.starts_with(&self.mark()),
            None => link.group == self.group(),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is to be made, in order. As text: one line for each step.
#[derive(Debug, Clone)]
pub struct Plan {
    name: String,
    steps: Vec<Step>,
}

impl Plan {
    /// Longest name, bytes.
    pub const MAX_NAME: usize = 120;

    /// One without steps yet. Its name tells it from the owner's other plans and is part of the
    /// alias of its links.
    ///
    /// # Errors
    /// [`Error::Invalid`]: empty, longer than [`Plan::MAX_NAME`], or several lines.
    pub fn new(name: &str) -> Result<Self> {
        if name.is_empty() || name.len() > Self::MAX_NAME || name.contains(char::is_control) {
            return Err(Error::Invalid(format!("{name:?} is not a name for a plan")));
        }
        Ok(Self { name: name.to_owned(), steps: Vec::new() })
    }

    /// With one more step at the end.
    #[must_use]
    pub fn step(mut self, step: impl Into<Step>) -> Self {
        self.steps.push(step.into());
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its steps.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.name)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_have_plain_names_and_groups_of_their_own() {
        let (lan, lan2) = (Owner::new("lan").unwrap(), Owner::new("lan2").unwrap());
        assert_eq!(lan.tag("plug web-1"), "netyard/lan/plug web-1");
        assert!(!lan2.tag("x").starts_with(&lan.mark()), "one name begins the other");
        assert_ne!(lan.group(), lan2.group());
        assert!(lan.group() >= 0x4000_0000 && lan.group() < 0x8000_0000);
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(101)] {
            assert!(Owner::new(bad).is_err(), "{bad}");
        }
        let longest = Owner::new(&"x".repeat(Owner::MAX_LEN)).unwrap();
        let plan = Plan::new(&"y".repeat(Plan::MAX_NAME)).unwrap();
        assert!(longest.tag(plan.name()).len() <= 255, "IFALIASZ");
    }

    #[test]
    fn a_plan_reads_like_a_list() {
        let bridge = crate::rtnetlink::BridgeOptions::default();
        let plan = Plan::new("network lan")
            .unwrap()
            .step(Step::Bridge {
                name: "br1".parse().unwrap(),
                mac: None,
                mtu: None,
                options: bridge,
            })
            .step(Step::Address {
                at: Place::here("br1".parse().unwrap()),
                net: "192.168.1.10/24".parse().unwrap(),
            })
            .step(Step::Sysctl {
                namespace: None,
                key: "net/ipv4/ip_forward".parse().unwrap(),
                value: "1".into(),
            });
        assert_eq!(
            plan.to_string(),
            "network lan:\n  make the bridge br1\n  give br1 the address 192.168.1.10/24\n  \
             set net/ipv4/ip_forward to 1\n"
        );
    }
}
