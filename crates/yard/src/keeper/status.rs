//! What the control API tells of a yard.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use netyard_engine::control::{Reply, Request, ServiceState, State};
use netyard_engine::forward::Protocol;

use super::state::Keeper;
use crate::api::{
    ForwardStatus, InstanceState, InstanceStatus, MachineStatus, NetworkStatus,
    ServiceInstanceStatus, ServiceStatus, SocketStatus, TapStatus, Waited, YardStatus,
};
use crate::bridge::tap;
use crate::instance::sockets;
use crate::model::{Kind, ServiceSpec, SocketSpec};

/// An instance that has ended so often in a row is not going to stay up by itself.
const HOPELESS_RESTARTS: u32 = 5;

impl Keeper {
    /// Everything.
    pub(super) async fn status(&self) -> YardStatus {
        let yard = self.yard();
        let networks = self.network_states().await;
        let services = networks.iter().flat_map(|network| {
            let State { services, asked_by, .. } = &network.state;
            let ours = services.iter().filter(|service| service.member == *asked_by);
            ours.map(|service| (network.name.clone(), service.clone()))
        });
        let services: Vec<_> = services.collect();
        YardStatus {
            name: yard.name,
            file: yard.path,
            keeper_pid: std::process::id(),
            instances: self.instance_statuses(),
            services: self.service_statuses(&services),
            networks,
        }
    }

    /// Every network that answers.
    pub(super) async fn network_states(&self) -> Vec<NetworkStatus> {
        let mut states = Vec::new();
        for name in self.yard().networks.into_keys() {
            let Some(link) = self.link(&name) else { continue };
            let (state, problem) = match link.ask(Request::Inspect, None).await {
                Ok((Reply::State(state), _)) => (*state, None),
                other => {
                    let problem = other.err().map(|error| error.message);
                    (State { config: Some(link.config().clone()), ..State::default() }, problem)
                }
            };
            states.push(NetworkStatus { name, state, problem });
        }
        states
    }

    /// The services of this yard, each with its network's name, as far as networks answer. Costs less
    /// than [`Self::network_states`].
    pub(super) async fn service_states(&self) -> Vec<(String, ServiceState)> {
        let mut states = Vec::new();
        let networks: BTreeSet<_> =
            self.yard().services.into_iter().map(|service| service.network).collect();
        for name in networks {
            let Some(link) = self.link(&name) else { continue };
            if let Ok((Reply::Services(services), _)) = link.ask(Request::Services, None).await {
                states.extend(services.into_iter().map(|state| (name.clone(), state)));
            }
        }
        states
    }

    /// Every instance, in the order of the file.
    pub(super) fn instance_statuses(&self) -> Vec<InstanceStatus> {
        let yard = self.yard();
        yard.instances.iter().filter_map(|it| self.instance_status(&it.name)).collect()
    }

