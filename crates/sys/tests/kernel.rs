//! What is believed of the kernel, asked of the kernel that is here. A failure names the belief; where a kernel may
//! lack something, what is done in its place is looked at instead.
//!
//! What TAPs take and leave is in `crates/engine/tests/netns_segment.rs`: it needs a namespace.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use netyard_sys::datagram::Datagram;
use netyard_sys::poll::{Event, Events, Interest, Poll};
use netyard_sys::segments;
use netyard_sys::splice::Pipe;
use netyard_sys::stream::Stream;
use netyard_sys::wait;

const LONG: Option<Duration> = Some(Duration::from_secs(20));

/// A stream of ours and its far end.
fn stream() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (Stream::adopt(listener.accept().unwrap().0.into()).unwrap(), far)
}

/// Waits until so many bytes are in the receive queue.
fn wait_for_bytes(stream: &Stream, count: usize) {
    let mut buffer = vec![0; count];
    while receive(stream.as_fd(), &mut buffer, libc::MSG_PEEK).unwrap_or(0) < count {
        wait::readable([stream.as_fd()], LONG).unwrap();
    }
}

fn receive(fd: BorrowedFd<'_>, into: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    let (to, len) = (into.as_mut_ptr().cast(), into.len());
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the pointer and length describe `into`, which outlives the call and is ours to write.
    let got = unsafe { libc::recv(fd.as_raw_fd(), to, len, flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

fn set(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: i32) -> io::Result<()> {
    let (value, len) = (&raw const value, libc::socklen_t::try_from(size_of::<i32>()).unwrap());
    // SAFETY: the option is an int, which outlives the call.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value.cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn a_peek_offset_moves_on_by_what_was_peeked_and_back_by_what_is_taken() {
    let (mut ours, mut far) = stream();
    far.write_all(b"0123456789").unwrap();
    wait_for_bytes(&ours, 10);
    let mut three = [0; 3];
    // Linux 6.9 and later.
    if set(ours.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, 2).is_ok() {
        for (expected, what) in [(b"234", "begins at the offset"), (b"567", "moves it on")] {
            receive(ours.as_fd(), &mut three, libc::MSG_PEEK).unwrap();
            assert_eq!(&three, expected, "SO_PEEK_OFF of TCP: a peek {what}");
        }
        receive(ours.as_fd(), &mut three[..1], 0).unwrap();
        receive(ours.as_fd(), &mut three[..2], libc::MSG_PEEK).unwrap();
        assert_eq!(&three[..2], b"89", "SO_PEEK_OFF of TCP: it counts from what is left");
        set(ours.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1).unwrap();
    } else {
        receive(ours.as_fd(), &mut three[..1], 0).unwrap();
    }
    // With or without it.
    for (offset, expected) in [(1, b"234"), (4, b"567"), (0, b"123")] {
        assert_eq!(ours.peek(offset, &mut three).unwrap(), 3);
        assert_eq!(&three, expected, "peeking at {offset}");
    }
    assert_eq!(ours.discard(5).unwrap(), 5);
    assert_eq!(ours.peek(1, &mut three).unwrap(), 3);
    assert_eq!(&three, b"789", "peeking after bytes were thrown away");
    let nothing = ours.peek(4, &mut three).unwrap_err().kind();
    assert_eq!(nothing, io::ErrorKind::WouldBlock, "peeking behind all that is there");
}

#[test]
fn truncation_throws_away_bytes_of_tcp_without_a_place_for_them() {
    let (ours, mut far) = stream();
    far.write_all(b"0123456789").unwrap();
    wait_for_bytes(&ours, 10);
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC, TCP drops the bytes and writes nothing, tcp(7).
    let gone = unsafe { libc::recv(ours.as_fd().as_raw_fd(), std::ptr::null_mut(), 7, flags) };
    assert_eq!(gone, 7, "MSG_TRUNC of TCP: as many bytes go as were asked for");
    let mut rest = [0; 8];
    assert_eq!(ours.receive(&mut rest).unwrap(), 3, "MSG_TRUNC of TCP: the others stay");
    assert_eq!(&rest[..3], b"789");
}

#[test]
fn datagrams_are_cut_and_joined_by_the_kernel_at_their_borders() {
    let [one, other] = [(); 2].map(|()| Datagram::bind("127.0.0.1:0".parse().unwrap()).unwrap());
    other.take_many().expect("UDP_GRO: known since Linux 5.0");
    let sent: Vec<u8> = (0..2_500_u32).map(|number| number.to_le_bytes()[0] ^ 7).collect();
    let to = other.local_address().unwrap();
    let taken = one.send_many(to, None, &sent, 1000).expect("UDP_SEGMENT: known since 4.18");
    assert_eq!(taken, sent.len(), "UDP_SEGMENT: all of them or none");
    let (mut room, mut came, mut got) = (vec![0; 4 * segments::ROOM], Vec::new(), Vec::new());
    while got.len() < 3 {
        wait::readable([other.as_fd()], LONG).unwrap();
        other.recv_many(&mut room, &mut came).unwrap();
        for (batch, place) in came.iter().zip(room.chunks(segments::ROOM)) {
            got.extend(place[..batch.len].chunks(batch.size).map(<[u8]>::to_vec));
        }
    }
    let expected: Vec<_> = sent.chunks(1000).map(<[u8]>::to_vec).collect();
    assert!(got == expected, "UDP_SEGMENT and UDP_GRO: datagrams keep their borders");
    let long = one.send_many(to, None, &[0; 65_000], 100).unwrap_err().raw_os_error();
    assert_eq!(long, Some(libc::EINVAL), "UDP_SEGMENT: there are not more than a bounded number");
}

#[test]
fn splice_moves_bytes_of_tcp_without_waiting_and_tells_the_end() {
    let ((from, mut sends), (to, mut gets)) = (stream(), stream());
    let pipe = Pipe::new().unwrap();
    let empty = pipe.fill(&from, 10).unwrap_err().kind();
    assert_eq!(empty, io::ErrorKind::WouldBlock, "splice: an empty stream is not waited for");
    sends.write_all(b"hello").unwrap();
    drop(sends);
    wait_for_bytes(&from, 5);
    assert_eq!(pipe.fill(&from, 100).unwrap(), 5, "splice: all that is there");
    assert_eq!(pipe.empty(&to, 5).unwrap(), 5, "splice: all that is in the pipe");
    let mut got = [0; 5];
    gets.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello", "splice: in order");
    let end = loop {
        match pipe.fill(&from, 100) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait::readable([from.as_fd()], LONG).unwrap();
            }
            end => break end,
        }
    };
    assert_eq!(end.unwrap(), 0, "splice: 0 is the end of the stream");
}

/// Waits for a change of the only watched descriptor that is what `wanted` says.
fn change(poll: &Poll, events: &mut Events, what: &str, wanted: impl Fn(&Event) -> bool) {
    for _ in 0..100 {
        poll.wait(events, LONG).unwrap();
        assert!(events.iter().next().is_some(), "epoll, edges: {what}");
        if events.iter().any(|event| wanted(&event)) {
            return;
        }
    }
    panic!("epoll, edges: {what}");
}

#[test]
fn edges_are_told_again_for_what_is_new() {
    let (ours, mut far) = stream();
    let (poll, mut events) = (Poll::new().unwrap(), Events::new());
    poll.add(ours.as_fd(), 1, Interest::Changes).unwrap();
    change(&poll, &mut events, "room is told at once", |event| event.writable);
    // Nothing is taken between these, and each is told.
    for _ in 0..2 {
        far.write_all(b"more").unwrap();
        let what = "bytes that come behind others that wait are told, too";
        change(&poll, &mut events, what, |event| event.readable);
    }
    // A buffer that was full, and has room again.
    far.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(some) = ours.send(&[7; 65_536]) {
        sent += some;
    }
    let (mut buffer, mut got) = (vec![0; 65_536], 0);
    let mut told = false;
    while got < sent {
        match far.read(&mut buffer) {
            Ok(some) => got += some,
            Err(_) => drop(wait::readable([far.as_fd()], LONG).unwrap()),
        }
        poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        told |= events.iter().any(|event| event.writable);
    }
    if !told {
        change(&poll, &mut events, "room in a full buffer is told", |event| event.writable);
    }
    drop(far);
    change(&poll, &mut events, "the end is told by EPOLLRDHUP", |event| event.read_closed);
}

#[test]
fn the_room_of_a_stream_shrinks_by_what_the_other_end_has_not_taken() {
    let (ours, mut far) = stream();
    let empty = ours.send_room().expect("SO_MEMINFO: known since Linux 4.12");
    assert!(empty > 0, "SO_MEMINFO: an empty stream has room");
    let mut sent = 0;
    while let Ok(some) = ours.send(&[7; 65_536]) {
        sent += some;
    }
    let full = ours.send_room().unwrap();
    assert!(full < empty, "SO_MEMINFO: room of {full} when full, {empty} when empty");
    far.read_exact(&mut vec![0; sent]).unwrap();
    // It is all read; the acknowledgement comes by itself.
    let (poll, mut events) = (Poll::new().unwrap(), Events::new());
    poll.add(ours.as_fd(), 1, Interest::Changes).unwrap();
    while ours.send_room().unwrap() <= full {
        poll.wait(&mut events, Some(Duration::from_millis(5))).unwrap();
    }
}

#[test]
fn reports_about_datagrams_wait_in_a_queue_and_say_about_which() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let any: SocketAddr = address.parse().unwrap();
        let one = Datagram::bind(any).unwrap();
        // Closed, and nobody else can have it.
        let closed = Datagram::bind(any).unwrap();
        closed.set_receiving(false).unwrap();
        let gone = closed.local_address().unwrap();
        one.send(gone, None, b"question").unwrap();
        // Kernels before 6.5 may leave it to another thread.
        let mut poll = Events::new();
        let watched = Poll::new().unwrap();
        watched.add(one.as_fd(), 0, Interest::Readable).unwrap();
        watched.wait(&mut poll, Some(Duration::from_secs(20))).unwrap();
        let report = one.take_error().expect("IP_RECVERR: a closed port is reported in the queue");
        assert_eq!(report.errno, libc::ECONNREFUSED, "IP_RECVERR: the error");
        assert_eq!(report.destination, gone, "IP_RECVERR: where the datagram was going");
        assert_eq!(report.quoted, b"question", "IP_RECVERR: what it carried");
        assert_eq!(report.reporter, Some(gone.ip()), "IP_RECVERR: who says so");
        assert_eq!(one.take_error(), None, "IP_RECVERR: once");
    }
}
