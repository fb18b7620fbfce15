//! The peers, called as their callers call them: one process for each step.

use std::fs;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use netyard_testbed::{peer, run};
use serde_json::{Value, json};

use super::contender::{GUEST_PORT, Guest, Plugs};

const SUBNET: &str = "10.9.0.0/16";
const GATEWAY: &str = "10.9.0.1";

/// Runs a program with a JSON value on its standard input; what it says, `Null` if nothing.
fn call(command: &mut Command, input: &Value) -> Value {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = command.spawn().and_then(|mut child| {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.to_string().as_bytes())?;
        }
        child.wait_with_output()
    });
    let done = done.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?} failed ({}): {said}{errors}", done.status);
    serde_json::from_slice(&done.stdout).unwrap_or_default()
}

/// What Debian installs outside of the search path.
fn plugin(path: &str) -> PathBuf {
    let path = PathBuf::from(path);
    assert!(path.is_file(), "{} is not installed: run `bench/deps` as root", path.display());
    path
}

/// `ip` and `nft`, as in a script: a bridge, one pair of links for each guest.
pub(super) struct Script;

impl Script {
    pub(super) fn new() -> Self {
        sh(&format!(
            "ip link add br0 type bridge
            ip address add {GATEWAY}/16 dev br0
            ip link set br0 up
            echo 1 >/proc/sys/net/ipv4/ip_forward
            nft -f - <<'EOF'
            table ip bench {{
                map forwards {{ type inet_service : ipv4_addr . inet_service; }}
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    fib daddr type local dnat ip to tcp dport map @forwards
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    ip saddr {SUBNET} oifname != br0 masquerade
                }}
            }}\nEOF"
        ));
        Self
    }
}

impl Script {
    /// Leads ports of the host to the same ports of a guest, in one transaction.
    pub(super) fn publish(&self, guest: &Guest, ports: RangeInclusive<u16>) {
        let address = guest.address();
        let elements: Vec<String> =
            ports.map(|port| format!("{port} : {address} . {port}")).collect();
        let file = "/run/ports.nft";
        let text = format!("add element ip bench forwards {{ {} }}", elements.join(", "));
        fs::write(file, text).unwrap_or_else(|error| panic!("{file}: {error}"));
        run(Command::new(peer("nft")).args(["-f", file]));
    }
}

/// Runs a script that stops at the first error.
fn sh(script: &str) {
    run(Command::new(peer("sh")).args(["-ec", script]));
}

impl Plugs for Script {
    fn plug(&mut self, guest: &Guest) {
        let (name, link, address) = (guest.name(), guest.link(), guest.address());
        sh(&format!(
            "ip link add {link} master br0 type veth peer eth0 netns {name}
            ip link set {link} up
            ip -n {name} link set lo up
            ip -n {name} link set eth0 up
            ip -n {name} address add {address}/16 dev eth0
            ip -n {name} route add default via {GATEWAY}
            nft add element ip bench forwards '{{ {port} : {address} . {GUEST_PORT} }}'",
            port = guest.host_port(),
        ));
    }

    fn unplug(&mut self, guest: &Guest) {
        sh(&format!(
            "nft delete element ip bench forwards '{{ {port} }}'
            ip link delete {link}",
            port = guest.host_port(),
            link = guest.link(),
        ));
    }
}

/// netavark with its own firewall driver of Debian 12, as podman starts it.
pub(super) struct Netavark {
    program: PathBuf,
}

impl Netavark {
    pub(super) fn new() -> Self {
        Self { program: plugin("/usr/lib/podman/netavark") }
    }

    fn call(&self, verb: &str, guest: &Guest) {
        let id = format!("{:064x}", guest.host_port());
        let input = json!({
            "container_id": id,
            "container_name": guest.name(),
            "port_mappings": [{
                "container_port": GUEST_PORT,
                "host_ip": "",
                "host_port": guest.host_port(),
                "protocol": "tcp",
                "range": 1,
            }],
            "networks": { "bench": {
                "interface_name": "eth0",
                "static_ips": [guest.address()],
            } },
            "network_info": { "bench": {
                "name": "bench",
                "id": "53ce4390f2adb1681eb1a90ec8b48c49c015e0a8d336c197637e7f65e365fa9e",
                "driver": "bridge",
                "network_interface": "br0",
                "subnets": [{ "subnet": SUBNET, "gateway": GATEWAY }],
                "ipv6_enabled": false,
                "internal": false,
                "dns_enabled": false,
                "ipam_options": { "driver": "host-local" },
            } },
        });
        let mut command = Command::new(&self.program);
        command.args(["--config", "/run/netavark", verb]).arg(guest.path());
        call(&mut command, &input);
    }
}

impl Plugs for Netavark {
    fn plug(&mut self, guest: &Guest) {
        self.call("setup", guest);
    }

    fn unplug(&mut self, guest: &Guest) {
        self.call("teardown", guest);
    }
}

/// The plugins bridge (with host-local) and portmap, one after the other, as libcni starts them.
pub(super) struct Cni {
    folder: PathBuf,
    bridge: PathBuf,
    portmap: PathBuf,
}

impl Cni {
    pub(super) fn new() -> Self {
        let bridge = plugin("/usr/lib/cni/bridge");
        let folder = bridge.parent().map(PathBuf::from).unwrap_or_default();
        Self { folder, bridge, portmap: plugin("/usr/lib/cni/portmap") }
    }

    fn call(&self, program: &PathBuf, verb: &str, guest: &Guest, config: &Value) -> Value {
        let mut command = Command::new(program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", guest.name())
            .env("CNI_NETNS", guest.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.folder);
        call(&mut command, config)
    }

    fn bridge(&self, verb: &str, guest: &Guest) -> Value {
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "bench",
            "type": "bridge",
            "bridge": "br0",
            "isDefaultGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/cni",
                "ranges": [[{ "subnet": SUBNET }]],
            },
        });
        self.call(&self.bridge, verb, guest, &config)
    }

    fn portmap(&self, verb: &str, guest: &Guest, before: &Value) {
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "bench",
            "type": "portmap",
            "capabilities": { "portMappings": true },
            "runtimeConfig": { "portMappings": [{
                "hostPort": guest.host_port(),
                "containerPort": GUEST_PORT,
                "protocol": "tcp",
            }] },
            "prevResult": before,
        });
        self.call(&self.portmap, verb, guest, &config);
    }
}

impl Plugs for Cni {
    fn plug(&mut self, guest: &Guest) {
        let result = self.bridge("ADD", guest);
        self.portmap("ADD", guest, &result);
    }

    fn unplug(&mut self, guest: &Guest) {
        self.portmap("DEL", guest, &Value::Null);
        self.bridge("DEL", guest);
    }
}
