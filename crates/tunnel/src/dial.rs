//! How a peer finds its hub, and connects outside of the tunnel.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{self, JoinHandle};
use tokio::time;

use crate::folder::write_private;
use crate::join::Endpoint;

/// How long the system may look up the hub's name.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(5);

/// In the peer's folder: where its hub was the last time, an address and port on each line.
const KNOWN: &str = "hub-addresses";

/// Where the hub is: as its name says, and where it was the last time. A resolver may well be behind the tunnel that
/// is to be built, so nobody has to wait for the name who knows the rest.
#[derive(Debug)]
pub(crate) struct Finder {
    hub: Endpoint,
    file: PathBuf,
    /// The question that is on its way.
    looking: Option<JoinHandle<io::Result<Vec<SocketAddr>>>>,
}

impl Finder {
    /// Of this hub, for the peer with this folder.
    pub(crate) fn new(hub: &Endpoint, state: &Path) -> Self {
        Self { hub: hub.clone(), file: state.join(KNOWN), looking: None }
    }

    /// Where it was the last time.
    pub(crate) fn known(&self) -> Vec<SocketAddr> {
        known(&self.file, self.hub.port)
    }

    /// Looks its name up, and remembers what it says. Goes on where it was if it is dropped; what the question before
    /// has brought meanwhile is the answer then.
    pub(crate) async fn found(&mut self) -> io::Result<Vec<SocketAddr>> {
        let ask = || task::spawn_local(look_up(self.hub.clone(), self.file.clone()));
        let found = self.looking.get_or_insert_with(ask).await;
        self.looking = None;
        found.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// The hub is reached: the next time it is asked anew. An answer that comes till then is remembered.
    pub(crate) fn rest(&mut self) {
        self.looking = None;
    }
}

fn known(file: &Path, port: u16) -> Vec<SocketAddr> {
    let lines = fs::read_to_string(file).unwrap_or_default();
    let here = lines.lines().filter_map(|line| line.parse().ok());
    here.filter(|address: &SocketAddr| address.port() == port).collect()
}

async fn look_up(hub: Endpoint, file: PathBuf) -> io::Result<Vec<SocketAddr>> {
    let look_up = tokio::net::lookup_host((hub.host.as_str(), hub.port));
    let found = time::timeout(LOOK_UP_LIMIT, look_up).await;
    let found: Vec<_> = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?.collect();
    if !found.is_empty() && found != known(&file, hub.port) {
        let lines: String = found.iter().map(|address| format!("{address}\n")).collect();
        if let Err(error) = write_private(&file, &lines) {
            tracing::warn!(%error, "where the hub is, is not remembered");
        }
    }
    Ok(found)
}

/// Connects by a socket with this mark, which tells its packets from those that go through the tunnel, where that
/// is needed.
pub(crate) async fn connect(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(address).await
}
