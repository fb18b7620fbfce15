//! TCP between a scripted guest and a scripted host, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod common;

use std::io;
use std::time::Duration;

use common::{Guest, Seen, Sim, pattern};
use netyard_engine::config::Uplink;
use netyard_engine::delivery::Delivery;
use netyard_engine::edge::{Readiness, SocketId};
use netyard_wire::SeqNumber;
use netyard_wire::tcp::{Flags, TcpOptions};

const OUTSIDE: &str = "203.0.113.5:80";

fn open() -> (Sim, Guest, SocketId) {
    let mut sim = Sim::new();
    let plug = sim.plug("a");
    let mut guest = Guest::new(plug, OUTSIDE);
    let socket = guest.connect(&mut sim);
    (sim, guest, socket)
}

#[test]
fn a_guest_is_answered_when_the_host_is_connected() {
    for remote in [OUTSIDE, "[2001:db8::5]:80"] {
        let mut sim = Sim::new();
        let plug = sim.plug("a");
        let mut guest = Guest::new(plug, remote);
        guest.options = TcpOptions {
            mss: Some(9000),
            window_scale: Some(3),
            sack_permitted: true,
            ..TcpOptions::default()
        };
        guest.send(&mut sim, Flags::SYN, b"");
        let socket = sim.world.last();
        assert_eq!(sim.world.stream(socket).to, Some(remote.parse().unwrap()));
        guest.send_at(&mut sim, guest.seq + u32::MAX, Flags::SYN, b"");
        sim.silent();
        assert_eq!(sim.world.streams.len(), 1, "a repeated SYN opens nothing more");
        sim.writable(socket);
        let answer = sim.expect();
        assert_eq!(answer.flags, Flags::SYN | Flags::ACK);
        assert_eq!(answer.source, guest.remote);
        let mss = if guest.own.is_ipv4() { 1460 } else { 1440 };
        assert_eq!(answer.options.mss, Some(mss));
        assert!(answer.options.sack_permitted);
        assert_eq!(answer.options.window_scale, Some(7));
        assert!(answer.window > 0);
        sim.silent();
    }
}

#[test]
fn options_that_the_guest_does_not_offer_are_not_answered() {
    let mut sim = Sim::new();
    let plug = sim.plug("a");
    let mut guest = Guest::new(plug, OUTSIDE);
    guest.send(&mut sim, Flags::SYN, b"");
    let socket = sim.world.last();
    sim.writable(socket);
    let answer = sim.expect();
    assert_eq!(answer.options.window_scale, None);
    assert!(!answer.options.sack_permitted);
    guest.acknowledge(&mut sim, &answer);
    sim.arrives(socket, &pattern(3000));
    assert_eq!(sim.expect().gso, Some(536), "RFC 9293: without MSS option 536");
}

#[test]
fn a_refused_connect_is_refused_to_the_guest() {
    let mut sim = Sim::new();
    let plug = sim.plug("a");
    let mut guest = Guest::new(plug, OUTSIDE);
    guest.send(&mut sim, Flags::SYN, b"");
    let socket = sim.world.last();
    sim.world.stream(socket).error = Some(io::ErrorKind::ConnectionRefused);
    sim.host(socket, Readiness { writable: true, error: true, hangup: true, ..Default::default() });
    let answer = sim.expect();
    assert_eq!(answer.flags, Flags::RST | Flags::ACK);
    assert_eq!(answer.ack, guest.seq);
    assert!(sim.world.stream(socket).closed);
    assert_eq!(sim.network.state().tcp_flows, 0);
}

#[test]
fn a_lost_syn_ack_is_sent_again() {
    let mut sim = Sim::new();
    let plug = sim.plug("a");
    let mut guest = Guest::new(plug, OUTSIDE);
    guest.send(&mut sim, Flags::SYN, b"");
    let socket = sim.world.last();
    sim.writable(socket);
    let first = sim.expect();
    sim.advance(Duration::from_millis(1100));
    assert_eq!(sim.expect().seq, first.seq);
    guest.acknowledge(&mut sim, &first);
    sim.advance(Duration::from_secs(60));
    sim.silent();
    assert!(!sim.world.stream(socket).closed);
}

