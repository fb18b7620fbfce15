//! What init sets up inside the new namespaces before the program starts.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use netyard_link as link;
use netyard_link::rtnetlink::{LinkChange, Route, Rtnetlink};
use netyard_sys::{mount, namespace};

use super::message::{Configuration, Failure, PlugConfiguration, Step};

/// Frames that wait for the network process before the next is dropped. With segmentation
/// offload a frame has up to 64 KiB, so this is far more than a window; without, it holds one
/// window of 1,500-byte packets.
const QUEUE_LENGTH: u32 = 4096;

/// Sockets of the host's resolvers: a program that finds them would ask the host's resolver and
/// never see the network's names.
const HIDDEN: [&str; 2] = ["/run/systemd/resolve", "/run/nscd"];

/// Settings of the whole machine. They belong to user 0, whom root's instances have, and some of
/// them start programs outside.
const KERNEL_WIDE: [&str; 5] =
    ["/proc/sys", "/proc/sysrq-trigger", "/proc/bus", "/proc/fs", "/proc/irq"];

/// Name of the `number`th plug's link, from 0.
pub(crate) fn link_name(number: usize) -> String {
    format!("eth{number}")
}

/// Sets everything up. Returns what could not be done and can be lived without.
pub(super) fn apply(configuration: &Configuration) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    namespace::set_host_name(&configuration.host_name)
        .map_err(|error| Failure::new(Step::Namespaces, "set the host name", &error))?;
    mounts(configuration, &mut warnings)?;
    settings(configuration.plugs.len(), &mut warnings);
    links(&configuration.plugs)?;
    for path in KERNEL_WIDE.map(Path::new) {
        match mount::read_only(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warnings.push(format!("{} can be written to: {error}", path.display()));
            }
            _ => {}
        }
    }
    Ok(warnings)
}

fn mounts(configuration: &Configuration, warnings: &mut Vec<String>) -> Result<(), Failure> {
    mount::make_private()
        .map_err(|error| Failure::new(Step::Mounts, "make the mounts private", &error))?;
    if let Err(error) = mount::proc() {
        // In a container, parts of /proc are covered and the kernel keeps them so.
        warnings.push(format!("/proc shows the host's processes: {error}"));
    }
    for folder in HIDDEN.map(Path::new).into_iter().filter(|folder| folder.is_dir()) {
        mount::cover(folder).map_err(|error| {
            Failure::new(Step::Mounts, format!("hide {}", folder.display()), &error)
        })?;
    }
    let files =
        [(&configuration.resolv_conf, "/etc/resolv.conf"), (&configuration.hosts, "/etc/hosts")];
    for (source, target) in files {
        if let Err(error) = show(source, Path::new(target)) {
            warnings.push(format!("{target} is the host's: {error}"));
        }
    }
    // Those files are in it.
    let runtime = &configuration.runtime;
    mount::cover(runtime)
        .map_err(|error| Failure::new(Step::Mounts, format!("hide {}", runtime.display()), &error))
}

/// Shows `source` as the file `target`, which is often a link into a hidden folder.
fn show(source: &Path, target: &Path) -> io::Result<()> {
    let target = follow(target)?;
    if HIDDEN.iter().any(|folder| target.starts_with(folder)) {
        // The folder is an empty one in memory by now.
        OpenOptions::new().create(true).append(true).open(&target)?;
    }
    mount::bind(source, &target)
}

/// Where a file really is; its last step may lead to nothing.
fn follow(path: &Path) -> io::Result<PathBuf> {
    /// As many links in a row as the kernel follows.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        match fs::read_link(&path) {
            Ok(target) => path = folder.join(target),
            Err(_) => {
                let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
                return Ok(folder.canonicalize()?.join(name));
            }
        }
    }
    Err(io::ErrorKind::InvalidInput.into())
}

/// Has links that come from now on learn no addresses by themselves; [`settings`] says so if that
/// cannot be.
pub(super) fn learn_no_addresses() {
    for name in ["accept_ra", "accept_dad"] {
        for link in ["all", "default"] {
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{link}/{name}"), "0");
        }
    }
}

/// Kernel settings of the network namespace.
fn settings(plugs: usize, warnings: &mut Vec<String>) {
    let mut set = |name: &str, value: &str| {
        // A kernel without IPv6 has no such settings, and needs none.
        let path = Path::new("/proc/sys/net").join(name);
        if let Err(error) = fs::write(&path, value)
            && error.kind() != io::ErrorKind::NotFound
        {
            warnings.push(format!("{} is not {value}: {error}", path.display()));
        }
    };
    if let Some(groups) = own_groups() {
        set("ipv4/ping_group_range", &groups);
    }
    set("ipv4/ip_unprivileged_port_start", "0");
    // What is spliced connects from here to here: ports of connections that are over serve again after a second.
    set("ipv4/tcp_tw_reuse", "1");
    // Addresses and routes are given, never learned.
    for link in
        ["all".to_owned(), "default".to_owned()].into_iter().chain((0..plugs).map(link_name))
    {
        set(&format!("ipv6/conf/{link}/accept_ra"), "0");
        set(&format!("ipv6/conf/{link}/accept_dad"), "0");
    }
}

