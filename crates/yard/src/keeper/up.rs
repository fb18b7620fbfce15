//! `netyard up`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use humantime::format_duration;

use super::summary::Show;
use super::{Keep, StopSignals, background};
use crate::api::{InstanceStatus, Waited};
use crate::client::Client;
use crate::error::{ErrorKind, YardError};
use crate::file;
use crate::model::Yard;
use crate::runtime::Runtime;

/// What `up` is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpOptions {
    /// The yard file, or its folder.
    pub file: PathBuf,
    /// Leave the yard running in the background.
    pub detach: bool,
    /// Return when everything is healthy, at most after this; in the background, too.
    pub wait: Option<Duration>,
}

/// Brings a yard up, or applies the difference if it is up.
///
/// # Errors
/// The file is wrong, a step failed, or (waiting) something does not become healthy.
pub fn up(options: &UpOptions) -> Result<ExitCode, YardError> {
    let yard = file::load(&options.file)?;
    let runtime = Runtime::open()?;
    let client = Client::of(&runtime, &yard.name);
    if runtime.is_running(&yard.name) {
        apply(&client, &yard)?;
    } else if options.detach || options.wait.is_some() {
        background::start(&runtime, &yard)?;
    } else {
        return keep(Keep::new(runtime, yard, false, Show::Everything), || {});
    }
    if let Some(within) = options.wait {
        wait(&client, within)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps a yard until a signal or `down` asks for its end.
pub(super) fn keep(keep: Keep, started: impl FnOnce()) -> Result<ExitCode, YardError> {
    let until = async |_, mut signals: StopSignals| {
        signals.next().await;
    };
    keep.run(started, until)?;
    Ok(ExitCode::SUCCESS)
}

/// Has the running keeper apply what differs.
fn apply(client: &Client, yard: &Yard) -> Result<(), YardError> {
    let running = client.yard()?.file;
    if running != yard.path {
        return Err(another_file(yard, &running));
    }
    let applied = client.apply(&yard.path)?;
    let text = if applied.steps.is_empty() {
        format!("{} is up; nothing differs\n", yard.name)
    } else {
        applied.steps.iter().map(|step| format!("{step}\n")).collect()
    };
    // Nobody may read it.
    let _ = io::stderr().write_all(text.as_bytes());
    Ok(())
}

fn another_file(yard: &Yard, running: &Path) -> YardError {
    let found = format!("a yard of that name runs already, from {}", running.display());
    YardError::new(ErrorKind::Conflict, format!("bring up {}", yard.name), found).next(format!(
        "stop it with `netyard down --yard {}`, or give this one another `name`",
        yard.name
    ))
}

/// Another keeper was faster.
pub(super) fn just_started(yard: &str) -> YardError {
    let found = "another keeper has just started it";
    YardError::new(ErrorKind::Conflict, format!("bring up {yard}"), found)
        .next("run the command again to apply what differs")
}

fn wait(client: &Client, within: Duration) -> Result<(), YardError> {
    let Waited { healthy, failed, waiting } = client.wait(within)?;
    if healthy {
        return Ok(());
    }
    let (kind, when, guilty) = if failed.is_empty() {
        (ErrorKind::TimedOut, format!("after {} ", format_duration(within)), waiting)
    } else {
        (ErrorKind::Program, String::new(), failed)
    };
    let wanted = format!("see everything in {} healthy", client.name());
    let reason = |instance: &InstanceStatus| {
        let why = instance.exit.iter().chain(&instance.warnings).cloned().collect::<Vec<_>>();
        let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
        format!("{} is {}{why}", instance.name, instance.state)
    };
    let reasons: Vec<_> = guilty.iter().map(reason).collect();
    let error = YardError::new(kind, wanted, format!("{when}{}", reasons.join(", ")));
    Err(match guilty.first() {
        Some(first) => error.next(format!(
            "the yard stays up; see why: netyard logs {}, netyard service ls",
            first.name
        )),
        None => error,
    })
}
