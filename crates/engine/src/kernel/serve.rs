//! What the gateway answers to its guests: DNS, DHCP, router solicitations.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use netyard_sys::datagram::Datagram;
use netyard_sys::stream::Listener;
use netyard_wire::dhcp::{v4 as wire4, v6 as wire6};
use netyard_wire::ethernet::Ethernet;
use netyard_wire::icmp::{Icmp, Ndp};
use netyard_wire::ip::IpPacket;
use netyard_wire::{Frame, udp};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::books::Books;
use super::segment::{SegmentPort, WHOLE};
use crate::config::{Config, Uplink};
use crate::context::Context;
use crate::control::{ControlError, ControlErrorKind, DnsState, LeaseState};
use crate::counters::Counters;
use crate::dhcp::{self, Pool, SavedLeases};
use crate::dns::{self, Client, Dns, Transport};
use crate::driver::edge::HostEdge;
use crate::driver::sockets::{Port, Socket};
use crate::edge::{Edge, Readiness, SocketId};
use crate::forward::Protocol;
use crate::holder;
use crate::neighbor;
use crate::policy::Policy;
use crate::router::Advertiser;

/// Connections to the DNS server, of one guest (those without a plug count as one) and in all.
const MAX_STREAMS_PER_GUEST: usize = 64;
const MAX_STREAMS: usize = 1_024;

/// Queries and connections taken from one socket before the others get their turn.
const BURST: usize = 64;

/// How often leases are written down, at most: a guest may renew as fast as it can.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// A file of leases that is longer than this is not ours, bytes.
const MAX_FILE: u64 = 4 << 20;

/// IANA protocol number.
const UDP: u8 = 17;

/// All routers of the link (RFC 4291 section 2.7.1).
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// The gateway's servers.
#[derive(Debug)]
pub(super) struct Gateway {
    counters: Counters,
    dns: Dns,
    /// `None` if guests get neither addresses nor advertisements.
    dhcp: Option<dhcp::Gateway>,
    router: Option<Advertiser>,
    leases: LeaseFile,
    /// Sockets of the DNS server.
    sockets: Vec<Server>,
    /// Holds the DHCP ports, so that the kernel does not refuse what we read from the segment, and
    /// the groups that guests ask.
    _held: Vec<Datagram>,
    policy: Policy,
    rng: SmallRng,
    scratch: Vec<u8>,
    buffer: Vec<u8>,
}

/// A socket of the DNS server.
#[derive(Debug)]
struct Server {
    socket: SocketId,
    at: SocketAddr,
    protocol: Protocol,
    readable: bool,
}

/// True if this process gives addresses to guests. Where the bridge is a part of the card's own
/// network, that has a DHCP server and a router already.
pub(super) fn serves_addresses(config: &Config) -> bool {
    config.dhcp.is_some() && !matches!(config.uplink, Uplink::Card(_))
}

impl Gateway {
    /// Opens the servers of a network on its segment, which is the interface of this number. On a bridge
    /// that has been joined only plugs are served, unless the file names addresses for others.
    pub(super) fn open(
        config: &Config,
        interface: u32,
        joined: bool,
        edge: &mut HostEdge<SegmentPort>,
        folder: &Path,
        warnings: &mut Vec<String>,
    ) -> Result<Self, ControlError> {
        let now = edge.now();
        let addresses: [IpAddr; 2] = [config.gateway4().into(), config.gateway6().into()];
        let mut sockets = Vec::new();
        for address in addresses {
            let at = SocketAddr::new(address, dns::PORT);
            let mut add = |protocol, socket: io::Result<Socket>| {
                let socket = edge.adopt(socket?)?;
                sockets.push(Server { socket, at, protocol, readable: false });
                io::Result::Ok(())
            };
            add(Protocol::Udp, Datagram::bind_on(interface, at).map(Socket::Datagram))
                .map_err(|error| cannot_serve(config, at, &error))?;
            let listener = Listener::listen_on(interface, at);
            let listener = listener.map(|listener| Socket::Listener(Port::open(listener)));
            if let Err(error) = add(Protocol::Tcp, listener) {
                let holder = holder::find(Protocol::Tcp, at);
                let holder = holder.map(|holder| format!(" by {holder}")).unwrap_or_default();
                warnings.push(format!(
                    "network `{}` does not answer DNS over TCP, which long answers need: {at} is \
                     taken{holder} ({error}); have that program listen on its own addresses only",
                    config.name
                ));
            }
        }
        let everybody = !joined || config.dhcp.is_some_and(|dhcp| dhcp.range.is_some());
        let (mut dhcp, mut held) = (None, Vec::new());
        if serves_addresses(config) {
            dhcp = dhcp::Gateway::new(config, everybody.then(|| Pool::new(config)));
            held = hold(config, interface);
        }
        let leases = LeaseFile::new(folder, now);
        if let Some(dhcp) = &mut dhcp {
            dhcp.restore(now, SystemTime::now(), &leases.load(warnings));
        }
        Ok(Self {
            counters: Counters::default(),
            dns: Dns::new(config, now),
            router: dhcp.as_ref().filter(|_| everybody).map(|_| Advertiser::new(now)),
            dhcp,
            leases,
            sockets,
            _held: held,
            policy: Policy::new(config, Vec::new()),
            rng: SmallRng::seed_from_u64(rand::random()),
            scratch: Vec::new(),
            buffer: vec![0; usize::from(u16::MAX)],
        })
    }

