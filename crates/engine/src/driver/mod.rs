//! The driver: the network's thread, its loop, and its system calls.
//!
//! # Theory of operation
//!
//! One thread owns the [`Network`] (which decides) and the [`HostEdge`] (which acts); both live
//! side by side, so that the one can use the other. A *turn* of the loop waits for events, then:
//!
//! 1. reads each plug that has something, [`FRAMES_PER_TURN`] frames each, before anything else: a
//!    TAP's ring that nobody reads drops frames silently, and the frames carry the acknowledgements
//!    that make room;
//! 2. hands readiness of host sockets to the network;
//! 3. lets what is due happen, and the network do the work that the batch has left;
//! 4. tells its caller which other descriptors (control connections) are ready.
//!
//! Everything is edge-triggered and registered once, so an event costs no further call. What was
//! not finished within a turn is remembered, and the next turn does not wait. Frames are read into
//! one buffer and handed on by reference; nothing is allocated for a frame, except where it has to
//! wait.

pub(crate) mod edge;
mod plugs;
mod pour;
pub(crate) mod sockets;
pub(crate) mod surroundings;
pub(crate) mod token;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use netyard_proxy::Dial;
use netyard_sys::interface::Changes;
use netyard_sys::poll::{Events, Interest, Poll};

use self::edge::HostEdge;
use self::plugs::{BUFFER_LEN, Plugs, Received};
use self::surroundings::Resolvers;
use self::token::Token;
use crate::capture::{self, MAX_CAPTURES};
use crate::config::{Config, Mdns};
use crate::control::{
    ControlError, ControlErrorKind, FlowState, Name, Opener, PlugRequest, Plugged, Remote,
    ServiceSpec, ServiceState, State,
};
use crate::drive::Drive;
use crate::edge::PlugId;
use crate::forward::Forward;
use crate::network::{DialId, Event, Network};
use crate::policy::rules::{Rules, What};
use crate::policy::{self, Tested};
use crate::requests::{Asked, Requests};

/// Frames read from one plug before the others, and the host's sockets, get their turn. A full
/// ring of ordinary frames is read within a few turns; of super-frames this is 2 MiB.
const FRAMES_PER_TURN: usize = 32;

/// A network with everything that makes it run.
#[derive(Debug)]
pub(crate) struct Driver {
    network: Network,
    edge: HostEdge<Plugs>,
    events: Events,
    /// Where frames are read, one at a time.
    buffer: Box<[u8]>,
    changes: Changes,
    resolvers: Resolvers,
    /// Connections that are being dialled, for who asked.
    dials: HashMap<DialId, Dialling>,
    /// Outcomes for members.
    dialled: VecDeque<(DialId, Result<OwnedFd, ControlError>)>,
    requests: Requests,
    asked: Asked,
    /// The network has more to do at once.
    busy: bool,
}

/// A connection that is being dialled: the end of the stream for who asked.
#[derive(Debug)]
enum Dialling {
    ForMember(UnixStream),
    ForRequests(UnixStream, Dial),
}

impl Driver {
    /// A network without plugs, in a process that may have so many descriptors.
    ///
    /// # Errors
    /// What the kernel said: out of descriptors, no netlink.
    pub(crate) fn new(config: Config, descriptors: usize) -> io::Result<Self> {
        let now = Instant::now();
        let mut edge = HostEdge::new(Plugs::new(), now)?;
        // A card may come up with the addresses that it had.
        let changes = Changes::new(config.mdns != Mdns::Off)?;
        edge.poll().add(changes.as_fd(), Token::Addresses.encode(), Interest::Arrivals)?;
        let mut network = Network::new(config, rand::random(), now);
        network.set_descriptors(descriptors);
        network.set_host_addresses(surroundings::host_addresses()?);
        follow_cards(&mut network, &mut edge, now);
        let resolvers = Resolvers::new();
        let buffer = vec![0; BUFFER_LEN].into_boxed_slice();
        let events = Events::new();
        let (way, asked) = Asked::new()?;
        let requests = Requests::new(way, descriptors, network.gate());
        edge.poll().add(asked.as_fd(), Token::Asked.encode(), Interest::Readable)?;
        Ok(Self {
            network,
            edge,
            events,
            buffer,
            changes,
            resolvers,
            dials: HashMap::new(),
            dialled: VecDeque::new(),
            requests,
            asked,
            busy: false,
        })
    }

