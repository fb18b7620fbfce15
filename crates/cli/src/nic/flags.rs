//! The verbs below `nic`.
#![allow(rustdoc::broken_intra_doc_links, reason = "help texts for people are no Markdown")]

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use netyard_nic::lab::Kind;
use netyard_nic::nat::PortalCheck;
use netyard_nic::portmap::Transport;

/// Look at this machine's real cards: addresses, routes, external addresses, NAT
#[derive(Debug, Subcommand)]
pub(crate) enum Nic {
    List(List),
    Show(Show),
    Routes(Routes),
    Watch(Watch),
    Nat(Nat),
    Stun(Stun),
    Map(Map),
    StunServer(StunServer),
    Pipe(Pipe),
    Serve(Serve),
    /// Run programs behind a NAT of any kind, without root
    #[command(subcommand)]
    Lab(LabVerb),
}

/// Verbs of `nic lab`.
#[derive(Debug, Subcommand)]
pub(crate) enum LabVerb {
    Up(LabUp),
}

/// Run a program on a machine behind a NAT, with an Internet of its own
///
/// The machine is 10.0.0.2, the NAT's external address 203.0.113.1 (with several cards 10.0.1.2 and
/// 203.0.113.2 are next, and so on), and a STUN server answers on
/// 198.51.100.1 and 198.51.100.2; NETYARD_STUN names it, so that `netyard nic nat` asks it.
/// Nothing leads out of the lab. It goes when the program ends, and its exit code is the program's.
///
/// Kinds: open (no NAT), fw (a firewall), full-cone, addr (restricted by address), port (by address
/// and port, as most home routers), sym (a mapping for each destination), sym-seq (the same, ports
/// count up), cgnat (a home router behind a carrier's), blocked (no UDP).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic lab up port -- netyard nic nat
  netyard nic lab up sym-seq --delay 20ms --loss 1% -- netyard nic nat --explain
  netyard nic lab up cgnat -- sh
  netyard nic lab up port sym -- netyard nic nat --card eth1   two cards, two NATs")]
pub(crate) struct LabUp {
    /// What stands between the machine and its Internet; one for each card, eth0, eth1 and so on
    #[arg(value_name = "KIND", required = true, num_args = 1..=8)]
    pub(crate) kinds: Vec<Kind>,
    /// How long packets take, in each direction
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = humantime::parse_duration)]
    pub(crate) delay: Duration,
    /// How many packets are lost, in each direction
    #[arg(long, value_name = "PERCENT", default_value = "0%", value_parser = percent)]
    pub(crate) loss: f64,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) argv: Vec<OsString>,
}

/// Parses a percentage, with its sign or without, as a part of one.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("expected a percentage, such as 5%".into()),
    }
}

/// List the machine's cards: what each is, and what it is good for
///
/// A card is the default one of a family if the kernel sends by it what goes to the outside; `outside` has
/// a default route all the same, for what is bound to it; `local` leads to its neighbours only. Nothing is
/// sent.
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  netyard nic list
  netyard nic list --all     also cards that are of no use, and why"
)]
pub(crate) struct List {
    /// Also cards that are of no use, and why they are not
    #[arg(short, long)]
    pub(crate) all: bool,
}

/// Show everything about a card, its addresses and its routes
///
/// `default` stands for whichever card the kernel takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic show                                    the default card; nothing is sent
  netyard nic show eth0 --server stun.example.org     ... with the addresses that servers see
  netyard nic show eth0 --external                    ... servers of NETYARD_STUN
  netyard nic show --nat --config servers.toml        ... and what the NAT does
  netyard nic show --nat --no-gateway --server public ... and the gateway hears nothing
  netyard nic show --json > here.json                 in a form that other machines read
  netyard nic show --seed --assume                    as older programs print it
  netyard nic show --server 198.18.0.1 --agree 1 --treat-as-public 198.18.0.0/15     in a laboratory")]
