//! TCP segment by segment: what the standards, and the kernels that everybody talks to, make expect.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod script;

use std::time::Duration;

use netyard_stack::{Algorithm, Settings};
use script::{ACCEPTED, PLAIN, STAMPED, play, play_after, play_over};

fn after(prelude: &str, script: &str) {
    play_after(Settings::default(), prelude, script);
}

// ------------------------------------------------------------------------------------- opening --

#[test]
fn a_listener_answers_with_what_was_offered() {
    play(
        Settings::default(),
        "0.0 listen
         0.0 < S 0:0(0) win 65535 <mss 1460,sackOK,TS 100,wscale 7>
         0.0 > S. 0:0(0) ack 1 win 65535 <mss 1460,sackOK,TS 0,wscale 7>
         0.0 no-accept
         0.1 < . 1:1(0) ack 1 win 500 <TS 200>
         0.1 accept
         0.1 state Established",
    );
    play_over(
        "[fd00::1]:80",
        "[fd00::2]:5000",
        Settings::default(),
        "0.0 listen
         0.0 < S 0:0(0) win 65535
         0.0 > S. 0:0(0) ack 1 win 65535 <mss 1440>
         0.1 < . 1:1(0) ack 1 win 500
         0.1 accept
         0.1 write 3000
         0.1 > . 1:501(500) ack 1",
    );
    let bare =
        Settings { sack: false, timestamps: false, window_scaling: false, ..Settings::default() };
    play(
        bare,
        "0.0 listen
         0.0 < S 0:0(0) win 65535 <mss 1460,sackOK,TS 100,wscale 7>
         0.0 > S. 0:0(0) ack 1 <mss 1460>",
    );
}

#[test]
fn an_answer_to_a_syn_is_sent_again_and_given_up() {
    play(
        Settings::default(),
        "0.0 listen
         0.0 < S 0:0(0) win 65535 <mss 1000>
         0.0 > S. 0:0(0) ack 1
         1.0 > S. 0:0(0) ack 1
         1.5 < S 0:0(0) win 65535 <mss 1000>
         1.5 > S. 0:0(0) ack 1
         5.5 > S. 0:0(0) ack 1
         13.5 > S. 0:0(0) ack 1
         29.5 > S. 0:0(0) ack 1
         60.0 counts 0 1 0
         62.0 counts 0 0 0
         62.0 no-accept",
    );
}

#[test]
fn data_may_come_with_the_last_step_of_the_opening() {
    play(
        Settings::default(),
        "0.0 listen
         0.0 < S 0:0(0) win 65535 <mss 1000>
         0.0 > S. 0:0(0) ack 1
         0.1 < P. 1:501(500) ack 1 win 65535
         0.1 > . 1:1(0) ack 501
         0.1 accept
         0.1 read 500",
    );
}

#[test]
fn a_half_open_connection_believes_only_what_fits() {
    play(
        Settings::default(),
        "0.0 listen
         0.0 < S 0:0(0) win 65535 <mss 1000>
         0.0 > S. 0:0(0) ack 1
         0.1 < . 1:1(0) ack 2 win 65535
         0.1 > R 2:2(0)
         0.1 < R 5:5(0) win 0
         0.1 counts 0 1 0
         0.1 < R 1:1(0) win 0
         0.1 counts 0 0 0",
    );
}

#[test]
fn what_belongs_to_nothing_is_reset() {
    // RFC 9293 section 3.10.7.1.
    play(
        Settings::default(),
        "0.0 < S 0:0(0) win 65535
         0.0 > R. 0:0(0) ack 1
         0.0 < . 7:107(100) ack 9 win 65535
         0.0 > R 9:9(0)
         0.0 < F 7:107(100) win 65535
         0.0 > R. 0:0(0) ack 108
         0.0 < R 7:7(0) win 65535
         0.0 < R. 7:7(0) ack 3 win 65535",
    );
}

