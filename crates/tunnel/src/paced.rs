//! A connection of which the kernel holds no more than its way takes in a moment.
//!
//! What the kernel has not sent yet cannot be overtaken, nor dropped by rule: a key press waits behind it. So it
//! is given what the way takes in [`MOMENT`], by its own estimate, and messages are no longer than that. On a way
//! that is fast that is as much as saves system calls.
//!
//! And a way that loses packets delivers in bursts: what came behind a lost one waits at the other end until that is sent
//! again, a round trip later or, if it is lost again, two or three, and then senders are allowed that much at once. A
//! queue that is as long as such a burst is no standing one. How long it may be without a packet being dropped, and
//! how much memory that takes, is the other thing that is told here.
//!
//! It is held back ([`Brake`]) when what it sends stands in a queue on the way.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use netyard_sys::tcp_info::{TcpInfo, limit_rate, tcp_info};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::brake::Brake;
use crate::frame;
use crate::queue;

/// How long what the kernel holds unsent, or a message, may take.
const MOMENT: Duration = Duration::from_millis(5);
/// The most and the least that the kernel holds of what it has not sent yet, bytes.
const MOST_UNSENT: usize = 128 * 1024;
const LEAST_UNSENT: usize = 16 * 1024;
/// How often the way is looked at, while something is sent.
const LOOKED: Duration = Duration::from_millis(10);
/// For how long a way counts as one that loses packets, after it was seen to.
const LOSSY: Duration = Duration::from_secs(1);
/// How long packets may wait for a way that loses some, in its round trips, but no longer than that.
const PATIENCE: u32 = 3;
const MOST_PATIENCE: Duration = Duration::from_millis(200);
/// Memory for them, bytes.
const LOSSY_ROOM: usize = 4 * queue::LIMIT;
/// The kernel gives up on unacknowledged data after this time.
const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// What is known of the way of a connection.
#[derive(Debug)]
pub(crate) struct Way {
    unsent: Cell<usize>,
    patience: Cell<Duration>,
    room: Cell<usize>,
    looked: Cell<Option<Instant>>,
    sent_again: Cell<u32>,
    lost: Cell<Option<Instant>>,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            unsent: Cell::new(MOST_UNSENT),
            patience: Cell::new(queue::TARGET),
            room: Cell::new(queue::LIMIT),
            looked: Cell::new(None),
            sent_again: Cell::new(0),
            lost: Cell::new(None),
        }
    }
}

impl Way {
    /// How long a message may be, bytes.
    pub(crate) fn message_len(&self) -> usize {
        self.unsent.get().min(frame::TARGET_LEN)
    }

    /// How long packets may wait, if it is not for a moment only.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience.get()
    }

    /// Memory for packets that wait, bytes.
    pub(crate) const fn room(&self) -> usize {
        self.room.get()
    }

    /// Whether it is time to look at the connection.
    fn is_due(&self, now: Instant) -> bool {
        self.looked.get().is_none_or(|then| now.saturating_duration_since(then) >= LOOKED)
    }

    /// Takes in what was seen; how much the kernel is to hold, if that is something else now.
    fn see(&self, now: Instant, info: &TcpInfo) -> Option<usize> {
        if self.sent_again.replace(info.sent_again) != info.sent_again {
            self.lost.set(Some(now));
        }
        let is_lossy = |then: Instant| now.saturating_duration_since(then) < LOSSY;
        let (patience, room) = match self.lost.get().is_some_and(is_lossy) {
            true => {
                let patience = info.shortest_round_trip.saturating_mul(PATIENCE);
                (patience.clamp(queue::TARGET, MOST_PATIENCE), LOSSY_ROOM)
            }
            false => (queue::TARGET, queue::LIMIT),
        };
        self.patience.set(patience);
        self.room.set(room);
        let moment = u128::from(info.pacing_rate) * MOMENT.as_micros() / 1_000_000;
        let unsent = usize::try_from(moment).unwrap_or(usize::MAX);
        let unsent = unsent.clamp(LEAST_UNSENT, MOST_UNSENT);
        (self.unsent.replace(unsent) != unsent).then_some(unsent)
    }
}

