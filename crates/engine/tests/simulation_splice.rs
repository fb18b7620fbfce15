//! Connections from the host that go by sockets inside instances, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod common;

use std::io;
use std::time::Duration;

use common::Sim;
use netyard_engine::control::{FlowKind, Plugged};
use netyard_engine::delivery::Delivery;
use netyard_engine::edge::{Readiness, SocketId};

const HERE: &str = "127.0.0.1:50000";
const ELSEWHERE: &str = "192.0.2.1:50000";

/// A published service whose instances hand out so many sockets each.
fn serve(names: &[&str], delivery: Delivery, sockets: usize) -> (Sim, Vec<Plugged>, SocketId) {
    let mut sim = Sim::new();
    let (plugs, listener) = sim.publish(names, delivery);
    sim.world.inside = plugs.iter().map(|plug| (plug.plug, sockets)).collect();
    (sim, plugs, listener)
}

/// An open connection: the client's stream and the instance's.
fn open() -> (Sim, SocketId, SocketId) {
    let (mut sim, _, listener) = serve(&["one"], Delivery::default(), 4);
    let client = sim.client(listener, HERE);
    let inside = sim.world.last();
    assert_ne!(client, inside);
    sim.writable(inside);
    (sim, client, inside)
}

/// Where the newest socket connects to.
fn asked(sim: &mut Sim) -> String {
    let last = sim.world.last();
    sim.world.stream(last).to.expect("a socket that connects").to_string()
}

fn refuses(sim: &mut Sim, inside: SocketId) {
    sim.world.stream(inside).error = Some(io::ErrorKind::ConnectionRefused);
    sim.host(
        inside,
        Readiness { writable: true, readable: true, error: true, hangup: true, ..<_>::default() },
    );
}

fn breaks(sim: &mut Sim, socket: SocketId) {
    sim.world.stream(socket).error = Some(io::ErrorKind::ConnectionReset);
    sim.host(
        socket,
        Readiness { readable: true, writable: true, read_closed: true, hangup: true, error: true },
    );
}

#[test]
fn clients_of_this_machine_take_turns_without_a_frame() {
    let (mut sim, plugs, listener) = serve(&["w1", "w2", "w3"], Delivery::default(), 8);
    for round in 0..7 {
        let client = sim.client(listener, HERE);
        let inside = sim.world.last();
        assert_eq!(asked(&mut sim), format!("{}:8080", plugs[round % 3].address4));
        sim.writable(inside);
        sim.arrives(client, b"GET /");
        assert_eq!(sim.world.stream(inside).outbox, b"GET /");
        sim.arrives(inside, b"My id");
        assert_eq!(sim.world.stream(client).outbox, b"My id");
    }
    sim.silent();
    let state = sim.network.state();
    let turns: Vec<_> = state.services[0].instances.iter().map(|it| (it.turns, it.open)).collect();
    assert_eq!(turns, [(3, 3), (2, 2), (2, 2)]);
    assert_eq!(state.tcp_flows, 7);
    let spliced = state.plugs[0].spliced;
    assert_eq!((spliced.connections, spliced.host_to_guest, spliced.guest_to_host), (3, 15, 15));
}

#[test]
fn others_go_by_frames_and_so_does_everybody_while_somebody_captures() {
    let (mut sim, _, listener) = serve(&["one"], Delivery::default(), 8);
    sim.client(listener, ELSEWHERE);
    assert_eq!(sim.expect().source, ELSEWHERE.parse().unwrap());
    sim.world.captured = true;
    sim.client(listener, HERE);
    assert_eq!(sim.expect().source.ip().to_string(), "192.168.127.1");
    let no = Delivery { splice: Some(false), ..Delivery::default() };
    let (mut sim, _, listener) = serve(&["one"], no, 8);
    sim.client(listener, HERE);
    sim.expect();
    let yes = Delivery { splice: Some(true), ..Delivery::default() };
    let (mut sim, plugs, listener) = serve(&["one"], yes, 8);
    sim.client(listener, ELSEWHERE);
    assert_eq!(asked(&mut sim), format!("{}:8080", plugs[0].address4));
    sim.silent();
    // Without a supply there are frames.
    sim.world.inside.clear();
    sim.client(listener, ELSEWHERE);
    sim.expect();
}

