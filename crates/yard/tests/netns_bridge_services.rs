//! Networks in bridge mode: services whose turns the kernel keeps.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod bridge;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use bridge::{
    Guest, Network, SOON, ask, ask_in_vain, at, config, folder, here, instances, ip, machine, nft,
    rest, serve, traffic,
};
use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::{KernelService, Plumbing};
use netyard_engine::service::MAX_CLIENTS;
use netyard_link::Features;
use netyard_link::netns::Netns;
use netyard_testbed::{Outside, isolate, wait_for};

#[test]
fn turns_are_exact_from_everywhere_and_go_on_when_instances_come_and_go() {
    isolate(|| {
        let (_outside, world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let guests: Vec<Guest> =
            (1..=4).map(|n| network.guest(&format!("web-{n}"), 20 + n)).collect();
        guests.iter().for_each(|guest| guest.serve(8080));
        let client = network.guest("client", 30);
        let set = |network: &mut Network, numbers: &[usize]| {
            let chosen: Vec<&Guest> = numbers.iter().map(|n| &guests[n - 1]).collect();
            let mut service = network.service("web", &chosen);
            service.publish = Some("0.0.0.0:9000".parse().unwrap());
            rest(&mut service, &guests);
            network.plumber.set_services(&[service]).unwrap();
        };
        set(&mut network, &[1, 2, 3]);
        let vip4 = at(network.config.nth4(253), 8080);
        let vip6 = at(network.config.nth6(253), 8080);
        let published = at(Outside::HOST4, 9000);
        let ways: [(&Netns, SocketAddr); 6] = [
            (&here(), vip4),
            (&client.netns, vip4),
            (&client.netns, vip6),
            (&world, published),
            // A client that may get its own turn, and one that comes round by the host's address.
            (&guests[0].netns, vip4),
            (&client.netns, published),
        ];
        let mut next = ways.iter().cycle();
        let mut take = |count: usize| -> String {
            let names = (0..count).map(|_| {
                let (from, to) = next.next().unwrap();
                let (name, _) = ask(from, *to).unwrap_or_else(|error| panic!("{to}: {error}"));
                name.strip_prefix("web-").unwrap().to_owned()
            });
            names.collect()
        };
        assert_eq!(take(300), "123".repeat(100));
        assert_eq!(take(1), "1");
        // One more: the order goes on.
        set(&mut network, &[1, 2, 3, 4]);
        assert_eq!(take(6), "234123");
        // The next one goes.
        set(&mut network, &[1, 2, 3]);
        assert_eq!(take(4), "1231");
        set(&mut network, &[1, 3]);
        assert_eq!(take(3), "313");
        let turns: BTreeMap<String, u64> =
            instances(&mut network).into_iter().map(|(name, it)| (name, it.turns)).collect();
        assert_eq!(turns.values().sum::<u64>(), 300 + 1 + 6 + 4 + 3);
        assert_eq!((turns["web-4"], turns["web-2"]), (1, 100 + 2 + 1));
        // Somebody is answered who is not in the network, by the address that they asked.
        assert_eq!(ask(&world, published).unwrap().1, IpAddr::V4(Outside::ROUTER4));

        // Nobody left: refused, not lost, everywhere.
        set(&mut network, &[]);
        for (from, to) in ways {
            let error = ask(from, to).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        }
        assert_eq!(traffic(&mut network).refused, 6);
        // There is nothing else on the virtual address.
        let other = at(network.config.nth4(253), 22);
        serve(&here(), "host", 22);
        assert_eq!(ask(&client.netns, other).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(ask_in_vain(&world, other).is_err());
        network.plumber.set_services(&[]).unwrap();
        assert!(!nft(&["list", "ruleset"]).contains("/web"), "nothing of it stays");
        let addresses = ip(&["address", "show", "dev", "br1"]);
        assert!(!addresses.contains("192.168.1.253"), "{addresses}");
    });
}

#[test]
fn weights_are_exact_and_change_without_losing_the_place() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let guests: Vec<Guest> =
            (1..=3).map(|n| network.guest(&format!("web-{n}"), 20 + n)).collect();
        guests.iter().for_each(|guest| guest.serve(8080));
        let set = |network: &mut Network, weights: &[(usize, u32)]| {
            let chosen: Vec<&Guest> = weights.iter().map(|(n, _)| &guests[n - 1]).collect();
            let mut service = network.service("web", &chosen);
            for (instance, (_, weight)) in service.instances.iter_mut().zip(weights) {
                instance.weight = *weight;
            }
            rest(&mut service, &guests);
            network.plumber.set_services(&[service]).unwrap();
        };
        let vips = [at(network.config.nth4(253), 8080), at(network.config.nth6(253), 8080)];
        let mut vips = vips.iter().cycle();
        let mut take = |count: usize| -> String {
            let names = (0..count).map(|_| ask(&here(), *vips.next().unwrap()).unwrap().0);
            names.map(|name| name.strip_prefix("web-").unwrap().to_owned()).collect()
        };
        set(&mut network, &[(1, 3), (2, 1), (3, 1)]);
        assert_eq!(take(50), "11213".repeat(10));
        assert_eq!(take(2), "11");
        set(&mut network, &[(1, 2), (2, 2), (3, 1)]);
        assert_eq!(take(5), "21231");
        set(&mut network, &[(1, 2), (3, 1)]);
        assert_eq!(take(6), "131131");
        let turns: Vec<u64> = instances(&mut network).values().map(|it| it.turns).collect();
        assert_eq!(turns, [30 + 2 + 2 + 4, 10 + 2, 10 + 1 + 2]);
    });
}

