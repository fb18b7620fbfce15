//! What fuzz targets of the stack assert. Shared with the test that replays their seeds.

// A check fails by panicking.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use netyard_stack::config::Config;
use netyard_stack::{ListenerId, Medium, NicIndex, RawId, Settings, Stack, TcpId, UdpId, sniffer};
use netyard_wire::build::TcpFrame;
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::ip::{self, IpPacket};
use netyard_wire::tcp::{Flags, Segment, TcpOptions};
use netyard_wire::{Checksum, Features, Frame, FrameBuf, MacAddr, Offload, SeqNumber, fit};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// Whatever comes, what is sent at a time ends.
const MOST: usize = 100_000;

/// A configuration: whatever it says, what is printed of it means the same.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(parsed) = Config::parse(text) {
        let printed = parsed.config.to_string();
        let again = Config::parse(&printed).unwrap_or_else(|errors| panic!("{printed}\n{errors}"));
        assert_eq!(again.config, parsed.config, "{printed}");
    }
}

/// A frame that is told of, and taken by a stack: neither panics.
pub fn frame(input: &[u8]) {
    let frame = Frame { bytes: input, offload: Offload::default() };
    assert!(!sniffer::describe(frame).is_empty());
    let mut lab = Lab::new();
    lab.stack.handle_frame(lab.now, lab.nic, frame);
    lab.settle();
}

