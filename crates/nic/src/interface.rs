//! An interface: a card, its routes of both families, and what is known of the NAT in front of it.

use std::sync::Arc;

use crate::enumerate::ways_out;
use crate::error::{NicError, Result};
use crate::nat::NatReport;
use crate::schema::Unread;
use crate::{
    Card, CardId, Discovery, Family, IpRange, PerFamily, Prober, PublicPolicy, Route, RoutePool,
    Unknown, discover,
};

/// A card with its routes.
#[derive(Debug, Clone, PartialEq)]
pub struct Interface {
    card: Card,
    rp: PerFamily<RoutePool>,
    nat: Option<NatReport>,
    /// What a file says beside what is read here.
    pub(crate) unread: Unread,
}

impl Interface {
    /// Name of the interface that stands for whichever card the kernel takes.
    pub const DEFAULT: &str = "default";

    /// The interface that stands for whichever card the kernel takes: of each family that has a way to
    /// the outside one route, from the address that the kernel would send from. Nothing is sent and
    /// nobody is waited for; external addresses are unknown.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn default_lite() -> Result<Self> {
        let ways = ways_out()?;
        let id = CardId { name: Arc::from(Self::DEFAULT), index: None };
        let pool = |family| {
            let source = ways.get(family).as_ref().and_then(|way| way.source);
            let route = source.map(|source| {
                let nic = vec![IpRange::host(source)];
                Route::unknown(id.clone(), family, nic, Unknown::NotAsked)
            });
            RoutePool::new(route)
        };
        let rp = PerFamily { ip4: pool(Family::Ip4), ip6: pool(Family::Ip6) };
        let there = |family| Some(ways.get(family).is_some());
        let default = PerFamily { ip4: there(Family::Ip4), ip6: there(Family::Ip6) };
        Ok(Self::new(Card { default, ..Card::named(Self::DEFAULT) }, rp))
    }

    /// A card with these routes.
    #[must_use]
    pub fn new(card: Card, rp: PerFamily<RoutePool>) -> Self {
        Self { card, rp, nat: None, unread: Unread::default() }
    }

    /// A card with the routes that it has without asking anybody: their external addresses are unknown.
    #[must_use]
    pub fn unasked(card: Card) -> Self {
        let rp = Discovery::new(&card, PublicPolicy::default()).finish();
        Self::new(card, rp)
    }

    /// A card with its routes as servers see them, of which `wanted` have to agree.
    pub async fn load<P: Prober + Sync>(
        card: Card,
        policy: PublicPolicy,
        wanted: usize,
        prober: &P,
    ) -> Self {
        let rp = discover(&card, policy, wanted, prober).await;
        Self::new(card, rp)
    }

    /// The same with what a test has found out about the NAT.
    #[must_use]
    pub fn with_nat(mut self, nat: Option<NatReport>) -> Self {
        self.nat = nat;
        self
    }

    /// Its card.
    #[must_use]
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Its card's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.card.name
    }

    /// Its routes of a family.
    #[must_use]
    pub fn rp(&self, family: Family) -> &RoutePool {
        self.rp.get(family)
    }

    /// Its routes of a family, to hand out addresses from.
    pub fn rp_mut(&mut self, family: Family) -> &mut RoutePool {
        self.rp.get_mut(family)
    }

    /// What is known of the NAT; `None`: it was never tested.
    #[must_use]
    pub fn nat(&self) -> Option<&NatReport> {
        self.nat.as_ref()
    }

    /// The families that it has routes of, IPv4 first.
    pub fn supported(&self) -> impl Iterator<Item = Family> {
        Family::BOTH.into_iter().filter(|family| !self.rp(*family).routes().is_empty())
    }

    /// The first route of a family; of the first family that has one if none is named.
    ///
    /// # Errors
    /// There is none.
    pub fn route(&self, family: Option<Family>) -> Result<Route> {
        let family = family.or_else(|| self.supported().next()).unwrap_or(Family::Ip4);
        let none = || NicError::NoRoute { card: self.card.name.clone(), family };
        self.rp(family).routes().first().cloned().ok_or_else(none)
    }

    /// The first route of a family; of each family that has one, the preferred one first, if none is named.
    ///
    /// # Errors
    /// There is none.
    pub fn ways(&self, family: Option<Family>) -> Result<Vec<Route>> {
        let families: Vec<_> = match family {
            Some(_) => vec![family],
            None => self.supported().map(Some).collect(),
        };
        match families.is_empty() {
            true => self.route(None).map(|route| vec![route]),
            false => families.into_iter().map(|family| self.route(family)).collect(),
        }
    }

    /// Whether the kernel sends by it what goes to the outside; `None`: nobody has asked.
    #[must_use]
    pub fn is_default(&self, family: Family) -> Option<bool> {
        *self.card.default.get(family)
    }

    /// Every address and block of its routes, with the route.
    pub fn nic_ips(&self) -> impl Iterator<Item = (IpRange, &Route)> {
        let routes = Family::BOTH.into_iter().flat_map(|family| self.rp(family).routes());
        routes.flat_map(|route| route.nic_ips().iter().map(move |range| (*range, route)))
    }
}

/// An interface for each family: IPv4 may use one card and IPv6 another one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AfGroup {
    interfaces: PerFamily<Option<Interface>>,
}

impl AfGroup {
    /// Of several interfaces the first one that has routes of a family is that family's.
    #[must_use]
    pub fn new(interfaces: impl IntoIterator<Item = Interface>) -> Self {
        let mut group = Self::default();
        for interface in interfaces {
            for family in interface.supported() {
                group.interfaces.get_mut(family).get_or_insert_with(|| interface.clone());
            }
        }
        group
    }

    /// The interface of a family.
    #[must_use]
    pub fn get(&self, family: Family) -> Option<&Interface> {
        self.interfaces.get(family).as_ref()
    }
}

impl From<Interface> for AfGroup {
    fn from(interface: Interface) -> Self {
        Self::new([interface])
    }
}
