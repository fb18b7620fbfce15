//! The gateway as a neighbour: ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861).
//!
//! The gateway answers for its own addresses, for `host.<zone>` and for the virtual addresses of
//! services, all with its hardware address. Guests answer each other: their questions are
//! switched, never proxied. Probes for duplicate addresses (RFC 5227, RFC 4862 section 5.4) of
//! those addresses are answered too, so no guest settles on one.
//!
//! What guests say about addresses passes [`check_arp`] and [`check_icmp`] before it reaches
//! anybody: a guest speaks for itself alone, and none is a router.

use std::net::{IpAddr, Ipv6Addr};

use netyard_wire::arp::{Arp, Operation};
use netyard_wire::build;
use netyard_wire::ethernet::Ethernet;
use netyard_wire::icmp::{Icmp, Ndp};
use netyard_wire::ip::IpPacket;
use netyard_wire::{Frame, MacAddr};

use crate::config::Config;
use crate::context::Context;
use crate::edge::PlugId;
use crate::guests::Guest;

/// Every node on the link (RFC 4291 section 2.7.1).
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Neighbour discovery is sent with this hop limit (RFC 4861 section 7.1).
const HOP_LIMIT: u8 = 255;

/// ICMPv6 type of a redirect (RFC 4861 section 4.5).
const REDIRECT: u8 = 137;

/// True if the gateway has this address; `serves` says which are virtual addresses of services.
pub(crate) fn is_ours(config: &Config, serves: &dyn Fn(IpAddr) -> bool, address: IpAddr) -> bool {
    config.is_gateway(address) || config.is_host(address) || serves(address)
}

/// Checks that a guest's ARP packet speaks for that guest only.
///
/// # Errors
/// The name of the drop counter.
pub(crate) fn check_arp(guest: &Guest, ethernet: &Ethernet, arp: &Arp) -> Result<(), &'static str> {
    let itself = arp.sender_mac == ethernet.source && guest.may_send_from(arp.sender_ip.into());
    if itself { Ok(()) } else { Err("spoofed-arp") }
}

/// Checks that a guest's ICMP message speaks for that guest only, and not as a router.
///
/// # Errors
/// The name of the drop counter.
pub(crate) fn check_icmp(
    config: &Config,
    guest: &Guest,
    ethernet: &Ethernet,
    message: &Icmp<'_>,
) -> Result<(), &'static str> {
    let own_mac = |mac: Option<MacAddr>| mac.is_none_or(|mac| mac == ethernet.source);
    let own_address = |address: Ipv6Addr| {
        guest.may_send_from(address.into())
            && !address.is_unspecified()
            && address != config.gateway_link_local()
    };
    let honest = match *message {
        Icmp::Ndp(Ndp::RouterAdvertisement { .. }) => return Err("rogue-router"),
        Icmp::Other { kind: REDIRECT, .. } => return Err("rogue-redirect"),
        Icmp::Ndp(
            Ndp::RouterSolicitation { source_mac } | Ndp::NeighborSolicitation { source_mac, .. },
        ) => own_mac(source_mac),
        Icmp::Ndp(Ndp::NeighborAdvertisement { target, target_mac, .. }) => {
            own_mac(target_mac) && own_address(target)
        }
        _ => true,
    };
    if honest { Ok(()) } else { Err("spoofed-ndp") }
}

/// Answers an ARP request that came in on `plug`, if it asks for an address of the gateway.
pub(crate) fn handle_arp(
    cx: &mut Context<'_>,
    plug: PlugId,
    arp: &Arp,
    serves: &dyn Fn(IpAddr) -> bool,
) {
    if arp.operation != Operation::Request || !is_ours(cx.config, serves, arp.target_ip.into()) {
        return;
    }
    let ours = cx.config.gateway_mac;
    let reply = Arp {
        operation: Operation::Reply,
        sender_mac: ours,
        sender_ip: arp.target_ip,
        target_mac: arp.sender_mac,
        target_ip: arp.sender_ip,
    };
    let offload = build::arp_frame(cx.scratch, ours, arp.sender_mac, &reply);
    cx.edge.transmit(plug, Frame { bytes: cx.scratch, offload });
}

