//! Test help: namespaces that belong to one test, topologies in them, traffic to send through
//! them, and a before/after comparison of everything a run may leave behind.
//!
//! A namespace test is an ordinary `#[test]` whose body is handed to [`isolate()`]:
//!
//! ```no_run
//! # // A doc test cannot be re-executed by name, so this one is only compiled.
//! use netyard_testbed::{Outside, isolate};
//!
//! #[test]
//! fn reaches_the_outside() {
//!     isolate(|| {
//!         let outside = Outside::new();
//!         // ... run the binary, which sees `outside` as its Internet ...
//!     });
//! }
//! ```
//!
//! The crate builds everything with the machine's own tools (`unshare`, `ip`, `nsenter`) and none
//! of netyard's code, so that netyard is judged by an independent witness. A missing tool fails
//! the test and names `make deps`; nothing is skipped.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a set-up step that fails is a failed test: panics are this crate's errors"
)]

pub mod ask;
pub mod dns;
pub mod http;
mod isolate;
mod leftovers;
mod process;
mod state;
mod topology;
pub mod traffic;
pub mod tshark;
mod wait;

pub use isolate::{User, isolate, isolate_main, isolate_mapped, runtime_root};
pub use leftovers::Snapshot;
pub use process::{Background, binary, output, peer, run};
pub use state::State;
pub use topology::{Namespace, Outside, set_resolver};
pub use wait::{SetAtEnd, wait_for};
