//! `rules` and `egress` of `[networks.NAME]`, and `rules` of `[instances.NAME]`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use netyard_engine::policy::rules::{Direction, Instance, Remote, Rule, Verdict};
use netyard_engine::policy::{OTHERWISE, Protocol};

use super::reader::{Field, Located, Place, Report, Section};

/// Keys of a rule.
pub(super) const KEYS: &[&str] =
    &["allow", "deny", "direction", "from", "to", "protocol", "ports", "name"];

/// Everything outside, or everybody there.
const ALL: &str = "*";

const VERDICTS: [(&str, Verdict); 2] = [("allow", Verdict::Allow), ("deny", Verdict::Deny)];

const DIRECTIONS: [(&str, Direction); 2] = [("out", Direction::Out), ("in", Direction::In)];

/// A rule whose names are not known yet to mean anything.
pub(super) struct FileRule {
    pub(super) rule: Rule,
    /// Whom it is about: instances or several of them. Empty: all.
    instances: Vec<Located<String>>,
    /// Other instances that it names.
    others: Vec<Located<String>>,
    /// Its `allow` or `deny`.
    place: Place,
}

impl FileRule {
    /// Puts the instances in that its names mean, as `resolve` says.
    pub(super) fn resolve(&self, mut resolve: impl FnMut(&Located<String>) -> Vec<String>) -> Rule {
        let mut rule = self.rule.clone();
        rule.instances.extend(self.instances.iter().flat_map(&mut resolve));
        let others = self.others.iter().flat_map(resolve);
        rule.others.extend(others.map(|name| Remote::Instance(Instance::Named(name))));
        rule
    }

    /// The rule of an instance, for its network: with the group of it as whom it is about, and its name in that of
    /// the rule.
    pub(super) fn of(
        &self,
        group: &str,
        resolve: impl FnMut(&Located<String>) -> Vec<String>,
    ) -> Rule {
        let group = Located { value: group.to_owned(), place: self.place.clone() };
        let rule =
            Rule { name: format!("{}.{}", group.value, self.rule.name), ..self.rule.clone() };
        let (others, place) = (self.others.clone(), self.place.clone());
        Self { rule, instances: vec![group], others, place }.resolve(resolve)
    }
}

/// What a network says of rules.
#[derive(Default)]
pub(super) struct FileRules {
    pub(super) list: Vec<FileRule>,
    pub(super) otherwise: Verdict,
}

/// What a network says about what leaves it, comes in and goes on inside.
pub(super) fn read(network: &Section<'_>, is_bridge: bool, report: &mut Report<'_>) -> FileRules {
    if is_bridge {
        for key in ["egress", "rules"] {
            if let Some(field) = network.field(key) {
                let message = format!(
                    "`{key}` needs mode = \"user\": what goes by a bridge is for the host's firewall"
                );
                report.add(&field.place, message);
            }
        }
        return FileRules::default();
    }
    let otherwise = network.choice("egress", &VERDICTS, report).unwrap_or_default();
    FileRules { list: list(network, true, report), otherwise }
}

/// The `rules` of an instance.
pub(super) fn of_instance(section: &Section<'_>, report: &mut Report<'_>) -> Vec<FileRule> {
    list(section, false, report)
}

/// `names`: whether a rule may say about whom it is.
fn list(section: &Section<'_>, names: bool, report: &mut Report<'_>) -> Vec<FileRule> {
    let items = section.field("rules").and_then(|field| {
        field.items("a list of rules like { allow = [\"*.example.org\"], ports = [443] }", report)
    });
    let (mut list, mut taken) = (Vec::new(), BTreeMap::new());
    for (number, item) in (1..).zip(items.unwrap_or_default()) {
        let Some(section) = item.table(report) else { continue };
        let section = section.only(KEYS, report);
        let Some(rule) = rule(&section, number, names, report) else { continue };
        if let Some(earlier) = taken.insert(rule.rule.name.clone(), number) {
            let message = format!("rule {earlier} has the name {:?} already", rule.rule.name);
            report.add(&section.place, message);
        }
        list.push(rule);
    }
    list
}

fn rule(
    section: &Section<'_>,
    number: usize,
    names: bool,
    report: &mut Report<'_>,
) -> Option<FileRule> {
    let given = VERDICTS.iter().filter_map(|(key, verdict)| Some((section.field(key)?, *verdict)));
    let mut given: Vec<_> = given.collect();
    let (Some((field, verdict)), true) = (given.pop(), given.is_empty()) else {
        report.add(&section.place, "a rule has either `allow` or `deny`");
        return None;
    };
    let direction = section.choice("direction", &DIRECTIONS, report).unwrap_or_default();
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("icmp", Protocol::Icmp)];
    let protocol = section.choice("protocol", &protocols, report);
    let ports = ports(section, report).unwrap_or_default();
    if let (Some(Protocol::Icmp), Some(field)) = (protocol, section.field("ports")) {
        report.add(&field.place, "pings have no ports: leave them out");
    }
    let place = field.place.clone();
    let instances = about(section, direction, names, report);
    let (remotes, others) = remotes(field, direction, report);
    let name = name(section, number, report);
    let rule =
        Rule { name, verdict, direction, instances: Vec::new(), others: remotes, protocol, ports };
    Some(FileRule { rule, instances, others, place })
}

