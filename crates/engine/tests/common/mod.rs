//! A network in virtual time: a scripted host behind [`Edge`], and a guest that speaks in frames.

// Each test binary uses its own part; a test fails by panicking.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netyard_engine::config::{Config, Dhcp, Uplink};
use netyard_engine::control::{
    PlugKind, PlugRequest, Plugged, ServiceInstance, ServiceSpec, TurnPolicy,
};
use netyard_engine::delivery::Delivery;
use netyard_engine::edge::{
    DatagramError, Echoed, Edge, PlugId, Poured, Readiness, SocketId, Then,
};
use netyard_engine::forward::Protocol;
use netyard_engine::network::Network;
use netyard_wire::build::TcpFrame;
use netyard_wire::ethernet::Ethernet;
use netyard_wire::ip::IpPacket;
use netyard_wire::tcp::{Flags, Segment, TcpOptions};
use netyard_wire::{Features, Frame, FrameBuf, MacAddr, SeqNumber};

/// One host socket: a stream, a listener, or one for datagrams.
#[derive(Debug, Default)]
pub struct Stream {
    /// Who it connects to.
    pub to: Option<SocketAddr>,
    /// Sent by the far end, not yet discarded.
    pub inbox: VecDeque<u8>,
    /// The far end has finished.
    pub inbox_ended: bool,
    /// Taken from the guest.
    pub outbox: Vec<u8>,
    /// Bytes that it still takes.
    pub room: usize,
    pub error: Option<io::ErrorKind>,
    pub shut: bool,
    pub closed: bool,
    pub reset: bool,
    /// The other end, if it is one of a pair.
    pub peer: Option<SocketId>,
    /// Datagrams that have arrived; the last one sent is `outbox`, and went to `to`.
    pub datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    /// What was reported about datagrams sent earlier.
    pub reports: VecDeque<DatagramError>,
    /// Clients that wait, if it is a listener.
    pub waiting: VecDeque<(SocketId, SocketAddr)>,
    pub listening: bool,
    pub bound: Option<SocketAddr>,
}

/// The world of the simulation.
#[derive(Debug, Default)]
pub struct World {
    pub streams: BTreeMap<u32, Stream>,
    next: u32,
    /// Members of groups, by card and whether it is IPv4's.
    pub members: BTreeMap<(u32, bool), SocketId>,
    /// Cards and families that take none.
    pub mute: BTreeSet<(u32, bool)>,
    /// Frames to guests, oldest first.
    pub frames: VecDeque<(PlugId, FrameBuf)>,
    /// Refuse frames, as a full plug does.
    pub refuse: bool,
    /// There are no descriptors for connections and datagrams to the outside.
    pub exhausted: bool,
    pub discards: usize,
    /// How many sockets inside are at hand, of plugs that have a supply.
    pub inside: BTreeMap<PlugId, usize>,
    /// Why no socket inside can be connected.
    pub unconnected: Option<io::ErrorKind>,
    /// Somebody looks at every plug.
    pub captured: bool,
    /// What sockets of pairs have to tell, oldest first.
    pub told: VecDeque<(SocketId, Readiness)>,
}

impl World {
    pub fn stream(&mut self, socket: SocketId) -> &mut Stream {
        self.streams.get_mut(&socket.0).expect("a socket that was handed out")
    }

    pub fn open(&mut self) -> SocketId {
        self.next += 1;
        self.streams.insert(self.next, Stream { room: 1 << 20, ..Stream::default() });
        SocketId(self.next)
    }

    /// A socket to the outside.
    fn open_outside(&mut self) -> io::Result<SocketId> {
        if self.exhausted { Err(io::ErrorKind::QuotaExceeded.into()) } else { Ok(self.open()) }
    }

    /// Tells the other end of a pair, if it is still there.
    fn tell_peer(&mut self, socket: SocketId, ready: Readiness) -> Option<&mut Stream> {
        let peer = self.stream(socket).peer?;
        if self.stream(peer).closed {
            return None;
        }
        self.told.push_back((peer, ready));
        Some(self.stream(peer))
    }

    /// The newest socket.
    pub fn last(&self) -> SocketId {
        SocketId(self.next)
    }
}

impl Edge for World {
    fn transmit(&mut self, plug: PlugId, frame: Frame<'_>) -> bool {
        if !self.refuse {
            self.frames.push_back((plug, frame.into()));
        }
        !self.refuse
    }

