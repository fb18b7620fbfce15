//! The segment as a place to receive frames from and send them to.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use netyard_sys::packet::{HEADER_LEN, Packet, Wanted};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::{Frame, Offload, VNET_HEADER_LEN};

use crate::driver::edge::Ports;
use crate::edge::PlugId;

/// The plug that stands for the whole segment: the kernel's bridge finds the right one.
pub(super) const WHOLE: PlugId = PlugId(0);

/// Packet sockets on the bridge's own interface, for what guests ask of their gateway without a
/// socket of theirs knowing an address yet. None if nobody listens.
#[derive(Debug, Default)]
pub(super) struct SegmentPort {
    sockets: Vec<Side>,
}

/// One address family.
#[derive(Debug)]
struct Side {
    ethertype: u16,
    packet: Packet,
    readable: bool,
}

impl SegmentPort {
    /// Listens on an interface to what DHCP clients and router solicitations say.
    pub(super) fn open(interface: u32) -> io::Result<Self> {
        use netyard_wire::dhcp::{v4, v6};
        let wanted4 = Wanted::Ipv4 { udp: v4::SERVER_PORT };
        let wanted6 = Wanted::Ipv6 { udp: v6::SERVER_PORT, icmp: ROUTER_SOLICITATION };
        let side = |ethertype, wanted| {
            let packet = Packet::open(interface, wanted)?;
            Ok::<_, io::Error>(Side { ethertype, packet, readable: false })
        };
        Ok(Self { sockets: vec![side(ethernet::IPV4, wanted4)?, side(ethernet::IPV6, wanted6)?] })
    }

    /// What to wait on, with the number for [`SegmentPort::set_readable`].
    pub(super) fn watched(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        (0..).zip(self.sockets.iter().map(|side| side.packet.as_fd()))
    }

    /// A socket has something to read.
    pub(super) fn set_readable(&mut self, number: u32) {
        let side = usize::try_from(number).ok().and_then(|number| self.sockets.get_mut(number));
        if let Some(side) = side {
            side.readable = true;
        }
    }

    /// True if there may be something to read.
    pub(super) fn is_readable(&self) -> bool {
        self.sockets.iter().any(|side| side.readable)
    }

    /// The next frame, or the reason why one was dropped; `None` when there is none.
    pub(super) fn receive<'a>(
        &mut self,
        buffer: &'a mut [u8],
    ) -> Option<Result<Frame<'a>, &'static str>> {
        let (header, len) = loop {
            let side = self.sockets.iter_mut().find(|side| side.readable)?;
            match side.packet.recv(buffer) {
                Ok(received) => break received,
                Err(error) => {
                    side.readable = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::warn!(%error, "the segment cannot be read");
                    }
                }
            }
        };
        Some(frame(header, buffer.get(..len)?))
    }
}

/// ICMPv6 type 133 (RFC 4861 section 4.1).
const ROUTER_SOLICITATION: u8 = 133;

/// A frame with the header that the kernel puts before it: ours without its last field.
fn frame(header: [u8; HEADER_LEN], bytes: &[u8]) -> Result<Frame<'_>, &'static str> {
    let mut whole = [0; VNET_HEADER_LEN];
    for (to, from) in whole.iter_mut().zip(header) {
        *to = from;
    }
    let offload = Offload::parse(&whole, bytes).map_err(|error| error.reason())?;
    Ok(Frame { bytes, offload })
}

impl Ports for SegmentPort {
    /// The kernel leads connections there.
    fn take_inside(&mut self, _: PlugId, _: bool) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn is_captured(&self, _: PlugId) -> bool {
        false
    }

    fn transmit(&mut self, _now: Instant, _plug: PlugId, frame: Frame<'_>) -> bool {
        let Ok((Ethernet { ethertype, .. }, _)) = Ethernet::parse(frame.bytes) else {
            return false;
        };
        let side = self.sockets.iter().find(|side| side.ethertype == ethertype);
        let header = frame.offload.encode();
        let (Some(side), Some(header)) = (side, header.first_chunk()) else { return false };
        side.packet.send(header, frame.bytes).is_ok()
    }
}
