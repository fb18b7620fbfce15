//! How TCP gets over losses, and how fast it sends, segment by segment: fast recovery, the congestion window,
//! timestamps and what must not shake them.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod script;

use netyard_stack::{Algorithm, Settings};
use script::{ACCEPTED, PLAIN, STAMPED, play, play_after};

fn newreno() -> Settings {
    Settings { congestion: Algorithm::NewReno, ..Settings::default() }
}

#[test]
fn slow_start_counts_bytes_not_acknowledgements() {
    // RFC 3465 with L = infinite would double; an acknowledgement of five segments opens by five.
    play_after(
        newreno(),
        ACCEPTED,
        "0.2 window 10000
         0.2 write 30000
         0.2 > . 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 5001 win 60000
         0.3 > . 10001:20001(10000) ack 1
         0.3 window 15000
         0.3 < . 1:1(0) ack 10001 win 60000
         0.3 > P. 20001:30001(10000) ack 1
         0.3 window 20000",
    );
}

#[test]
fn a_window_that_was_not_used_does_not_grow() {
    // RFC 7661's concern: little was in flight, so nothing was learnt about the path.
    play_after(
        newreno(),
        ACCEPTED,
        "0.2 write 1000
         0.2 > P. 1:1001(1000) ack 1
         0.3 < . 1:1(0) ack 1001 win 60000
         0.3 window 10000",
    );
}

#[test]
fn newreno_halves_and_cubic_takes_seven_tenths() {
    for (settings, window) in [(newreno(), 5000), (Settings::default(), 7000)] {
        play_after(
            settings,
            ACCEPTED,
            &format!(
                "0.2 write 10000
                 0.2 > P. 1:10001(10000) ack 1
                 0.3 < . 1:1(0) ack 1 win 60000 <sack 1001:4001>
                 0.3 > . 1:1001(1000) ack 1
                 0.4 < . 1:1(0) ack 10001 win 60000
                 0.4 window {window}"
            ),
        );
    }
}

#[test]
fn a_repair_that_is_lost_too_is_repaired_again() {
    // RFC 8985: what was sent after it has come, so it will not; no timer is needed.
    play_after(
        Settings::default(),
        ACCEPTED,
        "0.2 write 20000
         0.2 > . 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000 <sack 1001:10001>
         0.3 > . 1:1001(1000) ack 1
         0.3 > . 10001:16001(6000) ack 1
         0.4 < . 1:1(0) ack 1 win 60000 <sack 1001:16001>
         0.4 > . 1:1001(1000) ack 1
         0.4 > P. 16001:20001(4000) ack 1",
    );
}

#[test]
fn several_holes_in_one_acknowledgement_are_losses_at_once() {
    // RFC 8985 section 6.2 step 3 looks at segments in their order, not in that of the blocks.
    play_after(
        newreno(),
        ACCEPTED,
        "0.2 write 10000
         0.2 > P. 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000 <sack 7001:10001 4001:6001 1001:3001>
         0.3 > . 1:1001(1000) ack 1
         0.3 > . 3001:4001(1000) ack 1
         0.3 > . 6001:7001(1000) ack 1
         0.4 < . 1:1(0) ack 10001 win 60000
         0.4 window 5000",
    );
}

#[test]
fn one_loss_of_a_window_reduces_it_once() {
    play_after(
        newreno(),
        ACCEPTED,
        "0.2 write 10000
         0.2 > P. 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000 <sack 1001:4001>
         0.3 > . 1:1001(1000) ack 1
         0.4 < . 1:1(0) ack 4001 win 60000 <sack 5001:10001>
         0.4 > . 4001:5001(1000) ack 1
         0.5 < . 1:1(0) ack 10001 win 60000
         0.5 window 5000",
    );
}

#[test]
fn a_timeout_begins_with_one_segment() {
    // RFC 5681 section 3.1: and doubles from there.
    play_after(
        newreno(),
        PLAIN,
        "0.2 write 10000
         0.2 > P. 1:10001(10000) ack 1
         0.5 > . 1:1001(1000) ack 1
         0.5 window 1000
         0.6 < . 1:1(0) ack 1001 win 60000
         0.6 > . 1001:3001(2000) ack 1",
    );
}

