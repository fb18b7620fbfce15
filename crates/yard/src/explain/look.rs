//! Where the facts come from: the keeper, the network processes, the kernel.
//!
//! Into an instance's namespaces goes a process of its own ([`main`]): whoever has entered a user
//! namespace cannot leave it, and a process with threads cannot enter one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use netyard_link::BridgeFilter;
use netyard_link::netns::Netns;
use netyard_link::nft::Nftables;
use netyard_link::nft::trace::Ruleset;
use netyard_link::rtnetlink::{MAIN_TABLE, RouteKind, Rtnetlink};
use netyard_sys::namespace::{self, Namespaces};
use netyard_sys::process::{self, PidFd};

use super::facts::{Card, Facts, InstanceFacts, Namespace, Way};
use crate::api::{InstanceStatus, NetworkStatus, YardStatus};
use crate::client::Client;
use crate::error::{ErrorKind, YardError};
use crate::networks;

/// The verb by which netyard starts itself to look into an instance; its arguments are the process
/// ids of the instance's init and of its keeper.
pub const VERB: &str = "instance-look";

/// The user who may look into everything.
const ROOT: u32 = 0;

/// Where programs learn whom to ask for names, resolv.conf(5).
const RESOLVER: &str = "/etc/resolv.conf";

/// How much of it is read, bytes: an instance may write there what it likes.
const RESOLVER_LEN: u64 = 64 * 1024;

/// `O_NONBLOCK` of open(2): a FIFO that nobody writes to is not waited for.
const NO_WAIT: i32 = 0o4000;

/// Looks at a yard that runs.
///
/// # Errors
/// The keeper cannot be reached; the machine's own links cannot be read.
pub fn yard(client: &Client) -> Result<Facts, YardError> {
    let YardStatus { name, keeper_pid, instances, services, networks, .. } = client.yard()?;
    let instances = instances.into_iter().map(|status| instance(status, keeper_pid)).collect();
    let mut facts = network_facts(networks)?;
    facts.yard = Some(name);
    facts.instances = instances;
    facts.services = services;
    Ok(facts)
}

/// Looks at a network, by its own name or that of its bridge.
///
/// # Errors
/// None runs under that name.
pub fn network(name: &str) -> Result<Facts, YardError> {
    let all = networks::list()?;
    let meant = |network: &NetworkStatus| {
        network.name == name || network.state.interface.as_deref() == Some(name)
    };
    match all.into_iter().find(meant) {
        Some(network) => network_facts(vec![network]),
        None => Err(YardError::new(
            ErrorKind::Unknown,
            format!("explain {name}"),
            "no network and no bridge of a network has that name",
        )
        .next("see the networks that run with `netyard network ls`")),
    }
}

fn network_facts(networks: Vec<NetworkStatus>) -> Result<Facts, YardError> {
    let failed = |error| YardError::io("look at this machine's links", &error);
    let bridges = networks.iter().any(|network| network.state.interface.is_some());
    let rules = match bridges {
        true => Nftables::open()
            .and_then(|mut kernel| Ruleset::read(&mut kernel))
            .map_err(|error| error.to_string()),
        false => Err("no network of it is on a bridge".into()),
    };
    let known = Rtnetlink::open().and_then(|mut kernel| kernel.forwarding(None));
    let known = known.unwrap_or_default().into_iter().map(|entry| (entry.mac, entry.link.0));
    Ok(Facts {
        known: known.collect(),
        yard: None,
        instances: Vec::new(),
        services: Vec::new(),
        networks,
        host: here(std::process::id()).map_err(failed)?,
        rules,
        filter: BridgeFilter::current().unwrap_or_default(),
    })
}

fn instance(status: InstanceStatus, keeper: u32) -> InstanceFacts {
    let inside = match (&status.vm, status.init_pid) {
        _ if status.external.is_some() => Err("somebody else starts it".into()),
        _ if status.own_stack => Err("its program has a stack of its own".into()),
        (Some(_), _) => Err("it is a virtual machine: its links are its own kernel's".into()),
        (None, None) => Err(format!("it is {}", status.state)),
        (None, Some(pid)) => inside(pid, keeper),
    };
    InstanceFacts { status, inside }
}

/// Has a process of its own look into an instance.
fn inside(pid: u32, keeper: u32) -> Result<Namespace, String> {
    let look = Command::new("/proc/self/exe")
        .args([VERB, &pid.to_string(), &keeper.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !look.status.success() {
        return Err(String::from_utf8_lossy(&look.stderr).trim().to_owned());
    }
    serde_json::from_slice(&look.stdout).map_err(|error| error.to_string())
}

/// The main of [`VERB`]: prints a [`Namespace`] as JSON. The process must have one thread.
#[must_use]
pub fn main() -> ExitCode {
    let seen = || {
        let number = |at| std::env::args().nth(at).and_then(|number| number.parse().ok());
        let (pid, keeper) = number(2).zip(number(3)).ok_or(io::ErrorKind::InvalidInput)?;
        let init = held(pid, keeper)?;
        // The instance's own /proc does not show this process, so its files come last.
        namespace::enter(init.as_fd(), Namespaces::USER | Namespaces::NETWORK)?;
        let mut seen = here(pid)?;
        namespace::enter(init.as_fd(), Namespaces::MOUNT)?;
        (seen.resolvers, seen.search) = resolver(Path::new(RESOLVER));
        let text = serde_json::to_vec(&seen)?;
        io::stdout().lock().write_all(&text)
    };
    match seen() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "its namespaces cannot be entered: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Holds the init of one of the caller's instances. Whoever may execute this program can ask for
/// any process, and the program's file may have capabilities: only who started it counts.
fn held(pid: u32, keeper: u32) -> io::Result<PidFd> {
    let init = PidFd::open(pid)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    // Until it is reaped nobody else has its number: what was read is of the process that is held.
    if init.pid()? != Some(pid) {
        return Err(io::Error::other("it has just ended"));
    }
    let caller = process::real_user();
    if caller != ROOT && !is_of(&status, caller) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("process {pid} is another user's"),
        ));
    }
    if field(&status, "PPid").ne([keeper]) {
        return Err(io::Error::other(format!("process {pid} is not of keeper {keeper}")));
    }
    Ok(init)
}

