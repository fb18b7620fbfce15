//! The verbs about hubs and peers.
#![allow(rustdoc::broken_intra_doc_links, reason = "help texts for people are no Markdown")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netyard_tunnel::addresses::{Addressing, Chosen};
use netyard_tunnel::admin::Role;
use netyard_tunnel::join::JoinError;

use crate::flags::user;

/// Be the meeting point of remote machines: they join over HTTPS and get a network of their own
///
/// Runs in the foreground until Ctrl-C, and needs root or CAP_NET_ADMIN. The hub has the network's first
/// address; each peer gets one for life. Peers reach the hub and each other. Make join strings with
/// `netyard token create`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  netyard hub                                          10.1.1.0/24, on port 6441 of every IPv4 address
  netyard hub --listen 0.0.0.0:443 --advertise hub.example.net
  netyard hub --network 10.64.0.0/16 --addressing single --mtu 9000 --isolate
  netyard hub --name lab --listen 192.0.2.1:6442 --network 10.2.0.0/24 --tun lab0
  netyard hub --network6 fd12:3456:789a::/64           IPv6 beside it
  netyard hub --listen '[::]:6441'                     reached by IPv6 too
  netyard hub --state /srv/hub --queue-length 500 --no-offload
  netyard hub --no-udp                                 TCP alone
  netyard hub --exit                                   peers reach the Internet by it
  netyard hub --zone lab.example.net                   laptop is laptop.lab.example.net
  netyard hub --socket /run/hub.sock                   operators need not be root
  netyard hub --no-dns                                 names are for hosts files alone
  netyard hub --undo                                   what a killed one left
  netyard hub status                                   what runs, and where it is reached"
)]
pub(crate) struct Hub {
    #[command(subcommand)]
    pub(crate) verb: Option<HubVerb>,
    #[command(flatten)]
    pub(crate) flags: HubFlags,
}

/// What a hub is told.
#[derive(Debug, Args)]
pub(crate) struct HubFlags {
    /// Its name on this machine
    #[arg(long, value_name = "NAME", default_value = "hub", value_parser = name)]
    pub(crate) name: String,
    /// Where it listens: 0.0.0.0 is every IPv4 address, [::] every address of both families
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:6441")]
    pub(crate) listen: SocketAddr,
    /// How others reach it: what join strings say [default: this machine's first address]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) advertise: Option<String>,
    /// The network
    #[arg(long, value_name = "PREFIX", default_value = "10.1.1.0/24")]
    pub(crate) network: Ipv4Net,
    #[command(flatten)]
    pub(crate) shape: NetworkFlags,
    /// The zone of the machines' names
    #[arg(long, value_name = "ZONE", default_value = "netyard.internal", value_parser = name)]
    pub(crate) zone: String,
    #[command(flatten)]
    pub(crate) device: Device,
    /// Take and send no packets by UDP, on the same port; all go by WebSocket then
    #[arg(long)]
    pub(crate) no_udp: bool,
    /// Also answer the control API at this socket, for users of this machine who have a role [default: none]
    #[arg(long, value_name = "FILE")]
    pub(crate) socket: Option<PathBuf>,
    /// Undo what a killed one has left on this machine, forwarding and translation of an exit too, and do not start
    #[arg(long)]
    pub(crate) undo: bool,
    /// Where its keys and its databases are [default: /var/lib/netyard/hub-NAME for root]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: Option<PathBuf>,
}

