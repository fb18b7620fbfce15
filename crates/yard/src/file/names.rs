//! `dns` of a network: its zone, the records of its own, and who is asked for other names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use netyard_engine::config::{Dns, DnsData, DnsRecord, DnsSplit};
use netyard_wire::dns::Name;

use super::check_name;
use super::instances::duration;
use super::networks::RESERVED_NAMES;
use super::reader::{Field, Place, Report, Section};
use crate::model::{
    MAX_LABEL, MAX_SEARCH, MAX_SEARCH_BYTES, NetworkSpec, SEARCH_OF_HOST, name_bytes,
};

/// Keys of `dns`.
pub(super) const KEYS: &[&str] = &["zone", "records", "split", "cache", "search"];

/// Keys of a record.
pub(super) const RECORD_KEYS: &[&str] = &["address", "alias", "srv", "txt", "ttl"];

/// How long a record may be kept, if it does not say.
const TTL: Duration = Duration::from_secs(60);

/// How long it can say.
const TTLS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3_600);

/// Most records of a network, most bytes of one text, and most of the names, targets and texts of all: even if all
/// are of one name, with some 20 bytes more for each record, they fit an answer of 65,535 bytes, and one message
/// between a keeper and a network's process.
const MAX_RECORDS: usize = 500;
const MAX_TEXT: usize = 2_000;
const MAX_RECORD_BYTES: usize = 48 * 1024;

/// Most domains with resolvers of their own.
const MAX_SPLIT: usize = 64;
/// Most resolvers that are asked for the names of a domain.
pub const MAX_SERVERS: usize = 4;

/// The port of resolvers.
const DNS_PORT: u16 = 53;

/// What `dns` says of a network.
#[derive(Default)]
pub(super) struct Names {
    /// The zone, if it is given.
    pub(super) zone: Option<String>,
    pub(super) dns: Dns,
    /// Who is asked for names below some domains, with the places.
    pub(super) split: Vec<(DnsSplit, Place)>,
    /// The names of records about addresses, with their places.
    pub(super) addressed: Vec<(String, Place)>,
}

/// Reads the table of a network that is called `network`.
pub(super) fn read(section: &Section<'_>, network: &str, report: &mut Report<'_>) -> Names {
    let mut names = Names::default();
    let Some(table) = section.field("dns").and_then(|field| field.table(report)) else {
        return names;
    };
    let table = table.only(KEYS, report);
    names.zone = zone(&table, report);
    let zone = names.zone.as_deref().unwrap_or(network).to_owned();
    records(&table, &zone, &mut names, report);
    names.split = split(&table, &zone, report);
    if let Some(cache) = table.field("cache").and_then(|field| field.boolean(report)) {
        names.dns.cache = cache;
    }
    names.dns.search = search(&table, &zone, report);
    names.dns.split = names.split.iter().map(|(split, _)| split.clone()).collect();
    names
}

fn zone(table: &Section<'_>, report: &mut Report<'_>) -> Option<String> {
    let zone = table.string("zone", report)?;
    for label in zone.value.split('.') {
        check_name(label, MAX_LABEL, &zone.place, report);
    }
    Some(zone.value.to_owned())
}

/// Reads `search` of a network with this zone.
fn search(table: &Section<'_>, zone: &str, report: &mut Report<'_>) -> Vec<String> {
    let mut domains = Vec::new();
    for text in table.strings("search", report) {
        match whole_name(text.value) {
            Some(domain) => domains.push(domain),
            None => {
                let found = text.value;
                let message = format!(
                    "expected a domain like \"corp.example\", or \"{SEARCH_OF_HOST}\" for those that the host \
                     searches, found {found:?}"
                );
                report.add(&text.place, message);
            }
        }
    }
    if domains.len() > MAX_SEARCH
        && let Some(field) = table.field("search")
    {
        report.add(&field.place, format!("at most {MAX_SEARCH} domains are searched"));
    }
    let others = domains.iter().filter(|domain| *domain != SEARCH_OF_HOST && *domain != zone);
    let bytes: usize = others.map(|domain| name_bytes(domain)).sum();
    if name_bytes(zone).saturating_add(bytes) > MAX_SEARCH_BYTES
        && bytes > 0
        && let Some(field) = table.field("search")
    {
        let message = format!(
            "with the zone {zone} these domains are too long: at most {MAX_SEARCH_BYTES} bytes of all, each with 2 more"
        );
        report.add(&field.place, message);
    }
    domains
}

