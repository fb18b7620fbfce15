//! The process that enters the network namespace of somebody else: whoever has entered a user namespace cannot
//! leave it, and a process with threads cannot enter one.
//!
//! It is to its keeper what init is to that of an instance, and stays to hand out sockets of the namespace. It ends
//! with its keeper's end of the connection.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

use netyard_sys::capability::{self, Capabilities};
use netyard_sys::namespace::{self, Namespaces};
use netyard_sys::process::{self, PidFd, Signals};
use netyard_sys::seqpacket::SeqPacket;
use netyard_sys::supply;
use netyard_sys::tap::Tap;
use netyard_sys::wait::{self, Want};

use super::message::{self, Failure, Order, Report, Step};
use super::{setup, signal};
use crate::error::{ErrorKind, YardError};
use crate::joined;

/// The verb by which netyard starts itself for that; standard input is the connection.
pub const VERB: &str = "attach-inside";

/// Signals that are not for it.
const HELD: [i32; 4] = [signal::HANGUP, signal::INTERRUPT, signal::QUIT, signal::TERMINATE];

/// Error numbers of errno(3) that are told apart.
const NOT_PERMITTED: i32 = 1;
const NO_ENTRY: i32 = 2;
const ACCESS: i32 = 13;
const BUSY: i32 = 16;
const INVALID: i32 = 22;

/// The process, from outside, once it is started: it makes a TAP in the namespace. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Inside {
    /// Until it is handed over.
    ends: Option<Ends>,
    started: Option<(PidFd, u32)>,
}

#[derive(Debug)]
struct Ends {
    control: SeqPacket,
    asks: OwnedFd,
    /// The process's end of `control`, which brings it its order.
    theirs: SeqPacket,
}

/// What there is of it.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) control: SeqPacket,
    pub(super) process: PidFd,
    pub(super) pid: u32,
    /// Where sockets of the namespace can be asked for.
    pub(super) asks: OwnedFd,
}

impl Inside {
    /// Orders a TAP in a network namespace, for when the process is started.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn order(namespace: impl AsFd, link: &str) -> io::Result<Self> {
        let (control, theirs) = SeqPacket::pair()?;
        let (asks, gives) = SeqPacket::pair()?;
        let order = Order::Enter { link: link.to_owned() };
        message::send(&control, &order, &[namespace.as_fd(), gives.as_fd()])?;
        Ok(Self { ends: Some(Ends { control, asks: asks.into(), theirs }), started: None })
    }

    /// Starts the process, unless that is done.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        let (Some(Ends { theirs, .. }), None) = (&self.ends, &self.started) else { return Ok(()) };
        let mut command = Command::new("/proc/self/exe");
        command.arg(VERB).stdin(theirs.as_fd().try_clone_to_owned()?).stdout(Stdio::null());
        joined::withhold(&mut command);
        // Ctrl-C at our terminal is not for it, neither before it has its signals held.
        command.process_group(0);
        let mut child = command.spawn()?;
        // Our own child, not reaped yet: the number is still its own.
        let process = PidFd::open(child.id()).inspect_err(|_| {
            // Another one is to have the order.
            let _ = child.kill().and_then(|()| child.wait());
        });
        self.started = Some((process?, child.id()));
        Ok(())
    }

    /// Hands it over, started.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn into_parts(mut self) -> io::Result<Parts> {
        self.start()?;
        match (self.ends.take(), self.started.take()) {
            (Some(Ends { control, asks, theirs: _ }), Some((process, pid))) => {
                Ok(Parts { control, process, pid, asks })
            }
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let Some((process, _)) = self.started.take() else { return };
        // It may have ended already.
        let _ = process.signal(signal::KILL);
        while let Ok([false]) = wait::readable([process.as_fd()], None) {}
        let _ = process.reap();
    }
}

