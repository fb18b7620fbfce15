//! `nic stun` and `nic stun-server`.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use netyard_nic::stun::listen::Listening;
use netyard_nic::stun::{Failure, Server, Source, names, stream, udp};
use netyard_nic::tls::{self, Identity};
use netyard_nic::{Card, cards};
use netyard_yard::error::{ErrorKind, YardError};
use serde::Serialize;

use super::asked::somebody;
use super::flags::{Proto, Stun, StunServer};
use crate::output::{Output, Table, patiently};

/// One question and what came of it.
#[derive(Debug, Default, Serialize)]
struct Asked {
    /// Its address, or its name if that is not known.
    server: String,
    local: Option<SocketAddr>,
    mapped: Option<SocketAddr>,
    other: Option<SocketAddr>,
    software: Option<String>,
    rtt_us: Option<u64>,
    error: Option<String>,
}

impl Asked {
    /// One that could not be asked.
    fn failed(server: &str, error: String) -> Self {
        Self { server: server.to_owned(), error: Some(error), ..Self::default() }
    }
}

pub(super) fn ask(flags: &Stun, out: Output) -> Result<ExitCode, YardError> {
    let asked = patiently("asking STUN servers", || super::run(ask_all(flags)))??;
    out.show(&asked, |asked, colour| {
        let mut table =
            Table::new(&["ASKED", "LOCAL", "SEEN AS", "RTT", "OTHER ADDRESS", "SOFTWARE"]);
        for one in asked {
            let rtt = one.rtt_us.map(|rtt| format!("{}.{} ms", rtt / 1000, rtt / 100 % 10));
            let seen = one.mapped.map(|mapped| mapped.to_string()).or(one.error.clone());
            table.row([
                one.server.as_str().into(),
                one.local.into(),
                seen.into(),
                rtt.into(),
                one.other.into(),
                one.software.clone().into(),
            ]);
        }
        table.render(colour)
    })
    .map_err(|error| YardError::io("print the result", &error))?;
    let answered = asked.iter().any(|one| one.mapped.is_some());
    Ok(if answered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ask_all(flags: &Stun) -> Result<Vec<Asked>, YardError> {
    let servers = somebody(flags.servers.clone(), "ask STUN servers", "SERVER")?;
    let mut asked = Vec::new();
    for server in &servers {
        match ask_one(flags, server).await {
            Ok(more) => asked.extend(more),
            // Of several servers one that cannot be asked is one answer less.
            Err(error) if servers.len() == 1 => return Err(error),
            Err(error) => asked.push(Asked::failed(server, error.to_string())),
        }
    }
    Ok(asked)
}

async fn ask_one(flags: &Stun, name: &str) -> Result<Vec<Asked>, YardError> {
    let wanted = format!("ask {name}");
    let failed = |error: &io::Error| YardError::io(&wanted, error);
    let default = if flags.proto == Proto::Tls { names::TLS_PORT } else { names::PORT };
    let address: Option<IpAddr> = flags.via.as_deref().and_then(|via| via.parse().ok());
    let card = flags.via.as_deref().filter(|_| address.is_none());
    let server = names::resolve(name, address.map(|via| via.is_ipv4()), default)
        .await
        .map_err(|error| failed(&error))?;
    let card = match address {
        Some(address) => Some(having(address, &wanted)?),
        None => card.map(str::to_owned),
    };
    let mut source =
        Source::towards(server, card.as_deref()).await.map_err(|error| failed(&error))?;
    source.address = address.unwrap_or(source.address);
    let trust = match &flags.ca {
        Some(file) => tls::trust_in(file).map_err(|error| failed(&error))?,
        None => tls::system_trust(),
    };
    let mut asked = Vec::new();
    for _ in 0..flags.count {
        let result = match flags.proto {
            Proto::Udp => udp::ask(&source, server).await,
            Proto::Tcp => stream::ask_tcp(&source, server).await,
            Proto::Tls => {
                let (host, _) = names::split(name, default);
                stream::ask_tls(&source, server, host, trust.clone()).await
            }
        };
        let error = result.as_ref().err().map(Failure::to_string);
        let (local, answer) = result.ok().unzip();
        asked.push(Asked {
            server: server.to_string(),
            local,
            mapped: answer.as_ref().map(|answer| answer.mapped),
            other: answer.as_ref().and_then(|answer| answer.other),
            rtt_us: answer.as_ref().and_then(|answer| u64::try_from(answer.rtt.as_micros()).ok()),
            software: answer.and_then(|answer| answer.software),
            error,
        });
    }
    Ok(asked)
}

/// The card that has an address.
fn having(address: IpAddr, wanted: &str) -> Result<String, YardError> {
    let cards = cards().map_err(|error| super::cards::failed(wanted, &error))?;
    let has = |card: &&Card| card.addresses.iter().any(|it| it.range.contains(address));
    cards.iter().find(has).map(|card| card.name.clone()).ok_or_else(|| {
        YardError::new(ErrorKind::Unknown, wanted, format!("no card has the address {address}"))
            .next("`netyard nic list --all` shows what there is")
    })
}

pub(super) fn serve(flags: &StunServer) -> Result<ExitCode, YardError> {
    let server = match flags.addresses[..] {
        [] | [_] => Server::single(),
        [first, second] => Server::full(
            SocketAddr::new(first, flags.port),
            SocketAddr::new(second, flags.alternate_port),
        )
        .map_err(|error| {
            YardError::new(ErrorKind::Input, "answer STUN questions", error.to_string())
        })?,
        _ => {
            return Err(YardError::new(
                ErrorKind::Input,
                "answer STUN questions",
                format!("{} addresses are given", flags.addresses.len()),
            )
            .next("give --ip once or twice; start another server for the other family"));
        }
    };
    let tls = match (&flags.tls_cert, &flags.tls_key) {
        (Some(certificate), Some(key)) => Some(identity(certificate, key)?),
        _ => None,
    };
    super::run(async {
        let mut listening = Listening::bind(server, flags.single()).await?;
        if tls.is_some() {
            listening.bind_tls(flags.tls_port).await?;
        }
        let endpoints = listening.endpoints()?;
        let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        // Nothing can be done where stderr is closed.
        _ = writeln!(io::stderr(), "netyard: answering STUN on {}", endpoints.join(", "));
        listening.serve(tls).await
    })?
    .map_err(|error: io::Error| YardError::io("answer STUN questions", &error))?;
    Ok(ExitCode::SUCCESS)
}

fn identity(certificate: &Path, key: &Path) -> Result<Identity, YardError> {
    tls::identity(certificate, key)
        .map_err(|error| YardError::io(format!("use {}", certificate.display()), &error))
}
