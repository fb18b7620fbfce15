//! The test of a NAT on this machine's own sockets, and over TCP where UDP is silent.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::examine::{Plan, Rules, examine};
use super::kind::NatType;
use super::report::{Confidence, Evidence, NatReport};
use crate::discover::all;
use crate::portmap::live::Mapper;
use crate::stun::{Source, names, stream, udp};
use crate::{Family, card_named};

/// What to test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Names or addresses of servers, best first.
    pub servers: Vec<String>,
    /// The address family.
    pub family: Family,
    /// The card to leave by; none: the kernel's choice.
    pub card: Option<String>,
    /// The local address; none: the kernel's choice.
    pub address: Option<IpAddr>,
    /// By which rules.
    pub rules: Rules,
    /// Whether packets to one's own external address come back in.
    pub hairpin: bool,
    /// How long mappings live, up to this; takes as long.
    pub lifetime: Option<Duration>,
    /// Ask over TCP too. It is done in any case where UDP is silent.
    pub tcp: bool,
    /// Ask the gateway too what it speaks, and for its external address, which tells two NATs in a row from
    /// one. Nothing is mapped. IPv4 only.
    pub gateway: bool,
}

impl Options {
    /// The test of two seconds.
    pub const fn new(servers: Vec<String>, family: Family) -> Self {
        Self {
            servers,
            family,
            card: None,
            address: None,
            rules: Rules::Modern,
            hairpin: false,
            lifetime: None,
            tcp: false,
            gateway: true,
        }
    }
}

/// Why there could be no test.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NatError {
    /// No server has an address of the family.
    #[error("no STUN server to ask over {family}: {}", .reasons.join("; "))]
    NoServers {
        /// The family.
        family: Family,
        /// What is wrong with each.
        reasons: Vec<String>,
    },
    /// There is no way out.
    #[error("no way to {server}: {reason}")]
    NoRoute {
        /// The first server.
        server: SocketAddr,
        /// What the kernel said.
        reason: String,
    },
}

/// Tests the NAT between this machine and the servers.
///
/// # Errors
/// No question could be asked.
pub async fn test(options: &Options) -> Result<NatReport, NatError> {
    let (servers, reasons) = resolve(options).await;
    let Some(first) = servers.first().copied() else {
        return Err(NatError::NoServers { family: options.family, reasons });
    };
    let mut source = Source::towards(first, options.card.as_deref())
        .await
        .map_err(|error| NatError::NoRoute { server: first, reason: error.to_string() })?;
    if let Some(address) = options.address {
        source.address = address;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let plan = Plan {
        rules: options.rules,
        hairpin: options.hairpin,
        lifetime: options.lifetime,
        tested_at: now.ok().map(|time| time.as_secs()),
        ..Plan::new(servers.clone())
    };
    let asked = async {
        match options.gateway && options.family == Family::Ip4 {
            true => Mapper::look(options.card.as_deref(), Some(source.address)).await.ok(),
            false => None,
        }
    };
    let (mut report, portmap) = tokio::join!(udp::run(&source, |line| examine(line, plan)), asked);
    if let Some(portmap) = portmap {
        report.details.count_layers(portmap.external.map(IpAddr::V4));
        report.details.portmap = Some(portmap);
    }
    if options.tcp || report.details.udp == Some(false) {
        over_tcp(&source, &servers, &mut report).await;
    }
    Ok(report)
}

async fn resolve(options: &Options) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut servers, mut reasons) = (Vec::new(), Vec::new());
    // A card that is not there fails where it is to be left by, with the kernel's words.
    let card = options.card.as_deref().and_then(|name| card_named(name).ok());
    let card = card.map(|card| card.id());
    let found = names::resolve_all(&options.servers, options.family, card.as_ref()).await;
    for (server, found) in options.servers.iter().zip(found) {
        match found {
            Ok(address) => servers.push(address),
            Err(error) => reasons.push(format!("{server}: {error}")),
        }
    }
    if options.servers.is_empty() {
        reasons.push("none was named".to_owned());
    }
    (servers, reasons)
}

/// Asks all of them over TCP. An answer proves that a silent UDP is blocked; where nobody answers, it may be
/// the servers that are not there.
async fn over_tcp(source: &Source, servers: &[SocketAddr], report: &mut NatReport) {
    let details = &mut report.details;
    let asked = servers.iter().map(|server| stream::ask_instead(source, *server));
    let mut first = None;
    for (server, result) in servers.iter().zip(all(asked).await) {
        let answer = result.as_ref().ok();
        details.evidence.push(Evidence {
            step: "tcp".to_owned(),
            server: *server,
            local: answer.map_or(SocketAddr::new(source.address, 0), |(local, _)| *local),
            mapped: answer.map(|(_, answer)| answer.mapped),
            sent: 1,
            answered_from: answer.map(|(_, answer)| answer.from),
            rtt_us: answer.and_then(|(_, answer)| u64::try_from(answer.rtt.as_micros()).ok()),
            error: result.as_ref().err().map(ToString::to_string),
        });
        first = first.or(answer.map(|(_, answer)| answer.mapped));
    }
    details.tcp_stun = Some(first.is_some());
    if report.kind != Some(NatType::Blocked) {
        return;
    }
    match first {
        Some(mapped) => {
            details.confidence = Confidence::Proven;
            details.external = Some(mapped);
        }
        None => {
            let reason = "nobody answers over TCP either: the servers may not be there";
            details.inconclusive = Some(reason.to_owned());
        }
    }
}
