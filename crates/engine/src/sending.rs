//! Sending by the host's sockets for datagrams and pings, and what comes back about that.
//!
//! The kernel reports in two ways. A call fails, and says so itself. What routers and remotes say later
//! waits in the socket's error queue, and makes the next call on the socket fail once, whatever that
//! call is about. So a call that fails is tried again after the queue was emptied, and what is in the
//! queue goes to whom it is about.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netyard_wire::MacAddr;
use netyard_wire::icmp::IcmpError;

use crate::context::{Context, HOP_LIMIT};
use crate::edge::{DatagramError, PlugId, SocketId};

/// Entries read from a socket's error queue in one go.
pub(crate) const ERROR_BUDGET: usize = 64;

/// Why a guest's packet goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The name of the drop counter.
    pub(crate) reason: &'static str,
    /// What the guest is told.
    pub(crate) error: Option<IcmpError>,
}

impl Refusal {
    pub(crate) fn silent(reason: &'static str) -> Self {
        Self { reason, error: None }
    }

    pub(crate) fn told(reason: &'static str, error: IcmpError) -> Self {
        Self { reason, error: Some(error) }
    }
}

/// The drop counters of one protocol for what the kernel does not take.
#[derive(Debug)]
pub(crate) struct Reasons {
    pub(crate) queue_full: &'static str,
    pub(crate) unreachable: &'static str,
    pub(crate) firewall: &'static str,
    pub(crate) too_big: &'static str,
    pub(crate) failed: &'static str,
}

impl Reasons {
    /// What became of something that the kernel did not take; `mtu` is what the path takes, if it was
    /// too big for that.
    fn refusal(&self, error: &io::Error, mtu: Option<u32>) -> Refusal {
        match (error.kind(), mtu) {
            (_, Some(mtu)) => Refusal::told(self.too_big, IcmpError::TooBig(mtu)),
            (io::ErrorKind::WouldBlock, _) => Refusal::silent(self.queue_full),
            (io::ErrorKind::HostUnreachable, _) => {
                Refusal::told(self.unreachable, IcmpError::HostUnreachable)
            }
            (
                io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::AddrNotAvailable,
                _,
            ) => Refusal::told(self.unreachable, IcmpError::NetworkUnreachable),
            (io::ErrorKind::PermissionDenied, _) => {
                Refusal::told(self.firewall, IcmpError::Prohibited)
            }
            _ => Refusal::silent(self.failed),
        }
    }
}

/// What was found in an error queue.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// How many entries.
    pub(crate) count: usize,
    /// What the path takes, bytes, as the kernel said it of something that it has just refused.
    mtu: Option<u32>,
}

/// Empties a socket's error queue. What others have reported goes to `tell`; what the kernel says itself it
/// says of a call that has failed.
pub(crate) fn take_reports(
    cx: &mut Context<'_>,
    socket: SocketId,
    tell: &mut dyn FnMut(&mut Context<'_>, &DatagramError),
) -> Reports {
    let mut reports = Reports::default();
    while reports.count < ERROR_BUDGET
        && let Some(error) = cx.edge.udp_error(socket)
    {
        reports.count += 1;
        match (error.reporter, error.kind) {
            (Some(_), _) => tell(cx, &error),
            (None, IcmpError::TooBig(mtu)) => reports.mtu = Some(mtu),
            (None, _) => {}
        }
    }
    reports
}

/// Sends something that a guest has sent, with a hop limit if given.
pub(crate) fn send(
    cx: &mut Context<'_>,
    reasons: &Reasons,
    (socket, to): (SocketId, SocketAddr),
    hop_limit: Option<u8>,
    bytes: &[u8],
    tell: &mut dyn FnMut(&mut Context<'_>, &DatagramError),
) -> Result<(), Refusal> {
    let Err(error) = cx.edge.udp_send(socket, to, hop_limit, bytes) else { return Ok(()) };
    if error.kind() == io::ErrorKind::WouldBlock || take_reports(cx, socket, tell).count == 0 {
        return Err(reasons.refusal(&error, None));
    }
    let Err(error) = cx.edge.udp_send(socket, to, hop_limit, bytes) else { return Ok(()) };
    let mtu = take_reports(cx, socket, tell).mtu;
    Err(reasons.refusal(&error, mtu))
}

/// Passes on to a guest what was reported about something that it has sent to `remote`, which is the address
/// that it knows. `original` is the packet in question, from its IP header on.
///
/// Who reports stays who reports, as long as that is somebody outside. This host is the guest's gateway.
pub(crate) fn pass_on(
    cx: &mut Context<'_>,
    to: (PlugId, MacAddr),
    error: &DatagramError,
    (guest, remote): (IpAddr, IpAddr),
    original: &[u8],
) {
    let reporter = match error.reporter {
        Some(reporter) if reporter == error.destination.ip() => remote,
        Some(reporter)
            if reporter.is_ipv4() == guest.is_ipv4() && cx.policy.is_outside(reporter) =>
        {
            reporter
        }
        _ => cx.gateway_for(guest),
    };
    let hop_limit = onward(error.hop_limit);
    cx.send_icmp_error(to, (reporter, hop_limit), guest, error.kind, original);
}

/// The hop limit with which something goes on to a guest that had this much left here.
pub(crate) fn onward(hop_limit: Option<u8>) -> u8 {
    hop_limit.map_or(HOP_LIMIT, |left| left.saturating_sub(1).max(1))
}