pub(crate) struct Show {
    /// The card [default: the default one, of IPv4 if it has one]
    #[arg(value_name = "CARD")]
    pub(crate) card: Option<String>,
    /// Print the form of older programs: Interface.from_dict({...})
    #[arg(long, conflicts_with = "json")]
    pub(crate) seed: bool,
    /// Ask the servers too what the NAT does, and of IPv4 the gateway for its external address
    #[arg(long, conflicts_with = "assume")]
    pub(crate) nat: bool,
    /// With --nat: do not ask the gateway (PCP, NAT-PMP, and UPnP by multicast)
    #[arg(long, requires = "nat")]
    pub(crate) no_gateway: bool,
    /// Where the NAT was not tested, say what older programs assume: restricted, random ports
    #[arg(long)]
    pub(crate) assume: bool,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Show by which addresses of a card the outside knows this machine under which addresses
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic routes                                  the near side; nothing is sent
  netyard nic routes eth0 --server stun.example.org --server stun.example.net
  netyard nic routes --external                       ... servers that NETYARD_STUN names
  netyard nic routes --server public                  ... well-known public ones
  netyard nic routes -4 --config servers.toml         ... servers that a file names
  netyard nic routes -6 --expand 4                    the first four addresses, one by one
  netyard nic routes --external --verify-last         blocks are seen whole, up to the last address
  netyard nic routes --server 198.18.0.1 --agree 1 --treat-as-public 198.18.0.0/15   in a laboratory")]
pub(crate) struct Routes {
    /// The card [default: the default one, of IPv4 if it has one]
    #[arg(value_name = "CARD")]
    pub(crate) card: Option<String>,
    /// IPv4 only
    #[arg(short = '4', conflicts_with = "ip6")]
    pub(crate) ip4: bool,
    /// IPv6 only
    #[arg(short = '6')]
    pub(crate) ip6: bool,
    /// Also the first COUNT external addresses of each family, one by one
    #[arg(long, value_name = "COUNT")]
    pub(crate) expand: Option<usize>,
    /// Of public blocks ask about the last address too, not the first one alone
    #[arg(long)]
    pub(crate) verify_last: bool,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Print a line for each change of cards, addresses and default routes, until Ctrl-C
///
/// A change is major if external addresses and NAT are to be found out again. With --external, or servers
/// that are named, they are: at once, after major changes (each five seconds at most), and from time to time;
/// without, nothing is sent. Gateways are not asked.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic watch
  netyard nic watch --json                         a line of JSON for each change
  netyard nic watch --server stun.example.org      ... also of the external address and the NAT
  netyard nic watch --config servers.toml -6       ... of IPv6, by servers that a file names
  netyard nic watch --external --every 1m -4       ... once a minute, by servers of NETYARD_STUN
  netyard nic watch --server 198.18.0.1 --agree 1 --treat-as-public 198.18.0.0/15  in a laboratory")]
pub(crate) struct Watch {
    /// How often to look up external addresses where nothing changes
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = second_or_more)]
    pub(crate) every: Duration,
    /// External addresses of IPv4 only
    #[arg(short = '4', conflicts_with = "ip6")]
    pub(crate) ip4: bool,
    /// External addresses of IPv6 only
    #[arg(short = '6')]
    pub(crate) ip6: bool,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Parses a time of a second at least: between questions to others' servers, and for which a gateway gives a
/// port.
fn second_or_more(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time >= Duration::from_secs(1) {
        true => Ok(time),
        false => Err("expected a second or more".to_owned()),
    }
}

/// STUN servers to ask.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Servers {
    /// A STUN server to ask: HOST, HOST:PORT, or `public` for well-known public ones; may be repeated
    /// [default: those of the variable NETYARD_STUN, with commas between]
    #[arg(short, long = "server", value_name = "SERVER")]
    pub(crate) servers: Vec<String>,
    /// A TOML file with `servers`, and `agree` and `treat_as_public`
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Whether servers are asked for external addresses, and which. Without any of it nothing is sent.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Ask {
    /// Ask STUN servers for external addresses, as --server and --config do
    #[arg(long)]
    pub(crate) external: bool,
    #[command(flatten)]
    pub(crate) servers: Servers,
    /// How many servers have to see the same address [default: 2]
    #[arg(long, value_name = "COUNT")]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=16))]
    pub(crate) agree: Option<usize>,
    /// Addresses of this prefix are public too, as in laboratories; may be repeated
    #[arg(long, value_name = "PREFIX")]
    pub(crate) treat_as_public: Vec<IpNet>,
}

/// Tell what the NAT in front of this machine does
///
/// Asks STUN servers, and of IPv4 the gateway for its external address, which tells two NATs in a row from
/// one. Who may send in can be told with a server that has two addresses (RFC 5780), as
/// `netyard nic stun-server` and coturn are; with others only the mapping is told. What cannot be told for
/// sure is "inconclusive", and the exit code is 4; so it is where nobody answers at all.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic nat --server stun.example.org
  netyard nic nat --server 203.0.113.5 --explain          every question and answer
  netyard nic nat --server 203.0.113.5 --hairpin --lifetime 2m
  netyard nic nat --server public                         public servers: the mapping only
  netyard nic nat --config servers.toml                   servers that a file names
  netyard nic nat -6 --card wlan0 --json
  netyard nic nat --server public --no-gateway            the neighbours hear nothing
  netyard nic nat --server public --portal http://connectivitycheck.gstatic.com/generate_204
  netyard nic nat -4 --rfc 3489 --server 203.0.113.5 --tcp    as older programs test, and over TCP")]
pub(crate) struct Nat {
    #[command(flatten)]
    pub(crate) servers: Servers,
    /// Leave by this card
    #[arg(long, value_name = "CARD")]
    pub(crate) card: Option<String>,
    /// Test IPv4, the default
    #[arg(short = '4', long)]
    pub(crate) ipv4: bool,
    /// Test IPv6
    #[arg(short = '6', long, conflicts_with = "ipv4")]
    pub(crate) ipv6: bool,
    /// By which rules to test
    #[arg(long, value_name = "RFC", default_value = "5780")]
    pub(crate) rfc: Rfc,
    /// Test too whether packets to the own external address come back in
    #[arg(long)]
    pub(crate) hairpin: bool,
    /// Test too how long mappings live, up to this time [default: 2m]; takes as long
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "2m",
          value_parser = humantime::parse_duration)]
    pub(crate) lifetime: Option<Duration>,
    /// Ask over TCP too, as is done where UDP is silent
    #[arg(long)]
    pub(crate) tcp: bool,
    /// Fetch this page too, whose server answers with 204 (no content): with another answer the network wants a login
    #[arg(long, value_name = "URL")]
    pub(crate) portal: Option<PortalCheck>,
    /// Do not ask the gateway for its external address (PCP, NAT-PMP, and UPnP by multicast)
    #[arg(long)]
    pub(crate) no_gateway: bool,
    /// Show every question and answer
    #[arg(long)]
    pub(crate) explain: bool,
}

