//! Several cards at once.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::discover::all;
use crate::error::Result;
use crate::nat::live;
use crate::{Agreement, Family, Interface, Probe, Prober, PublicPolicy, card_named};

/// How many cards are loaded at a time.
const AT_ONCE: usize = 4;

/// A prober that gives up in time: what has not been told by then has no answer.
#[derive(Debug, Clone)]
pub struct Within<P> {
    prober: P,
    deadline: Instant,
}

impl<P> Within<P> {
    /// For all that is asked, so long from now.
    #[must_use]
    pub fn new(prober: P, limit: Duration) -> Self {
        let now = Instant::now();
        // Without an end is a day here: nobody asks for longer.
        let deadline = now.checked_add(limit).unwrap_or(now + Duration::from_secs(86_400));
        Self { prober, deadline }
    }
}

impl<P: Prober + Sync> Prober for Within<P> {
    async fn probe(&self, probe: Probe, agreement: Agreement) -> Agreement {
        let unheard = agreement.clone();
        timeout_at(self.deadline, self.prober.probe(probe, agreement)).await.unwrap_or(unheard)
    }
}

/// How cards are loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Which addresses count as public.
    pub policy: PublicPolicy,
    /// How many servers have to see the same address.
    pub wanted: usize,
    /// The servers that the NAT in front of each card is tested with; none: it is not. The gateway is asked
    /// for its external address beside them.
    pub nat_servers: Vec<String>,
    /// How long each card may take, and its NAT test again. What is not known by then stays unknown.
    pub within: Duration,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            policy: PublicPolicy::default(),
            wanted: Agreement::WANTED,
            nat_servers: Vec::new(),
            within: Duration::from_secs(6),
        }
    }
}

/// The cards with these names, each with its routes as servers see them, in the order of the names; a few at a
/// time. What is wrong with one harms no other, and routes whose servers are silent lead to neighbours all the
/// same: their external addresses are unknown. Where a NAT test fails or takes too long, the NAT is unknown.
pub async fn load_interfaces<P: Prober + Sync>(
    names: &[impl AsRef<str> + Sync],
    options: &LoadOptions,
    prober: &P,
) -> Vec<(String, Result<Interface>)> {
    let places = Semaphore::new(AT_ONCE);
    let work = names.iter().map(|name| async {
        // The semaphore is never closed.
        let _place = places.acquire().await;
        load(name.as_ref(), options, prober).await
    });
    let loaded = all(work).await;
    names.iter().map(|name| name.as_ref().to_owned()).zip(loaded).collect()
}

async fn load<P: Prober + Sync>(
    name: &str,
    options: &LoadOptions,
    prober: &P,
) -> Result<Interface> {
    let card = card_named(name)?;
    let prober = Within::new(prober, options.within);
    let interface = Interface::load(card, options.policy.clone(), options.wanted, &prober).await;
    if options.nat_servers.is_empty() {
        return Ok(interface);
    }
    let family = interface.supported().next().unwrap_or(Family::Ip4);
    let servers = options.nat_servers.clone();
    let test = live::Options {
        card: Some(name.to_owned()),
        address: interface.route(Some(family)).ok().map(|route| route.bind_address()),
        ..live::Options::new(servers, family)
    };
    let report =
        timeout(options.within, live::test(&test)).await.ok().and_then(std::result::Result::ok);
    Ok(interface.with_nat(report))
}
