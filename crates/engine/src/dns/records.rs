//! The records of a network's own, as its configuration has them.

use std::collections::HashMap;
use std::net::IpAddr;

use netyard_wire::dns::{Data, Fact, Name, Srv};

use crate::config::{Config, DnsData};

/// Records by their names.
#[derive(Debug, Default)]
pub(super) struct Records {
    zone: Option<Name>,
    /// Of names in the network's zone, without it, in lower case; the empty one is the zone's own.
    within: HashMap<String, Vec<Fact>>,
    /// Of all other names.
    elsewhere: HashMap<Name, Vec<Fact>>,
    /// Names in the zone by their addresses.
    by_address: HashMap<IpAddr, String>,
}

impl Records {
    /// The records of `config`. What is no name stands for nothing: names were checked when they were read.
    pub(super) fn new(config: &Config) -> Self {
        let mut records = Self { zone: config.zone.parse().ok(), ..Self::default() };
        for record in &config.dns.records {
            let (Ok(name), Some(data)) = (record.name.parse::<Name>(), data(&record.data)) else {
                continue;
            };
            let fact = Fact { ttl: record.ttl, data };
            let Some(host) = records.zone.as_ref().and_then(|zone| name.strip_zone(zone)) else {
                records.elsewhere.entry(name).or_default().push(fact);
                continue;
            };
            if let DnsData::Address(address) = record.data
                && !host.is_empty()
            {
                records.by_address.entry(address).or_insert_with(|| host.clone());
            }
            // What has names below it is there (RFC 8020).
            let mut below = host.as_str();
            while let Some((_, above)) = below.split_once('.') {
                records.within.entry(above.to_owned()).or_default();
                below = above;
            }
            records.within.entry(host).or_default().push(fact);
        }
        records
    }

    /// Whether a name has records.
    pub(super) fn has(&self, name: &Name) -> bool {
        let within = || self.zone.as_ref().and_then(|zone| name.strip_zone(zone));
        self.elsewhere.contains_key(name)
            || within().is_some_and(|it| self.within.contains_key(&it))
    }

    /// What is known of a name of the zone; `None`: there is no such name.
    pub(super) fn within(&self, host: &str) -> Option<&[Fact]> {
        self.within.get(host).map(Vec::as_slice)
    }

    /// What is known of a name that is not in the zone; `None`: nothing.
    pub(super) fn elsewhere(&self, name: &Name) -> Option<&[Fact]> {
        self.elsewhere.get(name).map(Vec::as_slice)
    }

    /// The name of an address in the zone, without it.
    pub(super) fn host(&self, address: IpAddr) -> Option<&str> {
        self.by_address.get(&address).map(String::as_str)
    }
}

fn data(data: &DnsData) -> Option<Data> {
    Some(match data {
        DnsData::Address(address) => Data::from(*address),
        DnsData::Alias(target) => Data::Cname(target.parse().ok()?),
        DnsData::Srv { priority, weight, port, target } => Data::Srv(Srv {
            priority: *priority,
            weight: *weight,
            port: *port,
            target: target.parse().ok()?,
        }),
        DnsData::Text(text) => Data::text(text),
    })
}
