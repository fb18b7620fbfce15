//! A machine whose clock is another than its hub's.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use std::fs;
use std::process::Command;

use netyard_testbed::{Background, isolate, peer, run, wait_for};

use crate::outer::{Outer, PATIENCE, netyard, ping, start_hub, token};

/// Has a program see a clock that is `AHEAD` seconds ahead.
const SHIM: &str = "#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *at) {
    long done = syscall(SYS_clock_gettime, id, at);
    if (done == 0 && id == CLOCK_REALTIME) at->tv_sec += atol(getenv(\"AHEAD\"));
    return done;
}
";

/// A line of the log without its colours.
fn plain(line: &str) -> String {
    let pieces = line.split('\x1b');
    let bare = |(number, piece): (usize, &str)| match piece.split_once('m') {
        Some((_, rest)) if number > 0 => rest.to_owned(),
        _ => piece.to_owned(),
    };
    pieces.enumerate().map(bare).collect()
}

#[test]
fn clocks_that_differ_are_told_at_both_ends_and_keep_nobody_away() {
    isolate(|| {
        fs::write("/tmp/clock.c", SHIM).unwrap();
        let library = ["-shared", "-fPIC", "-o", "/tmp/clock.so", "/tmp/clock.c"];
        run(Command::new(peer("cc")).args(library));
        let outer = Outer::new(1);
        let hub = start_hub(&outer, &[]);
        let start = |name: &str, ahead: &str, join: &str| {
            let state = format!("/tmp/{name}");
            let words = ["join", "--name", name, "--state", &state, join];
            let mut command = netyard(&outer.peers[0], &words);
            Background::start(command.env("LD_PRELOAD", "/tmp/clock.so").env("AHEAD", ahead))
        };
        for (name, ahead, told) in [("fast", "7200", "seconds=-7"), ("slow", "-7200", "seconds=7")]
        {
            // It is the hub's clock that says when a token ends.
            let mut one = start(name, ahead, &token(&outer, &["--expires", "5m"]));
            one.wait_for_line("joined", PATIENCE);
            let said = one.wait_for_line("the hub's clock is ahead of ours", PATIENCE);
            assert!(plain(&said).contains(told), "{said}");
            ping(&outer.peers[0], "10.1.1.1");
            one.signal("TERM");
            assert!(one.wait(PATIENCE).success(), "{}", one.output());
        }
        let words = "a peer's clock is ahead of ours";
        wait_for("the hub's words about both", PATIENCE, || {
            let said = plain(&hub.output());
            let about = |name: &str| {
                let name = format!("peer=\"{name}\"");
                said.lines().any(|line| line.contains(words) && line.contains(&name))
            };
            (about("fast") && about("slow")).then_some(())
        });
        // One that is refused is told, too.
        let mut late = start("late", "7200", &token(&outer, &["--expires", "0s"]));
        late.wait_for_line("the hub's clock is ahead of ours", PATIENCE);
        assert_eq!(late.wait(PATIENCE).code(), Some(1), "{}", late.output());
    });
}
