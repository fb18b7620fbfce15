//! The test of a NAT on this machine's own sockets, and over TCP and TLS where UDP is silent.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::examine::{Plan, Rules, examine};
use super::kind::NatType;
use super::portal::PortalCheck;
use super::report::{Confidence, Evidence, NatReport};
use crate::portmap::live::Mapper;
use crate::stun::{Carrier, Source, ask_instead, names, udp};
use crate::{CardId, Family, card_named};

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
    /// Ask over TCP too, and over TLS where that is silent. It is done in any case where UDP is silent.
    pub tcp: bool,
    /// Ask this page too whether the network answers in the place of others.
    pub portal: Option<PortalCheck>,
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
            portal: None,
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
    // A card that is not there fails where it is to be left by, with the kernel's words.
    let card = options.card.as_deref().and_then(|name| card_named(name).ok());
    let card = card.map(|card| card.id());
    let (found, reasons) = find(options, card.as_ref()).await;
    let plain = found.iter().filter(|server| !server.tls).map(|server| server.address);
    let servers: Vec<SocketAddr> = plain.collect();
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
        ..Plan::new(servers)
    };
    let asked = async {
        match options.gateway && options.family == Family::Ip4 {
            true => Mapper::look(options.card.as_deref(), Some(source.address)).await.ok(),
            false => None,
        }
    };
    let captive = async {
        match &options.portal {
            Some(portal) => portal.is_captive(&source, card.as_ref()).await,
            None => None,
        }
    };
    let tested = udp::run(&source, |line| examine(line, plan));
    let (mut report, portmap, captive) = tokio::join!(tested, asked, captive);
    report.details.captive_portal = captive;
    if let Some(portmap) = portmap {
        report.details.count_layers(portmap.external.map(IpAddr::V4));
        report.details.portmap = Some(portmap);
    }
    if options.tcp || report.details.udp == Some(false) {
        over_streams(&source, &found, &mut report).await;
    }
    Ok(report)
}

async fn find(options: &Options, card: Option<&CardId>) -> (Vec<names::Found>, Vec<String>) {
    let (found, unknown) = names::find_all(&options.servers, options.family, card).await;
    let mut reasons: Vec<_> =
        unknown.iter().map(|(server, error)| format!("{server}: {error}")).collect();
    let over_tls = found.iter().filter(|server| server.tls);
    reasons.extend(over_tls.map(|server| format!("{} is asked over TLS only", server.name)));
    if options.servers.is_empty() {
        reasons.push("none was named".to_owned());
    }
    (found, reasons)
}

/// Asks all of them over TCP, and over TLS where that is silent. An answer proves that a silent UDP is blocked;
/// where nobody answers, it may be the servers that are not there.
async fn over_streams(source: &Source, servers: &[names::Found], report: &mut NatReport) {
    let details = &mut report.details;
    let mut first = None;
    for instead in ask_instead(source, servers).await {
        let answer = instead.result.as_ref().ok();
        details.evidence.push(Evidence {
            step: instead.carrier.to_string(),
            server: instead.server,
            local: answer.map_or(SocketAddr::new(source.address, 0), |(local, _)| *local),
            mapped: answer.map(|(_, answer)| answer.mapped),
            sent: 1,
            answered_from: answer.map(|(_, answer)| answer.from),
            rtt_us: answer.and_then(|(_, answer)| u64::try_from(answer.rtt.as_micros()).ok()),
            error: instead.result.as_ref().err().map(ToString::to_string),
        });
        first = first.or(answer.map(|(_, answer)| answer.mapped));
        let answers = match instead.carrier {
            Carrier::Tls => &mut details.tls_stun,
            Carrier::Udp | Carrier::Tcp => &mut details.tcp_stun,
        };
        *answers = Some(*answers == Some(true) || answer.is_some());
    }
    if report.kind != Some(NatType::Blocked) {
        return;
    }
    match first {
        Some(mapped) => {
            details.confidence = Confidence::Proven;
            details.external = Some(mapped);
        }
        None => {
            let reason = "nobody answers over TCP or TLS either: the servers may not be there";
            details.inconclusive = Some(reason.to_owned());
        }
    }
}
