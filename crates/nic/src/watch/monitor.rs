//! The external address and the NAT over time, on this machine's own sockets.

use std::fmt;
use std::future::pending;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use super::vigil::{Vigil, Wanted};
use super::{Change, Event, Monitor, Way, Weight};
use crate::discover::all;
use crate::error::Result;
use crate::{Family, Look, Seen};

/// A look of each family that was due.
type Looking = Pin<Box<dyn Future<Output = Vec<(Family, Option<Seen>)>> + Send>>;

/// Watches the cards, and how the outside sees what leaves by the default ones.
pub struct NatMonitor {
    monitor: Monitor,
    look: Look,
    vigils: Vec<Vigil>,
    /// The look that is under way.
    looking: Option<Looking>,
}

impl fmt::Debug for NatMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("NatMonitor");
        debug.field("monitor", &self.monitor).field("look", &self.look);
        debug.field("vigils", &self.vigils).field("is_looking", &self.looking.is_some()).finish()
    }
}

impl NatMonitor {
    /// Begins to watch these families; see [`Monitor::open`]. What `look` names is asked at once, after
    /// major changes, and `every` so often; because of changes each five seconds at most.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(look: Look, families: &[Family], every: Duration) -> Result<Self> {
        let now = Instant::now();
        let vigils = families.iter().map(|family| Vigil::new(*family, every, now)).collect();
        Ok(Self { monitor: Monitor::open()?, look, vigils, looking: None })
    }

    /// Waits until something is different, and says what; first of all what there is. Changes of cards are
    /// told while a look is under way, too.
    ///
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn changed(&mut self) -> Result<Change> {
        loop {
            let now = Instant::now();
            let due = self.vigils.iter().filter_map(Vigil::poll_timeout).min();
            if self.looking.is_none() && due.is_some_and(|due| due <= now) {
                self.looking = Some(self.begin(now));
            }
            let looking = self.looking.as_mut();
            let is_looking = looking.is_some();
            let seen = async {
                match looking {
                    Some(looking) => looking.await,
                    None => pending().await,
                }
            };
            let timeout = async {
                match due {
                    Some(due) if !is_looking => sleep_until(due.into()).await,
                    _ => pending().await,
                }
            };
            tokio::select! {
                change = self.monitor.changed() => {
                    let change = change?;
                    if change.weight == Weight::Major {
                        // What it would see is no longer so.
                        self.looking = None;
                    }
                    let now = Instant::now();
                    self.vigils.iter_mut().for_each(|vigil| vigil.handle_change(now, &change));
                    return Ok(change);
                }
                seen = seen => {
                    self.looking = None;
                    let events = self.handle_seen(seen);
                    if !events.is_empty() {
                        return Ok(Change { weight: Weight::Major, events });
                    }
                }
                () = timeout => {}
            }
        }
    }

    /// Begins to look for what is due, in all families at once.
    fn begin(&mut self, now: Instant) -> Looking {
        let mut looks = Vec::new();
        for vigil in &mut self.vigils {
            let Some(wanted) = vigil.handle_timeout(now) else { continue };
            let family = vigil.family();
            let from = Way::outwards(self.monitor.cards(), family).and_then(|way| {
                let card = self.monitor.cards().iter().find(|card| card.name == way.card)?;
                Some((card.clone(), way.source?))
            });
            let look = self.look.clone();
            looks.push(async move {
                let seen = match from {
                    Some((card, source)) => {
                        Some(look.from(&card, source, wanted == Wanted::Everything).await)
                    }
                    None => None,
                };
                (family, seen)
            });
        }
        Box::pin(async move { all(looks.into_iter()).await })
    }

    /// Takes what was seen; returns what is different.
    fn handle_seen(&mut self, seen: Vec<(Family, Option<Seen>)>) -> Vec<Event> {
        let now = Instant::now();
        let mut events = Vec::new();
        for (family, seen) in seen {
            if let Some(vigil) = self.vigils.iter_mut().find(|vigil| vigil.family() == family) {
                events.extend(vigil.handle_seen(now, seen.as_ref()));
            }
        }
        events
    }
}