    fn tcp_connect(&mut self, to: SocketAddr) -> io::Result<SocketId> {
        let socket = self.open_outside()?;
        self.stream(socket).to = Some(to);
        Ok(socket)
    }

    fn connect_inside(
        &mut self,
        plug: PlugId,
        to: SocketAddr,
    ) -> io::Result<(SocketId, SocketAddr)> {
        let left = self.inside.get_mut(&plug).ok_or(io::ErrorKind::Unsupported)?;
        *left = left.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        if let Some(kind) = self.unconnected {
            return Err(kind.into());
        }
        let socket = self.tcp_connect(to)?;
        Ok((socket, SocketAddr::new(to.ip(), 40_000)))
    }

    fn is_captured(&self, _plug: PlugId) -> bool {
        self.captured
    }

    fn pour(&mut self, from: SocketId, to: SocketId) -> Poured {
        if self.stream(to).error.is_some() {
            return Poured { bytes: 0, then: Then::Refused };
        }
        assert!(!self.stream(to).shut, "pours after a FIN");
        let bytes = self.stream(from).inbox.len().min(self.stream(to).room);
        let poured: Vec<u8> = self.stream(from).inbox.drain(..bytes).collect();
        self.stream(to).outbox.extend(poured);
        self.stream(to).room -= bytes;
        let source = self.stream(from);
        let then = match (source.inbox.is_empty(), source.inbox_ended, source.error) {
            (false, ..) => Then::Full,
            (true, _, Some(_)) => Then::Broken,
            (true, true, None) => Then::Ended,
            (true, false, None) => Then::Dry,
        };
        Poured { bytes, then }
    }

    fn take_error(&mut self, socket: SocketId) -> io::Result<()> {
        match self.stream(socket).error.take() {
            Some(kind) => Err(kind.into()),
            None => Ok(()),
        }
    }

    fn tcp_accept(&mut self, listener: SocketId) -> io::Result<(SocketId, SocketAddr)> {
        self.stream(listener).waiting.pop_front().ok_or(io::ErrorKind::WouldBlock.into())
    }

    fn tcp_local(&mut self, _socket: SocketId) -> io::Result<SocketAddr> {
        Ok("203.0.113.9:8080".parse().unwrap())
    }

    fn tcp_bind(&mut self, at: SocketAddr) -> io::Result<SocketId> {
        if self.streams.values().any(|stream| stream.bound == Some(at) && !stream.closed) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let socket = self.open();
        self.stream(socket).bound = Some(at);
        Ok(socket)
    }

    fn set_listening(&mut self, listener: SocketId, listening: bool) -> io::Result<()> {
        self.stream(listener).listening = listening;
        Ok(())
    }

    fn adopt_listener(&mut self, _listener: OwnedFd) -> io::Result<SocketId> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn adopt_stream(&mut self, _stream: OwnedFd) -> io::Result<SocketId> {
        Ok(self.open())
    }

    fn stream_pair(&mut self) -> io::Result<(SocketId, SocketId)> {
        let (one, other) = (self.open(), self.open());
        self.stream(one).peer = Some(other);
        self.stream(other).peer = Some(one);
        for socket in [one, other] {
            self.told.push_back((socket, Readiness { writable: true, ..Readiness::default() }));
        }
        Ok((one, other))
    }

