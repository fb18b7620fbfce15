//! Asking over TCP and TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Type;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::ask::{Answer, Failure, Question, read_answer};
use super::framing::Framing;
use super::message::TransactionId;
use super::udp::Source;

/// How long connecting, and then the answer, may take (RFC 8489, section 6.2.2 says 39.5 s; a person
/// waits).
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Asks over TCP from `source`. Where the connection left from is told too.
///
/// # Errors
/// As for [`Socket::ask`](super::machine::Socket::ask).
pub async fn ask_tcp(source: &Source, server: SocketAddr) -> Result<(SocketAddr, Answer), Failure> {
    let (stream, answer) = ask_tcp_keeping(source, server).await?;
    Ok((local(&stream)?, answer))
}

/// The same, with the connection.
pub(super) async fn ask_tcp_keeping(
    source: &Source,
    server: SocketAddr,
) -> Result<(TcpStream, Answer), Failure> {
    let began = Instant::now();
    let mut stream = connect(source, server).await?;
    let answer = ask_on(&mut stream, server, began).await?;
    Ok((stream, answer))
}

fn local(stream: &TcpStream) -> Result<SocketAddr, Failure> {
    stream.local_addr().map_err(|error| Failure::Socket(error.kind()))
}

/// Asks over TLS, of a server that proves to be `name`, a name or an address.
///
/// # Errors
/// As for [`ask_tcp`]; [`io::ErrorKind::InvalidData`]: the server's certificate is not to be trusted, or
/// `name` is none.
pub async fn ask_tls(
    source: &Source,
    server: SocketAddr,
    name: &str,
    trust: RootCertStore,
) -> Result<(SocketAddr, Answer), Failure> {
    let (stream, answer) = ask_tls_keeping(source, server, name, trust).await?;
    Ok((local(stream.get_ref().0)?, answer))
}

/// The same, with the connection.
pub(super) async fn ask_tls_keeping(
    source: &Source,
    server: SocketAddr,
    name: &str,
    trust: RootCertStore,
) -> Result<(TlsStream<TcpStream>, Answer), Failure> {
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| Failure::Socket(io::ErrorKind::InvalidData))?;
    let began = Instant::now();
    let stream = connect(source, server).await?;
    let config = ClientConfig::builder().with_root_certificates(trust).with_no_client_auth();
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = in_time(handshake).await?;
    let answer = ask_on(&mut stream, server, began).await?;
    Ok((stream, answer))
}

/// Connects from `source`.
pub(crate) async fn connect(source: &Source, server: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = source.socket(Type::STREAM, 0).map_err(|error| Failure::Socket(error.kind()))?;
    in_time(TcpSocket::from_std_stream(socket.into()).connect(server)).await
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => result.map_err(|error| Failure::Socket(error.kind())),
        Err(_) => Err(Failure::Timeout { copies: 1, waited: PATIENCE }),
    }
}

/// Asks, and takes the first answer that is one, all of it in time.
async fn ask_on(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    server: SocketAddr,
    began: Instant,
) -> Result<Answer, Failure> {
    let late = Failure::Timeout { copies: 1, waited: PATIENCE };
    tokio::time::timeout(PATIENCE, exchange(stream, server, began)).await.unwrap_or(Err(late))
}

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    server: SocketAddr,
    began: Instant,
) -> Result<Answer, Failure> {
    let broken = |error: io::Error| Failure::Socket(error.kind());
    let id = TransactionId::modern(rand::random());
    let request = Question::plain(server, false).to_bytes(id);
    stream.write_all(&request).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut framing = Framing::default();
    let mut buffer = [0; 2048];
    loop {
        let length = stream.read(&mut buffer).await.map_err(broken)?;
        if length == 0 {
            return Err(Failure::Socket(io::ErrorKind::UnexpectedEof));
        }
        framing.handle_bytes(buffer.get(..length).unwrap_or_default());
        while let Some(message) = framing.poll_message()? {
            if let Some(result) = read_answer(id, server, &message) {
                return result.map(|answer| Answer { copies: 1, rtt: began.elapsed(), ..answer });
            }
        }
    }
}
