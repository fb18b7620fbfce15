//! Connections into the network that members have asked for: ordinary ones of the host.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::Io;
use crate::control::{ControlError, ControlErrorKind};
use crate::edge::{Readiness, SocketId};
use crate::network::DialId;

/// Connections that are being opened, and the outcomes.
#[derive(Debug, Default)]
pub(super) struct Dials {
    /// At most as many as the members may have under way.
    opening: Vec<Dial>,
    open: VecDeque<(DialId, SocketId)>,
    failed: VecDeque<(DialId, ControlError)>,
    last: u64,
}

#[derive(Debug)]
struct Dial {
    id: DialId,
    socket: SocketId,
    to: SocketAddr,
    until: Instant,
}

impl Dials {
    /// Starts to connect to `to`.
    pub(super) fn start(
        &mut self,
        io: &mut Io<'_>,
        to: SocketAddr,
        within: Duration,
    ) -> Result<DialId, ControlError> {
        let socket = io.edge.tcp_connect(to).map_err(|error| unreachable(to, &error))?;
        self.last += 1;
        let id = DialId(self.last);
        self.opening.push(Dial { id, socket, to, until: io.now + within });
        Ok(id)
    }

    pub(super) fn owns(&self, socket: SocketId) -> bool {
        self.opening.iter().any(|dial| dial.socket == socket)
    }

    pub(super) fn handle_socket(&mut self, io: &mut Io<'_>, socket: SocketId, ready: Readiness) {
        if !(ready.writable || ready.error || ready.hangup) {
            return;
        }
        let Some(place) = self.opening.iter().position(|dial| dial.socket == socket) else {
            return;
        };
        let dial = self.opening.swap_remove(place);
        match io.edge.take_error(socket) {
            Ok(()) => self.open.push_back((dial.id, socket)),
            Err(error) => {
                io.edge.close(socket);
                self.failed.push_back((dial.id, unreachable(dial.to, &error)));
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, io: &mut Io<'_>) {
        for dial in self.opening.extract_if(.., |dial| dial.until <= io.now) {
            io.edge.close(dial.socket);
            let silent = std::io::Error::other("nobody answered until the time was up");
            self.failed.push_back((dial.id, unreachable(dial.to, &silent)));
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.opening.iter().map(|dial| dial.until).min()
    }

    /// The next outcome; `release` gives the descriptor of an open connection away.
    pub(super) fn poll(
        &mut self,
        release: impl FnOnce(SocketId) -> std::io::Result<OwnedFd>,
    ) -> Option<(DialId, Result<OwnedFd, ControlError>)> {
        if let Some((id, error)) = self.failed.pop_front() {
            return Some((id, Err(error)));
        }
        let (id, socket) = self.open.pop_front()?;
        let released = release(socket).map_err(|error| ControlError {
            kind: ControlErrorKind::Failed,
            message: format!("the connection cannot be handed over: {error}"),
        });
        Some((id, released))
    }

    /// Gives up; an outcome that is known already is told.
    pub(super) fn abandon(&mut self, io: &mut Io<'_>, id: DialId) {
        for dial in self.opening.extract_if(.., |dial| dial.id == id) {
            io.edge.close(dial.socket);
        }
    }
}

/// Why an address of the network cannot be reached.
pub(super) fn unreachable(to: SocketAddr, why: &dyn std::error::Error) -> ControlError {
    ControlError { kind: ControlErrorKind::Unreachable, message: format!("{to}: {why}") }
}