/// Rules to test a NAT by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rfc {
    /// The two axes of RFC 5780
    #[value(name = "5780")]
    Modern,
    /// RFC 3489, with its requests
    #[value(name = "3489")]
    Classic,
}

/// Ask the gateway what it lets be done with its NAT, and have it let a port in
///
/// Without PORT it is asked what it speaks (PCP, NAT-PMP, UPnP) and for its external address, and nothing is
/// mapped. With PORT that port of this machine is reached from outside until Ctrl-C: the mapping is
/// renewed when half its time is over, and given back at the end. IPv4 only.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic map                                   what the gateway speaks; maps nothing
  netyard nic map 8080                              lets TCP port 8080 in until Ctrl-C
  netyard nic map 4000/udp --external-port 5000 --card wlan0
  netyard nic map 8080 --lifetime 10m --json        a line of JSON for each change")]
pub(crate) struct Map {
    /// The port of this machine, as PORT or PORT/tcp, or PORT/udp
    #[arg(value_name = "PORT", value_parser = mapped_port)]
    pub(crate) port: Option<(u16, Transport)>,
    /// The external port that would be best; the gateway may give another [default: PORT]
    #[arg(long, value_name = "PORT", requires = "port", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) external_port: Option<u16>,
    /// For how long to ask, a second at least; the gateway may give less
    #[arg(long, value_name = "TIME", default_value = "1h", requires = "port",
          value_parser = second_or_more)]
    pub(crate) lifetime: Duration,
    /// Ask the gateway of this card [default: the default one of IPv4]
    #[arg(long, value_name = "CARD")]
    pub(crate) card: Option<String>,
}

