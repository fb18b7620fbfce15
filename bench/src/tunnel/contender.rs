//! Who is measured: each is started around a stage as its manual says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use netyard_testbed::{Background, Namespace, binary, output, peer, run};
use serde::Serialize;

use super::stage::{HUB, Stage};
use crate::process::processor_time;
use crate::table;

/// How long a tunnel may take until its peers reach the hub.
const START: Duration = Duration::from_secs(30);
/// How often what is waited for is looked at.
const LOOKED: Duration = Duration::from_millis(20);
/// Where configurations are written; the run's own.
const FOLDER: &str = "/tmp/tunnel";
/// Where hubs and peers note what they have made; the run's own.
const RUNTIME: &str = "/run/netyard";

/// What connects a hub with its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contender {
    /// This project, over WebSocket and TLS
    Netyard,
    /// wireguard-go of 2025, with offloads of the TUN device
    WireguardGo,
    /// wireguard-go as Debian 12 has it
    WireguardGoDebian,
    /// Cloudflare's boringtun
    Boringtun,
    /// OpenVPN over UDP
    OpenvpnUdp,
    /// OpenVPN over TCP
    OpenvpnTcp,
    /// tinc 1.0
    Tinc,
}

impl table::Contender for Contender {
    const ALL: &[Self] = &[
        Self::Netyard,
        Self::WireguardGo,
        Self::WireguardGoDebian,
        Self::Boringtun,
        Self::OpenvpnUdp,
        Self::OpenvpnTcp,
        Self::Tinc,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Netyard => "netyard",
            Self::WireguardGo => "wg-go",
            Self::WireguardGoDebian => "wg-go(deb)",
            Self::Boringtun => "boringtun",
            Self::OpenvpnUdp => "ovpn/udp",
            Self::OpenvpnTcp => "ovpn/tcp",
            Self::Tinc => "tinc",
        }
    }
}

impl Contender {
    /// Its program; `None`: it is not installed.
    fn program(self) -> Option<PathBuf> {
        let installed =
            |name| ["/usr/bin", "/usr/sbin"].map(|folder| Path::new(folder).join(name)).into_iter();
        let built = |path: &str| {
            let running = std::env::current_exe().ok()?;
            Some(running.ancestors().nth(2)?.join(path))
        };
        let mut candidates = match self {
            Self::Netyard => return Some(binary("netyard")),
            Self::WireguardGo => {
                return built("wireguard-go/bin/wireguard").filter(|it| it.exists());
            }
            Self::Boringtun => {
                return built("boringtun/bin/boringtun-cli").filter(|it| it.exists());
            }
            Self::WireguardGoDebian => installed("wireguard-go"),
            Self::OpenvpnUdp | Self::OpenvpnTcp => installed("openvpn"),
            Self::Tinc => installed("tincd"),
        };
        candidates.find(|file| file.exists())
    }

    /// Starts it around a stage, and waits until every peer reaches the hub.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub(super) fn start(self, stage: &Stage) -> Result<Running, String> {
        let program = self.program().ok_or("it is not installed: run bench/deps")?;
        _ = fs::remove_dir_all(FOLDER);
        // What a killed hub has noted was about a namespace that is gone.
        _ = fs::remove_dir_all(RUNTIME);
        fs::create_dir_all(FOLDER).map_err(|error| error.to_string())?;
        let running = match self {
            Self::Netyard => netyard(stage)?,
            Self::WireguardGo | Self::WireguardGoDebian => wireguard(stage, |device| {
                let mut command = Command::new(&program);
                command.args(["-f", device]);
                command
            })?,
            Self::Boringtun => wireguard(stage, |device| {
                let mut command = Command::new(&program);
                command.args(["-f", "--disable-drop-privileges", device]);
                command
            })?,
            // Its address is none of the link's: answers have to leave from where they were asked.
            Self::OpenvpnUdp => openvpn(stage, &["udp", "--multihome"], "udp")?,
            Self::OpenvpnTcp => openvpn(stage, &["tcp-server"], "tcp-client")?,
            Self::Tinc => tinc(stage),
        };
        running.wait_until_connected(stage)?;
        Ok(running)
    }
}

/// A tunnel that runs; it ends when this value goes.
pub(super) struct Running {
    /// The hub's, then those of the peers.
    pub(super) processes: Vec<Background>,
    /// Addresses in the tunnel, in the same order.
    pub(super) addresses: Vec<String>,
}