    /// One instance.
    pub(super) fn instance_status(&self, name: &str) -> Option<InstanceStatus> {
        let observed = self.supervisor(name)?.observed();
        let running = observed.pid.and(observed.init_pid);
        let ports = running.map(sockets::listening).unwrap_or_default();
        let lost_taps = observed.lost_taps();
        let mut warnings = observed.warnings;
        let restart = format!("it is cut off until it starts again: netyard restart {name}");
        warnings.extend(
            lost_taps.iter().map(|tap| format!("somebody has deleted its TAP {tap}; {restart}")),
        );
        let (wanted, loopback) = (self.wanted_ports(name), self.loopback_ports(name));
        warnings.extend(sockets::unreachable(&ports, &wanted, &loopback));
        let state = self.state_of(name);
        if state == InstanceState::Unhealthy {
            warnings.extend(self.failing_checks(name));
        }
        let yard = self.yard();
        let kind = yard.instance(name).map(|instance| instance.kind.clone());
        let owner = kind.as_ref().and_then(Kind::external).map(|external| external.owner);
        let specs = yard.instance(name).map(|instance| instance.plugs.as_slice());
        let plugs = specs.unwrap_or_default().iter().zip(&observed.plugs);
        let (with_socket, with_tap): (Vec<_>, Vec<_>) =
            plugs.partition(|(spec, _)| spec.socket.is_some());
        let sockets = with_socket.into_iter().filter_map(|(spec, plug)| {
            let SocketSpec { path, protocol } = spec.socket.clone()?;
            Some(SocketStatus { path, protocol, mac: plug.mac, owner: owner? })
        });
        let elsewhere = kind.as_ref().is_some_and(|kind| !kind.has_program());
        let owned = owner.map(|owner| {
            let taps = observed.taps.iter().zip(with_tap);
            let taps = taps.map(|(tap, (_, plug))| {
                let link = tap::find(&tap.name);
                TapStatus {
                    name: tap.name.clone(),
                    mac: plug.mac,
                    owner,
                    open: matches!(&link, Ok(Some(link)) if link.carrier),
                    lost: matches!(link, Ok(None)),
                }
            });
            taps.collect::<Vec<_>>()
        });
        // The links of a namespace are its own.
        let external = owned.or(elsewhere.then(Vec::new));
        let lost = external.iter().flatten().filter(|tap| tap.lost);
        warnings.extend(lost.map(|tap| format!("there is no TAP {} any more", tap.name)));
        let addresses =
            observed.plugs.iter().flat_map(|plug| [plug.address4.into(), plug.address6.into()]);
        Some(InstanceStatus {
            name: name.to_owned(),
            state,
            vm: observed.vm.map(|vm| MachineStatus { lost_taps, ..vm }),
            own_stack: observed.own_stack,
            external,
            sockets: sockets.collect(),
            pid: observed.pid,
            init_pid: observed.init_pid,
            addresses: addresses.collect(),
            restarts: observed.restarts,
            uptime_ms: observed.started.map(|started| {
                let uptime = Instant::now().saturating_duration_since(started);
                u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
            }),
            exit: observed.exit,
            ports,
            warnings,
        })
    }

    /// What the checks of an instance's services find wrong.
    fn failing_checks(&self, name: &str) -> Vec<String> {
        let yard = self.yard();
        let failing = yard.services_of(name).filter_map(|service| {
            let problem =
                self.watch(&service.name, name, super::probe::Watch::problem).flatten()?;
            Some(format!("the check of service {} fails: {problem}", service.name))
        });
        failing.collect()
    }

    /// The ports of an instance that services and forwards lead to.
    fn wanted_ports(&self, name: &str) -> Vec<(Protocol, u16)> {
        let yard = self.yard();
        let services = yard.services_of(name).map(|service| (service.protocol, service.port));
        let forwards = yard.instance(name).into_iter().flat_map(|instance| &instance.forwards);
        let forwards = forwards.filter(|forward| !forward.delivery.loopback);
        let forwarded =
            forwards.flat_map(|forward| forward.pairs().map(|(_, port)| (forward.protocol, port)));
        services.chain(forwarded).collect()
    }

    /// The ports of its own loopback that forwards lead to.
    fn loopback_ports(&self, name: &str) -> Vec<u16> {
        let yard = self.yard();
        let forwards = yard.instance(name).into_iter().flat_map(|instance| &instance.forwards);
        let forwards = forwards.filter(|forward| forward.delivery.loopback);
        forwards.flat_map(|forward| forward.guest_ports.iter()).collect()
    }

    /// Every service, in the order of the file.
    pub(super) fn service_statuses(&self, states: &[(String, ServiceState)]) -> Vec<ServiceStatus> {
        let yard = self.yard();
        yard.services
            .iter()
            .map(|service| {
                let state = states.iter().find(|(network, state)| {
                    *network == service.network && state.spec.name == service.name
                });
                self.service_status(service, state.map(|(_, state)| state))
            })
            .collect()
    }

