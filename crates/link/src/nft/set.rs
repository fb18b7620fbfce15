//! Sets and maps, and their elements.

use std::time::Duration;

use super::expression::{Expression, LIST_ELEM, put_value, put_verdict};
use super::{Table, Type, Value};
use crate::attribute::Message;
use crate::error::{Error, Result};

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// It goes on.
    Accept,
    /// It goes no further.
    Drop,
    /// The rules of this chain are next, then those after this one.
    Jump(String),
    /// The rules of this chain are next.
    Goto(String),
    /// The rules after the last jump are next.
    Return,
    /// The next rule is next.
    Continue,
}

impl Verdict {
    /// `NF_ACCEPT`, `NF_DROP` and `enum nft_verdicts`.
    pub(super) const fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Continue => -1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    pub(super) fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            _ => None,
        }
    }

    pub(super) fn read(code: i32, chain: Option<String>) -> Option<Self> {
        Some(match (code, chain) {
            (0, _) => Self::Drop,
            (1, _) => Self::Accept,
            (-1, _) => Self::Continue,
            (-3, Some(chain)) => Self::Jump(chain),
            (-4, Some(chain)) => Self::Goto(chain),
            (-5, _) => Self::Return,
            _ => return None,
        })
    }
}

/// What the elements of a map lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A verdict each.
    Verdict,
    /// Values of these types, joined.
    Values(Vec<Type>),
}

/// What one element of a map leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datum {
    /// A verdict.
    Verdict(Verdict),
    /// A value.
    Value(Value),
}

impl From<Verdict> for Datum {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

impl From<Value> for Datum {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

/// A set, or a map if its elements lead to something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub(super) table: Table,
    pub(super) name: String,
    pub(super) key: Vec<Type>,
    pub(super) data: Option<Data>,
    interval: bool,
    counted: bool,
    dynamic: bool,
    /// `Some(None)`: elements may expire, each with its own time.
    timeout: Option<Option<Duration>>,
    size: Option<u32>,
}

impl Set {
    /// A set with keys of these types, joined.
    #[must_use]
    pub fn new(table: &Table, name: &str, key: impl IntoIterator<Item = Type>) -> Self {
        Self {
            table: table.clone(),
            name: name.to_owned(),
            key: key.into_iter().collect(),
            data: None,
            interval: false,
            counted: false,
            dynamic: false,
            timeout: None,
            size: None,
        }
    }

    /// A map from keys to values of these types, joined.
    #[must_use]
    pub fn map(
        table: &Table,
        name: &str,
        key: impl IntoIterator<Item = Type>,
        data: impl IntoIterator<Item = Type>,
    ) -> Self {
        let data = Some(Data::Values(data.into_iter().collect()));
        Self { data, ..Self::new(table, name, key) }
    }

    /// A map from keys to verdicts.
    #[must_use]
    pub fn verdict_map(table: &Table, name: &str, key: impl IntoIterator<Item = Type>) -> Self {
        Self { data: Some(Data::Verdict), ..Self::new(table, name, key) }
    }

    /// Keys may be ranges.
    #[must_use]
    pub fn interval(mut self) -> Self {
        self.interval = true;
        self
    }

    /// Each element counts the packets that find it.
    #[must_use]
    pub fn counted(mut self) -> Self {
        self.counted = true;
        self
    }

    /// Elements expire: after this time unless they say otherwise; `None`: those that say when.
    #[must_use]
    pub fn timeout(mut self, default: Option<Duration>) -> Self {
        self.timeout = Some(default);
        self
    }

