//! Fields in the order in which people look for them.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::Value;
use serde_json::ser::PrettyFormatter;

/// These come first, in this order; all others follow by name.
const FIRST: [&str; 16] = [
    "name",
    "nat",
    "rp",
    "schema",
    "type",
    "nat_info",
    "delta",
    "delta_info",
    "value",
    "ip",
    "cidr",
    "af",
    "nic_ips",
    "ext_ips",
    "link_local_ips",
    "direct",
];

/// JSON whose fields are written in the order of the form: names, types and ranges first.
#[derive(Debug, Clone, Copy)]
pub struct InOrder<'a>(pub &'a Value);

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                let rank =
                    |key: &str| FIRST.iter().position(|it| *it == key).unwrap_or(FIRST.len());
                let mut sorted: Vec<_> = fields.iter().collect();
                sorted.sort_by_key(|(key, _)| (rank(key), key.as_str()));
                let mut map = serializer.serialize_map(Some(sorted.len()))?;
                for (key, value) in sorted {
                    map.serialize_entry(key, &InOrder(value))?;
                }
                map.end()
            }
            Value::Array(items) => {
                let mut sequence = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    sequence.serialize_element(&InOrder(item))?;
                }
                sequence.end()
            }
            other => other.serialize(serializer),
        }
    }
}

/// The text, with four spaces for each level.
pub(super) fn pretty(value: &Value) -> String {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    match InOrder(value).serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        // Writing to memory does not fail, and every key is text.
        Err(error) => error.to_string(),
    }
}
