//! The names of the network's machines in a hosts file, as hosts(5) has it.
//!
//! Each line of ours ends with a remark that says whose it is, and only such lines are changed. Which file it is
//! stands in the peer's folder from before the first line, so that the next start finds what a killed one left.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::error::{Error, Result};
use crate::message::Name;

/// In the peer's folder: the hosts file with lines of ours.
const RECORD: &str = "hosts-file";

/// Longest name (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;

/// A hosts file with a peer's lines.
#[derive(Debug)]
pub(crate) struct Hosts {
    record: PathBuf,
    remark: String,
}

impl Hosts {
    /// Of the peer of this name, in its folder. Removes what a killed one has left.
    pub(crate) fn open(owner: &str, runtime: &Path) -> Result<Self> {
        let hosts = Self { record: runtime.join(RECORD), remark: format!(" # netyard {owner}") };
        hosts.clear()?;
        Ok(hosts)
    }

    /// Has these names in the file, in place of those before.
    pub(crate) fn write(&self, file: &Path, names: &[Name], networks: &[IpNet]) -> Result<()> {
        let failed = |error| Error::io(format!("write names to {}", file.display()), &error);
        fs::write(&self.record, file.as_os_str().as_bytes()).map_err(failed)?;
        self.change(file, &self.lines(names, networks)).map_err(failed)
    }

    /// Removes every line of ours.
    pub(crate) fn clear(&self) -> Result<()> {
        let file = match fs::read(&self.record) {
            Ok(path) => PathBuf::from(std::ffi::OsString::from_vec(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(Error::io(format!("read {}", self.record.display()), &error));
            }
        };
        match self.change(&file, "") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove names from {}", file.display()), &error));
            }
            _ => {}
        }
        fs::remove_file(&self.record)
            .map_err(|error| Error::io(format!("remove {}", self.record.display()), &error))
    }

    /// The lines of names. A hub names machines of its network, by names of several labels, and nothing else.
    fn lines(&self, names: &[Name], networks: &[IpNet]) -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_name = |name: &str| {
            name.len() <= MAX_NAME
                && name.bytes().all(plain)
                && name.trim_matches('.').contains('.')
        };
        let is_ours = |address: &&IpAddr| networks.iter().any(|net| net.contains(*address));
        let line = |name: &str, address: &IpAddr| format!("{address} {name}{}\n", self.remark);
        (names.iter().filter(|it| is_name(&it.name)))
            .flat_map(|it| {
                it.addresses.iter().filter(is_ours).map(|address| line(&it.name, address))
            })
            .collect()
    }

    /// Changes our lines in a file, which stays the same file: it may be mounted there.
    fn change(&self, file: &Path, lines: &str) -> io::Result<()> {
        let mut open = OpenOptions::new().read(true).write(true).open(file)?;
        let mut before = Vec::new();
        open.read_to_end(&mut before)?;
        let is_ours = |line: &&[u8]| line.trim_ascii_end().ends_with(self.remark.as_bytes());
        let others = before.split_inclusive(|byte| *byte == b'\n').filter(|line| !is_ours(line));
        let mut after = others.collect::<Vec<_>>().concat();
        if !lines.is_empty() && !after.is_empty() && !after.ends_with(b"\n") {
            after.push(b'\n');
        }
        after.extend_from_slice(lines.as_bytes());
        if after == before {
            return Ok(());
        }
        open.rewind()?;
        open.write_all(&after)?;
        open.set_len(after.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str, addresses: &[&str]) -> Name {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Name { name: name.into(), addresses }
    }

    #[test]
    fn only_lines_of_ours_change_and_a_killed_one_leaves_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hosts");
        let others = "127.0.0.1 localhost # netyard other\n\n::1 ip6-localhost";
        fs::write(&file, others).unwrap();
        let networks = ["10.1.1.0/24".parse().unwrap()];
        let write = |hosts: &Hosts, names: &[Name]| hosts.write(&file, names, &networks).unwrap();
        let read = || fs::read_to_string(&file).unwrap();
        let hosts = Hosts::open("peer-x", folder.path()).unwrap();
        write(
            &hosts,
            &[name("a.lab.internal", &["10.1.1.3"]), name("b.lab.internal", &["10.1.1.5"])],
        );
        let ours = "10.1.1.3 a.lab.internal # netyard peer-x\n";
        assert_eq!(read(), format!("{others}\n{ours}10.1.1.5 b.lab.internal # netyard peer-x\n"));
        write(&hosts, &[name("a.lab.internal", &["10.1.1.3"])]);
        assert_eq!(read(), format!("{others}\n{ours}"));
        drop(hosts);
        let hosts = Hosts::open("peer-x", folder.path()).unwrap();
        assert_eq!(read(), format!("{others}\n"));
        fs::remove_file(&file).unwrap();
        hosts.clear().unwrap();
    }

    #[test]
    fn a_hub_names_nothing_but_machines_of_its_network() {
        let hosts = Hosts { record: PathBuf::new(), remark: " # netyard x".into() };
        let networks = ["10.1.1.0/24".parse().unwrap(), "fd00:5::/64".parse().unwrap()];
        let long = format!("{}.internal", "a".repeat(250));
        for bad in ["localhost", "localhost.", "a b.internal", "a.internal\n1.2.3.4 x.y", "", &long]
        {
            assert_eq!(hosts.lines(&[name(bad, &["10.1.1.3"])], &networks), "", "{bad:?}");
        }
        let lines =
            hosts.lines(&[name("a.b", &["192.0.2.1", "fd00:5::3", "127.0.0.1"])], &networks);
        assert_eq!(lines, "fd00:5::3 a.b # netyard x\n");
    }
}
