//! Labs: a machine behind a NAT of any kind, an Internet with a STUN server, on this machine and
//! without root.
//!
//! # Theory of operation
//!
//! A lab is two network namespaces. For each card of the machine both have a TUN device, and a thread
//! carries packets between the two through a [path](path::Impairment): NATs
//! ([`simulate`](crate::nat::simulate)), delay and loss. Nothing else leads in or out, so that what runs
//! in a lab can send nothing to the real network. In the Internet's namespace our own server answers on
//! four endpoints.
//!
//! The namespaces go with the lab and with what runs in them.

mod kind;
mod packet;
mod path;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netyard_link::netns::Netns;
use netyard_link::rtnetlink::{LinkChange, LinkIndex, Route, Rtnetlink};
use netyard_link::sysctl::Key;
use netyard_sys::namespace::{self, IdMaps, Namespaces};
use netyard_sys::poll::{Events, Interest, Poll};
use netyard_sys::process;
use netyard_sys::tap::{Device, Layer};
use tokio::sync::oneshot;

pub use kind::{Kind, UnknownKind};
pub use path::Impairment;

use self::path::{Path, Side};
use crate::nat::simulate::Behaviour;
use crate::stun::Server;
use crate::stun::listen::Listening;
use crate::stun::names::PORT;

/// Most cards that a machine has.
pub const MAX_CARDS: u8 = 8;

/// The card of the machine with this number, counted from 0, and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name in both namespaces: `eth0`.
    pub name: String,
    /// The machine's addresses on it, IPv4 and IPv6.
    pub addresses: [IpAddr; 2],
    /// Its gateways.
    pub gateways: [IpAddr; 2],
    /// The external address of the NAT before it, or of the last in a row.
    pub external: IpAddr,
    /// Of two default routes the one with the lower metric is taken.
    metric: u32,
}

impl Card {
    /// The card with this number.
    pub fn number(number: u8) -> Self {
        let ip6 = |last| Ipv6Addr::new(0x2001, 0xdb8, 0xa, number.into(), 0, 0, 0, last).into();
        let ip4 = |last| Ipv4Addr::new(10, 0, number, last).into();
        Self {
            name: format!("eth{number}"),
            addresses: [ip4(2), ip6(2)],
            gateways: [ip4(1), ip6(1)],
            external: Ipv4Addr::new(203, 0, 113, number.saturating_add(1)).into(),
            metric: 100 * (u32::from(number) + 1),
        }
    }

    /// What the machine's addresses on it lie in, and what is outside of its NAT.
    fn networks(&self) -> [IpNet; 3] {
        let [ip4, ip6] = self.addresses;
        [
            IpNet::new_assert(ip4, 24),
            IpNet::new_assert(ip6, 64),
            IpNet::new_assert(self.external, 32),
        ]
    }
}

/// What stands before one card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// NATs that stand in a row, from the machine outwards, one or two.
    pub row: Vec<Behaviour>,
    /// No UDP gets through.
    pub blocks_udp: bool,
}

impl From<Behaviour> for Uplink {
    fn from(nat: Behaviour) -> Self {
        Self { row: vec![nat], blocks_udp: false }
    }
}

impl From<Kind> for Uplink {
    fn from(kind: Kind) -> Self {
        Self { row: kind.behaviours(), blocks_udp: kind == Kind::Blocked }
    }
}

/// The external address of the first of two NATs in a row (RFC 6598).
pub const SHARED: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 64, 0, 2));
/// The STUN server's two IPv4 addresses.
pub const SERVERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2))];
/// The STUN server's two IPv6 addresses.
pub const SERVERS6: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 2)),
];

