//! A routing table of our own, and the rules that lead to it.
//!
//! ```text
//! 6441: not fwmark M lookup M suppress_prefixlength 0      the network
//! 6442: not fwmark M lookup main suppress_prefixlength 0   what this machine reaches without a default route
//! 6443: not fwmark M lookup M                              everything else
//! 6444: not fwmark M unreachable                           IPv6, if the network has none
//! ```
//!
//! The last three are there only if everything goes through the hub. The main table stays as it is: who changes
//! the default route there changes the tunnel's way, and nothing else.

use std::path::Path;

use netyard_link::nft::{
    Batch, Chain, Hook, Priority, Rule as Filter, Selector, Table, Target, Value,
};
use netyard_link::plan::{Owner, Plan, Step};
use netyard_link::rtnetlink::{MAIN_TABLE, Rtnetlink, Rule, RuleAction};
use netyard_link::{Error, Result};

use super::Entry;

/// The first of the numbers for tables and marks, and how many there are. None of them has one of the bits
/// 0x4000 and 0x8000, by which Kubernetes marks packets.
const FIRST_NUMBER: u32 = 0x0644_0000;
const NUMBERS: u32 = 0x4000;

/// Of the first rule. Before what other programs have: those for their default routes come behind the main
/// table's or close to it.
const PRIORITY: u32 = 6441;

/// A number that no table has, and no rule names. The same owner gets the same one as long as it is free.
pub(super) fn free_number(owner: &Owner, kernel: &mut Rtnetlink) -> Result<u32> {
    let (rules, routes) = (kernel.rules()?, kernel.routes(None)?);
    let is_free = |number: &u32| {
        let names = |rule: &Rule| {
            rule.action == RuleAction::Table(*number)
                || rule.mark.is_some_and(|(mark, _)| mark == *number)
        };
        !rules.iter().any(names) && !routes.iter().any(|route| route.table == *number)
    };
    let begin = owner.group();
    let all = (0..NUMBERS).map(|step| FIRST_NUMBER + begin.wrapping_add(step) % NUMBERS);
    all.into_iter()
        .find(is_free)
        .ok_or_else(|| Error::Absent { what: "routing table that is free".into() })
}

/// With the rules that lead to a table behind its routes.
pub(super) fn lead(mut plan: Plan, owner: &str, number: u32, entry: &Entry<'_>) -> Result<Plan> {
    if entry.redirect {
        plan = plan
            .step(Step::Sysctl {
                namespace: None,
                key: "net/ipv4/conf/all/src_valid_mark".parse()?,
                value: "1".into(),
            })
            .step(answers(owner, number));
    }
    let families = [(false, true), (true, entry.network6.is_some())];
    for (ipv6, has_network) in families {
        let rule = |nth: u32, action| Step::Rule {
            namespace: None,
            rule: Rule {
                mark: Some((number, u32::MAX)),
                invert: true,
                action,
                ..Rule::new(PRIORITY + nth, ipv6, number)
            },
        };
        let but_default = |step: Step| match step {
            Step::Rule { namespace, rule } => {
                Step::Rule { namespace, rule: Rule { suppress: Some(0), ..rule } }
            }
            step => step,
        };
        let (ours, main) = (RuleAction::Table(number), RuleAction::Table(MAIN_TABLE));
        if has_network {
            plan = plan.step(but_default(rule(0, ours)));
        }
        // A kernel without IPv6 has nothing to lead.
        if entry.redirect && (!ipv6 || Path::new("/proc/net/if_inet6").exists()) {
            plan = plan.step(but_default(rule(1, main)));
            plan = plan.step(match has_network {
                true => rule(2, ours),
                false => rule(3, RuleAction::Unreachable),
            });
        }
    }
    Ok(plan)
}

/// Has answers of the hub carry the mark, too: where the kernel asks by which link it would answer (a strict
/// `rp_filter`), it asks with that.
fn answers(owner: &str, number: u32) -> Step {
    let table = Table::inet(&format!("netyard-{owner}"));
    let chain = |name, hook| Chain::base(&table, name, hook, Priority::MANGLE);
    let (arriving, leaving) =
        (chain("arriving", Hook::Prerouting), chain("leaving", Hook::Postrouting));
    let mark = || Value::number(number);
    let mut content = Batch::new();
    content.add_chain(&arriving).add_chain(&leaving);
    content.add_rule(
        &Filter::new(&leaving)
            .comment("what the tunnel sends marks its connection")
            .is(Selector::Mark, mark())
            .set(Target::CtMark, mark()),
    );
    content.add_rule(
        &Filter::new(&arriving)
            .comment("and its answers are marked as it is")
            .is(Selector::CtMark, mark())
            .set(Target::Mark, mark()),
    );
    Step::Table { table, content }
}