/// A connection, set up for a lane.
#[derive(Debug)]
pub(crate) struct Paced {
    stream: TcpStream,
    way: Rc<Way>,
    brake: Brake,
}

impl Paced {
    /// Sets up the socket. What a kernel does not know, it does without.
    pub(crate) fn new(stream: TcpStream) -> Self {
        let socket = SockRef::from(&stream);
        _ = socket.set_tcp_nodelay(true);
        _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
        // One lost packet must not halve what all flows in the tunnel share.
        _ = socket.set_tcp_congestion(b"bbr");
        let way = Rc::<Way>::default();
        hold(&stream, way.unsent.get());
        Self { stream, way, brake: Brake::default() }
    }

    pub(crate) const fn get_ref(&self) -> &TcpStream {
        &self.stream
    }

    /// What is known of its way, now and later.
    pub(crate) fn way(&self) -> Rc<Way> {
        Rc::clone(&self.way)
    }

    /// Looks at the connection from time to time.
    fn look(&mut self) {
        let now = Instant::now();
        if !self.way.is_due(now) {
            return;
        }
        self.way.looked.set(Some(now));
        let Ok(info) = tcp_info(self.stream.as_fd()) else { return };
        if let Some(unsent) = self.way.see(now, &info) {
            hold(&self.stream, unsent);
        }
        if let Some(rate) = self.brake.see(now, &info) {
            _ = limit_rate(self.stream.as_fd(), rate);
        }
    }
}

/// Has the kernel take no more than that much which it has not sent yet.
fn hold(stream: &TcpStream, unsent: usize) {
    let unsent = u32::try_from(unsent).unwrap_or(u32::MAX);
    _ = SockRef::from(stream).set_tcp_notsent_lowat(unsent);
}

impl AsyncRead for Paced {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, room)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let paced = self.get_mut();
        paced.look();
        Pin::new(&mut paced.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let paced = self.get_mut();
        paced.look();
        Pin::new(&mut paced.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(round_trip_ms: u64, sent_again: u32, megabits: u64) -> TcpInfo {
        let shortest_round_trip = Duration::from_millis(round_trip_ms);
        TcpInfo {
            shortest_round_trip,
            sent_again,
            pacing_rate: megabits * 125_000,
            ..TcpInfo::default()
        }
    }

    #[test]
    fn the_kernel_holds_what_the_way_takes_in_a_moment() {
        let (way, now) = (Way::default(), Instant::now());
        assert_eq!((way.see(now, &seen(20, 0, 100)), way.message_len()), (Some(62_500), 62_500));
        assert_eq!(way.see(now, &seen(20, 0, 100)), None);
        assert_eq!((way.see(now, &seen(20, 0, 2)), way.message_len()), (Some(16_384), 16_384));
        // As fast as it gets, and a kernel that holds nothing back.
        assert_eq!(way.see(now, &seen(1, 0, 10_000)), Some(131_072));
        assert_eq!(way.message_len(), frame::TARGET_LEN);
        let free = TcpInfo { pacing_rate: u64::MAX, ..TcpInfo::default() };
        assert_eq!(way.see(now, &free), None);
    }

    #[test]
    fn where_packets_are_lost_others_may_wait_for_three_round_trips() {
        let (way, start) = (Way::default(), Instant::now());
        way.see(start, &seen(50, 0, 100));
        assert_eq!((way.patience(), way.room()), (queue::TARGET, queue::LIMIT));
        way.see(start, &seen(50, 3, 100));
        assert_eq!((way.patience(), way.room()), (Duration::from_millis(150), LOSSY_ROOM));
        way.see(start + LOSSY / 2, &seen(900, 3, 100));
        assert_eq!((way.patience(), way.room()), (MOST_PATIENCE, LOSSY_ROOM));
        way.see(start + LOSSY, &seen(50, 3, 100));
        assert_eq!((way.patience(), way.room()), (queue::TARGET, queue::LIMIT));
    }
}
