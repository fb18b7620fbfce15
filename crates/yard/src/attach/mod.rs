//! `netyard attach PID`: a network in user mode for a network namespace that somebody else has made.
//!
//! A process of its own enters the namespace, makes a TAP in it and hands it out ([`inside`]); the network
//! process gets it as a plug, and the link is set up with the plug's addresses and the way out. All of it goes
//! with this process, which ends with whoever is attached to, and when it is told to.

pub mod inside;

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use netyard_engine::client::Connection;
use netyard_engine::config::{Config, Mode};
use netyard_engine::control::{PlugKind, PlugRequest, Plugged, Reply, Request};
use netyard_engine::forward::{Forward, SocketFile};
use netyard_engine::policy::rules::Rules;
use netyard_engine::process;
use netyard_link::netns::Netns;
use netyard_sys::process::{PidFd, Signals, effective_user, take_inherited};
use netyard_sys::wait::{self, Want};
use netyard_wire::{Features, MacAddr};
use serde::Serialize;

use self::inside::Inside;
use crate::error::{ErrorKind, YardError};
use crate::instance::PlugConfiguration;
use crate::instance::message::{Failure, Step};
use crate::instance::signal;
use crate::model::MAX_LABEL;
use crate::networks::{NetworkOptions, fit_label, is_label, join_failed};
use crate::path_socket::PathSocket;
use crate::runtime::Runtime;

/// The name of a network that nobody else joins.
const PRIVATE: &str = "lan";

/// Pause between two tries to replace a network process that has ended, the first and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Host ports that lead to it.
    pub forwards: Vec<Forward>,
    /// The number of a descriptor that gets `1` when everything is there, and is closed then.
    pub ready: Option<i32>,
    /// The number of a descriptor whose end is ours.
    pub exit: Option<i32>,
}

/// What was made, for who waits for it.
#[derive(Debug, Clone, Serialize)]
pub struct Attached {
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
    /// Host addresses that lead to it.
    pub forwards: Vec<SocketAddr>,
    /// Unix sockets that do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<PathBuf>,
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
    let wanted = format!("attach to {}", options.target);
    let failed = |error: io::Error| YardError::io(&wanted, &error);
    let signals = Signals::take(&[signal::HANGUP, signal::INTERRUPT, signal::TERMINATE]);
    let signals = signals.map_err(failed)?;
    let ready = options.ready.map(|number| descriptor("--ready-fd", number)).transpose()?;
    let exit = options.exit.map(|number| descriptor("--exit-fd", number)).transpose()?;
    let (process, namespace) = find(&options.target, &wanted)?;

    let mut plug = Plug::new(options, &wanted)?;
    // The network's process starts while the link is made.
    let inside = Inside::start(&namespace, &plug.link).map_err(|failure| plug.explain(failure))?;
    let joined = plug.join();
    let (tap, offloads) = inside.tap().map_err(|failure| plug.explain(failure))?;
    plug.features = offloads.features();
    let (mut connection, config, plugged) = plug.plug_in(joined?, &tap)?;
    plug.make_sockets()?;
    let forwards = plug.open(&mut connection)?;
    let set_up = PlugConfiguration::new(&plugged, &config);
    inside.set_up(set_up).map_err(|failure| plug.explain(failure))?;
    tell(&plug.attached(&config, &plugged, forwards))?;
    plug.plugged = Some(plugged);
    if let Some(ready) = ready {
        // Whoever does not wait for it any more has what it wants.
        let _ = File::from(ready).write_all(b"1");
    }

