//! `[services.NAME]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use netyard_engine::control::TurnPolicy;
use netyard_engine::delivery::Delivery;
use netyard_engine::forward::Protocol;
use netyard_engine::service::AFFINITY;
use netyard_engine::service::ring::MAX_WEIGHT;

use super::check_name;
use super::instances::duration;
use super::reader::{Located, Place, Report, Section};
use crate::model::{Check, MAX_LABEL, Probe};

/// Keys of a service.
pub(super) const KEYS: &[&str] = &[
    "instances",
    "network",
    "protocol",
    "port",
    "publish",
    "splice",
    "policy",
    "weights",
    "affinity",
    "check",
];

/// Keys of `check`.
pub(super) const CHECK_KEYS: &[&str] = &["http", "tcp", "port", "every", "timeout", "rise", "fall"];

/// Shortest interval and time-out of a check.
const MIN_TIME: Duration = Duration::from_millis(10);

/// Longest interval and time-out of a check.
const MAX_TIME: Duration = Duration::from_secs(3600);

/// What one `[services.NAME]` says.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) instances: Vec<Located<String>>,
    pub(super) network: Option<Located<String>>,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) publish: Option<Located<SocketAddr>>,
    pub(super) delivery: Located<Delivery>,
    /// By the name of an instance, or of several.
    pub(super) weights: Vec<(Located<String>, u32)>,
    pub(super) policy: TurnPolicy,
    pub(super) affinity: Option<Duration>,
    pub(super) check: Check,
}

/// Every service of the file.
pub(super) fn read(top: &Section<'_>, report: &mut Report<'_>) -> Vec<Service> {
    top.tables("services", report)
        .into_iter()
        .map(|(name, section)| service(name, section.only(KEYS, report), report))
        .collect()
}

fn service(name: &str, section: Section<'_>, report: &mut Report<'_>) -> Service {
    check_name(name, MAX_LABEL, &section.place, report);
    let policies =
        [("round-robin", TurnPolicy::RoundRobin), ("per-request", TurnPolicy::PerRequest)];
    let policy = section.choice("policy", &policies, report).unwrap_or_default();
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    let protocol = section.choice("protocol", &protocols, report).unwrap_or_default();
    if let (TurnPolicy::PerRequest, Protocol::Udp, Some(field)) =
        (policy, protocol, section.field("policy"))
    {
        let message = "requests are HTTP over TCP, and the service is UDP: write \
                       policy = \"round-robin\", which gives each flow of a client a turn";
        report.add(&field.place, message);
    }
    let network = section.string("network", report);
    let delivery = delivery(&section, protocol, policy, report);
    Service {
        delivery,
        protocol,
        name: name.to_owned(),
        instances: instances(&section, report),
        network: network.map(|it| Located { value: it.value.to_owned(), place: it.place }),
        port: port(&section, report),
        publish: publish(&section, report),
        weights: weights(&section, report),
        policy,
        affinity: duration(&section, "affinity", AFFINITY, report),
        check: check(&section, protocol, report),
        place: section.place,
    }
}

fn instances(section: &Section<'_>, report: &mut Report<'_>) -> Vec<Located<String>> {
    const EXPECTED: &str = "the name of an instance, or a list of them";
    let Some(field) = section.field("instances") else {
        report.add(&section.place, "has no `instances`: write which answer for it");
        return Vec::new();
    };
    let fields = if field.is_string() {
        vec![field]
    } else {
        let Some(items) = field.items(EXPECTED, report) else { return Vec::new() };
        if items.is_empty() {
            report.add(&field.place, format!("expected {EXPECTED}, found an empty list"));
        }
        items
    };
    let names = fields.iter().filter_map(|field| field.string(EXPECTED, report));
    names.map(|name| Located { value: name.value.to_owned(), place: name.place }).collect()
}

fn port(section: &Section<'_>, report: &mut Report<'_>) -> u16 {
    if section.field("port").is_none() {
        report.add(&section.place, "has no `port`: write on which its instances listen");
    }
    section.number("port", 1..=u16::MAX, report).map_or(1, |port| port.value)
}