    /// When the next turn must come at the latest.
    fn poll_timeout(&self, limit: Option<Instant>) -> Option<Instant> {
        if self.busy || self.edge.any_readable() {
            return Some(self.edge.now());
        }
        [limit, self.network.poll_timeout(), self.edge.poll_timeout()].into_iter().flatten().min()
    }

    /// Reads each plug that has something.
    fn read_plugs(&mut self) {
        for place in 0..self.edge.plug_count() {
            if !self.edge.is_readable(place) {
                continue;
            }
            let now = self.edge.tick();
            for _ in 0..FRAMES_PER_TURN {
                match self.edge.receive(place, &mut self.buffer) {
                    (plug, Received::Frame(frame)) => {
                        self.network.handle_frame(now, plug, frame, &mut self.edge);
                    }
                    (_, Received::Malformed(reason)) => self.network.count_drop(reason),
                    (_, Received::Taken) => {}
                    (_, Received::Nothing) => break,
                }
            }
        }
    }

    /// Starts to dial; the end of the stream for who asked.
    fn start_dial(
        &mut self,
        to: SocketAddr,
        within: Duration,
    ) -> Result<(DialId, UnixStream), ControlError> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| ControlError {
            kind: ControlErrorKind::Failed,
            message: format!("cannot dial {to}: {error}"),
        })?;
        let dial = self.network.dial(self.edge.now(), to, within, ours.into(), &mut self.edge)?;
        Ok((dial, theirs))
    }

    /// Dials what the proxy has asked for.
    fn dial_asked(&mut self) {
        for asked in self.asked.take() {
            match self.start_dial(asked.to, asked.within) {
                Ok((dial, stream)) => {
                    self.dials.insert(dial, Dialling::ForRequests(stream, asked));
                }
                Err(error) => asked.answer(Err(io::Error::other(error))),
            }
        }
    }

    /// Passes on what the network has to tell.
    fn tell_events(&mut self) {
        while let Some(event) = self.network.poll_event() {
            match event {
                Event::Dialed { dial, result } => match self.dials.remove(&dial) {
                    Some(Dialling::ForMember(stream)) => {
                        self.dialled.push_back((dial, result.map(|()| stream.into())));
                    }
                    Some(Dialling::ForRequests(stream, asked)) => {
                        asked.answer(result.map(|()| stream).map_err(io::Error::other));
                    }
                    None => {}
                },
                Event::Entered { service, client, socket } => match self.edge.release(socket) {
                    Ok(stream) => self.requests.accept(service, stream, client),
                    Err(error) => tracing::warn!(%error, "a connection cannot be handed over"),
                },
            }
        }
    }
}

impl Drive for Driver {
    fn config(&self) -> &Config {
        self.network.config()
    }

    fn set_permanent(&mut self, permanent: bool) {
        self.network.set_permanent(permanent);
    }

    fn poll(&self) -> &Poll {
        self.edge.poll()
    }

    fn turn(&mut self, limit: Option<Instant>, ready: &mut Vec<u32>) -> io::Result<()> {
        let timeout = self.poll_timeout(limit).map(|due| due.duration_since(self.edge.tick()));
        self.edge.poll().wait(&mut self.events, timeout)?;
        let now = self.edge.tick();
        if let Some(upstreams) = self.resolvers.poll_change(now) {
            tracing::debug!(?upstreams, "resolvers");
            self.network.set_upstreams(upstreams);
        }
        let mut asked = false;
        for event in self.events.iter() {
            match Token::decode(event.token) {
                Some(Token::Plug(id)) => self.edge.handle_plug(id, event),
                Some(Token::Watch(key)) => ready.push(key),
                Some(Token::Addresses) => {
                    if self.changes.take() {
                        refresh_addresses(&mut self.network);
                        follow_cards(&mut self.network, &mut self.edge, now);
                    }
                }
                Some(Token::Asked) => asked = true,
                Some(Token::Supply(id)) => {
                    for came in self.edge.receive_supply(id) {
                        self.network.handle_supply(now, id, came.ipv4, came.some, &mut self.edge);
                    }
                }
                // Sockets come after the plugs; the rest is bridge mode's.
                Some(Token::Socket(_) | Token::Segment(_) | Token::Plumbing(_)) | None => {}
            }
        }
        if asked {
            self.dial_asked();
        }
        self.read_plugs();
        let now = self.edge.tick();
        for event in self.events.iter() {
            if let Some(Token::Socket(id)) = Token::decode(event.token)
                && let Some(readiness) = self.edge.readiness(id, event)
            {
                self.network.handle_host(now, id, readiness, &mut self.edge);
            }
        }
        self.settle();
        Ok(())
    }