/// What networks of a hub are told.
#[derive(Debug, Args)]
pub(crate) struct NetworkFlags {
    /// An IPv6 prefix for it, of the machines' own (fd00::/8) [default: none]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) network6: Option<Ipv6Net>,
    /// What each machine gets: pair (its address and that of its link's far end), single (its address)
    #[arg(long, value_name = "MODE", default_value = "pair")]
    pub(crate) addressing: Addressing,
    /// The largest packet, bytes
    #[arg(long, value_name = "BYTES", default_value = "1400")]
    #[arg(value_parser = clap::value_parser!(u32).range(576..=65_535))]
    pub(crate) mtu: u32,
    /// How many packets wait in the kernel for the tunnel
    #[arg(long, value_name = "PACKETS", default_value = "100")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) queue_length: u32,
    /// Peers reach the hub, and not each other
    #[arg(long)]
    pub(crate) isolate: bool,
    /// Let on what peers send to the outside, with this machine's address
    #[arg(long)]
    pub(crate) exit: bool,
    /// Do not answer questions about names by DNS
    #[arg(long)]
    pub(crate) no_dns: bool,
}

/// Verbs of `hub`.
#[derive(Debug, Subcommand)]
pub(crate) enum HubVerb {
    /// Show a running hub: its network, how it is reached, what it dropped
    #[command(after_help = "\
Examples:
  netyard hub status
  netyard hub status --hub lab --json
  netyard hub status --network office")]
    Status(Which),
    #[command(subcommand)]
    Network(HubNetwork),
    #[command(subcommand)]
    Policy(HubPolicy),
    #[command(subcommand)]
    Role(HubRole),
    Audit(HubAudit),
    Backup(HubBackup),
}

/// Serve several networks by one hub: each has its own machines, tokens, policy and names, and reaches no other
#[derive(Debug, Subcommand)]
pub(crate) enum HubNetwork {
    /// List a hub's networks
    #[command(after_help = "\
Examples:
  netyard hub network ls
  netyard hub network ls --hub lab --json")]
    Ls(Named),
    Add(NetworkAdd),
    Rm(NetworkRm),
}

/// Serve one more network, from now on and after each start of the hub
///
/// Machines join it with tokens of its own: `netyard token create --network NAME`. Its prefixes must not overlap with
/// those of the others.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard hub network add office 10.2.0.0/24
  netyard hub network add lab 10.3.0.0/16 --addressing single --isolate --zone lab.example.net
  netyard hub network add guests 10.4.0.0/24 --network6 fd12:3456:789a:4::/64 --exit --mtu 1280
  netyard hub network add old 10.5.0.0/24 --queue-length 500 --no-dns --tun old0 --hub lab")]
pub(crate) struct NetworkAdd {
    #[command(flatten)]
    pub(crate) of: Named,
    /// Its name: up to 32 lower-case letters, digits and "-"
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Its prefix
    #[arg(value_name = "PREFIX")]
    pub(crate) prefix: Ipv4Net,
    #[command(flatten)]
    pub(crate) shape: NetworkFlags,
    /// The zone of its machines' names [default: NAME.netyard.internal]
    #[arg(long, value_name = "ZONE", value_parser = name)]
    pub(crate) zone: Option<String>,
    /// The name of its TUN device [default: the first free tunN]
    #[arg(long, value_name = "NAME", default_value = "tun%d", hide_default_value = true)]
    pub(crate) tun: String,
}

/// End a network: its machines and tokens are forgotten
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard hub network rm office
  netyard hub network rm --hub lab office --json")]
pub(crate) struct NetworkRm {
    #[command(flatten)]
    pub(crate) of: Named,
    /// Its name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// Say who may reach whom: without a policy everybody everybody, with one what it allows
#[derive(Debug, Subcommand)]
pub(crate) enum HubPolicy {
    /// Show the policy
    #[command(after_help = "\
Examples:
  netyard hub policy show
  netyard hub policy show --hub lab --json
  netyard hub policy show --network office")]
    Show(Which),
    Set(PolicySet),
    /// Remove the policy: everybody reaches everybody
    #[command(after_help = "\
Examples:
  netyard hub policy remove
  netyard hub policy remove --hub lab
  netyard hub policy remove --network office")]
    Remove(Which),
}

/// Set the policy, in place of the one before; it holds at once
///
/// A file in TOML. Each rule names who begins and whom they reach: peers, tags of peers, "hub", prefixes of
/// machines behind them, or "*"; and the protocol and ports, if not all. Answers pass.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard hub policy set policy.toml
  netyard hub policy set --hub lab - < policy.toml
  netyard hub policy set --network office policy.toml

