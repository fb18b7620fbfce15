//! What people see of cards and routes.

use std::fmt::Write as _;
use std::time::Duration;

use netyard_nic::{
    AddressClass, AddressState, Answer, Card, CardAddress, Confidence, Count, External, Family,
    Interface, ProbeError, Route, RoutePool, Standing,
};

use crate::output::{Cell, Mood, Table};

/// `netyard nic list`: a row for each card.
pub(super) fn cards(cards: &[Card], all: bool, colour: bool) -> String {
    let mut headings = vec!["NAME", "KIND", "STATE", "IPv4", "IPv6", "MTU", "MAC", "ADDRESSES"];
    if all {
        headings.push("OF NO USE");
    }
    let mut table = Table::new(&headings);
    for card in cards {
        let standing = |family| card.standing(family);
        let cells = [
            card.name.as_str().into(),
            card.kind.to_string().into(),
            state(card),
            short(&standing(Family::Ip4)),
            short(&standing(Family::Ip6)),
            card.mtu.into(),
            card.mac.into(),
            Some(listed(card)).filter(|addresses| !addresses.is_empty()).into(),
        ];
        if all {
            let [a, b, c, d, e, f, g, h] = cells;
            table.row([a, b, c, d, e, f, g, h, obstacles(card).into()]);
        } else {
            table.row(cells);
        }
    }
    table.render(colour)
}

fn state(card: &Card) -> Cell {
    match (card.up, card.carrier) {
        (true, true) => Cell::new("up", Mood::Good),
        (true, false) => Cell::new("no carrier", Mood::Doubtful),
        (false, _) => Cell::new("down", Mood::Plain),
    }
}

fn short(standing: &Standing) -> Cell {
    match standing {
        Standing::Default => Cell::new("default", Mood::Good),
        Standing::Outside => "outside".into(),
        Standing::Local => "local".into(),
        Standing::Unusable(_) => "-".into(),
    }
}

/// The addresses that others than neighbours may know.
fn listed(card: &Card) -> String {
    let beyond = card.addresses.iter().filter(|it| it.class() != AddressClass::LinkLocal);
    beyond.map(address).collect::<Vec<_>>().join(", ")
}

/// `192.168.0.20/24`, `2001:db8::7/64 (deprecated)`.
fn address(address: &CardAddress) -> String {
    let mut text = address.range.to_string();
    if let Some(subnet) = address.range.subnet() {
        _ = write!(text, "/{subnet}");
    }
    let marks = [
        (address.state != AddressState::Ready).then(|| address.state.to_string()),
        address.temporary.then(|| "temporary".to_owned()),
    ];
    let marks: Vec<_> = marks.into_iter().flatten().collect();
    if !marks.is_empty() {
        _ = write!(text, " ({})", marks.join(", "));
    }
    text
}

/// Why a card is of no use, for both families if it is the same.
fn obstacles(card: &Card) -> String {
    let [ip4, ip6] = Family::BOTH.map(|family| match card.standing(family) {
        Standing::Unusable(why) => Some(why.to_string()),
        _ => None,
    });
    match (ip4, ip6) {
        (Some(ip4), Some(ip6)) if ip4 == ip6 => ip4,
        (Some(ip4), Some(ip6)) => format!("IPv4 {ip4}; IPv6 {ip6}"),
        // What is good for one family is of use.
        _ => String::new(),
    }
}

/// `netyard nic show`.
pub(super) fn interface(interface: &Interface, colour: bool) -> String {
    let card = interface.card();
    let mut text = format!("{}\n", card.name);
    let mut list = Table::list();
    if card.index.is_some() {
        list.item("kind", card.kind.to_string());
        list.item("state", state(card));
        for family in Family::BOTH {
            list.item(&family.to_string(), card.standing(family).to_string());
        }
    }
    for (name, value) in [
        ("number", card.index.map(|index| index.to_string())),
        ("upon", card.upon.clone()),
        ("MAC", card.mac.map(|mac| mac.to_string())),
        ("MTU", card.mtu.map(|mtu| mtu.to_string())),
    ] {
        if let Some(value) = value {
            list.item(name, value);
        }
    }
    for (number, way) in card.gateways.iter().enumerate() {
        let address = way.address.map_or_else(|| "everything".to_owned(), |it| it.to_string());
        let table = match way.table {
            254 => String::new(),
            table => format!(", table {table}"),
        };
        let line = format!("{address} ({}, metric {}{table})", way.family, way.metric);
        list.item(if number == 0 { "gateways" } else { "" }, line);
    }
    for (number, of_card) in card.addresses.iter().enumerate() {
        let line = format!("{}{}", address(of_card), lifetimes(of_card));
        list.item(if number == 0 { "addresses" } else { "" }, line);
    }
    let nat = interface.nat().map(|nat| nat.kind.map_or("inconclusive", |kind| kind.label()));
    list.item("NAT", nat.unwrap_or("not tested"));
    text.push_str(&list.render(colour));
    for family in interface.supported() {
        text.push('\n');
        text.push_str(&routes(interface, family, None, colour));
    }
    text
}

