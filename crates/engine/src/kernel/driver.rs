//! The bridge-mode network's thread: its loop, its sockets, and the verbs of its members.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use netyard_proxy::Way;
use netyard_sys::poll::{Events, Interest, Poll};
use netyard_wire::MAX_FRAME_LEN;

use super::Io;
use super::books::{Books, OpenForward};
use super::datagrams::Datagrams;
use super::dials::{self, Dials};
use super::doors::Doors;
use super::relay::Relays;
use super::segment::SegmentPort;
use super::serve::{self, Gateway};
use crate::capture;
use crate::config::Config;
use crate::control::{
    ControlError, ControlErrorKind, FlowState, ForwardState, Name, Opener, PlugRequest, Plugged,
    Remote, ServiceSpec, ServiceState, State, TurnPolicy,
};
use crate::counters::Counters;
use crate::delivery::DeliveryError;
use crate::drive::Drive;
use crate::driver::edge::HostEdge;
use crate::driver::surroundings::Resolvers;
use crate::driver::token::Token;
use crate::edge::{PlugId, Readiness, SocketId};
use crate::forward::Forward;
use crate::network::{DialId, names};
use crate::plumbing::{Flows, Plumbing, Segment};
use crate::policy::rules::{Rules, What};
use crate::policy::{self, Gate, Tested};
use crate::requests::Requests;
use crate::service::{Service, ServiceId};

/// Frames read from the segment before others get their turn.
const FRAMES_PER_TURN: usize = 64;

/// A bridge-mode network with everything that makes it run.
#[derive(Debug)]
pub(crate) struct Driver {
    books: Books,
    gateway: Gateway,
    doors: Doors,
    relays: Relays,
    datagrams: Datagrams,
    dials: Dials,
    requests: Requests,
    counters: Counters,
    edge: HostEdge<SegmentPort>,
    events: Events,
    buffer: Box<[u8]>,
    resolvers: Resolvers,
    interface: String,
    warnings: Vec<String>,
    /// There is more to do at once.
    busy: bool,
    /// What was made in the kernel. Last: it is undone when nothing uses it any more.
    plumbing: Box<dyn Plumbing>,
}

/// There are no rules where the kernel moves the packets.
fn no_rules() -> ControlError {
    let message = "networks on bridges have no rules: take mode = \"user\"";
    ControlError { kind: ControlErrorKind::Malformed, message: message.to_owned() }
}

fn undelivered(error: DeliveryError) -> ControlError {
    ControlError { kind: ControlErrorKind::Malformed, message: error.to_string() }
}

/// What the parts that relay may touch.
fn io<'a>(edge: &'a mut HostEdge<SegmentPort>, counters: &'a mut Counters) -> Io<'a> {
    Io { now: edge.now(), edge, counters }
}

impl Driver {
    /// Makes the segment, without plugs, in a process that may have so many descriptors. `folder` is
    /// the network's.
    ///
    /// # Errors
    /// What stands in the way; nothing stays then.
    pub(crate) fn new(
        config: Config,
        mut plumbing: Box<dyn Plumbing>,
        folder: &Path,
        descriptors: usize,
    ) -> Result<Self, ControlError> {
        let name = config.name.clone();
        let failed = |error: io::Error| ControlError {
            kind: ControlErrorKind::Failed,
            message: format!("network `{name}` cannot be served: {error}"),
        };
        let segment = plumbing.open(&config)?;
        let books = Books::new(config, &segment);
        let now = Instant::now();
        let port = if serve::serves_addresses(&books.config) {
            SegmentPort::open(segment.index).map_err(failed)?
        } else {
            SegmentPort::default()
        };
        let mut edge = HostEdge::new(port, now).map_err(failed)?;
        for (number, fd) in edge.plugs.watched() {
            let token = Token::Segment(number).encode();
            edge.poll().add(fd, token, Interest::Arrivals).map_err(failed)?;
        }
        for (number, fd) in (0..).zip(plumbing.watched()) {
            let token = Token::Plumbing(number).encode();
            edge.poll().add(fd, token, Interest::Readable).map_err(failed)?;
        }
        let Segment { interface, index, joined, mut warnings, .. } = segment;
        let gateway =
            Gateway::open(&books.config, index, joined, &mut edge, folder, &mut warnings)?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let mut doors = Doors::new();
        doors.open_host(&mut edge, &books.config)?;
        Ok(Self {
            books,
            gateway,
            doors,
            relays: Relays::new(now),
            datagrams: Datagrams::new(now),
            dials: Dials::default(),
            requests: Requests::new(Way::Host, descriptors, Gate::default()),
            counters: Counters::default(),
            edge,
            events: Events::new(),
            buffer: vec![0; MAX_FRAME_LEN].into_boxed_slice(),
            resolvers: Resolvers::new(),
            interface,
            warnings,
            busy: false,
            plumbing,
        })
    }

