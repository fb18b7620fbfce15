//! A network in bridge mode without its process, its guests, and the machine around them.

// Each test binary uses its own part; a test fails by panicking.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use netyard_engine::config::{Bridge, Config, Mode, Uplink};
use netyard_engine::control::{PlugKind, PlugRequest, Plugged, TurnState};
use netyard_engine::edge::PlugId;
use netyard_engine::forward::Protocol;
use netyard_engine::plumbing::{
    KernelForward, KernelInstance, KernelService, Plumbing, Segment, ServiceTraffic,
};
use netyard_link::Features;
use netyard_link::netns::Netns;
use netyard_sys::tap::{Device, Layer};
use netyard_testbed::{Namespace, Outside, output, peer, run, wait_for};
use netyard_wire::MacAddr;
use netyard_yard::bridge::Plumber;
use serde_json::Value as Json;

pub const SOON: Duration = Duration::from_secs(20);

pub fn config(name: &str, bridge: &str) -> Config {
    Config {
        name: name.into(),
        subnet4: "192.168.1.0/24".parse().unwrap(),
        subnet6: "fd00:1:2:3::/64".parse().unwrap(),
        mode: Mode::Bridge(Bridge { name: Some(bridge.into()), ..Bridge::default() }),
        gateway: Some([192, 168, 1, 10].into()),
        gateway_mac: MacAddr::from_seed(name),
        zone: name.into(),
        dns: Default::default(),
        mtu: 1500,
        uplink: Uplink::Nat,
        host: Vec::new(),
        dhcp: None,
        snooping: true,
        mdns: Default::default(),
        permanent: false,
    }
}

pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new("/tmp/networks").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A network in bridge mode.
pub struct Network {
    pub plumber: Plumber,
    pub config: Config,
    pub segment: Segment,
}

impl Network {
    pub fn open(config: Config) -> Self {
        Self::with(config, Features::probe().unwrap())
    }

    pub fn with(config: Config, features: Features) -> Self {
        let mut plumber = Plumber::new(&folder(&config.name), features);
        let segment = plumber.open(&config).unwrap();
        Self { plumber, config, segment }
    }

    /// A guest in a namespace of its own, with address and routes.
    pub fn guest(&mut self, name: &str, number: u32) -> Guest {
        let namespace = Namespace::new(name);
        let plugged = Plugged {
            plug: PlugId(number),
            mac: MacAddr::from_seed(name),
            address4: self.config.nth4(number),
            address6: self.config.nth6(number),
        };
        let file = File::open(namespace.path()).unwrap();
        self.plumber.add_plug(&plugged, &request(name), Some(file.into())).unwrap();
        let address =
            |text: String| namespace.ip(&["address", "add", &text, "dev", "eth0", "nodad"]);
        namespace.ip(&["address", "add", &format!("{}/24", plugged.address4), "dev", "eth0"]);
        address(format!("{}/64", plugged.address6));
        let gateways = [self.config.gateway4().to_string(), self.config.gateway6().to_string()];
        namespace.ip(&["route", "add", "default", "via", &gateways[0]]);
        namespace.ip(&["-6", "route", "add", "default", "via", &gateways[1]]);
        let netns = Netns::open(&namespace.path()).unwrap();
        Guest { namespace, netns, plugged }
    }

    /// The TAP of a machine.
    pub fn machine(&mut self, name: &str, number: u32) -> OwnedFd {
        let plugged = Plugged {
            plug: PlugId(number),
            mac: MacAddr::from_seed(name),
            address4: self.config.nth4(number),
            address6: self.config.nth6(number),
        };
        let wish = PlugRequest { kind: PlugKind::Tap, ..request(name) };
        let device = Device::create(&format!("tap-{name}"), Layer::Frames, true).unwrap();
        let ours = device.fd.try_clone().unwrap();
        self.plumber.add_plug(&plugged, &wish, Some(ours)).unwrap();
        device.fd
    }

    /// A TAP for what somebody else starts, of user 0.
    pub fn external(&mut self, tap: &str, number: u32) -> Plugged {
        let plugged = Plugged {
            plug: PlugId(number),
            mac: MacAddr::from_seed(tap),
            address4: self.config.nth4(number),
            address6: self.config.nth6(number),
        };
        let wish = PlugRequest {
            kind: PlugKind::Device { owner: 0 },
            interface: Some(tap.into()),
            ..request(tap)
        };
        self.plumber.add_plug(&plugged, &wish, None).unwrap();
        plugged
    }