impl Running {
    /// Seconds of processor that the first `count` processes have used.
    pub(super) fn processor_time(&self, count: usize) -> f64 {
        self.processes.iter().take(count).map(|process| processor_time(process.id())).sum()
    }

    fn wait_until_connected(&self, stage: &Stage) -> Result<(), String> {
        let start = Instant::now();
        let Some(hub) = self.addresses.first() else { return Ok(()) };
        for namespace in &stage.peers {
            let mut ping = namespace.command(peer("ping"));
            ping.args(["-c", "1", "-W", "1", hub]);
            while !output(&mut ping).status.success() {
                if start.elapsed() > START {
                    let said: Vec<_> = self.processes.iter().map(Background::output).collect();
                    return Err(format!("{} does not reach its hub: {said:?}", namespace.name()));
                }
            }
        }
        Ok(())
    }
}

/// A command of a program in a namespace, with the arguments that it has already.
fn inside(namespace: &Namespace, command: &Command) -> Command {
    let mut inside = namespace.command(command.get_program());
    inside.args(command.get_args());
    inside
}

/// Waits until a program has said something.
fn until_said(process: &Background, text: &str) -> Result<(), String> {
    let start = Instant::now();
    while !process.output().contains(text) {
        if start.elapsed() > START {
            return Err(format!("it never said \"{text}\", but {}", process.output()));
        }
        thread::sleep(LOOKED);
    }
    Ok(())
}

/// This project. Peers come one after the other, so that it is known which address each has.
fn netyard(stage: &Stage) -> Result<Running, String> {
    let hub = netyard_hub(&stage.hub, &[]);
    let mut processes = vec![hub];
    for namespace in &stage.peers {
        let join = run(netyard_command(&stage.hub).args(["token", "create"]));
        let peer = netyard_peer(namespace, join.trim());
        until_said(&peer, "joined")?;
        processes.push(peer);
    }
    let addresses = ["10.1.1.1", "10.1.1.3", "10.1.1.5"].map(str::to_owned);
    Ok(Running { processes, addresses: addresses.to_vec() })
}

pub(super) fn netyard_command(namespace: &Namespace) -> Command {
    namespace.command(binary("netyard"))
}

pub(super) fn netyard_hub(namespace: &Namespace, flags: &[&str]) -> Background {
    let mut command = netyard_command(namespace);
    command.args(["hub", "--state", &format!("{FOLDER}/hub"), "--advertise", HUB]).args(flags);
    let mut hub = Background::start(&mut command);
    hub.wait_for_line("reached as", START);
    hub
}

/// A peer, which is not waited for.
pub(super) fn netyard_peer(namespace: &Namespace, join: &str) -> Background {
    let mut command = netyard_command(namespace);
    let state = format!("{FOLDER}/{}", namespace.name());
    Background::start(command.args(["join", "--name", namespace.name(), "--state", &state, join]))
}

/// Implementations of WireGuard that `wg` sets up.
fn wireguard(stage: &Stage, program: impl Fn(&str) -> Command) -> Result<Running, String> {
    struct End {
        device: String,
        key: String,
        public: String,
        address: String,
    }
    let ends: Vec<End> = stage
        .all()
        .zip(1..)
        .map(|(namespace, number)| {
            let key = format!("{FOLDER}/{}.key", namespace.name());
            let script = "umask 077; wg genkey | tee \"$1\" | wg pubkey";
            let public = run(Command::new("sh").args(["-ec", script, "sh", &key]));
            let device = format!("wg-{}", namespace.name());
            let address = format!("10.8.0.{number}");
            End { device, key, public: public.trim().to_owned(), address }
        })
        .collect();
    let mut processes = Vec::new();
    for (namespace, end) in stage.all().zip(&ends) {
        let process = Background::start(&mut inside(namespace, &program(&end.device)));
        let wg = || namespace.command(peer("wg"));
        let start = Instant::now();
        while !output(wg().args(["show", &end.device])).status.success() {
            if start.elapsed() > START {
                return Err(format!("it made no device: {}", process.output()));
            }
            thread::sleep(LOOKED);
        }
        processes.push(process);
        let mut set = wg();
        set.args(["set", &end.device, "private-key", &end.key]);
        match ends.split_first() {
            Some((hub, peers)) if hub.device == end.device => {
                set.args(["listen-port", "51820"]);
                for other in peers {
                    set.args(["peer", &other.public, "allowed-ips", &other.address]);
                }
            }
            Some((hub, _)) => {
                set.args(["peer", &hub.public, "allowed-ips", "10.8.0.0/24"]);
                set.args(["endpoint", &format!("{HUB}:51820"), "persistent-keepalive", "25"]);
            }
            None => {}
        }
        run(&mut set);
        namespace.ip(&["address", "add", &format!("{}/24", end.address), "dev", &end.device]);
        namespace.ip(&["link", "set", &end.device, "mtu", "1420", "up"]);
    }
    Ok(Running { processes, addresses: ends.into_iter().map(|end| end.address).collect() })
}

