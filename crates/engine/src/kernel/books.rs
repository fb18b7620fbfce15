//! Who is plugged in, which forwards and services there are, and whose they are.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use crate::config::Config;
use crate::control::{
    ControlError, ControlErrorKind, Link, PlugKind, PlugRequest, PlugState, Plugged, Remote,
    ServiceInstance, ServiceSpec, ServiceState, TurnPolicy, TurnState,
};
use crate::edge::{PlugId, SocketId};
use crate::forward::{Forward, Protocol};
use crate::guests::{self, Guest, Guests};
use crate::plumbing::{
    KernelForward, KernelInstance, KernelService, Plumbing, Segment, ServiceTraffic,
};
use crate::remote::Remotes;
use crate::service::{Service, ServiceId, Services};
use crate::switch;

/// The books of one network.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) config: Config,
    pub(super) guests: Guests,
    pub(super) remotes: Remotes,
    pub(super) services: Services,
    pub(super) forwards: Vec<OpenForward>,
    /// Who made which plug.
    members: BTreeMap<PlugId, String>,
    next_plug: u32,
    /// Instances that were taken out of services, by the service's name. The kernel may still have
    /// connections to them.
    leaving: Vec<(String, ServiceInstance)>,
    /// Where the connections of services end of which each request takes a turn, by their names.
    answered_at: BTreeMap<String, Vec<SocketAddr>>,
}

/// A forward with its bound host ports.
#[derive(Debug)]
pub(super) struct OpenForward {
    pub(super) forward: Forward,
    pub(super) member: String,
    pub(super) sockets: Vec<SocketId>,
    /// Connections that the kernel counted before it was told anew.
    pub(super) counted: u64,
}

impl Books {
    /// The books of a network whose segment was made.
    pub(super) fn new(mut config: Config, segment: &Segment) -> Self {
        config.gateway_mac = segment.mac;
        config.mtu = segment.mtu;
        Self {
            config,
            guests: Guests::default(),
            remotes: Remotes::default(),
            services: Services::default(),
            forwards: Vec::new(),
            members: BTreeMap::new(),
            next_plug: 1,
            leaving: Vec::new(),
            answered_at: BTreeMap::new(),
        }
    }

    /// Heeds what a member tells of its remote machines, to which a link leads.
    pub(super) fn set_remote(
        &mut self,
        member: &str,
        remote: Remote,
        plumbing: &mut dyn Plumbing,
    ) -> Result<(), ControlError> {
        let before = self.remotes.interfaces();
        self.remotes.set(&self.config, member, remote, None)?;
        let interfaces = self.remotes.interfaces();
        if interfaces == before {
            return Ok(());
        }
        plumbing.set_tunnels(&interfaces).inspect_err(|_| {
            self.remotes.remove_member(member);
        })
    }

    /// The remote machines of a member go.
    pub(super) fn remove_remote(&mut self, member: &str, plumbing: &mut dyn Plumbing) {
        if self.remotes.remove_member(member)
            && let Err(error) = plumbing.set_tunnels(&self.remotes.interfaces())
        {
            tracing::warn!(%error, "the rules for remote machines stay");
        }
    }

    /// True if the address is the gateway's, a guest's, a service's or the host's.
    pub(super) fn is_taken(&self, address: IpAddr) -> bool {
        self.guests.by_address(address).is_some()
            || self.services.by_address(address).is_some()
            || self.config.is_gateway(address)
            || self.config.is_host(address)
    }

    /// Plugs a guest in for `member`. `lent` tells which addresses are lent to others.
    pub(super) fn add_plug(
        &mut self,
        member: &str,
        request: &PlugRequest,
        descriptor: Option<OwnedFd>,
        lent: &dyn Fn(IpAddr) -> bool,
        plumbing: &mut dyn Plumbing,
    ) -> Result<Plugged, ControlError> {
        self.check(request)?;
        let plug = PlugId(self.next_plug);
        let services = &self.services;
        let in_use = |address| services.by_address(address).is_some() || lent(address);
        let guest = self.guests.plan(plug, &self.config, request, &in_use)?;
        let mac = guest.mac;
        let ours = mac == self.config.gateway_mac;
        if !switch::is_station(mac) || ours || self.guests.by_mac(mac).is_some() {
            return Err(guests::mac_refused(&self.config, &guest));
        }
        let plugged = guest.plugged();
        plumbing.add_plug(&plugged, request, descriptor)?;
        self.next_plug += 1;
        self.guests.insert(guest);
        self.members.insert(plug, member.to_owned());
        let forwards = self.forwards_to(&[plug]);
        if !forwards.is_empty()
            && let Err(error) = plumbing.change_forwards(&[], &forwards)
        {
            self.remove_plugs(&[plug], plumbing);
            return Err(error);
        }
        Ok(plugged)
    }

