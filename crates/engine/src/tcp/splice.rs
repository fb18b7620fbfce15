//! Connections from the host that go by a socket inside the instance's network namespace.
//!
//! Client and instance each have a connection with this machine's kernel, and the bytes of the one are poured into
//! the other: no frame is made. All that comes before (turns, refusals, time-outs) is that of every connection
//! into the network, see [`inbound`](super::inbound). A socket may be awaited: its namespace is another process's.
//!
//! An end of stream goes on when all before it has. So does a reset: what one side has sent before it broke is
//! poured into the other, then that is reset.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::flow::{Flow, Key, Phase};
use super::preamble::Preamble;
use super::{Owner, Tcp, Work};
use crate::context::Context;
use crate::control::Spliced;
use crate::edge::{PlugId, Readiness, SocketId, Then};
use crate::service::Services;

/// How a flow is spliced.
#[derive(Debug)]
pub(super) struct Splice {
    /// The socket inside; `None` while it is awaited.
    inside: Option<SocketId>,
    host_to_guest: Course,
    guest_to_host: Course,
}

/// One direction.
#[derive(Debug, Default)]
struct Course {
    bytes: u64,
    /// Its source may have more.
    readable: bool,
    /// The end of its source has been told of: a short read is not the last one.
    ended: bool,
    /// Its source is broken: it has nothing more to say than what is there, and hears nothing.
    broken: bool,
    /// Its destination may take more.
    writable: bool,
    /// Nothing goes this way any more: the end has been passed on, or nobody takes it.
    over: bool,
}

impl Course {
    /// Pours what there is; `back` is the other direction. True if there is more to do at once.
    fn pour(
        &mut self,
        cx: &mut Context<'_>,
        back: &mut Self,
        from: SocketId,
        to: SocketId,
    ) -> bool {
        if self.over || !self.readable || !self.writable {
            return false;
        }
        let poured = cx.edge.pour(from, to);
        self.bytes += poured.bytes as u64;
        match poured.then {
            Then::More => return true,
            Then::Dry => {
                self.readable = self.ended;
                return self.ended;
            }
            Then::Full => self.writable = false,
            Then::Ended => {
                self.over = true;
                if !self.broken {
                    // An error here is the stream's own, and its event tells.
                    let _ = cx.edge.shutdown_write(to);
                }
            }
            Then::Broken => {
                self.over = true;
                self.break_source(back);
            }
            Then::Refused => {
                back.break_source(self);
                return true;
            }
        }
        false
    }

    /// Sends what goes before all that its source has. False if not all of it is sent.
    fn begin(
        &mut self,
        cx: &mut Context<'_>,
        back: &mut Self,
        preamble: &mut Option<Box<Preamble>>,
        to: SocketId,
    ) -> bool {
        while let Some(before) = preamble
            && self.writable
            && !self.over
        {
            match cx.edge.send(to, before.left()) {
                Ok(sent) => {
                    self.bytes += sent as u64;
                    before.acknowledge(sent);
                    if before.is_over() {
                        *preamble = None;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_) => back.break_source(self),
            }
        }
        preamble.is_none()
    }

    /// Its source is broken, which is where `back` leads.
    fn break_source(&mut self, back: &mut Self) {
        (self.broken, self.readable, self.ended) = (true, true, true);
        back.over = true;
    }

    /// All that was said before its source broke has been passed on.
    fn is_lost(&self) -> bool {
        self.broken && self.over
    }
}

impl Splice {
    fn new(inside: Option<SocketId>) -> Self {
        let (host_to_guest, guest_to_host) = (Course::default(), Course::default());
        Self { inside, host_to_guest, guest_to_host }
    }

    /// Bytes from the guest, and to it.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.guest_to_host.bytes, self.host_to_guest.bytes)
    }

    /// One side has finished.
    pub(super) fn is_closing(&self) -> bool {
        self.host_to_guest.over || self.guest_to_host.over
    }

    /// Both have.
    pub(super) fn is_over(&self) -> bool {
        self.host_to_guest.over && self.guest_to_host.over
    }

