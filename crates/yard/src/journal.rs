//! The journal of a yard: which processes its keeper has made, so that the next keeper finds
//! those that outlived it.
//!
//! A process is known by its number, its start time and the boot it belongs to. A number alone
//! may have come to mean somebody else's process, which is never touched.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netyard_sys::process::PidFd;
use netyard_sys::wait;
use serde::{Deserialize, Serialize};

use crate::instance::signal;

/// How long a killed process may take to go.
const GOING: Duration = Duration::from_secs(5);

/// A process that cannot be mistaken for another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    pid: u32,
    /// Clock ticks from boot to its start.
    started: u64,
}

impl Process {
    /// The process that has this number now.
    fn with_number(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, started: start_time(&stat)? })
    }
}

/// Field 22 of `/proc/<pid>/stat`, proc(5). The name, field 2, may hold anything, parentheses too.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    // What follows the name is field 3.
    fields.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// What is written down.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Entries {
    boot: String,
    /// The init of each instance.
    inits: BTreeMap<String, Process>,
}

/// The journal of a running keeper.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    entries: Entries,
}

impl Journal {
    /// Begins a new one in the folder of a yard.
    pub(crate) fn begin(folder: &Path) -> Self {
        let entries = Entries { boot: boot(), ..Entries::default() };
        Self { path: path_in(folder), entries }
    }

    /// Writes the inits down that there are now.
    pub(crate) fn set<'i>(
        &mut self,
        inits: impl Iterator<Item = (&'i str, u32)>,
    ) -> io::Result<()> {
        let mut now = BTreeMap::new();
        for (instance, pid) in inits {
            let known = self.entries.inits.get(instance).filter(|process| process.pid == pid);
            if let Some(process) = known.cloned().or_else(|| Process::with_number(pid)) {
                now.insert(instance.to_owned(), process);
            }
        }
        if now == self.entries.inits {
            return Ok(());
        }
        self.entries.inits = now;
        self.write()
    }

    /// Replaces the file whole, so that it is never half written.
    fn write(&self) -> io::Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&self.entries)?)?;
        fs::rename(new, &self.path)
    }
}

/// Kills what a keeper that was killed has left running; returns how many processes that were.
pub(crate) fn clean(folder: &Path) -> io::Result<usize> {
    let text = match fs::read(path_in(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        text => text?,
    };
    // One that cannot be read names nothing that we could be sure of.
    let entries: Entries = serde_json::from_slice(&text).unwrap_or_default();
    if entries.boot != boot() {
        return Ok(0);
    }
    entries.inits.values().try_fold(0, |killed, process| Ok(killed + usize::from(kill(process)?)))
}

/// Kills exactly that process, if it still lives.
fn kill(process: &Process) -> io::Result<bool> {
    let Ok(held) = PidFd::open(process.pid) else { return Ok(false) };
    // Held now: if it is the one, it stays the one.
    if Process::with_number(process.pid).as_ref() != Some(process) {
        return Ok(false);
    }
    held.signal(signal::KILL)?;
    wait::readable([held.as_fd()], Some(GOING))?;
    Ok(true)
}

fn path_in(folder: &Path) -> PathBuf {
    folder.join("journal.json")
}

/// What tells this boot of the machine from all others.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    #[test]
    fn what_a_killed_keeper_left_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let (mut left, mut gone) = (sleeper(), sleeper());
        let mut journal = Journal::begin(folder.path());
        journal.set([("left", left.id()), ("gone", gone.id())].into_iter()).unwrap();
        journal.set([("left", left.id())].into_iter()).unwrap();
        drop(journal);
        assert_eq!(clean(folder.path()).unwrap(), 1);
        assert_eq!(left.wait().unwrap().signal(), Some(signal::KILL));
        assert_eq!(gone.try_wait().unwrap(), None, "struck out, so not ours any more");
        gone.kill().unwrap();
        gone.wait().unwrap();
        assert_eq!(clean(folder.path()).unwrap(), 0, "a second time there is nothing");
    }

    #[test]
    fn a_process_with_a_reused_number_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let mut foreign = sleeper();
        for change in ["started", "boot"] {
            let mut journal = Journal::begin(folder.path());
            journal.set([("web", foreign.id())].into_iter()).unwrap();
            match change {
                "boot" => journal.entries.boot = "another".to_owned(),
                _ => journal.entries.inits.get_mut("web").unwrap().started += 1,
            }
            journal.write().unwrap();
            assert_eq!(clean(folder.path()).unwrap(), 0, "{change}");
        }
        fs::write(path_in(folder.path()), "nonsense").unwrap();
        assert_eq!(clean(folder.path()).unwrap(), 0);
        assert_eq!(foreign.try_wait().unwrap(), None);
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }

    #[test]
    fn start_times_are_read_past_any_name() {
        let tail = (3..=30).map(|field| format!(" {field}")).collect::<String>();
        assert_eq!(start_time(&format!("7 (a) b (c)){tail}")), Some(22));
        assert_eq!(start_time("7 (a) S 1"), None);
        assert!(Process::with_number(std::process::id()).is_some());
    }
}