/// Longest packet, bytes.
const MTU: usize = 1500;
/// Packets taken from a device before the other one has its turn.
const BATCH: usize = 64;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The kernel refused.
    #[error("cannot {wanted}: {error}")]
    System {
        /// What was wanted.
        wanted: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The kernel refused something about links, addresses or routes.
    #[error(transparent)]
    Kernel(#[from] netyard_link::Error),
}

fn system(wanted: &'static str) -> impl Fn(io::Error) -> LabError {
    move |error| LabError::System { wanted, error }
}

/// A lab that is up. Its threads end when it is dropped.
#[derive(Debug)]
pub struct Lab {
    machine: Netns,
    internet: Netns,
    /// The threads that carry packets end when these ends close.
    _paths: Vec<UnixStream>,
    /// So does the one that answers.
    _server: oneshot::Sender<()>,
}

/// Gives the calling process, which must have one thread, the right to make labs: a user namespace of its
/// own, unless it is root. Its user stays who it is.
///
/// # Errors
/// This machine does not let the user make namespaces.
pub fn enter() -> Result<(), LabError> {
    if process::effective_user() == 0 {
        return Ok(());
    }
    let maps = IdMaps::own();
    namespace::unshare(Namespaces::USER | Namespaces::NETWORK)
        .map_err(system("make a user namespace"))?;
    maps.write(std::process::id()).map_err(system("keep the user in the new namespace"))
}

impl Lab {
    /// Makes a lab whose machine has a card for each uplink, up to [`MAX_CARDS`]; the first is the default
    /// one. A [`Kind`] is an uplink too.
    ///
    /// # Errors
    /// The kernel refused; see [`enter`].
    pub fn up(
        uplinks: impl IntoIterator<Item = impl Into<Uplink>>,
        impairment: Impairment,
    ) -> Result<Self, LabError> {
        let machine = new_namespace()?;
        let internet = new_namespace()?;
        let mut paths = Vec::new();
        for (uplink, number) in uplinks.into_iter().zip(0..MAX_CARDS) {
            let card = Card::number(number);
            let inside = machine.run(|| inside(&card))??;
            let outside = internet.run(|| outside(&card))??;
            let path = path(&uplink.into(), &card, impairment);
            let (kept, given) = UnixStream::pair().map_err(system("make a pair of sockets"))?;
            thread::Builder::new()
                .name(format!("lab-{}", card.name))
                .spawn(move || carry(path, inside, outside, &given))
                .map_err(system("start a thread"))?;
            paths.push(kept);
        }
        let server = answer(&internet)?;
        Ok(Self { machine, internet, _paths: paths, _server: server })
    }

    /// The namespace of the machine behind the NATs.
    pub const fn machine(&self) -> &Netns {
        &self.machine
    }

    /// The namespace of the Internet.
    pub const fn internet(&self) -> &Netns {
        &self.internet
    }

    /// Starts a program on the machine.
    ///
    /// # Errors
    /// There is no such program.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, LabError> {
        // A child is in the namespaces of the thread that starts it.
        self.machine.run(|| command.spawn())?.map_err(system("start the program"))
    }
}

/// Makes a namespace with its loopback link up.
fn new_namespace() -> Result<Netns, LabError> {
    namespace::within_new(Namespaces::NETWORK, || {
        let mut kernel = Rtnetlink::open()?;
        let loopback = kernel.index("lo")?;
        kernel.change_link(loopback, &LinkChange::new().up(true))?;
        Ok(Netns::current()?)
    })
    .map_err(system("make a network namespace"))?
}

/// Makes a device for a card, here, and switches it on.
fn device(card: &Card) -> Result<(Rtnetlink, Device, LinkIndex), LabError> {
    let device =
        Device::attach(&card.name, Layer::Packets, false).map_err(system("make a TUN device"))?;
    let mut kernel = Rtnetlink::open()?;
    let link = kernel.index(&card.name)?;
    kernel.change_link(link, &LinkChange::new().up(true))?;
    Ok((kernel, device, link))
}

/// The machine's end: addresses and default routes.
fn inside(card: &Card) -> Result<Device, LabError> {
    let (mut kernel, device, link) = device(card)?;
    for (address, prefix_len) in card.addresses.into_iter().zip([24, 64]) {
        kernel.add_address(link, IpNet::new_assert(address, prefix_len))?;
    }
    for gateway in card.gateways {
        let route = Route { metric: Some(card.metric), ..Route::default_via(gateway, link) };
        kernel.add_route(&route)?;
    }
    // What comes in by a card that is not the default one is welcome.
    for name in ["all", &card.name] {
        let key: Key = format!("net/ipv4/conf/{name}/rp_filter").parse()?;
        key.set(None, "0")?;
    }
    Ok(device)
}