#[test]
fn services_change_places() {
    isolate(|| {
        let (_outside, world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let (red, blue) = (network.guest("red", 21), network.guest("blue", 22));
        [&red, &blue].iter().for_each(|guest| guest.serve(8080));
        let mut services = [network.service("red", &[&red]), network.service("blue", &[&blue])];
        let places = [253, 252].map(|n| (network.config.nth4(n), network.config.nth6(n)));
        let ports = [9000, 9001].map(|port| at(Outside::HOST4, port));
        for names in [["red", "blue"], ["blue", "red"]] {
            for (service, (place, port)) in services.iter_mut().zip(places.iter().zip(ports)) {
                (service.address4, service.address6) = *place;
                service.publish = Some(port);
            }
            network.plumber.set_services(&services).unwrap();
            for (name, ((four, six), port)) in names.iter().zip(places.iter().zip(ports)) {
                assert_eq!(ask(&world, port).unwrap().0, *name);
                for vip in [at(*four, 8080), at(*six, 8080)] {
                    assert_eq!(ask(&here(), vip).unwrap().0, *name);
                }
            }
            services.reverse();
        }
    });
}

#[test]
fn a_client_stays_with_its_instance_for_a_time() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let guests: Vec<Guest> =
            (1..=3).map(|n| network.guest(&format!("web-{n}"), 20 + n)).collect();
        guests.iter().for_each(|guest| guest.serve(8080));
        let (red, blue) = (network.guest("red", 31), network.guest("blue", 32));
        let set = |network: &mut Network, numbers: &[usize], affinity: Option<u64>| {
            let chosen: Vec<&Guest> = numbers.iter().map(|n| &guests[n - 1]).collect();
            let affinity = affinity.map(Duration::from_secs);
            let service = KernelService { affinity, ..network.service("web", &chosen) };
            network.plumber.set_services(&[service]).unwrap();
        };
        let vip4 = at(network.config.nth4(253), 8080);
        let vip6 = at(network.config.nth6(253), 8080);
        let names = |from: &Netns, to: SocketAddr, count: usize| -> String {
            let names = (0..count).map(|_| ask(from, to).unwrap().0);
            names.map(|name| name.strip_prefix("web-").unwrap().to_owned()).collect()
        };
        set(&mut network, &[1, 2, 3], Some(600));
        let listed = nft(&["list", "ruleset"]);
        assert!(listed.contains("map @kept/web/4 ct mark vmap @tickets/web"), "{listed}");
        assert_eq!(names(&red.netns, vip4, 3), "111");
        assert_eq!(names(&blue.netns, vip4, 3), "222");
        assert_eq!(names(&red.netns, vip6, 3), "333", "by another address it is another client");
        assert_eq!(names(&here(), vip4, 2), "11");
        let counted = traffic(&mut network);
        assert_eq!((counted.clients, counted.clients_not_kept), (4, 0));
        let turns: Vec<u64> = instances(&mut network).values().map(|it| it.turns).collect();
        assert_eq!(turns, [5, 3, 3], "connections, whoever they come from");

        // One leaves and comes back: who had it does not return to it, asked meanwhile or not.
        set(&mut network, &[2, 3], Some(600));
        assert_eq!(traffic(&mut network).clients, 2);
        assert_eq!(names(&here(), vip4, 2), "22");
        set(&mut network, &[1, 2, 3], Some(600));
        assert_eq!(names(&here(), vip4, 2), "22");
        assert_eq!(names(&red.netns, vip4, 2), "33");
        assert_eq!(names(&blue.netns, vip4, 2), "22", "whose instance stayed");

        // A short time, and none.
        set(&mut network, &[1, 2, 3], Some(1));
        assert_eq!(names(&red.netns, vip6, 1), "3");
        set(&mut network, &[1, 2, 3], None);
        assert_eq!(names(&red.netns, vip4, 4), "1231");
        assert!(!nft(&["list", "ruleset"]).contains("kept/"));
        set(&mut network, &[1, 2, 3], Some(1));
        assert_eq!(names(&red.netns, vip4, 1), "2");
        wait_for("the end of its time", SOON, || {
            (traffic(&mut network).clients == 0).then_some(())
        });
        assert_eq!(names(&red.netns, vip4, 1), "3");
        network.plumber.set_services(&[]).unwrap();
        assert!(!nft(&["list", "ruleset"]).contains("/web"), "nothing of it stays");
    });
}

