//! Transactions: what is to be changed, all or nothing.

use super::set::put_name;
use super::{Chain, Element, Policy, Rule, SUBSYSTEM, Set, Table, message, set};
use crate::attribute::{ACK, APPEND, CREATE, EXCLUSIVE, Message};
use crate::error::{Error, Result};

// enum nf_tables_msg_types
const NEWTABLE: u8 = 0;
const DELTABLE: u8 = 2;
const NEWCHAIN: u8 = 3;
const DELCHAIN: u8 = 5;
const NEWRULE: u8 = 6;
const DELRULE: u8 = 8;
const NEWSET: u8 = 9;
const DELSET: u8 = 11;
const NEWSETELEM: u8 = 12;
const DELSETELEM: u8 = 14;

const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

/// Most bytes of elements in one message: the length of an attribute has 16 bits.
const ELEMENTS: usize = 60_000;

/// A transaction in the making. Everything is done in the order in which it was added.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    steps: Vec<Step>,
    sets: u32,
    fault: Option<String>,
}

#[derive(Debug, Clone)]
struct Step {
    message: Message,
    what: String,
}

/// A batch as it goes to the kernel.
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    first: u32,
    /// The number of the last message, which is acknowledged.
    pub(super) last: u32,
}

impl Encoded {
    /// What the message with this number does.
    pub(super) fn operation(&self, batch: &Batch, number: u32) -> String {
        let index = usize::try_from(number.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        batch.steps.get(index).map_or_else(|| batch.describe(), |step| step.what.clone())
    }
}

impl Batch {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// True if there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How many messages it is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Adds everything that another batch does.
    pub fn append(&mut self, other: &Self) -> &mut Self {
        // Sets are told apart by number within a transaction.
        self.sets += other.sets;
        self.steps.extend(other.steps.iter().cloned());
        if let Some(fault) = &other.fault {
            self.fault.get_or_insert_with(|| fault.clone());
        }
        self
    }

    /// Makes a table; one that is there is an error.
    pub fn create_table(&mut self, table: &Table) -> &mut Self {
        self.table(table, CREATE | EXCLUSIVE)
    }

    /// Makes a table, or leaves the one that is there; an orphan of ours is adopted.
    pub fn add_table(&mut self, table: &Table) -> &mut Self {
        self.table(table, CREATE)
    }

    fn table(&mut self, table: &Table, flags: u16) -> &mut Self {
        const NFTA_TABLE_NAME: u16 = 1;
        const NFTA_TABLE_FLAGS: u16 = 2;
        const NFTA_TABLE_USERDATA: u16 = 6;
        /// `NFT_TABLE_F_OWNER` and `NFT_TABLE_F_PERSIST`: never the one without the other.
        const OWNED: u32 = 0x2 | 0x4;
        let mut message = message(NEWTABLE, table.family.number(), flags);
        message.put_text(NFTA_TABLE_NAME, &table.name);
        message.put_be32(NFTA_TABLE_FLAGS, if table.owned { OWNED } else { 0 });
        if let Some(comment) = &table.comment {
            message.put(NFTA_TABLE_USERDATA, &set::user_data(0, comment));
        }
        self.step(message, format!("make the table {table}"))
    }

    /// Removes a table with everything in it.
    pub fn remove_table(&mut self, table: &Table) -> &mut Self {
        let mut message = message(DELTABLE, table.family.number(), 0);
        message.put_text(1, &table.name);
        self.step(message, format!("remove the table {table}"))
    }

    /// Makes a chain, or leaves the one that is there.
    pub fn add_chain(&mut self, chain: &Chain) -> &mut Self {
        const NFTA_CHAIN_HOOK: u16 = 4;
        const NFTA_CHAIN_POLICY: u16 = 5;
        const NFTA_CHAIN_TYPE: u16 = 7;
        const NFTA_HOOK_HOOKNUM: u16 = 1;
        const NFTA_HOOK_PRIORITY: u16 = 2;
        let mut message = chain_message(NEWCHAIN, chain, CREATE);
        if let Some(base) = &chain.base {
            let (hook, kind) = base.hook.parts();
            message.nest(NFTA_CHAIN_HOOK, |inside| {
                inside.put_be32(NFTA_HOOK_HOOKNUM, hook);
                inside.put(NFTA_HOOK_PRIORITY, &base.priority.0.to_be_bytes());
            });
            let policy = match base.policy {
                Policy::Accept => 1,
                Policy::Drop => 0,
            };
            message.put_be32(NFTA_CHAIN_POLICY, policy).put_text(NFTA_CHAIN_TYPE, kind);
        }
        self.step(message, format!("make the chain {} of {}", chain.name, chain.table))
    }

