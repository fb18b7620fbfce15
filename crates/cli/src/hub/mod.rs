//! The verbs about hubs and peers: `hub`, `join`, `token`, `peers`.

pub(crate) mod flags;
mod view;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use netyard_sys::process::effective_user;
use netyard_tunnel::addresses::Plan;
use netyard_tunnel::admin::{BackupWanted, Client, SubnetJudged, TokenWanted};
use netyard_tunnel::join::Endpoint;
use netyard_tunnel::message::ByUdp;
use netyard_tunnel::policy::Policy;
use netyard_tunnel::proxy::{NoProxy, Proxy};
use netyard_tunnel::{Blame, hub, peer};
use netyard_yard::error::{ErrorKind, YardError};
use netyard_yard::runtime::Runtime;
use serde_json::json;

use self::flags::{
    Hub, HubFlags, HubPolicy, HubVerb, Join, Judged, Lane, Peers, PeersVerb, PolicySet, Token,
    TokenCreate, Which,
};
use crate::output::Output;
use crate::verbs::show;

/// How often `peers --watch` looks.
const WATCHED: Duration = Duration::from_secs(1);

/// Names the proxy on the way to the hub.
const PROXY: &str = "NETYARD_PROXY";

/// The ledger of settings beside the folders of networks.
const LEDGER: &str = ".settings.json";

