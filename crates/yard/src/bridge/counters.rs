//! What rules count, by the names that user mode has for it.
//!
//! A rule that counts says so in its comment: what it is about, the name, and what that means. What a
//! packet did that was dropped is one thing, which rule of the policy decided about a new connection
//! another.

use std::collections::BTreeMap;

use netyard_engine::plumbing::Refusals;
use netyard_engine::policy::meaning;
use netyard_link::Result;
use netyard_link::nft::{Nftables, Rule, Table};

const DROPPED: &str = "dropped ";
const JUDGED: &str = "policy ";

/// The rule, with what it drops counted by this reason.
pub(super) fn dropped(rule: Rule, reason: &str) -> Rule {
    rule.comment(&format!("{DROPPED}{reason}: {}", meaning(reason))).counter().drop()
}

/// The rule, with what it decides counted by the name of the policy's rule.
pub(super) fn judged(rule: Rule, name: &str) -> Rule {
    rule.comment(&format!("{JUDGED}{name}: {}", meaning(name))).counter()
}

/// What the rules of these tables have counted; those that have counted nothing are left out.
pub(super) fn read<'a>(
    tables: impl IntoIterator<Item = &'a Table>,
    kernel: &mut Nftables,
) -> Result<Refusals> {
    let mut refusals = Refusals::default();
    for table in tables {
        for rule in kernel.all_rules(table)? {
            let (Some(comment), Some(counter)) = (rule.comment, rule.counter) else { continue };
            if counter.packets == 0 {
                continue;
            }
            let add = |counts: &mut BTreeMap<String, u64>, text: &str| {
                let name = text.split(':').next().unwrap_or(text);
                *counts.entry(name.to_owned()).or_default() += counter.packets;
            };
            if let Some(reason) = comment.strip_prefix(DROPPED) {
                add(&mut refusals.drops, reason);
            } else if let Some(name) = comment.strip_prefix(JUDGED) {
                add(&mut refusals.policy, name);
            }
        }
    }
    Ok(refusals)
}