#[test]
fn a_flood_of_syns_does_not_keep_others_out() {
    // RFC 4987: what is beyond the bound is remembered in the answer. Without timestamps that has room
    // for the segment size only, and that for a few values; with them for the other options, too.
    play(
        Settings::default(),
        "0.0 listen
         0.0 flood 1000
         0.0 counts 0 128 0
         0.1 < S 0:0(0) win 60000 <mss 1400,sackOK,wscale 7>
         0.1 > S. 0:0(0) ack 1 <mss 1460>
         0.1 counts 0 128 0
         0.2 < . 1:1(0) ack 2 win 60000
         0.2 > R 2:2(0)
         0.3 < . 1:1(0) ack 1 win 60000
         0.3 accept
         0.3 write 2600
         0.3 > P. 1:2601(2600) ack 1
         0.4 < P. 1:101(100) ack 2601 win 60000
         0.4 > . 2601:2601(0) ack 101
         0.4 read 100",
    );
    play(
        Settings::default(),
        "0.0 listen
         0.0 flood 1000
         0.1 < S 0:0(0) win 60000 <mss 1400,sackOK,TS 500,wscale 7>
         0.1 > S. 0:0(0) ack 1 <mss 1460,sackOK,TS 0,wscale 7>
         0.2 < . 1:1(0) ack 1 win 100 <TS 600>
         0.2 accept
         0.2 < . 1001:2001(1000) ack 1 win 100 <TS 610>
         0.2 > . 1:1(0) ack 1 <TS 0,sack 1001:2001>
         0.2 write 10000
         0.2 > P. 1:10001(10000) ack 1",
    );
}

#[test]
fn a_full_queue_of_connections_keeps_peers_waiting() {
    play(
        Settings::default(),
        "0.0 listen 1
         0.0 < S 0:0(0) win 65535
         0.0 > S. 0:0(0) ack 1
         0.0 port 5001
         0.0 < S 0:0(0) win 65535
         0.0 > S. 0:0(0) ack 1
         0.1 < . 1:1(0) ack 1 win 65535
         0.1 counts 1 1 0
         0.1 port 5000
         0.1 < . 1:1(0) ack 1 win 65535
         0.1 counts 1 1 0
         0.1 port 5002
         0.1 < S 0:0(0) win 65535
         0.1 counts 1 1 0
         0.1 port 5001
         0.1 accept
         0.1 port 5000
         1.0 > S. 0:0(0) ack 1
         1.1 < . 1:1(0) ack 1 win 65535
         1.1 accept
         1.1 counts 2 0 0",
    );
}

#[test]
fn a_connect_offers_everything_and_is_answered() {
    play(
        Settings::default(),
        "0.0 connect
         0.0 > S 0:0(0) win 65535 <mss 1460,sackOK,TS 0,wscale 7>
         0.1 < S. 0:0(0) ack 1 win 65535 <mss 1000,sackOK,TS 700,wscale 7>
         0.1 > . 1:1(0) ack 1 <TS 0>
         0.1 state Established
         0.1 write 100
         0.1 > P. 1:101(100) ack 1 <TS 0>",
    );
}

#[test]
fn a_syn_is_sent_again_with_back_off_until_it_is_given_up() {
    play(
        Settings::default(),
        "0 connect
         0 > S 0:0(0)
         1 > S 0:0(0)
         3 > S 0:0(0)
         7 > S 0:0(0)
         15 > S 0:0(0)
         31 > S 0:0(0)
         63 > S 0:0(0)
         120 error none
         128 error TimedOut",
    );
    play(
        Settings::default(),
        "0 user-timeout 2500
         0 connect
         0 > S 0:0(0)
         1 > S 0:0(0)
         4 error TimedOut",
    );
}

