//! A front end and a guest driver, by the words of the protocol, against plugs as the driver has them.

mod bench;
mod hostile;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use netyard_wire::{Checksum, Features};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT};

use self::bench::{Bench, Guest, datagram};
use super::backend::{FROM_GUEST, TO_GUEST};
use crate::control::Traffic;

#[test]
fn frames_pass_both_ways_whole_and_are_counted() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    let sent = datagram(60_000, Some(1_000));
    guest.lay_out(64, 2_048);
    assert!(bench.transmit(&sent));
    assert_eq!(guest.collect(), std::slice::from_ref(&sent));
    guest.send(&sent, 4_096);
    assert_eq!(bench.receive(), [Ok(sent.clone())]);
    assert_eq!(guest.back(FROM_GUEST), [(0, 0)]);
    let once = Traffic { frames: 1, bytes: u64::try_from(sent.bytes.len()).unwrap() };
    let counts = bench.counts();
    assert_eq!((counts.guest_to_host, counts.host_to_guest, counts.dropped), (once, once, 0));
}

#[test]
fn a_guest_gets_no_more_than_it_agreed_to() {
    let mut bench = Bench::new();
    assert!(!bench.transmit(&datagram(100, None)), "nobody is there");
    let bits = |bits: &[u32]| bits.iter().fold(1 << 32, |all, bit| all | 1 << bit);
    for (agreed, whole, partial) in [
        (bits(&[VIRTIO_NET_F_MRG_RXBUF]), false, false),
        (bits(&[VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_GUEST_CSUM]), false, true),
        (bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4]), false, true),
        (!0, true, true),
    ] {
        let mut guest = Guest::plug_in(&mut bench, agreed);
        guest.lay_out(64, 2_048);
        assert!(bench.transmit(&datagram(5_000, Some(1_000))));
        let got = guest.collect();
        assert_eq!(got.len(), if whole { 1 } else { 5 });
        for frame in got {
            assert_eq!(frame.offload.gso.is_some(), whole);
            assert_eq!(matches!(frame.offload.checksum, Checksum::Partial { .. }), partial);
        }
        guest.unplug(&mut bench);
        assert!(!bench.transmit(&datagram(100, None)));
    }
}

#[test]
fn what_a_guest_agreed_to_is_what_the_plug_takes() {
    let mut bench = Bench::new();
    let guest = Guest::plug_in(&mut bench, !0);
    assert_eq!(bench.features(), Features::ALL);
    guest.unplug(&mut bench);
    let guest = Guest::plug_in(&mut bench, 1 << 32 | 1 << VIRTIO_NET_F_GUEST_CSUM);
    assert_eq!(bench.features(), Features::CSUM);
    guest.unplug(&mut bench);
    // Headers of guests before virtio 1.0 are others.
    let mut old = Guest::plug_in(&mut bench, 1 << VIRTIO_NET_F_GUEST_CSUM);
    old.lay_out(4, 2_048);
    assert!(!bench.transmit(&datagram(100, None)));
}

#[test]
fn buffers_are_put_together_only_where_that_is_agreed() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.lay_out(10, 512);
    assert!(bench.transmit(&datagram(2_000, None)));
    // 12 bytes of header, 42 of the frame's own: five buffers.
    assert_eq!(guest.merged(), 5);
    assert_eq!(guest.collect(), [datagram(2_000, None)]);
    guest.unplug(&mut bench);

    let mut guest = Guest::plug_in(&mut bench, !(1 << VIRTIO_NET_F_MRG_RXBUF));
    guest.lay_out(10, 512);
    assert!(!bench.transmit(&datagram(2_000, None)), "it fits in none");
    assert!(bench.transmit(&datagram(400, None)), "none was used up");
    assert_eq!(guest.merged(), 1);
    assert_eq!(guest.collect(), [datagram(400, None)]);
    assert_eq!(bench.counts().dropped, 1);
}

#[test]
fn frames_wait_until_the_guest_has_room() {
    for features in [!0, !(1 << VIRTIO_RING_F_EVENT_IDX)] {
        let mut bench = Bench::new();
        let mut guest = Guest::plug_in(&mut bench, features);
        guest.lay_out(1, 2_048);
        for len in [100, 200, 3_000] {
            assert!(bench.transmit(&datagram(len, None)));
        }
        assert_eq!(guest.collect(), [datagram(100, None)]);
        // The guest was asked to tell of the next buffer.
        assert!(guest.is_wanted(TO_GUEST));
        guest.offer_again(0);
        guest.kick(TO_GUEST);
        bench.pump();
        assert_eq!(guest.collect(), [datagram(200, None)]);
        guest.lay_out(4, 2_048);
        guest.kick(TO_GUEST);
        bench.pump();
        assert_eq!(guest.collect(), [datagram(3_000, None)]);
        assert_eq!(bench.counts().dropped, 0);
    }
}

#[test]
fn a_guest_is_woken_when_it_wants_to_be() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.lay_out(8, 2_048);
    guest.wake_after(TO_GUEST, 2);
    for number in 0..4 {
        assert!(bench.transmit(&datagram(100, None)));
        assert_eq!(guest.take_call(TO_GUEST), u64::from(number == 2), "at frame {number}");
    }
    // It gets its own buffers back and is not woken for them.
    guest.wake_after(FROM_GUEST, 100);
    guest.send(&datagram(100, None), 2_048);
    assert_eq!(bench.receive().len(), 1);
    assert_eq!(guest.take_call(FROM_GUEST), 0);
    assert_eq!(guest.back(FROM_GUEST).len(), 1);
    guest.unplug(&mut bench);

    let mut guest = Guest::plug_in(&mut bench, !(1 << VIRTIO_RING_F_EVENT_IDX));
    guest.lay_out(8, 2_048);
    for silent in [false, true, false] {
        guest.be_silent(TO_GUEST, silent);
        assert!(bench.transmit(&datagram(100, None)));
        assert_eq!(guest.take_call(TO_GUEST), u64::from(!silent));
    }
}

