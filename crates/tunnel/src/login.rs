//! How a connection becomes a lane: TLS, the upgrade to a WebSocket, `connect` and its answer.
//!
//! Both ends go through the same steps: INIT until the WebSocket is open, AUTH until the hub has answered,
//! CONNECTED. All of it must be done within [`LIMIT`].

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::clock::{now_ms, skew};
use crate::error::Error;
use crate::identity::{self, EXPORTER_LABEL, NodeKey, is_proved};
use crate::join::{Endpoint, Join, Secret, TokenId};
use crate::lane::{Ended, Inbox, say};
use crate::message::{
    ByUdp, Connect, Connected, Credential, MAX_NAME, Message, Reject, RejectCode,
};
use crate::paced::Paced;
use crate::proxy::ProxyError;
use crate::read_ahead::ReadAhead;
use crate::tls;
use crate::udp::sealed::{self, Opener, Sealer};
use crate::upgrade::{self, UpgradeError};
use crate::websocket::{Opcode, Side};

/// How long a connection may take to become a lane.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// The program and its version.
pub(crate) const AGENT: &str = concat!("netyard ", env!("CARGO_PKG_VERSION"));

/// A hub's end of a connection.
pub(crate) type HubStream = server::TlsStream<ReadAhead<Paced>>;
/// A peer's end of a connection.
pub(crate) type PeerStream = client::TlsStream<ReadAhead<Paced>>;

/// Why a connection became no lane.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It broke, or was no TLS.
    Io(io::Error),
    /// The hub is another than the one in the join string.
    Stranger,
    /// The proxy on the way does not let it through.
    Proxy(ProxyError),
    /// It was no WebSocket of ours.
    Upgrade(UpgradeError),
    /// What came on the WebSocket was wrong.
    Ended(Ended),
    /// The hub said no.
    Rejected(Reject),
    /// Something else came than what was due.
    Unexpected,
    /// It took too long.
    TimedOut,
    /// This machine has another way there than when it began.
    Moved,
    /// This machine refuses, and will go on to.
    Local(Box<Error>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Stranger => {
                f.write_str("the hub there is another than the one that the join string names")
            }
            Self::Proxy(error) => write!(f, "{error}"),
            Self::Upgrade(error) => write!(f, "{error}"),
            Self::Ended(ended) => write!(f, "{ended}"),
            Self::Rejected(reject) => f.write_str(&reject.message),
            Self::Unexpected => f.write_str("another message came than the one that was due"),
            Self::Local(error) => write!(f, "{error}"),
            Self::Moved => f.write_str("this machine has another way there now"),
            Self::TimedOut => write!(f, "no answer within {} seconds", LIMIT.as_secs()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if tls::is_stranger(&error) { Self::Stranger } else { Self::Io(error) }
    }
}

impl From<UpgradeError> for Failure {
    fn from(error: UpgradeError) -> Self {
        Self::Upgrade(error)
    }
}

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

/// What a peer showed at the door. That its key is its own is proved.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) key: [u8; 32],
    pub(crate) name: String,
    pub(crate) token: Option<(TokenId, Secret)>,
    pub(crate) subnets: Vec<IpNet>,
    pub(crate) exit: Option<String>,
    pub(crate) names: bool,
    pub(crate) by_udp: ByUdp,
    /// Which network of the hub; `None`: the main one.
    pub(crate) network: Option<String>,
    /// Of its program; 0: it did not say.
    pub(crate) run: u64,
    /// Its clock, milliseconds of Unix time; 0: it did not say.
    pub(crate) clock_ms: u64,
}

/// What a peer says of itself, beside what proves it.
#[derive(Debug)]
pub(crate) struct Wishes<'a> {
    pub(crate) name: &'a str,
    pub(crate) subnets: &'a [IpNet],
    pub(crate) exit: Option<&'a str>,
    pub(crate) names: bool,
    pub(crate) by_udp: ByUdp,
    pub(crate) run: u64,
    pub(crate) clock_ms: u64,
}