    fn peek(&mut self, socket: SocketId, offset: usize, into: &mut [u8]) -> io::Result<usize> {
        let stream = self.stream(socket);
        let count = stream.inbox.len().saturating_sub(offset).min(into.len());
        if count == 0 {
            let ended = stream.inbox_ended && offset >= stream.inbox.len();
            return if ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        for (to, from) in into.iter_mut().zip(stream.inbox.iter().skip(offset)) {
            *to = *from;
        }
        Ok(count)
    }

    fn discard(&mut self, socket: SocketId, count: usize) -> io::Result<()> {
        self.discards += 1;
        let stream = self.stream(socket);
        assert!(count <= stream.inbox.len(), "discards what was never received");
        stream.inbox.drain(..count);
        let writable = Readiness { writable: true, ..Readiness::default() };
        if let Some(peer) = self.tell_peer(socket, writable) {
            peer.room += count;
        }
        Ok(())
    }

    fn send(&mut self, socket: SocketId, bytes: &[u8]) -> io::Result<usize> {
        let stream = self.stream(socket);
        assert!(!stream.shut, "sends after its FIN");
        let count = bytes.len().min(stream.room);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = &bytes[..count];
        stream.room -= count;
        stream.outbox.extend_from_slice(bytes);
        if stream.peer.is_some() {
            let readable = Readiness { readable: true, ..Readiness::default() };
            let peer = self.tell_peer(socket, readable).ok_or(io::ErrorKind::BrokenPipe)?;
            peer.inbox.extend(bytes);
        }
        Ok(count)
    }

    fn send_room(&mut self, socket: SocketId) -> usize {
        self.stream(socket).room
    }

    fn shutdown_write(&mut self, socket: SocketId) -> io::Result<()> {
        self.stream(socket).shut = true;
        let finished = Readiness { readable: true, read_closed: true, ..Readiness::default() };
        if let Some(peer) = self.tell_peer(socket, finished) {
            peer.inbox_ended = true;
        }
        Ok(())
    }

    fn reset(&mut self, socket: SocketId) {
        let stream = self.stream(socket);
        stream.reset = true;
        self.close(socket);
    }

    fn close(&mut self, socket: SocketId) {
        let stream = self.stream(socket);
        assert!(!stream.closed, "closed twice");
        stream.closed = true;
        let unread = !stream.inbox.is_empty();
        let gone = Readiness {
            readable: true,
            writable: true,
            read_closed: true,
            hangup: true,
            error: unread,
        };
        if let Some(peer) = self.tell_peer(socket, gone) {
            peer.inbox_ended = true;
            peer.error = unread.then_some(io::ErrorKind::ConnectionReset);
        }
    }

    fn udp_bind(&mut self, _at: SocketAddr) -> io::Result<SocketId> {
        let socket = self.open_outside()?;
        self.stream(socket).listening = true;
        Ok(socket)
    }

    fn udp_member(&mut self, card: u32, group: SocketAddr) -> io::Result<SocketId> {
        if self.mute.contains(&(card, group.is_ipv4())) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let socket = self.open();
        self.members.insert((card, group.is_ipv4()), socket);
        Ok(socket)
    }

    fn udp_send(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        _hop_limit: Option<u8>,
        bytes: &[u8],
    ) -> io::Result<usize> {
        let socket = self.stream(socket);
        socket.to = Some(to);
        socket.outbox = bytes.to_vec();
        Ok(bytes.len())
    }

    fn udp_recv(&mut self, socket: SocketId, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let next = self.stream(socket).datagrams.pop_front();
        let (from, bytes) = next.ok_or(io::ErrorKind::WouldBlock)?;
        // What does not fit is cut off, as by the kernel.
        let len = bytes.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
        Ok((len, from))
    }

    fn ping_open(&mut self, _ipv4: bool) -> io::Result<SocketId> {
        self.open_outside()
    }

    fn ping_recv(&mut self, socket: SocketId, into: &mut [u8]) -> io::Result<Echoed> {
        let (len, from) = self.udp_recv(socket, into)?;
        Ok(Echoed { len, from: from.ip(), hop_limit: None })
    }

    fn set_whole(&mut self, _socket: SocketId, _whole: bool) -> io::Result<()> {
        Ok(())
    }

    fn udp_error(&mut self, socket: SocketId) -> Option<DatagramError> {
        self.stream(socket).reports.pop_front()
    }
}

/// A network with its world and its clock.
pub struct Sim {
    pub network: Network,
    pub world: World,
    pub now: Instant,
}

pub const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

pub fn config() -> Config {
    Config {
        name: "test".into(),
        subnet4: "192.168.127.0/24".parse().unwrap(),
        subnet6: "fd00:1:2:3::/64".parse().unwrap(),
        mode: netyard_engine::config::Mode::User,
        gateway: None,
        gateway_mac: GATEWAY_MAC,
        zone: "test".into(),
        dns: Default::default(),
        mtu: 1500,
        uplink: Uplink::Nat,
        host: Vec::new(),
        dhcp: Some(Dhcp::default()),
        snooping: true,
        mdns: Default::default(),
        permanent: false,
    }
}

impl Sim {
    pub fn new() -> Self {
        Self::with(config())
    }

    pub fn with(config: Config) -> Self {
        let now = Instant::now();
        Self { network: Network::new(config, 42, now), world: World::default(), now }
    }