    pub fn service(&self, name: &str, guests: &[&Guest]) -> KernelService {
        KernelService {
            name: name.into(),
            protocol: Protocol::Tcp,
            port: 8080,
            address4: self.config.nth4(253),
            address6: self.config.nth6(253),
            publish: None,
            affinity: None,
            answered_at: Vec::new(),
            instances: guests.iter().map(|guest| guest.instance()).collect(),
            resting: Vec::new(),
        }
    }
}

/// All of these are instances of the service, and those that it does not name get no connections now.
pub fn rest(service: &mut KernelService, all: &[Guest]) {
    let gets = |name: &String| service.instances.iter().any(|it| it.name == *name);
    let names = all.iter().map(|guest| guest.instance().name);
    service.resting = names.filter(|name| !gets(name)).collect();
}

pub fn request(name: &str) -> PlugRequest {
    PlugRequest {
        interface: Some(format!("ve-{name}")),
        ..PlugRequest::new(name, PlugKind::Namespace)
    }
}

pub struct Guest {
    pub namespace: Namespace,
    pub netns: Netns,
    pub plugged: Plugged,
}

impl Guest {
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.plugged.address4.into(), self.plugged.address6.into()]
    }

    pub fn instance(&self) -> KernelInstance {
        KernelInstance {
            name: self.namespace.name().into(),
            address4: self.plugged.address4,
            address6: self.plugged.address6,
            weight: 1,
        }
    }

    /// Says its name and whom it speaks with to everybody who connects to this port.
    pub fn serve(&self, port: u16) {
        serve(&self.netns, self.namespace.name(), port);
    }

    pub fn pings(&self, to: IpAddr) -> bool {
        let mut command = self.namespace.command(peer("ping"));
        output(command.args(["-c", "1", "-W", "10", &to.to_string()])).status.success()
    }
}

pub fn serve(netns: &Netns, name: &str, port: u16) {
    let name = name.to_owned();
    let listener = netns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = write!(stream, "{name} {from}");
        }
    });
}

/// Who answers, and whom it sees.
pub fn ask(from: &Netns, to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
    ask_within(from, to, SOON)
}

/// The same where nobody is to answer: what is dropped in silence is not waited for as long.
pub fn ask_in_vain(from: &Netns, to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
    ask_within(from, to, Duration::from_secs(3))
}

fn ask_within(
    from: &Netns,
    to: SocketAddr,
    patience: Duration,
) -> std::io::Result<(String, IpAddr)> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (name, seen) = text.split_once(' ').unwrap();
        Ok((name.to_owned(), seen.parse().unwrap()))
    })
    .unwrap()
}

/// Counters of the instances of the service `web`.
pub fn traffic(network: &mut Network) -> ServiceTraffic {
    network.plumber.services().unwrap().remove("web").unwrap()
}

pub fn instances(network: &mut Network) -> BTreeMap<String, TurnState> {
    traffic(network).instances.into_iter().collect()
}

pub fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

pub fn here() -> Netns {
    Netns::current().unwrap()
}

pub fn ip(arguments: &[&str]) -> String {
    run(Command::new(peer("ip")).args(arguments))
}

pub fn ip_json(arguments: &[&str]) -> Json {
    ip(&[&["-j", "-d"], arguments].concat()).parse().unwrap()
}

pub fn nft(arguments: &[&str]) -> String {
    run(Command::new(peer("nft")).args(arguments))
}

pub fn forward(text: &str, guest: &Guest) -> KernelForward {
    KernelForward {
        forward: text.parse().unwrap(),
        address4: guest.plugged.address4,
        address6: guest.plugged.address6,
    }
}

/// The host and its outside; the outside knows no route to the segments.
pub fn machine() -> (Outside, Netns) {
    let outside = Outside::new();
    let netns = Netns::open(&outside.namespace().path()).unwrap();
    settle(&[Outside::UPLINK]);
    (outside, netns)
}

/// Waits until links that have just been switched on have their link-local addresses, which the
/// kernel checks first.
pub fn settle(links: &[&str]) {
    wait_for("settled addresses", SOON, || {
        let settled = |link: &&str| {
            let text = ip(&["-6", "address", "show", "dev", link]);
            text.contains("fe80:") && !text.contains("tentative")
        };
        links.iter().all(settled).then_some(())
    });
}