/// Whom a rule is about: who begins what goes out, and who gets what comes in.
fn about(
    section: &Section<'_>,
    direction: Direction,
    names: bool,
    report: &mut Report<'_>,
) -> Vec<Located<String>> {
    let (key, other) = match direction {
        Direction::Out => ("from", "to"),
        Direction::In => ("to", "from"),
    };
    if let Some(field) = section.field(other) {
        let message = match direction {
            Direction::Out => {
                "where it may go stands in `allow` or `deny`; `to` is for direction = \"in\""
            }
            Direction::In => {
                "who may come stands in `allow` or `deny`; `from` is for direction = \"out\""
            }
        };
        report.add(&field.place, message);
    }
    let field = section.field(key);
    if let (Some(field), false) = (&field, names) {
        report.add(&field.place, "a rule of an instance is about that instance: leave it out");
        return Vec::new();
    }
    let named = strings(field, "an instance, or a list of them", report);
    named.into_iter().map(owned).collect()
}

fn owned(text: Located<&str>) -> Located<String> {
    Located { value: text.value.to_owned(), place: text.place }
}

/// What the rule is called where it is counted.
fn name(section: &Section<'_>, number: usize, report: &mut Report<'_>) -> String {
    let Some(name) = section.string("name", report) else { return format!("rule-{number}") };
    super::check_name(name.value, crate::model::MAX_LABEL, &name.place, report);
    if name.value == OTHERWISE {
        report.add(&name.place, format!("{OTHERWISE:?} is what is counted where no rule decides"));
    }
    name.value.to_owned()
}

/// The other end, and instances named there. Neither: everything outside.
fn remotes(
    field: Field<'_>,
    direction: Direction,
    report: &mut Report<'_>,
) -> (Vec<Remote>, Vec<Located<String>>) {
    let expected = "a prefix, an address, a name, \"instance:NAME\", a list of them, or \"*\"";
    let place = field.place.clone();
    let texts = strings(Some(field), expected, report);
    let is_all = texts.iter().any(|text| text.value == ALL);
    let (mut remotes, mut instances) = (Vec::new(), Vec::new());
    for text in texts.into_iter().filter(|text| text.value != ALL) {
        match text.value.parse() {
            Ok(Remote::Instance(Instance::Named(value))) => {
                instances.push(Located { value, place: text.place });
            }
            Ok(Remote::Name(_)) if direction == Direction::In => report.add(
                &text.place,
                "who comes has no name: write addresses of clients, or \"instance:NAME\"",
            ),
            Ok(remote) => remotes.push(remote),
            Err(expected) => {
                report.add(&text.place, format!("expected {expected}; found {:?}", text.value));
            }
        }
    }
    let is_inside = |remote: &Remote| matches!(remote, Remote::Instance(_));
    if is_all && (!instances.is_empty() || remotes.iter().any(is_inside)) {
        let message = "\"*\" is everything outside: write a rule of its own about instances";
        report.add(&place, message);
    }
    if is_all {
        remotes.clear();
    }
    (remotes, instances)
}

/// A string or a list of some.
fn strings<'t>(
    field: Option<Field<'t>>,
    expected: &str,
    report: &mut Report<'_>,
) -> Vec<Located<&'t str>> {
    let Some(field) = field else { return Vec::new() };
    let fields = if field.is_string() {
        vec![field]
    } else {
        let items = field.items(expected, report).unwrap_or_default();
        if items.is_empty() {
            report.add(&field.place, format!("expected {expected}, found an empty list"));
        }
        items
    };
    fields.iter().filter_map(|field| field.string(expected, report)).collect()
}

/// Empty: all.
fn ports(section: &Section<'_>, report: &mut Report<'_>) -> Option<Vec<RangeInclusive<u16>>> {
    const EXPECTED: &str = "a list of ports and ranges like [80, \"8000-8010\"]";
    let field = section.field("ports")?;
    let fields = match field.is_integer() || field.is_string() {
        true => vec![field],
        false => {
            let items = field.items(EXPECTED, report)?;
            if items.is_empty() {
                report.add(&field.place, format!("expected {EXPECTED}, found an empty list"));
            }
            items
        }
    };
    let mut ports = Vec::new();
    for field in &fields {
        if field.is_integer() {
            let port = field.number(1..=u16::MAX, report);
            ports.extend(port.map(|port| port.value..=port.value));
            continue;
        }
        let Some(text) = field.string(EXPECTED, report) else { continue };
        match range(text.value) {
            Some(range) => ports.push(range),
            None => {
                let _ = field.wrong::<()>(EXPECTED, report);
            }
        }
    }
    Some(ports)
}

/// `80` or `8000-8010`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (0 < first && first <= last).then_some(first..=last)
}
