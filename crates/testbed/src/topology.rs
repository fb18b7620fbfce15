//! Namespaces joined by veth pairs: an outside that plays the Internet.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;

use crate::process::{peer, run};

/// A network namespace with a name, made with `ip netns`; gone when this value goes.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback interface up.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        ip(&["netns", "add", name]);
        let namespace = Self { name: name.to_owned() };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that runs a program in it; arguments are added to the command.
    #[must_use]
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new(peer("nsenter"));
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program.into());
        command
    }

    /// Runs `ip` in it.
    ///
    /// # Panics
    /// When `ip` fails.
    pub fn ip(&self, arguments: &[&str]) {
        run(self.command(peer("ip")).args(arguments));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Fails only if a test has deleted it.
        let _ = Command::new(peer("ip")).args(["netns", "del", &self.name]).output();
    }
}

/// A namespace that plays the Internet, joined to the current one by a veth pair. The current
/// namespace's default routes lead to it.
#[derive(Debug)]
pub struct Outside {
    namespace: Namespace,
}

impl Outside {
    /// The current namespace's interface.
    pub const UPLINK: &str = "uplink";
    /// The current namespace's IPv4 address.
    pub const HOST4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    /// The current namespace's IPv6 address.
    pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    /// The next hop's IPv4 address, on the far end of the link.
    pub const ROUTER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    /// The next hop's IPv6 address, on the far end of the link.
    pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
    /// IPv4 address of a server on the Internet, behind the next hop.
    pub const ADDRESS4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    /// IPv6 address of a server on the Internet, behind the next hop.
    pub const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
    /// Both addresses of the server.
    pub const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Self::ADDRESS4), IpAddr::V6(Self::ADDRESS6)];

    /// Makes it.
    ///
    /// # Panics
    /// When a step fails.
    #[must_use]
    pub fn new() -> Self {
        let namespace = Namespace::new("outside");
        let uplink = Self::UPLINK;
        ip(&["link", "add", uplink, "type", "veth", "peer", "name", "inside", "netns", "outside"]);
        let (host4, host6) = (format!("{}/24", Self::HOST4), format!("{}/64", Self::HOST6));
        ip(&["address", "add", &host4, "dev", uplink]);
        ip(&["address", "add", &host6, "dev", uplink, "nodad"]);
        ip(&["link", "set", uplink, "up"]);
        let (out4, out6) = (format!("{}/24", Self::ROUTER4), format!("{}/64", Self::ROUTER6));
        namespace.ip(&["address", "add", &out4, "dev", "inside"]);
        namespace.ip(&["address", "add", &out6, "dev", "inside", "nodad"]);
        namespace.ip(&["link", "set", "inside", "up"]);
        namespace.ip(&["address", "add", &format!("{}/32", Self::ADDRESS4), "dev", "lo"]);
        let far6 = format!("{}/128", Self::ADDRESS6);
        namespace.ip(&["address", "add", &far6, "dev", "lo", "nodad"]);
        ip(&["route", "add", "default", "via", &Self::ROUTER4.to_string()]);
        ip(&["-6", "route", "add", "default", "via", &Self::ROUTER6.to_string()]);
        Self { namespace }
    }

    /// Makes every connection between here and the outside use this congestion control,
    /// whatever the machine's default is.
    ///
    /// # Panics
    /// When the kernel does not have it.
    pub fn set_congestion_control(&self, name: &str) {
        let control = ["congctl", name];
        let (router4, router6) = (Self::ROUTER4.to_string(), Self::ROUTER6.to_string());
        ip(&[&["route", "replace", "default", "via", &router4][..], &control].concat());
        ip(&[&["-6", "route", "replace", "default", "via", &router6][..], &control].concat());
        for prefix in ["198.51.100.0/24", "2001:db8:1::/64"] {
            let route = ["route", "replace", prefix, "dev", "inside", "proto", "kernel"];
            self.namespace.ip(&[&route[..], &control].concat());
        }
    }

    /// Sets the MTU of both ends of the pair, bytes.
    ///
    /// # Panics
    /// When the kernel refuses it.
    pub fn set_mtu(&self, mtu: u32) {
        ip(&["link", "set", Self::UPLINK, "mtu", &mtu.to_string()]);
        self.namespace.ip(&["link", "set", "inside", "mtu", &mtu.to_string()]);
    }

    /// A command that runs a program in the outside.
    #[must_use]
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        self.namespace.command(program)
    }

    /// The namespace itself.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

impl Default for Outside {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs `ip` in the current namespace.
fn ip(arguments: &[&str]) {
    run(Command::new(peer("ip")).args(arguments));
}

/// Makes `resolver` the only one of this machine, as far as the test can see.
///
/// # Panics
/// When `/etc/resolv.conf` cannot be written: outside of [`crate::isolate()`].
pub fn set_resolver(resolver: IpAddr) {
    fs::write("/etc/resolv.conf", format!("nameserver {resolver}\n"))
        .expect("inside, /etc/resolv.conf is the test's own");
}
