//! `capture` and `flows`: what passes a network in user mode.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use netyard_engine::capture::{Filter, Kind};
use netyard_engine::control::{FlowKind, FlowPhase};
use netyard_yard::error::{ErrorKind, YardError};
use netyard_yard::networks::{self, NetworkFlow};
use serde_json::json;

use crate::output::{Cell, Mood, Output, Table};
use crate::verbs::{show, watched};
use crate::view::bytes;

/// Write what passes a network in user mode to a file for Wireshark
///
/// The file is pcapng, with an interface for each instance, named after it, and times in nanoseconds. A packet
/// between two instances is there twice: as the one sends it and as the other gets it. It goes on until Ctrl-C.
/// Conditions of one kind are alternatives; all kinds that are given must hold. On bridges the kernel moves
/// the packets: tcpdump sees them there.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard capture lab -w lab.pcapng
  netyard capture lab | tshark -r -
  netyard capture lab -w web.pcapng --instance web-1 --instance web-2 --port 80
  netyard capture lab -w names.pcapng --protocol udp --port 53 --for 30s
  netyard capture lab -w one.pcapng --prefix 198.51.100.0/24 --segment --count 1000")]
pub(crate) struct Capture {
    /// The network, as `network ls` names it
    #[arg(value_name = "NETWORK")]
    pub(crate) network: String,
    /// The file [default: standard output, if that is no terminal]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
    /// What this instance sends and gets; may be repeated
    #[arg(short, long, value_name = "NAME")]
    pub(crate) instance: Vec<String>,
    /// TCP and UDP from or to this port; may be repeated
    #[arg(short, long, value_name = "PORT")]
    pub(crate) port: Vec<u16>,
    /// What comes from or goes to an address of this prefix; may be repeated
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub(crate) prefix: Vec<IpNet>,
    /// What is of this protocol; may be repeated
    #[arg(long, value_name = "PROTOCOL")]
    pub(crate) protocol: Vec<Protocol>,
    /// Cut super-frames, of up to 64 KiB, to the packets that they stand for
    #[arg(long)]
    pub(crate) segment: bool,
    /// End after so many packets
    #[arg(short, long, value_name = "NUMBER")]
    pub(crate) count: Option<u64>,
    /// End after so long, like 30s
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) limit: Option<Duration>,
}

/// What can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// ICMP of both families, neighbour discovery among it
    Icmp,
    /// ARP
    Arp,
}

/// List the flows of networks in user mode: who talks to whom
///
/// A flow is a TCP connection, datagrams between two ends, or pings of one address. Bytes are payload that was
/// delivered; the round trip is that between the network and the instance. Connections to a service of the
/// network go from instance to instance, and their bytes are not counted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  netyard flows
  netyard flows lab --json
  netyard flows lab --watch                  again each second, until Ctrl-C")]
pub(crate) struct Flows {
    /// The network, as `network ls` names it [default: all in user mode]
    #[arg(value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// List them again each second
    #[arg(long)]
    pub(crate) watch: bool,
}

pub(crate) fn capture(flags: Capture, out: Output) -> Result<(), YardError> {
    let Capture { network, write, count, limit, .. } = &flags;
    let wanted = || format!("capture on network {network}");
    if write.is_none() && io::stdout().is_terminal() {
        let error = YardError::new(ErrorKind::Input, wanted(), "a terminal cannot show it");
        return Err(error
            .next("name a file with -w FILE")
            .next(format!("or read along: netyard capture {network} | tshark -r -")));
    }
    let failed = |error| YardError::io(wanted(), &error);
    let mut capture = networks::Capture::begin(network, filter(&flags), *limit)?;
    // Now, as a file that is there already is emptied.
    let mut to: Box<dyn Write> = match write {
        Some(path) => {
            let file = File::create(path);
            let failed = |error| YardError::io(format!("write {}", path.display()), &error);
            Box::new(file.map_err(failed)?)
        }
        None => Box::new(io::stdout()),
    };
    let mut packets = 0_u64;
    while count.is_none_or(|count| packets < count) {
        let Some((packet, block)) = capture.next_block().map_err(failed)? else { break };
        match to.write_all(&block).and_then(|()| to.flush()) {
            // Who reads along has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            written => written.map_err(failed)?,
        }
        packets += u64::from(packet);
    }
    match write {
        // Nothing may follow the packets.
        None => Ok(()),
        Some(path) => show(out, &json!({ "file": path, "packets": packets }), |_, _| {
            format!("{packets} packets are in {}\n", path.display())
        }),
    }
}

fn filter(flags: &Capture) -> Filter {
    let kind = |protocol: &Protocol| match protocol {
        Protocol::Tcp => Kind::Tcp,
        Protocol::Udp => Kind::Udp,
        Protocol::Icmp => Kind::Icmp,
        Protocol::Arp => Kind::Arp,
    };
    Filter {
        instances: flags.instance.clone(),
        ports: flags.port.clone(),
        prefixes: flags.prefix.clone(),
        protocols: flags.protocol.iter().map(kind).collect(),
        segment: flags.segment,
    }
}

pub(crate) fn flows(flags: &Flows, out: Output) -> Result<(), YardError> {
    watched(flags.watch, || {
        let flows = networks::flows(flags.network.as_deref())?;
        show(out, flows.as_slice(), table)
    })
}

fn table(flows: &[NetworkFlow], colour: bool) -> String {
    let mut table = Table::new(&[
        "NETWORK", "INSTANCE", "PROTOCOL", "FROM", "TO", "NAME", "STATE", "SENT", "RECEIVED",
        "RTT", "AGE", "RULE",
    ]);
    for NetworkFlow { network, flow } in flows {
        let (from, to) = match (flow.outbound, flow.client) {
            (true, _) => (flow.guest.to_string(), flow.remote.to_string()),
            (false, Some(client)) => (client.to_string(), flow.guest.to_string()),
            (false, None) => (flow.remote.to_string(), flow.guest.to_string()),
        };
        let state = match flow.state {
            FlowPhase::Opening => Cell::new("opening", Mood::Doubtful),
            FlowPhase::Open => "open".into(),
            FlowPhase::Closing => "closing".into(),
        };
        table.row([
            network.as_str().into(),
            flow.instance.as_str().into(),
            word(flow.protocol).into(),
            from.into(),
            to.into(),
            flow.name.as_ref().into(),
            state,
            flow.guest_to_host.map(bytes).into(),
            flow.host_to_guest.map(bytes).into(),
            flow.rtt_us.map(|rtt| format!("{}.{:03} ms", rtt / 1000, rtt % 1000)).into(),
            humantime::format_duration(Duration::from_secs(flow.age_ms / 1000)).to_string().into(),
            flow.rule.as_ref().into(),
        ]);
    }
    table.render(colour)
}

/// What a class of flows is called.
pub(crate) fn word(protocol: FlowKind) -> &'static str {
    match protocol {
        FlowKind::Tcp => "tcp",
        FlowKind::Udp => "udp",
        FlowKind::Ping => "ping",
    }
}

/// Parses a prefix, or an address, which is one of full length.
fn prefix(text: &str) -> Result<IpNet, String> {
    let net =
        text.parse().or_else(|_| text.parse().map(|address: std::net::IpAddr| address.into()));
    net.map_err(|_| "expected a prefix like 10.1.0.0/16 or fd00::/64, or an address".to_owned())
}
