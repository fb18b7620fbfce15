//! Namespaces that belong to one test.
//!
//! The test binary runs itself again, for this one test only, below `unshare`: new network,
//! mount and process namespaces, and a user namespace unless the caller is root and keeps its
//! ids. What is inside has a loopback interface and nothing else: no route to the machine's
//! uplink, and folders `/run` and `/tmp` of its own. When the test ends, in whatever way, the
//! kernel kills what it started with the process namespace.

use std::any::type_name;
use std::env;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::OnceLock;
use std::time::Duration;

use crate::process::{output, peer};
use crate::wait::wait_for;

/// Set, to the test's name, in the environment of the isolated run.
const INSIDE: &str = "NETYARD_TESTBED_INSIDE";

/// Says whether the isolated run keeps the caller's ids: `kept` or `mapped`.
const IDS: &str = "NETYARD_TESTBED_IDS";

/// After this time an isolated run is killed: far above the slowest test on two slow cores.
const LIMIT: Duration = Duration::from_secs(600);

/// Where the folder of built programs is visible inside, readable by every user.
const PROGRAMS: &str = "/run/testbed/bin";

/// Far above what making a user namespace takes.
const MAPPED: Duration = Duration::from_secs(30);

/// The id of [`User::Ordinary`].
const ORDINARY: u32 = 1000;

