//! One server, asked from one place of this machine.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::RootCertStore;

use super::ask::{Answer, Failure, Question, Schedule};
use super::attribute::{Change, Kind};
use super::client::may_name;
use super::machine::Port;
use super::udp::{self, Source};
use super::{names, stream};
use crate::nat::NatReport;
use crate::nat::live::{self, NatError};
use crate::{CardId, Family, Route, tls};

/// What carries questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// UDP, port 3478 unless another is named.
    Udp,
    /// TCP, port 3478 unless another is named.
    Tcp,
    /// TLS over TCP, port 5349 unless another is named.
    Tls,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        })
    }
}

/// A client of one STUN server. Nothing is sent before it is asked for something.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use netyard_nic::{Interface, StunClient, default_card};
///
/// let route = Interface::unasked(default_card()?).route(None)?;
/// let mapping = StunClient::new("stun.example.org").via(&route).mapping().await?;
/// println!("{} is seen as {}", mapping.local, mapping.answer.mapped);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct StunClient {
    server: String,
    /// Where the server is, once that is known.
    at: Option<SocketAddr>,
    carrier: Carrier,
    trust: Option<RootCertStore>,
    card: Option<CardId>,
    address: Option<IpAddr>,
    classic: bool,
}

/// A local address, and as which the server sees it.
#[derive(Debug)]
pub struct Mapping {
    /// The server.
    pub server: SocketAddr,
    /// The local address.
    pub local: SocketAddr,
    /// What the server said.
    pub answer: Answer,
    /// The socket, which keeps the mapping: what is sent from it is seen under the same address by those
    /// servers that the NAT treats alike.
    pub socket: Kept,
}

