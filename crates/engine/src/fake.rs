//! A scripted edge and the parts that a [`Context`] lends, for unit tests in virtual time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netyard_wire::{Frame, FrameBuf, MacAddr};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use crate::config::{Config, Dhcp, Uplink};
use crate::context::Context;
use crate::counters::Counters;
use crate::edge::{DatagramError, Echoed, Edge, PlugId, Poured, SocketId, Then};
use crate::guests::{Guest, Guests};
use crate::policy::Policy;
use crate::remote::Remotes;

/// The plug of [`guest`].
pub(crate) const PLUG: PlugId = PlugId(1);
/// Its hardware address.
pub(crate) const GUEST_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x02]);

/// The guest of every test.
pub(crate) fn guest() -> Guest {
    Guest {
        plug: PLUG,
        mac: GUEST_MAC,
        address4: Ipv4Addr::new(192, 168, 127, 2),
        address6: Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 2),
        name: "one".into(),
        aliases: Vec::new(),
    }
}

/// A host whose UDP sockets and connected streams are scripted; it has nothing else.
#[derive(Debug, Default)]
pub(crate) struct FakeEdge {
    /// What went out on plugs and was not looked at yet.
    pub(crate) frames: VecDeque<(PlugId, FrameBuf)>,
    /// Open sockets.
    pub(crate) sockets: BTreeMap<SocketId, FakeSocket>,
    /// Streams that were connected.
    pub(crate) streams: BTreeMap<SocketId, FakeStream>,
    /// Ports that other programs have.
    pub(crate) taken: BTreeSet<u16>,
    /// Whether there are no ping sockets.
    pub(crate) no_pings: bool,
    /// How many sockets can still be opened.
    pub(crate) descriptors: Option<usize>,
    next: u32,
}

/// A UDP socket.
#[derive(Debug)]
pub(crate) struct FakeSocket {
    /// Where it was bound; the kernel chose a port from 50000 up if 0 was wanted.
    pub(crate) at: SocketAddr,
    /// What will be received.
    pub(crate) inbox: VecDeque<(SocketAddr, Vec<u8>)>,
    /// The error queue.
    pub(crate) errors: VecDeque<DatagramError>,
    /// What was sent and not looked at yet.
    pub(crate) sent: VecDeque<(SocketAddr, Option<u8>, Vec<u8>)>,
    /// Whether that must stay whole.
    pub(crate) whole: Option<bool>,
    /// The hop limit of what is received by a ping socket.
    pub(crate) hop_limit: Option<u8>,
    /// Results of the next sends; fine when empty.
    pub(crate) failures: VecDeque<io::ErrorKind>,
}

/// A stream.
#[derive(Debug)]
pub(crate) struct FakeStream {
    /// Where it leads.
    pub(crate) to: SocketAddr,
    /// What can be read.
    pub(crate) inbox: Vec<u8>,
    /// Nothing follows it.
    pub(crate) ended: bool,
    /// What was sent.
    pub(crate) sent: Vec<u8>,
    /// How much more it takes.
    pub(crate) room: usize,
    /// Why it is broken.
    pub(crate) failure: Option<io::ErrorKind>,
}

impl FakeEdge {
    fn stream(&mut self, socket: SocketId) -> io::Result<&mut FakeStream> {
        let stream = self.streams.get_mut(&socket).expect("an open stream");
        stream.failure.map_or(Ok(stream), |kind| Err(kind.into()))
    }
}

impl Edge for FakeEdge {
    fn transmit(&mut self, plug: PlugId, frame: Frame<'_>) -> bool {
        self.frames.push_back((plug, frame.into()));
        true
    }