#[test]
fn a_silent_guest_is_given_up_before_its_connection_opens() {
    let mut sim = Sim::new();
    let plug = sim.plug("a");
    let mut guest = Guest::new(plug, OUTSIDE);
    guest.send(&mut sim, Flags::SYN, b"");
    let socket = sim.world.last();
    sim.writable(socket);
    // Its machine may stand still for a minute.
    sim.advance(Duration::from_secs(60));
    assert!(!sim.world.stream(socket).closed);
    sim.advance(Duration::from_secs(60));
    assert!(sim.world.stream(socket).closed);
    assert_eq!(sim.network.state().tcp_flows, 0);
}

#[test]
fn a_guest_that_waits_no_more_costs_no_socket() {
    let mut sim = Sim::new();
    let plug = sim.plug("a");
    let mut guest = Guest::new(plug, OUTSIDE);
    guest.send(&mut sim, Flags::SYN, b"");
    let socket = sim.world.last();
    // It asks again after 1, 3 and 7 s, and no more.
    for seconds in [1, 2, 4] {
        sim.advance(Duration::from_secs(seconds));
        guest.send_at(&mut sim, guest.seq + u32::MAX, Flags::SYN, b"");
        assert!(!sim.world.stream(socket).closed);
    }
    sim.advance(Duration::from_secs(8));
    assert!(!sim.world.stream(socket).closed, "the next one would come now");
    sim.advance(Duration::from_secs(4));
    assert!(sim.world.stream(socket).closed);
    assert_eq!(sim.network.state().tcp_flows, 0);
    sim.silent();
}

#[test]
fn a_guest_with_many_connections_leaves_others_a_part() {
    let mut sim = Sim::new();
    sim.network.set_descriptors(16);
    let (greedy, other) = (sim.plug("a"), sim.plug("b"));
    let connect = |sim: &mut Sim, plug: &netyard_engine::control::Plugged, port: u16| {
        let remote = format!("203.0.113.5:{port}");
        Guest::new(plug.clone(), &remote).send(sim, Flags::SYN, b"");
        sim.segment().is_none()
    };
    let opened = (1..=100).filter(|port| connect(&mut sim, &greedy, *port)).count();
    assert_eq!(opened, 9);
    assert_eq!(sim.network.state().drops["tcp-share-used"], 91);
    assert!(connect(&mut sim, &other, 1));
}

#[test]
fn a_guest_whose_data_nobody_takes_leaves_others_room_and_loses_nothing() {
    const PART: usize = 60_000;
    let mut sim = Sim::new();
    let (greedy, other) = (sim.plug("a"), sim.plug("b"));
    let data = pattern(4 * PART);
    let begin = |sim: &mut Sim, plug: &netyard_engine::control::Plugged, port: usize| {
        let mut guest = Guest::new(plug.clone(), &format!("203.0.113.5:{port}"));
        let socket = guest.connect(sim);
        sim.world.stream(socket).room = 0;
        (guest, socket)
    };
    // How much of a flow was accepted, as its guest is told.
    let fill = |sim: &mut Sim, guest: &mut Guest| {
        let start = guest.seq;
        data.chunks(PART).for_each(|part| guest.send(sim, Flags::ACK, part));
        let told = std::iter::from_fn(|| sim.segment()).last().unwrap();
        usize::try_from(told.ack - start).unwrap()
    };
    let mut accepted = 0;
    let mut last = None;
    for port in 1..=300 {
        let (mut guest, socket) = begin(&mut sim, &greedy, port);
        let start = guest.seq;
        let taken = fill(&mut sim, &mut guest);
        accepted += taken;
        last = Some((guest, socket, start, taken));
    }
    assert!((40 << 20..50 << 20).contains(&accepted), "{accepted}");
    assert!(sim.network.state().drops["tcp-memory"] > 0);
    let (mut guest, _) = begin(&mut sim, &other, 1);
    assert_eq!(fill(&mut sim, &mut guest), data.len());
    // What was not accepted is sent again once its socket takes it.
    let (guest, socket, start, taken) = last.unwrap();
    assert_eq!(taken, 0);
    sim.world.stream(socket).room = 1 << 20;
    sim.writable(socket);
    for (number, part) in data.chunks(PART).enumerate() {
        guest.send_at(&mut sim, start + number * PART, Flags::ACK, part);
    }
    assert_eq!(sim.world.stream(socket).outbox, data);
}

