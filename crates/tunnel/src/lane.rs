//! One WebSocket connection of a session: messages in, messages out, and whether the other end lives.
//!
//! Control goes first. What waits for the other end is taken from its [`Outbox`] in messages of about
//! 64 KiB, whatever is there, and written at once; nothing waits for more. While the socket takes nothing,
//! packets stay in the outbox, where they are dropped by rule.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::{Duration, Instant};

use netyard_wire::Offload;
use netyard_wire::ip::IpPacket;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::sync::Notify;
use tokio::{task, time};

use crate::frame::{self, FrameError, Record, Records};
use crate::keepalive::{self, Due, Keepalive};
use crate::message::{Bye, ByeReason, Message, MessageError, Unsupported};
use crate::paced::Way;
use crate::pool::Pool;
use crate::queue::{self, FlowKey, Losses, Queue};
use crate::udp::UdpLane;
use crate::websocket::{self, Header, Opcode, Side, WebSocketError};

/// Control frames that wait to be sent, bytes; an end that asks faster than it reads is cut off.
const CONTROL_LIMIT: usize = 64 * 1024;
/// Read before others have their turn, bytes: what was read goes to queues, whose other ends must get to
/// empty them.
const TURN: usize = 128 * 1024;
/// A write that takes longer ends the lane.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Packets that waited longer while no lane was there are not sent any more.
pub(crate) const KEPT: Duration = Duration::from_secs(2);
/// How long a goodbye may take.
pub(crate) const GOODBYE: Duration = Duration::from_millis(500);

/// Why a lane ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// The other end said so.
    #[error("the other end said goodbye{}", why(*.0))]
    Bye(ByeReason),
    /// We said so.
    #[error("goodbye was said")]
    Left,
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Nothing came for too long.
    #[error("the other end is silent")]
    Silent,
    /// The other end broke the rules.
    #[error(transparent)]
    WebSocket(#[from] WebSocketError),
    /// The other end broke the rules.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The other end broke the rules.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The TUN device is gone.
    #[error("the TUN device is gone")]
    Device,
    /// This machine has another way to the hub.
    #[error("this machine has another way to the hub now")]
    Moved,
    /// The other end asks, and does not read the answers.
    #[error("the other end asks faster than it reads")]
    Flood,
}

/// What is behind a goodbye, where it is not the end.
const fn why(reason: ByeReason) -> &'static str {
    match reason {
        ByeReason::Readdressed => ": there is another address",
        _ => "",
    }
}

/// Packets and bytes that went by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Traffic {
    /// Packets; a super-packet is one.
    pub packets: u64,
    /// Bytes of IP packets.
    pub bytes: u64,
}

impl Traffic {
    /// A packet of so many bytes.
    pub(crate) const fn count(&mut self, len: usize) {
        self.packets += 1;
        self.bytes += len as u64;
    }
}

impl std::ops::Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// What waits for the other end of a session, whether a lane is there or not.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: RefCell<Queue>,
    pool: Rc<RefCell<Pool>>,
    ready: Notify,
    /// Counts lanes: an older one ends.
    lane: Cell<u64>,
    /// Lanes up to this number say this goodbye.
    ending: Cell<Option<(ByeReason, u64)>>,
    /// Whether the other end is there is to be found out now.
    doubted: Cell<bool>,
    is_cut: Cell<bool>,
    /// It is cut.
    cut: Notify,
    /// The UDP of the lane that is there.
    udp: RefCell<Option<Rc<UdpLane>>>,
    /// What went by the UDP of lanes before it, to the other end and from it, and what that had no room for.
    udp_before: Cell<(Traffic, Traffic, u64)>,
    /// A message for the lane that is there, in place of the one before it.
    news: RefCell<Option<Message>>,
    sent: Cell<Traffic>,
    received: Cell<Traffic>,
}

impl Outbox {
    pub(crate) fn new(pool: Rc<RefCell<Pool>>, key: u128) -> Self {
        Self {
            queue: RefCell::new(Queue::new(queue::LIMIT, key)),
            pool,
            ready: Notify::new(),
            lane: Cell::new(0),
            ending: Cell::new(None),
            doubted: Cell::new(false),
            is_cut: Cell::new(false),
            cut: Notify::new(),
            udp: RefCell::default(),
            udp_before: Cell::default(),
            news: RefCell::new(None),
            sent: Cell::default(),
            received: Cell::default(),
        }
    }

