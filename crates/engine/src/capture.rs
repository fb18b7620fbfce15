//! Captures: what passes the plugs of a network in user mode, as pcapng, for who asked.
//!
//! # Theory of operation
//!
//! The network's thread looks at each frame with the [`Filter`] of each capture, copies what is wanted, and
//! hands it to the capture's own thread, which writes it. That one may wait for whoever reads; the network
//! does not: what finds no room between them is missed, and the next packet of that plug says how many were.
//! A capture ends with its member, or when nobody reads any more.
//!
//! Frames are seen where they enter a plug's link: before its delay and loss.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::ip::{self, IpPacket};
use netyard_wire::pcapng::{self, Link, Packet, Way};
use netyard_wire::{Features, Frame, FrameBuf, Offload, fit};
use serde::{Deserialize, Serialize};

use crate::edge::PlugId;

/// What waits between the network and who writes, at most: frames, and bytes of them.
const MAX_FRAMES: usize = 4_096;
const MAX_BYTES: usize = 16 << 20;
/// Captures of one network at a time: each looks at every frame.
pub(crate) const MAX_CAPTURES: usize = 8;

/// What a capture is to have: frames that fit each kind of condition, whichever of its kind. A kind without
/// conditions fits all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter {
    /// Instances, by the names of their plugs.
    pub instances: Vec<String>,
    /// Ports of TCP and UDP, at either end.
    pub ports: Vec<u16>,
    /// Prefixes with the address of either end.
    pub prefixes: Vec<IpNet>,
    /// Protocols.
    pub protocols: Vec<Kind>,
    /// Super-frames are cut to the packets that they stand for.
    pub segment: bool,
}

/// A protocol, as far as captures tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP of both families, with neighbour discovery and router advertisements.
    Icmp,
    /// ARP.
    Arp,
}

impl Filter {
    fn fits(&self, instance: &str, frame: &[u8]) -> bool {
        self.names(instance)
            && (self.protocols.is_empty() && self.prefixes.is_empty() && self.ports.is_empty()
                || Seen::parse(frame).is_some_and(|seen| self.fits_seen(&seen)))
    }

    fn names(&self, instance: &str) -> bool {
        self.instances.is_empty() || self.instances.iter().any(|name| name == instance)
    }

    fn fits_seen(&self, seen: &Seen) -> bool {
        let ends = &seen.addresses;
        let within = |net: &IpNet| ends.iter().flatten().any(|address| net.contains(address));
        let at = |port: &u16| seen.ports.iter().flatten().any(|found| found == port);
        (self.protocols.is_empty() || seen.kind.is_some_and(|kind| self.protocols.contains(&kind)))
            && (self.prefixes.is_empty() || self.prefixes.iter().any(within))
            && (self.ports.is_empty() || self.ports.iter().any(at))
    }
}

/// What a filter looks at.
#[derive(Debug, Default)]
struct Seen {
    kind: Option<Kind>,
    addresses: [Option<IpAddr>; 2],
    ports: [Option<u16>; 2],
}

impl Seen {
    /// `None`: neither IP nor ARP.
    fn parse(frame: &[u8]) -> Option<Self> {
        let (header, bytes) = Ethernet::parse(frame).ok()?;
        if header.ethertype == ethernet::ARP {
            return Some(Self { kind: Some(Kind::Arp), ..Self::default() });
        }
        let packet = IpPacket::parse(header.ethertype, bytes).ok()?;
        let kind = match packet.protocol {
            ip::TCP => Some(Kind::Tcp),
            ip::UDP => Some(Kind::Udp),
            ip::ICMP | ip::ICMPV6 => Some(Kind::Icmp),
            _ => None,
        };
        // Both protocols begin with their ports; later fragments have none.
        let ports = match (kind, packet.payload.first_chunk(), packet.fragment) {
            (Some(Kind::Tcp | Kind::Udp), Some([a, b, c, d]), None) => {
                [Some(u16::from_be_bytes([*a, *b])), Some(u16::from_be_bytes([*c, *d]))]
            }
            _ => [None; 2],
        };
        Some(Self { kind, addresses: [Some(packet.source), Some(packet.destination)], ports })
    }
}

/// The captures of a network.
#[derive(Debug, Default)]
pub(crate) struct Captures(Vec<Capture>);

#[derive(Debug)]
struct Capture {
    member: String,
    filter: Filter,
    records: SyncSender<Record>,
    /// Bytes on their way to the thread.
    waiting: Arc<AtomicUsize>,
    /// Frames that found no room, by plug, since its last one that did.
    missed: HashMap<PlugId, u64>,
    over: bool,
}

#[derive(Debug)]
struct Record {
    plug: PlugId,
    instance: Arc<str>,
    at: SystemTime,
    way: Way,
    missed: u64,
    frame: FrameBuf,
}