    fn settle(&mut self) {
        let now = self.edge.tick();
        while let Some((plug, frame)) = self.edge.next_arrival(now) {
            self.network.handle_frame(now, plug, frame.as_frame(), &mut self.edge);
        }
        if self.network.poll_timeout().is_some_and(|due| due <= now) {
            self.network.handle_timeout(now, &mut self.edge);
        }
        self.busy = self.network.flush(now, &mut self.edge);
        self.edge.handle_timeout(now);
        self.edge.send_batches();
        self.tell_events();
        for (plug, member) in self.edge.take_dead() {
            self.remove_plug(&member, plug);
            // What others are told of it leaves with the next turn.
            self.busy = true;
        }
    }

    fn add_plug(
        &mut self,
        member: &str,
        request: &PlugRequest,
        fd: Option<OwnedFd>,
    ) -> Result<Plugged, ControlError> {
        let fd = fd.ok_or_else(|| ControlError {
            kind: ControlErrorKind::Malformed,
            message: "a network in user mode makes no TAPs: it needs `mode = \"bridge\"`"
                .to_owned(),
        })?;
        let plugged = self.network.add_plug(member, request)?;
        self.edge.add_plug(plugged.plug, member, fd, request).map_err(|error| {
            self.network.remove_plug(self.edge.now(), member, plugged.plug, &mut self.edge);
            let name = &request.name;
            let message = format!("cannot use the descriptor of `{name}` as a plug: {error}");
            ControlError { kind: ControlErrorKind::Malformed, message }
        })?;
        Ok(plugged)
    }

    fn set_supply(
        &mut self,
        member: &str,
        plug: PlugId,
        supply: OwnedFd,
    ) -> Result<(), ControlError> {
        let refused = |kind, why: String| ControlError {
            kind,
            message: format!("cannot take sockets of plug {}: {why}", plug.0),
        };
        if !self.network.has_plug(member, plug) {
            let why = format!("`{member}` has no such plug");
            return Err(refused(ControlErrorKind::Unknown, why));
        }
        self.edge
            .set_supply(plug, supply)
            .map_err(|error| refused(ControlErrorKind::Malformed, error.to_string()))
    }

    fn remove_plug(&mut self, member: &str, plug: PlugId) -> bool {
        let found = self.network.remove_plug(self.edge.now(), member, plug, &mut self.edge);
        if found {
            self.edge.remove_plug(plug);
        }
        found
    }

    fn add_forward(
        &mut self,
        member: &str,
        forward: Forward,
        socket: Option<OwnedFd>,
    ) -> Result<Vec<SocketAddr>, ControlError> {
        self.network.add_forward(self.edge.now(), member, forward, socket, &mut self.edge)
    }

    fn remove_forward(&mut self, member: &str, forward: &Forward) -> bool {
        self.network.remove_forward(self.edge.now(), member, forward, &mut self.edge)
    }

    fn set_service(
        &mut self,
        member: &str,
        spec: ServiceSpec,
    ) -> Result<(Vec<IpAddr>, Option<SocketAddr>), ControlError> {
        let name = spec.name.clone();
        let prepared = self.requests.prepare(self.network.services(), &spec, &[])?;
        let set = self.network.set_service(self.edge.now(), member, spec, &mut self.edge)?;
        let services = self.network.services();
        if let Some(service) = services.id_of(&name) {
            self.requests.set(services, service, prepared);
        }
        Ok(set)
    }

    fn remove_service(&mut self, member: &str, name: &str) -> Result<(), ControlError> {
        self.network.remove_service(self.edge.now(), member, name, &mut self.edge)?;
        self.requests.follow(self.network.services());
        Ok(())
    }

    fn set_rules(&mut self, member: &str, rules: Rules) -> Result<(), ControlError> {
        self.network.set_rules(self.edge.now(), member, rules, &mut self.edge);
        Ok(())
    }

    fn test_entry(
        &mut self,
        from: &Opener,
        guest: &str,
        what: What,
    ) -> Result<Tested, ControlError> {
        self.network.test_entry(from, guest, what)
    }

    fn test_policy(
        &mut self,
        guest: &str,
        protocol: policy::Protocol,
        to: SocketAddr,
    ) -> Result<Tested, ControlError> {
        self.network.test_policy(self.edge.now(), guest, protocol, to)
    }

    fn set_eligible(
        &mut self,
        member: &str,
        service: &str,
        instance: &str,
        eligible: bool,
    ) -> Result<(), ControlError> {
        let now = self.edge.now();
        self.network.set_eligible(now, member, service, instance, eligible, &mut self.edge)?;
        self.requests.follow(self.network.services());
        Ok(())
    }

