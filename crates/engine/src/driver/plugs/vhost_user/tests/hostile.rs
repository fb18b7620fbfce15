//! Guests and monitors that lie.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::process::{self, Command};
use std::time::Duration;

use netyard_testbed::{isolate, peer, run, wait_for};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use virtio_bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT as ELSEWHERE, VRING_DESC_F_NEXT as NEXT, VRING_DESC_F_WRITE as WRITE,
};

use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;

use super::bench::{AVAILABLE_AFTER, Bench, Guest, MEMORY, USED_AFTER, datagram, descriptors};
use crate::driver::plugs::vhost_user::backend::{FROM_GUEST, TO_GUEST};

/// Descriptors from number 0 on: address, bytes, flags, next.
type Chain = &'static [(u64, u32, u32, u16)];

const AT: u64 = 0x10_0000;

/// The list of the ring itself.
const RING: u64 = descriptors(FROM_GUEST);

#[test]
fn a_chain_that_is_wrong_is_given_back_and_its_frame_counted() {
    let chains: &[(&str, Chain)] = &[
        ("endless-chain", &[(AT, 64, NEXT, 0)]),
        ("endless-chain", &[(AT, 64, NEXT, 1), (AT, 64, NEXT, 0)]),
        ("endless-chain", &[(AT, 64, NEXT, 256)]),
        ("endless-chain", &[(AT, 64, NEXT, u16::MAX)]),
        ("endless-chain", &[(AT, u32::MAX, NEXT, 1), (AT, u32::MAX, 0, 0)]),
        ("wrong-direction", &[(AT, 64, WRITE, 0)]),
        ("wrong-direction", &[(AT, 64, NEXT, 1), (AT, 64, WRITE, 0)]),
        ("oversized", &[(AT, u32::MAX, 0, 0)]),
        ("oversized", &[(AT, 0x8000, NEXT, 1), (AT, 0x8000, NEXT, 2), (AT, 0x8000, 0, 0)]),
        ("outside-memory", &[(MEMORY - 32, 64, 0, 0)]),
        ("outside-memory", &[(MEMORY, 64, 0, 0)]),
        ("outside-memory", &[(u64::MAX - 31, 64, 0, 0)]),
        ("truncated", &[(AT, 0, 0, 0)]),
        ("truncated", &[(AT, 11, 0, 0)]),
        // Lists elsewhere: not whole, too long, outside, in each other, empty.
        ("endless-chain", &[(AT, 24, ELSEWHERE, 0)]),
        ("endless-chain", &[(AT, u32::MAX - 15, ELSEWHERE, 0)]),
        ("endless-chain", &[(MEMORY, 64, ELSEWHERE, 0)]),
        ("endless-chain", &[(RING, 16, ELSEWHERE, 0)]),
        ("endless-chain", &[(AT, 0, ELSEWHERE, 0)]),
        ("endless-chain", &[(AT, 64, NEXT, 1), (AT, 0, ELSEWHERE | NEXT, 0)]),
    ];
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    for (expected, chain) in chains {
        for (number, &(at, len, flags, next)) in (0..).zip(*chain) {
            guest.describe(FROM_GUEST, number, at, len, flags, next);
        }
        guest.offer(FROM_GUEST, 0);
        guest.kick(FROM_GUEST);
        assert_eq!(bench.receive(), [Err(*expected)], "{chain:?}");
        assert_eq!(guest.back(FROM_GUEST), [(0, 0)]);
        guest.send(&datagram(100, None), 50);
        assert_eq!(bench.receive(), [Ok(datagram(100, None))], "after {chain:?}");
        assert_eq!(guest.back(FROM_GUEST), [(0, 0)]);
    }
}

#[test]
fn a_long_list_of_nothing_is_not_read_to_its_end() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    for number in 0..u16::MAX {
        guest.describe_at(0x20_0000, number, AT, 0, NEXT, number + 1);
    }
    guest.describe(FROM_GUEST, 0, 0x20_0000, 16 * u32::from(u16::MAX), ELSEWHERE, 0);
    guest.offer(FROM_GUEST, 0);
    guest.kick(FROM_GUEST);
    assert_eq!(bench.receive(), [Err("scattered")]);
}

