//! Where a hub is reached, as far as its own machine knows: nobody outside is asked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use netyard_link::rtnetlink::{LinkIndex, Rtnetlink};
use tokio::net::TcpListener;

use crate::admin::ReachedAt;
use crate::error::{Blame, Error, Result};
use crate::join::Endpoint;

/// What join strings say, where nobody has said what: an address of this machine that others may reach.
pub(super) fn endpoint(listener: &TcpListener) -> Result<Endpoint> {
    let wanted = || "find out where others reach this hub";
    let failed = |error| Error::io(wanted(), &error);
    let listen = listener.local_addr().map_err(failed)?;
    let addresses = match listen.ip() {
        ip if ip.is_unspecified() => netyard_sys::interface::addresses().map_err(failed)?,
        ip => vec![ip],
    };
    let usable = addresses.iter().filter(|address| is_usable(**address, listen));
    let best = usable.min_by_key(|address| address.is_ipv6());
    let address = best.or(addresses.first().filter(|_| !listen.ip().is_unspecified()));
    let Some(address) = address else {
        return Err(Error::new(Blame::Input, wanted(), "this machine has no address but loopback")
            .next("say it with --advertise HOST"));
    };
    Ok(Endpoint { host: address.to_string(), port: listen.port() })
}

/// The addresses of this machine's cards where it listens, IPv4 first; not those of the devices of its own networks.
pub(super) fn at_cards(
    listen: SocketAddr,
    own: &[LinkIndex],
) -> netyard_link::Result<Vec<ReachedAt>> {
    let mut kernel = Rtnetlink::open()?;
    let links = kernel.links()?.into_iter().filter(|link| !own.contains(&link.index));
    let cards: BTreeMap<_, _> = links.map(|link| (link.index, link.name)).collect();
    let addresses = kernel.addresses(None)?.into_iter();
    let at = addresses.filter_map(|address| {
        let card = cards.get(&address.link)?.clone();
        let ip = address.net.addr();
        let is_heard = listen.ip() == ip || listen.ip().is_unspecified() && is_usable(ip, listen);
        is_heard.then(|| ReachedAt { address: SocketAddr::new(ip, listen.port()), card })
    });
    let mut at: Vec<_> = at.collect();
    at.sort_by_key(|at| at.address.is_ipv6());
    Ok(at)
}

/// Whether others may reach an address of a hub that listens there.
const fn is_usable(address: IpAddr, listen: SocketAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => {
            listen.is_ipv6() && !address.is_loopback() && !address.is_unicast_link_local()
        }
    }
}
