//! What is measured beside the two axes: ports, hairpin, lifetime.

use std::time::Duration;

use super::delta::{self, Sample};
use super::examine::{Examiner, Site};
use super::kind::{DeltaType, Mapping};
use super::report::{Delta, Hairpin, Ports, Scope};
use crate::stun::machine::{Port, Socket, all};
use crate::stun::message::{Builder, Class, Message, Method};
use crate::stun::{Question, TransactionId};

/// Local ports that series are taken from: above what services use, below where everything ends.
const PORTS: (u16, u16) = (10_000, 60_000);
/// Local ports in use that are stepped over for one sample.
const BUSY: u32 = 3;
/// How long one packet through a hairpin is waited for.
const HAIRPIN: Duration = Duration::from_millis(300);
/// How often what may get lost is sent.
const TRIES: u32 = 3;
/// How long an answer to another port is waited for.
const DETOUR: Duration = Duration::from_millis(400);
/// Ages at which mappings are looked at, seconds.
const LADDER: [u64; 8] = [20, 30, 45, 60, 90, 120, 180, 300];

/// What was found about ports.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PortReport {
    pub(super) delta: Option<Delta>,
    pub(super) ports: Option<Ports>,
    pub(super) next_destination: Option<i32>,
}

impl Examiner {
    /// Takes series of ports, one after the other.
    pub(super) async fn ports(&self, site: Site, mapping: Option<Mapping>) -> PortReport {
        if mapping == Some(Mapping::None) {
            let delta = Delta::new(DeltaType::Equal, 0, Scope::Socket);
            return PortReport { delta: Some(delta), ..PortReport::default() };
        }
        let next_destination = match mapping {
            Some(Mapping::EndpointIndependent) => None,
            _ => self.next_destination(site).await,
        };
        let mut sockets = Vec::new();
        let mut apart = Vec::new();
        for _ in 0..delta::SERIES {
            let port = || self.line.port(PORTS.0, PORTS.1);
            apart.extend(self.sample(site, port, &mut sockets).await);
        }
        let mut found = delta::far_apart(&apart);
        if found.is_none() {
            let mut next = self.line.port(PORTS.0, PORTS.1);
            let mut consecutive = Vec::new();
            for _ in 0..delta::SERIES {
                let port = || {
                    next += 1;
                    next
                };
                consecutive.extend(self.sample(site, port, &mut sockets).await);
            }
            found = delta::consecutive(&consecutive);
            apart.extend(consecutive);
        }
        PortReport { delta: found, ports: delta::ports(&apart), next_destination }
    }

    /// One sample from a port that is free.
    async fn sample(
        &self,
        site: Site,
        mut port: impl FnMut() -> u16,
        sockets: &mut Vec<Socket>,
    ) -> Option<Sample> {
        for _ in 0..BUSY {
            let Ok(socket) = self.line.open(Port::Exact(port())).await else { continue };
            let question = Question::plain(site.primary, site.classic);
            let answer = self.ask("ports", &socket, question).await.ok()?;
            let sample = Sample { local: socket.local().port(), mapped: answer.mapped.port() };
            // It stays open, so that its port is not taken twice.
            sockets.push(socket);
            return Some(sample);
        }
        None
    }

    /// How the port of one socket steps from destination to destination.
    async fn next_destination(&self, site: Site) -> Option<i32> {
        let socket = self.line.open(Port::Any).await.ok()?;
        let mut mapped = Vec::new();
        for to in [site.primary, site.other_port(), site.other_address(), site.other] {
            let answer = self.ask("destinations", &socket, Question::plain(to, site.classic)).await;
            mapped.push(answer.ok()?.mapped.port());
        }
        delta::next_destination(&mapped)
    }

    /// Sends from one socket to the external address of another. Both send, so that no filter is in the
    /// way (RFC 4787, section 6).
    pub(super) async fn hairpin(&self, site: Site) -> Option<Hairpin> {
        let plain = Question::plain(site.primary, site.classic);
        let one = self.line.open(Port::Any).await.ok()?;
        let two = self.line.open(Port::Any).await.ok()?;
        let outside_one = self.ask("hairpin", &one, plain).await.ok()?.mapped;
        let outside_two = self.ask("hairpin", &two, plain).await.ok()?.mapped;
        let id = self.line.id(false);
        let bytes = Builder::new(Class::Indication, Method::BINDING, id).finish_with_fingerprint();
        let is_ours = |bytes: &[u8]| Message::parse(bytes).is_ok_and(|message| message.id() == id);
        for _ in 0..TRIES {
            two.send(outside_one, &bytes);
            one.send(outside_two, &bytes);
            let until = self.line.now() + HAIRPIN;
            let came =
                one.recv(until, |datagram| is_ours(&datagram.bytes).then_some(datagram.from));
            if let Some(from) = came.await {
                let external = from.ip() == outside_two.ip();
                return Some(if external { Hairpin::External } else { Hairpin::Internal });
            }
        }
        // The sockets must be seen to be alive, or it was the network.
        self.ask("hairpin", &one, plain).await.ok().map(|_| Hairpin::No)
    }

    /// How long mappings live: at least, and less than, seconds. One socket for each age, all at once;
    /// the server is asked, from another socket, to send to the mapping (RFC 5780, section 4.6).
    pub(super) async fn lifetime(
        &self,
        site: Site,
        longest: Duration,
    ) -> (Option<u64>, Option<u64>) {
        if site.classic || !self.survives(site, Duration::ZERO).await.unwrap_or(false) {
            return (None, None);
        }
        let ages = || LADDER.into_iter().filter(|age| Duration::from_secs(*age) <= longest);
        let lives = all(ages().map(|age| self.survives(site, Duration::from_secs(age)))).await;
        let of = |wanted: bool| {
            ages().zip(&lives).filter(move |(_, lives)| **lives == Some(wanted)).map(|(age, _)| age)
        };
        let gone = of(false).min();
        let lives = of(true).filter(|age| gone.is_none_or(|gone| *age < gone)).max();
        (lives, gone)
    }

    /// Whether a mapping lives for so long. `None`: it cannot be told.
    async fn survives(&self, site: Site, age: Duration) -> Option<bool> {
        let plain = Question::plain(site.primary, false);
        let socket = self.line.open(Port::Any).await.ok()?;
        let mapped = self.ask("lifetime", &socket, plain).await.ok()?.mapped;
        self.line.pause(age).await;
        let helper = self.line.open(Port::Any).await.ok()?;
        let helpers = self.ask("lifetime", &helper, plain).await.ok()?.mapped;
        if helpers.ip() != mapped.ip() {
            return None;
        }
        for _ in 0..TRIES {
            let id = self.line.id(false);
            let request = Builder::request(id).response_port(mapped.port());
            helper.send(site.primary, &request.finish_with_fingerprint());
            if self.arrives(&socket, id).await {
                return Some(true);
            }
        }
        // Silence is believed of a server that still answers.
        self.ask("lifetime", &helper, plain).await.ok().map(|_| false)
    }

    async fn arrives(&self, socket: &Socket, id: TransactionId) -> bool {
        let until = self.line.now() + DETOUR;
        let answer = socket.recv(until, |datagram| {
            let message = Message::parse(&datagram.bytes).ok()?;
            (message.id() == id && message.class() == Class::Success).then_some(())
        });
        answer.await.is_some()
    }
}
