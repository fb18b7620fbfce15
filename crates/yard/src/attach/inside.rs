//! The process that enters the network namespace: whoever has entered a user namespace cannot leave it, and a
//! process with threads cannot enter one.
//!
//! ```text
//! attach                         inside
//!    | ----- Make + namespace -----> |
//!    | <---------- Made + TAP ------ |
//!    | ----- SetUp { .. } ---------> |
//!    | <---------------- Ready ----- |   and it ends
//! ```
//!
//! Instead of an answer it may say `Failed`, and ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, ExitCode, Stdio};

use netyard_sys::namespace::{self, Namespaces};
use netyard_sys::process;
use netyard_sys::seqpacket::SeqPacket;
use netyard_sys::tap::Tap;
use serde::{Deserialize, Serialize};

use crate::instance::message::{self, Failure, Offloads, Step};
use crate::instance::{PlugConfiguration, foreign_link};

/// The verb by which netyard starts itself for that; standard input is the connection.
pub const VERB: &str = "attach-inside";

/// What is wanted of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Order {
    /// Make a TAP of this name in the namespace that comes with it.
    Make { link: String },
    /// Set it up.
    SetUp { plug: PlugConfiguration },
}

/// What it has to say.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Report {
    /// The TAP is there, and comes with it.
    Made { offloads: Offloads },
    /// The link is set up.
    Ready,
    /// A step did not work.
    Failed(Failure),
}

/// The process, from outside. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Inside {
    control: Option<SeqPacket>,
    child: Child,
}

impl Inside {
    /// Starts to make a TAP in a network namespace.
    ///
    /// # Errors
    /// The process cannot be started.
    pub(super) fn start(namespace: impl AsFd, link: &str) -> Result<Self, Failure> {
        let (ours, theirs) = SeqPacket::pair().map_err(failed)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(VERB).stdin(Stdio::from(OwnedFd::from(theirs)));
        let child = command.spawn().map_err(failed)?;
        drop(command);
        let inside = Self { control: Some(ours), child };
        inside.order(&Order::Make { link: link.to_owned() }, Some(namespace.as_fd()))?;
        Ok(inside)
    }

    /// Waits for the TAP; what its kernel leaves to the other end comes with it.
    ///
    /// # Errors
    /// The kernel's, as a [`Failure`].
    pub(super) fn tap(&self) -> Result<(OwnedFd, Offloads), Failure> {
        let (report, descriptors) = self.report()?;
        match (report, descriptors.into_iter().next()) {
            (Report::Made { offloads }, Some(tap)) => Ok((tap, offloads)),
            _ => Err(failed(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Sets the link up.
    ///
    /// # Errors
    /// As [`Inside::tap`].
    pub(super) fn set_up(self, plug: PlugConfiguration) -> Result<(), Failure> {
        self.order(&Order::SetUp { plug }, None)?;
        self.report().map(drop)
    }

    fn order(&self, order: &Order, descriptor: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
        message::send(self.control()?, order, descriptor.as_slice()).map_err(failed)
    }

    fn report(&self) -> Result<(Report, Vec<OwnedFd>), Failure> {
        match message::receive(self.control()?).map_err(failed)? {
            Some((Report::Failed(failure), _)) => Err(failure),
            Some(answer) => Ok(answer),
            None => Err(failed(io::ErrorKind::ConnectionAborted.into())),
        }
    }

    fn control(&self) -> Result<&SeqPacket, Failure> {
        self.control.as_ref().ok_or_else(|| failed(io::ErrorKind::NotConnected.into()))
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::new(Step::Start, "enter the namespace", &error)
}

impl Drop for Inside {
    fn drop(&mut self) {
        // It ends with the connection.
        self.control = None;
        let _ = self.child.wait();
    }
}

/// The main of [`VERB`]. The process must have one thread.
#[must_use]
pub fn main() -> ExitCode {
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
    process::die_with_parent().map_err(broken)?;
    let Some((Order::Make { link }, descriptors)) = message::receive(control).map_err(broken)?
    else {
        return Ok(());
    };
    let namespace = descriptors.first().ok_or(broken(io::ErrorKind::InvalidData.into()))?;
    enter(namespace)
        .map_err(|error| Failure::new(Step::Namespaces, "enter the network namespace", &error))?;
    let tap = Tap::create(&link).map_err(|error| Failure::new(Step::Tap, &link, &error))?;
    let report = Report::Made { offloads: tap.offloads.into() };
    message::send(control, &report, &[tap.fd.as_fd()]).map_err(broken)?;
    drop(tap);
    let Some((Order::SetUp { plug }, _)) = message::receive(control).map_err(broken)? else {
        return Ok(());
    };
    foreign_link(&link, &plug)?;
    message::send(control, &Report::Ready, &[]).map_err(broken)
}

/// Enters a network namespace, by way of the user namespace whose capabilities count in it.
fn enter(namespace: &OwnedFd) -> io::Result<()> {
    let owner = File::from(namespace::owner(namespace.as_fd())?);
    let (own, other) = (std::fs::metadata("/proc/self/ns/user")?, owner.metadata()?);
    if (own.dev(), own.ino()) != (other.dev(), other.ino()) {
        namespace::enter(owner.as_fd(), Namespaces::USER)?;
    }
    namespace::enter(namespace.as_fd(), Namespaces::NETWORK)
}