    /// Takes a packet: its virtio-net header, its bytes, and what they say. It leaves by UDP at once, or a
    /// copy of it waits for the lane.
    pub(crate) fn push(
        &self,
        now: Instant,
        (header, bytes): (&[u8], &[u8]),
        (offload, packet): (&Offload, &IpPacket<'_>),
    ) {
        if let Some(udp) = &*self.udp.borrow()
            && udp.send(now, bytes, offload, packet)
        {
            return;
        }
        let mut queue = self.queue.borrow_mut();
        let mut pool = self.pool.borrow_mut();
        let mut buffer = pool.take(header.len() + bytes.len());
        buffer.extend_from_slice(header);
        buffer.extend_from_slice(bytes);
        queue.push(now, buffer, &FlowKey::of(packet));
        while let Some(dropped) = queue.reclaim() {
            pool.give(dropped);
        }
        self.ready.notify_one();
    }

    /// A new lane serves this outbox; the one before it says goodbye and ends.
    pub(crate) fn attach(&self, now: Instant) -> u64 {
        let lane = self.lane.get() + 1;
        self.lane.set(lane);
        // What it says at first is newer, and the answer to whoever asked.
        self.news.take();
        self.doubted.set(false);
        let mut queue = self.queue.borrow_mut();
        if let Some(then) = now.checked_sub(KEPT) {
            queue.expire(then);
        }
        queue.set_bounds(queue::TARGET, queue::LIMIT);
        self.ready.notify_one();
        lane
    }

    /// Tells the other end, if a lane is there; what was not told yet is not told any more.
    pub(crate) fn tell(&self, message: Message) {
        *self.news.borrow_mut() = Some(message);
        self.ready.notify_one();
    }

    /// The lane that is there asks the other end now whether it lives.
    pub(crate) fn ask(&self) {
        self.doubted.set(true);
        self.ready.notify_one();
    }

    /// Whether lane number `lane` is the newest.
    pub(crate) fn is_last(&self, lane: u64) -> bool {
        self.lane.get() == lane
    }

    /// The lane says goodbye and ends, and so does each that comes.
    pub(crate) fn end(&self, reason: ByeReason) {
        self.ending.set(Some((reason, u64::MAX)));
        self.ready.notify_one();
    }

    /// Lanes end at once, for good: nothing is taken from the other end any more, and it hears a goodbye if it listens.
    pub(crate) fn cut(&self, reason: ByeReason) {
        self.end(reason);
        self.is_cut.set(true);
        self.cut.notify_waiters();
    }

    /// Waits until it is cut.
    async fn cut_off(&self) {
        if !self.is_cut.get() {
            self.cut.notified().await;
        }
    }

    /// The lane that is there says goodbye and ends, and what waits for it is dropped.
    pub(crate) fn end_lane(&self, now: Instant, reason: ByeReason) {
        self.queue.borrow_mut().expire(now);
        self.ending.set(Some((reason, self.lane.get())));
        self.ready.notify_one();
    }

    /// From now on packets may go by this UDP, and by none if there is none.
    pub(crate) fn set_udp(&self, udp: Option<Rc<UdpLane>>) {
        let (sent, received) = self.udp_traffic();
        self.udp_before.set((sent, received, self.udp_refused()));
        *self.udp.borrow_mut() = udp;
    }

    /// The lane of this UDP has ended; another may be there.
    pub(crate) fn clear_udp(&self, udp: &Rc<UdpLane>) {
        let is_there = self.udp.borrow().as_ref().is_some_and(|it| Rc::ptr_eq(it, udp));
        if is_there {
            self.set_udp(None);
        }
    }

    pub(crate) fn losses(&self) -> Losses {
        let losses = self.queue.borrow().losses();
        Losses { queue_full: losses.queue_full + self.udp_refused(), ..losses }
    }

    /// What went to the other end, and what came from it.
    pub(crate) fn traffic(&self) -> (Traffic, Traffic) {
        let (sent, received) = self.udp_traffic();
        (self.sent.get() + sent, self.received.get() + received)
    }

    /// The part of it that went by UDP.
    pub(crate) fn udp_traffic(&self) -> (Traffic, Traffic) {
        let (sent, received, _) = self.udp_before.get();
        let now = self.udp.borrow().as_ref().map(|udp| udp.traffic()).unwrap_or_default();
        (sent + now.0, received + now.1)
    }

    fn udp_refused(&self) -> u64 {
        let (_, _, refused) = self.udp_before.get();
        refused + self.udp.borrow().as_ref().map_or(0, |udp| udp.refused())
    }

    /// Whether UDP gets through to the other end.
    pub(crate) fn is_udp_up(&self) -> bool {
        self.udp.borrow().as_ref().is_some_and(|udp| udp.is_up())
    }

    /// Whether lane number `lane` is to end, and why.
    fn is_over(&self, lane: u64) -> Option<ByeReason> {
        let replaced = (self.lane.get() != lane).then_some(ByeReason::Replaced);
        let ending = self.ending.get().filter(|(_, last)| lane <= *last);
        ending.map(|(reason, _)| reason).or(replaced)
    }

    /// Fills a message with what waits, for this way.
    fn fill(&self, now: Instant, way: &Way, message: &mut Vec<u8>) {
        frame::begin(message);
        let mut queue = self.queue.borrow_mut();
        let mut pool = self.pool.borrow_mut();
        let mut sent = self.sent.get();
        while message.len() < way.message_len() {
            let Some(packet) = queue.pop(now) else { break };
            frame::put(message, &packet);
            sent.count(packet.len().saturating_sub(netyard_wire::VNET_HEADER_LEN));
            pool.give(packet);
        }
        queue.set_bounds(way.patience(), way.room());
        while let Some(dropped) = queue.reclaim() {
            pool.give(dropped);
        }
        self.sent.set(sent);
    }
}

/// What was read of a connection and not used yet.
#[derive(Debug)]
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    from: Side,
}

