//! `[instances.NAME]`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netyard_engine::control::{Link, Shape};
use netyard_engine::forward::Forward;
use netyard_wire::MacAddr;

use super::networks::{Network, link_name};
use super::reader::{Field, Located, Place, Report, Section, Uses, unknown};
use super::rules::FileRule;
use super::{check_name, kinds, rules};
use crate::model::{Kind, MAX_LABEL, Restart, SocketProtocol, SocketSpec, VmSpec};

/// Keys of an instance.
pub(super) const KEYS: &[&str] = &[
    "run",
    "kind",
    "memory",
    "cpus",
    "kernel",
    "initrd",
    "drive",
    "count",
    "network",
    "address",
    "mac",
    "link",
    "env",
    "cwd",
    "restart",
    "needs",
    "forwards",
    "rules",
    "tap",
    "socket",
    "vhost-user",
    "owner",
];

/// Keys of one plug in `network = [{ .. }]`.
pub(super) const PLUG_KEYS: &[&str] =
    &["name", "address", "mac", "link", "tap", "socket", "vhost-user"];

/// Keys of `link`.
pub(super) const LINK_KEYS: &[&str] = &["delay", "loss", "rate", "packets", "up", "down"];

/// Keys of one direction of `link`.
pub(super) const SHAPE_KEYS: &[&str] = &["delay", "loss", "rate", "packets"];

/// Most instances of one name.
const MAX_COUNT: u16 = 1000;

/// Longest delay of a link: as long as a TCP opening is worth waiting for.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// What one `[instances.NAME]` says.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) place: Place,
    /// `None`: one instance whose name is the group's.
    pub(super) count: Option<u16>,
    pub(super) kind: Kind,
    pub(super) run: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: PathBuf,
    pub(super) restart: Restart,
    pub(super) needs: Vec<Located<String>>,
    pub(super) plugs: Vec<Plug>,
    pub(super) forwards: Vec<Located<Forward>>,
    pub(super) rules: Vec<FileRule>,
}

impl Group {
    /// The names of its instances.
    pub(super) fn instances(&self) -> Vec<String> {
        match self.count {
            None => vec![self.name.clone()],
            Some(count) => (1..=count).map(|n| format!("{}-{n}", self.name)).collect(),
        }
    }
}

/// One plug of a group's instances.
pub(super) struct Plug {
    pub(super) network: String,
    pub(super) address: Option<Located<Ipv4Addr>>,
    pub(super) mac: Option<Located<MacAddr>>,
    pub(super) link: Link,
    pub(super) tap: Option<Located<String>>,
    pub(super) socket: Option<Located<SocketSpec>>,
}

/// Every group of the file.
pub(super) fn read(
    top: &Section<'_>,
    folder: &Path,
    networks: &[Network],
    report: &mut Report<'_>,
) -> Vec<Group> {
    let sections = top.tables("instances", report);
    if sections.is_empty() {
        report.add_whole(
            "there is nothing to run: write [instances.NAME] with run = [\"program\", \"argument\"]",
        );
    }
    sections
        .into_iter()
        .map(|(name, section)| group(name, section.only(KEYS, report), folder, networks, report))
        .collect()
}

fn group(
    name: &str,
    section: Section<'_>,
    folder: &Path,
    networks: &[Network],
    report: &mut Report<'_>,
) -> Group {
    check_name(name, MAX_LABEL, &section.place, report);
    let restart =
        [("no", Restart::No), ("on-failure", Restart::OnFailure), ("always", Restart::Always)];
    let owned = |text: Located<&str>| Located { value: text.value.to_owned(), place: text.place };
    let kind = kinds::kind(&section, folder, report);
    let ruled = section.field("rules").map(|field| field.place);
    let group = Group {
        name: name.to_owned(),
        count: section.number("count", 1..=MAX_COUNT, report).map(|count| count.value),
        run: run(&section, &kind, report),
        kind,
        env: env(&section, report),
        cwd: cwd(&section, folder, report),
        restart: section.choice("restart", &restart, report).unwrap_or_default(),
        needs: section.strings("needs", report).into_iter().map(owned).collect(),
        plugs: plugs(&section, folder, networks, report),
        forwards: forwards(&section, folder, report),
        rules: rules::of_instance(&section, report),
        place: section.place,
    };
    if group.kind.external().is_some() {
        kinds::external_plugs(&group, networks, report);
    } else {
        kinds::no_sockets(&group, report);
    }
    if group.kind == Kind::Stack {
        kinds::few_plugs(&group, report);
    }
    if let Some(place) = ruled {
        no_rules_on_bridges(&group, &place, networks, report);
    }
    if group.count.is_some() {
        one_instance_only(&group, report);
        if group.instances().last().is_some_and(|name| name.len() > MAX_LABEL) {
            let most = format!("at most {MAX_LABEL} letters with the instance's number");
            report.add(&group.place, format!("expected a name of {most}"));
        }
    }
    group
}