#[test]
fn a_connect_is_refused_by_whom_it_concerns_only() {
    play(
        Settings::default(),
        "0.0 connect
         0.0 > S 0:0(0)
         0.1 < R. 0:0(0) ack 5 win 0
         0.1 < R 0:0(0) win 0
         0.1 state SynSent
         0.1 < . 9:9(0) ack 7 win 100
         0.1 > R 7:7(0)
         0.2 < R. 0:0(0) ack 1 win 0
         0.2 error ConnectionRefused
         0.2 error none",
    );
    for (icmp, error) in
        [("port", "ConnectionRefused"), ("host", "HostUnreachable"), ("net", "NetworkUnreachable")]
    {
        play(
            Settings::default(),
            &format!(
                "0.0 connect
                 0.0 > S 0:0(0)
                 0.1 icmp {icmp}
                 0.1 error {error}"
            ),
        );
    }
}

#[test]
fn both_ends_may_open_at_once() {
    // RFC 9293 section 3.5, figure 7.
    play(
        Settings::default(),
        "0.0 connect
         0.0 > S 0:0(0)
         0.1 < S 0:0(0) win 65535 <mss 1000>
         0.1 > S. 0:0(0) ack 1
         0.1 state SynReceived
         0.2 < S. 0:0(0) ack 1 win 65535 <mss 1000>
         0.2 > . 1:1(0) ack 1
         0.2 state Established",
    );
}

// ------------------------------------------------------------------------------------- closing --

#[test]
fn this_end_closes_first() {
    after(
        ACCEPTED,
        "0.2 close
         0.2 > F. 1:1(0) ack 1
         0.3 < . 1:1(0) ack 2 win 60000
         0.4 < F. 1:1(0) ack 2 win 60000
         0.4 > . 2:2(0) ack 2
         0.4 counts 0 0 1
         0.42 port 5001
         0.42 < S 0:0(0) win 60000
         0.42 > S. 0:0(0) ack 1
         0.42 < . 1:1(0) ack 1 win 60000
         0.42 accept
         0.43 close
         0.43 > F. 1:1(0) ack 1
         0.44 < F. 1:1(0) ack 2 win 60000
         0.44 > . 2:2(0) ack 2
         0.45 port 5000
         0.5 < F. 1:1(0) ack 2 win 60000
         0.5 > . 2:2(0) ack 2
         0.6 < R 2:2(0) win 0
         60.43 counts 0 0 2
         60.47 counts 0 0 1
         60.55 counts 0 0 0",
    );
}

#[test]
fn the_other_end_closes_first() {
    after(
        ACCEPTED,
        "0.2 < F. 1:1(0) ack 1 win 60000
         0.2 > . 1:1(0) ack 2
         0.2 read 0
         0.2 state CloseWait
         0.3 write 500
         0.3 > P. 1:501(500) ack 2
         0.4 < . 2:2(0) ack 501 win 60000
         0.5 close
         0.5 > F. 501:501(0) ack 2
         0.6 < . 2:2(0) ack 502 win 60000
         0.6 counts 0 0 0",
    );
}

#[test]
fn both_ends_close_at_once() {
    after(
        ACCEPTED,
        "0.2 close
         0.2 > F. 1:1(0) ack 1
         0.2 < F. 1:1(0) ack 1 win 60000
         0.2 > . 2:2(0) ack 2
         0.3 < . 2:2(0) ack 2 win 60000
         0.3 counts 0 0 1",
    );
}

#[test]
fn a_fin_is_sent_again() {
    after(
        PLAIN,
        "0.2 close
         0.2 > F. 1:1(0) ack 1
         0.5 > F. 1:1(0) ack 1
         1.1 > F. 1:1(0) ack 1
         1.2 < F. 1:1(0) ack 2 win 60000
         1.2 > . 2:2(0) ack 2
         1.2 counts 0 0 1",
    );
}

