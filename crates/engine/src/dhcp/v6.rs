//! The DHCPv6 server (RFC 8415): addresses, not prefixes.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ipnet::Ipv6Net;
use netyard_wire::MacAddr;
use netyard_wire::dhcp::v6::{
    Address, Association, AssociationKind, Message, MessageType, Status, StatusCode, option,
};
use netyard_wire::dns::Name;

use super::leases::{Client, Leases};
use super::{Request, Reservation};

/// Associations of one message that are answered; further ones are as if they were not there.
const MAX_ASSOCIATIONS: usize = 8;

/// RFC 8415 section 18.2.1: a client that sees this waits for no other server.
const BEST: u8 = 255;

/// What a server tells.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The server's DUID, see [`duid`]; the same as long as its leases live.
    pub server: Vec<u8>,
    /// The prefix of the link.
    pub subnet: Ipv6Net,
    /// Resolvers.
    pub dns: Vec<Ipv6Addr>,
    /// Domains to look short names up in.
    pub search: Vec<Name>,
    /// Addresses for clients without reservation, first and last.
    pub pool: Option<RangeInclusive<Ipv6Addr>>,
    /// Clients that always get the same, known by the sender's hardware address or the one in their
    /// DUID. Only their first association gets it.
    pub reservations: BTreeMap<MacAddr, Reservation<Ipv6Addr>>,
    /// How long an address is lent.
    pub lease: Duration,
}

/// A server with its leases.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    leases: Leases<Ipv6Addr>,
}

/// The DUID of who has this hardware address (RFC 8415 section 11.4: type 3, of Ethernet).
#[must_use]
pub fn duid(mac: MacAddr) -> Vec<u8> {
    [&[0, 3, 0, 1], &mac.0[..]].concat()
}

/// The hardware address in a DUID, if it was made of one (RFC 8415 sections 11.2 and 11.4).
fn mac_of(duid: &[u8]) -> Option<MacAddr> {
    match *duid {
        [0, 3, 0, 1, a, b, c, d, e, f] | [0, 1, 0, 1, _, _, _, _, a, b, c, d, e, f] => {
            Some(MacAddr([a, b, c, d, e, f]))
        }
        _ => None,
    }
}

/// A client's message with what follows from it.
struct Exchange<'a> {
    message: &'a Message,
    duid: &'a [u8],
    /// What the client gets, if that was decided beforehand.
    reserved: Option<Ipv6Addr>,
    taken: &'a dyn Fn(Ipv6Addr) -> bool,
}

/// What an assignment is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To be shown.
    Offer,
    /// To be used.
    Lend,
    /// To be used on; what the client cannot keep is told.
    Extend,
}

/// What becomes of a message: an answer, or none, or the reason why it was dropped.
type Outcome = Result<Option<Vec<u8>>, &'static str>;

