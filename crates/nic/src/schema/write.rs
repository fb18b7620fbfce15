//! Interfaces to JSON.

use serde_json::{Map, Value, json};

use super::{FAMILY_KEYS, SCHEMA};
use crate::{Answer, CardAddress, Family, Interface, IpRange, PerFamily, Route};

/// Everything that is known.
pub(super) fn interface(interface: &Interface) -> Value {
    let card = interface.card();
    let flags = [("up", card.up), ("carrier", card.carrier)];
    let flags: Vec<_> = flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag).collect();
    let mut value = json!({
        "schema": SCHEMA,
        "name": card.name,
        "nat": interface.nat(),
        "rp": keyed(&|family| {
            Value::from_iter(interface.rp(family).routes().iter().map(route))
        }),
        "index": card.index,
        "kind": card.kind,
        "mtu": card.mtu,
        "flags": flags,
        "is_default": per_family(&card.default),
        "source": per_family(&card.source),
        "gateways": card.gateways,
        "addrs": card.addresses.iter().map(address).collect::<Vec<_>>(),
    });
    put(&mut value, "mac", card.mac);
    put(&mut value, "port_of", card.port_of.as_ref());
    put(&mut value, "upon", card.upon.as_ref());
    value
}

/// What the older form has, and nothing else.
pub(super) fn seed(interface: &Interface) -> Value {
    let nat = interface.nat().map(|nat| json!(nat));
    let part = |fields: &Value, names: &[&str]| {
        let named = |name: &&str| Some(((*name).to_owned(), fields.get(name)?.clone()));
        Value::Object(names.iter().filter_map(named).collect())
    };
    let nat = nat.map(|nat| {
        let mut short = part(&nat, &["type", "nat_info", "delta", "delta_info"]);
        if let Some(delta) = short.get_mut("delta") {
            *delta = if delta.is_null() { Value::Null } else { part(delta, &["type", "value"]) };
        }
        short
    });
    let ranges = |ranges: &[IpRange]| Value::from_iter(ranges.iter().map(short_range));
    let pool = |family| {
        Value::from_iter(interface.rp(family).routes().iter().map(|route| {
            json!({
                "af": number(route.family()),
                "nic_ips": ranges(route.nic_ips()),
                "ext_ips": route.ext_ips().map(short_range).into_iter().collect::<Vec<_>>(),
            })
        }))
    };
    json!({ "name": interface.name(), "nat": nat, "rp": keyed(&pool) })
}

fn route(route: &Route) -> Value {
    let ranges = |ranges: &[IpRange]| Value::from_iter(ranges.iter().map(range));
    let mut value = json!({
        "af": number(route.family()),
        "nic_ips": ranges(route.nic_ips()),
        "ext_ips": route.ext_ips().map(range).into_iter().collect::<Vec<_>>(),
        "link_local_ips": ranges(route.link_locals()),
        "direct": route.is_direct(),
        "confidence": route.confidence(),
    });
    if let crate::External::Unknown(why) = route.external() {
        put(&mut value, "ext_unknown", Some(why));
    }
    if !route.evidence().is_empty() {
        let evidence: Vec<_> = route.evidence().iter().map(answer).collect();
        put(&mut value, "evidence", Some(evidence));
    }
    value
}

fn answer(answer: &Answer) -> Value {
    let took_us = u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX);
    let mut value = json!({ "server": answer.server, "took_us": took_us });
    put(&mut value, "seen", answer.seen.as_ref().ok());
    put(&mut value, "error", answer.seen.as_ref().err());
    value
}

fn address(address: &CardAddress) -> Value {
    let mut value = range(&address.range);
    put(&mut value, "state", Some(address.state));
    put(&mut value, "temporary", address.temporary.then_some(true));
    put(&mut value, "preferred_s", address.preferred);
    put(&mut value, "valid_s", address.valid);
    value
}

fn range(range: &IpRange) -> Value {
    let mut value = short_range(range);
    put(&mut value, "subnet", range.subnet());
    put(&mut value, "scope", range.scope());
    value
}

fn short_range(range: &IpRange) -> Value {
    json!({ "ip": range.base(), "cidr": range.prefix(), "af": number(range.family()) })
}

/// The number of a family in files, the same on every system.
fn number(family: Family) -> u8 {
    match family {
        Family::Ip4 => 2,
        Family::Ip6 => 23,
    }
}

fn keyed(value: &dyn Fn(Family) -> Value) -> Value {
    let keys = FAMILY_KEYS.iter().zip(Family::BOTH);
    Value::Object(keys.map(|(key, family)| ((*key).to_owned(), value(family))).collect())
}

fn per_family<T: serde::Serialize>(both: &PerFamily<T>) -> Value {
    keyed(&|family| json!(both.get(family)))
}

/// Adds a field, if there is something to say.
fn put(value: &mut Value, name: &str, field: Option<impl serde::Serialize>) {
    let fields: Option<&mut Map<_, _>> = value.as_object_mut();
    if let (Some(fields), Some(field)) = (fields, field) {
        fields.insert(name.to_owned(), json!(field));
    }
}
