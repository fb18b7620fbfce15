//! What connects QEMU with a network.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use netyard_engine::config::Mode;
use netyard_engine::control::PlugKind;
use netyard_sys::tap::Device;

use super::network::Link;
use crate::bridge::tap;
use crate::error::YardError;
use crate::model::PlugSpec;
use crate::vm::Wire;

/// A plug's connection with QEMU.
#[derive(Debug)]
pub(super) struct Cable {
    wire: Wire,
    network: OwnedFd,
    /// QEMU's end. Held here, too: the plug and its address stay while no machine runs.
    machine: OwnedFd,
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
        let (wire, network, machine) = match config.mode {
            Mode::User => {
                let (network, machine) = UnixStream::pair().map_err(failed)?;
                (Wire::Stream, network.into(), machine.into())
            }
            Mode::Bridge(_) => {
                let name = tap::name(&config.name, instance, plug.tap.as_deref())?;
                let tap = tap::make(&name, instance)?;
                (Wire::Tap, tap.try_clone().map_err(failed)?, tap)
            }
        };
        Ok(Self { wire, network, machine, used: false })
    }

    /// What QEMU is connected by.
    pub(super) const fn wire(&self) -> Wire {
        self.wire
    }

    /// What the network gets.
    pub(super) fn network_end(&self) -> (PlugKind, BorrowedFd<'_>) {
        let kind = match self.wire {
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
        match self.wire {
            Wire::Stream => self.used,
            Wire::Tap => {
                let tap = self.machine.try_clone().map(Device::from);
                tap.is_ok_and(|tap| tap.name().is_err())
            }
        }
    }
}
