//! The runtime folder: where running yards and networks have their sockets, locks and logs.
//!
//! ```text
//! /run/netyard/                    for root; $XDG_RUNTIME_DIR/netyard/ or /tmp/netyard-<uid>/ else
//!   hello/                         one yard
//!     lock                         held (flock) while its keeper lives
//!     journal.json                 what to clean up if the keeper is killed
//!     keeper.sock                  the control API
//!     keeper.log                   what a keeper in the background says
//!     instances/web-1/             log, log.1, hosts, resolv.conf
//!   .networks/hello.lan/           one network; its network process looks after it
//! ```
//!
//! The folder belongs to one user and is closed to all others (mode 0700): who can open it, may
//! do everything.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use netyard_engine::process::remove_if_dead;
use netyard_sys::process;

use crate::bridge;
use crate::error::{ErrorKind, YardError};
use crate::journal;

/// Name of the folder of networks. No yard has a name that starts with a dot.
const NETWORKS: &str = ".networks";

/// Name of [`Runtime::ledger`].
const LEDGER: &str = ".settings.json";

/// The runtime folder of the calling user.
#[derive(Debug, Clone)]
pub struct Runtime {
    root: PathBuf,
}

impl Runtime {
    /// The calling user's, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or what is there belongs to another user or is open to others.
    pub fn open() -> Result<Self, YardError> {
        let user = process::effective_user();
        // Who is user 0 in a user namespace alone has no such folder.
        let is_root = user == 0 && fs::metadata("/run").is_ok_and(|run| run.uid() == user);
        let session = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        Self::at(root_of(user, is_root, session))
    }

    /// The one at `root`, made if it is not there.
    ///
    /// # Errors
    /// See [`Runtime::open`].
    pub fn at(root: PathBuf) -> Result<Self, YardError> {
        make_own(&root)?;
        Ok(Self { root })
    }

    /// The runtime folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The ledger of settings that everybody shares who makes something on this machine but networks.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.root.join(LEDGER)
    }

    /// The folder of a yard; see [`Runtime::claim`].
    #[must_use]
    pub fn yard(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder of a yard, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or is not ours.
    pub fn make_yard(&self, name: &str) -> Result<PathBuf, YardError> {
        let path = self.yard(name);
        make_own(&self.root)?;
        make_own(&path)?;
        Ok(path)
    }

    /// The folder of a network, by its global name.
    #[must_use]
    pub fn network(&self, global: &str) -> PathBuf {
        self.root.join(NETWORKS).join(global)
    }

    /// The global names of the networks that have a folder.
    #[must_use]
    pub fn networks(&self) -> Vec<String> {
        let mut names = names_in(&self.root.join(NETWORKS));
        names.sort();
        names
    }

    /// Ends and removes what keepers and network processes that were killed have left.
    pub fn sweep(&self) {
        for name in names_in(&self.root) {
            // A keeper that lives has its folder claimed; whose folder is claimed here, is gone
            // with it.
            match self.claim(&name) {
                Ok(Some(folder)) => match journal::clean(folder.path()) {
                    Ok(killed) => tracing::info!(yard = name, killed, "what was left is removed"),
                    Err(error) => tracing::warn!(yard = name, %error, "left by a killed keeper"),
                },
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "cannot look after a killed keeper"),
            }
        }
        for name in names_in(&self.root.join(NETWORKS)) {
            if let Err(error) = remove_if_dead(&self.network(&name), bridge::take_back) {
                tracing::warn!(network = name, %error, "left by a killed network process");
            }
        }
    }

    /// The names of the yards that have a living keeper.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        let mut names = names_in(&self.root);
        names.retain(|name| self.is_running(name));
        names.sort();
        names
    }

    /// Whether a yard has a living keeper.
    #[must_use]
    pub fn is_running(&self, yard: &str) -> bool {
        // Only a keeper holds the lock for longer than a moment.
        File::open(self.yard(yard).join("lock"))
            .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Takes the folder of a yard for a keeper; `None`: another keeper has it.
    ///
    /// # Errors
    /// The folder cannot be made or locked.
    pub fn claim(&self, yard: &str) -> Result<Option<YardFolder>, YardError> {
        loop {
            let path = self.make_yard(yard)?;
            let file = path.join("lock");
            let failed = |error| YardError::io(format!("lock {}", file.display()), &error);
            let opened = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(NO_FOLLOW)
                .open(&file);
            let lock = match opened {
                // The keeper before us has just taken the folder away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(failed)?,
            };
            match lock.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Ok(()) => {}
            }
            // The keeper before us may have removed the file between our open and our lock.
            let ours = lock.metadata().map_err(failed)?;
            if fs::symlink_metadata(&file).is_ok_and(|now| now.ino() == ours.ino()) {
                return Ok(Some(YardFolder { path, _lock: lock }));
            }
        }
    }
}

/// The names of yards or networks in a folder; none start with a dot.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect()
}