    /// When the next turn must come at the latest.
    fn poll_timeout(&self, limit: Option<Instant>) -> Option<Instant> {
        if self.busy {
            return Some(self.edge.now());
        }
        let due = [
            limit,
            self.gateway.poll_timeout(),
            self.relays.poll_timeout(),
            self.datagrams.poll_timeout(),
            self.dials.poll_timeout(),
        ];
        due.into_iter().flatten().min()
    }

    /// Reads what guests ask on the segment.
    fn read_segment(&mut self) {
        for _ in 0..FRAMES_PER_TURN {
            let Some(frame) = self.edge.plugs.receive(&mut self.buffer) else { break };
            match frame {
                Ok(frame) => {
                    let now = self.edge.now();
                    self.gateway.handle_frame(now, frame, &self.books, &mut self.edge);
                }
                Err(reason) => self.counters.drop(reason),
            }
        }
    }

    fn handle_socket(&mut self, socket: SocketId, ready: Readiness) {
        let io = &mut io(&mut self.edge, &mut self.counters);
        if self.relays.owns(socket) {
            self.relays.handle_socket(io, socket, ready);
        } else if self.doors.owns(socket) {
            self.doors.handle_socket(io, socket);
        } else if self.datagrams.owns(socket) {
            self.datagrams.handle_socket(io, socket);
        } else if self.dials.owns(socket) {
            self.dials.handle_socket(io, socket, ready);
        } else if self.gateway.owns(socket) {
            self.gateway.handle_socket(io.now, socket, ready, &self.books, io.edge);
        }
        // Else: an event of a socket that an event before it has closed.
    }

    /// Takes plugs out, and everything that leads to them.
    fn take_out(&mut self, plugs: &[PlugId]) {
        self.books.remove_plugs(plugs, &mut *self.plumbing);
        let io = &mut io(&mut self.edge, &mut self.counters);
        for plug in plugs {
            self.relays.remove_guest(io, *plug);
            self.datagrams.remove_guest(io, *plug);
            self.gateway.remove_guest(io.now, *plug, &self.books, io.edge);
        }
        self.end_abandoned();
    }

    /// Takes forwards of a member out: all, or one. False if there was none.
    fn take_forwards(&mut self, member: &str, which: Option<&Forward>) -> bool {
        let gone = self.books.remove_forwards(member, which, &mut *self.plumbing);
        let io = &mut io(&mut self.edge, &mut self.counters);
        for open in &gone {
            self.doors.unbind(io, &mut self.datagrams, &open.sockets);
        }
        !gone.is_empty()
    }

    fn update_available(&mut self, service: ServiceId) {
        let available = self.books.services.get(service).is_some_and(Service::is_available);
        self.doors.set_available(&mut self.edge, &self.datagrams, service, available);
        self.end_abandoned();
    }

    /// Closes the UDP ports of services without instances at which nobody who has gone is heard any more:
    /// the flows by them lead nowhere.
    fn end_abandoned(&mut self) {
        if !self.doors.is_closing() {
            return;
        }
        let Some(counted) = self.plumbing.services() else { return };
        let services = &self.books.services;
        let is_heard = |service| {
            let traffic = services.get(service).and_then(|service| counted.get(service.name()));
            traffic.is_some_and(|it| it.instances.iter().any(|(_, turns)| turns.open > 0))
        };
        let io = &mut io(&mut self.edge, &mut self.counters);
        self.doors.close_unused(io, &mut self.datagrams, is_heard);
    }
}