    /// Removes a chain; its rules must be gone, and nothing may jump to it.
    pub fn remove_chain(&mut self, chain: &Chain) -> &mut Self {
        let message = chain_message(DELCHAIN, chain, 0);
        self.step(message, format!("remove the chain {} of {}", chain.name, chain.table))
    }

    /// Removes every rule of a chain.
    pub fn flush_chain(&mut self, chain: &Chain) -> &mut Self {
        let message = rule_place(DELRULE, chain, 0);
        self.step(message, format!("empty the chain {} of {}", chain.name, chain.table))
    }

    /// Adds a rule at the end of its chain.
    pub fn add_rule(&mut self, rule: &Rule) -> &mut Self {
        self.rule(rule, CREATE | APPEND, None)
    }

    /// Adds a rule at the beginning of its chain.
    pub fn insert_rule(&mut self, rule: &Rule) -> &mut Self {
        self.rule(rule, CREATE, None)
    }

    /// Puts a rule in the place of the one with this handle.
    pub fn replace_rule(&mut self, handle: u64, rule: &Rule) -> &mut Self {
        self.rule(rule, crate::attribute::REPLACE, Some(handle))
    }

    fn rule(&mut self, rule: &Rule, flags: u16, handle: Option<u64>) -> &mut Self {
        let mut message = rule_place(NEWRULE, &rule.chain, flags);
        if let Some(handle) = handle {
            message.put_be64(NFTA_RULE_HANDLE, handle);
        }
        if let Err(error) = rule.put(&mut message) {
            self.fault.get_or_insert(error.to_string());
        }
        let (chain, table) = (&rule.chain.name, &rule.chain.table);
        self.step(message, format!("add a rule to the chain {chain} of {table}"))
    }

    /// Removes the rule with this handle.
    pub fn remove_rule(&mut self, chain: &Chain, handle: u64) -> &mut Self {
        let mut message = rule_place(DELRULE, chain, 0);
        message.put_be64(NFTA_RULE_HANDLE, handle);
        self.step(message, format!("remove a rule of the chain {} of {}", chain.name, chain.table))
    }

    /// Makes a set or map, or leaves the one that is there.
    pub fn add_set(&mut self, set: &Set) -> &mut Self {
        self.sets += 1;
        let mut message = message(NEWSET, set.table.family.number(), CREATE);
        set.put(&mut message, self.sets);
        self.step(message, format!("make the set {} of {}", set.name, set.table))
    }

    /// Removes a set; no rule may use it.
    pub fn remove_set(&mut self, set: &Set) -> &mut Self {
        let mut message = message(DELSET, set.table.family.number(), 0);
        put_name(&mut message, set);
        self.step(message, format!("remove the set {} of {}", set.name, set.table))
    }

    /// Removes every element of a set.
    pub fn flush_set(&mut self, set: &Set) -> &mut Self {
        let mut message = message(DELSETELEM, set.table.family.number(), 0);
        put_name(&mut message, set);
        self.step(message, format!("empty the set {} of {}", set.name, set.table))
    }

    /// Adds elements; one that is there already is fine if it leads to the same.
    pub fn add_elements(
        &mut self,
        set: &Set,
        elements: impl IntoIterator<Item = Element>,
    ) -> &mut Self {
        self.elements(set, NEWSETELEM, CREATE, elements)
    }

    /// Removes elements; one that is not there is an error.
    pub fn remove_elements(
        &mut self,
        set: &Set,
        elements: impl IntoIterator<Item = Element>,
    ) -> &mut Self {
        self.elements(set, DELSETELEM, 0, elements)
    }

