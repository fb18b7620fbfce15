//! Questions: what the two ends are, and which addresses they have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netyard_engine::delivery::Delivery;
use netyard_engine::forward::Protocol;

use super::{End, OUTSIDE4, OUTSIDE6, Question, Speech};
use crate::api::{NetworkStatus, ServiceStatus};
use crate::error::{ErrorKind, YardError};
use crate::explain::facts::{Cable, Facts, InstanceFacts};

/// What is asked of the outside unless a port is given.
const HTTPS: u16 = 443;

impl End {
    /// What a name or an address stands for; instances come before services of the same name where
    /// they are `asking`, and behind them where they are asked.
    ///
    /// # Errors
    /// Nothing has that name.
    pub fn parse(text: &str, asking: bool, facts: &Facts) -> Result<Self, YardError> {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return Ok(Self::Address(address));
        }
        let instance = facts.instance(text).map(|_| Self::Instance(text.to_owned()));
        let service = facts.services.iter().any(|service| service.name == text);
        let service = service.then(|| Self::Service(text.to_owned()));
        let named = if asking { instance } else { service.or(instance) };
        if let Some(end) = named {
            return Ok(end);
        }
        match text {
            "host" => Ok(Self::Host),
            "outside" => Ok(Self::Outside),
            _ => {
                let mut known: Vec<_> =
                    facts.instances.iter().map(|it| it.status.name.as_str()).collect();
                if !asking {
                    known.extend(facts.services.iter().map(|service| service.name.as_str()));
                }
                let wanted = format!("follow packets {} {text}", if asking { "of" } else { "to" });
                let found = "nothing has that name";
                Err(YardError::new(ErrorKind::Unknown, wanted, found).next(format!(
                    "choose one of {}, host, outside, or an address",
                    known.join(", ")
                )))
            }
        }
    }
}

/// Takes `TO[:PORT][/tcp|/udp]` apart.
///
/// # Errors
/// It is nothing of the kind.
pub fn split(text: &str) -> Result<(&str, Option<u16>, Option<Protocol>), YardError> {
    let wrong = |found: &str| {
        YardError::new(ErrorKind::Input, format!("understand {text}"), found)
            .next("write NAME, NAME:PORT or NAME:PORT/udp; IPv6 addresses with ports in brackets")
    };
    let (rest, protocol) = match text.rsplit_once('/') {
        None => (text, None),
        Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
        Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
        Some((_, other)) => return Err(wrong(&format!("{other} is not tcp or udp"))),
    };
    // Without brackets an IPv6 address has no port behind it.
    let whole = rest.parse::<Ipv6Addr>().is_ok() || rest.ends_with(']');
    let (name, port) = match rest.rsplit_once(':').filter(|_| !whole) {
        None => (rest, None),
        Some((name, port)) => {
            let port = port.parse().ok().filter(|port| *port != 0);
            (name, Some(port.ok_or_else(|| wrong("a port is a number from 1 to 65535"))?))
        }
    };
    if protocol.is_some() && port.is_none() {
        return Err(wrong("a protocol needs a port"));
    }
    Ok((name, port, protocol))
}

/// A question with addresses.
pub(super) struct Resolved<'a> {
    pub(super) from: &'a End,
    /// The instance that asks, and the plug it asks by.
    pub(super) asker: Option<(&'a InstanceFacts, Cable<'a>)>,
    /// The network that moves the packet.
    pub(super) network: Option<&'a NetworkStatus>,
    pub(super) to: SocketAddr,
    pub(super) speech: Speech,
}

