//! `netyard attach`: a yard of one plug for what somebody else starts, in the foreground.

use std::process::ExitCode;

use super::run::{RunOptions, yard};
use super::summary::Show;
use super::{Keep, StopSignals};
use crate::api::InstanceStatus;
use crate::error::YardError;
use crate::runtime::Runtime;

/// Plugs in what somebody else starts, tells how, and takes it out when a signal comes.
///
/// # Errors
/// The flags make no sense, the network or the TAP cannot be made. Nothing is left behind.
pub fn attach(
    options: RunOptions,
    tell: impl Fn(&InstanceStatus) -> Result<(), YardError>,
) -> Result<ExitCode, YardError> {
    let yard = yard(options)?;
    let runtime = Runtime::open()?;
    let keep = Keep::new(runtime, yard, true, Show::Warnings);
    let told = keep.run(
        || {},
        async |keeper, mut signals: StopSignals| {
            for status in keeper.instance_statuses() {
                tell(&status)?;
            }
            signals.next().await;
            Ok(())
        },
    )?;
    told.unwrap_or(Ok(())).map(|()| ExitCode::SUCCESS)
}
