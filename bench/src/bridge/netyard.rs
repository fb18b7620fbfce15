//! netyard: a member of a network in bridge mode, as a keeper is one.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use netyard_engine::client::Connection;
use netyard_engine::config::{Bridge, Config, Dhcp, Mode, Uplink};
use netyard_engine::control::{PlugKind, PlugRequest, Plugged, Reply, Request};
use netyard_engine::forward::{Forward, HostSide, Ports, Protocol};
use netyard_engine::process;
use netyard_link::netns::Netns;
use netyard_link::rtnetlink::{LinkChange, Route, Rtnetlink};
use netyard_testbed::{binary, wait_for};
use netyard_wire::MacAddr;

use super::contender::{GUEST_PORT, Guest, Plugs};

/// Where the network keeps its files.
const FOLDER: &str = "/run/bench-network";

/// Far above what taking everything back takes.
const END: Duration = Duration::from_secs(120);

/// `lo` and `eth0`.
const LOOPBACK: &str = "lo";
const FIRST: &str = "eth0";

/// A network, joined.
pub(super) struct Network {
    config: Config,
    connection: Option<Connection>,
    plugs: Vec<(u16, Plugged)>,
}

impl Network {
    /// Has the process of a network started, and joins it.
    pub(super) fn join() -> Self {
        let config = Config {
            name: "bench".into(),
            subnet4: ipnet::Ipv4Net::new_assert([10, 9, 0, 0].into(), 16),
            subnet6: ipnet::Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0), 64),
            mode: Mode::Bridge(Bridge { name: Some("br0".into()), ..Bridge::default() }),
            gateway: None,
            gateway_mac: MacAddr::from_seed("bench"),
            zone: "bench".into(),
            dns: Default::default(),
            mtu: 1500,
            uplink: Uplink::Nat,
            host: Vec::new(),
            dhcp: Some(Dhcp::default()),
            snooping: true,
            mdns: Default::default(),
            permanent: false,
        };
        let connection = process::join(&Self::folder(), &config, &binary("netyard"));
        let mut connection = connection.unwrap_or_else(|error| panic!("join the network: {error}"));
        if let Err(error) = connection.hello("bench") {
            panic!("join the network: {error}");
        }
        Self { config, connection: Some(connection), plugs: Vec::new() }
    }

    fn folder() -> PathBuf {
        Path::new(FOLDER).join("bench")
    }

    /// Asks the network's process, and waits for its answer.
    pub(super) fn ask(&mut self, request: Request, descriptor: Option<OwnedFd>) -> Reply {
        let connection = self.connection.as_mut().unwrap_or_else(|| panic!("it has been left"));
        match connection.request(request, descriptor) {
            Ok((Ok(reply), _)) => reply,
            Ok((Err(error), _)) => panic!("{error}"),
            Err(error) => panic!("ask the network's process: {error}"),
        }
    }

    /// A forward of host ports, on all its addresses, to a guest.
    pub(super) fn forward(instance: &str, host: Ports, guest: Ports) -> Forward {
        Forward {
            host: HostSide::Ports(IpAddr::from([0; 4]), host),
            instance: instance.to_owned(),
            guest_ports: guest,
            delivery: Default::default(),
            protocol: Protocol::Tcp,
        }
    }

    fn forward_of(guest: &Guest) -> Forward {
        let one = |port| Ports::new(port, port).unwrap_or_else(|| panic!("port {port}"));
        Self::forward(&guest.name(), one(guest.host_port()), one(GUEST_PORT))
    }

    /// Plugs a namespace in; its end of the link is up with addresses and routes then.
    pub(super) fn connect(&mut self, guest: &Guest) -> Plugged {
        let request = PlugRequest {
            interface: Some(guest.link()),
            ..PlugRequest::new(guest.name(), PlugKind::Namespace)
        };
        let path = guest.path();
        self.learn_nothing(guest);
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let Reply::Plugged(plugged) = self.ask(Request::AddPlug(request), Some(file.into())) else {
            panic!("plugged in, and no plug");
        };
        if let Err(error) = self.configure(guest, &plugged) {
            panic!("set {} up: {error}", path.display());
        }
        plugged
    }

    /// What an instance does in its own namespace before it is plugged in: addresses and routes are
    /// given.
    fn learn_nothing(&self, guest: &Guest) {
        const SETTINGS: [&str; 4] =
            ["all/accept_ra", "default/accept_ra", "all/accept_dad", "default/accept_dad"];
        let set = || {
            SETTINGS
                .iter()
                .try_for_each(|name| fs::write(format!("/proc/sys/net/ipv6/conf/{name}"), "0"))
        };
        let done = Netns::open(&guest.path()).and_then(|netns| netns.run(set));
        assert!(matches!(done, Ok(Ok(()))), "set {} up: {done:?}", guest.name());
    }

    /// What it does after.
    fn configure(&self, guest: &Guest, plugged: &Plugged) -> netyard_link::Result<()> {
        let mut kernel = Rtnetlink::open_in(&Netns::open(&guest.path())?)?;
        let loopback = kernel.index(LOOPBACK)?;
        kernel.change_link(loopback, &LinkChange::new().up(true))?;
        let link = kernel.index(FIRST)?;
        let net = |address: IpAddr, len| IpNet::new_assert(address, len);
        kernel.add_address(link, net(plugged.address4.into(), self.config.subnet4.prefix_len()))?;
        kernel.add_address(link, net(plugged.address6.into(), self.config.subnet6.prefix_len()))?;
        kernel.add_route(&Route::default_via(self.config.gateway4().into(), link))?;
        kernel.add_route(&Route::default_via(self.config.gateway6().into(), link))
    }
}

impl Plugs for Network {
    fn plug(&mut self, guest: &Guest) {
        let plugged = self.connect(guest);
        self.plugs.push((guest.host_port(), plugged));
        self.ask(Request::AddForward(Self::forward_of(guest)), None);
    }

    fn address(&self, guest: &Guest) -> Ipv4Addr {
        let plug = self.plugs.iter().find(|(port, _)| *port == guest.host_port());
        plug.map_or(Ipv4Addr::UNSPECIFIED, |(_, plugged)| plugged.address4)
    }

    fn unplug(&mut self, guest: &Guest) {
        let at = self.plugs.iter().position(|(port, _)| *port == guest.host_port());
        let at = at.unwrap_or_else(|| panic!("{} is not plugged in", guest.name()));
        let (_, plugged) = self.plugs.swap_remove(at);
        self.ask(Request::RemoveForward { forward: Self::forward_of(guest) }, None);
        self.ask(Request::RemovePlug { plug: plugged.plug }, None);
    }

    /// Leaves, and waits until the network is gone.
    fn clear(&mut self, _guests: &[Guest]) {
        self.plugs.clear();
        self.connection = None;
        let folder = Self::folder();
        wait_for("the network's end", END, || (!folder.exists()).then_some(()));
    }
}
