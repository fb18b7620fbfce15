//! A small zone: hosts with their addresses, and the way back from these, as one server answers for both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{A, AAAA, ANY, Data, Flags, IN, Name, PTR, Query, Rcode, Record, Response, SOA, Soa};

/// How long an answer may be kept, seconds: hosts come and go.
const TTL: u32 = 5;
/// How long "there is no such name" may be kept, seconds: the name may be on its way.
const NEGATIVE_TTL: u32 = 1;
/// Reverse names of IPv4 addresses have this many labels, `in-addr.arpa` included.
const REVERSE4_LABELS: usize = 4 + 2;
/// The same for IPv6.
const REVERSE6_LABELS: usize = 32 + 2;

/// The hosts of a [`Zone`]. Names are in lower case, without the zone, and not empty.
pub trait Hosts {
    /// The addresses of a name; `None`: there is no such name. A name without addresses of its own may have
    /// others below it.
    fn addresses(&self, host: &str) -> Option<Vec<IpAddr>>;
    /// The name of an address of the zone's subnets.
    fn host(&self, address: IpAddr) -> Option<String>;
}

/// A zone of names, and those of the way back from the addresses of its subnets.
#[derive(Debug, Clone)]
pub struct Zone {
    name: Name,
    text: String,
    server: String,
    reverse: Vec<Reverse>,
}

/// The way back from the addresses of one subnet.
#[derive(Debug, Clone)]
struct Reverse {
    address: IpAddr,
    prefix_len: u8,
    /// Ends at a whole octet or hexadecimal digit of the prefix.
    zone: Name,
    /// Of the names of whole addresses.
    labels: usize,
}

/// What the zone knows of a name.
enum Known {
    /// These addresses; none: the name exists and has no records of its own.
    Addresses(Vec<IpAddr>),
    /// This name belongs to the address that was asked about.
    Name(Name),
    /// The top of a zone.
    Top,
    /// There is no such name.
    Nothing,
}

impl Zone {
    /// The zone of this name, of a host in it that serves it, and of subnets, each an address and the length of
    /// its prefix. What is no name stands for nothing: such a zone answers the way back alone.
    #[must_use]
    pub fn new(name: &str, server: &str, subnets: impl IntoIterator<Item = (IpAddr, u8)>) -> Self {
        let reverse =
            subnets.into_iter().map(|(address, prefix_len)| Reverse::of(address, prefix_len));
        Self {
            name: parse(name),
            text: name.to_owned(),
            server: server.to_owned(),
            reverse: reverse.collect(),
        }
    }

    /// Whether a name is the zone's to answer.
    #[must_use]
    pub fn owns(&self, name: &Name) -> bool {
        self.is_forward(name) || self.reverse.iter().any(|reverse| reverse.owns(name))
    }

    /// The names whose questions are for this zone: its own, and those of its subnets.
    pub fn tops(&self) -> impl Iterator<Item = &Name> {
        [&self.name].into_iter().chain(self.reverse.iter().map(|reverse| &reverse.zone))
    }

    /// The answer to a query about a name of the zone; `None` for all others.
    #[must_use]
    pub fn answer(&self, query: &Query, hosts: &impl Hosts) -> Option<Response> {
        let name = &query.question.name;
        if self.is_forward(name) {
            return Some(self.respond(query, &self.name, self.forward(name, hosts)));
        }
        if let Some(reverse) = self.reverse.iter().find(|reverse| reverse.owns(name)) {
            let known = match name.reverse_address() {
                Some(address) => self.backward(address, hosts),
                None => reverse.partial(name),
            };
            return Some(self.respond(query, &reverse.zone, known));
        }
        if name.is_within(&parse("localhost")) {
            // RFC 6761 section 6.3: never asked of anybody.
            let known = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            return Some(self.respond(query, name, Known::Addresses(known)));
        }
        None
    }

    fn is_forward(&self, name: &Name) -> bool {
        self.name != Name::root() && name.is_within(&self.name)
    }

    fn respond(&self, query: &Query, zone: &Name, known: Known) -> Response {
        let question = &query.question;
        let wanted = |kind: u16| {
            (question.class == IN || question.class == ANY)
                && (question.kind == kind || question.kind == ANY)
        };
        let record = |data| Record { name: question.name.clone(), ttl: TTL, data };
        let mut rcode = Rcode::NoError;
        let mut answers = Vec::new();
        match known {
            Known::Addresses(addresses) => {
                let kind = |address: &IpAddr| if address.is_ipv4() { A } else { AAAA };
                let addresses = addresses.into_iter().filter(|address| wanted(kind(address)));
                answers.extend(addresses.map(|address| record(Data::from(address))));
            }
            Known::Name(name) if wanted(PTR) => answers.push(record(Data::Ptr(name))),
            Known::Top if wanted(SOA) => answers.push(record(Data::Soa(self.soa()))),
            Known::Name(_) | Known::Top => {}
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

    /// What a name within the zone stands for.
    fn forward(&self, name: &Name, hosts: &impl Hosts) -> Known {
        match name.strip_zone(&self.name) {
            Some(host) if host.is_empty() => Known::Top,
            Some(host) => hosts.addresses(&host).map_or(Known::Nothing, Known::Addresses),
            None => Known::Nothing,
        }
    }

    /// Whose address it is.
    fn backward(&self, address: IpAddr, hosts: &impl Hosts) -> Known {
        let Some(host) = hosts.host(address) else { return Known::Nothing };
        let name = format!("{host}.{}", self.text).parse();
        name.map_or(Known::Addresses(Vec::new()), Known::Name)
    }

    fn soa(&self) -> Soa {
        Soa {
            primary: parse(&format!("{}.{}", self.server, self.text)),
            mailbox: parse(&format!("hostmaster.{}", self.text)),
            serial: 1,
            refresh: 3600,
            retry: 600,
            expire: 86_400,
            minimum: NEGATIVE_TTL,
        }
    }
}

impl Reverse {
    fn of(address: IpAddr, prefix_len: u8) -> Self {
        let (rest, labels) = match address {
            IpAddr::V4(_) => (32_u8.saturating_sub(prefix_len).div_ceil(8), REVERSE4_LABELS),
            IpAddr::V6(_) => (128_u8.saturating_sub(prefix_len).div_ceil(4), REVERSE6_LABELS),
        };
        let zone = parent(&Name::reverse(address), rest.into());
        Self { address, prefix_len, zone, labels }
    }

    /// Where the prefix ends within an octet, the rest of that octet is not ours.
    fn owns(&self, name: &Name) -> bool {
        match name.reverse_address() {
            Some(address) => self.contains(address),
            None => name.is_within(&self.zone),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        let differ = |bits: u128, all: u8| {
            bits.checked_shr(u32::from(all.saturating_sub(self.prefix_len))).unwrap_or(0) != 0
        };
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                !differ(u128::from(own.to_bits() ^ other.to_bits()), 32)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => !differ(own.to_bits() ^ other.to_bits(), 128),
            _ => false,
        }
    }

    /// A name that is no whole address: the top, something between the top and the addresses, or nonsense.
    fn partial(&self, name: &Name) -> Known {
        match name.labels().count() {
            count if count == self.zone.labels().count() => Known::Top,
            count if count < self.labels => Known::Addresses(Vec::new()),
            _ => Known::Nothing,
        }
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

/// A name of a configuration, which was checked when it was read; the root stands for nonsense.
fn parse(text: &str) -> Name {
    text.parse().unwrap_or_else(|_| Name::root())
}
