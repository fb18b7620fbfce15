//! Which client is led to which instance again, and for how long.
//!
//! A client is an address. It keeps its instance for a time after each of its new connections, and
//! loses it when the instance may not get any more. The table is bounded: a client that finds it full
//! of others takes turns like everybody, and is counted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::TurnKey;

/// Clients of one service that are kept at most, some dozen bytes each. In bridge mode as many of each
/// family.
pub const MAX_CLIENTS: u32 = 65_536;

/// The clients of one service.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    clients: HashMap<IpAddr, Kept>,
    /// No client's time ends before.
    ends_first: Option<Instant>,
    not_kept: u64,
}

#[derive(Debug)]
struct Kept {
    instance: TurnKey,
    until: Instant,
}

impl Affinity {
    /// The instance that a client had last.
    pub(super) fn instance_of(&self, now: Instant, client: IpAddr) -> Option<TurnKey> {
        self.clients.get(&client).filter(|kept| kept.until > now).map(|kept| kept.instance)
    }

    /// A client has a connection to an instance now, and keeps that for a time.
    pub(super) fn keep(&mut self, now: Instant, client: IpAddr, instance: TurnKey, time: Duration) {
        let full = self.clients.len() >= MAX_CLIENTS as usize;
        if full && !self.clients.contains_key(&client) {
            self.forget_ended(now);
            if self.clients.len() >= MAX_CLIENTS as usize {
                self.not_kept += 1;
                return;
            }
        }
        let until = now + time;
        self.clients.insert(client, Kept { instance, until });
        self.ends_first = Some(self.ends_first.map_or(until, |first| first.min(until)));
    }

    /// Forgets the clients of all other instances.
    pub(super) fn retain(&mut self, instances: &[TurnKey]) {
        self.clients.retain(|_, kept| instances.contains(&kept.instance));
    }

    /// How many are in the table.
    pub(super) fn clients(&self) -> u64 {
        u64::try_from(self.clients.len()).unwrap_or(u64::MAX)
    }

    /// How many connections found it full.
    pub(super) fn not_kept(&self) -> u64 {
        self.not_kept
    }

    /// Forgets whose time is over. Looks at all of them only if there may be one.
    fn forget_ended(&mut self, now: Instant) {
        if self.ends_first.is_some_and(|first| first > now) {
            return;
        }
        self.clients.retain(|_, kept| kept.until > now);
        self.ends_first = self.clients.values().map(|kept| kept.until).min();
    }
}