/// Answers a neighbour solicitation that came in on `plug`, if it asks for an address of the
/// gateway. Router solicitations are for [`crate::router`].
pub(crate) fn handle_ndp(
    cx: &mut Context<'_>,
    plug: PlugId,
    ethernet: &Ethernet,
    packet: &IpPacket<'_>,
    message: &Ndp,
    serves: &dyn Fn(IpAddr) -> bool,
) {
    let Ndp::NeighborSolicitation { target, .. } = *message else { return };
    if !is_ours(cx.config, serves, target.into()) {
        return;
    }
    let ours = cx.config.gateway_mac;
    // RFC 4861 section 7.2.4: who probes for its own address has none to answer to.
    let solicited = !packet.source.is_unspecified();
    let (to_mac, to) = if solicited {
        (ethernet.source, packet.source)
    } else {
        (MacAddr::ipv6_multicast(ALL_NODES), ALL_NODES.into())
    };
    let advertisement = Icmp::Ndp(Ndp::NeighborAdvertisement {
        target,
        target_mac: Some(ours),
        router: cx.config.is_gateway(target.into()),
        solicited,
        override_: true,
    });
    let offload =
        build::icmp_frame(cx.scratch, ours, to_mac, target.into(), to, HOP_LIMIT, &advertisement);
    cx.edge.transmit(plug, Frame { bytes: cx.scratch, offload });
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::fake::{Bench, GUEST_MAC, PLUG, guest};
    use netyard_wire::{Checksum, ethernet};

    const VIRTUAL4: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 253);
    const VIRTUAL6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0xfd);

    fn serves(address: IpAddr) -> bool {
        address == IpAddr::V4(VIRTUAL4) || address == IpAddr::V6(VIRTUAL6)
    }

    fn request(sender_ip: Ipv4Addr, target_ip: Ipv4Addr) -> Arp {
        Arp {
            operation: Operation::Request,
            sender_mac: GUEST_MAC,
            sender_ip,
            target_mac: MacAddr([0; 6]),
            target_ip,
        }
    }

    fn solicit(bench: &mut Bench, source: Ipv6Addr, target: Ipv6Addr) {
        let mut bytes = Vec::new();
        let message = Icmp::Ndp(Ndp::NeighborSolicitation {
            target,
            source_mac: (!source.is_unspecified()).then_some(GUEST_MAC),
        });
        let group = netyard_wire::icmp::solicited_node(target);
        let mac = MacAddr::ipv6_multicast(group);
        build::icmp_frame(&mut bytes, GUEST_MAC, mac, source.into(), group.into(), 255, &message);
        let (ethernet, packet) = Ethernet::parse(&bytes).unwrap();
        let packet = IpPacket::parse(ethernet.ethertype, packet).unwrap();
        let Icmp::Ndp(ndp) = Icmp::parse(&packet, Checksum::Present).unwrap() else {
            panic!("not neighbour discovery");
        };
        bench.with(|cx| handle_ndp(cx, PLUG, &ethernet, &packet, &ndp, &serves));
    }

    #[test]
    fn an_arp_reply_is_right_to_the_byte() {
        let mut bench = Bench::new();
        let arp = request(guest().address4, bench.config.gateway4());
        bench.with(|cx| handle_arp(cx, PLUG, &arp, &serves));
        let gateway = bench.config.gateway_mac.0;
        let wanted: Vec<u8> = [
            &GUEST_MAC.0[..],
            &gateway,
            &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2],
            &gateway,
            &[192, 168, 127, 1],
            &GUEST_MAC.0,
            &[192, 168, 127, 2],
        ]
        .concat();
        let (plug, frame) = bench.transmitted();
        assert_eq!((plug, frame.bytes), (PLUG, wanted));
    }

    #[test]
    fn arp_is_answered_for_our_addresses_and_probes_but_for_nobody_else() {
        let mut bench = Bench::new();
        let (gateway, host) = (bench.config.gateway4(), bench.config.host4());
        for target in [gateway, host, VIRTUAL4] {
            for sender in [guest().address4, Ipv4Addr::UNSPECIFIED] {
                bench.with(|cx| handle_arp(cx, PLUG, &request(sender, target), &serves));
                let (_, frame) = bench.transmitted();
                let arp = Arp::parse(&frame.bytes[ethernet::HEADER_LEN..]).unwrap();
                assert_eq!((arp.operation, arp.sender_ip), (Operation::Reply, target));
            }
        }
        for target in ["192.168.127.2", "192.168.127.3", "192.168.127.255", "8.8.8.8", "0.0.0.0"] {
            let arp = request(guest().address4, target.parse().unwrap());
            bench.with(|cx| handle_arp(cx, PLUG, &arp, &serves));
        }
        let reply = Arp { operation: Operation::Reply, ..request(guest().address4, gateway) };
        bench.with(|cx| handle_arp(cx, PLUG, &reply, &serves));
        assert!(bench.edge.frames.is_empty());
    }

    #[test]
    fn a_neighbour_advertisement_is_right_to_the_byte() {
        let mut bench = Bench::new();
        let gateway = bench.config.gateway6();
        solicit(&mut bench, guest().address6, gateway);
        let mac = bench.config.gateway_mac.0;
        let (_, frame) = bench.transmitted();
        let mut bytes = frame.bytes;
        assert_eq!(bytes[..6], GUEST_MAC.0);
        assert_eq!(bytes[6..12], mac);
        assert_eq!(bytes[12..22], [0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(bytes[22..38], gateway.octets());
        assert_eq!(bytes[38..54], guest().address6.octets());
        // The checksum was verified by the parser below.
        let packet = IpPacket::parse(ethernet::IPV6, &bytes[14..]).unwrap();
        Icmp::parse(&packet, Checksum::Present).unwrap();
        bytes[56..58].fill(0);
        // Router, solicited, override.
        assert_eq!(bytes[54..62], [136, 0, 0, 0, 0xe0, 0, 0, 0]);
        assert_eq!(bytes[62..78], gateway.octets());
        assert_eq!(bytes[78..80], [2, 1]);
        assert_eq!(bytes[80..], mac);
    }

    #[test]
    fn solicitations_are_answered_for_our_addresses_and_probes_go_to_all_nodes() {
        let mut bench = Bench::new();
        let config = bench.config.clone();
        let ours = [
            (config.gateway6(), true),
            (config.gateway_link_local(), true),
            (config.host6(), false),
            (VIRTUAL6, false),
        ];
        for (target, is_router) in ours {
            for source in [guest().address6, Ipv6Addr::UNSPECIFIED] {
                solicit(&mut bench, source, target);
                let (_, frame) = bench.transmitted();
                let (ethernet, packet) = Ethernet::parse(&frame.bytes).unwrap();
                let packet = IpPacket::parse(ethernet.ethertype, packet).unwrap();
                let probe = source.is_unspecified();
                let to: IpAddr = if probe { ALL_NODES.into() } else { source.into() };
                assert_eq!(packet.destination, to);
                assert_eq!(ethernet.destination.is_multicast(), probe);
                assert_eq!(
                    Icmp::parse(&packet, Checksum::Present).unwrap(),
                    Icmp::Ndp(Ndp::NeighborAdvertisement {
                        target,
                        target_mac: Some(config.gateway_mac),
                        router: is_router,
                        solicited: !probe,
                        override_: true,
                    })
                );
            }
        }
        solicit(&mut bench, guest().address6, "fd00:1:2:3::3".parse().unwrap());
        solicit(&mut bench, Ipv6Addr::UNSPECIFIED, guest().address6);
        assert!(bench.edge.frames.is_empty());
    }

    #[test]
    fn a_guest_speaks_for_itself_alone() {
        let bench = Bench::new();
        let (config, guest) = (&bench.config, guest());
        let ethernet = Ethernet {
            destination: MacAddr::BROADCAST,
            source: GUEST_MAC,
            ethertype: ethernet::ARP,
        };
        let honest = request(guest.address4, config.gateway4());
        assert_eq!(check_arp(&guest, &ethernet, &honest), Ok(()));
        let probe = request(Ipv4Addr::UNSPECIFIED, guest.address4);
        assert_eq!(check_arp(&guest, &ethernet, &probe), Ok(()));
        for lie in [
            request(config.gateway4(), config.gateway4()),
            request(Ipv4Addr::new(192, 168, 127, 3), config.gateway4()),
            Arp { sender_mac: config.gateway_mac, ..honest },
        ] {
            assert_eq!(check_arp(&guest, &ethernet, &lie), Err("spoofed-arp"), "{lie:?}");
        }

        let advertise = |target: Ipv6Addr, mac| {
            let message = Icmp::Ndp(Ndp::NeighborAdvertisement {
                target,
                target_mac: Some(mac),
                router: false,
                solicited: false,
                override_: true,
            });
            check_icmp(config, &guest, &ethernet, &message)
        };
        let lie = Err("spoofed-ndp");
        assert_eq!(advertise(guest.address6, GUEST_MAC), Ok(()));
        assert_eq!(advertise(GUEST_MAC.link_local(), GUEST_MAC), Ok(()));
        assert_eq!(advertise(guest.address6, config.gateway_mac), lie);
        assert_eq!(advertise(config.gateway6(), GUEST_MAC), lie);
        assert_eq!(advertise(config.gateway_link_local(), GUEST_MAC), lie);
        assert_eq!(advertise("fd00:1:2:3::3".parse().unwrap(), GUEST_MAC), lie);

        let check = |message| check_icmp(config, &guest, &ethernet, &message);
        let solicitation = Ndp::NeighborSolicitation {
            target: config.gateway6(),
            source_mac: Some(config.gateway_mac),
        };
        assert_eq!(check(Icmp::Ndp(solicitation)), lie);
        assert_eq!(check(Icmp::Other { kind: REDIRECT, code: 0 }), Err("rogue-redirect"));
        let router = Ndp::RouterAdvertisement {
            hop_limit: 64,
            lifetime: 1800,
            source_mac: Some(GUEST_MAC),
            mtu: None,
            prefix: None,
            resolvers: None,
        };
        assert_eq!(check(Icmp::Ndp(router)), Err("rogue-router"));
        assert_eq!(check(Icmp::EchoRequest { id: 1, seq: 1, data: &[] }), Ok(()));
    }
}
