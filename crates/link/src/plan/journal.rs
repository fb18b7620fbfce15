//! The journal: what an owner has made on this machine, written before it is made.
//!
//! One JSON value in each line. The first says whose it is and for which boot and namespace it
//! holds; then come intents, and words that one is done or undone. Lines are only added; a line that
//! a killed process did not finish is as good as not begun. The file is locked while it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Owner;
use super::step::{Before, Step};
use crate::error::{Error, Result};
use crate::netns::{Netns, NetnsId};

/// A file is written anew when it has so many more lines than entries need.
const SPARE_LINES: usize = 1000;

/// The form of the file.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Header {
    version: u32,
    owner: String,
    boot: String,
    namespace: NetnsId,
}

/// One thing that is made, or about to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) plan: String,
    pub(super) step: Step,
    pub(super) before: Before,
    #[serde(skip)]
    pub(super) done: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Header(Header),
    Intent(Entry),
    Done(u64),
    Undone(u64),
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    header: Header,
    entries: BTreeMap<u64, Entry>,
    /// Which of them each plan has.
    plans: BTreeMap<String, BTreeSet<u64>>,
    next: u64,
    lines: usize,
}

impl Journal {
    /// Opens the file, or begins one.
    pub(super) fn open(path: &Path, owner: &Owner) -> Result<Self> {
        let failed = |error| Error::io(format!("open the journal {}", path.display()), error);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut file = loop {
            let file =
                File::options().read(true).append(true).create(true).open(path).map_err(failed)?;
            lock(&file, path)?;
            // It may have been replaced between opening and locking.
            if same_file(&file, path) {
                break file;
            }
        };
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        let header = Header {
            version: VERSION,
            owner: owner.as_str().to_owned(),
            boot: boot()?,
            namespace: Netns::current()?.id().clone(),
        };
        let (entries, lines) = match read(&text) {
            Some((old, entries, lines)) => {
                if old.boot != header.boot {
                    // What it speaks of went with the other boot.
                    (BTreeMap::new(), 0)
                } else {
                    check(&old, entries.is_empty(), &header, path)?;
                    (entries, lines)
                }
            }
            None if text.is_empty() || !text.contains(&b'\n') => (BTreeMap::new(), 0),
            None => {
                return Err(Error::Journal {
                    path: path.to_owned(),
                    reason: "it is not one of ours; remove it if nothing needs it".into(),
                });
            }
        };
        let next = entries.keys().next_back().map_or(1, |id| id + 1);
        let mut plans = BTreeMap::<String, BTreeSet<u64>>::new();
        for entry in entries.values() {
            plans.entry(entry.plan.clone()).or_default().insert(entry.id);
        }
        let mut journal = Self { path: path.to_owned(), file, header, entries, plans, next, lines };
        // Begins with a line that is whole, whatever the last one was.
        journal.rewrite()?;
        Ok(journal)
    }

