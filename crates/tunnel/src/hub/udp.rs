//! The hub's UDP: one socket for the lanes of all peers, whatever their networks.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use super::network::{Door, Network};
use super::session::FromPeer;
use crate::lane::Outbox;
use crate::login::{self, Failure, HubStream};
use crate::message::ByUdp;
use crate::relay::NodeId;
use crate::udp::path::Path;
use crate::udp::{self, Setup, Socket, UdpLane};
use crate::websocket::Side;

/// A hub's UDP.
#[derive(Debug)]
pub(super) struct HubUdp {
    socket: Rc<Socket>,
    lanes: RefCell<HashMap<u32, Entry>>,
}

#[derive(Debug)]
struct Entry {
    network: Rc<Network>,
    node: NodeId,
    outbox: Rc<Outbox>,
    lane: Rc<UdpLane>,
}

impl HubUdp {
    /// On the port that peers connect to; `None`: it is somebody else's, or the kernel cannot.
    pub(super) fn open(listen: SocketAddr) -> Option<Self> {
        match Socket::at_hub(listen) {
            Ok(socket) => Some(Self { socket: Rc::new(socket), lanes: RefCell::default() }),
            Err(error) => {
                tracing::warn!(%listen, %error, "there is no UDP: all goes by WebSocket");
                None
            }
        }
    }
}

/// The UDP of a lane, as long as this value is there.
pub(super) struct Opened<'a> {
    hub: &'a HubUdp,
    outbox: Rc<Outbox>,
    pub(super) number: u32,
    pub(super) lane: Rc<UdpLane>,
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        let mut lanes = self.hub.lanes.borrow_mut();
        if lanes.get(&self.number).is_some_and(|entry| Rc::ptr_eq(&entry.lane, &self.lane)) {
            lanes.remove(&self.number);
        }
        self.outbox.clear_udp(&self.lane);
    }
}

impl Network {
    /// Opens the UDP of a lane, if both ends have any.
    pub(super) fn open_udp(
        self: &Rc<Self>,
        stream: &HubStream,
        node: NodeId,
        outbox: &Rc<Outbox>,
        wanted: ByUdp,
    ) -> Option<Opened<'_>> {
        outbox.set_udp(None);
        let hub = self.door.udp.as_ref().filter(|_| wanted != ByUdp::Nothing)?;
        let mut lanes = hub.lanes.borrow_mut();
        let number = loop {
            let number = rand::random();
            if !lanes.contains_key(&number) {
                break number;
            }
        };
        let (socket, connection) = stream.get_ref();
        let made = || -> Result<UdpLane, Failure> {
            Ok(UdpLane::new(Setup {
                socket: Rc::clone(&hub.socket),
                // Where the peer has found the hub.
                from: Some(socket.get_ref().get_ref().local_addr()?),
                number,
                wanted,
                mtu: self.options.mtu,
                keys: login::udp_keys(connection, Side::Hub)?,
                path: Path::to_peer(rand::random()),
            }))
        };
        let lane = match made() {
            Ok(lane) => Rc::new(lane),
            Err(failure) => {
                tracing::warn!(%failure, "a lane has no UDP");
                return None;
            }
        };
        let network = Rc::clone(self);
        let entry = Entry { network, node, outbox: Rc::clone(outbox), lane: Rc::clone(&lane) };
        lanes.insert(number, entry);
        outbox.set_udp(Some(Rc::clone(&lane)));
        Some(Opened { hub, outbox: Rc::clone(outbox), number, lane })
    }
}

impl Door {
    /// Nothing that comes by UDP of these lanes is taken any more.
    pub(super) fn close_udp(&self, outbox: &Rc<Outbox>) {
        if let Some(hub) = &self.udp {
            hub.lanes.borrow_mut().retain(|_, entry| !Rc::ptr_eq(&entry.outbox, outbox));
        }
    }

    /// Takes what comes by UDP; does not end.
    pub(super) async fn carry_udp(&self) -> Infallible {
        let Some(hub) = &self.udp else { return future::pending().await };
        let mut room = vec![0; udp::ROOM];
        let mut heard = Vec::new();
        loop {
            let take = |from, datagram: &mut [u8]| {
                let lanes = hub.lanes.borrow();
                if let Some(number) = udp::number(datagram)
                    && let Some(Entry { network, node, outbox, lane }) = lanes.get(&number)
                {
                    let mut receive = FromPeer { network, node: *node, outbox };
                    lane.handle(Instant::now(), from, datagram, &mut receive);
                    if heard.last() != Some(&number) {
                        heard.push(number);
                    }
                }
            };
            let received = hub.socket.receive(&mut room, take).await;
            for number in heard.drain(..) {
                let lanes = hub.lanes.borrow();
                if let Some(Entry { network, node, outbox, lane }) = lanes.get(&number) {
                    lane.flush(&mut FromPeer { network, node: *node, outbox });
                }
            }
            udp::go_on(received).await;
        }
    }
}