/// Whether a process with this status, proc_pid_status(5), is a user's alone: real, effective,
/// saved and file system user id.
fn is_of(status: &str, user: u32) -> bool {
    field(status, "Uid").eq([user; 4])
}

/// The numbers in a line of a status; none where there is no such line.
fn field<'a>(status: &'a str, name: &str) -> impl Iterator<Item = u32> + use<'a> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().map_while(|number| number.parse().ok())
}

/// The network namespace of the calling thread, which is that of process `pid`.
fn here(pid: u32) -> io::Result<Namespace> {
    let look = || {
        let mut kernel = Rtnetlink::open()?;
        let number = Netns::current()?.id().number();
        Ok::<_, netyard_link::Error>((
            number,
            kernel.links()?,
            kernel.addresses(None)?,
            kernel.routes(None)?,
        ))
    };
    let (inode, links, addresses, routes) = look().map_err(io::Error::other)?;
    let name = |index| links.iter().find(|link| link.index == index).map(|it| it.name.clone());
    let of = |index| addresses.iter().filter(move |it| it.link == index).map(|it| it.net);
    let routes = routes.iter().filter(|route| {
        // Multicast is not asked for here.
        route.table == MAIN_TABLE && !route.destination.addr().is_multicast()
    });
    let ways = routes.map(|route| Way {
        destination: route.destination,
        gateway: route.gateway,
        link: route.link.and_then(name),
        source: route.source,
        metric: route.metric.unwrap_or_default(),
        closed: route.kind != RouteKind::Unicast,
    });
    let (resolvers, search) = resolver(Path::new(RESOLVER));
    Ok(Namespace {
        inode,
        pid,
        routes: ways.collect(),
        resolvers,
        search,
        links: links
            .iter()
            .map(|link| Card {
                name: link.name.clone(),
                index: link.index.0,
                kind: link.kind.clone(),
                mac: link.mac,
                mtu: link.mtu,
                up: link.up,
                bridge: link.master.map(|bridge| bridge.0),
                peer: link.peer.map(|peer| peer.0),
                alias: link.alias.clone(),
                addresses: of(link.index).collect(),
            })
            .collect(),
    })
}

/// Name servers and search list of a file in the format of resolv.conf(5).
fn resolver(file: &Path) -> (Vec<std::net::IpAddr>, Vec<String>) {
    let text = beginning(file).unwrap_or_default();
    let words = |key: &'static str| {
        let lines = text.lines().map(str::split_whitespace);
        lines.filter_map(move |mut words| (words.next() == Some(key)).then_some(words)).flatten()
    };
    let servers = words("nameserver").filter_map(|address| address.parse().ok()).collect();
    (servers, words("search").map(str::to_owned).collect())
}

/// The whole lines among the first [`RESOLVER_LEN`] bytes of a regular file; of nothing else.
fn beginning(file: &Path) -> io::Result<String> {
    let file = File::options().read(true).custom_flags(NO_WAIT).open(file)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(RESOLVER_LEN + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > RESOLVER_LEN) {
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or_default();
        bytes.truncate(whole);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tUid:\nPPid:\t41\nUid:\t1000\t1000\t1000\t1000\n";

    #[test]
    fn a_process_is_a_users_by_all_its_ids() {
        assert!(is_of(STATUS, 1000) && !is_of(STATUS, 1001));
        for ids in ["0\t1000\t1000\t1000", "1000\t0\t0\t0", "1000\t1000\t0\t1000", "1000", ""] {
            assert!(!is_of(&format!("Uid:\t{ids}\n"), 1000), "{ids}");
        }
        assert!(!is_of("", 0));
    }

    #[test]
    fn of_a_resolver_file_only_the_beginning_of_a_regular_one_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for nothing in [fifo.as_path(), folder.path(), Path::new("/dev/zero")] {
            assert_eq!(resolver(nothing), Default::default(), "{}", nothing.display());
        }
        let path = folder.path().join("resolv.conf");
        fs::write(&path, b"nameserver 192.0.2.1\nsearch \xff\nnameserver 2001:db8::1").unwrap();
        let servers: Vec<std::net::IpAddr> =
            ["192.0.2.1", "2001:db8::1"].map(|it| it.parse().unwrap()).into();
        assert_eq!(resolver(&path).0, servers);
        // What is read ends in the middle of the last line, in what is an address by itself.
        let (first, last) = ("nameserver 192.0.2.1\n#", "\nnameserver 192.0.2.12");
        let room = usize::try_from(RESOLVER_LEN).unwrap() + 1 - first.len() - last.len();
        fs::write(&path, format!("{first}{:room$}{last}3\n", "")).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(resolver(&path).0, servers[..1]);
    }

    #[test]
    fn children_of_others_are_not_held() {
        let own = std::process::id();
        let refused = held(own, own).unwrap_err().to_string();
        assert!(refused.contains("is not of keeper"), "{refused}");
    }
}