    /// The host's resolvers, to which names outside of the zone go.
    pub(super) fn set_upstreams(&mut self, upstreams: Vec<SocketAddr>) {
        self.dns.set_upstreams(upstreams);
    }

    /// True if the address is lent to somebody without a plug.
    pub(super) fn has_lent(&self, now: Instant, address: IpAddr) -> bool {
        self.dhcp.as_ref().is_some_and(|dhcp| dhcp.has_lent(now, address))
    }

    /// What is lent, as `inspect` shows it.
    pub(super) fn lent(&self, now: Instant) -> Vec<LeaseState> {
        let wall = SystemTime::now();
        self.dhcp.as_ref().map(|dhcp| dhcp.lent(now, wall)).unwrap_or_default()
    }

    /// Handles a frame that somebody on the segment has sent to the gateway or to a group.
    pub(super) fn handle_frame(
        &mut self,
        now: Instant,
        frame: Frame<'_>,
        books: &Books,
        edge: &mut dyn Edge,
    ) {
        if let Err(reason) = self.answer_frame(now, frame, books, edge) {
            self.counters.drop(reason);
        }
    }

    fn answer_frame(
        &mut self,
        now: Instant,
        frame: Frame<'_>,
        books: &Books,
        edge: &mut dyn Edge,
    ) -> Result<(), &'static str> {
        let (header, payload) = Ethernet::parse(frame.bytes).map_err(|error| error.reason())?;
        let config = &books.config;
        let mac = header.source;
        if header.destination != config.gateway_mac && !header.destination.is_multicast() {
            // A bridge that somebody listens in on sees the frames of others.
            return Ok(());
        }
        let checksum = frame.offload.checksum;
        let ip = IpPacket::parse(header.ethertype, payload).map_err(|error| error.reason())?;
        let guest = books.guests.by_mac(mac);
        if guest.is_some_and(|guest| !guest.may_send_from(ip.source)) {
            return Err("spoofed-ip");
        }
        let Parts { mut cx, dhcp, router, .. } = self.parts(now, books, edge);
        let cx = &mut cx;
        if ip.protocol == UDP {
            let datagram = udp::Datagram::parse(&ip, checksum).map_err(|error| error.reason())?;
            if let Some(dhcp) = dhcp
                && dhcp::Gateway::listens(config, &ip, &datagram)
            {
                let taken = |address| books.is_taken(address);
                let asker = dhcp::Asker { plug: WHOLE, mac, guest, taken: &taken };
                dhcp.handle_datagram(cx, &asker, &ip, &datagram);
                self.leases.changed = true;
            }
            return Ok(());
        }
        let message = Icmp::parse(&ip, checksum).map_err(|error| error.reason())?;
        if let Some(guest) = guest {
            neighbor::check_icmp(config, guest, &header, &message)?;
        }
        if let (Icmp::Ndp(Ndp::RouterSolicitation { .. }), Some(router), IpAddr::V6(source)) =
            (message, router, ip.source)
        {
            router.answer(cx, WHOLE, mac, source);
        }
        Ok(())
    }

    /// Answers of resolvers that are kept.
    pub(super) fn dns_state(&self) -> Option<DnsState> {
        self.dns.state()
    }

    /// What was dropped, by reason.
    pub(super) fn drops(&self) -> BTreeMap<String, u64> {
        self.counters.all()
    }

    pub(super) fn owns(&self, socket: SocketId) -> bool {
        self.dns.owns(socket) || self.sockets.iter().any(|server| server.socket == socket)
    }

    /// Handles readiness of one of its sockets. Call [`Gateway::flush`] after.
    pub(super) fn handle_socket(
        &mut self,
        now: Instant,
        socket: SocketId,
        ready: Readiness,
        books: &Books,
        edge: &mut dyn Edge,
    ) {
        match self.sockets.iter_mut().find(|server| server.socket == socket) {
            Some(server) => server.readable |= ready.readable,
            None => {
                let Parts { mut cx, dns, .. } = self.parts(now, books, edge);
                dns.handle_socket(&mut cx, socket, ready);
            }
        }
    }

    /// A guest was unplugged.
    pub(super) fn remove_guest(
        &mut self,
        now: Instant,
        plug: crate::edge::PlugId,
        books: &Books,
        edge: &mut dyn Edge,
    ) {
        let Parts { mut cx, dns, .. } = self.parts(now, books, edge);
        dns.remove_guest(&mut cx, plug);
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant, books: &Books, edge: &mut dyn Edge) {
        let Parts { mut cx, dns, router, .. } = self.parts(now, books, edge);
        dns.handle_timeout(&mut cx);
        if let Some(router) = router {
            router.advertise(&mut cx, std::iter::once(WHOLE));
        }
        if self.leases.due().is_some_and(|due| due <= now)
            && let Some(dhcp) = &mut self.dhcp
        {
            self.leases.changed = false;
            if let Some(saved) = dhcp.take_changed(now, SystemTime::now()) {
                self.leases.save(now, &saved);
            }
        }
    }

    /// When [`Gateway::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let router = self.router.as_ref().map(Advertiser::poll_timeout);
        [self.dns.poll_timeout(), router, self.leases.due()].into_iter().flatten().min()
    }

    /// Takes what has come, and does the work that a batch of events has left. True if there is
    /// more to do at once.
    pub(super) fn flush(&mut self, now: Instant, books: &Books, edge: &mut dyn Edge) -> bool {
        let mut more = false;
        for place in 0..self.sockets.len() {
            let Some(server) = self.sockets.get(place).filter(|server| server.readable) else {
                continue;
            };
            let (socket, at) = (server.socket, server.at);
            let readable = match server.protocol {
                Protocol::Udp => self.receive(now, socket, at, books, edge),
                Protocol::Tcp => self.accept(now, socket, at, books, edge),
            };
            more |= readable;
            if let Some(server) = self.sockets.get_mut(place) {
                server.readable = readable;
            }
        }
        let Parts { mut cx, dns, .. } = self.parts(now, books, edge);
        dns.flush(&mut cx, &books.services) || more
    }

    /// Takes queries; true if there may be more.
    fn receive(
        &mut self,
        now: Instant,
        socket: SocketId,
        at: SocketAddr,
        books: &Books,
        edge: &mut dyn Edge,
    ) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut left = BURST;
        while left > 0 {
            let Ok((len, source)) = edge.udp_recv(socket, &mut buffer) else { break };
            left -= 1;
            let client = client(books, source, at, Transport::Socket(socket));
            let Parts { mut cx, dns, .. } = self.parts(now, books, edge);
            let query = buffer.get(..len).unwrap_or_default();
            dns.handle_query(&mut cx, &books.services, client, query);
        }
        self.buffer = buffer;
        left == 0
    }

    /// Takes connections; true if there may be more.
    fn accept(
        &mut self,
        now: Instant,
        listener: SocketId,
        at: SocketAddr,
        books: &Books,
        edge: &mut dyn Edge,
    ) -> bool {
        for _ in 0..BURST {
            let Ok((socket, source)) = edge.tcp_accept(listener) else { return false };
            let client = client(books, source, at, Transport::Stream(socket));
            let (own, all) = self.dns.connections(client.plug);
            if own >= MAX_STREAMS_PER_GUEST || all >= MAX_STREAMS {
                self.counters.drop("dns-streams-full");
                edge.reset(socket);
                continue;
            }
            let Parts { cx, dns, .. } = self.parts(now, books, edge);
            dns.open(&cx, client);
        }
        true
    }

    /// The parts that an event touches, borrowed side by side.
    fn parts<'a>(
        &'a mut self,
        now: Instant,
        books: &'a Books,
        edge: &'a mut dyn Edge,
    ) -> Parts<'a> {
        Parts {
            cx: Context {
                now,
                edge,
                config: &books.config,
                guests: &books.guests,
                remotes: &books.remotes,
                policy: &mut self.policy,
                counters: &mut self.counters,
                rng: &mut self.rng,
                scratch: &mut self.scratch,
            },
            dns: &mut self.dns,
            dhcp: self.dhcp.as_mut(),
            router: self.router.as_mut(),
        }
    }
}

