//! Reading TOML tables so that every mistake is found, each with its line and key.
//!
//! Nothing here stops at the first mistake: what cannot be read is reported to the [`Report`] and
//! reads as absent, and the caller goes on with a default.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::nearest::nearest;
use crate::error::Problem;

/// Where something stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Byte offset.
    offset: usize,
    /// The key from the top of the file.
    pub(super) key: String,
}

/// The mistakes found so far.
#[derive(Debug)]
pub(super) struct Report<'f> {
    file: &'f Path,
    text: &'f str,
    problems: Vec<Problem>,
}

impl<'f> Report<'f> {
    pub(super) fn new(file: &'f Path, text: &'f str) -> Self {
        Self { file, text, problems: Vec::new() }
    }

    /// Something wrong at a place.
    pub(super) fn add(&mut self, place: &Place, message: impl Into<String>) {
        self.push(self.line(place.offset), place.key.clone(), message.into());
    }

    /// Something wrong with the file as a whole.
    pub(super) fn add_whole(&mut self, message: impl Into<String>) {
        self.push(0, String::new(), message.into());
    }

    /// Text that is not TOML.
    pub(super) fn add_syntax(&mut self, error: &toml::de::Error) {
        let line = error.span().map_or(0, |span| self.line(span.start));
        self.push(line, String::new(), error.message().to_owned());
    }

    /// Every mistake in the order of the file.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| problem.line);
        self.problems
    }

    fn push(&mut self, line: usize, key: String, message: String) {
        let file = PathBuf::from(self.file);
        self.problems.push(Problem { file, line, key, message });
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        before.filter(|byte| **byte == b'\n').count() + 1
    }
}

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// One table of the file.
pub(super) struct Section<'t> {
    pub(super) place: Place,
    table: &'t DeTable<'t>,
}

/// One value of the file.
pub(super) struct Field<'t> {
    pub(super) place: Place,
    value: &'t DeValue<'t>,
}

impl<'t> Section<'t> {
    /// The whole file.
    pub(super) fn top(table: &'t DeTable<'t>) -> Self {
        Self { place: Place { offset: 0, key: String::new() }, table }
    }

    /// The same table with its keys held against those that it may have.
    pub(super) fn only(self, known: &[&'static str], report: &mut Report<'_>) -> Self {
        for (name, field) in self.fields() {
            if !known.contains(&name) {
                report.add(&field.place, unknown("unknown key", name, known.iter().copied()));
            }
        }
        self
    }

    /// The field of that name, if the file has it.
    pub(super) fn field(&self, name: &str) -> Option<Field<'t>> {
        let (key, value) = self.table.iter().find(|(key, _)| key.get_ref() == name)?;
        Some(self.locate(name, key.span(), value.get_ref()))
    }

    /// Every field with its name, in the order of the file.
    pub(super) fn fields(&self) -> Vec<(&'t str, Field<'t>)> {
        let mut fields: Vec<_> = self
            .table
            .iter()
            .map(|(key, value)| {
                let name: &'t str = key.get_ref();
                (name, self.locate(name, key.span(), value.get_ref()))
            })
            .collect();
        fields.sort_by_key(|(_, field)| field.place.offset);
        fields
    }

    /// The tables below `[name.*]` with their names, in the order of the file.
    pub(super) fn tables(
        &self,
        name: &str,
        report: &mut Report<'_>,
    ) -> Vec<(&'t str, Section<'t>)> {
        let Some(section) = self.field(name).and_then(|field| field.table(report)) else {
            return Vec::new();
        };
        let fields = section.fields().into_iter();
        fields.filter_map(|(name, field)| Some((name, field.table(report)?))).collect()
    }

