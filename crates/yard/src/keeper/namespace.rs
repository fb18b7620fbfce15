//! `netyard attach PID`: a yard of one plug in the network namespace of somebody else, in the foreground.

use std::future::pending;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use netyard_engine::config::Config;
use netyard_engine::control::Plugged;
use netyard_engine::forward::Forward;
use netyard_sys::process::PidFd;
use netyard_sys::wait::{self, Want};
use tokio::sync::oneshot;

use super::run::{RunOptions, yard};
use super::state::Keeper;
use super::summary::Show;
use super::{Keep, StopSignals};
use crate::api::InstanceState;
use crate::error::{ErrorKind, YardError};
use crate::instance::Inside;
use crate::path_socket::PathSocket;
use crate::runtime::Runtime;
use crate::watched::Watched;

/// What somebody else has made, and how long it is wanted.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// What goes into the namespace.
    pub(crate) inside: Inside,
    /// With whose end all is over.
    pub(crate) process: Option<PidFd>,
    /// With whose other end all is over.
    pub(crate) exit: Option<OwnedFd>,
    /// One more socket of the control API.
    pub(crate) control: Option<PathSocket>,
}

/// What was made for it.
#[derive(Debug)]
pub(crate) struct Made {
    /// The name of the yard.
    pub(crate) yard: String,
    /// The socket of the control API in the runtime folder.
    pub(crate) socket: PathBuf,
    /// The name of the instance.
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) plugged: Plugged,
    pub(crate) forwards: Vec<Forward>,
}

/// Gives the namespace of somebody else a network, tells how, and takes it back when what it is for is over, or a
/// signal comes.
///
/// # Errors
/// The flags make no sense, the network or the link cannot be made. Nothing is left behind.
pub(crate) fn keep_namespace(
    options: RunOptions,
    foreign: Foreign,
    tell: impl FnOnce(Made) -> Result<(), YardError>,
) -> Result<ExitCode, YardError> {
    let Foreign { inside, process, exit, control } = foreign;
    let yard = yard(options)?;
    let runtime = Runtime::open()?;
    let mut keep = Keep::new(runtime, yard, true, Show::Warnings);
    (keep.inside, keep.control) = (Some(inside), control);
    let told = keep.run(
        || {},
        async |keeper, mut signals: StopSignals| {
            tell(keeper.made()?)?;
            tokio::select! {
                _ = signals.next() => Ok(()),
                () = process_ended(process) => Ok(()),
                () = other_end_closed(exit) => Ok(()),
                error = keeper.left() => Err(error),
            }
        },
    )?;
    // Taken down by `netyard down`, it has said nothing.
    told.unwrap_or(Ok(())).map(|()| ExitCode::SUCCESS)
}

impl Keeper {
    /// What was made for the one namespace in the yard.
    fn made(&self) -> Result<Made, YardError> {
        let yard = self.yard();
        let found = || {
            let instance = yard.instances.first()?;
            let plugged = self.supervisor(&instance.name)?.observed().plugs.first()?.clone();
            let config = self.link(&instance.plugs.first()?.network)?.config().clone();
            Some(Made {
                yard: yard.name.clone(),
                socket: self.socket(),
                name: instance.name.clone(),
                config,
                plugged,
                forwards: instance.forwards.clone(),
            })
        };
        found().ok_or_else(|| YardError::new(ErrorKind::Bug, "attach", "nothing is plugged in"))
    }

    /// Waits until somebody has ended the process in the namespace.
    async fn left(&self) -> YardError {
        let changes = self.changes();
        let mut changes = changes.listen();
        loop {
            let yard = self.yard();
            let mut states = yard.instances.iter().map(|instance| self.state_of(&instance.name));
            let over =
                |state| matches!(state, InstanceState::Exited { .. } | InstanceState::Failed);
            if states.any(over) || changes.changed().await.is_err() {
                let found = "our process in it was killed";
                return YardError::new(ErrorKind::System, "stay in the namespace", found);
            }
        }
    }
}

/// Waits for the end of a process, if there is one.
async fn process_ended(process: Option<PidFd>) {
    match process.map(Watched::new) {
        Some(Ok(process)) => process.ended().await,
        // It cannot be waited for.
        Some(Err(_)) => {}
        None => pending().await,
    }
}

/// Waits until nobody is at the other end of a descriptor any more, if there is one.
///
/// A thread does, which may go on waiting: others have the descriptor, too, and the runtime would make it one that
/// nobody can wait at.
async fn other_end_closed(exit: Option<OwnedFd>) {
    let Some(exit) = exit else { return pending().await };
    let (over, ended) = oneshot::channel();
    thread::spawn(move || {
        // A wait can end early.
        while let Ok([other]) = wait::ready([(exit.as_fd(), Want::End)], None)
            && !other.ended
        {}
        // The keeper may have ended for another reason.
        let _ = over.send(());
    });
    let _ = ended.await;
}