    fn elements(
        &mut self,
        set: &Set,
        kind: u8,
        flags: u16,
        elements: impl IntoIterator<Item = Element>,
    ) -> &mut Self {
        let verb = if kind == NEWSETELEM { "add elements to" } else { "remove elements of" };
        let what = format!("{verb} the set {} of {}", set.name, set.table);
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let mut message = message(kind, set.table.family.number(), flags);
            put_name(&mut message, set);
            let start = message.len();
            message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                let fits =
                    |list: &Message, next: &Element| list.len() - start + next.room() <= ELEMENTS;
                while let Some(element) = elements.next_if(|next| fits(list, next)) {
                    if let Err(error) = element.put(list, set) {
                        self.fault.get_or_insert(error.to_string());
                    }
                }
            });
            self.step(message, what.clone());
        }
        self
    }

    fn step(&mut self, message: Message, what: String) -> &mut Self {
        self.steps.push(Step { message, what });
        self
    }

    /// What it does, in a few words.
    pub(super) fn describe(&self) -> String {
        match self.steps.as_slice() {
            [] => "change nothing".into(),
            [one] => one.what.clone(),
            [first, rest @ ..] => format!("{}, and {} more changes", first.what, rest.len()),
        }
    }

    /// All of it between the messages that begin and end a transaction. With `generation` the
    /// kernel refuses it if the ruleset is another one by now.
    pub(super) fn encode(
        &self,
        generation: Option<u32>,
        mut number: impl FnMut() -> u32,
    ) -> Result<Encoded> {
        /// `NFNL_MSG_BATCH_BEGIN` and `..._END`.
        const BEGIN: u16 = 16;
        const END: u16 = 17;
        const NFNL_BATCH_GENID: u16 = 1;
        if let Some(fault) = &self.fault {
            return Err(Error::Invalid(fault.clone()));
        }
        let too_long = |what: &str| Error::Invalid(format!("cannot {what}: too long a value"));
        // struct nfgenmsg of a batch: family, version, subsystem in network order.
        let [high, low] = SUBSYSTEM.to_be_bytes();
        let edge = |kind| Message::new(kind, 0).fixed(&[0, 0, high, low]);
        let mut begin = edge(BEGIN);
        if let Some(generation) = generation {
            begin.put_be32(NFNL_BATCH_GENID, generation);
        }
        let mut bytes = begin.finish(number()).ok_or_else(|| too_long("begin"))?;
        let (mut first, mut last) = (None, 0);
        for (index, step) in self.steps.iter().enumerate() {
            let mut message = step.message.clone();
            if index + 1 == self.steps.len() {
                message.add_flags(ACK);
            }
            last = number();
            first.get_or_insert(last);
            bytes.extend(message.finish(last).ok_or_else(|| too_long(&step.what))?);
        }
        bytes.extend(edge(END).finish(number()).ok_or_else(|| too_long("end"))?);
        Ok(Encoded { bytes, first: first.unwrap_or(0), last })
    }
}

/// A message that names a chain.
fn chain_message(kind: u8, chain: &Chain, flags: u16) -> Message {
    const NFTA_CHAIN_TABLE: u16 = 1;
    const NFTA_CHAIN_NAME: u16 = 3;
    let mut message = message(kind, chain.table.family.number(), flags);
    message.put_text(NFTA_CHAIN_TABLE, &chain.table.name).put_text(NFTA_CHAIN_NAME, &chain.name);
    message
}

/// A message that names a chain whose rules it is about.
fn rule_place(kind: u8, chain: &Chain, flags: u16) -> Message {
    let mut message = message(kind, chain.table.family.number(), flags);
    message.put_text(NFTA_RULE_TABLE, &chain.table.name).put_text(NFTA_RULE_CHAIN, &chain.name);
    message
}

#[cfg(test)]
mod tests {
    use super::super::{Type, Value};
    use super::*;
    use crate::attribute::Answer;

    #[test]
    fn many_elements_are_split_into_messages_that_fit() {
        let table = Table::inet("t");
        let set = Set::new(&table, "s", [Type::Protocol, Type::Port]);
        let mut batch = Batch::new();
        let key = |port| Value::concat([Value::byte(6), Value::port(port)]);
        batch.add_elements(&set, (0..10_000).map(|port| Element::new(key(port))));
        let mut next = 0;
        let encoded = batch
            .encode(Some(7), || {
                next += 1;
                next
            })
            .unwrap();
        let messages: Vec<_> = Answer::all(&encoded.bytes).collect();
        assert_eq!(messages.len(), batch.len() + 2);
        let elements: usize = messages[1..messages.len() - 1]
            .iter()
            .map(|message| {
                let (_, attributes) = message.split::<4>().unwrap();
                attributes.find(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap().nested().count()
            })
            .sum();
        assert_eq!(elements, 10_000);
        assert!(messages.iter().all(|message| message.body.len() < 65_536));
    }

    #[test]
    fn a_rule_that_is_wrong_makes_no_batch() {
        let table = Table::inet("t");
        let chain = Chain::regular(&table, "c");
        let mut batch = Batch::new();
        batch.add_rule(&Rule::new(&chain).is(super::super::Selector::Mark, Value::byte(1)));
        assert!(matches!(batch.encode(None, || 1), Err(Error::Invalid(_))));
    }
}
