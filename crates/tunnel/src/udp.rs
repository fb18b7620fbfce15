//! UDP to the hub, beside the WebSocket of a lane, on the same port number.
//!
//! # Theory of operation
//!
//! The WebSocket is always there. Control goes by it, and so does everything while UDP does not get through.
//! What is late is as good as lost to much that is not TCP (names, voice, pings), and in a stream all of it
//! waits for one lost segment: that goes by UDP where it can. TCP itself stays in the stream, unless it is
//! asked for otherwise: there its super-packets go whole, and losses are repaired before its ends see them.
//! So a flow has one way at a time, and keeps its order.
//!
//! There is no handshake over UDP. Both ends take keys from their TLS connection (RFC 8446 section 7.5), so
//! who holds the lane, hub and node proved to each other, holds the keys and nobody else does; another
//! login has others. `sealed` says how a datagram is made of them. One that nobody can have sealed but the
//! other end is the only thing that is ever answered, so nobody can have a hub send to third parties.
//!
//! `path` says whether datagrams get through, and where to: each end asks with datagrams of the largest
//! size there is and waits for an answer, so a way that does not take the network's packets whole is never
//! used, and one that dies is given up after three seconds. A new address (a NAT that forgot) counts when it has
//! answered.
//!
//! A super-packet goes as the datagrams that its segments are, each with the headers of the whole
//! ([`datagram`]), in few calls; [`rejoin`] makes of those that came, one behind the other, one
//! super-packet again.

pub mod datagram;
pub(crate) mod path;
pub mod rejoin;
pub(crate) mod sealed;
mod socket;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use netyard_wire::Offload;
use netyard_wire::ip::{self, IpPacket};
use tokio::sync::Notify;
use tokio::{task, time};

pub(crate) use self::socket::Socket;

use self::datagram::{Content, Cut};
use self::path::{Change, Path};
use self::rejoin::Rejoin;
use self::sealed::{Opener, Sealer};
use crate::frame::Record;
use crate::lane::{Outbox, Receive, Traffic};
use crate::login::{self, Failure, PeerStream};
use crate::message::{ByUdp, Connected};
use crate::websocket::Side;

/// Room for the datagrams of one call, bytes.
pub(crate) const ROOM: usize = 64 * 1024;
/// After the socket has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// One end of the UDP of a lane.
#[derive(Debug)]
pub(crate) struct UdpLane {
    socket: Rc<Socket>,
    /// This machine's address to send from, if the socket is bound to several.
    from: Option<SocketAddr>,
    /// Its number at the hub, which is in all datagrams.
    number: u32,
    wanted: ByUdp,
    /// Length of what a path is asked with: the largest content of a datagram.
    largest: usize,
    outgoing: RefCell<Outgoing>,
    incoming: RefCell<Incoming>,
    path: RefCell<Path>,
    /// The path wants to be looked at.
    wake: Notify,
    sent: Cell<Traffic>,
    received: Cell<Traffic>,
    refused: Cell<u64>,
}

#[derive(Debug)]
struct Outgoing {
    sealer: Sealer,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Incoming {
    opener: Opener,
    rejoin: Rejoin,
}

/// What a lane's UDP is made of.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) socket: Rc<Socket>,
    pub(crate) from: Option<SocketAddr>,
    pub(crate) number: u32,
    pub(crate) wanted: ByUdp,
    pub(crate) mtu: u32,
    pub(crate) keys: (Sealer, Opener),
    pub(crate) path: Path,
}

impl UdpLane {
    pub(crate) fn new(setup: Setup) -> Self {
        let Setup { socket, from, number, wanted, mtu, keys: (sealer, opener), path } = setup;
        let mtu = usize::try_from(mtu).unwrap_or(usize::MAX);
        Self {
            socket,
            from,
            number,
            wanted,
            largest: mtu.saturating_add(datagram::OVERHEAD).min(datagram::MOST),
            outgoing: RefCell::new(Outgoing { sealer, buffer: Vec::new() }),
            incoming: RefCell::new(Incoming { opener, rejoin: Rejoin::default() }),
            path: RefCell::new(path),
            wake: Notify::new(),
            sent: Cell::default(),
            received: Cell::default(),
            refused: Cell::default(),
        }
    }