/// Rules are asked where the network moves the packets.
fn no_rules_on_bridges(
    group: &Group,
    place: &Place,
    networks: &[Network],
    report: &mut Report<'_>,
) {
    let is_on = |network: &&Network| group.plugs.iter().any(|it| it.network == network.spec.name);
    if let Some(bridge) = networks.iter().filter(is_on).find(|it| it.spec.is_bridge()) {
        let name = &bridge.spec.name;
        let message = format!(
            "`rules` needs networks with mode = \"user\", and {name} is a bridge: what goes by it is for the host's firewall"
        );
        report.add(place, message);
    }
}

/// What only one instance can have, several cannot.
fn one_instance_only(group: &Group, report: &mut Report<'_>) {
    let several = "several instances cannot share it: leave `count` out, or";
    for plug in &group.plugs {
        if let Some(address) = &plug.address {
            report.add(&address.place, format!("{several} let netyard choose the addresses"));
        }
        if let Some(mac) = &plug.mac {
            report.add(&mac.place, format!("{several} let netyard choose the hardware addresses"));
        }
        if let Some(tap) = &plug.tap {
            report.add(&tap.place, format!("{several} let netyard choose the names"));
        }
        if let Some(socket) = &plug.socket {
            report.add(&socket.place, format!("{several} write one section for each"));
        }
    }
    if group.kind.vm().is_some_and(|vm| vm.drive.is_some()) {
        report.add(
            &group.place,
            "has a `drive`, which only one instance can write to: leave `count` out",
        );
    }
    if let Some(forward) = group.forwards.first() {
        report.add(&forward.place, format!("{several} publish a service over them"));
    }
}

fn run(section: &Section<'_>, kind: &Kind, report: &mut Report<'_>) -> Vec<String> {
    if kind.external().is_some() {
        return Vec::new();
    }
    let image = kind.vm().is_some_and(VmSpec::is_image);
    let Some(field) = section.field("run") else {
        if image {
            return Vec::new();
        }
        report.add(&section.place, "has no `run`: write run = [\"program\", \"argument\"]");
        return Vec::new();
    };
    if image {
        let message = "an image (`initrd`, `drive`) runs what is in it: leave `run` out";
        report.add(&field.place, message);
        return Vec::new();
    }
    let expected = "a list of strings like [\"program\", \"argument\"]";
    let Some(items) = field.items(expected, report) else { return Vec::new() };
    let words: Vec<_> = items.iter().filter_map(|item| item.string("a string", report)).collect();
    if items.is_empty() || words.first().is_some_and(|program| program.value.is_empty()) {
        report.add(&field.place, format!("expected {expected}, found no program"));
    }
    for word in &words {
        no_nul(word, report);
    }
    words.into_iter().map(|word| word.value.to_owned()).collect()
}

/// Programs get arguments and variables as C strings.
fn no_nul(text: &Located<&str>, report: &mut Report<'_>) {
    if text.value.contains('\0') {
        report.add(&text.place, "expected text without the letter NUL");
    }
}

fn env(section: &Section<'_>, report: &mut Report<'_>) -> BTreeMap<String, String> {
    let Some(table) = section.field("env").and_then(|field| field.table(report)) else {
        return BTreeMap::new();
    };
    let mut env = BTreeMap::new();
    for (name, field) in table.fields() {
        if name.is_empty() || name.contains(['=', '\0']) {
            report.add(&field.place, "expected the name of a variable, without `=`");
        }
        if let Some(value) = field.string("a string", report) {
            no_nul(&value, report);
            env.insert(name.to_owned(), value.value.to_owned());
        }
    }
    env
}

fn cwd(section: &Section<'_>, folder: &Path, report: &mut Report<'_>) -> PathBuf {
    let Some(cwd) = section.string("cwd", report) else { return folder.to_owned() };
    let path: PathBuf = folder.join(cwd.value).components().collect();
    if !path.is_dir() {
        report.add(&cwd.place, format!("expected a folder; there is none at {}", path.display()));
    }
    path
}