/// A host address and port; a port alone is one of 127.0.0.1.
fn publish(section: &Section<'_>, report: &mut Report<'_>) -> Option<Located<SocketAddr>> {
    let expected = "a host address and port like \"127.0.0.1:8080\"";
    let field = section.field("publish")?;
    if field.is_integer() {
        let port = field.number(1..=u16::MAX, report)?;
        let value = SocketAddr::from((Ipv4Addr::LOCALHOST, port.value));
        return Some(Located { value, place: port.place });
    }
    let text = field.string(expected, report)?;
    let port = || Some(SocketAddr::from((Ipv4Addr::LOCALHOST, text.value.parse().ok()?)));
    match text.value.parse().ok().or_else(port) {
        Some(value) if value.port() != 0 => Some(Located { value, place: text.place }),
        _ => field.wrong(expected, report),
    }
}

/// How connections that come in by the published port are handed over.
fn delivery(
    section: &Section<'_>,
    protocol: Protocol,
    policy: TurnPolicy,
    report: &mut Report<'_>,
) -> Located<Delivery> {
    let Some(field) = section.field("splice") else {
        return Located { value: Delivery::default(), place: section.place.clone() };
    };
    let value = Delivery { splice: field.boolean(report), ..Delivery::default() };
    let place = field.place;
    if section.field("publish").is_none() {
        report.add(&place, "is about connections to the host port, and there is no `publish`");
    } else if policy == TurnPolicy::PerRequest {
        let message = "requests are carried by the network itself: leave it out, or write policy = \
                       \"round-robin\"";
        report.add(&place, message);
    } else if let Err(error) = value.check(protocol) {
        report.add(&place, error.to_string());
    }
    Located { value, place }
}

fn weights(section: &Section<'_>, report: &mut Report<'_>) -> Vec<(Located<String>, u32)> {
    let table = section.field("weights").and_then(|field| field.table(report));
    let fields = table.map(|table| table.fields()).unwrap_or_default();
    let weights = fields.into_iter().filter_map(|(name, field)| {
        let weight = field.number(1..=MAX_WEIGHT, report)?;
        Some((Located { value: name.to_owned(), place: weight.place }, weight.value))
    });
    weights.collect()
}

fn check(section: &Section<'_>, protocol: Protocol, report: &mut Report<'_>) -> Check {
    let untold = match protocol {
        Protocol::Tcp => Probe::Tcp,
        Protocol::Udp => Probe::Bound,
    };
    let default = Check { probe: untold, ..Check::default() };
    let Some(section) = section.field("check").and_then(|field| field.table(report)) else {
        return default;
    };
    let section = section.only(CHECK_KEYS, report);
    let mut time = |key| duration(&section, key, MIN_TIME..=MAX_TIME, report);
    let every = time("every").unwrap_or(default.every);
    let timeout = time("timeout").unwrap_or(default.timeout);
    let mut times = |key| section.number(key, 1..=100u32, report).map(|times| times.value);
    let rise = times("rise").unwrap_or(default.rise);
    let fall = times("fall").unwrap_or(default.fall);
    let port = section.number("port", 1..=u16::MAX, report);
    let probe = probe(&section, report);
    match (protocol, &probe, &port) {
        (Protocol::Udp, None, Some(port)) => {
            report.add(
                &port.place,
                "says where to try, and not what: write tcp = true or http = \"/\"",
            );
        }
        (Protocol::Udp, Some(_), None) => {
            let message = "the service is UDP: write on which TCP port its instances are tried, as in \
                           port = 8080, or leave `tcp` and `http` out";
            report.add(&section.place, message);
        }
        _ => {}
    }
    let port = port.map(|port| port.value);
    Check { probe: probe.unwrap_or(default.probe), port, every, timeout, rise, fall }
}

/// What is tried, if that is said.
fn probe(section: &Section<'_>, report: &mut Report<'_>) -> Option<Probe> {
    let http = section.field("http");
    if let Some(tcp) = section.field("tcp") {
        if tcp.boolean(report) == Some(false) {
            report.add(
                &tcp.place,
                "a check cannot be switched off: write tcp = true, or http = \"/\"",
            );
        } else if http.is_some() {
            report.add(&tcp.place, "a check is either `tcp` or `http`");
        }
    }
    let Some(http) = http else { return section.field("tcp").map(|_| Probe::Tcp) };
    let expected = "a path like \"/\" or \"/health?full=1\", without blanks";
    match http.string(expected, report) {
        Some(path)
            if path.value.starts_with('/') && path.value.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Some(Probe::Http { path: path.value.to_owned() })
        }
        Some(_) => http.wrong(expected, report),
        None => None,
    }
}
