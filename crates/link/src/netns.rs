//! Network namespaces: hold one, act in it, remember which one it was.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use netyard_sys::namespace::{self, Namespaces};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A network namespace that is held open: it stays as long as this value does.
#[derive(Debug, Clone)]
pub struct Netns {
    file: Arc<File>,
    identity: NetnsId,
}

/// Which network namespace, so that it can be found again and not be mistaken for another one:
/// where it is reachable, and its number in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Netns {
    /// The namespace that a file stands for: `/run/netns/red`, `/proc/17/ns/net`.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::io(format!("open the namespace {}", path.display()), error);
        let file = File::open(path).map_err(failed)?;
        let data = file.metadata().map_err(failed)?;
        let identity = NetnsId { path: path.to_owned(), device: data.dev(), inode: data.ino() };
        Ok(Self { file: Arc::new(file), identity })
    }

    /// The namespace of a process.
    ///
    /// # Errors
    /// There is no such process, or it is not ours to look at.
    pub fn of_process(pid: u32) -> Result<Self> {
        Self::open(&PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace that a descriptor stands for, which somebody else has opened. What is made in it
    /// by plans is known again while this value lives; it goes with the namespace, and with the
    /// near ends of pairs.
    ///
    /// # Errors
    /// [`Error::Invalid`]: it stands for something else.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self> {
        let file = File::from(descriptor);
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let failed = |error| Error::io("look at a namespace's descriptor", error);
        let target = fs::read_link(&path).map_err(failed)?;
        let data = file.metadata().map_err(failed)?;
        // A namespace that is mounted somewhere has that name, and all are in one file system.
        let shown = target.to_string_lossy();
        let namespaces = Self::current()?.identity.device;
        if !shown.starts_with("net:[") && (shown.contains(":[") || data.dev() != namespaces) {
            return Err(Error::Invalid(format!("{shown} is not a network namespace")));
        }
        let identity = NetnsId { path, device: data.dev(), inode: data.ino() };
        Ok(Self { file: Arc::new(file), identity })
    }

    /// Which one it is.
    #[must_use]
    pub fn id(&self) -> &NetnsId {
        &self.identity
    }

    /// Runs `work` in this namespace, on a thread of its own: sockets opened there stay there,
    /// and `/proc/sys/net` is this namespace's.
    ///
    /// # Errors
    /// The namespace cannot be entered: it needs `CAP_SYS_ADMIN` over it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        namespace::within(self.file.as_fd(), Namespaces::NETWORK, work).map_err(|error| {
            Error::io(format!("enter the namespace {}", self.identity.path.display()), error)
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl NetnsId {
    /// Where it is, or was, reachable.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if both stand for the same namespace, wherever they are reachable.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Opens it again; `None` if it is not there any more.
    ///
    /// # Errors
    /// Its file is there but cannot be opened.
    pub fn open(&self) -> Result<Option<Netns>> {
        match Netns::open(&self.path) {
            Ok(netns) => Ok(Some(netns).filter(|netns| netns.identity.is(self))),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The kernel's number of it, as in `net:[4026531840]`.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.inode
    }
}

/// Where `ip netns` keeps the names of namespaces.
const NAMES: &str = "/run/netns";

/// The file of a named namespace, as `ip netns` has it.
///
/// # Errors
/// [`Error::Invalid`]: not a name.
pub fn named(name: &str) -> Result<PathBuf> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    if !plain {
        return Err(Error::Invalid(format!("{name:?} is not a name for a namespace")));
    }
    Ok(Path::new(NAMES).join(name))
}

/// Makes a namespace with a name that `ip netns` knows too. `prepare` runs in it before it gets
/// the name.
pub(crate) fn create_named(name: &str, prepare: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let path = named(name)?;
    let failed = |error| Error::io(format!("make the namespace {name}"), error);
    fs::create_dir_all(NAMES).map_err(failed)?;
    match File::create_new(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::Taken { what: format!("the namespace {name}") });
        }
        made => {
            made.map_err(failed)?;
        }
    }
    let made = namespace::within_new(Namespaces::NETWORK, || {
        prepare()?;
        netyard_sys::mount::bind(Path::new("/proc/thread-self/ns/net"), &path).map_err(failed)
    });
    let made = made.map_err(failed).and_then(|made| made);
    if made.is_err() {
        // The name is ours: the file was not there before.
        let _ = fs::remove_file(&path);
    }
    made
}

/// Takes the name away from a namespace; the namespace goes when nothing else holds it.
pub(crate) fn remove_named(name: &str) -> Result<()> {
    let path = named(name)?;
    let failed = |error| Error::io(format!("remove the namespace {name}"), error);
    // EINVAL: nothing is mounted there.
    match netyard_sys::mount::detach(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => return Err(failed(error)),
        _ => {}
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_known_again_and_not_mistaken() {
        let here = Netns::current().unwrap();
        let same = Netns::of_process(std::process::id()).unwrap();
        assert!(here.id().is(same.id()));
        assert!(same.id().open().unwrap().is_some());
        let gone = NetnsId { path: "/proc/0/ns/net".into(), ..same.id().clone() };
        assert!(gone.open().unwrap().is_none(), "not there");
        let other = NetnsId { inode: 1, ..same.id().clone() };
        assert!(other.open().unwrap().is_none(), "another one has its place");
    }

    #[test]
    fn a_descriptor_is_a_namespace_or_refused() {
        let file = File::open("/proc/self/ns/net").unwrap();
        let netns = Netns::from_descriptor(file.into()).unwrap();
        assert!(netns.id().is(Netns::current().unwrap().id()));
        assert!(netns.id().open().unwrap().is_some());
        let id = netns.id().clone();
        drop(netns);
        assert!(id.open().unwrap().is_none(), "nobody holds it for us any more");
        let file = File::open("/proc/self/ns/mnt").unwrap();
        assert!(matches!(Netns::from_descriptor(file.into()), Err(Error::Invalid(_))));
    }

    #[test]
    fn names_of_namespaces_are_file_names() {
        assert_eq!(named("red").unwrap(), Path::new("/run/netns/red"));
        for bad in ["", ".", "../red", "a/b"] {
            assert!(named(bad).is_err(), "{bad}");
        }
    }
}
