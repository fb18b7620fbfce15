//! What a stack has to tell the program.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::ip::NicIndex;
use crate::raw::RawId;
use crate::tcp::{ListenerId, TcpId};
use crate::udp::UdpId;

/// Something that a program may have waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Event {
    /// A connection was opened, can be read from, has room again, has ended or failed.
    Tcp(TcpId),
    /// A connection can be accepted.
    Listener(ListenerId),
    /// A datagram or an error has come.
    Udp(UdpId),
    /// A packet has come for a raw socket.
    Raw(RawId),
    /// An address was given up: somebody else on the link has it.
    Duplicate(NicIndex, IpAddr),
}

/// Events that nobody has taken yet: each socket has at most one.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: VecDeque<Event>,
}

impl Events {
    /// Notes an event of a socket, unless one waits already: `told` is the socket's own mark.
    pub(crate) fn tell(&mut self, told: &mut bool, event: Event) {
        if !*told {
            *told = true;
            self.queue.push_back(event);
        }
    }

    pub(crate) fn take(&mut self) -> Option<Event> {
        self.queue.pop_front()
    }
}