impl Captures {
    /// Begins a capture of `member`, which is written to `to`.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn begin(&mut self, member: &str, filter: Filter, to: OwnedFd) -> io::Result<()> {
        let (records, taken) = sync_channel(MAX_FRAMES);
        let waiting = Arc::new(AtomicUsize::new(0));
        let (left, segment) = (Arc::clone(&waiting), filter.segment);
        thread::Builder::new().name("capture".to_owned()).spawn(move || {
            // Whoever reads has gone; the network finds out with the next frame.
            let _ = write(File::from(to), &taken, &left, segment);
        })?;
        let member = member.to_owned();
        let missed = HashMap::new();
        self.0.push(Capture { member, filter, records, waiting, missed, over: false });
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether one of them would see what an instance sends and gets.
    pub(crate) fn look_at(&self, instance: &str) -> bool {
        self.0.iter().any(|capture| capture.filter.names(instance))
    }

    pub(crate) fn remove_member(&mut self, member: &str) {
        self.0.retain(|capture| capture.member != member);
    }

    /// Looks at a frame of a plug; `way` from the instance's side.
    pub(crate) fn see(&mut self, plug: PlugId, instance: &Arc<str>, way: Way, frame: Frame<'_>) {
        if self.0.is_empty() {
            return;
        }
        for capture in &mut self.0 {
            if capture.filter.fits(instance, frame.bytes) {
                capture.take(plug, instance, way, frame);
            }
        }
        self.0.retain(|capture| !capture.over);
    }
}

impl Capture {
    fn take(&mut self, plug: PlugId, instance: &Arc<str>, way: Way, frame: Frame<'_>) {
        let len = frame.bytes.len();
        let missed = self.missed.entry(plug).or_default();
        if self.waiting.load(Ordering::Relaxed) + len > MAX_BYTES {
            *missed += 1;
            return;
        }
        let instance = Arc::clone(instance);
        let at = SystemTime::now();
        let record = Record { plug, instance, at, way, missed: *missed, frame: frame.into() };
        // Counted first: the thread takes it off as soon as it has the record.
        self.waiting.fetch_add(len, Ordering::Relaxed);
        match self.records.try_send(record) {
            Ok(()) => *missed = 0,
            Err(error) => {
                self.waiting.fetch_sub(len, Ordering::Relaxed);
                *missed += 1;
                self.over |= matches!(error, std::sync::mpsc::TrySendError::Disconnected(_));
            }
        }
    }
}

