//! Networks in bridge mode: forwards.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod bridge;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use bridge::{Network, SOON, ask, ask_in_vain, at, config, forward, here, machine, serve};
use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::Plumbing;
use netyard_link::conntrack::{Conntrack, Filter};
use netyard_link::netns::Netns;
use netyard_testbed::{Outside, isolate};

#[test]
fn forwards_lead_in_by_any_address_or_one_and_come_and_go_in_one_step() {
    isolate(|| {
        let (_outside, world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let (one, two) = (network.guest("one", 21), network.guest("two", 22));
        one.serve(80);
        two.serve(80);
        let own = Outside::HOST4;
        let first = [
            forward("0.0.0.0:8080:80", &one),
            forward(&format!("{own}:8081:80"), &two),
            forward("[::]:8080:80", &two),
        ];
        network.plumber.change_forwards(&[], &first).unwrap();
        assert_eq!(ask(&world, at(own, 8080)).unwrap(), ("one".into(), Outside::ROUTER4.into()));
        assert_eq!(ask(&world, at(own, 8081)).unwrap().0, "two");
        assert_eq!(ask(&world, at(Outside::HOST6, 8080)).unwrap().0, "two");
        assert_eq!(ask(&here(), at(own, 8080)).unwrap().0, "one", "from the host itself");
        assert_eq!(ask(&two.netns, at(own, 8080)).unwrap().0, "one", "from inside");
        assert_eq!(ask(&one.netns, at(own, 8080)).unwrap().0, "one", "from itself");
        let (tcp, own6) = (Protocol::Tcp, at(Ipv6Addr::UNSPECIFIED, 8080));
        let counted = network.plumber.forward_traffic();
        let everywhere = (tcp, at(Ipv4Addr::UNSPECIFIED, 8080));
        assert_eq!(
            counted,
            BTreeMap::from([(everywhere, 4), ((tcp, at(own, 8081)), 1), ((tcp, own6), 1)])
        );
        // Only what is for this machine: traffic that passes through is not touched.
        serve(&world, "world", 8080);
        assert_eq!(ask(&one.netns, at(Outside::ADDRESS4, 8080)).unwrap().0, "world");
        // Loopback is not the kernel's.
        assert!(ask(&here(), at(Ipv4Addr::LOCALHOST, 8080)).is_err());

        let other = [forward("0.0.0.0:8080:80", &two)];
        network.plumber.change_forwards(&first, &other).unwrap();
        assert_eq!(ask(&world, at(own, 8080)).unwrap().0, "two", "no stale rule");
        assert!(ask_in_vain(&world, at(own, 8081)).is_err());

        // Ten thousand ports.
        let range = [forward("0.0.0.0:20000-29999:30000-39999/udp", &one)];
        network.plumber.change_forwards(&other, &range).unwrap();
        let server = one.netns.run(|| UdpSocket::bind("0.0.0.0:34321")).unwrap().unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        let client = world.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        client.connect((own, 24_321)).unwrap();
        client.send(b"hello").unwrap();
        let mut heard = [0; 16];
        let (len, from) = server.recv_from(&mut heard).unwrap();
        assert_eq!((&heard[..len], from.ip()), (&b"hello"[..], Outside::ROUTER4.into()));
        server.send_to(b"answer", from).unwrap();
        client.recv(&mut heard).unwrap();
        // A forward that has gone has gone for those who know it, too.
        network.plumber.change_forwards(&range, &[]).unwrap();
        client.send(b"again").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(server.recv_from(&mut heard).is_err(), "the old connection goes on");
    });
}

#[test]
fn a_forward_of_every_address_leaves_other_flows_by_its_port_alone() {
    isolate(|| {
        let (_outside, world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let (one, two) = (network.guest("one", 21), network.guest("two", 22));
        let any = at(Ipv4Addr::UNSPECIFIED, 0);
        let bind = |netns: &Netns, to: SocketAddr| {
            let socket = netns.run(|| UdpSocket::bind(to)).unwrap().unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            socket
        };
        let mut heard = [0; 16];
        // Somebody inside has asked the outside, which answers twice.
        let outer = bind(&world, at(Outside::ADDRESS4, 5353));
        let asker = bind(&one.netns, any);
        asker.connect((Outside::ADDRESS4, 5353)).unwrap();
        asker.send(b"who?").unwrap();
        let (_, seen) = outer.recv_from(&mut heard).unwrap();
        assert_eq!(seen.ip(), Outside::HOST4);
        outer.send_to(b"early", seen).unwrap();
        asker.recv(&mut heard).unwrap();
        // The host speaks with an instance by its own address.
        let inner = bind(&two.netns, at(Ipv4Addr::UNSPECIFIED, 5353));
        let direct = bind(&here(), any);
        let address = at(two.plugged.address4, 5353);
        direct.send_to(b"hello", address).unwrap();
        let (_, from) = inner.recv_from(&mut heard).unwrap();
        inner.send_to(b"answer", from).unwrap();
        direct.recv(&mut heard).unwrap();

        let forwards = [forward("0.0.0.0:5353:5353/udp", &two)];
        network.plumber.change_forwards(&[], &forwards).unwrap();
        outer.send_to(b"late", seen).unwrap();
        let len = asker.recv(&mut heard).unwrap();
        assert_eq!(&heard[..len], b"late");
        network.plumber.change_forwards(&forwards, &[]).unwrap();
        let known = Conntrack::open().unwrap().count(&Filter::to(17, address)).unwrap();
        assert_eq!(known, 1, "who speaks with it directly goes on");
    });
}
