//! Questions that are passed on.
//!
//! Each attempt has a socket of its own, and so a port that the kernel chose, and a random identification; an
//! answer counts only from the server that was asked, to the question that was asked (RFC 5452 section 9).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netyard_wire::dns::{self, Query, Rcode, Response};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time;

use super::{Transport, read_framed};

/// How long a server may be silent before the next one is asked.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often each one is asked: one datagram may get lost.
const ROUNDS: usize = 2;
/// Servers that are asked; more only prolong the wait.
const MAX_SERVERS: usize = 4;
/// Answers to one attempt that are none: then somebody is guessing.
const MAX_STRAYS: usize = 64;

/// The answer of the first server that has one, with the question's own identification; an error of theirs if
/// none has, `None` if all are silent.
pub(super) async fn ask(
    servers: &[SocketAddr],
    query: &Query,
    message: &[u8],
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut spare = None;
    for server in (0..ROUNDS).flat_map(|_| servers.iter().take(MAX_SERVERS)) {
        let id = rand::random();
        let mut question = message.to_vec();
        dns::set_id(&mut question, id);
        let attempt = async {
            match transport {
                Transport::Datagram => by_datagram(*server, query, id, &question).await,
                Transport::Stream => by_stream(*server, query, id, &question).await,
            }
        };
        let Ok(Ok((mut answer, rcode))) = time::timeout(PATIENCE, attempt).await else { continue };
        dns::set_id(&mut answer, query.id);
        match rcode {
            Rcode::ServerFailure | Rcode::Refused | Rcode::NotImplemented => {
                spare.get_or_insert(answer);
            }
            _ => return Some(answer),
        }
    }
    spare
}

async fn by_datagram(
    server: SocketAddr,
    query: &Query,
    id: u16,
    question: &[u8],
) -> io::Result<(Vec<u8>, Rcode)> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..MAX_STRAYS {
        let len = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..len).unwrap_or_default();
        if let Some(rcode) = rcode(answer, query, id) {
            return Ok((answer.to_vec(), rcode));
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

async fn by_stream(
    server: SocketAddr,
    query: &Query,
    id: u16,
    question: &[u8],
) -> io::Result<(Vec<u8>, Rcode)> {
    let mut stream = TcpStream::connect(server).await?;
    let framed = dns::framed(question).ok_or(io::ErrorKind::InvalidData)?;
    stream.write_all(&framed).await?;
    let answer = read_framed(&mut stream, usize::from(u16::MAX)).await?;
    let rcode = rcode(&answer, query, id).ok_or(io::ErrorKind::InvalidData)?;
    Ok((answer, rcode))
}

/// What an answer says; `None`: it is none to this question.
fn rcode(answer: &[u8], query: &Query, id: u16) -> Option<Rcode> {
    let response = Response::parse(answer).ok()?;
    let fits = response.id == id && response.question.as_ref() == Some(&query.question);
    fits.then(|| response.flags.rcode())
}
