//! Connections of a guest by a link that loses, repeats, and reorders, beside a model of what each end must have:
//! the bytes that the other one has sent, in their order.
//!
//! Time goes from event to event: what the link delivers, what the network has to do, and a moment that passes for
//! the two ends.

mod guest;
mod plan;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use netyard_engine::control::Plugged;
use netyard_engine::delivery::Delivery;
use netyard_engine::edge::{Readiness, SocketId};
use netyard_wire::FrameBuf;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use self::guest::{Peer, State};
pub(crate) use self::plan::Plan;
use self::plan::{Order, Side};
use crate::common::{Guest, Seen, Sim};

/// All that is to be done is done in less, most of it in seconds.
const LONGEST: Duration = Duration::from_secs(3600);
const MOST_EVENTS: usize = 400_000;

/// A link between guest and gateway; the same both ways.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// How likely a frame is lost, or comes twice.
    pub(crate) loss: f64,
    pub(crate) again: f64,
    /// How long a frame takes, microseconds: by what differs frames overtake each other.
    pub(crate) delay: Range<u64>,
    /// When the guest stands still, from the beginning: frames to it wait, and it does nothing.
    pub(crate) pause: Range<Duration>,
}

#[derive(Debug)]
enum Passing {
    ToGuest(FrameBuf),
    ToGateway(FrameBuf),
}

/// The host's end of a connection.
#[derive(Debug, Default)]
struct Far {
    socket: Option<SocketId>,
    connected: bool,
    fed: usize,
    ended: bool,
    broken: bool,
}

struct Flow {
    peer: Peer,
    far: Far,
    begun: bool,
}

/// All of it.
pub(crate) struct Model {
    pub(crate) sim: Sim,
    rng: SmallRng,
    link: Link,
    began: Instant,
    passing: BTreeMap<(Instant, u64), Passing>,
    count: u64,
    tick_at: Instant,
    listener: SocketId,
    plug: Plugged,
    flows: Vec<Flow>,
    /// Most flows at a time.
    pub(crate) crowd: usize,
}

impl Model {
    pub(crate) fn new(mut sim: Sim, link: Link, plans: Vec<Plan>, rng: SmallRng) -> Self {
        // By frames also where the client is this machine.
        let delivery = Delivery { splice: Some(false), ..Delivery::default() };
        let (mut plugs, listener) = sim.publish(&["a"], delivery);
        let plug = plugs.remove(0);
        let began = sim.now;
        let flows = plans.into_iter().zip(0..).map(|(plan, number)| {
            let remote = if plan.ipv4 { "203.0.113.5:80" } else { "[2001:db8::5]:80" };
            let mut guest = Guest::new(plug.clone(), remote);
            guest.remote.set_port(1000 + number);
            guest.own.set_port(40_000 + number);
            if plan.inbound {
                // Where the SYN will come from, and to.
                guest.own.set_port(8080);
                guest.own.set_ip(plug.address4.into());
                guest.remote = ([192, 0, 2, 9], 5000 + number).into();
            }
            Flow { peer: Peer::new(guest, plan, began), far: Far::default(), begun: false }
        });
        let flows = flows.collect();
        let passing = BTreeMap::new();
        let tick_at = began;
        Self { sim, rng, link, began, passing, count: 0, tick_at, listener, plug, flows, crowd: 0 }
    }

    /// Lets all of it happen, and asserts what must be then.
    pub(crate) fn run(mut self) -> Self {
        for _ in 0..MOST_EVENTS {
            if self.is_over() {
                self.assert_outcome();
                return self;
            }
            self.event();
        }
        panic!("not over after {:?} and many events", self.since());
    }

    /// The gateway's first sequence number of the first connection.
    pub(crate) fn first_numbers(&self) -> u32 {
        self.flows[0].peer.their_first()
    }

    fn since(&self) -> Duration {
        self.sim.now - self.began
    }

    fn is_over(&self) -> bool {
        let over = |flow: &Flow| match (flow.peer.plan.reset, flow.peer.state) {
            _ if !flow.begun => false,
            (_, State::Fresh) => self.is_given_up(flow),
            (_, State::Reset) | (Some(Side::Guest), State::Resetting) => true,
            _ => flow.peer.is_done(),
        };
        self.sim.network.state().tcp_flows == 0 && self.flows.iter().all(over)
    }

