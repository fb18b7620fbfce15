//! `rules` and `egress` of `[networks.NAME]`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use netyard_engine::policy::rules::{Remote, Rule, Rules, Verdict};
use netyard_engine::policy::{OTHERWISE, Protocol};

use super::reader::{Field, Located, Report, Section};

/// Keys of a rule.
pub(super) const KEYS: &[&str] = &["allow", "deny", "from", "protocol", "ports", "name"];

/// Everything outside.
const ALL: &str = "*";

const VERDICTS: [(&str, Verdict); 2] = [("allow", Verdict::Allow), ("deny", Verdict::Deny)];

/// Rules, and of each the names in its `from`, which mean instances or several of them.
#[derive(Default)]
pub(super) struct FileRules {
    pub(super) rules: Rules,
    pub(super) from: Vec<Vec<Located<String>>>,
}

/// What a network says about what leaves it.
pub(super) fn read(network: &Section<'_>, is_bridge: bool, report: &mut Report<'_>) -> FileRules {
    if is_bridge {
        for key in ["egress", "rules"] {
            if let Some(field) = network.field(key) {
                let message = format!(
                    "`{key}` needs mode = \"user\": what leaves a bridge is for the host's firewall"
                );
                report.add(&field.place, message);
            }
        }
        return FileRules::default();
    }
    let otherwise = network.choice("egress", &VERDICTS, report).unwrap_or_default();
    let mut read = FileRules { rules: Rules { list: Vec::new(), otherwise }, from: Vec::new() };
    let items = network.field("rules").and_then(|field| {
        field.items("a list of rules like { allow = [\"*.example.org\"], ports = [443] }", report)
    });
    let mut names = BTreeMap::new();
    for (number, item) in (1..).zip(items.unwrap_or_default()) {
        let Some(section) = item.table(report) else { continue };
        let section = section.only(KEYS, report);
        let Some(rule) = rule(&section, number, report) else { continue };
        if let Some(earlier) = names.insert(rule.name.clone(), number) {
            let message = format!("rule {earlier} has the name {:?} already", rule.name);
            report.add(&section.place, message);
        }
        let from = strings(section.field("from"), "an instance, or a list of them", report);
        let owned =
            |it: &Located<&str>| Located { value: it.value.to_owned(), place: it.place.clone() };
        read.from.push(from.iter().map(owned).collect());
        read.rules.list.push(rule);
    }
    read
}

fn rule(section: &Section<'_>, number: usize, report: &mut Report<'_>) -> Option<Rule> {
    let given = VERDICTS.iter().filter_map(|(key, verdict)| Some((section.field(key)?, *verdict)));
    let mut given: Vec<_> = given.collect();
    let (Some((field, verdict)), true) = (given.pop(), given.is_empty()) else {
        report.add(&section.place, "a rule has either `allow` or `deny`");
        return None;
    };
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("icmp", Protocol::Icmp)];
    let protocol = section.choice("protocol", &protocols, report);
    let ports = ports(section, report).unwrap_or_default();
    if let (Some(Protocol::Icmp), Some(field)) = (protocol, section.field("ports")) {
        report.add(&field.place, "pings have no ports: leave them out");
    }
    Some(Rule {
        name: name(section, number, report),
        verdict,
        from: Vec::new(),
        to: remotes(field, report),
        protocol,
        ports,
    })
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

/// Empty: everything.
fn remotes(field: Field<'_>, report: &mut Report<'_>) -> Vec<Remote> {
    let expected = "a prefix, an address, a name, a list of them, or \"*\"";
    let texts = strings(Some(field), expected, report);
    if texts.iter().any(|text| text.value == ALL) {
        return Vec::new();
    }
    let mut remotes = Vec::new();
    for text in texts {
        match text.value.parse() {
            Ok(remote) => remotes.push(remote),
            Err(expected) => {
                report.add(&text.place, format!("expected {expected}; found {:?}", text.value));
            }
        }
    }
    remotes
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
