//! What the lock of a host guards.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar};
use std::task::Waker;
use std::time::{Duration, Instant};

use netyard_sys::poll::Events;

use crate::driver::Driver;
use crate::resolver::{LookupId, Resolver};
use crate::{Error, Event, Stack};

/// What somebody may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Awaited {
    /// An event of a socket.
    Socket(Event),
    /// The end of a lookup.
    Lookup(LookupId),
}

#[derive(Debug)]
pub(crate) struct State {
    driver: Driver,
    resolver: Resolver,
    sleepers: HashMap<Awaited, Sleepers>,
    /// While the thread sleeps, when it wakes by itself.
    asleep: Option<Option<Instant>>,
    stopping: bool,
    /// Why the stack has ended.
    failure: Option<String>,
    /// To be woken once the lock is let go: a waker may end a task, and with it a socket.
    wakers: Vec<Waker>,
}

/// Who waits for one thing.
#[derive(Debug, Default)]
struct Sleepers {
    bell: Arc<Condvar>,
    /// How often it has rung.
    rings: u64,
    wakers: Vec<Waker>,
}

impl State {
    pub(super) fn new(driver: Driver, resolver: Resolver) -> Self {
        Self {
            driver,
            resolver,
            sleepers: HashMap::new(),
            asleep: None,
            stopping: false,
            failure: None,
            wakers: Vec::new(),
        }
    }

    pub(crate) fn stack(&mut self) -> (&mut Stack, Instant) {
        self.driver.stack()
    }

    /// Begins to look a name up.
    pub(super) fn look_up(&mut self, name: &str) -> io::Result<LookupId> {
        let (stack, now) = self.driver.stack();
        self.resolver.start(stack, now, name)
    }

    /// What a lookup has come to.
    pub(crate) fn take_lookup(&mut self, id: LookupId) -> Result<io::Result<Vec<IpAddr>>, Error> {
        let found = self.resolver.take(id).ok_or(Error::WouldBlock)?;
        self.forget(Awaited::Lookup(id));
        Ok(found)
    }

    /// Nobody wants to know any more.
    pub(crate) fn cancel_lookup(&mut self, id: LookupId) {
        let (stack, now) = self.driver.stack();
        self.resolver.cancel(stack, now, id);
    }

    /// An error if the stack has ended.
    pub(super) fn check(&self) -> io::Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(reason) => {
                let message = format!("the network of this program has ended: {reason}");
                Err(io::Error::new(io::ErrorKind::NetworkDown, message))
            }
        }
    }

    pub(super) fn bell(&mut self, awaited: Awaited) -> (Arc<Condvar>, u64) {
        let sleepers = self.sleepers.entry(awaited).or_default();
        (Arc::clone(&sleepers.bell), sleepers.rings)
    }

    pub(super) fn leave_waker(&mut self, awaited: Awaited, waker: &Waker) {
        let wakers = &mut self.sleepers.entry(awaited).or_default().wakers;
        if !wakers.iter().any(|other| other.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    pub(super) fn forget(&mut self, awaited: Awaited) {
        if let Some(sleepers) = self.sleepers.remove(&awaited) {
            self.wakers.extend(sleepers.wakers);
        }
    }

    pub(super) fn ring(&mut self, awaited: Awaited) {
        if let Some(sleepers) = self.sleepers.get_mut(&awaited) {
            sleepers.rings += 1;
            sleepers.bell.notify_all();
            self.wakers.append(&mut sleepers.wakers);
        }
    }

    /// Sends what there is and tells what has happened: whom to wake, and whether the thread would wake
    /// too late.
    pub(super) fn settle(&mut self) -> (Vec<Waker>, bool) {
        if self.failure.is_none()
            && let Err(error) = self.transmit()
        {
            self.fail(&error);
        }
        let late = match self.asleep {
            None => false,
            Some(_) if self.failure.is_some() => true,
            Some(until) => self.due().is_some_and(|due| until.is_none_or(|until| due < until)),
        };
        if late {
            // Once is enough.
            self.asleep = None;
        }
        (std::mem::take(&mut self.wakers), late)
    }

    fn transmit(&mut self) -> io::Result<()> {
        loop {
            self.driver.transmit()?;
            let (stack, now) = self.driver.stack();
            let Some(event) = stack.poll_event() else { return Ok(()) };
            if self.resolver.handle_event(stack, now, event) {
                while let Some(id) = self.resolver.poll_finished() {
                    self.ring(Awaited::Lookup(id));
                }
            } else {
                self.ring(Awaited::Socket(event));
            }
        }
    }

    /// When the thread has something to do, even if nothing comes.
    fn due(&self) -> Option<Instant> {
        [self.driver.poll_timeout(), self.resolver.poll_timeout()].into_iter().flatten().min()
    }

    /// How long the thread may sleep; `None`: it is not needed any more.
    pub(super) fn fall_asleep(&mut self) -> Option<Option<Duration>> {
        if self.stopping || self.failure.is_some() {
            return None;
        }
        let due = self.due();
        self.asleep = Some(due);
        Some(due.map(|due| due.saturating_duration_since(Instant::now())))
    }

    /// Takes in what has come, and lets what is due happen.
    pub(super) fn wake_up(&mut self, waited: io::Result<()>, events: &Events) {
        self.asleep = None;
        if let Err(error) = waited.and_then(|()| self.driver.take_in(events)) {
            return self.fail(&error);
        }
        let (stack, now) = self.driver.stack();
        self.resolver.handle_timeout(stack, now);
        while let Some(id) = self.resolver.poll_finished() {
            self.ring(Awaited::Lookup(id));
        }
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Everybody hears that it is over.
    fn fail(&mut self, error: &io::Error) {
        self.failure = Some(error.to_string());
        for sleepers in self.sleepers.values_mut() {
            sleepers.rings += 1;
            sleepers.bell.notify_all();
            self.wakers.append(&mut sleepers.wakers);
        }
    }
}
