//! One TCP connection of a guest, joined to one host stream.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netyard_wire::tcp::Segment;
use netyard_wire::{MacAddr, SeqNumber};

use super::open::Opening;
use super::preamble::Preamble;
use super::receiver::Receiver;
use super::sender::Sender;
use super::splice::Splice;
use crate::control::{FlowKind, FlowPhase, FlowState, whole};
use crate::edge::{PlugId, SocketId};
use crate::service::TurnKey;

/// Both ends of a connection as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// How far the opening is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest's SYN waits for the host's connect.
    Connecting,
    /// The host is connected, our SYN-ACK waits for its ACK.
    SynReceived,
    /// Our SYN waits for the guest's SYN-ACK.
    SynSent,
    /// Both ways open. Closing is a matter of the two FINs, see [`Sender`] and [`Receiver`]:
    /// every RFC 9293 state after ESTABLISHED is a combination of "FIN sent", "our FIN is
    /// acknowledged" and "FIN received".
    Open,
}

/// Who opened a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A guest, to the outside; it counts against the guest's share.
    Guest,
    /// A guest, to the gateway itself.
    Local,
    /// The host, into the network.
    Host,
}

/// One flow.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) key: Key,
    pub(super) plug: PlugId,
    pub(super) mac: MacAddr,
    pub(super) socket: SocketId,
    pub(super) phase: Phase,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    /// The host stream may have more to read.
    pub(super) readable: bool,
    /// The host's end of stream has been told of: a short read is not the last one.
    pub(super) ended: bool,
    /// The host stream may take more.
    pub(super) writable: bool,
    /// Our FIN to the host is out.
    pub(super) shut: bool,
    /// Bytes that the guest has acknowledged and the host's queue still holds.
    pub(super) discard: usize,
    /// Already on the list of flows with work to do.
    pub(super) dirty: bool,
    /// A plug would not take a frame: try again at this time.
    pub(super) blocked_until: Option<Instant>,
    /// When a silent guest is asked whether it is still there.
    pub(super) keepalive_at: Instant,
    /// Questions it has not answered.
    pub(super) keepalives: u32,
    /// IPv4 identification of the next packet.
    pub(super) ip_id: u16,
    /// Where an inbound connection is in its attempts; gone once open.
    pub(super) opening: Option<Box<Opening>>,
    /// What the guest is to get before all that the host stream has.
    pub(super) preamble: Option<Box<Preamble>>,
    /// How it goes without frames.
    pub(super) splice: Option<Box<Splice>>,
    /// The service turn that this connection is.
    pub(super) turn: Option<TurnKey>,
    /// Who opened it.
    pub(super) origin: Origin,
    /// Who has connected from outside; `None` for what guests open, and for the network's own connections.
    pub(super) client: Option<IpAddr>,
    /// How many bytes of the guest waited when that was last counted.
    pub(super) held: usize,
    /// When it began.
    pub(super) began: Instant,
}

impl Flow {
    /// What each side may still say is said: nothing is left to do. (The gateway itself closes
    /// both ways at once, RFC 1035 section 4.2.2: it waits for no FIN of the guest.)
    pub(super) fn over(&self) -> bool {
        if let Some(splice) = &self.splice {
            return splice.is_over();
        }
        let heard = self.origin == Origin::Local || (self.receiver.finished && self.shut);
        self.phase == Phase::Open && self.sender.finished() && heard
    }

    /// The guest has so many more bytes.
    pub(super) fn acknowledge(&mut self, mut count: usize) {
        if let Some(preamble) = &mut self.preamble {
            count = preamble.acknowledge(count);
            if preamble.is_over() {
                self.preamble = None;
            }
        }
        self.discard += count;
    }

    /// As it is shown.
    pub(super) fn state(&self, now: Instant) -> FlowState {
        // The FIN was acknowledged, too, and is no payload.
        let fin = u64::from(self.sender.finished());
        let (closing, (from_guest, to_guest)) = match &self.splice {
            Some(splice) => (splice.is_closing(), splice.bytes()),
            None => (
                self.receiver.finished || self.sender.fin.is_some(),
                (self.receiver.accepted, self.sender.acked.saturating_sub(fin)),
            ),
        };
        FlowState {
            outbound: self.origin != Origin::Host,
            client: self.client,
            state: match self.phase {
                Phase::Open if closing => FlowPhase::Closing,
                Phase::Open => FlowPhase::Open,
                Phase::Connecting | Phase::SynReceived | Phase::SynSent => FlowPhase::Opening,
            },
            guest_to_host: Some(from_guest),
            host_to_guest: Some(to_guest),
            spliced: self.splice.is_some(),
            rtt_us: self.sender.rtt.map(|(rtt, _)| whole(rtt.as_micros())),
            ..FlowState::new(FlowKind::Tcp, self.key.guest, self.key.remote, now, self.began)
        }
    }

    /// The earliest time at which something happens by itself.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let opening = self.opening.as_ref().map(|opening| opening.deadline());
        if self.splice.is_some() {
            return opening;
        }
        let others = [self.sender.deadline(), self.receiver.ack_at(), self.blocked_until, opening];
        Some(others.into_iter().flatten().fold(self.keepalive_at, Instant::min))
    }
}

/// The largest segment of a network of this MTU (RFC 9293 3.7.1, RFC 8200 section 8.3).
pub(super) fn mss_of(mtu: u16, address: IpAddr) -> u16 {
    mtu.saturating_sub(if address.is_ipv4() { 40 } else { 60 }).max(64)
}

/// How many sequence numbers a segment takes.
pub(super) fn length_of(segment: &Segment<'_>) -> usize {
    use netyard_wire::tcp::Flags;
    segment.payload.len()
        + usize::from(segment.flags.contains(Flags::SYN))
        + usize::from(segment.flags.contains(Flags::FIN))
}

/// The acknowledgement number that answers a segment that belongs to nothing.
pub(super) fn answering_ack(segment: &Segment<'_>) -> SeqNumber {
    segment.seq + length_of(segment)
}
