//! `[networks.NAME]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use netyard_engine::config::{Bridge, Dhcp, Mdns, Mode, Range, Uplink};
use netyard_engine::dhcp::leases::MAX_LEASES;
use netyard_link::rtnetlink::LinkName;

use super::check_name;
use super::instances::duration;
use super::reader::{Located, Place, Report, Section, Uses};
use super::rules::FileRule;
use super::{names, rules};
use crate::model::{HubSpec, JoinSource, MAX_LABEL, MAX_NETWORK_NAME, NetworkSpec};

/// Keys of a network.
pub(super) const KEYS: &[&str] = &[
    "mode", "subnet", "subnet6", "gateway", "dns", "dhcp", "uplink", "host", "mtu", "bridge",
    "isolate", "egress", "rules", "hub", "snooping", "mdns",
];

/// Keys of `dhcp`.
pub(super) const DHCP_KEYS: &[&str] = &["lease", "range"];

/// Keys of `hub`.
pub(super) const HUB_KEYS: &[&str] = &["join", "name", "state"];

/// Shortest and longest lease: renewals every minute, or once in two weeks.
const LEASES: RangeInclusive<Duration> =
    Duration::from_secs(120)..=Duration::from_secs(30 * 24 * 3_600);

/// Most addresses of a range: so many leases are kept.
const MAX_RANGE: u32 = MAX_LEASES as u32;

/// The network of a file without `[networks.*]`.
const DEFAULT_NAME: &str = "lan";

/// Smallest MTU: every IPv6 link has at least this (RFC 8200 section 5).
pub const MIN_MTU: u16 = 1280;

/// Largest MTU: what a TAP takes (65,535 less the Ethernet header), rounded down to four bytes.
pub const MAX_MTU: u16 = 65_520;

/// Names of a network's zone that are its own.
pub(super) const RESERVED_NAMES: [&str; 2] = ["gateway", "host"];

/// A network with the places that its mistakes are reported at.
pub(super) struct Network {
    pub(super) spec: NetworkSpec,
    pub(super) place: Place,
    pub(super) subnet: Given,
    pub(super) subnet6: Given,
    /// Its rules, with names that are not known yet to mean anything.
    pub(super) rules: Vec<FileRule>,
    /// The names of records about addresses, with their places.
    pub(super) addressed: Vec<(String, Place)>,
}

/// A key that has a default.
pub(super) struct Given {
    /// The key's place, or the table's that does not have it.
    pub(super) place: Place,
    /// False if what the file has was reported already: what follows from it means nothing.
    pub(super) good: bool,
}

/// Every network of the file; one with the default of everything if it has none.
pub(super) fn read(
    top: &Section<'_>,
    yard: &str,
    folder: &Path,
    report: &mut Report<'_>,
) -> Vec<Network> {
    if top.field("networks").is_none() {
        let given = || Given { place: top.place.clone(), good: true };
        return vec![Network {
            spec: NetworkSpec::new(DEFAULT_NAME, &format!("{yard}.{DEFAULT_NAME}")),
            place: top.place.clone(),
            subnet: given(),
            subnet6: given(),
            rules: Vec::new(),
            addressed: Vec::new(),
        }];
    }
    top.tables("networks", report)
        .into_iter()
        .map(|(name, section)| network(name, section.only(KEYS, report), (yard, folder), report))
        .collect()
}