impl Driver {
    /// Why a member cannot see packets and flows here.
    fn moved_by_the_kernel(&self, what: &str, instead: &str) -> ControlError {
        let message = format!(
            "cannot {what}: network `{}` is on bridge `{}`, and the kernel moves its packets; as root, \
             {instead} shows them",
            self.books.config.name, self.interface
        );
        ControlError { kind: ControlErrorKind::Failed, message }
    }
}

impl Drive for Driver {
    fn config(&self) -> &Config {
        &self.books.config
    }

    fn set_permanent(&mut self, permanent: bool) {
        self.books.config.permanent = permanent;
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
            self.gateway.set_upstreams(upstreams);
        }
        let events: Vec<_> = self.events.iter().collect();
        let mut changed = false;
        for event in events {
            match Token::decode(event.token) {
                Some(Token::Watch(key)) => ready.push(key),
                Some(Token::Plumbing(_)) => changed = true,
                Some(Token::Segment(number)) => self.edge.plugs.set_readable(number),
                Some(Token::Socket(id)) => {
                    if let Some(readiness) = self.edge.readiness(id, event) {
                        self.handle_socket(id, readiness);
                    }
                }
                Some(Token::Plug(_) | Token::Supply(_) | Token::Addresses | Token::Asked)
                | None => {}
            }
        }
        if changed {
            let gone = self.plumbing.handle_changes();
            if !gone.is_empty() {
                tracing::info!(plugs = gone.len(), "plugs have gone");
                self.take_out(&gone);
            }
        }
        self.read_segment();
        self.settle();
        Ok(())
    }

    fn settle(&mut self) {
        let now = self.edge.tick();
        let io = &mut io(&mut self.edge, &mut self.counters);
        self.relays.handle_timeout(io);
        self.datagrams.handle_timeout(io);
        self.dials.handle_timeout(io);
        if self.gateway.poll_timeout().is_some_and(|due| due <= now) {
            self.gateway.handle_timeout(now, &self.books, io.edge);
        }
        let doors = self.doors.flush(io, &self.books, &mut self.relays, &mut self.datagrams);
        let relays = self.relays.flush(io);
        let datagrams = self.datagrams.flush(io);
        self.doors.close_unused(io, &mut self.datagrams, |_| true);
        let gateway = self.gateway.flush(now, &self.books, io.edge);
        self.busy = doors || relays || datagrams || gateway || self.edge.plugs.is_readable();
    }

    fn add_plug(
        &mut self,
        member: &str,
        request: &PlugRequest,
        fd: Option<OwnedFd>,
    ) -> Result<Plugged, ControlError> {
        let (gateway, now) = (&self.gateway, self.edge.now());
        let lent = |address| gateway.has_lent(now, address);
        self.books.add_plug(member, request, fd, &lent, &mut *self.plumbing)
    }

    fn set_supply(&mut self, _: &str, _: PlugId, _: OwnedFd) -> Result<(), ControlError> {
        Err(undelivered(DeliveryError::BridgeSplice))
    }

    fn remove_plug(&mut self, member: &str, plug: PlugId) -> bool {
        let found = self.books.owner(plug) == Some(member);
        if found {
            self.take_out(&[plug]);
        }
        found
    }

    fn add_forward(
        &mut self,
        member: &str,
        forward: Forward,
        socket: Option<OwnedFd>,
    ) -> Result<Vec<SocketAddr>, ControlError> {
        forward.delivery.check_bridge().map_err(undelivered)?;
        let sockets = self.doors.bind(&mut self.edge, &forward, socket)?;
        let bound = forward.pairs().map(|(at, _)| at).collect();
        let member = member.to_owned();
        let open = OpenForward { forward, member, sockets: sockets.clone(), counted: 0 };
        self.books.add_forward(open, &mut *self.plumbing).inspect_err(|_| {
            let io = &mut io(&mut self.edge, &mut self.counters);
            self.doors.unbind(io, &mut self.datagrams, &sockets);
        })?;
        Ok(bound)
    }

    fn remove_forward(&mut self, member: &str, forward: &Forward) -> bool {
        self.take_forwards(member, Some(forward))
    }

    fn set_service(
        &mut self,
        member: &str,
        spec: ServiceSpec,
    ) -> Result<(Vec<IpAddr>, Option<SocketAddr>), ControlError> {
        spec.delivery.check_bridge().map_err(undelivered)?;
        let published = spec.publish;
        let publish = published.filter(|_| spec.policy == TurnPolicy::RoundRobin);
        let protocol = spec.protocol;
        let old = self.books.services.id_of(&spec.name);
        let gateway = [self.books.config.gateway4().into(), self.books.config.gateway6().into()];
        // The ports first: a bound port without service harms nobody.
        let answered = self.requests.prepare(&self.books.services, &spec, &gateway)?;
        let answered_at = self.requests.inside(&self.books.services, &spec, &answered);
        let prepared = self.doors.prepare(&mut self.edge, old, protocol, publish)?;
        let (gateway, now) = (&self.gateway, self.edge.now());
        let lent = |address| gateway.has_lent(now, address);
        let made = self.books.set_service(member, spec, answered_at, &lent, &mut *self.plumbing);
        let service = made.inspect_err(|_| self.doors.drop_prepared(&mut self.edge, prepared))?;
        let io = &mut io(&mut self.edge, &mut self.counters);
        self.doors.publish(io, &mut self.datagrams, service, publish, prepared);
        self.requests.set(&self.books.services, service, answered);
        self.update_available(service);
        let addresses = self.books.services.get(service).map(Service::addresses);
        Ok((addresses.into_iter().flatten().collect(), published))
    }

    fn remove_service(&mut self, member: &str, name: &str) -> Result<(), ControlError> {
        let service = self.books.remove_service(member, name, &mut *self.plumbing)?;
        let io = &mut io(&mut self.edge, &mut self.counters);
        self.doors.unpublish(io, &mut self.datagrams, service);
        self.requests.follow(&self.books.services);
        Ok(())
    }

    fn set_rules(&mut self, _: &str, rules: Rules) -> Result<(), ControlError> {
        match rules == Rules::default() {
            true => Ok(()),
            false => Err(no_rules()),
        }
    }

    fn test_entry(&mut self, _: &Opener, _: &str, _: What) -> Result<Tested, ControlError> {
        Err(no_rules())
    }

    fn test_policy(
        &mut self,
        _: &str,
        _: policy::Protocol,
        _: SocketAddr,
    ) -> Result<Tested, ControlError> {
        Err(no_rules())
    }

    fn set_eligible(
        &mut self,
        member: &str,
        service: &str,
        instance: &str,
        eligible: bool,
    ) -> Result<(), ControlError> {
        let plumbing = &mut *self.plumbing;
        let service = self.books.set_eligible(member, service, instance, eligible, plumbing)?;
        self.update_available(service);
        self.requests.follow(&self.books.services);
        Ok(())
    }

    fn program_ended(&mut self, member: &str, instance: &str) {
        let plug = self.books.guests.by_name(instance).map(|guest| guest.plug);
        if let Some(plug) = plug.filter(|plug| self.books.owner(*plug) == Some(member)) {
            self.plumbing.forget_flows(plug);
            self.end_abandoned();
        }
    }

    fn instance_hangs(&mut self, member: &str, service: &str, instance: &str) {
        if self.books.services.of_member(member, service).is_some() {
            self.plumbing.forget_unanswered(service, instance);
            self.end_abandoned();
        }
    }

    fn set_remote(
        &mut self,
        member: &str,
        remote: Remote,
        socket: Option<OwnedFd>,
    ) -> Result<(), ControlError> {
        if socket.is_some() {
            let message = "a bridge takes no packets of remote machines by a socket".to_owned();
            return Err(ControlError { kind: ControlErrorKind::Malformed, message });
        }
        self.books.set_remote(member, remote, &mut *self.plumbing)
    }

    fn names(&self) -> Vec<Name> {
        names(&self.books.guests, &self.books.services)
    }

    fn dial(&mut self, to: SocketAddr, within: Duration) -> Result<DialId, ControlError> {
        let books = &self.books;
        let known = books.guests.by_address(to.ip()).is_some()
            || books.services.by_address(to.ip()).is_some();
        if !known {
            let nobody = io::Error::other("nobody in the network has this address");
            return Err(dials::unreachable(to, &nobody));
        }
        self.dials.start(&mut io(&mut self.edge, &mut self.counters), to, within)
    }

    fn poll_dialed(&mut self) -> Option<(DialId, Result<OwnedFd, ControlError>)> {
        self.dials.poll(|socket| self.edge.release(socket))
    }

    fn abandon_dial(&mut self, dial: DialId) {
        self.dials.abandon(&mut io(&mut self.edge, &mut self.counters), dial);
    }

    fn capture(&mut self, _: &str, _: capture::Filter, _: OwnedFd) -> Result<(), ControlError> {
        let tool = format!("`tcpdump -i {}`", self.interface);
        Err(self.moved_by_the_kernel("capture", &tool))
    }

    fn remove_member(&mut self, member: &str) {
        for service in self.books.remove_services(member, &mut *self.plumbing) {
            let io = &mut io(&mut self.edge, &mut self.counters);
            self.doors.unpublish(io, &mut self.datagrams, service);
        }
        self.requests.follow(&self.books.services);
        self.take_forwards(member, None);
        self.take_out(&self.books.plugs_of(member));
        self.books.remove_remote(member, &mut *self.plumbing);
    }

    fn flows(&mut self) -> Result<Vec<FlowState>, ControlError> {
        let subnet = self.books.config.subnet4;
        Err(self.moved_by_the_kernel("list flows", &format!("`conntrack -L --orig-src {subnet}`")))
    }

    fn services(&mut self) -> Vec<ServiceState> {
        let counted = self.plumbing.services();
        self.books.services(counted)
    }

    fn warnings(&mut self) -> Vec<String> {
        [self.warnings.clone(), self.books.remotes.warnings(&self.books.config)].concat()
    }

    fn state(&mut self) -> State {
        let warnings = self.warnings();
        let forwards =
            self.books.forwards(&mut *self.plumbing).map(|(open, counted)| ForwardState {
                forward: open.forward.clone(),
                member: open.member.clone(),
                connections: self.doors.connections(&open.sockets) + counted,
            });
        let forwards = forwards.collect();
        let now = self.edge.now();
        let mut drops = self.counters.all();
        // What is relayed is tracked too, on its way to the segment.
        let relayed = Flows { tcp: self.relays.len(), udp: self.datagrams.len() };
        let tracked = self.plumbing.tracked();
        let flows = tracked.as_ref().map_or(relayed, |tracked| tracked.flows);
        let services = self.books.services(tracked.map(|tracked| tracked.services));
        let refusals = self.plumbing.refusals();
        for (reason, count) in self.gateway.drops().into_iter().chain(refusals.drops) {
            *drops.entry(reason).or_default() += count;
        }
        let remotes = &self.books.remotes;
        let mut state = State {
            config: Some(self.books.config.clone()),
            interface: Some(self.interface.clone()),
            warnings,
            pid: std::process::id(),
            members: Vec::new(),
            asked_by: String::new(),
            plugs: self.books.plugs(&mut *self.plumbing),
            remotes: remotes.state().into_iter().map(|(_, remote)| remote).collect(),
            forwards,
            services,
            leases: self.gateway.lent(now),
            tcp_flows: flows.tcp,
            udp_flows: flows.udp,
            pings: None,
            dns: self.gateway.dns_state(),
            drops,
            policy: refusals.policy,
            rules: Default::default(),
        };
        self.requests.count_refused(&mut state);
        state
    }
}