/// The first and last group id of this user namespace's first extent: who may send echo requests.
fn own_groups() -> Option<String> {
    let map = fs::read_to_string("/proc/self/gid_map").ok()?;
    let mut words = map.lines().next()?.split_whitespace();
    let first: u64 = words.next()?.parse().ok()?;
    let count: u64 = words.nth(1)?.parse().ok()?;
    Some(format!("{first} {}", first + count.checked_sub(1)?))
}

fn links(plugs: &[PlugConfiguration]) -> Result<(), Failure> {
    let mut kernel = Rtnetlink::open().map_err(|error| failed("open rtnetlink", &error))?;
    switch_on_loopback(&mut kernel)?;
    let mut plugs = plugs.iter().enumerate();
    plugs
        .try_for_each(|(number, plug)| one_link(&mut kernel, &link_name(number), number == 0, plug))
}

/// Sets the link of a plug up that its network has made anew.
pub(super) fn relink(number: usize, plug: &PlugConfiguration) -> Result<(), Failure> {
    let mut kernel = Rtnetlink::open().map_err(|error| failed("open rtnetlink", &error))?;
    one_link(&mut kernel, &link_name(number), number == 0, plug)
}

/// Switches `lo` on: by it the kernel reaches all addresses of the namespace itself.
fn switch_on_loopback(kernel: &mut Rtnetlink) -> Result<(), Failure> {
    let lo = kernel.index("lo");
    lo.and_then(|lo| kernel.change_link(lo, &LinkChange::new().up(true)))
        .map_err(|error| failed("switch lo on", &error))
}

/// Sets the link of a plug up in a network namespace that is not ours; the way out leads by it.
pub(super) fn foreign_link(name: &str, plug: &PlugConfiguration) -> Result<(), Failure> {
    // A kernel without IPv6 has no such settings, and who may not write them waits a second for addresses.
    for setting in ["accept_ra", "accept_dad"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), "0");
    }
    let mut kernel = Rtnetlink::open().map_err(|error| failed("open rtnetlink", &error))?;
    switch_on_loopback(&mut kernel)?;
    one_link(&mut kernel, name, true, plug)
}

/// Sets the link of a plug up. The first plug leads out; others lead to their own segments only.
fn one_link(
    kernel: &mut Rtnetlink,
    name: &str,
    leads_out: bool,
    plug: &PlugConfiguration,
) -> Result<(), Failure> {
    let step = |what: &str, error: link::Error| failed(&format!("{what} of {name}"), &error);
    let link = kernel.index(name).map_err(|error| step("the number", error))?;
    let (address4, prefix4) = plug.address4;
    let (address6, prefix6) = plug.address6;
    let change = LinkChange::new().mac(plug.mac).mtu(plug.mtu.into()).queue_length(QUEUE_LENGTH);
    kernel.change_link(link, &change.up(true)).map_err(|error| step("the settings", error))?;
    let net4 = IpNet::new(address4.into(), prefix4).map_err(|_| bad_prefix(name))?;
    let net6 = IpNet::new(address6.into(), prefix6).map_err(|_| bad_prefix(name))?;
    kernel.add_address(link, net4).map_err(|error| step("the IPv4 address", error))?;
    let ipv6 = ipv6_works(kernel.add_address(link, net6))
        .map_err(|error| step("the IPv6 address", error))?;
    if leads_out {
        let (gateway4, gateway6) = plug.gateway;
        kernel
            .add_route(&Route::default_via(gateway4.into(), link))
            .map_err(|error| step("the IPv4 default route", error))?;
        if ipv6 {
            kernel
                .add_route(&Route::default_via(gateway6.into(), link))
                .map_err(|error| step("the IPv6 default route", error))?;
        }
    }
    Ok(())
}

fn failed(what: &str, error: &link::Error) -> Failure {
    let (what, message) = (what.to_owned(), error.to_string());
    Failure { step: Step::Network, what, errno: error.errno(), message }
}

fn bad_prefix(link: &str) -> Failure {
    let error = io::Error::from(io::ErrorKind::InvalidInput);
    Failure::new(Step::Network, format!("the prefix of {link}"), &error)
}

/// Whether IPv6 can be used: a kernel without it refuses its addresses.
fn ipv6_works(added: link::Result<()>) -> link::Result<bool> {
    /// `EAFNOSUPPORT`, `EOPNOTSUPP`, and `EACCES` where IPv6 is switched off (`disable_ipv6`).
    const REFUSALS: [i32; 3] = [97, 95, 13];
    match added {
        Err(error) if error.errno().is_some_and(|code| REFUSALS.contains(&code)) => Ok(false),
        added => added.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_nothing_are_followed_to_where_they_lead() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("run")).unwrap();
        std::os::unix::fs::symlink("run/stub", root.join("middle")).unwrap();
        std::os::unix::fs::symlink(root.join("middle"), root.join("resolv.conf")).unwrap();
        assert_eq!(follow(&root.join("resolv.conf")).unwrap(), root.join("run/stub"));
        fs::write(root.join("hosts"), "").unwrap();
        assert_eq!(follow(&root.join("hosts")).unwrap(), root.join("hosts"));
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        assert!(follow(&root.join("loop")).is_err());
        assert!(follow(&root.join("none/file")).is_err());
    }
}