/// Reads `split` of a network with this zone.
fn split(table: &Section<'_>, zone: &str, report: &mut Report<'_>) -> Vec<(DnsSplit, Place)> {
    const EXPECTED: &str =
        "an address, or a list of addresses, like \"10.0.0.53\" or \"[fd00::53]:5353\"";
    let Some(table) = table.field("split").and_then(|field| field.table(report)) else {
        return Vec::new();
    };
    let mut split: Vec<(DnsSplit, Place)> = Vec::new();
    for (text, field) in table.fields() {
        let domain = text.to_ascii_lowercase();
        let message = if domain != "." && whole_name(&domain).is_none() {
            format!(
                "expected a domain like \"corp.example\", or \".\" for all names, found {text:?}"
            )
        } else if is_within(&domain, zone) {
            format!("the network itself answers for {zone}")
        } else if split.iter().any(|(earlier, _)| earlier.domain == domain) {
            format!("{domain} is there already")
        } else {
            let servers = each(&field, EXPECTED, report, server);
            if servers.len() > MAX_SERVERS {
                let message = format!("at most {MAX_SERVERS} resolvers are asked for a domain");
                report.add(&field.place, message);
            }
            if let Some(server) = servers.iter().find(|server| needs_interface(server)) {
                let address = server.ip();
                let message = format!(
                    "{address} is an address of a link: say of which, with the number of its interface as in \
                     \"[{address}%2]:{}\"",
                    server.port()
                );
                report.add(&field.place, message);
            }
            split.push((DnsSplit { domain, servers }, field.place));
            continue;
        };
        report.add(&field.place, message);
    }
    if split.len() > MAX_SPLIT
        && let Some((_, place)) = split.first()
    {
        report.add(place, format!("these are {} domains, more than {MAX_SPLIT}", split.len()));
    }
    split
}

/// A resolver, with or without a port.
fn server(text: &str) -> Option<SocketAddr> {
    let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS_PORT));
    let server = address.or_else(|_| text.parse()).ok()?;
    let good = server.port() != 0 && !server.ip().is_unspecified() && !server.ip().is_multicast();
    good.then_some(server)
}

/// The same where no interface is needed to reach it.
#[must_use]
pub fn resolver(text: &str) -> Option<SocketAddr> {
    server(text).filter(|server| !needs_interface(server))
}

/// True if each interface may have another machine of that address.
fn needs_interface(server: &SocketAddr) -> bool {
    matches!(server, SocketAddr::V6(it) if it.ip().is_unicast_link_local() && it.scope_id() == 0)
}

/// Reports resolvers that are in the network itself where it is in user mode: what the network asks goes by the
/// host, which has no way there.
pub(super) fn check_servers(
    spec: &NetworkSpec,
    split: &[(DnsSplit, Place)],
    report: &mut Report<'_>,
) {
    for (split, place) in split {
        let inside = |server: &&SocketAddr| match server.ip() {
            IpAddr::V4(address) => spec.subnet.contains(&address),
            IpAddr::V6(address) => spec.subnet6.contains(&address),
        };
        if let Some(server) = split.servers.iter().find(inside)
            && !spec.is_bridge()
        {
            let message =
                format!("{server} is in the network itself: in user mode nobody is asked there");
            report.add(place, message);
        }
    }
}