/// The Internet's end: ways back to the card, and the server's addresses.
fn outside(card: &Card) -> Result<Device, LabError> {
    let (mut kernel, device, link) = device(card)?;
    for address in SERVERS.into_iter().chain(SERVERS6) {
        // On each card, so that it is there whichever way packets come.
        let prefix_len = if address.is_ipv4() { 32 } else { 128 };
        kernel.add_address(link, IpNet::new_assert(address, prefix_len))?;
    }
    for network in card.networks() {
        kernel.add_route(&Route { link: Some(link), ..Route::new(network.trunc()) })?;
    }
    Ok(device)
}

/// The way between the two.
fn path(uplink: &Uplink, card: &Card, impairment: Impairment) -> Path {
    let last = uplink.row.len().saturating_sub(1);
    let row: Vec<(Behaviour, IpAddr)> = uplink
        .row
        .iter()
        .cloned()
        .zip(0..)
        .map(|(nat, number)| (nat, if number == last { card.external } else { SHARED }))
        .collect();
    let [gateway, _] = card.gateways;
    Path::new(gateway, &row, uplink.blocks_udp, impairment, rand::random())
}

/// Answers STUN in the Internet, on four endpoints of each family. Returns when it listens, with what ends
/// it when it is dropped.
fn answer(internet: &Netns) -> Result<oneshot::Sender<()>, LabError> {
    let internet = internet.clone();
    let (kept, given) = oneshot::channel();
    let (ready, listening) = mpsc::channel();
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let bind = async |[one, two]: [IpAddr; 2]| {
                let (one, two) = (SocketAddr::new(one, PORT), SocketAddr::new(two, PORT + 1));
                let server = Server::full(one, two).map_err(io::Error::other)?;
                Listening::bind(server, one).await
            };
            let both = async { Ok((bind(SERVERS).await?, bind(SERVERS6).await?)) }.await;
            let (ip4, ip6) = match both {
                Ok(both) => both,
                Err(error) => {
                    // Nobody waits for it only if the lab is given up.
                    _ = ready.send(Err(error));
                    return Ok(());
                }
            };
            _ = ready.send(Ok(()));
            tokio::select! {
                served = async { tokio::try_join!(ip4.serve(None), ip6.serve(None)) } => {
                    served.map(drop)
                }
                _ = given => Ok(()),
            }
        })
    };
    thread::Builder::new()
        .name("lab-stun".to_owned())
        .spawn(move || internet.run(work))
        .map_err(system("start a thread"))?;
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let listening = listening.recv().unwrap_or_else(|_| Err(gone()));
    listening.map_err(system("answer STUN in the lab"))?;
    Ok(kept)
}

/// Carries packets between the two devices, until the other end of `stop` closes.
fn carry(mut path: Path, inside: Device, outside: Device, stop: &UnixStream) -> io::Result<()> {
    const STOP: u64 = 2;
    let (mut inside, mut outside) = (File::from(inside.fd), File::from(outside.fd));
    let poll = Poll::new()?;
    poll.add(inside.as_fd(), 0, Interest::Readable)?;
    poll.add(outside.as_fd(), 1, Interest::Readable)?;
    poll.add(stop.as_fd(), STOP, Interest::Readable)?;
    let mut events = Events::new();
    let mut buffer = [0; MTU];
    loop {
        let timeout =
            path.poll_timeout().map(|then| then.saturating_duration_since(Instant::now()));
        // The kernel counts milliseconds; what is due in less is due.
        poll.wait(&mut events, timeout.map(|timeout| timeout.max(Duration::from_millis(1))))?;
        if events.iter().any(|event| event.token == STOP) {
            return Ok(());
        }
        for (device, side) in [(&mut inside, Side::Machine), (&mut outside, Side::Internet)] {
            for _ in 0..BATCH {
                let length = match device.read(&mut buffer) {
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                let bytes = buffer.get(..length).unwrap_or_default();
                path.handle_packet(Instant::now(), side, bytes);
            }
        }
        while let Some((side, bytes)) = path.poll_packet(Instant::now()) {
            let device = if side == Side::Machine { &mut inside } else { &mut outside };
            // A device that takes no packet loses it.
            _ = device.write(&bytes);
        }
    }
}
