//! `nic lab`.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode};

use netyard_nic::lab::{self, Impairment, Lab, LabError, SERVERS};
use netyard_yard::error::{ErrorKind, YardError};

use super::flags::LabUp;

pub(super) fn up(flags: &LabUp) -> Result<ExitCode, YardError> {
    lab::enter().map_err(|error| failed(&error))?;
    let impairment = Impairment { delay: flags.delay, loss: flags.loss };
    let lab = Lab::up(flags.kinds.iter().copied(), impairment).map_err(|error| failed(&error))?;
    let Some((program, arguments)) = flags.argv.split_first() else {
        return Err(YardError::new(ErrorKind::Input, "run a program in the lab", "none is given"));
    };
    let [server, _] = SERVERS;
    let mut command = Command::new(program);
    command.args(arguments).env(super::asked::SERVERS, server.to_string());
    let mut child = lab.spawn(&mut command).map_err(|error| {
        let wanted = format!("run {}", program.display());
        match error {
            LabError::System { error, .. } => YardError::io(wanted, &error),
            LabError::Kernel(error) => YardError::new(ErrorKind::System, wanted, error.to_string()),
        }
    })?;
    let status = child.wait().map_err(|error| YardError::io("wait for the program", &error))?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn failed(error: &LabError) -> YardError {
    let kind = match error {
        LabError::System { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => {
            ErrorKind::NotPermitted
        }
        LabError::System { .. } | LabError::Kernel(_) => ErrorKind::System,
    };
    YardError::new(kind, "make the lab", error.to_string()).next(
        "labs take user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns) and a /dev/net/tun that is open to the user",
    )
}
