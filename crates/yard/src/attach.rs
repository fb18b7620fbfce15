//! `netyard attach PID`: a network in user mode for a network namespace that somebody else has made.
//!
//! A process of its own enters the namespace, makes a TAP in it, sets it up and stays to hand out sockets
//! (`instance::inside`). It is the one instance of a yard, which a keeper keeps in the foreground as that of `run`.
//! All of it goes with this process, which ends with whoever is attached to, and when it is told to.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use netyard_engine::control::Link;
use netyard_engine::forward::Forward;
use netyard_link::netns::Netns;
use netyard_sys::process::{PidFd, effective_user, take_inherited};
use netyard_wire::MacAddr;
use serde::Serialize;

use crate::error::{ErrorKind, YardError};
use crate::instance::Inside;
use crate::keeper::{self, Foreign, Made, RunOptions};
use crate::model::{Kind, NamespaceSpec};
use crate::networks::{NetworkOptions, fit_label};
use crate::path_socket::PathSocket;

/// What is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The network namespace of a process, until that ends.
    Process(u32),
    /// The network namespace that a file stands for.
    File(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(0) => Err("no process has the number 0".to_owned()),
            Ok(pid) => Ok(Self::Process(pid)),
            Err(_) if text.contains('/') => Ok(Self::File(text.into())),
            Err(_) => Err("neither a process id nor the path of a namespace's file".to_owned()),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What `attach` is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct AttachOptions {
    /// Whose namespace.
    pub target: Target,
    /// The name of the link that is made in it.
    pub link: String,
    /// Its name on the network; the link's if absent.
    pub name: Option<String>,
    /// The network to join, made if it is not there; a private one if it has no name.
    pub network: NetworkOptions,
    /// The link's hardware address; chosen if absent.
    pub mac: Option<MacAddr>,
    /// Shaping of the link.
    pub shaping: Link,
    /// Host ports that lead to it.
    pub forwards: Vec<Forward>,
    /// Where a socket of the control API is made, beside that in the runtime folder.
    pub control: Option<PathBuf>,
    /// The number of a descriptor that gets `1` when everything is there, and is closed then.
    pub ready: Option<i32>,
    /// The number of a descriptor whose end is ours.
    pub exit: Option<i32>,
}

/// What was made, for who waits for it.
#[derive(Debug, Clone, Serialize)]
pub struct Attached {
    /// The name of the yard: what `--yard` takes.
    pub yard: String,
    /// The socket of its control API.
    pub control: PathBuf,
    /// What was attached to.
    pub target: String,
    /// The link in its namespace.
    pub link: String,
    /// Its name on the network.
    pub name: String,
    /// The network.
    pub network: String,
    /// The network's zone: it is called `name.zone`.
    pub zone: String,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The gateway's addresses, which answer names, too.
    pub gateways: Vec<IpAddr>,
    /// Host addresses that lead to it, of a range the first and the last.
    pub forwards: Vec<SocketAddr>,
    /// Unix sockets that do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<PathBuf>,
}

impl Attached {
    fn new(target: &Target, link: String, control: Option<PathBuf>, made: Made) -> Self {
        let Made { yard, socket, name, config, plugged, forwards } = made;
        let ends = |forward: &Forward| {
            let first = forward.pairs().next();
            let last = forward.pairs().last().filter(|last| Some(last) != first.as_ref());
            [first, last].into_iter().flatten().map(|(at, _)| at)
        };
        Self {
            yard,
            control: control.unwrap_or(socket),
            target: target.to_string(),
            link,
            name,
            network: config.name.clone(),
            zone: config.zone.clone(),
            mac: plugged.mac,
            mtu: config.mtu,
            addresses: vec![plugged.address4.into(), plugged.address6.into()],
            gateways: vec![config.gateway4().into(), config.gateway6().into()],
            forwards: forwards.iter().flat_map(ends).collect(),
            sockets: forwards
                .iter()
                .filter_map(|forward| Some(forward.host.socket()?.path.clone()))
                .collect(),
        }
    }
}

/// Gives a network namespace a network and tells so; takes it back when its process ends, a signal comes, or
/// the exit descriptor ends.
///
/// # Errors
/// There is no such process or namespace, or it is not the caller's; the link or the network cannot be made.
/// Nothing is left behind.
pub fn attach(
    options: AttachOptions,
    tell: impl FnOnce(&Attached) -> Result<(), YardError>,
) -> Result<ExitCode, YardError> {
    let AttachOptions { target, link, name, network, mac, shaping, forwards, control, ready, exit } =
        options;
    let wanted = format!("attach to {target}");
    let failed = |error: io::Error| YardError::io(&wanted, &error);
    let ready = ready.map(|number| descriptor("--ready-fd", number)).transpose()?;
    let exit = exit.map(|number| descriptor("--exit-fd", number)).transpose()?;
    let (process, namespace) = find(&target, &wanted)?;
    let inside = Inside::order(&namespace, &link).map_err(failed)?;
    drop(namespace);
    let here = std::env::current_dir();
    let here = here.map_err(|error| YardError::io("find our folder", &error))?;
    let path = control.map(|path| here.join(path));
    let control = path.as_deref().map(|path| PathSocket::open(path, 0o600, effective_user()));
    let foreign = Foreign { inside, process, exit, control: control.transpose()? };
    let options = RunOptions {
        kind: Kind::Namespace(NamespaceSpec { link: link.clone() }),
        name: Some(name.unwrap_or_else(|| fit_label(&link))),
        network,
        mac,
        shaping,
        forwards,
        ..RunOptions::default()
    };
    keeper::keep_namespace(options, foreign, |made| {
        tell(&Attached::new(&target, link, path, made))?;
        if let Some(ready) = ready {
            // Whoever does not wait for it any more has what it wants.
            let _ = File::from(ready).write_all(b"1");
        }
        Ok(())
    })
}

/// The descriptor that a flag names.
fn descriptor(flag: &str, number: i32) -> Result<OwnedFd, YardError> {
    take_inherited(number).map_err(|error| {
        let found = format!("there is none that we could use: {error}");
        YardError::new(ErrorKind::Input, format!("use descriptor {number} of {flag}"), found)
            .next("open it for netyard: `netyard attach --ready-fd 3 PID 3>ready`")
    })
}

/// The process, if it is one, and its network namespace.
fn find(target: &Target, wanted: &str) -> Result<(Option<PidFd>, Netns), YardError> {
    let system =
        |error: netyard_link::Error| YardError::new(ErrorKind::System, wanted, error.to_string());
    let (process, namespace) = match target {
        Target::Process(pid) => {
            let process = PidFd::open(*pid).map_err(|error| match error.raw_os_error() {
                Some(NO_SUCH_PROCESS) => {
                    YardError::new(ErrorKind::Unknown, wanted, "there is no such process")
                        .next("`lsns -t net` lists namespaces with their processes")
                }
                _ => YardError::io(wanted, &error),
            })?;
            (Some(process), Netns::of_process(*pid))
        }
        Target::File(path) => (None, Netns::open(path)),
    };
    let namespace = namespace.map_err(|error| match error.errno() {
        Some(NOT_PERMITTED | ACCESS) => {
            YardError::new(ErrorKind::NotPermitted, wanted, "it belongs to somebody else")
                .next("run this as the user who has started it")
        }
        Some(NO_ENTRY) => YardError::new(ErrorKind::Unknown, wanted, "it is not there"),
        _ => system(error),
    })?;
    if Netns::current().map_err(system)?.id().is(namespace.id()) {
        let found = "it is in the same network namespace as this command";
        return Err(YardError::new(ErrorKind::Input, wanted, found)
            .next("start it in one of its own: `unshare --user --map-root-user --net`"));
    }
    Ok((process, namespace))
}

/// Error numbers of errno(3) that are told apart.
const NOT_PERMITTED: i32 = 1;
const NO_ENTRY: i32 = 2;
const NO_SUCH_PROCESS: i32 = 3;
const ACCESS: i32 = 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_processes_and_files() {
        assert_eq!("17".parse(), Ok(Target::Process(17)));
        assert_eq!("/run/netns/red".parse(), Ok(Target::File("/run/netns/red".into())));
        for wrong in ["0", "", "red", "-1", "99999999999"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
