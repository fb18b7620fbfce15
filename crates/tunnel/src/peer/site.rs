//! Where a peer brings its network to: this machine, or a network that it is plugged into.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use netyard_link::rtnetlink::LinkIndex;
use netyard_wire::Offload;
use netyard_wire::ip::IpPacket;
use tokio::task::JoinHandle;

use super::Options;
use super::machine::Machine;
use super::moves::Way;
use super::plug::{Plug, Plugged};
use crate::device::Device;
use crate::error::Result;
use crate::frame::Record;
use crate::lane::Outbox;
use crate::message::{Connected, News};

/// See the module.
pub(super) enum Site {
    /// It has a TUN device, with routes and what else was asked for.
    Machine(Box<Machine>),
    /// It has a frame socket.
    Plug(Box<Plugged>),
}

/// Where packets from the hub go.
#[derive(Clone)]
pub(super) enum Port {
    Device(Rc<Device>),
    Plug(Rc<Plug>),
}

impl Port {
    /// Hands a packet over; false if it is not taken.
    pub(super) fn write(
        &self,
        record: &Record<'_>,
        offload: &Offload,
        packet: &IpPacket<'_>,
    ) -> bool {
        match self {
            Self::Device(device) => device.write(record),
            Self::Plug(plug) => plug.write(record, offload, packet.source.is_ipv4()),
        }
    }
}

impl Site {
    /// What the mark of the tunnel's own sockets is, where they need one.
    pub(super) fn mark(&self) -> Option<u32> {
        match self {
            Self::Machine(machine) => Some(machine.mark()),
            Self::Plug(_) => None,
        }
    }

    /// Whether the kill switch is there.
    pub(super) fn is_shut(&self) -> bool {
        match self {
            Self::Machine(machine) => machine.is_shut(),
            Self::Plug(_) => false,
        }
    }

    /// Has the kill switch let pass what it must, if there shall be one.
    pub(super) fn engage(&mut self, options: &Options, tunnel: Option<LinkIndex>) -> Result<()> {
        match self {
            Self::Machine(machine) => machine.engage(options, tunnel),
            Self::Plug(_) => Ok(()),
        }
    }

    /// Makes again what somebody else has undone.
    pub(super) fn hold(&mut self, options: &Options) {
        if let Self::Machine(machine) = self {
            machine.hold(options);
        }
    }

    /// Keeps the hub outside of the tunnel.
    pub(super) fn pin(&mut self, hub: IpAddr) {
        if let Self::Machine(machine) = self {
            machine.pin(hub);
        }
    }

    /// The way to the hub, or to the proxy on the way to it, that there is now.
    pub(super) fn way(&self, to: SocketAddr) -> Way {
        let tunnel = match self {
            Self::Machine(_) => self.connected(),
            Self::Plug(_) => None,
        };
        let six = tunnel.and_then(|it| it.address6).map(IpAddr::from);
        let tunnel: Vec<IpAddr> =
            tunnel.map(|it| it.address.into()).into_iter().chain(six).collect();
        Way::now(to, self.mark(), &tunnel)
    }

    /// Is on the network as the hub says.
    pub(super) async fn enter(
        &mut self,
        options: &Options,
        connected: Connected,
        outbox: &Rc<Outbox>,
    ) -> Result<()> {
        match self {
            Self::Machine(machine) => machine.enter(options, connected, outbox).await,
            Self::Plug(plugged) => {
                plugged.connected = Some(connected);
                Ok(())
            }
        }
    }

    /// What the hub has said, once it has.
    pub(super) fn connected(&self) -> Option<&Connected> {
        match self {
            Self::Machine(machine) => machine.network.as_ref().map(|network| &network.connected),
            Self::Plug(plugged) => plugged.connected.as_ref(),
        }
    }

    /// Where packets from the hub go, while that is there.
    pub(super) fn port(&self) -> Option<Port> {
        match self {
            Self::Machine(machine) => {
                machine.network.as_ref().map(|network| Port::Device(Rc::clone(&network.device)))
            }
            Self::Plug(plugged) => Some(Port::Plug(Rc::clone(&plugged.plug))),
        }
    }

    /// The TUN device, if there is one.
    pub(super) fn device(&self) -> Option<&str> {
        match self {
            Self::Machine(machine) => machine.network.as_ref().map(|it| it.device.name()),
            Self::Plug(_) => None,
        }
    }

    /// Ends when packets for the hub cannot be read any more; `None`: it has ended.
    pub(super) fn reader(&mut self) -> Option<&mut JoinHandle<()>> {
        match self {
            Self::Machine(machine) => machine.network.as_mut().map(|it| &mut it.reader),
            Self::Plug(plugged) => Some(&mut plugged.carrier),
        }
    }

    /// The reader has ended; true if another one can be made.
    pub(super) fn forget(&mut self) -> bool {
        match self {
            Self::Machine(machine) => {
                machine.network = None;
                true
            }
            Self::Plug(_) => false,
        }
    }

    /// Which zone's names programs ask the hub for.
    pub(super) fn zone(&self) -> Option<&str> {
        match self {
            Self::Machine(machine) => machine.zone(),
            Self::Plug(_) => None,
        }
    }

    /// Whether there is a lane to the hub.
    pub(super) fn set_connected(&self, connected: bool) {
        if let Self::Machine(machine) = self {
            machine.set_connected(connected);
        }
    }

    /// Heeds what the hub says of other peers.
    pub(super) fn hear(&mut self, options: &Options, news: News) {
        match self {
            Self::Machine(machine) => machine.hear(options, news),
            Self::Plug(plugged) => {
                if let Some(connected) = &mut plugged.connected {
                    connected.news = news;
                }
            }
        }
    }

    /// Undoes everything, after this result.
    pub(super) fn close(&mut self, result: Result<()>) -> Result<()> {
        match self {
            Self::Machine(machine) => machine.close(result),
            Self::Plug(_) => result,
        }
    }
}
