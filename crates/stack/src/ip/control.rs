//! ARP (RFC 826) and neighbour discovery (RFC 4861 section 7): questions and answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use netyard_wire::arp::{Arp, Operation};
use netyard_wire::icmp::{Icmp, Ndp, solicited_node};
use netyard_wire::ip::IpPacket;
use netyard_wire::{FrameBuf, MacAddr, build, ethernet};

use super::neighbor::Question;
use super::{Ip, NicIndex, Path, Way};

/// Neighbour discovery has not crossed a router (RFC 4861 section 3.1).
const NDP_HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

impl Ip {
    /// Asks the questions that the table of neighbours has.
    pub(super) fn ask_neighbors(&mut self, now: Instant) {
        while let Some(question) = self.neighbors.poll_question() {
            match question.target {
                IpAddr::V4(target) => self.ask_arp(now, question, target),
                IpAddr::V6(target) => self.ask_ndp(now, question, target),
            }
        }
    }

    fn ask_arp(&mut self, now: Instant, question: Question, target: Ipv4Addr) {
        let Some(nic) = self.nic(question.nic) else { return };
        let Some(IpAddr::V4(source)) = nic.source(now, target.into()) else { return };
        let arp = Arp {
            operation: Operation::Request,
            sender_mac: nic.mac(),
            sender_ip: source,
            target_mac: MacAddr([0; 6]),
            target_ip: target,
        };
        self.send_arp(question.nic, question.to.unwrap_or(MacAddr::BROADCAST), &arp);
    }

    fn send_arp(&mut self, nic: NicIndex, to: MacAddr, arp: &Arp) {
        let mut frame = FrameBuf::default();
        frame.offload = build::arp_frame(&mut frame.bytes, arp.sender_mac, to, arp);
        // What has no room was counted; the other end asks again, and so do we.
        let _ = self.queue(nic, frame);
    }

    fn ask_ndp(&mut self, now: Instant, question: Question, target: Ipv6Addr) {
        let Some(nic) = self.nic(question.nic) else { return };
        let Some(IpAddr::V6(source)) = nic.source(now, target.into()) else { return };
        let message = Ndp::NeighborSolicitation { target, source_mac: Some(nic.mac()) };
        let (destination, mac) = match question.to {
            Some(mac) => (target, mac),
            None => group(solicited_node(target)),
        };
        self.send_ndp(question.nic, mac, source, destination, message);
    }

    /// Sends a message of neighbour discovery to a hardware address that is known.
    pub(super) fn send_ndp(
        &mut self,
        nic: NicIndex,
        to: MacAddr,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        message: Ndp,
    ) {
        let Some(mac) = self.nic(nic).map(super::Nic::mac) else { return };
        let mut frame = FrameBuf::default();
        frame.offload = build::icmp_frame(
            &mut frame.bytes,
            mac,
            to,
            source.into(),
            destination.into(),
            NDP_HOP_LIMIT,
            &Icmp::Ndp(message),
        );
        // What has no room was counted; all of it is asked for again.
        let _ = self.queue(nic, frame);
    }

    /// Takes an ARP packet that came in by `index`.
    pub(crate) fn handle_arp(&mut self, now: Instant, index: NicIndex, arp: &Arp) {
        let Some(nic) = self.nic(index) else { return };
        if arp.sender_mac.is_multicast() || arp.sender_ip.is_multicast() {
            return self.drop("arp-sender");
        }
        if nic.has(arp.sender_ip.into()) {
            return self.drop("arp-conflict");
        }
        let for_us = nic.has(arp.target_ip.into());
        let mac = nic.mac();
        // A probe (RFC 5227 section 1.1) has no address of its own yet.
        if !arp.sender_ip.is_unspecified() {
            let key = (index, arp.sender_ip.into());
            let held = match (arp.operation, for_us) {
                (Operation::Request, true) => self.neighbors.heard(now, key, arp.sender_mac),
                (operation, for_us) => {
                    let solicited = for_us && operation == Operation::Reply;
                    self.neighbors.answer(now, key, arp.sender_mac, solicited, true)
                }
            };
            self.release(index, arp.sender_mac, held);
        }
        if for_us && arp.operation == Operation::Request {
            let reply = Arp {
                operation: Operation::Reply,
                sender_mac: mac,
                sender_ip: arp.target_ip,
                target_mac: arp.sender_mac,
                target_ip: arp.sender_ip,
            };
            self.send_arp(index, arp.sender_mac, &reply);
        }
    }

