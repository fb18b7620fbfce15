//! Which routes a card has: its addresses, and as whom servers outside see them.
//!
//! The work is done by [`Discovery`], which sends nothing: it says what to ask and takes what was
//! answered. The rules, for each family:
//!
//! * Addresses that are deprecated, tentative or taken by another machine are left alone. The one that the
//!   kernel sends from comes first, those that are there for a while last.
//! * All private addresses are one group: the first one is asked for, and the answer holds for all.
//! * Every public address or block is asked for by its first usable address. If that is what servers see,
//!   the whole block is taken as valid and is a route to itself. If they see another one, it is used as
//!   if it were private: the route leads from the whole block to what they see.
//! * Routes to the same external address become one, which keeps all addresses of the card.
//! * Of IPv6 every direct route names the card's link-local addresses on its near side. Unique local
//!   addresses are asked for only where there is no public address.
//! * What is not known is said to be unknown, with the reason.

use std::future::{self, Future};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::Poll;

use crate::{
    AddressClass, AddressState, Agreement, Answer, Card, CardAddress, CardId, Confidence, Family,
    IpRange, PerFamily, Probe, Prober, PublicPolicy, Route, RoutePool, Unknown, Verdict,
};

/// How many questions are under way at a time.
const AT_ONCE: usize = 8;

/// Addresses that the outside sees alike.
#[derive(Debug)]
struct Group {
    family: Family,
    ranges: Vec<IpRange>,
    public: bool,
    /// About the first usable address; of some groups it is not asked.
    first: Option<Question>,
    /// About the last one of a block, if that is to be seen too.
    last: Option<Question>,
}

/// As whom does the outside see this address?
#[derive(Debug)]
struct Question {
    address: IpAddr,
    asked: bool,
    answer: Option<Agreement>,
}

impl Question {
    const fn about(address: IpAddr) -> Self {
        Self { address, asked: false, answer: None }
    }

    /// True if servers see the address as it is.
    fn is_itself(&self) -> bool {
        let verdict = self.answer.as_ref().map(Agreement::verdict);
        matches!(verdict, Some(Verdict::Seen(seen, _)) if seen == self.address)
    }
}

/// Finds the routes of one card, without sending anything itself.
///
/// Ask what [`Discovery::poll_probe`] says, in any order and at the same time; hand what comes of it to
/// [`Discovery::handle_agreement`]; then [`Discovery::finish`]. What has not been asked by then is
/// unknown.
#[derive(Debug)]
pub struct Discovery {
    card: CardId,
    policy: PublicPolicy,
    sources: PerFamily<Option<IpAddr>>,
    link_locals: Vec<IpRange>,
    groups: Vec<Group>,
}

impl Discovery {
    /// Begins with what is known of a card.
    #[must_use]
    pub fn new(card: &Card, policy: PublicPolicy) -> Self {
        let link_local = |it: &&CardAddress| it.class() == AddressClass::LinkLocal;
        let ready = |it: &&CardAddress| it.state == AddressState::Ready;
        let of_v6 = card.addresses(Family::Ip6).filter(ready).filter(link_local);
        let link_locals = of_v6.map(|it| it.range.on_link(card.index)).collect();
        let groups = Family::BOTH.iter().flat_map(|family| groups(card, *family, &policy));
        let groups = groups.collect();
        Self { card: card.id(), policy, sources: card.source, link_locals, groups }
    }

    /// The same, asking of each public block about its last usable address too.
    #[must_use]
    pub fn verifying_last(mut self) -> Self {
        for group in self.groups.iter_mut().filter(|group| group.public) {
            let block = group.ranges.first().filter(|range| range.get(-1) != range.first());
            group.last = block.map(|range| Question::about(range.get(-1)));
        }
        self
    }

    fn questions(&mut self) -> impl Iterator<Item = &mut Question> {
        self.groups.iter_mut().flat_map(|group| group.first.iter_mut().chain(&mut group.last))
    }

    /// The next question.
    pub fn poll_probe(&mut self) -> Option<Probe> {
        let card = self.card.index;
        let question = self.questions().find(|question| !question.asked)?;
        question.asked = true;
        Some(Probe { card, from: question.address })
    }

    /// What came of a question.
    pub fn handle_agreement(&mut self, probe: &Probe, agreement: Agreement) {
        let is_meant = |question: &&mut Question| question.asked && question.address == probe.from;
        if let Some(question) = self.questions().find(is_meant) {
            question.answer = Some(agreement);
        }
    }

    /// Asks everything, of servers `wanted` of which have to agree, and finishes.
    pub async fn ask<P: Prober + Sync>(
        mut self,
        wanted: usize,
        prober: &P,
    ) -> PerFamily<RoutePool> {
        loop {
            let probes: Vec<_> = std::iter::from_fn(|| self.poll_probe()).take(AT_ONCE).collect();
            if probes.is_empty() {
                return self.finish();
            }
            let asked = probes.iter().map(|it| prober.probe(it.clone(), Agreement::new(wanted)));
            for (probe, agreement) in probes.iter().zip(all(asked).await) {
                self.handle_agreement(probe, agreement);
            }
        }
    }