#[test]
fn what_the_policy_denies_is_refused_and_counted() {
    let mut config = common::config();
    config.uplink = Uplink::None;
    let mut sim = Sim::with(config);
    let plug = sim.plug("a");
    let mut guest = Guest::new(plug, OUTSIDE);
    guest.send(&mut sim, Flags::SYN, b"");
    assert_eq!(sim.expect().flags, Flags::RST | Flags::ACK);
    assert!(sim.world.streams.is_empty());
    assert_eq!(sim.network.state().policy.values().sum::<u64>(), 1);
}

#[test]
fn data_of_the_guest_reaches_the_host_and_is_acknowledged() {
    let (mut sim, mut guest, socket) = open();
    let data = pattern(60_000);
    guest.send(&mut sim, Flags::ACK | Flags::PSH, &data);
    assert_eq!(sim.world.stream(socket).outbox, data);
    let answer = sim.expect();
    assert_eq!(answer.ack, guest.seq);
    assert!(answer.payload.is_empty());
    sim.silent();
}

#[test]
fn answers_of_a_conversation_carry_its_acknowledgements() {
    let (mut sim, mut guest, socket) = open();
    let mut bare = 0;
    for _ in 0..20 {
        guest.send(&mut sim, Flags::ACK | Flags::PSH, b"?");
        bare += usize::from(sim.segment().is_some());
        sim.arrives(socket, b"!");
        let answer = sim.expect();
        assert_eq!((answer.ack, answer.payload.as_slice()), (guest.seq, b"!".as_slice()));
        guest.acknowledge(&mut sim, &answer);
    }
    assert_eq!(bare, 8, "the first requests are acknowledged at once, the others by the answer");
    // Nobody answers: the acknowledgement does not wait long, and the next ones do not wait.
    guest.send(&mut sim, Flags::ACK | Flags::PSH, b"?");
    sim.silent();
    sim.advance(Duration::from_millis(2));
    assert_eq!(sim.expect().ack, guest.seq);
    guest.send(&mut sim, Flags::ACK | Flags::PSH, b"?");
    assert_eq!(sim.expect().ack, guest.seq);
    sim.silent();
}

#[test]
fn nothing_accepted_is_lost_when_the_host_socket_is_full() {
    let (mut sim, mut guest, socket) = open();
    let data = pattern(2_000_000);
    sim.world.stream(socket).room = 10_000;
    let mut told = 0usize;
    for part in data.chunks(30_000) {
        guest.send(&mut sim, Flags::ACK, part);
        let answer = sim.expect();
        assert_eq!(answer.ack, guest.seq, "accepted means acknowledged");
        told = usize::from(answer.window) << 7;
        if told < 30_000 {
            break;
        }
    }
    assert!(told < 60_000, "the window closes while nothing drains: {told}");
    guest.send(&mut sim, Flags::ACK | Flags::FIN, b"");
    assert!(!sim.world.stream(socket).shut, "the FIN waits for the data before it");
    while !sim.world.stream(socket).shut {
        sim.world.stream(socket).room = 7_000;
        sim.writable(socket);
    }
    let outbox = &sim.world.stream(socket).outbox;
    assert_eq!(outbox[..], data[..outbox.len()]);
    assert!(sim.world.stream(socket).shut);
}