#[test]
fn buffers_that_hold_no_frame_cost_it_alone() {
    let chains: &[Chain] = &[
        &[(AT, 4_096, 0, 0)],
        &[(AT, 4_096, WRITE | NEXT, 0)],
        &[(MEMORY - 64, 4_096, WRITE, 0)],
        &[(u64::MAX, 4_096, WRITE, 0)],
        &[(AT, 0, WRITE, 0)],
        &[(AT, 0, ELSEWHERE, 0)],
        &[(AT, 64, WRITE | NEXT, 1), (AT, 4_096, 0, 0)],
    ];
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    for (count, chain) in (1..).zip(chains) {
        for (number, &(at, len, flags, next)) in (0..).zip(*chain) {
            guest.describe(TO_GUEST, number, at, len, flags, next);
        }
        guest.offer(TO_GUEST, 0);
        assert!(!bench.transmit(&datagram(1_000, None)), "{chain:?}");
        assert_eq!(bench.counts().dropped, count);
        assert_eq!(guest.back(TO_GUEST), [(0, 0)], "{chain:?}");
        guest.lay_out(2, 2_048);
        assert!(bench.transmit(&datagram(1_000, None)));
        assert_eq!(guest.collect(), [datagram(1_000, None)]);
        // The other one goes, too, before the next chain.
        assert!(bench.transmit(&datagram(100, None)));
        assert_eq!(guest.collect(), [datagram(100, None)]);
    }
    assert!(bench.ended().is_empty());
}

#[test]
fn a_ring_that_lies_ends_the_connection_and_the_next_one_is_served() {
    let lies: &[fn(&mut Guest)] = &[
        // More chains than there is room for.
        |guest| guest.lie(FROM_GUEST, 257),
        |guest| guest.lie(FROM_GUEST, u16::MAX),
        // Descriptors that do not exist.
        |guest| guest.offer(FROM_GUEST, 256),
        |guest| guest.offer(FROM_GUEST, u16::MAX),
    ];
    let mut bench = Bench::new();
    for lie in lies {
        let mut guest = Guest::plug_in(&mut bench, !0);
        lie(&mut guest);
        guest.kick(FROM_GUEST);
        assert_eq!(bench.ended(), ["vhost-user"]);
        assert!(!bench.transmit(&datagram(100, None)));
    }
    let lies: &[fn(&mut Guest)] =
        &[|guest| guest.lie(TO_GUEST, 300), |guest| guest.offer(TO_GUEST, 256)];
    for lie in lies {
        let mut guest = Guest::plug_in(&mut bench, !0);
        lie(&mut guest);
        assert!(!bench.transmit(&datagram(100, None)));
        assert!(!bench.transmit(&datagram(100, None)));
        assert_eq!(bench.ended(), ["vhost-user"]);
    }
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.send(&datagram(100, None), 1_000);
    assert!(bench.receive().contains(&Ok(datagram(100, None))));
    assert!(bench.is_alive());
}

#[test]
fn memory_that_is_taken_away_ends_the_connection_alone() {
    let mut bench = Bench::new();
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.lay_out(4, 2_048);
    guest.take_memory_away();
    bench.transmit(&datagram(100, None));
    assert_eq!(guest.collect_nothing(), 1, "it was told of a frame before that was seen");
    bench.pump();
    assert!(!bench.transmit(&datagram(100, None)));
    assert_eq!(bench.ended(), ["vhost-user"]);
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.send(&datagram(100, None), 1_000);
    assert_eq!(bench.receive(), [Ok(datagram(100, None))]);
    assert!(bench.is_alive());
}

/// Rings and descriptors of chance, from seeds that a failure names.
#[test]
fn rings_of_chance_are_survived() {
    let mut bench = Bench::new();
    for seed in 0..60 {
        let mut random = SmallRng::seed_from_u64(seed);
        let features = random.random::<u64>() | 1 << 32;
        let mut guest = Guest::plug_in(&mut bench, features);
        for _ in 0..20 {
            for ring in [TO_GUEST, FROM_GUEST] {
                for number in 0..256 {
                    // Near enough to what is true that some of it is believed.
                    let at = random.random_range(0..MEMORY + 0x1_0000);
                    let len = random.random::<u32>() >> random.random_range(0..32);
                    let flags = random.random_range(0..8);
                    let next = random.random_range(0..260);
                    guest.describe(ring, number, at, len, flags, next);
                }
                let mut words = [0; 0x400];
                random.fill_bytes(&mut words);
                words[..4].fill(0);
                for word in words.as_chunks_mut::<2>().0 {
                    if word[1] > 4 {
                        word[1] = 0;
                    }
                }
                guest.write(descriptors(ring) + AVAILABLE_AFTER + 4, &words[4..]);
                random.fill_bytes(&mut words);
                guest.write(descriptors(ring) + USED_AFTER, &words);
                guest.lie(ring, random.random_range(0..20));
                guest.kick(ring);
            }
            bench.transmit(&datagram(random.random_range(0..9_000), None));
            bench.receive();
        }
        guest.unplug(&mut bench);
        assert!(bench.is_alive(), "seed {seed}");
    }
    let mut guest = Guest::plug_in(&mut bench, !0);
    guest.send(&datagram(100, None), 1_000);
    assert!(bench.receive().contains(&Ok(datagram(100, None))));
}

