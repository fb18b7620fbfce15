//! The init of an instance: the process that makes its namespaces and is pid 1 in them.
//!
//! Two processes of the same program run this file. The *first* is started by the keeper, makes
//! the namespaces, clones the second and ends. The *second* is pid 1 of the new PID namespace and,
//! like the first, a child of the keeper. When it ends the kernel kills every process of the
//! namespace, so an instance is gone when its init is gone; and init goes when the keeper does:
//! by the death signal, or at the latest when it sees the end of the control connection.
//!
//! Networks that move their packets themselves may ask init for sockets of the namespace, over connections that its
//! keeper lays: what comes in by host ports is joined to those. The program has no part in that, and no way to it.
//!
//! Init never ends before its keeper wants it to: a program may be started again in the same
//! namespaces with the same addresses.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use netyard_sys::capability::Capabilities;
use netyard_sys::namespace::{self, Namespaces};
use netyard_sys::poll::{Events, Interest, Poll};
use netyard_sys::process::{self, Cloned, Launch, PidFd, Session, Signals};
use netyard_sys::seqpacket::SeqPacket;
use netyard_sys::supply;
use netyard_sys::tap::Tap;
use netyard_sys::wait;

use super::message::{self, Failure, Offloads, Order, Report, Start, Step};
use super::{program, setup, signal};

/// What programs of the instance can still get by file capabilities: tools like `ping` carry
/// them, and the kernel refuses to start a tool whose file capabilities are out of reach. They
/// mean no more than the instance's own network.
pub(super) const BOUNDING: Capabilities =
    Capabilities::NET_BIND_SERVICE.union(Capabilities::NET_RAW);

/// How long killed processes of the last run may take to go before the program starts again.
const CLEARING: Duration = Duration::from_secs(5);

/// The hidden verb `instance-init`: standard input is the connection to the keeper.
#[must_use]
pub fn init_main() -> ExitCode {
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned().map(SeqPacket::from) else {
        return ExitCode::FAILURE;
    };
    match first(&control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(End::KeeperGone) => ExitCode::FAILURE,
        Err(End::Failed(failure)) => {
            // If this does not arrive either, the keeper sees the end of the connection.
            let _ = message::send(&control, &Report::Failed(failure), &[]);
            ExitCode::FAILURE
        }
    }
}