  [tags]
  servers = [\"web\", \"db\"]

  [[allow]]
  from = [\"laptop\"]
  to = [\"tag:servers\", \"192.168.7.0/24\"]
  protocol = \"tcp\"
  ports = [22, \"8000-8010\"]")]
pub(crate) struct PolicySet {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The file; "-": standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// Let users of this machine work at a hub that is not theirs
///
/// They reach it by the socket of `netyard hub --socket FILE`, with --hub FILE. A reader sees everything but secrets. An
/// operator also makes and revokes tokens, turns machines out and accepts subnets. An admin also decides about
/// networks, policies, roles and backups, as root and the hub's own user do.
#[derive(Debug, Subcommand)]
pub(crate) enum HubRole {
    /// List the users with roles, beside root and the hub's own
    #[command(after_help = "\
Examples:
  netyard hub role ls
  netyard hub role ls --hub lab --json")]
    Ls(Named),
    /// Give a user a role, in place of the one before
    #[command(after_help = "\
Examples:
  netyard hub role grant alice operator
  netyard hub role grant --hub lab 1000 reader")]
    Grant(RoleGrant),
    /// Take a user's role away
    #[command(after_help = "\
Examples:
  netyard hub role revoke alice
  netyard hub role revoke --hub lab 1000")]
    Revoke(RoleRevoke),
}

/// Who gets which role.
#[derive(Debug, Args)]
pub(crate) struct RoleGrant {
    #[command(flatten)]
    pub(crate) of: Named,
    /// A user of this machine, by name or number
    #[arg(value_name = "USER", value_parser = user)]
    pub(crate) user: u32,
    /// reader, operator or admin
    #[arg(value_name = "ROLE")]
    pub(crate) role: Role,
}

/// Who loses it.
#[derive(Debug, Args)]
pub(crate) struct RoleRevoke {
    #[command(flatten)]
    pub(crate) of: Named,
    /// A user of this machine, by name or number
    #[arg(value_name = "USER", value_parser = user)]
    pub(crate) user: u32,
}

/// Show what was done, and by whom: who joined, tokens, revocations, subnets, policies; the latest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard hub audit
  netyard hub audit --most 1000 --hub lab --json
  netyard hub audit --network office")]
pub(crate) struct HubAudit {
    #[command(flatten)]
    pub(crate) which: Which,
    /// How many
    #[arg(long, value_name = "COUNT", default_value = "50")]
    pub(crate) most: u32,
}

/// Write a copy of the hub's database, while it runs
///
/// The copy is a database for --state FOLDER/hub.db. Keys are not in it: copy hub.pem, hub-key.pem and
/// authority-key.pem of the state folder, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard hub backup /srv/backup/hub.db
  netyard hub backup --hub lab lab.db
  netyard hub backup --network office office.db")]
pub(crate) struct HubBackup {
    #[command(flatten)]
    pub(crate) which: Which,
    /// A file that is not there yet
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// The device that leads to the network.
#[derive(Debug, Args)]
pub(crate) struct Device {
    /// The name of its TUN device [default: the first free tunN]
    #[arg(long, value_name = "NAME", default_value = "tun%d", hide_default_value = true)]
    pub(crate) tun: String,
    /// Take packets from the kernel one by one, not as super-packets: slower, to find faults
    #[arg(long)]
    pub(crate) no_offload: bool,
}

/// Which hub of this machine.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The hub's name; or the file of its socket, as `netyard hub --socket` has it
    #[arg(long, value_name = "HUB", default_value = "hub", value_parser = hub)]
    pub(crate) hub: String,
}

/// Which network of which hub of this machine.
#[derive(Debug, Args)]
pub(crate) struct Which {
    #[command(flatten)]
    pub(crate) of: Named,
    /// Which of its networks [default: its main one]
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) network: Option<String>,
}

/// Join the network of a hub, with the string that its operator made
///
/// Runs in the foreground until Ctrl-C, and needs root or CAP_NET_ADMIN. The machine makes a key of its own
/// the first time, and is known to the hub by it from then on: the same line brings it back with the same
/// address, though the string can be used once. It reconnects by itself. Routes are in a table of their own;
/// the way to the hub stays outside of the tunnel.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard join 'netyard://TOKEN.SECRET@192.0.2.1:6441?ca=sha256:PIN'
  netyard join file:/etc/netyard/hub.join                the same, from a file
  ssh hub netyard token create | netyard join -
  netyard join --name laptop --redirect \"$JOIN\"         everything goes through the hub
  netyard join --proxy http://proxy.example:3128 \"$JOIN\"
  netyard join --kill-switch --allow 192.168.1.0/24 \"$JOIN\"
                                             nothing leaves beside the tunnel, but to that network
  netyard join --subnet 192.168.7.0/24 \"$JOIN\"         others reach what is behind this machine
  netyard join --subnet 0.0.0.0/0 \"$JOIN\"              be an exit, if the hub accepts that
  netyard join --exit office \"$JOIN\"                   redirect, and leave by that peer
  netyard join --dns \"$JOIN\"                            laptop.netyard.internal and the others have names
  netyard join --kill-switch --no-dns \"$JOIN\"           names are asked as before
  netyard join --hosts /etc/hosts \"$JOIN\"               the same, in a file
  netyard join --no-subnets \"$JOIN\"                    what is behind others is not led there
  netyard join --undo \"$JOIN\"                          what a killed one left, its kill switch too
  netyard join --main-table \"$JOIN\"                    no rules, and a route to the hub alone
  netyard join --lane websocket \"$JOIN\"                no UDP, though it would get through
  netyard join --tun lab0 --no-offload --state /srv/lab \"$JOIN\"")]
pub(crate) struct Join {
    /// What `netyard token create` printed; or where that is, so that other users of this machine do not see it:
    /// "file:FILE", or "-" for standard input
    #[arg(value_name = "JOIN_STRING")]
    pub(crate) join: JoinSource,
    /// The machine's name at the hub [default: the host's name]
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) name: Option<String>,
    /// The HTTP proxy on the way to the hub: http://[USER:PASSWORD@]HOST[:PORT] [default: $NETYARD_PROXY]
    #[arg(long, value_name = "URL")]
    pub(crate) proxy: Option<netyard_tunnel::proxy::Proxy>,
    /// Send everything through the hub, not what is for its network alone. IPv6 is unreachable then if the
    /// network has none
    #[arg(long)]
    pub(crate) redirect: bool,
    /// Redirect, and let nothing leave but by the tunnel: not while the hub is away, nor after a crash.
    /// It ends when this is told to stop, or with --undo
    #[arg(long)]
    pub(crate) kill_switch: bool,
    /// With --kill-switch: a network that may be reached beside the tunnel; can be repeated
    #[arg(long, value_name = "PREFIX", requires = "kill_switch")]
    pub(crate) allow: Vec<IpNet>,
    /// What is behind this machine: others reach it when the hub's administrator has accepted it, with this
    /// machine's address. 0.0.0.0/0 and ::/0: everything, for those who choose it with --exit. Can be repeated
    #[arg(long, value_name = "PREFIX")]
    pub(crate) subnet: Vec<IpNet>,
    /// Redirect, and leave the network by this peer, not by the hub
    #[arg(long, value_name = "PEER", conflicts_with = "subnet")]
    pub(crate) exit: Option<String>,
    /// Do not lead what is behind other peers to the tunnel
    #[arg(long)]
    pub(crate) no_subnets: bool,
    /// Have programs of this machine ask the hub for the network's names, and with --redirect for all names if the
    /// hub is an exit: by systemd-resolved, or by a resolver of its own in /etc/resolv.conf while it runs
    #[arg(long, conflicts_with = "no_dns")]
    pub(crate) dns: bool,
    /// With --kill-switch: leave names to those who are asked now; elsewhere that is so anyway
    #[arg(long)]
    pub(crate) no_dns: bool,
    /// Keep the names of the network's machines in a hosts file, such as /etc/hosts, while it runs
    #[arg(long, value_name = "FILE")]
    pub(crate) hosts: Option<PathBuf>,
    /// Put routes into the main table, and one to the hub's address beside them: no rules, no mark
    #[arg(long)]
    pub(crate) main_table: bool,
    /// Undo what a killed one has left on this machine, its kill switch too, and do not join
    #[arg(long)]
    pub(crate) undo: bool,
    #[command(flatten)]
    pub(crate) device: Device,
    /// What packets go by: auto (TCP by WebSocket, the rest by UDP if that gets through), websocket (all of
    /// them), udp (all of them, if it gets through)
    #[arg(long, value_name = "LANE", default_value = "auto", hide_possible_values = true)]
    pub(crate) lane: Lane,
    /// Where its key is [default: /var/lib/netyard/peer-HUB for root]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: Option<PathBuf>,
}

