//! Networks in bridge mode: how packets leave, and what the host keeps of its own.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod bridge;

use std::net::{IpAddr, UdpSocket};

use bridge::{Network, SOON, ask, at, config, here, ip, ip_json, machine, serve};
use netyard_engine::config::{Bridge, Config, Mode, Uplink};
use netyard_link::netns::Netns;
use netyard_testbed::{
    Background, Namespace, Outside, State, isolate, output, peer, run, wait_for,
};

#[test]
fn a_card_joins_with_its_addresses_and_routes_and_gets_them_back() {
    isolate(|| {
        let (outside, world) = machine();
        let before = State::take();
        let on_card = Config {
            subnet4: "198.51.100.0/24".parse().unwrap(),
            gateway: Some(Outside::HOST4),
            uplink: Uplink::Card(Outside::UPLINK.into()),
            ..config("lab", "br1")
        };
        let mut network = Network::open(on_card);
        serve(&world, "world", 7000);
        assert_eq!(ask(&here(), at(Outside::ADDRESS4, 7000)).unwrap().1, Outside::HOST4);
        let guest = network.guest("guest", 50);
        // Everybody is on one segment: the guest is seen as itself.
        let own = IpAddr::V4(guest.plugged.address4);
        assert_eq!(ask(&guest.netns, at(Outside::ROUTER4, 7000)).unwrap().1, own);
        guest.serve(80);
        assert_eq!(ask(&world, at(guest.plugged.address4, 80)).unwrap().0, "guest");
        drop((guest, network));
        before.assert_restored("after the network");
        assert!(ask(&here(), at(Outside::ADDRESS4, 7000)).is_ok());
        drop(outside);
    });
}

#[test]
fn a_routed_network_is_reached_by_its_own_addresses() {
    isolate(|| {
        let (outside, world) = machine();
        let routed = Config { uplink: Uplink::Routed, ..config("lab", "br1") };
        let mut network = Network::open(routed);
        for (prefix, host) in [
            (network.config.subnet4.to_string(), IpAddr::V4(Outside::HOST4)),
            (network.config.subnet6.to_string(), IpAddr::V6(Outside::HOST6)),
        ] {
            outside.namespace().ip(&["route", "add", &prefix, "via", &host.to_string()]);
        }
        serve(&world, "world", 7000);
        let red = network.guest("red", 11);
        red.serve(80);
        let routers = [IpAddr::V4(Outside::ROUTER4), IpAddr::V6(Outside::ROUTER6)];
        for ((own, far), router) in red.addresses().into_iter().zip(Outside::ADDRESSES).zip(routers)
        {
            let seen = ask(&red.netns, at(far, 7000)).unwrap();
            assert_eq!(seen, ("world".into(), own), "the outside sees the instance");
            let seen = ask(&world, at(own, 80)).unwrap();
            assert_eq!(seen, ("red".into(), router), "the instance sees the outside");
            assert!(red.pings(far), "{far}");
            let mut ping = outside.command(peer("ping"));
            run(ping.args(["-c", "1", "-W", "20", &own.to_string()]));
            // Datagrams, from either side first.
            let bind = |netns: &Netns, address| {
                let socket = netns.run(|| UdpSocket::bind(at(address, 0))).unwrap().unwrap();
                socket.set_read_timeout(Some(SOON)).unwrap();
                socket
            };
            for (one, other) in [
                (bind(&red.netns, own), bind(&world, far)),
                (bind(&world, router), bind(&red.netns, own)),
            ] {
                one.send_to(b"hello", other.local_addr().unwrap()).unwrap();
                let (_, from) = other.recv_from(&mut [0; 8]).unwrap();
                assert_eq!(from, one.local_addr().unwrap());
                other.send_to(b"answer", from).unwrap();
                assert_eq!(one.recv_from(&mut [0; 8]).unwrap().1, other.local_addr().unwrap());
            }
        }
    });
}

/// Says the segment size (RFC 9293 section 3.7.1) that each TCP segment offers which passes a link and
/// opens a connection, or answers that.
const HEAR_OPENINGS: &str = r#"
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((sys.argv[1], 3))
print("listening")
while True:
    frame = s.recv(65536)
    if frame[12:14] == b"\x08\x00" and frame[23] == 6:
        tcp = frame[14 + (frame[14] & 15) * 4:]
    elif frame[12:14] == b"\x86\xdd" and frame[20] == 6:
        tcp = frame[54:]
    else:
        continue
    options = tcp[20:(tcp[12] >> 4) * 4]
    while tcp[13] & 2 and options and options[0]:
        if options[0] == 2:
            kind = "answer" if tcp[13] & 16 else "opening"
            print("%s %d" % (kind, int.from_bytes(options[2:4], "big")))
        options = options[1 if options[0] == 1 else options[1]:]
"#;

fn hear(namespace: &Namespace, link: &str) -> Background {
    let mut command = namespace.command(peer("env"));
    command.args(["python3", "-u", "-c", HEAR_OPENINGS, link]);
    let mut ears = Background::start(&mut command);
    ears.wait_for_line("listening", SOON);
    ears
}