#[test]
fn a_socket_is_waited_for_and_frames_are_taken_if_none_can_be_had() {
    for came in [true, false] {
        let (mut sim, plugs, listener) = serve(&["one"], Delivery::default(), 0);
        let client = sim.client(listener, HERE);
        let other = sim.client(listener, HERE);
        assert_eq!(sim.world.last(), other, "nothing is opened yet");
        sim.silent();
        if came {
            sim.world.inside.insert(plugs[0].plug, 1);
        }
        let plug = plugs[0].plug;
        sim.network.handle_supply(sim.now, plug, false, false, &mut sim.world);
        sim.flush();
        sim.silent();
        sim.network.handle_supply(sim.now, plug, true, came, &mut sim.world);
        sim.flush();
        if came {
            let inside = sim.world.last();
            sim.writable(inside);
            sim.arrives(client, b"x");
            assert_eq!(sim.world.stream(inside).outbox, b"x");
            sim.silent();
            // The other one waits on, and then goes by frames as well.
            sim.advance(Duration::from_millis(251));
            sim.expect();
            assert!(!sim.world.stream(other).closed);
        } else {
            sim.expect();
            sim.expect();
        }
    }
}

#[test]
fn where_no_socket_can_be_connected_there_are_frames_but_not_to_loopback() {
    for loopback in [false, true] {
        let (mut sim, _, listener) =
            serve(&["one"], Delivery { loopback, ..Delivery::default() }, 8);
        sim.world.unconnected = Some(io::ErrorKind::AddrNotAvailable);
        let client = sim.client(listener, HERE);
        assert_eq!(sim.world.stream(client).reset, loopback);
        if loopback {
            sim.silent();
            assert_eq!(sim.network.state().drops["splice-failed"], 2);
        } else {
            sim.expect();
        }
    }
}

#[test]
fn what_needs_a_second_descriptor_leaves_others_theirs() {
    let (mut sim, _, listener) = serve(&["one"], Delivery::default(), 8);
    // The listener's own is one of them, and two connections have four.
    sim.network.set_descriptors(10);
    for _ in 0..2 {
        sim.client(listener, HERE);
        sim.silent();
    }
    sim.client(listener, HERE);
    sim.expect();
}

#[test]
fn a_family_without_sockets_is_given_up_where_nothing_else_leads() {
    let loopback = Delivery { loopback: true, ..Delivery::default() };
    let (mut sim, plugs, listener) = serve(&["one"], loopback, 1);
    let client = sim.client(listener, HERE);
    let first = sim.world.last();
    refuses(&mut sim, first);
    // It waits for one of the other family, and for nothing else that comes.
    let plug = plugs[0].plug;
    sim.network.handle_supply(sim.now, plug, true, true, &mut sim.world);
    assert!(!sim.world.stream(client).closed);
    sim.network.handle_supply(sim.now, plug, false, false, &mut sim.world);
    assert!(sim.world.stream(client).reset);
    assert_eq!(sim.network.state().tcp_flows, 0);
    sim.silent();
}

#[test]
fn one_that_finds_no_room_in_a_queue_asks_again_before_its_turn_is_over() {
    let (mut sim, plugs, listener) = serve(&["w1", "w2"], Delivery::default(), 8);
    let client = sim.client(listener, HERE);
    let first = sim.world.last();
    sim.advance(Duration::from_millis(251));
    assert!(sim.world.stream(first).closed);
    let again = sim.world.last();
    assert_ne!(again, first);
    assert_eq!(asked(&mut sim), format!("{}:8080", plugs[0].address4));
    sim.writable(again);
    sim.arrives(client, b"x");
    assert_eq!(sim.world.stream(again).outbox, b"x");
    sim.advance(Duration::from_secs(2));
    assert!(!sim.world.stream(again).closed);
    assert_eq!(sim.network.state().services[0].instances[0].failed, 0);
}

