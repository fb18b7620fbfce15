//! Files of all sizes through a hub: what comes is what was sent, whoever hands over super-packets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod outer;

use netyard_testbed::isolate;

use crate::outer::{Outer, joined_peer, start_hub, streams};

const MIB: u64 = 1 << 20;

/// The hub, and two peers, with super-packets or without; and all ways between them, both ways.
fn carries(offload: [bool; 3], sizes: &[u64]) {
    let outer = Outer::new(2);
    let flags = offload.map(|offload| if offload { &[][..] } else { &["--no-offload"] });
    let _hub = start_hub(&outer, flags[0]);
    let _one = joined_peer(&outer, 1, flags[1]);
    let _two = joined_peer(&outer, 2, flags[2]);
    let (hub, one, two) = (&outer.hub, &outer.peers[0], &outer.peers[1]);
    streams(one, hub, "10.1.1.1", sizes);
    streams(hub, two, "10.1.1.5", sizes);
    streams(one, two, "10.1.1.5", sizes);
    streams(two, one, "10.1.1.3", sizes);
}

/// From less than a packet to more than any queue on the way holds.
const SIZES: [u64; 4] = [1, 1361, 65_537, 5 * MIB + 3];

#[test]
fn files_come_as_they_were_sent_with_super_packets_on_all_sides() {
    isolate(|| carries([true; 3], &[&SIZES[..], &[64 * MIB]].concat()));
}

#[test]
fn files_come_as_they_were_sent_with_super_packets_on_all_sides_but_one() {
    isolate(|| carries([true, false, true], &SIZES));
}

#[test]
fn files_come_as_they_were_sent_with_super_packets_on_one_side_alone() {
    isolate(|| carries([false, true, false], &SIZES));
}

#[test]
fn files_come_as_they_were_sent_without_super_packets() {
    isolate(|| carries([false; 3], &SIZES));
}

const GIB: [u64; 1] = [1024 * MIB];

#[test]
#[ignore = "it takes a minute"]
fn a_gibibyte_comes_as_it_was_sent_with_super_packets() {
    isolate(|| carries([true; 3], &GIB));
}

#[test]
#[ignore = "it takes minutes"]
fn a_gibibyte_comes_as_it_was_sent_with_super_packets_on_some_sides() {
    isolate(|| carries([true, false, true], &GIB));
}

#[test]
#[ignore = "it takes minutes"]
fn a_gibibyte_comes_as_it_was_sent_without_super_packets() {
    isolate(|| carries([false; 3], &GIB));
}
