//! Asking a gateway, and mapping ports, on this machine's own sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use tokio::time::timeout;

use super::ask::{Found, ask, map_by_pcp, map_by_pmp};
use super::http::exchange;
use super::upnp::{self, Action, Place, Service};
use super::{Granted, Portmap, PortmapError, Protocol, Transport, Wanted, pcp, pmp};
use crate::stun::{Source, udp};
use crate::{Card, Family, cards};

/// External ports that are tried by UPnP, most: others may have them.
const TRIES: usize = 4;

/// How long a device may take to tell its external address, where nothing is to be mapped: it is a neighbour.
const BRIEF: Duration = Duration::from_millis(800);
/// How long a device may take to send its description: it is a neighbour.
const READING: Duration = Duration::from_secs(3);
/// How long a device may take to do what it is asked for (UPnP Device Architecture 1.1, section 3.1.1). Some
/// make all rules of their firewall again for each mapping.
const ACTION: Duration = Duration::from_secs(30);
/// How long giving back what may never have been given may take.
const PARTING: Duration = Duration::from_secs(2);

/// Asks the gateway of one card. It maps nothing by itself, and what it has mapped stays until it is
/// [released](Mapper::release) or its time is over.
#[derive(Clone, Debug)]
pub struct Mapper {
    source: Source,
    client: Ipv4Addr,
    gateway: Ipv4Addr,
    /// Makes mappings by PCP ours.
    nonce: pcp::Nonce,
    portmap: Portmap,
    services: Vec<Service>,
}

impl Mapper {
    /// Asks the gateway of a card what it speaks; of the card by which `from` leaves, or of the default one
    /// if neither is named. Nothing is mapped.
    ///
    /// # Errors
    /// There is no IPv4 gateway, or no socket to ask from.
    pub async fn open(card: Option<&str>, from: Option<IpAddr>) -> Result<Self, PortmapError> {
        let (mut mapper, device) = Self::greet(card, from).await?;
        if let Some(device) = device {
            mapper.understand(&device).await;
        }
        Ok(mapper)
    }

    /// What the gateway says, in two seconds: a device that is slow to tell its external address has none.
    ///
    /// # Errors
    /// As for [`Mapper::open`].
    pub async fn look(card: Option<&str>, from: Option<IpAddr>) -> Result<Portmap, PortmapError> {
        let (mut mapper, device) = Self::greet(card, from).await?;
        if let Some(device) = device
            && mapper.portmap.external.is_none()
        {
            // What it does not say in time stays unknown.
            _ = timeout(BRIEF, mapper.understand(&device)).await;
        }
        Ok(mapper.portmap)
    }

    /// Asks by all protocols. A device that maps ports by UPnP has not been asked what it can do yet.
    async fn greet(
        card: Option<&str>,
        from: Option<IpAddr>,
    ) -> Result<(Self, Option<Place>), PortmapError> {
        let failed = |error: &dyn ToString| PortmapError::Socket(error.to_string());
        let cards = cards().map_err(|error| failed(&error))?;
        let has = |card: &&Card| match (card, from) {
            (it, None) => *it.default.get(Family::Ip4) == Some(true),
            (it, Some(from)) => it.addresses.iter().any(|address| address.range.contains(from)),
        };
        let chosen = match card {
            Some(name) => cards.iter().find(|card| card.name == name),
            None => cards.iter().find(has),
        };
        let no_gateway = || PortmapError::NoGateway {
            card: card.or(chosen.map(|card| card.name.as_str())).unwrap_or("this machine").into(),
        };
        let chosen = chosen.ok_or_else(no_gateway)?;
        let gateway = chosen.gateways.iter().find_map(|way| match way.address {
            Some(IpAddr::V4(address)) if way.family == Family::Ip4 => Some(address),
            _ => None,
        });
        let gateway = gateway.ok_or_else(no_gateway)?;
        let server = SocketAddr::new(gateway.into(), pcp::PORT);
        let mut source =
            Source::towards(server, Some(&chosen.name)).await.map_err(|error| failed(&error))?;
        source.address = from.unwrap_or(source.address);
        let IpAddr::V4(client) = source.address else { return Err(no_gateway()) };
        let Found { portmap, device } =
            udp::run(&source, move |line| ask(line, client, gateway)).await;
        let (nonce, services) = (rand::random(), Vec::new());
        Ok((Self { source, client, gateway, nonce, portmap, services }, device))
    }