/// Subnets behind one peer, at most.
const MOST_SUBNETS: usize = 64;

/// The hub's part, up to the question whether this guest may in.
pub(crate) async fn receive(
    acceptor: &TlsAcceptor,
    socket: TcpStream,
) -> Result<(HubStream, Inbox, Result<Guest, Reject>), Failure> {
    let socket = ReadAhead::new(Paced::new(socket));
    let mut stream = acceptor.accept(socket).await?;
    let rest = match read_head(&mut stream, upgrade::accept).await {
        Ok(((len, answer), bytes)) => {
            stream.write_all(answer.as_bytes()).await?;
            stream.flush().await?;
            bytes.get(len..).unwrap_or_default().to_vec()
        }
        Err(Failure::Upgrade(error)) => {
            stream.write_all(error.answer().as_bytes()).await?;
            stream.shutdown().await?;
            return Err(error.into());
        }
        Err(failure) => return Err(failure),
    };
    let exported = export(stream.get_ref().1, EXPORTER_LABEL, None)?;
    let mut inbox = Inbox::new(&rest, Side::Peer);
    let guest = match hear(&mut inbox, &mut stream).await? {
        Message::Connect(connect) => judge(connect, &exported),
        _ => return Err(Failure::Unexpected),
    };
    Ok((stream, inbox, guest))
}

/// What can be said about a login without the store.
fn judge(connect: Connect, exported: &[u8; 32]) -> Result<Guest, Reject> {
    if !is_proved(&connect.node, exported, &connect.proof) {
        return Err(reject(RejectCode::BadProof));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let name = connect.name;
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
        return Err(reject(RejectCode::Malformed));
    }
    if connect.subnets.len() > MOST_SUBNETS {
        return Err(reject(RejectCode::Malformed));
    }
    let token = connect.token.map(|token| (TokenId(token.id), Secret(token.secret)));
    let subnets = connect.subnets.iter().map(IpNet::trunc).collect();
    let Connect { node: key, exit, names, by_udp, network, run, clock_ms, .. } = connect;
    Ok(Guest { key, name, token, subnets, exit, names, by_udp, network, run, clock_ms })
}

/// A refusal in words.
pub(crate) fn reject(code: RejectCode) -> Reject {
    let message = match code {
        RejectCode::BadToken => "the hub knows no such token: was the join string cut off?",
        RejectCode::Expired => "the token has expired: ask for a new join string",
        RejectCode::Used => "the token is used up: ask for a new join string",
        RejectCode::Revoked => "the hub's operator has revoked it",
        RejectCode::Unknown => "the hub does not know this node, and no token was brought",
        RejectCode::BadProof => {
            "the signature is not for this connection: something between here and the hub ends TLS"
        }
        RejectCode::NoAddress => "every address of the network is in use",
        RejectCode::NoExit => "the hub knows no peer of the name that was chosen as the exit",
        RejectCode::Busy => "the hub cannot look it up at the moment",
        RejectCode::Malformed => {
            "the name is not of up to 63 letters, digits, \"-\", \"_\" and \".\", or it has more than \
             64 subnets"
        }
        RejectCode::Other => "the hub refuses",
    };
    Reject { code, message: message.to_owned(), clock_ms: now_ms().cast_unsigned() }
}

/// The peer's part, up to the proof that it is the hub that a connected socket leads to.
pub(crate) async fn secure(
    config: Arc<ClientConfig>,
    socket: TcpStream,
    hub: &Endpoint,
) -> Result<PeerStream, Failure> {
    let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let server = ServerName::try_from(hub.host.clone()).map_err(wrong)?;
    let socket = ReadAhead::new(Paced::new(socket));
    Ok(TlsConnector::from(config).connect(server, socket).await?)
}