#[test]
fn one_that_was_open_before_it_broke_is_no_refusal() {
    let (mut sim, plugs, listener) = serve(&["w1", "w2"], Delivery::default(), 8);
    let client = sim.client(listener, HERE);
    let inside = sim.world.last();
    sim.world.stream(inside).inbox.extend(b"go away");
    sim.world.stream(inside).inbox_ended = true;
    breaks(&mut sim, inside);
    assert_eq!(sim.world.stream(client).outbox, b"go away");
    assert!(sim.world.stream(client).reset);
    assert_eq!(sim.world.last(), inside, "nobody else is asked");
    let state = sim.network.state();
    assert_eq!(state.services[0].instances[0].failed, 0);
    assert_eq!(state.plugs[0].plug, plugs[0].plug);
    assert_eq!(state.plugs[0].spliced.guest_to_host, 7);
}

#[test]
fn an_instance_that_refuses_or_is_silent_costs_its_turn_only() {
    let (mut sim, plugs, listener) = serve(&["w1", "w2", "w3"], Delivery::default(), 8);
    let client = sim.client(listener, HERE);
    let first = sim.world.last();
    refuses(&mut sim, first);
    assert!(sim.world.stream(first).closed);
    assert_eq!(asked(&mut sim), format!("{}:8080", plugs[1].address4));
    let second = sim.world.last();
    sim.advance(Duration::from_millis(900));
    assert_eq!(asked(&mut sim), format!("{}:8080", plugs[1].address4));
    sim.advance(Duration::from_millis(101));
    assert!(sim.world.stream(second).closed);
    assert_eq!(asked(&mut sim), format!("{}:8080", plugs[2].address4));
    let third = sim.world.last();
    sim.writable(third);
    sim.arrives(client, b"x");
    assert_eq!(sim.world.stream(third).outbox, b"x");
    let state = sim.network.state();
    let turns: Vec<_> = state.services[0].instances.iter().map(|i| (i.turns, i.failed)).collect();
    assert_eq!(turns, [(1, 1), (1, 1), (1, 0)]);
    // The one that is known to be dead is not waited for.
    let waiting = sim.client(listener, HERE);
    let asked_first = sim.world.last();
    sim.network.set_eligible(sim.now, "test", "web", "w1", false, &mut sim.world).unwrap();
    assert!(sim.world.stream(asked_first).closed);
    assert!(!sim.world.stream(waiting).closed);
    assert_eq!(asked(&mut sim), format!("{}:8080", plugs[1].address4));
}

#[test]
fn each_side_may_finish_first() {
    for client_first in [true, false] {
        let (mut sim, client, inside) = open();
        let (one, other) = if client_first { (client, inside) } else { (inside, client) };
        sim.world.stream(one).inbox.extend(b"last words");
        sim.ends(one);
        assert_eq!(sim.world.stream(other).outbox, b"last words");
        assert!(sim.world.stream(other).shut);
        sim.arrives(other, b"the answer");
        assert_eq!(sim.world.stream(one).outbox, b"the answer");
        assert!(!sim.world.stream(one).shut && !sim.world.stream(one).closed);
        let flows = sim.network.state().tcp_flows;
        assert_eq!(flows, 1);
        sim.ends(other);
        for socket in [one, other] {
            let stream = sim.world.stream(socket);
            assert!(stream.shut && stream.closed && !stream.reset);
        }
        assert_eq!(sim.network.state().tcp_flows, 0);
        assert_eq!(sim.network.state().services[0].instances[0].open, 0);
    }
}

#[test]
fn a_reset_goes_on_after_what_came_before_it() {
    for client_first in [true, false] {
        let (mut sim, client, inside) = open();
        let (one, other) = if client_first { (client, inside) } else { (inside, client) };
        sim.world.stream(other).room = 4;
        sim.world.stream(one).inbox.extend(b"last words");
        breaks(&mut sim, one);
        assert_eq!(sim.world.stream(other).outbox, b"last");
        assert!(!sim.world.stream(other).closed, "there is more for it");
        sim.world.stream(other).room = 100;
        sim.world.stream(one).inbox_ended = true;
        sim.writable(other);
        let stream = sim.world.stream(other);
        assert_eq!(stream.outbox, b"last words");
        assert!(stream.reset && !stream.shut, "it is no end of stream");
        assert!(sim.world.stream(one).closed);
        assert_eq!(sim.network.state().tcp_flows, 0);
    }
}

