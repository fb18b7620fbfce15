//! Labs: a machine behind a NAT of any kind, an Internet with a STUN server, on this machine and
//! without root.
//!
//! # Theory of operation
//!
//! A lab is two network namespaces, each with one TUN device, and a thread that carries packets between
//! the two devices through a [path](path::Impairment): NATs ([`simulate`](crate::nat::simulate)),
//! delay and loss. Nothing else leads in or out, so that what runs in a lab can send nothing to the real
//! network. In the Internet's namespace our own server answers on four endpoints.
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

/// The machine's addresses.
pub const MACHINE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 2)),
];
/// Its gateways.
pub const GATEWAY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 1)),
];
/// The external address of the NAT, or of the last in a row.
pub const EXTERNAL: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
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

/// The machine's card, and the Internet's.
const CARD: &str = "eth0";
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
    /// The thread that carries packets ends when this end closes.
    _path: UnixStream,
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
    /// Makes a lab of a kind.
    ///
    /// # Errors
    /// The kernel refused; see [`enter`].
    pub fn up(kind: Kind, impairment: Impairment) -> Result<Self, LabError> {
        Self::with(&kind.behaviours(), kind == Kind::Blocked, impairment)
    }

    /// Makes a lab with NATs that stand in a row, one or two.
    ///
    /// # Errors
    /// As for [`up`](Self::up).
    pub fn with(
        row: &[Behaviour],
        blocks_udp: bool,
        impairment: Impairment,
    ) -> Result<Self, LabError> {
        let (machine, inside) = place(&MACHINE, &GATEWAY)?;
        let servers: Vec<IpAddr> = SERVERS.into_iter().chain(SERVERS6).collect();
        let (internet, outside) = place(&servers, &[])?;
        let last = row.len().saturating_sub(1);
        let row: Vec<(Behaviour, IpAddr)> = row
            .iter()
            .cloned()
            .zip(0..)
            .map(|(nat, number)| (nat, if number == last { EXTERNAL } else { SHARED }))
            .collect();
        let path = Path::new(&row, blocks_udp, impairment, rand::random());
        let (kept, given) = UnixStream::pair().map_err(system("make a pair of sockets"))?;
        thread::Builder::new()
            .name("lab-path".to_owned())
            .spawn(move || carry(path, inside, outside, &given))
            .map_err(system("start a thread"))?;
        let server = answer(&internet)?;
        Ok(Self { machine, internet, _path: kept, _server: server })
    }

    /// The namespace of the machine behind the NAT.
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

/// Makes a namespace with a card that has these addresses and a default route.
fn place(addresses: &[IpAddr], gateways: &[IpAddr]) -> Result<(Netns, Device), LabError> {
    namespace::within_new(Namespaces::NETWORK, || {
        let card =
            Device::attach(CARD, Layer::Packets, false).map_err(system("make a TUN device"))?;
        let mut kernel = Rtnetlink::open()?;
        let loopback = kernel.index("lo")?;
        kernel.change_link(loopback, &LinkChange::new().up(true))?;
        let link = kernel.index(CARD)?;
        kernel.change_link(link, &LinkChange::new().up(true))?;
        for address in addresses {
            let (lan4, lan6) = if gateways.is_empty() { (32, 128) } else { (24, 64) };
            let prefix = if address.is_ipv4() { lan4 } else { lan6 };
            kernel.add_address(link, IpNet::new_assert(*address, prefix))?;
        }
        for route in routes(gateways, link) {
            kernel.add_route(&route)?;
        }
        Ok((Netns::current()?, card))
    })
    .map_err(system("make a network namespace"))?
}

/// Default routes: by the gateways, or simply out by the card.
fn routes(gateways: &[IpAddr], link: LinkIndex) -> Vec<Route> {
    if gateways.is_empty() {
        let any: [IpAddr; 2] = [[0; 4].into(), [0_u16; 8].into()];
        return any
            .map(|any| Route { link: Some(link), ..Route::new(IpNet::new_assert(any, 0)) })
            .into();
    }
    gateways.iter().map(|gateway| Route::default_via(*gateway, link)).collect()
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