#[test]
fn a_closed_window_opens_again_by_itself() {
    let (mut sim, mut guest, socket) = open();
    sim.world.stream(socket).room = 0;
    let mut window = 1;
    let mut sent = 0;
    while window > 0 {
        let step = 20_000.min(window);
        let part = vec![1; if sent == 0 { 20_000 } else { step }];
        guest.send(&mut sim, Flags::ACK, &part);
        sent += part.len();
        while let Some(answer) = sim.segment() {
            window = usize::from(answer.window) << 7;
        }
        assert!(sent < 8 << 20, "the window never closes");
    }
    sim.world.stream(socket).room = 4 << 20;
    sim.writable(socket);
    let update = sim.expect();
    assert!(usize::from(update.window) << 7 >= 64 * 1024, "a window update comes unasked");
    assert_eq!(sim.world.stream(socket).outbox.len(), sent);
}

#[test]
fn segments_that_come_out_of_order_are_held_and_told_by_sack() {
    let (mut sim, mut guest, socket) = open();
    let start = guest.seq;
    guest.send_at(&mut sim, start + 3u32, Flags::ACK, b"def");
    let answer = sim.expect();
    assert_eq!(answer.ack, start);
    assert_eq!(answer.options.sack[0], Some((start + 3u32, start + 6u32)));
    guest.send_at(&mut sim, start + 9u32, Flags::ACK, b"jkl");
    assert_eq!(
        sim.expect().options.sack[..2],
        [Some((start + 9u32, start + 12u32)), Some((start + 3u32, start + 6u32))]
    );
    guest.send_at(&mut sim, start, Flags::ACK, b"abcde");
    assert_eq!(sim.expect().ack, start + 6u32);
    guest.send_at(&mut sim, start + 6u32, Flags::ACK, b"ghi");
    assert_eq!(sim.expect().ack, start + 12u32);
    assert_eq!(sim.world.stream(socket).outbox, b"abcdefghijkl");
    guest.seq = start + 12u32;
    guest.send_at(&mut sim, start, Flags::ACK, b"abc");
    assert_eq!(sim.expect().ack, start + 12u32, "old data is acknowledged, not delivered");
    assert_eq!(sim.world.stream(socket).outbox.len(), 12);
}

#[test]
fn data_of_the_host_goes_in_super_frames_within_the_window() {
    let (mut sim, mut guest, socket) = open();
    guest.window = 1000; // << 7: 128 000 bytes
    guest.send(&mut sim, Flags::ACK, b"");
    let data = pattern(400_000);
    sim.arrives(socket, &data);
    let mut got = Vec::new();
    while got.len() < data.len() {
        let mut batch = Vec::new();
        while let Some(seen) = sim.segment() {
            batch.push(seen);
        }
        let bytes: usize = batch.iter().map(|seen| seen.payload.len()).sum();
        assert!(bytes > 0 && bytes <= 128_000, "{bytes} bytes in one window");
        for seen in &batch {
            assert_eq!(seen.gso, Some(1460));
            assert_eq!(seen.seq, guest.ack + (got.len() - usize_of(guest.ack, seen, &got)));
            got.extend_from_slice(&seen.payload);
        }
        let last = batch.last().unwrap().clone();
        guest.acknowledge(&mut sim, &last);
        assert_eq!(sim.world.stream(socket).inbox.len(), data.len() - got.len(), "dropped on ACK");
    }
    assert_eq!(got, data);
}

/// Bytes that were received before the last acknowledgement.
fn usize_of(ack: SeqNumber, seen: &Seen, got: &[u8]) -> usize {
    got.len() - usize::try_from(seen.seq - ack).unwrap()
}