/// Why init ends before it was told to.
enum End {
    /// The keeper is gone, or talks nonsense.
    KeeperGone,
    /// A step did not work.
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<io::Error> for End {
    /// An error of the control connection.
    fn from(_: io::Error) -> Self {
        Self::KeeperGone
    }
}

/// The first process: makes the namespaces and the second process.
fn first(control: &SeqPacket) -> Result<(), End> {
    let failed = |what: &str, error: io::Error| Failure::new(Step::Namespaces, what, &error);
    process::die_with_parent().map_err(|error| failed("die with the keeper", error))?;
    namespace::unshare(Namespaces::INSTANCE)
        .map_err(|error| failed("make user, network, mount, PID, IPC and UTS namespaces", error))?;
    message::send(control, &Report::Unshared, &[])?;
    let Some((Order::Mapped, _)) = message::receive(control)? else { return Err(End::KeeperGone) };
    match process::clone_sibling().map_err(|error| failed("make the first process", error))? {
        Cloned::Caller(pid) => Ok(message::send(control, &Report::Born { pid }, &[])?),
        Cloned::New => second(control),
    }
}

/// The second process: pid 1.
fn second(control: &SeqPacket) -> Result<(), End> {
    let failed = |error: io::Error| Failure::new(Step::Namespaces, "watch the program", &error);
    // The keeper may be gone already; then the connection has ended, which `receive` sees.
    process::die_with_parent().map_err(failed)?;
    let signals = Signals::take(&signal::WATCHED).map_err(failed)?;
    let supplies = create(control)?.into_iter().map(Some).collect();
    configure(control)?;
    Init { control, signals, supplies, program: None }.serve()
}

/// Makes the ends of the plugs and hands them to the keeper. Who may ask for sockets is connected with what is
/// returned.
fn create(control: &SeqPacket) -> Result<Vec<SeqPacket>, End> {
    let Some((Order::Create { plugs }, supplies)) = message::receive(control)? else {
        return Err(End::KeeperGone);
    };
    let supplies: Vec<_> = supplies.into_iter().map(SeqPacket::from).collect();
    for supply in &supplies {
        supply.set_nonblocking(true)?;
    }
    if plugs.contains(&message::End::Namespace) {
        // Before there is a link that could listen.
        setup::learn_no_addresses();
    }
    let made: Vec<(OwnedFd, Offloads)> = plugs
        .iter()
        .enumerate()
        .map(|(number, end)| {
            let name = setup::link_name(number);
            match end {
                message::End::Tap => Tap::create(&name)
                    .map(|Tap { fd, offloads }| (fd, offloads.into()))
                    .map_err(|error| Failure::new(Step::Tap, name, &error)),
                message::End::Namespace => File::open("/proc/thread-self/ns/net")
                    .map(|file| (file.into(), Offloads::default()))
                    .map_err(|error| Failure::new(Step::Network, "open the namespace", &error)),
            }
        })
        .collect::<Result<_, _>>()?;
    let offloads = made.iter().map(|(_, offloads)| *offloads).collect();
    let descriptors: Vec<_> = made.iter().map(|(fd, _)| fd.as_fd()).collect();
    message::send(control, &Report::Created { offloads }, &descriptors)?;
    Ok(supplies)
}

/// Sets up what the keeper says.
fn configure(control: &SeqPacket) -> Result<(), End> {
    let Some((Order::Configure(configuration), _)) = message::receive(control)? else {
        return Err(End::KeeperGone);
    };
    let warnings = setup::apply(&configuration)?;
    Ok(message::send(control, &Report::Ready { warnings }, &[])?)
}

/// The program as init knows it.
struct Program {
    /// Its number inside the PID namespace.
    pid: u32,
    /// Whether it leads a process group and session of its own.
    leads: bool,
}

/// Pid 1 at work.
struct Init<'a> {
    control: &'a SeqPacket,
    signals: Signals,
    /// Over which sockets of the network namespace are asked for.
    supplies: Vec<Option<SeqPacket>>,
    program: Option<Program>,
}

