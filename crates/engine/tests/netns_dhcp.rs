//! Real DHCP clients and the kernel's own neighbour discovery on a TAP of a network process.
//!
//! This program is both the tests and, under the hidden verb, the network process. It runs itself
//! in namespaces of its own.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program with its own main")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use netyard_engine::client::Connection;
use netyard_engine::config::{Config, Dhcp, Uplink};
use netyard_engine::control::{PlugKind, PlugRequest, Plugged, Reply, Request, State};
use netyard_engine::process::{self, VERB};
use netyard_sys::tap::Tap;
use netyard_testbed::{Background, isolate_main, peer, run, wait_for};
use netyard_wire::{Features, MacAddr};

const LONG: Duration = Duration::from_secs(30);
const TAP: &str = "vm0";

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(VERB) {
        return process::main(|_| unreachable!("a user-mode network has no plumbing"));
    }
    if let Some(code) = isolate_main() {
        return code;
    }
    type Test = (&'static str, fn(&mut Guest));
    let tests: [Test; 4] = [
        ("busybox_leases_renews_and_releases", busybox_leases_renews_and_releases),
        ("dhclient_leases_ipv4", dhclient_leases_ipv4),
        ("dhclient_leases_ipv6", dhclient_leases_ipv6),
        ("the_kernel_learns_its_router", the_kernel_learns_its_router),
    ];
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, test) in tests {
        if wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str())) {
            test(&mut Guest::new());
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn config() -> Config {
    Config {
        name: "lab".into(),
        subnet4: "192.168.127.0/24".parse().unwrap(),
        subnet6: "fd00:1:2:3::/64".parse().unwrap(),
        mode: netyard_engine::config::Mode::User,
        gateway: None,
        gateway_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        zone: "lab.lan".into(),
        dns: Default::default(),
        mtu: 1400,
        uplink: Uplink::None,
        host: Vec::new(),
        dhcp: Some(Dhcp { lease: Duration::from_secs(3_600), range: None }),
        snooping: true,
        mdns: Default::default(),
        permanent: false,
    }
}

/// An interface that nobody has configured, plugged into a network.
struct Guest {
    connection: Connection,
    plugged: Plugged,
    folder: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let mut connection =
            process::join(&folder.path().join("net"), &config(), &program).unwrap();
        connection.hello("test").unwrap();
        // The network process of the test before may still be on its way out with the last one.
        let tap = wait_for("the TAP's name is free", LONG, || match Tap::create(TAP) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => None,
            tap => Some(tap.unwrap()),
        });
        let request = PlugRequest {
            features: if tap.offloads.tcp { Features::CSUM.bits() } else { 0 },
            address: Some("192.168.127.19".parse().unwrap()),
            ..PlugRequest::new("web-1", PlugKind::Tap)
        };
        let (reply, _) = connection.request(Request::AddPlug(request), Some(tap.fd)).unwrap();
        let Ok(Reply::Plugged(plugged)) = reply else { panic!("{reply:?}") };
        ip(&["link", "set", TAP, "address", &plugged.mac.to_string()]);
        ip(&["link", "set", TAP, "up"]);
        Self { connection, plugged, folder }
    }

    /// A program that a client calls with each event: it writes its environment into a file of the
    /// event's name, after it has run `commands`.
    fn script(&self, event: &str, commands: &str) -> (PathBuf, PathBuf) {
        let events = self.folder.path().join("events");
        fs::create_dir(&events).unwrap();
        let script = self.folder.path().join("script");
        let path = std::env::var("PATH").unwrap();
        let text = format!(
            "#!/bin/sh\nPATH={path}:/sbin:/usr/sbin\n{commands}\nenv >{0}/new\nmv {0}/new {0}/{event}\n",
            events.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        (script, events)
    }

    fn state(&mut self) -> State {
        match self.connection.request(Request::Inspect, None).unwrap().0 {
            Ok(Reply::State(state)) => *state,
            other => panic!("{other:?}"),
        }
    }

    /// The gateway has answered everything that the client sent.
    fn expect_no_dhcp_drops(&mut self) {
        let mut drops = self.state().drops;
        drops.retain(|reason, _| reason.contains("dhcp"));
        assert_eq!(drops, BTreeMap::new());
    }
}

fn ip(arguments: &[&str]) -> String {
    run(Command::new(peer("ip")).args(arguments))
}

