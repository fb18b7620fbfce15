//! The process that is a peer of a hub for a network.

use std::cell::RefCell;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use netyard_engine::client::Connection;
use netyard_engine::config::{Mode, Uplink};
use netyard_engine::control::{Name, Remote, RemoteLink, Reply, Request};
use netyard_engine::process;
use netyard_sys::seqpacket::SeqPacket;
use netyard_tunnel::message::{self, Connected};
use netyard_tunnel::peer::{self, Behind, Told};
use tokio::sync::{mpsc, watch};

use super::Order;
use crate::error::{ErrorKind, YardError};

/// How often it is looked who is in the network.
const LOOK: Duration = Duration::from_secs(1);

/// What the hidden verb runs.
#[must_use]
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<(), YardError> {
    let failed = |error: io::Error| YardError::io("join a hub", &error);
    let mut input = BufReader::new(io::stdin());
    let mut line = String::new();
    input.read_line(&mut line).map_err(failed)?;
    let order: Order = serde_json::from_str(&line)
        .map_err(|error| YardError::new(ErrorKind::Bug, "join a hub", error.to_string()))?;
    let (end, mut ended) = mpsc::unbounded_channel();
    let closed = end.clone();
    thread::spawn(move || {
        // Nothing more comes but the end.
        let _ = input.read_to_end(&mut Vec::new());
        let _ = closed.send(());
    });

    let mut connection = process::find(&order.network).map_err(failed)?;
    connection.hello(&order.member).map_err(failed)?;
    let (ours, theirs) = match order.config.mode {
        Mode::User => {
            let (ours, theirs) = SeqPacket::pair().map_err(failed)?;
            (Some(OwnedFd::from(ours)), Some(OwnedFd::from(theirs)))
        }
        Mode::Bridge(_) => (None, None),
    };
    // Ours stays open to the end: the network forgets us with it.
    let kept = ours.as_ref().map(OwnedFd::try_clone).transpose().map_err(failed)?;
    let options = options(&order)?;
    let remote = Remote {
        hub: options.join.hub.to_string(),
        link: RemoteLink::Connecting(None),
        name: None,
        addresses: Vec::new(),
        networks: Vec::new(),
        unaccepted: Vec::new(),
        zone: None,
        names: Vec::new(),
        interface: None,
    };
    tell(&mut connection, remote.clone(), theirs)?;

    let (told, tell) = channel();
    let (say_names, names) = watch::channel(Vec::new());
    thread::spawn(move || {
        match attend(connection, &tell, &say_names) {
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, "the network has ended"),
        }
        let _ = end.send(());
    });

    let offered = [order.config.subnet4.into(), order.config.subnet6.into()];
    let remote = RefCell::new(remote);
    let heard = |said: &Told<'_>| {
        let mut remote = remote.borrow_mut();
        hear(&mut remote, said, &offered);
        // The other end goes with the network, and this process then.
        let _ = told.send(remote.clone());
    };
    let stop = async {
        ended.recv().await;
    };
    let behind = Behind { socket: ours, names };
    let Err(error) = peer::run_for(behind, options, heard, stop) else { return Ok(()) };
    tracing::error!(%error, "the hub is left");
    let error = YardError::from(error);
    let next = error.next.map(|next| format!("; {next}")).unwrap_or_default();
    let refused = RemoteLink::Refused(format!("{}{next}", error.found));
    let refused = Remote { link: refused, interface: None, ..remote.into_inner() };
    let _ = told.send(refused);
    // What is wrong is told to whoever looks, until somebody does something about it.
    ended.blocking_recv();
    drop(kept);
    Ok(())
}

fn options(order: &Order) -> Result<peer::Options, YardError> {
    let wrong = |error| YardError::new(ErrorKind::Bug, "join a hub", format!("{error}"));
    let join = order.join.parse().map_err(wrong)?;
    let places = (order.state.clone(), order.runtime.clone());
    let owner = (order.owner.clone(), order.ledger.clone());
    Ok(peer::Options {
        subnets: vec![order.config.subnet4.into(), order.config.subnet6.into()],
        // Instances know the way back; others on a card's network do not.
        translate: matches!(order.config.uplink, Uplink::Card(_)),
        tell_names: true,
        ..peer::Options::new(join, order.name.clone(), places, owner)
    })
}

/// Heeds what the peer tells.
fn hear(remote: &mut Remote, told: &Told<'_>, offered: &[IpNet]) {
    let (connected, device) = match told {
        Told::Away(why) => {
            remote.link = RemoteLink::Connecting(Some((*why).to_owned()));
            return;
        }
        Told::Connected(connected, device) => (*connected, *device),
    };
    let Connected { network, network6, address, address6, news, dns, .. } = connected;
    remote.link = RemoteLink::Connected;
    remote.name = Some(connected.name.clone());
    remote.addresses =
        [Some((*address).into()), address6.map(Into::into)].into_iter().flatten().collect();
    let own = [Some(IpNet::from(*network)), network6.map(IpNet::V6)].into_iter().flatten();
    // Halves of everything are everything: what leads to the outside is the network's own matter.
    let is_network =
        |subnet: &IpNet| subnet.prefix_len() >= if subnet.addr().is_ipv4() { 8 } else { 7 };
    let behind = news.subnets.iter().copied().filter(is_network);
    remote.networks = own.chain(behind).collect();
    let carried = |net: &&IpNet| net.addr().is_ipv4() || network6.is_some();
    let missing = offered.iter().filter(carried).filter(|net| !news.accepted.contains(net));
    remote.unaccepted = missing.copied().collect();
    remote.zone = dns.as_ref().map(|dns| dns.zone.clone());
    let names = news.names.iter().cloned();
    remote.names =
        names.map(|message::Name { name, addresses }| Name { name, addresses }).collect();
    remote.interface = device.map(str::to_owned);
}

/// Tells the network what there is to know of remote machines.
fn tell(
    connection: &mut Connection,
    remote: Remote,
    socket: Option<OwnedFd>,
) -> Result<(), YardError> {
    let wanted = || format!("bring the machines of the hub {} to the network", remote.hub);
    let answer = connection.request(Request::SetRemote(remote.clone()), socket);
    match answer.map_err(|error| YardError::io(wanted(), &error))?.0 {
        Ok(_) => Ok(()),
        Err(error) => Err(YardError::control(wanted(), &error)),
    }
}

/// Tells the network what is heard, and the hub who is in the network, until one of them has gone.
fn attend(
    mut connection: Connection,
    told: &Receiver<Remote>,
    names: &watch::Sender<Vec<message::Name>>,
) -> Result<(), YardError> {
    loop {
        match told.recv_timeout(LOOK) {
            // Of several the last counts.
            Ok(remote) => {
                let last = told.try_iter().last().unwrap_or(remote);
                tell(&mut connection, last, None)?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        let wanted = "look who is in the network";
        let answer = connection.request(Request::Names, None);
        match answer.map_err(|error| YardError::io(wanted, &error))?.0 {
            Ok(Reply::Names(found)) => {
                let found: Vec<_> = found
                    .into_iter()
                    .map(|Name { name, addresses }| message::Name { name, addresses })
                    .collect();
                names.send_if_modified(|known| {
                    let is_new = *known != found;
                    *known = found;
                    is_new
                });
            }
            Ok(_) => return Err(YardError::new(ErrorKind::Peer, wanted, "it says something else")),
            Err(error) => return Err(YardError::control(wanted, &error)),
        }
    }
}