    /// The routes: first that of the address which the kernel sends from, then by external address, then
    /// those whose external address is not known.
    #[must_use]
    pub fn finish(mut self) -> PerFamily<RoutePool> {
        let groups = std::mem::take(&mut self.groups);
        let mut routes: Vec<_> = groups.into_iter().flat_map(|group| self.routes(group)).collect();
        let by_default = |route: &Route| {
            let source = *self.sources.get(route.family());
            source.is_some_and(|source| {
                route.nic_ips().iter().chain(route.ext_ips()).any(|range| range.contains(source))
            })
        };
        routes.sort_by_key(|route| {
            (!by_default(route), route.ext_ips().is_none(), route.ext_ips().copied())
        });
        let (ip4, ip6) = routes.into_iter().partition::<Vec<_>, _>(|it| it.family() == Family::Ip4);
        PerFamily { ip4: RoutePool::new(ip4), ip6: RoutePool::new(ip6) }
    }

    /// The route of a group; of a block whose last address is seen otherwise that of its first one, and the
    /// rest.
    fn routes(&self, group: Group) -> Vec<Route> {
        let Group { family, ranges, public, first, last } = group;
        let is_direct = first.as_ref().is_some_and(Question::is_itself);
        let otherwise = last.filter(|last| is_direct && !last.is_itself());
        let (Some(block), Some(last)) = (ranges.first().copied(), otherwise) else {
            return vec![self.route(family, ranges, public, first)];
        };
        let evidence = last.answer.map(Agreement::into_answers).unwrap_or_default();
        let rest = Route::unknown(self.card.clone(), family, vec![block], Unknown::LastDiffers)
            .with_link_locals(self.link_locals_of(family))
            .with_evidence(None, evidence);
        vec![self.route(family, vec![IpRange::host(block.first())], public, first), rest]
    }

    fn route(
        &self,
        family: Family,
        ranges: Vec<IpRange>,
        public: bool,
        question: Option<Question>,
    ) -> Route {
        let asked = question.as_ref().map(|question| question.address);
        let answer = question.and_then(|question| question.answer);
        let verdict = answer.as_ref().map(Agreement::verdict);
        let evidence = answer.map(Agreement::into_answers).unwrap_or_default();
        let unknown = |why, evidence: Vec<Answer>| {
            Route::unknown(self.card.clone(), family, ranges.clone(), why)
                .with_link_locals(self.link_locals_of(family))
                .with_evidence(None, evidence)
        };
        let found = verdict.map_or(Err(Unknown::NotAsked), |it| external(it, &self.policy));
        let (seen, confidence) = match found {
            Ok(found) => found,
            Err(why) => return unknown(why, evidence),
        };
        let link_locals = self.link_locals_of(family);
        let route = match ranges.first() {
            Some(range) if public && asked == Some(seen) => {
                Route::direct(self.card.clone(), *range, link_locals)
            }
            _ => Route::translated(self.card.clone(), family, ranges, IpRange::host(seen))
                .with_link_locals(link_locals),
        };
        route.with_evidence(Some(confidence), evidence)
    }

    fn link_locals_of(&self, family: Family) -> &[IpRange] {
        match family {
            Family::Ip4 => &[],
            Family::Ip6 => &self.link_locals,
        }
    }
}

/// What a verdict says of the external address.
pub(crate) fn external(
    verdict: Verdict,
    policy: &PublicPolicy,
) -> Result<(IpAddr, Confidence), Unknown> {
    match verdict {
        Verdict::Silence => Err(Unknown::NoAnswer),
        Verdict::Disagreement => Err(Unknown::Disagreement),
        Verdict::CannotSend => Err(Unknown::CannotSend),
        Verdict::Seen(seen, _) if !policy.is_public(seen) => Err(Unknown::NotPublic(seen)),
        Verdict::Seen(seen, confidence) => Ok((seen, confidence)),
    }
}

/// The groups of a family.
fn groups(card: &Card, family: Family, policy: &PublicPolicy) -> Vec<Group> {
    let source = *card.source.get(family);
    let mut usable: Vec<_> =
        card.addresses(family).filter(|it| it.state == AddressState::Ready).collect();
    let is_source = |range: &IpRange| source.is_some_and(|source| range.base() == source);
    usable.sort_by_key(|address| (!is_source(&address.range), address.temporary));
    let mut private = Vec::new();
    let mut groups = Vec::new();
    for address in usable {
        let range = address.range;
        let public = policy.is_public(range.base());
        match address.class() {
            _ if public => groups.push(Group {
                family,
                ranges: vec![range],
                public,
                first: Some(Question::about(range.first())),
                last: None,
            }),
            AddressClass::LinkLocal | AddressClass::Loopback | AddressClass::Multicast => {}
            _ => private.push(range),
        }
    }
    // The private ones come first, unless the kernel sends from a public one.
    if let Some(first) = private.first().map(IpRange::first) {
        let futile = family == Family::Ip6 && !groups.is_empty();
        let first = (!futile).then(|| Question::about(first));
        groups.insert(0, Group { family, ranges: private, public: false, first, last: None });
    }
    groups
}

/// Finds the routes of a card by asking servers, `wanted` of which have to agree.
pub async fn discover<P: Prober + Sync>(
    card: &Card,
    policy: PublicPolicy,
    wanted: usize,
    prober: &P,
) -> PerFamily<RoutePool> {
    Discovery::new(card, policy).ask(wanted, prober).await
}

/// Waits for all of them, at the same time; the results are in their order.
pub(crate) async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    future::poll_fn(|context| {
        for (future, result) in running.iter_mut().filter(|(_, result)| result.is_none()) {
            if let Poll::Ready(value) = Pin::as_mut(future).poll(context) {
                *result = Some(value);
            }
        }
        match running.iter().all(|(_, result)| result.is_some()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    running.into_iter().filter_map(|(_, result)| result).collect()
}