    /// What there is, in the order in which it was made.
    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.values()
    }

    /// What there is of one plan, in the same order.
    pub(super) fn entries_of(&self, plan: &str) -> impl DoubleEndedIterator<Item = &Entry> {
        let ids = self.plans.get(plan).into_iter().flatten();
        ids.filter_map(|id| self.entries.get(id))
    }

    /// Writes down what is about to be made.
    pub(super) fn intend(&mut self, plan: &str, step: Step, before: Before) -> Result<u64> {
        let id = self.next;
        let entry = Entry { id, plan: plan.to_owned(), step, before, done: false };
        self.write(&Line::Intent(entry.clone()))?;
        self.plans.entry(entry.plan.clone()).or_default().insert(id);
        self.entries.insert(id, entry);
        self.next += 1;
        Ok(id)
    }

    /// Writes down that it is made.
    pub(super) fn done(&mut self, id: u64) -> Result<()> {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.done = true;
        }
        self.write(&Line::Done(id))
    }

    /// Writes down that it is taken back.
    pub(super) fn undone(&mut self, id: u64) -> Result<()> {
        self.write(&Line::Undone(id))?;
        if let Some(entry) = self.entries.remove(&id)
            && let Some(ids) = self.plans.get_mut(&entry.plan)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.plans.remove(&entry.plan);
            }
        }
        if self.lines > 2 * self.entries.len() + SPARE_LINES || self.entries.is_empty() {
            self.rewrite()?;
        }
        Ok(())
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        let failed = |error| Error::io(format!("write the journal {}", self.path.display()), error);
        let text = encode(line)?;
        self.file.write_all(&text).map_err(failed)?;
        self.lines += 1;
        Ok(())
    }

    /// Replaces the file by one that has only what is needed. The new one is locked before it has
    /// the name.
    fn rewrite(&mut self) -> Result<()> {
        let path = &self.path;
        let failed = |error| Error::io(format!("write the journal {}", path.display()), error);
        let mut text = encode(&Line::Header(self.header.clone()))?;
        let mut lines = 1;
        for entry in self.entries.values() {
            text.extend(encode(&Line::Intent(entry.clone()))?);
            lines += 1;
            if entry.done {
                text.extend(encode(&Line::Done(entry.id))?);
                lines += 1;
            }
        }
        let new = path.with_extension("new");
        fs::write(&new, text).map_err(failed)?;
        let file = File::options().read(true).append(true).open(&new).map_err(failed)?;
        lock(&file, path)?;
        fs::rename(&new, path).map_err(failed)?;
        self.file = file;
        self.lines = lines;
        Ok(())
    }
}

fn encode(line: &Line) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(line)
        .map_err(|error| Error::Invalid(format!("a step cannot be written down: {error}")))?;
    text.push(b'\n');
    Ok(text)
}

/// Header, entries and number of lines; `None`: it has no header.
fn read(text: &[u8]) -> Option<(Header, BTreeMap<u64, Entry>, usize)> {
    let mut header = None;
    let mut entries = BTreeMap::<u64, Entry>::new();
    let mut count = 0;
    // What follows the last newline was not finished.
    let (whole, _) = text.split_at(text.iter().rposition(|byte| *byte == b'\n')?);
    for line in whole.split(|byte| *byte == b'\n') {
        count += 1;
        match serde_json::from_slice(line) {
            Ok(Line::Header(found)) => header = Some(found),
            Ok(Line::Intent(entry)) => drop(entries.insert(entry.id, entry)),
            Ok(Line::Done(id)) => {
                if let Some(entry) = entries.get_mut(&id) {
                    entry.done = true;
                }
            }
            Ok(Line::Undone(id)) => drop(entries.remove(&id)),
            Err(error) => tracing::warn!(%error, "a line of the journal cannot be read"),
        }
    }
    Some((header?, entries, count))
}

/// Refuses to act on another owner's journal, or in another namespace than what is in it was written for.
fn check(old: &Header, is_empty: bool, now: &Header, path: &Path) -> Result<()> {
    let reason = if old.version != now.version {
        format!("it has the form {}, and this program knows {}", old.version, now.version)
    } else if old.owner != now.owner {
        format!("it belongs to {}, not to {}", old.owner, now.owner)
    } else if !is_empty && !old.namespace.is(&now.namespace) {
        format!(
            "it was written in the network namespace {}, and this is {}; remove it if that one is \
             gone",
            old.namespace.number(),
            now.namespace.number()
        )
    } else {
        return Ok(());
    };
    Err(Error::Journal { path: path.to_owned(), reason })
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => {
            Err(Error::io(format!("lock the journal {}", path.display()), error))
        }
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let number = |data: fs::Metadata| (data.dev(), data.ino());
    file.metadata().ok().map(number) == fs::metadata(path).ok().map(number)
}