#[test]
fn a_reset_after_an_end_of_stream_is_one_for_the_other_side() {
    let (mut sim, client, inside) = open();
    sim.ends(client);
    assert!(sim.world.stream(inside).shut && !sim.world.stream(inside).closed);
    breaks(&mut sim, client);
    assert!(sim.world.stream(inside).reset);
}

#[test]
fn what_is_not_taken_waits_where_it_is() {
    let (mut sim, client, inside) = open();
    sim.world.stream(inside).room = 3;
    sim.arrives(client, b"hello");
    assert_eq!(sim.world.stream(inside).outbox, b"hel");
    sim.arrives(client, b" world");
    assert_eq!(sim.world.stream(inside).outbox, b"hel");
    sim.arrives(inside, b"meanwhile");
    assert_eq!(sim.world.stream(client).outbox, b"meanwhile");
    sim.world.stream(inside).room = 100;
    sim.writable(inside);
    assert_eq!(sim.world.stream(inside).outbox, b"hello world");
}

#[test]
fn the_end_of_an_instance_is_that_of_its_connections() {
    let (mut sim, client, inside) = open();
    let plug = sim.network.state().plugs[0].plug;
    assert!(sim.network.remove_plug(sim.now, "test", plug, &mut sim.world));
    assert!(sim.world.stream(client).reset && sim.world.stream(inside).reset);
    assert_eq!(sim.network.state().tcp_flows, 0);
}

#[test]
fn loopback_inside_is_asked_by_both_families_and_by_sockets_only() {
    let loopback = Delivery { loopback: true, ..Delivery::default() };
    let (mut sim, _, listener) = serve(&["one"], loopback, 8);
    sim.world.captured = true;
    let client = sim.client(listener, ELSEWHERE);
    assert_eq!(asked(&mut sim), "127.0.0.1:8080");
    let first = sim.world.last();
    refuses(&mut sim, first);
    assert_eq!(asked(&mut sim), "[::1]:8080");
    let second = sim.world.last();
    sim.writable(second);
    sim.arrives(client, b"x");
    assert_eq!(sim.world.stream(second).outbox, b"x");
    sim.world.inside.clear();
    let refused = sim.client(listener, HERE);
    assert!(sim.world.stream(refused).reset);
    sim.silent();
    assert!(sim.network.state().drops["loopback-not-reached"] > 0);
}

#[test]
fn a_client_that_leaves_early_leaves_nothing() {
    let (mut sim, _, listener) = serve(&["one"], Delivery::default(), 8);
    let client = sim.client(listener, HERE);
    let inside = sim.world.last();
    sim.host(client, Readiness { readable: true, hangup: true, ..Readiness::default() });
    assert!(sim.world.stream(inside).closed && sim.world.stream(client).closed);
    let state = sim.network.state();
    assert_eq!((state.tcp_flows, state.services[0].instances[0].opening), (0, 0));
}

#[test]
fn what_a_client_said_and_finished_before_it_was_answered_arrives() {
    let (mut sim, _, listener) = serve(&["one"], Delivery::default(), 8);
    let client = sim.client(listener, HERE);
    let inside = sim.world.last();
    sim.world.stream(client).inbox.extend(b"all of it");
    sim.ends(client);
    assert!(sim.world.stream(inside).outbox.is_empty());
    sim.writable(inside);
    assert_eq!(sim.world.stream(inside).outbox, b"all of it");
    assert!(sim.world.stream(inside).shut);
}

#[test]
fn flows_show_the_address_that_the_instance_sees() {
    let (mut sim, _, inside) = open();
    sim.arrives(inside, b"12345");
    let flows = sim.network.flows(sim.now);
    let [flow] = flows.as_slice() else { panic!("{flows:?}") };
    assert_eq!((flow.protocol, flow.spliced, flow.outbound), (FlowKind::Tcp, true, false));
    assert_eq!(flow.instance, "one");
    assert_eq!(flow.remote, "192.168.127.2:40000".parse().unwrap());
    assert_eq!((flow.guest_to_host, flow.host_to_guest), (Some(5), Some(0)));
}