#[test]
fn data_and_fin_leave_together() {
    after(
        ACCEPTED,
        "0.2 write 1500
         0.2 > P. 1:1501(1500) ack 1
         0.3 < . 1:1(0) ack 1501 win 60000
         0.3 write 300
         0.3 > P. 1501:1801(300) ack 1
         0.3 write 100
         0.3 close
         0.3 > FP. 1801:1901(100) ack 1",
    );
}

#[test]
fn half_a_connection_goes_on_after_shutdown() {
    after(
        ACCEPTED,
        "0.2 shutdown
         0.2 > F. 1:1(0) ack 1
         0.2 write-fails BrokenPipe
         0.3 < . 1:1(0) ack 2 win 60000
         0.3 state FinWait2
         0.4 < P. 1:1001(1000) ack 2 win 60000
         0.4 > . 2:2(0) ack 1001
         0.4 read 1000
         100.0 < F. 1001:1001(0) ack 2 win 60000
         100.0 > . 2:2(0) ack 1002
         100.0 read 0",
    );
}

#[test]
fn data_that_nobody_will_read_is_answered_with_a_reset() {
    after(
        ACCEPTED,
        "0.2 < P. 1:101(100) ack 1 win 60000
         0.2 > . 1:1(0) ack 101
         0.3 close
         0.3 > R. 1:1(0) ack 101
         0.3 counts 0 0 0",
    );
    after(
        ACCEPTED,
        "0.2 close
         0.2 > F. 1:1(0) ack 1
         0.3 < . 1:1(0) ack 2 win 60000
         0.4 < P. 1:101(100) ack 2 win 60000
         0.4 > R. 2:2(0) ack 1
         0.4 counts 0 0 0",
    );
    after(ACCEPTED, "0.2 reset-on-close\n0.2 close\n0.2 > R. 1:1(0) ack 1\n0.2 counts 0 0 0");
}

#[test]
fn the_same_ends_open_again_before_the_wait_is_over() {
    // RFC 6191 and RFC 9293 section 3.10.7.4: a SYN behind what was received cannot be old.
    let script = "
        0.2 close
        0.2 > F. 1:1(0) ack 1
        0.3 < F. 1:1(0) ack 2 win 60000
        0.3 > . 2:2(0) ack 2
        0.4 counts 0 0 1";
    after(
        ACCEPTED,
        &format!(
            "{script}
             0.5 < S 1:1(0) win 60000
             0.5 > . 2:2(0) ack 2
             0.5 counts 0 0 1
             0.6 < S 5000:5000(0) win 60000
             0.6 > S. 0:0(0) ack 5001
             0.7 < . 5001:5001(0) ack 1 win 60000
             0.7 accept
             0.7 counts 1 0 0"
        ),
    );
}

#[test]
fn a_clock_tells_whether_the_same_ends_open_again() {
    // RFC 6191 section 2: with timestamps on both sides the number tells only where those are equal.
    let closed = format!(
        "{STAMPED}
         0.2 close
         0.2 > F. 1:1(0) ack 1
         0.3 < F. 1:1(0) ack 2 win 60000 <TS 1300>
         0.3 > . 2:2(0) ack 2"
    );
    after(
        &closed,
        "0.5 < S 5000:5000(0) win 60000 <TS 1200>
         0.5 > . 2:2(0) ack 2
         0.5 < S 1:1(0) win 60000 <TS 1300>
         0.5 > . 2:2(0) ack 2
         0.5 counts 0 0 1
         0.6 < S 5000:5000(0) win 60000 <TS 1300>
         0.6 > S. 0:0(0) ack 5001
         0.6 counts 0 1 0",
    );
    after(
        &closed,
        "0.5 < S 0:0(0) win 60000 <TS 1301>
         0.5 > S. 0:0(0) ack 1
         0.5 counts 0 1 0",
    );
}