    /// Nobody answered a client in time.
    fn is_given_up(&self, flow: &Flow) -> bool {
        let stream = flow.far.socket.map(|socket| &self.sim.world.streams[&socket.0]);
        let reset = stream.is_some_and(|stream| stream.reset && stream.outbox.is_empty());
        reset && flow.peer.plan.inbound && !flow.far.connected && self.link.loss > 0.0
    }

    fn is_paused(&self) -> bool {
        self.link.pause.contains(&self.since())
    }

    fn event(&mut self) {
        let delivered = self.passing.first_key_value().map(|((at, _), _)| *at);
        let due = [self.sim.network.poll_timeout(), delivered, Some(self.tick_at)];
        let at = due.into_iter().flatten().min().unwrap().max(self.sim.now);
        self.sim.advance(at - self.sim.now);
        if self.since() >= LONGEST {
            let flows = self.sim.network.flows(self.sim.now);
            let ends: Vec<_> = self.flows.iter().map(|flow| (&flow.peer, &flow.far)).collect();
            panic!("not over after {:?}: {flows:?} {ends:?}", self.since());
        }
        self.collect();
        while let Some(entry) = self.passing.first_entry().filter(|it| it.key().0 <= at) {
            match entry.remove() {
                Passing::ToGateway(frame) => self.sim.frame(self.plug.plug, frame.as_frame()),
                Passing::ToGuest(frame) => self.deliver(&frame),
            }
            self.collect();
        }
        if self.tick_at <= at {
            self.tick();
            self.tick_at = at + Duration::from_micros(self.rng.random_range(1_000..20_000));
        }
        self.crowd = self.crowd.max(self.sim.network.state().tcp_flows);
    }

    /// Hands a frame to the link.
    fn pass(&mut self, to_guest: bool, frame: FrameBuf) {
        let copies = match () {
            () if self.rng.random_bool(self.link.loss) => 0,
            () if self.rng.random_bool(self.link.again) => 2,
            () => 1,
        };
        for copy in 0..copies {
            let mut takes = Duration::from_micros(self.rng.random_range(self.link.delay.clone()));
            if copy > 0 && self.rng.random_bool(0.1) {
                // A ghost of long ago.
                takes += Duration::from_millis(1500);
            }
            let arrives = self.since() + takes;
            if to_guest && self.link.pause.contains(&arrives) {
                takes += self.link.pause.end - arrives;
            }
            self.count += 1;
            let frame = frame.clone();
            let passing =
                if to_guest { Passing::ToGuest(frame) } else { Passing::ToGateway(frame) };
            self.passing.insert((self.sim.now + takes, self.count), passing);
        }
    }

    /// Takes what the network sends.
    fn collect(&mut self) {
        while let Some((_, frame)) = self.sim.world.frames.pop_front() {
            let Some(seen) = Seen::parse(&frame) else { continue };
            let flow = self.flows.iter_mut().find(|flow| flow.peer.is_for(&seen));
            flow.expect("a flow of the model").peer.check(&seen);
            self.pass(true, frame);
        }
    }

    fn deliver(&mut self, frame: &FrameBuf) {
        let seen = Seen::parse(frame).unwrap();
        let Some(flow) = self.flows.iter_mut().find(|flow| flow.peer.is_for(&seen)) else { return };
        let answers = flow.peer.hear(self.sim.now, seen);
        flow.far.connected |= flow.peer.plan.inbound && flow.peer.state == State::Open;
        for answer in answers {
            self.pass(false, answer);
        }
    }

    /// A moment passes for both ends of each connection.
    fn tick(&mut self) {
        for index in 0..self.flows.len() {
            let since = self.since();
            if since < self.flows[index].peer.plan.begins {
                continue;
            }
            if !self.flows[index].begun {
                self.begin(index);
            }
            self.far_tick(index);
            if self.is_paused() {
                continue;
            }
            let flow = &mut self.flows[index];
            let since = since.saturating_sub(flow.peer.plan.begins);
            let frames = flow.peer.tick(self.sim.now, since, &mut self.rng);
            for frame in frames {
                self.pass(false, frame);
            }
        }
        self.collect();
    }

    fn begin(&mut self, index: usize) {
        let flow = &mut self.flows[index];
        flow.begun = true;
        if flow.peer.plan.inbound {
            let from = flow.peer.guest.remote.to_string();
            let socket = self.sim.client(self.listener, &from);
            self.sim.world.stream(socket).room = 0;
            flow.far.socket = Some(socket);
        } else {
            let syn = flow.peer.syn(self.sim.now);
            self.pass(false, syn);
        }
    }

