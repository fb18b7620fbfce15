//! A keeper in the background: started by `up -d`, which waits until the yard is up.
//!
//! The keeper gets the yard file's path on standard input and says on standard output how it
//! went, as one line of JSON; what it says later is in `keeper.log`.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use netyard_sys::daemon;

use super::Keep;
use super::summary::Show;
use super::up::keep;
use crate::error::{ErrorKind, YardError};
use crate::file;
use crate::model::Yard;
use crate::runtime::{Runtime, keeper_log_in};

/// The hidden verb that calls [`main`].
pub const VERB: &str = "keeper";

/// How much of the end of the log is shown when the keeper does not start, bytes.
const LOG_TAIL: usize = 2000;

/// Starts a keeper in the background; returns when the yard is up.
///
/// # Errors
/// The yard cannot be brought up.
pub(super) fn start(runtime: &Runtime, yard: &Yard) -> Result<(), YardError> {
    let failed = |error: io::Error| {
        YardError::io(format!("start the keeper of {} in the background", yard.name), &error)
    };
    let folder = runtime.make_yard(&yard.name)?;
    let path = keeper_log_in(&folder);
    let log = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let mut keeper = Command::new("/proc/self/exe")
        .arg0("netyard")
        .arg(VERB)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = keeper.stdin.take() {
        // A keeper that has ended already says so below.
        let _ = input.write_all(yard.path.as_os_str().as_encoded_bytes());
    }
    let mut said = Vec::new();
    if let Some(output) = keeper.stdout.take() {
        // One line, not to the end: the keeper lives on.
        BufReader::new(output).read_until(b'\n', &mut said).map_err(failed)?;
    }
    // It has detached itself by now, or has ended.
    keeper.wait().map_err(failed)?;
    serde_json::from_slice(&said).unwrap_or_else(|_| {
        let wanted = format!("bring up {}", yard.name);
        Err(YardError::new(ErrorKind::Bug, wanted, format!("its keeper has ended{}", tail(&path))))
    })
}

/// What the hidden verb [`VERB`] runs.
#[must_use]
pub fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            tell(&Err(error.clone()));
            tracing::error!(%error, "the keeper ends");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<ExitCode, YardError> {
    let failed = |error: io::Error| YardError::io("start a keeper in the background", &error);
    let mut path = Vec::new();
    io::stdin().read_to_end(&mut path).map_err(failed)?;
    daemon::detach().map_err(failed)?;
    let path = PathBuf::from(OsString::from_vec(path));
    let yard = file::load(&path)?;
    env::set_current_dir("/").map_err(failed)?;
    let runtime = Runtime::open()?;
    keep(Keep::new(runtime, yard, false, Show::Everything), || tell(&Ok(())))
}

/// Says how it went, on one line.
fn tell(outcome: &Result<(), YardError>) {
    let Ok(text) = serde_json::to_string(outcome) else { return };
    // Whoever started us may have gone.
    let _ = writeln!(io::stdout(), "{text}");
}

/// The end of a log, on lines of its own.
fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let tail = text.len().saturating_sub(LOG_TAIL);
    let tail = String::from_utf8_lossy(text.get(tail..).unwrap_or_default()).into_owned();
    if tail.trim().is_empty() { String::new() } else { format!(":\n{}", tail.trim_end()) }
}