    /// Asks a device what it can do, and for its external address if nobody has told that.
    async fn understand(&mut self, device: &Place) {
        self.services = describe(&self.source, device).await;
        for service in &self.services {
            if self.portmap.external.is_none()
                && let Ok(answer) = act(&self.source, service, &Action::Address).await
            {
                self.portmap.external = upnp::read_address(&answer);
            }
        }
    }

    /// What the gateway said.
    #[must_use]
    pub const fn portmap(&self) -> &Portmap {
        &self.portmap
    }

    /// Has a port mapped, or renews a mapping: by PCP, else by NAT-PMP, else by UPnP.
    ///
    /// # Errors
    /// The gateway speaks none of them, or refuses by all that it speaks.
    pub async fn map(&self, wanted: Wanted) -> Result<Granted, PortmapError> {
        let protocols: Vec<_> = self.portmap.protocols().collect();
        self.map_by(&protocols, wanted).await
    }

    /// The same by the first of these protocols that does it.
    ///
    /// # Errors
    /// As for [`Mapper::map`].
    pub async fn map_by(
        &self,
        protocols: &[Protocol],
        wanted: Wanted,
    ) -> Result<Granted, PortmapError> {
        if wanted.seconds() == 0 {
            return Err(PortmapError::Lifetime);
        }
        let mut reasons = Vec::new();
        for protocol in protocols {
            let granted = match protocol {
                Protocol::Pcp => self.by_pcp(wanted).await,
                Protocol::NatPmp => self.by_pmp(wanted).await,
                Protocol::Upnp => self.by_upnp(wanted).await,
            };
            match granted {
                Ok(Granted { lifetime_s: 0, by, .. }) if by != Protocol::Upnp => {
                    reasons.push(format!("{protocol}: it grants no time at all"));
                }
                Ok(granted) => return Ok(granted),
                Err(reason) => reasons.push(format!("{protocol}: {reason}")),
            }
        }
        let gateway = self.gateway.into();
        Err(match reasons.is_empty() {
            true => PortmapError::Silent { gateway },
            false => PortmapError::Refused { gateway, reasons },
        })
    }

    /// Gives a mapping back.
    ///
    /// # Errors
    /// The gateway does not answer, or refuses.
    pub async fn release(&self, granted: &Granted) -> Result<(), PortmapError> {
        let wanted = Wanted {
            transport: granted.transport,
            port: granted.local.port(),
            external_port: granted.external_port,
            lifetime: Duration::ZERO,
        };
        let done = match granted.by {
            Protocol::Pcp => self.by_pcp(wanted).await.map(drop),
            Protocol::NatPmp => self.by_pmp(wanted).await.map(drop),
            Protocol::Upnp => self.unmap(wanted).await,
        };
        done.map_err(|reason| PortmapError::Refused {
            gateway: self.gateway.into(),
            reasons: vec![format!("{}: {reason}", granted.by)],
        })
    }

    /// Gives back, by PCP and NAT-PMP, what a request may have mapped that was not answered or not waited
    /// for. By UPnP nothing is: what is there may be another machine's.
    pub async fn abandon(&self, wanted: Wanted) {
        let wanted = Wanted { lifetime: Duration::ZERO, ..wanted };
        let back = async {
            let pcp = async {
                if self.portmap.pcp {
                    _ = self.by_pcp(wanted).await;
                }
            };
            let pmp = async {
                if self.portmap.pmp {
                    _ = self.by_pmp(wanted).await;
                }
            };
            tokio::join!(pcp, pmp);
        };
        // The gateway lets go of it in the end by itself.
        _ = timeout(PARTING, back).await;
    }

    fn granted(
        &self,
        by: Protocol,
        transport: Transport,
        port: u16,
        (external, external_port): (Option<Ipv4Addr>, u16),
        lifetime_s: u32,
    ) -> Granted {
        let local = SocketAddr::new(self.client.into(), port);
        let external = external.or(self.portmap.external);
        Granted { by, transport, external, external_port, local, lifetime_s }
    }

    async fn by_pcp(&self, wanted: Wanted) -> Result<Granted, String> {
        let (client, gateway, nonce) = (self.client, self.gateway, self.nonce);
        let asked =
            udp::run(&self.source, move |line| map_by_pcp(line, client, gateway, nonce, wanted));
        match asked.await {
            Some(pcp::Answer::Mapped { external_port, external, lifetime }) => {
                let address = match external {
                    IpAddr::V4(address) if !address.is_unspecified() => Some(address),
                    _ => None,
                };
                let external = (address, external_port);
                let Wanted { transport, port, .. } = wanted;
                Ok(self.granted(Protocol::Pcp, transport, port, external, lifetime))
            }
            Some(pcp::Answer::Refused(code)) => Err(pcp::meaning(code).to_owned()),
            Some(pcp::Answer::Here) | None => Err("no answer".to_owned()),
        }
    }