fn network(
    name: &str,
    section: Section<'_>,
    (yard, folder): (&str, &Path),
    report: &mut Report<'_>,
) -> Network {
    check_name(name, MAX_NETWORK_NAME, &section.place, report);
    let mut spec = NetworkSpec::new(name, &format!("{yard}.{name}"));
    spec.mode = mode(&section, report);
    let (subnet, subnet6) = (subnet(&section, report), subnet6(&section, report));
    let given = |key, good| match section.field(key) {
        Some(field) => Given { place: field.place, good },
        None => Given { place: section.place.clone(), good: true },
    };
    let (given, given6) = (given("subnet", subnet.is_some()), given("subnet6", subnet6.is_some()));
    if let Some(subnet) = subnet {
        spec.subnet = subnet;
    }
    if let Some(subnet6) = subnet6 {
        spec.subnet6 = subnet6;
    }
    let names::Names { zone, dns, split, addressed } = names::read(&section, name, report);
    if let Some(zone) = zone {
        spec.zone = zone;
    }
    spec.dns = dns;
    if given.good {
        spec.gateway = gateway(&section, &spec, report);
    }
    if let Some(uplink) = uplink(&section, spec.is_bridge(), report) {
        spec.uplink = uplink;
    }
    let dhcp = dhcp(&section, &spec, given.good, report);
    if let Uplink::Card(_) = spec.uplink {
        // The card's own network has somebody for that.
        spec.dhcp = None;
        if let (Some(Some(_)), Some(field)) = (dhcp, section.field("dhcp")) {
            let message = "the network of a card has DHCP of its own: leave it out";
            report.add(&field.place, message);
        }
    } else if let Some(dhcp) = dhcp {
        spec.dhcp = dhcp;
    }
    if let Some(mtu) = section.number("mtu", MIN_MTU..=MAX_MTU, report) {
        spec.mtu = mtu.value;
        if let Mode::Bridge(bridge) = &mut spec.mode {
            bridge.mtu = Some(mtu.value);
        }
    }
    if let Some(field) = section.field("snooping") {
        let place = field.place.clone();
        spec.snooping = field.boolean(report).unwrap_or(true);
        if spec.is_bridge() {
            report
                .add(&place, "is for user mode: on a bridge the kernel follows who joins a group");
        }
    }
    spec.mdns = mdns(&section, &spec, report);
    names::check_servers(&spec, &split, report);
    spec.host = host(&section, report);
    let rules::FileRules { list, otherwise } = rules::read(&section, spec.is_bridge(), report);
    spec.rules.otherwise = otherwise;
    spec.hub = hub(&section, (yard, folder), report);
    Network { spec, place: section.place, subnet: given, subnet6: given6, rules: list, addressed }
}

/// Where questions for names in `.local` go on to: nowhere, to all links of the host, or to those of some cards.
fn mdns(section: &Section<'_>, spec: &NetworkSpec, report: &mut Report<'_>) -> Mdns {
    let Some(field) = section.field("mdns") else { return Mdns::Off };
    let place = field.place.clone();
    let mdns = if field.is_boolean() {
        if field.boolean(report) == Some(true) { Mdns::Everywhere } else { Mdns::Off }
    } else {
        let names = section.strings("mdns", report);
        Mdns::Cards(names.iter().filter_map(|name| link_name(name, report)).collect())
    };
    if mdns != Mdns::Off && spec.is_bridge() {
        report.add(
            &place,
            "is for user mode: uplink = \"card:NAME\" has the link of a card on the bridge itself",
        );
    } else if mdns != Mdns::Off && spec.uplink == Uplink::None {
        report.add(
            &place,
            "would ask outside, where uplink = \"none\" lets nothing go: leave one out",
        );
    }
    mdns
}

/// The hub that the network joins. Its machine has the yard's name there unless the file gives one.
fn hub(
    section: &Section<'_>,
    (yard, folder): (&str, &Path),
    report: &mut Report<'_>,
) -> Option<HubSpec> {
    const EXPECTED: &str = "\"file:PATH\" or \"env:VARIABLE\": a join string is a secret";
    let table = section.field("hub")?.table(report)?.only(HUB_KEYS, report);
    let Some(field) = table.field("join") else {
        report
            .add(&table.place, "join is missing: where the join string is, like \"file:hub.join\"");
        return None;
    };
    let text = field.string(EXPECTED, report)?;
    let join = match text.value.split_once(':') {
        Some(("file", path)) if !path.is_empty() => JoinSource::File(folder.join(path)),
        Some(("env", name)) if !name.is_empty() => JoinSource::Env(name.to_owned()),
        _ => {
            // What stands there may be the secret itself.
            report.add(&text.place, format!("expected {EXPECTED}"));
            return None;
        }
    };
    let name = match table.string("name", report) {
        Some(name) => {
            check_name(name.value, MAX_LABEL, &name.place, report);
            name.value.to_owned()
        }
        None => yard.to_owned(),
    };
    let state = table.string("state", report).map(|state| folder.join(state.value));
    Some(HubSpec { join, name, state })
}

