//! What a keeper tells the monitor of a virtual machine, and what it hears: one JSON value per
//! SEQPACKET message, descriptors attached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use netyard_sys::seqpacket::SeqPacket;
use netyard_wire::MacAddr;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::Accelerator;

/// Longest message, bytes: paths and addresses.
const MAX_MESSAGE: usize = 32 * 1024;

/// What the monitor is to run. Its descriptors are the first file system (if the guest is ours)
/// and then a wire for each card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    /// The QEMU program.
    pub(super) qemu: PathBuf,
    /// MiB.
    pub(super) memory: u32,
    pub(super) cpus: u16,
    pub(super) cards: Vec<Card>,
    pub(super) boot: Boot,
}

impl Job {
    /// Whether a network process works in the machine's memory.
    pub(super) fn shares_memory(&self) -> bool {
        self.cards.iter().any(|card| card.wire == Wire::VhostUser)
    }
}

/// A network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Card {
    pub(super) mac: MacAddr,
    /// Largest IP packet, bytes; the guest's driver is told.
    pub(super) mtu: u16,
    pub(super) wire: Wire,
}

/// What a card is connected by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wire {
    /// The machine's memory, shared with a network process: what comes as a descriptor is the file of the socket
    /// that QEMU connects to.
    VhostUser,
    /// A TAP, in a bridge.
    Tap,
}

/// How a guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Boot {
    /// A kernel of the host's with a first file system of ours, which comes as a descriptor.
    Program { kernel: PathBuf },
    /// A kernel with what the image brings.
    Kernel { kernel: PathBuf, initrd: Option<PathBuf>, drive: Option<Drive> },
    /// The image's own boot loader.
    Loader { drive: Drive },
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Drive {
    pub(super) path: PathBuf,
    /// As QEMU calls it.
    pub(super) format: String,
}

/// What the monitor has to say while its machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// What executes the guest's instructions; if that is the slow way, why.
    Accelerator { accelerator: Accelerator, why: Option<String> },
    /// The state of the machine, as QEMU calls it: `running`, `paused`, `shutdown`, ...
    State(String),
    /// The program runs.
    Booted,
}

/// Sends one message.
pub(super) fn send(
    socket: &SeqPacket,
    message: &impl Serialize,
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    socket.send(&serde_json::to_vec(message)?, &descriptors)
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
