//! `netyard policy`: what the instances of a network may reach, and who may reach them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netyard_engine::config::Config;
use netyard_engine::control::{Opener, PlugState, ServiceInstance, ServiceState, State};
use netyard_engine::forward;
use netyard_engine::policy::Protocol;
use netyard_engine::policy::rules::{Asked, Direction, Other, Remote, Rule, Rules, Verdict, What};
use netyard_wire::dns::Name;
use netyard_yard::api::NetworkStatus;
use netyard_yard::client::Client;
use netyard_yard::error::{ErrorKind, YardError};
use netyard_yard::explain::path;
use netyard_yard::networks::{self, Decided};
use serde::Serialize;

use crate::flags::{Policy, PolicyTest};
use crate::output::{Cell, Mood, Output, Table};
use crate::verbs::show;

/// One rule, with how often it decided.
#[derive(Debug, Serialize)]
struct Row<'a> {
    network: &'a str,
    /// Whose rule it is.
    member: &'a str,
    #[serde(flatten)]
    rule: Rule,
    decided: u64,
}

/// What would become of a flow.
#[derive(Debug, Serialize)]
struct Tested {
    network: String,
    /// Who would begin it.
    from: String,
    protocol: Protocol,
    to: String,
    allowed: bool,
    rule: String,
    meaning: String,
    /// Where it goes to a service: what would become of it at each instance.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    instances: Vec<TestedInstance>,
}

/// What would become of a flow at one instance of a service.
#[derive(Debug, Serialize)]
struct TestedInstance {
    instance: String,
    allowed: bool,
    rule: String,
    meaning: String,
}

/// Lists rules, or asks what they say.
pub(crate) fn policy(verb: Policy, yard: Option<&str>, out: Output) -> Result<(), YardError> {
    match verb {
        Policy::Ls { network } => {
            let networks = named(network.as_deref(), yard)?;
            let rows: Vec<Row<'_>> = networks.iter().flat_map(rows).collect();
            show(out, rows.as_slice(), table)
        }
        Policy::Test(asked) => {
            let networks = named(asked.network.as_deref(), yard)?;
            show(out, &test(&networks, &asked)?, verdict)
        }
    }
}

/// The network of this name, or those of a yard.
fn named(network: Option<&str>, yard: Option<&str>) -> Result<Vec<NetworkStatus>, YardError> {
    match network {
        Some(name) => Ok(vec![networks::inspect(name)?]),
        None => Client::find(yard)?.networks(),
    }
}

/// Rules as they are asked, and at the end of each member's what becomes of the rest.
fn rows(network: &NetworkStatus) -> Vec<Row<'_>> {
    let State { rules, policy, .. } = &network.state;
    let row = |member: &str, rule: &Rule| {
        let counted = policy.get(&format!("{member}/{}", rule.name));
        (rule.clone(), counted.copied().unwrap_or_default())
    };
    let mut rows = Vec::new();
    for (member, Rules { list, otherwise }) in rules {
        let rest = Rule {
            name: netyard_engine::policy::OTHERWISE.to_owned(),
            verdict: *otherwise,
            direction: Direction::Out,
            instances: Vec::new(),
            others: Vec::new(),
            protocol: None,
            ports: Vec::new(),
        };
        for (rule, decided) in list.iter().chain([&rest]).map(|rule| row(member, rule)) {
            rows.push(Row { network: &network.name, member, rule, decided });
        }
    }
    rows
}

fn table(rows: &[Row<'_>], colour: bool) -> String {
    if rows.is_empty() {
        return "no rules: everything outside may be reached but this machine and its \
                neighbourhood, and everybody may come\n"
            .to_owned();
    }
    let mut table = Table::new(&[
        "NETWORK", "MEMBER", "RULE", "SAYS", "WAY", "FROM", "TO", "PROTOCOL", "PORTS", "DECIDED",
    ]);
    let list = |words: Vec<String>| match words.is_empty() {
        true => "*".to_owned(),
        false => words.join(", "),
    };
    for Row { network, member, rule, decided } in rows {
        let others = rule.others.iter().map(ToString::to_string).collect();
        let (way, from, to) = match rule.direction {
            Direction::Out => ("out", rule.instances.clone(), others),
            Direction::In => ("in", others, rule.instances.clone()),
        };
        let ports = rule.ports.iter().map(|ports| match ports.start() == ports.end() {
            true => ports.start().to_string(),
            false => format!("{}-{}", ports.start(), ports.end()),
        });
        table.row([
            (*network).into(),
            (*member).into(),
            rule.name.as_str().into(),
            says(rule.verdict == Verdict::Allow),
            way.into(),
            list(from).into(),
            list(to).into(),
            rule.protocol.map_or("*", word).into(),
            list(ports.collect()).into(),
            decided.to_string().into(),
        ]);
    }
    table.render(colour)
}

fn says(allowed: bool) -> Cell {
    match allowed {
        true => Cell::new("allow", Mood::Good),
        false => Cell::new("deny", Mood::Bad),
    }
}

const fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
    }
}

