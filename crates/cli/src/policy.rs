//! `netyard policy`: what the instances of a network may reach, and who may reach them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netyard_engine::control::{Opener, PlugState, State};
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
    let protocol = match (port, protocol) {
        (None, _) => Protocol::Icmp,
        (_, Some(forward::Protocol::Udp)) => Protocol::Udp,
        _ => Protocol::Tcp,
    };
    let port = port.unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let opener = match from.parse::<IpAddr>() {
        Ok(client) => Opener::Client(client),
        Err(_) => Opener::Plug(from.clone()),
    };
    // Who is outside comes to an instance; the other way round it may be anything.
    let own = if let Opener::Client(_) = opener { host } else { from };
    let Some(network) = networks.iter().find(|network| plug(&network.state, own).is_some()) else {
        let names: BTreeMap<_, _> =
            networks.iter().flat_map(|it| &it.state.plugs).map(|it| (&it.name, ())).collect();
        let names: Vec<_> = names.into_keys().map(String::as_str).collect();
        let names = names.join(", ");
        let found = format!("nobody called {own} is plugged in; there are {names}");
        return Err(YardError::new(ErrorKind::Unknown, wanted(), found));
    };
    // Networks of a yard have a name among all networks, too.
    let name = network.state.config.as_ref().map_or(&network.name, |config| &config.name);
    let of = |decided: Decided| (decided.allowed, decided.rule, decided.meaning);
    let (allowed, rule, meaning) = match (plug(&network.state, host), host.parse::<IpAddr>()) {
        (Some(guest), _) => {
            networks::test_entry(name, opener, &guest.name, protocol, port).map(of)?
        }
        (None, Ok(address)) => {
            networks::test_policy(name, from, protocol, SocketAddr::new(address, port)).map(of)?
        }
        (None, Err(_)) => by_name(&network.state, from, protocol, host, port)
            .map_err(|found| YardError::new(ErrorKind::Input, wanted(), found))?,
    };
    let (network, to) = (network.name.clone(), to.clone());
    Ok(Tested { network, from: from.clone(), protocol, to, allowed, rule, meaning })
}

/// Who is plugged in with a name or an address.
fn plug<'a>(state: &'a State, who: &str) -> Option<&'a PlugState> {
    let address = who.parse::<IpAddr>().ok();
    let is_it = |plug: &&PlugState| {
        plug.name == who || address.is_some_and(|address| plug.addresses.contains(&address))
    };
    state.plugs.iter().find(is_it)
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
    let Tested { from, to, allowed, rule, meaning, .. } = tested;
    let mut list = Table::list();
    list.row([says(*allowed), format!("{from} to {to}").into()]);
    list.row(["rule".into(), rule.as_str().into()]);
    list.row(["why".into(), meaning.as_str().into()]);
    list.render(colour)
}
