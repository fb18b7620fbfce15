//! The stage: this machine is on one side of a TAP, a contender on the other.

use std::io;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum as _;
use ipnet::IpNet;
use netyard_testbed::{Background, Namespace, peer, run};

use super::contender::{
    ADDRESS4, ADDRESS6, Contender, DEVICE, PEER4, PEER6, PREFIX4, PREFIX6, Program,
};
use super::kernel::GUEST_DEVICE;
use crate::link::{Impairment, Link};

/// Far above what a start takes.
const SOON: Duration = Duration::from_secs(20);

/// A contender that runs; it ends with this value.
pub(super) struct Running {
    /// The one with the servers first.
    processes: Vec<Background>,
    _guest: Option<Namespace>,
}

impl Running {
    pub(super) fn start(contender: Contender) -> io::Result<Self> {
        allow_many_descriptors();
        match contender {
            Contender::Netyard => Ok(Self::on_stack(&mut own(Program::Netyard)?)),
            Contender::Smoltcp => Ok(Self::on_stack(&mut own(Program::Smoltcp)?)),
            Contender::Gvisor => Ok(Self::on_stack(&mut gvisor()?)),
            Contender::Kernel => Self::on_kernel(),
        }
    }

    fn on_stack(servers: &mut Command) -> Self {
        let process = start(servers);
        configure(DEVICE);
        Self { processes: vec![process], _guest: None }
    }

    fn on_kernel() -> io::Result<Self> {
        let relay = start(&mut own(Program::Relay)?);
        configure(DEVICE);
        let guest = Namespace::new("guest");
        ip(&["link", "set", GUEST_DEVICE, "netns", "guest"]);
        let (net4, net6) = (format!("{ADDRESS4}/{PREFIX4}"), format!("{ADDRESS6}/{PREFIX6}"));
        guest.ip(&["address", "add", &net4, "dev", GUEST_DEVICE, "noprefixroute"]);
        guest.ip(&["address", "add", &net6, "dev", GUEST_DEVICE, "nodad", "noprefixroute"]);
        guest.ip(&["link", "set", GUEST_DEVICE, "up", "txqueuelen", "2000"]);
        for route in routes(GUEST_DEVICE) {
            guest.ip(&route.split(' ').collect::<Vec<_>>());
        }
        let gateway = PEER4.to_string();
        guest.ip(&["route", "add", "default", "via", &gateway, "congctl", "cubic"]);
        let servers = own(Program::Kernel)?;
        let mut inside = guest.command(servers.get_program());
        let servers = start(inside.args(servers.get_args()));
        Ok(Self { processes: vec![servers, relay], _guest: Some(guest) })
    }

    /// The process with the servers.
    pub(super) fn id(&self) -> u32 {
        self.processes.first().map_or(0, Background::id)
    }

    /// All processes.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.processes.iter().map(Background::id).collect()
    }
}

/// A machine at the far end of a link that is long and loses packets, which reaches the contender through this one.
pub(super) struct Far {
    // Goes first: its devices are in the namespace.
    _link: Link,
    namespace: Namespace,
}

impl Far {
    pub(super) fn new(impairment: Impairment) -> io::Result<Self> {
        let link = Link::new(["slow0", "slow1"], impairment)?;
        let namespace = Namespace::new("far");
        ip(&["link", "set", "slow1", "netns", "far"]);
        ip(&["address", "add", "10.88.0.1/24", "dev", "slow0"]);
        ip(&["link", "set", "slow0", "up", "txqueuelen", "2000"]);
        namespace.ip(&["address", "add", "10.88.0.2/24", "dev", "slow1"]);
        namespace.ip(&["link", "set", "slow1", "up", "txqueuelen", "2000"]);
        namespace.ip(&["route", "add", "default", "via", "10.88.0.1"]);
        run(Command::new(peer("sysctl")).args(["-q", "-w", "net.ipv4.ip_forward=1"]));
        Ok(Self { _link: link, namespace })
    }

    /// Bits in a second of a flow from the contender.
    pub(super) fn fetch(&self, seconds: u32) -> io::Result<f64> {
        let fetch = own(Program::Fetch)?;
        let mut inside = self.namespace.command(fetch.get_program());
        inside.args(fetch.get_args()).args(["--seconds", &seconds.to_string()]);
        run(&mut inside).trim().parse().map_err(io::Error::other)
    }
}

/// This program again, as one of its parts.
fn own(program: Program) -> io::Result<Command> {
    let name = program.to_possible_value().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--stack-program", name.get_name()]);
    Ok(command)
}

/// The servers on gVisor's netstack, as `bench/deps` builds them beside this program's folder.
fn gvisor() -> io::Result<Command> {
    let running = std::env::current_exe()?;
    let built = running.ancestors().nth(2).map(|target| target.join("gvisor/netstack"));
    let built = built.filter(|program| program.is_file()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "its servers are not built: run bench/deps as root")
    })?;
    Ok(Command::new(built))
}

fn start(command: &mut Command) -> Background {
    let mut process = Background::start(command);
    process.wait_for_line("ready", SOON);
    process
}

/// This machine's end of a TAP.
fn configure(device: &str) {
    let (net4, net6) = (format!("{PEER4}/{PREFIX4}"), format!("{PEER6}/{PREFIX6}"));
    ip(&["address", "add", &net4, "dev", device, "noprefixroute"]);
    ip(&["address", "add", &net6, "dev", device, "nodad", "noprefixroute"]);
    ip(&["link", "set", device, "up", "txqueuelen", "2000"]);
    for route in routes(device) {
        ip(&route.split(' ').collect::<Vec<_>>());
    }
}

/// What `ip` is told so that everybody uses cubic, whatever the machine's default is. The kernel's own routes to these
/// prefixes must not be there: over IPv6 they go before others.
fn routes(device: &str) -> [String; 2] {
    let net = |address: IpAddr, len| IpNet::new_assert(address, len).trunc();
    let nets = [net(PEER4.into(), PREFIX4), net(PEER6.into(), PREFIX6)];
    nets.map(|net| format!("route add {net} dev {device} congctl cubic"))
}

/// For tens of thousands of sockets, here and in what is started from now on, as far as this user may.
fn allow_many_descriptors() {
    let own = std::process::id().to_string();
    let most = ["--pid", &own, "--nofile", "--noheadings", "--output", "HARD"];
    let most = run(Command::new(peer("prlimit")).args(most));
    run(Command::new(peer("prlimit")).args(["--pid", &own, &format!("--nofile={}:", most.trim())]));
}

/// Runs `ip` here.
fn ip(arguments: &[&str]) {
    run(Command::new(peer("ip")).args(arguments));
}