    /// Whether datagrams get through.
    pub(crate) fn is_up(&self) -> bool {
        self.path.borrow().to().is_some()
    }

    /// What went by here to the other end, and what came.
    pub(crate) fn traffic(&self) -> (Traffic, Traffic) {
        (self.sent.get(), self.received.get())
    }

    /// Packets that the socket had no room for.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Sends a packet, if it is to go by UDP and can; else it is the stream's.
    pub(crate) fn send(
        &self,
        now: Instant,
        bytes: &[u8],
        offload: &Offload,
        packet: &IpPacket<'_>,
    ) -> bool {
        let is_wanted = match self.wanted {
            ByUdp::Nothing => false,
            ByUdp::NotTcp => packet.protocol != ip::TCP,
            ByUdp::Everything => true,
        };
        if !is_wanted {
            return false;
        }
        let Some(to) = self.path.borrow().to() else { return false };
        let Some(cut) = Cut::of(offload, packet, self.largest) else { return false };
        let mut outgoing = self.outgoing.borrow_mut();
        let Outgoing { sealer, buffer } = &mut *outgoing;
        buffer.clear();
        let mut size = 0;
        for content in cut.contents(bytes) {
            let begin = sealer.begin(buffer, self.number);
            content.put(buffer);
            if sealer.finish(buffer, begin).is_none() {
                return false;
            }
            if begin == 0 {
                size = buffer.len();
            }
        }
        if self.path.borrow_mut().handle_sent(now) {
            self.wake.notify_one();
        }
        match self.socket.send(buffer, size, self.from, to) {
            Ok(()) => {
                let mut sent = self.sent.get();
                sent.count(bytes.len());
                self.sent.set(sent);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.refused.set(self.refused.get() + 1);
                true
            }
            Err(error) => {
                tracing::debug!(%to, %error, "the kernel does not send by UDP");
                let change = self.path.borrow_mut().handle_broken(now);
                self.tell(change);
                self.wake.notify_one();
                false
            }
        }
    }

    /// A datagram with this lane's number came. What is in it may wait for more of its kind, until
    /// [`UdpLane::flush`].
    pub(crate) fn handle(
        &self,
        now: Instant,
        from: SocketAddr,
        datagram: &mut [u8],
        receive: &mut impl Receive,
    ) {
        let mut incoming = self.incoming.borrow_mut();
        let Incoming { opener, rejoin } = &mut *incoming;
        let Some((opened, content)) = opener.open(datagram) else { return };
        if self.path.borrow_mut().handle_heard(now, from, opened.is_newest) {
            self.wake.notify_one();
        }
        match Content::parse(content) {
            Some(Content::Packet { is_partial, bytes }) => {
                rejoin.flush(&mut |record| self.deliver(record, receive));
                rejoin::with_header(is_partial, bytes, &mut |record| self.deliver(record, receive));
            }
            Some(Content::Segment(segment)) => {
                if !rejoin.append(&segment) {
                    rejoin.flush(&mut |record| self.deliver(record, receive));
                    rejoin.append(&segment);
                }
            }
            Some(Content::Question { .. }) => {
                self.say(&Content::Answer { counter: opened.counter }, from);
            }
            Some(Content::Answer { counter }) => {
                let change = self.path.borrow_mut().handle_answer(now, from, counter);
                self.tell(change);
                self.wake.notify_one();
            }
            None => receive.bad_packet(),
        }
    }

    /// Nothing else came for now.
    pub(crate) fn flush(&self, receive: &mut impl Receive) {
        self.incoming.borrow_mut().rejoin.flush(&mut |record| self.deliver(record, receive));
    }

    fn deliver(&self, record: Option<&Record<'_>>, receive: &mut impl Receive) {
        let Some(record) = record else { return receive.bad_packet() };
        let mut received = self.received.get();
        received.count(record.bytes.len());
        self.received.set(received);
        receive.record(record);
    }