#[test]
fn clients_that_find_the_table_full_take_turns_and_are_counted() {
    isolate(|| {
        // A table that this test may fill.
        let features = Features::probe().unwrap().without(["table-owner"]).unwrap();
        let mut network = Network::with(config("lab", "br1"), features);
        let (one, two) = (network.guest("one", 21), network.guest("two", 22));
        one.serve(8080);
        two.serve(8080);
        let affinity = Some(Duration::from_secs(600));
        let service = KernelService { affinity, ..network.service("web", &[&one, &two]) };
        network.plumber.set_services(&[service]).unwrap();
        let strangers = (0..MAX_CLIENTS).map(|n| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
            format!("{address} timeout 1h : 0xffffffff")
        });
        let strangers: Vec<String> = strangers.collect();
        let script = folder("lab").join("strangers.nft");
        let name = "inet netyard-lab kept/web/4";
        // As many at a time as an ordinary user's socket takes in one message.
        for some in strangers.chunks(1024) {
            let elements = some.join(", ");
            std::fs::write(&script, format!("add element {name} {{ {elements} }}")).unwrap();
            nft(&["-f", script.to_str().unwrap()]);
        }
        let vip = at(network.config.nth4(253), 8080);
        let names: Vec<String> = (0..4).map(|_| ask(&here(), vip).unwrap().0).collect();
        assert_eq!(names, ["one", "two", "one", "two"]);
        let counted = traffic(&mut network);
        assert_eq!((counted.clients, counted.clients_not_kept), (0, 4));
    });
}