    /// Both streams are open; the client's end may have been told of.
    fn open(&mut self, host_ended: bool) {
        for course in [&mut self.host_to_guest, &mut self.guest_to_host] {
            (course.readable, course.writable) = (true, true);
        }
        self.host_to_guest.ended = host_ended;
    }

    /// Notes what was told of the client's stream, or of the instance's.
    fn note(&mut self, inside: bool, ready: Readiness, broken: bool) {
        let (from, to) = match inside {
            true => (&mut self.guest_to_host, &mut self.host_to_guest),
            false => (&mut self.host_to_guest, &mut self.guest_to_host),
        };
        from.ended |= ready.read_closed || ready.hangup;
        from.readable |= ready.readable || from.ended;
        to.writable |= ready.writable;
        if broken {
            from.break_source(to);
        }
    }

    /// Pours both ways, and counts it. `Err`: one side is broken, and the other has got all that it had sent.
    pub(super) fn work(
        &mut self,
        cx: &mut Context<'_>,
        host: SocketId,
        preamble: &mut Option<Box<Preamble>>,
        counted: &mut Spliced,
    ) -> Result<Work, Reset> {
        let Some(inside) = self.inside else { return Ok(Work::Done) };
        let before = self.bytes();
        let (into, out) = (&mut self.host_to_guest, &mut self.guest_to_host);
        let mut more = into.begin(cx, out, preamble, inside) && into.pour(cx, out, host, inside);
        more |= out.pour(cx, into, inside, host);
        let lost = into.is_lost() || out.is_lost();
        counted.guest_to_host += self.guest_to_host.bytes - before.0;
        counted.host_to_guest += self.host_to_guest.bytes - before.1;
        match (lost, more) {
            (true, _) => Err(Reset),
            (false, true) => Ok(Work::More),
            (false, false) => Ok(Work::Done),
        }
    }
}

/// A connection that ends with a reset of both its sides.
#[derive(Debug)]
pub(super) struct Reset;

impl Tcp {
    /// Tries to connect to a guest by a socket inside. `None`: it is to be tried by frames; `Some(false)`: it
    /// cannot be reached at this address.
    pub(super) fn attempt_inside(
        &mut self,
        cx: &mut Context<'_>,
        index: u32,
        plug: PlugId,
        to: SocketAddr,
    ) -> Option<bool> {
        let flow = self.flows.get_mut(index as usize)?;
        let opening = flow.opening.as_ref()?;
        let (client, delivery) = (opening.client, opening.delivery);
        let by_frames = || cx.edge.is_captured(plug) || !self.shares.spares(self.by_socket.len());
        if !delivery.splices(client.ip()) || !delivery.loopback && by_frames() {
            return None;
        }
        let at = if delivery.loopback { loopback(to) } else { to };
        let (inside, seen) = match cx.edge.connect_inside(plug, at) {
            Ok((socket, seen)) => (Some(socket), seen),
            Err(error) if error.kind() == ErrorKind::WouldBlock => (None, client),
            // Out of ports or descriptors, or refused: frames tell, and need less.
            Err(_) if !delivery.loopback => return None,
            Err(error) => {
                let unsupported = error.kind() == ErrorKind::Unsupported;
                cx.counters.drop(if unsupported {
                    "loopback-not-reached"
                } else {
                    "splice-failed"
                });
                return Some(false);
            }
        };
        if self.by_key.get(&flow.key) == Some(&index) {
            self.by_key.remove(&flow.key);
        }
        flow.key = Key { guest: to, remote: seen };
        flow.plug = plug;
        flow.splice = Some(Box::new(Splice::new(inside)));
        if let Some(inside) = inside {
            self.by_socket.insert(inside, Owner::Inside(index));
        }
        Some(true)
    }

    /// Sockets of a family have come from inside, or cannot be had there: who waits for them goes on.
    pub(crate) fn handle_supply(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        (plug, ipv4): (PlugId, bool),
        came: bool,
    ) {
        let waits = |flow: &Flow| {
            let splice = flow.splice.as_ref();
            flow.plug == plug
                && flow.key.guest.is_ipv4() == ipv4
                && splice.is_some_and(|splice| splice.inside.is_none())
        };
        let waiting = |index: &u32| self.flows.get(*index as usize).is_some_and(waits);
        let waiting: Vec<u32> = self.opening.iter().copied().filter(waiting).collect();
        for index in waiting {
            self.attempt_again(cx, services, index, came);
            if came && self.flows.get(index as usize).is_some_and(waits) {
                break;
            }
        }
    }

