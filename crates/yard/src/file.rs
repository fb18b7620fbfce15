//! The yard file: TOML text to a checked [`Yard`].
//!
//! Reading has two passes. The first takes every table apart and keeps the place of what it
//! finds; the second holds the parts against each other. Neither stops at a mistake: all of them
//! are reported together, each with file, line and key. (Only text that is no TOML ends it at
//! once: what follows the first mistake is guesswork.) The reference of every key is
//! docs/guide/yard-file.md.

mod checks;
mod instances;
mod kinds;
mod names;
mod nearest;
mod networks;
mod reader;
mod rules;
mod services;

pub use self::instances::{MAX_DELAY, rate};
pub use self::kinds::{memory, user};
pub use self::names::{MAX_SERVERS, resolver};
pub use self::networks::{MAX_MTU, MIN_MTU, prefix6};

use std::io;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use self::reader::{Place, Report, Section};
use crate::error::{ErrorKind, YardError};
use crate::model::{MAX_YARD_NAME, Yard};
use crate::networks::fit_label;

/// Name of the yard file where only a folder is given.
pub const FILE_NAME: &str = "yard.toml";

/// Longest yard file, bytes; far more than anybody writes.
const MAX_LEN: u64 = 1 << 20;

/// Keys at the top of the file.
const KEYS: &[&str] = &["name", "networks", "instances", "services"];

/// Reads the yard file at `path`, or `yard.toml` in the folder `path`.
///
/// # Errors
/// `Unknown` when there is no such file, `Input` with [`YardError::problems`] when it is wrong.
pub fn load(path: &Path) -> Result<Yard, YardError> {
    let shown = if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() };
    let wanted = || format!("read the yard file {}", shown.display());
    let failed = |error: io::Error| {
        let failed = YardError::io(wanted(), &error);
        match error.kind() {
            io::ErrorKind::NotFound => {
                failed.next("write one, or name it: netyard up path/to/yard.toml")
            }
            _ => failed,
        }
    };
    let path = shown.canonicalize().map_err(failed)?;
    let len = path.metadata().map_err(failed)?.len();
    if len > MAX_LEN {
        let found = format!("it has {len} bytes, more than {MAX_LEN}");
        return Err(YardError::new(ErrorKind::Input, wanted(), found));
    }
    let text = String::from_utf8(std::fs::read(&path).map_err(failed)?).map_err(|error| {
        let found = format!("byte {} is not UTF-8 text", error.utf8_error().valid_up_to());
        YardError::new(ErrorKind::Input, wanted(), found).next("save the file as UTF-8")
    })?;
    read(&text, &shown, &path)
}

/// Reads the text of a yard file. `path`, absolute, is where it stands: paths in it are relative
/// to its folder, and the folder's name is the yard's unless the file gives one.
///
/// # Errors
/// `Input` with [`YardError::problems`] when it is wrong.
pub fn parse(text: &str, path: &Path) -> Result<Yard, YardError> {
    read(text, path, path)
}

/// Reads the text of the file at `path`, which errors call `shown`.
fn read(text: &str, shown: &Path, path: &Path) -> Result<Yard, YardError> {
    let mut report = Report::new(shown, text);
    let yard = match DeTable::parse(text) {
        Ok(table) => {
            let top = Section::top(table.get_ref()).only(KEYS, &mut report);
            Some(build(&top, path, &mut report))
        }
        Err(error) => {
            report.add_syntax(&error);
            None
        }
    };
    let problems = report.into_problems();
    match yard {
        Some(yard) if problems.is_empty() => Ok(yard),
        _ => Err(YardError::file(shown, problems)
            .next("correct it; docs/guide/yard-file.md describes every key")),
    }
}

/// Both passes. The yard is of use only if nothing was reported.
fn build(top: &Section<'_>, path: &Path, report: &mut Report<'_>) -> Yard {
    let folder = path.parent().map(PathBuf::from).unwrap_or_default();
    let name = yard_name(top, &folder, report);
    let networks = networks::read(top, &name, &folder, report);
    let groups = instances::read(top, &folder, &networks, report);
    let services = services::read(top, report);
    checks::join(Yard::empty(name, path), networks, groups, services, report)
}

/// The file's `name`, or the name of its folder made fit.
fn yard_name(top: &Section<'_>, folder: &Path, report: &mut Report<'_>) -> String {
    if top.field("name").is_some() {
        let Some(name) = top.string("name", report) else { return String::new() };
        check_name(name.value, MAX_YARD_NAME, &name.place, report);
        return name.value.to_owned();
    }
    let folder = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = folder.as_deref().map(fit_label).unwrap_or_default();
    if name.is_empty() || name.len() > MAX_YARD_NAME {
        let folder = folder.unwrap_or_else(|| "/".to_owned());
        report.add_whole(format!(
            "the folder's name {folder:?} cannot be the yard's name (a-z, 0-9 and `-`, at most \
             {MAX_YARD_NAME}): write name = \"...\" at the top of the file"
        ));
    }
    name
}

/// Reports a name that cannot be a DNS label (RFC 1123 section 2.1) of at most `most` letters.
fn check_name(name: &str, most: usize, place: &Place, report: &mut Report<'_>) {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if name.is_empty() || !letters || name.starts_with('-') || name.ends_with('-') {
        report.add(
            place,
            format!(
                "expected a name of a-z, 0-9 and `-`, which is not at its ends; found {name:?}"
            ),
        );
    } else if name.len() > most {
        report.add(
            place,
            format!("expected a name of at most {most} letters; {name:?} has {}", name.len()),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference of every key.
    const REFERENCE: &str = include_str!("../../../docs/guide/yard-file.md");

    #[test]
    fn the_reference_describes_every_key() {
        let tables: [(&str, &[&str]); 12] = [
            ("", KEYS),
            ("", networks::KEYS),
            ("dns.", names::KEYS),
            ("records.", names::RECORD_KEYS),
            ("dhcp.", networks::DHCP_KEYS),
            ("rules.", rules::KEYS),
            ("hub.", networks::HUB_KEYS),
            ("", instances::KEYS),
            ("network.", instances::PLUG_KEYS),
            ("link.", instances::LINK_KEYS),
            ("", services::KEYS),
            ("check.", services::CHECK_KEYS),
        ];
        for (table, keys) in tables {
            for key in keys {
                let quoted = format!("`{table}{key}`");
                let rows = || REFERENCE.lines().filter(|line| line.starts_with('|'));
                assert!(rows().any(|row| row.contains(&quoted)), "{quoted} is not described");
            }
        }
    }

    #[test]
    fn the_examples_of_the_reference_are_good() {
        let examples: Vec<&str> = REFERENCE
            .split("```toml\n")
            .skip(1)
            .filter_map(|rest| Some(rest.split_once("```")?.0))
            .collect();
        assert_eq!(examples.len(), 12);
        for example in examples {
            parse(example, Path::new("/srv/shop/yard.toml")).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}