#[test]
fn only_the_hole_is_sent_again_when_the_guest_does_sack() {
    let (mut sim, mut guest, socket) = open();
    sim.arrives(socket, &pattern(300_000));
    let mut sent = Vec::new();
    while let Some(seen) = sim.segment() {
        sent.push(seen);
    }
    assert!(sent.len() >= 4, "several super-frames are on their way");
    // The second is lost.
    guest.ack = sent[0].end();
    guest.send(&mut sim, Flags::ACK, b"");
    while sim.segment().is_some() {}
    guest.options.sack[0] = Some((sent[2].seq, sent[3].end()));
    guest.send(&mut sim, Flags::ACK, b"");
    let mut again = Vec::new();
    while let Some(seen) = sim.segment() {
        again.push(seen);
    }
    let repeated: Vec<&Seen> = again.iter().filter(|seen| (seen.seq - sent[3].end()) < 0).collect();
    let bytes: Vec<u8> = repeated.iter().flat_map(|seen| seen.payload.clone()).collect();
    assert_eq!(repeated[0].seq, sent[1].seq);
    assert_eq!(bytes, sent[1].payload[..bytes.len()]);
    assert!(bytes.len() <= sent[1].payload.len(), "nothing beyond the hole");
}

#[test]
fn three_duplicates_bring_the_lost_segment_without_sack() {
    let mut sim = Sim::new();
    let plug = sim.plug("a");
    let mut guest = Guest::new(plug, OUTSIDE);
    guest.options.mss = Some(1460);
    guest.send(&mut sim, Flags::SYN, b"");
    guest.options = TcpOptions::default();
    let socket = sim.world.last();
    sim.writable(socket);
    let answer = sim.expect();
    guest.acknowledge(&mut sim, &answer);
    sim.arrives(socket, &pattern(20_000));
    let first = sim.expect();
    while sim.segment().is_some() {}
    for _ in 0..2 {
        guest.send(&mut sim, Flags::ACK, b"");
        sim.silent();
    }
    guest.send(&mut sim, Flags::ACK, b"");
    let again = sim.expect();
    assert_eq!(again.seq, first.seq);
    assert_eq!(again.payload, first.payload[..again.payload.len()]);
}

#[test]
fn a_lost_tail_comes_again_after_the_timer() {
    let (mut sim, mut guest, socket) = open();
    sim.arrives(socket, b"tail");
    let first = sim.expect();
    sim.silent();
    sim.advance(Duration::from_millis(150));
    sim.silent();
    sim.advance(Duration::from_millis(100));
    let again = sim.expect();
    assert_eq!((again.seq, &again.payload), (first.seq, &first.payload));
    guest.acknowledge(&mut sim, &again);
    assert!(sim.world.stream(socket).inbox.is_empty());
    sim.advance(Duration::from_secs(60));
    sim.silent();
}

#[test]
fn a_guest_that_answers_no_more_is_given_up() {
    let (mut sim, _guest, socket) = open();
    sim.arrives(socket, b"hello?");
    sim.advance(Duration::from_secs(600));
    assert!(sim.world.stream(socket).reset);
    assert_eq!(sim.network.state().tcp_flows, 0);
}

#[test]
fn a_zero_window_is_probed_and_its_opening_used() {
    let (mut sim, mut guest, socket) = open();
    guest.window = 0;
    guest.send(&mut sim, Flags::ACK, b"");
    sim.arrives(socket, b"data");
    sim.silent();
    for _ in 0..3 {
        sim.advance(Duration::from_secs(10));
        let probe = sim.expect();
        assert_eq!(probe.end(), guest.ack + u32::MAX, "a probe carries nothing new");
        while sim.segment().is_some() {}
        guest.send(&mut sim, Flags::ACK, b"");
    }
    guest.window = 100;
    guest.send(&mut sim, Flags::ACK, b"");
    assert_eq!(sim.expect().payload, b"data");
}

#[test]
fn the_host_closes_first() {
    let (mut sim, mut guest, socket) = open();
    sim.arrives(socket, b"bye");
    let data = sim.expect();
    guest.acknowledge(&mut sim, &data);
    sim.ends(socket);
    let fin = sim.expect();
    assert!(fin.has(Flags::FIN));
    guest.acknowledge(&mut sim, &fin);
    // Half open: the guest goes on sending.
    guest.send(&mut sim, Flags::ACK, b"more");
    assert_eq!(sim.expect().ack, guest.seq);
    assert_eq!(sim.world.stream(socket).outbox, b"more");
    guest.send(&mut sim, Flags::ACK | Flags::FIN, b"");
    assert_eq!(sim.expect().ack, guest.seq);
    let stream = sim.world.stream(socket);
    assert!(stream.shut && stream.closed && !stream.reset);
    assert_eq!(sim.network.state().tcp_flows, 0);
}