impl Inbox {
    /// Room while nobody has proved anything; it grows when messages do.
    const FIRST: usize = 8 * 1024;
    /// Room for one message of any length, and what comes with it.
    const FULL: usize = websocket::MAX_HEADER_LEN + websocket::MAX_PAYLOAD_LEN + 16 * 1024;

    /// `rest`: what came behind the upgrade. `from`: which end sends.
    pub(crate) fn new(rest: &[u8], from: Side) -> Self {
        let mut buffer = rest.to_vec();
        buffer.resize(rest.len().max(Self::FIRST), 0);
        Self { buffer, begin: 0, end: rest.len(), from }
    }

    /// The next message, unmasked. Safe to drop at any time.
    pub(crate) async fn next(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<(Opcode, &[u8]), Ended> {
        self.next_hearing(stream, || {}).await
    }

    /// The same; `heard` is called when any part of a message has come.
    async fn next_hearing(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        heard: impl Fn(),
    ) -> Result<(Opcode, &[u8]), Ended> {
        let (header, begin, end) = loop {
            let there = self.buffer.get(self.begin..self.end).unwrap_or_default();
            let mut needed = websocket::MAX_HEADER_LEN;
            if let Some(header) = Header::parse(there, self.from)? {
                needed = header.header_len + header.payload_len;
                if there.len() >= needed {
                    break (header, self.begin + header.header_len, self.begin + needed);
                }
            }
            self.make_room(needed);
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match stream.read(room).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                len => self.end += len,
            }
            heard();
        };
        self.begin = end;
        let payload = self.buffer.get_mut(begin..end).unwrap_or_default();
        if let Some(mask) = header.mask {
            websocket::unmask(payload, mask);
        }
        Ok((header.opcode, payload))
    }

    /// Gives back what was needed for long messages, if nothing of one is there.
    fn rest(&mut self) {
        if self.begin == self.end && self.buffer.len() > Self::FIRST {
            *self = Self::new(&[], self.from);
        }
    }