/// What happens to a stack, one after the other: frames and segments that come, calls of a program, time.
pub fn stack(input: &[u8]) {
    let mut lab = Lab::new();
    let mut bytes = Bytes(input);
    while let Some(kind) = bytes.next() {
        match kind % 8 {
            0 => {
                let len = usize::from(bytes.or_zero());
                let frame = bytes.take(len);
                lab.stack.handle_frame(
                    lab.now,
                    lab.nic,
                    Frame { bytes: frame, offload: Offload::default() },
                );
            }
            1 => lab.now += Duration::from_millis(u64::from(bytes.or_zero()) * 40),
            2..6 => lab.segment(&mut bytes),
            _ => lab.call(&mut bytes),
        }
        lab.settle();
    }
    // Left alone, everything comes to an end but what a program holds.
    for id in std::mem::take(&mut lab.open) {
        lab.stack.tcp_close(lab.now, id);
    }
    lab.stack.tcp_close_listener(lab.now, lab.listener);
    lab.settle();
    let end = lab.now + Duration::from_secs(7200);
    while let Some(due) = lab.stack.poll_timeout().filter(|due| *due <= end) {
        lab.now = lab.now.max(due);
        lab.settle();
    }
    assert_eq!(lab.stack.counts(), Default::default());
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn or_zero(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

struct Lab {
    stack: Stack,
    nic: NicIndex,
    now: Instant,
    listener: ListenerId,
    datagrams: UdpId,
    packets: [RawId; 2],
    open: Vec<TcpId>,
    /// By the peer's port: the next numbers of stack and peer.
    numbers: HashMap<u16, (SeqNumber, SeqNumber)>,
}

impl Lab {
    fn new() -> Self {
        let now = Instant::now();
        let mut stack = Stack::new(now, [7; 32], Settings::default());
        let nic = stack.add_nic(Medium::Ethernet(MAC), 1500).unwrap();
        for net in ["10.0.0.1/24", "fd00::1/64"] {
            stack.add_address(now, nic, net.parse().unwrap()).unwrap();
        }
        stack.enable_autoconf(now, nic).unwrap();
        stack.set_neighbor(nic, PEER.into(), PEER_MAC);
        let listener = stack.tcp_listen(SocketAddr::from((OWN, 80)), 4).unwrap();
        let datagrams = stack.udp_bind("[::]:53".parse().unwrap()).unwrap();
        let packets = [("0.0.0.0:0", 1), ("[::]:0", 58)]
            .map(|(at, protocol)| stack.raw_open(at.parse().unwrap(), protocol).unwrap());
        let (open, numbers) = (Vec::new(), HashMap::new());
        let mut lab = Self { stack, nic, now, listener, datagrams, packets, open, numbers };
        lab.settle();
        lab
    }

    /// A segment of the peer, near what is expected of it.
    fn segment(&mut self, bytes: &mut Bytes<'_>) {
        const FLAGS: [Flags; 6] =
            [Flags::SYN, Flags::ACK, Flags::FIN, Flags::RST, Flags::PSH, Flags::URG];
        let port = 5000 + u16::from(bytes.or_zero() % 4);
        let bits = bytes.or_zero();
        let chosen = FLAGS.iter().enumerate().filter(|(number, _)| bits & (1 << number) != 0);
        let flags = chosen.fold(Flags::NONE, |flags, (_, flag)| flags | *flag);
        let (stack, peer) = self.numbers.get(&port).copied().unwrap_or_default();
        let near = |byte: u8| u32::from_ne_bytes((i32::from(byte as i8) * 97).to_ne_bytes());
        let (seq, ack) = (bytes.or_zero(), bytes.or_zero());
        let window = u16::from(bytes.or_zero()) << (bits >> 6);
        let mut options = TcpOptions::default();
        let told = bytes.or_zero();
        if told & 1 != 0 {
            options.timestamps = Some((u32::from(told), 0));
        }
        options.sack_permitted = told & 2 != 0;
        options.window_scale = (told & 4 != 0).then_some(told >> 4);
        options.mss = (told & 8 != 0).then_some(u16::from(told) * 20);
        let blocks = usize::from(bytes.or_zero() % 4);
        for block in options.sack.iter_mut().take(blocks) {
            let left = stack + near(bytes.or_zero());
            *block = Some((left, left + u32::from(bytes.or_zero()) * 3));
        }
        let header = TcpFrame {
            source_mac: PEER_MAC,
            destination_mac: MAC,
            source: SocketAddr::new(PEER.into(), port),
            destination: SocketAddr::new(OWN.into(), 80),
            seq: peer + near(seq),
            ack: stack + near(ack),
            flags,
            window,
            options,
            hop_limit: 64,
            traffic_class: 0,
            ip_id: 0,
        };
        let mut frame = vec![0; header.header_len() + usize::from(bytes.or_zero())];
        let offload = header.emit(&mut frame, u16::MAX);
        self.stack.handle_frame(self.now, self.nic, Frame { bytes: &frame, offload });
    }

    fn call(&mut self, bytes: &mut Bytes<'_>) {
        let (what, which) = (bytes.or_zero(), usize::from(bytes.or_zero()));
        if let Ok((id, _)) = self.stack.tcp_accept(self.listener) {
            self.open.push(id);
        }
        let mut buffer = [0; 3000];
        // What cannot be done is an error, and nothing else.
        if what % 6 == 5 {
            let _ = self.stack.raw_recv(self.packets[which % 2], &mut buffer, false);
            return;
        }
        let Some(id) = self.open.get(which % self.open.len().max(1)).copied() else { return };
        let _ = match what % 6 {
            0 => self.stack.tcp_send(id, &buffer).map(drop),
            1 => self.stack.tcp_recv(self.now, id, &mut buffer, what & 128 != 0).map(drop),
            2 => self.stack.tcp_shutdown(id, what & 64 != 0, what & 128 != 0),
            3 => {
                self.open.retain(|other| *other != id);
                self.stack.tcp_close(self.now, id);
                Ok(())
            }
            _ => self.stack.udp_recv(self.datagrams, &mut buffer, false).map(drop),
        };
    }

    /// Lets the stack do what is due; everything that it sends can be read, and is right.
    fn settle(&mut self) {
        self.stack.handle_timeout(self.now);
        while self.stack.poll_event().is_some() {}
        let (mut frame, mut scratch, mut count) = (FrameBuf::default(), Vec::new(), 0);
        while self.stack.poll_transmit(self.now, &mut frame).is_some() {
            count += 1;
            assert!(count < MOST, "it sends and sends");
            fit(frame.as_frame(), Features::NONE, &mut scratch, &mut |part| {
                let (header, packet) = Ethernet::parse(part.bytes).unwrap();
                if header.ethertype == ethernet::ARP {
                    return;
                }
                let packet = IpPacket::parse(header.ethertype, packet).unwrap();
                if packet.protocol != ip::TCP {
                    return;
                }
                let segment = Segment::parse(&packet, Checksum::Present).unwrap();
                if packet.destination == IpAddr::from(PEER) {
                    let own = segment.payload.len()
                        + usize::from(segment.flags.contains(Flags::SYN))
                        + usize::from(segment.flags.contains(Flags::FIN));
                    let numbers = (segment.seq + own, segment.ack);
                    self.numbers.insert(segment.destination_port, numbers);
                }
            })
            .unwrap();
        }
    }
}