/// A message as it is sent: its kind, flags, how long it is, and its bytes.
fn message(kind: u32, len: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_ne_bytes()[..], &1_u32.to_ne_bytes(), &len.to_ne_bytes(), bytes].concat()
}

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;

#[test]
fn rings_are_enabled_before_anything_is_agreed_to_as_qemu_does() {
    let mut bench = Bench::new();
    let mut monitor = UnixStream::connect(bench.path()).unwrap();
    let ring = [1_u32.to_ne_bytes(), 1_u32.to_ne_bytes()].concat();
    monitor.write_all(&message(GET_FEATURES, 0, &[])).unwrap();
    monitor.write_all(&message(SET_VRING_ENABLE, 8, &ring)).unwrap();
    // Answers are wanted from now on, where a message says so.
    monitor.write_all(&message(SET_PROTOCOL_FEATURES, 8, &8_u64.to_ne_bytes())).unwrap();
    let mut enable = message(SET_VRING_ENABLE, 8, &ring);
    enable[4] |= 8;
    monitor.write_all(&enable).unwrap();
    assert!(bench.receive().is_empty());
    let mut answers = [0; 40];
    monitor.read_exact(&mut answers).unwrap();
    let (features, enabled) = answers.split_at(20);
    assert_eq!(features[..4], GET_FEATURES.to_ne_bytes());
    let mut expected = message(SET_VRING_ENABLE, 8, &[0; 8]);
    expected[4] |= 4;
    assert_eq!(enabled, expected);
    // There is no such ring.
    monitor.write_all(&message(SET_VRING_ENABLE, 8, &[7; 8])).unwrap();
    assert_eq!(bench.ended(), ["vhost-user"]);
}

#[test]
fn half_a_message_is_waited_for_without_waiting() {
    let mut bench = Bench::new();
    let mut monitor = UnixStream::connect(bench.path()).unwrap();
    let whole = message(SET_FEATURES, 8, &(1_u64 << 32).to_ne_bytes());
    for byte in whole.iter().chain(&message(GET_FEATURES, 0, &[])) {
        assert!(bench.receive().is_empty());
        monitor.write_all(&[*byte]).unwrap();
    }
    bench.pump();
    let mut answer = [0; 20];
    monitor.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], GET_FEATURES.to_ne_bytes());
}

#[test]
fn a_front_end_that_ends_within_a_message_makes_room_for_the_next() {
    let mut bench = Bench::new();
    let whole = message(SET_FEATURES, 8, &(1_u64 << 32).to_ne_bytes());
    for (len, stays) in [(1, false), (11, true), (12, false), (19, true)] {
        let mut monitor = UnixStream::connect(bench.path()).unwrap();
        let mut next = UnixStream::connect(bench.path()).unwrap();
        next.write_all(&message(GET_FEATURES, 0, &[])).unwrap();
        next.set_nonblocking(true).unwrap();
        monitor.write_all(&whole[..len]).unwrap();
        assert!(bench.receive().is_empty());
        // It is gone, or has its end open and sends nothing more.
        let _open = if stays {
            monitor.shutdown(Shutdown::Write).unwrap();
            Some(monitor)
        } else {
            drop(monitor);
            None
        };
        wait_for("an answer for the next one", Duration::from_secs(30), || {
            assert!(bench.ended().is_empty(), "an end is no fault");
            next.read_exact(&mut [0; 20]).ok()
        });
    }
    // What came whole before the end is heeded.
    let mut monitor = UnixStream::connect(bench.path()).unwrap();
    monitor.write_all(&[whole, message(GET_FEATURES, 0, &[])].concat()).unwrap();
    monitor.shutdown(Shutdown::Write).unwrap();
    monitor.set_nonblocking(true).unwrap();
    wait_for("an answer before the end", Duration::from_secs(30), || {
        assert!(bench.ended().is_empty(), "an end is no fault");
        monitor.read_exact(&mut [0; 20]).ok()
    });
    assert!(bench.is_alive());
}

