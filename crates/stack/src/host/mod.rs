//! A stack that runs by itself: a thread of its own, and handles that every thread may use.
//!
//! # Theory of operation
//!
//! One lock guards the stack, its devices and who waits for them ([`state`]). A call on a socket takes the
//! lock, does its work, hands what there is to send to the devices, and lets the lock go: to write needs no
//! other thread. The host's thread sleeps in `epoll_wait(2)` without the lock, and takes it to take in
//! what has come. A call that makes something due earlier than the thread would wake rings it awake.
//!
//! Who finds nothing to read or no room leaves a waker, or waits for the bell of its socket. An event of
//! the socket wakes all of them, and each looks again.

mod patience;
mod socket;
mod state;
mod tcp;
mod udp;
mod udp_options;

use std::io::{self, Read as _, Write};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use std::{fmt, fs};

use netyard_sys::poll::{self, Events, Interest};

use crate::config::{Config, Dns};
use crate::driver::Driver;
use crate::resolver::{Hosts, LookupId, Resolver};
use crate::{Error, Stack};

pub(crate) use self::patience::Patience;
pub(crate) use self::socket::{Socket, hop_limit, ttl};
pub(crate) use self::state::Awaited;
use self::state::State;
pub(crate) use self::tcp::{ListenerHandle, Manner, TcpHandle};
pub(crate) use self::udp::{Place, UdpHandle};
pub(crate) use self::udp_options::udp_options;

/// What the bell of the host's thread is known by: no interface has this number, nor the poll itself.
const BELL: u64 = u64::MAX - 1;

/// The host of this process, once it was asked for.
static PROCESS: Mutex<Option<Host>> = Mutex::new(None);

/// A running stack. It ends with its last handle: this one, its clones, and those of its sockets.
#[derive(Clone)]
pub struct Host(Arc<Owner>);

/// Ends the thread when the last handle goes.
struct Owner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    poll: Arc<poll::Poll>,
    /// Pulled to ring the thread awake, and the end that rings.
    rope: UnixStream,
    bell: UnixStream,
}

impl Host {
    /// Opens the devices of a configuration and starts a stack on them. What `sniff` asks for, and with
    /// `verbose` the configuration, goes to what `output` gives.
    ///
    /// # Errors
    /// Each names the interface and what to do about it.
    pub fn start(config: &Config, output: impl Fn() -> Box<dyn Write + Send>) -> io::Result<Self> {
        Self::run(Driver::start(config, output)?, &config.dns)
    }

    /// The host of this process: the one that `NETYARD_STACK`, or `GONET`, describes. It is started when
    /// it is asked for the first time; lines go to standard error.
    ///
    /// # Errors
    /// `NetworkDown`: neither variable is set; `InvalidInput`: everything that is wrong with the
    /// configuration; what [`Host::start`] says.
    pub fn of_process() -> io::Result<Self> {
        let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = &*process {
            return Ok(host.clone());
        }
        let parsed = Config::from_environment()
            .map_err(|notes| io::Error::new(io::ErrorKind::InvalidInput, notes))?
            .ok_or_else(|| {
                let message = "this program has a network of its own, which is not described: set \
                               NETYARD_STACK or GONET, like GONET='nic id=1 \
                               ether=fe:e1:ba:d0:33:33 dev=tap0; ip nic=1 addr=192.168.1.100/24'";
                io::Error::new(io::ErrorKind::NetworkDown, message)
            })?;
        for warning in &parsed.warnings {
            // Who closed standard error wants no warnings.
            let _ = writeln!(io::stderr(), "netyard-stack: {warning}");
        }
        let host = Self::start(&parsed.config, || Box::new(io::stderr()))?;
        *process = Some(host.clone());
        Ok(host)
    }

    /// Runs a stack on its devices; names are looked up as `dns` says.
    ///
    /// # Errors
    /// The hosts file cannot be read; out of descriptors or threads.
    pub fn run(driver: Driver, dns: &Dns) -> io::Result<Self> {
        let hosts = match &dns.hosts {
            None => Hosts::default(),
            Some(file) => {
                let text = fs::read_to_string(file).map_err(|error| {
                    let message = format!("the hosts file {}: {error}", file.display());
                    io::Error::new(error.kind(), message)
                })?;
                Hosts::parse(&text)
            }
        };
        let resolver = Resolver::new(dns.clone(), hosts, rand::random());
        let (rope, bell) = UnixStream::pair()?;
        rope.set_nonblocking(true)?;
        bell.set_nonblocking(true)?;
        let poll = Arc::clone(driver.poll());
        poll.add(bell.as_fd(), BELL, Interest::Readable)?;
        let state = Mutex::new(State::new(driver, resolver));
        let shared = Arc::new(Shared { state, poll, rope, bell });
        let runs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("stack".to_owned()).spawn(move || runs.run())?;
        Ok(Self(Arc::new(Owner { shared, thread: Some(thread) })))
    }

