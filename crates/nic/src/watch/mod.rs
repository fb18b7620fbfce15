//! What changes: the kernel's notices, gathered, and the difference that they have made.
//!
//! A notice only says that it is time to look. [`Debounce`] says when, [`difference`] says what is
//! different from the last look; so nothing is missed where notices were lost. [`Monitor`] is both, on the
//! kernel's socket and clocks.
//!
//! How the outside sees this machine is nothing that the kernel tells. [`Vigil`] says when to look, and what is
//! different; [`NatMonitor`] looks, by asking STUN servers.

mod debounce;
mod difference;
mod monitor;
mod vigil;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram as StdSocket;
use std::time::{Duration, Instant};

use netyard_link::rtnetlink::Watch;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::time::sleep_until;

pub use debounce::{Debounce, LONGEST, QUIET, Sleeper};
pub use difference::{Change, Event, Way, Weight, difference};
pub use monitor::NatMonitor;
pub use vigil::{EVERY, Vigil, Wanted};

use crate::error::{NicError, Result};
use crate::{Card, cards};

/// How often it is looked whether the machine has slept.
const CLOCKS: Duration = Duration::from_secs(15);

/// What a failure says that was wanted.
const WATCH: &str = "watch the cards";

/// Watches the cards of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Monitor {
    notices: Watch,
    /// A duplicate of the socket of the notices, for nothing but its readiness: the runtime takes any
    /// descriptor as a socket without unsafe code.
    readiness: UnixDatagram,
    debounce: Debounce,
    sleeper: Sleeper,
    cards: Vec<Card>,
}

impl Monitor {
    /// Begins to watch. It has to be called, and used, in a tokio runtime with IO and time, on a thread
    /// that stays in the network namespace.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open() -> Result<Self> {
        // Notices first, so that none is missed behind the look.
        let notices = Watch::open(None)?;
        let cards = cards()?;
        let readiness = || {
            let duplicate = StdSocket::from(notices.as_fd().try_clone_to_owned()?);
            duplicate.set_nonblocking(true)?;
            UnixDatagram::from_std(duplicate)
        };
        let readiness = readiness().map_err(|source| NicError::Io { wanted: WATCH, source })?;
        let sleeper = Sleeper::new(Instant::now(), since_start()?);
        Ok(Self { notices, readiness, debounce: Debounce::default(), sleeper, cards })
    }

    /// The cards as they were at the last look.
    #[must_use]
    pub fn cards(&self) -> &[Card] {
        &self.cards
    }

    /// Waits until something is different, and says what. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn changed(&mut self) -> Result<Change> {
        loop {
            let clocks = Instant::now() + CLOCKS;
            let due = self.debounce.poll_timeout().map_or(clocks, |due| due.min(clocks));
            tokio::select! {
                read = self.readiness.async_io(Interest::READABLE, || read(&mut self.notices)) => {
                    read.map_err(|source| NicError::Io { wanted: WATCH, source })??;
                    self.debounce.handle_notice(Instant::now());
                }
                () = sleep_until(due.into()) => {}
            }
            let now = Instant::now();
            let asleep = self.sleeper.handle_clocks(now, since_start()?);
            if (self.debounce.handle_timeout(now) || asleep.is_some())
                && let Some(change) = self.look(asleep)?
            {
                return Ok(change);
            }
        }
    }

    fn look(&mut self, asleep: Option<Duration>) -> Result<Option<Change>> {
        let now = cards()?;
        let change = difference(&self.cards, &now, asleep);
        self.cards = now;
        Ok(change)
    }
}

/// Takes the notices that there are; `WouldBlock`: there are none.
fn read(notices: &mut Watch) -> io::Result<netyard_link::Result<()>> {
    let mut some = false;
    loop {
        match notices.next_change() {
            Ok(Some(_)) => some = true,
            Ok(None) if some => return Ok(Ok(())),
            Ok(None) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// The time since the machine was started, asleep or not: the first number of `/proc/uptime`.
fn since_start() -> Result<Duration> {
    const FILE: &str = "/proc/uptime";
    let failed =
        |source| NicError::Io { wanted: "read the time since the start of the machine", source };
    let text = fs::read_to_string(FILE).map_err(failed)?;
    let seconds = text.split(' ').next().and_then(|seconds| seconds.parse().ok());
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        failed(io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {text:?}")))
    })
}