    /// Rules add elements, up to this many.
    #[must_use]
    pub fn dynamic(mut self, size: u32) -> Self {
        self.dynamic = true;
        self.size = Some(size);
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    fn is_concatenated(&self) -> bool {
        self.key.len() > 1
    }

    /// The attributes of `NFT_MSG_NEWSET`.
    pub(super) fn put(&self, message: &mut Message, id: u32) {
        const NFTA_SET_FLAGS: u16 = 3;
        const NFTA_SET_KEY_TYPE: u16 = 4;
        const NFTA_SET_KEY_LEN: u16 = 5;
        const NFTA_SET_DATA_TYPE: u16 = 6;
        const NFTA_SET_DATA_LEN: u16 = 7;
        const NFTA_SET_DESC: u16 = 9;
        const NFTA_SET_ID: u16 = 10;
        const NFTA_SET_TIMEOUT: u16 = 11;
        const NFTA_SET_USERDATA: u16 = 13;
        const NFTA_SET_EXPR: u16 = 17;
        const NFTA_SET_DESC_SIZE: u16 = 1;
        const NFTA_SET_DESC_CONCAT: u16 = 2;
        const NFTA_SET_FIELD_LEN: u16 = 1;
        const NFT_SET_INTERVAL: u32 = 0x4;
        const NFT_SET_MAP: u32 = 0x8;
        const NFT_SET_TIMEOUT: u32 = 0x10;
        const NFT_SET_EVAL: u32 = 0x20;
        const NFT_SET_CONCAT: u32 = 0x80;
        /// `NFT_DATA_VERDICT`.
        const VERDICT: u32 = 0xffff_ff00;
        let ranges_of_several = self.interval && self.is_concatenated();
        let flags = [
            (self.interval, NFT_SET_INTERVAL),
            (self.data.is_some(), NFT_SET_MAP),
            (self.timeout.is_some(), NFT_SET_TIMEOUT),
            (self.dynamic, NFT_SET_EVAL),
            (ranges_of_several, NFT_SET_CONCAT),
        ];
        let flags = flags.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag);
        put_name(message, self);
        message.put_be32(NFTA_SET_ID, id).put_be32(NFTA_SET_FLAGS, flags);
        message.put_be32(NFTA_SET_KEY_TYPE, type_number(&self.key));
        message.put_be32(NFTA_SET_KEY_LEN, number(width(&self.key)));
        match &self.data {
            Some(Data::Verdict) => {
                message.put_be32(NFTA_SET_DATA_TYPE, VERDICT).put_be32(NFTA_SET_DATA_LEN, 0);
            }
            Some(Data::Values(types)) => {
                message.put_be32(NFTA_SET_DATA_TYPE, type_number(types));
                message.put_be32(NFTA_SET_DATA_LEN, number(width(types)));
            }
            None => {}
        }
        message.put(NFTA_SET_USERDATA, &self.byte_orders());
        if self.counted {
            Expression::Counter.put_as(message, NFTA_SET_EXPR);
        }
        if let Some(Some(default)) = self.timeout {
            message.put_be64(NFTA_SET_TIMEOUT, milliseconds(default));
        }
        if self.size.is_some() || ranges_of_several {
            message.nest(NFTA_SET_DESC, |desc| {
                if let Some(size) = self.size {
                    desc.put_be32(NFTA_SET_DESC_SIZE, size);
                }
                if ranges_of_several {
                    desc.nest(NFTA_SET_DESC_CONCAT, |fields| {
                        for field in &self.key {
                            fields.nest(LIST_ELEM, |one| {
                                one.put_be32(NFTA_SET_FIELD_LEN, number(field.len()));
                            });
                        }
                    });
                }
            });
        }
    }

    /// For nft(8), which lists numbers backwards unless it is told their order
    /// (`NFTNL_UDATA_SET_KEYBYTEORDER` and `..._DATABYTEORDER`: kind, length, number).
    fn byte_orders(&self) -> Vec<u8> {
        const HOST: u32 = 1;
        const NETWORK: u32 = 2;
        let order = |types: &[Type]| match types {
            [Type::Mark | Type::LinkIndex | Type::LinkName] => HOST,
            _ => NETWORK,
        };
        let data = match &self.data {
            Some(Data::Values(types)) => Some((1_u8, order(types))),
            _ => None,
        };
        let orders = [(0, order(&self.key))].into_iter().chain(data);
        orders.flat_map(|(kind, order)| [kind, 4].into_iter().chain(order.to_ne_bytes())).collect()
    }