    /// A string.
    pub(super) fn string(&self, name: &str, report: &mut Report<'_>) -> Option<Located<&'t str>> {
        self.field(name)?.string("a string", report)
    }

    /// A string that reads as a `T`; `expected` says how it should look.
    pub(super) fn parsed<T: FromStr>(
        &self,
        name: &str,
        expected: &str,
        report: &mut Report<'_>,
    ) -> Option<Located<T>> {
        self.field(name)?.parsed(expected, report)
    }

    /// A list of strings; absent reads as empty.
    pub(super) fn strings(&self, name: &str, report: &mut Report<'_>) -> Vec<Located<&'t str>> {
        const EXPECTED: &str = "a list of strings";
        let Some(field) = self.field(name) else { return Vec::new() };
        let Some(items) = field.items(EXPECTED, report) else { return Vec::new() };
        items.iter().filter_map(|item| item.string("a string", report)).collect()
    }

    /// A whole number within a range.
    pub(super) fn number<T>(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<T>,
        report: &mut Report<'_>,
    ) -> Option<Located<T>>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        self.field(name)?.number(range, report)
    }

    /// One of several words.
    pub(super) fn choice<T: Clone>(
        &self,
        name: &str,
        known: &[(&'static str, T)],
        report: &mut Report<'_>,
    ) -> Option<T> {
        let word = self.string(name, report)?;
        if let Some((_, value)) = known.iter().find(|(known, _)| *known == word.value) {
            return Some(value.clone());
        }
        let words = || known.iter().map(|(known, _)| *known);
        let meant = nearest(word.value, words())
            .map(|known| format!("; did you mean {known:?}?"))
            .unwrap_or_default();
        let expected = either(words());
        report.add(&word.place, format!("expected {expected}, found {:?}{meant}", word.value));
        None
    }

    fn locate(&self, name: &str, span: Range<usize>, value: &'t DeValue<'t>) -> Field<'t> {
        let key = match self.place.key.as_str() {
            "" => name.to_owned(),
            above => format!("{above}.{name}"),
        };
        Field { place: Place { offset: span.start, key }, value }
    }
}

impl<'t> Field<'t> {
    pub(super) fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    pub(super) fn is_string(&self) -> bool {
        matches!(self.value, DeValue::String(_))
    }

    pub(super) fn is_boolean(&self) -> bool {
        matches!(self.value, DeValue::Boolean(_))
    }

    pub(super) fn is_integer(&self) -> bool {
        matches!(self.value, DeValue::Integer(_))
    }

    /// Reports that the value is not what was expected.
    pub(super) fn wrong<T>(&self, expected: &str, report: &mut Report<'_>) -> Option<T> {
        let found = match self.value {
            DeValue::String(text) => format!("the string {text:?}"),
            DeValue::Integer(number) => format!("the number {number}"),
            DeValue::Float(number) => format!("the number {number}"),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Datetime(_) => "a date or time".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        };
        report.add(&self.place, format!("expected {expected}, found {found}"));
        None
    }

    pub(super) fn table(&self, report: &mut Report<'_>) -> Option<Section<'t>> {
        match self.value {
            DeValue::Table(table) => Some(Section { place: self.place.clone(), table }),
            _ => self.wrong("a table", report),
        }
    }

    pub(super) fn string(
        &self,
        expected: &str,
        report: &mut Report<'_>,
    ) -> Option<Located<&'t str>> {
        match self.value {
            DeValue::String(text) => Some(Located { value: text, place: self.place.clone() }),
            _ => self.wrong(expected, report),
        }
    }

    pub(super) fn parsed<T: FromStr>(
        &self,
        expected: &str,
        report: &mut Report<'_>,
    ) -> Option<Located<T>> {
        let text = self.string(expected, report)?;
        match text.value.parse() {
            Ok(value) => Some(Located { value, place: text.place }),
            Err(_) => self.wrong(expected, report),
        }
    }

    pub(super) fn boolean(&self, report: &mut Report<'_>) -> Option<bool> {
        match self.value {
            DeValue::Boolean(value) => Some(*value),
            _ => self.wrong("true or false", report),
        }
    }

    pub(super) fn number<T>(
        &self,
        range: std::ops::RangeInclusive<T>,
        report: &mut Report<'_>,
    ) -> Option<Located<T>>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let value = match self.value {
            DeValue::Integer(number) => {
                let number = i64::from_str_radix(number.as_str(), number.radix()).ok();
                number.and_then(|number| T::try_from(number).ok())
            }
            _ => None,
        };
        match value {
            Some(value) if range.contains(&value) => {
                Some(Located { value, place: self.place.clone() })
            }
            _ => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                self.wrong(&expected, report)
            }
        }
    }

    /// A number with or without a fraction.
    pub(super) fn fraction(&self, expected: &str, report: &mut Report<'_>) -> Option<f64> {
        let parsed = match self.value {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            DeValue::Float(number) => number.as_str().parse().ok(),
            _ => None,
        };
        parsed.or_else(|| self.wrong(expected, report))
    }

    /// The items of a list.
    pub(super) fn items(&self, expected: &str, report: &mut Report<'_>) -> Option<Vec<Self>> {
        let DeValue::Array(items) = self.value else { return self.wrong(expected, report) };
        let field = |item: &'t Spanned<DeValue<'t>>| Self {
            place: Place { offset: item.span().start, key: self.place.key.clone() },
            value: item.get_ref(),
        };
        Some(items.iter().map(field).collect())
    }
}

/// `WHAT; did you mean NEAREST?`, or the list of everything known.
pub(super) fn unknown<'c>(
    what: &str,
    word: &str,
    known: impl IntoIterator<Item = &'c str> + Clone,
) -> String {
    match nearest(word, known.clone()) {
        Some(meant) => format!("{what}; did you mean `{meant}`?"),
        None => {
            let known: Vec<_> = known.into_iter().collect();
            format!("{what}; known are {}", known.join(", "))
        }
    }
}

/// `"a", "b" or "c"`.
fn either(words: impl IntoIterator<Item = &'static str>) -> String {
    let mut words: Vec<String> = words.into_iter().map(|word| format!("{word:?}")).collect();
    let last = words.pop().unwrap_or_default();
    if words.is_empty() { last } else { format!("{} or {last}", words.join(", ")) }
}

/// Names that are used, each with the place of its first use.
#[derive(Debug, Default)]
pub(super) struct Uses<K> {
    first: BTreeMap<K, Place>,
}

impl<K: Ord> Uses<K> {
    pub(super) fn new() -> Self {
        Self { first: BTreeMap::new() }
    }

    /// Notes a use; returns the earlier one of the same name.
    pub(super) fn note(&mut self, name: K, place: &Place) -> Option<&Place> {
        match self.first.entry(name) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(place.clone());
                None
            }
            std::collections::btree_map::Entry::Occupied(entry) => Some(entry.into_mut()),
        }
    }
}