#[test]
fn an_instance_that_leaves_keeps_its_connections() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let (one, two) = (network.guest("one", 21), network.guest("two", 22));
        let vip = at(network.config.nth4(253), 8080);
        let listener =
            one.netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))).unwrap().unwrap();
        two.serve(8080);
        let service = network.service("web", &[&one, &two]);
        network.plumber.set_services(&[service]).unwrap();
        let mut open = TcpStream::connect(vip).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        let service = network.service("web", &[&two]);
        network.plumber.set_services(&[service]).unwrap();
        let state = |network: &mut Network| instances(network)["one"];
        assert!(state(&mut network).draining && state(&mut network).open == 1);
        let tracked = network.plumber.tracked().unwrap();
        assert_eq!((tracked.flows.tcp, &tracked.services["web"]), (1, &traffic(&mut network)));
        for _ in 0..4 {
            assert_eq!(ask(&here(), vip).unwrap().0, "two");
        }
        open.write_all(b"still here").unwrap();
        let mut heard = [0; 10];
        served.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still here");
        // Who has said everything may still be listening.
        open.shutdown(Shutdown::Write).unwrap();
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
        assert!(state(&mut network).draining && state(&mut network).open == 1);
        served.write_all(b"the end").unwrap();
        open.read_exact(&mut [0; 7]).unwrap();
        drop((open, served));
        wait_for("nothing is known of it any more", SOON, || {
            (!instances(&mut network).contains_key("one")).then_some(())
        });

        // One that rests keeps its counters, and who comes back begins anew.
        let mut service = network.service("web", &[&one]);
        service.resting = vec!["two".into()];
        network.plumber.set_services(&[service]).unwrap();
        let turns = instances(&mut network).into_iter().map(|(name, it)| (name, it.turns));
        assert_eq!(turns.collect::<Vec<_>>(), [("one".into(), 0), ("two".into(), 4)]);
    });
}

#[test]
fn connections_of_a_plug_that_goes_are_reset_and_take_no_turn() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let (one, two) = (network.guest("one", 21), network.guest("two", 22));
        let vip = at(network.config.nth4(253), 8080);
        let listener =
            one.netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))).unwrap().unwrap();
        two.serve(8080);
        let service = network.service("web", &[&one, &two]);
        network.plumber.set_services(&[service]).unwrap();
        let mut open = TcpStream::connect(vip).unwrap();
        open.set_read_timeout(Some(SOON)).unwrap();
        let _served = listener.accept().unwrap();
        let service = network.service("web", &[&two]);
        network.plumber.set_services(&[service]).unwrap();
        assert!(instances(&mut network)["one"].draining);
        network.plumber.remove_plugs(&[one.plugged.plug]);
        assert!(!instances(&mut network).contains_key("one"));
        open.write_all(b"anybody there?").unwrap();
        assert_eq!(open.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(instances(&mut network)["two"].turns, 0);
        assert_eq!(ask(&here(), vip).unwrap().0, "two");
    });
}

#[test]
fn connections_from_before_are_nobody_elses() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let one = network.guest("one", 21);
        let vip = at(network.config.nth4(253), 8080);
        let listener =
            one.netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))).unwrap().unwrap();
        let service = network.service("web", &[&one]);
        network.plumber.set_services(&[service]).unwrap();
        let _open = TcpStream::connect(vip).unwrap();
        let _served = listener.accept().unwrap();
        assert_eq!(instances(&mut network)["one"].open, 1);
        drop(network);
        let mut network = Network::open(config("lab", "br1"));
        let two = network.guest("two", 22);
        let service = network.service("web", &[&two]);
        network.plumber.set_services(&[service]).unwrap();
        assert_eq!(instances(&mut network)["two"].open, 0);
    });
}

