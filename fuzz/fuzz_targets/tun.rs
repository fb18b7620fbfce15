//! A virtio-net header and an IP packet, as TUN devices have them.

#![no_main]

#[allow(dead_code, reason = "shared with the other targets and the test that replays the seeds")]
#[path = "../../crates/wire/tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::tun(input));
