//! Networks apart from yards: what a command line says of one, and those that run.
//!
//! A network is made by the first who joins it and goes with the last, unless it was made to stay
//! ([`create`]).

use std::io::{self, PipeReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use netyard_engine::capture::Filter;
use netyard_engine::client::Connection;
use netyard_engine::config::{Bridge, DnsSplit, Mode, Uplink};
use netyard_engine::control::{FlowState, Opener, Reply, Request, State};
use netyard_engine::policy::Protocol;
use netyard_engine::policy::rules::Rules;
use netyard_engine::process::{self, JoinError};
use netyard_sys::wait;
use netyard_wire::pcapng;
use serde::Serialize;

use crate::api::NetworkStatus;
use crate::error::{ErrorKind, YardError};
use crate::file;
use crate::model::{MAX_LABEL, NetworkSpec};
use crate::runtime::Runtime;

/// The bridge of `run -b` that names none, and its network.
const BRIDGE: &str = "br0";

/// Length of the prefix around an address that comes without one.
const PREFIX_LEN: u8 = 24;

/// What a command line says of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkOptions {
    /// Its name.
    pub name: Option<String>,
    /// Bridge mode, with what is said of the bridge.
    pub bridge: Option<Bridge>,
    /// Its IPv4 prefix. In bridge mode an address with a prefix is the gateway's.
    pub subnet: Option<Ipv4Net>,
    /// Its IPv6 prefix.
    pub subnet6: Option<Ipv6Net>,
    /// The gateway's address.
    pub gateway: Option<Ipv4Addr>,
    /// Largest IP packet, bytes.
    pub mtu: Option<u16>,
    /// Who is asked for names outside the network, in place of the host's resolvers.
    pub resolvers: Vec<SocketAddr>,
    /// The addresses of a guest, from which the prefixes follow if none is given.
    pub guest: (Option<Ipv4Addr>, Option<Ipv6Addr>),
    /// Length of the prefix around the guest's address.
    pub prefix_len: Option<u8>,
    /// Host services that guests may reach.
    pub host: Vec<SocketAddr>,
    /// Where traffic that leaves goes.
    pub uplink: Uplink,
    /// What may be reached outside by who is plugged in with it.
    pub rules: Rules,
}

impl NetworkOptions {
    /// The network; its name is `private` for people and `id` among all networks if it has none
    /// and is not on a bridge.
    ///
    /// # Errors
    /// What is said makes no sense.
    pub(crate) fn spec(&self, private: &str, id: &str) -> Result<NetworkSpec, YardError> {
        let mut bridge = self.bridge.clone();
        let mut network = match (&self.name, &mut bridge) {
            (Some(name), _) => NetworkSpec::new(name, name),
            // Whoever is on the same bridge is on the same network.
            (None, Some(bridge)) => {
                let bridge = bridge.name.get_or_insert_with(|| BRIDGE.to_owned());
                let name = fit_label(bridge);
                if !is_label(&name) {
                    let found = format!("{bridge:?} has no letters for one");
                    return Err(wrong("the bridge's name", found).next("name it with --network"));
                }
                NetworkSpec::new(&name, &name)
            }
            (None, None) => NetworkSpec::new(private, id),
        };
        if !is_label(&network.name) {
            let found =
                format!("{} is no name: a-z, 0-9 and - inside, {MAX_LABEL} at most", network.name);
            return Err(wrong("this name", found));
        }
        let is_bridge = bridge.is_some();
        network.mode = bridge.map_or(Mode::User, Mode::Bridge);
        network.host.clone_from(&self.host);
        network.uplink.clone_from(&self.uplink);
        network.rules.clone_from(&self.rules);
        match &self.uplink {
            Uplink::Routed | Uplink::Card(_) if !is_bridge => {
                let found = "it needs bridge mode".to_owned();
                return Err(wrong(&format!("uplink {}", self.uplink), found)
                    .next("give -b, or the uplink nat or none"));
            }
            // The card's own network has somebody for that.
            Uplink::Card(_) => network.dhcp = None,
            _ => {}
        }
        let around = |address: Ipv4Addr| {
            let len = self.prefix_len.unwrap_or(PREFIX_LEN);
            Ipv4Net::new(address, len).map_err(|_| wrong("this mask", format!("/{len}")))
        };
        network.gateway = self.gateway;
        match (self.subnet, self.guest.0) {
            (Some(subnet), _) => {
                network.subnet = subnet.trunc();
                if is_bridge && self.gateway.is_none() && subnet.addr() != subnet.network() {
                    network.gateway = Some(subnet.addr());
                }
            }
            (None, Some(guest)) if is_bridge || self.prefix_len.is_some() => {
                network.subnet = around(guest)?.trunc();
            }
            (None, None) if is_bridge && self.gateway.is_some() => {
                network.subnet = around(network.config().gateway4())?.trunc();
            }
            _ => {}
        }
        if let Some(mtu) = self.mtu {
            network.mtu = mtu;
            if let Mode::Bridge(bridge) = &mut network.mode {
                bridge.mtu = Some(mtu);
            }
        }
        if let Some(subnet) = self.subnet6 {
            network.subnet6 = subnet;
        } else if let Some(guest) = self.guest.1 {
            let subnet = Ipv6Net::new(guest, 64).map(|net| net.trunc());
            network.subnet6 = subnet.map_err(|_| wrong("this address", guest.to_string()))?;
        }
        // The first address is the gateway's unless somebody wants it.
        if network.gateway.is_none() && self.guest.0 == Some(network.config().gateway4()) {
            network.gateway = Some(network.config().nth4(2));
        }
        self.check_resolvers(&network)?;
        if !self.resolvers.is_empty() {
            let servers = self.resolvers.clone();
            network.dns.split = vec![DnsSplit { domain: ".".to_owned(), servers }];
        }
        let gateway = network.config().gateway4();
        if !network.subnet.contains(&gateway) {
            let found = format!("it is not in {}", network.subnet);
            return Err(wrong(&format!("the gateway {gateway}"), found));
        }
        Ok(network)
    }