#[test]
fn a_message_that_is_wrong_ends_the_connection() {
    let wrong = [
        message(99, 0, &[]),
        message(GET_FEATURES, 5_000, &[]),
        message(GET_FEATURES, u32::MAX, &[]),
        message(GET_FEATURES, 8, &[0; 8]),
        // What was never offered.
        message(SET_FEATURES, 8, &u64::MAX.to_ne_bytes()),
        message(SET_MEM_TABLE, 8, &[0; 8]),
        message(SET_MEM_TABLE, 8 + 32, &[1; 40]),
        message(SET_VRING_NUM, 8, &[[0_u8; 4], 300_u32.to_ne_bytes()].concat()),
        message(SET_VRING_NUM, 8, &[2_u32.to_ne_bytes(), 256_u32.to_ne_bytes()].concat()),
        message(SET_VRING_KICK, 8, &0_u64.to_ne_bytes()),
        message(SET_VRING_KICK, 8, &0x100_u64.to_ne_bytes()),
    ];
    let mut bench = Bench::new();
    for bytes in wrong {
        let mut monitor = UnixStream::connect(bench.path()).unwrap();
        monitor.write_all(&bytes).unwrap();
        assert_eq!(bench.ended(), ["vhost-user"], "{bytes:?}");
        assert_eq!(monitor.read(&mut [0; 100]).unwrap_or(0), 0);
    }
    assert!(bench.is_alive());
}

#[test]
fn a_front_end_that_reads_no_answers_is_not_waited_for() {
    let mut bench = Bench::new();
    let mut monitor = UnixStream::connect(bench.path()).unwrap();
    monitor.set_nonblocking(true).unwrap();
    let question = message(GET_FEATURES, 0, &[]);
    wait_for("the end of the connection", Duration::from_secs(30), || {
        let asked = monitor.write(&question);
        let ended = bench.ended();
        assert!(asked.is_ok() || !ended.is_empty(), "{asked:?}");
        (ended == ["vhost-user"]).then_some(())
    });
    assert!(bench.is_alive());
}

#[test]
fn files_without_end_end_the_connection() {
    let mut bench = Bench::new();
    let nothing = File::open("/dev/null").unwrap();
    for count in [2, 9, 33, 100] {
        let monitor = UnixStream::connect(bench.path()).unwrap();
        let bytes = message(SET_VRING_CALL, 8, &0_u64.to_ne_bytes());
        monitor.send_with_fds(&[&bytes[..]], &vec![nothing.as_raw_fd(); count]).unwrap();
        assert_eq!(bench.ended(), ["vhost-user"], "{count} files");
        assert_eq!((&monitor).read(&mut [0; 100]).unwrap_or(0), 0);
    }
    assert!(bench.is_alive());
}

#[test]
fn without_descriptors_front_ends_are_turned_away_and_can_come_again() {
    isolate(|| {
        let mut bench = Bench::new();
        let this = process::id().to_string();
        run(Command::new(peer("prlimit")).args(["--pid", &this, "--nofile=128:128"]));
        let use_all_up = || std::iter::from_fn(|| File::open("/dev/null").ok()).collect::<Vec<_>>();
        let mut two = [(); 2].map(|()| UnixStream::connect(bench.path()).unwrap());
        let all = use_all_up();
        bench.pump();
        for monitor in &mut two {
            assert_eq!(monitor.read(&mut [0; 100]).unwrap_or(0), 0);
        }
        drop(all);

        // One that is in brings what cannot be taken.
        let monitor = UnixStream::connect(bench.path()).unwrap();
        bench.pump();
        let all = use_all_up();
        let bytes = message(SET_VRING_CALL, 8, &0_u64.to_ne_bytes());
        monitor.send_with_fds(&[&bytes[..]], &[monitor.as_raw_fd()]).unwrap();
        assert_eq!(bench.ended(), ["vhost-user"]);
        drop(all);

        let mut guest = Guest::plug_in(&mut bench, !0);
        guest.send(&datagram(100, None), 1_000);
        assert_eq!(bench.receive(), [Ok(datagram(100, None))]);
        assert!(bench.is_alive());
    });
}

#[test]
fn a_front_end_that_is_killed_is_no_fault() {
    let mut bench = Bench::new();
    let mut monitor = UnixStream::connect(bench.path()).unwrap();
    monitor.write_all(&message(GET_FEATURES, 0, &[])).unwrap();
    bench.pump();
    // It has not read the answer.
    drop(monitor);
    assert!(bench.ended().is_empty());
    assert!(bench.is_alive());
}
