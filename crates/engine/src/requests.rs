//! Services of which each request takes a turn: joined to the proxy that carries the requests.
//!
//! The proxy has threads of its own and is started with the first such service. It gives turns by
//! itself, from the same [`Turns`] that the network's books have, so that a request costs nothing
//! here. What it cannot do is to open a connection into a network that moves its own packets: it
//! asks for one, and is handed one end of a pair of streams whose other end the network has joined
//! to the instance ([`Asked`]).

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use netyard_proxy::{Asker, Dial, Door, Limits, Proxy, Turn, Way};
use netyard_sys::stream::Listener;

use crate::control::{ControlError, ControlErrorKind, ServiceSpec, State, TurnPolicy};
use crate::forward::Protocol;
use crate::network::cannot_bind;
use crate::policy::rules::What;
use crate::policy::{self, Client, Gate};
use crate::service::{Service, ServiceId, Services, TurnKey, Turns};

/// Connections that the proxy may ask for before the network has looked.
const MAX_ASKED: usize = 1_024;

/// All services of which each request takes a turn.
#[derive(Debug)]
pub(crate) struct Requests {
    way: Way,
    limits: Limits,
    gate: Gate,
    /// `None` before the first service.
    proxy: Option<Proxy>,
    services: BTreeMap<ServiceId, Served>,
}

#[derive(Debug)]
struct Served {
    published: Option<(SocketAddr, Door)>,
    inside: Vec<(SocketAddr, Door)>,
    /// Of the instances.
    port: u16,
    /// Behind its ports: they are closed before it ends.
    service: netyard_proxy::Service,
}

/// Ports that are open for a service which is about to be made or changed.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    published: Option<(SocketAddr, TcpListener)>,
    inside: Vec<(SocketAddr, TcpListener)>,
}

impl Requests {
    /// None yet, in a process that may have so many descriptors. `way` leads to instances, `gate` says who may
    /// reach which of them.
    pub(crate) fn new(way: Way, descriptors: usize, gate: Gate) -> Self {
        let limits = Limits::of(descriptors);
        Self { way, limits, gate, proxy: None, services: BTreeMap::new() }
    }