#[test]
fn the_guest_closes_first() {
    let (mut sim, mut guest, socket) = open();
    guest.send(&mut sim, Flags::ACK | Flags::FIN, b"last");
    assert_eq!(sim.expect().ack, guest.seq);
    assert_eq!(sim.world.stream(socket).outbox, b"last");
    assert!(sim.world.stream(socket).shut);
    sim.arrives(socket, &pattern(5000));
    let data = sim.expect();
    assert_eq!(data.payload.len(), 5000);
    guest.acknowledge(&mut sim, &data);
    sim.ends(socket);
    let fin = sim.expect();
    assert!(fin.has(Flags::FIN));
    assert!(!sim.world.stream(socket).closed);
    guest.acknowledge(&mut sim, &fin);
    assert!(sim.world.stream(socket).closed && !sim.world.stream(socket).reset);
}

#[test]
fn both_close_at_once() {
    let (mut sim, mut guest, socket) = open();
    sim.ends(socket);
    let fin = sim.expect();
    guest.send(&mut sim, Flags::ACK | Flags::FIN, b"");
    assert_eq!(sim.expect().ack, guest.seq);
    guest.acknowledge(&mut sim, &fin);
    assert!(sim.world.stream(socket).closed && !sim.world.stream(socket).reset);
    assert_eq!(sim.network.state().tcp_flows, 0);
}

#[test]
fn a_lost_fin_is_sent_again() {
    let (mut sim, mut guest, socket) = open();
    sim.world.stream(socket).inbox.extend(b"end");
    sim.ends(socket);
    let mut last = sim.expect();
    while let Some(seen) = sim.segment() {
        last = seen;
    }
    assert!(last.has(Flags::FIN));
    sim.advance(Duration::from_secs(2));
    let again = sim.expect();
    assert!(again.has(Flags::FIN));
    assert_eq!(again.payload, b"end");
    guest.acknowledge(&mut sim, &again);
    assert!(sim.world.stream(socket).inbox.is_empty());
}

#[test]
fn resets_go_both_ways() {
    let (mut sim, mut guest, socket) = open();
    guest.send_at(&mut sim, guest.seq + 5u32, Flags::RST, b"");
    assert_eq!(sim.expect().flags, Flags::ACK, "RFC 5961: a guess is challenged");
    assert!(!sim.world.stream(socket).closed);
    guest.send(&mut sim, Flags::RST, b"");
    assert!(sim.world.stream(socket).reset);

    let (mut sim, guest, socket) = open();
    sim.world.stream(socket).error = Some(io::ErrorKind::ConnectionReset);
    sim.host(socket, Readiness { readable: true, error: true, hangup: true, ..Default::default() });
    let reset = sim.expect();
    assert_eq!(reset.flags, Flags::RST | Flags::ACK);
    assert_eq!(reset.ack, guest.seq);
    assert_eq!(sim.network.state().tcp_flows, 0);
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut sim = Sim::new();
    let plug = sim.plug("a");
    let mut guest = Guest::new(plug, OUTSIDE);
    guest.ack = SeqNumber(77);
    guest.send(&mut sim, Flags::ACK, b"x");
    let reset = sim.expect();
    assert_eq!((reset.flags, reset.seq), (Flags::RST, SeqNumber(77)));
    guest.send(&mut sim, Flags::RST, b"");
    sim.silent();
}

#[test]
fn a_full_plug_is_tried_again() {
    let (mut sim, _guest, socket) = open();
    sim.world.refuse = true;
    sim.arrives(socket, b"wait");
    sim.silent();
    sim.world.refuse = false;
    sim.advance(Duration::from_millis(5));
    assert_eq!(sim.expect().payload, b"wait");
}

