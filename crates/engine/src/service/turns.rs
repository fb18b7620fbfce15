//! The turns of one service: who gets them, who has had them, and what came of it.
//!
//! They are given by the network's own thread, or by the proxy's where every request takes one, so
//! they are shared; nobody holds them for longer than one turn takes.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::affinity::Affinity;
use super::ring::Ring;
use super::{Turn, TurnKey};
use crate::control::{ServiceInstance, TurnState};

/// The turns of one service. Clones are the same turns.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Of all instances.
    port: u16,
    /// How long a client is kept with its instance.
    kept_for: Option<Duration>,
    /// In the order of the list.
    instances: Vec<Instance>,
    /// Removed, with connections still open or opening.
    draining: Vec<Instance>,
    /// Those that may get new connections.
    ring: Ring,
    affinity: Affinity,
    refused: u64,
}

#[derive(Debug)]
struct Instance {
    key: TurnKey,
    spec: ServiceInstance,
    turns: u64,
    failed: u64,
    /// Turns without an outcome yet.
    opening: u64,
    open: u64,
}

/// What was counted.
#[derive(Debug)]
pub(super) struct Counted {
    /// Those that drain stand behind the others.
    pub(super) instances: Vec<(ServiceInstance, TurnState)>,
    pub(super) refused: u64,
    pub(super) clients: u64,
    pub(super) clients_not_kept: u64,
}

impl Turns {
    /// Takes the next turn, see [`super::Services::next`].
    #[must_use]
    pub fn next(&self, tried: &[TurnKey]) -> Option<Turn> {
        self.lock().next(tried)
    }

    /// Takes a turn for a client, see [`super::Services::next_for`].
    #[must_use]
    pub fn next_for(&self, now: Instant, client: IpAddr, tried: &[TurnKey]) -> Option<Turn> {
        self.lock().next_for(now, client, tried)
    }

    /// Outcome of a turn: the instance has answered.
    pub fn opened(&self, turn: TurnKey) {
        self.outcome(turn, |instance| {
            instance.opening = instance.opening.saturating_sub(1);
            instance.open += 1;
        });
    }

    /// Outcome of a turn: the instance refused or did not answer.
    pub fn failed(&self, turn: TurnKey) {
        self.outcome(turn, |instance| {
            instance.opening = instance.opening.saturating_sub(1);
            instance.failed += 1;
        });
    }

    /// Outcome of a turn: the client went away before the instance answered.
    pub fn abandoned(&self, turn: TurnKey) {
        self.outcome(turn, |instance| {
            instance.opening = instance.opening.saturating_sub(1);
        });
    }

    /// What was opened has ended.
    pub fn closed(&self, turn: TurnKey) {
        self.outcome(turn, |instance| {
            instance.open = instance.open.saturating_sub(1);
        });
    }

    /// The instances that may get new connections.
    #[must_use]
    pub fn eligible(&self) -> Vec<TurnKey> {
        self.lock().eligible().map(|instance| instance.key).collect()
    }

    /// Whether this instance may.
    pub(super) fn is_eligible(&self, turn: TurnKey) -> bool {
        self.lock().eligible().any(|instance| instance.key == turn)
    }

    /// True if some instance may.
    pub(super) fn is_available(&self) -> bool {
        self.lock().eligible().next().is_some()
    }

    /// All but those that drain.
    pub(super) fn instances(&self) -> Vec<ServiceInstance> {
        self.lock().instances.iter().map(|instance| instance.spec.clone()).collect()
    }

    /// The instances that a client may not reach, as `permits` says of the address and port of each, and whom a
    /// decision about the client is about: one that it may reach, if there is any.
    pub(crate) fn barred(
        &self,
        permits: impl Fn(SocketAddr) -> bool,
    ) -> (Vec<TurnKey>, Option<SocketAddr>) {
        let inner = self.lock();
        let at = |it: &Instance| SocketAddr::new(it.spec.address4.into(), inner.port);
        let (reached, barred): (Vec<_>, Vec<_>) =
            inner.instances.iter().partition(|it| permits(at(it)));
        let about = reached.first().or(barred.first()).map(|it| at(it));
        (barred.into_iter().map(|it| it.key).collect(), about)
    }

    pub(super) fn counted(&self) -> Counted {
        let inner = self.lock();
        let all = inner.instances.iter().chain(&inner.draining);
        let instances = all.map(|instance| {
            let Instance { opening, open, .. } = *instance;
            let state = TurnState {
                turns: instance.turns,
                failed: instance.failed,
                opening,
                open,
                draining: !instance.spec.eligible && opening + open > 0,
            };
            (instance.spec.clone(), state)
        });
        Counted {
            instances: instances.collect(),
            refused: inner.refused,
            clients: inner.affinity.clients(),
            clients_not_kept: inner.affinity.not_kept(),
        }
    }