    /// The host's socket of an outbound connection, once it is opened.
    fn find_socket(&mut self, index: usize) -> Option<SocketId> {
        let Flow { peer, far, .. } = &mut self.flows[index];
        let to = Some(peer.guest.remote);
        let opened = || self.sim.world.streams.iter().find(|(_, stream)| stream.to == to);
        far.socket = far.socket.or_else(|| opened().map(|(id, _)| SocketId(*id)));
        far.socket
    }

    fn far_tick(&mut self, index: usize) {
        let Some(socket) = self.find_socket(index) else { return };
        let since = self.since();
        let Flow { peer, far, .. } = &mut self.flows[index];
        let plan = &peer.plan;
        let stream = self.sim.world.stream(socket);
        assert!(plan.up.starts_with(&stream.outbox), "not what the guest has sent");
        if stream.closed {
            return;
        }
        let finished = stream.shut;
        if plan.reset == Some(Side::Host)
            && since >= plan.begins + plan.reset_after
            && peer.state == State::Open
            && !far.broken
        {
            far.broken = true;
            stream.error = Some(io::ErrorKind::ConnectionReset);
            stream.inbox_ended = true;
            let (readable, writable) = (true, true);
            let ready =
                Readiness { readable, writable, read_closed: true, hangup: true, error: true };
            return self.sim.host(socket, ready);
        }
        if !far.connected && !plan.inbound {
            far.connected = true;
            stream.room = 0;
            return self.sim.writable(socket);
        }
        if far.broken {
            return;
        }
        if self.rng.random_bool(plan.host_eager) {
            stream.room = self.rng.random_range(0..=plan.host_room);
            let (ready, to_say) = (
                stream.room > 0,
                match plan.order {
                    Order::GuestFirst if !finished => plan.down.len() / 2,
                    _ => plan.down.len(),
                },
            );
            let more = self.rng.random_range(0..=to_say - far.fed.min(to_say)).min(50_000);
            let more = if to_say - far.fed < 2_000 { to_say - far.fed } else { more };
            let says = plan.down[far.fed..far.fed + more].to_vec();
            far.fed += more;
            let ends = far.fed == plan.down.len() && !far.ended;
            far.ended |= ends;
            if ready {
                self.sim.writable(socket);
            }
            if !says.is_empty() && !self.sim.world.stream(socket).closed {
                self.sim.arrives(socket, &says);
            }
            if ends && !self.sim.world.stream(socket).closed {
                self.sim.ends(socket);
            }
        }
    }

    fn assert_outcome(&mut self) {
        for (index, flow) in self.flows.iter().enumerate() {
            let Flow { peer, far, .. } = flow;
            let Some(socket) = far.socket else {
                assert_eq!(peer.plan.reset, Some(Side::Guest), "flow {index} never opened");
                continue;
            };
            let stream = &self.sim.world.streams[&socket.0];
            if self.is_given_up(flow) {
                continue;
            }
            assert!(stream.closed, "flow {index}: its socket is open");
            assert!(peer.plan.up.starts_with(&stream.outbox), "flow {index}: up");
            assert!(peer.plan.down.starts_with(&peer.got), "flow {index}: down");
            if peer.plan.reset.is_none() || (peer.is_done() && stream.shut && !stream.reset) {
                assert!(
                    peer.got == peer.plan.down && peer.got_fin,
                    "flow {index}: bytes for the guest: {peer:?} {far:?}"
                );
                assert!(
                    stream.outbox == peer.plan.up,
                    "flow {index}: bytes for the host: {peer:?} {far:?}"
                );
                assert!(stream.shut && !stream.reset, "flow {index}: no orderly end");
            } else {
                // The reset may have come when all was said already.
                let orderly = stream.shut && stream.outbox == peer.plan.up && peer.got_fin;
                let heard = stream.reset || far.broken || orderly;
                assert!(heard, "flow {index}: the host has not heard of it");
            }
        }
    }
}

/// Plans of connections that begin one after the other, and end.
pub(crate) fn ramp(rng: &mut SmallRng, count: usize, apart: Duration) -> Vec<Plan> {
    let mut plans: Vec<Plan> = (0..count).map(|_| Plan::any(rng)).collect();
    for (plan, number) in plans.iter_mut().zip(0..) {
        plan.begins = apart * number;
        plan.reset = None;
    }
    plans
}