/// Parses `8080`, `8080/tcp`, `4000/udp`.
fn mapped_port(text: &str) -> Result<(u16, Transport), String> {
    let (port, transport) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Transport::Tcp),
        Some((port, "udp")) => (port, Transport::Udp),
        Some(_) => ("", Transport::Tcp),
    };
    match port.parse() {
        Ok(port @ 1..) => Ok((port, transport)),
        _ => Err("expected a port from 1 to 65535, with /tcp or /udp behind it or not".into()),
    }
}

/// Ask STUN servers which address they see
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic stun stun.example.org
  netyard nic stun 203.0.113.5:3478 --proto tcp
  netyard nic stun stuns:stun.example.org:443 --via wlan0
  netyard nic stun 203.0.113.5 --count 5 --json
  netyard nic stun 203.0.113.5 --proto tls --ca ca.pem")]
pub(crate) struct Stun {
    /// HOST, HOST:PORT, or `public` for well-known public ones [default: those of NETYARD_STUN]
    #[arg(value_name = "SERVER")]
    pub(crate) servers: Vec<String>,
    /// Over what to ask [default: udp, or tls for those behind `stuns:`]
    #[arg(long, value_name = "PROTOCOL")]
    pub(crate) proto: Option<Proto>,
    /// Leave by this card, or from this address and by the card that has it; its resolvers are asked for names
    #[arg(long, value_name = "CARD|ADDRESS")]
    pub(crate) via: Option<String>,
    /// Ask each so often, each time from another port
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) count: u32,
    /// Trust the certificates in this file (PEM) instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

/// What carries questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Proto {
    /// UDP, port 3478 unless given
    Udp,
    /// TCP, port 3478 unless given
    Tcp,
    /// TLS, port 5349 unless given
    Tls,
}

/// Answer STUN questions, in the foreground
///
/// With two addresses of this machine it can tell clients what their NAT does (RFC 5780 and
/// RFC 3489); with one it tells addresses. It listens on UDP and TCP.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic stun-server                                  addresses only, on every address
  netyard nic stun-server --ip 203.0.113.5 --ip 203.0.113.6
  netyard nic stun-server --ip 203.0.113.5 --tls-cert cert.pem --tls-key key.pem
  netyard nic stun-server --port 53 --alternate-port 123 --tls-port 443     ports that firewalls let out")]
pub(crate) struct StunServer {
    /// An address of this machine; twice for a server that tells what NATs do
    #[arg(long = "ip", value_name = "ADDRESS")]
    pub(crate) addresses: Vec<IpAddr>,
    /// The port
    #[arg(long, value_name = "PORT", default_value_t = netyard_nic::stun::names::PORT)]
    pub(crate) port: u16,
    /// The second port, with two addresses
    #[arg(long, value_name = "PORT", default_value_t = netyard_nic::stun::names::PORT + 1)]
    pub(crate) alternate_port: u16,
    /// Listen for TLS too, with this certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// The port for TLS
    #[arg(long, value_name = "PORT", default_value_t = netyard_nic::stun::names::TLS_PORT)]
    pub(crate) tls_port: u16,
}

/// By which card sockets leave.
#[derive(Debug, Clone, Args)]
pub(crate) struct By {
    /// Leave by this card, from its own address, and ask its resolvers for names
    #[arg(short, long, value_name = "CARD")]
    pub(crate) card: Option<String>,
    /// Leave from this address of a card, of a block any, and by that card
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) route: Option<IpAddr>,
    /// IPv4 only
    #[arg(short = '4', conflicts_with = "ip6")]
    pub(crate) ip4: bool,
    /// IPv6 only
    #[arg(short = '6')]
    pub(crate) ip6: bool,
}

/// Carry bytes between stdin, stdout and the network, by a card of your choice
///
/// Connects to HOST:PORT, or with --listen waits for a client on PORT: on loopback, or on the address of the
/// card that is named. What is read from stdin is sent, what comes is written to stdout; when stdin ends,
/// the other end is told, and what it still says is waited for. Over UDP each piece that is read is a
/// datagram, and a server answers whoever it has heard last. Where it listens and whom it talks to is
/// said on stderr, with --json as a line of JSON each.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | netyard nic pipe --card wlan0 example.com:80
  netyard nic pipe --tls example.com:443
  netyard nic pipe -4 example.com:80                 by IPv4 only; -6 by IPv6
  netyard nic pipe --tls --ca ca.pem --name example.com --wait 5s 203.0.113.5:443
  netyard nic pipe --listen --tls-cert cert.pem --tls-key key.pem 9443
  netyard nic pipe --udp --route 192.168.2.20 192.168.2.1:53
  netyard nic pipe --listen 9000 > file              one client, on loopback
  netyard nic pipe --listen --on all --keep 9000     on every address, one client after the other
  netyard nic pipe --listen 8080 --relay example.com:80 --card wlan0     a door that leads out by wlan0")]
