//! A socket by whose path somebody else plugs in.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use netyard_engine::control::PlugKind;
use netyard_sys::process;
use netyard_sys::socket_path::SocketPath;

use crate::error::{ErrorKind, YardError};
use crate::model::{SocketProtocol, SocketSpec};

/// A socket that listens; its path goes with it. The network accepts, the keeper holds it: so it stays
/// when the network's process is replaced.
#[derive(Debug)]
pub(super) struct PlugSocket {
    listener: UnixListener,
    spec: SocketSpec,
}

impl PlugSocket {
    /// Opens it for one user. What a keeper that is gone has left there is replaced.
    ///
    /// # Errors
    /// There is something at the path, or no folder for it, or it cannot be given to the user.
    pub(super) fn open(spec: &SocketSpec, owner: u32) -> Result<Self, YardError> {
        let path = &spec.path;
        let wanted = || format!("make the socket {}", path.display());
        let failed = |error: io::Error| YardError::io(wanted(), &error);
        if is_abandoned(path) {
            fs::remove_file(path).map_err(failed)?;
        }
        let short = SocketPath::new(path).map_err(failed)?;
        let listener = UnixListener::bind(&short).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                YardError::new(ErrorKind::Conflict, wanted(), "there is something of that name")
                    .next("name another path, or remove it")
            }
            _ => failed(error),
        })?;
        let socket = Self { listener, spec: spec.clone() };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        if owner != process::effective_user() {
            chown(path, Some(owner), None).map_err(failed)?;
        }
        Ok(socket)
    }

    /// What the network makes of it.
    pub(super) fn kind(&self) -> PlugKind {
        match self.spec.protocol {
            SocketProtocol::Stream => PlugKind::Listener,
            SocketProtocol::VhostUser => PlugKind::VhostUser,
        }
    }
}

/// Whether a socket is there and nobody listens.
fn is_abandoned(path: &Path) -> bool {
    // To connect to a file that is no socket is refused, too.
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let connect = || SocketPath::new(path).and_then(UnixStream::connect);
    is_socket && connect().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl AsFd for PlugSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for PlugSocket {
    fn drop(&mut self) {
        // If somebody has removed it, nothing is left to do.
        let _ = fs::remove_file(&self.spec.path);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use netyard_testbed::wait_for;

    use super::*;

    #[test]
    fn it_takes_the_place_of_one_that_was_left_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plug.sock");
        let spec = SocketSpec { path: path.clone(), protocol: SocketProtocol::Stream };
        let user = process::effective_user();
        drop(UnixListener::bind(&path).unwrap());
        // A program that another test is starting has a copy of it for a moment.
        wait_for("nobody to listen", Duration::from_secs(30), || {
            UnixStream::connect(&path).is_err().then_some(())
        });
        let socket = PlugSocket::open(&spec, user).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(PlugSocket::open(&spec, user).unwrap_err().kind, ErrorKind::Conflict);
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "a file").unwrap();
        assert_eq!(PlugSocket::open(&spec, user).unwrap_err().kind, ErrorKind::Conflict);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
    }
}
