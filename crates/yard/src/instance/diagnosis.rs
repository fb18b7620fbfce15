//! Why this machine does not let us make an instance, and what to do about it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;

use netyard_sys::tap;

use super::message::{Failure, Step};
use super::program;
use crate::error::{ErrorKind, YardError};

/// `EPERM`, `EINVAL`, `ENOSPC`, `EACCES`, `EUSERS`, of errno(3).
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EUSERS: i32 = 87;

/// What to tell people of a step of init that did not work.
pub(super) fn explain(instance: &str, failure: &Failure) -> YardError {
    let wanted = format!("start instance {instance}");
    match (failure.step, failure.errno) {
        (Step::Namespaces | Step::Mounts | Step::Network, Some(EPERM | EACCES)) => {
            no_namespaces(wanted, failure)
        }
        (Step::Namespaces, Some(EINVAL | ENOSPC | EUSERS)) => no_namespaces(wanted, failure),
        (Step::Tap, _) => no_tap(wanted, failure),
        (Step::Start, errno) => {
            program::not_started(wanted, &failure.what, errno, &failure.message)
        }
        _ => other(wanted, failure, ErrorKind::System),
    }
}

fn other(wanted: String, failure: &Failure, kind: ErrorKind) -> YardError {
    YardError::new(kind, wanted, format!("{}: {}", failure.what, failure.message))
}

/// A setting that can forbid user namespaces, and what to do when it does.
struct Setting {
    name: &'static str,
    forbids: fn(&str) -> bool,
    next: &'static str,
}

const SETTINGS: [Setting; 3] = [
    Setting {
        name: "user.max_user_namespaces",
        forbids: |value| value == "0",
        next: "allow them with `sudo sysctl -w user.max_user_namespaces=15000`",
    },
    Setting {
        name: "kernel.unprivileged_userns_clone",
        forbids: |value| value == "0",
        next: "allow them with `sudo sysctl -w kernel.unprivileged_userns_clone=1`",
    },
    Setting {
        name: "kernel.apparmor_restrict_unprivileged_userns",
        forbids: |value| value != "0",
        next: "allow them with `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, \
               or give netyard an AppArmor profile with `userns,`",
    },
];

fn no_namespaces(wanted: String, failure: &Failure) -> YardError {
    no_namespaces_with(wanted, failure, |name| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::read_to_string(path).ok().map(|value| value.trim().to_owned())
    })
}

fn no_namespaces_with(
    wanted: String,
    failure: &Failure,
    read: impl Fn(&str) -> Option<String>,
) -> YardError {
    let read: Vec<_> = SETTINGS
        .iter()
        .filter_map(|setting| read(setting.name).map(|value| (setting, value)))
        .collect();
    let values: Vec<_> =
        read.iter().map(|(setting, value)| format!("{} = {value}", setting.name)).collect();
    let found = format!(
        "this machine does not let us {}: {} ({})",
        failure.what,
        failure.message,
        values.join(", ")
    );
    let next = read.iter().find(|(setting, value)| (setting.forbids)(value)).map_or(
        "run netyard outside of this container or sandbox, or let it make user namespaces",
        |(setting, _)| setting.next,
    );
    YardError::new(ErrorKind::NotPermitted, wanted, found).next(next)
}

fn no_tap(wanted: String, failure: &Failure) -> YardError {
    let device = tap::DEVICE;
    match fs::metadata(device) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            YardError::new(ErrorKind::NotPermitted, wanted, format!("there is no {device}"))
                .next("load the driver with `sudo modprobe tun`")
        }
        Ok(metadata) if matches!(failure.errno, Some(EPERM | EACCES)) => {
            let mode = metadata.permissions().mode() & 0o7777;
            let found = format!("{device} is closed to you (mode {mode:04o})");
            YardError::new(ErrorKind::NotPermitted, wanted, found)
                .next(format!("open it with `sudo chmod 0666 {device}` or `make deps`"))
        }
        _ => other(wanted, failure, ErrorKind::System),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(step: Step, errno: i32) -> Failure {
        Failure::new(step, "make namespaces", &io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn the_setting_that_forbids_is_named_with_its_cure() {
        let error = no_namespaces_with("x".to_owned(), &failure(Step::Namespaces, EPERM), |name| {
            (name != "kernel.unprivileged_userns_clone")
                .then(|| if name.starts_with("kernel.apparmor") { "1" } else { "15000" }.to_owned())
        });
        assert_eq!(error.kind, ErrorKind::NotPermitted);
        assert!(error.found.contains("user.max_user_namespaces = 15000"), "{error}");
        assert!(error.found.contains("kernel.apparmor_restrict_unprivileged_userns = 1"));
        assert!(error.next.unwrap().contains("apparmor_restrict_unprivileged_userns=0"));
    }

    #[test]
    fn a_closed_tap_device_is_named_with_its_mode() {
        let error = explain("web", &failure(Step::Tap, EACCES));
        assert_eq!(error.kind, ErrorKind::NotPermitted);
        assert!(error.to_string().contains("/dev/net/tun"), "{error}");
        assert!(error.next.is_some());
    }

    #[test]
    fn a_program_that_does_not_start_is_its_own_fault() {
        let kind = |errno| explain("web", &failure(Step::Start, errno)).kind;
        let kinds = [ErrorKind::NoProgram, ErrorKind::NotExecutable, ErrorKind::System];
        assert_eq!([2, EACCES, 11].map(kind), kinds);
    }
}
