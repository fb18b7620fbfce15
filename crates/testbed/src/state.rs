//! The whole state of a network namespace, for comparison before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process::{peer, run};
use serde_json::Value;

/// Everything that the kernel says of this namespace's network: one line for each thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State(BTreeSet<String>);

impl State {
    /// Looks with `ip`, `bridge`, `nft` and into `/proc/sys/net`.
    pub fn take() -> Self {
        let mut things = BTreeSet::new();
        let views: [&[&str]; 7] = [
            &["link"],
            &["address"],
            &["route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
            &["rule"],
            &["-6", "rule"],
            &["neighbor", "show", "nud", "permanent"],
        ];
        for view in views {
            let text = run(Command::new(peer("ip")).args(["-j", "-d"]).args(view));
            let found: Value =
                if text.trim().is_empty() { Value::Null } else { text.parse().unwrap() };
            for item in found.as_array().into_iter().flatten() {
                things.insert(format!("{view:?} {}", steady(item.clone())));
            }
        }
        let rules = run(Command::new(peer("nft")).args(["list", "ruleset"]));
        things.extend(rules.lines().map(|line| format!("nft {line}")));
        settings(Path::new("/proc/sys/net"), &mut things);
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            things.insert(format!("namespace {}", entry.file_name().display()));
        }
        Self(things)
    }

    /// Fails with what came (`+`) and went (`-`).
    pub fn assert_restored(&self, when: &str) {
        let now = Self::take();
        let came = now.0.difference(&self.0).map(|thing| format!("+ {thing}\n"));
        let went = self.0.difference(&now.0).map(|thing| format!("- {thing}\n"));
        let difference: String = came.chain(went).collect();
        assert!(difference.is_empty(), "{when}:\n{difference}");
    }
}

/// Without what changes by itself: clocks and duplicate address detection on its way.
fn steady(mut item: Value) -> Value {
    const MOVING: [&str; 5] =
        ["expires", "tentative", "valid_life_time", "preferred_life_time", "used"];
    fn clean(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| {
                    !MOVING.contains(&name.as_str()) && !name.ends_with("_timer")
                });
                fields.values_mut().for_each(clean);
            }
            Value::Array(items) => items.iter_mut().for_each(clean),
            _ => {}
        }
    }
    clean(&mut item);
    item
}

/// Every setting that can be read, but for counters and for what the kernel makes up.
fn settings(folder: &Path, things: &mut BTreeSet<String>) {
    const MOVING: [&str; 3] = ["nf_conntrack_count", "stable_secret", "nf_conntrack_expect_count"];
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            settings(&path, things);
        } else if !MOVING.iter().any(|moving| path.ends_with(moving))
            && let Ok(value) = fs::read_to_string(&path)
        {
            things.insert(format!("{} = {}", path.display(), value.trim()));
        }
    }
}
