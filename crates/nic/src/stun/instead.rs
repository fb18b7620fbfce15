//! What is asked where UDP is silent: TCP, and where that is silent too, TLS.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::RootCertStore;

use super::ask::{Answer, Failure};
use super::names::{Found, TLS_PORT};
use super::udp::Source;
use super::{Carrier, stream};
use crate::discover::all;
use crate::tls;

/// How long a server may take: one lost packet is made good for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long TCP may be silent until servers are asked over TLS beside it.
const HEAD_START: Duration = Duration::from_secs(1);

/// What one server said.
#[derive(Debug)]
pub(crate) struct Instead {
    /// Its name, as the user knows it.
    pub(crate) name: String,
    /// Where it was asked.
    pub(crate) server: SocketAddr,
    /// Over what.
    pub(crate) carrier: Carrier,
    /// From where it was asked, and what it answered.
    pub(crate) result: Result<(SocketAddr, Answer), Failure>,
}

/// Asks all at once: over TCP those that may be asked so, over TLS those that are named for it (`stuns:`). If all
/// are silent, over TLS the others too, on its port (RFC 8489, section 18.6). Who answers over TLS has to
/// prove its name to the system's authorities.
pub(crate) async fn ask_instead(source: &Source, servers: &[Found]) -> Vec<Instead> {
    let (tls_only, plain): (Vec<_>, Vec<_>) = servers.iter().partition(|server| server.tls);
    let first = async {
        let over_tcp = all(plain.iter().map(|server| over_tcp(source, server)));
        let (mut said, over_tls) = tokio::join!(over_tcp, over_tls(source, tls_only));
        said.extend(over_tls);
        said
    };
    let further = async {
        let servers: Vec<_> = plain.iter().map(|server| server.on_port(TLS_PORT)).collect();
        if !servers.is_empty() {
            sleep(HEAD_START).await;
        }
        over_tls(source, servers.iter().collect()).await
    };
    tokio::pin!(first, further);
    let mut also = None;
    let mut said = loop {
        tokio::select! {
            said = &mut first => break said,
            said = &mut further, if also.is_none() => also = Some(said),
        }
    };
    if said.iter().all(|instead| instead.result.is_err()) {
        said.extend(match also {
            Some(also) => also,
            None => further.await,
        });
    }
    said
}

async fn over_tcp(source: &Source, server: &Found) -> Instead {
    let result = in_time(stream::ask_tcp(source, server.address)).await;
    Instead { name: server.name.clone(), server: server.address, carrier: Carrier::Tcp, result }
}

async fn over_tls(source: &Source, servers: Vec<&Found>) -> Vec<Instead> {
    if servers.is_empty() {
        return Vec::new();
    }
    let trust = tls::load_system_trust().await;
    all(servers.into_iter().map(|server| one_over_tls(source, server, trust.clone()))).await
}

async fn one_over_tls(source: &Source, server: &Found, trust: RootCertStore) -> Instead {
    let asked = stream::ask_tls(source, server.address, &server.host, trust);
    let result = in_time(asked).await;
    Instead { name: server.name.clone(), server: server.address, carrier: Carrier::Tls, result }
}

async fn in_time<T>(asking: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = Failure::Timeout { copies: 1, waited: PATIENCE };
    timeout(PATIENCE, asking).await.unwrap_or(Err(late))
}
