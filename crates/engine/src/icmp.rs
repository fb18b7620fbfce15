//! ICMP and ICMPv6 that reaches the gateway.
//!
//! Pings of the gateway's own addresses, of `host.<zone>` and of services' virtual addresses are
//! answered from the address that was asked. Others leave by [`crate::ping`]; nothing is forged.

use std::net::IpAddr;

use netyard_wire::ethernet::Ethernet;
use netyard_wire::icmp::{self, Icmp, IcmpError};
use netyard_wire::ip::IpPacket;
use netyard_wire::{MacAddr, build};

use crate::config::Config;
use crate::context::Context;
use crate::edge::PlugId;
use crate::neighbor;
use crate::ping::{Ping, Pings};
use crate::sending::Refusal;

/// Handles a message that came in on `plug` for the gateway, or for a group that it listens to;
/// `serves` says which addresses are virtual ones of services.
pub(crate) fn handle_icmp(
    cx: &mut Context<'_>,
    pings: &mut Pings,
    plug: PlugId,
    ethernet: &Ethernet,
    packet: &IpPacket<'_>,
    message: &Icmp<'_>,
    serves: &dyn Fn(IpAddr) -> bool,
) {
    match *message {
        Icmp::Ndp(ref ndp) => neighbor::handle_ndp(cx, plug, ethernet, packet, ndp, serves),
        // What goes to a group concerns the guests only: multicast listener reports above all.
        _ if is_group(cx.config, packet.destination) => {}
        Icmp::EchoRequest { id, seq, data } => {
            if neighbor::is_ours(cx.config, serves, packet.destination) {
                let offload = build::icmp_frame(
                    cx.scratch,
                    cx.config.gateway_mac,
                    ethernet.source,
                    packet.destination,
                    packet.source,
                    build::HOP_LIMIT,
                    &Icmp::EchoReply { id, seq, data },
                );
                cx.transmit_cut(plug, offload);
                return;
            }
            let sent = if packet.hop_limit <= 1 {
                Err(Refusal::told("hop-limit", IcmpError::TimeExceeded))
            } else {
                pings.handle_request(cx, (plug, ethernet.source), packet, Ping { id, seq, data })
            };
            if let Err(refusal) = sent {
                refuse(cx, plug, ethernet.source, packet, refusal);
            }
        }
        // Host sockets learn of guests' troubles from the guests' silence; errors about flows are
        // not needed, and replies were not asked for.
        _ => cx.counters.drop("icmp-unwanted"),
    }
}

/// Counts a packet that goes nowhere, and tells its guest, if it may be told; the gateway is who reports.
pub(crate) fn refuse(
    cx: &mut Context<'_>,
    plug: PlugId,
    mac: MacAddr,
    packet: &IpPacket<'_>,
    refusal: Refusal,
) {
    cx.counters.drop(refusal.reason);
    if let Some(error) = refusal.error
        && icmp::may_answer_with_error(packet)
    {
        let original = [packet.header, packet.payload].concat();
        let gateway = (cx.gateway_for(packet.source), build::HOP_LIMIT);
        cx.send_icmp_error((plug, mac), gateway, packet.source, error, &original);
    }
}