    /// Refuses what only a network in user mode has.
    fn check(&self, request: &PlugRequest) -> Result<(), ControlError> {
        let why = if request.kind == PlugKind::Socket {
            "takes network namespaces and TAP devices, and no frame sockets"
        } else if request.link != Link::default() {
            "does not shape links: leave `link` out, or use `mode = \"user\"`"
        } else {
            return Ok(());
        };
        let (name, network) = (&request.name, &self.config.name);
        let message =
            format!("`{name}` cannot be plugged into network `{network}`: bridge mode {why}");
        Err(ControlError { kind: ControlErrorKind::Malformed, message })
    }

    /// Whose plug it is.
    pub(super) fn owner(&self, plug: PlugId) -> Option<&str> {
        self.members.get(&plug).map(String::as_str)
    }

    /// The plugs of a member.
    pub(super) fn plugs_of(&self, member: &str) -> Vec<PlugId> {
        let own = self.members.iter().filter(|(_, owner)| *owner == member);
        own.map(|(plug, _)| *plug).collect()
    }

    /// Takes plugs out. Nothing leads to them any more.
    pub(super) fn remove_plugs(&mut self, plugs: &[PlugId], plumbing: &mut dyn Plumbing) {
        let forwards = self.forwards_to(plugs);
        if !forwards.is_empty() {
            self.keep_counts(&forwards, plumbing);
        }
        for plug in plugs {
            self.members.remove(plug);
            self.guests.remove(*plug);
        }
        tell_forwards(&forwards, plumbing);
        plumbing.remove_plugs(plugs);
    }

    /// The kernel is about to forget what it has counted of these forwards.
    fn keep_counts(&mut self, gone: &[KernelForward], plumbing: &mut dyn Plumbing) {
        let counted = plumbing.forward_traffic();
        let gone = |open: &&mut OpenForward| gone.iter().any(|it| it.forward == open.forward);
        for open in self.forwards.iter_mut().filter(gone) {
            open.counted += connections(&open.forward, &counted);
        }
    }

    /// The forwards with the connections that the kernel has counted.
    pub(super) fn forwards(
        &self,
        plumbing: &mut dyn Plumbing,
    ) -> impl Iterator<Item = (&OpenForward, u64)> {
        let counted = plumbing.forward_traffic();
        self.forwards
            .iter()
            .map(move |open| (open, open.counted + connections(&open.forward, &counted)))
    }

    /// Adds a forward of `member`, whose host ports are bound.
    pub(super) fn add_forward(
        &mut self,
        open: OpenForward,
        plumbing: &mut dyn Plumbing,
    ) -> Result<(), ControlError> {
        if let Some(forward) = self.in_kernel(&open.forward) {
            plumbing.change_forwards(&[], &[forward])?;
        }
        self.forwards.push(open);
        Ok(())
    }

    /// Takes the forwards of a member out: all, or one.
    pub(super) fn remove_forwards(
        &mut self,
        member: &str,
        which: Option<&Forward>,
        plumbing: &mut dyn Plumbing,
    ) -> Vec<OpenForward> {
        let mut one = true;
        let gone: Vec<OpenForward> = self
            .forwards
            .extract_if(.., |open| {
                let wanted = which.is_none_or(|which| one && open.forward == *which);
                let gone = open.member == member && wanted;
                one &= !gone;
                gone
            })
            .collect();
        let known: Vec<_> = gone.iter().filter_map(|open| self.in_kernel(&open.forward)).collect();
        tell_forwards(&known, plumbing);
        gone
    }

