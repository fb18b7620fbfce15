//! Opening a connection into the network: which instance, from which address, how long.
//!
//! The host's kernel has already accepted the client of a forward; the client's data waits in its
//! socket while the guest is asked. An instance of a service that refuses or is silent costs its
//! turn, and the next one is asked; the client notices nothing.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::delivery::Delivery;
use crate::service::{ServiceId, TurnKey};

/// How long one instance of a service may take to answer a SYN.
const INSTANCE_PATIENCE: Duration = Duration::from_secs(1);
/// How long the guest of a forward may take.
const GUEST_PATIENCE: Duration = Duration::from_secs(15);
/// First retransmission of a SYN; a guest is one hop away, so sooner than RFC 6298's 1 s.
const SYN_RETRY: Duration = Duration::from_millis(250);
/// The longest pause between two of them: a guest that is still booting is found soon after.
const MAX_SYN_RETRY: Duration = Duration::from_millis(500);

/// Names one `dial`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DialId(pub u64);

/// Where a connection into the network leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// One guest, by both its addresses.
    Guest {
        /// Its IPv4 address.
        address4: Ipv4Addr,
        /// Its IPv6 address.
        address6: Ipv6Addr,
        /// TCP port.
        port: u16,
    },
    /// Exactly this address.
    Address(SocketAddr),
    /// The instances of a service in turn.
    Service {
        /// The service.
        service: ServiceId,
        /// TCP port of its instances.
        port: u16,
    },
}

/// The state of an inbound connection that is not open yet.
#[derive(Debug)]
pub(super) struct Opening {
    /// Who connects; for `dial` the unspecified address.
    pub(super) client: SocketAddr,
    pub(super) target: Target,
    pub(super) delivery: Delivery,
    pub(super) dial: Option<(DialId, Instant)>,
    /// Instances that were asked, or may not be.
    pub(super) tried: Vec<TurnKey>,
    /// Addresses that are left to ask before the next instance.
    pub(super) candidates: VecDeque<SocketAddr>,
    /// Whether the one guest of a forward was asked.
    pub(super) asked: bool,
    /// When the SYN is sent again.
    retry_at: Instant,
    retry_after: Duration,
    /// When this attempt is over.
    gives_up_at: Instant,
}

impl Opening {
    pub(super) fn new(
        now: Instant,
        client: SocketAddr,
        target: Target,
        delivery: Delivery,
        dial: Option<(DialId, Instant)>,
    ) -> Self {
        Self {
            client,
            target,
            delivery,
            dial,
            tried: Vec::new(),
            candidates: VecDeque::new(),
            asked: false,
            retry_at: now,
            retry_after: SYN_RETRY,
            gives_up_at: now,
        }
    }

    /// The addresses of one instance or guest to try, the client's own family first. A program
    /// that listens on IPv4 only is still found from an IPv6 client; on loopback many listen on IPv6 only.
    pub(super) fn set_candidates(&mut self, address4: Ipv4Addr, address6: Ipv6Addr, port: u16) {
        self.candidates.clear();
        if self.client.is_ipv6() {
            self.candidates.push_back(SocketAddr::new(IpAddr::V6(address6), port));
        }
        self.candidates.push_back(SocketAddr::new(IpAddr::V4(address4), port));
        if self.client.is_ipv4() && self.delivery.loopback {
            self.candidates.push_back(SocketAddr::new(IpAddr::V6(address6), port));
        }
    }

    /// A new address is tried now.
    pub(super) fn begin_attempt(&mut self, now: Instant) {
        let patience = match self.target {
            Target::Service { .. } => INSTANCE_PATIENCE,
            Target::Guest { .. } | Target::Address(_) => GUEST_PATIENCE,
        };
        self.gives_up_at = now + patience;
        if let Some((_, until)) = self.dial {
            self.gives_up_at = self.gives_up_at.min(until);
        }
        self.retry_after = SYN_RETRY;
        self.retry_at = now + SYN_RETRY;
    }

    /// The SYN was sent again.
    pub(super) fn retried(&mut self, now: Instant) {
        self.retry_after = (self.retry_after * 2).min(MAX_SYN_RETRY);
        self.retry_at = now + self.retry_after;
    }

    pub(super) fn deadline(&self) -> Instant {
        self.retry_at.min(self.gives_up_at)
    }

    pub(super) fn overdue(&self, now: Instant) -> bool {
        now >= self.gives_up_at
    }

    pub(super) fn retry_due(&self, now: Instant) -> bool {
        now >= self.retry_at
    }

    /// The dial has run out of time as a whole.
    pub(super) fn expired(&self, now: Instant) -> bool {
        self.dial.is_some_and(|(_, until)| now >= until)
    }
}