    fn program_ended(&mut self, member: &str, instance: &str) {
        self.network.program_ended(self.edge.now(), member, instance, &mut self.edge);
    }

    /// Nothing is left to do: with each datagram it is seen whether its flow was answered.
    fn instance_hangs(&mut self, _: &str, _: &str, _: &str) {}

    fn set_remote(
        &mut self,
        member: &str,
        remote: Remote,
        socket: Option<OwnedFd>,
    ) -> Result<(), ControlError> {
        let Some(socket) = socket else { return self.network.set_remote(member, remote, None) };
        let plug = self.network.new_remote(member)?;
        self.edge.add_plug(plug, member, socket, &PlugRequest::remote()).map_err(|error| {
            let message = format!("cannot use the descriptor of `{member}` as a plug: {error}");
            ControlError { kind: ControlErrorKind::Malformed, message }
        })?;
        self.network.set_remote(member, remote, Some(plug))
    }

    fn names(&self) -> Vec<Name> {
        self.network.names()
    }

    fn dial(&mut self, to: SocketAddr, within: Duration) -> Result<DialId, ControlError> {
        let (dial, stream) = self.start_dial(to, within)?;
        self.dials.insert(dial, Dialling::ForMember(stream));
        Ok(dial)
    }

    fn poll_dialed(&mut self) -> Option<(DialId, Result<OwnedFd, ControlError>)> {
        self.dialled.pop_front()
    }

    fn abandon_dial(&mut self, dial: DialId) {
        // The network sees the end of the stream.
        self.dials.remove(&dial);
    }

    fn capture(
        &mut self,
        member: &str,
        filter: capture::Filter,
        to: OwnedFd,
    ) -> Result<(), ControlError> {
        let captures = self.edge.captures();
        let refused =
            |kind, why: String| ControlError { kind, message: format!("cannot capture: {why}") };
        if captures.len() >= MAX_CAPTURES {
            let why = format!("{MAX_CAPTURES} captures of this network run already: end one first");
            return Err(refused(ControlErrorKind::Exhausted, why));
        }
        captures
            .begin(member, filter, to)
            .map_err(|error| refused(ControlErrorKind::Failed, error.to_string()))
    }

    fn remove_member(&mut self, member: &str) {
        self.network.remove_member(self.edge.now(), member, &mut self.edge);
        self.edge.remove_member(member);
        self.requests.follow(self.network.services());
    }

    fn flows(&mut self) -> Result<Vec<FlowState>, ControlError> {
        Ok(self.network.flows(self.edge.now()))
    }

    fn services(&mut self) -> Vec<ServiceState> {
        self.network.services().state()
    }

    fn warnings(&mut self) -> Vec<String> {
        self.network.check_pings(&mut self.edge);
        self.network.warnings()
    }

    fn state(&mut self) -> State {
        self.network.check_pings(&mut self.edge);
        let mut state = self.network.state();
        for plug in &mut state.plugs {
            if let Some(counts) = self.edge.counts(plug.plug) {
                plug.guest_to_host = counts.guest_to_host;
                plug.host_to_guest = counts.host_to_guest;
                plug.dropped = counts.dropped;
                plug.spliced.possible = counts.supplied;
            }
        }
        let remotes = self.network.remotes().into_iter().map(|(plug, mut remote)| {
            if let Some(counts) = plug.and_then(|plug| self.edge.counts(plug)) {
                remote.from_remote = counts.guest_to_host;
                remote.to_remote = counts.host_to_guest;
            }
            remote
        });
        state.remotes = remotes.collect();
        state.pid = std::process::id();
        self.requests.count_refused(&mut state);
        state
    }
}

/// Tells the network the machine's addresses, which have changed.
fn refresh_addresses(network: &mut Network) {
    match surroundings::host_addresses() {
        Ok(addresses) => network.set_host_addresses(addresses),
        // The old ones stay refused.
        Err(error) => tracing::warn!(%error, "cannot list the machine's addresses"),
    }
}

/// Tells the network the machine's cards on whose links names in `.local` are asked for, if there are any.
fn follow_cards(network: &mut Network, edge: &mut HostEdge<Plugs>, now: Instant) {
    let mdns = &network.config().mdns;
    if *mdns == Mdns::Off {
        return;
    }
    match surroundings::cards(mdns) {
        Ok(cards) => network.set_mdns_cards(now, &cards, edge),
        Err(error) => tracing::warn!(%error, "cannot list the machine's cards"),
    }
}