    /// Makes or replaces a service of `member`. If each request takes a turn, connections to it end
    /// at `answered_at`.
    pub(super) fn set_service(
        &mut self,
        member: &str,
        spec: ServiceSpec,
        answered_at: Vec<SocketAddr>,
        lent: &dyn Fn(IpAddr) -> bool,
        plumbing: &mut dyn Plumbing,
    ) -> Result<ServiceId, ControlError> {
        let name = spec.name.clone();
        let before = self.services.id_of(&name).and_then(|id| self.services.get(id));
        let before = before.map(Service::wanted);
        let Self { services, guests, config, .. } = self;
        let in_use = |address| guests.by_address(address).is_some() || lent(address);
        let id = services.set(member, spec, config, in_use)?;
        let answered_before = self.answered_at.insert(name.clone(), answered_at);
        if let Err(error) = plumbing.set_services(&self.kernel_services()) {
            let Self { services, guests, config, .. } = self;
            let in_use = |address| guests.by_address(address).is_some() || lent(address);
            self.answered_at.extend(answered_before.map(|before| (name.clone(), before)));
            // Both took place a moment ago, so they can again.
            let _ = match before {
                Some(before) => services.set(member, before, config, in_use),
                None => services.remove(member, &name),
            };
            return Err(error);
        }
        let service = self.services.get(id);
        let now: Vec<ServiceInstance> = service.into_iter().flat_map(Service::instances).collect();
        let old = before.map(|before| before.instances).unwrap_or_default();
        let gone = old.into_iter().filter(|old| now.iter().all(|new| new.name != old.name));
        self.leaving.extend(gone.map(|instance| (name.clone(), instance)));
        self.leaving.retain(|(service, old)| {
            *service != name || now.iter().all(|instance| instance.name != old.name)
        });
        Ok(id)
    }

    /// Removes a service of `member`.
    pub(super) fn remove_service(
        &mut self,
        member: &str,
        name: &str,
        plumbing: &mut dyn Plumbing,
    ) -> Result<ServiceId, ControlError> {
        let id = self.services.remove(member, name)?;
        self.forget_leaving();
        self.tell_services(plumbing);
        Ok(id)
    }

    /// Removes all services of a member.
    pub(super) fn remove_services(
        &mut self,
        member: &str,
        plumbing: &mut dyn Plumbing,
    ) -> Vec<ServiceId> {
        let gone = self.services.remove_member(member);
        if !gone.is_empty() {
            self.forget_leaving();
            self.tell_services(plumbing);
        }
        gone
    }

    /// Says whether an instance of a service may get new connections.
    pub(super) fn set_eligible(
        &mut self,
        member: &str,
        service: &str,
        instance: &str,
        eligible: bool,
        plumbing: &mut dyn Plumbing,
    ) -> Result<ServiceId, ControlError> {
        let known = self.services.id_of(service).and_then(|id| self.services.get(id));
        let mut instances = known.into_iter().flat_map(Service::instances);
        let before = instances.find(|it| it.name == instance).is_some_and(|it| it.eligible);
        let key = self.services.set_eligible(member, service, instance, eligible)?;
        if let Err(error) = plumbing.set_services(&self.kernel_services()) {
            let _ = self.services.set_eligible(member, service, instance, before);
            return Err(error);
        }
        Ok(key.service())
    }

    /// The guests as `inspect` shows them.
    pub(super) fn plugs(&self, plumbing: &mut dyn Plumbing) -> Vec<PlugState> {
        let plugs = self.guests.iter().map(|guest| {
            let traffic = plumbing.traffic(guest.plug).unwrap_or_default();
            PlugState {
                spliced: Default::default(),
                plug: guest.plug,
                name: guest.name.clone(),
                member: self.owner(guest.plug).unwrap_or_default().to_owned(),
                mac: guest.mac,
                addresses: vec![guest.address4.into(), guest.address6.into()],
                guest_to_host: traffic.guest_to_host,
                host_to_guest: traffic.host_to_guest,
                dropped: traffic.dropped,
                groups: Vec::new(),
            }
        });
        plugs.collect()
    }