#[test]
fn ends_are_remembered_while_nobody_can_take_them() {
    after(
        &ACCEPTED.replace("listen", "listen 1"),
        "0.2 close
         0.2 > F. 1:1(0) ack 1
         0.3 < F. 1:1(0) ack 2 win 60000
         0.3 > . 2:2(0) ack 2
         0.4 port 5001
         0.4 < S 0:0(0) win 60000
         0.4 > S. 0:0(0) ack 1
         0.4 < . 1:1(0) ack 1 win 60000
         0.5 port 5000
         0.5 < S 5000:5000(0) win 60000
         0.5 counts 1 0 1
         0.6 port 5001
         0.6 accept
         0.7 port 5000
         0.7 < S 5000:5000(0) win 60000
         0.7 > S. 0:0(0) ack 5001
         0.7 counts 1 1 0",
    );
}

// --------------------------------------------------------------------------- what is not believed --

#[test]
fn resets_and_syns_inside_the_window_are_asked_about() {
    // RFC 5961 sections 3 and 4.
    after(
        ACCEPTED,
        "0.2 < R 100:100(0) win 0
         0.2 > . 1:1(0) ack 1
         0.2 < R 1000000:1000000(0) win 0
         0.3 < S 1:1(0) win 60000
         0.3 > . 1:1(0) ack 1
         0.4 < S 900000:900000(0) win 60000
         0.4 > . 1:1(0) ack 1
         0.4 state Established
         0.5 < R 1:1(0) win 0
         0.5 read-fails ConnectionReset
         0.5 read 0
         0.5 write-fails BrokenPipe
         0.5 counts 1 0 0
         0.5 close
         0.5 counts 0 0 0",
    );
}

#[test]
fn acknowledgements_of_what_was_not_sent_are_asked_about() {
    // RFC 5961 section 5.
    after(
        ACCEPTED,
        "0.2 < . 1:1(0) ack 2 win 60000
         0.2 > . 1:1(0) ack 1
         0.3 < P. 1:101(100) ack 5000 win 60000
         0.3 > . 1:1(0) ack 1
         0.3 read-fails WouldBlock",
    );
}

#[test]
fn old_duplicates_are_acknowledged_and_dropped() {
    // RFC 7323 section 5: PAWS.
    play(
        Settings::default(),
        "0.0 listen
         0.0 < S 0:0(0) win 65535 <mss 1000,sackOK,TS 1000>
         0.0 > S. 0:0(0) ack 1
         0.1 < . 1:1(0) ack 1 win 65535 <TS 1100>
         0.1 accept
         0.2 < P. 1:101(100) ack 1 win 65535 <TS 1200>
         0.2 > . 1:1(0) ack 101
         0.2 read 100
         0.3 < P. 101:201(100) ack 1 win 65535 <TS 1150>
         0.3 > . 1:1(0) ack 101
         0.3 read-fails WouldBlock
         0.4 < P. 101:201(100) ack 1 win 65535
         0.4 > . 1:1(0) ack 101
         0.4 read-fails WouldBlock
         0.5 < P. 101:201(100) ack 1 win 65535 <TS 1200>
         0.5 > . 1:1(0) ack 201
         0.5 read 100",
    );
}

// ---------------------------------------------------------------------------------- receiving --

#[test]
fn data_ahead_of_a_gap_is_told_selectively() {
    after(
        ACCEPTED,
        "0.2 < . 1001:2001(1000) ack 1 win 60000
         0.2 > . 1:1(0) ack 1 <sack 1001:2001>
         0.2 < . 3001:4001(1000) ack 1 win 60000
         0.2 > . 1:1(0) ack 1 <sack 3001:4001 1001:2001>
         0.2 read-fails WouldBlock
         0.3 < . 1:1001(1000) ack 1 win 60000
         0.3 > . 1:1(0) ack 2001 <sack 3001:4001>
         0.3 read 2000
         0.4 < . 2001:3001(1000) ack 1 win 60000
         0.4 > . 1:1(0) ack 4001 <>
         0.4 read 2000
         0.5 < . 3001:4001(1000) ack 1 win 60000
         0.5 > . 1:1(0) ack 4001 <sack 3001:4001>",
    );
}

