//! Notice of changes of the ruleset, by whomever.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use netyard_sys::netlink::{Protocol, Received, Socket};

use super::state::{TableState, split};
use super::{Family, SUBSYSTEM};
use crate::attribute::Answer;
use crate::error::{Error, Result};
use crate::netns::Netns;

/// Room for notices that wait to be read, bytes.
const ROOM: usize = 4 << 20;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// What has changed. The notices of one transaction come together, [`Event::Committed`] last.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A table came or is different.
    Table(TableState),
    /// A table went.
    TableGone(TableState),
    /// Something in a table changed: chains, rules, sets, elements.
    Inside {
        /// The table's family.
        family: Option<Family>,
        /// Its name.
        table: String,
    },
    /// A transaction is complete.
    Committed {
        /// The ruleset's number from now on, see [`super::Nftables::generation`].
        generation: u32,
        /// The socket that did it, see [`super::Nftables::port`].
        port: u32,
        /// The process that did it, by its number in the first process namespace.
        process: u32,
        /// That process's name.
        program: String,
    },
    /// Notices were lost: look at everything again.
    Lost,
}

/// The changes of a ruleset from now on. Its descriptor is readable when there is one.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    buffer: Vec<u8>,
    waiting: VecDeque<Event>,
}

impl Watch {
    /// Starts to watch the ruleset of `netns`, or of the calling thread's namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, no socket can be made.
    pub fn open(netns: Option<&Netns>) -> Result<Self> {
        let opened = match netns {
            Some(netns) => netns.run(|| Socket::open(Protocol::Netfilter))?,
            None => Socket::open(Protocol::Netfilter),
        };
        let failed = |error| Error::io("watch the nftables ruleset", error);
        let socket = opened.map_err(failed)?;
        socket.set_receive_room(ROOM).map_err(failed)?;
        socket.subscribe(GROUP).map_err(failed)?;
        Ok(Self { socket, buffer: Vec::new(), waiting: VecDeque::new() })
    }

    /// The next event, without waiting; `None`: there is none at the moment.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        while self.waiting.is_empty() {
            match self.socket.receive(&mut self.buffer, false) {
                Ok(Received::Datagram) => {
                    self.waiting.extend(Answer::all(&self.buffer).filter_map(|it| read(&it)));
                }
                Ok(Received::Overrun) => self.waiting.push_back(Event::Lost),
                Ok(Received::Nothing) => return Ok(None),
                Err(error) => return Err(Error::io("watch the nftables ruleset", error)),
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

fn read(answer: &Answer<'_>) -> Option<Event> {
    let (family, attributes) = split(answer)?;
    // enum nf_tables_msg_types
    Some(match answer.kind & !(SUBSYSTEM << 8) {
        0 => Event::Table(TableState::read(answer)?),
        2 => Event::TableGone(TableState::read(answer)?),
        15 => Event::Committed {
            generation: attributes.find(1)?.be32()?,
            port: answer.port,
            process: attributes.find(2)?.be32()?,
            program: attributes.find(3).map(|name| name.text()).unwrap_or_default(),
        },
        // The first attribute of all others is the table's name.
        _ => Event::Inside { family, table: attributes.find(1)?.text() },
    })
}