    /// Opens the ports that a service will need and does not have: its published one, and one at
    /// each of the addresses `inside`.
    pub(crate) fn prepare(
        &mut self,
        services: &Services,
        spec: &ServiceSpec,
        inside: &[IpAddr],
    ) -> Result<Prepared, ControlError> {
        if spec.policy != TurnPolicy::PerRequest {
            return Ok(Prepared::default());
        }
        if self.proxy.is_none() {
            let proxy = Proxy::start(self.limits).map_err(|error| ControlError {
                kind: ControlErrorKind::Failed,
                message: format!("cannot serve requests of `{}`: {error}", spec.name),
            })?;
            self.proxy = Some(proxy);
        }
        let known = services.id_of(&spec.name).and_then(|id| self.services.get(&id));
        let opened = |at| {
            let listener = listen(at).map_err(|error| cannot_bind(at, Protocol::Tcp, &error))?;
            let at = listener.local_addr().unwrap_or(at);
            Ok((at, listener))
        };
        let had = known.and_then(|served| served.published.as_ref()).map(|(at, _)| *at);
        let published = spec.publish.filter(|at| had != Some(*at)).map(opened).transpose()?;
        let mut prepared = Prepared { published, inside: Vec::new() };
        if known.is_none() {
            for address in inside {
                match opened(SocketAddr::new(*address, 0)) {
                    Ok(port) => prepared.inside.push(port),
                    // This host has no IPv6.
                    Err(_) if address.is_ipv6() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(prepared)
    }

    /// Where connections of a service end that are led to us, when what was prepared is there.
    pub(crate) fn inside(
        &self,
        services: &Services,
        spec: &ServiceSpec,
        prepared: &Prepared,
    ) -> Vec<SocketAddr> {
        if spec.policy != TurnPolicy::PerRequest {
            return Vec::new();
        }
        let known = services.id_of(&spec.name).and_then(|id| self.services.get(&id));
        let known = known.into_iter().flat_map(|served| &served.inside).map(|(at, _)| *at);
        known.chain(prepared.inside.iter().map(|(at, _)| *at)).collect()
    }

    /// The service was made or changed.
    pub(crate) fn set(&mut self, services: &Services, id: ServiceId, prepared: Prepared) {
        if let Some(service) = services.get(id).filter(|service| service.is_per_request()) {
            self.serve(id, service, prepared);
        }
        self.follow(services);
    }

    fn serve(&mut self, id: ServiceId, service: &Service, prepared: Prepared) {
        let Some(proxy) = &self.proxy else { return };
        let port = service.port();
        let served = self.services.entry(id).or_insert_with(|| {
            let (turns, gate) = (service.turns().clone(), self.gate.clone());
            let turns = Arc::new(Shared { turns, gate });
            let service = proxy.serve(service.name(), turns, self.way.clone());
            Served { published: None, inside: Vec::new(), port, service }
        });
        if std::mem::replace(&mut served.port, port) != port {
            // Connections that are kept lead to the old one.
            served.service.keep(&[]);
        }
        let had = served.published.as_ref().map(|(at, _)| *at);
        if had != service.spec().publish {
            served.published = None;
        }
        if let Some((at, listener)) = prepared.published {
            served.published = served.open(at, listener);
        }
        for (at, listener) in prepared.inside {
            let door = served.open(at, listener);
            served.inside.extend(door);
        }
    }

    /// Some services, or who may have their turns, have changed.
    pub(crate) fn follow(&mut self, services: &Services) {
        self.services.retain(|id, served| {
            let service = services.get(*id).filter(|service| service.is_per_request());
            let Some(service) = service else { return false };
            let keys: Vec<u64> =
                service.turns().eligible().into_iter().map(TurnKey::to_u64).collect();
            served.service.keep(&keys);
            true
        });
    }

    /// A client has connected to a service; `stream` leads to it.
    pub(crate) fn accept(&self, id: ServiceId, stream: OwnedFd, client: SocketAddr) {
        // Else the service has gone meanwhile, and the stream ends here.
        if let Some(served) = self.services.get(&id) {
            served.service.accept(UnixStream::from(stream), client);
        }
    }

    /// Shows how many connections were refused because there were too many.
    pub(crate) fn count_refused(&self, state: &mut State) {
        let refused = self.proxy.as_ref().map(Proxy::refused).unwrap_or_default();
        if refused > 0 {
            state.drops.insert("http-connections-full".to_owned(), refused);
        }
    }
}

impl Served {
    fn open(&self, at: SocketAddr, listener: TcpListener) -> Option<(SocketAddr, Door)> {
        match self.service.listen(listener) {
            Ok(door) => Some((at, door)),
            Err(error) => {
                tracing::error!(%error, %at, "a port cannot be watched");
                None
            }
        }
    }
}

/// Opens a port that is nobody else's.
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let listener = Listener::bind(at)?;
    listener.set_listening(true)?;
    Ok(TcpListener::from(listener.into_fd()))
}

/// The turns of a service as the proxy takes them.
#[derive(Debug)]
struct Shared {
    turns: Turns,
    gate: Gate,
}

impl netyard_proxy::Turns for Shared {
    fn next(&self, asker: Asker, tried: &[u64]) -> Option<Turn> {
        let mut tried: Vec<TurnKey> = tried.iter().map(|key| TurnKey::from_u64(*key)).collect();
        // What is handed over comes out of the network.
        let Asker { address, handed_over: from_inside } = asker;
        tried.extend(self.barred(Client { address, from_inside }));
        let turn = self.turns.next_for(Instant::now(), address, &tried)?;
        let addresses: [IpAddr; 2] = [turn.address4.into(), turn.address6.into()];
        Some(Turn {
            key: turn.key.to_u64(),
            addresses: addresses.map(|address| SocketAddr::new(address, turn.port)),
        })
    }

    fn opened(&self, key: u64) {
        self.turns.opened(TurnKey::from_u64(key));
    }

    fn closed(&self, key: u64) {
        self.turns.closed(TurnKey::from_u64(key));
    }

    fn failed(&self, key: u64) {
        self.turns.failed(TurnKey::from_u64(key));
    }

    fn abandoned(&self, key: u64) {
        self.turns.abandoned(TurnKey::from_u64(key));
    }
}

impl Shared {
    /// The instances that the rules keep a client from.
    fn barred(&self, client: Client) -> Vec<TurnKey> {
        if !self.gate.is_watched() {
            return Vec::new();
        }
        let tcp = |port| What::to(policy::Protocol::Tcp, port);
        let (barred, about) =
            self.turns.barred(|it| self.gate.permits(client, it.ip(), tcp(it.port())));
        if let Some(about) = about {
            self.gate.decide(client, about.ip(), tcp(about.port()));
        }
        barred
    }
}

/// Connections into the network that the proxy has asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    queue: Receiver<Dial>,
    /// Readable when there may be something in the queue.
    bell: UnixStream,
}

impl Asked {
    /// The way to ask, and what was asked.
    pub(crate) fn new() -> io::Result<(Way, Self)> {
        let (sender, queue) = mpsc::sync_channel(MAX_ASKED);
        let (bell, rope) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        rope.set_nonblocking(true)?;
        let ask = move |dial| {
            // A queue that is full takes no more: the proxy is told by the end of what it asked.
            if sender.try_send(dial).is_ok() {
                // If the bell takes nothing, it rings already.
                let _ = (&rope).write(&[1]);
            }
        };
        Ok((Way::Asked(Arc::new(ask)), Self { queue, bell }))
    }