/// Writes a capture until it ends.
fn write(
    to: File,
    records: &Receiver<Record>,
    waiting: &AtomicUsize,
    segment: bool,
) -> io::Result<()> {
    let mut out = BufWriter::new(to);
    let mut interfaces: HashMap<PlugId, u32> = HashMap::new();
    let mut scratch = Vec::new();
    out.write_all(&pcapng::section())?;
    loop {
        let record = match records.try_recv() {
            Ok(record) => record,
            Err(TryRecvError::Empty) => {
                out.flush()?;
                match records.recv() {
                    Ok(record) => record,
                    Err(_) => return Ok(()),
                }
            }
            Err(TryRecvError::Disconnected) => return out.flush(),
        };
        waiting.fetch_sub(record.frame.bytes.len(), Ordering::Relaxed);
        let next = u32::try_from(interfaces.len()).unwrap_or(u32::MAX);
        let interface = *interfaces.entry(record.plug).or_insert(next);
        if interface == next {
            out.write_all(&pcapng::interface(Link::Ethernet, &record.instance))?;
        }
        let since = record.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let mut missed = record.missed;
        let mut written = Ok(());
        let mut emit = |frame: Frame<'_>| {
            let (way, bytes) = (record.way, frame.bytes);
            let packet = Packet { interface, nanoseconds, way, missed, bytes };
            missed = 0;
            if written.is_ok() {
                written = out.write_all(&pcapng::packet(&packet));
            }
        };
        let frame = record.frame.as_frame();
        let offload = Offload { gso: frame.offload.gso.filter(|_| segment), ..frame.offload };
        // Frames that do not suit their offloads were dropped before they got here.
        let _ = fit(Frame { offload, ..frame }, Features::NONE, &mut scratch, &mut emit);
        written?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::SocketAddr;

    use netyard_wire::build::{self, TcpFrame};
    use netyard_wire::tcp::{Flags, TcpOptions};
    use netyard_wire::{MacAddr, SeqNumber};

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn datagram(from: &str, to: &str, len: usize) -> FrameBuf {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut frame = FrameBuf::default();
        frame.offload = build::udp_frame(&mut frame.bytes, A, B, from, to, 64, &vec![7; len]);
        frame
    }

    #[test]
    fn a_filter_takes_what_fits_each_kind_of_condition() {
        let frame = datagram("10.0.0.2:4000", "10.0.0.3:53", 10);
        let frame6 = datagram("[fd00::2]:4000", "[fd00::3]:80", 10);
        let fits =
            |filter: &Filter| (filter.fits("web", &frame.bytes), filter.fits("web", &frame6.bytes));
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let all = Filter::default();
        assert_eq!(fits(&all), (true, true));
        for (filter, wanted) in [
            (Filter { ports: vec![53], ..all.clone() }, (true, false)),
            (Filter { ports: vec![53, 80], ..all.clone() }, (true, true)),
            (Filter { prefixes: vec![net("10.0.0.0/8")], ..all.clone() }, (true, false)),
            (Filter { prefixes: vec![net("fd00::3/128")], ..all.clone() }, (false, true)),
            (Filter { protocols: vec![Kind::Tcp], ..all.clone() }, (false, false)),
            (Filter { protocols: vec![Kind::Tcp, Kind::Udp], ..all.clone() }, (true, true)),
            (Filter { instances: vec!["db".into()], ..all.clone() }, (false, false)),
            (Filter { instances: vec!["db".into(), "web".into()], ..all.clone() }, (true, true)),
            (Filter { ports: vec![53], protocols: vec![Kind::Tcp], ..all.clone() }, (false, false)),
        ] {
            assert_eq!(fits(&filter), wanted, "{filter:?}");
        }
        let odd = [0; 14];
        assert!(all.fits("web", &odd), "whatever it is");
        assert!(!Filter { protocols: vec![Kind::Arp], ..all }.fits("web", &odd));
    }

    #[test]
    fn packets_are_written_with_their_interface_and_the_file_ends_with_the_member() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut captures = Captures::default();
        captures.begin("me", Filter::default(), writer.into()).unwrap();
        let frame = datagram("10.0.0.2:4000", "10.0.0.3:53", 10);
        let (web, db): (Arc<str>, Arc<str>) = ("web".into(), "db".into());
        captures.see(PlugId(7), &web, Way::Out, frame.as_frame());
        captures.see(PlugId(9), &db, Way::In, frame.as_frame());
        captures.see(PlugId(7), &web, Way::Out, frame.as_frame());
        captures.remove_member("somebody else");
        assert_eq!(captures.len(), 1);
        captures.remove_member("me");
        let mut file = Vec::new();
        reader.read_to_end(&mut file).unwrap();
        let mut kinds = Vec::new();
        let mut rest = file.as_slice();
        while let Some(header) = rest.first_chunk() {
            let (packet, len) = pcapng::header(*header).unwrap();
            let interface = rest[8];
            kinds.push(packet.then_some(interface));
            rest = &rest[len..];
        }
        assert_eq!(kinds, [None, None, Some(0), None, Some(1), Some(0)]);
    }

    #[test]
    fn who_reads_nothing_holds_nobody_up_and_is_told_what_was_missed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut captures = Captures::default();
        captures.begin("me", Filter::default(), writer.into()).unwrap();
        let frame = datagram("10.0.0.2:4000", "10.0.0.3:53", 60_000);
        let web: Arc<str> = "web".into();
        let sent = 2_000;
        for _ in 0..sent {
            captures.see(PlugId(7), &web, Way::Out, frame.as_frame());
        }
        let missed = captures.0[0].missed[&PlugId(7)];
        assert!(missed > 0 && missed < sent, "{missed}");
        assert!(captures.0[0].waiting.load(Ordering::Relaxed) <= MAX_BYTES);
        drop(captures);
        let mut file = Vec::new();
        reader.read_to_end(&mut file).unwrap();
        let whole = u64::try_from(file.len()).unwrap() / 60_000;
        assert_eq!(whole, sent - missed);
    }

    #[test]
    fn super_frames_are_whole_or_cut_as_wished() {
        let header = TcpFrame {
            source_mac: A,
            destination_mac: B,
            source: "10.0.0.2:4000".parse().unwrap(),
            destination: "10.0.0.3:80".parse().unwrap(),
            seq: SeqNumber(1),
            ack: SeqNumber(1),
            flags: Flags::ACK,
            window: 1000,
            options: TcpOptions::default(),
            hop_limit: 64,
            traffic_class: 0,
            ip_id: 0,
        };
        let mut frame = FrameBuf { bytes: vec![7; header.header_len() + 3000], ..<_>::default() };
        frame.offload = header.emit(&mut frame.bytes, 1460);
        for (segment, wanted) in [(false, &[3054][..]), (true, &[1514, 1514, 134])] {
            let (mut reader, writer) = io::pipe().unwrap();
            let mut captures = Captures::default();
            let filter = Filter { segment, ..Filter::default() };
            captures.begin("me", filter, writer.into()).unwrap();
            captures.see(PlugId(7), &"web".into(), Way::Out, frame.as_frame());
            drop(captures);
            let mut file = Vec::new();
            reader.read_to_end(&mut file).unwrap();
            let mut lengths = Vec::new();
            let mut rest = file.as_slice();
            while let Some(header) = rest.first_chunk() {
                let (packet, len) = pcapng::header(*header).unwrap();
                if packet {
                    lengths.push(u32::from_le_bytes(rest[20..24].try_into().unwrap()));
                }
                rest = &rest[len..];
            }
            assert_eq!(lengths, wanted);
        }
    }

    #[test]
    fn a_capture_that_nobody_reads_any_more_ends() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut captures = Captures::default();
        captures.begin("me", Filter::default(), writer.into()).unwrap();
        let frame = datagram("10.0.0.2:4000", "10.0.0.3:53", 10);
        let web: Arc<str> = "web".into();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while captures.len() > 0 {
            assert!(std::time::Instant::now() < deadline, "it goes on");
            captures.see(PlugId(7), &web, Way::Out, frame.as_frame());
            thread::yield_now();
        }
    }
}