/// The plugs of `network`, which is a name, or a list of names and tables; left out, the only
/// network that there is.
fn plugs(
    section: &Section<'_>,
    folder: &Path,
    networks: &[Network],
    report: &mut Report<'_>,
) -> Vec<Plug> {
    let mut plugs = Vec::new();
    match section.field("network") {
        None => match networks {
            [network] => {
                plugs.push(plug(network.spec.name.clone(), section, folder, networks, report));
            }
            [] => {}
            several => {
                let names: Vec<_> = several.iter().map(|it| it.spec.name.as_str()).collect();
                let message = "has no `network`, and there are several";
                report.add(&section.place, format!("{message}: {}", names.join(", ")));
            }
        },
        Some(field) if field.is_string() => {
            if let Some(name) = network_name(&field, networks, report) {
                plugs.push(plug(name, section, folder, networks, report));
            }
        }
        Some(field) => plugs = plug_list(&field, section, folder, networks, report),
    }
    plugs
}

fn plug_list(
    field: &Field<'_>,
    section: &Section<'_>,
    folder: &Path,
    networks: &[Network],
    report: &mut Report<'_>,
) -> Vec<Plug> {
    const EXPECTED: &str = "the name of a network, or a list of them";
    let Some(items) = field.items(EXPECTED, report) else { return Vec::new() };
    if items.is_empty() {
        report.add(&field.place, format!("expected {EXPECTED}, found an empty list"));
    }
    for key in ["address", "mac", "link", "tap", "socket", "vhost-user"] {
        if let Some(field) = section.field(key) {
            report.add(
                &field.place,
                format!(
                    "does not say of which plug: write it beside the network, as in \
                     network = [{{ name = \"lan\", {key} = .. }}]"
                ),
            );
        }
    }
    let mut names = Uses::new();
    let mut plugs = Vec::new();
    for item in items {
        let (name, found) = if item.is_table() {
            let Some(table) = item.table(report) else { continue };
            let table = table.only(PLUG_KEYS, report);
            let Some(name) = table.field("name") else {
                report.add(&item.place, "has no `name`: write which network, name = \"lan\"");
                continue;
            };
            let Some(name) = network_name(&name, networks, report) else { continue };
            (name.clone(), plug(name, &table, folder, networks, report))
        } else {
            let Some(name) = network_name(&item, networks, report) else { continue };
            let plug = Plug {
                network: name.clone(),
                address: None,
                mac: None,
                link: Link::default(),
                tap: None,
                socket: None,
            };
            (name, plug)
        };
        if names.note(name.clone(), &item.place).is_some() {
            report.add(&item.place, format!("network {name} is in the list twice"));
        } else {
            plugs.push(found);
        }
    }
    plugs
}

/// The name of a network of the file.
fn network_name(
    field: &Field<'_>,
    networks: &[Network],
    report: &mut Report<'_>,
) -> Option<String> {
    let name = field.string("the name of a network, or a list of them", report)?;
    let known = networks.iter().map(|network| network.spec.name.as_str());
    if known.clone().any(|known| known == name.value) {
        return Some(name.value.to_owned());
    }
    let what = format!("there is no network {:?}", name.value);
    report.add(&name.place, unknown(&what, name.value, known));
    None
}

/// Address, hardware address, link and name of a plug, as `section` has them.
fn plug(
    network: String,
    section: &Section<'_>,
    folder: &Path,
    networks: &[Network],
    report: &mut Report<'_>,
) -> Plug {
    let address = section.parsed("address", "an IPv4 address like \"192.168.127.19\"", report);
    let mac =
        section.parsed::<MacAddr>("mac", "a hardware address like \"02:00:5e:10:00:01\"", report);
    if let Some(mac) = &mac
        && (mac.value.is_multicast() || mac.value == MacAddr([0; 6]))
    {
        report.add(
            &mac.place,
            format!("expected the address of one card (second digit even); found {}", mac.value),
        );
    }
    let is_bridge = networks.iter().any(|it| it.spec.name == network && it.spec.is_bridge());
    let field = section.field("link");
    if let Some(field) = field.as_ref().filter(|_| is_bridge) {
        report.add(&field.place, "shaping a link needs a network with mode = \"user\"");
    }
    let link = field.and_then(|field| field.table(report));
    let link = link.map(|link| self::link(&link.only(LINK_KEYS, report), report));
    let tap = section.string("tap", report).and_then(|name| {
        if !is_bridge {
            report.add(
                &name.place,
                "a name for the host's end needs a network with mode = \"bridge\"",
            );
        }
        Some(Located { value: link_name(&name, report)?, place: name.place })
    });
    let mut socket_by = |key, protocol| {
        let path = section.string(key, report)?;
        if is_bridge {
            let message = "a socket needs a network with mode = \"user\": here it is a TAP";
            report.add(&path.place, message);
        }
        no_nul(&path, report);
        let value = match protocol {
            SocketProtocol::VhostUser => SocketSpec { path: path.value.into(), protocol },
            _ => SocketSpec::from(path.value),
        };
        Some(Located { value: value.within(folder), place: path.place })
    };
    let stream = socket_by("socket", SocketProtocol::Stream);
    let vhost_user = socket_by("vhost-user", SocketProtocol::VhostUser);
    if let (Some(_), Some(second)) = (&stream, &vhost_user) {
        report.add(&second.place, "a plug has one socket: write `socket` or `vhost-user`");
    }
    let socket = stream.or(vhost_user);
    Plug { network, address, mac, link: link.unwrap_or_default(), tap, socket }
}

