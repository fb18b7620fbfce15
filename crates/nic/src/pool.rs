//! All routes of one family, which count, index and iterate as if every external address had a route of
//! its own.

use std::net::IpAddr;
use std::ops::RangeBounds;

use crate::range::bounds;
use crate::{Family, Interface, IpRange, NicError, PerFamily, Result, Route};

/// The routes of one family.
///
/// A route to a block stands for as many routes as the block has usable addresses; they are made as they
/// are asked for. Routes whose external address is not known are in [`RoutePool::routes`] only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutePool {
    routes: Vec<Route>,
    /// Where each route's external addresses end, counted over all.
    ends: Vec<u128>,
    /// How many have been handed out by [`RoutePool::pop`].
    taken: u128,
}

impl RoutePool {
    /// A pool of these routes, in this order. Those to the same external addresses become one, which has
    /// all of their addresses on the card.
    #[must_use]
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Self {
        let mut pool = Self::default();
        for route in routes {
            let same = |known: &&mut Route| match (known.ext_ips(), route.ext_ips()) {
                (Some(ours), Some(theirs)) => ours.same(theirs) && known.card() == route.card(),
                _ => false,
            };
            match pool.routes.iter_mut().find(same) {
                Some(known) => known.merge(route),
                None => pool.routes.push(route),
            }
        }
        let mut end = 0_u128;
        for route in &pool.routes {
            end = end.saturating_add(route.ext_ips().map_or(0, IpRange::len));
            pool.ends.push(end);
        }
        pool
    }

    /// The pools of an interface's routes for just these addresses of its card.
    ///
    /// # Errors
    /// One is in no route of the interface.
    pub fn from_ips(nic: &Interface, ips: &[IpAddr]) -> Result<PerFamily<Self>> {
        let mut pools = PerFamily::<Self>::default();
        for family in Family::BOTH {
            let ips = ips.iter().filter(|ip| Family::of(**ip) == family);
            let routes: Result<Vec<_>> = ips
                .map(|ip| {
                    let found = nic.rp(family).routes().iter().find_map(|route| route.only(*ip));
                    let card = nic.name().to_owned();
                    found.ok_or(NicError::NotOnCard { card, address: *ip })
                })
                .collect();
            *pools.get_mut(family) = Self::new(routes?);
        }
        Ok(pools)
    }

    /// How many external addresses there are.
    #[must_use]
    pub fn len(&self) -> u128 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// True if no external address is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The routes, blocks as blocks.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The route to use one external address alone; negative numbers count from the end. Where the
    /// external addresses are the card's own, the address on the card goes with the number.
    #[must_use]
    pub fn get(&self, index: i128) -> Option<Route> {
        match u128::try_from(index) {
            Ok(index) => self.at(index),
            Err(_) => self.at(self.len().checked_sub(index.unsigned_abs())?),
        }
    }

    /// The route to use one external address alone.
    #[must_use]
    pub fn at(&self, index: u128) -> Option<Route> {
        let number = self.ends.partition_point(|end| *end <= index);
        let route = self.routes.get(number)?;
        let before = number.checked_sub(1).and_then(|number| self.ends.get(number)).unwrap_or(&0);
        let range = route.ext_ips()?;
        Some(route.narrowed(range, range.at(index.checked_sub(*before)?)))
    }

    /// A route for each external address.
    #[must_use]
    pub fn iter(&self) -> PoolIter<'_> {
        self.slice(..)
    }

    /// The routes with these numbers; as many of them as there are.
    pub fn slice(&self, indexes: impl RangeBounds<u128>) -> PoolIter<'_> {
        let (front, back) = bounds(&indexes, self.len());
        PoolIter { pool: self, front, back }
    }

    /// Hands out one external address after the other; `None` once each was.
    pub fn pop(&mut self) -> Option<Route> {
        let route = self.at(self.taken)?;
        self.taken += 1;
        Some(route)
    }

    /// The route under which the outside knows us by this address.
    #[must_use]
    pub fn find(&self, external: IpAddr) -> Option<&Route> {
        self.routes.iter().find(|it| it.ext_ips().is_some_and(|range| range.contains(external)))
    }

    /// Up to `limit` routes under other external addresses than this one, blocks as blocks.
    #[must_use]
    pub fn alternatives(&self, to: &Route, limit: usize) -> Vec<Route> {
        let others = self.routes.iter().filter(|it| it.ext_ips().is_some() && !it.same_ext(to));
        others.take(limit).cloned().collect()
    }
}

impl<'a> IntoIterator for &'a RoutePool {
    type Item = Route;
    type IntoIter = PoolIter<'a>;

    fn into_iter(self) -> PoolIter<'a> {
        self.iter()
    }
}

/// Routes of a pool, one for each external address, made as they are asked for.
#[derive(Debug, Clone)]
pub struct PoolIter<'a> {
    pool: &'a RoutePool,
    front: u128,
    back: u128,
}

impl Iterator for PoolIter<'_> {
    type Item = Route;

    fn next(&mut self) -> Option<Route> {
        self.nth(0)
    }

    fn nth(&mut self, skip: usize) -> Option<Route> {
        self.front = self.front.saturating_add(skip as u128).min(self.back);
        let index = (self.front < self.back).then_some(self.front)?;
        self.front += 1;
        self.pool.at(index)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.back - self.front);
        (left.unwrap_or(usize::MAX), left.ok())
    }
}

impl DoubleEndedIterator for PoolIter<'_> {
    fn next_back(&mut self) -> Option<Route> {
        self.back = (self.front < self.back).then(|| self.back - 1)?;
        self.pool.at(self.back)
    }
}
