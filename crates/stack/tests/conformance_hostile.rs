//! Peers that mean ill or are gone, segment by segment: what they can cost is bounded, and connections end.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;
mod script;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{CLIENT, FAMILIES, Link, SERVER, Sim, alone, pattern, segment, syn};
use netyard_stack::{
    Error, Keepalive, ListenerId, Medium, NicIndex, Options, Settings, Stack, State,
};
use netyard_wire::ethernet::Ethernet;
use netyard_wire::icmp::IcmpError;
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::{Flags, Segment};
use netyard_wire::{Checksum, Frame, FrameBuf, MacAddr, SeqNumber, build};
use script::{ACCEPTED, PLAIN, STAMPED, play_after};

const NONE: MacAddr = MacAddr([0; 6]);

fn after(prelude: &str, script: &str) {
    play_after(Settings::default(), prelude, script);
}

// ------------------------------------------------------------------------------------ acknowledgements --

#[test]
fn selective_acknowledgements_of_single_bytes_cut_nothing() {
    // Every second byte of the flight, three at a time: what is sent again is whole segments.
    let mut script = "0.2 write 10000\n0.2 > P. 1:10001(10000) ack 1\n".to_owned();
    for first in (3..9990).step_by(6) {
        let [a, b, c] = [first, first + 2, first + 4];
        let (d, e, f) = (a + 1, b + 1, c + 1);
        writeln!(script, "0.3 < . 1:1(0) ack 1 win 60000 <sack {a}:{d} {b}:{e} {c}:{f}>").unwrap();
    }
    script += "0.4 > P. 9001:10001(1000) ack 1
               0.5 < . 1:1(0) ack 10001 win 60000
               0.5 state Established";
    after(ACCEPTED, &script);
}

#[test]
fn a_block_that_cuts_segments_counts_for_the_whole_ones_in_it() {
    after(
        ACCEPTED,
        "0.2 write 10000
         0.2 > P. 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000 <sack 1500:9500>
         0.3 > . 1:2001(2000) ack 1
         0.4 < . 1:1(0) ack 9001 win 60000
         0.4 state Established",
    );
}

// --------------------------------------------------------------------------------------------- silence --

/// Doubling intervals from 0.3 seconds after `start` on, as often as `count` says; the next one.
fn doubling(start: f64, count: usize, mut each: impl FnMut(f64)) -> f64 {
    let (mut at, mut timeout) = (start + 0.3, 0.3);
    for _ in 0..count {
        each(at);
        timeout = f64::min(timeout * 2.0, 120.0);
        at += timeout;
    }
    at
}

#[test]
fn a_closed_window_keeps_no_connection_that_the_program_has_closed() {
    let closed = "
         0.2 write 2000
         0.2 > P. 1:2001(2000) ack 1
         0.3 < . 1:1(0) ack 2001 win 0
         0.3 write 500
         0.3 close\n";
    let mut script = closed.to_owned();
    doubling(0.3, 8, |at| {
        // The peer lives, and answers each question.
        writeln!(script, "{at} > . 2000:2000(0) ack 1").unwrap();
        writeln!(script, "{at} < . 1:1(0) ack 2001 win 0").unwrap();
    });
    script += "120.2 counts 1 0 0\n120.4 counts 0 0 0";
    after(ACCEPTED, &script);
    // One that the program has is kept.
    let mut script = closed.replace("0.3 close\n", "");
    let end = doubling(0.3, 20, |at| {
        writeln!(script, "{at} > . 2000:2000(0) ack 1").unwrap();
        writeln!(script, "{at} < . 1:1(0) ack 2001 win 0").unwrap();
    });
    after(ACCEPTED, &format!("{script}{} state Established", end - 0.1));
}

