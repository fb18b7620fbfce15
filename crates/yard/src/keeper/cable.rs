//! What connects QEMU, or a program with a stack of its own, with a network.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use netyard_engine::config::Mode;
use netyard_engine::control::PlugKind;
use netyard_sys::seqpacket::SeqPacket;

use super::network::Link;
use crate::bridge::tap;
use crate::error::YardError;
use crate::model::{InstanceSpec, Kind, PlugSpec};
use crate::path_socket::PathSocket;
use crate::vm::Wire;

/// A TAP that an instance is plugged in by.
#[derive(Debug, Clone)]
pub(super) struct Tap {
    pub(super) name: String,
    /// Of a virtual machine: the TAP itself.
    held: Option<Rc<OwnedFd>>,
}

impl Tap {
    /// One that the network has made for somebody else to open.
    pub(super) fn of_network(name: String) -> Self {
        Self { name, held: None }
    }

    /// Whether it is a virtual machine's, and somebody has deleted it.
    pub(super) fn is_lost(&self) -> bool {
        self.held.as_deref().is_some_and(tap::is_lost)
    }
}

/// A plug's connection with QEMU, or with a program's stack.
#[derive(Debug)]
pub(super) struct Cable {
    network: OwnedFd,
    /// The other end. Held here, too: the plug and its address stay while nothing runs.
    machine: Rc<OwnedFd>,
    make: Make,
    used: bool,
}

/// What a cable is made of.
#[derive(Debug)]
enum Make {
    /// A socket that the network listens at and the file by which QEMU connects, as often as one of them was
    /// replaced; frames go through the machine's memory.
    VhostUser,
    /// A socket of frames with their offloads: a stack's way.
    Frames,
    /// A TAP of this name: the way of bridges.
    Tap(String),
}

impl Cable {
    /// Lays the cable that a network takes: in bridge mode a TAP with the plug's name. A socket is made in the
    /// instance's `folder`.
    ///
    /// # Errors
    /// The TAP or socket cannot be made, or we are out of descriptors.
    pub(super) fn lay(
        link: &Link,
        instance: &InstanceSpec,
        plug: &PlugSpec,
        folder: &Path,
    ) -> Result<Self, YardError> {
        let InstanceSpec { name: instance, kind, .. } = instance;
        let failed = |error: io::Error| YardError::io(format!("connect {instance}"), &error);
        let config = link.config();
        let (make, network, machine): (_, OwnedFd, OwnedFd) = match config.mode {
            Mode::User if *kind == Kind::Stack => {
                let (network, machine) = SeqPacket::pair().map_err(failed)?;
                (Make::Frames, network.into(), machine.into())
            }
            Mode::User => {
                let (network, machine) = PathSocket::without_path(folder)?;
                (Make::VhostUser, network, machine)
            }
            Mode::Bridge(_) => {
                let name = tap::name(&config.name, instance, plug.tap.as_deref())?;
                let tap = tap::make(&name, instance)?;
                (Make::Tap(name.into()), tap.try_clone().map_err(failed)?, tap)
            }
        };
        Ok(Self { network, machine: Rc::new(machine), make, used: false })
    }

    /// What QEMU is connected by.
    pub(super) fn wire(&self) -> Wire {
        if matches!(self.make, Make::Tap(_)) { Wire::Tap } else { Wire::VhostUser }
    }

    /// The TAP that it is, if it is one.
    pub(super) fn tap(&self) -> Option<Tap> {
        let Make::Tap(name) = &self.make else { return None };
        Some(Tap { name: name.clone(), held: Some(Rc::clone(&self.machine)) })
    }

    /// What the network gets.
    pub(super) fn network_end(&self) -> (PlugKind, BorrowedFd<'_>) {
        let kind = match self.make {
            Make::VhostUser => PlugKind::VhostUser,
            Make::Frames => PlugKind::Socket,
            Make::Tap(_) => PlugKind::Tap,
        };
        (kind, self.network.as_fd())
    }

    /// What a machine, or a program with a stack, gets.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn machine_end(&mut self) -> io::Result<OwnedFd> {
        self.used = true;
        self.machine.try_clone()
    }

    /// Whether it is of no use to another one: both ends of a socket of frames have said what they take, and a
    /// TAP may have been deleted.
    pub(super) fn is_spent(&self) -> bool {
        match self.make {
            Make::VhostUser => false,
            Make::Frames => self.used,
            Make::Tap(_) => tap::is_lost(&self.machine),
        }
    }
}
