//! Routes: by which addresses of a card the outside knows this machine under which addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Answer, Confidence, Family, IpRange};

/// Which card: its name, and its number where that is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CardId {
    /// Its name.
    pub name: Arc<str>,
    /// Its number in this network namespace; `None` for a card of another machine, and for the
    /// interface that stands for whichever card the kernel takes.
    pub index: Option<u32>,
}

/// Why no external address is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Unknown {
    /// Nobody was asked.
    NotAsked,
    /// No server answered.
    NoAnswer,
    /// Servers saw different addresses.
    Disagreement,
    /// The kernel did not let us send from the card's address.
    CannotSend,
    /// Of a block the first address is seen as it is, and the last one is not.
    LastDiffers,
    /// Servers saw this address, which is not public.
    NotPublic(IpAddr),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => f.write_str("not asked"),
            Self::NoAnswer => f.write_str("no server answered"),
            Self::Disagreement => f.write_str("servers disagree"),
            Self::CannotSend => f.write_str("cannot send from this address"),
            Self::LastDiffers => f.write_str("its last address is not seen as it is"),
            Self::NotPublic(seen) => write!(f, "servers see {seen}, which is not public"),
        }
    }
}

/// The external side of a route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum External {
    /// An address or a block of them.
    Known(IpRange),
    /// It is not known; an address is never made up.
    Unknown(Unknown),
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(range) => range.fmt(f),
            Self::Unknown(why) => write!(f, "unknown ({why})"),
        }
    }
}

/// One pairing of addresses of a card with an external address, or a block of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    card: CardId,
    family: Family,
    nic: Vec<IpRange>,
    external: External,
    link_locals: Vec<IpRange>,
    direct: bool,
    confidence: Option<Confidence>,
    evidence: Vec<Answer>,
}

impl Route {
    /// A route whose external address is not known.
    #[must_use]
    pub fn unknown(card: CardId, family: Family, nic: Vec<IpRange>, why: Unknown) -> Self {
        let external = External::Unknown(why);
        Self {
            card,
            family,
            nic,
            external,
            link_locals: Vec::new(),
            direct: false,
            confidence: None,
            evidence: Vec::new(),
        }
    }

    /// A route by which others see `external`, which is not on the card itself: there is translation in
    /// between.
    #[must_use]
    pub fn translated(card: CardId, family: Family, nic: Vec<IpRange>, external: IpRange) -> Self {
        let external = External::Known(external);
        Self { external, ..Self::unknown(card, family, nic, Unknown::NotAsked) }
    }

    /// A route whose addresses on the card are the external ones. That of IPv6 names the card's
    /// link-local addresses on its near side, where it has some.
    #[must_use]
    pub fn direct(card: CardId, range: IpRange, link_locals: &[IpRange]) -> Self {
        let nic = match range.family() {
            Family::Ip6 if !link_locals.is_empty() => link_locals.to_vec(),
            _ => vec![range],
        };
        let direct = Self::translated(card, range.family(), nic, range);
        Self { direct: true, ..direct }.with_link_locals(link_locals)
    }

    /// The same with the card's link-local addresses.
    #[must_use]
    pub fn with_link_locals(mut self, link_locals: &[IpRange]) -> Self {
        self.link_locals = link_locals.to_vec();
        self
    }

    /// The same with what speaks for it.
    #[must_use]
    pub fn with_evidence(mut self, sure: Option<Confidence>, evidence: Vec<Answer>) -> Self {
        self.confidence = sure;
        self.evidence = evidence;
        self
    }

