//! The ruleset as the kernel has it.

use std::time::Duration;

use super::set::{read_user_data, width};
use super::{Chain, Datum, Family, Nftables, SUBSYSTEM, Set, Table, Type, Value, Verdict, message};
use crate::attribute::{Answer, Attributes};
use crate::error::Result;

// enum nf_tables_msg_types
const GETTABLE: u8 = 1;
const GETCHAIN: u8 = 4;
const GETRULE: u8 = 7;
const GETSET: u8 = 10;
const GETSETELEM: u8 = 13;

/// `NFTA_LIST_ELEM`.
const LIST_ELEM: u16 = 1;

/// A table that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableState {
    /// Family and name.
    pub table: Table,
    /// The text beside it.
    pub comment: Option<String>,
    /// The socket that owns it, see [`Nftables::port`].
    pub owner: Option<u32>,
    /// It stays when its owner goes.
    pub persistent: bool,
    /// How many chains, sets and objects it has.
    pub used: u32,
}

/// A chain that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainState {
    /// The table's name.
    pub table: String,
    /// Its family.
    pub family: Family,
    /// Its own name.
    pub name: String,
    /// For a base chain: hook number, priority, type.
    pub base: Option<(u32, i32, String)>,
    /// For a base chain: true if it drops what its rules say nothing about.
    pub drops: bool,
    /// How many rules it has, and references to it.
    pub used: u32,
}

impl ChainState {
    /// The hook that a base chain is at (`NF_INET_*`), and whether it translates addresses.
    pub(super) fn hook(&self) -> Option<(u32, bool)> {
        self.base.as_ref().map(|(hook, _, kind)| (*hook, kind == "nat"))
    }
}

/// What a counter has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A rule that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleState {
    /// The chain's name.
    pub chain: String,
    /// Its number in its chain, for [`super::Batch::replace_rule`].
    pub handle: u64,
    /// The text beside it.
    pub comment: Option<String>,
    /// Its first counter.
    pub counter: Option<Counter>,
    /// The names of its expressions, in their order.
    pub expressions: Vec<String>,
}

/// A set or map that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetState {
    /// The table's name.
    pub table: String,
    /// Its family.
    pub family: Family,
    /// Its own name.
    pub name: String,
    /// Length of a key, bytes.
    pub key_len: u32,
    /// It is a map.
    pub is_map: bool,
    /// Its keys may be ranges.
    pub ranges: bool,
}

/// An element that is there. Ranges of single keys are two elements; see `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementState {
    /// Its key.
    pub key: Value,
    /// The last key of a range of joined keys, included.
    pub last: Option<Value>,
    /// Its key is the first one behind a range.
    pub end: bool,
    /// What it leads to.
    pub data: Option<Datum>,
    /// What it has counted, in a set whose elements do.
    pub counter: Option<Counter>,
    /// After what time it expires.
    pub timeout: Option<Duration>,
    /// How much of that is left.
    pub expires: Option<Duration>,
    /// The text beside it.
    pub comment: Option<String>,
}