    /// Lets `call` use the stack itself, and then sends what came of it.
    pub fn with<T>(&self, call: impl FnOnce(&mut Stack, Instant) -> T) -> T {
        let mut state = self.shared().lock();
        let (stack, now) = state.stack();
        let value = call(stack, now);
        self.shared().release(state);
        value
    }

    /// A call on a socket that does not wait.
    pub(crate) fn call<T>(
        &self,
        call: impl FnOnce(&mut Stack, Instant) -> Result<T, Error>,
    ) -> io::Result<T> {
        let mut state = self.shared().lock();
        state.check()?;
        let (stack, now) = state.stack();
        let result = call(stack, now);
        self.shared().release(state);
        result.map_err(Into::into)
    }

    /// A call that waits as long as it comes to [`Error::WouldBlock`], at most until `deadline`.
    pub(crate) fn wait<T>(
        &self,
        awaited: Awaited,
        deadline: Option<Instant>,
        mut call: impl FnMut(&mut State, Instant) -> Result<T, Error>,
    ) -> io::Result<T> {
        let shared = self.shared();
        let mut state = shared.lock();
        loop {
            state.check()?;
            let now = Instant::now();
            let result = call(&mut state, now);
            let in_time = deadline.is_none_or(|deadline| now < deadline);
            if !(in_time && matches!(result, Err(Error::WouldBlock))) {
                shared.release(state);
                return result.map_err(Into::into);
            }
            let (bell, rings) = state.bell(awaited);
            shared.release(state);
            state = shared.lock();
            // What has happened in between rings no more.
            if state.bell(awaited).1 == rings && state.check().is_ok() {
                state = sleep(&bell, state, deadline);
            }
        }
    }

    /// A call that leaves a waker if it comes to [`Error::WouldBlock`].
    pub(crate) fn poll<T>(
        &self,
        context: &Context<'_>,
        awaited: Awaited,
        call: impl FnOnce(&mut State, Instant) -> Result<T, Error>,
    ) -> Poll<io::Result<T>> {
        let shared = self.shared();
        let mut state = shared.lock();
        state.check()?;
        let result = call(&mut state, Instant::now());
        let waits = matches!(result, Err(Error::WouldBlock));
        if waits {
            state.leave_waker(awaited, context.waker());
        }
        shared.release(state);
        if waits { Poll::Pending } else { Poll::Ready(result.map_err(Into::into)) }
    }

    /// Ends a socket, for which nobody waits any more.
    pub(crate) fn close(&self, awaited: Awaited, call: impl FnOnce(&mut State, Instant)) {
        let mut state = self.shared().lock();
        state.forget(awaited);
        call(&mut state, Instant::now());
        self.shared().release(state);
    }

    /// Wakes who waits for a socket: it was changed from here.
    pub(crate) fn wake(&self, awaited: Awaited) {
        let mut state = self.shared().lock();
        state.ring(awaited);
        self.shared().release(state);
    }

    /// Begins to look a name up.
    pub(crate) fn look_up(&self, name: &str) -> io::Result<LookupId> {
        let mut state = self.shared().lock();
        state.check()?;
        let id = state.look_up(name);
        self.shared().release(state);
        id
    }

    /// The addresses of a name, best first. Asks the configuration's hosts file and resolvers.
    ///
    /// # Errors
    /// `NotFound`: no such name; `TimedOut`: no resolver has answered; `NotConnected`: none is
    /// configured.
    pub fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let id = self.look_up(name)?;
        self.wait(Awaited::Lookup(id), None, |state, _| state.take_lookup(id))?
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what there is, lets the lock go, and wakes whom it concerns.
    fn release(&self, mut state: MutexGuard<'_, State>) {
        let (wakers, late) = state.settle();
        drop(state);
        if late {
            // If the rope takes nothing, it was pulled already.
            let _ = (&self.rope).write(&[1]);
        }
        for waker in wakers {
            waker.wake();
        }
    }

    /// The host's thread.
    fn run(&self) {
        let mut events = Events::new();
        loop {
            let mut state = self.lock();
            let Some(timeout) = state.fall_asleep() else { return };
            drop(state);
            let waited = self.poll.wait(&mut events, timeout);
            let mut rings = [0; 64];
            while (&self.bell).read(&mut rings).is_ok_and(|len| len == rings.len()) {}
            let mut state = self.lock();
            state.wake_up(waited, &events);
            self.release(state);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().stop();
        let _ = (&self.shared.rope).write(&[1]);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // It has nothing to tell.
            let _ = thread.join();
        }
    }
}

fn sleep<'a>(
    bell: &Condvar,
    state: MutexGuard<'a, State>,
    deadline: Option<Instant>,
) -> MutexGuard<'a, State> {
    match deadline {
        None => bell.wait(state).unwrap_or_else(PoisonError::into_inner),
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            bell.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
        }
    }
}

/// Sockets of the kernel are, too. What a panic leaves behind its lock is whole: calls change the stack in steps
/// that do not panic, and poison is not minded.
impl UnwindSafe for Host {}
impl RefUnwindSafe for Host {}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}