#[test]
fn a_silent_peer_keeps_a_closed_connection_for_minutes_only() {
    let mut script =
        "0.2 write 100\n0.2 > P. 1:101(100) ack 1\n0.3 close\n0.3 > F. 101:101(0) ack 1\n"
            .to_owned();
    doubling(0.2, 8, |at| {
        writeln!(script, "{at} > P. 1:101(100) ack 1").unwrap();
    });
    script += "120.2 counts 1 0 0\n120.4 counts 0 0 0";
    after(PLAIN, &script);
    // The time from before it was closed does not count.
    let mut script = "0.2 write 100\n0.2 > P. 1:101(100) ack 1\n".to_owned();
    doubling(0.2, 8, |at| {
        writeln!(script, "{at} > P. 1:101(100) ack 1").unwrap();
    });
    script += "77 close\n77 > F. 101:101(0) ack 1\n153.5 > P. 1:101(100) ack 1\n196.9 counts 1 0 0\n197.1 counts 0 0 0";
    after(PLAIN, &script);
}

/// A server with many peers, each at a port of its own.
struct Server {
    now: Instant,
    stack: Stack,
    nic: NicIndex,
    listener: ListenerId,
}

impl Server {
    fn new() -> Self {
        let (now, mut stack, [nic]) = alone(["10.0.0.1/24"]);
        let listener = stack.tcp_listen("10.0.0.1:80".parse().unwrap(), 4).unwrap();
        Self { now, stack, nic, listener }
    }

    fn sent(&mut self) -> Vec<(Flags, SeqNumber)> {
        let (mut sent, mut frame) = (Vec::new(), FrameBuf::default());
        while self.stack.poll_transmit(self.now, &mut frame).is_some() {
            let (header, packet) = Ethernet::parse(&frame.bytes).unwrap();
            let packet = IpPacket::parse(header.ethertype, packet).unwrap();
            let segment = Segment::parse(&packet, Checksum::Valid).unwrap();
            sent.push((segment.flags, segment.seq));
        }
        sent
    }

    /// A segment of a peer, whose numbers begin at 0; what it is answered with.
    fn hear(
        &mut self,
        port: u16,
        flags: Flags,
        seq: u32,
        ack: SeqNumber,
        window: u16,
    ) -> Vec<(Flags, SeqNumber)> {
        let source = SocketAddr::new("10.0.0.2".parse().unwrap(), port);
        let destination = "10.0.0.1:80".parse().unwrap();
        let numbers = (SeqNumber(seq), ack);
        let came = segment(NONE, source, destination, flags, numbers, window);
        self.stack.handle_frame(self.now, self.nic, came.as_frame());
        self.sent()
    }

    /// A peer with a window connects, is answered with one byte, and the program closes: the byte's number, and whether
    /// the peer was reset.
    fn serve(&mut self, port: u16, window: u16) -> (SeqNumber, bool) {
        self.now += Duration::from_millis(1);
        let first = self.hear(port, Flags::SYN, 0, SeqNumber(0), window)[0].1 + 1u32;
        self.hear(port, Flags::ACK, 1, first, window);
        let (id, _) = self.stack.tcp_accept(self.listener).unwrap();
        assert_eq!(self.stack.tcp_send(id, b"x"), Ok(1));
        self.stack.tcp_close(self.now, id);
        let reset = self.sent().iter().any(|(flags, _)| flags.contains(Flags::RST));
        (first, reset)
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.stack.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.stack.handle_timeout(self.now);
            self.sent();
        }
        self.now = end;
    }
}

#[test]
fn connections_that_no_program_has_any_more_are_bounded() {
    let mut server = Server::new();
    // These peers have everything, and say nothing more: the oldest are forgotten, and no newcomer pays.
    let firsts: Vec<_> = (1..=4100)
        .map(|port| {
            let (first, reset) = server.serve(port, 1000);
            assert!(!reset, "{port}");
            server.hear(port, Flags::ACK, 1, first + 2u32, 1000);
            first
        })
        .collect();
    assert_eq!(server.stack.counts().connections, 4096);
    for (port, flags) in [(4, Flags::RST), (5, Flags::ACK)] {
        let end = firsts[usize::from(port) - 1] + 2u32;
        let answer = server.hear(port, Flags::FIN | Flags::ACK, 1, end, 1000);
        assert_eq!(answer, [(flags, end)]);
    }
    // These take nothing: there are only so many.
    let refused = (10_000..14_100).filter(|port| server.serve(*port, 0).1).count();
    assert_eq!((server.stack.counts().connections, refused), (4095 + 4096, 4));
    // They go, and others have their turn.
    server.run(Duration::from_secs(130));
    assert_eq!(server.stack.counts().connections, 0);
}