impl Nftables {
    /// Every table of every family.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn tables(&mut self) -> Result<Vec<TableState>> {
        self.connection.dump(
            &message(GETTABLE, 0, 0),
            || "list the tables".into(),
            TableState::read,
        )
    }

    /// This table, if it is there.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn table(&mut self, table: &Table) -> Result<Option<TableState>> {
        let mut request = message(GETTABLE, table.family.number(), 0);
        request.put_text(1, &table.name);
        let operation = || format!("look at the table {table}");
        match self.connection.get(request, operation, TableState::read) {
            Err(error) if error.is_gone() => Ok(None),
            found => found,
        }
    }

    /// The chains of a table.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<ChainState>> {
        let found = self.all_chains()?;
        let ours = |chain: &ChainState| chain.table == table.name && chain.family == table.family;
        Ok(found.into_iter().filter(ours).collect())
    }

    /// The chains of every table: base chains of others may drop what ours let pass.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn all_chains(&mut self) -> Result<Vec<ChainState>> {
        let request = message(GETCHAIN, 0, 0);
        self.connection.dump(&request, || "list the chains".into(), ChainState::read)
    }

    /// The rules of a chain, in their order.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn rules(&mut self, chain: &Chain) -> Result<Vec<RuleState>> {
        let mut request = message(GETRULE, chain.table.family.number(), 0);
        request.put_text(1, &chain.table.name).put_text(2, &chain.name);
        let operation = || format!("list the rules of {} of {}", chain.name, chain.table);
        self.connection.dump(&request, operation, |answer| {
            RuleState::read(answer).filter(|rule| rule.chain == chain.name)
        })
    }

    /// The rules of every chain of a table.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn all_rules(&mut self, table: &Table) -> Result<Vec<RuleState>> {
        let mut request = message(GETRULE, table.family.number(), 0);
        request.put_text(1, &table.name);
        self.connection.dump(&request, || format!("list the rules of {table}"), RuleState::read)
    }

    /// The sets and maps of a table.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn sets(&mut self, table: &Table) -> Result<Vec<SetState>> {
        let mut request = message(GETSET, table.family.number(), 0);
        request.put_text(1, &table.name);
        self.connection.dump(&request, || format!("list the sets of {table}"), SetState::read)
    }

    /// The elements of a set.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn elements(&mut self, set: &Set) -> Result<Vec<ElementState>> {
        let mut request = message(GETSETELEM, set.table.family.number(), 0);
        super::set::put_name(&mut request, set);
        let operation = || format!("list the elements of {} of {}", set.name, set.table);
        let found = self.connection.dump(&request, operation, |answer| {
            const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
            let (_, attributes) = answer.split::<4>()?;
            let list = attributes.find(NFTA_SET_ELEM_LIST_ELEMENTS)?.nested();
            let elements = list.filter(|(kind, _)| *kind == LIST_ELEM);
            Some(elements.filter_map(|(_, one)| ElementState::read(one.nested())).collect())
        })?;
        Ok(found.into_iter().flat_map(|part: Vec<_>| part).collect())
    }

    /// What a rule with this comment has counted.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn counter(&mut self, chain: &Chain, comment: &str) -> Result<Option<Counter>> {
        let rules = self.rules(chain)?;
        let named = rules.into_iter().find(|rule| rule.comment.as_deref() == Some(comment));
        Ok(named.and_then(|rule| rule.counter))
    }
}

/// `struct nfgenmsg` and the attributes behind it, of a message about nf_tables.
pub(super) fn split<'a>(answer: &Answer<'a>) -> Option<(Option<Family>, Attributes<'a>)> {
    let ([family, ..], attributes) = answer.split::<4>()?;
    (answer.kind >> 8 == SUBSYSTEM).then(|| (Family::from_number(family), attributes))
}

impl TableState {
    pub(super) fn read(answer: &Answer<'_>) -> Option<Self> {
        const PERSISTENT: u32 = 0x4;
        let (family, attributes) = split(answer)?;
        // A notice that it went has only its name.
        let flags = attributes.find(2).and_then(|flags| flags.be32()).unwrap_or(0);
        let owner = attributes.find(7).and_then(|value| value.be32());
        let comment = attributes.find(6).and_then(|data| read_user_data(data.0, 0));
        let table = Table {
            family: family?,
            name: attributes.find(1)?.text(),
            comment: comment.clone(),
            owned: owner.is_some(),
        };
        Some(Self {
            table,
            comment,
            owner,
            persistent: flags & PERSISTENT != 0,
            used: attributes.find(3).and_then(|value| value.be32()).unwrap_or(0),
        })
    }
}

impl ChainState {
    fn read(answer: &Answer<'_>) -> Option<Self> {
        const NFTA_HOOK_HOOKNUM: u16 = 1;
        const NFTA_HOOK_PRIORITY: u16 = 2;
        let (family, attributes) = split(answer)?;
        let base = attributes.find(4).and_then(|hook| {
            let hook = hook.nested();
            let number = hook.find(NFTA_HOOK_HOOKNUM)?.be32()?;
            let priority = hook.find(NFTA_HOOK_PRIORITY)?.be32()?.cast_signed();
            Some((number, priority, attributes.find(7)?.text()))
        });
        Some(Self {
            table: attributes.find(1)?.text(),
            family: family?,
            name: attributes.find(3)?.text(),
            drops: attributes.find(5).and_then(|value| value.be32()) == Some(0),
            used: attributes.find(6).and_then(|value| value.be32()).unwrap_or(0),
            base,
        })
    }
}

