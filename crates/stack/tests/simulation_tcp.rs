//! TCP between two stacks over links that lose, delay, reorder and duplicate, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod common;

use std::time::Duration;

use common::{CLIENT, FAMILIES, Link, SERVER, Sim, pattern};
use netyard_stack::{Algorithm, Error, Event, Keepalive, Options, Settings, State};
use netyard_wire::Features;

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn a_stream_arrives_whole_and_both_ends_finish() {
    for to in FAMILIES {
        for features in [Features::NONE, Features::ALL] {
            let mut sim = Sim::new(1, Link { features, ..Link::default() });
            let (client, server) = sim.open(to);
            let data = pattern(3_000_000);
            assert!(sim.transfer(CLIENT, (client, server), &data, LONG) == data);
            let back = pattern(1_000_000);
            assert!(sim.transfer(SERVER, (server, client), &back, LONG) == back);
            sim.run(Duration::from_secs(1));
            assert_eq!(sim.lost, [0, 0]);
            sim.stacks[CLIENT].tcp_close(sim.now, client);
            sim.stacks[SERVER].tcp_close(sim.now, server);
            sim.run(Duration::from_secs(10));
            let (one, other) = (sim.stacks[CLIENT].counts(), sim.stacks[SERVER].counts());
            assert_eq!((one.connections, other.connections), (0, 0));
            assert_eq!((one.time_wait, other.time_wait), (1, 0), "who finishes first waits");
            sim.run(Duration::from_secs(60));
            assert_eq!(sim.stacks[CLIENT].counts().time_wait, 0);
            let drops = |side: usize| sim.stacks[side].drops().clone();
            assert_eq!((drops(CLIENT), drops(SERVER)), Default::default());
        }
    }
}

#[test]
fn streams_survive_loss_reordering_and_duplicates() {
    for seed in 0..20 {
        for sack in [true, false] {
            // Without SACK so much loss leaves nothing but the timer, which doubles.
            let most = if sack { 0.25 } else { 0.1 };
            let link = Link {
                delay: Duration::from_millis(1 + seed * 3),
                loss: [0.0, 0.01, 0.1, most][usize::try_from(seed).unwrap() % 4],
                duplicate: 0.03,
                late: if seed % 3 == 0 { 0.2 } else { 0.0 },
                ..Link::default()
            };
            let congestion = if seed % 2 == 0 { Algorithm::Cubic } else { Algorithm::NewReno };
            let timestamps = seed % 5 != 0;
            let settings = Settings { sack, congestion, timestamps, ..Settings::default() };
            let mut sim = Sim::with(seed, link, settings, 1500);
            let (client, server) = sim.open(FAMILIES[usize::try_from(seed).unwrap() % 2]);
            let data = pattern(200_000);
            let got = sim.transfer(CLIENT, (client, server), &data, LONG);
            assert!(got == data, "seed {seed}, SACK {sack}");
            let got = sim.transfer(SERVER, (server, client), &data, LONG);
            assert!(got == data, "seed {seed}, SACK {sack}, back");
            sim.stacks[CLIENT].tcp_close(sim.now, client);
            sim.stacks[SERVER].tcp_close(sim.now, server);
            sim.run(LONG);
            for side in [CLIENT, SERVER] {
                let counts = sim.stacks[side].counts();
                assert_eq!(counts, Default::default(), "seed {seed}: something was left behind");
            }
        }
    }
}

/// Bytes per second over a link with this loss.
fn goodput(loss: f64, delay_ms: u64, congestion: Algorithm) -> f64 {
    let link = Link {
        delay: Duration::from_millis(delay_ms / 2),
        loss,
        rate: Some(12_500_000),
        ..Link::default()
    };
    let settings = Settings { congestion, ..Settings::default() };
    let mut sim = Sim::with(11, link, settings, 1500);
    let (client, server) = sim.open(FAMILIES[0]);
    let data = pattern(10_000_000);
    let start = sim.now;
    assert!(sim.transfer(CLIENT, (client, server), &data, LONG) == data);
    data.len() as f64 / (sim.now - start).as_secs_f64()
}