    fn udp_bind(&mut self, mut at: SocketAddr) -> io::Result<SocketId> {
        if let Some(left) = &mut self.descriptors {
            *left = left.checked_sub(1).ok_or(io::Error::from_raw_os_error(24))?;
        }
        self.next += 1;
        let used = self.sockets.values().any(|socket| socket.at == at);
        if at.port() == 0 {
            at.set_port(50_000 + u16::try_from(self.next).unwrap());
        } else if used || self.taken.contains(&at.port()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let socket = FakeSocket {
            at,
            inbox: VecDeque::new(),
            errors: VecDeque::new(),
            sent: VecDeque::new(),
            whole: None,
            hop_limit: None,
            failures: VecDeque::new(),
        };
        self.sockets.insert(SocketId(self.next), socket);
        Ok(SocketId(self.next))
    }

    fn ping_open(&mut self, ipv4: bool) -> io::Result<SocketId> {
        if self.no_pings {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.udp_bind(if ipv4 { ([0; 4], 0).into() } else { ([0; 16], 0).into() })
    }

    fn ping_recv(&mut self, socket: SocketId, into: &mut [u8]) -> io::Result<Echoed> {
        let (len, from) = self.udp_recv(socket, into)?;
        let hop_limit = self.sockets.get(&socket).and_then(|socket| socket.hop_limit);
        Ok(Echoed { len, from: from.ip(), hop_limit })
    }

    fn set_whole(&mut self, socket: SocketId, whole: bool) -> io::Result<()> {
        self.sockets.get_mut(&socket).expect("an open socket").whole = Some(whole);
        Ok(())
    }

    fn udp_send(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        hop_limit: Option<u8>,
        bytes: &[u8],
    ) -> io::Result<usize> {
        let socket = self.sockets.get_mut(&socket).expect("an open socket");
        if let Some(kind) = socket.failures.pop_front() {
            return Err(kind.into());
        }
        assert_eq!(socket.at.is_ipv4(), to.is_ipv4());
        socket.sent.push_back((to, hop_limit, bytes.to_vec()));
        Ok(bytes.len())
    }

    fn udp_recv(&mut self, socket: SocketId, into: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let socket = self.sockets.get_mut(&socket).expect("an open socket");
        let (from, bytes) = socket.inbox.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok((bytes.len(), from))
    }

    fn udp_error(&mut self, socket: SocketId) -> Option<DatagramError> {
        self.sockets.get_mut(&socket).expect("an open socket").errors.pop_front()
    }

    fn close(&mut self, socket: SocketId) {
        let open = self.sockets.remove(&socket).is_some() || self.streams.remove(&socket).is_some();
        assert!(open, "{socket:?} was closed twice");
    }

    fn tcp_connect(&mut self, to: SocketAddr) -> io::Result<SocketId> {
        self.next += 1;
        let stream = FakeStream {
            to,
            inbox: Vec::new(),
            ended: false,
            sent: Vec::new(),
            room: usize::MAX,
            failure: None,
        };
        self.streams.insert(SocketId(self.next), stream);
        Ok(SocketId(self.next))
    }
    fn connect_inside(&mut self, _: PlugId, _: SocketAddr) -> io::Result<(SocketId, SocketAddr)> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn is_captured(&self, _: PlugId) -> bool {
        false
    }
    fn pour(&mut self, _: SocketId, _: SocketId) -> Poured {
        Poured { bytes: 0, then: Then::Broken }
    }
    fn take_error(&mut self, socket: SocketId) -> io::Result<()> {
        self.stream(socket).map(|_| ())
    }
    fn tcp_accept(&mut self, _: SocketId) -> io::Result<(SocketId, SocketAddr)> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn tcp_local(&mut self, _: SocketId) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn tcp_bind(&mut self, _: SocketAddr) -> io::Result<SocketId> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn set_listening(&mut self, _: SocketId, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn udp_member(&mut self, _: u32, _: SocketAddr) -> io::Result<SocketId> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn adopt_listener(&mut self, _: OwnedFd) -> io::Result<SocketId> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn adopt_stream(&mut self, _: OwnedFd) -> io::Result<SocketId> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn stream_pair(&mut self) -> io::Result<(SocketId, SocketId)> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn peek(&mut self, socket: SocketId, offset: usize, into: &mut [u8]) -> io::Result<usize> {
        let stream = self.stream(socket)?;
        let rest = &stream.inbox[offset..];
        if rest.is_empty() && !stream.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
    fn discard(&mut self, socket: SocketId, count: usize) -> io::Result<()> {
        self.stream(socket)?.inbox.drain(..count);
        Ok(())
    }
    fn send(&mut self, socket: SocketId, bytes: &[u8]) -> io::Result<usize> {
        let stream = self.stream(socket)?;
        let count = bytes.len().min(stream.room);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        stream.room -= count;
        stream.sent.extend_from_slice(&bytes[..count]);
        Ok(count)
    }
    fn send_room(&mut self, _: SocketId) -> usize {
        0
    }
    fn shutdown_write(&mut self, _: SocketId) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn reset(&mut self, socket: SocketId) {
        self.close(socket);
    }
}

/// Everything that a [`Context`] lends.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) now: Instant,
    pub(crate) edge: FakeEdge,
    pub(crate) config: Config,
    pub(crate) guests: Guests,
    pub(crate) remotes: Remotes,
    pub(crate) policy: Policy,
    pub(crate) counters: Counters,
    rng: SmallRng,
    scratch: Vec<u8>,
}

impl Bench {
    /// A network with one [`guest`], which may use the host's 127.0.0.1:5432 and [::1]:6379.
    pub(crate) fn new() -> Self {
        let config = Config {
            name: "lab".into(),
            subnet4: "192.168.127.0/24".parse().unwrap(),
            subnet6: "fd00:1:2:3::/64".parse().unwrap(),
            mode: crate::config::Mode::User,
            gateway: None,
            gateway_mac: MacAddr([0x02, 0, 0, 0, 0, 0xff]),
            zone: "lan".into(),
            dns: Default::default(),
            mtu: 1500,
            uplink: Uplink::Nat,
            host: vec!["127.0.0.1:5432".parse().unwrap(), "[::1]:6379".parse().unwrap()],
            dhcp: Some(Dhcp::default()),
            snooping: true,
            mdns: Default::default(),
            permanent: false,
        };
        let mut guests = Guests::default();
        guests.insert(guest());
        Self {
            now: Instant::now(),
            edge: FakeEdge::default(),
            policy: Policy::new(&config, vec!["203.0.113.7".parse().unwrap()]),
            config,
            guests,
            remotes: Remotes::default(),
            counters: Counters::default(),
            rng: SmallRng::seed_from_u64(1),
            scratch: Vec::new(),
        }
    }

    /// Lends the parts to `event`.
    pub(crate) fn with<R>(&mut self, event: impl FnOnce(&mut Context<'_>) -> R) -> R {
        event(&mut Context {
            now: self.now,
            edge: &mut self.edge,
            config: &self.config,
            guests: &self.guests,
            remotes: &self.remotes,
            policy: &mut self.policy,
            counters: &mut self.counters,
            rng: &mut self.rng,
            scratch: &mut self.scratch,
        })
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// The one frame that went out since the last look.
    pub(crate) fn transmitted(&mut self) -> (PlugId, FrameBuf) {
        let frame = self.edge.frames.pop_front().expect("a frame");
        assert!(self.edge.frames.is_empty(), "more than one frame");
        frame
    }
}
