//! The DHCPv4 server (RFC 2131).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use netyard_wire::MacAddr;
pub use netyard_wire::dhcp::v4::Route;
use netyard_wire::dhcp::v4::{
    CLIENT_PORT, Message, MessageType, Operation, Options, addresses_option, names_option, option,
    routes_option,
};
use netyard_wire::dns::Name;

use super::leases::{Client, Leases};
use super::{Request, Reservation};

/// The longest reply that every client takes, without IP and UDP headers: 576 bytes with them
/// (RFC 2131 section 2).
const MAX_REPLY: u16 = 576;

/// IP and UDP headers, bytes.
const HEADERS: u16 = 28;

/// Longest identifier of a client, bytes.
const MAX_CLIENT: usize = 255;

/// A client that wants its address for less than this gets it for this: renewals cost both sides.
const SHORTEST_LEASE: Duration = Duration::from_secs(120);

/// What a server tells.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The server's own address.
    pub server: Ipv4Addr,
    /// The prefix of the link.
    pub subnet: Ipv4Net,
    /// The default router.
    pub router: Option<Ipv4Addr>,
    /// Resolvers.
    pub dns: Vec<Ipv4Addr>,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
    /// The domain that clients are in, and look short names up in.
    pub domain: Option<Name>,
    /// More domains that clients look short names up in.
    pub search: Vec<Name>,
    /// Largest IP packet on the link, bytes.
    pub mtu: Option<u16>,
    /// Routes beside the default one.
    pub routes: Vec<Route>,
    /// Addresses for clients without reservation, first and last.
    pub pool: Option<RangeInclusive<Ipv4Addr>>,
    /// Clients that always get the same.
    pub reservations: BTreeMap<MacAddr, Reservation<Ipv4Addr>>,
    /// How long an address is lent.
    pub lease: Duration,
}

/// A server with its leases.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    leases: Leases<Ipv4Addr>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Where it goes, from the server's own address and port 67. If that is no broadcast, the
    /// client may not answer ARP for it yet: `mac` says where it is.
    pub to: SocketAddrV4,
    /// Hardware address that it goes to.
    pub mac: MacAddr,
    /// The payload of the UDP datagram.
    pub message: Vec<u8>,
}

/// A client's message with what follows from it.
struct Exchange<'a> {
    message: &'a Message,
    client: Client,
    /// What the client gets, if that was decided beforehand.
    reserved: Option<Reservation<Ipv4Addr>>,
    taken: &'a dyn Fn(Ipv4Addr) -> bool,
}

/// What becomes of a message: an answer, or none, or the reason why it was dropped.
type Outcome = Result<Option<Reply>, &'static str>;