impl Server {
    /// A server that has lent nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let leases = Leases::new(settings.pool.clone());
        Self { settings, leases }
    }

    /// The leases of the pool.
    #[must_use]
    pub fn leases(&self) -> &Leases<Ipv6Addr> {
        &self.leases
    }

    /// The leases of the pool, to restore them.
    pub fn leases_mut(&mut self) -> &mut Leases<Ipv6Addr> {
        &mut self.leases
    }

    /// Handles a message of a client; returns the payload of the answer, if it gets one. It goes to
    /// port 546 of the address that the message came from.
    ///
    /// # Errors
    /// The message is malformed, or not for a server like this one: the name of the drop counter.
    pub fn handle(&mut self, now: Instant, request: &Request<'_, Ipv6Addr>) -> Outcome {
        use MessageType as Type;
        let message = Message::parse(request.message).map_err(|error| error.reason())?;
        // RFC 8415 section 16: who must name the server, and who must not.
        let server = message.server.as_deref();
        match (message.kind, server) {
            (Type::Solicit | Type::Confirm | Type::Rebind, Some(_)) => {
                return Err("dhcp6-server-id");
            }
            (Type::Request | Type::Renew | Type::Release | Type::Decline, None) => {
                return Err("dhcp6-server-id");
            }
            (_, Some(server)) if server != self.settings.server => return Ok(None),
            _ => {}
        }
        if message.kind == Type::InformationRequest {
            return self.inform(&message);
        }
        let duid = message.client.as_deref().ok_or("dhcp6-client-id")?;
        let by_mac = || {
            let mac = request.mac.or_else(|| mac_of(duid))?;
            self.settings.reservations.get(&mac)
        };
        let reserved = request.planned.as_ref().or_else(by_mac);
        let exchange = Exchange {
            message: &message,
            duid,
            reserved: reserved.map(|reserved| reserved.address),
            taken: request.taken,
        };
        match message.kind {
            Type::Solicit => Ok(Some(self.solicit(now, &exchange))),
            Type::Request => Ok(Some(self.assign(now, &exchange, Purpose::Lend).emit())),
            Type::Renew | Type::Rebind => {
                Ok(Some(self.assign(now, &exchange, Purpose::Extend).emit()))
            }
            Type::Confirm => self.confirm(&exchange),
            Type::Release => Ok(Some(self.give_back(&exchange, |leases, client, address| {
                leases.release(now, client, address)
            }))),
            Type::Decline => Ok(Some(self.give_back(&exchange, |leases, client, address| {
                leases.decline(now, client, address)
            }))),
            Type::Advertise | Type::Reply | Type::Reconfigure | Type::InformationRequest => {
                Err("dhcp6-not-a-request")
            }
        }
    }

    /// RFC 8415 section 18.3.1.
    fn solicit(&mut self, now: Instant, exchange: &Exchange<'_>) -> Vec<u8> {
        if exchange.message.rapid_commit {
            let mut reply = self.assign(now, exchange, Purpose::Lend);
            reply.rapid_commit = true;
            return reply.emit();
        }
        let mut reply = self.assign(now, exchange, Purpose::Offer);
        reply.kind = MessageType::Advertise;
        reply.preference = Some(BEST);
        reply.emit()
    }

    /// RFC 8415 section 18.3.3. An address of this link that the client cannot have is not "on
    /// link": it has to start over to get its own.
    fn confirm(&self, exchange: &Exchange<'_>) -> Outcome {
        let associations = associations(exchange.message);
        let mut addresses = associations.flat_map(|it| &it.addresses).peekable();
        if addresses.peek().is_none() {
            return Err("dhcp6-nothing-to-confirm");
        }
        let fits = |address: Ipv6Addr| {
            self.settings.subnet.contains(&address)
                && exchange.reserved.is_none_or(|reserved| reserved == address)
        };
        let all = addresses.all(|it| fits(it.address));
        let mut reply = self.answer(exchange.message);
        reply.status = Some(if all {
            status(StatusCode::Success, "the addresses are of this link")
        } else {
            status(StatusCode::NotOnLink, "an address is not yours here")
        });
        Ok(Some(reply.emit()))
    }

    /// RFC 8415 sections 18.3.7 and 18.3.8.
    fn give_back(
        &mut self,
        exchange: &Exchange<'_>,
        mut end: impl FnMut(&mut Leases<Ipv6Addr>, &Client, Ipv6Addr) -> bool,
    ) -> Vec<u8> {
        let mut reply = self.answer(exchange.message);
        for association in associations(exchange.message) {
            let client = exchange.client(association.id);
            for Address { address, .. } in &association.addresses {
                // A reserved address stays reserved.
                let known =
                    exchange.reserved == Some(*address) || end(&mut self.leases, &client, *address);
                if !known {
                    let no = status(StatusCode::NoBinding, "there is no such lease");
                    reply.associations.push(refused(association, no));
                    break;
                }
            }
        }
        reply.status = Some(status(StatusCode::Success, ""));
        reply.emit()
    }

    /// RFC 8415 section 18.3.6.
    fn inform(&self, message: &Message) -> Outcome {
        if message.associations.is_empty() {
            Ok(Some(self.answer(message).emit()))
        } else {
            Err("dhcp6-not-a-request")
        }
    }

    /// A reply with an address for each association that can have one.
    fn assign(&mut self, now: Instant, exchange: &Exchange<'_>, purpose: Purpose) -> Message {
        let mut reply = self.answer(exchange.message);
        let mut reserved = exchange.reserved;
        for association in exchange.message.associations.iter().take(MAX_ASSOCIATIONS) {
            let address = match association.kind {
                AssociationKind::Prefix => {
                    let no = status(StatusCode::NoPrefixAvail, "no prefixes are given out");
                    reply.associations.push(refused(association, no));
                    continue;
                }
                AssociationKind::Temporary => None,
                AssociationKind::NonTemporary if exchange.reserved.is_some() => reserved.take(),
                AssociationKind::NonTemporary => self.lease(now, exchange, association, purpose),
            };
            reply.associations.push(self.assigned(association, address, purpose));
        }
        reply
    }

    /// An address of the pool.
    fn lease(
        &mut self,
        now: Instant,
        exchange: &Exchange<'_>,
        association: &Association,
        purpose: Purpose,
    ) -> Option<Ipv6Addr> {
        let Self { settings, leases } = self;
        let client = exchange.client(association.id);
        let wanted = association.addresses.first().map(|wanted| wanted.address);
        let taken = |address: Ipv6Addr| {
            let mut reserved = settings.reservations.values();
            // The first is every router's (RFC 4291 section 2.6.1).
            address == settings.subnet.network()
                || reserved.any(|it| it.address == address)
                || (exchange.taken)(address)
        };
        let address = leases.offer(now, &client, wanted, &taken)?;
        let lent =
            purpose == Purpose::Offer || leases.bind(now, &client, address, settings.lease, &taken);
        lent.then_some(address)
    }

    /// What the client is told about one association.
    fn assigned(
        &self,
        association: &Association,
        address: Option<Ipv6Addr>,
        purpose: Purpose,
    ) -> Association {
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let Some(address) = address else {
            return refused(association, status(StatusCode::NoAddrsAvail, "no address is left"));
        };
        let lease = self.settings.lease;
        let lent = Address { address, preferred: seconds(lease), valid: seconds(lease) };
        let mut addresses = vec![lent];
        if purpose == Purpose::Extend {
            // RFC 8415 sections 18.3.4 and 18.3.5: what the client has and cannot keep.
            let lost = association.addresses.iter().filter(|it| it.address != address);
            addresses.extend(lost.map(|it| Address { preferred: 0, valid: 0, ..*it }));
        }
        Association {
            // RFC 8415 section 21.4.
            renew: seconds(lease / 2),
            rebind: seconds(lease / 5 * 4),
            addresses,
            status: None,
            ..*association
        }
    }

    /// A reply without associations.
    fn answer(&self, message: &Message) -> Message {
        let mut reply = Message::new(MessageType::Reply, message.xid);
        reply.client.clone_from(&message.client);
        reply.server = Some(self.settings.server.clone());
        let wants = |code| message.wants.is_empty() || message.wants.contains(&code);
        if wants(option::DNS) {
            reply.dns.clone_from(&self.settings.dns);
        }
        if wants(option::SEARCH) {
            reply.search.clone_from(&self.settings.search);
        }
        reply
    }
}

impl Exchange<'_> {
    /// Who leases for an association of this client: each has addresses of its own.
    fn client(&self, association: u32) -> Client {
        Client([self.duid, &association.to_be_bytes()].concat())
    }
}

/// The associations that have addresses, as many as are answered.
fn associations(message: &Message) -> impl Iterator<Item = &Association> {
    let all = message.associations.iter().take(MAX_ASSOCIATIONS);
    all.filter(|association| association.kind == AssociationKind::NonTemporary)
}

fn refused(association: &Association, status: Status) -> Association {
    Association {
        kind: association.kind,
        id: association.id,
        renew: 0,
        rebind: 0,
        addresses: Vec::new(),
        status: Some(status),
    }
}

fn status(code: StatusCode, message: &str) -> Status {
    Status { code, message: message.to_owned() }
}
