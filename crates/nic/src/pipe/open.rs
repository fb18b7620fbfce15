//! Opening pipes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use socket2::Type;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::serve::{self, Clients, Manners};
use super::shared::{About, Connection, Shared};
use super::{Filter, Limits, Pipe, PipeError, Policy, Proto};
use crate::bind::{Bind, BindError, Bound};
use crate::datagrams::Datagrams;
use crate::resolve::DnsError;
use crate::tls::{self, Identity};
use crate::{Family, Interface, NicError, Route, card_named, resolve};

/// What may take too long.
const CONNECTING: &str = "connecting";

/// The other end of a client: an address, or a name that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An address and a port.
    Address(SocketAddr),
    /// A name, or an address as text, and a port.
    Name(String, u16),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<(IpAddr, u16)> for Target {
    fn from(address: (IpAddr, u16)) -> Self {
        Self::Address(address.into())
    }
}

impl From<(&str, u16)> for Target {
    fn from((name, port): (&str, u16)) -> Self {
        Self::Name(name.to_owned(), port)
    }
}

impl From<(String, u16)> for Target {
    fn from((name, port): (String, u16)) -> Self {
        Self::Name(name, port)
    }
}

impl Target {
    /// The host, as certificates name it.
    fn host(&self) -> String {
        match self {
            Self::Address(address) => address.ip().to_string(),
            Self::Name(name, _) => name.clone(),
        }
    }

    /// The family, where it is an address, with a scope or without.
    #[must_use]
    pub fn family(&self) -> Option<Family> {
        match self {
            Self::Address(address) => Some(Family::of(address.ip())),
            Self::Name(name, _) => {
                let name = bare(name);
                let address = name.split_once('%').map_or(name, |(address, _)| address);
                address.parse().ok().map(Family::of)
            }
        }
    }

    /// The address if it is one: `192.0.2.1`, `2001:db8::1`, `fe80::1%2`, `fe80::1%eth0`.
    fn address(&self) -> Result<Option<SocketAddr>, NicError> {
        let (name, port) = match self {
            Self::Address(address) => return Ok(Some(*address)),
            Self::Name(name, port) => (name, *port),
        };
        let name = bare(name);
        if let Some((address, scope)) = name.split_once('%')
            && let Ok(address) = address.parse::<Ipv6Addr>()
        {
            let scope = match scope.parse() {
                Ok(number) => number,
                Err(_) => card_named(scope)?.index.unwrap_or_default(),
            };
            return Ok(Some(SocketAddrV6::new(address, port, 0, scope).into()));
        }
        Ok(name.parse().ok().map(|address| SocketAddr::new(address, port)))
    }
}

/// An address without the brackets that set it apart from a port.
fn bare(name: &str) -> &str {
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
}

/// Who has to be at the other end of TLS.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// The authorities that are trusted.
    pub trust: RootCertStore,
    /// The name that the other end has to prove; `None`: the one that was asked for.
    pub name: Option<String>,
}

impl Default for ClientTls {
    /// The authorities that the system trusts.
    fn default() -> Self {
        Self { trust: tls::system_trust(), name: None }
    }
}

/// How long a pipe waits, and how much it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeOptions {
    /// How long asking for the other end's name may take, over all resolvers.
    pub dns_timeout: Duration,
    /// How long connecting may take, to each address of the other end.
    pub connect_timeout: Duration,
    /// How long the handshake of TLS may take.
    pub tls_timeout: Duration,
    /// The queue of the inbox, and of subscriptions that name no limits. `None`: that of its protocol.
    pub limits: Option<Limits>,
    /// Clients of a TCP server at a time, those in the handshake of TLS too; further ones wait to be taken in.
    pub max_clients: usize,
    /// Who is asked for names; `None`: the resolvers of the card.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// It may send to broadcast addresses.
    pub broadcast: bool,
}

