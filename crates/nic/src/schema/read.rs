//! JSON to interfaces.

use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{FAMILY_KEYS, SCHEMA, SchemaError};
use crate::{
    Answer, Card, CardAddress, CardId, CardKind, Family, Gateway, Interface, IpRange, PerFamily,
    ProbeError, Route, RoutePool, Unknown,
};

type Result<T> = std::result::Result<T, SchemaError>;

pub(super) fn interface(value: &Value) -> Result<Interface> {
    let top = Node { path: String::new(), value };
    let fields = top.object()?;
    if let Some(schema) = fields.get("schema") {
        let text = schema.as_str().unwrap_or_default();
        if text != SCHEMA {
            let found = schema.as_str().map_or_else(|| schema.to_string(), str::to_owned);
            return Err(SchemaError::Version { found });
        }
    }
    let card = card(&top)?;
    let mut rp = PerFamily::default();
    if let Some(pools) = top.field("rp")? {
        for (key, pool) in pools.fields()? {
            let family = pools.family(key)?;
            *rp.get_mut(family) = read_pool(&pool, family, &card.id())?;
        }
    }
    let nat = top.parsed("nat", "a NAT record")?;
    Ok(Interface::new(card, rp).with_nat(nat))
}

fn card(top: &Node<'_>) -> Result<Card> {
    let name = top.field("name")?.ok_or_else(|| top.wrong("a name", top.value))?;
    let name = name.text()?;
    let index = match top.parsed("index", "a number")? {
        None => top.parsed("netiface_index", "a number")?,
        index => index,
    };
    let mut card = Card { index, ..Card::named(name) };
    card.kind = top.parsed("kind", "a kind of card")?.unwrap_or(CardKind::Other);
    // What is no Ethernet address is kept as it is.
    card.mac = top.value.get("mac").and_then(|mac| serde_json::from_value(mac.clone()).ok());
    card.mtu = top.parsed("mtu", "a number")?;
    let flags: Vec<String> = top.parsed("flags", "a list of flags")?.unwrap_or_default();
    card.up = flags.iter().any(|flag| flag == "up");
    card.carrier = flags.iter().any(|flag| flag == "carrier");
    card.port_of = top.parsed("port_of", "a name")?;
    card.upon = top.parsed("upon", "a name")?;
    card.gateways =
        top.parsed::<Vec<Gateway>>("gateways", "a list of gateways")?.unwrap_or_default();
    if let Some(addresses) = top.field("addrs")? {
        for address in addresses.items()? {
            card.addresses.push(card_address(&address)?);
        }
    }
    for (field, name) in [("is_default", "true or false"), ("source", "an address")] {
        let Some(of) = top.field(field)? else { continue };
        for (key, value) in of.fields()? {
            let family = of.family(key)?;
            match field {
                "source" => *card.source.get_mut(family) = value.as_parsed(name)?,
                _ => *card.default.get_mut(family) = value.as_parsed(name)?,
            }
        }
    }
    Ok(card)
}

fn card_address(node: &Node<'_>) -> Result<CardAddress> {
    Ok(CardAddress {
        range: range(node)?,
        state: node.parsed("state", "the state of an address")?.unwrap_or_default(),
        temporary: node.parsed("temporary", "true or false")?.unwrap_or(false),
        preferred: node.parsed("preferred_s", "a number of seconds")?,
        valid: node.parsed("valid_s", "a number of seconds")?,
    })
}

fn read_pool(node: &Node<'_>, family: Family, card: &CardId) -> Result<RoutePool> {
    let mut routes = Vec::new();
    for route in node.items()? {
        routes.extend(read_route(&route, family, card)?);
    }
    Ok(RoutePool::new(routes))
}