impl Server {
    /// A server that has lent nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let leases = Leases::new(settings.pool.clone());
        Self { settings, leases }
    }

    /// The leases of the pool.
    #[must_use]
    pub fn leases(&self) -> &Leases<Ipv4Addr> {
        &self.leases
    }

    /// The leases of the pool, to restore them.
    pub fn leases_mut(&mut self) -> &mut Leases<Ipv4Addr> {
        &mut self.leases
    }

    /// Handles a message of a client; returns the answer, if it gets one.
    ///
    /// # Errors
    /// The message is malformed, or not for a server like this one: the name of the drop counter.
    pub fn handle(&mut self, now: Instant, request: &Request<'_, Ipv4Addr>) -> Outcome {
        let message = Message::parse(request.message).map_err(|error| error.reason())?;
        if message.operation != Operation::Request {
            return Err("dhcp-not-a-request");
        }
        if !message.giaddr.is_unspecified() {
            return Err("dhcp-relayed");
        }
        if request.mac.is_some_and(|mac| mac != message.chaddr) {
            return Err("dhcp-spoofed-mac");
        }
        let kind = message.options.kind().ok_or("dhcp-type")?;
        let by_mac = || self.settings.reservations.get(&message.chaddr).cloned();
        let exchange = Exchange {
            message: &message,
            client: client(&message).ok_or("dhcp-client-id")?,
            reserved: request.planned.clone().or_else(by_mac),
            taken: request.taken,
        };
        match kind {
            MessageType::Discover => self.discover(now, &exchange),
            MessageType::Request => self.request(now, &exchange),
            MessageType::Decline => self.decline(now, &exchange),
            MessageType::Release => self.release(now, &exchange),
            MessageType::Inform => self.inform(&exchange),
            MessageType::Offer | MessageType::Ack | MessageType::Nak => Err("dhcp-not-a-request"),
        }
    }

    /// RFC 2131 section 4.3.1.
    fn discover(&mut self, now: Instant, exchange: &Exchange<'_>) -> Outcome {
        let options = &exchange.message.options;
        let address = match &exchange.reserved {
            Some(reserved) => reserved.address,
            None => {
                let wanted = options.address(option::REQUESTED_ADDRESS);
                let Self { settings, leases } = self;
                let taken = |address| settings.is_taken(address, exchange.taken);
                leases.offer(now, &exchange.client, wanted, &taken).ok_or("dhcp-pool-empty")?
            }
        };
        // RFC 4039 section 3.1: whoever asks for it takes the address without asking again.
        let rapid = options.get(option::RAPID_COMMIT).is_some();
        if rapid && self.grant(now, exchange, address) {
            let mut reply = self.answer(exchange, MessageType::Ack);
            reply.options.set(option::RAPID_COMMIT, []);
            return Ok(Some(self.lend(exchange, reply, address)));
        }
        let reply = self.answer(exchange, MessageType::Offer);
        Ok(Some(self.lend(exchange, reply, address)))
    }

    /// RFC 2131 section 4.3.2.
    fn request(&mut self, now: Instant, exchange: &Exchange<'_>) -> Outcome {
        let message = exchange.message;
        let requested = message.options.address(option::REQUESTED_ADDRESS);
        let own = Some(message.ciaddr).filter(|address| !address.is_unspecified());
        if let Some(server) = message.options.address(option::SERVER)
            && server != self.settings.server
        {
            // SELECTING, and another was selected.
            self.leases.withdraw(&exchange.client);
            return Ok(None);
        }
        // SELECTING and INIT-REBOOT name the address in an option, RENEWING and REBINDING have it.
        let address = requested.or(own).ok_or("dhcp-no-address")?;
        if !self.grant(now, exchange, address) {
            return Ok(Some(self.refuse(exchange, address)));
        }
        let mut reply = self.answer(exchange, MessageType::Ack);
        reply.ciaddr = message.ciaddr;
        Ok(Some(self.lend(exchange, reply, address)))
    }

    /// RFC 2131 section 4.3.3.
    fn decline(&mut self, now: Instant, exchange: &Exchange<'_>) -> Outcome {
        let options = &exchange.message.options;
        if options.address(option::SERVER).is_some_and(|server| server != self.settings.server) {
            return Ok(None);
        }
        let address = options.address(option::REQUESTED_ADDRESS).ok_or("dhcp-no-address")?;
        // A reserved address stays reserved: no other would do.
        if exchange.reserved.is_some() || self.leases.decline(now, &exchange.client, address) {
            Ok(None)
        } else {
            Err("dhcp-no-lease")
        }
    }

    /// RFC 2131 section 4.3.4.
    fn release(&mut self, now: Instant, exchange: &Exchange<'_>) -> Outcome {
        let address = exchange.message.ciaddr;
        if exchange.reserved.is_some() || self.leases.release(now, &exchange.client, address) {
            Ok(None)
        } else {
            Err("dhcp-no-lease")
        }
    }

    /// RFC 2131 section 4.3.5: everything but an address and its times.
    fn inform(&self, exchange: &Exchange<'_>) -> Outcome {
        let ciaddr = exchange.message.ciaddr;
        if !self.settings.subnet.contains(&ciaddr) {
            return Err("dhcp-no-address");
        }
        let mut reply = self.answer(exchange, MessageType::Ack);
        reply.ciaddr = ciaddr;
        Ok(Some(self.finish(exchange, reply)))
    }

    /// Lends an address; false if the client cannot have it.
    fn grant(&mut self, now: Instant, exchange: &Exchange<'_>, address: Ipv4Addr) -> bool {
        match &exchange.reserved {
            Some(reserved) => reserved.address == address,
            None => {
                let Self { settings, leases } = self;
                let time = settings.lease_for(exchange.message);
                let taken = |address| settings.is_taken(address, exchange.taken);
                leases.bind(now, &exchange.client, address, time, &taken)
            }
        }
    }

    /// A reply without an address.
    fn answer(&self, exchange: &Exchange<'_>, kind: MessageType) -> Message {
        let message = exchange.message;
        let mut options = Options::default();
        options.set(option::MESSAGE_TYPE, [kind.code()]);
        options.set(option::SERVER, self.settings.server.octets());
        // RFC 6842 section 3.
        if let Some(client) = message.options.get(option::CLIENT) {
            options.set(option::CLIENT, client);
        }
        Message {
            operation: Operation::Reply,
            xid: message.xid,
            secs: 0,
            broadcast: message.broadcast,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            chaddr: message.chaddr,
            options,
        }
    }

    /// Completes a reply that lends an address.
    fn lend(&self, exchange: &Exchange<'_>, mut reply: Message, address: Ipv4Addr) -> Reply {
        let time = self.settings.lease_for(exchange.message);
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        reply.yiaddr = address;
        reply.options.set(option::LEASE_TIME, seconds(time).to_be_bytes());
        // RFC 2131 section 4.4.5.
        reply.options.set(option::RENEWAL, seconds(time / 2).to_be_bytes());
        reply.options.set(option::REBINDING, seconds(time / 8 * 7).to_be_bytes());
        self.finish(exchange, reply)
    }

    /// Adds what the client wants to know and fits, and finds the way to it.
    fn finish(&self, exchange: &Exchange<'_>, mut reply: Message) -> Reply {
        let asked = &exchange.message.options;
        let parameters = asked.get(option::PARAMETERS);
        let max = asked.number16(option::MAX_SIZE).unwrap_or(0).max(MAX_REPLY);
        let max = usize::from(max.saturating_sub(HEADERS));
        let host_name = exchange.reserved.as_ref().and_then(|it| it.host_name.as_deref());
        for (code, data) in self.settings.parameters(host_name) {
            // Without a list the client takes what it gets.
            if parameters.is_none_or(|wanted| wanted.contains(&code)) {
                reply.options.set(code, data);
                if reply.emitted_len() > max {
                    reply.options.remove(code);
                }
            }
        }
        // RFC 2131 section 4.1.
        let (to, mac) = if !reply.ciaddr.is_unspecified() {
            (reply.ciaddr, reply.chaddr)
        } else if reply.broadcast {
            (Ipv4Addr::BROADCAST, MacAddr::BROADCAST)
        } else {
            (reply.yiaddr, reply.chaddr)
        };
        Reply { to: SocketAddrV4::new(to, CLIENT_PORT), mac, message: reply.emit() }
    }

    /// Tells a client that it cannot have an address. Always a broadcast (RFC 2131 section 4.1):
    /// its address may be of another link.
    fn refuse(&self, exchange: &Exchange<'_>, address: Ipv4Addr) -> Reply {
        let mut reply = self.answer(exchange, MessageType::Nak);
        let why = format!("{address} is not yours here");
        reply.options.set(option::MESSAGE, why);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT);
        Reply { to, mac: MacAddr::BROADCAST, message: reply.emit() }
    }
}

