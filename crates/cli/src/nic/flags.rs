//! The verbs below `nic`.
#![allow(rustdoc::broken_intra_doc_links, reason = "help texts for people are no Markdown")]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

/// Look at this machine's real interfaces: external addresses, NAT
#[derive(Debug, Subcommand)]
pub(crate) enum Nic {
    Nat(Nat),
    Stun(Stun),
    StunServer(StunServer),
}

/// Tell what the NAT in front of this machine does
///
/// Asks STUN servers. Who may send in can be told with a server that has two addresses (RFC 5780),
/// as `netyard nic stun-server` and coturn are; with others only the mapping is told. What cannot be
/// told for sure is "inconclusive", and the exit code is 4.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic nat --server stun.example.org
  netyard nic nat --server 203.0.113.5 --explain          every question and answer
  netyard nic nat --server 203.0.113.5 --hairpin --lifetime 2m
  netyard nic nat -6 --card wlan0 --json")]
pub(crate) struct Nat {
    /// A server, HOST or HOST:PORT; may be repeated [default: those of NETYARD_STUN, else public ones]
    #[arg(short, long = "server", value_name = "SERVER")]
    pub(crate) servers: Vec<String>,
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

/// Ask a STUN server which address it sees
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard nic stun stun.example.org
  netyard nic stun 203.0.113.5:3478 --proto tcp
  netyard nic stun stun.example.org --proto tls --via wlan0
  netyard nic stun 203.0.113.5 --count 5 --json")]
pub(crate) struct Stun {
    /// HOST or HOST:PORT
    #[arg(value_name = "SERVER")]
    pub(crate) server: String,
    /// Over what to ask
    #[arg(long, value_name = "PROTOCOL", default_value = "udp")]
    pub(crate) proto: Proto,
    /// Leave by this card, or from this address
    #[arg(long, value_name = "CARD|ADDRESS")]
    pub(crate) via: Option<String>,
    /// Ask so often, each time from another port
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
  netyard nic stun-server --ip 203.0.113.5 --tls-cert cert.pem --tls-key key.pem")]
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

impl StunServer {
    /// The endpoint of a server that has one.
    pub(crate) fn single(&self) -> SocketAddr {
        let any = IpAddr::from([0; 4]);
        SocketAddr::new(self.addresses.first().copied().unwrap_or(any), self.port)
    }
}
