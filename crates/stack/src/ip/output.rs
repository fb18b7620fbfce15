//! What goes out: frames to neighbours, to groups and back to this host, and the messages of ICMP among them.

use std::net::IpAddr;
use std::time::Instant;

use netyard_wire::icmp::{self, Icmp, IcmpError};
use netyard_wire::ip::IpPacket;
use netyard_wire::{FrameBuf, MacAddr, build, ethernet, fragment};
use rand::RngExt as _;

use super::neighbor::Resolution;
use super::{Destination, Ip, Medium, NicIndex, Path, Way};
use crate::Error;

/// Frames that wait to be sent; a further one is dropped and counted.
const MAX_OUTPUT: usize = 1024;
/// Frames to this host itself that wait to be received; a further one is dropped and counted.
const MAX_LOOPED: usize = 1024;

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is ready to leave by this interface.
    By(NicIndex),
    /// It was taken: it waits for its neighbour, or is for this host itself.
    Taken,
    /// The next hop does not answer.
    Unreachable,
}

impl Ip {
    /// Fills in the destination's hardware address. Where the frame is taken, `frame` is left empty.
    pub(crate) fn transmit(&mut self, now: Instant, path: &Path, frame: &mut FrameBuf) -> Sent {
        let index = match path.way {
            Way::By(index) => index,
            Way::Back(link) => {
                self.loop_back(link, std::mem::take(frame));
                return Sent::Taken;
            }
        };
        if self.nic(index).is_some_and(|nic| nic.medium == Medium::Ip) {
            return Sent::By(index);
        }
        let mac = match path.next_hop {
            IpAddr::V4(ip) if ip.is_multicast() => MacAddr::ipv4_multicast(ip),
            IpAddr::V6(ip) if ip.is_multicast() => MacAddr::ipv6_multicast(ip),
            ip if self.is_broadcast(ip) => MacAddr::BROADCAST,
            ip => match self.neighbors.resolve(now, (index, ip)) {
                Resolution::Known(mac) => mac,
                Resolution::Wait => {
                    if !self.neighbors.hold((index, ip), std::mem::take(frame)) {
                        self.drop("neighbor-queue-full");
                    }
                    self.ask_neighbors(now);
                    return Sent::Taken;
                }
                Resolution::Unreachable => return Sent::Unreachable,
            },
        };
        ethernet::set_destination(&mut frame.bytes, mac);
        Sent::By(index)
    }

    /// Keeps a frame that this host is to receive itself.
    fn loop_back(&mut self, link: Option<NicIndex>, frame: FrameBuf) {
        if self.looped.len() >= MAX_LOOPED {
            self.drop("loopback-full");
        } else {
            self.looped.push_back((link, frame));
        }
    }

    /// Sends a frame that nobody makes again: it waits in the queue.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        path: &Path,
        mut frame: FrameBuf,
    ) -> Result<(), Error> {
        match self.transmit(now, path, &mut frame) {
            Sent::By(nic) => self.queue(nic, frame),
            Sent::Taken => Ok(()),
            Sent::Unreachable => Err(Error::HostUnreachable),
        }
    }

    pub(super) fn queue(&mut self, nic: NicIndex, frame: FrameBuf) -> Result<(), Error> {
        if self.output.len() >= MAX_OUTPUT {
            self.drop("output-full");
            return Err(Error::NoBuffers);
        }
        self.output.push_back((nic, frame));
        Ok(())
    }

    /// The next frame of the queue.
    pub(crate) fn poll_output(&mut self) -> Option<(NicIndex, FrameBuf)> {
        self.output.pop_front()
    }

    /// The next frame for this host itself, and the link that its addresses belong to.
    pub(crate) fn poll_looped(&mut self) -> Option<(Option<NicIndex>, FrameBuf)> {
        self.looped.pop_front()
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty() || !self.looped.is_empty()
    }

    /// Answers a packet that came by `nic` with an ICMP error, unless that is forbidden or too much.
    pub(crate) fn send_error(
        &mut self,
        now: Instant,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
        error: IcmpError,
    ) {
        // A loopback source is our own: from outside such packets do not get so far.
        if !icmp::may_answer_with_error(packet) || self.is_broadcast(packet.destination) {
            return;
        }
        if !self.errors.take(now) {
            return self.drop("icmp-rate");
        }
        let Ok(path) = self.path_back(now, nic, packet) else {
            return self.drop("icmp-no-route");
        };
        let original = [packet.header, packet.payload].concat();
        let mut frame = FrameBuf::default();
        frame.offload = build::icmp_error(
            &mut frame.bytes,
            path.source_mac,
            MacAddr([0; 6]),
            path.source,
            packet.source,
            error,
            &original,
        );
        // What cannot be sent was counted.
        let _ = self.send(now, &path, frame);
    }

    /// Sends a datagram of a socket; `looped`: sockets of this host that are in the group hear it, too.
    pub(crate) fn send_datagram(
        &mut self,
        now: Instant,
        path: &Path,
        destination: IpAddr,
        frame: FrameBuf,
        looped: bool,
    ) -> Result<(), Error> {
        if looped && self.destination(path.link(), destination) == Some(Destination::Group) {
            self.loop_back(path.link(), frame.clone());
        }
        let len = frame.bytes.len().saturating_sub(ethernet::HEADER_LEN);
        if u32::try_from(len).is_ok_and(|len| len <= path.mtu) {
            return self.send(now, path, frame);
        }
        self.send_fragments(now, path, &frame)
    }

    /// Sends a datagram that is longer than its path takes, in pieces.
    fn send_fragments(&mut self, now: Instant, path: &Path, frame: &FrameBuf) -> Result<(), Error> {
        let mtu = usize::try_from(path.mtu).unwrap_or(usize::MAX);
        let id = self.rng.random();
        let mut fragments = Vec::new();
        let keep = &mut |bytes: &[u8]| fragments.push(bytes.to_vec());
        fragment::complete_and_cut(frame.as_frame(), mtu, id, keep).ok_or(Error::MessageTooLong)?;
        for bytes in fragments {
            self.send(now, path, FrameBuf { bytes, ..FrameBuf::default() })?;
        }
        Ok(())
    }

    /// Answers an ICMP message with another one.
    pub(crate) fn answer(
        &mut self,
        now: Instant,
        nic: Option<NicIndex>,
        packet: &IpPacket<'_>,
        message: &Icmp<'_>,
    ) {
        match self.path_back(now, nic, packet) {
            // What cannot be sent was counted; who asked will ask again.
            Ok(path) => drop(self.send_icmp(now, &path, packet.source, message)),
            Err(_) => self.drop("icmp-no-route"),
        }
    }

    /// Sends an ICMP message that is no error.
    pub(crate) fn send_icmp(
        &mut self,
        now: Instant,
        path: &Path,
        destination: IpAddr,
        message: &Icmp<'_>,
    ) -> Result<(), Error> {
        let mut frame = FrameBuf::default();
        frame.offload = build::icmp_frame(
            &mut frame.bytes,
            path.source_mac,
            MacAddr([0; 6]),
            path.source,
            destination,
            path.hop_limit,
            message,
        );
        self.send(now, path, frame)
    }
}