pub(crate) struct Pipe {
    /// Where to connect to; with --listen the port alone
    #[arg(value_name = "HOST:PORT")]
    pub(crate) endpoint: String,
    /// Wait for a client on this port; 0 is one that the kernel chooses
    #[arg(short, long)]
    pub(crate) listen: bool,
    /// UDP instead of TCP
    #[arg(short, long)]
    pub(crate) udp: bool,
    #[command(flatten)]
    pub(crate) by: By,
    /// Where to listen [default: route if a card is named, else loopback]
    #[arg(long, value_name = "WHERE", requires = "listen")]
    pub(crate) on: Option<On>,
    /// Go on with the next client when one is done
    #[arg(short, long, requires = "listen")]
    pub(crate) keep: bool,
    /// Join every client with this, by the card that is named, instead of stdin and stdout
    #[arg(long, value_name = "HOST:PORT", requires = "listen")]
    pub(crate) relay: Option<String>,
    /// End when nothing comes for so long behind the end of stdin [default: over TCP never, over UDP 1s]
    #[arg(short, long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) wait: Option<Duration>,
    /// Encrypt; the other end has to prove that it is HOST
    #[arg(long, conflicts_with_all = ["listen", "udp"])]
    pub(crate) tls: bool,
    /// Trust the certificates in this file (PEM) instead of the system's
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub(crate) ca: Option<PathBuf>,
    /// The name that the other end has to prove [default: HOST]
    #[arg(long, value_name = "NAME", requires = "tls")]
    pub(crate) name: Option<String>,
    /// Encrypt what is listened for, with this certificate (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "listen"], conflicts_with = "udp")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// Answer programs over HTTP: cards, routes, NATs, mappings, changes, pipes
///
/// In the foreground, on loopback unless another place is named. Who asks has to show the token, which is
/// told on stderr unless it was given. STUN servers are asked only where a request wants that, and only
/// those that are named here.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic serve
  NETYARD_NIC_TOKEN=secret netyard nic serve --server stun.example.org
  curl -H 'Authorization: Bearer secret' http://127.0.0.1:12333/v1/interfaces
  netyard nic serve --listen local --card eth0      for the neighbours of eth0
  netyard nic serve --port 0 --token secret --external     servers of NETYARD_STUN may be asked
  netyard nic serve --no-token --config servers.toml       for whoever is on this machine
  netyard nic serve --server 198.18.0.1 --agree 1 --treat-as-public 198.18.0.0/15  in a laboratory")]
pub(crate) struct Serve {
    /// Who can reach it
    #[arg(long, value_name = "WHERE", default_value = "loopback")]
    pub(crate) listen: Reach,
    /// The port; 0 is one that the system chooses
    #[arg(long, value_name = "PORT", default_value_t = netyard_nic::rest::PORT)]
    pub(crate) port: u16,
    /// The card whose neighbours can reach it [default: the default one]
    #[arg(long, value_name = "CARD")]
    pub(crate) card: Option<String>,
    /// What requests have to show [default: that of NETYARD_NIC_TOKEN, else a new one]
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Answer without a token, on loopback only; requests then have to say `X-Netyard: 1`
    #[arg(long, conflicts_with = "token")]
    pub(crate) no_token: bool,
    #[command(flatten)]
    pub(crate) ask: Ask,
}

/// Who can reach a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reach {
    /// This machine only
    Loopback,
    /// The neighbours of a card
    Local,
    /// Everybody who can reach the machine
    All,
}

/// On which addresses a server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    /// This machine only
    Loopback,
    /// The address of the card that is named: by that card only
    Route,
    /// Every address
    All,
}

impl StunServer {
    /// The endpoint of a server that has one.
    pub(crate) fn single(&self) -> SocketAddr {
        let any = IpAddr::from([0; 4]);
        SocketAddr::new(self.addresses.first().copied().unwrap_or(any), self.port)
    }
}