    fn service_status(&self, service: &ServiceSpec, state: Option<&ServiceState>) -> ServiceStatus {
        let served = self.served(&service.name);
        let turns: Vec<_> = state
            .map(|state| state.spec.instances.iter().zip(&state.instances).collect())
            .unwrap_or_default();
        let turns_of = |name: &str| {
            let found = turns.iter().find(|(instance, _)| instance.name == name);
            found.map(|(_, turns)| **turns).unwrap_or_default()
        };
        let known = service.instances.iter();
        let draining = turns
            .iter()
            .map(|(instance, _)| &instance.name)
            .filter(|name| !service.instances.contains(name));
        ServiceStatus {
            name: service.name.clone(),
            network: service.network.clone(),
            protocol: service.protocol,
            port: service.port,
            addresses: served.as_ref().map(|it| it.addresses.clone()).unwrap_or_default(),
            published: served.and_then(|it| it.published),
            policy: service.policy,
            affinity_ms: service
                .affinity
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            instances: known
                .chain(draining)
                .map(|name| ServiceInstanceStatus {
                    name: name.clone(),
                    weight: service.weight(name),
                    eligible: self.is_eligible(&service.name, name),
                    problem: self
                        .watch(&service.name, name, super::probe::Watch::problem)
                        .flatten(),
                    turns: turns_of(name),
                })
                .collect(),
            refused: state.map(|state| state.refused).unwrap_or_default(),
            clients: state.map(|state| state.clients).unwrap_or_default(),
            clients_not_kept: state.map(|state| state.clients_not_kept).unwrap_or_default(),
        }
    }

    /// Every forward of this yard.
    pub(super) async fn forward_statuses(&self) -> Vec<ForwardStatus> {
        let networks = self.network_states().await;
        let ours = networks.into_iter().flat_map(|network| {
            let NetworkStatus { name, state: State { forwards, asked_by, .. }, .. } = network;
            let ours = forwards.into_iter().filter(move |forward| forward.member == asked_by);
            ours.map(move |forward| (name.clone(), forward))
        });
        ours.map(|(network, state)| ForwardStatus {
            network,
            forward: state.forward,
            connections: state.connections,
        })
        .collect()
    }

    /// Waits until whatever has what it needs was started, well or not.
    pub(super) async fn settled(&self) {
        let changes = self.changes();
        let mut changes = changes.listen();
        while self.is_settling() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until everything is well, or something cannot become so, or `within` is over.
    pub(super) async fn wait(&self, within: Option<Duration>) -> Waited {
        let over = async {
            match within {
                Some(within) => tokio::time::sleep(within).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        let changes = self.changes();
        let mut changes = changes.listen();
        loop {
            let unwell = self.unwell();
            if !unwell.failed.is_empty() {
                return self.waited(&unwell);
            }
            if unwell.waiting.is_empty() {
                self.eligible_known().await;
                return self.waited(&unwell);
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return self.waited(&unwell) },
                () = &mut over => return self.waited(&self.unwell()),
            }
        }
    }

    /// Who is not well now. Costs less than their statuses.
    fn unwell(&self) -> Unwell {
        let mut unwell = Unwell::default();
        let yard = self.yard();
        for name in yard.instances.iter().map(|instance| &instance.name) {
            let state = self.state_of(name);
            let failed = match state {
                InstanceState::Failed | InstanceState::Stopped => true,
                InstanceState::Exited { code } => code != 0,
                InstanceState::Backoff => self
                    .supervisor(name)
                    .is_some_and(|it| it.observed().restarts >= HOPELESS_RESTARTS),
                _ => false,
            };
            let well = match state {
                InstanceState::Healthy | InstanceState::Exited { code: 0 } => true,
                InstanceState::Running => yard.services_of(name).next().is_none(),
                _ => false,
            };
            if failed {
                unwell.failed.push(name.clone());
            } else if !well {
                unwell.waiting.push(name.clone());
            }
        }
        unwell.failed.sort_unstable();
        unwell.waiting.sort_unstable();
        unwell
    }

    /// What a wait says.
    fn waited(&self, Unwell { failed, waiting }: &Unwell) -> Waited {
        let statuses = |names: &[String]| -> Vec<_> {
            names.iter().filter_map(|name| self.instance_status(name)).collect()
        };
        let (failed, waiting) = (statuses(failed), statuses(waiting));
        Waited { healthy: waiting.is_empty() && failed.is_empty(), failed, waiting }
    }
}

/// The names of instances, in order.
#[derive(Debug, Default)]
struct Unwell {
    failed: Vec<String>,
    /// Those that are neither well nor have failed.
    waiting: Vec<String>,
}
