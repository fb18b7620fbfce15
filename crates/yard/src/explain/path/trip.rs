//! A path in the making, and the hops that both kinds of networks have: an instance sends, an instance
//! gets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Addresses, Decision, End, Hop, OUTSIDE4, OUTSIDE6, Outcome, Resolved, Speech};
use crate::explain::facts::{Cable, Facts, InstanceFacts};

/// A port for the end that asks; the kernel takes one by chance.
const ASKER: u16 = 40_000;

/// A path in the making.
pub(super) struct Trip<'a> {
    pub(super) facts: &'a Facts,
    pub(super) speech: Speech,
    pub(super) asked: Addresses,
    pub(super) now: Addresses,
    pub(super) there: Vec<Hop>,
    pub(super) back: Vec<Hop>,
    pub(super) turns: Vec<String>,
    pub(super) doubts: Vec<String>,
}

impl<'a> Trip<'a> {
    pub(super) fn new(facts: &'a Facts, resolved: &Resolved<'_>) -> Self {
        let v4 = resolved.to.is_ipv4();
        let host = &facts.host;
        let source = match (&resolved.asker, resolved.from) {
            (Some((_, cable)), _) => {
                cable.plug.addresses.iter().copied().find(|it| it.is_ipv4() == v4)
            }
            (None, End::Address(address)) => Some(*address),
            (None, End::Outside) => Some(if v4 { OUTSIDE4.into() } else { OUTSIDE6.into() }),
            // What is for this machine itself comes from where it goes.
            (None, _) if host.is_local(resolved.to.ip()) => Some(resolved.to.ip()),
            (None, _) => {
                let to = resolved.to.ip();
                host.route(to).and_then(|way| host.source(way, to))
            }
        };
        let any = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let port = if resolved.speech == Speech::Ping { 0 } else { ASKER };
        let asked = Addresses {
            source: SocketAddr::new(source.unwrap_or(any), port),
            destination: resolved.to,
        };
        Self {
            facts,
            speech: resolved.speech,
            asked,
            now: asked,
            there: Vec::new(),
            back: Vec::new(),
            turns: Vec::new(),
            doubts: Vec::new(),
        }
    }

    pub(super) fn hop(
        &mut self,
        at: impl Into<String>,
        text: impl Into<String>,
        packet: Addresses,
    ) {
        let rewritten = packet != self.now;
        self.now = packet;
        let (at, text) = (at.into(), text.into());
        self.there.push(Hop { at, text, packet, rewritten, rules: Vec::new() });
    }

    pub(super) fn answer(
        &mut self,
        at: impl Into<String>,
        text: impl Into<String>,
        packet: Addresses,
        rules: Vec<Decision>,
    ) {
        let rewritten = self.back.last().is_some_and(|before| before.packet != packet);
        let (at, text) = (at.into(), text.into());
        self.back.push(Hop { at, text, packet, rewritten, rules });
    }

    pub(super) fn doubt(&mut self, text: String) {
        if !self.doubts.contains(&text) {
            self.doubts.push(text);
        }
    }

    /// The first hop: an instance looks at its routes. `Err`: it has none there.
    pub(super) fn leaves(
        &mut self,
        instance: &InstanceFacts,
        cable: &Cable<'_>,
    ) -> Result<bool, Outcome> {
        let name = &instance.status.name;
        let to = self.now.destination.ip();
        let now = self.now;
        let card = cable.inside.map_or("its card", |card| card.name.as_str());
        let config = cable.network.state.config.as_ref();
        let on_link = match &instance.inside {
            Ok(inside) if inside.is_local(to) => {
                self.hop(name, "the address is its own: by its loopback", now);
                return Err(self.arrives(instance));
            }
            Ok(inside) => match inside.route(to) {
                Some(way) if !way.closed => {
                    let via = way.gateway.map(|via| format!(" via {via}")).unwrap_or_default();
                    let route = format!("its route {}{via} leads out by {card}", way.destination);
                    self.hop(name, route, now);
                    way.gateway.is_none()
                }
                _ => {
                    let text = "it has no route there: \"Network is unreachable\"";
                    self.hop(name, text, now);
                    return Err(Outcome::Refused(format!("{name} has no route to {to}")));
                }
            },
            Err(why) => {
                self.doubt(format!("the routes of {name} are not known: {why}"));
                let local = config.is_some_and(|config| config.is_local(to));
                self.hop(name, format!("out by {card}"), now);
                local
            }
        };
        Ok(on_link)
    }

    /// The last hop: an instance has the packet.
    pub(super) fn arrives(&mut self, instance: &InstanceFacts) -> Outcome {
        let status = &instance.status;
        let (name, now) = (status.name.as_str(), self.now);
        let port = now.destination.port();
        let Some(protocol) = self.speech.protocol() else {
            self.hop(name, "its kernel answers", now);
            return Outcome::Arrives(name.to_owned());
        };
        let at = || {
            let ports = status.ports.iter();
            ports.filter(|it| it.protocol == protocol && it.address.port() == port)
        };
        let open = at().find(|it| {
            let ip = it.address.ip().to_canonical();
            let any = ip.is_unspecified() && (it.address.is_ipv6() || now.destination.is_ipv4());
            any || ip == now.destination.ip()
        });
        match (open, at().next()) {
            (Some(it), _) => {
                let text = format!("its program listens on {}", it.address);
                self.hop(name, text, now);
                Outcome::Arrives(name.to_owned())
            }
            (None, Some(it)) => {
                let text = format!(
                    "its program listens on {} only: its kernel refuses what comes for {}",
                    it.address,
                    now.destination.ip()
                );
                self.hop(name, text, now);
                Outcome::Refused(format!(
                    "{name} listens on {} only (let it listen on 0.0.0.0 or ::)",
                    it.address
                ))
            }
            (None, None)
                if status.vm.is_some() || status.own_stack || status.external.is_some() =>
            {
                self.doubt(format!("what {name} listens on is not known"));
                self.hop(name, format!("to its port {port}"), now);
                Outcome::Arrives(name.to_owned())
            }
            (None, None) => {
                let text = format!("nothing listens on port {port}: its kernel refuses");
                self.hop(name, text, now);
                Outcome::Refused(format!("nothing listens on port {port} of {name}"))
            }
        }
    }
}