    /// What was asked since the last call.
    pub(crate) fn take(&self) -> Vec<Dial> {
        let mut rings = [0; 256];
        while (&self.bell).read(&mut rings).is_ok_and(|len| len == rings.len()) {}
        self.queue.try_iter().collect()
    }
}

impl AsFd for Asked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use netyard_proxy::Turns as _;

    use super::*;
    use crate::control::ServiceInstance;
    use crate::delivery::Delivery;
    use crate::fake::Bench;
    use crate::policy::rules::{Direction, Rule, Rules, Verdict};

    #[test]
    fn requests_take_turns_among_instances_that_their_client_may_have() {
        let Bench { mut policy, config, .. } = Bench::new();
        let instance = |last: u8| ServiceInstance {
            name: format!("web-{last}"),
            address4: [192, 168, 127, last].into(),
            address6: [0xfd00, 1, 2, 3, 0, 0, 0, last.into()].into(),
            weight: 1,
            eligible: true,
        };
        let spec = ServiceSpec {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port: 8080,
            publish: None,
            delivery: Delivery::default(),
            policy: TurnPolicy::PerRequest,
            affinity: None,
            instances: [11, 12].map(instance).to_vec(),
        };
        for it in &spec.instances {
            policy.add_guest("yard", &it.name, [it.address4.into(), it.address6.into()]);
        }
        let mut services = Services::default();
        let id = services.set("yard", spec, &config, |_| false).unwrap();
        let turns = services.get(id).unwrap().turns().clone();
        let shared = Shared { turns, gate: policy.gate() };
        let ports = |client: &str| -> Vec<SocketAddr> {
            let asker = Asker { address: client.parse().unwrap(), handed_over: false };
            let turns = (0..4).filter_map(|_| shared.next(asker, &[]));
            turns.map(|turn| turn.addresses[0]).collect()
        };
        let mut at: Vec<SocketAddr> = ports("192.0.2.9");
        at.sort_unstable();
        at.dedup();
        assert_eq!(at.len(), 2);
        let rule = Rule {
            name: "far".into(),
            verdict: Verdict::Deny,
            direction: Direction::In,
            instances: vec!["web-11".into()],
            others: vec!["192.0.2.0/24".parse().unwrap()],
            protocol: None,
            ports: Vec::new(),
        };
        let everybody = Rule { instances: Vec::new(), ..rule.clone() };
        policy.set_rules("yard", Rules { list: vec![rule], otherwise: Verdict::Allow });
        assert_eq!(ports("192.0.2.9"), [SocketAddr::from(([192, 168, 127, 12], 8080)); 4]);
        policy
            .set_rules("yard", Rules { list: vec![everybody.clone()], otherwise: Verdict::Allow });
        assert_eq!(ports("::ffff:192.0.2.9"), []);
        assert_eq!(ports("198.51.100.9").len(), 4);
        assert_eq!(policy.counts()["yard/far"], 4);
        // An instance is no client outside, and a client outside with its address is none.
        let nobody = Rule { others: Vec::new(), ..everybody };
        policy.set_rules("yard", Rules { list: vec![nobody], otherwise: Verdict::Allow });
        let address = IpAddr::from([192, 168, 127, 12]);
        for handed_over in [true, false] {
            let turn = shared.next(Asker { address, handed_over }, &[]);
            assert_eq!(turn.is_some(), handed_over);
        }
    }
}