    /// A socket inside has neither connected nor been refused in time: the kernel drops what does not fit into a
    /// full queue of a listener, and asks again after a second at the earliest. One that has not come is not waited
    /// for any longer if there is another way.
    pub(super) fn retry_inside(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
    ) {
        let Some(flow) = self.flows.get(index as usize) else { return };
        let (Some(splice), Some(opening)) = (&flow.splice, &flow.opening) else { return };
        match splice.inside {
            // It takes bytes: its event is on its way.
            Some(inside) if cx.edge.send(inside, &[]).is_ok() => {}
            Some(_) => self.attempt_again(cx, services, index, true),
            None if opening.delivery.loopback => {}
            None => self.attempt_again(cx, services, index, false),
        }
    }

    /// Asks the same address again, by another socket inside or, where none can be had, in whatever way is left.
    fn attempt_again(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
        inside: bool,
    ) {
        self.drop_inside(cx, index, false);
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        let (plug, to) = (flow.plug, flow.key.guest);
        let Some(opening) = &mut flow.opening else { return };
        let begun = match (inside, opening.delivery.loopback) {
            (false, true) => Some(false),
            (false, false) => {
                opening.delivery.splice = Some(false);
                None
            }
            (true, _) => self.attempt_inside(cx, index, plug, to),
        };
        if !begun.unwrap_or_else(|| self.attempt_by_frames(cx, index, to)) {
            self.next_attempt(cx, services, index);
        }
    }

    /// Handles readiness of a socket inside.
    pub(super) fn handle_inside(
        &mut self,
        cx: &mut Context<'_>,
        services: &mut Services,
        index: u32,
        ready: Readiness,
    ) {
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        let Some(splice) = &mut flow.splice else { return };
        let Some(inside) = splice.inside else { return };
        let error = ready.error.then(|| cx.edge.take_error(inside).err()).flatten();
        let broken = error.is_some();
        if flow.phase == Phase::Open {
            splice.note(true, ready, broken);
            self.mark(index);
            return;
        }
        // These are errors of what has been open, if for a moment.
        let was_open = error.is_some_and(|error| {
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
        });
        if (broken || ready.hangup) && !was_open {
            self.next_attempt(cx, services, index);
        } else if ready.writable {
            splice.open(flow.ended);
            splice.note(true, ready, broken);
            self.spliced.entry(flow.plug).or_default().connections += 1;
            self.opened(services, index);
            self.schedule(index);
        }
    }

    /// Handles readiness of the client's stream of an open connection. False if it is not spliced.
    pub(super) fn handle_client(
        &mut self,
        cx: &mut Context<'_>,
        index: u32,
        ready: Readiness,
    ) -> bool {
        let Some(flow) = self.flows.get_mut(index as usize) else { return false };
        let Some(splice) = flow.splice.as_mut().filter(|_| flow.phase == Phase::Open) else {
            return false;
        };
        let broken = ready.error && cx.edge.take_error(flow.socket).is_err();
        splice.note(false, ready, broken);
        self.mark(index);
        true
    }

    /// Gives the socket of an attempt back.
    pub(super) fn drop_inside(&mut self, cx: &mut Context<'_>, index: u32, reset: bool) {
        let splice = self.flows.get_mut(index as usize).and_then(|flow| flow.splice.take());
        let Some(inside) = splice.and_then(|splice| splice.inside) else { return };
        self.by_socket.remove(&inside);
        if reset {
            cx.edge.reset(inside);
        } else {
            cx.edge.close(inside);
        }
    }

    /// What went to and from who is behind a plug.
    pub(crate) fn spliced(&self, plug: PlugId) -> Spliced {
        self.spliced.get(&plug).copied().unwrap_or_default()
    }
}

/// The same port of the same family's loopback address.
fn loopback(to: SocketAddr) -> SocketAddr {
    let address = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(address, to.port())
}