/// Where a join string is.
#[derive(Debug, Clone)]
pub(crate) enum JoinSource {
    Here(netyard_tunnel::join::Join),
    File(PathBuf),
    Input,
}

impl FromStr for JoinSource {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        match (text, text.strip_prefix("file:")) {
            ("-", _) => Ok(Self::Input),
            (_, Some(file)) => Ok(Self::File(file.into())),
            (text, None) => text.parse().map(Self::Here),
        }
    }
}

/// What packets go by.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Lane {
    Auto,
    Websocket,
    Udp,
}

/// Let machines join a hub, or no more
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    Create(TokenCreate),
    /// List a hub's tokens, without what proves them
    #[command(after_help = "\
Examples:
  netyard token ls
  netyard token ls --hub lab --json
  netyard token ls --network office")]
    Ls(Which),
    Revoke(TokenRevoke),
}

/// Make a token, and print the string that one machine joins with
///
/// The string is shown this once. Whoever has it can join, until it is used up, expired or revoked.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard token create                       for one machine, within ten minutes
  netyard token create --uses 20 --expires 2h
  netyard token create --reusable --never    for any number of machines, until it is revoked
  netyard token create --address 10.1.1.77   the machine that joins with it gets that address
  netyard token create --hub lab --json
  netyard token create --network office")]
