//! Ordinary tests of this crate's fuzz targets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on shall fail")]

mod checks;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::Check;

const TARGETS: [(&str, Check); 6] = [
    ("websocket", checks::websocket),
    ("records", checks::records),
    ("datagram", checks::datagram),
    ("control", checks::control),
    ("upgrade", checks::upgrade),
    ("join", checks::join),
];