#[test]
fn acknowledgements_wait_for_a_second_segment_or_a_moment() {
    let mut script = ACCEPTED.to_owned();
    // The first sixteen are acknowledged at once.
    for n in 0..16 {
        let (seq, end) = (1 + n * 1000, 1001 + n * 1000);
        script += &format!(
            "\n0.2 < . {seq}:{end}(1000) ack 1 win 60000\n0.2 > . 1:1(0) ack {end}\n0.2 read 1000"
        );
    }
    script += "
        0.30 < . 16001:17001(1000) ack 1 win 60000
        0.34 > . 1:1(0) ack 17001
        0.50 < . 17001:18001(1000) ack 1 win 60000
        0.51 < . 18001:19001(1000) ack 1 win 60000
        0.51 > . 1:1(0) ack 19001
        0.60 < P. 19001:19101(100) ack 1 win 60000
        0.61 write 100
        0.61 > P. 1:101(100) ack 19101";
    play(Settings::default(), &script);
}

#[test]
fn a_fin_ahead_of_a_gap_waits_for_the_gap() {
    after(
        ACCEPTED,
        "0.2 < F. 101:201(100) ack 1 win 60000
         0.2 > . 1:1(0) ack 1 <sack 101:201>
         0.2 state Established
         0.3 < . 1:101(100) ack 1 win 60000
         0.3 > . 1:1(0) ack 202
         0.3 state CloseWait
         0.3 read 200
         0.3 read 0",
    );
}

#[test]
fn the_window_closes_and_opens_with_the_reader() {
    let settings = Settings { receive_buffer: 4000, ..Settings::default() };
    play(
        settings,
        "0.0 listen
         0.0 < S 0:0(0) win 60000 <mss 1000>
         0.0 > S. 0:0(0) ack 1 win 4000 <mss 1460>
         0.1 < . 1:1(0) ack 1 win 60000
         0.1 accept
         0.2 < . 1:2001(2000) ack 1 win 60000
         0.2 > . 1:1(0) ack 2001 win 2000
         0.2 < . 2001:4001(2000) ack 1 win 60000
         0.2 > . 1:1(0) ack 4001 win 0
         0.3 < . 4001:4002(1) ack 1 win 60000
         0.3 > . 1:1(0) ack 4001 win 0
         0.4 read 4000
         0.4 > . 1:1(0) ack 4001 win 4000
         0.5 < . 4001:4101(100) ack 1 win 60000
         0.5 > . 1:1(0) ack 4101",
    );
}

// ------------------------------------------------------------------------------------ sending --

#[test]
fn the_first_flight_is_ten_segments() {
    after(
        PLAIN,
        "0.2 write 20000
         0.2 > . 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 10001 win 60000
         0.3 > P. 10001:20001(10000) ack 1",
    );
}

#[test]
fn the_peer_says_how_long_segments_are() {
    for (mss, len) in [("", 536), ("<mss 1000>", 1000), ("<mss 9000>", 1460), ("<mss 10>", 64)] {
        play(
            Settings::default(),
            &format!(
                "0.0 listen
                 0.0 < S 0:0(0) win 60000 {mss}
                 0.0 > S. 0:0(0) ack 1
                 0.1 < . 1:1(0) ack 1 win {len}
                 0.1 accept
                 0.1 write 5000
                 0.1 > . 1:{}({len}) ack 1",
                1 + len
            ),
        );
    }
}

