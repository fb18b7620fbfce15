//! A machine's resolv.conf(5) with a server of ours in it.
//!
//! What was in the file stays in it, each line behind `#|`, so nothing else has to be remembered: whoever finds our
//! first line finds what was there before it, also after a kill or a power cut. A file that somebody has written
//! anew meanwhile is theirs, and stays as it is when we go.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use netyard_sys::resolv_conf;

use crate::error::{Blame, Error, Result};

/// Where programs learn whom to ask for names.
const FILE: &str = "/etc/resolv.conf";

/// In front of each line that was there before.
const KEPT: &str = "#|";
/// Begins our first line; the owner follows.
const OURS: &str = "# netyard ";
/// Ends our first line, where there was no file.
const NONE: &str = "there was no such file before";

/// The resolvers that programs of this machine ask.
pub(crate) fn servers() -> Vec<SocketAddr> {
    resolv_conf::servers(&fs::read_to_string(FILE).unwrap_or_default())
}

/// A machine's resolv.conf, and who may change it.
#[derive(Debug)]
pub(crate) struct ResolvConf {
    file: PathBuf,
    owner: String,
}

impl ResolvConf {
    /// Of the owner of this name. Takes back what a killed process of it has left.
    pub(crate) fn open(owner: &str) -> Result<Self> {
        let this = Self { file: FILE.into(), owner: owner.to_owned() };
        this.restore()?;
        Ok(this)
    }

    /// Has programs ask this server alone, and returns whom they asked before. Nothing happens if they do already.
    pub(crate) fn take(&self, server: IpAddr) -> Result<Vec<SocketAddr>> {
        let failed = |error| Error::io(format!("write {}", self.file.display()), &error);
        let before = read(&self.file).map_err(failed)?;
        if let Some(text) = &before
            && let Some(kept) = text.strip_prefix(OURS)
        {
            if !self.is_ours(text) {
                let found = "another peer's names are asked on this machine";
                let owner = kept.split(':').next().unwrap_or_default();
                return Err(Error::new(Blame::Conflict, "have the network's names asked", found)
                    .next(format!(
                        "stop {owner}, or undo what it left with `netyard join --undo`"
                    )));
            }
            return Ok(resolv_conf::servers(&kept_lines(text)));
        }
        let head = match &before {
            Some(_) => "what was here before stands below, and comes back at the end",
            None => NONE,
        };
        let text = before.unwrap_or_default();
        let is_server = |line: &&str| line.trim_start().starts_with("nameserver");
        let mut fresh = format!("{OURS}{}: {head}\nnameserver {server}\n", self.owner);
        for line in text.lines().filter(|line| !is_server(line)) {
            fresh.extend([line, "\n"]);
        }
        for line in text.split_inclusive('\n') {
            fresh.extend([KEPT, line]);
        }
        write(&self.file, &fresh).map_err(failed)?;
        Ok(resolv_conf::servers(&text))
    }

    /// Puts back what was there before, if what is there is ours.
    pub(crate) fn restore(&self) -> Result<()> {
        let failed = |error| Error::io(format!("restore {}", self.file.display()), &error);
        let text = match read(&self.file) {
            // We write none that is no text.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(()),
            read => read.map_err(failed)?,
        };
        let Some(text) = text.filter(|text| self.is_ours(text)) else { return Ok(()) };
        let there_was_none = text.lines().next().is_some_and(|line| line.ends_with(NONE));
        let restored = match there_was_none {
            true => fs::remove_file(&self.file),
            false => write(&self.file, &kept_lines(&text)),
        };
        restored.map_err(failed)
    }

    fn is_ours(&self, text: &str) -> bool {
        let rest = text.strip_prefix(OURS).and_then(|rest| rest.strip_prefix(self.owner.as_str()));
        rest.is_some_and(|rest| rest.starts_with(':'))
    }
}

/// The text that stood there before.
fn kept_lines(text: &str) -> String {
    text.split_inclusive('\n').filter_map(|line| line.strip_prefix(KEPT)).collect()
}

/// What a file says; `None`: there is none.
fn read(file: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file that stays the same one: it may be mounted there, or be behind a link.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut open = OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
    open.write_all(text.as_bytes())?;
    open.set_len(text.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &tempfile::TempDir, owner: &str) -> ResolvConf {
        ResolvConf { file: folder.path().join("resolv.conf"), owner: owner.into() }
    }

    #[test]
    fn what_was_there_comes_back_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let ours = file(&folder, "peer-x");
        let own = "127.64.41.1".parse().unwrap();
        for before in ["nameserver 192.0.2.1\nsearch lan\n\n# x\n", "nameserver 192.0.2.1", ""] {
            fs::write(&ours.file, before).unwrap();
            let servers = ours.take(own).unwrap();
            assert_eq!(servers, resolv_conf::servers(before));
            let text = fs::read_to_string(&ours.file).unwrap();
            assert_eq!(resolv_conf::servers(&text), ["127.64.41.1:53".parse().unwrap()]);
            assert_eq!(text.lines().any(|line| line == "search lan"), before.contains("search"));
            assert_eq!(ours.take(own).unwrap(), servers, "again");
            assert_eq!(fs::read_to_string(&ours.file).unwrap(), text);
            // As the next start after a kill finds it.
            file(&folder, "peer-x").restore().unwrap();
            assert_eq!(fs::read_to_string(&ours.file).unwrap(), before);
        }
        fs::remove_file(&ours.file).unwrap();
        ours.take(own).unwrap();
        ours.restore().unwrap();
        assert!(!ours.file.exists());
    }

    #[test]
    fn what_others_write_is_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let ours = file(&folder, "peer-x");
        let own = "127.64.41.1".parse().unwrap();
        fs::write(&ours.file, "nameserver 192.0.2.1\n").unwrap();
        ours.take(own).unwrap();
        assert_eq!(file(&folder, "peer-x-2").take(own).unwrap_err().blame, Blame::Conflict);
        file(&folder, "peer-x-2").restore().unwrap();
        let other = "nameserver 192.0.2.2\n";
        fs::write(&ours.file, other).unwrap();
        ours.restore().unwrap();
        assert_eq!(fs::read_to_string(&ours.file).unwrap(), other);
        assert_eq!(ours.take(own).unwrap(), ["192.0.2.2:53".parse().unwrap()]);
        ours.restore().unwrap();
        assert_eq!(fs::read_to_string(&ours.file).unwrap(), other);
    }
}