/// `O_NOFOLLOW` of open(2): links put in our way are refused.
const NO_FOLLOW: i32 = 0o400_000;

/// Where the runtime folder of a user is, who may be root.
fn root_of(user: u32, is_root: bool, session: Option<PathBuf>) -> PathBuf {
    match session {
        _ if is_root => PathBuf::from("/run/netyard"),
        Some(folder) if folder.is_absolute() && folder.is_dir() => folder.join("netyard"),
        _ => PathBuf::from(format!("/tmp/netyard-{user}")),
    }
}

/// Makes a folder that only we can enter, or sees that it is one.
fn make_own(path: &Path) -> Result<(), YardError> {
    let wanted = || format!("use the runtime folder {}", path.display());
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(
                YardError::io(wanted(), &error).next("set XDG_RUNTIME_DIR to a folder of your own")
            );
        }
        _ => {}
    }
    let metadata = match fs::symlink_metadata(path) {
        // Its last user has just removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return make_own(path),
        metadata => metadata.map_err(|error| YardError::io(wanted(), &error))?,
    };
    let found = if !metadata.is_dir() {
        "it is not a folder".to_owned()
    } else if metadata.uid() != process::effective_user() {
        format!("it belongs to user {}", metadata.uid())
    } else if metadata.mode() & 0o077 != 0 {
        format!("it is open to others (mode {:04o})", metadata.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(YardError::new(ErrorKind::NotPermitted, wanted(), found)
        .next("remove it, or set XDG_RUNTIME_DIR to a folder of your own"))
}

/// The folder of a yard whose keeper we are.
#[derive(Debug)]
pub struct YardFolder {
    path: PathBuf,
    /// Held, never read: the lock goes when it closes.
    _lock: File,
}

impl YardFolder {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the control API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.path)
    }

    /// The folder of an instance, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn instance(&self, name: &str) -> Result<PathBuf, YardError> {
        let path = self.path.join("instances").join(name);
        fs::create_dir_all(&path)
            .map_err(|error| YardError::io(format!("make {}", path.display()), &error))?;
        Ok(path)
    }

    /// Removes the folder of an instance.
    pub fn remove_instance(&self, name: &str) {
        // What cannot be removed goes with the yard's folder.
        let _ = fs::remove_dir_all(self.path.join("instances").join(name));
    }

    /// Removes what a keeper that was killed has left: everything but the lock and the log of the
    /// keeper in the background, which may be ours.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.path() == keeper_log_in(&self.path) || entry.file_name() == "lock" {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Takes the folder away. The next keeper may make it anew at once.
impl Drop for YardFolder {
    fn drop(&mut self) {
        // Whatever cannot be removed is cleared by the next keeper.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The socket of the control API in the folder of a yard.
pub(crate) fn socket_in(folder: &Path) -> PathBuf {
    folder.join("keeper.sock")
}

/// The log of a keeper in the background, in the folder of a yard.
pub(crate) fn keeper_log_in(folder: &Path) -> PathBuf {
    folder.join("keeper.log")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn each_user_has_a_folder() {
        let session = tempfile::tempdir().unwrap();
        let session = session.path().to_owned();
        assert_eq!(root_of(0, true, Some(session.clone())), Path::new("/run/netyard"));
        let ordinary = |session| root_of(1000, false, session);
        assert_eq!(ordinary(Some(session.clone())), session.join("netyard"));
        assert_eq!(ordinary(None), Path::new("/tmp/netyard-1000"));
        assert_eq!(ordinary(Some("/no/such".into())), Path::new("/tmp/netyard-1000"));
        assert_eq!(ordinary(Some("run".into())), Path::new("/tmp/netyard-1000"));
        // In a user namespace of an ordinary user.
        assert_eq!(root_of(0, false, Some(session.clone())), session.join("netyard"));
    }

    #[test]
    fn a_yard_has_one_keeper_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("netyard");
        let runtime = Runtime::at(root.clone()).unwrap();
        assert_eq!(root.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!runtime.is_running("hello"));
        let ours = runtime.claim("hello").unwrap().unwrap();
        assert!(runtime.claim("hello").unwrap().is_none());
        assert_eq!(runtime.running(), ["hello"]);
        fs::write(ours.socket(), "").unwrap();
        ours.instance("web").unwrap();
        ours.clear().unwrap();
        assert_eq!(fs::read_dir(ours.path()).unwrap().count(), 1, "only the lock");
        drop(ours);
        assert!(!root.join("hello").exists());
        assert!(runtime.claim("hello").unwrap().is_some(), "made again");
    }

    #[test]
    fn folders_of_others_and_links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let error = Runtime::at(open).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotPermitted);
        assert!(error.found.contains("0755"), "{error}");

        let link = folder.path().join("link");
        fs::create_dir(folder.path().join("real")).unwrap();
        symlink("real", &link).unwrap();
        assert!(Runtime::at(link).is_err());
        assert!(Runtime::at(folder.path().join("no/parent")).is_err());
    }
}