fn mode(section: &Section<'_>, report: &mut Report<'_>) -> Mode {
    let words = [("user", Mode::User), ("bridge", Mode::Bridge(Bridge::default()))];
    let mode = section.choice("mode", &words, report).unwrap_or_default();
    let Mode::Bridge(mut bridge) = mode else {
        for key in ["bridge", "isolate"] {
            // What stands there for `mode` may have been meant to be right.
            if let Some(field) = section.field(key) {
                let message = format!("`{key}` needs mode = \"bridge\"");
                report.add(&field.place, message);
            }
        }
        return mode;
    };
    if let Some(name) = section.string("bridge", report) {
        bridge.name = link_name(&name, report);
    }
    if let Some(isolate) = section.field("isolate").and_then(|field| field.boolean(report)) {
        bridge.isolate = isolate;
    }
    Mode::Bridge(bridge)
}

/// The name of a link of the host.
pub(super) fn link_name(name: &Located<&str>, report: &mut Report<'_>) -> Option<String> {
    match name.value.parse::<LinkName>() {
        Ok(name) => Some(name.into()),
        Err(error) => {
            report.add(&name.place, error.to_string());
            None
        }
    }
}

/// The gateway's address, one that hosts of the network can have.
fn gateway(section: &Section<'_>, spec: &NetworkSpec, report: &mut Report<'_>) -> Option<Ipv4Addr> {
    let expected = format!("an IPv4 address of {}", spec.subnet);
    let gateway = section.parsed::<Ipv4Addr>("gateway", &expected, report)?;
    let (address, config) = (gateway.value, spec.config());
    let message = if !spec.subnet.contains(&address) {
        format!("{address} is not in {}", spec.subnet)
    } else if address == spec.subnet.network() || address == spec.subnet.broadcast() {
        format!("{address} is the first or last of {}, which no host can have", spec.subnet)
    } else if address == config.host4() {
        format!("{address} is that of host.{}: take another", spec.zone)
    } else {
        return Some(address);
    };
    report.add(&gateway.place, message);
    None
}

/// The IPv4 prefix.
fn subnet(section: &Section<'_>, report: &mut Report<'_>) -> Option<Ipv4Net> {
    let expected = "an IPv4 prefix like \"192.168.127.0/24\"";
    let subnet = section.parsed::<Ipv4Net>("subnet", expected, report)?;
    let net = subnet.value;
    let message = if net.addr() != net.network() {
        format!("expected a prefix without host bits: write \"{}\"", net.trunc())
    } else if !(8..=29).contains(&net.prefix_len()) {
        format!("expected a prefix from /8 to /29, found \"{net}\"")
    } else if is_special(net.network()) {
        format!("expected a prefix for hosts, like \"192.168.127.0/24\"; {net} has another use")
    } else {
        return Some(net);
    };
    report.add(&subnet.place, message);
    None
}

/// True for what hosts of a network cannot have: this host, loopback, link-local, multicast and
/// reserved addresses (RFC 6890).
fn is_special(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first == 0 || address.is_loopback() || address.is_link_local() || first >= 224
}

/// The IPv6 prefix.
fn subnet6(section: &Section<'_>, report: &mut Report<'_>) -> Option<Ipv6Net> {
    let expected = "an IPv6 prefix like \"fd12:3456:789a:1::/64\"";
    let subnet = section.parsed::<Ipv6Net>("subnet6", expected, report)?;
    match prefix6(subnet.value) {
        Ok(net) => Some(net),
        Err(message) => {
            report.add(&subnet.place, message);
            None
        }
    }
}

/// An IPv6 prefix that a network can have.
///
/// # Errors
/// Why it cannot, for people.
pub fn prefix6(net: Ipv6Net) -> Result<Ipv6Net, String> {
    let first = net.network();
    let [high, ..] = first.segments();
    Err(if net.prefix_len() != 64 {
        format!("expected a /64, found /{}", net.prefix_len())
    } else if net.addr() != first {
        format!("expected a prefix without host bits: write \"{}\"", net.trunc())
    } else if high == 0 || first.is_unicast_link_local() || first.is_multicast() {
        format!("expected a unique local or global prefix; {net} has another use")
    } else {
        return Ok(net);
    })
}