#[test]
fn a_window_that_opens_and_closes_keeps_no_connection_that_the_program_has_closed() {
    let mut server = Server::new();
    let (first, _) = server.serve(1, 0);
    for _ in 0..7 {
        server.run(Duration::from_secs(16));
        for window in [1, 0] {
            server.hear(1, Flags::ACK, 1, first, window);
        }
    }
    assert_eq!(server.stack.counts().connections, 1);
    // Its byte was on its way since the window first opened.
    server.run(Duration::from_secs(25));
    assert_eq!(server.stack.counts().connections, 0);
}

#[test]
fn times_without_end_do_no_harm() {
    let settings = Settings {
        time_wait: Duration::MAX,
        fin_wait: Duration::MAX,
        ack_delay: Duration::MAX,
        min_rto: Duration::MAX,
        ..Settings::default()
    };
    for settings in [Settings::default(), settings] {
        let mut sim = Sim::with(2, Link::default(), settings, 1500);
        let (client, server) = sim.open(FAMILIES[0]);
        let (idle, interval, count) = (Duration::MAX, Duration::MAX, u32::MAX);
        let keepalive = Some(Keepalive { idle, interval, count });
        let user_timeout = Some(Duration::MAX);
        let options = Options { keepalive, user_timeout, ..Options::default() };
        sim.stacks[CLIENT].tcp_set_options(client, options).unwrap();
        sim.run(Duration::from_secs(24 * 3600));
        let data = pattern(100_000);
        assert!(sim.transfer(CLIENT, (client, server), &data, Duration::from_secs(600)) == data);
        sim.stacks[CLIENT].tcp_close(sim.now, client);
        sim.run(Duration::from_secs(24 * 3600));
        sim.stacks[SERVER].tcp_close(sim.now, server);
        sim.run(Duration::from_secs(24 * 3600));
    }
    // A question that is asked once, and an answer that never comes.
    let mut sim = Sim::new(3, Link::default());
    let (client, _) = sim.open(FAMILIES[0]);
    let (idle, interval) = (Duration::from_secs(1), Duration::MAX);
    let keepalive = Some(Keepalive { idle, interval, count: 9 });
    sim.stacks[CLIENT]
        .tcp_set_options(client, Options { keepalive, ..Options::default() })
        .unwrap();
    sim.filter = Some(Box::new(|_, _| false));
    sim.run(Duration::from_secs(24 * 3600));
    assert_eq!(sim.stacks[CLIENT].tcp_info(client).unwrap().state, State::Established);
}

#[test]
fn what_others_send_in_its_name_does_not_keep_a_peer_alive() {
    after(
        PLAIN,
        "0.1 keepalive
         50.0 < . 99999:99999(0) ack 1 win 60000
         50.0 > . 1:1(0) ack 1
         60.1 > . 0:0(0) ack 1
         65.0 < . 1:1(0) ack 99999 win 60000
         65.0 > . 1:1(0) ack 1
         70.1 > . 0:0(0) ack 1
         80.0 error none
         80.2 error TimedOut",
    );
}

// --------------------------------------------------------------------------------------------- opening --

/// Both ends have sent a SYN, and this one has seen the other's.
const CROSSED: &str = "
    0.0 connect
    0.0 > S 0:0(0)
    0.1 < S 0:0(0) win 65535 <mss 1000>
    0.1 > S. 0:0(0) ack 1";

