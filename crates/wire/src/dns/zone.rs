//! A small zone: hosts with their addresses, and the way back from these, as one server answers for both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ANY, Data, Flags, IN, Name, Query, Rcode, Record, Response, Soa};

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
    /// What is known of a name beside its addresses; the empty name is the zone's own. `None`: nothing.
    fn facts(&self, _host: &str) -> Option<Vec<Fact>> {
        None
    }
    /// What is known of a name that is in no zone; `None` if that is for others to say. All that there is of
    /// the name is here, then.
    fn elsewhere(&self, _name: &Name) -> Option<Vec<Fact>> {
        None
    }
    /// The name of an address of the zone's subnets.
    fn host(&self, address: IpAddr) -> Option<String>;
}

/// A record of a name that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// How long it may be kept, seconds.
    pub ttl: u32,
    /// What it says. A name that this one stands for is looked up too; it is no such name itself.
    pub data: Data,
}

impl Fact {
    /// A record that may soon not be true any more.
    #[must_use]
    pub fn of(data: Data) -> Self {
        Self { ttl: TTL, data }
    }

    fn record(&self, name: &Name) -> Record {
        Record { name: name.clone(), ttl: self.ttl, data: self.data.clone() }
    }
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

    /// The answer to a query about a name of the zone, or one that its hosts know elsewhere; `None` for all
    /// others.
    #[must_use]
    pub fn answer(&self, query: &Query, hosts: &impl Hosts) -> Option<Response> {
        let name = &query.question.name;
        if self.is_forward(name) {
            return Some(self.respond(query, &self.name, self.forward(name, hosts), hosts));
        }
        if let Some(reverse) = self.reverse.iter().find(|reverse| reverse.owns(name)) {
            let known = match name.reverse_address() {
                Some(address) => self.backward(address, hosts),
                None => self.partial(reverse, name),
            };
            return Some(self.respond(query, &reverse.zone, known, hosts));
        }
        if name.is_within(&parse("localhost")) {
            // RFC 6761 section 6.3: never asked of anybody.
            let known = facts(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
            return Some(self.respond(query, name, Some(known), hosts));
        }
        let known = hosts.elsewhere(name)?;
        Some(self.respond(query, name, Some(known), hosts))
    }

    fn is_forward(&self, name: &Name) -> bool {
        self.name != Name::root() && name.is_within(&self.name)
    }

    /// The response of what is known of the name; `None`: there is no such name.
    fn respond(
        &self,
        query: &Query,
        zone: &Name,
        known: Option<Vec<Fact>>,
        hosts: &impl Hosts,
    ) -> Response {
        let question = &query.question;
        let classes = question.class == IN || question.class == ANY;
        let wanted = |kind: u16| classes && (question.kind == kind || question.kind == ANY);
        let mut answers = Vec::new();
        let mut add = |name: &Name, known: &[Fact]| {
            let fitting = known.iter().filter(|fact| wanted(fact.data.kind()));
            answers.extend(fitting.map(|fact| fact.record(name)));
            !answers.is_empty()
        };
        let mut is_there = known.is_some();
        let known = known.unwrap_or_default();
        let alias = known.iter().find_map(|fact| match &fact.data {
            Data::Cname(target) => Some((fact, target)),
            _ => None,
        });
        if !add(&question.name, &known)
            && classes
            && let Some((fact, target)) = alias
        {
            // RFC 1034 section 4.3.2, step 3a: an alias answers for all types.
            let known = self.find(target, hosts);
            is_there = known.is_some();
            add(target, &known.unwrap_or_default());
            answers.insert(0, fact.record(&question.name));
        }
        let rcode = if is_there { Rcode::NoError } else { Rcode::NameError };
        let mut response = Response::to(query, rcode);
        response.flags = response.flags | Flags::AUTHORITATIVE;
        if answers.iter().all(|record| !wanted(record.data.kind())) {
            // RFC 2308 section 3: the zone's record tells how long to believe that.
            let data = Data::Soa(self.soa());
            response.authority.push(Record { name: zone.clone(), ttl: NEGATIVE_TTL, data });
        }
        response.answers = answers;
        response
    }

    /// What is known of a name of ours.
    fn find(&self, name: &Name, hosts: &impl Hosts) -> Option<Vec<Fact>> {
        if self.is_forward(name) { self.forward(name, hosts) } else { hosts.elsewhere(name) }
    }

    /// What a name within the zone stands for.
    fn forward(&self, name: &Name, hosts: &impl Hosts) -> Option<Vec<Fact>> {
        let host = name.strip_zone(&self.name)?;
        if host.is_empty() {
            let own = Fact::of(Data::Soa(self.soa()));
            return Some([vec![own], hosts.facts(&host).unwrap_or_default()].concat());
        }
        match (hosts.addresses(&host), hosts.facts(&host)) {
            (None, None) => None,
            (addresses, others) => {
                Some([facts(addresses.unwrap_or_default()), others.unwrap_or_default()].concat())
            }
        }
    }

    /// Whose address it is.
    fn backward(&self, address: IpAddr, hosts: &impl Hosts) -> Option<Vec<Fact>> {
        let name = format!("{}.{}", hosts.host(address)?, self.text).parse();
        // Who has a name that is none is there, and has no record.
        Some(name.into_iter().map(|name| Fact::of(Data::Ptr(name))).collect())
    }

    /// A reverse name that is no whole address: the top, something between the top and the addresses, or nonsense.
    fn partial(&self, reverse: &Reverse, name: &Name) -> Option<Vec<Fact>> {
        match name.labels().count() {
            count if count == reverse.zone.labels().count() => {
                Some(vec![Fact::of(Data::Soa(self.soa()))])
            }
            count if count < reverse.labels => Some(Vec::new()),
            _ => None,
        }
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
}

fn facts(addresses: Vec<IpAddr>) -> Vec<Fact> {
    addresses.into_iter().map(|address| Fact::of(Data::from(address))).collect()
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
