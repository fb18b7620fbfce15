//! The verbs about hubs and peers: `hub`, `join`, `token`, `peers`.

pub(crate) mod flags;
mod view;

use std::fs;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ipnet::{IpNet, Ipv4Net};
use netyard_tunnel::admin::{
    BackupWanted, Client, PeerStatus, PinWanted, SubnetJudged, TokenWanted,
};
use netyard_tunnel::hub::NetworkOptions;
use netyard_tunnel::join::Endpoint;
use netyard_tunnel::message::ByUdp;
use netyard_tunnel::policy::Policy;
use netyard_tunnel::proxy::{NoProxy, Proxy};
use netyard_tunnel::{hub, peer};
use netyard_yard::error::{ErrorKind, YardError};
use netyard_yard::runtime::Runtime;
use netyard_yard::state::folder;
use serde_json::json;

use self::flags::{
    Hub, HubFlags, HubNetwork, HubPolicy, HubRole, HubVerb, Join, JoinSource, Judged, Lane, Named,
    NetworkAdd, NetworkFlags, NetworkRm, OnePeer, Peers, PeersPin, PeersRevoke, PeersVerb,
    PolicySet, RoleGrant, RoleRevoke, Token, TokenCreate, Which,
};
use crate::output::Output;
use crate::verbs::{show, watched};

/// Names the proxy on the way to the hub.
const PROXY: &str = "NETYARD_PROXY";