    /// Room for a message of `needed` bytes from `begin` on, and for something to be read.
    fn make_room(&mut self, needed: usize) {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        }
        if self.begin + needed > self.buffer.len() || self.end == self.buffer.len() {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        if needed > self.buffer.len() {
            self.buffer.resize(Self::FULL, 0);
        }
    }
}

/// What a lane does with what comes.
pub(crate) trait Receive {
    /// A packet that is what it says.
    fn packet(&mut self, record: &Record<'_>, offload: &Offload, packet: &IpPacket<'_>);
    /// A packet that is not.
    fn bad_packet(&mut self);
    /// News of the other end.
    fn message(&mut self, message: Message);

    /// A packet, whatever it is.
    fn record(&mut self, record: &Record<'_>) {
        match record.packet() {
            Ok((offload, packet)) => self.packet(record, &offload, &packet),
            Err(_) => self.bad_packet(),
        }
    }
}

/// What both directions of a lane share.
struct Shared<'a> {
    outbox: &'a Outbox,
    side: Side,
    lane: u64,
    way: Rc<Way>,
    keepalive: RefCell<Keepalive>,
    /// Control frames, ready to be sent.
    control: RefCell<Vec<u8>>,
}

/// Carries packets by a stream and its way until the lane ends. `spread` is random. `lane` is from [`Outbox::attach`].
pub(crate) async fn run<S: AsyncRead + AsyncWrite>(
    (stream, way): (S, Rc<Way>),
    inbox: &mut Inbox,
    (outbox, lane): (&Outbox, u64),
    spread: u8,
    receive: &mut impl Receive,
) -> Ended {
    let (side, rhythm) = match inbox.from {
        Side::Peer => (Side::Hub, keepalive::AT_HUB),
        Side::Hub => (Side::Peer, keepalive::AT_PEER),
    };
    let shared = Shared {
        outbox,
        side,
        lane,
        way,
        keepalive: RefCell::new(Keepalive::new(rhythm, Instant::now(), spread)),
        control: RefCell::default(),
    };
    let (reader, writer) = tokio::io::split(stream);
    let write = shared.write(writer);
    tokio::pin!(write);
    let ended = tokio::select! {
        biased;
        () = outbox.cut_off() => time::timeout(GOODBYE, write).await.unwrap_or(Ended::Left),
        ended = shared.read(reader, inbox, receive) => ended,
        ended = &mut write => ended,
    };
    // What woke this lane may have been meant for the next.
    outbox.ready.notify_one();
    ended
}

