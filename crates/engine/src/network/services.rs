//! Services of a network: set, published, and as their instances come and go.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::control::{ControlError, ServiceSpec, TurnPolicy};
use crate::delivery::Delivery;
use crate::edge::Edge;
use crate::forward::Protocol;
use crate::service::{ServiceId, Services};
use crate::tcp::{ListenerTarget, Target};
use crate::udp;

use super::{Bound, Network, Parts, Published, cannot_bind};

impl Network {
    /// All services.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Makes or replaces a service of `member`; returns its virtual addresses and its published
    /// host address. The port of a service of which each request takes a turn is the driver's.
    ///
    /// # Errors
    /// As [`Services::set`], and as [`Network::add_forward`] for the published address. The
    /// service is then as it was before.
    pub fn set_service(
        &mut self,
        now: Instant,
        member: &str,
        spec: ServiceSpec,
        edge: &mut dyn Edge,
    ) -> Result<(Vec<IpAddr>, Option<SocketAddr>), ControlError> {
        let published = spec.publish;
        let publish = published.filter(|_| spec.policy == TurnPolicy::RoundRobin);
        let (protocol, port, delivery) = (spec.protocol, spec.port, spec.delivery);
        let known = self.services.id_of(&spec.name);
        let was_at =
            known.and_then(|id| self.services.get(id)).map(|it| (it.protocol(), it.port()));
        let old = known.and_then(|id| self.published.get(&id).copied());
        let old_at = old.map(|old| (old.port.protocol(), old.at));
        let moves = old_at != publish.map(|at| (protocol, at));
        // The port first: it is what can fail, and a bound port without service harms nobody.
        let new = match publish {
            Some(at) if moves => {
                let bound = self.bind_published(now, protocol, at, port, edge);
                Some((at, bound.map_err(|error| cannot_bind(at, protocol, &error))?))
            }
            _ => None,
        };
        let guests = &self.guests;
        let in_use = |address| guests.by_address(address).is_some();
        let id = match self.services.set(member, spec, &self.config, in_use) {
            Ok(id) => id,
            Err(error) => {
                if let Some((_, port)) = new {
                    self.unbind(now, &[port], edge);
                }
                return Err(error);
            }
        };
        if was_at.is_some_and(|was| was != (protocol, port)) {
            let Parts { mut cx, services, udp, .. } = self.parts(now, edge);
            udp.remove_service(&mut cx, services, id);
        }
        if moves {
            self.unpublish(now, id, edge);
        }
        if let Some((at, port)) = new {
            // A TCP port listens when it is told to, a UDP port takes datagrams from the start.
            let listening = port.protocol() == Protocol::Udp;
            self.published.insert(id, Published { at, port, listening });
        }
        match self.published.get(&id).map(|published| published.port) {
            Some(Bound::Tcp(listener)) => {
                let target = Target::Service { service: id, port };
                self.tcp.retarget(listener, target, delivery);
            }
            Some(Bound::Udp(socket)) => self.udp.retarget(socket, id),
            None => {}
        }
        self.update_listening(now, id, edge);
        let addresses =
            self.services.get(id).map(|service| service.addresses().to_vec()).unwrap_or_default();
        Ok((addresses, published))
    }

    /// Binds the host port of a service that is about to be made.
    fn bind_published(
        &mut self,
        now: Instant,
        protocol: Protocol,
        at: SocketAddr,
        port: u16,
        edge: &mut dyn Edge,
    ) -> io::Result<Bound> {
        let Parts { mut cx, tcp, udp, .. } = self.parts(now, edge);
        let service = ServiceId(u32::MAX);
        match protocol {
            Protocol::Tcp => {
                let target = ListenerTarget::Service(Target::Service { service, port });
                // It does not listen yet: how is said with the service.
                tcp.bind(&mut cx, at, target, Delivery::default()).map(Bound::Tcp)
            }
            Protocol::Udp => udp.bind(&mut cx, at, udp::Target::Service(service)).map(Bound::Udp),
        }
    }

    /// Removes a service of `member`; open connections stay.
    ///
    /// # Errors
    /// `Unknown` if the member has no such service.
    pub fn remove_service(
        &mut self,
        now: Instant,
        member: &str,
        name: &str,
        edge: &mut dyn Edge,
    ) -> Result<(), ControlError> {
        let id = self.services.remove(member, name)?;
        self.end_service(now, id, edge);
        Ok(())
    }

    /// Says whether an instance of a service may get new connections. Those that wait for its
    /// answer go on to the next instance if not.
    ///
    /// # Errors
    /// `Unknown` if the member has no such service, or the service no such instance.
    pub fn set_eligible(
        &mut self,
        now: Instant,
        member: &str,
        service: &str,
        instance: &str,
        eligible: bool,
        edge: &mut dyn Edge,
    ) -> Result<(), ControlError> {
        let key = self.services.set_eligible(member, service, instance, eligible)?;
        if !eligible {
            let Parts { mut cx, services, tcp, vip, .. } = self.parts(now, edge);
            tcp.instance_down(&mut cx, services, |turn| turn == key);
            vip.instance_down(&mut cx, services, key);
        }
        self.update_listening(now, key.service(), edge);
        Ok(())
    }

    /// The program of an instance of `member` has ended: flows over UDP that services have led there end.
    pub fn program_ended(
        &mut self,
        now: Instant,
        member: &str,
        instance: &str,
        edge: &mut dyn Edge,
    ) {
        let Some(plug) = self.guests.by_name(instance).map(|guest| guest.plug) else { return };
        if self.members.get(&plug).is_some_and(|owner| owner == member) {
            let Parts { mut cx, services, udp, .. } = self.parts(now, edge);
            udp.program_ended(&mut cx, services, plug);
        }
    }

    /// A published port listens exactly as long as some instance may get a connection; else the
    /// port stays ours and clients are refused.
    fn update_listening(&mut self, now: Instant, id: ServiceId, edge: &mut dyn Edge) {
        let available = self.services.get(id).is_some_and(|service| service.is_available());
        let Some(published) = self.published.get(&id).copied() else { return };
        if published.listening == available {
            return;
        }
        let Parts { mut cx, tcp, udp, .. } = self.parts(now, edge);
        let done = match published.port {
            Bound::Tcp(listener) => tcp.set_listening(&mut cx, listener, available).is_ok(),
            Bound::Udp(socket) => {
                udp.set_listening(&mut cx, socket, available);
                true
            }
        };
        if done && let Some(published) = self.published.get_mut(&id) {
            published.listening = available;
        }
    }

    fn unpublish(&mut self, now: Instant, id: ServiceId, edge: &mut dyn Edge) {
        if let Some(published) = self.published.remove(&id) {
            self.unbind(now, &[published.port], edge);
        }
    }

    /// What a service that has gone leaves to be done.
    pub(super) fn end_service(&mut self, now: Instant, id: ServiceId, edge: &mut dyn Edge) {
        self.unpublish(now, id, edge);
        let Parts { mut cx, services, udp, .. } = self.parts(now, edge);
        udp.remove_service(&mut cx, services, id);
    }
}
