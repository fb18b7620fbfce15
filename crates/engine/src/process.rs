//! The network process: how a member joins it, starting it if need be, and what it runs.
//!
//! # Theory of operation
//!
//! A network lives in a folder: `network.sock`, `network.log` and `lock`. Whoever joins takes the
//! lock and connects to the socket; if nobody is there, it listens on the path itself, starts the
//! process, and hands it the listening socket. So a connection never has to wait for a process to
//! come up, and two that join at once get the same process. The process leaves its starter at once
//! and says when it is up, or why it cannot be; its starter, who holds the lock, waits for that. The
//! process ends when its last member has left, unless the network is permanent, and takes the same
//! lock for that: nobody can join a process that is about to end.

mod lockdown;
mod members;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use netyard_sys::capability::{self, Capabilities};
use netyard_sys::daemon;
use netyard_sys::process;
use netyard_sys::seqpacket::{Listener, SeqPacket};
use serde::{Deserialize, Serialize};

use self::members::Members;
use crate::client::{self, Connection};
use crate::config::{Config, Mode};
use crate::control::{ControlError, ControlErrorKind, MAX_MESSAGE};
use crate::drive::Drive;
use crate::driver::Driver;
use crate::forward::Protocol;
use crate::kernel;
use crate::plumbing::Plumbing;

/// The hidden verb of the program that calls [`main`].
pub const VERB: &str = "network-process";

const SOCKET: &str = "network.sock";
const LOG: &str = "network.log";
const LOCK: &str = "lock";
/// Addresses that are lent to guests without a plug (bridge mode).
pub(crate) const LEASES: &str = "leases.json";

/// How much of the end of the log is shown when the process does not start, bytes.
const LOG_TAIL: usize = 2_000;

/// Why a network cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The network's folder cannot be used.
    #[error("cannot use the network's folder {}: {source}", path.display())]
    Folder {
        /// The folder, or the file in it.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process cannot be started.
    #[error("cannot start the network process {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process cannot be this network.
    #[error("{0}")]
    Refused(ControlError),
    /// The process ended before the network was up.
    #[error("the network process ended at once{}", tail(log))]
    Ended {
        /// The end of what it wrote.
        log: String,
    },
}

/// What a new network process is told, with the listening socket.
#[derive(Debug, Serialize, Deserialize)]
struct Start {
    /// The network's folder.
    folder: PathBuf,
    config: Config,
}

/// What it answers: it is up, or why it cannot be.
type Prepared = Result<(), ControlError>;

/// Connects to the network of a folder. If it does not run, makes it: `program` is started with
/// the hidden verb [`VERB`], detached, and `config` is what it will be. (If it runs, its own
/// configuration holds, see [`Reply::Welcome`](crate::control::Reply::Welcome).)
///
/// # Errors
/// [`JoinError`].
pub fn join(folder: &Path, config: &Config, program: &Path) -> Result<Connection, JoinError> {
    begin(folder, config, program)?.finish()
}

/// The same for whoever has something else to do while the network is made.
///
/// # Errors
/// [`JoinError`].
pub fn begin(folder: &Path, config: &Config, program: &Path) -> Result<Joining, JoinError> {
    let used = |path: &Path| {
        let path = path.to_owned();
        move |source| JoinError::Folder { path, source }
    };
    let lock = lock(folder).map_err(used(folder))?;
    let path = folder.join(SOCKET);
    let (connection, starting) = match Connection::connect(&path) {
        Ok(connection) => (connection, None),
        Err(error) if nobody(&error) => {
            let listener = listen(&path).map_err(used(&path))?;
            let connection = Connection::connect(&path).map_err(used(&path))?;
            (connection, Some(Starting::start(folder, config, program, listener)?))
        }
        Err(error) => return Err(used(&path)(error)),
    };
    Ok(Joining { connection, starting, _lock: lock })
}

/// A network that is being joined. Whoever else joins it waits until this is finished.
#[derive(Debug)]
#[must_use]
pub struct Joining {
    connection: Connection,
    starting: Option<Starting>,
    _lock: File,
}

impl Joining {
    /// Waits until the network is up.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn finish(self) -> Result<Connection, JoinError> {
        if let Some(starting) = self.starting {
            starting.wait()?;
        }
        Ok(self.connection)
    }
}

/// Connects to the network of a folder if it runs.
///
/// # Errors
/// `NotFound`: it does not run; else what the kernel said.
pub fn find(folder: &Path) -> io::Result<Connection> {
    Connection::connect(&folder.join(SOCKET)).map_err(|error| match nobody(&error) {
        true => io::ErrorKind::NotFound.into(),
        false => error,
    })
}