/// The gateway, taken apart for one event.
struct Parts<'a> {
    cx: Context<'a>,
    dns: &'a mut Dns,
    dhcp: Option<&'a mut dhcp::Gateway>,
    router: Option<&'a mut Advertiser>,
}

/// Who asks from an address of the segment.
fn client(books: &Books, source: SocketAddr, at: SocketAddr, transport: Transport) -> Client {
    let plug = books.guests.by_address(source.ip()).map(|guest| guest.plug);
    Client { plug, source, destination: at, transport }
}

/// Holds the DHCP ports and joins the groups that guests ask. Another server of this host may have
/// the ports: ours does not need them.
fn hold(config: &Config, interface: u32) -> Vec<Datagram> {
    let at4 = SocketAddr::new(config.gateway4().into(), wire4::SERVER_PORT);
    let at6 = |port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let groups = Datagram::bind_on(interface, at6(wire6::SERVER_PORT))
        .or_else(|_| Datagram::bind_on(interface, at6(0)));
    if let Ok(socket) = &groups {
        for group in [wire6::ALL_SERVERS, ALL_ROUTERS] {
            if let Err(error) = socket.join(interface, group) {
                tracing::warn!(%error, %group, "a group cannot be joined");
            }
        }
    }
    [Datagram::bind_on(interface, at4), groups].into_iter().flatten().collect()
}

