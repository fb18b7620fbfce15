//! What a keeper and the init of an instance say to each other: one JSON value per SEQPACKET
//! message, descriptors attached.
//!
//! ```text
//! keeper                                   init
//!    | <--------------------- Unshared ----- |   (first process, in its new user namespace)
//!    | ----- Mapped -----------------------> |   ids may be used
//!    | <----------------- Born { pid } ----- |   (first process's last words; the rest is pid 1)
//!    | ----- Create { plugs } + supplies --> |   for each TAP, the end that is asked for sockets
//!    | <------- Created { .. } + ends ------ |   (TAPs, or the network namespace)
//!    | ----- Configure(..) ----------------> |
//!    | <---------- Ready { warnings } ------ |
//!    | ----- Relink { .. } ----------------> |   when a network has made its link anew
//!    | ----- Start(..) + stdio ------------> |   again after each Exited
//!    | <--------- Started + pidfd ---------- |
//!    | ----- Signal { .. } ----------------> |
//!    | <--------------- Exited { .. } ------ |
//! ```
//!
//! Of the namespace of somebody else there is less (`inside`):
//!
//! ```text
//! keeper                                   the process inside
//!    | ----- Enter { link } + namespace ---> |   and the end that is asked for sockets
//!    | <------- Created { .. } + TAP ------- |
//!    | ----- Configure(..) ----------------> |
//!    | <---------- Ready { warnings } ------ |
//! ```
//!
//! At any time init may say `Failed`; the end of the connection is the end of the instance.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use netyard_engine::config::Config;
use netyard_engine::control::Plugged;
use netyard_sys::seqpacket::SeqPacket;
use netyard_sys::tap;
use netyard_wire::{Features, MacAddr};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message, bytes; a program's arguments and variables are the bulk of it.
pub(super) const MAX_MESSAGE: usize = 160 * 1024;

/// The number of the first descriptor that a program gets beside its standard ones; the others follow.
/// It is far above what init has open itself.
pub(crate) const FIRST_DESCRIPTOR: i32 = 100;

/// What the keeper wants.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Order {
    /// The user namespace has its ids.
    Mapped,
    /// Make the ends of the plugs `eth0`, `eth1`, ... For each TAP a connection comes with it, over which its network
    /// asks for sockets of the namespace (`netyard_sys::supply`).
    Create { plugs: Vec<End> },
    /// In place of all that: enter the network namespace that comes with it, and make a TAP of this name there. The
    /// other descriptor is the end that is asked for sockets.
    Enter { link: String },
    /// Set everything up.
    Configure(Configuration),
    /// Set the link of one plug up again.
    Relink { number: usize, plug: PlugConfiguration },
    /// Start the program; descriptors come with it: its standard input, output, error, and what it
    /// gets from [`FIRST_DESCRIPTOR`] on.
    Start(Start),
    /// Send the program (and its process group, if it has its own) a signal.
    Signal { signal: i32 },
}

/// What an instance gives its network for a plug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    /// A TAP that it has made: user mode.
    Tap,
    /// Its network namespace, in which the network makes a link: bridge mode.
    Namespace,
}

/// What init has to say.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Report {
    /// The namespaces are there; the user namespace wants its ids.
    Unshared,
    /// The pid-1 process has this number on the host.
    Born { pid: u32 },
    /// The ends of the plugs, in order; a descriptor for each comes with it.
    Created { offloads: Vec<Offloads> },
    /// The link is set up again.
    Relinked,
    /// Everything is set up.
    Ready {
        /// What could not be done and can be lived without.
        warnings: Vec<String>,
    },
    /// The program runs; a pidfd comes with it.
    Started,
    /// The program has ended.
    Exited { exit: Exit },
    /// A step did not work.
    Failed(Failure),
}

/// What an instance's kernel leaves to the other end of a TAP.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Offloads {
    /// Checksums and TCP segmentation.
    tcp: bool,
    /// UDP segmentation.
    udp: bool,
}

impl From<tap::Offloads> for Offloads {
    fn from(tap::Offloads { tcp, udp }: tap::Offloads) -> Self {
        Self { tcp, udp }
    }
}

impl Offloads {
    /// The same as a network says it.
    pub(crate) fn features(self) -> Features {
        let mut features = Features::NONE;
        if self.tcp {
            features = features | Features::CSUM | Features::TSO4 | Features::TSO6 | Features::ECN;
        }
        if self.udp {
            features = features | Features::USO;
        }
        features
    }
}

