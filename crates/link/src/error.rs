//! What can go wrong, by whose fault it is.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error numbers of the kernel that mean something here (asm-generic/errno.h).
pub(crate) mod errno {
    pub(crate) const EPERM: i32 = 1;
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const ESRCH: i32 = 3;
    pub(crate) const EACCES: i32 = 13;
    pub(crate) const EEXIST: i32 = 17;
    pub(crate) const ENODEV: i32 = 19;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const ERESTART: i32 = 85;
    pub(crate) const EXFULL: i32 = 54;
    pub(crate) const EMSGSIZE: i32 = 90;
    pub(crate) const EADDRNOTAVAIL: i32 = 99;
    pub(crate) const ENETUNREACH: i32 = 101;
    pub(crate) const EHOSTUNREACH: i32 = 113;
}

/// What went wrong. Its text says what was wanted, what was found and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {operation}: {}{}", io::Error::from_raw_os_error(*.errno), Detail(detail))]
    Refused {
        /// What was wanted: "make the bridge br1".
        operation: String,
        /// The kernel's error number.
        errno: i32,
        /// The kernel's own explanation, if it gave one.
        detail: Option<String>,
    },
    /// The kernel refused because a capability is missing.
    #[error(
        "cannot {operation}: not permitted; it needs CAP_NET_ADMIN over the network, and \
         CAP_SYS_ADMIN to act in other namespaces: run it as root, or grant them to the program with \
         `setcap cap_net_admin,cap_sys_admin+ep`"
    )]
    NotPermitted {
        /// What was wanted.
        operation: String,
    },
    /// Something that is not ours has the place.
    #[error("{what} is there already and is not ours: choose another name or remove it")]
    Taken {
        /// The thing in the way.
        what: String,
    },
    /// Something that is needed is not there.
    #[error("there is no {what}")]
    Absent {
        /// What is missing.
        what: String,
    },
    /// This kernel cannot do it.
    #[error("this kernel has no {feature}: {remedy}")]
    Unsupported {
        /// What it lacks.
        feature: &'static str,
        /// What helps.
        remedy: String,
    },
    /// Others kept changing what was to be changed.
    #[error("{what} kept changing while it was {action} ({attempts} attempts)")]
    Busy {
        /// What changes.
        what: &'static str,
        /// What was tried.
        action: &'static str,
        /// How often.
        attempts: usize,
    },
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The kernel's answer makes no sense.
    #[error("the kernel's answer to \"{operation}\" makes no sense")]
    Malformed {
        /// What was wanted.
        operation: String,
    },
    /// A system call or file failed.
    #[error("cannot {operation}: {source}")]
    Io {
        /// What was wanted.
        operation: String,
        /// What the system said.
        source: io::Error,
    },
    /// A step of a plan failed; what had been made is undone, but for what is left.
    #[error("cannot {step}: {cause}{}", Left(left))]
    Step {
        /// The step, in words.
        step: String,
        /// Why.
        cause: Box<Error>,
        /// What could not be undone.
        left: Option<Box<Error>>,
    },
    /// Several things at once.
    #[error("{}", Lines(.0))]
    Several(Vec<Error>),
    /// Another process has the journal.
    #[error("the journal {}: another process uses it", path.display())]
    InUse {
        /// Its file.
        path: PathBuf,
    },
    /// The journal cannot be used.
    #[error("the journal {}: {reason}", path.display())]
    Journal {
        /// Its file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

struct Detail<'a>(&'a Option<String>);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |detail| write!(f, " ({detail})"))
    }
}

struct Left<'a>(&'a Option<Box<Error>>);

impl fmt::Display for Left<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |left| write!(f, "; and this could not be undone: {left}"))
    }
}

struct Lines<'a>(&'a [Error]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            let between = if number == 0 { "" } else { "; " };
            write!(f, "{between}{error}")?;
        }
        Ok(())
    }
}

impl Error {
    /// All of them, or none.
    pub(crate) fn all(mut errors: Vec<Self>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(Self::Several(errors)),
        }
    }

    /// What the kernel said about an operation.
    pub(crate) fn refused(operation: String, errno: i32, detail: Option<String>) -> Self {
        match errno {
            errno::EPERM => Self::NotPermitted { operation },
            errno::EXFULL => {
                // BR_MAX_PORTS
                let full = || "a bridge of the kernel has room for 1,023 links".to_owned();
                Self::Refused { operation, errno, detail: detail.or_else(|| Some(full())) }
            }
            errno => Self::Refused { operation, errno, detail },
        }
    }

    /// A system call or file operation that failed.
    pub(crate) fn io(operation: impl Into<String>, source: io::Error) -> Self {
        let operation = operation.into();
        match source.raw_os_error() {
            Some(errno::EPERM) => Self::NotPermitted { operation },
            _ => Self::Io { operation, source },
        }
    }

    /// The kernel's error number, if this is what the kernel said.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::NotPermitted { .. } => Some(errno::EPERM),
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// True when what was to be changed or removed does not exist (any more).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        const GONE: [i32; 4] = [errno::ENOENT, errno::ESRCH, errno::ENODEV, errno::EADDRNOTAVAIL];
        matches!(self, Self::Absent { .. }) || self.errno().is_some_and(|code| GONE.contains(&code))
    }

    /// True when what was to be made exists already.
    #[must_use]
    pub fn exists(&self) -> bool {
        matches!(self, Self::Taken { .. }) || self.errno() == Some(errno::EEXIST)
    }
}

/// Makes "it is gone already" a success: for removals.
pub(crate) fn gone_is_done(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_gone() => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_was_wanted_and_why_not() {
        let error = Error::refused(
            "make the bridge br1".into(),
            errno::EEXIST,
            Some("name is in use".into()),
        );
        assert_eq!(
            error.to_string(),
            "cannot make the bridge br1: File exists (os error 17) (name is in use)"
        );
        assert!(error.exists() && !error.is_gone());
        let error = Error::refused("make the bridge br1".into(), errno::EPERM, None);
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        assert_eq!(error.errno(), Some(errno::EPERM));
    }
}
