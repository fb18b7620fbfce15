//! Scripts: segments that a peer sends, calls of the program, and segments that must come, each at its
//! time, in a notation like packetdrill's.
//!
//! ```text
//! 0.1 < S 0:0(0) win 65535 <mss 1000,sackOK>      the peer sends
//! 0.1 > S. 0:0(0) ack 1 <mss 1460,sackOK>         the stack must send; options only where given
//! 0.2 write 4000                                  the program calls
//! ```
//!
//! The peer's numbers begin at 0; so do the stack's, as they are shown here. What the stack sends
//! and no line expects is a failure.

// Each test binary uses its own part; a test fails by panicking.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netyard_stack::{
    Error, Event, Keepalive, ListenerId, Medium, NicIndex, Options, Settings, Stack, State, TcpId,
};
use netyard_wire::build::{self, TcpFrame};
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::icmp::IcmpError;
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::{Flags, Segment, TcpOptions};
use netyard_wire::{Checksum, Frame, FrameBuf, MacAddr, Offload, SeqNumber};

/// How far the time of a segment may be off: the wheel's tick, and a rounding.
const TOLERANCE: Duration = Duration::from_millis(3);
const NONE: MacAddr = MacAddr([0; 6]);

/// A connection that a peer has opened, with segments of 1000 bytes, without timestamps.
pub const ACCEPTED: &str = "
    0.0 listen
    0.0 < S 0:0(0) win 60000 <mss 1000,sackOK,wscale 0>
    0.0 > S. 0:0(0) ack 1 <mss 1460,sackOK,wscale 7>
    0.1 < . 1:1(0) ack 1 win 60000
    0.1 accept";

/// The same without SACK.
pub const PLAIN: &str = "
    0.0 listen
    0.0 < S 0:0(0) win 60000 <mss 1000>
    0.0 > S. 0:0(0) ack 1 <mss 1460>
    0.1 < . 1:1(0) ack 1 win 60000
    0.1 accept";

/// A connection that a peer has opened, with timestamps; segments carry 988 bytes of the 1000.
pub const STAMPED: &str = "
    0.0 listen
    0.0 < S 0:0(0) win 60000 <mss 1000,sackOK,TS 1000>
    0.0 > S. 0:0(0) ack 1
    0.1 < . 1:1(0) ack 1 win 60000 <TS 1100>
    0.1 accept";

pub struct Script {
    stack: Stack,
    nic: NicIndex,
    start: Instant,
    now: Instant,
    local: SocketAddr,
    remote: SocketAddr,
    listener: Option<ListenerId>,
    id: Option<TcpId>,
    options: Options,
    /// The stack's initial sequence number, once it has sent a SYN.
    iss: Option<SeqNumber>,
    /// The same by the port of the peer.
    numbers: HashMap<u16, SeqNumber>,
    sent: VecDeque<(Instant, FrameBuf)>,
    last: Option<FrameBuf>,
    /// The clock of the peer's timestamps, and the last one of the stack.
    echo: u32,
    line: String,
}

/// Runs a script over IPv4.
pub fn play(settings: Settings, script: &str) {
    play_over("10.0.0.1:80", "10.0.0.2:5000", settings, script);
}

/// The same with a connection that is there already.
pub fn play_after(settings: Settings, prelude: &str, script: &str) {
    play(settings, &format!("{prelude}\n{script}"));
}

pub fn play_over(local: &str, remote: &str, settings: Settings, script: &str) {
    let start = Instant::now();
    let mut stack = Stack::new(start, [9; 32], settings);
    let nic = stack.add_nic(Medium::Ip, 1500).unwrap();
    for net in ["10.0.0.1/24", "fd00::1/64"] {
        stack.add_address(start, nic, net.parse().unwrap()).unwrap();
    }
    let mut player = Script {
        stack,
        nic,
        start,
        now: start,
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        listener: None,
        id: None,
        options: Options::default(),
        iss: None,
        numbers: HashMap::new(),
        sent: VecDeque::new(),
        last: None,
        echo: 0,
        line: String::new(),
    };
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        player.line = line.to_owned();
        player.play(line);
    }
    assert!(player.sent.is_empty(), "at the end: unexpected {:?}", player.describe_next());
}

impl Script {
    fn play(&mut self, line: &str) {
        let (time, rest) = line.split_once(' ').expect("a time and an action");
        let at = self.start + Duration::from_secs_f64(time.parse().expect("a time in seconds"));
        match rest.split_once(' ').unwrap_or((rest, "")) {
            (">", segment) => self.expect(at, segment),
            ("<", segment) => {
                self.reach(at);
                self.inject(segment);
            }
            (call, argument) => {
                self.reach(at);
                self.call(call, argument);
            }
        }
        self.flush();
    }

