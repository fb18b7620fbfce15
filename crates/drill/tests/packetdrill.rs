//! The shared object, loaded and used as packetdrill does it: by the table that its one function fills in.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod object;

use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use netyard_wire::tcp::Flags;

use object::{Connection, LOCAL, Object, REMOTE};

/// Milliseconds, as the object counts time.
const MS: i64 = 1000;
/// What a time may be off: the stack's own clock has ticks, and looking at the time moves it.
const TOLERANCE: i64 = 4 * MS;

#[track_caller]
fn assert_about(found: i64, wanted: i64) {
    assert!((found - wanted).abs() <= TOLERANCE, "at {found} us, wanted {wanted} us");
}

/// A listener on [`LOCAL`].
fn listen(object: &Object) -> i32 {
    let listener = object.socket(libc::SOCK_STREAM).unwrap();
    object.bind(listener, LOCAL).unwrap();
    object.listen(listener, 1).unwrap();
    listener
}

/// Opens a connection from [`REMOTE`], and takes it.
fn accepted(object: &Object) -> (i32, Connection) {
    let listener = listen(object);
    let mut peer = Connection::new();
    peer.send(object, Flags::SYN, b"");
    let answer = peer.receive(object);
    assert_eq!(answer.flags, Flags::SYN | Flags::ACK);
    peer.send(object, Flags::ACK, b"");
    let (accepted, from) = object.accept(listener).unwrap();
    assert_eq!(from, REMOTE);
    (accepted, peer)
}

#[test]
fn a_peer_connects_asks_and_is_answered() {
    let object = Object::load("");
    let (socket, mut peer) = accepted(&object);
    peer.send(&object, Flags::ACK | Flags::PSH, b"question");
    assert_eq!(object.queued(socket), 8);
    assert_eq!(object.read(socket, 100).unwrap(), b"question");
    assert_eq!(peer.receive(&object).flags, Flags::ACK);

    assert_eq!(object.write(socket, b"the answer").unwrap(), 10);
    let answer = peer.receive(&object);
    assert_eq!(answer.payload, b"the answer");
    peer.send(&object, Flags::ACK, b"");

    object.close(socket).unwrap();
    assert_eq!(peer.receive(&object).flags, Flags::FIN | Flags::ACK);
    peer.send(&object, Flags::FIN | Flags::ACK, b"");
    assert_eq!(peer.receive(&object).flags, Flags::ACK);
    assert_eq!(object.read(socket, 1), Err(libc::EBADF), "it is closed");
    assert_eq!(object.receive(), None, "everything is said");
}

#[test]
fn long_answers_come_in_packets_that_the_path_takes() {
    let object = Object::load("mtu=1000");
    let (socket, mut peer) = accepted(&object);
    assert_eq!(object.write(socket, &[7; 4000]).unwrap(), 4000);
    let mut lengths = Vec::new();
    while lengths.iter().sum::<usize>() < 4000 {
        lengths.push(peer.receive(&object).payload.len());
    }
    assert_eq!(lengths, [960, 960, 960, 960, 160]);
}

#[test]
fn time_passes_only_when_it_is_let() {
    let object = Object::load("");
    let start = object.time();
    object.sleep(5_000_000);
    assert_about(object.time() - start, 5_000_000);

    // What is not acknowledged is sent again, much later, and at once.
    let (socket, mut peer) = accepted(&object);
    object.write(socket, b"lost").unwrap();
    let first = peer.receive(&object);
    let second = peer.receive(&object);
    assert_eq!((second.seq, second.payload), (first.seq, first.payload));
    assert!((200 * MS..400 * MS).contains(&(second.at - first.at)), "{}", second.at - first.at);
    assert_eq!(object.time() / MS, second.at / MS, "the time is that of the packet");
}

#[test]
fn calls_that_wait_end_at_the_time_of_what_they_wait_for() {
    let object = Object::load("");
    let listener = listen(&object);
    let waiting = AtomicI32::new(0);
    thread::scope(|scope| {
        let calls = scope.spawn(|| {
            // SAFETY: it has no preconditions.
            waiting.store(unsafe { libc::gettid() }, Ordering::Release);
            let (socket, _) = object.accept(listener).unwrap();
            let accepted = object.time();
            let read = object.read(socket, 100).unwrap();
            (accepted, read, object.time())
        });
        object::await_sleep(&waiting);

        let start = object.time();
        object.sleep(100_000);
        let mut peer = Connection::new();
        peer.send(&object, Flags::SYN, b"");
        peer.receive(&object);
        peer.send(&object, Flags::ACK, b"");
        object::await_sleep(&waiting);
        object.sleep(200_000);
        peer.send(&object, Flags::ACK | Flags::PSH, b"hello");
        object.sleep(300_000);

        let (accepted, read, ended) = calls.join().unwrap();
        assert_about(accepted - start, 100 * MS);
        assert_eq!(read, b"hello");
        assert_about(ended - start, 300 * MS);
    });
}

#[test]
fn a_connect_that_does_not_wait_tells_its_end_when_asked() {
    let object = Object::load("");
    let socket = object.socket(libc::SOCK_STREAM | libc::SOCK_NONBLOCK).unwrap();
    assert_eq!(object.connect(socket, REMOTE), Err(libc::EINPROGRESS));
    assert_eq!(object.connect(socket, REMOTE), Err(libc::EALREADY));
    assert_eq!(object.poll(socket, libc::POLLOUT, 10), 0);

    let mut peer = Connection::new();
    assert_eq!(peer.receive(&object).flags, Flags::SYN);
    peer.send(&object, Flags::RST | Flags::ACK, b"");
    assert_eq!(object.poll(socket, libc::POLLOUT, -1) & libc::POLLERR, libc::POLLERR);
    assert_eq!(object.error(socket), libc::ECONNREFUSED);
    assert_eq!(object.error(socket), 0, "told once");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_number() {
    let object = Object::load("");
    let socket = object.socket(libc::SOCK_STREAM).unwrap();
    assert_eq!(object.write(socket, b"x"), Err(libc::EPIPE), "nobody is there");
    assert_eq!(object.read(socket, 1), Err(libc::ENOTCONN));
    assert_eq!(object.read_into_null(socket), Err(libc::EFAULT));
    assert_eq!(object.accept(socket), Err(libc::EINVAL));
    // Nobody comes, and the one thread that could let somebody come waits.
    let idle = object.socket(libc::SOCK_DGRAM).unwrap();
    assert_eq!(object.read(idle, 1), Err(libc::EDEADLK));
    let other = listen(&object);
    let third = object.socket(libc::SOCK_STREAM).unwrap();
    assert_eq!(object.bind(third, LOCAL), Err(libc::EADDRINUSE));
    object.close(other).unwrap();
    object.bind(third, LOCAL).unwrap();
    assert_eq!(object.bind(socket + 1000, LOCAL), Err(libc::EBADF));
}

#[test]
fn datagrams_go_both_ways() {
    let object = Object::load("");
    let socket = object.socket(libc::SOCK_DGRAM).unwrap();
    object.bind(socket, LOCAL).unwrap();
    object.send_to(socket, b"out", REMOTE).unwrap();
    let (source, destination, payload) = object.receive_datagram();
    assert_eq!((source, destination, payload), (LOCAL, REMOTE, b"out".to_vec()));
    object.send_datagram(REMOTE, LOCAL, b"back");
    assert_eq!(object.read(socket, 100).unwrap(), b"back");
}