/// Why a step inside did not work, and what to do.
pub(super) fn explain(instance: &str, failure: &Failure) -> YardError {
    let Failure { step, what, errno, message } = failure;
    let wanted = format!("plug {instance} in");
    let error = |kind| YardError::new(kind, &wanted, format!("{what}: {message}"));
    match (step, errno) {
        (Step::Namespaces, Some(NOT_PERMITTED | ACCESS)) => error(ErrorKind::NotPermitted)
            .next("run this as the user who has made the namespace, from where they made it"),
        // Of the same kind, or of another one.
        (Step::Tap, Some(BUSY | INVALID)) => {
            let found = format!("there is a link {what} in it already");
            YardError::new(ErrorKind::Conflict, &wanted, found)
                .next("give another name with --tapname")
        }
        (Step::Tap, Some(NOT_PERMITTED | NO_ENTRY | ACCESS)) => error(ErrorKind::NotPermitted)
            .next("see that /dev/net/tun is there and open, and that the namespace is yours"),
        _ => error(ErrorKind::System),
    }
}

/// The main of [`VERB`]. The process must have one thread.
#[must_use]
pub fn main() -> ExitCode {
    // What a terminal or a service manager sends to all of us is for the keeper, which sees to our end. Nobody reads them.
    let Ok(_held) = Signals::take(&HELD) else { return ExitCode::FAILURE };
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned().map(SeqPacket::from) else {
        return ExitCode::FAILURE;
    };
    match serve(&control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // If this does not arrive either, the other end sees ours.
            let _ = message::send(&control, &Report::Failed(failure), &[]);
            ExitCode::FAILURE
        }
    }
}

fn serve(control: &SeqPacket) -> Result<(), Failure> {
    let broken = |error: io::Error| Failure::new(Step::Start, "hear what to do", &error);
    let failed =
        |error: io::Error| Failure::new(Step::Namespaces, "enter the network namespace", &error);
    process::die_with_parent().map_err(broken)?;
    // Who is in the namespace may be us as well, and could enter files of ours by this process.
    process::forbid_tracing().map_err(broken)?;
    let Some((Order::Enter { link }, descriptors)) = message::receive(control).map_err(broken)?
    else {
        return Ok(());
    };
    let [namespace, gives] = <[OwnedFd; 2]>::try_from(descriptors)
        .map_err(|_| broken(io::ErrorKind::InvalidData.into()))?;
    enter(&namespace).map_err(failed)?;
    drop(namespace);
    let tap = Tap::create(&link).map_err(|error| Failure::new(Step::Tap, &link, &error))?;
    let report = Report::Created { offloads: vec![tap.offloads.into()] };
    message::send(control, &report, &[tap.fd.as_fd()]).map_err(broken)?;
    drop(tap);
    let Some((Order::Configure(configuration), _)) = message::receive(control).map_err(broken)?
    else {
        return Ok(());
    };
    let plug = configuration.plugs.first().ok_or(broken(io::ErrorKind::InvalidData.into()))?;
    setup::foreign_link(&link, plug)?;
    // To hand out sockets takes none.
    let dropped = capability::limit(Capabilities::NONE, Capabilities::NONE);
    dropped.map_err(|error| Failure::new(Step::Start, "give up all capabilities", &error))?;
    message::send(control, &Report::Ready { warnings: Vec::new() }, &[]).map_err(broken)?;
    hand_out(control, gives.into()).map_err(broken)
}

/// Hands out sockets of the namespace for as long as there is a keeper.
fn hand_out(control: &SeqPacket, gives: SeqPacket) -> io::Result<()> {
    gives.set_nonblocking(true)?;
    let mut gives = Some(gives);
    loop {
        let asked = gives.as_ref().map(|gives| (gives.as_fd(), Want::Read));
        let asked = asked.unwrap_or((control.as_fd(), Want::Nothing));
        let [keeper, asked] = wait::ready([(control.as_fd(), Want::Read), asked], None)?;
        // It has nothing more to say.
        if keeper.read || keeper.ended {
            return Ok(());
        }
        if asked.read || asked.ended {
            // Nobody asks there any more; who talks nonsense learns that it is over.
            gives.take_if(|gives| !supply::give(gives));
        }
    }
}

/// Enters a network namespace, by way of the user namespace whose capabilities count in it.
fn enter(namespace: &OwnedFd) -> io::Result<()> {
    let owner = File::from(namespace::owner(namespace.as_fd())?);
    let (own, other) = (fs::metadata("/proc/self/ns/user")?, owner.metadata()?);
    if (own.dev(), own.ino()) != (other.dev(), other.ino()) {
        namespace::enter(owner.as_fd(), Namespaces::USER)?;
    }
    namespace::enter(namespace.as_fd(), Namespaces::NETWORK)
}
