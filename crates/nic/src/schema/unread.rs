//! What a file says beside what is read of it.

use serde_json::Value;

use super::read::family_key;

/// Other names of fields that are written with their own.
const ALIASES: [&str; 2] = ["host_limit", "netiface_index"];

/// Fields that are not known here, and where they were.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Unread(Vec<(Vec<Step>, Value)>);

/// One step from an object or array to what is in it.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Item(usize),
}

impl Unread {
    /// What `found` has and `written` has not.
    pub(super) fn between(found: &Value, written: &Value) -> Self {
        let mut unread = Self::default();
        unread.collect(found, written, &mut Vec::new());
        unread
    }

    fn collect(&mut self, found: &Value, written: &Value, path: &mut Vec<Step>) {
        match (found, written) {
            (Value::Object(found), Value::Object(written)) => {
                for (key, value) in found.iter().filter(|(key, _)| !ALIASES.contains(&key.as_str()))
                {
                    // Keys of families have other numbers on other systems.
                    let known = written
                        .get_key_value(key)
                        .or_else(|| written.get_key_value(family_key(key)?));
                    let name = known.map_or(key, |(key, _)| key);
                    path.push(Step::Field(name.clone()));
                    match known {
                        Some((_, known)) => self.collect(value, known, path),
                        None => self.0.push((path.clone(), value.clone())),
                    }
                    path.pop();
                }
            }
            (Value::Array(found), Value::Array(written)) if found.len() == written.len() => {
                for (number, (value, known)) in found.iter().zip(written).enumerate() {
                    path.push(Step::Item(number));
                    self.collect(value, known, path);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    /// Puts them back where they were, if that is still there and has no such field of its own.
    pub(super) fn put(&self, into: &mut Value) {
        for (path, value) in &self.0 {
            let Some((Step::Field(name), parents)) = path.split_last() else { continue };
            let parent = parents.iter().try_fold(&mut *into, |value, step| match step {
                Step::Field(name) => value.get_mut(name),
                Step::Item(number) => value.get_mut(number),
            });
            if let Some(Value::Object(fields)) = parent {
                fields.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
    }
}