/// What tells this boot of the machine from all others.
pub(super) fn boot() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|error| Error::io("tell this boot from others", error))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(value: &str) -> Step {
        let key = "net/ipv4/ip_forward".parse().unwrap();
        Step::Sysctl { namespace: None, key, value: value.into() }
    }

    fn ids(journal: &Journal) -> Vec<(u64, bool)> {
        journal.entries().map(|entry| (entry.id, entry.done)).collect()
    }

    fn owner() -> Owner {
        Owner::new("lan").unwrap()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/lan.journal");
        let mut journal = Journal::open(&path, &owner()).unwrap();
        for value in ["1", "2", "3"] {
            let id = journal.intend("plug", step(value), Before::Nothing).unwrap();
            if value != "3" {
                journal.done(id).unwrap();
            }
        }
        journal.undone(1).unwrap();
        assert_eq!(ids(&journal), [(2, true), (3, false)]);
        let busy = Journal::open(&path, &owner()).unwrap_err();
        assert!(busy.to_string().contains("another process"), "{busy}");
        drop(journal);
        let mut journal = Journal::open(&path, &owner()).unwrap();
        assert_eq!(ids(&journal), [(2, true), (3, false)]);
        assert_eq!(journal.intend("plug", step("4"), Before::Nothing).unwrap(), 4);
    }

    #[test]
    fn a_line_that_was_not_finished_was_not_begun() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::open(&path, &owner()).unwrap();
        journal.intend("plug", step("1"), Before::Nothing).unwrap();
        journal.intend("plug", step("2"), Before::Nothing).unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        let second = whole.iter().rposition(|byte| *byte == b'{').unwrap();
        for cut in second..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(&path, &owner()).unwrap();
            assert_eq!(ids(&journal), [(1, false)], "cut at {cut}");
            // What is written next is whole.
            journal.done(1).unwrap();
            drop(journal);
            assert_eq!(ids(&Journal::open(&path, &owner()).unwrap()), [(1, true)]);
        }
        for cut in 0..8 {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(ids(&Journal::open(&path, &owner()).unwrap()).is_empty());
        }
    }

    #[test]
    fn a_journal_of_another_boot_is_begun_anew_and_foreign_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let change = |what: &str, to: &str| {
            let mut journal = Journal::open(&path, &owner()).unwrap();
            journal.intend("plug", step("1"), Before::Nothing).unwrap();
            drop(journal);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(what), "{text}");
            fs::write(&path, text.replacen(what, to, 1)).unwrap();
            let opened = Journal::open(&path, &owner());
            let found = opened.map(|journal| ids(&journal).len());
            fs::remove_file(&path).unwrap();
            found
        };
        assert_eq!(change(&boot().unwrap(), "another").unwrap(), 0);
        assert!(change("\"lan\"", "\"dmz\"").unwrap_err().to_string().contains("dmz"));
        assert!(change("\"version\":1", "\"version\":2").is_err());
        assert!(change("\"inode\":", "\"inode\":1").is_err(), "another namespace");
        // One that speaks of nothing is good in any.
        drop(Journal::open(&path, &owner()).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("\"inode\":", "\"inode\":1", 1)).unwrap();
        let mut journal = Journal::open(&path, &owner()).unwrap();
        journal.intend("plug", step("1"), Before::Nothing).unwrap();
        drop(journal);
        assert_eq!(ids(&Journal::open(&path, &owner()).unwrap()), [(1, false)]);
        fs::write(&path, "something else\n").unwrap();
        assert!(Journal::open(&path, &owner()).is_err());
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::open(&path, &owner()).unwrap();
        let stays = journal.intend("network", step("0"), Before::Nothing).unwrap();
        journal.done(stays).unwrap();
        for _ in 0..2000 {
            let id = journal.intend("plug", step("1"), Before::Nothing).unwrap();
            journal.done(id).unwrap();
            journal.undone(id).unwrap();
        }
        assert!(journal.lines < 2 * SPARE_LINES);
        drop(journal);
        assert_eq!(ids(&Journal::open(&path, &owner()).unwrap()), [(stays, true)]);
    }
}