/// Removes the folder of a network whose process was killed, after `take_back` has seen what it has
/// left there. One that lives, or that somebody joins at this moment, is not touched.
///
/// # Errors
/// What the kernel or `take_back` said; the folder stays.
pub fn remove_if_dead(
    folder: &Path,
    take_back: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let lock = match File::open(folder.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        lock => Some(lock?),
    };
    match lock.as_ref().map(File::try_lock) {
        Some(Err(TryLockError::WouldBlock)) => return Ok(()),
        Some(Err(TryLockError::Error(error))) => return Err(error),
        Some(Ok(())) | None => {}
    }
    match Connection::connect(&folder.join(SOCKET)) {
        Err(error) if nobody(&error) => {
            take_back(folder)?;
            fs::remove_dir_all(folder)
        }
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// What the hidden verb [`VERB`] runs: serves one network until its last member has left.
///
/// In bridge mode `plumbing` makes what works on the kernel. It is called once, before the starter
/// hears that the network is up, with the network's folder, where it may keep what has to outlive
/// the process.
#[must_use]
pub fn main(plumbing: impl FnOnce(&Path) -> Result<Box<dyn Plumbing>, ControlError>) -> ExitCode {
    match run(plumbing) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the network ends");
            ExitCode::FAILURE
        }
    }
}

fn run(plumbing: impl FnOnce(&Path) -> Result<Box<dyn Plumbing>, ControlError>) -> io::Result<()> {
    // From here on we live on our own. It is cheapest now: there is little to copy yet.
    daemon::detach()?;
    process::unblock_signals()?;
    let starter = SeqPacket::adopt(io::stdin().as_fd().try_clone_to_owned()?)?;
    let (start, listener) = receive_start(&starter)?;
    // In bridge mode it changes the host, and goes where instances are.
    let locked = matches!(start.config.mode, Mode::User).then(|| start.folder.clone());
    let prepared = prepare(start, listener, plumbing);
    let said: Prepared = prepared.as_ref().map(drop).map_err(Clone::clone);
    let told = starter.send(&serde_json::to_vec(&said)?, &[]);
    // Who does not listen any more finds it in the log.
    let mut members = prepared.map_err(io::Error::other)?;
    if told.is_err() {
        members.nobody_asked();
    }
    // Our standard input stays the other end of the connection, so that our starter sees our end.
    drop(starter);
    // What follows holds for this thread and those that it starts.
    daemon::require_one_thread()?;
    process::forbid_tracing()?;
    if let Some(folder) = locked {
        lockdown::lock_down(&folder);
    }
    members.serve()
}

/// Makes the network.
fn prepare(
    start: Start,
    listener: Listener,
    plumbing: impl FnOnce(&Path) -> Result<Box<dyn Plumbing>, ControlError>,
) -> Result<Members, ControlError> {
    let Start { folder, config } = start;
    let failed = |error: io::Error| ControlError {
        kind: ControlErrorKind::Failed,
        message: format!("network `{}` cannot be made: {error}", config.name),
    };
    listener.set_nonblocking(true).map_err(failed)?;
    let keep = capabilities(&config.mode);
    capability::limit(keep, keep).map_err(failed)?;
    process::no_new_privileges().map_err(failed)?;
    let descriptors = daemon::raise_descriptor_limit().map_err(failed)?;
    let driver: Box<dyn Drive> = match config.mode {
        Mode::User => Box::new(Driver::new(config.clone(), descriptors).map_err(failed)?),
        Mode::Bridge(_) => {
            may_change_the_host(&config.name)?;
            let plumbing = plumbing(&folder)?;
            Box::new(kernel::Driver::new(config.clone(), plumbing, &folder, descriptors)?)
        }
    };
    Members::new(driver, listener, folder).map_err(failed)
}

/// What the process of a network keeps of the capabilities that it starts with, by its own program
/// file or because it is started by root.
fn capabilities(mode: &Mode) -> Capabilities {
    match mode {
        Mode::User => Capabilities::NET_BIND_SERVICE,
        Mode::Bridge(_) => {
            BRIDGE.iter().fold(Capabilities::NONE, |all, (_, capability)| all.union(*capability))
        }
    }
}

/// What a network in bridge mode needs: to change links and rules, to hear DHCP clients, to bind
/// the ports of DNS, and to enter the namespaces of instances, whose ends of links it sets up.
const BRIDGE: [(&str, Capabilities); 4] = [
    ("CAP_NET_ADMIN", Capabilities::NET_ADMIN),
    ("CAP_NET_RAW", Capabilities::NET_RAW),
    ("CAP_NET_BIND_SERVICE", Capabilities::NET_BIND_SERVICE),
    ("CAP_SYS_ADMIN", Capabilities::SYS_ADMIN),
];