#[test]
fn small_segments_wait_for_one_another() {
    // RFC 896, in the variant that lets one small segment pass behind full ones.
    after(
        ACCEPTED,
        "0.20 write 100
         0.20 > P. 1:101(100) ack 1
         0.21 write 100
         0.22 write 100
         0.30 < . 1:1(0) ack 101 win 60000
         0.30 > P. 101:301(200) ack 1
         0.31 write 1000
         0.31 > P. 301:1301(1000) ack 1
         0.40 < . 1:1(0) ack 1301 win 60000",
    );
    after(
        ACCEPTED,
        "0.20 no-delay
         0.20 write 100
         0.20 > P. 1:101(100) ack 1
         0.21 write 100
         0.21 > P. 101:201(100) ack 1",
    );
}

#[test]
fn the_peers_window_is_kept_to_and_asked_after() {
    play(
        Settings::default(),
        "0.0 listen
         0.0 < S 0:0(0) win 2000 <mss 1000>
         0.0 > S. 0:0(0) ack 1
         0.1 < . 1:1(0) ack 1 win 2000
         0.1 accept
         0.2 write 5000
         0.2 > . 1:2001(2000) ack 1
         0.3 < . 1:1(0) ack 2001 win 0
         0.6 > . 2000:2000(0) ack 1
         0.7 < . 1:1(0) ack 2001 win 0
         1.2 > . 2000:2000(0) ack 1
         1.3 < . 1:1(0) ack 2001 win 1000
         1.3 > . 2001:3001(1000) ack 1
         1.4 < . 1:1(0) ack 3001 win 300
         1.4 > . 3001:3301(300) ack 1",
    );
    // Scaled windows: 10 << 7.
    play(
        Settings::default(),
        "0.0 listen
         0.0 < S 0:0(0) win 60000 <mss 1000,wscale 7>
         0.0 > S. 0:0(0) ack 1 <mss 1460,wscale 7>
         0.1 < . 1:1(0) ack 1 win 16
         0.1 accept
         0.2 write 5000
         0.2 > . 1:2001(2000) ack 1",
    );
}

// ----------------------------------------------------------------------------------- recovery --

#[test]
fn a_loss_is_repaired_by_selective_acknowledgements() {
    after(
        ACCEPTED,
        "0.2 write 10000
         0.2 > P. 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000 <sack 1001:2001>
         0.3 < . 1:1(0) ack 1 win 60000 <sack 1001:3001>
         0.3 < . 1:1(0) ack 1 win 60000 <sack 1001:4001>
         0.3 > . 1:1001(1000) ack 1
         0.4 < . 1:1(0) ack 10001 win 60000
         0.4 window 7000",
    );
}

#[test]
fn several_holes_are_repaired_in_one_round_trip() {
    after(
        ACCEPTED,
        "0.2 write 10000
         0.2 > P. 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000 <sack 1001:2001 3001:4001 5001:10001>
         0.3 > . 1:1001(1000) ack 1
         0.3 > . 2001:3001(1000) ack 1
         0.3 > . 4001:5001(1000) ack 1
         0.4 < . 1:1(0) ack 10001 win 60000",
    );
}

#[test]
fn three_duplicates_repair_a_loss_without_selective_acknowledgements() {
    after(
        PLAIN,
        "0.2 write 10000
         0.2 > P. 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000
         0.3 < . 1:1(0) ack 1 win 60000
         0.3 < . 1:1(0) ack 1 win 60000
         0.3 > . 1:1001(1000) ack 1
         0.4 < . 1:1(0) ack 5001 win 60000
         0.4 > . 5001:6001(1000) ack 1
         0.5 < . 1:1(0) ack 10001 win 60000
         0.5 state Established",
    );
}