/// Reads `records` of a network with this zone.
fn records(table: &Section<'_>, zone: &str, names: &mut Names, report: &mut Report<'_>) {
    let Some(records) = table.field("records").and_then(|field| field.table(report)) else {
        return;
    };
    let mut first = BTreeMap::new();
    let mut aliases = Vec::new();
    for (text, field) in records.fields() {
        let name = text.to_ascii_lowercase();
        if let Err(message) = check_record_name(&name, zone) {
            report.add(&field.place, message);
            continue;
        }
        if let Some(earlier) = first.insert(name.clone(), text) {
            report.add(&field.place, format!("{text} is there already, as {earlier}"));
            continue;
        }
        let Record { ttl, data } = record(&field, zone, report);
        let alias = data.iter().find_map(|data| match data {
            DnsData::Alias(target) => Some(target.clone()),
            _ => None,
        });
        if alias.is_some() || data.iter().any(|data| matches!(data, DnsData::Address(_))) {
            names.addressed.push((name.clone(), field.place.clone()));
        }
        match alias {
            Some(_) if data.len() > 1 => {
                let message = "a name that is an alias has no other records";
                report.add(&field.place, message);
            }
            Some(_) if name == zone => {
                let message = "the zone itself cannot be an alias: give it addresses";
                report.add(&field.place, message);
            }
            Some(target) => aliases.push((name.clone(), target, field.place.clone())),
            None => {}
        }
        let record = |data| DnsRecord { name: name.clone(), ttl, data };
        names.dns.records.extend(data.into_iter().map(record));
    }
    let are_aliases: BTreeSet<_> = aliases.iter().map(|(name, ..)| name.as_str()).collect();
    for (_, target, place) in &aliases {
        if are_aliases.contains(target.as_str()) {
            report.add(place, format!("{target} is an alias itself: name what it stands for"));
        } else if !is_within(target, zone) && !first.contains_key(target) {
            let message = format!(
                "{target} is neither in the zone {zone} nor has it a record here, and aliases of names \
                 outside are not followed"
            );
            report.add(place, message);
        }
    }
    if names.dns.records.len() > MAX_RECORDS
        && let Some(field) = table.field("records")
    {
        let message =
            format!("these are {} records, more than {MAX_RECORDS}", names.dns.records.len());
        report.add(&field.place, message);
    }
    let bytes: usize = names.dns.records.iter().map(record_bytes).sum();
    if bytes > MAX_RECORD_BYTES
        && let Some(field) = table.field("records")
    {
        let message = format!(
            "the names, targets and texts of all records are {bytes} bytes, more than {MAX_RECORD_BYTES}"
        );
        report.add(&field.place, message);
    }
}

/// The bytes of its name, target and text; those of a text as a message between processes has it, where some
/// characters take more.
fn record_bytes(record: &DnsRecord) -> usize {
    let data = match &record.data {
        DnsData::Address(_) => 0,
        DnsData::Alias(target) | DnsData::Srv { target, .. } => target.len(),
        DnsData::Text(text) => {
            serde_json::to_string(text).map_or(text.len(), |json| json.len().saturating_sub(2))
        }
    };
    record.name.len().saturating_add(data)
}

/// What stands behind a name.
struct Record {
    ttl: u32,
    data: Vec<DnsData>,
}

fn record(field: &Field<'_>, zone: &str, report: &mut Report<'_>) -> Record {
    const EXPECTED: &str =
        "an address, a list of addresses, or a table like { alias = \"web.lan\" }";
    let mut record = Record { ttl: seconds(TTL), data: Vec::new() };
    if !field.is_table() {
        record.data = each(field, EXPECTED, report, address);
        return record;
    }
    let Some(table) = field.table(report) else { return record };
    let table = table.only(RECORD_KEYS, report);
    if let Some(ttl) = duration(&table, "ttl", TTLS, report) {
        record.ttl = seconds(ttl);
    }
    let mut has_data = false;
    let mut read = |key: &str,
                    expected: &str,
                    read: &dyn Fn(&str) -> Option<DnsData>,
                    report: &mut Report<'_>| {
        if let Some(field) = table.field(key) {
            has_data = true;
            record.data.extend(each(&field, expected, report, read));
        }
    };
    read("address", "an address, or a list of addresses", &address, report);
    read("alias", &format!("a whole name like \"web.{zone}\""), &alias, report);
    read(
        "srv",
        &format!("\"PRIORITY WEIGHT PORT NAME\", like \"0 100 389 ldap.{zone}\""),
        &srv,
        report,
    );
    read("txt", &format!("a text of at most {MAX_TEXT} bytes"), &text, report);
    if !has_data {
        report.add(&table.place, "nothing is said of it: give address, alias, srv or txt");
    }
    record
}