/// Refuses a network in bridge mode to a process without the capabilities for it.
fn may_change_the_host(network: &str) -> Result<(), ControlError> {
    let permitted = capability::permitted().unwrap_or(Capabilities::NONE);
    let missing = BRIDGE.iter().filter(|(_, one)| !permitted.contains(*one));
    let missing: Vec<&str> = missing.map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("netyard"));
    let all = BRIDGE.map(|(name, _)| name.to_lowercase()).join(",");
    let message = format!(
        "network `{network}` in bridge mode needs {}, which this process does not have: run netyard \
         as root, or grant them once with `sudo setcap {all}=ep {}`",
        missing.join(", "),
        program.display()
    );
    Err(ControlError { kind: ControlErrorKind::NotPermitted, message })
}

/// Takes the message that [`Starting::start`] sends on standard input.
fn receive_start(starter: &SeqPacket) -> io::Result<(Start, Listener)> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let (len, mut descriptors) = starter.recv(&mut buffer)?;
    let start = serde_json::from_slice(buffer.get(..len).unwrap_or_default())?;
    let listener = descriptors.pop().ok_or(io::ErrorKind::InvalidData)?;
    Ok((start, Listener::from(listener)))
}

/// A network process that is not up yet.
#[derive(Debug)]
struct Starting {
    /// What was started: it leaves a copy of itself behind that is nobody's child, and ends.
    child: Child,
    /// Where the copy says how it went.
    answers: SeqPacket,
    log: PathBuf,
    /// What it listens at on the host (bridge mode), which another program may have.
    ports: [(Protocol, SocketAddr); 2],
}

impl Starting {
    fn start(
        folder: &Path,
        config: &Config,
        program: &Path,
        listener: Listener,
    ) -> Result<Self, JoinError> {
        let failed = |source| JoinError::Start { program: program.to_owned(), source };
        let log = folder.join(LOG);
        let output =
            log_file(&log).map_err(|source| JoinError::Folder { path: log.clone(), source })?;
        let (answers, theirs) = SeqPacket::pair().map_err(failed)?;
        let folder = folder.canonicalize().map_err(failed)?;
        let message = serde_json::to_vec(&Start { folder, config: config.clone() });
        let message = message.map_err(|error| failed(error.into()))?;
        answers.send(&message, &[listener.as_fd()]).map_err(failed)?;
        let mut command = Command::new(program);
        command
            .arg(VERB)
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output);
        // It limits itself: what is to be done between fork and exec costs a copy of our memory.
        let child = command.spawn().map_err(failed)?;
        Ok(Self { child, answers, log, ports: kernel::ports(config) })
    }

    /// Returns when it is up.
    fn wait(mut self) -> Result<(), JoinError> {
        let answer = self.answer();
        // The answer decides, also where children are not to be reaped.
        let _ = self.child.wait();
        Err(match answer {
            Some(Ok(())) => return Ok(()),
            Some(Err(mut error)) => {
                if error.kind == ControlErrorKind::Taken {
                    // We look, and not the process: that has given up the rights for it.
                    client::name_holder(&mut error, &self.ports);
                }
                JoinError::Refused(error)
            }
            None => JoinError::Ended { log: log_tail(&self.log) },
        })
    }

    /// What the process says; `None`: it has ended.
    fn answer(&self) -> Option<Prepared> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let (len, _) = self.answers.recv(&mut buffer).ok()?;
        serde_json::from_slice(buffer.get(..len)?).ok()
    }
}

/// Makes the folder and takes its lock, which is held until the file is dropped.
fn lock(folder: &Path) -> io::Result<File> {
    let path = folder.join(LOCK);
    loop {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut options = OpenOptions::new();
        let file = match options.write(true).create(true).truncate(false).mode(0o600).open(&path) {
            // A network process has just ended and taken its folder away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        file.lock()?;
        if is_at(&file, &path)? {
            return Ok(file);
        }
    }
}

/// True if a path still leads to an open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Listens on a path where nobody does.
fn listen(path: &Path) -> io::Result<Listener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Listener::bind(path),
    }
}

fn log_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn log_tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let tail = text.get(text.len().saturating_sub(LOG_TAIL)..).unwrap_or_default();
    String::from_utf8_lossy(tail).trim().to_owned()
}

fn tail(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; it wrote:\n{log}") }
}

/// True for the errors of connecting to a path where nobody listens.
fn nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
