//! Sequences of frames from guests of a whole network, with a host that does what it likes, and time.

#![no_main]

#[allow(dead_code, reason = "shared with the simulations")]
#[path = "../../crates/engine/tests/common/mod.rs"]
mod common;
#[path = "../../crates/engine/tests/storm/mod.rs"]
mod storm;

libfuzzer_sys::fuzz_target!(|input: &[u8]| storm::run(input));
