//! The one error of this crate: what was wanted, what was found, what to do next, whose fault.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use netyard_engine::control::{ControlError, ControlErrorKind};
use netyard_tunnel::Blame;
use serde::{Deserialize, Serialize};

/// Whose fault an error is. Decides exit code and HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The yard file, a flag or a request says something that cannot be.
    Input,
    /// It is well said, but this version of netyard does not do it.
    Unsupported,
    /// There is no such yard, instance, service, file or program.
    Unknown,
    /// A name, port, address or lock is somebody else's, or the state does not allow it.
    Conflict,
    /// The kernel or the caller's rights forbid it.
    NotPermitted,
    /// It did not happen in time, and may still.
    TimedOut,
    /// The kernel refused for another reason.
    System,
    /// An instance's program failed.
    Program,
    /// There is no such program, or none of what it needs to start.
    NoProgram,
    /// There is a program, and it cannot be executed.
    NotExecutable,
    /// The keeper or the network process on the other end broke the rules or is gone.
    Peer,
    /// netyard's own mistake.
    Bug,
}

impl ErrorKind {
    /// Exit code of the command that ends with this error: 1 failed, 2 usage, 3 not permitted,
    /// 4 inconclusive.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Input | Self::Unsupported => 2,
            Self::NotPermitted => 3,
            Self::TimedOut => 4,
            Self::Unknown
            | Self::Conflict
            | Self::System
            | Self::Program
            | Self::NoProgram
            | Self::NotExecutable
            | Self::Peer
            | Self::Bug => 1,
        }
    }

    /// Status of the control API's answer that carries this error.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::Input => 400,
            Self::NotPermitted => 403,
            Self::Unknown | Self::NoProgram => 404,
            Self::Conflict => 409,
            Self::Program | Self::NotExecutable => 422,
            Self::System | Self::Bug => 500,
            Self::Unsupported => 501,
            Self::Peer => 502,
            Self::TimedOut => 504,
        }
    }
}

/// What went wrong. Also the body of every answer of the control API that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct YardError {
    /// Whose fault it is.
    pub kind: ErrorKind,
    /// What was wanted, e.g. `start instance web-1`.
    pub wanted: String,
    /// What was found, e.g. `no program netyard-whoami in PATH`.
    pub found: String,
    /// The next step, if one is known, e.g. `install it, or give its full path`.
    pub next: Option<String>,
    /// The lines of the yard file that are wrong; empty for everything but yard files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

impl From<netyard_tunnel::Error> for YardError {
    fn from(error: netyard_tunnel::Error) -> Self {
        let kind = match error.blame {
            Blame::Input => ErrorKind::Input,
            Blame::Unknown => ErrorKind::Unknown,
            Blame::Conflict => ErrorKind::Conflict,
            Blame::NotPermitted => ErrorKind::NotPermitted,
            Blame::Peer => ErrorKind::Peer,
            Blame::System => ErrorKind::System,
        };
        Self { next: error.next, ..Self::new(kind, error.wanted, error.found) }
    }
}

impl YardError {
    /// An error without a next step; see [`YardError::next`].
    pub fn new(kind: ErrorKind, wanted: impl Into<String>, found: impl Into<String>) -> Self {
        Self { kind, wanted: wanted.into(), found: found.into(), next: None, problems: Vec::new() }
    }

    /// The same error with its next step.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into());
        self
    }

    /// What the kernel said to `wanted`; the kind follows from the error.
    pub fn io(wanted: impl Into<String>, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => ErrorKind::NotPermitted,
            io::ErrorKind::NotFound => ErrorKind::Unknown,
            io::ErrorKind::AddrInUse | io::ErrorKind::AlreadyExists => ErrorKind::Conflict,
            io::ErrorKind::TimedOut => ErrorKind::TimedOut,
            _ => ErrorKind::System,
        };
        Self::new(kind, wanted, error.to_string())
    }

    /// What a network process answered to `wanted`.
    pub fn control(wanted: impl Into<String>, error: &ControlError) -> Self {
        let kind = match error.kind {
            ControlErrorKind::Version | ControlErrorKind::Malformed => ErrorKind::Peer,
            ControlErrorKind::Taken | ControlErrorKind::Exhausted => ErrorKind::Conflict,
            ControlErrorKind::Unknown => ErrorKind::Unknown,
            ControlErrorKind::NotPermitted => ErrorKind::NotPermitted,
            ControlErrorKind::Unreachable | ControlErrorKind::Failed => ErrorKind::System,
        };
        Self::new(kind, wanted, error.message.clone())
    }

    /// A yard file with mistakes.
    pub(crate) fn file(path: &Path, problems: Vec<Problem>) -> Self {
        let found = match problems.len() {
            1 => "1 mistake".to_owned(),
            count => format!("{count} mistakes"),
        };
        let wanted = format!("read the yard file {}", path.display());
        Self { problems, ..Self::new(ErrorKind::Input, wanted, found) }
    }

    /// Exit code of the command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.kind.exit_code()
    }

    /// The same of a command that stands for the program that it was to run: as POSIX has it for
    /// shells and `env`, 127 where there is none and 126 where it cannot be executed.
    #[must_use]
    pub fn exit_code_for_program(&self) -> u8 {
        match self.kind {
            ErrorKind::NoProgram => 127,
            ErrorKind::NotExecutable => 126,
            kind => kind.exit_code(),
        }
    }
}

/// `cannot WANTED: FOUND`, a line for each wrong line of a yard file, and the next step on a line
/// of its own.
impl fmt::Display for YardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.wanted, self.found)?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        match &self.next {
            Some(next) => write!(f, "\nnext: {next}"),
            None => Ok(()),
        }
    }
}

/// One mistake in a yard file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The yard file.
    pub file: PathBuf,
    /// Line, from 1; 0 when it is about the file as a whole.
    pub line: usize,
    /// The key, from the top of the file, e.g. `instances.web.count`; empty when there is none.
    pub key: String,
    /// What was expected and what was found.
    pub message: String,
}

/// `FILE:LINE: KEY: MESSAGE`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_wanted_found_next() {
        let error = YardError::new(ErrorKind::Conflict, "publish web", "127.0.0.1:80 is taken")
            .next("stop the program on it");
        assert_eq!(
            error.to_string(),
            "cannot publish web: 127.0.0.1:80 is taken\nnext: stop the program on it"
        );
    }

    #[test]
    fn kernel_errors_keep_their_blame() {
        let blame = |kind| YardError::io("x", &io::Error::from(kind)).exit_code();
        assert_eq!(blame(io::ErrorKind::PermissionDenied), 3);
        assert_eq!(blame(io::ErrorKind::TimedOut), 4);
        assert_eq!(blame(io::ErrorKind::AddrInUse), 1);
    }

    #[test]
    fn a_command_that_stands_for_a_program_ends_as_a_shell_would() {
        let codes = [ErrorKind::NoProgram, ErrorKind::NotExecutable, ErrorKind::NotPermitted]
            .map(|kind| YardError::new(kind, "run x", "y"))
            .map(|error| (error.exit_code_for_program(), error.exit_code()));
        assert_eq!(codes, [(127, 1), (126, 1), (3, 3)]);
    }

    #[test]
    fn an_error_survives_the_control_api() {
        let error = YardError::new(ErrorKind::NotPermitted, "a", "b").next("c");
        let json = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<YardError>(&json).unwrap(), error);
    }
}
