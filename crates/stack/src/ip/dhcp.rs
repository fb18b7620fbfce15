//! The DHCP client (RFC 2131 section 4.4): one for each interface that asks for its IPv4 address.
//!
//! An offer is taken from whoever makes the first one. The address is used from the acknowledgement on,
//! renewed at half of its time, asked of any server at seven eighths, and given up at the end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use netyard_wire::dhcp::v4::{
    CLIENT_PORT, Message, MessageType, Operation, Options, SERVER_PORT, option,
};
use netyard_wire::{FrameBuf, MacAddr, build};
use rand::RngExt as _;

use super::nic::{Address, Origin};
use super::{Ip, Medium, NicIndex};
use crate::Error;

/// RFC 2131 section 4.1: the first answer is waited for so long, each further one twice as long as
/// the one before, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(4);
const LONGEST_WAIT: Duration = Duration::from_secs(64);
/// Requests for an offer before another one is looked for.
const MAX_REQUESTS: u32 = 4;
/// RFC 2131 section 4.4.5: while an address is renewed, never asked again sooner.
const MIN_RENEWAL_WAIT: Duration = Duration::from_secs(60);
/// A server that does not tell the time (which it must) is taken at its word for so long.
const DEFAULT_LEASE: Duration = Duration::from_secs(3600);
/// RFC 2131 section 3.3: for ever.
const FOREVER: u32 = u32::MAX;
/// As good as for ever, and still a time.
const LONGEST_LEASE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// The longest message that fits a packet which every host takes (RFC 2131 section 2), bytes.
const MAX_SIZE: u16 = 576;
/// Resolvers of a server that are asked.
const MAX_RESOLVERS: usize = 3;
/// RFC 791: no network takes less, bytes.
const MIN_MTU: u32 = 576;

/// The client of one interface.
#[derive(Debug)]
pub(crate) struct Client {
    mac: MacAddr,
    state: State,
    xid: u32,
    /// Since when it has been asking, and how often it has.
    since: Instant,
    tries: u32,
    /// When to do something next.
    pub(super) at: Instant,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Selecting,
    Requesting { server: Ipv4Addr, address: Ipv4Addr },
    Bound(Lease),
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    net: Ipv4Net,
    server: Ipv4Addr,
    router: Option<Ipv4Addr>,
    resolvers: [Option<Ipv4Addr>; MAX_RESOLVERS],
    renew_at: Instant,
    rebind_at: Instant,
    ends_at: Instant,
}

impl Ip {
    /// Makes an interface with Ethernet ask for its IPv4 address.
    pub(crate) fn enable_dhcp(&mut self, now: Instant, index: NicIndex) -> Result<(), Error> {
        let xid = self.rng.random();
        let nic = self.nic_mut(index).ok_or(Error::InvalidInput)?;
        let Medium::Ethernet(mac) = nic.medium else { return Err(Error::InvalidInput) };
        let (state, since) = (State::Selecting, now);
        nic.dhcp = Some(Box::new(Client { mac, state, xid, since, tries: 0, at: now }));
        Ok(())
    }

    /// Does what is due.
    pub(super) fn handle_dhcp_timeout(&mut self, now: Instant, index: NicIndex) {
        let (xid, jitter) = (self.rng.random(), self.rng.random_range(0..2_000));
        let Some(nic) = self.nic_mut(index) else { return };
        let Some(client) = nic.dhcp.as_mut().filter(|client| client.at <= now) else { return };
        let over = match client.state {
            State::Bound(lease) if lease.ends_at <= now => Some(lease),
            _ => None,
        };
        let tired =
            matches!(client.state, State::Requesting { .. }) && client.tries >= MAX_REQUESTS;
        if over.is_some() || tired {
            client.start_again(now, xid);
        }
        let (message, to) = client.next(now, jitter);
        if let Some(lease) = over {
            self.give_up(index, lease);
        }
        match to {
            None => self.broadcast(index, &message),
            Some(server) => self.ask_server(now, &message, server),
        }
    }

    fn broadcast(&mut self, index: NicIndex, message: &Message) {
        let mut frame = FrameBuf::default();
        frame.offload = build::udp_frame(
            &mut frame.bytes,
            message.chaddr,
            MacAddr::BROADCAST,
            SocketAddr::new(message.ciaddr.into(), CLIENT_PORT),
            SocketAddr::new(Ipv4Addr::BROADCAST.into(), SERVER_PORT),
            build::HOP_LIMIT,
            &message.emit(),
        );
        // What has no room was counted, and goes again.
        let _ = self.queue(index, frame);
    }

