//! The server on sockets: UDP, TCP, and TLS where there is a certificate.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::framing::Framing;
use super::message::MAX_LEN;
use super::server::Server;
use crate::datagrams::{Came, Datagrams};
use crate::tls::Identity;
use crate::{Bind, Family};

/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// A connection on which nothing comes for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// Behind an error of the system, such as too few descriptors, nothing is accepted for so long.
const PAUSE: Duration = Duration::from_millis(100);
/// Errors of a UDP socket in a row that clients may have made who are gone.
const ERRORS: u32 = 64;

/// A server with its sockets.
#[derive(Debug)]
pub struct Listening {
    server: Server,
    udp: Vec<Datagrams>,
    tcp: Vec<TcpListener>,
    tls: Vec<TcpListener>,
}

impl Listening {
    /// Listens on the server's own endpoints over UDP and TCP, or on `single` if it has none.
    ///
    /// # Errors
    /// An endpoint is in use, not this machine's, or not permitted.
    pub async fn bind(server: Server, single: SocketAddr) -> io::Result<Self> {
        let mut endpoints = server.endpoints();
        if endpoints.is_empty() {
            endpoints.push(single);
        }
        let mut listening = Self { server, udp: Vec::new(), tcp: Vec::new(), tls: Vec::new() };
        for endpoint in endpoints {
            let udp = datagrams(endpoint).map_err(|error| named(endpoint, &error))?;
            // The same port for TCP where the system chose it.
            listening.tcp.push(listener(udp.local())?);
            listening.udp.push(udp);
        }
        Ok(listening)
    }

    /// Listens for TLS too, on this port of each address.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind).
    pub async fn bind_tls(&mut self, port: u16) -> io::Result<()> {
        let mut addresses: Vec<IpAddr> = self.endpoints().iter().map(SocketAddr::ip).collect();
        addresses.sort();
        addresses.dedup();
        for address in addresses {
            self.tls.push(listener(SocketAddr::new(address, port))?);
        }
        Ok(())
    }

    /// Where it listens over UDP and TCP.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        self.udp.iter().map(Datagrams::local).collect()
    }

    /// Answers, until a socket breaks. `tls` is for the listeners of [`bind_tls`](Self::bind_tls).
    ///
    /// # Errors
    /// What the system said.
    pub async fn serve(self, tls: Option<Identity>) -> io::Result<()> {
        let udp = Arc::new(self.udp);
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut tasks = JoinSet::new();
        for place in 0..udp.len() {
            tasks.spawn(answer_datagrams(self.server, udp.clone(), place));
        }
        for listener in self.tcp {
            tasks.spawn(streams(self.server, listener, None, room.clone()));
        }
        for listener in self.tls {
            let acceptor = tls.clone().map(TlsAcceptor::from);
            tasks.spawn(streams(self.server, listener, acceptor, room.clone()));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    }
}

/// What is bound to an endpoint, of which every address of IPv6 is none of IPv4.
fn bind(endpoint: SocketAddr) -> Bind {
    Bind::every(Family::of(endpoint.ip())).ip(endpoint.ip()).port(endpoint.port())
}

fn datagrams(endpoint: SocketAddr) -> io::Result<Datagrams> {
    Datagrams::new(bind(endpoint).datagram_server()?.socket.into())
}

fn listener(endpoint: SocketAddr) -> io::Result<TcpListener> {
    let listener = bind(endpoint).listener().map_err(io::Error::from);
    listener.map(|(listener, _)| listener).map_err(|error| named(endpoint, &error))
}

fn named(endpoint: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {endpoint}: {error}"))
}

/// Answers what comes to one socket, from whichever is asked for.
async fn answer_datagrams(
    server: Server,
    sockets: Arc<Vec<Datagrams>>,
    place: usize,
) -> io::Result<()> {
    let Some(socket) = sockets.get(place) else { return Ok(()) };
    let mut buffer = vec![0; MAX_LEN + 1];
    let mut errors = 0;
    loop {
        let Ok(Came { len, from, to }) = socket.recv(&mut buffer).await else {
            // It is one that an earlier answer met: its client is gone. One that lasts is waited for.
            errors = (errors + 1).min(ERRORS);
            if errors == ERRORS {
                tokio::time::sleep(PAUSE).await;
            }
            continue;
        };
        errors = 0;
        let bytes = buffer.get(..len).unwrap_or_default();
        let Some(response) = server.handle_datagram(to, from, bytes) else { continue };
        let of_origin = |socket: &&Datagrams| socket.local() == response.from;
        let origin = sockets.iter().find(of_origin).unwrap_or(socket);
        // What cannot be sent is lost, as any datagram may be.
        _ = origin.send_from(&response.bytes, response.from, response.to).await;
    }
}

async fn streams(
    server: Server,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    room: Arc<Semaphore>,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let permit = room.clone().acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let tls = tls.clone();
        connections.spawn(async move {
            let _permit = permit;
            let Ok(local) = stream.local_addr() else { return };
            match tls {
                None => connection(server, stream, local, from).await,
                Some(acceptor) => {
                    if let Ok(Ok(stream)) =
                        tokio::time::timeout(IDLE, acceptor.accept(stream)).await
                    {
                        connection(server, stream, local, from).await;
                    }
                }
            }
        });
    }
}

/// Answers on one connection, until it ends, is idle, or sends what is no STUN.
async fn connection(
    server: Server,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    local: SocketAddr,
    from: SocketAddr,
) {
    let mut framing = Framing::default();
    let mut buffer = [0; 2048];
    while let Ok(Ok(length @ 1..)) = tokio::time::timeout(IDLE, stream.read(&mut buffer)).await {
        framing.handle_bytes(buffer.get(..length).unwrap_or_default());
        loop {
            let message = match framing.poll_message() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(_) => return,
            };
            let Some(answer) = server.handle_message(local, from, &message) else { return };
            let sent = tokio::time::timeout(IDLE, stream.write_all(&answer)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }
}