/// OpenVPN with certificates, AES-128 as netyard has it, and its defaults.
fn openvpn(stage: &Stage, server: &[&str], client: &str) -> Result<Running, String> {
    let script = "cd \"$1\"
key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
openssl req -x509 $key -days 2 -subj /CN=ca -keyout ca.key -out ca.crt
for who in hub peer; do
    openssl req $key -subj /CN=$who -keyout $who.key -out $who.csr
    openssl x509 -req -in $who.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out $who.crt
done";
    run(Command::new("sh").args(["-ec", script, "sh", FOLDER]));
    let end = |namespace: &Namespace, who: &str, rest: &[&str]| {
        let mut command = namespace.command(peer("openvpn"));
        command.args(["--cd", FOLDER, "--dev-type", "tun", "--disable-dco"]);
        command.args(["--dev", &format!("vpn-{}", namespace.name())]);
        command.args(["--ca", "ca.crt", "--cert", &format!("{who}.crt")]);
        command.args(["--key", &format!("{who}.key"), "--data-ciphers", "AES-128-GCM"]);
        let started = Background::start(command.args(rest));
        until_said(&started, "Initialization Sequence Completed").map(|()| started)
    };
    let server =
        [&["--port", "1194", "--dh", "none", "--duplicate-cn", "--proto"], server].concat();
    let network = ["--server", "10.8.0.0", "255.255.255.0", "--topology", "subnet"];
    let server = [&server[..], &network, &["--client-to-client"]].concat();
    let mut processes = vec![end(&stage.hub, "hub", &server)?];
    for namespace in &stage.peers {
        let client = ["--client", "--nobind", "--proto", client, "--remote", HUB, "1194"];
        processes.push(end(namespace, "peer", &client)?);
    }
    let addresses = ["10.8.0.1", "10.8.0.2", "10.8.0.3"].map(str::to_owned);
    Ok(Running { processes, addresses: addresses.to_vec() })
}

/// tinc with its defaults.
fn tinc(stage: &Stage) -> Running {
    let script = r#"cd "$1"
mkdir -p "$2/hosts"
cd "$2"
printf 'Name = %s\nInterface = tinc-%s\nAddressFamily = ipv4\n' "$2" "$2" >tinc.conf
[ "$2" = hub ] || echo 'ConnectTo = hub' >>tinc.conf
printf 'Subnet = %s/32\n' "$3" >"hosts/$2"
[ "$2" != hub ] || printf 'Address = %s\n' "$4" >>hosts/hub
printf '#!/bin/sh\nip link set $INTERFACE up\nip address add %s/24 dev $INTERFACE\n' "$3" >tinc-up
chmod 755 tinc-up
tincd -c "$PWD" -K 2048 </dev/null"#;
    let names: Vec<&str> = stage.all().map(Namespace::name).collect();
    let addresses: Vec<String> =
        (1..).take(names.len()).map(|number| format!("10.8.0.{number}")).collect();
    for (name, address) in names.iter().zip(&addresses) {
        run(Command::new("sh").args(["-ec", script, "sh", FOLDER, name, address, HUB]));
    }
    // Everybody knows the hub, and the hub everybody.
    let script = r#"cd "$1"; for to in *; do cp -n */hosts/* "$to/hosts/" 2>/dev/null || :; done"#;
    run(Command::new("sh").args(["-ec", script, "sh", FOLDER]));
    let processes = stage.all().map(|namespace| {
        let mut command = namespace.command(peer("tincd"));
        let folder = format!("{FOLDER}/{}", namespace.name());
        let pid = format!("{folder}/pid");
        Background::start(command.args(["-D", "-c", &folder, "--pidfile", &pid]))
    });
    Running { processes: processes.collect(), addresses: addresses.clone() }
}