#[test]
fn segments_are_clamped_to_the_narrowest_link_of_the_way() {
    isolate(|| {
        let (outside, world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        assert_eq!(network.segment.mtu, 1500);
        let red = network.guest("red", 11);
        serve(&world, "world", 7000);
        // Only the host knows that less fits through: its own end of the link is narrower.
        for (mtu, sizes) in [("1500", ["1460", "1440"]), ("1300", ["1260", "1240"])] {
            ip(&["link", "set", Outside::UPLINK, "mtu", mtu]);
            for (far, size) in Outside::ADDRESSES.into_iter().zip(sizes) {
                let mut there = hear(outside.namespace(), "inside");
                let mut here = hear(&red.namespace, "eth0");
                assert_eq!(ask(&red.netns, at(far, 7000)).unwrap().0, "world");
                let opening = there.wait_for_line("opening", SOON);
                assert_eq!(opening, format!("opening {size}"), "to {far} by {mtu}");
                let answer = here.wait_for_line("answer", SOON);
                assert_eq!(answer, format!("answer {size}"), "from {far} by {mtu}");
            }
        }
    });
}

#[test]
fn a_network_takes_what_its_uplink_takes_unless_it_is_told() {
    isolate(|| {
        let (outside, world) = machine();
        ip(&["link", "set", Outside::UPLINK, "mtu", "1400"]);
        serve(&world, "world", 7000);
        let asked = |mtu| Config {
            mode: Mode::Bridge(Bridge { name: Some("br1".into()), mtu, ..Bridge::default() }),
            ..config("lab", "br1")
        };
        let closed = Config { uplink: Uplink::None, ..asked(None) };
        // A network that says nothing, larger and smaller ones, and one that nothing leaves.
        for (wanted, mtu) in [
            (asked(None), 1400),
            (asked(Some(9000)), 9000),
            (asked(Some(1300)), 1300),
            (closed, 1500),
        ] {
            let is_closed = wanted.uplink == Uplink::None;
            let mut network = Network::open(wanted);
            assert_eq!(network.segment.mtu, mtu);
            let red = network.guest("red", 11);
            let machine = network.machine("box", 12);
            let external = network.external("tap5", 13);
            for link in ["br1", "ve-red", "tap-box", "tap5"] {
                assert_eq!(ip_json(&["link", "show", link])[0]["mtu"], mtu, "{link}");
            }
            let mut inside = red.namespace.command(peer("ip"));
            let inside = run(inside.args(["link", "show", "eth0"]));
            assert!(inside.contains(&format!(" mtu {mtu} ")), "{inside}");
            for (far, headers) in Outside::ADDRESSES.into_iter().zip([40, 60]) {
                if is_closed {
                    break;
                }
                // What both ends offer fits the narrowest link of the way.
                let size = mtu.min(1400) - headers;
                let mut there = hear(outside.namespace(), "inside");
                let mut here = hear(&red.namespace, "eth0");
                assert_eq!(ask(&red.netns, at(far, 7000)).unwrap().0, "world");
                assert_eq!(there.wait_for_line("opening", SOON), format!("opening {size}"));
                assert_eq!(here.wait_for_line("answer", SOON), format!("answer {size}"));
            }
            drop((red, machine, external));
        }
    });
}

/// Advertises a router and a prefix on a link, to everybody (RFC 4861 section 4.2): for half an hour,
/// 2001:db8:77::/64 with addresses of one's own choice.
const ADVERTISE: &str = r#"
import socket, struct, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
link = socket.if_nametoindex(sys.argv[1])
router = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xc0, 1800, 1800, 0)
prefix += socket.inet_pton(socket.AF_INET6, "2001:db8:77::")
s.sendto(router + prefix, ("ff02::1", 0, 0, link))
"#;

#[test]
fn the_host_goes_on_listening_to_its_own_routers() {
    isolate(|| {
        let (outside, _) = machine();
        let setting = |name: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/{name}");
            std::fs::read_to_string(path).unwrap().trim().to_owned()
        };
        let uplink = format!("{}/accept_ra", Outside::UPLINK);
        let settings = || [setting("all/forwarding"), setting(&uplink)];
        assert_eq!(settings(), ["0", "1"]);
        let network = Network::open(config("lab", "br1"));
        assert_eq!(settings(), ["1", "2"]);
        let mut advertise = outside.command(peer("env"));
        advertise.args(["python3", "-c", ADVERTISE, "inside"]);
        // Again as long as the router's link is not ready to send.
        wait_for("what the router advertises", SOON, || {
            output(&mut advertise);
            let routes = ip(&["-6", "route", "show", "default", "proto", "ra"]);
            let addresses = ip(&["-6", "address", "show", "dev", Outside::UPLINK]);
            (routes.contains("via fe80::") && addresses.contains("2001:db8:77:")).then_some(())
        });
        // The network's own segment has no router but the network.
        assert_eq!(setting("br1/accept_ra"), "0");
        drop(network);
        assert_eq!(settings(), ["0", "1"]);
        let routes = ip(&["-6", "route", "show", "default", "proto", "ra"]);
        assert!(routes.contains("via fe80::"), "what was learnt stays");
    });
}