/// True for destinations that are more than one host.
pub(crate) fn is_group(config: &Config, destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(address) => {
            address.is_multicast()
                || address.is_broadcast()
                || address == config.subnet4.broadcast()
        }
        IpAddr::V6(address) => address.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Bench, GUEST_MAC, PLUG, guest};
    use netyard_wire::Checksum;

    fn ping(bench: &mut Bench, source: IpAddr, destination: IpAddr, hop_limit: u8) {
        send(
            bench,
            source,
            destination,
            hop_limit,
            &Icmp::EchoRequest { id: 7, seq: 9, data: b"0123456789" },
        );
    }

    fn send(
        bench: &mut Bench,
        source: IpAddr,
        destination: IpAddr,
        hop_limit: u8,
        message: &Icmp<'_>,
    ) {
        let mut bytes = Vec::new();
        let mac = bench.config.gateway_mac;
        build::icmp_frame(&mut bytes, GUEST_MAC, mac, source, destination, hop_limit, message);
        let (ethernet, packet) = Ethernet::parse(&bytes).unwrap();
        let packet = IpPacket::parse(ethernet.ethertype, packet).unwrap();
        let message = Icmp::parse(&packet, Checksum::Present).unwrap();
        let mut pings = Pings::new(bench.now);
        bench.with(|cx| {
            handle_icmp(cx, &mut pings, PLUG, &ethernet, &packet, &message, &|_| false);
        });
    }

    #[test]
    fn pings_of_our_addresses_are_answered_from_the_address_asked() {
        let mut bench = Bench::new();
        let config = bench.config.clone();
        let (address4, address6) = (guest().address4.into(), guest().address6.into());
        let cases: [(IpAddr, IpAddr); 5] = [
            (address4, config.gateway4().into()),
            (address4, config.host4().into()),
            (address6, config.gateway6().into()),
            (address6, config.host6().into()),
            (GUEST_MAC.link_local().into(), config.gateway_link_local().into()),
        ];
        for (source, destination) in cases {
            ping(&mut bench, source, destination, 1);
            let (plug, frame) = bench.transmitted();
            let (ethernet, packet) = Ethernet::parse(&frame.bytes).unwrap();
            let packet = IpPacket::parse(ethernet.ethertype, packet).unwrap();
            assert_eq!((plug, ethernet.destination), (PLUG, GUEST_MAC));
            assert_eq!((packet.source, packet.destination), (destination, source));
            assert_eq!(
                Icmp::parse(&packet, frame.offload.checksum).unwrap(),
                Icmp::EchoReply { id: 7, seq: 9, data: b"0123456789" }
            );
        }
        assert!(bench.counters.all().is_empty());
    }

    #[test]
    fn pings_that_go_nowhere_get_an_error_that_quotes_them() {
        let mut bench = Bench::new();
        for (to, hop_limit, reason, code) in [
            ("169.254.169.254", 64, "icmp-policy", Some(13)),
            ("192.168.127.77", 64, "icmp-no-such-guest", Some(1)),
            ("198.51.100.1", 1, "hop-limit", None),
            ("fd00:ec2::254", 64, "icmp-policy", Some(1)),
            ("fd00:1:2:3::77", 64, "icmp-no-such-guest", Some(3)),
            ("2001:db8::1", 1, "hop-limit", None),
        ] {
            let to: IpAddr = to.parse().unwrap();
            let (source, gateway): (IpAddr, IpAddr) = match to {
                IpAddr::V4(_) => (guest().address4.into(), bench.config.gateway4().into()),
                IpAddr::V6(_) => (guest().address6.into(), bench.config.gateway6().into()),
            };
            let before = bench.counters.of(reason);
            ping(&mut bench, source, to, hop_limit);
            assert_eq!(bench.counters.of(reason), before + 1);
            let (_, frame) = bench.transmitted();
            let (ethernet, packet) = Ethernet::parse(&frame.bytes).unwrap();
            let packet = IpPacket::parse(ethernet.ethertype, packet).unwrap();
            assert_eq!((packet.source, packet.destination), (gateway, source));
            let original = match Icmp::parse(&packet, frame.offload.checksum).unwrap() {
                Icmp::Unreachable { code: found, original } => {
                    assert_eq!(Some(found), code);
                    original
                }
                Icmp::TimeExceeded { code: 0, original } => {
                    assert_eq!(None, code);
                    original
                }
                other => panic!("{other:?}"),
            };
            assert!(original.ends_with(b"0123456789"));
        }
    }

    #[test]
    fn groups_and_unwanted_messages_stay_unanswered() {
        let mut bench = Bench::new();
        let source = guest().address4.into();
        for group in ["224.0.0.1", "255.255.255.255", "192.168.127.255"] {
            ping(&mut bench, source, group.parse().unwrap(), 64);
        }
        ping(&mut bench, guest().address6.into(), "ff02::1".parse().unwrap(), 64);
        assert!(bench.counters.all().is_empty());
        let gateway = bench.config.gateway4().into();
        for message in [
            Icmp::EchoReply { id: 1, seq: 1, data: &[] },
            Icmp::Unreachable { code: 3, original: &[0x45; 28] },
            Icmp::TimeExceeded { code: 0, original: &[] },
        ] {
            send(&mut bench, source, gateway, 64, &message);
        }
        assert_eq!(bench.counters.of("icmp-unwanted"), 3);
        assert!(bench.edge.frames.is_empty());
    }
}