#[test]
fn many_frames_of_one_turn_wake_a_guest_once() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.lay_out(64, 2_048);
    guest.wake_after(TO_GUEST, 0);
    for _ in 0..20 {
        assert!(bench.transmit_later(&datagram(100, None)));
    }
    assert!(guest.back(TO_GUEST).is_empty());
    bench.pump();
    assert_eq!(guest.collect().len(), 20);
    assert_eq!(guest.take_call(TO_GUEST), 1);
}

#[test]
fn lists_of_buffers_elsewhere_are_read() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    let frame = datagram(3_000, None);
    let bytes = [&frame.offload.encode()[..], &frame.bytes].concat();
    guest.write(0x18_0000, &bytes);
    let (first, rest) = (12, u32::try_from(bytes.len()).unwrap() - 12);
    guest.describe_at(0x17_0000, 0, 0x18_0000, first, 1, 1);
    guest.describe_at(0x17_0000, 1, 0x18_0000 + u64::from(first), rest, 0, 0);
    guest.describe(FROM_GUEST, 7, 0x17_0000, 32, VRING_DESC_F_INDIRECT, 0);
    guest.offer(FROM_GUEST, 7);
    guest.kick(FROM_GUEST);
    assert_eq!(bench.receive(), [Ok(frame)]);
    assert_eq!(guest.back(FROM_GUEST), [(7, 0)]);
}

#[test]
fn the_memory_is_replaced_while_frames_pass() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.lay_out(8, 2_048);
    for round in 0..5 {
        let frame = datagram(1_000 + round, None);
        assert!(bench.transmit(&frame));
        assert_eq!(guest.collect(), std::slice::from_ref(&frame));
        guest.send(&frame, 2_048);
        assert_eq!(bench.receive(), [Ok(frame)]);
        guest.back(FROM_GUEST);
        // The same bytes by another file, at another address for the front end.
        guest.replace_memory(&mut bench);
        guest.lay_out(1, 2_048);
    }
    assert!(bench.ended().is_empty());
}

#[test]
fn a_ring_that_was_stopped_goes_on_where_it_was() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.lay_out(4, 2_048);
    for _ in 0..3 {
        assert!(bench.transmit(&datagram(100, None)));
        assert_eq!(guest.collect().len(), 1);
        guest.stop_and_start(&mut bench);
        guest.send(&datagram(100, None), 2_048);
        assert_eq!(bench.receive(), [Ok(datagram(100, None))]);
        assert_eq!(guest.back(FROM_GUEST).len(), 1);
    }
}

#[test]
fn one_front_end_after_the_other_comes_by_a_path() {
    let mut bench = Bench::new();
    for round in 0..4 {
        let guest = Guest::plug_in(&mut bench, !0);
        // Another one waits, and sends meanwhile.
        let path = bench.path();
        let frame = datagram(500 + round, None);
        let early = UnixStream::connect(path).unwrap();
        let mut next = bench.during(|| {
            drop(guest);
            Guest::set_up(early, !0)
        });
        next.send(&frame, 2_048);
        next.lay_out(4, 2_048);
        assert_eq!(bench.receive(), [Ok(frame.clone())]);
        assert!(bench.transmit(&frame));
        assert_eq!(next.collect(), [frame]);
        next.unplug(&mut bench);
    }
    assert!(bench.ended().is_empty(), "an end is no fault");
    assert!(bench.is_alive());
}

#[test]
fn what_a_guest_has_got_is_told_before_its_ring_is_switched_off() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.lay_out(4, 2_048);
    guest.switch_off_and_on(TO_GUEST);
    // The frame comes in the turn in which the messages are read, and before them.
    bench.notice(Duration::ZERO);
    assert!(bench.transmit_later(&datagram(100, None)));
    bench.pump();
    assert_eq!(guest.collect(), [datagram(100, None)]);
    assert!(bench.transmit(&datagram(200, None)));
    assert_eq!(guest.collect(), [datagram(200, None)]);
}

#[test]
fn a_frame_that_all_buffers_do_not_hold_is_dropped() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.lay_out(bench::ENTRIES, 64);
    assert!(!bench.transmit(&datagram(60_000, Some(1_000))));
    assert_eq!(bench.counts().dropped, 1);
    assert!(bench.transmit(&datagram(400, None)), "none was used up");
    assert_eq!(guest.collect(), [datagram(400, None)]);
}

#[test]
fn what_waits_for_a_guest_is_for_no_other() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    for _ in 0..3 {
        assert!(bench.transmit(&datagram(5_000, Some(1_000))));
    }
    // Another driver takes the device over, and takes less.
    guest.agree_to(&mut bench, 1 << 32 | 1 << VIRTIO_NET_F_MRG_RXBUF);
    assert_eq!(bench.counts().dropped, 3);
    guest.lay_out(8, 2_048);
    assert!(bench.transmit(&datagram(100, None)));
    assert_eq!(guest.collect().len(), 1);
    guest.unplug(&mut bench);

    let guest = Guest::plug_in(&mut bench, 1 << 32);
    assert!(bench.transmit(&datagram(200, None)));
    guest.unplug(&mut bench);
    assert_eq!(bench.counts().dropped, 4);
    let mut guest = Guest::plug_in(&mut bench, 1 << 32);
    guest.lay_out(4, 2_048);
    assert!(bench.transmit(&datagram(300, None)));
    assert_eq!(guest.collect().iter().map(|frame| frame.bytes.len()).collect::<Vec<_>>(), [342]);
}