fn serve(sim: &mut Sim, names: &[&str]) -> (Vec<Guest>, SocketId) {
    let (plugs, listener) = sim.publish(names, Delivery::default());
    let guests = plugs.into_iter().map(|plug| Guest::new(plug, "127.0.0.1:1")).collect();
    (guests, listener)
}

/// A client connects to the published port; its socket.
fn client(sim: &mut Sim, listener: SocketId) -> SocketId {
    sim.client(listener, "127.0.0.1:50000")
}

fn answer(sim: &mut Sim, guest: &mut Guest, syn: &Seen, flags: Flags) {
    assert_eq!(syn.flags, Flags::SYN);
    guest.own = syn.destination;
    guest.remote = syn.source;
    guest.ack = syn.seq + 1u32;
    guest.seq = SeqNumber(5);
    guest.send(sim, flags, b"");
}

#[test]
fn a_published_port_leads_to_the_instances_in_turn() {
    let mut sim = Sim::new();
    let (mut guests, listener) = serve(&mut sim, &["w1", "w2", "w3"]);
    for round in 0..7 {
        let socket = client(&mut sim, listener);
        let syn = sim.expect();
        let guest = &mut guests[round % 3];
        assert_eq!(syn.destination.ip(), guest.plug.address4);
        assert_eq!(syn.source.ip().to_string(), "192.168.127.1", "loopback is not shown");
        answer(&mut sim, guest, &syn, Flags::SYN | Flags::ACK);
        assert_eq!(sim.expect().flags, Flags::ACK);
        sim.arrives(socket, b"GET /");
        assert_eq!(sim.expect().payload, b"GET /");
        guest.send(&mut sim, Flags::ACK, b"My id");
        assert_eq!(sim.world.stream(socket).outbox, b"My id");
        while sim.segment().is_some() {}
    }
}

#[test]
fn an_instance_that_refuses_or_is_silent_costs_its_turn_only() {
    let mut sim = Sim::new();
    let (mut guests, listener) = serve(&mut sim, &["w1", "w2", "w3"]);
    let socket = client(&mut sim, listener);
    let syn = sim.expect();
    answer(&mut sim, &mut guests[0], &syn, Flags::RST | Flags::ACK);
    let syn = sim.expect();
    assert_eq!(syn.destination.ip(), guests[1].plug.address4);
    // The second is silent; its SYN is repeated, then the third is asked.
    sim.advance(Duration::from_millis(1001));
    let mut last = sim.expect();
    while let Some(seen) = sim.segment() {
        last = seen;
    }
    assert_eq!(last.destination.ip(), guests[2].plug.address4);
    answer(&mut sim, &mut guests[2], &last, Flags::SYN | Flags::ACK);
    assert!(!sim.world.stream(socket).closed, "the client has noticed nothing");
    let state = sim.network.state();
    let turns: Vec<_> = state.services[0].instances.iter().map(|i| (i.turns, i.failed)).collect();
    assert_eq!(turns, [(1, 1), (1, 1), (1, 0)]);
}

#[test]
fn a_dead_instance_is_left_at_once_and_none_means_refused() {
    let mut sim = Sim::new();
    let (guests, listener) = serve(&mut sim, &["w1", "w2"]);
    let socket = client(&mut sim, listener);
    assert_eq!(sim.expect().destination.ip(), guests[0].plug.address4);
    sim.network.set_eligible(sim.now, "test", "web", "w1", false, &mut sim.world).unwrap();
    assert_eq!(sim.expect().destination.ip(), guests[1].plug.address4);
    sim.network.set_eligible(sim.now, "test", "web", "w2", false, &mut sim.world).unwrap();
    assert!(sim.world.stream(socket).reset, "nobody is left");
    assert!(!sim.world.stream(listener).listening, "the port is kept, clients are refused");
    assert!(!sim.world.stream(listener).closed);
    sim.network.set_eligible(sim.now, "test", "web", "w2", true, &mut sim.world).unwrap();
    assert!(sim.world.stream(listener).listening);
}

