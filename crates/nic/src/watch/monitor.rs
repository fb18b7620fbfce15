//! The external address and the NAT over time, on this machine's own sockets.

use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use super::vigil::{Vigil, Wanted};
use super::{Change, Event, Monitor, Way, Weight};
use crate::error::Result;
use crate::{Family, Look, Seen};

/// Watches the cards, and how the outside sees what leaves by the default ones.
#[derive(Debug)]
pub struct NatMonitor {
    monitor: Monitor,
    look: Look,
    vigils: Vec<Vigil>,
}

impl NatMonitor {
    /// Begins to watch these families; see [`Monitor::open`]. What `look` names is asked at once, after
    /// major changes, and `every` so often.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(look: Look, families: &[Family], every: Duration) -> Result<Self> {
        let now = Instant::now();
        let vigils = families.iter().map(|family| Vigil::new(*family, every, now)).collect();
        Ok(Self { monitor: Monitor::open()?, look, vigils })
    }

    /// Waits until something is different, and says what; first of all what there is.
    ///
    /// When the future is dropped a look that is under way is lost, and taken again.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn changed(&mut self) -> Result<Change> {
        loop {
            let due = self.vigils.iter().filter_map(Vigil::poll_timeout).min();
            let timeout = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = self.monitor.changed() => {
                    let change = change?;
                    let now = Instant::now();
                    self.vigils.iter_mut().for_each(|vigil| vigil.handle_change(now, &change));
                    return Ok(change);
                }
                () = timeout => {}
            }
            let events = self.look().await;
            if !events.is_empty() {
                return Ok(Change { weight: Weight::Major, events });
            }
        }
    }

    /// Looks for what is due.
    async fn look(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for vigil in &mut self.vigils {
            let mut attempt = vigil.clone();
            let Some(wanted) = attempt.handle_timeout(Instant::now()) else { continue };
            let seen = see(&self.monitor, &self.look, attempt.family(), wanted).await;
            events.extend(attempt.handle_seen(Instant::now(), seen.as_ref()));
            *vigil = attempt;
        }
        events
    }
}

async fn see(monitor: &Monitor, look: &Look, family: Family, wanted: Wanted) -> Option<Seen> {
    let way = Way::outwards(monitor.cards(), family)?;
    let card = monitor.cards().iter().find(|card| card.name == way.card)?;
    Some(look.from(card, way.source?, wanted == Wanted::Everything).await)
}