#[test]
fn a_clean_path_is_filled() {
    // The first flights take their time, and NewReno as many round trips as the path has segments.
    for (congestion, delay, share) in [
        (Algorithm::Cubic, 2, 0.9),
        (Algorithm::Cubic, 20, 0.8),
        (Algorithm::Cubic, 50, 0.6),
        (Algorithm::NewReno, 2, 0.9),
        (Algorithm::NewReno, 20, 0.7),
    ] {
        let rate = goodput(0.0, delay, congestion);
        assert!(rate > share * 12_500_000.0, "{congestion:?}, {delay} ms: {rate:.0} B/s");
    }
}

#[test]
fn losses_are_repaired_without_waiting_for_the_timer() {
    // The window that 1 % loss leaves (RFC 5681: 1.2 / sqrt(p) segments) is 12 segments: 0.35 MB/s at
    // 50 ms. A sender that waits for its timer stays far below.
    let rate = goodput(0.01, 50, Algorithm::Cubic);
    assert!(rate > 250_000.0, "{rate:.0} B/s");
    let rate = goodput(0.001, 50, Algorithm::NewReno);
    assert!(rate > 700_000.0, "{rate:.0} B/s");
}

#[test]
fn a_lost_tail_is_repaired_by_a_probe() {
    let mut sim = Sim::new(3, Link { delay: Duration::from_millis(10), ..Link::default() });
    let (client, server) = sim.open(FAMILIES[0]);
    // A first exchange makes the round trip known.
    sim.stacks[CLIENT].tcp_send(client, &pattern(5_000)).unwrap();
    sim.run(Duration::from_secs(1));
    sim.recv(SERVER, server).unwrap();
    let mut to_lose = 2;
    sim.filter = Some(Box::new(move |side, frame| {
        let data = side == CLIENT && frame.bytes.len() > 1000;
        let lose = data && to_lose > 0;
        to_lose -= usize::from(lose);
        !lose
    }));
    let start = sim.now;
    sim.stacks[CLIENT].tcp_send(client, &pattern(2_800)).unwrap();
    let mut got = 0;
    sim.until("the tail", LONG, |sim| {
        got += sim.recv(SERVER, server).map_or(0, |bytes| bytes.len());
        (got == 2_800).then_some(())
    });
    let took = sim.now - start;
    assert!(took < Duration::from_millis(120), "{took:?}: that was the timer");
    sim.run(Duration::from_secs(1));
    let window = sim.stacks[CLIENT].tcp_info(client).unwrap().congestion_window;
    assert!(window >= 2 * 1448, "the window was thrown away: {window}");
}

#[test]
fn the_window_opens_for_a_long_fat_path() {
    let link = Link {
        delay: Duration::from_millis(50),
        rate: Some(40_000_000),
        buffer: 4 << 20,
        ..Link::default()
    };
    let mut sim = Sim::new(5, link);
    let (client, server) = sim.open(FAMILIES[1]);
    let data = pattern(40_000_000);
    let start = sim.now;
    assert!(sim.transfer(CLIENT, (client, server), &data, LONG) == data);
    let rate = data.len() as f64 / (sim.now - start).as_secs_f64();
    // Fixed buffers of 128 KiB would give 1.3 MB/s.
    assert!(rate > 12_000_000.0, "{rate:.0} B/s");
}