/// The rest of the peer's part: logs in.
pub(crate) async fn connect(
    mut stream: PeerStream,
    join: &Join,
    node: &NodeKey,
    wishes: &Wishes<'_>,
) -> Result<(PeerStream, Inbox, Connected), Failure> {
    let key = identity::random().map_err(io::Error::other)?;
    stream.write_all(upgrade::request(&join.hub.to_string(), &key).as_bytes()).await?;
    let proof = node.prove(&export(stream.get_ref().1, EXPORTER_LABEL, None)?);
    // Said without waiting for the upgrade: a hub reads one behind the other.
    let token = Credential { id: join.token.0, secret: join.secret.0 };
    let connect = Message::Connect(Connect {
        node: node.public(),
        proof,
        name: wishes.name.to_owned(),
        token: Some(token),
        subnets: wishes.subnets.to_vec(),
        exit: wishes.exit.map(str::to_owned),
        names: wishes.names,
        by_udp: wishes.by_udp,
        network: join.network.clone(),
        run: wishes.run,
        agent: AGENT.to_owned(),
        clock_ms: wishes.clock_ms,
    });
    say(&mut stream, &connect, Side::Peer).await?;
    let (len, bytes) = read_head(&mut stream, |bytes| upgrade::accepted(bytes, &key)).await?;
    let mut inbox = Inbox::new(bytes.get(len..).unwrap_or_default(), Side::Hub);
    match hear(&mut inbox, &mut stream).await? {
        Message::Connected(connected) => {
            compare(wishes.clock_ms, connected.clock_ms);
            Ok((stream, inbox, connected))
        }
        Message::Reject(reject) => {
            compare(wishes.clock_ms, reject.clock_ms);
            Err(Failure::Rejected(reject))
        }
        _ => Err(Failure::Unexpected),
    }
}

/// Says so if the hub's clock is another than this machine's.
fn compare(own_ms: u64, hubs_ms: u64) {
    if let Some(seconds) = skew(own_ms.cast_signed(), hubs_ms) {
        tracing::warn!(seconds, "the hub's clock is ahead of ours; it says when tokens end");
    }
}

/// What only the two ends of this connection have.
fn export<T>(
    connection: &rustls::ConnectionCommon<T>,
    label: &[u8],
    context: Option<&[u8]>,
) -> Result<[u8; 32], Failure> {
    let exported = connection.export_keying_material([0; 32], label, context);
    exported.map_err(|error| Failure::Io(io::Error::other(error)))
}

/// The keys of the UDP of a lane, for the end on this side.
pub(crate) fn udp_keys<T>(
    connection: &rustls::ConnectionCommon<T>,
    side: Side,
) -> Result<(Sealer, Opener), Failure> {
    let secret = |from| {
        let context: &[u8] = if from == Side::Hub { b"from hub" } else { b"from peer" };
        export(connection, sealed::EXPORTER_LABEL, Some(context))
    };
    let (own, others) = match side {
        Side::Hub => (secret(Side::Hub)?, secret(Side::Peer)?),
        Side::Peer => (secret(Side::Peer)?, secret(Side::Hub)?),
    };
    let bad = |_| Failure::Io(io::Error::other("the cryptography does not work"));
    Ok((Sealer::new(own).map_err(bad)?, Opener::new(others).map_err(bad)?))
}

/// Reads until `parse` has a request or an answer; what was read comes along, also what is behind it.
async fn read_head<T>(
    stream: &mut (impl AsyncRead + Unpin),
    parse: impl Fn(&[u8]) -> Result<Option<T>, UpgradeError>,
) -> Result<(T, Vec<u8>), Failure> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 2048];
        let len = match stream.read(&mut piece).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            len => len,
        };
        bytes.extend_from_slice(piece.get(..len).unwrap_or_default());
        if let Some(found) = parse(&bytes)? {
            return Ok((found, bytes));
        }
    }
}

/// Waits for a control message.
async fn hear(
    inbox: &mut Inbox,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Result<Message, Failure> {
    match inbox.next(stream).await? {
        (Opcode::Text, text) => match Message::parse(text).map_err(Ended::Message)? {
            Ok(message) => Ok(message),
            Err(_) => Err(Failure::Unexpected),
        },
        _ => Err(Failure::Unexpected),
    }
}
