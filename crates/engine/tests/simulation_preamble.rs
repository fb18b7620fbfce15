//! Connections of host ports whose first bytes tell the guest who the client is.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::io;
use std::time::Duration;

use common::{Guest, Sim};
use netyard_engine::delivery::{Delivery, ProxyVersion};
use netyard_engine::edge::{Readiness, SocketId};
use netyard_wire::SeqNumber;
use netyard_wire::tcp::Flags;

const ELSEWHERE: &str = "192.0.2.1:50000";
/// The simulation's host has one address.
const LINE: &[u8] = b"PROXY TCP4 192.0.2.1 203.0.113.9 50000 8080\r\n";
const BYTES: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xcb\0\x71\x09\xc3\x50\x1f\x90";

fn proxied(version: ProxyVersion) -> Delivery {
    Delivery { proxy: Some(version), ..Delivery::default() }
}

/// A connection from elsewhere that a guest has answered with this window: the client's socket.
fn open(sim: &mut Sim, version: ProxyVersion, window: u16) -> (Guest, SocketId) {
    let (plugs, listener) = sim.publish(&["one"], proxied(version));
    let client = sim.client(listener, ELSEWHERE);
    let mut guest = Guest::new(plugs.into_iter().next().unwrap(), ELSEWHERE);
    let syn = sim.expect();
    assert_eq!((syn.source.to_string(), syn.flags), (ELSEWHERE.to_owned(), Flags::SYN));
    assert!(syn.payload.is_empty());
    guest.own = syn.destination;
    guest.ack = syn.end();
    guest.window = window;
    guest.send(sim, Flags::SYN | Flags::ACK, b"");
    (guest, client)
}

/// What comes until nothing comes any more; the guest acknowledges all of it.
fn read(sim: &mut Sim, guest: &mut Guest) -> Vec<u8> {
    let mut got = Vec::new();
    while let Some(seen) = sim.segment() {
        if seen.end() != guest.ack {
            assert_eq!(seen.seq, guest.ack);
            got.extend(&seen.payload);
            guest.acknowledge(sim, &seen);
        }
    }
    got
}

#[test]
fn the_header_comes_first_and_needs_no_word_of_the_client() {
    for (version, header) in [(ProxyVersion::V1, LINE), (ProxyVersion::V2, BYTES)] {
        let mut sim = Sim::new();
        let (mut guest, client) = open(&mut sim, version, u16::MAX);
        assert_eq!(read(&mut sim, &mut guest), header);
        sim.arrives(client, b"GET /");
        assert_eq!(read(&mut sim, &mut guest), b"GET /");
        assert!(sim.world.stream(client).inbox.is_empty(), "its bytes are taken, and no more");
        guest.send(&mut sim, Flags::ACK, b"200");
        assert_eq!(sim.world.stream(client).outbox, b"200", "the client gets no header");
    }
}

#[test]
fn what_the_client_said_at_once_comes_with_it() {
    let mut sim = Sim::new();
    let (plugs, listener) = sim.publish(&["one"], proxied(ProxyVersion::V1));
    let client = sim.client(listener, ELSEWHERE);
    sim.world.stream(client).inbox.extend(b"GET /");
    sim.ends(client);
    let syn = sim.expect();
    let mut guest = Guest::new(plugs[0].clone(), ELSEWHERE);
    (guest.own, guest.ack) = (syn.destination, syn.end());
    guest.send(&mut sim, Flags::SYN | Flags::ACK, b"");
    let first = sim.expect();
    assert_eq!(first.payload, [LINE, b"GET /"].concat());
    assert_eq!(first.seq, syn.end());
    let fin = sim.expect();
    assert!(fin.has(Flags::FIN) && fin.payload.is_empty());
    assert_eq!(fin.seq, first.end());
}

#[test]
fn a_small_window_gets_it_in_parts() {
    let mut sim = Sim::new();
    let (mut guest, client) = open(&mut sim, ProxyVersion::V1, 7);
    sim.arrives(client, b"hello");
    let mut got = Vec::new();
    for _ in 0..20 {
        got.extend(read(&mut sim, &mut guest));
        sim.advance(Duration::from_millis(300));
    }
    assert_eq!(got, [LINE, b"hello"].concat());
}