    /// Sends what waited for a neighbour.
    fn release(&mut self, nic: NicIndex, mac: MacAddr, held: impl IntoIterator<Item = FrameBuf>) {
        for mut frame in held {
            ethernet::set_destination(&mut frame.bytes, mac);
            // What has no room was counted.
            let _ = self.queue(nic, frame);
        }
    }

    /// Takes a message of neighbour discovery that came in by `index`.
    pub(crate) fn handle_ndp(
        &mut self,
        now: Instant,
        index: NicIndex,
        packet: &IpPacket<'_>,
        message: Ndp,
    ) {
        let IpAddr::V6(source) = packet.source else { return };
        match message {
            Ndp::NeighborSolicitation { target, source_mac } => {
                self.handle_solicitation(now, index, source, target, source_mac);
            }
            Ndp::NeighborAdvertisement { target, target_mac, solicited, override_, .. } => {
                let key = (index, target.into());
                if self.nic(index).is_some_and(|nic| nic.has(target.into())) {
                    self.handle_duplicate(index, target);
                } else if let Some(mac) = target_mac.filter(|mac| !mac.is_multicast()) {
                    let held = self.neighbors.answer(now, key, mac, solicited, override_);
                    self.release(index, mac, held);
                } else if solicited {
                    // RFC 4861 section 4.4: an answer to one who knows the address may leave it out.
                    self.neighbors.confirm(now, key);
                }
            }
            Ndp::RouterAdvertisement { .. } => {
                self.handle_router_advertisement(now, index, source, message);
            }
            Ndp::RouterSolicitation { .. } => {}
        }
    }

    fn handle_solicitation(
        &mut self,
        now: Instant,
        index: NicIndex,
        source: Ipv6Addr,
        target: Ipv6Addr,
        source_mac: Option<MacAddr>,
    ) {
        let Some(nic) = self.nic(index) else { return };
        let own = nic.addresses().iter().find(|address| address.net.addr() == target);
        let Some(own) = own else { return };
        let (tentative, mac) = (own.tentative_until.is_some(), nic.mac());
        if source.is_unspecified() && tentative {
            // RFC 4862 section 5.4.3: somebody else wants it at the same time.
            return self.handle_duplicate(index, target);
        }
        if self.is_own_on(Some(index), source.into()) {
            return self.drop("ndp-conflict");
        }
        let (destination, to) = match source_mac.filter(|mac| !mac.is_multicast()) {
            _ if source.is_unspecified() => group(ALL_NODES),
            Some(mac) => {
                let held = self.neighbors.heard(now, (index, source.into()), mac);
                self.release(index, mac, held);
                (source, mac)
            }
            None => return self.answer_solicitation(now, index, source, target),
        };
        let answer = Ndp::NeighborAdvertisement {
            target,
            target_mac: Some(mac),
            router: false,
            solicited: !source.is_unspecified(),
            override_: !tentative,
        };
        self.send_ndp(index, to, target, destination, answer);
    }

    /// Answers one that has not told its hardware address: it is looked up.
    fn answer_solicitation(
        &mut self,
        now: Instant,
        index: NicIndex,
        source: Ipv6Addr,
        target: Ipv6Addr,
    ) {
        let Some(nic) = self.nic(index) else { return };
        let answer = Ndp::NeighborAdvertisement {
            target,
            target_mac: Some(nic.mac()),
            router: false,
            solicited: true,
            override_: true,
        };
        let path = Path {
            way: Way::By(index),
            source_mac: nic.mac(),
            source: target.into(),
            next_hop: source.into(),
            mtu: nic.mtu,
            hop_limit: NDP_HOP_LIMIT,
        };
        // What cannot be sent was counted; the other end asks again.
        let _ = self.send_icmp(now, &path, source.into(), &Icmp::Ndp(answer));
    }
}

fn group(group: Ipv6Addr) -> (Ipv6Addr, MacAddr) {
    (group, MacAddr::ipv6_multicast(group))
}