#[test]
fn a_program_queues_little_ahead_and_hears_of_room_when_that_was_sent() {
    let link = Link { delay: Duration::from_millis(50), ..Link::default() };
    let mut sim = Sim::new(5, link);
    let (client, server) = sim.open(FAMILIES[0]);
    let chunk = pattern(4 << 20);
    sim.until("a wide window", LONG, |sim| {
        let _ = sim.stacks[CLIENT].tcp_send(client, &chunk);
        while sim.recv(SERVER, server).is_ok() {}
        let info = sim.stacks[CLIENT].tcp_info(client).unwrap();
        (info.congestion_window > 2 << 20).then_some(())
    });
    sim.until("an empty queue", LONG, |sim| {
        while sim.recv(SERVER, server).is_ok() {}
        let info = sim.stacks[CLIENT].tcp_info(client).unwrap();
        (info.unacknowledged == 0).then_some(())
    });
    // No time passes, so nothing is acknowledged.
    for turn in 0..3 {
        let queued = sim.stacks[CLIENT].tcp_send(client, &chunk).unwrap();
        // A part of a segment may still wait.
        assert!((510 * 1024..=512 * 1024).contains(&queued), "turn {turn}: {queued}");
        assert_eq!(sim.stacks[CLIENT].tcp_send(client, &chunk), Err(Error::WouldBlock));
        sim.events[CLIENT].clear();
        sim.flush();
        assert!(sim.events[CLIENT].contains(&Event::Tcp(client)), "turn {turn}");
    }
}

#[test]
fn a_reader_that_stops_stops_the_sender_and_nothing_is_lost() {
    let mut sim = Sim::new(6, Link::default());
    let (client, server) = sim.open(FAMILIES[0]);
    let data = pattern(2_000_000);
    let mut sent = 0;
    sim.until("a full path", LONG, |sim| {
        match sim.stacks[CLIENT].tcp_send(client, &data[sent..]) {
            Ok(count) => sent += count,
            Err(error) => assert_eq!(error, Error::WouldBlock),
        }
        let info = sim.stacks[SERVER].tcp_info(server).unwrap();
        (info.unread >= 128 * 1024 - 1460).then_some(())
    });
    // The window stays closed for ten minutes; the sender asks after it, and is not given up.
    sim.run(Duration::from_secs(600));
    let unread = sim.stacks[SERVER].tcp_info(server).unwrap().unread;
    // The window's edge is rounded up, by less than a tenth of a segment each time.
    assert!(unread <= 144 * 1024, "{unread}");
    let mut got = Vec::new();
    sim.until("the rest", LONG, |sim| {
        if sent < data.len()
            && let Ok(count) = sim.stacks[CLIENT].tcp_send(client, &data[sent..])
        {
            sent += count;
        }
        while let Ok(bytes) = sim.recv(SERVER, server) {
            got.extend(bytes);
        }
        (got.len() == data.len()).then_some(())
    });
    assert!(got == data);
}

#[test]
fn a_window_update_that_was_lost_is_asked_for() {
    let mut sim = Sim::new(7, Link::default());
    let (client, server) = sim.open(FAMILIES[0]);
    let data = pattern(400_000);
    let mut sent = sim.stacks[CLIENT].tcp_send(client, &data).unwrap();
    sim.run(Duration::from_secs(5));
    sent += sim.stacks[CLIENT].tcp_send(client, &data[sent..]).unwrap_or(0);
    sim.run(Duration::from_secs(5));
    // Everything that the server says now is lost.
    sim.filter = Some(Box::new(|side, _| side == CLIENT));
    let mut got = sim.recv(SERVER, server).unwrap();
    while let Ok(bytes) = sim.recv(SERVER, server) {
        got.extend(bytes);
    }
    sim.run(Duration::from_secs(1));
    sim.filter = None;
    sim.until("the rest", LONG, |sim| {
        if let Ok(bytes) = sim.recv(SERVER, server) {
            got.extend(bytes);
        }
        (got.len() == sent).then_some(())
    });
    assert!(got == data[..sent]);
}

