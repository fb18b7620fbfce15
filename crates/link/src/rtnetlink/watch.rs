//! Notice of what changes in a network namespace.

use std::os::fd::{AsFd, BorrowedFd};

use netyard_sys::netlink::{Protocol, Received, Socket};

use super::{Address, Link, Route, Rule, address, link};
use crate::attribute::Answer;
use crate::error::{Error, Result};
use crate::netns::Netns;

/// Room for notices that wait to be read, bytes: some thousand links.
const ROOM: usize = 4 << 20;

/// The groups of linux/rtnetlink.h: links, IPv4 and IPv6 addresses, routes and rules.
const GROUPS: [u32; 7] = [1, 5, 9, 7, 11, 8, 19];

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A link came or is different.
    Link(Link),
    /// A link went.
    LinkGone(Link),
    /// An address came or is different.
    Address(Address),
    /// An address went.
    AddressGone(Address),
    /// A route came or is different.
    Route(Route),
    /// A route went.
    RouteGone(Route),
    /// A rule came.
    Rule(Rule),
    /// A rule went.
    RuleGone(Rule),
    /// Notices were lost: look at everything again.
    Lost,
}

/// The changes of a network namespace from now on. Its descriptor is readable when there is one.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    buffer: Vec<u8>,
    waiting: std::collections::VecDeque<Change>,
}

impl Watch {
    /// Starts to watch `netns`, or the calling thread's namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, no socket can be made.
    pub fn open(netns: Option<&Netns>) -> Result<Self> {
        let opened = match netns {
            Some(netns) => netns.run(|| Socket::open(Protocol::Route))?,
            None => Socket::open(Protocol::Route),
        };
        let failed = |error| Error::io("watch the network namespace", error);
        let socket = opened.map_err(failed)?;
        socket.set_receive_room(ROOM).map_err(failed)?;
        for group in GROUPS {
            socket.subscribe(group).map_err(failed)?;
        }
        Ok(Self { socket, buffer: Vec::new(), waiting: std::collections::VecDeque::new() })
    }

    /// The next change, without waiting; `None`: there is none at the moment.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn next_change(&mut self) -> Result<Option<Change>> {
        while self.waiting.is_empty() {
            match self.socket.receive(&mut self.buffer, false) {
                Ok(Received::Datagram) => {
                    self.waiting.extend(Answer::all(&self.buffer).filter_map(|it| read(&it)));
                }
                Ok(Received::Overrun) => self.waiting.push_back(Change::Lost),
                Ok(Received::Nothing) => return Ok(None),
                Err(error) => return Err(Error::io("watch the network namespace", error)),
            }
        }
        Ok(self.waiting.pop_front())
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read(answer: &Answer<'_>) -> Option<Change> {
    Some(match answer.kind {
        16 | 17 if link::is_bridge_notice(answer) => return None,
        16 => Change::Link(Link::read(answer)?),
        17 => Change::LinkGone(Link::read(answer)?),
        20 => Change::Address(address::read(answer)?),
        21 => Change::AddressGone(address::read(answer)?),
        24 => Change::Route(Route::read(answer)?),
        25 => Change::RouteGone(Route::read(answer)?),
        32 => Change::Rule(Rule::read(answer)?),
        33 => Change::RuleGone(Rule::read(answer)?),
        _ => return None,
    })
}