impl Init<'_> {
    fn serve(mut self) -> Result<(), End> {
        // The poll itself has the last one.
        const ORDER: u64 = u64::MAX - 1;
        const SIGNAL: u64 = ORDER - 1;
        let poll = Poll::new()?;
        poll.add(self.control.as_fd(), ORDER, Interest::Readable)?;
        poll.add(self.signals.as_fd(), SIGNAL, Interest::Readable)?;
        for (supply, number) in self.supplies.iter().flatten().zip(0..) {
            poll.add(supply.as_fd(), number, Interest::Readable)?;
        }
        let mut events = Events::new();
        loop {
            poll.wait(&mut events, None)?;
            let tokens: Vec<u64> = events.iter().map(|event| event.token).collect();
            if tokens.contains(&SIGNAL) {
                self.handle_signals()?;
            }
            for number in &tokens {
                let supply = usize::try_from(*number).ok().and_then(|it| self.supplies.get_mut(it));
                let Some(supply) = supply else { continue };
                if let Some(ended) = supply.take_if(|supply| !supply::give(supply)) {
                    // Nobody asks there any more; who talks nonsense learns that it is over.
                    let _ = poll.remove(ended.as_fd());
                }
            }
            if tokens.contains(&ORDER) {
                match message::receive(self.control)? {
                    Some((order, descriptors)) => self.handle_order(order, descriptors)?,
                    None => return Ok(()),
                }
            }
        }
    }

    fn handle_order(&mut self, order: Order, descriptors: Vec<OwnedFd>) -> Result<(), End> {
        match order {
            Order::Start(start) if self.program.is_none() => {
                self.clear()?;
                match self.start(&start, descriptors) {
                    Ok(held) => message::send(self.control, &Report::Started, &[held.as_fd()])?,
                    Err(failure) => {
                        message::send(self.control, &Report::Failed(failure), &[])?;
                    }
                }
                Ok(())
            }
            Order::Signal { signal } => {
                self.forward(signal);
                Ok(())
            }
            Order::Relink { number, plug } => {
                let report = match setup::relink(number, &plug) {
                    Ok(()) => Report::Relinked,
                    Err(failure) => Report::Failed(failure),
                };
                Ok(message::send(self.control, &report, &[])?)
            }
            _ => Err(End::KeeperGone),
        }
    }

    /// Starts the program.
    fn start(&mut self, start: &Start, descriptors: Vec<OwnedFd>) -> Result<PidFd, Failure> {
        let failed = |error: io::Error| {
            Failure::new(Step::Start, start.program.display().to_string(), &error)
        };
        let invalid = || failed(io::ErrorKind::InvalidData.into());
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(invalid);
        let (input, output, error) = (next()?, next()?, next()?);
        let extra = (message::FIRST_DESCRIPTOR..)
            .zip(descriptors)
            .map(|(number, descriptor)| process::renumber(descriptor, number))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        let mut command = Command::new(&start.program);
        let (name, arguments) = start.argv.split_first().ok_or_else(invalid)?;
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        command.args(arguments);
        command.envs(start.env.iter().map(|(name, value)| (name, value)));
        command.env("PATH", program::search_path(&start.env));
        command.current_dir(&start.cwd);
        command.stdin(Stdio::from(input)).stdout(Stdio::from(output)).stderr(Stdio::from(error));
        process::inherit(&mut command, extra);
        let session = if start.shares_terminal { Session::Ours } else { Session::Own };
        let launch = Launch { session, bounding: BOUNDING, die_with_us: false };
        if !start.cwd.is_dir() {
            let what = format!("the working folder {}", start.cwd.display());
            return Err(Failure::new(Step::Start, what, &io::ErrorKind::NotFound.into()));
        }
        // Reaped with everything else in `handle_signals`.
        let pid = launch.spawn(&mut command).map_err(failed)?.id();
        self.program = Some(Program { pid, leads: !start.shares_terminal });
        PidFd::open(pid).map_err(failed)
    }

    fn handle_signals(&mut self) -> Result<(), End> {
        while let Some(signal) = self.signals.next()? {
            let shared = self.program.as_ref().is_some_and(|program| !program.leads);
            if signal.number == signal::CHILD_ENDED {
                self.reap()?;
            } else if !(shared && signal::FROM_TERMINAL.contains(&signal.number)) {
                self.forward(signal.number);
            }
        }
        Ok(())
    }

    /// Reaps everything that has ended, ours or adopted.
    fn reap(&mut self) -> Result<(), End> {
        while let Some((pid, exit)) = process::reap_any()? {
            if self.program.as_ref().is_some_and(|program| program.pid == pid) {
                self.program = None;
                message::send(self.control, &Report::Exited { exit: exit.into() }, &[])?;
                kill_all();
            }
        }
        Ok(())
    }

    /// Waits until nothing is left of the last run: it may hold ports and files.
    fn clear(&mut self) -> Result<(), End> {
        let deadline = Instant::now() + CLEARING;
        kill_all();
        loop {
            self.reap()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !process::has_children()? || left.is_zero() {
                return Ok(());
            }
            let [signal] = wait::readable([self.signals.as_fd()], Some(left))?;
            if signal {
                self.handle_signals()?;
            }
        }
    }

    /// Passes a signal on to the program.
    fn forward(&self, signal: i32) {
        let Some(program) = &self.program else { return };
        let Ok(pid) = i32::try_from(program.pid) else { return };
        // It may have ended in this moment, which is what signals are for.
        let _ = process::kill(if program.leads { -pid } else { pid }, signal);
    }
}

/// Kills every process of the PID namespace but init itself.
fn kill_all() {
    // Nobody left is fine.
    let _ = process::kill(-1, signal::KILL);
}