impl RuleState {
    fn read(answer: &Answer<'_>) -> Option<Self> {
        let (_, attributes) = split(answer)?;
        let list = attributes.find(4).map(|list| list.nested()).into_iter().flatten();
        let mut counter = None;
        let mut expressions = Vec::new();
        for (_, expression) in list.filter(|(kind, _)| *kind == LIST_ELEM) {
            let parts = expression.nested();
            expressions.push(parts.find(1)?.text());
            counter = counter.or_else(|| Counter::read(parts));
        }
        Some(Self {
            chain: attributes.find(2)?.text(),
            handle: attributes.find(3)?.be64()?,
            comment: attributes.find(7).and_then(|data| read_user_data(data.0, 0)),
            counter,
            expressions,
        })
    }
}

impl Counter {
    /// The parts of an expression, if it is a counter.
    fn read(parts: Attributes<'_>) -> Option<Self> {
        if parts.find(1)?.text() != "counter" {
            return None;
        }
        let data = parts.find(2)?.nested();
        let number = |kind| data.find(kind).and_then(|value| value.be64()).unwrap_or(0);
        Some(Self { bytes: number(1), packets: number(2) })
    }
}

impl SetState {
    fn read(answer: &Answer<'_>) -> Option<Self> {
        const NFT_SET_INTERVAL: u32 = 0x4;
        const NFT_SET_MAP: u32 = 0x8;
        let (family, attributes) = split(answer)?;
        let flags = attributes.find(3).and_then(|value| value.be32()).unwrap_or(0);
        Some(Self {
            table: attributes.find(1)?.text(),
            family: family?,
            name: attributes.find(2)?.text(),
            key_len: attributes.find(5)?.be32()?,
            is_map: flags & NFT_SET_MAP != 0,
            ranges: flags & NFT_SET_INTERVAL != 0,
        })
    }
}

impl ElementState {
    fn read(parts: Attributes<'_>) -> Option<Self> {
        /// `NFT_SET_ELEM_INTERVAL_END`.
        const END: u32 = 1;
        let time =
            |kind| parts.find(kind).and_then(|value| value.be64()).map(Duration::from_millis);
        let flags = parts.find(3).and_then(|value| value.be32()).unwrap_or(0);
        let value = |data: Attributes<'_>| data.find(1).map(|value| Value::bytes(value.0));
        Some(Self {
            key: value(parts.find(1)?.nested())?,
            last: parts.find(10).and_then(|last| value(last.nested())),
            end: flags & END != 0,
            data: parts.find(2).and_then(|data| {
                let data = data.nested();
                if let Some(verdict) = data.find(2) {
                    let verdict = verdict.nested();
                    let code = verdict.find(1)?.be32()?.cast_signed();
                    let chain = verdict.find(2).map(|chain| chain.text());
                    return Verdict::read(code, chain).map(Datum::Verdict);
                }
                value(data).map(Datum::Value)
            }),
            counter: parts.find(7).and_then(|expression| Counter::read(expression.nested())),
            timeout: time(4),
            expires: time(5),
            comment: parts.find(6).and_then(|data| read_user_data(data.0, 0)),
        })
    }
}

impl Value {
    /// The parts of joined values, if they are of these types.
    #[must_use]
    pub fn split(&self, types: &[Type]) -> Option<Vec<Self>> {
        if self.0.len() != width(types) {
            return None;
        }
        let mut rest = self.0.as_slice();
        types
            .iter()
            .map(|part| {
                let value = rest.get(..part.len())?;
                rest = rest.get(part.room()..).unwrap_or_default();
                Some(Self::bytes(value))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_values_are_taken_apart() {
        let types = [Type::Protocol, Type::Port];
        let parts = [Value::byte(6), Value::port(80)];
        assert_eq!(Value::concat(parts.clone()).split(&types).unwrap(), parts);
        assert_eq!(Value::port(80).split(&[Type::Port]).unwrap(), [Value::port(80)]);
        assert!(Value::port(80).split(&types).is_none());
    }
}
