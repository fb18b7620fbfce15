//! Instances: a program in namespaces of its own, under an init of ours.
//!
//! A keeper makes an instance with `Instance::create`, hands the ends of its plugs to the network
//! processes, tells it its addresses and starts the program, as often as it likes. See `init` for
//! the processes, `message` for what is said.

mod diagnosis;
mod exec;
mod handle;
mod init;
pub mod inside;
pub(crate) mod message;
mod program;
mod setup;
pub(crate) mod signal;
pub(crate) mod sockets;
mod terminal;

pub use exec::{ExecOptions, exec};
pub(crate) use handle::{Ended, Instance, Stdio};
pub use init::init_main;
pub(crate) use inside::Inside;
pub(crate) use message::{Configuration, End, Exit, FIRST_DESCRIPTOR, PlugConfiguration, Start};
pub(crate) use program::find as find_program;
pub(crate) use setup::link_name;