fn link(section: &Section<'_>, report: &mut Report<'_>) -> Link {
    let both = shape(section, Shape::default(), report);
    let mut direction = |key| {
        let table = section.field(key).and_then(|field| field.table(report));
        table.map_or(both, |table| shape(&table.only(SHAPE_KEYS, report), both, report))
    };
    Link { up: direction("up"), down: direction("down") }
}

/// One direction of a link; what is not said is as in `otherwise`.
fn shape(section: &Section<'_>, otherwise: Shape, report: &mut Report<'_>) -> Shape {
    let delay = duration(section, "delay", Duration::ZERO..=MAX_DELAY, report);
    let loss = section.field("loss").and_then(|field| {
        let expected = "a share from 0 to 1, like 0.01";
        let loss = field.fraction(expected, report)?;
        if (0.0..=1.0).contains(&loss) { Some(loss) } else { field.wrong(expected, report) }
    });
    let rate = section.field("rate").and_then(|field| {
        let expected = "a rate like \"10mbit\" (bit, kbit, mbit or gbit per second)";
        let text = field.string(expected, report)?;
        rate(text.value).or_else(|| field.wrong(expected, report))
    });
    let packets = section.number("packets", 1..=u32::MAX, report).map(|field| field.value.into());
    Shape {
        delay: delay.unwrap_or(otherwise.delay),
        loss: loss.unwrap_or(otherwise.loss),
        rate: rate.or(otherwise.rate),
        packets: packets.or(otherwise.packets),
    }
}

/// A duration within a range.
pub(super) fn duration(
    section: &Section<'_>,
    key: &str,
    range: std::ops::RangeInclusive<Duration>,
    report: &mut Report<'_>,
) -> Option<Duration> {
    let expected = format!(
        "a duration like \"20ms\" or \"2s\", from {} to {}",
        humantime::format_duration(*range.start()),
        humantime::format_duration(*range.end())
    );
    let field = section.field(key)?;
    let text = field.string(&expected, report)?;
    match humantime::parse_duration(text.value) {
        Ok(duration) if range.contains(&duration) => Some(duration),
        _ => field.wrong(&expected, report),
    }
}

/// Bits per second of `10mbit`, `1.5gbit`, `300kbit` or `9600bit`; never 0.
#[must_use]
pub fn rate(text: &str) -> Option<u64> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at_checked(digits)?;
    let scale: u64 = match unit {
        "bit" => 1,
        "kbit" => 1_000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        _ => return None,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let tenths = 10u64.checked_pow(u32::try_from(part.len()).ok()?)?;
    let part = part.parse::<u64>().ok()?.checked_mul(scale)? / tenths;
    let rate = whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(part)?;
    (rate != 0).then_some(rate)
}

fn forwards(
    section: &Section<'_>,
    folder: &Path,
    report: &mut Report<'_>,
) -> Vec<Located<Forward>> {
    let mut forwards = Vec::new();
    for text in section.strings("forwards", report) {
        match text.value.parse::<Forward>() {
            Ok(value) => forwards.push(Located { value: value.within(folder), place: text.place }),
            Err(error) => report.add(&text.place, error.to_string()),
        }
    }
    forwards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bits_per_second() {
        for (text, expected) in [
            ("9600bit", Some(9_600)),
            ("300kbit", Some(300_000)),
            ("10mbit", Some(10_000_000)),
            ("1.5gbit", Some(1_500_000_000)),
            ("0.5kbit", Some(500)),
            ("0mbit", None),
            ("0.1bit", None),
            ("10", None),
            ("mbit", None),
            ("10 mbit", None),
            ("10mbps", None),
            ("1.2.3mbit", None),
            ("-1mbit", None),
            ("99999999999999999999gbit", None),
            ("9999999999999999999gbit", None),
        ] {
            assert_eq!(rate(text), expected, "{text}");
        }
    }
}