    fn ask_server(&mut self, now: Instant, message: &Message, server: Ipv4Addr) {
        let source = IpAddr::V4(message.ciaddr);
        let Ok(path) = self.path(now, Some(source), None, server.into()) else {
            return self.drop("dhcp-no-route");
        };
        let mut frame = FrameBuf::default();
        frame.offload = build::udp_frame(
            &mut frame.bytes,
            path.source_mac,
            MacAddr([0; 6]),
            SocketAddr::new(source, CLIENT_PORT),
            SocketAddr::new(server.into(), SERVER_PORT),
            path.hop_limit,
            &message.emit(),
        );
        // What cannot be sent was counted, and goes again.
        let _ = self.send(now, &path, frame);
    }

    /// True if an interface waits for messages of servers.
    pub(crate) fn has_dhcp(&self, index: NicIndex) -> bool {
        self.nic(index).is_some_and(|nic| nic.dhcp.is_some())
    }

    /// Takes what came to the client's port.
    pub(crate) fn handle_dhcp(&mut self, now: Instant, index: NicIndex, payload: &[u8]) {
        let message = match Message::parse(payload) {
            Ok(message) => message,
            Err(error) => return self.drop(error.reason()),
        };
        let xid = self.rng.random();
        let Some(client) = self.nic_mut(index).and_then(|nic| nic.dhcp.as_mut()) else { return };
        let ours = message.operation == Operation::Reply
            && message.xid == client.xid
            && message.chaddr == client.mac;
        let server = message.options.address(option::SERVER);
        let (Some(server), true) = (server, ours) else { return self.drop("dhcp-unasked") };
        let before = match client.state {
            State::Bound(lease) => Some(lease),
            _ => None,
        };
        match (message.options.kind(), client.state) {
            (Some(MessageType::Offer), State::Selecting) if is_host(message.yiaddr) => {
                client.state = State::Requesting { server, address: message.yiaddr };
                (client.tries, client.at) = (0, now);
                self.handle_dhcp_timeout(now, index);
            }
            (Some(MessageType::Ack), State::Requesting { address, .. })
                if message.yiaddr == address =>
            {
                self.bind(now, index, Lease::of(now, server, &message), None, &message);
            }
            (Some(MessageType::Ack), State::Bound(lease))
                if message.yiaddr == lease.net.addr() && client.tries > 0 =>
            {
                self.bind(now, index, Lease::of(now, server, &message), before, &message);
            }
            (Some(MessageType::Nak), State::Requesting { .. } | State::Bound(_)) => {
                client.start_again(now, xid);
                client.at = now + FIRST_WAIT;
                if let Some(lease) = before {
                    self.give_up(index, lease);
                }
            }
            _ => self.drop("dhcp-unasked"),
        }
    }

    /// The address is ours, from now on or still.
    fn bind(
        &mut self,
        now: Instant,
        index: NicIndex,
        lease: Lease,
        before: Option<Lease>,
        message: &Message,
    ) {
        let Some(nic) = self.nic_mut(index) else { return };
        if let Some(client) = &mut nic.dhcp {
            client.state = State::Bound(lease);
            (client.tries, client.at) = (0, lease.renew_at);
        }
        let told = message.options.number16(option::MTU).map(u32::from);
        if let Some(mtu) = told.filter(|mtu| (MIN_MTU..=nic.mtu).contains(mtu)) {
            nic.mtu = mtu;
        }
        let same = before.is_some_and(|old| old.net == lease.net && old.router == lease.router);
        if same {
            return;
        }
        if let Some(old) = before {
            self.give_up(index, old);
        }
        let address = Address::permanent(lease.net.into(), Origin::Dhcp);
        // No room for it: the configuration has filled the table.
        let _ = self.assign(now, index, address);
        if let Some(router) = lease.router {
            let default = IpNet::V4(Ipv4Net::default());
            let _ = self.add_route(default, index, Some(router.into()));
        }
    }

    /// The address is ours no more.
    fn give_up(&mut self, index: NicIndex, lease: Lease) {
        let Some(nic) = self.nic_mut(index) else { return };
        nic.remove(|address| {
            address.origin == Origin::Dhcp && address.net.addr() == IpAddr::V4(lease.net.addr())
        });
        let prefix = IpNet::V4(lease.net.trunc());
        let shared = nic.addresses().iter().any(|address| address.net.trunc() == prefix);
        let router = lease.router.map(IpAddr::V4);
        self.routes.remove(|route| {
            let link = route.prefix == prefix && route.gateway.is_none() && !shared;
            let default = route.prefix.prefix_len() == 0 && route.gateway == router;
            route.nic == index && (link || (router.is_some() && default))
        });
        self.generation += 1;
    }
}