/// Runs as process 1 inside: folders of its own, loopback up, then the test as its child (a shell
/// reaps what is orphaned). `$1` is the folder of programs; `$2` and `$3` are folders that must
/// stay visible if they lie below `/tmp`; the rest is the command.
const SETUP: &str = r#"
set -e
ip link set lo up
here=$PWD
mount -t tmpfs -o mode=755 testbed /run
mkdir -p /run/testbed/bin /run/testbed/keep2 /run/testbed/keep3 /run/user/1000
chmod 700 /run/user/1000
if [ "$NETYARD_TESTBED_IDS" = kept ]; then chown 1000:1000 /run/user/1000; fi
mount --rbind "$1" /run/testbed/bin
mount --rbind "$2" /run/testbed/keep2
mount --rbind "$3" /run/testbed/keep3
mount -t tmpfs -o mode=1777 testbed /tmp
case "$2" in /tmp/*) mkdir -p "$2"; mount --rbind /run/testbed/keep2 "$2" ;; esac
case "$3" in /tmp/*) mkdir -p "$3"; mount --rbind /run/testbed/keep3 "$3" ;; esac
echo 'nameserver 127.0.0.1' > /run/testbed/resolv.conf
mount --bind /run/testbed/resolv.conf "$(readlink -m /etc/resolv.conf)" 2>/dev/null || {
    # A link into /run, which is empty now.
    resolver=$(readlink -m /etc/resolv.conf)
    mkdir -p "$(dirname "$resolver")"
    cp /run/testbed/resolv.conf "$resolver"
}
cd "$here"
shift 3
unset XDG_RUNTIME_DIR
"$@"
exit $?
"#;

/// Runs the body of a test in namespaces of its own. Call it once, as the whole of a `#[test]`.
///
/// Inside, the caller is root: with its real ids if it is the real root, else by a user namespace.
///
/// # Panics
/// When the body panics, or the namespaces cannot be made.
pub fn isolate<F: FnOnce()>(body: F) {
    start(if caller_is_root() { "kept" } else { "mapped" }, body);
}

/// Like [`isolate`], but always by a user namespace: even the real root is root only inside.
///
/// # Panics
/// As [`isolate`].
pub fn isolate_mapped<F: FnOnce()>(body: F) {
    start("mapped", body);
}

fn start<F: FnOnce()>(ids: &str, body: F) {
    let test = test_name::<F>();
    if env::var(INSIDE).is_ok_and(|inside| inside == test) {
        return body();
    }
    let program = env::current_exe().expect("the test binary has a path");
    let programs = program.ancestors().nth(2).expect("cargo puts tests into target/<profile>/deps");
    let mut command = Command::new(peer("timeout"));
    command.arg("--kill-after=5").arg(LIMIT.as_secs().to_string());
    enclose(&mut command, ids, programs)
        .arg(&program)
        .args(["--exact", test, "--nocapture", "--include-ignored", "--test-threads=1"])
        .env(INSIDE, test);
    let done = output(&mut command);
    let text = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success() && text.contains("1 passed"),
        "isolated run of {test} failed ({}):\n{text}{errors}{}",
        done.status,
        if errors.starts_with("unshare:") { NO_NAMESPACES } else { "" }
    );
}

/// Isolates a whole program: call it first in `main`. Outside it runs the program again, inside
/// and with the same arguments, and returns its exit code; inside it returns `None`.
///
/// # Panics
/// When the namespaces cannot be made.
#[must_use]
pub fn isolate_main() -> Option<ExitCode> {
    if env::var(INSIDE).is_ok() {
        return None;
    }
    let program = env::current_exe().expect("the running program has a path");
    let programs = program.parent().expect("programs lie in a folder");
    let mut command = Command::new(peer("env"));
    let ids = if caller_is_root() { "kept" } else { "mapped" };
    enclose(&mut command, ids, programs).arg(&program).args(env::args_os().skip(1));
    let status = command.env(INSIDE, "main").status().expect("`env` can be started");
    Some(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Adds to a command that runs its arguments: `unshare`, the set-up, and room for the program.
fn enclose<'a>(command: &'a mut Command, ids: &str, programs: &Path) -> &'a mut Command {
    let target = programs.parent().expect("the profile's folder lies in the target folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/testbed");
    command.arg(peer("unshare"));
    if ids == "mapped" {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"])
        .args(["sh", "-c", SETUP, "sh"])
        .args([programs, target, source])
        .env(IDS, ids)
}

const NO_NAMESPACES: &str = "\nThis user may not make user namespaces. Look at the sysctls \
    user.max_user_namespaces, kernel.unprivileged_userns_clone (Debian) and \
    kernel.apparmor_restrict_unprivileged_userns (Ubuntu).";

/// The path of the test whose body has type `F`, as libtest names it: the closure's path without
/// crate and closure suffix. [`start`] notices if that form ever changes: no test runs then.
fn test_name<F>() -> &'static str {
    let path = type_name::<F>();
    let path = path.split_once("::").map_or(path, |(_crate, path)| path);
    path.split("::{{closure}}").next().unwrap_or(path)
}

fn caller_is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    status.lines().any(|line| line.split_whitespace().take(3).eq(["Uid:", "0", "0"]))
}

/// As whom a test runs a program inside [`isolate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Root of the isolated namespaces.
    Root,
    /// An ordinary user with id 1000, no capabilities, and a runtime folder as after a login.
    Ordinary,
}

impl User {
    /// Every kind of user.
    pub const ALL: [Self; 2] = [Self::Root, Self::Ordinary];

    /// A command that runs a program of this workspace as this user. `PATH` starts with the
    /// folder of the workspace's programs.
    ///
    /// # Panics
    /// Outside of [`isolate`], and when the program has not been built.
    #[must_use]
    pub fn command(self, program: &str) -> Command {
        let file = PathBuf::from(PROGRAMS).join(program);
        assert!(file.is_file(), "{program} is not built: run `cargo build --workspace` first");
        self.run(&file)
    }

    /// A command that runs a program of the machine as this user.
    ///
    /// # Panics
    /// Outside of [`isolate`], and when the program is not installed.
    #[must_use]
    pub fn peer(self, program: &str) -> Command {
        self.run(&peer(program))
    }

    /// A new folder below `/tmp` that belongs to this user and that everybody may read.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn folder(self, name: &str) -> PathBuf {
        let folder = Path::new("/tmp").join(name);
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        if self == Self::Ordinary && Self::ids_are_real() {
            chown(&folder, Some(ORDINARY), Some(ORDINARY)).expect("root may give folders away");
        }
        folder
    }

    /// True if the users' ids are the machine's own, as when the real root runs the tests. Else they are
    /// names that a user namespace gives to one id of the machine.
    #[must_use]
    pub fn ids_are_real() -> bool {
        env::var(IDS).is_ok_and(|ids| ids == "kept")
    }

    fn run(self, file: &Path) -> Command {
        let ids = env::var(IDS).expect("programs are run inside `isolate`");
        let mut command = match (self, ids.as_str()) {
            (Self::Root, _) => Command::new(file),
            (Self::Ordinary, "kept") => {
                let mut command = Command::new(peer("setpriv"));
                let id = ORDINARY.to_string();
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
                command.args(["--inh-caps=-all", "--bounding-set=-all"]).arg(file);
                command
            }
            (Self::Ordinary, _) => {
                let mut command = Command::new(peer("nsenter"));
                command.arg("--target").arg(ordinary_namespace().to_string());
                command.args(["--user", "--preserve-credentials"]).arg(file);
                command
            }
        };
        let path = env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{PROGRAMS}:{path}"));
        command.env_remove(INSIDE).env_remove(IDS);
        if self == Self::Ordinary {
            command.env("XDG_RUNTIME_DIR", format!("/run/user/{ORDINARY}"));
        }
        command
    }
}

/// A process in the user namespace of [`User::Ordinary`], where ids are mapped: the user is the
/// same in one command and in the next. Starts it at the first call; it ends with the isolated
/// run.
fn ordinary_namespace() -> u32 {
    static HOLDER: OnceLock<Child> = OnceLock::new();
    let start = || {
        let mut command = Command::new(peer("unshare"));
        command.arg("--user").arg(format!("--map-user={ORDINARY}"));
        command.arg(format!("--map-group={ORDINARY}")).arg(peer("sleep")).arg("infinity");
        let holder = command.spawn().expect("`unshare` can be started");
        let name = format!("/proc/{}/comm", holder.id());
        // It maps its ids, then it becomes the other program.
        wait_for("a user namespace for the ordinary user", MAPPED, || {
            fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n").then_some(())
        });
        holder
    };
    HOLDER.get_or_init(start).id()
}

/// The folder below which netyard keeps its runtime files for this user, inside [`isolate`].
#[must_use]
pub fn runtime_root(user: User) -> PathBuf {
    match user {
        User::Root => PathBuf::from("/run/netyard"),
        User::Ordinary => PathBuf::from(format!("/run/user/{ORDINARY}/netyard")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_test_that_holds_the_closure() {
        fn name_of<F: FnOnce()>(_: F) -> &'static str {
            test_name::<F>()
        }
        assert_eq!(name_of(|| {}), "isolate::tests::names_the_test_that_holds_the_closure");
    }
}
