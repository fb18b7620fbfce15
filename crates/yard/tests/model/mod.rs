//! Yard files for tests: good ones, and what is said of others.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::Path;

use netyard_yard::file;
use netyard_yard::model::Yard;

/// Where the files are said to be.
pub(crate) const PATH: &str = "/srv/hello/yard.toml";

/// What a file means that has no mistakes.
pub(crate) fn good(text: &str) -> Yard {
    file::parse(text, Path::new(PATH)).unwrap_or_else(|error| panic!("{error}"))
}

/// The mistakes of a file as `LINE: KEY: MESSAGE` lines.
pub(crate) fn mistakes(text: &str) -> String {
    let Err(error) = file::parse(text, Path::new(PATH)) else {
        panic!("no mistake was found in\n{text}")
    };
    let prefix = format!("{PATH}:");
    let lines = error.problems.iter().map(|problem| {
        let line = problem.to_string();
        let Some(line) = line.strip_prefix(&prefix) else { panic!("{line} has no file") };
        line.trim_start().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Asserts that a file has exactly these mistakes, one a line.
#[track_caller]
pub(crate) fn refuses(text: &str, expected: &str) {
    let expected: Vec<_> = expected.trim().lines().map(str::trim).collect();
    assert_eq!(mistakes(text), expected.join("\n"), "in\n{text}");
}