    /// What a network in user mode asks goes by the host, which has no way into it.
    fn check_resolvers(&self, network: &NetworkSpec) -> Result<(), YardError> {
        if self.resolvers.len() > file::MAX_SERVERS {
            let found = format!("at most {} are asked", file::MAX_SERVERS);
            return Err(wrong("these resolvers", found));
        }
        let inside = |server: &&SocketAddr| match server.ip() {
            IpAddr::V4(address) => network.subnet.contains(&address),
            IpAddr::V6(address) => network.subnet6.contains(&address),
        };
        match self.resolvers.iter().find(inside) {
            Some(server) if !network.is_bridge() => {
                let found = "it is in the network itself: in user mode nobody is asked there";
                Err(wrong(&format!("the resolver {server}"), found.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// What a command line says makes no sense.
fn wrong(what: &str, found: String) -> YardError {
    YardError::new(ErrorKind::Input, format!("make a network with {what}"), found)
}

/// Whether a name can be a DNS label (RFC 1123 section 2.1), in lower case.
pub(crate) fn is_label(name: &str) -> bool {
    let fits = (1..=MAX_LABEL).contains(&name.len());
    let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    fits && name.bytes().all(known) && !name.starts_with('-') && !name.ends_with('-')
}

/// The text as a label: in small letters, everything else as single dashes. Nothing is left of some.
pub(crate) fn fit_label(text: &str) -> String {
    let fit = text.to_ascii_lowercase();
    let words = fit.split(|letter: char| !letter.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

/// Makes a network that stays until it is removed.
///
/// # Errors
/// There is one of that name, or it cannot be made.
pub fn create(options: &NetworkOptions) -> Result<NetworkStatus, YardError> {
    let mut options = options.clone();
    if options.name.is_none() {
        options.bridge.get_or_insert_default();
    }
    let spec = options.spec(BRIDGE, BRIDGE)?;
    let runtime = Runtime::open()?;
    let folder = runtime.network(&spec.global);
    let wanted = || format!("create network {}", spec.name);
    if process::find(&folder).is_ok() {
        return Err(YardError::new(ErrorKind::Conflict, wanted(), "there is one of that name")
            .next(format!("see it with `netyard network inspect {}`", spec.name)));
    }
    let mut config = spec.config();
    config.permanent = true;
    let mut connection = process::join(&folder, &config, Path::new("/proc/self/exe"))
        .map_err(|error| join_failed(wanted(), &error))?;
    connection.hello(MEMBER).map_err(|error| YardError::io(wanted(), &error))?;
    let state = state(&mut connection, wanted)?;
    Ok(NetworkStatus { name: spec.name, state, problem: None })
}

/// Why a network cannot be joined.
pub(crate) fn join_failed(wanted: String, error: &JoinError) -> YardError {
    let kind = match error {
        JoinError::Refused(error) => return YardError::control(wanted, error),
        JoinError::Folder { source, .. } | JoinError::Start { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => ErrorKind::NotPermitted,
            _ => ErrorKind::System,
        },
        JoinError::Ended { .. } => ErrorKind::System,
    };
    YardError::new(kind, wanted, error.to_string())
}

/// Every network of this user that runs.
///
/// # Errors
/// The runtime folder cannot be used.
pub fn list() -> Result<Vec<NetworkStatus>, YardError> {
    let runtime = Runtime::open()?;
    let mut all = Vec::new();
    for name in runtime.networks() {
        match look(&runtime, &name) {
            Ok((_, state)) => all.push(NetworkStatus { name, state, problem: None }),
            Err(error) if error.kind == ErrorKind::Unknown => {}
            Err(error) => {
                let state = State::default();
                all.push(NetworkStatus { name, state, problem: Some(error.found) });
            }
        }
    }
    Ok(all)
}

/// One network that runs.
///
/// # Errors
/// There is none of that name.
pub fn inspect(name: &str) -> Result<NetworkStatus, YardError> {
    let (_, state) = look(&Runtime::open()?, name)?;
    Ok(NetworkStatus { name: name.to_owned(), state, problem: None })
}

/// What a network's policy says of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Whether it may go.
    pub allowed: bool,
    /// The rule that decides, by the name that it is counted by.
    pub rule: String,
    /// What it is about, for people.
    pub meaning: String,
}

/// Asks a network that runs whether a flow of one of its guests might leave.
///
/// # Errors
/// There is no such network or guest, or the network is on a bridge.
pub fn test_policy(
    name: &str,
    guest: &str,
    protocol: Protocol,
    to: SocketAddr,
) -> Result<Decided, YardError> {
    decided(name, Request::TestRules { guest: guest.to_owned(), protocol, to })
}

/// The same of a flow that somebody begins to a port of a guest.
///
/// # Errors
/// As [`test_policy`].
pub fn test_entry(
    name: &str,
    from: Opener,
    guest: &str,
    protocol: Protocol,
    port: u16,
) -> Result<Decided, YardError> {
    decided(name, Request::TestEntry { from, guest: guest.to_owned(), protocol, port })
}

fn decided(name: &str, request: Request) -> Result<Decided, YardError> {
    let wanted = || format!("test the policy of network {name}");
    let (mut connection, _) = look(&Runtime::open()?, name)?;
    match ask(&mut connection, request, None, wanted)? {
        Reply::Decided { allowed, rule, meaning } => Ok(Decided { allowed, rule, meaning }),
        _ => Err(strange(wanted())),
    }
}

/// One flow, and whose network's it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkFlow {
    /// The network.
    pub network: String,
    /// The flow.
    #[serde(flatten)]
    pub flow: FlowState,
}

/// The flows of a network in user mode, or those of all.
///
/// # Errors
/// There is none of that name, or it is in bridge mode.
pub fn flows(name: Option<&str>) -> Result<Vec<NetworkFlow>, YardError> {
    let runtime = Runtime::open()?;
    if let Some(name) = name {
        return flows_of(look(&runtime, name)?.0, name);
    }
    let mut all = Vec::new();
    for name in runtime.networks() {
        match look(&runtime, &name) {
            Ok((connection, state)) if state.interface.is_none() => {
                all.extend(flows_of(connection, &name)?);
            }
            Ok(_) => {}
            // It has gone since.
            Err(error) if error.kind == ErrorKind::Unknown => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn flows_of(mut connection: Connection, network: &str) -> Result<Vec<NetworkFlow>, YardError> {
    let wanted = || format!("list the flows of network {network}");
    match ask(&mut connection, Request::Flows, None, wanted)? {
        Reply::Flows(flows) => {
            let of = |flow| NetworkFlow { network: network.to_owned(), flow };
            Ok(flows.into_iter().map(of).collect())
        }
        _ => Err(strange(wanted())),
    }
}

/// The longest block of a capture: a super-frame with what is said about it, rounded up.
const MAX_BLOCK: usize = 128 * 1024;

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    /// Whose end is the capture's.
    _connection: Connection,
    packets: PipeReader,
    deadline: Option<Instant>,
}

impl Capture {
    /// Begins to capture what passes the plugs of a network in user mode, for so long.
    ///
    /// # Errors
    /// There is none of that name, it is in bridge mode, or too many look already.
    pub fn begin(name: &str, filter: Filter, limit: Option<Duration>) -> Result<Self, YardError> {
        let wanted = || format!("capture on network {name}");
        let (mut connection, _) = look(&Runtime::open()?, name)?;
        let (packets, to) = io::pipe().map_err(|error| YardError::io(wanted(), &error))?;
        match ask(&mut connection, Request::Capture(filter), Some(to.into()), wanted)? {
            Reply::Done => {}
            _ => return Err(strange(wanted())),
        }
        // Beyond the end of the clock there is none.
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        Ok(Self { _connection: connection, packets, deadline })
    }

    /// The next block of the file, and whether it is a packet; `None`: time is up, or the network has gone.
    ///
    /// # Errors
    /// What the kernel said; `InvalidData`: the network does not speak our language.
    pub fn next_block(&mut self) -> io::Result<Option<(bool, Vec<u8>)>> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || wait::readable([self.packets.as_fd()], Some(left))? == [false] {
                return Ok(None);
            }
        }
        let mut header = [0; 8];
        match self.packets.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let header_of = pcapng::header(header).filter(|(_, len)| *len <= MAX_BLOCK);
        let (packet, len) = header_of.ok_or(io::ErrorKind::InvalidData)?;
        let mut block = header.to_vec();
        block.resize(len, 0);
        let rest = block.get_mut(header.len()..).unwrap_or_default();
        self.packets.read_exact(rest)?;
        Ok(Some((packet, block)))
    }
}

/// Removes a network that was made to stay. One that somebody is on stays until they have left.
///
/// # Errors
/// There is none of that name, or somebody is on it.
pub fn remove(name: &str) -> Result<(), YardError> {
    let (mut connection, state) = look(&Runtime::open()?, name)?;
    let wanted = || format!("remove network {name}");
    if !state.members.is_empty() {
        let found = format!("{} is on it", state.members.join(", "));
        return Err(YardError::new(ErrorKind::Conflict, wanted(), found)
            .next("stop what is on it first; a network that nobody made to stay goes then"));
    }
    let request = Request::SetPermanent { permanent: false };
    let Reply::Done = ask(&mut connection, request, None, wanted)? else {
        return Err(strange(wanted()));
    };
    let pid = state.pid;
    drop(connection);
    // It takes back what it has made on the host: afterwards that is so.
    if let Ok(process) = netyard_sys::process::PidFd::open(pid) {
        let ended = wait::readable([process.as_fd()], Some(GOING));
        if !matches!(ended, Ok([true])) {
            tracing::warn!(network = name, "its process takes long to end");
        }
    }
    Ok(())
}

/// The name that these verbs join by.
const MEMBER: &str = "netyard network";

/// How long a network process may take to go.
const GOING: Duration = Duration::from_secs(10);

/// Joins a network that runs, and what it says of itself.
fn look(runtime: &Runtime, name: &str) -> Result<(Connection, State), YardError> {
    let wanted = || format!("find network {name}");
    let mut connection =
        process::find(&runtime.network(name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let found = "no network of that name runs";
                let error = YardError::new(ErrorKind::Unknown, wanted(), found);
                error.next("see those that do with `netyard network ls`")
            }
            _ => YardError::io(wanted(), &error),
        })?;
    connection.hello(MEMBER).map_err(|error| YardError::io(wanted(), &error))?;
    let state = state(&mut connection, wanted)?;
    Ok((connection, state))
}

fn state(connection: &mut Connection, wanted: impl Fn() -> String) -> Result<State, YardError> {
    match ask(connection, Request::Inspect, None, &wanted)? {
        Reply::State(mut state) => {
            // We only look.
            state.members.retain(|member| !member.starts_with(MEMBER));
            Ok(*state)
        }
        _ => Err(strange(wanted())),
    }
}

fn ask(
    connection: &mut Connection,
    request: Request,
    descriptor: Option<OwnedFd>,
    wanted: impl Fn() -> String,
) -> Result<Reply, YardError> {
    match connection.request(request, descriptor) {
        Ok((Ok(reply), _)) => Ok(reply),
        Ok((Err(error), _)) => Err(YardError::control(wanted(), &error)),
        Err(error) => Err(YardError::io(wanted(), &error)),
    }
}

fn strange(wanted: String) -> YardError {
    YardError::new(ErrorKind::Peer, wanted, "it says something else")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridged() -> NetworkOptions {
        NetworkOptions { bridge: Some(Bridge::default()), ..Default::default() }
    }

    #[test]
    fn two_who_name_one_bridge_or_none_are_on_one_network() {
        let guest =
            |last| NetworkOptions { guest: (Some([192, 168, 42, last].into()), None), ..bridged() };
        let [one, other] = [19, 20].map(|last| guest(last).spec("lan", "run-1").unwrap());
        assert_eq!(one, other);
        assert_eq!(
            (one.global.as_str(), one.subnet.to_string()),
            ("br0", "192.168.42.0/24".into())
        );
        let on = |name| NetworkOptions {
            bridge: Some(Bridge { name: Some(String::from(name)), ..Bridge::default() }),
            ..Default::default()
        };
        for (bridge, network) in
            [("br7", "br7"), ("colour_bridge", "colour-bridge"), ("Br0", "br0")]
        {
            let spec = on(bridge).spec("lan", "run-1").unwrap();
            assert_eq!((spec.global.as_str(), &spec.zone), (network, &spec.name));
            let Mode::Bridge(named) = spec.mode else { panic!("{bridge}") };
            assert_eq!(named.name.as_deref(), Some(bridge), "the bridge keeps its name");
        }
        let error = on("__").spec("lan", "run-1").unwrap_err();
        assert!(error.next.iter().any(|next| next.contains("--network")), "{error}");
        let user = NetworkOptions::default().spec("lan", "run-1").unwrap();
        assert_eq!((user.name.as_str(), user.global.as_str()), ("lan", "run-1"));
        assert!(!user.is_bridge());
    }

    #[test]
    fn names_are_made_fit() {
        for (text, label) in [
            ("hello", "hello"),
            ("My Project", "my-project"),
            ("a__b..c", "a-b-c"),
            ("-x-", "x"),
            (".hidden", "hidden"),
            ("3rd", "3rd"),
            ("Größe", "gr-e"),
            ("...", ""),
        ] {
            assert_eq!(fit_label(text), label, "{text}");
        }
    }

    #[test]
    fn the_gateway_is_named_or_the_first_that_is_free() {
        let spec = |options: NetworkOptions| options.spec("lan", "run-1").unwrap().config();
        let whole = NetworkOptions { subnet: "192.168.33.7/25".parse().ok(), ..bridged() };
        let config = spec(whole);
        assert_eq!(config.subnet4, "192.168.33.0/25".parse().unwrap());
        assert_eq!(config.gateway4(), Ipv4Addr::new(192, 168, 33, 7));
        let first = NetworkOptions { guest: (Some([10, 0, 0, 1].into()), None), ..bridged() };
        assert_eq!(spec(first).gateway4(), Ipv4Addr::new(10, 0, 0, 2));
        let wide = NetworkOptions {
            guest: (Some([10, 1, 2, 3].into()), "fd00::7:1".parse().ok()),
            prefix_len: Some(16),
            ..bridged()
        };
        let config = spec(wide);
        assert_eq!(config.subnet4, "10.1.0.0/16".parse().unwrap());
        assert_eq!(config.subnet6, "fd00::/64".parse().unwrap());
        let alone = NetworkOptions { gateway: Some([10, 7, 0, 66].into()), ..bridged() };
        assert_eq!(spec(alone).subnet4, "10.7.0.0/24".parse().unwrap());
    }

    #[test]
    fn mtu_prefix_and_resolvers_are_as_they_are_given() {
        let wanted = NetworkOptions {
            mtu: Some(9000),
            subnet6: "fd00:9::/64".parse().ok(),
            resolvers: vec!["192.0.2.53:53".parse().unwrap()],
            ..Default::default()
        };
        let config = wanted.spec("lan", "run-1").unwrap().config();
        assert_eq!((config.mtu, config.subnet6), (9000, "fd00:9::/64".parse().unwrap()));
        let [split] = config.dns.split.as_slice() else { panic!("{:?}", config.dns) };
        assert_eq!((split.domain.as_str(), &split.servers), (".", &wanted.resolvers));
        let on_bridge = NetworkOptions { mtu: Some(9000), ..bridged() };
        let Mode::Bridge(bridge) = on_bridge.spec("lan", "run-1").unwrap().mode else { panic!() };
        assert_eq!(bridge.mtu, Some(9000));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            NetworkOptions {
                resolvers: vec!["192.168.127.7:53".parse().unwrap()],
                ..Default::default()
            },
            NetworkOptions {
                resolvers: vec!["192.0.2.53:53".parse().unwrap(); 5],
                ..Default::default()
            },
            NetworkOptions { name: Some("a.b".into()), ..Default::default() },
            NetworkOptions { uplink: Uplink::Routed, ..Default::default() },
            NetworkOptions {
                prefix_len: Some(40),
                guest: (Some([10; 4].into()), None),
                ..bridged()
            },
            NetworkOptions {
                subnet: "10.0.0.0/24".parse().ok(),
                gateway: Some([10, 0, 1, 1].into()),
                ..bridged()
            },
        ] {
            assert_eq!(wrong.spec("lan", "id").unwrap_err().kind, ErrorKind::Input, "{wrong:?}");
        }
    }
}