/// What the network of an instance says of a flow.
fn test(networks: &[NetworkStatus], asked: &PolicyTest) -> Result<Tested, YardError> {
    let PolicyTest { from, to, .. } = asked;
    let wanted = || format!("test what {from} may reach");
    let (host, port, protocol) = path::split(to)?;
    let at = port.map(|port| (port, protocol.unwrap_or_default()));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let client = from.parse::<IpAddr>().ok();
    // Who is outside comes to an instance or a service; the other way round it may be anything.
    let own = if client.is_some() { host } else { from };
    let knows = |state: &State| {
        plug(state, own).is_some() || client.is_some() && service(state, own).is_some()
    };
    let Some(network) = networks.iter().find(|network| knows(&network.state)) else {
        return Err(YardError::new(ErrorKind::Unknown, wanted(), nobody(networks, own)));
    };
    let state = &network.state;
    let asker = plug(state, from).map_or(from.as_str(), |plug| &plug.name);
    let opener = || match client {
        Some(client) => Opener::Client(client),
        None => Opener::Plug(asker.to_owned()),
    };
    // Networks of a yard have a name among all networks, too.
    let name = state.config.as_ref().map_or(&network.name, |config| &config.name);
    let of = |decided: Decided| (decided.allowed, decided.rule, decided.meaning);
    let target = target(network, host, at)
        .map_err(|found| YardError::new(ErrorKind::Input, wanted(), found))?;
    let (protocol, port) = match &target {
        Target::Service(service) => what(Some((service.spec.port, service.spec.protocol))),
        _ => what(at),
    };
    let mut instances = Vec::new();
    let (allowed, rule, meaning) = match target {
        Target::Instance(guest) => {
            networks::test_entry(name, opener(), &guest.name, protocol, port).map(of)?
        }
        Target::Service(service) => {
            for ServiceInstance { name: instance, .. } in &service.spec.instances {
                let decided = networks::test_entry(name, opener(), instance, protocol, port)?;
                let Decided { allowed, rule, meaning } = decided;
                let instance = instance.clone();
                instances.push(TestedInstance { instance, allowed, rule, meaning });
            }
            // Whose turn the client may not have is passed over.
            let one = instances.iter().find(|it| it.allowed).or(instances.first());
            let nobody = || (false, "service".to_owned(), "it has no instances".to_owned());
            one.map_or_else(nobody, |it| (it.allowed, it.rule.clone(), it.meaning.clone()))
        }
        Target::Address(address) => {
            let to = SocketAddr::new(address, port);
            networks::test_policy(name, asker, protocol, to).map(of)?
        }
        Target::Name => by_name(state, asker, protocol, host, port)
            .map_err(|found| YardError::new(ErrorKind::Input, wanted(), found))?,
    };
    let (network, from, to) = (network.name.clone(), from.clone(), to.clone());
    Ok(Tested { network, from, protocol, to, allowed, rule, meaning, instances })
}

/// What a flow to a port is, or to none: pings.
fn what(at: Option<(u16, forward::Protocol)>) -> (Protocol, u16) {
    match at {
        None => (Protocol::Icmp, 0),
        Some((port, forward::Protocol::Tcp)) => (Protocol::Tcp, port),
        Some((port, forward::Protocol::Udp)) => (Protocol::Udp, port),
    }
}

/// Where a flow goes.
enum Target<'a> {
    Instance(&'a PlugState),
    Service(&'a ServiceState),
    Address(IpAddr),
    /// Something outside, or of which the network has records.
    Name,
}

/// What a host of a network is. A service goes before an instance of its name at its own port, as in the network's DNS.
fn target<'a>(
    network: &'a NetworkStatus,
    host: &str,
    at: Option<(u16, forward::Protocol)>,
) -> Result<Target<'a>, String> {
    let state = &network.state;
    match (service(state, host), plug(state, host)) {
        (Some(service), instance) => {
            let own = (service.spec.port, service.spec.protocol);
            match (instance, at) {
                (Some(instance), at) if at != Some(own) => Ok(Target::Instance(instance)),
                (None, Some(at)) if at != own => {
                    let (name, (port, protocol)) = (&service.spec.name, own);
                    Err(format!("service {name} is at port {port}/{protocol}"))
                }
                _ => Ok(Target::Service(service)),
            }
        }
        (None, Some(instance)) => Ok(Target::Instance(instance)),
        (None, None) => {
            let own = state.config.as_ref().and_then(|config| {
                let gateway = is_called(state, "gateway", host).then(|| config.gateway4().into());
                gateway.or_else(|| is_called(state, "host", host).then(|| config.host4().into()))
            });
            if let Some(address) = host.parse().ok().or(own) {
                return Ok(Target::Address(address));
            }
            let is_recorded = |config: &Config| {
                config.dns.records.iter().any(|it| it.name.eq_ignore_ascii_case(host))
            };
            match state.config.as_ref() {
                Some(config) if in_zone(config, host).is_some() && !is_recorded(config) => {
                    Err(nobody(std::slice::from_ref(network), host))
                }
                _ => Ok(Target::Name),
            }
        }
    }
}

