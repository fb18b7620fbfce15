//! How a peer gets a lane: where the hub may be, which of these places it is at, and the login there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time;
use tokio_rustls::rustls::ClientConfig;

use super::{LoggedIn, Options, Peer, has_moved, settled};
use crate::clock::now_ms;
use crate::dial;
use crate::join::Endpoint;
use crate::login::{self, Failure, PeerStream, Wishes};
use crate::message::{ByUdp, Connected};
use crate::proxy::{Proxy, ProxyError};
use crate::race::{Race, Turn};
use crate::udp;

/// How long one address of the hub may take to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What a name says now goes before what it said the last time, if it says so within this time (RFC 8305 section 8,
/// the resolution delay).
const HEAD_START: Duration = Duration::from_millis(50);

impl Peer {
    /// Logs in at the first address where the hub proves to be.
    pub(super) async fn log_in(&mut self) -> Result<(Connected, LoggedIn), Failure> {
        let (addresses, named) = self.addresses().await?;
        if !self.site.is_shut() {
            let engaged = self.site.engage(&self.options, None);
            engaged.map_err(|error| Failure::Local(Box::new(error)))?;
        }
        let (stream, address) = self.meet(addresses, named).await?;
        self.finder.rest();
        let way = self.site.way(address);
        let Options { name, subnets, exit, hosts, tell_names, .. } = &self.options;
        let names = hosts.is_some() || *tell_names;
        // A proxy carries no UDP.
        let by_udp = match self.options.proxy {
            Some(_) => ByUdp::Nothing,
            None => self.options.by_udp,
        };
        let clock_ms = now_ms().cast_unsigned();
        let (exit, run) = (exit.as_deref(), self.run);
        let wishes = Wishes { name, subnets, exit, names, by_udp, run, clock_ms };
        let login = login::connect(stream, &self.options.join, &self.key, &wishes);
        let login = time::timeout(login::LIMIT, login);
        tokio::pin!(login);
        let logged_in = loop {
            tokio::select! {
                done = &mut login => break done.unwrap_or(Err(Failure::TimedOut)),
                () = settled(&mut self.moves) => {
                    if has_moved(&mut self.site, way) {
                        return Err(Failure::Moved);
                    }
                }
            }
        };
        let (stream, inbox, connected) = logged_in?;
        let udp = udp::at_peer(&stream, &connected, by_udp, address, self.site.mark());
        Ok((connected, LoggedIn { stream, inbox, udp, way }))
    }

    /// Where the hub may be, to begin with, and what its name stands for, if it has been looked up for that.
    async fn addresses(&mut self) -> Result<(Vec<SocketAddr>, Option<Vec<SocketAddr>>), Failure> {
        let known = self.finder.known();
        // The kill switch keeps the machine from its resolver, so the name is looked up before.
        let shuts = self.options.kill_switch.is_some() && !self.site.is_shut();
        let found = if known.is_empty() || shuts {
            self.finder.found().await
        } else {
            match time::timeout(HEAD_START, self.finder.found()).await {
                Ok(found) => found,
                // It is looked up beside.
                Err(_) => return Ok((known, None)),
            }
        };
        match found {
            Ok(found) => Ok(([found.clone(), known].concat(), Some(found))),
            Err(error) if known.is_empty() => Err(error.into()),
            Err(error) => {
                let hub = &self.options.join.hub;
                tracing::info!(%hub, %error, "its name is not known at the moment; it is asked where it was");
                Ok((known.clone(), Some(known)))
            }
        }
    }

