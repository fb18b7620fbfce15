//! Everything that a run could leave behind, for comparison before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::process::{peer, run};
use crate::wait_for;

/// What there is of each kind that netyard makes. One line of text for each thing, starting with
/// its kind: `link eth0`, `process 17 netyard`, ...
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the current namespaces.
    ///
    /// # Panics
    /// When `/proc` or `ip` cannot be read.
    #[must_use]
    pub fn take() -> Self {
        let mut things = BTreeSet::new();
        links(&mut things);
        processes(&mut things);
        sockets(&mut things);
        mounts(&mut things);
        for folder in ["/run", "/tmp"] {
            files(Path::new(folder), &mut things);
        }
        Self { things }
    }

    /// Waits until everything is as it was in this snapshot.
    ///
    /// # Panics
    /// When `within` has passed; the message lists what is left or missing.
    pub fn assert_restored(&self, within: Duration) {
        let mut difference = String::new();
        let start = std::time::Instant::now();
        wait_for_quietly(within, || {
            difference = self.difference(&Self::take());
            difference.is_empty()
        });
        assert!(difference.is_empty(), "{:?} later:\n{difference}", start.elapsed());
    }

    /// One line for each thing that came (`+`) or went (`-`).
    fn difference(&self, now: &Self) -> String {
        let came = now.things.difference(&self.things).map(|thing| format!("+ {thing}\n"));
        let went = self.things.difference(&now.things).map(|thing| format!("- {thing}\n"));
        came.chain(went).collect()
    }
}

fn wait_for_quietly(within: Duration, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    wait_for("no leftovers", within + Duration::from_secs(60), || {
        (condition() || start.elapsed() >= within).then_some(())
    });
}

fn links(things: &mut BTreeSet<String>) {
    let text = run(Command::new(peer("ip")).args(["-j", "link"]));
    let links: serde_json::Value = serde_json::from_str(&text).expect("`ip -j` prints JSON");
    let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    things.extend(names.map(|name| format!("link {name}")));
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        things.insert(format!("named namespace {}", entry.file_name().display()));
    }
}

/// Processes but zombies (their parent is the test's shell, which reaps them when it likes), and
/// the namespaces they are in. The pids differ from run to run; within one run they do not.
fn processes(things: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let folder = entry.path();
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process may end while it is looked at.
        let Ok(status) = fs::read_to_string(folder.join("status")) else { continue };
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim)
        };
        if field("State:").starts_with('Z') {
            continue;
        }
        things.insert(format!("process {pid} {}", field("Name:")));
        for kind in ["net", "mnt", "user", "pid", "ipc", "uts"] {
            if let Ok(namespace) = fs::read_link(folder.join("ns").join(kind)) {
                things.insert(format!("namespace {}", namespace.display()));
            }
        }
    }
}

/// Listening and bound sockets. Connections are left out: the kernel keeps them for a while after
/// both ends have closed (TIME_WAIT).
fn sockets(things: &mut BTreeSet<String>) {
    const LISTEN: &str = "0A";
    for kind in ["tcp", "tcp6", "udp", "udp6"] {
        let table = fs::read_to_string(format!("/proc/net/{kind}")).expect("socket tables");
        for line in table.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next().unwrap_or(""), fields.nth(1).unwrap_or(""));
            if kind.starts_with("udp") || state == LISTEN {
                things.insert(format!("socket {kind} {local}"));
            }
        }
    }
    let table = fs::read_to_string("/proc/net/unix").expect("socket tables");
    for path in table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(7)) {
        things.insert(format!("socket unix {path}"));
    }
}

fn mounts(things: &mut BTreeSet<String>) {
    let table = fs::read_to_string("/proc/self/mounts").expect("mount table");
    for mut fields in table.lines().map(str::split_whitespace) {
        let (what, at) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        things.insert(format!("mount {what} on {at}"));
    }
}

fn files(folder: &Path, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path == Path::new("/run/testbed") || is_mount_point(&path) {
            continue;
        }
        things.insert(format!("file {}", path.display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, things);
        }
    }
}

/// A folder on another file system than its parent's: a build folder kept visible below `/tmp`.
fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::symlink_metadata(path).map(|data| data.dev()).ok();
    device(path) != path.parent().and_then(device)
}
