//! Questions to a gateway, as stories over sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::upnp::{self, Place};
use super::{Portmap, Wanted, pcp, pmp};
use crate::stun::machine::{Line, Port, Socket, both};

/// Between copies of a question: a quarter of a second and twice as long each time (RFC 6886, section 3.1).
const FIRST: Duration = Duration::from_millis(250);
/// Copies of a question to who may not be there. Gateways are neighbours, so not for a minute.
const FEW: u32 = 2;
/// Copies to who is there, which may be slow to change its rules: eight seconds.
const MANY: u32 = 5;
/// How long devices that were searched for may take: the second that the search gives them, and a little.
const SEARCH: Duration = Duration::from_millis(1200);
/// When they are searched for once more.
const SEARCH_AGAIN: Duration = Duration::from_millis(300);

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
        exchange(&socket, server, &pcp::announce(client.into()), FEW, pcp::read_announce).await
    };
    let speaks_pmp = async {
        let socket = line.open(Port::Any).await.ok()?;
        exchange(&socket, server, &pmp::address(), FEW, pmp::read_address).await
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
    let its_own = |place: &Place| place.at.ip() == gateway;
    // Twice: one datagram may get lost.
    let began = line.now();
    for until in [SEARCH_AGAIN, SEARCH] {
        for to in [upnp::GROUP, alone] {
            socket.send(to, &upnp::search(to));
        }
        let found = socket
            .recv(began + until, |datagram| {
                (datagram.from.ip() == gateway)
                    .then(|| upnp::read_answer(&datagram.bytes).filter(its_own))
                    .flatten()
            })
            .await;
        if found.is_some() {
            return found;
        }
    }
    None
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
    exchange(&socket, server, &request, MANY, |bytes| pcp::read_map(bytes, nonce, &wanted)).await
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
        exchange(&socket, server, &request, MANY, |bytes| pmp::read_map(bytes, &wanted)),
        exchange(&socket, server, &pmp::address(), MANY, pmp::read_address),
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
    copies: u32,
    mut read: impl FnMut(&[u8]) -> Option<T>,
) -> Option<T> {
    let mut patience = FIRST;
    for _ in 0..copies {
        socket.send(server, request);
        let until = socket.line().now() + patience;
        patience *= 2;
        let answer = socket
            .recv(until, |datagram| {
                (datagram.from == server).then(|| read(&datagram.bytes)).flatten()
            })
            .await;
        if answer.is_some() || socket.unsent(server).is_some() {
            return answer;
        }
    }
    None
}