    let ends = Ends { signals, process, exit };
    let mut connection = Some(connection);
    let mut pause = FIRST_PAUSE;
    loop {
        let within = connection.is_none().then_some(pause);
        match ends.wait(connection.as_ref(), within).map_err(failed)? {
            Woken::End => return Ok(ExitCode::SUCCESS),
            Woken::Network => {
                let answer = connection.as_mut().map(Connection::poll_answer);
                if let Some(Err(error)) = answer {
                    tracing::warn!(%error, "the network's process has ended; another one is started");
                    connection = None;
                    pause = FIRST_PAUSE;
                }
            }
            // A wait can end early.
            Woken::Time if connection.is_some() => {}
            Woken::Time => match plug.join().and_then(|joined| plug.plug_in(joined, &tap)) {
                Ok((mut again, ..)) => {
                    plug.open(&mut again)?;
                    connection = Some(again);
                }
                Err(error) => {
                    tracing::warn!(%error, "the network cannot be made again");
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            },
        }
    }
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
const BUSY: i32 = 16;
const INVALID: i32 = 22;

/// The plug, and how to make it again.
struct Plug {
    wanted: String,
    target: String,
    link: String,
    name: String,
    member: String,
    mac: Option<MacAddr>,
    guest: (Option<std::net::Ipv4Addr>, Option<std::net::Ipv6Addr>),
    features: Features,
    forwards: Vec<Forward>,
    /// Of those that begin at one, in their order.
    sockets: Vec<PathSocket>,
    folder: PathBuf,
    config: Config,
    rules: Rules,
    /// What it was the first time.
    plugged: Option<Plugged>,
}

impl Plug {
    fn new(options: AttachOptions, wanted: &str) -> Result<Self, YardError> {
        let member = format!("attach-{}", std::process::id());
        let spec = options.network.spec(PRIVATE, &member)?;
        let name = match options.name {
            Some(name) => name,
            None => fit_label(&options.link),
        };
        if !is_label(&name) {
            let found = format!("{name} is no name: a-z, 0-9 and - inside, {MAX_LABEL} at most");
            return Err(YardError::new(ErrorKind::Input, wanted, found)
                .next("give another one with --name"));
        }
        let spliced = |forward: &&Forward| forward.delivery.wants_splice();
        if let Some(forward) = options.forwards.iter().find(spliced) {
            let found = "nobody in the namespace hands out sockets: connections go by frames";
            return Err(YardError::new(
                ErrorKind::Unsupported,
                format!("forward {forward}"),
                found,
            )
            .next("leave out splice and loopback"));
        }
        let here = std::env::current_dir();
        let here = here.map_err(|error| YardError::io("find our folder", &error))?;
        let lead = |forward| Forward { instance: name.clone(), ..forward }.within(&here);
        Ok(Self {
            wanted: wanted.to_owned(),
            target: options.target.to_string(),
            link: options.link,
            member,
            mac: options.mac,
            guest: options.network.guest,
            features: Features::NONE,
            forwards: options.forwards.into_iter().map(lead).collect(),
            sockets: Vec::new(),
            folder: Runtime::open()?.network(&spec.global),
            config: spec.config(),
            rules: spec.rules,
            plugged: None,
            name,
        })
    }

    /// Joins the network; its process is started if it does not run.
    fn join(&self) -> Result<Connection, YardError> {
        process::join(&self.folder, &self.config, Path::new("/proc/self/exe"))
            .map_err(|error| join_failed(self.wanted.clone(), &error))
    }

    /// Plugs the TAP in: with the addresses that it had, if it had some.
    fn plug_in(
        &self,
        mut connection: Connection,
        tap: &OwnedFd,
    ) -> Result<(Connection, Config, Plugged), YardError> {
        let wanted = || self.wanted.clone();
        let failed = |error: io::Error| YardError::io(wanted(), &error);
        let config = connection.hello(&self.member).map_err(failed)?;
        if config.mode != Mode::User {
            let found = format!("the network {} is on a bridge", config.name);
            return Err(YardError::new(ErrorKind::Unsupported, wanted(), found)
                .next("name a network in user mode, or none"));
        }
        // Before anybody is there whom they are about.
        match connection.request(Request::SetRules(self.rules.clone()), None).map_err(failed)?.0 {
            Ok(Reply::Done) => {}
            Ok(_) => return Err(nonsense(wanted())),
            Err(error) => return Err(YardError::control(wanted(), &error)),
        }
        let was = self.plugged.as_ref();
        let request = Request::AddPlug(PlugRequest {
            features: self.features.bits(),
            mac: was.map(|was| was.mac).or(self.mac),
            address: was.map(|was| was.address4).or(self.guest.0),
            address6: was.map(|was| was.address6).or(self.guest.1),
            ..PlugRequest::new(self.name.clone(), PlugKind::Tap)
        });
        let tap = tap.try_clone().map_err(failed)?;
        match connection.request(request, Some(tap)).map_err(failed)?.0 {
            Ok(Reply::Plugged(plugged)) => Ok((connection, config, plugged)),
            Ok(_) => Err(nonsense(wanted())),
            Err(error) => Err(YardError::control(wanted(), &error)),
        }
    }

    /// Makes the sockets that forwards begin at.
    fn make_sockets(&mut self) -> Result<(), YardError> {
        let files = self.forwards.iter().filter_map(|forward| forward.host.socket());
        let user = effective_user();
        let made = files.map(|SocketFile { path, mode }| PathSocket::open(path, *mode, user));
        self.sockets = made.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Opens the forwards; the bound host addresses.
    fn open(&self, connection: &mut Connection) -> Result<Vec<SocketAddr>, YardError> {
        let mut bound = Vec::new();
        let mut sockets = self.sockets.iter();
        for forward in &self.forwards {
            let wanted = || format!("forward {forward}");
            let failed = |error: io::Error| YardError::io(wanted(), &error);
            let socket = forward.host.socket().and_then(|_| sockets.next());
            let socket = socket.map(|socket| socket.as_fd().try_clone_to_owned());
            let socket = socket.transpose().map_err(failed)?;
            let answer =
                connection.request(Request::AddForward(forward.clone()), socket).map_err(failed)?;
            match answer.0 {
                Ok(Reply::Forwarding { at }) => bound.extend(at),
                Ok(_) => return Err(nonsense(wanted())),
                Err(error) => return Err(YardError::control(wanted(), &error)),
            }
        }
        Ok(bound)
    }

    fn attached(&self, config: &Config, plugged: &Plugged, forwards: Vec<SocketAddr>) -> Attached {
        Attached {
            target: self.target.clone(),
            link: self.link.clone(),
            name: self.name.clone(),
            network: config.name.clone(),
            zone: config.zone.clone(),
            mac: plugged.mac,
            mtu: config.mtu,
            addresses: vec![plugged.address4.into(), plugged.address6.into()],
            gateways: vec![config.gateway4().into(), config.gateway6().into()],
            forwards,
            sockets: self
                .forwards
                .iter()
                .filter_map(|forward| Some(forward.host.socket()?.path.clone()))
                .collect(),
        }
    }

    /// Why a step inside the namespace did not work, and what to do.
    fn explain(&self, failure: Failure) -> YardError {
        let Failure { step, what, errno, message } = failure;
        let found = format!("{what}: {message}");
        let error = |kind| YardError::new(kind, &self.wanted, found.clone());
        match (step, errno) {
            (Step::Namespaces, Some(NOT_PERMITTED | ACCESS)) => error(ErrorKind::NotPermitted)
                .next("run this as the user who has made the namespace, from where they made it"),
            // Of the same kind, or of another one.
            (Step::Tap, Some(BUSY | INVALID)) => YardError::new(
                ErrorKind::Conflict,
                &self.wanted,
                format!("there is a link {} in it already", self.link),
            )
            .next("give another name with --tapname"),
            (Step::Tap, Some(NOT_PERMITTED | NO_ENTRY | ACCESS)) => error(ErrorKind::NotPermitted)
                .next("see that /dev/net/tun is there and open, and that the namespace is yours"),
            _ => error(ErrorKind::System),
        }
    }
}

fn nonsense(wanted: String) -> YardError {
    YardError::new(ErrorKind::Peer, wanted, "the network says something else")
}

/// What ends us.
struct Ends {
    signals: Signals,
    process: Option<PidFd>,
    exit: Option<OwnedFd>,
}

/// Why the wait is over.
enum Woken {
    End,
    Network,
    Time,
}

impl Ends {
    fn wait(&self, connection: Option<&Connection>, within: Option<Duration>) -> io::Result<Woken> {
        // What is not there is not looked at.
        let nobody = self.signals.as_fd();
        let [process, exit, network] = [
            (self.process.as_ref().map(AsFd::as_fd), Want::Read),
            (self.exit.as_ref().map(AsFd::as_fd), Want::End),
            (connection.map(AsFd::as_fd), Want::Read),
        ]
        .map(|(fd, want)| fd.map_or((nobody, Want::Nothing), |fd| (fd, want)));
        let [signal, process, exit, network] =
            wait::ready([(nobody, Want::Read), process, exit, network], within)?;
        if signal.read || process.read || process.ended || exit.ended {
            Ok(Woken::End)
        } else if network.read || network.ended {
            Ok(Woken::Network)
        } else {
            Ok(Woken::Time)
        }
    }
}

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