    /// Replaces the instances; those with the same name and addresses stay the same instance.
    pub(super) fn replace(
        &self,
        wanted: Vec<ServiceInstance>,
        port: u16,
        kept_for: Option<Duration>,
        new_key: &mut impl FnMut() -> TurnKey,
    ) {
        let mut inner = self.lock();
        inner.port = port;
        inner.kept_for = kept_for;
        inner.replace(wanted, new_key);
    }

    /// Says whether an instance may get new connections; `None` if there is none of this name.
    pub(super) fn set_eligible(&self, instance: &str, eligible: bool) -> Option<TurnKey> {
        let mut inner = self.lock();
        let found = inner.instances.iter_mut().find(|found| found.spec.name == instance)?;
        found.spec.eligible = eligible;
        let key = found.key;
        inner.change_ring();
        Some(key)
    }

    fn outcome(&self, turn: TurnKey, record: impl FnOnce(&mut Instance)) {
        let mut inner = self.lock();
        let Inner { instances, draining, .. } = &mut *inner;
        let mut all = instances.iter_mut().chain(draining);
        if let Some(instance) = all.find(|instance| instance.key == turn) {
            record(instance);
            inner.forget_drained();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instance {
    /// It gets a connection.
    fn take_turn(&mut self, port: u16) -> Turn {
        self.turns += 1;
        self.opening += 1;
        let ServiceInstance { address4, address6, .. } = self.spec;
        Turn { key: self.key, address4, address6, port }
    }
}

impl Inner {
    fn eligible(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|instance| instance.spec.eligible)
    }

    fn next(&mut self, tried: &[TurnKey]) -> Option<Turn> {
        let Self { ring, instances, port, .. } = self;
        let found = ring.upcoming().zip(1..).find_map(|(name, turns)| {
            let index = instances.iter().position(|instance| instance.spec.name == name)?;
            let untried = !tried.contains(&instances.get(index)?.key);
            untried.then_some((index, turns))
        });
        let Some((index, turns)) = found else {
            self.refused += 1;
            return None;
        };
        ring.advance(turns);
        instances.get_mut(index).map(|instance| instance.take_turn(*port))
    }

    fn next_for(&mut self, now: Instant, client: IpAddr, tried: &[TurnKey]) -> Option<Turn> {
        let Some(time) = self.kept_for else { return self.next(tried) };
        let kept = self.affinity.instance_of(now, client).filter(|key| !tried.contains(key));
        let kept =
            kept.and_then(|key| self.instances.iter_mut().find(|instance| instance.key == key));
        let turn = match kept {
            Some(instance) => instance.take_turn(self.port),
            None => self.next(tried)?,
        };
        self.affinity.keep(now, client, turn.key, time);
        Some(turn)
    }

    fn replace(&mut self, wanted: Vec<ServiceInstance>, new_key: &mut impl FnMut() -> TurnKey) {
        let same = |old: &Instance, new: &ServiceInstance| {
            old.spec.name == new.name
                && old.spec.address4 == new.address4
                && old.spec.address6 == new.address6
        };
        let mut old: Vec<Instance> =
            self.instances.drain(..).chain(self.draining.drain(..)).collect();
        for spec in wanted {
            let instance = match old.iter().position(|old| same(old, &spec)) {
                Some(index) => Instance { spec, ..old.swap_remove(index) },
                None => Instance { key: new_key(), spec, turns: 0, failed: 0, opening: 0, open: 0 },
            };
            self.instances.push(instance);
        }
        for instance in &mut old {
            instance.spec.eligible = false;
        }
        self.draining = old;
        self.change_ring();
        self.forget_drained();
    }

    /// Brings the ring, and whose clients are kept, up to date with who may get connections.
    fn change_ring(&mut self) {
        let ring = self.eligible().map(|it| (it.spec.name.as_str(), it.spec.weight));
        let ring = self.ring.change_to(ring);
        let keys: Vec<TurnKey> = self.eligible().map(|instance| instance.key).collect();
        self.ring = ring;
        match self.kept_for {
            Some(_) => self.affinity.retain(&keys),
            None => self.affinity = Affinity::default(),
        }
    }

    fn forget_drained(&mut self) {
        self.draining.retain(|instance| instance.open + instance.opening > 0);
    }
}