/// DHCP for the network as it is so far; `good` if its prefix is known.
fn dhcp(
    section: &Section<'_>,
    spec: &NetworkSpec,
    good: bool,
    report: &mut Report<'_>,
) -> Option<Option<Dhcp>> {
    let field = section.field("dhcp")?;
    if field.is_boolean() {
        return field.boolean(report).map(|on| on.then(Dhcp::default));
    }
    if !field.is_table() {
        return field.wrong("true, false or a table like { lease = \"12h\" }", report);
    }
    let table = field.table(report)?.only(DHCP_KEYS, report);
    let mut dhcp = Dhcp { range: range(&table, spec, good, report), ..Dhcp::default() };
    if let Some(lease) = duration(&table, "lease", LEASES, report) {
        dhcp.lease = lease;
    }
    Some(Some(dhcp))
}

/// Addresses for clients that nobody has plugged in.
fn range(
    table: &Section<'_>,
    spec: &NetworkSpec,
    good: bool,
    report: &mut Report<'_>,
) -> Option<Range> {
    const EXPECTED: &str =
        "the first and the last address, like \"192.168.127.100-192.168.127.200\"";
    let field = table.field("range")?;
    let text = field.string(EXPECTED, report)?;
    let ends = text.value.split_once('-');
    let ends = ends.and_then(|(first, last)| {
        Some(Range { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
    });
    let Some(range) = ends else { return field.wrong(EXPECTED, report) };
    let (subnet, host) = (spec.subnet, spec.config().host4());
    let outside = [range.first, range.last]
        .into_iter()
        .find(|it| !subnet.contains(it) || *it == subnet.network() || *it == subnet.broadcast());
    let message = if !spec.is_bridge() {
        "it needs mode = \"bridge\": in user mode every client has a plug, and every plug its \
         planned address"
            .to_owned()
    } else if range.first > range.last {
        format!("the range is reversed: write \"{}-{}\"", range.last, range.first)
    } else if !good {
        // What follows from a prefix that is wrong means nothing.
        return None;
    } else if let Some(address) = outside {
        format!("{address} is no address that a host of {subnet} can have")
    } else if let Some(own) =
        [spec.config().gateway4(), host].into_iter().find(|it| range.contains(*it))
    {
        format!("{own} is the gateway's or that of host.{}: leave it out", spec.zone)
    } else if range.count() > MAX_RANGE {
        format!("the range has {} addresses, more than {MAX_RANGE}: make it shorter", range.count())
    } else {
        return Some(range);
    };
    report.add(&text.place, message);
    None
}

fn uplink(section: &Section<'_>, bridge: bool, report: &mut Report<'_>) -> Option<Uplink> {
    const EXPECTED: &str = "\"nat\", \"routed\", \"none\" or \"card:NAME\"";
    let text = section.field("uplink")?.string(EXPECTED, report)?;
    let uplink = match text.value {
        "nat" => Uplink::Nat,
        "none" => Uplink::None,
        "routed" => Uplink::Routed,
        other => match other.strip_prefix("card:") {
            Some(card) => {
                let card = Located { value: card, place: text.place.clone() };
                Uplink::Card(link_name(&card, report)?)
            }
            None => return section.field("uplink")?.wrong(EXPECTED, report),
        },
    };
    if !bridge && matches!(uplink, Uplink::Routed | Uplink::Card(_)) {
        let message = format!("uplink = {:?} needs mode = \"bridge\"", text.value);
        report.add(&text.place, message);
        return None;
    }
    Some(uplink)
}

fn host(section: &Section<'_>, report: &mut Report<'_>) -> Vec<SocketAddr> {
    let mut ports = Uses::new();
    let mut services = Vec::new();
    for text in section.strings("host", report) {
        match text.value.parse::<SocketAddr>() {
            Ok(service) if service.port() != 0 => {
                if ports.note((service.port(), service.is_ipv4()), &text.place).is_some() {
                    let family = if service.is_ipv4() { "IPv4" } else { "IPv6" };
                    report.add(
                        &text.place,
                        format!(
                            "port {} of the host alias leads to another {family} address already",
                            service.port()
                        ),
                    );
                }
                services.push(service);
            }
            _ => report.add(
                &text.place,
                format!(
                    "expected address and port of a service of the host, like \
                     \"127.0.0.1:5432\"; found {:?}",
                    text.value
                ),
            ),
        }
    }
    services
}