#[test]
fn new_data_goes_out_on_the_first_duplicates() {
    // RFC 3042: limited transmit.
    after(
        ACCEPTED,
        "0.2 write 20000
         0.2 > . 1:10001(10000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000 <sack 1001:2001>
         0.3 > . 10001:11001(1000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000 <sack 1001:3001>
         0.3 > . 11001:12001(1000) ack 1
         0.3 < . 1:1(0) ack 1 win 60000 <sack 1001:4001>
         0.3 > . 1:1001(1000) ack 1",
    );
}

#[test]
fn the_timer_repairs_what_nothing_else_does() {
    // The round trip was 100 ms: 100 + 4 * 50, at least 200 of it.
    after(
        PLAIN,
        "0.2 write 3000
         0.2 > P. 1:3001(3000) ack 1
         0.5 > . 1:1001(1000) ack 1
         1.1 > . 1:1001(1000) ack 1
         2.3 > . 1:1001(1000) ack 1
         2.4 < . 1:1(0) ack 1001 win 60000
         2.4 > P. 1001:3001(2000) ack 1
         2.5 < . 1:1(0) ack 3001 win 60000",
    );
}

#[test]
fn a_lost_tail_is_probed_for() {
    // RFC 8985 section 7: twice the round trip, the last segment again.
    after(
        ACCEPTED,
        "0.2 write 5000
         0.2 > P. 1:5001(5000) ack 1
         0.3 < . 1:1(0) ack 3001 win 60000
         0.5 > P. 4001:5001(1000) ack 1
         0.6 < . 1:1(0) ack 3001 win 60000 <sack 4001:5001>
         0.6 > . 3001:4001(1000) ack 1
         0.7 < . 1:1(0) ack 5001 win 60000",
    );
}

#[test]
fn a_path_that_takes_less_gets_smaller_segments() {
    let script = |settings: Settings| {
        play(
            settings,
            "0.0 listen
             0.0 < S 0:0(0) win 60000 <mss 1460>
             0.0 > S. 0:0(0) ack 1
             0.1 < . 1:1(0) ack 1 win 60000
             0.1 accept
             0.2 write 2920
             0.2 > P. 1:2921(2920) ack 1
             0.3 icmp too-big 1040 stale
             0.3 icmp too-big 1040
             0.3 > P. 1:2921(2920) ack 1
             0.4 < . 1:1(0) ack 2921 win 60000",
        );
    };
    script(Settings::default());
    script(Settings { congestion: Algorithm::NewReno, ..Settings::default() });
}

#[test]
fn errors_from_the_path_do_not_end_an_open_connection() {
    after(
        PLAIN,
        "0.2 write 100
         0.2 > P. 1:101(100) ack 1
         0.3 icmp host stale
         0.3 error none
         0.3 icmp host
         0.3 error HostUnreachable
         0.3 state Established
         0.4 < . 1:1(0) ack 101 win 60000
         0.4 write 100
         0.4 > P. 101:201(100) ack 1",
    );
}

// ------------------------------------------------------------------------------------- giving up --

#[test]
fn unacknowledged_data_and_silence_end_a_connection_when_asked_to() {
    after(
        PLAIN,
        "0.2 user-timeout 1000
         0.2 write 100
         0.2 > P. 1:101(100) ack 1
         0.5 > P. 1:101(100) ack 1
         1.1 > P. 1:101(100) ack 1
         2.2 error none
         2.4 read-fails TimedOut
         2.4 close
         2.4 counts 0 0 0",
    );
    after(
        PLAIN,
        "0.1 keepalive
         60.1 > . 0:0(0) ack 1
         60.2 < . 1:1(0) ack 1 win 60000
         120.2 > . 0:0(0) ack 1
         130.2 > . 0:0(0) ack 1
         140.3 error TimedOut",
    );
}

#[test]
fn a_shorter_floor_of_the_timer_can_be_set() {
    let settings = Settings { min_rto: Duration::from_millis(10), ..Settings::default() };
    play(
        settings,
        "0.000 listen
         0.000 < S 0:0(0) win 60000 <mss 1000>
         0.000 > S. 0:0(0) ack 1
         0.010 < . 1:1(0) ack 1 win 60000
         0.010 accept
         0.010 write 100
         0.010 > P. 1:101(100) ack 1
         0.040 > P. 1:101(100) ack 1",
    );
}
