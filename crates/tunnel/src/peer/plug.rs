//! A peer without root: its network is one in user mode, which it is plugged into by a frame socket.
//!
//! Nothing is made on the machine. The socket carries frames, whose Ethernet header says only which version of IP
//! follows, behind virtio-net headers: super-packets go as they are in both directions. What the network is
//! too busy for waits in a bounded queue, which refuses what is newer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram as StdSocket;
use std::rc::Rc;
use std::time::Instant;

use netyard_sys::seqpacket::SeqPacket;
use netyard_wire::ethernet::{self, Ethernet};
use netyard_wire::ip::IpPacket;
use netyard_wire::{Features, MAX_FRAME_LEN, MacAddr, Offload, VNET_HEADER_LEN};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::Notify;
use tokio::task::{self, JoinHandle};

use crate::device::BUDGET;
use crate::error::{Error, Result};
use crate::frame::Record;
use crate::lane::Outbox;
use crate::message::Connected;

/// What waits for the network at most, bytes: some of the longest super-packets.
const MOST_WAITING: usize = 2 * 1024 * 1024;

/// The Ethernet header before each packet, bytes.
const LINK_LEN: u16 = 14;

/// The peer's end of a network's frame socket.
#[derive(Debug)]
pub(super) struct Plug {
    socket: SeqPacket,
    /// A duplicate that serves for its readiness alone.
    readiness: UnixDatagram,
    waiting: RefCell<VecDeque<Vec<u8>>>,
    waiting_len: Cell<usize>,
    came: Notify,
}

impl Plug {
    fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let socket = SeqPacket::adopt(socket)?;
        socket.set_nonblocking(true)?;
        let duplicate = socket.as_fd().try_clone_to_owned()?;
        socket.send(&Features::ALL.bits().to_le_bytes(), &[])?;
        Ok(Self {
            socket,
            readiness: UnixDatagram::from_std(StdSocket::from(duplicate))?,
            waiting: RefCell::default(),
            waiting_len: Cell::new(0),
            came: Notify::new(),
        })
    }

    /// Hands a packet to the network; false if it is not taken.
    pub(super) fn write(&self, record: &Record<'_>, offload: &Offload, is_ipv4: bool) -> bool {
        let Some(offload) = offload.moved(0, LINK_LEN) else { return false };
        let ethertype = if is_ipv4 { ethernet::IPV4 } else { ethernet::IPV6 };
        let nobody = MacAddr([0; 6]);
        let link = Ethernet { destination: nobody, source: nobody, ethertype }.emit();
        let header = offload.encode();
        // Also of what was taken from those that wait and is not sent yet.
        if self.waiting_len.get() == 0 {
            let parts = &mut [&header[..], &link[..], record.bytes].map(IoSlice::new);
            match self.socket.send_parts(parts) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return sent.is_ok(),
            }
        }
        let frame = [&header[..], &link[..], record.bytes].concat();
        let len = self.waiting_len.get() + frame.len();
        if len > MOST_WAITING {
            return false;
        }
        self.waiting_len.set(len);
        self.waiting.borrow_mut().push_back(frame);
        self.came.notify_one();
        true
    }

    /// Sends what waits.
    async fn send(&self) -> io::Result<()> {
        loop {
            let Some(frame) = self.waiting.borrow_mut().pop_front() else {
                self.came.notified().await;
                continue;
            };
            let parts = || self.socket.send_parts(&mut [IoSlice::new(&frame)]);
            let sent = loop {
                // A SEQPACKET message is taken whole or not at all.
                match self.readiness.try_io(Interest::WRITABLE, parts) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.readiness.writable().await?;
                    }
                    sent => break sent,
                }
            };
            self.waiting_len.set(self.waiting_len.get().saturating_sub(frame.len()));
            sent?;
        }
    }

    /// Reads frames until none is there or [`BUDGET`] is read.
    async fn receive(&self, scratch: &mut [u8], outbox: &Outbox) -> io::Result<()> {
        self.readiness.readable().await?;
        let mut count = 0;
        while count < BUDGET {
            match self.readiness.try_io(Interest::READABLE, || self.socket.recv_bytes(scratch)) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::NotConnected, "it is gone")),
                Ok(len) => {
                    count += len;
                    queue(scratch.get(..len).unwrap_or_default(), outbox);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Carries packets both ways until the network is gone.
    async fn carry(&self, outbox: &Outbox) -> io::Result<()> {
        let read = async {
            let mut scratch = vec![0; VNET_HEADER_LEN + MAX_FRAME_LEN];
            loop {
                self.receive(&mut scratch, outbox).await?;
                task::yield_now().await;
            }
        };
        tokio::select! {
            ended = read => ended,
            ended = self.send() => ended,
        }
    }
}

/// Queues what the network sends. Its first message says what it takes, which is everything, and is no frame.
fn queue(bytes: &[u8], outbox: &Outbox) {
    let parsed = bytes.split_first_chunk::<VNET_HEADER_LEN>().and_then(|(header, frame)| {
        let offload = Offload::parse(header, frame).ok()?.moved(LINK_LEN, 0)?;
        let bytes = frame.get(usize::from(LINK_LEN)..)?;
        Some((offload, bytes, IpPacket::parse_bare(bytes).ok()?))
    });
    if let Some((offload, bytes, packet)) = parsed {
        outbox.push(Instant::now(), (&offload.encode(), bytes), (&offload, &packet));
    }
}

/// A peer's place on such a network.
#[derive(Debug)]
pub(super) struct Plugged {
    pub(super) plug: Rc<Plug>,
    pub(super) connected: Option<Connected>,
    /// Ends when the network is gone.
    pub(super) carrier: JoinHandle<()>,
}

impl Plugged {
    pub(super) fn open(socket: OwnedFd, outbox: &Rc<Outbox>) -> Result<Self> {
        let failed = |error| Error::io("use the socket of the network", &error);
        let plug = Rc::new(Plug::adopt(socket).map_err(failed)?);
        let (carried, outbox) = (Rc::clone(&plug), Rc::clone(outbox));
        let carrier = task::spawn_local(async move {
            if let Err(error) = carried.carry(&outbox).await {
                tracing::warn!(%error, "the network's socket has ended");
            }
        });
        Ok(Self { plug, connected: None, carrier })
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}
