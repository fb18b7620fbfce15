//! The way of a packet from one end to another and back, hop by hop.
//!
//! Where the kernel moves packets (`kernel`) each hop is what its routes and rules, as they are now,
//! do with this packet. Where a network process does (`user`) it is what that process's own switch,
//! services and policy say.

mod kernel;
mod user;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netyard_engine::forward::Protocol;
pub use netyard_link::nft::trace::Decision;
use serde::{Deserialize, Serialize};

use super::facts::{Cable, Facts, InstanceFacts};
use crate::api::{NetworkStatus, ServiceStatus};
use crate::error::{ErrorKind, YardError};

/// An address outside of every network of anybody (RFC 5737, RFC 3849).
const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);

/// What is asked of the outside unless a port is given.
const HTTPS: u16 = 443;

/// A port for the end that asks; the kernel takes one by chance.
const ASKER: u16 = 40_000;

/// One end of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// An instance.
    Instance(String),
    /// A service, by its virtual address.
    Service(String),
    /// This machine.
    Host,
    /// Somewhere that this machine reaches by its default route.
    Outside,
    /// Whoever has this address.
    Address(IpAddr),
}

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speech {
    /// A TCP connection.
    Tcp,
    /// UDP.
    Udp,
    /// An echo request and its answer, of ICMP or ICMPv6.
    Ping,
}

impl Speech {
    fn number(self, v4: bool) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Ping if v4 => 1,
            Self::Ping => 58,
        }
    }

    fn protocol(self) -> Option<Protocol> {
        match self {
            Self::Tcp => Some(Protocol::Tcp),
            Self::Udp => Some(Protocol::Udp),
            Self::Ping => None,
        }
    }
}

impl fmt::Display for Speech {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ping => "ping",
        })
    }
}

/// Which way is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who asks.
    pub from: End,
    /// Who is asked.
    pub to: End,
    /// The port that is asked.
    pub port: Option<u16>,
    /// TCP unless given; without a port too: a ping.
    pub protocol: Option<Protocol>,
    /// By IPv6, where the ends have both.
    pub ipv6: bool,
}

/// The two addresses of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Where from.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
}

impl Addresses {
    fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

/// Without ports where there are none.
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.destination.port() == 0 {
            write!(f, "{} -> {}", self.source.ip(), self.destination.ip())
        } else {
            write!(f, "{} -> {}", self.source, self.destination)
        }
    }
}

/// One place that a packet passes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Where: an instance, a bridge, a network process, this machine.
    pub at: String,
    /// What happens there.
    pub text: String,
    /// The packet's addresses behind it.
    pub packet: Addresses,
    /// Whether they were rewritten here.
    pub rewritten: bool,
    /// The rules that did something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Decision>,
}

/// How it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It gets where it was to go: this end.
    Arrives(String),
    /// It does not, for this reason.
    Refused(String),
}

/// A way, there and back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Who asks.
    pub from: String,
    /// Who is asked.
    pub to: String,
    /// What is spoken.
    pub speech: Speech,
    /// The addresses that the asker uses.
    pub asked: Addresses,
    /// How it ends.
    pub outcome: Outcome,
    /// The hops there.
    pub there: Vec<Hop>,
    /// The hops of the answer; none if there is nobody to answer.
    pub back: Vec<Hop>,
    /// Who the connection may be given to, one after the other; the hops are those to the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<String>,
    /// What could not be worked out, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(name) | Self::Service(name) => f.write_str(name),
            Self::Host => f.write_str("host"),
            Self::Outside => f.write_str("outside"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

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

/// Follows a packet.
///
/// # Errors
/// One of the ends has no address.
pub fn follow(facts: &Facts, question: &Question) -> Result<Path, YardError> {
    let resolved = Resolved::new(facts, question)?;
    let mode = resolved.network.map(|network| network.state.interface.is_some());
    let mut trip = Trip::new(facts, &resolved);
    let outcome = match mode {
        Some(true) => kernel::follow(&mut trip, &resolved)?,
        _ => user::follow(&mut trip, &resolved),
    };
    Ok(Path {
        from: question.from.to_string(),
        to: question.to.to_string(),
        speech: resolved.speech,
        asked: trip.asked,
        outcome,
        there: trip.there,
        back: trip.back,
        turns: trip.turns,
        doubts: trip.doubts,
    })
}

/// A question with addresses.
struct Resolved<'a> {
    from: &'a End,
    /// The instance that asks, and the plug it asks by.
    asker: Option<(&'a InstanceFacts, Cable<'a>)>,
    /// The network that moves the packet.
    network: Option<&'a NetworkStatus>,
    to: SocketAddr,
    speech: Speech,
}

impl<'a> Resolved<'a> {
    fn new(facts: &'a Facts, question: &'a Question) -> Result<Self, YardError> {
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
        let speech = match (port, question.protocol) {
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
    fn door(&self, at: SocketAddr, speech: Speech) -> Option<Door<'_>> {
        let protocol = speech.protocol()?;
        let is = |host: IpAddr| {
            host == at.ip() || (host.is_unspecified() && host.is_ipv4() == at.is_ipv4())
        };
        let here = |address: IpAddr| self.host.is_local(address);
        if !here(at.ip()) {
            return None;
        }
        let published = self.services.iter().find(|service| {
            protocol == Protocol::Tcp
                && service.published.is_some_and(|it| it.port() == at.port() && is(it.ip()))
        });
        if let Some(service) = published {
            let network = self.networks.iter().find(|it| it.name == service.network)?;
            return Some(Door { network, leads: Leads::Service(service) });
        }
        self.networks.iter().find_map(|network| {
            let forwards = network.state.forwards.iter().map(|state| &state.forward);
            let mut ours = forwards.filter(|it| it.protocol == protocol && is(it.host));
            ours.find_map(|forward| {
                let (_, port) = forward.pairs().find(|(from, _)| from.port() == at.port())?;
                let leads = Leads::Instance(self.instance(&forward.instance)?, port);
                Some(Door { network, leads })
            })
        })
    }
}

/// A port of this machine that leads into a network.
struct Door<'a> {
    network: &'a NetworkStatus,
    leads: Leads<'a>,
}

/// Where it leads.
enum Leads<'a> {
    Service(&'a ServiceStatus),
    Instance(&'a InstanceFacts, u16),
}

/// A path in the making.
struct Trip<'a> {
    facts: &'a Facts,
    speech: Speech,
    asked: Addresses,
    now: Addresses,
    there: Vec<Hop>,
    back: Vec<Hop>,
    turns: Vec<String>,
    doubts: Vec<String>,
}

impl<'a> Trip<'a> {
    fn new(facts: &'a Facts, resolved: &Resolved<'_>) -> Self {
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

    fn hop(&mut self, at: impl Into<String>, text: impl Into<String>, packet: Addresses) {
        let rewritten = packet != self.now;
        self.now = packet;
        let (at, text) = (at.into(), text.into());
        self.there.push(Hop { at, text, packet, rewritten, rules: Vec::new() });
    }

    fn answer(
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

    fn doubt(&mut self, text: String) {
        if !self.doubts.contains(&text) {
            self.doubts.push(text);
        }
    }

    /// The first hop: an instance looks at its routes. `Err`: it has none there.
    fn leaves(&mut self, instance: &InstanceFacts, cable: &Cable<'_>) -> Result<bool, Outcome> {
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
    fn arrives(&mut self, instance: &InstanceFacts) -> Outcome {
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
            (None, None) if status.vm.is_some() || status.external.is_some() => {
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