    /// The services as `inspect` shows them, with the kernel's counters if those could be read. Draining
    /// instances stand behind the others.
    pub(super) fn services(
        &mut self,
        counted: Option<BTreeMap<String, ServiceTraffic>>,
    ) -> Vec<ServiceState> {
        let mut states = self.services.state();
        let Some(mut counted) = counted else { return states };
        let mut drained = Vec::new();
        // The turns of the others are not the kernel's.
        let kernels = states.iter_mut().filter(|it| it.spec.policy == TurnPolicy::RoundRobin);
        for state in kernels {
            let spec = &mut state.spec;
            let counted = counted.remove(&spec.name).unwrap_or_default();
            state.refused = counted.refused;
            state.clients = counted.clients;
            state.clients_not_kept = counted.clients_not_kept;
            let mut turns: HashMap<String, TurnState> = counted.instances.into_iter().collect();
            let counters = spec.instances.iter().map(|it| turns.remove(&it.name));
            state.instances = counters.map(Option::unwrap_or_default).collect();
            let leaving = self.leaving.iter().filter(|(service, _)| *service == spec.name);
            for (service, instance) in leaving {
                let counters = turns.remove(&instance.name).filter(|counters| counters.open > 0);
                if let Some(counters) = counters {
                    spec.instances.push(ServiceInstance { eligible: false, ..instance.clone() });
                    state.instances.push(TurnState { draining: true, ..counters });
                } else {
                    drained.push((service.clone(), instance.name.clone()));
                }
            }
        }
        self.leaving.retain(|(service, instance)| {
            !drained.iter().any(|(of, name)| of == service && *name == instance.name)
        });
        states
    }

    /// What the kernel is to do of a forward; `None`: nothing, because it begins at loopback or leads
    /// to somebody who is not here.
    fn in_kernel(&self, forward: &Forward) -> Option<KernelForward> {
        if forward.host.address().is_none_or(|host| host.is_loopback()) {
            return None;
        }
        let &Guest { address4, address6, .. } = self.guests.by_name(&forward.instance)?;
        Some(KernelForward { forward: forward.clone(), address4, address6 })
    }

    /// What the kernel is to do of the forwards that lead to these plugs.
    fn forwards_to(&self, plugs: &[PlugId]) -> Vec<KernelForward> {
        let guests = plugs.iter().filter_map(|plug| self.guests.by_plug(*plug));
        let guests: Vec<&Guest> = guests.collect();
        let leads = |open: &&OpenForward| {
            guests.iter().any(|guest| guest.is_called(&open.forward.instance))
        };
        let forwards = self.forwards.iter().filter(leads);
        forwards.filter_map(|open| self.in_kernel(&open.forward)).collect()
    }

    /// What the kernel is to do of the services.
    fn kernel_services(&self) -> Vec<KernelService> {
        let services = self.services.iter().map(|(_, service)| {
            let answered = service.is_per_request();
            let instances = service.instances().into_iter().filter(|_| !answered);
            let (eligible, resting): (Vec<_>, Vec<_>) = instances.partition(|it| it.eligible);
            let instances = eligible.into_iter().map(|instance| KernelInstance {
                name: instance.name,
                address4: instance.address4,
                address6: instance.address6,
                weight: instance.weight,
            });
            KernelService {
                name: service.name().to_owned(),
                protocol: service.protocol(),
                port: service.port(),
                address4: service.address4(),
                address6: service.address6(),
                publish: service.spec().publish.filter(|at| !at.ip().is_loopback()),
                affinity: service.spec().affinity.filter(|_| !answered),
                answered_at: self.answered_at.get(service.name()).cloned().unwrap_or_default(),
                instances: instances.collect(),
                resting: resting.into_iter().map(|instance| instance.name).collect(),
            }
        });
        services.collect()
    }

    /// Tells the kernel that there is less to do.
    fn tell_services(&self, plumbing: &mut dyn Plumbing) {
        if let Err(error) = plumbing.set_services(&self.kernel_services()) {
            tracing::error!(%error, "services that have ended are still in the kernel");
        }
    }

    /// Forgets the instances of services that are gone.
    fn forget_leaving(&mut self) {
        let services = &self.services;
        self.leaving.retain(|(service, _)| services.id_of(service).is_some());
        self.answered_at.retain(|service, _| services.id_of(service).is_some());
    }
}

/// What was counted of the ports of a forward.
fn connections(forward: &Forward, counted: &BTreeMap<(Protocol, SocketAddr), u64>) -> u64 {
    let ports = forward.pairs().filter_map(|(at, _)| counted.get(&(forward.protocol, at)));
    ports.sum()
}

/// Tells the kernel of forwards that have ended.
fn tell_forwards(gone: &[KernelForward], plumbing: &mut dyn Plumbing) {
    if gone.is_empty() {
        return;
    }
    if let Err(error) = plumbing.change_forwards(gone, &[]) {
        tracing::error!(%error, "forwards that have ended are still in the kernel");
    }
}
