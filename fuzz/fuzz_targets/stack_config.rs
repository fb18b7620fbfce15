//! The text of a configuration.

#![no_main]

#[allow(dead_code, reason = "shared with the other targets and the test that replays the seeds")]
#[path = "../../crates/stack/tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::config(input));