    /// Why an element cannot be in this set.
    fn objection(&self, element: &Element) -> Option<String> {
        let width = width(&self.key);
        let wide = |value: &Value| value.0.len() == width;
        if !wide(&element.key) || element.last.as_ref().is_some_and(|last| !wide(last)) {
            return Some(format!("its key has not the {width} bytes of {:?}", self.key));
        }
        if element.last.is_some() && !self.interval {
            return Some("a range, in a set without ranges".into());
        }
        match (&self.data, &element.data) {
            (None, None) | (Some(Data::Verdict), Some(Datum::Verdict(_))) => None,
            (Some(Data::Values(types)), Some(Datum::Value(value)))
                if value.0.len() == self::width(types) =>
            {
                None
            }
            (wanted, _) => Some(format!("it does not lead to {wanted:?}")),
        }
    }
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    key: Value,
    last: Option<Value>,
    data: Option<Datum>,
    timeout: Option<Duration>,
    comment: Option<String>,
}

impl Element {
    /// The one with this key.
    #[must_use]
    pub fn new(key: impl Into<Value>) -> Self {
        Self { key: key.into(), last: None, data: None, timeout: None, comment: None }
    }

    /// All from the key to this one, both included; of joined keys, field by field.
    #[must_use]
    pub fn up_to(mut self, last: impl Into<Value>) -> Self {
        self.last = Some(last.into());
        self
    }

    /// What it leads to.
    #[must_use]
    pub fn to(mut self, data: impl Into<Datum>) -> Self {
        self.data = Some(data.into());
        self
    }

    /// It expires after this time.
    #[must_use]
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = Some(time);
        self
    }

    /// A text beside it, up to 127 bytes.
    #[must_use]
    pub fn comment(mut self, text: &str) -> Self {
        self.comment = Some(text.to_owned());
        self
    }

    /// At most this many bytes in a message.
    pub(super) fn room(&self) -> usize {
        /// Headers of attributes, and a verdict's chain or an IPv6 address and port.
        const FRAME: usize = 512;
        2 * self.key.0.len() + FRAME
    }

    pub(super) fn put(&self, list: &mut Message, set: &Set) -> Result<()> {
        const NFTA_SET_ELEM_FLAGS: u16 = 3;
        const NFTA_SET_ELEM_KEY: u16 = 1;
        const NFTA_SET_ELEM_DATA: u16 = 2;
        const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
        const NFTA_SET_ELEM_USERDATA: u16 = 6;
        const NFTA_SET_ELEM_KEY_END: u16 = 10;
        const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
        if let Some(objection) = set.objection(self) {
            return Err(Error::Invalid(format!(
                "an element of the set {} is wrong: {objection}",
                set.name
            )));
        }
        // Ranges of joined keys are one element with an end that is included; ranges of single
        // keys are two, a beginning and an end that is not.
        let single_range = set.interval && !set.is_concatenated();
        let last = self.last.as_ref().or_else(|| set.interval.then_some(&self.key));
        list.nest(LIST_ELEM, |element| {
            put_value(element, NFTA_SET_ELEM_KEY, &self.key.0);
            if let Some(last) = last.filter(|_| !single_range) {
                put_value(element, NFTA_SET_ELEM_KEY_END, &last.0);
            }
            match &self.data {
                Some(Datum::Verdict(verdict)) => put_verdict(element, NFTA_SET_ELEM_DATA, verdict),
                Some(Datum::Value(value)) => put_value(element, NFTA_SET_ELEM_DATA, &value.0),
                None => {}
            }
            if let Some(timeout) = self.timeout {
                element.put_be64(NFTA_SET_ELEM_TIMEOUT, milliseconds(timeout));
            }
            if let Some(comment) = &self.comment {
                element.put(NFTA_SET_ELEM_USERDATA, &user_data(0, comment));
            }
        });
        // A range up to the highest key has no end.
        if let Some(end) = last.filter(|_| single_range).and_then(successor) {
            list.nest(LIST_ELEM, |element| {
                put_value(element, NFTA_SET_ELEM_KEY, &end);
                element.put_be32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            });
        }
        Ok(())
    }
}

/// The key after this one, read as one number in network order; `None`: it is the highest.
fn successor(key: &Value) -> Option<Vec<u8>> {
    let mut bytes = key.0.clone();
    for byte in bytes.iter_mut().rev() {
        let (next, carry) = byte.overflowing_add(1);
        *byte = next;
        if !carry {
            return Some(bytes);
        }
    }
    None
}