pub(crate) fn hub(Hub { verb, flags }: Hub, out: Output) -> Result<ExitCode, YardError> {
    match verb {
        Some(HubVerb::Status(which)) => {
            show(out, &client(&which)?.hub().map_err(blamed)?, view::hub)?;
        }
        Some(HubVerb::Policy(verb)) => policy(verb, out)?,
        Some(HubVerb::Audit(audit)) => {
            let deeds = client(&audit.which)?.audit(audit.most).map_err(blamed)?;
            show(out, deeds.as_slice(), view::audit)?;
        }
        Some(HubVerb::Backup(backup)) => {
            let file = absolute(&backup.file)?;
            let wanted = BackupWanted { file };
            let done = client(&backup.which)?.back_up(&wanted).map_err(blamed)?;
            show(out, &done, |done, _| format!("written to {}\n", done.file.display()))?;
        }
        None => run_hub(flags, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn policy(verb: HubPolicy, out: Output) -> Result<(), YardError> {
    match verb {
        HubPolicy::Show(which) => {
            let policy = client(&which)?.hub().map_err(blamed)?.policy;
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
            let set = client(&which)?.set_policy(Some(&policy)).map_err(blamed)?;
            show(out, &set, view::policy)
        }
        HubPolicy::Remove(which) => {
            let none = client(&which)?.set_policy(None).map_err(blamed)?;
            show(out, &none, view::policy)
        }
    }
}

fn run_hub(flags: HubFlags, out: Output) -> Result<(), YardError> {
    let plan = Plan::new(flags.network, flags.addressing)
        .and_then(|plan| flags.network6.map_or(Ok(plan), |network6| plan.with_ipv6(network6)))
        .map_err(|found| YardError::new(ErrorKind::Input, "start the hub", found))?;
    let advertise = flags.advertise.map(|text| endpoint(&text, flags.listen.port())).transpose()?;
    let (runtime, ledger) = runtime(&format!(".hub-{}", flags.name))?;
    let options = hub::Options {
        advertise,
        plan,
        runtime,
        ledger,
        listen: flags.listen,
        mtu: flags.mtu,
        queue_length: flags.queue_length,
        isolate: flags.isolate,
        exit: flags.exit,
        zone: flags.zone.trim_end_matches('.').to_owned(),
        dns: !flags.no_dns,
        tun: flags.device.tun,
        offload: !flags.device.no_offload,
        udp: !flags.no_udp,
        state: state(flags.state, &format!("hub-{}", flags.name))?,
        name: flags.name,
    };
    hub::run(options, |status| announce(out, status, view::hub)).map_err(blamed)
}

pub(crate) fn join(flags: Join, out: Output) -> Result<ExitCode, YardError> {
    // Peers of one hub on one machine differ by where their keys are.
    let place = format!("peer-{}-{}", flags.join.hub.host.replace(':', "-"), flags.join.hub.port);
    let state = state(flags.state, &place)?;
    let owner = owner(&place, &state);
    let (runtime, ledger) = runtime(&format!(".{owner}"))?;
    let options = peer::Options {
        proxy: flags.proxy.map_or_else(proxy, |given| Ok(Some(given)))?,
        name: flags.name.unwrap_or_else(host_name),
        redirect: flags.redirect || flags.kill_switch || flags.exit.is_some(),
        subnets: flags.subnet.iter().map(IpNet::trunc).collect(),
        exit: flags.exit,
        accept_subnets: !flags.no_subnets,
        dns: flags.dns || (flags.kill_switch && !flags.no_dns),
        hosts: flags.hosts.map(|file| absolute(&file)).transpose()?,
        main_table: flags.main_table,
        kill_switch: flags.kill_switch.then_some(flags.allow),
        tun: flags.device.tun,
        offload: !flags.device.no_offload,
        by_udp: match flags.lane {
            Lane::Auto => ByUdp::NotTcp,
            Lane::Websocket => ByUdp::Nothing,
            Lane::Udp => ByUdp::Everything,
        },
        join: flags.join,
        state,
        runtime,
        owner,
        ledger,
    };
    if flags.undo {
        peer::undo(&options).map_err(blamed)?;
        let undone = json!({ "undone": options.owner });
        show(out, &undone, |_, _| format!("nothing of {} is left\n", options.owner))?;
        return Ok(ExitCode::SUCCESS);
    }
    peer::run(options, |joined| announce(out, joined, view::joined)).map_err(blamed)?;
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
        Token::Create(TokenCreate { which, uses, reusable, expires, never }) => {
            let life_ms = i64::try_from(expires.as_millis()).unwrap_or(i64::MAX);
            let wanted = TokenWanted {
                life_ms: (!never).then_some(life_ms),
                uses: (!reusable).then_some(uses),
            };
            let created = client(&which)?.create_token(wanted).map_err(blamed)?;
            show(out, &created, |created, _| format!("{}\n", created.join))?;
        }
        Token::Ls(which) => {
            let tokens = client(&which)?.tokens().map_err(blamed)?;
            show(out, tokens.as_slice(), view::tokens)?;
        }
        Token::Revoke(revoke) => {
            let token = client(&revoke.which)?.revoke_token(&revoke.token).map_err(blamed)?;
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
        Some(PeersVerb::Revoke(revoke)) => {
            let peer = client(&revoke.which)?.revoke_peer(&revoke.peer).map_err(blamed)?;
            show(out, &json!({ "peer": peer }), |_, _| format!("{peer} is revoked\n"))?;
        }
        Some(PeersVerb::Accept(judged)) => judge(judged, true, out)?,
        Some(PeersVerb::Refuse(judged)) => judge(judged, false, out)?,
        None => loop {
            let peers = client(&which)?.peers().map_err(blamed)?;
            show(out, peers.as_slice(), view::peers)?;
            if !watch {
                break;
            }
            thread::sleep(WATCHED);
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn judge(
    Judged { which, peer, prefix }: Judged,
    accepted: bool,
    out: Output,
) -> Result<(), YardError> {
    let judged = SubnetJudged { prefix: prefix.trunc(), accepted };
    let done = client(&which)?.judge_subnet(&peer, judged).map_err(blamed)?;
    let word = if accepted { "is accepted" } else { "is not accepted any more" };
    show(out, &done, |done, _| format!("{} behind {peer} {word}\n", done.prefix))
}

/// Prints what runs now. Whoever waits for it reads a pipe.
fn announce<T: serde::Serialize>(out: Output, value: &T, text: fn(&T, bool) -> String) {
    // It runs, whether anybody reads that or not.
    _ = show(out, value, text).map(|()| io::stdout().flush());
}

fn client(which: &Which) -> Result<Client, YardError> {
    let folder = Runtime::open()?.root().join(format!(".hub-{}", which.hub));
    Ok(Client::new(&which.hub, &folder))
}

/// The folder of a hub or peer below the runtime folder, and the ledger that all owners share.
fn runtime(name: &str) -> Result<(PathBuf, PathBuf), YardError> {
    let runtime = Runtime::open()?;
    Ok((runtime.root().join(name), runtime.root().join(LEDGER)))
}

/// Where a hub or peer keeps what outlives it.
fn state(named: Option<PathBuf>, name: &str) -> Result<PathBuf, YardError> {
    let variable =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(named) = named {
        return absolute(&named);
    }
    if effective_user() == 0 {
        return Ok(PathBuf::from("/var/lib/netyard").join(name));
    }
    let home = || Some(variable("HOME")?.join(".local/state"));
    match variable("XDG_STATE_HOME").or_else(home) {
        Some(root) => Ok(root.join("netyard").join(name)),
        None => Err(YardError::new(
            ErrorKind::Input,
            "find a place for keys",
            "neither XDG_STATE_HOME nor HOME is set",
        )
        .next("name one with --state")),
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

/// An error in the words of this command.
fn blamed(error: netyard_tunnel::Error) -> YardError {
    let kind = match error.blame {
        Blame::Input => ErrorKind::Input,
        Blame::Unknown => ErrorKind::Unknown,
        Blame::Conflict => ErrorKind::Conflict,
        Blame::NotPermitted => ErrorKind::NotPermitted,
        Blame::Peer => ErrorKind::Peer,
        Blame::System => ErrorKind::System,
    };
    let told = YardError::new(kind, error.wanted, error.found);
    match error.next {
        Some(next) => told.next(next),
        None => told,
    }
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