#[test]
fn streams_stay_whole_when_the_link_loses_and_reorders() {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut sim, mut guest, socket) = open();
        let down = pattern(rng.random_range(1..400_000));
        let up: Vec<u8> = pattern(rng.random_range(1..200_000)).iter().map(|b| !b).collect();
        let loss = rng.random_range(0.0..0.2);
        sim.world.stream(socket).inbox.extend(&down);
        sim.ends(socket);
        sim.world.stream(socket).room = 5_000;

        // A simple guest: it keeps segments sorted, acknowledges each, sends go-back-N.
        let start = guest.ack;
        let base = guest.seq;
        let mut held: std::collections::BTreeMap<usize, Seen> = Default::default();
        let mut got = Vec::new();
        let mut fin = false;
        let (mut acked, mut sent) = (0usize, 0usize);
        let mut edge = 0usize;
        let mut rounds = 0;
        while !(fin && acked > up.len() && sim.network.state().tcp_flows == 0) {
            rounds += 1;
            assert!(rounds < 20_000, "seed {seed}: got {} of {}", got.len(), down.len());
            let mut arrived: Vec<Seen> = Vec::new();
            while let Some(seen) = sim.segment() {
                if rng.random_bool(1.0 - loss) {
                    let at = rng.random_range(arrived.len().saturating_sub(3)..=arrived.len());
                    arrived.insert(at, seen);
                }
            }
            for seen in arrived {
                if seen.has(Flags::RST) {
                    // Its last ACK was lost, and the connection is over already.
                    assert_eq!(sim.network.state().tcp_flows, 0, "seed {seed}: reset");
                    acked = up.len() + 1;
                    continue;
                }
                let ack = usize::try_from(seen.ack - base).unwrap();
                acked = acked.max(ack);
                edge = edge.max(ack + (usize::from(seen.window) << 7));
                if seen.end() != seen.seq
                    && let Ok(offset) = usize::try_from(seen.seq - start)
                {
                    held.insert(offset, seen);
                }
                while let Some((offset, seen)) = held.pop_first() {
                    if offset > got.len() {
                        held.insert(offset, seen);
                        break;
                    }
                    if let Some(new) = seen.payload.get(got.len() - offset..) {
                        got.extend_from_slice(new);
                        fin |= seen.has(Flags::FIN) && offset + seen.payload.len() == got.len();
                    }
                }
                guest.ack = start + got.len() + usize::from(fin);
                guest.options.sack = [None; 4];
                for (block, (offset, seen)) in guest.options.sack.iter_mut().take(3).zip(&held) {
                    *block = Some((start + *offset, seen.end()));
                }
                if rng.random_bool(1.0 - loss) {
                    guest.send_at(&mut sim, base + sent.min(up.len()), Flags::ACK, b"");
                }
            }
            sent = sent.max(acked);
            if rng.random_bool(0.1) {
                sent = acked;
            }
            while sent < up.len() && sent < edge {
                let end = up.len().min(edge).min(sent + rng.random_range(1..3000));
                if rng.random_bool(1.0 - loss) {
                    guest.send_at(&mut sim, base + sent, Flags::ACK, &up[sent..end]);
                }
                sent = end;
            }
            if sent >= up.len() && acked <= up.len() && rng.random_bool(0.3) {
                guest.send_at(&mut sim, base + up.len(), Flags::ACK | Flags::FIN, b"");
            }
            if !sim.world.stream(socket).closed && rng.random_bool(0.5) {
                sim.world.stream(socket).room = rng.random_range(0..30_000);
                sim.writable(socket);
            }
            sim.advance(Duration::from_millis(rng.random_range(0..80)));
        }
        assert_eq!(got, down, "seed {seed}");
        let stream = sim.world.stream(socket);
        assert_eq!(stream.outbox, up, "seed {seed}");
        assert!(stream.closed && stream.shut && !stream.reset, "seed {seed}");
    }
}
