//! Kernel settings below `/proc/sys`, of the right network namespace.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::netns::Netns;

/// The name of a setting as a path: `net/ipv4/conf/br1/forwarding`. (With slashes: names of links
/// may contain dots.)
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

impl Key {
    fn path(&self) -> PathBuf {
        PathBuf::from("/proc/sys").join(&self.0)
    }

    /// Its value; `None`: the kernel does not have it, or not for such a link.
    ///
    /// # Errors
    /// It cannot be read, the namespace cannot be entered.
    pub fn get(&self, netns: Option<&Netns>) -> Result<Option<String>> {
        match run(netns, || fs::read_to_string(self.path()))? {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read the setting {self}"), error)),
        }
    }

    /// Changes it.
    ///
    /// # Errors
    /// [`Error::is_gone`]: the kernel does not have it; `EINVAL`: it cannot have this value;
    /// `EROFS`, `EACCES`: not ours to change.
    pub fn set(&self, netns: Option<&Netns>, value: &str) -> Result<()> {
        run(netns, || fs::write(self.path(), value))?
            .map_err(|error| Error::io(format!("set {self} to {value}"), error))
    }
}

/// `/proc/sys/net` is that of the thread that looks.
fn run<T: Send>(netns: Option<&Netns>, work: impl FnOnce() -> T + Send) -> Result<T> {
    match netns {
        Some(netns) => netns.run(work),
        None => Ok(work()),
    }
}

impl TryFrom<String> for Key {
    type Error = Error;

    fn try_from(key: String) -> Result<Self> {
        let plain =
            |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if key.split('/').all(plain) {
            Ok(Self(key))
        } else {
            Err(Error::Invalid(format!(
                "{key:?} is not the name of a setting, such as net/ipv4/ip_forward"
            )))
        }
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(key: &str) -> Result<Self> {
        key.to_owned().try_into()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_names_stay_below_their_folder() {
        let key: Key = "kernel/ostype".parse().unwrap();
        assert_eq!(key.get(None).unwrap().as_deref(), Some("Linux"));
        let none: Key = "net/ipv4/no_such_setting".parse().unwrap();
        assert_eq!(none.get(None).unwrap(), None);
        assert!(none.set(None, "1").unwrap_err().is_gone());
        for bad in ["", "/etc/passwd", "net/../../etc", "net//ipv4", "net/"] {
            assert!(bad.parse::<Key>().is_err(), "{bad}");
        }
    }
}