    /// The hub, at the first of these addresses that leads to it, or at those that its name is found to have meanwhile.
    async fn meet(
        &mut self,
        addresses: Vec<SocketAddr>,
        mut named: Option<Vec<SocketAddr>>,
    ) -> Result<(PeerStream, SocketAddr), Failure> {
        // In the main table there is a route to one address of the hub at a time.
        let is_side_by_side = !self.options.main_table;
        let mut race = Race::new(addresses, is_side_by_side);
        let mut ways = Vec::new();
        let mut last = Failure::TimedOut;
        // What no other attempt can help, and where.
        let mut hopeless = None;
        let mut is_over = false;
        loop {
            tokio::select! {
                turn = race.turn(), if !is_over => match turn {
                    Turn::Next(address) => {
                        self.site.pin(address.ip());
                        let way = self.site.way(address);
                        self.tried = Some(way);
                        if !is_side_by_side {
                            ways.clear();
                        }
                        ways.push(way);
                        let Options { proxy, join, .. } = &self.options;
                        let through = (proxy.clone(), join.hub.clone());
                        let config = Arc::clone(&self.config);
                        race.begin(secured(config, address, self.site.mark(), through));
                    }
                    Turn::Done(Ok(met)) => return Ok(met),
                    Turn::Done(Err((address, failure))) if is_final(&failure) => {
                        hopeless.get_or_insert((address, failure));
                    }
                    Turn::Done(Err((_, failure))) => last = failure,
                    Turn::Over => match &named {
                        Some(named) => return Err(judge(hopeless, last, named)),
                        // The name may stand for others today.
                        None => is_over = true,
                    },
                },
                found = self.finder.found(), if named.is_none() => {
                    is_over = false;
                    named = Some(match found {
                        Ok(found) => {
                            race.add(found.clone());
                            found
                        }
                        Err(error) => {
                            tracing::debug!(%error, "the hub's name is not known");
                            self.finder.known()
                        }
                    });
                }
                () = settled(&mut self.moves) => {
                    if ways.iter().any(|way| has_moved(&mut self.site, *way)) {
                        return Err(Failure::Moved);
                    }
                }
            }
        }
    }
}

const fn is_final(failure: &Failure) -> bool {
    matches!(failure, Failure::Stranger | Failure::Proxy(ProxyError::Credentials))
}

/// Why nobody was met, where the hub's name stands for these addresses. Who is a stranger where the hub was once says
/// nothing of it.
fn judge(hopeless: Option<(SocketAddr, Failure)>, last: Failure, named: &[SocketAddr]) -> Failure {
    match hopeless {
        Some((address, Failure::Stranger)) if !named.contains(&address) => last,
        Some((_, hopeless)) => hopeless,
        None => last,
    }
}

/// A connection by this address, through a proxy if there is one, that has proved to lead to the hub.
async fn secured(
    config: Arc<ClientConfig>,
    address: SocketAddr,
    mark: Option<u32>,
    (proxy, hub): (Option<Proxy>, Endpoint),
) -> Result<(PeerStream, SocketAddr), (SocketAddr, Failure)> {
    let securing = async {
        let connecting = time::timeout(CONNECT_LIMIT, dial::connect(address, mark));
        let mut socket = connecting.await.map_err(|_| Failure::TimedOut)??;
        let securing = async {
            if let Some(proxy) = &proxy {
                proxy.connect(&mut socket, &hub).await?.map_err(Failure::Proxy)?;
            }
            login::secure(config, socket, &hub).await
        };
        time::timeout(login::LIMIT, securing).await.unwrap_or(Err(Failure::TimedOut))
    };
    securing.await.map(|stream| (stream, address)).map_err(|failure| (address, failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_counts_where_the_name_leads_to_it() {
        let [old, new] = [1, 2].map(|host| SocketAddr::from(([192, 0, 2, host], 6441)));
        let judged = |at, named: &[SocketAddr]| {
            judge(Some((at, Failure::Stranger)), Failure::TimedOut, named)
        };
        assert!(matches!(judged(new, &[new]), Failure::Stranger));
        assert!(matches!(judged(old, &[new]), Failure::TimedOut));
        let refused = Failure::Proxy(ProxyError::Credentials);
        assert!(matches!(
            judge(Some((old, refused)), Failure::TimedOut, &[new]),
            Failure::Proxy(_)
        ));
        assert!(matches!(judge(None, Failure::Moved, &[new]), Failure::Moved));
    }
}