impl Settings {
    /// How long a client gets its address: as it wishes, within bounds.
    fn lease_for(&self, message: &Message) -> Duration {
        let wish = message.options.number32(option::LEASE_TIME);
        let wish = wish.map_or(self.lease, |seconds| Duration::from_secs(seconds.into()));
        wish.clamp(SHORTEST_LEASE.min(self.lease), self.lease)
    }

    /// True for addresses that the pool does not give out.
    fn is_taken(&self, address: Ipv4Addr, by_others: &dyn Fn(Ipv4Addr) -> bool) -> bool {
        address == self.server
            || Some(address) == self.router
            || address == self.subnet.network()
            || address == self.subnet.broadcast()
            || self.reservations.values().any(|reserved| reserved.address == address)
            || by_others(address)
    }

    /// What there is to tell, the most important first.
    fn parameters(&self, host_name: Option<&str>) -> Vec<(u8, Vec<u8>)> {
        let addresses = |list: &[Ipv4Addr]| (!list.is_empty()).then(|| addresses_option(list));
        let domain = self.domain.as_ref();
        let search: Vec<Name> = domain.into_iter().chain(&self.search).cloned().collect();
        let values = [
            (option::SUBNET_MASK, addresses(&[self.subnet.netmask()])),
            (option::ROUTER, addresses(self.router.as_slice())),
            (option::DNS, addresses(&self.dns)),
            (option::ROUTES, (!self.routes.is_empty()).then(|| routes_option(&self.all_routes()))),
            (option::MTU, self.mtu.map(|mtu| mtu.to_be_bytes().to_vec())),
            (option::BROADCAST, addresses(&[self.subnet.broadcast()])),
            (option::HOST_NAME, host_name.map(|name| name.as_bytes().to_vec())),
            (option::DOMAIN_NAME, domain.map(|domain| domain.to_string().into_bytes())),
            (option::NTP, addresses(&self.ntp)),
            (option::SEARCH, (!search.is_empty()).then(|| names_option(&search))),
        ];
        values.into_iter().filter_map(|(code, data)| Some((code, data?))).collect()
    }

    /// The routes with the default one: who reads them does not read the router's option (RFC
    /// 3442).
    fn all_routes(&self) -> Vec<Route> {
        let default = |router| Route { destination: Ipv4Addr::UNSPECIFIED, prefix_len: 0, router };
        self.routes.iter().copied().chain(self.router.map(default)).collect()
    }
}

/// What a client is known by: its identifier, else its hardware address (RFC 2131 section 4.2).
/// `None` if the identifier is longer than one option: nobody needs that, and it is stored.
fn client(message: &Message) -> Option<Client> {
    match message.options.get(option::CLIENT) {
        Some(id) if !id.is_empty() => (id.len() <= MAX_CLIENT).then(|| Client(id.to_vec())),
        // As an identifier of that form would be (RFC 2132 section 9.14): 1 is Ethernet.
        _ => Some(Client([&[1], &message.chaddr.0[..]].concat())),
    }
}