#[test]
fn an_open_from_both_ends_is_told_whoever_completes_it() {
    after(
        CROSSED,
        "0.1 untold
         0.2 < . 1:1(0) ack 1 win 65535
         0.2 told
         0.2 state Established
         0.2 write 100
         0.2 > P. 1:101(100) ack 1",
    );
}

#[test]
fn an_open_from_both_ends_that_is_closed_meanwhile_ends_in_order() {
    after(
        CROSSED,
        "0.2 close
         1.1 > S. 0:0(0) ack 1
         1.2 < . 1:1(0) ack 1 win 65535
         1.2 > F. 1:1(0) ack 1
         1.3 < F. 1:1(0) ack 2 win 65535
         1.3 > . 2:2(0) ack 2
         1.3 counts 0 0 1",
    );
}

// ---------------------------------------------------------------------------------------------- clocks --

#[test]
fn a_clock_that_was_not_heard_for_weeks_says_nothing() {
    // RFC 7323 section 5.5. The peer's clock has gone round more than half the way.
    after(
        STAMPED,
        "2200000 < P. 1:101(100) ack 1 win 60000 <TS 2200001000>
         2200000 > . 1:1(0) ack 101
         2200000 read 100
         2200001 < P. 101:201(100) ack 1 win 60000 <TS 2200000500>
         2200001 > . 1:1(0) ack 101
         2200001 read-fails WouldBlock
         2200002 < P. 101:201(100) ack 1 win 60000 <TS 2200003000>
         2200002 > . 1:1(0) ack 201
         2200002 read 100",
    );
}

#[test]
fn resets_have_the_clock_that_was_agreed_on() {
    // RFC 7323 section 3.2.
    after(STAMPED, "0.2 reset-on-close\n0.2 close\n0.2 > R. 1:1(0) ack 1 <TS 0>");
    after(PLAIN, "0.2 reset-on-close\n0.2 close\n0.2 > R. 1:1(0) ack 1 <>");
}

// ---------------------------------------------------------------------------------------------- reading --

#[test]
fn who_reads_no_more_waits_for_nothing() {
    after(
        ACCEPTED,
        "0.2 readable false
         0.2 shutdown-read
         0.2 readable true
         0.2 read 0
         0.3 < P. 1:101(100) ack 1 win 60000
         0.3 > . 1:1(0) ack 101
         0.3 read 0",
    );
}

// ---------------------------------------------------------------------------------------------- errors --

#[test]
fn a_path_is_narrowed_by_those_only_who_quote_what_may_have_been_sent() {
    let (now, mut stack, [nic]) = alone(["10.0.0.1/24"]);
    let to: SocketAddr = "10.0.0.2:53".parse().unwrap();
    let socket = stack.udp_bind("10.0.0.1:4000".parse().unwrap()).unwrap();
    let frames = |stack: &mut Stack| {
        stack.udp_send(now, socket, Some(to), &[7; 1400]).unwrap();
        let mut frame = FrameBuf::default();
        std::iter::from_fn(|| stack.poll_transmit(now, &mut frame)).count()
    };
    assert_eq!(frames(&mut stack), 1);
    for (port, count) in [(4001, 1), (4000, 3)] {
        let mut quoted = Vec::new();
        let from = SocketAddr::new("10.0.0.1".parse().unwrap(), port);
        build::udp_frame(&mut quoted, NONE, NONE, from, to, 64, &[7; 1400]);
        too_big(&mut stack, now, nic, &quoted);
        assert_eq!(frames(&mut stack), count, "quoting port {port}");
    }
}

/// A router says that a frame to the stack's neighbour was too big.
fn too_big(stack: &mut Stack, now: Instant, nic: NicIndex, quoted: &[u8]) {
    let mut error = Vec::new();
    let [router, own] = ["10.0.0.9", "10.0.0.1"].map(|ip| ip.parse().unwrap());
    let told = IcmpError::TooBig(600);
    let offload = build::icmp_error(&mut error, NONE, NONE, router, own, told, &quoted[14..]);
    stack.handle_frame(now, nic, Frame { bytes: &error, offload });
}

