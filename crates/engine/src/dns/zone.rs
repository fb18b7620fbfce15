//! The network's own names: guests, services, gateway and host, and the way back from their
//! addresses.
//!
//! The zone is made of what is plugged in at the moment of the question, so nothing has to be
//! kept in step, and answers may be kept by clients for [`TTL`] only.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netyard_wire::dns::{self, Data, Flags, Name, Query, Rcode, Record, Response, Soa};

use crate::config::Config;
use crate::guests::Guests;
use crate::service::Services;

/// How long an answer may be kept, seconds: instances come and go.
const TTL: u32 = 5;
/// How long "there is no such name" may be kept, seconds: the name may be on its way.
const NEGATIVE_TTL: u32 = 1;
/// Reverse names of IPv4 addresses have this many labels, `in-addr.arpa` included.
const REVERSE4_LABELS: usize = 4 + 2;
/// The same for IPv6.
const REVERSE6_LABELS: usize = 32 + 2;

/// The zones of one network.
#[derive(Debug)]
pub(super) struct Zone {
    name: Name,
    text: String,
    reverse4: Name,
    reverse6: Name,
}

/// What the zone knows of a name.
enum Known {
    /// These addresses.
    Addresses(Vec<IpAddr>),
    /// This name belongs to the address that was asked about.
    Name(Name),
    /// The name exists and has no records of its own.
    Empty,
    /// The top of a zone.
    Top,
    /// There is no such name.
    Nothing,
}

impl Zone {
    pub(super) fn new(config: &Config) -> Self {
        // A reverse zone ends at a whole octet or hexadecimal digit of the prefix.
        let octets = usize::from(config.subnet4.prefix_len() / 8);
        let digits = usize::from(config.subnet6.prefix_len() / 4);
        Self {
            name: parse(&config.zone),
            text: config.zone.clone(),
            reverse4: parent(&Name::reverse(config.subnet4.network().into()), 4 - octets.min(4)),
            reverse6: parent(&Name::reverse(config.subnet6.network().into()), 32 - digits.min(32)),
        }
    }

    /// The answer to a query about one of the network's own names; `None` for all others.
    pub(super) fn answer(
        &self,
        query: &Query,
        config: &Config,
        guests: &Guests,
        services: &Services,
    ) -> Option<Response> {
        let name = &query.question.name;
        let (zone, known) = if self.name != Name::root() && name.is_within(&self.name) {
            (&self.name, self.forward(name, config, guests, services))
        } else if let Some(address) = name.reverse_address() {
            let zone = if address.is_ipv4() { &self.reverse4 } else { &self.reverse6 };
            // Where the prefix ends within an octet, the rest of that octet is not ours.
            config.is_local(address).then_some(())?;
            (zone, self.reverse(address, config, guests, services))
        } else if name.is_within(&self.reverse4) {
            (&self.reverse4, partial(name, &self.reverse4, REVERSE4_LABELS))
        } else if name.is_within(&self.reverse6) {
            (&self.reverse6, partial(name, &self.reverse6, REVERSE6_LABELS))
        } else if name.is_within(&parse("localhost")) {
            // RFC 6761 section 6.3: never asked of anybody.
            let addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            (name, Known::Addresses(addresses))
        } else {
            return None;
        };
        Some(self.respond(query, zone, known))
    }

    fn respond(&self, query: &Query, zone: &Name, known: Known) -> Response {
        let question = &query.question;
        let wanted = |kind: u16| {
            (question.class == dns::IN || question.class == dns::ANY)
                && (question.kind == kind || question.kind == dns::ANY)
        };
        let record = |data| Record { name: question.name.clone(), ttl: TTL, data };
        let mut rcode = Rcode::NoError;
        let mut answers = Vec::new();
        match known {
            Known::Addresses(addresses) => {
                let addresses = addresses.into_iter();
                let kind = |address: &IpAddr| if address.is_ipv4() { dns::A } else { dns::AAAA };
                let addresses = addresses.filter(|address| wanted(kind(address)));
                answers.extend(addresses.map(|address| record(Data::from(address))));
            }
            Known::Name(name) if wanted(dns::PTR) => answers.push(record(Data::Ptr(name))),
            Known::Top if wanted(dns::SOA) => answers.push(record(Data::Soa(self.soa()))),
            Known::Name(_) | Known::Top | Known::Empty => {}
            Known::Nothing => rcode = Rcode::NameError,
        }
        let mut response = Response::to(query, rcode);
        response.flags = response.flags | Flags::AUTHORITATIVE;
        if answers.is_empty() {
            // RFC 2308 section 3: the zone's record tells how long to believe that.
            let data = Data::Soa(self.soa());
            response.authority.push(Record { name: zone.clone(), ttl: NEGATIVE_TTL, data });
        }
        response.answers = answers;
        response
    }

    /// What a name within the zone stands for. A service goes before an instance of its name.
    fn forward(&self, name: &Name, config: &Config, guests: &Guests, services: &Services) -> Known {
        let Some(host) = name.strip_zone(&self.name) else { return Known::Nothing };
        let own: Option<[IpAddr; 2]> = match host.as_str() {
            "" => return Known::Top,
            "gateway" => Some([config.gateway4().into(), config.gateway6().into()]),
            "host" => Some([config.host4().into(), config.host6().into()]),
            host => services.id_of(host).and_then(|id| Some(services.get(id)?.addresses())),
        };
        if let Some(addresses) = own {
            return Known::Addresses(addresses.to_vec());
        }
        let addresses: Vec<IpAddr> = guests
            .by_name(&host)
            .into_iter()
            .flat_map(|guest| [guest.address4.into(), guest.address6.into()])
            .collect();
        if addresses.is_empty() { Known::Nothing } else { Known::Addresses(addresses) }
    }

    /// Whose address it is.
    fn reverse(
        &self,
        address: IpAddr,
        config: &Config,
        guests: &Guests,
        services: &Services,
    ) -> Known {
        let host = if config.is_gateway(address) {
            "gateway"
        } else if config.is_host(address) {
            "host"
        } else if let Some(guest) = guests.by_address(address) {
            &guest.name
        } else if let Some(service) = services.by_address(address).and_then(|id| services.get(id)) {
            service.name()
        } else {
            return Known::Nothing;
        };
        format!("{host}.{}", self.text).parse().map_or(Known::Empty, Known::Name)
    }

    fn soa(&self) -> Soa {
        Soa {
            primary: parse(&format!("gateway.{}", self.text)),
            mailbox: parse(&format!("hostmaster.{}", self.text)),
            serial: 1,
            refresh: 3600,
            retry: 600,
            expire: 86_400,
            minimum: NEGATIVE_TTL,
        }
    }
}

/// A name within a reverse zone that is no whole address: the top, something between the top and
/// the addresses, or nonsense.
fn partial(name: &Name, zone: &Name, labels: usize) -> Known {
    match name.labels().count() {
        count if count == zone.labels().count() => Known::Top,
        count if count < labels => Known::Empty,
        _ => Known::Nothing,
    }
}

/// The name without its first `labels` labels.
fn parent(name: &Name, labels: usize) -> Name {
    let labels: Vec<String> = name
        .labels()
        .skip(labels)
        .map(|label| String::from_utf8_lossy(label).into_owned())
        .collect();
    parse(&labels.join("."))
}

/// A name of the configuration, which was checked when it was read; the root stands for nonsense.
fn parse(text: &str) -> Name {
    text.parse().unwrap_or_else(|_| Name::root())
}
