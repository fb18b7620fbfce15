//! Ordinary tests of this crate's fuzz targets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on shall fail")]

mod checks;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::Check;

const TARGETS: [(&str, Check); 3] =
    [("stack", checks::stack), ("stack_frame", checks::frame), ("stack_config", checks::config)];
