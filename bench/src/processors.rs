//! On which processors everything runs.
//!
//! What one round trip costs is decided, where processors sleep and wake as they do in virtual
//! machines, by whether client, engine and server happen to share a processor: the same run gives
//! 20 or 90 microseconds. On one processor it is the work that counts.

use std::fmt;
use std::process::Command;

use netyard_testbed::{output, peer};

/// How often a process may change its threads meanwhile.
const TRIES: u32 = 100;

/// Where this process, what it starts, and the servers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processors {
    /// Wherever the kernel puts them.
    All,
    /// All on the first.
    One,
}

impl Processors {
    /// Moves this process, and so what it starts from now on, and `others`.
    ///
    /// # Panics
    /// When `taskset` fails.
    pub(crate) fn use_for(self, others: &[u32]) {
        let list = match self {
            Self::All => "0-1023",
            Self::One => "0",
        };
        for process in others.iter().copied().chain([std::process::id()]) {
            let process = process.to_string();
            let mut command = Command::new(peer("taskset"));
            command.args(["-a", "-c", "-p", list, &process]);
            // It fails at a thread that ends while it looks at them.
            let moved = (0..TRIES).any(|_| output(&mut command).status.success());
            assert!(moved, "{command:?} failed");
        }
    }
}

impl fmt::Display for Processors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all processors",
            Self::One => "one processor",
        })
    }
}
