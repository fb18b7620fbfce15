//! Unix sockets whose path is longer than an address has room for.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt};
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

/// The file of a socket, whatever is put at its path later: to change whose it is by `/proc/self/fd`.
///
/// # Errors
/// What is there is no socket (`InvalidData`), or nothing; a link is not followed.
pub fn file(path: &Path) -> io::Result<File> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.file_type().is_socket() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidData.into()),
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

    #[test]
    fn the_file_of_a_socket_is_no_link_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let [socket, link, other] =
            ["socket", "link", "other"].map(|name| folder.path().join(name));
        let _listener = UnixListener::bind(&socket).unwrap();
        file(&socket).unwrap();
        std::fs::write(&other, "text").unwrap();
        for to in [&socket, &other] {
            std::os::unix::fs::symlink(to, &link).unwrap();
            file(&link).unwrap_err();
            std::fs::remove_file(&link).unwrap();
        }
        file(&other).unwrap_err();
        file(&folder.path().join("none")).unwrap_err();
    }
}
