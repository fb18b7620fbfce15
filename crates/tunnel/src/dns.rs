//! Names by DNS: a server that a hub and a peer have in common, on tokio.
//!
//! A hub answers for its network's zone at its own address there. A peer with a resolver of its own passes
//! questions on, those about the zone to its hub. What is done about a question says [`Resolve`]; what the zone
//! holds and how answers are written is [`netyard_wire::dns`].
//!
//! Questions come by datagram and, where an answer is too long for that, by stream (RFC 7766), and are passed on
//! as they came. Lookups under way and streams are bounded; what is more gets no answer, as if it were lost.

mod ask;
pub(crate) mod resolv_conf;
mod resolver;

use std::io;
use std::net::{self, IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use netyard_wire::dns::{self, Flags, Query, Rcode, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{self, JoinHandle, JoinSet};
use tokio::time;

pub(crate) use self::resolver::{Asked, Resolver};

/// The port of DNS.
pub(crate) const PORT: u16 = 53;

/// Lookups under way over UDP, of one server.
const LOOKUPS: usize = 256;
/// Streams of one server.
const STREAMS: usize = 64;
/// How long a stream may be still. RFC 7766 section 6.2.3: a few seconds.
const IDLE: Duration = Duration::from_secs(10);
/// The longest question, bytes. Honest ones are a tenth of that.
const MAX_QUERY: usize = 4096;
/// The longest answer by datagram, bytes: it fits every path without fragments.
const MAX_DATAGRAM: usize = 1232;

/// What is done about a question.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// This is the answer.
    Answer(Response),
    /// These servers are asked, one after the other.
    Ask(Vec<SocketAddr>),
}

/// Who says what is done about questions.
pub(crate) trait Resolve {
    /// What is done about this one, of somebody with this address.
    fn resolve(&self, query: &Query, from: IpAddr) -> Verdict;
}

/// How a question came, and how it is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Datagram,
    Stream,
}

/// A server at some addresses of this machine; it ends when this value goes.
#[derive(Debug)]
pub(crate) struct Server {
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens at port 53 of each address.
    pub(crate) fn start(
        addresses: impl IntoIterator<Item = IpAddr>,
        resolve: &Rc<impl Resolve + 'static>,
    ) -> io::Result<Self> {
        let mut server = Self { tasks: Vec::new() };
        for address in addresses {
            let at = SocketAddr::new(address, PORT);
            let (datagrams, streams) = bind(at)?;
            let resolve = Rc::clone(resolve);
            server.tasks.push(task::spawn_local(async move {
                tokio::join!(
                    serve_datagrams(datagrams, &resolve),
                    serve_streams(streams, &resolve)
                );
            }));
        }
        Ok(server)
    }
}

fn bind(at: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let (datagrams, streams) = (net::UdpSocket::bind(at)?, net::TcpListener::bind(at)?);
    datagrams.set_nonblocking(true)?;
    streams.set_nonblocking(true)?;
    Ok((UdpSocket::from_std(datagrams)?, TcpListener::from_std(streams)?))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn serve_datagrams(socket: UdpSocket, resolve: &Rc<impl Resolve + 'static>) {
    let socket = Rc::new(socket);
    let mut lookups = JoinSet::new();
    let mut buffer = [0; MAX_QUERY];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = lookups.join_next() => continue,
        };
        // Errors are those of answers before: somebody has gone.
        let Ok((len, from)) = received else { continue };
        if lookups.len() >= LOOKUPS {
            continue;
        }
        let message = buffer.get(..len).unwrap_or_default().to_vec();
        let (socket, resolve) = (Rc::clone(&socket), Rc::clone(resolve));
        lookups.spawn_local(async move {
            if let Some(answer) = treat(&*resolve, &message, from.ip(), Transport::Datagram).await {
                // As good as lost on the way if it cannot be sent: the client asks again.
                _ = socket.send_to(&answer, from).await;
            }
        });
    }
}

async fn serve_streams(listener: TcpListener, resolve: &Rc<impl Resolve + 'static>) {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if streams.len() < STREAMS => {
                let Ok((stream, from)) = accepted else { continue };
                let resolve = Rc::clone(resolve);
                // A client that goes away, or talks nonsense, is the client's matter.
                streams.spawn_local(async move { serve_stream(stream, from.ip(), &*resolve).await.ok() });
            }
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn serve_stream(
    mut stream: TcpStream,
    from: IpAddr,
    resolve: &impl Resolve,
) -> io::Result<()> {
    loop {
        let question = time::timeout(IDLE, read_framed(&mut stream, MAX_QUERY)).await??;
        let Some(answer) = treat(resolve, &question, from, Transport::Stream).await else {
            return Ok(());
        };
        let framed = dns::framed(&answer).ok_or(io::ErrorKind::InvalidData)?;
        time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// Reads a message behind its length (RFC 1035 section 4.2.2).
async fn read_framed(stream: &mut TcpStream, limit: usize) -> io::Result<Vec<u8>> {
    let len = usize::from(stream.read_u16().await?);
    if len > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; len];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// The answer to a message; `None`: it is no question, and gets none.
async fn treat(
    resolve: &impl Resolve,
    message: &[u8],
    from: IpAddr,
    transport: Transport,
) -> Option<Vec<u8>> {
    let Ok(query) = Query::parse(message) else {
        return dns::format_error(message).map(Vec::from);
    };
    let limit = match transport {
        Transport::Datagram => query.udp_size().min(MAX_DATAGRAM),
        Transport::Stream => usize::from(u16::MAX),
    };
    if query.flags.opcode() != 0 {
        return Some(Response::to(&query, Rcode::NotImplemented).emit(limit));
    }
    let servers = match resolve.resolve(&query, from) {
        Verdict::Answer(answer) => return Some(answer.emit(limit)),
        Verdict::Ask(servers) => servers,
    };
    match ask::ask(&servers, &query, message, transport).await {
        Some(answer) if answer.len() <= limit => Some(answer),
        Some(_) => {
            let mut cut = Response::to(&query, Rcode::NoError);
            cut.flags = cut.flags | Flags::TRUNCATED;
            Some(cut.emit(limit))
        }
        None => Some(Response::to(&query, Rcode::ServerFailure).emit(limit)),
    }
}