impl Shared<'_> {
    async fn read<S: AsyncRead>(
        &self,
        mut reader: ReadHalf<S>,
        inbox: &mut Inbox,
        receive: &mut impl Receive,
    ) -> Ended {
        let mut count = 0;
        loop {
            // On a slow way a message may take longer than silence may.
            let heard = || self.keepalive.borrow_mut().handle_received(Instant::now());
            let (came, is_still) = match inbox.next_hearing(&mut reader, heard).await {
                Ok((opcode, payload)) => {
                    count += payload.len();
                    // Whoever asks has not heard anything for a while.
                    (self.handle(opcode, payload, receive), opcode == Opcode::Ping)
                }
                Err(ended) => return ended,
            };
            if let Err(ended) = came {
                return ended;
            }
            if is_still {
                inbox.rest();
            }
            if count >= TURN {
                count = 0;
                task::yield_now().await;
            }
        }
    }

    fn handle(
        &self,
        opcode: Opcode,
        payload: &[u8],
        receive: &mut impl Receive,
    ) -> Result<(), Ended> {
        self.keepalive.borrow_mut().handle_received(Instant::now());
        match opcode {
            Opcode::Binary => {
                let mut received = self.outbox.received.get();
                for record in Records::parse(payload)? {
                    let record = record?;
                    received.count(record.bytes.len());
                    receive.record(&record);
                }
                self.outbox.received.set(received);
                Ok(())
            }
            Opcode::Text => match Message::parse(payload)? {
                Ok(Message::Bye(Bye { reason })) => Err(Ended::Bye(reason)),
                Ok(message) => {
                    receive.message(message);
                    Ok(())
                }
                Err(kind) => {
                    let answer = Message::Unsupported(Unsupported { kind }).to_bytes();
                    self.answer(Opcode::Text, &answer)
                }
            },
            Opcode::Ping => self.answer(Opcode::Pong, payload),
            Opcode::Pong => Ok(()),
            Opcode::Close => Err(Ended::Bye(ByeReason::Stop)),
        }
    }

    fn answer(&self, opcode: Opcode, payload: &[u8]) -> Result<(), Ended> {
        let mut control = self.control.borrow_mut();
        websocket::put(&mut control, opcode, payload, self.side);
        self.outbox.ready.notify_one();
        if control.len() > CONTROL_LIMIT { Err(Ended::Flood) } else { Ok(()) }
    }

    async fn write<S: AsyncWrite>(&self, mut writer: WriteHalf<S>) -> Ended {
        let mut head = Vec::new();
        let mut message = Vec::new();
        loop {
            let over = self.outbox.is_over(self.lane);
            head.clear();
            head.append(&mut self.control.borrow_mut());
            if self.outbox.doubted.take() {
                self.keepalive.borrow_mut().handle_asked(Instant::now());
                websocket::put(&mut head, Opcode::Ping, &[], self.side);
            }
            if let Some(news) = self.outbox.news.take() {
                websocket::put(&mut head, Opcode::Text, &news.to_bytes(), self.side);
            }
            message.clear();
            if let Some(reason) = over {
                let bye = Message::Bye(Bye { reason }).to_bytes();
                websocket::put(&mut head, Opcode::Text, &bye, self.side);
                websocket::put(&mut head, Opcode::Close, &[], self.side);
            } else if !self.outbox.queue.borrow().is_empty() {
                self.outbox.fill(Instant::now(), &self.way, &mut message);
                websocket::put_header(&mut head, Opcode::Binary, message.len(), self.side);
            }
            if head.is_empty() {
                match self.wait().await {
                    Some(Due::Dead) => return Ended::Silent,
                    Some(Due::Ping) => {
                        let mut control = self.control.borrow_mut();
                        websocket::put(&mut control, Opcode::Ping, &[], self.side);
                    }
                    None => {}
                }
                continue;
            }
            if !message.is_empty() {
                self.keepalive.borrow_mut().handle_sent(Instant::now());
            }
            let written =
                time::timeout(WRITE_LIMIT, write_both(&mut writer, &head, &message)).await;
            match written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(()) if over.is_some() => return Ended::Left,
                // Little else but questions and answers: what was needed for more is given back.
                Ok(()) if message.is_empty() => {
                    (head, message) = (Vec::new(), Vec::new());
                    self.outbox.queue.borrow_mut().rest();
                }
                Ok(()) => {}
                Err(error) => return error.into(),
            }
        }
    }

    /// Waits for something to send, or for the clock.
    async fn wait(&self) -> Option<Due> {
        let deadline = self.keepalive.borrow().poll_timeout();
        tokio::select! {
            () = self.outbox.ready.notified() => None,
            () = time::sleep_until(deadline.into()) => {
                self.keepalive.borrow_mut().handle_timeout(Instant::now())
            }
        }
    }
}

/// Writes two buffers, one behind the other, and flushes.
async fn write_both(
    writer: &mut (impl AsyncWrite + Unpin),
    mut head: &[u8],
    message: &[u8],
) -> io::Result<()> {
    while !head.is_empty() {
        let written = writer.write_vectored(&[IoSlice::new(head), IoSlice::new(message)]).await?;
        match head.get(written..) {
            Some(rest) if written > 0 => head = rest,
            Some(_) => return Err(io::ErrorKind::WriteZero.into()),
            None => {
                let rest = message.get(written - head.len()..).unwrap_or_default();
                writer.write_all(rest).await?;
                return writer.flush().await;
            }
        }
    }
    writer.write_all(message).await?;
    writer.flush().await
}

/// Sends one control message, before a lane runs.
pub(crate) async fn say(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &Message,
    side: Side,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    websocket::put(&mut bytes, Opcode::Text, &message.to_bytes(), side);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests;