    /// The same, said to be direct or not: what a file says.
    pub(crate) fn said_direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// The card.
    #[must_use]
    pub fn card(&self) -> &CardId {
        &self.card
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// The addresses and blocks on the card.
    #[must_use]
    pub fn nic_ips(&self) -> &[IpRange] {
        &self.nic
    }

    /// The external side.
    #[must_use]
    pub fn external(&self) -> &External {
        &self.external
    }

    /// The external addresses, if they are known.
    #[must_use]
    pub fn ext_ips(&self) -> Option<&IpRange> {
        match &self.external {
            External::Known(range) => Some(range),
            External::Unknown(_) => None,
        }
    }

    /// The link-local addresses of the card.
    #[must_use]
    pub fn link_locals(&self) -> &[IpRange] {
        &self.link_locals
    }

    /// The first address on the card; the address of no card if the route, of a file, has none.
    #[must_use]
    pub fn nic(&self) -> IpAddr {
        self.nic.first().map_or_else(|| self.family.unspecified(), IpRange::first)
    }

    /// The first external address.
    #[must_use]
    pub fn ext(&self) -> Option<IpAddr> {
        self.ext_ips().map(IpRange::first)
    }

    /// The first link-local address of the card.
    #[must_use]
    pub fn link_local(&self) -> Option<IpAddr> {
        self.link_locals.first().map(IpRange::first)
    }

    /// The external addresses are the card's own: nothing translates in between.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// How sure the external address is; `None`: it is not known, or nobody said.
    #[must_use]
    pub fn confidence(&self) -> Option<Confidence> {
        self.confidence
    }

    /// What servers said.
    #[must_use]
    pub fn evidence(&self) -> &[Answer] {
        &self.evidence
    }

    /// The address that a socket has to be bound to, to leave by this route: of IPv4 the near side, of
    /// IPv6 the far side if that is on the card, else the near side.
    #[must_use]
    pub fn bind_address(&self) -> IpAddr {
        match (self.family, self.ext()) {
            (Family::Ip6, Some(external)) if self.direct => external,
            _ => self.nic(),
        }
    }

    /// True if both have external addresses in common.
    #[must_use]
    pub fn same_ext(&self, other: &Self) -> bool {
        let overlap = |one: &IpRange| other.ext_ips().map(|two| one.overlaps(two));
        self.ext_ips().and_then(overlap) == Some(true)
    }

    /// The route to use just one of the external addresses. Where they are the card's own, so is the
    /// near side of the result.
    pub(crate) fn narrowed(&self, range: &IpRange, external: IpAddr) -> Self {
        let one = IpRange::host(external).on_link(range.scope());
        let nic = if self.direct && self.nic.iter().any(|near| near.same(range)) {
            vec![one]
        } else {
            self.nic.clone()
        };
        Self { nic, external: External::Known(one), ..self.clone() }
    }

    /// The route to use just this address of the card; `None`: it is not one of the route's.
    pub(crate) fn only(&self, address: IpAddr) -> Option<Self> {
        let external = self.ext_ips().filter(|range| self.direct && range.contains(address));
        if let Some(range) = external {
            return Some(self.narrowed(range, address));
        }
        let near = self.nic.iter().find(|range| range.contains(address))?;
        let near = if near.is_host() { *near } else { IpRange::host(address) };
        Some(Self { nic: vec![near], ..self.clone() })
    }

    /// Takes in the near side of another route to the same external addresses.
    pub(crate) fn merge(&mut self, other: Self) {
        for range in other.nic {
            if !self.nic.iter().any(|known| known.same(&range)) {
                self.nic.push(range);
            }
        }
        for range in other.link_locals {
            if !self.link_locals.contains(&range) {
                self.link_locals.push(range);
            }
        }
        // The surer one is on top.
        self.confidence = match (self.confidence, other.confidence) {
            (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
        self.direct |= other.direct;
        self.evidence.extend(other.evidence);
    }
}

/// `[192.168.0.20, 193.168.0.0/16] -> [1.3.3.7]`; the alternate form counts what is on the card.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (number, range) in self.nic.iter().enumerate() {
            let between = if number == 0 { "" } else { ", " };
            f.write_str(between)?;
            fmt::Display::fmt(range, f)?;
        }
        match &self.external {
            External::Known(range) => write!(f, "] -> [{range}]"),
            External::Unknown(why) => write!(f, "] -> unknown: {why}"),
        }
    }
}

impl Family {
    /// The address that stands for all of this machine's.
    pub(crate) const fn unspecified(self) -> IpAddr {
        match self {
            Self::Ip4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::Ip6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}