/// A socket that stays open behind the answer.
#[derive(Debug)]
pub enum Kept {
    /// Not connected.
    Udp(UdpSocket),
    /// Connected to the server.
    Tcp(TcpStream),
    /// The same, encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StunError {
    /// The server's address is not known.
    #[error("{0}")]
    Name(io::Error),
    /// Nothing leads to it.
    #[error("no way to {server}: {source}")]
    NoWay {
        /// The server.
        server: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was asked for is not how servers are asked over what was chosen.
    #[error("{0}")]
    Misuse(&'static str),
    /// It did not answer with an address.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl StunClient {
    /// Of `HOST`, `HOST:PORT`, `[IPV6]:PORT`, or `stun:` before any of them: over UDP unless another carrier is
    /// named; with `stuns:` over TLS.
    pub fn new(server: impl Into<String>) -> Self {
        let server = server.into();
        let carrier = if names::is_tls(&server) { Carrier::Tls } else { Carrier::Udp };
        Self { server, at: None, carrier, trust: None, card: None, address: None, classic: false }
    }

    /// Over this.
    #[must_use]
    pub fn over(mut self, carrier: Carrier) -> Self {
        self.carrier = carrier;
        self
    }

    /// In the form of RFC 3489, over UDP: for servers of its time.
    #[must_use]
    pub fn classic(mut self) -> Self {
        self.classic = true;
        self
    }

    /// Over TLS these authorities are believed, instead of the system's.
    #[must_use]
    pub fn trusting(mut self, trust: RootCertStore) -> Self {
        self.trust = Some(trust);
        self
    }

    /// By this route: from its address, by its card, and with its name asked of the card's resolvers.
    #[must_use]
    pub fn via(self, route: &Route) -> Self {
        let client = self.from_address(route.bind_address());
        match route.card().index {
            Some(_) => client.by(route.card().clone()),
            None => client,
        }
    }

    /// By this card, with its name asked of the card's resolvers.
    #[must_use]
    pub fn by(mut self, card: CardId) -> Self {
        self.card = Some(card);
        self
    }

    /// From this address.
    #[must_use]
    pub fn from_address(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// The same client, with the server's name asked for: what is asked from now on is asked of one machine.
    ///
    /// # Errors
    /// [`StunError::Name`].
    pub async fn found(mut self) -> Result<Self, StunError> {
        self.at = Some(self.find().await?);
        Ok(self)
    }

    /// Where the server is.
    ///
    /// # Errors
    /// [`StunError::Name`].
    pub async fn find(&self) -> Result<SocketAddr, StunError> {
        if names::is_tls(&self.server) && self.carrier != Carrier::Tls {
            return Err(StunError::Misuse("who is named with stuns: is asked over TLS only"));
        }
        if let Some(at) = self.at {
            return Ok(at);
        }
        let families = match self.address {
            Some(address) => vec![Family::of(address)],
            None => Family::BOTH.to_vec(),
        };
        let port = match self.carrier {
            Carrier::Tls => names::TLS_PORT,
            Carrier::Udp | Carrier::Tcp => names::PORT,
        };
        let found = names::find(&self.server, &families, port, self.card.as_ref()).await;
        found.map_err(StunError::Name)
    }

    /// From where the server is asked.
    async fn source(&self, server: SocketAddr) -> Result<Source, StunError> {
        let card = self.card.as_ref().map(|card| card.name.as_ref());
        if let Some(address) = self.address {
            return Ok(Source { address, card: card.map(str::to_owned) });
        }
        let towards = Source::towards(server, card).await;
        towards.map_err(|source| StunError::NoWay { server, source })
    }

    /// As whom the server sees this machine.
    ///
    /// # Errors
    /// [`StunError`].
    pub async fn wan_ip(&self) -> Result<IpAddr, StunError> {
        Ok(self.mapping().await?.answer.mapped.ip().to_canonical())
    }

    /// A local address, and as which the server sees it; the socket stays open.
    ///
    /// # Errors
    /// [`StunError`].
    pub async fn mapping(&self) -> Result<Mapping, StunError> {
        let server = self.find().await?;
        let source = self.source(server).await?;
        let (local, answer, socket) = match self.carrier {
            Carrier::Udp => {
                let question = Question::plain(server, self.classic);
                let (socket, answer) = udp::ask_keeping(&source, question).await?;
                (socket.local_addr(), answer, Kept::Udp(socket))
            }
            _ if self.classic => return Err(ONLY_UDP),
            Carrier::Tcp => {
                let (socket, answer) = stream::ask_tcp_keeping(&source, server).await?;
                (socket.local_addr(), answer, Kept::Tcp(socket))
            }
            Carrier::Tls => {
                let trust = match &self.trust {
                    Some(trust) => trust.clone(),
                    None => tls::load_system_trust().await,
                };
                let (host, _) = names::split(&self.server, names::TLS_PORT);
                let (socket, answer) =
                    stream::ask_tls_keeping(&source, server, host, trust).await?;
                (socket.get_ref().0.local_addr(), answer, Kept::Tls(Box::new(socket)))
            }
        };
        let local = local.map_err(|error| Failure::Socket(error.kind()))?;
        Ok(Mapping { server, local, answer, socket })
    }

    /// Has the server answer from its other port, over UDP: who hears that lets others in from ports that it has
    /// not sent to.
    ///
    /// # Errors
    /// [`StunError`]; [`Failure::Timeout`] is what a filter makes of it; [`Failure::Unsupported`]: the server has
    /// one address only.
    pub async fn change_port(&self) -> Result<Answer, StunError> {
        self.changed(Change { address: false, port: true }).await
    }

    /// Has the server answer from its other address and port, over UDP: who hears that lets others in from
    /// addresses that it has not sent to.
    ///
    /// # Errors
    /// As for [`StunClient::change_port`].
    pub async fn change_ip_port(&self) -> Result<Answer, StunError> {
        self.changed(Change { address: true, port: true }).await
    }

    async fn changed(&self, change: Change) -> Result<Answer, StunError> {
        if self.carrier != Carrier::Udp {
            return Err(ONLY_UDP);
        }
        let server = self.find().await?;
        let source = self.source(server).await?;
        let question = Question::plain(server, self.classic);
        let answer = udp::run(&source, move |line| async move {
            let socket = line.open(Port::Any).await.map_err(Failure::Socket)?;
            let plain = socket.ask(question, Schedule::STANDARD).await?;
            // An address that is the server's own tells nothing about filters.
            let differs = |other: &SocketAddr| {
                other.ip() != server.ip()
                    && other.port() != server.port()
                    && may_name(server, *other)
            };
            let Some(other) = plain.other.filter(differs) else {
                return Err(Failure::Unsupported(vec![Kind::CHANGE_REQUEST]));
            };
            let ip = if change.address { other.ip() } else { server.ip() };
            let expect = SocketAddr::new(ip, other.port());
            socket.ask(question.from_elsewhere(change, expect), Schedule::QUICK).await
        });
        Ok(answer.await?)
    }

    /// What the NAT between this machine and the server does. [`live::test`] asks several servers, and more.
    ///
    /// # Errors
    /// [`NatError`].
    pub async fn nat(&self) -> Result<NatReport, NatError> {
        let family = self.address.or(self.at.map(|at| at.ip())).map_or(Family::Ip4, Family::of);
        let options = live::Options {
            card: self.card.as_ref().map(|card| card.name.to_string()),
            address: self.address,
            gateway: false,
            ..live::Options::new(vec![self.server.clone()], family)
        };
        live::test(&options).await
    }
}

const ONLY_UDP: StunError =
    StunError::Misuse("RFC 3489, and answers from elsewhere, are for questions over UDP");