pub(crate) struct TokenCreate {
    #[command(flatten)]
    pub(crate) which: Which,
    /// How many machines may join with it
    #[arg(long, value_name = "COUNT", default_value = "1", conflicts_with = "reusable")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uses: u32,
    /// Any number of machines may join with it
    #[arg(long)]
    pub(crate) reusable: bool,
    /// How long it can be used
    #[arg(long, value_name = "TIME", default_value = "10m", conflicts_with = "never")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) expires: Duration,
    /// It does not expire
    #[arg(long)]
    pub(crate) never: bool,
    /// The address of the machine that joins with it, IPv4 or IPv6, or its number; nobody else gets it meanwhile
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["uses", "reusable"])]
    pub(crate) address: Option<Chosen>,
}

/// Revoke a token: nobody joins with it any more; who has joined stays
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard token revoke 3q2-7wAB
  netyard token revoke --hub lab 3q2-7wAB
  netyard token revoke --network office 3q2-7wAB")]
pub(crate) struct TokenRevoke {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The token's name, as `netyard token ls` shows it
    #[arg(value_name = "TOKEN", allow_hyphen_values = true)]
    pub(crate) token: String,
}

/// List the machines that have joined a hub, give one an address, or turn one out
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  netyard peers
  netyard peers --hub lab --json
  netyard peers --network office
  netyard peers --watch                      again each second, until Ctrl-C
  netyard peers pin laptop 10.1.1.77
  netyard peers revoke laptop
  netyard peers accept office 192.168.7.0/24"
)]
pub(crate) struct Peers {
    #[command(subcommand)]
    pub(crate) verb: Option<PeersVerb>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// List them again each second
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Verbs of `peers`.
#[derive(Debug, Subcommand)]
pub(crate) enum PeersVerb {
    Revoke(PeersRevoke),
    Pin(PeersPin),
    /// Leave a machine its address as others have theirs: it may lose it when it is away for long
    #[command(after_help = "\
Examples:
  netyard peers unpin laptop
  netyard peers unpin --hub lab laptop --json
  netyard peers unpin --network office laptop")]
    Unpin(OnePeer),
    /// Accept a subnet that a peer offers: others reach it through that peer from now on
    #[command(after_help = "\
Examples:
  netyard peers accept office 192.168.7.0/24
  netyard peers accept office 0.0.0.0/0 --hub lab        it is an exit
  netyard peers accept --network guests office 192.168.7.0/24")]
    Accept(Judged),
    /// Take back that a subnet behind a peer was accepted
    #[command(after_help = "\
Examples:
  netyard peers refuse office 192.168.7.0/24
  netyard peers refuse --hub lab office 0.0.0.0/0
  netyard peers refuse --network guests office 0.0.0.0/0")]
    Refuse(Judged),
}

/// A subnet behind a peer.
#[derive(Debug, Args)]
pub(crate) struct Judged {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The machine's name, as `netyard peers` shows it
    #[arg(value_name = "PEER")]
    pub(crate) peer: String,
    /// The prefix that it offers
    #[arg(value_name = "PREFIX")]
    pub(crate) prefix: IpNet,
}

/// Give a machine an address: it has it from now on, and keeps it however long it is away
///
/// If it is connected and had another one, it logs in again within a second, and what ran over its former address
/// ends. An address that another machine has, or a token keeps, is refused, and so is the hub's own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard peers pin laptop 10.1.1.77
  netyard peers pin laptop fd12:3456:789a::4d    the same, if the network has IPv6
  netyard peers pin laptop 38                    the same, by number
  netyard peers pin --hub lab laptop 10.2.0.9 --json
  netyard peers pin --network office laptop 10.2.0.9")]
pub(crate) struct PeersPin {
    #[command(flatten)]
    pub(crate) of: OnePeer,
    /// A machine's address of the network, IPv4 or IPv6, or its number. With --addressing pair the address is the
    /// odd one, and number N has the (2N+1)th; with single the (N+1)th
    #[arg(value_name = "ADDRESS")]
    pub(crate) address: Chosen,
}

/// A machine of a network.
#[derive(Debug, Args)]
pub(crate) struct OnePeer {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The machine's name, as `netyard peers` shows it
    #[arg(value_name = "PEER")]
    pub(crate) peer: String,
}

/// Turn a machine out: its session ends at once, its key is refused, its address is free
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard peers revoke laptop
  netyard peers revoke --hub lab laptop
  netyard peers revoke --network office laptop")]
pub(crate) struct PeersRevoke {
    #[command(flatten)]
    pub(crate) of: OnePeer,
}

/// Parses a hub's name, or the file of its socket.
fn hub(text: &str) -> Result<String, String> {
    if text.contains('/') { Ok(text.to_owned()) } else { name(text) }
}

/// Parses a name of up to 63 letters, digits, "-", "_" and "." that does not begin with a dot.
fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match text.len() {
        1..=63 if !text.starts_with('.') && text.bytes().all(plain) => Ok(text.to_owned()),
        _ => Err("expected up to 63 letters, digits, \"-\", \"_\" and \".\"".into()),
    }
}
