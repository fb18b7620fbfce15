//! What one event may touch: the time, the edge, and the parts of the network that all share.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use netyard_wire::build::{self, TcpFrame};
use netyard_wire::icmp::IcmpError;
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{Frame, MacAddr, Offload, SeqNumber, ethernet, fragment};
use rand::RngExt as _;
use rand::rngs::SmallRng;

use crate::config::Config;
use crate::counters::Counters;
use crate::edge::{Edge, PlugId};
use crate::guests::Guests;
use crate::policy::Policy;
use crate::remote::{NOBODY, Remotes};

/// Hop limit of packets that the gateway originates (RFC 1700's successor registry: 64).
pub(crate) const HOP_LIMIT: u8 = 64;

/// The shared parts, lent to the module that handles one event.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) edge: &'a mut dyn Edge,
    pub(crate) config: &'a Config,
    pub(crate) guests: &'a Guests,
    pub(crate) remotes: &'a Remotes,
    pub(crate) policy: &'a mut Policy,
    pub(crate) counters: &'a mut Counters,
    pub(crate) rng: &'a mut SmallRng,
    /// Where frames are built; contents are nobody's between calls.
    pub(crate) scratch: &'a mut Vec<u8>,
}

impl Context<'_> {
    /// Sends one UDP datagram to a guest, from the gateway's hardware address.
    pub(crate) fn send_udp(
        &mut self,
        plug: PlugId,
        mac: MacAddr,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
    ) -> bool {
        let offload = build::udp_frame(
            self.scratch,
            self.config.gateway_mac,
            mac,
            source,
            destination,
            HOP_LIMIT,
            payload,
        );
        self.transmit_cut(plug, offload)
    }

    /// Sends a guest several UDP datagrams of `size` bytes in one frame; `parts` are those datagrams, one behind the
    /// other.
    pub(crate) fn send_udp_together<'a>(
        &mut self,
        plug: PlugId,
        mac: MacAddr,
        source: SocketAddr,
        destination: SocketAddr,
        parts: impl Iterator<Item = &'a [u8]>,
        size: u16,
    ) -> bool {
        let ours = self.config.gateway_mac;
        let between = (source, destination);
        let offload =
            build::udp_frame_of_many(self.scratch, (ours, mac), between, HOP_LIMIT, parts, size);
        self.edge.transmit(plug, Frame { bytes: self.scratch, offload })
    }

    /// Sends the datagram in `scratch` to a guest: in fragments, if it is longer than the network takes.
    pub(crate) fn transmit_cut(&mut self, plug: PlugId, offload: Offload) -> bool {
        let mtu = usize::from(self.config.mtu);
        let frame = Frame { bytes: self.scratch, offload };
        if frame.bytes.len() <= mtu.saturating_add(ethernet::HEADER_LEN) {
            return self.edge.transmit(plug, frame);
        }
        let (mut all, edge) = (true, &mut self.edge);
        let cut = fragment::complete_and_cut(frame, mtu, self.rng.random(), &mut |bytes| {
            all &= edge.transmit(plug, Frame { bytes, offload: Offload::default() });
        });
        if cut.is_none() {
            self.counters.drop("over-mtu");
        }
        cut.is_some() && all
    }

    /// Sends a guest a TCP segment without data, from the gateway's hardware address; with an acknowledgement if
    /// given.
    pub(crate) fn send_tcp(
        &mut self,
        (plug, mac): (PlugId, MacAddr),
        (source, destination): (SocketAddr, SocketAddr),
        (seq, ack): (SeqNumber, Option<SeqNumber>),
        flags: Flags,
    ) -> bool {
        let header = TcpFrame {
            source_mac: self.config.gateway_mac,
            destination_mac: mac,
            source,
            destination,
            seq,
            ack: ack.unwrap_or_default(),
            flags: if ack.is_some() { flags | Flags::ACK } else { flags },
            window: 0,
            options: TcpOptions::default(),
            hop_limit: HOP_LIMIT,
            traffic_class: 0,
            ip_id: 0,
        };
        self.scratch.clear();
        self.scratch.resize(header.header_len(), 0);
        let offload = header.emit(self.scratch, u16::MAX);
        self.edge.transmit(plug, Frame { bytes: self.scratch, offload })
    }

    /// Tells a guest what became of a packet it sent; `original` is that packet from its IP
    /// header on, `reporter` who reports, with the hop limit that its report has left.
    pub(crate) fn send_icmp_error(
        &mut self,
        (plug, mac): (PlugId, MacAddr),
        (reporter, hop_limit): (IpAddr, u8),
        guest: IpAddr,
        kind: IcmpError,
        original: &[u8],
    ) -> bool {
        let message = kind.message(guest.is_ipv4(), original);
        let ours = self.config.gateway_mac;
        let offload =
            build::icmp_frame(self.scratch, ours, mac, reporter, guest, hop_limit, &message);
        self.edge.transmit(plug, Frame { bytes: self.scratch, offload })
    }

    /// Where frames for an address go: to a guest, or to the remote machines.
    pub(crate) fn station(&self, address: IpAddr) -> Option<(PlugId, MacAddr)> {
        let guest = self.guests.by_address(address).map(|guest| (guest.plug, guest.mac));
        guest.or_else(|| Some((self.remotes.plug_to(address)?, NOBODY)))
    }

    /// The gateway's address of a guest's family.
    pub(crate) fn gateway_for(&self, guest: IpAddr) -> IpAddr {
        match guest {
            IpAddr::V4(_) => self.config.gateway4().into(),
            IpAddr::V6(_) => self.config.gateway6().into(),
        }
    }
}