    async fn by_pmp(&self, wanted: Wanted) -> Result<Granted, String> {
        let gateway = self.gateway;
        let asked = udp::run(&self.source, move |line| map_by_pmp(line, gateway, wanted));
        match asked.await {
            (Some(pmp::Answer::Mapped { external_port, lifetime }), address) => {
                let Wanted { transport, port, .. } = wanted;
                let external = (address, external_port);
                Ok(self.granted(Protocol::NatPmp, transport, port, external, lifetime))
            }
            (Some(pmp::Answer::Refused(code)), _) => Err(pmp::meaning(code).to_owned()),
            (Some(pmp::Answer::Address(_)) | None, _) => Err("no answer".to_owned()),
        }
    }

    async fn by_upnp(&self, wanted: Wanted) -> Result<Granted, String> {
        let mut reason = "it describes no service that maps ports".to_owned();
        for service in &self.services {
            let mut wanted = wanted;
            for _ in 0..TRIES {
                let action = Action::Map(wanted, self.client);
                match act(&self.source, service, &action).await {
                    Ok(_) => return Ok(self.by_service(service, wanted).await),
                    Err(Refusal { code: Some(upnp::ONLY_PERMANENT), .. }) => {
                        wanted.lifetime = Duration::ZERO;
                    }
                    Err(Refusal { code: Some(upnp::CONFLICT), text }) => {
                        reason = text;
                        wanted.external_port = rand::random_range(1024..=u16::MAX);
                    }
                    Err(Refusal { text, .. }) => {
                        reason = text;
                        break;
                    }
                }
            }
        }
        Err(reason)
    }

    async fn by_service(&self, service: &Service, wanted: Wanted) -> Granted {
        let address = act(&self.source, service, &Action::Address).await;
        let address = address.ok().and_then(|answer| upnp::read_address(&answer));
        let Wanted { transport, port, external_port, .. } = wanted;
        let external = (address, external_port);
        self.granted(Protocol::Upnp, transport, port, external, wanted.seconds())
    }

    async fn unmap(&self, wanted: Wanted) -> Result<(), String> {
        let mut result = Err("it describes no service that maps ports".to_owned());
        for service in &self.services {
            match act(&self.source, service, &Action::Unmap(wanted)).await {
                Ok(_) => return Ok(()),
                Err(refusal) => result = Err(refusal.text),
            }
        }
        result
    }
}

/// The services of a device that map ports. One that cannot be read has none.
async fn describe(source: &Source, device: &Place) -> Vec<Service> {
    let request = Request::builder().uri(&device.path).header(HOST, device.at.to_string());
    let Ok(request) = request.body(Full::new(Bytes::new())) else { return Vec::new() };
    match exchange(source, device.at, request, READING).await {
        Ok((StatusCode::OK, body)) => {
            upnp::read_description(&String::from_utf8_lossy(&body), device)
        }
        Ok(_) | Err(_) => Vec::new(),
    }
}

/// Why a service did not do what it was asked for.
struct Refusal {
    /// Its own number.
    code: Option<u16>,
    text: String,
}

/// Asks a service, and returns what it answers if it does what it was asked for.
async fn act(source: &Source, service: &Service, action: &Action) -> Result<String, Refusal> {
    let failed = |text: String| Refusal { code: None, text };
    let request = Request::builder()
        .method(Method::POST)
        .uri(&service.control.path)
        .header(HOST, service.control.at.to_string())
        .header(CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
        .header("SOAPAction", format!("\"{}#{}\"", service.name, action.name()))
        .body(Full::new(Bytes::from(action.body(service))))
        .map_err(|error| failed(error.to_string()))?;
    let (status, body) = exchange(source, service.control.at, request, ACTION)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let body = String::from_utf8_lossy(&body).into_owned();
    if status == StatusCode::OK {
        return Ok(body);
    }
    Err(match upnp::read_error(&body) {
        Some((code, text)) => Refusal { code: Some(code), text: format!("{text} (error {code})") },
        None => failed(format!("it answers {status}")),
    })
}