/// A route; one for each external range if there are several.
fn read_route(node: &Node<'_>, family: Family, card: &CardId) -> Result<Vec<Route>> {
    if let Some(said) = node.field("af")?
        && family_of(said.value) != Some(family)
    {
        return Err(said.wrong("the family that the routes are listed under", said.value));
    }
    let ranges = |name| -> Result<Vec<IpRange>> {
        let Some(list) = node.field(name)? else { return Ok(Vec::new()) };
        list.items()?.iter().map(|item| of_family(item, range(item)?, family)).collect()
    };
    let (nic, external) = (ranges("nic_ips")?, ranges("ext_ips")?);
    let link_locals = ranges("link_local_ips")?;
    let confidence = node.parsed("confidence", "how sure it is")?;
    let said_direct: Option<bool> = node.parsed("direct", "true or false")?;
    let evidence = evidence(node)?;
    let finish = |route: Route| {
        route.with_link_locals(&link_locals).with_evidence(confidence, evidence.clone())
    };
    if external.is_empty() {
        let why = node.parsed("ext_unknown", "why it is not known")?.unwrap_or(Unknown::NotAsked);
        return Ok(vec![finish(Route::unknown(card.clone(), family, nic, why))]);
    }
    // A range on both sides is the card's own; of IPv6 the near side may be link-local only.
    let near_only = !nic.is_empty()
        && nic
            .iter()
            .all(|near| matches!(near.base(), IpAddr::V6(ip) if ip.is_unicast_link_local()));
    let routes = external.into_iter().map(|range| {
        let direct = near_only || nic.iter().any(|near| near.same(&range));
        let route = Route::translated(card.clone(), family, nic.clone(), range);
        finish(route.said_direct(said_direct.unwrap_or(direct)))
    });
    Ok(routes.collect())
}

fn evidence(node: &Node<'_>) -> Result<Vec<Answer>> {
    let Some(list) = node.field("evidence")? else { return Ok(Vec::new()) };
    let read = |item: &Node<'_>| -> Result<Answer> {
        let seen = match (item.parsed("seen", "an address and port")?, item.field("error")?) {
            (Some(seen), _) => Ok(seen),
            (None, Some(error)) => Err(error.as_parsed::<ProbeError>("an error")?),
            (None, None) => Err(ProbeError::NoAnswer),
        };
        Ok(Answer {
            server: item.parsed("server", "a name")?.unwrap_or_default(),
            seen,
            took: Duration::from_micros(item.parsed("took_us", "a number")?.unwrap_or(0)),
        })
    };
    list.items()?.iter().map(read).collect()
}

fn of_family(node: &Node<'_>, range: IpRange, family: Family) -> Result<IpRange> {
    if range.family() == family {
        Ok(range)
    } else {
        Err(node.wrong("an address of the route's family", node.value))
    }
}

fn range(node: &Node<'_>) -> Result<IpRange> {
    let ip = node.field("ip")?.ok_or_else(|| node.wrong("a range with an ip", node.value))?;
    let text = ip.text()?;
    let (address, scope_text) = match text.split_once('%') {
        Some((address, scope)) => (address, scope.parse().ok()),
        None => (text, None),
    };
    let address: IpAddr =
        address.parse().map_err(|_| ip.wrong("an IPv4 or IPv6 address", ip.value))?;
    let bits = Family::of(address).bits();
    let prefix =
        match (node.parsed::<u8>("cidr", "the length of a prefix")?, node.field("host_limit")?) {
            (Some(prefix), _) => prefix,
            (None, Some(limit)) => prefix_of(address, limit.value)
                .ok_or_else(|| limit.wrong("a number of hosts", limit.value))?,
            (None, None) => bits,
        };
    let net = IpNet::new(address, prefix)
        .map_err(|_| node.wrong("a prefix that is not longer than the address", node.value))?;
    let range = IpRange::assigned(net);
    let subnet: Option<u8> = node.parsed("subnet", "the length of a prefix")?;
    let scope = node.parsed("scope", "the number of a link")?.or(scope_text);
    Ok(subnet.map_or(range, |subnet| range.in_subnet(subnet)).on_link(scope))
}