    pub fn plug(&mut self, name: &str) -> Plugged {
        self.plug_as(name, false)
    }

    /// Plugs one in that may be silent about its multicast groups.
    pub fn plug_as(&mut self, name: &str, silent: bool) -> Plugged {
        let request = PlugRequest {
            features: Features::ALL.bits(),
            silent,
            ..PlugRequest::new(name, PlugKind::Tap)
        };
        self.network.add_plug("test", &request).expect("a plug")
    }

    /// Plugs instances in and publishes a service over them, on 127.0.0.1:8080; its listener.
    pub fn publish(&mut self, names: &[&str], delivery: Delivery) -> (Vec<Plugged>, SocketId) {
        let plugs: Vec<_> = names.iter().map(|name| self.plug(name)).collect();
        let instances = names.iter().zip(&plugs).map(|(name, plug)| ServiceInstance {
            name: (*name).into(),
            address4: plug.address4,
            address6: plug.address6,
            weight: 1,
            eligible: true,
        });
        let spec = ServiceSpec {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port: 8080,
            publish: Some("127.0.0.1:8080".parse().unwrap()),
            delivery,
            policy: TurnPolicy::RoundRobin,
            affinity: None,
            instances: instances.collect(),
        };
        self.network.set_service(self.now, "test", spec, &mut self.world).unwrap();
        let listener = self.world.last();
        assert!(self.world.stream(listener).listening);
        (plugs, listener)
    }

    /// A client connects to a published port; its socket.
    pub fn client(&mut self, listener: SocketId, from: &str) -> SocketId {
        let socket = self.world.open();
        self.world.stream(listener).waiting.push_back((socket, from.parse().unwrap()));
        self.readable(listener);
        socket
    }

    pub fn frame(&mut self, plug: PlugId, frame: Frame<'_>) {
        self.network.handle_frame(self.now, plug, frame, &mut self.world);
        self.flush();
    }

    pub fn flush(&mut self) {
        loop {
            while self.network.flush(self.now, &mut self.world) {}
            let Some((socket, ready)) = self.world.told.pop_front() else { break };
            self.network.handle_host(self.now, socket, ready, &mut self.world);
        }
    }

    pub fn host(&mut self, socket: SocketId, ready: Readiness) {
        self.network.handle_host(self.now, socket, ready, &mut self.world);
        self.flush();
    }

    /// Moves the clock, doing everything that is due on the way.
    pub fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(at) = self.network.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.network.handle_timeout(self.now, &mut self.world);
            self.flush();
        }
        self.now = end;
    }

    pub fn readable(&mut self, socket: SocketId) {
        self.host(socket, Readiness { readable: true, ..Readiness::default() });
    }

    pub fn writable(&mut self, socket: SocketId) {
        self.host(socket, Readiness { writable: true, ..Readiness::default() });
    }

    /// The far end of `socket` sends.
    pub fn arrives(&mut self, socket: SocketId, bytes: &[u8]) {
        self.world.stream(socket).inbox.extend(bytes);
        self.readable(socket);
    }

    /// A datagram arrives at `socket`.
    pub fn datagram(&mut self, socket: SocketId, from: SocketAddr, bytes: &[u8]) {
        self.world.stream(socket).datagrams.push_back((from, bytes.to_vec()));
        self.readable(socket);
    }

    /// The far end of `socket` has finished.
    pub fn ends(&mut self, socket: SocketId) {
        self.world.stream(socket).inbox_ended = true;
        self.host(socket, Readiness { readable: true, read_closed: true, ..Readiness::default() });
    }

    /// The next frame to a guest that is a TCP segment.
    pub fn segment(&mut self) -> Option<Seen> {
        while let Some((_, frame)) = self.world.frames.pop_front() {
            if let Some(seen) = Seen::parse(&frame) {
                return Some(seen);
            }
        }
        None
    }

    pub fn expect(&mut self) -> Seen {
        self.segment().expect("a segment to the guest")
    }

    pub fn silent(&mut self) {
        if let Some(seen) = self.segment() {
            panic!("nothing was expected, but {seen:?}");
        }
    }
}

/// A segment that a guest got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: SeqNumber,
    pub ack: SeqNumber,
    pub flags: Flags,
    pub window: u16,
    pub options: TcpOptions,
    pub payload: Vec<u8>,
    /// Payload bytes per packet, if it is a super-frame.
    pub gso: Option<u16>,
}