/// A value, or every one of a list that is not empty.
fn each<T>(
    field: &Field<'_>,
    expected: &str,
    report: &mut Report<'_>,
    read: impl Fn(&str) -> Option<T>,
) -> Vec<T> {
    let one = |field: &Field<'_>, report: &mut Report<'_>| {
        let text = field.string(expected, report)?;
        read(text.value).or_else(|| field.wrong(expected, report))
    };
    if field.is_string() {
        return one(field, report).into_iter().collect();
    }
    let Some(items) = field.items(expected, report) else { return Vec::new() };
    if items.is_empty() {
        report.add(&field.place, format!("expected {expected}; the list is empty"));
    }
    items.iter().filter_map(|item| one(item, report)).collect()
}

fn address(text: &str) -> Option<DnsData> {
    text.parse::<IpAddr>().ok().map(DnsData::Address)
}

fn alias(text: &str) -> Option<DnsData> {
    whole_name(text).map(DnsData::Alias)
}

/// As in a zone file (RFC 2782).
fn srv(text: &str) -> Option<DnsData> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [priority, weight, port, target] = words.as_slice() else { return None };
    Some(DnsData::Srv {
        priority: priority.parse().ok()?,
        weight: weight.parse().ok()?,
        port: port.parse().ok()?,
        // RFC 2782: the root stands for a service that is not there.
        target: if *target == "." { ".".to_owned() } else { whole_name(target)? },
    })
}

fn text(text: &str) -> Option<DnsData> {
    (text.len() <= MAX_TEXT).then(|| DnsData::Text(text.to_owned()))
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

/// A name that is written out, in lower case.
fn whole_name(text: &str) -> Option<String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'_')
    };
    let good = text.split('.').all(label) && text.parse::<Name>().is_ok();
    good.then(|| text.to_ascii_lowercase())
}

fn is_within(name: &str, zone: &str) -> bool {
    name == zone || name.strip_suffix(zone).is_some_and(|host| host.ends_with('.'))
}

/// Says why a name cannot have records.
fn check_record_name(name: &str, zone: &str) -> Result<(), String> {
    if name.contains('*') {
        return Err("records are of single names: a `*` stands for nothing here".to_owned());
    }
    if whole_name(name).is_none() || (name != zone && !name.contains('.')) {
        return Err(format!("expected a whole name like \"printer.{zone}\", found {name:?}"));
    }
    if is_within(name, "arpa") || is_within(name, "localhost") {
        return Err(
            "names of addresses follow from those addresses, and have no records".to_owned()
        );
    }
    Ok(())
}

/// Reports records about the addresses of names that somebody has: `taken` are those of instances and services
/// of the network.
pub(super) fn check_taken(
    spec: &NetworkSpec,
    addressed: &[(String, Place)],
    taken: &BTreeSet<&str>,
    report: &mut Report<'_>,
) {
    for (name, place) in addressed {
        let host = name.strip_suffix(&spec.zone).and_then(|host| host.strip_suffix('.'));
        let Some(host) = host else { continue };
        if RESERVED_NAMES.contains(&host) {
            report.add(place, format!("{host:?} is a name that every network has for itself"));
        } else if taken.contains(host) {
            let message = format!("{name} is an instance or service, which has its own addresses");
            report.add(place, message);
        }
    }
}