/// The length of the prefix that `host_limit` stands for: the length itself in some versions, the number
/// of hosts (2^n - 1, 1 for a single one) in others. As a length it has to fit the address.
fn prefix_of(address: IpAddr, limit: &Value) -> Option<u8> {
    let bits = Family::of(address).bits();
    if let Some(prefix) = limit.as_u64().and_then(|limit| u8::try_from(limit).ok())
        && let Ok(net) = IpNet::new(address, prefix)
        && net.network() == address
    {
        return Some(prefix);
    }
    let hosts = limit.as_f64().filter(|hosts| *hosts >= 1.0)?;
    if hosts < 2.0 {
        return Some(bits);
    }
    // Numbers above 2^53 are not exact, but near enough to their power of two.
    let host_bits = (hosts + 1.0).log2().round();
    (host_bits <= f64::from(bits)).then(|| bits.saturating_sub(host_bits as u8))
}

/// The family that a number or name stands for: `AF_INET` everywhere, `AF_INET6` on Linux, Windows, NetBSD
/// and OpenBSD, FreeBSD, macOS.
fn family_of(value: &Value) -> Option<Family> {
    let text = match value {
        Value::String(text) => text.to_ascii_lowercase(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    match text.as_str() {
        "2" | "ip4" | "ipv4" => Some(Family::Ip4),
        "10" | "23" | "24" | "28" | "30" | "ip6" | "ipv6" => Some(Family::Ip6),
        _ => None,
    }
}

/// The key that is written for a key of a family.
pub(super) fn family_key(key: &str) -> Option<&'static str> {
    let [ip4, ip6] = FAMILY_KEYS;
    Some(match family_of(&Value::from(key))? {
        Family::Ip4 => ip4,
        Family::Ip6 => ip6,
    })
}

/// A value, and where it is.
struct Node<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> Node<'a> {
    fn wrong(&self, wanted: &'static str, found: &Value) -> SchemaError {
        const SHOWN: usize = 60;
        let mut found = found.to_string();
        if found.chars().count() > SHOWN {
            found = found.chars().take(SHOWN).chain("...".chars()).collect();
        }
        let path = if self.path.is_empty() { "/".to_owned() } else { self.path.clone() };
        SchemaError::Field { path, wanted, found }
    }

    fn below(&self, step: impl Display, value: &'a Value) -> Self {
        Self { path: format!("{}/{step}", self.path), value }
    }

    fn object(&self) -> Result<&'a Map<String, Value>> {
        self.value.as_object().ok_or_else(|| self.wrong("an object", self.value))
    }

    fn fields(&self) -> Result<Vec<(&'a String, Self)>> {
        Ok(self.object()?.iter().map(|(key, value)| (key, self.below(key, value))).collect())
    }

    fn items(&self) -> Result<Vec<Self>> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("a list", self.value))?;
        Ok(items.iter().enumerate().map(|(number, value)| self.below(number, value)).collect())
    }

    /// A field; `None` if it is missing or null.
    fn field(&self, name: &str) -> Result<Option<Self>> {
        let value = self.object()?.get(name).filter(|value| !value.is_null());
        Ok(value.map(|value| self.below(name, value)))
    }

    fn text(&self) -> Result<&'a str> {
        self.value.as_str().ok_or_else(|| self.wrong("a text", self.value))
    }

    fn as_parsed<T: DeserializeOwned>(&self, wanted: &'static str) -> Result<T> {
        serde_json::from_value(self.value.clone()).map_err(|_| self.wrong(wanted, self.value))
    }

    fn parsed<T: DeserializeOwned>(&self, name: &str, wanted: &'static str) -> Result<Option<T>> {
        self.field(name)?.map(|node| node.as_parsed(wanted)).transpose()
    }

    fn family(&self, key: &str) -> Result<Family> {
        let value = Value::from(key);
        family_of(&value).ok_or_else(|| self.wrong("the number or name of a family", &value))
    }
}