impl Seen {
    pub fn parse(frame: &FrameBuf) -> Option<Self> {
        let (header, payload) = Ethernet::parse(&frame.bytes).ok()?;
        let ip = IpPacket::parse(header.ethertype, payload).ok()?;
        if ip.protocol != 6 {
            return None;
        }
        let segment = Segment::parse(&ip, frame.offload.checksum).expect("a sound segment");
        Some(Self {
            source: SocketAddr::new(ip.source, segment.source_port),
            destination: SocketAddr::new(ip.destination, segment.destination_port),
            seq: segment.seq,
            ack: segment.ack,
            flags: segment.flags,
            window: segment.window,
            options: segment.options,
            payload: segment.payload.to_vec(),
            gso: frame.offload.gso.map(|gso| gso.size),
        })
    }

    pub fn has(&self, flags: Flags) -> bool {
        self.flags.contains(flags)
    }

    pub fn end(&self) -> SeqNumber {
        self.seq
            + self.payload.len()
            + usize::from(self.has(Flags::FIN))
            + usize::from(self.has(Flags::SYN))
    }
}

/// The guest's end of one connection, moved by hand.
#[derive(Debug, Clone)]
pub struct Guest {
    pub plug: Plugged,
    pub own: SocketAddr,
    pub remote: SocketAddr,
    pub seq: SeqNumber,
    pub ack: SeqNumber,
    pub window: u16,
    pub options: TcpOptions,
}

impl Guest {
    pub fn new(plug: Plugged, remote: &str) -> Self {
        let remote: SocketAddr = remote.parse().unwrap();
        let ip = if remote.is_ipv4() { plug.address4.into() } else { plug.address6.into() };
        Self {
            plug,
            own: SocketAddr::new(ip, 40_000),
            remote,
            seq: SeqNumber(u32::MAX - 1000),
            ack: SeqNumber(0),
            window: u16::MAX,
            options: TcpOptions::default(),
        }
    }

    /// Sends a segment; the guest's sequence number moves on.
    pub fn send(&mut self, sim: &mut Sim, flags: Flags, payload: &[u8]) {
        self.send_at(sim, self.seq, flags, payload);
        self.seq = self.seq
            + payload.len()
            + usize::from(flags.contains(Flags::SYN))
            + usize::from(flags.contains(Flags::FIN));
    }

    /// Sends a segment of any sequence number; the guest's own stays.
    pub fn send_at(&self, sim: &mut Sim, seq: SeqNumber, flags: Flags, payload: &[u8]) {
        let frame = self.segment_at(seq, flags, payload);
        sim.frame(self.plug.plug, frame.as_frame());
    }

    /// A segment of any sequence number.
    pub fn segment_at(&self, seq: SeqNumber, flags: Flags, payload: &[u8]) -> FrameBuf {
        let headers = TcpFrame {
            source_mac: self.plug.mac,
            destination_mac: GATEWAY_MAC,
            source: self.own,
            destination: self.remote,
            seq,
            ack: self.ack,
            flags,
            window: self.window,
            options: self.options,
            hop_limit: 64,
            traffic_class: 0,
            ip_id: 7,
        };
        let len = headers.header_len();
        let mut bytes = vec![0; len + payload.len()];
        bytes[len..].copy_from_slice(payload);
        let offload = headers.emit(&mut bytes, 1460);
        FrameBuf { bytes, offload }
    }

    pub fn acknowledge(&mut self, sim: &mut Sim, seen: &Seen) {
        self.ack = seen.end();
        self.send(sim, Flags::ACK, b"");
    }

    /// Opens to the outside; returns the host socket. The guest does SACK and scales by 7.
    pub fn connect(&mut self, sim: &mut Sim) -> SocketId {
        self.options = TcpOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            ..TcpOptions::default()
        };
        self.send(sim, Flags::SYN, b"");
        self.options = TcpOptions::default();
        let socket = sim.world.last();
        sim.silent();
        sim.writable(socket);
        let answer = sim.expect();
        assert!(answer.has(Flags::SYN | Flags::ACK));
        assert_eq!(answer.ack, self.seq);
        self.acknowledge(sim, &answer);
        socket
    }
}

/// `len` bytes that differ from place to place.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}