/// `NFTA_SET_TABLE` and `NFTA_SET_NAME`; `NFTA_SET_ELEM_LIST_*` have the same numbers.
pub(super) fn put_name(message: &mut Message, set: &Set) {
    message.put_text(1, &set.table.name).put_text(2, &set.name);
}

/// Bytes of values of these types, joined.
pub(super) fn width(types: &[Type]) -> usize {
    match types {
        [one] => one.len(),
        several => several.iter().map(|part| part.room()).sum(),
    }
}

/// nft(8)'s number for joined types: 6 bits each.
fn type_number(types: &[Type]) -> u32 {
    types.iter().fold(0, |joined, part| joined << 6 | part.number())
}

fn number(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The form in which nft(8) keeps comments (`libnftnl/udata.h`): kind, length, text, zero.
pub(super) fn user_data(kind: u8, text: &str) -> Vec<u8> {
    /// Longest text that nft(8) takes, bytes.
    const MAX: usize = 127;
    let cut = (0..=text.len().min(MAX)).rev().find(|at| text.is_char_boundary(*at));
    let text = text.get(..cut.unwrap_or(0)).unwrap_or_default();
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [kind, len].into_iter().chain(text.bytes()).chain([0]).collect()
}

/// The text of that kind.
pub(super) fn read_user_data(mut bytes: &[u8], wanted: u8) -> Option<String> {
    while let [kind, len, rest @ ..] = bytes {
        let (value, next) = rest.split_at_checked(usize::from(*len))?;
        if *kind == wanted {
            return Some(crate::attribute::Value(value).text());
        }
        bytes = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_after_a_key() {
        assert_eq!(successor(&Value::port(80)), Some(vec![0, 81]));
        assert_eq!(successor(&Value::port(0x00ff)), Some(vec![1, 0]));
        assert_eq!(successor(&Value::port(u16::MAX)), None);
    }

    #[test]
    fn elements_that_do_not_fit_are_refused() {
        let table = Table::inet("t");
        let ports = Set::new(&table, "ports", [Type::Port]);
        let put = |set: &Set, element: Element| element.put(&mut Message::new(0, 0), set);
        assert!(put(&ports, Element::new(Value::port(80))).is_ok());
        assert!(put(&ports, Element::new(Value::byte(80))).is_err());
        assert!(put(&ports, Element::new(Value::port(80)).up_to(Value::port(90))).is_err());
        assert!(put(&ports, Element::new(Value::port(80)).to(Verdict::Drop)).is_err());
        let map = Set::map(&table, "map", [Type::Protocol, Type::Port], [Type::Ipv4, Type::Port]);
        let key = Value::concat([Value::byte(6), Value::port(80)]);
        assert_eq!(key.as_bytes(), [6, 0, 0, 0, 0, 80, 0, 0]);
        let to = Value::concat([[10, 0, 0, 1].into_value(), Value::port(8080)]);
        assert!(put(&map, Element::new(key.clone()).to(to)).is_ok());
        assert!(put(&map, Element::new(key.clone()).to(Value::port(1))).is_err());
        assert!(put(&map, Element::new(key)).is_err());
    }

    trait IntoValue {
        fn into_value(self) -> Value;
    }

    impl IntoValue for [u8; 4] {
        fn into_value(self) -> Value {
            std::net::Ipv4Addr::from(self).into()
        }
    }

    #[test]
    fn comments_are_kept_as_nft_keeps_them() {
        assert_eq!(user_data(0, "ab"), [0, 3, b'a', b'b', 0]);
        assert_eq!(read_user_data(&user_data(0, "ab"), 0), Some("ab".into()));
        assert_eq!(read_user_data(&[9, 1, 0, 0, 3, b'a', b'b', 0], 0), Some("ab".into()));
        assert_eq!(read_user_data(&[0, 9, 1], 0), None, "its length lies");
        assert_eq!(user_data(0, &"ä".repeat(100)).len(), 2 + 126 + 1, "cut between letters");
    }
}
