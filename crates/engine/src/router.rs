//! Router advertisements (RFC 4861 section 6.2): when to send one, and what it says.
//!
//! An [`Advertiser`] is asked about each solicitation and about the time; whoever drives it sends.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use netyard_wire::icmp::Prefix;
use netyard_wire::router::RouterAdvertisement;
use netyard_wire::{Frame, MacAddr, build};
use rand::{Rng, RngExt as _};

use crate::config::Config;
use crate::context::Context;
use crate::edge::PlugId;
use crate::neighbor::ALL_NODES;

/// MaxRtrAdvInterval and MinRtrAdvInterval, the defaults of RFC 4861 section 6.2.1.
const MAX_INTERVAL: Duration = Duration::from_secs(600);
const MIN_INTERVAL: Duration = Duration::from_secs(200);

/// RFC 4861 section 10: the first advertisements come faster, solicited ones are delayed at random,
/// and between two to all nodes this much time passes.
const MAX_INITIAL_ADVERTISEMENTS: u8 = 3;
const MAX_INITIAL_INTERVAL: Duration = Duration::from_secs(16);
const MAX_DELAY: Duration = Duration::from_millis(500);
const MIN_DELAY_BETWEEN: Duration = Duration::from_secs(3);

/// RFC 4861 section 6.2.1: AdvDefaultLifetime is three times the longest interval. RFC 8106
/// section 5.1 recommends the same for resolvers. Seconds.
pub const LIFETIME: u16 = 1_800;

/// When one router of one link advertises.
#[derive(Debug)]
pub struct Advertiser {
    /// The next one to all nodes.
    due: Instant,
    /// The last one to all nodes.
    last: Option<Instant>,
    /// How many of the first ones are still to come.
    initial: u8,
}

impl Advertiser {
    /// A router that begins to advertise now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { due: now + MAX_INITIAL_INTERVAL, last: None, initial: MAX_INITIAL_ADVERTISEMENTS }
    }

    /// Handles a solicitation (RFC 4861 section 6.2.6). Who has an address gets an advertisement of
    /// its own: the address is returned. Who has none yet gets one to all nodes, soon.
    pub fn handle_solicitation(
        &mut self,
        now: Instant,
        source: Ipv6Addr,
        rng: &mut impl Rng,
    ) -> Option<Ipv6Addr> {
        if !source.is_unspecified() {
            return Some(source);
        }
        let soon = now + rng.random_range(Duration::ZERO..=MAX_DELAY);
        let earliest = self.last.map_or(now, |last| last + MIN_DELAY_BETWEEN);
        self.due = self.due.min(soon.max(earliest));
        None
    }

    /// True if an advertisement to all nodes is to be sent now.
    pub fn handle_timeout(&mut self, now: Instant, rng: &mut impl Rng) -> bool {
        if now < self.due {
            return false;
        }
        self.last = Some(now);
        let interval = rng.random_range(MIN_INTERVAL..=MAX_INTERVAL);
        self.initial = self.initial.saturating_sub(1);
        let first = if self.initial > 0 { MAX_INITIAL_INTERVAL } else { MAX_INTERVAL };
        self.due = now + interval.min(first);
        true
    }

    /// When [`Advertiser::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.due
    }
}

/// What the gateway of a network tells. Guests get their addresses by DHCPv6: the network would not
/// take packets from one that a guest has made itself.
fn advertisement(config: &Config) -> RouterAdvertisement {
    RouterAdvertisement {
        hop_limit: build::HOP_LIMIT,
        managed: true,
        other: true,
        lifetime: LIFETIME,
        source_mac: Some(config.gateway_mac),
        mtu: Some(config.mtu.into()),
        prefixes: vec![Prefix {
            address: config.subnet6.network(),
            len: config.subnet6.prefix_len(),
            on_link: true,
            autonomous: false,
            valid: u32::MAX,
            preferred: u32::MAX,
        }],
        dns: vec![config.gateway6()],
        search: config.search().filter_map(|domain| domain.parse().ok()).collect(),
        dns_lifetime: LIFETIME.into(),
    }
}

/// Sends the gateway's advertisement to one guest.
fn send(cx: &mut Context<'_>, plug: PlugId, mac: MacAddr, to: Ipv6Addr) {
    let config = cx.config;
    let offload = build::router_advertisement_frame(
        cx.scratch,
        config.gateway_mac,
        mac,
        config.gateway_link_local(),
        to,
        &advertisement(config),
    );
    cx.edge.transmit(plug, Frame { bytes: cx.scratch, offload });
}

impl Advertiser {
    /// Answers a guest's solicitation.
    pub(crate) fn answer(
        &mut self,
        cx: &mut Context<'_>,
        plug: PlugId,
        mac: MacAddr,
        source: Ipv6Addr,
    ) {
        if let Some(to) = self.handle_solicitation(cx.now, source, cx.rng) {
            send(cx, plug, mac, to);
        }
    }

    /// Sends what is due to all nodes behind `plugs`.
    pub(crate) fn advertise(&mut self, cx: &mut Context<'_>, plugs: impl Iterator<Item = PlugId>) {
        if self.handle_timeout(cx.now, cx.rng) {
            for plug in plugs {
                send(cx, plug, MacAddr::ipv6_multicast(ALL_NODES), ALL_NODES);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    const HOST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    fn seconds(advertiser: &Advertiser, since: Instant) -> f64 {
        advertiser.poll_timeout().duration_since(since).as_secs_f64()
    }

    #[test]
    fn advertisements_begin_fast_and_go_on_within_bounds() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut now = Instant::now();
        let mut advertiser = Advertiser::new(now);
        for count in 0..50 {
            let pause = seconds(&advertiser, now);
            let bounds = if count < 3 { 16.0..=16.0 } else { 200.0..=600.0 };
            assert!(bounds.contains(&pause), "{count}: {pause}");
            let early = advertiser.poll_timeout() - Duration::from_millis(1);
            assert!(!advertiser.handle_timeout(early, &mut rng));
            now = advertiser.poll_timeout();
            assert!(advertiser.handle_timeout(now, &mut rng));
        }
    }

    #[test]
    fn who_has_an_address_is_answered_and_the_rhythm_stays() {
        let mut rng = SmallRng::seed_from_u64(1);
        let now = Instant::now();
        let mut advertiser = Advertiser::new(now);
        let due = advertiser.poll_timeout();
        assert_eq!(advertiser.handle_solicitation(now, HOST, &mut rng), Some(HOST));
        assert_eq!(advertiser.poll_timeout(), due);
    }

    #[test]
    fn who_has_none_makes_one_to_all_come_soon_but_not_too_often() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut now = Instant::now();
        let mut advertiser = Advertiser::new(now);
        let mut ask = |advertiser: &mut Advertiser, now| {
            assert_eq!(advertiser.handle_solicitation(now, Ipv6Addr::UNSPECIFIED, &mut rng), None);
        };
        ask(&mut advertiser, now);
        assert!(seconds(&advertiser, now) <= 0.5);
        now = advertiser.poll_timeout();
        assert!(advertiser.handle_timeout(now, &mut SmallRng::seed_from_u64(2)));
        ask(&mut advertiser, now);
        assert_eq!(advertiser.poll_timeout(), now + MIN_DELAY_BETWEEN);
    }
}