#[test]
fn what_the_network_answers_itself_is_reached_by_its_service_only() {
    isolate(|| {
        let (_outside, world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let red = network.guest("red", 11);
        let gateway = at(network.config.gateway4(), 18_080);
        let mut service = network.service("web", &[&red]);
        service.answered_at = vec![gateway];
        network.plumber.set_services(&[service]).unwrap();
        serve(&here(), "proxy", 18_080);
        // The neighbour knows the way.
        world
            .run(|| ip(&["route", "replace", "192.168.1.0/24", "via", &Outside::HOST4.to_string()]))
            .unwrap();
        let vip = at(network.config.nth4(253), 8080);
        for again in [false, true] {
            for from in [&here(), &red.netns] {
                assert_eq!(ask(from, vip).unwrap().0, "proxy", "{again}");
            }
            for from in [&world, &red.netns] {
                let refused = ask(from, gateway).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{again}");
            }
            nft(&["flush", "ruleset"]);
            network.plumber.handle_changes();
        }
        // A port that is free again is the machine's.
        network.plumber.set_services(&[]).unwrap();
        assert_eq!(ask(&world, gateway).unwrap().0, "proxy");
    });
}

/// A UDP socket of somebody's, with a deadline.
fn bind(netns: &Netns, address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind((address, port))).unwrap().unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

#[test]
fn who_was_never_answered_leaves_an_instance_and_who_was_stays() {
    isolate(|| {
        let mut network = Network::open(config("lab", "br1"));
        let (one, two) = (network.guest("one", 21), network.guest("two", 22));
        let servers = [&one, &two].map(|guest| bind(&guest.netns, Ipv4Addr::UNSPECIFIED, 8080));
        let udp = |network: &Network, guests: &[&Guest]| KernelService {
            protocol: Protocol::Udp,
            ..network.service("web", guests)
        };
        let service = udp(&network, &[&one]);
        network.plumber.set_services(&[service]).unwrap();
        let clients = [(); 2].map(|()| bind(&here(), Ipv4Addr::UNSPECIFIED, 0));
        let mut heard = [0; 16];
        for client in &clients {
            client.connect(at(network.config.nth4(253), 8080)).unwrap();
            client.send(b"first").unwrap();
            let (_, from) = servers[0].recv_from(&mut heard).unwrap();
            if client.local_addr().unwrap().port() == clients[0].local_addr().unwrap().port() {
                servers[0].send_to(b"answer", from).unwrap();
                client.recv(&mut heard).unwrap();
            }
        }
        let service = KernelService { resting: vec!["one".into()], ..udp(&network, &[&two]) };
        network.plumber.set_services(&[service]).unwrap();
        network.plumber.forget_unanswered("web", "one");
        network.plumber.forget_unanswered("web", "nobody");
        network.plumber.forget_unanswered("nothing", "one");
        for (client, server) in clients.iter().zip(&servers) {
            client.send(b"second").unwrap();
            let (len, from) = server.recv_from(&mut heard).unwrap();
            assert_eq!(&heard[..len], b"second");
            server.send_to(b"answer", from).unwrap();
            client.recv(&mut heard).unwrap();
        }
        let open: Vec<_> =
            instances(&mut network).into_iter().map(|(name, it)| (name, it.open)).collect();
        assert_eq!(open, [("one".into(), 1), ("two".into(), 1)]);
    });
}

#[test]
fn a_service_that_comes_leaves_what_others_ask_elsewhere_alone() {
    isolate(|| {
        let (_outside, world) = machine();
        let mut network = Network::open(config("lab", "br1"));
        let one = network.guest("one", 21);
        let server = bind(&one.netns, Ipv4Addr::UNSPECIFIED, 8080);
        let outer = bind(&world, Outside::ADDRESS4, 8080);
        let asker = bind(&one.netns, Ipv4Addr::UNSPECIFIED, 0);
        asker.connect((Outside::ADDRESS4, 8080)).unwrap();
        asker.send(b"who?").unwrap();
        let mut heard = [0; 16];
        let (_, seen) = outer.recv_from(&mut heard).unwrap();
        // Somebody was refused by the address that is published now.
        let refused = bind(&world, Ipv4Addr::UNSPECIFIED, 0);
        refused.connect((Outside::HOST4, 8080)).unwrap();
        refused.send(b"who?").unwrap();
        let error = refused.recv(&mut heard).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

        let published = KernelService {
            protocol: Protocol::Udp,
            publish: Some("0.0.0.0:8080".parse().unwrap()),
            ..network.service("web", &[&one])
        };
        network.plumber.set_services(&[published]).unwrap();
        outer.send_to(b"answer", seen).unwrap();
        let len = asker.recv(&mut heard).unwrap();
        assert_eq!(&heard[..len], b"answer", "it was masqueraded, and still is");
        refused.send(b"again").unwrap();
        let (len, _) = server.recv_from(&mut heard).unwrap();
        assert_eq!(&heard[..len], b"again");
    });
}