/// Who is there, where nobody has a name.
fn nobody(networks: &[NetworkStatus], who: &str) -> String {
    let plugs = networks.iter().flat_map(|it| &it.state.plugs).map(|it| it.name.as_str());
    let services = networks.iter().flat_map(|it| &it.state.services);
    let names: BTreeSet<_> = plugs.chain(services.map(|it| it.spec.name.as_str())).collect();
    let names: Vec<_> = names.into_iter().collect();
    format!("nobody called {who} is plugged in; there are {}", names.join(", "))
}

/// What stands before a network's zone in a name.
fn in_zone<'a>(config: &Config, name: &'a str) -> Option<&'a str> {
    let (host, zone) = name.split_at_checked(name.len().checked_sub(config.zone.len())?)?;
    host.strip_suffix('.').filter(|_| zone.eq_ignore_ascii_case(&config.zone))
}

/// Whether a text is a name in a network, with its zone or without.
fn is_called(state: &State, name: &str, text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let host = state.config.as_ref().and_then(|config| in_zone(config, text));
    name.eq_ignore_ascii_case(text) || host.is_some_and(|host| name.eq_ignore_ascii_case(host))
}

/// Who is plugged in with a name or an address.
fn plug<'a>(state: &'a State, who: &str) -> Option<&'a PlugState> {
    let address = who.parse::<IpAddr>().ok();
    let is_it = |plug: &&PlugState| {
        is_called(state, &plug.name, who)
            || address.is_some_and(|address| plug.addresses.contains(&address))
    };
    state.plugs.iter().find(is_it)
}

/// The service with a name or an address.
fn service<'a>(state: &'a State, which: &str) -> Option<&'a ServiceState> {
    let address = which.parse::<IpAddr>().ok();
    let is_it = |service: &&ServiceState| {
        is_called(state, &service.spec.name, which)
            || address.is_some_and(|address| service.addresses.contains(&address))
    };
    state.services.iter().find(is_it)
}

/// What the rules say of whatever a name stands for outside, by the name alone.
fn by_name(
    state: &State,
    instance: &str,
    protocol: Protocol,
    name: &str,
    port: u16,
) -> Result<(bool, String, String), String> {
    let Ok(Remote::Name(_)) = name.parse::<Remote>() else {
        return Err(format!("{name:?} is neither an address nor a name"));
    };
    let parsed = name.parse::<Name>().map_err(|error| error.to_string())?;
    let member = state.plugs.iter().find(|plug| plug.name == instance).map(|plug| &plug.member);
    let rules = member.and_then(|member| Some((member, state.rules.get(member)?)));
    let Some((member, rules)) = rules else {
        return Ok((true, "outside".into(), "there are no rules about it".into()));
    };
    // An address that prefixes of rules have only if they have all.
    let anywhere = Ipv4Addr::UNSPECIFIED.into();
    let asked = Asked {
        direction: Direction::Out,
        instance,
        other: Other::Outside(anywhere),
        what: What::to(protocol, port),
    };
    let rule = rules.deciding(&asked, |it| it.means(&parsed));
    let verdict = rule.map_or(rules.otherwise, |rule| rule.verdict);
    let label = rule.map_or(netyard_engine::policy::OTHERWISE, |rule| rule.name.as_str());
    let meaning = "by its name; rules about prefixes may say something else of its addresses";
    Ok((verdict == Verdict::Allow, format!("{member}/{label}"), meaning.into()))
}

fn verdict(tested: &Tested, colour: bool) -> String {
    let Tested { from, to, allowed, rule, meaning, instances, .. } = tested;
    let mut list = Table::list();
    list.row([says(*allowed), format!("{from} to {to}").into()]);
    list.row(["rule".into(), rule.as_str().into()]);
    list.row(["why".into(), meaning.as_str().into()]);
    for TestedInstance { instance, allowed, rule, meaning } in instances {
        list.row([says(*allowed), format!("at {instance}, by {rule}: {meaning}").into()]);
    }
    list.render(colour)
}