impl Client {
    /// The resolvers that the server has named.
    pub(super) fn resolvers(&self) -> impl Iterator<Item = Ipv4Addr> {
        let lease = match self.state {
            State::Bound(lease) => Some(lease),
            State::Selecting | State::Requesting { .. } => None,
        };
        lease.into_iter().flat_map(|lease| lease.resolvers).flatten()
    }

    fn start_again(&mut self, now: Instant, xid: u32) {
        (self.state, self.xid, self.since) = (State::Selecting, xid, now);
        (self.tries, self.at) = (0, now);
    }

    /// The message that is to be sent now, and to which server (`None`: to all).
    fn next(&mut self, now: Instant, jitter: u64) -> (Message, Option<Ipv4Addr>) {
        let mut options = Options::default();
        let mut ciaddr = Ipv4Addr::UNSPECIFIED;
        let mut to = None;
        let kind = match self.state {
            State::Selecting => MessageType::Discover,
            State::Requesting { server, address } => {
                options.set(option::REQUESTED_ADDRESS, address.octets());
                options.set(option::SERVER, server.octets());
                MessageType::Request
            }
            State::Bound(lease) => {
                ciaddr = lease.net.addr();
                to = (now < lease.rebind_at).then_some(lease.server);
                MessageType::Request
            }
        };
        if self.tries == 0 {
            self.since = now;
        }
        self.at = match self.state {
            // RFC 2131 section 4.4.5: half of what is left, until the next stage.
            State::Bound(lease) => {
                let stage = if now < lease.rebind_at { lease.rebind_at } else { lease.ends_at };
                let half = stage.saturating_duration_since(now) / 2;
                (now + half.max(MIN_RENEWAL_WAIT)).min(stage)
            }
            _ => {
                let wait = FIRST_WAIT.saturating_mul(1 << self.tries.min(8)).min(LONGEST_WAIT);
                // A second more or less, so that those who began together do not go on together.
                now + wait - Duration::from_secs(1) + Duration::from_millis(jitter)
            }
        };
        self.tries += 1;
        options.set(option::MESSAGE_TYPE, [kind.code()]);
        options.set(option::MAX_SIZE, MAX_SIZE.to_be_bytes());
        let [a, b, c, d, e, f] = self.mac.0;
        // Hardware type 1: Ethernet.
        options.set(option::CLIENT, [1, a, b, c, d, e, f]);
        let wanted = [option::SUBNET_MASK, option::ROUTER, option::DNS, option::MTU];
        options.set(option::PARAMETERS, wanted);
        let secs = now.saturating_duration_since(self.since).as_secs();
        let message = Message {
            operation: Operation::Request,
            xid: self.xid,
            secs: u16::try_from(secs).unwrap_or(u16::MAX),
            broadcast: false,
            ciaddr,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            chaddr: self.mac,
            options,
        };
        (message, to)
    }
}

impl Lease {
    fn of(now: Instant, server: Ipv4Addr, ack: &Message) -> Self {
        let mask = ack.options.address(option::SUBNET_MASK);
        // A mask with holes is none; the address then stands for itself.
        let len = mask.and_then(|mask| ipnet::ipv4_mask_to_prefix(mask).ok()).unwrap_or(32);
        let net = Ipv4Net::new(ack.yiaddr, len).unwrap_or_else(|_| ack.yiaddr.into());
        let time = |code, otherwise| match ack.options.number32(code) {
            None => otherwise,
            Some(FOREVER) => LONGEST_LEASE,
            Some(seconds) => Duration::from_secs(seconds.into()).min(LONGEST_LEASE),
        };
        let whole = time(option::LEASE_TIME, DEFAULT_LEASE).max(MIN_RENEWAL_WAIT);
        // RFC 2131 section 4.4.5: T1 and T2, in their order whatever the server says.
        let rebind = time(option::REBINDING, whole / 8 * 7).min(whole);
        let renew = time(option::RENEWAL, whole / 2).min(rebind);
        let hosts = |code| {
            let (addresses, _) = ack.options.get(code).unwrap_or_default().as_chunks::<4>();
            addresses.iter().map(|ip| Ipv4Addr::from(*ip)).filter(|ip| is_host(*ip))
        };
        let mut resolvers = hosts(option::DNS);
        Self {
            net,
            server,
            router: hosts(option::ROUTER).next(),
            resolvers: [(); MAX_RESOLVERS].map(|()| resolvers.next()),
            renew_at: now + renew,
            rebind_at: now + rebind,
            ends_at: now + whole,
        }
    }
}

/// An address that a host can have.
fn is_host(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip.is_loopback())
}
