//! A Unix socket at a path of the host, by which somebody else plugs in or connects.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use netyard_sys::process;
use netyard_sys::socket_path::{self, SocketPath};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::{ErrorKind, YardError};
use crate::model::{SocketProtocol, SocketSpec};

/// Connections that wait to be taken, as many as the kernel allows.
const BACKLOG: i32 = -1;

/// A socket that listens, or takes datagrams; its path goes with it. The network uses it, the keeper holds it: so it
/// stays when the network's process is replaced.
#[derive(Debug)]
pub(crate) struct PathSocket {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and number of its file: another one at the path is somebody else's.
    file: Option<(u64, u64)>,
}

impl PathSocket {
    /// Opens one that listens with these permissions, as a user's. What a keeper that is gone has left there is replaced.
    ///
    /// # Errors
    /// There is something at the path, or no folder for it, or it cannot be given to the user.
    pub(crate) fn open(path: &Path, mode: u32, owner: u32) -> Result<Self, YardError> {
        Self::bind(path, false, mode, owner)
    }

    /// Opens the socket of something external for a user.
    ///
    /// # Errors
    /// As [`PathSocket::open`].
    pub(crate) fn for_plug(socket: &SocketSpec, owner: u32) -> Result<Self, YardError> {
        Self::bind(&socket.path, socket.protocol == SocketProtocol::Datagram, 0o600, owner)
    }

    /// Opens one that listens and has no path, but for the moment in which it is made in a folder; and its file: only
    /// who has that open connects, by `/proc/self/fd`.
    ///
    /// # Errors
    /// It cannot be made there, or we are out of descriptors.
    pub(crate) fn without_path(folder: &Path) -> Result<(OwnedFd, OwnedFd), YardError> {
        let path = folder.join("plug.sock");
        let failed = |error| YardError::io(format!("make the socket {}", path.display()), &error);
        let socket = Self::open(&path, 0o600, process::effective_user())?;
        let file = socket_path::file(&path).map_err(failed)?;
        Ok((socket.as_fd().try_clone_to_owned().map_err(failed)?, file.into()))
    }

    fn bind(path: &Path, datagrams: bool, mode: u32, owner: u32) -> Result<Self, YardError> {
        let wanted = || format!("make the socket {}", path.display());
        let failed = |error: io::Error| YardError::io(wanted(), &error);
        if is_abandoned(path) {
            fs::remove_file(path).map_err(failed)?;
        }
        let short = SocketPath::new(path).map_err(failed)?;
        let bind = || {
            let kind = if datagrams { Type::DGRAM } else { Type::STREAM };
            let socket = Socket::new(Domain::UNIX, kind, None)?;
            // Its file begins with the mode that the socket has: nobody else gets in before it is changed.
            let opened = File::from(OwnedFd::from(socket.try_clone()?));
            opened.set_permissions(fs::Permissions::from_mode(mode))?;
            socket.bind(&SockAddr::unix(&short)?)?;
            if !datagrams {
                socket.listen(BACKLOG)?;
            }
            Ok(OwnedFd::from(socket))
        };
        let socket = bind().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                YardError::new(ErrorKind::Conflict, wanted(), "there is something of that name")
                    .next("name another path, or remove it")
            }
            // The way through its folder leaves less room for it than a file's name may have.
            io::ErrorKind::InvalidInput => {
                YardError::new(ErrorKind::Input, wanted(), "the name of the file is too long")
                    .next("give it a shorter one")
            }
            _ => failed(error),
        })?;
        // By its descriptor: whoever may write to the folder can put a link to somebody else's file at the path.
        let made = socket_path::file(path).map_err(failed)?;
        let socket = Self { socket, path: path.to_owned(), file: made.metadata().ok().map(place) };
        let through = format!("/proc/self/fd/{}", made.as_raw_fd());
        fs::set_permissions(&through, fs::Permissions::from_mode(mode)).map_err(failed)?;
        if owner != process::effective_user() {
            chown(&through, Some(owner), None).map_err(failed)?;
        }
        Ok(socket)
    }
}

/// Device and number of a file.
fn place(file: fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Whether a socket is there and nobody has it open, of whatever kind.
fn is_abandoned(path: &Path) -> bool {
    // To connect to a file that is no socket is refused, too.
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    // A socket for datagrams never waits for who takes connections, as others do where its backlog is full: one of
    // another kind is the wrong one (EPROTOTYPE), and only one that nobody has is refused.
    let connect = || UnixDatagram::unbound()?.connect(SocketPath::new(path)?);
    is_socket && connect().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl AsFd for PathSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for PathSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).ok().map(place) == self.file {
            // If somebody has removed it, nothing is left to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use netyard_testbed::{isolate, wait_for};

    use super::*;

    #[test]
    fn one_without_a_path_is_reached_by_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let (listener, file) = PathSocket::without_path(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let _client = UnixStream::connect(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        UnixListener::from(listener).accept().unwrap();
    }

    #[test]
    fn it_takes_the_place_of_one_that_was_left_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plug.sock");
        let user = process::effective_user();
        drop(UnixListener::bind(&path).unwrap());
        // A program that another test is starting has a copy of it for a moment.
        wait_for("nobody to listen", Duration::from_secs(30), || {
            UnixStream::connect(&path).is_err().then_some(())
        });
        let socket = PathSocket::open(&path, 0o660, user).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        UnixStream::connect(&path).unwrap();
        assert_eq!(PathSocket::open(&path, 0o660, user).unwrap_err().kind, ErrorKind::Conflict);
        drop(socket);
        assert!(!path.exists());
        // One that somebody else has put there is left.
        let socket = PathSocket::open(&path, 0o600, user).unwrap();
        fs::rename(&path, folder.path().join("elsewhere.sock")).unwrap();
        fs::write(&path, "another").unwrap();
        drop(socket);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another");
        // One that takes datagrams takes the place of one that is left of either kind, and no other's.
        let wanted = SocketSpec { path: path.clone(), protocol: SocketProtocol::Datagram };
        fs::remove_file(&path).unwrap();
        drop(UnixDatagram::bind(&path).unwrap());
        wait_for("nobody to take datagrams", Duration::from_secs(30), || {
            UnixDatagram::unbound().unwrap().connect(&path).is_err().then_some(())
        });
        let socket = PathSocket::for_plug(&wanted, user).unwrap();
        UnixDatagram::unbound().unwrap().send_to(b"x", &path).unwrap();
        for open in [PathSocket::for_plug(&wanted, user), PathSocket::open(&path, 0o600, user)] {
            assert_eq!(open.unwrap_err().kind, ErrorKind::Conflict);
        }
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "a file").unwrap();
        assert_eq!(PathSocket::open(&path, 0o660, user).unwrap_err().kind, ErrorKind::Conflict);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
    }

    #[test]
    fn one_that_is_too_busy_to_take_connections_is_not_waited_for_and_stays() {
        isolate(|| {
            // Of connections that nobody has taken one waits, and the next one blocks.
            fs::write("/proc/sys/net/core/somaxconn", "0").unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("busy.sock");
            let _busy = UnixListener::bind(&path).unwrap();
            let _waits = UnixStream::connect(&path).unwrap();
            let (done, outcome) = mpsc::channel();
            thread::spawn(move || {
                let opened = PathSocket::open(&path, 0o600, process::effective_user());
                done.send(opened.map(drop).map_err(|error| error.kind)).unwrap();
            });
            let outcome = outcome.recv_timeout(Duration::from_secs(30)).expect("an answer");
            assert_eq!(outcome, Err(ErrorKind::Conflict));
        });
    }
}
