//! How a peer finds its hub, and connects outside of the tunnel.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time;

use crate::folder::write_private;
use crate::join::Endpoint;

/// How long the system may look up the hub's name.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(5);

/// In the peer's folder: where its hub was the last time, an address and port on each line.
const KNOWN: &str = "hub-addresses";

/// Where the hub is: by its name, or, where nobody answers that, where it was the last time. A resolver may
/// well be behind the tunnel that is to be built.
pub(crate) async fn find(hub: &Endpoint, state: &Path) -> io::Result<Vec<SocketAddr>> {
    let file = state.join(KNOWN);
    let known = || -> Vec<SocketAddr> {
        let lines = fs::read_to_string(&file).unwrap_or_default();
        let here = lines.lines().filter_map(|line| line.parse().ok());
        here.filter(|address: &SocketAddr| address.port() == hub.port).collect()
    };
    let look_up = tokio::net::lookup_host((hub.host.as_str(), hub.port));
    let error = match time::timeout(LOOK_UP_LIMIT, look_up).await {
        Ok(Ok(found)) => {
            let found: Vec<_> = found.collect();
            if !found.is_empty() && found != known() {
                let lines: String = found.iter().map(|address| format!("{address}\n")).collect();
                if let Err(error) = write_private(&file, &lines) {
                    tracing::warn!(%error, "where the hub is, is not remembered");
                }
            }
            return Ok(found);
        }
        Ok(Err(error)) => error,
        Err(_) => io::ErrorKind::TimedOut.into(),
    };
    match known() {
        known if known.is_empty() => Err(error),
        known => {
            tracing::info!(hub = %hub, %error, "its name is not known at the moment; it is asked where it was");
            Ok(known)
        }
    }
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
