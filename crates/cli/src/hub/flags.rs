//! The verbs about hubs and peers.
#![allow(rustdoc::broken_intra_doc_links, reason = "help texts for people are no Markdown")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netyard_tunnel::addresses::Addressing;

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
  netyard hub                                          10.1.1.0/24, on port 6441 of every address
  netyard hub --listen 0.0.0.0:443 --advertise hub.example.net
  netyard hub --network 10.64.0.0/16 --addressing single --mtu 9000 --isolate
  netyard hub --name lab --listen 192.0.2.1:6442 --network 10.2.0.0/24 --tun lab0
  netyard hub --network6 fd12:3456:789a::/64           IPv6 beside it
  netyard hub --state /srv/hub --queue-length 500 --no-offload
  netyard hub --no-udp                                 TCP alone
  netyard hub --exit                                   peers reach the Internet by it
  netyard hub --zone lab.example.net                   laptop is laptop.lab.example.net
  netyard hub --no-dns                                 names are for hosts files alone
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
    /// Where it listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:6441")]
    pub(crate) listen: SocketAddr,
    /// How others reach it: what join strings say [default: this machine's first address]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) advertise: Option<String>,
    /// The network
    #[arg(long, value_name = "PREFIX", default_value = "10.1.1.0/24")]
    pub(crate) network: Ipv4Net,
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
    /// The zone of the machines' names
    #[arg(long, value_name = "ZONE", default_value = "netyard.internal", value_parser = name)]
    pub(crate) zone: String,
    /// Do not answer questions about names by DNS
    #[arg(long)]
    pub(crate) no_dns: bool,
    #[command(flatten)]
    pub(crate) device: Device,
    /// Take and send no packets by UDP, on the same port; all go by WebSocket then
    #[arg(long)]
    pub(crate) no_udp: bool,
    /// Where its keys and its database are [default: /var/lib/netyard/hub-NAME for root]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: Option<PathBuf>,
}

/// Verbs of `hub`.
#[derive(Debug, Subcommand)]
pub(crate) enum HubVerb {
    /// Show a running hub: its network, how it is reached, what it dropped
    #[command(after_help = "\
Examples:
  netyard hub status
  netyard hub status --hub lab --json")]
    Status(Which),
    #[command(subcommand)]
    Policy(HubPolicy),
    Audit(HubAudit),
    Backup(HubBackup),
}

/// Say who may reach whom: without a policy everybody everybody, with one what it allows
#[derive(Debug, Subcommand)]
pub(crate) enum HubPolicy {
    /// Show the policy
    #[command(after_help = "\
Examples:
  netyard hub policy show
  netyard hub policy show --hub lab --json")]
    Show(Which),
    Set(PolicySet),
    /// Remove the policy: everybody reaches everybody
    #[command(after_help = "\
Examples:
  netyard hub policy remove
  netyard hub policy remove --hub lab")]
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

/// Show what was done: who joined, tokens, revocations, subnets, policies; the latest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard hub audit
  netyard hub audit --most 1000 --hub lab --json")]
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
  netyard hub backup --hub lab lab.db")]
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
pub(crate) struct Which {
    /// The hub's name
    #[arg(long, value_name = "NAME", default_value = "hub", value_parser = name)]
    pub(crate) hub: String,
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
    /// What `netyard token create` printed
    #[arg(value_name = "JOIN_STRING")]
    pub(crate) join: netyard_tunnel::join::Join,
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
  netyard token ls --hub lab --json")]
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
  netyard token create --hub lab --json")]
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
}

/// Revoke a token: nobody joins with it any more; who has joined stays
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard token revoke 3q2-7wAB
  netyard token revoke --hub lab 3q2-7wAB")]
pub(crate) struct TokenRevoke {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The token's name, as `netyard token ls` shows it
    #[arg(value_name = "TOKEN", allow_hyphen_values = true)]
    pub(crate) token: String,
}

/// List the machines that have joined a hub, or turn one out
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  netyard peers
  netyard peers --hub lab --json
  netyard peers --watch                      again each second, until Ctrl-C
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
    /// Accept a subnet that a peer offers: others reach it through that peer from now on
    #[command(after_help = "\
Examples:
  netyard peers accept office 192.168.7.0/24
  netyard peers accept office 0.0.0.0/0 --hub lab        it is an exit")]
    Accept(Judged),
    /// Take back that a subnet behind a peer was accepted
    #[command(after_help = "\
Examples:
  netyard peers refuse office 192.168.7.0/24
  netyard peers refuse --hub lab office 0.0.0.0/0")]
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

/// Turn a machine out: its session ends at once, its key is refused, its address is free
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard peers revoke laptop
  netyard peers revoke --hub lab laptop")]
pub(crate) struct PeersRevoke {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The machine's name, as `netyard peers` shows it
    #[arg(value_name = "PEER")]
    pub(crate) peer: String,
}

/// A name of up to 63 letters, digits, "-", "_" and "." that does not begin with a dot.
fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match text.len() {
        1..=63 if !text.starts_with('.') && text.bytes().all(plain) => Ok(text.to_owned()),
        _ => Err("expected up to 63 letters, digits, \"-\", \"_\" and \".\"".into()),
    }
}