    /// Asks whether datagrams get through, when it is time to, and the other end of the stream as well: what goes
    /// by datagrams does not make the stream doubt, and when both are silent it is to be known soon.
    async fn keep(&self, outbox: &Outbox) -> Infallible {
        loop {
            let due = self.path.borrow().poll_timeout();
            let time = async {
                match due {
                    Some(due) => time::sleep_until(due.into()).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = time => {
                    let change = self.path.borrow_mut().handle_timeout(Instant::now());
                    self.tell(change);
                }
            }
            let question = self.path.borrow_mut().poll_question();
            if let Some(to) = question {
                if self.is_up() && self.path.borrow().is_silent(Instant::now()) {
                    outbox.ask();
                }
                let counter = self.say(&Content::Question { len: self.largest }, to);
                self.path.borrow_mut().handle_asked(Instant::now(), to, counter);
            }
        }
    }

    /// Sends something that is no packet; the number it has. Whether it gets there is seen by the answer.
    fn say(&self, content: &Content<'_>, to: SocketAddr) -> u64 {
        let mut outgoing = self.outgoing.borrow_mut();
        let Outgoing { sealer, buffer } = &mut *outgoing;
        buffer.clear();
        let counter = sealer.counter();
        let begin = sealer.begin(buffer, self.number);
        content.put(buffer);
        if sealer.finish(buffer, begin).is_some()
            && let Err(error) = self.socket.send(buffer, buffer.len(), self.from, to)
        {
            tracing::debug!(%to, %error, "the kernel does not send by UDP");
        }
        counter
    }

    fn tell(&self, change: Option<Change>) {
        match change {
            Some(Change::Up(to)) => tracing::info!(lane = self.number, %to, "UDP gets through"),
            Some(Change::Down) => {
                tracing::info!(lane = self.number, "UDP does not get through any more");
            }
            Some(Change::Silent) => {
                tracing::info!(
                    lane = self.number,
                    "UDP does not get through; all goes by WebSocket"
                );
            }
            None => {}
        }
    }
}

/// The UDP of a lane at a peer, if the hub has any.
pub(crate) fn at_peer(
    stream: &PeerStream,
    connected: &Connected,
    wanted: ByUdp,
    hub: SocketAddr,
    mark: Option<u32>,
) -> Option<Rc<UdpLane>> {
    let number = connected.udp.filter(|_| wanted != ByUdp::Nothing)?;
    let made = || -> Result<UdpLane, Failure> {
        Ok(UdpLane::new(Setup {
            socket: Rc::new(Socket::to_hub(hub, mark)?),
            from: None,
            number,
            wanted,
            mtu: connected.mtu,
            keys: login::udp_keys(stream.get_ref().1, Side::Peer)?,
            path: Path::to_hub(Instant::now(), hub, rand::random()),
        }))
    };
    match made() {
        Ok(lane) => Some(Rc::new(lane)),
        Err(failure) => {
            tracing::warn!(%hub, %failure, "there is no UDP to the hub");
            None
        }
    }
}

/// Keeps the UDP of a lane of this outbox, if it has any; does not end by itself.
pub(crate) async fn keep(lane: Option<&UdpLane>, outbox: &Outbox) -> Infallible {
    match lane {
        Some(lane) => lane.keep(outbox).await,
        None => future::pending().await,
    }
}

/// Takes what comes by the UDP of a peer's lane, if it has any; does not end by itself.
pub(crate) async fn receive(lane: Option<&UdpLane>, receive: &mut impl Receive) -> Infallible {
    let Some(lane) = lane else { return future::pending().await };
    let mut room = vec![0; ROOM];
    loop {
        let take = |from, datagram: &mut [u8]| {
            if number(datagram) == Some(lane.number) {
                lane.handle(Instant::now(), from, datagram, receive);
            }
        };
        let received = lane.socket.receive(&mut room, take).await;
        lane.flush(receive);
        go_on(received).await;
    }
}

/// Lets others have their turn, and waits a moment where the socket fails.
pub(crate) async fn go_on(received: io::Result<()>) {
    match received {
        Ok(()) => task::yield_now().await,
        Err(error) => {
            tracing::warn!(%error, "the kernel hands out no datagrams");
            time::sleep(PAUSE).await;
        }
    }
}

/// The number of the lane that a datagram is of.
pub(crate) fn number(datagram: &[u8]) -> Option<u32> {
    datagram.first_chunk().map(|number| u32::from_be_bytes(*number))
}