#[test]
fn connects_are_refused_time_out_and_find_no_route() {
    for to in FAMILIES {
        let mut sim = Sim::new(8, Link::default());
        let id = sim.connect(to);
        let error =
            sim.until("an answer", LONG, |sim| sim.stacks[CLIENT].tcp_take_error(id).unwrap());
        assert_eq!(error, Error::ConnectionRefused);
        assert!(sim.elapsed() < Duration::from_secs(1));
        assert!(sim.events[CLIENT].contains(&Event::Tcp(id)));
        sim.stacks[CLIENT].tcp_close(sim.now, id);
        assert_eq!(sim.stacks[CLIENT].counts(), Default::default());
    }
    let mut sim = Sim::new(8, Link::default());
    let id = sim.connect("10.0.0.77:80");
    let error = sim.until("an answer", LONG, |sim| sim.stacks[CLIENT].tcp_take_error(id).unwrap());
    assert_eq!(error, Error::HostUnreachable, "nobody answers for the address");
    assert!(sim.elapsed() < Duration::from_secs(5));
    let outside = "192.0.2.1:80".parse().unwrap();
    let error = sim.stacks[CLIENT].tcp_connect(sim.now, outside, None).unwrap_err();
    assert_eq!(error, Error::NetworkUnreachable);

    let mut sim = Sim::new(9, Link::default());
    sim.filter = Some(Box::new(|_, frame| frame.bytes.len() < 60));
    let id = sim.connect(FAMILIES[0]);
    let error = sim.until("an answer", LONG, |sim| sim.stacks[CLIENT].tcp_take_error(id).unwrap());
    assert_eq!(error, Error::TimedOut, "ARP passes, SYNs do not");
    assert!(sim.elapsed() > Duration::from_secs(60));
}

#[test]
fn lost_handshakes_are_repaired() {
    for seed in 0..30 {
        let mut sim = Sim::new(seed, Link { loss: 0.3, ..Link::default() });
        let (client, server) = sim.open(FAMILIES[usize::try_from(seed).unwrap() % 2]);
        let data = pattern(100);
        assert_eq!(sim.transfer(CLIENT, (client, server), &data, LONG), data);
    }
}

#[test]
fn each_half_closes_by_itself() {
    let mut sim = Sim::new(10, Link::default());
    let (client, server) = sim.open(FAMILIES[0]);
    sim.stacks[CLIENT].tcp_shutdown(client, false, true).unwrap();
    sim.run(Duration::from_secs(1));
    assert_eq!(sim.stacks[CLIENT].tcp_info(client).unwrap().state, State::FinWait2);
    assert_eq!(sim.stacks[SERVER].tcp_info(server).unwrap().state, State::CloseWait);
    assert_eq!(sim.recv(SERVER, server), Ok(Vec::new()));
    assert_eq!(sim.stacks[CLIENT].tcp_send(client, b"x"), Err(Error::BrokenPipe));
    // The other half stays open for as long as it is wanted.
    sim.run(Duration::from_secs(300));
    let data = pattern(50_000);
    assert_eq!(sim.transfer(SERVER, (server, client), &data, LONG), data);
    sim.run(Duration::from_secs(1));
    assert_eq!(sim.recv(CLIENT, client), Ok(Vec::new()));
    let state = sim.stacks[SERVER].tcp_info(server).unwrap().state;
    assert_eq!(state, State::Closed);
}

#[test]
fn a_closed_connection_that_the_peer_never_finishes_goes() {
    let mut sim = Sim::new(12, Link::default());
    let (client, _server) = sim.open(FAMILIES[0]);
    sim.stacks[CLIENT].tcp_close(sim.now, client);
    sim.run(Duration::from_secs(30));
    assert_eq!(sim.stacks[CLIENT].counts().connections, 1, "FIN-WAIT-2");
    sim.run(Duration::from_secs(40));
    assert_eq!(sim.stacks[CLIENT].counts().connections, 0);
}

#[test]
fn unread_data_and_data_for_nobody_reset_the_peer() {
    let mut sim = Sim::new(13, Link::default());
    let (client, server) = sim.open(FAMILIES[0]);
    sim.stacks[CLIENT].tcp_send(client, b"never read").unwrap();
    sim.run(Duration::from_secs(1));
    sim.stacks[SERVER].tcp_close(sim.now, server);
    sim.run(Duration::from_secs(1));
    assert_eq!(sim.recv(CLIENT, client), Err(Error::ConnectionReset));
    assert_eq!(sim.recv(CLIENT, client), Ok(Vec::new()), "told once");
    assert_eq!(sim.stacks[CLIENT].tcp_send(client, b"x"), Err(Error::BrokenPipe));

    let mut sim = Sim::new(14, Link::default());
    let (client, server) = sim.open(FAMILIES[1]);
    sim.stacks[SERVER].tcp_close(sim.now, server);
    sim.run(Duration::from_secs(1));
    assert_eq!(sim.recv(CLIENT, client), Ok(Vec::new()));
    sim.stacks[CLIENT].tcp_send(client, b"for nobody").unwrap();
    sim.run(Duration::from_secs(1));
    assert_eq!(sim.stacks[CLIENT].tcp_send(client, b"x"), Err(Error::BrokenPipe));
}