/// Everything that init sets up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Configuration {
    /// Host name: the instance's name.
    pub(crate) host_name: String,
    /// In the order of the plugs. The first one with a gateway has the default route.
    pub(crate) plugs: Vec<PlugConfiguration>,
    /// A file that the instance sees as its `/etc/resolv.conf`.
    pub(crate) resolv_conf: PathBuf,
    /// A file that the instance sees as its `/etc/hosts`.
    pub(crate) hosts: PathBuf,
    /// The runtime folder, which it does not see: who can open the sockets in it, may do
    /// everything.
    pub(crate) runtime: PathBuf,
}

/// One plug as the instance sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlugConfiguration {
    /// Hardware address.
    pub(crate) mac: MacAddr,
    /// Largest IP packet, bytes.
    pub(crate) mtu: u16,
    /// IPv4 address and prefix length.
    pub(crate) address4: (Ipv4Addr, u8),
    /// IPv6 address and prefix length.
    pub(crate) address6: (Ipv6Addr, u8),
    /// The gateway's addresses.
    pub(crate) gateway: (Ipv4Addr, Ipv6Addr),
}

impl PlugConfiguration {
    /// What is set up for a plug of a network.
    pub(crate) fn new(plugged: &Plugged, config: &Config) -> Self {
        Self {
            mac: plugged.mac,
            mtu: config.mtu,
            address4: (plugged.address4, config.subnet4.prefix_len()),
            address6: (plugged.address6, config.subnet6.prefix_len()),
            gateway: (config.gateway4(), config.gateway6()),
        }
    }
}

/// A program to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Absolute path.
    pub(crate) program: PathBuf,
    /// `argv`, the name it is called by first.
    pub(crate) argv: Vec<String>,
    /// Variables set on top of the keeper's environment.
    pub(crate) env: Vec<(String, String)>,
    /// Working folder, absolute.
    pub(crate) cwd: PathBuf,
    /// Whether it shares the keeper's terminal and gets Ctrl-C from there.
    pub(crate) shares_terminal: bool,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl From<netyard_sys::process::Exit> for Exit {
    fn from(exit: netyard_sys::process::Exit) -> Self {
        match exit {
            netyard_sys::process::Exit::Code(code) => Self::Code(code),
            netyard_sys::process::Exit::Signal(signal) => Self::Signal(signal),
        }
    }
}

impl Exit {
    /// The code that a shell would show: 128 + signal when a signal ended it.
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code {code}"),
            Self::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "signal {signal} ({name})"),
                None => write!(f, "signal {signal}"),
            },
        }
    }
}

/// The usual name of a signal that ends programs; the numbers are those of signal(7) that all
/// our architectures share.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    })
}

/// A step of init that did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// Which.
    pub(crate) step: Step,
    /// What it was about, for people.
    pub(crate) what: String,
    /// The kernel's error number, if it was the kernel.
    pub(crate) errno: Option<i32>,
    /// What was said.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(step: Step, what: impl Into<String>, error: &io::Error) -> Self {
        let (what, errno) = (what.into(), error.raw_os_error());
        Self { step, what, errno, message: error.to_string() }
    }
}

/// The steps of init that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    /// Making the namespaces.
    Namespaces,
    /// Making a TAP.
    Tap,
    /// Setting up links, addresses and routes.
    Network,
    /// Setting up mounts.
    Mounts,
    /// Starting the program.
    Start,
}

/// Sends one message.
pub(crate) fn send(
    socket: &SeqPacket,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    socket.send(&serde_json::to_vec(message)?, descriptors)
}

/// Receives one message; `None` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: &SeqPacket,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let (len, descriptors) = socket.recv(&mut buffer)?;
    match buffer.get(..len) {
        None | Some([]) => Ok(None),
        Some(bytes) => Ok(Some((serde_json::from_slice(bytes)?, descriptors))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_read_like_a_shell_shows_them() {
        assert_eq!((Exit::Code(3).to_string(), Exit::Code(3).code()), ("code 3".to_owned(), 3));
        assert_eq!(Exit::Signal(9).to_string(), "signal 9 (SIGKILL)");
        assert_eq!(Exit::Signal(34).to_string(), "signal 34");
        assert_eq!(Exit::Signal(15).code(), 143);
    }

    #[test]
    fn the_end_of_the_connection_is_not_an_error() {
        let (one, other) = SeqPacket::pair().unwrap();
        send(&one, &Order::Create { plugs: vec![End::Tap] }, &[]).unwrap();
        drop(one);
        let (order, _) = receive::<Order>(&other).unwrap().unwrap();
        assert!(matches!(order, Order::Create { plugs } if plugs == [End::Tap]));
        assert!(receive::<Order>(&other).unwrap().is_none());
    }
}
