//! What connects QEMU with a network.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use netyard_engine::config::Mode;
use netyard_engine::control::PlugKind;

use super::network::Link;
use crate::bridge::tap;
use crate::error::YardError;
use crate::model::PlugSpec;
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

/// A plug's connection with QEMU.
#[derive(Debug)]
pub(super) struct Cable {
    network: OwnedFd,
    /// QEMU's end. Held here, too: the plug and its address stay while no machine runs.
    machine: Rc<OwnedFd>,
    /// The name of the TAP that it is; else it is a stream.
    tap: Option<String>,
    used: bool,
}

impl Cable {
    /// Lays the cable that a network takes: in bridge mode a TAP with the plug's name.
    ///
    /// # Errors
    /// The TAP cannot be made, or we are out of descriptors.
    pub(super) fn lay(link: &Link, instance: &str, plug: &PlugSpec) -> Result<Self, YardError> {
        let failed = |error: io::Error| YardError::io(format!("connect {instance}"), &error);
        let config = link.config();
        let (tap, network, machine): (_, OwnedFd, OwnedFd) = match config.mode {
            Mode::User => {
                let (network, machine) = UnixStream::pair().map_err(failed)?;
                (None, network.into(), machine.into())
            }
            Mode::Bridge(_) => {
                let name = tap::name(&config.name, instance, plug.tap.as_deref())?;
                let tap = tap::make(&name, instance)?;
                (Some(name.into()), tap.try_clone().map_err(failed)?, tap)
            }
        };
        Ok(Self { network, machine: Rc::new(machine), tap, used: false })
    }

    /// What QEMU is connected by.
    pub(super) fn wire(&self) -> Wire {
        if self.tap.is_some() { Wire::Tap } else { Wire::Stream }
    }

    /// The TAP that it is, if it is one.
    pub(super) fn tap(&self) -> Option<Tap> {
        let held = Some(Rc::clone(&self.machine));
        self.tap.clone().map(|name| Tap { name, held })
    }

    /// What the network gets.
    pub(super) fn network_end(&self) -> (PlugKind, BorrowedFd<'_>) {
        let kind = match self.wire() {
            Wire::Stream => PlugKind::Stream,
            Wire::Tap => PlugKind::Tap,
        };
        (kind, self.network.as_fd())
    }

    /// What a machine gets.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn machine_end(&mut self) -> io::Result<OwnedFd> {
        self.used = true;
        self.machine.try_clone()
    }

    /// Whether it is of no use to another machine: in a stream a frame may be half through, and a
    /// TAP may have been deleted.
    pub(super) fn is_spent(&self) -> bool {
        match self.wire() {
            Wire::Stream => self.used,
            Wire::Tap => tap::is_lost(&self.machine),
        }
    }
}
