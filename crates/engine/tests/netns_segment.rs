//! The segmenter beside the kernel's: a super-frame goes into a bridge by one TAP, and comes out by another one that
//! leaves the kernel all the work.
//!
//! The frames must be the same byte by byte, but for one thing: a transport checksum of which the sum is 0 may be
//! written as 0xffff, which is the same number in ones' complement (`netyard_wire::fit` does so for TCP, too).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use netyard_sys::tap::{Device, Layer, Tap};
use netyard_testbed::{isolate, peer, run, wait_for};
use netyard_wire::build::{TcpFrame, udp_frame_of_many};
use netyard_wire::ip::{TCP, UDP};
use netyard_wire::tcp::{Flags, TcpOptions};
use netyard_wire::{Features, FrameBuf, MacAddr, SeqNumber, fit};

const FROM: MacAddr = MacAddr([2, 0, 0, 0, 0, 8]);
const TO: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

/// A bridge of two TAPs.
struct Bridge {
    into: File,
    udp: bool,
    out: File,
}

impl Bridge {
    fn new() -> Self {
        // Nobody but the test says anything here.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let ip = |arguments: &str| {
            run(Command::new(peer("ip")).args(arguments.split(' ')));
        };
        ip("link add bridge type bridge mcast_snooping 0");
        let into = Tap::create("into").unwrap();
        let out = Device::create("out", Layer::Frames, false).unwrap();
        for tap in ["into", "out"] {
            ip(&format!("link set {tap} master bridge up"));
        }
        ip("link set bridge up");
        Self { udp: into.offloads.udp, into: into.fd.into(), out: out.fd.into() }
    }

    /// What the kernel makes of a frame, of which it is to make so many.
    fn cut(&mut self, frame: &FrameBuf, count: usize) -> Vec<Vec<u8>> {
        let written = [&frame.offload.encode()[..], &frame.bytes].concat();
        assert_eq!(self.into.write(&written).unwrap(), written.len());
        let mut frames = Vec::new();
        let mut buffer = vec![0; 70_000];
        wait_for("the kernel's segments", Duration::from_secs(20), || {
            while let Ok(len) = self.out.read(&mut buffer) {
                let bytes = &buffer[..len];
                if bytes.get(..12) == Some(&[TO.0, FROM.0].concat()[..]) {
                    frames.push(bytes.to_vec());
                }
            }
            (frames.len() >= count).then_some(())
        });
        frames
    }
}

/// What we make of it.
fn ours(frame: &FrameBuf) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let emit = &mut |part: netyard_wire::Frame<'_>| frames.push(part.bytes.to_vec());
    fit(frame.as_frame(), Features::NONE, &mut Vec::new(), emit).unwrap();
    frames
}

/// The same with a checksum of 0xffff written as 0.
fn plain(mut frame: Vec<u8>) -> Vec<u8> {
    let (protocol, transport) = if frame[12..14] == [8, 0] {
        (frame[14 + 9], 14 + usize::from(frame[14] & 15) * 4)
    } else {
        (frame[14 + 6], 14 + 40)
    };
    let at = match protocol {
        TCP => transport + 16,
        UDP => transport + 6,
        other => panic!("protocol {other}"),
    };
    if frame[at..at + 2] == [0xff, 0xff] {
        frame[at..at + 2].fill(0);
    }
    frame
}

fn ends(ipv4: bool) -> (SocketAddr, SocketAddr) {
    match ipv4 {
        true => ("192.0.2.1:4000".parse().unwrap(), "192.0.2.2:80".parse().unwrap()),
        false => ("[2001:db8::1]:4000".parse().unwrap(), "[2001:db8::2]:80".parse().unwrap()),
    }
}

/// Bytes of which no two segments are alike.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 13)).to_le_bytes()[0]).collect()
}

fn tcp(ipv4: bool, len: usize, mss: u16, flags: Flags, options: TcpOptions) -> FrameBuf {
    let (source, destination) = ends(ipv4);
    let headers = TcpFrame {
        source_mac: FROM,
        destination_mac: TO,
        source,
        destination,
        // Both wrap within the frame.
        seq: SeqNumber(u32::MAX - 2_000),
        ack: SeqNumber(77),
        flags,
        window: 500,
        options,
        hop_limit: 33,
        traffic_class: 2,
        ip_id: 0xfffe,
    };
    let header = headers.header_len();
    let mut bytes = vec![0; header + len];
    bytes[header..].copy_from_slice(&payload(len));
    let offload = headers.emit(&mut bytes, mss);
    FrameBuf { bytes, offload }
}

fn assert_same(bridge: &mut Bridge, frame: &FrameBuf, what: &str) {
    let ours = ours(frame);
    let kernels = bridge.cut(frame, ours.len());
    assert_eq!(ours.len(), kernels.len(), "{what}: count");
    for (number, (one, other)) in ours.into_iter().zip(kernels).enumerate() {
        let (one, other) = (plain(one), plain(other));
        let at = one.iter().zip(&other).position(|(one, other)| one != other);
        let lens = (one.len(), other.len());
        assert!(one == other, "{what}: segment {number} differs at {at:?}, lengths {lens:?}");
    }
}

#[test]
fn segments_are_those_of_the_kernel() {
    isolate(|| {
        let mut bridge = Bridge::new();
        let stamped = TcpOptions { timestamps: Some((7, 9)), ..TcpOptions::default() };
        let last = Flags::ACK | Flags::PSH | Flags::FIN;
        for ipv4 in [true, false] {
            for (len, mss) in
                [(0, 1460), (900, 1460), (1461, 1460), (2920, 1460), (65_000, 1448), (9_001, 536)]
            {
                for (flags, options) in [
                    (Flags::ACK, TcpOptions::default()),
                    (last, stamped),
                    (Flags::ACK | Flags::PSH | Flags::CWR | Flags::ECE, TcpOptions::default()),
                ] {
                    let frame = tcp(ipv4, len, mss, flags, options);
                    let what = format!("{len} bytes in {mss}, {flags:?}, IPv4 {ipv4}");
                    assert_same(&mut bridge, &frame, &what);
                }
            }
            // Datagrams of one frame: Linux 6.2 and later take them.
            for (len, size) in [(100, 1472), (3_000, 1_000), (3_001, 1_000), (60_000, 1_200)] {
                let mut bytes = Vec::new();
                let bulk = payload(len);
                let parts = [&bulk[..]];
                let offload =
                    udp_frame_of_many(&mut bytes, (FROM, TO), ends(ipv4), 33, parts, size);
                if offload.gso.is_none() || bridge.udp {
                    let frame = FrameBuf { bytes, offload };
                    let what = format!("{len} bytes in datagrams of {size}, IPv4 {ipv4}");
                    assert_same(&mut bridge, &frame, &what);
                }
            }
        }
    });
}

/// Which release of Linux this is: major and minor.
fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit());
    let mut next = || numbers.next().unwrap().parse().unwrap();
    (next(), next())
}

#[test]
fn taps_take_the_offloads_of_their_kernel() {
    isolate(|| {
        let tap = Tap::create("tap").unwrap();
        assert!(tap.offloads.tcp, "TUNSETOFFLOAD: checksums and segmentation of TCP");
        if release() >= (6, 2) {
            assert!(tap.offloads.udp, "TUNSETOFFLOAD: segmentation of UDP, since Linux 6.2");
        }
    });
}