impl<'a> Resolved<'a> {
    pub(super) fn new(facts: &'a Facts, question: &'a Question) -> Result<Self, YardError> {
        let wanted = || format!("follow packets from {} to {}", question.from, question.to);
        let none = |what: String| {
            YardError::new(ErrorKind::Conflict, wanted(), what)
                .next("an instance has its addresses while it runs: `netyard ps`")
        };
        let v4 = match (&question.from, &question.to) {
            (_, End::Address(address)) | (End::Address(address), _) => address.is_ipv4(),
            _ => !question.ipv6,
        };
        let asking = match &question.from {
            End::Instance(name) => facts.instance(name),
            End::Address(address) => facts.at(*address).map(|(instance, _)| instance),
            _ => None,
        };
        let asking = asking.map(|instance| (instance, facts.cables(instance)));
        let shared = |network: &NetworkStatus| {
            let cables = asking.iter().flat_map(|(_, cables)| cables);
            cables.clone().any(|cable| std::ptr::eq(cable.network, network))
        };
        let (mut to, mut network, mut port) = (None, None, question.port);
        let mut protocol = question.protocol;
        match &question.to {
            End::Instance(name) => {
                let cables = facts.instance(name).map(|it| facts.cables(it)).unwrap_or_default();
                let near = cables.iter().find(|cable| shared(cable.network));
                if let Some(cable) = near.or(cables.first()) {
                    to = cable.plug.addresses.iter().copied().find(|it| it.is_ipv4() == v4);
                    network = Some(cable.network);
                }
            }
            End::Service(name) => {
                if let Some(service) = facts.services.iter().find(|it| it.name == *name) {
                    to = service.addresses.iter().copied().find(|it| it.is_ipv4() == v4);
                    network = facts.networks.iter().find(|it| it.name == service.network);
                    if port.is_none_or(|port| port == service.port) {
                        protocol = protocol.or(Some(service.protocol));
                    }
                    port = port.or(Some(service.port));
                }
            }
            End::Outside => {
                to = Some(if v4 { OUTSIDE4.into() } else { OUTSIDE6.into() });
                port = port.or(Some(HTTPS));
            }
            End::Address(address) => to = Some(*address),
            End::Host => {}
        }
        let speech = match (port, protocol) {
            (None, _) => Speech::Ping,
            (_, Some(Protocol::Udp)) => Speech::Udp,
            _ => Speech::Tcp,
        };
        let asker = match asking {
            Some((instance, cables)) => {
                let by = |to: IpAddr| {
                    let way = instance.inside.as_ref().ok().and_then(|it| it.route(to))?;
                    let by = |cable: &&Cable<'_>| {
                        cable.inside.is_some_and(|card| Some(&card.name) == way.link.as_ref())
                    };
                    cables.iter().find(by)
                };
                let near = network.and_then(|network| {
                    cables.iter().find(|cable| std::ptr::eq(cable.network, network))
                });
                let cable = to.and_then(by).or(near).or(cables.first()).copied();
                let found = format!("{} has no plug now", instance.status.name);
                Some((instance, cable.ok_or_else(|| none(found))?))
            }
            None => None,
        };
        if let Some((_, cable)) = &asker {
            network = Some(cable.network);
        }
        // The machine as its guests see it, or as others do.
        if question.to == End::Host {
            let config = asker.as_ref().and_then(|(_, it)| it.network.state.config.as_ref());
            let opened = config
                .filter(|config| config.host.iter().any(|service| Some(service.port()) == port));
            let alias = opened.map(|config| match v4 {
                true => IpAddr::V4(config.host4()),
                false => config.host6().into(),
            });
            let bridge = asker.as_ref().and_then(|(_, it)| facts.bridge(it.network));
            let gateway = bridge.and(config).map(|config| match v4 {
                true => IpAddr::V4(config.gateway4()),
                false => config.gateway6().into(),
            });
            let own = || facts.host.uplink(v4)?.address(v4);
            let loopback = || match v4 {
                true => IpAddr::V4(Ipv4Addr::LOCALHOST),
                false => Ipv6Addr::LOCALHOST.into(),
            };
            to = alias.or(gateway).or_else(own).or_else(|| Some(loopback()));
        }
        let to = to.ok_or_else(|| {
            let family = if v4 { "IPv4" } else { "IPv6" };
            none(format!("{} has no {family} address now", question.to))
        })?;
        let to = SocketAddr::new(to, port.unwrap_or_default());
        let network = network.or_else(|| facts.owner_of(to, speech));
        Ok(Self { from: &question.from, asker, network, to, speech })
    }
}

impl Facts {
    /// The network that an address of a network, or a port of this machine, leads into.
    fn owner_of(&self, to: SocketAddr, speech: Speech) -> Option<&NetworkStatus> {
        let inside = |network: &&NetworkStatus| {
            network.state.config.as_ref().is_some_and(|config| config.is_local(to.ip()))
        };
        let door = self.door(to, speech).map(|door| door.network);
        door.or_else(|| self.networks.iter().find(inside)).or_else(|| {
            // Then whichever has rules.
            self.networks.iter().find(|network| network.state.interface.is_some())
        })
    }

    /// The published service or the forward at a port of this machine.
    pub(super) fn door(&self, at: SocketAddr, speech: Speech) -> Option<Door<'_>> {
        let protocol = speech.protocol()?;
        let is = |host: IpAddr| {
            host == at.ip() || (host.is_unspecified() && host.is_ipv4() == at.is_ipv4())
        };
        let here = |address: IpAddr| self.host.is_local(address);
        if !here(at.ip()) {
            return None;
        }
        let published = self.services.iter().find(|service| {
            service.protocol == protocol
                && service.published.is_some_and(|it| it.port() == at.port() && is(it.ip()))
        });
        if let Some(service) = published {
            let network = self.networks.iter().find(|it| it.name == service.network)?;
            let of_network = network.state.services.iter().map(|it| &it.spec);
            let spec = of_network.into_iter().find(|spec| spec.name == service.name);
            let delivery = spec.map(|spec| spec.delivery).unwrap_or_default();
            return Some(Door { network, leads: Leads::Service(service), delivery });
        }
        self.networks.iter().find_map(|network| {
            let forwards = network.state.forwards.iter().map(|state| &state.forward);
            let mut ours =
                forwards.filter(|it| it.protocol == protocol && it.host.address().is_some_and(is));
            ours.find_map(|forward| {
                let (_, port) = forward.pairs().find(|(from, _)| from.port() == at.port())?;
                let leads = Leads::Instance(self.instance(&forward.instance)?, port);
                Some(Door { network, leads, delivery: forward.delivery })
            })
        })
    }
}

/// A port of this machine that leads into a network.
pub(super) struct Door<'a> {
    pub(super) network: &'a NetworkStatus,
    pub(super) leads: Leads<'a>,
    pub(super) delivery: Delivery,
}

/// Where it leads.
pub(super) enum Leads<'a> {
    Service(&'a ServiceStatus),
    Instance(&'a InstanceFacts, u16),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_taken_apart() {
        let (tcp, udp) = (Some(Protocol::Tcp), Some(Protocol::Udp));
        for (text, parts) in [
            ("red", ("red", None, None)),
            ("red:80", ("red", Some(80), None)),
            ("red:53/udp", ("red", Some(53), udp)),
            ("10.0.0.1:80/tcp", ("10.0.0.1", Some(80), tcp)),
            ("fd00::1", ("fd00::1", None, None)),
            ("[fd00::1]", ("[fd00::1]", None, None)),
            ("[fd00::1]:80", ("[fd00::1]", Some(80), None)),
        ] {
            assert_eq!(split(text).unwrap(), parts, "{text}");
        }
        for wrong in ["red:0", "red:x", "red:70000", "red:80/sctp", "red/udp", "red:"] {
            assert_eq!(split(wrong).unwrap_err().kind, ErrorKind::Input, "{wrong}");
        }
    }
}