    /// Lets time pass; nothing may be sent that no line has expected.
    fn reach(&mut self, at: Instant) {
        self.run(at);
        assert!(
            self.sent.is_empty(),
            "before `{}`: unexpected {}",
            self.line,
            self.describe_next()
        );
    }

    fn run(&mut self, until: Instant) {
        self.flush();
        while let Some(due) = self.stack.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.stack.handle_timeout(self.now);
            self.flush();
        }
        self.now = self.now.max(until);
    }

    fn flush(&mut self) {
        let mut frame = FrameBuf::default();
        while self.stack.poll_transmit(self.now, &mut frame).is_some() {
            self.sent.push_back((self.now, frame.clone()));
        }
    }

    fn describe_next(&self) -> String {
        let Some((at, frame)) = self.sent.front() else { return "nothing".to_owned() };
        let at = (*at - self.start).as_secs_f64();
        let packet = parse(frame);
        let segment = Segment::parse(&packet, Checksum::Valid).unwrap();
        let (seq, end) = (self.relative(segment.seq), segment.seq + segment.payload.len());
        let (end, ack) = (self.relative(end), segment.ack);
        format!("{at:.3} > {:?} {seq}:{end} ack {ack} {:?}", segment.flags, segment.options)
    }

    fn relative(&self, seq: SeqNumber) -> u32 {
        seq.0.wrapping_sub(self.iss.unwrap_or_default().0)
    }

    fn expect(&mut self, at: Instant, text: &str) {
        self.flush();
        while self.sent.is_empty()
            && let Some(due) = self.stack.poll_timeout().filter(|due| *due <= at + TOLERANCE)
        {
            self.now = self.now.max(due);
            self.stack.handle_timeout(self.now);
            self.flush();
        }
        let wanted = Wanted::parse(text);
        let line = self.line.clone();
        let Some((sent_at, frame)) = self.sent.pop_front() else {
            panic!("`{line}`: nothing was sent");
        };
        let packet = parse(&frame);
        let segment = Segment::parse(&packet, Checksum::Valid).unwrap();
        if segment.flags.contains(Flags::SYN) {
            self.iss = Some(segment.seq);
            self.numbers.insert(segment.destination_port, segment.seq);
        }
        self.remote.set_port(segment.destination_port);
        self.local.set_port(segment.source_port);
        self.echo = segment.options.timestamps.map_or(self.echo, |(value, _)| value);
        let seq = self.relative(segment.seq);
        let shown = format!(
            "{:.3} > {:?} {seq}({}) ack {} win {} {:?}",
            (sent_at - self.start).as_secs_f64(),
            segment.flags,
            segment.payload.len(),
            segment.ack,
            segment.window,
            segment.options
        );
        let late = sent_at.max(at) - sent_at.min(at);
        assert!(late <= TOLERANCE, "`{line}`: at another time: {shown}");
        assert_eq!(segment.flags, wanted.flags, "`{line}`: {shown}");
        let reset = segment.flags.contains(Flags::RST) && self.iss.is_none();
        let found = if reset { segment.seq.0 } else { seq };
        assert_eq!((found, segment.payload.len()), (wanted.seq, wanted.len), "`{line}`: {shown}");
        if segment.flags.contains(Flags::ACK) {
            assert_eq!(segment.ack.0, wanted.ack, "`{line}`: {shown}");
        }
        if let Some(window) = wanted.window {
            assert_eq!(segment.window, window, "`{line}`: {shown}");
        }
        if let Some(options) = wanted.options {
            let timestamps = segment.options.timestamps.filter(|_| options.timestamps.is_some());
            assert_eq!(timestamps.is_some(), options.timestamps.is_some(), "`{line}`: {shown}");
            assert_eq!(segment.options, TcpOptions { timestamps, ..options }, "`{line}`: {shown}");
        }
        self.last = Some(frame);
    }

    fn inject(&mut self, text: &str) {
        let wanted = Wanted::parse(text);
        let iss = self.iss.unwrap_or_default();
        let mut options = wanted.options.unwrap_or_default();
        // The peer acknowledges selectively in the stack's numbers, and echoes its clock.
        options.sack =
            options.sack.map(|block| block.map(|(left, right)| (iss + left.0, iss + right.0)));
        options.timestamps = options.timestamps.map(|(value, _)| (value, self.echo));
        let header = TcpFrame {
            source_mac: NONE,
            destination_mac: NONE,
            source: self.remote,
            destination: self.local,
            seq: SeqNumber(wanted.seq),
            ack: if wanted.flags.contains(Flags::ACK) { iss + wanted.ack } else { SeqNumber(0) },
            flags: wanted.flags,
            window: wanted.window.unwrap_or(0),
            options,
            hop_limit: 64,
            traffic_class: 0,
            ip_id: 0,
        };
        let mut frame = vec![0; header.header_len() + wanted.len];
        let offload = header.emit(&mut frame, u16::MAX);
        let frame = Frame { bytes: &frame, offload };
        self.stack.handle_frame(self.now, self.nic, frame);
    }

    fn call(&mut self, call: &str, argument: &str) {
        let number = || argument.parse::<usize>().expect("a number");
        let line = self.line.clone();
        match call {
            "listen" => {
                let backlog = argument.parse().unwrap_or(8);
                self.listener = Some(self.stack.tcp_listen(self.local, backlog).unwrap());
            }
            "connect" => {
                let local = Some(self.local).filter(|_| argument == "bound");
                let id = self.stack.tcp_connect(self.now, self.remote, local).unwrap();
                self.stack.tcp_set_options(id, self.options).unwrap();
                self.id = Some(id);
            }
            "accept" => {
                let (id, from) = self.stack.tcp_accept(self.listener.unwrap()).expect(&line);
                assert_eq!(from, self.remote);
                self.id = Some(id);
            }
            "no-accept" => {
                let accepted = self.stack.tcp_accept(self.listener.unwrap());
                assert_eq!(accepted, Err(Error::WouldBlock), "`{line}`");
            }
            "write" => {
                let data = vec![7; number()];
                assert_eq!(self.stack.tcp_send(self.id(), &data), Ok(data.len()), "`{line}`");
            }
            "write-fails" => {
                let error = self.stack.tcp_send(self.id(), b"x").unwrap_err();
                assert_eq!(format!("{error:?}"), argument, "`{line}`");
            }
            "read" => {
                let mut buffer = vec![0; 1 << 20];
                let got = self.stack.tcp_recv(self.now, self.id.unwrap(), &mut buffer, false);
                assert_eq!(got, Ok(number()), "`{line}`");
            }
            "read-fails" => {
                let error =
                    self.stack.tcp_recv(self.now, self.id.unwrap(), &mut [0], false).unwrap_err();
                assert_eq!(format!("{error:?}"), argument, "`{line}`");
            }
            "error" => {
                let error = self.stack.tcp_take_error(self.id()).unwrap();
                let error = error.map_or("none".to_owned(), |error| format!("{error:?}"));
                assert_eq!(error, argument, "`{line}`");
            }
            "state" => {
                let state: State = self.stack.tcp_info(self.id()).unwrap().state;
                assert_eq!(format!("{state:?}"), argument, "`{line}`");
            }
            "told" => {
                let event = self.id.map(Event::Tcp);
                assert_eq!(self.stack.poll_event(), event, "`{line}`");
            }
            "untold" => assert_eq!(self.stack.poll_event(), None, "`{line}`"),
            "readable" => {
                let readable = self.stack.tcp_is_readable(self.id());
                assert_eq!(readable.to_string(), argument, "`{line}`");
            }
            "shutdown" => self.stack.tcp_shutdown(self.id(), false, true).unwrap(),
            "shutdown-read" => self.stack.tcp_shutdown(self.id(), true, false).unwrap(),
            "close" => self.stack.tcp_close(self.now, self.id()),
            "counts" => {
                let counts = self.stack.counts();
                let counts =
                    format!("{} {} {}", counts.connections, counts.opening, counts.time_wait);
                assert_eq!(counts, argument, "`{line}`");
            }
            "window" => {
                let window = self.stack.tcp_info(self.id()).unwrap().congestion_window;
                assert_eq!(window.to_string(), argument, "`{line}`");
            }
            "no-delay" => self.set(|options| options.no_delay = true),
            "reset-on-close" => self.set(|options| options.reset_on_close = true),
            "user-timeout" => {
                let limit = Duration::from_millis(number().try_into().unwrap());
                self.set(|options| options.user_timeout = Some(limit));
            }
            "keepalive" => {
                let (idle, interval) = (Duration::from_secs(60), Duration::from_secs(10));
                let keepalive = Keepalive { idle, interval, count: 2 };
                self.set(|options| options.keepalive = Some(keepalive));
            }
            "icmp" => self.icmp(argument),
            // Another peer speaks from now on.
            "port" => {
                self.remote.set_port(number().try_into().unwrap());
                self.iss = self.numbers.get(&self.remote.port()).copied();
            }
            "flood" => self.flood(number()),
            _ => panic!("`{line}`: no such call"),
        }
    }

    /// SYNs of so many others, who never answer.
    fn flood(&mut self, count: usize) {
        let ours = self.remote;
        for port in 6000..6000 + u16::try_from(count).unwrap() {
            self.remote.set_port(port);
            self.inject("S 77:77(0) win 1000 <mss 1000>");
            self.flush();
            assert_eq!(self.sent.len(), 1, "each is answered");
            self.sent.clear();
        }
        self.remote = ours;
    }

    fn id(&self) -> TcpId {
        self.id.expect("a connection")
    }

    fn set(&mut self, change: impl FnOnce(&mut Options)) {
        change(&mut self.options);
        if let Some(id) = self.id {
            self.stack.tcp_set_options(id, self.options).unwrap();
        }
    }

    /// An ICMP error about the last segment that the stack sent; `stale`: about one long gone.
    fn icmp(&mut self, argument: &str) {
        let mut words = argument.split(' ');
        let error = match words.next() {
            Some("port") => IcmpError::PortUnreachable,
            Some("host") => IcmpError::HostUnreachable,
            Some("net") => IcmpError::NetworkUnreachable,
            Some("too-big") => IcmpError::TooBig(words.next().unwrap().parse().unwrap()),
            found => panic!("`{}`: no such error: {found:?}", self.line),
        };
        let mut original = self.last.clone().expect("a segment").bytes.split_off(14);
        if words.next() == Some("stale") {
            let header = if self.local.is_ipv4() { 20 } else { 40 };
            original[header + 4..header + 8].copy_from_slice(&[1, 2, 3, 4]);
        }
        let mut bytes = Vec::new();
        let (from, to) = (self.remote.ip(), self.local.ip());
        build::icmp_error(&mut bytes, NONE, NONE, from, to, error, &original);
        let frame = Frame { bytes: &bytes, offload: Offload::default() };
        self.stack.handle_frame(self.now, self.nic, frame);
    }
}

