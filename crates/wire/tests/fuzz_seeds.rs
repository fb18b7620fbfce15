//! Ordinary tests of this crate's fuzz targets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on shall fail")]

mod checks;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::Check;

const TARGETS: [(&str, Check); 6] = [
    ("offload", checks::offload),
    ("tun", checks::tun),
    ("packet", checks::packet),
    ("dns", checks::dns),
    ("dhcp", checks::dhcp),
    ("segment", checks::segment),
];