#[test]
fn a_path_is_narrowed_for_packets_of_all_protocols() {
    let (now, mut stack, [nic]) = alone(["10.0.0.1/24"]);
    let to: SocketAddr = "10.0.0.2:0".parse().unwrap();
    let socket = stack.raw_open("0.0.0.0:0".parse().unwrap(), 253).unwrap();
    let frames = |stack: &mut Stack| {
        stack.raw_send(now, socket, to, &[7; 1400]).unwrap();
        let mut frame = FrameBuf::default();
        std::iter::from_fn(|| stack.poll_transmit(now, &mut frame)).count()
    };
    assert_eq!(frames(&mut stack), 1);
    for (protocol, count) in [(254, 1), (253, 3)] {
        let mut quoted = Vec::new();
        let own = "10.0.0.1".parse().unwrap();
        build::raw_frame(&mut quoted, NONE, NONE, own, to.ip(), 64, protocol, &[7; 1400]);
        too_big(&mut stack, now, nic, &quoted);
        assert_eq!(frames(&mut stack), count, "quoting protocol {protocol}");
    }
}

#[test]
fn programs_see_no_icmpv6_that_was_damaged() {
    let (now, mut stack, [nic]) = alone(["fd00::1/64"]);
    let socket = stack.raw_open("[::]:0".parse().unwrap(), 58).unwrap();
    // Of a type that the stack does not know (RFC 4443 section 2.1: for experiments).
    let mut frame = Vec::new();
    let [from, to] = ["fd00::2", "fd00::1"].map(|ip| ip.parse().unwrap());
    let offload =
        build::raw_frame(&mut frame, NONE, NONE, from, to, 64, 58, &[200, 0, 0, 0, 1, 2, 3, 4]);
    let mut buffer = [0; 100];
    stack.handle_frame(now, nic, Frame { bytes: &frame, offload });
    let got = stack.raw_recv(socket, &mut buffer, false);
    assert_eq!(got, Ok((8, SocketAddr::new(from, 0))));
    *frame.last_mut().unwrap() ^= 1;
    stack.handle_frame(now, nic, Frame { bytes: &frame, offload });
    assert_eq!(stack.raw_recv(socket, &mut buffer, false), Err(Error::WouldBlock));
    assert_eq!(stack.drops()["icmp-checksum"], 1);
}

#[test]
fn packets_that_cannot_be_from_outside_are_dropped() {
    let now = Instant::now();
    let mut stack = Stack::new(now, [1; 32], Settings::default());
    let nic = stack.add_nic(Medium::Ip, 1500).unwrap();
    for net in ["10.0.0.1/24", "fd00::1/64"] {
        stack.add_address(now, nic, net.parse().unwrap()).unwrap();
    }
    stack.tcp_listen("[::]:80".parse().unwrap(), 4).unwrap();
    let socket = stack.udp_bind("[::]:53".parse().unwrap()).unwrap();
    let none = NONE;
    let mut frame = FrameBuf::default();
    // From itself, from IPv4 in IPv6, from everybody, from nowhere on the wire.
    for (from, to) in [
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("::ffff:10.0.0.2", "fd00::1"),
        ("10.0.0.255", "10.0.0.1"),
        ("127.0.0.1", "10.0.0.1"),
        ("::1", "fd00::1"),
    ] {
        let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        let syn = syn(none, at(from, 80), at(to, 80));
        stack.handle_frame(now, nic, syn.as_frame());
        let mut bytes = Vec::new();
        let offload = build::udp_frame(&mut bytes, none, none, at(from, 53), at(to, 53), 64, b"x");
        stack.handle_frame(now, nic, Frame { bytes: &bytes, offload });
        assert_eq!(stack.poll_transmit(now, &mut frame), None, "{from} > {to}");
        assert_eq!(stack.counts().opening, 0, "{from} > {to}");
        assert_eq!(stack.udp_recv(socket, &mut [0], false), Err(Error::WouldBlock));
    }
    assert_eq!(stack.drops()["ip-source"], 12);
}