fn lifetimes(address: &CardAddress) -> String {
    let left = |seconds: u32| humantime::format_duration(Duration::from_secs(seconds.into()));
    match (address.preferred, address.valid) {
        (_, None) => String::new(),
        (Some(preferred @ 1..), Some(valid)) => {
            format!(", preferred for {}, there for {}", left(preferred), left(valid))
        }
        (_, Some(valid)) => format!(", there for {}", left(valid)),
    }
}

/// `netyard nic routes`: the routes of a family, and the first external addresses one by one.
pub(super) fn routes(
    interface: &Interface,
    family: Family,
    expand: Option<usize>,
    colour: bool,
) -> String {
    let pool = interface.rp(family);
    let count = match pool.routes().len() {
        0 => return format!("{family} routes of {}: none\n", interface.name()),
        1 => "1 route".to_owned(),
        count => format!("{count} routes"),
    };
    let name = interface.name();
    let mut text = format!("{family} routes of {name} ({count}, {})\n", addresses(pool));
    let mut list = Table::list();
    for route in pool.routes() {
        let near: Vec<_> = route.nic_ips().iter().map(|range| format!("{range:#}")).collect();
        let near = format!("[{}]", near.join(", "));
        let far = match route.external() {
            External::Known(range) => format!("-> [{range}]"),
            External::Unknown(_) => "-> unknown".to_owned(),
        };
        list.row([near.into(), far.into(), note(route)]);
    }
    text.push_str(&list.render(colour));
    if let Some(expand) = expand {
        let mut list = Table::list();
        for (number, route) in pool.iter().take(expand).enumerate() {
            list.row([number.to_string().into(), route.to_string().into()]);
        }
        text.push_str(&list.render(colour));
        let left = pool.len().saturating_sub(expand as u128);
        if left > 0 {
            _ = writeln!(text, "  ... and {}", Count(left));
        }
    }
    text
}

fn addresses(pool: &RoutePool) -> String {
    match pool.len() {
        0 => "no external address known".to_owned(),
        1 => "1 address".to_owned(),
        count => match Count(count).to_string().strip_suffix(" IPs") {
            Some(number) => format!("{number} addresses"),
            None => count.to_string(),
        },
    }
}

/// What speaks for a route, or why its external address is not known.
fn note(route: &Route) -> Cell {
    if let External::Unknown(why) = route.external() {
        return Cell::new(why, Mood::Doubtful);
    }
    let agreed = |seen: std::net::SocketAddr| {
        route.ext_ips().is_some_and(|range| range.contains(seen.ip().to_canonical()))
    };
    // Servers that have no address of the family were not asked.
    let asked = |answer: &&Answer| !matches!(answer.seen, Err(ProbeError::Name(_)));
    let answers = || route.evidence().iter().filter(asked);
    let of_one_mind =
        || answers().filter(|answer| answer.seen.as_ref().is_ok_and(|seen| agreed(*seen)));
    let voices = of_one_mind().count();
    let took = of_one_mind().map(|answer| answer.took).max().unwrap_or_default();
    let direct = route.is_direct().then(|| "direct".to_owned());
    let servers = match (route.confidence(), answers().count()) {
        (_, 0) | (None, _) => None,
        (Some(Confidence::Proven), of) => {
            Some(format!("{voices} of {of} servers agree, {} ms", took.as_millis()))
        }
        (Some(Confidence::Single), of) => {
            Some(format!("{voices} of {of} servers answered, {} ms", took.as_millis()))
        }
    };
    let parts: Vec<_> = direct.into_iter().chain(servers).collect();
    Cell::new(parts.join(", "), Mood::Plain)
}
