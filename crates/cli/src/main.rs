//! The `netyard` command: flags become calls of the `yard` crate, answers become text or JSON.

mod explain;
mod flags;
mod hub;
mod metrics;
mod nic;
mod output;
mod policy;
mod traffic;
mod verbs;
mod view;

use std::ffi::OsStr;
use std::io;
use std::process::ExitCode;

use netyard_engine::process;
use netyard_yard::explain::look;
use netyard_yard::instance::inside;
use netyard_yard::{bridge, instance, joined, keeper, vm};
use tracing_subscriber::EnvFilter;

use crate::flags::{Cli, Verb};

/// The variable that says what is logged, in the syntax of [`EnvFilter`], e.g. `debug`.
const LOG: &str = "NETYARD_LOG";

fn main() -> ExitCode {
    netyard_sys::process::close_inherited_on_exec();
    // Verbs by which netyard starts itself. They are no part of the command line that users see,
    // and must act before anything else does.
    let verb = std::env::args_os().nth(1);
    match verb.as_deref().and_then(OsStr::to_str) {
        Some("instance-init") => instance::init_main(),
        Some(vm::VERB) => vm::main(),
        Some(look::VERB) => look::main(),
        Some(inside::VERB) => inside::main(),
        Some(process::VERB) => {
            log("info");
            process::main(bridge::plumbing)
        }
        Some(joined::VERB) => {
            log("info");
            joined::main()
        }
        Some(keeper::VERB) => {
            log("info");
            keeper::main()
        }
        _ => {
            log("warn");
            command()
        }
    }
}

/// What the user typed.
fn command() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let cli = Cli::read(&words).unwrap_or_else(|error| error.exit());
    let json = cli.global.json;
    let for_program = matches!(cli.verb, Verb::Run(_) | Verb::Exec(_));
    verbs::perform(cli).unwrap_or_else(|error| {
        output::complain(&error, json);
        ExitCode::from(match for_program {
            true => error.exit_code_for_program(),
            false => error.exit_code(),
        })
    })
}

/// Logs to stderr what [`LOG`] says, else events of `level` and above.
fn log(level: &str) {
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}