impl Default for PipeOptions {
    fn default() -> Self {
        Self {
            dns_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            tls_timeout: Duration::from_secs(4),
            limits: None,
            max_clients: 1024,
            resolvers: None,
            broadcast: false,
        }
    }
}

/// A pipe that is not open yet.
#[derive(Debug, Clone)]
pub struct PipeBuilder {
    proto: Proto,
    binds: Vec<Bind>,
    options: PipeOptions,
    inbox: bool,
    gathered: bool,
}

impl PipeBuilder {
    pub(super) fn new(proto: Proto) -> Self {
        Self {
            proto,
            binds: Vec::new(),
            options: PipeOptions::default(),
            inbox: true,
            gathered: false,
        }
    }

    /// By this route: from its address, by its card.
    #[must_use]
    pub fn via(self, route: &Route) -> Self {
        self.bind(route.bind())
    }

    /// Bound to this.
    #[must_use]
    pub fn bind(self, bind: Bind) -> Self {
        self.among([bind])
    }

    /// Bound to the first of these from which the other end is reached, such as one of each family: names may
    /// have addresses of one only. A server takes the first.
    #[must_use]
    pub fn among(mut self, binds: impl IntoIterator<Item = Bind>) -> Self {
        self.binds = binds.into_iter().collect();
        self
    }

    /// With these options.
    #[must_use]
    pub fn options(mut self, options: PipeOptions) -> Self {
        self.options = options;
        self
    }

    /// Without an inbox: messages go to subscriptions only.
    #[must_use]
    pub fn without_inbox(mut self) -> Self {
        self.inbox = false;
        self
    }

    /// A TCP server that keeps its clients: their messages come to its own inbox.
    #[must_use]
    pub fn gathered(mut self) -> Self {
        self.gathered = true;
        self
    }

    /// Opens a client. Names are asked of the card's resolvers; of several addresses the first that answers
    /// is taken. A UDP client hears its other end only.
    ///
    /// # Errors
    /// The name has no address; nobody answers; the address or card cannot be used.
    pub async fn connect(self, to: impl Into<Target>) -> Result<Pipe, PipeError> {
        self.open(to.into(), None).await
    }

    /// Opens a client over TLS, which proves to be who it is asked for.
    ///
    /// # Errors
    /// It does not; as for [`PipeBuilder::connect`]; there is no TLS over UDP.
    pub async fn connect_tls(
        self,
        to: impl Into<Target>,
        tls: ClientTls,
    ) -> Result<Pipe, PipeError> {
        self.open(to.into(), Some(tls)).await
    }

    /// Opens a server.
    ///
    /// # Errors
    /// The port is taken or not permitted; the address is not this machine's.
    pub async fn listen(self) -> Result<Pipe, PipeError> {
        match self.proto {
            Proto::Tcp => self.serve_streams(None),
            Proto::Udp => self.serve_datagrams(),
        }
    }

    /// Opens a server over TLS, which shows itself as this.
    ///
    /// # Errors
    /// As for [`PipeBuilder::listen`]; there is no TLS over UDP.
    pub async fn listen_tls(self, identity: Identity) -> Result<Pipe, PipeError> {
        match self.proto {
            Proto::Tcp => self.serve_streams(Some(TlsAcceptor::from(identity))),
            Proto::Udp => Err(no_datagrams("clients".to_owned())),
        }
    }

    async fn open(self, to: Target, tls: Option<ClientTls>) -> Result<Pipe, PipeError> {
        if tls.is_some() && self.proto == Proto::Udp {
            return Err(no_datagrams(to.host()));
        }
        let known = to.address()?;
        let binds = match (&self.binds[..], known) {
            ([], Some(address)) => vec![Bind::every(Family::of(address.ip()))],
            ([], None) => default_families()?.into_iter().map(Bind::every).collect(),
            (binds, _) => binds.to_vec(),
        };
        let mut failed = None;
        for bind in binds {
            let error = match self.reach(&bind, &to, known, tls.as_ref()).await {
                Ok(pipe) => return Ok(pipe),
                Err(error) => error,
            };
            let is_over = !may_differ(&error);
            // What says the most is told: not that there is nothing of one family.
            if failed.as_ref().is_none_or(is_of_other_family) {
                failed = Some(error);
            }
            if is_over {
                break;
            }
        }
        Err(failed.unwrap_or(PipeError::Closed))
    }

