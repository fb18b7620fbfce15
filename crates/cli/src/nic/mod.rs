//! The verbs below `nic`: what this machine's real interfaces are and what lies before them.

pub(crate) mod asked;
mod by;
mod cards;
pub(crate) mod flags;
mod lab;
pub(crate) mod leaves;
mod map;
mod nat;
mod pipe;
pub(crate) mod reach;
mod serve;
mod stun;
mod view;

use std::process::ExitCode;

use netyard_yard::error::{ErrorKind, YardError};

use self::flags::{LabVerb, Nic};
use crate::output::Output;

/// Does what the command line says.
pub(crate) fn perform(verb: Nic, out: Output) -> Result<ExitCode, YardError> {
    match verb {
        Nic::List(flags) => cards::list(&flags, out),
        Nic::Show(flags) => cards::show(flags, out),
        Nic::Routes(flags) => cards::routes(flags, out),
        Nic::Watch(flags) => cards::watch(flags, out),
        Nic::Nat(flags) => nat::perform(flags, out),
        Nic::Map(flags) => map::perform(&flags, out),
        Nic::Stun(flags) => stun::ask(&flags, out),
        Nic::StunServer(flags) => stun::serve(&flags),
        Nic::Pipe(flags) => pipe::perform(&flags, out),
        Nic::Serve(flags) => serve::perform(flags, out),
        Nic::Lab(LabVerb::Up(flags)) => lab::up(&flags),
    }
}

/// Runs what waits for sockets.
fn run<T>(work: impl Future<Output = T>) -> Result<T, YardError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| YardError::io("start the runtime", &error))?;
    let done = runtime.block_on(work);
    // The system may still look up a name that is not waited for any more.
    runtime.shutdown_background();
    Ok(done)
}

/// An error of the network: nothing is wrong with what was asked for.
fn unreachable(wanted: &str, found: impl ToString) -> YardError {
    YardError::new(ErrorKind::System, wanted, found.to_string())
}
