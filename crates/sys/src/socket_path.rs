//! Unix sockets whose path is longer than an address has room for.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Room for the path in `struct sockaddr_un` (unix(7)), its closing zero counted, bytes.
pub(crate) const PATH_ROOM: usize = 108;

/// A path for bind(2) and connect(2) that leads to the wanted one; use it before it is dropped.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// What `/proc/self/fd` leads through, if it has to.
    _folder: Option<File>,
}

impl SocketPath {
    /// The path itself where it fits, else one through a descriptor of its folder.
    ///
    /// # Errors
    /// The path is too long and its folder cannot be opened.
    pub fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().as_bytes().len() < PATH_ROOM {
            return Ok(Self { path: path.to_owned(), _folder: None });
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let folder = OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
        let through = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        Ok(Self { path: through.join(name), _folder: Some(folder) })
    }
}

impl AsRef<Path> for SocketPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn long_paths_are_reached_through_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        for path in [folder.path().join("short"), deep.join("long")] {
            let _listener = UnixListener::bind(SocketPath::new(&path).unwrap()).unwrap();
            assert!(path.exists());
            UnixStream::connect(SocketPath::new(&path).unwrap()).unwrap();
        }
        assert!(SocketPath::new(&folder.path().join("none").join("y".repeat(200))).is_err());
    }
}