#[test]
fn lingering_for_no_time_resets() {
    let mut sim = Sim::new(15, Link::default());
    let (client, server) = sim.open(FAMILIES[0]);
    let options = Options { reset_on_close: true, ..Options::default() };
    sim.stacks[CLIENT].tcp_set_options(client, options).unwrap();
    sim.stacks[CLIENT].tcp_close(sim.now, client);
    sim.run(Duration::from_secs(1));
    assert_eq!(sim.recv(SERVER, server), Err(Error::ConnectionReset));
    assert_eq!(sim.stacks[CLIENT].counts(), Default::default());
}

#[test]
fn a_silent_peer_is_noticed_where_that_was_asked_for() {
    let keepalive =
        Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(10), count: 3 };
    let mut sim = Sim::new(16, Link::default());
    let (client, _server) = sim.open(FAMILIES[0]);
    let options = Options { keepalive: Some(keepalive), ..Options::default() };
    sim.stacks[CLIENT].tcp_set_options(client, options).unwrap();
    sim.run(Duration::from_secs(600));
    assert_eq!(sim.stacks[CLIENT].tcp_info(client).unwrap().state, State::Established);
    sim.filter = Some(Box::new(|_, _| false));
    let start = sim.now;
    let error =
        sim.until("the end", LONG, |sim| sim.stacks[CLIENT].tcp_take_error(client).unwrap());
    assert_eq!(error, Error::TimedOut);
    let took = sim.now - start;
    // The peer was last heard up to a minute before.
    assert!((20..120).contains(&took.as_secs()), "{took:?}");
}

#[test]
fn data_that_is_not_acknowledged_ends_the_connection_in_time() {
    for (limit, wanted) in [(Some(Duration::from_secs(10)), 10..40), (None, 600..1800)] {
        let mut sim = Sim::new(17, Link::default());
        let (client, _server) = sim.open(FAMILIES[0]);
        let options = Options { user_timeout: limit, ..Options::default() };
        sim.stacks[CLIENT].tcp_set_options(client, options).unwrap();
        sim.filter = Some(Box::new(|_, frame| frame.bytes.len() < 60));
        let start = sim.now;
        sim.stacks[CLIENT].tcp_send(client, &[1; 100]).unwrap();
        let error =
            sim.until("the end", LONG, |sim| sim.stacks[CLIENT].tcp_take_error(client).unwrap());
        assert_eq!(error, Error::TimedOut);
        let took = (sim.now - start).as_secs();
        assert!(wanted.contains(&took), "{limit:?}: {took} s");
    }
}

#[test]
fn a_host_talks_to_itself() {
    for at in ["127.0.0.1:80", "[::1]:80", "10.0.0.1:80", "[fd00::1]:80"] {
        let mut sim = Sim::new(18, Link::default());
        let listener = sim.stacks[CLIENT].tcp_listen(at.parse().unwrap(), 4).unwrap();
        let client = sim.connect(at);
        let (server, _) =
            sim.until("accept", LONG, |sim| sim.stacks[CLIENT].tcp_accept(listener).ok());
        let data = pattern(1_000_000);
        let (mut sent, mut got) = (0, Vec::new());
        sim.until("the data", LONG, |sim| {
            while sent < data.len()
                && let Ok(count) = sim.stacks[CLIENT].tcp_send(client, &data[sent..])
            {
                sent += count;
            }
            while let Ok(bytes) = sim.recv(CLIENT, server) {
                got.extend(bytes);
            }
            (got.len() == data.len()).then_some(())
        });
        assert!(got == data);
    }
}