fn parse(frame: &FrameBuf) -> IpPacket<'_> {
    let (header, packet) = Ethernet::parse(&frame.bytes).unwrap();
    assert!(matches!(header.ethertype, ethernet::IPV4 | ethernet::IPV6));
    IpPacket::parse(header.ethertype, packet).unwrap()
}

/// `FLAGS SEQ:END(LEN) [ack N] [win N] [<options>]`
struct Wanted {
    flags: Flags,
    seq: u32,
    len: usize,
    ack: u32,
    window: Option<u16>,
    options: Option<TcpOptions>,
}

impl Wanted {
    fn parse(text: &str) -> Self {
        let (text, options) = match text.split_once('<') {
            Some((text, options)) => (text, Some(options.trim_end_matches('>'))),
            None => (text, None),
        };
        let mut words = text.split_whitespace();
        let flags = words.next().expect("flags").chars().fold(Flags::NONE, |flags, letter| {
            flags
                | match letter {
                    'S' => Flags::SYN,
                    'F' => Flags::FIN,
                    'R' => Flags::RST,
                    'P' => Flags::PSH,
                    '.' => Flags::ACK,
                    other => panic!("no such flag: {other}"),
                }
        });
        let (seq, rest) = words.next().expect("numbers").split_once(':').expect("SEQ:END(LEN)");
        let (end, len) = rest.trim_end_matches(')').split_once('(').expect("END(LEN)");
        let seq: u32 = seq.parse().unwrap();
        let len: usize = len.parse().unwrap();
        assert_eq!(end.parse::<usize>().unwrap(), usize::try_from(seq).unwrap() + len, "{text}");
        let mut wanted = Self { flags, seq, len, ack: 0, window: None, options: None };
        while let Some(word) = words.next() {
            let value = words.next().expect("a number");
            match word {
                "ack" => wanted.ack = value.parse().unwrap(),
                "win" => wanted.window = Some(value.parse().unwrap()),
                other => panic!("{text}: {other}"),
            }
        }
        wanted.options = options.map(Self::options);
        wanted
    }

    fn options(text: &str) -> TcpOptions {
        let mut options = TcpOptions::default();
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once(' ').unwrap_or((option, ""));
            match name {
                "mss" => options.mss = value.parse().ok(),
                "wscale" => options.window_scale = value.parse().ok(),
                "sackOK" => options.sack_permitted = true,
                // The value; the echo is filled in, or not looked at.
                "TS" => options.timestamps = Some((value.parse().unwrap_or(0), 0)),
                "sack" => {
                    for (slot, block) in options.sack.iter_mut().zip(value.split(' ')) {
                        let (left, right) = block.split_once(':').expect("LEFT:RIGHT");
                        let number = |text: &str| SeqNumber(text.parse().unwrap());
                        *slot = Some((number(left), number(right)));
                    }
                }
                other => panic!("no such option: {other}"),
            }
        }
        options
    }
}
