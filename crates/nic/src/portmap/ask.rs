//! Questions to a gateway, as stories over sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::upnp::{self, Place};
use super::{Portmap, Wanted, pcp, pmp};
use crate::stun::machine::{Line, Port, Socket, both};

/// When a question is sent, and until when its answer is waited for, from the beginning: a quarter of a second
/// and twice as long each time (RFC 6886, section 3.1), but not for a minute. Gateways are neighbours.
const COPIES: [(Duration, Duration); 2] = [
    (Duration::ZERO, Duration::from_millis(250)),
    (Duration::from_millis(250), Duration::from_millis(750)),
];
/// How long devices that were searched for may take: the second that the search gives them, and a little.
const SEARCH: Duration = Duration::from_millis(1200);

/// What came of asking a gateway what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it said.
    pub portmap: Portmap,
    /// Where its description is, if it is an Internet Gateway Device.
    pub device: Option<Place>,
}

/// Asks a gateway what it speaks, by all three protocols at once. Nothing is mapped.
pub async fn ask(line: Line, client: Ipv4Addr, gateway: Ipv4Addr) -> Found {
    let server = SocketAddr::new(gateway.into(), pcp::PORT);
    let speaks_pcp = async {
        let socket = line.open(Port::Any).await.ok()?;
        exchange(&socket, server, &pcp::announce(client.into()), pcp::read_announce).await
    };
    let speaks_pmp = async {
        let socket = line.open(Port::Any).await.ok()?;
        exchange(&socket, server, &pmp::address(), pmp::read_address).await
    };
    let ((pcp, pmp), device) =
        both(both(speaks_pcp, speaks_pmp), search(&line, gateway.into())).await;
    let external = match pmp {
        Some(pmp::Answer::Address(address)) if !address.is_unspecified() => Some(address),
        _ => None,
    };
    let portmap = Portmap {
        gateway: gateway.into(),
        pcp: pcp.is_some(),
        pmp: pmp.is_some(),
        upnp: device.is_some(),
        external,
    };
    Found { portmap, device }
}

/// Searches for a device, which must be the gateway and describe itself.
async fn search(line: &Line, gateway: IpAddr) -> Option<Place> {
    let socket = line.open(Port::Any).await.ok()?;
    let alone = SocketAddr::new(gateway, upnp::PORT);
    for to in [upnp::GROUP, alone] {
        socket.send(to, &upnp::search(to));
    }
    let deadline = line.now() + SEARCH;
    let its_own = |place: &Place| place.at.ip() == gateway;
    socket
        .recv(deadline, |datagram| {
            (datagram.from.ip() == gateway)
                .then(|| upnp::read_answer(&datagram.bytes).filter(its_own))
                .flatten()
        })
        .await
}

/// Asks for a mapping by PCP, or gives it back; `None`: nobody answers.
pub async fn map_by_pcp(
    line: Line,
    client: Ipv4Addr,
    gateway: Ipv4Addr,
    nonce: pcp::Nonce,
    wanted: Wanted,
) -> Option<pcp::Answer> {
    let socket = line.open(Port::Any).await.ok()?;
    let request = pcp::map(client.into(), nonce, &wanted, None);
    let server = SocketAddr::new(gateway.into(), pcp::PORT);
    exchange(&socket, server, &request, |bytes| pcp::read_map(bytes, nonce, &wanted)).await
}

/// The same by NAT-PMP. The external address is asked for beside it.
pub async fn map_by_pmp(
    line: Line,
    gateway: Ipv4Addr,
    wanted: Wanted,
) -> (Option<pmp::Answer>, Option<Ipv4Addr>) {
    let Ok(socket) = line.open(Port::Any).await else { return (None, None) };
    let server = SocketAddr::new(gateway.into(), pmp::PORT);
    let request = pmp::map(&wanted);
    let (mapped, address) = both(
        exchange(&socket, server, &request, |bytes| pmp::read_map(bytes, &wanted)),
        exchange(&socket, server, &pmp::address(), pmp::read_address),
    )
    .await;
    let address = match address {
        Some(pmp::Answer::Address(address)) if !address.is_unspecified() => Some(address),
        _ => None,
    };
    (mapped, address)
}

/// Sends a question until `read` makes something of an answer of the server.
async fn exchange<T>(
    socket: &Socket,
    server: SocketAddr,
    request: &[u8],
    mut read: impl FnMut(&[u8]) -> Option<T>,
) -> Option<T> {
    let start = socket.line().now();
    for (sent, until) in COPIES {
        socket.line().until(start + sent).await;
        socket.send(server, request);
        let answer = socket
            .recv(start + until, |datagram| {
                (datagram.from == server).then(|| read(&datagram.bytes)).flatten()
            })
            .await;
        if answer.is_some() || socket.unsent(server).is_some() {
            return answer;
        }
    }
    None
}
