//! Who is measured: each plugs namespaces into a bridge as its users have it do that.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use netyard_sys::mount;
use netyard_sys::namespace::{Namespaces, within_new};
use netyard_testbed::peer;
use serde::{Deserialize, Serialize};

use super::netyard::Network;
use super::others::{Cni, Netavark, Script};
use crate::table;

/// Where the names of namespaces are.
const NAMES: &str = "/run/netns";

/// The first host port that is forwarded; the next plug has the next one.
const FIRST_PORT: u16 = 20_000;

/// The port that forwards lead to.
pub(super) const GUEST_PORT: u16 = 80;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Contender {
    /// This project: the socket of a network's process, and an instance's own set-up of its end.
    Netyard,
    /// `ip` and `nft`, as one writes it by hand.
    HandMade,
    /// podman's netavark.
    Netavark,
    /// The CNI plugins bridge, host-local and portmap.
    Cni,
    /// nginx's stream module.
    Nginx,
    /// HAProxy in mode `tcp`.
    Haproxy,
}

impl table::Contender for Contender {
    const ALL: &[Self] =
        &[Self::Netyard, Self::HandMade, Self::Netavark, Self::Cni, Self::Nginx, Self::Haproxy];

    fn name(self) -> &'static str {
        match self {
            Self::Netyard => "netyard",
            Self::HandMade => "hand-made",
            Self::Netavark => "netavark",
            Self::Cni => "CNI",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }
}

impl Contender {
    /// Has it make its bridge here, in a namespace that plays the host; `None`: it makes none.
    pub(super) fn plugs(self) -> Option<Box<dyn Plugs>> {
        Some(match self {
            Self::Netyard => Box::new(Network::join()),
            Self::HandMade => Box::new(Script::new()),
            Self::Netavark => Box::new(Netavark::new()),
            Self::Cni => Box::new(Cni::new()),
            Self::Nginx | Self::Haproxy => return None,
        })
    }
}

/// What plugs namespaces in: eth0 with an address, a default route by the bridge, which translates
/// what leaves, and a forward of one TCP port of the host.
pub(super) trait Plugs {
    /// Plugs a namespace in.
    fn plug(&mut self, guest: &Guest);

    /// The address of one that is plugged in.
    fn address(&self, guest: &Guest) -> Ipv4Addr {
        guest.address()
    }

    /// Takes it out.
    fn unplug(&mut self, guest: &Guest);

    /// Takes all of them out; nothing is left then.
    fn clear(&mut self, guests: &[Guest]) {
        for guest in guests {
            self.unplug(guest);
        }
    }
}

/// A namespace with a name, made in the same way for everybody.
#[derive(Debug)]
pub(super) struct Guest {
    number: u16,
}

impl Guest {
    /// Makes one. Its number tells it from the others.
    pub(super) fn new(number: u16) -> Self {
        let guest = Self { number };
        let path = guest.path();
        let made = fs::create_dir_all(NAMES).and_then(|()| File::create(&path)).and_then(|_| {
            within_new(Namespaces::NETWORK, || {
                mount::bind(Path::new("/proc/thread-self/ns/net"), &path)
            })?
        });
        made.unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
        guest
    }

    /// Takes its name away, and with it the namespace.
    pub(super) fn remove(&self) {
        let path = self.path();
        let removed = mount::detach(&path).and_then(|()| fs::remove_file(&path));
        removed.unwrap_or_else(|error| panic!("remove {}: {error}", path.display()));
    }

    pub(super) fn name(&self) -> String {
        format!("guest-{}", self.number)
    }

    pub(super) fn path(&self) -> PathBuf {
        Path::new(NAMES).join(self.name())
    }

    /// The host's end of its link.
    pub(super) fn link(&self) -> String {
        format!("ve{}", self.number)
    }

    /// The address that it has where the caller chooses it.
    pub(super) fn address(&self) -> Ipv4Addr {
        let [high, low] = (self.number + 2).to_be_bytes();
        Ipv4Addr::new(10, 9, high, low)
    }

    /// A command that runs a program in it.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(peer("nsenter"));
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(peer(program));
        command
    }

    pub(super) fn host_port(&self) -> u16 {
        FIRST_PORT + self.number
    }
}