    /// Opens a client from there.
    async fn reach(
        &self,
        bind: &Bind,
        to: &Target,
        known: Option<SocketAddr>,
        tls: Option<&ClientTls>,
    ) -> Result<Pipe, PipeError> {
        let addresses = match (known, to) {
            (Some(address), _) => vec![address],
            (None, Target::Name(name, port)) => self.ask(name, *port, bind).await?,
            (None, Target::Address(address)) => vec![*address],
        };
        let mut failed = PipeError::Closed;
        for address in addresses {
            let opened = match self.proto {
                Proto::Tcp => self.connect_stream(bind, address, to, tls).await,
                Proto::Udp => self.connect_datagrams(bind, address).await,
            };
            match opened {
                Ok(pipe) => return Ok(pipe),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn ask(&self, name: &str, port: u16, bind: &Bind) -> Result<Vec<SocketAddr>, PipeError> {
        let after = self.options.dns_timeout;
        let servers = self.options.resolvers.as_deref();
        let asking = resolve::lookup(name, bind.family(), bind, servers);
        let found = timeout(after, asking)
            .await
            .map_err(|_| PipeError::Timeout { what: "asking for the name", after })??;
        Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    fn about(&self, local: SocketAddr, bind: Bind, pinned: bool) -> About {
        let policy = match self.proto {
            Proto::Tcp => Policy::Wait,
            Proto::Udp => Policy::DropOldest,
        };
        let limits = self.options.limits.unwrap_or(Limits::new(policy));
        About { proto: self.proto, local, peer: None, bind, pinned, limits }
    }

    async fn connect_stream(
        &self,
        bind: &Bind,
        to: SocketAddr,
        target: &Target,
        tls: Option<&ClientTls>,
    ) -> Result<Pipe, PipeError> {
        let (bind, to) = bind.towards(to)?;
        let bound = bind.socket(Type::STREAM)?;
        let socket = TcpSocket::from_std_stream(bound.socket.into());
        let after = self.options.connect_timeout;
        let stream = timeout(after, socket.connect(to))
            .await
            .map_err(|_| PipeError::Timeout { what: CONNECTING, after })?
            .map_err(|source| PipeError::Connect { to, source })?;
        serve::settle(&stream);
        let local = stream.local_addr().map_err(PipeError::Io)?;
        let connection: Connection = match tls {
            None => Box::new(stream),
            Some(tls) => Box::new(self.prove(stream, target, tls).await?),
        };
        let about = About { peer: Some(to), ..self.about(local, bind, bound.pinned) };
        let (shared, reader) = Shared::stream(about, connection, None);
        let pipe = self.with_inbox(shared.clone(), true);
        shared.run(shared.clone().read_stream(reader));
        Ok(pipe)
    }

    async fn prove(
        &self,
        stream: TcpStream,
        target: &Target,
        tls: &ClientTls,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, PipeError> {
        let with = tls.name.clone().unwrap_or_else(|| target.host());
        let failed = |reason: String| PipeError::Tls { with: with.clone(), reason };
        let name = ServerName::try_from(with.clone())
            .map_err(|error| failed(format!("it is no name of a server: {error}")))?;
        let config =
            ClientConfig::builder().with_root_certificates(tls.trust.clone()).with_no_client_auth();
        let after = self.options.tls_timeout;
        timeout(after, TlsConnector::from(Arc::new(config)).connect(name, stream))
            .await
            .map_err(|_| PipeError::Timeout { what: "the handshake of TLS", after })?
            .map_err(|error| failed(error.to_string()))
    }

    async fn connect_datagrams(&self, bind: &Bind, to: SocketAddr) -> Result<Pipe, PipeError> {
        let (bind, to) = bind.towards(to)?;
        let (mut socket, pinned) = self.datagrams_on(bind.socket(Type::DGRAM)?)?;
        let connected = socket.connect(to).await;
        connected.map_err(|source| PipeError::Connect { to, source })?;
        let about = About { peer: Some(to), ..self.about(socket.local(), bind, pinned) };
        Ok(self.datagrams(about, socket))
    }

    fn serve_datagrams(&self) -> Result<Pipe, PipeError> {
        let bind = self.server_bind()?;
        let (socket, pinned) = self.datagrams_on(bind.datagram_server()?)?;
        Ok(self.datagrams(self.about(socket.local(), bind, pinned), socket))
    }

    fn datagrams_on(&self, bound: Bound) -> Result<(Datagrams, bool), PipeError> {
        if self.options.broadcast {
            bound.socket.set_broadcast(true).map_err(PipeError::Io)?;
        }
        Ok((Datagrams::new(bound.socket.into()).map_err(PipeError::Io)?, bound.pinned))
    }

    fn datagrams(&self, about: About, socket: Datagrams) -> Pipe {
        let socket = Arc::new(socket);
        let shared = Shared::datagrams(about, socket.clone());
        let pipe = self.with_inbox(shared.clone(), true);
        shared.run(shared.clone().read_datagrams(socket));
        pipe
    }

    fn serve_streams(&self, tls: Option<TlsAcceptor>) -> Result<Pipe, PipeError> {
        let bind = self.server_bind()?;
        let (listener, pinned) = bind.listener()?;
        let local = listener.local_addr().map_err(PipeError::Io)?;
        let about = self.about(local, bind, pinned);
        let shared = Shared::server(about, Clients::new(self.gathered));
        let pipe = self.with_inbox(shared.clone(), self.gathered);
        shared.run(serve::run(shared.clone(), listener, self.manners(tls)));
        Ok(pipe)
    }

    /// How a server takes its clients in.
    fn manners(&self, tls: Option<TlsAcceptor>) -> Manners {
        let PipeOptions { tls_timeout, max_clients, .. } = self.options;
        Manners { tls, tls_timeout, max_clients, inbox: self.inbox }
    }

    fn server_bind(&self) -> Result<Bind, PipeError> {
        match self.binds.first() {
            Some(bind) => Ok(bind.clone()),
            None => Ok(Bind::every(default_families()?.first().copied().unwrap_or(Family::Ip4))),
        }
    }

    fn with_inbox(&self, shared: Arc<Shared>, wanted: bool) -> Pipe {
        let inbox =
            (wanted && self.inbox).then(|| shared.hub.subscribe(Filter::all(), shared.limits));
        Pipe::new(shared, inbox)
    }
}

/// Those that the kernel has a way out for, IPv4 first; IPv4 if there is none.
fn default_families() -> Result<Vec<Family>, NicError> {
    let families: Vec<_> = Interface::default_lite()?.supported().collect();
    Ok(if families.is_empty() { vec![Family::Ip4] } else { families })
}

/// Whether the other end has nothing of the family that was tried.
fn is_of_other_family(error: &PipeError) -> bool {
    matches!(
        error,
        PipeError::Dns(DnsError::NotFound { .. }) | PipeError::Bind(BindError::Family { .. })
    )
}

/// Whether another family may have more luck. Resolvers that are silent stay so.
fn may_differ(error: &PipeError) -> bool {
    is_of_other_family(error)
        || matches!(error, PipeError::Connect { .. } | PipeError::Timeout { what: CONNECTING, .. })
}

fn no_datagrams(with: String) -> PipeError {
    PipeError::Tls { with, reason: "TLS needs TCP".to_owned() }
}
