//! `nic stun` and `nic stun-server`.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use netyard_nic::stun::listen::Listening;
use netyard_nic::stun::{Carrier, Mapping, Server, StunClient, StunError};
use netyard_nic::tls::{self, Identity};
use netyard_nic::{Card, card_named, cards};
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
    let mut client = StunClient::new(name);
    if let Some(proto) = flags.proto {
        client = client.over(proto.into());
    }
    if let Some(via) = &flags.via {
        let address: Option<IpAddr> = via.parse().ok();
        let card = match address {
            Some(address) => having(address, &wanted)?,
            None => card_named(via).map_err(|error| super::cards::failed(&wanted, &error))?,
        };
        client = address.into_iter().fold(client.by(card.id()), StunClient::from_address);
    }
    if let Some(file) = &flags.ca {
        client = client.trusting(tls::trust_in(file).map_err(|error| failed(&error))?);
    }
    let refused = |error: StunError| match error {
        StunError::Name(error) | StunError::NoWay { source: error, .. } => failed(&error),
        other => YardError::new(ErrorKind::Input, &wanted, other.to_string()),
    };
    // One machine is asked, however many a name stands for.
    let client = client.found().await.map_err(refused)?;
    let server = client.find().await.map_err(refused)?.to_string();
    let mut asked = Vec::new();
    for _ in 0..flags.count {
        asked.push(match client.mapping().await {
            Ok(Mapping { local, answer, .. }) => Asked {
                server: server.clone(),
                local: Some(local),
                mapped: Some(answer.mapped),
                other: answer.other,
                rtt_us: u64::try_from(answer.rtt.as_micros()).ok(),
                software: answer.software,
                error: None,
            },
            Err(StunError::Failure(failure)) => Asked::failed(&server, failure.to_string()),
            Err(error) => return Err(refused(error)),
        });
    }
    Ok(asked)
}

/// The card that has an address.
fn having(address: IpAddr, wanted: &str) -> Result<Card, YardError> {
    let cards = cards().map_err(|error| super::cards::failed(wanted, &error))?;
    let has = |card: &Card| card.addresses.iter().any(|it| it.range.contains(address));
    cards.into_iter().find(has).ok_or_else(|| {
        YardError::new(ErrorKind::Unknown, wanted, format!("no card has the address {address}"))
            .next("`netyard nic list --all` shows what there is")
    })
}

impl From<Proto> for Carrier {
    fn from(proto: Proto) -> Self {
        match proto {
            Proto::Udp => Self::Udp,
            Proto::Tcp => Self::Tcp,
            Proto::Tls => Self::Tls,
        }
    }
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
        let endpoints: Vec<String> =
            listening.endpoints().iter().map(ToString::to_string).collect();
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