/// Why the DNS server cannot have its port.
fn cannot_serve(config: &Config, at: SocketAddr, error: &io::Error) -> ControlError {
    let (kind, why) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            ControlErrorKind::Taken,
            "the port is taken: have the program that has it listen on its own addresses only, or \
             share it (SO_REUSEADDR)"
                .to_owned(),
        ),
        io::ErrorKind::PermissionDenied => (ControlErrorKind::NotPermitted, error.to_string()),
        _ => (ControlErrorKind::Failed, error.to_string()),
    };
    let message = format!("network `{}` cannot answer DNS at {at}/udp: {why}", config.name);
    ControlError { kind, message }
}

/// Where leases outlive the process.
#[derive(Debug)]
struct LeaseFile {
    path: PathBuf,
    /// When it may be written again.
    next: Instant,
    /// There may be something new to save.
    changed: bool,
}

impl LeaseFile {
    fn new(folder: &Path, now: Instant) -> Self {
        Self { path: folder.join(crate::process::LEASES), next: now, changed: false }
    }

    /// What was saved; nothing if that cannot be read. The next lease makes the file anew.
    fn load(&self, warnings: &mut Vec<String>) -> SavedLeases {
        let read = || {
            let file = File::open(&self.path)?;
            if file.metadata()?.len() > MAX_FILE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(serde_json::from_reader(io::BufReader::new(file).take(MAX_FILE))?)
        };
        read().unwrap_or_else(|error: io::Error| {
            if error.kind() != io::ErrorKind::NotFound {
                warnings.push(format!(
                    "what was lent before is forgotten, {} cannot be read ({error}): clients may \
                     get other addresses than they had",
                    self.path.display()
                ));
            }
            SavedLeases::default()
        })
    }

    /// When to save, if there may be something new.
    fn due(&self) -> Option<Instant> {
        self.changed.then_some(self.next)
    }

    fn save(&mut self, now: Instant, leases: &SavedLeases) {
        self.next = now + SAVE_EVERY;
        let new = self.path.with_extension("new");
        let write = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(&serde_json::to_vec(leases)?)?;
            fs::rename(&new, &self.path)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, path = %self.path.display(), "leases cannot be saved");
        }
    }
}