/// Waits for an event of a client; returns the variables that came with it.
fn event(events: &Path, name: &str) -> BTreeMap<String, String> {
    let file = events.join(name);
    let text = wait_for(&format!("event {name}"), LONG, || fs::read_to_string(&file).ok());
    fs::remove_file(&file).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn ping_gateway() {
    let gateway = config().gateway4().to_string();
    run(Command::new(peer("ping")).args(["-c", "1", "-W", "10", &gateway]));
}

fn busybox_leases_renews_and_releases(guest: &mut Guest) {
    let (script, events) = guest.script(
        "$1",
        "test -z \"$ip\" || ip address replace $ip/$mask broadcast $broadcast dev $interface",
    );
    let mut client = Command::new(peer("udhcpc"));
    client.args(["-f", "-R", "-i", TAP, "-s"]).arg(script);
    client.args(["-O", "mtu", "-O", "search", "-O", "broadcast"]);
    let client = Background::start(&mut client);
    let bound = event(&events, "bound");
    let wanted = [
        ("ip", "192.168.127.19"),
        ("subnet", "255.255.255.0"),
        ("mask", "24"),
        ("broadcast", "192.168.127.255"),
        ("router", "192.168.127.1"),
        ("dns", "192.168.127.1"),
        ("domain", "lab.lan"),
        ("search", "lab.lan"),
        ("hostname", "web-1"),
        ("mtu", "1400"),
        ("lease", "3600"),
        ("serverid", "192.168.127.1"),
    ];
    for (name, value) in wanted {
        assert_eq!(bound.get(name).map(String::as_str), Some(value), "{name} in {bound:?}");
    }
    ping_gateway();
    client.signal("USR1");
    assert_eq!(event(&events, "renew")["ip"], "192.168.127.19");
    client.signal("USR2");
    event(&events, "deconfig");
    guest.expect_no_dhcp_drops();
}

/// Starts ISC's client in the foreground, for one address.
fn dhclient(guest: &Guest, version: &str, script: &Path) -> Background {
    let file = |name: &str| guest.folder.path().join(name);
    let configuration = file("dhclient.conf");
    let text = "request subnet-mask, broadcast-address, routers, domain-name, domain-search,\n\
                domain-name-servers, host-name, interface-mtu, dhcp6.name-servers,\n\
                dhcp6.domain-search;\n";
    fs::write(&configuration, text).unwrap();
    let mut client = Command::new(peer("dhclient"));
    client.args([version, "-d", "-1", "-cf"]).arg(configuration);
    client.arg("-sf").arg(script).arg("-lf").arg(file("leases")).arg("-pf").arg(file("pid"));
    Background::start(client.arg(TAP))
}

fn dhclient_leases_ipv4(guest: &mut Guest) {
    let (script, events) = guest.script("$reason", "");
    let _client = dhclient(guest, "-4", &script);
    let bound = event(&events, "BOUND");
    let wanted = [
        ("new_ip_address", "192.168.127.19"),
        ("new_subnet_mask", "255.255.255.0"),
        ("new_routers", "192.168.127.1"),
        ("new_domain_name_servers", "192.168.127.1"),
        ("new_domain_name", "lab.lan"),
        ("new_domain_search", "lab.lan."),
        ("new_interface_mtu", "1400"),
        ("new_dhcp_lease_time", "3600"),
        ("new_dhcp_renewal_time", "1800"),
        ("new_dhcp_rebinding_time", "3150"),
    ];
    for (name, value) in wanted {
        assert_eq!(bound.get(name).map(String::as_str), Some(value), "{name} in {bound:?}");
    }
    guest.expect_no_dhcp_drops();
}

fn dhclient_leases_ipv6(guest: &mut Guest) {
    // The client speaks from its link-local address, which must be known to be its own.
    wait_for("a link-local address", LONG, || {
        let addresses = ip(&["-6", "address", "show", "dev", TAP, "scope", "link"]);
        (addresses.contains("fe80::") && !addresses.contains("tentative")).then_some(())
    });
    let (script, events) = guest.script("$reason", "");
    let _client = dhclient(guest, "-6", &script);
    let bound = event(&events, "BOUND6");
    let gateway = config().gateway6().to_string();
    let wanted = [
        ("new_ip6_address", guest.plugged.address6.to_string()),
        ("new_dhcp6_name_servers", gateway),
        ("new_dhcp6_domain_search", "lab.lan.".into()),
        ("new_max_life", "3600".into()),
    ];
    for (name, value) in wanted {
        assert_eq!(bound.get(name), Some(&value), "{name} in {bound:?}");
    }
    guest.expect_no_dhcp_drops();
}

fn the_kernel_learns_its_router(_: &mut Guest) {
    let gateway = config().gateway_link_local();
    let route = wait_for("a default route", LONG, || {
        let routes = ip(&["-6", "route", "show", "default", "dev", TAP]);
        (!routes.is_empty()).then_some(routes)
    });
    assert!(route.contains(&format!("via {gateway} ")) && route.contains("proto ra"), "{route}");
    assert!(ip(&["-6", "route", "show", "dev", TAP]).contains("fd00:1:2:3::/64 proto kernel"));
    let mtu = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{TAP}/mtu")).unwrap();
    assert_eq!(mtu.trim(), "1400");
    // Addresses are the network's to give.
    let addresses = ip(&["-6", "address", "show", "dev", TAP, "scope", "global"]);
    assert_eq!(addresses.trim(), "");

    let told = run(Command::new(peer("rdisc6")).args(["-1", "-r", "10", TAP]));
    let told: BTreeMap<&str, &str> = told
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    let resolver: Ipv6Addr = config().gateway6();
    for (name, value) in [
        ("Stateful address conf.", "Yes"),
        ("Stateful other conf.", "Yes"),
        ("Router lifetime", "1800 (0x00000708) seconds"),
        ("Prefix", "fd00:1:2:3::/64"),
        ("On-link", "Yes"),
        ("Autonomous address conf.", "No"),
        ("MTU", "1400 bytes (valid)"),
        ("Recursive DNS server", &resolver.to_string()),
        ("DNS search list", "lab.lan"),
    ] {
        assert_eq!(told.get(name), Some(&value), "{name} in {told:#?}");
    }
}
