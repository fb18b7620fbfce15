//! Opening pipes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use socket2::Type;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::serve::{self, Clients, Manners};
use super::shared::{About, Connection, Shared};
use super::{Filter, Limits, Pipe, PipeError, Policy, Proto};
use crate::bind::Bind;
use crate::tls::{self, Identity};
use crate::{Family, Interface, NicError, Route, card_named, resolve};

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

    /// The address if it is one: `192.0.2.1`, `2001:db8::1`, `fe80::1%2`, `fe80::1%eth0`.
    fn address(&self) -> Result<Option<SocketAddr>, NicError> {
        let (name, port) = match self {
            Self::Address(address) => return Ok(Some(*address)),
            Self::Name(name, port) => (name, *port),
        };
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
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
    bind: Option<Bind>,
    options: PipeOptions,
    inbox: bool,
    gathered: bool,
}

impl PipeBuilder {
    pub(super) fn new(proto: Proto) -> Self {
        Self { proto, bind: None, options: PipeOptions::default(), inbox: true, gathered: false }
    }

    /// By this route: from its address, by its card.
    #[must_use]
    pub fn via(self, route: &Route) -> Self {
        self.bind(route.bind())
    }

    /// Bound to this.
    #[must_use]
    pub fn bind(mut self, bind: Bind) -> Self {
        self.bind = Some(bind);
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
        let bind = match (&self.bind, known) {
            (Some(bind), _) => bind.clone(),
            (None, Some(address)) => Bind::every(Family::of(address.ip())),
            (None, None) => Bind::every(default_family()?),
        };
        let addresses = match (known, &to) {
            (Some(address), _) => vec![address],
            (None, Target::Name(name, port)) => self.ask(name, *port, &bind).await?,
            (None, Target::Address(address)) => vec![*address],
        };
        let mut failed = PipeError::Closed;
        for address in addresses {
            let opened = match self.proto {
                Proto::Tcp => self.connect_stream(&bind, address, &to, tls.as_ref()).await,
                Proto::Udp => self.connect_datagrams(&bind, address).await,
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
            .map_err(|_| PipeError::Timeout { what: "connecting", after })?
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
        let (socket, pinned) = self.datagram_socket(&bind)?;
        let connected = socket.connect(to).await;
        connected.map_err(|source| PipeError::Connect { to, source })?;
        let local = socket.local_addr().map_err(PipeError::Io)?;
        let about = About { peer: Some(to), ..self.about(local, bind, pinned) };
        Ok(self.datagrams(about, socket))
    }

    fn serve_datagrams(&self) -> Result<Pipe, PipeError> {
        let bind = self.server_bind()?;
        let (socket, pinned) = self.datagram_socket(&bind)?;
        let local = socket.local_addr().map_err(PipeError::Io)?;
        Ok(self.datagrams(self.about(local, bind, pinned), socket))
    }

    fn datagram_socket(&self, bind: &Bind) -> Result<(UdpSocket, bool), PipeError> {
        let bound = bind.socket(Type::DGRAM)?;
        if self.options.broadcast {
            bound.socket.set_broadcast(true).map_err(PipeError::Io)?;
        }
        let socket = UdpSocket::from_std(bound.socket.into()).map_err(PipeError::Io)?;
        Ok((socket, bound.pinned))
    }

    fn datagrams(&self, about: About, socket: UdpSocket) -> Pipe {
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
        match &self.bind {
            Some(bind) => Ok(bind.clone()),
            None => Ok(Bind::every(default_family()?)),
        }
    }

    fn with_inbox(&self, shared: Arc<Shared>, wanted: bool) -> Pipe {
        let inbox =
            (wanted && self.inbox).then(|| shared.hub.subscribe(Filter::all(), shared.limits));
        Pipe::new(shared, inbox)
    }
}

/// IPv4 if the kernel has a way out for it, else IPv6 if it has one of those.
fn default_family() -> Result<Family, NicError> {
    let family = Interface::default_lite()?.supported().next();
    Ok(family.unwrap_or(Family::Ip4))
}

fn no_datagrams(with: String) -> PipeError {
    PipeError::Tls { with, reason: "TLS needs TCP".to_owned() }
}