#[test]
fn what_was_lost_of_it_comes_again() {
    let mut sim = Sim::new();
    let (mut guest, client) = open(&mut sim, ProxyVersion::V1, u16::MAX);
    let lost = sim.expect();
    assert_eq!(lost.payload, LINE);
    sim.arrives(client, b"hello");
    while sim.segment().is_some() {}
    // All of it, then the rest of what the guest has a part of.
    sim.advance(Duration::from_millis(1_100));
    let again = sim.expect();
    assert_eq!((again.seq, &again.payload[..]), (lost.seq, &[LINE, b"hello"].concat()[..]));
    guest.ack = lost.seq + 10u32;
    guest.send(&mut sim, Flags::ACK, b"");
    while sim.segment().is_some() {}
    sim.advance(Duration::from_secs(5));
    let rest = sim.expect();
    assert_eq!((rest.seq, &rest.payload[..]), (guest.ack, &[&LINE[10..], b"hello"].concat()[..]));
    assert_eq!(sim.world.stream(client).inbox.len(), 5);
    // An acknowledgement may end within the client's bytes.
    guest.ack = lost.seq + LINE.len() + 2usize;
    guest.send(&mut sim, Flags::ACK, b"");
    assert_eq!(sim.world.stream(client).inbox, *b"llo");
    while sim.segment().is_some() {}
    sim.advance(Duration::from_secs(10));
    let rest = sim.expect();
    assert_eq!((rest.seq, &rest.payload[..]), (guest.ack, &b"llo"[..]));
}

#[test]
fn the_next_instance_gets_it_whole() {
    let mut sim = Sim::new();
    let (plugs, listener) = sim.publish(&["w1", "w2"], proxied(ProxyVersion::V2));
    sim.client(listener, ELSEWHERE);
    let syn = sim.expect();
    let mut first = Guest::new(plugs[0].clone(), ELSEWHERE);
    (first.own, first.ack) = (syn.destination, syn.end());
    first.send(&mut sim, Flags::RST | Flags::ACK, b"");
    let syn = sim.expect();
    let mut second = Guest::new(plugs[1].clone(), ELSEWHERE);
    (second.own, second.ack, second.seq) = (syn.destination, syn.end(), SeqNumber(5));
    assert_eq!(second.own.ip(), plugs[1].address4);
    second.send(&mut sim, Flags::SYN | Flags::ACK, b"");
    assert_eq!(read(&mut sim, &mut second), BYTES);
}

/// A connection of this machine, which is spliced: the client's socket, and the one inside, which takes so many bytes.
fn spliced(sim: &mut Sim, version: ProxyVersion, room: usize) -> (SocketId, SocketId) {
    let (plugs, listener) = sim.publish(&["one"], proxied(version));
    sim.world.inside.insert(plugs[0].plug, 4);
    let client = sim.client(listener, "127.0.0.1:50000");
    let inside = sim.world.last();
    sim.world.stream(inside).room = room;
    sim.writable(inside);
    (client, inside)
}

#[test]
fn a_spliced_connection_has_it_too() {
    let mut sim = Sim::new();
    let (client, inside) = spliced(&mut sim, ProxyVersion::V1, 1 << 20);
    let header = b"PROXY TCP4 127.0.0.1 203.0.113.9 50000 8080\r\n";
    assert_eq!(sim.world.stream(inside).outbox, header, "without a word of the client");
    sim.arrives(client, b"GET /");
    assert_eq!(sim.world.stream(inside).outbox, [&header[..], b"GET /"].concat());
    sim.arrives(inside, b"200");
    assert_eq!(sim.world.stream(client).outbox, b"200");
    let spliced = sim.network.state().plugs[0].spliced;
    assert_eq!((spliced.host_to_guest, spliced.guest_to_host), (header.len() as u64 + 5, 3));
    sim.silent();
}

#[test]
fn a_full_socket_inside_gets_all_of_it_before_the_client_is_heard() {
    let mut sim = Sim::new();
    let (client, inside) = spliced(&mut sim, ProxyVersion::V2, 3);
    sim.world.stream(client).inbox.extend(b"hello");
    sim.ends(client);
    assert_eq!(sim.world.stream(inside).outbox, b"\r\n\r");
    assert_eq!(sim.world.stream(client).inbox, *b"hello");
    assert!(!sim.world.stream(inside).shut);
    sim.world.stream(inside).room = 100;
    sim.writable(inside);
    let outbox = &sim.world.stream(inside).outbox;
    assert_eq!(outbox.len(), BYTES.len() + 5);
    assert!(outbox.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01"));
    assert!(outbox.ends_with(b"\xc3\x50\x1f\x90hello"));
    assert!(sim.world.stream(inside).shut);
}

#[test]
fn a_socket_inside_that_breaks_before_it_has_it_ends_the_connection() {
    let mut sim = Sim::new();
    let (client, inside) = spliced(&mut sim, ProxyVersion::V1, 3);
    sim.world.stream(inside).error = Some(io::ErrorKind::ConnectionReset);
    sim.world.stream(inside).inbox_ended = true;
    let all =
        Readiness { readable: true, writable: true, read_closed: true, hangup: true, error: true };
    sim.host(inside, all);
    assert!(sim.world.stream(client).reset && sim.world.stream(inside).closed);
    assert_eq!(sim.network.state().tcp_flows, 0);
}