pub(crate) fn hub(Hub { verb, flags }: Hub, out: Output) -> Result<ExitCode, YardError> {
    match verb {
        Some(HubVerb::Status(which)) => {
            show(out, &client(&which)?.hub().map_err(YardError::from)?, view::hub)?;
        }
        Some(HubVerb::Network(verb)) => networks(verb, out)?,
        Some(HubVerb::Policy(verb)) => policy(verb, out)?,
        Some(HubVerb::Role(verb)) => roles(verb, out)?,
        Some(HubVerb::Audit(audit)) => {
            let deeds = client(&audit.which)?.audit(audit.most).map_err(YardError::from)?;
            show(out, deeds.as_slice(), view::audit)?;
        }
        Some(HubVerb::Backup(backup)) => {
            let file = absolute(&backup.file)?;
            let wanted = BackupWanted { file };
            let done = client(&backup.which)?.back_up(&wanted).map_err(YardError::from)?;
            show(out, &done, |done, _| format!("written to {}\n", done.file.display()))?;
        }
        None => run_hub(flags, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn policy(verb: HubPolicy, out: Output) -> Result<(), YardError> {
    match verb {
        HubPolicy::Show(which) => {
            let policy = client(&which)?.hub().map_err(YardError::from)?.policy;
            show(out, &policy, view::policy)
        }
        HubPolicy::Set(PolicySet { which, file }) => {
            let wanted = || format!("read the policy {}", file.display());
            let text = match file.as_os_str() == "-" {
                true => io::read_to_string(io::stdin()),
                false => fs::read_to_string(&file),
            };
            let text = text.map_err(|error| YardError::io(wanted(), &error))?;
            let policy: Policy = toml::from_str(&text)
                .map_err(|error| YardError::new(ErrorKind::Input, wanted(), error.to_string()))?;
            let set = client(&which)?.set_policy(Some(&policy)).map_err(YardError::from)?;
            show(out, &set, view::policy)
        }
        HubPolicy::Remove(which) => {
            let none = client(&which)?.set_policy(None).map_err(YardError::from)?;
            show(out, &none, view::policy)
        }
    }
}

fn run_hub(flags: HubFlags, out: Output) -> Result<(), YardError> {
    let tun = flags.device.tun;
    let network = network_options(hub::MAIN, flags.network, flags.shape, flags.zone, tun);
    let advertise = flags.advertise.map(|text| endpoint(&text, flags.listen.port())).transpose()?;
    let (runtime, ledger) = runtime(&format!(".hub-{}", flags.name))?;
    let options = hub::Options {
        socket: flags.socket.map(|file| absolute(&file)).transpose()?,
        advertise,
        network,
        runtime,
        ledger,
        listen: flags.listen,
        offload: !flags.device.no_offload,
        udp: !flags.no_udp,
        state: state(flags.state, &format!("hub-{}", flags.name))?,
        name: flags.name,
    };
    if flags.undo {
        hub::undo(&options).map_err(YardError::from)?;
        let undone = json!({ "undone": format!("hub-{}", options.name) });
        return show(out, &undone, |_, _| format!("nothing of the hub {} is left\n", options.name));
    }
    hub::run(options, |status| announce(out, status, view::hub)).map_err(YardError::from)
}

fn network_options(
    name: &str,
    network: Ipv4Net,
    shape: NetworkFlags,
    zone: String,
    tun: String,
) -> NetworkOptions {
    NetworkOptions {
        name: name.to_owned(),
        network,
        network6: shape.network6,
        addressing: shape.addressing,
        mtu: shape.mtu,
        queue_length: shape.queue_length,
        isolate: shape.isolate,
        exit: shape.exit,
        zone: zone.trim_end_matches('.').to_owned(),
        dns: !shape.no_dns,
        tun,
    }
}

fn networks(verb: HubNetwork, out: Output) -> Result<(), YardError> {
    let hub = |of: Named| client(&Which { of, network: None });
    match verb {
        HubNetwork::Ls(of) => {
            let networks = hub(of)?.networks().map_err(YardError::from)?;
            show(out, networks.as_slice(), view::networks)
        }
        HubNetwork::Add(NetworkAdd { of, name, prefix, shape, zone, tun }) => {
            let zone = zone.unwrap_or_else(|| format!("{name}.netyard.internal"));
            let wanted = network_options(&name, prefix, shape, zone, tun);
            let added = hub(of)?.add_network(&wanted).map_err(YardError::from)?;
            show(out, &added, view::hub)
        }
        HubNetwork::Rm(NetworkRm { of, name }) => {
            let name = hub(of)?.remove_network(&name).map_err(YardError::from)?;
            show(out, &json!({ "network": name }), |_, _| format!("{name} is removed\n"))
        }
    }
}

fn roles(verb: HubRole, out: Output) -> Result<(), YardError> {
    let hub = |of: Named| client(&Which { of, network: None });
    let roles = match verb {
        HubRole::Ls(of) => hub(of)?.roles(),
        HubRole::Grant(RoleGrant { of, user, role }) => hub(of)?.set_role(user, Some(role)),
        HubRole::Revoke(RoleRevoke { of, user }) => hub(of)?.set_role(user, None),
    };
    show(out, &roles.map_err(YardError::from)?, view::roles)
}

/// A join string is not longer than this, bytes.
const MAX_JOIN: u64 = 4096;

/// Reads the join string.
fn join_string(source: JoinSource) -> Result<netyard_tunnel::join::Join, YardError> {
    let read = |from: &mut dyn Read| {
        let mut text = String::new();
        from.take(MAX_JOIN).read_to_string(&mut text).map(|_| text)
    };
    let (text, wanted) = match source {
        JoinSource::Here(join) => return Ok(join),
        JoinSource::File(file) => {
            let wanted = format!("read the join string in {}", file.display());
            (fs::File::open(&file).and_then(|mut file| read(&mut file)), wanted)
        }
        JoinSource::Input => {
            (read(&mut io::stdin()), "read the join string on standard input".to_owned())
        }
    };
    let text = text.map_err(|error| {
        YardError::io(wanted.clone(), &error).next("save there what `netyard token create` prints")
    })?;
    // Not what was found: it may be a secret with a mistake in it.
    text.parse().map_err(|error| YardError::new(ErrorKind::Input, wanted, format!("{error}")))
}

pub(crate) fn join(flags: Join, out: Output) -> Result<ExitCode, YardError> {
    let join = join_string(flags.join)?;
    // Peers of one hub on one machine differ by where their keys are.
    let mut place = format!("peer-{}-{}", join.hub.host.replace(':', "-"), join.hub.port);
    if let Some(network) = &join.network {
        place.extend(["-", network]);
    }
    let state = state(flags.state, &place)?;
    let owner = owner(&place, &state);
    let (runtime, ledger) = runtime(&format!(".{owner}"))?;
    let options = peer::Options {
        proxy: flags.proxy.map_or_else(proxy, |given| Ok(Some(given)))?,
        name: flags.name.unwrap_or_else(host_name),
        redirect: flags.redirect || flags.kill_switch || flags.exit.is_some(),
        subnets: flags.subnet.iter().map(IpNet::trunc).collect(),
        translate: true,
        exit: flags.exit,
        accept_subnets: !flags.no_subnets,
        dns: flags.dns || (flags.kill_switch && !flags.no_dns),
        hosts: flags.hosts.map(|file| absolute(&file)).transpose()?,
        tell_names: false,
        main_table: flags.main_table,
        kill_switch: flags.kill_switch.then_some(flags.allow),
        tun: flags.device.tun,
        offload: !flags.device.no_offload,
        by_udp: match flags.lane {
            Lane::Auto => ByUdp::NotTcp,
            Lane::Websocket => ByUdp::Nothing,
            Lane::Udp => ByUdp::Everything,
        },
        join,
        state,
        runtime,
        owner,
        ledger,
    };
    if flags.undo {
        peer::undo(&options).map_err(YardError::from)?;
        let undone = json!({ "undone": options.owner });
        show(out, &undone, |_, _| format!("nothing of {} is left\n", options.owner))?;
        return Ok(ExitCode::SUCCESS);
    }
    peer::run(options, |joined| announce(out, joined, view::joined)).map_err(YardError::from)?;
    Ok(ExitCode::SUCCESS)
}

/// The proxy that the environment names, where other users do not see its password.
fn proxy() -> Result<Option<Proxy>, YardError> {
    let Some(named) = std::env::var_os(PROXY) else { return Ok(None) };
    let named = named.to_string_lossy();
    if named.is_empty() {
        return Ok(None);
    }
    let wrong = |error: NoProxy| {
        YardError::new(ErrorKind::Input, format!("use the proxy in {PROXY}"), error.to_string())
    };
    named.parse().map(Some).map_err(wrong)
}

pub(crate) fn token(verb: Token, out: Output) -> Result<ExitCode, YardError> {
    match verb {
        Token::Create(TokenCreate { which, uses, reusable, expires, never, address }) => {
            let life_ms = i64::try_from(expires.as_millis()).unwrap_or(i64::MAX);
            let wanted = TokenWanted {
                life_ms: (!never).then_some(life_ms),
                uses: (!reusable).then_some(uses),
                address,
            };
            let created = client(&which)?.create_token(wanted).map_err(YardError::from)?;
            show(out, &created, |created, _| format!("{}\n", created.join))?;
        }
        Token::Ls(which) => {
            let tokens = client(&which)?.tokens().map_err(YardError::from)?;
            show(out, tokens.as_slice(), view::tokens)?;
        }
        Token::Revoke(revoke) => {
            let token =
                client(&revoke.which)?.revoke_token(&revoke.token).map_err(YardError::from)?;
            show(out, &json!({ "token": token }), |_, _| format!("{token} is revoked\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn peers(
    Peers { verb, which, watch }: Peers,
    out: Output,
) -> Result<ExitCode, YardError> {
    match verb {
        Some(PeersVerb::Revoke(PeersRevoke { of: OnePeer { which, peer } })) => {
            let peer = client(&which)?.revoke_peer(&peer).map_err(YardError::from)?;
            show(out, &json!({ "peer": peer }), |_, _| format!("{peer} is revoked\n"))?;
        }
        Some(PeersVerb::Pin(PeersPin { of, address })) => {
            pin(of, Some(PinWanted { address }), out)?;
        }
        Some(PeersVerb::Unpin(of)) => pin(of, None, out)?,
        Some(PeersVerb::Accept(judged)) => judge(judged, true, out)?,
        Some(PeersVerb::Refuse(judged)) => judge(judged, false, out)?,
        None => watched(watch, || {
            let peers = client(&which)?.peers().map_err(YardError::from)?;
            show(out, peers.as_slice(), view::peers)
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn pin(
    OnePeer { which, peer }: OnePeer,
    wanted: Option<PinWanted>,
    out: Output,
) -> Result<(), YardError> {
    let done = client(&which)?.pin_peer(&peer, wanted).map_err(YardError::from)?;
    show(out, &done, |PeerStatus { name, address, pinned, .. }, _| match (address, pinned) {
        (Some(address), true) => format!("{name} has {address}, and keeps it\n"),
        (Some(address), false) => {
            format!("{name} has {address}, as long as it is not away for long\n")
        }
        (None, _) => format!("{name} has no address\n"),
    })
}

fn judge(
    Judged { which, peer, prefix }: Judged,
    accepted: bool,
    out: Output,
) -> Result<(), YardError> {
    let judged = SubnetJudged { prefix: prefix.trunc(), accepted };
    let done = client(&which)?.judge_subnet(&peer, judged).map_err(YardError::from)?;
    let word = if accepted { "is accepted" } else { "is not accepted any more" };
    show(out, &done, |done, _| format!("{} behind {peer} {word}\n", done.prefix))
}

/// Prints what runs now. Whoever waits for it reads a pipe.
fn announce<T: serde::Serialize>(out: Output, value: &T, text: fn(&T, bool) -> String) {
    // It runs, whether anybody reads that or not.
    _ = show(out, value, text).map(|()| io::stdout().flush());
}

fn client(which: &Which) -> Result<Client, YardError> {
    let hub = &which.of.hub;
    let socket = match hub.contains('/') {
        true => absolute(hub.as_ref())?,
        false => hub::socket(&Runtime::open()?.root().join(format!(".hub-{hub}"))),
    };
    Ok(Client::new(hub, which.network.as_deref(), &socket))
}

/// The folder of a hub or peer below the runtime folder, and the ledger that all owners share.
fn runtime(name: &str) -> Result<(PathBuf, PathBuf), YardError> {
    let runtime = Runtime::open()?;
    Ok((runtime.root().join(name), runtime.ledger()))
}

/// Where a hub or peer keeps what outlives it.
fn state(named: Option<PathBuf>, name: &str) -> Result<PathBuf, YardError> {
    match named {
        Some(named) => absolute(&named),
        None => folder(name),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, YardError> {
    std::path::absolute(path)
        .map_err(|error| YardError::io(format!("find {}", path.display()), &error))
}

/// The owner of a peer's routes: its place, with something that follows from where its key is.
fn owner(place: &str, state: &Path) -> String {
    const OFFSET_BASIS: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let bytes = state.as_os_str().as_encoded_bytes();
    let hash =
        bytes.iter().fold(OFFSET_BASIS, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(PRIME));
    let place: String = place.chars().take(80).collect();
    format!("{place}-{hash:08x}")
}

/// The host's name, as far as it may be a node's.
fn host_name() -> String {
    let plain = |letter: &char| letter.is_ascii_alphanumeric() || "-_".contains(*letter);
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(plain).take(63).collect();
    if name.is_empty() { "peer".into() } else { name }
}

/// Parses a host with a port or without.
fn endpoint(text: &str, port: u16) -> Result<Endpoint, YardError> {
    let with_port = text.parse::<Endpoint>();
    let parsed = with_port.or_else(|_| format!("{text}:{port}").parse::<Endpoint>());
    parsed.map_err(|_| {
        let found = format!("--advertise {text} is neither a name nor an address");
        YardError::new(ErrorKind::Input, "start the hub", found)
            .next("write HOST or HOST:PORT, IPv6 addresses in brackets")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_advertised_with_its_port_unless_another_is_named() {
        let text = |text| endpoint(text, 6441).map(|endpoint| endpoint.to_string());
        assert_eq!(text("hub.example.net").unwrap(), "hub.example.net:6441");
        assert_eq!(text("hub.example.net:443").unwrap(), "hub.example.net:443");
        assert_eq!(text("[2001:db8::1]").unwrap(), "[2001:db8::1]:6441");
        assert_eq!(text("a b").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn peers_with_keys_in_different_places_own_different_routes() {
        let one = owner("peer-hub-6441", "/srv/a".as_ref());
        assert_ne!(one, owner("peer-hub-6441", "/srv/b".as_ref()));
        assert!(one.starts_with("peer-hub-6441-"));
    }
}