#[test]
fn duplicates_that_carry_data_or_change_the_window_are_none() {
    // RFC 5681 section 2: only what says nothing else counts.
    play_after(
        Settings::default(),
        PLAIN,
        "0.20 write 5000
         0.20 > P. 1:5001(5000) ack 1
         0.30 < . 1:101(100) ack 1 win 60000
         0.30 > . 5001:5001(0) ack 101
         0.30 < . 101:201(100) ack 1 win 60000
         0.30 > . 5001:5001(0) ack 201
         0.30 < . 201:301(100) ack 1 win 60000
         0.30 > . 5001:5001(0) ack 301
         0.31 < . 301:301(0) ack 1 win 60001
         0.32 < . 301:301(0) ack 1 win 60002
         0.33 < . 301:301(0) ack 1 win 60003
         0.40 < . 301:301(0) ack 5001 win 60000",
    );
}

#[test]
fn reordering_is_waited_for() {
    // RFC 8985 section 6.2: a quarter of a round trip, before the third duplicate is taken for a loss.
    play_after(
        Settings::default(),
        ACCEPTED,
        "0.20 write 3000
         0.20 > P. 1:3001(3000) ack 1
         0.30 < . 1:1(0) ack 1 win 60000 <sack 1001:2001>
         0.31 < . 1:1(0) ack 2001 win 60000
         0.32 < . 1:1(0) ack 3001 win 60000",
    );
}

#[test]
fn segments_from_the_past_are_recognised_by_their_clock() {
    // RFC 7323 section 5 (PAWS): acknowledged, dropped.
    play_after(
        Settings::default(),
        STAMPED,
        "0.20 < . 1:101(100) ack 1 win 60000 <TS 1200>
         0.20 > . 1:1(0) ack 101
         0.30 < . 101:201(100) ack 1 win 60000 <TS 1150>
         0.30 > . 1:1(0) ack 101
         0.30 read 100
         0.40 < . 101:201(100) ack 1 win 60000 <TS 1400>
         0.40 > . 1:1(0) ack 201
         0.40 read 100",
    );
}

#[test]
fn segments_are_as_much_shorter_as_their_options_are_long() {
    play_after(
        Settings::default(),
        STAMPED,
        "0.2 write 1976
         0.2 > P. 1:1977(1976) ack 1",
    );
}

#[test]
fn a_window_that_shrinks_is_borne() {
    // RFC 9293 section 3.8.6: what is beyond it is not sent, what was sent is kept.
    play_after(
        Settings::default(),
        PLAIN,
        "0.2 write 5000
         0.2 > P. 1:5001(5000) ack 1
         0.3 < . 1:1(0) ack 1001 win 500
         0.3 write 1000
         0.4 < . 1:1(0) ack 5001 win 60000
         0.4 > P. 5001:6001(1000) ack 1",
    );
}

#[test]
fn a_peer_that_offers_no_window_at_first_is_asked_after() {
    play(
        Settings::default(),
        "0.0 listen
         0.0 < S 0:0(0) win 0 <mss 1000>
         0.0 > S. 0:0(0) ack 1
         0.1 < . 1:1(0) ack 1 win 0
         0.1 accept
         0.2 write 1000
         0.5 > . 0:0(0) ack 1
         0.6 < . 1:1(0) ack 1 win 1000
         0.6 > P. 1:1001(1000) ack 1",
    );
}

#[test]
fn new_data_goes_out_on_the_first_duplicates_without_sack_too() {
    // RFC 3042.
    play_after(
        Settings::default(),
        PLAIN,
        "0.2 write 20000
         0.2 > . 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000
         0.3 > . 10001:11001(1000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000
         0.3 > . 11001:12001(1000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000
         0.3 > . 1:1001(1000) ack 1",
    );
}

#[test]
fn a_peer_that_never_acknowledges_is_given_up() {
    // RFC 9293 section 3.8.3: fifteen timeouts, each twice as long as the one before, at most two minutes.
    let mut script = "0.2 write 100\n0.2 > P. 1:101(100) ack 1\n".to_owned();
    let (mut at, mut timeout) = (0.2, 0.3_f64);
    for _ in 0..15 {
        at += timeout;
        timeout = (timeout * 2.0).min(120.0);
        script += &format!("{at:.1} > P. 1:101(100) ack 1\n");
    }
    script += &format!("{:.1} error none\n{:.1} error TimedOut", at + 119.9, at + 120.1);
    play_after(Settings::default(), PLAIN, &script);
}

#[test]
fn a_clock_is_not_learnt_from_what_is_not_believed() {
    // Else whoever guesses a sequence number makes all that the peer sends an old duplicate.
    play_after(
        Settings::default(),
        STAMPED,
        "0.20 < . 1:1(0) ack 9999 win 60000 <TS 900000>
         0.20 > . 1:1(0) ack 1
         0.30 < . 1:101(100) ack 1 win 60000 <TS 1200>
         0.30 > . 1:1(0) ack 101
         0.30 read 100",
    );
}
