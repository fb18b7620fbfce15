//! Virtual time, and the threads that wait in it.
//!
//! packetdrill runs a script on one thread and the calls that may block on another, and compares when each
//! ends with what the script says. So time must not go on while a call that could end has not ended: whoever
//! lets it go on waits first until all others have had their turn. A thread is *asleep* in a call
//! that finds nothing to do, *restless* from the moment something has happened until it sleeps again or has
//! come back for something else (to ask for the time), and of no concern otherwise. The thread that has made
//! the clock does not sleep: where it would wait it lets the time go on itself, as nobody else does.

use std::collections::{HashMap, HashSet};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// What the time is said to be at the start: seconds since 1970.
const EPOCH: Duration = Duration::from_secs(1_000_000_000);
/// How far the time goes on with each look at it. packetdrill looks again and again, without sleeping,
/// during the last 20 us before an event.
const CREEP: Duration = Duration::from_micros(1);

#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    now: Instant,
    /// Who lets the time go on.
    driver: ThreadId,
    /// Threads in calls that wait, and until when.
    asleep: HashMap<ThreadId, Option<Instant>>,
    restless: HashSet<ThreadId>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let start = Instant::now();
        let driver = thread::current().id();
        Self { start, now: start, driver, asleep: HashMap::new(), restless: HashSet::new() }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// The time as a program is told: since 1970.
    pub(crate) fn told(&self, at: Instant) -> Duration {
        EPOCH + at.saturating_duration_since(self.start)
    }

    /// The time, for somebody who looks until it has come.
    pub(crate) fn look(&mut self) -> Duration {
        let told = self.told(self.now);
        self.now += CREEP;
        told
    }

    /// Lets the time go on; it never goes back.
    pub(crate) fn advance(&mut self, to: Instant) {
        self.now = self.now.max(to);
        let now = self.now;
        let due = |until: &Option<Instant>| until.is_some_and(|until| until <= now);
        self.rouse(|until| due(until));
    }

    /// When the first of those who are asleep gives up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.asleep.values().flatten().min().copied()
    }

    /// True if the calling thread is the one that lets the time go on.
    pub(crate) fn is_driver(&self) -> bool {
        self.driver == thread::current().id()
    }

    /// The calling thread is back, and has nothing left to tell of the past.
    pub(crate) fn enter(&mut self) {
        self.restless.remove(&thread::current().id());
    }

    pub(crate) fn fall_asleep(&mut self, until: Option<Instant>) {
        self.enter();
        self.asleep.insert(thread::current().id(), until);
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.contains_key(&thread::current().id())
    }

    /// Something has happened: everybody looks again.
    pub(crate) fn wake_all(&mut self) {
        self.rouse(|_| true);
    }

    fn rouse(&mut self, whom: impl Fn(&Option<Instant>) -> bool) {
        let roused = self.asleep.extract_if(|_, until| whom(until));
        self.restless.extend(roused.map(|(thread, _)| thread));
    }

    /// True if nobody has a turn that is not over.
    pub(crate) fn is_settled(&self) -> bool {
        self.restless.is_empty()
    }

    /// Nobody waits for the others any more: they have not come back.
    pub(crate) fn give_up(&mut self) {
        self.restless.clear();
    }
}
